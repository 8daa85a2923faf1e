"""The second fundamental form at a sample: a quadratic fit of its neighbours over their tangent space.

    w(u) = a + B u + 1/2 u' II u        u: d coordinates along the tangent space, w: those along the normal space

The tangent space is that of principal components first, and then of the fit itself, so that B vanishes. With normal
directions alpha, c' h = tr II and W = diag(1 or 2) so that h' W h = |II|^2, h the entries of II from its diagonal up:

    |H|^2   = sum_alpha (c' h)^2 / d^2                     mean curvature, squared
    R       = sum_alpha (c' h)^2 - h' W h                  scalar curvature, by the equation of Gauss

Noise of variance s^2 over all normal directions adds s^2 c' V c / d^2 to the one and s^2 (c' V c - tr W V) to the other
on average, V = (X'X)^-1 of the fit. Both are subtracted, so that a noisy plane has curvature 0.

Source: [@docarmo1992], [@cazals2005].
Cost: one singular value decomposition of (k + 1) x D per sample.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int


@dataclass(frozen=True, slots=True)
class LocalCurvature:
    """Curvature at a few samples, and of flat neighbourhoods with the same noise."""

    square_mean: Float[np.ndarray, "anchor"]
    """|H|^2, noise subtracted: below 0 where there is less than noise."""
    scalar: Float[np.ndarray, "anchor"]
    noise: Float[np.ndarray, "anchor"]
    """Standard deviation from the fit, over all normal directions."""
    floor: Float[np.ndarray, "anchor"]
    """The |H| that noise alone gives."""
    null_square_mean: Float[np.ndarray, "draw anchor"]
    null_scalar: Float[np.ndarray, "draw anchor"]

    @classmethod
    def joined(cls, parts: list["LocalCurvature"]) -> "LocalCurvature":
        """Put blocks of samples side by side."""
        names = ("square_mean", "scalar", "noise", "floor", "null_square_mean", "null_scalar")
        return cls(*(np.concatenate([getattr(part, name) for part in parts], axis=-1) for name in names))


def n_coefficients(d: int) -> int:
    """Return how many numbers a quadratic of `d` variables has."""
    return 1 + d + d * (d + 1) // 2


def curvature_at(
    rows: Float[np.ndarray, "row unit"],
    neighbours: Int[np.ndarray, "anchor member"],
    d: int,
    orders: Int[np.ndarray, "draw member"],
) -> LocalCurvature:
    """Fit each neighbourhood, whose first member is the sample itself; `orders` shuffle what the fit leaves."""
    fits = [_fit(rows[index].astype(np.float64), d, orders) for index in neighbours]
    return LocalCurvature(*(np.stack(each, axis=-1) for each in zip(*fits, strict=True)))


def _fit(around: Float[np.ndarray, "member unit"], d: int, orders: Int[np.ndarray, "draw member"]) -> tuple:
    """Return |H|^2, R, noise, floor, and draws of the first two for a flat neighbourhood."""
    along, across = _framed(around, d)
    size = np.sqrt(np.mean(along**2))  # then the columns of the fit are alike in size
    along, across = along / size, across / size
    design = _quadratic(along)
    inverse = np.linalg.pinv(design)
    residual = across - design @ (inverse @ across)
    degrees = len(along) - design.shape[1]
    variance = float(np.sum(residual**2) / degrees)
    second = inverse[1 + d :]
    trace, weight = _forms(d)
    covariance = second @ second.T
    bias = (
        variance * float(trace @ covariance @ trace) / d**2,
        variance * float(trace @ covariance @ trace - weight @ np.diag(covariance)),
    )
    shuffled = second[:, orders].transpose(1, 0, 2) @ (residual * np.sqrt(len(along) / degrees))
    found = _invariants((second @ across)[None], trace, weight, d)
    null = _invariants(shuffled, trace, weight, d)
    unit = size**2  # curvature is 1 / length, and these are squares
    return (
        (found[0][0] - bias[0]) / unit,
        (found[1][0] - bias[1]) / unit,
        np.sqrt(variance) * size,
        np.sqrt(bias[0] / unit),
        (null[0] - bias[0]) / unit,
        (null[1] - bias[1]) / unit,
    )


def _framed(
    around: Float[np.ndarray, "member unit"], d: int
) -> tuple[Float[np.ndarray, "member d"], Float[np.ndarray, "member normal"]]:
    """Return coordinates along the tangent and the normal space at the first member."""
    axes = np.linalg.svd(around - around.mean(axis=0), full_matrices=False)[2]
    here = (around - around[0]) @ axes.T
    # The mean lies in the span of the members, so nothing is lost: from here on there are at most k coordinates.
    slope = (np.linalg.pinv(_quadratic(here[:, :d])) @ here[:, d:])[1 : 1 + d]
    tangent = np.concatenate([np.eye(d), slope.T])
    frame = np.linalg.qr(tangent, mode="complete")[0]
    turned = here @ frame
    return turned[:, :d], turned[:, d:]


def _quadratic(u: Float[np.ndarray, "member d"]) -> Float[np.ndarray, "member coefficient"]:
    """Return 1, u_a and u_a u_b for a <= b, with 1/2 where a = b."""
    a, b = np.triu_indices(u.shape[1])
    return np.column_stack([np.ones(len(u)), u, u[:, a] * u[:, b] * np.where(a == b, 0.5, 1.0)])


def _forms(d: int) -> tuple[Float[np.ndarray, "entry"], Float[np.ndarray, "entry"]]:
    """Return c and the diagonal of W."""
    a, b = np.triu_indices(d)
    return (a == b).astype(np.float64), np.where(a == b, 1.0, 2.0)


def _invariants(
    second: Float[np.ndarray, "draw entry normal"],
    trace: Float[np.ndarray, "entry"],
    weight: Float[np.ndarray, "entry"],
    d: int,
) -> tuple[Float[np.ndarray, "draw"], Float[np.ndarray, "draw"]]:
    """Return |H|^2 and R of second fundamental forms."""
    traced = np.sum(np.einsum("e,ben->bn", trace, second) ** 2, axis=1)
    return traced / d**2, traced - np.einsum("e,ben->b", weight, second**2)
