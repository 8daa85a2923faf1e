import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from jaxtyping import TypeCheckError

from mechint_core.errors import ConfigurationError, DegenerateInputError, DtypeError, ShapeError
from mechint_core.fractals import (
    DetrendedFluctuationAnalysis,
    DetrendedFluctuationAnalysisConfig,
    detrended_fluctuation_analysis,
)
from mechint_core.parallel import Backend, compute
from mechint_core.random import generator
from mechint_core.synthetic.fractional_noise import fractional_brownian_motion, fractional_gaussian_noise

QUICK = DetrendedFluctuationAnalysisConfig(n_bootstrap=0, n_surrogates=0)


def by_definition(x: np.ndarray, scales: tuple[int, ...], order: int) -> tuple[float, np.ndarray]:
    """Peng 1994: cut the walk, fit a polynomial to each window, take the root mean square of what is left."""
    walk = np.cumsum(x - x.mean())
    fluctuation = []
    for n in scales:
        windows = walk[: len(walk) // n * n].reshape(-1, n)
        trends = [np.polyval(np.polyfit(np.arange(n), window, order), np.arange(n)) for window in windows]
        fluctuation.append(np.sqrt(np.mean((windows - trends) ** 2)))
    return float(np.polyfit(np.log(scales), np.log(fluctuation), 1)[0]), np.array(fluctuation)


# Known answer
@pytest.mark.parametrize("hurst", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_detrended_fluctuation_analysis__of_fractional_gaussian_noise_is_h(hurst):
    """Bias at most 0.02, over 128 exact series of 4096; the sampling error of that mean is below 0.005."""
    x = fractional_gaussian_noise(4096, hurst, n_series=128, seed=1)

    assert detrended_fluctuation_analysis(x, config=QUICK).mean_exponent.value == pytest.approx(hurst, abs=0.02)


@pytest.mark.parametrize("hurst", [0.3, 0.7])
def test_detrended_fluctuation_analysis__of_fractional_brownian_motion_is_h_plus_1(hurst):
    x = fractional_brownian_motion(4096, hurst, n_series=128, seed=2)

    found = detrended_fluctuation_analysis(x, config=QUICK).mean_exponent.value

    assert found == pytest.approx(hurst + 1, abs=0.03)  # order 1 bends where the walk's slope reaches 2


def test_detrended_fluctuation_analysis__of_a_straight_line_is_the_residual_of_a_parabola():
    """The walk t^2 / 2 less its line has mean square (n^2 - 1) (n^2 - 4) / 720, exactly, in every window."""
    x = 3 * np.arange(2048.0)[:, None]

    result = detrended_fluctuation_analysis(x)

    n = result.scale.astype(float)
    assert result.fluctuation == pytest.approx(3 * np.sqrt((n**2 - 1) * (n**2 - 4) / 720), rel=1e-7)
    assert result.exponent[0] == pytest.approx(2, abs=0.01)
    assert result.n_flat_windows == 0


def test_detrended_fluctuation_analysis__order_2_leaves_nothing_of_a_straight_line():
    x = np.arange(1024.0)[:, None]

    result = detrended_fluctuation_analysis(x, config=DetrendedFluctuationAnalysisConfig(order=2))

    assert np.isnan(result.exponent[0])
    assert result.n_flat == 1
    assert result.reading().startswith("No unit fluctuates")


def test_detrended_fluctuation_analysis__of_white_noise_equals_its_null():
    x = fractional_gaussian_noise(2048, 0.5, n_series=32, seed=3)

    result = detrended_fluctuation_analysis(x)

    assert result.mean_exponent.null == pytest.approx(0.5, abs=0.02)
    assert result.mean_exponent.low < 0.5 < result.mean_exponent.high
    assert result.mean_exponent.p_value > 0.05
    assert "not distinguishable from no memory" in result.reading()


@pytest.mark.parametrize(
    ("hurst", "words"), [(0.1, "high follows low"), (0.9, "like follows like"), (1.5, "drifts like a sum")]
)
def test_detrended_fluctuation_analysis__reading_names_the_kind_of_memory(hurst, words):
    make = fractional_gaussian_noise if hurst < 1 else fractional_brownian_motion
    x = make(2048, hurst % 1, n_series=16, seed=4)

    assert words in detrended_fluctuation_analysis(x).reading()


@pytest.mark.parametrize("hurst", [0.3, 0.7])
def test_detrended_fluctuation_analysis__interval_covers_the_truth(hurst):
    """40 layers of 4 units each: at 92 % coverage, fewer than 32 hits have a chance of 1 %."""
    layers = fractional_gaussian_noise(2048, hurst, n_series=160, seed=5).reshape(2048, 40, 4)
    config = DetrendedFluctuationAnalysisConfig(n_surrogates=0)

    found = [detrended_fluctuation_analysis(layers[:, i], config=config).mean_exponent for i in range(40)]

    assert sum(a.low <= hurst <= a.high for a in found) >= 32


def test_detrended_fluctuation_analysis__counts_flat_windows():
    """A unit silent for the first half: windows of 16 in it are flat, and its exponent is still finite."""
    x = fractional_gaussian_noise(1024, 0.5, n_series=1, seed=6)
    x[:512] = 0.1
    config = DetrendedFluctuationAnalysisConfig(scales=(16, 32, 64), n_bootstrap=0, n_surrogates=0)

    result = detrended_fluctuation_analysis(x, config=config)

    assert result.n_flat_windows == 512 // 16 + 512 // 32 + 512 // 64
    assert np.isfinite(result.exponent[0])


def test_detrended_fluctuation_analysis__of_constant_units_is_nan_with_a_flag():
    x = fractional_gaussian_noise(500, 0.5, n_series=3, seed=7)
    x[:, 0] = 0.1  # the mean of 500 times 0.1 is not 0.1, in floating point

    result = detrended_fluctuation_analysis(x)

    assert np.isnan(result.exponent).tolist() == [True, False, False]
    assert (result.n_flat, result.n_nan, result.n_units) == (1, 0, 2)
    assert result.mean_exponent.value == pytest.approx(result.exponent[1:].mean())


def test_detrended_fluctuation_analysis__omits_units_that_are_not_finite():
    x = fractional_gaussian_noise(500, 0.5, n_series=4, seed=8)
    x[499, 1], x[0, 2] = np.nan, np.inf
    config = DetrendedFluctuationAnalysisConfig(nan_policy="omit")

    result = detrended_fluctuation_analysis(x, config=config)

    assert result.n_nan == 2
    clean = detrended_fluctuation_analysis(x[:, [0, 3]], config=config)
    assert result.exponent[[0, 3]] == pytest.approx(clean.exponent, abs=1e-12)
    assert result.mean_exponent.parts() == pytest.approx(clean.mean_exponent.parts(), abs=1e-12)


def test_detrended_fluctuation_analysis__says_when_fluctuations_follow_no_power_law():
    x = np.sin(2 * np.pi * np.arange(2048) / 16)[:, None]  # bounded beyond its period

    assert "do not follow one power law" in detrended_fluctuation_analysis(x).reading()


# Oracle
@pytest.mark.parametrize("order", [1, 2, 3])
def test_detrended_fluctuation_analysis__equals_its_definition(order, rng):
    x = rng.normal(size=(300, 3)) + 5
    scales = (8, 11, 20, 33, 70)
    config = DetrendedFluctuationAnalysisConfig(scales=scales, order=order, n_bootstrap=0, n_surrogates=0)

    result = detrended_fluctuation_analysis(x, config=config)

    expected = [by_definition(unit, scales, order) for unit in x.T]
    assert result.exponent == pytest.approx([alpha for alpha, _ in expected], rel=1e-10)
    typical = np.exp(np.mean([np.log(fluctuation) for _, fluctuation in expected], axis=0))
    assert result.fluctuation == pytest.approx(typical, rel=1e-10)


@pytest.mark.oracle
@pytest.mark.parametrize("hurst", [0.2, 0.8])
def test_detrended_fluctuation_analysis__equals_antropy_on_its_windows(hurst):
    import antropy

    x = fractional_gaussian_noise(2048, hurst, n_series=10, seed=9)
    scales = tuple(sorted({int(4 * 1.2**i) for i in range(30) if 4 * 1.2**i <= 204.8}))

    expected = [antropy.detrended_fluctuation(np.ascontiguousarray(unit)) for unit in x.T]

    assert DetrendedFluctuationAnalysis(scales=scales)(x) == pytest.approx(expected, abs=1e-10)


# Law
@given(seed=st.integers(0, 2**31), exponent=st.floats(-8, 8), shift=st.floats(-100, 100))
def test_detrended_fluctuation_analysis__ignores_scale_and_shift(seed, exponent, shift):
    """1e-9: a shift of 100 leaves 14 digits of the values; scaling alone keeps them all."""
    x = generator(seed, "series").normal(size=(160, 3))
    a = DetrendedFluctuationAnalysis()

    assert a(10.0**exponent * x) == pytest.approx(a(x), abs=1e-11)
    assert a(x + shift) == pytest.approx(a(x), abs=1e-9)


@settings(max_examples=20)
@given(n_units=st.integers(1, 150), cut=st.floats(0, 1), length=st.integers(128, 200))
def test_detrended_fluctuation_analysis__chunked_equals_whole(n_units, cut, length):
    x = generator(n_units, "series").normal(size=(length, n_units))
    middle = int(cut * n_units)
    a = DetrendedFluctuationAnalysis()

    parts = [a(part) for part in (x[:, :middle], x[:, middle:]) if part.shape[1]]

    assert np.concatenate(parts) == pytest.approx(a(x), abs=1e-12)


def test_detrended_fluctuation_analysis__tile_equals_loop(rng):
    x = rng.normal(size=(150, 70))
    a = DetrendedFluctuationAnalysis()

    assert a(x) == pytest.approx([a(unit) for unit in x.T], abs=1e-12)


def test_detrended_fluctuation_analysis__workers_change_nothing():
    x = fractional_gaussian_noise(20_000, 0.5, n_series=400, seed=10)  # two parallel tasks
    config = DetrendedFluctuationAnalysisConfig(n_bootstrap=20, n_surrogates=4)

    with compute(Backend(threads=1)):
        one = detrended_fluctuation_analysis(x, config=config)
    with compute(Backend(threads=3)):
        three = detrended_fluctuation_analysis(x, config=config)

    assert one.mean_exponent == three.mean_exponent
    assert one.exponent.tolist() == three.exponent.tolist()


def test_detrended_fluctuation_analysis__of_float32_is_that_of_the_same_numbers_in_float64(rng):
    x = rng.normal(size=(500, 40)).astype(np.float32)
    a = DetrendedFluctuationAnalysis()

    assert a(x).tolist() == a(x.astype(np.float64)).tolist()


def test_detrended_fluctuation_analysis__same_seed_same_bits(rng):
    x = rng.normal(size=(300, 20))
    config = DetrendedFluctuationAnalysisConfig(seed=3)

    once, again = (detrended_fluctuation_analysis(x, config=config).scalars() for _ in range(2))

    assert once == again


def test_detrended_fluctuation_analysis__class_takes_arrays_and_tensors_of_one_or_two_axes(rng):
    x = rng.normal(size=(200, 3))
    a = DetrendedFluctuationAnalysis()
    expected = detrended_fluctuation_analysis(x, config=QUICK).exponent

    assert isinstance(a(x[:, 0]), float)
    assert a(torch.tensor(x, requires_grad=True)).tolist() == expected.tolist()
    assert a(torch.tensor(x[:, 0])) == pytest.approx(expected[0], abs=1e-12)


def test_detrended_fluctuation_analysis__windows_span_16_to_a_quarter_by_default():
    windows = DetrendedFluctuationAnalysisConfig().windows(4096)

    assert (windows[0], windows[-1], windows.size) == (16, 1024, 20)
    assert (np.diff(windows) > 0).all()


# Bad input
def test_detrended_fluctuation_analysis__raises_on_numbers_that_are_not_real():
    with pytest.raises(DtypeError, match=r"real numbers. Got bool"):
        DetrendedFluctuationAnalysis()(np.ones(200, dtype=bool))


def test_detrended_fluctuation_analysis__raises_on_a_wrong_shape():
    with pytest.raises(ShapeError, match=r"Got shape \(200, 2, 2\)"):
        DetrendedFluctuationAnalysis()(np.ones((200, 2, 2)))


def test_detrended_fluctuation_analysis__raises_on_a_short_series():
    with pytest.raises(ShapeError, match=r"at least 128 steps. Got 127"):
        detrended_fluctuation_analysis(np.ones((127, 2)))
    with pytest.raises(ShapeError, match=r"at least 140 steps. Got 139"):
        DetrendedFluctuationAnalysis(scales=(16, 32, 70))(np.ones(139))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("where", [0, 77, 199])
def test_detrended_fluctuation_analysis__raises_on_a_value_that_is_not_finite(bad, where, rng):
    x = rng.normal(size=(200, 3))
    x[where, 1] = bad

    with pytest.raises(DegenerateInputError, match=r"in 1 of 3 units. Pass nan_policy='omit'"):
        detrended_fluctuation_analysis(x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": 0}, "order must be between 1 and 5"),
        ({"min_scale": 3}, "min_scale must be at least order"),
        ({"max_scale": 20}, "max_scale must be 0 or at least 2 min_scale"),
        ({"n_scales": 2}, "n_scales must be at least 3"),
        ({"scales": (16, 32)}, "at least 3 increasing window lengths"),
        ({"scales": (16, 64, 32)}, "at least 3 increasing window lengths"),
        ({"scales": (2, 32, 64)}, "the first >= order"),
        ({"nan_policy": "drop"}, "nan_policy"),
        ({"n_surrogates": -1}, "must not be negative"),
    ],
)
def test_detrended_fluctuation_analysis__raises_on_an_impossible_option(options, message):
    with pytest.raises((ConfigurationError, TypeCheckError), match=message):  # a wrong word fails its type here
        DetrendedFluctuationAnalysisConfig(**options)
