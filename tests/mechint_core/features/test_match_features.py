from itertools import permutations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from scipy.stats import ortho_group

from mechint_core.errors import ConfigurationError, DegenerateInputError, ShapeError
from mechint_core.features import MatchFeaturesConfig, _pairing, match_features
from mechint_core.random import generator

QUICK = MatchFeaturesConfig(n_bootstrap=20, n_null=3)


def directions(n, d, seed=0):
    return generator(seed, "directions").standard_normal((n, d))


# Known answer
def test_match_features__identical_and_permuted_dictionaries_match_perfectly(rng):
    b = directions(40, 16)
    order = rng.permutation(40)

    same, permuted = match_features(b, b), match_features(b[order], b)

    for result in (same, permuted):
        assert result.mcc.value == pytest.approx(1, abs=1e-12)
        assert result.mmcs.value == pytest.approx(1, abs=1e-12)
        assert result.recovered.value == 1
        assert result.mcc.p_value == 0.05  # 1 / (1 + 19)
    np.testing.assert_array_equal(order[permuted.partner], np.arange(40))


def test_match_features__random_directions_are_near_their_null():
    """60 independent directions: the null is drawn the same way, with an sd of a mean of about 0.005."""
    result = match_features(directions(60, 16, seed=1), directions(60, 16, seed=2))

    assert result.mcc.value == pytest.approx(result.mcc.null, abs=0.03)
    assert result.mmcs.value == pytest.approx(result.mmcs.null, abs=0.03)
    assert "no more than chance" in result.reading()


def test_match_features__pairs_one_to_one_where_the_best_is_shared():
    """Both b are nearest to a_0; only one may have it."""
    a = np.array([[1.0, 0.0], [0.0, 1.0]])
    b = np.array([[1.0, 0.0], [0.8, 0.6]])

    result = match_features(a, b, config=QUICK)

    assert result.mmcs.value == pytest.approx((1 + 0.8) / 2)
    assert result.mcc.value == pytest.approx((1 + 0.6) / 2)
    assert result.partner.tolist() == [0, 1]
    assert result.recovered.value == 0.5


def test_match_features__more_features_than_latents_leaves_some_without_partner():
    b = np.eye(4)

    result = match_features(b[:3], b, config=QUICK)

    assert (result.n_unmatched, result.partner[3], result.partner_cosine[3]) == (1, -1, 0)
    assert result.mcc.value == pytest.approx(0.75)


# Oracle
@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 50))
def test_match_features__equals_trying_every_pairing(n, d, seed):
    a, b = directions(n, d, seed), directions(n, d, seed + 1000)
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (a, b)]
    cosine = np.abs(unit[1] @ unit[0].T)
    oracle = max(np.mean([cosine[j, i] for j, i in enumerate(order)]) for order in permutations(range(n)))

    assert match_features(a, b, config=QUICK).mcc.value == pytest.approx(oracle, rel=1e-12)


@pytest.mark.parametrize("noise", [0.0, 0.5, np.inf])
def test_match_features__pairs_among_candidates_as_well_as_among_all(rng, monkeypatch, noise):
    """300 rows in 24 units, alike or independent: 32 candidates lose no more than 1e-3 of the mean cosine."""
    b = directions(300, 24)
    a = directions(300, 24, seed=1) if np.isinf(noise) else b[rng.permutation(300)] + noise * directions(300, 24, 1)

    exact = match_features(a, b, config=QUICK)
    monkeypatch.setattr(_pairing, "EXACT", 10)
    monkeypatch.setattr(_pairing, "BLOCK_VALUES", 10_000)
    bounded = match_features(a, b, config=QUICK)

    assert bounded.mcc.value <= exact.mcc.value + 1e-6
    assert bounded.mcc.value == pytest.approx(exact.mcc.value, abs=1e-3)
    assert bounded.mmcs.value == pytest.approx(exact.mmcs.value, abs=1e-6)
    assert len(np.unique(bounded.partner[bounded.partner >= 0])) == np.sum(bounded.partner >= 0)


# Law
@settings(max_examples=30)
@given(st.integers(2, 12), st.integers(2, 12), st.integers(2, 8), st.floats(0.01, 100), st.integers(0, 20))
def test_match_features__ignores_sign_length_order_and_rotation(n, m, d, scale, seed):
    a, b, rng = directions(n, d, seed), directions(m, d, seed + 1000), generator(seed, "law")
    rotation = ortho_group.rvs(d, random_state=rng)

    plain = match_features(a, b, config=QUICK)
    moved = match_features(-scale * a[rng.permutation(n)] @ rotation, b @ rotation, config=QUICK)

    assert moved.mcc.value == pytest.approx(plain.mcc.value, rel=1e-9)
    assert moved.mmcs.value == pytest.approx(plain.mmcs.value, rel=1e-9)
    assert 0 <= plain.mcc.value <= plain.mmcs.value <= 1


# Bad input
def test_match_features__refuses_an_empty_dictionary():
    with pytest.raises(ShapeError, match="a and b must be"):
        match_features(np.ones((0, 2)), np.ones((3, 2)))


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_match_features__refuses_rows_without_direction(value):
    with pytest.raises(DegenerateInputError, match="rows of a must be finite and not zero"):
        match_features(np.full((2, 3), value), np.ones((2, 3)))


@pytest.mark.parametrize("option", [{"n_null": 0}, {"null_features": 0}, {"level": 1.0}, {"recovered_above": 0.0}])
def test_match_features__refuses_impossible_options(option):
    with pytest.raises(ConfigurationError, match="must be"):
        MatchFeaturesConfig(**option)
