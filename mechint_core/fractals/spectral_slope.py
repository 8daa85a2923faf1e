"""Spectral slope: how power falls with frequency, apart from peaks.

    I(f) ~ f^-beta         ln I_j = a - beta ln f_j + e_j

beta is 0 for white noise, 1 for pink, 2 for a random walk; 2H - 1 for fractional Gaussian noise and 2H + 1 for
fractional Brownian motion. I is the periodogram, or its mean over sine tapers; frequencies that belong to a peak (an
oscillation) can be left out of the line.

Source: [@geweke1983], [@riedel1995], [@donoghue2020]
Cost: one Fourier transform per series and taper, 0.2 ms for 4096 steps; 0.5 ms more to leave peaks out.
Chunked over: units.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Final, final

import numpy as np
from jaxtyping import Float

from mechint_core.errors import ConfigurationError, ShapeError
from mechint_core.figure import Curve, Histogram
from mechint_core.fractals._log_spectrum import Lines, band_errors, fit_lines, power_spectrum
from mechint_core.fractals._power_law import (
    Detachable,
    NanPolicy,
    as_series,
    check_draws,
    finite_units,
    mean_exponent,
    over_units,
    shuffled_null,
    stream,
)
from mechint_core.result import NAN, Estimate, Result

FEWEST: Final = 16
"""Fewest frequencies of a fit."""
MISFIT: Final = 3.0
"""Above this median misfit the log spectrum is not a line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpectralSlopeConfig:
    """Which frequencies, which spectrum, and how sure to be."""

    min_frequency: float = 0.0
    """Lowest frequency of the fit, in cycles per step; 0 for the lowest there is (with K tapers, the K-th)."""
    max_frequency: float = 0.5
    """Highest frequency of the fit, in cycles per step: below 0.5. A spectrum that is a power law only at long scales
    (fractional noise) needs 0.1 or less."""
    n_tapers: int = 0
    """0 for the periodogram; some 5 where beta may exceed 2, as power then leaks from low to high frequencies."""
    without_peaks: bool = False
    """Leave out the frequencies of peaks, which are found about the line itself."""
    nan_policy: NanPolicy = "raise"
    """Refuse a unit with NaN or infinity, or ("omit") leave it out and count it."""
    n_bootstrap: int = 200
    """Draws behind the interval; 0 for none."""
    n_surrogates: int = 99
    """Random orders behind the null; 0 for none."""
    seed: int = 0
    """Draws the bootstrap and the random orders."""

    def __post_init__(self) -> None:
        if not 0 <= self.min_frequency < self.max_frequency <= 0.5:
            raise ConfigurationError(
                f"frequencies must obey 0 <= min_frequency < max_frequency <= 0.5. "
                f"Got {self.min_frequency} and {self.max_frequency}."
            )
        if not 0 <= self.n_tapers <= 50:
            raise ConfigurationError(f"n_tapers must be between 0 and 50. Got {self.n_tapers}.")
        check_draws(self.nan_policy, n_bootstrap=self.n_bootstrap, n_surrogates=self.n_surrogates)

    def frequencies(self, n_steps: int) -> slice:
        """Return which of the frequencies between zero and Nyquist are fitted.

        Raises
        ------
        ShapeError
            If there are too few of them.
        """
        frequency = np.arange(1, (n_steps + 1) // 2) / n_steps
        first = max(int(np.searchsorted(frequency, self.min_frequency)), self.n_tapers - 1)
        stop = int(np.searchsorted(frequency, self.max_frequency, side="right"))
        if stop - first < max(FEWEST, 4 * self.n_tapers):
            raise ShapeError(
                f"series must have at least {max(FEWEST, 4 * self.n_tapers)} Fourier frequencies in the fit range. "
                f"Got {max(0, stop - first)} for {n_steps} steps. Widen the range or use fewer tapers."
            )
        return slice(first, stop)


@dataclass(frozen=True, slots=True)
class SpectralSlopeResult(Result):
    """How the power of each unit falls with frequency, and of the units on average."""

    technique: ClassVar[str] = "spectral_slope"
    evidence: ClassVar[str] = (
        "Interval: bootstrap that turns the signs of residuals in runs of frequencies, the same runs for every unit "
        "(Student's t, 95 %; of fractional noise below frequency 0.05 it covers 89 to 92 %). Null: the mean over up to "
        "32 units with the axis in random order, two-sided p."
    )
    figures: ClassVar[tuple[Histogram | Curve, ...]] = (
        Histogram(values="exponent", title="Spectral exponent of the units", x_label="beta"),
        Curve(
            x="frequency",
            y=("spectrum", "fitted_spectrum"),
            title="Power by frequency",
            x_label="frequency (cycles per step)",
            y_label="power over the line's mean, geometric mean over units",
            log_x=True,
            log_y=True,
        ),
    )

    mean_exponent: Estimate
    """Mean beta over the usable units: 0 white, 1 pink, 2 a random walk."""
    median_r_squared: float
    """Of the log spectrum, averaged in up to 12 bands: 1 is a perfect line; near 0 also where beta is 0."""
    median_misfit: float
    """Of the same bands from the line: chi squared per degree of freedom, about 1 for a power law."""
    min_frequency: float
    """Lowest frequency of the fit, in cycles per step."""
    max_frequency: float
    """Highest frequency of the fit."""
    share_in_peaks: float
    """Of the frequencies of the units in the mean: left out as peaks."""
    n_units: int
    """Units in the mean."""
    n_nan: int
    """Units left out because a value is not finite."""
    n_flat: int
    """Units left out because they have no power at some frequency of the fit (constant, or exactly periodic)."""
    exponent: Float[np.ndarray, "unit"]
    """NaN for units left out."""
    standard_error: Float[np.ndarray, "unit"]
    r_squared: Float[np.ndarray, "unit"]
    misfit: Float[np.ndarray, "unit"]
    frequency: Float[np.ndarray, "frequency"]
    spectrum: Float[np.ndarray, "frequency"]
    fitted_spectrum: Float[np.ndarray, "frequency"]

    def reading(self) -> str:
        """Say how fast power falls, and whether a power law describes it."""
        left_out = f" {self.n_flat + self.n_nan} units were left out." if self.n_flat + self.n_nan else ""
        if not self.n_units:
            return "No unit has power at every frequency, so there is no slope to speak of." + left_out
        b = self.mean_exponent
        text = f"Power falls as 1 / f^{b.value:.2f} on average over {self.n_units} units"
        text += f" [{b.low:.2f}, {b.high:.2f}]" if np.isfinite(b.low) else ""
        if np.isfinite(b.p_value):
            way = "slow changes dominate" if b.value > b.null else "fast changes dominate"
            way = way if b.p_value < 0.05 else "not distinguishable from a flat spectrum"
            text += f": {way} (random order gives {b.null:.2f}, p = {b.p_value:.2g})"
        if self.share_in_peaks > 0:
            text += f"; {100 * self.share_in_peaks:.1f} % of the frequencies are peaks, and left out"
        if self.median_misfit > MISFIT:
            left_out += " The log spectrum is not a line, so no single exponent describes it: narrow the fit range."
        return f"{text}.{left_out}"


def spectral_slope(
    series: Float[np.ndarray, "time unit"],
    *,
    config: SpectralSlopeConfig = SpectralSlopeConfig(),
) -> SpectralSlopeResult:
    """Measure how the power of each unit falls with frequency along an ordered axis.

    The slope says where the response changes: at long scales (large beta) or at all scales alike (0). Use it beside
    the Hurst exponent where there may be oscillations, which can be left out of the line, or where the exponent may
    lie outside of the range of fractional noise. It assumes a power law in the fit range (see the misfit).

    Parameters
    ----------
    series
        Responses in the order of the axis, evenly spaced; enough steps for 16 frequencies in the fit range.
    config
        The fit range, the spectrum, whether to leave out peaks, what to do about NaN, and the number of draws.

    Returns
    -------
    SpectralSlopeResult
        Dimensionless `exponent` beta per unit: unbounded, 0 for white noise. NaN, and counted in `n_flat`, for a
        constant unit.

    Raises
    ------
    DtypeError
        If `series` does not hold real numbers.
    ShapeError
        If `series` is not (time, unit), or there are fewer than 16 (4 per taper) frequencies in the fit range.
    DegenerateInputError
        If a value is NaN or infinite and the policy is to raise.

    Notes
    -----
    Scaling a unit or shifting it changes nothing. The mean log of the periodogram is below the log of the spectrum,
    equally at every frequency, which shifts the line and leaves the slope. On exact 1 / f^beta of 4096 steps, beta =
    0 to 2, the mean error is below 0.002 (0.004 with 5 tapers) and the standard deviation 0.03 (0.026). Without
    tapers a drifting series with beta above 2 reads as 2: its two ends do not meet.

    References
    ----------
    [@geweke1983]
    [@riedel1995]
    [@donoghue2020]

    Examples
    --------
    The spectrum of a ramp falls as the square of the frequency:

    >>> ramp = np.arange(4096.0)[:, None]
    >>> config = SpectralSlopeConfig(max_frequency=0.05, n_surrogates=0)
    >>> round(float(spectral_slope(ramp, config=config).exponent[0]), 2)
    2.0
    """
    x, n_nan = finite_units(as_series(series), config.nan_policy)
    fitted = config.frequencies(len(x))
    log_frequency = np.log(np.arange(1, (len(x) + 1) // 2)[fitted] / len(x))
    lines, power = _lines(x, config)
    usable = np.isfinite(lines.exponent)
    chosen = _of_units(lines, usable)
    error = np.full(usable.size, NAN)
    draws = np.full(config.n_bootstrap, NAN)
    run = max(1, 4 * config.n_tapers)
    if usable.any() and config.n_bootstrap > 1:
        rng = stream(config.seed, "bootstrap", "frequencies")
        draws, error[usable] = chosen.resample(run=run, n_draws=config.n_bootstrap, rng=rng)
    null = shuffled_null(_estimator(config), x, usable, n_draws=config.n_surrogates, rng=stream(config.seed, "shuffle"))
    freedom = max(1, log_frequency.size // run - 2)
    mean = mean_exponent(lines.exponent, draws, null, degrees_of_freedom=freedom)
    r_squared, misfit = np.full(usable.size, NAN), np.full(usable.size, NAN)
    r_squared[usable], misfit[usable] = band_errors(chosen, log_frequency, config.n_tapers)
    spectrum, line = _typical(np.log(power[:, usable]) - chosen.level, log_frequency, mean.value)
    return SpectralSlopeResult(
        mean_exponent=mean,
        median_r_squared=float(np.median(r_squared[usable])) if usable.any() else NAN,
        median_misfit=float(np.median(misfit[usable])) if usable.any() else NAN,
        min_frequency=float(np.exp(log_frequency[0])),
        max_frequency=float(np.exp(log_frequency[-1])),
        share_in_peaks=float(np.mean(~chosen.kept)) if usable.any() else NAN,
        n_units=int(usable.sum()),
        n_nan=n_nan,
        n_flat=int(np.sum(~usable)) - n_nan,
        exponent=lines.exponent,
        standard_error=error,
        r_squared=r_squared,
        misfit=misfit,
        frequency=np.exp(log_frequency),
        spectrum=spectrum,
        fitted_spectrum=line,
    )


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SpectralSlope:
    """The spectral exponent as a function of a series, without interval and null.

    >>> round(SpectralSlope(max_frequency=0.05)(np.arange(4096.0)), 2)
    2.0
    """

    min_frequency: float = 0.0
    max_frequency: float = 0.5
    n_tapers: int = 0
    without_peaks: bool = False
    nan_policy: NanPolicy = "raise"

    def __post_init__(self) -> None:
        self._config()

    def __call__(self, series: np.ndarray | Detachable) -> float | Float[np.ndarray, "unit"]:
        """Return the exponent of a series (time,), or of every unit of (time, unit): an array or a torch tensor."""
        x, _ = finite_units(as_series(series), self.nan_policy)
        exponent = _estimator(self._config())(x)
        return float(exponent[0]) if series.ndim == 1 else exponent

    def _config(self) -> SpectralSlopeConfig:
        return SpectralSlopeConfig(
            min_frequency=self.min_frequency,
            max_frequency=self.max_frequency,
            n_tapers=self.n_tapers,
            without_peaks=self.without_peaks,
            nan_policy=self.nan_policy,
        )


def _estimator(config: SpectralSlopeConfig) -> Callable[[np.ndarray], Float[np.ndarray, "unit"]]:
    return partial(_exponents, config)


def _exponents(config: SpectralSlopeConfig, series: Float[np.ndarray, "time unit"]) -> Float[np.ndarray, "unit"]:
    return over_units(partial(_exponents_of_run, series, config), series)[0, 0]


def _exponents_of_run(series: np.ndarray, config: SpectralSlopeConfig, first: int, stop: int) -> np.ndarray:
    return _lines(series[:, first:stop], config)[0].exponent[None, None]


def _lines(series: np.ndarray, config: SpectralSlopeConfig) -> tuple[Lines, Float[np.ndarray, "frequency unit"]]:
    fitted = config.frequencies(len(series))
    power = power_spectrum(series, config.n_tapers)[fitted]
    log_frequency = np.log(np.arange(1, (len(series) + 1) // 2)[fitted] / len(series))
    return fit_lines(power, log_frequency, n_tapers=config.n_tapers, without_peaks=config.without_peaks), power


def _of_units(lines: Lines, usable: np.ndarray) -> Lines:
    return Lines(
        lines.exponent[usable],
        lines.level[usable],
        lines.kept[:, usable],
        lines.residual[:, usable],
        lines.score[:, usable],
    )


def _typical(
    height: Float[np.ndarray, "frequency unit"], log_frequency: Float[np.ndarray, "frequency"], exponent: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the geometric mean over units of the power over the line's mean, and the mean line."""
    if not height.shape[1]:
        return np.full(log_frequency.size, NAN), np.full(log_frequency.size, NAN)
    return np.exp(height.mean(axis=1)), np.exp(-exponent * (log_frequency - log_frequency.mean()))
