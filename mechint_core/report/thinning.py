"""What is drawn of an array: numbers that fit on an axis, and no more of them than the eye can tell apart."""

from itertools import pairwise

import numpy as np

LARGEST, SMALLEST = 1e60, 1e-60
"""Sizes beyond which the arithmetic of axes overflows."""
MAX_LINE_POINTS = 500
MAX_CELLS = 200
"""Rows, and columns, of a drawn matrix."""


def drawable(values: np.ndarray) -> np.ndarray:
    """Return `values` with those too large to draw as infinities, and those too small as zeros."""
    size = np.abs(values)
    return np.where(size > LARGEST, np.copysign(np.inf, values), np.where(size < SMALLEST, 0.0, values))


def finite(values: np.ndarray) -> np.ndarray:
    """Return `values` with NaN, which leaves a gap, for all that cannot be drawn."""
    return np.where(np.isfinite(values) & (np.abs(values) <= LARGEST), drawable(values), np.nan)


def thinned(length: int, y: np.ndarray | None = None) -> np.ndarray:
    """Return the indices to draw: all, or the lowest and the highest of each run so that no peak is lost."""
    if length <= MAX_LINE_POINTS:
        return np.arange(length)
    edges = np.linspace(0, length, MAX_LINE_POINTS // 2 + 1).astype(int)
    if y is None:
        return np.unique([*edges[:-1], length - 1])
    kept = [0, length - 1]
    for start, stop in pairwise(edges):
        run = np.where(np.isfinite(y[start:stop]), y[start:stop], np.nan)
        if not np.isnan(run).all():
            kept += [start + int(np.nanargmin(run)), start + int(np.nanargmax(run))]
    return np.unique(kept)


def pooled(values: np.ndarray) -> np.ndarray:
    """Return `values` averaged over blocks so that neither side exceeds `MAX_CELLS`."""
    for axis in (0, 1):
        length = values.shape[axis]
        if length > MAX_CELLS:
            starts = np.linspace(0, length, MAX_CELLS + 1).astype(int)
            sums = np.add.reduceat(values, starts[:-1], axis=axis)
            values = sums / np.expand_dims(np.diff(starts), 1 - axis)
    return values
