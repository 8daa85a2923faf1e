"""Activity that spreads from step to step with a known branching ratio m.

    A(t + 1) = Poisson(m A(t)) + Poisson(drive)

Each active unit activates on average m others. One avalanche from one seed has a Borel-distributed size

    P(s) = (m s)^(s - 1) exp(-m s) / s!          ~ s^-3/2 at m = 1; durations ~ d^-2, mean size by duration ~ d^2

With drive, A is a process with autocorrelation m^lag; seeing a part of the units leaves that decay as it is.

Source: [@harris1963], [@wilting2018]
Cost: linear in the number of steps.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from mechint_core.errors import ConfigurationError
from mechint_core.random import generator


@dataclass(frozen=True, slots=True)
class PlantedAvalanches:
    """A raster of separate avalanches, and what each of them is."""

    raster: Int[np.ndarray, "time unit"]
    """Events by step and unit; one silent step between avalanches."""
    size: Int[np.ndarray, "avalanche"]
    duration: Int[np.ndarray, "avalanche"]
    n_stopped: int
    """Avalanches that were stopped at the longest duration."""


def separate_avalanches(
    n_avalanches: int, branching_ratio: float, *, n_units: int = 16, longest: int = 1000, seed: int = 0
) -> PlantedAvalanches:
    """Draw avalanches from one seed each, one after the other.

    Parameters
    ----------
    n_avalanches
        How many.
    branching_ratio
        m in (0, 1]: 1 is critical.
    n_units
        Units among which events are spread at random.
    longest
        Avalanches are stopped after so many steps: the cut-off that a finite system has.
    seed
        Same seed, same bits.

    Returns
    -------
    PlantedAvalanches
        The raster, and the true sizes and durations.

    Raises
    ------
    ConfigurationError
        If the branching ratio is outside (0, 1], or a number is not positive.
    """
    if not 0 < branching_ratio <= 1 or min(n_avalanches, n_units, longest) < 1:
        raise ConfigurationError(
            f"branching_ratio must lie in (0, 1] and numbers be positive. "
            f"Got {branching_ratio}, {n_avalanches}, {n_units} and {longest}."
        )
    rng = generator(seed, "separate_avalanches")
    active, generations = np.ones(n_avalanches, dtype=np.int64), []
    while active.any() and len(generations) < longest:
        generations.append(active)
        active = rng.poisson(branching_ratio * active)
    profile = np.stack(generations)
    duration = (profile > 0).sum(axis=0)
    start = np.concatenate([[0], np.cumsum(duration + 1)[:-1]])
    activity = np.zeros(int(start[-1] + duration[-1]), dtype=np.int64)
    step, which = np.nonzero(profile)
    activity[start[which] + step] = profile[step, which]
    raster = _spread(activity, n_units, rng)
    return PlantedAvalanches(raster, profile.sum(axis=0), duration, int((active > 0).sum()))


def driven_branching(
    n_steps: int, branching_ratio: float, *, activity: float = 100.0, n_units: int = 100, seed: int = 0
) -> Int[np.ndarray, "time unit"]:
    """Draw a stationary branching process with drive.

    Parameters
    ----------
    n_steps
        Length.
    branching_ratio
        m in [0, 1).
    activity
        Mean number of events per step; the drive is (1 - m) of it.
    n_units
        Units among which events are spread at random: `raster[:, :k]` is what a recording of k of them sees.
    seed
        Same seed, same bits.

    Returns
    -------
    Int[np.ndarray, "time unit"]
        Events by step and unit.

    Raises
    ------
    ConfigurationError
        If the branching ratio is outside [0, 1), or a number is not positive.
    """
    if not 0 <= branching_ratio < 1 or min(n_steps, n_units) < 1 or activity <= 0:
        raise ConfigurationError(
            f"branching_ratio must lie in [0, 1) and numbers be positive. "
            f"Got {branching_ratio}, {n_steps}, {n_units} and {activity}."
        )
    rng = generator(seed, "driven_branching")
    drive = rng.poisson((1 - branching_ratio) * activity, n_steps)
    total = np.empty(n_steps, dtype=np.int64)
    now = int(activity)
    for t in range(n_steps):
        now = int(rng.poisson(branching_ratio * now)) + int(drive[t])
        total[t] = now
    return _spread(total, n_units, rng)


def _spread(activity: Int[np.ndarray, "time"], n_units: int, rng: np.random.Generator) -> Int[np.ndarray, "time unit"]:
    """Give each event to a random unit."""
    return rng.multinomial(activity, np.full(n_units, 1 / n_units))
