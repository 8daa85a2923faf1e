"""Distances between two barcodes: bottleneck and Wasserstein, exact.

    d_q(D, E) = min over matchings ( sum |x - m(x)|^q )^(1/q),      d_inf: the largest |x - m(x)|

A matching pairs bars of one barcode with bars of the other, or with the nearest place on the diagonal, as if with a
bar of no length. Bars that never end are matched with one another only, in order of their births.

Moving every point of a cloud by at most r changes its barcode by at most 2 r in the bottleneck distance.

Source: [@cohensteiner2007] (the bottleneck distance, and its stability), [@hopcroft1973] (matchings).
Cost: for n bars in all, n^2 candidate distances and log n matchings, or one assignment of n^3.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import maximum_bipartite_matching

from mechint_core.errors import ConfigurationError, DegenerateInputError, ShapeError


@dataclass(frozen=True, slots=True)
class DiagramMatching:
    """The best matching of two barcodes."""

    distance: float
    first: Int[np.ndarray, "match"]
    """Bars of the first barcode that are matched with bars of the second."""
    second: Int[np.ndarray, "match"]
    """The bars they are matched with; every other bar goes to the diagonal."""


def diagram_distance(
    first: Float[np.ndarray, "_ 2"],
    second: Float[np.ndarray, "_ 2"],
    *,
    order: float = np.inf,
    ground: float = np.inf,
) -> float:
    """Return the distance between two barcodes of one homology dimension.

    Parameters
    ----------
    first, second
        Births and deaths; a death may be infinite. A barcode may be empty.
    order
        q: infinity for the bottleneck distance, 1 or more for Wasserstein. 2 weighs many small moves less than 1.
    ground
        How far two bars are apart: the larger of the moves of birth and death (infinity), or the Euclidean one (2).

    Returns
    -------
    float
        In units of the barcodes, at least 0; infinity if the numbers of bars that never end differ.

    Raises
    ------
    ShapeError
        If a barcode is not (bar, 2).
    DegenerateInputError
        If a birth is not finite, or a bar ends before it begins.
    ConfigurationError
        If `order` is below 1, or `ground` neither 2 nor infinity.

    Examples
    --------
    A bar that moves by 1 at its end, and one of length 2 that vanishes:

    >>> first, second = np.array([[0.0, 8.0], [3.0, 5.0]]), np.array([[0.0, 9.0]])
    >>> diagram_distance(first, second), diagram_distance(first, second, order=1)
    (1.0, 2.0)
    """
    if not np.isinf(order):
        return diagram_matching(first, second, order=order, ground=ground).distance
    problem = _Problem.of(first, second, order, ground)
    return max(_bottleneck(problem.cost, problem.n), float(problem.endless_moves.max(initial=0.0)))


def diagram_matching(
    first: Float[np.ndarray, "_ 2"],
    second: Float[np.ndarray, "_ 2"],
    *,
    order: float = 2.0,
    ground: float = np.inf,
) -> DiagramMatching:
    """Return the best matching of two barcodes of one homology dimension; see `diagram_distance`."""
    problem = _Problem.of(first, second, order, ground)
    n, m = problem.n, len(problem.cost) - problem.n
    rows, columns = np.arange(n + m), _assigned(problem.cost, n, order)
    both = (rows < n) & (columns < m) & bool(np.isfinite(problem.endless_moves).all())
    return DiagramMatching(
        _total(np.append(problem.cost[rows, columns], problem.endless_moves), order),
        np.append(problem.finite[0][rows[both]], problem.endless[0]),
        np.append(problem.finite[1][columns[both]], problem.endless[1]),
    )


@dataclass(frozen=True, slots=True)
class _Problem:
    """What there is to match."""

    finite: tuple[Int[np.ndarray, "_"], Int[np.ndarray, "_"]]
    """Places of the bars that end."""
    endless: tuple[Int[np.ndarray, "_"], Int[np.ndarray, "_"]]
    """Places of those that do not, by birth; none where their numbers differ."""
    endless_moves: Float[np.ndarray, "_"]
    """How far births of endless bars are apart; one infinity where their numbers differ."""
    cost: Float[np.ndarray, "place place"]
    n: int
    """Bars of the first barcode that end: the first rows of the costs."""

    @classmethod
    def of(
        cls, first: Float[np.ndarray, "_ 2"], second: Float[np.ndarray, "_ 2"], order: float, ground: float
    ) -> "_Problem":
        if not order >= 1 or ground not in (2, np.inf):
            raise ConfigurationError(f"order must be at least 1, and ground 2 or infinity. Got {order} and {ground}.")
        one, other = _checked(first), _checked(second)
        (finite, endless), (other_finite, other_endless) = _split(one), _split(other)
        cost = _costs(one[finite], other[other_finite], ground)
        pair = (finite, other_finite)
        if len(endless) != len(other_endless):
            none = np.empty(0, dtype=np.int64)
            return cls(pair, (none, none), np.array([np.inf]), cost, len(finite))
        moves = np.abs(one[endless, 0] - other[other_endless, 0])
        return cls(pair, (endless, other_endless), moves, cost, len(finite))


def _checked(bars: Float[np.ndarray, "_ 2"]) -> Float[np.ndarray, "_ 2"]:
    if bars.ndim != 2 or bars.shape[1] != 2:
        raise ShapeError(f"a barcode must be (bar, 2). Got shape {bars.shape}.")
    n_bad = int(np.sum(~np.isfinite(bars[:, 0]) | ~(bars[:, 1] >= bars[:, 0])))
    if n_bad:
        raise DegenerateInputError(f"bars must begin at a finite scale and end no earlier. Got {n_bad} that do not.")
    return bars.astype(np.float64)


def _split(bars: Float[np.ndarray, "_ 2"]) -> tuple[Int[np.ndarray, "_"], Int[np.ndarray, "_"]]:
    """Return the places of the bars that end, and of those that do not, by birth."""
    endless = np.flatnonzero(np.isinf(bars[:, 1]))
    return np.flatnonzero(np.isfinite(bars[:, 1])), endless[np.argsort(bars[endless, 0], kind="stable")]


def _costs(
    first: Float[np.ndarray, "_ 2"], second: Float[np.ndarray, "_ 2"], ground: float
) -> Float[np.ndarray, "place place"]:
    """Return the costs of matching n bars and m diagonal places with m bars and n diagonal places."""
    n, m = len(first), len(second)
    cost = np.zeros((n + m, m + n))
    moves = np.abs(first[:, None] - second[None])
    cost[:n, :m] = moves.max(axis=-1, initial=0.0) if np.isinf(ground) else np.hypot(moves[..., 0], moves[..., 1])
    to_diagonal = 2.0 if np.isinf(ground) else np.sqrt(2.0)
    cost[:n, m:] = ((first[:, 1] - first[:, 0]) / to_diagonal)[:, None]
    cost[n:, :m] = (second[:, 1] - second[:, 0]) / to_diagonal
    return cost


def _assigned(cost: Float[np.ndarray, "place place"], n: int, order: float) -> Int[np.ndarray, "place"]:
    """Return the column of each row in the best matching."""
    if np.isinf(order):
        return _matching(cost <= _bottleneck(cost, n))
    return linear_sum_assignment((cost / (cost.max(initial=0.0) or 1.0)) ** order)[1]


def _bottleneck(cost: Float[np.ndarray, "place place"], n: int) -> float:
    """Search the least cost at which a perfect matching exists among the costs themselves."""
    if not len(cost):
        return 0.0
    least = max(cost.min(axis=0).max(), cost.min(axis=1).max())  # every bar must go somewhere
    candidates = np.unique(cost[cost >= least])
    low, high = 0, len(candidates) - 1  # the largest always will do
    while low < high:
        middle = (low + high) // 2
        if _covers(cost, n, candidates[middle]):
            high = middle
        else:
            low = middle + 1
    return float(candidates[low])


def _covers(cost: Float[np.ndarray, "place place"], n: int, reach: float) -> bool:
    """Whether bars can be matched within `reach` so that those too long for the diagonal all have a partner.

    Matchings that cover the long bars of one side, and of the other, join to one that covers both (Mendelsohn and
    Dulmage): two small sparse problems in place of one with all the diagonal places. For 300 bars in both barcodes
    1.7 s become 0.05 s.
    """
    m = len(cost) - n
    near = cost[:n, :m] <= reach
    first = near[cost[:n, m:].min(axis=1, initial=np.inf) > reach]
    second = near[:, cost[n:, :m].min(axis=0, initial=np.inf) > reach].T
    return bool(np.all(_matching(first) >= 0) and np.all(_matching(second) >= 0))


def _matching(allowed: Bool[np.ndarray, "one other"]) -> Int[np.ndarray, "one"]:
    """Return the column of each row in a largest matching; -1 where a row has none."""
    return maximum_bipartite_matching(csr_matrix(allowed), perm_type="column").astype(np.int64)


def _total(moves: Float[np.ndarray, "_"], order: float) -> float:
    largest = float(moves.max(initial=0.0))
    if np.isinf(order) or np.isinf(largest) or largest == 0:
        return largest
    return largest * float(np.sum((moves / largest) ** order)) ** (1 / order)
