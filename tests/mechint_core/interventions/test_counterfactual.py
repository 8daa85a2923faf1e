"""Interventions on variables inside a model."""

import inspect
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy.stats import binom
from torch import nn

from mechint_core.errors import ConfigurationError, DegenerateInputError, NotFoundError, ShapeError
from mechint_core.interventions import CounterfactualConfig, counterfactual
from mechint_core.models import Patch, capture, inference, patched
from mechint_core.random import generator
from mechint_core.synthetic.causal_networks import ConceptNetwork, LinearCausalModel
from mechint_core.synthetic.small_transformer import SmallTransformer

unchecked = inspect.unwrap(counterfactual)  # without the shape checker of the tests, to meet our own messages

WEIGHTS = np.array([[0, 2.0, 1.0, 0], [0, 0, 3.0, -1.0], [0, 0, 0, 0.5], [0, 0, 0, 0]])


class Rectifier(nn.Module):
    """A dictionary with orthonormal rows and a threshold."""

    def __init__(self, n_units, n_latents):
        super().__init__()
        q, _ = np.linalg.qr(generator(0, "rows").normal(size=(n_units, n_units)))
        self.site, self.W_dec = "hidden", torch.from_numpy(q[:n_latents].copy())
        self.W_enc = self.W_dec

    def encode(self, x):
        return torch.relu(x @ self.W_dec.T)

    def decode(self, codes):
        return codes @ self.W_dec


@pytest.fixture(autouse=True)
def outcome(tmp_path, monkeypatch):
    """A metric of one's own: the last output, as it is."""
    (tmp_path / "last_output.py").write_text("def outcome(values, answer):\n    return values[:, -1]\n")
    monkeypatch.syspath_prepend(tmp_path)
    return "last_output:outcome"


def concept_data(n=40):
    model, draws = ConceptNetwork(), generator(0, "concept data")
    return model, draws.normal(size=(n, 16)), draws.normal(size=(n, 16)), np.ones(n, dtype=np.int64)


AT_HIDDEN = CounterfactualConfig(site="hidden", variable="direction")


# Known answer
@pytest.mark.parametrize("cause", [0, 1, 2])
def test_counterfactual__do_in_a_linear_causal_model_has_the_total_effect_as_its_slope(cause, outcome):
    """do(x_i = v) moves x_3 by ((I - B)^-1)_i3 v, for every sample alike: 1e-9 in float64."""
    model, noise = LinearCausalModel(WEIGHTS), generator(0, "noise").normal(size=(30, 4))
    config = CounterfactualConfig(site=model.sites[cause], kind="do", doses=(-1.0, 0.0, 2.0), metric=outcome)

    found = counterfactual(model, noise, config=config)

    effect = model.total_effects[cause, 3]
    for number in (found.slope.value, found.slope.low, found.slope.high):
        assert number == pytest.approx(effect, abs=1e-9)
    assert found.average_effect.value == pytest.approx(3 * effect, abs=1e-9)
    assert found.spread < 1e-9
    assert found.opposite_share == 0
    assert found.linearity == pytest.approx(1, abs=1e-9)
    others = np.delete(noise, cause, axis=1) @ np.delete(model.total_effects, cause, axis=0)[:, 3]
    if cause == 0:  # nothing stands before it: with x_0 = 0 the others are what they were
        assert found.response[1] == pytest.approx(others.mean(), abs=1e-9)


def test_counterfactual__interpolating_a_coordinate_moves_a_linear_read_out_in_proportion():
    model, inputs, source, target = concept_data()

    found = counterfactual(model, inputs, source, target, vector=3 * model.concept, config=AT_HIDDEN)

    moved = 2 * (source - inputs) @ model.concept
    np.testing.assert_allclose(found.individual_effect, moved, atol=1e-9)
    np.testing.assert_allclose(found.response - found.intact, found.dose * moved.mean(), atol=1e-9)
    assert found.spread == pytest.approx(moved.std(), abs=1e-9)
    assert found.opposite_share == (moved * moved.mean() < 0).mean()


def test_counterfactual__adding_is_an_edit_of_every_sample_alike():
    model, inputs, _, target = concept_data()
    config = replace(AT_HIDDEN, kind="add", doses=(0.0, 1.0, 3.0))

    found = counterfactual(model, inputs, target=target, vector=model.concept, config=config)

    np.testing.assert_allclose(found.response - found.intact, [0, 2, 6], atol=1e-9)
    assert found.average_effect.p_value < 0.01
    assert "moves the metric by 6 [6, 6] on average" in found.reading()


def test_counterfactual__a_direction_that_nothing_reads_is_told_from_nothing():
    model, inputs, source, target = concept_data()
    aside = np.eye(16)[0] - model.concept[0] * model.concept

    found = counterfactual(model, inputs, source, target, vector=aside, config=AT_HIDDEN)

    assert abs(found.average_effect.value) < 1e-9
    assert found.average_effect.p_value > 0.05
    assert "not distinguishable from a random push" in found.reading()


def test_counterfactual__units_and_latents_are_set_and_nothing_else():
    """Logits are 2 k . h: setting units u to v moves them by 2 k_u . (v - h_u); latents by their decoder's share."""
    model, inputs, _, target = concept_data()
    dictionary = Rectifier(16, 6)
    options = {"site": "hidden", "kind": "do", "doses": (0.0, 2.0)}

    units = CounterfactualConfig(**options, variable="units", units=(3, 7))
    of_units = counterfactual(model, inputs, target=target, config=units)
    latents = CounterfactualConfig(**options, variable="latents", latents=(4, 1))
    of_latents = counterfactual(model, inputs, target=target, dictionary=dictionary, config=latents)

    k = model.concept
    here = (inputs[:, [3, 7]] @ k[[3, 7]]).mean()
    np.testing.assert_allclose(
        of_units.response - of_units.intact, [2 * (v * k[[3, 7]].sum() - here) for v in (0, 2)], atol=1e-9
    )
    codes, rows = dictionary.encode(torch.from_numpy(inputs))[:, [4, 1]].numpy(), dictionary.W_dec.numpy()[[4, 1]]
    wanted = [(2 * (v - codes) @ rows @ k).mean() for v in (0, 2)]
    np.testing.assert_allclose(of_latents.response - of_latents.intact, wanted, atol=1e-9)


# Oracle
@pytest.mark.parametrize("position", [None, -1])
def test_counterfactual__swap_equals_patching_by_hand(position):
    model = SmallTransformer(vocabulary=7, hidden=8, norm=True, dtype=torch.float64)
    draws = generator(0, "tokens")
    (tokens, source), target = draws.integers(0, 7, size=(2, 20, 4)), draws.integers(0, 7, size=20)
    site = "layers.0.mlp"
    config = CounterfactualConfig(site=site, position=position, doses=(0.0, 1.0), metric="loss", batch_rows=9)

    found = counterfactual(model, tokens, source, target, config=config)

    with inference(model), capture(model, [site]) as seen:
        model(torch.from_numpy(source))
        part = () if position is None else (slice(None), position)
        donor = seen[site].clone()
        with patched(model, [Patch(site, donor[part], part)]):
            logits = model(torch.from_numpy(tokens))[:, -1]
    wanted = nn.functional.cross_entropy(logits, torch.from_numpy(target))
    assert found.response[1] == pytest.approx(float(wanted), abs=1e-9)
    assert found.response[0] == pytest.approx(found.intact, abs=1e-9)


# Law
@settings(max_examples=5)
@given(st.integers(2, 12), st.integers(3, 40), st.integers(1, 20_000), st.sampled_from(["interpolate", "do", "add"]))
def test_counterfactual__does_not_depend_on_how_it_is_packed(n, batch_rows, cache_bytes, kind):
    model, inputs, source, target = concept_data(n)
    config = replace(AT_HIDDEN, kind=kind, n_draws=20, metric="probability")

    whole = counterfactual(model, inputs, source, target, vector=model.concept, config=config)
    packed = replace(config, batch_rows=batch_rows, cache_bytes=cache_bytes)
    parts = counterfactual(model, inputs, source, target, vector=model.concept, config=packed)

    for name, values in whole.arrays().items():
        np.testing.assert_allclose(parts.arrays()[name], values, atol=1e-9, err_msg=name)


@pytest.mark.parametrize("n_models", [40, pytest.param(200, marks=pytest.mark.slow)])
def test_counterfactual__untrained_models_show_no_effect_beyond_the_level(n_models):
    """Random transformers with answers at random: the rate at the level of 0.05 lies in its 99.9 % band."""
    hits = []
    for seed in range(n_models):
        model = SmallTransformer(vocabulary=7, n_layers=1, hidden=8, seed=seed)
        draws = generator(seed, "random answers")
        (tokens, source), target = draws.integers(0, 7, size=(2, 40, 3)), draws.integers(0, 7, size=40)
        config = CounterfactualConfig(site="layers.0.mlp", doses=(0.0, 1.0), n_draws=199, seed=seed)
        hits.append(counterfactual(model, tokens, source, target, config=config).average_effect.p_value <= 0.05)
    assert sum(hits) <= binom.ppf(0.999, n_models, 0.05)


def test_counterfactual__same_seed_same_bits_and_the_model_is_left_as_it_was():
    model = SmallTransformer(vocabulary=7, hidden=8).train()
    tokens = generator(0, "tokens").integers(0, 7, size=(20, 4))
    config = CounterfactualConfig(site="layers.0.mlp")
    first, second = (counterfactual(model, tokens, tokens[::-1], tokens[:, 0], config=config) for _ in range(2))
    assert all(np.array_equal(first.arrays()[name], second.arrays()[name]) for name in first.arrays())
    assert all(each.training for each in model.modules())
    assert not any(each._forward_hooks or each._forward_pre_hooks for each in model.modules())


# Bad input
def test_counterfactual__raises_where_what_the_variable_needs_is_missing():
    model, inputs, source, target = concept_data()
    with pytest.raises(ConfigurationError, match="needs a source"):
        unchecked(model, inputs, target=target, vector=model.concept, config=AT_HIDDEN)
    with pytest.raises(ConfigurationError, match="needs a vector"):
        unchecked(model, inputs, source, target, config=AT_HIDDEN)
    latents = CounterfactualConfig(site="hidden", variable="latents", latents=(6,))
    with pytest.raises(ConfigurationError, match="needs a dictionary"):
        unchecked(model, inputs, source, target, config=latents)
    with pytest.raises(ConfigurationError, match=r"latents must lie in 0\.\.\.5\. Got \(6,\)"):
        unchecked(model, inputs, source, target, dictionary=Rectifier(16, 6), config=latents)
    with pytest.raises(ConfigurationError, match=r"units must be different, of 0\.\.\.15\. Got \(16,\)"):
        unchecked(
            model, inputs, source, target, config=CounterfactualConfig(site="hidden", variable="units", units=(16,))
        )


def test_counterfactual__raises_on_arrays_that_do_not_fit():
    model, inputs, source, target = concept_data()
    with pytest.raises(ShapeError, match=r"source must have the shape of inputs, \(40, 16\)"):
        unchecked(model, inputs, source[:5], target, vector=model.concept, config=AT_HIDDEN)
    with pytest.raises(ShapeError, match=r"the site's 16 units\. Got 3"):
        unchecked(model, inputs, source, target, vector=np.ones(3), config=AT_HIDDEN)
    latents = CounterfactualConfig(site="hidden", variable="latents", latents=(1,))
    with pytest.raises(ShapeError, match=r"dictionary must be of the site's 16 units\. Got 8"):
        unchecked(model, inputs, source, target, dictionary=Rectifier(8, 4), config=latents)
    with pytest.raises(DegenerateInputError, match="a finite vector other than 0"):
        unchecked(model, inputs, source, target, vector=np.zeros(16), config=AT_HIDDEN)
    with pytest.raises(DegenerateInputError, match="inputs must be finite"):
        unchecked(model, inputs, np.nan * source, target, vector=model.concept, config=AT_HIDDEN)
    with pytest.raises(ShapeError, match="sample >= 2"):
        unchecked(model, inputs[:1], source[:1], target[:1], vector=model.concept, config=AT_HIDDEN)
    with pytest.raises(ConfigurationError, match="site must name one module"):
        unchecked(model, inputs, source, target, vector=model.concept, config=replace(AT_HIDDEN, site="*"))
    with pytest.raises(NotFoundError, match="Got no match for 'state'"):
        unchecked(model, inputs, source, target, vector=model.concept, config=replace(AT_HIDDEN, site="state"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variable": "head"}, "variable must be one of site, units"),
        ({"kind": "swap"}, "kind must be one of interpolate, do, add"),
        ({"variable": "units"}, "units must be given"),
        ({"latents": (1,)}, "latents must be given for variable='latents', and only then"),
        ({"doses": (0.0,)}, "at least 2 finite numbers that rise"),
    ],
)
def test_counterfactual__config_names_what_is_wrong(options, message):
    config = CounterfactualConfig()
    for name, value in options.items():  # past the type checker of the tests, which meets some of these first
        object.__setattr__(config, name, value)
    with pytest.raises(ConfigurationError, match=message):
        config.__post_init__()
