import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from jaxtyping import TypeCheckError
from scipy.sparse import coo_array
from scipy.sparse.csgraph import shortest_path

from mechint_core.errors import ConfigurationError, DegenerateInputError, DtypeError, MemoryBudgetError, ShapeError
from mechint_core.fractals import GraphFractalDimensionConfig, graph_fractal_dimension
from mechint_core.fractals._box_covering import count_boxes, grown_balls, rewired, single_balls
from mechint_core.fractals.graph_fractal_dimension import _Graph
from mechint_core.parallel import Backend, compute
from mechint_core.random import generator
from mechint_core.synthetic.fractal_sets import flower_graph, lattice_graph, sierpinski_graph, small_world

QUICK = GraphFractalDimensionConfig(n_surrogates=0)


def torus(side: int) -> np.ndarray:
    node = np.arange(side * side).reshape(side, side)
    return np.concatenate([np.stack([node.ravel(), np.roll(node, -1, axis).ravel()], axis=1) for axis in (0, 1)])


def adjacency(edges: np.ndarray, n_nodes: int) -> _Graph:
    both = np.concatenate([edges, edges[:, ::-1]])
    matrix = coo_array((np.ones(len(both)), both.T), shape=(n_nodes, n_nodes)).tocsr()
    return _Graph(matrix.indptr.astype(np.int64), matrix.indices.astype(np.int64))


def random_edges(n_nodes: int, n_edges: int, seed: int) -> np.ndarray:
    rng = generator(seed, "graph")
    tree = np.stack([rng.integers(0, np.arange(1, n_nodes)), np.arange(1, n_nodes)], axis=1)
    drawn = rng.integers(0, n_nodes, (n_edges, 2))
    edges = np.sort(np.concatenate([tree, drawn]), axis=1)
    return np.unique(edges[edges[:, 0] < edges[:, 1]], axis=0)


# Known answer
def test_graph_fractal_dimension__of_a_path_is_1():
    """The best cover of 3000 nodes in a row takes ceil(3000 / (2 r + 1)) boxes, up to one at the far end."""
    result = graph_fractal_dimension(lattice_graph(3000).edges, config=QUICK)

    best = -(-3000 // result.box_size)
    assert (result.n_boxes >= best).all()
    assert (result.n_boxes <= best + 1).all()
    assert result.dimension.value == pytest.approx(1, abs=0.02)
    assert result.diameter == 2999
    assert not result.exponential_preferred


def test_graph_fractal_dimension__of_a_periodic_grid_is_2():
    """Within 0.1: the greedy rule leaves gaps, a third more boxes than diamonds that tile, ever more as they grow."""
    result = graph_fractal_dimension(torus(100), config=QUICK)

    assert result.dimension.value == pytest.approx(2, abs=0.1)
    assert (result.n_boxes >= 10_000 / (2 * (result.box_size // 2) * (result.box_size // 2 + 1) + 1)).all()
    assert not result.exponential_preferred


def test_graph_fractal_dimension__of_sierpinski_triangles():
    result = graph_fractal_dimension(sierpinski_graph(7).edges, config=QUICK)

    assert result.dimension.value == pytest.approx(np.log(3) / np.log(2), abs=0.06)


def test_graph_fractal_dimension__flowers_take_u_plus_v_times_as_many_boxes_of_a_radius_u_times_smaller():
    """(2, 2)-flower: 4 to 1 at every doubling, but for the few nodes that the first ring adds."""
    config = GraphFractalDimensionConfig(radii=(1, 2, 4, 8), n_surrogates=0)

    result = graph_fractal_dimension(flower_graph(2, 2, 7).edges, config=config)

    assert result.n_boxes[:-1] / result.n_boxes[1:] == pytest.approx(4, rel=0.03)


def test_graph_fractal_dimension__of_the_3_3_flower_at_its_own_sizes():
    """Boxes of 3^k nodes across: ln 6 / ln 3 = 1.631 within 0.07, which the constant of the first ring costs."""
    config = GraphFractalDimensionConfig(radii=(1, 4, 13, 40), n_surrogates=0)

    result = graph_fractal_dimension(flower_graph(3, 3, 5).edges, config=config)

    assert result.dimension.value == pytest.approx(np.log(6) / np.log(3), abs=0.07)


def test_graph_fractal_dimension__knows_a_small_world():
    result = graph_fractal_dimension(small_world(4000, seed=1).edges, config=QUICK)

    assert result.exponential_preferred
    assert result.log_error_ratio.value > 1
    assert "a small world, without a dimension" in result.reading()


def test_graph_fractal_dimension__is_told_from_graphs_with_its_degrees():
    result = graph_fractal_dimension(flower_graph(2, 2, 5).edges)

    assert result.log_error_ratio.value < 0 < result.log_error_ratio.null
    assert result.log_error_ratio.p_value == pytest.approx(0.05)
    assert "a power law better than" in result.reading()


def test_graph_fractal_dimension__measures_the_largest_part():
    path = lattice_graph(200).edges
    edges = np.concatenate([path, path[:50] + 1000, path[:5], [[7, 7]]])

    result = graph_fractal_dimension(edges, config=QUICK)

    assert (result.n_nodes, result.n_edges, result.n_left_out, result.n_dropped_edges) == (200, 199, 51, 6)
    assert "51 nodes are not connected" in result.reading()


# Oracle
@settings(max_examples=25)
@given(n_nodes=st.integers(3, 90), n_edges=st.integers(0, 60), seed=st.integers(0, 1000), radius=st.integers(0, 4))
def test_count_boxes__is_the_greedy_rule(n_nodes, n_edges, seed, radius):
    """Over all distances, with every mass counted anew for every box."""
    edges = random_edges(n_nodes, n_edges, seed)
    graph = adjacency(edges, n_nodes)
    matrix = coo_array((np.ones(len(edges)), edges.T), shape=(n_nodes, n_nodes)).tocsr()
    near = shortest_path(matrix, directed=False, unweighted=True) <= radius
    order = generator(seed, "order").permutation(n_nodes)

    balls = single_balls(n_nodes)
    for _ in range(radius):
        balls = grown_balls(balls, graph.indptr, graph.indices)
    free, n_boxes = np.ones(n_nodes, dtype=bool), 0
    while free.any():
        best = order[np.argmax((near & free)[order].sum(axis=1))]
        free &= ~near[best]
        n_boxes += 1

    assert count_boxes(balls, order) == n_boxes


# Law
@settings(max_examples=25)
@given(n_nodes=st.integers(4, 60), n_edges=st.integers(3, 60), seed=st.integers(0, 1000))
def test_rewired__keeps_degrees_and_stays_simple(n_nodes, n_edges, seed):
    edges = random_edges(n_nodes, n_edges, seed)
    graph = adjacency(edges, n_nodes)
    rng = generator(seed, "swaps")
    first, second = rng.integers(0, len(edges), (2, 10 * len(edges)))

    other = _Graph(
        graph.indptr, rewired(graph.links(), graph.indptr, graph.indices, first, second, rng.random(first.size) < 0.5)
    )

    links = np.sort(other.links(), axis=1)
    assert len(links) == len(edges)  # every link is listed at both of its ends
    assert len(np.unique(links, axis=0)) == len(edges)
    assert np.bincount(links.ravel(), minlength=n_nodes).tolist() == np.diff(graph.indptr).tolist()


@settings(max_examples=10)
@given(seed=st.integers(0, 1000))
def test_graph_fractal_dimension__ignores_direction_repetition_and_the_order_of_links(seed):
    edges = sierpinski_graph(5).edges
    rng = generator(seed, "order")
    other = np.concatenate([edges[:, ::-1], edges[: int(rng.integers(1, 50))]])

    found = graph_fractal_dimension(other[rng.permutation(len(other))], config=QUICK)

    assert found.n_boxes.tolist() == graph_fractal_dimension(edges, config=QUICK).n_boxes.tolist()


def test_graph_fractal_dimension__larger_boxes_are_fewer():
    result = graph_fractal_dimension(random_edges(3000, 300, 2), config=QUICK)

    assert (np.diff(result.n_boxes) < 0).all()


def test_graph_fractal_dimension__workers_and_seeds():
    edges = flower_graph(2, 3, 4).edges
    config = GraphFractalDimensionConfig(n_surrogates=4)

    with compute(Backend(threads=1)):
        one = graph_fractal_dimension(edges, config=config).scalars()
    with compute(Backend(threads=3)):
        three = graph_fractal_dimension(edges, config=config).scalars()

    assert one == three


# Bad input
def test_graph_fractal_dimension__raises_on_edges_that_are_no_node_numbers():
    with pytest.raises((DtypeError, TypeCheckError), match=r"node numbers|edges"):
        graph_fractal_dimension(np.ones((5, 2)))
    with pytest.raises(ShapeError, match=r"from 0 on"):
        graph_fractal_dimension(np.array([[0, -1]]))


def test_graph_fractal_dimension__raises_on_too_small_a_graph():
    with pytest.raises(DegenerateInputError, match=r"Got 2 sizes, for 60 nodes and a diameter of 59"):
        graph_fractal_dimension(lattice_graph(60).edges)
    with pytest.raises(DegenerateInputError, match=r"Got 1 loops"):
        graph_fractal_dimension(np.array([[3, 3]]))


def test_graph_fractal_dimension__raises_on_too_large_a_graph():
    with pytest.raises(MemoryBudgetError, match=r"at most 50000 nodes. Got 60000"):
        graph_fractal_dimension(lattice_graph(60_000).edges)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"radii": (1, 2)}, "radii must be at least 3"),
        ({"radii": (1, 4, 2)}, "radii must increase"),
        ({"fewest_boxes": 0}, "fewest_boxes must be at least 1"),
        ({"n_surrogates": -1}, "n_surrogates must not be negative"),
    ],
)
def test_graph_fractal_dimension__raises_on_an_impossible_option(options, message):
    with pytest.raises(ConfigurationError, match=message):
        GraphFractalDimensionConfig(**options)
