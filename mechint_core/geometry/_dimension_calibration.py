"""What an estimator of dimension gives for samples of the same size whose dimension is known.

    raw(d)        the mean estimate for n samples of a solid of d dimensions
    corrected     the d with raw(d) = the estimate of the data

Neighbours at the border of a solid have no neighbours beyond it, and in many dimensions almost all samples are at
the border: n samples cannot show more than about 2 log10(n) dimensions [@eckmann1992]. How much is missing depends on
the border: nothing on a sphere, which has none; much in a cube, which has corners; a Gaussian cloud lies between.

Source: [@camastra2002] (calibration by simulation), [@ceruti2014].
Cost: 18 graphs of n points in a few dimensions, times the number of draws.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal

import numpy as np
from jaxtyping import Float

from mechint_core.kernels.neighbour_graph import NeighbourGraph, neighbour_graph
from mechint_core.parallel import map_parallel
from mechint_core.random import generator

Solid = Literal["sphere", "gaussian", "cube"]
SOLIDS: Final[tuple[Solid, ...]] = ("sphere", "gaussian", "cube")
"""From the one that hides least to the one that hides most."""
STEPS: Final = (0.7, 1.0, 1.4, 2.0, 2.8, 4.0)
"""Simulated dimensions, relative to the estimate."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """For each solid, the share of its dimension that the estimator shows: linear in ln d and ln^2 d."""

    coefficients: dict[Solid, Float[np.ndarray, "power"]]
    range: tuple[float, float]

    def corrected(self, raw: float, solid: Solid) -> float:
        """Return the dimension of the solid that shows as `raw`; the end of the simulated range if it is beyond."""
        d = np.geomspace(*self.range, 2000)
        shown = d * np.polyval(self.coefficients[solid], np.log(d))
        return float(np.interp(raw, np.maximum.accumulate(shown), d))


def calibrate(
    estimator: Callable[[NeighbourGraph], float],
    raw: float,
    *,
    n_points: int,
    n_neighbours: int,
    n_draws: int,
    seed: int,
) -> Calibration:
    """Simulate solids of about `raw` and more dimensions."""
    dimensions = sorted({max(1, round(step * raw)) for step in STEPS} | {2})
    todo: list[tuple[Solid, int, int]] = [
        (solid, d, draw) for solid in SOLIDS for d in dimensions for draw in range(n_draws)
    ]
    one = partial(_estimate, estimator, n_points, n_neighbours, seed)
    shares = np.array(map_parallel(one, todo)).reshape(len(SOLIDS), len(dimensions), n_draws).mean(axis=2)
    logs, degree = np.log(dimensions), min(2, len(dimensions) - 1)
    fits: dict[Solid, np.ndarray] = {
        solid: np.polyfit(logs, share, degree) for solid, share in zip(SOLIDS, shares, strict=True)
    }
    return Calibration(fits, (0.5 * dimensions[0], float(dimensions[-1])))


def _estimate(
    estimator: Callable[[NeighbourGraph], float],
    n_points: int,
    n_neighbours: int,
    seed: int,
    which: tuple[Solid, int, int],
) -> float:
    """Return the estimate for one simulated sample, relative to its dimension."""
    solid, d, draw = which
    rng = generator(seed, "geometry", "calibration", solid, d, draw)
    return estimator(neighbour_graph(_solid(solid, n_points, d, rng), n_neighbours)) / d


def _solid(solid: Solid, n_points: int, d: int, rng: np.random.Generator) -> Float[np.ndarray, "sample unit"]:
    if solid == "cube":
        return rng.uniform(0, 1, (n_points, d))
    draw = rng.standard_normal((n_points, d + (solid == "sphere")))
    return draw / np.linalg.norm(draw, axis=1, keepdims=True) if solid == "sphere" else draw
