"""What a sweep says about the price of sparsity."""

import numpy as np
import pytest
from hypothesis import given, strategies as st

from mechint_core.errors import DegenerateInputError, ShapeError
from mechint_core.features import SparsityFrontierConfig, sparsity_frontier
from mechint_core.random import generator


def sweep(exponent, n=12, noise=0.0, seed=0):
    l0 = np.geomspace(2, 128, n)
    fvu = 0.8 * l0**exponent * np.exp(noise * generator(seed, "noise").normal(size=n))
    return np.stack([l0, fvu, np.full(n, np.nan), np.full(n, 512.0)], axis=1)


# Known answer
@pytest.mark.parametrize("exponent", [-1.5, -0.5, 0.0])
def test_sparsity_frontier__finds_the_planted_exponent(exponent):
    assert sparsity_frontier(sweep(exponent)).doubling.value == pytest.approx(2**exponent)


def test_sparsity_frontier__interval_holds_the_truth_and_the_slope_is_not_chance():
    found = sparsity_frontier(sweep(-0.5, noise=0.1)).doubling

    assert found.low < 2**-0.5 < found.high
    assert found.p_value == pytest.approx(0.001)
    assert found.null == pytest.approx(1, abs=0.05)


def test_sparsity_frontier__marks_what_no_other_beats():
    measures = np.array([[8, 0.4], [8, 0.5], [16, 0.45], [32, 0.1], [32, 0.1]])
    measures = np.column_stack([measures, np.ones(5), np.full(5, 64)])

    assert sparsity_frontier(measures).on_frontier.tolist() == [True, False, False, True, True]


# Law
@given(st.permutations(range(6)))
def test_sparsity_frontier__does_not_depend_on_the_order(order):
    measures = sweep(-0.7, n=6, noise=0.2)

    mixed, plain = sparsity_frontier(measures[order]), sparsity_frontier(measures)

    assert mixed.doubling.value == pytest.approx(plain.doubling.value)
    np.testing.assert_array_equal(mixed.on_frontier, plain.on_frontier[order])


def test_sparsity_frontier__without_a_slope_is_seldom_significant():
    """Nominal 5 %: at most 12 of 100 random sweeps (binomial, p < 0.005)."""
    config = SparsityFrontierConfig(n_draws=99)
    p = [sparsity_frontier(sweep(0.0, noise=0.3, seed=seed), config=config).doubling.p_value for seed in range(100)]

    assert np.mean(np.array(p) <= 0.05) <= 0.12


def test_sparsity_frontier__is_undefined_at_one_sparsity():
    found = sparsity_frontier(np.array([[8, 0.4, 1, 64], [8, 0.3, 1, 64]]))

    assert np.isnan(found.doubling.value)
    assert "too much alike" in found.reading()


# Bad input
def test_sparsity_frontier__refuses_other_shapes():
    with pytest.raises(ShapeError, match="measures must be"):
        sparsity_frontier(np.ones((4, 3)))


def test_sparsity_frontier__refuses_a_dictionary_that_never_fires():
    with pytest.raises(DegenerateInputError, match="never fires"):
        sparsity_frontier(np.array([[0, 1.0, 1, 64], [8, 0.3, 1, 64]]))
