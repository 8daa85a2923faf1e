"""Noise covariance: how units vary together around the mean response of each group of samples.

    S = Σ_t e_t e_tᵀ / ν,    e_t: sample t minus the mean of its group, ν = samples - groups
    Σ = (1 - λ) S + λ T

    full                  λ = 0
    diagonal              T = diag S, λ = 1
    shrunk to identity    T = (tr S / p) I, λ = (mean_t ||e_t||⁴ / ||R||² - 1) / ((ν + 1) (1 - ||T||² / ||S||²)),
                          with R = ν S / n, the mean of e eᵀ
    shrunk to diagonal    T = diag S, λ = (Σ_{i≠j} mean_t w_i² w_j² / Σ_{i≠j} (mean_t w_i w_j)² - 1) / ν,
                          with w the e of unit variance

The two weights are those of the papers for one group of ν + 1 samples, which has the same degrees of freedom: that
many independent residuals, and not n, decide how far S is from the truth. With two samples per condition, counting n
makes the weight half of what it should be, and the loss up to four times as large (40 samples, 20 units).

Source: [@ledoit2004] (to the identity), [@schafer2005] (to the diagonal).
Cost: n p² for n samples; p³ for the whitening.
Chunked over: nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, get_args

import numpy as np
from jaxtyping import Float, Int
from scipy import linalg

from mechint_core.errors import ConfigurationError, DegenerateInputError, ShapeError

Shrinkage = Literal["full", "diagonal", "shrunk to identity", "shrunk to diagonal"]


@dataclass(frozen=True, slots=True)
class NoiseCovariance:
    """A covariance of units, and what it was made of."""

    covariance: Float[np.ndarray, "unit other_unit"]
    weight: float
    """λ: 0 keeps the sample covariance, 1 is the target alone."""
    dof: int
    """Degrees of freedom: samples - groups."""

    def precision(self) -> Float[np.ndarray, "unit other_unit"]:
        """Return the inverse covariance."""
        whitening = self.whitening()
        return whitening @ whitening.T

    def whitening(self) -> Float[np.ndarray, "unit component"]:
        """Return W with W Wᵀ = Σ⁻¹: the rows of x W have unit noise.

        Raises
        ------
        DegenerateInputError
            If the covariance is singular.
        """
        return whitening_of(self.covariance)


def noise_covariance(
    x: Float[np.ndarray, "sample unit"],
    group: Int[np.ndarray, "sample"],
    *,
    shrinkage: Shrinkage = "shrunk to diagonal",
) -> NoiseCovariance:
    """Estimate how units vary together around the means of groups of samples.

    Parameters
    ----------
    x
        One row per sample.
    group
        What was the same for the samples: their condition, or their condition and fold.
    shrinkage
        What the sample covariance is shrunk to.

    Raises
    ------
    ConfigurationError
        If `shrinkage` is none of these.
    ShapeError
        If `x` is not two-dimensional, or `group` has another length.
    DegenerateInputError
        If no group has two samples, `x` is not finite, or a unit never varies within a group (except when shrunk
        to the identity, where only all of them matter).

    Examples
    --------
    >>> x, group = np.array([[1.0, 0.0], [3.0, 0.0], [5.0, 2.0], [5.0, 6.0]]), np.array([0, 0, 1, 1])
    >>> noise_covariance(x, group, shrinkage="full").covariance
    array([[1., 0.],
           [0., 4.]])
    """
    if x.ndim != 2 or group.shape != x.shape[:1]:
        raise ShapeError(f"x must be (sample, unit) with one group per sample. Got {x.shape} and {group.shape}.")
    if not np.all(np.isfinite(x)):
        raise DegenerateInputError("x must be finite. Got NaN or infinity: drop those samples first.")
    dof = len(x) - len(np.unique(group))
    return covariance_of_residuals(residuals(x, group), dof=dof, shrinkage=shrinkage)


def residuals(
    x: Float[np.ndarray, "sample unit"], group: Int[np.ndarray, "sample"]
) -> Float[np.ndarray, "sample unit"]:
    """Return each sample minus the mean of its group, in the order of groups."""
    order = np.argsort(group, kind="stable")
    _, starts, counts = np.unique(group[order], return_index=True, return_counts=True)
    ordered = x[order].astype(np.float64)
    ordered -= np.repeat(np.add.reduceat(ordered, starts, axis=0) / counts[:, None], counts, axis=0)
    return ordered


def covariance_of_residuals(
    residual: Float[np.ndarray, "sample unit"], *, dof: int, shrinkage: Shrinkage = "shrunk to diagonal"
) -> NoiseCovariance:
    """Estimate the covariance of residuals (of a regression, for example) with `dof` degrees of freedom.

    Raises
    ------
    ConfigurationError
        If `shrinkage` is none of those known.
    DegenerateInputError
        If `dof` is below 1, or a unit has no variance.
    """
    check_shrinkage(shrinkage)
    if dof < 1:
        raise DegenerateInputError(
            f"noise must have at least 1 degree of freedom (samples - groups). Got {dof}: repeat conditions, or take "
            f"the noise around condition means of all folds (noise_around='condition')."
        )
    sample = residual.T @ residual / dof
    variance = np.diag(sample)
    if not np.any(variance > 0) or (shrinkage != "shrunk to identity" and not np.all(variance > 0)):
        raise DegenerateInputError(
            f"units must vary around their group means. Got {int(np.sum(variance <= 0))} units of {len(variance)} "
            f"without noise: leave them out, or shrink to the identity."
        )
    weight, target = _TARGETS[shrinkage](residual, sample, dof)
    shrunk = (1 - weight) * sample
    shrunk[np.diag_indices_from(shrunk)] += weight * target
    return NoiseCovariance(shrunk, weight, dof)


def check_shrinkage(shrinkage: str) -> None:
    """Refuse a shrinkage that is not one of `Shrinkage`."""
    if shrinkage not in get_args(Shrinkage):
        raise ConfigurationError(f"shrinkage must be one of {get_args(Shrinkage)}. Got {shrinkage!r}.")


def whitening_of(covariance: Float[np.ndarray, "unit other_unit"]) -> Float[np.ndarray, "unit component"]:
    """Return W with W Wᵀ = Σ⁻¹, or refuse a singular covariance."""
    scale = np.sqrt(np.diag(covariance))
    try:
        # of the correlations, so that units of different size are no reason to refuse
        factor = linalg.cholesky(covariance / np.outer(scale, scale), lower=True)
        pivots = np.diag(factor) ** 2
        singular = bool(pivots.min() <= len(pivots) * np.finfo(np.float64).eps)
    except linalg.LinAlgError:
        factor, singular = np.empty(0), True
    if singular:
        raise DegenerateInputError(
            "noise covariance must be invertible. Got a singular one, as with fewer residuals than units: shrink it "
            "('shrunk to diagonal'), or use fewer units."
        )
    inverse = linalg.solve_triangular(factor, np.eye(len(factor)), lower=True)
    return np.ascontiguousarray(inverse.T) / scale[:, None]


def _full(residual: np.ndarray, sample: np.ndarray, dof: int) -> tuple[float, np.ndarray]:  # noqa: ARG001 - one shape
    return 0.0, np.zeros(len(sample))


def _diagonal(residual: np.ndarray, sample: np.ndarray, dof: int) -> tuple[float, np.ndarray]:  # noqa: ARG001
    return 1.0, np.diag(sample)


def _to_identity(residual: np.ndarray, sample: np.ndarray, dof: int) -> tuple[float, np.ndarray]:
    """Return the weight and the diagonal of the target: the mean variance."""
    n, p = residual.shape
    mean = sample * (dof / n)
    level = float(np.trace(mean)) / p
    squared = float(np.vdot(mean, mean))
    distance = squared - p * level**2
    fourth = float(np.mean(np.einsum("ta,ta->t", residual, residual) ** 2))
    error = (fourth - squared) / (dof + 1)
    return _share(error, distance), np.full(p, level * n / dof)


def _to_diagonal(residual: np.ndarray, sample: np.ndarray, dof: int) -> tuple[float, np.ndarray]:
    """Return the weight and the diagonal of the target: each unit's own variance."""
    n, variance = len(residual), np.diag(sample)
    squares = residual**2 / variance
    fourth = float(np.mean(squares.sum(axis=1) ** 2 - np.einsum("ta,ta->t", squares, squares)))
    correlation = sample * (dof / n) / np.sqrt(np.outer(variance, variance))
    squared = float(np.vdot(correlation, correlation) - np.sum(np.diag(correlation) ** 2))
    return _share((fourth - squared) / dof, squared), variance


def _share(error: float, distance: float) -> float:
    """Return error / distance within [0, 1]; 0 where target and estimate are the same."""
    return float(np.clip(error / distance, 0, 1)) if distance > 0 else 0.0


_TARGETS: Final[dict[Shrinkage, Callable[[np.ndarray, np.ndarray, int], tuple[float, np.ndarray]]]] = {
    "full": _full,
    "diagonal": _diagonal,
    "shrunk to identity": _to_identity,
    "shrunk to diagonal": _to_diagonal,
}
