"""Programs compiled into transformers by hand."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from mechint_core.errors import ConfigurationError
from mechint_core.random import torch_generator
from mechint_core.synthetic.compiled_programs import (
    FRACTION_EDGES,
    FRACTION_POSITION_EDGES,
    REVERSE_EDGES,
    REVERSE_POSITION_EDGES,
    fraction_of_previous_model,
    fraction_prompts,
    reverse_model,
    reverse_prompts,
)

PROGRAMS = {
    "reverse": (reverse_model, reverse_prompts, REVERSE_EDGES, REVERSE_POSITION_EDGES),
    "fraction": (fraction_of_previous_model, fraction_prompts, FRACTION_EDGES, FRACTION_POSITION_EDGES),
}


def reversed_in_python(row, pad):
    letters = [token for token in row[1:] if token != pad]
    return [0, *letters[::-1], *[pad] * (len(row) - 1 - len(letters))]


def inputs(prompts):
    return torch.from_numpy(prompts["clean"]), torch.from_numpy(prompts["corrupted"])


# Known answer
@torch.no_grad()
def test_reverse_model__reverses_every_sequence_up_to_its_length():
    """All 363 of 1 to 5 letters out of 3; outputs are one-hot, but for attention of exp(-20) to each other place."""
    rows = [[0, *letters, *[4] * (5 - n)] for n in range(1, 6) for letters in itertools.product(range(1, 4), repeat=n)]
    outputs = reverse_model(n_letters=3, max_length=5)(torch.tensor(rows))
    wanted = torch.tensor([reversed_in_python(row, 4) for row in rows])

    assert len(rows) == 363
    assert torch.equal(outputs.argmax(-1), wanted)
    one_hot = torch.nn.functional.one_hot(wanted, 5).double()
    torch.testing.assert_close(outputs, one_hot, rtol=0, atol=6 * 2.1e-9)


@torch.no_grad()
def test_reverse_model__gives_the_answer_printed_for_tracr():
    model = reverse_model(n_letters=3, max_length=3)

    assert model(torch.tensor([[0, 1, 2, 3]])).argmax(-1).tolist() == [[0, 3, 2, 1]]


@torch.no_grad()
def test_fraction_of_previous_model__gives_the_answer_printed_for_tracr():
    """[w, x, x, y] gives 0, 1/2, 2/3, 1/2; BOS gives 0."""
    shares = fraction_of_previous_model(letter=2)(torch.tensor([[0, 1, 2, 2, 3]]))[0, :, 0]

    torch.testing.assert_close(
        shares, torch.tensor([0, 0, 1 / 2, 2 / 3, 1 / 2], dtype=torch.float64), rtol=0, atol=6 * 2.1e-9
    )


def test_reverse_prompts__have_two_answers_and_two_lengths():
    prompts = reverse_prompts(100)
    clean, corrupted = prompts["clean"], prompts["corrupted"]
    lengths = [(each != 4).sum(axis=1) - 1 for each in (clean, corrupted)]

    assert np.all(lengths[0] != lengths[1])
    assert set(lengths[0]) == {1, 2, 3, 4, 5}
    assert np.all(prompts["target"] != prompts["corrupted_target"])
    for rows, answers, count in (
        (clean, prompts["target"], lengths[0]),
        (corrupted, prompts["corrupted_target"], lengths[1]),
    ):
        assert np.array_equal(rows[np.arange(100), count], answers)
        assert np.array_equal(reverse_model()(torch.from_numpy(rows))[:, 1].argmax(-1).numpy(), answers)


def test_fraction_prompts__put_the_letter_into_one_of_each_pair():
    prompts = fraction_prompts(100, letter=3)
    clean, corrupted = prompts["clean"][:, 1:], prompts["corrupted"][:, 1:]

    assert np.all((clean == 3) ^ (corrupted == 3))
    assert set(np.unique(prompts["clean"])) == {0, 1, 2, 3}


@pytest.mark.parametrize("program", PROGRAMS)
@torch.no_grad()
def test_edges__each_matters_when_cut_to_zero_and_no_other_does(program, run_edges, all_edges):
    make_model, make_prompts, edges, _ = PROGRAMS[program]
    model, (clean, _) = make_model(), inputs(make_prompts(64))
    every = all_edges(model)
    whole, _ = run_edges(model, clean, None, every)
    for edge in every:
        moved = float((run_edges(model, clean, None, every - {edge})[0] - whole).abs().max())
        assert moved > 0.3 if edge in edges else moved == 0, edge


@pytest.mark.parametrize("program", PROGRAMS)
@torch.no_grad()
def test_edges__show_between_prompts_unless_they_carry_places(program, run_edges, all_edges):
    make_model, make_prompts, edges, of_places = PROGRAMS[program]
    model, (clean, corrupted) = make_model(), inputs(make_prompts(64))
    every = all_edges(model)
    whole, _ = run_edges(model, clean, None, every)
    _, elsewhere = run_edges(model, corrupted, None, every)
    for edge in every:
        moved = float((run_edges(model, clean, elsewhere, every - {edge})[0] - whole).abs().max())
        assert moved > 0.3 if edge in edges - of_places else moved == 0, edge


# Oracle
@pytest.mark.parametrize("program", PROGRAMS)
@torch.no_grad()
def test_compiled_programs__are_their_edges(program, run_edges, all_edges):
    make_model, make_prompts, _, _ = PROGRAMS[program]
    model, (clean, _) = make_model(), inputs(make_prompts(64))

    torch.testing.assert_close(run_edges(model, clean, None, all_edges(model))[0], model(clean), rtol=1e-12, atol=1e-12)


# Law
@given(st.integers(1, 6), st.integers(1, 9), st.integers(0, 2**20))
@settings(max_examples=25)
@torch.no_grad()
def test_reverse_model__twice_changes_nothing(n_letters, max_length, seed):
    model, draws = reverse_model(n_letters=n_letters, max_length=max_length, seed=seed), torch_generator(seed, "rows")
    tokens = torch.randint(1, n_letters + 1, (20, max_length + 1), generator=draws)
    lengths = torch.randint(1, max_length + 1, (20, 1), generator=draws)
    tokens[torch.arange(max_length + 1) > lengths] = n_letters + 1
    tokens[:, 0] = 0
    once = model(tokens).argmax(-1)

    assert once.tolist() == [reversed_in_python(row, n_letters + 1) for row in tokens.tolist()]
    assert torch.equal(model(once).argmax(-1), tokens)


@given(st.integers(1, 6), st.integers(1, 12), st.integers(0, 2**20), st.data())
@settings(max_examples=25)
@torch.no_grad()
def test_fraction_of_previous_model__is_the_cumulative_mean(n_letters, length, seed, data):
    letter = data.draw(st.integers(1, n_letters))
    model = fraction_of_previous_model(n_letters=n_letters, max_length=12, letter=letter, seed=seed)
    tokens = torch.randint(1, n_letters + 1, (20, length), generator=torch_generator(seed, "rows"))
    shares = model(torch.nn.functional.pad(tokens, (1, 0)))[:, 1:, 0]

    wanted = (tokens == letter).double().cumsum(1) / torch.arange(1.0, length + 1)
    torch.testing.assert_close(shares, wanted.double(), rtol=0, atol=1e-6)


@given(st.sampled_from(sorted(PROGRAMS)), st.integers(0, 2**20), st.sampled_from(["zero", "mean", "resample"]))
@settings(max_examples=20)
@torch.no_grad()
def test_edges__alone_give_the_whole_answer(run_edges, all_edges, program, seed, ablation):
    """Whatever all other edges carry. Tolerance: rounding in float64."""
    make_model, make_prompts, edges, _ = PROGRAMS[program]
    model, (clean, corrupted) = make_model(seed=seed), inputs(make_prompts(32, seed=seed))
    _, other = run_edges(model, corrupted, None, all_edges(model))
    mean = {name: write.mean(dim=0, keepdim=True).expand_as(write) for name, write in other.items()}
    alone, _ = run_edges(model, clean, {"zero": None, "mean": mean, "resample": other}[ablation], edges)

    torch.testing.assert_close(alone, model(clean), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("program", PROGRAMS)
def test_compiled_programs__are_their_seed(program):
    make_model, make_prompts, _, _ = PROGRAMS[program]
    weights = [make_model(seed=seed).state_dict()["layers.0.attention.query.weight"] for seed in (0, 0, 1)]
    prompts = [make_prompts(20, seed=seed)["clean"] for seed in (0, 0, 1)]

    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert np.array_equal(prompts[0], prompts[1])
    assert not np.array_equal(prompts[0], prompts[2])


# Bad input
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: reverse_model(n_letters=0), "at least 1 letter"),
        (lambda: fraction_of_previous_model(max_length=0), "at least 1 letter"),
        (lambda: fraction_of_previous_model(letter=4), "letter must be one of 1 ... 3"),
        (lambda: reverse_prompts(0), "at least 1 prompt, 2 letters"),
        (lambda: reverse_prompts(5, max_length=1), "at least 1 prompt, 2 letters"),
        (lambda: fraction_prompts(5, n_letters=1), "at least 1 prompt, 2 letters"),
        (lambda: fraction_prompts(5, letter=0), "at least 1 prompt, 2 letters"),
    ],
)
def test_compiled_programs__refuse(make, message):
    with pytest.raises(ConfigurationError, match=message):
        make()
