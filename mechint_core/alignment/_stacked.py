"""Many dissimilarity matrices against one model, at once: every window of a recording, every centre of a searchlight.

    agreement    <a, b_k>                  a, b_k: ranked and centred as the comparison asks, of unit length
    null         <a relabelled by π, b_k>  one product of the relabelled models with all the matrices
    bootstrap    Σ_{i<j} w_i w_j M_ij      one product of the pairs' multiplicities with all the matrices

Relabelling the model, in place of each matrix, makes one gather serve them all, and gives every matrix the same
relabellings: the largest agreement of each draw is then the null of the largest agreement found. Comparing with it
controls the chance of any false discovery, whichever matrices do agree (the statistics of the others do not depend on
them), so that single windows and centres may be named.

Source: [@mantel1967] (relabelling), [@westfall1993] (the maximum), [@nili2014] (condition bootstrap).
Cost: n² p for a matrix; n² per matrix and draw of the null, 3 n² of the bootstrap (30 n² for Spearman).
Chunked over: matrices, and draws within them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal, get_args

import numpy as np
from jaxtyping import Float, Int

from mechint_core.alignment._comparisons import coordinates
from mechint_core.alignment._conditions import ROUNDING
from mechint_core.alignment._distances import PREPARE, n_of_pairs, scale_of, square_form
from mechint_core.alignment._ranks import Sorted
from mechint_core.errors import ConfigurationError, DegenerateInputError, ShapeError
from mechint_core.parallel import LANES

RowMetric = Literal["euclidean", "correlation", "cosine"]
"""Dissimilarities that are squared distances of prepared rows."""
DotComparison = Literal["pearson", "cosine", "spearman"]
"""Comparisons that are a dot product of vectors which relabelling only reorders."""

BLOCK_BYTES: Final = 32 * 2**20
"""Memory that the matrices compared in one call may take."""
DRAW_BYTES: Final = 8 * 2**20
"""Memory that the relabelled models, or the multiplicities of pairs, may take at once."""


def check_choices(metric: str, comparison: str) -> None:
    """Refuse a metric or a comparison that many matrices cannot be made or compared with at once."""
    for name, value, known in (
        ("metric", metric, get_args(RowMetric)),
        ("comparison", comparison, get_args(DotComparison)),
    ):
        if value not in known:
            raise ConfigurationError(f"{name} must be one of {known}. Got {value!r}.")


def check_conditions(x: np.ndarray, y: np.ndarray) -> None:
    """Refuse systems that do not share at least 4 conditions, or are not finite."""
    if x.ndim != 2 or 0 in (*x.shape, *y.shape):
        raise ShapeError(f"x must be (condition, unit), and y not be empty. Got shapes {x.shape} and {y.shape}.")
    if len(x) != len(y) or len(x) < 4:
        raise ShapeError(f"x and y must have the same conditions, at least 4. Got {len(x)} and {len(y)}.")
    for name, system in (("x", x), ("y", y)):
        if not np.all(np.isfinite(system)):
            raise DegenerateInputError(f"{name} must be finite. Got NaN or infinity: leave those values out first.")


def stacked_distances(
    rows: Float[np.ndarray, "condition rdm unit"], metric: RowMetric
) -> Float[np.ndarray, "rdm pair"]:
    """Return the dissimilarity of every pair of conditions in every matrix."""
    n, n_rdms, n_units = rows.shape
    prepared = PREPARE[metric](rows.reshape(-1, n_units)).reshape(rows.shape)
    prepared = prepared - prepared.mean(axis=0)  # a shift changes no distance, and cancels less
    each = prepared.transpose(1, 0, 2)
    inner = each @ each.transpose(0, 2, 1)
    squared = inner[:, np.arange(n), np.arange(n)]
    inner *= -2
    inner += squared[:, :, None]
    inner += squared[:, None, :]
    i, j = np.triu_indices(n, 1)
    distances = inner.reshape(n_rdms, -1).take(i * n + j, axis=1)
    distances *= scale_of(metric, n_units)
    return np.maximum(distances, 0, out=distances)


@dataclass(frozen=True, slots=True)
class ComparedModel:
    """One model's dissimilarities, and all that is drawn to judge how far others agree with them."""

    pairs: Float[np.ndarray, "pair"]
    standard: Float[np.ndarray, "pair"]
    """The dissimilarities in the coordinates of the comparison."""
    comparison: DotComparison
    permutations: Int[np.ndarray, "relabelling condition"]
    counts: Int[np.ndarray, "condition draw"]
    """How often each bootstrap draw holds each condition."""

    @classmethod
    def of(
        cls, pairs: np.ndarray, comparison: DotComparison, *, permutations: np.ndarray, counts: np.ndarray
    ) -> "ComparedModel":
        """Standardise the model once, for all that it is compared with."""
        standard = coordinates(pairs[None], comparison)[0]
        if np.isnan(standard[0]):
            raise DegenerateInputError("dissimilarities of x must differ. Got all pairs equally far apart.")
        return cls(pairs, standard, comparison, permutations, counts)

    def null(self, standard: Float[np.ndarray, "rdm pair"]) -> Float[np.ndarray, "relabelling rdm"]:
        """Return the agreement of each relabelled model with each standardised matrix."""
        found = np.empty((len(self.permutations), len(standard)))
        for draws, relabelled in self._relabelled():
            np.matmul(relabelled, standard.T, out=found[draws])
        return found

    def bootstrap(
        self, rdms: Float[np.ndarray, "rdm pair"], standard: Float[np.ndarray, "rdm pair"]
    ) -> Float[np.ndarray, "draw rdm"]:
        """Return the agreement of the model with each matrix, in each draw of conditions."""
        if self.comparison == "spearman":
            return self._bootstrap_ranks(rdms)
        a, b = self.standard, standard  # scale and shift leave the agreement of every draw as it is
        sums = self._weighted(np.concatenate([a * b, b * b, b, [a * a, a, np.ones_like(a)]]))
        ab, bb, sum_b = np.split(sums[:, :-3], 3, axis=1)
        aa, sum_a, total = sums[:, -3:].T[:, :, None]
        with np.errstate(invalid="ignore", divide="ignore"):  # a draw without pairs or variance is NaN
            if self.comparison == "pearson":
                ab, aa, bb = ab - sum_a * sum_b / total, aa - sum_a**2 / total, bb - sum_b**2 / total
            return np.clip(ab / np.sqrt(np.maximum(aa * bb, 0)), -1, 1)

    def _bootstrap_ranks(self, rdms: np.ndarray) -> np.ndarray:
        """Rank anew in every draw, with the pairs' multiplicities as weights."""
        i, j = np.triu_indices(len(self.counts), 1)
        model, others = Sorted.of(self.pairs), [Sorted.of(each) for each in rdms]
        found = np.empty((self.counts.shape[1], len(rdms)))
        for counts, row in zip(self.counts.T, found, strict=True):
            weights = (counts[i] * counts[j]).astype(np.float64)
            middle = (weights.sum() + 1) / 2
            a = model.ranks(weights) - middle
            weighted = weights * a
            for k, other in enumerate(others):
                b = other.ranks(weights) - middle
                squares = (weighted @ a) * (weights @ b**2)
                row[k] = weighted @ b / np.sqrt(squares) if squares > 0 else np.nan
        return np.clip(found, -1, 1)

    def _relabelled(self) -> Iterator[tuple[slice, np.ndarray]]:
        n = n_of_pairs(len(self.pairs))
        square, (i, j) = square_form(self.standard).ravel(), np.triu_indices(n, 1)
        for draws in _runs(len(self.permutations), max(1, DRAW_BYTES // (8 * len(i)))):
            orders = self.permutations[draws]
            yield draws, square.take(orders[:, i] * n + orders[:, j])

    def _weighted(self, values: np.ndarray) -> np.ndarray:
        """Return Σ_{i<j} w_i w_j M_ij of every draw and every M."""
        i, j = np.triu_indices(len(self.counts), 1)
        weights, found = self.counts.T.astype(np.float64), np.empty((self.counts.shape[1], len(values)))
        for draws in _runs(len(weights), max(1, DRAW_BYTES // (8 * len(i)))):
            np.matmul(weights[draws][:, i] * weights[draws][:, j], values.T, out=found[draws])
        return found


def blocks_of(n_rdms: int, n_pairs: int) -> list[slice]:
    """Cut the matrices into runs that fit in `BLOCK_BYTES`; the cuts do not depend on the workers."""
    fits = max(1, BLOCK_BYTES // (8 * n_pairs))
    return list(_runs(n_rdms, max(1, min(fits, -(-n_rdms // LANES)))))


def _runs(length: int, step: int) -> Iterator[slice]:
    return (slice(start, min(start + step, length)) for start in range(0, length, step))


def corrected_p_values(
    observed: Float[np.ndarray, "rdm"], null_maximum: Float[np.ndarray, "draw"]
) -> Float[np.ndarray, "rdm"]:
    """Return the chance that the largest of all agreements is as high as each, if no matrix agrees with the model."""
    n_draws = len(null_maximum)
    if n_draws == 0:
        return np.full(len(observed), np.nan)
    as_high = n_draws - np.searchsorted(np.sort(null_maximum), observed - ROUNDING)
    return np.where(np.isnan(observed), np.nan, (1 + as_high) / (1 + n_draws))
