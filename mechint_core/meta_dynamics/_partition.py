"""Optimal partitioning: the exact least-squares segments of many series at once.

    F_0(j) = cost(0, j),    F_k(j) = min over i of F_{k-1}(i) + cost(i, j)

with cost(i, j) the squared deviations of checkpoints i ... j - 1 from their mean, and k change points.

Source: [@jackson2005].
Cost: n² (d + k) per series.
"""

import numpy as np
from jaxtyping import Float, Int

CHUNK_BYTES = 64 * 2**20
"""Memory that the segment costs of the series searched at once may take."""


def partition(
    y: Float[np.ndarray, "draw checkpoint measure"], most: int, least: int
) -> tuple[Float[np.ndarray, "draw count"], Int[np.ndarray, "count draw end"]]:
    """Return the least cost of each draw with 0 ... `most` change points, and where the last segment then starts."""
    segment = _segment_costs(y, least)
    totals, costs, places = segment[:, 0], [segment[:, 0, -1]], [np.zeros(segment[:, 0].shape, dtype=np.int64)]
    for _ in range(most):
        candidates = totals[:, :, None] + segment
        places.append(candidates.argmin(axis=1))
        totals = candidates.min(axis=1)
        costs.append(totals[:, -1])
    return np.stack(costs, axis=1), np.stack(places)


def _segment_costs(y: Float[np.ndarray, "draw checkpoint measure"], least: int) -> Float[np.ndarray, "draw start end"]:
    """Return the squared deviations of checkpoints i ... j - 1 from their mean; infinite below `least` checkpoints."""
    sums = np.pad(np.cumsum(y, axis=1), ((0, 0), (1, 0), (0, 0)))
    squares = np.pad(np.cumsum(np.square(y).sum(axis=2), axis=1), ((0, 0), (1, 0)))
    length = np.arange(sums.shape[1]) - np.arange(sums.shape[1])[:, None]
    norms = np.square(sums).sum(axis=2)
    apart = norms[:, :, None] + norms[:, None, :] - 2 * sums @ sums.swapaxes(1, 2)
    costs = squares[:, None, :] - squares[:, :, None] - apart / np.maximum(length, 1)
    return np.where(length >= least, np.maximum(costs, 0.0), np.inf)


def trace(places: Int[np.ndarray, "count end"], n_cuts: int, n: int) -> tuple[int, ...]:
    """Follow the starts of the last segments back from the end."""
    cuts, end = [], n
    for count in range(n_cuts, 0, -1):
        end = int(places[count, end])
        cuts.append(end)
    return tuple(reversed(cuts))


def chunks(y: Float[np.ndarray, "draw checkpoint measure"]) -> list[Float[np.ndarray, "_ checkpoint measure"]]:
    """Split the draws so that their segment costs fit in memory."""
    at_once = max(1, CHUNK_BYTES // (16 * (y.shape[1] + 1) ** 2))
    return [y[start : start + at_once] for start in range(0, len(y), at_once)]
