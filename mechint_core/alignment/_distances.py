"""Dissimilarity of conditions as a squared distance of prepared rows, which is what makes it stream.

    euclidean      D_ij = ||x_i - x_j||² / p            rows as they are
    correlation    D_ij = 1 - r(x_i, x_j) = ||z_i - z_j||² / 2      z: rows centred over units, of unit length
    cosine         D_ij = 1 - cos(x_i, x_j) = ||z_i - z_j||² / 2    z: rows of unit length
    any other      D_ij = scale · (l_i - l_j) · (r_i - r_j)         two sets of rows whose products are symmetric

The last is what an inner product of differences becomes: with folds side by side, l = [m_1 ... m_R] and
r = [Σ_{s≠1} m_s ... Σ_{s≠R} m_s], one product of matrices holds all pairs of folds.

Source: [@nili2014] (the measures), and the identities above.
Cost: n² p for n conditions.
Chunked over: conditions.
"""

from typing import Final, Literal, get_args

import numpy as np
from jaxtyping import Float, Int

from mechint_core.errors import ConfigurationError, DegenerateInputError
from mechint_core.kernels.linear_kernels import Prepare

Metric = Literal["euclidean", "correlation", "cosine"]

PANEL_ROWS = 256
"""Rows of the distance matrix made at once."""


def check_metric(metric: str) -> None:
    """Refuse a metric that is not one of `Metric`."""
    if metric not in get_args(Metric):
        raise ConfigurationError(f"metric must be one of {get_args(Metric)}. Got {metric!r}.")


def unit_rows(block: np.ndarray) -> np.ndarray:
    """Scale each row to unit length."""
    rows = block.astype(np.result_type(block.dtype, np.float32), copy=False)
    norms = np.sqrt(np.einsum("ia,ia->i", rows, rows))
    if np.any(norms == 0):
        raise DegenerateInputError("every condition must have a response for the cosine. Got a row of zeros.")
    return rows / norms[:, None]


def standard_rows(block: np.ndarray) -> np.ndarray:
    """Centre each row over its units and scale it to unit length."""
    rows = block.astype(np.result_type(block.dtype, np.float32), copy=False)
    centred = rows - rows.mean(axis=1, keepdims=True)
    norms = np.sqrt(np.einsum("ia,ia->i", centred, centred))
    floor = np.finfo(rows.dtype).eps * np.sqrt(np.einsum("ia,ia->i", rows, rows))
    if np.any(norms <= floor):
        raise DegenerateInputError(
            "every condition must vary over units for the correlation distance. Got a constant row: use 'euclidean'."
        )
    return np.divide(centred, norms[:, None], out=centred)


def _as_they_are(block: np.ndarray) -> np.ndarray:
    return block


PREPARE: Final[dict[Metric, Prepare]] = {
    "euclidean": _as_they_are,
    "correlation": standard_rows,
    "cosine": unit_rows,
}
"""What each metric does to a row before squared distances are taken."""

INVARIANCES: Final[dict[str, tuple[str, ...]]] = {
    "euclidean": ("orthogonal", "translation"),
    "correlation": ("unit permutation", "row scaling", "row offset"),
    "cosine": ("orthogonal", "row scaling"),
    "mahalanobis": ("translation",),
    "crossnobis": ("translation", "fold offset"),
    "poisson": ("unit permutation",),
    "crossvalidated poisson": ("unit permutation",),
}
"""Changes of a system that leave its distances as they are; isotropic scaling multiplies the Euclidean ones.

Whitened distances have those of their noise besides (`NOISE_INVARIANCES`), and lose the fold offset when weighted by
samples.
"""


def scale_of(metric: Metric, n_units: int) -> float:
    """Return what turns a squared distance of prepared rows into the dissimilarity."""
    return 1 / n_units if metric == "euclidean" else 0.5


def condensed_distances(prepared: Float[np.ndarray, "condition unit"], scale: float) -> Float[np.ndarray, "pair"]:
    """Return the scaled squared distance of every pair i < j, in the order of `numpy.triu_indices(n, 1)`."""
    rows = prepared.astype(np.float64, copy=False)
    rows = rows - rows.mean(axis=0)  # a shift changes no distance, and cancels less
    condensed = condensed_products(rows, rows, scale)
    return np.maximum(condensed, 0, out=condensed)


def condensed_products(
    left: Float[np.ndarray, "condition unit"],
    right: Float[np.ndarray, "condition unit"],
    scale: float,
    *,
    overwrite_right: bool = False,
) -> Float[np.ndarray, "pair"]:
    """Return scale · (l_i - l_j) · (r_i - r_j) of every pair i < j, for rows with l_i · r_j = l_j · r_i."""
    n = len(left)
    condensed = np.empty(n * (n - 1) // 2)
    own = scale * np.einsum("ia,ia->i", left, right)
    scaled = np.multiply(right, -2 * scale, out=right if overwrite_right else None).T
    for start in range(0, n - 1, PANEL_ROWS):
        stop = min(start + PANEL_ROWS, n - 1)
        panel = left[start:stop] @ scaled[:, start + 1 :]
        panel += own[start:stop, None]
        panel += own[start + 1 :]
        fill_run(condensed[first_pair(start, n) : first_pair(stop, n)], panel)
    return condensed


def difference_products(
    these: tuple[np.ndarray, np.ndarray], those: tuple[np.ndarray, np.ndarray], scale: float
) -> Float[np.ndarray, "row column"]:
    """Return scale · (l_i - l_j) · (r_i - r_j) of rows i of these and j of those, each a left and a right set."""
    products = these[0] @ (those[1].T * (-2 * scale))
    products += scale * np.einsum("ia,ia->i", *these)[:, None]
    products += scale * np.einsum("ia,ia->i", *those)
    return products


def fill_run(run: Float[np.ndarray, "pair"], panel: Float[np.ndarray, "row column"]) -> None:
    """Put what lies above the diagonal of a panel into `run`; its column 0 is the condition after its row 0."""
    filled = 0
    for i, row in enumerate(panel):
        run[filled : filled + len(row) - i] = row[i:]
        filled += len(row) - i


def first_pair(condition: int, n: int) -> int:
    """Return where the pairs of a condition with later ones begin in the condensed order of `n` conditions."""
    return condition * n - condition * (condition + 1) // 2


def pairs_among(picked: Int[np.ndarray, "draw"], n: int) -> Int[np.ndarray, "pair"]:
    """Return where the pairs of ascending `picked` conditions lie in the condensed order of `n` conditions."""
    i, j = np.triu_indices(len(picked), 1)
    first, second = picked[i].astype(np.int64), picked[j]
    return first * n - first * (first + 1) // 2 + second - first - 1


def squared_distances(
    left: Float[np.ndarray, "row unit"], right: Float[np.ndarray, "column unit"], scale: float
) -> Float[np.ndarray, "row column"]:
    """Return scale · ||l_i - r_j||² = scale · (||l_i||² + ||r_j||² - 2 l_i · r_j), never below 0."""
    distances = left @ (right.T * (-2 * scale))
    distances += scale * np.einsum("ia,ia->i", left, left)[:, None]
    distances += scale * np.einsum("ia,ia->i", right, right)
    return np.maximum(distances, 0, out=distances)


def square_form(condensed: Float[np.ndarray, "pair"]) -> Float[np.ndarray, "row column"]:
    """Return the symmetric matrix with a zero diagonal whose upper triangle is `condensed`."""
    n = n_of_pairs(len(condensed))
    square = np.zeros((n, n))
    square[~np.tri(n, dtype=np.bool_)] = condensed
    return square + square.T


def n_of_pairs(n_pairs: int) -> int:
    """Return how many conditions have `n_pairs` pairs: the n of n (n - 1) / 2."""
    return round((1 + np.sqrt(1 + 8 * n_pairs)) / 2)


def evenly_spaced(n: int, most: int) -> Int[np.ndarray, "row"]:
    """Return at most `most` of the numbers 0 ... n - 1, evenly spaced."""
    return np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(np.int64))
