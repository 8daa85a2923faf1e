"""Rescaled range of the windows of a series, over what it is without memory: the kernels of `hurst_exponent`.

    R / S     = (largest - smallest sum of x - mean x up to t, 0 included) / standard deviation of x
    E[R / S]  = Gamma((n - 1) / 2) / (sqrt(pi) Gamma(n / 2))  sum_(i < n) sqrt((n - i) / i)         white noise

The expectation is exact for Gaussian white noise, so that dividing by it removes the bias of short windows at H = 1/2.
Away from 1/2 a part of the bias stays.

Source: [@hurst1951], [@anis1976]
Cost: time x unit x scale x 2 passes.
"""

from functools import partial
from typing import Final, no_type_check

import numpy as np
from jaxtyping import Float, Int
from numba import njit
from scipy.special import gammaln

from mechint_core.fractals._power_law import PIECES, Scaling, over_units

UNITS: Final = 64
"""Units of one inner loop."""


def rescaled_ranges(series: Float[np.ndarray, "time unit"], scale: Int[np.ndarray, "scale"]) -> Scaling:
    """Measure R/S over its expectation, times sqrt n, of every unit, in pieces along the axis."""
    n_steps = len(series)
    pieces = over_units(partial(_sums, series, scale, PIECES), series)
    windows = np.zeros((PIECES, scale.size))
    for i, n in enumerate(scale):
        middle = np.arange(n_steps // n) * n + n // 2
        windows[:, i] = np.bincount(middle * PIECES // n_steps, minlength=PIECES)
    return Scaling(np.log(scale), pieces * (np.sqrt(scale) / expected_rescaled_range(scale))[:, None], windows)


def rescaled_range_exponents(
    series: Float[np.ndarray, "time unit"], *, scale: Int[np.ndarray, "scale"]
) -> Float[np.ndarray, "unit"]:
    """Return the exponents alone, with no regard to pieces: what the null draws many times."""
    whole = _sums(series, scale, 1, 0, series.shape[1])
    factor = (np.sqrt(scale) / expected_rescaled_range(scale))[:, None]
    return Scaling(np.log(scale), whole * factor, (len(series) // scale)[None].astype(np.float64)).fit()[0]


def expected_rescaled_range(scale: Int[np.ndarray, "scale"]) -> Float[np.ndarray, "scale"]:
    """Return E[R/S] of windows of Gaussian white noise."""
    sums = [np.sqrt((n - np.arange(1, n)) / np.arange(1, n)).sum() for n in scale]
    return np.exp(gammaln((scale - 1) / 2) - gammaln(scale / 2)) / np.sqrt(np.pi) * np.array(sums)


@njit(nogil=True, cache=True)
@no_type_check  # numba compiles this function: nothing may wrap it
def _sums(series: np.ndarray, scale: np.ndarray, n_pieces: int, first: int, stop: int) -> np.ndarray:
    """Return the sums of R/S by (piece, scale, unit); NaN for a unit with a window that does not vary."""
    n_steps = len(series)
    sums = np.zeros((n_pieces, len(scale), stop - first))
    for left in range(first, stop, UNITS):
        right = min(left + UNITS, stop)
        for i in range(len(scale)):
            n = scale[i]
            for start in range(0, n_steps - n + 1, n):
                total = sums[(start + n // 2) * n_pieces // n_steps, i, left - first : right - first]
                _add_window(series[start : start + n, left:right], total)
    return sums


@njit(nogil=True, cache=True)
@no_type_check
def _add_window(window: np.ndarray, total: np.ndarray) -> None:
    """Add R/S of one window to `total`."""
    n, origin = len(window), window[0].astype(np.float64)
    mean = np.zeros(len(total))
    for t in range(n):
        row = window[t]
        for u in range(len(total)):
            mean[u] += (np.float64(row[u]) - origin[u]) / n
    walk, energy = np.zeros(len(total)), np.zeros(len(total))
    low, high = np.zeros(len(total)), np.zeros(len(total))
    for t in range(n):
        row = window[t]
        for u in range(len(total)):
            step = np.float64(row[u]) - origin[u] - mean[u]
            walk[u] += step
            energy[u] += step * step
            low[u] = min(low[u], walk[u])
            high[u] = max(high[u], walk[u])
    for u in range(len(total)):
        total[u] += (high[u] - low[u]) / np.sqrt(energy[u] / n) if energy[u] > 0 else np.nan
