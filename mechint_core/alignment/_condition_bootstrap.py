"""What drawing conditions with replacement does to the agreement of dissimilarity matrices.

Condition i is drawn w_i times: pair (i, j) counts w_i w_j times, pairs of copies of one condition never. So every sum
over pairs is a quadratic form wᵀ M w, and all draws are a few matrix products:

    pearson, cosine   wᵀ (A∘B) w, wᵀ A w, ...
    whitened          dᵀ V⁻¹ e = wᵀ (A∘B) w + 2 Σ_i w_i u_i (A w)_i,  A = -D/2, B = -E/2,  u = (b - T) / c with
                      b = -B w,  c_i = n + 2 - 2 w_i,  T = Σ (w b / c) / (1 + Σ w / c)
    ranks             sorted once; mid-ranks, or concordance, with the multiplicities as weights
    bures             kernels of the drawn conditions, each weighed by its multiplicity (copies are at distance 0)

u are the means that whitening takes out of the kernel of the drawn conditions. A draw without variance, or, whitened,
with more than half of its conditions the same one, has no agreement: NaN.

Source: [@nili2014] (the bootstrap), [@schutt2023] (leaving out pairs of copies), and the identities above.
Cost: a few n² per draw and entry; a pass over the pairs for ranks; n³ for bures, and for whitening with missing pairs.
Chunked over: draws.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from mechint_core.alignment._comparisons import (
    RANKED,
    WHITENED,
    Comparison,
    bures_of_roots,
    compare,
    kernel_root,
    missing_patterns,
)
from mechint_core.alignment._distances import n_of_pairs, square_form
from mechint_core.alignment._kendall import dense_ranks, weighted_tau_a
from mechint_core.alignment._ranks import Sorted
from mechint_core.errors import DegenerateInputError
from mechint_core.parallel import LANES, map_parallel

ROUNDING = 1e-12
"""A sum of squares around the mean below this share of that around 0 is rounding."""


def bootstrap_agreements(
    first: Float[np.ndarray, "rdm pair"],
    second: Float[np.ndarray, "other_rdm pair"],
    comparison: Comparison,
    *,
    counts: Int[np.ndarray, "condition draw"],
) -> Float[np.ndarray, "draw rdm other_rdm"]:
    """Return every agreement in each draw, where condition i occurs `counts[i]` times."""
    answer = np.empty((counts.shape[1], len(first), len(second)))
    for rows, kept_first in missing_patterns(first):
        for columns, kept_second in missing_patterns(second):
            drawn = _draws(first[rows], second[columns], kept_first & kept_second, comparison, counts)
            answer[:, rows[:, None], columns] = drawn
    return answer


def _draws(
    first: np.ndarray, second: np.ndarray, keep: np.ndarray, comparison: Comparison, counts: np.ndarray
) -> np.ndarray:
    """Resample matrices that share the pairs in `keep`."""
    if comparison in ("pearson", "cosine"):
        return _quadratic(first, second, keep, counts, centre=comparison == "pearson")
    if comparison in WHITENED and keep.all():
        return _whitened(first, second, counts, centre=comparison == "whitened correlation")
    resample: Callable[[np.ndarray], np.ndarray]
    if comparison in RANKED:
        resample = _Ranked.of(first, second, keep, comparison)
    elif comparison in WHITENED:
        known = (np.where(keep, each, np.nan) for each in (first, second))
        squares = [[square_form(each) for each in matrices] for matrices in known]
        resample = _Repeated(squares[0], squares[1], comparison)
    elif keep.all():
        resample = _Bures([square_form(each) for each in first], [square_form(each) for each in second])
    else:
        raise DegenerateInputError("dissimilarities must all be known for bures. Got NaN: leave those conditions out.")
    return np.concatenate(map_parallel(resample, np.array_split(counts.T, LANES)))


def quadratic_forms(
    weights: Float[np.ndarray, "condition draw"], condensed: Sequence[Float[np.ndarray, "pair"]]
) -> Float[np.ndarray, "rdm draw"]:
    """Return Σ_{i≠j} w_i w_j M_ij of every draw, for each M."""
    return np.array([np.einsum("id,id->d", weights, square_form(each) @ weights) for each in condensed])


def _quadratic(
    first: np.ndarray, second: np.ndarray, keep: np.ndarray, counts: np.ndarray, *, centre: bool
) -> np.ndarray:
    weights = counts.astype(np.float64)
    a, b = (_shifted(each, keep, centre=centre) for each in (first, second))
    aa, bb = (quadratic_forms(weights, list(each**2)) for each in (a, b))
    ab = np.array([quadratic_forms(weights, list(each * b)) for each in a])
    if centre:
        sum_a, sum_b = (quadratic_forms(weights, list(each)) for each in (a, b))
        total = quadratic_forms(weights, [keep.astype(np.float64)])[0]
        with np.errstate(invalid="ignore", divide="ignore"):  # one condition drawn n times: no pair, NaN
            aa, bb = (_left(each, total_of**2 / total) for each, total_of in ((aa, sum_a), (bb, sum_b)))
            ab = ab - sum_a[:, None] * sum_b / total
    return np.moveaxis(_ratio(ab, aa[:, None] * bb), -1, 0)


def _left(squares: np.ndarray, of_mean: np.ndarray) -> np.ndarray:
    """Take the mean out of sums of squares; what rounding leaves of a draw without variance is 0."""
    left = squares - of_mean
    return np.where(left > ROUNDING * squares, left, 0.0)


def _shifted(condensed: np.ndarray, keep: np.ndarray, *, centre: bool) -> np.ndarray:
    """Take the mean of all pairs out, which cancels less than the mean of a draw alone; 0 where a pair is missing."""
    shift = condensed[:, keep].mean(axis=1, keepdims=True) if centre and keep.any() else 0.0
    return np.where(keep, condensed - shift, 0.0)


def _ratio(inner: np.ndarray, squared_norms: np.ndarray) -> np.ndarray:
    norms = np.sqrt(np.where(squared_norms > 0, squared_norms, np.nan))  # a draw without variance is left out later
    return np.clip(inner / norms, -1, 1)


def _whitened(first: np.ndarray, second: np.ndarray, counts: np.ndarray, *, centre: bool) -> np.ndarray:
    everything = np.ones(first.shape[1], np.bool_)
    a, b = (-_shifted(each, everything, centre=centre) / 2 for each in (first, second))
    forms = _WhiteForms(counts.astype(np.float64))
    of_a, of_b = ([forms.side(each) for each in matrices] for matrices in (a, b))
    aa, bb = (np.array([forms.product(each, each) for each in sides]) for sides in (of_a, of_b))
    ab = np.array([[forms.product(left, right) for right in of_b] for left in of_a])
    if centre:
        flat = forms.side(np.ones(first.shape[1]))  # what a constant dissimilarity adds
        af, bf = (np.array([forms.product(each, flat) for each in sides]) for sides in (of_a, of_b))
        mean_a, mean_b = (np.array([each.mean for each in sides]) for sides in (of_a, of_b))
        ff = forms.product(flat, flat)
        aa, bb = (
            _left(each, 2 * mean * of_flat - mean**2 * ff)
            for each, mean, of_flat in ((aa, mean_a, af), (bb, mean_b, bf))
        )
        ab = ab - mean_a[:, None] * bf - af[:, None] * mean_b + mean_a[:, None] * mean_b * ff
    return np.moveaxis(_ratio(ab, aa[:, None] * bb), -1, 0)


@dataclass(frozen=True, slots=True)
class _WhiteSide:
    """A = -D/2 in every draw: A w, the means u that whitening takes out, and the mean over pairs."""

    square: np.ndarray
    rows: np.ndarray
    u: np.ndarray
    mean: np.ndarray


@dataclass(frozen=True, slots=True)
class _WhiteForms:
    """dᵀ V⁻¹ e of the drawn conditions."""

    weights: Float[np.ndarray, "condition draw"]

    def side(self, condensed: np.ndarray) -> _WhiteSide:
        weights, square = self.weights, square_form(condensed)
        rows = square @ weights
        n = weights.sum(axis=0)
        c = n + 2 - 2 * weights
        c[:, np.any(c <= 0, axis=0)] = np.nan
        u = (-rows - np.sum(-weights * rows / c, axis=0) / (1 + np.sum(weights / c, axis=0))) / c
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = np.sum(weights * rows, axis=0) / (n**2 - np.sum(weights**2, axis=0))
        return _WhiteSide(square, rows, u, mean)

    def product(self, left: _WhiteSide, right: _WhiteSide) -> Float[np.ndarray, "draw"]:
        weights = self.weights
        pairs = np.einsum("id,id->d", weights, (left.square * right.square) @ weights)
        return pairs + 2 * np.einsum("id,id,id->d", weights, right.u, left.rows)


@dataclass(frozen=True, slots=True)
class _Ranked:
    """Agreement of the ranks of pairs (i, j) that occur w_i w_j times, for each w."""

    first: Sequence[Sorted]
    second: Sequence[Sorted]
    dense: Sequence[Int[np.ndarray, "pair"]]
    """Ranks of the second matrices for tau-a, which the first matrices' are looked up from their runs."""
    i: np.ndarray
    j: np.ndarray
    comparison: Comparison

    @classmethod
    def of(
        cls, first: np.ndarray, second: np.ndarray, keep: Bool[np.ndarray, "pair"], comparison: Comparison
    ) -> "_Ranked":
        """Sort the pairs that both sides have."""
        i, j = (each[keep] for each in np.triu_indices(n_of_pairs(len(keep)), 1))
        a, b = ([Sorted.of(each[keep]) for each in matrices] for matrices in (first, second))
        dense = [dense_ranks(each[keep]) for each in second] if comparison == "tau-a" else []
        return cls(a, b, dense, i, j, comparison)

    def __call__(self, counts: np.ndarray) -> np.ndarray:
        agree = self._tau_a if self.comparison == "tau-a" else self._rho
        return np.array([agree((each[self.i] * each[self.j]).astype(np.float64)) for each in counts]).reshape(
            len(counts), len(self.first), len(self.second)
        )

    def _tau_a(self, weights: np.ndarray) -> np.ndarray:
        return np.array(
            [[weighted_tau_a(each.run, ranks, weights, each.order) for ranks in self.dense] for each in self.first]
        )

    def _rho(self, weights: np.ndarray) -> np.ndarray:
        total = weights.sum()
        a, b = (
            np.array([each.ranks(weights) - (total + 1) / 2 for each in side]) for side in (self.first, self.second)
        )
        inner = (a * weights) @ b.T
        if self.comparison == "rho-a":
            return 12 * inner / (total**3 - total) if total > 1 else np.full_like(inner, np.nan)
        aa, bb = (np.sum(each**2 * weights, axis=1) for each in (a, b))
        return _ratio(inner, np.outer(aa, bb))


@dataclass(frozen=True, slots=True)
class _Bures:
    """Bures similarity of the kernels of the drawn conditions."""

    first: Sequence[np.ndarray]
    second: Sequence[np.ndarray]

    def __call__(self, counts: np.ndarray) -> np.ndarray:
        return np.array([self._agree(each) for each in counts]).reshape(len(counts), len(self.first), len(self.second))

    def _agree(self, counts: np.ndarray) -> list[list[float]]:
        drawn = np.flatnonzero(counts)
        a, b = (
            [kernel_root(each[np.ix_(drawn, drawn)], counts[drawn]) for each in side]
            for side in (self.first, self.second)
        )
        return [[bures_of_roots(root, other) for other in b] for root in a]


@dataclass(frozen=True, slots=True)
class _Repeated:
    """The comparison of the repeated conditions itself, where pairs are missing: those of copies are missing too."""

    first: Sequence[np.ndarray]
    second: Sequence[np.ndarray]
    comparison: Comparison

    def __call__(self, counts: np.ndarray) -> np.ndarray:
        return np.array([self._agree(each) for each in counts]).reshape(len(counts), len(self.first), len(self.second))

    def _agree(self, counts: np.ndarray) -> np.ndarray:
        drawn = np.repeat(np.arange(len(counts)), counts)
        i, j = np.triu_indices(len(drawn), 1)
        copies = drawn[i] == drawn[j]
        a, b = (
            np.array([np.where(copies, np.nan, each[drawn[i], drawn[j]]) for each in side])
            for side in (self.first, self.second)
        )
        return compare(a, b, self.comparison)
