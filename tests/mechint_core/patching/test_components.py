"""What globs choose as components, what they are called, and in which order."""

import numpy as np
import pytest
import torch
from torch import nn

from mechint_core.errors import ConfigurationError, NotFoundError, ShapeError
from mechint_core.models import inference
from mechint_core.patching import check_components, component_grid, find_components, find_site, read_place
from mechint_core.random import torch_generator
from mechint_core.synthetic.small_transformer import SmallTransformer


def components(globs, by="site", model=None, **options):
    model = SmallTransformer(vocabulary=7, width=8, n_heads=2, hidden=4) if model is None else model
    tokens = torch.randint(0, 7, (2, 5), generator=torch_generator(0, "tokens"))
    with inference(model):
        return find_components(model, tokens, globs, by=by, sample_axis=0, **options)


class Taciturn(nn.Module):
    """An attention that does not say how many heads it has."""

    def __init__(self):
        super().__init__()
        self.query, self.key, self.value, self.output = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x):
        return self.output(self.value(x) + self.query(x) * self.key(x))


# Known answer
def test_find_components__gives_whole_sites():
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


def test_find_components__lists_a_block_before_its_modules_and_runs_it_after_them():
    found = components(("layers.0", "layers.0.mlp", "layers.0.attention"))
    assert found.names == ("layers.0", "layers.0.attention", "layers.0.mlp")
    assert [each.name for each in found.as_they_run] == ["layers.0.attention", "layers.0.mlp", "layers.0"]


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


def test_find_components__heads_only_leaves_other_modules_out():
    found = components(("*",), "head", heads_only=True)
    assert found.names == tuple(f"layers.{layer}.attention.{head}" for layer in (0, 1) for head in (0, 1))
    assert components(("*.1", "embed"), "head", heads_only=True).names == found.names[1::2]
    assert components(("embed", "layers.0.mlp"), "unit", heads_only=True).names[0] == "embed#0"  # says nothing here


def test_find_components__is_told_how_many_heads_there_are_where_the_model_does_not_say():
    model = nn.Sequential(nn.Embedding(7, 8), Taciturn())
    with pytest.raises(ConfigurationError, match="Give n_heads"):
        components(("1",), "head", model)
    found = components(("1",), "head", model, n_heads=4)
    assert found.names == ("1.0", "1.1", "1.2", "1.3")
    assert found.parts[3].part.units == slice(6, 8)


def test_find_components__gives_every_position_of_sites_that_have_some():
    found = components(("embed", "layers.0.mlp"), "position")
    assert found.names == tuple(f"{site}@{at}" for site in ("embed", "layers.0.mlp") for at in range(5))
    assert [each.part.position for each in found.parts] == [*range(5), *range(5)]


@pytest.mark.parametrize(("by", "n"), [("site", 1), ("head", 2), ("unit", 8)])
def test_find_components__may_be_of_one_position(by, n):
    found = components(("layers.0.attention",), by, position=-2)
    assert [each.part.position for each in found.parts] == [-2] * n


@pytest.mark.parametrize(
    ("by", "names", "rows", "grid"),
    [
        (
            "site",
            ["embed", "layers.0", "layers.0.mlp.1", "layers.1"],
            ["embed", "layers.*", "layers.*.mlp.1"],
            [[0, -1], [1, 3], [2, -1]],
        ),
        ("head", ["a.0", "a.1", "b.attention.2"], ["a", "b.attention"], [[0, 1, -1], [-1, -1, 2]]),
        ("position", ["a.0@0", "a.0@1", "b@1"], ["a.0", "b"], [[0, 1], [-1, 2]]),
        ("unit", ["a#0", "a#2"], ["a"], [[0, -1, 1]]),
    ],
)
def test_component_grid__lays_components_out_by_the_number_in_their_names(by, names, rows, grid):
    found, values = component_grid(names, np.arange(len(names), dtype=float), by)
    assert list(found) == rows
    np.testing.assert_array_equal(values, np.where(np.array(grid) < 0, np.nan, grid))


def test_read_place__takes_a_name_and_a_position_apart():
    assert read_place("layers.0.mlp") == ("layers.0.mlp", None)
    assert read_place("layers.0.mlp@-1") == ("layers.0.mlp", -1)


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


def test_find_components__raises_where_nothing_can_be_taken_apart():
    with pytest.raises(NotFoundError, match=r"must be heads or lie outside attention. Got layers.0.attention.query"):
        components(("layers.0.attention.query",), "head")
    with pytest.raises(
        NotFoundError, match=r"that can be taken apart. Got layers.\*.mlp. There are: layers.0.attention"
    ):
        components(("layers.*.mlp",), "head", heads_only=True)
    model = nn.Sequential(nn.Embedding(7, 8), nn.Flatten(1))
    with pytest.raises(ShapeError, match=r"must have positions.*\(2, 40\)"):
        components(("1",), "position", model)


def test_find_site__raises_unless_it_is_one():
    model, tokens = SmallTransformer(vocabulary=7, hidden=4), torch.zeros(2, 5, dtype=torch.int64)
    with inference(model):
        assert find_site(model, tokens, "*.0.mlp", sample_axis=0, position=1).names == ("layers.0.mlp",)
        with pytest.raises(ConfigurationError, match=r"site must name one module.*layers.0.attention, layers.1"):
            find_site(model, tokens, "*.attention", sample_axis=0, position=None)
        with pytest.raises(NotFoundError, match="with a position 5"):
            find_site(model, tokens, "embed", sample_axis=0, position=5)


@pytest.mark.parametrize("label", ["", "@3", "mlp@last", "mlp@"])
def test_read_place__raises_on_other_labels(label):
    with pytest.raises(ConfigurationError, match="must be a module's name, or name@position"):
        read_place(label)


def test_check_components__raises_on_options_that_say_nothing():
    with pytest.raises(ConfigurationError, match=r"by must be one of site, head, position, unit\. Got 'layer'"):
        check_components("layer")
    with pytest.raises(ConfigurationError, match=r"position must be None when every position is a part\. Got 2"):
        check_components("position", 2, sites=("*",))
    with pytest.raises(ConfigurationError, match=r"senders must be a tuple of at least one glob\. Got 'embed'"):
        check_components("site", sites=("*",), senders="embed")
