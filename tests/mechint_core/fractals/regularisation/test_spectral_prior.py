import doctest
import math
import subprocess
import sys

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from scipy.signal import periodogram

from mechint_core.errors import ConfigurationError, DegenerateInputError, DtypeError, ShapeError
from mechint_core.fractals import SpectralPrior
from mechint_core.fractals.regularisation import spectral_prior
from mechint_core.random import generator, torch_generator
from mechint_core.synthetic.fractional_noise import coloured_noise

EXPONENTS = [0.0, 0.5, 1.0, 1.5, 2.0]


def coloured(n_steps: int, exponent: float, n_sequences: int, *, window_of: int = 1, seed: int = 0) -> torch.Tensor:
    """Sequences (batch, time, 1) with power 1 / f^exponent: whole periods, or windows of periods so much longer."""
    series = coloured_noise(window_of * n_steps, exponent, n_series=n_sequences, seed=seed)[:n_steps]
    return torch.from_numpy(np.ascontiguousarray(series.T))[..., None]


def white(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch_generator(seed, "hidden"), dtype=torch.float64)


def by_definition(x: np.ndarray, *, per_octave: bool = False) -> float:
    """The exponent of one unit (batch, time), with scipy's periodogram and numpy's fit."""
    n = x.shape[1]
    taper = np.sin(np.pi * np.arange(1, n + 1) / (n + 1))
    f, power = periodogram(x, window=taper, detrend="constant", scaling="density", axis=1)
    taper = taper / np.linalg.norm(taper)
    power = power.mean(axis=0) / (1 - np.abs(np.fft.rfft(taper)) ** 2 / n)
    fitted = (f > 0) & (f < 0.5)
    weight = f[fitted] ** -0.5 if per_octave else None  # numpy squares its weights
    return -np.polyfit(np.log(f[fitted]), np.log(power[fitted]), 1, w=weight)[0]


# Known answer
@pytest.mark.parametrize("exponent", EXPONENTS)
@pytest.mark.parametrize("n_steps", [16, 17, 64, 1024])
def test_spectral_prior__exponent_of_coloured_noise_is_unbiased(n_steps, exponent):
    """Within 0.03, of which the sampling error of the mean is 0.01 at 16 steps, less beyond."""
    x = coloured(n_steps, exponent, 64_000 // n_steps)

    assert SpectralPrior(1.0).exponent(x).item() == pytest.approx(exponent, abs=0.03)


@pytest.mark.parametrize("exponent", EXPONENTS)
@pytest.mark.parametrize("n_steps", [16, 64, 1024])
def test_spectral_prior__exponent_per_octave_is_that_of_coloured_noise(n_steps, exponent):
    """Within 0.03, and within 0.06 at 16 steps: the taper blurs the lowest frequency, which counts most here."""
    x = coloured(n_steps, exponent, 64_000 // n_steps)

    found = SpectralPrior(1.0, per_octave=True).exponent(x).item()

    assert found == pytest.approx(exponent, abs=0.06 if n_steps == 16 else 0.03)


@pytest.mark.parametrize("exponent", EXPONENTS)
@pytest.mark.parametrize(("n_steps", "at_1", "at_2"), [(16, 0.05, 0.24), (64, 0.03, 0.10), (256, 0.02, 0.04)])
def test_spectral_prior__exponent_of_a_window_is_biased_by_as_much_as_documented(n_steps, at_1, at_2, exponent):
    x = coloured(n_steps, exponent, 64_000 // n_steps, window_of=8)

    bias = SpectralPrior(1.0).exponent(x).item() - exponent

    assert -0.02 < bias < (at_1 if exponent <= 1 else at_2)


@pytest.mark.parametrize("target", [-1.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("shape", [(1, 16, 1), (1, 64, 1), (1, 256, 1), (8, 500, 1)])
def test_spectral_prior__adam_takes_white_noise_to_the_target_in_200_steps(shape, target):
    """One sequence of 500 steps falls 0.16 short of 2: its gradient is that of the few faintest frequencies."""
    hidden = white(*shape, seed=1).requires_grad_()
    prior = SpectralPrior(target)
    adam = torch.optim.Adam([hidden], lr=0.1)

    for _ in range(200):
        adam.zero_grad()
        prior(hidden).backward()
        adam.step()

    assert by_definition(hidden.detach()[..., 0].numpy()) == pytest.approx(target, abs=0.05)


def test_spectral_prior__is_the_weighted_mean_square_of_what_is_missing():
    hidden = white(8, 50, 3)
    prior = SpectralPrior(target_exponent=1.0, weight=0.1)

    assert prior(hidden).item() == pytest.approx(0.1 * (prior.exponent(hidden) - 1).square().mean().item(), rel=1e-12)


def test_spectral_prior__works_as_in_the_notebook():
    hidden_states = torch.randn(2, 30, 4, generator=torch_generator(0, "notebook"), requires_grad=True)
    task_loss = hidden_states.square().mean()

    fractal_loss = SpectralPrior(target_exponent=1.0, weight=0.1)
    total_loss = task_loss + fractal_loss(hidden_states)

    total_loss.backward()
    assert total_loss > task_loss
    assert torch.isfinite(hidden_states.grad).all()


@pytest.mark.parametrize("level", [0.0, 0.1, -1e8])
def test_spectral_prior__of_a_constant_is_0_with_gradient_0(level):
    hidden = torch.full((2, 20, 3), level, requires_grad=True)

    penalty = SpectralPrior(1.0)(hidden)
    penalty.backward()

    assert penalty.item() == 0
    assert hidden.grad.abs().max() == 0
    assert SpectralPrior(1.0).exponent(hidden).isnan().all()


def test_spectral_prior__leaves_a_constant_unit_out():
    hidden = white(4, 40, 3)
    hidden[..., 1] = 0.1
    hidden.requires_grad_()
    prior = SpectralPrior(1.0)

    penalty = prior(hidden)
    penalty.backward()

    assert penalty.item() == pytest.approx(prior(hidden[..., [0, 2]]).item(), rel=1e-12)
    assert prior.exponent(hidden).isnan().tolist() == [False, True, False]
    assert torch.isfinite(hidden.grad).all()
    assert hidden.grad[..., 1].abs().max() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("period", [2, 3, 8, 40])
def test_spectral_prior__of_a_pure_tone_is_finite(dtype, period):
    hidden = torch.cos(2 * torch.pi * torch.arange(40, dtype=dtype) / period)[:, None].requires_grad_()

    penalty = SpectralPrior(1.0)(hidden)
    penalty.backward()

    assert torch.isfinite(penalty)
    assert torch.isfinite(hidden.grad).all()


def test_spectral_prior__band_fits_what_lies_within_it():
    """Pink below 0.1 cycles per step, white above: the tapered noise leaks over one frequency at the corner."""
    n = 1024
    f = np.fft.rfftfreq(n)
    spectrum = np.fft.rfft(generator(0, "noise").normal(size=(400, n)), axis=1)
    spectrum *= np.where(f < 0.1, np.maximum(f, 1 / n) / 0.1, 1) ** -0.5
    hidden = torch.from_numpy(np.fft.irfft(spectrum, axis=1))[..., None]

    low, high = (SpectralPrior(1.0, band=band).exponent(hidden).item() for band in ((0.0, 0.1), (0.1, 0.5)))

    assert low == pytest.approx(1, abs=0.03)
    assert high == pytest.approx(0, abs=0.03)


# Oracle
@settings(max_examples=20)
@given(seed=st.integers(0, 2**31), n_steps=st.integers(16, 90), n_sequences=st.integers(1, 4), per_octave=st.booleans())
def test_spectral_prior__equals_scipy_periodogram_and_numpy_fit(seed, n_steps, n_sequences, per_octave):
    x = white(n_sequences, n_steps, 2, seed=seed).cumsum(dim=1)

    expected = [by_definition(x[..., unit].numpy(), per_octave=per_octave) for unit in range(2)]

    assert SpectralPrior(1.0, per_octave=per_octave).exponent(x).tolist() == pytest.approx(expected, abs=1e-9)


# Law
@pytest.mark.parametrize(
    "options", [{}, {"pool_units": True}, {"band": (0.0, 0.3)}, {"per_octave": True}, {"time_axis": 0}]
)
@pytest.mark.parametrize("shape", [(16, 3), (17, 2)])
def test_spectral_prior__gradient_is_that_of_finite_differences(shape, options):
    hidden = white(*shape).requires_grad_()

    assert torch.autograd.gradcheck(SpectralPrior(1.0, 0.7, **options), (hidden,), atol=1e-6)


@given(seed=st.integers(0, 2**31), power=st.floats(-8, 8), shift=st.floats(-10, 10))
def test_spectral_prior__ignores_scale_and_shift(seed, power, shift):
    """1e-9: a shift of 10 leaves 15 digits; near power 0 the fit multiplies them by some thousand."""
    x = white(2, 32, 2, seed=seed)
    prior = SpectralPrior(1.0)

    assert prior.exponent(10.0**power * x).tolist() == pytest.approx(prior.exponent(x).tolist(), abs=1e-9)
    assert prior.exponent(x + shift).tolist() == pytest.approx(prior.exponent(x).tolist(), abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("power", [-90, -27, 27, 90])
def test_spectral_prior__scaled_by_a_power_of_two_has_the_same_bits(dtype, power):
    """2^27 is 1.3e8; 2^-90 has a square below the smallest float32."""
    x = white(2, 32, 3).to(dtype)
    scaled = (x * 2.0**power).requires_grad_()

    penalty = SpectralPrior(1.0)(scaled)
    penalty.backward()

    assert penalty.item() == SpectralPrior(1.0)(x).item()
    assert torch.isfinite(scaled.grad).all()
    assert scaled.grad.abs().max() > 0


@pytest.mark.parametrize("scale", [1e-8, 1e8])
def test_spectral_prior__scales_its_gradient_inversely(scale):
    x, scaled = white(32, 3).requires_grad_(), (scale * white(32, 3)).requires_grad_()

    SpectralPrior(1.0)(x).backward()
    SpectralPrior(1.0)(scaled).backward()

    assert (scale * scaled.grad).flatten().tolist() == pytest.approx(x.grad.flatten().tolist(), rel=1e-6, abs=1e-9)


@given(seed=st.integers(0, 2**31))
def test_spectral_prior__ignores_order_of_sequences_and_direction_of_time(seed):
    x = white(5, 40, 3, seed=seed)
    prior = SpectralPrior(1.0)

    for same in (x.flip(0), x.flip(1), -x):
        assert prior.exponent(same).tolist() == pytest.approx(prior.exponent(x).tolist(), abs=1e-10)
    assert prior(x.flip(2)).item() == pytest.approx(prior(x).item(), rel=1e-10)


def test_spectral_prior__reads_every_layout():
    x = white(4, 40, 3)
    expected = SpectralPrior(1.0).exponent(x)

    assert SpectralPrior(1.0, time_axis=0).exponent(x.transpose(0, 1)).equal(expected)
    assert SpectralPrior(1.0, time_axis=1).exponent(x).equal(expected)
    assert SpectralPrior(1.0, time_axis=-1).exponent(x[..., 0]).item() == expected[0].item()
    assert SpectralPrior(1.0).exponent(x[0]).equal(SpectralPrior(1.0).exponent(x[:1]))
    assert SpectralPrior(1.0).exponent(x[0, :, 0]).item() == SpectralPrior(1.0).exponent(x[:1, :, :1]).item()
    assert SpectralPrior(1.0, pool_units=True).exponent(x).item() == pytest.approx(
        SpectralPrior(1.0, time_axis=-1).exponent(x.transpose(1, 2)).item(), rel=1e-12
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_spectral_prior__of_half_precision_is_that_of_the_same_numbers_in_float32(dtype):
    x = white(4, 64, 3).to(dtype)

    assert SpectralPrior(1.0)(x).equal(SpectralPrior(1.0)(x.float()))


def test_spectral_prior__examples_are_true():
    assert doctest.testmod(spectral_prior, extraglobs={"torch": torch}).failed == 0


def test_fractals__without_penalties_do_not_import_torch():
    code = "import sys, mechint_core.fractals as f; assert 'torch' not in sys.modules; f.SpectralPrior(1.0)"

    assert subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=False).returncode == 0


# Bad input
@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((math.nan,), {}, "target_exponent must be finite. Got nan"),
        ((1.0, -0.1), {}, "weight must be finite and not negative. Got -0.1"),
        ((1.0, math.inf), {}, "weight must be finite"),
        ((1.0,), {"band": (0.3, 0.1)}, "low < high"),
        ((1.0,), {"band": (0.0, 0.6)}, "high <= 0.5"),
    ],
)
def test_spectral_prior__raises_on_an_impossible_option(arguments, options, message):
    with pytest.raises(ConfigurationError, match=message):
        SpectralPrior(*arguments, **options)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_spectral_prior__raises_on_numbers_that_are_not_real(dtype):
    with pytest.raises(DtypeError, match=r"must hold real numbers. Got torch"):
        SpectralPrior(1.0)(torch.ones(20, 2, dtype=dtype))


@pytest.mark.parametrize("shape", [(15, 2), (4, 15, 2), (15,), (0, 20, 2), (20, 0)])
def test_spectral_prior__raises_on_too_few_steps(shape):
    with pytest.raises(ShapeError, match=r"at least 16 steps of at least one unit. Got shape"):
        SpectralPrior(1.0)(torch.ones(shape))


@pytest.mark.parametrize(("shape", "axis"), [((), -2), ((20, 3), 2), ((20, 3), -3)])
def test_spectral_prior__raises_where_there_is_no_time_axis(shape, axis):
    with pytest.raises(ShapeError, match="must have time on axis"):
        SpectralPrior(1.0, time_axis=axis)(torch.ones(shape))


def test_spectral_prior__raises_on_a_band_of_too_few_frequencies():
    with pytest.raises(ShapeError, match=r"at least 3 Fourier frequencies within \(0.0, 0.1\). Got 1 for 20 steps"):
        SpectralPrior(1.0, band=(0.0, 0.1))(white(20, 1))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_spectral_prior__raises_on_a_value_that_is_not_finite(bad):
    hidden = white(3, 20, 2)
    hidden[1, 7, 1] = bad

    with pytest.raises(DegenerateInputError, match=r"NaN or infinity in 1 of 120 values. If training has diverged"):
        SpectralPrior(1.0)(hidden)
