"""Responses to conditions: which samples count, which condition and fold each belongs to, and their means.

A sample that holds NaN is refused or dropped. Conditions keep their place whether they have samples or not, so that
the matrices of several subjects are aligned pair by pair: the pairs of a condition without samples are NaN.

Cost: one pass over the samples.
Chunked over: nothing.
"""

from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
from jaxtyping import Bool, Float, Int

from mechint_core.alignment._distances import pairs_among
from mechint_core.errors import ConfigurationError, DegenerateInputError, ShapeError

Missing = Literal["refuse", "drop"]


def check_missing(missing: str) -> None:
    """Refuse a way with missing values that is not one of `Missing`."""
    if missing not in get_args(Missing):
        raise ConfigurationError(f"missing must be one of {get_args(Missing)}. Got {missing!r}.")


@dataclass(frozen=True, slots=True)
class Responses:
    """Finite samples, and what each of them is a sample of."""

    x: Float[np.ndarray, "sample unit"]
    condition: Int[np.ndarray, "condition"]
    """The label of each condition, ascending."""
    index: Int[np.ndarray, "sample"]
    """The place of each sample's condition in `condition`."""
    fold: Int[np.ndarray, "sample"]
    """The fold of each sample, counted from 0."""
    n_folds: int
    n_dropped: int
    """Samples that were left out because they hold NaN."""

    @property
    def present(self) -> Bool[np.ndarray, "condition"]:
        """Which conditions have a sample."""
        return np.bincount(self.index, minlength=len(self.condition)) > 0

    @property
    def cell(self) -> Int[np.ndarray, "sample"]:
        """Which condition and fold each sample is of, as one number."""
        return self.index * self.n_folds + self.fold

    def where(self, chosen: Bool[np.ndarray, "sample"]) -> "Responses":
        """Return some of the samples; conditions and folds keep their numbers."""
        return replace(self, x=self.x[chosen], index=self.index[chosen], fold=self.fold[chosen])

    def of_conditions(self, chosen: Int[np.ndarray, "condition"]) -> "Responses":
        """Return the samples of some conditions, which are then all there is."""
        place = np.full(len(self.condition), -1)
        place[chosen] = np.arange(len(chosen))
        kept = self.where(place[self.index] >= 0)
        return replace(kept, condition=self.condition[chosen], index=place[kept.index])

    def means(self) -> Float[np.ndarray, "condition unit"]:
        """Return the mean response to each condition that has a sample."""
        _, means = _group_means(self.x, self.index)
        return means

    def fold_means(self) -> tuple[Float[np.ndarray, "condition fold unit"], Int[np.ndarray, "condition fold"]]:
        """Return each condition's mean in each fold (0 where it has no sample), and the number of its samples."""
        shape = len(self.condition), self.n_folds
        counts = np.bincount(self.cell, minlength=shape[0] * shape[1])
        cells, means = _group_means(self.x, self.cell)
        if len(cells) < len(counts):
            filled = np.zeros((len(counts), means.shape[1]))
            filled[cells] = means
            means = filled
        return means.reshape(*shape, -1), counts.reshape(shape)


def responses(
    x: Float[np.ndarray, "sample unit"],
    label: Int[np.ndarray, "sample"] | None,
    fold: Int[np.ndarray, "sample"] | None,
    *,
    missing: Missing,
    conditions: tuple[int, ...],
) -> Responses:
    """Sort out samples, conditions and folds, or say what is wrong with them.

    Parameters
    ----------
    x, label, fold
        Samples, the condition of each (its row number, if None) and its fold (all the same, if None).
    missing
        What is done with samples that hold NaN.
    conditions
        The labels that the answer is about, whether there are samples or not; those there are, if empty.
    """
    if x.ndim != 2 or 0 in x.shape:
        raise ShapeError(f"x must be (sample, unit). Got shape {x.shape}.")
    for name, given in (("label", label), ("fold", fold)):
        if given is not None and given.shape != x.shape[:1]:
            raise ShapeError(f"{name} must have one entry per sample, {x.shape[0]}. Got shape {given.shape}.")
    label = np.arange(len(x)) if label is None else label
    condition = np.unique(np.array(conditions, dtype=np.int64) if conditions else label)
    unknown = np.setdiff1d(label, condition)
    if len(unknown):
        raise ShapeError(f"label must be among the {len(condition)} conditions expected. Got {unknown[:5].tolist()}.")
    folds = np.zeros(len(x), np.int64) if fold is None else np.unique(fold, return_inverse=True)[1]
    index, kept = np.searchsorted(condition, label), _usable(x, missing)
    n_folds = int(folds.max()) + 1
    if kept is None:
        return Responses(x, condition, index, folds, n_folds, 0)
    return Responses(x[kept], condition, index[kept], folds[kept], n_folds, int(np.sum(~kept)))


def spread_pairs(
    condensed: Float[np.ndarray, "known"], present: Bool[np.ndarray, "condition"]
) -> Float[np.ndarray, "pair"]:
    """Return the condensed matrix of all conditions, NaN where one of a pair is not present."""
    n = len(present)
    if present.all():
        return condensed
    everything = np.full(n * (n - 1) // 2, np.nan)
    everything[pairs_among(np.flatnonzero(present), n)] = condensed
    return everything


def _usable(x: np.ndarray, missing: Missing) -> np.ndarray | None:
    """Say which samples to keep; None if all."""
    finite = np.isfinite(x)
    if finite.all():
        return None
    if missing == "refuse" or np.isinf(x).any():
        raise DegenerateInputError(
            "x must be finite. Got NaN or infinity: drop those samples first, or set missing='drop' for NaN."
        )
    kept = np.asarray(finite.all(axis=1))
    if not kept.any():
        raise DegenerateInputError("x must have a sample without NaN. Got none: leave out the units that are NaN.")
    return kept


def _group_means(x: np.ndarray, group: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers of the groups in ascending order, and the mean of each."""
    order = np.argsort(group, kind="stable")
    found, starts, counts = np.unique(group[order], return_index=True, return_counts=True)
    if len(found) == len(group):
        return found, x[order].astype(np.float64, copy=False)
    return found, np.add.reduceat(x[order], starts, axis=0, dtype=np.float64) / counts[:, None]
