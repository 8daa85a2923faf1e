"""The open transformer that others set the weights of."""

import pytest
import torch
from hypothesis import given, settings, strategies as st
from jaxtyping import TypeCheckError

from mechint_core.errors import ConfigurationError, ShapeError
from mechint_core.random import torch_generator
from mechint_core.synthetic.small_transformer import SmallTransformer, whole_heads


def tokens(n_samples=6, length=10, vocabulary=16, seed=0):
    return torch.randint(0, vocabulary, (n_samples, length), generator=torch_generator(seed, "tokens"))


# Known answer
def test_small_transformer__names_everything_a_circuit_is_made_of():
    names = [name for name, _ in SmallTransformer(n_layers=1, hidden=8, norm=True).named_modules()]

    assert names == [
        *("", "embed", "layers", "layers.0", "layers.0.attention_norm", "layers.0.attention"),
        *(f"layers.0.attention.{part}" for part in ("query", "key", "value", "pattern", "output")),
        *("layers.0.mlp_norm", "layers.0.mlp", "layers.0.mlp.read", "layers.0.mlp.hidden", "layers.0.mlp.write"),
        *("final_norm", "unembed"),
    ]


@torch.no_grad()
def test_small_transformer__cleared_returns_nothing_and_a_constant_head_averages_what_came_before():
    model = SmallTransformer(vocabulary=4, n_positions=4, width=4, n_layers=1, n_heads=1, dtype=torch.float64).clear()
    assert torch.equal(model(tokens(vocabulary=4, length=4)), torch.zeros(6, 4, 4, dtype=torch.float64))

    identity, nothing = torch.eye(4, dtype=torch.float64), torch.zeros(4, 4, dtype=torch.float64)
    model.embed.token.copy_(identity)
    model.unembed.weight.copy_(identity)
    model.attention_of(0).set_head(0, query=nothing, key=nothing, value=identity, output=identity)
    # Two tokens seen at position 1: each with weight 1/2, and the residual stream adds the token itself.
    torch.testing.assert_close(
        model(torch.tensor([[2, 3]]))[0], torch.tensor([[0, 0, 2, 0], [0, 0, 0.5, 1.5]], dtype=torch.float64)
    )


@torch.no_grad()
def test_set_head__divides_the_scale_out():
    model = SmallTransformer(width=8, n_heads=2, n_layers=1, causal=False, dtype=torch.float64).clear()
    x = torch.randn(3, 5, 8, generator=torch_generator(0, "x"), dtype=torch.float64)
    query, key, value, output = torch.randn(4, 3, 8, generator=torch_generator(1, "x"), dtype=torch.float64)
    model.attention_of(0).set_head(1, query=query, key=key, value=value, output=output.T)
    pattern = ((x @ query.T) @ (x @ key.T).mT).softmax(-1)

    torch.testing.assert_close(model.attention_of(0)(x), pattern @ (x @ value.T) @ output)


def test_whole_heads__forgets_which_input_is_read():
    edges = {("input", "layers.0.attention.1:key"), ("input", "layers.0.attention.1:query"), ("input", "output")}

    assert whole_heads(edges) == {("input", "layers.0.attention.1"), ("input", "output")}


# Oracle
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("shared", [4, 2, 1])
@torch.no_grad()
def test_attention__is_torchs_scaled_dot_product_attention(causal, shared):
    model = SmallTransformer(width=16, n_heads=4, n_key_value_heads=shared, causal=causal, dtype=torch.float64)
    attention, x = model.attention_of(1), torch.randn(3, 7, 16, dtype=torch.float64, generator=torch_generator(0, "x"))
    query = attention.query(x).view(3, 7, 4, 4).transpose(1, 2)
    key, value = (linear(x).view(3, 7, shared, 4).transpose(1, 2) for linear in (attention.key, attention.value))
    read = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=causal, enable_gqa=True)

    torch.testing.assert_close(attention(x), attention.output(read.transpose(1, 2).reshape(3, 7, 16)))


@torch.no_grad()
def test_small_transformer__is_torchs_pre_norm_encoder_layer():
    model = SmallTransformer(width=16, n_heads=4, n_layers=1, hidden=32, norm=True, causal=False, dtype=torch.float64)
    block, attention = model.layers[0], model.attention_of(0)
    layer = torch.nn.TransformerEncoderLayer(
        16, 4, 32, 0.0, "gelu", batch_first=True, norm_first=True, dtype=torch.float64
    ).eval()
    parts = (attention.query, attention.key, attention.value)
    layer.self_attn.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
    layer.self_attn.in_proj_bias.copy_(torch.cat([part.bias for part in parts]))
    for ours, theirs in (
        (attention.output, layer.self_attn.out_proj),
        (block.mlp.read, layer.linear1),
        (block.mlp.write, layer.linear2),
        (block.attention_norm, layer.norm1),
        (block.mlp_norm, layer.norm2),
    ):
        theirs.load_state_dict(ours.state_dict())

    torch.testing.assert_close(block(model.embed(tokens())), layer(model.embed(tokens())))


@torch.no_grad()
def test_small_transformer__is_the_sum_of_what_its_parts_write(run_edges, all_edges):
    model = SmallTransformer(n_layers=3, n_heads=4, n_key_value_heads=2, hidden=8, dtype=torch.float64)
    for attention in (model.attention_of(layer) for layer in range(3)):
        attention.output.bias.zero_()  # belongs to no head
    outputs, _ = run_edges(model, tokens(), None, all_edges(model))

    torch.testing.assert_close(outputs, model(tokens()))


# Law
@given(st.integers(0, 2**20), st.sampled_from([1, 4, 12]), st.booleans())
@settings(max_examples=15)
@torch.no_grad()
def test_small_transformer__gives_outputs_of_order_one(seed, n_layers, norm):
    model = SmallTransformer(n_layers=n_layers, width=32, n_heads=4, hidden=64, norm=norm, seed=seed)

    assert 0.5 < float(model(tokens()).std()) < 2.5


@given(st.permutations(range(6)), st.booleans())
@settings(max_examples=15)
@torch.no_grad()
def test_small_transformer__keeps_rows_apart(order, causal):
    model = SmallTransformer(hidden=16, norm=True, causal=causal, dtype=torch.float64)

    torch.testing.assert_close(model(tokens()[list(order)]), model(tokens())[list(order)], rtol=1e-12, atol=1e-12)


@given(st.integers(1, 9))
@torch.no_grad()
def test_small_transformer__if_causal_knows_nothing_of_later_tokens(length):
    model = SmallTransformer(hidden=16, norm=True, dtype=torch.float64)

    torch.testing.assert_close(model(tokens()[:, :length]), model(tokens())[:, :length], rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_small_transformer__runs_rows_that_a_hook_repeats():
    model = SmallTransformer(hidden=16, norm=True, n_heads=4, n_key_value_heads=2, dtype=torch.float64)
    with model.layers[0].register_forward_hook(lambda module, arguments, output: output.repeat(3, 1, 1)):
        repeated = model(tokens())

    torch.testing.assert_close(repeated, model(tokens()).repeat(3, 1, 1), rtol=1e-12, atol=1e-12)


def test_small_transformer__is_its_seed():
    first, again, other = (SmallTransformer(hidden=8, seed=seed).state_dict() for seed in (0, 0, 1))

    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)
    double = SmallTransformer(hidden=8, dtype=torch.float64).state_dict()
    assert all(torch.equal(first[name], double[name].float()) for name in first)


# Bad input
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 0}, "sizes must be at least 1"),
        ({"hidden": -1}, "sizes must be at least 1"),
        ({"n_heads": 3}, "divide width"),
        ({"n_heads": 4, "n_key_value_heads": 3}, "multiple of n_key_value_heads"),
        ({"activation": "swish"}, "activation must be one of|parameter 'activation'"),
    ],
)
def test_small_transformer__refuses(change, message):
    with pytest.raises((ConfigurationError, TypeCheckError), match=message):  # a wrong word fails its type here
        SmallTransformer(**change)


def test_small_transformer__refuses_sequences_that_are_too_long():
    with pytest.raises(ShapeError, match="at most 4 positions"):
        SmallTransformer(n_positions=4)(tokens(length=5))


@pytest.mark.parametrize(
    ("model", "rows", "message"),
    [
        (SmallTransformer(n_heads=2, n_key_value_heads=1), 2, "its own keys and values"),
        (SmallTransformer(n_heads=2), 9, "must fit in a head of 8"),
    ],
)
def test_set_head__refuses(model, rows, message):
    matrix = torch.zeros(rows, 16)
    with pytest.raises(ConfigurationError, match=message):
        model.attention_of(0).set_head(0, query=matrix, key=matrix, value=matrix, output=matrix.T)
