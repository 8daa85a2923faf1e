"""Dissimilarity matrices of several subjects: agreement in draws of conditions and subjects, ceilings, spread.

    v_conditions, v_subjects, v_both     variance of a statistic over draws of either factor, and of both at once
    v = n/(n-1) v_c + S/(S-1) v_s - n S/((n-1)(S-1)) (v_both - v_c - v_s)

Drawing both at once counts the noise of single entries three times: v is what drawing anew would give. It is held
between the larger of the first two terms and v_both. Intervals are Student's, with as many degrees of freedom as the
rarer factor has, which covers better than an estimate of them.

    upper_s = <e_s, Σ_t e_t> / |Σ_t e_t|      lower_s: the sums without subject s      e: unit vectors of the comparison

are functions of the subjects' agreements with one another C_st = <e_s, e_t> alone, so ceilings in a draw need no pooled
matrix. The mean over subjects of the upper one is sqrt(mean C): no fixed matrix agrees better with these subjects.

Source: [@schutt2023] (the corrected variance), [@nili2014] (ceilings).
Cost: (m S + S² / 2) n² per draw for m models.
Chunked over: draws.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar, get_args

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

from mechint_core.alignment._comparisons import RANKED, Comparison, compare
from mechint_core.alignment._condition_bootstrap import bootstrap_agreements
from mechint_core.alignment._conditions import Draws
from mechint_core.alignment._distances import n_of_pairs
from mechint_core.alignment._drawn_products import drawn_products, is_drawn
from mechint_core.alignment._ranks import mid_ranks
from mechint_core.errors import ConfigurationError, DegenerateInputError, ShapeError
from mechint_core.random import generator
from mechint_core.result import NAN

Agreements = TypeVar("Agreements")
Resample = Literal["conditions", "subjects", "both"]
"""Over what results are to generalise: new conditions, new subjects, or both."""
ROUNDING = 1e-12
"""Dissimilarities that vary by less than this share of their size are all the same; agreements nearer to 1 are 1."""


def check_resample(resample: str) -> None:
    """Refuse what is not one of `Resample`."""
    if resample not in get_args(Resample):
        raise ConfigurationError(f"resample must be one of {get_args(Resample)}. Got {resample!r}.")


def check_rdms(name: str, rdms: Float[np.ndarray, "rdm pair"], comparison: Comparison) -> int:
    """Refuse matrices that cannot be compared, and return how many conditions they are of."""
    if rdms.ndim != 2 or 0 in rdms.shape:
        raise ShapeError(f"{name} must be (rdm, pair). Got shape {rdms.shape}.")
    n = n_of_pairs(rdms.shape[1])
    if n * (n - 1) // 2 != rdms.shape[1] or n < 4:
        raise ShapeError(f"{name} must have n (n - 1) / 2 pairs of n >= 4 conditions. Got {rdms.shape[1]} pairs.")
    if np.any(np.isinf(rdms)):
        raise DegenerateInputError(f"{name} must be finite, or NaN where a condition is missing. Got infinity.")
    for row, each in enumerate(rdms):
        held = each[~np.isnan(each)]
        if len(held) < 3:
            raise DegenerateInputError(f"{name} must hold at least 3 pairs in each row. Got {len(held)} in row {row}.")
        cosine = comparison in ("cosine", "whitened cosine", "bures")
        if not np.any(held) if cosine else np.ptp(held) <= ROUNDING * np.abs(held).max():
            raise DegenerateInputError(f"{name} must vary over pairs in each row. Got a constant row {row}.")
    return n


@dataclass(frozen=True, slots=True)
class SubjectAgreement:
    """Agreements with every subject, in draws of the conditions."""

    models: Float[np.ndarray, "draw model subject"]
    subjects: Float[np.ndarray, "draw subject other_subject"]

    @classmethod
    def of(
        cls,
        models: Float[np.ndarray, "model pair"],
        data: Float[np.ndarray, "subject pair"],
        comparison: Comparison,
        counts: Int[np.ndarray, "condition draw"],
    ) -> "SubjectAgreement":
        """Compare every subject with every model and every other subject."""
        if not is_drawn(comparison):
            first, second = (bootstrap_agreements(each, data, comparison, counts=counts) for each in (models, data))
            return cls(first, second)
        m, s = len(models), len(data)
        model, subject = (each.ravel() for each in np.indices((m, s)))
        one, other = np.triu_indices(s)
        left, right = np.concatenate([model, m + one]), np.concatenate([m + subject, m + other])
        found = drawn_products(np.concatenate([models, data]), left, right, comparison, counts=counts).agreement()
        between = np.empty((counts.shape[1], s, s))
        between[:, one, other] = between[:, other, one] = found[:, m * s :]
        return cls(found[:, : m * s].reshape(counts.shape[1], m, s), between)

    def mean(self, times: Float[np.ndarray, "#draw subject"]) -> Float[np.ndarray, "_ model"]:
        """Return each model's mean agreement, where subject s occurs `times[s]` times."""
        return np.einsum("bms,bs->bm", self.models, times) / times.sum(axis=1, keepdims=True)

    def ceilings(self, times: Float[np.ndarray, "#draw subject"]) -> Float[np.ndarray, "_ bound"]:
        """Return the lower and the upper ceiling in each draw; NaN where there is but one subject."""
        return ceilings(self.subjects, times)


def ceilings(
    between: Float[np.ndarray, "#draw subject other_subject"], times: Float[np.ndarray, "#draw subject"]
) -> Float[np.ndarray, "_ bound"]:
    """Return the mean of the lower and of the upper ceiling in each draw, where subject s occurs `times[s]` times."""
    each = np.where(times[:, None] > 0, subject_ceilings(between, times) * times[:, None], 0.0)
    return each.sum(axis=2) / times.sum(axis=1, keepdims=True)


def subject_ceilings(
    between: Float[np.ndarray, "#draw subject other_subject"], times: Float[np.ndarray, "#draw subject"]
) -> Float[np.ndarray, "_ bound subject"]:
    """Return how well each subject agrees with the mean of the others, and of all.

    Copies of a subject say nothing new: a mean of k subjects is one of k different ones, whose agreements with one
    another are those of the different ones drawn. NaN where all that were drawn are one.
    """
    k = between.shape[1]
    own = np.einsum("bss->bs", between)
    all_inner = np.einsum("bst,bt->bs", between, times) - times * own  # with the others, as often as they were drawn
    n_others = times.sum(axis=1, keepdims=True) - times
    with np.errstate(invalid="ignore", divide="ignore"):  # one subject alone: NaN
        mean = all_inner / n_others
        pairs = np.sum(times * n_others, axis=1, keepdims=True)
        inner = np.sum(times * all_inner, axis=1, keepdims=True)
        left = np.where(n_others > 0, inner - 2 * times * all_inner, np.nan)
        n_left = pairs - 2 * times * n_others
        among = np.where(n_left > 0, left / n_left, np.nan if k > 2 else 0.0)
        typical = own.mean(axis=1, keepdims=True)
        rest, others_k = (own.sum(axis=1, keepdims=True) - own) / max(k - 1, 1), max(k - 1, 1)
        others = rest / others_k + (1 - 1 / others_k) * among
        everyone = typical / k + (1 - 1 / k) * inner / pairs
        lower = mean / np.sqrt(np.where(others > 0, others, np.nan))
        upper = (own / k + (1 - 1 / k) * mean) / np.sqrt(np.where(everyone > 0, everyone, np.nan))
    return np.stack([lower, upper], axis=1)


def observed_ceilings(
    data: Float[np.ndarray, "subject pair"], whole: SubjectAgreement, comparison: Comparison
) -> Float[np.ndarray, "bound subject"]:
    """Return how well each subject agrees with the mean of the others, and of all.

    Where the comparison is no sum of products, from pooled matrices: ranks are pooled and ranked anew, which is best
    for spearman and rho-a and near it for tau-a; for bures the pool is the mean of the kernels at trace 1.
    """
    if comparison not in (*RANKED, "bures") or len(data) < 2:
        return subject_ceilings(whole.subjects, np.ones((1, len(data))))[0]
    others = [_pool(np.delete(data, s, axis=0), comparison)[None] for s in range(len(data))]
    lower = [compare(pool, data[s : s + 1], comparison)[0, 0] for s, pool in enumerate(others)]
    return np.stack([np.array(lower), compare(_pool(data, comparison)[None], data, comparison)[0]])


def _pool(data: np.ndarray, comparison: Comparison) -> np.ndarray:
    held = ~np.isnan(data)
    if comparison in RANKED:
        scaled = np.zeros_like(data)
        for row, here, into in zip(data, held, scaled, strict=True):
            into[here] = mid_ranks(row[here]) * (held.any(axis=0).sum() / here.sum())
    else:
        scaled = np.where(held, data, 0.0) / np.nanmean(data, axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):  # a pair that nobody holds: NaN
        return scaled.sum(axis=0) / held.sum(axis=0)


@dataclass(frozen=True, slots=True)
class Sample(Generic[Agreements]):
    """Agreements of the conditions as they are, in draws of them, and the draws of subjects that go with these."""

    whole: Agreements
    drawn: Agreements
    times: Float[np.ndarray, "draw subject"]
    resample: Resample
    n_conditions: int

    @classmethod
    def of(
        cls, agreements: Callable[[np.ndarray], Agreements], n: int, n_subjects: int, resample: Resample, draws: Draws
    ) -> "Sample[Agreements]":
        """Draw what is to be drawn; `agreements` takes how often each condition occurs in each draw."""
        once = np.ones((n, 1), np.int64)
        counts = once[:, :0] if resample == "subjects" else draws.counts(n)
        times = subject_counts(n_subjects, draws.n_bootstrap, draws.seed)
        return cls(agreements(once), agreements(counts), times, resample, n)

    def replicate(self, statistic: Callable[[Agreements, np.ndarray], np.ndarray]) -> "Replicates":
        """Evaluate `statistic(agreement, times)`, whose first axis is draws, in draws of what is to be drawn."""
        once = np.ones_like(self.times)
        drawn: dict[Resample, np.ndarray] = {}
        if self.resample != "subjects":
            drawn["conditions"] = statistic(self.drawn, once)
        if self.resample != "conditions":
            drawn["subjects"] = statistic(self.whole, self.times)
        if self.resample == "both":
            drawn["both"] = statistic(self.drawn, self.times)
        return Replicates(drawn, self.resample, self.n_conditions, self.times.shape[1])


@dataclass(frozen=True, slots=True)
class Replicates:
    """A statistic in draws of conditions, of subjects, of both: as many of these as are needed."""

    drawn: dict[Resample, np.ndarray]
    resample: Resample
    n_conditions: int
    n_subjects: int

    def spread(self, function: Callable[[np.ndarray], np.ndarray]) -> "Spread":
        """Return the spread of a function of the statistic."""
        n, s = self.n_conditions, self.n_subjects
        variance = {name: variance_of(function(draws)) for name, draws in self.drawn.items()}
        if self.resample == "conditions":
            return Spread(n / (n - 1) * variance["conditions"], n - 1)
        if self.resample == "subjects":
            return Spread(s / (s - 1) * variance["subjects"], s - 1)
        corrected = corrected_variance(variance["conditions"], variance["subjects"], variance["both"], n, s)
        return Spread(corrected, min(n, s) - 1)

    def n_undefined(self, function: Callable[[np.ndarray], np.ndarray]) -> int:
        """Return in how many draws a function of the statistic has no value."""
        return int(np.isnan(function(self.drawn[self.resample])).any(axis=1).sum())

    def standardised(self, function: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """Return draws of a function of the statistic, less their mean, in standard deviations."""
        draws = function(self.drawn[self.resample])
        deviation = np.sqrt(variance_of(draws))
        return (draws - mean_of(draws)) / np.where(deviation > 0, deviation, NAN)


def subject_counts(n_subjects: int, n_draws: int, seed: int) -> Float[np.ndarray, "draw subject"]:
    """Return how often each subject is drawn, in each bootstrap draw."""
    draws = generator(seed, "bootstrap", "subjects")
    return draws.multinomial(n_subjects, np.full(n_subjects, 1 / n_subjects), size=n_draws).astype(np.float64)


def corrected_variance(conditions: np.ndarray, subjects: np.ndarray, both: np.ndarray, n: int, s: int) -> np.ndarray:
    """Return the variance over n conditions and s subjects, from the variances over draws of either and of both."""
    first, second = n / (n - 1) * conditions, s / (s - 1) * subjects
    corrected = first + second - n * s / ((n - 1) * (s - 1)) * (both - conditions - subjects)
    floor = np.maximum(first, second)
    return np.minimum(np.maximum(corrected, floor), np.maximum(both, floor))


def mean_of(draws: np.ndarray) -> np.ndarray:
    """Return the mean over draws; draws in which the statistic has no value are left out."""
    counted = np.isfinite(draws)
    n = counted.sum(axis=0)
    return np.where(n > 0, np.where(counted, draws, 0.0).sum(axis=0) / np.maximum(n, 1), NAN)


def variance_of(draws: np.ndarray) -> np.ndarray:
    """Return the variance over draws; draws in which the statistic has no value are left out."""
    n = np.isfinite(draws).sum(axis=0)
    return np.where(n > 1, mean_of((draws - mean_of(draws)) ** 2) * n / np.maximum(n - 1, 1), NAN)


@dataclass(frozen=True, slots=True)
class Spread:
    """Variance of a statistic (or of many), and the degrees of freedom it is known with."""

    variance: np.ndarray
    dof: int

    def interval(self, value: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
        """Return Student's interval around `value`."""
        reach = stats.t.ppf((1 + level) / 2, self.dof) * np.sqrt(self.variance)
        return value - reach, value + reach

    def p_value(self, distance: np.ndarray, *, two_sided: bool = False) -> np.ndarray:
        """Return the chance that noise alone lifts the statistic by `distance` or more; never 0, 1/2 at 0."""
        error = np.where(self.variance > 0, np.sqrt(self.variance), np.finfo(np.float64).tiny)
        known = np.where(np.isnan(self.variance), NAN, distance)
        t = np.where(np.abs(known) <= ROUNDING, 0.0, known / error)
        p = 2 * stats.t.sf(np.abs(t), self.dof) if two_sided else stats.t.sf(t, self.dof)
        return np.maximum(p, np.finfo(np.float64).tiny)


def fisher(agreement: np.ndarray) -> np.ndarray:
    """Return agreements on the scale where their spread depends least on them; 1 stays finite."""
    return np.arctanh(np.clip(agreement, ROUNDING - 1, 1 - ROUNDING))


def agreement_interval(value: np.ndarray, spread: Spread, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the interval of an agreement whose spread is on Fisher's scale."""
    low, high = spread.interval(fisher(value), level)
    return np.tanh(low), np.tanh(high)


def of_bounds(scores: Float[np.ndarray, "draw _"]) -> Float[np.ndarray, "draw bound"]:
    """Of scores that are two ceilings and then models, take the ceilings on Fisher's scale."""
    return fisher(scores[:, :2])


def of_models(scores: Float[np.ndarray, "draw _"]) -> Float[np.ndarray, "draw model"]:
    """Take the models on Fisher's scale."""
    return fisher(scores[:, 2:])


def shortfall(scores: Float[np.ndarray, "draw _"]) -> Float[np.ndarray, "draw model"]:
    """Return how far each model falls below the lower ceiling."""
    return scores[:, :1] - scores[:, 2:]
