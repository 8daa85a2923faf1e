import inspect
import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from mechint_core.errors import ConfigurationError, DegenerateInputError, NotFoundError, ShapeError
from mechint_core.features.attribution._coalitions import by_kernel, by_permutations, exact
from mechint_core.features.attribution.shapley_values import ShapleyValuesConfig, shapley_values
from mechint_core.random import generator
from mechint_core.synthetic.linear_network import LinearNetwork
from tests.mechint_core.features.attribution.small_networks import (
    Stack,
    filled,
    mlp,
    signed_axes,
    trained_on_two_inputs,
)

unchecked = inspect.unwrap(shapley_values)  # without the shape checker of the tests, to meet our own messages
BARE = {"n_null": 0, "n_bootstrap": 2}
METHODS = [{"method": "exact"}, {"method": "permutation"}, {"method": "kernel", "n_coalitions": 100}]


def explained(model, inputs, target=None, baseline=None, dictionary=None, **options):
    return shapley_values(
        model, inputs, target, baseline, dictionary, config=ShapleyValuesConfig(**{**BARE, **options})
    )


def inputs_of(n=4, d=10, seed=0):
    return generator(seed, "inputs").normal(size=(n, d))


def random_game(n_players, n_samples=3, seed=0):
    """v of every coalition, drawn at random."""
    table = generator(seed, "game").normal(size=(n_samples, 2**n_players))
    powers = 2 ** np.arange(n_players)
    return lambda of, present: table[of, present @ powers]


def by_all_orders(worth, n_samples, n_players):
    """The definition: marginal contributions averaged over all n! orders."""
    value = np.zeros((n_samples, n_players))
    for order in itertools.permutations(range(n_players)):
        there = np.zeros((n_samples, n_players), dtype=bool)
        before = worth(np.arange(n_samples), there)
        for player in order:
            there[:, player] = True
            after = worth(np.arange(n_samples), there)
            value[:, player] += after - before
            before = after
    return value / math.factorial(n_players)


class Interaction(nn.Module):
    def forward(self, x):
        return 6 * x[:, 0] * x[:, 1] + 3 * x[:, 2]


# Known answer
def test_exact__equals_the_mean_over_all_orders():
    worth = random_game(6)

    found = exact(worth, 3, 6)

    np.testing.assert_allclose(found.value, by_all_orders(worth, 3, 6), atol=1e-13)
    assert found.n_coalitions == 64


def test_exact__of_the_glove_game_is_the_textbook_answer():
    """Two left gloves, one right, a pair is worth 1: the right one gets 2/3, the left ones 1/6 each."""

    def worth(of, present):
        return np.minimum(present[:, :2].sum(axis=1), present[:, 2]).astype(float)

    np.testing.assert_allclose(exact(worth, 1, 3).value, [[1 / 6, 1 / 6, 2 / 3]], atol=1e-15)


def test_shapley_values__share_what_two_do_together():
    found = explained(Interaction(), np.array([[1.0, 2.0, -1.0, 5.0]]), objective="output")

    np.testing.assert_allclose(found.attribution, [6, 6, -3, 0], atol=1e-6)


def test_shapley_values__add_up_exactly_over_ten_units():
    """2^10 coalitions, float64: the sum misses by rounding of 1e-12 of the change at most."""
    found = explained(mlp(), inputs_of(), method="exact")

    assert found.exact
    assert found.n_coalitions == 1024
    assert found.completeness_error < 1e-12
    assert (found.standard_error == 0).all()


@pytest.mark.parametrize("shares", [(1.0, 1.0), (3.0, 1.0, 0.0), (2.0, -3.0, 2.0)])
def test_shapley_values__of_whole_sites_are_the_planted_shares(shares):
    model, x = LinearNetwork(shares), inputs_of(5, 8)

    found = explained(model, x, np.zeros(5, dtype=int), site="routes.*", players="sites")

    logit = model(torch.from_numpy(x))[:, 0].detach().numpy()
    np.testing.assert_allclose(found.per_sample, np.outer(logit, model.shares), atol=1e-12)
    assert found.part == tuple(f"routes.{k}" for k in range(len(shares)))


def test_shapley_values__of_a_chain_of_sites_keep_what_the_later_site_makes_of_the_earlier():
    """b(a(x)) with zero baselines: without a, b gives 0; without b too: half each."""
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 2, bias=False)).double()
    x = inputs_of(4, 3)

    found = explained(model, x, np.zeros(4, dtype=int), site="?", players="sites")

    logit = model(torch.from_numpy(x))[:, 0].detach().numpy()
    np.testing.assert_allclose(found.per_sample, np.stack([logit, logit], axis=1) / 2, atol=1e-12)


def test_shapley_values__exchange_tokens_for_the_baselines():
    """A model linear in its one-hot tokens: each position gets the difference of its two entries."""
    table = nn.Embedding(7, 3).double()

    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = table

        def forward(self, tokens):
            return self.table(tokens).sum(dim=1)

    tokens = generator(0, "tokens").integers(0, 7, size=(5, 4))
    other = generator(1, "tokens").integers(0, 7, size=(1, 4))

    found = explained(Sum(), tokens, np.zeros(5, dtype=int), other, parts="position")

    weight = table.weight[:, 0].detach().numpy()
    np.testing.assert_allclose(found.per_sample, weight[tokens] - weight[other], atol=1e-12)


def test_shapley_values__of_latents_count_only_those_that_are_active(rng):
    """logit = w . x: code_j (w . W_dec_j); latents that no sample uses are idle, and cost nothing."""
    x = 2 * rng.normal(size=(6, 4))
    model, axes = filled(nn.Sequential(nn.Identity(), nn.Linear(4, 2, bias=False))), signed_axes(4)
    w = model[1].weight[0].detach()

    found = explained(model, np.abs(x), np.zeros(6, dtype=int), dictionary=axes, site="0")

    codes = axes.encode(torch.from_numpy(np.abs(x))).detach()
    np.testing.assert_allclose(found.per_sample[:, :8], (codes * (axes.W_dec.detach() @ w)).numpy(), atol=1e-12)
    assert found.n_idle == 4  # the negative axes
    assert found.exact
    assert found.n_coalitions == 2**5


def test_by_permutations__of_players_who_do_not_differ_ask_for_nothing():
    """Three of twenty players matter: 2 + 2 * 4 * (3 - 1) values, and the exact answer within the standard error."""
    differs = np.zeros((2, 20), dtype=bool)
    differs[:, [3, 8, 17]] = True
    asked = 0

    def worth(of, present):
        nonlocal asked
        asked += len(of)
        return present[:, 3] * 1.0 + 2.0 * present[:, 8] + 3.0 * present[:, 17]

    found = by_permutations(worth, differs, n_pairs=4, rng=generator(0))

    np.testing.assert_allclose(found.value[:, [3, 8, 17]], [[1, 2, 3]] * 2, atol=1e-15)
    assert (found.value[:, ~differs[0]] == 0).all()
    assert asked == 2 * (2 + 2 * 4 * 2)
    assert found.n_coalitions == 18


def test_shapley_values__from_the_sample_itself_are_nothing():
    found = explained(mlp(), inputs_of(), None, inputs_of())

    assert (found.attribution == 0).all()
    assert found.n_idle == 10
    assert "Nothing to attribute" in found.reading()


def test_shapley_values__name_what_training_has_put_there():
    model, x, y = trained_on_two_inputs()

    found = shapley_values(model, x, y)

    assert set(np.argsort(-found.share)[:2]) == {0, 1}
    assert found.learned.p_value == 0.05
    assert "all 256 coalitions" in found.reading()


def test_shapley_values__say_how_noisy_an_estimate_is():
    found = explained(mlp(), inputs_of(), method="permutation", n_pairs=2)

    assert not found.exact
    assert found.standard_error.max() > 0
    assert "Estimated from 38 coalitions" in found.reading()  # 2 + 2 * 2 * 9


# Oracle
@pytest.mark.oracle
def test_shapley_values__equal_shap():
    """Exact: 1e-12. Its kernel, with all 1022 coalitions: 7e-5 were measured; ours is exact then."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from shap import Explanation, KernelExplainer, maskers
        from shap.explainers import ExactExplainer
    model, x, base = mlp(), inputs_of(), inputs_of(1, seed=1)

    def f(rows):
        with torch.no_grad():
            return model(torch.from_numpy(np.asarray(rows)))[:, 0].numpy()

    found, kernel = (
        explained(model, x, np.zeros(4, dtype=int), base, method=method, n_coalitions=1024)
        for method in ("exact", "kernel")
    )
    wanted = ExactExplainer(f, maskers.Independent(base))(x)
    assert isinstance(wanted, Explanation)
    np.testing.assert_allclose(found.per_sample, wanted.values, atol=1e-12)
    np.testing.assert_allclose(kernel.per_sample, wanted.values, atol=1e-10)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = KernelExplainer(f, base).shap_values(x, nsamples=1024, silent=True)
    np.testing.assert_allclose(kernel.per_sample, theirs, atol=1e-3)


@pytest.mark.oracle
def test_shapley_values__equal_captum():
    from captum.attr import ShapleyValues

    model, x, base = mlp(6), inputs_of(3, 6), inputs_of(1, 6, seed=1)

    found = explained(model, x, np.zeros(3, dtype=int), base)
    with torch.no_grad():
        wanted = ShapleyValues(model).attribute(torch.from_numpy(x), torch.from_numpy(base), target=0)

    np.testing.assert_allclose(found.per_sample, wanted.numpy(), atol=1e-5)  # it sums in float32


# Law
@settings(max_examples=20)
@given(st.integers(2, 7), st.integers(0, 999))
def test_estimators__are_efficient_whatever_the_draws(n_players, seed):
    worth = random_game(n_players, seed=seed)
    everyone, none = (worth(np.arange(3), np.full((3, n_players), there)) for there in (True, False))
    rng = generator(seed, "draws")

    found = [
        exact(worth, 3, n_players),
        by_permutations(worth, np.ones((3, n_players), dtype=bool), n_pairs=2, rng=rng),
        by_kernel(worth, 3, n_players, n_coalitions=4 * n_players, rng=rng),
        by_kernel(worth, 3, n_players, n_coalitions=2**n_players, rng=rng),
    ]

    for each in found:
        np.testing.assert_allclose(each.value.sum(axis=1), everyone - none, atol=1e-12)


@settings(max_examples=20)
@given(st.integers(2, 7), st.integers(0, 999))
def test_by_kernel__of_all_coalitions_is_exact(n_players, seed):
    worth = random_game(n_players, seed=seed)

    found = by_kernel(worth, 3, n_players, n_coalitions=2**n_players, rng=generator(0))

    np.testing.assert_allclose(found.value, exact(worth, 3, n_players).value, atol=1e-10)
    assert found.complete


@settings(max_examples=20)
@given(st.integers(0, 999), st.floats(-3, 3))
def test_exact__is_linear_symmetric_and_gives_a_dummy_its_own(seed, factor):
    one, two = random_game(5, seed=seed), random_game(5, seed=seed + 1)

    def both(of, present):
        return one(of, present) + factor * two(of, present)

    def swapped(of, present):  # players 0 and 1 have changed names; player 5 adds 2 to whoever is there
        return one(of, present[:, [1, 0, 2, 3, 4]]) + 2.0 * present[:, 5]

    a, b, sum_of_both, other = (exact(game, 3, n).value for game, n in ((one, 5), (two, 5), (both, 5), (swapped, 6)))

    np.testing.assert_allclose(sum_of_both, a + factor * b, atol=1e-12)
    np.testing.assert_allclose(other[:, [1, 0, 2, 3, 4]], a, atol=1e-12)
    np.testing.assert_allclose(other[:, 5], 2, atol=1e-12)


@pytest.mark.parametrize("method", ["permutation", "kernel"])
def test_estimators__standard_errors_hold_what_they_say(method):
    """400 z-scores of estimates against the exact values: their root mean square is 1 within 25 %."""
    worth = random_game(7, n_samples=50)
    truth = exact(worth, 50, 7).value
    if method == "permutation":
        found = by_permutations(worth, np.ones((50, 7), dtype=bool), n_pairs=32, rng=generator(0))
    else:
        # coalitions are shared by the samples, so several draws of them
        runs = [by_kernel(worth, 50, 7, n_coalitions=120, rng=generator(seed)) for seed in range(8)]
        found = runs[0]._replace(
            value=np.concatenate([each.value for each in runs]),
            standard_error=np.concatenate([each.standard_error for each in runs]),
        )
        truth = np.tile(truth, (8, 1))

    z = (found.value - truth) / found.standard_error

    assert np.sqrt(np.mean(z**2)) == pytest.approx(1, abs=0.25)


@pytest.mark.parametrize("options", METHODS)
def test_shapley_values__of_a_linear_model_are_weight_times_distance(options):
    model, x, base = LinearNetwork((1.0,)), inputs_of(40, 8), inputs_of(40, 8, seed=1)
    weight = (model.readout.weight @ model.routes[0].weight)[0].detach().numpy()

    found = explained(model, x, np.zeros(40, dtype=int), base, **options)

    np.testing.assert_allclose(found.per_sample, weight * (x - base), atol=1e-10)


@pytest.mark.parametrize("options", METHODS)
def test_shapley_values__do_not_depend_on_the_memory_and_repeat_their_bits(options):
    one, again, little = (explained(mlp(), inputs_of(), memory=memory, **options) for memory in (2**28, 2**28, 1))

    assert (one.per_sample == again.per_sample).all()
    np.testing.assert_allclose(one.per_sample, little.per_sample, atol=1e-10)


def test_shapley_values__of_positions_at_a_site_add_up_in_a_transformer():
    tokens = generator(0, "tokens").integers(0, 7, size=(5, 3))

    positions, heads = (
        explained(filled(Stack()), tokens, site="embed", **options)
        for options in ({"parts": "position"}, {"n_heads": 2})
    )

    assert positions.part == ("position 0", "position 1", "position 2")
    assert max(positions.completeness_error, heads.completeness_error) < 1e-12
    assert positions.change.value == pytest.approx(heads.change.value)


# Bad input
@pytest.mark.parametrize(
    ("given", "error", "match"),
    [
        ({"inputs": np.zeros(3)}, ShapeError, "inputs must be"),
        ({"inputs": np.full((3, 10), np.nan)}, DegenerateInputError, "inputs must be finite"),
        ({"inputs": np.zeros((3, 10), dtype=np.int64)}, ConfigurationError, "inputs must be floats"),
        (
            {"inputs": np.ones((3, 10), dtype=np.int64), "baseline": np.zeros((1, 10), dtype=np.int64)},
            ConfigurationError,
            "tokens have positions only",
        ),
        ({"baseline": np.zeros((2, 10))}, ShapeError, "baseline must be inputs of the model"),
        ({"target": np.full(3, 3)}, ConfigurationError, "targets must be classes of the output"),
        ({"site": "nowhere"}, NotFoundError, "no match for 'nowhere'"),
        ({"players": "sites"}, ConfigurationError, "sites as players need a glob"),
        ({"players": "sites", "site": "no*"}, NotFoundError, "every glob must match"),
        ({"inputs": np.ones((3, 21)), "method": "exact"}, ConfigurationError, "at most 20 players. Got 21"),
        ({"method": "kernel", "n_coalitions": 10}, ConfigurationError, "at least four times the number of players, 10"),
    ],
)
def test_shapley_values__refuse_what_makes_no_sense(given, error, match):
    data = {"inputs": np.ones((3, 10)), "target": None, "baseline": None}
    options = {name: value for name, value in given.items() if name not in data}
    data |= {name: value for name, value in given.items() if name in data}
    model = mlp(data["inputs"].shape[-1])

    with pytest.raises(error, match=match):
        unchecked(model, **data, config=ShapleyValuesConfig(**options))


@pytest.mark.parametrize(
    "option", [{"method": "lime"}, {"n_pairs": 1}, {"max_exact": 21}, {"n_coalitions": 3}, {"players": "neurons"}]
)
def test_shapley_values__refuse_impossible_options(option):
    ((name, value),) = option.items()
    config = ShapleyValuesConfig()
    object.__setattr__(config, name, value)  # past the type checker of the tests

    with pytest.raises(ConfigurationError, match=f"{name} must"):
        config.__post_init__()
