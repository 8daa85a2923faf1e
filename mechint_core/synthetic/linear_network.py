"""A network whose causal structure is known: parallel linear routes that a read-out adds up.

    h_k = c_k A x          logits = U (h_1 + ... + h_K)

Every route carries the same map A x, in the share c_k. So whatever the data and whatever metric is linear in the
logits, patching route k alone recovers exactly c_k / (c_1 + ... + c_K), and the sum of all routes recovers 1. A share
may be negative or above 1, as in networks whose parts oppose each other.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mechint_core.errors import ConfigurationError
from mechint_core.random import torch_generator


class LinearNetwork(nn.Module):
    """Routes `routes.0`, `routes.1`, ..., their sum `total`, and the `readout` of it."""

    def __init__(
        self, shares: Sequence[float], *, n_inputs: int = 8, n_units: int = 8, n_classes: int = 5, seed: int = 0
    ):
        super().__init__()
        if not shares or sum(shares) == 0:
            raise ConfigurationError(f"shares must not be empty or sum to 0. Got {list(shares)}.")
        draws = torch_generator(seed, "linear_network")
        weight = torch.randn(n_units, n_inputs, generator=draws, dtype=torch.float64)
        self.routes = nn.ModuleList(_linear(share * weight) for share in shares)
        self.total = nn.Identity()
        self.readout = _linear(torch.randn(n_classes, n_units, generator=draws, dtype=torch.float64))
        self.shares = tuple(share / sum(shares) for share in shares)
        """What patching each route recovers."""

    def forward(self, x: Float[Tensor, "sample unit"]) -> Float[Tensor, "sample class"]:
        """Return the logits."""
        return self.readout(self.total(sum((route(x) for route in self.routes), start=torch.zeros((), dtype=x.dtype))))


def _linear(weight: Float[Tensor, "row column"]) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=torch.float64)
    layer.weight.data.copy_(weight)
    return layer
