import numpy as np
import pytest
import torch
from torch import nn

from mechint_core.models import differentiation, inference, samples_to, to_model
from mechint_core.patching import EdgeRuns, PairedConfig, PromptPairs, edge_gradients, is_input, residual_graph
from mechint_core.random import generator, torch_generator
from mechint_core.synthetic.modular_addition import ModularAdditionTransformer
from mechint_core.synthetic.small_transformer import SmallTransformer

TARGET = np.array([0, 3, 5, 1])
DOUBLE = {"dtype": torch.float64}


def tokens() -> PromptPairs:
    clean, corrupted = generator(0, "tokens").integers(0, 11, size=(2, 4, 5))
    return PromptPairs.of(clean, corrupted, TARGET, TARGET + 1, "logit_difference")


def runs_of(model: nn.Module, pairs: PromptPairs, *, sample_axis: int = 0, cache_bytes: int = 2**28, **options):
    with inference(model):
        few = samples_to(to_model(pairs.clean[:2], model), sample_axis)
        graph = residual_graph(model, few, sample_axis=sample_axis, **options)
    return EdgeRuns(model=model, graph=graph, config=PairedConfig(sample_axis=sample_axis, cache_bytes=cache_bytes))


def effects(runs: EdgeRuns, pairs: PromptPairs, n_steps: int = 0, **options) -> np.ndarray:
    steps = [((k + 0.5) / n_steps, 1 / n_steps) for k in range(n_steps)] or [(0.0, 1.0)]
    with differentiation(runs.model):
        found = edge_gradients(runs, pairs, steps=steps, **options)
    return found.patched - (found.corrupted if options.get("denoising") else found.clean)


def slopes(runs: EdgeRuns, pairs: PromptPairs, step: float = 1e-4, **options) -> np.ndarray:
    """Change of the metric per share of each edge that is cut, by central differences."""
    one = step * np.eye(len(runs.graph.edges))
    with inference(runs.model):
        more, less = (runs.score(pairs, 1 + sign * one, **options).patched for sign in (-1, 1))
    return (more - less) / (2 * step)


def encoder(*, batch_first: bool) -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 16, norm_first=True, batch_first=batch_first)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).double()
    draws = torch_generator(0, "encoder")
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=draws, dtype=torch.float64) / 3
    return model


# Known answer
@pytest.mark.parametrize("granularity", ["qkv", "head", "block"])
def test_edge_gradients__are_exact_for_edges_into_a_linear_read_out(granularity):
    model, pairs = SmallTransformer(hidden=8, n_key_value_heads=1, **DOUBLE), tokens()
    runs = runs_of(model, pairs, granularity=granularity)
    into_output = [k for k, (_, receiver) in enumerate(runs.graph.edges) if receiver == "output"]
    with inference(model):
        found = runs.score(pairs, ~np.eye(len(runs.graph.edges), dtype=bool))
    np.testing.assert_allclose(
        effects(runs, pairs)[into_output], (found.patched - found.clean)[into_output], atol=1e-12
    )


def test_edge_gradients__are_exact_for_every_edge_of_a_linear_network():
    """Mlps with the identity in place of their nonlinearity; one edge at a time is linear in that edge."""
    model, pairs = SmallTransformer(hidden=8, activation="identity", **DOUBLE), tokens()
    for layer in range(2):
        model.attention_of(layer).output.weight.data.zero_()
    runs = runs_of(model, pairs)
    with inference(model):
        found = runs.score(pairs, ~np.eye(len(runs.graph.edges), dtype=bool))
    np.testing.assert_allclose(effects(runs, pairs), found.patched - found.clean, atol=1e-12)
    np.testing.assert_allclose(effects(runs, pairs, n_steps=3), found.patched - found.clean, atol=1e-12)


# Oracle
@pytest.mark.parametrize("options", [{"hidden": 8}, {"n_heads": 4, "n_key_value_heads": 2}])
@pytest.mark.parametrize("granularity", ["qkv", "head", "block"])
def test_edge_gradients__are_the_slope_of_the_metric_in_the_share_of_an_edge_that_is_cut(options, granularity):
    model, pairs = SmallTransformer(norm=True, **options, **DOUBLE), tokens()
    for split_input in (False, True):
        runs = runs_of(model, pairs, granularity=granularity, split_input=split_input)
        # Central differences of step 1e-4 are off by about 1e-8.
        np.testing.assert_allclose(effects(runs, pairs), slopes(runs, pairs), atol=1e-7)


def test_edge_gradients__are_that_slope_for_other_donors_shapes_and_layouts():
    model, pairs = SmallTransformer(norm=True, hidden=8, **DOUBLE), tokens()
    runs = runs_of(model, pairs)
    for options in ({"ablation": "zero"}, {"ablation": "mean"}, {"ablation": "other"}, {"denoising": True}):
        np.testing.assert_allclose(effects(runs, pairs, **options), slopes(runs, pairs, **options), atol=1e-7)
    sums = np.concatenate([generator(0, "sums").integers(0, 11, size=(2, 4, 2)), np.full((2, 4, 1), 11)], axis=2)
    pairs = PromptPairs.of(*sums, TARGET, TARGET + 1, "logit_difference")
    runs = runs_of(ModularAdditionTransformer(prime=11, width=16, hidden=8).double(), pairs, split_input=True)
    np.testing.assert_allclose(effects(runs, pairs), slopes(runs, pairs), atol=1e-7)
    vectors = generator(0, "vectors").normal(size=(2, 4, 3, 8))
    pairs = PromptPairs.of(*vectors, TARGET, TARGET + 1, "logit_difference")
    for sample_axis in (0, 1):
        model = encoder(batch_first=sample_axis == 0)
        runs = runs_of(model, pairs, sample_axis=sample_axis, granularity="head")
        np.testing.assert_allclose(effects(runs, pairs), slopes(runs, pairs), rtol=1e-5, atol=1e-6)


@pytest.mark.oracle
def test_edge_gradients__are_that_slope_on_models_of_transformers():
    import transformers

    sizes = {"vocab_size": 17, "bos_token_id": 0, "eos_token_id": 0}
    gpt2 = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_layer=2, n_head=2, n_embd=8, n_positions=8, **sizes))
    pairs = tokens()
    for granularity in ("qkv", "head"):
        runs = runs_of(gpt2.double(), pairs, granularity=granularity)
        np.testing.assert_allclose(effects(runs, pairs), slopes(runs, pairs), atol=1e-7)


# Law
def test_edge_gradients__integrated_sum_to_the_change_of_the_metric_over_the_cut_at_the_input():
    model, pairs = SmallTransformer(norm=True, hidden=8, **DOUBLE), tokens()
    runs = runs_of(model, pairs)
    cut = np.array([is_input(sender) for sender, _ in runs.graph.edges])
    with inference(model):
        ends = runs.score(pairs, np.ones((1, len(cut)), dtype=bool))
    change = ends.corrupted - ends.clean
    errors = [np.abs(effects(runs, pairs, n_steps=n)[cut].sum(axis=0) - change).max() for n in (1, 5, 40)]
    assert errors[0] > 5 * errors[1] > 25 * errors[2]  # midpoints: quadratic in the step
    assert errors[2] < 1e-3 * np.abs(change).max()


def test_edge_gradients__do_not_depend_on_blocks_and_leave_no_trace():
    model, pairs = SmallTransformer(norm=True, hidden=8, **DOUBLE), tokens()
    whole = effects(runs_of(model, pairs), pairs, n_steps=2)
    parts = effects(runs_of(model, pairs, cache_bytes=200_000), pairs, n_steps=2)
    np.testing.assert_allclose(parts, whole, atol=1e-12)
    assert not any(each._forward_hooks or each._forward_pre_hooks for each in model.modules())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
