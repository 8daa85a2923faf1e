"""The nearest neighbours of every row, exactly: one graph for dimension, curvature, geodesics and mutual information.

    |x - y|^2 = |x|^2 + |y|^2 - 2 x y        the product x y in float32, block by block, once for x, y and y, x
    |fl(x y) - x y| <= c |x| |y|             c = 2 (gamma_D + 3 u), u = 2^-24, gamma_D = D u / (1 - D u) [@higham2002]

The bound turns each product into an interval for the distance. A row is a candidate if the lower end of its interval
is not above the k-th smallest upper end; the distances of the candidates are then taken from differences in float64.
So the neighbours are exact, whatever the blocks and the workers, and near neighbours do not cancel to 0. Ties go to
the row that comes first. Rows that are equal are one node of the graph, and counted.

Blocks meet in rounds, as teams do: in round s, block b meets block b + s, around the circle. So each round begins with
what all before have found, all of its meetings run at once, and after half of the circle everyone has met.

Source: [@higham2002].
Cost: n^2 D float32 operations, in products of `BLOCK_ROWS` squared.
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
"""A product of two blocks is 4 MB: it is scanned before it leaves the cache."""
NOBODY: Final = 2**62
"""The index of a neighbour that is not found yet: it comes after all others."""
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
    rows = _Rows.of(checked[first] if len(first) < len(checked) else checked)
    found = _meet_all(rows, n_neighbours, block_rows)
    if not (found.square.min() > 0 and np.isfinite(found.square.max())):
        raise DegenerateInputError(
            "points must lie where squared distances neither vanish nor overflow. Got distances outside of 1e-150 to "
            "1e150: rescale the points."
        )
    return NeighbourGraph(found.index, np.sqrt(found.square), first, row)


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
class _Rows:
    """Distinct rows as they are, and centred in float32 with what bounds the error of their products."""

    exact: np.ndarray
    rough: Float[np.ndarray, "row unit"]
    square: Float[np.ndarray, "row"]
    radius: Float[np.ndarray, "row"]
    bound: float
    """Of the error of 2 x y, relative to |x| |y|."""
    first: int = 0
    """The place of the first of them among all."""

    @classmethod
    def of(cls, points: np.ndarray) -> "_Rows":
        """Centre, and divide by the mean radius so that nothing over- or underflows."""
        centred = points - points.mean(axis=0, dtype=np.float64)
        centred /= np.abs(centred).max()
        radius = np.sqrt(np.einsum("ij,ij->i", centred, centred))
        centred /= radius.mean()
        radius = (radius / radius.mean()).astype(np.float32)
        units = points.shape[1] * UNIT_ROUNDOFF
        bound = 2 * (units / (1 - units) + 3 * UNIT_ROUNDOFF) + 16 * UNIT_ROUNDOFF  # 16: the ends, in float32 too
        return cls(points, centred.astype(np.float32), radius**2, radius, bound)

    def __getitem__(self, part: slice) -> "_Rows":
        return _Rows(self.exact[part], self.rough[part], self.square[part], self.radius[part], self.bound, part.start)


@dataclass(frozen=True, slots=True)
class _Nearest:
    """The nearest of some rows so far."""

    upper: Float[np.ndarray, "row neighbour"]
    """The smallest upper ends of intervals, ascending."""
    square: Float[np.ndarray, "row neighbour"]
    index: Int[np.ndarray, "row neighbour"]

    @classmethod
    def nobody(cls, n_rows: int, n_neighbours: int) -> "_Nearest":
        """Return what is known before anyone is met."""
        shape = (n_rows, n_neighbours)
        return cls(np.full(shape, np.inf, dtype=np.float32), np.full(shape, np.inf), np.full(shape, NOBODY))

    @property
    def limit(self) -> Float[np.ndarray, "row"]:
        """Return the k-th smallest upper end: whoever lies beyond it is no neighbour."""
        return self.upper[:, -1]

    def __getitem__(self, part: slice) -> "_Nearest":
        return _Nearest(self.upper[part], self.square[part], self.index[part])

    def keep(self, others: "_Nearest") -> None:
        """Keep the nearest of these and `others`."""
        _merge(self.upper, self.square, self.index, others.upper, others.square, others.index)


def _meet_all(rows: _Rows, n_neighbours: int, block_rows: int) -> _Nearest:
    """Let every block meet every other, and itself."""
    n_rows = len(rows.exact)
    nearest = _Nearest.nobody(n_rows, n_neighbours)
    blocks = [slice(start, min(start + block_rows, n_rows)) for start in range(0, n_rows, block_rows)]
    for step in range(len(blocks) // 2 + 1):
        halfway = step > 0 and 2 * step == len(blocks)  # then b meets b + s and b + s meets b
        here = blocks[: len(blocks) // 2] if halfway else blocks
        pairs = list(zip(here, blocks[step:] + blocks[:step], strict=False))
        meetings = [(rows[a], rows[b], nearest[a].limit, nearest[b].limit) for a, b in pairs]
        for pair, found in zip(pairs, map_parallel(partial(_meet, n_neighbours), meetings), strict=True):
            for part, those in zip(pair, found, strict=False):
                nearest[part].keep(those)
    return nearest


def _meet(n_neighbours: int, meeting: tuple[_Rows, _Rows, np.ndarray, np.ndarray]) -> list[_Nearest]:
    """Return the nearest of the rows of one block in the other, and if they are two, also the reverse."""
    these, those, limit, other_limit = meeting
    products = these.rough @ those.rough.T
    found = [_scanned(products, these, those, limit, n_neighbours)]
    if these.first != those.first:
        found.append(_scanned(products.T, those, these, other_limit, n_neighbours))
    return found


def _scanned(products: np.ndarray, rows: _Rows, others: _Rows, limit: np.ndarray, n_neighbours: int) -> _Nearest:
    """Return who among `others` is nearest to each row, and within its limit."""
    found = _Nearest.nobody(len(products), n_neighbours)
    slack, offset = np.float32(rows.bound) * rows.radius, rows.first - others.first
    ends = slack, others.radius, others.square, limit
    _scan(products, *ends, rows.exact, others.exact, offset, found.upper, found.square, found.index)
    found.index[found.index < NOBODY] += others.first
    return found


@njit(nogil=True, cache=True)
@no_type_check  # numba compiles this function: nothing may wrap it
def _scan(
    products: np.ndarray,
    slack: np.ndarray,
    radius: np.ndarray,
    square_norm: np.ndarray,
    limit: np.ndarray,
    rows: np.ndarray,
    others: np.ndarray,
    offset: int,
    upper: np.ndarray,
    square: np.ndarray,
    index: np.ndarray,
) -> None:
    """Note who has an interval that reaches below the k-th smallest upper end so far, and measure who still does."""
    n_rows, n_others = products.shape
    margin = ROUNDING * square_norm + TINY
    least = np.empty((-(-n_others // STRIDE), STRIDE), dtype=np.float32)
    candidate, lower = np.empty(n_others, dtype=np.int64), np.empty(n_others, dtype=np.float32)
    for top in range(0, n_rows, STRIDE):
        bottom = min(top + STRIDE, n_rows)
        for s in range(len(least)):
            a, b = s * STRIDE, min((s + 1) * STRIDE, n_others)
            _lowest(products[top:bottom, a:b], slack[top:bottom], radius[a:b], square_norm[a:b], margin[a:b], least[s])
        for i in range(top, bottom):
            most, n_candidates = limit[i], 0
            for s in range(len(least)):
                if least[s, i - top] > most:
                    continue
                for j in range(s * STRIDE, min((s + 1) * STRIDE, n_others)):
                    width = slack[i] * radius[j] + margin[j]
                    middle = square_norm[j] - np.float32(2) * products[i, j]
                    if middle - width > most or j == offset + i:
                        continue
                    _insert(middle + width, 0, upper[i], index[i, :0])
                    most = min(most, upper[i, -1])
                    candidate[n_candidates], lower[n_candidates] = j, middle - width
                    n_candidates += 1
            for c in range(n_candidates):
                if lower[c] <= most:
                    y = candidate[c]
                    _insert(_squared_distance(rows[i], others[y]), y, square[i], index[i])


@njit(nogil=True, cache=True, fastmath=True)
@no_type_check
def _lowest(
    products: np.ndarray,
    slack: np.ndarray,
    radius: np.ndarray,
    square_norm: np.ndarray,
    margin: np.ndarray,
    least: np.ndarray,
) -> None:
    """Write the least lower end of each row: without a branch, and along memory, so that 16 pairs run at once."""
    n_rows, n_others = products.shape
    least[:] = np.float32(np.inf)
    if products.strides[1] == products.itemsize:
        for i in range(n_rows):
            for j in range(n_others):
                width = slack[i] * radius[j] + margin[j]
                least[i] = min(least[i], square_norm[j] - np.float32(2) * products[i, j] - width)
    else:
        for j in range(n_others):
            for i in range(n_rows):
                width = slack[i] * radius[j] + margin[j]
                least[i] = min(least[i], square_norm[j] - np.float32(2) * products[i, j] - width)


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
    """Keep the smallest values in ascending order, and whose they are; of equal ones the earlier row comes first."""
    named = len(index) > 0
    at = len(values) - 1
    if value > values[at] or (value == values[at] and not (named and y < index[at])):
        return
    while at > 0 and (values[at - 1] > value or (named and values[at - 1] == value and index[at - 1] > y)):
        values[at] = values[at - 1]
        if named:
            index[at] = index[at - 1]
        at -= 1
    values[at] = value
    if named:
        index[at] = y


@njit(nogil=True, cache=True)
@no_type_check
def _merge(
    upper: np.ndarray,
    square: np.ndarray,
    index: np.ndarray,
    other_upper: np.ndarray,
    other_square: np.ndarray,
    other_index: np.ndarray,
) -> None:
    for i in range(len(square)):
        for k in range(other_square.shape[1]):
            if other_upper[i, k] > upper[i, -1] and other_square[i, k] > square[i, -1]:
                break
            _insert(other_upper[i, k], 0, upper[i], index[i, :0])
            _insert(other_square[i, k], other_index[i, k], square[i], index[i])
