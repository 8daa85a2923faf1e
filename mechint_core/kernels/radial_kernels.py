"""What the radial (Gaussian) kernels of two systems say about each other, without their n x n matrices.

    K_ij = exp(-||x_i - x_j||² / (2 s²)),        Kᶜ = K - row mean - column mean + mean

    tr(Kᶜ Lᶜ) = Σ_ij K_ij L_ij - 2/n Σ_i K_i. L_i. + K.. L.. / n²,        Kᶜ_ii = 1 - 2 K_i. / n + K.. / n²

so that tiles of K and L are made, reduced to their sums and row sums, and dropped. The answer has the same form as that
of `linear_kernels`, because every sum there is one of a centred kernel and its diagonal.

Source: [@kornblith2019] (bandwidth as a share of the median distance), [@song2012].
Cost: n² (p + q); a tile, and n numbers per lane.
Chunked over: rows.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.spatial.distance import pdist

from mechint_core.errors import DegenerateInputError, ShapeError
from mechint_core.kernels.linear_kernels import KernelPair, KernelProduct
from mechint_core.kernels.moments import column_mean
from mechint_core.parallel import LANES, Rows, len_rows, map_parallel

TILE_ROWS = 512
"""Rows of one tile of a kernel: 2 MB."""
MEDIAN_ROWS = 2000
"""Rows, evenly spaced over all, whose distances have the median."""
RESIDENT_BYTES = 256 * 2**20
"""A system smaller than this is read once and kept."""


def median_distance(rows: Float[Rows, "sample unit"]) -> float:
    """Return the median Euclidean distance of two rows.

    Raises
    ------
    ShapeError
        If the rows are not two-dimensional, or there are fewer than two.
    DegenerateInputError
        If a distance is not finite, or more than half of them are 0.
    """
    n = len_rows(rows)
    if len(rows.shape) != 2 or n < 2:
        raise ShapeError(f"a median distance needs (sample, unit) with at least 2 samples. Got {rows.shape}.")
    if n <= MEDIAN_ROWS:
        some = np.asarray(rows[:])
    else:
        chosen = np.linspace(0, n - 1, MEDIAN_ROWS).astype(int)
        some = np.concatenate([rows[int(i) : int(i) + 1] for i in chosen])
    if not np.all(np.isfinite(some)):
        raise DegenerateInputError("rows must be finite. Got NaN or infinity: drop those samples first.")
    wide = some.astype(np.float64)
    median = float(np.median(pdist(wide - wide.mean(axis=0))))
    if not 0 < median < np.inf:
        raise DegenerateInputError(f"the median distance must be above 0. Got {median}: more than half the rows agree.")
    return median


def radial_kernels(
    x: Float[Rows, "sample unit"],
    y: Float[Rows, "sample other_unit"],
    *,
    scale_x: float,
    scale_y: float,
    picked: Int[np.ndarray, "draw"] | None = None,
) -> KernelPair:
    """Sum what two radial kernels say about each other, tile by tile in float64.

    Parameters
    ----------
    x, y
        Row-aligned systems, in memory or stored.
    scale_x, scale_y
        The width s of either kernel, in the units of the data.
    picked
        Sorted indices of the rows to report row sums of; from their part of the kernel the skewness is estimated.

    Raises
    ------
    ShapeError
        If either system is not two-dimensional, or their numbers of rows differ.
    DegenerateInputError
        If a system holds NaN or infinity.
    """
    if len(x.shape) != 2 or len(y.shape) != 2 or x.shape[0] != y.shape[0] or 0 in (*x.shape, *y.shape):
        raise ShapeError(f"systems must be (sample, unit) with the same samples. Got {x.shape} and {y.shape}.")
    n = len_rows(x)
    picked = np.empty(0, np.int64) if picked is None else picked
    first, second = _Radial.of("x", x, scale_x), _Radial.of("y", y, scale_y)
    tiles = [slice(start, min(start + TILE_ROWS, n)) for start in range(0, n, TILE_ROWS)]
    lanes = [range(lane, len(tiles), LANES) for lane in range(min(LANES, len(tiles)))]
    sums = map_parallel(_Tiles(first, second, tiles), lanes)
    raw = np.sum([each.inner for each in sums], axis=0)
    mean_x = np.sum([each.rows_x for each in sums], axis=0) / n
    mean_y = np.sum([each.rows_y for each in sums], axis=0) / n
    strips = _strips(_Centred(first, mean_x), _Centred(second, mean_y), picked, tiles)
    xx, xy, yy = (
        _product(total, one, other, row_inner, picked)
        for total, one, other, row_inner in zip(
            raw, (mean_x, mean_x, mean_y), (mean_x, mean_y, mean_y), strips, strict=True
        )
    )
    return KernelPair(
        xx=xx,
        xy=xy,
        yy=yy,
        form_x=_form(_Centred(first, mean_x), picked, xx.inner),
        form_y=_form(_Centred(second, mean_y), picked, yy.inner),
        rows_x=first.gather(picked),
        rows_y=second.gather(picked),
    )


@dataclass(frozen=True, slots=True)
class _Radial:
    """Tiles of one system's kernel. Rows are centred first: a common offset would cancel badly in the distances."""

    rows: Rows
    mean: np.ndarray
    scale: float

    @classmethod
    def of(cls, name: str, rows: Rows, scale: float) -> "_Radial":
        if int(np.prod(rows.shape)) * rows.dtype.itemsize <= RESIDENT_BYTES:
            rows = np.asarray(rows[:])
        mean = column_mean(rows)
        if not np.all(np.isfinite(mean)):
            raise DegenerateInputError(f"{name} must be finite. Got NaN or infinity: drop those samples first.")
        return cls(rows, mean, scale)

    def read(self, tile: slice) -> np.ndarray:
        """Return a run of rows, in units of the scale."""
        return (self.rows[tile] - self.mean) / self.scale

    def gather(self, picked: np.ndarray) -> np.ndarray:
        """Return single rows, centred."""
        if not len(picked):
            return np.empty((0, len(self.mean)))
        return np.concatenate([self.rows[int(i) : int(i) + 1] for i in picked]) - self.mean

    def kernel(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Return exp(-||a - b||² / 2) of every pair."""
        exponent = left @ right.T
        exponent -= 0.5 * np.einsum("ia,ia->i", left, left)[:, None]
        exponent -= 0.5 * np.einsum("ia,ia->i", right, right)
        return np.exp(np.minimum(exponent, 0, out=exponent), out=exponent)


@dataclass(slots=True)
class _Sums:
    """Σ K K, Σ K L and Σ L L over the tiles so far, and the row sums of K and L."""

    inner: np.ndarray
    rows_x: np.ndarray
    rows_y: np.ndarray


@dataclass(frozen=True, slots=True)
class _Tiles:
    """Sums over some rows of tiles, from the diagonal on; a tile off the diagonal counts for its mirror image too."""

    x: _Radial
    y: _Radial
    tiles: list[slice]

    def __call__(self, rows: range) -> _Sums:
        n = self.tiles[-1].stop
        sums = _Sums(np.zeros(3), np.zeros(n), np.zeros(n))
        for row in rows:
            left_x, left_y = self.x.read(self.tiles[row]), self.y.read(self.tiles[row])
            for column in range(row, len(self.tiles)):
                here = column == row
                right_x = left_x if here else self.x.read(self.tiles[column])
                right_y = left_y if here else self.y.read(self.tiles[column])
                k, ell = self.x.kernel(left_x, right_x), self.y.kernel(left_y, right_y)
                sums.inner += (1 if here else 2) * np.array([np.vdot(k, k), np.vdot(k, ell), np.vdot(ell, ell)])
                for kernel, total in ((k, sums.rows_x), (ell, sums.rows_y)):
                    total[self.tiles[row]] += kernel.sum(axis=1)
                    if not here:
                        total[self.tiles[column]] += kernel.sum(axis=0)
        return sums


@dataclass(frozen=True, slots=True)
class _Centred:
    """The centred kernel between picked rows and any run of rows."""

    radial: _Radial
    mean: np.ndarray

    def __call__(self, picked: np.ndarray, chosen: np.ndarray, columns: np.ndarray, where: slice) -> np.ndarray:
        """Return Kᶜ between the rows `chosen` (numbered `picked`) and `columns` (at `where`)."""
        kernel = self.radial.kernel(chosen, columns)
        return kernel - self.mean[picked][:, None] - self.mean[where] + self.mean.mean()


def _strips(x: _Centred, y: _Centred, picked: np.ndarray, tiles: list[slice]) -> list[np.ndarray]:
    """Return Σ_j Kᶜ_ij Kᶜ_ij, Σ_j Kᶜ_ij Lᶜ_ij and Σ_j Lᶜ_ij Lᶜ_ij of the picked rows i."""
    totals = [np.zeros(len(picked)) for _ in range(3)]
    if not len(picked):
        return totals
    chosen_x, chosen_y = (each.radial.gather(picked) / each.radial.scale for each in (x, y))
    for tile in tiles:
        k = x(picked, chosen_x, x.radial.read(tile), tile)
        ell = y(picked, chosen_y, y.radial.read(tile), tile)
        for total, (one, other) in zip(totals, ((k, k), (k, ell), (ell, ell)), strict=True):
            total += np.einsum("ij,ij->i", one, other)
    return totals


def _product(
    total: float, mean_x: np.ndarray, mean_y: np.ndarray, row_inner: np.ndarray, picked: np.ndarray
) -> KernelProduct:
    n = len(mean_x)
    diagonal_x, diagonal_y = (1 - 2 * mean + mean.mean() for mean in (mean_x, mean_y))
    return KernelProduct(
        n=n,
        trace_x=float(diagonal_x.sum()),
        trace_y=float(diagonal_y.sum()),
        spread=float((diagonal_x - diagonal_x.mean()) @ (diagonal_y - diagonal_y.mean())),
        inner=float(total - 2 * n * (mean_x @ mean_y) + n * n * mean_x.mean() * mean_y.mean()),
        row_inner=row_inner,
        row_diagonal=diagonal_x[picked] * diagonal_y[picked],
    )


def _form(centred: _Centred, picked: np.ndarray, inner: float) -> np.ndarray:
    """Return the picked rows' part of the kernel, scaled to the norm of the whole: its cube has the skewness."""
    if not len(picked):
        return np.zeros((1, 1))
    chosen = centred.radial.gather(picked) / centred.radial.scale
    form = centred.radial.kernel(chosen, chosen) - centred.mean[picked][:, None] - centred.mean[picked]
    form += centred.mean.mean()
    return form * np.sqrt(inner) / np.linalg.norm(form)
