"""What a sparse dictionary is and how it is trained: one frozen config for both."""

from dataclasses import dataclass
from typing import Literal

from mechint_core.errors import ConfigurationError

Activation = Literal["batch_topk", "topk", "relu"]

LEAST = {"n_latents": 1, "n_epochs": 1, "batch_size": 1, "sparsity_coef": 0, "auxiliary_coef": 0, "seed": 0}
ABOVE_ZERO = ("expansion", "k", "lr", "clip")
SHARES = ("warmup", "decay", "dead_window", "threshold_window")


@dataclass(frozen=True, slots=True, kw_only=True)
class SparseAutoencoderConfig:
    """Shape, sparsity and training of a sparse autoencoder.

    Training sees x' = (x - centre) / scale with E|x'|^2 = d, so that every number here means the same for every
    site: rates and penalties need no tuning to the size of the activations. The trained dictionary takes x itself.
    """

    activation: Activation = "batch_topk"
    """What makes the codes sparse: the `k` largest per sample on average over a batch, the `k` largest of each
    sample, or the L1 penalty alone."""
    n_latents: int | None = None
    """Dictionary features. None: `expansion` times the units of the activations."""
    expansion: int | float = 4
    """Dictionary features per unit, when `n_latents` is not given."""
    k: int | float = 32
    """Active latents per sample (topk: a whole number; batch_topk: the mean, any positive number)."""
    sparsity_coef: float = 0.01
    """relu: weight of the L1 penalty against the mean squared error per unit."""
    tied_weights: bool = False
    """Use the decoder's weights, transposed, as the encoder's."""

    n_epochs: int = 20
    """Times that every vector is seen."""
    batch_size: int = 512
    """Most vectors in one step."""
    lr: float | None = None
    """Adam's largest step. None: 1e-3 * sqrt(16384 / n_latents), the law of [@gao2024] for runs of thousands of
    steps rather than a hundred thousand."""
    warmup: float = 0.05
    """Share of the run over which the step size, and the penalty of relu, grow linearly from 0."""
    decay: float = 0.2
    """Share of the run, at its end, over which the step size falls linearly to 0."""
    clip: float = 1.0
    """Largest norm of the gradient."""
    dead_window: float = 0.005
    """A latent that has not fired for this share of the run's vectors (at most 10 million, at least four batches)
    counts as dead."""
    auxiliary_coef: float = 0.25
    """topk, batch_topk: weight of the error that remains when dead latents try to explain the residual. [@gao2024]
    has 1/32, for runs so long that Adam's memory of a latent's life, a thousand steps, does not matter."""
    threshold_window: float = 0.05
    """batch_topk: share of the run over which the threshold that replaces the batch is averaged (at most 100 steps)."""
    seed: int = 0
    """Names the initial weights and the order of the data."""
    device: str = "cpu"
    """Where training runs, in torch's words."""

    def __post_init__(self) -> None:
        if self.activation not in ("batch_topk", "topk", "relu"):
            raise ConfigurationError(f"activation must be batch_topk, topk or relu. Got {self.activation!r}.")
        if self.activation == "topk" and self.k != int(self.k):
            raise ConfigurationError(f"k must be a whole number for topk. Got {self.k}. batch_topk takes any mean.")
        for name, least in LEAST.items():
            if getattr(self, name) is not None and not getattr(self, name) >= least:
                raise ConfigurationError(f"{name} must be at least {least}. Got {getattr(self, name)}.")
        for name in ABOVE_ZERO:
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise ConfigurationError(f"{name} must be above 0. Got {getattr(self, name)}.")
        for name in SHARES:
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigurationError(f"{name} must be a share in [0, 1]. Got {getattr(self, name)}.")

    def latents_for(self, n_units: int) -> int:
        """Return the dictionary's size for activations of `n_units` units."""
        return self.n_latents or max(1, round(self.expansion * n_units))
