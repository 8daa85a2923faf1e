"""Criticality: does activity spread in avalanches without a scale, each event causing one more on average?

    avalanches         runs of active bins between silent ones: P(size) ~ size^-alpha, P(duration) ~ duration^-beta
    crackling noise    mean size ~ duration^gamma, and gamma = (beta - 1) / (alpha - 1)
    branching ratio    m of r_k = b m^k, the slope of the activity k bins later over that of now

A critical branching process has alpha = 3/2, beta = 2, gamma = 2 and m = 1. Power laws alone are not criticality:
random walks, thresholded noise and mixtures of scales have them too, and a recording that sees a part of the units, or
bins of another width, changes every exponent but m. So each claim is tested by itself: the power law against its own
simulations and against other laws, the relation of the exponents, and the avalanches against units shifted apart.

Source: [@beggs2003], [@clauset2009], [@sethna2001], [@wilting2018], [@touboul2017]
Cost: one pass over the raster and one for each surrogate; 10 ms per draw for 100,000 avalanches.
Chunked over: time.
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Final

import numpy as np
from jaxtyping import Bool, Float, Int, Num

from mechint_core.errors import ConfigurationError, DegenerateInputError, ShapeError
from mechint_core.figure import Curve
from mechint_core.fractals._avalanches import Avalanches, Events, in_bins, mean_interval, silent_level, silent_shares
from mechint_core.fractals._branching_ratio import Branching
from mechint_core.fractals._crackling import Exponents, Ranges, fit_tails, fitted_sizes, mean_sizes, resampled, shifted
from mechint_core.fractals._power_law import NanPolicy, check_draws
from mechint_core.fractals._tail_alternatives import ALTERNATIVES, Comparisons, likelier_law
from mechint_core.fractals._zeta_tail import TailRange, ZetaTail
from mechint_core.kernels.resampling import estimate, percentile_interval
from mechint_core.parallel import Rows
from mechint_core.result import Estimate, Result

FEWEST_BINS: Final = 200
"""Fewest bins of a recording: 20 stretches of 10."""
SIGNIFICANT: Final = 0.05
IMPLAUSIBLE: Final = 0.1
"""A goodness of fit below this rules the power law out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CriticalityConfig:
    """What an event, a bin and silence are, which tails are fitted, and how sure to be."""

    threshold: float | None = None
    """Standard deviations above its mean at which a unit has an event. Without it the raster must count events; truth
    values are events as they are."""
    bin_width: int = 1
    """Steps per bin; 0 for the mean interval between steps with events."""
    silence: float = 0.0
    """Share of bins that are silent by decree, for activity that never stops; 0: silent is a bin without events."""
    largest_size: int = 0
    """Larger avalanches are left out of the fit of sizes (the cut-off of a finite system); 0 for no limit."""
    longest_duration: int = 0
    """Longer avalanches are left out of the fits of durations and of gamma, in bins; 0 for no limit."""
    fewest_in_tail: int = 100
    """No power law is fitted to fewer avalanches."""
    n_starts: int = 200
    """Values tried as the smallest of a power law; 0 for all."""
    max_lag: int = 0
    """Largest lag of the branching ratio, in bins; 0: until r_k has faded."""
    nan_policy: NanPolicy = "raise"
    """Refuse a unit with NaN or infinity, or ("omit", with a threshold) leave it out and count it."""
    n_bootstrap: int = 200
    """Draws behind the intervals; 0 for none."""
    n_simulations: int = 99
    """Simulated data sets behind each goodness of fit; 0 for none."""
    n_surrogates: int = 39
    """Rasters of shifted units, and random orders of the activity, behind the nulls; 0 for none."""
    seed: int = 0
    """Draws the bootstrap, the simulations and the surrogates."""

    def __post_init__(self) -> None:
        if min(self.bin_width, self.largest_size, self.longest_duration, self.n_starts, self.max_lag) < 0:
            raise ConfigurationError(
                "bin_width, largest_size, longest_duration, n_starts and max_lag must not be negative. Got "
                f"{(self.bin_width, self.largest_size, self.longest_duration, self.n_starts, self.max_lag)}."
            )
        if self.threshold is not None and not np.isfinite(self.threshold):
            raise ConfigurationError(f"threshold must be finite. Got {self.threshold}.")
        if not 0 <= self.silence < 1:
            raise ConfigurationError(f"silence must lie in [0, 1). Got {self.silence}.")
        if self.fewest_in_tail < 10:
            raise ConfigurationError(f"fewest_in_tail must be at least 10. Got {self.fewest_in_tail}.")
        draws = {"n_bootstrap": self.n_bootstrap, "n_simulations": self.n_simulations}
        check_draws(self.nan_policy, **draws, n_surrogates=self.n_surrogates)

    def ranges(self) -> Ranges:
        """Return what the fits may use."""
        size, duration = (
            TailRange(largest=float(most or np.inf), fewest=self.fewest_in_tail, n_starts=self.n_starts)
            for most in (self.largest_size, self.longest_duration)
        )
        return Ranges(size=size, duration=duration)


def _log_log(x: str, y: str, title: str, x_label: str, y_label: str) -> Curve:
    return Curve(x=x, y=(y, f"fitted_{y}"), title=title, x_label=x_label, y_label=y_label, log_x=True, log_y=True)


@dataclass(frozen=True, slots=True)
class CriticalityResult(Result):
    """How activity spreads: its avalanches, their exponents, and its branching ratio."""

    technique: ClassVar[str] = "criticality"
    evidence: ClassVar[str] = (
        "Intervals: of the exponents percentiles over draws of runs of neighbouring avalanches, with a new x_min each "
        "(95 %); of branching ratios and silent share stretches of the recording drawn anew (95 %). Nulls: of silent "
        "share (one-sided) and exponents (two-sided) units shifted around the circle by random times; of the distances "
        "data simulated from the fitted law; of the branching ratios the bins in random order, tested by r_1."
    )
    figures: ClassVar[tuple[Curve, ...]] = (
        _log_log("size", "size_survival", "Avalanches by size", "size (events)", "share at least as large"),
        _log_log(
            "duration", "duration_survival", "Avalanches by duration", "duration (bins)", "share at least as long"
        ),
        _log_log("duration", "mean_size", "Mean size by duration", "duration (bins)", "size (events)"),
        Curve(
            x="lag",
            y=("slope_by_lag", "fitted_slope_by_lag"),
            title="Activity later over activity now",
            x_label="lag (bins)",
            y_label="r_k",
        ),
    )

    size_exponent: Estimate
    """alpha: 3/2 in a critical branching process."""
    duration_exponent: Estimate
    """beta: 2 in a critical branching process."""
    growth_exponent: Estimate
    """gamma: 2 in a critical branching process."""
    predicted_growth: Estimate
    """(beta - 1) / (alpha - 1)."""
    crackling_difference: Estimate
    """gamma less that: 0 where the exponents belong together."""
    size_distance: Estimate
    """From the fitted law, its mean over simulations of that law, and the goodness of fit as p-value."""
    duration_distance: Estimate
    branching_ratio: Estimate
    """m, corrected for units that are not seen: 1 is critical."""
    naive_branching_ratio: Estimate
    """r_1: too small where units are not seen."""
    autocorrelation_time: Estimate
    """-1 / ln m, in steps."""
    descendants: Estimate
    """Events after the first bin of avalanches per event: m where each has one cause, and all units are seen."""
    silent_share: Estimate
    """Bins that are silent: more than in units shifted apart where their events come together."""
    exponents_consistent: bool
    """The interval of the crackling difference holds 0."""
    branching_applies: bool
    """r_k falls as b m^k: what is left is below a tenth of r_1, or twice its standard error."""
    ratio_with_offset: float
    """m of r_k = b m^k + c: far from the branching ratio where the recording drifts."""
    smallest_size: float
    """x_min of the fit of sizes."""
    smallest_duration: float
    """x_min of the fit of durations, in bins."""
    n_avalanches: int
    n_in_size_tail: int
    """Avalanches that the law is fitted to."""
    n_in_duration_tail: int
    n_cut: int
    """Avalanches that an end of the recording cuts, and that are left out."""
    n_bins: int
    n_silent: int
    """Bins without events (at most at the silent level)."""
    silent_level: int
    """Events in a bin that still count as silence; the sizes count those above."""
    bin_width: int
    """In steps."""
    n_events: int
    n_units: int
    """Units that are counted."""
    n_nan: int
    """Units left out because a value is not finite."""
    n_flat: int
    """Units that never vary, and so have no event."""
    n_usable_surrogates: int
    """Surrogates with enough avalanches for exponents."""
    model: Annotated[tuple[str, ...], "model"]
    size_likelihood_ratio: Float[np.ndarray, "model"]
    """ln likelihood of the power law less that of the other: above 0, the power law is likelier."""
    size_ratio_statistic: Float[np.ndarray, "model"]
    """Vuong's z; for the truncated power law 2 ln ratio."""
    size_ratio_p_value: Float[np.ndarray, "model"]
    duration_likelihood_ratio: Float[np.ndarray, "model"]
    duration_ratio_statistic: Float[np.ndarray, "model"]
    duration_ratio_p_value: Float[np.ndarray, "model"]
    avalanche_size: Int[np.ndarray, "avalanche"]
    avalanche_duration: Int[np.ndarray, "avalanche"]
    """In bins."""
    size: Float[np.ndarray, "avalanche_size"]
    size_survival: Float[np.ndarray, "avalanche_size"]
    fitted_size_survival: Float[np.ndarray, "avalanche_size"]
    duration: Float[np.ndarray, "avalanche_duration"]
    duration_survival: Float[np.ndarray, "avalanche_duration"]
    fitted_duration_survival: Float[np.ndarray, "avalanche_duration"]
    mean_size: Float[np.ndarray, "avalanche_duration"]
    fitted_mean_size: Float[np.ndarray, "avalanche_duration"]
    lag: Int[np.ndarray, "scale"]
    slope_by_lag: Float[np.ndarray, "scale"]
    fitted_slope_by_lag: Float[np.ndarray, "scale"]

    def reading(self) -> str:
        """Say what spreads, whether sizes follow a power law, and whether the exponents belong together."""
        m = self.branching_ratio
        text = f"Each event is followed by {m.value:.3f}"
        text += f" [{m.low:.3f}, {m.high:.3f}]" if np.isfinite(m.low) else ""
        text += " events in the next bin."
        r = self.naive_branching_ratio
        if m.value == 0 or r.low <= 0 or (np.isnan(r.low) and r.p_value > SIGNIFICANT):
            text = "Activity is not known to carry over to the next bin, so there is no branching ratio."
        elif not self.branching_applies:
            text += " But activity does not fade as branching does: do not trust this number."
        elif not m.low <= self.ratio_with_offset <= m.high and np.isfinite(m.low):
            text += f" With an offset the ratio is {self.ratio_with_offset:.3f}: does the recording drift?"
        if not np.isfinite(self.size_exponent.value):
            few = f"{self.n_avalanches} avalanches, {self.n_silent} silent bins of {self.n_bins}"
            return f"{text} There are too few avalanches for a power law ({few})."
        return f"{text} {self._sizes()} {self._crackling()}"

    def _sizes(self) -> str:
        a, goodness = self.size_exponent, self.size_distance.p_value
        text = (
            f"The {self.n_in_size_tail} of {self.n_avalanches} avalanches from size {self.smallest_size:g} on fall as"
        )
        text += f" size^-{a.value:.2f}"
        other = likelier_law(self.size_likelihood_ratio, self.size_ratio_p_value, SIGNIFICANT)
        if other:
            return f"{text}, but {other} is likelier."
        if goodness < IMPLAUSIBLE:
            return f"{text}, but no power law fits them (p = {goodness:.2g})."
        return f"{text}, and no other law is likelier."

    def _crackling(self) -> str:
        d = self.crackling_difference
        if not np.isfinite(d.low):
            return ""
        agree = "belong together" if self.exponents_consistent else "do not belong together"
        return f"The exponents of size, duration and growth {agree} (difference {d.value:.2f})."


def criticality(
    raster: Num[Rows, "time unit"] | Bool[Rows, "time unit"],
    *,
    config: CriticalityConfig = CriticalityConfig(),
) -> CriticalityResult:
    """Measure how activity spreads over units: avalanches, their exponents, and the branching ratio.

    Use it for spikes, or for activations along an axis with time, where the question is whether a network is near the
    edge between activity that dies out and activity that grows. The branching ratio needs no silence and not all
    units; avalanches need both. What it cannot tell: power laws alone are not criticality, since many mechanisms make
    them. Report the whole set: goodness of fit, other laws, the relation of the exponents, m, and the null.

    Parameters
    ----------
    raster
        Events by step and unit (counts, or true where there is one), or with a threshold any activity; in memory or
        stored. At least 200 bins.
    config
        The threshold, bins and silence, limits of the fits, and the number of draws.

    Returns
    -------
    CriticalityResult
        Dimensionless exponents and ratios. Exponents are NaN where fewer than `fewest_in_tail` avalanches are left,
        which is so where activity never falls silent (`n_silent` 0).

    Raises
    ------
    DtypeError
        If `raster` does not hold real numbers.
    ShapeError
        If `raster` is not (time, unit), or has fewer than 200 bins, or than twice `max_lag`.
    DegenerateInputError
        If there are no events, or as many in every bin; numbers that count nothing or too much, without a threshold;
        with one, squares that overflow or vanish; NaN or infinity, if the policy is to raise.

    Notes
    -----
    A critical branching process reaches duration^-2 slowly: from 30 bins on, the exponent is 1.95. The pile of
    avalanches that a limit of the recording or the system stops is no power law; `longest_duration` leaves it out.
    The branching ratio takes the drive as independent of the activity: of avalanches that start only when the last has
    ended it makes 0.73 where m is 0.8, and `descendants` is exact.
    Goodness of fit and likelihood ratios take avalanches as independent; the bootstrap keeps runs of them together.

    References
    ----------
    [@beggs2003]
    [@clauset2009]
    [@wilting2018]
    [@touboul2017]

    Examples
    --------
    Of a process in which each event causes 0.9 others, a tenth of the units is seen:

    >>> from mechint_core.synthetic.branching_processes import driven_branching
    >>> seen = driven_branching(50_000, 0.9)[:, :10]
    >>> result = criticality(seen)
    >>> round(result.branching_ratio.value, 1), round(result.naive_branching_ratio.value, 1)
    (0.9, 0.3)
    """
    events = Events.of(raster, config.threshold, config.nan_policy)
    n_units = raster.shape[1]
    steps = events.activity(np.zeros((1, n_units), dtype=np.int64))[0]
    width = config.bin_width or mean_interval(steps)
    activity = _varying(in_bins(steps, width), width)
    level = silent_level(activity, config.silence)
    found = Avalanches.of(activity, level)
    ranges = config.ranges()
    size, duration = fit_tails(found, ranges)
    values = Exponents.of(found, size, duration).numbers()
    null = shifted(events, ranges, width=width, level=level, n_draws=config.n_surrogates, seed=config.seed)
    usable = bool(np.isfinite(values[:2]).any())
    draws = resampled(found, ranges, config.n_bootstrap if usable else 0, config.seed)
    silent = silent_shares(activity, level, config.n_bootstrap, config.seed)
    branching = Branching.of(
        activity, config.max_lag, n_draws=config.n_bootstrap, n_orders=config.n_surrogates, seed=config.seed
    )
    low, high = percentile_interval(draws[:, 4])
    length, mean_size, weight = mean_sizes(found, duration)
    return CriticalityResult(
        size_exponent=estimate(values[0], bootstrap=draws[:, 0], null=null[:, 2], tail="two-sided"),
        duration_exponent=estimate(values[1], bootstrap=draws[:, 1], null=null[:, 3], tail="two-sided"),
        growth_exponent=estimate(values[2], bootstrap=draws[:, 2], null=null[:, 4], tail="two-sided"),
        predicted_growth=estimate(values[3], bootstrap=draws[:, 3]),
        crackling_difference=Estimate(values[4], low, high, 0.0),
        branching_ratio=branching.corrected,
        naive_branching_ratio=branching.naive,
        autocorrelation_time=branching.time(width),
        descendants=estimate(values[5], bootstrap=draws[:, 5], null=null[:, 1], tail="two-sided"),
        silent_share=estimate(found.n_silent / activity.size, bootstrap=silent, null=null[:, 0]),
        exponents_consistent=low <= 0 <= high,
        branching_applies=branching.applies,
        ratio_with_offset=branching.with_offset,
        n_avalanches=found.size.size,
        n_cut=found.n_cut,
        n_bins=activity.size,
        n_silent=found.n_silent,
        silent_level=level,
        bin_width=width,
        n_events=int(steps.sum()),
        n_units=n_units - events.n_nan - events.n_flat,
        n_nan=events.n_nan,
        n_flat=events.n_flat,
        n_usable_surrogates=int(np.isfinite(null[:, 2:]).any(axis=1).sum()),
        model=ALTERNATIVES,
        avalanche_size=found.size,
        avalanche_duration=found.duration,
        mean_size=mean_size,
        fitted_mean_size=fitted_sizes(length, mean_size, weight),
        lag=branching.lag,
        slope_by_lag=branching.slopes,
        fitted_slope_by_lag=branching.fitted,
        **_of_law("size", size, config),
        **_of_law("duration", duration, config),
    )


def _varying(activity: Int[np.ndarray, "time"], width: int) -> Int[np.ndarray, "time"]:
    """Refuse activity that is too short, absent or the same in every bin."""
    if activity.size < FEWEST_BINS:
        raise ShapeError(f"raster must have at least {FEWEST_BINS} bins. Got {activity.size} bins of {width} steps.")
    if not activity.any():
        raise DegenerateInputError("raster must hold events. Got none. Pass a lower threshold.")
    if activity.min() == activity.max():
        raise DegenerateInputError(f"raster must vary. Got {activity[0]} events in every bin of {width} steps.")
    return activity


def _of_law(word: str, law: ZetaTail, config: CriticalityConfig) -> dict[str, Any]:
    """Return the fields that say how sizes, or durations, follow their power law."""
    null, p = law.goodness(config.n_simulations, config.seed, word)
    against = Comparisons.of(law)
    return {
        f"{word}_distance": Estimate(law.distance, null=null, p_value=p),
        f"smallest_{word}": law.start,
        f"n_in_{word}_tail": law.n_tail,
        f"{word}_likelihood_ratio": against.ratio,
        f"{word}_ratio_statistic": against.statistic,
        f"{word}_ratio_p_value": against.p_value,
        word: law.value,
        f"{word}_survival": law.survival(),
        f"fitted_{word}_survival": law.fitted_survival(),
    }
