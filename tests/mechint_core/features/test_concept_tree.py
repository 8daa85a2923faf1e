import sys

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from scipy.stats import false_discovery_control, fisher_exact

from mechint_core.errors import ConfigurationError, DegenerateInputError, ShapeError
from mechint_core.features import SparseAutoencoder, SparseAutoencoderConfig
from mechint_core.features.concept_tree import ConceptTreeConfig, concept_tree, edge_f1
from mechint_core.random import generator
from mechint_core.synthetic.feature_tree import feature_tree

QUICK = ConceptTreeConfig(n_null=1, n_bootstrap=10)


def reader(directions, threshold=0.0):
    """A dictionary whose codes are the components along orthogonal directions."""
    directions = torch.as_tensor(np.asarray(directions, dtype=np.float32))
    made = SparseAutoencoder(directions.shape[1], len(directions), config=SparseAutoencoderConfig(activation="relu"))
    with torch.no_grad():
        made.W_enc.copy_(directions)
        made.W_dec.copy_(directions)
        made.threshold.fill_(threshold)
    return made


def tree_of(fires, config=QUICK):
    """The tree of latents that fire as given."""
    fires = np.asarray(fires, dtype=np.float32)
    return concept_tree(fires, reader(np.eye(fires.shape[1])), config=config)


def nested_fires(n, seed, p_miss=0.02):
    """Firing of a planted tree in which a parent is missed now and then, so that no two counts are alike by design."""
    planted = feature_tree(n, n_units=4, n_roots=3, n_children=(2, 2), p_root=0.4, p_child=0.45, seed=seed)
    fires = planted.codes > 0
    return fires & (generator(seed, "miss").random(fires.shape) >= p_miss), planted


# Known answer
@pytest.mark.parametrize("exclusive", [True, False])
@pytest.mark.parametrize(("n_children", "p_child"), [((4,), 0.2), ((3, 2), 0.3)])
def test_concept_tree__true_codes_give_the_planted_tree(exclusive, n_children, p_child):
    """80 orthogonal features in 80 units: the threshold of 1e-3 is above rounding and below every strength."""
    planted = feature_tree(
        5000, n_units=80, n_children=n_children, p_child=p_child, exclusive=exclusive, orthogonal=True
    )

    tree = concept_tree(planted.activations, reader(planted.dictionary, threshold=1e-3))

    assert edge_f1(tree.parent, planted.parent, np.arange(len(planted.parent))) == 1
    np.testing.assert_array_equal(tree.level_of, planted.level)
    assert tree.mean_containment.value == 1
    assert tree.n_families == 8
    assert tree.n_levels == len(n_children) + 1
    assert tree.below_share.value == np.mean(planted.parent >= 0)
    assert tree.below_share.p_value == 0.05  # 1 / (1 + 19)
    assert tree.below_share.null == 0
    assert "special cases of another, in 8 families" in tree.reading()


def test_concept_tree__an_edge_has_the_numbers_of_its_table():
    """Latent 1 fires in 20 of 100 vectors, 18 of them among the 40 of latent 0. Wilson's bounds by hand."""
    fires = np.zeros((100, 2))
    fires[:40, 0] = 1
    fires[np.r_[:18, 98:100], 1] = 1

    tree = tree_of(fires)

    assert tree.parent.tolist() == [-1, 0]
    assert (tree.containment[1], tree.chance[1]) == (0.9, 0.4)
    assert (tree.containment_low[1], tree.containment_high[1]) == pytest.approx((0.6990, 0.9721), abs=1e-4)
    assert tree.p_value[1] == tree.q_value[1]  # one pair alone could be an edge
    assert (tree.n_pairs, tree.edge) == (1, ("1 in 0",))
    assert np.isnan(tree.containment[0])


def test_concept_tree__the_parent_is_the_most_specific_one():
    fires = np.zeros((400, 3))
    fires[:200, 0] = fires[:100, 2] = fires[:40, 1] = 1  # 1 in 2 in 0

    tree = tree_of(fires)

    assert tree.parent.tolist() == [-1, 2, 0]
    assert tree.level_of.tolist() == [0, 2, 1]
    assert tree.root.tolist() == [0, 0, 0]


def test_concept_tree__neither_what_always_fires_nor_a_near_copy_is_a_parent():
    fires = np.zeros((400, 3))
    fires[:, 0] = fires[:100, 1] = fires[:95, 2] = 1

    tree = tree_of(fires)

    assert tree.parent.tolist() == [-1, -1, -1]
    assert np.isnan(tree.mean_containment.value)
    assert tree.reading() == "None of the 3 latents that fire often enough is a special case of another."


def test_concept_tree__dead_and_rare_latents_are_counted_and_not_judged():
    fires = np.zeros((400, 4))
    fires[:200, 0] = fires[:9, 1] = fires[:10, 2] = 1

    tree = tree_of(fires)

    assert (tree.n_dead, tree.n_rare, tree.n_edges) == (1, 1, 1)
    assert tree.parent.tolist() == [-1, -1, 0, -1]
    assert tree.level_of.tolist() == [0, -1, 1, -1]
    assert tree.below_share.value == 1 / 2


def test_concept_tree__independent_firing_has_edges_as_rarely_as_asked():
    """With next to no containment asked for, only the test decides: 400 draws, of which at most 5 % may have an edge.

    The standard error is 0.011; the test is exact, but its p-values are discrete, so the rate is below 5 %.
    """
    config = ConceptTreeConfig(min_excess=0.01, breadth=1.01, n_null=1, n_bootstrap=1)
    any_edge = []
    for draw in range(400):
        rng = generator(draw, "independent")
        chance = rng.uniform(0.1, 0.5, 12)
        any_edge.append(tree_of(rng.random((400, 12)) < chance, config).n_edges > 0)

    assert 0.005 < np.mean(any_edge) < 0.05 + 0.011


def test_concept_tree__of_independent_firing_is_not_distinguished_from_its_null(rng):
    config = ConceptTreeConfig(min_excess=0.01, breadth=1.01, false_discovery=0.9)

    tree = tree_of(rng.random((400, 12)) < 0.3, config)

    assert tree.n_edges > 0
    assert tree.below_share.p_value > 0.05
    assert "not distinguishable from shuffled firing" in tree.reading()


def test_edge_f1__counts_right_wrong_and_missing_edges():
    true = np.array([-1, 0, 0, -1])
    partner = np.array([3, 0, 1, 2])  # feature -> latent

    assert edge_f1(np.array([3, 3, -1, -1, -1]), true, partner) == 1
    assert edge_f1(np.array([3, -1, -1, -1, -1]), true, partner) == pytest.approx(2 / 3)
    assert edge_f1(np.array([3, 3, -1, -1, 3]), true, partner) == pytest.approx(4 / 5)  # 4 stands for no feature
    assert edge_f1(np.array([3, 2, -1, -1, -1]), true, partner) == pytest.approx(1 / 2)
    assert edge_f1(np.array([3, 3, -1, -1, -1]), true, np.array([-1, 0, 1, 2])) == 0
    assert np.isnan(edge_f1(np.full(2, -1), np.full(2, -1), np.arange(2)))


# Oracle
def by_enumeration(fires, config):
    """Every pair, one by one, with scipy's tests."""
    n, counts = len(fires), fires.sum(axis=0)
    pairs, p = [], []
    for j in range(len(counts)):
        for i in range(len(counts)):
            if min(counts[i], counts[j]) < config.min_firings or counts[i] < config.breadth * counts[j]:
                continue
            both = int((fires[:, i] & fires[:, j]).sum())
            table = [[both, counts[j] - both], [counts[i] - both, n - counts[i] - counts[j] + both]]
            contained = counts[i] < n and (both / counts[j] - counts[i] / n) / (1 - counts[i] / n) >= config.min_excess
            pairs.append((j, i, both))
            p.append(fisher_exact(table, alternative="greater").pvalue if contained else 1.0)
    q = false_discovery_control(p) if p else []
    parent, p_value, q_value = np.full(len(counts), -1), np.full(len(counts), np.nan), np.full(len(counts), np.nan)
    best = {}
    for (j, i, both), one_p, one_q in zip(pairs, p, q, strict=True):
        if one_q <= config.false_discovery and one_p < 1 and (counts[i], -both, i) < best.get(j, (np.inf,)):
            best[j], parent[j], p_value[j], q_value[j] = (counts[i], -both, i), i, one_p, one_q
    return parent, p_value, q_value


@settings(max_examples=25)
@given(st.integers(0, 1000), st.floats(0.05, 0.95), st.floats(1.01, 2), st.integers(20, 150))
def test_concept_tree__equals_trying_every_pair(seed, min_excess, breadth, n):
    rng = generator(seed, "enumeration")
    cause = rng.random((n, 3)) < 0.5
    fires = cause[:, rng.integers(0, 3, 8)] & (rng.random((n, 8)) < rng.uniform(0.2, 1, 8))
    config = ConceptTreeConfig(min_excess=min_excess, breadth=breadth, min_firings=1, n_null=1, n_bootstrap=1)
    if not fires.any():
        return

    tree = tree_of(fires, config)
    parent, p_value, q_value = by_enumeration(fires, config)

    np.testing.assert_array_equal(tree.parent, parent)
    np.testing.assert_allclose(tree.p_value, p_value, rtol=1e-9)  # gammaln of 150: 1e-12 of a logarithm below 500
    np.testing.assert_allclose(tree.q_value, q_value, rtol=1e-9)


# Law
@settings(max_examples=15)
@given(st.integers(0, 100))
def test_concept_tree__permuted_latents_have_the_permuted_tree(seed):
    fires, planted = nested_fires(1500, seed)
    order = generator(seed, "order").permutation(len(planted.parent))

    plain, permuted = tree_of(fires), tree_of(fires[:, order])

    assert edge_f1(permuted.parent, plain.parent, np.argsort(order)) == 1
    np.testing.assert_array_equal(permuted.level_of, plain.level_of[order])
    np.testing.assert_array_equal(permuted.containment, plain.containment[order])


@settings(max_examples=10)
@given(st.integers(0, 100), st.integers(2, 4))
def test_concept_tree__copies_of_the_vectors_change_no_containment(seed, n_copies):
    fires, _ = nested_fires(1500, seed)

    once, copied = tree_of(fires), tree_of(np.tile(fires, (n_copies, 1)))

    both = (once.parent == copied.parent) & (once.parent >= 0)
    assert both.sum() == once.n_edges
    np.testing.assert_allclose(copied.containment[both], once.containment[both], rtol=1e-12)
    assert (copied.containment_low[both] >= once.containment_low[both]).all()


@settings(max_examples=10)
@given(st.integers(0, 100), st.integers(1, 700))
def test_concept_tree__positions_are_vectors_and_blocks_change_nothing(seed, chunk_values):
    fires, planted = nested_fires(600, seed)
    dictionary = reader(np.eye(len(planted.parent)))
    vectors = fires.astype(np.float32)
    whole = concept_tree(vectors, dictionary, config=QUICK)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules["mechint_core.features._encoded_blocks"], "CHUNK_VALUES", chunk_values)
        patch.setattr(sys.modules["mechint_core.features._containment"], "BLOCK_VALUES", chunk_values)
        blocks = concept_tree(vectors.reshape(200, 3, -1), dictionary, config=QUICK)

    assert blocks.scalars() == pytest.approx(whole.scalars(), rel=0, abs=0, nan_ok=True)
    for name, array in whole.arrays().items():
        np.testing.assert_array_equal(getattr(blocks, name), array)


def test_concept_tree__dense_firing_takes_another_product_to_the_same_tree(monkeypatch):
    fires, _ = nested_fires(800, 0)

    sparse_or_dense = []
    for share in (0.0, 1.0):
        monkeypatch.setattr(sys.modules["mechint_core.features._containment"], "DENSE", share)
        sparse_or_dense.append(tree_of(fires))

    for name, array in sparse_or_dense[0].arrays().items():
        np.testing.assert_array_equal(getattr(sparse_or_dense[1], name), array)


# Bad input
@pytest.mark.parametrize("shape", [(0, 3), (10, 2)])
def test_concept_tree__refuses_other_units_and_no_samples(shape):
    with pytest.raises(ShapeError, match="activations must be"):
        concept_tree(np.ones(shape, dtype=np.float32), reader(np.eye(3)))


def test_concept_tree__refuses_values_that_are_not_finite():
    with pytest.raises(DegenerateInputError, match="activations must be finite"):
        tree_of(np.full((4, 3), np.nan))


def test_concept_tree__refuses_a_dictionary_that_hardly_fires():
    with pytest.raises(DegenerateInputError, match="must fire in at least 10 vectors"):
        tree_of(np.eye(9))


@pytest.mark.parametrize(
    "option",
    [
        {"min_excess": 0.0},
        {"false_discovery": 1.0},
        {"level": 1.0},
        {"breadth": 1.0},
        {"min_firings": 0},
        {"n_null": 0},
    ],
)
def test_concept_tree__refuses_impossible_options(option):
    with pytest.raises(ConfigurationError, match="must be"):
        ConceptTreeConfig(**option)
