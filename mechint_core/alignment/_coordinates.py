"""The coordinates in which the covariances of a system are safe to take.

Covariances square the condition number of the data. Where that is too much, or a system has no fewer units than there
are samples, or a kernel is asked for, the rows themselves are decomposed, X - x̄ = Z B, and Z takes their place: its
columns are orthogonal, so all that follows is as accurate as a QR decomposition of the data. For a kernel, Z are the
eigenvectors of the centred Gram matrix times the roots of its eigenvalues, Z Zᵀ = K, so that ridge CCA of Z, folds
and all, *is* kernel CCA.

Source: [@bjorck1973] (accuracy), [@hardoon2004] (kernels).
Cost: nothing for a system's own units; n p min(n, p) where the rows are decomposed; n³ for a radial kernel.
Chunked over: samples, unless the rows are decomposed.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float
from scipy import linalg
from scipy.spatial.distance import cdist, pdist

from mechint_core.alignment._canonical import Whitener, whitener
from mechint_core.errors import DegenerateInputError, MemoryBudgetError, ShapeError
from mechint_core.kernels.joint_covariance import FoldedCovariance, JointCovariance, check_finite, joint_covariance
from mechint_core.parallel import Rows, len_rows

Kernel = Literal["none", "linear", "rbf"]

BANDWIDTH_ROWS = 1000
"""Rows, evenly spaced, whose median distance is the width of the radial kernel."""
ROUNDING = 1e-12
"""A direction with less than this share of the largest variance is rounding."""


@dataclass(frozen=True, slots=True)
class AlignedCoordinates:
    """Two systems in safe coordinates, and their covariances in them."""

    x: "Coordinates"
    y: "Coordinates"
    folds: FoldedCovariance
    whole: JointCovariance
    white: tuple[Whitener, Whitener] | None = None
    """What whitens all rows, where that was found on the way."""


def aligned_coordinates(
    x: Rows,
    y: Rows,
    *,
    n_folds: int = 1,
    kernel: Kernel = "none",
    width: float = 1.0,
    whitened: bool = True,
    memory_budget: int,
) -> AlignedCoordinates:
    """Stream the covariances of two systems, or decompose the rows of one where its covariance is not to be trusted.

    With `whitened`, a badly conditioned system's coordinates are scaled to unit variance. A caller that penalises
    directions by their variance asks for them as they are.
    """
    if len(x.shape) != 2 or len(y.shape) != 2 or x.shape[0] != y.shape[0] or 0 in (*x.shape, *y.shape):
        raise ShapeError(f"systems must be (sample, unit) with the same samples. Got {x.shape} and {y.shape}.")
    made: dict[str, Coordinates] = {}
    for name, rows in (("x", x), ("y", y)):
        if kernel == "rbf":
            made[name] = radial_coordinates(name, rows, width=width, memory_budget=memory_budget)
        elif kernel == "linear" or rows.shape[1] >= rows.shape[0]:
            made[name] = decomposed(name, rows, memory_budget=memory_budget, whitened=False)
        else:
            made[name] = own_units(rows)
    folds = joint_covariance(made["x"].rows, made["y"].rows, n_folds=n_folds)
    if not whitened:
        return AlignedCoordinates(made["x"], made["y"], folds, folds.whole)
    whole = folds.whole
    white = {"x": whitener(whole.xx), "y": whitener(whole.yy)}
    unsafe = [name for name in made if made[name].basis is None and not white[name].triangular]
    if not unsafe:
        return AlignedCoordinates(made["x"], made["y"], folds, whole, (white["x"], white["y"]))
    for name in unsafe:
        made[name] = decomposed(name, {"x": x, "y": y}[name], memory_budget=memory_budget, whitened=True)
    folds = joint_covariance(made["x"].rows, made["y"].rows, n_folds=n_folds)
    return AlignedCoordinates(made["x"], made["y"], folds, folds.whole)


@dataclass(frozen=True, slots=True)
class Coordinates:
    """One system in the coordinates that covariances are taken in: its own units, or those of its rows."""

    rows: Rows
    n_units: int
    """What its total variance is shared among, to make a ridge dimensionless."""
    rank: int | None = None
    """Number of coordinates, where the rows were decomposed."""
    basis: np.ndarray | None = None
    """(unit, coordinate): Z = (X - mean) basis; for a radial kernel, Z = centred kernel basis."""
    inverse: np.ndarray | None = None
    """(coordinate, unit): X - mean = Z inverse; for a radial kernel, the units' covariances with Z / (n - 1)."""
    mean: np.ndarray | None = None
    trained_on: np.ndarray | None = None
    """Rows that a radial kernel is spanned by."""
    width: float = math.nan
    """Width of the radial kernel."""

    @property
    def n_columns(self) -> int:
        """Units of the rows that `of` takes."""
        if self.trained_on is not None:
            return self.trained_on.shape[1]
        return self.rows.shape[1] if self.basis is None else len(self.basis)

    def of(self, rows: np.ndarray) -> np.ndarray:
        """Take other rows into these coordinates."""
        if self.trained_on is not None:
            kernel = radial_kernel(rows, self.trained_on, self.width)
            return (kernel - kernel.mean(axis=1, keepdims=True) - self.mean) @ self.basis
        return np.asarray(rows) if self.basis is None else (rows - self.mean) @ self.basis


def own_units(rows: Rows) -> Coordinates:
    """Leave a system as it is: its covariances can be streamed."""
    return Coordinates(rows, rows.shape[1])


def decomposed(name: str, rows: Rows, *, memory_budget: int, whitened: bool) -> Coordinates:
    """Read a system whole, and take the coordinates that its rows have along their principal axes.

    With `whitened`, each coordinate is scaled to unit variance, which CCA without a ridge does not notice and which
    keeps its conditioning at 1.
    """
    n, p = rows.shape
    _check_memory(name, 8 * (2 * n * p + min(n, p) * (n + p)), memory_budget)
    wide = np.asarray(rows[:], dtype=np.float64)
    check_finite(name, wide)
    mean = wide.mean(axis=0)
    left, values, right = linalg.svd(wide - mean, full_matrices=False, check_finite=False)
    epsilon = np.finfo(np.result_type(rows.dtype, np.float32)).eps
    rank = int(np.sum(values > values[0] * max(n, p) * epsilon))
    if values[0] <= 100 * epsilon * np.linalg.norm(mean) or rank == 0:
        raise DegenerateInputError(f"{name} must vary over its rows. Got the same row every time.")
    scale = math.sqrt(n) / values[:rank] if whitened else np.ones(rank)
    basis = right[:rank].T * scale
    return Coordinates(left[:, :rank] * values[:rank] * scale, p, rank, basis, right[:rank] / scale[:, None], mean)


def radial_coordinates(name: str, rows: Rows, *, width: float, memory_budget: int) -> Coordinates:
    """Take the coordinates that the rows have in the feature space of the kernel exp(-||x - x'||² / (2 w²)).

    w is `width` times the median distance of rows.
    """
    n = len_rows(rows)
    _check_memory(name, 8 * 4 * n * n, memory_budget)
    whole = np.asarray(rows[:], dtype=np.float64)
    check_finite(name, whole)
    some = whole[np.unique(np.linspace(0, n - 1, min(n, BANDWIDTH_ROWS)).round().astype(int))]
    scale = width * float(np.median(pdist(some)))
    if scale == 0:
        raise DegenerateInputError(f"{name} must vary over its rows. Got most rows alike.")
    kernel = radial_kernel(whole, whole, scale)
    column = kernel.mean(axis=0)
    centred = kernel - column - column[:, None] + column.mean()
    values, vectors = linalg.eigh(centred, overwrite_a=True, check_finite=False)
    kept = values > ROUNDING * n * values[-1]
    values, vectors = values[kept][::-1], vectors[:, kept][:, ::-1]
    z = vectors * np.sqrt(values)
    rank, inverse = len(values), z.T @ (whole - whole.mean(axis=0))
    return Coordinates(z, rank, rank, vectors / np.sqrt(values), inverse, column - column.mean(), whole, scale)


def radial_kernel(x: np.ndarray, y: np.ndarray, width: float) -> Float[np.ndarray, "sample other_sample"]:
    """Return exp(-||x - y||² / (2 width²)) of all pairs of rows."""
    return np.exp(cdist(x, y, "sqeuclidean") / (-2 * width**2))


def _check_memory(name: str, needed: int, budget: int) -> None:
    if needed > budget:
        raise MemoryBudgetError(
            f"{name} must fit in memory_budget to be decomposed by its rows. Got {needed} bytes for {budget}: take "
            "fewer samples or units, or raise memory_budget."
        )


def unit_loadings(coordinates: Coordinates, covariance: np.ndarray, weights: np.ndarray, n: int) -> np.ndarray:
    """Return the covariances of the system's own units with its variates."""
    if coordinates.inverse is None:
        return covariance @ weights
    if coordinates.trained_on is not None:
        return coordinates.inverse.T @ weights / (n - 1)
    return coordinates.inverse.T @ (covariance @ weights)


def unit_weights(coordinates: Coordinates, weights: np.ndarray) -> np.ndarray:
    """Return the weights on the system's own units; on its samples, for a radial kernel."""
    return weights if coordinates.basis is None else coordinates.basis @ weights
