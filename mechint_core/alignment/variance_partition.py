"""Variance partition: what each of two or three groups of predictors explains alone, and what they share.

    f(U)      held-out R² of the model on the groups U, each fitted anew
    part(T)   Σ_{S ⊆ T} (-1)^{|T| - |S|} (f(all) - f(all without S))      what exactly the groups T have in common

    two groups: unique A = f(AB) - f(B),  shared = f(A) + f(B) - f(AB)

The parts add up to f(all), target by target and for their mean. On held-out rows a part may be below 0: a group that
adds nothing costs a little, and one group can hide what another knows (suppression).

Null of a unique part: y is what the other groups predict, plus what they leave over with its rows in another order
(Freedman and Lane), so the others keep what they explain. Null of the rest: the rows of y in another order.

Source: [@borcard1992], [@deheer2017] (recordings), [@freedman1983] (null), [@duprelatour2022] (banded).
Cost: that of `encoding_model` for each of the 3 or 7 sets of groups.
Chunked over: samples.
"""

import math
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Annotated, ClassVar

import numpy as np
from jaxtyping import Float, Int

from mechint_core.alignment._fold_sums import FoldSums, Permuted, Predictors, assign_folds, fold_sums, predictors
from mechint_core.alignment._ridge import Nested, check_penalties, fit_all, nested_ridge, predict_all
from mechint_core.alignment._row_units import Draws, Order, pooled_p_values, unit_sums
from mechint_core.alignment.encoding_model import PENALTIES
from mechint_core.errors import ConfigurationError, DegenerateInputError, ShapeError
from mechint_core.figure import Bars, Figure
from mechint_core.kernels.false_discovery import false_discovery_rate
from mechint_core.kernels.resampling import p_value, percentile_interval
from mechint_core.kernels.row_views import SideBySide
from mechint_core.parallel import Rows, len_rows
from mechint_core.result import NAN, Estimate, Result

Set = tuple[int, ...]
"""The numbers of some groups, ascending."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VariancePartitionConfig:
    """How to split what groups of predictors explain."""

    bands: tuple[int, ...] = ()
    """Widths of the two or three consecutive groups of columns of x."""
    n_folds: int = 5
    """Parts of the rows that are predicted in turn; inside each training set the others serve to choose penalties."""
    penalties: tuple[float, ...] = PENALTIES
    """Penalties to choose from, in units of the mean squared length of a centred row; rising."""
    n_band_scales: int = 8
    """Combinations of the groups' scales to choose from, besides equal ones and each group alone."""
    block: int = 1
    """Consecutive rows that belong together: for time series, as many as the noise remembers."""
    order: Order = "permuted"
    """The null's rows: blocks permuted, or the whole series turned, which leaves its time course as it is."""
    n_inference: int = 10
    """Targets, drawn at random, whose null is found; their null parts are one pool for all."""
    n_permutations: int = 100
    """Other orders of the rows, each fitted anew."""
    n_bootstrap: int = 500
    """Bootstrap draws of rows."""
    level: float = 0.95
    """Confidence of the intervals."""
    seed: int = 0
    """Names the draws."""

    def __post_init__(self) -> None:
        check_penalties(self.penalties)
        if self.bands and not (2 <= len(self.bands) <= 3 and min(self.bands) >= 1):
            raise ConfigurationError(f"bands must be 2 or 3 widths of at least 1. Got {self.bands}.")
        if self.n_folds < 3:
            raise ConfigurationError(f"n_folds must be at least 3: outer, inner and training. Got {self.n_folds}.")
        if self.n_band_scales < 0:
            raise ConfigurationError(f"n_band_scales must be at least 0. Got {self.n_band_scales}.")
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
class VariancePartitionResult(Result):
    """What groups of predictors explain alone and together."""

    technique: ClassVar[str] = "variance_partition"
    evidence: ClassVar[str] = (
        "The intervals are a bootstrap over held-out rows for these targets; the null of a unique part reorders the "
        "rows of what the other groups leave over (Freedman-Lane), that of the rest the rows of the targets."
    )
    figures: ClassVar[tuple[Figure, ...]] = (
        Bars(
            values="explained",
            labels="parts",
            low="explained_low",
            high="explained_high",
            null="explained_null",
            title="What the groups of predictors explain",
            value_label="share of variance",
        ),
    )

    joint: Estimate
    """Mean over targets of the held-out R² of all groups together."""
    unique_first: Estimate
    """What only the first group explains."""
    unique_second: Estimate
    unique_third: Estimate
    """NaN with two groups."""
    shared: Estimate
    """What two groups or more explain: `joint` without the unique parts."""
    n_samples: int
    n_targets: int
    n_inference: int
    """Targets whose null was found."""
    n_constant: int
    """Targets that do not vary: they are left out."""
    parts: Annotated[tuple[str, ...], "part"]
    """Groups by number, from 0: `0` is unique to the first, `0 1` common to the first two and no other."""
    explained: Float[np.ndarray, "part"]
    """Mean over targets of each part; they add up to `joint`."""
    explained_low: Float[np.ndarray, "part"]
    explained_high: Float[np.ndarray, "part"]
    explained_null: Float[np.ndarray, "part"]
    explained_p: Float[np.ndarray, "part"]
    part_r2: Float[np.ndarray, "part target"]
    """Each part of each target; they add up to the R² of all groups."""
    spaces: Annotated[tuple[str, ...], "space"]
    """The sets of groups that were fitted."""
    space_r2: Float[np.ndarray, "space target"]
    """Held-out R² of each set."""
    unique_p: Float[np.ndarray, "band target"]
    unique_q: Float[np.ndarray, "band target"]
    """False discovery rate over all groups and targets."""

    def reading(self) -> str:
        """Say what the groups explain together, and which of them adds something of its own."""
        joint = self.joint
        text = f"Together the groups explain {joint.value:.3f}"
        if not math.isnan(joint.low):
            text += f" [{joint.low:.3f}, {joint.high:.3f}]"
        unique = [self.unique_first, self.unique_second, self.unique_third]
        said = [f"group {i} alone {each.value:.3f}" for i, each in enumerate(unique) if not math.isnan(each.value)]
        text += f" of the variance: {', '.join(said)}, shared {self.shared.value:.3f}."
        if math.isnan(joint.p_value):
            return f"{text} No null was drawn, so nothing says what unrelated groups would give."
        adds = [str(i) for i, each in enumerate(unique) if each.p_value <= 1 - each.level]
        if not adds:
            return f"{text} No group adds anything to the others that can be told from chance."
        return f"{text} More than chance is added to the others by group {' and '.join(adds)}."


def variance_partition(
    x: Float[Rows, "sample unit"],
    y: Float[np.ndarray, "sample target"],
    group: Int[np.ndarray, "sample"] | None = None,
    *,
    config: VariancePartitionConfig = VariancePartitionConfig(),
) -> VariancePartitionResult:
    """Ask what each group of predictors explains of recorded responses that the other groups do not.

    Use it where two models, or a model and a nuisance (luminance, word rate), both predict responses. It assumes what
    `encoding_model` does. A shared part cannot be assigned to either group: it says that both know it, not who passed
    it on; and a unique part may be due to a better shaped, not a truer, description of the same thing.

    Parameters
    ----------
    x
        The groups of predictors side by side, read block by block; whole where a group is wider than there are rows.
    y
        Targets, held in memory.
    group
        What each row belongs to (session, run, film): never split between folds.
    config
        The widths of the groups, folds, penalties, and how interval and null are found.

    Returns
    -------
    VariancePartitionResult
        Shares of variance; `joint` is at most 1, and parts that are not there scatter around 0, mostly below.

    Raises
    ------
    ShapeError
        If x and y differ in their rows, `group` does not fit them, or there are too few rows or groups for the folds.
    ConfigurationError
        If `bands` is not two or three widths that add up to the columns of x.
    DegenerateInputError
        If a system holds NaN or infinity, a group is constant over a training set, or every target is constant.

    Notes
    -----
    Every set of groups is a banded ridge of its own, so a group of noise is turned down and not left to spoil the rest.
    The parts are means over targets, not medians, because means add up.

    References
    ----------
    [@borcard1992]
    [@deheer2017]
    [@freedman1983]
    [@duprelatour2022]

    Examples
    --------
    >>> x = np.sin(np.outer(np.arange(80.0), [1.0, 2.0, 3.0]))
    >>> y = x @ np.array([[2.0], [1.0], [0.0]])
    >>> config = VariancePartitionConfig(bands=(1, 2), n_permutations=20)
    >>> found = variance_partition(x, y, config=config)
    >>> round(found.joint.value, 4), round(found.unique_first.value, 1), found.parts
    (1.0, 0.8, ('0', '1', '0 1'))
    """
    if len(x.shape) != 2 or y.ndim != 2 or x.shape[0] != y.shape[0] or 0 in (*x.shape, *y.shape):
        raise ShapeError(f"x and y must be (sample, ...) with the same samples. Got {x.shape} and {y.shape}.")
    if not config.bands:
        raise ConfigurationError("bands must be the widths of 2 or 3 groups of columns of x. Got none.")
    n, t, draws = len_rows(x), y.shape[1], config.draws
    given = predictors(x, config.bands)
    folds = assign_folds(n, group, config.n_folds, seed=config.seed)
    picked, orders = draws.targets(t), draws.orders(n, group)
    spaces = _subsets(len(config.bands))
    problem = _Problem(given, spaces, config)
    sums = fold_sums(given.rows, y, folds)
    fits = [problem.fit(sums, space, t) for space in spaces]
    space_r2 = np.stack([fit.scores.r2 for fit in fits])
    if np.all(np.isnan(space_r2)):
        raise DegenerateInputError("y must vary over its rows. Got only constant targets.")
    left_over = problem.left_over(sums, fits, y, picked)
    null_y = [Permuted(y[:, picked], orders)] + [Permuted(y[:, picked] - each, orders, each) for each in left_over]
    null = problem.null(fold_sums(given.rows, SideBySide(null_y), folds), len(picked))
    units = draws.unit_of_row(n, group)
    counts = draws.counts(int(units.max()) + 1)
    drawn = np.stack(
        [
            np.concatenate([each.r2 for each in unit_sums(given.rows, y, sums, weights, folds, units).draw(counts)])
            for weights in (problem.padded(fit.weights, space) for fit, space in zip(fits, spaces, strict=True))
        ]
    )
    return _answer(space_r2, drawn, null, picked, n, spaces, draws)


def _subsets(n_bands: int) -> list[Set]:
    """Return every set of groups but the empty one, the smallest first."""
    return [each for size in range(1, n_bands + 1) for each in combinations(range(n_bands), size)]


def parts_of(sets: list[Set]) -> Float[np.ndarray, "part space"]:
    """Return what turns the R² of each set of groups into the part that exactly the groups of a set have in common."""
    everything, column = sets[-1], {each: i for i, each in enumerate(sets)}
    matrix = np.zeros((len(sets), len(sets)))
    for i, part in enumerate(sets):
        for size in range(len(part) + 1):
            for taken in combinations(part, size):
                sign = (-1) ** (len(part) - size)
                matrix[i, column[everything]] += sign
                rest = tuple(each for each in everything if each not in taken)
                if rest:
                    matrix[i, column[rest]] -= sign
    return matrix


@dataclass(frozen=True, slots=True)
class _Problem:
    """The predictors, and the sets of groups to fit."""

    given: Predictors
    spaces: list[Set]
    config: VariancePartitionConfig

    def columns(self, space: Set) -> np.ndarray:
        return np.concatenate([self.given.bands[each] for each in space])

    def bands(self, space: Set) -> list[np.ndarray]:
        """Return the column numbers of each group within the set."""
        edges = np.cumsum([0, *(self.given.widths[each] for each in space)])
        return [np.arange(a, b) for a, b in pairwise(edges)]

    def fit(self, sums: FoldSums, space: Set, n_kept: int) -> Nested:
        """Fit one set of groups."""
        some, n_scales = sums.of_columns(self.columns(space)), self.config.n_band_scales
        return nested_ridge(some, self.bands(space), self.config.penalties, n_scales=n_scales, n_kept=n_kept)

    def padded(self, weights: np.ndarray, space: Set) -> np.ndarray:
        """Give the columns outside the set a weight of 0."""
        every = np.zeros((len(weights), sum(self.given.widths), weights.shape[2]))
        every[:, self.columns(space)] = weights
        return every

    def left_over(self, sums: FoldSums, fits: list[Nested], y: np.ndarray, picked: np.ndarray) -> list[np.ndarray]:
        """Return, per group, what the model of the other groups, of all rows, predicts of the picked targets."""
        everything, found = self.spaces[-1], list[np.ndarray]()
        for group in everything:
            others = tuple(each for each in everything if each != group)
            fit, columns = fits[self.spaces.index(others)], self.columns(others)
            penalty = np.array(self.config.penalties)[fit.penalty]
            model = fit_all(sums.of_columns(columns), self.bands(others), fit.scale, penalty)
            weights = np.zeros((sum(self.given.widths), y.shape[1]))
            weights[columns] = model.weights
            found.append(predict_all(self.given.rows, weights[:, picked], model.intercept[picked]))
        return found

    def null(self, sums: FoldSums, n_picked: int) -> np.ndarray:
        """Return the R² of every set for every null: (null, space, draw, target)."""
        r2 = np.stack([self.fit(sums, space, 0).scores.r2 for space in self.spaces])
        n_nulls = 1 + len(self.spaces[-1])
        return np.moveaxis(r2.reshape(len(self.spaces), n_nulls, -1, n_picked), 0, 1)


def _answer(
    space_r2: np.ndarray,
    drawn: np.ndarray,
    null: np.ndarray,
    picked: np.ndarray,
    n: int,
    spaces: list[Set],
    draws: Draws,
) -> VariancePartitionResult:
    matrix, n_bands = parts_of(spaces), len(spaces[-1])
    usable = np.isfinite(space_r2[-1])
    shown, seen = np.flatnonzero(usable), usable[picked]
    part_r2 = matrix @ space_r2
    of_draws = np.einsum("ps,sdt->pdt", matrix, drawn)[..., shown].mean(axis=2)
    # the first null is that of y as a whole, the others one per group
    of_null = np.stack([np.einsum("s,sdt->dt", row, null[i + 1 if i < n_bands else 0]) for i, row in enumerate(matrix)])
    of_picked = of_null[..., seen].mean(axis=2) if seen.any() else of_null[..., 0] * NAN

    def estimate(mine: np.ndarray, boot: np.ndarray, chance: np.ndarray) -> Estimate:
        low, high = percentile_interval(boot, draws.level)
        p = p_value(float(mine[picked[seen]].mean()), chance) if seen.any() else NAN
        typical = float(chance.mean()) if len(chance) else NAN
        return Estimate(float(mine[shown].mean()), low, high, typical, p, draws.level)

    each = [estimate(*one) for one in zip(part_r2, of_draws, of_picked, strict=True)]
    whole = null[0][..., seen].mean(axis=2) if seen.any() else null[0][..., 0] * NAN
    joint = estimate(space_r2[-1], drawn[-1][:, shown].mean(axis=1), whole[-1])
    common = matrix[n_bands:].sum(axis=0)
    shared = estimate(common @ space_r2, of_draws[n_bands:].sum(axis=0), common @ whole)
    unique_p = np.stack([pooled_p_values(part_r2[i], of_null[i]) for i in range(n_bands)])
    return VariancePartitionResult(
        joint=joint,
        unique_first=each[0],
        unique_second=each[1],
        unique_third=each[2] if n_bands == 3 else Estimate(NAN, level=draws.level),
        shared=shared,
        n_samples=n,
        n_targets=space_r2.shape[1],
        n_inference=int(seen.sum()),
        n_constant=int(np.sum(~usable)),
        parts=tuple(" ".join(map(str, one)) for one in spaces),
        explained=np.array([one.value for one in each]),
        explained_low=np.array([one.low for one in each]),
        explained_high=np.array([one.high for one in each]),
        explained_null=np.array([one.null for one in each]),
        explained_p=np.array([one.p_value for one in each]),
        part_r2=part_r2,
        spaces=tuple(" ".join(map(str, one)) for one in spaces),
        space_r2=space_r2,
        unique_p=unique_p,
        unique_q=false_discovery_rate(unique_p),
    )
