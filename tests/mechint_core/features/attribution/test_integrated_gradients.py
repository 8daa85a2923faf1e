import inspect

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from mechint_core.errors import ConfigurationError, DegenerateInputError, NotFoundError, ShapeError
from mechint_core.features.attribution._attribution import summarise
from mechint_core.features.attribution._explained import Explained
from mechint_core.features.attribution._shuffled_parameters import Compared, shuffled
from mechint_core.features.attribution.integrated_gradients import IntegratedGradientsConfig, integrated_gradients
from mechint_core.random import generator
from mechint_core.synthetic.linear_network import LinearNetwork
from tests.mechint_core.features.attribution.small_networks import (
    Relus,
    Stack,
    filled,
    mlp,
    signed_axes,
    trained_on_two_inputs,
)

unchecked = inspect.unwrap(integrated_gradients)  # without the shape checker of the tests, to meet our own messages
BARE = {"n_null": 0, "n_bootstrap": 2}


def explained(model, inputs, target=None, baseline=None, dictionary=None, **options):
    return integrated_gradients(
        model, inputs, target, baseline, dictionary, config=IntegratedGradientsConfig(**{**BARE, **options})
    )


def inputs_of(n=6, d=10, seed=0):
    return generator(seed, "inputs").normal(size=(n, d))


# Known answer
def test_integrated_gradients__of_three_relus_are_the_printed_numbers():
    """captum's BasicModel2 at (3, 1) from zero: (1.5, -0.5); the kink falls between midpoints, so it is exact."""
    found = explained(Relus(), np.array([[3.0, 1.0]]), objective="output")

    np.testing.assert_allclose(found.attribution, [1.5, -0.5], atol=1e-12)
    assert found.completeness_error < 1e-12


def test_integrated_gradients__of_a_linear_model_are_weight_times_distance(rng):
    x, base = rng.normal(size=(5, 8)), rng.normal(size=(5, 8))
    model = LinearNetwork((2.0, 1.0))
    weight = (model.readout.weight @ (model.routes[0].weight + model.routes[1].weight)).detach().numpy()
    target = np.array([0, 1, 2, 3, 4])

    found = explained(model, x, target, base)

    np.testing.assert_allclose(found.per_sample, weight[target] * (x - base), atol=1e-12)
    np.testing.assert_allclose(found.attribution, found.per_sample.mean(axis=0))
    assert (found.steps == 16).all()


def test_integrated_gradients__start_from_the_mean_of_the_samples(rng):
    x = rng.normal(size=(5, 8))
    model = LinearNetwork((1.0,))

    found = explained_from_mean(model, x)

    weight = (model.readout.weight @ model.routes[0].weight)[0].detach().numpy()
    np.testing.assert_allclose(found.per_sample, weight * (x - x.mean(axis=0)), atol=1e-12)
    np.testing.assert_allclose(found.attribution, 0, atol=1e-12)


def explained_from_mean(model, x):
    config = IntegratedGradientsConfig(baseline="mean", **BARE)
    return integrated_gradients(model, x, np.zeros(len(x), dtype=int), config=config)


def test_integrated_gradients__at_a_route_leave_the_other_route_on_the_sample(rng):
    """routes.0 carries 2/3 of the logits: its change from zero is 2/3 of the logit."""
    x = rng.normal(size=(4, 8))
    model = LinearNetwork((2.0, 1.0))

    found = explained(model, x, np.zeros(4, dtype=int), site="routes.0")

    logit = model(torch.from_numpy(x))[:, 0].detach().numpy()
    np.testing.assert_allclose(found.per_sample.sum(axis=1), 2 / 3 * logit, atol=1e-12)


def test_integrated_gradients__latents_and_the_error_share_the_answer_exactly(rng):
    """logit = w . x and x = codes @ W_dec + error: code_j (w . W_dec_j) each, and w . error."""
    x = 2 * rng.normal(size=(6, 4))
    model, axes = filled(nn.Sequential(nn.Identity(), nn.Linear(4, 2, bias=False))), signed_axes(4)
    w = model[1].weight[0].detach()

    found = explained(model, x, np.zeros(6, dtype=int), dictionary=axes, site="0")

    codes = axes.encode(torch.from_numpy(x)).detach()
    error = torch.from_numpy(x) - axes.decode(codes).detach()
    expected = torch.cat([codes * (axes.W_dec.detach() @ w), (error @ w)[:, None]], dim=1)
    np.testing.assert_allclose(found.per_sample, expected.numpy(), atol=1e-12)
    assert found.part == (*(f"latent {j}" for j in range(8)), "error")
    assert (np.abs(found.attribution[:8]) > 0).any()
    assert abs(found.attribution[8]) > 0


def test_integrated_gradients__sums_over_positions_units_and_heads_agree():
    tokens, model = generator(0, "tokens").integers(0, 7, size=(5, 3)), filled(Stack())

    both, units, positions, heads = (
        explained(model, tokens, site="embed", **options)
        for options in ({"parts": "both"}, {}, {"parts": "position"}, {"n_heads": 2})
    )

    grid = both.per_sample.reshape(5, 3, 8)
    np.testing.assert_allclose(both.grid, grid.mean(axis=0), atol=1e-12)
    np.testing.assert_allclose(units.per_sample, grid.sum(axis=1), atol=1e-12)
    np.testing.assert_allclose(positions.per_sample, grid.sum(axis=2), atol=1e-12)
    np.testing.assert_allclose(heads.per_sample, grid.reshape(5, 3, 2, 4).sum(axis=(1, 3)), atol=1e-12)
    assert (both.part[0], heads.part, positions.part[2]) == ("position 0, unit 0", ("head 0", "head 1"), "position 2")


def test_integrated_gradients__one_position_of_a_site_is_a_site():
    """Of a layer whose other positions stay on the sample: with a baseline that differs there only, the same."""
    tokens, model = generator(0, "tokens").integers(0, 7, size=(5, 3)), filled(Stack())
    other = tokens.copy()
    other[:, 2] = (other[:, 2] + 1) % 7

    alone, whole = (explained(model, tokens, None, other, site=site) for site in ("embed@2", "embed"))

    np.testing.assert_allclose(alone.per_sample, whole.per_sample, atol=1e-12)
    assert alone.grid.shape == (1, 8)


def test_integrated_gradients__doubles_the_points_only_where_the_sum_is_off():
    model, x = mlp(), inputs_of(30)

    found = explained(model, x, steps=4, tolerance=1e-3)

    assert found.converged
    assert (found.error <= 1e-3).all()
    assert len(set(found.steps)) > 1
    assert all(n & (n - 1) == 0 for n in found.steps)


def test_integrated_gradients__says_when_the_sum_does_not_close():
    found = explained(mlp(), inputs_of(30), steps=2, max_steps=4, tolerance=1e-6)

    assert not found.converged
    assert found.n_unconverged > 0
    assert "raise max_steps" in found.reading()


@pytest.mark.parametrize("steps", [20, 50, 200, 1000])
def test_integrated_gradients__across_relu_kinks_midpoint_errors_fall_as_theory_says(steps):
    """On a ReLU network df/dt is piecewise constant along the path: its midpoint sum is off by at most its total
    variation / (2 n). The variation is read off 40,000 chords; 1 % for kinks that fall between the same two."""
    model, x = mlp(), inputs_of(5)
    with torch.no_grad():
        t = torch.linspace(0, 1, 40001, dtype=torch.float64)[:, None]
        along = torch.stack([model(t * torch.from_numpy(each))[:, 0] for each in x])
    variation = (along.diff(dim=1) * 40000).diff(dim=1).abs().sum(dim=1).numpy()

    found = explained(model, x, np.zeros(5, dtype=int), steps=steps, max_steps=steps)

    off = np.abs(found.per_sample.sum(axis=1) - (along[:, -1] - along[:, 0]).numpy())
    assert (off <= 1.01 * variation / (2 * steps)).all()


def test_integrated_gradients__gauss_legendre_needs_few_points_in_a_smooth_network():
    """LayerNorm and GELU, 50 points: measured once 2.6e-9; here 1e-6 of the change leaves room for other weights."""
    model = filled(nn.Sequential(nn.Linear(10, 32), nn.LayerNorm(32), nn.GELU(), nn.Linear(32, 3)))

    found = explained(
        model,
        inputs_of(10),
        np.zeros(10, dtype=int),
        inputs_of(1, seed=1),
        quadrature="gauss_legendre",
        steps=50,
        max_steps=50,
    )

    assert found.completeness_error < 1e-6


def test_integrated_gradients__name_what_training_has_put_there():
    model, x, y = trained_on_two_inputs()

    found = integrated_gradients(model, x, y)

    assert set(np.argsort(-found.share)[:2]) == {0, 1}
    assert found.learned.p_value == 0.05  # 1 / (1 + 19)
    assert found.change.p_value == 0.05
    assert abs(found.change.null) < 0.2 * found.change.value
    assert found.learned.low <= found.learned.value <= found.learned.high
    assert found.top_share.low < found.top_share.value < found.top_share.high
    assert (found.share_low <= found.share).all()
    assert (found.share <= found.share_high).all()
    assert "rests most on unit" in found.reading()
    assert "Training has put it there" in found.reading()


def test_integrated_gradients__of_an_untrained_network_are_like_those_of_a_shuffled_one():
    _, x, y = trained_on_two_inputs()

    found = integrated_gradients(filled(nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2)), seed=5), x, y)

    assert found.learned.p_value > 0.05
    assert "not distinguishable" in found.reading()


def test_integrated_gradients__from_the_sample_itself_attribute_nothing():
    x = inputs_of(3)

    found = explained(mlp(), x, None, x)

    assert (found.attribution == 0).all()
    assert np.isnan(found.top_share.value)
    assert found.completeness_error == 0
    assert "Nothing to attribute" in found.reading()


# Oracle
@pytest.mark.oracle
@pytest.mark.parametrize(("ours", "theirs"), [("midpoint", "riemann_middle"), ("gauss_legendre", "gausslegendre")])
def test_integrated_gradients__equal_captum(ours, theirs):
    """Up to 1e-6: captum's points and weights are float32."""
    from captum.attr import IntegratedGradients

    model, x, base = mlp(), inputs_of(6), inputs_of(6, seed=1)
    target = np.array([0, 1, 2, 0, 1, 2])

    found = explained(model, x, target, base, quadrature=ours, steps=40, max_steps=40)
    wanted = IntegratedGradients(model).attribute(
        torch.from_numpy(x), torch.from_numpy(base), torch.from_numpy(target), n_steps=40, method=theirs
    )

    np.testing.assert_allclose(found.per_sample, wanted.detach().numpy(), rtol=1e-6, atol=1e-9)


@pytest.mark.oracle
def test_integrated_gradients__at_a_layer_equal_captum():
    from captum.attr import LayerIntegratedGradients

    model, x, target = mlp(), inputs_of(6), np.array([0, 1, 2, 0, 1, 2])
    start = torch.zeros(1, 10, dtype=torch.float64)

    found = explained(model, x, target, start.numpy(), site="1", steps=40, max_steps=40)
    wanted = LayerIntegratedGradients(model, model[1]).attribute(
        torch.from_numpy(x), start, torch.from_numpy(target), n_steps=40, method="riemann_middle"
    )

    np.testing.assert_allclose(found.per_sample, wanted.detach().numpy(), atol=1e-12)


# Law
@settings(max_examples=15)
@given(st.integers(0, 99), st.sampled_from(["logit", "logit_difference", "loss"]), st.sampled_from([nn.ReLU, nn.Tanh]))
def test_integrated_gradients__add_up_to_the_change(seed, objective, activation):
    found = explained(mlp(activation=activation, seed=seed), inputs_of(5, seed=seed), objective=objective)

    assert found.converged
    total = found.per_sample.sum(axis=1)
    assert total.mean() == pytest.approx(found.change.value, abs=0.011 * np.abs(total).mean() + 1e-9)


@settings(max_examples=15)
@given(st.integers(0, 99))
def test_integrated_gradients__do_not_depend_on_how_a_function_is_written(seed):
    """Hidden units permuted, scaled and split in two: relu(a x) = a relu(x) and u = u / 2 + u / 2."""
    plain = filled(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)), seed)
    rng = generator(seed, "rewriting")
    order, scale = torch.from_numpy(rng.permutation(8)), torch.from_numpy(rng.uniform(0.5, 2, size=(8, 1)))
    other = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2)).double()
    with torch.no_grad():
        other[0].weight.copy_((scale * plain[0].weight[order]).repeat(2, 1))
        other[0].bias.copy_((scale[:, 0] * plain[0].bias[order]).repeat(2))
        other[2].weight.copy_((plain[2].weight[:, order] / (2 * scale[:, 0])).repeat(1, 2))
        other[2].bias.copy_(plain[2].bias)

    found, again = (explained(model, inputs_of(4, 6, seed), np.zeros(4, dtype=int)) for model in (plain, other))

    np.testing.assert_allclose(found.per_sample, again.per_sample, atol=1e-12)


@settings(max_examples=15)
@given(st.integers(0, 99), st.floats(-2, 2))
def test_integrated_gradients__are_linear_in_the_model(seed, factor):
    one, two = mlp(seed=seed), mlp(seed=seed + 1)

    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = one, two

        def forward(self, x):
            return self.one(x) + factor * self.two(x)

    same = {"target": np.zeros(4, dtype=int), "steps": 8, "max_steps": 8}
    a, b, both = (explained(model, inputs_of(4, seed=seed), **same).per_sample for model in (one, two, Sum()))

    np.testing.assert_allclose(both, a + factor * b, atol=1e-12)


@pytest.mark.parametrize("site", ["", "1"])
def test_integrated_gradients__do_not_depend_on_the_memory(site):
    """One row at a time, or all: the same to rounding of sums in another order."""
    little, much = (explained(mlp(), inputs_of(7), site=site, memory=memory) for memory in (1, 2**28))

    np.testing.assert_allclose(little.per_sample, much.per_sample, atol=1e-12)
    assert (little.steps == much.steps).all()


def test_integrated_gradients__keep_within_the_stated_memory():
    """What the backward pass of any batch keeps, parameters apart, is at most what was allowed."""
    model, kept, rows = mlp(), [], []
    own = {parameter.data_ptr() for parameter in model.parameters()}

    def pack(tensor):
        kept[-1] += 0 if tensor.untyped_storage().data_ptr() in own else tensor.numel() * tensor.element_size()
        return tensor

    def begin(_, given):
        kept.append(0)
        rows.append(len(given[0]))

    handle = model.register_forward_pre_hook(begin)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        explained(model, inputs_of(50), memory=100_000)
    handle.remove()

    assert max(kept) <= 100_000
    assert max(rows) > 20  # and it is used


def test_integrated_gradients__do_not_depend_on_where_a_model_keeps_its_samples():
    tokens = generator(0, "tokens").integers(0, 7, size=(5, 3))
    first, second = filled(Stack()), filled(Stack(batch_first=False))

    a = explained(first, tokens, site="layers.0")
    b = explained(second, tokens, site="layers.0", sample_axis=1)

    np.testing.assert_allclose(a.per_sample, b.per_sample, atol=1e-10)


def test_integrated_gradients__leave_the_model_as_it_was_and_repeat_their_bits():
    tokens, model = generator(0, "tokens").integers(0, 7, size=(5, 3)), filled(Stack()).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.random.get_rng_state()
    config = IntegratedGradientsConfig(site="embed", n_null=2)

    one, two = (integrated_gradients(model, tokens, config=config) for _ in range(2))

    assert one.scalars() == pytest.approx(two.scalars(), rel=0, abs=0, nan_ok=True)
    assert (one.per_sample == two.per_sample).all()
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert all((before[name] == value).all() for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    assert (torch.random.get_rng_state() == state).all()


def test_shuffled__moves_the_entries_of_every_parameter_in_a_copy():
    model = mlp()
    before = [parameter.clone() for parameter in model.parameters()]

    other, again = shuffled(model, 0, 3), shuffled(model, 0, 3)

    for old, parameter, moved, same in zip(
        before, model.parameters(), other.parameters(), again.parameters(), strict=True
    ):
        assert (old == parameter).all()
        assert (moved == same).all()
        assert (moved != old).any()
        np.testing.assert_array_equal(*(np.sort(each.detach().numpy(), axis=None) for each in (moved, old)))


def test_learned__is_found_by_chance_as_often_as_it_says():
    """400 networks like their 19 shuffled copies: p <= 0.05 in 5 % of them, +- 3 standard errors of 1.1 %."""
    rng, found = generator(0, "chance"), []
    for _ in range(400):
        drawn = rng.lognormal(size=(20, 1, 6)) * np.ones((1, 4, 1))
        of_all = Explained(drawn[0], drawn[0].sum(axis=1), tuple("abcdef"), None, np.zeros((1, 6)))
        compared = Compared(drawn[0], 1.0, drawn[1:], np.ones(19))
        found.append(summarise(of_all, compared, IntegratedGradientsConfig(n_bootstrap=2))["learned"].p_value)

    assert np.mean(np.array(found) <= 0.05) == pytest.approx(0.05, abs=0.033)


def test_integrated_gradients__of_more_samples_than_asked_for_take_some():
    found = explained(mlp(), inputs_of(50), max_samples=7)

    assert found.n_samples == 7
    assert found.per_sample.shape == (7, 10)


# Bad input
@pytest.mark.parametrize(
    ("given", "error", "match"),
    [
        ({"inputs": np.zeros(3)}, ShapeError, "inputs must be"),
        ({"inputs": np.zeros((0, 10))}, ShapeError, "inputs must be"),
        ({"inputs": np.full((3, 10), np.nan)}, DegenerateInputError, "inputs must be finite"),
        ({"inputs": np.zeros((3, 10), dtype=np.int64)}, ConfigurationError, "inputs must be floats"),
        ({"target": np.zeros(4, dtype=int)}, ShapeError, "target must be one class per sample"),
        ({"target": np.full(3, 3)}, ConfigurationError, "targets must be classes of the output, 0 to 2"),
        ({"baseline": np.zeros((3, 9))}, ShapeError, "baseline must be inputs of the model"),
        ({"baseline": np.full((1, 10), np.inf)}, DegenerateInputError, "baseline must be finite"),
        ({"dictionary": signed_axes(4)}, ShapeError, "the dictionary's 4 units"),
        ({"dictionary": signed_axes(10), "n_heads": 2}, ConfigurationError, "heads or latents, not both"),
        ({"n_heads": 3}, ShapeError, "n_heads must divide the 10 units"),
        ({"site": "nowhere"}, NotFoundError, "no match for 'nowhere'"),
        ({"site": "1@0"}, ShapeError, "must have a position 0"),
        ({"site": "1@last"}, ConfigurationError, "module@position"),
        ({"objective": "output"}, ShapeError, "one number per sample"),
        ({"objective": "output", "target": np.zeros(3, dtype=int)}, ConfigurationError, "has no classes"),
    ],
)
def test_integrated_gradients__refuse_what_makes_no_sense(given, error, match):
    data = {"inputs": np.ones((3, 10)), "target": None, "baseline": None, "dictionary": None}
    options = {name: value for name, value in given.items() if name not in data}

    with pytest.raises(error, match=match):
        unchecked(
            mlp(), **{**data, **{k: given[k] for k in given.keys() & data}}, config=IntegratedGradientsConfig(**options)
        )


def test_integrated_gradients__refuse_an_output_without_classes_or_numbers():
    with pytest.raises(ShapeError, match=r"output must be \(sample\[, position\], class >= 2\)"):
        explained(Relus(), np.ones((2, 2)))
    broken = mlp()
    broken[4].bias.data.fill_(torch.nan)
    with pytest.raises(DegenerateInputError, match="output must be finite"):
        explained(broken, np.ones((2, 10)), np.zeros(2, dtype=int))


@pytest.mark.parametrize(
    "option",
    [
        {"steps": 0},
        {"max_steps": 8},
        {"tolerance": 0.0},
        {"quadrature": "simpson"},
        {"baseline": "noise"},
        {"parts": "layer"},
        {"objective": "accuracy"},
        {"n_heads": -1},
        {"memory": 0},
        {"level": 1.0},
        {"sample_axis": 2},
    ],
)
def test_integrated_gradients__refuse_impossible_options(option):
    ((name, value),) = option.items()
    config = IntegratedGradientsConfig()
    object.__setattr__(config, name, value)  # past the type checker of the tests

    with pytest.raises(ConfigurationError, match=f"{name} must"):
        config.__post_init__()
