import numpy as np
import pytest
from hypothesis import given, strategies as st
from scipy.stats import binomtest

from mechint_core.kernels.proportions import wilson_interval


# Known answer
def test_wilson_interval__is_not_empty_at_the_ends():
    """At 0 of n the upper bound is z^2 / (n + z^2); of nothing, nothing is known."""
    assert wilson_interval(0.0, 10)[1] == pytest.approx(3.841459 / 13.841459, abs=1e-7)
    assert wilson_interval(1.0, 10)[0] == pytest.approx(10 / 13.841459, abs=1e-7)
    assert np.isnan(wilson_interval(np.array([0.5]), np.array([0]))[0]).all()


# Oracle
@given(st.integers(0, 30), st.integers(0, 30), st.floats(0.5, 0.999))
def test_wilson_interval__equals_scipy(hits, misses, level):
    n = hits + misses
    if n:
        wanted = binomtest(hits, n).proportion_ci(level, method="wilson")
        assert wilson_interval(hits / n, n, level) == pytest.approx((wanted.low, wanted.high), abs=1e-12)


# Law
@given(st.lists(st.floats(0, 1), min_size=1, max_size=5), st.integers(1, 10**6))
def test_wilson_interval__holds_the_share(shares, n):
    share = np.array(shares)
    low, high = wilson_interval(share, np.full(len(share), n))

    assert ((low >= 0) & (low <= share + 1e-12) & (share <= high + 1e-12) & (high <= 1)).all()
