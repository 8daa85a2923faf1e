"""Fourier components: the frequencies of a cyclic variable on which a representation rests.

    M_v = mean of the activations where the variable is v          v = 0 ... p - 1, centred over v
    F_f = sum_v M_v exp(-2 pi i f v / p)                           one vector over the units per frequency
    share_f = ||F_f||² / sum_g ||F_g||²                            f = 1 ... p // 2

A network that adds modulo p by trigonometry holds each number as points on a few circles: few frequencies carry all
power. How few is said by the Gini coefficient of the amplitudes ||F_f|| (0: all equal, near 1: one holds all), and
by the key frequencies: those whose share exceeds what any frequency reaches when the values come in random order.
Found ones are taken out and the rest is tested again, so that a strong frequency does not hide a weaker one.

Source: [@nanda2023] (frequencies and Gini coefficient of the embedding), [@romano2005] (stepping down).
Cost: n d for the means, then (n_null + 1) p d log p.
Chunked over: nothing; the array is held in memory.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Int

from mechint_core.errors import ConfigurationError, DegenerateInputError, ShapeError
from mechint_core.figure import Bars, Figure, Scatter
from mechint_core.kernels.resampling import estimate
from mechint_core.random import generator
from mechint_core.result import Estimate, Result


@dataclass(frozen=True, slots=True, kw_only=True)
class FourierComponentsConfig:
    """How to find the key frequencies."""

    period: int = 0
    """Values of the variable; 0 takes one more than the largest one seen."""
    level: float = 0.95
    """A key frequency exceeds the largest share of this part of the random orders."""
    least_share: float = 0.02
    """A key frequency holds at least this share of the power, however certain a smaller one may be."""
    n_null: int = 199
    """Random orders of the values."""
    n_bootstrap: int = 199
    """Bootstrap draws of the units."""
    seed: int = 0
    """Of the draws."""

    def __post_init__(self) -> None:
        if self.period < 0 or self.period in (1, 2, 3):
            raise ConfigurationError(f"period must be 0 (found from the data) or at least 4. Got {self.period}.")
        if not 0 < self.level < 1 or not 0 <= self.least_share < 1:
            raise ConfigurationError(
                f"level must lie in (0, 1) and least_share in [0, 1). Got {self.level}, {self.least_share}."
            )
        if self.n_null < 19 or self.n_bootstrap < 2:
            raise ConfigurationError(
                f"n_null must be at least 19 and n_bootstrap at least 2. Got {self.n_null}, {self.n_bootstrap}."
            )


@dataclass(frozen=True, slots=True)
class FourierComponents(Result):
    """The spectrum of a representation over the values of a cyclic variable."""

    technique: ClassVar[str] = "fourier_components"
    evidence: ClassVar[str] = (
        "95 % intervals over resampled units; null: the values of the variable in random order; null of the variance "
        "explained: labels that say nothing."
    )
    figures: ClassVar[tuple[Figure, ...]] = (
        Bars(
            values="share",
            labels="frequency",
            title="Share of power at each frequency of the variable",
            low="share_low",
            high="share_high",
            null="share_null",
            value_label="share of power",
        ),
        Scatter(
            points="circle",
            title="The values of the variable in the plane of the strongest frequency",
            colour="phase_angle",
            colour_label="place on the circle",
            closed=True,
        ),
    )

    gini: Estimate
    """Inequality of the amplitudes over frequencies, in [0, 1)."""
    key_share: Estimate
    """Share of power that the key frequencies hold together; 0 if there are none."""
    variance_explained: Estimate
    """Share of the activations' variance that lies between the values of the variable."""
    threshold: float
    """Share of all power below which no further frequency was taken for a key frequency."""
    n_key: int
    key: Int[np.ndarray, "feature"]
    """The key frequencies, strongest first."""
    frequency: Int[np.ndarray, "frequency"]
    share: Float[np.ndarray, "frequency"]
    share_low: Float[np.ndarray, "frequency"]
    share_high: Float[np.ndarray, "frequency"]
    share_null: Float[np.ndarray, "frequency"]
    """`threshold`, once per frequency."""
    p_value: Float[np.ndarray, "frequency"]
    """Of each share against the largest in a random order (stronger key frequencies taken out): family-wise."""
    circle: Float[np.ndarray, "condition coordinate"]
    """Centred means in the plane of the strongest frequency, in the order of their angle there."""
    phase_angle: Float[np.ndarray, "condition"]
    """Angle f v / p of each row of `circle`, in turns."""

    @property
    def matters(self) -> bool:
        """Whether the variable accounts for more variance than labels that say nothing."""
        return self.variance_explained.value > self.variance_explained.null

    def reading(self) -> str:
        """Name the key frequencies and what they hold."""
        spread = f"Gini coefficient {self.gini.value:.2f}; {self.gini.null:.2f} in random order"
        if not self.n_key:
            return f"No frequency stands out of a random order of the values ({spread}, p = {self.gini.p_value:.2g})."
        names = ", ".join(str(each) for each in self.key[:8]) + (", ..." if self.n_key > 8 else "")
        weak = "" if self.matters else ", no more than labels that say nothing would"
        plural = "frequency" if self.n_key == 1 else "frequencies"
        return (
            f"{self.n_key} key {plural} ({names}) of {len(self.frequency)} hold {self.key_share.value:.0%} of the "
            f"power [{self.key_share.low:.0%}, {self.key_share.high:.0%}] ({spread}). The variable accounts for "
            f"{self.variance_explained.value:.2%} of all variance{weak}."
        )


def fourier_components(
    activations: Float[np.ndarray, "sample unit"],
    variable: Int[np.ndarray, "sample"],
    *,
    config: FourierComponentsConfig = FourierComponentsConfig(),
) -> FourierComponents:
    """Find the frequencies of a cyclic variable on which a representation rests.

    Use it for a variable whose values form a cycle: numbers modulo p, hours, angles in equal bins. It looks at means
    per value only, so it says nothing of what a second variable does to the representation, and a circle traced by a
    nonlinear function of the value shows up as several frequencies. A frequency that is present need not be used:
    that is a question for the excluded loss (`progress_measures`) or for patching.

    Parameters
    ----------
    activations
        One row per sample.
    variable
        Value of each sample, 0 ... period - 1. Every value must occur.
    config
        Period, null, number of draws, and their seed.

    Returns
    -------
    FourierComponents
        Shares in [0, 1], summing to 1 over frequencies. `gini` is 0 where all amplitudes are equal, 1 - 1 / (p // 2)
        where one frequency holds everything.

    Raises
    ------
    ShapeError
        If the activations are not (sample, unit), or there is not one value per sample.
    DegenerateInputError
        If an activation is not finite, a value does not occur or lies outside of the period, there are fewer than 4
        values, or the means of all values are the same.

    Notes
    -----
    The interval is over units because the means of a deterministic network over all of its inputs carry no sampling
    error. [@nanda2023] reads the Gini coefficient off sines and cosines separately; here the two are one amplitude,
    so that it does not depend on where the cycle starts.

    References
    ----------
    [@nanda2023]
    [@romano2005]

    Examples
    --------
    >>> v = np.arange(12)
    >>> x = np.stack([np.cos(2 * np.pi * 3 * v / 12), np.sin(2 * np.pi * 3 * v / 12)], axis=1)
    >>> result = fourier_components(x, v)
    >>> result.key.tolist(), round(float(result.share[2]), 12)
    ([3], 1.0)
    """
    period = _check(activations, variable, config)
    means, explained = _means(activations, variable, period)
    power = _power(means)
    if not power.sum() > 1e-24 * max(1.0, float(np.square(activations, dtype=np.float64).max())):
        raise DegenerateInputError("activations must differ between the values of the variable. Got equal means.")
    share = _share(power.sum(axis=1))
    draws = _resampled_units(power, config)
    null = _random_orders(means, config)
    key, p_values, threshold = _step_down(means, share, null, config)
    low, high = np.quantile(draws, [0.025, 0.975], axis=0)
    circle, angle = _circle(means, int(np.argmax(share)) + 1)
    reached = np.quantile(null.max(axis=1), config.level)
    return FourierComponents(
        gini=estimate(float(_gini(share[None])[0]), bootstrap=_gini(draws), null=_gini(null)),
        key_share=estimate(
            float(share[key].sum()),
            bootstrap=draws[:, key].sum(axis=1),
            null=np.where(null > reached, null, 0.0).sum(axis=1),
        ),
        variance_explained=Estimate(explained, null=(period - 1) / max(1, len(variable) - 1)),
        threshold=threshold,
        n_key=len(key),
        key=key + 1,
        frequency=np.arange(1, period // 2 + 1),
        share=share,
        share_low=low,
        share_high=high,
        share_null=np.full_like(share, threshold),
        p_value=p_values,
        circle=circle,
        phase_angle=angle,
    )


def _check(
    activations: Float[np.ndarray, "..."], variable: Int[np.ndarray, "..."], config: FourierComponentsConfig
) -> int:
    """Return the period."""
    if activations.ndim != 2 or variable.shape != activations.shape[:1] or 0 in activations.shape:
        raise ShapeError(
            f"activations must be (sample, unit) with one value per sample. "
            f"Got shapes {activations.shape} and {variable.shape}."
        )
    if not np.all(np.isfinite(activations)):
        raise DegenerateInputError("activations must be finite. Got NaN or infinity.")
    period = config.period or int(variable.max()) + 1
    if period < 4 or variable.min() < 0 or variable.max() >= period:
        raise DegenerateInputError(
            f"variable must run from 0 to the period - 1, with at least 4 values. "
            f"Got {variable.min()} to {variable.max()} for period {period}."
        )
    return period


def _means(
    activations: Float[np.ndarray, "sample unit"], variable: Int[np.ndarray, "sample"], period: int
) -> tuple[Float[np.ndarray, "condition unit"], float]:
    """Return the mean of each value, centred over values; and the share of variance between values."""
    counts = np.bincount(variable, minlength=period)
    if np.any(counts == 0):
        missing = np.flatnonzero(counts == 0)[:5].tolist()
        raise DegenerateInputError(f"every value of the variable must occur. Got no sample for {missing}, ...")
    x = activations.astype(np.float64)
    x -= x.mean(axis=0)
    order = np.argsort(variable, kind="stable")
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    means = np.add.reduceat(x[order], starts, axis=0) / counts[:, None]
    total = float(np.square(x).sum())
    explained = float(counts @ np.square(means).sum(axis=1)) / total if total > 0 else 0.0
    return means - means.mean(axis=0), explained


def _power(means: Float[np.ndarray, "*draw condition unit"]) -> Float[np.ndarray, "*draw frequency unit"]:
    """Return |F_f|² of every unit at f = 1 ... p // 2; a frequency and its mirror image count together."""
    period = means.shape[-2]
    power = np.abs(np.fft.rfft(means, axis=-2)[..., 1:, :]) ** 2
    if period % 2 == 0:
        power[..., -1, :] /= 2  # p / 2 is its own mirror image
    return power


def _share(power: Float[np.ndarray, "*draw frequency"]) -> Float[np.ndarray, "*draw frequency"]:
    return power / power.sum(axis=-1, keepdims=True)


def _gini(share: Float[np.ndarray, "draw frequency"]) -> Float[np.ndarray, "draw"]:
    """Return the Gini coefficient of the amplitudes: twice the area between the Lorenz curve and equality."""
    amplitude = np.sort(np.sqrt(share), axis=-1)
    n = amplitude.shape[-1]
    return amplitude @ (2 * np.arange(1, n + 1) - n - 1) / (n * amplitude.sum(axis=-1))


def _random_orders(
    means: Float[np.ndarray, "condition unit"], config: FourierComponentsConfig
) -> Float[np.ndarray, "draw frequency"]:
    """Return the shares when the values of the variable come in random order."""
    rng = generator(config.seed, "permutation")
    # A rotation of the units changes no power, so the p - 1 principal axes stand for them all.
    left, size, _ = np.linalg.svd(means, full_matrices=False)
    axes = (left * size)[:, size > 1e-7 * size[0]]
    return np.stack([_share(_power(axes[rng.permutation(len(axes))]).sum(axis=1)) for _ in range(config.n_null)])


def _step_down(
    means: Float[np.ndarray, "condition unit"],
    share: Float[np.ndarray, "frequency"],
    null: Float[np.ndarray, "draw frequency"],
    config: FourierComponentsConfig,
) -> tuple[Int[np.ndarray, "feature"], Float[np.ndarray, "frequency"], float]:
    """Return the key frequencies (from 0, strongest first), all p-values, and the share that none left reaches."""
    p_values, taken = np.zeros(len(share)), np.zeros(len(share), dtype=bool)
    while True:
        left = float(share[~taken].sum())
        # Compared among the frequencies that are left: a random order puts power on those taken out as well.
        largest = np.sort(_share(null[:, ~taken]).max(axis=1)) * left
        exceeding = len(largest) - np.searchsorted(largest, share[~taken], side="left")
        p_values[~taken] = np.maximum(p_values[~taken], (1 + exceeding) / (1 + len(largest)))
        threshold = max(float(np.quantile(largest, config.level)), config.least_share)
        new = ~taken & (share > threshold)
        taken |= new
        if not new.any() or share[~taken].sum() <= 1e-9:
            order = np.argsort(-share, kind="stable")
            return order[taken[order]], p_values, threshold
        null = _random_orders(_without(means, np.flatnonzero(taken) + 1), config)


def _without(
    means: Float[np.ndarray, "condition unit"], frequencies: Int[np.ndarray, "feature"]
) -> Float[np.ndarray, "condition unit"]:
    spectrum = np.fft.rfft(means, axis=0)
    spectrum[frequencies] = 0
    return np.fft.irfft(spectrum, n=len(means), axis=0)


def _resampled_units(
    power: Float[np.ndarray, "frequency unit"], config: FourierComponentsConfig
) -> Float[np.ndarray, "draw frequency"]:
    """Return the shares of bootstrap samples of the units."""
    n = power.shape[1]
    counts = generator(config.seed, "bootstrap").multinomial(n, np.full(n, 1 / n), config.n_bootstrap)
    drawn = counts @ power.T
    return _share(drawn[drawn.sum(axis=1) > 0])


def _circle(
    means: Float[np.ndarray, "condition unit"], frequency: int
) -> tuple[Float[np.ndarray, "condition coordinate"], Float[np.ndarray, "condition"]]:
    """Return the means in the plane spanned by their sine and cosine parts at `frequency`, ordered by angle."""
    period = len(means)
    turns = frequency * np.arange(period) % period / period
    waves = np.stack([np.cos(2 * np.pi * turns), np.sin(2 * np.pi * turns)])
    plane = np.linalg.svd(waves @ means, full_matrices=False)[2]
    points = means @ plane.T
    if points.shape[1] < 2:
        points = np.column_stack([points, np.zeros(period)])
    order = np.argsort(turns, kind="stable")
    return points[order], turns[order]
