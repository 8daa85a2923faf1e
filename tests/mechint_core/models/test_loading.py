"""Factories and filling a model with a checkpoint."""

import pytest
import torch
from hypothesis import given, strategies as st
from safetensors.torch import save_file
from torch import nn

from mechint_core.errors import CheckpointError, ConfigurationError, NotFoundError
from mechint_core.models import load_factory, load_model

LINEAR = {"in_features": 3, "out_features": 2}


@pytest.fixture
def factories(tmp_path, monkeypatch):
    """A module of the user's."""
    (tmp_path / "user_factories.py").write_text(
        "from torch import nn\n"
        "NUMBER = 3\n"
        "def number(): return 3\n"
        "def fails(): raise TypeError('inside')\n"
        "class Tied(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.embed, self.head = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)\n"
        "        self.head.weight = self.embed.weight\n"
    )
    (tmp_path / "broken_factories.py").write_text("import a_package_that_is_not_there\n")
    monkeypatch.syspath_prepend(tmp_path)


# Known answer
def test_load_factory__finds_functions_and_what_is_inside_classes():
    assert load_factory("torch.nn:Linear") is nn.Linear
    assert load_factory("torch.nn:Linear.forward") is nn.Linear.forward


def test_load_model__fills_the_parameters_and_returns_an_idle_model(tmp_path):
    wanted = {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.tensor([1.0, -1.0])}
    save_file(wanted, tmp_path / "m.safetensors")
    model = load_model("torch.nn:Linear", LINEAR, tmp_path / "m.safetensors")
    assert torch.equal(model.weight, wanted["weight"])
    assert torch.equal(model.bias, wanted["bias"])
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_load_model__without_a_checkpoint_leaves_what_the_factory_made():
    model = load_model("torch.nn:LayerNorm", {"normalized_shape": 3}, None)
    assert torch.equal(model.weight, torch.ones(3))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_load_model__converts_the_parameters(dtype):
    assert load_model("torch.nn:Linear", LINEAR, None, dtype=dtype).weight.dtype == getattr(torch, dtype)


def test_load_model__takes_tied_parameters_that_are_stored_once(factories, tmp_path):
    weight = torch.arange(20.0).reshape(5, 4)
    save_file({"embed.weight": weight}, tmp_path / "m.safetensors")
    model = load_model("user_factories:Tied", {}, tmp_path / "m.safetensors")
    assert torch.equal(model.head.weight, weight)
    assert model.head.weight is model.embed.weight


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_load_model__takes_off_the_prefixes_of_wrappers(tmp_path, prefix):
    torch.save({f"{prefix}weight": torch.ones(2, 3), f"{prefix}bias": torch.ones(2)}, tmp_path / "m.pt")
    assert load_model("torch.nn:Linear", LINEAR, tmp_path / "m.pt").bias.sum() == 2


# Oracle
def test_load_model__computes_what_load_state_dict_does(tmp_path):
    arguments = {"d_model": 8, "nhead": 2, "dim_feedforward": 16}
    model = nn.TransformerEncoderLayer(**arguments).eval()
    torch.save(model.state_dict(), tmp_path / "m.pt")
    loaded = load_model("torch.nn:TransformerEncoderLayer", arguments, tmp_path / "m.pt")
    x = torch.arange(48.0).reshape(3, 2, 8)
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))


# Law
@given(st.text(max_size=30))
def test_load_factory__names_the_problem_with_any_name(name):
    with pytest.raises((ConfigurationError, NotFoundError)):
        load_factory("no_such_module_" + name)


# Bad input
def test_load_factory__says_which_part_of_the_name_is_wrong(factories):
    with pytest.raises(ConfigurationError, match=r"package.module:function"):
        load_factory("torch.nn.Linear")
    with pytest.raises(NotFoundError, match="no module 'nowhere'"):
        load_factory("nowhere.inside:build")
    with pytest.raises(NotFoundError, match="Did you mean Linear"):
        load_factory("torch.nn:Lineer")
    with pytest.raises(ConfigurationError, match=r"must be callable. Got a int"):
        load_factory("user_factories:NUMBER")


def test_load_factory__lets_the_users_own_import_error_through(factories):
    with pytest.raises(ModuleNotFoundError, match="a_package_that_is_not_there"):
        load_factory("broken_factories:build")


def test_load_model__says_what_the_factory_takes(factories):
    with pytest.raises(ConfigurationError, match=r"must fit \(in_features.*'depth'"):
        load_model("torch.nn:Linear", {**LINEAR, "depth": 2}, None)
    with pytest.raises(ConfigurationError, match=r"must return a torch.nn.Module. Got a int"):
        load_model("user_factories:number", {}, None)
    with pytest.raises(TypeError, match="inside"):
        load_model("user_factories:fails", {}, None)


def test_load_model__lists_what_does_not_fit(tmp_path):
    torch.save({"weight": torch.ones(2, 4), "scale": torch.ones(1)}, tmp_path / "m.pt")
    with pytest.raises(
        CheckpointError,
        match=r"1 missing: bias; 1 unexpected: scale; 1 of another shape: weight \(model \(2, 3\), checkpoint \(2, 4",
    ):
        load_model("torch.nn:Linear", LINEAR, tmp_path / "m.pt")


def test_load_model__refuses_devices_and_dtypes_that_are_not_there():
    with pytest.raises(ConfigurationError, match="device"):
        load_model("torch.nn:Linear", LINEAR, None, device="abacus")
    with pytest.raises(ConfigurationError, match="CUDA devices"):
        load_model("torch.nn:Linear", LINEAR, None, device="cuda:99")
    with pytest.raises(ConfigurationError, match="dtype must be one of"):
        load_model("torch.nn:Linear", LINEAR, None, dtype="float8")
