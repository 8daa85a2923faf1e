"""Mantel test: whether two dissimilarity matrices agree more than if their conditions had nothing in common.

    p = (1 + #{π : agreement(D, π E) >= agreement(D, E)}) / (1 + n_relabellings)

Conditions are relabelled, never single pairs: the n (n - 1) / 2 pairs are not independent. Where all n! orders of the
conditions are few, all are taken, and p is exact. Relabelling leaves mean, variance and ranks as they are, so each
order costs one gather and one dot product (`_relabelling`).

Source: [@mantel1967], [@nili2014] (for dissimilarity matrices), [@phipson2010] (p is never 0).
Cost: n² per relabelling; n² log n for tau-a, n³ for bures.
Chunked over: relabellings, each chunk with draws of its own.
"""

import itertools
import math
from dataclasses import dataclass
from typing import ClassVar, get_args

import numpy as np
from jaxtyping import Float

from mechint_core.alignment._comparisons import Comparison, check_comparison
from mechint_core.alignment._conditions import ROUNDING, Draws, agreement, bootstrap_agreement, centred_draws
from mechint_core.alignment._matrices import check_matrices, n_missing
from mechint_core.alignment._relabelling import Relabelling, relabelling
from mechint_core.errors import ConfigurationError
from mechint_core.figure import Figure, Histogram
from mechint_core.kernels.resampling import Tail, p_value, percentile_interval
from mechint_core.parallel import map_parallel
from mechint_core.random import generator
from mechint_core.result import Estimate, Result

CHUNKS = 16
"""Chunks that the relabellings are drawn in, whatever the number of workers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PermutationTestConfig:
    """How to test the agreement of two dissimilarity matrices."""

    comparison: Comparison = "pearson"
    """Agreement: one of `mechint_core.alignment.compare_rdms`."""
    tail: Tail = "greater"
    """Which agreements count against the null: greater, less or two-sided."""
    n_permutations: int = 10_000
    """Relabellings drawn; where there are no more than this in all, each is taken once."""
    n_bootstrap: int = 500
    """Bootstrap draws of conditions, for the interval."""
    level: float = 0.95
    """Confidence of the interval."""
    seed: int = 0
    """Names the draws."""

    def __post_init__(self) -> None:
        check_comparison(self.comparison)
        if self.tail not in get_args(Tail):
            raise ConfigurationError(f"tail must be one of {get_args(Tail)}. Got {self.tail!r}.")
        if self.n_permutations < 1:
            raise ConfigurationError(f"n_permutations must be at least 1. Got {self.n_permutations}.")
        _ = self.draws

    @property
    def draws(self) -> Draws:
        """The draws that interval and null are made of."""
        return Draws(n_bootstrap=self.n_bootstrap, n_permutations=self.n_permutations, level=self.level, seed=self.seed)


@dataclass(frozen=True, slots=True)
class PermutationTestResult(Result):
    """Agreement of two dissimilarity matrices and of their relabelled copies."""

    technique: ClassVar[str] = "permutation_test"
    evidence: ClassVar[str] = (
        "The interval is a bootstrap over conditions; the null relabels the second matrix's conditions (Mantel)."
    )
    figures: ClassVar[tuple[Figure, ...]] = (
        Histogram(values="null", title="Agreement of relabelled conditions", x_label="agreement"),
    )

    agreement: Estimate
    n_conditions: int
    n_missing_pairs: int
    """Pairs that are NaN in one of the matrices, and were left out."""
    n_relabellings: int
    exact: bool
    """Whether every order of the conditions was taken."""
    null: Float[np.ndarray, "draw"]
    """Agreement after each relabelling."""

    def reading(self) -> str:
        """Say whether the matrices agree more than relabelled ones."""
        found = self.agreement
        text = f"Two dissimilarity matrices of {self.n_conditions} conditions agree by {found.value:.3f}"
        orders = f"{'all other' if self.exact else 'random'} relabellings, {self.n_relabellings} of them,"
        if not found.p_value <= 1 - found.level:
            return f"{text}: not distinguishable from {orders[:-1]} (p = {found.p_value:.2g})."
        return f"{text}; {orders} give {found.null:.3f} on average (p = {found.p_value:.2g})."


def permutation_test(
    first: Float[np.ndarray, "pair"],
    second: Float[np.ndarray, "pair"],
    *,
    config: PermutationTestConfig = PermutationTestConfig(),
) -> PermutationTestResult:
    """Ask whether two dissimilarity matrices agree more than by chance.

    Use it for one planned comparison of two matrices however they were made. It assumes that under the null any order
    of the second's conditions is as likely as any other: conditions that come in groups (categories, runs) break that.
    It cannot tell how two matrices come to agree, nor whether other conditions would; the interval speaks of those.

    Parameters
    ----------
    first, second
        Condensed dissimilarity matrices of the same conditions, at least 4, in the order of `numpy.triu_indices(n, 1)`.
        A pair that is NaN in either is left out.
    config
        Which agreement, which tail, how many relabellings.

    Returns
    -------
    PermutationTestResult
        `agreement` is dimensionless, in [-1, 1]. Its p-value is at least 1 / (1 + n_permutations), or 1 / n! if exact.

    Raises
    ------
    ShapeError
        If the matrices have different pairs, or are of fewer than 4 conditions.
    DegenerateInputError
        If all dissimilarities of a matrix are the same, one is infinite, or pairs are missing for bures.

    Notes
    -----
    The two-sided p-value is twice the smaller one-sided one: the null of a Mantel test is seldom symmetric.

    References
    ----------
    [@mantel1967]
    [@nili2014]
    [@phipson2010]

    Examples
    --------
    Of the 24 orders of four places on a line (0, 1, 3 and 6), only one leaves all distances as they are.

    >>> line = np.array([1.0, 3.0, 6.0, 2.0, 5.0, 3.0])
    >>> found = permutation_test(line, line)
    >>> found.exact, round(24 * found.agreement.p_value, 12)
    (True, 1.0)
    """
    a, b = (each[None].astype(np.float64) for each in (first, second))
    n, comparison = check_matrices(first=a, second=b), config.comparison
    value = agreement(a[0], b[0], comparison)
    relabel, exact = relabelling(a, b, comparison), _n_orders(n) <= config.n_permutations
    null = _every_order(relabel, n) if exact else _random_orders(relabel, n, config)
    null = np.where(np.abs(null - value) <= ROUNDING, value, null)  # an order that changes nothing is a tie
    boot = bootstrap_agreement(a[0], b[0], comparison, counts=config.draws.counts(n))
    low, high = percentile_interval(centred_draws(boot, value, comparison), config.level)
    typical = float(np.nanmean(null))
    return PermutationTestResult(
        agreement=Estimate(value, low, high, typical, p_value(value, null, config.tail), config.level),
        n_conditions=n,
        n_missing_pairs=n_missing(a, b),
        n_relabellings=len(null),
        exact=exact,
        null=null,
    )


def _n_orders(n: int) -> int:
    return math.factorial(min(n, 20))  # more than anyone asks for


def _every_order(relabel: Relabelling, n: int) -> np.ndarray:
    """Return the agreement of every order but the one at hand, which the p-value counts anyway."""
    orders = np.array(list(itertools.permutations(range(n)))[1:])
    return np.concatenate(map_parallel(relabel, np.array_split(orders, CHUNKS)))[:, 0, 0]


def _random_orders(relabel: Relabelling, n: int, config: PermutationTestConfig) -> np.ndarray:
    sizes = [len(each) for each in np.array_split(np.empty(config.n_permutations), CHUNKS)]
    return np.concatenate(map_parallel(_Chunk(relabel, n, config.seed), list(enumerate(sizes))))


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Draw the relabellings of one chunk from its own stream, and compare."""

    relabel: Relabelling
    n: int
    seed: int

    def __call__(self, chunk: tuple[int, int]) -> Float[np.ndarray, "draw"]:
        number, size = chunk
        rng = generator(self.seed, "permutation_test", number)
        return self.relabel(rng.permuted(np.tile(np.arange(self.n), (size, 1)), axis=1))[:, 0, 0]
