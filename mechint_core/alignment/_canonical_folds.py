"""Canonical correlations of all rows but some: what cross-validation and the choice of a ridge ask for.

    held out    weights from the rows outside fold f, with the ridge that the *other* folds choose (nested)

Source: [@stone1974], [@vinod1976].
Cost: k (k + 1) / 2 fits for k folds; with m > 1 ridges, m k (k + 1) / 2 more.
Chunked over: nothing; the covariances were.
"""

from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from jaxtyping import Float

from mechint_core.alignment._canonical import Canonical, canonical, correlations_of
from mechint_core.alignment._coordinates import AlignedCoordinates
from mechint_core.alignment._held_out import HeldOut, held_out
from mechint_core.kernels.joint_covariance import JointCovariance
from mechint_core.parallel import map_parallel


@dataclass(frozen=True, slots=True)
class CanonicalFolds:
    """The fit to all rows with the ridge that was chosen, and what fits to some rows score on the others."""

    whole: Canonical
    penalty: float
    ridge_x: float
    ridge_y: float
    held_out: HeldOut
    """Correlations of the components."""
    without: Float[np.ndarray, "fold component"]
    """Canonical correlations within the rows outside each fold."""


def canonical_folds(data: AlignedCoordinates, *, n_components: int, penalties: tuple[float, ...]) -> CanonicalFolds:
    """Choose the ridge, fit all rows, and score each fold by fits that did not see it."""
    fit, k = RidgeFit(data, n_components), len(data.folds.folds)
    choice = _Choice.of(fit, penalties)
    penalty = choice.best()
    whole = fit.whole(penalty, None)  # all components: Wilks' statistic is of all of them
    whole = of_length(whole, min(n_components, len(whole.correlations)))
    evaluate = _Evaluate(fit, choice, len(whole.correlations))
    scored = held_out(data.folds, evaluate)
    without = np.stack([evaluate.fitted((fold,), penalty).correlations for fold in range(k)])
    return CanonicalFolds(whole, penalty, *fit.ridges(data.whole, penalty), scored, without)


@dataclass(frozen=True, slots=True)
class RidgeFit:
    """All rows but some folds -> canonical correlations with a ridge."""

    data: AlignedCoordinates
    n_components: int

    def __call__(self, left_out: tuple[int, ...], penalty: float) -> Canonical:
        """Fit with this penalty, without these folds."""
        covariance = self.data.folds.without(*left_out)
        ridge_x, ridge_y = self.ridges(covariance, penalty)
        return canonical(covariance, self.n_components, ridge_x=ridge_x, ridge_y=ridge_y)

    def whole(self, penalty: float, n_components: int | None) -> Canonical:
        """Fit all rows."""
        ridge_x, ridge_y = self.ridges(self.data.whole, penalty)
        white = None if penalty else self.data.white
        return canonical(self.data.whole, n_components, ridge_x=ridge_x, ridge_y=ridge_y, white=white)

    def ridges(self, covariance: JointCovariance, penalty: float) -> tuple[float, float]:
        """Return the ridge of either system: the penalty times the mean variance of a unit."""
        share_x = float(np.trace(covariance.xx)) / self.data.x.n_units
        share_y = float(np.trace(covariance.yy)) / self.data.y.n_units
        return penalty * share_x, penalty * share_y

    def scores(self, left_out: tuple[int, ...], penalty: float) -> list[float]:
        """Return the sum of correlations on each of these folds of a fit without all of them."""
        found = self(left_out, penalty)
        folds = [self.data.folds.fold(fold) for fold in left_out]
        return [float(correlations_of(each, found.weights_x, found.weights_y).sum()) for each in folds]


@dataclass(frozen=True, slots=True)
class _Choice:
    """How each penalty scores on each fold, by fits without it, and by fits without it and one more fold."""

    penalties: tuple[float, ...]
    scores: Float[np.ndarray, "_ fold _"]
    """(penalty, fold tested, fold left out as well); on the diagonal without another."""

    @classmethod
    def of(cls, fit: RidgeFit, penalties: tuple[float, ...]) -> "_Choice":
        ordered, k = tuple(sorted(set(penalties))), len(fit.data.folds.folds)
        scores = np.zeros((len(ordered), k, k))
        if len(ordered) == 1:
            return cls(ordered, scores)
        left_out = [*((fold,) for fold in range(k)), *combinations(range(k), 2)]
        tasks = [(folds, index) for index in range(len(ordered)) for folds in left_out]
        found = map_parallel(_Score(fit, ordered), tasks)
        for (folds, index), each in zip(tasks, found, strict=True):
            for tested, other, score in zip(folds, folds[::-1], each, strict=True):
                scores[index, tested, other] = score
        return cls(ordered, scores)

    def best(self, left_out: int | None = None) -> float:
        """Return the penalty that does best on all folds, or on those that are left; the smallest of equals."""
        if left_out is None:
            totals = np.einsum("mff->m", self.scores)
        else:
            totals = self.scores[:, :, left_out].sum(axis=1) - self.scores[:, left_out, left_out]
        return self.penalties[int(totals.argmax())]


@dataclass(frozen=True, slots=True)
class _Score:
    fit: RidgeFit
    penalties: tuple[float, ...]

    def __call__(self, task: tuple[tuple[int, ...], int]) -> list[float]:
        left_out, index = task
        return self.fit.scores(left_out, self.penalties[index])


@dataclass(frozen=True, slots=True)
class _Evaluate:
    """Folds -> correlations on each of them of weights that saw none of them."""

    fit: RidgeFit
    choice: _Choice
    n_components: int

    def __call__(self, left_out: tuple[int, ...]) -> np.ndarray:
        chosen = [self.choice.best(fold) for fold in left_out]
        fits = {penalty: self.fitted(left_out, penalty) for penalty in set(chosen)}
        folds = [self.fit.data.folds.fold(fold) for fold in left_out]
        return np.stack(
            [
                correlations_of(fold, fits[penalty].weights_x, fits[penalty].weights_y)
                for fold, penalty in zip(folds, chosen, strict=True)
            ]
        )

    def fitted(self, left_out: tuple[int, ...], penalty: float) -> Canonical:
        return of_length(self.fit(left_out, penalty), self.n_components)


def of_length(found: Canonical, n_components: int) -> Canonical:
    """Fill up with components of no correlation: some rows may vary along fewer directions than all do."""
    missing = max(n_components - len(found.correlations), 0)
    correlations = np.pad(found.correlations, (0, missing))[:n_components]
    weights_x, weights_y = (
        np.pad(each, ((0, 0), (0, missing)))[:, :n_components] for each in (found.weights_x, found.weights_y)
    )
    return replace(found, correlations=correlations, weights_x=weights_x, weights_y=weights_y)
