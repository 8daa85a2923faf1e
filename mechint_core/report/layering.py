"""Where the nodes of a directed graph go, so that its edges are easy to follow.

Sugiyama, Tagawa and Toda's method (1981), in the three steps it is known by. A node's level is the longest path that
leads to it; an edge over several levels gets a bend on each, which takes its place among the nodes there. The order
within a level follows the mean place of the neighbours (barycentres), swept up and down, and the order with the
fewest crossings wins. The place across is the weighted mean of the neighbours', as near as nodes that may not touch
can come: an isotonic regression per level, in which bends weigh most, so that long edges run straight.

Cost: O(edges * levels). Lengths are pixels.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy.optimize import isotonic_regression

from mechint_core.errors import ShapeError

ORDER_SWEEPS, PLACE_SWEEPS = 24, 60
GAP = 9.0
"""Between a node and its neighbours; also between bends."""
STRAIGHTNESS = 8.0
"""Weight of a piece of an edge between two bends; between two nodes it is 1, between a node and a bend 2."""


@dataclass(frozen=True, slots=True)
class Layers:
    """Where everything is: a level and a place across for each node, and the places where each edge bends."""

    level: np.ndarray
    """Of each node, the lowest 0."""
    x: np.ndarray
    """Middle of each node."""
    bends: tuple[np.ndarray, ...]
    """Of each edge, its place on every level between its ends, upwards."""
    width: float


@dataclass(frozen=True, slots=True)
class _Pieces:
    """Edges cut at their bends into pieces from one level to the next, and the nodes and bends between them."""

    level: np.ndarray
    width: np.ndarray
    """What each takes of its level, with the room around it."""
    lower: np.ndarray
    upper: np.ndarray
    arrival: np.ndarray
    """Of each piece, how far from the middle of what is above it ends."""
    chains: tuple[tuple[int, ...], ...]
    """Of each edge, its bends."""


def depths(sender: np.ndarray, receiver: np.ndarray, count: int) -> np.ndarray:
    """Return the longest path that leads to each of `count` nodes; what nothing leads to goes next to what it feeds.

    Raises
    ------
    ShapeError
        If the edges form a cycle.
    """
    depth = np.zeros(count, dtype=int)
    for _ in range(count):
        before = depth.copy()
        np.maximum.at(depth, receiver, depth[sender] + 1)
        if np.array_equal(before, depth):
            break
    else:
        if count:
            raise ShapeError("the edges of a layered graph must not form a cycle. Got one.")
    nearest = np.full(count, depth.max(initial=0) + 1)
    np.minimum.at(nearest, sender, depth[receiver])
    fed = np.isin(np.arange(count), receiver)
    return np.where(fed, depth, nearest - 1)


def lay_out(
    sender: np.ndarray, receiver: np.ndarray, arrival: np.ndarray, level: np.ndarray, width: np.ndarray
) -> Layers:
    """Place nodes of these levels and widths so that edges cross little and bend little.

    `arrival` says how far from the receiver's middle each edge ends. An edge must lead to a higher level.
    """
    pieces = _cut(sender, receiver, arrival, level, width)
    rows = _ordered(pieces)
    x = _across(pieces, rows)
    x -= np.min(x - pieces.width / 2, initial=0.0)
    right = float(np.max(x + pieces.width / 2, initial=0.0))
    bends = tuple(x[list(chain)] for chain in pieces.chains)
    return Layers(level, x[: len(level)], bends, right)


def _cut(
    sender: np.ndarray, receiver: np.ndarray, arrival: np.ndarray, level: np.ndarray, width: np.ndarray
) -> _Pieces:
    """Give each edge a bend on every level between its ends."""
    levels, ends, chains = list(level), [], []
    for source, target, offset in zip(sender, receiver, arrival, strict=True):
        between = range(level[source] + 1, level[target])
        chain = tuple(range(len(levels), len(levels) + len(between)))
        levels += between
        chains.append(chain)
        path = (source, *chain, target)
        ends += [(low, high, offset if high == target else 0.0) for low, high in pairwise(path)]
    lower, upper, offsets = np.array(ends, dtype=float).reshape(-1, 3).T
    widths = np.r_[width, np.zeros(len(levels) - len(level))] + GAP
    return _Pieces(np.array(levels), widths, lower.astype(int), upper.astype(int), offsets, tuple(chains))


def _ordered(pieces: _Pieces) -> list[np.ndarray]:
    """Return what lies on each level, from left to right."""
    count = len(pieces.level)
    rows = [np.flatnonzero(pieces.level == level) for level in range(pieces.level.max(initial=-1) + 1)]
    place = _places(rows, count)
    best, fewest = rows, _crossings(pieces, place)
    nudge = pieces.arrival / pieces.width[pieces.upper]  # edges into one node, in the order in which they arrive
    for sweep in range(ORDER_SWEEPS):
        up = sweep % 2 == 0
        rows = list(rows)
        for index in range(len(rows)) if up else reversed(range(len(rows))):
            row = rows[index]
            mine, other = (pieces.upper, pieces.lower) if up else (pieces.lower, pieces.upper)
            seen = np.bincount(mine, minlength=count)[row]
            total = np.bincount(mine, place[other] + (0.0 if up else nudge), count)[row]
            middle = np.where(seen > 0, total / np.maximum(seen, 1), place[row])
            rows[index] = row[np.argsort(middle, kind="stable")]
            place[rows[index]] = _ranks(len(row))
        crossings = _crossings(pieces, place)
        if crossings < fewest:
            best, fewest = rows, crossings
    return best


def _places(rows: list[np.ndarray], count: int) -> np.ndarray:
    place = np.zeros(count)
    for row in rows:
        place[row] = _ranks(len(row))
    return place


def _ranks(count: int) -> np.ndarray:
    """Return places around the middle, so that levels of different length compare."""
    return np.arange(count) - (count - 1) / 2


def _crossings(pieces: _Pieces, place: np.ndarray) -> int:
    """Count the pairs of pieces that cross."""
    low, high = place[pieces.lower], place[pieces.upper] + pieces.arrival / pieces.width[pieces.upper]
    crossed = 0
    for level in range(pieces.level.max(initial=0)):
        here = pieces.level[pieces.lower] == level
        crossed += int(np.sum(np.subtract.outer(low[here], low[here]) * np.subtract.outer(high[here], high[here]) < 0))
    return crossed // 2


def _across(pieces: _Pieces, rows: list[np.ndarray]) -> np.ndarray:
    """Return the place across of every node and bend."""
    count, bends = len(pieces.level), {bend for chain in pieces.chains for bend in chain}
    is_bend = np.isin(np.arange(count), list(bends))
    strength = np.choose(is_bend[pieces.lower].astype(int) + is_bend[pieces.upper], (1.0, 2.0, STRAIGHTNESS))
    weight = np.bincount(pieces.lower, strength, count) + np.bincount(pieces.upper, strength, count)
    packed = [_offsets(pieces.width[row]) for row in rows]
    room = max((offset[-1] + pieces.width[row[-1]] / 2 for row, offset in zip(rows, packed, strict=True)), default=0.0)
    x = np.zeros(count)
    for row, offset in zip(rows, packed, strict=True):
        x[row] = offset + (room - offset[-1] - pieces.width[row[-1]] / 2) / 2
    for sweep in range(PLACE_SWEEPS):
        order = range(len(rows)) if sweep % 2 else reversed(range(len(rows)))
        for index in order:
            row, offset = rows[index], packed[index]
            pull = np.bincount(pieces.lower, strength * (x[pieces.upper] + pieces.arrival), count)
            pull += np.bincount(pieces.upper, strength * (x[pieces.lower] - pieces.arrival), count)
            wish = np.where(weight > 0, pull / np.maximum(weight, 1e-9), x)[row]
            free = isotonic_regression(wish - offset, weights=np.maximum(weight[row], 1e-3)).x
            x[row] = offset + np.clip(free, 0.0, room - offset[-1] - pieces.width[row[-1]] / 2)
    return x


def _offsets(width: np.ndarray) -> np.ndarray:
    """Return the middles of neighbours that stand as near as they may, the first at the left edge."""
    return np.cumsum(width) - width / 2
