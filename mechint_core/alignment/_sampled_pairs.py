"""Kendall's tau-a of two systems from a random sample of their pairs of rows, where all are too many to sort.

Each tile of pairs gives its share of the sample, without replacement, so that the sample is spread evenly over all
pairs. The standard error is that of a simple random sample: twice the spread of the pairs' own concordance, divided by
the root of the sample's size. It is the error of sampling pairs; how far conditions matter, the bootstrap says.

Source: [@kendall1990] (the coefficient), [@hoeffding1948] (its standard error).
Cost: a reading of the rows per tile, `SAMPLED_PAIRS` (p + q) products, and a sort of the sample.
Chunked over: tiles of rows.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from mechint_core.alignment._kendall import dense_ranks, tau_a_of_sample
from mechint_core.alignment._ranks import DistanceTiles
from mechint_core.parallel import len_rows, map_parallel
from mechint_core.random import generator

SAMPLED_PAIRS = 500_000
"""Pairs of rows in the sample: a standard error of at most 0.0015."""


def sampled_tau_a(tiles: DistanceTiles, *, seed: int) -> tuple[float, float]:
    """Return the coefficient of a random sample of pairs of rows, and its standard error."""
    n = len_rows(tiles.x)
    share = min(1.0, SAMPLED_PAIRS / (n * (n - 1) / 2))
    drawn = np.concatenate(map_parallel(_Sample(tiles, share, seed), tiles.spans), axis=1)
    value, error = tau_a_of_sample(dense_ranks(drawn[0]), dense_ranks(drawn[1]))
    return value, error * np.sqrt(1 - share)


@dataclass(frozen=True, slots=True)
class _Sample:
    """Both systems' distances of some of the pairs of a run of rows with itself and each later run."""

    tiles: DistanceTiles
    share: float
    seed: int

    def __call__(self, span: slice) -> Float[np.ndarray, "2 pair"]:
        rng = generator(self.seed, "sampled_pairs", span.start)
        here, drawn = self.tiles.rows(span), []
        for other in (each for each in self.tiles.spans if each.start >= span.start):
            there = here if other == span else self.tiles.rows(other)
            i, j = _pairs(len(here[0]), len(there[0]), self.share, rng, within=other == span)
            drawn.append([_distances(one[i], two[j]) for one, two in zip(here, there, strict=True)])
        return np.concatenate(drawn, axis=1)


def _pairs(
    n_rows: int, n_columns: int, share: float, rng: np.random.Generator, *, within: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Draw a share of the pairs of a tile: of those i < j, where it is of a run with itself."""
    n_pairs = n_rows * (n_rows - 1) // 2 if within else n_rows * n_columns
    size = int(share * n_pairs) + int(rng.random() < share * n_pairs % 1)
    picked = np.sort(rng.choice(n_pairs, size, replace=False, shuffle=False))
    if within:
        i, j = np.triu_indices(n_rows, 1)
        return i[picked], j[picked]
    return picked // n_columns, picked % n_columns


def _distances(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    apart = one.astype(np.float64) - two
    return np.einsum("ia,ia->i", apart, apart)
