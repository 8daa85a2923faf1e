"""Inter-subject correlation: how much of a response to one common input several subjects (or seeds) share.

    leave-one-out   r_s = corr_t(x_s, mean of x_l over l ≠ s)           averaged over subjects, then over channels
    pairwise        r   = mean over s < l of corr_t(x_s, x_l)

What a subject shares with others who saw the same must come from what they saw: no model of the input is needed.

Interval: subjects are drawn with replacement; copies of one subject are no pair, and are left out together. Null: every
subject's time course is shifted around a circle by a random lag (or gets random phases), the same for all its channels,
so that spectra and correlations between channels stay and only the common timing is lost.

Source: [@hasson2004], [@nastase2019], [@chen2016] (bootstrap over subjects), [@theiler1992] (phases),
[@benjamini1995] (channels).
Cost: m n c per null draw; c m² (n + draws) for the bootstrap.
Chunked over: nothing; channels and draws run in parallel.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import numpy as np
from jaxtyping import Bool, Float, Int

from mechint_core.errors import ConfigurationError, DegenerateInputError, ShapeError
from mechint_core.figure import Bars, Curve, Figure
from mechint_core.kernels.false_discovery import false_discovery_rate
from mechint_core.kernels.leave_one_out import agreement_with_others, resampled_agreement, resampled_pairs
from mechint_core.kernels.resampling import p_value, percentile_interval
from mechint_core.kernels.surrogates import phase_randomized
from mechint_core.parallel import LANES, map_parallel
from mechint_core.random import generator
from mechint_core.result import NAN, Estimate, Result

Surrogate = Literal["circular shift", "phase"]

CHANNELS = 32
"""Channels bootstrapped at once: 5 MB for 20 subjects and 1000 draws."""
ROUNDING = 1e-12
"""Correlations closer to 1 are those of copies, and standard deviations below this share of the mean are rounding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InterSubjectCorrelationConfig:
    """How the shared response is measured, and how interval and null are found."""

    standardised: bool = True
    """Give every subject's channel the same variance before others are averaged; else strong responders weigh more."""
    surrogate: Surrogate = "circular shift"
    """What the null does to each subject: circular shift (keeps the values) or phase (keeps the spectrum only)."""
    n_bootstrap: int = 500
    """Bootstrap draws of subjects."""
    n_null: int = 499
    """Draws of the null; no channel's p-value is below 1 / (n_null + 1)."""
    level: float = 0.95
    """Confidence of the intervals; 1 less this is the false discovery rate over channels."""
    seed: int = 0
    """Names the draws."""

    def __post_init__(self) -> None:
        if self.surrogate not in get_args(Surrogate):
            raise ConfigurationError(
                f"surrogate must be one of {', '.join(get_args(Surrogate))}. Got {self.surrogate}."
            )
        if min(self.n_bootstrap, self.n_null) < 0:
            raise ConfigurationError(
                f"n_bootstrap and n_null must be at least 0. Got {self.n_bootstrap} and {self.n_null}."
            )
        if not 0 < self.level < 1:
            raise ConfigurationError(f"level must be between 0 and 1. Got {self.level}.")


@dataclass(frozen=True, slots=True)
class InterSubjectCorrelationResult(Result):
    """What subjects share, channel by channel."""

    technique: ClassVar[str] = "inter_subject_correlation"
    evidence: ClassVar[str] = (
        "The intervals are bootstraps over subjects; the null gives every subject a timing of its own (circular shift "
        "or random phases); q-values over channels are Benjamini and Hochberg's."
    )
    figures: ClassVar[tuple[Figure, ...]] = (
        Curve(
            y=("correlation",), title="Correlation of a subject with the others", x_label="channel",
            y_label="correlation", low="low", high="high", null="null",
        ),
        Bars(values="by_subject", labels="subject", title="Each subject's correlation with the others"),
    )  # fmt: skip
    invariances: ClassVar[tuple[str, ...]] = ("translation", "positive scaling", "order of subjects")
    """Changes of a subject's channel that leave `leave_one_out` as it is, with the default configuration."""

    leave_one_out: Estimate
    """Correlation of a subject with the mean of the others, averaged over subjects and channels."""
    pairwise: Estimate
    """Correlation of two subjects, averaged over pairs and channels."""
    n_subjects: int
    n_discovered: int
    """Channels whose q-value is at most 1 - level."""
    n_silent_channels: int
    """Channels that are constant in some subject: NaN here, and left out of the means."""
    correlation: Float[np.ndarray, "channel"]
    """Leave-one-out, averaged over subjects."""
    low: Float[np.ndarray, "channel"]
    high: Float[np.ndarray, "channel"]
    null: Float[np.ndarray, "channel"]
    p_value: Float[np.ndarray, "channel"]
    q_value: Float[np.ndarray, "channel"]
    by_subject: Float[np.ndarray, "subject"]
    """Leave-one-out, averaged over channels."""
    subject: Int[np.ndarray, "subject"]
    """Number of each subject, from 0."""

    def reading(self) -> str:
        """Say how much is shared, and in how many channels."""
        found, n = self.leave_one_out, len(self.correlation) - self.n_silent_channels
        text = (
            f"A subject correlates with the {self.n_subjects - 1} others by {found.value:.3f} "
            f"[{found.low:.3f}, {found.high:.3f}]"
        )
        if math.isnan(found.p_value):
            return f"{text}; no null was drawn, so nothing says what unrelated responses would give."
        if found.p_value > 1 - found.level:
            return f"{text}: not distinguishable from responses of unrelated timing (p = {found.p_value:.2g})."
        return (
            f"{text}; unrelated timing would give {found.null:.3f} (p = {found.p_value:.2g}). "
            f"{self.n_discovered} of {n} channels are above it."
        )


def inter_subject_correlation(
    recordings: Float[np.ndarray, "subject sample channel"],
    *,
    config: InterSubjectCorrelationConfig = InterSubjectCorrelationConfig(),
) -> InterSubjectCorrelationResult:
    """Ask how much of the response to one common input several subjects share.

    Use it on subjects who saw or heard the same thing at the same times, and on seeds or models whose units were
    brought into correspondence (`common_space`). It assumes that channels correspond and that subjects are independent
    given the input. It cannot tell what in the input is shared, and it misses what each subject does in its own time.

    Parameters
    ----------
    recordings
        Time courses: at least 3 subjects, 8 samples in order of time, 1 channel. Seeds of a model count as subjects.
    config
        How others are averaged, and how interval and null are found.

    Returns
    -------
    InterSubjectCorrelationResult
        Correlations in [-1, 1], 0 on average if nothing is shared. With more subjects `leave_one_out` rises (the mean
        of the others is less noisy), `pairwise` does not.

    Raises
    ------
    ShapeError
        If there are fewer than 3 subjects, fewer than 8 samples, or no channel.
    DegenerateInputError
        If a value is NaN or infinite, or every channel is constant in some subject.

    Notes
    -----
    A bootstrap draw holds fewer different subjects, which makes its leave-one-out correlations lower: draws are shifted
    on Fisher's scale so that their mean is the value. Circular shifts suit series that are stationary; where the input
    has a slow trend, take it out first.

    References
    ----------
    [@hasson2004]
    [@nastase2019]
    [@chen2016]
    [@theiler1992]
    [@benjamini1995]

    Examples
    --------
    >>> wave = np.sin(np.arange(40.0) ** 1.5)
    >>> recordings = np.stack([wave, 2 * wave + 1, 3 * wave])[..., None]
    >>> round(inter_subject_correlation(recordings).leave_one_out.value, 9)
    1.0
    """
    courses, silent = _courses(recordings, standardised=config.standardised)
    measured = _measure(courses)
    boot = _bootstrap(courses, measured, config)
    null = _null(courses, measured.correlation, config)
    heard, value, pairwise = ~silent, float(measured.correlation.mean()), float(measured.pairwise)
    p, q = _spread(null.p_value, heard), false_discovery_rate(_spread(null.p_value, heard))
    whole = percentile_interval(boot.whole, config.level)
    return InterSubjectCorrelationResult(
        leave_one_out=_estimate(value, whole, null.whole, config.level),
        pairwise=_estimate(pairwise, percentile_interval(boot.pairwise, config.level), null.pairwise, config.level),
        n_subjects=len(courses),
        n_discovered=int(np.sum(q <= 1 - config.level)),
        n_silent_channels=int(silent.sum()),
        correlation=_spread(measured.correlation, heard),
        low=_spread(boot.low, heard),
        high=_spread(boot.high, heard),
        null=_spread(null.mean, heard),
        p_value=p,
        q_value=q,
        by_subject=measured.by_subject,
        subject=np.arange(len(courses)),
    )


def _courses(recordings: np.ndarray, *, standardised: bool) -> tuple[np.ndarray, Bool[np.ndarray, "channel"]]:
    """Return the centred time courses of the channels that vary in every subject, and which do not."""
    if recordings.ndim != 3 or recordings.shape[0] < 3 or recordings.shape[1] < 8 or recordings.shape[2] < 1:
        raise ShapeError(f"recordings must be (subject >= 3, sample >= 8, channel >= 1). Got shape {recordings.shape}.")
    if not np.all(np.isfinite(recordings)):
        raise DegenerateInputError("recordings must be finite. Got NaN or infinity: drop those channels first.")
    wide = recordings.astype(np.float64)
    mean = wide.mean(axis=1, keepdims=True)
    wide -= mean
    size = np.sqrt(np.mean(wide**2, axis=1, keepdims=True))
    silent = np.any(size <= ROUNDING * np.abs(mean), axis=(0, 1))
    if silent.all():
        raise DegenerateInputError("a channel must vary in every subject. Got none that does.")
    return (wide / np.where(size > 0, size, 1) if standardised else wide)[:, :, ~silent], silent


def _spread(values: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Return the values of some channels in their places among all."""
    found = np.full(len(where), np.nan)
    found[where] = values
    return found


@dataclass(frozen=True, slots=True)
class _Measured:
    correlation: np.ndarray
    """Of each channel."""
    by_subject: np.ndarray
    pairwise: float


def _measure(courses: np.ndarray) -> _Measured:
    """Compare each subject with the sum of the others: m n c operations, no pair of subjects is taken alone."""
    m, total = len(courses), courses.sum(axis=0)
    own, others = np.sum(courses**2, axis=1), total - courses
    with np.errstate(invalid="ignore", divide="ignore"):
        each = np.sum(courses * others, axis=1) / np.sqrt(own * np.sum(others**2, axis=1))
    joint = np.sum(np.sum(courses / np.sqrt(own)[:, None], axis=0) ** 2, axis=0)
    return _Measured(each.mean(axis=0), each.mean(axis=1), float(np.mean((joint - m) / (m * (m - 1)))))


@dataclass(frozen=True, slots=True)
class _Bootstrapped:
    low: np.ndarray
    high: np.ndarray
    whole: np.ndarray
    pairwise: np.ndarray


def _bootstrap(courses: np.ndarray, measured: _Measured, config: InterSubjectCorrelationConfig) -> _Bootstrapped:
    m, n_channels = len(courses), courses.shape[2]
    draws = generator(config.seed, "bootstrap").multinomial(m, np.full(m, 1 / m), size=config.n_bootstrap)
    counts = draws[(draws > 0).sum(axis=1) > 1].T.astype(np.float64)  # of one subject alone there is no correlation
    blocks = [courses[:, :, i : i + CHANNELS] for i in range(0, n_channels, CHANNELS)]
    low, high, whole, pairs = zip(*map_parallel(_Resample(counts, config.level), blocks), strict=True)
    mean, pairwise = np.sum(whole, axis=0) / n_channels, np.sum(pairs, axis=0) / n_channels
    return _Bootstrapped(
        np.concatenate(low), np.concatenate(high), _recentred(mean, float(measured.correlation.mean())), pairwise
    )


@dataclass(frozen=True, slots=True)
class _Resample:
    """A block of channels -> its intervals, and its sums over channels of each draw."""

    counts: np.ndarray
    level: float

    def __call__(self, courses: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        by_channel = np.ascontiguousarray(courses.transpose(2, 0, 1))
        products = by_channel @ by_channel.transpose(0, 2, 1)
        own = np.sqrt(np.diagonal(products, axis1=1, axis2=2))
        draws = resampled_agreement(products, self.counts)
        values = agreement_with_others(products).mean(axis=1)
        ends = [
            percentile_interval(_recentred(each, value), self.level) for each, value in zip(draws, values, strict=True)
        ]
        low, high = np.array(ends).T
        pairs = resampled_pairs(products / (own[:, :, None] * own[:, None, :]), self.counts)
        return low, high, draws.sum(axis=0), pairs.sum(axis=0)


def _recentred(draws: np.ndarray, value: float) -> np.ndarray:
    """Shift draws on Fisher's scale so that their mean is `value`."""
    if 1 - abs(value) <= ROUNDING or not len(draws):
        return draws
    z = np.arctanh(np.clip(draws, ROUNDING - 1, 1 - ROUNDING))
    return np.tanh(z - np.nanmean(z) + math.atanh(value))


@dataclass(frozen=True, slots=True)
class _Null:
    mean: np.ndarray
    p_value: np.ndarray
    whole: np.ndarray
    pairwise: np.ndarray


def _null(courses: np.ndarray, observed: np.ndarray, config: InterSubjectCorrelationConfig) -> _Null:
    lanes = [(lane, len(part)) for lane, part in enumerate(np.array_split(np.arange(config.n_null), LANES))]
    found = map_parallel(_Surrogates(courses, observed, config), lanes)
    total, above = (np.sum([each[i] for each in found], axis=0) for i in (0, 1))
    whole, pairwise = (np.concatenate([each[i] for each in found]) for i in (2, 3))
    n = config.n_null
    if n == 0:
        return _Null(np.full(len(observed), NAN), np.full(len(observed), NAN), whole, pairwise)
    return _Null(total / n, (1 + above) / (1 + n), whole, pairwise)


@dataclass(frozen=True, slots=True)
class _Surrogates:
    """Some draws of the null -> sums over them by channel, and their means over channels."""

    courses: np.ndarray
    observed: np.ndarray
    config: InterSubjectCorrelationConfig

    def __call__(self, lane: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        number, n_draws = lane
        rng = generator(self.config.seed, "null", number)
        total, above = np.zeros(len(self.observed)), np.zeros(len(self.observed))
        whole, pairwise = np.empty(n_draws), np.empty(n_draws)
        for draw in range(n_draws):
            found = _measure(np.stack([self._one(course, rng) for course in self.courses]))
            total += found.correlation
            above += found.correlation >= self.observed
            whole[draw], pairwise[draw] = found.correlation.mean(), found.pairwise
        return total, above, whole, pairwise

    def _one(self, course: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if self.config.surrogate == "phase":
            return phase_randomized(course, rng=rng)
        return np.roll(course, rng.integers(len(course)), axis=0)


def _estimate(value: float, ends: tuple[float, float], null: np.ndarray, level: float) -> Estimate:
    typical = float(null.mean()) if len(null) else NAN
    return Estimate(value, *ends, typical, p_value(value, null), level)
