"""The induction circuit with weights set by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from jaxtyping import TypeCheckError

from mechint_core.errors import ConfigurationError
from mechint_core.synthetic.induction_model import (
    CHANGED_EDGES,
    INDUCTION_EDGES,
    INDUCTION_HEAD,
    INDUCTION_POSITION_EDGES,
    PREVIOUS_HEAD,
    induction_model,
    induction_prompts,
)

CHANGES = ("prompt", "first", "second", "last")


def logit_difference(logits, prompts):
    target, foil = (torch.from_numpy(prompts[name])[:, None] for name in ("target", "corrupted_target"))
    return (logits[:, -1].gather(1, target) - logits[:, -1].gather(1, foil)).squeeze(1)


def inputs(prompts):
    return torch.from_numpy(prompts["clean"]), torch.from_numpy(prompts["corrupted"])


# Known answer
@pytest.mark.parametrize("change", CHANGES)
@torch.no_grad()
def test_induction_model__answers_every_prompt_with_a_clear_margin(change):
    prompts = induction_prompts(500, change=change, seed=3)
    clean, corrupted = (induction_model()(each)[:, -1] for each in inputs(prompts))

    assert np.array_equal(clean.argmax(-1), prompts["target"])
    assert np.array_equal(corrupted.argmax(-1), prompts["corrupted_target"])
    best = clean.topk(2).values
    assert float((best[:, 0] - best[:, 1]).min()) > 9.9  # the gain is 10


@torch.no_grad()
def test_induction_model__attends_as_it_is_said_to():
    """a 1 at position 1, looked up from the end: "0 5 3 7 1 3", where 3 was followed by 7."""
    model, seen = induction_model(), {}
    for layer in range(2):
        pattern = model.attention_of(layer).pattern
        pattern.register_forward_hook(lambda module, arguments, output, layer=layer: seen.__setitem__(layer, output[0]))
    model(torch.tensor([[0, 5, 3, 7, 1, 3]]))

    assert seen[0][1].argmax(-1).tolist() == [0, 0, 1, 2, 3, 4]
    assert seen[1][0, -1].argmax() == 3
    assert float(seen[0][1].diagonal(-1).min()) > 0.9999
    assert float(seen[1][0, -1, 3]) > 0.999


def test_induction_prompts__are_what_they_say():
    prompts = induction_prompts(200, change="first")
    clean, corrupted = prompts["clean"], prompts["corrupted"]

    assert np.all(clean[:, 0] == 0)
    assert np.array_equal(clean[:, -1], corrupted[:, -1])
    assert np.all((clean != corrupted).sum(axis=1) == 2)
    for row, answer in zip(clean, prompts["target"], strict=True):
        (place,) = np.flatnonzero(row[:-1] == row[-1])
        assert row[place + 1] == answer


@pytest.mark.parametrize("change", CHANGES)
@torch.no_grad()
def test_changed_edges__are_those_whose_patching_destroys_the_answer(change, run_edges, all_edges):
    """Noising one edge at a time. Outside the circuit, no bit changes; in it, attention leaks less than 1e-3."""
    prompts, model = induction_prompts(64, change=change), induction_model()
    clean, corrupted = inputs(prompts)
    every = all_edges(model)
    whole, _ = run_edges(model, clean, None, every)
    _, elsewhere = run_edges(model, corrupted, None, every)
    for edge in every:
        patched, _ = run_edges(model, clean, elsewhere, every - {edge})
        if edge in CHANGED_EDGES[change]:
            assert bool((logit_difference(patched, prompts) < 0.1).all()), edge
        else:
            moved = float((patched - whole)[:, -1].abs().max())
            assert moved < 1e-3 if edge in INDUCTION_EDGES else moved == 0, edge


@torch.no_grad()
def test_induction_edges__each_matters_when_cut_to_zero_and_no_other_does(run_edges, all_edges):
    prompts, model = induction_prompts(64), induction_model()
    clean, _ = inputs(prompts)
    every = all_edges(model)
    whole, _ = run_edges(model, clean, None, every)
    for edge in every:
        cut, _ = run_edges(model, clean, None, every - {edge})
        moved = float((cut - whole)[:, -1].abs().max())
        assert moved > 1 if edge in INDUCTION_EDGES else moved == 0, edge


# Oracle
@torch.no_grad()
def test_induction_model__is_its_edges(run_edges, all_edges):
    prompts, model = induction_prompts(64), induction_model()
    clean, _ = inputs(prompts)

    torch.testing.assert_close(run_edges(model, clean, None, all_edges(model))[0], model(clean), rtol=1e-12, atol=1e-12)


# Law
@given(st.integers(0, 2**20), st.sampled_from(["zero", "mean", "resample"]))
@settings(max_examples=12)
@torch.no_grad()
def test_induction_edges__alone_give_the_whole_answer(run_edges, all_edges, seed, ablation):
    """Whatever the other 100 edges carry. Tolerance: rounding in float64."""
    prompts, model = induction_prompts(32, seed=seed), induction_model(seed=seed)
    clean, corrupted = inputs(prompts)
    whole, _ = run_edges(model, clean, None, all_edges(model))
    _, other = run_edges(model, corrupted, None, all_edges(model))
    mean = {name: write.mean(dim=0, keepdim=True).expand_as(write) for name, write in other.items()}
    elsewhere = {"zero": None, "mean": mean, "resample": other}[ablation]
    alone, _ = run_edges(model, clean, elsewhere, INDUCTION_EDGES)

    torch.testing.assert_close(alone, whole, rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_induction_model__has_other_heads_that_are_busy(run_edges, all_edges):
    prompts, model = induction_prompts(64), induction_model()
    clean, corrupted = (run_edges(model, each, None, all_edges(model))[1] for each in inputs(prompts))
    others = [name for name in clean if name not in ("input", PREVIOUS_HEAD, INDUCTION_HEAD)]

    assert len(others) == 6
    for name in others:
        assert float(clean[name].norm(dim=-1).mean()) > 1  # as loud as the circuit
        assert float((clean[name] - corrupted[name]).norm(dim=-1).mean()) > 0.5


@given(st.integers(0, 2**20), st.integers(5, 20), st.integers(6, 15), st.sampled_from(CHANGES))
@settings(max_examples=30)
@torch.no_grad()
def test_induction_model__answers_at_every_size(seed, n_letters, length, change):
    prompts = induction_prompts(20, change=change, n_letters=n_letters, length=length, seed=seed)
    logits = induction_model(n_letters=n_letters, n_positions=length, n_heads=2)(inputs(prompts)[0])

    assert np.array_equal(logits[:, -1].argmax(-1), prompts["target"])


def test_induction_model__is_its_seed():
    weights = [induction_model(seed=seed).state_dict() for seed in (0, 0, 1)]
    name = "layers.0.attention.query.weight"

    assert torch.equal(weights[0][name], weights[1][name])
    assert not torch.equal(weights[0][name], weights[2][name])
    assert np.array_equal(induction_prompts(9, seed=1)["clean"], induction_prompts(9, seed=1)["clean"])
    assert not np.array_equal(induction_prompts(9, seed=1)["clean"], induction_prompts(9, seed=2)["clean"])


def test_induction_position_edges__belong_to_the_circuit_and_no_change_moves_them():
    assert INDUCTION_POSITION_EDGES < INDUCTION_EDGES
    assert not any(INDUCTION_POSITION_EDGES & edges for edges in CHANGED_EDGES.values())


# Bad input
@pytest.mark.parametrize(
    "change", [{"n_letters": 4}, {"n_positions": 5}, {"n_heads": 1}, {"n_spare": 0}, {"gain": 0.0}]
)
def test_induction_model__refuses(change):
    with pytest.raises(ConfigurationError, match="the model needs at least"):
        induction_model(**change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"change": "middle"}, "change must be one of|parameter 'change'"),
        ({"n_letters": 4}, "at least 1 prompt, 5 letters, 6 positions"),
        ({"length": 5}, "at least 1 prompt, 5 letters, 6 positions"),
    ],
)
def test_induction_prompts__refuses(change, message):
    with pytest.raises((ConfigurationError, TypeCheckError), match=message):  # a wrong word fails its type here
        induction_prompts(4, **change)
