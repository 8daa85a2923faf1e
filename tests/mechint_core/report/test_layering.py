"""Where the nodes of a directed graph go."""

from collections.abc import Iterable
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, strategies as st

from mechint_core.errors import ShapeError
from mechint_core.report.layering import GAP, Layers, depths, lay_out

Edges = list[tuple[int, int]]


def ends(edges: Iterable[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    sender, receiver = np.array(list(edges), dtype=int).reshape(-1, 2).T
    return sender, receiver


def laid_out(edges: Edges, count: int, width: float = 40.0) -> Layers:
    sender, receiver = ends(edges)
    return lay_out(sender, receiver, np.zeros(len(edges)), depths(sender, receiver, count), np.full(count, width))


def crossings(edges: Edges, layers: Layers) -> int:
    """Count crossings from what is drawn: every edge as a line from level to level."""
    pieces: list[tuple[int, float, float]] = []
    for (source, target), bends in zip(edges, layers.bends, strict=True):
        stops = [layers.x[source], *bends, layers.x[target]]
        pieces += [(int(layers.level[source]) + rise, stops[rise], stops[rise + 1]) for rise in range(len(stops) - 1)]
    return sum(
        first[0] == second[0] and (first[1] - second[1]) * (first[2] - second[2]) < -1e-6
        for first, second in combinations(pieces, 2)
    )


@st.composite
def acyclic(draw: st.DrawFn) -> tuple[Edges, int]:
    """Draw a directed graph without cycles, in which every node has a neighbour."""
    count = draw(st.integers(2, 12))
    every = list(combinations(range(count), 2))
    chosen = draw(st.lists(st.sampled_from(every), min_size=1, max_size=20, unique=True))
    used = {node: index for index, node in enumerate(sorted({node for edge in chosen for node in edge}))}
    return [(used[source], used[target]) for source, target in chosen], len(used)


# Known answer


def test_depths__are_longest_paths():
    edges = [(0, 1), (1, 2), (0, 2), (2, 3), (0, 3)]
    assert depths(*ends(edges), 4).tolist() == [0, 1, 2, 3]


def test_depths__put_a_node_that_nothing_enters_next_to_what_it_feeds():
    assert depths(*ends([(0, 1), (1, 2), (3, 2)]), 4).tolist() == [0, 1, 2, 1]


def test_lay_out__uncrosses_two_edges():
    edges = [(0, 3), (1, 2)]
    assert crossings(edges, laid_out(edges, 4)) == 0


def test_lay_out__a_chain_is_a_straight_line():
    layers = laid_out([(0, 1), (1, 2), (2, 3)], 4)
    assert np.allclose(layers.x, layers.x[0])
    assert layers.width == pytest.approx(40 + GAP)


def test_lay_out__a_long_edge_passes_a_node_by():
    layers = laid_out([(0, 1), (1, 2), (0, 2)], 3)
    (bend,) = layers.bends[2]
    assert abs(bend - layers.x[1]) >= (40 + GAP) / 2 + GAP / 2 - 1e-6


def test_lay_out__edges_into_one_node_come_in_the_order_of_their_arrival():
    sender, receiver = ends([(0, 3), (1, 3), (2, 3)])
    layers = lay_out(sender, receiver, np.array([13.0, 0.0, -13.0]), np.array([0, 0, 0, 1]), np.full(4, 40.0))
    assert layers.x[0] > layers.x[1] > layers.x[2]


# Oracle


@given(acyclic())
def test_depths__equal_a_recursion_over_all_paths(graph: tuple[Edges, int]):
    edges, count = graph

    def longest(node: int) -> int:
        return max((1 + longest(source) for source, target in edges if target == node), default=0)

    fed = [node for node in range(count) if any(target == node for _, target in edges)]
    found = depths(*ends(edges), count)
    assert [int(found[node]) for node in fed] == [longest(node) for node in fed]


# Law


@given(acyclic())
def test_lay_out__nothing_overlaps_and_every_edge_leads_upwards(graph: tuple[Edges, int]):
    edges, count = graph
    layers = laid_out(edges, count)
    on_level: dict[int, list[tuple[float, float]]] = {}
    for node in range(count):
        on_level.setdefault(int(layers.level[node]), []).append((float(layers.x[node]), 40 + GAP))
    for (source, target), bends in zip(edges, layers.bends, strict=True):
        assert layers.level[target] - layers.level[source] == len(bends) + 1
        for rise, x in enumerate(bends):
            on_level[int(layers.level[source]) + 1 + rise].append((float(x), GAP))
    for row in on_level.values():
        for (x, width), (other, breadth) in combinations(row, 2):
            assert abs(x - other) >= (width + breadth) / 2 - 1e-6  # rounding of sums of some hundred pixels
        assert all(width / 2 - 1e-6 <= x <= layers.width - width / 2 + 1e-6 for x, width in row)


@given(st.lists(st.integers(0, 100), min_size=1, max_size=14))
def test_lay_out__a_tree_is_drawn_without_a_crossing(parents: list[int]):
    edges = [(parent % (child + 1), child + 1) for child, parent in enumerate(parents)]
    assert crossings(edges, laid_out(edges, len(parents) + 1)) == 0


# Bad input


def test_depths__refuse_a_cycle():
    with pytest.raises(ShapeError, match="must not form a cycle"):
        depths(*ends([(0, 1), (1, 2), (2, 0)]), 3)


def test_depths__refuse_an_edge_from_a_node_to_itself():
    with pytest.raises(ShapeError, match="must not form a cycle"):
        depths(*ends([(0, 0)]), 1)
