"""Canonical correlations from covariances.

    S_xx + λ_x I = L_x L_xᵀ,    L_x⁻¹ S_xy L_y⁻ᵀ = U D Vᵀ,    a_k = L_x⁻ᵀ u_k,  b_k = L_y⁻ᵀ v_k

D holds the canonical correlations (λ = 0). Where the correlation matrix of a system has a condition number above
`WORST_CONDITION`, its eigenvectors take the place of its Cholesky factor, without those that do not vary.

Source: [@hotelling1936], [@vinod1976] (ridge).
Cost: (p³ + q³) / 3 + the singular values of a p x q matrix.
Chunked over: nothing; the covariances were.
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import linalg

from mechint_core.errors import DegenerateInputError
from mechint_core.kernels.joint_covariance import JointCovariance

WORST_CONDITION = 1e7
"""Condition number of a correlation matrix above which its Cholesky factor is not trusted."""
SMALLEST_SQUARE = 1e-4
"""Squared correlation down to which a Gram matrix is accurate to 1e-14."""
ROUNDING = 1e-12
"""A direction with less than this share of the largest variance is rounding."""


@dataclass(frozen=True, slots=True)
class Canonical:
    """Pairs of directions, the most correlated first."""

    correlations: Float[np.ndarray, "component"]
    """Of the variates in these samples; with a ridge they are below those that the ridge's criterion has."""
    weights_x: Float[np.ndarray, "unit component"]
    weights_y: Float[np.ndarray, "other_unit component"]
    spectrum: Float[np.ndarray, "row"]
    """Singular values of the whitened cross-covariance (all of them, if all components were asked for)."""
    rank_x: int
    rank_y: int


def canonical(
    covariance: JointCovariance,
    n_components: int | None = None,
    *,
    ridge_x: float = 0.0,
    ridge_y: float = 0.0,
    white: "tuple[Whitener, Whitener] | None" = None,
) -> Canonical:
    """Return the first canonical correlations and their weights; `white`, if the systems are whitened already."""
    white_x, white_y = white or (whitener(covariance.xx, ridge_x), whitener(covariance.yy, ridge_y))
    core = white_y.solve(white_x.solve(covariance.xy).T).T
    k = min(core.shape) if n_components is None else min(n_components, *core.shape)
    left, values, right = _leading(core, k) if 2 * k < min(core.shape) else _every(core)
    weights_x, weights_y = white_x.weights(left[:, :k]), white_y.weights(right[:, :k])
    signs = np.where(np.take_along_axis(weights_x, np.abs(weights_x).argmax(axis=0)[None], 0)[0] < 0, -1.0, 1.0)
    weights_x, weights_y = weights_x * signs, weights_y * signs
    unpenalised = ridge_x == 0 and ridge_y == 0
    correlations = values[:k] if unpenalised else correlations_of(covariance, weights_x, weights_y)
    return Canonical(
        np.minimum(correlations, 1.0), weights_x, weights_y, np.minimum(values, 1.0), white_x.rank, white_y.rank
    )


def _every(core: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    left, values, right = linalg.svd(core, full_matrices=False, check_finite=False)
    return left, values, right.T


def _leading(core: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the first k singular triples from the smaller Gram matrix, a third of the time of all of them (500 x 300).

    Squaring leaves an error of 1e-16 / r in a correlation r, so small ones are taken from the matrix itself.
    """
    flip = core.shape[0] < core.shape[1]
    tall = core.T if flip else core
    width = tall.shape[1]
    squares, right = linalg.eigh(tall.T @ tall, subset_by_index=(width - k, width - 1), check_finite=False)
    squares, right = squares[::-1], right[:, ::-1]
    if squares[-1] < SMALLEST_SQUARE:
        return _every(core)
    values = np.sqrt(squares)
    left = tall @ right / values
    return (right, values, left) if flip else (left, values, right)


def correlations_of(
    covariance: JointCovariance, weights_x: np.ndarray, weights_y: np.ndarray
) -> Float[np.ndarray, "component"]:
    """Return the correlations of given variates; 0 where a variate does not vary: it predicts nothing."""
    deviation_x, deviation_y = variate_deviations(covariance, weights_x, weights_y)
    inner = np.einsum("ak,ak->k", weights_x, covariance.xy @ weights_y)
    norms = deviation_x * deviation_y
    return np.divide(inner, norms, out=np.zeros_like(inner), where=norms > np.finfo(float).tiny)


def variate_deviations(
    covariance: JointCovariance, weights_x: np.ndarray, weights_y: np.ndarray
) -> tuple[Float[np.ndarray, "component"], Float[np.ndarray, "component"]]:
    """Return the standard deviations of the variates that weights make."""
    variance_x = np.einsum("ak,ak->k", weights_x, covariance.xx @ weights_x)
    variance_y = np.einsum("bk,bk->k", weights_y, covariance.yy @ weights_y)
    return np.sqrt(np.maximum(variance_x, 0)), np.sqrt(np.maximum(variance_y, 0))


@dataclass(frozen=True, slots=True)
class Whitener:
    """W with Wᵀ (S + λ I) W = I: the inverse of a Cholesky factor, or of eigenvectors where there is none."""

    factor: np.ndarray
    triangular: bool
    rank: int

    def solve(self, right: np.ndarray) -> np.ndarray:
        """Return Wᵀ `right`."""
        if self.triangular:
            return linalg.solve_triangular(self.factor, right, lower=True, check_finite=False)
        return self.factor.T @ right

    def weights(self, directions: np.ndarray) -> np.ndarray:
        """Return W `directions`."""
        if self.triangular:
            return linalg.solve_triangular(self.factor, directions, lower=True, trans=1, check_finite=False)
        return self.factor @ directions


def whitener(covariance: Float[np.ndarray, "unit _"], ridge: float = 0.0) -> Whitener:
    """Whiten by Cholesky; by eigenvectors, without those that do not vary, where the condition forbids it."""
    penalised = covariance + ridge * np.eye(len(covariance)) if ridge else covariance
    factor, condition = cholesky_and_condition(penalised)
    if condition <= WORST_CONDITION:
        return Whitener(factor, True, len(covariance))
    values, vectors = linalg.eigh(covariance, check_finite=False)
    kept = values > ROUNDING * len(covariance) * max(values[-1], 0)
    if not kept.any():
        raise DegenerateInputError("a system must vary over the samples of every fold. Got the same row every time.")
    return Whitener(vectors[:, kept] / np.sqrt(values[kept] + ridge), False, int(kept.sum()))


def cholesky_and_condition(covariance: Float[np.ndarray, "unit _"]) -> tuple[np.ndarray, float]:
    """Return the lower Cholesky factor, and the condition number of the correlation matrix (1-norm, estimated).

    Units of different scale do no harm to a Cholesky factor, so the condition is that of units of one scale.
    """
    deviation = np.sqrt(np.maximum(np.diag(covariance), 0))
    if not deviation.all():
        return covariance, math.inf
    correlation = covariance / np.outer(deviation, deviation)
    norm = float(np.abs(correlation).sum(axis=0).max())
    factorise, condition = linalg.get_lapack_funcs(("potrf", "pocon"), (correlation,))
    factor, failed = factorise(correlation, lower=1, clean=1)
    if failed:
        return covariance, math.inf
    reciprocal, _ = condition(factor, norm, uplo="L")
    return factor * deviation[:, None], 1 / max(reciprocal, np.finfo(float).tiny)


def rank_of(covariance: Float[np.ndarray, "unit _"]) -> int:
    """Return along how many directions a system varies by more than rounding."""
    values = linalg.eigvalsh(covariance, check_finite=False)
    return int(np.sum(values > ROUNDING * len(values) * values[-1]))
