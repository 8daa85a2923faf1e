"""Judging circuits on pairs they were not found on: against planted circuits, and on models that have none."""

import inspect
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from mechint_core.circuits import (
    Circuit,
    CircuitFaithfulnessConfig,
    EdgeAttributionConfig,
    circuit_faithfulness,
    edge_attribution,
)
from mechint_core.circuits._effect_shares import Effect
from mechint_core.circuits._random_circuits import random_circuits
from mechint_core.circuits._trial_circuits import TrialCircuits
from mechint_core.errors import ConfigurationError, DegenerateInputError, NotFoundError, ShapeError
from mechint_core.models import inference
from mechint_core.patching import EdgeRuns, PromptPairs, residual_graph
from mechint_core.random import generator, torch_generator
from mechint_core.synthetic.compiled_programs import FRACTION_EDGES, fraction_of_previous_model, fraction_prompts
from mechint_core.synthetic.induction_model import (
    CHANGED_EDGES,
    INDUCTION_EDGES,
    INDUCTION_HEAD,
    INDUCTION_POSITION_EDGES,
    induction_model,
    induction_prompts,
)
from mechint_core.synthetic.small_transformer import SmallTransformer

unchecked = inspect.unwrap(circuit_faithfulness)  # without the shape checker of the tests, to meet our own messages

FEW = {"n_random": 19, "n_random_curve": 2, "n_knockouts": 4, "n_draws": 200, "sizes": (0.1, 0.4)}


def circuit_of(edges, scored=None, **options):
    """A circuit that keeps `edges`, of those scored (or of all); the kept ones have the largest scores."""
    scored = sorted(edges if scored is None else scored)
    sender, receiver = zip(*scored, strict=True)
    kept = np.array([each in edges for each in scored])
    return Circuit(sender=sender, receiver=receiver, score=kept.astype(float), kept=kept, **options)


def edges_of(model, prompts, granularity="qkv"):
    with inference(model):
        return residual_graph(model, torch.from_numpy(prompts["clean"][:2]), granularity=granularity).edges


def random_model_and_pairs(seed, n_pairs=20):
    model = SmallTransformer(vocabulary=8, n_positions=8, width=8, n_layers=2, n_heads=2, seed=seed)
    draws = generator(seed, "pairs")
    clean = draws.integers(0, 8, size=(n_pairs, 8))
    corrupted = clean.copy()
    corrupted[:, -1] = (clean[:, -1] + draws.integers(1, 8, size=n_pairs)) % 8
    return model, {"clean": clean, "corrupted": corrupted}


# Known answer
@pytest.mark.parametrize("ablation", ["corrupted", "zero", "mean", "other"])
def test_circuit_faithfulness__planted_circuit_is_sufficient_necessary_and_complete(ablation):
    """Exactly: nothing else in the model is read by the answer. 1e-5 is the bar; the model computes in float64."""
    config = CircuitFaithfulnessConfig(ablation=ablation, **FEW)

    found = circuit_faithfulness(induction_model(), circuit_of(INDUCTION_EDGES), **induction_prompts(12), config=config)

    assert found.faithfulness.value == pytest.approx(1, abs=1e-5)
    assert found.necessity.value == pytest.approx(1, abs=1e-5)
    assert found.incompleteness.value == pytest.approx(0, abs=1e-5)
    assert found.faithfulness.null < 0.3
    assert found.faithfulness.high - found.faithfulness.low < 1e-5
    assert (found.n_kept, found.n_edges, found.n_pairs, found.n_untested) == (7, 81, 12, 0)


def test_circuit_faithfulness__only_cutting_to_zero_shows_edges_that_are_the_same_in_every_prompt():
    model, prompts = induction_model(), induction_prompts(12)
    without = circuit_of(INDUCTION_EDGES - INDUCTION_POSITION_EDGES)

    corrupted, zero = (
        circuit_faithfulness(model, without, **prompts, config=CircuitFaithfulnessConfig(ablation=ablation, **FEW))
        for ablation in ("corrupted", "zero")
    )

    assert corrupted.faithfulness.value == pytest.approx(1, abs=1e-5)
    assert zero.faithfulness.value < 0.3


def test_circuit_faithfulness__names_the_edges_that_add_nothing():
    """Two spurious edges, and with corrupted ablation the two that carry places only."""
    model, prompts = induction_model(), induction_prompts(30)
    spurious = {("input", "output"), ("layers.0.attention.0", f"{INDUCTION_HEAD}:value")}

    found = circuit_faithfulness(
        model, circuit_of(INDUCTION_EDGES | spurious), **prompts, config=CircuitFaithfulnessConfig(**FEW)
    )

    idle = {
        (sender, receiver)
        for sender, receiver, low in zip(found.sender, found.receiver, found.low, strict=True)
        if low <= 0
    }
    assert idle == INDUCTION_POSITION_EDGES | spurious
    assert (found.n_idle, found.n_opposing) == (4, 0)
    assert "these edges add nothing that shows:" in found.reading()
    assert "input → output" in found.reading()
    needed = dict(zip(zip(found.sender, found.receiver, strict=True), found.p_value, strict=True))
    assert all(needed[edge] <= 0.05 for edge in CHANGED_EDGES["prompt"])
    assert found.contribution[list(found.edge).index(f"{INDUCTION_HEAD} → output")] == pytest.approx(1, abs=1e-5)


def test_circuit_faithfulness__a_random_circuit_is_no_better_than_random_circuits():
    model, prompts = induction_model(), induction_prompts(12)
    edges = edges_of(model, prompts)
    kept = random_circuits(edges, 7, n_circuits=1, kind="connected", rng=generator(3, "random"))[0]
    config = CircuitFaithfulnessConfig(**FEW)

    found = circuit_faithfulness(
        model, circuit_of({edge for edge, k in zip(edges, kept, strict=True) if k}), **prompts, config=config
    )

    assert found.faithfulness.value == pytest.approx(0, abs=1e-5)
    assert found.faithfulness.p_value > 0.05
    assert "no better than random circuits of its size" in found.reading()


def test_circuit_faithfulness__a_circuit_without_the_backup_is_faithful_but_not_complete():
    """Two induction heads that do the same, and a probability that one of them saturates: an OR."""
    model = induction_model(n_heads=3)
    attention = model.attention_of(1)
    width = attention.head_width
    with torch.no_grad():
        for linear in (attention.query, attention.key, attention.value):
            linear.weight[2 * width :] = linear.weight[:width]
        attention.output.weight[:, 2 * width :] = attention.output.weight[:, :width]
    other = "layers.1.attention.2"
    backup = {(one.replace(INDUCTION_HEAD, other), two.replace(INDUCTION_HEAD, other)) for one, two in INDUCTION_EDGES}
    config = CircuitFaithfulnessConfig(metric="probability", ablation="zero", **{**FEW, "n_knockouts": 30})
    prompts = induction_prompts(12)

    half, both = (
        circuit_faithfulness(model, circuit_of(edges), **prompts, config=config)
        for edges in (INDUCTION_EDGES, INDUCTION_EDGES | backup)
    )

    assert half.faithfulness.value == pytest.approx(1, abs=1e-3)  # the other letters keep a probability of 5e-4
    assert half.incompleteness.low > 0.05
    assert both.faithfulness.value == pytest.approx(1, abs=1e-3)
    assert both.incompleteness.value == pytest.approx(0, abs=1e-3)
    model_has, circuit_has = half.knockouts.T  # without parts of one head only, which the other one replaces
    assert ((model_has > 0.99) & (circuit_has < 0.05)).any()


def test_circuit_faithfulness__grows_from_nothing_to_the_whole_model():
    """7 of 81 edges do all: below 7/81 nothing is promised, above all is there. Area >= 1 - 7/81, less half a step."""
    model, prompts = induction_model(), induction_prompts(12)
    circuit = circuit_of(INDUCTION_EDGES, scored=edges_of(model, prompts))
    config = CircuitFaithfulnessConfig(**{**FEW, "sizes": (1 / 81, 7 / 81, 20 / 81)})

    found = circuit_faithfulness(model, circuit, **prompts, config=config)

    assert list(found.size) == [0, 1, 7, 20, 81]
    np.testing.assert_allclose(found.curve, [0, 0, 1, 1, 1], atol=1e-5)
    assert found.area.value == pytest.approx(1 - (1 + 7) / 2 / 81, abs=1e-5)
    assert found.distance.value == pytest.approx(1 - found.area.value, abs=1e-5)
    assert found.curve_null[0] == 0
    assert found.curve_null[-1] == pytest.approx(1)
    assert found.area.null < 0.7


def test_circuit_faithfulness__works_for_outputs_without_classes():
    config = CircuitFaithfulnessConfig(metric="distance", ablation="zero", **FEW)
    model, prompts = fraction_of_previous_model(), fraction_prompts(12)
    found = circuit_faithfulness(model, circuit_of(FRACTION_EDGES), **prompts, config=config)
    assert found.faithfulness.value == pytest.approx(1, abs=1e-5)
    assert found.necessity.value == pytest.approx(1, abs=1e-5)


class Parts(torch.nn.Module):
    """A residual stream to which modules write whose names say nothing."""

    def __init__(self):
        super().__init__()
        self.parts = torch.nn.ModuleList(torch.nn.Linear(4, 4) for _ in range(2))
        self.unembed = torch.nn.Linear(4, 3)
        draws = torch_generator(0, "parts")
        for parameter in self.parameters():
            torch.nn.init.normal_(parameter, generator=draws)

    def forward(self, x):
        for part in self.parts:
            x = x + part(x)
        return self.unembed(x)


def test_circuit_faithfulness__measures_the_graph_with_the_components_the_circuit_was_found_with():
    model = Parts()
    clean, corrupted = generator(0, "parts").normal(size=(2, 40, 4))
    config = EdgeAttributionConfig(components=("parts.*",), granularity="block", metric="kl", n_edges=3, n_draws=50)
    circuit = Circuit.of(edge_attribution(model, clean[:20], corrupted[:20], config=config), config)
    judge = CircuitFaithfulnessConfig(metric="kl", **FEW)

    found = circuit_faithfulness(model, circuit, clean[20:], corrupted[20:], config=judge)

    assert circuit.components == ("parts.*",)
    assert found.n_edges == len(circuit.edges) == 6  # input, two parts, output: each to all that follow
    with pytest.raises(NotFoundError, match="Give components"):
        circuit_faithfulness(model, replace(circuit, components=()), clean[20:], corrupted[20:], config=judge)


def test_circuit_faithfulness__is_undefined_where_there_is_no_effect():
    model, pairs = random_model_and_pairs(0, 60)
    target = generator(0, "targets").integers(0, 8, size=60)  # which the model does not know

    found = circuit_faithfulness(
        model, circuit_of({("input", "output")}), **pairs, target=target, config=CircuitFaithfulnessConfig(**FEW)
    )

    assert not found.defined
    assert np.isnan(
        [found.faithfulness.value, found.necessity.value, found.area.value, found.incompleteness.value]
    ).all()
    assert np.isnan(found.curve).all()
    assert np.isnan(found.contribution).all()
    assert "no effect for a circuit to carry" in found.reading()


def test_circuit_faithfulness__an_empty_circuit_does_nothing():
    model, prompts = induction_model(), induction_prompts(12)
    circuit = circuit_of(set(), scored=INDUCTION_EDGES)
    found = circuit_faithfulness(model, circuit, **prompts, config=CircuitFaithfulnessConfig(**FEW))
    assert found.faithfulness.value == found.necessity.value == 0
    assert found.faithfulness.p_value == 1
    assert found.edge == ()
    assert "no better than random" in found.reading()


def test_circuit_faithfulness__leaves_out_the_weakest_edges_if_there_are_many():
    model, prompts = induction_model(), induction_prompts(8)
    circuit = circuit_of(INDUCTION_EDGES)
    score = np.arange(7.0)[::-1]
    circuit = Circuit(sender=circuit.sender, receiver=circuit.receiver, score=score, kept=circuit.kept)
    found = circuit_faithfulness(model, circuit, **prompts, config=CircuitFaithfulnessConfig(n_left_out=2, **FEW))
    assert set(zip(found.sender, found.receiver, strict=True)) == set(circuit.edges[-2:])
    assert found.n_untested == 5


# Oracle
def test_circuit_faithfulness__equals_the_definitions_written_out():
    """One experiment after the other, ratios of plain means."""
    model, pairs = random_model_and_pairs(1)
    edges = edges_of(model, pairs, "head")
    draws = generator(1, "oracle")
    kept = {edge for edge in edges if draws.random() < 0.5}
    config = CircuitFaithfulnessConfig(metric="kl", **FEW)
    circuit = circuit_of(kept, scored=edges, granularity="head")

    found = circuit_faithfulness(model, circuit, **pairs, config=config)

    prompts = PromptPairs.of(*pairs.values(), None, None, "kl")
    with inference(model):
        graph = residual_graph(model, torch.from_numpy(pairs["clean"][:2]), granularity="head")
        runs = EdgeRuns(model=model, graph=graph, config=config)

        @cache
        def m(left):
            mask = np.array([[edge in left for edge in graph.edges]])
            return runs.score(prompts, mask).patched[0].mean()

        everything, kept = frozenset(edges), frozenset(kept)

        def f(left):
            return (m(left) - m(frozenset())) / (m(everything) - m(frozenset()))

        # float32 forwards in batches of other sizes; shares of order 1.
        assert found.faithfulness.value == pytest.approx(f(kept), abs=1e-5)
        assert found.necessity.value == pytest.approx(1 - f(everything - kept), abs=1e-5)
        left_out = list(zip(found.sender, found.receiver, strict=True))
        np.testing.assert_allclose(found.contribution, [f(kept) - f(kept - {edge}) for edge in left_out], atol=1e-5)
        knocked = TrialCircuits.of(
            circuit,
            edges,
            sizes=np.arange(0),
            random="connected",
            n_random=1,
            n_random_growing=1,
            n_knockouts=config.n_knockouts,
            n_left_out=0,
            seed=config.seed,
        ).masks["model knocked out"]
        parts = [frozenset(edge for edge, left in zip(edges, each, strict=True) if not left) for each in knocked]
        wanted = [(f(everything - part), f(kept - part)) for part in parts]
        np.testing.assert_allclose(found.knockouts, wanted, atol=1e-5)
        assert all(part and part <= kept for part in parts)
        assert found.incompleteness.value == pytest.approx(np.mean([abs(a - b) for a, b in wanted]), abs=1e-5)


# Law
@settings(max_examples=20)
@given(st.integers(0, 2**31), st.floats(0.1, 10), st.floats(-5, 5))
def test_effect_shares__do_not_depend_on_the_unit_or_the_zero_of_the_metric(seed, scale, shift):
    draws = generator(seed, "scores")
    full, empty = draws.normal(3, 1, 15), draws.normal(0, 1, 15)
    scores = draws.normal(1, 1, (4, 15))
    options = {"n_draws": 50, "level": 0.95, "seed": 0}
    one = Effect.of(full, empty, **options).shares(scores)
    other = Effect.of(shift - scale * full, shift - scale * empty, **options).shares(shift - scale * scores)
    np.testing.assert_allclose(other.value, one.value, atol=1e-9)
    np.testing.assert_allclose(other.bounds(), one.bounds(), atol=1e-9)


@settings(max_examples=20)
@given(st.integers(0, 2**31))
def test_effect_shares__are_1_for_the_whole_model_0_for_the_empty_one_and_linear_between(seed):
    draws = generator(seed, "scores")
    full, empty = draws.normal(3, 1, 15), draws.normal(0, 1, 15)
    found = Effect.of(full, empty, n_draws=50, level=0.95, seed=0).shares(
        np.array([full, empty, 0.3 * full + 0.7 * empty])
    )
    np.testing.assert_allclose(found.value, [1, 0, 0.3], atol=1e-12)
    np.testing.assert_allclose(found.bounds(), np.array([[1, 0, 0.3]] * 2), atol=1e-12)


@settings(max_examples=25)
@given(st.integers(0, 2**31), st.integers(0, 12))
def test_trial_circuits__are_what_they_are_called(seed, n_kept):
    draws = generator(seed, "trial")
    nodes = ("input", "a", "b", "c")
    edges = tuple((one, two) for k, two in enumerate((*nodes[1:], "output"), 1) for one in nodes[:k])
    kept = {edges[each] for each in draws.choice(len(edges), min(n_kept, len(edges)), replace=False)}
    trials = TrialCircuits.of(
        circuit_of(kept, scored=edges),
        edges,
        sizes=np.array([1, 4]),
        random="connected",
        n_random=3,
        n_random_growing=2,
        n_knockouts=3,
        n_left_out=100,
        seed=seed,
    )
    masks = trials.masks
    assert masks["ends"][0].all()
    assert not masks["ends"][1].any()
    assert (masks["circuit"] != masks["without circuit"]).all()
    assert (masks["random"].sum(axis=1) == len(kept)).all()
    assert (masks["random"] != masks["without random"]).all()
    assert (masks["left out"].sum(axis=1) == len(kept) - 1).all()
    assert len(masks["left out"]) == len(kept)
    assert (masks["circuit knocked out"] == (masks["circuit"] & masks["model knocked out"])).all()
    assert list(masks["growing"].sum(axis=1)) == [1, 4]
    assert (masks["growing"][0] <= masks["growing"][1]).all()
    assert list(masks["random growing"].sum(axis=1)) == [1, 1, 4, 4]
    scores = np.arange(len(trials.kept))[:, None] + np.zeros((1, 2))
    assert np.concatenate(list(trials.sorted(scores).values())).tolist() == scores.tolist()


def test_circuit_faithfulness__does_not_depend_on_how_it_is_packed():
    model, pairs = random_model_and_pairs(2)
    circuit = circuit_of({("input", "output"), ("layers.0.attention.1", "output")}, granularity="head")
    whole, parts = (
        circuit_faithfulness(
            model, circuit, **pairs, config=CircuitFaithfulnessConfig(metric="kl", batch_rows=batch_rows, **FEW)
        )
        for batch_rows in (4096, 37)
    )
    for name, value in whole.scalars().items():
        assert parts.scalars()[name] == pytest.approx(value, abs=1e-5, nan_ok=True), name


def test_circuit_faithfulness__same_seed_same_bits():
    model, pairs = random_model_and_pairs(3)
    circuit = circuit_of({("input", "output")}, granularity="head")
    config = CircuitFaithfulnessConfig(metric="kl", **FEW)
    first, second = (circuit_faithfulness(model, circuit, **pairs, config=config).scalars() for _ in range(2))
    np.testing.assert_equal(first, second)


QUICK = {"n_random": 19, "n_random_curve": 1, "n_knockouts": 1, "n_left_out": 0, "sizes": (), "n_draws": 200}


@pytest.mark.slow
def test_circuit_faithfulness__p_values_are_at_their_nominal_level_for_circuits_drawn_at_random():
    """200 random circuits of untrained models, against 19 others: p <= 0.1 in 10 %, 99.9 % band 3.5 to 18 %."""
    found = []
    for seed in range(200):
        model, pairs = random_model_and_pairs(seed, 10)
        edges = edges_of(model, pairs, "head")
        kept = random_circuits(edges, 6, n_circuits=1, kind="connected", rng=generator(seed, "circuit"))[0]
        circuit = circuit_of({edge for edge, k in zip(edges, kept, strict=True) if k}, granularity="head")
        config = CircuitFaithfulnessConfig(metric="kl", seed=seed, **QUICK)
        found.append(circuit_faithfulness(model, circuit, **pairs, config=config).faithfulness.p_value)
    assert 0.035 <= np.mean(np.array(found) <= 0.1) <= 0.18
    assert 0.4 <= np.mean(found) <= 0.65  # uniform on 0.05 ... 1: 0.525


@pytest.mark.slow
def test_circuit_faithfulness__untrained_models_have_no_circuit_for_answers_they_do_not_know():
    """200 untrained models with random answers, the circuit chosen on other pairs: 5 % significant, band below 11 %."""
    significant = []
    for seed in range(200):
        model, pairs = random_model_and_pairs(seed, 40)
        target, foil = generator(seed, "answers").permuted(np.tile(np.arange(8), (40, 1)), axis=1)[:, :2].T
        edges = edges_of(model, pairs, "head")
        config = CircuitFaithfulnessConfig(seed=seed, **QUICK)
        with inference(model):
            graph = residual_graph(model, torch.from_numpy(pairs["clean"][:2]), granularity="head")
            half = PromptPairs.of(
                pairs["clean"][:20], pairs["corrupted"][:20], target[:20], foil[:20], "logit_difference"
            )
            cut = EdgeRuns(model=model, graph=graph, config=config).score(half, ~np.eye(len(edges), dtype=bool))
        effect = (cut.clean - cut.patched).mean(axis=1)
        best = np.argsort(-effect)[:6]
        circuit = circuit_of(
            {edges[each] for each in best}, granularity="head", discovered_on=tuple(half.fingerprints())
        )
        held_out = {name: each[20:] for name, each in pairs.items()}
        found = circuit_faithfulness(
            model, circuit, **held_out, target=target[20:], corrupted_target=foil[20:], config=config
        )
        significant.append(found.defined and found.faithfulness.p_value <= 0.05)
    assert np.mean(significant) <= 0.11


# Bad input
def test_circuit_faithfulness__refuses_pairs_the_circuit_was_found_on():
    prompts = induction_prompts(12)
    seen = PromptPairs.of(*(each[:5] for each in prompts.values()), "logit_difference").fingerprints()
    circuit = circuit_of(INDUCTION_EDGES, discovered_on=tuple(seen))
    with pytest.raises(ConfigurationError, match="Got 5 of 12 on which it was"):
        unchecked(induction_model(), circuit, **prompts)
    other = {name: each[5:] for name, each in prompts.items()}
    found = circuit_faithfulness(induction_model(), circuit, **other, config=CircuitFaithfulnessConfig(**FEW))
    assert (found.n_discovered_on, found.n_pairs) == (5, 7)


def test_circuit_faithfulness__refuses_the_pairs_turned_round_or_in_other_integers():
    prompts = induction_prompts(6)
    seen = PromptPairs.of(*prompts.values(), "logit_difference").fingerprints()
    circuit = circuit_of(INDUCTION_EDGES, discovered_on=tuple(seen))
    clean, corrupted, target, foil = prompts.values()
    with pytest.raises(ConfigurationError, match="Got 6 of 6 on which it was"):
        unchecked(induction_model(), circuit, corrupted.astype(np.int32), clean.astype(np.int32), foil, target)


def test_circuit_faithfulness__refuses_circuits_of_another_model():
    with pytest.raises(NotFoundError, match=r"layers\.7\.mlp -> output"):
        unchecked(induction_model(), circuit_of({("layers.7.mlp", "output")}), **induction_prompts(4))


def test_circuit_faithfulness__needs_a_target_for_metrics_of_answers():
    prompts = induction_prompts(4)
    with pytest.raises(ConfigurationError, match="needs a target"):
        unchecked(induction_model(), circuit_of(INDUCTION_EDGES), prompts["clean"], prompts["corrupted"])


def test_circuit_faithfulness__inputs_must_pair_up_and_be_finite():
    circuit = circuit_of(INDUCTION_EDGES)
    with pytest.raises(ShapeError, match="same shape"):
        unchecked(induction_model(), circuit, np.zeros((4, 3), int), np.zeros((4, 2), int), np.zeros(4, int))
    with pytest.raises(DegenerateInputError, match="must be finite"):
        unchecked(induction_model(), circuit, np.full((4, 3), np.nan), np.zeros((4, 3)), np.zeros(4, int))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ablation": "none"}, "ablation must be one of"),
        ({"random_circuits": "any"}, "random_circuits must be one of"),
        ({"n_random": 0}, "must be at least 1, n_left_out at least 0"),
        ({"n_left_out": -1}, "must be at least 1, n_left_out at least 0"),
        ({"sizes": (0.5, 1.0)}, "sizes must be shares strictly between 0 and 1"),
        ({"metric": "accuracy"}, "metric must be one of"),
    ],
)
def test_circuit_faithfulness__config_names_what_is_wrong(options, message):
    config = CircuitFaithfulnessConfig()
    for name, value in options.items():  # past the type checker of the tests, which meets some of these first
        object.__setattr__(config, name, value)
    with pytest.raises(ConfigurationError, match=message):
        config.__post_init__()
