import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from mechint_core.errors import ConfigurationError, DegenerateInputError, ShapeError
from mechint_core.features import MatchFeaturesConfig, match_features
from mechint_core.features.dictionary_stability import DictionaryStabilityConfig, dictionary_stability
from mechint_core.random import generator

QUICK = DictionaryStabilityConfig(n_bootstrap=20, n_null=3)


def directions(n, d, seed=0):
    return generator(seed, "directions").standard_normal((n, d))


# Known answer
def test_dictionary_stability__permuted_copies_are_stable(rng):
    rows = directions(40, 16)

    result = dictionary_stability([rows, -rows[rng.permutation(40)], 3 * rows[rng.permutation(40)]])

    assert result.stable.value == 1
    assert result.mcc.value == pytest.approx(1, abs=1e-12)
    np.testing.assert_allclose(result.pair_mcc, 1, rtol=1e-12)
    assert result.stable.p_value == 0.05  # 1 / (1 + 19)
    assert "100%" in result.reading()


def test_dictionary_stability__random_directions_are_near_their_null():
    """50 independent directions: the null is drawn the same way, with an sd of a mean of about 0.005."""
    result = dictionary_stability([directions(50, 16, seed) for seed in (1, 2, 3)])

    assert result.mcc.value == pytest.approx(result.mcc.null, abs=0.03)
    assert result.stable.value < 0.1
    assert "no more than random" in result.reading()


def test_dictionary_stability__counts_what_every_seed_found():
    """16 orthogonal features; the dictionaries hold 0-9, 0-7 and 0-5 with 10-11, so that 0-5 are in all three."""
    axes = np.eye(16)
    held = [list(range(10)), list(range(8)), [*range(6), 10, 11]]

    result = dictionary_stability([axes[rows] for rows in held], config=QUICK)

    assert result.stable.value == pytest.approx((6 + 6 + 6) / (10 + 8 + 8))
    assert result.pair_mcc[0, 1] == pytest.approx((8 + 8) / (10 + 8))
    assert result.pair_mcc[1, 2] == pytest.approx((6 + 6) / (8 + 8))
    assert result.least_cosine[:6].tolist() == [1] * 6
    assert result.least_cosine[6:10].tolist() == [0] * 4


# Oracle
def test_dictionary_stability__of_two_is_match_features(rng):
    a, b = directions(30, 8, 1), directions(30, 8, 2)

    result = dictionary_stability([a, b], config=QUICK)
    found = match_features(a, b, config=MatchFeaturesConfig(n_bootstrap=20, n_null=3))

    assert result.mcc.value == pytest.approx(found.mcc.value, rel=1e-12)
    np.testing.assert_allclose(result.least_cosine[30:], found.partner_cosine, rtol=1e-12)


# Law
@settings(max_examples=20)
@given(st.lists(st.integers(1, 12), min_size=2, max_size=4), st.integers(2, 8), st.integers(0, 20))
def test_dictionary_stability__ignores_order_and_sign(sizes, d, seed):
    rng = generator(seed, "law")
    decoders = [directions(n, d, seed + index) for index, n in enumerate(sizes)]
    moved = [-0.1 * each[rng.permutation(len(each))] for each in decoders[::-1]]

    plain, other = dictionary_stability(decoders, config=QUICK), dictionary_stability(moved, config=QUICK)

    assert other.stable.value == pytest.approx(plain.stable.value)
    assert other.mcc.value == pytest.approx(plain.mcc.value)
    np.testing.assert_allclose(other.pair_mcc[::-1, ::-1], plain.pair_mcc)
    assert 0 <= plain.stable.low <= plain.stable.value <= plain.stable.high <= 1


# Bad input
@pytest.mark.parametrize("shapes", [[(3, 2)], [(3, 2), (0, 2)], [(3, 2), (3, 4)]])
def test_dictionary_stability__refuses_dictionaries_that_do_not_compare(shapes):
    with pytest.raises((ShapeError, TypeError), match="decoders"):  # unequal units fail their type here
        dictionary_stability([np.ones(shape) for shape in shapes])


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_dictionary_stability__refuses_rows_without_direction(value):
    with pytest.raises(DegenerateInputError, match="rows of decoder 1 must be finite and not zero"):
        dictionary_stability([np.ones((2, 3)), np.full((2, 3), value)])


@pytest.mark.parametrize("option", [{"n_null": 0}, {"null_latents": 0}, {"level": 1.0}, {"stable_above": 0.0}])
def test_dictionary_stability__refuses_impossible_options(option):
    with pytest.raises(ConfigurationError, match="must be"):
        DictionaryStabilityConfig(**option)
