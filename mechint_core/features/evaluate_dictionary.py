"""How good a sparse dictionary is: how few latents explain how much.

    L0        = mean number of active latents per vector
    FVU       = sum |y - y_hat|^2 / sum |y - mean|^2                        share of variance unexplained
    R2        = mean over units of 1 - sum (y - y_hat)_u^2 / sum (y - mean)_u^2
    cosine    = mean cosine of y_hat - mean with y - mean
    shrinkage = sum |y_hat - b|^2 / sum (y_hat - b).(y - b)                 1: none, below 1: codes too small

y is what the dictionary should write, its input x unless it is a transcoder; b is the decoder's bias. What it is worth
shows in the FVU of controls with the same L0, each at the one scale that serves it best:

    random, untrained, shuffled     `_control_dictionaries.py`: what size and sparsity explain without learning
    principal components            the best subspace of round(L0) dimensions, the same for all vectors: what
                                    correlations between units explain without sparsity
    k components per vector         the L0 largest coefficients along all principal axes: sparsity without more
                                    directions than units
    k units per vector              the same along the units' own axes

Source: [@rajamanoharan2024] for shrinkage, [@cunningham2023] for the controls, [@gao2024] for the rest.
Cost: two dense products of samples x units x latents, (4 + n_null) of `control_vectors` x units x latents, and an
eigendecomposition of units x units. Chunked over: samples.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mechint_core.errors import ConfigurationError, DegenerateInputError, ShapeError
from mechint_core.features._bootstrap_counts import bootstrap_counts
from mechint_core.features._control_quality import cosines, other_controls, random_controls, ratio, unexplained
from mechint_core.features.dictionaries.dictionary import SparseDictionary
from mechint_core.figure import Bars, Curve, Figure, Histogram
from mechint_core.kernels.proportions import wilson_interval
from mechint_core.kernels.resampling import Tail, estimate
from mechint_core.random import generator
from mechint_core.result import Estimate, Result

CHUNK_VALUES = 2**24
"""Codes computed at once."""
N_COLUMNS = 5
"""Of the table of a chunk, before the units': active latents, (y_hat - b).(y - b), |y_hat - b|^2, cosine, and whether
there is one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateDictionaryConfig:
    """How sure to be of a dictionary's quality."""

    n_bootstrap: int = 200
    """Bootstrap draws of the samples, for intervals."""
    n_null: int = 19
    """Random dictionaries to compare with; 19 allow p = 0.05."""
    control_vectors: int = 1024
    """Vectors that a control is tried on, at most; each random dictionary draws its own."""
    level: float = 0.95
    """Confidence of the intervals."""
    seed: int = 0
    """Names the draws."""

    def __post_init__(self) -> None:
        if self.n_bootstrap < 1 or self.n_null < 1 or self.seed < 0 or not 0 < self.level < 1:
            raise ConfigurationError(
                f"n_bootstrap and n_null must be at least 1, level in (0, 1), seed at least 0. Got {self}."
            )
        if self.control_vectors < 2:
            raise ConfigurationError(f"control_vectors must be at least 2. Got {self.control_vectors}.")


@dataclass(frozen=True, slots=True)
class EvaluateDictionary(Result):
    """Quality of one dictionary on one set of vectors."""

    technique: ClassVar[str] = "evaluate_dictionary"
    evidence: ClassVar[str] = (
        "Intervals: bootstrap over samples; dead share: Wilson's over latents. "
        "Null: random dictionaries of equal size and L0, at their best scale."
    )
    figures: ClassVar[tuple[Figure, ...]] = (
        Bars(
            values="control_fvu",
            labels="control",
            title="What the same number of active directions leaves unexplained",
            value_label="FVU",
        ),
        Histogram(
            values="density",
            title="How often the latents fire",
            x_label="share of samples a latent is active in",
            log_x=True,
        ),
        Curve(
            y=("sorted_density",),
            title="From the busiest latent to the rarest",
            x_label="latent, by rank",
            y_label="share of samples",
            log_y=True,
        ),
    )

    fvu: Estimate
    l0: Estimate
    dead_share: Estimate
    shrinkage: Estimate
    unit_r2: Estimate
    """Explained variance with all units weighing the same; in 1 - `fvu` they weigh by their variance."""
    cosine: Estimate
    n_vectors: int
    n_latents: int
    density: Float[np.ndarray, "latent"]
    sorted_density: Float[np.ndarray, "latent"]
    mean_activation: Float[np.ndarray, "latent"]
    control: Annotated[tuple[str, ...], "control"]
    control_fvu: Float[np.ndarray, "control"]
    """FVU of this dictionary, then of each control at its L0; the random ones' is their mean."""

    def reading(self) -> str:
        """Say what the dictionary explains, with how much, and who does as well without it."""
        better = self.fvu.p_value <= 1 - self.fvu.level + 1e-9
        verdict = (
            f"a random dictionary of the same size and sparsity explains {1 - self.fvu.null:.0%}"
            if better
            else f"no better than random dictionaries of the same size and sparsity (p = {self.fvu.p_value:.2g})"
        )
        pairs = zip(self.control[2:], self.control_fvu[2:], strict=True)
        best, rival = min((float(fvu), name) for name, fvu in pairs)
        beaten = "still more" if best < self.fvu.value else "less"
        return (
            f"{self.l0.value:.3g} of {self.n_latents} latents are active per vector and explain "
            f"{1 - self.fvu.value:.1%} of the variance; {verdict}. The best other control at this L0, {rival}, "
            f"explains {beaten}: {1 - best:.1%}. {self.dead_share.value:.1%} of the latents never "
            f"fired on these {self.n_vectors} vectors, and what is written has {self.shrinkage.value:.0%} of the "
            f"size it should have."
        )


def evaluate_dictionary(
    activations: Float[np.ndarray, "sample *position unit"],
    dictionary: SparseDictionary,
    target: Float[np.ndarray, "sample *position other_unit"] | None = None,
    *,
    config: EvaluateDictionaryConfig = EvaluateDictionaryConfig(),
) -> EvaluateDictionary:
    """Measure how much of the activations how few latents of the dictionary explain.

    Use it on vectors that the dictionary was not trained on. Several dictionaries compare fairly only at equal L0.
    A dictionary that explains less than as many principal components does not compress; it may still name features.
    It says nothing about whether latents mean something, nor whether the model would run on the reconstructions.

    Parameters
    ----------
    activations
        At least two samples that differ, in the units the dictionary takes. Further axes before the last are
        flattened to vectors; the bootstrap keeps those of a sample together.
    dictionary
        A trained dictionary.
    target
        What the dictionary should write for each vector. Needed for a transcoder; the activations themselves if not
        given.
    config
        Draws and confidence.

    Returns
    -------
    EvaluateDictionary
        `fvu` in [0, inf): 0 when reconstruction is perfect, 1 when it is as good as the mean; 1 - `fvu` is the
        explained variance. `unit_r2` in (-inf, 1], over the units that vary. `cosine` in [-1, 1], about the mean.
        `l0` in [0, n_latents]. `dead_share` in [0, 1]: it falls as more samples are given. `shrinkage` in [0, inf),
        1 when unbiased; NaN if no latent is active. `density` and `mean_activation` (over the samples in which the
        latent is active, 0 if there is none) per latent.

    Raises
    ------
    ShapeError
        If there are fewer than two samples, they have not the dictionary's number of units, or the target has not one
        vector for each that is read.
    ConfigurationError
        If the dictionary writes another vector than it reads, and no target is given.
    DegenerateInputError
        If a value is not finite, or all vectors are the same.

    Notes
    -----
    For a transcoder the best subspace becomes the best linear map of that rank, and k components those of the best
    linear map's output: the same numbers where target and activations are equal.

    References
    ----------
    [@rajamanoharan2024]
    [@cunningham2023]
    [@gao2024]

    Examples
    --------
    >>> from mechint_core.features import SparseAutoencoder, SparseAutoencoderConfig
    >>> basis = SparseAutoencoder(2, 4, config=SparseAutoencoderConfig(activation="relu"))
    >>> axes = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    >>> _ = basis.W_enc.data.copy_(axes), basis.W_dec.data.copy_(axes)
    >>> result = evaluate_dictionary(np.array([[1.0, 2.0], [-3.0, 1.0], [1.0, -1.0]]), basis)
    >>> (result.l0.value, result.fvu.value, result.shrinkage.value)
    (2.0, 0.0, 1.0)
    """
    x, y = _checked(activations, dictionary, target)
    vectors = x.flatten(0, 1)
    written = vectors if y is x else y.flatten(0, 1)
    draws = bootstrap_counts(len(x), config.n_bootstrap, generator(config.seed, "bootstrap"))
    found = _measure(x, y, dictionary, torch.from_numpy(draws))
    l0 = float(found.sums[0, 0]) / len(vectors)
    shared = (vectors, written, dictionary, l0)
    null = random_controls(*shared, n_draws=config.n_null, n_vectors=config.control_vectors, seed=config.seed)
    others = other_controls(*shared, n_vectors=config.control_vectors, seed=config.seed)
    drawn = _statistics(found.sums, len(vectors))

    def bound(
        values: Float[np.ndarray, "draw"], null: Float[np.ndarray, "_"] | None = None, tail: Tail = "greater"
    ) -> Estimate:
        return estimate(float(values[0]), bootstrap=values[1:], null=null, tail=tail, level=config.level)

    return EvaluateDictionary(
        fvu=bound(drawn.fvu, null.fvu, "less"),
        l0=bound(drawn.l0),
        dead_share=_proportion(found.density == 0, float(null.dead_share.mean()), config.level),
        shrinkage=bound(drawn.shrinkage),
        unit_r2=bound(drawn.unit_r2, null.unit_r2),
        cosine=bound(drawn.cosine, null.cosine),
        n_vectors=len(vectors),
        n_latents=dictionary.hidden_dim,
        density=found.density,
        sorted_density=np.sort(found.density)[::-1].copy(),
        mean_activation=found.mean_activation,
        control=("this dictionary", "random", *others),
        control_fvu=np.array([drawn.fvu[0], null.fvu.mean(), *others.values()]),
    )


class _Measured(NamedTuple):
    sums: Float[np.ndarray, "draw column"]
    density: Float[np.ndarray, "latent"]
    mean_activation: Float[np.ndarray, "latent"]


class _Statistics(NamedTuple):
    """Of the data as they are, then of each bootstrap draw."""

    fvu: Float[np.ndarray, "draw"]
    l0: Float[np.ndarray, "draw"]
    shrinkage: Float[np.ndarray, "draw"]
    unit_r2: Float[np.ndarray, "draw"]
    cosine: Float[np.ndarray, "draw"]


@torch.no_grad()
def _measure(
    x: Float[Tensor, "sample vector unit"],
    y: Float[Tensor, "sample vector other_unit"],
    dictionary: SparseDictionary,
    draws: Float[Tensor, "draw sample"],
) -> _Measured:
    """Encode and write chunk by chunk; sum what the statistics are made of, weighted as each draw says."""
    bias, mean = dictionary.b_dec, y.mean(dim=(0, 1), dtype=torch.float64)
    counts, codes_sum = (mean.new_zeros(dictionary.hidden_dim) for _ in range(2))
    sums = mean.new_zeros(len(draws), N_COLUMNS + 2 * y.shape[-1])
    rows = max(1, CHUNK_VALUES // (dictionary.hidden_dim * x.shape[1]))
    for read, goal, weights in zip(x.split(rows), y.split(rows), draws.split(rows, dim=1), strict=True):
        codes = dictionary.encode(read)
        made = dictionary.decode(codes)
        if dictionary.W_skip is not None:
            made = made + read @ dictionary.W_skip.T
        active = codes > 0
        counts += active.sum(dim=(0, 1))
        codes_sum += codes.sum(dim=(0, 1), dtype=torch.float64)
        goal, made = goal.double(), made.double()
        explained, cosine = made - bias, cosines(made - mean, goal - mean)
        table = torch.cat(
            [
                active.sum(dim=(1, 2)).double()[:, None],
                (explained * (goal - bias)).sum(dim=(1, 2))[:, None],
                explained.square().sum(dim=(1, 2))[:, None],
                cosine.nan_to_num().sum(dim=1)[:, None],
                cosine.isfinite().sum(dim=1).double()[:, None],
                (goal - made).square().sum(dim=1),
                (goal - mean).square().sum(dim=1),
            ],
            dim=1,
        )
        sums += weights.to(table) @ table
    mean_activation = codes_sum / counts.clamp_min(1)
    return _Measured(sums.cpu().numpy(), (counts / x[..., 0].numel()).cpu().numpy(), mean_activation.cpu().numpy())


def _statistics(sums: Float[np.ndarray, "draw column"], n_vectors: int) -> _Statistics:
    l0, cross, power, cosine, n_cosines = sums[:, :N_COLUMNS].T
    error, deviation = np.split(sums[:, N_COLUMNS:], 2, axis=1)
    fvu, unit_r2 = unexplained(error, deviation)
    return _Statistics(fvu, l0 / n_vectors, ratio(power, cross), unit_r2, ratio(cosine, n_cosines))


def _proportion(hits: np.ndarray, null: float, level: float) -> Estimate:
    """Return the share of hits with Wilson's interval, which is not empty even when there is none."""
    share = float(hits.mean())
    low, high = wilson_interval(share, len(hits), level)
    return Estimate(share, float(low), float(high), null, level=level)


def _checked(
    activations: Float[np.ndarray, "sample *position unit"],
    dictionary: SparseDictionary,
    target: Float[np.ndarray, "sample *position other_unit"] | None,
) -> tuple[Float[Tensor, "sample vector unit"], Float[Tensor, "sample vector other_unit"]]:
    """Return what is read and what should be written: the same tensor, unless there is a target."""
    if target is None and not dictionary.reconstructs:
        raise ConfigurationError("target must be given for a dictionary that writes another vector than it reads.")
    x = _vectors(activations, dictionary.input_dim, "activations", dictionary)
    if target is None:
        return x, x
    if target.shape[:-1] != activations.shape[:-1]:
        raise ShapeError(
            f"target must have one vector for each of activations {activations.shape}. Got shape {target.shape}."
        )
    return x, _vectors(target, dictionary.output_dim, "target", dictionary)


def _vectors(values: np.ndarray, n_units: int, name: str, dictionary: SparseDictionary) -> Tensor:
    if values.ndim < 2 or len(values) < 2 or values.shape[-1] != n_units:
        raise ShapeError(f"{name} must be (sample >= 2, ..., unit = {n_units}). Got shape {values.shape}.")
    if not np.isfinite(values).all():
        raise DegenerateInputError(f"{name} must be finite. Got NaN or infinity.")
    flat = values.reshape(-1, n_units)
    if (flat == flat[0]).all():
        raise DegenerateInputError(f"{name} must differ. Got vectors that are all the same: no variance to explain.")
    return torch.tensor(values.reshape(len(values), -1, n_units)).to(dictionary.W_dec)
