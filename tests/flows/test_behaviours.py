"""Prompt pairs for circuits: made, cleaned and split before anything looks at them."""

import numpy as np
import pytest

from flows.behaviours import prompt_sets
from flows.sections import CircuitSection
from mechint_core.errors import ConfigurationError
from mechint_core.synthetic.modular_addition import build_dataset, build_prompt_pairs

SUMS = {"prime": 11}


def section(**changes):
    given = {
        "name": "sum",
        "clean": "prompts.clean",
        "corrupted": "prompts.corrupted",
        "target": "prompts.answer",
        "corrupted_target": "prompts.corrupted_answer",
    }
    return CircuitSection(**(given | changes))


def made(**changes):
    return section(clean="pairs.tokens", target="pairs.answer", corrupted="", corrupted_target="", **changes)


def rows(pairs):
    return {(*one, *other) for one, other in zip(pairs["clean"].tolist(), pairs["corrupted"].tolist(), strict=True)}


# Known answer
def test_prompt_sets__share_no_pair_and_lose_none():
    prompts = build_prompt_pairs(n_prompts=60, **SUMS)
    discovery, held_out = prompt_sets(section(held_out=0.25), prompts)
    assert len(discovery["clean"]) + len(held_out["clean"]) == 60
    assert len(held_out["clean"]) == pytest.approx(15, abs=1)  # one pair is there in both directions
    assert rows(discovery) | rows(held_out) == rows(prompts)
    assert not rows(discovery) & rows(held_out)


def test_prompt_sets__a_pair_that_is_there_twice_is_kept_once():
    prompts = {name: np.concatenate([each, each]) for name, each in build_prompt_pairs(n_prompts=20, **SUMS).items()}
    discovery, held_out = prompt_sets(section(), prompts)
    assert len(discovery["clean"]) + len(held_out["clean"]) == 20
    assert not rows(discovery) & rows(held_out)


def test_prompt_sets__a_pair_and_its_reverse_are_not_torn_apart():
    prompts = build_prompt_pairs(n_prompts=20, **SUMS)
    turned = {"clean": "corrupted", "corrupted": "clean", "answer": "corrupted_answer", "corrupted_answer": "answer"}
    both = {name: np.concatenate([each, prompts[turned[name]]]) for name, each in prompts.items() if name in turned}
    discovery, held_out = prompt_sets(section(), both)
    assert len(discovery["clean"]) + len(held_out["clean"]) == len(rows(both))
    assert len(held_out["clean"]) > 10
    reverse = {(*pair[len(pair) // 2 :], *pair[: len(pair) // 2]) for pair in rows(discovery)}
    assert not reverse & rows(held_out)


def test_prompt_sets__pairs_whose_answer_stays_are_left_out():
    prompts = build_prompt_pairs(n_prompts=40, **SUMS)
    prompts["corrupted_answer"][:10] = prompts["answer"][:10]
    discovery, held_out = prompt_sets(section(), prompts)
    assert len(discovery["clean"]) + len(held_out["clean"]) == 30


def test_prompt_sets__corruption_at_a_position_knows_the_answers_that_the_data_holds():
    discovery, held_out = prompt_sets(made(corruption={"positions": [1]}), build_dataset(**SUMS))
    for pairs in (discovery, held_out):
        clean, corrupted = pairs["clean"], pairs["corrupted"]
        assert (clean[:, [0, 2]] == corrupted[:, [0, 2]]).all()
        assert (clean[:, 1] != corrupted[:, 1]).all()
        assert (pairs["target"] == clean[:, :2].sum(1) % 11).all()
        assert (pairs["corrupted_target"] == corrupted[:, :2].sum(1) % 11).all()


def test_prompt_sets__answers_that_the_data_lacks_are_not_made_up():
    dataset = {name: each[:60] for name, each in build_dataset(**SUMS).items()}
    dataset = {name: each[np.r_[0:60:3]] for name, each in dataset.items()}
    discovery, _ = prompt_sets(made(corruption={"positions": [1]}), dataset)
    assert "target" in discovery
    assert "corrupted_target" not in discovery


# Law
def test_prompt_sets__the_same_seed_gives_the_same_split_and_another_another():
    prompts = build_prompt_pairs(n_prompts=60, **SUMS)
    one, again, other = (prompt_sets(section(seed=seed), prompts)[0] for seed in (0, 0, 1))
    assert rows(one) == rows(again)
    assert rows(one) != rows(other)


# Bad input
def test_prompt_sets__too_few_pairs():
    with pytest.raises(ConfigurationError, match="at least 4 pairs to look at and 4 held out"):
        prompt_sets(section(), build_prompt_pairs(n_prompts=6, **SUMS))


def test_prompt_sets__a_field_that_is_not_there_lists_those_that_are():
    with pytest.raises(ConfigurationError, match=r"target of sum: 'prompts\.result' is not there"):
        prompt_sets(section(target="prompts.result"), build_prompt_pairs(**SUMS))


def test_prompt_sets__shapes_that_do_not_fit():
    prompts = build_prompt_pairs(**SUMS)
    with pytest.raises(ConfigurationError, match="must have one shape"):
        prompt_sets(section(), prompts | {"corrupted": prompts["corrupted"][:, :2]})


def test_prompt_sets__a_position_that_is_not_there():
    with pytest.raises(ConfigurationError, match="must be positions of the inputs"):
        prompt_sets(made(corruption={"positions": [5]}), build_dataset(**SUMS))
