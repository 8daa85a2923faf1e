"""What globs choose as components, in which order."""

import pytest
import torch
from torch import nn

from mechint_core.errors import NotFoundError
from mechint_core.models import inference
from mechint_core.patching import find_components
from mechint_core.random import torch_generator
from mechint_core.synthetic.small_transformer import SmallTransformer


def components(globs, by="site", model=None, **options):
    model = SmallTransformer(vocabulary=7, width=8, n_heads=2, hidden=4) if model is None else model
    tokens = torch.randint(0, 7, (2, 5), generator=torch_generator(0, "tokens"))
    with inference(model):
        return find_components(model, tokens, globs, by=by, sample_axis=0, **options)


# Known answer
def test_find_components__gives_whole_sites_in_the_order_they_run():
    found = components(("unembed", "layers.*.mlp", "embed", "layers.0.mlp:input"))
    assert [each.name for each in found.parts] == [
        "embed",
        "layers.0.mlp:input",
        "layers.0.mlp",
        "layers.1.mlp",
        "unembed",
    ]
    assert found.sites == tuple(each.site for each in found.parts)
    assert [each.step for each in found.parts] == [0, 1, 2, 3, 4]
    assert found.parts[0].before(found.parts[1])
    assert not found.parts[1].before(found.parts[0])


def test_find_components__takes_attention_apart_by_heads_and_leaves_other_modules_whole():
    found = components(("layers.*.attention", "layers.*.mlp"), "head")
    assert [each.name for each in found.parts[:3]] == ["layers.0.attention.0", "layers.0.attention.1", "layers.0.mlp"]
    assert found.parts[0].site == found.parts[1].site == "layers.0.attention.output:input"
    assert (found.parts[0].part.units, found.parts[1].part.units) == (slice(0, 4), slice(4, 8))
    assert not found.parts[0].before(found.parts[1])  # heads of a layer run together


def test_find_components__a_glob_may_name_single_heads():
    found = components(("layers.*.attention.1", "embed"), "head")
    assert [each.name for each in found.parts] == ["embed", "layers.0.attention.1", "layers.1.attention.1"]


def test_find_components__everything_by_heads_holds_nothing_inside_attention():
    found = components(("*",), "head")
    inside = [each.name for each in found.parts if "attention." in each.name]
    assert inside == [f"layers.{layer}.attention.{head}" for layer in (0, 1) for head in (0, 1)]


def test_find_components__gives_every_unit():
    found = components(("layers.0.mlp.hidden",), "unit")
    assert [each.name for each in found.parts] == [f"layers.0.mlp.hidden#{unit}" for unit in range(4)]


# Oracle
def test_find_components__finds_the_heads_of_pytorchs_own_attention():
    model = nn.Sequential(nn.Embedding(7, 8), nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Linear(8, 7))
    found = components(("1.self_attn", "1.linear2"), "head", model)
    assert [each.name for each in found.parts] == ["1.self_attn.0", "1.self_attn.1", "1.linear2"]


# Law
@pytest.mark.parametrize("by", ["site", "head", "unit"])
def test_find_components__counts_the_memory_of_what_it_chose(by):
    found = components(("layers.0.mlp", "layers.0.attention"), by)
    assert found.bytes_per_row == 2 * 5 * 8 * 4  # two sites of five positions and eight float32


# Bad input
def test_find_components__raises_on_globs_that_match_nothing():
    with pytest.raises(NotFoundError, match=r"no match for 'layers.\*.attention.7'"):
        components(("layers.*.attention.7",), "head")
    with pytest.raises(NotFoundError, match="no match for 'nowhere'"):
        components(("nowhere", "embed"))
