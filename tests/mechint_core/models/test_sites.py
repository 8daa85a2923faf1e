"""Globs over module names."""

import pytest
from hypothesis import given, strategies as st
from torch import nn

from mechint_core.errors import NotFoundError
from mechint_core.models import match_sites, module_at

MODEL = nn.ModuleDict(
    {
        "embed": nn.Embedding(3, 4),
        "layers": nn.ModuleList(nn.ModuleDict({"attention": nn.Identity(), "mlp": nn.Linear(4, 4)}) for _ in range(12)),
    }
)
NAMES = [name for name, module in MODEL.named_modules() if not isinstance(module, nn.ModuleDict | nn.ModuleList)]


# Known answer
def test_match_sites__returns_names_in_the_models_order_once_each():
    assert match_sites(MODEL, ["*mlp", "embed", "layers.1.*"])[:4] == (
        "embed",
        "layers.0.mlp",
        "layers.1.attention",
        "layers.1.mlp",
    )


def test_match_sites__leaves_out_containers_that_compute_nothing():
    assert match_sites(MODEL, ["*"]) == tuple(NAMES)


def test_match_sites__takes_a_single_glob_as_one_glob():
    assert match_sites(MODEL, "embed") == ("embed",)


# Oracle
def test_module_at__agrees_with_get_submodule():
    assert all(module_at(MODEL, name) is MODEL.get_submodule(name) for name in NAMES)


# Law
@given(st.lists(st.sampled_from(NAMES), min_size=1))
def test_match_sites__plain_names_match_themselves_whatever_their_order(names):
    assert match_sites(MODEL, names) == tuple(name for name in NAMES if name in names)


# Bad input
def test_match_sites__lists_the_closest_sites_first_and_says_how_many_more():
    with pytest.raises(NotFoundError, match=r"'layers.3.mpl'. There are: layers.3.mlp.*13 more"):
        match_sites(MODEL, ["embed", "layers.3.mpl"])
    with pytest.raises(NotFoundError, match=r"'attn', 'mlp'. There are: layers.0.mlp"):
        match_sites(MODEL, ["attn", "mlp"])


def test_match_sites__raises_on_no_globs():
    with pytest.raises(NotFoundError, match="an empty list"):
        match_sites(MODEL, [])


def test_module_at__raises_on_an_unknown_name():
    with pytest.raises(NotFoundError, match=r"'embad'. There are: embed"):
        module_at(MODEL, "embad")
