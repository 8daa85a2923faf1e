"""A task of memory for recurrent networks: say at every step what came `delay` steps ago.

    y(t) = x(t - delay)            x: independent standard normal numbers; y = 0 before there is one

An answer without memory has a mean squared error of 1, one with perfect memory of 0. The input is white, so whatever
memory the hidden states show is the network's own.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mechint_core.errors import ConfigurationError
from mechint_core.random import derive_seed, torch_generator


def delayed_recall(
    n_sequences: int, n_steps: int, *, delay: int = 3, seed: int = 0
) -> tuple[Float[Tensor, "sample time 1"], Float[Tensor, "sample time 1"]]:
    """Draw inputs and the answers to them.

    Parameters
    ----------
    n_sequences, n_steps
        How many, and how long.
    delay
        Steps between an input and its answer, less than `n_steps`.
    seed
        Same seed, same bits.

    Raises
    ------
    ConfigurationError
        If a size is below 1, or the delay not within 0 and `n_steps` - 1.

    Examples
    --------
    >>> inputs, answers = delayed_recall(2, 10, delay=3)
    >>> answers[:, 3:].equal(inputs[:, :-3])
    True
    """
    if min(n_sequences, n_steps) < 1 or not 0 <= delay < n_steps:
        raise ConfigurationError(
            f"n_sequences and n_steps must be at least 1, and 0 <= delay < n_steps. "
            f"Got {n_sequences}, {n_steps} and {delay}."
        )
    inputs = torch.randn(n_sequences, n_steps, 1, generator=torch_generator(seed, "delayed_recall"))
    return inputs, nn.functional.pad(inputs, (0, 0, delay, 0))[:, :n_steps]


class RecallNetwork(nn.Module):
    """A gated recurrent network with a linear read-out, which shows its hidden states.

    Parameters
    ----------
    n_hidden
        Units.
    seed
        The same seed gives the same first weights.

    Raises
    ------
    ConfigurationError
        If there is no unit.
    """

    def __init__(self, n_hidden: int = 32, *, seed: int = 0) -> None:
        super().__init__()
        if n_hidden < 1:
            raise ConfigurationError(f"n_hidden must be at least 1. Got {n_hidden}.")
        with torch.random.fork_rng(devices=[]):  # GRU and Linear draw from torch's own generator
            torch.default_generator.manual_seed(derive_seed(seed, "recall_network"))
            self.recurrent = nn.GRU(1, n_hidden, batch_first=True)
            self.read_out = nn.Linear(n_hidden, 1)

    def forward(
        self, inputs: Float[Tensor, "sample time 1"]
    ) -> tuple[Float[Tensor, "sample time 1"], Float[Tensor, "sample time unit"]]:
        """Return the answers and the hidden states."""
        hidden, _ = self.recurrent(inputs)
        return self.read_out(hidden), hidden
