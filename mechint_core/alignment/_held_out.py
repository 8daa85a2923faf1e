"""What is found on some rows, evaluated on the others, and how sure that is.

    s   = mean over folds f of s_f(fit without f)
    s_g = mean over folds f ≠ g of s_f(fit without f and g)
    interval  z ± t_{k-1} SE,    SE² = (k - 1) / k Σ_g (z_g - z̄)²,    z = artanh s (R²: z = s)

The jackknife over folds takes in both the rows that test and the rows that fit: the spread of single held-out rows
alone is too small, by 15 to 30 % for 60 to 300 samples of 3 to 5 units, because folds share their fits. All fits come
from sums over folds, so the data are not read again.

Source: [@stone1974] (cross-validation), [@efron1981] (jackknife), [@bates2024] (why single rows are not enough).
Cost: k (k + 1) / 2 fits for k folds.
Chunked over: nothing; the covariances were.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from jaxtyping import Float
from scipy import stats

from mechint_core.kernels.joint_covariance import FoldedCovariance
from mechint_core.parallel import map_parallel

ROUNDING = 1e-12
"""A correlation this near to 1 has no spread."""

Evaluate = Callable[[tuple[int, ...]], Float[np.ndarray, "fold _"]]
"""Folds -> what a fit without any of them scores on each of them. Where processes are used it must pickle."""


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Scores on rows that had no part in the fit, and the same without each fold."""

    scores: Float[np.ndarray, "_"]
    without: Float[np.ndarray, "fold _"]


def held_out(folds: FoldedCovariance, evaluate: Evaluate) -> HeldOut:
    """Score each fold by a fit without it, and by fits without it and another."""
    k, sizes = len(folds.folds), np.array([fold.n for fold in folds.folds], dtype=float)
    pairs = list(combinations(range(k), 2))
    left_out: list[tuple[int, ...]] = [*((fold,) for fold in range(k)), *pairs]
    found = map_parallel(evaluate, left_out)
    alone = np.stack([each[0] for each in found[:k]])
    sums, weights = np.zeros_like(alone), sizes.sum() - sizes
    for (g, h), each in zip(pairs, found[k:], strict=True):
        sums[g] += sizes[h] * each[1]
        sums[h] += sizes[g] * each[0]
    return HeldOut(np.average(alone, axis=0, weights=sizes), sums / weights[:, None])


def correlation_interval(value: float, without: Float[np.ndarray, "fold"], level: float) -> tuple[float, float]:
    """Return the interval of a correlation, symmetric in Fisher's z; a point where it is 1."""
    if 1 - abs(value) <= ROUNDING:
        return value, value
    reach = float(jackknife_reach(fisher_z(without), level))
    return math.tanh(math.atanh(value) - reach), math.tanh(math.atanh(value) + reach)


def jackknife_reach(without: Float[np.ndarray, "fold *_"], level: float) -> Float[np.ndarray, "*_"]:
    """Return half the width of the interval of an estimate that is `without` without each fold."""
    k = len(without)
    error = np.sqrt((k - 1) / k * np.sum((without - without.mean(axis=0)) ** 2, axis=0))
    return np.asarray(float(stats.t.ppf((1 + level) / 2, k - 1)) * error)


def fisher_z(correlations: np.ndarray) -> np.ndarray:
    """Return artanh, finite at 1."""
    return np.asarray(np.arctanh(np.clip(correlations, ROUNDING - 1, 1 - ROUNDING)))


def population_interval(
    values: Float[np.ndarray, "*component"], without: Float[np.ndarray, "fold *component"], level: float
) -> Float[np.ndarray, "endpoint *component"]:
    """Bound correlations of the population, which are not below 0, by those within the sample.

    The jackknife also takes out the bias of order 1 / n, by which correlations within a sample are too high. What it
    takes out is itself uncertain, about as much as it is large: it counts beside the standard error.
    """
    k, z, z_without = len(without), fisher_z(values), fisher_z(without)
    centre = k * z - (k - 1) * z_without.mean(axis=0)
    reach = np.hypot(jackknife_reach(z_without, level), normal_reach(level) * (centre - z))
    ends = np.maximum(np.tanh(np.stack([centre - reach, centre + reach])), 0.0)
    return np.where(1 - values > ROUNDING, ends, values)


def normal_reach(level: float) -> float:
    """Return how many standard deviations an interval reaches."""
    return float(stats.norm.ppf((1 + level) / 2))
