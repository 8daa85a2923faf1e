import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from mechint_core.errors import ConfigurationError, DegenerateInputError, ShapeError
from mechint_core.meta_dynamics import FourierComponentsConfig, fourier_components
from mechint_core.random import generator

P = 31


def circles(frequencies, amplitudes, rng, units=20, p=P):
    """Points on circles: each frequency has its own plane of the unit space."""
    v = np.arange(p)
    planes = np.linalg.qr(rng.normal(size=(units, units)))[0]
    waves = [
        amplitude * wave(2 * np.pi * f * v / p)
        for f, amplitude in zip(frequencies, amplitudes, strict=True)
        for wave in (np.cos, np.sin)
    ]
    return np.stack(waves, axis=1) @ planes[: len(waves)], v


# Known answer
def test_fourier_components__of_one_circle_is_one_frequency(rng):
    x, v = circles([4], [1.0], rng)
    result = fourier_components(x, v)

    assert result.key.tolist() == [4]
    assert result.share[3] == pytest.approx(1, abs=1e-12)
    assert result.key_share.value == pytest.approx(1, abs=1e-12)
    assert result.gini.value == pytest.approx(1 - 1 / 15, abs=1e-6)  # 15 frequencies, one holds all
    assert result.variance_explained.value == pytest.approx(1)


def test_fourier_components__shares_are_squared_amplitudes(rng):
    x, v = circles([2, 7, 11], [3.0, 2.0, 1.0], rng)
    result = fourier_components(x, v)

    assert result.key.tolist() == [2, 7, 11]
    np.testing.assert_allclose(result.share[[1, 6, 10]], np.array([9, 4, 1]) / 14, atol=1e-12)


def test_fourier_components__a_strong_frequency_does_not_hide_a_weak_one(rng):
    """9 % of the power is less than a random order reaches of the whole, and all of what the strong one leaves."""
    x, v = circles([3, 8], [1.0, 0.3], rng)
    result = fourier_components(x + 0.01 * rng.normal(size=x.shape), v)

    assert result.key.tolist() == [3, 8]


def test_fourier_components__of_an_impulse_is_flat():
    """A value that stands alone has the same amplitude at every frequency: Gini 0."""
    x = np.zeros((P, 1))
    x[5] = 1
    result = fourier_components(x, np.arange(P))

    assert result.gini.value == pytest.approx(0, abs=1e-9)
    np.testing.assert_allclose(result.share, 1 / 15, atol=1e-12)


def test_fourier_components__finds_nothing_in_random_codes_at_the_nominal_rate():
    """Level 5 %, 100 random codes: 5 expected, at most 12 within 3 standard deviations."""
    found = [
        fourier_components(
            generator(seed, "test").normal(size=(P, 16)),
            np.arange(P),
            config=FourierComponentsConfig(n_null=99, n_bootstrap=2),
        ).n_key
        for seed in range(100)
    ]

    assert np.sum(np.array(found) > 0) <= 12


def test_fourier_components__says_when_the_variable_explains_nothing(rng):
    x = rng.normal(size=(2000, 8))
    result = fourier_components(x, np.arange(2000) % P)

    assert result.variance_explained.value == pytest.approx(result.variance_explained.null, rel=0.2)


def test_fourier_components__draws_the_circle_in_order(rng):
    x, v = circles([4], [1.0], rng)
    result = fourier_components(x, v)
    radius = np.linalg.norm(result.circle, axis=1)
    angle = np.unwrap(np.arctan2(result.circle[:, 1], result.circle[:, 0]))

    np.testing.assert_allclose(radius, 1, atol=1e-9)
    np.testing.assert_allclose(np.abs(np.diff(angle)), 2 * np.pi / P, atol=1e-9)


# Oracle
@pytest.mark.parametrize("p", [12, 31])
def test_fourier_components__equals_least_squares_on_sines_and_cosines(rng, p):
    variable = rng.permutation(np.repeat(np.arange(p), 3))
    x = rng.normal(size=(3 * p, 5))
    means = np.stack([x[variable == v].mean(axis=0) for v in range(p)])
    means -= means.mean(axis=0)
    v = np.arange(p)
    power = []
    for f in range(1, p // 2 + 1):
        waves = np.stack([np.cos(2 * np.pi * f * v / p), np.sin(2 * np.pi * f * v / p)], axis=1)
        power.append(np.square(waves @ np.linalg.lstsq(waves, means, rcond=None)[0]).sum())

    np.testing.assert_allclose(
        fourier_components(x, variable).share, np.array(power) / np.square(means).sum(), atol=1e-10
    )


def test_fourier_components__gini_is_half_the_relative_mean_difference(rng):
    result = fourier_components(rng.normal(size=(P, 3)), np.arange(P))
    amplitude = np.sqrt(result.share)
    difference = np.abs(amplitude[:, None] - amplitude).mean()

    assert result.gini.value == pytest.approx(difference / (2 * amplitude.mean()), rel=1e-10)


# Law
@given(seed=st.integers(0, 2**32 - 1), shift=st.integers(0, P - 1), scale=st.floats(1e-3, 1e3))
@settings(max_examples=15)
def test_fourier_components__ignores_where_the_cycle_starts_rotation_and_scale(seed, shift, scale):
    rng = generator(seed, "test")
    x, v = rng.normal(size=(P, 4)), np.arange(P)
    config = FourierComponentsConfig(n_null=19, n_bootstrap=2)
    q = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    plain = fourier_components(x, v, config=config)
    moved = fourier_components(scale * x @ q + 3, (v + shift) % P, config=config)

    np.testing.assert_allclose(plain.share, moved.share, atol=1e-9)
    assert plain.share.sum() == pytest.approx(1)
    assert 0 <= plain.gini.value < 1
    assert np.all(plain.p_value > 0)


def test_fourier_components__a_multiple_of_the_variable_permutes_the_frequencies(rng):
    """For prime p, v -> 2 v mod p sends frequency f to 2 f or p - 2 f."""
    x, v = circles([3], [1.0], rng)

    assert fourier_components(x[2 * v % P], v).key.tolist() == [6]


def test_fourier_components__same_seed_same_bits(rng):
    x = rng.normal(size=(P, 6))
    a, b = (fourier_components(x, np.arange(P)) for _ in range(2))

    assert a.scalars() == b.scalars()


# Bad input
@pytest.mark.usefixtures("no_shape_checks")
def test_fourier_components__refuses_other_lengths(rng):
    with pytest.raises(ShapeError, match="one value per sample"):
        fourier_components(rng.normal(size=(9, 2)), np.arange(8))


def test_fourier_components__refuses_missing_values(rng):
    x = rng.normal(size=(9, 2))
    x[0, 0] = np.nan
    with pytest.raises(DegenerateInputError, match="activations must be finite"):
        fourier_components(x, np.arange(9))


def test_fourier_components__refuses_a_value_that_never_occurs(rng):
    with pytest.raises(DegenerateInputError, match="every value of the variable must occur"):
        fourier_components(rng.normal(size=(9, 2)), np.array([0, 1, 2, 3, 4, 5, 6, 8, 8]))


@pytest.mark.parametrize("variable", [[0, 1, 2, 0, 1, 2], [-1, 0, 1, 2, 3, 4]])
def test_fourier_components__refuses_values_outside_of_a_cycle(rng, variable):
    with pytest.raises(DegenerateInputError, match="must run from 0 to the period - 1"):
        fourier_components(rng.normal(size=(6, 2)), np.array(variable))


def test_fourier_components__refuses_equal_means():
    with pytest.raises(DegenerateInputError, match="must differ between the values"):
        fourier_components(np.full((9, 2), 3.1), np.arange(9))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"period": 3}, "period must be 0"),
        ({"level": 1.0}, "level must lie in"),
        ({"n_null": 5}, "n_null must be at least 19"),
    ],
)
def test_fourier_components_config__refuses(change, message):
    with pytest.raises(ConfigurationError, match=message):
        FourierComponentsConfig(**change)
