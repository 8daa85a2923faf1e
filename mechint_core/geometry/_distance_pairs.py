"""Distances given in place of points: condensed, square or sparse, and the barcode of what they join.

A pair without a distance (infinite in a dense array, not stored in a sparse one) is never joined. Where every point
has a distance to every other the complex is cut at the enclosing radius, exactly; where some are missing there is no
cone, and it is cut at the largest distance given: what is alive there is reported as infinite.

Source: [@bauer2021], [@desilva2004].
Cost: sorting the pairs, then ripser, which visits only the triangles whose three sides are given.
"""

from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import coo_matrix, csr_matrix, issparse, sparray, spmatrix

from mechint_core.errors import DegenerateInputError, ShapeError
from mechint_core.geometry._point_cloud import FEWEST_POINTS, Landmarks
from mechint_core.geometry._vietoris_rips import (
    BYTES_PER_COLUMN,
    BYTES_PER_PAIR,
    BYTES_PER_SIMPLEX,
    barcode,
    engine,
    read_back,
    tied_ranks,
)

SYMMETRIC: Final = 1e-10
"""The two distances of a pair may differ by this share of the largest: rounding."""


@dataclass(frozen=True, slots=True)
class Pairs:
    """The distances between `n_points` points, as far as they are given."""

    n_points: int
    row: Int[np.ndarray, "pair"]
    column: Int[np.ndarray, "pair"]
    """Above `row`."""
    distance: Float[np.ndarray, "pair"]

    @classmethod
    def of(cls, distances: np.ndarray | sparray | spmatrix) -> "Pairs":
        """Read a condensed, square or sparse array; refuse what is no distance."""
        pairs = cls._of_sparse(coo_matrix(distances)) if issparse(distances) else cls._of_dense(np.asarray(distances))
        if pairs.n_points < FEWEST_POINTS:
            raise DegenerateInputError(
                f"distances must be between at least {FEWEST_POINTS} points to form a loop. Got {pairs.n_points}."
            )
        n_bad = int(np.sum(~(pairs.distance >= 0)))
        if n_bad:
            raise DegenerateInputError(f"distances must not be negative or NaN. Got {n_bad} that are.")
        given = np.isfinite(pairs.distance)
        if not np.any(pairs.distance[given] > 0):
            raise DegenerateInputError("distances must hold a finite one above 0. Got none: all points are one.")
        return replace(pairs, row=pairs.row[given], column=pairs.column[given], distance=pairs.distance[given])

    @classmethod
    def _of_dense(cls, distances: np.ndarray) -> "Pairs":
        n = distances.shape[0] if distances.ndim == 2 else round((1 + np.sqrt(1 + 8 * distances.size)) / 2)
        if distances.shape not in ((n, n), (n * (n - 1) // 2,)):
            raise ShapeError(f"distances must be condensed or square. Got shape {distances.shape}.")
        row, column = np.triu_indices(n, 1)
        if distances.ndim == 1:
            return cls(n, row, column, distances.astype(np.float64))
        _check_symmetric(np.diagonal(distances), distances[row, column], distances[column, row])
        return cls(n, row, column, distances[row, column].astype(np.float64))

    @classmethod
    def _of_sparse(cls, distances: coo_matrix) -> "Pairs":
        n = int(distances.get_shape()[0])
        if distances.get_shape() != (n, n):
            raise ShapeError(f"distances must be condensed or square. Got shape {distances.get_shape()}.")
        row, column = np.minimum(distances.row, distances.col), np.maximum(distances.row, distances.col)
        apart, value = row < column, distances.data.astype(np.float64)
        place, first, which = np.unique(
            row[apart].astype(np.int64) * n + column[apart], return_index=True, return_inverse=True
        )
        _check_symmetric(value[~apart], value[apart], value[apart][first][which])
        return cls(n, place // n, place % n, value[apart][first])

    @property
    def n_all(self) -> int:
        """Pairs of the points, given or not."""
        return self.n_points * (self.n_points - 1) // 2

    @property
    def is_complete(self) -> bool:
        """Whether every pair has a distance."""
        return len(self.distance) == self.n_all

    @property
    def n_merged(self) -> int:
        """Pairs at distance 0."""
        return int(np.sum(self.distance == 0))

    def among(self, points: Int[np.ndarray, "landmark"]) -> "Pairs":
        """Return the distances between some of the points."""
        place = np.full(self.n_points, -1)
        place[points] = np.arange(len(points))
        row, column = place[self.row], place[self.column]
        kept = (row >= 0) & (column >= 0)
        row, column = np.minimum(row, column)[kept], np.maximum(row, column)[kept]
        order = np.lexsort((column, row))
        return Pairs(len(points), row[order], column[order], self.distance[kept][order])

    def shuffled(self, rng: np.random.Generator) -> "Pairs":
        """Give the same distances to pairs drawn at random."""
        drawn = rng.choice(self.n_all, len(self.distance), replace=False)
        if self.is_complete:
            return replace(self, distance=self.distance[drawn])
        row, column = _pair_of(np.sort(drawn), self.n_points)
        return replace(self, row=row, column=column, distance=rng.permutation(self.distance))

    def square(self) -> Float[np.ndarray, "point point"]:
        """Return all distances as a matrix; infinite where there is none."""
        matrix = np.full((self.n_points, self.n_points), np.inf)
        matrix[self.row, self.column] = matrix[self.column, self.row] = self.distance
        np.fill_diagonal(matrix, 0.0)
        return matrix

    def landmarks(self, n_landmarks: int) -> Landmarks:
        """Choose points one by one, each the farthest from those before; the first is farthest from all on average."""
        n = self.n_points
        if n <= n_landmarks:
            return Landmarks(np.arange(n), np.arange(n), 0.0)
        matrix = self.square()
        gap, owner, index = np.full(n, np.inf), np.zeros(n, dtype=np.int64), np.empty(n_landmarks, dtype=np.int64)
        farthest = int(matrix.mean(axis=1).argmax())
        for place in range(n_landmarks):
            index[place] = farthest
            owner[matrix[farthest] < gap] = place
            gap = np.minimum(gap, matrix[farthest])
            farthest = int(gap.argmax())
        return Landmarks(index, owner, float(gap.max()))

    def barcode(
        self, *, max_dimension: int, coefficient: int
    ) -> tuple[Float[np.ndarray, "bar endpoint"], Int[np.ndarray, "bar"], float]:
        """Return births and deaths, the dimension of each bar, and the length at which the complex was cut."""
        if self.is_complete:
            return barcode(self.distance, max_dimension=max_dimension, coefficient=coefficient)
        values, rank = tied_ranks(self.distance)
        ranks = coo_matrix((rank + 1.0, (self.row, self.column)), shape=(self.n_points, self.n_points))
        read = np.concatenate([[0.0], values])  # a stored 0 is no distance to the engine: ranks of pairs begin with 1
        cut = float(rank.max()) + 1
        found = engine(ranks, max_dimension=max_dimension, coefficient=coefficient, cut=cut)
        bars, dimension = read_back(found["dgms"], read)
        lasts = bars[:, 1] > bars[:, 0]
        return bars[lasts], dimension[lasts], float(read[int(cut)])

    def memory(self, max_dimension: int) -> int:
        """Return an upper estimate, in bytes, of the peak memory of `barcode`: that of points, by what is given."""
        joined: Any = csr_matrix((np.ones(len(self.row)), (self.row, self.column)), shape=(self.n_points,) * 2)
        corners = (joined @ joined).multiply(joined)  # of i < j < k with all three sides
        n_triangles, degree = int(corners.sum()), int(np.max((joined + joined.T).sum(axis=1)))
        simplices = (self.n_points, len(self.row), n_triangles, n_triangles * degree // 4)[max_dimension]
        columns = 6 * BYTES_PER_COLUMN * n_triangles
        return int(2 * BYTES_PER_PAIR * len(self.row) + columns + BYTES_PER_SIMPLEX * simplices)


def _check_symmetric(own: np.ndarray, one: np.ndarray, other: np.ndarray) -> None:
    if np.any(own != 0):
        raise DegenerateInputError(
            f"a point must be at distance 0 from itself. Got {int(np.sum(own != 0))} that are not."
        )
    finite = np.isfinite(one) & np.isfinite(other)
    apart = np.abs(one[finite] - other[finite]).max(initial=0.0) > SYMMETRIC * np.abs(one[finite]).max(initial=0.0)
    if apart or np.any(np.isinf(one) != np.isinf(other)):
        raise DegenerateInputError(
            "distances must be the same both ways. Got a matrix that is not symmetric: average it with its transpose."
        )


def _pair_of(place: Int[np.ndarray, "pair"], n: int) -> tuple[Int[np.ndarray, "pair"], Int[np.ndarray, "pair"]]:
    """Return row and column of places in a condensed array."""
    starts = np.cumsum(np.concatenate([[0], np.arange(n - 1, 0, -1)]))
    row = np.searchsorted(starts, place, side="right") - 1
    return row, place - starts[row] + row + 1
