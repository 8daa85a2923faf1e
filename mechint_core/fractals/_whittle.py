"""Whittle's likelihood of fractional Gaussian noise, for many series at once: the spectral kernels of `hurst_exponent`.

    Q(H)    = ln mean_j I_j / f_j(H)  +  mean_j ln f_j(H)             I_j: periodogram at the Fourier frequencies
    f_j(H)  = E I_j = sum_k (1 - |k| / n) gamma_H(k) exp(-2 pi i j k / n)
    L(d)    = ln mean_{j <= m} I_j (j / n)^2d  -  2 d mean_{j <= m} ln(j / n)        H = d + 1/2, power law alone

f is the exact expectation of the periodogram of n steps, not the spectral density, so nothing leaks and nothing is
truncated. Both are smooth in H and are minimised as one Chebyshev polynomial per unit: a table of f at `NODES` values
of H serves all units.

How sure the estimate is follows from the ratios r_j = I_j / f_j / mean(I / f), which are like independent exponentials:
a draw puts other ratios, the same for all units, in place of those at each frequency and moves H by

    sum_j (r*_j - 1) (l_j - mean l) / sum_j (l_j - mean l)^2           l_j = d ln f_j / dH

Source: [@whittle1953], [@beran1994], [@robinson1995], [@sykulski2019], [@dahlhaus1996]
Cost: one Fourier transform per series, and time x unit x NODES / 2 multiplications.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float
from numpy.polynomial import chebyshev

from mechint_core.synthetic.fractional_noise import fractional_autocovariance

NODES: Final = 49
"""Values of H in the table: the minimum of the interpolant is within 1e-7 of that of Q."""
LOW: Final = 0.01
HIGH: Final = 0.99
"""Range of H. An estimate at an end says that the model does not hold."""
FINE: Final = 197
"""Values of H among which the minimum is first sought."""
NEWTON_STEPS: Final = 6
BANDS: Final = 12
"""Bands of frequency, evenly spaced in their logarithm, in which the fit is judged."""


@dataclass(frozen=True, slots=True)
class SpectralModel:
    """The log spectra of a family of processes, with mean 0, by Chebyshev coefficient in H and by frequency."""

    coefficients: Float[np.ndarray, "row frequency"]

    @classmethod
    def fractional_noise(cls, n_steps: int) -> "SpectralModel":
        """Return the expected periodogram of `n_steps` of fractional Gaussian noise, between zero and Nyquist."""
        table = np.stack([expected_periodogram(n_steps, hurst) for hurst in _nodes()])
        return cls(_to_coefficients() @ _levelled(np.log(table)))

    @classmethod
    def power_law(cls, n_steps: int, n_frequencies: int) -> "SpectralModel":
        """Return f^(1 - 2H) at the lowest `n_frequencies` Fourier frequencies."""
        log_frequency = np.log(np.arange(1, n_frequencies + 1) / n_steps)
        return cls(_to_coefficients() @ _levelled((1 - 2 * _nodes())[:, None] * log_frequency))

    @property
    def n_frequencies(self) -> int:
        """Number of frequencies, from the lowest on."""
        return self.coefficients.shape[1]

    def _at_nodes(self) -> Float[np.ndarray, "row frequency"]:
        return chebyshev.chebvander(chebyshev.chebpts1(NODES), NODES - 1) @ self.coefficients

    def fit(self, spectrum: Float[np.ndarray, "frequency unit"]) -> Float[np.ndarray, "unit"]:
        """Return the H that minimises Q for every unit; NaN for a unit without finite power."""
        inverse = np.exp(-self._at_nodes())
        with np.errstate(divide="ignore", invalid="ignore"):
            log_mean = np.log(inverse @ spectrum[: self.n_frequencies] / self.n_frequencies)
        usable = np.isfinite(log_mean).all(axis=0)
        hurst = np.full(spectrum.shape[1], np.nan)
        hurst[usable] = _from_unit(_minimum(_to_coefficients() @ log_mean[:, usable]))
        return hurst

    def log_spectrum(self, hurst: Float[np.ndarray, "unit"]) -> Float[np.ndarray, "unit frequency"]:
        """Return ln f at each unit's own H."""
        return chebyshev.chebvander(_to_unit(hurst), NODES - 1) @ self.coefficients

    def sensitivity(self, hurst: Float[np.ndarray, "unit"]) -> Float[np.ndarray, "unit frequency"]:
        """Return l, the derivative of ln f by H, with mean 0 over frequency."""
        slope = chebyshev.chebder(self.coefficients, scl=2 / (HIGH - LOW), axis=0)
        return chebyshev.chebvander(_to_unit(hurst), NODES - 2) @ slope

    def ratios(self, spectrum: np.ndarray, hurst: Float[np.ndarray, "unit"]) -> Float[np.ndarray, "unit frequency"]:
        """Return r, the periodogram over the fitted spectrum, with mean 1."""
        each = spectrum[: self.n_frequencies].T * np.exp(-self.log_spectrum(hurst))
        return each / each.mean(axis=1, keepdims=True)

    def resample(
        self, spectrum: np.ndarray, hurst: Float[np.ndarray, "unit"], *, n_draws: int, rng: np.random.Generator
    ) -> tuple[Float[np.ndarray, "draw"], Float[np.ndarray, "unit"]]:
        """Return the mean H of each draw, and every unit's standard error: all units are taken to be usable."""
        sensitivity, ratios = self.sensitivity(hurst), self.ratios(spectrum, hurst)
        per_unit = 1 / np.sqrt(np.sum(sensitivity**2, axis=1))
        weight = (sensitivity * per_unit[:, None]).mean(axis=0)
        weight /= np.linalg.norm(weight)
        shared = (ratios * per_unit[:, None]).mean(axis=0)
        picked = rng.integers(0, shared.size, (n_draws, shared.size))
        return hurst.mean() + (shared[picked] - shared.mean()) @ weight, ratios.std(axis=1) * per_unit

    def misfit(self, spectrum: np.ndarray, hurst: Float[np.ndarray, "unit"]) -> Float[np.ndarray, "unit"]:
        """Return chi squared per degree of freedom of the mean ratio in `BANDS` bands: about 1 where the model fits."""
        edges = np.unique(np.round(np.geomspace(1, self.n_frequencies + 1, BANDS + 1)).astype(int)) - 1
        sums = np.add.reduceat(self.ratios(spectrum, hurst) - 1, edges[:-1], axis=1)
        return np.sum(sums**2 / np.diff(edges), axis=1) / max(1, edges.size - 3)


def expected_periodogram(n_steps: int, hurst: float) -> Float[np.ndarray, "frequency"]:
    """Return E I_j of unit-variance fractional Gaussian noise at the frequencies between zero and Nyquist."""
    lag = np.arange(n_steps)
    tapered = (1 - lag / n_steps) * fractional_autocovariance(lag, hurst)
    return (2 * np.fft.rfft(tapered).real - tapered[0])[1 : (n_steps + 1) // 2]


def periodogram(series: Float[np.ndarray, "time unit"]) -> Float[np.ndarray, "frequency unit"]:
    """Return |Fourier transform|^2 / n of every unit over its largest value, between zero and Nyquist."""
    spectrum = np.fft.rfft(centred(series), axis=0)[1 : (len(series) + 1) // 2]
    return (spectrum.real**2 + spectrum.imag**2) / len(series)


def centred(series: Float[np.ndarray, "time unit"]) -> Float[np.ndarray, "time unit"]:
    """Return every unit less its mean, over the largest that leaves; exactly 0 for a constant unit."""
    x = series - series[:1].astype(np.float64)  # the first value, and then the mean: 0.1 has no exact mean
    x -= x.mean(axis=0)
    largest = np.max(np.abs(x), axis=0)
    return x / np.where(largest > 0, largest, 1)  # exponents do not know the scale; squares of 1e-200 would be 0


def _levelled(log_spectra: Float[np.ndarray, "row frequency"]) -> Float[np.ndarray, "row frequency"]:
    """Return the log spectra less their means, which Q does not know: near H = 1 they would be hard to interpolate."""
    return log_spectra - log_spectra.mean(axis=1, keepdims=True)


def _nodes() -> Float[np.ndarray, "row"]:
    return _from_unit(chebyshev.chebpts1(NODES))


def _to_coefficients() -> Float[np.ndarray, "row row"]:
    """Return the matrix from values at the nodes to Chebyshev coefficients."""
    matrix = chebyshev.chebvander(chebyshev.chebpts1(NODES), NODES - 1).T * (2 / NODES)
    matrix[0] /= 2
    return matrix


def _minimum(coefficients: Float[np.ndarray, "row unit"]) -> Float[np.ndarray, "unit"]:
    """Return where each polynomial is least on [-1, 1]: the best of `FINE` values, then Newton's method."""
    fine = np.linspace(-1, 1, FINE)
    at = fine[np.argmin(chebyshev.chebvander(fine, NODES - 1) @ coefficients, axis=0)]
    first, second = chebyshev.chebder(coefficients), chebyshev.chebder(coefficients, 2)
    nearby = (np.maximum(at - fine[1] + fine[0], -1), np.minimum(at + fine[1] - fine[0], 1))
    for _ in range(NEWTON_STEPS):
        curvature = chebyshev.chebval(at, second, tensor=False)
        step = chebyshev.chebval(at, first, tensor=False) / np.where(curvature > 0, curvature, np.inf)
        at = np.clip(at - step, *nearby)
    return at


def _to_unit(hurst: np.ndarray) -> np.ndarray:
    return (2 * hurst - LOW - HIGH) / (HIGH - LOW)


def _from_unit(at: np.ndarray) -> np.ndarray:
    return (LOW + HIGH + (HIGH - LOW) * at) / 2
