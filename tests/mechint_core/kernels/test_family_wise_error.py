import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from mechint_core.errors import DegenerateInputError, ShapeError
from mechint_core.kernels.family_wise_error import holm, max_statistic
from mechint_core.random import generator

p_values = st.lists(st.floats(1e-6, 1), min_size=1, max_size=12).map(np.array)


# Known answer
def test_holm__of_five_tests():
    assert holm(np.array([0.01, 0.02, 0.03, 0.04, 0.05])) == pytest.approx([0.05, 0.08, 0.09, 0.09, 0.09])


def test_max_statistic__of_one_test_is_its_p_value():
    assert max_statistic(np.array([2.0]), np.array([[1.0], [3.0], [2.0]])) == pytest.approx([3 / 4])


def test_max_statistic__of_tests_that_are_one_does_not_adjust(rng):
    null = np.repeat(rng.normal(size=(99, 1)), 5, axis=1)

    assert max_statistic(np.full(5, 1.5), null) == pytest.approx((1 + np.sum(null[:, 0] >= 1.5)) / 100)


# Oracle
@pytest.mark.oracle
@given(p=p_values)
def test_holm__equals_statsmodels(p):
    from statsmodels.stats.multitest import multipletests

    assert holm(p) == pytest.approx(multipletests(p, method="holm")[1], abs=1e-12)


# Law
@given(p=p_values)
def test_holm__lies_between_the_p_value_and_bonferroni(p):
    adjusted = holm(p)

    assert np.all(adjusted >= p)
    assert np.all(adjusted <= np.minimum(1, p * len(p)) + 1e-15)
    assert np.all(np.diff(adjusted[np.argsort(p)]) >= 0)


def test_max_statistic__controls_the_family_wise_error(rng):
    """400 families of 6 correlated tests without effect: 5 ± 3.3 % (three standard errors) hold a discovery."""
    mix = generator(1, "mix").normal(size=(6, 6))
    found = [max_statistic(mix @ rng.normal(size=6), rng.normal(size=(199, 6)) @ mix.T).min() for _ in range(400)]

    assert np.mean(np.array(found) <= 0.05) == pytest.approx(0.05, abs=0.033)


@given(seed=st.integers(0, 2**31), n_tests=st.integers(1, 6))
def test_max_statistic__is_never_below_the_p_value_and_never_zero(seed, n_tests):
    rng = generator(seed, "max")
    observed, null = rng.normal(size=n_tests) + 1, rng.normal(size=(19, n_tests))
    adjusted = max_statistic(observed, null)

    assert np.all(adjusted >= (1 + np.sum(null >= observed, axis=0)) / 20)
    assert adjusted.min() >= 1 / 20


def test_adjusted__leaves_out_what_was_not_tested():
    assert np.isnan(holm(np.array([0.1, np.nan]))[1])
    assert np.isnan(max_statistic(np.array([1.0, np.nan]), np.zeros((3, 2)))[1])
    assert np.isnan(max_statistic(np.array([1.0]), np.empty((0, 1)))).all()


# Bad input
def test_holm__raises_on_what_is_no_p_value():
    with pytest.raises(DegenerateInputError, match=r"must be in \[0, 1\]"):
        holm(np.array([0.5, 1.5]))


def test_max_statistic__raises_on_draws_of_other_tests(rng):
    import jaxtyping

    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        with pytest.raises(ShapeError, match="null must be"):
            max_statistic(np.zeros(2), np.zeros((5, 3)))
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
