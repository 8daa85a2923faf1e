"""The network with a planted minimal circuit, checked by exact search over all subsets."""

from contextlib import ExitStack
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from mechint_core.errors import ConfigurationError
from mechint_core.synthetic.planted_circuit import PlantedCircuit, planted_prompts

VARIANTS = {
    "default": ((0,), (1,), (2, 3)),
    "AND-pair": ((1,), (4,)),
    "OR-pair": ((5, 2),),
    "one": ((3,),),
    "two backed up": ((0, 1), (2, 3, 4)),
}


def difference(logits, prompts):
    rows = np.arange(len(logits))
    return logits.numpy()[rows, prompts["target"]] - logits.numpy()[rows, prompts["corrupted_target"]]


@torch.no_grad()
def recovery(network, prompts, kept):
    """Recovery where only the parts in `kept` have their clean activation, and all others the corrupted one."""
    clean, corrupted = (torch.from_numpy(prompts[name]) for name in ("clean", "corrupted"))
    ends = [difference(network(each), prompts).mean() for each in (corrupted, clean)]
    with ExitStack() as hooks:
        for k, part in enumerate(network.parts):
            value = part(clean if k in kept else corrupted)
            hooks.enter_context(part.register_forward_hook(lambda module, arguments, output, value=value: value))
        patched = difference(network(corrupted), prompts).mean()
    return (patched - ends[0]) / (ends[1] - ends[0])


def subsets(n_parts):
    return [frozenset(each) for size in range(n_parts + 1) for each in combinations(range(n_parts), size)]


# Known answer
@torch.no_grad()
def test_planted_circuit__answers_by_the_signal():
    prompts, network = planted_prompts(100), PlantedCircuit()
    clean, corrupted = (network(torch.from_numpy(prompts[name])) for name in ("clean", "corrupted"))

    assert np.array_equal(clean.argmax(-1), prompts["target"])
    assert np.array_equal(corrupted.argmax(-1), prompts["corrupted_target"])
    strength = np.abs(prompts["clean"][:, 1])
    np.testing.assert_allclose(difference(clean, prompts), 2 * strength, rtol=1e-12)
    np.testing.assert_allclose(difference(corrupted, prompts), -2 * strength, rtol=1e-12)


def test_planted_circuit__has_an_and_pair_and_an_or_pair():
    prompts, network, every = planted_prompts(50), PlantedCircuit(), frozenset(range(8))

    assert network.needed == {0, 1}
    assert network.minimal_circuits == {frozenset({0, 1, 2}), frozenset({0, 1, 3})}
    for k in (0, 1):  # AND: corrupting one loses all, restoring one brings back nothing
        assert recovery(network, prompts, every - {k}) == pytest.approx(0, abs=1e-12)
        assert recovery(network, prompts, {k}) == pytest.approx(0, abs=1e-12)
    for k in (2, 3):  # OR: corrupting one loses nothing
        assert recovery(network, prompts, every - {k}) == pytest.approx(1, abs=1e-12)
    assert recovery(network, prompts, every - {2, 3}) == pytest.approx(0, abs=1e-12)


def test_planted_circuit__of_an_or_pair_is_restored_by_either():
    prompts, network = planted_prompts(50), PlantedCircuit(((2, 3),))

    assert recovery(network, prompts, {2}) == recovery(network, prompts, {3}) == pytest.approx(1, abs=1e-12)


# Oracle
@pytest.mark.parametrize("name", VARIANTS)
def test_minimal_circuits__are_those_of_an_exact_search(name):
    """All 2^7 subsets: each recovers exactly all or nothing, and the minimal ones that recover all are as stated."""
    network, prompts = PlantedCircuit(VARIANTS[name], n_parts=7), planted_prompts(20)
    found = {kept: recovery(network, prompts, kept) for kept in subsets(7)}

    for kept, value in found.items():
        assert value == pytest.approx(float(network.suffices(kept)), abs=1e-12)
    sufficient = {kept for kept, value in found.items() if value > 0.5}
    assert {kept for kept in sufficient if not any(other < kept for other in sufficient)} == network.minimal_circuits
    assert frozenset.intersection(*sufficient) == network.needed


# Law
@given(st.permutations(range(10)), st.integers(0, 10), st.integers(0, 2**20))
@settings(max_examples=40)
def test_suffices__says_what_a_run_shows(order, n_kept, seed):
    groups = (order[:1], order[1:3], order[3:6])
    network, prompts = PlantedCircuit(groups, n_parts=10, seed=seed), planted_prompts(10, seed=seed)
    kept = {k for k in range(10) if (k * 7 + seed) % 10 < n_kept}

    assert recovery(network, prompts, kept) == pytest.approx(float(network.suffices(kept)), abs=1e-12)


@torch.no_grad()
def test_planted_circuit__has_other_parts_that_are_busy():
    network, prompts = PlantedCircuit(), planted_prompts(50)
    for part in network.parts:
        clean, corrupted = (part(torch.from_numpy(prompts[name])) for name in ("clean", "corrupted"))
        assert float((clean - corrupted).norm(dim=1).mean()) > 1


def test_planted_circuit__is_its_seed():
    weights = [PlantedCircuit(seed=seed).parts[5].weight for seed in (0, 0, 1)]
    prompts = [planted_prompts(20, seed=seed)["clean"] for seed in (0, 0, 1)]

    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert np.array_equal(prompts[0], prompts[1])
    assert not np.array_equal(prompts[0], prompts[2])


# Bad input
@pytest.mark.parametrize(
    ("groups", "n_parts", "message"),
    [
        ((), 8, "groups must not be empty"),
        (((0,), ()), 8, "groups must not be empty"),
        (((0,), (0, 1)), 8, "share no part"),
        (((8,),), 8, "of the 8"),
        (((0,),), 17, "at most 16"),
    ],
)
def test_planted_circuit__refuses(groups, n_parts, message):
    with pytest.raises(ConfigurationError, match=message):
        PlantedCircuit(groups, n_parts=n_parts)


def test_planted_prompts__refuses_none():
    with pytest.raises(ConfigurationError, match="at least 1 prompt"):
        planted_prompts(0)
