from itertools import permutations

import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from scipy import stats

from mechint_core.alignment import _shapes
from mechint_core.alignment.procrustes import ProcrustesConfig, procrustes
from mechint_core.alignment.shape_distance import ShapeDistanceConfig, ShapeDistanceResult, shape_distance
from mechint_core.errors import ConfigurationError, DegenerateInputError, ShapeError
from mechint_core.parallel import Backend, compute
from mechint_core.random import generator

every_alpha = pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])


def quick(alpha=1.0):
    return ShapeDistanceConfig(alpha=alpha, n_permutations=0)


def distances(systems, alpha=1.0):
    return shape_distance(systems, config=quick(alpha)).distances


def rotation(rng, size):
    return np.linalg.qr(rng.normal(size=(size, size)))[0]


# Known answer
@every_alpha
def test_shape_distance__of_a_rotated_rescaled_copy_is_zero(rng, alpha):
    x = rng.normal(size=(40, 5))

    assert distances([x, -3 * x @ rotation(rng, 5) + 7], alpha)[0, 1] == pytest.approx(0, abs=1e-7)


def test_shape_distance__ignores_a_linear_map_at_alpha_zero_only(rng):
    x = rng.normal(size=(40, 5))
    sheared = x @ (rng.normal(size=(5, 5)) + 2 * np.eye(5))

    assert distances([x, sheared], 0.0)[0, 1] == pytest.approx(0, abs=1e-7)
    assert distances([x, sheared], 0.5)[0, 1] > 1e-2


def test_shape_distance__draws_points_in_a_plane_exactly(rng):
    """Systems of one unit each, on a quarter of a great circle: their angles are distances on a line."""
    draws = rng.normal(size=(50, 2))
    one, other = np.linalg.qr(draws - draws.mean(axis=0))[0].T
    systems = [(np.cos(t) * one + np.sin(t) * other)[:, None] for t in (0.0, 0.3, 0.7)]

    found = shape_distance(systems, config=quick())

    expected = np.abs(np.subtract.outer([0.0, 0.3, 0.7], [0.0, 0.3, 0.7]))
    np.testing.assert_allclose(found.distances, expected, atol=1e-10)
    drawn = np.linalg.norm(found.embedding[:, None] - found.embedding, axis=-1)
    np.testing.assert_allclose(drawn, expected, atol=1e-7)
    assert found.drawn_share == pytest.approx(1, abs=1e-10)


def test_shape_distance__puts_unrelated_systems_at_the_null():
    rng = generator(5, "unrelated")
    found = shape_distance([rng.normal(size=(100, 6)) for _ in range(3)])

    assert found.mean_distance.value == pytest.approx(found.mean_distance.null, abs=0.06)
    assert "not distinguishable" in found.reading()


# Oracle
def test_shape_distance__at_alpha_zero_is_the_mean_cosine_of_principal_angles(rng):
    x = rng.normal(size=(40, 5))
    y = x + rng.normal(size=(40, 5))
    angles = scipy.linalg.subspace_angles(x - x.mean(axis=0), y - y.mean(axis=0))

    assert distances([x, y], 0.0)[0, 1] == pytest.approx(np.arccos(np.cos(angles).mean()), abs=1e-10)


@every_alpha
def test_shape_distance__equals_the_published_formula(rng, alpha):
    """netrep: X Z, Z = V (alpha + (1 - alpha) / sqrt(lambda)) Vᵀ of Xᵀ X, then the angle after the best rotation."""

    def read(z):
        z = z - z.mean(axis=0)
        z = z * np.sqrt(z.shape[1]) / np.linalg.norm(z)  # the mean variance that ours has
        values, vectors = np.linalg.eigh(z.T @ z)
        return z @ (vectors * (alpha + (1 - alpha) / np.sqrt(values))) @ vectors.T

    x = rng.normal(size=(50, 6)) * np.arange(1, 7)
    y = x[:, :4] + rng.normal(size=(50, 4))
    one, other = read(x), read(y)
    _, total = scipy.linalg.orthogonal_procrustes(np.pad(other, ((0, 0), (0, 2))), one)

    expected = np.arccos(total / np.linalg.norm(one) / np.linalg.norm(other))
    assert distances([x, y], alpha)[0, 1] == pytest.approx(expected, abs=1e-10)


def test_shape_distance__at_alpha_one_is_the_procrustes_angle(rng):
    x, y = rng.normal(size=(40, 5)), rng.normal(size=(40, 50))

    found = procrustes(x, y, config=ProcrustesConfig(n_permutations=0, n_inference=300))

    assert distances([x, y])[0, 1] == pytest.approx(found.angle.value, abs=1e-12)


# Law
@every_alpha
@settings(max_examples=5)
@given(seed=st.integers(0, 2**31), scale=st.floats(1e-3, 1e3), shift=st.floats(-10, 10))
def test_shape_distance__has_the_invariances_it_declares(alpha, seed, scale, shift):
    rng = generator(seed, "invariance")
    x, y = rng.normal(size=(24, 5)), rng.normal(size=(24, 3))
    changed = {"orthogonal": y @ rotation(rng, 3), "isotropic scaling": scale * y, "translation": y + shift}
    assert set(changed) == set(ShapeDistanceResult.invariances)
    found = distances([x, y, *changed.values()], alpha)
    assert found[0, 1:] == pytest.approx(np.full(4, found[0, 1]), abs=1e-9)


@every_alpha
@settings(max_examples=5)
@given(seed=st.integers(0, 2**31), noise=st.floats(0.01, 3), n_samples=st.sampled_from([9, 30]))
def test_shape_distance__is_a_metric(alpha, seed, noise, n_samples):
    """0 for itself, the same both ways, and no detour is shorter: with unequal units and more units than samples."""
    rng = generator(seed, "metric")
    base = rng.normal(size=(n_samples, 4))
    wide = rng.normal(size=(n_samples, 12))
    systems = [base, base + noise * rng.normal(size=base.shape), base[:, :2], wide, base]

    found = distances(systems, alpha)

    assert found[0, 4] == pytest.approx(0, abs=1e-7)
    assert np.array_equal(found, found.T)
    for i, j, k in permutations(range(5), 3):
        assert found[i, k] <= found[i, j] + found[j, k] + 1e-7


@every_alpha
@settings(max_examples=4)
@given(seed=st.integers(0, 2**31), block_rows=st.integers(1, 70), threads=st.integers(1, 3))
def test_shape_distance__streamed_equals_whole(alpha, seed, block_rows, threads):
    rng = generator(seed, "chunks")
    x = rng.normal(size=(60, 4)) + 30
    systems, config = [x, x + rng.normal(size=x.shape)], ShapeDistanceConfig(alpha=alpha, n_permutations=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_shapes, "RELABELLED_ROWS", 10)
        whole = shape_distance(systems, config=config).scalars()
        patch.setattr(_shapes, "BLOCK_ROWS", block_rows)
        with compute(Backend(threads=threads)):
            streamed = shape_distance(systems, config=config).scalars()

    assert streamed == pytest.approx(whole, rel=1e-8, abs=1e-10)


def test_shape_distance__same_seed_gives_the_same_bits(rng):
    systems = [rng.normal(size=(30, 3)) for _ in range(3)]
    config = ShapeDistanceConfig(n_permutations=9)

    assert shape_distance(systems, config=config).scalars() == shape_distance(systems, config=config).scalars()


@pytest.mark.calibration
def test_shape_distance__p_values_are_uniform_under_the_null():
    """500 unrelated pairs, whitened; the KS distance of 500 uniform draws passes 0.087 once in 1000."""
    rng, config = generator(3, "null"), ShapeDistanceConfig(alpha=0.5, n_permutations=49)
    found = [
        shape_distance([rng.normal(size=(40, 3)), rng.normal(size=(40, 4))], config=config).mean_distance.p_value
        for _ in range(500)
    ]

    assert stats.kstest(found - rng.uniform(0, 1 / 50, 500), "uniform").statistic < 0.087


@pytest.mark.calibration
@every_alpha
def test_shape_distance__interval_covers_the_population_distance(alpha):
    """Y = A X + noise, against the distance of 200,000 samples; 95 ± 3 % of 500 intervals."""
    rng = generator(9, "coverage", int(10 * alpha))
    spread = np.array([1.0, 0.8, 0.6, 0.4])

    def draw(n):
        x = rng.normal(size=(n, 4)) * spread
        return [x, x[:, ::-1] + 0.4 * rng.normal(size=(n, 4))]

    truth = distances(draw(200_000), alpha)[0, 1]
    found = [shape_distance(draw(250), config=quick(alpha)).mean_distance for _ in range(500)]

    assert 0.92 < np.mean([each.low <= truth <= each.high for each in found]) < 0.98


# Bad input
def test_shape_distance__raises_on_one_system(rng):
    with pytest.raises(ShapeError, match="two or more"):
        shape_distance([rng.normal(size=(9, 2))])


def test_shape_distance__raises_on_seven_samples():
    with pytest.raises(ShapeError, match="at least 8 samples"):
        shape_distance([np.eye(7, 2), np.eye(7, 2)])


def test_shape_distance__raises_on_nan(rng):
    x = rng.normal(size=(9, 2))

    with pytest.raises(DegenerateInputError, match="must be finite"):
        shape_distance([x, np.where(x == x[2, 1], np.nan, x)])


def test_shape_distance__raises_on_a_constant_system(rng):
    with pytest.raises(DegenerateInputError, match="must vary"):
        shape_distance([np.full((9, 2), 0.1), rng.normal(size=(9, 2))])


@pytest.mark.parametrize("options", [{"alpha": 1.5}, {"n_inference": 7}, {"n_permutations": -1}, {"level": 1.0}])
def test_shape_distance__raises_on_impossible_options(options, without_shape_checks):
    with pytest.raises(ConfigurationError, match=f"{next(iter(options))} must be"):
        ShapeDistanceConfig(**options)
