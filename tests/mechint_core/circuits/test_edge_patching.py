import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from mechint_core.circuits import Circuit, EdgePatchingConfig, edge_patching
from mechint_core.circuits.edge_patching import EachEdgeCut
from mechint_core.errors import ConfigurationError, DegenerateInputError, NotFoundError, ShapeError
from mechint_core.models import inference, to_model
from mechint_core.patching import EdgeRuns, PairedConfig, PromptPairs, residual_graph
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
    INDUCTION_POSITION_EDGES,
    induction_model,
    induction_prompts,
)
from mechint_core.synthetic.small_transformer import SmallTransformer, whole_heads

FEW = {"n_draws": 200}
PROGRAMS = {
    "reverse": (reverse_model(), reverse_prompts(32), {"answer_position": 1}, REVERSE_EDGES, REVERSE_POSITION_EDGES),
    "fraction": (
        fraction_of_previous_model(),
        fraction_prompts(32),
        {"metric": "distance"},
        FRACTION_EDGES,
        FRACTION_POSITION_EDGES,
    ),
    "induction": (induction_model(), induction_prompts(24), {}, INDUCTION_EDGES, INDUCTION_POSITION_EDGES),
}


def kept_edges(found) -> set[tuple[str, str]]:
    return set(
        Circuit.from_fields({name: getattr(found, name) for name in ("sender", "receiver", "score", "kept")}).kept_edges
    )


def separates(found, true) -> bool:
    """AUROC 1: every edge of the circuit has a larger score than every other edge."""
    inside = np.array([edge in true for edge in zip(found.sender, found.receiver, strict=True)])
    strength = np.abs(found.score)
    return strength[inside].min() > strength[~inside].max()


def random_pairs(seed: int = 0, n_pairs: int = 20):
    draws = generator(seed, "random pairs")
    clean, corrupted = draws.integers(0, 8, size=(2, n_pairs, 4))
    target = draws.integers(0, 8, size=n_pairs)
    return clean, corrupted, target, (target + draws.integers(1, 8, size=n_pairs)) % 8


def small(seed: int = 0, **options) -> SmallTransformer:
    return SmallTransformer(vocabulary=8, n_positions=4, width=8, hidden=8, norm=True, seed=seed, **options)


# Known answer
@pytest.mark.parametrize("change", ["prompt", "first", "second", "last"])
def test_edge_patching__finds_the_induction_circuit_and_nothing_else(change):
    found = edge_patching(
        induction_model(), *induction_prompts(24, change=change).values(), config=EdgePatchingConfig(**FEW)
    )
    assert separates(found, CHANGED_EDGES[change])
    assert kept_edges(found) == CHANGED_EDGES[change]
    assert found.n_kept == found.n_significant == len(CHANGED_EDGES[change])
    assert found.score.max() == pytest.approx(1, abs=1e-6)  # the only edge into the output carries everything
    assert f"{found.n_kept} of 81 edges are kept" in found.reading()


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("ablation", ["corrupted", "zero"])
def test_edge_patching__finds_compiled_programs_with_the_edges_that_carry_places_only_by_zero(name, ablation):
    model, prompts, options, edges, places = PROGRAMS[name]
    found = edge_patching(model, *prompts.values(), config=EdgePatchingConfig(ablation=ablation, **options, **FEW))
    true = edges if ablation == "zero" else edges - places
    assert separates(found, true)
    assert kept_edges(found) == true


def test_edge_patching__finds_whole_heads():
    config = EdgePatchingConfig(granularity="head", **FEW)
    found = edge_patching(induction_model(), *induction_prompts(24).values(), config=config)
    assert kept_edges(found) == whole_heads(CHANGED_EDGES["prompt"])


@pytest.mark.parametrize("name", PROGRAMS)
def test_edge_runs__cutting_all_edges_but_the_true_ones_changes_no_output(name):
    """The complement test, for both ablations: squared distance below 1e-10 is 1e-5 in every output."""
    model, prompts, _, edges, _ = PROGRAMS[name]
    pairs = PromptPairs.of(prompts["clean"], prompts["corrupted"], None, None, "distance")
    with inference(model):
        graph = residual_graph(model, to_model(pairs.clean[:2], model))
        runs = EdgeRuns(model=model, graph=graph, config=PairedConfig(metric="distance"))
        assert edges <= set(graph.edges)
        kept = np.array([[edge in edges for edge in graph.edges]])
        for ablation in ("corrupted", "zero", "mean"):
            assert runs.score(pairs, kept, ablation=ablation).patched.max() < 1e-10


def test_edge_patching__denoising_restores_through_the_last_edge_and_not_beyond_its_control():
    config = EdgePatchingConfig(direction="denoising", **FEW)
    found = edge_patching(induction_model(), *induction_prompts(24, change="second").values(), config=config)
    assert kept_edges(found) == CHANGED_EDGES["second"]
    assert not found.noising
    # Another prompt's letter is neither B nor D, so their logits differ by half as much: about 0.5, 1 where it is B.
    through = found.kept
    assert (found.score[through] > found.null[through] + 0.3).all()
    assert (found.null[~through] == 0).sum() > 60
    assert "restored" in found.reading()


def test_edge_patching__n_edges_and_threshold_choose_the_circuit():
    prompts = induction_prompts(24).values()
    for options in ({"n_edges": 5}, {"threshold": 0.3}):
        found = edge_patching(induction_model(), *prompts, config=EdgePatchingConfig(**options, **FEW))
        assert kept_edges(found) == CHANGED_EDGES["prompt"]
    found = edge_patching(induction_model(), *prompts, config=EdgePatchingConfig(n_edges=1, **FEW))
    assert found.n_kept == 0  # one edge is no way from the input to the output
    assert found.n_significant == 5
    assert "none lies on a whole way" in found.reading()


def test_edge_patching__clean_into_clean_is_undefined_and_keeps_nothing():
    clean, _, target, foil = random_pairs()
    found = edge_patching(small(), clean, clean, target, foil, config=EdgePatchingConfig(**FEW))
    assert not found.defined
    assert found.n_kept == found.n_significant == 0
    assert np.isnan(found.score).all()
    assert "within noise" in found.reading()


# Oracle
def test_edge_patching__equals_one_run_per_edge():
    """One experiment, one pair, one edge at a time: no copies are shared and nothing is packed."""
    model = small(dtype=torch.float64)
    clean, corrupted, _, _ = random_pairs(n_pairs=3)
    options = {"metric": "distance", "granularity": "qkv"}
    found = edge_patching(model, clean, corrupted, config=EdgePatchingConfig(**options, **FEW))
    pairs = PromptPairs.of(clean, corrupted, None, None, "distance")
    with inference(model):
        graph = residual_graph(model, to_model(clean[:2], model))
        runs = EdgeRuns(model=model, graph=graph, config=PairedConfig(metric="distance", batch_rows=1))
        for k in range(0, len(graph.edges), 5):
            alone = np.ones((1, len(graph.edges)), dtype=bool)
            alone[0, k] = False
            one = runs.score(pairs, alone)
            wanted = (one.clean - one.patched[0]).mean() / (one.clean - one.corrupted).mean()
            assert found.score[k] == pytest.approx(wanted, abs=1e-10)


# Law
@settings(max_examples=20)
@given(st.permutations(range(6)), st.integers(0, 6), st.integers(0, 7))
def test_each_edge_cut__is_the_identity_however_it_is_read(order, start, stop):
    each = EachEdgeCut(np.array(order), 6)
    whole = each[0:6]
    assert each.shape == whole.shape
    assert (whole.sum(axis=1) == 5).all()
    assert ((~whole).argmax(axis=1) == order).all()
    assert np.array_equal(each[start:stop], whole[start:stop])


def test_edge_patching__same_seed_same_bits_and_the_model_as_it_was():
    model = small().train()
    config = EdgePatchingConfig(granularity="head", **FEW)
    first, second = (edge_patching(model, *random_pairs(), config=config) for _ in range(2))
    assert all(np.array_equal(first.arrays()[name], second.arrays()[name], equal_nan=True) for name in first.arrays())
    assert model.training
    assert not any(each._forward_hooks or each._forward_pre_hooks for each in model.modules())


@pytest.mark.slow
def test_edge_patching__untrained_models_and_random_answers_give_nothing_significant():
    """200 models: any edge significant in at most 5 % of them, give or take a binomial 3 sigma."""
    config = EdgePatchingConfig(granularity="head", n_draws=199)
    false = sum(edge_patching(small(k), *random_pairs(k), config=config).n_significant > 0 for k in range(200))
    assert false <= 200 * 0.05 + 3 * np.sqrt(200 * 0.05 * 0.95)


# Bad input
def test_edge_patching__raises_on_models_without_a_stream():
    with pytest.raises(NotFoundError, match="Give components"):
        edge_patching(nn.Linear(4, 4), np.ones((3, 4)), np.zeros((3, 4)), np.zeros(3, int))
    with pytest.raises(NotFoundError, match=r"'layers\.9"):
        edge_patching(small(), *random_pairs(), config=EdgePatchingConfig(components=("layers.9.mlp",)))
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.Sequential(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(8, 3))
    vectors = generator(0, "vectors").normal(size=(2, 4, 5, 8))
    config = EdgePatchingConfig(granularity="block")
    with pytest.raises(ConfigurationError, match="post-norm"):
        edge_patching(model, *vectors, np.zeros(4, int), config=config)


def test_edge_patching__raises_on_pairs_and_answers_that_make_no_sense():
    clean, corrupted, target, foil = random_pairs()
    with pytest.raises(ShapeError, match="sample >= 2"):
        edge_patching(small(), clean[:1], corrupted[:1], target[:1], foil[:1])
    with pytest.raises(ConfigurationError, match="logit_difference needs a target"):
        edge_patching(small(), clean, corrupted)
    with pytest.raises(ConfigurationError, match="must be classes of the output"):
        edge_patching(small(), clean, corrupted, target + 8)
    broken = small()
    broken.unembed.weight.data[0, 0] = torch.inf
    with pytest.raises(DegenerateInputError, match="output must be finite"):
        edge_patching(broken, clean, corrupted, target, foil)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"granularity": "neuron"}, "granularity must be one of qkv, head, block. Got 'neuron'"),
        ({"ablation": "noise"}, "ablation must be one of corrupted, zero, mean, other"),
        ({"direction": "both"}, "direction must be one of noising, denoising"),
        ({"components": "layers"}, "components must be a tuple of globs"),
        ({"n_edges": 3, "threshold": 0.1}, "not both"),
        ({"n_edges": 0}, "n_edges must be at least 1"),
        ({"threshold": 0.0}, "threshold above 0"),
        ({"direction": "denoising", "ablation": "zero"}, "ablation must be corrupted. Got 'zero'"),
    ],
)
def test_edge_patching__config_names_what_is_wrong(options, message):
    config = EdgePatchingConfig()
    for name, value in options.items():  # past the type checker of the tests, which meets some of these first
        object.__setattr__(config, name, value)
    with pytest.raises(ConfigurationError, match=message):
        config.__post_init__()
