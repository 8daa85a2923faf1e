import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from jaxtyping import TypeCheckError

from mechint_core.errors import ConfigurationError, DegenerateInputError, ShapeError
from mechint_core.features import SparseAutoencoder, SparseAutoencoderConfig
from mechint_core.features.feature_absorption import FeatureAbsorptionConfig, feature_absorption
from mechint_core.random import generator
from mechint_core.synthetic.feature_tree import feature_tree

QUICK = FeatureAbsorptionConfig(n_null=3, n_bootstrap=10)


def reader(directions, threshold=0.0):
    """A dictionary whose codes are the components along given directions."""
    directions = torch.as_tensor(np.asarray(directions, dtype=np.float32))
    made = SparseAutoencoder(directions.shape[1], len(directions), config=SparseAutoencoderConfig(activation="relu"))
    with torch.no_grad():
        made.W_enc.copy_(directions)
        made.W_dec.copy_(directions)
        made.threshold.fill_(threshold)
    return made


def absorption_of(codes, features, parent, config=QUICK):
    """What a dictionary with these codes makes of these features."""
    codes = np.asarray(codes, dtype=np.float32)
    return feature_absorption(codes, reader(np.eye(codes.shape[1])), features, np.asarray(parent), config=config)


def planted_codes(n, seed=0, **shape):
    planted = feature_tree(n, n_units=4, **({"n_roots": 2, "n_children": (2,), "p_root": 0.4} | shape), seed=seed)
    return planted.codes, planted.parent


# Known answer
@pytest.mark.parametrize("exclusive", [True, False])
@pytest.mark.parametrize("strength", ["half_normal", "near_one"])
def test_feature_absorption__of_the_true_codes_is_none(exclusive, strength):
    planted = feature_tree(4000, exclusive=exclusive, strength=strength, orthogonal=True)

    result = feature_absorption(
        planted.activations, reader(planted.dictionary, threshold=1e-5), planted.codes, planted.parent
    )

    assert result.absorption.value == pytest.approx(0, abs=1e-3)  # the weakest strengths are within rounding of 0
    assert result.recall_gap.value == pytest.approx(0, abs=1e-3)
    assert (result.found_share.value, result.split_share.value) == (1, 0)
    assert result.found_share.null < 0.8
    assert result.found_share.p_value == 0.05
    np.testing.assert_array_equal(result.latent, np.arange(40))
    assert "no" in result.reading().lower()


def test_feature_absorption__a_child_that_takes_its_parent_along_is_found():
    """Latent 0 stands for parent 0 but is silent wherever child 2 is: gaps 1 for that child, 0 for the other three."""
    features, parent = planted_codes(2000)
    codes = features.copy()
    codes[features[:, 2] > 0, 0] = 0

    result = absorption_of(codes, features, parent, config=FeatureAbsorptionConfig())

    n_children = (features[:, 2:] > 0).sum(axis=0)
    assert result.absorption.value == pytest.approx(n_children[0] / n_children.sum())
    assert result.absorption.low < result.absorption.value < result.absorption.high
    np.testing.assert_array_equal(result.gap, [np.nan, np.nan, 1, 0, 0, 0])
    np.testing.assert_array_equal(result.absorbed, [np.nan, np.nan, 1, 0, 0, 0])
    assert result.recall_gap.value == 1 / 4
    assert result.recall_gap.p_value == 0.05  # 1 / (1 + 19)
    assert result.edge[0] == "2 in 0"
    assert "fires 25% less often" in result.reading()


def test_feature_absorption__a_parent_that_is_missed_at_random_is_not_absorbed():
    """Latent 0 misses 40 % of its feature, whatever the children: the gap is rarely called significant.

    Of 60 data sets 5 % would be (19 null draws); standard error 0.028.
    """
    significant, gaps = [], []
    for seed in range(60):
        features, parent = planted_codes(400, seed=seed)
        codes = features * (generator(seed, "missed").random(features.shape) > [0.4, 0, 0, 0, 0, 0])
        config = FeatureAbsorptionConfig(n_bootstrap=1, null_samples=2, seed=seed)
        result = absorption_of(codes, features, parent, config)
        significant.append(result.recall_gap.p_value <= 0.05)
        gaps.append(result.recall_gap.value - result.recall_gap.null)

    assert np.mean(significant) <= 0.05 + 2 * 0.028
    assert np.mean(gaps) == pytest.approx(0, abs=0.02)  # about 0.05 / sqrt(60), times 3
    assert result.absorption.value == pytest.approx(result.absorption.null, abs=0.05)


def test_feature_absorption__a_feature_of_two_latents_is_split():
    features, parent = planted_codes(2000)
    strong = features[:, :1] > np.median(features[features[:, 0] > 0, 0])
    codes = np.hstack([features * np.where(np.arange(6) == 0, strong, True), features[:, :1] * ~strong])

    result = absorption_of(codes, features, parent)

    assert result.n_latents_of.tolist() == [2, 1, 1, 1, 1, 1]
    assert result.split_share.value == 1 / 6


def test_feature_absorption__a_feature_without_a_latent_is_not_found():
    """Without a latent for the parent every child absorbs it, and there is no gap: it was never seen."""
    features, parent = planted_codes(2000, n_roots=1)

    result = absorption_of(features[:, 1:], features, parent)

    assert (result.latent[0], result.correlation[0], result.recall[0]) == (-1, 0, 0)
    assert result.found_share.value == 2 / 3
    assert (result.absorption.value, result.recall_gap.value) == (1, 0)


def test_feature_absorption__a_parent_that_is_never_alone_has_no_gap():
    features, parent = planted_codes(500, p_child=0.5)

    result = absorption_of(features, features, parent)

    assert result.n_never_alone == 4
    assert np.isnan(result.recall_gap.value)
    assert result.absorption.value == 0
    assert "nothing tells absorption from weak parents" in result.reading()


def test_feature_absorption__children_without_their_parent_are_left_out():
    features = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0], [0.0, 0.0]] * 10)

    result = absorption_of(features, features, [-1, 0])

    assert result.n_orphans == 10
    assert result.absorption.value == 0


def test_feature_absorption__a_random_dictionary_finds_and_splits_no_more_than_chance(rng):
    """64 random directions in 64 units hear 40 features: half visible along some of them."""
    planted = feature_tree(2000)
    directions = rng.standard_normal((64, 64))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)

    result = feature_absorption(planted.activations, reader(directions, threshold=0.2), planted.codes, planted.parent)

    assert result.found_share.p_value > 0.05
    assert result.split_share.p_value > 0.05
    assert result.found_share.value == pytest.approx(result.found_share.null, abs=0.25)  # sd 0.08 each
    assert "no more than by chance" in result.reading()


# Oracle
@settings(max_examples=20)
@given(st.integers(0, 500), st.booleans())
def test_feature_absorption__equals_counting_one_by_one(seed, exclusive):
    features, parent = planted_codes(150, seed=seed, exclusive=exclusive, n_children=(2, 2), p_child=0.45)
    rng = generator(seed, "missed")
    codes = features * (rng.random(features.shape) > 0.3) + (rng.random(features.shape) < 0.02)

    result = absorption_of(codes, features, parent)

    fires, present = (codes > 0)[:, result.latent], features > 0
    fires[:, result.latent < 0] = False
    for child in np.flatnonzero(parent >= 0):
        above = parent[child]
        with_child = [s for s in range(150) if present[s, child] and present[s, above]]
        alone = [s for s in range(150) if present[s, above] and not present[s, parent == above].any()]
        if not with_child:
            continue
        absorbed = np.mean([not fires[s, above] and fires[s, child] for s in with_child])
        assert result.absorbed[child] == pytest.approx(absorbed)
        assert result.parent_recall[child] == pytest.approx(np.mean([fires[s, above] for s in with_child]))
        if alone:
            expected = np.mean([fires[s, above] for s in alone]) - result.parent_recall[child]
            assert result.gap[child] == pytest.approx(expected)
    for feature in np.flatnonzero(result.latent >= 0):
        oracle = np.corrcoef(codes[:, result.latent[feature]], features[:, feature])[0, 1]
        assert result.correlation[feature] == pytest.approx(oracle, abs=1e-6)  # codes are read as float32


# Law
@settings(max_examples=15)
@given(st.integers(0, 100), st.floats(0.1, 10))
def test_feature_absorption__ignores_order_and_size_of_latents_and_repeats_its_bits(seed, scale):
    features, parent = planted_codes(300, seed=seed)
    rng = generator(seed, "law")
    codes = features * (rng.random(features.shape) > 0.2)
    order = rng.permutation(6)

    plain, again = (absorption_of(codes, features, parent) for _ in range(2))
    moved = absorption_of(scale * codes[:, order], features, parent)

    assert again.scalars() == pytest.approx(plain.scalars(), rel=0, abs=0, nan_ok=True)
    for name, measure in plain.estimates().items():  # the random directions of the null see permuted units
        assert getattr(moved, name).value == pytest.approx(measure.value, nan_ok=True)
    np.testing.assert_array_equal(order[moved.latent], plain.latent)
    assert 0 <= plain.absorption.value <= 1
    assert -1 <= plain.recall_gap.value <= 1


def test_feature_absorption__copies_of_the_samples_change_no_value():
    features, parent = planted_codes(300)
    codes = features * (generator(0, "missed").random(features.shape) > 0.2)

    once = absorption_of(codes, features, parent)
    copied = absorption_of(np.tile(codes, (3, 1)), np.tile(features, (3, 1)), parent)

    for name in ("absorption", "recall_gap", "found_share", "split_share"):
        assert getattr(copied, name).value == pytest.approx(getattr(once, name).value, rel=1e-6)


# Bad input
@pytest.mark.parametrize(("n_codes", "n_labels", "n_parents"), [(1, 1, 2), (5, 4, 2), (5, 5, 3)])
def test_feature_absorption__refuses_arrays_that_do_not_fit(n_codes, n_labels, n_parents):
    with pytest.raises((ShapeError, TypeCheckError), match=r"must fit each other|parameter"):  # a type error here
        feature_absorption(
            np.ones((n_codes, 2)), reader(np.eye(2)), np.ones((n_labels, 2)), np.array([-1, 0, 0][:n_parents])
        )


def test_feature_absorption__refuses_other_units():
    with pytest.raises(ShapeError, match="activations must be"):
        feature_absorption(np.ones((5, 3)), reader(np.eye(2)), np.ones((5, 2)), np.array([-1, 0]))


@pytest.mark.parametrize(
    ("parent", "match"),
    [([-1, -1], "parent must name features"), ([-1, 2], "parent must name"), ([-2, 0], "parent must name"),
     ([1, 0], "parent must be a forest"), ([-1, 1], "parent must be a forest")],
)  # fmt: skip
def test_feature_absorption__refuses_parents_that_are_no_forest(parent, match):
    with pytest.raises(DegenerateInputError, match=match):
        absorption_of(np.eye(2), np.eye(2), parent)


def test_feature_absorption__refuses_values_that_are_not_finite():
    bad = np.array([[1.0, np.nan], [1.0, 1.0]])

    with pytest.raises(DegenerateInputError, match="features must be finite"):
        absorption_of(np.eye(2), bad, [-1, 0])
    with pytest.raises(DegenerateInputError, match="activations must be finite"):
        absorption_of(bad, np.ones((2, 2)), [-1, 0])


def test_feature_absorption__refuses_children_that_are_never_there():
    with pytest.raises(DegenerateInputError, match="a child must be present with its parent"):
        absorption_of(np.eye(2), np.eye(2), [-1, 0])


@pytest.mark.parametrize("option", [{"min_correlation": 1.0}, {"level": 0.0}, {"n_null": 0}, {"null_samples": 1}])
def test_feature_absorption__refuses_impossible_options(option):
    with pytest.raises(ConfigurationError, match="must be"):
        FeatureAbsorptionConfig(**option)
