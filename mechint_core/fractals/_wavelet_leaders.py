"""Moments of wavelet leaders: the kernel of the wavelet half of `multifractal_spectrum`.

    d(j, k) = 2^-j/2 <walk, Daubechies wavelet at scale 2^j, place k>        three vanishing moments, six taps
    L(j, k) = largest |d(j', k')| over j' <= j and places within 3 times the interval of (j, k)

A leader is a local supremum, so it is hardly ever near 0 and negative moments exist; a wavelet coefficient is not.
The walk of a series less its mean ends where it began, so it is continued in a circle and no place is lost at the ends.
A leader of 0 (a flat stretch) is left out and counted.

Source: [@wendt2007], [@jaffard2004], [@daubechies1992]
Cost: 12 multiplications per step and unit.
"""

from typing import Final

import numpy as np
from jaxtyping import Float, Int

_ROOT: Final = np.sqrt(5 + 2 * np.sqrt(10))
LOW_PASS: Final = np.array(
    [
        1 + np.sqrt(10) + _ROOT,
        5 + np.sqrt(10) + 3 * _ROOT,
        10 - 2 * np.sqrt(10) + 2 * _ROOT,
        10 - 2 * np.sqrt(10) - 2 * _ROOT,
        5 + np.sqrt(10) - 3 * _ROOT,
        1 + np.sqrt(10) - _ROOT,
    ]
) / (16 * np.sqrt(2))
HIGH_PASS: Final = LOW_PASS[::-1] * np.array([1, -1, 1, -1, 1, -1])
CHILD: Final = 2
"""Place 2 k + CHILD (and the next) at scale j - 1 lies in the middle of place k at scale j."""
MIDDLE: Final = 3
"""The middle of the wavelet at place k is in the interval of place k + MIDDLE - 1; neighbours take one more off."""
ROUNDING: Final = 1e-13
"""A coefficient below this share of the walk's largest value is 0."""


def leader_moments(
    series: Float[np.ndarray, "time unit"],
    levels: Int[np.ndarray, "scale"],
    q: Float[np.ndarray, "moment"],
    n_pieces: int,
    first: int,
    stop: int,
) -> Float[np.ndarray, "row scale unit"]:
    """Return, by scale and unit: sums of L^q by (piece, moment), leaders by piece, and leaders of 0."""
    packed = np.zeros((n_pieces * (q.size + 1) + 1, levels.size, stop - first))
    for i, leader in enumerate(wavelet_leaders(series[:, first:stop], levels)):
        piece = np.arange(len(leader)) * n_pieces // len(leader)
        starts = np.flatnonzero(np.diff(piece, prepend=-1))
        there = leader > 0
        log = np.log(leader, out=np.zeros_like(leader), where=there)
        for k, order in enumerate(q):
            value = log if order == 0 else np.where(there, np.exp(order * log), 0)
            packed[piece[starts] * q.size + k, i] = np.add.reduceat(value, starts, axis=0)
        packed[n_pieces * q.size + piece[starts], i] = np.add.reduceat(there.astype(np.float64), starts, axis=0)
        packed[-1, i] = np.sum(~there, axis=0)
    return packed


def wavelet_leaders(
    series: Float[np.ndarray, "time unit"], levels: Int[np.ndarray, "scale"]
) -> list[Float[np.ndarray, "place unit"]]:
    """Return the leaders of the walk of `series` at `levels`, one for every 2^level steps."""
    n_steps = len(series)
    margin = 8 * 2 ** int(levels[-1])  # more than the wavelets and neighbours reach; whole intervals at every level
    walk = np.cumsum(series - series.mean(axis=0), axis=0)
    floor = ROUNDING * np.max(np.abs(walk), axis=0)
    walk = np.take(walk, np.arange(-margin, n_steps + margin), axis=0, mode="wrap")
    largest: np.ndarray | None = None
    leaders: list[np.ndarray] = []
    for level in range(1, int(levels[-1]) + 1):
        detail = np.abs(_filtered(walk, HIGH_PASS)) * 2 ** (-level / 2)
        detail = np.where(detail > floor, detail, 0)
        walk = _filtered(walk, LOW_PASS)
        largest = detail if largest is None else _with_children(detail, largest)
        if level in levels:
            near = np.maximum(np.maximum(largest[:-2], largest[1:-1]), largest[2:])
            before = margin // 2**level - MIDDLE  # so many places lie before the first step
            leaders.append(near[before : before + n_steps // 2**level])
    return leaders


def _filtered(x: Float[np.ndarray, "place unit"], taps: np.ndarray) -> Float[np.ndarray, "half unit"]:
    """Return every second value of the correlation of `x` with `taps`, where all taps fall on x."""
    n = (len(x) - len(taps)) // 2 + 1
    total = np.zeros((n, x.shape[1]))
    for i, tap in enumerate(taps):
        total += tap * x[i : i + 2 * n - 1 : 2]
    return total


def _with_children(
    detail: Float[np.ndarray, "place unit"], finer: Float[np.ndarray, "fine unit"]
) -> Float[np.ndarray, "shorter unit"]:
    """Return the largest coefficient at each place of one scale and below it."""
    n = min(len(detail), (len(finer) - CHILD - 2) // 2 + 1)
    below = np.maximum(finer[CHILD : CHILD + 2 * n - 1 : 2], finer[CHILD + 1 : CHILD + 2 * n : 2])
    return np.maximum(detail[:n], below)
