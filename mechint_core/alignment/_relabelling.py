"""What relabelling the conditions of one side does to the agreement of dissimilarity matrices (Mantel).

Relabelling leaves the mean, the variance, the ranks and the whitened length of a matrix as they are. So coordinates are
made once, and each relabelling π costs one gather and one dot product per entry:

    agreement(D, π E) = Σ_{i<=j} A_ij B_π(i)π(j)        A, B: the coordinates of D and E, as matrices

tau-a counts anew over ranks made once, bures turns roots of kernels made once. Where pairs are missing, which pairs two
matrices share changes with π, and every relabelling is a comparison of its own.

Source: [@mantel1967].
Cost: n² per relabelling and entry; n² log n for tau-a; n³ for bures.
Chunked over: relabellings.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import no_type_check

import numpy as np
from jaxtyping import Float, Int
from numba import njit

from mechint_core.alignment._comparisons import Comparison, bures_of_roots, compare, coordinates, kernel_root
from mechint_core.alignment._distances import n_of_pairs, square_form
from mechint_core.alignment._kendall import dense_ranks, tau_a

Relabelling = Callable[[np.ndarray], np.ndarray]
"""Permutations (draw, condition) -> agreements (draw, rdm, other_rdm). Pickles."""


def relabelling(
    first: Float[np.ndarray, "rdm pair"], second: Float[np.ndarray, "other_rdm pair"], comparison: Comparison
) -> Relabelling:
    """Prepare both sides once; the answer relabels the conditions of the second."""
    if np.isnan(first).any() or np.isnan(second).any():
        return _Anew(first, [square_form(each) for each in second], comparison)
    if comparison == "tau-a":
        ranks = [square_form(dense_ranks(each).astype(np.float64)) for each in second]
        return _Recount([dense_ranks(each) for each in first], ranks)
    if comparison == "bures":
        roots = [[kernel_root(square_form(each)) for each in matrices] for matrices in (first, second)]
        return _Turn(roots[0], roots[1])
    a, b = (
        np.array([_square(each, n_of_pairs(first.shape[1])) for each in coordinates(matrices, comparison)])
        for matrices in (first, second)
    )
    return Products(a, b)


def _square(coordinate: np.ndarray, n: int) -> np.ndarray:
    """Return the symmetric matrix with these pairs and, where there are more numbers than pairs, this diagonal."""
    n_pairs = n * (n - 1) // 2
    square = square_form(coordinate[:n_pairs])
    if len(coordinate) > n_pairs:
        np.fill_diagonal(square, coordinate[n_pairs:])
    return square


@dataclass(frozen=True, slots=True)
class Products:
    """Σ_{i<=j} A_ij B_π(i)π(j), for each A, B and π."""

    first: Float[np.ndarray, "rdm row column"]
    second: Float[np.ndarray, "other_rdm row column"]

    def __call__(self, permutations: Int[np.ndarray, "draw condition"]) -> Float[np.ndarray, "draw rdm other_rdm"]:
        sums = np.zeros((len(permutations), len(self.first), len(self.second)))
        _relabelled_products(self.first, self.second, permutations, sums)
        return sums


@no_type_check  # numba compiles this function: nothing may wrap it
@njit(cache=True, nogil=True)
def _relabelled_products(first, second, permutations, sums):
    """Gather a relabelled row once, then multiply it with that row of every first matrix.

    Four partial sums, so that an addition need not wait for the one before: 200 conditions take 0.6 of the time.
    """
    n = first.shape[1]
    gathered = np.empty(n)
    for draw in range(len(permutations)):
        order = permutations[draw]
        for right in range(len(second)):
            for i in range(n):
                row = second[right, order[i]]
                for j in range(i, n):
                    gathered[j] = row[order[j]]
                last = i + (n - i) // 4 * 4
                for left in range(len(first)):
                    weights = first[left, i]
                    a = b = c = d = 0.0
                    for j in range(i, last, 4):
                        a += weights[j] * gathered[j]
                        b += weights[j + 1] * gathered[j + 1]
                        c += weights[j + 2] * gathered[j + 2]
                        d += weights[j + 3] * gathered[j + 3]
                    for j in range(last, n):
                        a += weights[j] * gathered[j]
                    sums[draw, left, right] += (a + b) + (c + d)


@dataclass(frozen=True, slots=True)
class _Recount:
    """tau-a of ranks, the second relabelled."""

    first: Sequence[Int[np.ndarray, "pair"]]
    second: Sequence[Float[np.ndarray, "row column"]]
    """Dense ranks, as matrices."""

    def __call__(self, permutations: np.ndarray) -> np.ndarray:
        upper = np.triu_indices(len(self.second[0]), 1)
        answer = np.empty((len(permutations), len(self.first), len(self.second)))
        for order, row in zip(permutations, answer, strict=True):
            relabelled = [each[np.ix_(order, order)][upper].astype(np.int64) for each in self.second]
            row[:] = [[tau_a(ranks, others) for others in relabelled] for ranks in self.first]
        return answer


@dataclass(frozen=True, slots=True)
class _Turn:
    """Bures similarity of kernels given by their roots, the second's rows relabelled."""

    first: Sequence[np.ndarray]
    second: Sequence[np.ndarray]

    def __call__(self, permutations: np.ndarray) -> np.ndarray:
        return np.array(
            [
                [[bures_of_roots(root, other[order]) for other in self.second] for root in self.first]
                for order in permutations
            ]
        ).reshape(len(permutations), len(self.first), len(self.second))


@dataclass(frozen=True, slots=True)
class _Anew:
    """A comparison of its own for each relabelling: some pairs are missing."""

    first: np.ndarray
    second: Sequence[np.ndarray]
    comparison: Comparison

    def __call__(self, permutations: np.ndarray) -> np.ndarray:
        upper = np.triu_indices(len(self.second[0]), 1)
        answer = np.empty((len(permutations), len(self.first), len(self.second)))
        for order, row in zip(permutations, answer, strict=True):
            relabelled = np.array([each[np.ix_(order, order)][upper] for each in self.second])
            row[:] = compare(self.first, relabelled, self.comparison)
        return answer
