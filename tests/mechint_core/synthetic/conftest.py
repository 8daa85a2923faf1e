"""Exact edge patching in its plainest form: what a circuit means, spelled out."""

import math

import pytest
import torch

INPUTS = ("query", "key", "value")


@pytest.fixture(scope="session")
def all_edges():
    """Every edge of a model, heads by their query, key and value."""

    def make(model):
        edges, before = [], ["input"]
        for layer, block in enumerate(model.layers):
            heads = [f"layers.{layer}.attention.{head}" for head in range(block.attention.n_heads)]
            edges += [(sender, f"{head}:{part}") for sender in before for head in heads for part in INPUTS]
            before += heads
            if block.has_mlp:
                mlp = f"layers.{layer}.mlp"
                edges += [(sender, mlp) for sender in before]
                before += [mlp]
        return frozenset(edges + [(sender, "output") for sender in before])

    return make


@pytest.fixture(scope="session")
def run_edges():
    """Run a model without norms where only `edges` carry what it computes; the others carry `elsewhere`."""

    @torch.no_grad()
    def run(model, tokens, elsewhere, edges):
        """`elsewhere` maps each sender to what its absent edges carry; None is zero. Returns outputs and writes."""
        written = {"input": model.embed(tokens)}

        def read(receiver):
            return sum(
                write
                if (sender, receiver) in edges
                else torch.zeros_like(write)
                if elsewhere is None
                else elsewhere[sender]
                for sender, write in written.items()
            )

        for layer, block in enumerate(model.layers):
            heads = {
                (name := f"layers.{layer}.attention.{head}"): one_head(
                    block.attention, head, *(read(f"{name}:{part}") for part in INPUTS)
                )
                for head in range(block.attention.n_heads)
            }
            written |= heads
            if block.has_mlp:
                written[f"layers.{layer}.mlp"] = block.mlp(read(f"layers.{layer}.mlp"))
        return model.unembed(read("output")), written

    return run


def one_head(attention, head, query_input, key_input, value_input):
    """What one head writes, from its slices of the weights."""
    rows = slice(head * attention.head_width, (head + 1) * attention.head_width)
    shared = head * attention.n_key_value_heads // attention.n_heads
    shared_rows = slice(shared * attention.head_width, (shared + 1) * attention.head_width)
    query = query_input @ attention.query.weight[rows].T + attention.query.bias[rows]
    key = key_input @ attention.key.weight[shared_rows].T + attention.key.bias[shared_rows]
    value = value_input @ attention.value.weight[shared_rows].T + attention.value.bias[shared_rows]
    scores = query @ key.transpose(-1, -2) / math.sqrt(attention.head_width)
    if attention.causal:
        scores = scores + torch.full(scores.shape[-2:], -math.inf, dtype=scores.dtype).triu(1)
    return scores.softmax(-1) @ value @ attention.output.weight[:, rows].T
