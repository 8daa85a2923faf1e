import sys

import jaxtyping
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from jaxtyping import TypeCheckError
from scipy import stats
from scipy.sparse.csgraph import floyd_warshall
from scipy.spatial.distance import cdist

from mechint_core.errors import ConfigurationError, DegenerateInputError, ShapeError
from mechint_core.geometry import GeodesicDistancesConfig, geodesic_distances
from mechint_core.geometry._graph_geodesics import bridged, components, landmark_embedding, shortest_paths, zigzag
from mechint_core.kernels.neighbour_graph import neighbour_graph
from mechint_core.parallel import Backend, compute
from mechint_core.random import generator
from mechint_core.synthetic import manifolds


def paths_only(**options):
    return GeodesicDistancesConfig(n_surrogates=0, n_bootstrap=0, **options)


def true_distances(name, cloud, landmark, sample):
    if name == "sphere":
        return np.arccos(np.clip(cloud.points[landmark] @ cloud.points[sample].T, -1, 1))
    return cdist(cloud.position[landmark], cloud.position[sample])


# Known answer
@pytest.mark.parametrize("name", ["swiss_roll", "sphere"])
def test_geodesic_distances__are_within_2_percent_on_4000_samples(name):
    """95 % of the distances above a tenth of the largest; the standing bar is 5 %."""
    cloud = getattr(manifolds, name)(4000)
    result = geodesic_distances(cloud.points, config=paths_only())
    truth = true_distances(name, cloud, result.landmark, result.sample)
    error = np.abs(result.distance / np.where(truth > 0, truth, 1) - 1)[truth > 0.1 * truth.max()]

    assert np.quantile(error, 0.95) < 0.02
    assert result.shortcut_ratio == pytest.approx(1, abs=0.02)
    assert (result.n_neighbours, result.dimension) == (25, 2)


def test_geodesic_distances__avoids_shortcuts_of_a_sparse_roll():
    """With 21 neighbours paths jump to the next turn; half as many show that. Bar 6 % at n = 1000."""
    cloud = manifolds.swiss_roll(1000)
    result = geodesic_distances(cloud.points, config=paths_only())
    truth = cdist(cloud.position[result.landmark], cloud.position[result.sample])
    error = np.abs(result.distance / np.where(truth > 0, truth, 1) - 1)[truth > 0.1 * truth.max()]
    forced = geodesic_distances(cloud.points, config=paths_only(n_neighbours=21))

    assert result.n_neighbours == 10
    assert np.quantile(error, 0.95) < 0.06
    assert forced.shortcut_ratio > 1.1
    assert "take shortcuts" in forced.reading()


def test_geodesic_distances__of_a_polygon():
    """Neighbours are joined by chords: the way round is 400 of them, cut where edges skip corners."""
    result = geodesic_distances(manifolds.polygon(400).points, config=paths_only())

    assert result.distance.max() == pytest.approx(np.pi, rel=2e-3)
    assert result.stretch.value == pytest.approx(np.pi**2 / 8, rel=3e-3)


def test_geodesic_distances__a_flat_sheet_embeds_in_two_coordinates_and_is_not_stretched():
    cloud = manifolds.uniform_cube(800, dimension=2, ambient=10)
    result = geodesic_distances(cloud.points, config=paths_only(n_coordinates=2))

    assert result.stretch.value == pytest.approx(1, abs=0.01)
    assert result.residual_variance.value < 0.002
    assert result.residual_by_coordinates[0] > 0.3
    np.testing.assert_allclose(cdist(result.embedding, result.embedding), cdist(cloud.points, cloud.points), atol=0.06)


def test_geodesic_distances__a_roll_is_more_stretched_than_a_gaussian_cloud_and_unrolls():
    config = GeodesicDistancesConfig(n_coordinates=2, n_surrogates=19, n_landmarks=40)
    roll = geodesic_distances(manifolds.swiss_roll(1000).points, config=config)
    flat = geodesic_distances(generator(1, "gauss").standard_normal((300, 3)), config=config)

    assert roll.stretch.value > 1.5
    assert roll.stretch.low < roll.stretch.value < roll.stretch.high
    assert roll.stretch.p_value == roll.residual_variance.p_value == pytest.approx(0.05)
    assert roll.residual_variance.value < 0.01 < roll.residual_variance.null
    assert flat.stretch.p_value > 0.05
    assert "more than in a Gaussian cloud" in roll.reading()
    assert "no more than in a Gaussian cloud" in flat.reading()


def test_geodesic_distances__parts_are_reported_and_joined_on_request():
    """Two circles 10 apart. The bridge is the one shortest edge; everything stays finite."""
    cloud = np.concatenate([manifolds.circle(120).points, manifolds.circle(80, seed=1).points + np.array([10, 0])])
    apart = geodesic_distances(cloud, config=paths_only(n_neighbours=10))
    joined = geodesic_distances(cloud, config=paths_only(n_neighbours=10, disconnected="bridge"))

    assert (apart.n_components, apart.n_outside, len(apart.sample)) == (2, 80, 120)
    assert (joined.n_components, joined.n_outside, len(joined.sample)) == (2, 0, 200)
    assert np.isfinite(apart.distance).all()
    assert np.isfinite(joined.distance).all()
    assert joined.distance.max() > 10
    assert "fell into 2 parts (80 samples outside" in apart.reading()
    assert "(joined)" in joined.reading()


def test_bridged__adds_the_shortest_edges_of_a_spanning_tree():
    points = np.array([0.0, 1, 10, 11, 13, 30, 31])[:, None]
    edges = neighbour_graph(points, 1).adjacency()
    whole = bridged(edges, points, components(edges)[1])

    assert components(edges)[0] == 3
    assert components(whole)[0] == 1
    assert [whole[1, 2], whole[4, 5], whole[5, 4]] == [9, 17, 17]
    assert whole.nnz == edges.nnz + 4


def test_geodesic_distances__copies_are_left_out():
    once = manifolds.swiss_roll(300).points
    result = geodesic_distances(np.concatenate([once, once[:40]]), config=paths_only())

    assert result.n_duplicates == 40
    assert len(result.sample) + result.n_outside == 300


def test_geodesic_distances__of_a_few_samples_are_found(rng):
    found = geodesic_distances(rng.normal(size=(25, 6)), config=paths_only())

    assert np.isfinite(found.distance).all()
    assert 0.9 < found.stretch.value < 1.5


# Oracle
def test_shortest_paths__agree_with_floyd_and_warshall():
    edges = neighbour_graph(generator(0, "cloud").standard_normal((60, 3)), 4).adjacency()

    np.testing.assert_allclose(shortest_paths(edges, np.arange(60)), floyd_warshall(edges), rtol=1e-12)


def test_landmark_embedding__recovers_a_flat_configuration():
    """Classical scaling is exact for Euclidean distances, and so is the triangulation of the other rows."""
    flat = generator(0, "flat").standard_normal((50, 3))
    landmark = np.arange(0, 50, 4)
    found = landmark_embedding(cdist(flat[landmark], flat), landmark, 5)

    np.testing.assert_allclose(cdist(found, found), cdist(flat, flat), atol=1e-9)
    np.testing.assert_allclose(found[:, 3:], 0, atol=1e-6)


@pytest.mark.oracle
def test_geodesic_distances__embedding_agrees_with_scikit_learn():
    """Theirs uses all samples as landmarks and paths with their zigzag: the same up to scale, r^2 > 0.995."""
    from sklearn.manifold import Isomap

    cloud = manifolds.uniform_cube(400, dimension=2, ambient=3).points
    ours = geodesic_distances(cloud, config=paths_only(n_coordinates=2, n_neighbours=15)).embedding
    theirs = Isomap(n_neighbors=15, n_components=2).fit_transform(cloud)
    r = np.corrcoef(cdist(ours, ours).ravel(), cdist(theirs, theirs).ravel())[0, 1]

    assert r**2 > 0.995


# Law
@settings(max_examples=8)
@given(st.integers(0, 2**32), st.floats(1e-6, 1e6))
def test_geodesic_distances__follow_scale_and_ignore_rotation_and_shift(seed, scale):
    rng = generator(seed, "cloud")
    cloud = rng.standard_normal((60, 3))
    turned = scale * (cloud @ np.linalg.qr(rng.standard_normal((3, 3)))[0] + rng.standard_normal(3))
    here, there = (geodesic_distances(x, config=paths_only(n_neighbours=8)) for x in (cloud, turned))

    np.testing.assert_allclose(there.distance, scale * here.distance, rtol=1e-8)
    assert there.stretch.value == pytest.approx(here.stretch.value, rel=1e-8)
    assert there.residual_variance.value == pytest.approx(here.residual_variance.value, abs=1e-8)


@settings(max_examples=8)
@given(st.integers(0, 2**32))
def test_shortest_paths__are_a_metric_above_the_straight_line(seed):
    points = generator(seed, "cloud").standard_normal((40, 2))
    path = shortest_paths(neighbour_graph(points, 12).adjacency(), np.arange(40))

    assert np.all(path >= cdist(points, points) - 1e-12)
    np.testing.assert_allclose(path, path.T, rtol=1e-12)
    assert np.all(path[:, :, None] <= path[:, None, :] + path[None, :, :].transpose(0, 2, 1) + 1e-12)


def test_geodesic_distances__same_seed_gives_the_same_numbers_for_any_workers():
    cloud, config = manifolds.sphere(120).points, GeodesicDistancesConfig(n_surrogates=19, n_landmarks=40)
    found = []
    for threads in (1, 2):
        with compute(Backend(threads=threads)):
            found.append(geodesic_distances(cloud, config=config))

    assert found[0].scalars() == found[1].scalars()
    np.testing.assert_array_equal(found[0].distance, found[1].distance)


# Calibration
@pytest.mark.calibration
def test_geodesic_distances__p_values_are_uniform_on_gaussian_clouds():
    """The KS distance of 100 uniform draws passes 0.195 once in 1000."""
    found = []
    for seed in range(100):
        cloud = generator(seed, "gaussian").standard_normal((60, 4)) * np.exp(-np.arange(4) / 2)
        config = GeodesicDistancesConfig(n_landmarks=20, n_surrogates=19, n_bootstrap=0, n_coordinates=2, seed=seed)
        found.append(geodesic_distances(cloud, config=config))
    spread = generator(0, "spread").uniform(0, 1 / 20, 100)  # ranks of 20, spread evenly

    assert stats.kstest([each.stretch.p_value for each in found] - spread, "uniform").statistic < 0.195
    assert stats.kstest([each.residual_variance.p_value for each in found] - spread, "uniform").statistic < 0.195


@pytest.mark.calibration
@pytest.mark.parametrize("name", ["sphere", "swiss_roll"])
def test_geodesic_distances__interval_covers_the_stretch_from_all_samples(name, monkeypatch):
    """40 landmarks, one zigzag: of 150 intervals at least 133 cover, in 99.9 % of cases."""
    cloud, module = getattr(manifolds, name)(300).points, sys.modules["mechint_core.geometry.geodesic_distances"]
    monkeypatch.setattr(module, "zigzag", lambda n, k, d, _: zigzag(n, k, d, 0))
    whole = geodesic_distances(cloud, config=paths_only(n_neighbours=8, n_landmarks=300)).stretch.value
    config = {"n_neighbours": 8, "n_landmarks": 40, "n_surrogates": 0}
    found = [
        geodesic_distances(cloud, config=GeodesicDistancesConfig(seed=seed, **config)).stretch for seed in range(150)
    ]

    assert sum(each.low <= whole <= each.high for each in found) >= 133


@pytest.mark.parametrize("n_points", [200, 300])
def test_zigzag__of_few_samples_is_known_within_1_percent(n_points):
    """One sample of 200 has an error of 2 %; 20 of them have 0.4 %, and of 10 seeds none is 3 errors off."""
    drawn = np.array(
        [zigzag(n_points, 8, 2, seed).ratio[len(zigzag(n_points, 8, 2, seed).ratio) // 2] for seed in range(10)]
    )

    assert np.all(np.abs(drawn / drawn.mean() - 1) < 0.012)


# Bad input
@pytest.fixture
def unchecked():
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("shape", [(5,), (2, 3, 4), (3, 0)])
def test_geodesic_distances__raises_on_anything_but_a_matrix(shape):
    with pytest.raises(ShapeError, match=r"points must be \(sample, unit\)"):
        geodesic_distances(np.zeros(shape))


def test_geodesic_distances__raises_on_what_is_not_finite_or_has_too_few_samples():
    points = manifolds.circle(30).points
    with pytest.raises(DegenerateInputError, match="at least 20 distinct samples"):
        geodesic_distances(points[:10])
    points[0] = np.nan
    with pytest.raises(DegenerateInputError, match="Got 1 samples with NaN"):
        geodesic_distances(points)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_neighbours": 1}, "n_neighbours must be 0 or at least 2"),
        ({"n_landmarks": 3}, "n_landmarks must be more than n_coordinates"),
        ({"n_coordinates": 0}, "n_landmarks must be more than n_coordinates"),
        ({"disconnected": "drop"}, "disconnected"),
        ({"n_surrogates": 3}, "n_surrogates must be 0 or at least 19"),
        ({"n_bootstrap": -1}, "n_bootstrap must not be negative"),
    ],
)
def test_geodesic_distances__config_refuses_what_makes_no_sense(options, message):
    with pytest.raises((ConfigurationError, TypeCheckError), match=message):  # a wrong word fails its type here
        GeodesicDistancesConfig(**options)
