"""How experiments run a model."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn

from mechint_core.errors import ConfigurationError, MemoryBudgetError
from mechint_core.models import (
    call,
    device_of,
    differentiation,
    inference,
    memory_remedy,
    samples_first,
    samples_to,
    to_model,
)


# Known answer
def test_inference__is_eval_mode_without_gradients_or_fused_paths_and_is_undone():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5), nn.BatchNorm1d(2))
    model[2].eval()
    fused = torch.backends.mha.get_fastpath_enabled()
    state = torch.get_rng_state()
    with inference(model):
        assert not any(each.training for each in model.modules())
        assert not torch.is_grad_enabled()
        assert not torch.backends.mha.get_fastpath_enabled()
        torch.rand(3)
    assert [each.training for each in model.modules()] == [True, True, True, False]
    assert torch.is_grad_enabled()
    assert torch.backends.mha.get_fastpath_enabled() == fused
    assert torch.equal(torch.get_rng_state(), state)


def test_inference__fused_paths_stay_off_until_the_last_thread_has_left():
    """A thread that ends does not switch them on under one that began later: it would pass its hooks by."""
    fused = torch.backends.mha.get_fastpath_enabled()
    first, second = inference(nn.Linear(2, 2)), inference(nn.Linear(2, 2))
    with ThreadPoolExecutor(1) as other:
        other.submit(first.__enter__).result()
        with second:
            other.submit(first.__exit__, None, None, None).result()
            assert not torch.backends.mha.get_fastpath_enabled()
    assert torch.backends.mha.get_fastpath_enabled() == fused


def test_to_model__gives_floats_the_models_precision_and_integers_int64():
    model = nn.Linear(2, 2).to(torch.bfloat16)
    assert to_model(np.ones(2), model).dtype == torch.bfloat16
    assert to_model(np.ones(2, dtype=np.uint8), model).dtype == torch.int64
    assert to_model(np.ones(2, dtype=bool), model).dtype == torch.bool
    assert to_model(np.ones(2, dtype=np.float16), nn.Identity()).dtype == torch.float32


def test_device_of__is_that_of_parameters_or_buffers_else_the_cpu():
    assert device_of(nn.Identity()).type == "cpu"
    assert device_of(nn.Linear(1, 1, device="meta")).type == "meta"
    assert device_of(nn.BatchNorm1d(1, affine=False, device="meta")).type == "meta"


# Oracle
@pytest.mark.parametrize("step", [1, -1])
def test_to_model__holds_the_numbers_of_the_array(step):
    array = np.arange(6, dtype=">f4").reshape(2, 3)[::step]
    array.flags.writeable = False
    assert np.array_equal(to_model(array, nn.Identity()).numpy(), array)


# Law
@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.integers(0, 1))
def test_samples_first__undoes_samples_to(shape, axis):
    tensor = torch.arange(float(np.prod(shape))).reshape(shape)
    assert torch.equal(samples_first(samples_to(tensor, axis), axis), tensor)


# Bad input
def test_memory_remedy__translates_failed_allocations_only():
    with pytest.raises(MemoryBudgetError, match=r"no more memory. Do less\."), memory_remedy("Do less."):
        raise MemoryError
    with pytest.raises(RuntimeError, match="another"), memory_remedy("Do less."):
        raise RuntimeError("another")


def test_call__raises_where_only_some_names_are_parameters():
    with pytest.raises(ConfigurationError, match="forward of Linear takes input"):
        call(nn.Linear(1, 1), {"input": torch.ones(1), "mask": torch.ones(1)})


def test_differentiation__gives_gradients_to_inputs_only_and_restores_the_model():
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Dropout(0.5))
    x = torch.ones(2, 3, requires_grad=True)
    with differentiation(model):
        assert not model.training
        model(x).sum().backward()
    assert x.grad is not None
    assert all(each.grad is None and each.requires_grad for each in model.parameters())
    assert model.training
