"""How brain-like a network becomes in training, and when.

    gain       score at the last checkpoint - score at the first
    onset      first checkpoint from which on the score is above the first one's, at every checkpoint
    half rise  first checkpoint at which the score has come half of its way from the first to its highest value

Checkpoints saw the same conditions, and their bootstrap draws are the same draws, so differences are paired. The onset
holds over all checkpoints together: with d_k the difference to the first, and its draws d_k^b with spread e_k,

    q = level quantile over b of max_k |d_k^b - d_k| / e_k,        above the first:  d_k / e_k > q

Source: [@schrimpf2020] (brain-likeness of networks), [@efron1993] (paired bootstrap, max-t).
Cost: checkpoints times draws.
Chunked over: nothing.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Int

from mechint_core.errors import ConfigurationError, DegenerateInputError, ShapeError
from mechint_core.figure import Curve, Figure
from mechint_core.kernels.resampling import percentile_interval
from mechint_core.result import NAN, Estimate, Result


@dataclass(frozen=True, slots=True, kw_only=True)
class BrainTrajectoryConfig:
    """How sure to be."""

    level: float = 0.95
    """Confidence of the intervals, and of the onset over all checkpoints together."""

    def __post_init__(self) -> None:
        if not 0 < self.level < 1:
            raise ConfigurationError(f"level must be between 0 and 1. Got {self.level}.")


@dataclass(frozen=True, slots=True)
class BrainTrajectoryResult(Result):
    """The course of an alignment through training."""

    technique: ClassVar[str] = "brain_trajectory"
    evidence: ClassVar[str] = (
        "Intervals are the paired bootstrap of conditions (and subjects) that all checkpoints share; the null of the "
        "gain is no change, the onset holds for all checkpoints together (max-t)."
    )
    figures: ClassVar[tuple[Figure, ...]] = (
        Curve(
            y=("score", "ceiling"), title="Alignment through training, and the noise ceiling", x="step",
            x_label="step", y_label="alignment", log_x=True, low="low", high="high", marks="onset_mark",
        ),
    )  # fmt: skip

    gain: Estimate
    """What training adds: last minus first."""
    half_rise: Estimate
    """Step at which half of the rise to the highest value is done; NaN if nothing rises."""
    onset: float
    """First step from which on the score stays above the first checkpoint's; NaN if there is none."""
    step: Int[np.ndarray, "checkpoint"]
    score: Float[np.ndarray, "checkpoint"]
    low: Float[np.ndarray, "checkpoint"]
    high: Float[np.ndarray, "checkpoint"]
    ceiling: Float[np.ndarray, "checkpoint"]
    onset_mark: Float[np.ndarray, "boundary"]
    """The onset, where there is one."""

    def reading(self) -> str:
        """Say whether training makes the site more brain-like, and from when on."""
        gain = self.gain
        change = f"from {self.score[0]:.3f} to {self.score[-1]:.3f}"
        if not gain.p_value <= 1 - gain.level:
            return f"Training does not change the alignment ({change}) beyond its uncertainty (p = {gain.p_value:.2g})."
        text = f"Training moves the alignment {change} ({gain.value:+.3f} [{gain.low:.3f}, {gain.high:.3f}])"
        if math.isnan(self.onset):
            return f"{text}; at no step does it rise above the first checkpoint for good."
        rise = self.half_rise
        return (
            f"{text}; above the first checkpoint for good from step {self.onset:.0f} on, half of the rise is done by "
            f"step {rise.value:.0f} [{rise.low:.0f}, {rise.high:.0f}]."
        )


def brain_trajectory(
    score: Float[np.ndarray, "checkpoint"],
    draws: Sequence[Float[np.ndarray, "draw"]],
    ceiling: Float[np.ndarray, "checkpoint"],
    step: Int[np.ndarray, "checkpoint"],
    *,
    config: BrainTrajectoryConfig = BrainTrajectoryConfig(),
) -> BrainTrajectoryResult:
    """Ask whether training makes a site more brain-like, and when.

    Use it on the alignments of one site with one region at every checkpoint. It assumes that all of them used the same
    draws (the same seed), so that they are paired. An alignment can rise because the network learns what the brain
    knows, or only because its activations become less noisy or lower-dimensional: look at the ceiling and at controls.

    Parameters
    ----------
    score
        Alignment at each checkpoint.
    draws
        Bootstrap draws of each checkpoint's alignment, equally many.
    ceiling
        What the recording's noise allows; NaN where it is not known.
    step
        The checkpoints' steps, rising.
    config
        How sure to be.

    Returns
    -------
    BrainTrajectoryResult
        Scores in the units of the measure; `onset` and `half_rise` in steps.

    Raises
    ------
    ShapeError
        If there are fewer than 2 checkpoints, the inputs differ in their number, or the draws in theirs.
    DegenerateInputError
        If a score is not finite, or the steps do not rise.

    References
    ----------
    [@schrimpf2020]
    [@efron1993]

    Examples
    --------
    >>> noise = np.linspace(-0.01, 0.01, 100)
    >>> score = np.array([0.0, 0.1, 0.4])
    >>> drawn = [each + noise * (1 + k) for k, each in enumerate(score)]
    >>> brain_trajectory(score, drawn, np.full(3, 0.5), np.array([0, 10, 100])).onset
    10.0
    """
    drawn = _check(score, draws, ceiling, step)
    ends = np.array([percentile_interval(each, config.level) for each in drawn])
    onset = _onset(score, drawn, step, config.level)
    return BrainTrajectoryResult(
        gain=_gain(score, drawn, config.level),
        half_rise=_half_rise(score, drawn, step, config.level),
        onset=onset,
        step=step,
        score=score,
        low=ends[:, 0],
        high=ends[:, 1],
        ceiling=ceiling,
        onset_mark=np.array([] if math.isnan(onset) else [onset]),
    )


def _check(
    score: np.ndarray, draws: Sequence[np.ndarray], ceiling: np.ndarray, step: np.ndarray
) -> Float[np.ndarray, "checkpoint draw"]:
    lengths = {"score": score.shape, "ceiling": ceiling.shape, "step": step.shape, "draws": (len(draws),)}
    if len(set(lengths.values())) != 1 or score.ndim != 1 or len(score) < 2:
        raise ShapeError(f"there must be one of each for at least 2 checkpoints. Got {lengths}.")
    if len({each.shape for each in draws}) != 1 or draws[0].ndim != 1 or len(draws[0]) < 2:
        raise ShapeError(f"every checkpoint must have the same draws, >= 2. Got {[each.shape for each in draws]}.")
    if not np.all(np.isfinite(score)) or np.any(np.diff(step) <= 0):
        raise DegenerateInputError(f"scores must be finite and steps must rise. Got {score}, {step}.")
    drawn = np.stack(list(draws)).astype(np.float64)
    defined = np.all(np.isfinite(drawn), axis=0)
    if defined.sum() < 2:
        raise DegenerateInputError("draws must be finite at every checkpoint, at least 2 of them. Got fewer.")
    return drawn[:, defined]


def _gain(score: np.ndarray, drawn: np.ndarray, level: float) -> Estimate:
    """Last minus first; the p-value asks how often the draws move as far from their centre as that is from 0."""
    value, moved = float(score[-1] - score[0]), drawn[-1] - drawn[0]
    low, high = percentile_interval(moved, level)
    as_far = np.sum(np.abs(moved - value) >= abs(value))
    return Estimate(value, low, high, 0.0, float(1 + as_far) / (1 + len(moved)), level)


def _half_rise(score: np.ndarray, drawn: np.ndarray, step: np.ndarray, level: float) -> Estimate:
    if not score.max() > score[0]:
        return Estimate(NAN, level=level)
    low, high = percentile_interval(_half_way(drawn, step), level)
    return Estimate(float(_half_way(score[:, None], step)[0]), low, high, level=level)


def _half_way(drawn: Float[np.ndarray, "checkpoint draw"], step: np.ndarray) -> Float[np.ndarray, "draw"]:
    """Return the first step at which each draw is half of the way from its first to its highest value."""
    first = (drawn >= (drawn[0] + drawn.max(axis=0)) / 2).argmax(axis=0)
    return np.where(drawn.max(axis=0) > drawn[0], step[first], np.nan)


def _onset(score: np.ndarray, drawn: np.ndarray, step: np.ndarray, level: float) -> float:
    """Return the first step from which on every difference to the first is above the simultaneous band."""
    difference, moved = score[1:] - score[0], drawn[1:] - drawn[0]
    error = np.maximum(moved.std(axis=1, ddof=1), np.finfo(np.float64).tiny)
    band = np.quantile((np.abs(moved - difference[:, None]) / error[:, None]).max(axis=0), level)
    above = difference / error > band
    staying = np.logical_and.accumulate(above[::-1])[::-1]
    return float(step[1:][staying.argmax()]) if staying.any() else NAN
