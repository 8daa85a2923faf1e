"""Networks with closed-form causal effects, checked by holding their modules fixed."""

from contextlib import ExitStack

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from mechint_core.errors import ConfigurationError
from mechint_core.random import generator, torch_generator
from mechint_core.synthetic.causal_networks import (
    ConceptNetwork,
    InteractionNetwork,
    LinearCausalModel,
    MediationEffects,
    TwoRouteNetwork,
    random_causal_model,
)

COEFFICIENTS = st.floats(-3, 3)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch_generator(seed, "x"), dtype=torch.float64)


@torch.no_grad()
def run(model, x, **held):
    """Run the model with the outputs of named modules held at values; return its output."""
    with ExitStack() as hooks:
        for name, value in held.items():
            module = model.get_submodule(name.replace("__", "."))
            hooks.enter_context(module.register_forward_hook(lambda module, arguments, output, value=value: value))
        return model(x)


@torch.no_grad()
def measured_effects(model, before, after):
    """The five effects by holding the mediator at what it would be, in the order of MediationEffects."""
    x = [torch.tensor([[each]], dtype=torch.float64) for each in (before, after)]
    y = {(i, j): run(model, x[i], mediator=model.mediator(x[j])).item() for i in (0, 1) for j in (0, 1)}
    return [
        y[1, 1] - y[0, 0],
        y[1, 0] - y[0, 0],
        y[0, 1] - y[0, 0],
        y[1, 1] - y[0, 1],
        y[1, 1] - y[1, 0],
    ]


# Known answer
def test_two_route_network__is_path_analysis():
    network = TwoRouteNetwork(direct=1.0, to_mediator=2.0, from_mediator=-1.5)

    assert network(torch.tensor([[3.0]], dtype=torch.float64)).item() == 3 * (1 - 3)
    assert (network.total_effect, network.direct_effect, network.indirect_effect) == (-2, 1, -3)
    assert network.mediated_share == 1.5


def test_interaction_network__has_two_versions_of_each_effect_that_differ():
    """y = x + 3 m + x m / 2, m = 1 + x, from 0 to 1: y goes from 3 to 8."""
    effects = InteractionNetwork().effects(0.0, 1.0)

    assert effects == MediationEffects(5.0, 1.5, 3.0, 2.0, 3.5)
    assert effects.interaction == 0.5


def test_linear_causal_model__adds_up_paths():
    """x_2 -> x_0 -> x_1 and x_2 -> x_1: 4 * 2 + 5 = 13 in all."""
    model = LinearCausalModel(np.array([[0.0, 2, 0], [0, 0, 0], [4, 5, 0]]))

    assert model.order == (2, 0, 1)
    assert model.sites == ("variables.0", "variables.1", "variables.2")
    assert model.causes == ((2,), (0, 2), ())
    np.testing.assert_allclose(model.total_effects, [[1, 2, 0], [0, 1, 0], [4, 13, 1]], atol=1e-12)


def test_concept_network__answers_by_the_group():
    network = ConceptNetwork(gain=2.0)
    states, present = network.samples(2000, separation=8.0)
    answers = network(torch.from_numpy(states)).argmax(-1).numpy()

    assert present.sum() == 1000
    assert np.mean(answers == present) > 0.9995 - 1e-3  # P(|N(0, 1)| > 4) = 6e-5, in 2000 draws
    assert network.slope(network.concept) == pytest.approx(4)


# Oracle
@given(COEFFICIENTS, COEFFICIENTS, COEFFICIENTS, COEFFICIENTS, COEFFICIENTS, COEFFICIENTS, COEFFICIENTS)
@settings(max_examples=50)
def test_interaction_network__effects_are_those_of_holding_the_mediator(c, a, b, g, a0, before, after):
    network = InteractionNetwork(direct=c, to_mediator=a, from_mediator=b, interaction=g, mediator_offset=a0)
    effects = network.effects(before, after)

    fields = [getattr(effects, name) for name in MediationEffects.__slots__]
    np.testing.assert_allclose(fields, measured_effects(network, before, after), atol=1e-10)
    np.testing.assert_allclose(effects.interaction, g * a * (after - before) ** 2, atol=1e-10)


@given(st.integers(1, 8), st.floats(0, 1), st.integers(0, 2**20))
@settings(max_examples=40)
def test_linear_causal_model__solves_its_equations(n_variables, density, seed):
    model = random_causal_model(n_variables, density=density, seed=seed)
    noise = draw(5, n_variables, seed=seed)
    x = run(model, noise).numpy()

    np.testing.assert_allclose(x, x @ model.weights + noise.numpy(), atol=1e-9)
    np.testing.assert_allclose(x, noise.numpy() @ model.total_effects, rtol=1e-9, atol=1e-9)


def test_linear_causal_model__has_the_covariance_it_says():
    model = random_causal_model(4, seed=2)
    x = run(model, 0.5 * draw(200_000, 4)).numpy()
    variances = np.diag(model.covariance(0.5))

    # The standard error of a covariance is at most sqrt(2 / n) of its variances' geometric mean: 0.3 %.
    error = np.abs(np.cov(x.T) - model.covariance(0.5)) / np.sqrt(np.outer(variances, variances))
    assert error.max() < 0.015


# Law
@given(COEFFICIENTS, COEFFICIENTS, COEFFICIENTS, st.integers(1, 4), st.integers(1, 4), st.integers(0, 2**20))
@settings(max_examples=40)
def test_two_route_network__holding_the_mediator_leaves_the_direct_share(c, a, b, n_units, n_outputs, seed):
    if abs(c + a * b) < 1e-3:
        return
    network = TwoRouteNetwork(direct=c, to_mediator=a, from_mediator=b, n_units=n_units, n_outputs=n_outputs, seed=seed)
    before, after = draw(2, 6, n_units, seed=seed)
    total = run(network, after) - run(network, before)
    direct = run(network, after, mediator=a * before) - run(network, before)

    torch.testing.assert_close(direct, network.direct_effect / network.total_effect * total, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(total - direct, network.mediated_share * total, rtol=1e-8, atol=1e-9)


@given(st.integers(2, 8), st.integers(0, 2**20), COEFFICIENTS)
@settings(max_examples=40)
def test_linear_causal_model__holding_a_variable_moves_what_depends_on_it(n_variables, seed, value):
    model = random_causal_model(n_variables, density=0.6, seed=seed)
    noise, cause = draw(5, n_variables, seed=seed), seed % n_variables
    held = {f"variables__{cause}": torch.full((5, 1), value, dtype=torch.float64)}
    free, fixed = run(model, noise).numpy(), run(model, noise, **held).numpy()

    change = (value - free[:, cause])[:, None] * model.total_effects[cause]
    np.testing.assert_allclose(fixed - free, change, rtol=1e-8, atol=1e-8)
    assert np.all((fixed == free)[:, model.total_effects[cause] == 0])


@given(st.integers(1, 10), st.floats(0, 1), st.integers(0, 2**20))
@settings(max_examples=40)
def test_random_causal_model__has_no_cycle(n_variables, density, seed):
    model = random_causal_model(n_variables, density=density, seed=seed)

    assert sorted(model.order) == list(range(n_variables))
    for j, causes in enumerate(model.causes):
        assert all(model.order.index(i) < model.order.index(j) for i in causes)
        assert all(0.5 <= abs(model.weights[i, j]) <= 1.5 for i in causes)


@given(st.integers(1, 20), st.floats(-5, 5), st.integers(0, 2**20))
@settings(max_examples=40)
def test_concept_network__steering_moves_the_logits_by_its_slope(n_units, dose, seed):
    network, rng = ConceptNetwork(n_units, gain=1.5, seed=seed), generator(seed, "test")
    state, direction = draw(4, n_units, seed=seed), rng.standard_normal(n_units)
    moved = run(network, state, hidden=state + dose * torch.from_numpy(direction)) - run(network, state)

    wanted = np.full(4, dose * network.slope(direction))
    np.testing.assert_allclose((moved[:, 1] - moved[:, 0]).numpy(), wanted, atol=1e-9)


def test_causal_networks__are_their_seeds():
    for make in (
        lambda seed: TwoRouteNetwork(n_units=3, n_outputs=2, seed=seed).direct.weight.detach().numpy(),
        lambda seed: random_causal_model(6, seed=seed).weights,
        lambda seed: ConceptNetwork(seed=seed).concept,
        lambda seed: ConceptNetwork().samples(20, seed=seed)[0],
    ):
        assert np.array_equal(make(0), make(0))
        assert not np.array_equal(make(0), make(1))


# Bad input
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TwoRouteNetwork(n_units=0), "sizes must be at least 1"),
        (lambda: TwoRouteNetwork(direct=1.0, to_mediator=1.0, from_mediator=-1.0), "the total effect not 0"),
        (lambda: LinearCausalModel(np.zeros((2, 3))), "a square matrix"),
        (lambda: LinearCausalModel(np.zeros((0, 0))), "a square matrix"),
        (lambda: LinearCausalModel(np.array([[0.0, np.nan], [0.0, 0.0]])), "of finite numbers"),
        (lambda: LinearCausalModel(np.array([[0.0, 1.0], [1.0, 0.0]])), "must have no cycle"),
        (lambda: LinearCausalModel(np.array([[1.0]])), "must have no cycle"),
        (lambda: random_causal_model(0), "at least 1 variable"),
        (lambda: random_causal_model(3, density=1.5), "a density in"),
        (lambda: ConceptNetwork(0), "n_units must be at least 1"),
    ],
)
def test_causal_networks__refuse(make, message):
    with pytest.raises(ConfigurationError, match=message):
        make()
