"""Activations made of known sparse features: the planted truth for every dictionary learner.

    x_i = sum_j c_ij D_j + sigma e_i        c_ij = b_ij |z_ij|,  b_ij ~ Bernoulli(p),  z_ij, e_i ~ N(0, 1)

D_j are unit vectors of random direction, more of them than units: superposition. With `correlation` > 0 the
firing b is a Gaussian copula whose latent Gaussians share random factors, so that some features tend to fire
together and others to exclude each other, each still with probability p.

Source: [@sharkey2022].
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.special import ndtri

from mechint_core.errors import ConfigurationError
from mechint_core.random import generator


@dataclass(frozen=True, slots=True)
class SparseDictionary:
    """Planted truth: `activations = codes @ dictionary + noise`."""

    activations: Float[np.ndarray, "sample unit"]
    dictionary: Float[np.ndarray, "feature unit"]
    codes: Float[np.ndarray, "sample feature"]

    @property
    def l0(self) -> float:
        """Mean number of features active at once."""
        return float(np.count_nonzero(self.codes) / len(self.codes))


def sparse_dictionary(
    n_samples: int,
    *,
    n_units: int = 64,
    n_features: int = 128,
    p_active: float = 0.03,
    correlation: float = 0.0,
    noise: float = 0.0,
    seed: int = 0,
) -> SparseDictionary:
    """Return `n_samples` sums of a few known features each.

    Parameters
    ----------
    n_samples, n_units, n_features
        Sizes; each at least 1.
    p_active
        Chance that a feature is active in a sample, in (0, 1).
    correlation
        Share of the variance of each feature's firing tendency that it has in common with others, in [0, 1).
    noise
        Standard deviation of Gaussian noise on every unit.
    seed
        The same seed gives the same dictionary whatever the number of samples.

    Returns
    -------
    SparseDictionary
        Float32 activations (sample, unit), unit-norm dictionary (feature, unit), codes (sample, feature) >= 0.

    Raises
    ------
    ConfigurationError
        If a size is below 1, or a probability, correlation or noise is out of its range.

    Examples
    --------
    >>> planted = sparse_dictionary(1000, n_features=100, p_active=0.05)
    >>> bool(np.allclose(planted.activations, planted.codes @ planted.dictionary, atol=1e-5))
    True
    >>> round(planted.l0)
    5
    """
    if min(n_samples, n_units, n_features) < 1:
        raise ConfigurationError(f"sizes must be at least 1. Got {n_samples}, {n_units} and {n_features}.")
    if not (0 < p_active < 1 and 0 <= correlation < 1 and noise >= 0):
        raise ConfigurationError(
            f"p_active must be in (0, 1), correlation in [0, 1) and noise >= 0. Got {p_active}, {correlation}, {noise}."
        )
    dictionary = generator(seed, "dictionary").standard_normal((n_features, n_units))
    dictionary /= np.linalg.norm(dictionary, axis=1, keepdims=True)
    firing = _tendency(n_samples, n_features, correlation, seed) < ndtri(p_active)
    sizes = np.abs(generator(seed, "sizes").standard_normal((n_samples, n_features), dtype=np.float32))
    codes = np.where(firing, sizes, np.float32(0))
    activations = codes @ dictionary.astype(np.float32)
    if noise:
        activations += np.float32(noise) * generator(seed, "noise").standard_normal(activations.shape, np.float32)
    return SparseDictionary(activations, dictionary.astype(np.float32), codes)


def _tendency(n_samples: int, n_features: int, correlation: float, seed: int) -> Float[np.ndarray, "sample feature"]:
    """Return standard normal variables, of which `correlation` of the variance comes from a few shared factors."""
    own = generator(seed, "firing").standard_normal((n_samples, n_features), dtype=np.float32)
    if not correlation:
        return own
    n_factors = -(-n_features // 8)
    loadings = generator(seed, "loadings").standard_normal((n_factors, n_features))
    loadings /= np.linalg.norm(loadings, axis=0)
    factors = generator(seed, "factors").standard_normal((n_samples, n_factors), dtype=np.float32)
    shared = factors @ loadings.astype(np.float32)
    return np.float32(np.sqrt(correlation)) * shared + np.float32(np.sqrt(1 - correlation)) * own
