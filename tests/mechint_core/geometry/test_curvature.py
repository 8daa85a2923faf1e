import sys

import jaxtyping
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from mechint_core.errors import ConfigurationError, DegenerateInputError, ShapeError
from mechint_core.geometry import CurvatureConfig, curvature
from mechint_core.geometry._quadratic_fit import curvature_at
from mechint_core.parallel import Backend, compute
from mechint_core.random import generator
from mechint_core.synthetic import manifolds

BARE = CurvatureConfig(n_surrogates=0, n_bootstrap=0, n_anchors=100)
FEW = CurvatureConfig(n_anchors=100)


# Known answer
@pytest.mark.parametrize("radius", [1.0, 5.0, 50.0])
def test_curvature__sphere_has_that_of_its_radius(radius):
    """The quadratic over a cap of radius r makes |H| too large by r^2 / (4 R^2), here 1.2 %, K by twice that."""
    result = curvature(radius * manifolds.sphere(2000, ambient=10).points, config=BARE)

    assert result.dimension == 2
    assert result.mean_curvature.value == pytest.approx(1 / radius, rel=0.02)
    assert result.sectional_curvature.value == pytest.approx(1 / radius**2, rel=0.04)
    assert result.scalar_curvature.value == pytest.approx(2 * result.sectional_curvature.value)
    np.testing.assert_allclose(result.sectional_curvature_at, 1 / radius**2, rtol=0.1)


@pytest.mark.parametrize("d", [3, 4])
def test_curvature__higher_spheres(d):
    cloud = manifolds.hypersphere(6000, dimension=d, radius=2.0).points
    result = curvature(cloud, config=BARE)

    assert result.dimension == d
    assert result.mean_curvature.value == pytest.approx(0.5, rel=0.1)
    assert result.sectional_curvature.value == pytest.approx(0.25, rel=0.15)


def test_curvature__plane_has_none():
    exact = curvature(manifolds.uniform_cube(1000, dimension=2, ambient=5).points, config=FEW)
    noisy = curvature(manifolds.uniform_cube(1000, dimension=2, ambient=5, noise=0.01).points, config=FEW)

    assert exact.mean_curvature.value == pytest.approx(0, abs=1e-12)
    assert exact.scalar_curvature.value == pytest.approx(0, abs=1e-12)
    assert noisy.mean_curvature.value < 0.5 * noisy.noise_floor
    assert noisy.mean_curvature.p_value > 0.05
    assert noisy.noise == pytest.approx(0.01 * np.sqrt(3), rel=0.05)  # three normal directions
    assert "no more than its noise explains" in noisy.reading()


def test_curvature__circle_is_a_curve():
    result = curvature(5 * manifolds.circle(500).points, config=FEW)

    assert result.mean_curvature.value == pytest.approx(0.2, rel=0.01)
    assert result.scalar_curvature.value == 0
    assert np.isnan(result.sectional_curvature.value)
    assert "manifold of 1 dimension the cloud" in result.reading()


def test_curvature__torus_is_a_sphere_outside_and_a_saddle_inside():
    """K = cos v / (r (R + r cos v)); positive where cos v is."""
    cloud = manifolds.torus(4000)
    result = curvature(cloud.points, config=BARE)
    v = cloud.position[result.anchor, 1]
    truth = np.cos(v) / (2 + np.cos(v))

    assert np.corrcoef(result.sectional_curvature_at, truth)[0, 1] > 0.99
    assert np.median(np.abs(result.sectional_curvature_at - truth)) < 0.03
    mean = np.abs(1 + np.cos(v) / (2 + np.cos(v))) / 2
    assert np.median(np.abs(result.mean_curvature_at - mean)) < 0.03


@pytest.mark.parametrize("name", ["swiss_roll", "clifford_torus"])
def test_curvature__bent_sheets_are_flat_in_themselves(name):
    result = curvature(getattr(manifolds, name)(3000).points, config=FEW)

    assert result.mean_curvature.p_value == pytest.approx(0.01)
    assert abs(result.sectional_curvature.value) < 0.01 * result.mean_curvature.value**2
    assert "bent without stretching" in result.reading()


def test_curvature__noise_is_subtracted():
    """Noise of 2 % of the radius gives an |H| of 0.5 by itself, in every neighbourhood; 10 % are left."""
    config = CurvatureConfig(n_neighbours=80)
    result = curvature(manifolds.sphere(4000, ambient=10, noise=0.02).points, config=config)

    assert result.noise_floor > 0.4
    assert result.mean_curvature.value == pytest.approx(1, rel=0.1)
    assert result.mean_curvature.low < result.mean_curvature.value < result.mean_curvature.high
    assert result.mean_curvature.p_value == pytest.approx(0.01)
    assert "like a sphere" in result.reading()


# Oracle
@pytest.mark.parametrize("form", ["paraboloid", "saddle", "tilted"])
def test_curvature_at__of_a_graph_agrees_with_its_derivatives(form):
    """H and K of z = f(x, y) by the formulas of Gauss, from derivatives of f at 0; the fit is exact for quadratics."""
    a, b, c, p, q = {"paraboloid": (2, 0, 1, 0, 0), "saddle": (1, 0.5, -2, 0, 0), "tilted": (1, 0.3, 2, 0.5, -0.7)}[
        form
    ]
    x, y = np.vstack([[0.0, 0.0], 1e-3 * generator(0, "graph").standard_normal((60, 2))]).T
    rows = np.stack([x, y, p * x + q * y + (a * x**2 + 2 * b * x * y + c * y**2) / 2], axis=1)
    found = curvature_at(rows, np.arange(61)[None], 2, np.empty((0, 61), dtype=np.int64))

    area = 1 + p**2 + q**2
    mean = ((1 + q**2) * a - 2 * p * q * b + (1 + p**2) * c) / (2 * area**1.5)
    assert found.square_mean[0] == pytest.approx(mean**2, rel=0.01)
    assert found.scalar[0] / 2 == pytest.approx((a * c - b**2) / area**2, rel=0.01)


# Law
SMALL = CurvatureConfig(dimension=2, n_surrogates=19, n_anchors=40)


@settings(max_examples=6)
@given(st.integers(0, 2**32), st.floats(1e-6, 1e6))
def test_curvature__goes_with_one_over_scale_and_ignores_rotation_and_shift(seed, scale):
    cloud, rng = manifolds.sphere(200, noise=0.01).points, generator(seed, "isometry")
    turned = scale * (cloud @ np.linalg.qr(rng.standard_normal((3, 3)))[0] + rng.standard_normal(3))
    here, there = (curvature(x, config=SMALL) for x in (cloud, turned))

    np.testing.assert_allclose(scale * there.mean_curvature_at, here.mean_curvature_at, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(scale**2 * there.scalar_curvature_at, here.scalar_curvature_at, rtol=1e-5, atol=1e-6)
    assert there.mean_curvature.p_value == here.mean_curvature.p_value


def test_curvature__same_numbers_for_any_workers_and_blocks(monkeypatch):
    cloud, found = manifolds.torus(600, noise=0.02).points, []
    for threads, block in ((1, 32), (2, 7)):
        monkeypatch.setattr(sys.modules["mechint_core.geometry.curvature"], "ANCHORS_AT_ONCE", block)
        with compute(Backend(threads=threads)):
            found.append(curvature(cloud, config=FEW))

    assert found[0].scalars() == found[1].scalars()


@pytest.mark.slow
def test_curvature__false_positives_are_at_their_nominal_rate():
    """Noisy planes: of 200 draws at 5 %, no more than 8.6 % in 99 % of cases."""
    config, rejected = CurvatureConfig(dimension=2, n_surrogates=39, n_bootstrap=0, n_anchors=40), 0
    for seed in range(200):
        cloud = manifolds.uniform_cube(300, dimension=2, ambient=4, noise=0.02, seed=seed).points
        rejected += curvature(cloud, config=config).mean_curvature.p_value <= 0.05

    assert rejected / 200 <= 0.086


# Calibration
@pytest.mark.calibration
def test_curvature__interval_of_a_sphere_covers_what_a_quadratic_finds():
    """Neighbourhoods in less than all samples; of 200 intervals at least 179, in 99.9 % of cases."""
    options = {"dimension": 2, "n_anchors": 100, "n_surrogates": 0}
    found = [
        curvature(manifolds.sphere(600, seed=seed).points, config=CurvatureConfig(seed=seed, **options))
        for seed in range(200)
    ]
    for name in ("mean_curvature", "sectional_curvature"):
        truth = np.median(np.concatenate([getattr(each, f"{name}_at") for each in found]))
        assert sum(getattr(each, name).low <= truth <= getattr(each, name).high for each in found) >= 179


@pytest.mark.calibration
def test_curvature__sectional_curvature_of_noisy_planes_is_found_at_the_nominal_rate():
    """Of 200 two-sided p-values at 5 % at most 21, at 50 % at most 122, in 99.9 % of cases."""
    options, p = {"dimension": 2, "n_surrogates": 39, "n_bootstrap": 0, "n_anchors": 40}, []
    for seed in range(200):
        cloud = manifolds.uniform_cube(300, dimension=2, ambient=4, noise=0.02, seed=seed).points
        p.append(curvature(cloud, config=CurvatureConfig(seed=seed, **options)).sectional_curvature.p_value)

    assert np.sum(np.array(p) < 0.0501) <= 21
    assert np.sum(np.array(p) < 0.501) <= 122


# Bad input
@pytest.fixture
def unchecked():
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("shape", [(5,), (2, 3, 4), (3, 0)])
def test_curvature__raises_on_anything_but_a_matrix(shape):
    with pytest.raises(ShapeError, match=r"points must be \(sample, unit\)"):
        curvature(np.zeros(shape))


def test_curvature__raises_on_what_is_not_finite_or_has_too_few_samples():
    points = manifolds.sphere(60).points
    with pytest.raises(DegenerateInputError, match="at least 20 distinct samples"):
        curvature(points[:10])
    with pytest.raises(DegenerateInputError, match=r"at least 96 distinct samples, 4 for each neighbour.*Got 60"):
        curvature(points, config=CurvatureConfig(dimension=2))
    points[0] = np.inf
    with pytest.raises(DegenerateInputError, match="Got 1 samples with NaN"):
        curvature(points)


def test_curvature__raises_where_there_is_no_manifold():
    noise = generator(0, "noise").standard_normal((300, 4))
    with pytest.raises(DegenerateInputError, match=r"Got every unit filled.*Pass dimension"):
        curvature(noise)
    with pytest.raises(DegenerateInputError, match=r"Got no gap.*Pass dimension"):
        curvature(generator(0, "wide").standard_normal((300, 60)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dimension": 3}, "dimension must be below the number of units"),
        ({"dimension": 2, "n_neighbours": 6}, "n_neighbours must be at least 7 for a quadratic in 2 dimensions"),
    ],
)
def test_curvature__raises_on_a_dimension_that_does_not_fit(options, message):
    with pytest.raises(ConfigurationError, match=message):
        curvature(manifolds.sphere(200).points, config=CurvatureConfig(**options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dimension": -1}, "must not be negative"),
        ({"n_anchors": 1}, "n_anchors at least 2"),
        ({"n_surrogates": 3}, "n_surrogates must be 0 or at least 19"),
    ],
)
def test_curvature__config_refuses_what_makes_no_sense(options, message):
    with pytest.raises(ConfigurationError, match=message):
        CurvatureConfig(**options)
