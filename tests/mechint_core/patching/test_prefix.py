"""Starting experiments in the middle of a model."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from mechint_core.errors import ShapeError
from mechint_core.models import Patch, capture, inference, match_sites, patched, samples_to
from mechint_core.patching import (
    PairedConfig,
    PairRuns,
    PromptPairs,
    Shift,
    Slice,
    attention_heads,
    find_prefix,
    usable_sites,
)
from mechint_core.random import generator, torch_generator
from mechint_core.synthetic.linear_network import LinearNetwork
from mechint_core.synthetic.small_transformer import SmallTransformer


def filled(model):
    draws = torch_generator(0, "test model")
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.xavier_normal_(parameter, generator=draws)
    return model


class Blocks(nn.Module):
    """Linear blocks one after the other, with what a subclass adds."""

    def __init__(self, n_blocks=4, width=6):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(width, width), nn.Tanh()) for _ in range(n_blocks))
        self.readout = nn.Linear(width, 3)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.readout(x)


class Skipping(Blocks):
    """What the second block gives reaches the output by itself."""

    def forward(self, x):
        given = []
        for block in self.blocks:
            x = block(x)
            given.append(x)
        return self.readout(x + given[1])


class Twice(Blocks):
    """The first block runs again at the end."""

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.readout(self.blocks[0](x))


class InPlace(Blocks):
    """Blocks are given tensors that are changed afterwards."""

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
            x.relu_()
        return self.readout(x.mul_(2))


class Recurrent(nn.Module):
    """Stacked recurrent layers, each with a state beside its output."""

    def __init__(self, *, batch_first, n_layers=3):
        super().__init__()
        self.batch_first = batch_first
        self.layers = nn.ModuleList(nn.LSTM(4, 4, batch_first=batch_first) for _ in range(n_layers))
        self.readout = nn.Linear(4, 3)

    def forward(self, x):
        for layer in self.layers:
            x, _ = layer(x)
        return self.readout(x)


class Biased(nn.Module):
    """The first block makes a bias that all blocks use: of the rows, or not."""

    class Block(nn.Module):
        def __init__(self, first, of_rows):
            super().__init__()
            self.first, self.of_rows, self.linear = first, of_rows, nn.Linear(4, 4)

        def forward(self, x, bias=None):
            if self.first:
                bias = x * 2 if self.of_rows else self.linear.bias * 2
            return (self.linear(x) + bias).tanh(), bias

    def __init__(self, *, of_rows):
        super().__init__()
        self.blocks = nn.ModuleList(self.Block(i == 0, of_rows) for i in range(3))

    def forward(self, x):
        bias = None
        for block in self.blocks:
            x, bias = block(x, bias)
        return x


def tied(n_blocks=4):
    """Blocks of their own that share their weights."""
    model = Blocks(n_blocks)
    for block in model.blocks[1:]:
        block[0].weight = model.blocks[0][0].weight
    return model


def encoder(*, batch_first):
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=batch_first, norm_first=True)
    return nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)


def gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=3, n_head=4, vocab_size=16, n_positions=8))


def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=16,
        intermediate_size=32,
    )
    return LlamaForCausalLM(config)


# name: (model, shape of one input or None for tokens, sample axis, blocks)
MODELS = {
    "multilayer perceptron": (lambda: Blocks(), (6,), 0, 4),
    "sequential": (lambda: nn.Sequential(*(nn.Linear(6, 6) for _ in range(5))), (6,), 0, 5),
    "in place": (lambda: InPlace(), (6,), 0, 2),
    "tied weights": (tied, (6,), 0, 4),
    "encoder": (lambda: encoder(batch_first=True), (5, 8), 0, 3),
    "encoder, positions first": (lambda: encoder(batch_first=False), (5, 8), 1, 3),
    "decoder": (lambda: SmallTransformer(n_layers=4, hidden=8, norm=True), None, 0, 4),
    "grouped queries": (lambda: SmallTransformer(n_layers=3, n_heads=4, n_key_value_heads=2), None, 0, 3),
    "recurrent": (lambda: Recurrent(batch_first=True), (5, 4), 0, 3),
    "recurrent, positions first": (lambda: Recurrent(batch_first=False), (5, 4), 1, 3),
    "skip connection": (lambda: Skipping(), (6,), 0, 4),
    "block used twice": (lambda: Twice(), (6,), 0, 2),
    "bias made by the first block": (lambda: Biased(of_rows=False), (4,), 0, 3),
    "bias of the rows": (lambda: Biased(of_rows=True), (4,), 0, 3),
}
OF_TRANSFORMERS = {"gpt2": (gpt2, None, 0, 3), "llama": (llama, None, 0, 3)}


def inputs(shape, n=30, seed=0):
    draws = generator(seed, "prefix inputs")
    if shape is None:
        return draws.integers(0, 16, size=(2, n, 5))
    return draws.normal(size=(2, n, *shape)).astype(np.float32)


def pair_runs(model, clean, corrupted, *, sample_axis, sites=("*", "*:input"), **options):
    config = PairedConfig(metric="distance", sample_axis=sample_axis, **options)
    few = samples_to(torch.from_numpy(clean[:2]), sample_axis)
    usable = usable_sites(model, few, sites, sample_axis=sample_axis, position=None)
    runs = PairRuns(model=model, config=config, sites=usable.sites, bytes_per_row=usable.bytes_per_row)
    return runs, PromptPairs(clean, corrupted)


def one_by_one(model, clean, corrupted, sites, sample_axis):
    clean, corrupted = (samples_to(torch.from_numpy(each), sample_axis) for each in (clean, corrupted))
    found = []
    with capture(model, sites) as seen:
        wanted = samples_first_output(model(clean), sample_axis)
    for site in sites:
        with patched(model, [Patch(site, seen[site])]):
            output = samples_first_output(model(corrupted), sample_axis)
        found.append((output - wanted).double().square().flatten(1).mean(1).numpy())
    return np.array(found)


def samples_first_output(output, sample_axis):
    return getattr(output, "logits", output).movedim(sample_axis, 0)


def same_as_one_by_one(build, shape, sample_axis):
    model = filled(build())
    clean, corrupted = inputs(shape)
    with inference(model):
        runs, pairs = pair_runs(model, clean, corrupted, sample_axis=sample_axis)
        scores = runs.score_parts(pairs, [(site, Slice()) for site in runs.sites])
        wanted = one_by_one(model, clean, corrupted, runs.sites, sample_axis)
    # float32 forwards in batches of other sizes, of outputs of order 1.
    np.testing.assert_allclose(scores.patched, wanted, rtol=0, atol=1e-6)
    return runs.prefix(torch.empty(0))


def hooks_of(model):
    return sum(len(each._forward_hooks) + len(each._forward_pre_hooks) for each in model.modules())


def forwards_of(model):
    return sum("forward" in vars(each) for each in model.modules())


# Known answer
def test_prefix__knows_which_blocks_are_done_before_a_site_runs():
    model = SmallTransformer(n_layers=3, hidden=8)
    tokens = torch.from_numpy(inputs(None)[0])
    with inference(model):
        prefix = find_prefix(model, tokens[:2], tokens[2:5], sample_axis=0)
    assert prefix.chain.blocks == ("layers.0", "layers.1", "layers.2")
    wanted = {
        "embed": 0,
        "layers.0:input": 0,
        "layers.0.mlp": 0,
        "layers.0": 1,  # what it gave is at hand: only what follows is computed
        "layers.1.attention.output:input": 1,
        "layers.1": 2,
        "unembed": 3,
        "no such site": 0,
    }
    assert {site: prefix.latest([site]) for site in wanted} == wanted
    assert prefix.latest(["layers.2.mlp", "layers.1.mlp"]) == 1


def test_prefix__does_not_compute_what_is_before_the_edits():
    model = SmallTransformer(n_layers=4, hidden=8)
    clean, corrupted = inputs(None, n=70)
    calls = dict.fromkeys(range(4), 0)

    def count(i):
        def run(x):
            calls[i] += len(x)
            return type(model.layers[i]).forward(model.layers[i], x)

        return run

    with inference(model):
        runs, pairs = pair_runs(model, clean, corrupted, sample_axis=0, sites=("layers.?.mlp",))
        block = next(runs.blocks(pairs))
        experiments = [[Shift(f"layers.{i}.mlp", torch.ones(16))] for i in range(4)]
        for i in range(4):
            model.layers[i].forward = count(i)
        runs.score_experiments(block, experiments)
    base, few = 70, 6 * 3  # one run for the cache; a few rows to try each boundary
    for i in range(4):
        assert base + 70 * (i + 1) <= calls[i] <= base + 70 * (i + 1) + few


@pytest.mark.parametrize(("build", "boundaries"), [(Skipping, [True, True, False, False]), (Blocks, [True] * 4)])
def test_prefix__refuses_the_boundaries_that_something_else_crosses(build, boundaries):
    """What the second block gives is needed to the end: it must be computed, or be what is at hand."""
    model = filled(build())
    x = torch.from_numpy(inputs((6,))[0])
    with inference(model):
        prefix = find_prefix(model, x[:2], x[2:5], sample_axis=0)
        assert [prefix.allows(start) for start in (1, 2, 3, 4)] == boundaries


@pytest.mark.parametrize(("of_rows", "allowed"), [(True, False), (False, True)])
def test_prefix__keeps_what_a_block_gives_beside_its_activation_if_it_is_the_same_for_all_rows(of_rows, allowed):
    model = filled(Biased(of_rows=of_rows))
    x = torch.from_numpy(inputs((4,))[0])
    with inference(model):
        prefix = find_prefix(model, x[:2], x[2:5], sample_axis=0)
        assert prefix.allows(1) == allowed


# Oracle
@pytest.mark.parametrize(("build", "shape", "sample_axis", "n_blocks"), MODELS.values(), ids=list(MODELS))
def test_score_parts__equals_the_one_by_one_loop_on_every_kind_of_model(build, shape, sample_axis, n_blocks):
    prefix = same_as_one_by_one(build, shape, sample_axis)
    assert n_blocks == (0 if prefix is None else len(prefix.chain.blocks))


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("build", "shape", "sample_axis", "n_blocks"), OF_TRANSFORMERS.values(), ids=list(OF_TRANSFORMERS)
)
def test_score_parts__equals_the_one_by_one_loop_on_transformers(build, shape, sample_axis, n_blocks):
    prefix = same_as_one_by_one(build, shape, sample_axis)
    assert len(prefix.chain.blocks) == n_blocks
    assert all(prefix._allowed.values())  # nothing else than the residual stream leaves their blocks
    assert len(prefix._allowed) > 1


# Law
@settings(max_examples=8)
@given(st.integers(1, 16), st.integers(8, 40), st.integers(5_000, 60_000), st.booleans())
def test_score_parts__does_not_depend_on_how_it_is_packed_and_started(n_pairs, batch_rows, cache_bytes, by_head):
    model = SmallTransformer(n_layers=3, hidden=8, norm=True)
    clean, corrupted = inputs(None, n=n_pairs)
    with inference(model):
        heads = attention_heads(model)
        sites = [each.site for each in heads] if by_head else ["layers.?.mlp", "layers.?"]
        whole, pairs = pair_runs(model, clean, corrupted, sample_axis=0, sites=sites)
        packed, _ = pair_runs(
            model, clean, corrupted, sample_axis=0, sites=sites, batch_rows=batch_rows, cache_bytes=cache_bytes
        )
        units = [slice(0, 8), slice(8, 16)] if by_head else [None]
        parts = [(site, Slice(units=each)) for site in whole.sites for each in units]
        one, other = whole.score_parts(pairs, parts), packed.score_parts(pairs, parts)
    np.testing.assert_allclose(one.patched, other.patched, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "name", ["encoder", "encoder, positions first", "decoder", "recurrent", "multilayer perceptron"]
)
def test_score_parts__clean_into_clean_changes_no_bit(name):
    build, shape, sample_axis, _ = MODELS[name]
    model = filled(build())
    clean, _ = inputs(shape)
    with inference(model):
        runs, pairs = pair_runs(model, clean, clean, sample_axis=sample_axis, batch_rows=30)
        # Not what attention is given: its queries would be another tensor than its keys, which PyTorch computes apart.
        sites = [site for site in runs.sites if not site.endswith("self_attn:input")]
        scores = runs.score_parts(pairs, [(site, Slice()) for site in sites])
    assert (scores.patched == 0).all()  # passes as large as the block: not even rounding differs


def test_score_parts__leaves_the_model_as_it_was_also_after_an_error():
    model = SmallTransformer(n_layers=3)
    model.train()
    clean, corrupted = inputs(None, n=70)
    state = torch.get_rng_state()
    with inference(model):
        runs, pairs = pair_runs(model, clean, corrupted, sample_axis=0, sites=match_sites(model, ["layers.?"]))
        block = runs.block(pairs, np.arange(70))
        wrong = [[Shift("layers.0", torch.ones(16))], [Shift("layers.2.attention", torch.ones(3))]]
        with pytest.raises((ShapeError, RuntimeError)):
            runs.score_experiments(block, wrong)
        assert hooks_of(model) == forwards_of(model) == 0
        runs.score_experiments(block, wrong[:1] * 3)
    assert hooks_of(model) == forwards_of(model) == 0
    assert all(each.training for each in model.modules())
    assert torch.equal(torch.get_rng_state(), state)


# Bad input
def test_find_prefix__finds_none_where_no_block_follows_another():
    twice = Twice()
    for block in twice.blocks:
        block.append(block[0])  # their own parts run twice, too
    for model in (nn.Linear(6, 3), LinearNetwork((1.0, 2.0)).float(), twice):
        x = torch.from_numpy(inputs((6,))[0])
        with inference(model):
            x = torch.from_numpy(inputs((8,))[0]) if isinstance(model, LinearNetwork) else x
            assert find_prefix(model, x[:2], x[2:5], sample_axis=0) is None
