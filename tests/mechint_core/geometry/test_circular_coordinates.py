import jaxtyping
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy import stats

from mechint_core.errors import ConfigurationError, DegenerateInputError, MemoryBudgetError, ShapeError
from mechint_core.geometry import CircularCoordinatesConfig, circular_coordinates
from mechint_core.random import generator
from mechint_core.synthetic import manifolds


def angle_only(**options):
    return CircularCoordinatesConfig(n_surrogates=0, n_resamples=0, **options)


def distance_up_to_symmetry(found, true):
    """The largest angle between two maps into the circle, after the best rotation and reflection."""
    apart = []
    for sign in (1, -1):
        turned = np.exp(1j * (found - sign * true))
        apart.append(np.abs(np.angle(turned / np.mean(turned))).max())
    return min(apart)


def rms_up_to_symmetry(found, true):
    """The root mean square angle between two maps into the circle, after the best rotation and reflection."""
    turned = [np.exp(1j * (found - sign * true)) for sign in (1, -1)]
    return min(np.sqrt(np.mean(np.angle(each / np.mean(each)) ** 2)) for each in turned)


def planted_ring(*, noise, seed=0, n=59, frequency=7, units=64, repeats=10):
    """Samples in 64 dimensions whose means by residue go `frequency` times around one circle, and the residues."""
    rng = generator(seed, "ring")
    turn = 2 * np.pi * frequency * np.arange(n) / n
    frame = np.linalg.qr(rng.standard_normal((units, 2)))[0]
    means = np.stack([np.cos(turn), np.sin(turn)], axis=1) @ frame.T
    label = np.repeat(np.arange(n), repeats)
    return means[label] + noise * rng.standard_normal((n * repeats, units)), label


# Known answer
@pytest.mark.parametrize("n", [5, 8, 13, 40])
def test_circular_coordinates__corners_of_a_polygon_are_equally_apart(n):
    """By symmetry the smoothest map turns by 1 / n from corner to corner. Tolerance: rounding of one linear system."""
    found = circular_coordinates(manifolds.polygon(n).points, config=angle_only())

    assert distance_up_to_symmetry(found.angle, 2 * np.pi * np.arange(n) / n) < 1e-9
    assert (found.n_loops, found.n_pieces, found.n_uncovered) == (1, 1, 0)


def test_circular_coordinates__recovers_the_residue_of_a_noisy_ring_in_64_dimensions():
    """Noise of the means is 0.03 per unit, 0.24 in all beside a radius of 1; nearest neighbours are 0.11 apart."""
    points, residue = planted_ring(noise=0.1)
    found = circular_coordinates(points, residue)

    assert abs(found.frequency) == 7
    assert found.period == 59
    assert found.recovery.value > 0.99
    assert found.recovery.low <= found.recovery.value <= found.recovery.high
    assert found.recovery.p_value == pytest.approx(1 / 1000)
    assert found.persistence.p_value == pytest.approx(1 / 20)
    assert distance_up_to_symmetry(found.angle, 2 * np.pi * 7 * np.arange(59) / 59) < 0.3
    assert "follows the label, 7 times around per period of 59" in found.reading()


def test_circular_coordinates__samples_far_from_the_landmarks_keep_their_order():
    """2000 noisy samples, 100 landmarks: the others get their angle by extension."""
    ring = manifolds.circle(2000, noise=0.05, ambient=8)
    found = circular_coordinates(ring.points, config=angle_only(max_points=100))

    assert (found.n_landmarks, found.n_uncovered) == (100, 0)
    assert distance_up_to_symmetry(found.angle, ring.position[:, 0]) < 0.35  # sd of the noise is 0.05 per unit


def test_circular_coordinates__two_loops_of_a_torus_are_its_two_angles():
    grid = manifolds.clifford_grid(16)
    first, second = (circular_coordinates(grid.points, config=angle_only(loop=k, max_points=256)) for k in (0, 1))
    turns = np.array([[winding(each.angle, axis) for axis in (0, 1)] for each in (first, second)])

    assert abs(round(np.linalg.det(turns))) == 1  # a basis of the loops, whichever
    assert np.allclose(turns, turns.round())


def winding(angle, axis):
    """How often the angle turns along one axis of the 16 x 16 grid."""
    along = np.moveaxis(angle.reshape(16, 16), axis, 0)
    steps = np.angle(np.exp(1j * np.diff(np.append(along, along[:1], axis=0), axis=0)))
    return steps.sum(axis=0).mean() / (2 * np.pi)


def test_circular_coordinates__noise_follows_no_label():
    """p is uniform where labels mean nothing: of 20 clouds at most 4 are below 0.05 in 99.7 % of cases."""
    config = CircularCoordinatesConfig(n_surrogates=0, n_resamples=0, n_permutations=199, n_bootstrap=0)
    p = []
    for seed in range(20):
        cloud = manifolds.circle(30, noise=0.1, seed=seed).points
        order = generator(seed, "label").permutation(30)
        p.append(circular_coordinates(cloud, order, config=config).recovery.p_value)

    assert np.sum(np.array(p) <= 0.05) <= 4
    assert np.mean(p) > 0.3


def test_circular_coordinates__a_label_may_be_scored_on_samples_in_place_of_means():
    points, residue = planted_ring(noise=0.01, repeats=3)
    found = circular_coordinates(points, residue, config=angle_only(average=False))

    assert found.angle.shape == (177,)
    assert found.colour.tolist() == residue.tolist()
    assert found.recovery.value > 0.99


def test_circular_coordinates__one_ring_of_several_is_found_in_the_roundest_plane():
    """Two circles of equal strength in the means; in the roundest plane one is left, and the label's order on it."""
    first, label = planted_ring(noise=0.02, frequency=3, seed=1)
    second, _ = planted_ring(noise=0.02, frequency=11, seed=2)
    config = CircularCoordinatesConfig(n_components=8, roundest_plane=True)
    found = circular_coordinates(first + second, label, config=config)

    assert abs(found.frequency) in (3, 11)
    assert found.recovery.value > 0.98
    assert found.persistence.p_value <= 0.05


# Oracle
def test_circular_coordinates__angle_is_that_of_an_iterative_least_squares_solver():
    """The same cocycle smoothed by LSQR on the weighted coboundary matrix, and no extension."""
    from scipy.sparse import coo_array
    from scipy.sparse.linalg import lsqr

    from mechint_core.geometry._circle_valued import CircleMap, Loops

    cloud = manifolds.circle(40, noise=0.1).points
    loops = Loops.of(cloud, 47)
    birth, death = loops.bar(0)
    circle = CircleMap.of(loops, 0, (birth + death) / 2, 47)
    row, column = np.nonzero(np.triu((loops.distances <= circle.scale), 1))
    edge = np.arange(len(row))
    coboundary = coo_array(
        (np.r_[np.ones(len(row)), -np.ones(len(row))], (np.r_[edge, edge], np.r_[column, row])), shape=(len(row), 40)
    )
    kernel = np.exp(-4 * loops.distances**2 / circle.scale**2) * (loops.distances <= circle.scale)
    density = kernel.sum(axis=1)
    root = np.sqrt(kernel[row, column] / density[row] / density[column])
    weighted = coboundary.multiply(root[:, None])
    tau = lsqr(weighted, -root * circle.cocycle[row, column], atol=1e-14, btol=1e-14)[0]

    np.testing.assert_allclose(circle.turns - circle.turns.mean(), tau - tau.mean(), atol=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_circular_coordinates__agrees_with_the_angle_in_the_plane(seed):
    """0.06 to 0.08 where points lie at random; without the weights 0.25."""
    ring = manifolds.circle(150, noise=0.05, seed=seed).points
    found = circular_coordinates(ring, config=angle_only())

    assert rms_up_to_symmetry(found.angle, np.arctan2(ring[:, 1], ring[:, 0])) < 0.1


# Law
@given(st.integers(0, 2**32), st.floats(1e-3, 1e3))
@settings(max_examples=10)
def test_circular_coordinates__ignores_rotation_shift_and_scale(seed, scale):
    rng = generator(seed, "isometry")
    ring = manifolds.circle(30, noise=0.05, ambient=3, seed=seed % 1000).points
    turned = scale * (ring @ np.linalg.qr(rng.standard_normal((3, 3)))[0] + rng.standard_normal(3))
    here, there = (circular_coordinates(x, config=angle_only()) for x in (ring, turned))

    assert distance_up_to_symmetry(there.angle, here.angle) < 1e-6
    assert there.death == pytest.approx(scale * here.death)


@given(st.integers(2, 58))
@settings(max_examples=15)
def test_circular_coordinates__frequency_is_that_of_the_relabelling(factor):
    """Label times f modulo a prime turns f^-1 as often."""
    corners = manifolds.polygon(59).points
    found = circular_coordinates(corners, factor * np.arange(59) % 59, config=angle_only(n_permutations=0))

    assert (found.frequency * factor) % 59 in (1, 58)
    assert found.recovery.value == pytest.approx(1, abs=1e-9)


def test_circular_coordinates__same_seed_gives_the_same_numbers():
    points, residue = planted_ring(noise=0.1)
    first, second = (circular_coordinates(points, residue) for _ in range(2))

    assert first.scalars() == second.scalars()
    assert np.array_equal(first.angle, second.angle)


# Calibration
@pytest.mark.calibration
@pytest.mark.parametrize("options", [{}, {"n_components": 4, "roundest_plane": True}], ids=["space", "plane"])
def test_circular_coordinates__persistence_of_gaussian_clouds_is_uniform(options):
    """The KS distance of 200 uniform draws passes 0.137 once in 1000."""
    p = []
    for seed in range(200):
        cloud = generator(seed, "gaussian").standard_normal((40, 6)) * np.exp(-np.arange(6) / 3)
        config = CircularCoordinatesConfig(n_surrogates=19, n_resamples=0, seed=seed, **options)
        p.append(circular_coordinates(cloud, config=config).persistence.p_value)

    assert stats.kstest(p - generator(0, "spread").uniform(0, 1 / 20, 200), "uniform").statistic < 0.137


@pytest.mark.calibration
@pytest.mark.parametrize("weight", [[1] * 10, [4, 4, 4] + [1] * 7, [8] + [1] * 9], ids=["even", "arc", "one"])
def test_circular_coordinates__recovery_of_a_label_that_knows_nothing_of_the_circle_is_uniform(weight):
    """Values of any frequency; the KS distance of 400 uniform draws passes 0.097 once in 1000."""
    p, share = [], np.array(weight) / np.sum(weight)
    for seed in range(400):
        cloud = manifolds.circle(60, noise=0.1, seed=seed).points
        label = generator(seed, "label").choice(10, 60, p=share)
        config = angle_only(average=False, period=10, n_permutations=99, n_bootstrap=0, seed=seed)
        p.append(circular_coordinates(cloud, label, config=config).recovery.p_value)

    assert stats.kstest(p - generator(0, "spread").uniform(0, 1 / 100, 400), "uniform").statistic < 0.097


# Bad input
def test_circular_coordinates__points_no_landmark_reaches_have_no_angle():
    """30 landmarks of a cloud so noisy that they cover it only at scales where its loop is filled."""
    cloud = manifolds.circle(500, noise=0.3, ambient=16).points
    found = circular_coordinates(cloud, config=angle_only(max_points=30))

    assert 2 * found.cover_radius > found.death
    assert 0 < found.n_uncovered == np.isnan(found.angle).sum() < 500
    assert "too far from it to have an angle" in found.reading()


def test_circular_coordinates__raises_where_there_is_no_such_loop():
    with pytest.raises(DegenerateInputError, match=r"must have loop 0\. Got 0 loops"):
        circular_coordinates(np.outer(np.arange(8.0), [1, 2]))
    with pytest.raises(DegenerateInputError, match=r"must have loop 1\. Got 1 loops"):
        circular_coordinates(manifolds.polygon(8).points, config=angle_only(loop=1))


@pytest.mark.parametrize(
    ("label", "options", "message"),
    [
        (np.arange(12), {"period": 10}, r"within its period 10\. Got 12 values"),
        (np.arange(12) % 3, {}, r"at least 4 distinct condition means to form a loop\. Got 3"),
    ],
)
def test_circular_coordinates__raises_on_labels_without_cyclic_order(label, options, message):
    with pytest.raises(DegenerateInputError, match=message):
        circular_coordinates(manifolds.polygon(12).points, label, config=angle_only(**options))


def test_circular_coordinates__raises_on_points_that_are_none():
    with pytest.raises(DegenerateInputError, match="Got 1 NaN or infinite"):
        circular_coordinates(np.array([[0.0, 1], [1, 0], [1, 1], [np.nan, 0]]))
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        with pytest.raises(ShapeError, match=r"points must be \(sample, unit\)"):
            circular_coordinates(np.zeros(5))
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def test_circular_coordinates__raises_beyond_the_memory_budget():
    with pytest.raises(MemoryBudgetError, match=r"for 200 points in dimension 1\. Got 1000000"):
        circular_coordinates(manifolds.circle(300).points, config=angle_only(memory_budget=10**6))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"coefficient": 2}, "prime in 3"),
        ({"place": 1.0}, r"place must be in \(0, 1\)"),
        ({"max_points": 3}, "at least 4"),
        ({"loop": -1}, "must not be negative"),
        ({"roundest_plane": True}, "n_components >= 3"),
    ],
)
def test_circular_coordinates__config_refuses_what_makes_no_sense(options, message):
    with pytest.raises(ConfigurationError, match=message):
        CircularCoordinatesConfig(**options)
