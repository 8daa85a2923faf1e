"""Partial least squares from covariances: pairs of directions of largest covariance, deflated in one of three ways.

    w_k, c_k   the first singular pair of C_k,        C_1 = S_xy,        r_k = w_k - Σ_{j<k} (p_jᵀ w_k) r_j
    svd        C_{k+1} = (I - w wᵀ) C_k (I - c cᵀ)                        all singular pairs of S_xy
    canonical  C_{k+1} = (I - p wᵀ) C_k (I - c qᵀ)                        p = S_xx r / rᵀ S_xx r,  q likewise of Y
    regression C_{k+1} = (I - p wᵀ) C_k                                   Y less what t_k predicts of it

NIPALS iterates on the rows to the same pairs; here nothing iterates, and the rows are not needed.

Source: [@wold1984], [@wegelin2000], [@dayal1997] (from covariances), [@mcintosh2004] (svd).
Cost: p q min(p, q) per component.
Chunked over: nothing; the covariances were.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float
from scipy import linalg

from mechint_core.kernels.joint_covariance import JointCovariance

Mode = Literal["svd", "canonical", "regression"]

ROUNDING = 1e-10
"""What is left of the covariance below this share of it is rounding: there are no more components."""


@dataclass(frozen=True, slots=True)
class Deflation:
    """What a component takes away: C -> C - left (remove_leftᵀ C), then C - (C remove_right) rightᵀ."""

    left: np.ndarray
    remove_left: np.ndarray
    right: np.ndarray
    remove_right: np.ndarray

    def __call__(self, cross: np.ndarray, *, both: bool) -> None:
        """Deflate in place; the second system only where it is deflated by its own directions."""
        cross -= np.outer(self.left, self.remove_left @ cross)
        if both:
            cross -= np.outer(cross @ self.remove_right, self.right)


@dataclass(frozen=True, slots=True)
class Latent:
    """Pairs of directions of large covariance."""

    covariances: Float[np.ndarray, "component"]
    """Singular values: of the covariance that the components before left."""
    weights_x: Float[np.ndarray, "unit component"]
    """Scores are X times these (rotations, in the literature)."""
    weights_y: Float[np.ndarray, "other_unit component"]
    loadings_x: Float[np.ndarray, "unit component"]
    """What a unit rises by where the score does by 1."""
    loadings_y: Float[np.ndarray, "other_unit component"]
    """The same of the second system and its own scores (regression: the first system's scores)."""
    deflations: tuple[Deflation, ...]

    def coefficients(self, covariance: JointCovariance) -> Float[np.ndarray, "unit other_unit"]:
        """Return what predicts the second system from the first system's scores, by least squares."""
        scores = self.weights_x.T @ covariance.xx @ self.weights_x
        return self.weights_x @ np.linalg.lstsq(scores, self.weights_x.T @ covariance.xy)[0]


def latent_directions(covariance: JointCovariance, n_components: int, mode: Mode) -> Latent:
    """Return the first pairs of directions; fewer, if nothing is left to covary."""
    cross = covariance.xy.copy()
    enough = ROUNDING * np.linalg.norm(cross)
    most = len(cross) if mode == "regression" else min(cross.shape)
    strengths: list[float] = []
    columns: tuple[list[np.ndarray], ...] = ([], [], [], [])
    deflations: list[Deflation] = []
    for _ in range(min(n_components, most)):
        if np.linalg.norm(cross) <= enough:
            break
        w, strength, c = leading_pair(cross)
        r, p = _rotated(w, columns[0], columns[2], covariance.xx)
        if mode == "regression":
            s, q = c, covariance.xy.T @ r / (r @ covariance.xx @ r)
        else:
            s, q = _rotated(c, columns[1], columns[3], covariance.yy)
        deflation = Deflation(w, w, c, c) if mode == "svd" else Deflation(p, w, q, c)
        if mode == "svd":
            r, s = w, c
        deflation(cross, both=mode != "regression")
        strengths.append(strength)
        deflations.append(deflation)
        for column, each in zip(columns, (r, s, p, q), strict=True):
            column.append(each)
    sizes = (*cross.shape, *cross.shape)
    r, s, p, q = (np.reshape(column, (len(column), size)).T for column, size in zip(columns, sizes, strict=True))
    return Latent(np.array(strengths), r, s, p, q, tuple(deflations))


def _rotated(
    w: np.ndarray, rotations: list[np.ndarray], loadings: list[np.ndarray], covariance: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the direction in the units themselves, before deflation, and its loadings."""
    r = w.copy()
    for rotation, loading in zip(rotations, loadings, strict=True):
        r -= (loading @ w) * rotation
    return r, covariance @ r / (r @ covariance @ r)


def leading_pair(cross: Float[np.ndarray, "unit other_unit"]) -> tuple[np.ndarray, float, np.ndarray]:
    """Return the first singular pair and value; the largest weight of the first direction is positive."""
    flip = cross.shape[0] < cross.shape[1]
    tall = cross.T if flip else cross
    last = tall.shape[1] - 1
    _, vectors = linalg.eigh(tall.T @ tall, subset_by_index=(last, last), check_finite=False)
    right = vectors[:, 0]
    left = tall @ right
    right = tall.T @ (left / np.linalg.norm(left))  # one step of power iteration: the product was squared above
    right /= np.linalg.norm(right)
    left = tall @ right
    strength = float(np.linalg.norm(left))
    w, c = (right, left / strength) if flip else (left / strength, right)
    sign = 1.0 if w[np.abs(w).argmax()] > 0 else -1.0
    return sign * w, strength, sign * c
