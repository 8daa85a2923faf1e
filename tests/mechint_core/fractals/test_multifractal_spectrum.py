import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from jaxtyping import TypeCheckError

from mechint_core.errors import ConfigurationError, DegenerateInputError, ShapeError
from mechint_core.fractals import (
    DetrendedFluctuationAnalysis,
    MultifractalSpectrumConfig,
    multifractal_spectrum,
)
from mechint_core.fractals._moments import singularity_spectrum
from mechint_core.fractals._wavelet_leaders import HIGH_PASS, LOW_PASS, wavelet_leaders
from mechint_core.kernels.surrogates import amplitude_adjusted
from mechint_core.parallel import Backend, compute
from mechint_core.random import generator
from mechint_core.synthetic.cascades import binomial_cascade, binomial_cascade_exponents, multifractal_random_walk
from mechint_core.synthetic.fractional_noise import fractional_gaussian_noise

METHODS = ("mfdfa", "wavelet_leaders")


def quick(method: str = "mfdfa", **options) -> MultifractalSpectrumConfig:
    return MultifractalSpectrumConfig(method=method, n_surrogates=0, **{"n_bootstrap": 0, **options})


# Known answer
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_multifractal_spectrum__of_the_binomial_cascade_is_its_formula(method, reverse):
    """Every h(q), q = -5 ... 5, within 0.04 of the exact one, and f(alpha) at most 1."""
    mass = binomial_cascade(14, 0.75)

    result = multifractal_spectrum(mass[::-1] if reverse else mass, config=quick(method))

    assert result.mean_exponent == pytest.approx(binomial_cascade_exponents(result.moment, 0.75), abs=0.04)
    assert result.spectrum.max() == pytest.approx(1, abs=1e-12)
    assert result.median_r_squared > 0.99


@pytest.mark.parametrize("method", METHODS)
def test_multifractal_spectrum__of_random_cascades_is_the_same_formula(method):
    mass = binomial_cascade(13, 0.7, randomly=True, n_series=32, seed=1)

    result = multifractal_spectrum(mass, config=quick(method))

    assert result.mean_exponent == pytest.approx(binomial_cascade_exponents(result.moment, 0.7), abs=0.04)


@pytest.mark.parametrize("method", METHODS)
def test_multifractal_spectrum__of_the_multifractal_random_walk_is_a_line(method):
    """h(q) = 1/2 - l^2 (q - 2) / 2: within 0.04 between q = -3 and 3, beyond which moments are those of few windows."""
    x = multifractal_random_walk(2**14, 0.05, n_series=32, seed=2)
    q = (-3.0, -1.0, 0.0, 1.0, 2.0, 3.0)

    result = multifractal_spectrum(x, config=quick(method, moments=q))

    assert result.mean_exponent == pytest.approx(0.5 - 0.025 * (np.array(q) - 2), abs=0.04)


@pytest.mark.parametrize("hurst", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("method", METHODS)
def test_multifractal_spectrum__of_fractional_noise_has_one_exponent(method, hurst):
    """The width that 2^14 steps leave is below 0.05, as in the literature; h(2) is H within 0.04."""
    result = multifractal_spectrum(fractional_gaussian_noise(2**14, hurst, n_series=32, seed=3), config=quick(method))

    assert 0 < result.mean_width.value < 0.05
    assert result.mean_hurst.value == pytest.approx(hurst, abs=0.04)


@pytest.mark.parametrize("method", METHODS)
def test_multifractal_spectrum__is_told_from_its_surrogates(method):
    """A multifractal random walk is wider than series with its values and spectrum; linear noise is not."""
    walk = multifractal_random_walk(4096, 0.05, n_series=8, seed=4)
    noise = fractional_gaussian_noise(4096, 0.7, n_series=8, seed=4)
    config = MultifractalSpectrumConfig(method=method, n_bootstrap=50, n_surrogates=19)

    many, one = (multifractal_spectrum(x, config=config) for x in (walk, noise))

    assert many.mean_width.p_value == pytest.approx(0.05)
    assert many.mean_width.value > many.mean_width.null + 0.1
    assert one.mean_width.p_value > 0.05
    assert "one exponent may be enough" in one.reading()


def test_multifractal_spectrum__heavy_tails_are_told_from_cascades():
    """Independent Student t noise is wide; in random order it is as wide."""
    x = generator(5, "series").standard_t(2.5, (4096, 8))
    config = MultifractalSpectrumConfig(surrogate="shuffled", n_bootstrap=0, n_surrogates=39)

    result = multifractal_spectrum(x, config=config)

    assert result.mean_width.value > 0.1
    assert result.mean_width.p_value > 0.05


def test_multifractal_spectrum__interval_covers_the_exponent():
    x = fractional_gaussian_noise(4096, 0.6, n_series=8, seed=6)

    result = multifractal_spectrum(x, config=quick(n_bootstrap=200))

    assert result.mean_hurst.low < 0.6 < result.mean_hurst.high
    assert result.mean_width.low < result.mean_width.value < result.mean_width.high
    assert (result.exponent_low < result.mean_exponent).all()


@pytest.mark.parametrize("method", METHODS)
def test_multifractal_spectrum__one_flat_run_does_not_decide(method):
    """32 equal values among 16,384: unguarded, the width would grow by two orders of magnitude."""
    x = fractional_gaussian_noise(2**14, 0.5, n_series=4, seed=7)
    flat = x.copy()
    flat[4992:5024] = 0.3

    clean, guarded = (multifractal_spectrum(each, config=quick(method)) for each in (x, flat))

    assert guarded.width == pytest.approx(clean.width, abs=0.2)
    if method == "mfdfa":
        assert guarded.width == pytest.approx(clean.width, abs=0.05)
        assert guarded.n_flat_windows == 4 * 2 * 3  # both ends; two windows of 16 and one of 32
        assert "24 flat windows were left out" in guarded.reading()


@pytest.mark.parametrize("method", METHODS)
def test_multifractal_spectrum__of_constant_units_is_nan_with_a_flag(method):
    x = fractional_gaussian_noise(512, 0.5, n_series=3, seed=8)
    x[:, 0] = 0.1

    result = multifractal_spectrum(x, config=quick(method))

    assert np.isnan(result.width).tolist() == [True, False, False]
    assert (result.n_flat, result.n_nan, result.n_units) == (1, 0, 2)
    assert multifractal_spectrum(x[:, :1], config=quick(method)).reading().startswith("No unit varies")


def test_multifractal_spectrum__omits_units_that_are_not_finite():
    x = fractional_gaussian_noise(512, 0.5, n_series=3, seed=9)
    x[11, 1] = np.inf

    result = multifractal_spectrum(x, config=quick(nan_policy="omit"))

    assert (result.n_nan, result.n_flat, result.n_units) == (1, 0, 2)


# Oracle
def test_multifractal_spectrum__at_2_is_detrended_fluctuation_analysis_from_both_ends(rng):
    """Mean squares from both ends are the mean of the two mean squares."""
    x = rng.normal(size=(1024, 1))
    scales = (16, 32, 64, 128, 256)
    config = quick()

    fluctuation = []
    for n in scales:
        squares = []
        for way in (x[:, 0], x[::-1, 0]):
            windows = np.cumsum(way - way.mean()).reshape(-1, n)
            trends = [np.polyval(np.polyfit(np.arange(n), window, 1), np.arange(n)) for window in windows]
            squares.append(np.mean((windows - trends) ** 2))
        fluctuation.append(np.sqrt(np.mean(squares)))

    expected = np.polyfit(np.log(scales), np.log(fluctuation), 1)[0]
    assert multifractal_spectrum(x, config=config).exponent[7, 0] == pytest.approx(expected, rel=1e-9)
    assert DetrendedFluctuationAnalysis(scales=scales)(x[:, 0]) == pytest.approx(expected, abs=0.05)


@pytest.mark.oracle
def test_multifractal_spectrum__equals_mfdfa_on_its_windows():
    """MFDFA cuts windows from one end where the length is a multiple of them: average its two directions."""
    from MFDFA import MFDFA

    x = fractional_gaussian_noise(4096, 0.6, n_series=3, seed=10)
    q = np.array([-3.0, -1.0, 1.0, 2.0, 3.0])
    scale = 2 ** np.arange(4, 11)
    result = multifractal_spectrum(x, config=quick(moments=(-3.0, -1.0, 0.0, 1.0, 2.0, 3.0)))

    for unit in range(3):
        moments = []
        for way in (x[:, unit], x[::-1, unit]):
            _, fluctuation = MFDFA(way, lag=scale, q=q, order=1)
            moments.append(np.asarray(fluctuation, dtype=float) ** q)
        height = np.log(np.mean(moments, axis=0)) / q
        expected = np.polyfit(np.log(scale), height, 1)[0]
        assert result.exponent[[0, 1, 3, 4, 5], unit] == pytest.approx(expected, abs=1e-6)


def test_wavelet__is_daubechies_with_three_vanishing_moments():
    taps = np.arange(6)

    assert LOW_PASS.sum() == pytest.approx(np.sqrt(2), rel=1e-12)
    for shift in (0, 2, 4):
        assert LOW_PASS[shift:] @ LOW_PASS[: 6 - shift] == pytest.approx(float(shift == 0), abs=1e-12)
    for power in range(3):
        assert HIGH_PASS @ taps**power == pytest.approx(0, abs=1e-10)


def test_wavelet_leaders__are_the_largest_coefficients_nearby(rng):
    """Level by level from the definition, with whole turns of a circle of 2^n steps and no margin."""
    x = rng.normal(size=(256, 1))
    levels = np.array([1, 2, 3])
    walk = np.cumsum(x[:, 0] - x[:, 0].mean())
    detail = []
    for level in levels:
        n = len(walk)
        places = (2 * np.arange(n // 2)[:, None] + np.arange(6)) % n
        detail.append(np.abs(walk[places] @ HIGH_PASS) * 2.0 ** (-level / 2))
        walk = walk[places] @ LOW_PASS

    leaders = wavelet_leaders(x, levels)

    largest = None
    for found, own in zip(leaders, detail, strict=True):
        k = np.arange(len(own))
        if largest is not None:
            first = 2 * k + 2  # the two places of the finer scale in the middle of place k
            own = np.maximum(own, np.maximum(*(largest[(first + i) % len(largest)] for i in (0, 1))))
        largest = own
        expected = np.maximum(np.maximum(largest, np.roll(largest, 1)), np.roll(largest, -1))
        assert sorted(found[:, 0]) == pytest.approx(sorted(expected), rel=1e-9)


# Law
@settings(max_examples=15)
@given(seed=st.integers(0, 2**31), exponent=st.floats(-8, 8), shift=st.floats(-100, 100))
@pytest.mark.parametrize("method", METHODS)
def test_multifractal_spectrum__ignores_scale_and_shift(method, seed, exponent, shift):
    x = generator(seed, "series").normal(size=(256, 2))
    h = multifractal_spectrum(x, config=quick(method)).exponent

    assert multifractal_spectrum(10.0**exponent * x, config=quick(method)).exponent == pytest.approx(h, abs=1e-9)
    assert multifractal_spectrum(x + shift, config=quick(method)).exponent == pytest.approx(h, abs=1e-7)


@settings(max_examples=10)
@given(n_units=st.integers(1, 100), cut=st.floats(0, 1), length=st.integers(256, 300))
@pytest.mark.parametrize("method", METHODS)
def test_multifractal_spectrum__chunked_equals_whole(method, n_units, cut, length):
    x = generator(n_units, "series").normal(size=(length, n_units))
    middle = int(cut * n_units)

    parts = [multifractal_spectrum(part, config=quick(method)) for part in (x[:, :middle], x[:, middle:]) if part.size]

    whole = multifractal_spectrum(x, config=quick(method)).exponent
    assert np.concatenate([part.exponent for part in parts], axis=1) == pytest.approx(whole, abs=1e-10)


def test_multifractal_spectrum__reversed_is_the_same(rng):
    x = rng.normal(size=(300, 5))

    h, reverse = (multifractal_spectrum(each, config=quick()).exponent for each in (x, x[::-1].copy()))

    assert reverse == pytest.approx(h, abs=1e-9)


@given(width=st.floats(0, 1), hurst=st.floats(0.1, 0.9), noise=st.floats(0, 0.2), seed=st.integers(0, 1000))
def test_singularity_spectrum__is_at_most_1(width, hurst, noise, seed):
    q = np.arange(-5.0, 6.0)
    h = hurst - width * q / 10 + noise * generator(seed, "h").standard_normal(11)

    _, spectrum = singularity_spectrum(q, h)

    assert (spectrum <= 1 + 1e-12).all()


@given(seed=st.integers(0, 1000), length=st.integers(16, 200))
def test_amplitude_adjusted__keeps_the_values(seed, length):
    x = generator(seed, "series").standard_t(3, (length, 2))

    other = amplitude_adjusted(x, rng=generator(seed, "surrogate"), n_rounds=5)

    assert np.sort(other, axis=0).tolist() == np.sort(x, axis=0).tolist()


def test_amplitude_adjusted__keeps_the_spectrum_nearly():
    """Lognormal values with long memory: the amplitudes agree within 10 % of their norm after 20 rounds."""
    x = np.exp(fractional_gaussian_noise(2048, 0.8, n_series=2, seed=11) / 2)
    other = amplitude_adjusted(x, rng=generator(0, "surrogate"))

    wanted, found = (np.abs(np.fft.rfft(each, axis=0))[1:] for each in (x, other))
    assert np.linalg.norm(found - wanted) < 0.1 * np.linalg.norm(wanted)
    assert abs(np.corrcoef(x[:, 0], other[:, 0])[0, 1]) < 0.2


def test_multifractal_spectrum__workers_and_seeds():
    x = fractional_gaussian_noise(512, 0.5, n_series=20, seed=12)
    config = MultifractalSpectrumConfig(n_bootstrap=20, n_surrogates=4)

    with compute(Backend(threads=1)):
        one = multifractal_spectrum(x, config=config).scalars()
    with compute(Backend(threads=3)):
        three = multifractal_spectrum(x, config=config).scalars()

    assert one == three


# Bad input
def test_multifractal_spectrum__raises_on_a_short_series():
    with pytest.raises(ShapeError, match=r"3 window lengths from 16 on. Got 255 steps, which allow 2"):
        multifractal_spectrum(np.ones((255, 2)))


def test_multifractal_spectrum__raises_on_a_value_that_is_not_finite(rng):
    x = rng.normal(size=(300, 3))
    x[77, 1] = np.nan

    with pytest.raises(DegenerateInputError, match=r"in 1 of 3 units. Pass nan_policy='omit'"):
        multifractal_spectrum(x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "boxes"}, "method"),
        ({"moments": (0.0, 2.0)}, "moments must increase"),
        ({"moments": (3.0, 2.0, 0.0)}, "moments must increase"),
        ({"moments": (-20.0, 0.0, 2.0)}, "moments must lie between"),
        ({"min_scale": 12}, "min_scale must be 0 or a power of two"),
        ({"order": 6}, "order must be"),
        ({"min_scale": 4, "order": 2}, "order must be"),
        ({"surrogate": "none"}, "surrogate"),
        ({"nan_policy": "drop"}, "nan_policy"),
        ({"n_surrogates": -1}, "must not be negative"),
    ],
)
def test_multifractal_spectrum__raises_on_an_impossible_option(options, message):
    with pytest.raises((ConfigurationError, TypeCheckError), match=message):  # a wrong word fails its type here
        MultifractalSpectrumConfig(**options)
