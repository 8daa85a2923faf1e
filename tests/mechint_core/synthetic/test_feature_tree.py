import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from mechint_core.errors import ConfigurationError
from mechint_core.synthetic.feature_tree import feature_tree


# Known answer
@pytest.mark.parametrize("exclusive", [True, False])
def test_feature_tree__each_level_fires_with_the_product_of_its_chances(exclusive):
    """50,000 samples of at least 4 features of each level: sd of a level's share below 0.5 % of it, times 3."""
    planted = feature_tree(50_000, n_roots=4, n_children=(4, 2), p_root=0.3, p_child=0.25, exclusive=exclusive)

    fires = planted.codes > 0
    for level, chance in enumerate((0.3, 0.3 * 0.25, 0.3 * 0.25**2)):
        assert fires[:, planted.level == level].mean() == pytest.approx(chance, rel=0.03)
    assert planted.l0 == pytest.approx(fires.sum(axis=1).mean())


def test_feature_tree__is_laid_out_level_by_level():
    planted = feature_tree(10, n_roots=2, n_children=(2, 1))

    assert planted.parent.tolist() == [-1, -1, 0, 0, 1, 1, 2, 3, 4, 5]
    assert planted.level.tolist() == [0, 0, 1, 1, 1, 1, 2, 2, 2, 2]


def test_feature_tree__independent_siblings_fire_together_as_often_as_their_parent_lets_them():
    """P(both | parent) = 0.3^2 = 0.09; about 25,000 samples have the parent: sd 0.002."""
    fires = feature_tree(50_000, n_roots=1, n_children=(2,), p_root=0.5, p_child=0.3, exclusive=False).codes > 0

    assert np.mean(fires[fires[:, 0], 1] & fires[fires[:, 0], 2]) == pytest.approx(0.09, abs=0.006)


@pytest.mark.parametrize(("strength", "mean", "sd"), [("half_normal", 0.7979, 0.6028), ("near_one", 1.0, 0.1)])
def test_feature_tree__strengths_have_their_law(strength, mean, sd):
    """Half-normal: sqrt(2 / pi) and sqrt(1 - 2 / pi). Over 90,000 draws: sd of the mean below 0.002."""
    planted = feature_tree(40_000, strength=strength)

    active = planted.codes[planted.codes > 0]
    assert (active.mean(), active.std()) == pytest.approx((mean, sd), abs=0.008)


def test_feature_tree__noise_has_the_asked_size():
    planted = feature_tree(5000, noise=0.25)

    assert (planted.activations - planted.codes @ planted.dictionary).std() == pytest.approx(0.25, rel=0.01)


def test_feature_tree__orthogonal_directions_give_the_codes_back():
    planted = feature_tree(200, n_units=64, orthogonal=True)

    np.testing.assert_allclose(planted.activations @ planted.dictionary.T, planted.codes, atol=1e-5)


# Law
@settings(max_examples=30)
@given(
    st.integers(1, 40),
    st.integers(1, 4),
    st.lists(st.integers(1, 3), max_size=3).map(tuple),
    st.booleans(),
    st.integers(0, 9),
)
def test_feature_tree__a_child_never_fires_without_its_parent(n, n_roots, n_children, exclusive, seed):
    shape = {"n_units": 8, "n_roots": n_roots, "n_children": n_children, "exclusive": exclusive, "seed": seed}
    planted, again = (feature_tree(n, p_root=0.7, p_child=1 / 3, **shape) for _ in range(2))

    fires, below = planted.codes > 0, planted.parent >= 0
    assert (fires[:, planted.parent[below]] | ~fires[:, below]).all()
    np.testing.assert_array_equal(planted.level[below], planted.level[planted.parent[below]] + 1)
    if exclusive:
        for one in range(len(planted.parent)):
            assert (fires[:, planted.parent == one].sum(axis=1) <= 1).all()
    np.testing.assert_allclose(planted.activations, planted.codes @ planted.dictionary, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(planted.dictionary, axis=1), 1, rtol=1e-6)
    np.testing.assert_array_equal(planted.activations, again.activations)


def test_feature_tree__exclusive_children_of_full_chance_leave_no_parent_alone():
    fires = feature_tree(2000, n_roots=2, n_children=(4,), p_child=0.25).codes > 0

    np.testing.assert_array_equal(fires[:, 2:6].any(axis=1), fires[:, 0])


def test_feature_tree__more_samples_keep_the_dictionary():
    np.testing.assert_array_equal(feature_tree(10).dictionary, feature_tree(20).dictionary)


# Bad input
@pytest.mark.parametrize("size", [{"n_units": 0}, {"n_roots": 0}, {"n_children": (2, 0)}])
def test_feature_tree__refuses_sizes_below_one(size):
    with pytest.raises(ConfigurationError, match="sizes must be at least 1"):
        feature_tree(10, **size)


@pytest.mark.parametrize(
    "option", [{"p_root": 0.0}, {"p_root": 1.0}, {"p_child": 0.26}, {"p_child": 0.0}, {"noise": -1.0}]
)
def test_feature_tree__refuses_impossible_chances(option):
    with pytest.raises(ConfigurationError, match=r"p_child in \(0, 0.25\]"):
        feature_tree(10, **option)


def test_feature_tree__refuses_more_orthogonal_features_than_units():
    with pytest.raises(ConfigurationError, match="at most the 39 units"):
        feature_tree(10, n_units=39, orthogonal=True)
