"""Representational dissimilarity matrix: how far apart a system holds every pair of conditions.

    D_ij = d(m_i, m_j) for i < j,     m_i the mean response to condition i

    reliability = 2 r / (1 + |r|),    r the correlation of the D of two halves of the samples (Spearman-Brown)

Source: [@kriegeskorte2008], [@nili2014].
Cost: n² p for n conditions; the answer is the n (n - 1) / 2 pairs, and no n x n matrix is made.
Chunked over: nothing; rows of the matrix are made a panel at a time.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Int

from mechint_core.alignment._conditions import Draws, agreement, bootstrap_mean, estimate_agreement
from mechint_core.alignment._distances import (
    PREPARE,
    Metric,
    check_metric,
    condensed_distances,
    evenly_spaced,
    scale_of,
    square_form,
)
from mechint_core.errors import ConfigurationError, DegenerateInputError, ShapeError
from mechint_core.figure import Figure, Matrix
from mechint_core.kernels.resampling import percentile_interval
from mechint_core.random import generator
from mechint_core.result import NAN, Estimate, Result

SHOWN = 64
"""Conditions drawn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RDMConfig:
    """How to measure the dissimilarity of conditions."""

    metric: Metric = "correlation"
    """Dissimilarity: euclidean (squared, per unit), correlation or cosine (both 1 - r, in [0, 2])."""
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
        check_metric(self.metric)
        if self.n_inference < 4:
            raise ConfigurationError(f"n_inference must be at least 4. Got {self.n_inference}.")
        _ = self.draws

    @property
    def draws(self) -> Draws:
        """The draws that intervals and null are made of."""
        return Draws(n_bootstrap=self.n_bootstrap, n_permutations=self.n_permutations, level=self.level, seed=self.seed)


@dataclass(frozen=True, slots=True)
class RDMResult(Result):
    """Dissimilarity of every pair of conditions."""

    technique: ClassVar[str] = "rdm"
    evidence: ClassVar[str] = (
        "The intervals are bootstraps over conditions; the null of the reliability relabels one half's conditions."
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
    """Mean dissimilarity over pairs."""
    reliability: Estimate
    """Agreement of two halves of the samples, for all of them; NaN without repeated samples."""
    n_conditions: int
    n_units: int
    n_inference: int
    """Conditions that intervals and null were found on."""
    dissimilarity: Float[np.ndarray, "pair"]
    """Every pair i < j, in the order of `numpy.triu_indices`."""
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
    *,
    config: RDMConfig = RDMConfig(),
) -> RDMResult:
    """Measure how far apart a system holds every pair of conditions.

    Use it to see which conditions a system treats alike, whatever its units are. It assumes that the mean response
    describes a condition. Noise in the responses adds to every Euclidean distance, so compare conditions with
    equally many samples; a dissimilarity does not say which units make it.

    Parameters
    ----------
    x
        One row per sample.
    label
        The condition of each sample; samples of one condition are averaged. Without it every row is a condition.
    config
        Which dissimilarity, and how the intervals are found.

    Returns
    -------
    RDMResult
        `dissimilarity` is squared activation per unit (euclidean, from 0), or 1 minus a correlation or cosine
        (0 for proportional rows, 1 for unrelated ones, 2 for opposite ones). `reliability` is in [-1, 1].

    Raises
    ------
    ShapeError
        If `x` is not two-dimensional, `label` has another length, or there are fewer than 4 conditions.
    DegenerateInputError
        If `x` holds NaN or infinity, or a condition has no correlation distance (constant over units) or no cosine
        (all zeros).

    Notes
    -----
    Halves are one random split of each condition's samples. With an odd number of them the halves differ by one.

    References
    ----------
    [@kriegeskorte2008]
    [@nili2014]

    Examples
    --------
    >>> corners = np.array([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0], [2.0, 2.0]])
    >>> rdm(corners, config=RDMConfig(metric="euclidean")).dissimilarity
    array([2., 2., 4., 4., 2., 2.])
    """
    _check(x, label)
    condition, means = (np.arange(len(x)), x) if label is None else _condition_means(x, label)
    if len(condition) < 4:
        raise ShapeError(f"x must have at least 4 conditions. Got {len(condition)}.")
    dissimilarity = _dissimilarity(means, config.metric)
    picked = generator(config.seed, "rdm").choice(
        len(condition), min(len(condition), config.n_inference), replace=False
    )
    picked.sort()
    shown = evenly_spaced(len(condition), SHOWN)
    return RDMResult(
        mean=_mean(dissimilarity, _dissimilarity(means[picked], config.metric), len(condition), config.draws),
        reliability=_reliability(x, label, picked, config),
        n_conditions=len(condition),
        n_units=x.shape[1],
        n_inference=len(picked),
        dissimilarity=dissimilarity,
        condition=condition,
        picture=square_form(_dissimilarity(means[shown], config.metric)),
        shown=condition[shown],
    )


def _check(x: np.ndarray, label: np.ndarray | None) -> None:
    if x.ndim != 2 or 0 in x.shape:
        raise ShapeError(f"x must be (sample, unit). Got shape {x.shape}.")
    if label is not None and label.shape != x.shape[:1]:
        raise ShapeError(f"label must have one entry per sample, {x.shape[0]}. Got shape {label.shape}.")
    if not np.all(np.isfinite(x)):
        raise DegenerateInputError("x must be finite. Got NaN or infinity: drop those samples first.")


def _dissimilarity(means: np.ndarray, metric: Metric) -> np.ndarray:
    return condensed_distances(PREPARE[metric](means.astype(np.float64)), scale_of(metric, means.shape[1]))


def _condition_means(x: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the labels in ascending order and the mean response to each."""
    order = np.argsort(label, kind="stable")
    condition, starts, counts = np.unique(label[order], return_index=True, return_counts=True)
    return condition, np.add.reduceat(x[order], starts, axis=0, dtype=np.float64) / counts[:, None]


def _mean(everything: np.ndarray, of_picked: np.ndarray, n_conditions: int, draws: Draws) -> Estimate:
    """Bootstrap the mean over the picked conditions; their spread is shrunk to all of them by sqrt(m / n)."""
    m, boot = bootstrap_mean(of_picked, draws)
    value = float(everything.mean())
    low, high = percentile_interval(value + math.sqrt(m / n_conditions) * (boot - of_picked.mean()), draws.level)
    return Estimate(value, low, high, level=draws.level)


def _reliability(x: np.ndarray, label: np.ndarray | None, picked: np.ndarray, config: RDMConfig) -> Estimate:
    """Correlate the dissimilarities of two halves of the samples, lengthened to all of them by Spearman-Brown."""
    if label is None or np.unique(label, return_counts=True)[1].min() < 2:
        return Estimate(NAN, level=config.level)
    second = _second_half(label, config.seed)
    halves = [_condition_means(x[half], label[half])[1] for half in (~second, second)]
    first, other = (_dissimilarity(half, config.metric) for half in halves)
    value = agreement(first, other, "pearson")
    first, other = (_dissimilarity(half[picked], config.metric) for half in halves)
    found = estimate_agreement(value, first, other, "pearson", n_conditions=len(halves[0]), draws=config.draws)
    value, low, high, null = (_lengthened(part) for part in (found.value, found.low, found.high, found.null))
    return Estimate(value, low, high, null, found.p_value, found.level)


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
