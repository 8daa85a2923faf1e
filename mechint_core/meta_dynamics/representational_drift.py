"""Representational drift: when during training a representation moves, and how far.

    theta(s, t) = arccos max_Q <X_s, X_t Q> = arccos ||X_sᵀ X_t||_*      Q orthogonal; X centred, of Frobenius norm 1

the angle that is left after the best rotation: 0 for a copy, a rotation, a shift or a rescaling. Over the stretch
between two checkpoints the rate of drift is theta per unit of log(1 + step). The total is the length of the path;
a burst is a window of fixed log-width that holds more of it than those around.

At the best Q the angle depends on the inputs, to first order, only through the sums of <x_i, Q y_i>, ||x_i||² and
||y_i||² (envelope theorem), so a bootstrap over inputs repeats no decomposition.

Source: [@williams2021] (angular Procrustes distance), [@schonemann1966] (the best rotation).
Cost: 2 n p² + 20 p³ per checkpoint.
Chunked over: checkpoints; two are in memory at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Int
from scipy.signal import find_peaks

from mechint_core.errors import ConfigurationError, ShapeError
from mechint_core.figure import Curve, Figure
from mechint_core.kernels.resampling import estimate, p_value
from mechint_core.meta_dynamics._checkpoints import (
    check_activations,
    check_steps,
    log_time,
    resampled_sums,
    standardised,
)
from mechint_core.parallel import Rows
from mechint_core.random import generator
from mechint_core.result import NAN, Estimate, Result

GRID = 400
"""Places tried for a window."""
STILL = 1e-6
"""A path shorter than this (radians) is rounding, not drift."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RepresentationalDriftConfig:
    """How to measure drift and find its bursts."""

    window: float = float(np.log(2))
    """Log-width of a burst; the default is one doubling of the step."""
    prominence: float = 0.1
    """How far the rate must fall beside a burst, as a share of the largest rate."""
    n_bootstrap: int = 200
    """Bootstrap draws of the inputs."""
    n_null: int = 19
    """Random pairings of inputs between the first and the last checkpoint; each costs one decomposition."""
    seed: int = 0
    """Of the draws."""

    def __post_init__(self) -> None:
        if not self.window > 0 or not 0 < self.prominence < 1:
            raise ConfigurationError(
                f"window must be above 0 and prominence in (0, 1). Got {self.window}, {self.prominence}."
            )
        if self.n_bootstrap < 2 or self.n_null < 1:
            raise ConfigurationError(
                f"n_bootstrap must be at least 2 and n_null at least 1. Got {self.n_bootstrap}, {self.n_null}."
            )


@dataclass(frozen=True, slots=True)
class RepresentationalDrift(Result):
    """How far a representation moved between checkpoints, and in which stretches of training."""

    technique: ClassVar[str] = "representational_drift"
    evidence: ClassVar[str] = (
        "95 % intervals over resampled inputs; null of the net drift: inputs of the two checkpoints paired at random; "
        "null of a burst: the same total drift spread evenly over log(1 + step), with the same sampling noise."
    )
    figures: ClassVar[tuple[Figure, ...]] = (
        Curve(
            y=("rate", "unit_rate"),
            title="Drift per unit of log(1 + step)",
            x="step",
            x_label="step",
            y_label="radians",
            log_x=True,
            low="rate_low",
            high="rate_high",
            marks="burst_step",
        ),
    )

    peak_share: Estimate
    """Share of all drift in the strongest burst; the null is what the busiest window holds when drift is even."""
    peak_step: Estimate
    """Middle of the strongest burst."""
    total: Estimate
    """Length of the path: the sum of all angles, in radians."""
    net: Estimate
    """Angle from the first to the last checkpoint, in radians; at most pi / 2."""
    n_silent_units: int
    """Units constant at some checkpoint; left out of `unit_drift` there."""
    step: Int[np.ndarray, "checkpoint"]
    drift: Float[np.ndarray, "checkpoint"]
    """Angle from the checkpoint before; 0 for the first."""
    drift_low: Float[np.ndarray, "checkpoint"]
    drift_high: Float[np.ndarray, "checkpoint"]
    rate: Float[np.ndarray, "checkpoint"]
    """`drift` per unit of log(1 + step)."""
    rate_low: Float[np.ndarray, "checkpoint"]
    rate_high: Float[np.ndarray, "checkpoint"]
    unit_drift: Float[np.ndarray, "checkpoint"]
    """Mean angle between each unit's responses and its own at the checkpoint before; no rotation is allowed."""
    unit_rate: Float[np.ndarray, "checkpoint"]
    burst_step: Float[np.ndarray, "burst"]
    """Middle of each burst, in order of training."""
    burst_start: Float[np.ndarray, "burst"]
    burst_end: Float[np.ndarray, "burst"]
    burst_share: Float[np.ndarray, "burst"]
    """Share of all drift in its window."""
    burst_p_value: Float[np.ndarray, "burst"]

    def reading(self) -> str:
        """Say where in training the drift is concentrated."""
        if np.isnan(self.peak_share.value):
            return "The representation did not move between checkpoints, up to rotation and scale."
        certain = self.burst_p_value <= 0.05
        if not certain.any():
            return (
                f"The representation moved {self.total.value:.2f} radians in all. No stretch of training holds more of "
                f"it than even drift would (p = {self.peak_share.p_value:.2g})."
            )
        bursts = zip(self.burst_start[certain], self.burst_end[certain], self.burst_share[certain], strict=True)
        named = " and ".join(f"{share:.0%} from step {start:.0f} to {end:.0f}" for start, end, share in bursts)
        return (
            f"The representation moved {self.total.value:.2f} radians in all, concentrated in {int(certain.sum())} "
            f"burst{'s' if certain.sum() > 1 else ''}: {named}. An even drift would put at most "
            f"{self.peak_share.null:.0%} there (strongest burst: p = {self.peak_share.p_value:.2g})."
        )


def representational_drift(
    activations: Sequence[Float[Rows, "sample unit"]],
    step: Int[np.ndarray, "checkpoint"],
    *,
    config: RepresentationalDriftConfig = RepresentationalDriftConfig(),
) -> RepresentationalDrift:
    """Measure when during training a representation moves, and how far.

    Use it to find the stretches of training in which a site is rewritten. It assumes the same inputs at every
    checkpoint, and the same units. It ignores rotation and scale, which cost a linear reader nothing; `unit_drift`
    does not ignore rotation. It cannot see movement there and back between two checkpoints, so it is no finer than
    their spacing and a lower bound.

    Parameters
    ----------
    activations
        One (sample, unit) array per checkpoint, in memory or stored, for the same samples in the same order.
    step
        Training step of each checkpoint, increasing.
    config
        Width of a burst, number of draws, and their seed.

    Returns
    -------
    RepresentationalDrift
        Angles in radians, in [0, pi / 2] (pi / 2: nothing in common). Shares in [0, 1], NaN when nothing moved.

    Raises
    ------
    ShapeError
        If there are fewer than 3 checkpoints, fewer than 3 samples, the arrays do not align, or the units differ.
    DegenerateInputError
        If the steps do not increase, or a checkpoint is constant or not finite.
    ConfigurationError
        If the window is wider than the log-time the checkpoints span.

    Notes
    -----
    A window's drift is the integral of the rate, taken as constant between checkpoints. Bursts are the maxima over
    all places of the window whose prominence is at least `config.prominence` of the largest. The interval of
    `peak_step` is over draws of the strongest window's place.

    References
    ----------
    [@williams2021]
    [@schonemann1966]

    Examples
    --------
    >>> x = np.eye(4)[:, :3]
    >>> turned = x @ np.linalg.qr(np.arange(9.0).reshape(3, 3) + np.eye(3))[0]
    >>> result = representational_drift([x, turned, 3 * x], np.array([0, 1, 2]))
    >>> round(result.total.value, 6)
    0.0
    """
    check_steps(step, len(activations), least=3)
    check_activations(activations)
    if len({each.shape[1] for each in activations}) != 1:
        raise ShapeError(f"units must be the same at every checkpoint. Got {[each.shape[1] for each in activations]}.")
    time = log_time(step)
    if config.window >= time[-1] - time[0]:
        raise ConfigurationError(
            f"window must be below the log-time of the run, {time[-1] - time[0]:.3g}. Got {config.window}."
        )
    measured = _measure(activations, config)
    return _summarise(measured, step, time, config)


@dataclass(frozen=True, slots=True)
class _Measured:
    """Angles over each stretch between checkpoints, with bootstrap draws; and from the first to the last."""

    drift: Float[np.ndarray, "stretch"]
    draws: Float[np.ndarray, "draw stretch"]
    unit_drift: Float[np.ndarray, "stretch"]
    n_silent_units: int
    net: Estimate


def _measure(activations: Sequence[Rows], config: RepresentationalDriftConfig) -> _Measured:
    """Read every checkpoint once and compare it with the one before."""
    n, last = activations[0].shape[0], len(activations) - 1
    drift, unit_drift, silent = np.zeros(last), np.zeros(last), 0
    columns = np.zeros((n, 2 * last + 1))  # ||x_i||² of every checkpoint, then <x_i, Q y_i> of every stretch
    first = before = standardised(activations[0])
    columns[:, 0] = np.einsum("ij,ij->i", before, before)
    for k in range(last):
        now = standardised(activations[k + 1])
        drift[k], columns[:, last + 1 + k] = _angle(before, now)
        columns[:, k + 1] = np.einsum("ij,ij->i", now, now)
        unit_drift[k], n_silent = _unit_angle(before, now)
        silent, before = max(silent, n_silent), now
    sums = resampled_sums(columns, n_draws=config.n_bootstrap, rng=generator(config.seed, "bootstrap"))
    squares, products = sums[:, : last + 1], sums[:, last + 1 :]
    draws = _angles(products, squares[:, :-1], squares[:, 1:])
    return _Measured(drift, draws, unit_drift, silent, _net(first, before, config))


def _angle(
    x: Float[np.ndarray, "sample unit"], y: Float[np.ndarray, "sample unit"]
) -> tuple[float, Float[np.ndarray, "sample"]]:
    """Return the angle between `x` and the best rotation of `y`, and the inputs' parts <x_i, Q y_i> of its cosine."""
    left, _, right = np.linalg.svd(y.T @ x)
    turned = y @ (left @ right)
    # From the chord: the arc cosine loses half of the digits where the two are nearly equal.
    chord = float(np.linalg.norm(x - turned))
    return 2 * float(np.arcsin(min(1.0, chord / 2))), np.einsum("ij,ij->i", x, turned)


def _angles(
    product: Float[np.ndarray, "*draws"], square: Float[np.ndarray, "*draws"], other: Float[np.ndarray, "*draws"]
) -> Float[np.ndarray, "*draws"]:
    """Return the angles of resampled sums; a draw of nothing but the mean has nothing in common with another."""
    return np.arccos(np.clip(product / np.sqrt(np.maximum(square * other, 1e-300)), -1, 1))


def _unit_angle(x: Float[np.ndarray, "sample unit"], y: Float[np.ndarray, "sample unit"]) -> tuple[float, int]:
    """Return the mean angle between the responses of the same unit, and how many units are constant in either."""
    lengths = np.linalg.norm(x, axis=0), np.linalg.norm(y, axis=0)
    alive = (lengths[0] > 0) & (lengths[1] > 0)
    if not alive.any():
        return NAN, len(alive)
    chord = np.linalg.norm(x[:, alive] / lengths[0][alive] - y[:, alive] / lengths[1][alive], axis=0)
    return float(np.mean(2 * np.arcsin(np.minimum(1.0, chord / 2)))), int(np.sum(~alive))


def _net(
    first: Float[np.ndarray, "sample unit"], last: Float[np.ndarray, "sample unit"], config: RepresentationalDriftConfig
) -> Estimate:
    """Return the angle from the first to the last checkpoint; the null pairs their inputs at random."""
    angle, products = _angle(first, last)
    columns = np.stack([products, np.sum(first**2, axis=1), np.sum(last**2, axis=1)], axis=1)
    sums = resampled_sums(columns, n_draws=config.n_bootstrap, rng=generator(config.seed, "bootstrap"))
    draws = _angles(sums[:, 0], sums[:, 1], sums[:, 2])
    rng = generator(config.seed, "permutation")
    null = [np.linalg.norm(first[rng.permutation(len(first))].T @ last, "nuc") for _ in range(config.n_null)]
    return estimate(angle, bootstrap=draws, null=np.arccos(np.clip(null, -1, 1)), tail="less")


def _summarise(
    measured: _Measured,
    step: Int[np.ndarray, "checkpoint"],
    time: Float[np.ndarray, "checkpoint"],
    config: RepresentationalDriftConfig,
) -> RepresentationalDrift:
    widths, total = np.diff(time), float(measured.drift.sum())
    low, high = np.quantile(measured.draws, [0.025, 0.975], axis=0)
    starts = np.linspace(time[0], time[-1] - config.window, GRID)
    inside = _overlap(starts, config.window, time) / widths  # share of each stretch inside each window
    bursts = _bursts(inside, measured.drift, config.prominence) if total > STILL else np.zeros(0, dtype=int)
    null = _even_drift(inside, measured, widths)
    share = inside @ measured.drift / max(total, STILL)
    return RepresentationalDrift(
        peak_share=_peak_share(inside, measured, null) if total > STILL else Estimate(NAN),
        peak_step=_peak_step(inside, measured, starts + config.window / 2) if total > STILL else Estimate(NAN),
        total=estimate(total, bootstrap=measured.draws.sum(axis=1)),
        net=measured.net,
        n_silent_units=measured.n_silent_units,
        step=step,
        drift=_from_the_second(measured.drift),
        drift_low=_from_the_second(low),
        drift_high=_from_the_second(high),
        rate=_from_the_second(measured.drift / widths),
        rate_low=_from_the_second(low / widths),
        rate_high=_from_the_second(high / widths),
        unit_drift=_from_the_second(measured.unit_drift),
        unit_rate=_from_the_second(measured.unit_drift / widths),
        burst_step=np.expm1(starts[bursts] + config.window / 2),
        burst_start=np.expm1(starts[bursts]),
        burst_end=np.expm1(starts[bursts] + config.window),
        burst_share=share[bursts],
        burst_p_value=np.array([p_value(each, null) for each in share[bursts]], dtype=np.float64),
    )


def _overlap(
    starts: Float[np.ndarray, "window"], width: float, time: Float[np.ndarray, "checkpoint"]
) -> Float[np.ndarray, "window stretch"]:
    """Return the log-time that each window shares with each stretch."""
    ends = np.minimum(starts[:, None] + width, time[1:])
    return np.maximum(0.0, ends - np.maximum(starts[:, None], time[:-1]))


def _bursts(
    inside: Float[np.ndarray, "window stretch"], drift: Float[np.ndarray, "stretch"], prominence: float
) -> Int[np.ndarray, "burst"]:
    """Return the places of the windows that hold more drift than those around them."""
    held = inside @ drift
    walled = np.concatenate([[0.0], held, [0.0]])  # so that a maximum at either end counts
    return find_peaks(walled, prominence=prominence * float(held.max()))[0] - 1


def _even_drift(
    inside: Float[np.ndarray, "window stretch"], measured: _Measured, widths: Float[np.ndarray, "stretch"]
) -> Float[np.ndarray, "draw"]:
    """Return what the busiest window holds when the total is spread evenly over log-time, with sampling noise."""
    even = measured.drift.sum() * widths / widths.sum()
    drawn = np.maximum(0.0, even + measured.draws - measured.draws.mean(axis=0))
    return (drawn @ inside.T).max(axis=1) / np.maximum(drawn.sum(axis=1), STILL)


def _peak_share(
    inside: Float[np.ndarray, "window stretch"], measured: _Measured, null: Float[np.ndarray, "draw"]
) -> Estimate:
    peak = inside[np.argmax(inside @ measured.drift)]
    draws = measured.draws @ peak / np.maximum(measured.draws.sum(axis=1), STILL)
    return estimate(float(peak @ measured.drift / measured.drift.sum()), bootstrap=draws, null=null)


def _peak_step(
    inside: Float[np.ndarray, "window stretch"], measured: _Measured, middles: Float[np.ndarray, "window"]
) -> Estimate:
    places = np.argmax(measured.draws @ inside.T, axis=1)
    peak = int(np.argmax(inside @ measured.drift))
    return estimate(float(np.expm1(middles[peak])), bootstrap=np.expm1(middles[places]))


def _from_the_second(stretches: Float[np.ndarray, "stretch"]) -> Float[np.ndarray, "checkpoint"]:
    """Place each stretch at the checkpoint that ends it; nothing comes before the first."""
    return np.concatenate([[0.0], stretches])
