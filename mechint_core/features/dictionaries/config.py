"""What a sparse dictionary is and how it is trained: one frozen config for both, and for every kind."""

from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Literal, get_args

from mechint_core.errors import ConfigurationError

Activation = Literal["batch_topk", "topk", "jumprelu", "gated", "relu"]
DecoderNorm = Literal["unit", "weighted"]

AT_LEAST = {
    "k_start": 1,
    "n_latents": 1,
    "n_epochs": 1,
    "batch_size": 1,
    "buffer_bytes": 1,
    "sparsity_coef": 0,
    "auxiliary_coef": 0,
    "resamplings": 0,
    "seed": 0,
    "data_seed": 0,
}
WHOLE = ("n_latents", "n_epochs", "batch_size", "buffer_bytes", "resamplings", "seed", "data_seed")
ABOVE_ZERO = ("expansion", "k", "lr", "clip", "bandwidth", "exclude_norm_above")
SHARES = ("warmup", "decay", "sparsity_warmup", "dead_window", "threshold_window", "p_end")


@dataclass(frozen=True, slots=True, kw_only=True)
class SparseAutoencoderConfig:
    """Shape, sparsity and training of a sparse dictionary.

    Training sees x' = (x - centre) / scale with E|x'|^2 = d, so that every number here means the same for every
    site: rates and penalties need no tuning to the size of the activations. The trained dictionary takes x itself.
    """

    activation: Activation = "batch_topk"
    """What makes the codes sparse: the `k` largest per sample on average over a batch; the `k` largest of each
    sample; a threshold per latent, learned so that `k` pass; a gate with an L1 penalty; the L1 penalty alone."""
    n_latents: int | None = None
    """Dictionary features. None: `expansion` times the units of the activations."""
    expansion: int | float = 4
    """Dictionary features per unit, when `n_latents` is not given."""
    k: int | float = 32
    """topk, batch_topk, jumprelu: active latents per sample (topk: a whole number; the others: the mean)."""
    k_start: int | float | None = None
    """topk, batch_topk: `k` times this many are active at first, and fewer and fewer until `sparsity_warmup` ends.
    None: 3 with `levels`, or two latents of the first level settle on one feature and another has none; else 1."""
    sparsity_coef: float | None = None
    """Weight of the penalty against the mean squared error per unit. relu: of the codes' sum (None: 0.01); gated:
    of the gates' (None: 0.02); jumprelu: of (L0 / k - 1)^2 (None: 1)."""
    p_end: int | float = 1
    """relu, gated: the penalty sums the codes to the power p, which falls from 1 to this: p-annealing."""
    levels: tuple[int | float, ...] = ()
    """Sizes of nested dictionaries, smallest first: latents, or shares of them if below 1. Each of them, and the
    whole, must reconstruct alone: a Matryoshka dictionary, general features first."""
    decoder_norm: DecoderNorm | None = None
    """Decoder rows are kept at norm 1, or are free and their norm counts with the code it scales. None: weighted for
    relu and gated, whose penalty a code could escape by a long row, unless their weights are tied; unit else."""
    tied_weights: bool = False
    """Use the decoder's weights, transposed, as the encoder's; its rows then have norm 1."""
    bandwidth: float = 0.3
    """jumprelu: width of the kernel through which the thresholds feel the codes near them."""

    n_epochs: int = 20
    """Times that every vector is seen."""
    batch_size: int = 512
    """Most vectors in one step."""
    lr: float | None = None
    """Adam's largest step. None: 1e-3 * sqrt(16384 / n_latents), the law of [@gao2024] for runs of thousands of
    steps rather than a hundred thousand."""
    warmup: float = 0.05
    """Share of the run over which the step size grows linearly from 0."""
    sparsity_warmup: float | None = None
    """Share of the run over which the penalty grows linearly from 0, and k falls linearly from `k_start` k. None:
    0.5 with `levels`, else 0.05."""
    decay: float = 0.2
    """Share of the run, at its end, over which the step size falls linearly to 0."""
    clip: float = 1.0
    """Largest norm of the gradient."""
    dead_window: float = 0.005
    """A latent that has not fired for this share of the run's vectors (at most 10 million, at least four batches)
    counts as dead."""
    auxiliary_coef: float = 0.25
    """topk, batch_topk, jumprelu: weight of the error that remains when dead latents try to explain the residual.
    [@gao2024] has 1/32, for runs so long that Adam's memory of a latent's life, a thousand steps, does not matter."""
    resamplings: int = 4
    """relu, gated: times, spread over the first half of the run, that dead latents start anew from badly
    explained vectors."""
    threshold_window: float = 0.05
    """batch_topk: share of the run over which the threshold that replaces the batch is averaged (at most 100 steps)."""
    exclude_norm_above: int | float | None = None
    """Leave out vectors farther from the centre than this many times the median: attention sinks and other
    outliers would rule the error. None: train on all."""
    mixed_precision: bool | None = None
    """Dense products in bfloat16. None: where the device has units for it."""
    seed: int = 0
    """Names the initial weights."""
    data_seed: int = 0
    """Names the order of the data. Dictionaries with the same order can share one pass over it."""
    buffer_bytes: int = 256 * 2**20
    """Memory in which vectors are shuffled."""
    device: str = "auto"
    """Where training runs: auto (CUDA where there is one), cpu, cuda, cuda:N."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value, kinds = getattr(self, field.name), str(field.type)
            if isinstance(value, str) and ("int" in kinds or "float" in kinds):
                raise ConfigurationError(
                    f"{field.name} must be a number. Got the text {value!r}. (YAML needs a point: 1.0e-3, not 1e-3.)"
                )
        for name in WHOLE:
            if not isinstance(getattr(self, name), int | None) or isinstance(getattr(self, name), bool):
                raise ConfigurationError(f"{name} must be a whole number. Got {getattr(self, name)!r}.")
        if self.activation not in get_args(Activation):
            raise ConfigurationError(
                f"activation must be one of {', '.join(get_args(Activation))}. Got {self.activation!r}."
            )
        if self.activation == "topk" and self.k != int(self.k):
            raise ConfigurationError(f"k must be a whole number for topk. Got {self.k}. batch_topk takes any mean.")
        if self.decoder_norm not in (None, *get_args(DecoderNorm)):
            raise ConfigurationError(f"decoder_norm must be unit, weighted or None. Got {self.decoder_norm!r}.")
        for name, least in AT_LEAST.items():
            if getattr(self, name) is not None and not getattr(self, name) >= least:
                raise ConfigurationError(f"{name} must be at least {least}. Got {getattr(self, name)}.")
        for name in ABOVE_ZERO:
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise ConfigurationError(f"{name} must be above 0. Got {getattr(self, name)}.")
        for name in SHARES:
            if getattr(self, name) is not None and not 0 <= getattr(self, name) <= 1:
                raise ConfigurationError(f"{name} must be a share in [0, 1]. Got {getattr(self, name)}.")
        if self.tied_weights and (self.activation == "gated" or self.decoder_norm == "weighted"):
            raise ConfigurationError(
                "tied_weights need rows of norm 1 and no factor of their own. Got gated, or decoder_norm weighted."
            )
        if self.p_end == 0:
            raise ConfigurationError("p_end must be above 0. Got 0: counting codes has no gradient.")
        if any(level <= 0 for level in self.levels):
            raise ConfigurationError(f"levels must be above 0. Got {self.levels}.")

    @property
    def unit_norm(self) -> bool:
        """Whether training keeps the decoder's rows at norm 1."""
        unit = self.tied_weights or self.activation not in ("relu", "gated")
        return (self.decoder_norm or ("unit" if unit else "weighted")) == "unit"

    @property
    def penalty(self) -> float:
        """The weight of the sparsity penalty."""
        default = {"jumprelu": 1.0, "gated": 0.02}.get(self.activation, 0.01)
        return default if self.sparsity_coef is None else self.sparsity_coef

    @property
    def first_k(self) -> float:
        """How many times `k` are active at first."""
        return (3.0 if self.levels else 1.0) if self.k_start is None else self.k_start

    @property
    def sparsity_ramp(self) -> float:
        """The share of the run until sparsity is what was asked for."""
        return (0.5 if self.levels else 0.05) if self.sparsity_warmup is None else self.sparsity_warmup

    def latents_for(self, n_units: int) -> int:
        """Return the dictionary's size for activations of `n_units` units."""
        return self.n_latents or max(1, round(self.expansion * n_units))

    def level_sizes(self, n_latents: int) -> list[int]:
        """Return how many latents each level adds to those before it.

        Raises
        ------
        ConfigurationError
            If the levels do not grow, or reach the whole dictionary before the end.
        """
        ends = [0, *(round(each * n_latents) if each < 1 else int(each) for each in self.levels), n_latents]
        sizes = [end - start for start, end in pairwise(ends)]
        if min(sizes) < 1:
            raise ConfigurationError(
                f"levels must grow and stay below the {n_latents} latents. Got {self.levels}: {ends[1:]} latents."
            )
        return sizes
