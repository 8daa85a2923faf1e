"""Activations of both runs and the metric's gradient, at all nodes at once."""

from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from mechint_core.errors import ConfigurationError
from mechint_core.models import Patch, differentiation, match_sites, patched
from mechint_core.patching import (
    PairedConfig,
    PairRuns,
    PromptPairs,
    gradient_blocks,
    gradients_along,
    gradients_on_own_paths,
    measure,
    node_gradients,
    other_pairs,
)
from mechint_core.random import generator, torch_generator
from mechint_core.synthetic.linear_network import LinearNetwork
from mechint_core.synthetic.small_transformer import SmallTransformer


def transformer():
    return SmallTransformer(vocabulary=7, n_layers=2, n_heads=2, width=8, hidden=12, norm=True, dtype=torch.float64)


def prompts(n=12, seed=0):
    draws = generator(seed, "prompts")
    clean = draws.integers(0, 7, size=(n, 4))
    corrupted = clean.copy()
    corrupted[:, -1] = (clean[:, -1] + draws.integers(1, 7, size=n)) % 7
    return PromptPairs.of(clean, corrupted, clean[:, -1], corrupted[:, -1], "logit_difference")


def runs_of(model, sites, *, noising=False, **options):
    return PairRuns(model=model, config=PairedConfig(**options), sites=sites, bytes_per_row=4000, noising=noising)


def whole(runs, pairs, **options):
    with differentiation(runs.model):
        return node_gradients(runs, pairs, np.arange(len(pairs)), **options)


# Known answer
def test_node_gradients__costs_two_forwards_and_one_backward_for_all_nodes(monkeypatch):
    model, pairs = transformer(), prompts()
    sites = match_sites(model, ["*", "layers.*:input"])
    calls = {"forward": 0, "backward": 0}
    grad = torch.autograd.grad

    def count(kind):
        calls[kind] += 1

    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: (count("backward"), grad(*a, **k))[1])
    with ExitStack() as hooks:
        hooks.callback(model.register_forward_hook(lambda *_: count("forward")).remove)
        with differentiation(model):
            (block,) = gradient_blocks(runs_of(model, sites), pairs, control_seed=0)

    assert calls == {"forward": 2, "backward": 1}
    assert set(block.gradient) == set(block.base) == set(block.donor) == set(block.other) == set(sites)


@pytest.mark.parametrize("noising", [False, True])
def test_node_gradients__first_order_is_exact_in_a_linear_network(noising):
    """Every site alone: g . (y - a) = c_k / sum c of the change of the metric. float64 throughout."""
    draws = generator(0, "pairs")
    model = LinearNetwork((3.0, -1.0))
    target, foil = draws.integers(0, 5, size=(2, 9))
    pairs = PromptPairs.of(*draws.normal(size=(2, 9, 8)), target, foil, "logit_difference")
    runs = runs_of(model, ("routes.0", "routes.1", "total"), noising=noising)

    block = whole(runs, pairs)

    change = (block.corrupted - block.clean) if noising else (block.clean - block.corrupted)
    for site, share in zip(runs.sites, (*model.shares, 1.0), strict=True):
        found = (block.gradient[site] * block.change(site)).sum(dim=1).numpy()
        np.testing.assert_allclose(found, share * change, atol=1e-9)


def test_node_gradients__is_not_misled_by_operations_in_place():
    draws = torch_generator(0, "in place")
    layers = [nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 5)]
    for layer in (layers[0], layers[2]):
        nn.init.normal_(layer.weight, generator=draws)
    plain = nn.Sequential(*layers)
    in_place = nn.Sequential(layers[0], nn.ReLU(inplace=True), layers[2])
    target = np.arange(6) % 5
    pairs = PromptPairs.of(*generator(0, "x").normal(size=(2, 6, 8)), target, None, "loss")

    one, other = (whole(runs_of(model, ("0", "1"), metric="loss"), pairs) for model in (plain, in_place))

    for site in ("0", "1"):
        assert torch.equal(one.gradient[site], other.gradient[site])
        assert torch.equal(one.base[site], other.base[site])
    assert bool((one.base["0"] < 0).any())  # the ReLU had something to change


def test_node_gradients__is_zero_where_the_answer_does_not_come_from():
    pairs = prompts()
    block = whole(runs_of(transformer(), ("embed", "layers.0"), answer_position=1), pairs)
    for site in ("embed", "layers.0"):
        assert bool((block.gradient[site][:, 2:] == 0).all())  # a causal model: later positions
        assert bool((block.gradient[site][:, :2] != 0).any())


def test_gradients_along__integrate_to_the_whole_change():
    """Completeness at a cut set; 64 midpoints of a smooth path of length about 1 leave less than 1e-3."""
    pairs = prompts()
    runs = runs_of(transformer(), ("embed", "layers.0", "layers.1.mlp"))
    block = whole(runs, pairs)

    with differentiation(runs.model):
        gradient = gradients_along(runs, block, ("embed",), n_steps=64)

    assert set(gradient) == set(runs.sites)
    found = (gradient["embed"] * block.change("embed")).sum(dim=(1, 2)).numpy()
    np.testing.assert_allclose(found, block.clean - block.corrupted, atol=1e-3)


@pytest.mark.parametrize("noising", [False, True])
def test_gradients_on_own_paths__integrate_to_the_exact_patch_of_each_site(noising):
    pairs = prompts()
    runs = runs_of(transformer(), ("embed", "layers.0.attention", "layers.1.mlp"), noising=noising)
    block = whole(runs, pairs)

    with differentiation(runs.model):
        gradient = gradients_on_own_paths(runs, block, runs.sites, n_steps=64)

    base = block.clean if noising else block.corrupted
    for site in runs.sites:
        found = (gradient[site] * block.change(site)).sum(dim=(1, 2)).numpy()
        np.testing.assert_allclose(found, score_with(runs, block, site, block.donor[site]) - base, atol=1e-3)


def test_gradient_blocks__control_is_the_activation_of_the_other_pair():
    pairs = prompts()
    runs = runs_of(transformer(), ("embed",))
    donor = whole(runs, pairs).donor["embed"]
    others = other_pairs(len(pairs), 3)

    with differentiation(runs.model):
        for block in gradient_blocks(replace(runs, config=PairedConfig(batch_rows=5)), pairs, control_seed=3):
            torch.testing.assert_close(block.other["embed"], donor[others[block.rows]])
            torch.testing.assert_close(block.change("embed", control=True), block.other["embed"] - block.base["embed"])


def score_with(runs, block, site, values):
    with torch.no_grad(), patched(runs.model, [Patch(site, values)]):
        return measure(runs.read(runs.model(block.inputs)), block.answer, runs.config.metric).numpy()


# Oracle
@pytest.mark.parametrize("metric", ["logit_difference", "loss", "probability", "kl", "distance"])
@pytest.mark.parametrize(
    "site", ["embed", "layers.0.attention.pattern", "layers.1.attention.output:input", "layers.1.mlp.hidden"]
)
def test_node_gradients__equals_central_differences(metric, site):
    """Step 1e-5 in float64: truncation is below 1e-7 of a derivative of order 1, rounding below 1e-9."""
    pairs = prompts()
    runs = runs_of(transformer(), (site,), metric=metric)
    with differentiation(runs.model):
        block = node_gradients(runs, pairs, np.arange(len(pairs)))
        a = block.base[site]
        direction = torch.randn(a.shape, generator=torch_generator(0, site), dtype=a.dtype)
        up, down = (score_with(runs, block, site, a + step * direction) for step in (1e-5, -1e-5))

    found = (block.gradient[site] * direction).flatten(1).sum(dim=1).numpy()

    np.testing.assert_allclose(found, (up - down) / 2e-5, atol=1e-6)


# Law
@settings(max_examples=8)
@given(st.integers(1, 13), st.integers(1, 10**6), st.booleans())
def test_gradient_blocks__do_not_depend_on_the_blocks(batch_rows, cache_bytes, noising):
    pairs = prompts()
    runs = runs_of(transformer(), ("layers.0.attention", "layers.1"), noising=noising)
    cut = replace(runs, config=PairedConfig(batch_rows=batch_rows, cache_bytes=cache_bytes))

    with differentiation(runs.model):
        (one,) = gradient_blocks(runs, pairs, control_seed=1)
        blocks = list(gradient_blocks(cut, pairs, control_seed=1))

    np.testing.assert_array_equal(np.concatenate([each.rows for each in blocks]), one.rows)
    for site in runs.sites:
        for name in ("base", "donor", "other", "gradient"):
            joined = torch.cat([getattr(each, name)[site] for each in blocks])
            torch.testing.assert_close(joined, getattr(one, name)[site], atol=1e-12, rtol=1e-9)


@settings(max_examples=6)
@given(st.integers(1, 40))
def test_gradients_on_own_paths__do_not_depend_on_the_packing(batch_rows):
    pairs = prompts()
    runs = runs_of(transformer(), ("embed", "layers.1.mlp"))
    block = whole(runs, pairs)
    with differentiation(runs.model):
        wanted = gradients_on_own_paths(runs, block, runs.sites, n_steps=3)
        cut = replace(runs, config=PairedConfig(batch_rows=batch_rows))
        found = gradients_on_own_paths(cut, block, runs.sites, n_steps=3)
    for site in runs.sites:
        torch.testing.assert_close(found[site], wanted[site], atol=1e-12, rtol=1e-9)


def test_node_gradients__does_not_depend_on_where_the_model_keeps_its_samples():
    first = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)).double()
    second = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16)).double()
    second.load_state_dict(first.state_dict())
    pairs = PromptPairs.of(*generator(0, "layout").normal(size=(2, 5, 3, 8)), None, None, "distance")
    sites = ("0.self_attn", "0.linear1")

    one = whole(runs_of(first, sites, metric="distance"), pairs)
    other = whole(runs_of(second, sites, metric="distance", sample_axis=1), pairs)

    for site in sites:
        torch.testing.assert_close(other.gradient[site], one.gradient[site], atol=1e-12, rtol=1e-9)
        torch.testing.assert_close(other.change(site), one.change(site), atol=1e-12, rtol=1e-9)


def test_node_gradients__leaves_no_hooks_and_no_gradients():
    model, pairs = transformer().train(), prompts()
    whole(runs_of(model, ("embed", "layers.1.attention.output:input")), pairs)
    assert not any(each._forward_hooks or each._forward_pre_hooks for each in model.modules())
    assert all(each.grad is None and each.requires_grad for each in model.parameters())
    assert model.training


# Bad input
def test_change__raises_without_a_control():
    block = whole(runs_of(transformer(), ("embed",)), prompts())
    with pytest.raises(ConfigurationError, match=r"must have been kept for a control. Got none"):
        block.change("embed", control=True)


def test_node_gradients__raises_on_a_site_that_runs_twice():
    shared = nn.Linear(8, 8)
    model = nn.Sequential(shared, shared, nn.Linear(8, 3))
    pairs = PromptPairs.of(*generator(0, "x").normal(size=(2, 4, 8)), None, None, "distance")
    with pytest.raises(ConfigurationError, match="'0' must run once per forward"):
        whole(runs_of(model, ("0",), metric="distance"), pairs)
