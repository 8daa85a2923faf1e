"""Bootstrap: how well models of a representation agree with several subjects, and how far that generalises.

    agreement_m = mean over subjects s of  compare(model m, data s)

is found anew for conditions, subjects or both drawn with replacement. All draws of the conditions come from a few
matrix products (`_drawn_products`), those of subjects from the same agreements with other weights.

    interval      Student's, on Fisher's scale, from the variance over draws, corrected for drawing two factors at once
    null          the mean agreement over all relabellings of the conditions (0 where the comparison takes the mean out)
    p             share of relabellings that agree as much; of the best model: as the best model then

Source: [@nili2014], [@schutt2023] (both factors at once, ceilings), [@mantel1967] (relabelling).
Cost: (m S + S² / 2) n² per draw for m models, S subjects, n conditions; m n² per relabelling.
Chunked over: draws.
"""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Int

from mechint_core.alignment._comparisons import Comparison, check_comparison, compare
from mechint_core.alignment._conditions import Draws, relabelled_agreements
from mechint_core.alignment._distances import n_of_pairs
from mechint_core.alignment._drawn_products import is_drawn
from mechint_core.alignment._many_models import Adjust, adjusted, check_adjust
from mechint_core.alignment._relabelled import expected_means, relabelled_means, unit_squares
from mechint_core.alignment._subjects import (
    Resample,
    Sample,
    SubjectAgreement,
    agreement_interval,
    check_rdms,
    check_resample,
    fisher,
    observed_ceilings,
    of_bounds,
    of_models,
    shortfall,
)
from mechint_core.errors import DegenerateInputError, ShapeError
from mechint_core.figure import Bars, Figure, Matrix
from mechint_core.kernels.family_wise_error import max_statistic
from mechint_core.kernels.resampling import p_value
from mechint_core.result import NAN, Estimate, Result

ROUNDING = 1e-12
"""A relabelling that agrees as much up to this counts as a tie."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BootstrapConfig:
    """How to compare models with subjects, and over what the answer is to generalise."""

    comparison: Comparison = "pearson"
    """pearson, cosine, spearman, rho-a, tau-a, whitened cosine, whitened correlation or bures."""
    resample: Resample = "both"
    """What is drawn again: conditions, subjects or both; one subject allows conditions only."""
    adjust: Adjust = "fdr"
    """For many models: fdr, holm, or max (the largest statistic, stepping down)."""
    n_bootstrap: int = 1000
    """Bootstrap draws."""
    n_permutations: int = 1000
    """Relabellings of the conditions."""
    level: float = 0.95
    """Confidence of the intervals."""
    seed: int = 0
    """Names the draws."""

    def __post_init__(self) -> None:
        check_comparison(self.comparison)
        check_resample(self.resample)
        check_adjust(self.adjust)
        _ = self.draws

    @property
    def draws(self) -> Draws:
        """The draws that intervals and null are made of."""
        return Draws(n_bootstrap=self.n_bootstrap, n_permutations=self.n_permutations, level=self.level, seed=self.seed)


@dataclass(frozen=True, slots=True)
class BootstrapResult(Result):
    """Agreement of every model with the subjects."""

    technique: ClassVar[str] = "bootstrap"
    evidence: ClassVar[str] = (
        "Intervals: Student's on Fisher's scale, from the corrected variance over draws of conditions, subjects or "
        "both. Null: the conditions relabelled; the best model is compared with the best of each relabelling."
    )
    invariances: ClassVar[tuple[str, ...]] = ("rdm scaling", "order of subjects", "order of conditions")
    figures: ClassVar[tuple[Figure, ...]] = (
        Bars(
            values="value", labels="model", low="low", high="high", null="null",
            title="Agreement of each model with the subjects", value_label="agreement",
        ),
        Matrix(
            values="agreement", x="subject", y="model", title="Each model and subject", x_label="subject",
            y_label="model", value_label="agreement", diverging=True,
        ),
    )  # fmt: skip

    best: Estimate
    """Agreement of the model that agrees most."""
    lower_ceiling: Estimate
    """Agreement of each subject with the mean of the others; NaN with one subject."""
    upper_ceiling: Estimate
    """Agreement of each subject with the mean of all."""
    best_model: int
    n_conditions: int
    n_subjects: int
    n_missing: int
    """Pairs that are NaN, over all models and subjects."""
    n_undefined: int
    """Draws in which some agreement has no value, left out."""
    model: Int[np.ndarray, "model"]
    subject: Int[np.ndarray, "subject"]
    value: Float[np.ndarray, "model"]
    low: Float[np.ndarray, "model"]
    high: Float[np.ndarray, "model"]
    null: Float[np.ndarray, "model"]
    """Mean agreement over all relabellings of the conditions."""
    p_value: Float[np.ndarray, "model"]
    """That a relabelled model agrees as much; exact for any comparison."""
    p_value_adjusted: Float[np.ndarray, "model"]
    """The same over all models: a false discovery rate or a family-wise error rate."""
    p_above_null: Float[np.ndarray, "model"]
    """That other conditions or subjects give an agreement at the null or below, from the interval's variance."""
    p_above_null_adjusted: Float[np.ndarray, "model"]
    p_below_ceiling: Float[np.ndarray, "model"]
    """That a model as good as the other subjects falls this far below the lower ceiling."""
    p_below_ceiling_adjusted: Float[np.ndarray, "model"]
    standard_error: Float[np.ndarray, "model"]
    """Of the value, from the corrected variance over draws."""
    agreement: Float[np.ndarray, "model subject"]

    def reading(self) -> str:
        """Say which model agrees best, and whether it reaches what the subjects share."""
        best, ceiling = self.best, self.lower_ceiling
        text = (
            f"Of {len(self.model)} models, model {self.best_model} agrees best with the {self.n_subjects} subjects: "
            f"{best.value:.3f} [{best.low:.3f}, {best.high:.3f}]"
        )
        if not best.p_value <= 1 - best.level:
            return f"{text}, which relabelled conditions give as well (p = {best.p_value:.2g})."
        text += f"; relabelled conditions give {best.null:.3f} (p = {best.p_value:.2g})."
        if np.isnan(ceiling.value):
            return f"{text} One subject says nothing about a noise ceiling."
        short = self.p_below_ceiling_adjusted[self.best_model]
        verdict = "falls short of" if short <= 1 - best.level else "cannot be told from"
        return f"{text} It {verdict} the lower noise ceiling of {ceiling.value:.3f} (p = {short:.2g})."


def bootstrap(
    models: Float[np.ndarray, "model pair"],
    data: Float[np.ndarray, "subject pair"],
    *,
    config: BootstrapConfig = BootstrapConfig(),
) -> BootstrapResult:
    """Ask how well models agree with the dissimilarities of several subjects, and whether that would repeat.

    Use it to test models (layers, hypotheses) against recordings of one or more subjects. It assumes that conditions
    and subjects that are drawn again are samples of those of interest. It cannot tell a model that fits by chance from
    one of many tried: give all that were tried. Models with parameters need `model_comparison`.

    Parameters
    ----------
    models
        One condensed dissimilarity matrix per model, pairs i < j in the order of `numpy.triu_indices(n, 1)`.
    data
        One per subject, of the same conditions. NaN where a condition is missing: such pairs are left out.
    config
        Comparison, what is drawn again, how many draws.

    Returns
    -------
    BootstrapResult
        Agreements are dimensionless, in [-1, 1]; none is divided by a ceiling or clipped. The lower ceiling is what a
        true model is expected to exceed, the upper one what no model can exceed on average over these subjects.

    Raises
    ------
    ShapeError
        If `models` or `data` are not matrices of the same 4 or more conditions.
    DegenerateInputError
        If a row is constant, holds infinity or fewer than 3 pairs; if subjects are drawn but there is only one; or if a
        whitened comparison misses pairs that are not whole conditions.

    Notes
    -----
    Drawn copies of a condition make no pair, copies of a subject are no other subject. In draws the ceilings of
    ranked comparisons are those of the mean ranks, not ranked again; the values do rank them. For tau-a and bures,
    draws and relabellings are made one by one, and the draws' ceilings treat agreements as inner products. The variance
    is of the model that was best, not of choosing it: its interval is too short if many models are about as good.

    References
    ----------
    [@nili2014]
    [@schutt2023]

    Examples
    --------
    >>> from mechint_core.random import generator
    >>> truth = generator(0, "example").uniform(size=45)
    >>> found = bootstrap(np.stack([truth, truth[::-1]]), np.stack([2 * truth, truth + 1, truth]))
    >>> found.best_model, round(found.best.value, 12)
    (0, 1.0)
    """
    n = check_rdms("models", models, config.comparison)
    if check_rdms("data", data, config.comparison) != n:
        raise ShapeError(f"models and data must have the same conditions. Got {n} and {n_of_pairs(data.shape[1])}.")
    if len(data) < 2 and config.resample != "conditions":
        raise DegenerateInputError("data must have at least 2 subjects to draw from. Got 1: use resample='conditions'.")
    agreements = partial(SubjectAgreement.of, models, data, config.comparison)
    sample = Sample.of(agreements, n, len(data), config.resample, config.draws)
    relabelled = _Relabelled.of(models, data, config)
    return _result(models, data, sample, relabelled, config)


@dataclass(frozen=True, slots=True)
class _Relabelled:
    """What agreements are where the models know nothing of the conditions."""

    expected: np.ndarray
    p_value: np.ndarray
    p_adjusted: np.ndarray
    p_best: float

    @classmethod
    def of(cls, models: np.ndarray, data: np.ndarray, config: BootstrapConfig) -> "_Relabelled":
        permutations = config.draws.permutations(n_of_pairs(data.shape[1]))
        if is_drawn(config.comparison):
            squares = unit_squares(models, config.comparison)
            mean = unit_squares(data, config.comparison).mean(axis=0)
            observed, expected = np.einsum("mij,ij->m", squares, mean), expected_means(squares, mean)
            null = relabelled_means(squares, mean, permutations)
        else:
            observed = compare(models, data, config.comparison).mean(axis=1)
            null = relabelled_agreements(models, data, config.comparison, permutations=permutations).mean(axis=2)
            expected = null.mean(axis=0) if len(null) else np.full(len(models), NAN)
        p = np.array([p_value(each - ROUNDING, draws) for each, draws in zip(observed, null.T, strict=True)])
        largest = max_statistic(observed - ROUNDING, null)
        q = largest if config.adjust == "max" else adjusted(p, config.adjust, null)
        return cls(expected, p, q, float(largest[np.argmax(observed)]))


def _result(
    models: np.ndarray,
    data: np.ndarray,
    sample: Sample[SubjectAgreement],
    relabelled: _Relabelled,
    config: BootstrapConfig,
) -> BootstrapResult:
    every, level = np.ones((1, len(data))), config.level
    value = sample.whole.mean(every)[0]
    bounds = observed_ceilings(data, sample.whole, config.comparison).mean(axis=1)
    replicates = sample.replicate(_scores)
    spread, reach, short = (replicates.spread(each) for each in (of_models, of_bounds, shortfall))
    low, high = agreement_interval(value, spread, level)
    least, most = agreement_interval(bounds, reach, level)
    above = spread.p_value(fisher(value) - fisher(relabelled.expected))
    below = short.p_value(bounds[0] - value)
    best = int(np.nanargmax(value)) if np.isfinite(value).any() else 0
    return BootstrapResult(
        best=Estimate(
            value=float(value[best]),
            low=float(low[best]),
            high=float(high[best]),
            null=float(relabelled.expected[best]),
            p_value=relabelled.p_best,
            level=level,
        ),
        lower_ceiling=Estimate(*(float(each[0]) for each in (bounds, least, most)), level=level),
        upper_ceiling=Estimate(*(float(each[1]) for each in (bounds, least, most)), level=level),
        best_model=best,
        n_conditions=sample.n_conditions,
        n_subjects=len(data),
        n_missing=int(np.isnan(models).sum() + np.isnan(data).sum()),
        n_undefined=replicates.n_undefined(of_models),
        model=np.arange(len(models)),
        subject=np.arange(len(data)),
        value=value,
        low=low,
        high=high,
        null=relabelled.expected,
        p_value=relabelled.p_value,
        p_value_adjusted=relabelled.p_adjusted,
        p_above_null=above,
        p_above_null_adjusted=adjusted(above, config.adjust, replicates.standardised(of_models)),
        p_below_ceiling=below,
        p_below_ceiling_adjusted=adjusted(below, config.adjust, replicates.standardised(shortfall)),
        standard_error=np.sqrt(spread.variance) * (1 - value**2),
        agreement=sample.whole.models[0],
    )


def _scores(agreement: SubjectAgreement, times: np.ndarray) -> Float[np.ndarray, "draw _"]:
    """Return both ceilings, then every model's mean agreement."""
    return np.concatenate([agreement.ceilings(times), agreement.mean(times)], axis=1)
