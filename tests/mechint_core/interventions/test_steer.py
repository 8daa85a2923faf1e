"""Steering by a vector added at a site."""

import inspect
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy.stats import binom
from torch import nn

from mechint_core.errors import ConfigurationError, DegenerateInputError, NotFoundError, ShapeError
from mechint_core.interventions import SteerConfig, steer
from mechint_core.models import inference, rewritten
from mechint_core.random import generator
from mechint_core.synthetic.causal_networks import ConceptNetwork
from mechint_core.synthetic.small_transformer import SmallTransformer

unchecked = inspect.unwrap(steer)  # without the shape checker of the tests, to meet our own messages

GROUPS = SteerConfig(site="hidden", n_random=99)
AT_HIDDEN = SteerConfig(site="hidden", source="given", dose_unit="vector")


class Dictionary(nn.Module):
    """Latents along chosen rows."""

    def __init__(self, rows):
        super().__init__()
        self.site, self.W_dec = "hidden", torch.from_numpy(np.stack(rows))
        self.W_enc = self.W_dec

    def encode(self, x):
        return x @ self.W_dec.T

    def decode(self, codes):
        return codes @ self.W_dec


def concept_data(n=60):
    model = ConceptNetwork()
    inputs, _ = model.samples(n, seed=1)
    examples, label = model.samples(n, seed=2)
    return model, inputs, np.ones(n, dtype=np.int64), examples, label


# Known answer
def test_steer__slope_is_exactly_the_linear_read_out_of_the_vector():
    """w . v in float64, for every input: 1e-9, and so are both ends of the interval."""
    model, inputs, target, _, _ = concept_data()
    vector = generator(0, "vector").normal(size=16)

    found = steer(model, inputs, target, vector=vector, config=AT_HIDDEN)

    for number in (found.slope.value, found.slope.low, found.slope.high):
        assert number == pytest.approx(model.slope(vector), abs=1e-9)
    assert found.largest_change.value == pytest.approx(8 * model.slope(vector), abs=1e-9)
    assert found.linearity == pytest.approx(1, abs=1e-9)
    np.testing.assert_allclose(found.vector, vector)


def test_steer__a_dose_is_a_standard_deviation_of_the_activations_along_the_vector():
    model, inputs, target, _, _ = concept_data()
    vector = 7 * model.concept

    found = steer(model, inputs, target, vector=vector, config=replace(AT_HIDDEN, dose_unit="deviation"))

    deviation = (inputs @ model.concept).std()
    assert found.deviation == pytest.approx(deviation, abs=1e-9)
    assert found.length == pytest.approx(7, abs=1e-9)
    assert found.slope.value == pytest.approx(deviation * model.slope(model.concept), abs=1e-9)
    np.testing.assert_allclose(found.vector, deviation * model.concept)


@pytest.mark.parametrize("source", ["mean_difference", "probe"])
def test_steer__two_groups_give_the_concept_that_tells_them_apart(source):
    """60 examples at separation 4 in 16 dimensions: error sqrt(16 4 / 60) / 4 of the vector, a cosine near 0.97."""
    model, inputs, target, examples, label = concept_data()

    found = steer(model, inputs, target, examples=examples, label=label, config=replace(GROUPS, source=source))

    cosine = found.vector @ model.concept / np.linalg.norm(found.vector)
    assert cosine > 0.9
    assert found.slope.value == pytest.approx(model.slope(found.vector), abs=1e-9)
    assert found.slope.p_value == 0.01
    assert found.n_shared == 0
    assert "more than control vectors of its length do (p = 0.01)" in found.reading()


def test_steer__a_latent_is_steered_by_its_decoder_row():
    model, inputs, target, _, _ = concept_data()
    dictionary = Dictionary([np.eye(16)[0], 2 * model.concept])

    found = steer(model, inputs, target, dictionary=dictionary, config=replace(AT_HIDDEN, source="latent", latent=1))

    assert found.slope.value == pytest.approx(4, abs=1e-9)


def test_steer__probability_saturates_and_its_side_effects_are_those_of_the_neutral_inputs():
    """Neutral inputs whose answer is sure are moved less; KL by hand."""
    model, inputs, target, _, _ = concept_data()
    neutral = 5 * np.tile(model.concept, (4, 1)) + generator(0, "neutral").normal(size=(4, 16)) * 0.01
    config = replace(AT_HIDDEN, metric="probability")

    found = steer(model, inputs, target, vector=model.concept, neutral=neutral, config=config)

    assert found.linearity < 0.999
    x = 2 * (neutral @ model.concept)
    p, q = 1 / (1 + np.exp(-x)), 1 / (1 + np.exp(-(x + 2 * found.dose[-1])))
    wanted = (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).mean()
    assert found.side_effect[-1] == pytest.approx(wanted, abs=1e-9)
    assert found.side_effect[3] == 0  # dose 0
    assert found.side_effect_at_last.value == found.side_effect[-1]


def test_steer__counts_inputs_that_made_the_vector():
    model, inputs, target, _, label = concept_data()
    found = steer(model, inputs, target, examples=inputs[:50], label=label[:50], config=GROUPS)
    assert found.n_shared == 50
    assert "50 inputs were among the examples" in found.reading()


# Oracle
@pytest.mark.parametrize("position", [None, 1])
def test_steer__equals_the_one_by_one_loop_in_a_transformer(position):
    model = SmallTransformer(vocabulary=7, hidden=8, norm=True, dtype=torch.float64)
    draws = generator(0, "tokens")
    tokens, target, vector = draws.integers(0, 7, size=(20, 4)), draws.integers(0, 7, size=20), draws.normal(size=16)
    config = SteerConfig(
        site="layers.0.mlp", source="given", dose_unit="vector", position=position, doses=(-1.0, 0.5), n_random=3,
        metric="loss", batch_rows=7,
    )  # fmt: skip

    found = steer(model, tokens, target, vector=vector, config=config)

    for k, dose in enumerate(config.doses):

        def push(x, dose=dose):
            x = x.clone()
            x[:, slice(None) if position is None else position] += dose * torch.from_numpy(vector)
            return x

        with inference(model), rewritten(model, "layers.0.mlp", push):
            logits = model(torch.from_numpy(tokens))[:, -1]
        wanted = nn.functional.cross_entropy(logits, torch.from_numpy(target))
        assert found.response[k] == pytest.approx(float(wanted), abs=1e-9)


def test_steer__probe_is_the_direction_of_ridge_regression():
    from sklearn.linear_model import Ridge

    model, inputs, target, examples, label = concept_data()
    x = examples - examples.mean(axis=0)
    strength = 0.3 * np.square(x).sum() / 16  # 0.3 of the mean variance, times the number of examples

    found = steer(
        model, inputs, target, examples=examples, label=label, config=replace(GROUPS, source="probe", shrinkage=0.3)
    )

    wanted = Ridge(alpha=strength).fit(x, label).coef_
    cosine = found.vector @ wanted / np.linalg.norm(found.vector) / np.linalg.norm(wanted)
    assert cosine == pytest.approx(1, abs=1e-9)


# Law
@settings(max_examples=5)
@given(st.integers(5, 50), st.integers(1, 5_000), st.sampled_from(["mean_difference", "probe"]))
def test_steer__does_not_depend_on_how_it_is_packed(batch_rows, cache_bytes, source):
    model, inputs, target, examples, label = concept_data(20)
    config = replace(GROUPS, source=source, n_random=2, n_draws=20, doses=(-1.0, 1.0))

    whole = steer(model, inputs, target, examples=examples, label=label, config=config)
    packed = replace(config, batch_rows=batch_rows, cache_bytes=cache_bytes)
    parts = steer(model, inputs, target, examples=examples, label=label, config=packed)

    for name, values in whole.arrays().items():
        np.testing.assert_allclose(parts.arrays()[name], values, atol=1e-8, err_msg=name)


@pytest.mark.parametrize("source", ["mean_difference", "probe"])
@pytest.mark.parametrize("n_models", [40, pytest.param(200, marks=pytest.mark.slow)])
def test_steer__shuffled_labels_steer_untrained_models_at_the_level_only(source, n_models):
    """Random transformers with groups at random: the rate at the level of 0.05 lies in its 99.9 % band."""
    hits = []
    for seed in range(n_models):
        model = SmallTransformer(vocabulary=7, n_layers=1, hidden=8, seed=seed)
        draws = generator(seed, "shuffled labels")
        tokens, target = draws.integers(0, 7, size=(40, 3)), np.zeros(40, dtype=np.int64)
        config = SteerConfig(site="layers.0.mlp", source=source, doses=(-1.0, 1.0), n_random=19, n_draws=20, seed=seed)
        label = draws.permutation(np.arange(40) % 2)
        examples = draws.integers(0, 7, size=(40, 3))
        hits.append(steer(model, tokens, target, examples=examples, label=label, config=config).slope.p_value <= 0.05)
    assert sum(hits) <= binom.ppf(0.999, n_models, 0.05)


def test_steer__same_seed_same_bits_and_the_model_is_left_as_it_was():
    model, inputs, target, examples, label = concept_data()
    model.train()
    first, second = (steer(model, inputs, target, examples=examples, label=label, config=GROUPS) for _ in range(2))
    assert all(np.array_equal(first.arrays()[name], second.arrays()[name]) for name in first.arrays())
    assert all(each.training for each in model.modules())
    assert not any(each._forward_hooks or each._forward_pre_hooks for each in model.modules())


# Bad input
def test_steer__raises_on_sources_that_miss_something():
    model, inputs, target, examples, _ = concept_data()
    with pytest.raises(ConfigurationError, match="needs examples and the label"):
        unchecked(model, inputs, target, examples=examples, config=GROUPS)
    with pytest.raises(ConfigurationError, match="needs a vector"):
        unchecked(model, inputs, target, config=AT_HIDDEN)
    latent = replace(AT_HIDDEN, source="latent", latent=2)
    with pytest.raises(ConfigurationError, match="needs a dictionary"):
        unchecked(model, inputs, target, config=latent)
    with pytest.raises(ConfigurationError, match=r"latent must lie in 0\.\.\.1\. Got 2"):
        unchecked(model, inputs, target, dictionary=Dictionary(np.eye(16)[:2]), config=latent)


def test_steer__raises_on_vectors_that_steer_nothing():
    model, inputs, target, examples, label = concept_data()
    with pytest.raises(ShapeError, match=r"the site's 16 units\. Got 3"):
        unchecked(model, inputs, target, vector=np.ones(3), config=AT_HIDDEN)
    with pytest.raises(DegenerateInputError, match="finite and not 0"):
        unchecked(model, inputs, target, vector=np.zeros(16), config=AT_HIDDEN)
    with pytest.raises(DegenerateInputError, match="finite and not 0"):
        unchecked(model, inputs, target, examples=np.ones((4, 16)), label=np.array([0, 0, 1, 1]), config=GROUPS)
    with pytest.raises(DegenerateInputError, match="must vary along the vector"):
        unchecked(model, np.ones((4, 16)), target[:4], vector=np.ones(16), config=AT_HIDDEN)
    with pytest.raises(DegenerateInputError, match=r"two groups.*Got groups of \[60\]"):
        unchecked(model, inputs, target, examples=examples, label=0 * label, config=GROUPS)
    with pytest.raises(ShapeError, match=r"one group per example, \(60,\)"):
        unchecked(model, inputs, target, examples=examples, label=label[:5], config=GROUPS)
    config = replace(GROUPS, source="probe")
    with pytest.raises(DegenerateInputError, match="must differ at the site"):
        unchecked(model, inputs, target, examples=np.ones((4, 16)), label=np.array([0, 0, 1, 1]), config=config)


def test_steer__raises_on_inputs_and_sites_that_make_no_sense():
    model, inputs, target, _, _ = concept_data()
    with pytest.raises(ShapeError, match="sample >= 2"):
        unchecked(model, inputs[:1], target[:1], vector=model.concept, config=AT_HIDDEN)
    with pytest.raises(ConfigurationError, match="needs a target"):
        unchecked(model, inputs, vector=model.concept, config=AT_HIDDEN)
    with pytest.raises(DegenerateInputError, match="inputs must be finite"):
        unchecked(model, inputs * np.nan, target, vector=model.concept, config=AT_HIDDEN)
    with pytest.raises(ConfigurationError, match="site must name one module"):
        unchecked(model, inputs, target, vector=model.concept, config=replace(AT_HIDDEN, site="*"))
    with pytest.raises(NotFoundError, match="Got no match for ''"):
        unchecked(model, inputs, target, vector=model.concept, config=SteerConfig(source="given"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "random"}, "source must be one of mean_difference, probe"),
        ({"dose_unit": "norm"}, "dose_unit must be deviation or vector"),
        ({"doses": (1.0,)}, "at least 2 finite numbers that rise"),
        ({"doses": (1.0, 0.0)}, "that rise"),
        ({"n_random": 0}, "n_random at least 1"),
        ({"shrinkage": 0.0}, "shrinkage must be above 0"),
    ],
)
def test_steer__config_names_what_is_wrong(options, message):
    config = SteerConfig()
    for name, value in options.items():  # past the type checker of the tests, which meets some of these first
        object.__setattr__(config, name, value)
    with pytest.raises(ConfigurationError, match=message):
        config.__post_init__()
