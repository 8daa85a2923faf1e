import itertools

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from scipy import stats
from scipy.spatial.distance import pdist

from mechint_core.alignment import PermutationTestConfig, permutation_test
from mechint_core.alignment._conditions import agreement
from mechint_core.alignment._distances import square_form
from mechint_core.errors import ConfigurationError, DegenerateInputError, ShapeError
from mechint_core.parallel import Backend, compute
from mechint_core.random import generator

COMPARISONS = ("pearson", "cosine", "spearman", "rho-a", "tau-a", "whitened cosine", "whitened correlation", "bures")
comparisons = pytest.mark.parametrize("comparison", COMPARISONS)


def pair(n, seed=0, shared=0.0):
    rng = generator(seed, "pair")
    x, y = rng.normal(size=(2, n, 4))
    return pdist(x, "sqeuclidean"), pdist(shared * x + (1 - shared) * y, "sqeuclidean")


def mantel(first, second, **options):
    options = {"n_permutations": 199, "n_bootstrap": 20} | options
    return permutation_test(first, second, config=PermutationTestConfig(**options))


# Known answer
@comparisons
def test_permutation_test__of_a_copy_has_the_smallest_p_there_is(comparison):
    first, _ = pair(12)
    found = mantel(first, 2 * first, comparison=comparison)

    assert found.agreement.value == pytest.approx(1, abs=1e-7)
    assert found.agreement.p_value == 1 / 200
    assert not found.exact


def test_permutation_test__exact_null_of_four_conditions():
    """Of 24 orders, those 4 that keep the one far pair (0, 1) together leave the matrix as it is."""
    far = np.array([5.0, 1, 1, 1, 1, 1])
    found = mantel(far, far)

    assert found.exact
    assert found.n_relabellings == 23
    assert found.agreement.p_value == pytest.approx(4 / 24)


def test_permutation_test__mean_of_all_orders_of_pearson_is_its_closed_form():
    """Over all n! orders every pair takes every place equally often: the mean correlation is 0."""
    first, second = pair(6)
    found = mantel(first, second, n_permutations=1000)

    assert found.exact
    assert (found.null.sum() + found.agreement.value) / 720 == pytest.approx(0, abs=1e-12)


# Oracle
@comparisons
def test_permutation_test__equals_the_naive_loop_over_all_orders(comparison):
    first, second = pair(5, shared=0.5)
    upper = np.triu_indices(5, 1)
    expected = [
        agreement(first, square_form(second)[np.ix_(order, order)][upper], comparison)
        for order in itertools.permutations(range(5))
    ]
    value = expected[0]

    greater, less, both = (
        mantel(first, second, comparison=comparison, tail=tail).agreement.p_value
        for tail in ("greater", "less", "two-sided")
    )

    assert greater == pytest.approx(np.mean(np.array(expected) >= value - 1e-9))
    assert less == pytest.approx(np.mean(np.array(expected) <= value + 1e-9))
    assert both == pytest.approx(min(1, 2 * min(greater, less)))


def test_permutation_test__agrees_with_the_normal_approximation_of_its_moments():
    """10,000 relabellings of 40 conditions: the p-value is within 0.02 of that of a t on the null's moments."""
    first, second = pair(40, shared=0.2)
    found = mantel(first, second, n_permutations=10_000)
    z = (found.agreement.value - found.null.mean()) / found.null.std()

    assert found.agreement.p_value == pytest.approx(stats.norm.sf(z), abs=0.02)


# Law
@comparisons
def test_permutation_test__same_seed_gives_the_same_bits_for_any_worker_count(comparison):
    first, second = pair(15)
    found = []
    for threads in (1, 2, 5):
        with compute(Backend(threads=threads)):
            found.append(mantel(first, second, comparison=comparison).null)

    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])


@settings(max_examples=8)
@given(seed=st.integers(0, 2**31), n_permutations=st.integers(1, 300))
def test_permutation_test__p_is_never_zero(seed, n_permutations):
    first, second = pair(5, seed)
    for tail in ("greater", "less", "two-sided"):
        found = mantel(first, second, tail=tail, n_permutations=n_permutations)
        assert 1 / (1 + len(found.null)) - 1e-15 <= found.agreement.p_value <= 1


@settings(max_examples=5)
@given(seed=st.integers(0, 2**31))
def test_permutation_test__relabelling_both_alike_changes_nothing_in_the_exact_test(seed):
    first, second = pair(5, seed)
    order = generator(seed, "order").permutation(5)
    moved = [square_form(each)[np.ix_(order, order)][np.triu_indices(5, 1)] for each in (first, second)]

    assert mantel(*moved).agreement.p_value == mantel(first, second).agreement.p_value


def test_permutation_test__leaves_missing_pairs_out():
    first, second = pair(12, shared=0.7)
    whole = mantel(first, second)
    first[3], second[8] = np.nan, np.nan
    found = mantel(first, second)

    assert found.n_missing_pairs == 2
    assert found.agreement.value == pytest.approx(whole.agreement.value, abs=0.1)
    assert found.agreement.p_value <= 0.05


def test_permutation_test__reading_says_whether_they_agree():
    first, second = pair(12)

    assert "not distinguishable from random relabellings, 199 of them (p" in mantel(first, second).reading()
    assert "random relabellings, 199 of them, give" in mantel(first, first + 1).reading()
    assert "all other relabellings, 119 of them" in mantel(*pair(5)).reading()


@pytest.mark.calibration
@comparisons
@pytest.mark.parametrize("tail", ["greater", "two-sided"])
def test_permutation_test__p_values_are_uniform_under_the_null(comparison, tail):
    """500 unrelated pairs; the KS distance of 500 uniform draws passes 0.087 once in 1000."""
    p = [
        mantel(*pair(12, seed), comparison=comparison, tail=tail, n_bootstrap=0).agreement.p_value
        for seed in range(500)
    ]

    assert stats.kstest(p, "uniform").statistic < 0.087


# Bad input
def test_permutation_test__raises_on_different_pairs(without_shape_checks):
    with pytest.raises(ShapeError, match="same pairs"):
        permutation_test(np.arange(6.0), np.arange(10.0))


def test_permutation_test__raises_on_three_conditions():
    with pytest.raises(ShapeError, match=r"n >= 4 conditions\. Got 3"):
        permutation_test(np.arange(3.0), np.arange(3.0))


@pytest.mark.parametrize(("filling", "match"), [(1.0, "equally far apart"), (np.inf, "Got infinity")])
def test_permutation_test__raises_on_a_matrix_without_an_answer(filling, match):
    with pytest.raises(DegenerateInputError, match=match):
        permutation_test(np.arange(6.0), np.full(6, filling))


def test_permutation_test__raises_on_missing_pairs_for_bures():
    first, second = pair(5)
    first[2] = np.nan

    with pytest.raises(DegenerateInputError, match=r"for bures\. Got NaN"):
        mantel(first, second, comparison="bures")


@pytest.mark.parametrize(
    "options", [{"comparison": "kendall"}, {"tail": "left"}, {"n_permutations": 0}, {"level": 0}, {"n_bootstrap": -1}]
)
def test_permutation_test__raises_on_impossible_options(options, without_shape_checks):
    with pytest.raises(ConfigurationError, match="must be"):
        PermutationTestConfig(**options)
