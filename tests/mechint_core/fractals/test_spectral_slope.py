import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from jaxtyping import TypeCheckError

from mechint_core.errors import ConfigurationError, DegenerateInputError, DtypeError, ShapeError
from mechint_core.fractals import SpectralSlope, SpectralSlopeConfig, spectral_slope
from mechint_core.fractals._log_spectrum import power_spectrum
from mechint_core.parallel import Backend, compute
from mechint_core.random import generator
from mechint_core.synthetic.fractional_noise import coloured_noise, fractional_brownian_motion

VARIANTS = ({}, {"n_tapers": 5}, {"without_peaks": True})


def oscillation(n_steps: int, n_series: int, *, frequency: float, seed: int) -> np.ndarray:
    """A second-order autoregression that rings at one frequency, for some 100 steps, with variance 1."""
    noise = generator(seed, "oscillation").standard_normal((n_steps, n_series))
    x = np.zeros_like(noise)
    for t in range(2, n_steps):
        x[t] = 2 * 0.99 * np.cos(2 * np.pi * frequency) * x[t - 1] - 0.99**2 * x[t - 2] + noise[t]
    return x / x.std()


# Known answer
@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 1.5, 2.0])
@pytest.mark.parametrize("options", VARIANTS)
def test_spectral_slope__of_coloured_noise_is_its_exponent(options, exponent):
    """128 exact series, standard error of the mean 0.0027: unbiased within 4 of them."""
    x = coloured_noise(4096, exponent, n_series=128, seed=1)

    found = SpectralSlope(**options)(x)

    assert found.mean() == pytest.approx(exponent, abs=0.011)
    assert found.std() <= 0.034


def test_power_spectrum__of_a_ramp_is_a_cosecant_squared():
    """|sum t w^t|^2 / n = n / (4 sin^2(pi j / n)), up to the factor that makes the ramp -1 ... 1."""
    power = power_spectrum(np.arange(1000.0)[:, None], 0)[:, 0]

    expected = 1000 / (4 * np.sin(np.pi * np.arange(1, 500) / 1000) ** 2) / 499.5**2
    assert power == pytest.approx(expected, rel=1e-9)


def test_power_spectrum__over_tapers_has_the_mean_power_of_white_noise():
    x = generator(2, "series").standard_normal((512, 400))

    for n_tapers in (0, 1, 7):
        scaled = power_spectrum(x, n_tapers) * np.max(np.abs(x - x.mean(axis=0)), axis=0) ** 2
        assert scaled[10:].mean() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0])
def test_spectral_slope__leaves_an_oscillation_out(exponent):
    """As strong as half of the noise: it moves the plain slope by 0.1 to 0.5, and the robust one by 0.05 at most."""
    x = coloured_noise(4096, exponent, n_series=64, seed=3) + 0.7 * oscillation(4096, 64, frequency=0.05, seed=3)

    plain, robust = (SpectralSlope(without_peaks=robust)(x).mean() for robust in (False, True))

    assert abs(plain - exponent) > 0.1
    assert robust == pytest.approx(exponent, abs=0.06)


def test_spectral_slope__finds_no_peaks_where_there_are_none():
    x = coloured_noise(4096, 1.0, n_series=64, seed=4)
    config = SpectralSlopeConfig(without_peaks=True, n_surrogates=0, n_bootstrap=0)

    assert spectral_slope(x, config=config).share_in_peaks < 0.002


def test_spectral_slope__tapers_see_what_leakage_hides():
    """Fractional Brownian motion of H = 0.8: beta = 2.6, of which a periodogram whose ends do not meet shows 2."""
    x = fractional_brownian_motion(4096, 0.8, n_series=64, seed=5)

    plain, tapered = (SpectralSlope(n_tapers=k, max_frequency=0.25)(x).mean() for k in (0, 5))

    assert plain == pytest.approx(2, abs=0.1)
    assert tapered == pytest.approx(2.6, abs=0.1)


def test_spectral_slope__of_white_noise_equals_its_null():
    result = spectral_slope(coloured_noise(2048, 0.0, n_series=32, seed=6))

    assert result.mean_exponent.null == pytest.approx(0, abs=0.02)
    assert result.mean_exponent.low < 0 < result.mean_exponent.high
    assert result.mean_exponent.p_value > 0.05
    assert "not distinguishable from a flat spectrum" in result.reading()


def test_spectral_slope__judges_the_line():
    """Pink noise is a line; white noise plus a random walk bends."""
    config = SpectralSlopeConfig()
    walk = coloured_noise(4096, 2.0, n_series=16, seed=7)

    pink = spectral_slope(coloured_noise(4096, 1.0, n_series=16, seed=7), config=config)
    bent = spectral_slope(walk + 0.2 * coloured_noise(4096, 0.0, n_series=16, seed=8), config=config)

    assert pink.median_misfit < 2
    assert pink.median_r_squared > 0.9
    assert "slow changes dominate" in pink.reading()
    assert bent.median_misfit > 10
    assert "not a line" in bent.reading()


@pytest.mark.slow
@pytest.mark.parametrize("options", VARIANTS)
def test_spectral_slope__interval_covers_the_truth(options):
    """60 layers of 4 units each: at 90 % coverage, fewer than 48 hits have a chance of 1 %."""
    layers = coloured_noise(1024, 1.0, n_series=240, seed=9).reshape(1024, 60, 4)
    config = SpectralSlopeConfig(n_surrogates=0, **options)

    found = [spectral_slope(layers[:, i], config=config).mean_exponent for i in range(60)]

    assert sum(b.low <= 1 <= b.high for b in found) >= 48


def test_spectral_slope__interval_knows_that_units_share_their_noise():
    one = coloured_noise(1024, 1.0, seed=10)
    config = SpectralSlopeConfig(n_surrogates=0)

    alone, copies = (spectral_slope(x, config=config).mean_exponent for x in (one, np.tile(one, 32)))

    assert copies.high - copies.low == pytest.approx(alone.high - alone.low, rel=1e-6)


@pytest.mark.parametrize("options", VARIANTS)
def test_spectral_slope__of_units_without_power_is_nan_with_a_flag(options):
    x = coloured_noise(512, 0.0, n_series=4, seed=11)
    x[:, 0] = 0.1
    if "n_tapers" not in options:
        x[:, 1] = np.tile([1.0, -1.0, 0.5, 0.2], 128)  # exactly periodic: nothing between its lines
    n_flat = 2 if "n_tapers" not in options else 1

    result = spectral_slope(x, config=SpectralSlopeConfig(n_surrogates=9, **options))

    assert np.isnan(result.exponent).tolist() == [True, n_flat == 2, False, False]
    assert (result.n_flat, result.n_nan, result.n_units) == (n_flat, 0, 4 - n_flat)
    assert result.mean_exponent.value == pytest.approx(result.exponent[n_flat:].mean())


def test_spectral_slope__of_nothing_but_constants_has_no_value():
    result = spectral_slope(np.full((200, 2), 0.1))

    assert np.isnan(result.mean_exponent.value)
    assert result.reading().startswith("No unit has power")


def test_spectral_slope__omits_units_that_are_not_finite():
    x = coloured_noise(500, 1.0, n_series=4, seed=12)
    x[499, 1], x[0, 2] = np.nan, np.inf
    config = SpectralSlopeConfig(nan_policy="omit")

    result = spectral_slope(x, config=config)

    assert (result.n_nan, result.n_flat) == (2, 0)
    clean = spectral_slope(x[:, [0, 3]], config=config)
    assert result.exponent[[0, 3]] == pytest.approx(clean.exponent, abs=1e-10)
    assert result.mean_exponent.parts() == pytest.approx(clean.mean_exponent.parts(), abs=1e-10)


# Oracle
def test_spectral_slope__equals_polyfit_on_scipy_periodogram(rng):
    from scipy.signal import periodogram

    x = rng.normal(size=(300, 3))
    frequency, power = periodogram(x, axis=0)
    inside = (frequency > 0.021) & (frequency < 0.299)

    expected = -np.polyfit(np.log(frequency[inside]), np.log(power[inside]), 1)[0]

    assert SpectralSlope(min_frequency=0.021, max_frequency=0.299)(x) == pytest.approx(expected, rel=1e-10)


# Law
@settings(max_examples=25)
@given(seed=st.integers(0, 2**31), exponent=st.floats(-8, 8), shift=st.floats(-100, 100))
@pytest.mark.parametrize("options", VARIANTS)
def test_spectral_slope__ignores_scale_and_shift(options, seed, exponent, shift):
    """A shift of 100 leaves 14 digits of the values; scaling alone keeps them all."""
    x = generator(seed, "series").normal(size=(160, 3))
    b = SpectralSlope(**options)

    assert b(10.0**exponent * x) == pytest.approx(b(x), abs=1e-9)
    assert b(x + shift) == pytest.approx(b(x), abs=1e-8)


@settings(max_examples=15)
@given(n_units=st.integers(1, 150), cut=st.floats(0, 1), length=st.integers(100, 200))
@pytest.mark.parametrize("options", VARIANTS)
def test_spectral_slope__chunked_equals_whole(options, n_units, cut, length):
    x = generator(n_units, "series").normal(size=(length, n_units))
    middle = int(cut * n_units)
    b = SpectralSlope(**options)

    parts = [b(part) for part in (x[:, :middle], x[:, middle:]) if part.shape[1]]

    assert np.concatenate(parts) == pytest.approx(b(x), abs=1e-10)


def test_spectral_slope__of_the_sum_over_time_is_2_more_at_low_frequencies():
    """Summing divides power by 4 sin^2(pi f), which is f^2 far below Nyquist; the series' ends must meet."""
    x = coloured_noise(4096, 0.5, n_series=8, seed=13)
    b = SpectralSlope(max_frequency=0.02)

    assert b(np.cumsum(x, axis=0)) == pytest.approx(b(x) + 2, abs=2e-3)


def test_spectral_slope__workers_change_nothing(rng):
    x = rng.normal(size=(20_000, 260))  # two parallel tasks
    config = SpectralSlopeConfig(n_bootstrap=20, n_surrogates=2)

    with compute(Backend(threads=1)):
        one = spectral_slope(x, config=config)
    with compute(Backend(threads=3)):
        three = spectral_slope(x, config=config)

    assert one.scalars() == three.scalars()


def test_spectral_slope__same_seed_same_bits(rng):
    x = rng.normal(size=(300, 20))
    config = SpectralSlopeConfig(seed=3, without_peaks=True)

    once, again = (spectral_slope(x, config=config).scalars() for _ in range(2))

    assert once == again


def test_spectral_slope__class_takes_arrays_and_tensors_of_one_or_two_axes(rng):
    x = rng.normal(size=(200, 3)).astype(np.float32)
    b = SpectralSlope()

    assert isinstance(b(x[:, 0]), float)
    assert b(torch.tensor(x, requires_grad=True)) == pytest.approx(b(x), abs=1e-12)


# Bad input
def test_spectral_slope__raises_on_numbers_that_are_not_real():
    with pytest.raises(DtypeError, match=r"real numbers. Got bool"):
        SpectralSlope()(np.ones(200, dtype=bool))


def test_spectral_slope__raises_on_a_wrong_shape():
    with pytest.raises(ShapeError, match=r"Got shape \(200, 2, 2\)"):
        SpectralSlope()(np.ones((200, 2, 2)))


def test_spectral_slope__raises_on_too_few_frequencies():
    with pytest.raises(ShapeError, match=r"at least 16 Fourier frequencies in the fit range. Got 15 for 32 steps"):
        spectral_slope(np.ones((32, 2)))
    with pytest.raises(ShapeError, match=r"Got 5 for 100 steps"):
        spectral_slope(np.ones((100, 2)), config=SpectralSlopeConfig(max_frequency=0.05))
    with pytest.raises(ShapeError, match=r"at least 40 Fourier frequencies"):
        spectral_slope(np.ones((90, 2)), config=SpectralSlopeConfig(n_tapers=10))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_spectral_slope__raises_on_a_value_that_is_not_finite(bad, rng):
    x = rng.normal(size=(200, 3))
    x[77, 1] = bad

    with pytest.raises(DegenerateInputError, match=r"in 1 of 3 units. Pass nan_policy='omit'"):
        spectral_slope(x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_frequency": 0.3, "max_frequency": 0.2}, "0 <= min_frequency < max_frequency"),
        ({"max_frequency": 0.6}, "0 <= min_frequency < max_frequency"),
        ({"n_tapers": -1}, "n_tapers must be between 0 and 50"),
        ({"nan_policy": "drop"}, "nan_policy"),
        ({"n_bootstrap": -1}, "must not be negative"),
    ],
)
def test_spectral_slope__raises_on_an_impossible_option(options, message):
    with pytest.raises((ConfigurationError, TypeCheckError), match=message):  # a wrong word fails its type here
        SpectralSlopeConfig(**options)
