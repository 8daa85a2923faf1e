import sys

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from mechint_core.errors import ConfigurationError, DegenerateInputError, ShapeError
from mechint_core.features.dictionaries.config import SparseAutoencoderConfig
from mechint_core.features.feature_examples import FeatureExamplesConfig, feature_examples
from mechint_core.features.sparse_autoencoder import SparseAutoencoder
from mechint_core.random import generator

QUICK = FeatureExamplesConfig(n_bootstrap=20, n_null=2)


def dictionary(decoder):
    """Codes are the activations on the decoder's rows, cut at zero."""
    decoder = torch.as_tensor(np.asarray(decoder), dtype=torch.float64)
    made = SparseAutoencoder(decoder.shape[1], len(decoder), config=SparseAutoencoderConfig(activation="relu")).double()
    with torch.no_grad():
        made.W_enc.copy_(decoder)
        made.W_dec.copy_(decoder)
    return made


# Known answer
def test_feature_examples__shows_the_strongest_first_and_then_the_range_below():
    """One latent on 0.1, 0.2, ..., 2.0: the top three, then quantiles 5/6, 1/2 and 1/6 of the other seventeen."""
    values = np.roll(np.arange(1, 21) / 10, 7)[:, None]

    shown = feature_examples(values, dictionary([[1.0]]), config=FeatureExamplesConfig(n_top=3, n_spread=3))

    np.testing.assert_allclose(shown.example_value[0], [2.0, 1.9, 1.8, 1.5, 0.9, 0.3], rtol=1e-12)
    np.testing.assert_allclose(shown.example_quantile[0], [1.0, 0.95, 0.9, 0.75, 0.45, 0.15], rtol=1e-12)
    np.testing.assert_allclose(values[shown.example_sample[0], 0], shown.example_value[0], rtol=1e-12)


def test_feature_examples__has_no_examples_where_a_latent_does_not_fire():
    shown = feature_examples(np.array([[1.0, -1.0], [2.0, -1.0], [-3.0, -1.0]]), dictionary(np.eye(2)))

    assert shown.example_sample[0, :3].tolist() == [1, 0, -1]
    assert (shown.example_sample[1] == -1).all()
    assert np.isnan(shown.example_value[1]).all()
    assert shown.n_dead == 1
    assert shown.density.tolist() == [2 / 3, 0]
    assert shown.mean_activation.tolist() == [1.5, 0]
    assert shown.max_activation.tolist() == [2, 0]
    assert np.isnan(shown.nearest_cosine.value)
    assert "1 of 2 latents" in shown.reading()


def test_feature_examples__shows_tokens_around_the_strongest_position():
    """Five positions, strongest at 0, 2 and 4: a window of three that stays within the text."""
    codes = np.zeros((3, 5, 1))
    codes[0, 0], codes[1, 2], codes[2, 4], codes[2, 3] = 3.0, 2.0, 1.0, 0.5
    tokens = np.arange(15).reshape(3, 5)

    shown = feature_examples(codes, dictionary([[1.0]]), tokens, config=FeatureExamplesConfig(context=1))

    assert shown.context_token[0, :3].tolist() == [[0, 1, 2], [6, 7, 8], [12, 13, 14]]
    assert shown.context_activation[0, :3].tolist() == [[3, 0, 0], [0, 2, 0], [0, 0.5, 1]]
    assert shown.example_position[0, :3].tolist() == [0, 2, 4]
    assert shown.context_start[0, :3].tolist() == [0, 1, 2]
    assert (shown.context_token[0, 3:] == -1).all()


def test_feature_examples__padding_neither_counts_nor_shows():
    codes, tokens = np.ones((2, 3, 1)), np.full((2, 3), 7)
    codes[:, 2] = 9.0
    mask = np.array([[1, 1, 0], [1, 0, 0]])

    shown = feature_examples(codes, dictionary([[1.0]]), tokens, mask)

    assert shown.n_vectors == 3
    assert shown.density.tolist() == [1]
    assert shown.example_value[0, :2].tolist() == [1, 1]
    assert shown.context_token[0, 0].tolist() == [7, 7, -1]
    assert np.isnan(shown.context_activation[0, 1]).tolist() == [False, True, True]


def test_feature_examples__finds_twins_and_companions(rng):
    """Latent 1 is nearly 0's direction; latent 2 fires when 3 does, on another axis."""
    decoder = np.eye(6)[:4]
    decoder[1] = 0.98 * np.eye(6)[0] + np.sqrt(1 - 0.98**2) * np.eye(6)[4]
    x = np.zeros((200, 6))
    x[:, 2] = x[:, 3] = np.where(rng.random(200) < 0.3, 1.0, -1.0)
    x[:, 0] = np.where(rng.random(200) < 0.3, 1.0, -1.0)

    shown = feature_examples(x, dictionary(decoder))

    assert shown.neighbour[[0, 1], 0].tolist() == [1, 0]
    assert shown.neighbour_cosine[0, 0] == pytest.approx(0.98)
    assert shown.companion[[2, 3], 0].tolist() == [3, 2]
    assert shown.companion_correlation[2, 0] == pytest.approx(1)
    assert shown.twin_share.value == 0.5
    assert shown.nearest.shape == (4,)
    assert shown.neighbour[0, 3] == -1  # there are only three others


def test_feature_examples__random_directions_are_not_more_alike_than_chance(rng):
    rows = rng.normal(size=(60, 20))

    chance = feature_examples(rng.normal(size=(300, 20)), dictionary(rows))
    copied = feature_examples(rng.normal(size=(300, 20)), dictionary(np.vstack([rows[:30], rows[:30]])))

    assert chance.nearest_cosine.p_value > 0.05
    assert "not distinguishable from random directions" in chance.reading()
    assert copied.nearest_cosine.value == pytest.approx(1)
    assert copied.nearest_cosine.p_value == 0.05
    assert copied.twin_share.value == 1


# Oracle
def test_feature_examples__equals_plain_formulas(rng):
    x, made = rng.normal(size=(80, 3, 6)), dictionary(rng.normal(size=(9, 6)))
    codes = made.encode(torch.from_numpy(x)).detach().numpy()

    shown = feature_examples(x, made, config=QUICK)

    best = np.argsort(-codes.max(axis=1), axis=0, kind="stable")[:10].T
    np.testing.assert_array_equal(shown.example_sample[:, :10], best)
    np.testing.assert_array_equal(shown.example_position[:, 0], codes.argmax(axis=1)[best[:, 0], np.arange(9)])
    fires = codes.reshape(-1, 9) > 0
    np.testing.assert_allclose(shown.density, fires.mean(axis=0), rtol=1e-12)
    phi = np.corrcoef(fires.T) - 2 * np.eye(9)
    np.testing.assert_array_equal(shown.companion[:, 0], phi.argmax(axis=1))
    np.testing.assert_allclose(shown.companion_correlation[:, 0], phi.max(axis=1), rtol=1e-10)


def test_feature_examples__draws_the_range_below_evenly_from_many_samples(rng):
    """10,000 uniform values: quantiles of a draw of 64 have a standard error of at most 0.0625."""
    shown = feature_examples(rng.random((10_000, 1)), dictionary([[1.0]]), config=FeatureExamplesConfig(n_spread=4))

    assert shown.example_value[0, 10:] == pytest.approx([0.875, 0.625, 0.375, 0.125], abs=0.2)
    assert shown.example_quantile[0, 10:] == pytest.approx([0.875, 0.625, 0.375, 0.125], abs=0.03)


# Law
@settings(max_examples=15)
@given(st.integers(1, 60), st.integers(1, 3), st.integers(0, 9), st.integers(5, 200))
def test_feature_examples__chunked_equals_whole(n_samples, n_positions, seed, chunk):
    rng = generator(seed, "x")
    x = np.round(rng.normal(size=(n_samples, n_positions, 4)), 1)  # with ties
    made = dictionary(np.vstack([np.eye(4), -np.eye(4)]))
    module = sys.modules["mechint_core.features._encoded_blocks"]
    whole = feature_examples(x, made, config=QUICK)
    kept, module.CHUNK_VALUES = module.CHUNK_VALUES, chunk
    try:
        chunked = feature_examples(x, made, config=QUICK)
    finally:
        module.CHUNK_VALUES = kept

    for name, values in whole.arrays().items():
        np.testing.assert_allclose(chunked.arrays()[name], values, rtol=1e-12, err_msg=name)


@settings(max_examples=15)
@given(st.integers(2, 50), st.integers(0, 9))
def test_feature_examples__is_sorted_and_within_the_data(n_samples, seed):
    x = generator(seed, "x").normal(size=(n_samples, 5))

    shown = feature_examples(x, dictionary(np.eye(5)), config=QUICK)

    for values, samples, n_active in zip(shown.example_value, shown.example_sample, (x > 0).sum(axis=0), strict=True):
        known = samples[samples >= 0]
        assert len(known) == min(n_active, 15)
        assert len(set(known)) == len(known)
        assert (np.diff(values[: min(10, n_active)]) <= 0).all()
    assert (shown.example_quantile[np.isfinite(shown.example_quantile)] <= 1).all()


# Bad input
@pytest.mark.parametrize("shape", [(5, 4), (0, 3), (5, 0, 3)])
def test_feature_examples__refuses_other_units_or_nothing(shape):
    with pytest.raises(ShapeError, match="activations must be"):
        feature_examples(np.ones(shape), dictionary(np.eye(3)))


def test_feature_examples__refuses_tokens_that_do_not_fit():
    with pytest.raises(ShapeError, match="tokens must be"):
        feature_examples(np.ones((5, 2, 3)), dictionary(np.eye(3)), np.ones((5, 4), dtype=int))


def test_feature_examples__refuses_what_is_not_finite():
    with pytest.raises(DegenerateInputError, match="must be finite"):
        feature_examples(np.full((5, 3), np.nan), dictionary(np.eye(3)))


@pytest.mark.parametrize(
    "option", [{"n_top": 0}, {"n_spread": -1}, {"context": -1}, {"n_null": 0}, {"level": 0.0}, {"seed": -1}]
)
def test_feature_examples__refuses_impossible_options(option):
    with pytest.raises(ConfigurationError, match="must be"):
        FeatureExamplesConfig(**option)
