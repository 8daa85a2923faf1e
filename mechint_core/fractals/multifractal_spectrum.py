"""Multifractal spectrum: does one exponent describe a series, or do calm and bursty stretches scale differently?

    F_q(n) = (mean over windows of F(n)^q)^(1/q)       F_0(n) = exp mean ln F(n)          ~ n^h(q)
    tau(q) = q h(q) - 1        alpha = d tau / dq        f(alpha) = min_q (q alpha - tau(q))

    mfdfa              F: what a polynomial trend leaves of the walk in windows of n steps, from both ends
    wavelet_leaders    F: the largest wavelet coefficient of the walk near a place, at scale n and below

The walk is the running sum of the series less its mean, so that h(2) is the Hurst exponent of a noise. A monofractal
has one h for all q; the width h(q_min) - h(q_max) says how far a series is from one.

Source: [@kantelhardt2002], [@wendt2007]
Cost: two detrended fluctuation analyses and an exponential per window and moment; 12 multiplications per step for
leaders. The null costs 20 Fourier transforms and sorts per surrogate.
Chunked over: units.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Final, Literal

import numpy as np
from jaxtyping import Float, Int

from mechint_core.errors import ConfigurationError, ShapeError
from mechint_core.figure import Curve, Histogram
from mechint_core.fractals._detrended_windows import orthonormal_polynomials
from mechint_core.fractals._moments import Moments, singularity_spectrum
from mechint_core.fractals._multifractal_windows import window_moments
from mechint_core.fractals._power_law import (
    PIECES,
    NanPolicy,
    as_series,
    check_draws,
    finite_units,
    mean_exponent,
    over_units,
    stream,
)
from mechint_core.fractals._wavelet_leaders import leader_moments
from mechint_core.fractals._whittle import centred
from mechint_core.kernels.resampling import p_value
from mechint_core.kernels.surrogates import amplitude_adjusted, shuffled_orders
from mechint_core.parallel import map_parallel
from mechint_core.result import NAN, Estimate, Result

Method = Literal["mfdfa", "wavelet_leaders"]
Surrogate = Literal["amplitude_adjusted", "shuffled"]

POOR_FIT: Final = 0.9
"""Below this median R squared, at the worst moment, there is no power law."""
RUN: Final = 4
"""Neighbouring pieces resampled together: an eighth of the axis."""
SMALLEST: Final = {"mfdfa": 16, "wavelet_leaders": 8}
"""Smallest window by default."""
NULL_UNITS: Final = 8
"""Most units of one surrogate: a mean over fewer units spreads more, so the p-value errs on the safe side."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MultifractalSpectrumConfig:
    """Which moments, which windows, and how sure to be."""

    method: Method = "mfdfa"
    """mfdfa ignores polynomial trends; wavelet_leaders is nearer at large q, and takes the series for a circle."""
    moments: tuple[float, ...] = (-5.0, -4.0, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0)
    """q, increasing, with 0 and 2 among them: below 0 the calm windows count, above 0 the bursts."""
    min_scale: int = 0
    """Smallest window in steps, a power of two; 0 means 16, for leaders 8."""
    max_scale: int = 0
    """Largest window in steps, a power of two; 0 means a quarter of the series, for leaders an eighth."""
    order: int = 1
    """Order of the polynomial trend of mfdfa."""
    surrogate: Surrogate = "amplitude_adjusted"
    """The null: same values and same spectrum (is there more than linear memory and heavy tails?), or ("shuffled") the
    same values in random order (is there more than heavy tails?)."""
    nan_policy: NanPolicy = "raise"
    """Refuse a unit with NaN or infinity, or ("omit") leave it out and count it."""
    n_bootstrap: int = 200
    """Draws behind the interval; 0 for none."""
    n_surrogates: int = 39
    """Surrogates behind the null; 0 for none."""
    seed: int = 0
    """Draws the bootstrap and the surrogates."""

    def __post_init__(self) -> None:
        if self.method not in ("mfdfa", "wavelet_leaders"):
            raise ConfigurationError(f"method must be 'mfdfa' or 'wavelet_leaders'. Got {self.method!r}.")
        if list(self.moments) != sorted(set(self.moments)) or not {0, 2} < set(self.moments):
            raise ConfigurationError(f"moments must increase, and 0, 2 and others be among them. Got {self.moments}.")
        if max(map(abs, self.moments)) > 10:
            raise ConfigurationError(f"moments must lie between -10 and 10. Got {self.moments}.")
        for name, scale in (("min_scale", self.min_scale), ("max_scale", self.max_scale)):
            if scale and (scale < 4 or scale & (scale - 1)):
                raise ConfigurationError(f"{name} must be 0 or a power of two, at least 4. Got {scale}.")
        if not 1 <= self.order <= 5 or (self.method == "mfdfa" and self._smallest() < self.order + 3):
            raise ConfigurationError(f"order must be in 1 ... 5 and below min_scale - 2. Got {self.order}.")
        if self.surrogate not in ("amplitude_adjusted", "shuffled"):
            raise ConfigurationError(f"surrogate must be 'amplitude_adjusted' or 'shuffled'. Got {self.surrogate!r}.")
        check_draws(self.nan_policy, n_bootstrap=self.n_bootstrap, n_surrogates=self.n_surrogates)

    def windows(self, n_steps: int) -> Int[np.ndarray, "scale"]:
        """Return the window lengths for a series of `n_steps`.

        Raises
        ------
        ShapeError
            If there are fewer than 3.
        """
        fewest = 4 if self.method == "mfdfa" else 8
        scale = 2 ** np.arange(2, max(2, int(n_steps // fewest).bit_length()))
        scale = scale[(scale >= self._smallest()) & (scale <= (self.max_scale or n_steps))]
        if scale.size < 3:
            raise ShapeError(
                f"series must have steps enough for 3 window lengths from {self._smallest()} on. Got {n_steps} steps, "
                f"which allow {scale.size}. Pass longer series or a smaller min_scale."
            )
        return scale

    def _smallest(self) -> int:
        return self.min_scale or SMALLEST[self.method]


@dataclass(frozen=True, slots=True)
class MultifractalSpectrumResult(Result):
    """How the scaling of each unit depends on the moment, and of the units on average."""

    technique: ClassVar[str] = "multifractal_spectrum"
    evidence: ClassVar[str] = (
        "Interval: circular bootstrap of the windows in runs of 1/8 of the axis, the same runs for every unit, moment "
        "and scale (Student's t with one degree of freedom less than the largest windows, 95 %). Null: the mean width "
        "over up to 8 units of surrogates with the same values and spectrum (or in random order), one-sided p."
    )
    figures: ClassVar[tuple[Histogram | Curve, ...]] = (
        Curve(
            x="moment",
            y=("mean_exponent",),
            low="exponent_low",
            high="exponent_high",
            null="null_exponent",
            title="Generalised Hurst exponent by moment",
            x_label="q: calm windows (below 0) or bursts (above)",
            y_label="h(q), mean over units",
        ),
        Curve(
            x="singularity",
            y=("spectrum",),
            title="Singularity spectrum",
            x_label="alpha",
            y_label="f(alpha)",
        ),
        Histogram(values="width", title="Width of the units", x_label="h(q_min) - h(q_max)"),
    )

    mean_width: Estimate
    """h(q_min) - h(q_max), mean over the usable units: 0 for a monofractal, but for some 0.03 of finite size."""
    mean_hurst: Estimate
    """h(2), mean over the usable units. The default null keeps it, so its p-value tests nothing."""
    median_r_squared: float
    """How well the power law fits at the worst moment: 1 is perfect. NaN without usable units."""
    min_scale: int
    """Smallest window of the fit, in steps."""
    max_scale: int
    """Largest window of the fit, in steps."""
    n_units: int
    """Units in the mean."""
    n_nan: int
    """Units left out because a value is not finite."""
    n_flat: int
    """Units left out because at some scale all windows are flat (constant, for one)."""
    n_flat_windows: int
    """Windows (leaders), over all scales and units in the mean, left out because they are flat."""
    width: Float[np.ndarray, "unit"]
    """NaN for units left out."""
    standard_error: Float[np.ndarray, "unit"]
    exponent: Float[np.ndarray, "moment unit"]
    moment: Float[np.ndarray, "moment"]
    mean_exponent: Float[np.ndarray, "moment"]
    exponent_low: Float[np.ndarray, "moment"]
    exponent_high: Float[np.ndarray, "moment"]
    null_exponent: Float[np.ndarray, "moment"]
    """Mean over the surrogates."""
    singularity: Float[np.ndarray, "moment"]
    """alpha, of the mean h(q)."""
    spectrum: Float[np.ndarray, "moment"]
    """f(alpha), of the mean h(q): at most 1."""

    def reading(self) -> str:
        """Say whether one exponent is enough."""
        left_out = f" {self.n_flat + self.n_nan} units were left out." if self.n_flat + self.n_nan else ""
        if not self.n_units:
            return "No unit varies at every scale, so there is no spectrum to speak of." + left_out
        w = self.mean_width
        ends = f"from q = {self.moment[0]:g} to {self.moment[-1]:g}"
        text = f"h falls by {w.value:.3f} {ends}, mean over {self.n_units} units"
        text += f" [{w.low:.3f}, {w.high:.3f}]" if np.isfinite(w.low) else ""
        if np.isfinite(w.p_value):
            differ = "calm and bursty stretches scale differently"
            verdict = differ if w.p_value < 0.05 else "one exponent may be enough"
            text += f": {verdict} (surrogates give {w.null:.3f}, p = {w.p_value:.2g})"
        if self.n_flat_windows:
            left_out += f" {self.n_flat_windows} flat windows were left out."
        if self.median_r_squared < POOR_FIT:
            left_out += " Some moments do not follow a power law, so the width is no sign of multifractality."
        return f"{text}.{left_out}"


def multifractal_spectrum(
    series: Float[np.ndarray, "time unit"],
    *,
    config: MultifractalSpectrumConfig = MultifractalSpectrumConfig(),
) -> MultifractalSpectrumResult:
    """Measure whether calm and bursty stretches of each unit's response scale alike.

    Use it after the Hurst exponent, to see whether one exponent is the whole story: intermittent series (avalanches,
    turbulence) have large and small fluctuations that grow differently with scale. A width alone says little, as
    heavy tails and short series make one too: read it against the surrogates.

    Parameters
    ----------
    series
        Responses in the order of the axis, evenly spaced; at least 256 steps, some 4096 for a width
        worth reading.
    config
        The method, the moments, the windows, the null, and the number of draws.

    Returns
    -------
    MultifractalSpectrumResult
        Dimensionless `exponent` h(q) per moment and unit, decreasing in q for a true multifractal, and its `width`.
        NaN, and counted in `n_flat`, for a constant unit.

    Raises
    ------
    DtypeError
        If `series` does not hold real numbers.
    ShapeError
        If `series` is not (time, unit), or is too short for 3 window lengths.
    DegenerateInputError
        If a value is NaN or infinite and the policy is to raise.

    Notes
    -----
    Windows are powers of two, on which a cascade repeats itself exactly. Scaling a unit or shifting it changes nothing,
    and for mfdfa neither does reversing it, as windows are taken from both ends. Flat windows, which are exactly on
    their trend, are left out at every moment: one of them would decide the mean of F^-5. Error on the deterministic
    binomial cascade (a = 0.75, 2^14 steps, q = -5 to 5), either way round: mfdfa at most 0.04, leaders 0.02.

    References
    ----------
    [@kantelhardt2002]
    [@wendt2007]
    [@schreiber1996]

    Examples
    --------
    The binomial cascade with shares 3/4 and 1/4 has h(2) = 0.839:

    >>> from mechint_core.synthetic.cascades import binomial_cascade
    >>> mass = binomial_cascade(12, 0.75, randomly=True, n_series=8)
    >>> config = MultifractalSpectrumConfig(n_surrogates=0, n_bootstrap=0)
    >>> round(multifractal_spectrum(mass, config=config).mean_hurst.value, 1)
    0.8
    """
    raw, n_nan = finite_units(as_series(series), config.nan_policy)
    scale = config.windows(len(raw))
    x = centred(raw)
    moments = _moments(x, scale, config)
    exponent, r_squared = moments.fit()
    usable = np.asarray(np.isfinite(exponent).all(axis=0))
    draws, error = moments.resample(
        usable, run=RUN, n_draws=config.n_bootstrap, rng=stream(config.seed, "bootstrap", "windows")
    )
    null = _null(x, usable, scale, config)
    freedom = max(1, len(x) // int(scale[-1]) - 1)
    at_two = config.moments.index(2)
    width = _over_finite(exponent[0] - exponent[-1], usable)
    mean_width = mean_exponent(width, draws[:, 0] - draws[:, -1], null[:, 0] - null[:, -1], degrees_of_freedom=freedom)
    each = [
        mean_exponent(_over_finite(h, usable), draws[:, i], null[:, i], degrees_of_freedom=freedom)
        for i, h in enumerate(exponent)
    ]
    mean = np.array([estimate.value for estimate in each])
    alpha, spectrum = singularity_spectrum(moments.q, mean)
    return MultifractalSpectrumResult(
        mean_width=replace(mean_width, p_value=p_value(mean_width.value, null[:, 0] - null[:, -1])),
        mean_hurst=each[at_two],
        median_r_squared=float(np.median(r_squared[:, usable].min(axis=0))) if usable.any() else NAN,
        min_scale=int(scale[0]),
        max_scale=int(scale[-1]),
        n_units=int(usable.sum()),
        n_nan=n_nan,
        n_flat=int(np.sum(~usable)) - n_nan,
        n_flat_windows=int(moments.n_flat[usable].sum()),
        width=width,
        standard_error=error[at_two],
        exponent=exponent,
        moment=moments.q,
        mean_exponent=mean,
        exponent_low=np.array([estimate.low for estimate in each]),
        exponent_high=np.array([estimate.high for estimate in each]),
        null_exponent=np.array([estimate.null for estimate in each]),
        singularity=alpha,
        spectrum=spectrum,
    )


def _moments(series: Float[np.ndarray, "time unit"], scale: np.ndarray, config: MultifractalSpectrumConfig) -> Moments:
    """Return the moments of every unit."""
    q = np.array(config.moments, dtype=np.float64)
    if config.method == "wavelet_leaders":
        levels = np.log2(scale).round().astype(np.int64)
        return Moments.unpack(over_units(partial(leader_moments, series, levels, q, PIECES), series), scale, q)
    trend = orthonormal_polynomials(scale, config.order)
    ways = (series, np.ascontiguousarray(series[::-1]))
    one, other = (over_units(partial(window_moments, way, scale, trend, q, PIECES), way) for way in ways)
    return Moments.unpack(one, scale, q).joined(Moments.unpack(other, scale, q))


def _null(
    series: Float[np.ndarray, "time unit"], usable: np.ndarray, scale: np.ndarray, config: MultifractalSpectrumConfig
) -> Float[np.ndarray, "draw moment"]:
    """Return the mean h(q) of each surrogate."""
    which = np.flatnonzero(usable)
    if config.n_surrogates == 0 or which.size == 0:
        return np.full((0, len(config.moments)), NAN)
    picked = which[np.linspace(0, which.size - 1, min(NULL_UNITS, which.size)).astype(int)]
    each = partial(_surrogate_exponents, np.ascontiguousarray(series[:, picked]), scale, config)
    return np.stack(map_parallel(each, range(config.n_surrogates)))


def _surrogate_exponents(
    series: Float[np.ndarray, "time unit"], scale: np.ndarray, config: MultifractalSpectrumConfig, number: int
) -> Float[np.ndarray, "moment"]:
    rng = stream(config.seed, "surrogate", str(number))
    if config.surrogate == "shuffled":
        other = series[shuffled_orders(len(series), n_draws=1, rng=rng)[0]]
    else:
        other = amplitude_adjusted(series, rng=rng)
    return _moments(other, scale, config).fit()[0].mean(axis=1)


def _over_finite(values: Float[np.ndarray, "unit"], usable: np.ndarray) -> Float[np.ndarray, "unit"]:
    return np.where(usable, values, NAN)
