"""How sure the agreement of two dissimilarity matrices is: conditions drawn again, and conditions relabelled.

Source: [@nili2014] (condition bootstrap), [@mantel1967] (relabelling).
Cost: that of `_condition_bootstrap` and `_relabelling`.
Chunked over: draws.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from mechint_core.alignment._comparisons import (
    Comparison as Comparison,
    check_comparison as check_comparison,
    compare,
    coordinates,
)
from mechint_core.alignment._condition_bootstrap import bootstrap_agreements, quadratic_forms
from mechint_core.alignment._distances import n_of_pairs
from mechint_core.alignment._relabelling import relabelling
from mechint_core.errors import ConfigurationError
from mechint_core.kernels.resampling import p_value, percentile_interval
from mechint_core.parallel import LANES, map_parallel
from mechint_core.random import generator
from mechint_core.result import NAN, Estimate

ROUNDING = 1e-12
"""Agreements closer than this are equal: a relabelling that changes nothing counts as a tie."""


def agreement(first: Float[np.ndarray, "pair"], second: Float[np.ndarray, "pair"], comparison: Comparison) -> float:
    """Return how alike two condensed matrices are; NaN where one of them is constant."""
    return float(compare(first[None], second[None], comparison)[0, 0])


def standardised(condensed: Float[np.ndarray, "pair"], comparison: Comparison) -> Float[np.ndarray, "pair"]:
    """Rank and centre as the comparison asks, and scale to unit length, so that agreement is a dot product."""
    return coordinates(condensed[None], comparison)[0]


def bootstrap_agreement(
    first: Float[np.ndarray, "pair"],
    second: Float[np.ndarray, "pair"],
    comparison: Comparison,
    *,
    counts: Int[np.ndarray, "condition draw"],
) -> Float[np.ndarray, "draw"]:
    """Return the agreement in each draw, where condition i occurs `counts[i]` times."""
    return bootstrap_agreements(first[None], second[None], comparison, counts=counts)[:, 0, 0]


def bootstrap_mean(condensed: Float[np.ndarray, "pair"], draws: "Draws") -> tuple[int, Float[np.ndarray, "draw"]]:
    """Return the number of conditions, and the mean over pairs of different conditions in each draw."""
    m = n_of_pairs(len(condensed))
    weights = draws.counts(m).astype(np.float64)
    with np.errstate(invalid="ignore"):  # one condition drawn m times: no pair, NaN
        drawn = weights.sum(axis=0) ** 2 - np.sum(weights**2, axis=0)
        return m, quadratic_forms(weights, [condensed])[0] / drawn


def relabelled_agreement(
    first: Float[np.ndarray, "pair"],
    second: Float[np.ndarray, "pair"],
    comparison: Comparison,
    *,
    permutations: Int[np.ndarray, "draw condition"],
) -> Float[np.ndarray, "draw"]:
    """Return the agreement after each relabelling of the second matrix's conditions."""
    return relabelled_agreements(first[None], second[None], comparison, permutations=permutations)[:, 0, 0]


def relabelled_agreements(
    first: Float[np.ndarray, "rdm pair"],
    second: Float[np.ndarray, "other_rdm pair"],
    comparison: Comparison,
    *,
    permutations: Int[np.ndarray, "draw condition"],
) -> Float[np.ndarray, "draw rdm other_rdm"]:
    """Return every agreement after each relabelling of the second matrices' conditions, the same one for all."""
    relabel = relabelling(first, second, comparison)
    return np.concatenate(map_parallel(relabel, np.array_split(permutations, LANES)))


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

    The p-value compares the m with the m relabelled.
    """
    of_these, m = agreement(first, second, comparison), n_of_pairs(len(first))
    boot = bootstrap_agreement(first, second, comparison, counts=draws.counts(m))
    boot = centred_draws(boot, of_these, comparison)
    low, high = scaled_interval(value, of_these, boot, share=m / n_conditions, level=draws.level)
    null = relabelled_agreement(first, second, comparison, permutations=draws.permutations(m))
    typical = float(null.mean()) if len(null) else NAN
    return Estimate(value, low, high, typical, p_value(of_these - ROUNDING, null), draws.level)


def scaled_interval(
    value: float, of_these: float, boot: Float[np.ndarray, "draw"], *, share: float, level: float
) -> tuple[float, float]:
    """Return the interval of the agreement of all conditions, drawn from a `share` of them whose agreement is known.

    Draws of m of n conditions spread sqrt(n / m) times too far: on Fisher's scale their distance to the agreement of
    the m is shrunk by that, and put around `value`.
    """
    z, z_these, z_boot = (np.arctanh(np.clip(each, ROUNDING - 1, 1 - ROUNDING)) for each in (value, of_these, boot))
    return percentile_interval(np.tanh(z + np.sqrt(share) * (z_boot - z_these)), level)


def centred_draws(
    boot: Float[np.ndarray, "draw *entry"], of_these: float | Float[np.ndarray, "*entry"], comparison: Comparison
) -> Float[np.ndarray, "draw *entry"]:
    """Put the draws of bures around the agreement they were drawn from; leave all others as they are.

    Bures needs every pair, so the copies of a condition stay, at distance 0. That takes dimensions away and makes any
    two kernels more alike: the spread of the draws is that of the agreement, their centre is not.
    """
    if comparison != "bures" or not len(boot):
        return boot
    z, z_these = (np.arctanh(np.clip(each, ROUNDING - 1, 1 - ROUNDING)) for each in (boot, of_these))
    return np.tanh(z + (z_these - np.nanmean(z, axis=0)))
