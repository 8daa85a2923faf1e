"""Encoding model: how much of recorded responses a linear readout of other responses predicts, on rows it never saw.

    ŷ = ȳ + (x - x̄) w,    w = argmin Σ (y - ŷ)² + Σ_b λ_b ||w_b||²          λ of each target's own

    R² = 1 - Σ (y - ŷ)² / Σ (y - ȳ)²       over held-out rows; ȳ the mean of the training rows
    R²_b = Σ ŷ_b (2 y - ŷ) / Σ (y - ȳ)²    the part of band b of the columns; the parts add up to R²

Outer folds are scored; the penalties are chosen by folds inside each training set. All of it, and the null too, follows
from the sums of each fold (`_fold_sums`), so X is read once, and once more to see which rows the error comes from.

Source: [@naselaris2011], [@hoerl1970] (ridge), [@duprelatour2022] (banded), [@schoppe2016] (noise ceiling).
Cost: n p (p + t) for p columns, t targets; K² / 2 decompositions of p³ for K folds. Null draws count as targets.
Chunked over: samples.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Int

from mechint_core.alignment._fold_sums import Permuted, assign_folds, fold_sums, predictors
from mechint_core.alignment._ridge import Nested, check_penalties, fit_all, nested_ridge
from mechint_core.alignment._row_units import Draws, Order, UnitSums, pooled_p_values, summarised, unit_sums
from mechint_core.errors import ConfigurationError, DegenerateInputError, ShapeError
from mechint_core.figure import Curve, Figure, Histogram
from mechint_core.kernels.false_discovery import false_discovery_rate
from mechint_core.kernels.row_views import SideBySide
from mechint_core.parallel import Rows, len_rows
from mechint_core.result import Estimate, Result

PENALTIES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2, 1e3, 1e4)


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodingModelConfig:
    """How to predict responses from other responses."""

    n_folds: int = 5
    """Parts of the rows that are predicted in turn; inside each training set the others serve to choose penalties."""
    penalties: tuple[float, ...] = PENALTIES
    """Penalties to choose from, in units of the mean squared length of a centred row of x; rising."""
    bands: tuple[int, ...] = ()
    """Widths of consecutive groups of columns with a penalty of their own. By default all columns are one band."""
    n_band_scales: int = 32
    """With several bands: combinations of their scales to choose from, besides equal ones and each band alone."""
    block: int = 1
    """Consecutive rows that belong together: for time series, as many as the noise remembers."""
    order: Order = "permuted"
    """The null's rows: blocks permuted, or the whole series turned, which leaves its time course as it is."""
    n_inference: int = 10
    """Targets, drawn at random, whose null is found; their null scores are one pool for all."""
    n_permutations: int = 200
    """Other orders of the rows of y, each fitted anew."""
    n_bootstrap: int = 500
    """Bootstrap draws of rows."""
    least_ceiling: float = 0.05
    """Targets with a ceiling below this have no ceiled score: dividing by it would say nothing."""
    level: float = 0.95
    """Confidence of the intervals, and of what counts as predicted."""
    seed: int = 0
    """Names the draws."""

    def __post_init__(self) -> None:
        check_penalties(self.penalties)
        if self.n_folds < 3:
            raise ConfigurationError(f"n_folds must be at least 3: outer, inner and training. Got {self.n_folds}.")
        if self.n_band_scales < 0:
            raise ConfigurationError(f"n_band_scales must be at least 0. Got {self.n_band_scales}.")
        if not 0 < self.least_ceiling <= 1:
            raise ConfigurationError(f"least_ceiling must be in (0, 1]. Got {self.least_ceiling}.")
        _ = self.draws

    @property
    def draws(self) -> Draws:
        """The draws that intervals and null are made of."""
        return Draws(
            n_bootstrap=self.n_bootstrap,
            n_permutations=self.n_permutations,
            n_inference=self.n_inference,
            block=self.block,
            order=self.order,
            level=self.level,
            seed=self.seed,
        )


@dataclass(frozen=True, slots=True)
class EncodingModelResult(Result):
    """How well each target is predicted, and by what."""

    technique: ClassVar[str] = "encoding_model"
    evidence: ClassVar[str] = (
        "The intervals are a bootstrap over held-out rows (blocks, or groups where there are 20 or more) for these "
        "targets; the null puts the rows of the targets in other orders and fits everything anew."
    )
    figures: ClassVar[tuple[Figure, ...]] = (
        Histogram(values="r2", title="How well single targets are predicted", x_label="held-out R²"),
        Curve(
            y=("path",),
            x="penalties",
            log_x=True,
            title="What the penalty does",
            x_label="penalty",
            y_label="cross-validated R²",
        ),
    )
    invariances: ClassVar[tuple[str, ...]] = ("orthogonal", "isotropic scaling", "translation", "target scaling")
    """Changes of x (with one band), and of a target, that leave every score as it is."""

    score: Estimate
    """Mean over targets of held-out R²."""
    correlation: Estimate
    """Mean over targets of the held-out correlation, taken within folds."""
    ceiled_score: Estimate
    """Mean of R² / ceiling; NaN without ceilings. May exceed 1: nothing is clipped."""
    ceiled_correlation: Estimate
    """Mean of correlation / √ceiling; NaN without ceilings."""
    n_samples: int
    n_targets: int
    n_inference: int
    """Targets whose null was found."""
    n_drawn: int
    """Units of rows that the bootstrap draws from."""
    n_predicted: int
    """Targets predicted above the null, at a false discovery rate of 1 - level."""
    n_at_edge: int
    """Targets whose penalty is the first or the last of the grid: widen it if they are predicted well."""
    n_constant: int
    """Targets that do not vary: they have no score."""
    n_below_ceiling: int
    """Targets left out of the ceiled scores."""
    r2: Float[np.ndarray, "target"]
    r2_low: Float[np.ndarray, "target"]
    r2_high: Float[np.ndarray, "target"]
    r: Float[np.ndarray, "target"]
    """Held-out correlation."""
    ceiled_r2: Float[np.ndarray, "target"]
    p_values: Float[np.ndarray, "target"]
    q_values: Float[np.ndarray, "target"]
    """False discovery rate over targets."""
    band_r2: Float[np.ndarray, "band target"]
    """The part of each band; the parts add up to `r2`."""
    band_penalty: Float[np.ndarray, "band target"]
    """λ_b of the model of all rows, in units of sums of squares; infinite for a band that is left out."""
    fold_penalty: Float[np.ndarray, "fold target"]
    """Chosen for each outer fold, in units of `penalties`."""
    penalties: Float[np.ndarray, "penalty"]
    path: Float[np.ndarray, "penalty"]
    """Mean over targets of the cross-validated R² at each penalty."""
    weights: Float[np.ndarray, "unit target"]
    """Of the model of all rows."""
    intercept: Float[np.ndarray, "target"]

    def reading(self) -> str:
        """Say how well the targets are predicted, and how many above the null."""
        found = self.score
        text = f"{self.n_targets} targets are predicted with a mean held-out R² of {found.value:.3f}"
        if not math.isnan(found.low):
            text += f" [{found.low:.3f}, {found.high:.3f}]"
        if not math.isnan(self.ceiled_score.value):
            text += f", {self.ceiled_score.value:.0%} of what can be"
        if math.isnan(found.p_value):
            return f"{text}; no null was drawn, so nothing says what unrelated responses would give."
        if found.p_value > 1 - found.level:
            text += f": not distinguishable from reordered rows (p = {found.p_value:.2g})"
        else:
            text += f"; reordered rows give {found.null:.3f} (p = {found.p_value:.2g})"
        return f"{text}. {self.n_predicted} targets are predicted above the null."


def encoding_model(
    x: Float[Rows, "sample unit"],
    y: Float[np.ndarray, "sample target"],
    group: Int[np.ndarray, "sample"] | None = None,
    ceiling: Float[np.ndarray, "target"] | None = None,
    *,
    config: EncodingModelConfig = EncodingModelConfig(),
) -> EncodingModelResult:
    """Ask how much of recorded responses a linear readout of model activations predicts.

    Use it to say which channels a layer accounts for, and by how much. It assumes that row i of x and y belong
    together, and that rows of different folds are independent: without `group`, folds are runs of consecutive rows, so
    neighbours in time are mostly kept together; shuffled trials of repeated conditions need `group`. It cannot tell
    whether the recorded system computes what the model does: any predictor that is correlated with the responses helps.

    Parameters
    ----------
    x
        Predictors, read block by block, twice; whole where a band has more columns than there are rows.
    y
        Targets, held in memory.
    group
        What each row belongs to (session, run, film, repeated condition): a group is never split between folds.
    ceiling
        Share of each target's variance that any model could predict, as `explainable_variance` gives it.
    config
        Folds, penalties, bands, and how interval and null are found.

    Returns
    -------
    EncodingModelResult
        `score` is dimensionless, at most 1; 0 is what the mean of the training rows predicts, and worse is negative.

    Raises
    ------
    ShapeError
        If x and y differ in their rows, `group` or `ceiling` does not fit them, or there are too few rows or groups
        for the folds.
    ConfigurationError
        If `bands` does not add up to the columns of x.
    DegenerateInputError
        If a system holds NaN or infinity, x is constant over a training set, or every target is constant.

    Notes
    -----
    The interval is for models trained on (K - 1) / K of these rows, whose choice it takes as given: with few rows per
    column it lies below what endless data would give. It is for these targets: it does not draw other ones. The
    ceilings are taken as exact. A p-value compares the mean of `n_inference` targets with theirs in other orders.

    References
    ----------
    [@naselaris2011]
    [@hoerl1970]
    [@duprelatour2022]
    [@schoppe2016]

    Examples
    --------
    >>> x = np.sin(np.outer(np.arange(60.0), [1.0, 2.0, 3.0]))
    >>> found = encoding_model(x, x @ np.array([[1.0], [2.0], [-1.0]]), config=EncodingModelConfig(n_permutations=20))
    >>> round(found.score.value, 6), found.weights.round(3).ravel().tolist()
    (1.0, [1.0, 2.0, -1.0])
    """
    _check(x, y, ceiling)
    n, t, draws = len_rows(x), y.shape[1], config.draws
    given = predictors(x, config.bands)
    folds = assign_folds(n, group, config.n_folds, seed=config.seed)
    picked = draws.targets(t)
    sums = fold_sums(given.rows, SideBySide([y, Permuted(y[:, picked], draws.orders(n, group))]), folds)
    found = nested_ridge(sums, given.bands, config.penalties, n_scales=config.n_band_scales, n_kept=t)
    r2, r = found.scores.r2[:t], found.scores.correlation[:t]
    if np.all(np.isnan(r2)):
        raise DegenerateInputError("y must vary over its rows. Got only constant targets.")
    units = unit_sums(given.rows, y, sums, found.weights, folds, draws.unit_of_row(n, group))
    evidence = _Evidence.of(found, units, picked, t, draws)
    model = fit_all(sums, given.bands, found.scale, np.array(config.penalties)[found.penalty])
    p_values = pooled_p_values(r2, evidence.null_r2)
    q_values = false_discovery_rate(p_values)
    weights = given.weights(model.weights)
    divisor = _usable(ceiling, t, config.least_ceiling)
    return EncodingModelResult(
        score=evidence.of_r2(r2, np.ones(t)),
        correlation=evidence.of_r(r, np.ones(t)),
        ceiled_score=evidence.of_r2(r2, divisor),
        ceiled_correlation=evidence.of_r(r, np.sqrt(divisor)),
        n_samples=n,
        n_targets=t,
        n_inference=len(picked),
        n_drawn=units.sums.shape[1],
        n_predicted=int(np.sum(q_values <= 1 - config.level)),
        n_at_edge=int(np.sum((found.penalty == 0) | (found.penalty == len(config.penalties) - 1))),
        n_constant=int(np.sum(np.isnan(r2))),
        n_below_ceiling=int(np.sum(np.isnan(divisor))) if ceiling is not None else 0,
        r2=r2,
        r2_low=evidence.quantile((1 - config.level) / 2),
        r2_high=evidence.quantile((1 + config.level) / 2),
        r=r,
        ceiled_r2=r2 / divisor,
        p_values=p_values,
        q_values=q_values,
        band_r2=found.split,
        band_penalty=model.penalty,
        fold_penalty=np.array(config.penalties)[found.fold_penalty],
        penalties=np.array(config.penalties),
        path=found.path[:, ~np.isnan(r2)].mean(axis=1),
        weights=weights,
        intercept=model.intercept - given.centre @ weights,
    )


def _check(x: Rows, y: np.ndarray, ceiling: np.ndarray | None) -> None:
    if len(x.shape) != 2 or y.ndim != 2 or x.shape[0] != y.shape[0] or 0 in (*x.shape, *y.shape):
        raise ShapeError(f"x and y must be (sample, ...) with the same samples. Got {x.shape} and {y.shape}.")
    if ceiling is not None and ceiling.shape != (y.shape[1],):
        raise ShapeError(f"ceiling must have one number per target, {y.shape[1]}. Got shape {ceiling.shape}.")


def _usable(ceiling: np.ndarray | None, n_targets: int, least: float) -> np.ndarray:
    """Return the ceilings, NaN where they are too low or unknown."""
    if ceiling is None:
        return np.full(n_targets, np.nan)
    return np.where(ceiling >= least, ceiling, np.nan)


@dataclass(frozen=True, slots=True)
class _Evidence:
    """Bootstrap draws of every target's scores, and null draws of the picked targets'."""

    r2: np.ndarray
    r: np.ndarray
    null_r2: np.ndarray
    null_r: np.ndarray
    picked: np.ndarray
    level: float

    @classmethod
    def of(cls, found: Nested, units: UnitSums, picked: np.ndarray, n_targets: int, draws: Draws) -> "_Evidence":
        constant = np.where(np.isnan(found.scores.r2[:n_targets]), np.nan, 0.0)
        drawn = units.draw(draws.counts(units.sums.shape[1]))
        null_r2, null_r = (
            each[n_targets:].reshape(-1, len(picked)) for each in (found.scores.r2, found.scores.correlation)
        )
        return cls(
            np.concatenate([each.r2 for each in drawn]) + constant,
            np.concatenate([each.correlation for each in drawn]) + constant,
            null_r2,
            null_r,
            picked,
            draws.level,
        )

    def of_r2(self, r2: np.ndarray, divisor: np.ndarray) -> Estimate:
        return self._estimate(r2 / divisor, self.r2 / divisor, self.null_r2 / divisor[self.picked])

    def of_r(self, r: np.ndarray, divisor: np.ndarray) -> Estimate:
        return self._estimate(r / divisor, self.r / divisor, self.null_r / divisor[self.picked])

    def _estimate(self, values: np.ndarray, draws: np.ndarray, null: np.ndarray) -> Estimate:
        return summarised(values, draws, null, null_of=values[self.picked], level=self.level)

    def quantile(self, at: float) -> np.ndarray:
        if len(self.r2) == 0:
            return np.full(self.r2.shape[1], np.nan)
        return np.quantile(self.r2, at, axis=0)
