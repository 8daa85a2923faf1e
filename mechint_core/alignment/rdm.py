"""Representational dissimilarity matrix: how far apart a system holds every pair of conditions.

    D_ij = d(m_i, m_j) for i < j,     m_i the mean response to condition i

    euclidean                 ||m_i - m_j||² / p
    correlation, cosine       1 - r(m_i, m_j), 1 - cos(m_i, m_j)
    mahalanobis               (m_i - m_j)ᵀ Σ⁻¹ (m_i - m_j) / p,  Σ the noise covariance of the units
    crossnobis                the same with the two differences from different folds, over all pairs of folds
    poisson                   Σ (λ_i - λ_j) (log λ_i - log λ_j) / p,  λ the rates m, shrunk a little to a prior

    reliability = 2 r / (1 + |r|),    r the correlation of the D of two halves of the samples (Spearman-Brown)

Source: [@kriegeskorte2008], [@nili2014], [@walther2016].
Cost: n² p for n conditions, times the folds of crossnobis; the answer is the n (n - 1) / 2 pairs, and no n x n matrix
is made. `rdm_panels` makes the pairs of a stored system run by run.
Chunked over: nothing; rows of the matrix are made a panel at a time.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Int

from mechint_core.alignment._conditions import Draws, agreement, bootstrap_mean, estimate_agreement
from mechint_core.alignment._distances import evenly_spaced, pairs_among, square_form
from mechint_core.alignment._measures import (
    CROSSVALIDATED,
    Around,
    Dissimilarity,
    FittedMeasure,
    Measure,
    Noise,
    Weighting,
    fit_measure,
)
from mechint_core.alignment._responses import Missing, Responses, check_missing, responses
from mechint_core.errors import ConfigurationError, DegenerateInputError, ShapeError
from mechint_core.figure import Figure, Matrix
from mechint_core.kernels.resampling import p_value, percentile_interval
from mechint_core.random import generator
from mechint_core.result import NAN, Estimate, Result

SHOWN = 64
"""Conditions drawn."""
ROUNDING = 1e-12
"""Share of the mean below which a relabelling counts as a tie."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RDMConfig:
    """How to measure the dissimilarity of conditions."""

    metric: Dissimilarity = "correlation"
    """Dissimilarity: euclidean, mahalanobis or crossnobis (squared, per unit; the last can be negative), correlation
    or cosine (both 1 - r, in [0, 2]), poisson or crossvalidated poisson (of rates, in nats per unit)."""
    noise: Noise = "shrunk to diagonal"
    """Noise covariance of mahalanobis and crossnobis: none, full, diagonal, shrunk to identity (Ledoit-Wolf) or
    shrunk to diagonal (Schäfer-Strimmer)."""
    noise_around: Around = "cell"
    """Means the noise is taken around: of each condition in each fold (cell), or of each condition, which needs no
    repeats within a fold, but takes what differs between folds for noise."""
    noise_per_fold: bool = False
    """Give each fold of crossnobis a covariance of its own; a pair of folds is whitened by the mean of its two."""
    weighting: Weighting = "fold"
    """What counts alike in crossnobis: pairs of folds, or pairs of samples from different folds."""
    prior: float = 1.0
    """Rate that poisson shrinks to."""
    prior_weight: float = 0.1
    """Weight of that rate, in samples."""
    missing: Missing = "refuse"
    """What is done with samples that hold NaN: refuse, or drop and count them."""
    conditions: tuple[int, ...] = ()
    """Labels of all conditions there are to be, so that matrices of several subjects are aligned; those of a
    condition without samples are NaN. The labels found, if empty."""
    n_inference: int = 300
    """Conditions, drawn at random, on which intervals and null are found."""
    n_bootstrap: int = 500
    """Bootstrap draws of conditions."""
    n_permutations: int = 500
    """Relabellings of the conditions of one half (Mantel)."""
    level: float = 0.95
    """Confidence of the intervals."""
    seed: int = 0
    """Names the draws and the halves."""

    def __post_init__(self) -> None:
        check_missing(self.missing)
        if len(set(self.conditions)) != len(self.conditions):
            raise ConfigurationError(f"conditions must be different labels. Got {self.conditions}.")
        if self.n_inference < 4:
            raise ConfigurationError(f"n_inference must be at least 4. Got {self.n_inference}.")
        _ = self.draws, self.measure

    @property
    def measure(self) -> Measure:
        """The dissimilarity with its options."""
        return Measure(
            metric=self.metric,
            noise=self.noise,
            noise_around=self.noise_around,
            noise_per_fold=self.noise_per_fold,
            weighting=self.weighting,
            prior=self.prior,
            prior_weight=self.prior_weight,
        )

    @property
    def draws(self) -> Draws:
        """The draws that intervals and null are made of."""
        return Draws(n_bootstrap=self.n_bootstrap, n_permutations=self.n_permutations, level=self.level, seed=self.seed)


@dataclass(frozen=True, slots=True)
class RDMResult(Result):
    """Dissimilarity of every pair of conditions."""

    technique: ClassVar[str] = "rdm"
    evidence: ClassVar[str] = (
        "The intervals are bootstraps over conditions; the null of the reliability relabels one half's conditions, "
        "and that of a cross-validated mean the conditions of each fold."
    )
    figures: ClassVar[tuple[Figure, ...]] = (
        Matrix(
            values="picture",
            x="shown",
            y="shown",
            title="How far apart the conditions are",
            x_label="condition",
            y_label="condition",
            value_label="dissimilarity",
        ),
    )

    mean: Estimate
    """Mean dissimilarity over pairs; against no difference at all, where it is cross-validated."""
    reliability: Estimate
    """Agreement of two halves of the samples, for all of them; NaN without repeated samples.

    The halves of a cross-validated measure are folds, of which it takes four.
    """
    n_conditions: int
    n_units: int
    n_folds: int
    n_dropped: int
    """Samples left out because they hold NaN."""
    n_empty: int
    """Conditions without samples."""
    n_nan: int
    """Pairs without a dissimilarity: of those conditions, and those that no two folds hold."""
    noise_shrinkage: float
    """How much of its target is in the noise covariance, from 0 to 1; NaN without one."""
    noise_dof: int
    """Degrees of freedom of the noise covariance: samples minus means taken out; 0 without one."""
    n_inference: int
    """Conditions that intervals and null were found on."""
    dissimilarity: Float[np.ndarray, "pair"]
    """Every pair i < j, in the order of `numpy.triu_indices`; NaN for a pair that the samples do not tell."""
    condition: Int[np.ndarray, "condition"]
    """The label of each condition, ascending; its row number where no labels were given."""
    picture: Float[np.ndarray, "row column"]
    """Dissimilarities of the shown conditions."""
    shown: Int[np.ndarray, "row"]
    """Labels of the shown conditions."""

    def reading(self) -> str:
        """Say how far apart conditions are, and whether the pattern repeats."""
        mean, again = self.mean, self.reliability
        text = f"{self.n_conditions} conditions are {mean.value:.3g} [{mean.low:.3g}, {mean.high:.3g}] apart on average"
        if not math.isnan(mean.p_value):
            text += f" (p = {mean.p_value:.2g} if none differed)"
        if math.isnan(again.value):
            return f"{text}; without repeated samples nothing says how much of the pattern is noise."
        if not again.p_value <= 1 - again.level:
            return f"{text}, but no pattern repeats across halves of the samples (reliability {again.value:.2f})."
        return (
            f"{text}; the pattern repeats across halves of the samples with reliability {again.value:.3f} "
            f"[{again.low:.3f}, {again.high:.3f}] (p = {again.p_value:.2g})."
        )

    def square(self) -> Float[np.ndarray, "row column"]:
        """Return the symmetric matrix of all conditions, which takes n² numbers."""
        return square_form(self.dissimilarity)


def rdm(
    x: Float[np.ndarray, "sample unit"],
    label: Int[np.ndarray, "sample"] | None = None,
    fold: Int[np.ndarray, "sample"] | None = None,
    *,
    config: RDMConfig = RDMConfig(),
) -> RDMResult:
    """Measure how far apart a system holds every pair of conditions.

    Use it to see which conditions a system treats alike, whatever its units are. It assumes that the mean response
    describes a condition. Noise in the responses adds to every distance but the cross-validated ones, so compare
    conditions with equally many samples, or take crossnobis; a dissimilarity does not say which units make it.

    Parameters
    ----------
    x
        One row per sample.
    label
        The condition of each sample; samples of one condition are averaged. Without it every row is a condition.
    fold
        The session or run of each sample. Cross-validated measures compare different folds, whose noise must be
        independent; the noise covariance is taken within folds. Other measures do not use it.
    config
        Which dissimilarity, and how the intervals are found.

    Returns
    -------
    RDMResult
        `dissimilarity` is squared activation per unit (euclidean, from 0), squared noise deviations per unit
        (mahalanobis, from 0; crossnobis, 0 on average for identical conditions), 1 minus a correlation or cosine
        (0 for proportional rows, 1 for unrelated ones, 2 for opposite ones) or nats per unit (poisson).
        `reliability` is in [-1, 1].

    Raises
    ------
    ShapeError
        If `x` is not two-dimensional, `label` or `fold` has another length, a label is not one of the conditions
        expected, there are fewer than 4 conditions with samples, or a cross-validated measure has fewer than 2 folds.
    DegenerateInputError
        If `x` holds NaN (unless dropped) or infinity, a condition has no correlation distance (constant over units),
        no cosine (all zeros) or no poisson rate (negative), the noise covariance has no degrees of freedom or is
        singular, or no pair of conditions is held by two folds.

    Notes
    -----
    Halves are one random split of each condition's samples (of the folds, where cross-validated). With an odd number
    of them the halves differ by one. Identical conditions change places in the null of a cross-validated mean, which
    assumes that a fold has equally many samples of each.

    References
    ----------
    [@kriegeskorte2008]
    [@nili2014]
    [@walther2016]

    Examples
    --------
    >>> corners = np.array([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0], [2.0, 2.0]])
    >>> rdm(corners, config=RDMConfig(metric="euclidean")).dissimilarity
    array([2., 2., 4., 4., 2., 2.])
    """
    found = responses(x, label, fold, missing=config.missing, conditions=config.conditions)
    present, n = np.flatnonzero(found.present), len(found.condition)
    if len(present) < 4:
        raise ShapeError(f"x must have at least 4 conditions with samples. Got {len(present)}.")
    fitted = fit_measure(config.measure, found)
    dissimilarity = fitted(found)
    n_nan = int(np.isnan(dissimilarity).sum())
    if n_nan == len(dissimilarity):
        raise DegenerateInputError("pairs of conditions must be held by two folds. Got none: use fewer, larger folds.")
    picked = generator(config.seed, "rdm").choice(len(present), min(len(present), config.n_inference), replace=False)
    picked = present[np.sort(picked)]
    shown = evenly_spaced(n, SHOWN)
    return RDMResult(
        mean=_mean(dissimilarity, picked, found, fitted, config.draws),
        reliability=_reliability(found, picked, fitted, config.draws),
        n_conditions=n,
        n_units=x.shape[1],
        n_folds=found.n_folds,
        n_dropped=found.n_dropped,
        n_empty=n - len(present),
        n_nan=n_nan,
        noise_shrinkage=fitted.shrinkage,
        noise_dof=fitted.dof,
        n_inference=len(picked),
        dissimilarity=dissimilarity,
        condition=found.condition,
        picture=square_form(dissimilarity[pairs_among(shown, n)]),
        shown=found.condition[shown],
    )


def _mean(
    dissimilarity: np.ndarray, picked: np.ndarray, found: Responses, fitted: FittedMeasure, draws: Draws
) -> Estimate:
    """Bootstrap the mean over the picked conditions; their spread is shrunk to all of them by sqrt(m / n)."""
    n_present, of_picked = int(found.present.sum()), dissimilarity[pairs_among(picked, len(found.condition))]
    known = np.isfinite(of_picked)
    value = float(np.nanmean(dissimilarity))
    if not known.any():
        return Estimate(value, level=draws.level)
    m, boot = bootstrap_mean(np.where(known, of_picked, 0.0), draws)
    if not known.all():
        with np.errstate(invalid="ignore"):  # a draw without a known pair: NaN
            boot = boot / bootstrap_mean(known.astype(np.float64), draws)[1]
    around = boot - float(of_picked[known].mean())
    low, high = percentile_interval(value + math.sqrt(m / n_present) * around, draws.level)
    null, p = _no_difference(found, picked, fitted, draws)
    return Estimate(value, low, high, null, p, draws.level)


def _no_difference(found: Responses, picked: np.ndarray, fitted: FittedMeasure, draws: Draws) -> tuple[float, float]:
    """Let conditions change places within each fold: the mean, and the chance of a mean as large as without."""
    whole = _in_every_fold(found, picked)
    if fitted.measure.metric not in CROSSVALIDATED or len(whole) < 2 or not draws.n_permutations:
        return NAN, NAN
    shape = (draws.n_permutations + 1, found.n_folds, len(whole))
    orders = np.tile(np.arange(len(whole)), (*shape[:2], 1))
    orders[1:] = generator(draws.seed, "places").permuted(orders[1:], axis=2)
    means = fitted.without_differences(found.of_conditions(whole), orders)
    return float(means[1:].mean()), p_value(float(means[0]) - ROUNDING * abs(float(means[0])), means[1:])


def _in_every_fold(found: Responses, picked: np.ndarray) -> np.ndarray:
    """Return those of the picked conditions that every fold holds."""
    cells = np.bincount(found.cell, minlength=len(found.condition) * found.n_folds)
    return picked[cells.reshape(-1, found.n_folds)[picked].all(axis=1)]


def _reliability(found: Responses, picked: np.ndarray, fitted: FittedMeasure, draws: Draws) -> Estimate:
    """Correlate the dissimilarities of two halves of the samples, lengthened to all of them by Spearman-Brown."""
    if fitted.measure.metric in CROSSVALIDATED:
        picked = _in_every_fold(found, picked)
        if found.n_folds < 4 or len(picked) < 4:
            return Estimate(NAN, level=draws.level)
        found, picked = found.of_conditions(picked), np.arange(len(picked))
        second = _second_half(np.zeros(found.n_folds, np.int64), draws.seed)[found.fold]
    else:
        counts = np.bincount(found.index)
        if counts[counts > 0].min() < 2:
            return Estimate(NAN, level=draws.level)
        second = _second_half(found.index, draws.seed)
    first, other = (fitted(found.where(half)) for half in (~second, second))
    known = np.isfinite(first)
    value = agreement(first[known], other[known], "pearson")
    pairs = pairs_among(picked, len(found.condition))
    n_present = int(found.present.sum())
    again = estimate_agreement(value, first[pairs], other[pairs], "pearson", n_conditions=n_present, draws=draws)
    value, low, high, null = (_lengthened(part) for part in (again.value, again.low, again.high, again.null))
    return Estimate(value, low, high, null, again.p_value, again.level)


def _second_half(label: np.ndarray, seed: int) -> np.ndarray:
    """Every other sample of each condition, in random order, as a mask."""
    order = generator(seed, "halves").permutation(len(label))
    order = order[np.argsort(label[order], kind="stable")]
    _, starts, counts = np.unique(label[order], return_index=True, return_counts=True)
    second = np.empty(len(label), np.bool_)
    second[order] = (np.arange(len(label)) - np.repeat(starts, counts)) % 2 == 1
    return second


def _lengthened(correlation: float) -> float:
    return 2 * correlation / (1 + abs(correlation))
