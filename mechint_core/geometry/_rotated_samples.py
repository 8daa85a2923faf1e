"""Random rotations of samples, the same for every cloud of them: what is alike between clouds stays, their shape goes.

    Q       a random rotation of n samples that keeps their mean: H' O H, H the n - 1 contrasts between them
    Q X     a Gaussian cloud with exactly the covariance of X; Q X and Q Y have exactly the covariance of X and Y

If samples are independent and jointly Gaussian over all clouds, Q X has the law of X given its covariance: an exact
test, which includes the choice of landmarks if these are chosen anew in each rotated cloud.

Source: [@langsrud2005]
Cost: n^3 per rotation, 0.02 s for 500 samples.
"""

from collections.abc import Generator
from typing import Final

import numpy as np
from jaxtyping import Float, Int
from scipy.linalg import helmert

from mechint_core.geometry._point_cloud import maxmin_landmarks
from mechint_core.random import generator

MOST_ROTATED: Final = 500
"""Rotating 1000 samples takes 0.13 s."""


def drawn_samples(n_samples: int, seed: int, *, least: int) -> Int[np.ndarray, "row"]:
    """Return all samples, or draw as many as can be rotated, and at `least` so many."""
    most = max(MOST_ROTATED, least)
    rng = generator(seed, "geometry", "rotated_samples", "drawn")
    return np.arange(n_samples) if n_samples <= most else np.sort(rng.choice(n_samples, most, replace=False))


def rotated_landmarks(
    cloud: Float[np.ndarray, "row coordinate"],
    guide: Float[np.ndarray, "row guide_coordinate"],
    *,
    n_landmarks: int,
    n_draws: int,
    seed: int,
) -> Generator[Float[np.ndarray, "landmark coordinate"]]:
    """Rotate the samples of `cloud`, draw by draw; landmarks are those of `guide`, rotated alike."""
    contrasts, guiding = (helmert(len(cloud)) @ each for each in (cloud, guide))
    for draw in range(n_draws):
        rotation = _rotation(len(cloud), seed, draw)
        used = maxmin_landmarks(rotation @ guiding, n_landmarks).index
        yield rotation[used] @ contrasts


def _rotation(n_samples: int, seed: int, draw: int) -> Float[np.ndarray, "row contrast"]:
    """Return where a random rotation takes the contrasts between samples."""
    rng = generator(seed, "geometry", "rotated_samples", "rotation", draw)
    normal = rng.standard_normal((n_samples, n_samples - 1))
    frame, triangle = np.linalg.qr(normal - normal.mean(axis=0))
    return frame * np.sign(np.diagonal(triangle))  # else the signs of a column are those of the algorithm
