import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from mechint_core.errors import ConfigurationError
from mechint_core.synthetic.fractional_noise import (
    coloured_noise,
    fractional_autocovariance,
    fractional_brownian_motion,
    fractional_gaussian_noise,
)


# Known answer
def test_fractional_autocovariance__is_exact_at_half_and_at_the_ends():
    lag = np.arange(4)

    assert fractional_autocovariance(lag, 0.5).tolist() == [1, 0, 0, 0]  # white
    assert fractional_autocovariance(lag, 1.0).tolist() == [1, 1, 1, 1]  # one step repeated
    assert fractional_autocovariance(lag, 0.25)[1] == pytest.approx(2**-0.5 - 1, rel=1e-15)


@pytest.mark.parametrize("hurst", [0.05, 0.3, 0.5, 0.7, 0.95])
def test_fractional_gaussian_noise__has_its_autocovariance(hurst):
    """Averaged over 20,000 series at fixed times: 5 standard errors, each at most sqrt(2 / 20,000) = 0.01."""
    x = fractional_gaussian_noise(64, hurst, n_series=20_000, seed=1)

    sample = x @ x[20] / x.shape[1]

    assert sample == pytest.approx(fractional_autocovariance(np.arange(64) - 20, hurst), abs=0.05)
    assert x.mean(axis=1) == pytest.approx(0, abs=0.05)


@pytest.mark.parametrize("hurst", [0.2, 0.5, 0.8])
def test_fractional_brownian_motion__variance_grows_as_t_to_2h(hurst):
    """Relative standard error of a variance over 20,000 series: 0.01; 5 of them allowed."""
    b = fractional_brownian_motion(100, hurst, n_series=20_000, seed=2)

    assert b.var(axis=1) == pytest.approx(np.arange(1, 101.0) ** (2 * hurst), rel=0.05)


@pytest.mark.parametrize("exponent", [-1.0, 0.0, 1.0, 2.0])
@pytest.mark.parametrize("length", [255, 256])
def test_coloured_noise__has_power_1_over_f_to_the_exponent(exponent, length):
    """Relative standard error of a power over 4000 series: at most 0.022; 5 of them allowed."""
    x = coloured_noise(length, exponent, n_series=4000, seed=3)

    power = np.mean(np.abs(np.fft.rfft(x, axis=0)) ** 2, axis=1)[1:]
    expected = np.arange(1, power.size + 1.0) ** -exponent

    assert power / power.mean() == pytest.approx(expected / expected.mean(), rel=0.12)
    assert np.mean(x**2) == pytest.approx(1, abs=0.05)


# Oracle
def test_fractional_gaussian_noise__is_the_covariance_matrix_of_numpy():
    """The circle that is transformed holds the Toeplitz matrix, whose eigenvalues numpy finds non-negative."""
    lag = np.arange(50)
    matrix = fractional_autocovariance(np.subtract.outer(lag, lag).ravel(), 0.8).reshape(50, 50)
    x = fractional_gaussian_noise(50, 0.8, n_series=20_000, seed=4)

    assert np.linalg.eigvalsh(matrix).min() > 0
    assert np.cov(x) == pytest.approx(matrix, abs=0.06)


# Law
@given(n_steps=st.integers(1, 40), hurst=st.floats(0.01, 0.99), n_series=st.integers(1, 3))
def test_fractional_gaussian_noise__is_finite_of_the_shape_asked_for(n_steps, hurst, n_series):
    x = fractional_gaussian_noise(n_steps, hurst, n_series=n_series)

    assert x.shape == (n_steps, n_series)
    assert np.isfinite(x).all()


@settings(max_examples=20)
@given(seed=st.integers(0, 2**40))
def test_fractional_noise__same_seed_same_bits(seed):
    for make in (fractional_gaussian_noise, fractional_brownian_motion, coloured_noise):
        once, again, other = (make(16, 0.4, seed=s) for s in (seed, seed, seed + 1))
        assert once.tolist() == again.tolist()
        assert once.tolist() != other.tolist()


@given(n_steps=st.integers(2, 40), exponent=st.floats(-2, 3))
def test_coloured_noise__has_mean_0(n_steps, exponent):
    assert coloured_noise(n_steps, exponent).mean() == pytest.approx(0, abs=1e-12)


# Bad input
@pytest.mark.parametrize("hurst", [0.0, 1.0, -0.2, float("nan")])
def test_fractional_gaussian_noise__raises_on_an_impossible_hurst_exponent(hurst):
    with pytest.raises(ConfigurationError, match=r"hurst must lie in \(0, 1\). Got"):
        fractional_gaussian_noise(10, hurst)


@pytest.mark.parametrize("make", [fractional_gaussian_noise, fractional_brownian_motion, coloured_noise])
def test_fractional_noise__raises_on_a_length_below_1(make):
    with pytest.raises(ConfigurationError, match=r"at least 1. Got 0 and 1"):
        make(0, 0.5)
    with pytest.raises(ConfigurationError, match=r"at least 1. Got 5 and 0"):
        make(5, 0.5, n_series=0)
