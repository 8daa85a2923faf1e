"""Lines through log spectra, for many series at once, and which frequencies are peaks: the kernels of `spectral_slope`.

    I_j    = |Fourier transform of x|^2, or its mean over K sine tapers sqrt(2 / (n + 1)) sin(pi k (t + 1) / (n + 1))
    ln I_j = a - beta ln f_j + e_j           e_j: ln of a chi squared with 2 K degrees, the same at every f

So least squares is unbiased for beta whatever K is. A peak is a run of frequencies whose mean power over the line is
above what a chance of `FALSE_PEAK` per unit allows. Peaks are sought about the line of least absolute error, left out,
and sought again about the line of least squares through the rest.

How sure beta is: a draw turns the sign of the residuals of random runs of frequencies, the same runs for every unit.

Source: [@geweke1983], [@riedel1995], [@liu1988], [@donoghue2020]
Cost: one Fourier transform per series and taper; with peaks, `ROUNDS` more lines.
"""

from dataclasses import dataclass
from typing import Final, cast

import numpy as np
from jaxtyping import Bool, Float
from scipy.special import gdtrix, polygamma, psi

from mechint_core.fractals._power_law import UNITS_AT_ONCE
from mechint_core.fractals._whittle import centred

FLOOR: Final = 1e-26
"""Power below this share of the largest is rounding."""
ROUNDS: Final = 10
"""Rounds of least absolute error, and then of seeking peaks."""
NEAR: Final = 0.1
"""Residuals below this weigh alike in least absolute error."""
WIDTHS: Final = (1, 4, 16, 64)
"""Frequencies whose mean power is held against the line."""
FALSE_PEAK: Final = 0.05
"""Chance that a unit without a peak loses a frequency, per width."""
BANDS: Final = 12
"""Bands of frequency, evenly spaced in their logarithm, in which the fit is judged."""


@dataclass(frozen=True, slots=True)
class Lines:
    """The line through the log spectrum of every unit."""

    exponent: Float[np.ndarray, "unit"]
    """beta; NaN without power at some frequency of the fit."""
    level: Float[np.ndarray, "unit"]
    """ln I on the line, at the mean log frequency of the frequencies that are kept."""
    kept: Bool[np.ndarray, "frequency unit"]
    """False at peaks."""
    residual: Float[np.ndarray, "frequency unit"]
    """ln I less the line; 0 at peaks."""
    score: Float[np.ndarray, "frequency unit"]
    """How each residual moved beta."""

    def resample(
        self, *, run: int, n_draws: int, rng: np.random.Generator
    ) -> tuple[Float[np.ndarray, "draw"], Float[np.ndarray, "unit"]]:
        """Return the mean exponent of each draw and every unit's standard error: all units are taken to be usable."""
        first = np.arange(0, len(self.score), run)
        sums = np.add.reduceat(self.score, first, axis=0)
        signs = rng.choice([-1.0, 1.0], (n_draws, first.size))
        return self.exponent.mean() + signs @ sums.mean(axis=1), np.sqrt(np.sum(sums**2, axis=0))


def power_spectrum(series: Float[np.ndarray, "time unit"], n_tapers: int) -> Float[np.ndarray, "frequency unit"]:
    """Return the mean power over tapers (none: the periodogram) of every unit, between zero and Nyquist."""
    n_steps = len(series)
    x = centred(series)
    kept = slice(1, (n_steps + 1) // 2)
    if n_tapers == 0:
        return np.abs(np.fft.rfft(x, axis=0)[kept]) ** 2 / n_steps
    angle = np.pi * np.arange(1, n_steps + 1) / (n_steps + 1)
    total = np.zeros((kept.stop - 1, x.shape[1]))
    for k in range(1, n_tapers + 1):
        taper = np.sqrt(2 / (n_steps + 1)) * np.sin(k * angle)
        total += np.abs(np.fft.rfft(taper[:, None] * x, axis=0)[kept]) ** 2
    return total / n_tapers


def fit_lines(
    power: Float[np.ndarray, "frequency unit"],
    log_frequency: Float[np.ndarray, "frequency"],
    *,
    n_tapers: int,
    without_peaks: bool,
) -> Lines:
    """Fit the line of every unit, through all frequencies or through those that are not peaks."""
    usable = (power > FLOOR * power.max(axis=0)).all(axis=0)
    height = np.log(power, out=np.full_like(power, np.nan), where=usable)
    kept = np.ones_like(height, dtype=bool)
    if without_peaks:
        tiles = (height[:, first : first + UNITS_AT_ONCE] for first in range(0, height.shape[1], UNITS_AT_ONCE))
        kept = np.concatenate([_without_peaks(tile, log_frequency, max(1, n_tapers)) for tile in tiles], axis=1)
    weight = kept.astype(np.float64)
    slope, level, run = _weighted_line(height, log_frequency, weight)
    residual = np.where(kept, height - level - slope * run, 0)
    score = -weight * run * residual / np.sum(weight * run**2, axis=0)
    freedom = np.sqrt(weight.sum(axis=0) / (weight.sum(axis=0) - 2))
    return Lines(-slope, level, kept, residual, score * freedom)


def band_errors(
    lines: Lines, log_frequency: Float[np.ndarray, "frequency"], n_tapers: int
) -> tuple[Float[np.ndarray, "unit"], Float[np.ndarray, "unit"]]:
    """Return, of the mean residuals in bands, R squared and chi squared per degree of freedom."""
    edges = np.unique(np.round(np.geomspace(1, len(log_frequency) + 1, BANDS + 1)).astype(int)) - 1
    n = np.add.reduceat(lines.kept.astype(np.float64), edges[:-1], axis=0)
    error = np.add.reduceat(lines.residual, edges[:-1], axis=0) / np.maximum(n, 1)
    middle = np.add.reduceat(log_frequency, edges[:-1]) / np.diff(edges)
    line = -lines.exponent * (middle - middle.mean())[:, None]
    height = line + error
    tapers = max(1, n_tapers)
    expected = polygamma(1, tapers) * np.minimum(1, (2 * tapers / 3 if tapers > 1 else 1) / np.maximum(n, 1))
    with np.errstate(invalid="ignore"):
        r_squared = 1 - np.sum(error**2, axis=0) / np.sum((height - height.mean(axis=0)) ** 2, axis=0)
    return r_squared, np.sum(error**2 / expected, axis=0) / max(1, len(middle) - 2)


def _without_peaks(
    height: Float[np.ndarray, "frequency unit"], log_frequency: Float[np.ndarray, "frequency"], n_tapers: int
) -> Bool[np.ndarray, "frequency unit"]:
    """Return the frequencies that are not part of a peak."""
    typical = psi(n_tapers) - np.log(n_tapers)  # the mean of ln of a chi squared over its mean
    weight = np.ones_like(height)
    slope, level, run = _weighted_line(height, log_frequency, weight)
    for _ in range(ROUNDS):
        weight = 1 / np.maximum(np.abs(height - level - slope * run), NEAR)
        slope, level, run = _weighted_line(height, log_frequency, weight)
    median = np.log(gdtrix(1.0, n_tapers, 0.5) / n_tapers)
    kept = _unless_most_go(~_peaks(height - level - slope * run, n_tapers, median), np.ones_like(height, dtype=bool))
    moving = np.arange(height.shape[1])  # units whose peaks still change
    for _ in range(ROUNDS):
        part, before = height[:, moving], kept[:, moving]
        slope, level, run = _weighted_line(part, log_frequency, before.astype(np.float64))
        again = _unless_most_go(~_peaks(part - level - slope * run, n_tapers, typical), before)
        kept[:, moving] = again
        moving = moving[(again != before).any(axis=0)]
        if not moving.size:
            break
    return kept


def _unless_most_go(kept: Bool[np.ndarray, "frequency unit"], before: Bool[np.ndarray, "frequency unit"]) -> np.ndarray:
    """Return `kept`, or `before` for units that would lose more than half: what is left would be no background."""
    return np.where(kept.mean(axis=0) >= 0.5, kept, before)


def _peaks(excess: Float[np.ndarray, "frequency unit"], n_tapers: int, typical: float) -> np.ndarray:
    """Return the frequencies in a run of some width with too much power over the line, which is at `typical`."""
    ratio = np.nan_to_num(np.exp(np.minimum(excess + typical, 600)))
    total = np.concatenate([np.zeros_like(ratio[:1]), np.cumsum(ratio, axis=0)])
    found = np.zeros(ratio.shape, dtype=bool)
    for width in WIDTHS:
        if 8 * width > len(ratio):
            break
        independent = max(1, width / (1 if n_tapers == 1 else n_tapers))
        shape = n_tapers * independent
        limit = gdtrix(1.0, shape, 1 - FALSE_PEAK / len(ratio)) / shape
        high = (total[width:] - total[:-width]) / width > limit
        change = np.zeros((len(ratio) + 1, ratio.shape[1]), dtype=np.int8)  # of how many high runs are open: up to 64
        change[: len(high)] += high
        change[width:] -= high
        found |= np.cumsum(change[:-1], axis=0, dtype=np.int8) > 0
    return found


def _weighted_line(
    height: np.ndarray, log_frequency: np.ndarray, weight: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return slope, height at the mean, and the distance from the mean, of every unit."""
    x, weighted = log_frequency - log_frequency.mean(), weight * height
    total, sums = weight.sum(axis=0), weighted.sum(axis=0)
    mean = x @ weight / total
    slope = (x @ weighted - mean * sums) / (x**2 @ weight - mean**2 * total)
    return cast(np.ndarray, slope), cast(np.ndarray, sums / total), x[:, None] - mean
