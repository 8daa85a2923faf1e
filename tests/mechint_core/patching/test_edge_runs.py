import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from mechint_core.errors import ConfigurationError, DegenerateInputError, ShapeError
from mechint_core.models import inference, samples_to, to_model
from mechint_core.patching import EdgeRuns, PairedConfig, PromptPairs, other_pairs, residual_graph
from mechint_core.random import generator, torch_generator
from mechint_core.synthetic.modular_addition import ModularAdditionTransformer
from mechint_core.synthetic.small_transformer import SmallTransformer

DOUBLE = {"dtype": torch.float64}


def tokens(n_pairs: int = 4, length: int = 5, seed: int = 0) -> PromptPairs:
    clean, corrupted = generator(seed, "tokens").integers(0, 16, size=(2, n_pairs, length))
    return PromptPairs.of(clean, corrupted, None, None, "distance")


def runs_of(model: nn.Module, pairs: PromptPairs, **options) -> EdgeRuns:
    """Of the metric `distance`; options of the graph, and of the config."""
    config = PairedConfig(
        metric="distance",
        **{name: options.pop(name) for name in ("sample_axis", "batch_rows", "cache_bytes") if name in options},
    )
    few = samples_to(to_model(pairs.clean[:2], model), config.sample_axis)
    graph = residual_graph(model, few, sample_axis=config.sample_axis, **options)
    return EdgeRuns(model=model, graph=graph, config=config)


def scores(model: nn.Module, pairs: PromptPairs, kept, *, score_options=None, **options):
    with inference(model):
        runs = runs_of(model, pairs, **options)
        masks = kept(len(runs.graph.edges)) if callable(kept) else kept
        return runs.score(pairs, masks, **(score_options or {}))


def ends(n_edges: int) -> np.ndarray:
    return np.repeat([[True], [False]], n_edges, axis=1)


def some(n_edges: int, n_experiments: int = 6) -> np.ndarray:
    return generator(1, "masks").random((n_experiments, n_edges)) < 0.5


def encoder(*, batch_first: bool) -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 16, norm_first=True, batch_first=batch_first)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    draws = torch_generator(0, "encoder")
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=draws) / math.sqrt(parameter.shape[-1])
    return model


# Known answer
def test_edge_runs__all_edges_kept_is_the_clean_run_bit_by_bit_and_none_the_corrupted_one():
    for options in ({"norm": True, "hidden": 8}, {"norm": True, "n_heads": 4, "n_key_value_heads": 2}, {"hidden": 8}):
        for granularity in ("qkv", "head", "block"):
            for split_input in (False, True):
                found = scores(
                    SmallTransformer(**options), tokens(), ends, granularity=granularity, split_input=split_input
                )
                assert (found.patched[0] == found.clean).all()
                # float32: sums of the stream in another order.
                np.testing.assert_allclose(found.patched[1], found.corrupted, rtol=1e-5)


def test_edge_runs__denoising_starts_at_the_corrupted_run_and_ends_at_the_clean_one():
    found = scores(SmallTransformer(norm=True, hidden=8, **DOUBLE), tokens(), ends, score_options={"denoising": True})
    assert (found.patched[0] == found.corrupted).all()
    np.testing.assert_allclose(found.patched[1], found.clean, atol=1e-12)


def test_edge_runs__works_where_components_read_and_write_other_shapes():
    """Modular addition: attention reads three positions and writes one."""
    draws = generator(0, "sums")
    a, b, c, d = draws.integers(0, 11, size=(4, 6))
    clean, corrupted = (np.stack([one, other, np.full(6, 11)], axis=1) for one, other in ((a, b), (c, d)))
    pairs = PromptPairs.of(clean, corrupted, None, None, "distance")
    for granularity in ("qkv", "head", "block"):
        for split_input in (False, True):
            model = ModularAdditionTransformer(prime=11, width=16, hidden=8).double()
            found = scores(model, pairs, ends, granularity=granularity, split_input=split_input)
            np.testing.assert_allclose(found.patched, [found.clean, found.corrupted], atol=1e-12)


def test_edge_runs__works_on_pytorchs_own_attention_in_both_layouts():
    clean, corrupted = generator(0, "vectors").normal(size=(2, 3, 4, 8))
    pairs = PromptPairs.of(clean, corrupted, None, None, "distance")
    for granularity in ("head", "block"):
        both = [
            scores(
                encoder(batch_first=sample_axis == 0),
                pairs,
                lambda n: np.concatenate([ends(n), some(n)]),
                granularity=granularity,
                sample_axis=sample_axis,
                score_options={},
            )
            for sample_axis in (0, 1)
        ]
        for found in both:
            assert (found.patched[0] == found.clean).all()
            np.testing.assert_allclose(found.patched[1], found.corrupted, rtol=1e-5)
        # The output is flattened after samples are brought to the front, so both layouts have the same distance.
        np.testing.assert_allclose(both[0].patched, both[1].patched, rtol=1e-4)


def test_edge_runs__zero_and_mean_are_what_they_say():
    """Three edges: input to mlp, input to output, mlp to output."""
    model = LinearResidual()
    pairs = PromptPairs.of(*generator(0, "linear").normal(size=(2, 5, 3)), None, None, "distance")
    clean, corrupted = torch.from_numpy(pairs.clean), torch.from_numpy(pairs.corrupted)
    whole = model(clean)

    def distance(values):
        return (values - whole).square().mean(dim=1).detach().numpy()

    with inference(model):
        runs = runs_of(model, pairs)
        assert runs.graph.edges == (("input", "mlp"), ("input", "output"), ("mlp", "output"))
        masks = ~np.eye(3, dtype=bool)
        zero = runs.score(pairs, masks, ablation="zero").patched
        mean = runs.score(pairs, masks, ablation="mean").patched
        other = runs.score(pairs, masks, ablation="other").patched
        reference = runs.score(pairs, masks, ablation="mean", reference=pairs.at(slice(0, 2))).patched
    read, average = model.unembed, corrupted.mean(dim=0, keepdim=True)
    np.testing.assert_allclose(zero[0], distance(read(clean + model.mlp(torch.zeros(5, 3).double()))), atol=1e-12)
    np.testing.assert_allclose(zero[1], distance(read(model.mlp(clean))), atol=1e-12)
    np.testing.assert_allclose(zero[2], distance(read(clean)), atol=1e-12)
    np.testing.assert_allclose(mean[0], distance(read(clean + model.mlp(average))), atol=1e-12)
    np.testing.assert_allclose(mean[1], distance(read(average + model.mlp(clean))), atol=1e-12)
    np.testing.assert_allclose(reference[1], distance(read(corrupted[:2].mean(dim=0) + model.mlp(clean))), atol=1e-12)
    swapped = clean[other_pairs(5, 0)]
    np.testing.assert_allclose(other[1], distance(read(swapped + model.mlp(clean))), atol=1e-12)


class LinearResidual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mlp = nn.Linear(3, 3)
        self.unembed = nn.Linear(3, 2)
        draws = torch_generator(0, "linear residual")
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=draws)
        self.double()

    def forward(self, x):
        return self.unembed(x + self.mlp(x))


# Oracle
def by_hand(model: SmallTransformer, batch, kept, donor, *, zero: bool = False):
    """Every receiver with a residual stream of its own, summed from the writes that its edges carry."""
    writes = {"input": model.embed(batch)}
    biases = 0  # of attentions: no head's, so the input's

    def read(receiver):
        carried = [writes[s] if donor is None or (s, receiver) in kept else donor[s] for s in writes]
        return sum(carried) + (0 if zero and ("input", receiver) not in kept else biases)

    for layer, block in enumerate(model.layers):
        attention, name = block.attention, f"layers.{layer}.attention"
        width, made = attention.head_width, {}
        for head in range(attention.n_heads):
            shared = head * attention.n_key_value_heads // attention.n_heads
            parts = []
            for port, index in (("query", head), ("key", shared), ("value", shared)):
                projection = getattr(attention, port)
                rows = slice(index * width, (index + 1) * width)
                given = block.attention_norm(read(f"{name}.{head}:{port}"))
                parts.append(given @ projection.weight[rows].T + projection.bias[rows])
            query, key, value = parts
            logits = query @ key.mT / math.sqrt(width)
            later = torch.ones(logits.shape[-2:], dtype=torch.bool).triu(1)
            pattern = logits.masked_fill(later, -math.inf).softmax(dim=-1)
            made[f"{name}.{head}"] = pattern @ value @ attention.output.weight[:, head * width : (head + 1) * width].T
        writes |= made
        biases = biases + attention.output.bias
        if block.has_mlp:
            writes[f"layers.{layer}.mlp"] = block.mlp(block.mlp_norm(read(f"layers.{layer}.mlp")))
    return model.unembed(model.final_norm(read("output"))), writes


@pytest.mark.parametrize("options", [{"hidden": 12}, {"n_heads": 4, "n_key_value_heads": 2, "hidden": 12}])
@torch.no_grad()
def test_edge_runs__equals_a_forward_written_by_hand_with_a_stream_for_every_receiver(options):
    model, pairs = SmallTransformer(norm=True, n_layers=3, **options, **DOUBLE), tokens()
    clean, corrupted = torch.from_numpy(pairs.clean), torch.from_numpy(pairs.corrupted)
    with inference(model):
        runs = runs_of(model, pairs, batch_rows=7)
        edges = runs.graph.edges
        masks = np.concatenate([~np.eye(len(edges), dtype=bool)[::11], some(len(edges))])
        found = runs.score(pairs, masks)
        zero = runs.score(pairs, masks, ablation="zero")
        whole, _ = by_hand(model, clean, None, None)
        _, donor = by_hand(model, corrupted, None, None)
        nothing = {name: torch.zeros_like(write) for name, write in donor.items()}
        for k, mask in enumerate(masks):
            kept = {edge for edge, keep in zip(edges, mask, strict=True) if keep}
            for donors, scored in ((donor, found), (nothing, zero)):
                answer, _ = by_hand(model, clean, kept, donors, zero=donors is nothing)
                wanted = (answer - whole).flatten(1).square().mean(dim=1)
                np.testing.assert_allclose(scored.patched[k], wanted, atol=1e-12)


@pytest.mark.oracle
def test_edge_runs__ends_are_exact_on_the_models_of_transformers():
    import transformers

    sizes = {"vocab_size": 17, "bos_token_id": 0, "eos_token_id": 0}
    wide = {"hidden_size": 16, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 4, **sizes}
    llama = transformers.LlamaConfig(**wide, num_key_value_heads=2)
    neox = transformers.GPTNeoXConfig(**wide)
    gpt2 = transformers.GPT2Config(n_layer=2, n_head=2, n_embd=8, n_positions=8, **sizes)
    for model, granularities in (
        (transformers.GPT2LMHeadModel(gpt2), ("qkv", "head", "block")),
        (transformers.LlamaForCausalLM(llama), ("qkv", "head", "block")),
        (transformers.GPTNeoXForCausalLM(neox), ("head", "block")),
    ):
        for granularity in granularities:
            found = scores(model, tokens(), lambda n: np.concatenate([ends(n), some(n)]), granularity=granularity)
            assert (found.patched[0] == found.clean).all()
            np.testing.assert_allclose(found.patched[1], found.corrupted, rtol=1e-4)  # float32, outputs near 0


# Law
@settings(max_examples=4)
@given(
    st.integers(2, 40),
    st.integers(60_000, 300_000),
    st.sampled_from(["qkv", "head", "block"]),
    st.sampled_from(["corrupted", "mean", "other"]),
)
def test_edge_runs__do_not_depend_on_how_they_are_packed(batch_rows, cache_bytes, granularity, ablation):
    model, pairs = SmallTransformer(norm=True, hidden=8, n_key_value_heads=1, **DOUBLE), tokens(5, 4)
    options = {"granularity": granularity, "score_options": {"ablation": ablation}}
    whole = scores(model, pairs, some, **options)
    parts = scores(model, pairs, some, batch_rows=batch_rows, cache_bytes=cache_bytes, **options)
    np.testing.assert_allclose(parts.patched, whole.patched, atol=1e-12)
    np.testing.assert_allclose(parts.clean, whole.clean, atol=1e-12)


def test_edge_runs__an_edge_half_kept_lies_between_where_the_model_is_linear_in_it():
    model = LinearResidual()
    pairs = PromptPairs.of(*generator(0, "linear").normal(size=(2, 5, 3)), None, None, "distance")
    with inference(model):
        runs = runs_of(model, pairs)
        masks = np.array([[1.0, 0.0, 1.0], [1.0, 0.5, 1.0]])
        whole, half = runs.score(pairs, masks).patched
    np.testing.assert_allclose(half, whole / 4, atol=1e-12)  # a squared distance


def test_edge_runs__coarser_graphs_are_finer_ones_with_edges_cut_together():
    """A head is cut from a receiver if all its edges into query, key and value are."""
    model, pairs = SmallTransformer(norm=True, hidden=8, n_key_value_heads=1, **DOUBLE), tokens()
    with inference(model):
        fine = runs_of(model, pairs, granularity="qkv")
        coarse = runs_of(model, pairs, granularity="head")
        block = runs_of(model, pairs, granularity="block")
        masks = some(len(block.graph.edges))
        of_block = {edge: k for k, edge in enumerate(block.graph.edges)}

        def spread(edges):
            def whole(name):
                node = name.partition(":")[0]
                return node.rpartition(".")[0] if node.rpartition(".")[2].isdigit() else node

            return np.stack([masks[:, of_block[whole(one), whole(other)]] for one, other in edges], axis=1)

        wanted = block.score(pairs, masks).patched
        for runs in (coarse, fine):
            np.testing.assert_allclose(runs.score(pairs, spread(runs.graph.edges)).patched, wanted, atol=1e-12)


def test_edge_runs__leave_no_hook_behind_not_even_after_an_exception(monkeypatch):
    model, pairs = SmallTransformer(norm=True, hidden=8), tokens()

    def hooks():
        return sum(len(each._forward_hooks) + len(each._forward_pre_hooks) for each in model.modules())

    scores(model, pairs, some)
    assert hooks() == 0

    def broken(*_):
        raise DegenerateInputError("on purpose")

    with inference(model):
        runs = runs_of(model, pairs)
        monkeypatch.setattr(model.layers[1].mlp.hidden, "forward", broken)
        with pytest.raises(DegenerateInputError, match="on purpose"):
            runs.score(pairs, some(len(runs.graph.edges)))
    assert hooks() == 0


@pytest.mark.parametrize(("cache_bytes", "fits"), [(2**28, True), (20_000, False)])
def test_edge_runs__a_scorer_gives_the_same_bits_and_runs_pairs_once_if_they_fit_in_memory(cache_bytes, fits):
    model, pairs = SmallTransformer(norm=True, hidden=8), tokens()
    rows = list[int]()
    model.register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))
    with inference(model):
        runs = runs_of(model, pairs, cache_bytes=cache_bytes)
        masks = some(len(runs.graph.edges), 1)
        wanted = runs.score(pairs, masks).patched
        score = runs.scorer(pairs)
        rows.clear()
        found = score(masks).patched
    np.testing.assert_array_equal(found, wanted)
    assert (sum(rows) == len(pairs)) == fits  # that of the experiment


# Bad input
def test_edge_runs__raises_on_masks_and_ablations_that_make_no_sense():
    model, pairs = SmallTransformer(), tokens()
    with inference(model):
        runs = runs_of(model, pairs)
        n_edges = len(runs.graph.edges)
        with pytest.raises(ShapeError, match=rf"with {n_edges} edges. Got \(2, 3\)"):
            runs.score(pairs, np.ones((2, 3), dtype=bool))
        with pytest.raises(ConfigurationError, match=r"must be corrupted or other. Got 'zero'"):
            runs.score(pairs, ends(n_edges), ablation="zero", denoising=True)
