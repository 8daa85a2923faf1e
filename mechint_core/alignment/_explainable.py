"""How much of recorded responses repeats: signal, noise and split halves, from repetitions of the same conditions.

    noise    N = Σ_c Σ_r (y_rc - ȳ_c)² / Σ_c (n_c - 1)
    signal   S = var_c(ȳ_c) - N <1 / n_c>                   unbiased, so below 0 for some channels without signal
    ceiling  1 - (m - 3) / (m - 1) N <1 / n_c> / var_c(ȳ_c) for the mean over repetitions, S / (S + N) for one

The ceiling is the largest R² that any model can reach. Its factor for m conditions takes out what dividing by an
estimated variance adds, so that it is right on average (normal responses), and 0 on average without signal.

    split halves   r of the means of two disjoint halves over conditions, averaged over random halves
    of all         k r / (1 + (k - 1) |r|),  k = <1 / h_c> / <1 / n_c>, h_c repetitions in a half (Spearman-Brown)

A condition with fewer than two repetitions in a channel says nothing about its noise and is left out there.

Source: [@sahani2002] (signal power), [@allen2022] (ncsnr), [@spearman1910] (split halves).
Cost: repetitions x conditions x channels, times draws.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Shaped

from mechint_core.alignment._ridge_basis import ratio


@dataclass(frozen=True, slots=True)
class Repeated:
    """What the repetitions of each condition say in each channel."""

    counts: Float[np.ndarray, "condition channel"]
    """Repetitions; 0 where there are fewer than two."""
    means: Float[np.ndarray, "condition channel"]
    within: Float[np.ndarray, "condition channel"]
    """Σ_r (y_rc - ȳ_c)²."""

    @classmethod
    def of(cls, responses: Float[np.ndarray, "repetition condition channel"]) -> "Repeated":
        """Summarise responses; NaN is a repetition that is missing."""
        present = ~np.isnan(responses)
        counts = present.sum(axis=0).astype(np.float64)
        counts[counts < 2] = 0
        filled = np.where(present & (counts > 0), responses, 0.0)
        means = filled.sum(axis=0) / np.maximum(counts, 1)
        within = (np.where(present & (counts > 0), responses - means, 0.0) ** 2).sum(axis=0)
        return cls(counts, means, within)

    @classmethod
    def of_sums(
        cls,
        sums: Float[np.ndarray, "condition channel"],
        counts: Float[np.ndarray, "condition _"],
        squares: Float[np.ndarray, "condition channel"],
    ) -> "Repeated":
        """Summarise sums over repetitions; `counts` has one channel if they all have equally many."""
        usable = counts >= 2
        means = sums / np.maximum(counts, 1)
        within = np.where(usable, squares - sums * means, 0.0)
        return cls(np.broadcast_to(np.where(usable, counts, 0.0), sums.shape), np.where(usable, means, 0.0), within)

    def power(self, weights: Float[np.ndarray, "draw condition"] | None = None) -> "Power":
        """Return signal and noise, or those of each bootstrap draw of conditions."""
        drawn = np.ones((1, len(self.counts))) if weights is None else weights
        used = (self.counts > 0).astype(np.float64)
        m = drawn @ used
        mean = ratio(drawn @ (used * self.means), m)
        centre = self.means.mean(axis=0)
        spread = drawn @ (used * (self.means - centre) ** 2) - m * (mean - centre) ** 2
        freedom = (m - 1) if weights is None else (m - 1) ** 2 / np.maximum(m, 1)  # as a draw repeats conditions
        spread = ratio(spread, np.where(m > 3, freedom, 0))
        noise = ratio(drawn @ self.within, drawn @ np.maximum(self.counts - 1, 0))
        share = ratio(drawn @ ratio(used, self.counts + (used == 0)), m)
        return Power(spread - noise * share, noise, share, ratio(m - 3, m - 1))


@dataclass(frozen=True, slots=True)
class Power:
    """Signal and noise of each channel, one row per draw."""

    signal: Float[np.ndarray, "draw channel"]
    noise: Float[np.ndarray, "draw channel"]
    share: Float[np.ndarray, "draw channel"]
    """<1 / n_c>: what is left of the noise in a mean over repetitions."""
    unbiased: Float[np.ndarray, "draw channel"]
    """(m - 3) / (m - 1), m conditions."""

    @property
    def ceiling(self) -> Float[np.ndarray, "draw channel"]:
        """Largest R² for the mean over repetitions; NaN for a channel that does not vary."""
        rest = self.noise * self.share
        return 1 - ratio(self.unbiased * rest, self.signal + rest)

    @property
    def single(self) -> Float[np.ndarray, "draw channel"]:
        """Largest R² for one repetition."""
        return ratio(self.signal, self.signal + self.noise)


def noise_ceiling_of(responses: Float[np.ndarray, "repetition condition channel"]) -> Float[np.ndarray, "channel"]:
    """Return the largest R² that any model can reach for the mean over repetitions, per channel; not clipped."""
    return Repeated.of(responses).power().ceiling[0]


def half_means(
    responses: Float[np.ndarray, "repetition condition channel"],
    present: Bool[np.ndarray, "repetition condition _"],
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the means of two random disjoint halves; NaN for a condition with fewer than two repetitions.

    `present` has one channel if all channels miss the same repetitions.
    """
    keys = np.where(present, rng.random(responses.shape[:2])[..., None], 2.0)  # what is missing comes last
    rank = keys.argsort(axis=0).argsort(axis=0)
    half = present.sum(axis=0) // 2
    filled = np.where(np.isnan(responses), 0.0, responses)
    shared = np.maximum(half, 1)
    first = (filled * (rank < half)).sum(axis=0) / shared
    second = (filled * ((rank >= half) & (rank < 2 * half))).sum(axis=0) / shared
    missing = np.broadcast_to(half == 0, first.shape)
    return np.where(missing, np.nan, first), np.where(missing, np.nan, second)


def presence(
    responses: Float[np.ndarray, "repetition condition channel"],
) -> Bool[np.ndarray, "repetition condition _"]:
    """Return what is there, with one channel if all channels miss the same repetitions."""
    present = ~np.isnan(responses)
    return present[:, :, :1] if np.all(present == present[:, :, :1]) else present


def half_correlations(
    first: Float[np.ndarray, "condition channel"],
    second: Float[np.ndarray, "condition channel"],
    weights: Float[np.ndarray, "draw condition"],
) -> Float[np.ndarray, "draw channel"]:
    """Return the correlation of two halves over conditions in each draw."""
    used = ~np.isnan(first)
    a, b = (np.where(used, each - np.nanmean(each, axis=0), 0.0) for each in (first, second))
    m = weights @ used.astype(np.float64)
    mean_a, mean_b = ratio(weights @ a, m), ratio(weights @ b, m)
    shared = weights @ (a * b) - m * mean_a * mean_b
    return ratio(shared, np.sqrt(np.maximum((weights @ a**2 - m * mean_a**2) * (weights @ b**2 - m * mean_b**2), 0)))


def lengthened(
    r: Float[np.ndarray, "draw channel"], counts: Shaped[np.ndarray, "condition _"]
) -> Float[np.ndarray, "draw channel"]:
    """Return the reliability of the mean over all repetitions from that of half of them (Spearman-Brown)."""
    usable = counts >= 2
    inverse = np.where(usable, 1 / np.maximum(counts, 1), 0).sum(axis=0)
    inverse_half = np.where(usable, 1 / np.maximum(counts // 2, 1), 0).sum(axis=0)
    k = ratio(inverse_half, inverse)
    return k * r / (1 + (k - 1) * np.abs(r))
