"""Which tensor of an output is the activation."""

from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, strategies as st

from mechint_core.errors import NotFoundError
from mechint_core.models import activation_of, with_activation

HIDDEN, STATE = torch.ones(2, 3), torch.zeros(2, 3)
Pair = namedtuple("Pair", ["hidden", "state"])


@dataclass
class Output:
    loss: torch.Tensor | None
    hidden: torch.Tensor


OUTPUTS = {
    "tensor": HIDDEN,
    "tuple": (HIDDEN, STATE),
    "list": [HIDDEN, STATE],
    "named tuple": Pair(HIDDEN, STATE),
    "dict": {"mask": torch.ones(2, dtype=torch.bool), "hidden": HIDDEN},
    "dataclass": Output(torch.tensor(0.5), HIDDEN),
    "nothing first": (None, torch.arange(3), HIDDEN, STATE),
    "nested": ((torch.tensor(0.1), {"deep": [HIDDEN]}), STATE),
}


# Known answer
@pytest.mark.parametrize("kind", OUTPUTS)
def test_activation_of__is_the_first_floating_tensor_with_axes(kind):
    assert activation_of(OUTPUTS[kind]) is HIDDEN


@pytest.mark.parametrize("kind", OUTPUTS)
def test_with_activation__replaces_that_tensor_only_and_leaves_the_original(kind):
    new = torch.full((2, 3), 7.0)
    made = with_activation(OUTPUTS[kind], new)
    assert type(made) is type(OUTPUTS[kind])
    assert activation_of(made) is new
    assert activation_of(OUTPUTS[kind]) is HIDDEN


def test_with_activation__keeps_the_other_parts():
    made = with_activation(OUTPUTS["tuple"], STATE + 1)
    assert made[1] is STATE
    assert with_activation(OUTPUTS["dataclass"], STATE).loss == 0.5


# Oracle
def test_activation_of__is_the_output_of_attention_and_recurrent_layers():
    x = torch.ones(4, 2, 8)
    attention, recurrent = torch.nn.MultiheadAttention(8, 2), torch.nn.LSTM(8, 8)
    assert torch.equal(activation_of(attention(x, x, x)), attention(x, x, x)[0])
    assert torch.equal(activation_of(recurrent(x)), recurrent(x)[0])


# Law
@given(st.recursive(st.just(HIDDEN), lambda part: st.lists(part, min_size=1, max_size=3).map(tuple), max_leaves=8))
def test_with_activation__writing_what_was_read_changes_nothing(output):
    assert str(with_activation(output, activation_of(output))) == str(output)


# Bad input
@pytest.mark.parametrize("output", [None, torch.arange(3), torch.tensor(1.0), (), {"loss": torch.tensor(1.0)}])
def test_activation__raises_where_there_is_none(output):
    with pytest.raises(NotFoundError, match="floating-point tensor"):
        activation_of(output)
    with pytest.raises(NotFoundError, match="floating-point tensor"):
        with_activation(output, HIDDEN)
