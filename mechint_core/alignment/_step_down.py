"""Which canonical correlations are more than chance: a permutation test that steps down, with deflation.

Step k asks whether anything is left once the first k - 1 pairs of variates are taken away. U and V hold the canonical
variates of either system, orthonormal, *and* an orthonormal basis of what is left of the larger system; without the
latter the test is not valid. Rows of V are relabelled, and

    T_k = -log det(I - M_kᵀ M_k),        M_k = rows and columns k, k+1, ... of Uᵀ P V           (Wilks)

is compared with T_k unpermuted. M_k is nested, and det(I - M_kᵀ M_k) = det [[I, M_k], [M_kᵀ, I]], so the leading minors
of *one* Cholesky factor, with the variates in reverse order, are the statistics of all steps. Each p-value is raised to
those before it, which controls the chance of any false discovery.

With a ridge, U and V are the variates that the ridge shrinks; the first step is exact then as well, the later ones
take away the penalised variates.

Source: [@winkler2020], [@rao1973] (Wilks).
Cost: n p q + (p + q)³ / 3 per relabelling, for all steps together.
Chunked over: relabellings.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy import linalg

from mechint_core.alignment._subspace_similarity import orthonormal_basis
from mechint_core.kernels.relabelling import relabelled, step_down_p_values


@dataclass(frozen=True, slots=True)
class StepDown:
    """A p-value for each canonical correlation, never below that of the ones before it."""

    p_values: Float[np.ndarray, "component"]
    saturated: bool
    """More directions than samples: every relabelling is perfectly correlated too, and there is no test."""


def step_down(
    x: Float[np.ndarray, "sample unit"],
    y: Float[np.ndarray, "sample other_unit"],
    *,
    ridge_x: float,
    ridge_y: float,
    n_permutations: int,
    seed: int,
) -> StepDown:
    """Test the canonical correlations of two systems that are read whole; NaN where there is no test."""
    basis_x, basis_y = orthonormal_basis(x, ridge_x), orthonormal_basis(y, ridge_y)
    (n, width_x), width_y = basis_x.shape, basis_y.shape[1]
    saturated = (ridge_x == 0 or ridge_y == 0) and width_x + width_y > n - 1
    if saturated or n_permutations == 0:
        return StepDown(np.full(min(width_x, width_y), np.nan), saturated)
    left, values, right = linalg.svd(basis_x.T @ basis_y, check_finite=False)
    statistic = _Wilks.of(basis_x @ left, basis_y @ right.T)
    terms = -np.log(np.maximum(1 - values**2, np.finfo(float).tiny))
    null = relabelled(statistic, n, n_permutations=n_permutations, seed=seed, word="step-down")
    return StepDown(step_down_p_values(np.cumsum(terms[::-1])[::-1], null), saturated)


@dataclass(frozen=True, slots=True)
class _Wilks:
    """-log det(I - M_kᵀ M_k) of every step k, from one Cholesky factor."""

    u: np.ndarray
    v: np.ndarray
    place_u: Int[np.ndarray, "unit"]
    """Where each variate stands when the last come first."""
    place_v: Int[np.ndarray, "other_unit"]

    @classmethod
    def of(cls, u: np.ndarray, v: np.ndarray) -> "_Wilks":
        steps, total = min(u.shape[1], v.shape[1]), u.shape[1] + v.shape[1]
        paired = np.arange(steps)
        rest = np.arange(total - 2 * steps)  # of the larger system, before all pairs
        place_u, place_v = total - 1 - 2 * paired, total - 2 - 2 * paired
        if u.shape[1] > steps:
            place_u = np.concatenate([place_u, rest])
        else:
            place_v = np.concatenate([place_v, rest])
        return cls(u, v, place_u, place_v)

    def __call__(self, order: np.ndarray) -> np.ndarray:
        core = self.u.T @ self.v[order]
        joint = np.eye(len(self.place_u) + len(self.place_v), order="F")
        joint[self.place_u[:, None], self.place_v] = core
        joint[self.place_v[:, None], self.place_u] = core.T
        (factorise,) = linalg.get_lapack_funcs(("potrf",), (joint,))
        factor, failed = factorise(joint, lower=1, clean=0, overwrite_a=1)
        minors = -2 * np.cumsum(np.log(np.maximum(np.diag(factor), np.finfo(float).tiny)))
        steps = min(len(self.place_u), len(self.place_v))
        found = minors[len(joint) - 1 - 2 * np.arange(steps)]
        return np.where(len(joint) - 2 * np.arange(steps) >= failed, np.inf, found) if failed else found
