"""Time-resolved RSA: when a recording tells conditions apart as a model does.

    r(t) = corr_{i<j}(D_ij, E_ij(t))      D: dissimilarities of the model, E(t): of the recording in the window at t
    G(s, t) = corr_{i<j}(E_ij(s), E_ij(t))      which times hold the same geometry (generalisation)

A window is called significant if r(t) exceeds what the largest r of relabelled conditions exceeds in 5 %. The largest,
not the mass of clusters, because it licenses a claim about the single window, which a cluster's p-value does not: and
the onset is such a claim. The onset is the first significant window; in a bootstrap draw it is where the run of
windows above that value begins which meets the first run found, so that a lone crossing elsewhere does not count.

Source: [@kriegeskorte2008], [@cichy2014] (over time), [@mantel1967], [@westfall1993] (the maximum),
[@sassenhagen2019] (clusters and onsets).
Cost: n² (p + t) per window for the values; m² per window and draw, m = `n_inference` conditions.
Chunked over: windows.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import numpy as np
from jaxtyping import Bool, Float, Int

from mechint_core.alignment._comparisons import coordinates
from mechint_core.alignment._conditions import ROUNDING, Draws
from mechint_core.alignment._stacked import (
    ComparedModel,
    DotComparison,
    RowMetric,
    blocks_of,
    check_choices,
    check_conditions,
    corrected_p_values,
    stacked_distances,
)
from mechint_core.errors import ConfigurationError, DegenerateInputError, ShapeError
from mechint_core.figure import Curve, Figure, Matrix
from mechint_core.kernels.resampling import critical_value, percentile_interval
from mechint_core.parallel import map_parallel
from mechint_core.random import generator
from mechint_core.result import NAN, Estimate, Result

Within = Literal["mean", "pattern"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeResolvedRSAConfig:
    """How to follow the agreement of a model with a recording over time."""

    metric: RowMetric = "correlation"
    """Dissimilarity of two conditions: euclidean (squared, per unit), correlation or cosine."""
    comparison: DotComparison = "pearson"
    """Agreement of two sets of dissimilarities: pearson, cosine or spearman (slow to bootstrap)."""
    width: int = 1
    """Samples in a window."""
    step: int = 1
    """Samples from one window to the next."""
    within: Within = "mean"
    """What describes a window: the mean over its samples, or the pattern of all of them."""
    n_inference: int = 300
    """Conditions, drawn at random, on which intervals and null are found; their spread is scaled to all of them."""
    n_bootstrap: int = 500
    """Bootstrap draws of conditions."""
    n_permutations: int = 500
    """Relabellings of conditions (Mantel), the same for every window."""
    level: float = 0.95
    """Confidence of the intervals; 1 - level is the chance of any false window."""
    seed: int = 0
    """Names the draws."""

    def __post_init__(self) -> None:
        check_choices(self.metric, self.comparison)
        if self.within not in get_args(Within):
            raise ConfigurationError(f"within must be one of {get_args(Within)}. Got {self.within!r}.")
        if min(self.width, self.step) < 1:
            raise ConfigurationError(f"width and step must be at least 1. Got {self.width} and {self.step}.")
        if self.n_inference < 4:
            raise ConfigurationError(f"n_inference must be at least 4. Got {self.n_inference}.")
        _ = self.draws

    @property
    def draws(self) -> Draws:
        """The draws that intervals and null are made of."""
        return Draws(n_bootstrap=self.n_bootstrap, n_permutations=self.n_permutations, level=self.level, seed=self.seed)


@dataclass(frozen=True, slots=True)
class TimeResolvedRSAResult(Result):
    """Agreement of a model with a recording in every window of time."""

    technique: ClassVar[str] = "time_resolved_rsa"
    evidence: ClassVar[str] = (
        "The intervals are bootstraps over conditions, that of the peak in the window it was found in; the null is the "
        "largest agreement over all windows after relabelling the conditions (Mantel), which corrects for time."
    )
    figures: ClassVar[tuple[Figure, ...]] = (
        Curve(
            y=("agreement",), x="time", low="low", high="high", null="threshold", x_label="time", y_label="agreement",
            title="When the recording agrees with the model; dashed: where agreement is significant over all windows",
        ),
        Matrix(
            values="generalisation", x="time", y="time", x_label="time", y_label="time", value_label="agreement",
            title="Which times of the recording hold the same geometry", diverging=True,
        ),
    )  # fmt: skip

    peak: Estimate
    """The largest agreement over windows."""
    peak_time: Estimate
    """When; NaN if no window is significant."""
    onset: Estimate
    """The first significant window; NaN if there is none."""
    n_significant: int
    """Significant windows; onset and latency of the peak are NaN where there is none."""
    n_windows: int
    n_conditions: int
    n_inference: int
    """Conditions that intervals and null were found on."""
    threshold: float
    """What an agreement must exceed to be significant over all windows; NaN if the relabellings are too few to say."""
    time: Float[np.ndarray, "time"]
    """The mean time of each window."""
    agreement: Float[np.ndarray, "time"]
    low: Float[np.ndarray, "time"]
    """Lower end of each window's own interval."""
    high: Float[np.ndarray, "time"]
    p_value: Float[np.ndarray, "time"]
    """Of each window, corrected for all windows."""
    generalisation: Float[np.ndarray, "time other_time"]
    """Agreement of the recording's dissimilarities at two times, on the conditions of the inference."""

    def reading(self) -> str:
        """Say when and how far the recording agrees with the model, if it does."""
        peak = self.peak
        text = f"Over {self.n_windows} windows the agreement peaks at {peak.value:.3f}"
        if not math.isnan(peak.low):
            text += f" [{peak.low:.3f}, {peak.high:.3f}]"
        if math.isnan(peak.p_value):
            return f"{text}; no relabelling was done, so nothing says what chance would give."
        text += f", where relabelled conditions peak at {peak.null:.3f} (p = {peak.p_value:.2g})"
        if not self.n_significant:
            return f"{text}: no window is distinguishable from chance."
        return f"{text}; it is significant from {_when(self.onset)}, and largest at {_when(self.peak_time)}."


def _when(found: Estimate) -> str:
    text = f"{found.value:.4g}"
    return text if math.isnan(found.low) else f"{text} [{found.low:.4g}, {found.high:.4g}]"


def time_resolved_rsa(
    x: Float[np.ndarray, "condition unit"],
    y: Float[np.ndarray, "condition time channel"],
    time: Float[np.ndarray, "time"] | None = None,
    *,
    config: TimeResolvedRSAConfig = TimeResolvedRSAConfig(),
) -> TimeResolvedRSAResult:
    """Ask when a recording tells conditions apart as a model does.

    Use it on responses that unfold: EEG, MEG, spikes, the states of a recurrent network. It assumes that row i of both
    answers the same condition, and that time is aligned over conditions. Smoothing, and windows that overlap, move
    onsets forward; an onset is when the evidence suffices, so noisier recordings start later. It cannot tell that two
    times differ because one is significant and the other is not.

    Parameters
    ----------
    x
        The model: one row per condition, at least 4.
    y
        The recording: the response to each condition (averaged over its repetitions) over time and channels.
    time
        When each sample was taken, ascending; the number of the sample by default.
    config
        Which dissimilarity and agreement, which windows, and how intervals and null are found.

    Returns
    -------
    TimeResolvedRSAResult
        `agreement` is dimensionless, in [-1, 1] (cosine: in [0, 1]); 1 where the dissimilarities are proportional
        (cosine), linearly related and rising (pearson), or in the same order (spearman). `onset` and `peak_time` have
        the unit of `time`.

    Raises
    ------
    ShapeError
        If `x` is not two-dimensional or `y` not three-dimensional, their conditions differ or are fewer than 4,
        `time` is not one ascending number per sample, or a window is longer than the recording.
    DegenerateInputError
        If a system holds NaN or infinity, dissimilarities are all the same, or a condition has no correlation distance
        (constant over units) or no cosine (all zeros), in the model or in any window.

    Notes
    -----
    The latency of the peak has no null of its own, nor has the onset: the p-value of `peak` is that of both existing.
    Times that share noise agree in their noise too: `generalisation` is high next to its diagonal in any recording.
    With more than `n_inference` conditions, intervals and p-values come from that many, as in `rsa`.
    Memory: two dissimilarity matrices of all n conditions for each window of a block (32 MB), and one of the m
    conditions of the inference for every window.

    References
    ----------
    [@kriegeskorte2008]
    [@cichy2014]
    [@mantel1967]
    [@westfall1993]
    [@sassenhagen2019]

    Examples
    --------
    >>> x = np.array([[0.0, 1.0, 3.0], [2.0, 1.0, 0.0], [0.0, 5.0, 1.0], [1.0, 0.0, 1.0], [3.0, 2.0, 7.0]])
    >>> y = np.stack([x[[1, 0, 3, 4, 2]], 2 * x + 1], axis=1)
    >>> found = time_resolved_rsa(x, y, np.array([0.0, 0.5]))
    >>> round(found.peak.value, 12), round(float(found.time[found.agreement.argmax()]), 2)
    (1.0, 0.5)
    """
    windows = _windows(x, y, time, config)
    n = len(x)
    picked = np.sort(generator(config.seed, "time_resolved_rsa").choice(n, min(n, config.n_inference), replace=False))
    found = _compare(x, y, windows.starts, picked, config)
    draws = _around(found, math.sqrt(len(picked) / n))
    low, high = np.array([percentile_interval(each, config.level) for each in draws.T]).T
    maximum = found.null.max(axis=1)
    p_value = corrected_p_values(found.of_picked, maximum)
    threshold = float(critical_value(maximum, config.level))
    at = int(np.argmax(found.value))
    significant = p_value <= 1 - config.level + ROUNDING
    onset, peak_time = _latencies(windows.time, at, significant, draws, threshold, config.level)
    return TimeResolvedRSAResult(
        peak=Estimate(
            float(found.value[at]), low[at], high[at], float(maximum.mean()) if len(maximum) else NAN,
            float(p_value.min()), config.level,
        ),
        peak_time=peak_time,
        onset=onset,
        n_significant=int(significant.sum()),
        n_windows=len(windows.time),
        n_conditions=n,
        n_inference=len(picked),
        threshold=threshold if math.isfinite(threshold) else NAN,
        time=windows.time,
        agreement=found.value,
        low=low,
        high=high,
        p_value=p_value,
        generalisation=found.standard @ found.standard.T,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Windows:
    """Where windows begin, and the mean time of each."""

    starts: Int[np.ndarray, "time"]
    time: Float[np.ndarray, "time"]


def _windows(x: np.ndarray, y: np.ndarray, time: np.ndarray | None, config: TimeResolvedRSAConfig) -> _Windows:
    if y.ndim != 3:
        raise ShapeError(f"y must be (condition, time, channel). Got shape {y.shape}.")
    check_conditions(x, y)
    n_samples = y.shape[1]
    time = np.arange(n_samples, dtype=np.float64) if time is None else time.astype(np.float64)
    if time.shape != (n_samples,) or not np.all(np.diff(time) > 0):
        raise ShapeError(f"time must be one ascending number per sample, {n_samples}. Got shape {time.shape}.")
    if config.width > n_samples:
        raise ShapeError(f"width must be at most the {n_samples} samples of y. Got {config.width}.")
    starts = np.arange(0, n_samples - config.width + 1, config.step)
    return _Windows(starts, np.array([time[start : start + config.width].mean() for start in starts]))


@dataclass(frozen=True, slots=True)
class _Found:
    """What a block of windows gives."""

    value: Float[np.ndarray, "time"]
    """On all conditions."""
    of_picked: Float[np.ndarray, "time"]
    null: Float[np.ndarray, "relabelling time"]
    boot: Float[np.ndarray, "draw time"]
    standard: Float[np.ndarray, "time pair"]
    """Dissimilarities of the picked conditions, in the coordinates of the comparison."""


def _compare(
    x: np.ndarray, y: np.ndarray, starts: np.ndarray, picked: np.ndarray, config: TimeResolvedRSAConfig
) -> _Found:
    """Compare the model with each window, a block of windows at a time."""
    n, m, rows = len(x), len(picked), x[:, None].astype(np.float64)
    whole, pairs = (stacked_distances(each, config.metric)[0] for each in (rows, rows[picked]))
    model = ComparedModel.of(
        pairs, config.comparison, permutations=config.draws.permutations(m), counts=config.draws.counts(m)
    )
    compare = _CompareWindows(y, coordinates(whole[None], config.comparison)[0], model, picked, config)
    blocks = [starts[block] for block in blocks_of(len(starts), n * (n - 1) // 2)]
    parts = map_parallel(compare, blocks)
    return _Found(
        value=np.concatenate([part.value for part in parts]),
        of_picked=np.concatenate([part.of_picked for part in parts]),
        null=np.concatenate([part.null for part in parts], axis=1),
        boot=np.concatenate([part.boot for part in parts], axis=1),
        standard=np.concatenate([part.standard for part in parts]),
    )


@dataclass(frozen=True, slots=True)
class _CompareWindows:
    """Compare the model with the windows that begin at given samples."""

    y: np.ndarray
    whole: Float[np.ndarray, "pair"]
    """The model on all conditions, in the coordinates of the comparison."""
    model: ComparedModel
    """The model on the picked conditions."""
    picked: np.ndarray
    config: TimeResolvedRSAConfig

    def __call__(self, starts: np.ndarray) -> _Found:
        rows, metric, comparison = self._rows(starts), self.config.metric, self.config.comparison
        rdms = stacked_distances(rows, metric)
        standard = coordinates(rdms, comparison)
        value = standard @ self.whole
        if len(self.picked) < len(rows):
            rdms = stacked_distances(rows[self.picked], metric)
            standard = coordinates(rdms, comparison)
        of_picked = standard @ self.model.standard
        if not np.all(np.isfinite(value + of_picked)):
            start = starts[~np.isfinite(value + of_picked)][0]
            raise DegenerateInputError(
                f"dissimilarities of y must differ in every window. Got all pairs alike in that from sample {start}."
            )
        return _Found(
            value,
            of_picked,
            null=self.model.null(standard),
            boot=self.model.bootstrap(rdms, standard),
            standard=standard,
        )

    def _rows(self, starts: np.ndarray) -> Float[np.ndarray, "condition rdm unit"]:
        width = self.config.width
        spans = [self.y[:, start : start + width].astype(np.float64) for start in starts]
        if self.config.within == "mean":
            return np.stack([span.mean(axis=1) for span in spans], axis=1)
        return np.stack([span.reshape(len(span), -1) for span in spans], axis=1)


def _around(found: _Found, shrink: float) -> Float[np.ndarray, "draw time"]:
    """Put the draws around the values of all conditions, their distances shrunk on Fisher's scale."""
    z, z_picked, z_boot = (
        np.arctanh(np.clip(each, ROUNDING - 1, 1 - ROUNDING)) for each in (found.value, found.of_picked, found.boot)
    )
    return np.tanh(z + shrink * (z_boot - z_picked))


def _latencies(
    time: np.ndarray, at: int, significant: np.ndarray, draws: np.ndarray, threshold: float, level: float
) -> tuple[Estimate, Estimate]:
    """Return onset and time of the peak with their intervals, or NaN where no window is significant."""
    if not significant.any():
        return Estimate(NAN, level=level), Estimate(NAN, level=level)
    draws = draws[np.all(np.isfinite(draws), axis=1)]
    first = int(np.argmax(significant))
    onset = Estimate(float(time[first]), *percentile_interval(_onsets(time, significant, draws > threshold), level))
    peak = Estimate(float(time[at]), *percentile_interval(time[np.argmax(draws, axis=1)], level))
    return onset, peak


def _onsets(time: np.ndarray, significant: np.ndarray, above: Bool[np.ndarray, "draw time"]) -> np.ndarray:
    """Return where, in each draw, the run of windows above the threshold begins that meets the first run found."""
    first = int(np.argmax(significant))
    length = int(np.argmin(np.append(significant[first:], False)))
    meeting = above[:, first : first + length]
    above, met = above[meeting.any(axis=1)], first + np.argmax(meeting[meeting.any(axis=1)], axis=1)
    last_below = np.maximum.accumulate(np.where(above, -1, np.arange(len(time))), axis=1)
    return time[last_below[np.arange(len(above)), met] + 1]
