"""Agreement of dissimilarity matrices, many against many.

    cosine                 d · e / (|d| |e|)                     d, e: the pairs i < j of either matrix
    pearson                the cosine after taking the mean out
    spearman               the pearson of ranks, ties sharing their mean rank
    rho-a                  12 Σ (rank d - mean) (rank e - mean) / (N³ - N): spearman, on average over broken ties
    tau-a                  Σ_{a<b} sign(d_a - d_b) sign(e_a - e_b) / (N (N - 1) / 2)
    whitened cosine        dᵀ V⁻¹ e / sqrt(dᵀ V⁻¹ d · eᵀ V⁻¹ e), V the covariance of the entries: linear CKA
    whitened correlation   the same after taking the mean out
    bures                  tr (K^½ L K^½)^½ / sqrt(tr K tr L), K and L the centred kernels

All but tau-a and bures are dot products of coordinates, so many matrices against many are one matrix product.

Source: [@nili2014], [@schutt2023] (rho-a), [@diedrichsen2020] (whitened), [@harvey2024] (Bures).
Cost: a product of N = n (n - 1) / 2 numbers per entry; N log N per matrix for ranks, per entry for tau-a; n³ for bures.
Chunked over: entries, for tau-a and bures.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Literal, get_args

import numpy as np
from jaxtyping import Bool, Float, Int

from mechint_core.alignment._distances import n_of_pairs, square_form
from mechint_core.alignment._kendall import dense_ranks, tau_a
from mechint_core.alignment._ranks import mid_ranks
from mechint_core.alignment._whitening import Whitening, whitened
from mechint_core.errors import ConfigurationError, DegenerateInputError, ShapeError
from mechint_core.parallel import map_parallel

Comparison = Literal[
    "pearson", "cosine", "spearman", "rho-a", "tau-a", "whitened cosine", "whitened correlation", "bures"
]
WHITENED: Final = ("whitened cosine", "whitened correlation")
"""Comparisons that ask for the noise covariance of the conditions."""
ROUNDING: Final = 1e-14
"""Eigenvalues of a kernel below this share of the largest are rounding."""
WORTH_SHARING: Final = 1_000_000
"""Pairs, over all entries, from which on rows of entries are computed in parallel: a call costs 1 ms."""
RANKED: Final = ("spearman", "rho-a", "tau-a")
"""Comparisons that see only the order of the dissimilarities."""


def check_comparison(comparison: str) -> None:
    """Refuse a comparison that is not one of `Comparison`."""
    if comparison not in get_args(Comparison):
        raise ConfigurationError(f"comparison must be one of {get_args(Comparison)}. Got {comparison!r}.")


def compare(
    first: Float[np.ndarray, "rdm pair"],
    second: Float[np.ndarray, "other_rdm pair"],
    comparison: Comparison,
    *,
    sigma: Float[np.ndarray, "..."] | None = None,
) -> Float[np.ndarray, "rdm other_rdm"]:
    """Return how alike each of the first matrices and each of the second are.

    Parameters
    ----------
    first, second
        Condensed dissimilarity matrices of the same conditions, one per row. A pair that is NaN in either of two
        matrices is left out of their comparison. For the whitened comparisons they are squared distances.
    comparison
        One of `Comparison`.
    sigma
        For the whitened comparisons: variances, or the covariance matrix, of the noise of the conditions' responses.
        Without it all are equal and independent.

    Returns
    -------
    Float[np.ndarray, "rdm other_rdm"]
        In [-1, 1]; bures in [0, 1]. NaN where a matrix is constant (all zeros for the cosines) or no pair is left.

    Raises
    ------
    ShapeError
        If the matrices are not of the same conditions, or `sigma` is not of their number.
    ConfigurationError
        If the comparison is unknown, or has no use for `sigma`.
    DegenerateInputError
        If `sigma` is not positive definite, or pairs are missing where the comparison needs all (bures).
    """
    check_comparison(comparison)
    _check(first, second)
    if sigma is not None and comparison not in WHITENED:
        raise ConfigurationError(f"sigma must be left out for {comparison!r}. Only {WHITENED} use it.")
    found = np.empty((len(first), len(second)))
    for rows, kept_first in missing_patterns(first):
        for columns, kept_second in missing_patterns(second):
            keep = kept_first & kept_second
            block = _compare(first[rows], second[columns], keep, comparison, sigma)
            found[np.ix_(rows, columns)] = block
    return found


def _check(first: np.ndarray, second: np.ndarray) -> None:
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise ShapeError(
            f"matrices must be (rdm, pair) and of the same conditions. Got {first.shape} and {second.shape}."
        )
    n = n_of_pairs(first.shape[1])
    if n * (n - 1) // 2 != first.shape[1] or n < 2:
        raise ShapeError(f"pairs must be n (n - 1) / 2 for n conditions. Got {first.shape[1]}: neither {n} nor more.")


def missing_patterns(
    matrices: Float[np.ndarray, "rdm pair"],
) -> Iterator[tuple[Int[np.ndarray, "rdm"], Bool[np.ndarray, "pair"]]]:
    """Yield groups of matrices that miss the same pairs, and the pairs these have."""
    has = ~np.isnan(matrices)
    if has.all():
        yield np.arange(len(matrices)), np.ones(matrices.shape[1], np.bool_)
        return
    _, first, group = np.unique(np.packbits(has, axis=1), axis=0, return_index=True, return_inverse=True)
    for number, example in enumerate(first):
        yield np.flatnonzero(group.ravel() == number), has[example]


def _compare(
    first: np.ndarray, second: np.ndarray, keep: np.ndarray, comparison: Comparison, sigma: np.ndarray | None
) -> np.ndarray:
    """Compare matrices over the pairs in `keep`."""
    if not keep.any():
        return np.full((len(first), len(second)), np.nan)
    if comparison in ("tau-a", "bures"):
        return (_tau_a if comparison == "tau-a" else _bures)(first, second, keep)
    a, b = (coordinates(each, comparison, keep=keep, sigma=sigma) for each in (first, second))
    return a @ b.T


def coordinates(
    condensed: Float[np.ndarray, "rdm pair"],
    comparison: Comparison,
    *,
    keep: Bool[np.ndarray, "pair"] | None = None,
    sigma: np.ndarray | None = None,
) -> Float[np.ndarray, "rdm coordinate"]:
    """Return vectors whose dot products are the comparison; NaN for a matrix that has no agreement with any."""
    keep = np.ones(condensed.shape[1], np.bool_) if keep is None else keep
    values = condensed if keep.all() else condensed[:, keep]
    if comparison in WHITENED:
        shift = values.mean(axis=1, keepdims=True) if comparison == "whitened correlation" else 0.0
        return _unit(whitened(condensed - shift, keep, sigma), values)
    if comparison in RANKED:
        values = np.array([mid_ranks(each) for each in values]).reshape(values.shape)
    centred = values if comparison == "cosine" else values - values.mean(axis=1, keepdims=True)
    if comparison == "rho-a":
        n = int(keep.sum())
        return centred * np.sqrt(12 / (n**3 - n)) if n > 1 else np.full_like(centred, np.nan)
    return _unit(centred, values)


def _unit(centred: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Scale to unit length; what centring left of equal values is rounding, and NaN."""
    squares, raw = (np.einsum("rp,rp->r", each, each) for each in (centred, values))
    norms = np.sqrt(np.where(squares > np.finfo(np.float64).eps ** 2 * raw, squares, np.nan))
    return centred / norms[:, None]


def _tau_a(first: np.ndarray, second: np.ndarray, keep: np.ndarray) -> np.ndarray:
    if keep.sum() < 2:
        return np.full((len(first), len(second)), np.nan)
    a, b = ([dense_ranks(each[keep]) for each in matrices] for matrices in (first, second))
    return _one_by_one(tau_a, a, b, first.shape[1])


def _bures(first: np.ndarray, second: np.ndarray, keep: np.ndarray) -> np.ndarray:
    if not keep.all():
        raise DegenerateInputError("dissimilarities must all be known for bures. Got NaN: leave those conditions out.")
    a, b = ([kernel_root(square_form(each)) for each in matrices] for matrices in (first, second))
    return _one_by_one(bures_of_roots, a, b, first.shape[1])


def kernel_root(
    square: Float[np.ndarray, "row column"], counts: Int[np.ndarray, "row"] | None = None
) -> Float[np.ndarray, "row component"]:
    """Return F with F Fᵀ = K / tr K, for K the centred kernel of a squared distance matrix.

    Distances that fit no space give K negative eigenvalues: F leaves them out, tr K does not. Where condition i counts
    `counts[i]` times, so it does in the mean, and in K.
    """
    counts = np.ones(len(square), np.int64) if counts is None else counts
    kernel = Whitening(np.sqrt(counts), counts / counts.sum())(square)
    values, vectors = np.linalg.eigh(kernel)
    trace = float(np.trace(kernel))
    some = values > ROUNDING * values[-1] if trace > 0 else np.zeros(len(values), np.bool_)
    return vectors[:, some] * np.sqrt(values[some] / trace) if some.any() else np.full((len(square), 1), np.nan)


def bures_of_roots(first: Float[np.ndarray, "row column"], second: Float[np.ndarray, "row other_column"]) -> float:
    """Return tr (K^½ L K^½)^½, the sum of the singular values of Fᵀ H with K = F Fᵀ and L = H Hᵀ."""
    product = first.T @ second
    return float(np.linalg.svd(product, compute_uv=False).sum()) if np.all(np.isfinite(product)) else np.nan


def _one_by_one(
    agree: Callable[[np.ndarray, np.ndarray], float], first: list[np.ndarray], second: list[np.ndarray], n_pairs: int
) -> np.ndarray:
    row = _Row(agree, second)
    if len(first) * len(second) * n_pairs < WORTH_SHARING:
        return np.array([row(each) for each in first])
    return np.array(map_parallel(row, first))


@dataclass(frozen=True, slots=True)
class _Row:
    """One of the first against each of the second."""

    agreement: Callable[[np.ndarray, np.ndarray], float]
    second: list[np.ndarray]

    def __call__(self, first: np.ndarray) -> list[float]:
        return [self.agreement(first, each) for each in self.second]
