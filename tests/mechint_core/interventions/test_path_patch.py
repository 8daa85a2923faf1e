"""Effects of senders through receivers."""

import inspect

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from mechint_core.errors import ConfigurationError, DegenerateInputError, NotFoundError, ShapeError
from mechint_core.interventions import PathPatchConfig, path_patch
from mechint_core.models import Patch, capture, inference, patched
from mechint_core.random import generator
from mechint_core.synthetic.causal_networks import TwoRouteNetwork
from mechint_core.synthetic.linear_network import LinearNetwork
from mechint_core.synthetic.small_transformer import SmallTransformer

unchecked = inspect.unwrap(path_patch)  # without the shape checker of the tests, to meet our own messages

COMPONENTS = ("embed", "layers.*.attention", "layers.*.mlp")
LATER = ("layers.*.attention", "layers.*.mlp", "output")


def numbers(n=40, n_units=4, seed=0):
    return generator(seed, "path numbers").normal(size=(2, n, n_units))


def answers(model, inputs):
    with inference(model):
        logits = model(torch.from_numpy(inputs))
    return (logits[:, -1] if logits.ndim == 3 else logits).argmax(dim=1).numpy()


def prompts(n=16, seed=0):
    """Pairs of five tokens that differ in the last."""
    draws = generator(seed, "path prompts")
    clean = draws.integers(0, 7, size=(n, 5))
    corrupted = clean.copy()
    corrupted[:, -1] = (clean[:, -1] + draws.integers(1, 7, size=n)) % 7
    return clean, corrupted


def transformer(seed=0, dtype=torch.float64):
    return SmallTransformer(
        vocabulary=7, n_positions=5, width=8, n_layers=2, n_heads=2, hidden=8, norm=True, seed=seed, dtype=dtype
    )


class Chain(nn.Module):
    """s -> first -> between -> last, and s -> last: `between` acts only between two receivers."""

    def __init__(self):
        super().__init__()
        self.source, self.first, self.last = nn.Identity(), nn.Tanh(), nn.Tanh()
        self.between = nn.Linear(3, 3, bias=False, dtype=torch.float64)
        nn.init.eye_(self.between.weight)

    def forward(self, x):
        s = self.source(x)
        return self.last(2 * self.between(self.first(s)) + s)


# Known answer
@pytest.mark.parametrize("direction", ["denoising", "noising"])
@pytest.mark.parametrize("linearised", [False, True])
@pytest.mark.parametrize(
    ("direct", "to_mediator", "from_mediator"), [(1.0, 2.0, 1.5), (2.0, -1.0, 1.5), (0.0, 1.0, 1.0)]
)
def test_path_patch__gives_the_two_routes_their_planted_shares(
    direct, to_mediator, from_mediator, linearised, direction
):
    """c' / (c' + ab) and ab / (c' + ab); 1e-9 because the network is linear and computes in float64."""
    clean, corrupted = numbers()
    model = TwoRouteNetwork(direct=direct, to_mediator=to_mediator, from_mediator=from_mediator, n_units=4, n_outputs=3)
    config = PathPatchConfig(
        senders=("exposure",),
        receivers=("direct", "mediator", "output"),
        mediators=("mediated",),
        linearised=linearised,
        direction=direction,
    )

    found = path_patch(model, clean, corrupted, answers(model, clean), config=config)

    assert found.receiver == ("direct", "mediator", "output")
    share = model.mediated_share
    np.testing.assert_allclose(found.effect, [[1 - share, share, 0]], atol=1e-9)
    np.testing.assert_allclose([found.low, found.high], [found.effect] * 2, atol=1e-9)
    np.testing.assert_allclose([found.through, found.total], 1, atol=1e-9)
    if linearised:
        assert found.error.value < 1e-9


def test_path_patch__tells_the_direct_effect_on_the_answer_from_the_one_that_is_passed_on():
    clean, corrupted = numbers(n_units=8)
    model = LinearNetwork((3.0, 1.0))
    target = answers(model, clean)
    free = PathPatchConfig(senders=("routes.*",))
    held = PathPatchConfig(senders=("routes.*",), mediators=("total",))
    passed = PathPatchConfig(senders=("routes.*",), receivers=("total",))

    found = [path_patch(model, clean, corrupted, target, config=each).effect[:, 0] for each in (free, held, passed)]

    np.testing.assert_allclose(found, [model.shares, [0, 0], model.shares], atol=1e-9)


@pytest.mark.parametrize("by", ["site", "head"])
@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_path_patch__through_a_cut_is_what_patching_the_sender_gives(by, direction):
    """All later components and the answer are all first steps there are; exact in float64, norms and all."""
    clean, corrupted = prompts()
    model = transformer()
    config = PathPatchConfig(senders=COMPONENTS, receivers=LATER, by=by, direction=direction, control=False)

    found = path_patch(model, clean, corrupted, answers(model, clean), config=config)

    assert len(found.sender) == (7 if by == "head" else 5)
    np.testing.assert_allclose(found.through, found.total, atol=1e-9)
    assert found.total[0] == pytest.approx(1, abs=1e-9)
    assert abs(found.effect.sum(axis=1) - found.total).max() > 0.01  # single paths need not add up


def test_path_patch__by_position_all_goes_through_the_position_that_differs():
    """The model is causal and the prompts differ in the last token: no other position can pass anything on."""
    clean, corrupted = prompts(6)
    model = transformer()
    config = PathPatchConfig(senders=("embed",), receivers=("layers.0.mlp", "output"), by="position", control=False)

    found = path_patch(model, clean, corrupted, answers(model, clean), config=config)

    assert found.sender == tuple(f"embed@{position}" for position in range(5))
    assert found.receiver == (*(f"layers.0.mlp@{position}" for position in range(5)), "output")
    np.testing.assert_allclose(found.through, [0, 0, 0, 0, 1], atol=1e-9)
    assert (found.effect[-1, -2:] != 0).all()
    np.testing.assert_allclose(found.effect[-1, :-2], 0, atol=1e-9)


def test_path_patch__through_a_cut_is_exact_where_one_receiver_acts_on_another_by_way_of_a_held_one():
    """Freezing `between` in one pass and inserting both receivers in the next would lose a part."""
    clean, corrupted = numbers(n_units=3)
    config = PathPatchConfig(
        senders=("source",), receivers=("first", "last"), mediators=("between",), metric="distance"
    )

    found = path_patch(Chain(), clean, corrupted, config=config)

    assert found.through[0] == pytest.approx(1, abs=1e-12)
    assert found.effect[0, 0] < 0.99
    assert found.effect[0, 1] < 0.99


@pytest.mark.parametrize("linearised", [False, True])
def test_path_patch__nothing_acts_on_what_ran_before_it(linearised):
    clean, corrupted = prompts()
    model = transformer()
    config = PathPatchConfig(senders=COMPONENTS, receivers=LATER, by="head", linearised=linearised)

    found = path_patch(model, clean, corrupted, answers(model, clean), config=config)

    layer = [0 if each == "embed" else int(each.split(".")[1]) * 2 + ("mlp" in each) + 1 for each in found.sender]
    after = [9 if each == "output" else int(each.split(".")[1]) * 2 + ("mlp" in each) + 1 for each in found.receiver]
    upstream = np.array(layer)[:, None] >= np.array(after)[None]
    assert (found.effect[upstream] == 0).all()
    assert (found.p_value[upstream] == 1).all()
    assert (found.effect[~upstream] != 0).all()
    assert found.n_paths == (~upstream).sum() == 26


def test_path_patch__names_the_paths_that_carry_the_answer():
    clean, corrupted = numbers()
    model = TwoRouteNetwork(direct=0.0, n_units=4, n_outputs=3)
    config = PathPatchConfig(senders=("exposure",), receivers=("direct", "mediator", "output"), mediators=("mediated",))

    found = path_patch(model, clean, corrupted, answers(model, clean), config=config)

    assert found.n_carrying == 1
    assert found.reading() == "1 of 3 paths restore part of the answer: exposure -> mediator 1.00 [1.00, 1.00]."
    assert found.strongest.value == pytest.approx(1)
    assert found.strongest.null < 0.8
    assert found.strongest.p_value < 0.05


def test_path_patch__is_undefined_where_clean_and_corrupted_do_not_differ():
    clean, _ = prompts()
    model = transformer()

    found = path_patch(model, clean, clean, answers(model, clean), config=PathPatchConfig(senders=COMPONENTS))

    assert not found.defined
    assert np.isnan(found.effect).all()
    assert np.isnan(found.total).all()
    assert "within noise" in found.reading()


def test_path_patch__says_that_linear_effects_are_approximations_and_how_far_off():
    clean, corrupted = prompts()
    model = transformer()
    target = answers(model, clean)
    options = {"senders": COMPONENTS, "receivers": LATER, "n_checked": 100}

    linear = path_patch(model, clean, corrupted, target, config=PathPatchConfig(**options, linearised=True))
    exact = path_patch(model, clean, corrupted, target, config=PathPatchConfig(**options))

    error = np.linalg.norm(linear.effect - exact.effect) / np.linalg.norm(exact.effect)
    assert linear.error.value == pytest.approx(error, rel=1e-6)  # all paths were checked
    assert linear.error.low <= error <= linear.error.high
    assert linear.error.null == 1
    assert f"linear approximations, off by {error:.0%}" in linear.reading()
    assert np.isnan(exact.error.value)
    np.testing.assert_allclose(linear.total, exact.total, atol=1e-9)


# Oracle
def two_passes(model, base, donor, components, sender, receiver):
    """The method of the sources, one path at a time: freeze and recompute, then insert."""
    frozen = [Patch(site, base[site]) for site in components if site not in (sender, receiver)]
    with inference(model), capture(model, [receiver] if receiver != "output" else []) as seen:
        with patched(model, [*frozen, Patch(sender, donor)]):
            output = model(base["inputs"])
        if receiver == "output":
            return output[:, -1]
        with patched(model, [Patch(receiver, seen[receiver].clone())]):
            return model(base["inputs"])[:, -1]


def runs_of(model, inputs, components):
    with inference(model), capture(model, components) as seen:
        model(torch.from_numpy(inputs))
    return {**seen, "inputs": torch.from_numpy(inputs)}


@pytest.mark.parametrize("sender", ["embed", "layers.0.attention", "layers.0.mlp"])
@pytest.mark.parametrize("receiver", ["layers.1.attention", "layers.1.mlp", "output"])
def test_path_patch__equals_the_two_passes_of_the_sources(sender, receiver):
    clean, corrupted = prompts()
    model = transformer()
    components = ["embed", *(f"layers.{k}.{part}" for k in (0, 1) for part in ("attention", "mlp"))]
    own, base = runs_of(model, clean, components), runs_of(model, corrupted, components)
    target = torch.from_numpy(answers(model, clean))[:, None]

    def mean(logits):
        right = logits.gather(1, target)[:, 0]
        return float((right - (logits.sum(dim=1) - right) / 6).mean())

    with inference(model):
        best, worst = (mean(model(torch.from_numpy(each))[:, -1]) for each in (clean, corrupted))
    wanted = (mean(two_passes(model, base, own[sender], components, sender, receiver)) - worst) / (best - worst)

    found = path_patch(
        model,
        clean,
        corrupted,
        target[:, 0].numpy(),
        config=PathPatchConfig(senders=(sender,), receivers=(receiver,), mediators=tuple(components), batch_rows=11),
    )

    assert found.effect[0, 0] == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize("receiver", ["layers.1.attention", "output"])
def test_path_patch__linear_effect_is_the_slope_of_the_exact_one(receiver):
    """A sender moved by 1e-5 of the way: central differences in float64 are good to far below 1e-5 of the effect."""
    clean, corrupted = prompts()
    model, sender, step = transformer(), "layers.0.attention", 1e-5
    components = ["embed", *(f"layers.{k}.{part}" for k in (0, 1) for part in ("attention", "mlp"))]
    own, base = runs_of(model, clean, components), runs_of(model, corrupted, components)
    clean_logits = two_passes(model, own, own[sender], components, sender, "output")

    def mean(scale):
        donor = base[sender] + scale * (own[sender] - base[sender])
        return float((two_passes(model, base, donor, components, sender, receiver) - clean_logits).square().mean())

    slope = (mean(step) - mean(-step)) / (2 * step)
    config = PathPatchConfig(
        senders=(f"0.{sender}",),
        receivers=(receiver if receiver == "output" else f"0.{receiver}",),
        mediators=tuple(f"0.{each}" for each in components),
        metric="distance",
        linearised=True,
        control=False,
    )

    found = path_patch(nn.Sequential(model, LastPosition()), clean, corrupted, config=config)

    assert found.effect[0, 0] * found.difference.value == pytest.approx(slope, rel=1e-5)


class LastPosition(nn.Module):
    def forward(self, x):
        return x[:, -1]


# Law
@settings(max_examples=4)
@given(st.integers(2, 9), st.integers(8, 40), st.integers(1000, 20_000), st.booleans())
def test_path_patch__does_not_depend_on_how_it_is_packed(n_pairs, batch_rows, cache_bytes, linearised):
    clean, corrupted = prompts(n_pairs, seed=n_pairs)
    model = transformer()
    options = {"senders": COMPONENTS[1:], "receivers": ("layers.1.mlp", "output"), "metric": "kl", "n_draws": 50}
    options["linearised"] = linearised

    whole = path_patch(model, clean, corrupted, config=PathPatchConfig(**options))
    parts = path_patch(
        model, clean, corrupted, config=PathPatchConfig(**options, batch_rows=batch_rows, cache_bytes=cache_bytes)
    )

    for name in ("effect", "null", "through", "total"):
        np.testing.assert_allclose(parts.arrays()[name], whole.arrays()[name], atol=1e-9, err_msg=name)


def test_path_patch__linear_paths_add_up():
    """Every path has one first step, so derivatives along first steps sum to the derivative along all paths."""
    clean, corrupted = prompts()
    model = transformer()
    config = PathPatchConfig(senders=COMPONENTS, receivers=LATER, linearised=True, control=False)
    found = path_patch(model, clean, corrupted, answers(model, clean), config=config)
    np.testing.assert_allclose(found.effect.sum(axis=1), found.through, atol=1e-9)


def test_path_patch__same_seed_same_bits_and_the_model_is_left_as_it_was():
    clean, corrupted = prompts()
    model = transformer().train()
    config = PathPatchConfig(senders=COMPONENTS[1:], linearised=True)
    first, second = (path_patch(model, clean, corrupted, answers(model, clean), config=config) for _ in range(2))
    assert all(np.array_equal(first.arrays()[name], second.arrays()[name]) for name in first.arrays())
    assert model.training
    assert all(each.requires_grad and each.grad is None for each in model.parameters())
    assert not any(each._forward_hooks or each._forward_pre_hooks for each in model.modules())


@pytest.mark.parametrize(("n_models", "most"), [(12, 4), pytest.param(200, 20, marks=pytest.mark.slow)])
def test_path_patch__untrained_models_with_random_answers_have_no_carrying_paths(n_models, most):
    """Family-wise rate at 0.05: 99.9 % of binomial draws are at most `most`."""
    carrying = 0
    for seed in range(n_models):
        clean, corrupted = prompts(12, seed=seed)
        target = generator(seed, "random answers").integers(0, 7, size=12)
        config = PathPatchConfig(senders=COMPONENTS, n_draws=199, seed=seed)
        carrying += path_patch(transformer(seed), clean, corrupted, target, config=config).n_carrying > 0
    assert carrying <= most


# Bad input
def test_path_patch__raises_on_pairs_that_do_not_belong_together():
    with pytest.raises(ShapeError, match="same shape"):
        unchecked(LinearNetwork((1.0,)), np.ones((3, 8)), np.ones((2, 8)), np.zeros(3, int))
    with pytest.raises(ShapeError, match="class >= 2"):
        unchecked(
            nn.Sequential(nn.Linear(8, 1)),
            *numbers(n_units=8),
            np.zeros(40, int),
            config=PathPatchConfig(senders=("0",)),
        )


def test_path_patch__raises_without_a_target_or_with_one_that_is_no_class():
    clean, corrupted = numbers(n_units=8)
    model, config = LinearNetwork((1.0,)), PathPatchConfig(senders=("routes.*",))
    with pytest.raises(ConfigurationError, match="needs a target"):
        path_patch(model, clean, corrupted, config=config)
    with pytest.raises(ConfigurationError, match="classes of the output"):
        path_patch(model, clean, corrupted, np.full(40, 9), config=config)


def test_path_patch__raises_on_nan():
    clean, corrupted = numbers(n_units=8)
    clean[0, 0] = np.nan
    with pytest.raises(DegenerateInputError, match="finite"):
        path_patch(LinearNetwork((1.0,)), clean, corrupted, np.zeros(40, int))


def test_path_patch__raises_on_sites_that_do_not_exist():
    clean, corrupted = numbers(n_units=8)
    with pytest.raises(NotFoundError, match="no match for 'nowhere'"):
        path_patch(
            LinearNetwork((1.0,)),
            clean,
            corrupted,
            np.zeros(40, int),
            config=PathPatchConfig(senders=("routes.*",), receivers=("nowhere",)),
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"senders": ()}, "senders must be a tuple"),
        ({"receivers": "output"}, "receivers must be a tuple"),
        ({"by": "neuron"}, "by must be one of site, head, position, unit"),
        ({"direction": "up"}, "direction must be denoising or noising"),
        ({"n_checked": 0}, "n_checked must be at least 1"),
        ({"level": 1.0}, "level must lie"),
    ],
)
def test_path_patch__config_names_what_is_wrong(options, message):
    config = PathPatchConfig()
    for name, value in options.items():  # past the type checker of the tests, which meets some of these first
        object.__setattr__(config, name, value)
    with pytest.raises(ConfigurationError, match=message):
        config.__post_init__()
