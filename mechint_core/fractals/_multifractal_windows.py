"""Moments of the residuals of windows about their trends: the kernel of multifractal detrended fluctuation analysis.

    F^2 = |y - trend|^2 / n          y: the walk in one window of n steps

A window in which the walk is exactly on its trend is left out and counted: its F is 0, and any power below 0 of it
would rule the moment.

Source: [@kantelhardt2002]
Cost: that of detrended fluctuation analysis, and one exponential per moment and window.
"""

from typing import no_type_check

import numpy as np
from numba import njit

from mechint_core.fractals._detrended_windows import FLAT, UNITS, WALK_VALUES, project, walk_of


@njit(nogil=True, cache=True)
@no_type_check  # numba compiles this function: nothing may wrap it
def window_moments(
    series: np.ndarray,
    scale: np.ndarray,
    polynomials: np.ndarray,
    q: np.ndarray,
    n_pieces: int,
    first: int,
    stop: int,
) -> np.ndarray:
    """Return, by scale and unit: sums of F^q by (piece, moment), windows by piece, and flat windows."""
    n_steps, n_moments = len(series), len(q)
    packed = np.zeros((n_pieces * (n_moments + 1) + 1, len(scale), stop - first))
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
                _add_moments(packed[:, i, tile], energy, score, q, piece, n_pieces, n)
    return packed


@njit(nogil=True, cache=True)
@no_type_check
def _add_moments(
    packed: np.ndarray, energy: np.ndarray, score: np.ndarray, q: np.ndarray, piece: int, n_pieces: int, n: int
) -> None:
    """Add one window of every unit."""
    n_moments = len(q)
    for u in range(len(energy)):
        residual = energy[u]
        for j in range(len(score)):
            residual -= score[j, u] ** 2
        if residual <= FLAT * energy[u]:
            packed[-1, u] += 1
            continue
        packed[n_pieces * n_moments + piece, u] += 1
        log = np.log(residual / n) / 2
        for k in range(n_moments):
            packed[piece * n_moments + k, u] += log if q[k] == 0 else np.exp(q[k] * log)
