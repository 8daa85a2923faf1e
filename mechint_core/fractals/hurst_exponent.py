"""Hurst exponent: how strongly does a series remember, by four methods that must agree.

    whittle          the H of fractional Gaussian noise under which the whole periodogram is most likely
    local_whittle    the H of the power law f^(1 - 2H) at the lowest N^bandwidth frequencies, whatever the rest does
    dfa              the slope of ln F(n) over ln n, detrended windows of 16 to N / 4 steps
    rescaled_range   the slope of ln (R/S)(n) / E(n) + ln(n) / 2 over ln n, E(n): what white noise gives (Anis-Lloyd)

H = 1/2 is no memory, above it like follows like, below it high follows low. The model says what the series is: "noise",
whose own memory is H, or "walk", the running sum of such a noise (fractional Brownian motion), of which differences
are taken first.

Source: [@beran1994], [@robinson1995], [@sykulski2019], [@peng1994], [@anis1976]
Cost: time x unit x 25 multiplications for the likelihood, and twice that of detrended fluctuation analysis.
Chunked over: units.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar, Final, Literal, final, get_args

import numpy as np
from jaxtyping import Float

from mechint_core.errors import ConfigurationError
from mechint_core.figure import Bars, Curve, Histogram
from mechint_core.fractals._detrended_windows import detrended_energies, detrended_exponents, orthonormal_polynomials
from mechint_core.fractals._power_law import (
    Detachable,
    NanPolicy,
    Scaling,
    as_series,
    check_draws,
    finite_units,
    mean_exponent,
    over_units,
    shuffled_null,
    stream,
)
from mechint_core.fractals._rescaled_range import rescaled_range_exponents, rescaled_ranges
from mechint_core.fractals._whittle import HIGH, LOW, SpectralModel, periodogram
from mechint_core.fractals.detrended_fluctuation_analysis import RUN, DetrendedFluctuationAnalysisConfig
from mechint_core.result import NAN, Estimate, Result

Method = Literal["whittle", "local_whittle", "dfa", "rescaled_range"]
Model = Literal["noise", "walk"]
METHODS: Final[tuple[Method, ...]] = get_args(Method)

MISFIT: Final = 2.0
"""Above this median misfit the spectrum is not that of fractional noise."""
APART: Final = 0.1
"""Means of two methods that differ by more than this, and by more than three standard errors, disagree."""
WINDOWS: Final = DetrendedFluctuationAnalysisConfig()


@dataclass(frozen=True, slots=True, kw_only=True)
class HurstExponentConfig:
    """Which method makes the headline, what the series is, and how sure to be."""

    method: Method = "whittle"
    """whittle has the least variance (sd 0.011 at 4096 steps) and needs the whole spectrum to be fractional noise;
    local_whittle (0.04) and dfa (0.01 to 0.04) look at long scales only; rescaled_range is off by -0.1 at H = 0.9 and
    +0.08 at 0.1 even when corrected, and is here because people quote it."""
    model: Model = "noise"
    """Take the series as the noise, or ("walk") as its running sum."""
    bandwidth: float = 0.6
    """local_whittle uses the lowest N^bandwidth frequencies: more vary less, and depend more on short scales."""
    nan_policy: NanPolicy = "raise"
    """Refuse a unit with NaN or infinity, or ("omit") leave it out and count it."""
    n_bootstrap: int = 200
    """Draws behind the intervals; 0 for none."""
    n_surrogates: int = 99
    """Random orders behind the null; 0 for none."""
    seed: int = 0
    """Draws the bootstrap and the random orders."""

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ConfigurationError(f"method must be one of {METHODS}. Got {self.method!r}.")
        if self.model not in ("noise", "walk"):
            raise ConfigurationError(f"model must be 'noise' or 'walk'. Got {self.model!r}.")
        if not 0.3 <= self.bandwidth <= 0.8:
            raise ConfigurationError(f"bandwidth must be between 0.3 and 0.8. Got {self.bandwidth}.")
        check_draws(self.nan_policy, n_bootstrap=self.n_bootstrap, n_surrogates=self.n_surrogates)


@dataclass(frozen=True, slots=True)
class HurstExponentResult(Result):
    """The memory of each unit along the axis, by the chosen method, and whether the others say the same."""

    technique: ClassVar[str] = "hurst_exponent"
    evidence: ClassVar[str] = (
        "Interval: for the likelihoods a bootstrap of the ratios of periodogram to fitted spectrum, for the window "
        "methods of windows in runs of 1/8 of the axis, the same draws for every unit (Student's t, 95 %). Null: the "
        "mean over up to 32 units with the axis (of the differences, for a walk) in random order, two-sided p."
    )
    figures: ClassVar[tuple[Histogram | Curve | Bars, ...]] = (
        Histogram(values="hurst", title="Memory of the units", x_label="Hurst exponent"),
        Bars(
            values="method_mean",
            labels="method",
            low="method_low",
            high="method_high",
            title="Mean Hurst exponent by method",
        ),
        Curve(
            x="frequency",
            y=("spectrum", "fitted_spectrum"),
            title="Power by frequency, and fractional noise with each unit's H",
            x_label="frequency (cycles per step)",
            y_label="power over its mean, mean over units",
            log_x=True,
            log_y=True,
        ),
    )

    mean_hurst: Estimate
    """Mean over the usable units, by the chosen method."""
    methods_agree: bool
    """No other method, rescaled range apart, differs by more than 0.1 and three standard errors."""
    largest_difference: float
    """Between the mean by the chosen method and that by another, rescaled range apart."""
    median_misfit: float
    """Of the spectrum from that of fractional noise with Whittle's H: chi squared per degree of freedom, about 1."""
    n_frequencies: int
    """Lowest frequencies that local_whittle uses."""
    min_scale: int
    """Smallest window, in steps."""
    max_scale: int
    """Largest window, in steps."""
    n_units: int
    """Units in the mean."""
    n_nan: int
    """Units left out because a value is not finite."""
    n_flat: int
    """Units left out because they do not vary (at some scale, for the window methods)."""
    n_at_bound: int
    """Units, by the likelihoods, at the end of the range 0.01 ... 0.99: not the chosen kind of series."""
    hurst: Float[np.ndarray, "unit"]
    """NaN for units left out."""
    standard_error: Float[np.ndarray, "unit"]
    method: Annotated[tuple[str, ...], "method"]
    by_method: Float[np.ndarray, "method unit"]
    method_mean: Float[np.ndarray, "method"]
    method_low: Float[np.ndarray, "method"]
    method_high: Float[np.ndarray, "method"]
    frequency: Float[np.ndarray, "frequency"]
    spectrum: Float[np.ndarray, "frequency"]
    fitted_spectrum: Float[np.ndarray, "frequency"]

    def reading(self) -> str:
        """Say which way the units remember, and whether the number can be trusted."""
        left_out = f" {self.n_flat + self.n_nan} units were left out." if self.n_flat + self.n_nan else ""
        if not self.n_units:
            return "No unit varies along the axis, so there is no exponent to speak of." + left_out
        h = self.mean_hurst
        text = f"The mean Hurst exponent over {self.n_units} units is {h.value:.3f}"
        text += f" [{h.low:.3f}, {h.high:.3f}]" if np.isfinite(h.low) else ""
        if np.isfinite(h.p_value):
            way = "like follows like" if h.value > h.null else "high follows low"
            way = way if h.p_value < 0.05 else "not distinguishable from no memory"
            text += f": {way} (random order gives {h.null:.3f}, p = {h.p_value:.2g})"
        if not self.methods_agree:
            left_out += (
                f" The methods differ by up to {self.largest_difference:.2f}: one H does not describe all scales."
            )
        if self.n_at_bound:
            left_out += f" {self.n_at_bound} units are at the end of the range: try the other model."
        if self.median_misfit > MISFIT:
            left_out += " The spectrum is not that of fractional noise: prefer local_whittle or dfa."
        return f"{text}.{left_out}"


@dataclass(frozen=True, slots=True)
class _Memory:
    """What one method makes of every unit."""

    hurst: Float[np.ndarray, "unit"]
    draws: Float[np.ndarray, "draw"]
    error: Float[np.ndarray, "unit"]
    degrees_of_freedom: int

    def estimate(self, null: np.ndarray) -> Estimate:
        return mean_exponent(self.hurst, self.draws, null, degrees_of_freedom=self.degrees_of_freedom)


def hurst_exponent(
    series: Float[np.ndarray, "time unit"],
    *,
    config: HurstExponentConfig = HurstExponentConfig(),
) -> HurstExponentResult:
    """Measure how strongly each unit's response remembers along an ordered axis, by methods that must agree.

    Use it where one number for long-range memory is wanted, with the least variance that the data allow. The default,
    Whittle's likelihood, assumes that the unit is fractional Gaussian noise at all scales (see the misfit); the other
    methods assume a power law at long scales only. None of them can tell memory from a slow trend: DFA of a higher
    order can.

    Parameters
    ----------
    series
        Responses in the order of the axis, evenly spaced; at least 128 steps (129 for a walk).
    config
        The method, the model, what to do about NaN, and the number of draws.

    Returns
    -------
    HurstExponentResult
        Dimensionless `hurst` per unit, in (0, 1): 0.5 for white noise (for a random walk, with model "walk"). NaN,
        and counted in `n_flat`, for a constant unit.

    Raises
    ------
    DtypeError
        If `series` does not hold real numbers.
    ShapeError
        If `series` is not (time, unit), or has fewer than 128 steps (of differences, for a walk).
    DegenerateInputError
        If a value is NaN or infinite and the policy is to raise.

    Notes
    -----
    Scaling a unit or shifting it changes nothing. Mean error on exact fractional noise of 4096 steps, H = 0.1 to 0.9:
    whittle below 0.001 (sd 0.006 to 0.011), local_whittle -0.009 to 0.006 (sd 0.04), dfa -0.01 to 0.01. Intervals are
    conditional on the model: with a large misfit they are too narrow.

    References
    ----------
    [@beran1994]
    [@robinson1995]
    [@sykulski2019]
    [@anis1976]

    Examples
    --------
    A series that alternates at random reverts, and its running sum is the walk of that series:

    >>> from mechint_core.synthetic.fractional_noise import fractional_brownian_motion
    >>> walk = fractional_brownian_motion(2000, 0.3, n_series=4)
    >>> config = HurstExponentConfig(model="walk", n_surrogates=0)
    >>> round(hurst_exponent(walk, config=config).mean_hurst.value, 1)
    0.3
    """
    x, n_nan = _finite_noise(series, config.model, config.nan_policy)
    scale = WINDOWS.windows(len(x))
    n_frequencies = int(len(x) ** config.bandwidth)
    spectrum = over_units(partial(_spectra, x), x)[0]
    noise, law = SpectralModel.fractional_noise(len(x)), SpectralModel.power_law(len(x), n_frequencies)
    memory: dict[Method, _Memory] = {
        "whittle": _by_likelihood(noise, spectrum, config, "whittle"),
        "local_whittle": _by_likelihood(law, spectrum, config, "local_whittle"),
        "dfa": _by_windows(detrended_energies(x, scale, orthonormal_polynomials(scale, 1))[0], len(x), scale, config),
        "rescaled_range": _by_windows(rescaled_ranges(x, scale), len(x), scale, config),
    }
    chosen = memory[config.method]
    usable = np.isfinite(chosen.hurst)
    null = shuffled_null(
        _estimator(config.method, len(x), config.bandwidth),
        x,
        usable,
        n_draws=config.n_surrogates,
        rng=stream(config.seed, "shuffle"),
    )
    estimates = [memory[method].estimate(np.full(0, NAN)) for method in METHODS]
    difference, agree = _agreement(memory, config.method)
    h = memory["whittle"].hurst
    has_power = np.isfinite(h)
    power, fitted = _mean_spectra(noise, spectrum[:, has_power], h[has_power])
    return HurstExponentResult(
        mean_hurst=chosen.estimate(null),
        methods_agree=agree,
        largest_difference=difference,
        median_misfit=float(np.median(noise.misfit(spectrum[:, has_power], h[has_power]))) if has_power.any() else NAN,
        n_frequencies=n_frequencies,
        min_scale=int(scale[0]),
        max_scale=int(scale[-1]),
        n_units=int(usable.sum()),
        n_nan=n_nan,
        n_flat=int(np.sum(~usable)) - n_nan,
        n_at_bound=int(np.sum((chosen.hurst <= LOW) | (chosen.hurst >= HIGH))) if "whittle" in config.method else 0,
        hurst=chosen.hurst,
        standard_error=chosen.error,
        method=METHODS,
        by_method=np.stack([memory[method].hurst for method in METHODS]),
        method_mean=np.array([each.value for each in estimates]),
        method_low=np.array([each.low for each in estimates]),
        method_high=np.array([each.high for each in estimates]),
        frequency=np.arange(1, noise.n_frequencies + 1) / len(x),
        spectrum=power,
        fitted_spectrum=fitted,
    )


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class HurstExponent:
    """The Hurst exponent as a function of a series, without interval and null.

    >>> steps = np.where(np.sin(np.arange(1000.0) ** 2) > 0, 1.0, -1.0)
    >>> round(HurstExponent(model="walk")(np.cumsum(steps)), 1)
    0.5
    """

    method: Method = "whittle"
    model: Model = "noise"
    bandwidth: float = 0.6
    nan_policy: NanPolicy = "raise"

    def __post_init__(self) -> None:
        HurstExponentConfig(method=self.method, model=self.model, bandwidth=self.bandwidth, nan_policy=self.nan_policy)

    def __call__(self, series: np.ndarray | Detachable) -> float | Float[np.ndarray, "unit"]:
        """Return the exponent of a series (time,), or of every unit of (time, unit): an array or a torch tensor."""
        x, _ = _finite_noise(series, self.model, self.nan_policy)
        hurst = _estimator(self.method, len(x), self.bandwidth)(x)
        return float(hurst[0]) if series.ndim == 1 else hurst


def _finite_noise(
    series: np.ndarray | Detachable, model: Model, policy: NanPolicy
) -> tuple[Float[np.ndarray, "time unit"], int]:
    """Return the noise, with units that are not finite set to 0, and how many those are."""
    x, n_nan = finite_units(as_series(series), policy)
    return (np.diff(x.astype(np.float64), axis=0) if model == "walk" else x), n_nan


def _spectra(series: np.ndarray, first: int, stop: int) -> np.ndarray:
    return periodogram(series[:, first:stop])[None]


def _by_likelihood(model: SpectralModel, spectrum: np.ndarray, config: HurstExponentConfig, word: str) -> _Memory:
    hurst = model.fit(spectrum)
    usable = np.isfinite(hurst)
    error = np.full(hurst.size, NAN)
    draws = np.full(config.n_bootstrap, NAN)
    if usable.any() and config.n_bootstrap > 1:
        rng = stream(config.seed, "bootstrap", word)
        draws, error[usable] = model.resample(spectrum[:, usable], hurst[usable], n_draws=config.n_bootstrap, rng=rng)
    return _Memory(hurst, draws, error, model.n_frequencies - 1)


def _by_windows(measured: Scaling, n_steps: int, scale: np.ndarray, config: HurstExponentConfig) -> _Memory:
    hurst, _ = measured.fit()
    draws, error = measured.resample(
        np.isfinite(hurst), run=RUN, n_draws=config.n_bootstrap, rng=stream(config.seed, "bootstrap", "windows")
    )
    return _Memory(hurst, draws, error, n_steps // int(scale[-1]) - 1)


def _estimator(method: Method, n_steps: int, bandwidth: float) -> Callable[[np.ndarray], Float[np.ndarray, "unit"]]:
    """Return one method alone, as a function of series of `n_steps`."""
    scale = WINDOWS.windows(n_steps)
    if method == "dfa":
        return partial(detrended_exponents, scale=scale, trend=orthonormal_polynomials(scale, 1))
    if method == "rescaled_range":
        return partial(rescaled_range_exponents, scale=scale)
    if method == "whittle":
        return partial(_likeliest, SpectralModel.fractional_noise(n_steps))
    return partial(_likeliest, SpectralModel.power_law(n_steps, int(n_steps**bandwidth)))


def _likeliest(model: SpectralModel, series: Float[np.ndarray, "time unit"]) -> Float[np.ndarray, "unit"]:
    return model.fit(over_units(partial(_spectra, series), series)[0])


def _agreement(memory: dict[Method, _Memory], chosen: Method) -> tuple[float, bool]:
    """Return the largest difference of means from the chosen method, and whether all are small or within the error."""
    mean = {
        method: float(np.nanmean(each.hurst)) if np.isfinite(each.hurst).any() else NAN
        for method, each in memory.items()
    }
    spread = {method: float(np.std(each.draws)) if each.draws.size else 0.0 for method, each in memory.items()}
    others = [method for method in METHODS[:3] if method != chosen and np.isfinite(mean[method])]
    differences = np.array([abs(mean[method] - mean[chosen]) for method in others])
    allowed = np.array([max(APART, 3 * float(np.nan_to_num(np.hypot(spread[m], spread[chosen])))) for m in others])
    if not differences.size or not np.isfinite(differences).all():
        return NAN, False
    return float(differences.max()), bool((differences <= allowed).all())


def _mean_spectra(
    model: SpectralModel, spectrum: Float[np.ndarray, "frequency unit"], hurst: Float[np.ndarray, "unit"]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean over units of the periodogram and of the fit, each over its mean."""
    if not hurst.size:
        return np.full(model.n_frequencies, NAN), np.full(model.n_frequencies, NAN)
    fitted = np.exp(model.log_spectrum(hurst)).T
    return (spectrum / spectrum.mean(axis=0)).mean(axis=1), (fitted / fitted.mean(axis=0)).mean(axis=1)
