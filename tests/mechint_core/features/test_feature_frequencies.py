"""Tuning of dictionary features to a cyclic variable: planted waves, no waves, shuffled values."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from mechint_core.errors import DegenerateInputError, ShapeError
from mechint_core.features import (
    FeatureFrequenciesConfig,
    SparseAutoencoder,
    SparseAutoencoderConfig,
    feature_frequencies,
)
from mechint_core.random import generator

PERIOD = 23


def identity(n):
    """A dictionary whose codes are the positive units."""
    made = SparseAutoencoder(n, n, config=SparseAutoencoderConfig(activation="relu"))
    with torch.no_grad():
        made.W_enc.copy_(torch.eye(n))
        made.W_dec.copy_(torch.eye(n))
    return made


def waves(frequencies, n_samples=690, noise=0.3, seed=0):
    draws = generator(seed, "waves")
    value = draws.permutation(np.arange(n_samples) % PERIOD)
    phase = draws.uniform(0, 2 * np.pi, len(frequencies))
    clean = np.cos(2 * np.pi * np.outer(value, frequencies) / PERIOD + phase) * (np.asarray(frequencies) > 0)
    return (clean + noise * draws.normal(size=clean.shape)).astype(np.float32), value


# Known answer
def test_feature_frequencies__finds_planted_frequencies():
    planted = [3, 3, 3, 8, 8, 8, 8, 11, 11, 3]
    activations, value = waves(planted)

    found = feature_frequencies(activations, identity(10), value, config=FeatureFrequenciesConfig(n_key=3))

    assert found.best_frequency.tolist() == planted
    assert found.tuned.value == 1
    assert found.aligned.value == 1
    assert found.aligned.p_value < 0.05
    assert found.n_tuned_to[[2, 7, 10]].tolist() == [4, 4, 2]
    assert "share 3 frequencies, 3, 8, 11" in found.reading()


def test_feature_frequencies__a_pure_wave_has_all_its_power_at_one():
    """A rectified wave is not pure, so the code must stay positive."""
    activations, value = waves([4], noise=0.0)

    assert feature_frequencies(activations + 2, identity(1), value).tuning[0] == pytest.approx(1, abs=1e-6)


# Law
def test_feature_frequencies__noise_is_seldom_tuned():
    """40 latents without a wave, 25 draws: at most 5 % of draws should have any discovery, 4 of 25 at p = 0.03."""
    any_tuned = 0
    for seed in range(25):
        activations, value = waves([0] * 40, seed=seed)
        any_tuned += feature_frequencies(activations, identity(40), value).tuned.value > 0

    assert any_tuned <= 4


@settings(max_examples=10)
@given(st.integers(1, PERIOD - 1))
def test_feature_frequencies__does_not_depend_on_where_the_circle_begins(shift):
    activations, value = waves([3, 8, 0, 5])
    config = FeatureFrequenciesConfig(n_null=19)
    here = feature_frequencies(activations, identity(4), value, config=config)
    there = feature_frequencies(activations, identity(4), (value + shift) % PERIOD, config=config)

    np.testing.assert_allclose(there.tuning, here.tuning, rtol=1e-9)
    assert there.best_frequency.tolist() == here.best_frequency.tolist()


def test_feature_frequencies__a_dead_latent_is_left_out():
    activations, value = waves([3, 8, 5])
    activations[:, 1] = -1

    found = feature_frequencies(activations, identity(3), value)

    assert found.n_living == 2
    assert np.isnan(found.tuning[1])


# Bad input
def test_feature_frequencies__refuses_other_lengths_and_widths():
    activations, value = waves([3, 8])
    with pytest.raises(ShapeError, match="activations must be"):
        feature_frequencies(activations[:-1], identity(2), value)
    with pytest.raises(ShapeError, match="unit = 3"):
        feature_frequencies(activations, identity(3), value)


def test_feature_frequencies__refuses_values_that_do_not_occur():
    activations, value = waves([3, 8])
    with pytest.raises(DegenerateInputError, match="each of its values 0 to 29"):
        feature_frequencies(activations, identity(2), value, config=FeatureFrequenciesConfig(period=30))


def test_feature_frequencies__refuses_a_silent_dictionary():
    activations, value = waves([3])
    with pytest.raises(DegenerateInputError, match="some latent must fire"):
        feature_frequencies(-np.abs(activations), identity(1), value)
