"""The null of an attribution: the same network with shuffled parameters.

An attribution that explains what a model has learned must change when what it has learned is destroyed. Shuffling the
entries of every parameter keeps the architecture and the distribution of the weights, and nothing else.

Source: [@adebayo2018].
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import nn

from mechint_core.features.attribution._attribution_question import AttributionConfig, Samples
from mechint_core.features.attribution._explained import Explained
from mechint_core.random import torch_generator

Explain = Callable[[nn.Module, Samples], Explained]


@dataclass(frozen=True, slots=True)
class Compared:
    """The same few samples in the model itself and in shuffled ones."""

    own: Float[np.ndarray, "few part"]
    """Attributions."""
    own_change: float
    """Mean change of the answer."""
    shuffled: Float[np.ndarray, "draw few part"]
    """No draws if there is nothing to shuffle, or no null was asked for."""
    shuffled_change: Float[np.ndarray, "draw"]


def compare_with_shuffled(
    model: nn.Module, samples: Samples, target: np.ndarray | None, explain: Explain, config: AttributionConfig
) -> Compared:
    """Explain the first samples in the model and in shuffled copies of it, all towards the same `target`."""
    few = replace(samples, target=target).first(config.null_samples)
    own = explain(model, few)
    fixed = all(parameter.numel() < 2 for parameter in model.parameters())
    draws = [explain(shuffled(model, config.seed, draw), few) for draw in range(0 if fixed else config.n_null)]
    return Compared(
        own=own.per_sample,
        own_change=float(own.change.mean()),
        shuffled=np.array([each.per_sample for each in draws]).reshape(-1, *own.per_sample.shape),
        shuffled_change=np.array([each.change.mean() for each in draws], dtype=np.float64),
    )


@torch.no_grad()
def shuffled(model: nn.Module, seed: int, draw: int) -> nn.Module:
    """Return a copy of the model in which the entries of each parameter have changed places."""
    made, draws = copy.deepcopy(model), torch_generator(seed, "shuffled parameters", draw)
    for parameter in made.parameters():
        order = torch.randperm(parameter.numel(), generator=draws).to(parameter.device)
        parameter.copy_(parameter.flatten()[order].view_as(parameter))
    return made
