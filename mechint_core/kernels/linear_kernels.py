"""What the linear kernels of two systems say about each other, without their n x n matrices.

For centred rows x_i, y_i let K = X Xᵀ and L = Y Yᵀ, with diagonals k_i = ||x_i||² and l_i = ||y_i||². Then

    tr(K L)                    = ||Xᵀ Y||²_F                                        biased HSIC, times (n - 1)²
    sum_{i≠j} Ã_ij B̃_ij        = tr(K L) - n kᵀl / (n-2) + tr K tr L / ((n-1)(n-2))   unbiased HSIC, times n (n - 3)
    cov_{i<j}(D_ij, E_ij) · N  = n Σ(k_i - k̄)(l_i - l̄) + 2 tr(K L) - 2 tr K tr L / (n - 1)

with Ã, B̃ the U-centred kernels, D_ij = ||x_i - x_j||², E_ij = ||y_i - y_j||² and N = n (n - 1) / 2 pairs: CKA and RSA
are functions of these few sums. One pass has them: each block is lifted to Z = [1, ||x||² - c, x], with x shifted by a
pilot mean, and Zᵀ Z, Zᵀ W, Wᵀ W are added up. The exact mean comes out at the end, where taking it out is a linear
change of the lifted coordinates. Subtracting c and the pilot mean early keeps float32 from cancelling.

Source: [@kornblith2019] (feature form), [@song2012] and [@szekely2014] (unbiased form).
Cost: n (p + q)² where p + q <= n, with p² + p q + q² numbers per state; else n² (p + q), reading both systems whole.
Chunked over: rows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from mechint_core.errors import DegenerateInputError, ShapeError
from mechint_core.parallel import Reduction, Rows, len_rows, reduce_rows

Prepare = Callable[[np.ndarray], np.ndarray]
"""What is done to each row first. A module-level function, so that it can travel to another process."""

PILOT_ROWS = 256
"""Rows that set the shift; any constant is exact."""
BLOCK_ROWS = 1792
"""Rows read at once. At 1000 float32 units a block and its lift take 14 MB."""
PREPARED_BLOCK_ROWS = 640
"""Rows read at once where they are prepared first, which takes further copies."""
ROUNDINGS = 100
"""A spread below this many roundings of the row is rounding: the rows are constant."""


@dataclass(frozen=True, slots=True)
class KernelProduct:
    """The sums over all pairs of rows that bind two centred linear kernels K and L."""

    n: int
    trace_x: float
    """tr K = Σ k_i."""
    trace_y: float
    """tr L = Σ l_i."""
    spread: float
    """Σ (k_i - k̄)(l_i - l̄)."""
    inner: float
    """tr(K L) = Σ_ij K_ij L_ij."""
    row_inner: Float[np.ndarray, "draw"]
    """Σ_j K_ij L_ij of the picked rows i."""
    row_diagonal: Float[np.ndarray, "draw"]
    """k_i l_i of the picked rows i."""

    @property
    def unbiased_inner(self) -> float:
        """Σ Ã_ij B̃_ij over the U-centred kernels: 0 on average for independent systems."""
        n, traces = self.n, self.trace_x * self.trace_y
        diagonal = self.spread + traces / n
        return self.inner - diagonal * n / (n - 2) + traces / ((n - 1) * (n - 2))

    @property
    def distance_inner(self) -> float:
        """Σ_{i<j} D_ij E_ij over squared Euclidean distances."""
        return self.n * self.spread + 2 * self.inner + 2 * self.trace_x * self.trace_y

    @property
    def distance_spread(self) -> float:
        """Σ_{i<j} (D_ij - D̄)(E_ij - Ē) over squared Euclidean distances."""
        return self.n * self.spread + 2 * self.inner - 2 * self.trace_x * self.trace_y / (self.n - 1)


@dataclass(frozen=True, slots=True)
class KernelPair:
    """Two systems' kernels with themselves and with each other, and the rows that were picked on the way."""

    xx: KernelProduct
    xy: KernelProduct
    yy: KernelProduct
    form_x: np.ndarray
    """Xᵀ X or X Xᵀ, whichever was at hand: the powers of both have the same traces."""
    form_y: np.ndarray
    """The same of the second system."""
    rows_x: Float[np.ndarray, "draw unit"]
    """The picked rows of the first system: prepared, and centred by the mean of all rows."""
    rows_y: Float[np.ndarray, "draw other_unit"]

    def null_skewness(self) -> float:
        """Return the skewness of Σ_ij λ_i μ_j χ², to which tr(K L) of unrelated systems tends: up to √8."""
        third = _trace_of_cube(self.form_x) * _trace_of_cube(self.form_y)
        return float(np.sqrt(8) * third / (self.xx.inner * self.yy.inner) ** 1.5)


def linear_kernels(
    x: Float[Rows, "sample unit"],
    y: Float[Rows, "sample other_unit"],
    *,
    prepare: Prepare | None = None,
    picked: Int[np.ndarray, "draw"] | None = None,
    block_rows: int | None = None,
) -> KernelPair:
    """Sum what two linear kernels say about each other, in one pass over the rows.

    Parameters
    ----------
    x, y
        Row-aligned systems, in memory or stored. Products are taken in their own precision (at least float32)
        within a block and added up in float64.
    prepare
        Applied to each block of rows first (centring or normalising each row, for example).
    picked
        Sorted indices of the rows to keep and to report row sums of. None by default.
    block_rows
        Rows read at once.

    Raises
    ------
    ShapeError
        If either system is not two-dimensional, or their numbers of rows differ.
    DegenerateInputError
        If a system holds NaN or infinity, or is constant over its rows.
    """
    if len(x.shape) != 2 or len(y.shape) != 2 or x.shape[0] != y.shape[0] or 0 in (*x.shape, *y.shape):
        raise ShapeError(f"systems must be (sample, unit) with the same samples. Got {x.shape} and {y.shape}.")
    block_rows = block_rows or (BLOCK_ROWS if prepare is None else PREPARED_BLOCK_ROWS)
    prepare = prepare or _as_it_is
    picked = np.empty(0, np.int64) if picked is None else picked
    wide = x.shape[1] + y.shape[1] > x.shape[0]
    kernels = _whole(x, y, prepare, picked) if wide else _streamed(x, y, prepare, picked, block_rows)
    for name, product, system in (("x", kernels.xx, x), ("y", kernels.yy, y)):
        rounding = ROUNDINGS * np.finfo(np.result_type(system.dtype, np.float32)).eps
        if product.trace_x <= product.n * (rounding * np.linalg.norm(prepare(system[:1]))) ** 2:
            raise DegenerateInputError(f"{name} must vary over its rows. Got the same row every time.")
    return kernels


def _as_it_is(block: np.ndarray) -> np.ndarray:
    return block


def _whole(x: Rows, y: Rows, prepare: Prepare, picked: np.ndarray) -> KernelPair:
    """Take the Gram form: fewer rows than units, so K and L are the smaller matrices."""
    first, second = _centred("x", x, prepare), _centred("y", y, prepare)
    k, ell = first @ first.T, second @ second.T
    return KernelPair(
        xx=_product_of_grams(k, k, picked),
        xy=_product_of_grams(k, ell, picked),
        yy=_product_of_grams(ell, ell, picked),
        form_x=k,
        form_y=ell,
        rows_x=first[picked],
        rows_y=second[picked],
    )


def _centred(name: str, rows: Rows, prepare: Prepare) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # what is not finite is refused in the next line
        wide = prepare(np.asarray(rows[:])).astype(np.float64)
    _check_finite(name, wide)
    return wide - wide.mean(axis=0)


def _check_finite(name: str, numbers: np.ndarray) -> None:
    if not np.all(np.isfinite(numbers)):
        raise DegenerateInputError(f"{name} must be finite. Got NaN or infinity: drop those samples first.")


def _product_of_grams(k: np.ndarray, ell: np.ndarray, picked: np.ndarray) -> KernelProduct:
    diagonal_x, diagonal_y = np.diag(k), np.diag(ell)
    return KernelProduct(
        n=len(k),
        trace_x=float(diagonal_x.sum()),
        trace_y=float(diagonal_y.sum()),
        spread=float((diagonal_x - diagonal_x.mean()) @ (diagonal_y - diagonal_y.mean())),
        inner=float(np.vdot(k, ell)),
        row_inner=np.einsum("ij,ij->i", k[picked], ell[picked]),
        row_diagonal=diagonal_x[picked] * diagonal_y[picked],
    )


def _streamed(x: Rows, y: Rows, prepare: Prepare, picked: np.ndarray, block_rows: int) -> KernelPair:
    """Take the feature form: lifted second moments in one pass, centred at the end."""
    lift_x, lift_y = _pilot("x", x, prepare), _pilot("y", y, prepare)
    reduction = Reduction(_LiftedMoments(lift_x, lift_y, picked), _merge, _itself)
    n = len_rows(x)
    sums = reduce_rows(reduction, x, y, _Numbers(n), block_rows=block_rows)
    rows_x, rows_y = _picked(sums.rows_x, sums.xx[0, 2:] / n), _picked(sums.rows_y, sums.yy[0, 2:] / n)
    xx, xy, yy = (_Centred.of(moments, n) for moments in (sums.xx, sums.xy, sums.yy))
    trace_x, trace_y = float(np.trace(xx.cross)), float(np.trace(yy.cross))
    return KernelPair(
        xx=_product_of_moments(xx, n, trace_x, trace_x, rows_x, rows_x),
        xy=_product_of_moments(xy, n, trace_x, trace_y, rows_x, rows_y),
        yy=_product_of_moments(yy, n, trace_y, trace_y, rows_y, rows_y),
        form_x=xx.cross,
        form_y=yy.cross,
        rows_x=rows_x,
        rows_y=rows_y,
    )


def _picked(rows: list[np.ndarray], mean: np.ndarray) -> np.ndarray:
    joined = np.concatenate(rows)
    return joined - mean.astype(joined.dtype)


@dataclass(frozen=True, slots=True)
class _Centred:
    """The lifted moments Zᵀ W with the exact means taken out."""

    cross: np.ndarray
    """Xᵀ Y."""
    spread: float
    """Σ (k_i - k̄)(l_i - l̄), where k_i - k̄ = (1, -2 d) · z_i and d is the mean that the pilot left."""

    @classmethod
    def of(cls, moments: np.ndarray, n: int) -> "_Centred":
        left, right = moments[1:, 0] / n, moments[0, 1:] / n
        centred = moments[1:, 1:].astype(np.float64, copy=False)
        centred -= np.outer(n * left, right)  # in place: nothing reads the moments again
        diagonal_x, diagonal_y = np.append(1.0, -2 * left[1:]), np.append(1.0, -2 * right[1:])
        return cls(centred[1:, 1:], float(diagonal_x @ centred @ diagonal_y))


def _product_of_moments(
    centred: _Centred, n: int, trace_x: float, trace_y: float, rows_x: np.ndarray, rows_y: np.ndarray
) -> KernelProduct:
    return KernelProduct(
        n=n,
        trace_x=trace_x,
        trace_y=trace_y,
        spread=centred.spread,
        inner=float(np.einsum("ab,ab->", centred.cross, centred.cross)),
        row_inner=np.einsum("ib,ib->i", rows_x @ centred.cross.astype(rows_x.dtype), rows_y, dtype=np.float64),
        row_diagonal=np.einsum("ia,ia->i", rows_x, rows_x) * np.einsum("ib,ib->i", rows_y, rows_y),
    )


def _trace_of_cube(symmetric: np.ndarray) -> float:
    """Return tr C³. Three digits are enough for a skewness, so the product is float32; C Cᵀ is a symmetric update."""
    trace = float(np.trace(symmetric))
    share = (symmetric / trace).astype(np.float32)
    return trace**3 * float(np.vdot(share @ share.T, share))


@dataclass(frozen=True, slots=True)
class _Lift:
    """x -> [1, ||x - shift||² - level, x - shift], after `prepare`."""

    name: str
    prepare: Prepare
    shift: np.ndarray
    level: float

    def __call__(self, block: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore", over="ignore"):  # what is not finite is refused below
            prepared = self.prepare(block)
            lifted = np.empty((len(prepared), prepared.shape[1] + 2), np.result_type(prepared.dtype, np.float32))
            shifted = lifted[:, 2:]
            np.subtract(prepared, self.shift.astype(lifted.dtype), out=shifted)
            lifted[:, 0] = 1
            lifted[:, 1] = np.einsum("ia,ia->i", shifted, shifted) - self.level
        _check_finite(self.name, lifted[:, 1])
        return lifted


def _pilot(name: str, rows: Rows, prepare: Prepare) -> _Lift:
    """Shift by the mean of a few runs of rows, spread over all of them."""
    run = min(PILOT_ROWS // 4, len_rows(rows))
    starts = np.unique(np.linspace(0, len_rows(rows) - run, 4).astype(int))
    with np.errstate(invalid="ignore"):
        pilot = prepare(np.concatenate([rows[int(start) : int(start) + run] for start in starts]))
    _check_finite(name, pilot)
    shift = pilot.mean(axis=0, dtype=np.float64)
    return _Lift(name, prepare, shift, float(np.mean(np.sum((pilot - shift) ** 2, axis=1))))


@dataclass(slots=True)
class _Sums:
    """Lifted moments of the rows seen so far, and those of them that were picked."""

    xx: np.ndarray
    xy: np.ndarray
    yy: np.ndarray
    rows_x: list[np.ndarray]
    rows_y: list[np.ndarray]


@dataclass(frozen=True, slots=True)
class _LiftedMoments:
    """One block of both systems -> its lifted moments and picked rows."""

    lift_x: _Lift
    lift_y: _Lift
    picked: np.ndarray

    def __call__(self, x: np.ndarray, y: np.ndarray, numbers: np.ndarray) -> _Sums:
        z, w = self.lift_x(x), self.lift_y(y)
        first, last = np.searchsorted(self.picked, [numbers[0], numbers[-1] + 1])
        here = self.picked[first:last] - numbers[0]
        return _Sums(z.T @ z, z.T @ w, w.T @ w, [z[here, 2:]], [w[here, 2:]])


def _merge(left: _Sums, right: _Sums) -> _Sums:
    """Add into `left`, which belongs to its lane, one matrix after the other: copies of all three would double it."""
    left.xx = _added(left.xx, right.xx)
    left.xy = _added(left.xy, right.xy)
    left.yy = _added(left.yy, right.yy)
    left.rows_x += right.rows_x
    left.rows_y += right.rows_y
    return left


def _added(total: np.ndarray, part: np.ndarray) -> np.ndarray:
    """Add in float64; in place, if `total` is float64 already."""
    return np.add(total, part, out=total if total.dtype == np.float64 else None, dtype=np.float64)


def _itself(sums: _Sums) -> _Sums:
    return sums


@dataclass(frozen=True, slots=True)
class _Numbers:
    """The row numbers 0 ... n - 1 as an input of `reduce_rows`, so that a block knows where it is."""

    n: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.n,)

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(np.int64)

    def __getitem__(self, rows: slice, /) -> np.ndarray:
        start, stop, step = rows.indices(self.n)
        return np.arange(start, stop, step)
