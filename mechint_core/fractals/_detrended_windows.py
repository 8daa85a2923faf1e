"""Residual energies of the windows of a walk about their trends: the kernels of detrended fluctuation analysis.

    |y - trend|^2 = |y|^2 - sum_j (q_j . y)^2           q_0 ... q_p: orthonormal polynomials on the window's n points

Units run in the inner loops, side by side, so that one instruction serves several of them.

Source: [@peng1994]
Cost: time x unit x scale x (order + 2) multiplications.
"""

from functools import partial
from typing import Final, no_type_check

import numpy as np
from jaxtyping import Float, Int
from numba import njit

from mechint_core.fractals._power_law import PIECES, Scaling, over_units

UNITS: Final = 64
"""Units of one inner loop; their walk takes 2 MB for 4096 steps."""
WALK_VALUES: Final = 2**23
"""Values of one walk at most (64 MB), so that long series take fewer units at once."""
FLAT: Final = 1e-12
"""A window whose residual is below this share of |y|^2 is on its trend: the rest is rounding."""


def detrended_energies(
    series: Float[np.ndarray, "time unit"],
    scale: Int[np.ndarray, "scale"],
    trend: Float[np.ndarray, "scale row column"],
) -> tuple[Scaling, Int[np.ndarray, "unit"]]:
    """Measure F^2(n) of every unit, each window in the piece that holds its middle; count the flat windows."""
    measured = over_units(partial(_residual_energies, series, scale, trend, PIECES), series)
    pieces, flat = measured[:PIECES], measured[PIECES, 0].astype(np.int64)
    return Scaling(2 * np.log(scale), pieces, _steps_in_pieces(scale, len(series))), flat


def detrended_exponents(
    series: Float[np.ndarray, "time unit"],
    *,
    scale: Int[np.ndarray, "scale"],
    trend: Float[np.ndarray, "scale row column"],
) -> Float[np.ndarray, "unit"]:
    """Return the exponents alone, with no regard to pieces: what the null draws many times."""
    whole = _residual_energies(series, scale, trend, 1, 0, series.shape[1])
    steps = len(series) // scale * scale
    return Scaling(2 * np.log(scale), whole[:1], steps[None].astype(np.float64)).fit()[0]


def orthonormal_polynomials(scale: Int[np.ndarray, "scale"], order: int) -> Float[np.ndarray, "scale row column"]:
    """Return q_0 ... q_order on n points for every window length n, padded with zeros."""
    padded = np.zeros((scale.size, order + 1, int(scale[-1])))
    for i, n in enumerate(scale):
        powers = np.vander(np.linspace(-1, 1, n), order + 1, increasing=True)
        padded[i, :, :n] = np.linalg.qr(powers).Q.T
    return padded


def _steps_in_pieces(scale: Int[np.ndarray, "scale"], n_steps: int) -> Float[np.ndarray, "row scale"]:
    """Return how many steps of each window length fall to each piece."""
    steps = np.zeros((PIECES, scale.size))
    for i, n in enumerate(scale):
        middle = np.arange(n_steps // n) * n + n // 2
        steps[:, i] = n * np.bincount(middle * PIECES // n_steps, minlength=PIECES)
    return steps


@njit(nogil=True, cache=True)
@no_type_check  # numba compiles this function: nothing may wrap it
def _residual_energies(
    series: np.ndarray, scale: np.ndarray, polynomials: np.ndarray, n_pieces: int, first: int, stop: int
) -> np.ndarray:
    """Return the sums of |y - trend|^2 by (piece, scale, unit), and in one more row the flat windows by unit."""
    n_steps = len(series)
    energies = np.zeros((n_pieces + 1, len(scale), stop - first))
    width = max(1, min(UNITS, WALK_VALUES // n_steps))
    for left in range(first, stop, width):
        walk = walk_of(series, left, min(left + width, stop))
        tile = slice(left - first, left - first + walk.shape[1])
        energy, score = np.empty(walk.shape[1]), np.empty((polynomials.shape[1], walk.shape[1]))
        for i in range(len(scale)):
            n = scale[i]
            for start in range(0, n_steps - n + 1, n):
                project(walk, start, n, polynomials[i], energy, score)
                piece = (start + n // 2) * n_pieces // n_steps
                flat, total = energies[n_pieces, 0, tile], energies[piece, i, tile]
                for u in range(len(energy)):
                    residual = energy[u]
                    for j in range(len(score)):
                        residual -= score[j, u] ** 2
                    if residual <= FLAT * energy[u]:
                        flat[u] += 1
                    else:
                        total[u] += residual
    return energies


@njit(nogil=True, cache=True)
@no_type_check
def walk_of(series: np.ndarray, first: int, stop: int) -> np.ndarray:
    """Return the running sum of units first ... stop - 1 about their mean: exactly 0 for a constant unit."""
    origin = series[0, first:stop].astype(np.float64)
    mean = np.zeros(stop - first)
    for t in range(len(series)):
        row = series[t, first:stop]
        for u in range(len(mean)):
            mean[u] += (np.float64(row[u]) - origin[u]) / len(series)
    walk = np.zeros((len(series), stop - first))
    for t in range(len(series)):
        row, before, now = series[t, first:stop], walk[max(t - 1, 0)], walk[t]
        for u in range(len(mean)):
            now[u] = before[u] + (np.float64(row[u]) - origin[u] - mean[u])
    return walk


@njit(nogil=True, cache=True)
@no_type_check
def project(
    walk: np.ndarray, start: int, n: int, polynomials: np.ndarray, energy: np.ndarray, score: np.ndarray
) -> None:
    """Write |y|^2 and q_j . y of one window, with y counted from the window's first step."""
    origin, level, slope = walk[start], score[0], score[1]
    energy[:] = 0
    score[:] = 0
    for t in range(n):
        now = walk[start + t]
        q0, q1 = polynomials[0, t], polynomials[1, t]
        for u in range(len(energy)):  # the trend of order 1 in one loop: twice as fast as one loop for each sum
            y = now[u] - origin[u]
            energy[u] += y * y
            level[u] += q0 * y
            slope[u] += q1 * y
        for j in range(2, len(polynomials)):
            q, bend = polynomials[j, t], score[j]
            for u in range(len(energy)):
                bend[u] += q * (now[u] - origin[u])
