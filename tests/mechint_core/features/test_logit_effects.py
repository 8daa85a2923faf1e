from dataclasses import replace

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import nn

from mechint_core.errors import ConfigurationError, DegenerateInputError, NotFoundError, ShapeError
from mechint_core.features._output_slopes import SlopeRuns
from mechint_core.features.dictionaries.config import SparseAutoencoderConfig
from mechint_core.features.logit_effects import LogitEffectsConfig, logit_effects
from mechint_core.features.sparse_autoencoder import SparseAutoencoder
from mechint_core.models import rewritten
from mechint_core.random import generator, torch_generator
from mechint_core.synthetic.modular_addition import build_model


def dictionary(decoder, site=""):
    decoder = torch.as_tensor(np.asarray(decoder))
    made = SparseAutoencoder(decoder.shape[1], len(decoder), config=SparseAutoencoderConfig(activation="relu"))
    with torch.no_grad():
        made.W_dec.copy_(decoder)
    made.site = site
    return made


def seeded(model, seed=0, dtype=torch.float64):
    draws = torch_generator(seed, "weights")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draws) * 0.4)
    return model.to(dtype).eval()


class Sequences(nn.Module):
    """Tokens in, one row of logits per position out; (position, sample, unit) inside if asked."""

    def __init__(self, n_classes=7, batch_first=True):
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=batch_first)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.out = nn.Linear(8, n_classes)

    def forward(self, tokens):
        return self.out(self.layers(self.embed(tokens)))


def runs(model, site, **options):
    given = {"position": None, "answer_position": -1, "sample_axis": 0, "batch_size": 5, "n_groups": 13}
    return SlopeRuns(model, site, **(given | options))


# Known answer
def test_logit_effects__of_a_linear_model_are_its_weights(rng):
    """z = A B x: the effect of direction w at the first layer is A w, less its mean; no spread over samples."""
    model = seeded(nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4)))
    decoder = rng.normal(size=(8, 5))

    found = logit_effects(
        model, dictionary(decoder, "0"), rng.normal(size=(30, 6)), config=LogitEffectsConfig(n_shown=4)
    )

    made = dictionary(decoder).W_dec.detach().numpy().astype(float)  # the decoder holds single precision
    wanted = made @ model[1].weight.detach().numpy().T
    wanted -= wanted.mean(axis=1, keepdims=True)
    effect = np.empty_like(wanted)
    np.put_along_axis(effect, found.promoted, found.promoted_effect, axis=1)
    np.testing.assert_allclose(effect, wanted, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(found.promoted_low, found.promoted_high, atol=1e-12)
    np.testing.assert_allclose(found.largest, np.abs(wanted).max(axis=1), rtol=1e-12)
    assert (found.suppressed[:, 0] == wanted.argmin(axis=1)).all()


def test_logit_effects__finds_the_latents_that_the_output_reads(rng):
    """Ten of twenty directions lie in the read-out's three dimensions, ten in those that it ignores."""
    model = seeded(nn.Sequential(nn.Identity(), nn.Linear(40, 3, bias=False)))
    read = model[1].weight.detach().numpy() - model[1].weight.detach().numpy().mean(axis=0)
    basis = np.linalg.svd(read)[2]
    decoder = np.vstack([rng.normal(size=(10, 2)) @ basis[:2], rng.normal(size=(10, 38)) @ basis[2:]])
    decoder /= np.linalg.norm(decoder, axis=1, keepdims=True)

    found = logit_effects(model, dictionary(decoder, "0"), rng.normal(size=(20, 40)))

    assert (found.q_value[:10] <= 0.05).all()
    assert (found.q_value[10:] > 0.05).all()
    assert found.effective.value == 0.5
    assert found.effective.null <= 0.05
    assert "10 of 20 latents move a logit further than random directions" in found.reading()


def test_logit_effects__of_random_directions_are_within_their_null(rng):
    model = seeded(nn.Sequential(nn.Identity(), nn.Linear(30, 5)))
    decoder = rng.normal(size=(200, 30)) * rng.uniform(0.1, 3, size=(200, 1))

    found = logit_effects(model, dictionary(decoder, "0"), rng.normal(size=(10, 30)))

    assert found.n_effective <= 1
    assert found.strength.p_value > 0.05
    assert "not distinguishable" in found.reading()
    assert np.mean(found.p_value <= 0.2) == pytest.approx(0.2, abs=0.09)  # three standard errors of 200


def test_logit_effects__pushes_where_the_dictionary_was_trained():
    """The answer is at position 1 and positions do not mix: only a push there moves it."""
    model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 3, bias=False)).double()
    nn.init.eye_(model[1].weight)
    tokens, config = np.ones((6, 3), dtype=int), LogitEffectsConfig(answer_position=1, centred=False, n_shown=1)

    here, there = (logit_effects(model, dictionary(np.eye(3), f"0@{at}"), tokens, config=config) for at in (1, 2))

    assert here.promoted_effect[:, 0].tolist() == [1, 1, 1]
    assert here.promoted[:, 0].tolist() == [0, 1, 2]
    assert there.strength.value == 0


# Oracle
def test_logit_effects__equal_finite_differences_on_the_network_that_groks():
    """Central differences of the mean logits, in double precision: error of order 1e-8."""
    model = build_model(prime=7, width=16, heads=2, hidden=12).double()
    tokens = np.stack([np.repeat(np.arange(7), 7), np.tile(np.arange(7), 7), np.full(49, 7)], axis=1)
    made = dictionary(generator(0, "rows").normal(size=(3, 16)), "attention")
    config = LogitEffectsConfig(n_shown=7, centred=False, n_groups=7)  # which divides 49: no sample is left out

    found = logit_effects(model, made, tokens, config=config)

    for latent, direction in enumerate(made.W_dec.detach().double()):

        def mean_logits(step, direction=direction):
            with torch.no_grad(), rewritten(model, "attention", lambda x: x + step * direction):
                return model(torch.from_numpy(tokens)).mean(dim=0)

        wanted = (mean_logits(1e-4) - mean_logits(-1e-4)).numpy() / 2e-4
        np.testing.assert_allclose(found.promoted_effect[latent], wanted[found.promoted[latent]], atol=1e-7)
    assert found.promoted_low.min() < found.promoted_effect.min()


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("position", [None, 1])
def test_slope_runs__per_class_and_per_direction_agree_on_a_transformer(rng, batch_first, position):
    """The same derivative two ways, through attention and layer norms."""
    model = seeded(Sequences(batch_first=batch_first)).train()
    tokens, directions = rng.integers(0, 11, (13, 4)), rng.normal(size=(5, 8))
    made = runs(model, "layers.layers.0", position=position, sample_axis=0 if batch_first else 1)

    per_class = np.einsum("du,gcu->gdc", directions, made.by_class(tokens))
    per_direction = made.by_direction(tokens, directions)

    np.testing.assert_allclose(per_direction, per_class, rtol=1e-10, atol=1e-13)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_logit_effects__takes_the_fewer_passes(rng, monkeypatch):
    """Fewer directions than classes: 2 + 3 against 7; the same numbers."""
    model, tokens = seeded(Sequences(), dtype=torch.float32), rng.integers(0, 11, (20, 4))
    made = dictionary(rng.normal(size=(2, 8)), "layers.layers.0")
    few = logit_effects(model, made, tokens, config=LogitEffectsConfig(n_random=3))
    monkeypatch.setattr(SlopeRuns, "by_direction", None)

    many = logit_effects(model, made, tokens, config=LogitEffectsConfig(n_random=20))

    np.testing.assert_array_equal(few.promoted, many.promoted)
    np.testing.assert_allclose(few.promoted_effect, many.promoted_effect, atol=1e-5)  # single precision


# Law
@settings(max_examples=10)
@given(st.integers(2, 20), st.integers(1, 20), st.integers(0, 9))
def test_logit_effects__chunked_equals_whole(n_samples, batch_size, seed):
    model, x = seeded(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)), seed), generator(seed, "x")
    made, inputs = dictionary(x.normal(size=(5, 6)), "0"), x.normal(size=(n_samples, 4))

    config = LogitEffectsConfig(n_random=50)
    whole = logit_effects(model, made, inputs, config=config)
    chunked = logit_effects(model, made, inputs, config=replace(config, batch_size=batch_size))

    for name, values in whole.arrays().items():
        np.testing.assert_allclose(chunked.arrays()[name], values, rtol=1e-9, atol=1e-12, err_msg=name)


@settings(max_examples=10)
@given(st.floats(0.1, 10), st.integers(0, 9))
def test_logit_effects__scale_with_the_decoder_and_keep_their_p_values(factor, seed):
    model, x = seeded(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)), seed), generator(seed, "x")
    rows, inputs = x.normal(size=(5, 6)), x.normal(size=(12, 4))

    one = logit_effects(model, dictionary(rows, "0"), inputs)
    other = logit_effects(model, dictionary(factor * rows, "0"), inputs)

    np.testing.assert_allclose(other.largest, factor * one.largest, rtol=1e-5)
    np.testing.assert_allclose(
        other.p_value, one.p_value, atol=0.0021
    )  # single precision may move past one draw or two


# Bad input
def test_logit_effects__refuses_what_does_not_fit(rng):
    model, x = seeded(nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3))), rng.normal(size=(5, 4))
    with pytest.raises(ShapeError, match="unit = 5"):
        logit_effects(model, dictionary(np.eye(5), "0"), x)
    with pytest.raises(ShapeError, match="at least 2 samples"):
        logit_effects(model, dictionary(np.eye(6), "0"), x[:1])
    with pytest.raises(ConfigurationError, match="a site must be named"):
        logit_effects(model, dictionary(np.eye(6)), x)
    with pytest.raises(NotFoundError, match="must match a site"):
        logit_effects(model, dictionary(np.eye(6), "nowhere"), x)
    with pytest.raises(ShapeError, match="class >= 2"):
        logit_effects(nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 1)), dictionary(np.eye(6), "0"), x)
    with pytest.raises(ShapeError, match="position must be one of"):
        logit_effects(seeded(Sequences()), dictionary(np.eye(8), "embed@9"), np.ones((3, 4), dtype=int))


@pytest.mark.parametrize("n_random", [1, 20])
def test_logit_effects__refuses_an_output_that_ignores_the_site(rng, n_random):
    """In either mode."""

    class Deaf(nn.Module):
        def __init__(self):
            super().__init__()
            self.heard, self.ignored = nn.Linear(4, 6), nn.Linear(4, 5)

        def forward(self, x):
            self.ignored(x)
            return self.heard(x)

    with pytest.raises(DegenerateInputError, match="must depend on ignored"):
        logit_effects(
            Deaf().double(),
            dictionary(np.eye(5)[:2], "ignored"),
            rng.normal(size=(5, 4)),
            config=LogitEffectsConfig(n_random=n_random),
        )


def test_logit_effects__refuses_slopes_that_are_not_finite(rng):
    model = seeded(nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3)))
    model[1].weight.data[0, 0] = torch.nan
    with pytest.raises(DegenerateInputError, match="must be finite"):
        logit_effects(model, dictionary(np.eye(6), "0"), rng.normal(size=(5, 4)))


@pytest.mark.parametrize(
    "option",
    [{"n_samples": 1}, {"n_groups": 1}, {"batch_size": 0}, {"n_random": 0}, {"level": 1.0}, {"sample_axis": 2}],
)
def test_logit_effects__refuses_impossible_options(option):
    with pytest.raises(ConfigurationError, match="must be"):
        LogitEffectsConfig(**option)
