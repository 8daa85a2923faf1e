import doctest

import pytest
import torch

from mechint_core.errors import ConfigurationError
from mechint_core.synthetic import delayed_recall as module
from mechint_core.synthetic.delayed_recall import RecallNetwork, delayed_recall


# Known answer
@pytest.mark.parametrize("delay", [0, 1, 4])
def test_delayed_recall__answers_are_earlier_inputs(delay):
    inputs, answers = delayed_recall(3, 20, delay=delay)

    assert answers[:, delay:].equal(inputs[:, : 20 - delay])
    assert answers[:, :delay].abs().sum() == 0


def test_delayed_recall__inputs_are_white_with_variance_1():
    """5 standard errors of 128,000 numbers."""
    inputs, answers = delayed_recall(1000, 128, delay=3)

    assert inputs.var().item() == pytest.approx(1, abs=0.02)
    assert (inputs[:, 3:] * answers[:, 3:]).mean().item() == pytest.approx(0, abs=0.014)


# Oracle
def test_recall_network__is_a_gru_step_by_step():
    network = RecallNetwork(5).double()
    inputs = delayed_recall(2, 6)[0].double()
    answers, hidden = network(inputs)
    cell = torch.nn.GRUCell(1, 5).double()
    cell.load_state_dict({name.removesuffix("_l0"): each for name, each in network.recurrent.state_dict().items()})

    state = torch.zeros(2, 5, dtype=torch.float64)
    for t in range(6):
        state = cell(inputs[:, t], state)
        assert torch.allclose(hidden[:, t], state, atol=1e-12)
        assert torch.allclose(answers[:, t], network.read_out(state), atol=1e-12)


# Law
def test_delayed_recall__same_seed_same_bits():
    assert delayed_recall(2, 9, seed=1)[0].equal(delayed_recall(2, 9, seed=1)[0])
    assert not delayed_recall(2, 9, seed=1)[0].equal(delayed_recall(2, 9, seed=2)[0])


def test_recall_network__same_seed_same_weights_and_leaves_torch_as_it_was():
    before = torch.get_rng_state()
    one, again, other = RecallNetwork(4, seed=1), RecallNetwork(4, seed=1), RecallNetwork(4, seed=2)

    assert one.read_out.weight.equal(again.read_out.weight)
    assert not one.read_out.weight.equal(other.read_out.weight)
    assert torch.get_rng_state().equal(before)


def test_delayed_recall__examples_are_true():
    assert doctest.testmod(module).failed == 0


# Bad input
@pytest.mark.parametrize(("n_sequences", "n_steps", "delay"), [(0, 9, 1), (1, 0, 0), (1, 9, 9), (1, 9, -1)])
def test_delayed_recall__raises_on_an_impossible_size(n_sequences, n_steps, delay):
    with pytest.raises(ConfigurationError, match="must be at least 1, and 0 <= delay < n_steps"):
        delayed_recall(n_sequences, n_steps, delay=delay)


def test_recall_network__raises_without_units():
    with pytest.raises(ConfigurationError, match="n_hidden must be at least 1"):
        RecallNetwork(0)
