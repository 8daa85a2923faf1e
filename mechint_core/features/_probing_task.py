"""What sparse probes are to tell, on which vectors, and how they are scored.

Samples are held out in the order of their label, so that every class and every range of a continuous label is both
trained and tested on. One class against the rest is one target; of two classes, the second alone.
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int, Num

from mechint_core.errors import DegenerateInputError
from mechint_core.features._linear_probes import Scored, score_classes, score_values
from mechint_core.random import generator

Kind = Literal["auto", "classes", "continuous"]


@dataclass(frozen=True, slots=True)
class ProbingTask:
    """What is to be told, on which vectors."""

    condition: tuple[str, ...]
    goals: Float[np.ndarray, "sample condition"]
    """Training targets, centred."""
    wanted: Num[np.ndarray, "condition held_out"] | Bool[np.ndarray, "condition held_out"]
    """Who belongs to each class; or the continuous label, less its mean over training."""
    is_test: Bool[np.ndarray, "vector"]
    test_samples: Int[np.ndarray, "held_out"]
    """Which sample each held-out vector belongs to: those of one sample are not independent."""
    classes: bool
    n_rare: int

    def score(self, predicted: Float[np.ndarray, "condition held_out"]) -> Scored:
        """Return the held-out score, with the influence of each sample."""
        found = score_classes(predicted, self.wanted) if self.classes else score_values(predicted, self.wanted)
        return found._replace(influence=np.bincount(self.test_samples, found.influence))

    def permuted(self, rng: np.random.Generator) -> "ProbingTask":
        """Return the task with the labels of samples exchanged, within training and within what is held out.

        Both, for a probe that happens to choose the right latent would otherwise count as chance.
        """
        per_sample = len(self.test_samples) // (1 + int(self.test_samples.max()))
        train = _permuted_blocks(len(self.goals), per_sample, rng)
        test = _permuted_blocks(self.wanted.shape[1], per_sample, rng)
        return replace(self, goals=self.goals[train], wanted=self.wanted[:, test])


def probing_task(
    labels: Num[np.ndarray, "vector"],
    samples: Int[np.ndarray, "vector"],
    *,
    kind: Kind,
    every: int,
    min_per_class: int,
    seed: int,
) -> ProbingTask:
    """Return the task of telling the labels of vectors that belong to `samples`.

    Raises
    ------
    DegenerateInputError
        If the held-out labels are all the same, or fewer than two classes are large enough.
    """
    is_test = _held_out(labels, samples, every, seed)[samples]
    if kind == "continuous" or (kind == "auto" and labels.dtype.kind == "f"):
        columns = labels.astype(np.float64)[None]
        if (columns[0, is_test] == columns[0, is_test][0]).all():
            raise DegenerateInputError("label must differ between held-out vectors. Got the same everywhere.")
        names, classes, n_rare = ("label",), False, 0
    else:
        values, counts = np.unique(labels, return_counts=True)
        columns = labels == values[:, None]
        inside, outside = columns[:, is_test].sum(axis=1), columns[:, ~is_test].sum(axis=1)
        usable = (counts >= min_per_class) & (inside > 0) & (outside > 0)
        if usable.sum() < 2:
            raise DegenerateInputError(
                f"label must have two classes of at least {min_per_class} vectors. Got {int(usable.sum())}."
            )
        kept = np.flatnonzero(usable)[1:] if len(values) == 2 else np.flatnonzero(usable)
        columns, names = columns[kept], tuple(f"{value:g}" for value in values[kept].astype(np.float64))
        classes, n_rare = True, int((~usable).sum())
    goals, wanted = columns[:, ~is_test].T.astype(np.float64), columns[:, is_test]
    mean = goals.mean(axis=0)
    return ProbingTask(
        condition=names,
        goals=(goals - mean).astype(np.float32),
        wanted=wanted if classes else wanted - mean[:, None],
        is_test=is_test,
        test_samples=np.unique(samples[is_test], return_inverse=True)[1],
        classes=classes,
        n_rare=n_rare,
    )


def _held_out(
    labels: Num[np.ndarray, "vector"], samples: Int[np.ndarray, "vector"], every: int, seed: int
) -> Bool[np.ndarray, "sample"]:
    """Hold out every so many-th sample in the order of the label, ties in random order."""
    mean = np.bincount(samples, labels.astype(np.float64)) / np.bincount(samples)
    order = generator(seed, "split").permutation(len(mean))
    order = order[np.argsort(mean[order], kind="stable")]
    held = np.zeros(len(mean), dtype=bool)
    held[order[every // 2 :: every]] = True
    return held


def _permuted_blocks(n_vectors: int, per_sample: int, rng: np.random.Generator) -> Int[np.ndarray, "vector"]:
    """Return the places of all vectors, samples in random order, those of one sample together."""
    starts = per_sample * rng.permutation(n_vectors // per_sample)
    return (starts[:, None] + np.arange(per_sample)).ravel()
