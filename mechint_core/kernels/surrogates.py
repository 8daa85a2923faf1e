"""Surrogate series: the same values, or the same spectrum, with the structure under test destroyed.

    shuffled orders       keep the values of every unit and what the units share at each step; destroy the order
    phase randomisation   keep the power spectrum of every unit and the cross-spectra; destroy the rest
    amplitude adjustment  keep the values and (nearly) the power spectrum of every unit; destroy the rest

A statistic of the data is compared with the same statistic of the surrogates. Every unit gets the same
rearrangement, so that what units have in common stays in the null.

Source: [@theiler1992], [@prichard1994], [@schreiber1996]
Cost: one gather, or one Fourier transform, per surrogate.
"""

import numpy as np
from jaxtyping import Float, Int

from mechint_core.errors import ShapeError


def shuffled_orders(length: int, *, n_draws: int, rng: np.random.Generator) -> Int[np.ndarray, "draw time"]:
    """Return `n_draws` random orders of `length` steps: `series[orders[i]]` is a surrogate."""
    if length < 2:
        raise ShapeError(f"a series must have at least 2 steps to be shuffled. Got {length}.")
    orders = np.tile(np.arange(length), (n_draws, 1))
    return rng.permuted(orders, axis=1)


def phase_randomized(
    series: Float[np.ndarray, "time unit"], *, rng: np.random.Generator
) -> Float[np.ndarray, "time unit"]:
    """Return `series` with one random phase added to each frequency, the same for every unit.

    Parameters
    ----------
    series
        Finite values. Best where the two ends meet: a jump between them is part of the spectrum that is kept.
    rng
        Source of the phases.

    Returns
    -------
    Float[np.ndarray, "time unit"]
        Same mean, variance, periodogram and cross-periodograms as `series`; linear and Gaussian otherwise.

    Raises
    ------
    ShapeError
        If there are fewer than 3 steps, so that there is no phase to change.
    """
    length = series.shape[0]
    if length < 3:
        raise ShapeError(f"a series must have at least 3 steps to have phases. Got {length}.")
    spectrum = np.fft.rfft(np.asarray(series, dtype=np.float64), axis=0)
    free = slice(1, (length + 1) // 2)  # the mean, and the last frequency of an even length, must stay real
    turns = rng.uniform(0, 2 * np.pi, spectrum[free].shape[0])
    spectrum[free] *= np.exp(1j * turns)[:, None]
    return np.fft.irfft(spectrum, n=length, axis=0)


def amplitude_adjusted(
    series: Float[np.ndarray, "time unit"], *, rng: np.random.Generator, n_rounds: int = 20
) -> Float[np.ndarray, "time unit"]:
    """Return the values of every unit in an order that has (nearly) its power spectrum, and is random otherwise.

    Parameters
    ----------
    series
        Finite values.
    rng
        Source of the first order, the same for every unit.
    n_rounds
        How often spectrum and values are put right in turn; the values come last, so that they are exact.

    Returns
    -------
    Float[np.ndarray, "time unit"]
        A permutation of each unit.

    Raises
    ------
    ShapeError
        If there are fewer than 3 steps.
    """
    length = series.shape[0]
    if length < 3:
        raise ShapeError(f"a series must have at least 3 steps to have phases. Got {length}.")
    values = np.sort(np.asarray(series, dtype=np.float64), axis=0)
    wanted = np.abs(np.fft.rfft(series, axis=0))
    now = np.asarray(series, dtype=np.float64)[rng.permutation(length)]
    for _ in range(n_rounds):
        spectrum = np.fft.rfft(now, axis=0)
        size = np.abs(spectrum)
        spectrum = wanted * np.where(size > 0, spectrum / np.where(size > 0, size, 1), 1)
        order = np.argsort(np.fft.irfft(spectrum, n=length, axis=0), axis=0)
        now = np.empty_like(values)
        np.put_along_axis(now, order, values, axis=0)
    return now
