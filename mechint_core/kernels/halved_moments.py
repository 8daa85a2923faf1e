"""Second moments of rows, added up for two random halves in one pass.

    C_h = Σ_{i in h} (z_i - m_h)(z_i - m_h)ᵀ,        h = 0, 1        C = C_0 + C_1 + n_0 n_1 / n (m_0 - m_1)(m_0 - m_1)ᵀ

What is fitted on one half can be scored on the other, and what the halves give beside the whole says how much of a
number is owed to fitting. Several row-aligned systems are passed side by side (`row_views.SideBySide`): the blocks of C
are then their covariances and cross-covariances.

Source: sums of products; no published method.
Cost: n p², and 2 p² numbers per state; one read for the mean, one for the moments.
Chunked over: rows.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from mechint_core.errors import DegenerateInputError
from mechint_core.kernels.moments import column_mean
from mechint_core.parallel import Reduction, Rows, len_rows, reduce_rows
from mechint_core.random import generator


@dataclass(frozen=True, slots=True)
class Moments:
    """Sums of products over some rows: about their mean, or about 0."""

    n: int
    cross: Float[np.ndarray, "unit unit"]
    centred: bool

    @property
    def freedom(self) -> int:
        """Dimensions that the rows of one unit can take: n, less one where they are centred."""
        return self.n - self.centred


@dataclass(frozen=True, slots=True)
class HalvedMoments:
    """Moments of all rows and of each half, and some single rows."""

    whole: Moments
    halves: tuple[Moments, Moments]
    mean: Float[np.ndarray, "unit"]
    picked: Float[np.ndarray, "draw unit"]
    """The picked rows, less the mean of all."""
    picked_half: Int[np.ndarray, "draw"]
    """The half that each of them is in."""


def random_half(n: int, seed: int) -> Int[np.ndarray, "sample"]:
    """Return 0 or 1 for each of n rows, as equally many of each as can be."""
    half = np.zeros(n, np.int8)
    half[generator(seed, "halves").permutation(n)[: n // 2]] = 1
    return half


def halved_moments(
    rows: Float[Rows, "sample unit"],
    half: Int[np.ndarray, "sample"],
    *,
    picked: Bool[np.ndarray, "sample"],
    centred: bool = True,
    block_rows: int | None = None,
) -> HalvedMoments:
    """Add up second moments for two halves of the rows, in float64.

    Parameters
    ----------
    rows
        In memory or stored.
    half
        0 or 1 for each row.
    picked
        Rows to keep.
    centred
        About the mean of the rows in question; about 0 otherwise.
    block_rows
        Rows read at once. The answer does not depend on it beyond rounding.

    Raises
    ------
    DegenerateInputError
        If the rows hold NaN or infinity.
    """
    n, mean = len_rows(rows), column_mean(rows, block_rows=block_rows)
    if not np.all(np.isfinite(mean)):
        raise DegenerateInputError("every system must be finite. Got NaN or infinity: drop those samples first.")
    shift = mean if centred else np.zeros_like(mean)
    sums = reduce_rows(Reduction(_Halves(shift), _merge, _itself), rows, half, picked, block_rows=block_rows)
    n_one = int(half.sum())
    halves = tuple(
        Moments(size, _about_mean(cross, total, size) if centred else cross, centred)
        for cross, total, size in zip(sums.cross, sums.total, (n - n_one, n_one), strict=True)
    )
    return HalvedMoments(
        whole=Moments(n, sums.cross[0] + sums.cross[1], centred),
        halves=(halves[0], halves[1]),
        mean=shift,
        picked=np.concatenate(sums.picked),
        picked_half=half[picked].astype(np.int64),
    )


def _about_mean(cross: np.ndarray, total: np.ndarray, n: int) -> np.ndarray:
    return cross - np.outer(total, total / n)


@dataclass(slots=True)
class _Sums:
    """Products and totals of the shifted rows of each half so far, and the rows that were picked."""

    cross: list[np.ndarray]
    total: list[np.ndarray]
    picked: list[np.ndarray]


@dataclass(frozen=True, slots=True)
class _Halves:
    """One block of rows -> its sums."""

    shift: np.ndarray

    def __call__(self, block: np.ndarray, half: np.ndarray, picked: np.ndarray) -> _Sums:
        shifted = block - self.shift
        parts = [shifted[half == which] for which in (0, 1)]
        return _Sums([part.T @ part for part in parts], [part.sum(axis=0) for part in parts], [shifted[picked]])


def _merge(left: _Sums, right: _Sums) -> _Sums:
    """Add into `left`, which belongs to its lane."""
    for total, part in zip(left.cross + left.total, right.cross + right.total, strict=True):
        total += part
    left.picked += right.picked
    return left


def _itself(sums: _Sums) -> _Sums:
    return sums
