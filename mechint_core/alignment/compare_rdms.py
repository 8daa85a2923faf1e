"""Comparison of dissimilarity matrices: how far each of some agrees with each of others.

    similarity_ab = agreement(D_a, E_b)        pearson, cosine, spearman, rho-a, tau-a, whitened or bures

Interval: conditions drawn with replacement, pairs of copies left out (`_condition_bootstrap`). Null: the conditions of
all E relabelled alike (`_relabelling`), so the largest of all entries, each in units of its null's spread, has a null
too: it controls the chance of any false entry, and q-values the share of false ones.

Source: [@kriegeskorte2008], [@nili2014], [@mantel1967], [@westfall1993] (maximum), [@benjamini1995] (q-values).
Cost: n² per entry and draw on m = `n_inference` conditions; n² log n for tau-a, n³ for bures.
Chunked over: draws.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from mechint_core.alignment._comparisons import Comparison, check_comparison, compare
from mechint_core.alignment._condition_bootstrap import bootstrap_agreements
from mechint_core.alignment._conditions import ROUNDING, Draws, centred_draws, relabelled_agreements, scaled_interval
from mechint_core.alignment._distances import pairs_among
from mechint_core.alignment._matrices import FEWEST, check_matrices, n_missing
from mechint_core.errors import ConfigurationError
from mechint_core.figure import Figure, Matrix
from mechint_core.kernels.false_discovery import false_discovery_rate
from mechint_core.kernels.family_wise_error import max_statistic
from mechint_core.kernels.resampling import p_value
from mechint_core.random import generator
from mechint_core.result import NAN, Estimate, Result


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareRDMsConfig:
    """How to compare dissimilarity matrices."""

    comparison: Comparison = "pearson"
    """Agreement: pearson or cosine for ratio-scaled dissimilarities, whitened ones for squared distances with equal
    noise, spearman, rho-a or tau-a where only the order counts (rho-a, tau-a where models predict ties), bures for
    the shape of the responses."""
    n_inference: int = 300
    """Conditions, drawn at random, on which intervals and nulls are found; their spread is scaled to all of them."""
    n_bootstrap: int = 500
    """Bootstrap draws of conditions."""
    n_permutations: int = 500
    """Relabellings of conditions (Mantel)."""
    level: float = 0.95
    """Confidence of the intervals."""
    seed: int = 0
    """Names the draws."""

    def __post_init__(self) -> None:
        check_comparison(self.comparison)
        if self.n_inference < FEWEST:
            raise ConfigurationError(f"n_inference must be at least {FEWEST}. Got {self.n_inference}.")
        _ = self.draws

    @property
    def draws(self) -> Draws:
        """The draws that intervals and nulls are made of."""
        return Draws(n_bootstrap=self.n_bootstrap, n_permutations=self.n_permutations, level=self.level, seed=self.seed)


@dataclass(frozen=True, slots=True)
class CompareRDMsResult(Result):
    """Agreement of each of the first matrices with each of the second."""

    technique: ClassVar[str] = "compare_rdms"
    evidence: ClassVar[str] = (
        "The intervals are bootstraps over conditions; the null relabels the second matrices' conditions (Mantel)."
    )
    figures: ClassVar[tuple[Figure, ...]] = (
        Matrix(
            values="similarity", title="Agreement of dissimilarity matrices", x_label="second", y_label="first",
            value_label="agreement", diverging=True,
        ),
        Matrix(values="q_value", title="False discovery rate", x_label="second", y_label="first", value_label="q"),
    )  # fmt: skip

    mean: Estimate
    """Mean agreement of all entries."""
    n_conditions: int
    n_inference: int
    """Conditions that intervals and nulls were found on."""
    n_missing_pairs: int
    """Pairs that are NaN in one or more matrices; an entry leaves out those of its own two."""
    n_discoveries: int
    """Entries with q <= 1 - level."""
    similarity: Float[np.ndarray, "rdm other_rdm"]
    low: Float[np.ndarray, "rdm other_rdm"]
    high: Float[np.ndarray, "rdm other_rdm"]
    null: Float[np.ndarray, "rdm other_rdm"]
    """Mean agreement after relabelling."""
    p_value: Float[np.ndarray, "rdm other_rdm"]
    q_value: Float[np.ndarray, "rdm other_rdm"]
    """False discovery rate over all entries."""
    p_family: Float[np.ndarray, "rdm other_rdm"]
    """Chance that any entry of relabelled matrices stands out as far as this one."""

    def reading(self) -> str:
        """Say how far the matrices agree, and how many entries stand out."""
        found, n = self.mean, self.similarity.size
        text = (
            f"{n} comparisons of dissimilarity matrices over {self.n_conditions} conditions agree by {found.value:.3f}"
        )
        if not math.isnan(found.low):
            text += f" [{found.low:.3f}, {found.high:.3f}]"
        if math.isnan(found.p_value):
            return f"{text} on average; no relabelling was done, so nothing says what unrelated ones would give."
        best = np.unravel_index(np.argmax(self.similarity), self.similarity.shape)
        return (
            f"{text} on average (relabelled {found.null:.3f}); {self.n_discoveries} of {n} stand out at a false "
            f"discovery rate of {1 - found.level:.2g}, the largest is {self.similarity[best]:.3f} "
            f"(family-wise p = {self.p_family[best]:.2g})."
        )


def compare_rdms(
    first: Float[np.ndarray, "rdm pair"],
    second: Float[np.ndarray, "other_rdm pair"],
    *,
    config: CompareRDMsConfig = CompareRDMsConfig(),
) -> CompareRDMsResult:
    """Measure how far each of some dissimilarity matrices agrees with each of others.

    Use it to compare subjects, regions, layers or models whose matrices are at hand; `rsa` compares responses. It
    assumes that all are of the same conditions in the same order, and that conditions are a sample of those of
    interest. Matrices of noisy responses agree less than what they measure: `noise_ceiling` says how much is possible.

    Parameters
    ----------
    first, second
        Condensed dissimilarity matrices, one per row, of at least 4 conditions, in the order of
        `numpy.triu_indices(n, 1)`. A pair that is NaN in either of two matrices is left out of their comparison.
    config
        Which agreement, and how intervals and nulls are found.

    Returns
    -------
    CompareRDMsResult
        `similarity` is dimensionless, in [-1, 1] (bures in [0, 1]); 1 for proportional matrices (cosine, whitened
        cosine, bures), linearly related and rising ones (pearson, whitened correlation), or the same order (ranks;
        rho-a and tau-a only without ties).

    Raises
    ------
    ShapeError
        If the matrices have different pairs, or are of fewer than 4 conditions.
    DegenerateInputError
        If all dissimilarities of a matrix are the same, one is infinite, or pairs are missing for bures.

    Notes
    -----
    With more than `n_inference` conditions, intervals and p-values come from that many, as in `rsa`. Bootstrap draws
    without variance are left out.

    References
    ----------
    [@kriegeskorte2008]
    [@nili2014]
    [@mantel1967]
    [@westfall1993]
    [@benjamini1995]

    Examples
    --------
    >>> line = np.array([[1.0, 3.0, 6.0, 2.0, 5.0, 3.0]])
    >>> compare_rdms(line, np.concatenate([2 * line, 7 - line])).similarity.round(12)
    array([[ 1., -1.]])
    """
    a, b = (np.asarray(each, dtype=np.float64) for each in (first, second))
    n, comparison, draws = check_matrices(first=a, second=b), config.comparison, config.draws
    similarity = compare(a, b, comparison)
    picked = np.sort(generator(config.seed, "compare_rdms").choice(n, min(n, config.n_inference), replace=False))
    among, m = pairs_among(picked, n), len(picked)
    a_these, b_these = a[:, among], b[:, among]
    these = compare(a_these, b_these, comparison)
    boot = bootstrap_agreements(a_these, b_these, comparison, counts=draws.counts(m))
    boot = centred_draws(boot, these, comparison)
    null = relabelled_agreements(a_these, b_these, comparison, permutations=draws.permutations(m))
    entry = np.vectorize(_entry, signature="(),(),(d),(e)->(k)", excluded={"share", "level"})
    moved = (np.moveaxis(each, 0, -1) for each in (boot, null))
    low, high, typical, p = np.moveaxis(entry(similarity, these, *moved, share=m / n, level=config.level), -1, 0)
    mean = (float(similarity.mean()), float(these.mean()), boot.mean(axis=(1, 2)), null.mean(axis=(1, 2)))
    m_low, m_high, m_typical, m_p = _entry(*mean, share=m / n, level=config.level).tolist()
    q = false_discovery_rate(p)
    return CompareRDMsResult(
        mean=Estimate(mean[0], m_low, m_high, m_typical, m_p, config.level),
        n_conditions=n,
        n_inference=m,
        n_missing_pairs=n_missing(a, b),
        n_discoveries=int(np.sum(q <= 1 - config.level)),
        similarity=similarity,
        low=low,
        high=high,
        null=typical,
        p_value=p,
        q_value=q,
        p_family=_of_largest(these, null),
    )


def _entry(
    value: float, of_these: float, boot: np.ndarray, null: np.ndarray, *, share: float, level: float
) -> np.ndarray:
    """Return low, high, typical null and p-value of one agreement."""
    low, high = scaled_interval(value, of_these, boot, share=share, level=level)
    typical = float(np.nanmean(null)) if np.isfinite(null).any() else NAN
    return np.array([low, high, typical, p_value(of_these - ROUNDING, null)])


def _of_largest(observed: np.ndarray, null: np.ndarray) -> np.ndarray:
    """Adjust by the largest entry, each in units of its null's spread, in which the observed one counts as a draw."""
    if len(null) == 0:
        return np.full(observed.shape, NAN)
    everything = np.concatenate([observed[None], null]).reshape(len(null) + 1, -1)
    standing = (everything - np.nanmean(everything, axis=0)) / np.nanstd(everything, axis=0)
    return max_statistic(standing[0] - ROUNDING, standing[1:]).reshape(observed.shape)
