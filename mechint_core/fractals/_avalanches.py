"""From a raster to avalanches: what is an event, how many there are in each bin, and runs of bins between silence.

    event       what an integer raster counts; of a continuous one, a step at which a unit is above its mean by so many
                standard deviations
    activity    A(t) = sum over units and steps of bin t of the events
    avalanche   a run of bins with A > level, between bins with A <= level; its size is the sum of A - level

Events are whole numbers, so sums over units are the same bits in every order and chunking. A surrogate shifts each
unit around the circle by a random time: its rate and its own rhythm stay, what units do together is gone.

Source: [@beggs2003], [@wilting2018]
Cost: one pass over the raster; 2 ns per event and surrogate.
Chunked over: time.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, Final, no_type_check

import numpy as np
from jaxtyping import Bool, Float, Int
from numba import njit

from mechint_core.errors import DegenerateInputError, DtypeError, ShapeError
from mechint_core.fractals._power_law import NanPolicy, stream
from mechint_core.parallel import Reduction, Rows, reduce_rows
from mechint_core.result import NAN

BLOCK_VALUES: Final = 2**20
"""Values of the raster read at once."""
MOST_EVENTS: Final = 2**53
"""So many in all are counted exactly, in integers and in floats."""
STRETCHES: Final = 50
"""Stretches of the recording that are resampled for the silent share."""


@dataclass(frozen=True, slots=True)
class Events:
    """A raster, and how to read events off it."""

    raster: Rows
    above: Float[np.ndarray, "unit"] | None
    """Level per unit that an event exceeds, infinite for units that have none; None where the raster counts."""
    n_nan: int
    n_flat: int

    @classmethod
    def of(cls, raster: Rows, threshold: float | None, policy: NanPolicy) -> "Events":
        """Check a raster, and measure mean and standard deviation of its units where a threshold needs them."""
        if len(raster.shape) != 2 or 0 in raster.shape:
            raise ShapeError(f"raster must be (time >= 1, unit >= 1). Got shape {raster.shape}.")
        if raster.dtype.kind not in "biuf":
            raise DtypeError(f"raster must hold counts, truth values or real numbers. Got {raster.dtype}.")
        if raster.dtype.kind == "b":
            return cls(raster, None, 0, 0)
        if threshold is None and raster.dtype.kind in "iu":
            return cls(raster, None, 0, 0)
        first = np.asarray(raster[0:1], dtype=np.float64)[0]
        moments = Reduction(partial(_moments, np.where(np.isfinite(first), first, 0)), np.add, np.asarray)
        with np.errstate(over="ignore"):
            total, square, unusable = reduce_rows(moments, raster)
        if not np.isfinite(square).all() or np.any((square == 0) & (total != 0)):
            raise DegenerateInputError(
                "raster must lie where squares neither vanish nor overflow. Got values outside of 1e-150 to 1e150: "
                "rescale it."
            )
        n_nan = int(np.sum(unusable > 0))
        if n_nan and policy == "raise":
            raise DegenerateInputError(
                f"raster must be finite. Got NaN or infinity in {n_nan} of {unusable.size} units. "
                "Pass nan_policy='omit' to leave those units out."
            )
        n_steps = raster.shape[0]
        mean = total / n_steps
        variance = square / n_steps - mean * mean
        flat = (square == 0) & (unusable == 0)
        if threshold is None:
            if n_nan:
                raise DegenerateInputError(
                    f"raster must hold counts, or a threshold must say what an event is. Got {n_nan} units with NaN."
                )
            return cls(raster, None, 0, 0)
        usable = ~flat & (unusable == 0)
        level = first + mean + threshold * np.sqrt(np.maximum(variance, 0))
        return cls(raster, np.where(usable, level, np.inf), n_nan, int(flat.sum()))

    def counts(self, first: int, stop: int) -> np.ndarray:
        """Return the events of a run of steps."""
        block = np.asarray(self.raster[first:stop])
        if self.above is not None:
            with np.errstate(invalid="ignore"):
                return block.astype(np.float64, copy=False) > self.above
        negative = block.dtype.kind in "if" and block.min() < 0
        if negative or (block.dtype.kind == "f" and not np.array_equal(np.floor(block), block)):
            raise DegenerateInputError(
                "raster must hold numbers of events: whole, not negative. Got others in steps "
                f"{first} to {stop}. Pass a threshold (in standard deviations) to read events off continuous activity."
            )
        most = MOST_EVENTS // (self.raster.shape[0] * self.raster.shape[1])
        if block.dtype.kind != "b" and block.max() > most:
            raise DegenerateInputError(
                f"raster must hold at most {most} events per step and unit. Got {block.max()}. Is this activity, not a "
                "count? Then pass a threshold."
            )
        return block

    def activity(self, shifts: Int[np.ndarray, "draw unit"]) -> Int[np.ndarray, "draw time"]:
        """Return the sum over units of every step, each unit shifted around the circle by so many steps."""
        n_steps, n_units = self.raster.shape
        total = np.zeros((len(shifts), n_steps), dtype=np.int64)
        step = max(1, BLOCK_VALUES // n_units)
        for first in range(0, n_steps, step):
            block = self.counts(first, min(first + step, n_steps)).reshape(-1)
            place = np.flatnonzero(block != 0)  # several times faster than on two axes
            when, which = np.divmod(place, n_units)
            _add_shifted(total, when + first, which, block[place].astype(np.int64), shifts)
        return total


@dataclass(frozen=True, slots=True)
class Avalanches:
    """Runs of activity between silence."""

    size: Int[np.ndarray, "avalanche"]
    duration: Int[np.ndarray, "avalanche"]
    """In bins."""
    first: Int[np.ndarray, "avalanche"]
    """Events of the first bin."""
    n_cut: int
    """Runs that touch an end of the recording, and are left out: 0, 1 or 2."""
    n_silent: int
    """Bins at or below the level."""

    @classmethod
    def of(cls, activity: Int[np.ndarray, "time"], level: int) -> "Avalanches":
        """Find the runs of bins above `level`."""
        excess = np.maximum(activity - level, 0)
        change = np.diff((excess > 0).astype(np.int8), prepend=np.int8(0), append=np.int8(0))
        start, stop = np.flatnonzero(change == 1), np.flatnonzero(change == -1)
        whole = (start > 0) & (stop < activity.size)
        sums = np.concatenate([[0], np.cumsum(excess)])
        start, stop, n_runs = start[whole], stop[whole], start.size
        n_silent = int(np.sum(excess == 0))
        return cls(sums[stop] - sums[start], stop - start, excess[start], n_runs - start.size, n_silent)

    def drawn(self, kept: Int[np.ndarray, "_"]) -> "Avalanches":
        """Return these avalanches, some perhaps more than once."""
        return Avalanches(self.size[kept], self.duration[kept], self.first[kept], self.n_cut, self.n_silent)

    def descendants(self) -> float:
        """Return events after the first bin per event: what an event causes if avalanches start from one cause."""
        total = int(self.size.sum())
        return (total - int(self.first.sum())) / total if total else NAN


def in_bins(activity: Int[np.ndarray, "*draw time"], width: int) -> Int[np.ndarray, "*draw bin"]:
    """Return the sums over bins of `width` steps; steps that fill no bin are left out."""
    n_bins = activity.shape[-1] // width
    return activity[..., : n_bins * width].reshape(*activity.shape[:-1], n_bins, width).sum(axis=-1)


def mean_interval(activity: Int[np.ndarray, "time"]) -> int:
    """Return the mean number of steps from one with events to the next, rounded."""
    active = np.flatnonzero(activity)
    return max(1, round(float(active[-1] - active[0]) / (active.size - 1))) if active.size > 1 else 1


def silent_level(activity: Int[np.ndarray, "time"], quantile: float) -> int:
    """Return the activity that this share of bins does not exceed; 0 for a quantile of 0."""
    return int(np.quantile(activity, quantile, method="inverted_cdf")) if quantile else 0


def silent_shares(activity: Int[np.ndarray, "time"], level: int, n_draws: int, seed: int) -> Float[np.ndarray, "draw"]:
    """Return the share of silent bins in stretches of the recording that are drawn with replacement."""
    edge = np.linspace(0, activity.size, STRETCHES + 1).astype(np.int64)
    silent = np.add.reduceat((activity <= level).astype(np.int64), edge[:-1])
    share = np.full(STRETCHES, 1 / STRETCHES)
    times = stream(seed, "silence").multinomial(STRETCHES, share, size=n_draws)
    return np.asarray((times @ silent) / (times @ np.diff(edge)))


def _moments(first: np.ndarray, block: np.ndarray) -> Any:
    """Return sums, sums of squares and numbers of values that are not finite, per unit, from the first row on."""
    x = block.astype(np.float64) - first
    finite: Bool[np.ndarray, "row unit"] = np.isfinite(x)
    x = np.where(finite, x, 0)
    return np.stack([x.sum(axis=0), (x * x).sum(axis=0), (~finite).sum(axis=0)])


@njit(nogil=True, cache=True)
@no_type_check  # numba compiles this function: nothing may wrap it
def _add_shifted(total: np.ndarray, when: np.ndarray, which: np.ndarray, count: np.ndarray, shifts: np.ndarray) -> None:
    n_steps = total.shape[1]
    for draw in range(len(total)):
        row, shift = total[draw], shifts[draw]
        for i in range(len(when)):
            place = when[i] + shift[which[i]]
            row[place - n_steps if place >= n_steps else place] += count[i]
