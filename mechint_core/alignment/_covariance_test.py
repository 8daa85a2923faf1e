"""Which components of partial least squares are more than chance: relabelling that steps down, with deflation.

    T_k = ||C_k||²_F,      C_k = what components 1 ... k - 1 leave of Xᵀ P Y, deflated as they deflate the data

Step k asks whether anything is left to covary. Deflating costs a product of two vectors per step, so that one product
Xᵀ P Y per relabelling serves all of them. Each p-value is raised to those before it.

Source: [@mcintosh2004] (relabelling), [@winkler2020] (stepping down).
Cost: n p q + K p q per relabelling, for K components together.
Chunked over: relabellings.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from mechint_core.alignment._latent_directions import Deflation, Latent, Mode
from mechint_core.kernels.relabelling import relabelled, step_down_p_values


def covariance_test(
    x: Float[np.ndarray, "sample unit"],
    y: Float[np.ndarray, "sample other_unit"],
    found: Latent,
    mode: Mode,
    *,
    n_permutations: int,
    seed: int,
) -> Float[np.ndarray, "component"]:
    """Return a p-value for each component that was found on these samples; NaN if nothing is relabelled."""
    if n_permutations == 0:
        return np.full(len(found.covariances), np.nan)
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    scores = x @ found.weights_x if mode == "regression" else np.empty((len(x), 0))
    left = _CovarianceLeft(x, np.hstack([y, scores]), y.shape[1], found.deflations)
    null = relabelled(left, len(x), n_permutations=n_permutations, seed=seed, word="covariance test")
    return step_down_p_values(left(np.arange(len(x))), null)


@dataclass(frozen=True, slots=True)
class _CovarianceLeft:
    """Order of rows -> squared covariance that is left at each step.

    A regression deflates Y by the first system's scores, t qᵀ, which move with Y's rows: they stand beside Y.
    """

    x: np.ndarray
    y: np.ndarray
    n_units: int
    deflations: tuple[Deflation, ...]

    def __call__(self, order: np.ndarray) -> np.ndarray:
        cross, q = self.x.T @ self.y[order], self.n_units
        regression = cross.shape[1] > q
        left: list[float] = []
        for k, deflation in enumerate(self.deflations):
            left.append(float(np.vdot(cross[:, :q], cross[:, :q])))
            deflation(cross, both=not regression)
            if regression:
                cross[:, :q] -= np.outer(cross[:, q + k], deflation.right)
        return np.array(left)
