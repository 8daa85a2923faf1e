"""The Vietoris-Rips barcode of a distance matrix: the engine is ripser, the arithmetic around it is exact.

A barcode depends on the order of the distances only. So ripser, which computes in float32, is given their
ranks (integers, exact in float32 up to 2^24), and births and deaths are read back from the float64 distances:
no digit is lost, and distances that differ by rounding share a rank, so that ties leave no bars of length 1e-16.
Beyond the enclosing radius min_i max_j d_ij the complex is a cone and nothing is born: it is cut there, exactly.

Source: [@bauer2021], [@tralie2018].
Cost: sorting n^2/2 distances, then ripser; the time of ripser grows like n^2.5 to n^3 for loops.
"""

import math
from bisect import bisect_right
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, cast

import numpy as np
from jaxtyping import Float, Int
from ripser import ripser
from scipy.spatial.distance import pdist, squareform

from mechint_core.errors import MemoryBudgetError
from mechint_core.geometry._point_cloud import FEWEST_POINTS, Landmarks, maxmin_landmarks
from mechint_core.result import NAN

TIE: Final = 1e-12
"""Distances closer than this share of the diameter are equal."""
BYTES_PER_PAIR: Final = 160
"""Peak memory of the distances, their ranks and ripser's copies, per n^2."""
BYTES_PER_COLUMN: Final = 0.4
"""Peak memory of the reduced columns, per n^3; a clean circle needs most, a Gaussian cloud almost none."""
BYTES_PER_SIMPLEX: Final = 100
"""Peak memory per simplex of the highest homology dimension."""
MOST_RANKS: Final = 2**24
"""Integers below this are exact in the engine's float32."""
PRIMES: Final = tuple(p for p in range(2, 128) if all(p % divisor for divisor in range(2, p)))
"""The engine keeps coefficients in 8 signed bits."""


@dataclass(frozen=True, slots=True)
class RipsBarcode:
    """The barcode of a cloud, by its landmarks."""

    bars: Float[np.ndarray, "bar endpoint"]
    """Births and deaths in units of the points; by dimension, then longest first."""
    dimension: Int[np.ndarray, "bar"]
    radius: float
    """The enclosing radius."""
    landmarks: Landmarks

    @classmethod
    def of(
        cls, points: Float[np.ndarray, "sample coordinate"], *, max_points: int, max_dimension: int, coefficient: int
    ) -> "RipsBarcode":
        """Return the barcode of `points`, or of `max_points` landmarks of them."""
        landmarks = maxmin_landmarks(points, max_points)
        distances = pdist(points[landmarks.index])
        bars, dimension, radius = barcode(distances, max_dimension=max_dimension, coefficient=coefficient)
        return cls(bars, dimension, radius, landmarks)

    def lengths(self, dimension: int) -> Float[np.ndarray, "bar"]:
        """Return the lengths of the bars of `dimension`, longest first."""
        bars = self.bars[self.dimension == dimension]
        return bars[:, 1] - bars[:, 0]

    def longest(self, dimension: int) -> float:
        """Return the length of the longest bar that ends, relative to the enclosing radius; 0 if there is none."""
        lengths = self.lengths(dimension)
        return float(np.max(lengths[np.isfinite(lengths)], initial=0.0)) / self.radius

    def count(self, dimension: int, *, longer: float, above: float) -> int:
        """Return how many bars of `dimension` are longer than this, and of a death over birth above that."""
        bars = self.bars[self.dimension == dimension]
        return int(np.sum((bars[:, 1] - bars[:, 0] > longer) & (bars[:, 1] > above * bars[:, 0])))

    def entropy(self) -> float:
        """Return the persistence entropy of the loops."""
        share = self.lengths(1) / self.lengths(1).sum()
        return float(abs(share @ np.log(share))) if len(share) else NAN


def barcode(
    distances: Float[np.ndarray, "pair"], *, max_dimension: int, coefficient: int
) -> tuple[Float[np.ndarray, "bar endpoint"], Int[np.ndarray, "bar"], float]:
    """Return births and deaths, the homology dimension of each bar, and the enclosing radius.

    `distances` are condensed, as scipy's pdist returns them. Bars come by dimension, then longest first; the
    component that never dies ends at infinity. Homology has coefficients in the field of `coefficient` elements.
    """
    values, rank = tied_ranks(distances)
    ranks = squareform(rank.astype(np.float64))
    cut = ranks.max(axis=1).min()
    found = engine(ranks, max_dimension=max_dimension, coefficient=coefficient, cut=cut)
    bars, dimension = read_back(found["dgms"], values)
    return bars, dimension, float(values[int(cut)])


def engine(
    ranks: Any, *, max_dimension: int, coefficient: int, cut: float, do_cocycles: bool = False
) -> dict[str, list[Any]]:
    """Call ripser on a matrix of ranks, square or sparse, up to the rank `cut`."""
    found = ripser(
        ranks, maxdim=max_dimension, thresh=cut, coeff=coefficient, do_cocycles=do_cocycles, distance_matrix=True
    )
    return cast("dict[str, list[Any]]", found)


def rips_memory(n_points: int, max_dimension: int) -> int:
    """Return an upper estimate, in bytes, of the peak memory of `barcode`, fitted to measured peaks."""
    simplices = math.comb(n_points, max_dimension + 1)
    return int(BYTES_PER_PAIR * n_points**2 + BYTES_PER_COLUMN * n_points**3 + BYTES_PER_SIMPLEX * simplices)


def memory_within(budget: int, n_points: int, max_dimension: int) -> int:
    """Return the bytes that a barcode of `n_points` may take; raise if they are beyond `budget`."""
    n_bytes = rips_memory(n_points, max_dimension)
    if n_bytes > budget:
        raise MemoryBudgetError(
            f"memory_budget must be at least {n_bytes} bytes for {n_points} points in dimension {max_dimension}. "
            f"Got {budget}. Lower max_points, or raise the budget."
        )
    return n_bytes


def points_within(budget: int, n_points: int, max_dimension: int) -> int:
    """Return the most of `n_points` points whose barcode stays within `budget` bytes; raise if that is no loop."""
    most = bisect_right(range(n_points + 1), budget, key=partial(rips_memory, max_dimension=max_dimension)) - 1
    if most < FEWEST_POINTS:
        least = rips_memory(FEWEST_POINTS, max_dimension)
        raise MemoryBudgetError(
            f"memory_budget must be at least {least} bytes, for {FEWEST_POINTS} points. Got {budget}."
        )
    return most


def tied_ranks(
    distances: Float[np.ndarray, "pair"],
) -> tuple[Float[np.ndarray, "value"], Int[np.ndarray, "pair"]]:
    """Return the distinct distances, 0 first, and for every distance which of them it is."""
    order = np.argsort(distances)
    ascending = distances[order]
    opens = np.diff(ascending, prepend=0.0) > TIE * ascending[-1]
    rank = np.empty(len(distances), dtype=np.int64)
    rank[order] = np.cumsum(opens)
    if rank.max(initial=0) >= MOST_RANKS:
        raise MemoryBudgetError(
            f"distances must take fewer than {MOST_RANKS} values. Got {rank.max() + 1}. Lower max_points."
        )
    return np.concatenate([[0.0], ascending[opens]]), rank


def read_back(
    diagrams: list[Any], values: Float[np.ndarray, "value"]
) -> tuple[Float[np.ndarray, "bar endpoint"], Int[np.ndarray, "bar"]]:
    """Turn births and deaths in ranks into distances, longest first, and name the dimension of each bar."""
    bars = [_longest_first(_distances_of(diagram, values)) for diagram in diagrams]
    return np.concatenate(bars), np.repeat(np.arange(len(bars)), [len(each) for each in bars])


def _distances_of(
    diagram: Float[np.ndarray, "bar endpoint"], values: Float[np.ndarray, "value"]
) -> Float[np.ndarray, "bar endpoint"]:
    """Return births and deaths as distances; what never dies stays infinite."""
    alive = np.isinf(diagram)
    lengths = values[np.where(alive, 0, diagram).astype(np.int64)]
    return np.where(alive, np.inf, lengths)


def _longest_first(diagram: Float[np.ndarray, "bar endpoint"]) -> Float[np.ndarray, "bar endpoint"]:
    return diagram[np.argsort(diagram[:, 0] - diagram[:, 1], kind="stable")]
