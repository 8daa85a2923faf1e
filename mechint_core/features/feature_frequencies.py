"""Which frequency of a cyclic variable each dictionary feature listens to.

    m_jv = mean code of latent j where the variable is v           v = 0 ... p - 1, centred over v
    P_jf = |sum_v m_jv exp(-2 pi i f v / p)|^2                      f = 1 ... p // 2
    tuning_j = max_f P_jf / sum_f P_jf                             1: a pure wave

A network that adds modulo p by trigonometry holds each number as a few waves; a dictionary of its activations should
then have features that are each tuned to one of these frequencies. A latent counts as tuned when its tuning exceeds
what it reaches with the values of the variable shuffled over the samples (false discovery rate controlled). The
alignment asks whether the tuned latents keep to few frequencies: the share of them at the `n_key` commonest, against
latents that choose their frequency at random.

Source: [@nanda2023] for the frequencies; [@benjamini1995] for the control.
Cost: (1 + n_null) sums of codes by value, and transforms of p values per latent.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.stats import false_discovery_control

from mechint_core.errors import ConfigurationError, DegenerateInputError, ShapeError
from mechint_core.features.dictionaries.dictionary import SparseDictionary
from mechint_core.figure import Bars, Figure, Histogram
from mechint_core.kernels.resampling import bootstrap_rows, estimate
from mechint_core.random import generator
from mechint_core.result import NAN, Estimate, Result

CHUNK_VALUES = 2**24
"""Codes computed at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureFrequenciesConfig:
    """What counts as tuned, and how sure to be."""

    period: int = 0
    """Values of the variable; 0 takes one more than the largest one seen."""
    n_key: int = 5
    """Frequencies that a trigonometric solution may use."""
    rate: float = 0.05
    """Share of false discoveries allowed among the tuned latents."""
    n_null: int = 99
    """Shuffles of the variable over the samples."""
    n_draws: int = 199
    """Bootstrap draws of the latents, and random choices of frequencies."""
    level: float = 0.95
    """Confidence of the intervals."""
    seed: int = 0
    """Names the draws."""

    def __post_init__(self) -> None:
        if self.period < 0 or self.period in (1, 2, 3):
            raise ConfigurationError(f"period must be 0 (found from the data) or at least 4. Got {self.period}.")
        if min(self.n_key, self.n_draws) < 1 or self.n_null < 19 or self.seed < 0:
            raise ConfigurationError(f"n_key and n_draws must be at least 1, n_null 19, seed 0. Got {self}.")
        if not (0 < self.rate < 1 and 0 < self.level < 1):
            raise ConfigurationError(f"rate and level must be in (0, 1). Got {self.rate} and {self.level}.")


@dataclass(frozen=True, slots=True)
class FeatureFrequencies(Result):
    """How a dictionary's features are tuned to a cyclic variable."""

    technique: ClassVar[str] = "feature_frequencies"
    evidence: ClassVar[str] = (
        "Intervals: bootstrap over latents. Null of the tuned share: the variable shuffled over samples; null of the "
        "alignment: tuned latents that choose any frequency."
    )
    figures: ClassVar[tuple[Figure, ...]] = (
        Bars(
            values="n_tuned_to",
            labels="frequency",
            title="How many features are tuned to each frequency",
            value_label="tuned latents",
        ),
        Histogram(values="tuning", title="How pure the features' waves are", x_label="share of power at the best"),
    )

    tuned: Estimate
    """Share of the living latents that are tuned."""
    aligned: Estimate
    """Share of the tuned latents at the `n_key` commonest frequencies."""
    median_tuning: Estimate
    n_living: int
    n_key: int
    frequency: Int[np.ndarray, "frequency"]
    n_tuned_to: Float[np.ndarray, "frequency"]
    tuning: Float[np.ndarray, "latent"]
    best_frequency: Int[np.ndarray, "latent"]
    q_value: Float[np.ndarray, "latent"]

    def reading(self) -> str:
        """Say whether features are waves, and of which frequencies."""
        text = (
            f"{self.tuned.value:.0%} of the {self.n_living} living features are tuned to a frequency of the variable "
            f"(shuffled: {self.tuned.null:.1%}); the median feature has {self.median_tuning.value:.0%} of its power "
            f"at one (shuffled: {self.median_tuning.null:.0%})."
        )
        if np.isnan(self.aligned.value):
            return text
        common = self.frequency[np.argsort(-self.n_tuned_to)][: self.n_key]
        return text + (
            f" {self.aligned.value:.0%} of the tuned ones share {len(common)} frequencies, "
            f"{', '.join(str(each) for each in sorted(common))}; {self.aligned.null:.0%} would by chance "
            f"(p = {self.aligned.p_value:.2g})."
        )


def feature_frequencies(
    activations: Float[np.ndarray, "sample unit"],
    dictionary: SparseDictionary,
    variable: Int[np.ndarray, "_"],  # its length is checked: a mismatch is a user's mistake
    *,
    config: FeatureFrequenciesConfig = FeatureFrequenciesConfig(),
) -> FeatureFrequencies:
    """Find the frequency of a cyclic variable to which each dictionary feature is tuned, if any.

    Use it for networks that compute with a cyclic variable (a residue, an angle in equal steps). It looks at the mean
    code per value: a feature of the variable together with something else may average out, and is then not seen.

    Parameters
    ----------
    activations
        Vectors that the dictionary reads.
    dictionary
        A trained dictionary.
    variable
        The value of each sample, 0 ... period - 1.
    config
        What counts as tuned; draws and confidence.

    Returns
    -------
    FeatureFrequencies
        `tuned` and `aligned` in [0, 1] (`aligned` NaN if nothing is tuned); `tuning` in [0, 1] per latent, NaN for
        latents that never fire; `best_frequency` from 1.

    Raises
    ------
    ShapeError
        If samples and values differ in number, or vectors have not the dictionary's width.
    DegenerateInputError
        If values are below 0 or not below the period, one never occurs, or no latent fires.

    References
    ----------
    [@nanda2023]
    [@benjamini1995]

    Examples
    --------
    >>> from mechint_core.features import SparseAutoencoder, SparseAutoencoderConfig
    >>> angle = 2 * np.pi * np.arange(240) / 12
    >>> waves = np.stack([np.cos(angle), np.cos(3 * angle)], axis=1) + 2
    >>> basis = SparseAutoencoder(2, 2, config=SparseAutoencoderConfig(activation="relu"))
    >>> _ = basis.W_enc.data.copy_(torch.eye(2)), basis.W_dec.data.copy_(torch.eye(2))
    >>> feature_frequencies(waves, basis, np.arange(240) % 12).best_frequency.tolist()
    [1, 3]
    """
    period = _checked(activations, dictionary, variable, config)
    codes = _codes(activations, dictionary)
    living = codes.any(axis=0)
    if not living.any():
        raise DegenerateInputError("some latent must fire on these activations. Got none.")
    power = _power(codes, variable, period)
    tuning, best = power.max(axis=1), 1 + power.argmax(axis=1)
    rng = generator(config.seed, "feature_frequencies")
    shuffled = np.stack(
        [_power(codes[:, living], rng.permutation(variable), period).max(axis=1) for _ in range(config.n_null)]
    )
    q = np.full(len(tuning), NAN)
    q[living] = false_discovery_control(_p_values(tuning[living], shuffled))
    tuned = np.nan_to_num(q, nan=1.0) <= config.rate
    counts = np.bincount(best[tuned], minlength=period // 2 + 1)[1:]
    null_tuned = [float((false_discovery_control(_p_values(one, shuffled)) <= config.rate).mean()) for one in shuffled]
    tuning[~living] = NAN
    return FeatureFrequencies(
        tuned=_share(tuned[living], np.array(null_tuned), rng, config),
        aligned=_alignment(best[tuned], period // 2, rng, config),
        median_tuning=_median(tuning[living], np.median(shuffled, axis=1), rng, config),
        n_living=int(living.sum()),
        n_key=config.n_key,
        frequency=np.arange(1, period // 2 + 1),
        n_tuned_to=counts.astype(np.float64),
        tuning=tuning,
        best_frequency=best,
        q_value=q,
    )


@torch.no_grad()
def _codes(
    activations: Float[np.ndarray, "sample unit"], dictionary: SparseDictionary
) -> Float[np.ndarray, "sample latent"]:
    chunks = torch.from_numpy(activations).to(dictionary.W_dec).split(max(1, CHUNK_VALUES // dictionary.hidden_dim))
    return torch.cat([dictionary.encode(chunk).cpu() for chunk in chunks]).numpy()


def _power(
    codes: Float[np.ndarray, "sample latent"], variable: Int[np.ndarray, "sample"], period: int
) -> Float[np.ndarray, "latent frequency"]:
    """Return the share of each frequency in the mean codes by value; 0 where a latent has no power at all."""
    order = np.argsort(variable, kind="stable")
    starts = np.searchsorted(variable[order], np.arange(period))
    means = np.add.reduceat(codes[order], starts, axis=0, dtype=np.float64) / np.diff([*starts, len(order)])[:, None]
    power = np.abs(np.fft.rfft(means, axis=0)[1:]) ** 2
    if period % 2 == 0:
        power[-1] /= 2  # its wave has one phase, the others two
    total = power.sum(axis=0)
    return np.divide(power, total, out=np.zeros_like(power), where=total > 0).T


def _p_values(
    tuning: Float[np.ndarray, "latent"], shuffled: Float[np.ndarray, "draw latent"]
) -> Float[np.ndarray, "latent"]:
    """Return the chance of such a tuning: a latent's own shuffles, smoothed by all latents' beyond their number.

    A latent's own n draws allow no p below 1 / (n + 1), and no discovery among hundreds of latents then. Beyond
    its draws, tuning in units of its own null's median and spread is compared with all latents' pooled.
    """
    centre, spread = np.median(shuffled, axis=0), shuffled.std(axis=0) + 1e-12
    pooled = np.sort(((shuffled - centre) / spread).ravel())
    above = len(pooled) - np.searchsorted(pooled, (tuning - centre) / spread, side="left")
    return (1 + above) / (1 + len(pooled))


def _share(
    hits: Bool[np.ndarray, "latent"],
    null: Float[np.ndarray, "draw"],
    rng: np.random.Generator,
    config: FeatureFrequenciesConfig,
) -> Estimate:
    draws = _bootstrap(hits.astype(np.float64), np.mean, rng, config)
    return estimate(float(hits.mean()), bootstrap=draws, null=null, level=config.level)


def _median(
    tuning: Float[np.ndarray, "latent"],
    null: Float[np.ndarray, "draw"],
    rng: np.random.Generator,
    config: FeatureFrequenciesConfig,
) -> Estimate:
    draws = _bootstrap(tuning, np.median, rng, config)
    return estimate(float(np.median(tuning)), bootstrap=draws, null=null, level=config.level)


def _alignment(
    best: Int[np.ndarray, "latent"], n_frequencies: int, rng: np.random.Generator, config: FeatureFrequenciesConfig
) -> Estimate:
    """Return the share at the commonest frequencies, against as many latents that choose at random."""
    if len(best) == 0:
        return Estimate(NAN, level=config.level)

    def share(chosen: Int[np.ndarray, "latent"]) -> float:
        counts = np.sort(np.bincount(chosen, minlength=n_frequencies + 1))[::-1]
        return float(counts[: config.n_key].sum() / len(chosen))

    keys = np.argsort(-np.bincount(best, minlength=n_frequencies + 1))[: config.n_key]
    draws = _bootstrap(np.isin(best, keys).astype(np.float64), np.mean, rng, config)
    null = np.array([share(rng.integers(1, n_frequencies + 1, len(best))) for _ in range(config.n_draws)])
    return estimate(share(best), bootstrap=draws, null=null, level=config.level)


def _bootstrap(
    values: Float[np.ndarray, "latent"],
    statistic: Callable[[np.ndarray], np.floating],
    rng: np.random.Generator,
    config: FeatureFrequenciesConfig,
) -> Float[np.ndarray, "draw"] | None:
    if len(values) < 2:
        return None
    return bootstrap_rows(lambda rows: float(statistic(values[rows])), len(values), n_draws=config.n_draws, rng=rng)


def _checked(
    activations: Float[np.ndarray, "sample unit"],
    dictionary: SparseDictionary,
    variable: Int[np.ndarray, "_"],
    config: FeatureFrequenciesConfig,
) -> int:
    """Return the period."""
    if activations.ndim != 2 or activations.shape[1] != dictionary.input_dim or len(activations) != len(variable):
        raise ShapeError(
            f"activations must be (sample = {len(variable)}, unit = {dictionary.input_dim}). Got {activations.shape}."
        )
    period = config.period or int(variable.max()) + 1
    seen = np.unique(variable)
    if period < 4 or seen[0] < 0 or len(seen) != period or seen[-1] != period - 1:
        raise DegenerateInputError(
            f"variable must take each of its values 0 to {period - 1}, at least 4. Got {len(seen)} of them, "
            f"from {seen[0]} to {seen[-1]}."
        )
    if not np.isfinite(activations).all():
        raise DegenerateInputError("activations must be finite. Got NaN or infinity.")
    return period
