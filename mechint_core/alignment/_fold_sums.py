"""What ridge regression needs of the data, fold by fold: sums that a fold can be left out of.

    per fold f    n_f, Σ x, Σ y, X_fᵀ X_f, X_fᵀ Y_f, diag Y_fᵀ Y_f

The training set without folds f and g is the sum over the others, so nested cross-validation reads the data once. Where
a group of columns is wider than there are rows it is replaced by n coordinates with the same products X Xᵀ (dual form):
a rotation, which changes no prediction of ridge regression.

Source: the definitions.
Cost: n p (p + t) for p columns and t targets; n² p where p > n.
Chunked over: rows.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from mechint_core.errors import ConfigurationError, DegenerateInputError, ShapeError
from mechint_core.parallel import Rows, len_rows, map_parallel
from mechint_core.random import generator

BLOCK_NUMBERS = 2**19
"""Numbers of the wider system read at once: a float64 block of 4 MB."""
PILOT_ROWS = 256
"""Rows whose mean is taken out of every row first: any constant is exact, and a near one cancels less."""
ROUNDING = 1e-12
"""Directions that carry less than this share of the strongest are rounding."""


def assign_folds(
    n: int, group: Int[np.ndarray, "sample"] | None, n_folds: int, *, seed: int
) -> Int[np.ndarray, "sample"]:
    """Return the fold of each row: runs of consecutive rows, or whole groups, spread so that folds are even.

    Raises
    ------
    ShapeError
        If `group` has not one number per row, or there are fewer rows or groups than folds.
    """
    if group is None:
        if n < 2 * n_folds:
            raise ShapeError(f"x must have at least 2 samples for each of {n_folds} folds. Got {n}: lower n_folds.")
        return np.arange(n) * n_folds // n
    if group.shape != (n,):
        raise ShapeError(f"group must have one number per sample, {n}. Got shape {group.shape}.")
    _, number, size = np.unique(group, return_inverse=True, return_counts=True)
    if len(size) < n_folds:
        raise ShapeError(f"group must have at least {n_folds} groups, one per fold. Got {len(size)}: lower n_folds.")
    fold_of_group, filled = np.empty(len(size), np.int64), np.zeros(n_folds)
    shuffled = generator(seed, "folds").permutation(len(size))
    for each in shuffled[np.argsort(-size[shuffled], kind="stable")]:  # the largest first, into the emptiest fold
        fold_of_group[each] = np.argmin(filled)
        filled[fold_of_group[each]] += size[each]
    return fold_of_group[number]


@dataclass(frozen=True, slots=True)
class FoldSums:
    """The sums of every fold. Both systems are shifted by a constant, which `shift_x` and `shift_y` record."""

    n: Int[np.ndarray, "fold"]
    x: Float[np.ndarray, "fold unit"]
    y: Float[np.ndarray, "fold target"]
    xx: list[np.ndarray]
    """Per fold, (unit, unit)."""
    xy: list[np.ndarray]
    """Per fold, (unit, target)."""
    yy: Float[np.ndarray, "fold target"]
    shift_x: Float[np.ndarray, "unit"]
    shift_y: Float[np.ndarray, "target"]

    def of_columns(self, columns: Int[np.ndarray, "column"]) -> "FoldSums":
        """Return the sums of some columns of X."""
        return replace(
            self,
            x=self.x[:, columns],
            xx=[each[np.ix_(columns, columns)] for each in self.xx],
            xy=[each[columns] for each in self.xy],
            shift_x=self.shift_x[columns],
        )

    def mean_x(self, kept: list[int]) -> Float[np.ndarray, "unit"]:
        """Return the mean row of X over the kept folds."""
        return self.x[kept].sum(axis=0) / self.n[kept].sum()

    def mean_y(self, kept: list[int]) -> Float[np.ndarray, "target"]:
        """Return the mean row of Y over the kept folds."""
        return self.y[kept].sum(axis=0) / self.n[kept].sum()

    def xx_about(self, folds: list[int], mean: Float[np.ndarray, "unit"]) -> Float[np.ndarray, "unit unit"]:
        """Return Σ (x - mean)(x - mean)ᵀ over some folds."""
        total = self.xx[folds[0]].copy()
        for each in folds[1:]:
            total += self.xx[each]
        off = self.x[folds].sum(axis=0) - self.n[folds].sum() / 2 * mean
        cross = np.outer(mean, off)
        total -= cross
        total -= cross.T
        return total

    def xy_about(
        self, folds: list[int], mean_x: np.ndarray, mean_y: np.ndarray, columns: slice
    ) -> Float[np.ndarray, "unit target"]:
        """Return Σ (x - mean_x)(y - mean_y)ᵀ over some folds, for some targets."""
        total = self.xy[folds[0]][:, columns].copy()
        for each in folds[1:]:
            total += self.xy[each][:, columns]
        n, sum_x, sum_y = self.n[folds].sum(), self.x[folds].sum(axis=0), self.y[folds, columns].sum(axis=0)
        total -= np.outer(mean_x, sum_y)
        total -= np.outer(sum_x - n * mean_x, mean_y[columns])
        return total

    def yy_about(self, fold: int, mean: Float[np.ndarray, "target"]) -> Float[np.ndarray, "target"]:
        """Return Σ (y - mean)² over one fold."""
        return self.yy[fold] - mean * (2 * self.y[fold] - self.n[fold] * mean)


def fold_sums(
    x: Float[Rows, "sample unit"],
    y: Float[Rows, "sample target"],
    folds: Int[np.ndarray, "sample"],
    *,
    block_rows: int | None = None,
) -> FoldSums:
    """Read X and Y block by block, and add up each fold in float64.

    Raises
    ------
    DegenerateInputError
        If a system holds NaN or infinity.
    """
    block_rows = block_rows or max(16, BLOCK_NUMBERS // max(x.shape[1], y.shape[1]))
    pilot = slice(0, PILOT_ROWS)
    shift_x, shift_y = (_finite(name, rows[pilot]).mean(axis=0) for name, rows in (("x", x), ("y", y)))
    sums = partial(_sums_of_fold, x, y, folds, shift_x, shift_y, block_rows)
    parts = map_parallel(sums, range(int(folds.max()) + 1))
    n, sum_x, sum_y, xx, xy, yy = (list(each) for each in zip(*parts, strict=True))
    return FoldSums(np.array(n), np.stack(sum_x), np.stack(sum_y), xx, xy, np.stack(yy), shift_x, shift_y)


def _sums_of_fold(
    x: Rows, y: Rows, folds: np.ndarray, shift_x: np.ndarray, shift_y: np.ndarray, block_rows: int, fold: int
) -> list[np.ndarray]:
    p, t = x.shape[1], y.shape[1]
    sums = [np.zeros((), np.int64), np.zeros(p), np.zeros(t), np.zeros((p, p)), np.zeros((p, t)), np.zeros(t)]
    for rows, kept in row_blocks(folds == fold, block_rows):
        here_x, here_y = _finite("x", x[rows]), _finite("y", y[rows])
        if not kept.all():
            here_x, here_y = here_x[kept], here_y[kept]
        here_x -= shift_x
        here_y -= shift_y
        sums[0] += len(here_x)
        sums[1] += here_x.sum(axis=0)
        sums[2] += here_y.sum(axis=0)
        sums[3] += here_x.T @ here_x
        sums[4] += here_x.T @ here_y
        sums[5] += np.einsum("it,it->t", here_y, here_y)
    return sums


def row_blocks(wanted: np.ndarray, block_rows: int) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield runs of at most `block_rows` rows from the first wanted row to the last, and which of them are wanted."""
    found = np.flatnonzero(wanted)
    if len(found) == 0:
        return
    for start in range(int(found[0]), int(found[-1]) + 1, block_rows):
        rows = slice(start, min(start + block_rows, int(found[-1]) + 1))
        kept = wanted[rows]
        if kept.any():
            yield rows, kept


def _finite(name: str, block: np.ndarray) -> np.ndarray:
    wide = np.asarray(block).astype(np.float64)
    if not np.all(np.isfinite(wide)):
        raise DegenerateInputError(f"{name} must be finite. Got NaN or infinity: drop those samples first.")
    return wide


@dataclass(frozen=True, slots=True)
class Predictors:
    """X, its columns in bands, or fewer coordinates that predict the same."""

    rows: Rows
    widths: tuple[int, ...]
    """Columns of each band, after the wide ones were replaced."""
    back: tuple[np.ndarray | None, ...]
    """Per band: from weights on the coordinates to weights on the columns, where it was replaced."""
    centre: Float[np.ndarray, "unit"]
    """What was taken out of the columns that were replaced; 0 elsewhere."""

    @property
    def bands(self) -> list[np.ndarray]:
        """The column numbers of each band."""
        edges = np.cumsum([0, *self.widths])
        return [np.arange(a, b) for a, b in pairwise(edges)]

    def weights(self, of_coordinates: Float[np.ndarray, "coordinate target"]) -> Float[np.ndarray, "unit target"]:
        """Return the weights on the columns of X."""
        parts = [
            part if back is None else back @ part
            for part, back in zip((of_coordinates[band] for band in self.bands), self.back, strict=True)
        ]
        return np.concatenate(parts)


def predictors(x: Float[Rows, "sample unit"], bands: tuple[int, ...]) -> Predictors:
    """Leave X as it is, or replace each band that is wider than there are rows by its coordinates (dual form).

    Raises
    ------
    ShapeError
        If X is not two-dimensional or has no column.
    ConfigurationError
        If `bands` does not add up to the columns of X.
    """
    if len(x.shape) != 2 or 0 in x.shape:
        raise ShapeError(f"x must be (sample, unit) with at least one of each. Got shape {x.shape}.")
    widths = bands or (x.shape[1],)
    if sum(widths) != x.shape[1] or min(widths) < 1:
        raise ConfigurationError(f"bands must be widths that add up to the {x.shape[1]} columns of x. Got {bands}.")
    n = len_rows(x)
    if max(widths) <= n:
        return Predictors(x, widths, (None,) * len(widths), np.zeros(x.shape[1]))
    whole = _finite("x", x[:])
    edges = np.cumsum([0, *widths])
    parts, back, centre = [], list[np.ndarray | None](), np.zeros(x.shape[1])
    for start, stop in pairwise(edges):
        band = whole[:, start:stop]
        if band.shape[1] <= n:
            parts.append(band)
            back.append(None)
            continue
        centre[start:stop] = band.mean(axis=0)
        centred = band - centre[start:stop]
        values, vectors = np.linalg.eigh(centred @ centred.T)
        strong = values > ROUNDING * max(values[-1], np.finfo(np.float64).tiny)
        parts.append(vectors[:, strong] * np.sqrt(values[strong]))
        back.append(centred.T @ (vectors[:, strong] / np.sqrt(values[strong])))
    return Predictors(np.hstack(parts), tuple(part.shape[1] for part in parts), tuple(back), centre)


class Permuted:
    """The targets again and again, their rows in other orders: draw by draw, made block by block as it is read.

    With `fixed`, that is added to every draw: the part of the targets that stays where it is.
    """

    def __init__(
        self,
        y: Float[np.ndarray, "sample target"],
        orders: Int[np.ndarray, "draw sample"],
        fixed: Float[np.ndarray, "sample target"] | None = None,
    ) -> None:
        self._y, self._orders, self._fixed = y, orders, fixed
        self.shape = (len(y), y.shape[1] * len(orders))
        self.dtype: np.dtype[Any] = y.dtype

    def __getitem__(self, rows: slice, /) -> np.ndarray:
        """Read a run of rows: (row, draw and target), the targets of a draw side by side."""
        moved = self._y[self._orders[:, rows].T]
        if self._fixed is not None:
            moved += self._fixed[rows][:, None]
        return moved.reshape(len(moved), self.shape[1])
