"""A network and every channel of a recording, compared by predicting the channel from the network, at every time.

    score_st     mean over channels c of subject s of corr_i(p_ic, y_ict),   p by ridge regression without the fold of i
    ceiling      mean over channels of sqrt(reliability): what a noiseless copy of the channel would reach

Predictions and responses are taken less their means in each fold, so that folds do not pull against each other.

    null         responses are relabelled, and penalties chosen and responses predicted anew: what other folds of an
                 unrelated recording say of a fold is worse than nothing (-0.14 at 24 conditions), the more so where
                 the penalty trusts them, so neither reordered predictions nor given penalties are a null
    interval     draws of conditions reorder predictions that are made; how much further they spread where the model is
                 fitted anew is found on the first `REFITTED` draws, and all are spread by it

The penalty of a channel and fold is the one with the least error over the other folds, each predicted without both.

Source: [@schrimpf2020], [@hoerl1970] (ridge), [@spearman1910] (reliability of halves).
Cost: a decomposition per pair of folds and per refit; 70 n min(n, p) per channel, time and relabelling, at 5 folds.
Chunked over: relabellings.
"""

from dataclasses import dataclass
from itertools import combinations

import numpy as np
from jaxtyping import Float, Int

from mechint_core.alignment._brain_scores import BrainScores, Recorded, halves
from mechint_core.alignment._conditions import Draws
from mechint_core.alignment._fold_sums import predictors
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
    ridge, choice = FoldedRidge.of(coordinates, fold, np.ones(n)), PenaltyChoice.of(coordinates, fold)
    penalty = choice.best(measured)

    p, y = within_folds(ridge.predict(measured, penalty), fold), within_folds(measured, fold)
    counts = draws.counts(n).astype(np.float64)
    refitted = map_parallel(_Refitted(coordinates, measured, fold, penalty), list(counts.T[:REFITTED]))
    relabelled = map_parallel(_Relabelled(ridge, choice, measured), list(draws.permutations(n)))
    ceiling = recording.by_subject(_reliable_share(recording, draws.seed)).mean(axis=0)
    return BrainScores(
        recording.by_subject(weighted_correlation(p, y, np.ones((n, 1)))[0]),
        _spread(
            recording.by_subject(weighted_correlation(p, y, counts)), recording.by_subject(np.concatenate(refitted))
        ),
        recording.by_subject(np.concatenate(relabelled)).mean(axis=1),
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
class _Solution:
    """Ridge regression on some rows, decomposed once for any targets and penalties.

    With sqrt(w) (X - x̄) = U S Vᵀ on the training rows:  prediction = (X_f - x̄) V  S / (S² + λ)  Uᵀ sqrt(w) Y.
    """

    training: np.ndarray
    """Which rows were given."""
    mean: np.ndarray
    axes: np.ndarray
    """V."""
    s: np.ndarray
    ut: np.ndarray
    """Uᵀ sqrt(w)."""
    unit: float
    """Mean squared length of the centred training rows: what penalties are counted in."""

    @classmethod
    def of(cls, x: np.ndarray, training: np.ndarray, weights: np.ndarray) -> "_Solution":
        """Decompose the training rows, each counted `weights` times."""
        root = np.sqrt(weights[training])[:, None]
        total = max(float(np.sum(root**2)), 1.0)
        mean = (root**2 * x[training]).sum(axis=0) / total
        u, s, vt = np.linalg.svd(root * (x[training] - mean), full_matrices=False)
        unit = max(float(np.sum(s**2)) / total, np.finfo(np.float64).tiny)
        return cls(training, mean, vt.T, s, u.T * root.T, unit)

    def rows(self, x: np.ndarray) -> np.ndarray:
        """Return other rows in the coordinates of these."""
        return (x - self.mean) @ self.axes

    def coefficients(self, solved: np.ndarray, penalty: float | np.ndarray) -> np.ndarray:
        """Return the weights on these coordinates, `solved` being Uᵀ sqrt(w) Y."""
        s = self.s.reshape(-1, *(1,) * (solved.ndim - 1))
        return s / (s**2 + penalty * self.unit) * solved


@dataclass(frozen=True, slots=True)
class FoldedRidge:
    """Ridge regression of each fold on the others."""

    fold: Int[np.ndarray, "condition"]
    parts: tuple[tuple[_Solution, np.ndarray], ...]
    """Per fold: the model of the others, and the fold's rows in its coordinates."""

    @classmethod
    def of(cls, x: np.ndarray, fold: np.ndarray, weights: Float[np.ndarray, "condition"]) -> "FoldedRidge":
        """Decompose the training rows of every fold, each row counted `weights` times."""
        solutions = [_Solution.of(x, fold != each, weights) for each in range(int(fold.max()) + 1)]
        return cls(fold, tuple((each, each.rows(x[~each.training])) for each in solutions))

    def predict(
        self, y: Float[np.ndarray, "condition channel"], penalty: Float[np.ndarray, "fold channel"]
    ) -> Float[np.ndarray, "condition channel"]:
        """Return the held-out predictions, less the mean of their training rows."""
        predicted = np.empty_like(y)
        for (solution, rows), of_fold in zip(self.parts, penalty, strict=True):
            solved = solution.ut @ y[solution.training]
            predicted[~solution.training] = rows @ solution.coefficients(solved, of_fold)
        return predicted


@dataclass(frozen=True, slots=True)
class PenaltyChoice:
    """What predicts the other folds best, each predicted from all folds but itself and the one to be predicted."""

    fold: Int[np.ndarray, "condition"]
    pairs: tuple[tuple[_Solution, tuple["_Tried", "_Tried"]], ...]
    """The model of all folds but two, and each of the two tried where the other is to be predicted."""

    @classmethod
    def of(cls, x: np.ndarray, fold: Int[np.ndarray, "condition"]) -> "PenaltyChoice":
        """Decompose what is left without each pair of folds."""
        pairs, even = [], np.ones(len(x))
        for one, other in combinations(range(int(fold.max()) + 1), 2):
            solution = _Solution.of(x, (fold != one) & (fold != other), even)
            tried = [_Tried(o, fold == i, solution.rows(x[fold == i])) for o, i in ((one, other), (other, one))]
            pairs.append((solution, (tried[0], tried[1])))
        return cls(fold, tuple(pairs))

    def best(self, y: Float[np.ndarray, "condition channel"]) -> Float[np.ndarray, "fold channel"]:
        """Return the penalty of every fold and channel."""
        errors = np.zeros((int(self.fold.max()) + 1, len(PENALTIES), y.shape[1]))
        for solution, both in self.pairs:
            given = y[solution.training]
            mean, solved = given.mean(axis=0), (solution.ut @ given)[:, None]
            every = solution.coefficients(solved, np.array(PENALTIES)[:, None]).reshape(len(solved), -1)
            for tried in both:
                predicted = (tried.rows @ every).reshape(-1, *errors.shape[1:])
                residual = (y[tried.inner] - mean)[:, None] - predicted
                errors[tried.outer] += np.einsum("ipc,ipc->pc", residual, residual)
        return np.array(PENALTIES)[errors.argmin(axis=1)]


@dataclass(frozen=True, slots=True)
class _Tried:
    outer: int
    """The fold to be predicted."""
    inner: np.ndarray
    """The rows that are predicted to choose its penalty."""
    rows: np.ndarray
    """Their coordinates."""


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
    choice: PenaltyChoice
    measured: np.ndarray

    def __call__(self, order: Int[np.ndarray, "condition"]) -> Float[np.ndarray, "1 channel"]:
        y, fold = self.measured[order], self.ridge.fold
        p = within_folds(self.ridge.predict(y, self.choice.best(y)), fold)
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
