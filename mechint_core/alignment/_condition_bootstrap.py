"""What drawing conditions with replacement does to the agreement of dissimilarity matrices.

Condition i is drawn w_i times: pair (i, j) counts w_i w_j times, pairs of copies of one condition never. Comparisons
that are inner products are so in every draw: see `_drawn_products`. The others:

    tau-a       concordance, with the multiplicities of pairs as weights; sorted once
    bures       kernels of the drawn conditions, each weighed by its multiplicity (copies are at distance 0)
    whitened    where pairs are missing: the comparison of the repeated conditions itself

A draw without variance, or, whitened, with more than half of its conditions the same one, has no agreement: NaN.

Source: [@nili2014] (the bootstrap), [@schutt2023] (leaving out pairs of copies).
Cost: a pass over the pairs per draw for tau-a; n³ for bures, and for whitening with missing pairs.
Chunked over: draws.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from mechint_core.alignment._comparisons import (
    WHITENED,
    Comparison,
    bures_of_roots,
    compare,
    kernel_root,
    missing_patterns,
)
from mechint_core.alignment._distances import n_of_pairs, square_form
from mechint_core.alignment._drawn_products import drawn_products, is_drawn
from mechint_core.alignment._kendall import dense_ranks, weighted_tau_a
from mechint_core.alignment._ranks import Sorted
from mechint_core.errors import DegenerateInputError
from mechint_core.parallel import LANES, map_parallel


def bootstrap_agreements(
    first: Float[np.ndarray, "rdm pair"],
    second: Float[np.ndarray, "other_rdm pair"],
    comparison: Comparison,
    *,
    counts: Int[np.ndarray, "condition draw"],
) -> Float[np.ndarray, "draw rdm other_rdm"]:
    """Return every agreement in each draw, where condition i occurs `counts[i]` times."""
    if is_drawn(comparison) and not (comparison in WHITENED and np.isnan(np.concatenate([first, second])).any()):
        left, right = np.divmod(np.arange(len(first) * len(second)), len(second))
        found = drawn_products(np.concatenate([first, second]), left, right + len(first), comparison, counts=counts)
        return np.clip(found.agreement(), -1, 1).reshape(-1, len(first), len(second))
    answer = np.empty((counts.shape[1], len(first), len(second)))
    for rows, kept_first in missing_patterns(first):
        for columns, kept_second in missing_patterns(second):
            resample = _resampling(first[rows], second[columns], kept_first & kept_second, comparison)
            drawn = np.concatenate(map_parallel(resample, np.array_split(counts.T, LANES)))
            answer[:, rows[:, None], columns] = drawn
    return answer


def _resampling(
    first: np.ndarray, second: np.ndarray, keep: np.ndarray, comparison: Comparison
) -> Callable[[np.ndarray], np.ndarray]:
    """Return what resamples matrices that share the pairs in `keep`."""
    if comparison == "tau-a":
        return _Concordance.of(first, second, keep)
    if comparison != "bures":
        known = (np.where(keep, each, np.nan) for each in (first, second))
        squares = [[square_form(each) for each in matrices] for matrices in known]
        return _Repeated(squares[0], squares[1], comparison)
    if not keep.all():
        raise DegenerateInputError("dissimilarities must all be known for bures. Got NaN: leave those conditions out.")
    return _Bures([square_form(each) for each in first], [square_form(each) for each in second])


def quadratic_forms(
    weights: Float[np.ndarray, "condition draw"], condensed: Sequence[Float[np.ndarray, "pair"]]
) -> Float[np.ndarray, "rdm draw"]:
    """Return Σ_{i≠j} w_i w_j M_ij of every draw, for each M."""
    return np.array([np.einsum("id,id->d", weights, square_form(each) @ weights) for each in condensed])


@dataclass(frozen=True, slots=True)
class _Concordance:
    """Tau-a of pairs (i, j) that occur w_i w_j times, for each w."""

    first: Sequence[Sorted]
    second: Sequence[Int[np.ndarray, "pair"]]
    """Dense ranks, which the first matrices' are looked up from their runs."""
    i: np.ndarray
    j: np.ndarray

    @classmethod
    def of(cls, first: np.ndarray, second: np.ndarray, keep: Bool[np.ndarray, "pair"]) -> "_Concordance":
        """Sort the pairs that both sides have."""
        i, j = (each[keep] for each in np.triu_indices(n_of_pairs(len(keep)), 1))
        return cls([Sorted.of(each[keep]) for each in first], [dense_ranks(each[keep]) for each in second], i, j)

    def __call__(self, counts: np.ndarray) -> np.ndarray:
        drawn = ((each[self.i] * each[self.j]).astype(np.float64) for each in counts)
        agreed = [
            weighted_tau_a(each.run, ranks, weights, each.order)
            for weights in drawn
            for each in self.first
            for ranks in self.second
        ]
        return np.array(agreed).reshape(len(counts), len(self.first), len(self.second))


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
