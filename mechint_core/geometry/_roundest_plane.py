"""The plane in which a cloud lies most nearly on a circle: projection pursuit for rings.

    minimise over P, P'P = I     E |P'z|^4,       z the whitened cloud (E z z' = I)

In every plane E |P'z|^2 = 2, so the value is at least 4, and 4 exactly where all points have one radius; a Gaussian
cloud has 8. A representation that is a sum of circles of several frequencies looks like a tangle in its leading
principal components wherever two frequencies have similar strength; this finds one circle among them.

    step         P <- orth(6 P - E |y|^2 z y'),   y = P'z

With 4 in place of 6 it is the fixed point of ICA, Newton's at a Gaussian cloud, which also runs to maxima.

Source: [@friedman1974], [@hyvarinen1997], [@hyvarinen2000].
Cost: steps x starts x n x k products; 1 ms for 59 points in 8 dimensions.
"""

from typing import Final

import numpy as np
from jaxtyping import Float

STEPS: Final = 20
RANDOM_STARTS: Final = 12
DAMPING: Final = 6.0


def roundest_plane(
    scores: Float[np.ndarray, "sample coordinate"], rng: np.random.Generator
) -> Float[np.ndarray, "coordinate 2"]:
    """Return the map from centred, uncorrelated `scores` to the whitened plane that minimises E |y|^4."""
    n, k = scores.shape
    whitening = np.sqrt(n) / np.linalg.norm(scores, axis=0)
    z = scores * whitening
    planes = _starts(k, rng)
    for _ in range(STEPS):
        planes = np.linalg.qr(DAMPING * planes - z.T @ _cubed(z @ planes) / n)[0]
    fourth_moment = np.mean(np.sum((z @ planes) ** 2, axis=-1) ** 2, axis=-1)
    return whitening[:, None] * planes[fourth_moment.argmin()]


def plane_of(
    scores: Float[np.ndarray, "sample component"], rng: np.random.Generator, *, roundest: bool
) -> Float[np.ndarray, "component coordinate"]:
    """Return the map from principal components to the roundest plane, or to themselves."""
    if not roundest or scores.shape[1] <= 2:
        return np.eye(scores.shape[1])
    return roundest_plane(scores, rng)


def _cubed(y: Float[np.ndarray, "start sample 2"]) -> Float[np.ndarray, "start sample 2"]:
    """Return |y|^2 y."""
    return y * (y[..., :1] ** 2 + y[..., 1:] ** 2)


def _starts(k: int, rng: np.random.Generator) -> Float[np.ndarray, "start coordinate 2"]:
    """Return the planes of components 1-2, 3-4, ... and random ones."""
    neighbours = [np.eye(k)[:, [i, i + 1]] for i in range(0, k - 1, 2)]
    return np.concatenate([neighbours, np.linalg.qr(rng.standard_normal((RANDOM_STARTS, k, 2)))[0]])
