"""Inner products over pairs of conditions of several dissimilarity matrices, as conditions are drawn or relabelled.

Regression and partial correlation are functions of these few numbers. Row 0 is the constant, whose products are sums.
Pairs that are missing hold 0 everywhere, and the constant is then 1 on the others alone.

    drawn        G_ab = Σ_{i≠j} w_i w_j A_ij B_ij / 2      condition i drawn w_i times
    relabelled   the last matrix moves: Σ_{i<j} A_ij E_π(i)π(j), over the pairs that both sides have

Source: [@nili2014] (drawing conditions), [@mantel1967] (relabelling), and the identities above.
Cost: n² per product and draw.
Chunked over: draws.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from mechint_core.alignment._condition_bootstrap import quadratic_forms
from mechint_core.alignment._distances import square_form
from mechint_core.alignment._ranks import Sorted
from mechint_core.alignment._relabelling import Products
from mechint_core.parallel import LANES, map_parallel

ROUNDING = 1e-12
"""A sum of squares around the mean below this share of that around 0 is rounding."""


def drawn_grams(
    matrices: Float[np.ndarray, "rdm pair"],
    keep: Bool[np.ndarray, "pair"],
    counts: Int[np.ndarray, "condition draw"],
    *,
    ranks: bool,
) -> Float[np.ndarray, "draw row row"]:
    """Return the products of the constant and the matrices, or of their ranks in each draw."""
    if ranks:
        i, j = (each[keep] for each in np.triu_indices(len(counts), 1))
        ranked = _RankGram([Sorted.of(each[keep]) for each in matrices], i, j)
        return np.concatenate(map_parallel(ranked, np.array_split(counts.T, LANES)))
    rows, weights = with_constant(matrices, keep), counts.astype(np.float64)
    grams = np.empty((counts.shape[1], len(rows), len(rows)))
    for a in range(len(rows)):
        grams[:, a, a:] = quadratic_forms(weights, list(rows[a] * rows[a:])).T / 2
        grams[:, a:, a] = grams[:, a, a:]
    return grams


def with_constant(
    matrices: Float[np.ndarray, "rdm pair"], keep: Bool[np.ndarray, "pair"]
) -> Float[np.ndarray, "row pair"]:
    """Put the constant first, and 0 where pairs are missing."""
    return np.where(keep, np.concatenate([np.ones((1, matrices.shape[1])), matrices]), 0.0)


@dataclass(frozen=True, slots=True)
class _RankGram:
    """Products of the mid-ranks of pairs that occur w_i w_j times, for each w."""

    matrices: list[Sorted]
    i: np.ndarray
    j: np.ndarray

    def __call__(self, counts: np.ndarray) -> np.ndarray:
        size = len(self.matrices) + 1
        return np.array([self._gram(each) for each in counts]).reshape(len(counts), size, size)

    def _gram(self, counts: np.ndarray) -> np.ndarray:
        weights = (counts[self.i] * counts[self.j]).astype(np.float64)
        middle = (weights.sum() + 1) / 2
        rows = np.array([np.ones(len(weights)), *(each.ranks(weights) - middle for each in self.matrices)])
        return (rows * weights) @ rows.T


@dataclass(frozen=True, slots=True)
class MovingGram:
    """Products of fixed rows, constant first, with one more that is relabelled."""

    fixed: Float[np.ndarray, "row pair"]
    moving: Float[np.ndarray, "pair"]
    keep: Bool[np.ndarray, "pair"]

    def __call__(self, permutations: Int[np.ndarray, "draw condition"]) -> Float[np.ndarray, "draw row row"]:
        """Return the products over the pairs that neither side misses, the moving row last."""
        size = len(self.fixed)
        grams = np.empty((len(permutations), size + 1, size + 1))
        grams[:, size, :size] = self._products(self.fixed, self.moving, permutations)
        grams[:, :size, size] = grams[:, size, :size]
        if self.keep.all():
            grams[:, :size, :size] = self.fixed @ self.fixed.T
            grams[:, size, size] = self.moving @ self.moving
            return grams
        grams[:, size, size] = self._products(self.fixed[:1], self.moving**2, permutations)[:, 0]
        a, b = np.triu_indices(size)
        shared = self._products(self.fixed[a] * self.fixed[b], self.keep.astype(np.float64), permutations)
        grams[:, a, b] = shared
        grams[:, b, a] = shared
        return grams

    def _products(self, fixed: np.ndarray, moving: np.ndarray, permutations: np.ndarray) -> np.ndarray:
        squares = np.array([square_form(each) for each in fixed])
        return Products(squares, square_form(moving)[None])(permutations)[:, :, 0]


def centred(grams: Float[np.ndarray, "*draw row row"]) -> Float[np.ndarray, "*draw column column"]:
    """Take the means out: products of all but the constant. A matrix without variance has NaN with itself."""
    first, raw = grams[..., 1:, :1], np.diagonal(grams, axis1=-2, axis2=-1)[..., 1:]
    with np.errstate(invalid="ignore", divide="ignore"):  # one condition drawn n times: no pair, NaN
        products = grams[..., 1:, 1:] - first * grams[..., :1, 1:] / grams[..., :1, :1]
    at = np.arange(raw.shape[-1])
    squares = products[..., at, at]
    products[..., at, at] = np.where(squares > ROUNDING * raw, squares, np.nan)
    return products
