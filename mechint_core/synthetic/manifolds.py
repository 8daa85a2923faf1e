"""Point clouds on manifolds whose shape is known: Betti numbers, dimension, and where each point lies.

Each function draws `n_samples` points uniformly by area (swiss roll: by parameter), rotates them into `ambient`
dimensions by a random isometry, and adds Gaussian noise of standard deviation `noise` to every coordinate.
Polygons and grids are exact instead: their barcodes are known in closed form.

    circle            b = 1, 1        radius 1
    figure_eight      b = 1, 2        two unit circles that touch
    sphere            b = 1, 0, 1     radius 1
    torus             b = 1, 2, 1     in 3-space, radii 2 and 1
    clifford_torus    b = 1, 2, 1     flat: the product of two circles, radius 1 as a whole
    hypersphere       b = 1, 0 ... 1  of any dimension and radius; curvature 1 / radius^2
    swiss_roll        b = 1           a rolled-up rectangle
    uniform_cube      b = 1           no shape at all
    polygon           b = 1, 1        the corners of a regular n-gon on the unit circle

Cost: linear in the number of points.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from mechint_core.errors import ConfigurationError
from mechint_core.random import generator


@dataclass(frozen=True, slots=True)
class PlantedManifold:
    """Points on a manifold, and the truth about it."""

    points: Float[np.ndarray, "sample unit"]
    position: Float[np.ndarray, "sample coordinate"]
    """Where each point lies on the manifold: angles in radians, or the flat coordinates of the swiss roll and cube."""
    betti: tuple[int, ...]
    """Components, loops, voids of the manifold."""
    dimension: int
    """Dimension of the manifold."""


def circle(n_samples: int, *, noise: float = 0.0, ambient: int = 2, seed: int = 0) -> PlantedManifold:
    """Return points of the unit circle."""
    angle = generator(seed, "circle").uniform(0, 2 * np.pi, (n_samples, 1))
    return PlantedManifold(_placed(_ring(angle[:, 0]), noise, ambient, seed), angle, betti=(1, 1), dimension=1)


def figure_eight(n_samples: int, *, noise: float = 0.0, ambient: int = 2, seed: int = 0) -> PlantedManifold:
    """Return points of two unit circles that touch in the origin."""
    angle = generator(seed, "figure_eight").uniform(0, 4 * np.pi, (n_samples, 1))
    side = np.where(angle[:, 0] < 2 * np.pi, -1.0, 1.0)
    points = _ring(angle[:, 0]) + np.stack([side, np.zeros(n_samples)], axis=1)
    return PlantedManifold(_placed(points, noise, ambient, seed), angle, betti=(1, 2), dimension=1)


def sphere(n_samples: int, *, noise: float = 0.0, ambient: int = 3, seed: int = 0) -> PlantedManifold:
    """Return points of the unit sphere; `position` holds longitude and latitude."""
    points = generator(seed, "sphere").standard_normal((n_samples, 3))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    position = np.stack([np.arctan2(points[:, 1], points[:, 0]), np.arcsin(points[:, 2])], axis=1)
    return PlantedManifold(_placed(points, noise, ambient, seed), position, betti=(1, 0, 1), dimension=2)


def hypersphere(
    n_samples: int, *, dimension: int = 3, radius: float = 1.0, noise: float = 0.0, ambient: int = 0, seed: int = 0
) -> PlantedManifold:
    """Return points of the sphere of `dimension`; `position` holds their directions, `ambient` 0 no further axes."""
    position = generator(seed, "hypersphere").standard_normal((n_samples, dimension + 1))
    position /= np.linalg.norm(position, axis=1, keepdims=True)
    points = _placed(radius * position, noise, ambient or dimension + 1, seed)
    return PlantedManifold(points, position, betti=(1, *[0] * (dimension - 1), 1), dimension=dimension)


def torus(
    n_samples: int, *, radii: tuple[float, float] = (2.0, 1.0), noise: float = 0.0, ambient: int = 3, seed: int = 0
) -> PlantedManifold:
    """Return points of a torus in space, uniform by area; `radii` are those of the ring and of its tube."""
    ring, tube = radii
    rng = generator(seed, "torus")
    angle = rng.uniform(0, 2 * np.pi, (n_samples, 2))
    # The area element is ring + tube cos v. Mirroring v with the right chance turns a uniform angle into that law.
    inner = np.cos(angle[:, 1]) < 0
    mirrored = inner & (rng.random(n_samples) < -tube / ring * np.cos(angle[:, 1]))
    angle[mirrored, 1] = np.pi - angle[mirrored, 1]
    around = (ring + tube * np.cos(angle[:, 1]))[:, None] * _ring(angle[:, 0])
    points = np.column_stack([around, tube * np.sin(angle[:, 1])])
    return PlantedManifold(_placed(points, noise, ambient, seed), angle, betti=(1, 2, 1), dimension=2)


def clifford_torus(n_samples: int, *, noise: float = 0.0, ambient: int = 4, seed: int = 0) -> PlantedManifold:
    """Return points of the flat torus, the product of two circles of radius 1 / sqrt(2)."""
    angle = generator(seed, "clifford_torus").uniform(0, 2 * np.pi, (n_samples, 2))
    return PlantedManifold(_placed(_flat(angle), noise, ambient, seed), angle, betti=(1, 2, 1), dimension=2)


def clifford_grid(n_side: int) -> PlantedManifold:
    """Return the flat torus on a regular grid of `n_side` by `n_side` angles, exactly."""
    step = 2 * np.pi * np.arange(n_side) / n_side
    angle = np.stack(np.meshgrid(step, step, indexing="ij"), axis=-1).reshape(-1, 2)
    return PlantedManifold(_flat(angle), angle, betti=(1, 2, 1), dimension=2)


def polygon(n_samples: int) -> PlantedManifold:
    """Return the corners of a regular polygon on the unit circle, exactly and in order."""
    angle = 2 * np.pi * np.arange(n_samples)[:, None] / n_samples
    return PlantedManifold(_ring(angle[:, 0]), angle, betti=(1, 1), dimension=1)


def swiss_roll(n_samples: int, *, noise: float = 0.0, ambient: int = 3, seed: int = 0) -> PlantedManifold:
    """Return points of a rolled-up rectangle; `position` holds arc length along the roll, and height."""
    rng = generator(seed, "swiss_roll")
    angle, height = rng.uniform(1.5 * np.pi, 4.5 * np.pi, n_samples), rng.uniform(0, 21, n_samples)
    points = np.column_stack([angle[:, None] * _ring(angle), height])
    arc = (angle * np.sqrt(1 + angle**2) + np.arcsinh(angle)) / 2
    position = np.stack([arc, height], axis=1)
    return PlantedManifold(_placed(points, noise, ambient, seed), position, betti=(1,), dimension=2)


def uniform_cube(
    n_samples: int, *, dimension: int = 2, noise: float = 0.0, ambient: int = 0, seed: int = 0
) -> PlantedManifold:
    """Return points of the unit cube of `dimension` axes; `ambient` 0 means no further ones."""
    points = generator(seed, "uniform_cube").uniform(0, 1, (n_samples, dimension))
    return PlantedManifold(_placed(points, noise, ambient or dimension, seed), points, betti=(1,), dimension=dimension)


def _ring(angle: Float[np.ndarray, "sample"]) -> Float[np.ndarray, "sample 2"]:
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def _flat(angle: Float[np.ndarray, "sample 2"]) -> Float[np.ndarray, "sample 4"]:
    return np.concatenate([_ring(angle[:, 0]), _ring(angle[:, 1])], axis=1) / np.sqrt(2)


def _placed(
    points: Float[np.ndarray, "sample own"], noise: float, ambient: int, seed: int
) -> Float[np.ndarray, "sample unit"]:
    """Rotate `points` into `ambient` dimensions and add noise there; without either they stay as they are."""
    own = points.shape[1]
    if ambient < own or noise < 0:
        raise ConfigurationError(f"ambient must be at least {own}, and noise at least 0. Got {ambient} and {noise}.")
    if ambient > own:
        frame, _ = np.linalg.qr(generator(seed, "manifold", "frame").standard_normal((ambient, own)))
        points = points @ frame.T
    return points + noise * generator(seed, "manifold", "noise").standard_normal(points.shape)
