"""Means and covariances of two row-aligned systems in one pass, with folds.

    S_xy = (Σ (x_i - c)(y_i - d)ᵀ - n (x̄ - c)(ȳ - d)ᵀ) / (n - 1)        and S_xx, S_yy likewise

c and d are pilot means: any shift is exact, and one near the mean keeps the difference from cancelling. All folds share
the shift, so the sums of all rows but a fold are the sums of all rows minus those of the fold: k-fold cross-validation
reads the data once. Folds are runs of neighbouring rows, so that neighbours in time are held out together.

Source: [@chan1983] (merging sums).
Cost: n (p + q)² / 2 multiplications; (p + q)² numbers per fold and per lane.
Chunked over: rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from mechint_core.errors import ConfigurationError, DegenerateInputError, ShapeError
from mechint_core.parallel import Reduction, Rows, len_rows, reduce_rows

PILOT_ROWS = 64
"""Rows of each of four runs that set the shift."""
ROUNDINGS = 100
"""A spread below this many roundings of the row is rounding: the rows are constant."""


@dataclass(frozen=True, slots=True)
class JointCovariance:
    """How two systems vary, alone and together, over some of their rows."""

    n: int
    mean_x: Float[np.ndarray, "unit"]
    mean_y: Float[np.ndarray, "other_unit"]
    xx: Float[np.ndarray, "unit _"]
    xy: Float[np.ndarray, "unit other_unit"]
    yy: Float[np.ndarray, "other_unit _"]

    def around(self, mean_x: np.ndarray, mean_y: np.ndarray) -> "JointCovariance":
        """Return mean products around other means: those of the rows a model was fitted on."""
        dx, dy, scale = self.mean_x - mean_x, self.mean_y - mean_y, self.n / (self.n - 1)
        return JointCovariance(
            self.n,
            mean_x,
            mean_y,
            self.xx + scale * np.outer(dx, dx),
            self.xy + scale * np.outer(dx, dy),
            self.yy + scale * np.outer(dy, dy),
        )


@dataclass(frozen=True, slots=True)
class FoldSums:
    """Sums of shifted rows and of their products."""

    n: int
    x: np.ndarray
    y: np.ndarray
    xx: np.ndarray
    xy: np.ndarray
    yy: np.ndarray

    def __add__(self, other: "FoldSums") -> "FoldSums":
        return FoldSums(
            self.n + other.n, self.x + other.x, self.y + other.y,
            self.xx + other.xx, self.xy + other.xy, self.yy + other.yy,
        )  # fmt: skip

    def __sub__(self, other: "FoldSums") -> "FoldSums":
        return FoldSums(
            self.n - other.n, self.x - other.x, self.y - other.y,
            self.xx - other.xx, self.xy - other.xy, self.yy - other.yy,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class FoldedCovariance:
    """The joint covariance of all rows, of each fold, and of all rows but some folds."""

    shift_x: np.ndarray
    shift_y: np.ndarray
    total: FoldSums
    folds: tuple[FoldSums, ...]
    rows: tuple[slice, ...]
    """Which rows each fold holds."""

    @property
    def whole(self) -> JointCovariance:
        """All rows."""
        return self._of(self.total)

    def fold(self, index: int) -> JointCovariance:
        """Take the rows of one fold."""
        return self._of(self.folds[index])

    def without(self, *held_out: int) -> JointCovariance:
        """Take all rows but those of these folds."""
        return self._of(reduce(lambda left, fold: left - self.folds[fold], held_out, self.total))

    def _of(self, sums: FoldSums) -> JointCovariance:
        mean_x, mean_y = sums.x / sums.n, sums.y / sums.n

        def covariance(products: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
            return (products - np.outer(sums.n * left, right)) / (sums.n - 1)

        return JointCovariance(
            sums.n,
            self.shift_x + mean_x,
            self.shift_y + mean_y,
            covariance(sums.xx, mean_x, mean_x),
            covariance(sums.xy, mean_x, mean_y),
            covariance(sums.yy, mean_y, mean_y),
        )


def joint_covariance(
    x: Float[Rows, "sample unit"],
    y: Float[Rows, "sample other_unit"],
    *,
    n_folds: int = 1,
    block_rows: int | None = None,
) -> FoldedCovariance:
    """Sum how two systems vary together, in one pass over the rows and in float64.

    Parameters
    ----------
    x, y
        Row-aligned systems, in memory or stored.
    n_folds
        Runs of neighbouring rows, of sizes that differ by at most one, that are also summed by themselves.
    block_rows
        Rows read at once. The answer does not depend on it beyond 1e-12.

    Raises
    ------
    ShapeError
        If either system is not two-dimensional, their numbers of rows differ, or a fold has fewer than 2 rows.
    ConfigurationError
        If there is no fold.
    DegenerateInputError
        If a system holds NaN or infinity, or is constant over its rows.

    Examples
    --------
    >>> x, y = np.array([[0.0], [1.0], [2.0], [3.0]]), np.array([[1.0], [3.0], [5.0], [7.0]])
    >>> found = joint_covariance(x, y, n_folds=2)
    >>> found.whole.xy.item() / found.whole.xx.item(), found.without(1).mean_y.item()
    (2.0, 2.0)
    """
    if len(x.shape) != 2 or len(y.shape) != 2 or x.shape[0] != y.shape[0] or 0 in (*x.shape, *y.shape):
        raise ShapeError(f"systems must be (sample, unit) with the same samples. Got {x.shape} and {y.shape}.")
    n = len_rows(x)
    if n_folds < 1:
        raise ConfigurationError(f"n_folds must be at least 1. Got {n_folds}.")
    if n < 2 * n_folds:
        raise ShapeError(f"systems must have at least 2 rows for each of {n_folds} folds. Got {n} rows.")
    shift_x, shift_y = pilot_mean("x", x), pilot_mean("y", y)
    reduction = Reduction(_Products(shift_x, shift_y), _merge, _finished)
    rows = fold_rows(n, n_folds)
    parts = [RowRange(system, part) for part in rows for system in (x, y)]
    folds = [reduce_rows(reduction, a, b, block_rows=block_rows) for a, b in zip(parts[::2], parts[1::2], strict=True)]
    total = folds[0] if n_folds == 1 else reduce(FoldSums.__add__, folds)
    _check("x", x, shift_x, total.xx, total.x, n)
    _check("y", y, shift_y, total.yy, total.y, n)
    return FoldedCovariance(shift_x, shift_y, total, tuple(folds), rows)


def fold_rows(n: int, n_folds: int) -> tuple[slice, ...]:
    """Return runs of neighbouring rows whose sizes differ by at most one."""
    bounds = np.linspace(0, n, n_folds + 1).round().astype(int)
    return tuple(slice(int(a), int(b)) for a, b in pairwise(bounds))


def picked_rows(rows: Rows, picked: Int[np.ndarray, "draw"], *, block_rows: int = 4096) -> Float[np.ndarray, "draw _"]:
    """Return the rows of these sorted numbers, in float64; read block by block."""
    n = len_rows(rows)
    parts = [np.empty((0, rows.shape[1]))]
    for start in range(0, n, block_rows):
        here = picked[np.searchsorted(picked, start) : np.searchsorted(picked, start + block_rows)]
        if len(here):
            parts.append(rows[start : min(start + block_rows, n)][here - start].astype(np.float64))
    return np.concatenate(parts)


def pilot_mean(name: str, rows: Rows) -> Float[np.ndarray, "unit"]:
    """Return the mean of four short runs of rows, spread over all of them."""
    run = min(PILOT_ROWS, len_rows(rows))
    starts = np.unique(np.linspace(0, len_rows(rows) - run, 4).astype(int))
    pilot = np.concatenate([np.asarray(rows[int(start) : int(start) + run]) for start in starts])
    check_finite(name, pilot)
    return pilot.mean(axis=0, dtype=np.float64)


def check_finite(name: str, numbers: np.ndarray) -> None:
    """Refuse NaN and infinity."""
    if not np.all(np.isfinite(numbers)):
        raise DegenerateInputError(f"{name} must be finite. Got NaN or infinity: drop those samples first.")


def _check(name: str, rows: Rows, shift: np.ndarray, products: np.ndarray, sums: np.ndarray, n: int) -> None:
    check_finite(name, sums)
    spread = float(np.trace(products) - sums @ sums / n)
    rounding = ROUNDINGS * np.finfo(np.result_type(rows.dtype, np.float32)).eps
    if spread <= n * (rounding * np.linalg.norm(shift)) ** 2:
        raise DegenerateInputError(f"{name} must vary over its rows. Got the same row every time.")


@dataclass(frozen=True, slots=True)
class RowRange:
    """A run of rows of a larger array, none of which is read before it is asked for."""

    whole: Rows
    run: slice

    @property
    def shape(self) -> tuple[int, ...]:
        """Length of each axis; rows first."""
        return (self.run.stop - self.run.start, *self.whole.shape[1:])

    @property
    def dtype(self) -> np.dtype[Any]:
        """Kind of number."""
        return self.whole.dtype

    def __getitem__(self, rows: slice, /) -> np.ndarray:
        """Read a run of the rows in the range."""
        start, stop, _ = rows.indices(self.shape[0])
        return self.whole[slice(self.run.start + start, self.run.start + stop)]


@dataclass(frozen=True, slots=True)
class _Products:
    """One block of both systems -> its sums, in a list that the lane may change."""

    shift_x: np.ndarray
    shift_y: np.ndarray

    def __call__(self, x: np.ndarray, y: np.ndarray) -> list[Any]:
        with np.errstate(invalid="ignore", over="ignore"):  # what is not finite is refused at the end
            a, b = x - self.shift_x, y - self.shift_y
            return [len(a), a.sum(axis=0), b.sum(axis=0), a.T @ a, a.T @ b, b.T @ b]


def _merge(left: list[Any], right: list[Any]) -> list[Any]:
    """Add into `left`, which belongs to its lane: a second copy would double the memory."""
    for index, part in enumerate(right):
        left[index] += part
    return left


def _finished(sums: Sequence[Any]) -> FoldSums:
    return FoldSums(*sums)
