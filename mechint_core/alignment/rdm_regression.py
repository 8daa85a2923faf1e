"""Regression of dissimilarity matrices: what each of several models explains that the others do not.

    d = b_0 + Σ_k b_k m_k + e over the pairs i < j          least squares, b_k >= 0 if asked, ranks if asked
    unique_k = R² - R² without model k,    shared = R² - Σ_k unique_k
    partial_k = correlation of what the other models leave of d and of m_k

All are functions of the inner products of the matrices (`_pair_gram`). Interval: conditions drawn with replacement.
Null of a model: what the others leave of m_k, its conditions relabelled, takes the place of m_k (double
semi-partialling). That keeps d and the other models as they are, and so how they go together; relabelling d instead
breaks all of it, and rejects too often where models are correlated. Null of R²: the conditions of d relabelled.

Source: [@legendre1994] (regression of distances), [@dekker2007] (double semi-partialling), [@nili2014].
Cost: n² per product of two matrices and draw, on m = `n_inference` conditions; there are (K + 1)² / 2 products.
Chunked over: draws.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import numpy as np
from jaxtyping import Float

from mechint_core.alignment._conditions import ROUNDING, Draws
from mechint_core.alignment._distances import pairs_among
from mechint_core.alignment._gram_regression import (
    COLLINEAR,
    Explained,
    Weights,
    explained_of_grams,
    left_by_others,
)
from mechint_core.alignment._matrices import FEWEST, check_matrices, n_missing
from mechint_core.alignment._pair_gram import MovingGram, centred, drawn_grams, with_constant
from mechint_core.alignment._ranks import mid_ranks
from mechint_core.errors import ConfigurationError, DegenerateInputError
from mechint_core.figure import Figure, Matrix
from mechint_core.kernels.false_discovery import false_discovery_rate
from mechint_core.kernels.family_wise_error import max_statistic
from mechint_core.kernels.resampling import p_value, percentile_interval
from mechint_core.parallel import LANES, map_parallel
from mechint_core.random import generator
from mechint_core.result import NAN, Estimate, Result

Side = Literal["greater", "two-sided"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RDMRegressionConfig:
    """How to explain dissimilarity matrices by others."""

    weights: Weights = "any"
    """Weights of the models: any, or nonnegative, as of mixtures of features."""
    ranks: bool = False
    """Explain the ranks of the dissimilarities by those of the models (partial Spearman)."""
    side: Side = "two-sided"
    """Which partial correlations count against the null: greater, or two-sided."""
    n_inference: int = 300
    """Conditions, drawn at random, on which intervals and nulls are found; their spread is scaled to all of them."""
    n_bootstrap: int = 500
    """Bootstrap draws of conditions."""
    n_permutations: int = 500
    """Relabellings of conditions."""
    level: float = 0.95
    """Confidence of the intervals."""
    seed: int = 0
    """Names the draws."""

    def __post_init__(self) -> None:
        if self.weights not in get_args(Weights):
            raise ConfigurationError(f"weights must be one of {get_args(Weights)}. Got {self.weights!r}.")
        if self.side not in get_args(Side):
            raise ConfigurationError(f"side must be one of {get_args(Side)}. Got {self.side!r}.")
        if self.n_inference < FEWEST:
            raise ConfigurationError(f"n_inference must be at least {FEWEST}. Got {self.n_inference}.")
        _ = self.draws

    @property
    def draws(self) -> Draws:
        """The draws that intervals and nulls are made of."""
        return Draws(n_bootstrap=self.n_bootstrap, n_permutations=self.n_permutations, level=self.level, seed=self.seed)


@dataclass(frozen=True, slots=True)
class RDMRegressionResult(Result):
    """What several models explain of one or more dissimilarity matrices, together and each alone."""

    technique: ClassVar[str] = "rdm_regression"
    evidence: ClassVar[str] = (
        "The intervals are bootstraps over conditions; the null of R² relabels the data's conditions, that of a model "
        "the conditions of what the other models leave of it."
    )
    figures: ClassVar[tuple[Figure, ...]] = (
        Matrix(
            values="partial", title="Partial correlation with each model", x_label="model", y_label="data",
            value_label="partial correlation", diverging=True,
        ),
        Matrix(
            values="unique", title="What only this model explains", x_label="model", y_label="data",
            value_label="share of variance",
        ),
    )  # fmt: skip

    explained: Estimate
    """R² of all models together, averaged over the data's matrices."""
    n_conditions: int
    n_inference: int
    """Conditions that intervals and nulls were found on."""
    n_missing_pairs: int
    """Pairs that are NaN in one or more matrices, and were left out of all."""
    n_discoveries: int
    """Partial correlations with q <= 1 - level."""
    r_squared: Float[np.ndarray, "rdm"]
    """R² of all models together."""
    shared: Float[np.ndarray, "rdm"]
    """R² that no model explains alone; below 0 where models suppress each other's noise."""
    intercept: Float[np.ndarray, "rdm"]
    coefficient: Float[np.ndarray, "rdm predictor"]
    """Dissimilarity (or rank) per unit of the model's."""
    coefficient_low: Float[np.ndarray, "rdm predictor"]
    coefficient_high: Float[np.ndarray, "rdm predictor"]
    unique: Float[np.ndarray, "rdm predictor"]
    """R² lost without the model."""
    unique_low: Float[np.ndarray, "rdm predictor"]
    unique_high: Float[np.ndarray, "rdm predictor"]
    partial: Float[np.ndarray, "rdm predictor"]
    """Partial correlation given the other models, weights of any sign."""
    partial_low: Float[np.ndarray, "rdm predictor"]
    partial_high: Float[np.ndarray, "rdm predictor"]
    p_value: Float[np.ndarray, "rdm predictor"]
    """Of the partial correlation."""
    q_value: Float[np.ndarray, "rdm predictor"]
    """False discovery rate over models and data."""
    p_family: Float[np.ndarray, "rdm predictor"]
    """Adjusted by the largest of all partial correlations, each in units of its null's spread."""

    def reading(self) -> str:
        """Say how much the models explain, and which of them do so by themselves."""
        found, n = self.explained, self.partial.size
        text = f"{self.partial.shape[1]} models explain {found.value:.1%} of the variance of dissimilarities"
        if not math.isnan(found.low):
            text += f" [{found.low:.1%}, {found.high:.1%}]"
        if math.isnan(found.p_value):
            return f"{text}; no relabelling was done, so nothing says what unrelated models would explain."
        text += f" (relabelled {found.null:.1%}, p = {found.p_value:.2g})"
        return f"{text}; {self.n_discoveries} of {n} partial correlations stand out from what the other models explain."


def rdm_regression(
    data: Float[np.ndarray, "rdm pair"],
    models: Float[np.ndarray, "predictor pair"],
    *,
    config: RDMRegressionConfig = RDMRegressionConfig(),
) -> RDMRegressionResult:
    """Ask what each of several models explains of dissimilarity matrices that the others do not.

    Use it when models are correlated: whether a layer explains a region beyond pixels or categories. It assumes that
    dissimilarities add up over models, which squared distances of independent features do. A model can be redundant
    here and still be the cause: nothing tells which of two collinear models is the right one.

    Parameters
    ----------
    data
        Condensed dissimilarity matrices to explain, one per row, of at least 4 conditions.
    models
        Condensed dissimilarity matrices that explain them, one per row. A pair that is NaN anywhere is left out.
    config
        Which weights, ranks or values, and how intervals and nulls are found.

    Returns
    -------
    RDMRegressionResult
        `explained` is in [0, 1]; 1 if the data are a weighted sum of the models and a constant. `partial` is in
        [-1, 1]; `unique` is in [0, 1].

    Raises
    ------
    ShapeError
        If data and models have different pairs, or are of fewer than 4 conditions.
    DegenerateInputError
        If all dissimilarities of a matrix are the same or one is infinite, or a model is a weighted sum of the others.

    Notes
    -----
    R² is not adjusted for the number of models: compare it with its null. A bootstrap draw repeats conditions, which
    makes R² and unique parts larger, so their intervals lie somewhat high.

    References
    ----------
    [@legendre1994]
    [@dekker2007]
    [@nili2014]

    Examples
    --------
    >>> models = np.array([[1.0, 4.0, 9.0, 1.0, 4.0, 1.0], [1.0, 0.0, 1.0, 1.0, 0.0, 1.0]])
    >>> rdm_regression(models[:1] * 2 + models[1:] * 3 + 5, models).coefficient.round(12)
    array([[2., 3.]])
    """
    d, m = (np.asarray(each, dtype=np.float64) for each in (data, models))
    n, everything = check_matrices(data=d, models=m), np.concatenate([m, d])
    picked = np.sort(generator(config.seed, "rdm_regression").choice(n, min(n, config.n_inference), replace=False))
    these = everything[:, pairs_among(picked, n)]
    found, of_these = (_explain(each, len(m), config) for each in (everything, these))
    boot = _bootstrap(these, len(m), len(picked), config)
    around = _Around(math.sqrt(len(picked) / n), config.level)
    coefficient = around(found.coefficient, of_these.coefficient, boot.coefficient)
    unique, partial = (
        around(getattr(found, name), getattr(of_these, name), getattr(boot, name)) for name in ("unique", "partial")
    )
    low, high = around(*(np.asarray(each.r_squared.mean(axis=-1)) for each in (found, of_these, boot)))
    null, p = _null_of_r_squared(these, len(m), float(of_these.r_squared.mean()), len(picked), config)
    p_values, p_family = _null_of_partial(these, of_these.partial, len(picked), config)
    q = false_discovery_rate(p_values)
    return RDMRegressionResult(
        explained=Estimate(float(found.r_squared.mean()), float(low), float(high), null, p, config.level),
        n_conditions=n,
        n_inference=len(picked),
        n_missing_pairs=n_missing(everything),
        n_discoveries=int(np.sum(q <= 1 - config.level)),
        r_squared=found.r_squared,
        shared=found.r_squared - found.unique.sum(axis=-1),
        intercept=found.intercept,
        coefficient=found.coefficient,
        coefficient_low=coefficient[0],
        coefficient_high=coefficient[1],
        unique=found.unique,
        unique_low=unique[0],
        unique_high=unique[1],
        partial=found.partial,
        partial_low=partial[0],
        partial_high=partial[1],
        p_value=p_values,
        q_value=q,
        p_family=p_family,
    )


def _prepared(matrices: np.ndarray, config: RDMRegressionConfig) -> tuple[np.ndarray, np.ndarray]:
    """Return the matrices, ranked if asked, with 0 for missing pairs, and which pairs all of them have."""
    keep = np.asarray(~np.isnan(matrices).any(axis=0))
    values = np.where(keep, matrices, 0.0)
    if config.ranks:
        values[:, keep] = [mid_ranks(each) for each in values[:, keep]]
    return values, keep


def _explain(matrices: np.ndarray, n_models: int, config: RDMRegressionConfig) -> Explained:
    values, keep = _prepared(matrices, config)
    rows = with_constant(values, keep)
    rows[1:] -= np.where(keep, rows[1:].sum(axis=1, keepdims=True) / keep.sum(), 0.0)  # a shift that cancels less
    gram = rows @ rows.T
    left = left_by_others(centred(gram)[:n_models, :n_models])
    if np.any(left <= COLLINEAR):
        raise DegenerateInputError(
            f"models must not be weighted sums of each other. Got model {int(np.argmin(left))}, of whose variance the "
            f"others leave {left.min():.1g}: leave it out."
        )
    found = explained_of_grams(gram[None], n_models, config.weights)
    means = values[:, keep].mean(axis=1)
    intercept = means[n_models:] - found.coefficient[0] @ means[:n_models]
    return Explained(found.r_squared[0], intercept, found.coefficient[0], found.unique[0], found.partial[0])


@dataclass(frozen=True, slots=True)
class _Around:
    """Percentiles of draws, shrunk to all conditions, around the value of all of them."""

    shrink: float
    level: float

    def __call__(self, value: np.ndarray, of_these: np.ndarray, boot: np.ndarray) -> np.ndarray:
        """Return low and high, first axis."""
        moved = value + self.shrink * (boot - of_these)
        flat = moved.reshape(len(moved), np.size(value)).T
        return np.array([percentile_interval(each, self.level) for each in flat]).T.reshape(2, *np.shape(value))


def _bootstrap(these: np.ndarray, n_models: int, m: int, config: RDMRegressionConfig) -> Explained:
    values, keep = _prepared(these, config)
    if not config.ranks:
        values[:, keep] -= values[:, keep].mean(axis=1, keepdims=True)
    grams = drawn_grams(values, keep, config.draws.counts(m), ranks=config.ranks)
    return explained_of_grams(grams, n_models, config.weights)


def _null_of_r_squared(
    these: np.ndarray, n_models: int, observed: float, m: int, config: RDMRegressionConfig
) -> tuple[float, float]:
    """Relabel the conditions of all data alike: the mean R², and the chance of one as large as observed."""
    values, keep = _prepared(these, config)
    orders = config.draws.permutations(m)
    rows = with_constant(values - values[:, keep].mean(axis=1, keepdims=True), keep)
    r_squared = [
        explained_of_grams(_moved(rows[: n_models + 1], data, keep, orders), n_models, config.weights).r_squared[:, 0]
        for data in rows[n_models + 1 :]
    ]
    null = np.mean(r_squared, axis=0)
    return (float(np.nanmean(null)) if len(null) else NAN), p_value(observed - ROUNDING, null)


def _null_of_partial(
    these: np.ndarray, observed: np.ndarray, m: int, config: RDMRegressionConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Relabel what the others leave of each model: p-values, and those adjusted by the largest of all."""
    values, keep = _prepared(these, config)
    orders, n_models = config.draws.permutations(m), observed.shape[1]
    rows = with_constant(values - values[:, keep].mean(axis=1, keepdims=True), keep)
    null = np.empty((len(orders), *observed.shape))
    for k in range(n_models):
        others = np.delete(rows[: n_models + 1], k + 1, axis=0)
        weights = np.linalg.lstsq(others.T, rows[k + 1], rcond=None)[0]
        left = rows[k + 1] - weights @ others
        grams = _moved(np.concatenate([others, rows[n_models + 1 :]]), left, keep, orders)
        order = [*range(n_models), grams.shape[1] - 1, *range(n_models, grams.shape[1] - 1)]  # data last again
        null[:, :, k] = explained_of_grams(grams[:, order][:, :, order], n_models, "any").partial[:, :, n_models - 1]
    seen, draws = (np.abs(each) if config.side == "two-sided" else each for each in (observed, null))
    p = np.array([p_value(value - ROUNDING, draws[(slice(None), *at)]) for at, value in np.ndenumerate(seen)])
    return p.reshape(seen.shape), _of_largest(seen, draws)


def _moved(fixed: np.ndarray, moving: np.ndarray, keep: np.ndarray, orders: np.ndarray) -> np.ndarray:
    return np.concatenate(map_parallel(MovingGram(fixed, moving, keep), np.array_split(orders, LANES)))


def _of_largest(observed: np.ndarray, null: np.ndarray) -> np.ndarray:
    """Adjust by the largest, each in units of its own spread, in which the observed one counts as a draw."""
    if len(null) == 0:
        return np.full(observed.shape, NAN)
    everything = np.concatenate([observed[None], null]).reshape(len(null) + 1, -1)
    standing = (everything - np.nanmean(everything, axis=0)) / np.nanstd(everything, axis=0)
    return max_statistic(standing[0] - ROUNDING, standing[1:]).reshape(observed.shape)
