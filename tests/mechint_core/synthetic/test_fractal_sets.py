import numpy as np
import pytest
from scipy.sparse import coo_array
from scipy.sparse.csgraph import shortest_path

from mechint_core.errors import ConfigurationError
from mechint_core.synthetic.fractal_sets import (
    cantor_set,
    flower_graph,
    lattice_graph,
    sierpinski_graph,
    sierpinski_lattice,
    sierpinski_triangle,
    small_world,
)


def boxes(points: np.ndarray, side: float) -> int:
    return len(np.unique(np.floor(points / side).astype(int), axis=0))


def distances(graph) -> np.ndarray:
    return shortest_path(
        coo_array((np.ones(len(graph.edges)), graph.edges.T), shape=(graph.n_nodes, graph.n_nodes)),
        directed=False,
        unweighted=True,
    )


# Known answer
def test_cantor_set__fills_2_to_the_k_boxes():
    cantor = cantor_set(8)

    assert cantor.dimension == pytest.approx(0.6309298, abs=1e-7)
    assert [boxes(cantor.points, 3.0**-k) for k in range(1, 9)] == [2**k for k in range(1, 9)]


def test_sierpinski_lattice__fills_3_to_the_k_boxes():
    lattice = sierpinski_lattice(7)

    assert [boxes(lattice.points, 2.0**-k) for k in range(1, 8)] == [3**k for k in range(1, 8)]


def test_sierpinski_triangle__leaves_the_middle_empty():
    points = sierpinski_triangle(5000, seed=1).points

    assert len(np.unique(points, axis=0)) == 5000
    middle = (points[:, 1] < np.sqrt(0.75) / 2) & (np.abs(points[:, 0] - 0.5) < points[:, 1] / np.sqrt(3) - 1e-9)
    assert not middle.any()


@pytest.mark.parametrize(("u", "v", "n"), [(2, 2, 4), (2, 3, 3), (1, 2, 4)])
def test_flower_graph__has_the_nodes_and_links_of_the_literature(u, v, n):
    flower = flower_graph(u, v, n)
    w = u + v

    assert len(flower.edges) == w**n
    assert flower.n_nodes == ((w - 2) * w**n + w) // (w - 1)
    assert len(np.unique(np.sort(flower.edges, axis=1), axis=0)) == w**n
    assert np.isfinite(distances(flower)).all()
    assert np.isnan(flower.dimension) == (u == 1)


def test_flower_graph__distances_grow_by_u():
    """Two hubs of the (2, 3)-flower's ring, 1 apart, are 2^(n - 1) apart in generation n."""
    assert [int(distances(flower_graph(2, 3, n))[0, 1]) for n in (1, 2, 3)] == [1, 2, 4]


def test_sierpinski_graph__has_its_corners_and_sides():
    graph = sierpinski_graph(4)

    assert graph.n_nodes == (3**5 + 3) // 2
    assert len(graph.edges) == 3**5
    assert distances(graph).max() == 2**4
    degree = np.bincount(graph.edges.ravel())
    assert sorted(degree)[:4] == [2, 2, 2, 4]


def test_lattice_graph__distances_are_sums_of_steps():
    grid = lattice_graph(4, 5)

    assert (grid.n_nodes, len(grid.edges), grid.dimension) == (20, 3 * 5 + 4 * 4, 2)
    assert distances(grid)[0, 19] == 3 + 4
    assert len(lattice_graph(7).edges) == 6


def test_small_world__is_short():
    graph = small_world(2000, seed=2)

    assert distances(graph).max() < 60  # the ring alone: 500
    assert len(graph.edges) == len(np.unique(graph.edges, axis=0))


# Bad input
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: cantor_set(0), "n_levels must be between 1 and 20"),
        (lambda: sierpinski_triangle(0), "n_samples must be at least 1"),
        (lambda: flower_graph(3, 2, 2), "1 <= u <= v"),
        (lambda: flower_graph(2, 2, 13), "at most 2"),
        (lambda: lattice_graph(1), "at least 2 nodes"),
        (lambda: small_world(10, reach=5), "reach must lie in"),
    ],
)
def test_fractal_sets__raise_on_impossible_numbers(make, message):
    with pytest.raises(ConfigurationError, match=message):
        make()
