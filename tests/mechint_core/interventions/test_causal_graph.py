"""Which component directly drives which."""

import inspect

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from mechint_core.errors import ConfigurationError, DegenerateInputError, NotFoundError, ShapeError
from mechint_core.interventions import CausalGraphConfig, causal_graph
from mechint_core.models import Patch, capture, inference, patched
from mechint_core.random import generator
from mechint_core.synthetic.causal_networks import LinearCausalModel, random_causal_model
from mechint_core.synthetic.linear_network import LinearNetwork
from mechint_core.synthetic.small_transformer import SmallTransformer

unchecked = inspect.unwrap(causal_graph)  # without the shape checker of the tests, to meet our own messages

VARIABLES = CausalGraphConfig(sites=("variables.*",), output=False)


def noise(model, n=300, seed=0):
    return generator(seed, "noise").normal(size=(2, n, len(model.weights)))


def edges_of(found, values):
    return dict(zip(zip(found.sender, found.receiver, strict=True), values, strict=True))


def planted(model):
    return {(model.sites[i], model.sites[j]): float(model.weights[i, j]) for i, j in np.argwhere(model.edges)}


def prompts(n=20, seed=0):
    draws = generator(seed, "graph prompts")
    clean = draws.integers(0, 7, size=(n, 4))
    corrupted = clean.copy()
    corrupted[:, -1] = (clean[:, -1] + draws.integers(1, 7, size=n)) % 7
    return clean, corrupted


def transformer():
    return SmallTransformer(vocabulary=7, n_positions=4, width=8, n_layers=2, hidden=8, dtype=torch.float64)


# Known answer
@pytest.mark.parametrize("seed", range(5))
def test_causal_graph__recovers_a_planted_dag_and_its_coefficients(seed):
    """Edge F1 = 1, and structural coefficients to 1e-9 in float64, whatever the order of the variables."""
    model = random_causal_model(7, seed=seed)

    found = causal_graph(model, *noise(model, seed=seed), config=VARIABLES)

    kept = {edge for edge, kept in edges_of(found, found.kept).items() if kept}
    assert kept == planted(model).keys()
    for edge, coefficient in edges_of(found, found.coefficient).items():
        assert coefficient == pytest.approx(planted(model).get(edge, 0.0), abs=1e-9)


def test_causal_graph__score_and_total_are_the_shares_of_the_receivers_difference():
    """x_1 = 2 x_0 + u_1 and x_2 = 3 x_1 + x_0 + u_2: total and direct effect in the data's own moments, to 1e-9."""
    model = LinearCausalModel(np.array([[0.0, 2, 1], [0, 0, 3], [0, 0, 0]]))
    clean, corrupted = noise(model)
    with inference(model):
        change = (model(torch.from_numpy(clean)) - model(torch.from_numpy(corrupted))).numpy()

    found = causal_graph(model, clean, corrupted, config=VARIABLES)

    along = (change[:, 0] * change[:, 2]).sum() / (change[:, 2] ** 2).sum()
    edge = ("variables.0", "variables.2")
    assert edges_of(found, found.score)[edge] == pytest.approx(1 * along, abs=1e-9)
    assert edges_of(found, found.total)[edge] == pytest.approx(7 * along, abs=1e-9)
    assert found.low[0] < found.score[0] < found.high[0]


def test_causal_graph__keeps_an_edge_whose_effect_cancels_in_the_receiver():
    """x_2 = x_1 - x_0 + u with x_1 = x_0 + u: x_0 and x_2 are uncorrelated, and still x_0 is a cause of x_2."""
    model = LinearCausalModel(np.array([[0.0, 1, -1], [0, 0, 1], [0, 0, 0]]))
    clean, corrupted = noise(model, 400)

    found = causal_graph(model, clean, corrupted, config=VARIABLES)

    edge = ("variables.0", "variables.2")
    assert abs(edges_of(found, found.score)[edge]) < 0.1
    assert edges_of(found, found.kept)[edge]


def test_causal_graph__parallel_routes_drive_their_sum_in_their_shares_and_not_each_other():
    clean, corrupted = generator(0, "routes").normal(size=(2, 100, 8))
    config = CausalGraphConfig(sites=("routes.*", "total"))

    found = causal_graph(LinearNetwork((3.0, 1.0)), clean, corrupted, config=config)

    scores = edges_of(found, found.score)
    assert scores["routes.0", "total"] == pytest.approx(0.75, abs=1e-9)
    assert scores["routes.1", "total"] == pytest.approx(0.25, abs=1e-9)
    assert scores["total", "output"] == pytest.approx(1, abs=1e-9)
    assert scores["routes.0", "routes.1"] == scores["routes.0", "output"] == scores["routes.1", "output"] == 0
    assert {edge for edge, kept in edges_of(found, found.kept).items() if kept} == {
        ("routes.0", "total"),
        ("routes.1", "total"),
        ("total", "output"),
    }
    assert found.reading().startswith("3 of 6 possible edges drive their receiver directly")
    assert "total -> output 1.00 [1.00, 1.00], routes.0 -> total 0.75" in found.reading()
    assert found.strongest.value == pytest.approx(1)


def test_causal_graph__heads_of_one_layer_do_not_drive_each_other():
    found = causal_graph(
        transformer(), *prompts(), config=CausalGraphConfig(sites=("layers.*.attention",), by="head", output=False)
    )
    assert set(zip(found.sender, found.receiver, strict=True)) == {
        (f"layers.0.attention.{a}", f"layers.1.attention.{b}") for a in (0, 1) for b in (0, 1)
    }
    assert np.isnan(found.coefficient).all()


def test_causal_graph__by_position_the_one_that_differs_drives_itself():
    """The model is causal and the prompts differ in the last token: nothing else can change."""
    config = CausalGraphConfig(sites=("embed", "layers.0.mlp"), by="position", output=False, n_draws=200)
    scores = edges_of(found := causal_graph(transformer(), *prompts(), config=config), found.score)
    assert len(scores) == 4 * 4  # positions of one site do not drive each other
    for (sender, receiver), score in scores.items():
        wanted = np.nan if not receiver.endswith("@3") else float(sender.endswith("@3"))
        assert score == pytest.approx(wanted, abs=1e-9, nan_ok=True)


def test_causal_graph__says_nothing_of_components_that_do_not_differ():
    clean, _ = prompts()

    found = causal_graph(transformer(), clean, clean, config=CausalGraphConfig(sites=("layers.*.mlp",)))

    assert found.n_undefined == len(found.sender) == 3
    assert np.isnan(found.score).all()
    assert not found.kept.any()
    assert np.isnan(found.strongest.value)
    assert "No component differs" in found.reading()


def test_causal_graph__has_no_edge_to_a_position_that_a_change_cannot_reach():
    """The prompts differ in the last position, and the model is causal: the rest is equal bit for bit."""
    clean, corrupted = prompts()
    model = nn.Sequential(transformer(), FirstPosition())
    found = causal_graph(model, clean, corrupted, config=CausalGraphConfig(sites=("0.layers.*.mlp",)))
    to_output = np.array([receiver == "output" for receiver in found.receiver])
    assert np.isnan(found.score[to_output]).all()
    assert not np.isnan(found.score[~to_output]).any()


class FirstPosition(nn.Module):
    def forward(self, x):
        return x[:, 0]


# Oracle
def test_causal_graph__equals_freezing_all_others_by_hand():
    clean, corrupted = prompts()
    model = transformer()
    sites = ["embed", *(f"layers.{k}.{part}" for k in (0, 1) for part in ("attention", "mlp"))]
    with inference(model), capture(model, sites) as seen:
        model(torch.from_numpy(clean))
        own = dict(seen)
        model(torch.from_numpy(corrupted))
        base = dict(seen)

    found = causal_graph(model, clean, corrupted, config=CausalGraphConfig(sites=tuple(sites), output=False))

    assert len(found.sender) == 10
    for sender, receiver, score, total in zip(found.sender, found.receiver, found.score, found.total, strict=True):
        frozen = [Patch(site, base[site]) for site in sites if site not in (sender, receiver)]
        difference = own[receiver] - base[receiver]
        for patches, value in (([*frozen, Patch(sender, own[sender])], score), ([Patch(sender, own[sender])], total)):
            with inference(model), capture(model, [receiver]) as seen, patched(model, patches):
                model(torch.from_numpy(corrupted))
            change = seen[receiver] - base[receiver]
            assert value == pytest.approx(float((change * difference).sum() / difference.square().sum()), abs=1e-9)


# Law
@settings(max_examples=4)
@given(st.integers(2, 20), st.integers(5, 60), st.integers(500, 20_000))
def test_causal_graph__does_not_depend_on_how_it_is_packed(n_pairs, batch_rows, cache_bytes):
    model = random_causal_model(4, seed=1)
    clean, corrupted = noise(model, n_pairs, seed=n_pairs)
    options = {"sites": ("variables.*",), "n_draws": 50}

    whole = causal_graph(model, clean, corrupted, config=CausalGraphConfig(**options))
    parts = causal_graph(
        model, clean, corrupted, config=CausalGraphConfig(**options, batch_rows=batch_rows, cache_bytes=cache_bytes)
    )

    for name, values in whole.arrays().items():
        np.testing.assert_allclose(parts.arrays()[name], values, atol=1e-9, err_msg=name)


def test_causal_graph__does_not_depend_on_the_scale_of_a_component():
    """Scores are shares: a layer whose units are ten times as large gets the same ones, to rounding."""
    clean, corrupted = generator(0, "scaled").normal(size=(2, 30, 8))
    first, second = (LinearNetwork((2.0, 1.0)) for _ in range(2))
    second.readout.weight.data *= 10
    config = CausalGraphConfig(sites=("routes.*", "total"), n_draws=200)
    one, other = (causal_graph(model, clean, corrupted, config=config) for model in (first, second))
    np.testing.assert_allclose(other.score, one.score, atol=1e-9)
    np.testing.assert_allclose(other.p_value, one.p_value)


def test_causal_graph__same_seed_same_bits_and_the_model_is_left_as_it_was():
    model = transformer().train()
    config = CausalGraphConfig(sites=("layers.*.mlp",), n_draws=100)
    first, second = (causal_graph(model, *prompts(), config=config) for _ in range(2))
    assert all(np.array_equal(first.arrays()[name], second.arrays()[name], equal_nan=True) for name in first.arrays())
    assert model.training
    assert not any(each._forward_hooks or each._forward_pre_hooks for each in model.modules())


def test_causal_graph__keeps_no_edge_that_is_not_there():
    """Absent edges of 15 random graphs: held fixed, a receiver without the sender among its causes does not move."""
    false_edges = 0
    for seed in range(15):
        model = random_causal_model(5, density=0.3, seed=seed)
        config = CausalGraphConfig(sites=("variables.*",), output=False, n_draws=199)
        found = causal_graph(model, *noise(model, 30, seed), config=config)
        kept = {edge for edge, kept in edges_of(found, found.kept).items() if kept}
        false_edges += len(kept - planted(model).keys())
    assert false_edges == 0


# Bad input
def test_causal_graph__raises_on_pairs_that_do_not_belong_together():
    with pytest.raises(ShapeError, match="same shape"):
        unchecked(LinearNetwork((1.0,)), np.ones((3, 8)), np.ones((2, 8)))


def test_causal_graph__raises_on_nan():
    clean, corrupted = np.ones((2, 4, 8))
    clean[0, 0] = np.nan
    with pytest.raises(DegenerateInputError, match="finite"):
        causal_graph(LinearNetwork((1.0,)), clean, corrupted)


def test_causal_graph__raises_on_sites_that_do_not_exist():
    with pytest.raises(NotFoundError, match="no match for 'nowhere'"):
        causal_graph(LinearNetwork((1.0,)), *np.ones((2, 4, 8)), config=CausalGraphConfig(sites=("nowhere",)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sites": "embed"}, "sites must be a tuple"),
        ({"by": "neuron"}, "by must be one of site, head, position, unit"),
        ({"false_discovery": 1.0}, "false_discovery must lie"),
        ({"n_draws": 0}, "must be at least 1"),
    ],
)
def test_causal_graph__config_names_what_is_wrong(options, message):
    config = CausalGraphConfig()
    for name, value in options.items():  # past the type checker of the tests, which meets some of these first
        object.__setattr__(config, name, value)
    with pytest.raises(ConfigurationError, match=message):
        config.__post_init__()
