"""Model comparison: which model of a representation agrees best with several subjects, on what it was not fitted to.

    score_m = mean over folds and held-out subjects s of  compare(prediction m on the fold's conditions, data s)

Every matrix given is a fixed model; beside them stand models made of them all: the one that fits best (selected),
non-negative weights (weighted), a point between two neighbours (interpolated), fitted to the other folds
(`_model_families`). All are held to the same folds, so that their differences are paired.

    interval      Student's, from the variance over draws of conditions, subjects or both, corrected for two factors;
                  scores and ceilings on Fisher's scale, shares of the ceiling to first order
    null          the conditions of all models relabelled at once, and everything fitted anew

Source: [@schutt2023] (folds, families, inference), [@khaligh2014] (weighted models), [@nili2014] (ceilings).
Cost: F (m + S)² n² per draw and relabelling for F folds, m models, S subjects, n conditions.
Chunked over: draws.
"""

from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar

import numpy as np
from jaxtyping import Float

from mechint_core.alignment._conditions import Draws
from mechint_core.alignment._cross_validated import CrossValidated, Moments, folds, relabelled_scores
from mechint_core.alignment._distances import n_of_pairs
from mechint_core.alignment._drawn_products import RANKED, DrawnComparison, check_drawn_comparison
from mechint_core.alignment._many_models import Adjust, adjusted, adjusted_pairs, check_adjust
from mechint_core.alignment._model_families import Family, check_families, fit
from mechint_core.alignment._subjects import (
    Replicates,
    Resample,
    Sample,
    agreement_interval,
    check_rdms,
    check_resample,
    fisher,
    of_bounds,
    of_models,
    shortfall,
)
from mechint_core.errors import ConfigurationError, DegenerateInputError, ShapeError
from mechint_core.figure import Bars, Figure, Matrix
from mechint_core.kernels.family_wise_error import max_statistic
from mechint_core.kernels.resampling import p_value
from mechint_core.result import NAN, Estimate, Result

ROUNDING = 1e-12
"""A relabelling that scores as much up to this counts as a tie."""
FEWEST = 4
"""Conditions that a fold needs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelComparisonConfig:
    """Which models are made of those given, how they are held out, and what the answer is to generalise over."""

    comparison: DrawnComparison = "pearson"
    """pearson, cosine, spearman, rho-a, whitened cosine or whitened correlation; ranks cannot be weighted."""
    families: tuple[Family, ...] = ("selected", "weighted")
    """Models made of all given ones: selected, weighted, interpolated (the given ones in their order)."""
    cross_validate: Resample = "both"
    """What is held out: conditions, subjects or both."""
    n_condition_folds: int = 0
    """Folds of the conditions, of at least 4 each; 0 takes one per 8 conditions, from 2 to 5."""
    n_subject_folds: int = 0
    """Folds of the subjects; 0 takes 5, or as many as there are subjects."""
    resample: Resample = "both"
    """What is drawn again: conditions, subjects or both."""
    adjust: Adjust = "holm"
    """For many comparisons: fdr, holm, or max (the largest difference, stepping down)."""
    n_bootstrap: int = 500
    """Bootstrap draws."""
    n_permutations: int = 200
    """Relabellings of the conditions."""
    level: float = 0.95
    """Confidence of the intervals."""
    seed: int = 0
    """Names the folds and the draws."""

    def __post_init__(self) -> None:
        check_drawn_comparison(self.comparison)
        check_families(self.families)
        check_resample(self.resample)
        check_resample(self.cross_validate)
        if self.comparison in RANKED and {"weighted", "interpolated"} & set(self.families):
            raise ConfigurationError(
                f"families must be ('selected',) or () for ranks, which do not add. Got {self.families!r}."
            )
        check_adjust(self.adjust)
        if any(each < 0 or each == 1 for each in (self.n_condition_folds, self.n_subject_folds)):
            raise ConfigurationError(
                "n_condition_folds and n_subject_folds must be 0 or at least 2. "
                f"Got {self.n_condition_folds} and {self.n_subject_folds}."
            )
        _ = self.draws

    @property
    def draws(self) -> Draws:
        """The draws that intervals and null are made of."""
        return Draws(n_bootstrap=self.n_bootstrap, n_permutations=self.n_permutations, level=self.level, seed=self.seed)


@dataclass(frozen=True, slots=True)
class ModelComparisonResult(Result):
    """Held-out agreement of every model with the subjects, and of each model less each other."""

    technique: ClassVar[str] = "model_comparison"
    evidence: ClassVar[str] = (
        "Intervals: Student's, from the corrected variance over draws of conditions, subjects or both. Null: the "
        "conditions of all models relabelled and everything fitted anew; the best model against the best of each."
    )
    invariances: ClassVar[tuple[str, ...]] = ("rdm scaling",)
    figures: ClassVar[tuple[Figure, ...]] = (
        Bars(
            values="score", labels="model", low="low", high="high", null="null",
            title="Held-out agreement of each model with the subjects", value_label="agreement",
        ),
        Matrix(
            values="difference", x="model", y="model", title="Score of a model less that of another",
            value_label="difference of agreement", diverging=True,
        ),
        Matrix(
            values="difference_p_value_adjusted", x="model", y="model",
            title="That two models agree as well, adjusted for all pairs", value_label="p",
        ),
    )  # fmt: skip

    best: Estimate
    """Held-out agreement of the model that agrees most."""
    lead: Estimate
    """Score of the best model less that of the next; p is of this pair among all pairs."""
    lower_ceiling: Estimate
    """Agreement of each subject with the mean of the others, over the test conditions."""
    upper_ceiling: Estimate
    best_model: Annotated[tuple[str, ...], "example"]
    """The best model and the next."""
    n_conditions: int
    n_subjects: int
    n_condition_folds: int
    """1 where conditions are not held out."""
    n_subject_folds: int
    n_undefined: int
    """Draws in which some score has no value, left out."""
    model: Annotated[tuple[str, ...], "model"]
    """The given ones by number, then the families."""
    score: Float[np.ndarray, "model"]
    low: Float[np.ndarray, "model"]
    high: Float[np.ndarray, "model"]
    null: Float[np.ndarray, "model"]
    """Mean score over relabellings of the conditions."""
    p_value: Float[np.ndarray, "model"]
    """That a relabelled model scores as much."""
    p_value_adjusted: Float[np.ndarray, "model"]
    p_above_zero: Float[np.ndarray, "model"]
    """That other conditions or subjects give a score of 0 or below; says nothing for the cosines."""
    p_above_zero_adjusted: Float[np.ndarray, "model"]
    p_below_ceiling: Float[np.ndarray, "model"]
    """That a model as good as the other subjects falls this far below the lower ceiling."""
    p_below_ceiling_adjusted: Float[np.ndarray, "model"]
    ceiled: Float[np.ndarray, "model"]
    """Score as a share of the lower ceiling; may pass 1, and is not clipped."""
    ceiled_low: Float[np.ndarray, "model"]
    ceiled_high: Float[np.ndarray, "model"]
    difference: Float[np.ndarray, "model other_model"]
    difference_low: Float[np.ndarray, "model other_model"]
    difference_high: Float[np.ndarray, "model other_model"]
    difference_p_value: Float[np.ndarray, "model other_model"]
    """That two models score alike, two-sided; NaN on the diagonal."""
    difference_p_value_adjusted: Float[np.ndarray, "model other_model"]
    weight: Float[np.ndarray, "predictor"]
    """Weights of the given matrices, of unit length, fitted to all data; NaN without the weighted family."""
    interpolation: Float[np.ndarray, "predictor"]
    """Shares of the given matrices, summing to 1, fitted to all data; NaN without the interpolated family."""

    def reading(self) -> str:
        """Say which model is best, whether its lead is certain, and whether it reaches the ceiling."""
        best, lead = self.best, self.lead
        name, following = self.best_model[0], self.best_model[-1]
        text = (
            f"On held-out data of {self.n_subjects} subjects, {name} agrees best: {best.value:.3f} "
            f"[{best.low:.3f}, {best.high:.3f}]"
        )
        if not best.p_value <= 1 - best.level:
            return f"{text}, which relabelled conditions give as well (p = {best.p_value:.2g})."
        text += f"; relabelled conditions give {best.null:.3f} (p = {best.p_value:.2g})."
        if len(self.model) > 1:
            certain = "leads" if lead.p_value <= 1 - lead.level else "cannot be told from"
            text += f" It {certain} {following} (by {lead.value:.3f}, p = {lead.p_value:.2g})."
        if np.isnan(self.lower_ceiling.value):
            return text
        short = self.p_below_ceiling_adjusted[self.model.index(name)] <= 1 - best.level
        verdict = "falls short of" if short else "cannot be told from"
        return f"{text} It {verdict} the lower noise ceiling of {self.lower_ceiling.value:.3f}."


def model_comparison(
    models: Float[np.ndarray, "model pair"],
    data: Float[np.ndarray, "subject pair"],
    *,
    config: ModelComparisonConfig = ModelComparisonConfig(),
) -> ModelComparisonResult:
    """Ask which of several models agrees best with the subjects on data that none was fitted to.

    Use it to choose among models, fixed or with parameters: a fitted model is credited only for what generalises. It
    assumes that subjects and conditions are exchangeable, so that folds of them are alike. It cannot compare scores
    with those of other folds: pairs between folds are left out, and few conditions in a fold make every score noisy.

    Parameters
    ----------
    models
        One condensed dissimilarity matrix per model, pairs i < j in the order of `numpy.triu_indices(n, 1)`. For the
        interpolated family in an order that means something (a width, a depth).
    data
        One per subject, of the same conditions. NaN where a condition is missing; families that are weighted need the
        same pairs in all rows.
    config
        Families, folds, comparison, and what is drawn again.

    Returns
    -------
    ModelComparisonResult
        Scores are dimensionless, in [-1, 1], raw and as a share of the lower ceiling, neither ever clipped; differences
        of every two models with interval and p.

    Raises
    ------
    ShapeError
        If `models` or `data` are not matrices of the same 4 or more conditions.
    ConfigurationError
        If a fold of conditions would have fewer than 4, there are more folds than subjects, or there is one model to
        interpolate.
    DegenerateInputError
        If a row is constant or holds infinity; if there is one subject and subjects are drawn or held out; or if
        weighted families are asked for and rows miss different pairs.

    Notes
    -----
    Every subject counts the same, and every fold of conditions. In draws, copies of a condition or subject stay in the
    fold of the original. The variance is for these folds: other seeds give other scores. Ceilings leave out one subject
    at a time, whatever the folds; those of ranks are of mean ranks, not ranked again. Where conditions and subjects are
    both drawn, p-values of differences are uniform at 60 conditions; at 24 they err on the safe side (0.02 for a level
    of 0.05).

    References
    ----------
    [@schutt2023]
    [@khaligh2014]

    Examples
    --------
    >>> from mechint_core.random import generator
    >>> rng = generator(0, "example")
    >>> parts = rng.uniform(size=(2, 190))
    >>> found = model_comparison(parts, np.stack([parts[0] + 2 * parts[1]] * 3))
    >>> found.best_model[0], round(found.best.value, 6), (found.weight / found.weight[0]).round(6).tolist()
    ('weighted', 1.0, [1.0, 2.0])
    """
    n = _check(models, data, config)
    condition_fold, subject_fold = _folds(n, len(data), config)
    scaled = models / np.sqrt(np.nanmean(models**2, axis=1, keepdims=True))
    evaluate = partial(CrossValidated.of, config.comparison, config.families, condition_fold, subject_fold, data)
    sample = Sample.of(partial(evaluate, scaled[None]), n, len(data), config.resample, config.draws)
    null = np.empty((0, len(models) + len(config.families)))
    if config.n_permutations:
        null = relabelled_scores(evaluate, scaled, config.draws.permutations(n), len(data))
    return _result(models, data, sample, null, config)


def _check(models: np.ndarray, data: np.ndarray, config: ModelComparisonConfig) -> int:
    n = check_rdms("models", models, config.comparison)
    if check_rdms("data", data, config.comparison) != n:
        raise ShapeError(f"models and data must have the same conditions. Got {n} and {n_of_pairs(data.shape[1])}.")
    if len(data) < 2 and (config.resample != "conditions" or config.cross_validate != "conditions"):
        raise DegenerateInputError(
            "data must have at least 2 subjects to draw or hold out. Got 1: use resample='conditions' and "
            "cross_validate='conditions'."
        )
    if len(models) < 2 and "interpolated" in config.families:
        raise ConfigurationError("families must leave 'interpolated' out for one model. Got 1.")
    missing = np.isnan(np.concatenate([models, data]))
    if {"weighted", "interpolated"} & set(config.families) and np.any(missing != missing[0]):
        raise DegenerateInputError(
            "rows must miss the same pairs for weighted families. Got different ones: leave those conditions out, or "
            "use families=('selected',)."
        )
    return n


def _folds(n: int, n_subjects: int, config: ModelComparisonConfig) -> tuple[np.ndarray, np.ndarray]:
    held_out = config.cross_validate
    of_conditions = 1 if held_out == "subjects" else config.n_condition_folds or min(5, max(2, n // 8))
    of_subjects = 1 if held_out == "conditions" else config.n_subject_folds or min(5, n_subjects)
    if n < FEWEST * of_conditions:
        raise ConfigurationError(
            f"a fold must have at least {FEWEST} conditions. Got {n} in {of_conditions}: use cross_validate='subjects'."
        )
    if of_subjects > n_subjects:
        raise ConfigurationError(f"n_subject_folds must be at most the {n_subjects} subjects. Got {of_subjects}.")
    return folds(n, of_conditions, config.seed, "conditions"), folds(n_subjects, of_subjects, config.seed, "subjects")


def _result(
    models: np.ndarray,
    data: np.ndarray,
    sample: Sample[CrossValidated],
    null: Float[np.ndarray, "draw model"],
    config: ModelComparisonConfig,
) -> ModelComparisonResult:
    level, names = config.level, (*(f"model {m}" for m in range(len(models))), *config.families)
    observed = sample.whole.with_ceilings(np.ones((1, len(data))))
    lower, score = observed[0, 0], observed[0, 2:]
    replicates = sample.replicate(CrossValidated.with_ceilings)
    ceiled = score / lower
    spread, short, reach = (replicates.spread(each) for each in (of_models, shortfall, of_bounds))
    share = replicates.spread(lambda scores: (scores[:, 2:] - ceiled * scores[:, :1]) / lower)
    p_zero, p_ceiling = spread.p_value(fisher(score)), short.p_value(lower - score)
    low, high = agreement_interval(score, spread, level)
    least, most = agreement_interval(observed[0, :2], reach, level)
    gaps = _Gaps.of(_differences(observed)[0], replicates, config)
    p_null = np.array([p_value(each - ROUNDING, draws) for each, draws in zip(score, null.T, strict=True)])
    largest = max_statistic(score - ROUNDING, null)
    typical = null.mean(axis=0) if len(null) else np.full(len(names), NAN)
    order = np.argsort(-np.nan_to_num(score, nan=-np.inf), kind="stable")[:2]
    pair = int(order[0]), int(order[-1])
    weight, interpolation = (_parameters(each, models, data, config) for each in ("weighted", "interpolated"))
    return ModelComparisonResult(
        best=_estimate(pair[0], (score, low, high, typical, largest), level),
        lead=_estimate(pair, (gaps.value, gaps.low, gaps.high, np.zeros_like(gaps.value), gaps.p_adjusted), level),
        lower_ceiling=Estimate(*(float(each[0]) for each in (observed[0], least, most)), level=level),
        upper_ceiling=Estimate(*(float(each[1]) for each in (observed[0], least, most)), level=level),
        best_model=tuple(names[each] for each in order),
        n_conditions=sample.n_conditions,
        n_subjects=len(data),
        n_condition_folds=len(sample.whole.test),
        n_subject_folds=sample.whole.n_subject_folds,
        n_undefined=replicates.n_undefined(of_models),
        model=names,
        score=score,
        low=low,
        high=high,
        null=typical,
        p_value=p_null,
        p_value_adjusted=largest if config.adjust == "max" else adjusted(p_null, config.adjust, null),
        p_above_zero=p_zero,
        p_above_zero_adjusted=adjusted(p_zero, config.adjust, replicates.standardised(of_models)),
        p_below_ceiling=p_ceiling,
        p_below_ceiling_adjusted=adjusted(p_ceiling, config.adjust, replicates.standardised(shortfall)),
        ceiled=ceiled,
        ceiled_low=share.interval(ceiled, level)[0],
        ceiled_high=share.interval(ceiled, level)[1],
        difference=gaps.value,
        difference_low=gaps.low,
        difference_high=gaps.high,
        difference_p_value=gaps.p_value,
        difference_p_value_adjusted=gaps.p_adjusted,
        weight=weight / np.linalg.norm(weight),
        interpolation=interpolation / interpolation.sum(),
    )


@dataclass(frozen=True, slots=True)
class _Gaps:
    """Score of each model less that of each other."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    p_value: np.ndarray
    p_adjusted: np.ndarray

    @classmethod
    def of(cls, value: np.ndarray, replicates: Replicates, config: ModelComparisonConfig) -> "_Gaps":
        spread = replicates.spread(_differences)
        p = np.where(np.eye(len(value), dtype=np.bool_), NAN, spread.p_value(value, two_sided=True))
        q = adjusted_pairs(p, config.adjust, replicates.standardised(_differences))
        low, high = spread.interval(value, config.level)
        return cls(value, low, high, p, q)


def _estimate(at: int | tuple[int, int], parts: tuple[np.ndarray, ...], level: float) -> Estimate:
    value, low, high, null, p = (float(each[at]) for each in parts)
    return Estimate(value, low, high, null, p, level)


def _parameters(family: Family, models: np.ndarray, data: np.ndarray, config: ModelComparisonConfig) -> np.ndarray:
    """Return the parameters fitted to all data."""
    if family not in config.families:
        return np.full(len(models), NAN)
    size = np.sqrt(np.nanmean(models**2, axis=1))
    once = np.ones((n_of_pairs(data.shape[1]), 1), np.int64)
    found = Moments.of((models / size[:, None])[None], data, config.comparison, once)
    return fit(family, found.gram, found.cross.mean(axis=2))[0] / size


def _differences(scores: np.ndarray) -> np.ndarray:
    return scores[:, 2:, None] - scores[:, None, 2:]
