"""Two systems of known similarity, to check measures of alignment against.

    X = Z,    Y = r Z Q + sqrt(1 - r²) N,    r² = similarity,   Q orthogonal, Z and N independent with unit covariance

so that Xᵀ Y ∝ r Q: linear CKA is r², and so is the correlation of squared Euclidean distances over pairs of samples.

Source: the definitions in `mechint_core.kernels.linear_kernels`.
Cost: n p² numbers' worth of orthogonalisation.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from mechint_core.errors import ConfigurationError
from mechint_core.random import generator


@dataclass(frozen=True, slots=True)
class AlignedSystems:
    """Responses of two systems to the same samples."""

    x: Float[np.ndarray, "sample unit"]
    y: Float[np.ndarray, "sample unit"]
    similarity: float
    """Their linear CKA in the population; in this very sample too, if drawn with `exact`."""


def aligned_systems(
    n_samples: int, n_units: int, *, similarity: float, seed: int = 0, exact: bool = False
) -> AlignedSystems:
    """Draw two systems whose linear CKA is known.

    Parameters
    ----------
    n_samples, n_units
        Rows, and columns of each system.
    similarity
        Linear CKA: 0 for unrelated systems, 1 for a rotation.
    seed
        Names the draw.
    exact
        Make the sample's covariances the population's, so that the biased CKA of the sample is `similarity` itself.

    Raises
    ------
    ConfigurationError
        If `similarity` is outside [0, 1], or an exact sample has too few rows for its columns to be orthogonal.

    Examples
    --------
    >>> pair = aligned_systems(50, 3, similarity=0.25, exact=True)
    >>> covariance = pair.x.T @ pair.y / 50
    >>> round(float(np.sum(covariance**2) / 3), 12)
    0.25
    """
    if not 0 <= similarity <= 1:
        raise ConfigurationError(f"similarity must be between 0 and 1. Got {similarity}.")
    if exact and n_samples <= 2 * n_units:
        raise ConfigurationError(f"an exact sample needs more than {2 * n_units} rows. Got {n_samples}.")
    rng = generator(seed, "aligned_systems")
    sources = rng.normal(size=(n_samples, 2 * n_units))
    if exact:
        sources = np.sqrt(n_samples) * np.linalg.qr(sources - sources.mean(axis=0))[0]
    rotation = np.linalg.qr(rng.normal(size=(n_units, n_units)))[0]
    shared, own = sources[:, :n_units], sources[:, n_units:]
    mixed = np.sqrt(similarity) * shared @ rotation + np.sqrt(1 - similarity) * own
    return AlignedSystems(shared, mixed, similarity)
