import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from mechint_core.errors import ConfigurationError, DegenerateInputError, ShapeError
from mechint_core.meta_dynamics import TrainingTrajectoryConfig, training_trajectory
from mechint_core.random import generator

STEPS = np.array([0, 10, 100, 1000])


def blend(rng, shares, n=200, p=6):
    """Representations that turn from one random cloud into another: X_t = (1 - s) A + s B."""
    a, b = rng.normal(size=(n, p)), rng.normal(size=(n, p))
    return [(1 - share) * a + share * b for share in shares]


# Known answer
def test_training_trajectory__copies_have_similarity_one_and_no_half_way(rng):
    x = rng.normal(size=(50, 4))
    result = training_trajectory([x, x, x], np.array([0, 1, 2]))

    np.testing.assert_allclose(result.cka, 1, atol=1e-12)
    assert np.isnan(result.halfway_step.value)
    assert "did not change" in result.reading()


def test_training_trajectory__orthogonal_responses_have_similarity_zero():
    """Units that respond to disjoint contrasts: XᵀY = 0 exactly."""
    x = np.array([[1.0, -1, 0, 0]]).T
    y = np.array([[0.0, 0, 1, -1]]).T
    result = training_trajectory([x, y], np.array([0, 1]))

    assert result.initial_to_final.value == 0


def test_training_trajectory__of_one_unit_is_the_squared_correlation(rng):
    x, y = rng.normal(size=(2, 80, 1))
    r = np.corrcoef(x[:, 0], y[:, 0])[0, 1]

    assert training_trajectory([x, y], np.array([0, 1])).initial_to_final.value == pytest.approx(r**2, rel=1e-10)


def test_training_trajectory__a_sudden_change_is_half_way_between_its_checkpoints(rng):
    result = training_trajectory(blend(rng, [0, 0, 1, 1]), STEPS)

    assert 10 < result.halfway_step.value < 100
    np.testing.assert_allclose(result.cka[0, 1], 1)
    np.testing.assert_allclose(result.cka[2, 3], 1)


def test_training_trajectory__unrelated_ends_are_not_told_from_their_null():
    """p is uniform for independent clouds; over 20 of them at most 4 fall below 0.05 (binomial, chance 0.003)."""
    p_values = [
        training_trajectory(
            list(generator(seed, "test").normal(size=(2, 60, 5))), np.array([0, 1])
        ).initial_to_final.p_value
        for seed in range(20)
    ]

    assert np.sum(np.array(p_values) <= 0.05) <= 4


def test_training_trajectory__path_keeps_the_angles_of_a_plane_curve(rng):
    """Three checkpoints always lie in a plane, unless their angles break the triangle inequality."""
    result = training_trajectory(blend(rng, [0, 0.5, 1]), np.array([0, 1, 2]))
    apart = np.linalg.norm(result.path[:, None] - result.path[None], axis=2)

    np.testing.assert_allclose(apart, np.arccos(result.cka), atol=1e-6)
    assert result.path_explained == pytest.approx(1)
    assert np.all(result.path[-1] >= result.path[0])


# Oracle
def test_training_trajectory__equals_the_gram_matrix_form(rng):
    systems = blend(rng, [0, 0.3, 0.9, 1], n=40)
    centring = np.eye(40) - 1 / 40
    grams = [centring @ x @ x.T @ centring for x in systems]
    expected = np.array([[np.sum(k * m) / np.linalg.norm(k) / np.linalg.norm(m) for m in grams] for k in grams])

    np.testing.assert_allclose(training_trajectory(systems, STEPS).cka, expected, atol=1e-12)


def test_training_trajectory__interval_equals_that_of_the_explicit_bootstrap(rng):
    """Half-widths agree to 15 %: 400 draws leave 5 %, and the influence is first order only."""
    x, y = blend(rng, [0, 0.5], n=400)
    pairs = (training_trajectory, generator(1, "test"))
    got = pairs[0]([x, y], np.array([0, 1]), config=TrainingTrajectoryConfig(n_bootstrap=400)).initial_to_final
    draws = []
    for _ in range(400):
        rows = pairs[1].integers(0, 400, 400)
        a, b = x[rows] - x[rows].mean(axis=0), y[rows] - y[rows].mean(axis=0)
        draws.append(np.linalg.norm(a.T @ b) ** 2 / np.linalg.norm(a.T @ a) / np.linalg.norm(b.T @ b))
    low, high = np.quantile(draws, [0.025, 0.975])

    assert got.high - got.low == pytest.approx(high - low, rel=0.15)


# Law
@given(seed=st.integers(0, 2**32 - 1), scale=st.floats(1e-3, 1e3), shift=st.floats(-10, 10))
@settings(max_examples=15)
def test_training_trajectory__ignores_rotation_scale_shift_and_the_order_of_samples(seed, scale, shift):
    rng = generator(seed, "test")
    systems = blend(rng, [0, 0.4, 1], n=30, p=4)
    q, order = np.linalg.qr(rng.normal(size=(4, 4)))[0], rng.permutation(30)
    config, step = TrainingTrajectoryConfig(n_bootstrap=2, n_null=1), np.array([0, 1, 2])

    changed = [(scale * x @ q + shift)[order] for x in systems]
    a, b = (training_trajectory(each, step, config=config).cka for each in (systems, changed))

    np.testing.assert_allclose(a, b, atol=1e-8)
    assert np.all((a >= 0) & (a <= 1))
    np.testing.assert_allclose(a, a.T, atol=1e-12)


def test_training_trajectory__same_seed_same_bits(rng):
    systems = blend(rng, [0, 0.4, 1])
    a, b = (training_trajectory(systems, np.array([0, 1, 2])) for _ in range(2))

    assert a.scalars() == b.scalars()
    assert a.cka_to_final_low.tobytes() == b.cka_to_final_low.tobytes()


# Bad input
def test_training_trajectory__refuses_samples_that_do_not_align(rng):
    with pytest.raises(ShapeError, match="with the same samples"):
        training_trajectory([rng.normal(size=(5, 2)), rng.normal(size=(6, 2))], np.array([0, 1]))


def test_training_trajectory__refuses_one_checkpoint(rng):
    with pytest.raises(ShapeError, match="at least 2 checkpoints"):
        training_trajectory([rng.normal(size=(5, 2))], np.array([0]))


def test_training_trajectory__refuses_two_samples(rng):
    with pytest.raises(ShapeError, match="at least 3 samples"):
        training_trajectory([rng.normal(size=(2, 2))] * 2, np.array([0, 1]))


def test_training_trajectory__refuses_steps_out_of_order(rng):
    with pytest.raises(DegenerateInputError, match="step must increase"):
        training_trajectory([rng.normal(size=(5, 2))] * 2, np.array([1, 1]))


@pytest.mark.parametrize(("value", "message"), [(1.0, "must .*vary"), (np.nan, "must be finite")])
def test_training_trajectory__refuses_a_constant_or_broken_checkpoint(rng, value, message):
    with pytest.raises(DegenerateInputError, match=message):
        training_trajectory([rng.normal(size=(5, 2)), np.full((5, 2), value)], np.array([0, 1]))


def test_training_trajectory_config__refuses_no_draws():
    with pytest.raises(ConfigurationError, match="n_bootstrap must be at least 2"):
        TrainingTrajectoryConfig(n_bootstrap=0)
