"""How long holes live that sampling alone makes: the bars of spheres that have no such hole.

    ratio    death / birth of a bar: free of scale, and nearly so of the space that is sampled [@bobrowski2023]
    noise    the largest ratio in dimension k of n points drawn evenly on the sphere S^(k+1), reduced to landmarks alike

S^(k+1) has no hole of dimension k and no edge. Of flat squares, cubes, Gaussian clouds and spheres of two to six
dimensions it has the largest ratios (2.7 for 200 points, 2.0 for 200 landmarks of 1000), so it errs on the safe side.

Source: [@bobrowski2023], whose law for independent points does not hold for landmarks; hence the draws.
Cost: n_draws barcodes of the landmarks; kept for the next cloud of as many points.
"""

from functools import lru_cache
from typing import Final

import numpy as np

from mechint_core.geometry._vietoris_rips import RipsBarcode
from mechint_core.kernels.resampling import critical_value
from mechint_core.random import generator

KEPT: Final = 256
"""Numbers of points and settings whose ratios are remembered."""


@lru_cache(maxsize=KEPT)
def noise_ratios(
    n_points: int, max_points: int, max_dimension: int, coefficient: int, *, n_draws: int, level: float
) -> tuple[float, ...]:
    """Return, per dimension, what the largest ratio of a cloud must exceed to be more than sampling; 1 for components.

    Of `n_draws` spheres at most 1 - `level` reach it, with any of their bars. Without draws all are 1.
    """
    if n_draws == 0:
        return (1.0,) * (max_dimension + 1)
    ratios = [1.0]
    for k in range(1, max_dimension + 1):
        rng = generator(0, "geometry", "noise_ratios", str(k))
        largest = [
            _largest_ratio(rng.standard_normal((n_points, k + 2)), max_points, k, coefficient) for _ in range(n_draws)
        ]
        ratios.append(float(critical_value(np.array(largest), level)))
    return tuple(ratios)


def _largest_ratio(gaussian: np.ndarray, max_points: int, dimension: int, coefficient: int) -> float:
    """Return the largest death over birth in `dimension`, of points on a sphere; 1 if there is no bar."""
    sphere = gaussian / np.linalg.norm(gaussian, axis=1, keepdims=True)
    found = RipsBarcode.of(sphere, max_points=max_points, max_dimension=dimension, coefficient=coefficient)
    bars = found.bars[found.dimension == dimension]
    return float(np.max(bars[:, 1] / bars[:, 0], initial=1.0))
