import numpy as np
import pytest
from hypothesis import given, strategies as st

from mechint_core.errors import ConfigurationError
from mechint_core.random import generator
from mechint_core.synthetic import manifolds

DRAWN = [
    manifolds.circle,
    manifolds.figure_eight,
    manifolds.sphere,
    manifolds.hypersphere,
    manifolds.torus,
    manifolds.clifford_torus,
    manifolds.swiss_roll,
    manifolds.uniform_cube,
]
drawn = pytest.mark.parametrize("draw", DRAWN, ids=lambda draw: draw.__name__)


# Known answer
def test_manifolds__points_obey_the_equation_of_their_manifold():
    """Tolerance: a few roundings of float64."""
    radius = [np.linalg.norm(each(50).points, axis=1) for each in (manifolds.circle, manifolds.sphere)]
    flat = manifolds.clifford_torus(50).points
    ring = manifolds.torus(50, radii=(3.0, 0.5)).points
    eight = manifolds.figure_eight(50)
    centre = np.where(eight.position < 2 * np.pi, [-1.0, 0.0], [1.0, 0.0])

    assert np.abs(np.concatenate(radius) - 1).max() < 1e-14
    assert np.abs(np.linalg.norm(manifolds.hypersphere(50, dimension=4, radius=2.0).points, axis=1) - 2).max() < 1e-14
    assert np.abs(np.linalg.norm(flat[:, :2], axis=1) ** 2 - 0.5).max() < 1e-14
    assert np.abs(np.hypot(np.hypot(ring[:, 0], ring[:, 1]) - 3, ring[:, 2]) - 0.5).max() < 1e-14
    assert np.abs(np.linalg.norm(eight.points - centre, axis=1) - 1).max() < 1e-14


def test_manifolds__grid_and_polygon_are_exact():
    square = manifolds.polygon(4).points
    grid = manifolds.clifford_grid(4)

    np.testing.assert_allclose(square, [[1, 0], [0, 1], [-1, 0], [0, -1]], atol=1e-15)
    assert grid.points.shape == (16, 4)
    assert len(np.unique(grid.points.round(12), axis=0)) == 16


def test_torus__is_uniform_by_area():
    """The mean of cos v under the area element R + r cos v is r / (2 R); 5 standard errors of 20,000 draws."""
    tube = manifolds.torus(20_000, radii=(2.0, 1.0)).position[:, 1]

    assert np.cos(tube).mean() == pytest.approx(0.25, abs=5 * 0.7 / np.sqrt(20_000))


# Oracle
def test_swiss_roll__position_is_the_arc_length():
    """The spiral (t cos t, t sin t), summed in 200,000 chords: relative error below 1e-9."""
    t = np.linspace(0, 10, 200_001)
    chords = np.linalg.norm(np.diff(np.stack([t * np.cos(t), t * np.sin(t)]), axis=1), axis=0).sum()
    roll = manifolds.swiss_roll(100)
    angle = np.hypot(roll.points[:, 0], roll.points[:, 1])

    assert (10 * np.sqrt(101) + np.arcsinh(10)) / 2 == pytest.approx(chords, rel=1e-9)
    np.testing.assert_allclose(roll.position[:, 0], (angle * np.sqrt(1 + angle**2) + np.arcsinh(angle)) / 2)


# Law
@drawn
def test_manifolds__embedding_keeps_distances(draw):
    flat, embedded = draw(20, seed=3).points, draw(20, ambient=9, seed=3).points

    assert embedded.shape == (20, 9)
    np.testing.assert_allclose(flat @ flat.T, embedded @ embedded.T, atol=1e-10 * np.abs(flat).max() ** 2)


@drawn
@given(seed=st.integers(0, 2**32))
def test_manifolds__same_seed_gives_the_same_points(draw, seed):
    first, again, other = (
        draw(5, noise=0.1, seed=seed),
        draw(5, noise=0.1, seed=seed),
        draw(5, noise=0.1, seed=seed + 1),
    )

    assert np.array_equal(first.points, again.points)
    assert not np.array_equal(first.points, other.points)


def test_manifolds__noise_has_its_standard_deviation():
    """4 standard errors of 40,000 normal draws."""
    moved = manifolds.circle(20_000, noise=0.1).points - manifolds.circle(20_000).points

    assert moved.std() == pytest.approx(0.1, rel=4 / np.sqrt(2 * 40_000))
    assert not np.allclose(moved, 0.1 * generator(0, "circle").standard_normal(moved.shape))


# Bad input
def test_manifolds__raises_when_it_does_not_fit_its_space():
    with pytest.raises(ConfigurationError, match=r"ambient must be at least 3.*Got 2"):
        manifolds.sphere(10, ambient=2)


def test_manifolds__raises_on_negative_noise():
    with pytest.raises(ConfigurationError, match="noise at least 0"):
        manifolds.circle(10, noise=-1.0)
