"""Spearman's correlation of two sets of pair distances: exact, weighted, or from histograms in two passes.

    rho = Pearson(rank D, rank E),  ties sharing their mean rank

Where the pairs are too many to sort, D and E are put in bins and every value gets the mean rank of its bin. With ε the
share of the rank variance that lies inside the bins, the answer is within √ε_x + √ε_y + 2 (ε_x + ε_y) of the exact
one, always; errors inside bins being unrelated, the actual difference is nearer ε (1e-8 at 65,536 bins).

Source: [@kendall1990] (ranks with ties).
Cost: a sort of the pairs; or 2 n² (p + q) in tiles, without any vector of pairs.
Chunked over: tiles of rows.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

from mechint_core.alignment._distances import condensed_distances, squared_distances
from mechint_core.kernels.linear_kernels import PILOT_ROWS, Prepare
from mechint_core.parallel import Rows, len_rows, map_parallel

N_BINS = 65_536
"""Bins of a distance histogram."""
TILE_ROWS = 1000
"""Rows of one tile of distances."""
MARGIN = 0.25
"""How much wider than the pilot's range of distances the bins reach; what lies beyond joins the last bin."""


def mid_ranks(values: Float[np.ndarray, "pair"]) -> Float[np.ndarray, "pair"]:
    """Return ranks from 1; ties share their mean rank."""
    return cast(np.ndarray, stats.rankdata(values))


@dataclass(frozen=True, slots=True)
class Sorted:
    """Values sorted once, so that weighted mid-ranks cost no further sort."""

    order: Int[np.ndarray, "pair"]
    starts: Int[np.ndarray, "row"]
    """Where each run of equal values begins."""
    run: Int[np.ndarray, "pair"]
    """Which run each value belongs to, in the original order."""

    @classmethod
    def of(cls, values: Float[np.ndarray, "pair"]) -> "Sorted":
        """Sort `values` and find their ties."""
        order = np.argsort(values, kind="stable")
        new = np.append(True, np.diff(values[order]) > 0)
        run = np.empty(len(values), np.int64)
        run[order] = np.cumsum(new) - 1
        return cls(order, np.flatnonzero(new), run)

    def ranks(self, weights: Float[np.ndarray, "pair"]) -> Float[np.ndarray, "pair"]:
        """Return the mid-ranks of the sample in which value i occurs `weights[i]` times."""
        mass = np.add.reduceat(weights[self.order], self.starts)
        return (np.cumsum(mass) - mass + (mass + 1) / 2)[self.run]


def histogram_spearman(
    tiles: "DistanceTiles",
    pilot_x: Float[np.ndarray, "draw unit"],
    pilot_y: Float[np.ndarray, "draw other_unit"],
    *,
    broken_ties: bool = False,
) -> tuple[float, float]:
    """Return Spearman's correlation over all pairs of rows, and how far it may be from the exact one.

    The distances among the prepared rows in `pilot_x` and `pilot_y` set where the bins lie. With `broken_ties` it is
    rho-a, the mean over all orders of what is tied.
    """
    bins = tuple(_Bins.around(condensed_distances(rows, 1.0)) for rows in (pilot_x, pilot_y))
    count = _CountBins(tiles, bins)
    counts = np.sum(map_parallel(count, tiles.spans), axis=0)
    ranks = [np.cumsum(each) - each + (each + 1) / 2 - (each.sum() + 1) / 2 for each in counts]
    cross = sum(map_parallel(_MultiplyRanks(count, ranks[0], ranks[1]), tiles.spans))
    between = [float(each @ rank**2) for each, rank in zip(counts, ranks, strict=True)]
    n_pairs = float(counts[0].sum())
    untied = n_pairs * (n_pairs**2 - 1) / 12
    inside_x, inside_y = (max(0.0, 1 - each / untied) for each in between)
    error = np.sqrt(inside_x) + np.sqrt(inside_y) + 2 * (inside_x + inside_y)
    return cross / (untied if broken_ties else float(np.sqrt(between[0] * between[1]))), float(error)


@dataclass(frozen=True, slots=True)
class DistanceTiles:
    """Distances of two systems over the same pairs of rows, made tile by tile, never kept."""

    x: Rows
    y: Rows
    prepare: Prepare
    shift_x: np.ndarray
    shift_y: np.ndarray

    @classmethod
    def of(cls, x: Rows, y: Rows, prepare: Prepare) -> "DistanceTiles":
        """Shift both systems by the mean of their first rows."""
        first = slice(0, PILOT_ROWS)
        return cls(x, y, prepare, prepare(x[first]).mean(axis=0), prepare(y[first]).mean(axis=0))

    @property
    def spans(self) -> list[slice]:
        """The runs of rows whose pairs make the tiles."""
        n = len_rows(self.x)
        return [slice(start, min(start + TILE_ROWS, n)) for start in range(0, n, TILE_ROWS)]

    def along(self, span: slice) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield both systems' distances of the rows in `span` to themselves and to each later run."""
        x, y = self.rows(span)
        upper = np.triu_indices(len(x), 1)
        yield squared_distances(x, x, 1.0)[upper], squared_distances(y, y, 1.0)[upper]
        for later in (other for other in self.spans if other.start > span.start):
            later_x, later_y = self.rows(later)
            yield squared_distances(x, later_x, 1.0).ravel(), squared_distances(y, later_y, 1.0).ravel()

    def rows(self, span: slice) -> tuple[np.ndarray, np.ndarray]:
        """Prepare a run of rows, and shift it so that float32 does not cancel."""
        x, y = self.prepare(self.x[span]), self.prepare(self.y[span])
        return x - self.shift_x.astype(x.dtype), y - self.shift_y.astype(y.dtype)


@dataclass(frozen=True, slots=True)
class _Bins:
    """Equal bins over [low, low + N_BINS / per_unit); what lies outside joins the end bins."""

    low: float
    per_unit: float

    @classmethod
    def around(cls, pilot: np.ndarray) -> "_Bins":
        low, high = float(pilot.min()), float(pilot.max())
        reach = max(high - low, np.finfo(np.float64).tiny)
        return cls(low - MARGIN * reach, N_BINS / ((1 + 2 * MARGIN) * reach))

    def __call__(self, distances: np.ndarray) -> np.ndarray:
        return np.clip((distances - self.low) * self.per_unit, 0, N_BINS - 1).astype(np.int32)


@dataclass(frozen=True, slots=True)
class _CountBins:
    """How often each bin occurs, in both systems, along one run of tiles."""

    tiles: DistanceTiles
    bins: tuple[_Bins, ...]

    def __call__(self, span: slice) -> np.ndarray:
        counts = np.zeros((2, N_BINS))
        for pair in self.tiles.along(span):
            counts += [np.bincount(bins(d), minlength=N_BINS) for bins, d in zip(self.bins, pair, strict=True)]
        return counts


@dataclass(frozen=True, slots=True)
class _MultiplyRanks:
    """Sum of the products of both systems' centred bin ranks along one run of tiles."""

    count: _CountBins
    ranks_x: np.ndarray
    ranks_y: np.ndarray

    def __call__(self, span: slice) -> float:
        bins_x, bins_y = self.count.bins
        pairs = self.count.tiles.along(span)
        return sum(float(self.ranks_x[bins_x(d)] @ self.ranks_y[bins_y(e)]) for d, e in pairs)
