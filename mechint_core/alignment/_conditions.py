"""What resampling and relabelling conditions does to the agreement of two dissimilarity matrices.

    bootstrap    condition i drawn w_i times: pair (i, j) counts w_i w_j times, pairs of copies of one condition never,
                 so every sum over pairs is a quadratic form wᵀ M w, and all draws are a few matrix products
    Mantel       relabelling E by a permutation leaves its mean, variance and ranks as they are, so only
                 sum_ij D_ij E_π(i)π(j) is computed anew

Source: [@nili2014] (condition bootstrap), [@mantel1967] (relabelling).
Cost: 5 n² per bootstrap draw (a pass over the pairs for Spearman), n² per relabelling.
Chunked over: relabellings.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float, Int

from mechint_core.alignment._distances import n_of_pairs, square_form
from mechint_core.alignment._ranks import Sorted, mid_ranks
from mechint_core.errors import ConfigurationError
from mechint_core.kernels.resampling import p_value, percentile_interval
from mechint_core.parallel import LANES, map_parallel
from mechint_core.random import generator
from mechint_core.result import NAN, Estimate

Comparison = Literal["pearson", "cosine", "spearman"]

ROUNDING = 1e-12
"""Agreements closer than this are equal: a relabelling that changes nothing counts as a tie."""


def check_comparison(comparison: str) -> None:
    """Refuse a comparison that is not one of `Comparison`."""
    if comparison not in get_args(Comparison):
        raise ConfigurationError(f"comparison must be one of {get_args(Comparison)}. Got {comparison!r}.")


def agreement(first: Float[np.ndarray, "pair"], second: Float[np.ndarray, "pair"], comparison: Comparison) -> float:
    """Return how alike two condensed matrices are; NaN where one of them is constant."""
    a, b = (standardised(each, comparison) for each in (first, second))
    return float(a @ b)


def standardised(condensed: Float[np.ndarray, "pair"], comparison: Comparison) -> Float[np.ndarray, "pair"]:
    """Rank and centre as the comparison asks, and scale to unit length, so that agreement is a dot product."""
    values = mid_ranks(condensed) if comparison == "spearman" else condensed
    centred = values if comparison == "cosine" else values - values.mean()
    norm = float(np.linalg.norm(centred))
    return centred / norm if norm > np.finfo(np.float64).eps * np.linalg.norm(values) else np.full_like(values, np.nan)


def bootstrap_agreement(
    first: Float[np.ndarray, "pair"],
    second: Float[np.ndarray, "pair"],
    comparison: Comparison,
    *,
    counts: Int[np.ndarray, "condition draw"],
) -> Float[np.ndarray, "draw"]:
    """Return the agreement in each draw, where condition i occurs `counts[i]` times."""
    if comparison == "spearman":
        return _bootstrap_spearman(first, second, counts)
    shift_a, shift_b = (0.0, 0.0) if comparison == "cosine" else (first.mean(), second.mean())
    a, b = first - shift_a, second - shift_b
    weights = counts.astype(np.float64)
    aa, ab, bb = _over_pairs(weights, a * a, a * b, b * b)
    if comparison == "pearson":
        sum_a, sum_b = _over_pairs(weights, a, b)
        total = _pairs_drawn(weights)
        with np.errstate(invalid="ignore", divide="ignore"):  # one condition drawn n times: no pair, NaN
            aa, ab, bb = aa - sum_a**2 / total, ab - sum_a * sum_b / total, bb - sum_b**2 / total
    return _ratio(ab, aa * bb)


def bootstrap_mean(condensed: Float[np.ndarray, "pair"], draws: "Draws") -> tuple[int, Float[np.ndarray, "draw"]]:
    """Return the number of conditions, and the mean over pairs of different conditions in each draw."""
    m = n_of_pairs(len(condensed))
    weights = draws.counts(m).astype(np.float64)
    with np.errstate(invalid="ignore"):  # one condition drawn m times: no pair, NaN
        return m, _over_pairs(weights, condensed)[0] / _pairs_drawn(weights)


def _over_pairs(weights: np.ndarray, *condensed: np.ndarray) -> list[np.ndarray]:
    """Return Σ_{i≠j} w_i w_j M_ij of every draw, for each M."""
    return [np.einsum("id,id->d", weights, square_form(each) @ weights) for each in condensed]


def _pairs_drawn(weights: np.ndarray) -> np.ndarray:
    """Return Σ_{i≠j} w_i w_j of every draw."""
    return weights.sum(axis=0) ** 2 - np.sum(weights**2, axis=0)


def _ratio(inner: np.ndarray, squared_norms: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):  # a draw without variance is NaN, and left out later
        return np.clip(inner / np.sqrt(np.maximum(squared_norms, 0)), -1, 1)


def _bootstrap_spearman(first: np.ndarray, second: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Sort once; in each draw rank with the pairs' multiplicities as weights."""
    i, j = np.triu_indices(len(counts), 1)
    rank = _WeightedSpearman(Sorted.of(first), Sorted.of(second), i, j)
    aa, ab, bb = np.concatenate(map_parallel(rank, np.array_split(counts.T, LANES))).T
    return _ratio(ab, aa * bb)


@dataclass(frozen=True, slots=True)
class _WeightedSpearman:
    """Sums of squares and products of the centred ranks of pairs (i, j) that occur w_i w_j times, for each w."""

    first: Sorted
    second: Sorted
    i: np.ndarray
    j: np.ndarray

    def __call__(self, counts: np.ndarray) -> np.ndarray:
        return np.array([self._sums(each) for each in counts]).reshape(-1, 3)

    def _sums(self, counts: np.ndarray) -> tuple[float, float, float]:
        weights = (counts[self.i] * counts[self.j]).astype(np.float64)
        middle = (weights.sum() + 1) / 2
        a, b = self.first.ranks(weights) - middle, self.second.ranks(weights) - middle
        return weights @ a**2, weights @ (a * b), weights @ b**2


def relabelled_agreement(
    first: Float[np.ndarray, "pair"],
    second: Float[np.ndarray, "pair"],
    comparison: Comparison,
    *,
    permutations: Int[np.ndarray, "draw condition"],
) -> Float[np.ndarray, "draw"]:
    """Return the agreement after each relabelling of the second matrix's conditions."""
    a, b = (square_form(standardised(each, comparison)) for each in (first, second))
    return np.concatenate(map_parallel(_Relabel(a, b), np.array_split(permutations, LANES)))


@dataclass(frozen=True, slots=True)
class _Relabel:
    """Σ_{i<j} A_ij B_π(i)π(j), for each π."""

    a: np.ndarray
    b: np.ndarray

    def __call__(self, permutations: np.ndarray) -> np.ndarray:
        return np.array([np.vdot(self.a, self.b[each].take(each, axis=1)) / 2 for each in permutations])


@dataclass(frozen=True, slots=True, kw_only=True)
class Draws:
    """How many bootstrap draws and relabellings are made, from which seed, and for which confidence."""

    n_bootstrap: int
    n_permutations: int
    level: float
    seed: int

    def __post_init__(self) -> None:
        if min(self.n_bootstrap, self.n_permutations) < 0:
            raise ConfigurationError(
                f"n_bootstrap and n_permutations must be at least 0. Got {self.n_bootstrap} and {self.n_permutations}."
            )
        if not 0 < self.level < 1:
            raise ConfigurationError(f"level must be between 0 and 1. Got {self.level}.")

    def counts(self, n: int) -> Int[np.ndarray, "condition draw"]:
        """Return how often each of `n` conditions is drawn, in each bootstrap draw."""
        return generator(self.seed, "bootstrap").multinomial(n, np.full(n, 1 / n), size=self.n_bootstrap).T

    def permutations(self, n: int) -> Int[np.ndarray, "draw condition"]:
        """Return random orders of `n` conditions."""
        return generator(self.seed, "permutation").permuted(np.tile(np.arange(n), (self.n_permutations, 1)), axis=1)


def estimate_agreement(
    value: float,
    first: Float[np.ndarray, "pair"],
    second: Float[np.ndarray, "pair"],
    comparison: Comparison,
    *,
    n_conditions: int,
    draws: Draws,
) -> Estimate:
    """Bind the agreement of all conditions to the interval and null found on these m of them.

    Draws of m conditions spread sqrt(n / m) times too far: on Fisher's scale their distance to the agreement of the
    m is shrunk by that, and put around `value`. The p-value compares the m with the m relabelled.
    """
    of_these, m = agreement(first, second, comparison), n_of_pairs(len(first))
    boot = bootstrap_agreement(first, second, comparison, counts=draws.counts(m))
    z, z_these, z_boot = (np.arctanh(np.clip(each, ROUNDING - 1, 1 - ROUNDING)) for each in (value, of_these, boot))
    low, high = percentile_interval(np.tanh(z + np.sqrt(m / n_conditions) * (z_boot - z_these)), draws.level)
    null = relabelled_agreement(first, second, comparison, permutations=draws.permutations(m))
    typical = float(null.mean()) if len(null) else NAN
    return Estimate(value, low, high, typical, p_value(of_these - ROUNDING, null), draws.level)
