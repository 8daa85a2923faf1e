import warnings
from itertools import permutations

import jaxtyping
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from mechint_core.errors import ConfigurationError, DegenerateInputError, ShapeError
from mechint_core.geometry import (
    PersistentHomologyConfig,
    diagram_distance,
    diagram_matching,
    persistent_homology,
)
from mechint_core.random import generator

seeds = st.integers(0, 2**32)


def random_bars(seed, n, word="bars"):
    birth, length = generator(seed, word).random((2, n))
    return np.stack([birth, birth + length], axis=1)


# Known answer
@pytest.mark.parametrize(
    ("first", "second", "bottleneck", "wasserstein"),
    [
        ([[0, 8]], [[0, 9]], 1, 1),
        ([[0, 8], [3, 5]], [[0, 9]], 1, 2),
        ([[0, 8]], [], 4, 4),
        ([], [], 0, 0),
        ([[0, 1]], [[10, 11]], 0.5, 1),  # cheaper to let both vanish
        ([[0, np.inf], [2, 3]], [[1, np.inf], [2, 3]], 1, 1),
        ([[0, np.inf]], [[0, 3]], np.inf, np.inf),
        ([[0, 0]], [], 0, 0),
    ],
)
def test_diagram_distance__of_few_bars_by_hand(first, second, bottleneck, wasserstein):
    one, other = (np.array(bars, dtype=float).reshape(-1, 2) for bars in (first, second))

    assert diagram_distance(one, other) == bottleneck
    assert diagram_distance(one, other, order=1.0) == pytest.approx(wasserstein)


def test_diagram_matching__names_who_is_matched():
    first, second = np.array([[3.0, 3.1], [0, 8], [0, np.inf]]), np.array([[0.0, 9], [0.5, np.inf]])
    found = diagram_matching(first, second)

    assert found.first.tolist() == [1, 2]
    assert found.second.tolist() == [0, 1]
    assert found.distance == pytest.approx(np.sqrt(1 + 0.5**2 + 0.05**2))


def test_diagram_matching__of_bottleneck_pairs_no_bars_farther_apart_than_the_distance():
    first, second = random_bars(0, 12), random_bars(1, 9)
    found = diagram_matching(first, second, order=np.inf)

    assert found.distance == diagram_distance(first, second)
    assert np.abs(first[found.first] - second[found.second]).max(initial=0.0) <= found.distance


# Oracle
@given(seeds, st.integers(0, 3), st.integers(0, 3))
@settings(max_examples=30)
def test_diagram_distance__is_the_best_of_all_matchings(seed, n, m):
    """Every matching of n bars and m diagonal places with m bars and n diagonal places, one by one."""
    first, second = random_bars(seed, n), random_bars(seed, m, "other")
    best = {1.0: np.inf, 2.0: np.inf, np.inf: np.inf}
    for order in permutations(range(n + m)):
        moves = [move(i, j, first, second) for i, j in enumerate(order)]
        for q in best:
            best[q] = min(best[q], np.linalg.norm(moves, q) if moves else 0.0)

    for q, expected in best.items():
        assert diagram_distance(first, second, order=q) == pytest.approx(0.0 if n + m == 0 else expected, abs=1e-12)


def move(i, j, first, second):
    if i < len(first) and j < len(second):
        return np.abs(first[i] - second[j]).max()
    bars, place = (first, i) if i < len(first) else (second, j)
    return (bars[place, 1] - bars[place, 0]) / 2 if place < len(bars) else 0.0


@pytest.mark.parametrize(("n", "m"), [(1, 1), (5, 3), (30, 40), (60, 0)])
def test_diagram_distance__equals_persims(n, m):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from persim import bottleneck, wasserstein

        first, second = random_bars(0, n), random_bars(1, m)
        expected = bottleneck(first, second), wasserstein(first, second)

    assert diagram_distance(first, second) == pytest.approx(expected[0], rel=1e-9)
    assert diagram_distance(first, second, order=1.0, ground=2.0) == pytest.approx(expected[1], rel=1e-9)


# Law
@given(seeds, st.sampled_from([1.0, 2.0, np.inf]), st.sampled_from([2.0, np.inf]))
@settings(max_examples=30)
def test_diagram_distance__is_a_metric(seed, order, ground):
    one, two, three = (random_bars(seed, n, f"{n}") for n in (4, 6, 5))
    d12, d23, d13, d21 = (
        diagram_distance(a, b, order=order, ground=ground)
        for a, b in ((one, two), (two, three), (one, three), (two, one))
    )

    assert d12 == pytest.approx(d21)
    assert d12 > 0
    assert d13 <= d12 + d23 + 1e-12
    assert diagram_distance(one, one[::-1], order=order, ground=ground) == 0


@given(seeds, st.floats(1e-6, 1e6))
@settings(max_examples=15)
def test_diagram_distance__follows_scale_and_falls_with_order(seed, scale):
    first, second = random_bars(seed, 5), random_bars(seed, 7, "other")
    by_order = [diagram_distance(first, second, order=q) for q in (1.0, 2.0, np.inf)]

    assert by_order == sorted(by_order, reverse=True)
    for q, expected in zip((1.0, 2.0, np.inf), by_order, strict=True):
        assert diagram_distance(scale * first, scale * second, order=q) == pytest.approx(scale * expected, rel=1e-9)


@given(seeds, st.floats(1e-4, 0.3), st.integers(0, 2))
@settings(max_examples=30)
def test_diagram_distance__is_stable_under_moves_of_the_points(seed, epsilon, dimension):
    rng = generator(seed, "cloud")
    cloud, step = rng.standard_normal((2, 15, 3))
    moved = cloud + epsilon * step / np.linalg.norm(step, axis=1, keepdims=True)
    config = PersistentHomologyConfig(max_dimension=2, n_surrogates=0, n_resamples=0)
    before, after = (persistent_homology(x, config=config) for x in (cloud, moved))
    bars = [each.bars[each.dimension == dimension] for each in (before, after)]

    assert diagram_distance(*bars) <= 2 * epsilon + 1e-12


# Bad input
def test_diagram_distance__raises_on_what_is_no_barcode():
    bars = random_bars(0, 3)
    with pytest.raises(DegenerateInputError, match="Got 1 that do not"):
        diagram_distance(bars, np.array([[2.0, 1.0]]))
    with pytest.raises(DegenerateInputError, match="Got 1 that do not"):
        diagram_distance(np.array([[np.nan, 1.0]]), bars)
    with pytest.raises(ConfigurationError, match="order must be at least 1"):
        diagram_distance(bars, bars, order=0.5)
    with pytest.raises(ConfigurationError, match="ground 2 or infinity"):
        diagram_distance(bars, bars, ground=1.0)
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        with pytest.raises(ShapeError, match=r"must be \(bar, 2\)"):
            diagram_distance(bars, np.zeros((2, 3)))
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
