import jaxtyping
import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy.optimize import linprog
from scipy.sparse import csr_array

from mechint_core.errors import ConfigurationError, DegenerateInputError, ShapeError
from mechint_core.geometry import GraphRicciCurvatureConfig, _ricci as module, graph_ricci_curvature
from mechint_core.geometry._ricci import forman, ollivier
from mechint_core.parallel import Backend, compute
from mechint_core.random import generator
from mechint_core.synthetic import manifolds


def graph_and_pairs(graph):
    edges = csr_array(nx.to_scipy_sparse_array(graph, format="csr", dtype=float))
    edges.sort_indices()
    return edges, np.array(graph.edges(), dtype=np.int64)


def grid():
    return nx.convert_node_labels_to_integers(nx.grid_2d_graph(6, 6, periodic=True))


# Known answer
@pytest.mark.parametrize(
    ("graph", "kappa", "lazy", "faces", "plain"),
    [
        (nx.cycle_graph(3), 0.5, 0.75, 3, 0),
        (nx.cycle_graph(5), 0, 0.25, 0, 0),
        (nx.cycle_graph(9), 0, 0, 0, 0),
        (nx.complete_graph(6), 4 / 5, 3 / 5, 6, -6),
        (grid(), 0, 0, -4, -4),
        (nx.star_graph(5), 0, 1 / 5, -2, -2),
        (nx.hypercube_graph(4), 0, 1 / 4, -4, -4),
    ],
    ids=["triangle", "pentagon", "9-cycle", "complete", "grid", "star", "hypercube"],
)
def test_ricci__of_regular_graphs(graph, kappa, lazy, faces, plain):
    """Half-lazy: 1 / d on a hypercube of d dimensions, n / (2 n - 2) on a complete graph [@jost2014]."""
    edges, pairs = graph_and_pairs(nx.convert_node_labels_to_integers(graph))

    np.testing.assert_allclose(ollivier(edges, pairs), kappa, atol=1e-12)
    np.testing.assert_allclose(ollivier(edges, pairs, idleness=0.5), lazy, atol=1e-9)
    np.testing.assert_array_equal(forman(edges, pairs), faces)
    np.testing.assert_array_equal(forman(edges, pairs, triangles=False), plain)


def test_ollivier__of_a_tree_is_2_over_each_degree_less_2():
    """Exact on trees for edges between inner nodes; a leaf has curvature 0."""
    tree = nx.random_labeled_tree(60, seed=3)
    edges, pairs = graph_and_pairs(tree)
    degree = np.array([tree.degree[i] for i in range(60)])
    expected = 2 / degree[pairs[:, 0]] + 2 / degree[pairs[:, 1]] - 2

    inner = degree[pairs].min(axis=1) > 1
    np.testing.assert_allclose(ollivier(edges, pairs[inner]), expected[inner], atol=1e-12)
    np.testing.assert_allclose(ollivier(edges, pairs[~inner]), 0, atol=1e-12)
    assert inner.any()
    assert not inner.all()


def test_ricci__a_bridge_between_cliques_is_negative_and_their_edges_positive():
    """Two complete graphs of 5 nodes and one edge between them: 2 / 5 + 2 / 5 - 2, as in a tree."""
    edges, pairs = graph_and_pairs(nx.barbell_graph(5, 0))
    bridge = (pairs[:, 0] < 5) & (pairs[:, 1] >= 5)

    np.testing.assert_allclose(ollivier(edges, pairs[bridge]), -1.2, atol=1e-12)
    np.testing.assert_array_equal(forman(edges, pairs[bridge]), 4 - 5 - 5)
    assert np.all(ollivier(edges, pairs[~bridge]) > 0)


def test_graph_ricci_curvature__is_tested_against_a_gaussian_cloud():
    rng = generator(1, "clusters")
    tight = np.concatenate([0.02 * rng.standard_normal((15, 3)) + rng.standard_normal(3) for _ in range(12)])
    config = GraphRicciCurvatureConfig(n_edges=25)
    clustered = graph_ricci_curvature(tight, config=config)
    gaussian = graph_ricci_curvature(rng.standard_normal((180, 3)), config=config)

    assert clustered.ollivier.p_value == pytest.approx(0.1)
    assert clustered.ollivier.value > clustered.ollivier.null + 0.1
    assert gaussian.ollivier.p_value > 0.1
    assert "not distinguishable from" in gaussian.reading()
    assert clustered.ollivier.low < clustered.ollivier.value < clustered.ollivier.high
    assert clustered.n_edges == len(clustered.sender) == 25
    assert clustered.share_negative < gaussian.share_negative


# Oracle
@settings(max_examples=10)
@given(st.integers(0, 2**16), st.sampled_from([0.0, 0.3]))
def test_ollivier__agrees_with_the_linear_programme_over_all_nodes(seed, idleness):
    """Distances by breadth-first search, whole measures, no mass left in place beforehand."""
    graph = nx.gnm_random_graph(14, 35, seed=seed)
    graph = nx.convert_node_labels_to_integers(graph.subgraph(max(nx.connected_components(graph), key=len)))
    edges, pairs = graph_and_pairs(graph)
    steps = np.asarray(nx.floyd_warshall_numpy(graph))
    n = len(steps)
    each = np.zeros((n, n))
    for node in graph:
        each[node, list(graph[node])] = (1 - idleness) / graph.degree[node]
        each[node, node] += idleness
    sums = np.concatenate([np.kron(np.eye(n), np.ones(n)), np.kron(np.ones(n), np.eye(n))])
    for pair, kappa in zip(pairs[:6], ollivier(edges, pairs[:6], idleness=idleness), strict=True):
        ends = np.concatenate(each[pair])
        cost = linprog(steps.ravel(), A_eq=sums[:-1], b_eq=ends[:-1]).fun
        assert kappa == pytest.approx(1 - cost, abs=1e-9)


# Law
@settings(max_examples=5)
@given(st.integers(0, 2**16))
def test_ollivier__assignment_equals_linear_programme_and_is_symmetric_and_bounded(seed):
    edges, pairs = graph_and_pairs(nx.gnm_random_graph(12, 30, seed=seed))
    pairs = pairs[:8]
    kappa = ollivier(edges, pairs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MOST_PARTS", 0)
        np.testing.assert_allclose(ollivier(edges, pairs), kappa, atol=1e-9)

    np.testing.assert_allclose(ollivier(edges, pairs[:, ::-1].copy()), kappa, atol=1e-9)
    assert np.all((kappa >= -2 - 1e-9) & (kappa <= 1 + 1e-9))


def test_graph_ricci_curvature__ignores_scale_and_shift_and_workers():
    cloud, config = manifolds.sphere(100).points, GraphRicciCurvatureConfig(n_edges=10)
    found = []
    for threads, scale in ((1, 1.0), (2, 1.0), (2, 1e6)):
        with compute(Backend(threads=threads)):
            found.append(graph_ricci_curvature(scale * (cloud + scale - 1), config=config))

    assert found[0].scalars() == found[1].scalars()
    np.testing.assert_allclose(found[2].ollivier_at, found[0].ollivier_at, atol=1e-9)


# Calibration
@pytest.mark.calibration
def test_graph_ricci_curvature__false_positives_are_at_their_nominal_rate():
    """Gaussian clouds: of 100 two-sided p-values at 10 % at most 20, and at 50 % 65, in 99.9 % of cases."""
    p = []
    for seed in range(100):
        cloud = generator(seed, "gaussian").standard_normal((60, 6)) * np.exp(-np.arange(6) / 3)
        config = GraphRicciCurvatureConfig(n_neighbours=5, n_edges=20, n_surrogates=19, n_bootstrap=0, seed=seed)
        found = graph_ricci_curvature(cloud, config=config)
        p.append((found.ollivier.p_value, found.forman.p_value))

    assert np.all(np.sum(np.array(p) < 0.101, axis=0) <= 20)
    assert np.all(np.sum(np.array(p) < 0.501, axis=0) <= 65)


@pytest.mark.calibration
def test_graph_ricci_curvature__interval_covers_the_mean_over_all_edges():
    """Of 200 draws of 40 edges at least 179 cover, in 99.9 % of cases; edges that are most of the graph cover more."""
    cloud = manifolds.sphere(60).points
    options = {"n_neighbours": 6, "n_surrogates": 0}
    whole = graph_ricci_curvature(cloud, config=GraphRicciCurvatureConfig(n_edges=1000, n_bootstrap=0, **options))
    found = [
        graph_ricci_curvature(cloud, config=GraphRicciCurvatureConfig(n_edges=40, seed=seed, **options))
        for seed in range(200)
    ]

    assert sum(each.ollivier.low <= whole.ollivier.value <= each.ollivier.high for each in found) >= 179
    assert sum(each.forman.low <= whole.forman.value <= each.forman.high for each in found) >= 179


# Bad input
@pytest.fixture
def unchecked():
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("shape", [(5,), (2, 3, 4), (3, 0)])
def test_graph_ricci_curvature__raises_on_anything_but_a_matrix(shape):
    with pytest.raises(ShapeError, match=r"points must be \(sample, unit\)"):
        graph_ricci_curvature(np.zeros(shape))


def test_graph_ricci_curvature__raises_on_what_is_not_finite_or_has_too_few_samples():
    points = manifolds.circle(30).points
    with pytest.raises(DegenerateInputError, match="at least 20 distinct samples"):
        graph_ricci_curvature(points[:10])
    points[0] = np.nan
    with pytest.raises(DegenerateInputError, match="Got 1 samples with NaN"):
        graph_ricci_curvature(points)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_neighbours": 1}, "n_neighbours and n_edges must be at least 2"),
        ({"n_edges": 1}, "n_neighbours and n_edges must be at least 2"),
        ({"idleness": 1.0}, "idleness must be from 0 to below 1"),
        ({"n_surrogates": 3}, "n_surrogates must be 0 or at least 19"),
        ({"n_bootstrap": -1}, "n_bootstrap must not be negative"),
    ],
)
def test_graph_ricci_curvature__config_refuses_what_makes_no_sense(options, message):
    with pytest.raises(ConfigurationError, match=message):
        GraphRicciCurvatureConfig(**options)
