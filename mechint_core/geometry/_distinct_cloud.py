"""A cloud without copies, and its graph of neighbours: exact copies and copies with rounding are one row.

Copies have distance 0 and no logarithm; copies that differ by rounding have a tiny one, and pull a dimension that is
made of ratios of distances towards 0. They are joined where they are closer than `NEAR` times the median distance to
the farthest neighbour that is looked at: rows sampled independently are that close with probability NEAR^d, times the
number of neighbours.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from mechint_core.errors import DegenerateInputError
from mechint_core.kernels.neighbour_graph import NeighbourGraph, checked_points, distinct_rows, neighbour_graph

FEWEST_POINTS: Final = 20
NEAR: Final = 1e-4


@dataclass(frozen=True, slots=True)
class DistinctCloud:
    """The rows of a cloud that are no copies, and their neighbours."""

    rows: Float[np.ndarray, "row unit"]
    graph: NeighbourGraph
    first: Int[np.ndarray, "row"]
    """The sample that each row is."""
    row: Int[np.ndarray, "sample"]
    """The row of each sample."""
    n_duplicates: int
    n_near_duplicates: int

    @classmethod
    def of(cls, points: np.ndarray, n_neighbours: int) -> "DistinctCloud":
        """Leave out copies; look for `n_neighbours` neighbours, at most a quarter of the rows."""
        checked = checked_points(points)
        first, row = distinct_rows(checked)
        n_distinct = len(first)
        graph = _graph(checked[first], n_neighbours)
        near = graph.distance < NEAR * np.median(graph.distance[:, -1])
        if near.any():
            kept, owner = _joined(graph.index, near)
            first, row = first[kept], owner[row]
            graph = _graph(checked[first], n_neighbours)
        return cls(checked[first], graph, first, row, len(row) - n_distinct, n_distinct - len(first))


def _graph(rows: np.ndarray, n_neighbours: int) -> NeighbourGraph:
    if len(rows) < FEWEST_POINTS:
        raise DegenerateInputError(
            f"points must hold at least {FEWEST_POINTS} distinct samples, copies with rounding counted once. "
            f"Got {len(rows)}."
        )
    return neighbour_graph(rows, max(3, min(n_neighbours, len(rows) // 4)))


def _joined(
    index: Int[np.ndarray, "row neighbour"], near: Bool[np.ndarray, "row neighbour"]
) -> tuple[Int[np.ndarray, "kept"], Int[np.ndarray, "row"]]:
    """Return the first row of every set of rows that are copies of each other, and the set of each row."""
    n = len(index)
    start, place = np.nonzero(near)
    edges = csr_array((np.ones(len(start)), (start, index[start, place])), shape=(n, n))
    label = connected_components(edges, directed=False)[1]
    _, kept, owner = np.unique(label, return_index=True, return_inverse=True)
    order = np.argsort(kept)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return kept[order], rank[owner]
