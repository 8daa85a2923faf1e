import math

import hypothesis.extra.numpy as npst
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from scipy import stats

from mechint_core.errors import ShapeError
from mechint_core.kernels.resampling import (
    block_indices,
    bootstrap_rows,
    critical_value,
    estimate,
    p_value,
    percentile_interval,
)
from mechint_core.random import generator

draws = npst.arrays(np.float64, st.integers(1, 50), elements=st.floats(-100, 100))


# Known answer
def test_percentile_interval__holds_the_central_share():
    assert percentile_interval(np.arange(101.0), level=0.9) == pytest.approx((5, 95))


def test_percentile_interval__leaves_out_draws_that_are_not_finite():
    assert percentile_interval(np.array([np.nan, 1.0, 1.0, np.inf])) == (1.0, 1.0)
    assert all(map(math.isnan, percentile_interval(np.array([np.nan]))))


def test_p_value__counts_the_observed_among_its_null():
    null = np.arange(99.0)

    assert p_value(1000.0, null) == 1 / 100
    assert p_value(-1.0, null) == 1
    assert p_value(49.0, null) == 51 / 100  # ties count
    assert p_value(-1.0, null, "less") == 1 / 100
    assert p_value(1000.0, null, "two-sided") == 2 / 100
    assert p_value(49.0, null, "two-sided") == 1  # not 1.02


def test_critical_value__is_what_a_p_value_of_5_percent_must_exceed():
    null = generator(0, "null").permutation(99).astype(np.float64)

    assert critical_value(null) == 94
    assert p_value(94.1, null) <= 0.05 < p_value(94.0, null)
    assert critical_value(null[:18]) == critical_value(null[:0]) == np.inf


def test_critical_value__is_taken_of_each_column():
    null = generator(0, "null").standard_normal((39, 3))

    assert critical_value(null).tolist() == [float(critical_value(each)) for each in null.T]


def test_p_value__is_nan_without_a_null_or_an_observation():
    assert math.isnan(p_value(1.0, np.array([np.nan])))
    assert math.isnan(p_value(math.nan, np.arange(9.0)))


def test_estimate__binds_value_interval_and_null():
    found = estimate(3.0, bootstrap=np.arange(101.0), null=np.array([0.0, 1.0, 2.0, np.nan]), level=0.9)

    assert (found.value, found.low, found.high) == pytest.approx((3, 5, 95))
    assert (found.null, found.p_value, found.level) == (1.0, 1 / 4, 0.9)


def test_estimate__leaves_nan_where_there_are_no_draws():
    assert estimate(3.0).parts() == {"": 3.0}


def test_bootstrap_rows__of_a_mean_has_the_standard_error(rng):
    """Standard error sqrt(var / n) = 0.0998; 4000 draws know it to 1.1 %, and 5 % are allowed."""
    x = np.linspace(-1.72, 1.72, 100)

    drawn = bootstrap_rows(lambda rows: float(x[rows].mean()), 100, n_draws=4000, rng=rng)

    assert drawn.std() == pytest.approx(x.std() / 10, rel=0.05)


def test_block_indices__joins_runs_round_the_circle(rng):
    indices = block_indices(10, 4, n_draws=50, rng=rng)

    runs = [row[start : start + 4] for row in indices for start in (0, 4, 8)]
    assert all(((np.diff(run) % 10) == 1).all() for run in runs)
    assert any((np.diff(run) < 0).any() for run in runs)  # some run passes the end


def test_block_indices__of_one_step_is_the_plain_bootstrap(rng):
    """Each of 10 indices falls 20,000 times in 200,000; standard deviation 134, 5 of them allowed."""
    counts = np.bincount(block_indices(10, 1, n_draws=20_000, rng=rng).ravel())

    assert counts == pytest.approx(np.full(10, 20_000), abs=670)


def test_p_value__is_uniform_where_the_null_is_true(rng):
    """1000 p-values of 99 draws against the uniform distribution on 0.01 ... 1; rejected once in 1000 seeds."""
    p = np.array([p_value(x[0], x[1:]) for x in rng.normal(size=(1000, 100))])

    assert stats.kstest(p - 0.005, "uniform").pvalue > 0.001


# Oracle
def test_p_value__equals_scipys_permutation_test(rng):
    x, y = rng.normal(size=8), rng.normal(0.8, size=8)
    peer = stats.permutation_test(
        (x, y), lambda a, b: b.mean() - a.mean(), n_resamples=999, alternative="greater", rng=rng
    )

    ours = p_value(float(y.mean() - x.mean()), peer.null_distribution)

    assert ours == pytest.approx(peer.pvalue, rel=1e-12)


# Law
@given(observed=st.floats(-100, 100), null=draws, tail=st.sampled_from(["greater", "less", "two-sided"]))
def test_p_value__is_never_0_and_at_most_1(observed, null, tail):
    assert 1 / (1 + null.size) <= p_value(observed, null, tail) <= 1


@given(observed=st.floats(-100, 100), null=draws)
def test_p_value__of_the_other_tail_is_that_of_the_negative(observed, null):
    assert p_value(observed, null, "less") == p_value(-observed, -null, "greater")


@given(drawn=draws, narrow=st.floats(0.01, 0.99), wide=st.floats(0.01, 0.99))
def test_percentile_interval__grows_with_its_level(drawn, narrow, wide):
    """Up to rounding of the quantiles' interpolation, 1e-9 on numbers up to 100."""
    narrow, wide = sorted((narrow, wide))
    inner, outer = percentile_interval(drawn, narrow), percentile_interval(drawn, wide)

    assert outer[0] <= inner[0] + 1e-9
    assert inner[1] <= outer[1] + 1e-9
    assert drawn.min() - 1e-9 <= outer[0] <= outer[1] + 1e-9 <= drawn.max() + 2e-9


@given(length=st.integers(1, 30), seed=st.integers(0, 2**31), data=st.data())
def test_block_indices__stay_within_the_series(length, seed, data):
    block = data.draw(st.integers(1, length))

    once, again = (block_indices(length, block, n_draws=3, rng=generator(seed)) for _ in range(2))

    assert once.shape == (3, length)
    assert once.min() >= 0
    assert once.max() < length
    assert once.tolist() == again.tolist()


# Bad input
def test_bootstrap_rows__raises_on_one_sample(rng):
    with pytest.raises(ShapeError, match=r"at least 2 samples. Got 1"):
        bootstrap_rows(lambda rows: 0.0, 1, n_draws=3, rng=rng)


@pytest.mark.parametrize("block", [0, 6])
def test_block_indices__raises_on_a_block_that_does_not_fit(block, rng):
    with pytest.raises(ShapeError, match=f"between 1 and the series length 5. Got {block}"):
        block_indices(5, block, n_draws=1, rng=rng)
