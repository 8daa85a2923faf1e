import jaxtyping
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from ripser import ripser
from scipy import stats
from scipy.sparse import coo_array, csr_matrix
from scipy.spatial.distance import pdist, squareform

from mechint_core.errors import ConfigurationError, DegenerateInputError, MemoryBudgetError, ShapeError
from mechint_core.geometry import (
    PersistentHomologyConfig,
    PersistentHomologyOfDistancesConfig,
    persistent_homology,
    persistent_homology_of_distances,
)
from mechint_core.random import generator
from mechint_core.synthetic import manifolds


def barcode_only(**options):
    return PersistentHomologyOfDistancesConfig(n_surrogates=0, n_resamples=0, **options)


def bars_of(result, dimension):
    return result.bars[result.dimension == dimension]


def cut_sparse(distances, cut):
    """The pairs of a square matrix up to `cut`, each stored once, in an order that is not sorted."""
    row, column = np.nonzero(np.triu(distances <= cut, 1))
    order = generator(0, "order").permutation(len(row))
    row, column = row[order], column[order]
    return coo_array((distances[row, column], (column, row)), shape=distances.shape)


# Known answer
@pytest.mark.parametrize("n", [4, 7, 12])
def test_persistent_homology_of_distances__polygon_is_that_of_its_points(n):
    corners = manifolds.polygon(n).points
    result = persistent_homology_of_distances(pdist(corners), config=barcode_only())

    expected = [[2 * np.sin(np.pi / n), 2 * np.sin(np.pi * np.ceil(n / 3) / n)]]
    np.testing.assert_allclose(bars_of(result, 1), expected, rtol=1e-12)


@pytest.mark.parametrize("dimension", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_persistent_homology_of_distances__projective_plane_by_its_own_metric(dimension):
    """Angles between lines: Z/2 sees a loop and a void of the projective plane, Z/3 neither."""
    on_sphere = manifolds.sphere(200).points
    angle = np.arccos(np.minimum(np.abs(on_sphere @ on_sphere.T), 1))
    np.fill_diagonal(angle, 0)
    over_two, over_three = (
        persistent_homology_of_distances(
            angle, config=barcode_only(coefficient=p, max_dimension=dimension, max_points=200)
        )
        for p in (2, 3)
    )
    longest, other = (np.diff(bars_of(each, dimension), axis=1).max() for each in (over_two, over_three))

    assert longest > 2 * other
    assert longest > 0.5


def test_persistent_homology_of_distances__neighbours_on_a_ring_close_a_loop_that_never_ends():
    ring = coo_array((np.arange(1.0, 9), (np.arange(8), (np.arange(8) + 1) % 8)), shape=(8, 8))
    result = persistent_homology_of_distances(ring, config=barcode_only())

    assert bars_of(result, 1).tolist() == [[8.0, np.inf]]
    assert bars_of(result, 0)[:, 1].tolist() == [np.inf, 7, 6, 5, 4, 3, 2, 1]
    assert (result.cut, result.n_missing, result.n_unended) == (8.0, 20, 1)
    assert "20 pairs have no distance" in result.reading()


def test_persistent_homology_of_distances__two_islands_are_two_components_that_never_meet():
    blocks = np.full((8, 8), np.inf)
    blocks[:4, :4] = blocks[4:, 4:] = 1
    np.fill_diagonal(blocks, 0)
    result = persistent_homology_of_distances(blocks, config=barcode_only())

    assert np.isinf(bars_of(result, 0)[:, 1]).sum() == 2
    assert len(bars_of(result, 1)) == 0


def test_persistent_homology_of_distances__a_circle_stands_out_of_its_shuffled_distances():
    """A circle sampled everywhere has H1 bar sqrt(3) and enclosing radius 2."""
    result = persistent_homology_of_distances(pdist(manifolds.polygon(60).points))

    assert (result.betti_0, result.betti_1) == (1, 1)
    assert result.longest_h1.low < np.sqrt(3) / 2 < result.longest_h1.high
    assert result.longest_h1.p_value == pytest.approx(1 / (1 + result.n_surrogates))
    assert result.reading().startswith("One loop stands out")


def test_persistent_homology_of_distances__a_random_matrix_is_like_its_shuffles():
    """p is uniform under the null: of 20 matrices at most 4 are below 0.05 in 99.7 % of cases."""
    config = PersistentHomologyOfDistancesConfig(n_surrogates=19, n_resamples=0)
    p = [
        persistent_homology_of_distances(generator(seed, "random").random(190), config=config).longest_h1.p_value
        for seed in range(20)
    ]

    assert np.sum(np.array(p) <= 0.05) <= 4
    assert np.mean(p) > 0.3


def test_persistent_homology_of_distances__points_at_distance_0_are_merged():
    corners = np.repeat(manifolds.polygon(6).points, 2, axis=0)
    result = persistent_homology_of_distances(pdist(corners), config=barcode_only())

    assert result.n_merged == 6
    assert len(bars_of(result, 0)) == 6
    np.testing.assert_allclose(bars_of(result, 1), [[1, np.sqrt(3)]])


# Oracle
@given(st.integers(0, 2**32), st.integers(5, 25))
@settings(max_examples=20)
def test_persistent_homology_of_distances__sparse_bars_equal_those_of_ripser(seed, n):
    distances = squareform(pdist(generator(seed, "cloud").standard_normal((n, 3))))
    cut = np.quantile(distances, 0.7)
    result = persistent_homology_of_distances(cut_sparse(distances, cut), config=barcode_only(max_dimension=2))

    dense = np.where(distances <= cut, distances, np.inf)
    for k, expected in enumerate(ripser(dense, distance_matrix=True, thresh=cut, maxdim=2)["dgms"]):
        ours = bars_of(result, k)
        order, theirs = np.lexsort(ours.T), np.lexsort(expected.T)
        np.testing.assert_allclose(ours[order], expected[theirs], rtol=1e-6)  # ripser's ends are float32


# Law
@given(st.integers(0, 2**32))
@settings(max_examples=20)
def test_persistent_homology_of_distances__is_that_of_the_points_in_all_three_shapes(seed):
    cloud = generator(seed, "cloud").standard_normal((15, 3))
    condensed = pdist(cloud)
    square = squareform(condensed)
    expected = persistent_homology(cloud, config=PersistentHomologyConfig(n_surrogates=0, n_resamples=0))

    for shape in (condensed, square, csr_matrix(square), coo_array(np.triu(square))):
        result = persistent_homology_of_distances(shape, config=barcode_only())
        np.testing.assert_allclose(result.bars, expected.bars, rtol=1e-12)
        assert result.cut == pytest.approx(expected.enclosing_radius, rel=1e-12)


@given(st.integers(0, 2**32), st.floats(0.2, 1))
@settings(max_examples=20)
def test_persistent_homology_of_distances__a_cut_keeps_every_birth_and_death_below_it(seed, share):
    distances = squareform(pdist(generator(seed, "cloud").standard_normal((15, 3))))
    cut = np.quantile(distances[distances > 0], share)
    whole = persistent_homology_of_distances(distances, config=barcode_only())
    part = persistent_homology_of_distances(cut_sparse(distances, cut), config=barcode_only())

    for k in (0, 1):
        bars = bars_of(whole, k)
        expected = np.where(bars > cut, np.inf, bars)[bars[:, 0] <= cut]
        kept = bars_of(part, k)
        kept = kept[kept[:, 0] <= cut]
        np.testing.assert_allclose(kept[np.lexsort(kept.T)], expected[np.lexsort(expected.T)], rtol=1e-12)


@given(st.integers(0, 2**32), st.integers(5, 19))
@settings(max_examples=20)
def test_persistent_homology_of_distances__landmarks_change_lengths_by_4_cover_radii_at_most(seed, max_points):
    distances = pdist(generator(seed, "cloud").standard_normal((20, 3)))
    whole = persistent_homology_of_distances(distances, config=barcode_only())
    part = persistent_homology_of_distances(distances, config=barcode_only(max_points=max_points))

    change = part.longest_h1.value * part.cut - whole.longest_h1.value * whole.cut
    assert (part.n_points, whole.cover_radius) == (max_points, 0)
    assert abs(change) <= 4 * part.cover_radius + 1e-12


@given(st.integers(0, 2**32), st.floats(1e-6, 1e6))
@settings(max_examples=10)
def test_persistent_homology_of_distances__same_seed_same_numbers_and_no_scale(seed, scale):
    distances = pdist(generator(seed, "cloud").standard_normal((12, 2)))
    config = PersistentHomologyOfDistancesConfig(n_surrogates=19, n_resamples=5)
    here, again, there = (
        persistent_homology_of_distances(d, config=config) for d in (distances, distances, scale * distances)
    )

    assert here.scalars() == again.scalars()
    assert there.longest_h1.p_value == here.longest_h1.p_value
    assert 0 <= here.longest_h1.low <= here.longest_h1.value <= here.longest_h1.high <= 1


def test_persistent_homology_of_distances__memory_estimate_of_all_pairs_is_that_of_points():
    from mechint_core.geometry._distance_pairs import Pairs

    pairs = Pairs.of(pdist(manifolds.sphere(60).points))
    for k in (1, 2):
        assert pairs.memory(k) == pytest.approx(PersistentHomologyConfig(max_dimension=k).memory_estimate(60), rel=0.1)


# Calibration
@pytest.mark.calibration
@pytest.mark.parametrize("n_points", [15, 60])
def test_persistent_homology_of_distances__p_values_are_uniform_on_random_distances(n_points):
    """All 15 points, or 15 landmarks; the KS distance of 400 uniform draws passes 0.097 once in 1000."""
    p = []
    for seed in range(400):
        distances = generator(seed, "random").exponential(size=n_points * (n_points - 1) // 2)
        config = PersistentHomologyOfDistancesConfig(n_surrogates=19, n_resamples=0, max_points=15, seed=seed)
        p.append(persistent_homology_of_distances(distances, config=config).longest_h1.p_value)

    assert stats.kstest(p - generator(0, "spread").uniform(0, 1 / 20, 400), "uniform").statistic < 0.097


# Bad input
@pytest.mark.parametrize(
    ("distances", "error", "message"),
    [
        (np.ones(7), ShapeError, "condensed or square"),
        (np.ones((4, 5)), ShapeError, "condensed or square"),
        (coo_array(np.ones((4, 5))), ShapeError, "condensed or square"),
        (np.ones(3), DegenerateInputError, "at least 4 points to form a loop. Got 3"),
        (np.zeros(6), DegenerateInputError, "finite one above 0"),
        (np.full(6, np.inf), DegenerateInputError, "finite one above 0"),
        (np.array([1.0, 1, 1, 1, 1, -1]), DegenerateInputError, "negative or NaN. Got 1"),
        (np.array([1.0, 1, 1, 1, np.nan, 1]), DegenerateInputError, "negative or NaN. Got 1"),
        (np.ones((5, 5)), DegenerateInputError, "at distance 0 from itself. Got 5"),
        (np.triu(np.ones((5, 5)), 1), DegenerateInputError, "same both ways"),
        (coo_array(np.arange(25.0).reshape(5, 5) * (1 - np.eye(5))), DegenerateInputError, "same both ways"),
    ],
)
def test_persistent_homology_of_distances__raises_on_what_is_no_distance(distances, error, message):
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        with pytest.raises(error, match=message):
            persistent_homology_of_distances(distances)
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def test_persistent_homology_of_distances__refuses_or_subsamples_beyond_the_budget():
    distances = pdist(manifolds.circle(100).points)
    with pytest.raises(MemoryBudgetError, match=r"for 100 points in dimension 1\. Got 100000\. Lower max_points"):
        persistent_homology_of_distances(distances, config=barcode_only(memory_budget=10**5))
    few = barcode_only(memory_budget=10**5, beyond_budget="subsample")
    assert persistent_homology_of_distances(distances, config=few).n_points < 30
    with pytest.raises(MemoryBudgetError, match="Leave out the largest distances"):
        persistent_homology_of_distances(cut_sparse(squareform(distances), 1.0), config=few)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_dimension": 4}, "max_dimension must be"),
        ({"n_surrogates": 5}, "at least 19"),
        ({"coefficient": 6}, "prime"),
    ],
)
def test_persistent_homology_of_distances__config_refuses_what_makes_no_sense(options, message):
    with pytest.raises(ConfigurationError, match=message):
        PersistentHomologyOfDistancesConfig(**options)
