import pytest
import torch
from torch import nn

from mechint_core.errors import ConfigurationError, NotFoundError, ShapeError
from mechint_core.models import inference
from mechint_core.patching import is_input, node_of, residual_graph
from mechint_core.synthetic.modular_addition import ModularAdditionTransformer
from mechint_core.synthetic.small_transformer import SmallTransformer

TOKENS = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8], [9, 1, 2, 3]])


def graph_of(model: nn.Module, inputs: torch.Tensor = TOKENS, **options):
    with inference(model):
        return residual_graph(model, inputs, **options)


class Parallel(nn.Module):
    """Attention and mlp of a block read the same stream: no edge between them."""

    def __init__(self, *, scale: float = 1.0) -> None:
        super().__init__()
        self.model = SmallTransformer(hidden=8, norm=True)
        self.layers, self.scale = self.model.layers, scale

    def forward(self, tokens):
        x = self.model.embed(tokens)
        for layer in self.layers:
            x = self.scale * x + layer.attention(layer.attention_norm(x)) + layer.mlp(layer.mlp_norm(x))
        return self.model.unembed(self.model.final_norm(x))


class Shared(nn.Module):
    """The same mlp twice."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = nn.Linear(4, 4)

    def forward(self, x):
        x = x + self.mlp(x)
        return x + self.mlp(x)


# Known answer
def test_residual_graph__lists_every_edge_of_a_small_transformer():
    model = SmallTransformer(n_layers=2, n_heads=2, hidden=8, norm=True)
    graph = graph_of(model)
    heads = [f"layers.{layer}.attention.{head}" for layer in (0, 1) for head in (0, 1)]
    assert graph.senders == ("input", *heads[:2], "layers.0.mlp", *heads[2:], "layers.1.mlp")
    assert graph.receivers[:3] == tuple(f"layers.0.attention.0:{port}" for port in ("query", "key", "value"))
    assert graph.receivers[-1] == "output"
    # 6 ports read 1 sender, the mlp 3, the next 6 ports 4, the mlp 6, the output 7.
    assert len(graph.edges) == len(set(graph.edges)) == 6 + 3 + 24 + 6 + 7
    assert ("layers.0.mlp", "layers.1.attention.1:value") in graph.edges
    assert [reader.site for reader in graph.readers] == [
        "layers.0.attention_norm:input",
        "layers.0.mlp_norm:input",
        "layers.1.attention_norm:input",
        "layers.1.mlp_norm:input",
        "final_norm:input",
    ]


@pytest.mark.parametrize(("granularity", "n_edges"), [("qkv", 46), ("head", 2 + 3 + 8 + 6 + 7), ("block", 15)])
def test_residual_graph__granularity_sets_what_a_node_is(granularity, n_edges):
    assert len(graph_of(SmallTransformer(hidden=8), granularity=granularity).edges) == n_edges


def test_residual_graph__names_grouped_heads_by_the_head_that_attends():
    graph = graph_of(SmallTransformer(n_heads=4, n_key_value_heads=2))
    assert "layers.0.attention.3:key" in graph.receivers


def test_residual_graph__splits_the_input_where_a_receiver_has_positions():
    graph = graph_of(
        ModularAdditionTransformer(prime=11, width=16, hidden=8),
        torch.tensor([[1, 2, 11], [3, 4, 11]]),
        granularity="block",
        split_input=True,
    )
    assert graph.edges == (
        ("input@0", "attention"),
        ("input@1", "attention"),
        ("input@2", "attention"),
        ("input", "mlp"),
        ("attention", "mlp"),
        ("input", "output"),
        ("attention", "output"),
        ("mlp", "output"),
    )


def test_residual_graph__measures_that_parallel_parts_do_not_read_each_other():
    graph = graph_of(Parallel(), granularity="block")
    assert ("model.layers.0.attention", "model.layers.0.mlp") not in graph.edges
    assert ("model.layers.0.attention", "model.layers.1.mlp") in graph.edges
    assert ("model.layers.0.mlp", "output") in graph.edges


def test_residual_graph__takes_encoder_layers_apart_whose_norms_come_first():
    layer = nn.TransformerEncoderLayer(8, 2, 16, norm_first=True, batch_first=True)
    graph = graph_of(
        nn.TransformerEncoder(layer, 1, enable_nested_tensor=False), torch.randn(2, 3, 8), granularity="head"
    )
    assert graph.receivers == ("layers.0.self_attn.0", "layers.0.self_attn.1", "layers.0.mlp", "output")
    assert [reader.site for reader in graph.readers] == ["layers.0.norm1:input", "layers.0.norm2:input", ""]


def test_residual_graph__takes_the_components_that_are_named():
    graph = graph_of(SmallTransformer(), components=("layers.*.attention",), granularity="block")
    assert graph.senders == ("input", "layers.0.attention", "layers.1.attention")


def test_node_of__is_what_stands_before_the_colon():
    assert node_of("layers.0.attention.1:query") == "layers.0.attention.1"
    assert node_of("output") == "output"
    assert is_input("input")
    assert is_input("input@3")
    assert not is_input("inputs.0")


# Oracle
@pytest.mark.oracle
def test_residual_graph__finds_the_streams_of_transformers():
    import transformers

    sizes = {"vocab_size": 17, "bos_token_id": 0, "eos_token_id": 0}
    gpt2 = transformers.GPT2Config(n_layer=2, n_head=2, n_embd=8, n_positions=8, **sizes)
    graph = graph_of(transformers.GPT2LMHeadModel(gpt2))
    assert len(graph.edges) == 46
    assert graph.readers[-1].site == "transformer.ln_f:input"
    neox = transformers.GPTNeoXConfig(
        hidden_size=16, intermediate_size=8, num_hidden_layers=2, num_attention_heads=4, **sizes
    )
    parallel = graph_of(transformers.GPTNeoXForCausalLM(neox), granularity="block")
    assert ("gpt_neox.layers.0.attention", "gpt_neox.layers.0.mlp") not in parallel.edges
    with pytest.raises(ConfigurationError, match="Use granularity='head'"):
        graph_of(transformers.GPTNeoXForCausalLM(neox))


# Law
def test_residual_graph__senders_run_before_their_receivers():
    graph = graph_of(SmallTransformer(n_layers=3, hidden=8, norm=True))
    place = {node: k for k, node in enumerate(dict.fromkeys([*graph.senders, "output"]))}
    assert all(place[sender] < place[node_of(receiver)] for sender, receiver in graph.edges)


def test_residual_graph__leaves_no_hook_behind():
    model = SmallTransformer(hidden=8)
    graph_of(model)
    with pytest.raises(ConfigurationError):
        graph_of(Parallel(scale=0.5))
    assert not any(each._forward_hooks or each._forward_pre_hooks for each in model.modules())


# Bad input
@pytest.mark.parametrize("n_layers", [1, 2])
def test_residual_graph__refuses_a_stream_that_is_normalised(n_layers):
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.TransformerEncoder(layer, n_layers, enable_nested_tensor=False)
    with pytest.raises(ConfigurationError, match=r"what 'layers.0.self_attn' writes must be added.*post-norm"):
        graph_of(model, torch.randn(2, 3, 8), granularity="block")


def test_residual_graph__refuses_a_stream_that_is_scaled():
    with pytest.raises(ConfigurationError, match=r"writes must be added, as it is.*scales its stream"):
        graph_of(Parallel(scale=0.5), granularity="block")


def test_residual_graph__refuses_a_part_that_reads_the_stream_and_is_not_named():
    with pytest.raises(ConfigurationError, match="not among the components"):
        graph_of(SmallTransformer(hidden=8, norm=True), components=("layers.*.attention",))


def test_residual_graph__refuses_what_runs_twice():
    with pytest.raises(ConfigurationError, match=r"once per forward.*2 calls of 'mlp'"):
        graph_of(Shared(), torch.randn(3, 4))


def test_residual_graph__refuses_what_it_cannot_take_apart():
    layer = nn.TransformerEncoderLayer(8, 2, 16, norm_first=True, batch_first=True)
    with pytest.raises(ConfigurationError, match=r"queries, keys and values.*Use granularity='head'"):
        graph_of(nn.TransformerEncoder(layer, 1, enable_nested_tensor=False), torch.randn(2, 3, 8))
    with pytest.raises(NotFoundError, match="Give components"):
        graph_of(nn.Linear(4, 4), torch.randn(3, 4))
    with pytest.raises(NotFoundError, match="'mpl'"):
        graph_of(SmallTransformer(hidden=8), components=("mpl",))
    with pytest.raises(ShapeError, match="two samples"):
        graph_of(SmallTransformer(), TOKENS[:1])
