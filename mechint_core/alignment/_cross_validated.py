"""Held-out agreement of fixed and fitted models with several subjects, in draws of conditions and subjects.

Conditions fall into folds, and subjects do. A model is fitted to the pairs among the other folds' conditions in the
other folds' subjects, and compared with each subject of the fold on the pairs among the fold's conditions. Copies of a
condition or subject are in one fold. Folds are draws in which the other conditions occur 0 times, so all of it is
inner products (`_drawn_products`).

Source: [@schutt2023] (folds over conditions and subjects).
Cost: 2 F (m + S)² n² / 2 per draw for F folds of the conditions.
Chunked over: draws.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from mechint_core.alignment._distances import square_form
from mechint_core.alignment._drawn_products import DrawnComparison, drawn_products
from mechint_core.alignment._model_families import Family, fit
from mechint_core.alignment._subjects import ceilings
from mechint_core.parallel import map_parallel
from mechint_core.random import generator

PRODUCTS_AT_ONCE = 4096
"""Products of matrices made at once in relabelling: with their pairs about 64 MB."""


def folds(n: int, n_folds: int, seed: int, what: str) -> Int[np.ndarray, "_"]:
    """Return the fold of each of `n` conditions or subjects, folds of nearly one size; all 0 for one fold."""
    return generator(seed, "folds", what).permutation(n) % n_folds


@dataclass(frozen=True, slots=True)
class Moments:
    """Inner products of the models, and with the unit vectors of the subjects, in each draw."""

    gram: Float[np.ndarray, "draw model other_model"]
    cross: Float[np.ndarray, "draw model subject"]
    agreement: Float[np.ndarray, "draw model subject"]
    subjects: Float[np.ndarray, "draw subject other_subject"]

    @classmethod
    def of(
        cls,
        models: Float[np.ndarray, "set model pair"],
        data: Float[np.ndarray, "subject pair"],
        comparison: DrawnComparison,
        counts: Int[np.ndarray, "condition draw"],
    ) -> "Moments":
        """Multiply the models of each set and the subjects; each set in each draw is a draw."""
        n_sets, m, s = len(models), models.shape[1], len(data)
        rdms = np.concatenate([models.reshape(n_sets * m, -1), data])
        one, other = np.triu_indices(m + s)
        shift = m * np.arange(n_sets)[:, None]
        left, right = (np.where(each < m, each + shift, each + shift[-1]).ravel() for each in (one, other))
        found = drawn_products(rdms, left, right, comparison, counts=counts)
        agreement, gram, cross = (np.empty((counts.shape[1] * n_sets, m + s, m + s)) for _ in range(3))
        inner = found.inner.reshape(-1, len(one))
        agreement[:, one, other] = agreement[:, other, one] = found.agreement().reshape(inner.shape)
        gram[:, one, other] = gram[:, other, one] = inner
        cross[:, one, other] = inner / np.sqrt(found.right.reshape(inner.shape))
        return cls(gram[:, :m, :m], cross[:, :m, m:], agreement[:, :m, m:], agreement[:, m:, m:])


@dataclass(frozen=True, slots=True)
class CrossValidated:
    """Moments of the training and of the test conditions of each fold."""

    train: tuple[Moments, ...]
    test: tuple[Moments, ...]
    subject_fold: Int[np.ndarray, "subject"]
    families: tuple[Family, ...]

    @classmethod
    def of(
        cls,
        comparison: DrawnComparison,
        families: tuple[Family, ...],
        condition_fold: Int[np.ndarray, "condition"],
        subject_fold: Int[np.ndarray, "subject"],
        data: Float[np.ndarray, "subject pair"],
        models: Float[np.ndarray, "set model pair"],
        counts: Int[np.ndarray, "condition draw"],
    ) -> "CrossValidated":
        """Split the conditions, each of which occurs `counts[i]` times."""
        each = np.unique(condition_fold)
        inside = [(condition_fold == fold)[:, None] for fold in each]
        test = tuple(Moments.of(models, data, comparison, counts * here) for here in inside)
        fitted = bool(families) and len(each) > 1
        train = tuple(Moments.of(models, data, comparison, counts * ~here) for here in inside) if fitted else test
        return cls(train, test, subject_fold, families)

    def scores(self, times: Float[np.ndarray, "#draw subject"]) -> Float[np.ndarray, "_ model"]:
        """Return the held-out agreement of each model, then of each family, where subject s occurs `times[s]` times."""
        return _mean_of_folds([self._scores(*pair, times) for pair in zip(self.train, self.test, strict=True)])

    def with_ceilings(self, times: Float[np.ndarray, "#draw subject"]) -> Float[np.ndarray, "_ _"]:
        """Return both ceilings, then the scores."""
        return np.concatenate([self.ceilings(times), self.scores(times)], axis=1)

    def _scores(self, train: Moments, test: Moments, times: np.ndarray) -> np.ndarray:
        draws = max(len(test.gram), len(times))
        fixed = np.einsum("bms,bs->bm", *_as_many(test.agreement, times, n=draws))
        fitted = np.zeros((draws, len(self.families)))
        for fold in range(self.n_subject_folds) if self.families else ():
            held, rest = times * (self.subject_fold == fold), times * self._training(fold)
            gram, cross, rest = _as_many(train.gram, train.cross, rest, n=draws)
            aim = np.einsum("bms,bs->bm", cross, rest)
            for k, family in enumerate(self.families):
                fitted[:, k] += _held_out(fit(family, gram, aim), test, held)
        return np.concatenate([fixed, fitted], axis=1) / times.sum(axis=1, keepdims=True)

    @property
    def n_subject_folds(self) -> int:
        """Folds of the subjects; 1 where they are not held out."""
        return int(self.subject_fold.max()) + 1

    def _training(self, fold: int) -> np.ndarray:
        return (self.subject_fold != fold) | (self.n_subject_folds == 1)

    def ceilings(self, times: Float[np.ndarray, "#draw subject"]) -> Float[np.ndarray, "_ bound"]:
        """Return the lower and the upper ceiling over the test conditions."""
        n = max(len(self.test[0].subjects), len(times))
        return _mean_of_folds([ceilings(*_as_many(each.subjects, times, n=n)) for each in self.test])


def _as_many(*arrays: np.ndarray, n: int) -> list[np.ndarray]:
    """Repeat what there is one of: the conditions as they are, or the subjects as they are."""
    return [np.broadcast_to(each, (n, *each.shape[1:])) for each in arrays]


def _held_out(theta: np.ndarray, test: Moments, held: np.ndarray) -> np.ndarray:
    """Return the sum of the agreements with the subjects of the fold."""
    gram, cross, held = _as_many(test.gram, test.cross, held, n=len(theta))
    length = np.einsum("bm,bmk,bk->b", theta, gram, theta)
    with np.errstate(invalid="ignore", divide="ignore"):  # a prediction that is constant: NaN
        agreement = np.einsum("bm,bms->bs", theta, cross) / np.sqrt(np.where(length > 0, length, np.nan))[:, None]
    return np.where(held > 0, agreement * held, 0.0).sum(axis=1)


def _mean_of_folds(parts: list[np.ndarray]) -> np.ndarray:
    """Return the mean over the folds in which the value is known."""
    stacked = np.stack(parts)
    known = np.isfinite(stacked)
    n = known.sum(axis=0)
    return np.where(n > 0, np.where(known, stacked, 0.0).sum(axis=0) / np.maximum(n, 1), np.nan)


def relabelled_scores(
    evaluate: Callable[[np.ndarray, np.ndarray], CrossValidated],
    models: np.ndarray,
    permutations: np.ndarray,
    n_subjects: int,
) -> Float[np.ndarray, "draw model"]:
    """Return the scores after relabelling the conditions of all models alike."""
    at_once = max(1, PRODUCTS_AT_ONCE // (len(models) + n_subjects) ** 2)
    relabel = _Relabel(evaluate, models, n_subjects)
    blocks = [permutations[start : start + at_once] for start in range(0, len(permutations), at_once)]
    return np.concatenate(map_parallel(relabel, blocks))


@dataclass(frozen=True, slots=True)
class _Relabel:
    evaluate: Callable[[np.ndarray, np.ndarray], CrossValidated]
    models: np.ndarray
    n_subjects: int

    def __call__(self, permutations: np.ndarray) -> Float[np.ndarray, "draw model"]:
        n = permutations.shape[1]
        i, j = np.triu_indices(n, 1)
        place = square_form(np.arange(len(i)).astype(np.float64)).astype(np.int64)
        pairs = place[permutations[:, i], permutations[:, j]]
        relabelled = self.models[:, pairs].transpose(1, 0, 2)
        once, every = np.ones((n, 1), np.int64), np.ones((1, self.n_subjects))
        return self.evaluate(relabelled, once).scores(every)
