"""Noise ceiling: how well any model could agree with these subjects, given how far they agree with one another.

    upper = mean_s compare(data s, mean of all)            no model agrees better with these subjects on average
    lower = mean_s compare(data s, mean of the others)     a true model is expected to agree better than this

The mean is of unit vectors of the comparison: standardised, normalised, ranked or whitened dissimilarities. For one
subject recorded R times, `rows = "repetitions"` splits them in halves A and B, many times:

    r     = compare(mean of A, mean of B)
    lower = 2 r / (1 + |r|)         agreement of two means of R repetitions (Spearman-Brown)
    upper = sqrt(lower)             agreement of one with what it would be without noise

Source: [@nili2014] (ceilings), [@schutt2023], [@spearman1910] and [@brown1910] (halves).
Cost: S² n² / 2 per draw for S rows and n conditions; tau-a S N log N for N pairs, bures S n³.
Chunked over: draws.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal, cast, get_args

import numpy as np
from jaxtyping import Float, Int

from mechint_core.alignment._comparisons import Comparison, check_comparison
from mechint_core.alignment._conditions import Draws
from mechint_core.alignment._drawn_products import DrawnComparison
from mechint_core.alignment._relabelled import relabelled_between, unit_squares
from mechint_core.alignment._subjects import (
    Resample,
    Sample,
    Spread,
    SubjectAgreement,
    agreement_interval,
    ceilings,
    check_rdms,
    check_resample,
    fisher,
    observed_ceilings,
)
from mechint_core.errors import ConfigurationError, DegenerateInputError
from mechint_core.figure import Bars, Figure, Matrix
from mechint_core.kernels.resampling import p_value
from mechint_core.random import generator
from mechint_core.result import NAN, Estimate, Result

RowsAre = Literal["subjects", "repetitions"]
LIKE: dict[str, DrawnComparison] = {"tau-a": "spearman", "bures": "whitened cosine"}
"""Whose relabellings say whether rows agree at all, for the comparisons that are no inner product."""
ROUNDING = 1e-12
"""A relabelling that agrees as much up to this counts as a tie."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseCeilingConfig:
    """How rows are compared, and what they are."""

    comparison: Comparison = "pearson"
    """pearson, cosine, spearman, rho-a, tau-a, whitened cosine, whitened correlation or bures."""
    rows: RowsAre = "subjects"
    """What a row is: a subject, or a repetition of one subject, split in halves."""
    resample: Resample = "both"
    """What is drawn again: conditions, subjects or both. Repetitions are not drawn, only their conditions."""
    n_halves: int = 100
    """Random splits of the repetitions, averaged."""
    n_bootstrap: int = 1000
    """Bootstrap draws."""
    n_permutations: int = 1000
    """Relabellings of the conditions, another for each row."""
    level: float = 0.95
    """Confidence of the intervals."""
    seed: int = 0
    """Names the draws."""

    def __post_init__(self) -> None:
        check_comparison(self.comparison)
        check_resample(self.resample)
        if self.rows not in get_args(RowsAre):
            raise ConfigurationError(f"rows must be one of {get_args(RowsAre)}. Got {self.rows!r}.")
        if self.n_halves < 1:
            raise ConfigurationError(f"n_halves must be at least 1. Got {self.n_halves}.")
        _ = self.draws

    @property
    def draws(self) -> Draws:
        """The draws that intervals and null are made of."""
        return Draws(n_bootstrap=self.n_bootstrap, n_permutations=self.n_permutations, level=self.level, seed=self.seed)


@dataclass(frozen=True, slots=True)
class NoiseCeilingResult(Result):
    """Between which agreements that of a true model is to be expected."""

    technique: ClassVar[str] = "noise_ceiling"
    evidence: ClassVar[str] = (
        "Intervals: Student's on Fisher's scale, from the corrected variance over draws of conditions, subjects or "
        "both. Null: the conditions of every row relabelled on their own."
    )
    invariances: ClassVar[tuple[str, ...]] = ("rdm scaling", "order of subjects", "order of conditions")
    figures: ClassVar[tuple[Figure, ...]] = (
        Matrix(
            values="between", x="subject", y="subject", title="Agreement of each two rows", x_label="row",
            y_label="row", value_label="agreement", diverging=True,
        ),
        Bars(
            values="with_others", labels="subject", title="Agreement of each row with the mean of the others",
            null="with_all", value_label="agreement",
        ),
    )  # fmt: skip

    lower: Estimate
    upper: Estimate
    n_conditions: int
    n_subjects: int
    """Rows: subjects, or repetitions of one."""
    n_missing: int
    """Pairs that are NaN, over all rows."""
    n_undefined: int
    """Draws of the conditions in which some agreement has no value, left out."""
    subject: Int[np.ndarray, "subject"]
    with_others: Float[np.ndarray, "subject"]
    """Agreement of each row with the mean of the others."""
    with_all: Float[np.ndarray, "subject"]
    """Agreement of each row with the mean of all, itself included."""
    between: Float[np.ndarray, "subject other_subject"]

    def reading(self) -> str:
        """Say what a true model would reach, and whether the rows agree at all."""
        lower, upper = self.lower, self.upper
        if not lower.p_value <= 1 - lower.level:
            return (
                f"The {self.n_subjects} recordings do not agree more than with conditions relabelled (lower ceiling "
                f"{lower.value:.3f}, p = {lower.p_value:.2g}): they cannot tell a good model from a poor one."
            )
        return (
            f"A true model is expected to agree by {lower.value:.3f} [{lower.low:.3f}, {lower.high:.3f}] or more with "
            f"the {self.n_subjects} recordings, and none by more than {upper.value:.3f} [{upper.low:.3f}, "
            f"{upper.high:.3f}]; with conditions relabelled the ceilings are {lower.null:.3f} and {upper.null:.3f}."
        )


def noise_ceiling(
    data: Float[np.ndarray, "subject pair"], *, config: NoiseCeilingConfig = NoiseCeilingConfig()
) -> NoiseCeilingResult:
    """Ask how well any model could agree with these recordings, given their noise and how subjects differ.

    Use it before calling a model poor: agreement between the bounds is all that the recordings allow to see. It assumes
    that rows are exchangeable and their noise is independent. It cannot tell noise from true differences between
    subjects, and is low for both.

    Parameters
    ----------
    data
        One condensed dissimilarity matrix per subject (or per repetition), pairs i < j in the order of
        `numpy.triu_indices(n, 1)`. NaN where a condition is missing: such pairs are left out.
    config
        Comparison, what the rows are, what is drawn again.

    Returns
    -------
    NoiseCeilingResult
        `lower` and `upper`, dimensionless, in [-1, 1], lower at most upper, both 1 where all rows agree perfectly.

    Raises
    ------
    ShapeError
        If `data` are not matrices of 4 or more conditions.
    DegenerateInputError
        If there is one row, a row is constant, holds infinity or fewer than 3 pairs, pairs are missing for bures, or
        single ones for a whitened comparison.

    Notes
    -----
    Upper is exact (no matrix does better) for pearson, cosine and the whitened ones, and for spearman and rho-a without
    ties; for tau-a and bures the pool is near the best one only. Each row is scaled by its norm in the comparison;
    rsatoolbox scales by the plain norm for the whitened ones, which bounds a little lower. In draws, ranked rows are
    pooled without ranking the pool again, and agreements by tau-a and bures are taken for inner products. Where rows
    miss different pairs, each two are compared over the pairs that both hold, which makes the bounds approximate.

    References
    ----------
    [@nili2014]
    [@schutt2023]
    [@spearman1910]

    Examples
    --------
    >>> rows = np.array([[1.0, 2, 3, 4, 5, 6], [10.0, 20, 30, 40, 60, 50]])  # r = 33 / 35
    >>> found = noise_ceiling(rows)
    >>> round(35 * found.lower.value, 9), round(35 * found.upper.value**2, 9)  # r and (1 + r) / 2
    (33.0, 34.0)
    """
    n = check_rdms("data", data, config.comparison)
    if len(data) < 2:
        raise DegenerateInputError(
            "data must have at least 2 rows. Got 1: give the repetitions of one subject, with rows='repetitions'."
        )
    halves = config.rows == "repetitions"
    agreements = partial(SubjectAgreement.of, np.empty((0, data.shape[1])), data, config.comparison)
    sample = Sample.of(agreements, n, len(data), "conditions" if halves else config.resample, config.draws)
    bounds = _HalfBounds.of(len(data), config) if halves else ceilings
    each = observed_ceilings(data, sample.whole, config.comparison)
    every = np.ones((1, len(data)))
    value = bounds(sample.whole.subjects, every)[0] if halves else each.mean(axis=1)

    def of_draws(agreement: SubjectAgreement, times: np.ndarray) -> np.ndarray:
        return bounds(agreement.subjects, times)

    replicates = sample.replicate(of_draws)
    lower, upper = _estimates(value, bounds, replicates.spread(fisher), data, config)
    return NoiseCeilingResult(
        lower=lower,
        upper=upper,
        n_conditions=n,
        n_subjects=len(data),
        n_missing=int(np.isnan(data).sum()),
        n_undefined=replicates.n_undefined(fisher),
        subject=np.arange(len(data)),
        with_others=each[0],
        with_all=each[1],
        between=sample.whole.subjects[0],
    )


Bounds = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(agreements of the rows, how often each counts) -> lower and upper, per draw."""


def _estimates(
    value: np.ndarray, bounds: Bounds, spread: Spread, data: np.ndarray, config: NoiseCeilingConfig
) -> list[Estimate]:
    low, high = agreement_interval(value, spread, config.level)
    squares = unit_squares(data, LIKE.get(config.comparison, cast(DrawnComparison, config.comparison)))
    whole, draws = np.arange(squares.shape[1])[None, None], config.n_permutations
    observed, null = (
        bounds(between, np.ones(between.shape[:2]))
        for between in (
            relabelled_between(squares, np.repeat(whole, len(data), axis=1)),
            relabelled_between(squares, _relabellings(len(data), squares.shape[1], draws, config.seed)),
        )
    )
    return [
        Estimate(
            float(value[k]),
            float(low[k]),
            float(high[k]),
            float(np.nanmean(null[:, k])) if draws else NAN,
            p_value(observed[0, k] - ROUNDING, null[:, k]),
            config.level,
        )
        for k in range(2)
    ]


def _relabellings(n_rows: int, n: int, n_draws: int, seed: int) -> Int[np.ndarray, "draw subject condition"]:
    rng = generator(seed, "permutation", "rows")
    return rng.permuted(np.tile(np.arange(n), (n_draws, n_rows, 1)), axis=2)


@dataclass(frozen=True, slots=True)
class _HalfBounds:
    """Bounds from splits of the rows in two halves of equally many."""

    first: Float[np.ndarray, "_ subject"]
    second: Float[np.ndarray, "_ subject"]

    @classmethod
    def of(cls, n_rows: int, config: NoiseCeilingConfig) -> "_HalfBounds":
        half = n_rows // 2
        orders = generator(config.seed, "halves").permuted(np.tile(np.arange(n_rows), (config.n_halves, 1)), axis=1)
        return cls((orders < half).astype(np.float64), ((orders >= half) & (orders < 2 * half)).astype(np.float64))

    def __call__(self, between: np.ndarray, _: np.ndarray) -> np.ndarray:
        """Agree the means of both halves, and lengthen to all rows; repetitions are not drawn, and count once."""
        a, b = self.first, self.second
        inner, left, right = (
            np.einsum("hs,bst,ht->bh", x, between, y, optimize=True) for x, y in ((a, b), (a, a), (b, b))
        )
        with np.errstate(invalid="ignore", divide="ignore"):  # a half whose rows cancel: NaN
            r = (inner / np.sqrt(np.where(left * right > 0, left * right, np.nan))).mean(axis=1)
            longer = between.shape[1] / a[0].sum()
            lower = longer * r / (1 + (longer - 1) * np.abs(r))
            return np.stack([lower, np.sign(lower) * np.sqrt(np.abs(lower))], axis=1)
