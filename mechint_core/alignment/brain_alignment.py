"""How well a site of a network matches a part of a brain, against what the recording's noise allows.

    rsa         score_st = agreement of the dissimilarities of conditions in the site with those in subject s at time t
    encoding    score_st = mean over channels c of subject s of corr(predicted_c, recorded_ct), predictions held out

    score_t     mean over subjects; the headline is its largest value over time, and so is its null
    ceiled      score / ceiling, the raw score beside it; neither is ever clipped

Source: [@kriegeskorte2008] (rsa), [@nili2014] (its ceilings), [@schrimpf2020] (encoding), [@schutt2023] (bootstrap).
Cost: rsa: n² per subject, time and draw; encoding: a ridge regression of all channels per fold, n per channel and draw.
Chunked over: nothing; tasks run over sites, regions and checkpoints.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import numpy as np
from jaxtyping import Float, Int

from mechint_core.alignment._brain_encoding import encoding_scores
from mechint_core.alignment._brain_pictures import BrainPictures, brain_pictures
from mechint_core.alignment._brain_rsa import rsa_scores
from mechint_core.alignment._brain_scores import BrainScores, Recorded, recorded
from mechint_core.alignment._conditions import Draws
from mechint_core.alignment._stacked import DotComparison, RowMetric, check_choices, corrected_p_values
from mechint_core.errors import ConfigurationError, DegenerateInputError, ShapeError
from mechint_core.figure import Bars, Curve, Figure, Matrix, Scatter
from mechint_core.kernels.resampling import percentile_interval
from mechint_core.parallel import Rows
from mechint_core.result import Estimate, Result

Measure = Literal["rsa", "encoding"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BrainAlignmentConfig:
    """How to compare a site with a region."""

    measure: Measure = "rsa"
    """rsa: do they find the same conditions alike? encoding: does the site predict every channel?"""
    metric: RowMetric = "correlation"
    """rsa: dissimilarity of two conditions: euclidean, correlation or cosine."""
    comparison: DotComparison = "pearson"
    """rsa: agreement of dissimilarities: pearson, cosine or spearman (slower: ranks change with every draw)."""
    n_folds: int = 5
    """encoding: parts of the conditions that are predicted from the others."""
    n_bootstrap: int = 500
    """Draws of conditions and subjects."""
    n_permutations: int = 500
    """Relabellings of the conditions."""
    level: float = 0.95
    """Confidence of the intervals."""
    seed: int = 0
    """Names the draws: the same for all that is to be compared."""

    def __post_init__(self) -> None:
        check_choices(self.metric, self.comparison)
        if self.measure not in get_args(Measure):
            raise ConfigurationError(f"measure must be one of {get_args(Measure)}. Got {self.measure!r}.")
        if self.n_folds < 2:
            raise ConfigurationError(f"n_folds must be at least 2. Got {self.n_folds}.")
        if min(self.n_bootstrap, self.n_permutations) < 19:
            raise ConfigurationError(
                f"n_bootstrap and n_permutations must be at least 19. Got {self.n_bootstrap}, {self.n_permutations}."
            )
        _ = self.draws

    @property
    def draws(self) -> Draws:
        """The draws that interval and null are made of."""
        return Draws(n_bootstrap=self.n_bootstrap, n_permutations=self.n_permutations, level=self.level, seed=self.seed)


@dataclass(frozen=True, slots=True)
class BrainAlignmentResult(Result):
    """Alignment of a site with a region."""

    technique: ClassVar[str] = "brain_alignment"
    evidence: ClassVar[str] = (
        "The interval draws conditions and subjects anew, with what both count twice taken out (one subject: only "
        "conditions); the null relabels conditions and takes the largest score over time, as the headline does."
    )
    figures: ClassVar[tuple[Figure, ...]] = (
        Curve(
            y=("over_time", "ceiling_low", "ceiling_high"), title="Alignment over time, and the noise ceiling",
            x="time", x_label="time (s)", y_label="alignment", low="low", high="high", null="null_over_time",
        ),
        Bars(values="subject_score", labels="subject", title="Every subject", value_label="alignment"),
        Matrix(
            values="picture_site", x="shown", y="shown", title="The site", x_label="condition", y_label="condition",
            value_label="dissimilarity",
        ),
        Matrix(
            values="picture_region", x="shown", y="shown", title="The region", x_label="condition",
            y_label="condition", value_label="dissimilarity",
        ),
        Scatter(points="map_site", title="Conditions as the site arranges them (classical scaling)", colour="shown",
                colour_label="condition"),
        Scatter(points="map_region", title="Conditions as the region arranges them", colour="shown",
                colour_label="condition"),
    )  # fmt: skip

    score: Estimate
    """Mean over subjects, at the best time."""
    ceiled: Estimate
    """`score` as a share of the ceiling; NaN where the recording does not tell its noise."""
    ceiling: float
    """What the recording's noise allows at that time: the lower bound."""
    ceiling_top: float
    """The upper bound."""
    best_time: float
    """Seconds."""
    n_conditions: int
    n_dropped: int
    """Conditions that not every channel answered."""
    n_subjects: int
    n_channels: int
    n_repetitions: int
    """Most presentations of one condition."""
    subject: Int[np.ndarray, "subject"]
    subject_score: Float[np.ndarray, "subject"]
    """At the best time."""
    time: Float[np.ndarray, "time"]
    over_time: Float[np.ndarray, "time"]
    low: Float[np.ndarray, "time"]
    high: Float[np.ndarray, "time"]
    p_value: Float[np.ndarray, "time"]
    """Corrected for the number of times."""
    null_over_time: float
    """The score that one time in 20 is exceeded anywhere without any alignment (1 - level)."""
    ceiling_low: Float[np.ndarray, "time"]
    ceiling_high: Float[np.ndarray, "time"]
    draws: Float[np.ndarray, "draw"]
    """The bootstrap at the best time; the same draws for every site, region and checkpoint."""
    picture_site: Float[np.ndarray, "row column"]
    picture_region: Float[np.ndarray, "row column"]
    map_site: Float[np.ndarray, "row coordinate"]
    map_region: Float[np.ndarray, "row coordinate"]
    shown: Int[np.ndarray, "row"]
    """Which conditions are shown."""

    def reading(self) -> str:
        """Say how well they match, of how much the recording allows, and whether chance would."""
        found, ceiled = self.score, self.ceiled
        text = f"The site matches the region by {found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"
        if len(self.time) > 1:
            text += f" at its best time, {self.best_time:.3g} s"
        if not found.p_value <= 1 - found.level:
            return f"{text}: relabelled conditions do as well ({found.null:.3f}, p = {found.p_value:.2g})."
        text += f"; relabelled conditions give {found.null:.3f} (p = {found.p_value:.2g})"
        if math.isnan(ceiled.value):
            return f"{text}. How much the recording's noise allows is not known: there is nothing repeated in it."
        return f"{text}. That is {ceiled.value:.0%} of what the recording's noise allows ({self.ceiling:.3f})."


def brain_alignment(
    x: Float[Rows, "condition unit"],
    responses: Float[np.ndarray, "condition repetition time channel"],
    subject: Int[np.ndarray, "channel"] | None = None,
    time: Float[np.ndarray, "time"] | None = None,
    *,
    config: BrainAlignmentConfig = BrainAlignmentConfig(),
) -> BrainAlignmentResult:
    """Ask how well a site of a network matches a part of a brain, against what the recording's noise allows.

    Use it on recordings of conditions that the network was given too. It assumes that conditions are a sample of those
    of interest, and subjects of theirs; row i of both is the same condition. It cannot tell what the match rests on: a
    nuisance that both carry (luminance, length, position) matches as well as meaning does.

    Parameters
    ----------
    x
        One row per condition, at least 5.
    responses
        What every channel answered to every presentation; NaN where there was none. Without repetitions or time those
        axes have length 1.
    subject
        Whose channel each is; one subject by default.
    time
        Seconds of each time step, for the figures; numbered by default.
    config
        Measure, and how sure to be.

    Returns
    -------
    BrainAlignmentResult
        `score` is a correlation (cosine for that comparison), in [-1, 1]. `ceiled` can be above 1: the ceiling is an
        estimate too.

    Raises
    ------
    ShapeError
        If the inputs do not have the same conditions, or fewer than 5 that every channel answered; `subject` or `time`
        do not fit; or there are fewer conditions than folds.
    DegenerateInputError
        If x holds NaN or infinity, responses hold infinity, or all conditions are equally far apart.

    Notes
    -----
    Conditions that some channel never answered are left out and counted. The headline is the largest of several times:
    its null is the largest too, its interval is not corrected for the choice.

    References
    ----------
    [@kriegeskorte2008]
    [@nili2014]
    [@schrimpf2020]
    [@schutt2023]

    Examples
    --------
    >>> x = np.array([[0.0, 1.0, 3.0], [2.0, 1.0, 0.0], [0.0, 5.0, 1.0], [1.0, 0.0, 1.0], [3.0, 2.0, 7.0]])
    >>> round(brain_alignment(x, 2 * x[:, None, None]).score.value, 12)
    1.0
    """
    whole, region, seconds = _check(x, responses, subject, time)
    x = whole[region.kept]
    if config.measure == "rsa":
        found = rsa_scores(x, region, config.metric, config.comparison, draws=config.draws)
    else:
        found = encoding_scores(x, region, n_folds=config.n_folds, draws=config.draws)
    best = int(np.nanargmax(found.score.mean(axis=0)))
    return _result(found, region, seconds, best, brain_pictures(x, region.mean[:, best], config.metric), whole, config)


def _check(
    x: Rows, responses: np.ndarray, subject: np.ndarray | None, time: np.ndarray | None
) -> tuple[np.ndarray, Recorded, np.ndarray]:
    if len(x.shape) != 2 or 0 in x.shape:
        raise ShapeError(f"x must be (condition, unit). Got shape {x.shape}.")
    region = recorded(responses, subject, x.shape[0])
    whole = np.asarray(x[:], dtype=np.float64)
    if not np.all(np.isfinite(whole)):
        raise DegenerateInputError("x must be finite. Got NaN or infinity: leave out those conditions.")
    n_times = responses.shape[2]
    seconds = np.arange(n_times, dtype=np.float64) if time is None else np.asarray(time, dtype=np.float64)
    if seconds.shape != (n_times,):
        raise ShapeError(f"time must have one entry per time step, {n_times}. Got shape {seconds.shape}.")
    return whole, region, seconds


def _result(
    found: BrainScores,
    region: Recorded,
    seconds: np.ndarray,
    best: int,
    pictures: BrainPictures,
    whole: np.ndarray,
    config: BrainAlignmentConfig,
) -> BrainAlignmentResult:
    over_time, drawn = found.score.mean(axis=0), found.draws(config.seed, len(region.kept))
    ends = np.array([percentile_interval(each, config.level) for each in drawn.T])
    highest = found.null.max(axis=1)
    p_value = corrected_p_values(over_time, highest)
    low, high = ends[best].tolist()
    ceiling = float(found.ceiling_low[best])
    parts = [part / ceiling if ceiling > 0 else math.nan for part in (float(over_time[best]), low, high)]
    return BrainAlignmentResult(
        score=Estimate(float(over_time[best]), low, high, float(highest.mean()), float(p_value[best]), config.level),
        ceiled=Estimate(*parts, level=config.level),
        ceiling=ceiling,
        ceiling_top=float(found.ceiling_high[best]),
        best_time=float(seconds[best]),
        n_conditions=len(region.kept),
        n_dropped=len(whole) - len(region.kept),
        n_subjects=region.n_subjects,
        n_channels=len(region.subject),
        n_repetitions=region.responses.shape[1],
        subject=np.arange(region.n_subjects),
        subject_score=found.score[:, best],
        time=seconds,
        over_time=over_time,
        low=ends[:, 0],
        high=ends[:, 1],
        p_value=p_value,
        null_over_time=float(np.quantile(highest, config.level)),
        ceiling_low=found.ceiling_low,
        ceiling_high=found.ceiling_high,
        draws=drawn[:, best],
        picture_site=pictures.site,
        picture_region=pictures.region,
        map_site=pictures.map_site,
        map_region=pictures.map_region,
        shown=region.kept[pictures.shown],
    )
