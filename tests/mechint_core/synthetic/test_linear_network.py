"""The network with planted routes."""

import pytest
import torch
from hypothesis import given, strategies as st

from mechint_core.errors import ConfigurationError
from mechint_core.random import torch_generator
from mechint_core.synthetic.linear_network import LinearNetwork


def inputs():
    return torch.randn(4, 8, dtype=torch.float64, generator=torch_generator(0, "x"))


# Known answer
def test_linear_network__shares_are_the_routes_parts_of_the_whole():
    assert LinearNetwork((3.0, 1.0)).shares == (0.75, 0.25)


# Oracle
def test_linear_network__computes_the_sum_of_its_routes():
    model, x = LinearNetwork((2.0, -0.5)), inputs()
    wanted = x @ (model.routes[0].weight + model.routes[1].weight).T @ model.readout.weight.T
    torch.testing.assert_close(model(x), wanted)


# Law
@given(st.lists(st.floats(0.1, 5), min_size=1, max_size=4), st.integers(0, 2**20))
def test_linear_network__every_route_carries_its_share_of_every_output(weights, seed):
    model, x = LinearNetwork(weights, seed=seed), inputs()
    for route, share in zip(model.routes, model.shares, strict=True):
        torch.testing.assert_close(model.readout(route(x)), share * model(x))


# Bad input
@pytest.mark.parametrize("weights", [(), (1.0, -1.0)])
def test_linear_network__raises_on_shares_that_add_up_to_nothing(weights):
    with pytest.raises(ConfigurationError, match="must not be empty or sum to 0"):
        LinearNetwork(weights)
