"""Choosing the concept of each latent on one half of the samples, and testing it on the other.

Nothing here reads the labels of both halves at once: what the choice saw, the test does not see.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from mechint_core.errors import DegenerateInputError, ShapeError
from mechint_core.features._label_statistics import auroc, centred_ranks, hypergeometric_tails, spearman
from mechint_core.kernels.false_discovery import false_discovery_rate
from mechint_core.random import generator
from mechint_core.result import NAN

PERMUTATIONS_AT_ONCE = 500

Order = Int[np.ndarray, "sample"] | slice
"""Of the labels: as they are, or shuffled."""
Halves = tuple[Int[np.ndarray, "sample"], Int[np.ndarray, "other_sample"]]


class Columns(NamedTuple):
    """The label as columns, those that can be tested."""

    values: Bool[np.ndarray, "sample class"] | Float[np.ndarray, "sample class"]
    names: tuple[str, ...]
    """Of all columns."""
    tested: Int[np.ndarray, "test"]
    """Which of them `values` holds."""


def label_columns(label: np.ndarray, parts: Halves, given: tuple[str, ...], min_samples: int) -> Columns:
    """Turn classes into indicators, name them, and leave out what has too few samples."""
    if not np.isfinite(label).all():
        raise DegenerateInputError("label must be finite. Got NaN or infinity.")
    kinds: np.ndarray | range = range(label[0].size)
    if label.dtype.kind in "iu" and label.ndim == 1:
        kinds = np.arange(len(given)) if given and label.max() < len(given) else np.unique(label)
        columns = label[:, None] == kinds  # names are of 0, 1, ..., of which some may not occur
    else:
        columns = label.reshape(len(label), -1)
        columns = columns.astype(np.float64) if label.dtype.kind == "f" else columns != 0
    names = given or tuple(str(kind) for kind in kinds)
    if len(names) != columns.shape[1]:
        raise ShapeError(f"names must be one per concept, {columns.shape[1]}. Got {len(names)}.")
    if columns.dtype == np.bool_:
        n_in = np.array([columns[rows].sum(axis=0) for rows in parts])
        fewer = np.minimum(n_in, [[len(rows)] for rows in parts] - n_in)  # of those in the class and those outside
        tested = np.flatnonzero((fewer.sum(axis=0) >= min_samples) & (fewer.min(axis=0) >= 2))
    else:
        tested = np.flatnonzero(np.min([np.ptp(columns[rows], axis=0) for rows in parts], axis=0) > 0)
    if not tested.size:
        raise DegenerateInputError(
            f"label must have a concept to test: {min_samples} samples in a class and as many outside it, or a "
            "variable that varies. Got none."
        )
    return Columns(columns[:, tested], names, tested)


def halves(label: np.ndarray, seed: int) -> Halves:
    """Split the samples at random, each class evenly."""
    order = generator(seed, "concepts", "halves").permutation(len(label))
    if label.ndim == 1 and label.dtype.kind != "f":
        order = order[np.argsort(label[order], kind="stable")]
    return np.sort(order[::2]), np.sort(order[1::2])


@dataclass(frozen=True, slots=True)
class Half:
    """Half of the samples: what the latents do, and what the labels say."""

    peak: Float[np.ndarray, "sample latent"]
    ranks: Float[np.ndarray, "sample latent"]
    strong: Float[np.ndarray, "sample latent"]
    """1 in a latent's strongest samples: where it fires, at most half of all."""
    truth: Bool[np.ndarray, "sample class"] | Float[np.ndarray, "sample class"]
    """Class membership, or centred ranks of continuous variables."""

    @classmethod
    def of(cls, peak: np.ndarray, columns: np.ndarray) -> "Half":
        truth = columns if columns.dtype == np.bool_ else centred_ranks(columns)
        return cls(peak, centred_ranks(peak), (peak > np.median(peak, axis=0)).astype(np.float64), truth)

    @property
    def continuous(self) -> bool:
        """Whether the truth is variables rather than classes."""
        return self.truth.dtype != np.bool_

    def effects(self, order: Order = slice(None)) -> Float[np.ndarray, "latent class"]:
        """Return AUROC or rho of every pair, for the labels in that order."""
        return (spearman if self.continuous else auroc)(self.ranks, self.truth[order])

    def choose(self, order: Order) -> tuple[np.ndarray, np.ndarray]:
        """Return each latent's surest concept and each concept's best latent."""
        effects = self.effects(order)
        if self.continuous:
            return np.abs(effects).argmax(axis=1), np.abs(effects).argmax(axis=0)
        n_in = self.truth.sum(axis=0)
        sureness = (effects - 0.5) * np.sqrt(n_in * (len(self.truth) - n_in))
        return sureness.argmax(axis=1), effects.argmax(axis=0)

    def chances(
        self, orders: list[Order], n_permutations: int, rng: np.random.Generator
    ) -> Float[np.ndarray, "draw latent class"]:
        """Return the p-values of all pairs, for the labels in each of these orders."""
        if self.continuous:
            return self._drawn_chances(np.stack([self.effects(order) for order in orders]), n_permutations, rng)
        overlap = np.stack([self.strong.T @ self.truth[order] for order in orders]).astype(np.int64)
        sizes, n_samples = self.strong.sum(axis=0).astype(np.int64), len(self.truth)
        latent, p_values = np.arange(len(sizes)), np.empty(overlap.shape)
        for column, n_in in enumerate(self.truth.sum(axis=0)):
            tails = hypergeometric_tails(sizes, int(n_in), n_samples)
            p_values[..., column] = tails[latent, overlap[..., column]]
        return p_values

    def _drawn_chances(
        self, found: Float[np.ndarray, "draw latent class"], n_permutations: int, rng: np.random.Generator
    ) -> Float[np.ndarray, "draw latent class"]:
        as_extreme, size = np.ones(found.shape), np.abs(found) - 1e-12  # rounding must not hide a tie
        for column in range(self.truth.shape[1]):
            for start in range(0, n_permutations, PERMUTATIONS_AT_ONCE):
                n_draws = min(PERMUTATIONS_AT_ONCE, n_permutations - start)
                shuffled = rng.permuted(np.tile(self.truth[:, column, None], n_draws), axis=0)
                null = np.sort(np.abs(spearman(self.ranks, shuffled)), axis=1)
                for latent, row in enumerate(null):
                    as_extreme[:, latent, column] += n_draws - np.searchsorted(row, size[:, latent, column])
        return as_extreme / (1 + n_permutations)


class Found(NamedTuple):
    """What the search found: on the labels, and on every shuffle of them."""

    choice: Half
    held_out: Half
    best_concept: Int[np.ndarray, "latent"]
    best_latent: Int[np.ndarray, "class"]
    q_values: Float[np.ndarray, "latent class"]
    labelled: Float[np.ndarray, "draw"]
    """Share of latents found: first for the labels, then for each shuffle."""
    covered: Float[np.ndarray, "draw"]


def search(
    choice: Half,
    held_out: Half,
    *,
    n_null: int,
    n_permutations: int,
    false_discovery: float,
    any_dependence: bool,
    seed: int,
) -> Found:
    """Choose on one half, test on the other; and again for every shuffle of the labels."""
    if not choice.peak.shape[1]:
        nothing, n_concepts = np.full(1 + n_null, NAN), choice.truth.shape[1]
        return Found(
            choice, held_out, np.empty(0, int), np.full(n_concepts, -1), np.empty((0, n_concepts)), nothing, nothing
        )
    rng = generator(seed, "concepts", "null")
    orders: list[tuple[Order, Order]] = [(slice(None), slice(None))]
    orders += [(rng.permutation(len(choice.truth)), rng.permutation(len(held_out.truth))) for _ in range(n_null)]
    chosen = [choice.choose(order) for order, _ in orders]
    p_values = held_out.chances([order for _, order in orders], n_permutations, rng)
    q_values = [false_discovery_rate(p, any_dependence=any_dependence) for p in p_values]
    labelled = [np.mean(at(q, concept) <= false_discovery) for q, (concept, _) in zip(q_values, chosen, strict=True)]
    covered = [np.mean(at(q.T, latent) <= false_discovery) for q, (_, latent) in zip(q_values, chosen, strict=True)]
    return Found(choice, held_out, *chosen[0], q_values[0], np.array(labelled), np.array(covered))


def at(matrix: Float[np.ndarray, "row column"], column: Int[np.ndarray, "row"]) -> Float[np.ndarray, "row"]:
    """Return one entry of each row."""
    return matrix[np.arange(len(matrix)), column]
