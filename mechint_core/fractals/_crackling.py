"""The exponents of avalanches together: sizes, durations, and how the mean size grows with the duration.

    P(size) ~ size^-alpha      P(duration) ~ duration^-beta      mean size ~ duration^gamma
    crackling noise: gamma = (beta - 1) / (alpha - 1)

gamma is the slope of ln mean size over ln duration, each duration weighted by its avalanches, over the durations that
the fit of beta uses.

Source: [@sethna2001], [@politis1992]
Cost: two power-law fits per draw.
"""

from dataclasses import dataclass, fields
from functools import partial
from typing import Final

import numpy as np
from jaxtyping import Float, Int

from mechint_core.fractals._avalanches import Avalanches, Events, in_bins
from mechint_core.fractals._power_law import stream
from mechint_core.fractals._zeta_tail import TailRange, ZetaTail
from mechint_core.kernels.resampling import block_indices
from mechint_core.parallel import map_parallel
from mechint_core.result import NAN

SURROGATE_BYTES: Final = 2**26
"""Memory for the activity of the surrogates that one task makes in one pass over the raster."""
TASKS: Final = 4
"""Tasks that share the surrogates, where memory does not ask for more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranges:
    """Which sizes and durations may follow power laws."""

    size: TailRange
    duration: TailRange


@dataclass(frozen=True, slots=True)
class Exponents:
    """What some avalanches say; NaN where they are too few."""

    size: float
    duration: float
    growth: float
    """gamma."""
    predicted: float
    """What gamma should be."""
    difference: float
    descendants: float

    @classmethod
    def of(cls, avalanches: Avalanches, size: ZetaTail, duration: ZetaTail) -> "Exponents":
        """Combine two fits with the growth of the mean size."""
        growth = _growth(*mean_sizes(avalanches, duration))
        predicted = (duration.exponent - 1) / (size.exponent - 1)
        return cls(size.exponent, duration.exponent, growth, predicted, growth - predicted, avalanches.descendants())

    def numbers(self) -> Float[np.ndarray, "_"]:
        """Return them in the order of the fields."""
        return np.array([getattr(self, field.name) for field in fields(self)])


def fit_tails(avalanches: Avalanches, ranges: Ranges) -> tuple[ZetaTail, ZetaTail]:
    """Fit the power laws of size and duration."""
    return ZetaTail.fit(avalanches.size, ranges.size), ZetaTail.fit(avalanches.duration, ranges.duration)


def mean_sizes(
    avalanches: Avalanches, duration: ZetaTail
) -> tuple[Float[np.ndarray, "value"], Float[np.ndarray, "value"], Float[np.ndarray, "value"]]:
    """Return the distinct durations, the mean size at each, and how many avalanches count in the fit of gamma."""
    n_each = np.bincount(avalanches.duration)
    total = np.bincount(avalanches.duration, weights=avalanches.size.astype(np.float64))
    at = np.flatnonzero((n_each > 0) & (np.arange(n_each.size) <= duration.within.largest))
    weight = np.where(at >= duration.start, n_each[at], 0).astype(np.float64)
    return at.astype(np.float64), total[at] / n_each[at], weight


def fitted_sizes(
    duration: Float[np.ndarray, "value"], size: Float[np.ndarray, "value"], weight: Float[np.ndarray, "value"]
) -> Float[np.ndarray, "value"]:
    """Return the power law through the mean sizes; NaN outside the fit."""
    total = weight.sum()
    if total == 0:
        return np.full(duration.size, NAN)
    x, y = np.log(duration), np.log(size)
    line = weight @ y / total + _growth(duration, size, weight) * (x - weight @ x / total)
    return np.where(weight > 0, np.exp(line), NAN)


def resampled(avalanches: Avalanches, ranges: Ranges, n_draws: int, seed: int) -> Float[np.ndarray, "draw _"]:
    """Return the exponents of runs of neighbouring avalanches drawn with replacement."""
    draws = map_parallel(partial(_redrawn, avalanches, ranges, seed), range(n_draws))
    return np.array(draws).reshape(-1, len(fields(Exponents)))


def shifted(
    events: Events, ranges: Ranges, *, width: int, level: int, n_draws: int, seed: int
) -> Float[np.ndarray, "draw 5"]:
    """Return silent share, descendants, alpha, beta and gamma of units that are shifted apart at random."""
    if not n_draws:
        return np.empty((0, 5))
    at_once = max(1, min(SURROGATE_BYTES // (8 * events.raster.shape[0]), -(-n_draws // TASKS)))
    groups = np.array_split(np.arange(n_draws), -(-n_draws // at_once))
    return np.concatenate(map_parallel(partial(_shifted_apart, events, ranges, width, level, seed), groups))


def _growth(duration: np.ndarray, size: np.ndarray, weight: np.ndarray) -> float:
    """Return the weighted slope of ln size over ln duration."""
    if np.count_nonzero(weight) < 2:
        return NAN
    x, y = np.log(duration), np.log(size)
    run = x - weight @ x / weight.sum()
    return float(weight @ (run * y) / (weight @ (run * run)))


def _redrawn(avalanches: Avalanches, ranges: Ranges, seed: int, number: int) -> np.ndarray:
    n = avalanches.size.size
    block = max(1, round(n ** (1 / 3)))
    kept = block_indices(n, block, n_draws=1, rng=stream(seed, "avalanches", str(number)))[0]
    drawn = avalanches.drawn(kept)
    return Exponents.of(drawn, *fit_tails(drawn, ranges)).numbers()


def _shifted_apart(
    events: Events, ranges: Ranges, width: int, level: int, seed: int, draws: Int[np.ndarray, "draw"]
) -> Float[np.ndarray, "draw 5"]:
    n_steps, n_units = events.raster.shape
    shifts = np.array([stream(seed, "shift", str(draw)).integers(0, n_steps, n_units) for draw in draws])
    found = []
    for activity in in_bins(events.activity(shifts.reshape(-1, n_units)), width):
        apart = Avalanches.of(activity, level)
        e = Exponents.of(apart, *fit_tails(apart, ranges))
        found.append((apart.n_silent / activity.size, e.descendants, e.size, e.duration, e.growth))
    return np.array(found)
