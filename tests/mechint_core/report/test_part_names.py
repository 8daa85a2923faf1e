"""Short names for the parts of a model."""

import pytest
from hypothesis import given, strategies as st

from mechint_core.report.part_names import brief_names, fitted_names, node_of, port_of

# Known answer


@pytest.mark.parametrize(
    ("names", "short", "brief"),
    [
        (("input", "layers.0.attention.1", "layers.0.mlp"), ("input", "attn 0.1", "mlp 0"), ("input", "a0.1", "m0")),
        (("blocks.3.attn", "output"), ("attn 3", "output"), ("a3", "output")),
        (("transformer.h.11.mlp",), ("mlp 11",), ("m11",)),
        (("net.encoder.norm", "net.encoder.mix", "readout"), ("norm", "mix", "readout"), ("norm", "mix", "readout")),
        (("layers.0", "layers.1"), ("layers.0", "layers.1"), ("layers.0", "layers.1")),
    ],
)
def test_brief_names__leave_out_what_all_share(names: tuple[str, ...], short: tuple[str, ...], brief: tuple[str, ...]):
    assert brief_names(names) == short
    assert brief_names(names, brief=True) == brief


def test_brief_names__two_stacks_keep_their_paths_apart():
    short = brief_names(("encoder.layers.0.mlp", "decoder.layers.0.mlp"))
    assert len(set(short)) == 2


def test_node_of__an_attention_head_reads_at_three_ports():
    assert node_of("layers.1.attention.0:query") == "layers.1.attention.0"
    assert port_of("layers.1.attention.0:query") == "query"


def test_node_of__the_input_of_a_module_is_a_place_of_its_own():
    assert node_of("layers.1.mlp:input") == "layers.1.mlp:input"
    assert port_of("layers.1.mlp:input") == ""


# Oracle: none; a choice of words.


def test_fitted_names__leave_what_fits_and_name_edges_by_their_ends():
    names = (
        "input → layers.0.attention.1:value",
        "layers.0.attention.1 → layers.1.attention.0:key",
        "layers.1.mlp → output",
    )
    assert fitted_names(names, 60) == names
    assert fitted_names(names, 24) == ("input → attn 0.1 value", "attn 0.1 → attn 1.0 key", "mlp 1 → output")


def test_fitted_names__that_would_become_equal_keep_their_own_ends():
    names = ("one.layers.0.mlp", "two.layers.0.mlp")
    assert fitted_names(names, 12) == ("one.l….0.mlp", "two.l….0.mlp")


# Law


@given(st.lists(st.from_regex(r"(layers\.[0-9]\.)?(attention\.[0-9]|mlp|norm|act)", fullmatch=True), unique=True))
def test_brief_names__are_as_different_as_the_names(names: list[str]):
    for brief in (False, True):
        assert len(set(brief_names(names, brief=brief))) == len(names)


# Bad input


def test_brief_names__of_nothing_are_nothing():
    assert brief_names(()) == ()


def test_fitted_names__of_sites_keep_the_end_that_tells_layers_apart():
    names = tuple(f"encoder.layers.{layer}.{part}" for layer in (0, 1) for part in ("norm1", "dropout1"))
    assert len(set(fitted_names(names, 18))) == 4
