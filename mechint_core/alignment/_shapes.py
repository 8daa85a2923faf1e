"""One pass over two systems -> the angle between their shapes, with its interval and its null.

    interval   the infinitesimal jackknife of the cosine, on Fisher's scale, around 2 c - (c_0 + c_1) / 2, where c is
               the cosine of all rows and c_h that of half h: fitting makes each too large by a multiple of 1 / its
               number of rows, which the difference takes out
    null       the samples of one system relabelled; above `RELABELLED_ROWS` rows, rotated (`kernels.shape_metric`)

Source: [@williams2021], [@quenouille1956] (bias by halves), [@efron1982] (jackknife).
Cost: n (p + q)² + (p + q)³ per pair, p q min(p, q) per null draw.
Chunked over: rows.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from mechint_core.errors import DegenerateInputError, ShapeError
from mechint_core.kernels.fisher_interval import fisher_interval
from mechint_core.kernels.halved_moments import HalvedMoments, halved_moments, random_half
from mechint_core.kernels.row_views import SideBySide
from mechint_core.kernels.shape_metric import ShapePair, null_cosines, shape_angle
from mechint_core.parallel import Rows, len_rows
from mechint_core.random import generator

RELABELLED_ROWS = 1024
"""Up to this many rows (or fewer rows than units) samples are relabelled; above they are rotated."""
BLOCK_ROWS = 0
"""Rows read at once; 0 lets `reduce_rows` choose."""
ROUNDING = 1e-12
"""Cosines closer to 1 are those of copies."""
RANK = 1e-12
"""Singular values below this share of the largest are rounding."""


@dataclass(frozen=True, slots=True)
class Narrowed:
    """A system in at most n coordinates: itself, or where it has more units than samples, its principal ones."""

    rows: Rows
    basis: Float[np.ndarray, "unit coordinate"] | None
    """From its units to its coordinates; None if they are its units."""

    @classmethod
    def of(cls, system: Rows, *, centred: bool) -> "Narrowed":
        n, p = system.shape
        if p <= n:
            return cls(system, None)
        with np.errstate(invalid="ignore"):
            wide = np.asarray(system[:], dtype=np.float64)
            wide = wide - wide.mean(axis=0) if centred else wide
        if not np.all(np.isfinite(wide)):
            raise DegenerateInputError("every system must be finite. Got NaN or infinity: drop those samples first.")
        left, values, right = np.linalg.svd(wide, full_matrices=False)
        kept = values > RANK * max(values[0], np.finfo(float).tiny)
        if not kept.any():
            raise DegenerateInputError("every system must vary over its samples. Got the same row every time.")
        return cls(left[:, kept] * values[kept], right[kept].T)

    def to_units(self, coordinates: Float[np.ndarray, "coordinate column"]) -> Float[np.ndarray, "unit column"]:
        """Return a map of the coordinates as one of the units."""
        return coordinates if self.basis is None else self.basis @ coordinates


def check_systems(systems: Sequence[Rows], least_rows: int = 8) -> int:
    """Refuse systems that are not (sample, unit) with the same samples; return how many samples."""
    shapes = [each.shape for each in systems]
    if len(shapes) < 2 or any(len(shape) != 2 or 0 in shape for shape in shapes) or len({s[0] for s in shapes}) != 1:
        raise ShapeError(f"systems must be two or more (sample, unit) with the same samples. Got shapes {shapes}.")
    if shapes[0][0] < least_rows:
        raise ShapeError(f"systems must have at least {least_rows} samples. Got shapes {shapes}.")
    return shapes[0][0]


@dataclass(frozen=True, slots=True)
class ShapeMoments:
    """What one pass over two systems leaves."""

    rows: SideBySide
    n_units: int
    """Coordinates of the first system."""
    moments: HalvedMoments

    @classmethod
    def of(cls, x: Rows, y: Rows, *, picked: np.ndarray, seed: int, centred: bool = True) -> "ShapeMoments":
        """Read two systems; `picked` says which rows to keep."""
        joint, n = SideBySide([x, y]), len_rows(x)
        found = halved_moments(
            joint, random_half(n, seed), picked=picked, centred=centred, block_rows=BLOCK_ROWS or None
        )
        for name, part in (("x", slice(0, x.shape[1])), ("y", slice(x.shape[1], None))):
            spread = float(np.trace(found.whole.cross[part, part]))
            if spread <= n * _rounding(joint.dtype) ** 2 * float(np.sum(np.square(found.mean[part]))):
                raise DegenerateInputError(f"{name} must vary over its samples. Got the same row every time.")
        return cls(joint, x.shape[1], found)

    @property
    def relabels(self) -> bool:
        """Whether the null relabels: there are few rows, or too few for a rotation that keeps the units apart."""
        n, freedom = self.moments.whole.n, self.moments.whole.freedom
        return n <= RELABELLED_ROWS or self.rows.shape[1] > freedom

    def null(self, pair: ShapePair, *, n_draws: int, seed: int, stream: tuple[str | int, ...] = ()) -> np.ndarray:
        """Return cosines of unrelated systems."""
        rows = np.asarray(self.rows[:], dtype=np.float64) - self.moments.mean if self.relabels else None
        return null_cosines(pair, self.moments.whole, rows, n_draws=n_draws, seed=seed, stream=stream)

    def angle(self, pair: ShapePair) -> float:
        """Return the angle in radians."""
        return shape_angle(pair, self.rows, self.moments.mean, block_rows=BLOCK_ROWS or None)


def _rounding(dtype: np.dtype) -> float:
    return 100 * float(np.finfo(np.result_type(dtype, np.float32)).eps)


def pick(n: int, n_picked: int, seed: int, technique: str) -> np.ndarray:
    """Say of each of n rows whether the width of the interval is estimated from it."""
    chosen = np.zeros(n, bool)
    chosen[generator(seed, technique).choice(n, min(n, n_picked), replace=False)] = True
    return chosen


def angle_interval(
    angle: float, cosine: float, halves: tuple[float, float], error: float, level: float
) -> tuple[float, float]:
    """Return the interval of an angle, from its cosine, that of each half, and the cosine's standard error."""
    if 1 - cosine <= ROUNDING:
        return angle, angle
    centre = 2 * cosine - (halves[0] + halves[1]) / 2
    low, high = np.clip(fisher_interval(float(np.clip(centre, -1, 1)), error, level), -1, 1)
    return math.acos(high), math.acos(low)
