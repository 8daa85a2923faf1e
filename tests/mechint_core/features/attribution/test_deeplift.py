import inspect
import warnings
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.nn import functional as F

from mechint_core.errors import ConfigurationError, DegenerateInputError, NotFoundError, ShapeError
from mechint_core.features.attribution._lockstep import LINEAR, QUERIES, REWRITTEN
from mechint_core.features.attribution._rescale_rules import RULES
from mechint_core.features.attribution.deeplift import DeepliftConfig, deeplift
from mechint_core.features.attribution.integrated_gradients import IntegratedGradientsConfig, integrated_gradients
from mechint_core.random import generator
from mechint_core.synthetic.modular_addition import build_dataset, build_model
from tests.mechint_core.features.attribution.small_networks import (
    Stack,
    filled,
    mlp,
    signed_axes,
    trained_on_two_inputs,
)

unchecked = inspect.unwrap(deeplift)  # without the shape checker of the tests, to meet our own messages
BARE = {"n_null": 0, "n_bootstrap": 2}


def explained(model, inputs, target=None, baseline=None, dictionary=None, **options):
    return deeplift(model, inputs, target, baseline, dictionary, config=DeepliftConfig(**{**BARE, **options}))


def inputs_of(n=6, d=10, seed=0):
    return generator(seed, "inputs").normal(size=(n, d))


@contextmanager
def quiet():
    """For the packages we compare with, which warn of their own ways."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class Function(nn.Module):
    """A function of (sample, 4) between two linear maps, so that every sample is explained through it."""

    def __init__(self, function, n_outputs=4):
        super().__init__()
        self.read, self.function, self.write = nn.Linear(4, 4), function, nn.Linear(n_outputs, 2)

    def forward(self, x):
        return self.write(self.function(self.read(x)))


# Known answer
def test_deeplift__of_one_relu_is_the_quotient_of_differences():
    """relu(2 x1 - x2 + 1) - 1, from (0, 0) with value 1 to (1, 5), where the unit is off: the multiplier is
    (0 - 1) / (-2 - 1) = 1/3, so 1/3 * 2 * 1 and 1/3 * (-1) * 5."""

    class Unit(nn.Module):
        def forward(self, x):
            return torch.relu(2 * x[:, 0] - x[:, 1] + 1) - 1

    found = explained(Unit(), np.array([[1.0, 5.0]]), objective="output")

    np.testing.assert_allclose(found.attribution, [2 / 3, -5 / 3], atol=1e-14)
    assert found.change.value == -1


def test_deeplift__splits_a_product_evenly():
    """x1 x2 from (1, 1) to (3, 5): 2 * mean(1, 5) and mean(1, 3) * 4."""

    class Product(nn.Module):
        def forward(self, x):
            return x[:, 0] * x[:, 1]

    found = explained(Product(), np.array([[3.0, 5.0]]), None, np.ones((1, 2)), objective="output")

    np.testing.assert_allclose(found.attribution, [6, 8], atol=1e-14)


def test_deeplift__gives_a_softmax_what_two_classes_must_get():
    """softmax of (a, b) is sigmoid(a - b): equal and opposite shares of the change."""
    found = explained(nn.Softmax(dim=1), np.array([[1.0, 2.0]]), np.array([0]), np.array([[0.0, 3.0]]))

    change = 1 / (1 + np.e) - 1 / (1 + np.e**3)
    np.testing.assert_allclose(found.attribution, [change / 2, change / 2], atol=1e-15)


NETWORKS = {
    "relu": lambda: mlp(),
    "softmax": lambda: nn.Sequential(mlp(), nn.Softmax(dim=1)),
    "layer norm, GELU": lambda: filled(nn.Sequential(nn.Linear(10, 32), nn.LayerNorm(32), nn.GELU(), nn.Linear(32, 3))),
    "RMS norm, SiLU": lambda: filled(nn.Sequential(nn.Linear(10, 32), nn.RMSNorm(32), nn.SiLU(), nn.Linear(32, 3))),
    "in place": lambda: filled(nn.Sequential(nn.ReLU(inplace=True), nn.Linear(10, 3), nn.LeakyReLU(inplace=True))),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("objective", ["logit", "logit_difference", "loss"])
def test_deeplift__adds_up_to_rounding(name, objective):
    found = explained(NETWORKS[name](), inputs_of(), None, inputs_of(1, seed=1), objective=objective)

    assert found.completeness_error < 1e-12


@pytest.mark.parametrize("options", [{}, {"batch_first": False}, {"activation": "relu"}])
@pytest.mark.parametrize("site", ["embed", "layers.0", "layers.0.self_attn", "layers.1.linear1", "embed@1"])
def test_deeplift__goes_through_the_attention_layers_of_torch(options, site):
    """The last position's answer, from another position's token, through both layers."""
    tokens = generator(0, "tokens").integers(0, 7, size=(5, 3))
    axis = 0 if options.get("batch_first", True) else 1

    found = explained(filled(Stack(**options)), tokens, None, tokens[:1], site=site, sample_axis=axis)

    assert found.completeness_error < 1e-11


@pytest.mark.parametrize("site", ["embed", "embed.a", "attention.pattern", "attention.heads", "mlp.hidden", "residual"])
def test_deeplift__goes_through_the_transformer_that_adds(site):
    arguments = {"prime": 11, "width": 16, "hidden": 32, "heads": 4}
    model, data = build_model(**arguments), build_dataset(**arguments)

    found = explained(model, data["tokens"][::7], data["answer"][::7], data["tokens"][5:6], site=site)

    assert found.completeness_error < 1e-11


def test_deeplift__goes_through_a_convolutional_network():
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.BatchNorm2d(4),
        nn.GroupNorm(2, 4),
        nn.Flatten(),
        nn.Dropout(),
        nn.Linear(36, 3),
    )
    images = generator(0, "images").normal(size=(4, 2, 8, 8))

    found = explained(filled(model), images, None, images[:1] + 1)

    assert found.completeness_error < 1e-12
    assert found.grid.shape == (64, 2)  # a channel is a unit, a pixel a position


def test_deeplift__latents_and_the_error_add_up(rng):
    x = 2 * rng.normal(size=(6, 4))

    found = explained(mlp(4), x, None, 2 * x[:1] + 1, signed_axes(4))

    assert found.completeness_error < 1e-12
    assert found.part[-1] == "error"


def test_deeplift__explains_a_float32_model_in_float64_and_leaves_it_alone():
    model = mlp().float().train()

    found = explained(model, inputs_of().astype(np.float32))

    assert found.completeness_error < 1e-12
    assert model[0].weight.dtype == torch.float32
    assert model.training
    assert explained(model, inputs_of().astype(np.float32), precision="model").completeness_error < 1e-4


def test_deeplift__names_what_training_has_put_there():
    model, x, y = trained_on_two_inputs()

    found = deeplift(model, x, y)

    assert set(np.argsort(-found.share)[:2]) == {0, 1}
    assert found.learned.p_value == 0.05
    assert "add up to the change" in found.reading()


# Oracle
@pytest.mark.oracle
@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, nn.Sigmoid, nn.Softplus])
def test_deeplift__equals_captum_where_captum_has_a_rule(activation):
    from captum.attr import DeepLift

    model, x, base = mlp(activation=activation), inputs_of(), inputs_of(seed=1)
    target = np.array([0, 1, 2, 0, 1, 2])

    found = explained(model, x, target, base)
    with quiet():
        wanted = DeepLift(model).attribute(*(torch.from_numpy(each) for each in (x, base, target)))

    np.testing.assert_allclose(found.per_sample, wanted.detach().numpy(), atol=1e-12)


@pytest.mark.oracle
def test_deeplift__equals_shap_where_shap_has_a_rule():
    with quiet():
        from shap import DeepExplainer

    model, x, base = mlp(), inputs_of(), inputs_of(1, seed=1)

    found = explained(model, x, np.zeros(6, dtype=int), base)
    with quiet():
        wanted = DeepExplainer(model, torch.from_numpy(base)).shap_values(torch.from_numpy(x), check_additivity=False)

    np.testing.assert_allclose(found.per_sample, wanted[..., 0], atol=1e-12)


@pytest.mark.oracle
@pytest.mark.parametrize("name", ["softmax", "layer norm, GELU"])
def test_deeplift__closes_where_captum_does_not(name):
    """captum 0.9: contributions through a softmax or a LayerNorm miss the change; no oracle there."""
    from captum.attr import DeepLift

    model, x, base = NETWORKS[name](), inputs_of(), inputs_of(seed=1)
    target = np.zeros(6, dtype=int)

    found = explained(model, x, target, base)
    with quiet():
        _, delta = DeepLift(model).attribute(
            *(torch.from_numpy(each) for each in (x, base, target)), return_convergence_delta=True
        )

    change = np.abs(found.per_sample.sum(axis=1)).max()
    assert found.completeness_error < 1e-12
    assert float(delta.abs().max()) > 0.1 * change


# Law
CLOSING = {
    "div": lambda x: x / (2 + x.exp()),
    "rdiv": lambda x: 1 / (3 + x * x),
    "pow": lambda x: x**2 + 2**x,
    "normalize": lambda x: F.normalize(x),
    "norm": lambda x: x / x.norm(dim=1, keepdim=True),
    "std": lambda x: (x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + 1e-3),
    "var": lambda x: x * x.var(-1, unbiased=False, keepdim=True),
    "rms": lambda x: F.rms_norm(x, (4,)),
    "max": lambda x: x * x.max(dim=1, keepdim=True).values,
    "amax": lambda x: x + x.amax(1)[:, None],
    "maximum": lambda x: torch.maximum(x, x.flip(1)),
    "minimum": lambda x: torch.minimum(x, x.flip(1) ** 2),
    "einsum": lambda x: torch.einsum("ij,ik->ijk", x, x).sum(2),
    "matmul": lambda x: (x[:, :, None] @ x[:, None, :]).sum(2),
    "logsumexp": lambda x: x - x.logsumexp(1, keepdim=True) + torch.logsumexp(x, dim=-1)[:, None],
    "mul_": lambda x: (x + 0).mul_(x),
    "imul": lambda x: _augmented(x + 0, x),
    "relu_": lambda x: F.relu_(x + 0.0),
    "glu": lambda x: F.glu(torch.cat([x, x**2], dim=1)),
    "attention": lambda x: F.scaled_dot_product_attention(*[x.reshape(-1, 1, 2, 2)] * 3, is_causal=True).flatten(1),
    "masked softmax": lambda x: F.softmax(x.masked_fill(torch.arange(4) == 2, -torch.inf), dim=-1),
    "log_softmax": lambda x: x.log_softmax(1),
    "softmin": lambda x: F.softmin(x, dim=1),
    "clamp": lambda x: x.clamp(-0.5, 0.5),
    "abs": abs,
    "prelu": lambda x: F.prelu(x, torch.tensor([0.3]).to(x)),
    "setitem": lambda x: _with_first(x.clone(), x[:, 1] ** 2),
    "pool": lambda x: F.max_pool1d(x[:, None], 2, 1, 1)[:, 0, :4],
    "addmm": lambda x: torch.baddbmm(x[:, :, None], x[:, :, None], x[:, None, :1])[:, :, 0],
    **{
        name: getattr(F, name)
        for name in (
            *("elu", "celu", "selu", "gelu", "silu", "mish", "softplus"),
            *("hardswish", "hardtanh", "tanhshrink", "softsign", "logsigmoid"),
        )
    },
    **{name: getattr(torch, name) for name in ("tanh", "sigmoid", "sin", "exp", "expm1", "atan", "erf", "square")},
}


def _augmented(x, y):
    x *= y
    return x


def _with_first(x, column):
    x[:, 0] = column
    return x


@pytest.mark.parametrize("name", CLOSING)
def test_rules__close_for_any_two_runs_and_tend_to_the_derivative(name):
    """Sums to rounding; where the runs nearly meet (1e-4), within 1e-3 of gradient times difference."""
    model = filled(Function(CLOSING[name]), seed=3)
    x, base = inputs_of(20, 4), inputs_of(20, 4, seed=1)
    target, near = np.zeros(20, dtype=int), x + 1e-4 * (base - x)

    far, close = explained(model, x, target, base), explained(model, x, target, near)

    assert far.completeness_error < 1e-12
    point = torch.from_numpy(x).requires_grad_()
    (gradient,) = torch.autograd.grad(model(point)[:, 0].sum(), point)
    slope = gradient.numpy() * (x - near)
    assert np.abs(close.per_sample - slope).max() < 1e-3 * np.abs(slope).max()


@settings(max_examples=25)
@given(st.integers(0, 999), st.sampled_from(sorted(NETWORKS)))
def test_deeplift__of_the_way_back_is_the_opposite(seed, name):
    """Every rule treats the two runs alike."""
    model, x, base = NETWORKS[name](), inputs_of(4, seed=seed), inputs_of(4, seed=seed + 1)
    target = np.array([0, 1, 2, 0])

    there, back = explained(model, x, target, base), explained(model, base, target, x)

    np.testing.assert_allclose(there.per_sample, -back.per_sample, atol=1e-10)
    assert max(there.completeness_error, back.completeness_error) < 1e-10


@settings(max_examples=15)
@given(st.integers(0, 999))
def test_deeplift__of_one_hidden_layer_equals_integrated_gradients_of_each_unit(seed):
    """A network of one ReLU layer is a sum of functions of one number each: there the two methods agree."""
    model = filled(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)), seed)
    x, target = inputs_of(3, 6, seed), np.zeros(3, dtype=int)
    config = IntegratedGradientsConfig(steps=4096, max_steps=4096, **BARE)

    found, integral = explained(model, x, target), integrated_gradients(model, x, target, config=config)

    np.testing.assert_allclose(found.per_sample, integral.per_sample, atol=5e-3)  # one kink between 4096 midpoints


def test_softmax__keeps_closing_where_probabilities_vanish():
    """Logits of size 400: float64 holds e^-800 as 0; the logarithmic mean does not divide by it."""
    x = 400 * np.sign(inputs_of(6, 3))

    found = explained(nn.Sequential(nn.Softmax(dim=1)), x, np.zeros(6, dtype=int), np.array([[400.0, 0.0, -400.0]]))

    assert np.isfinite(found.per_sample).all()
    assert found.completeness_error < 1e-12


def test_deeplift__does_not_depend_on_the_memory_and_repeats_its_bits():
    one, again, little = (explained(mlp(), inputs_of(), memory=memory) for memory in (2**28, 2**28, 1))

    assert (one.per_sample == again.per_sample).all()
    np.testing.assert_allclose(one.per_sample, little.per_sample, atol=1e-12)


def test_tables__name_every_function_once():
    tables = [LINEAR, QUERIES, frozenset(RULES), frozenset(REWRITTEN)]

    assert sum(map(len, tables)) == len(frozenset().union(*tables))


# Bad input
def _hidden(x):
    with torch._C.DisableTorchFunction():
        factor = x.detach()
    return x * factor


@pytest.mark.parametrize(
    ("function", "match"),
    [
        (lambda x: x.cumprod(1), "Got cumprod"),
        (lambda x: x * (x > 0), "Got gt"),
        (lambda x: x * x.detach(), "Got detach"),
        (lambda x: x.sort(1).values, "Got sort"),
        (lambda x: x.round() + x, "Got round"),
        (lambda x: x * x.sum().item(), "Got item"),
        (lambda x: x + x.to(torch.int64), "Got to to something that has no derivative"),
        (lambda x: x * x if x.sum() > 0 else x, "Got gt"),
        (lambda x: torch.einsum("ij,ij,ij->ij", x, x, x), "Got an einsum of three quantities"),
        (lambda x: F.batch_norm(x, None, None, training=True), "Got batch_norm with the statistics of the batch"),
        (lambda x: F.dropout(x), "Got dropout that is switched on in eval mode"),
        (lambda x: F.prelu(x, x[0, :1]), "Got prelu of several quantities"),
        (lambda x: x.norm(p=1, dim=1, keepdim=True).expand(-1, 4), "Got a norm of order 1"),
        (lambda x: x.logsumexp((0, 1)) + x, "Got a softmax or logsumexp over several axes"),
        (lambda x: x.max() + x, "Got max without one axis"),
        (nn.RNNCell(4, 4).double(), "Got rnn_tanh_cell"),
        (_hidden, "Got contributions that miss the change"),
    ],
)
def test_deeplift__refuses_a_function_without_a_rule_by_its_name(function, match):
    with pytest.raises(ConfigurationError, match=match):
        explained(filled(Function(function)), inputs_of(6, 4))


def test_deeplift__refuses_a_model_that_branches_on_its_input():
    class Branching(nn.Module):
        def forward(self, x):
            first = x.detach().sum() if not x.requires_grad else 0.0
            with torch._C.DisableTorchFunction():
                large = bool(x.abs().sum() > 0)
            return (x.tanh() if large else x.sin()) + first * 0

    with pytest.raises(ConfigurationError, match="the model branches on its input"):
        explained(Branching(), np.ones((2, 3)), np.zeros(2, dtype=int))


@pytest.mark.parametrize(
    ("given", "error", "match"),
    [
        ({"inputs": np.zeros(3)}, ShapeError, "inputs must be"),
        ({"inputs": np.full((3, 10), np.nan)}, DegenerateInputError, "inputs must be finite"),
        ({"inputs": np.zeros((3, 10), dtype=np.int64)}, ConfigurationError, "inputs must be floats"),
        ({"target": np.full(3, 3)}, ConfigurationError, "targets must be classes of the output"),
        ({"site": "nowhere"}, NotFoundError, "no match for 'nowhere'"),
    ],
)
def test_deeplift__refuses_what_makes_no_sense(given, error, match):
    data = {"inputs": np.ones((3, 10)), "target": None, **given}

    with pytest.raises(error, match=match):
        unchecked(mlp(), data["inputs"], data["target"], config=DeepliftConfig(site=given.get("site", "")))


def test_deeplift__refuses_impossible_options():
    config = DeepliftConfig()
    object.__setattr__(config, "precision", "float8")  # past the type checker of the tests

    with pytest.raises(ConfigurationError, match="precision must be one of"):
        config.__post_init__()
