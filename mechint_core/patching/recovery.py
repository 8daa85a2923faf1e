"""How much of an effect a patch moves, and how sure that is: statistics over prompt pairs.

    R_s = mean_i gain_si / mean_i difference_i                a ratio of means, never a mean of ratios

A pair whose clean and corrupted scores are nearly equal has almost no say in a ratio of means; in a mean of ratios it
would decide. The interval resamples pairs. The p-value flips the sign of each pair's margin over its control, all sites
together, and compares with the largest site of each flip: it is adjusted for having looked at every site.

Source: [@westfall1993] (largest statistic), [@phipson2010].
Cost: n_draws x pairs x sites multiplications, twice.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Bool, Float

from mechint_core.kernels.resampling import p_value, percentile_interval
from mechint_core.random import generator
from mechint_core.result import NAN, Estimate

ROUNDING = 32 * float(np.finfo(np.float32).eps)
"""Differences below this share of the scores themselves are rounding of float32 forwards."""
ALPHA: Final = 0.05
"""A part stands out if its p-value is at most this and its interval lies above its null."""


@dataclass(frozen=True, slots=True)
class PairScores:
    """The metric of every run of every pair."""

    clean: Float[np.ndarray, "sample"]
    corrupted: Float[np.ndarray, "sample"]
    patched: Float[np.ndarray, "site sample"]
    """With the pair's own activation from the other run."""
    control: Float[np.ndarray, "site sample"] | None = None
    """With another pair's."""


@dataclass(frozen=True, slots=True)
class Recovery:
    """What each site recovers: a ratio of means, its interval, its control and its p-value."""

    value: Float[np.ndarray, "site"]
    low: Float[np.ndarray, "site"]
    high: Float[np.ndarray, "site"]
    null: Float[np.ndarray, "site"]
    p_value: Float[np.ndarray, "site"]
    difference: Estimate
    """Mean of clean minus corrupted score; its null is 0."""
    defined: bool
    """False, and the arrays NaN, if clean and corrupted do not differ beyond noise."""

    def __getitem__(self, site: int) -> Estimate:
        parts = (self.value, self.low, self.high, self.null, self.p_value)
        return Estimate(*(float(part[site]) for part in parts), level=self.difference.level)

    def strongest(self, n_first: int | None = None) -> Estimate:
        """Return the largest recovery, of all sites or of the first ones; NaN if none is defined."""
        if not self.defined:
            return Estimate(NAN, level=self.difference.level)
        return self[int(self.value[:n_first].argmax())]


def recovery_of(scores: PairScores, *, noising: bool, n_draws: int, level: float, seed: int) -> Recovery:
    """Return what each site recovers (or, noising, destroys) of the mean difference of clean and corrupted scores."""
    difference = scores.clean - scores.corrupted
    gain = _gain(scores.patched, scores, noising)
    control = np.zeros_like(gain) if scores.control is None else _gain(scores.control, scores, noising)
    weights = resampling_weights(len(difference), n_draws, seed)
    mean, resampled = float(difference.mean()), weights @ difference
    effect = _effect(difference, resampled, n_draws, level, seed)
    rounding = ROUNDING * float(np.abs([scores.clean, scores.corrupted]).mean())
    if abs(mean) <= rounding or effect.low <= 0 <= effect.high:
        nothing = np.full(len(gain), NAN)
        return Recovery(nothing, nothing, nothing, nothing, nothing, effect, defined=False)
    with np.errstate(divide="ignore", invalid="ignore"):  # a resample may hit a zero difference; it is left out
        draws = (gain @ weights.T) / resampled
    bounds = np.array([percentile_interval(each, level) for each in draws])
    return Recovery(
        value=gain.mean(axis=1) / mean + 0.0,  # + 0.0: no effect is 0, not -0
        low=bounds[:, 0],
        high=bounds[:, 1],
        null=control.mean(axis=1) / mean + 0.0,
        p_value=sign_flips(np.sign(mean) * (gain - control), n_draws, seed),
        difference=effect,
        defined=True,
    )


def stand_out(
    low: Float[np.ndarray, "*part"], null: Float[np.ndarray, "*part"], p_value: Float[np.ndarray, "*part"]
) -> Bool[np.ndarray, "*part"]:
    """Say of each part whether it moves the answer by more than its null does, beyond chance."""
    return (low > null) & (p_value <= ALPHA)


def _gain(
    patched: Float[np.ndarray, "site sample"], scores: PairScores, noising: bool
) -> Float[np.ndarray, "site sample"]:
    return scores.clean - patched if noising else patched - scores.corrupted


def _effect(
    difference: Float[np.ndarray, "sample"], resampled: Float[np.ndarray, "draw"], n_draws: int, level: float, seed: int
) -> Estimate:
    low, high = percentile_interval(resampled, level)
    p = float(sign_flips(np.sign(difference.mean()) * difference[None], n_draws, seed)[0])
    return Estimate(float(difference.mean()), low, high, 0.0, min(1.0, 2 * p), level)


def resampling_weights(n_pairs: int, n_draws: int, seed: int) -> Float[np.ndarray, "draw sample"]:
    """Weights of the pairs in bootstrap draws: how often each is drawn, over their number. One pair has no spread."""
    if n_pairs < 2:
        return np.full((1, n_pairs), NAN)
    counts = generator(seed, "recovery", "bootstrap").multinomial(n_pairs, np.full(n_pairs, 1 / n_pairs), size=n_draws)
    return counts / n_pairs


def sign_flips(margin: Float[np.ndarray, "site sample"], n_draws: int, seed: int) -> Float[np.ndarray, "site"]:
    """Return the chance that flipping signs at random gives any site a margin this large, in units of its own size."""
    size = np.linalg.norm(margin, axis=1, keepdims=True)
    scaled = np.divide(margin, size, out=np.zeros_like(margin), where=size > 0)  # flips do not change the size
    signs = generator(seed, "recovery", "sign flips").choice([-1.0, 1.0], size=(n_draws, margin.shape[1]))
    observed, null = scaled.sum(axis=1), signs @ scaled.T
    # Sums in another order differ in their last bits, and a flip that equals the data must count as equal.
    largest = null.max(axis=1) + 1e-9
    return np.array([p_value(float(each), largest) for each in observed])
