"""Higuchi's fractal dimension: how rough is a curve, from the length it shows at each step size.

    L_m(k) = (N - 1) / (k^2 n_m)  sum_i |x(m + i k) - x(m + (i - 1) k)|        n_m = floor((N - 1 - m) / k)
    L(k)   = mean over m = 0 ... k - 1 of L_m(k)                              ~ k^-D

D is the slope of ln L(k) over ln(1/k) for k = 1 ... kmax: 1 for a smooth curve, 2 for white noise, 2 - H for
fractional Brownian motion.

Source: [@higuchi1988]
Cost: time x unit x kmax absolute differences; 12 ms for 4096 x 1000 at kmax = 10 on one core.
Chunked over: units.
"""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Final, final, no_type_check

import numpy as np
from jaxtyping import Float, Int
from numba import njit

from mechint_core.errors import ConfigurationError, ShapeError
from mechint_core.figure import Curve, Histogram
from mechint_core.fractals._power_law import (
    PIECES,
    Detachable,
    NanPolicy,
    Scaling,
    as_series,
    check_draws,
    mean_exponent,
    over_units,
    shuffled_null,
    stream,
)
from mechint_core.result import Estimate, Result

POOR_FIT: Final = 0.95
"""Below this median R squared the lengths do not follow a power law."""
ROWS: Final = 32
"""Steps worked on before moving to the next units: with `UNITS` they stay in the first-level cache."""
UNITS: Final = 128
"""Units of one inner loop: wide enough to hide what starting the loop costs (32 are 1.7 times slower)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HiguchiFractalDimensionConfig:
    """How far the step size goes, and how sure to be."""

    kmax: int = 10
    """Largest step size. D describes the scales 1 ... kmax: small values measure local roughness, with less variance;
    raise it when the roughness of longer stretches matters."""
    nan_policy: NanPolicy = "raise"
    """Refuse a unit with NaN or infinity, or ("omit") leave it out and count it."""
    n_bootstrap: int = 200
    """Draws behind the interval; 0 for none."""
    n_surrogates: int = 99
    """Random orders behind the null; 0 for none."""
    seed: int = 0
    """Draws the bootstrap and the random orders."""

    def __post_init__(self) -> None:
        if self.kmax < 2:
            raise ConfigurationError(f"kmax must be at least 2, so that there is a slope. Got {self.kmax}.")
        check_draws(self.nan_policy, n_bootstrap=self.n_bootstrap, n_surrogates=self.n_surrogates)


@dataclass(frozen=True, slots=True)
class HiguchiFractalDimensionResult(Result):
    """The roughness of each unit, and of the units on average."""

    technique: ClassVar[str] = "higuchi_fractal_dimension"
    evidence: ClassVar[str] = (
        "Interval: circular bootstrap of 32 pieces of the axis, the same pieces for every unit (Student's t, 95 %); "
        "too narrow when D < 1.25. Null: the mean over up to 32 units with the axis in random order, two-sided p."
    )
    figures: ClassVar[tuple[Histogram | Curve, ...]] = (
        Histogram(values="dimension", title="Fractal dimension of the units", x_label="Higuchi dimension"),
        Curve(
            x="scale",
            y=("length", "fitted_length"),
            title="Curve length by step size",
            x_label="step size k",
            y_label="length L(k), geometric mean over units",
            log_x=True,
            log_y=True,
        ),
    )

    mean_dimension: Estimate
    """Mean over the usable units; between 1 (smooth) and 2 (white noise), up to sampling error."""
    median_r_squared: float
    """How well the power law fits: 1 is perfect. NaN without usable units."""
    kmax: int
    """The fit range is the step sizes 1 ... kmax."""
    n_units: int
    """Units in the mean."""
    n_nan: int
    """Units left out because a value is not finite."""
    n_flat: int
    """Units left out because their length is 0 at a step size: constant, or repeating exactly within kmax steps."""
    dimension: Float[np.ndarray, "unit"]
    """NaN for units left out."""
    standard_error: Float[np.ndarray, "unit"]
    r_squared: Float[np.ndarray, "unit"]
    scale: Int[np.ndarray, "scale"]
    length: Float[np.ndarray, "scale"]
    """L(k), geometric mean over the usable units, in units of the series."""
    fitted_length: Float[np.ndarray, "scale"]
    """The power law with the mean dimension."""

    def reading(self) -> str:
        """Say how rough the units are, and whether order matters at all."""
        left_out = f" {self.n_flat + self.n_nan} units were left out." if self.n_flat + self.n_nan else ""
        if not self.n_units:
            return "No unit varies along the axis, so there is no dimension to speak of." + left_out
        d = self.mean_dimension
        text = f"The mean fractal dimension over {self.n_units} units is {d.value:.3f}"
        text += f" [{d.low:.3f}, {d.high:.3f}]" if np.isfinite(d.low) else ""
        if np.isfinite(d.p_value):
            smoother = "smoother" if d.value < d.null else "rougher"
            apart = f"{smoother} than" if d.p_value < 0.05 else "not distinguishable from"
            text += f": {apart} the same values in random order ({d.null:.3f}, p = {d.p_value:.2g})"
        if self.median_r_squared < POOR_FIT:
            left_out += " The lengths do not follow a power law, so this describes roughness but is no dimension."
        return f"{text}.{left_out}"


def higuchi_fractal_dimension(
    series: Float[np.ndarray, "time unit"],
    *,
    config: HiguchiFractalDimensionConfig = HiguchiFractalDimensionConfig(),
) -> HiguchiFractalDimensionResult:
    """Measure how rough each unit's response is along an ordered axis.

    The axis may be time, or stimuli in a meaningful order; the dimension then measures the roughness of each unit's
    tuning curve. It says how irregular the response is at steps of 1 to kmax, on a scale from 1 (smooth) to 2 (no
    order at all), and assumes that length follows a power law there (see R squared). It cannot tell randomness from
    deterministic irregularity, depends on how finely the axis is sampled, and measurement noise raises it.

    Parameters
    ----------
    series
        Responses in the order of the axis, evenly spaced; at least 2 kmax steps, some 100 for a useful interval.
    config
        The largest step size, what to do about NaN, and the number of draws.

    Returns
    -------
    HiguchiFractalDimensionResult
        Dimensionless `dimension` per unit: 1 for a straight line, 2 for white noise, 2 - H for fractional Brownian
        motion; sampling error and anti-persistent noise reach a little above 2. NaN, and counted in `n_flat`, for a
        constant unit.

    Raises
    ------
    DtypeError
        If `series` does not hold real numbers.
    ShapeError
        If `series` is not (time, unit), or has fewer than 2 kmax steps.
    DegenerateInputError
        If a value is NaN or infinite and the policy is to raise.

    Notes
    -----
    Every difference is counted with the weight of its L_m, so one pass over the series makes all lengths. Scaling a
    unit or shifting it changes nothing. At H = 0.9 (D = 1.1) the interval covers about half as often as it says.

    References
    ----------
    [@higuchi1988]

    Examples
    --------
    A straight line has dimension 1:

    >>> line = np.linspace(0.0, 1.0, 100)[:, None]
    >>> round(float(higuchi_fractal_dimension(line).dimension[0]), 10)
    1.0
    """
    x = as_series(series)
    lengths = _lengths(x, config.kmax)
    n_nan = lengths.refused(config.nan_policy)
    dimension, r_squared = lengths.fit()
    usable = np.isfinite(dimension)
    draws, error = lengths.resample(usable, run=1, n_draws=config.n_bootstrap, rng=stream(config.seed, "bootstrap"))
    null = shuffled_null(
        partial(_dimensions, kmax=config.kmax),
        x,
        usable,
        n_draws=config.n_surrogates,
        rng=stream(config.seed, "shuffle"),
    )
    mean = mean_exponent(dimension, draws, null, degrees_of_freedom=max(1, len(lengths.pieces) - 1))
    length, fitted = lengths.typical(usable, mean.value)
    return HiguchiFractalDimensionResult(
        mean_dimension=mean,
        median_r_squared=float(np.median(r_squared[usable])) if usable.any() else np.nan,
        kmax=config.kmax,
        n_units=int(usable.sum()),
        n_nan=n_nan,
        n_flat=int(np.sum(~usable)) - n_nan,
        dimension=dimension,
        standard_error=error,
        r_squared=r_squared,
        scale=np.arange(1, config.kmax + 1),
        length=length,
        fitted_length=fitted,
    )


@final
@dataclass(frozen=True, slots=True)
class HiguchiFractalDimension:
    """Higuchi's fractal dimension as a function of a series, without interval and null.

    >>> round(HiguchiFractalDimension(kmax=10)(np.arange(100.0)), 10)
    1.0
    """

    kmax: int = 10
    nan_policy: NanPolicy = "raise"

    def __post_init__(self) -> None:
        HiguchiFractalDimensionConfig(kmax=self.kmax, nan_policy=self.nan_policy)

    def __call__(self, series: np.ndarray | Detachable) -> float | Float[np.ndarray, "unit"]:
        """Return the dimension of a series (time,), or of every unit of (time, unit): an array or a torch tensor."""
        x = as_series(series)
        lengths = _lengths(x, self.kmax)
        lengths.refused(self.nan_policy)
        dimension, _ = lengths.fit()
        return float(dimension[0]) if series.ndim == 1 else dimension


def _lengths(series: Float[np.ndarray, "time unit"], kmax: int) -> Scaling:
    """Measure L(k) of every unit, in pieces along the axis."""
    n_steps = len(series)
    if n_steps < 2 * kmax:
        raise ShapeError(f"series must have at least 2 kmax = {2 * kmax} steps. Got {n_steps}. Pass a smaller kmax.")
    n_pieces = min(PIECES, n_steps // kmax)
    edges = np.linspace(0, n_steps, n_pieces + 1).astype(np.int64)
    pieces = over_units(partial(_curve_lengths, series, kmax, edges), series)
    return Scaling(-np.log(np.arange(1, kmax + 1)), pieces, np.ones((n_pieces, kmax)) / n_pieces)


def _dimensions(series: Float[np.ndarray, "time unit"], *, kmax: int) -> Float[np.ndarray, "unit"]:
    edges = np.array([0, len(series)])
    whole = _curve_lengths(series, kmax, edges, 0, series.shape[1])
    return Scaling(-np.log(np.arange(1, kmax + 1)), whole, np.ones((1, kmax))).fit()[0]


@njit(nogil=True, cache=True)
@no_type_check  # numba compiles this function: nothing may wrap it
def _curve_lengths(series: np.ndarray, kmax: int, edges: np.ndarray, first: int, stop: int) -> np.ndarray:
    """Return what each piece adds to L(k), for units first ... stop - 1."""
    n_steps = len(series)
    lengths = np.zeros((len(edges) - 1, kmax, stop - first))
    for piece in range(len(edges) - 1):
        for start in range(edges[piece], edges[piece + 1], ROWS):
            end = min(start + ROWS, edges[piece + 1])
            for unit in range(first, stop, UNITS):
                tile = slice(unit, min(unit + UNITS, stop))
                for k in range(1, kmax + 1):
                    length = lengths[piece, k - 1, tile.start - first : tile.stop - first]
                    for t in range(max(start, k), end):
                        n_m = (n_steps - 1 - t % k) // k
                        weight = (n_steps - 1) / (k**3 * n_m)
                        now, before = series[t, tile], series[t - k, tile]
                        for u in range(len(length)):
                            length[u] += weight * abs(np.float64(now[u]) - np.float64(before[u]))
    return lengths
