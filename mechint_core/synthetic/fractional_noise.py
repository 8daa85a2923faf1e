"""Noise with a known memory: fractional Gaussian noise, fractional Brownian motion, coloured noise.

Fractional Gaussian noise with Hurst exponent H has unit variance and autocovariance

    gamma(k) = (|k - 1|^2H - 2 |k|^2H + |k + 1|^2H) / 2

so its running sum, fractional Brownian motion, has Var[B(t)] = t^2H, graph dimension 2 - H, and spectrum 1 / f^(2H+1).
Both are drawn exactly, not approximately: gamma is wrapped round a circle of 2n steps, whose covariance the Fourier
transform diagonalises, and no eigenvalue is negative for any H in (0, 1).

Source: [@davies1987], [@mandelbrot1968], [@timmer1995]
Cost: one Fourier transform of 2n steps per series.
"""

import numpy as np
from jaxtyping import Float, Int

from mechint_core.errors import ConfigurationError
from mechint_core.random import generator


def fractional_autocovariance(lag: Int[np.ndarray, "time"], hurst: float) -> Float[np.ndarray, "time"]:
    """Return gamma(lag), the autocovariance of unit-variance fractional Gaussian noise."""
    k = np.abs(lag).astype(np.float64)
    power = 2 * hurst
    return (np.abs(k - 1) ** power - 2 * k**power + (k + 1) ** power) / 2


def fractional_gaussian_noise(
    n_steps: int, hurst: float, *, n_series: int = 1, seed: int = 0
) -> Float[np.ndarray, "time series"]:
    """Draw exact fractional Gaussian noise.

    Parameters
    ----------
    n_steps
        Length of each series.
    hurst
        H in (0, 1): below 0.5 the noise reverts, at 0.5 it is white, above 0.5 it persists.
    n_series
        Number of independent series.
    seed
        Same seed, same bits.

    Returns
    -------
    Float[np.ndarray, "time series"]
        Mean 0, variance 1, autocovariance `fractional_autocovariance`.

    Raises
    ------
    ConfigurationError
        If `hurst` is outside (0, 1), or a length is not positive.
    """
    if not 0 < hurst < 1:
        raise ConfigurationError(f"hurst must lie in (0, 1). Got {hurst}.")
    _require_lengths(n_steps, n_series)
    half = fractional_autocovariance(np.arange(n_steps + 1), hurst)
    circle = np.concatenate([half, half[-2:0:-1]])
    eigenvalues = np.maximum(np.fft.rfft(circle).real, 0)  # rounding alone can make one of them -1e-16
    rng = generator(seed, "fractional_gaussian_noise")
    spectrum = np.sqrt(eigenvalues * circle.size)[:, None] * _hermitian_noise(eigenvalues.size, n_series, rng)
    return np.fft.irfft(spectrum, n=circle.size, axis=0)[:n_steps]


def fractional_brownian_motion(
    n_steps: int, hurst: float, *, n_series: int = 1, seed: int = 0
) -> Float[np.ndarray, "time series"]:
    """Draw exact fractional Brownian motion: the running sum of `fractional_gaussian_noise`."""
    return np.cumsum(fractional_gaussian_noise(n_steps, hurst, n_series=n_series, seed=seed), axis=0)


def coloured_noise(
    n_steps: int, exponent: float, *, n_series: int = 1, seed: int = 0
) -> Float[np.ndarray, "time series"]:
    """Draw Gaussian noise whose expected power is exactly 1 / f^exponent at every Fourier frequency.

    Parameters
    ----------
    n_steps
        Length of each series; each is one period of a periodic process.
    exponent
        0 is white, 1 pink, 2 brown; negative values are blue.
    n_series
        Number of independent series.
    seed
        Same seed, same bits.

    Returns
    -------
    Float[np.ndarray, "time series"]
        Mean 0, expected variance 1.

    Raises
    ------
    ConfigurationError
        If a length is not positive.
    """
    _require_lengths(n_steps, n_series)
    frequency = np.arange(n_steps // 2 + 1, dtype=np.float64)
    power = np.zeros_like(frequency)
    power[1:] = frequency[1:] ** -exponent
    rng = generator(seed, "coloured_noise")
    noise = _hermitian_noise(frequency.size, n_series, rng, last_is_real=n_steps % 2 == 0)
    counted_twice = np.where((frequency == 0) | (2 * frequency == n_steps), 1, 2)
    variance = max(float(counted_twice @ power), np.finfo(np.float64).tiny)
    return np.fft.irfft(n_steps * np.sqrt(power / variance)[:, None] * noise, n=n_steps, axis=0)


def _hermitian_noise(
    n_frequencies: int, n_series: int, rng: np.random.Generator, *, last_is_real: bool = True
) -> np.ndarray:
    """Return unit complex Gaussians for the non-negative frequencies of a real series."""
    real, imaginary = rng.standard_normal((2, n_frequencies, n_series))
    noise = (real + 1j * imaginary) / np.sqrt(2)
    noise[0] = real[0]
    if last_is_real:
        noise[-1] = real[-1]
    return noise


def _require_lengths(n_steps: int, n_series: int) -> None:
    if n_steps < 1 or n_series < 1:
        raise ConfigurationError(f"n_steps and n_series must be at least 1. Got {n_steps} and {n_series}.")
