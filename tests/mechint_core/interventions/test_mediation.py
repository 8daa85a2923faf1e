"""Direct and indirect effects through mediators."""

import inspect

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy.stats import binom

from mechint_core.errors import ConfigurationError, DegenerateInputError, NotFoundError, ShapeError
from mechint_core.interventions import MediationConfig, PatchSitesConfig, mediation, patch_sites
from mechint_core.models import Patch, capture, inference, patched
from mechint_core.random import generator
from mechint_core.synthetic.causal_networks import InteractionNetwork, TwoRouteNetwork
from mechint_core.synthetic.linear_network import LinearNetwork
from mechint_core.synthetic.small_transformer import SmallTransformer

unchecked = inspect.unwrap(mediation)  # without the shape checker of the tests, to meet our own messages


@pytest.fixture(autouse=True)
def outcome(tmp_path, monkeypatch):
    """A metric of one's own: the first output, as it is."""
    (tmp_path / "first_output.py").write_text("def outcome(values, answer):\n    return values[:, 0]\n")
    monkeypatch.syspath_prepend(tmp_path)
    return "first_output:outcome"


def token_pairs(n=30, seed=0):
    draws = generator(seed, "pairs")
    clean = draws.integers(0, 7, size=(n, 4))
    corrupted = clean.copy()
    corrupted[:, 1] = (clean[:, 1] + draws.integers(1, 7, size=n)) % 7
    return clean, corrupted, *draws.integers(0, 7, size=(2, n))


def transformer(seed=0):
    return SmallTransformer(vocabulary=7, n_layers=2, hidden=8, seed=seed, dtype=torch.float64)


# Known answer
@pytest.mark.parametrize("weights", [(1.0, 2.0, 1.5), (-1.0, 2.0, 1.5), (0.0, 1.0, 1.0), (2.0, 0.0, 1.0)])
def test_mediation__of_two_linear_routes_is_their_closed_form(weights, outcome):
    """TE = c' + ab times the change of x, exactly, and nothing interacts: 1e-9 in float64."""
    direct, to_mediator, from_mediator = weights
    network = TwoRouteNetwork(direct=direct, to_mediator=to_mediator, from_mediator=from_mediator)
    corrupted = generator(0, "exposure").normal(size=(30, 1))
    step = generator(1, "exposure").uniform(0.5, 1.5, size=(30, 1))

    config = MediationConfig(sites=("mediator",), metric=outcome)
    found = mediation(network, corrupted + step, corrupted, config=config)

    assert found.total.value == pytest.approx(network.total_effect * step.mean(), abs=1e-9)
    for effect in (found.natural_direct, found.total_direct):
        assert effect.value == pytest.approx(network.direct_effect * step.mean(), abs=1e-9)
    for effect in (found.natural_indirect, found.total_indirect):
        assert effect.value == pytest.approx(network.indirect_effect * step.mean(), abs=1e-9)
    assert abs(found.interaction.value) < 1e-9
    assert found.interaction.p_value == 1  # nothing but rounding
    for bound in (found.proportion.value, found.proportion.low, found.proportion.high):
        assert bound == pytest.approx(network.mediated_share, abs=1e-9)


def test_mediation__of_an_interaction_network_has_two_versions_of_each_effect(outcome):
    network = InteractionNetwork()
    corrupted, clean = np.zeros((20, 1)), np.ones((20, 1))
    corrupted[10:], clean[10:] = 1.0, 3.0
    wanted = [network.effects(0.0, 1.0), network.effects(1.0, 3.0)]

    found = mediation(network, clean, corrupted, config=MediationConfig(sites=("mediator",), metric=outcome))

    for name in ("total", "natural_direct", "natural_indirect", "total_direct", "total_indirect", "interaction"):
        mean = sum(getattr(each, name) for each in wanted) / 2
        assert getattr(found, name).value == pytest.approx(mean, abs=1e-6), name  # its weights are float32
    assert found.interaction.p_value < 0.01
    assert "they do only together with the input" in found.reading()


def test_mediation__names_the_mediators_that_carry_the_effect_and_no_others():
    draws = generator(0, "linear pairs")
    clean, corrupted = draws.normal(size=(2, 40, 8))
    model = LinearNetwork((2.0, 0.0, 1.0, -1.0))
    target, foil = (model(torch.from_numpy(each)).argmax(dim=1).numpy() for each in (clean, corrupted))

    config = MediationConfig(sites=("routes.*",))
    found = mediation(model, clean, corrupted, target, foil, config=config)

    np.testing.assert_allclose(found.proportion_of, model.shares, atol=1e-9)
    np.testing.assert_allclose(found.total_indirect_of, found.indirect, atol=1e-9)
    assert found.n_mediating == 3
    assert found.p_value[1] == 1
    assert found.proportion.value == pytest.approx(1, abs=1e-9)
    assert abs(found.overlap) < 1e-9
    assert abs(found.natural_direct.value) < 1e-9
    assert "(100%) goes through the mediators" in found.reading()
    assert "3 of 4 mediators carry some of it alone: routes.0" in found.reading()


def test_mediation__of_relays_overlaps_by_what_they_share():
    """`total` and `readout` each relay everything: together still all of it, their sum twice."""
    draws = generator(0, "linear pairs")
    clean, corrupted = draws.normal(size=(2, 40, 8))
    model = LinearNetwork((2.0, 1.0))
    target = model(torch.from_numpy(clean)).argmax(dim=1).numpy()

    found = mediation(model, clean, corrupted, target, config=MediationConfig(sites=("total", "readout")))

    assert found.overlap == pytest.approx(found.total.value, abs=1e-9)
    assert found.natural_indirect.value == pytest.approx(found.total.value, abs=1e-9)


# Oracle
@pytest.mark.parametrize("by", ["site", "head", "position", "unit"])
def test_mediation__equals_the_runs_of_its_definition_for_every_kind_of_mediator(by):
    model = transformer()
    clean, corrupted, target, foil = token_pairs()
    glob, site = {
        "head": ("layers.0.attention", "layers.0.attention.output:input"),
        "unit": ("layers.1.mlp.hidden", "layers.1.mlp.hidden"),
    }.get(by, ("layers.0.mlp", "layers.0.mlp"))

    config = MediationConfig(sites=(glob,), by=by, batch_rows=13, n_draws=50)
    found = mediation(model, clean, corrupted, target, foil, config=config)

    rows = range(len(clean))

    def answer(tokens, write=None):
        with inference(model), capture(model, [site]) as seen, patched(model, [write] if write else []):
            logits = model(torch.from_numpy(tokens))[:, -1]
        return logits[rows, torch.from_numpy(target)] - logits[rows, torch.from_numpy(foil)], seen[site]

    (y11, m1), (y00, m0) = answer(clean), answer(corrupted)
    every = slice(None)
    parts = {
        "site": [()],
        "head": [(every, every, slice(0, 8)), (every, every, slice(8, 16))],
        "position": [(every, at) for at in range(4)],
        "unit": [(every, every, at) for at in range(8)],
    }[by]
    for k, part in enumerate(parts):
        y01, y10 = (answer(tokens, Patch(site, m[part], part))[0] for tokens, m in ((corrupted, m1), (clean, m0)))
        assert found.indirect[k] == pytest.approx(float((y01 - y00).mean()), abs=1e-9)
        assert found.total_indirect_of[k] == pytest.approx(float((y11 - y10).mean()), abs=1e-9)
    assert len(found.part) == len(parts)


def test_mediation__proportions_are_the_recovery_and_the_damage_of_patching():
    model = transformer()
    clean, corrupted, *_ = token_pairs()
    with inference(model):
        target, foil = (model(torch.from_numpy(each))[:, -1].argmax(dim=1).numpy() for each in (clean, corrupted))
    sites = ("layers.0.mlp", "layers.1.attention")

    found = mediation(model, clean, corrupted, target, foil, config=MediationConfig(sites=sites))
    recovery = patch_sites(model, clean, corrupted, target, foil, config=PatchSitesConfig(sites=sites))
    config = PatchSitesConfig(sites=sites, direction="noising")
    noised = patch_sites(model, clean, corrupted, target, foil, config=config)

    recovered = dict(zip(recovery.part, recovery.recovery, strict=True))
    destroyed = dict(zip(noised.part, noised.recovery, strict=True))
    for k, name in enumerate(found.part):
        assert found.proportion_of[k] == pytest.approx(recovered[name], abs=1e-9)
        assert found.total_indirect_of[k] / found.total.value == pytest.approx(destroyed[name], abs=1e-9)


# Law
@settings(max_examples=5)
@given(st.integers(2, 12), st.integers(3, 40), st.integers(1, 20_000), st.booleans())
def test_mediation__adds_up_however_it_is_packed(n, batch_rows, cache_bytes, control):
    model = transformer()
    clean, corrupted, target, foil = token_pairs(n)
    options = {"sites": ("layers.0.mlp", "layers.1.mlp"), "n_draws": 20, "control": control}

    whole = mediation(model, clean, corrupted, target, foil, config=MediationConfig(**options))
    config = MediationConfig(**options, batch_rows=batch_rows, cache_bytes=cache_bytes)
    parts = mediation(model, clean, corrupted, target, foil, config=config)

    for name, values in whole.arrays().items():
        np.testing.assert_allclose(parts.arrays()[name], values, atol=1e-9, err_msg=name)
    total = whole.total.value
    assert whole.natural_direct.value + whole.total_indirect.value == pytest.approx(total, abs=1e-9)
    assert whole.total_direct.value + whole.natural_indirect.value == pytest.approx(total, abs=1e-9)
    together = whole.natural_direct.value + whole.natural_indirect.value + whole.interaction.value
    assert together == pytest.approx(total, abs=1e-9)


@pytest.mark.parametrize("n_models", [40, pytest.param(200, marks=pytest.mark.slow)])
def test_mediation__untrained_models_have_no_mediator_beyond_the_level(n_models):
    """Random transformers with answers at random: the rate at the level of 0.05 lies in its 99.9 % band."""
    hits = []
    for seed in range(n_models):
        model = SmallTransformer(vocabulary=7, n_layers=1, hidden=8, seed=seed)
        config = MediationConfig(sites=("layers.0.attention", "layers.0.mlp"), n_draws=199, seed=seed)
        hits.append(mediation(model, *token_pairs(40, seed), config=config).n_mediating > 0)
    assert sum(hits) <= binom.ppf(0.999, n_models, 0.05)


def test_mediation__same_seed_same_bits_and_the_model_is_left_as_it_was():
    model = transformer().train()
    first, second = (mediation(model, *token_pairs()) for _ in range(2))
    assert all(np.array_equal(each, second.arrays()[name], equal_nan=True) for name, each in first.arrays().items())
    assert all(each.training for each in model.modules())
    assert not any(each._forward_hooks or each._forward_pre_hooks for each in model.modules())


# Bad input
def test_mediation__raises_on_pairs_that_do_not_belong_together():
    model = LinearNetwork((1.0,))
    with pytest.raises(ShapeError, match=r"same shape.*Got \(3, 8\) and \(2, 8\)"):
        unchecked(model, np.ones((3, 8)), np.ones((2, 8)), np.zeros(3, int))
    with pytest.raises(ConfigurationError, match="needs a target"):
        unchecked(model, np.ones((3, 8)), np.zeros((3, 8)))
    with pytest.raises(DegenerateInputError, match=r"clean must be finite\. Got 24 NaN"):
        unchecked(model, np.full((3, 8), np.nan), np.zeros((3, 8)), np.zeros(3, int))


def test_mediation__is_undefined_where_there_is_no_effect():
    clean, _, target, foil = token_pairs()
    found = mediation(transformer(), clean, clean, target, foil, config=MediationConfig(sites=("layers.0.mlp",)))
    assert not found.defined
    assert np.isnan(found.proportion.value)
    assert np.isnan(found.proportion_of).all()
    assert found.total.value == 0
    assert found.total.p_value == 1
    assert "nothing to mediate" in found.reading()


def test_mediation__raises_on_mediators_that_are_not_there():
    clean, corrupted, target, _ = token_pairs()
    with pytest.raises(NotFoundError, match="'mlp'"):
        mediation(transformer(), clean, corrupted, target, config=MediationConfig(sites=("mlp",)))
    with pytest.raises(ConfigurationError, match="at least one glob"):
        MediationConfig(sites=())
