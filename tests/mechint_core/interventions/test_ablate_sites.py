"""Ablation of sites, heads, positions and units."""

import inspect

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy.stats import binom

from mechint_core.errors import ConfigurationError, DegenerateInputError, NotFoundError, ShapeError
from mechint_core.interventions import AblateSitesConfig, ablate_sites
from mechint_core.models import Patch, capture, inference, patched
from mechint_core.patching import other_pairs
from mechint_core.random import generator
from mechint_core.synthetic.linear_network import LinearNetwork
from mechint_core.synthetic.small_transformer import SmallTransformer

unchecked = inspect.unwrap(ablate_sites)  # without the shape checker of the tests, to meet our own messages

SHARES = (3.0, 1.0, 0.0, -2.0)


def linear_data(n=40, seed=0):
    """Inputs, their classes by the network, and classes that depend on the inputs in another way."""
    inputs = generator(seed, "linear data").normal(size=(n, 8))
    model = LinearNetwork(SHARES)
    target = model(torch.from_numpy(inputs)).argmax(dim=1).numpy()
    return model, inputs, target, (inputs[:, 0] > 0).astype(np.int64)


def write_off(model, inputs, target, route):
    """The logit difference that each route adds, per sample: (u_t - mean of the other u) . h_k."""
    with torch.no_grad():
        hidden = model.routes[route](torch.from_numpy(inputs))
    u = model.readout.weight.detach()
    right = u[torch.from_numpy(target)]
    contrast = right - (u.sum(dim=0) - right) / (len(u) - 1)
    return contrast.numpy(), hidden.numpy()


def transformer_data(n=30, seed=0):
    model = SmallTransformer(vocabulary=7, n_layers=2, hidden=8, seed=seed, dtype=torch.float64)
    tokens = generator(seed, "tokens").integers(0, 7, size=(n, 4))
    with inference(model):
        target = model(torch.from_numpy(tokens))[:, -1].argmax(dim=1).numpy()
    return model, tokens, target


# Known answer
@pytest.mark.parametrize("ablation", ["zero", "mean", "class_mean", "other_class_mean"])
def test_ablate_sites__damage_is_what_a_linear_route_adds_beyond_its_replacement(ablation):
    """D_k = mean_i contrast_i . (h_ki - replacement_ki), in float64: 1e-9."""
    model, inputs, target, label = linear_data()
    config = AblateSitesConfig(sites=("routes.*",), ablation=ablation)

    found = ablate_sites(model, inputs, target, label=label, config=config)

    for k in range(len(SHARES)):
        contrast, hidden = write_off(model, inputs, target, k)
        means = np.stack([hidden[label == c].mean(axis=0) for c in (0, 1)])
        replacement = {
            "zero": np.zeros_like(hidden),
            "mean": hidden.mean(axis=0),
            "class_mean": means[label],
            "other_class_mean": means[1 - label],
        }[ablation]
        assert found.damage[k] == pytest.approx((contrast * (hidden - replacement)).sum(axis=1).mean(), abs=1e-9)
    np.testing.assert_allclose(found.share, model.shares, atol=1e-9)
    np.testing.assert_allclose(found.damage.sum(), found.all_ablated.value, atol=1e-9)


def test_ablate_sites__names_the_routes_that_carry_the_answer_and_no_others():
    model, inputs, target, _ = linear_data()

    found = ablate_sites(model, inputs, target, config=AblateSitesConfig(sites=("routes.*",)))

    assert found.n_damaging == 2  # routes.3 opposes the answer: losing it helps
    assert found.damage[2] == 0
    assert found.p_value[2] == 1
    assert found.damage[3] < 0
    assert found.p_value[3] == 1
    assert found.largest.value == found.damage[0]
    assert "at 2 of 4 parts, in the model's order: routes.0" in found.reading()
    assert "150% of all" in found.reading()


def test_ablate_sites__class_mean_keeps_a_class_code_and_the_mean_of_others_reverses_it():
    """A route whose activation is a function of the class alone: nothing is lost with the mean of its own class."""
    model = LinearNetwork((1.0,))
    codes = generator(0, "codes").normal(size=(2, 8))
    label = np.arange(40) % 2
    target = model(torch.from_numpy(codes)).argmax(dim=1).numpy()[label]
    config = {"sites": ("routes.*",)}

    kept, taken = (
        ablate_sites(model, codes[label], target, label=label, config=AblateSitesConfig(**config, ablation=ablation))
        for ablation in ("class_mean", "other_class_mean")
    )

    assert abs(kept.damage[0]) < 1e-9
    assert not kept.defined
    assert np.isnan(kept.share[0])
    assert taken.damage[0] > 1


def test_ablate_sites__noise_has_the_mean_and_deviation_of_every_unit():
    """A sum over 4000 samples of a linear read-out: its mean damage lies within 4 standard errors of mean ablation."""
    model, inputs, target, _ = linear_data(4000)
    config = {"sites": ("routes.0",), "control": False, "n_draws": 50}

    mean, noise = (
        ablate_sites(model, inputs, target, config=AblateSitesConfig(**config, ablation=ablation))
        for ablation in ("mean", "noise")
    )

    contrast, hidden = write_off(model, inputs, target, 0)
    error = np.sqrt((contrast**2 @ hidden.var(axis=0)).mean() / 4000)
    assert abs(noise.damage[0] - mean.damage[0]) < 4 * error
    assert abs(noise.damage[0] - mean.damage[0]) > 0.01 * error


def test_ablate_sites__resampling_everything_gives_the_answer_of_another_sample():
    model, inputs, target, _ = linear_data()
    with torch.no_grad():
        logits = model(torch.from_numpy(inputs)).numpy()
    config = AblateSitesConfig(sites=("routes.*",), ablation="resample", metric="probability")

    found = ablate_sites(model, inputs, target, config=config)

    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert found.intact == pytest.approx(p[range(40), target].mean(), abs=1e-9)
    wanted = found.intact - p[other_pairs(40, seed=0), target].mean()
    assert found.all_ablated.value == pytest.approx(wanted, abs=1e-9)


def test_ablate_sites__draws_heads_by_layer():
    model, tokens, target = transformer_data()

    found = ablate_sites(model, tokens, target, config=AblateSitesConfig(by="head", n_draws=50))

    assert found.site == ("layers.0.attention", "layers.1.attention")
    np.testing.assert_array_equal(found.grid.ravel(), found.damage)
    assert found.part[1] == "layers.0.attention.1"


# Oracle
@pytest.mark.parametrize("by", ["site", "head", "position", "unit"])
@pytest.mark.parametrize("metric", ["logit_difference", "loss", "kl"])
def test_ablate_sites__equals_the_one_by_one_loop_for_every_kind_of_part(by, metric):
    model, tokens, target = transformer_data()
    site = {"head": "layers.1.attention.output:input"}.get(by, "layers.1.mlp")
    glob = {"head": "layers.1.attention"}.get(by, site)

    config = AblateSitesConfig(sites=(glob,), by=by, metric=metric, batch_rows=17, n_draws=50)
    found = ablate_sites(model, tokens, target, config=config)

    batch, classes = torch.from_numpy(tokens), torch.from_numpy(target)
    with inference(model):
        with capture(model, [site]) as seen:
            intact = model(batch)[:, -1]
        mean = seen[site].mean(dim=0)
        parts = {
            "site": [(...,)],
            "head": [(..., slice(0, 8)), (..., slice(8, 16))],
            "position": [(slice(None), at) for at in range(4)],
            "unit": [(..., at) for at in range(16)],
        }[by]
        for k, part in enumerate(parts):
            values = seen[site].clone()
            values[part] = mean.expand_as(values)[part]
            with patched(model, [Patch(site, values)]):
                logits = model(batch)[:, -1]
            wanted = score(metric, intact, classes, intact) - score(metric, logits, classes, intact)
            assert found.damage[k] == pytest.approx(float(wanted.mean()), abs=1e-9)
    assert len(found.part) == len(parts)
    assert found.part[0] == {
        "site": "layers.1.mlp", "head": "layers.1.attention.0", "position": "layers.1.mlp@0", "unit": "layers.1.mlp#0"
    }[by]  # fmt: skip


def score(metric, logits, classes, intact):
    """Larger is better."""
    p = torch.log_softmax(logits, dim=1)
    right = logits.gather(1, classes[:, None])[:, 0]
    return {
        "logit_difference": right - (logits.sum(dim=1) - right) / 6,
        "loss": p.gather(1, classes[:, None])[:, 0],
        "kl": -(torch.log_softmax(intact, 1).exp() * (torch.log_softmax(intact, 1) - p)).sum(dim=1),
    }[metric]


# Law
@settings(max_examples=5)
@given(
    st.integers(2, 12),
    st.integers(3, 40),
    st.integers(1, 20_000),
    st.sampled_from(["mean", "class_mean", "resample", "noise"]),
)
def test_ablate_sites__does_not_depend_on_how_it_is_packed(n, batch_rows, cache_bytes, ablation):
    model, inputs, target, _ = linear_data(n + 2)
    label = np.arange(n + 2) % 2
    options = {"sites": ("routes.*",), "ablation": ablation, "n_draws": 20}

    whole = ablate_sites(model, inputs, target, label=label, config=AblateSitesConfig(**options))
    config = AblateSitesConfig(**options, batch_rows=batch_rows, cache_bytes=cache_bytes)
    parts = ablate_sites(model, inputs, target, label=label, config=config)

    for name, values in whole.arrays().items():
        np.testing.assert_allclose(parts.arrays()[name], values, atol=1e-9, err_msg=name)


def test_ablate_sites__same_seed_same_bits_and_the_model_is_left_as_it_was():
    model, tokens, target = transformer_data()
    model.train()
    config = AblateSitesConfig(ablation="noise")
    first, second = (ablate_sites(model, tokens, target, config=config) for _ in range(2))
    assert all(np.array_equal(first.arrays()[name], second.arrays()[name], equal_nan=True) for name in first.arrays())
    assert all(each.training for each in model.modules())
    assert not any(each._forward_hooks or each._forward_pre_hooks for each in model.modules())


@pytest.mark.parametrize("n_models", [40, pytest.param(200, marks=pytest.mark.slow)])
def test_ablate_sites__untrained_models_have_no_part_that_matters_beyond_the_level(n_models):
    """Random transformers with answers at random: the rate at the level of 0.05 lies in its 99.9 % band."""
    hits = []
    for seed in range(n_models):
        model = SmallTransformer(vocabulary=7, n_layers=1, hidden=8, seed=seed)
        draws = generator(seed, "random answers")
        tokens, target = draws.integers(0, 7, size=(40, 3)), draws.integers(0, 7, size=40)
        config = AblateSitesConfig(sites=("layers.0.attention", "layers.0.mlp"), n_draws=199, seed=seed)
        hits.append(ablate_sites(model, tokens, target, config=config).n_damaging > 0)
    assert sum(hits) <= binom.ppf(0.999, n_models, 0.05)


# Bad input
def test_ablate_sites__raises_on_inputs_that_make_no_sense():
    model = LinearNetwork((1.0,))
    inputs = np.ones((3, 8))
    with pytest.raises(ShapeError, match=r"sample >= 2.*Got \(1, 8\)"):
        unchecked(model, inputs[:1], np.zeros(1, int))
    with pytest.raises(ShapeError, match=r"one class per sample, \(3,\). Got shape \(2,\)"):
        unchecked(model, inputs, np.zeros(2, int))
    with pytest.raises(DegenerateInputError, match=r"inputs must be finite\. Got 24 NaN"):
        unchecked(model, inputs * np.nan, np.zeros(3, int))
    with pytest.raises(ConfigurationError, match="needs a target"):
        unchecked(model, inputs)
    with pytest.raises(ConfigurationError, match=r"0 to 4. Got 9 to 9"):
        unchecked(model, inputs, np.full(3, 9))


def test_ablate_sites__raises_on_classes_that_leave_nothing_over():
    model, inputs = LinearNetwork((1.0,)), np.ones((3, 8))
    by_class = AblateSitesConfig(sites=("routes.*",), ablation="class_mean", metric="distance")
    with pytest.raises(ConfigurationError, match="needs the label"):
        unchecked(model, inputs, config=by_class)
    with pytest.raises(ShapeError, match=r"label must be one class per sample, \(3,\)"):
        unchecked(model, inputs, label=np.zeros(2, int), config=by_class)
    with pytest.raises(DegenerateInputError, match=r"Got 2 classes, the smallest of 1"):
        unchecked(model, inputs, label=np.array([0, 0, 1]), config=by_class)


def test_ablate_sites__raises_on_parts_that_are_not_there():
    model, tokens, target = transformer_data()
    with pytest.raises(NotFoundError, match="'mlp'"):
        ablate_sites(model, tokens, target, config=AblateSitesConfig(sites=("mlp",)))
    with pytest.raises(NotFoundError, match=r"attention module.*There are: layers.0.attention, layers.1.attention"):
        ablate_sites(model, tokens, target, config=AblateSitesConfig(sites=("*.mlp",), by="head"))
    linear, inputs, answer, _ = linear_data()
    with pytest.raises(ShapeError, match="must have positions"):
        ablate_sites(linear, inputs, answer, config=AblateSitesConfig(by="position"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ablation": "median"}, "ablation must be one of zero, mean"),
        ({"by": "layer"}, "by must be one of site, head"),
        ({"by": "position", "position": 1}, "position must be None"),
        ({"sites": ()}, "at least one glob"),
        ({"n_draws": 0}, "must be at least 1"),
    ],
)
def test_ablate_sites__config_names_what_is_wrong(options, message):
    config = AblateSitesConfig()
    for name, value in options.items():  # past the type checker of the tests, which meets some of these first
        object.__setattr__(config, name, value)
    with pytest.raises(ConfigurationError, match=message):
        config.__post_init__()
