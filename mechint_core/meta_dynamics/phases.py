"""Phases: the stretches into which training falls, and the change points between them.

    minimise over K and t_1 < ... < t_K     sum_k sum_{i in segment k} ||y_i - mean_k||²  +  K penalty d log n

with y_i the d standardised measures at checkpoint i of n. The minimum is exact (optimal partitioning by dynamic
programming). Standardised, the total is n d: a change point must explain penalty log n / n of all variance.

Whether there is any change point is asked of the whole procedure: the reduction of the cost is compared with what the
same search finds where nothing changes. If that null is not left, there is one phase. Of several, the weakest
boundaries are given up until each is a change within its two neighbouring phases.

Source: [@jackson2005] (optimal partitioning), [@yao1988] (penalty), [@matteson2014] (permutation tests).
Cost: (n_null + n_bootstrap) searches of n² (d + K).
Chunked over: draws.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, ClassVar, Literal

import numpy as np
from jaxtyping import Float, Int

from mechint_core.errors import ConfigurationError, DegenerateInputError, ShapeError
from mechint_core.figure import Curve, Figure, Matrix
from mechint_core.kernels.resampling import block_indices, p_value
from mechint_core.meta_dynamics._checkpoints import check_steps
from mechint_core.meta_dynamics._partition import chunks, partition, trace
from mechint_core.random import generator
from mechint_core.result import Estimate, Result

Noise = Literal["exchangeable", "autoregressive"]
"""What the measures do where nothing changes: no memory at all, or AR(1) around a constant mean."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PhasesConfig:
    """How to cut training into phases."""

    names: tuple[str, ...] = ()
    """One name per measure; by default they are numbered."""
    logarithmic: tuple[str, ...] = ()
    """Names of measures to take the logarithm of first, such as losses that fall by orders of magnitude."""
    penalty: float = 0.5
    """Cost of one more change point, in units of d log n."""
    max_boundaries: int = 8
    """No more change points than this."""
    least_checkpoints: int = 2
    """Checkpoints in the shortest phase."""
    noise: Noise = "exchangeable"
    """The null that decides whether anything changes; "autoregressive" is stricter."""
    alpha: float = 0.05
    """Level of that test, and of the test of each boundary."""
    n_null: int = 199
    """Searches where nothing changes; each boundary is tested with as many."""
    n_bootstrap: int = 200
    """Searches in resampled residuals, for the intervals of the boundaries."""
    seed: int = 0
    """Of the draws."""

    def __post_init__(self) -> None:
        if not self.penalty > 0 or not 0 < self.alpha < 1:
            raise ConfigurationError(f"penalty must be above 0 and alpha in (0, 1). Got {self.penalty}, {self.alpha}.")
        if self.max_boundaries < 1 or self.least_checkpoints < 1:
            raise ConfigurationError(
                "max_boundaries and least_checkpoints must be at least 1. "
                f"Got {self.max_boundaries}, {self.least_checkpoints}."
            )
        if self.noise not in ("exchangeable", "autoregressive"):
            raise ConfigurationError(f"noise must be 'exchangeable' or 'autoregressive'. Got {self.noise!r}.")
        if self.n_null < 19 or self.n_bootstrap < 2:
            raise ConfigurationError(
                f"n_null must be at least 19 and n_bootstrap at least 2. Got {self.n_null}, {self.n_bootstrap}."
            )
        if not set(self.logarithmic) <= set(self.names):
            raise ConfigurationError(f"logarithmic must be among the names {self.names}. Got {self.logarithmic}.")


@dataclass(frozen=True, slots=True)
class Phases(Result):
    """The change points of training, and the measures' means in the phases between them."""

    technique: ClassVar[str] = "phases"
    evidence: ClassVar[str] = (
        "95 % intervals of the boundaries from resampled residuals (blocks of a few checkpoints); nulls: the same "
        "search in checkpoints in random order, and in AR(1) noise. A steady trend is a change too."
    )
    figures: ClassVar[tuple[Figure, ...]] = (
        Curve(
            y=("main_component",),
            title="Main direction of change, and the change points",
            x="step",
            x_label="step",
            y_label="standard deviations",
            log_x=True,
            marks="boundary",
        ),
        Matrix(
            values="phase_mean",
            title="Mean of each measure in each phase (standardised)",
            x="phase_name",
            y="names",
            value_label="standard deviations",
            diverging=True,
        ),
    )

    explained: Estimate
    """Share of the measures' variance between phases; the null is what the search explains where nothing changes."""
    explained_beyond_memory: Estimate
    """The same share against noise that remembers: AR(1), with each measure's own memory."""
    n_phases: int
    names: Annotated[tuple[str, ...], "measure"]
    phase_name: Annotated[tuple[str, ...], "phase"]
    """The steps each phase spans."""
    step: Int[np.ndarray, "checkpoint"]
    boundary: Int[np.ndarray, "boundary"]
    """First step of each new phase."""
    boundary_low: Float[np.ndarray, "boundary"]
    boundary_high: Float[np.ndarray, "boundary"]
    boundary_p_value: Float[np.ndarray, "boundary"]
    """Of each boundary alone: a change within its two neighbouring phases taken together."""
    phase: Int[np.ndarray, "checkpoint"]
    """Number of the phase each checkpoint is in, from 0."""
    phase_mean: Float[np.ndarray, "measure phase"]
    standardised: Float[np.ndarray, "measure checkpoint"]
    main_component: Float[np.ndarray, "checkpoint"]

    def reading(self) -> str:
        """Say how many phases there are and where they meet."""
        if self.n_phases == 1:
            return f"No phases: the measures do not change more than by chance (p = {self.explained.p_value:.2g})."
        at = zip(self.boundary, self.boundary_low, self.boundary_high, self.boundary_p_value, strict=True)
        named = ", ".join(f"{step} [{low:.0f} to {high:.0f}], p = {p:.2g}" for step, low, high, p in at)
        return (
            f"Training falls into {self.n_phases} phases that explain {self.explained.value:.0%} of the measures' "
            f"variance (by chance {self.explained.null:.0%}, p = {self.explained.p_value:.2g}; in noise with memory "
            f"{self.explained_beyond_memory.null:.0%}, p = {self.explained_beyond_memory.p_value:.2g}). "
            f"They meet at step {named}."
        )


def phases(
    measures: Float[np.ndarray, "checkpoint measure"],
    step: Int[np.ndarray, "checkpoint"],
    *,
    config: PhasesConfig = PhasesConfig(),
) -> Phases:
    """Cut training into phases, and find the change points between them.

    Use it on a few measures followed through training (losses, similarity to the end, progress measures). It looks for
    shifts of the mean over checkpoints, wherever they stand in time: sample checkpoints densely (in the logarithm of
    the step) where something short may happen. A slow trend is cut into steps; the p-values under exchangeable noise
    then say that time matters, not that the change was sudden. Measures that drift by themselves call for
    `noise="autoregressive"`, which is stricter.

    Parameters
    ----------
    measures
        One row per checkpoint. A measure that never changes is kept but says nothing.
    step
        Training step of each checkpoint, increasing.
    config
        Names, penalty, null, number of draws, and their seed.

    Returns
    -------
    Phases
        Boundaries are the first steps of the new phases, with intervals in steps. `explained` lies in [0, 1], and is 0
        for a single phase.

    Raises
    ------
    ShapeError
        If the measures are not (checkpoint, measure), or there are fewer than 6 checkpoints, or names and measures
        differ in number.
    DegenerateInputError
        If a measure is not finite, none changes, one to be taken the logarithm of is not above 0, or the steps do not
        increase.

    Notes
    -----
    The p-value of the whole compares the reduction of the penalised cost with its null, so that at level alpha the
    chance of a phase too many, where there are none, is alpha. Intervals fix the number of change points and resample
    the residuals in blocks of n^(1/3) checkpoints.

    References
    ----------
    [@jackson2005]
    [@yao1988]
    [@matteson2014]

    Examples
    --------
    >>> y = np.repeat([0.0, 5.0, 1.0], 8)[:, None]
    >>> result = phases(y, np.arange(24))
    >>> result.boundary.tolist(), round(result.explained.value, 6)
    ([8, 16], 1.0)
    """
    y = _standardise(measures, step, config)
    saved, found, _ = _search(y[None], config)
    nulls = {noise: _null(y, float(saved[0]), noise, config) for noise in ("exchangeable", "autoregressive")}
    by_chance, p = nulls[config.noise]
    edges, p_values = _certain(y, len(found[0]) if p <= config.alpha else 0, config)
    mean = np.concatenate([np.tile(y[a:b].mean(axis=0), (b - a, 1)) for a, b in pairwise(edges)])
    low, high = _intervals(y, mean, len(edges) - 2, config)
    explained = float(np.square(mean).sum() / np.square(y).sum()) if len(edges) > 2 else 0.0
    return Phases(
        explained=Estimate(explained, null=by_chance, p_value=p),
        explained_beyond_memory=Estimate(
            explained, null=nulls["autoregressive"][0], p_value=nulls["autoregressive"][1]
        ),
        n_phases=len(edges) - 1,
        names=config.names or tuple(f"measure {k}" for k in range(y.shape[1])),
        phase_name=tuple(f"{step[a]} to {step[b - 1]}" for a, b in pairwise(edges)),
        step=step,
        boundary=step[edges[1:-1]],
        boundary_low=np.interp(low, np.arange(len(y)), step),
        boundary_high=np.interp(high, np.arange(len(y)), step),
        boundary_p_value=p_values,
        phase=np.repeat(np.arange(len(edges) - 1), np.diff(edges)),
        phase_mean=mean[edges[:-1]].T.copy(),
        standardised=y.T.copy(),
        main_component=_main_component(y),
    )


def _standardise(
    measures: Float[np.ndarray, "..."], step: Int[np.ndarray, "..."], config: PhasesConfig
) -> Float[np.ndarray, "checkpoint measure"]:
    """Check the measures; return them with mean 0 and variance 1, those that never change as 0."""
    if measures.ndim != 2 or measures.shape[1] < 1:
        raise ShapeError(f"measures must be (checkpoint, measure). Got shape {measures.shape}.")
    check_steps(step, len(measures), least=6)
    if config.names and len(config.names) != measures.shape[1]:
        raise ShapeError(f"names must be one per measure, {measures.shape[1]}. Got {config.names}.")
    if not np.all(np.isfinite(measures)):
        raise DegenerateInputError("measures must be finite. Got NaN or infinity.")
    y = measures.astype(np.float64)
    logarithmic = [name in config.logarithmic for name in config.names] or [False] * y.shape[1]
    if np.any(y[:, logarithmic] <= 0):
        raise DegenerateInputError(f"measures must be above 0 to take their logarithm ({config.logarithmic}).")
    y[:, logarithmic] = np.log(y[:, logarithmic])
    y -= y.mean(axis=0)
    spread = y.std(axis=0)
    changing = spread > 1e-12 * np.maximum(1.0, np.abs(measures).max(axis=0))
    if not changing.any():
        raise DegenerateInputError("measures must change during training. Got constants.")
    return np.where(changing, y / np.where(changing, spread, 1.0), 0.0)


def _search(
    y: Float[np.ndarray, "draw checkpoint measure"], config: PhasesConfig
) -> tuple[Float[np.ndarray, "draw"], list[tuple[int, ...]], float]:
    """Return, for each draw, what the best change points save and where they are; and their mean explained share."""
    n, most = y.shape[1], min(config.max_boundaries, y.shape[1] // config.least_checkpoints - 1)
    n_changing = int(np.sum(np.any(y[0] != 0, axis=0)))
    price = config.penalty * n_changing * np.log(n) * np.arange(most + 1)
    saved, explained, cuts = [], [], []
    for draws in chunks(y):
        costs, places = partition(draws, most, config.least_checkpoints)
        best = np.argmin(costs + price, axis=1)
        chosen = np.take_along_axis(costs + price, best[:, None], axis=1)[:, 0]
        saved.append(costs[:, 0] - chosen)
        explained.append(1 - np.take_along_axis(costs, best[:, None], axis=1)[:, 0] / costs[:, 0])
        cuts += [trace(places[:, draw], int(k), n) for draw, k in enumerate(best)]
    return np.concatenate(saved), cuts, float(np.concatenate(explained).mean())


def _null(
    y: Float[np.ndarray, "checkpoint measure"], saved: float, noise: Noise, config: PhasesConfig
) -> tuple[float, float]:
    """Return what the search explains in this noise, and the chance that it saves as much there."""
    drawn, _, explained = _search(_unchanging(y, noise, noise, config), config)
    return explained, p_value(saved, drawn)


def _unchanging(
    y: Float[np.ndarray, "checkpoint measure"], noise: Noise, stream: str, config: PhasesConfig
) -> Float[np.ndarray, "draw checkpoint measure"]:
    """Return draws in which nothing changes: the checkpoints in random order, or AR(1) noise like that of `y`."""
    rng = generator(config.seed, stream)
    n = len(y)
    if noise == "exchangeable":
        return y[np.argsort(rng.random((config.n_null, n)), axis=1)]
    y = y - y.mean(axis=0)
    lagged = np.sum(y[1:] * y[:-1], axis=0) / np.maximum(np.sum(np.square(y), axis=0), 1e-300)
    memory = np.clip(lagged + (1 + 3 * lagged) / n, 0.0, 0.99)  # [@kendall1954]: short series look forgetful
    shocks = y[1:] - memory * y[:-1]
    drawn = (shocks - shocks.mean(axis=0))[rng.integers(0, n - 1, (config.n_null, 2 * n))]
    for t in range(1, 2 * n):
        drawn[:, t] += memory * drawn[:, t - 1]
    drawn = drawn[:, n:] - drawn[:, n:].mean(axis=1, keepdims=True)
    spread = drawn.std(axis=1, keepdims=True)
    return np.where(spread > 0, drawn / np.where(spread > 0, spread, 1.0), 0.0) * y.std(axis=0)


def _intervals(
    y: Float[np.ndarray, "checkpoint measure"],
    mean: Float[np.ndarray, "checkpoint measure"],
    n_cuts: int,
    config: PhasesConfig,
) -> tuple[Float[np.ndarray, "boundary"], Float[np.ndarray, "boundary"]]:
    """Return where the change points fall when the residuals are resampled in blocks."""
    if n_cuts == 0:
        return np.zeros(0), np.zeros(0)
    n = len(y)
    residual = (y - mean) * np.sqrt(n / (n - n_cuts - 1))  # the fit took one mean per phase out of them
    rng = generator(config.seed, "bootstrap")
    drawn = mean + residual[block_indices(n, round(n ** (1 / 3)), n_draws=config.n_bootstrap, rng=rng)]
    cuts: list[tuple[int, ...]] = []
    for draws in chunks(drawn):
        _, places = partition(draws, n_cuts, config.least_checkpoints)
        cuts += [trace(places[:, draw], n_cuts, n) for draw in range(len(draws))]
    low, high = np.quantile(np.array(cuts), [0.025, 0.975], axis=0)
    return low, high


def _certain(
    y: Float[np.ndarray, "checkpoint measure"], n_cuts: int, config: PhasesConfig
) -> tuple[list[int], Float[np.ndarray, "boundary"]]:
    """Return the edges of the most phases, at most `n_cuts` + 1, all of whose boundaries are changes."""
    _, places = partition(y[None], n_cuts, config.least_checkpoints)
    while True:
        edges = [0, *trace(places[:, 0], n_cuts, len(y)), len(y)]
        p_values = _boundary_p_values(y, edges, config)
        # A single boundary was tested already, and by more than this: the whole search.
        if n_cuts <= 1 or np.all(p_values <= config.alpha):
            return edges, p_values
        n_cuts -= 1


def _boundary_p_values(
    y: Float[np.ndarray, "checkpoint measure"], edges: list[int], config: PhasesConfig
) -> Float[np.ndarray, "boundary"]:
    """Test each boundary by the best single split of its two neighbouring phases taken together."""
    p_values = np.zeros(len(edges) - 2)
    for k, (before, after) in enumerate(zip(edges, edges[2:], strict=False)):
        around = y[before:after]
        null = _unchanging(around, config.noise, f"boundary {k}", config)
        p_values[k] = p_value(float(_best_split(around[None], config)[0]), _best_split(null, config))
    return p_values


def _best_split(y: Float[np.ndarray, "draw checkpoint measure"], config: PhasesConfig) -> Float[np.ndarray, "draw"]:
    """Return the share of the variance that the best single change point explains."""
    costs = np.concatenate([partition(draws, 1, config.least_checkpoints)[0] for draws in chunks(y)])
    return 1 - costs[:, 1] / np.maximum(costs[:, 0], 1e-300)


def _main_component(y: Float[np.ndarray, "checkpoint measure"]) -> Float[np.ndarray, "checkpoint"]:
    """Return the first principal component of the measures, turned so that it rises through training."""
    left, size, _ = np.linalg.svd(y, full_matrices=False)
    component = left[:, 0] * size[0] / np.sqrt(y.shape[1])
    return component if component[-1] >= component[0] else -component
