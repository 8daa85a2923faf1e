import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from mechint_core.errors import ConfigurationError
from mechint_core.synthetic.cascades import binomial_cascade, binomial_cascade_exponents, multifractal_random_walk


# Known answer
def test_binomial_cascade__shares_are_products():
    assert binomial_cascade(2, 0.75)[:, 0].tolist() == [0.5625, 0.1875, 0.1875, 0.0625]


@pytest.mark.parametrize("randomly", [True, False])
@pytest.mark.parametrize("q", [-3.0, -1.0, 2.0, 5.0])
def test_binomial_cascade__moments_of_every_level_scale_exactly(randomly, q):
    """The mean of the q-th power of masses over n steps is n^(q h(q)) 2^(-L q h(q)), with no error at all."""
    mass = binomial_cascade(10, 0.7, randomly=randomly, seed=1)[:, 0]
    h = binomial_cascade_exponents(np.array([q]), 0.7)[0]

    moments = [np.mean(mass.reshape(-1, 2**k).sum(axis=1) ** q) for k in range(10)]

    assert np.diff(np.log2(moments)) == pytest.approx(q * h, rel=1e-9)


def test_binomial_cascade_exponents__are_those_of_the_literature():
    q = np.array([-3.0, -1, 1, 2, 3, 5])

    assert binomial_cascade_exponents(q, 0.75) == pytest.approx([1.684, 1.415, 1, 0.839, 0.731, 0.614], abs=5e-4)
    near = binomial_cascade_exponents(np.array([-1e-6, 0.0, 1e-6]), 0.75)
    assert near[1] == pytest.approx((near[0] + near[2]) / 2, abs=1e-6)


def test_multifractal_random_walk__volatility_has_its_covariance():
    """ln |x| is the volatility plus independent noise: its covariance at lags above 0 is that of the volatility.

    4000 series: standard error 0.02 of a covariance of variables with variance 1.6.
    """
    x = np.log(np.abs(multifractal_random_walk(64, 0.1, n_series=4000, seed=2)))
    centred = x - x.mean(axis=1, keepdims=True)

    found = [np.mean(centred[30] * centred[30 + lag]) for lag in (1, 3, 15)]

    assert found == pytest.approx([0.1 * np.log(64 / (1 + lag)) for lag in (1, 3, 15)], abs=0.1)


def test_multifractal_random_walk__has_unit_variance_and_no_correlation():
    x = multifractal_random_walk(256, 0.02, n_series=4000, seed=3)

    assert np.mean(x**2) == pytest.approx(1, abs=0.03)
    assert np.mean(x[1:] * x[:-1]) == pytest.approx(0, abs=0.01)


# Law
@settings(max_examples=20)
@given(levels=st.integers(1, 12), share=st.floats(0.5, 0.95), seed=st.integers(0, 1000))
def test_binomial_cascade__conserves_mass(levels, share, seed):
    mass = binomial_cascade(levels, share, randomly=True, n_series=3, seed=seed)

    assert mass.shape == (2**levels, 3)
    assert mass.sum(axis=0) == pytest.approx(1, rel=1e-12)
    assert np.sort(mass[:, 0]) == pytest.approx(np.sort(binomial_cascade(levels, share)[:, 0]), rel=1e-9)


def test_multifractal_random_walk__same_seed_same_bits():
    once, again = (multifractal_random_walk(50, 0.05, n_series=2, seed=4) for _ in range(2))

    assert once.tolist() == again.tolist()


# Bad input
@pytest.mark.parametrize("share", [0.4, 1.0])
def test_binomial_cascade__raises_on_an_impossible_share(share):
    with pytest.raises(ConfigurationError, match=r"share must lie in \[0.5, 1\)"):
        binomial_cascade(3, share)


def test_binomial_cascade__raises_on_too_many_levels():
    with pytest.raises(ConfigurationError, match="n_levels must be between 1 and 24"):
        binomial_cascade(25, 0.6)


def test_multifractal_random_walk__raises_on_impossible_numbers():
    with pytest.raises(ConfigurationError, match="intermittency must lie in"):
        multifractal_random_walk(10, 0.6)
    with pytest.raises(ConfigurationError, match="n_steps must be at least 2"):
        multifractal_random_walk(1, 0.1)
