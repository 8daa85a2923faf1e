import subprocess
import sys
from itertools import combinations

import jaxtyping
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import pdist, squareform

from mechint_core.errors import ConfigurationError, DegenerateInputError, MemoryBudgetError, ShapeError
from mechint_core.geometry import PersistentHomologyConfig, persistent_homology, persistent_homology_many
from mechint_core.parallel import Backend, compute
from mechint_core.random import generator
from mechint_core.synthetic import manifolds


def barcode_only(**options):
    """A config that draws neither surrogates nor resamples."""
    return PersistentHomologyConfig(n_surrogates=0, n_resamples=0, **options)


def bars_of(result, dimension):
    return result.bars[result.dimension == dimension]


def modular_representation(amplitudes, *, noise, seed, n=59, units=128, repeats=20):
    """Samples whose condition means are a sum of circles of several frequencies, and their labels."""
    rng = generator(seed, "modular")
    residue = np.arange(n)
    turns = [2 * np.pi * (3 + 5 * i) * residue / n for i in range(len(amplitudes))]
    waves = [a * np.stack([np.cos(t), np.sin(t)], axis=1) for a, t in zip(amplitudes, turns, strict=True)]
    means = np.concatenate(waves, axis=1) @ rng.standard_normal((2 * len(amplitudes), units))
    label = np.repeat(residue, repeats)
    return (means[label] + noise * rng.standard_normal((n * repeats, units))).astype(np.float32), label


# Known answer
@pytest.mark.parametrize("n", range(4, 51))
def test_persistent_homology__polygon_has_one_loop_from_its_side_to_its_widest_triangle(n):
    """Tolerance: rounding of the sines. No ghost bars of the many equal distances."""
    result = persistent_homology(manifolds.polygon(n).points, config=barcode_only())

    expected = [[2 * np.sin(np.pi / n), 2 * np.sin(np.pi * np.ceil(n / 3) / n)]]
    np.testing.assert_allclose(bars_of(result, 1), expected, rtol=1e-12)
    assert len(bars_of(result, 0)) == n


@pytest.mark.parametrize(("n", "voids"), [(5, 0), (6, 1), (9, 2), (12, 3), (15, 4)])
def test_persistent_homology__polygon_of_3k_corners_has_k_minus_1_voids(n, voids):
    result = persistent_homology(manifolds.polygon(n).points, config=barcode_only(max_dimension=2))

    assert len(bars_of(result, 2)) == voids


def test_persistent_homology__octagon_has_a_class_in_dimension_3():
    result = persistent_homology(manifolds.polygon(8).points, config=barcode_only(max_dimension=3))

    np.testing.assert_allclose(bars_of(result, 3), [[2 * np.sin(3 * np.pi / 8), 2]], rtol=1e-12)


def test_persistent_homology__cube_has_five_loops_and_one_class_in_dimension_3():
    corners = np.array(list(np.ndindex(2, 2, 2)), dtype=float)
    result = persistent_homology(corners, config=barcode_only(max_dimension=3))

    np.testing.assert_allclose(bars_of(result, 1), np.tile([1, np.sqrt(2)], (5, 1)), rtol=1e-12)
    np.testing.assert_allclose(bars_of(result, 3), [[np.sqrt(2), np.sqrt(3)]], rtol=1e-12)
    assert len(bars_of(result, 2)) == 0


@pytest.mark.parametrize("axes", [2, 3, 4])
def test_persistent_homology__cross_polytope_has_the_sphere_it_spans(axes):
    """Corners are sqrt(2) apart but for opposite ones, 2 apart: a sphere of one dimension less in between."""
    corners = np.concatenate([np.eye(axes), -np.eye(axes)])
    result = persistent_homology(corners, config=barcode_only(max_dimension=3))

    np.testing.assert_allclose(bars_of(result, axes - 1), [[np.sqrt(2), 2.0]], rtol=1e-12)
    assert len(result.bars) == 2 * axes + 1


def test_persistent_homology__dimension_0_alone_is_the_first_part_of_the_barcode():
    cloud = manifolds.circle(40, noise=0.1).points
    alone = persistent_homology(cloud, config=PersistentHomologyConfig(max_dimension=0, n_surrogates=19))
    both = persistent_homology(cloud, config=barcode_only())

    np.testing.assert_array_equal(alone.bars, bars_of(both, 0))
    assert alone.betti.tolist() == [alone.betti_0]
    assert np.isnan([alone.betti_1, alone.band, alone.longest_h1.value, alone.entropy.value]).all()
    assert "loops were not looked for" in alone.reading()


def test_persistent_homology__flat_torus_grid_has_two_loops_of_its_circles():
    """Each factor is a 16-gon of radius 1 / sqrt(2); the next loops end at its second diagonal over sqrt(2)."""
    grid = manifolds.clifford_grid(16)
    result = persistent_homology(grid.points, config=barcode_only(max_points=256))
    loops = bars_of(result, 1)

    circle = np.array([2 * np.sin(np.pi / 16), 2 * np.sin(6 * np.pi / 16)]) / np.sqrt(2)
    np.testing.assert_allclose(loops[:2], [circle, circle], rtol=1e-12)
    assert loops[2:, 1].max() == pytest.approx(2 * np.sin(np.pi / 16), rel=1e-12)


def test_persistent_homology__projective_plane_has_a_loop_over_two_elements_only():
    """Lines through the sphere's points, as x x': twice around is no loop, so over Z/3 there is none."""
    on_sphere = manifolds.sphere(200).points
    plane = (on_sphere[:, :, None] * on_sphere[:, None, :]).reshape(200, 9)
    over_two, over_three = (persistent_homology(plane, config=barcode_only(coefficient=p)) for p in (2, 3))

    assert over_two.longest_h1.value > 2 * over_three.longest_h1.value
    assert over_two.longest_h1.value > 0.6


def test_persistent_homology__sphere_has_one_void_and_no_loop():
    config = PersistentHomologyConfig(max_dimension=2, max_points=80, n_surrogates=19, n_resamples=0)

    assert persistent_homology(manifolds.sphere(300).points, config=config).betti.tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("cloud", "betti"),
    [
        (manifolds.circle(150, noise=0.05, ambient=5), [1, 1]),
        (manifolds.figure_eight(200, noise=0.03), [1, 2]),
        (manifolds.clifford_torus(1000, noise=0.02), [1, 2]),
        (manifolds.torus(1000), [1, 2]),
        (manifolds.sphere(400), [1, 0]),
    ],
    ids=["circle", "figure eight", "flat torus", "torus", "sphere"],
)
def test_persistent_homology__default_settings_count_components_and_loops(cloud, betti):
    assert persistent_homology(cloud.points).betti.tolist() == betti


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 4))
@pytest.mark.parametrize(
    ("make", "betti"),
    [
        (manifolds.circle, [1, 1]),
        (manifolds.sphere, [1, 0]),
        (manifolds.torus, [1, 2]),
        (manifolds.clifford_torus, [1, 2]),
    ],
)
def test_persistent_homology__default_settings_count_loops_whatever_the_sample(make, betti, seed):
    """Gaussian clouds alone are no measure of the gaps of a surface: they gave spheres up to 4 loops, tori up to 8."""
    assert persistent_homology(make(500, seed=seed).points).betti.tolist() == betti


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cloud", "betti"),
    [
        (manifolds.sphere(1000), [1, 0, 1]),
        (manifolds.torus(1000), [1, 2, 1]),
    ],
    ids=["sphere", "torus"],
)
def test_persistent_homology__default_settings_count_voids(cloud, betti):
    """Without resamples, which make no band where there is a null."""
    config = PersistentHomologyConfig(max_dimension=2, n_resamples=0)

    assert persistent_homology(cloud.points, config=config).betti.tolist() == betti


def test_persistent_homology__two_clusters_are_two_components():
    two = np.concatenate([manifolds.uniform_cube(30, seed=i).points + 5 * i for i in (0, 1)])

    assert persistent_homology(two).betti_0 == 2


def test_persistent_homology__interval_covers_the_true_circle():
    """A circle sampled everywhere has H1 bar sqrt(3) and enclosing radius 2."""
    longest = persistent_homology(manifolds.circle(150).points).longest_h1

    assert longest.low < np.sqrt(3) / 2 < longest.high
    assert longest.p_value <= 0.05


def test_persistent_homology__finds_one_ring_among_four_of_equal_strength():
    """The leading plane mixes four frequencies; the roundest one shows 59 points on one circle."""
    points, label = modular_representation((1.0, 1.0, 1.0, 1.0), noise=1.0, seed=0)
    ring = persistent_homology(points, label, config=PersistentHomologyConfig(n_components=8, roundest_plane=True))

    assert (ring.betti_0, ring.betti_1, ring.n_points) == (1, 1, 59)
    assert ring.longest_h1.value > 0.65
    assert ring.longest_h1.p_value == pytest.approx(0.01)
    assert "One loop stands out" in ring.reading()


def test_persistent_homology__finds_no_ring_in_noise():
    points, label = modular_representation((0.0,), noise=1.0, seed=1)
    for config in (
        PersistentHomologyConfig(n_components=2),
        PersistentHomologyConfig(n_components=8, roundest_plane=True),
    ):
        none = persistent_homology(points, label, config=config)
        assert none.longest_h1.p_value > 0.05
        assert none.reading().startswith("No loop beyond what a Gaussian cloud")


def test_persistent_homology__condition_means_are_coloured_by_their_label():
    points, label = modular_representation((1.0,), noise=0.01, seed=0)
    ring = persistent_homology(points, label + 7, config=PersistentHomologyConfig(n_components=2))
    angle = np.unwrap(np.arctan2(ring.points[:, 1], ring.points[:, 0]))

    assert ring.colour.tolist() == list(range(7, 66))
    assert ring.longest_h1.low < ring.longest_h1.value < ring.longest_h1.high
    assert ring.points.shape == (59, 2)
    assert abs(angle[-1] - angle[0]) > 2 * np.pi  # frequency 3: the labels run around three times


def test_persistent_homology__duplicates_are_left_out_and_counted():
    corners = manifolds.polygon(12).points
    twice = persistent_homology(np.concatenate([corners, corners[:5]]), config=barcode_only())
    once = persistent_homology(corners, config=barcode_only())

    assert (twice.n_duplicates, once.n_duplicates) == (5, 0)
    assert np.array_equal(twice.bars, once.bars)


@pytest.mark.slow
@pytest.mark.parametrize("roundest_plane", [False, True])
def test_persistent_homology__false_positives_are_at_their_nominal_rate(roundest_plane):
    """The rotation test is exact under any Gaussian: 200 draws at 5 % stay below 8.6 % in 99 % of cases."""
    spectrum = np.exp(-np.arange(64) / 6)
    options = {"n_components": 8 if roundest_plane else 2, "n_surrogates": 39, "n_resamples": 0}
    rejected = 0
    for seed in range(200):
        cloud = generator(seed, "gaussian").standard_normal((59, 64)) * spectrum
        config = PersistentHomologyConfig(roundest_plane=roundest_plane, seed=seed, **options)
        rejected += persistent_homology(cloud, config=config).longest_h1.p_value <= 0.05

    assert rejected / 200 <= 0.086


# Oracle
@given(st.integers(0, 2**32), st.integers(4, 30), st.integers(1, 5))
def test_persistent_homology__components_die_at_the_heights_of_single_linkage(seed, n, d):
    cloud = generator(seed, "cloud").standard_normal((n, d))
    deaths = bars_of(persistent_homology(cloud, config=barcode_only()), 0)[:, 1]

    np.testing.assert_allclose(np.sort(deaths), [*linkage(pdist(cloud), "single")[:, 2], np.inf], rtol=1e-12)


@settings(max_examples=15)
@given(st.integers(0, 2**32), st.sampled_from([2, 3, 5]))
def test_persistent_homology__loops_and_voids_equal_those_of_the_reduced_boundary_matrix(seed, coefficient):
    cloud = generator(seed, "cloud").standard_normal((9, 3))
    result = persistent_homology(cloud, config=barcode_only(max_dimension=2, coefficient=coefficient))

    for dimension, expected in enumerate(reduced_boundary_matrix(cloud, 2, coefficient)):
        finite = bars_of(result, dimension)
        np.testing.assert_allclose(np.sort(finite[np.isfinite(finite[:, 1])], axis=0), np.sort(expected, axis=0))


def reduced_boundary_matrix(cloud, max_dimension, p):
    """Finite bars by reducing the columns of the whole boundary matrix over Z/p: slow, and nothing like ripser."""
    distances = squareform(pdist(cloud))
    simplices = [s for k in range(max_dimension + 2) for s in combinations(range(len(cloud)), k + 1)]
    value = {s: max((distances[i, j] for i, j in combinations(s, 2)), default=0.0) for s in simplices}
    simplices.sort(key=lambda s: (value[s], len(s), s))
    place = {s: i for i, s in enumerate(simplices)}
    lows, bars = {}, [[] for _ in range(max_dimension + 1)]
    for simplex in simplices:
        faces = [simplex[:i] + simplex[i + 1 :] for i in range(len(simplex))] if len(simplex) > 1 else []
        column = {place[face]: (-1) ** i % p for i, face in enumerate(faces)}
        while column and max(column) in lows:
            low = max(column)
            factor = -column[low] * pow(lows[low][low], -1, p)
            for row, entry in lows[low].items():
                column[row] = (column.get(row, 0) + factor * entry) % p
            column = {row: entry for row, entry in column.items() if entry}
        if column:
            lows[max(column)] = column
            birth, death = value[simplices[max(column)]], value[simplex]
            if death > birth:
                bars[len(simplex) - 2].append((birth, death))
    return [np.array(each).reshape(-1, 2) for each in bars]


@pytest.mark.oracle
@pytest.mark.parametrize("coefficient", [2, 3, 11])
@pytest.mark.parametrize("cloud", [manifolds.torus(60), manifolds.sphere(50), manifolds.figure_eight(80, noise=0.05)])
def test_persistent_homology__agrees_with_gudhi(cloud, coefficient):
    """Another engine: a simplex tree and persistent cohomology, without ripser's cut at the enclosing radius."""
    gudhi = pytest.importorskip("gudhi")
    tree = gudhi.RipsComplex(points=cloud.points).create_simplex_tree(max_dimension=3)
    tree.persistence(homology_coeff_field=coefficient)

    ours = persistent_homology(cloud.points, config=barcode_only(max_dimension=2, coefficient=coefficient))

    for dimension in range(3):
        theirs = tree.persistence_intervals_in_dimension(dimension).reshape(-1, 2)
        assert len(bars_of(ours, dimension)) == len(theirs)
        np.testing.assert_allclose(
            np.sort(bars_of(ours, dimension), axis=0), np.sort(theirs, axis=0), rtol=1e-12, atol=1e-12
        )


# Law
seeds = st.integers(0, 2**32)


def random_cloud(seed):
    return generator(seed, "cloud").standard_normal((20, 3))


CHEAP = PersistentHomologyConfig(n_surrogates=19, n_resamples=9)


@given(seeds, st.floats(1e-6, 1e6))
@settings(max_examples=20)
def test_persistent_homology__ignores_rotation_shift_and_order_and_follows_scale(seed, scale):
    """Tolerance 1e-9 of the radius: distances far from the origin lose digits."""
    cloud, rng = random_cloud(seed), generator(seed, "isometry")
    turned = scale * (cloud @ np.linalg.qr(rng.standard_normal((3, 3)))[0] + rng.standard_normal(3))
    here, there = (persistent_homology(x, config=CHEAP) for x in (cloud, rng.permutation(turned)))

    np.testing.assert_allclose(there.bars, scale * here.bars, rtol=1e-9, atol=1e-9 * scale)
    assert there.longest_h1.value == pytest.approx(here.longest_h1.value, abs=1e-9)
    assert there.longest_h1.p_value == here.longest_h1.p_value


@given(seeds, st.floats(1e-4, 0.3))
@settings(max_examples=40)
def test_persistent_homology__is_stable(seed, epsilon):
    """Points moved by at most epsilon move births and deaths by at most 2 epsilon, a length by at most 4."""
    cloud, step = random_cloud(seed), generator(seed, "step").standard_normal((20, 3))
    moved = cloud + epsilon * step / np.linalg.norm(step, axis=1, keepdims=True)
    before, after = (persistent_homology(x, config=barcode_only()) for x in (cloud, moved))

    change = after.longest_h1.value * after.enclosing_radius - before.longest_h1.value * before.enclosing_radius
    assert abs(change) <= 4 * epsilon + 1e-12
    assert abs(after.enclosing_radius - before.enclosing_radius) <= 2 * epsilon + 1e-12


@given(seeds, st.integers(5, 19))
@settings(max_examples=40)
def test_persistent_homology__landmarks_cover_and_change_lengths_by_4_cover_radii_at_most(seed, max_points):
    cloud = random_cloud(seed)
    whole = persistent_homology(cloud, config=barcode_only())
    part = persistent_homology(cloud, config=barcode_only(max_points=max_points))

    change = part.longest_h1.value * part.enclosing_radius - whole.longest_h1.value * whole.enclosing_radius
    assert (part.n_points, whole.cover_radius) == (max_points, 0)
    assert part.cover_radius > 0
    assert abs(change) <= 4 * part.cover_radius + 1e-12


@given(seeds)
@settings(max_examples=20)
def test_persistent_homology__estimates_are_in_range_and_betti_agrees_with_p(seed):
    result = persistent_homology(random_cloud(seed), config=CHEAP)
    longest = result.longest_h1

    assert 0 <= longest.low <= longest.value <= longest.high <= 1
    assert 1 / 20 <= longest.p_value <= 1
    assert (longest.value * result.enclosing_radius > result.band) == (longest.p_value <= 0.05)
    assert result.betti_1 == 0 or longest.p_value <= 0.05
    assert np.all(result.bars[:, 1] > result.bars[:, 0])


def test_persistent_homology__same_seed_gives_the_same_numbers_on_any_backend():
    many = [manifolds.circle(30, noise=0.2, seed=seed).points for seed in range(4)]
    one_by_one = [persistent_homology(each, config=CHEAP).scalars() for each in many]
    for backend in (Backend(threads=2), Backend(processes=2)):
        with compute(backend):
            assert [each.scalars() for each in persistent_homology_many(many, config=CHEAP)] == one_by_one


def test_persistent_homology__memory_estimate_grows_up_to_the_landmarks():
    config = PersistentHomologyConfig(max_points=400)

    assert config.memory_estimate(100) < config.memory_estimate(400) == config.memory_estimate(10**6)


@pytest.mark.slow
@pytest.mark.parametrize(("n", "max_dimension"), [(200, 1), (600, 1), (150, 2)])
def test_persistent_homology__peak_memory_stays_below_its_estimate(n, max_dimension):
    """A clean circle is the dearest cloud known here; the peak is that of a fresh process, beyond its imports."""
    program = f"""
import resource
from mechint_core.geometry import PersistentHomologyConfig, persistent_homology
from mechint_core.synthetic.manifolds import circle
config = PersistentHomologyConfig(max_points={n}, max_dimension={max_dimension}, n_surrogates=0, n_resamples=0)
persistent_homology(circle(30).points, config=config)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
persistent_homology(circle({n}, noise=0.02).points, config=config)
print(peak() - before)
"""
    used = int(subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout)

    assert used <= PersistentHomologyConfig(max_points=n, max_dimension=max_dimension).memory_estimate(n)


def test_persistent_homology__draws_fewer_surrogates_for_more_points():
    config = PersistentHomologyConfig()

    assert [config.surrogates_for(n) for n in (59, 100, 150, 200, 1000)] == [99, 99, 44, 24, 19]


# Bad input
@pytest.fixture
def unchecked():
    """Switch off the shape checks of the tests, so that the function's own are seen."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("shape", [(5,), (2, 3, 4), (0, 3), (3, 0)])
def test_persistent_homology__raises_on_anything_but_a_matrix(shape):
    with pytest.raises(ShapeError, match=r"points must be \(sample, unit\)"):
        persistent_homology(np.zeros(shape))


@pytest.mark.usefixtures("unchecked")
def test_persistent_homology__raises_on_labels_of_another_length():
    with pytest.raises(ShapeError, match="one integer for each of 6 samples"):
        persistent_homology(manifolds.polygon(6).points, np.arange(5))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_persistent_homology__raises_on_points_that_are_not_finite(bad):
    with pytest.raises(DegenerateInputError, match="Got 1 NaN or infinite"):
        persistent_homology(np.array([[0.0, 1], [1, 0], [1, 1], [bad, 0]]))


@pytest.mark.parametrize(("points", "distinct"), [(np.ones((1, 3)), 1), (np.ones((20, 3)), 1), (np.eye(3), 3)])
def test_persistent_homology__raises_when_too_few_points_are_distinct(points, distinct):
    with pytest.raises(DegenerateInputError, match=f"at least 4 distinct points to form a loop. Got {distinct}"):
        persistent_homology(points)


def test_persistent_homology__raises_when_too_few_conditions_are_distinct():
    with pytest.raises(DegenerateInputError, match=r"distinct condition means to form a loop. Got 2"):
        persistent_homology(manifolds.circle(50).points, np.arange(50) % 2)


def test_persistent_homology__has_no_interval_where_a_condition_has_one_sample():
    corners = manifolds.polygon(9).points
    result = persistent_homology(corners, np.arange(9), config=PersistentHomologyConfig(n_surrogates=19))

    assert np.isnan([result.longest_h1.low, result.sampling_band]).all()
    assert result.longest_h1.p_value > 0


def test_persistent_homology__points_on_a_line_have_no_loop():
    result = persistent_homology(np.outer(np.arange(8.0), [1, 2, 3]), config=CHEAP)

    assert (result.longest_h1.value, result.betti_1) == (0, 0)
    assert np.isnan(result.entropy.value)
    assert np.all(result.points[:, 1] == 0)


def test_persistent_homology__raises_beyond_the_memory_budget():
    config = PersistentHomologyConfig(memory_budget=10**6)
    with pytest.raises(MemoryBudgetError, match=r"for 200 points in dimension 1\. Got 1000000\. Lower max_points"):
        persistent_homology(manifolds.circle(300).points, config=config)


def test_persistent_homology__takes_as_many_landmarks_as_the_budget_holds():
    config = barcode_only(memory_budget=10**6, beyond_budget="subsample")
    result = persistent_homology(manifolds.circle(300).points, config=config)

    assert result.n_points == config.points_for(300) < 200
    assert result.memory_estimate == config.memory_estimate(300) <= 10**6
    assert barcode_only(max_points=result.n_points + 1).memory_estimate(300) > 10**6
    assert result.cover_radius > 0


def test_persistent_homology__raises_where_the_budget_holds_no_loop():
    config = barcode_only(memory_budget=100, beyond_budget="subsample")
    with pytest.raises(MemoryBudgetError, match=r"for 4 points\. Got 100"):
        persistent_homology(manifolds.circle(300).points, config=config)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"coefficient": 4}, "prime below 128. Got 4"),
        ({"coefficient": 131}, "prime below 128. Got 131"),
        ({"max_dimension": -1}, "max_dimension must be 0, 1, 2 or 3"),
        ({"max_dimension": 4}, "max_dimension must be 0, 1, 2 or 3"),
        ({"beyond_budget": "swap"}, "beyond_budget must be one of"),
        ({"max_points": 3}, "max_points must be at least 4"),
        ({"n_surrogates": 10}, "n_surrogates must be 0 or at least 19"),
        ({"n_resamples": -1}, "must not be negative"),
        ({"roundest_plane": True, "n_components": 2}, "n_components >= 3. Got 2"),
    ],
)
def test_persistent_homology__config_refuses_what_makes_no_sense(options, message):
    with pytest.raises(ConfigurationError, match=message):
        PersistentHomologyConfig(**options)
