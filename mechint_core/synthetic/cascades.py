"""Series whose scaling is known moment by moment: binomial cascades and the multifractal random walk.

    binomial cascade     each half of an interval gets a share a or 1 - a of its mass, n times over
                         h(q) = 1 / q - ln(a^q + (1 - a)^q) / (q ln 2)
    multifractal walk    increments e^w z: z white, w Gaussian with covariance l^2 ln(T / (1 + lag)) up to lag T
                         h(q) = 1/2 - l^2 (q - 2) / 2

h is the generalised Hurst exponent of the running sum: the q-th moment of its increments over n steps grows as
n^(q h(q)). A single h for all q is a monofractal.

Source: [@meneveau1987], [@bacry2001]
Cost: linear in the number of values, for the walk one Fourier transform per series.
"""

import numpy as np
from jaxtyping import Float

from mechint_core.errors import ConfigurationError
from mechint_core.random import generator


def binomial_cascade(
    n_levels: int, share: float, *, randomly: bool = False, n_series: int = 1, seed: int = 0
) -> Float[np.ndarray, "time series"]:
    """Return the masses of the 2^n_levels intervals of a binomial cascade.

    Parameters
    ----------
    n_levels
        Number of halvings, at most 24.
    share
        a, the larger share, in [0.5, 1); 0.5 is a constant.
    randomly
        Choose for every interval at random which half gets the larger share, instead of always the left one.
    n_series
        Number of series: equal, unless random.
    seed
        Same seed, same bits.

    Returns
    -------
    Float[np.ndarray, "time series"]
        Positive masses that sum to 1.

    Raises
    ------
    ConfigurationError
        If the share is outside [0.5, 1), or the levels or series are too few or too many.
    """
    if not 0.5 <= share < 1:
        raise ConfigurationError(f"share must lie in [0.5, 1). Got {share}.")
    if not 1 <= n_levels <= 24 or n_series < 1:
        raise ConfigurationError(
            f"n_levels must be between 1 and 24, and n_series at least 1. Got {n_levels} and {n_series}."
        )
    rng = generator(seed, "binomial_cascade")
    mass = np.ones((1, n_series))
    for _ in range(n_levels):
        left = np.full(mass.shape, share)
        if randomly:
            left = np.where(rng.random(mass.shape) < 0.5, 1 - share, left)
        mass = np.stack([mass * left, mass * (1 - left)], axis=1).reshape(-1, n_series)
    return mass


def binomial_cascade_exponents(q: Float[np.ndarray, "moment"], share: float) -> Float[np.ndarray, "moment"]:
    """Return h(q) of a binomial cascade."""
    order = np.where(q == 0, 1.0, q)
    both = 1 / order - np.log(share**order + (1 - share) ** order) / (order * np.log(2))
    return np.where(q == 0, -(np.log(share) + np.log(1 - share)) / (2 * np.log(2)), both)


def multifractal_random_walk(
    n_steps: int, intermittency: float, *, reach: int = 0, n_series: int = 1, seed: int = 0
) -> Float[np.ndarray, "time series"]:
    """Draw the increments of multifractal random walks.

    Parameters
    ----------
    n_steps
        Length of each series.
    intermittency
        l^2, from 0 (white Gaussian noise) to some 0.1.
    reach
        T, the lag beyond which volatilities are independent; 0 means n_steps.
    n_series
        Number of independent series.
    seed
        Same seed, same bits.

    Returns
    -------
    Float[np.ndarray, "time series"]
        Uncorrelated, with mean 0 and expected variance 1.

    Raises
    ------
    ConfigurationError
        If the intermittency is not in [0, 0.5), or a length is not positive.
    """
    if not 0 <= intermittency < 0.5:
        raise ConfigurationError(f"intermittency must lie in [0, 0.5). Got {intermittency}.")
    if n_steps < 2 or n_series < 1 or reach < 0:
        raise ConfigurationError(
            f"n_steps must be at least 2, n_series 1 and reach 0. Got {n_steps}, {n_series} and {reach}."
        )
    lag = np.arange(n_steps + 1)
    covariance = intermittency * np.maximum(np.log((reach or n_steps) / (1.0 + lag)), 0)
    circle = np.concatenate([covariance, covariance[-2:0:-1]])
    eigenvalues = np.maximum(np.fft.rfft(circle).real, 0)  # a convex covariance has none below 0, but for rounding
    rng = generator(seed, "multifractal_random_walk")
    noise = np.fft.rfft(rng.standard_normal((circle.size, n_series)), axis=0)
    volatility = np.fft.irfft(np.sqrt(eigenvalues)[:, None] * noise, n=circle.size, axis=0)[:n_steps]
    return np.exp(volatility - covariance[0]) * rng.standard_normal((n_steps, n_series))
