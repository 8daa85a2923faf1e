import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from mechint_core.errors import ConfigurationError, DegenerateInputError, ShapeError
from mechint_core.meta_dynamics import ProgressMeasuresConfig, progress_measures
from mechint_core.random import generator

P = 23
A, B = np.divmod(np.arange(P * P), P)
ANSWER = (A + B) % P
TRAIN = (generator(0, "test").random(P * P) < 0.5).astype(np.int8)


def circuit(frequencies, gain=20.0):
    """The logits of the known algorithm: sum_f cos(2 pi f (a + b - c) / p)."""
    turns = ((A + B)[:, None] - np.arange(P)) / P
    return gain * sum(np.cos(2 * np.pi * f * turns) for f in frequencies)


def memory(gain=20.0):
    """The logits of a table that holds the training pairs and nothing else."""
    logits = np.zeros((P * P, P))
    logits[np.arange(P * P), ANSWER] = gain * TRAIN
    return logits


def measure(logits, **config):
    return progress_measures(logits, A, B, ANSWER, TRAIN, config=ProgressMeasuresConfig(**config))


# Known answer
def test_progress_measures__of_the_circuit_restricted_is_whole_and_excluded_is_chance():
    result = measure(circuit([3, 7]))

    assert sorted(result.key.tolist()) == [3, 7]
    # The mean over the two splits of a loss that is the same for every pair.
    assert result.restricted_loss.value == pytest.approx(result.train_loss.value, rel=1e-6)
    assert result.excluded_loss.value == pytest.approx(np.log(P), rel=1e-9)
    assert result.key_power.value == pytest.approx(1)
    assert result.restricted_loss.p_value == pytest.approx(0.05)  # 1 / (1 + 19): as small as it can be
    assert result.test_accuracy.value == 1


def test_progress_measures__of_a_memory_restricted_is_near_chance_and_excluded_is_whole():
    """The table's mean given a + b is flat in strength, so no frequency of it is a key frequency."""
    result = measure(memory())

    assert result.train_accuracy.value == 1
    assert result.test_accuracy.value < 0.15
    assert result.test_loss.value == pytest.approx(np.log(P))
    assert result.n_key == 0
    assert result.excluded_loss.value == pytest.approx(result.train_loss.value)


def test_progress_measures__of_nothing_is_guessing():
    result = measure(np.zeros((P * P, P)))

    for each in (result.train_loss, result.test_loss, result.restricted_loss, result.excluded_loss):
        assert each.value == pytest.approx(np.log(P))
    assert result.n_key == 0
    assert "no such circuit" in result.reading()


def test_progress_measures__a_part_of_the_circuit_does_not_suffice():
    whole, part = measure(circuit([3, 7])), measure(circuit([3, 7]), frequencies=(3,))

    assert part.restricted_loss.value > 10 * whole.restricted_loss.value
    assert part.excluded_loss.value < whole.excluded_loss.value
    assert part.key_power.value == pytest.approx(0.5)


def test_progress_measures__without_held_out_pairs_has_no_test_loss():
    result = progress_measures(circuit([3]), A, B, ANSWER, np.ones(P * P, dtype=np.int8))

    assert np.isnan(result.test_loss.value)
    assert np.isnan(result.test_accuracy.value)


# Oracle
def test_progress_measures__equals_projection_on_waves_over_all_pairs(rng):
    """The definition of Nanda et al.: inner products with unit waves of (a, b), pair by pair."""
    logits = circuit([3, 7], gain=2.0) + rng.normal(size=(P * P, P))
    result = measure(logits, frequencies=(3, 7))
    key_part = np.zeros_like(logits)
    for f in (3, 7):
        for wave in (np.cos, np.sin):
            direction = wave(2 * np.pi * f * (A + B) / P)
            direction /= np.linalg.norm(direction)
            key_part += np.outer(direction, direction @ logits)

    def loss(z, rows):
        z = z[rows] - z[rows].max(axis=1, keepdims=True)
        return np.mean(np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(z)), ANSWER[rows]])

    everything = np.ones(P * P, dtype=bool)
    assert result.restricted_loss.value == pytest.approx(loss(key_part + logits.mean(axis=0), everything), rel=1e-9)
    assert result.excluded_loss.value == pytest.approx(loss(logits - key_part, TRAIN == 1), rel=1e-9)
    assert result.train_loss.value == pytest.approx(loss(logits, TRAIN == 1), rel=1e-9)


def test_progress_measures__loss_equals_torchs(rng):
    import torch

    logits = 5 * rng.normal(size=(P * P, P))
    expected = torch.nn.functional.cross_entropy(
        torch.from_numpy(logits[TRAIN == 0]), torch.from_numpy(ANSWER[TRAIN == 0])
    )

    assert measure(logits).test_loss.value == pytest.approx(float(expected), rel=1e-12)


# Law
@given(seed=st.integers(0, 2**32 - 1), shift=st.floats(-50, 50))
@settings(max_examples=10)
def test_progress_measures__ignores_the_order_of_pairs_and_what_the_softmax_ignores(seed, shift):
    rng = generator(seed, "test")
    logits, order = circuit([5], gain=1.0) + rng.normal(size=(P * P, P)), rng.permutation(P * P)
    config = ProgressMeasuresConfig(frequencies=(5,), n_bootstrap=2, n_null=2)
    plain = progress_measures(logits, A, B, ANSWER, TRAIN, config=config)
    moved = progress_measures(logits[order] + shift, A[order], B[order], ANSWER[order], TRAIN[order], config=config)

    np.testing.assert_allclose(plain.losses, moved.losses, rtol=1e-9)
    assert plain.key_power.value == pytest.approx(moved.key_power.value, rel=1e-9)
    assert 0 <= plain.key_power.value <= 1
    assert np.all(plain.losses >= 0)


def test_progress_measures__same_seed_same_bits(rng):
    logits = circuit([5]) + rng.normal(size=(P * P, P))
    a, b = (measure(logits) for _ in range(2))

    assert a.scalars() == b.scalars()


# Bad input
@pytest.mark.usefixtures("no_shape_checks")
def test_progress_measures__refuses_other_lengths():
    with pytest.raises(ShapeError, match="one a, b, answer and train per sample"):
        progress_measures(circuit([3]), A[1:], B, ANSWER, TRAIN)


def test_progress_measures__refuses_missing_values():
    logits = circuit([3])
    logits[0, 0] = np.inf
    with pytest.raises(DegenerateInputError, match="logits must be finite"):
        measure(logits)


def test_progress_measures__refuses_numbers_outside_of_the_classes():
    with pytest.raises(DegenerateInputError, match="must lie in 0"):
        progress_measures(circuit([3]), A + 1, B, ANSWER, TRAIN)


def test_progress_measures__refuses_a_part_of_the_table():
    rows = slice(0, P * P - 1)
    with pytest.raises(DegenerateInputError, match="must be all 529 pairs"):
        progress_measures(circuit([3])[rows], A[rows], B[rows], ANSWER[rows], TRAIN[rows])


def test_progress_measures__refuses_a_frequency_that_does_not_exist():
    with pytest.raises(ConfigurationError, match="at most classes // 2 = 11"):
        measure(circuit([3]), frequencies=(12,))


@pytest.mark.parametrize(
    ("change", "message"), [({"frequencies": (0,)}, "at least 1"), ({"n_null": 0}, "n_null at least 1")]
)
def test_progress_measures_config__refuses(change, message):
    with pytest.raises(ConfigurationError, match=message):
        ProgressMeasuresConfig(**change)
