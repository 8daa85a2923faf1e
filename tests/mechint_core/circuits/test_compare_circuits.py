"""Comparing circuits: what they share, beside what random circuits of their sizes would."""

import inspect
from itertools import combinations
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy import stats

from mechint_core.circuits import Circuit, CompareCircuitsConfig, compare_circuits
from mechint_core.circuits._edge_overlap import chance_of_edges, hypergeometric, jaccard, overlap
from mechint_core.circuits._random_circuits import Wiring, random_circuits
from mechint_core.circuits.circuit import on_ways
from mechint_core.errors import ConfigurationError, ShapeError
from mechint_core.random import generator

unchecked = inspect.unwrap(compare_circuits)  # without the shape checker of the tests, to meet our own messages

NODES = ("input", *(f"layers.{layer}.attention.{head}" for layer in range(3) for head in range(3)))


def layer_of(node):
    return -1 if node == "input" else int(node.split(".")[1])


EDGES = tuple(
    (sender, receiver + port)
    for receiver in (*NODES[1:], "output")
    for port in ((":query", ":key", ":value") if receiver != "output" else ("",))
    for sender in NODES
    if receiver == "output" or layer_of(sender) < layer_of(receiver)
)


def circuit(kept, score=None, edges=EDGES):
    sender, receiver = zip(*edges, strict=True)
    score = np.arange(len(edges), dtype=float) if score is None else score
    return Circuit(sender=sender, receiver=receiver, score=score, kept=np.asarray(kept, dtype=bool))


def having(*indices):
    kept = np.zeros(len(EDGES), dtype=bool)
    kept[list(indices)] = True
    return kept


# Known answer
def test_compare_circuits__counts_shared_edges():
    found = compare_circuits([circuit(having(0, 1, 2, 3)), circuit(having(2, 3, 4)), circuit(having(2, 3))])

    third = 2 / 5
    np.testing.assert_allclose(found.jaccard, [[1, third, 0.5], [third, 1, 2 / 3], [0.5, 2 / 3, 1]])
    np.testing.assert_allclose(found.overlap, [[1, 2 / 3, 1], [2 / 3, 1, 1], [1, 1, 1]])
    assert found.edge_likeness.value == pytest.approx((third + 0.5 + 2 / 3) / 3)
    assert (found.n_in_any, found.n_in_all, found.n_circuits, found.n_edges) == (5, 2, 3, len(EDGES))
    assert list(found.n_kept) == [4, 3, 2]
    assert list(zip(found.sender, found.receiver, strict=True)) == list(EDGES[:5])
    np.testing.assert_allclose(found.frequency, [1 / 3, 1 / 3, 1, 1, 1 / 3])
    assert list(found.in_all) == [False, False, True, True, False]
    np.testing.assert_allclose(found.like_last, [0.5, 2 / 3, 1])


def test_compare_circuits__p_of_two_is_the_hypergeometric_tail():
    """10 of n edges each, 4 in common: sum of C(10, k) C(n - 10, 10 - k) / C(n, 10) over k >= 4."""
    n = len(EDGES)
    found = compare_circuits([circuit(having(*range(10))), circuit(having(*range(6, 16)))])
    tail = sum(comb(10, k) * comb(n - 10, 10 - k) for k in range(4, 11)) / comb(n, 10)
    assert found.p_value[0, 1] == pytest.approx(tail, rel=1e-9)
    assert np.isnan(found.p_value[0, 0])


def test_compare_circuits__identical_circuits_are_alike_beyond_chance_and_say_so():
    kept = random_circuits(EDGES, 12, n_circuits=1, kind="connected", rng=generator(0, "one"))[0]
    score = generator(1, "score").normal(size=len(EDGES))

    found = compare_circuits([circuit(kept, score)] * 3, np.array([10, 20, 30]))

    assert (found.edge_likeness.value, found.edge_likeness.low, found.edge_likeness.high) == (1, 1, 1)
    assert found.edge_likeness.null < 0.4
    assert found.edge_likeness.p_value == 1 / 200
    assert found.node_likeness.value == 1
    assert found.score_likeness.value == pytest.approx(1)
    assert found.circuit == ("step 10", "step 20", "step 30")
    assert list(found.step) == [10, 20, 30]
    assert "share 1.00 [1.00, 1.00] of the edges that either keeps" in found.reading()
    assert "12 of 12 edges are in all of them" in found.reading()


def test_compare_circuits__what_all_connected_circuits_share_is_no_likeness():
    """Circuits through one head only must share its neighbourhood: sets of edges would not, connected ones do."""
    edges = tuple((sender, "neck") for sender in ("input",)) + tuple(
        (sender, receiver) for sender, receiver in [("neck", f"n{k}") for k in range(12)]
    )
    edges += tuple((f"n{k}", "output") for k in range(12))
    ways = [[0, 1 + k, 13 + k] for k in (2, 7)]
    circuits = [circuit([each in way for each in range(len(edges))], edges=edges) for way in ways]

    connected = compare_circuits(circuits)
    subsets = compare_circuits(circuits, config=CompareCircuitsConfig(random_circuits="subset"))

    assert connected.edge_likeness.value == subsets.edge_likeness.value == 1 / 5
    assert connected.edge_likeness.p_value > 0.5
    assert connected.edge_likeness.null > subsets.edge_likeness.null
    assert "cannot be told from that of random ones" in connected.reading()


def test_compare_circuits__planted_common_edges_recur_and_no_others():
    """Five circuits share 8 edges and have 6 of their own each."""
    draws = generator(0, "planted")
    common = draws.choice(len(EDGES), 8, replace=False)
    others = np.setdiff1d(np.arange(len(EDGES)), common)
    circuits = [circuit(having(*common, *draws.choice(others, 6, replace=False))) for _ in range(5)]

    found = compare_circuits(circuits, config=CompareCircuitsConfig(random_circuits="subset"))

    recurrent = {
        edge for edge, q in zip(zip(found.sender, found.receiver, strict=True), found.q_value, strict=True) if q <= 0.05
    }
    assert recurrent == {EDGES[each] for each in common}
    assert found.n_recurrent == 8


def test_compare_circuits__circuits_without_edges_have_nothing_in_common():
    found = compare_circuits([circuit(having()), circuit(having())])
    assert np.isnan(found.edge_likeness.value)
    assert np.isnan(found.jaccard).all()
    assert "None of the 2 circuits keeps an edge" in found.reading()
    mixed = compare_circuits([circuit(having()), circuit(having(1, 2))])
    assert mixed.jaccard[0, 1] == 0
    assert np.isnan(mixed.overlap[0, 1])


def test_compare_circuits__scores_that_are_missing_are_left_out_of_the_ranks():
    score = np.arange(len(EDGES), dtype=float)
    other = score.copy()
    other[:5] = np.nan
    nothing = np.full(len(EDGES), np.nan)
    found = compare_circuits([circuit(having(1), score), circuit(having(1), other), circuit(having(), nothing)])
    assert found.score_likeness.value == found.rank_correlation[0, 1] == pytest.approx(1)
    assert np.isnan(found.rank_correlation[2]).all()


def test_random_circuits__connected_ones_lead_from_the_input_to_the_output():
    kept = random_circuits(EDGES, 20, n_circuits=50, kind="connected", rng=generator(0, "random"))
    assert (kept.sum(axis=1) == 20).all()
    assert all((on_ways(EDGES, each) == each).all() for each in kept)
    assert len({each.tobytes() for each in kept}) == 50


def test_random_circuits__subsets_are_uniform():
    """Each of 118 edges is in 20 of 118; 5 standard errors of 2000 draws."""
    kept = random_circuits(EDGES, 20, n_circuits=2000, kind="subset", rng=generator(0, "random"))
    p = 20 / len(EDGES)
    assert (kept.sum(axis=1) == 20).all()
    assert np.abs(kept.mean(axis=0) - p).max() < 5 * np.sqrt(p * (1 - p) / 2000)


@pytest.mark.parametrize("n_kept", [0, 1, 2, len(EDGES) - 1, len(EDGES)])
@pytest.mark.parametrize("kind", ["connected", "subset"])
def test_random_circuits__have_the_size_asked_for_even_where_no_way_fits(n_kept, kind):
    kept = random_circuits(EDGES, n_kept, n_circuits=5, kind=kind, rng=generator(0, "random"))
    assert (kept.sum(axis=1) == n_kept).all()


def test_wiring__a_way_through_an_edge_is_a_way():
    wiring = Wiring.of(EDGES)
    for edge in range(len(EDGES)):
        way = wiring.way_through(edge, generator(edge, "way"))
        kept = np.array([each in way for each in range(len(EDGES))])
        assert edge in way
        assert (on_ways(EDGES, kept) == kept).all()


# Oracle
def test_edge_overlap__equals_sets():
    draws = generator(0, "sets")
    kept = draws.random((5, 30)) < 0.4
    sets = [set(np.flatnonzero(each)) for each in kept]
    for a, b in combinations(range(5), 2):
        one, other = sets[a], sets[b]
        assert jaccard(kept)[a, b] == pytest.approx(len(one & other) / len(one | other))
        assert overlap(kept)[a, b] == pytest.approx(len(one & other) / min(len(one), len(other)))
        table = [[len(one & other), len(one - other)], [len(other - one), 30 - len(one | other)]]
        assert hypergeometric(kept)[a, b] == pytest.approx(stats.fisher_exact(table, "greater").pvalue)


def test_chance_of_edges__equals_the_binomial_where_all_edges_are_as_likely():
    draws = generator(0, "binomial")
    kept = random_circuits(EDGES, 30, n_circuits=4, kind="subset", rng=draws)
    random = np.ones((99, 4, len(EDGES)), dtype=bool)
    random[:, :, :] = (np.arange(99) < 25)[:, None, None]  # as if each edge were in a quarter
    expected, q = chance_of_edges(kept, random)
    p = stats.binom.sf(kept.sum(axis=0) - 1, 4, 25.5 / 100)
    np.testing.assert_allclose(q, stats.false_discovery_control(p), atol=1e-12)
    np.testing.assert_allclose(expected, 25 / 99)


def test_compare_circuits__rank_correlation_is_scipys():
    draws = generator(0, "ranks")
    one = draws.normal(size=len(EDGES)).round(1)  # with ties
    other = one + draws.normal(size=len(EDGES))
    found = compare_circuits([circuit(having(1), one), circuit(having(1), other)])
    assert found.rank_correlation[0, 1] == pytest.approx(stats.spearmanr(one, other).statistic, abs=1e-12)
    assert found.rank_correlation_low[0, 1] < found.rank_correlation[0, 1] < found.rank_correlation_high[0, 1]


# Law
kept_edges = st.lists(st.integers(0, len(EDGES) - 1), max_size=20, unique=True)


@settings(max_examples=25)
@given(st.lists(kept_edges, min_size=2, max_size=4))
def test_compare_circuits__likeness_is_symmetric_within_bounds_and_1_with_itself(sets):
    found = compare_circuits(
        [circuit(having(*each)) for each in sets], config=CompareCircuitsConfig(n_null=3, n_draws=3)
    )
    for matrix in (found.jaccard, found.overlap, found.node_jaccard):
        np.testing.assert_array_equal(matrix, matrix.T)
        finite = matrix[np.isfinite(matrix)]
        assert ((finite >= 0) & (finite <= 1)).all()
    assert all(found.jaccard[k, k] == 1 for k, each in enumerate(sets) if each)
    assert (np.nan_to_num(found.overlap, nan=1) >= np.nan_to_num(found.jaccard)).all()


def test_compare_circuits__does_not_depend_on_the_order_of_edges():
    draws = generator(0, "order")
    score, kept = draws.normal(size=(2, len(EDGES))), draws.random((2, len(EDGES))) < 0.2
    shuffled = draws.permutation(len(EDGES))
    one, other = (circuit(k, s) for k, s in zip(kept, score, strict=True))
    moved = circuit(kept[1][shuffled], score[1][shuffled], tuple(EDGES[each] for each in shuffled))
    first, second = compare_circuits([one, other]), compare_circuits([one, moved])
    for name, values in first.arrays().items():
        np.testing.assert_array_equal(second.arrays()[name], values, err_msg=name)


@pytest.mark.parametrize(
    ("n_pairs", "least", "most"), [(60, 0.01, 0.25), pytest.param(200, 0.04, 0.18, marks=pytest.mark.slow)]
)
def test_compare_circuits__p_values_are_at_their_nominal_level_for_unrelated_connected_circuits(n_pairs, least, most):
    """Comparisons of two connected random circuits: the rate of p <= 0.1 lies in its 99.9 % band."""
    draws = generator(0, "unrelated")
    config = [CompareCircuitsConfig(n_null=39, n_draws=2, seed=seed) for seed in range(n_pairs)]
    found = [
        compare_circuits(
            [circuit(each) for each in random_circuits(EDGES, 15, n_circuits=2, kind="connected", rng=draws)],
            config=one,
        ).edge_likeness.p_value
        for one in config
    ]
    assert least <= np.mean(np.array(found) <= 0.1) <= most


def test_compare_circuits__same_seed_same_bits():
    circuits = [circuit(having(1, 2, 3)), circuit(having(3, 4))]
    first, second = (compare_circuits(circuits).scalars() for _ in range(2))
    np.testing.assert_equal(first, second)


# Bad input
def test_compare_circuits__needs_two_circuits_of_one_graph():
    with pytest.raises(ShapeError, match="at least two, of one graph"):
        unchecked([circuit(having(1))])
    with pytest.raises(ShapeError, match=r"Got 2, with \[118, 117\] edges"):
        unchecked([circuit(having(1)), circuit(having(1)[1:], edges=EDGES[1:])])


def test_compare_circuits__steps_and_names_are_one_per_circuit():
    two = [circuit(having(1)), circuit(having(2))]
    with pytest.raises(ShapeError, match="one for each of the 2 circuits"):
        unchecked(two, np.array([1, 2, 3]))
    with pytest.raises(ShapeError, match="one for each of the 2 circuits"):
        unchecked(two, config=CompareCircuitsConfig(names=("only",)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"random_circuits": "any"}, "random_circuits must be one of"),
        ({"n_null": 0}, "n_null and n_draws must be at least 1"),
        ({"level": 1.0}, "level must lie strictly between"),
    ],
)
def test_compare_circuits__config_names_what_is_wrong(options, message):
    config = CompareCircuitsConfig()
    for name, value in options.items():  # past the type checker of the tests, which meets some of these first
        object.__setattr__(config, name, value)
    with pytest.raises(ConfigurationError, match=message):
        config.__post_init__()
