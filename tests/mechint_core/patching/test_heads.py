"""Finding the attention heads of any model, and opening PyTorch's own attention."""

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from mechint_core.errors import ConfigurationError, NotFoundError
from mechint_core.models import capture, differentiation, inference, rewritten
from mechint_core.patching import Slice, Write, attention_heads, find_head, run_experiments
from mechint_core.random import torch_generator
from mechint_core.synthetic.modular_addition import ModularAdditionTransformer
from mechint_core.synthetic.small_transformer import SmallTransformer

TOKENS = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8], [4, 3, 2, 1]])


def filled(model):
    draws = torch_generator(0, "test model")
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4, generator=draws)
    return model


def normal(*shape, stream="x"):
    return torch.randn(*shape, generator=torch_generator(0, stream))


def without_head(model, heads, head):
    """Zero the columns of the output projection that read a head: what ablating it must give."""
    projection = model.get_submodule(heads.projection)
    units = heads.units(head, projection.in_features)
    with torch.no_grad():
        projection.weight[:, units] = 0
    return model


def written_zero(model, inputs, heads, head, *, sample_axis=0):
    with inference(model):
        with capture(model, [heads.site]) as seen:
            model(inputs)
        n_units = seen[heads.site].shape[-1]
        donor = torch.zeros_like(seen[heads.site].movedim(sample_axis, 0))
        edits = [[Write(heads.site, donor, Slice(units=heads.units(head, n_units)))]]
        ((_, output),) = run_experiments(model, inputs, edits, batch_rows=99, sample_axis=sample_axis)
    return output


# Known answer
def test_attention_heads__names_those_of_our_own_models():
    ours = attention_heads(SmallTransformer(n_layers=2, n_heads=4, n_key_value_heads=2))
    assert [each.module for each in ours] == ["layers.0.attention", "layers.1.attention"]
    assert ours[0].site == "layers.0.attention.output:input"
    assert [each.n_heads for each in ours] == [4, 4]  # query heads, where groups of them share keys
    assert ours[1].label(3) == "layers.1.attention.3"
    assert ours[0].units(1, 16) == slice(4, 8)

    (grokking,) = attention_heads(ModularAdditionTransformer(prime=7, width=16, heads=4, hidden=8))
    assert (grokking.module, grokking.site, grokking.n_heads) == ("attention", "attention.output:input", 4)


def test_attention_heads__names_those_of_pytorch_and_none_where_there_is_none():
    whole = nn.Transformer(8, 2, 1, 1, 16, batch_first=True)
    found = attention_heads(whole)
    assert [each.module for each in found] == [
        "encoder.layers.0.self_attn",
        "decoder.layers.0.self_attn",
        "decoder.layers.0.multihead_attn",
    ]
    assert attention_heads(nn.Sequential(nn.Linear(3, 3), nn.LSTM(3, 3))) == ()


def test_find_head__reads_the_labels_that_heads_are_given():
    heads = attention_heads(SmallTransformer(n_layers=2, n_heads=2))
    for each in heads:
        for head in range(each.n_heads):
            assert find_head(heads, each.label(head)) == (each, head)


@pytest.mark.parametrize("n_key_value_heads", [1, 2, 4])
def test_attention_heads__writing_zero_into_a_head_removes_what_it_writes(n_key_value_heads):
    def made():
        return SmallTransformer(n_heads=4, n_key_value_heads=n_key_value_heads, hidden=8, norm=True)

    for at, heads in enumerate(attention_heads(made())):
        for head in range(4):
            found = written_zero(made(), TOKENS, heads, head)
            with inference(model := without_head(made(), attention_heads(made())[at], head)):
                torch.testing.assert_close(found, model(TOKENS), rtol=0, atol=1e-6)


@pytest.mark.parametrize("batch_first", [True, False])
def test_attention_heads__writing_zero_into_a_head_of_pytorchs_attention_removes_what_it_writes(batch_first):
    def made():
        return filled(nn.TransformerEncoderLayer(8, 4, 16, batch_first=batch_first))

    x = normal(3, 5, 8)
    (heads,) = attention_heads(made())
    for head in range(4):
        found = written_zero(made(), x, heads, head, sample_axis=0 if batch_first else 1)
        with inference(model := without_head(made(), heads, head)):
            torch.testing.assert_close(found, model(x), rtol=0, atol=1e-6)


# Oracle
def attentions(**options):
    return filled(nn.MultiheadAttention(8, 2, **options))


CALLS = {
    "plain": ({}, {}),
    "batch_first": ({"batch_first": True}, {}),
    "no bias": ({"bias": False}, {}),
    "other keys": ({"kdim": 6, "vdim": 4, "batch_first": True}, {}),
    "extra key": ({"add_bias_kv": True, "add_zero_attn": True}, {}),
    "no weights": ({"batch_first": True}, {"need_weights": False}),
    "weights per head": ({"batch_first": True}, {"average_attn_weights": False}),
    "mask": ({"batch_first": True}, {"attn_mask": torch.ones(5, 5, dtype=torch.bool).triu(1)}),
    "causal": (
        {"batch_first": True},
        {"attn_mask": torch.ones(5, 5, dtype=torch.bool).triu(1), "is_causal": True, "need_weights": False},
    ),
    "additive mask per head": ({}, {"attn_mask": normal(6, 5, 5, stream="mask")}),
    "padding": (
        {"batch_first": True},
        {"key_padding_mask": torch.tensor([[False] * 5, [False] * 3 + [True] * 2, [False] * 4 + [True]])},
    ),
}


@pytest.mark.parametrize(("options", "call"), CALLS.values(), ids=list(CALLS))
def test_opened_attention__equals_pytorchs_own(options, call):
    """Bit for bit: a product with the identity changes nothing, and the projection keeps PyTorch's order of rows."""
    attention = attentions(**options)
    shape = (3, 5) if options.get("batch_first") else (5, 3)
    q, k, v = (
        normal(*shape, n, stream=s) for n, s in ((8, "q"), (options.get("kdim", 8), "k"), (options.get("vdim", 8), "v"))
    )
    with inference(attention):
        wanted, wanted_weights = attention(q, k, v, **call)
        with capture(attention, ["out_proj:input"]) as seen:
            found, weights = attention(q, k, v, **call)
        heads = seen["out_proj:input"]
        by_hand = attention.out_proj(heads)
    assert torch.equal(found, wanted)
    torch.testing.assert_close(by_hand, wanted, rtol=0, atol=1e-6)  # rows in another order: rounding of float32
    assert heads.shape == (*shape, 8)
    if wanted_weights is None:
        assert weights is None
    else:
        assert torch.equal(weights, wanted_weights)


def test_opened_attention__works_inside_encoder_and_decoder_layers_with_masks():
    whole = filled(nn.Transformer(8, 2, 2, 2, 16, batch_first=True))
    source, target = normal(3, 5, 8), normal(3, 4, 8, stream="target")
    causal = nn.Transformer.generate_square_subsequent_mask(4)
    padding = torch.tensor([[False] * 5, [False] * 4 + [True], [False] * 5])
    masks = {"tgt_mask": causal, "src_key_padding_mask": padding, "memory_key_padding_mask": padding}
    sites = [each.site for each in attention_heads(whole)]
    with inference(whole):
        wanted = whole(source, target, **masks)
        with capture(whole, sites) as seen:
            found = whole(source, target, **masks)
    assert list(seen) == sites
    assert torch.equal(found, wanted)


def test_opened_attention__passes_gradients():
    attention = attentions(batch_first=True)
    x = normal(3, 5, 8)
    with differentiation(attention):
        asked = {}

        def kept(heads):
            asked["heads"] = heads.detach().requires_grad_()
            return asked["heads"]

        with rewritten(attention, "out_proj:input", kept):
            attention(x, x, x)[0].sum().backward()
    wanted = attention.out_proj.weight.sum(0).expand(3, 5, 8)
    torch.testing.assert_close(asked["heads"].grad, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.oracle
def test_attention_heads__finds_those_of_transformers():
    from transformers import AutoModel, BertConfig, GPT2Config, GPTNeoXConfig, LlamaConfig, OPTConfig, T5Config

    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 32}
    configs = {
        "h.0.attn.c_proj:input": GPT2Config(n_embd=16, n_layer=1, n_head=4, vocab_size=32),
        "layers.0.self_attn.o_proj:input": LlamaConfig(**small, intermediate_size=32, num_key_value_heads=2),
        "decoder.layers.0.self_attn.out_proj:input": OPTConfig(**small, ffn_dim=32, word_embed_proj_dim=16),
        "encoder.layer.0.attention.output.dense:input": BertConfig(**small, intermediate_size=32),
        "layers.0.attention.dense:input": GPTNeoXConfig(**small, intermediate_size=32),
    }
    for site, config in configs.items():
        model = AutoModel.from_config(config)
        (heads,) = attention_heads(model)
        assert (heads.site, heads.n_heads) == (site, 4)
        with inference(model), capture(model, [heads.site]) as seen:
            model(TOKENS)
        assert seen[heads.site].shape == (3, 4, 16)
    t5 = AutoModel.from_config(T5Config(d_model=16, d_kv=4, d_ff=32, num_layers=1, num_heads=4, vocab_size=32))
    assert [each.n_heads for each in attention_heads(t5)] == [4, 4, 4]


# Law
@settings(max_examples=20)
@given(st.integers(1, 4), st.integers(1, 4), st.booleans(), st.booleans())
def test_opened_attention__gives_all_of_the_output_head_by_head(n_heads, width, batch_first, bias):
    attention = filled(nn.MultiheadAttention(n_heads * width, n_heads, bias=bias, batch_first=batch_first))
    x = normal(2, 3, n_heads * width)
    (heads,) = attention_heads(attention)
    with inference(attention):
        wanted = attention(x, x, x)[0]
        with capture(attention, [heads.site]) as seen:
            attention(x, x, x)
        written = seen[heads.site]
        parts = [
            written[..., heads.units(head, written.shape[-1])]
            @ attention.out_proj.weight[:, heads.units(head, written.shape[-1])].T
            for head in range(n_heads)
        ]
        total = sum(parts) + (attention.out_proj.bias if bias else 0)
    torch.testing.assert_close(total, wanted, rtol=1e-5, atol=1e-5)


def test_opened_attention__is_closed_again_also_after_an_error():
    model = filled(nn.TransformerEncoderLayer(8, 2, 16))
    attention, projection = model.self_attn, model.self_attn.out_proj
    (heads,) = attention_heads(model)

    def fails(_):
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"), inference(model), rewritten(model, heads.site, fails):
        model(normal(5, 3, 8))
    with pytest.raises(AssertionError, match="embed"), inference(model), capture(model, [heads.site]):
        attention(*[normal(5, 3, 7)] * 3)
    assert "forward" not in vars(attention)
    assert attention.out_proj is projection
    assert not any(each._forward_hooks or each._forward_pre_hooks for each in model.modules())
    assert list(dict(model.named_parameters())) == list(dict(nn.TransformerEncoderLayer(8, 2, 16).named_parameters()))


# Bad input
def test_attention_heads__raises_where_a_model_does_not_say_how_many_heads_it_has():
    model = SmallTransformer(n_layers=1, n_heads=4)
    del model.layers[0].attention.n_heads
    with pytest.raises(
        ConfigurationError, match=r"'layers.0.attention' must say how many heads share its 16 units.*None"
    ):
        attention_heads(model)
    assert attention_heads(model, n_heads=2)[0].n_heads == 2
    with pytest.raises(ConfigurationError, match=r"Got 3. Give n_heads"):
        attention_heads(model, n_heads=3)


def test_find_head__raises_on_a_head_that_is_not_there():
    heads = attention_heads(SmallTransformer(n_layers=1, n_heads=2))
    with pytest.raises(NotFoundError, match=r"Got 'layers.0.attention.2'. There are: layers.0.attention.0, layers"):
        find_head(heads, "layers.0.attention.2")


def test_opened_attention__raises_where_heads_do_not_reach_the_projection():
    class Own(nn.MultiheadAttention):
        def forward(self, query, key, value, **_):
            return query, None

    model = Own(8, 2)
    with (
        pytest.raises(ConfigurationError, match=r"heads must reach 'out_proj'. Got a Own"),
        inference(model),
        capture(model, ["out_proj:input"]),
    ):
        model(*[normal(5, 3, 8)] * 3)
    assert "forward" not in vars(model)
