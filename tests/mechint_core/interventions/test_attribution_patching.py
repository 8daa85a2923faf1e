"""Attribution patching, and its comparison with exact patches."""

import inspect

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from mechint_core.errors import ConfigurationError, DegenerateInputError, NotFoundError, ShapeError
from mechint_core.interventions import (
    AttributionPatchingConfig,
    PatchSitesConfig,
    attribution_patching,
    patch_sites,
)
from mechint_core.models import inference
from mechint_core.random import generator, torch_generator
from mechint_core.synthetic.linear_network import LinearNetwork
from mechint_core.synthetic.small_transformer import SmallTransformer

unchecked = inspect.unwrap(attribution_patching)  # without the shape checker of the tests, to meet our own messages


def transformer(**options):
    sizes = {"vocabulary": 7, "n_layers": 2, "n_heads": 2, "width": 8, "hidden": 12, "dtype": torch.float64}
    return SmallTransformer(**sizes | options)


def prompts(n=24, seed=0):
    """Pairs of four tokens that differ in the last; the answers are these."""
    draws = generator(seed, "prompts")
    clean = draws.integers(0, 7, size=(n, 4))
    corrupted = clean.copy()
    corrupted[:, -1] = (clean[:, -1] + draws.integers(1, 7, size=n)) % 7
    return clean, corrupted


def answers(model, *tokens):
    with inference(model):
        return [model(torch.from_numpy(each))[:, -1].argmax(dim=1).numpy() for each in tokens]


class Dead(nn.Module):
    """A gate that no corrupted input opens: all of the answer flows through it, and its gradient there is 0."""

    def __init__(self):
        super().__init__()
        self.part, self.gate, self.other = nn.Identity(), nn.ReLU(), nn.Identity()

    def forward(self, x):
        z = self.gate(self.part(x)) + 0.1 * self.other(x)
        return torch.stack([z.sum(dim=1), torch.zeros(len(z), dtype=z.dtype)], dim=1)


def gated_pairs(n=20):
    size = generator(0, "gated").uniform(0.5, 1.5, size=(n, 3))
    return size, -size, np.zeros(n, dtype=int)


# Known answer
@pytest.mark.parametrize("shares", [(1.0, 1.0), (3.0, 1.0, 0.0), (1.5, -0.5)])
@pytest.mark.parametrize("direction", ["denoising", "noising"])
@pytest.mark.parametrize("method", ["gradient", "integrated"])
def test_attribution_patching__equals_the_planted_share_of_every_linear_route(shares, direction, method):
    """c_k / sum c, which exact patching gives too; 1e-9 because the network computes in float64."""
    clean, corrupted = generator(0, "linear pairs").normal(size=(2, 30, 8))
    model = LinearNetwork(shares)
    (target,) = answers_of_rows(model, clean)
    config = AttributionPatchingConfig(sites=("routes.*", "total"), direction=direction, method=method)

    found = attribution_patching(model, clean, corrupted, target, config=config)

    np.testing.assert_allclose(found.recovery, [*model.shares, 1.0], atol=1e-9)
    np.testing.assert_allclose(found.low, found.recovery, atol=1e-9)
    np.testing.assert_allclose(found.verified_points[:, 0], found.verified_points[:, 1], atol=1e-9)
    assert found.relative_error.value == pytest.approx(0, abs=1e-9)
    assert found.trusted
    assert "Exact patches confirm the estimates" in found.reading()


def answers_of_rows(model, *rows):
    return [model(torch.from_numpy(each)).argmax(dim=1).numpy() for each in rows]


@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_attribution_patching__equals_exact_patching_where_the_answer_is_linear_in_the_heads(direction):
    """Heads of the last layer, read out linearly; recovery, null and intervals to 1e-6, in float64 to 1e-9."""
    model = transformer(hidden=0)
    clean, corrupted = prompts()
    target, foil = answers(model, clean, corrupted)
    options = {"by": "head", "sites": ("layers.1.attention",), "direction": direction}

    found = attribution_patching(model, clean, corrupted, target, foil, config=AttributionPatchingConfig(**options))
    exact = patch_sites(model, clean, corrupted, target, foil, config=PatchSitesConfig(**options))

    assert found.part == exact.part == ("layers.1.attention.0", "layers.1.attention.1")
    for name in ("recovery", "low", "high", "null", "p_value"):
        np.testing.assert_allclose(getattr(found, name), getattr(exact, name), atol=1e-9, err_msg=name)


def test_attribution_patching__parts_of_a_site_add_up_to_it():
    model = transformer(norm=True)
    clean, corrupted = prompts()
    target, foil = answers(model, clean, corrupted)

    def by(grain, site):
        config = AttributionPatchingConfig(by=grain, sites=(site,), n_verified=0)
        return attribution_patching(model, clean, corrupted, target, foil, config=config)

    whole = by("site", "layers.0.attention").recovery[0]
    assert by("head", "layers.0.attention").recovery.sum() == pytest.approx(whole, abs=1e-9)
    assert by("position", "layers.0.attention").recovery.sum() == pytest.approx(whole, abs=1e-9)
    assert by("unit", "layers.0.attention").recovery.sum() == pytest.approx(whole, abs=1e-9)


def test_attribution_patching__maps_sites_by_position_and_attention_by_head():
    model = transformer(norm=True)
    clean, corrupted = prompts()
    target, foil = answers(model, clean, corrupted)
    at_sites, at_positions, at_heads = (
        attribution_patching(
            model, clean, corrupted, target, foil, config=AttributionPatchingConfig(by=by, sites=sites, n_verified=0)
        )
        for by, sites in (("site", ("embed", "layers.?")), ("position", ("embed", "layers.?")), ("head", ("*",)))
    )

    assert at_sites.site == at_positions.site == ("embed", "layers.0", "layers.1")
    np.testing.assert_allclose(at_sites.grid, at_positions.grid, atol=1e-12)
    np.testing.assert_allclose(at_sites.grid.sum(axis=1), at_sites.recovery, atol=1e-12)
    np.testing.assert_allclose(at_sites.grid[0, :3], 0, atol=1e-12)  # only the last token differs
    assert at_heads.site == ("layers.0.attention", "layers.1.attention")
    np.testing.assert_allclose(at_heads.grid.ravel(), at_heads.recovery)


def test_attribution_patching__maps_sites_at_one_position_by_layer():
    model = transformer(norm=True)
    clean, corrupted = prompts()
    config = AttributionPatchingConfig(sites=("embed", "layers.?.mlp"), position=-1, n_verified=0)

    found = attribution_patching(model, clean, corrupted, *answers(model, clean, corrupted), config=config)

    assert found.site == ("embed", "layers.*.mlp")
    np.testing.assert_array_equal(found.grid, [[found.recovery[0], np.nan], found.recovery[1:]])


def test_attribution_patching__says_that_a_dead_gate_misleads_it_and_the_integral_is_not_misled():
    clean, corrupted, target = gated_pairs()
    config = {"sites": ("part", "gate", "other")}

    misled, led = (
        attribution_patching(
            Dead(), clean, corrupted, target, config=AttributionPatchingConfig(**config, method=method, n_steps=64)
        )
        for method in ("gradient", "integrated")
    )

    exact = patch_sites(Dead(), clean, corrupted, target, config=PatchSitesConfig(**config)).recovery
    np.testing.assert_allclose(misled.recovery, [0, exact[1], exact[2]], atol=1e-9)
    assert misled.relative_error.value > 0.5
    assert not misled.trusted
    assert "not to be trusted" in misled.reading()
    assert "method='integrated'" in misled.reading()
    np.testing.assert_allclose(led.recovery, exact, atol=1 / 64)  # a kink costs at most half a step
    assert led.trusted


def test_attribution_patching__integral_approaches_exact_patching():
    """64 midpoints of a smooth model: 1e-3 of the whole answer."""
    model = transformer(norm=True)
    clean, corrupted = prompts()
    target, foil = answers(model, clean, corrupted)
    sites = ("embed", "layers.?.attention", "layers.?.mlp")

    found = attribution_patching(
        model,
        clean,
        corrupted,
        target,
        foil,
        config=AttributionPatchingConfig(sites=sites, method="integrated", n_steps=64),
    )

    exact = patch_sites(model, clean, corrupted, target, foil, config=PatchSitesConfig(sites=sites))
    np.testing.assert_allclose(found.recovery, exact.recovery, atol=1e-3)
    np.testing.assert_allclose(found.null, exact.null, atol=1e-3)
    assert found.correlation.value > 0.999


def test_attribution_patching__verifies_the_strongest_parts_and_as_many_others():
    model = transformer(norm=True)
    clean, corrupted = prompts()
    target, foil = answers(model, clean, corrupted)

    found = attribution_patching(
        model, clean, corrupted, target, foil, config=AttributionPatchingConfig(by="unit", n_verified=10)
    )

    assert len(set(found.verified)) == 10
    strongest = [found.part[k] for k in np.argsort(-np.abs(found.recovery), kind="stable")[:5]]
    assert list(found.verified[:5]) == strongest
    places = [found.part.index(each) for each in found.verified]
    np.testing.assert_array_equal(found.verified_points[:, 0], found.recovery[places])


def test_attribution_patching__without_verification_says_it_is_a_guess():
    clean, corrupted, target = gated_pairs()
    found = attribution_patching(Dead(), clean, corrupted, target, config=AttributionPatchingConfig(n_verified=0))
    assert not found.trusted
    assert found.verified == ()
    assert found.verified_points.shape == (0, 2)
    assert "take it as a guess" in found.reading()


def test_attribution_patching__clean_into_clean_is_undefined_not_zero():
    clean, _ = prompts()
    model = transformer()
    found = attribution_patching(model, clean, clean, *answers(model, clean))
    assert not found.defined
    assert np.isnan(found.recovery).all()
    assert np.isnan(found.grid).all()
    assert np.isnan(found.relative_error.value)
    assert "within noise" in found.reading()


def test_attribution_patching__leaves_the_model_as_it_was():
    clean, corrupted = prompts()
    model = transformer().train()
    state = torch.get_rng_state()

    attribution_patching(model, clean, corrupted, *answers(model, clean))

    assert all(each.training for each in model.modules())
    assert all(each.requires_grad and each.grad is None for each in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(each._forward_hooks or each._forward_pre_hooks for each in model.modules())


# Oracle
def test_attribution_patching__equals_the_definition_written_out_with_torch():
    torch_draws = torch_generator(0, "oracle")
    model = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), 2, enable_nested_tensor=False
    ).double()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.4, generator=torch_draws)
    clean, corrupted = generator(0, "oracle").normal(size=(2, 60, 3, 8))  # enough pairs for an effect beyond doubt
    with inference(model):
        target = model(torch.from_numpy(clean))[:, -1].argmax(dim=1).numpy()

    found = attribution_patching(
        model, clean, corrupted, target, config=AttributionPatchingConfig(sites=("layers.*",), metric="loss")
    )

    def loss(x):
        logits = model(torch.from_numpy(x))[:, -1]
        return nn.functional.cross_entropy(logits, torch.from_numpy(target), reduction="none")

    model.eval()
    for site, value in zip(found.part, found.recovery, strict=True):
        seen = []

        def keep(_module, _inputs, output, seen=seen):
            tensor = output[0] if isinstance(output, tuple) else output
            tensor.retain_grad()
            seen.append(tensor)

        handle = model.get_submodule(site).register_forward_hook(keep)
        on_clean, on_corrupted = loss(clean), loss(corrupted)
        handle.remove()
        on_corrupted.sum().backward()
        estimate = (seen[1].grad * (seen[0] - seen[1])).sum() / len(clean)
        assert value == pytest.approx(float((estimate / (on_clean - on_corrupted).mean()).detach()), abs=1e-9)


# Law
@settings(max_examples=6)
@given(st.integers(2, 30), st.integers(1, 10_000), st.sampled_from(["gradient", "integrated"]))
def test_attribution_patching__does_not_depend_on_how_it_is_packed(batch_rows, cache_bytes, method):
    clean, corrupted = generator(0, "packed").normal(size=(2, 15, 8))
    model = LinearNetwork((2.0, 1.0), seed=3)
    options = {"sites": ("routes.*",), "metric": "distance", "n_draws": 50, "method": method, "n_steps": 3}

    whole = attribution_patching(model, clean, corrupted, config=AttributionPatchingConfig(**options))
    parts = attribution_patching(
        model,
        clean,
        corrupted,
        config=AttributionPatchingConfig(**options, batch_rows=batch_rows, cache_bytes=cache_bytes),
    )

    for name, values in whole.arrays().items():
        np.testing.assert_allclose(parts.arrays()[name], values, atol=1e-9, err_msg=name)


def test_attribution_patching__same_seed_same_bits():
    clean, corrupted = prompts()
    model = transformer()
    first, second = (attribution_patching(model, clean, corrupted, *answers(model, clean)) for _ in range(2))
    assert all(np.array_equal(first.arrays()[name], second.arrays()[name], equal_nan=True) for name in first.arrays())


# Bad input
def test_attribution_patching__raises_on_pairs_that_do_not_belong_together():
    model = LinearNetwork((1.0,))
    with pytest.raises(ShapeError, match=r"same shape.*Got \(3, 8\) and \(2, 8\)"):
        unchecked(model, np.ones((3, 8)), np.ones((2, 8)), np.zeros(3, int))
    config = AttributionPatchingConfig(by="position")
    with pytest.raises(ShapeError, match="must have positions"):
        attribution_patching(model, np.ones((3, 8)), np.zeros((3, 8)), np.zeros(3, int), config=config)


def test_attribution_patching__raises_on_missing_or_impossible_targets():
    model = LinearNetwork((1.0,))
    with pytest.raises(ConfigurationError, match="logit_difference needs a target"):
        attribution_patching(model, np.ones((3, 8)), np.zeros((3, 8)))
    with pytest.raises(ConfigurationError, match=r"0 to 4. Got 9 to 9"):
        attribution_patching(model, np.ones((3, 8)), np.zeros((3, 8)), np.full(3, 9))


def test_attribution_patching__raises_on_numbers_that_are_not_finite():
    with pytest.raises(DegenerateInputError, match="clean must be finite"):
        attribution_patching(LinearNetwork((1.0,)), np.full((3, 8), np.nan), np.ones((3, 8)), np.zeros(3, int))
    with pytest.raises(DegenerateInputError, match="output must be finite"):
        attribution_patching(LinearNetwork((np.inf,)), np.ones((3, 8)), np.zeros((3, 8)), np.zeros(3, int))


def test_attribution_patching__raises_where_there_is_nothing_to_attribute_to():
    data = (np.ones((3, 8)), np.zeros((3, 8)), np.zeros(3, int))
    with pytest.raises(NotFoundError, match="'mlp'"):
        attribution_patching(LinearNetwork((1.0,)), *data, config=AttributionPatchingConfig(sites=("mlp",)))
    with pytest.raises(NotFoundError, match="must match an attention module"):
        attribution_patching(LinearNetwork((1.0,)), *data, config=AttributionPatchingConfig(by="head"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sites": ()}, "at least one glob"),
        ({"by": "neuron"}, "by must be one of site, head, position, unit"),
        ({"direction": "both"}, "direction must be one of denoising, noising"),
        ({"method": "exact"}, "method must be one of gradient, integrated"),
        ({"n_steps": 0}, "n_steps must be at least 1"),
        ({"n_verified": -1}, "n_verified at least 0"),
        ({"metric": "kl", "direction": "noising"}, "gradient of kl must not be 0 where it is taken"),
    ],
)
def test_attribution_patching__config_names_what_is_wrong(options, message):
    config = AttributionPatchingConfig()
    for name, value in options.items():  # past the type checker of the tests, which meets some of these first
        object.__setattr__(config, name, value)
    with pytest.raises(ConfigurationError, match=message):
        config.__post_init__()
