import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from jaxtyping import TypeCheckError
from scipy.special import zeta

from mechint_core.errors import ConfigurationError, DegenerateInputError, DtypeError, ShapeError
from mechint_core.fractals import DetrendedFluctuationAnalysis, HurstExponent, HurstExponentConfig, hurst_exponent
from mechint_core.fractals._rescaled_range import expected_rescaled_range, rescaled_ranges
from mechint_core.fractals._whittle import SpectralModel, expected_periodogram, periodogram
from mechint_core.parallel import Backend, compute
from mechint_core.random import generator
from mechint_core.synthetic.fractional_noise import (
    fractional_autocovariance,
    fractional_brownian_motion,
    fractional_gaussian_noise,
)

METHODS = ("whittle", "local_whittle", "dfa", "rescaled_range")


# Known answer
@pytest.mark.parametrize("hurst", [0.1, 0.3, 0.5, 0.7, 0.9])
@pytest.mark.parametrize("method", METHODS[:3])
def test_hurst_exponent__of_fractional_gaussian_noise_is_h(method, hurst):
    """Bias at most 0.02, over 128 exact series of 4096 (standard error of the mean: 0.001 to 0.004)."""
    x = fractional_gaussian_noise(4096, hurst, n_series=128, seed=1)

    assert HurstExponent(method=method)(x).mean() == pytest.approx(hurst, abs=0.02)


@pytest.mark.parametrize("hurst", [0.1, 0.5, 0.9])
def test_hurst_exponent__whittle_is_efficient(hurst):
    """No bias beyond 4 standard errors, and a spread below sqrt(6 / pi^2 N) = 0.0122: the whole spectrum is used."""
    found = HurstExponent()(fractional_gaussian_noise(4096, hurst, n_series=256, seed=2))

    assert found.mean() == pytest.approx(hurst, abs=4 * found.std() / 16)
    assert found.std() <= 0.0122


@pytest.mark.parametrize("hurst", [0.2, 0.8])
@pytest.mark.parametrize("method", METHODS[:3])
def test_hurst_exponent__of_fractional_brownian_motion_as_a_walk_is_h(method, hurst):
    x = fractional_brownian_motion(4097, hurst, n_series=64, seed=3)

    assert HurstExponent(method=method, model="walk")(x).mean() == pytest.approx(hurst, abs=0.02)


def test_hurst_exponent__of_white_noise_equals_its_null():
    result = hurst_exponent(fractional_gaussian_noise(2048, 0.5, n_series=32, seed=4))

    assert result.mean_hurst.null == pytest.approx(0.5, abs=0.01)
    assert result.mean_hurst.low < 0.5 < result.mean_hurst.high
    assert result.mean_hurst.p_value > 0.05
    assert result.methods_agree
    assert result.median_misfit < 2
    assert "not distinguishable from no memory" in result.reading()


@pytest.mark.parametrize(("hurst", "words"), [(0.2, "high follows low"), (0.8, "like follows like")])
def test_hurst_exponent__reading_names_the_kind_of_memory(hurst, words):
    result = hurst_exponent(fractional_gaussian_noise(1024, hurst, n_series=8, seed=5))

    assert words in result.reading()
    assert result.mean_hurst.p_value == pytest.approx(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("hurst", [0.2, 0.8])
@pytest.mark.parametrize("method", METHODS[:3])
def test_hurst_exponent__interval_covers_the_truth(method, hurst):
    """40 layers of 4 units each: at 92 % coverage, fewer than 32 hits have a chance of 1 %."""
    layers = fractional_gaussian_noise(1024, hurst, n_series=160, seed=6).reshape(1024, 40, 4)
    config = HurstExponentConfig(method=method, n_surrogates=0)

    found = [hurst_exponent(layers[:, i], config=config).mean_hurst for i in range(40)]

    assert sum(h.low <= hurst <= h.high for h in found) >= 32


def test_hurst_exponent__interval_knows_that_units_share_their_noise():
    """32 copies of one unit know no more than one of them."""
    one = fractional_gaussian_noise(1024, 0.7, seed=7)
    config = HurstExponentConfig(n_surrogates=0, n_bootstrap=1000)

    alone, copies = (hurst_exponent(x, config=config).mean_hurst for x in (one, np.tile(one, 32)))

    assert copies.high - copies.low == pytest.approx(alone.high - alone.low, rel=1e-6)


def test_hurst_exponent__says_when_one_number_does_not_fit():
    """A first-order autoregression: short memory, which at short scales looks long."""
    noise = generator(8, "series").standard_normal((4096, 8))
    x = np.zeros_like(noise)
    for t in range(1, 4096):
        x[t] = 0.8 * x[t - 1] + noise[t]

    result = hurst_exponent(x)

    assert result.median_misfit > 10
    assert not result.methods_agree
    assert result.by_method[1].mean() == pytest.approx(0.55, abs=0.1)  # long scales: no memory
    assert "methods differ" in result.reading()
    assert "not that of fractional noise" in result.reading()


def test_hurst_exponent__of_a_walk_taken_as_noise_is_at_the_bound():
    result = hurst_exponent(fractional_brownian_motion(1024, 0.7, n_series=4, seed=9))

    assert result.n_at_bound == 4
    assert "try the other model" in result.reading()


def test_hurst_exponent__of_constant_units_is_nan_with_a_flag():
    x = fractional_gaussian_noise(500, 0.5, n_series=3, seed=10)
    x[:, 0] = 0.1

    for method in METHODS:
        result = hurst_exponent(x, config=HurstExponentConfig(method=method, n_surrogates=9))

        assert np.isnan(result.hurst).tolist() == [True, False, False]
        assert (result.n_flat, result.n_nan, result.n_units) == (1, 0, 2)
        assert result.mean_hurst.value == pytest.approx(result.hurst[1:].mean())


def test_hurst_exponent__of_nothing_but_constants_has_no_value():
    result = hurst_exponent(np.full((200, 2), 0.1))

    assert np.isnan(result.mean_hurst.value)
    assert not result.methods_agree
    assert result.reading().startswith("No unit varies")


def test_hurst_exponent__omits_units_that_are_not_finite():
    x = fractional_gaussian_noise(500, 0.5, n_series=4, seed=11)
    x[499, 1], x[0, 2] = np.nan, np.inf
    config = HurstExponentConfig(nan_policy="omit")

    result = hurst_exponent(x, config=config)

    assert (result.n_nan, result.n_flat) == (2, 0)
    clean = hurst_exponent(x[:, [0, 3]], config=config)
    assert result.hurst[[0, 3]] == pytest.approx(clean.hurst, abs=1e-10)
    assert result.mean_hurst.parts() == pytest.approx(clean.mean_hurst.parts(), abs=1e-10)


# Oracle
@pytest.mark.parametrize("hurst", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("n_steps", [31, 32])
def test_expected_periodogram__equals_the_quadratic_form(n_steps, hurst):
    """E I_j = sum_st gamma(s - t) exp(2 pi i j (s - t) / n) / n, summed entry by entry."""
    s = np.arange(n_steps)
    lag = s[:, None] - s
    gamma = fractional_autocovariance(lag.ravel(), hurst).reshape(lag.shape)
    j = np.arange(1, (n_steps + 1) // 2)

    expected = [(gamma * np.exp(2j * np.pi * each * lag / n_steps)).sum().real / n_steps for each in j]

    assert expected_periodogram(n_steps, hurst) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("hurst", [0.3, 0.7])
def test_expected_periodogram__tends_to_the_aliased_power_law(hurst):
    """The spectral density is 2 C (1 - cos w) sum_k |w + 2 pi k|^(-2H - 1): two Hurwitz zeta functions.

    At frequencies 1/64 to 1/2 of 2^16 steps leakage is below a thousandth.
    """
    n = 2**16
    w = 2 * np.pi * np.arange(1, n // 2) / n
    s = 2 * hurst + 1
    density = (1 - np.cos(w)) * (zeta(s, w / (2 * np.pi)) + zeta(s, 1 - w / (2 * np.pi)))

    ratio = (expected_periodogram(n, hurst) / density)[n // 64 :]

    assert ratio / ratio.mean() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("local", [True, False])
def test_spectral_model__minimum_is_that_of_the_likelihood_itself(local):
    """Golden section on Q as it is written, without a table."""
    from scipy.optimize import minimize_scalar

    spectrum = periodogram(fractional_gaussian_noise(512, 0.65, n_series=5, seed=12))
    model = SpectralModel.power_law(512, 50) if local else SpectralModel.fractional_noise(512)

    found = model.fit(spectrum)

    for unit in range(5):
        power = spectrum[: model.n_frequencies, unit]

        def objective(hurst, power=power):
            j = np.arange(1, power.size + 1)
            f = (j / 512) ** (1 - 2 * hurst) if local else expected_periodogram(512, hurst)
            return np.log(np.mean(power / f)) + np.log(f).mean()

        best = minimize_scalar(objective, bounds=(0.05, 0.95), method="bounded", options={"xatol": 1e-9}).x
        assert found[unit] == pytest.approx(best, abs=3e-7)  # where Q is flat to rounding: 1e-16 / 2e-7 ** 2


def test_expected_rescaled_range__is_the_mean_over_white_noise():
    """20,000 windows of 16: standard error 0.0015 of the ratio; 4 of them allowed."""
    x = generator(13, "series").standard_normal((16 * 20_000, 1))

    measured = rescaled_ranges(x, np.array([16, 32])).measure()[:, 0] / np.sqrt([16, 32])

    assert measured == pytest.approx(1, abs=0.008)
    assert expected_rescaled_range(np.array([3]))[0] == pytest.approx(
        (np.sqrt(2) + np.sqrt(0.5)) * 2 / np.pi, rel=1e-12
    )


def test_rescaled_ranges__equal_their_definition(rng):
    x = rng.normal(size=(100, 3)) + 7
    scale = np.array([10, 33])

    measured = rescaled_ranges(x, scale).measure() / (np.sqrt(scale) / expected_rescaled_range(scale))[:, None]

    for i, n in enumerate(scale):
        windows = x[: 100 // n * n].reshape(-1, n, 3)
        walk = np.cumsum(windows - windows.mean(axis=1, keepdims=True), axis=1)
        spread = np.maximum(walk.max(axis=1), 0) - np.minimum(walk.min(axis=1), 0)
        assert measured[i] == pytest.approx((spread / windows.std(axis=1)).mean(axis=0), rel=1e-12)


def test_hurst_exponent__by_dfa_is_detrended_fluctuation_analysis(rng):
    x = rng.normal(size=(300, 5))

    assert HurstExponent(method="dfa")(x).tolist() == DetrendedFluctuationAnalysis()(x).tolist()


# Law
@settings(max_examples=30)
@given(seed=st.integers(0, 2**31), exponent=st.floats(-8, 8), shift=st.floats(-100, 100))
@pytest.mark.parametrize("method", METHODS)
def test_hurst_exponent__ignores_scale_and_shift(method, seed, exponent, shift):
    x = generator(seed, "series").normal(size=(160, 3))
    h = HurstExponent(method=method)

    assert h(10.0**exponent * x) == pytest.approx(h(x), abs=1e-9)
    assert h(x + shift) == pytest.approx(h(x), abs=1e-8)


@settings(max_examples=15)
@given(n_units=st.integers(1, 150), cut=st.floats(0, 1), length=st.integers(129, 200))
@pytest.mark.parametrize("method", METHODS)
def test_hurst_exponent__chunked_equals_whole(method, n_units, cut, length):
    x = generator(n_units, "series").normal(size=(length, n_units))
    middle = int(cut * n_units)
    h = HurstExponent(method=method)

    parts = [h(part) for part in (x[:, :middle], x[:, middle:]) if part.shape[1]]

    assert np.concatenate(parts) == pytest.approx(h(x), abs=1e-10)


def test_hurst_exponent__reversed_is_the_same(rng):
    x = rng.normal(size=(256, 20))

    assert HurstExponent()(x[::-1]) == pytest.approx(HurstExponent()(x), abs=1e-9)


def test_hurst_exponent__workers_change_nothing():
    x = fractional_gaussian_noise(20_000, 0.5, n_series=260, seed=14)  # two parallel tasks
    config = HurstExponentConfig(n_bootstrap=20, n_surrogates=2)

    with compute(Backend(threads=1)):
        one = hurst_exponent(x, config=config)
    with compute(Backend(threads=3)):
        three = hurst_exponent(x, config=config)

    assert one.scalars() == three.scalars()
    assert one.hurst.tolist() == three.hurst.tolist()


def test_hurst_exponent__same_seed_same_bits(rng):
    x = rng.normal(size=(300, 20))
    config = HurstExponentConfig(seed=3)

    once, again = (hurst_exponent(x, config=config).scalars() for _ in range(2))

    assert once == again


def test_hurst_exponent__class_takes_arrays_and_tensors_of_one_or_two_axes(rng):
    x = rng.normal(size=(200, 3)).astype(np.float32)
    h = HurstExponent()

    assert isinstance(h(x[:, 0]), float)
    assert h(torch.tensor(x, requires_grad=True)) == pytest.approx(h(x), abs=1e-12)


# Bad input
def test_hurst_exponent__raises_on_numbers_that_are_not_real():
    with pytest.raises(DtypeError, match=r"real numbers. Got bool"):
        HurstExponent()(np.ones(200, dtype=bool))


def test_hurst_exponent__raises_on_a_wrong_shape():
    with pytest.raises(ShapeError, match=r"Got shape \(200, 2, 2\)"):
        HurstExponent()(np.ones((200, 2, 2)))


def test_hurst_exponent__raises_on_a_short_series():
    with pytest.raises(ShapeError, match=r"at least 128 steps. Got 127"):
        hurst_exponent(np.ones((127, 2)))
    with pytest.raises(ShapeError, match=r"at least 128 steps. Got 127"):
        HurstExponent(model="walk")(np.ones((128, 2)))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_hurst_exponent__raises_on_a_value_that_is_not_finite(bad, rng):
    x = rng.normal(size=(200, 3))
    x[77, 1] = bad

    with pytest.raises(DegenerateInputError, match=r"in 1 of 3 units. Pass nan_policy='omit'"):
        hurst_exponent(x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "guess"}, "method"),
        ({"model": "both"}, "model"),
        ({"bandwidth": 0.9}, "bandwidth must be between 0.3 and 0.8"),
        ({"nan_policy": "drop"}, "nan_policy"),
        ({"n_surrogates": -1}, "must not be negative"),
    ],
)
def test_hurst_exponent__raises_on_an_impossible_option(options, message):
    with pytest.raises((ConfigurationError, TypeCheckError), match=message):  # a wrong word fails its type here
        HurstExponentConfig(**options)
