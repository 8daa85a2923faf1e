import inspect
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from mechint_core.errors import ConfigurationError, DegenerateInputError, NotFoundError, ShapeError
from mechint_core.features.attribution.gradient_shap import GradientShapConfig, gradient_shap
from mechint_core.features.attribution.integrated_gradients import IntegratedGradientsConfig, integrated_gradients
from mechint_core.random import generator
from mechint_core.synthetic.linear_network import LinearNetwork
from tests.mechint_core.features.attribution.small_networks import (
    Stack,
    filled,
    mlp,
    signed_axes,
    trained_on_two_inputs,
)

unchecked = inspect.unwrap(gradient_shap)  # without the shape checker of the tests, to meet our own messages
BARE = {"n_null": 0, "n_bootstrap": 2}


def explained(model, inputs, target=None, background=None, dictionary=None, **options):
    return gradient_shap(
        model, inputs, target, background, dictionary, config=GradientShapConfig(**{**BARE, **options})
    )


def inputs_of(n=6, d=10, seed=0):
    return generator(seed, "inputs").normal(size=(n, d))


# Known answer
@pytest.mark.parametrize("n_draws", [2, 20, 33])
def test_gradient_shap__of_a_linear_model_is_weight_times_distance_from_the_drawn_mean(n_draws):
    """Exactly when every background row is drawn equally often (20 of 10), else up to the draws."""
    model, x, usual = LinearNetwork((1.0,)), inputs_of(5, 8), inputs_of(10, 8, seed=1)
    weight = (model.readout.weight @ model.routes[0].weight)[0].detach().numpy()

    found = explained(model, x, np.zeros(5, dtype=int), usual, n_draws=n_draws)

    assert found.completeness_error < 1e-12  # whatever was drawn
    if n_draws == 20:
        np.testing.assert_allclose(found.per_sample, weight * (x - usual.mean(axis=0)), atol=1e-12)


def test_gradient_shap__against_one_row_tends_to_integrated_gradients():
    """One point in each of 512 equal parts: the error of a randomised midpoint rule, below 1e-2 here."""
    model, x, usual = mlp(), inputs_of(), inputs_of(1, seed=1)
    config = IntegratedGradientsConfig(steps=512, max_steps=512, **BARE)

    found = explained(model, x, np.zeros(6, dtype=int), usual, n_draws=512)
    integral = integrated_gradients(model, x, np.zeros(6, dtype=int), usual, config=config)

    np.testing.assert_allclose(found.per_sample, integral.per_sample, atol=1e-2)


def test_gradient_shap__a_position_that_never_varies_gets_nothing():
    tokens = generator(0, "tokens").integers(0, 7, size=(12, 3))
    tokens[:, 2] = 4

    found = explained(filled(Stack()), tokens, site="embed", parts="position")

    assert (found.per_sample[:, 2] == 0).all()
    assert found.share[0] > 0


def test_gradient_shap__latents_and_the_error_share_the_answer(rng):
    """logit = w . x = codes . (W_dec w) + error . w, against two background rows."""
    x, usual = 2 * rng.normal(size=(6, 4)), 2 * rng.normal(size=(2, 4))
    model, axes = filled(nn.Sequential(nn.Identity(), nn.Linear(4, 2, bias=False))), signed_axes(4)
    w = model[1].weight[0].detach()

    found = explained(model, x, np.zeros(6, dtype=int), usual, axes, site="0")

    codes, other = (axes.encode(torch.from_numpy(each)).detach() for each in (x, usual))
    expected = (codes - other.mean(dim=0)) * (axes.W_dec.detach() @ w)
    np.testing.assert_allclose(found.per_sample[:, :8], expected.numpy(), atol=1e-12)


def test_gradient_shap__names_what_training_has_put_there():
    model, x, y = trained_on_two_inputs()

    found = gradient_shap(model, x, y)

    assert set(np.argsort(-found.share)[:2]) == {0, 1}
    assert found.learned.p_value == 0.05
    assert found.n_background == 128
    assert "Against 128 background rows" in found.reading()


# Oracle
@pytest.mark.oracle
def test_gradient_shap__agrees_with_shap_and_captum():
    """Three estimates of the same expectation: within 5 standard errors of ours and theirs together, estimated by
    ours scaled to their draws, everywhere."""
    from captum.attr import GradientShap

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from shap import GradientExplainer
    model, x, usual = mlp(), inputs_of(1), inputs_of(20, seed=1)

    found = explained(model, x, np.array([0]), usual, n_draws=2000)
    model, point, rows = model.float(), torch.from_numpy(x).float(), torch.from_numpy(usual).float()  # as they compute
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.random.manual_seed(0)
        captum = GradientShap(model).attribute(point, rows, n_samples=2000, target=0).detach().numpy()
        shap = GradientExplainer(model, rows).shap_values(point, nsamples=2000, rseed=0)[..., 0]

    for theirs in (captum, shap):
        assert (np.abs(found.per_sample - theirs) < 5 * np.sqrt(2) * found.standard_error).all()


# Law
@settings(max_examples=15)
@given(st.integers(0, 99), st.sampled_from(["logit", "logit_difference", "loss"]))
def test_gradient_shap__adds_up_within_its_standard_error(seed, objective):
    found = explained(mlp(seed=seed), inputs_of(12, seed=seed), objective=objective)

    assert found.completeness_z < 1.5


def test_gradient_shap__standard_errors_are_not_too_small():
    """Against the mean of 40 runs with other seeds: z-scores of 40 x 10 parts have a root mean square of at most 1.1
    (1 for independent draws; ours are stratified, and better)."""
    runs = [
        explained(mlp(), inputs_of(), np.zeros(6, dtype=int), inputs_of(32, seed=1), seed=seed) for seed in range(40)
    ]

    values, errors = (np.stack([getattr(run, name) for run in runs]) for name in ("attribution", "standard_error"))
    z = (values - values.mean(axis=0)) / errors

    assert 0.3 < np.sqrt((z**2).mean()) < 1.1


def test_gradient_shap__more_draws_leave_less_noise():
    few, many = (explained(mlp(), inputs_of(), n_draws=n).standard_error.mean() for n in (32, 512))

    assert many < few / 3  # sqrt(16) = 4


def test_gradient_shap__does_not_depend_on_the_memory_and_repeats_its_bits():
    one, again, little = (explained(mlp(), inputs_of(), memory=memory, n_draws=8) for memory in (2**28, 2**28, 1))

    assert (one.per_sample == again.per_sample).all()
    np.testing.assert_allclose(one.per_sample, little.per_sample, atol=1e-12)
    np.testing.assert_allclose(one.standard_error, little.standard_error, atol=1e-12)


# Bad input
@pytest.mark.parametrize(
    ("given", "error", "match"),
    [
        ({"inputs": np.zeros(3)}, ShapeError, "inputs must be"),
        ({"inputs": np.full((3, 10), np.nan)}, DegenerateInputError, "inputs must be finite"),
        ({"inputs": np.zeros((3, 10), dtype=np.int64)}, ConfigurationError, "inputs must be floats"),
        ({"target": np.full(3, 3)}, ConfigurationError, "targets must be classes of the output"),
        ({"background": np.zeros((3, 9))}, ShapeError, "background must be inputs of the model"),
        ({"background": np.zeros((0, 10))}, ShapeError, "background must be inputs of the model"),
        ({"background": np.full((3, 10), np.inf)}, DegenerateInputError, "background must be finite"),
        ({"site": "nowhere"}, NotFoundError, "no match for 'nowhere'"),
    ],
)
def test_gradient_shap__refuses_what_makes_no_sense(given, error, match):
    data = {"inputs": np.ones((3, 10)), "target": None, "background": None}
    options = {name: value for name, value in given.items() if name not in data}
    data |= {name: value for name, value in given.items() if name in data}

    with pytest.raises(error, match=match):
        unchecked(mlp(), **data, config=GradientShapConfig(**options))


@pytest.mark.parametrize("option", [{"n_draws": 1}, {"max_background": 0}, {"max_samples": 0}, {"n_null": -1}])
def test_gradient_shap__refuses_impossible_options(option):
    with pytest.raises(ConfigurationError, match="must be at least"):
        GradientShapConfig(**option)
