"""The nearest neighbours of every row, exactly: one graph for dimension, curvature, geodesics and mutual information.

    |x - y|^2 = |x|^2 + |y|^2 - 2 x y        the product x y of all pairs in float32, tile by tile
    |fl(x y) - x y| <= c |x| |y|             c = 2 (gamma_D + 3 u), u = 2^-24, gamma_D = D u / (1 - D u) [@higham2002]

The bound turns each product into an interval for the distance. A row is a candidate if the lower end of its interval
is not above the k-th smallest upper end; the distances of the candidates are then taken from differences in float64.
So the neighbours are exact, whatever the tiles and the workers, and near neighbours do not cancel to 0. Ties go to
the row that comes first. Rows that are equal are one node of the graph, and counted.

Source: [@higham2002].
Cost: 2 n^2 D float32 operations, in tiles of `TILE` pairs; 1.2 times the product itself at 10,000 x 512.
Chunked over: rows.
"""

from dataclasses import dataclass
from functools import partial
from typing import Final, no_type_check

import numpy as np
from jaxtyping import Float, Int, UInt
from numba import njit
from scipy.sparse import csr_array

from mechint_core.errors import DegenerateInputError, DtypeError, ShapeError
from mechint_core.parallel import map_parallel
from mechint_core.random import generator

BLOCK_ROWS: Final = 1024
TILE_COLUMNS: Final = 4096
"""A tile of products is 16 MB: it is scanned before it leaves the cache of the last level."""
STRIDE: Final = 64
"""Pairs that are passed over at once if none of them can be a neighbour."""
UNIT_ROUNDOFF: Final = 2.0**-24
ROUNDING: Final = np.float32(8 * UNIT_ROUNDOFF)
"""Of the ends of an interval, which are float32 as well, relative to |y|^2."""
TINY: Final = np.float32(1e-30)
"""What float32 loses below its smallest number, generously."""


@dataclass(frozen=True, slots=True)
class NeighbourGraph:
    """Nearest neighbours of the distinct rows of a cloud."""

    index: Int[np.ndarray, "row neighbour"]
    """Of each distinct row, the places of its neighbours among the distinct rows, the nearest first."""
    distance: Float[np.ndarray, "row neighbour"]
    """Euclidean, in units of the points; above 0."""
    first: Int[np.ndarray, "row"]
    """The sample at which each distinct row occurs first."""
    row: Int[np.ndarray, "sample"]
    """The distinct row of each sample."""

    @property
    def n_duplicates(self) -> int:
        """Samples that equal an earlier one."""
        return len(self.row) - len(self.first)

    def adjacency(self, n_neighbours: int | None = None) -> csr_array:
        """Return the symmetric matrix of edges: i and j are joined if one is among the other's neighbours."""
        index, distance = self.index[:, :n_neighbours], self.distance[:, :n_neighbours]
        n, k = index.shape
        directed = csr_array((distance.ravel(), index.ravel(), np.arange(0, n * k + 1, k)), shape=(n, n))
        return csr_array(directed.maximum(directed.T))


def neighbour_graph(
    points: Float[np.ndarray, "sample unit"], n_neighbours: int, *, block_rows: int = BLOCK_ROWS
) -> NeighbourGraph:
    """Return the `n_neighbours` nearest neighbours of every distinct row of `points`.

    Parameters
    ----------
    points
        One vector per sample, float16 to float64.
    n_neighbours
        Neighbours of each row, itself not among them.
    block_rows
        Rows of one piece of work. It changes time and memory, never the answer.

    Returns
    -------
    NeighbourGraph
        Neighbours and distances by distinct row, and which row each sample is.

    Raises
    ------
    ShapeError
        If `points` is not (sample, unit), or `n_neighbours` or `block_rows` is below 1.
    DtypeError
        If `points` does not hold real numbers.
    DegenerateInputError
        If a value is NaN or infinite.
    DegenerateInputError
        If there are not more distinct rows than neighbours.
    DegenerateInputError
        If squares of distances underflow to 0 or overflow.

    Examples
    --------
    >>> graph = neighbour_graph(np.array([[0.0], [1.0], [3.0], [1.0]]), 1)
    >>> graph.index.ravel(), graph.distance.ravel(), graph.n_duplicates
    (array([1, 0, 1]), array([1., 1., 2.]), 1)
    """
    checked = checked_points(points)
    if min(n_neighbours, block_rows) < 1:
        raise ShapeError(f"n_neighbours and block_rows must be at least 1. Got {n_neighbours} and {block_rows}.")
    first, row = distinct_rows(checked)
    if len(first) <= n_neighbours:
        raise DegenerateInputError(
            f"points must hold more than n_neighbours = {n_neighbours} distinct rows. Got {len(first)}."
        )
    table = _Table.of(checked[first] if len(first) < len(checked) else checked)
    blocks = [slice(start, start + block_rows) for start in range(0, len(first), block_rows)]
    found = map_parallel(partial(_neighbours, table, n_neighbours), blocks)
    index, square = (np.concatenate(each) for each in zip(*found, strict=True))
    if not (square.min() > 0 and np.isfinite(square.max())):
        raise DegenerateInputError(
            "points must lie where squared distances neither vanish nor overflow. Got distances outside of 1e-150 to "
            "1e150: rescale the points."
        )
    return NeighbourGraph(index, np.sqrt(square), first, row)


def checked_points(points: np.ndarray) -> np.ndarray:
    """Return `points` in float32 or float64; refuse what is not a matrix of finite numbers."""
    if points.ndim != 2 or points.size == 0:
        raise ShapeError(f"points must be (sample, unit), neither empty. Got shape {points.shape}.")
    if not (np.issubdtype(points.dtype, np.floating) or np.issubdtype(points.dtype, np.integer)):
        raise DtypeError(f"points must hold real numbers. Got {points.dtype}.")
    finite = np.isfinite(points).all(axis=1)
    if not finite.all():
        n_bad = int(np.sum(~finite))
        raise DegenerateInputError(f"points must be finite. Got {n_bad} samples with NaN or infinity: drop those.")
    return points if points.dtype.name in ("float32", "float64") else points.astype(np.float64)


def distinct_rows(points: np.ndarray) -> tuple[Int[np.ndarray, "row"], Int[np.ndarray, "sample"]]:
    """Return the samples at which a row occurs first, in order, and for every sample which of those it equals.

    Rows are compared by a hash of their bits, and where that is equal, by their values.
    """
    bits = np.ascontiguousarray(points + 0.0)  # -0 becomes 0
    _, earliest, same = np.unique(_hashes(bits), return_index=True, return_inverse=True)
    if not np.array_equal(points[earliest[same]], points):  # two rows share a hash: never seen, yet not impossible
        _, earliest, same = np.unique(points, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(earliest)
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    return earliest[order], place[same.ravel()]


def _hashes(points: np.ndarray) -> UInt[np.ndarray, "sample"]:
    """Return 64 bits for each row: a random odd multiple of every 16-bit word, summed and mixed."""
    words = points.view(np.uint16)
    weights = generator(0, "neighbour_graph", "hash").integers(1, 2**63, words.shape[1], dtype=np.uint64) | np.uint64(1)
    hashes = np.zeros(len(words), dtype=np.uint64)
    _accumulate(words, weights, hashes)
    return hashes


@njit(nogil=True, cache=True)
@no_type_check  # numba compiles this function: nothing may wrap it
def _accumulate(words: np.ndarray, weights: np.ndarray, hashes: np.ndarray) -> None:
    for i in range(len(words)):
        total = np.uint64(0)
        for j in range(words.shape[1]):
            total += weights[j] * np.uint64(words[i, j])
        hashes[i] = total


@dataclass(frozen=True, slots=True)
class _Table:
    """Distinct rows as they are, and centred in float32 with what bounds the error of their products."""

    exact: np.ndarray
    rough: Float[np.ndarray, "row unit"]
    square: Float[np.ndarray, "row"]
    radius: Float[np.ndarray, "row"]
    bound: float
    """Of the error of 2 x y, relative to |x| |y|."""

    @classmethod
    def of(cls, points: np.ndarray) -> "_Table":
        """Centre, and divide by the mean radius so that nothing over- or underflows."""
        centred = points - points.mean(axis=0, dtype=np.float64)
        centred /= np.abs(centred).max()
        radius = np.sqrt(np.einsum("ij,ij->i", centred, centred))
        centred /= radius.mean()
        radius = (radius / radius.mean()).astype(np.float32)
        units = points.shape[1] * UNIT_ROUNDOFF
        bound = 2 * (units / (1 - units) + 3 * UNIT_ROUNDOFF) + 16 * UNIT_ROUNDOFF  # 16: the ends, in float32 too
        return cls(points, centred.astype(np.float32), radius**2, radius, bound)


def _neighbours(
    table: _Table, n_neighbours: int, rows: slice
) -> tuple[Int[np.ndarray, "block neighbour"], Float[np.ndarray, "block neighbour"]]:
    """Return neighbours and squared distances of a block of rows."""
    first, stop = rows.start, min(rows.stop, len(table.rough))
    upper = np.full((stop - first, n_neighbours), np.inf, dtype=np.float32)
    square = np.full((stop - first, n_neighbours), np.inf)
    index = np.full((stop - first, n_neighbours), -1)
    candidate = np.empty((stop - first, 4 * n_neighbours + STRIDE), dtype=np.int64)
    lower = np.empty(candidate.shape, dtype=np.float32)
    n_candidates = np.zeros(stop - first, dtype=np.int64)
    slack = np.float32(table.bound) * table.radius[first:stop]
    room = np.empty((stop - first) * min(TILE_COLUMNS, len(table.rough)), dtype=np.float32)  # touched first only once
    for start in range(0, len(table.rough), TILE_COLUMNS):
        tile = slice(start, start + TILE_COLUMNS)
        width = min(TILE_COLUMNS, len(table.rough) - start)
        products = room[: (stop - first) * width].reshape(stop - first, width)
        np.matmul(table.rough[first:stop], table.rough[tile].T, out=products)
        ends = products, slack, table.radius[tile], table.square[tile]
        _scan(*ends, table.exact, first, start, upper, candidate, lower, n_candidates, square, index)
    _measure_all(table.exact, first, upper, candidate, lower, n_candidates, square, index)
    return index, square


@njit(nogil=True, cache=True)
@no_type_check  # numba compiles this function: nothing may wrap it
def _scan(
    products: np.ndarray,
    slack: np.ndarray,
    radius: np.ndarray,
    square_norm: np.ndarray,
    exact: np.ndarray,
    first: int,
    start: int,
    upper: np.ndarray,
    candidate: np.ndarray,
    lower: np.ndarray,
    n_candidates: np.ndarray,
    square: np.ndarray,
    index: np.ndarray,
) -> None:
    """Note every row of one tile whose interval reaches below the k-th smallest upper end so far."""
    last = upper.shape[1] - 1
    for i in range(len(products)):
        for a in range(0, products.shape[1], STRIDE):
            b = min(a + STRIDE, products.shape[1])
            if _lowest(products[i, a:b], slack[i], radius[a:b], square_norm[a:b]) > upper[i, last]:
                continue
            for j in range(a, b):
                width = slack[i] * radius[j] + ROUNDING * square_norm[j] + TINY
                middle = square_norm[j] - np.float32(2) * products[i, j]
                if middle - width > upper[i, last] or start + j == first + i:
                    continue
                if middle + width < upper[i, last]:
                    _insert(middle + width, 0, upper[i], index[i, :0])
                candidate[i, n_candidates[i]], lower[i, n_candidates[i]] = start + j, middle - width
                n_candidates[i] += 1
                if n_candidates[i] == candidate.shape[1]:
                    n_candidates[i] = _drop(upper[i, last], candidate[i], lower[i])
                if n_candidates[i] == candidate.shape[1]:  # many rows so near that float32 cannot tell them apart
                    _measure(exact, first + i, candidate[i], square[i], index[i])
                    n_candidates[i] = 0


@njit(nogil=True, cache=True)
@no_type_check
def _drop(limit: float, candidate: np.ndarray, lower: np.ndarray) -> int:
    """Keep, in their order, the candidates that still reach below `limit`; return how many."""
    kept = 0
    for c in range(len(candidate)):
        if lower[c] <= limit:
            candidate[kept], lower[kept] = candidate[c], lower[c]
            kept += 1
    return kept


@njit(nogil=True, cache=True)
@no_type_check
def _measure_all(
    exact: np.ndarray,
    first: int,
    upper: np.ndarray,
    candidate: np.ndarray,
    lower: np.ndarray,
    n_candidates: np.ndarray,
    square: np.ndarray,
    index: np.ndarray,
) -> None:
    for i in range(len(upper)):
        kept = _drop(upper[i, -1], candidate[i, : n_candidates[i]], lower[i])
        _measure(exact, first + i, candidate[i, :kept], square[i], index[i])


@njit(nogil=True, cache=True)
@no_type_check
def _measure(exact: np.ndarray, x: int, candidate: np.ndarray, square: np.ndarray, index: np.ndarray) -> None:
    for y in candidate:
        _insert(_squared_distance(exact[x], exact[y]), y, square, index)


@njit(nogil=True, cache=True, fastmath=True)
@no_type_check
def _lowest(products: np.ndarray, slack: float, radius: np.ndarray, square_norm: np.ndarray) -> float:
    """Return a lower bound of the lower ends of a few pairs: without a branch, so that it runs 16 pairs at once."""
    least = np.float32(np.inf)
    for j in range(len(products)):
        width = slack * radius[j] + ROUNDING * square_norm[j] + TINY
        least = min(least, square_norm[j] - np.float32(2) * products[j] - width)
    return least


@njit(nogil=True, cache=True, fastmath=True)
@no_type_check
def _squared_distance(x: np.ndarray, y: np.ndarray) -> float:
    total = 0.0
    for u in range(len(x)):
        step = np.float64(x[u]) - np.float64(y[u])
        total += step * step
    return total


@njit(nogil=True, cache=True)
@no_type_check
def _insert(value: float, y: int, values: np.ndarray, index: np.ndarray) -> None:
    """Keep the smallest values in ascending order; of equal ones the earlier row, which comes first, stays first."""
    at = len(values) - 1
    if value >= values[at]:
        return
    while at > 0 and values[at - 1] > value:
        values[at] = values[at - 1]
        if len(index):
            index[at] = index[at - 1]
        at -= 1
    values[at] = value
    if len(index):
        index[at] = y
