import jaxtyping
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist

from mechint_core.errors import DegenerateInputError, DtypeError, ShapeError
from mechint_core.kernels import neighbour_graph as module
from mechint_core.kernels.neighbour_graph import distinct_rows, neighbour_graph
from mechint_core.parallel import Backend, compute
from mechint_core.random import generator


def cloud(n, d, *, seed=0, dtype=np.float64):
    return generator(seed, "cloud").standard_normal((n, d)).astype(dtype)


# Known answer
def test_neighbour_graph__grid_has_its_four_neighbours():
    grid = np.stack(np.meshgrid(np.arange(5.0), np.arange(5.0), indexing="ij"), axis=-1).reshape(-1, 2)
    graph = neighbour_graph(grid, 4)

    assert graph.index[12].tolist() == [7, 11, 13, 17]  # of equal distances, the earlier row first
    assert graph.distance[12].tolist() == [1, 1, 1, 1]
    assert graph.distance[0].tolist() == [1, 1, np.sqrt(2), 2]


def test_neighbour_graph__duplicates_are_one_row():
    points = np.array([[0.0], [1.0], [-0.0], [3.0], [1.0], [0.0]])
    graph = neighbour_graph(points, 1)

    assert graph.first.tolist() == [0, 1, 3]
    assert graph.row.tolist() == [0, 1, 0, 2, 1, 0]
    assert graph.n_duplicates == 3
    assert graph.distance.ravel().tolist() == [1, 1, 2]


def test_neighbour_graph__near_duplicates_far_from_the_origin_do_not_cancel():
    """|x|^2 + |y|^2 - 2 x y in float32 cannot tell these pairs apart: their distance is 1e-4 of the rounding."""
    centres = np.repeat(1e3 + cloud(200, 16), 2, axis=0)
    graph = neighbour_graph(centres + 1e-7 * cloud(400, 16, seed=1), 3)

    assert np.array_equal(graph.index[:, 0], np.arange(400) ^ 1)
    assert np.all((graph.distance[:, 0] > 0) & (graph.distance[:, 0] < 2e-6))


def test_neighbour_graph__rows_of_equal_hash_are_told_apart_by_their_values(monkeypatch):
    points = cloud(50, 3)[[*range(50), 3, 7]]
    expected = distinct_rows(points)
    monkeypatch.setattr(module, "_hashes", lambda bits: np.zeros(len(bits), dtype=np.uint64))

    for ours, theirs in zip(distinct_rows(points), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_adjacency__joins_both_ways():
    graph = neighbour_graph(np.array([[0.0], [1.0], [3.0]]), 1)

    assert graph.adjacency().toarray().tolist() == [[0, 1, 0], [1, 0, 2], [0, 2, 0]]
    assert neighbour_graph(cloud(30, 2), 5).adjacency(2).nnz < neighbour_graph(cloud(30, 2), 5).adjacency().nnz


# Oracle
@pytest.mark.parametrize(("n", "d", "k"), [(3000, 3, 20), (700, 100, 7), (50, 5, 49)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_neighbour_graph__agrees_with_a_k_d_tree(n, d, k, dtype):
    """Tolerance: the order of the sums."""
    points = cloud(n, d, dtype=dtype)
    graph = neighbour_graph(points, k)
    distance, index = cKDTree(points.astype(np.float64)).query(points, k + 1)

    np.testing.assert_array_equal(graph.index, index[:, 1:])
    np.testing.assert_allclose(graph.distance, distance[:, 1:], rtol=1e-13)


def test_neighbour_graph__is_exact_where_one_unit_dwarfs_the_others():
    """One direction with 1e5 times the variance, as in the residual stream of language models, and one far outlier."""
    points = cloud(600, 32, dtype=np.float32)
    points[:, 5] *= 1e5
    points[17] *= 1e6
    graph = neighbour_graph(points, 5)

    expected = np.sort(cdist(points.astype(np.float64), points.astype(np.float64)), axis=1)[:, 1:6]
    np.testing.assert_allclose(graph.distance, expected, rtol=1e-12)


# Law
@settings(max_examples=25)
@given(st.integers(0, 2**32), st.integers(1, 70), st.sampled_from([1, 2]), st.sampled_from([1.0, 1e-3, 1e-7]))
def test_neighbour_graph__same_bits_for_any_blocks_and_workers(seed, block_rows, threads, spread):
    points = np.repeat(cloud(20, 4, seed=seed), 3, axis=0) + spread * cloud(60, 4, seed=seed + 1)
    whole = neighbour_graph(points, 6)
    with compute(Backend(threads=threads)):
        parts = neighbour_graph(points, 6, block_rows=block_rows)

    np.testing.assert_array_equal(parts.index, whole.index)
    np.testing.assert_array_equal(parts.distance, whole.distance)


@settings(max_examples=25)
@given(st.integers(0, 2**32), st.floats(1e-8, 1e8))
def test_neighbour_graph__follows_scale_and_ignores_shift(seed, scale):
    points = cloud(40, 5, seed=seed)
    here, there = neighbour_graph(points, 4), neighbour_graph(scale * (points + 1), 4)

    np.testing.assert_array_equal(there.index, here.index)
    np.testing.assert_allclose(there.distance, scale * here.distance, rtol=1e-9)


# Bad input
@pytest.fixture
def unchecked():
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("shape", [(5,), (2, 3, 4), (0, 3), (3, 0)])
def test_neighbour_graph__raises_on_anything_but_a_matrix(shape):
    with pytest.raises(ShapeError, match=r"points must be \(sample, unit\)"):
        neighbour_graph(np.zeros(shape), 1)


@pytest.mark.usefixtures("unchecked")
def test_neighbour_graph__raises_on_complex_numbers():
    with pytest.raises(DtypeError, match=r"real numbers\. Got complex128"):
        neighbour_graph(np.ones((4, 2), dtype=complex), 1)


@pytest.mark.parametrize(("n_neighbours", "block_rows"), [(0, 1), (1, 0)])
def test_neighbour_graph__raises_on_no_neighbours_or_rows(n_neighbours, block_rows):
    with pytest.raises(ShapeError, match="must be at least 1"):
        neighbour_graph(cloud(5, 2), n_neighbours, block_rows=block_rows)


def test_neighbour_graph__raises_on_what_is_not_finite():
    points = cloud(5, 2)
    points[1] = np.nan, np.inf
    with pytest.raises(DegenerateInputError, match="Got 1 samples with NaN or infinity"):
        neighbour_graph(points, 1)


def test_neighbour_graph__raises_where_too_few_rows_are_distinct():
    with pytest.raises(DegenerateInputError, match=r"n_neighbours = 4 distinct rows\. Got 4"):
        neighbour_graph(cloud(4, 2)[[0, 1, 2, 3, 0, 1]], 4)


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_neighbour_graph__raises_where_squares_under_or_overflow(scale):
    with pytest.raises(DegenerateInputError, match="neither vanish nor overflow"):
        neighbour_graph(scale * cloud(5, 2), 1)
