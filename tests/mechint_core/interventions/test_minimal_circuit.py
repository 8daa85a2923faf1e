"""The smallest set of components that suffices."""

import inspect
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from mechint_core.errors import ConfigurationError, DegenerateInputError, NotFoundError, ShapeError
from mechint_core.interventions import MinimalCircuitConfig, minimal_circuit
from mechint_core.interventions._held_out import held_out_pairs
from mechint_core.interventions._sufficient_sets import Search, random_sets
from mechint_core.models import Patch, capture, inference, patched
from mechint_core.patching import PromptPairs
from mechint_core.random import generator
from mechint_core.synthetic.linear_network import LinearNetwork
from mechint_core.synthetic.planted_circuit import PlantedCircuit, planted_prompts
from mechint_core.synthetic.small_transformer import SmallTransformer

unchecked = inspect.unwrap(minimal_circuit)  # without the shape checker of the tests, to meet our own messages

PARTS = MinimalCircuitConfig(sites=("parts.*",))
GREEDY = MinimalCircuitConfig(sites=("parts.*",), max_exact=0)


def members(found):
    return frozenset(int(each) for each in np.flatnonzero(found.member))


def prompts(n=40, seed=0):
    draws = generator(seed, "circuit prompts")
    clean = draws.integers(0, 7, size=(n, 4))
    corrupted = clean.copy()
    corrupted[:, -1] = (clean[:, -1] + draws.integers(1, 7, size=n)) % 7
    return clean, corrupted


def transformer(seed=0):
    return SmallTransformer(
        vocabulary=7, n_positions=4, width=8, n_layers=2, hidden=8, norm=True, seed=seed, dtype=torch.float64
    )


# Known answer
@pytest.mark.parametrize("config", [PARTS, GREEDY], ids=["exhaustive", "greedy"])
@pytest.mark.parametrize("groups", [((0,),), ((0,), (1,)), ((0,), (1,), (2, 3)), ((0, 1), (2, 3), (4,)), ((2, 5, 7),)])
def test_minimal_circuit__finds_a_planted_one(groups, config):
    """Faithfulness 1 and smaller sets 0, exactly: 1e-12 in float64."""
    model = PlantedCircuit(groups)

    found = minimal_circuit(model, **planted_prompts(40), config=config)

    assert members(found) in model.minimal_circuits
    for estimate in (found.faithfulness, found.discovered):
        assert (estimate.value, estimate.low, estimate.high) == pytest.approx((1, 1, 1), abs=1e-12)
    assert found.holds
    assert found.minimal == (config is PARTS or len(groups) == 1)
    assert found.n_alternatives == (len(model.minimal_circuits) - 1 if config is PARTS else 0)
    assert (found.n_discovery, found.n_held_out) == (20, 20)


def test_minimal_circuit__parts_of_an_and_are_each_needed():
    """Each contributes all there is, and ablating them alone takes all of it away."""
    found = minimal_circuit(PlantedCircuit(((0,), (1,))), **planted_prompts(40), config=PARTS)

    np.testing.assert_allclose(found.contribution, [1, 1, 0, 0, 0, 0, 0, 0], atol=1e-12)
    assert (found.p_value[:2] < 0.05).all()
    assert (found.p_value[2:] == 1).all()
    assert found.necessity.value == pytest.approx(1, abs=1e-12)
    assert found.faithfulness.null == pytest.approx(0, abs=1e-12)  # no other pair of parts gives anything
    assert found.faithfulness.p_value == pytest.approx(1 / 28)  # 27 of the 28 pairs of parts are others
    assert found.reading() == (
        "2 of 8 components are the smallest set that suffices: parts.0, parts.1. On 20 other pairs they keep 1.00 "
        "[1.00, 1.00] of the answer, random sets of this size 0.00 (p = 0.036). Ablating them alone takes away 1.00."
    )


def test_minimal_circuit__of_an_or_one_part_suffices_and_is_not_necessary():
    found = minimal_circuit(PlantedCircuit(((0, 1),)), **planted_prompts(40), config=PARTS)

    assert found.n_members == 1
    assert found.n_alternatives == 1  # the other one
    assert found.contribution.max() == pytest.approx(1)
    assert np.abs(found.contribution).sum() == pytest.approx(1)  # the backup adds nothing
    assert found.necessity.value == pytest.approx(0, abs=1e-12)
    assert "one of 2 of this size" in found.reading()
    assert "takes away 0.00: the rest backs them up" in found.reading()


@pytest.mark.parametrize("ablation", ["resample", "mean"])
def test_minimal_circuit__takes_the_largest_shares_of_parallel_routes(ablation):
    """Shares 0.5, 0.3, 0.15, 0.05: two give 0.8, three 0.95, so three are needed for 0.9 and faithfulness is 0.95."""
    clean, corrupted = generator(0, "routes").normal(size=(2, 400, 8))
    model = LinearNetwork((10.0, 6.0, 3.0, 1.0))
    target = model(torch.from_numpy(clean)).argmax(dim=1).numpy()
    config = MinimalCircuitConfig(sites=("routes.*",), ablation=ablation)

    found = minimal_circuit(model, clean, corrupted, target, config=config)

    assert members(found) == {0, 1, 2}
    np.testing.assert_allclose(found.contribution, [0.5, 0.3, 0.15, 0.05], atol=1e-9)
    assert found.faithfulness.value == pytest.approx(0.95, abs=1e-9)
    assert found.necessity.value == pytest.approx(0.95, abs=1e-9)


def test_minimal_circuit__of_heads_and_units():
    clean, corrupted = prompts()
    model = transformer()
    with inference(model):
        target = model(torch.from_numpy(clean))[:, -1].argmax(dim=1).numpy()
    heads = MinimalCircuitConfig(sites=("embed", "layers.*.attention", "layers.*.mlp"), by="head")
    units = MinimalCircuitConfig(sites=("embed",), by="unit")

    by_head, by_unit = (minimal_circuit(model, clean, corrupted, target, config=each) for each in (heads, units))

    assert by_head.component[1:3] == ("layers.0.attention.0", "layers.0.attention.1")
    assert by_head.member[0]
    assert by_unit.component[:2] == ("embed#0", "embed#1")
    assert by_head.discovered.low >= 0.9
    assert by_unit.discovered.low >= 0.9


def test_minimal_circuit__of_positions_is_the_one_that_differs():
    """What the others embed is the same in both runs: the last position carries all, exactly in float64."""
    clean, corrupted = prompts()
    model = transformer()
    with inference(model):
        target = model(torch.from_numpy(clean))[:, -1].argmax(dim=1).numpy()
    config = MinimalCircuitConfig(sites=("embed",), by="position", n_draws=200)

    found = minimal_circuit(model, clean, corrupted, target, config=config)

    assert found.component == tuple(f"embed@{position}" for position in range(4))
    assert found.member.tolist() == [False, False, False, True]
    np.testing.assert_allclose(found.contribution, [0, 0, 0, 1], atol=1e-9)


def test_minimal_circuit__is_undefined_where_ablating_everything_changes_nothing():
    clean, _ = prompts()
    model = transformer()
    config = MinimalCircuitConfig(sites=("layers.*.mlp",))

    found = minimal_circuit(model, clean, clean, np.zeros(40, int), config=config)

    assert not found.defined
    assert not found.member.any()
    assert np.isnan(found.faithfulness.value)
    assert np.isnan(found.contribution).all()
    assert not found.minimal
    assert not found.holds
    assert "within noise" in found.reading()


def test_minimal_circuit__judges_on_the_pairs_it_is_given():
    own, others = planted_prompts(30), planted_prompts(12, seed=1)
    found = minimal_circuit(
        PlantedCircuit(), **own, **{f"held_out_{name}": value for name, value in others.items()}, config=PARTS
    )
    assert (found.n_discovery, found.n_held_out) == (30, 12)
    assert found.holds


def test_held_out_pairs__keeps_equal_pairs_together():
    clean, corrupted = (np.repeat(each, 3, axis=0) for each in prompts(20))
    discovery, judging = held_out_pairs(PromptPairs.of(clean, corrupted, None, None, "kl"), None, share=0.3, seed=0)
    assert not discovery.fingerprints() & judging.fingerprints()
    assert len(discovery) + len(judging) == 60
    assert len(judging) % 3 == 0


# Oracle
def faithfulness_by_hand(model, pairs, sites, circuit):
    """Ablate one site after the other with hooks, whole batches, and torch's own arithmetic."""
    clean, corrupted, target, foil = (torch.from_numpy(each) for each in pairs.values())
    rows = torch.arange(len(target))

    def difference(logits):
        return float((logits[rows, target] - logits[rows, foil]).mean())

    with inference(model), capture(model, sites) as seen:
        model(corrupted)
        donor = dict(seen)
    scores = []
    with inference(model):
        for intact in (circuit, sites, ()):
            with patched(model, [Patch(site, donor[site]) for site in sites if site not in intact]):
                scores.append(difference(model(clean)))
    return (scores[0] - scores[2]) / (scores[1] - scores[2])


def test_minimal_circuit__no_smaller_set_is_faithful_by_enumeration():
    """Every subset of a small net, ablated by hand: the circuit is enough, and nothing smaller is."""
    model = PlantedCircuit(((0, 1), (2,)), n_parts=5)
    pairs = planted_prompts(24)
    found = minimal_circuit(model, **pairs, config=PARTS)
    shares = {
        subset: faithfulness_by_hand(model, pairs, model.sites, [model.sites[k] for k in subset])
        for size in range(6)
        for subset in combinations(range(5), size)
    }
    assert shares[tuple(sorted(members(found)))] == pytest.approx(1)
    assert all(share < 0.9 for subset, share in shares.items() if len(subset) < found.n_members)


@pytest.mark.parametrize("seed", range(4))
def test_minimal_circuit__greedy_equals_exhaustive_on_a_small_net(seed):
    clean, corrupted = prompts(seed=seed)
    model = transformer(seed)
    with inference(model):
        target = model(torch.from_numpy(clean))[:, -1].argmax(dim=1).numpy()
    options = {"sites": ("embed", "layers.*.attention", "layers.*.mlp"), "by": "head", "n_draws": 200}

    exact = minimal_circuit(model, clean, corrupted, target, config=MinimalCircuitConfig(**options))
    greedy = minimal_circuit(model, clean, corrupted, target, config=MinimalCircuitConfig(**options, max_exact=0))

    assert exact.minimal
    assert greedy.n_members == exact.n_members
    assert greedy.n_sets <= 128


# Law
@settings(max_examples=40)
@given(st.lists(st.sets(st.integers(0, 6), min_size=1, max_size=3), min_size=1, max_size=4))
def test_search__exhaustive_is_the_smallest_set_that_meets_all_requirements(groups):
    """A hitting set of random groups, found by brute force in another order; greedy is never smaller."""

    def judge(subsets):
        met = np.array([all(each & set(group) for group in groups) for each in subsets], dtype=float)
        return met, met

    search = Search(judge, 7, 0.9)
    found, greedy = search.exhaustive(), search.greedy(500, generator(0, "swaps"))
    hitting = [s for size in range(1, 8) for s in combinations(range(7), size) if judge([frozenset(s)])[0][0]]
    assert len(found.members) == len(hitting[0]) <= len(greedy.members)
    assert found.n_alternatives == sum(len(s) == len(hitting[0]) for s in hitting) - 1
    assert judge([found.members, greedy.members])[0].all()


@settings(max_examples=20)
@given(st.integers(1, 9), st.data())
def test_random_sets__are_others_of_the_same_size_each_once(n, data):
    size = data.draw(st.integers(1, n))
    drawn = random_sets(n, frozenset(range(size)), 20, generator(0, "random sets"))
    assert len(set(drawn)) == len(drawn) <= 20
    assert all(len(each) == size and each != frozenset(range(size)) for each in drawn)


def test_minimal_circuit__does_not_depend_on_how_it_is_packed():
    model, pairs = PlantedCircuit(((0,), (1, 2)), n_parts=4), planted_prompts(30)
    small = MinimalCircuitConfig(sites=("parts.*",), batch_rows=7, cache_bytes=3000)
    whole, parts = (minimal_circuit(model, **pairs, config=each) for each in (PARTS, small))
    for name, values in whole.arrays().items():
        np.testing.assert_allclose(parts.arrays()[name], values, atol=1e-12, err_msg=name)


def test_minimal_circuit__same_seed_same_bits_and_the_model_is_left_as_it_was():
    model = PlantedCircuit().train()
    first, second = (minimal_circuit(model, **planted_prompts(20), config=GREEDY) for _ in range(2))
    assert all(np.array_equal(first.arrays()[name], second.arrays()[name]) for name in first.arrays())
    assert model.training
    assert not any(each._forward_hooks or each._forward_pre_hooks for each in model.modules())


@pytest.mark.parametrize(("n_models", "most"), [(12, 4), pytest.param(200, 20, marks=pytest.mark.slow)])
def test_minimal_circuit__untrained_models_with_random_answers_have_no_circuit_that_beats_chance(n_models, most):
    """At 0.05, on new pairs; 99.9 % of binomial draws are at most `most`."""
    significant = 0
    for seed in range(n_models):
        clean, corrupted = prompts(24, seed=seed)
        target = generator(seed, "random answers").integers(0, 7, size=24)
        config = MinimalCircuitConfig(sites=("layers.*.attention", "layers.*.mlp"), n_draws=199, seed=seed)
        found = minimal_circuit(transformer(seed), clean, corrupted, target, config=config)
        significant += bool(found.holds and found.faithfulness.p_value <= 0.05)
    assert significant <= most


# Bad input
def test_minimal_circuit__raises_on_pairs_that_do_not_belong_together_or_are_too_few():
    with pytest.raises(ShapeError, match="same shape"):
        unchecked(LinearNetwork((1.0,)), np.ones((3, 8)), np.ones((2, 8)), np.zeros(3, int))
    with pytest.raises(ShapeError, match="at least 2 pairs to discover on"):
        minimal_circuit(LinearNetwork((1.0,)), np.eye(3, 8), np.eye(3, 8) + 1, np.zeros(3, int))


def test_minimal_circuit__raises_on_held_out_pairs_that_leak_or_are_half_given():
    pairs = planted_prompts(10)
    with pytest.raises(ConfigurationError, match=r"must not be discovered on too. Got 10 shared"):
        minimal_circuit(PlantedCircuit(), **pairs, **{f"held_out_{name}": each for name, each in pairs.items()})
    with pytest.raises(ConfigurationError, match="both or not at all"):
        minimal_circuit(PlantedCircuit(), **pairs, held_out_clean=pairs["clean"])


def test_minimal_circuit__raises_without_a_target_or_with_one_that_is_no_class():
    clean, corrupted = generator(0, "pairs").normal(size=(2, 10, 8))
    with pytest.raises(ConfigurationError, match="needs a target"):
        minimal_circuit(LinearNetwork((1.0,)), clean, corrupted)
    with pytest.raises(ConfigurationError, match="classes of the output"):
        minimal_circuit(LinearNetwork((1.0,)), clean, corrupted, np.full(10, 9))


def test_minimal_circuit__raises_on_nan_and_on_outputs_without_classes():
    clean, corrupted = generator(0, "pairs").normal(size=(2, 10, 8))
    with pytest.raises(ShapeError, match="class >= 2"):
        minimal_circuit(nn.Sequential(nn.Linear(8, 1)), clean, corrupted, np.zeros(10, int))
    clean[0, 0] = np.nan
    with pytest.raises(DegenerateInputError, match="finite"):
        minimal_circuit(LinearNetwork((1.0,)), clean, corrupted, np.zeros(10, int))


def test_minimal_circuit__raises_on_sites_that_do_not_exist():
    config = MinimalCircuitConfig(sites=("nowhere",))
    with pytest.raises(NotFoundError, match="no match for 'nowhere'"):
        minimal_circuit(PlantedCircuit(), **planted_prompts(10), config=config)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sites": "embed"}, "sites must be a tuple"),
        ({"by": "neuron"}, "by must be one of site, head, position, unit"),
        ({"ablation": "zero"}, "ablation must be resample or mean"),
        ({"faithfulness": 1.5}, r"faithfulness must lie in \(0, 1\]"),
        ({"held_out": 1.0}, "held_out strictly between 0 and 1"),
        ({"n_random": 0}, "n_random at least 1"),
        ({"max_exact": -1}, "max_exact must not be negative"),
    ],
)
def test_minimal_circuit__config_names_what_is_wrong(options, message):
    config = MinimalCircuitConfig()
    for name, value in options.items():  # past the type checker of the tests, which meets some of these first
        object.__setattr__(config, name, value)
    with pytest.raises(ConfigurationError, match=message):
        config.__post_init__()
