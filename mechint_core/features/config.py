"""What a sparse dictionary is and how it is trained: one frozen config for both."""

from dataclasses import dataclass
from typing import Literal

from mechint_core.errors import ConfigurationError

Activation = Literal["batch_topk", "topk", "relu"]


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
    expansion: float = 4.0
    """Dictionary features per unit, when `n_latents` is not given."""
    k: float = 32.0
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
    dead_window: float = 0.01
    """A latent that has not fired for this share of the run's vectors (at most 10 million, at least one batch)
    counts as dead."""
    auxiliary_coef: float = 1 / 32
    """Weight of the error left when dead latents try to explain what the living ones leave unexplained."""
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
        at_least_one = {"n_epochs": self.n_epochs, "batch_size": self.batch_size}
        if self.n_latents is not None:
            at_least_one["n_latents"] = self.n_latents
        above_zero = {"expansion": self.expansion, "k": self.k, "clip": self.clip}
        if self.lr is not None:
            above_zero["lr"] = self.lr
        at_least_zero = {"sparsity_coef": self.sparsity_coef, "auxiliary_coef": self.auxiliary_coef, "seed": self.seed}
        shares = {name: getattr(self, name) for name in ("warmup", "decay", "dead_window", "threshold_window")}
        for rule, values, holds in (
            ("at least 1", at_least_one, lambda value: value >= 1),
            ("above 0", above_zero, lambda value: value > 0),
            ("at least 0", at_least_zero, lambda value: value >= 0),
            ("a share in [0, 1]", shares, lambda value: 0 <= value <= 1),
        ):
            for name, value in values.items():
                if not holds(value):
                    raise ConfigurationError(f"{name} must be {rule}. Got {value}.")

    def latents_for(self, n_units: int) -> int:
        """Return the dictionary's size for activations of `n_units` units."""
        return self.n_latents or max(1, round(self.expansion * n_units))
