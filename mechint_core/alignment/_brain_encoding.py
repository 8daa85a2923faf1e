"""A network and every channel of a recording, compared by predicting the channel from the network, at every time.

    score_st     mean over channels c of subject s of corr_i(p_ic, y_ict),   p by ridge regression without the fold of i
    ceiling      mean over channels of sqrt(reliability): what a noiseless copy of the channel would reach

Predictions and responses are taken less their means in each fold, so that folds do not pull against each other.

    null         responses are relabelled and predicted anew: what other folds of an unrelated recording say of a fold
                 is worse than nothing, so predictions that are only reordered are no null
    interval     draws of conditions reorder predictions that are made; how much further they spread where the model is
                 fitted anew is found on the first `REFITTED` draws, and all are spread by it

Penalties are chosen once, for each channel and fold, inside the training rows.

Source: [@schrimpf2020], [@hoerl1970] (ridge), [@spearman1910] (reliability of halves).
Cost: a decomposition per fold and refit, n min(n, p) per channel, time and relabelling.
Chunked over: relabellings.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from mechint_core.alignment._brain_scores import BrainScores, Recorded, halves
from mechint_core.alignment._conditions import Draws
from mechint_core.alignment._fold_sums import predictors
from mechint_core.alignment._ridge import cross_validated_prediction
from mechint_core.errors import DegenerateInputError, ShapeError
from mechint_core.parallel import map_parallel
from mechint_core.random import generator

PENALTIES = tuple(float(each) for each in 10.0 ** np.arange(-3, 4))
"""In units of the mean squared length of a centred row; each channel has its own."""
REFITTED = 24
"""Draws in which the model is fitted anew."""
ROUNDING = 1e-12
"""A channel whose spread is below this share of its size is constant."""


def encoding_scores(
    x: Float[np.ndarray, "condition unit"], recording: Recorded, *, n_folds: int, draws: Draws
) -> BrainScores:
    """Predict every channel; x and the recording have the same conditions."""
    n = len(x)
    if n < 2 * n_folds:
        raise ShapeError(f"x must have at least 2 conditions for each of {n_folds} folds. Got {n}: lower n_folds.")
    fold = generator(draws.seed, "folds").permutation(np.arange(n) % n_folds)
    measured = recording.mean.reshape(n, -1)
    _check_varying(measured)
    coordinates = np.asarray(predictors(x, ()).rows[:])
    _, penalty = cross_validated_prediction(coordinates, measured, fold, PENALTIES)
    ridge = FoldedRidge.of(coordinates, fold, np.ones(n))

    def by_subject(per_channel: np.ndarray) -> np.ndarray:
        """(..., time and channel) -> (..., subject, time), the mean over each subject's channels."""
        split = per_channel.reshape(*per_channel.shape[:-1], recording.responses.shape[2], -1)
        parts = [split[..., recording.subject == each].mean(axis=-1) for each in range(recording.n_subjects)]
        return np.stack(parts, axis=-2)

    p, y = within_folds(ridge.predict(measured, penalty), fold), within_folds(measured, fold)
    counts = draws.counts(n).astype(np.float64)
    refitted = map_parallel(_Refitted(coordinates, measured, fold, penalty), list(counts.T[:REFITTED]))
    relabelled = map_parallel(_Relabelled(ridge, measured, penalty), list(draws.permutations(n)))
    ceiling = by_subject(_reliable_share(recording, draws.seed)).mean(axis=0)
    return BrainScores(
        by_subject(weighted_correlation(p, y, np.ones((n, 1)))[0]),
        _spread(by_subject(weighted_correlation(p, y, counts)), by_subject(np.concatenate(refitted))),
        by_subject(np.concatenate(relabelled)).mean(axis=1),
        ceiling,
        ceiling,
    )


def _check_varying(measured: Float[np.ndarray, "condition channel"]) -> None:
    constant = measured.std(axis=0) <= ROUNDING * np.abs(measured).max(axis=0)
    if constant.any():
        raise DegenerateInputError(
            f"every channel must vary over the conditions at every time. Got {constant.sum()} of {len(constant)} "
            "constant ones: leave those channels or times out."
        )


@dataclass(frozen=True, slots=True)
class FoldedRidge:
    """Ridge regression of each fold on the others, decomposed once for any targets and penalties.

    With sqrt(w) (X - x̄) = U S Vᵀ on the training rows:  prediction = (X_f - x̄) V  S / (S² + λ)  Uᵀ sqrt(w) Y.
    """

    fold: Int[np.ndarray, "condition"]
    parts: tuple[tuple[np.ndarray, np.ndarray, np.ndarray], ...]
    """Per fold: (X_f - x̄) V, S, Uᵀ sqrt(w)."""
    unit: tuple[float, ...]
    """Mean squared length of the centred training rows: what penalties are counted in."""

    @classmethod
    def of(cls, x: np.ndarray, fold: np.ndarray, weights: Float[np.ndarray, "condition"]) -> "FoldedRidge":
        """Decompose the training rows of every fold, each row counted `weights` times."""
        parts, unit = [], list[float]()
        for each in range(int(fold.max()) + 1):
            training, root = fold != each, np.sqrt(weights[fold != each])[:, None]
            mean = (root**2 * x[training]).sum(axis=0) / max(float(np.sum(root**2)), 1.0)
            u, s, vt = np.linalg.svd(root * (x[training] - mean), full_matrices=False)
            parts.append(((x[~training] - mean) @ vt.T, s, u.T * root.T))
            unit.append(float(np.sum(s**2)) / max(float(np.sum(root**2)), 1.0))
        return cls(fold, tuple(parts), tuple(unit))

    def predict(
        self, y: Float[np.ndarray, "condition channel"], penalty: Float[np.ndarray, "fold channel"]
    ) -> Float[np.ndarray, "condition channel"]:
        """Return the held-out predictions, less the mean of their training rows."""
        predicted = np.empty_like(y)
        for each, ((rows, s, ut), unit) in enumerate(zip(self.parts, self.unit, strict=True)):
            held_out, absolute = self.fold == each, penalty[each] * max(unit, np.finfo(np.float64).tiny)
            predicted[held_out] = rows @ (s[:, None] / (s[:, None] ** 2 + absolute) * (ut @ y[~held_out]))
        return predicted


def within_folds(values: np.ndarray, fold: Int[np.ndarray, "condition"]) -> np.ndarray:
    """Take out the mean of each fold."""
    means = np.stack([values[fold == each].mean(axis=0) for each in range(int(fold.max()) + 1)])
    return values - means[fold]


def weighted_correlation(
    p: Float[np.ndarray, "condition channel"],
    y: Float[np.ndarray, "condition channel"],
    weights: Float[np.ndarray, "condition draw"],
) -> Float[np.ndarray, "draw channel"]:
    """Return the correlation over conditions that occur `weights` times; 0 where a prediction is constant."""
    total = weights.sum(axis=0)[:, None]
    sum_p, sum_y, pp, yy, py = (weights.T @ each for each in (p, y, p * p, y * y, p * y))
    covariance = py - sum_p * sum_y / total
    spread = np.maximum(pp - sum_p**2 / total, 0) * np.maximum(yy - sum_y**2 / total, 0)
    return np.divide(covariance, np.sqrt(spread), out=np.zeros_like(covariance), where=spread > 0)


@dataclass(frozen=True, slots=True)
class _Relabelled:
    """The correlations where the responses belong to other conditions."""

    ridge: FoldedRidge
    measured: np.ndarray
    penalty: np.ndarray

    def __call__(self, order: Int[np.ndarray, "condition"]) -> Float[np.ndarray, "1 channel"]:
        y, fold = self.measured[order], self.ridge.fold
        p = within_folds(self.ridge.predict(y, self.penalty), fold)
        return weighted_correlation(p, within_folds(y, fold), np.ones((len(y), 1)))


@dataclass(frozen=True, slots=True)
class _Refitted:
    """The correlations where conditions occur `weights` times in the training rows as in the held-out ones."""

    x: np.ndarray
    measured: np.ndarray
    fold: np.ndarray
    penalty: np.ndarray

    def __call__(self, weights: Float[np.ndarray, "condition"]) -> Float[np.ndarray, "1 channel"]:
        p = FoldedRidge.of(self.x, self.fold, weights).predict(self.measured, self.penalty)
        return weighted_correlation(
            within_folds(p, self.fold), within_folds(self.measured, self.fold), weights[:, None]
        )


def _spread(
    drawn: Float[np.ndarray, "draw subject time"], refitted: Float[np.ndarray, "_ subject time"]
) -> Float[np.ndarray, "draw subject time"]:
    """Spread draws with fixed predictions as far as those that are fitted anew; one factor for all times."""
    fixed, anew = (each[: len(refitted)].mean(axis=1).std(axis=0) for each in (drawn, refitted))
    factor = max(1.0, float(np.median(anew / np.maximum(fixed, np.finfo(np.float64).tiny))))
    centre = drawn.mean(axis=0)
    return centre + factor * (drawn - centre)


def _reliable_share(recording: Recorded, seed: int) -> Float[np.ndarray, "channel"]:
    """Return sqrt of the Spearman-Brown reliability of every channel and time, 0 where halves do not agree."""
    found = [
        weighted_correlation(first.reshape(len(first), -1), second.reshape(len(second), -1), np.ones((len(first), 1)))
        for first, second in halves(recording, seed)
    ]
    if not found:
        return np.full(recording.responses.shape[2] * recording.responses.shape[3], np.nan)
    reliability = np.mean(found, axis=0)[0]
    return np.sqrt(np.maximum(2 * reliability / (1 + np.abs(reliability)), 0))
