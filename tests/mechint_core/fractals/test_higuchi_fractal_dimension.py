import sys

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from jaxtyping import TypeCheckError

from mechint_core.errors import ConfigurationError, DegenerateInputError, DtypeError, ShapeError
from mechint_core.fractals import (
    HiguchiFractalDimension,
    HiguchiFractalDimensionConfig,
    _detrended_windows as windows_module,
    higuchi_fractal_dimension,
)
from mechint_core.parallel import Backend, compute
from mechint_core.random import generator
from mechint_core.synthetic.fractional_noise import fractional_brownian_motion, fractional_gaussian_noise

higuchi_module = sys.modules[higuchi_fractal_dimension.__module__]  # the package's name of it is the function
QUICK = HiguchiFractalDimensionConfig(n_bootstrap=0, n_surrogates=0)


def by_definition(x: np.ndarray, kmax: int) -> float:
    """Higuchi 1988, equations 1 to 3, one sub-series at a time."""
    steps = np.arange(1, kmax + 1)
    lengths = []
    for k in steps:
        parts = [np.abs(np.diff(x[m::k])) for m in range(k)]
        lengths.append(np.mean([part.sum() * (len(x) - 1) / (len(part) * k) / k for part in parts]))
    return float(np.polyfit(np.log(1 / steps), np.log(lengths), 1)[0])


# Known answer
@pytest.mark.parametrize("hurst", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_higuchi_fractal_dimension__of_fractional_brownian_motion_is_2_minus_h(hurst):
    """Bias at most 0.02, over 64 exact series of 4096; the sampling error of that mean is below 0.004."""
    x = fractional_brownian_motion(4096, hurst, n_series=64, seed=1)

    assert higuchi_fractal_dimension(x, config=QUICK).mean_dimension.value == pytest.approx(2 - hurst, abs=0.02)


def test_higuchi_fractal_dimension__of_a_straight_line_is_1():
    """All lengths are (N - 1) / k exactly, so only rounding is left."""
    x = np.linspace(-3.0, 5.0, 200)[:, None]

    result = higuchi_fractal_dimension(x)

    assert result.dimension[0] == pytest.approx(1, abs=1e-12)
    assert result.r_squared[0] == pytest.approx(1, abs=1e-12)
    assert result.length == pytest.approx(8 / result.scale, rel=1e-12)


def test_higuchi_fractal_dimension__of_white_noise_is_2_and_equals_its_null():
    x = fractional_gaussian_noise(4096, 0.5, n_series=64, seed=2)

    result = higuchi_fractal_dimension(x)

    assert result.mean_dimension.value == pytest.approx(2, abs=0.01)  # 3 standard errors of the mean
    assert result.mean_dimension.null == pytest.approx(2, abs=0.01)
    assert result.mean_dimension.p_value > 0.05
    assert "not distinguishable from" in result.reading()


def test_higuchi_fractal_dimension__of_a_smooth_response_differs_from_its_null():
    x = np.sin(np.linspace(0, 12, 1000))[:, None]

    result = higuchi_fractal_dimension(x)

    assert result.dimension[0] == pytest.approx(1, abs=0.01)
    assert result.mean_dimension.p_value == pytest.approx(2 / 100)  # the smallest that 99 draws allow
    assert "smoother than the same values in random order" in result.reading()


@pytest.mark.parametrize("hurst", [0.3, 0.5, 0.7])
def test_higuchi_fractal_dimension__standard_error_is_the_spread_over_independent_series(hurst):
    """Their ratio is 0.87 to 0.99 here; 15 % is what 256 series and 32 pieces can resolve."""
    x = fractional_brownian_motion(4096, hurst, n_series=256, seed=3)

    result = higuchi_fractal_dimension(x, config=HiguchiFractalDimensionConfig(n_surrogates=0))

    assert result.standard_error.mean() == pytest.approx(result.dimension.std(), rel=0.15)


def test_higuchi_fractal_dimension__interval_covers_the_truth():
    """20 layers of 8 units each: at 95 % coverage, fewer than 16 hits have a chance of 0.3 %."""
    layers = fractional_brownian_motion(1024, 0.5, n_series=160, seed=4).reshape(1024, 20, 8)
    config = HiguchiFractalDimensionConfig(n_surrogates=0)

    found = [higuchi_fractal_dimension(layers[:, i], config=config).mean_dimension for i in range(20)]

    assert sum(d.low <= 1.5 <= d.high for d in found) >= 16


def test_higuchi_fractal_dimension__of_constant_and_repeating_units_is_nan_with_a_flag():
    x = fractional_brownian_motion(500, 0.5, n_series=3, seed=5)
    x[:, 0] = 0.1
    x[:, 1] = np.tile([1.0, -1.0], 250)  # length 0 at every even step

    result = higuchi_fractal_dimension(x)

    assert np.isnan(result.dimension).tolist() == [True, True, False]
    assert np.isnan(result.standard_error).tolist() == [True, True, False]
    assert (result.n_flat, result.n_nan, result.n_units) == (2, 0, 1)
    assert result.mean_dimension.value == result.dimension[2]
    assert result.reading().endswith("2 units were left out.")


def test_higuchi_fractal_dimension__of_constant_units_only_says_so():
    result = higuchi_fractal_dimension(np.full((100, 4), 0.1, dtype=np.float32))

    assert np.isnan(result.mean_dimension.value)
    assert result.n_flat == 4
    assert result.reading().startswith("No unit varies")


def test_higuchi_fractal_dimension__omits_units_that_are_not_finite():
    x = fractional_brownian_motion(500, 0.5, n_series=4, seed=6)
    x[499, 1], x[0, 2] = np.nan, np.inf
    config = HiguchiFractalDimensionConfig(nan_policy="omit")

    result = higuchi_fractal_dimension(x, config=config)
    clean = higuchi_fractal_dimension(x[:, [0, 3]], config=config)

    assert result.n_nan == 2
    assert result.dimension[[0, 3]] == pytest.approx(clean.dimension, abs=1e-12)
    assert result.mean_dimension.parts() == pytest.approx(clean.mean_dimension.parts(), abs=1e-12)


def test_higuchi_fractal_dimension__says_when_lengths_follow_no_power_law():
    x = np.sin(2 * np.pi * np.arange(600) / 7.5)[:, None]  # longest steps see whole periods

    assert "do not follow a power law" in higuchi_fractal_dimension(x).reading()


# Oracle
def test_higuchi_fractal_dimension__equals_its_definition(rng):
    x = rng.normal(size=(203, 5)).cumsum(axis=0)
    config = HiguchiFractalDimensionConfig(kmax=7, n_bootstrap=0, n_surrogates=0)

    expected = [by_definition(unit, 7) for unit in x.T]

    assert higuchi_fractal_dimension(x, config=config).dimension == pytest.approx(expected, rel=1e-12)


@pytest.mark.oracle
@pytest.mark.parametrize("kmax", [8, 10, 50])
def test_higuchi_fractal_dimension__equals_antropy(kmax):
    """Within 1e-10; the rest is the 1e-9 that antropy adds to the denominator of its regression."""
    import antropy

    x = fractional_brownian_motion(2048, 0.4, n_series=20, seed=7)

    expected = [antropy.higuchi_fd(np.ascontiguousarray(unit), kmax) for unit in x.T]

    assert HiguchiFractalDimension(kmax)(x) == pytest.approx(expected, abs=1e-10)


# Law
@given(seed=st.integers(0, 2**31), exponent=st.floats(-8, 8), shift=st.floats(-100, 100))
def test_higuchi_fractal_dimension__ignores_scale_and_shift(seed, exponent, shift):
    """1e-9: a shift of 100 leaves 14 digits of the differences; scaling alone keeps them all."""
    x = generator(seed, "series").normal(size=(120, 3))
    d = HiguchiFractalDimension(6)

    assert d(10.0**exponent * x) == pytest.approx(d(x), abs=1e-12)
    assert d(x + shift) == pytest.approx(d(x), abs=1e-9)


@settings(max_examples=20)
@given(n_units=st.integers(1, 300), cut=st.floats(0, 1), length=st.integers(40, 90))
def test_higuchi_fractal_dimension__chunked_equals_whole(n_units, cut, length):
    """A unit's sums never see another unit; the fit's matrix product may round by the number of units."""
    x = generator(n_units, "series").normal(size=(length, n_units))
    middle = int(cut * n_units)
    d = HiguchiFractalDimension()

    parts = [d(part) for part in (x[:, :middle], x[:, middle:]) if part.shape[1]]

    assert np.concatenate(parts) == pytest.approx(d(x), abs=1e-12)


def test_higuchi_fractal_dimension__tile_equals_loop(rng):
    x = rng.normal(size=(150, 131))
    d = HiguchiFractalDimension()

    assert d(x) == pytest.approx([d(unit) for unit in x.T], abs=1e-12)


def test_higuchi_fractal_dimension__workers_change_nothing():
    x = fractional_brownian_motion(20_000, 0.5, n_series=400, seed=8)  # two parallel tasks
    config = HiguchiFractalDimensionConfig(n_bootstrap=20, n_surrogates=8)

    with compute(Backend(threads=1)):
        one = higuchi_fractal_dimension(x, config=config)
    with compute(Backend(threads=3)):
        three = higuchi_fractal_dimension(x, config=config)

    assert one.mean_dimension == three.mean_dimension
    assert one.dimension.tolist() == three.dimension.tolist()


@pytest.mark.parametrize(
    "kernel", [higuchi_module._curve_lengths, windows_module._residual_energies], ids=lambda kernel: kernel.__name__
)
def test_kernels__give_the_interpreter_lock_back(kernel):
    """Read from the compiler's options: timing two threads tells nothing on a busy machine."""
    assert kernel.targetoptions["nogil"]


def test_higuchi_fractal_dimension__of_float32_is_that_of_the_same_numbers_in_float64(rng):
    x = rng.normal(size=(500, 40)).cumsum(axis=0).astype(np.float32)
    d = HiguchiFractalDimension()

    assert d(x).tolist() == d(x.astype(np.float64)).tolist()


def test_higuchi_fractal_dimension__same_seed_same_bits(rng):
    x = rng.normal(size=(300, 20))
    config = HiguchiFractalDimensionConfig(seed=3)

    once, again = (higuchi_fractal_dimension(x, config=config).scalars() for _ in range(2))
    other = higuchi_fractal_dimension(x, config=HiguchiFractalDimensionConfig(seed=4)).scalars()

    assert once == again
    assert once["mean_dimension.low"] != other["mean_dimension.low"]


def test_higuchi_fractal_dimension__class_takes_arrays_and_tensors_of_one_or_two_axes(rng):
    x = rng.normal(size=(200, 3))
    d = HiguchiFractalDimension(kmax=10)
    expected = higuchi_fractal_dimension(x, config=QUICK).dimension

    assert isinstance(d(x[:, 0]), float)
    assert d(x[:, 0]) == pytest.approx(expected[0], abs=1e-12)
    assert d(np.asfortranarray(x)).tolist() == expected.tolist()
    assert d(torch.tensor(x, requires_grad=True)).tolist() == expected.tolist()
    assert isinstance(d(torch.tensor(x[:, 0])), float)
    assert d(torch.tensor(x, dtype=torch.bfloat16)) == pytest.approx(expected, abs=0.05)  # 8 bits of x
    assert d(x.astype(np.float16)) == pytest.approx(expected, abs=0.01)  # 11 bits of x
    assert d(np.arange(50)) == pytest.approx(1)


# Bad input
def test_higuchi_fractal_dimension__raises_on_numbers_that_are_not_real():
    with pytest.raises(DtypeError, match=r"real numbers. Got complex128"):
        HiguchiFractalDimension()(np.ones(100, dtype=complex))


@pytest.mark.parametrize("shape", [(), (100, 2, 2), (100, 0)])
def test_higuchi_fractal_dimension__raises_on_a_wrong_shape(shape):
    with pytest.raises(ShapeError, match="must be \\(time,\\) or \\(time, unit >= 1\\)"):
        HiguchiFractalDimension()(np.ones(shape))


def test_higuchi_fractal_dimension__raises_on_a_short_series():
    with pytest.raises(ShapeError, match=r"at least 2 kmax = 20 steps. Got 19"):
        higuchi_fractal_dimension(np.ones((19, 2)))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", [0, 57, 99])
def test_higuchi_fractal_dimension__raises_on_a_value_that_is_not_finite(bad, where, rng):
    x = rng.normal(size=(100, 3))
    x[where, 1] = bad

    with pytest.raises(DegenerateInputError, match=r"in 1 of 3 units. Pass nan_policy='omit'"):
        higuchi_fractal_dimension(x)
    with pytest.raises(DegenerateInputError, match="must be finite"):
        HiguchiFractalDimension()(x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kmax": 1}, "kmax must be at least 2"),
        ({"nan_policy": "drop"}, "nan_policy"),
        ({"n_bootstrap": -1}, "must not be negative"),
    ],
)
def test_higuchi_fractal_dimension__raises_on_an_impossible_option(options, message):
    with pytest.raises((ConfigurationError, TypeCheckError), match=message):  # a wrong word fails its type here
        HiguchiFractalDimensionConfig(**options)
