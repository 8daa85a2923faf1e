import doctest
import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from mechint_core.errors import ConfigurationError, DegenerateInputError, DtypeError, ShapeError
from mechint_core.fractals import MultifractalSmoothness
from mechint_core.fractals.regularisation import multifractal_smoothness
from mechint_core.random import generator, torch_generator
from mechint_core.synthetic.fractional_noise import fractional_brownian_motion, fractional_gaussian_noise


def as_batch(series: np.ndarray) -> torch.Tensor:
    """(time, series) -> (batch, time, 1)."""
    return torch.from_numpy(np.ascontiguousarray(series.T))[..., None]


def white(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch_generator(seed, "hidden"), dtype=torch.float64)


def binomial_cascade(n_halvings: int, share: float, n_series: int) -> np.ndarray:
    """Each half of a stretch gets `share` or 1 - share of its mass, at random: zeta(q) = 1 - q - log2(a^q + b^q)."""
    rng = generator(0, "cascade")
    mass = np.ones((1, n_series))
    for _ in range(n_halvings):
        left = np.where(rng.random(mass.shape) < 0.5, share, 1 - share)
        mass = 2 * np.stack([mass * left, mass * (1 - left)], axis=1).reshape(-1, n_series)
    return mass


def lognormal_cascade(n_halvings: int, intermittency: float, n_series: int) -> np.ndarray:
    rng = generator(0, "cascade")
    variance = intermittency * np.log(2)
    log_mass = np.zeros((1, n_series))
    for _ in range(n_halvings):
        log_mass = np.repeat(log_mass, 2, axis=0)
        log_mass += rng.normal(-variance / 2, np.sqrt(variance), log_mass.shape)
    return np.exp(log_mass)


def by_definition(x: np.ndarray) -> float:
    """lambda^2 of one unit (batch, time), window by window."""
    n = x.shape[1]
    scales, heights = [], []
    scale = 1
    while 4 * scale <= n:
        d = [
            row[t + scale : t + 2 * scale].mean() - row[t : t + scale].mean()
            for row in x
            for t in range(n - 2 * scale + 1)
        ]
        heights.append(2 * np.log(np.mean(np.abs(d))) - np.log(np.mean(np.square(d))))
        scales.append(scale)
        scale *= 2
    return np.polyfit(np.log(scales), heights, 1)[0]


# Known answer
@pytest.mark.parametrize("hurst", [0.1, 0.3, 0.5, 0.7, 0.9])
@pytest.mark.parametrize("make", [fractional_gaussian_noise, fractional_brownian_motion])
@pytest.mark.parametrize("n_steps", [16, 256])
def test_multifractal_smoothness__of_monofractals_is_0(n_steps, make, hurst):
    """Gaussian fluctuations at every scale. 0.01 is three standard errors; the penalty is its square."""
    x = as_batch(make(n_steps, hurst, n_series=600, seed=1))

    assert MultifractalSmoothness().intermittency(x).item() == pytest.approx(0, abs=0.01)
    assert MultifractalSmoothness()(x).item() < 1e-4


@pytest.mark.parametrize("share", [0.6, 0.75, 0.9])
def test_multifractal_smoothness__of_binomial_cascades_is_their_curvature(share):
    """2 zeta(1) - zeta(2) = 1 + log2(a^2 + b^2). Windows across halves take 3 % off, 300 series 0.01."""
    x = as_batch(binomial_cascade(10, share, 300))

    expected = 1 + np.log2(share**2 + (1 - share) ** 2)

    assert MultifractalSmoothness().intermittency(x).item() == pytest.approx(expected, abs=0.01, rel=0.03)


@pytest.mark.parametrize("intermittency", [0.05, 0.2])
def test_multifractal_smoothness__of_lognormal_cascades_is_their_parameter(intermittency):
    x = as_batch(lognormal_cascade(10, intermittency, 1000))

    assert MultifractalSmoothness().intermittency(x).item() == pytest.approx(intermittency, rel=0.1)


@pytest.mark.parametrize("n_steps", [16, 64, 500])
def test_multifractal_smoothness__makes_a_cascade_smooth(n_steps):
    hidden = as_batch(binomial_cascade(9, 0.8, 4))[:, :n_steps].requires_grad_()
    smoothness = MultifractalSmoothness()
    before = smoothness(hidden).item()
    adam = torch.optim.Adam([hidden], lr=0.02)

    for _ in range(200):
        adam.zero_grad()
        smoothness(hidden).backward()
        adam.step()

    assert before > 0.01
    assert by_definition(hidden.detach()[..., 0].numpy()) == pytest.approx(0, abs=0.01)


def test_multifractal_smoothness__is_the_weighted_mean_square_of_the_curvature():
    hidden = white(3, 50, 4)
    smoothness = MultifractalSmoothness(weight=0.3)

    expected = 0.3 * smoothness.intermittency(hidden).square().mean().item()

    assert smoothness(hidden).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("level", [0.0, 0.1, -1e8])
def test_multifractal_smoothness__of_a_constant_is_0_with_gradient_0(level):
    hidden = torch.full((2, 20, 3), level, requires_grad=True)

    penalty = MultifractalSmoothness()(hidden)
    penalty.backward()

    assert penalty.item() == 0
    assert hidden.grad.abs().max() == 0
    assert MultifractalSmoothness().intermittency(hidden).isnan().all()


def test_multifractal_smoothness__leaves_a_constant_unit_out():
    hidden = white(4, 40, 3)
    hidden[..., 1] = 0.1
    hidden.requires_grad_()
    smoothness = MultifractalSmoothness()

    penalty = smoothness(hidden)
    penalty.backward()

    assert penalty.item() == pytest.approx(smoothness(hidden[..., [0, 2]]).item(), rel=1e-12)
    assert smoothness.intermittency(hidden).isnan().tolist() == [False, True, False]
    assert torch.isfinite(hidden.grad).all()
    assert hidden.grad[..., 1].abs().max() == 0


@pytest.mark.parametrize("series", [[1.0, -1.0] * 16, [0.0] * 31 + [1.0], list(range(32))])
def test_multifractal_smoothness__is_finite_where_fluctuations_vanish(series):
    """Alternating, one step, a line: S_q is 0 at some scales, at some places, or the same everywhere."""
    hidden = torch.tensor(series, dtype=torch.float32).requires_grad_()

    penalty = MultifractalSmoothness()(hidden)
    penalty.backward()

    assert torch.isfinite(penalty)
    assert torch.isfinite(hidden.grad).all()


# Oracle
@settings(max_examples=20)
@given(seed=st.integers(0, 2**31), n_steps=st.integers(16, 70), n_sequences=st.integers(1, 3))
def test_multifractal_smoothness__equals_its_definition(seed, n_steps, n_sequences):
    x = white(n_sequences, n_steps, 2, seed=seed).exp()

    expected = [by_definition(x[..., unit].numpy()) for unit in range(2)]

    assert MultifractalSmoothness().intermittency(x).tolist() == pytest.approx(expected, abs=1e-10)


# Law
@pytest.mark.parametrize("options", [{}, {"pool_units": True}, {"time_axis": 0}])
@pytest.mark.parametrize("shape", [(16, 3), (35, 2)])
def test_multifractal_smoothness__gradient_is_that_of_finite_differences(shape, options):
    hidden = white(*shape).exp().requires_grad_()

    assert torch.autograd.gradcheck(MultifractalSmoothness(0.7, **options), (hidden,), atol=1e-6)


@given(seed=st.integers(0, 2**31), power=st.floats(-8, 8), shift=st.floats(-10, 10))
def test_multifractal_smoothness__ignores_scale_and_shift(seed, power, shift):
    """1e-10: a shift of 10 leaves 15 digits."""
    x = white(2, 32, 2, seed=seed)
    smoothness = MultifractalSmoothness()
    expected = pytest.approx(smoothness.intermittency(x).tolist(), abs=1e-10)

    assert smoothness.intermittency(10.0**power * x).tolist() == expected
    assert smoothness.intermittency(x + shift).tolist() == expected
    assert smoothness.intermittency(x.flip(1)).tolist() == expected
    assert smoothness.intermittency(-x.flip(0)).tolist() == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("power", [-90, -27, 27, 90])
def test_multifractal_smoothness__scaled_by_a_power_of_two_has_the_same_bits(dtype, power):
    x = white(2, 32, 3).to(dtype)
    scaled = (x * 2.0**power).requires_grad_()

    penalty = MultifractalSmoothness()(scaled)
    penalty.backward()

    assert penalty.item() == MultifractalSmoothness()(x).item()
    assert torch.isfinite(scaled.grad).all()


def test_multifractal_smoothness__ignores_loudness_that_differs_between_sequences():
    """One factor per sequence makes S_1^2 / S_2 less at every scale alike, up to the spread of 400 sequences."""
    x = white(400, 64, 1)
    loud = x * white(400, 1, 1, seed=1).exp()

    assert MultifractalSmoothness().intermittency(loud).item() == pytest.approx(0, abs=0.03)


def test_multifractal_smoothness__examples_are_true():
    assert doctest.testmod(multifractal_smoothness, extraglobs={"torch": torch}).failed == 0


# Bad input
@pytest.mark.parametrize("weight", [-1.0, math.nan, math.inf])
def test_multifractal_smoothness__raises_on_an_impossible_weight(weight):
    with pytest.raises(ConfigurationError, match="weight must be finite and not negative"):
        MultifractalSmoothness(weight)


def test_multifractal_smoothness__raises_on_numbers_that_are_not_real():
    with pytest.raises(DtypeError, match=r"must hold real numbers. Got torch.int64"):
        MultifractalSmoothness()(torch.ones(20, 2, dtype=torch.int64))


@pytest.mark.parametrize("shape", [(15, 2), (15,), (0, 20, 2)])
def test_multifractal_smoothness__raises_on_too_few_steps(shape):
    with pytest.raises(ShapeError, match="at least 16 steps"):
        MultifractalSmoothness()(torch.ones(shape))


def test_multifractal_smoothness__raises_on_a_value_that_is_not_finite():
    hidden = white(3, 20, 2)
    hidden[1, 7, 1] = math.nan

    with pytest.raises(DegenerateInputError, match="NaN or infinity in 1 of 120 values"):
        MultifractalSmoothness()(hidden)
