"""Linear CKA between many systems at once, exactly and in float64.

    CKA_ij = ||Xᵢᵀ Xⱼ||²_F / (||Xᵢᵀ Xᵢ||_F ||Xⱼᵀ Xⱼ||_F) = <Kᵢ, Kⱼ> / (||Kᵢ|| ||Kⱼ||),    Kᵢ = Xᵢ Xᵢᵀ, rows centred

The two forms are equal; for m systems of n rows and p units the first costs m² n p² and the second, tile by tile,
m n² p + m² n² / 2. The cheaper one is taken.

Source: [@kornblith2019].
Cost: as above; m p² numbers per state in the first form, m tiles in the second.
Chunked over: rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from mechint_core.errors import DegenerateInputError, ShapeError
from mechint_core.parallel import Reduction, Rows, len_rows, map_parallel, reduce_rows

RESIDENT_BYTES = 256 * 2**20
"""Systems that together are smaller than this are read once and kept while they are compared."""
TILE_ROWS = 256
"""Rows of one tile of a Gram matrix."""
PANEL_BYTES = 16 * 2**20
"""Cross moments kept in one state."""
SHARE_OF_ROUNDING = 1e-13
"""A spread below this share of the mean is rounding: the rows are constant."""


def pairwise_linear_cka(
    systems: Sequence[Rows], *, block_rows: int | None = None
) -> Float[np.ndarray, "checkpoint other_checkpoint"]:
    """Return the linear CKA of every pair of row-aligned systems, exactly and in float64.

    Parameters
    ----------
    systems
        One (sample, unit) array per system, in memory or stored. They may differ in their number of units.
    block_rows
        Rows read at once. The answer does not depend on it beyond 1e-12.

    Returns
    -------
    array
        Symmetric, 1 on the diagonal, in [0, 1].

    Raises
    ------
    ShapeError
        If there is no system, a system is not two-dimensional, or they differ in their number of rows.
    DegenerateInputError
        If a system is constant over its rows, or holds a value that is not finite.

    """
    shapes = [system.shape for system in systems]
    if not shapes or any(len(shape) != 2 for shape in shapes) or len({shape[0] for shape in shapes}) != 1:
        raise ShapeError(f"systems must be (sample, unit) arrays with equally many rows. Got shapes {shapes}.")
    if sum(int(np.prod(s.shape)) * s.dtype.itemsize for s in systems) <= RESIDENT_BYTES:
        systems = [np.asarray(system[:]) for system in systems]
    means = [column_mean(system, block_rows=block_rows) for system in systems]
    if not all(np.all(np.isfinite(mean)) for mean in means):
        raise DegenerateInputError("every system must be finite. Got NaN or infinity: drop those samples first.")
    n, m, p = shapes[0][0], len(shapes), float(np.mean([shape[1] for shape in shapes]))
    by_tiles = n * (p + m / 2) < m * p * p
    inner = (_inner_by_tiles if by_tiles else _inner_by_units)(systems, means, block_rows)
    norms = np.sqrt(np.diag(inner))
    rounding = np.array([n * SHARE_OF_ROUNDING**2 * float(mean @ mean) for mean in means])
    if np.any(norms <= rounding):
        raise DegenerateInputError("every system must vary over its rows. Got the same row every time.")
    return inner / np.outer(norms, norms)


def column_mean(rows: Rows, *, block_rows: int | None = None) -> Float[np.ndarray, "unit"]:
    """Return the mean of each column, summed in float64."""
    return reduce_rows(Reduction(_column_sum, np.add, _identity), rows, block_rows=block_rows) / len_rows(rows)


def _column_sum(block: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # infinities of both signs: refused by the caller
        return block.sum(axis=0, dtype=np.float64)


def _identity(state: np.ndarray) -> np.ndarray:
    return state


def _inner_by_units(systems: Sequence[Rows], means: list[np.ndarray], block_rows: int | None) -> np.ndarray:
    """Return ||Xᵢᵀ Xⱼ||² from cross moments, a panel of systems i at a time."""
    m, widths = len(systems), [len(mean) for mean in means]
    per_system = 8 * max(widths) * sum(widths)
    panel = max(1, PANEL_BYTES // per_system)
    step = block_rows or max(TILE_ROWS, PANEL_BYTES // (4 * sum(widths)))
    inner = np.zeros((m, m))
    for first in range(0, m, panel):
        last = min(first + panel, m)
        cross = Reduction(_CrossMoments(means[first:], last - first), _add_each, _identity_each)
        blocks = reduce_rows(cross, *systems[first:], block_rows=step)
        edges = np.cumsum([0, *widths[first : last - 1]])
        for j, block in enumerate(blocks, start=first):
            inner[first:last, j] = np.add.reduceat(np.einsum("ab,ab->a", block, block), edges)
            inner[j, first:last] = inner[first:last, j]
    return inner


@dataclass(frozen=True, slots=True)
class _CrossMoments:
    """Cross moments of the first `n_panel` systems with each of them all."""

    means: list[np.ndarray]
    n_panel: int

    def __call__(self, *blocks: np.ndarray) -> list[np.ndarray]:
        pairs = list(zip(blocks, self.means, strict=True))
        panel = np.hstack([block - mean for block, mean in pairs[: self.n_panel]])
        return [panel.T @ (block - mean) for block, mean in pairs]


def _add_each(left: list[np.ndarray], right: list[np.ndarray]) -> list[np.ndarray]:
    for total, part in zip(left, right, strict=True):
        total += part  # in place: `left` belongs to its lane, and a second copy would double the memory
    return left


def _identity_each(state: list[np.ndarray]) -> list[np.ndarray]:
    return state


def _inner_by_tiles(systems: Sequence[Rows], means: list[np.ndarray], block_rows: int | None) -> np.ndarray:
    """Return <Kᵢ, Kⱼ> from tiles of the Gram matrices; a tile off the diagonal counts for its mirror image too."""
    n, step = len_rows(systems[0]), min(block_rows or TILE_ROWS, TILE_ROWS)
    tiles = [slice(start, min(start + step, n)) for start in range(0, n, step)]
    return np.sum(map_parallel(_TileRow(systems, means, tiles), range(len(tiles))), axis=0)


@dataclass(frozen=True, slots=True)
class _TileRow:
    """Inner products of all systems' Gram matrices over one row of tiles, from the diagonal on."""

    systems: Sequence[Rows]
    means: list[np.ndarray]
    tiles: list[slice]

    def __call__(self, row: int) -> np.ndarray:
        left = self._centred(self.tiles[row])
        inner = np.zeros((len(left), len(left)))
        for column in range(row, len(self.tiles)):
            right = left if column == row else self._centred(self.tiles[column])
            tiles = np.stack([(a @ b.T).ravel() for a, b in zip(left, right, strict=True)])
            inner += (1 if column == row else 2) * (tiles @ tiles.T)
        return inner

    def _centred(self, rows: slice) -> list[np.ndarray]:
        return [system[rows] - mean for system, mean in zip(self.systems, self.means, strict=True)]
