"""Training trajectory: when in training a representation becomes what it ends as.

    CKA(s, t) = ||X_sᵀ X_t||²_F / (||X_sᵀ X_s||_F ||X_tᵀ X_t||_F)          X centred, between every two checkpoints
    path      = classical scaling of the angles arccos CKA(s, t)
    half way  = the step at which CKA(t, end) passes the middle between CKA(start, end) and 1

Sampling error is had without repeating the products: at the inputs x_i, y_i the log of a CKA has the influence

    psi_i = 2 x_iᵀ(XᵀY)y_i / ||XᵀY||² - x_iᵀ(XᵀX)x_i / ||XᵀX||² - y_iᵀ(YᵀY)y_i / ||YᵀY||²

and a bootstrap draw with counts w moves it by sum_i w_i psi_i, to first order.

Source: [@kornblith2019] (linear CKA), [@efron1982] (influence and bootstrap).
Cost: m² n p² for the matrix, 4 m n p² for the intervals, with m checkpoints.
Chunked over: rows for the matrix; the intervals hold two checkpoints in memory.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Int

from mechint_core.errors import ConfigurationError
from mechint_core.figure import Curve, Figure, Matrix, Scatter
from mechint_core.kernels.moments import pairwise_linear_cka
from mechint_core.kernels.resampling import estimate
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

UNCHANGED = 1e-9
"""A representation whose CKA to the final one is within this of 1 from the start has no half way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingTrajectoryConfig:
    """How to follow a representation through training."""

    n_bootstrap: int = 200
    """Bootstrap draws of the inputs."""
    n_null: int = 99
    """Random pairings of inputs between the first and the last checkpoint."""
    seed: int = 0
    """Of the draws."""

    def __post_init__(self) -> None:
        if self.n_bootstrap < 2 or self.n_null < 1:
            raise ConfigurationError(
                f"n_bootstrap must be at least 2 and n_null at least 1. Got {self.n_bootstrap}, {self.n_null}."
            )


@dataclass(frozen=True, slots=True)
class TrainingTrajectory(Result):
    """Similarities between all checkpoints, and what they say about when the change happened."""

    technique: ClassVar[str] = "training_trajectory"
    evidence: ClassVar[str] = (
        "95 % intervals over resampled inputs; the null of the similarity pairs the inputs of the two checkpoints at "
        "random."
    )
    figures: ClassVar[tuple[Figure, ...]] = (
        Matrix(
            values="cka",
            title="Similarity of every two checkpoints",
            x="step",
            y="step",
            x_label="step",
            y_label="step",
            value_label="linear CKA",
        ),
        Curve(
            y=("cka_to_final", "cka_to_initial"),
            title="Similarity to where training ended, and to where it began",
            x="step",
            x_label="step",
            y_label="linear CKA",
            log_x=True,
            low="cka_to_final_low",
            high="cka_to_final_high",
        ),
        Scatter(
            points="path",
            title="Path of the representation, drawn in a plane",
            colour="log_step",
            colour_label="log(1 + step)",
        ),
    )

    initial_to_final: Estimate
    """CKA of the first and the last checkpoint."""
    halfway_step: Estimate
    """Step at which half of the way to the final representation was covered; NaN if nothing changed."""
    path_explained: float
    """Share of the squared distances that the drawn plane holds."""
    step: Int[np.ndarray, "checkpoint"]
    log_step: Float[np.ndarray, "checkpoint"]
    cka: Float[np.ndarray, "checkpoint other_checkpoint"]
    cka_to_initial: Float[np.ndarray, "checkpoint"]
    cka_to_final: Float[np.ndarray, "checkpoint"]
    cka_to_final_low: Float[np.ndarray, "checkpoint"]
    cka_to_final_high: Float[np.ndarray, "checkpoint"]
    path: Float[np.ndarray, "checkpoint coordinate"]

    def reading(self) -> str:
        """Say how far training moved the representation, and by when it had covered half of the way."""
        start = self.initial_to_final
        if np.isnan(self.halfway_step.value):
            return "The representation did not change: every checkpoint has the similarities of the last one."
        related = "more than" if start.p_value <= 0.05 else "not distinguishably more than"
        return (
            f"From the first to the last checkpoint {start.value:.0%} of the similarity structure is kept (linear "
            f"CKA), {related} unrelated representations share ({start.null:.0%}, p = {start.p_value:.2g}). Half of "
            f"the way to the final representation was covered by step {self.halfway_step.value:.0f} "
            f"[{self.halfway_step.low:.0f}, {self.halfway_step.high:.0f}]."
        )


def training_trajectory(
    activations: Sequence[Float[Rows, "sample unit"]],
    step: Int[np.ndarray, "checkpoint"],
    *,
    config: TrainingTrajectoryConfig = TrainingTrajectoryConfig(),
) -> TrainingTrajectory:
    """Find when in training a representation becomes what it ends as.

    Use it to see plateaus (blocks of the matrix) and turns (where blocks meet) before asking what changed. It assumes
    the same inputs at every checkpoint. It sees linear similarity only, dominated by the directions of largest
    variance; and where it places a change is no finer than the spacing of the checkpoints.

    Parameters
    ----------
    activations
        One (sample, unit) array per checkpoint, in memory or stored, for the same samples in the same order.
    step
        Training step of each checkpoint, increasing.
    config
        Number of draws, and their seed.

    Returns
    -------
    TrainingTrajectory
        Similarities in [0, 1]: 1 on the diagonal, and for representations equal up to rotation, shift and scale.
        `halfway_step` is in training steps, interpolated in log(1 + step).

    Raises
    ------
    ShapeError
        If there are fewer than 2 checkpoints, fewer than 3 samples, or the arrays do not align.
    DegenerateInputError
        If the steps do not increase, or a checkpoint is constant or not finite.

    Notes
    -----
    The bootstrap is linear in the draw (see the module), so that 200 draws cost one product with the influences.
    The interval reflects the choice of inputs, not what another training seed would give.

    References
    ----------
    [@kornblith2019]
    [@efron1982]

    Examples
    --------
    >>> x = np.eye(4)[:, :3]
    >>> result = training_trajectory([x, 2 * x + 1], np.array([0, 10]))
    >>> round(result.initial_to_final.value, 12)
    1.0
    """
    check_steps(step, len(activations), least=2)
    check_activations(activations)
    cka = np.clip(pairwise_linear_cka(activations), 0.0, 1.0)
    draws = _bootstrap_to_final(activations, cka[:, -1], config)
    low, high = np.quantile(draws, [0.025, 0.975], axis=0)
    null = _null_similarity(standardised(activations[0]), standardised(activations[-1]), config)
    path, explained = _scale(np.arccos(cka))
    return TrainingTrajectory(
        initial_to_final=estimate(float(cka[0, -1]), bootstrap=draws[:, 0], null=null),
        halfway_step=_halfway_estimate(cka[:, -1], draws, log_time(step)),
        path_explained=explained,
        step=step,
        log_step=log_time(step),
        cka=cka,
        cka_to_initial=cka[:, 0].copy(),
        cka_to_final=cka[:, -1].copy(),
        cka_to_final_low=low,
        cka_to_final_high=high,
        path=path,
    )


def _bootstrap_to_final(
    activations: Sequence[Rows], to_final: Float[np.ndarray, "checkpoint"], config: TrainingTrajectoryConfig
) -> Float[np.ndarray, "draw checkpoint"]:
    """Return bootstrap draws of every checkpoint's CKA to the last one."""
    final = standardised(activations[-1]).astype(np.float32)  # float32: an error bar needs no more digits
    of_final = _relative_influence(final, final)
    influence = np.zeros((len(final), len(activations)))
    for k, each in enumerate(activations[:-1]):
        x = standardised(each).astype(np.float32)
        influence[:, k] = 2 * _relative_influence(x, final) - _relative_influence(x, x) - of_final
    shifts = resampled_sums(influence, n_draws=config.n_bootstrap, rng=generator(config.seed, "bootstrap"))
    return np.minimum(to_final * np.exp(shifts), 1.0)


def _relative_influence(
    x: Float[np.ndarray, "sample unit"], y: Float[np.ndarray, "sample other_unit"]
) -> Float[np.ndarray, "sample"]:
    """Return x_iᵀ(XᵀY)y_i / ||XᵀY||², which sums to 1; 0 where nothing is shared."""
    influence = np.einsum("ij,ij->i", x @ (x.T @ y), y).astype(np.float64)
    total = float(influence.sum())
    return influence / total if total > 0 else np.zeros_like(influence)


def _null_similarity(
    x: Float[np.ndarray, "sample unit"], y: Float[np.ndarray, "sample other_unit"], config: TrainingTrajectoryConfig
) -> Float[np.ndarray, "draw"]:
    """Return the CKA of `x` and `y` when their rows are paired at random."""
    rng = generator(config.seed, "permutation")
    scale = np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)
    first, second = x.astype(np.float32), y.astype(np.float32)
    inner = [np.linalg.norm(first[rng.permutation(len(first))].T @ second) ** 2 for _ in range(config.n_null)]
    return np.array(inner, dtype=np.float64) / scale


def _halfway_estimate(
    to_final: Float[np.ndarray, "checkpoint"],
    draws: Float[np.ndarray, "draw checkpoint"],
    time: Float[np.ndarray, "checkpoint"],
) -> Estimate:
    if 1 - to_final.min() < UNCHANGED:
        return Estimate(NAN)
    steps = np.array([_halfway(draw, time) for draw in draws])
    return estimate(_halfway(to_final, time), bootstrap=steps)


def _halfway(to_final: Float[np.ndarray, "checkpoint"], time: Float[np.ndarray, "checkpoint"]) -> float:
    """Return the step at which the similarity to the end first passes the middle between its first value and 1."""
    middle = (to_final[0] + 1) / 2
    after = int(np.argmax(to_final >= middle))
    if after == 0:
        return float(np.expm1(time[0]))
    below, above = to_final[after - 1 : after + 1]
    part = (middle - below) / (above - below)
    return float(np.expm1(time[after - 1] + part * (time[after] - time[after - 1])))


def _scale(
    distances: Float[np.ndarray, "checkpoint other_checkpoint"],
) -> tuple[Float[np.ndarray, "checkpoint coordinate"], float]:
    """Return classical scaling in two dimensions, and the share of the (positive) spectrum it holds."""
    centring = np.eye(len(distances)) - 1 / len(distances)
    values, vectors = np.linalg.eigh(-0.5 * centring @ distances**2 @ centring)
    top, positive = np.maximum(values[::-1][:2], 0), np.maximum(values, 0).sum()
    path = vectors[:, ::-1][:, :2] * np.sqrt(top)
    path = path * np.where(path[0] > path[-1], -1.0, 1.0)  # training runs rightwards and upwards
    return path, float(top.sum() / positive) if positive > 0 else NAN
