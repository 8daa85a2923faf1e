"""Automatic circuit discovery: the edges of planted circuits, and the answer of the one-by-one loop."""

import inspect
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from mechint_core.circuits import AcdcConfig, Circuit, CircuitFaithfulnessConfig, acdc, circuit_faithfulness
from mechint_core.circuits._greedy_cuts import greedy_cuts
from mechint_core.errors import ConfigurationError, DegenerateInputError, NotFoundError, ShapeError
from mechint_core.models import inference
from mechint_core.patching import EdgeRuns, PromptPairs, residual_graph
from mechint_core.random import generator
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
from mechint_core.synthetic.induction_model import (
    CHANGED_EDGES,
    INDUCTION_EDGES,
    induction_model,
    induction_prompts,
)
from mechint_core.synthetic.small_transformer import SmallTransformer, whole_heads

unchecked = inspect.unwrap(acdc)  # without the shape checker of the tests, to meet our own messages


def kept_of(found):
    return {edge for edge, kept in zip(zip(found.sender, found.receiver, strict=True), found.kept, strict=True) if kept}


def random_edges(draws, n_nodes=4):
    nodes = ("input", *(f"n{k}" for k in range(n_nodes)))
    return tuple(
        (sender, receiver)
        for k, receiver in enumerate((*nodes[1:], "output"), 1)
        for sender in nodes[:k]
        if draws.random() < 0.8
    )


def network(edges, draws, n_pairs=5):
    """A network of tanh with random weights on its edges, as a function of which edges are intact."""
    weight = draws.normal(size=(len(edges), 1))
    signal = draws.normal(size=n_pairs)

    def score(masks):
        made = []
        for mask in masks:
            value = {"input": signal}
            for receiver in dict.fromkeys(receiver for _, receiver in edges):
                parts = [
                    w * value.get(sender, 0 * signal)
                    for (sender, other), w, intact in zip(edges, weight, mask, strict=True)
                    if other == receiver and intact
                ]
                value[receiver] = np.tanh(sum(parts, start=0 * signal))
            made.append(value.get("output", 0 * signal))
        return np.array(made)

    return score


# Known answer
def test_greedy_cuts__follows_a_hand_computed_example():
    """input -> a, b; a, b -> output: the score is 4 of the way through a, and 1 of the way through b.

    From the last edge: b -> output costs 1 <= 2 and goes; a -> output costs 4 and stays; input -> b leads nowhere and
    goes without a run; input -> a costs 4 and stays.
    """
    edges = (("input", "a"), ("input", "b"), ("a", "output"), ("b", "output"))

    def score(masks):
        in_a, in_b, out_a, out_b = masks.T
        return (4.0 * (in_a & out_a) + 1.0 * (in_b & out_b))[:, None] + np.zeros((1, 3))

    found = greedy_cuts(edges, score, np.full(3, 5.0), sign=1.0, tau=2.0, most=1)

    assert found.kept.tolist() == [True, False, True, False]
    assert found.harm.mean(axis=1).tolist() == [4, 0, 4, 1]
    assert (found.n_tested, found.n_runs) == (3, 3)


@pytest.mark.parametrize("change", ["prompt", "first", "second", "last"])
@pytest.mark.parametrize("metric", ["kl", "logit_difference"])
def test_acdc__finds_exactly_the_edges_through_which_the_change_goes(change, metric):
    prompts = induction_prompts(12, change=change)
    found = acdc(induction_model(), **prompts, config=AcdcConfig(metric=metric))
    assert kept_of(found) == CHANGED_EDGES[change]
    assert found.faithfulness.value == pytest.approx(1, abs=1e-2)  # what other edges carry: under a thousandth each
    assert found.faithfulness.null < 0.5
    assert found.n_kept == len(CHANGED_EDGES[change])


def test_acdc__cutting_to_zero_finds_the_edges_that_carry_places_too():
    found = acdc(induction_model(), **induction_prompts(12), config=AcdcConfig(ablation="zero"))
    assert kept_of(found) == INDUCTION_EDGES
    scores, true = (
        found.score,
        np.array([edge in INDUCTION_EDGES for edge in zip(found.sender, found.receiver, strict=True)]),
    )
    assert scores[true].min() > scores[~true].max()  # AUROC 1


def test_acdc__finds_the_program_that_reverses():
    config = AcdcConfig(ablation="zero", answer_position=1, metric="logit_difference")
    found = acdc(reverse_model(), **reverse_prompts(16), config=config)
    assert kept_of(found) == REVERSE_EDGES
    config = AcdcConfig(answer_position=1, metric="logit_difference")
    exchanged = kept_of(acdc(reverse_model(), **reverse_prompts(16), config=config))
    assert exchanged == REVERSE_EDGES - REVERSE_POSITION_EDGES


def test_acdc__finds_the_program_that_computes_fractions():
    model, prompts = fraction_of_previous_model(), fraction_prompts(16)
    found = acdc(model, **prompts, config=AcdcConfig(metric="distance", ablation="zero"))
    assert kept_of(found) == FRACTION_EDGES
    exchanged = kept_of(acdc(model, **prompts, config=AcdcConfig(metric="distance")))
    assert exchanged == FRACTION_EDGES - FRACTION_POSITION_EDGES


def test_acdc__finds_whole_heads_at_the_granularity_of_heads():
    found = acdc(induction_model(), **induction_prompts(12), config=AcdcConfig(granularity="head"))
    assert kept_of(found) == whole_heads(CHANGED_EDGES["prompt"])


def test_acdc__full_graph_has_a_divergence_of_exactly_0():
    model, prompts = induction_model(), induction_prompts(6)
    pairs = PromptPairs.of(*prompts.values(), "kl")
    with inference(model):
        graph = residual_graph(model, torch.from_numpy(prompts["clean"][:2]))
        runs = EdgeRuns(model=model, graph=graph, config=AcdcConfig())
        whole = runs.score(pairs, np.ones((1, len(graph.edges)), dtype=bool)).patched
    assert (whole == 0).all()


def test_acdc__what_it_finds_is_a_circuit_that_other_pairs_confirm():
    model = induction_model()
    found = acdc(model, **induction_prompts(12))
    circuit = Circuit.of(found, AcdcConfig())
    assert (circuit.method, circuit.metric, circuit.granularity, circuit.ablation) == ("acdc", "kl", "qkv", "corrupted")
    assert set(circuit.kept_edges) == CHANGED_EDGES["prompt"]
    assert len(circuit.discovered_on) == 12

    config = CircuitFaithfulnessConfig(n_random=19, n_random_curve=1, sizes=())
    judged = circuit_faithfulness(model, circuit, **induction_prompts(12, seed=1), config=config)

    assert judged.faithfulness.value == pytest.approx(1, abs=1e-3)
    assert judged.n_idle == 0
    with pytest.raises(ConfigurationError, match="Got 12 of 12"):
        circuit_faithfulness(model, circuit, **induction_prompts(12), config=config)


def test_acdc__keeps_nothing_where_there_is_no_effect():
    draws = generator(0, "no effect")
    clean, corrupted = draws.integers(0, 8, size=(2, 60, 4))
    target, foil = draws.permuted(np.tile(np.arange(8), (60, 1)), axis=1)[:, :2].T
    model = SmallTransformer(vocabulary=8, n_positions=4, width=8, n_heads=2)

    found = acdc(model, clean, corrupted, target, foil, config=AcdcConfig(metric="logit_difference"))

    assert not found.defined
    assert found.n_kept == 0
    assert math.isinf(found.tau)
    assert np.isnan(found.faithfulness.value)
    assert "no effect whose circuit could be looked for" in found.reading()


# Oracle
def one_by_one(edges, score, tau, sign):
    kept, harm = np.ones(len(edges), dtype=bool), np.zeros(len(edges))
    for edge in reversed(range(len(edges))):
        without = kept.copy()
        without[edge] = False
        before, after = score(np.array([kept, without]))
        harm[edge] = (sign * (before - after)).mean()
        if harm[edge] <= tau:
            kept = without
    return kept, harm


def test_acdc__equals_the_one_by_one_loop_on_a_random_model():
    draws = generator(0, "loop")
    clean, corrupted = draws.integers(0, 8, size=(2, 10, 4))
    model = SmallTransformer(vocabulary=8, n_positions=4, width=8, n_heads=2, hidden=8, norm=True)
    config = AcdcConfig(tau=0.01, granularity="head", n_draws=50, n_random=1)
    pairs = PromptPairs.of(clean, corrupted, None, None, "kl")

    found = acdc(model, clean, corrupted, config=config)

    with inference(model):
        graph = residual_graph(model, torch.from_numpy(clean[:2]), granularity="head")
        runs = EdgeRuns(model=model, graph=graph, config=config)
        kept, harm = one_by_one(graph.edges, lambda masks: runs.score(pairs, masks).patched, 0.01, -1)
    np.testing.assert_allclose(found.score, harm, atol=1e-5)  # float32 forwards in batches of other sizes
    assert (found.kept == kept).all()
    assert 0 < found.n_kept < found.n_edges


# Law
@settings(max_examples=40)
@given(st.integers(0, 2**31), st.floats(-0.2, 0.5), st.sampled_from([1.0, -1.0]), st.sampled_from([1, 2, 3, 64]))
def test_greedy_cuts__does_not_depend_on_how_many_are_run_at_once(seed, tau, sign, most):
    draws = generator(seed, "graph")
    edges = random_edges(draws)
    if not edges:
        return
    score = network(edges, draws)
    whole = score(np.ones((1, len(edges)), dtype=bool))[0]

    found = greedy_cuts(edges, score, whole, sign=sign, tau=max(tau, 0.0), most=most)

    kept, harm = one_by_one(edges, score, max(tau, 0.0), sign)
    # An edge that leads nowhere does exactly no harm, so that cutting it without a run is what the loop does.
    assert (found.kept == kept).all()
    np.testing.assert_allclose(found.harm.mean(axis=1), harm, atol=1e-12)
    assert found.n_tested <= len(edges)
    assert found.n_runs >= found.n_tested


def test_acdc__a_larger_threshold_keeps_no_more_of_a_planted_circuit():
    prompts = induction_prompts(8)
    sizes = [
        acdc(induction_model(), **prompts, config=AcdcConfig(tau=tau, n_random=1)).n_kept for tau in (0.01, 1.0, 1e3)
    ]
    assert sizes == [5, 5, 0]


def test_acdc__same_seed_same_bits():
    prompts = induction_prompts(6)
    first, second = (acdc(induction_model(), **prompts).scalars() for _ in range(2))
    np.testing.assert_equal(first, second)


# Bad input
def test_acdc__needs_parts_that_write_to_a_stream():
    with pytest.raises(NotFoundError):
        unchecked(torch.nn.Linear(3, 2), np.zeros((4, 3)), np.ones((4, 3)))


def test_acdc__needs_a_target_for_metrics_of_answers():
    prompts = induction_prompts(4)
    with pytest.raises(ConfigurationError, match="needs a target"):
        unchecked(induction_model(), prompts["clean"], prompts["corrupted"], config=AcdcConfig(metric="loss"))


def test_acdc__inputs_must_pair_up_and_be_finite():
    with pytest.raises(ShapeError, match="same shape"):
        unchecked(induction_model(), np.zeros((4, 3), int), np.zeros((4, 2), int))
    with pytest.raises(DegenerateInputError, match="must be finite"):
        unchecked(induction_model(), np.full((4, 3), np.nan), np.zeros((4, 3)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tau": -1.0}, "tau must be at least 0, or None"),
        ({"tau": math.inf}, "tau must be at least 0, or None"),
        ({"granularity": "neuron"}, "granularity must be one of"),
        ({"ablation": "none"}, "ablation must be one of"),
        ({"n_random": 0}, "n_random must be at least 1"),
    ],
)
def test_acdc__config_names_what_is_wrong(options, message):
    config = AcdcConfig()
    for name, value in options.items():  # past the type checker of the tests, which meets some of these first
        object.__setattr__(config, name, value)
    with pytest.raises(ConfigurationError, match=message):
        config.__post_init__()
