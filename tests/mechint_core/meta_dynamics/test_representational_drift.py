import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings, strategies as st

from mechint_core.errors import ConfigurationError, DegenerateInputError, ShapeError
from mechint_core.meta_dynamics import RepresentationalDriftConfig, representational_drift
from mechint_core.random import generator

STEPS = np.array([0, 1, 2, 4, 8, 16, 32, 64, 128, 256])
QUICK = RepresentationalDriftConfig(n_bootstrap=20, n_null=1)


def turned(rng, x):
    return x @ np.linalg.qr(rng.normal(size=(x.shape[1], x.shape[1])))[0]


def path(rng, angles, n=150, p=6, noise=0.0):
    """Clouds at known angles along a great circle: cos(theta) A + sin(theta) B with A and B orthonormal."""
    a, b = (np.linalg.qr(m - m.mean(axis=0))[0][:, :p] / np.sqrt(p) for m in rng.normal(size=(2, n, p)))
    b -= a * np.sum(a * b)
    b -= a @ (a.T @ b) / np.linalg.norm(a.T @ a, 2)  # no part of B is a linear image of A
    b /= np.linalg.norm(b)
    clouds = [np.cos(theta) * a + np.sin(theta) * b for theta in np.cumsum([0.0, *angles])]
    return [cloud + noise * rng.normal(size=cloud.shape) for cloud in clouds]


# Known answer
def test_representational_drift__of_copies_rotations_and_rescalings_is_zero(rng):
    """Exactly 0 up to rounding: the chord of 6 x 6 rotations in float64 is below 1e-13."""
    x = rng.normal(size=(100, 6))
    result = representational_drift([x, x, turned(rng, x), 3 * x + 1], np.array([0, 1, 2, 3]))

    np.testing.assert_allclose(result.drift, 0, atol=1e-12)
    assert np.isnan(result.peak_share.value)
    assert len(result.burst_step) == 0
    assert "did not move" in result.reading()


def test_representational_drift__measures_the_angle_along_a_great_circle(rng):
    """The clouds stay within one plane and their cross-products are symmetric, so no rotation shortens the angle."""
    angles = np.full(9, 0.1)
    result = representational_drift(path(rng, angles), STEPS, config=QUICK)

    np.testing.assert_allclose(result.drift[1:], 0.1, rtol=1e-6)
    assert result.total.value == pytest.approx(0.9, rel=1e-6)
    assert result.net.value == pytest.approx(0.9, rel=1e-6)


def test_representational_drift__of_orthogonal_responses_is_a_right_angle():
    x = np.array([[1.0, -1, 0, 0]]).T
    y = np.array([[0.0, 0, 1, -1]]).T
    result = representational_drift([x, y, y], np.array([0, 1, 2]), config=QUICK)

    np.testing.assert_allclose(result.drift, [0, np.pi / 2, 0], atol=1e-12)


def test_representational_drift__of_units_sees_a_rotation(rng):
    """A swap of two independent units: their tuning turns by about a right angle, the representation by none."""
    x = rng.normal(size=(4000, 2))
    result = representational_drift([x, x[:, ::-1].copy(), x], np.array([0, 1, 2]), config=QUICK)

    assert result.drift[1] < 1e-12
    assert result.unit_drift[1] == pytest.approx(np.pi / 2, abs=0.05)  # correlation 0 +- 1 / sqrt(4000)


def test_representational_drift__is_concentrated_where_it_was_planted(rng):
    angles = [0.01, 0.01, 0.01, 0.01, 0.01, 0.3, 0.01, 0.01, 0.01]  # between steps 16 and 32
    result = representational_drift(path(rng, angles), STEPS)

    assert len(result.burst_step) == 1
    assert 16 <= result.burst_step[0] <= 32
    assert result.peak_share.value == pytest.approx(0.3 / 0.38, rel=0.05)  # the window is a little wider
    assert result.peak_share.p_value <= 0.05
    assert "concentrated in 1 burst:" in result.reading()


def test_representational_drift__finds_two_bursts(rng):
    angles = [0.01, 0.01, 0.25, 0.01, 0.01, 0.01, 0.01, 0.25, 0.01]  # steps 2 to 4, and 64 to 128
    result = representational_drift(path(rng, angles), STEPS)

    assert len(result.burst_step) == 2
    assert 1 < result.burst_step[0] < 5
    assert 64 < result.burst_step[1] < 128


def test_representational_drift__even_drift_is_not_told_from_its_null():
    """Equal angles per log step, read from few noisy inputs: p <= 0.05 in at most 4 of 20 (binomial, chance 0.003)."""
    p_values = []
    for seed in range(20):
        rng = generator(seed, "test")
        x = path(rng, 0.1 * np.diff(np.log1p(STEPS)))
        result = representational_drift([cloud[:60] for cloud in x], STEPS)
        p_values.append(result.peak_share.p_value)

    assert np.sum(np.array(p_values) <= 0.05) <= 4


def test_representational_drift__counts_silent_units(rng):
    x = rng.normal(size=(20, 3))
    y = x.copy()
    y[:, 0] = 0
    result = representational_drift([x, y, y], np.array([0, 1, 2]), config=QUICK)

    assert result.n_silent_units == 1
    assert np.all(np.isfinite(result.unit_drift))


# Oracle
def test_representational_drift__equals_scipys_procrustes(rng):
    x, y = rng.normal(size=(2, 60, 5))
    got = representational_drift([x, y, y], np.array([0, 1, 2]), config=QUICK).drift[1]
    x, y = (each - each.mean(axis=0) for each in (x, y))
    _, cosine = scipy.linalg.orthogonal_procrustes(x / np.linalg.norm(x), y / np.linalg.norm(y))

    assert got == pytest.approx(np.arccos(cosine), rel=1e-9)


def test_representational_drift__interval_equals_that_of_the_explicit_bootstrap(rng):
    """Half-widths agree to 15 %: 400 draws leave 5 %, and the influence is first order only."""
    x = rng.normal(size=(500, 4))
    y = x + rng.normal(size=(500, 4))
    config = RepresentationalDriftConfig(n_bootstrap=400, n_null=1, window=0.1)
    result = representational_drift([x, y, y], np.array([0, 1, 2]), config=config)
    draws = []
    for _ in range(400):
        rows = rng.integers(0, 500, 500)
        a, b = (each[rows] - each[rows].mean(axis=0) for each in (x, y))
        draws.append(np.arccos(np.linalg.norm(a.T @ b, "nuc") / np.linalg.norm(a) / np.linalg.norm(b)))
    low, high = np.quantile(draws, [0.025, 0.975])

    assert result.drift_high[1] - result.drift_low[1] == pytest.approx(high - low, rel=0.15)


# Law
@given(seed=st.integers(0, 2**32 - 1), scale=st.floats(1e-3, 1e3))
@settings(max_examples=15)
def test_representational_drift__ignores_rotation_and_scale_and_obeys_the_triangle(seed, scale):
    rng = generator(seed, "test")
    x, y, z = rng.normal(size=(3, 20, 3))
    step = np.array([0, 1, 2])
    plain = representational_drift([x, y, z], step, config=QUICK)
    moved = representational_drift([scale * turned(rng, x), y + 5, turned(rng, z) / scale], step, config=QUICK)

    np.testing.assert_allclose(plain.drift, moved.drift, atol=1e-9)
    assert plain.net.value <= plain.total.value + 1e-12
    assert np.all((plain.drift >= 0) & (plain.drift <= np.pi / 2 + 1e-12))
    assert 0 <= plain.peak_share.value <= 1 + 1e-12


def test_representational_drift__same_seed_same_bits(rng):
    systems = list(rng.normal(size=(3, 30, 4)))
    a, b = (representational_drift(systems, np.array([0, 5, 9])) for _ in range(2))

    assert a.scalars() == b.scalars()


# Bad input
def test_representational_drift__refuses_two_checkpoints(rng):
    with pytest.raises(ShapeError, match="at least 3 checkpoints"):
        representational_drift(list(rng.normal(size=(2, 5, 2))), np.array([0, 1]))


def test_representational_drift__refuses_other_units(rng):
    systems = [rng.normal(size=(5, p)) for p in (2, 2, 3)]
    with pytest.raises(ShapeError, match="units must be the same"):
        representational_drift(systems, np.array([0, 1, 2]))


def test_representational_drift__refuses_other_samples(rng):
    systems = [rng.normal(size=(n, 2)) for n in (5, 5, 6)]
    with pytest.raises(ShapeError, match="with the same samples"):
        representational_drift(systems, np.array([0, 1, 2]))


@pytest.mark.parametrize("value", [1.0, np.nan])
def test_representational_drift__refuses_a_constant_or_broken_checkpoint(rng, value):
    systems = [rng.normal(size=(5, 2)), rng.normal(size=(5, 2)), np.full((5, 2), value)]
    with pytest.raises(DegenerateInputError, match="finite and vary"):
        representational_drift(systems, np.array([0, 1, 2]))


def test_representational_drift__refuses_steps_out_of_order(rng):
    with pytest.raises(DegenerateInputError, match="step must increase"):
        representational_drift(list(rng.normal(size=(3, 5, 2))), np.array([0, 2, 1]))


def test_representational_drift__refuses_a_window_wider_than_the_run(rng):
    with pytest.raises(ConfigurationError, match="window must be below"):
        representational_drift(
            list(rng.normal(size=(3, 5, 2))), np.array([0, 1, 2]), config=RepresentationalDriftConfig(window=2.0)
        )


@pytest.mark.parametrize(
    ("change", "message"), [({"window": 0.0}, "window must be above 0"), ({"n_null": 0}, "n_null at least 1")]
)
def test_representational_drift_config__refuses(change, message):
    with pytest.raises(ConfigurationError, match=message):
        RepresentationalDriftConfig(**change)
