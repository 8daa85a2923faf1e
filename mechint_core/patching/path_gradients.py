"""What experiments on paths would give if the model were linear around each run.

    effect(s -> r)  =  dm/dr . dr/ds . (s' - s)          dr/ds: every other component held, dm/dr: nothing held
    effect(s -> m)  =          dm/ds . (s' - s)          every other component held

To hold a component is to cut the gradient there, so one run in which all are cut serves every pair of sender and
receiver: each backward pass from one receiver reaches all its senders, and nothing beyond.

Source: [@syed2024].
Cost: 2 forwards and 2 + R backwards for all senders and R receivers. Use it inside `differentiation(model)`.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mechint_core.models import samples_first, visited
from mechint_core.patching.answers import measure
from mechint_core.patching.components import Component
from mechint_core.patching.pair_runs import Block, PairRuns


@dataclass(frozen=True, slots=True)
class _Trace:
    """A run whose gradients can be asked for."""

    given: dict[str, Tensor] = field(default_factory=dict)
    """What each site computed."""
    probes: dict[str, Tensor] = field(default_factory=dict)
    """Zeros that were added to it; a gradient with respect to them is one with respect to the site."""

    def visit(self, site: str, cut: bool, activation: Tensor) -> Tensor:
        self.given[site] = activation
        self.probes[site] = torch.zeros_like(activation).requires_grad_()
        return (activation.detach() if cut else activation) + self.probes[site]

    def gradients(self, of: Tensor) -> dict[str, Tensor]:
        """Return the gradient of a sum with respect to every site; 0 where it does not depend on it."""
        if not of.requires_grad:
            return {site: torch.zeros_like(probe) for site, probe in self.probes.items()}
        found = torch.autograd.grad(of, list(self.probes.values()), retain_graph=True, materialize_grads=True)
        return dict(zip(self.probes, found, strict=True))


def linear_path_effects(
    runs: PairRuns,
    block: Block,
    senders: Sequence[Component],
    receivers: Sequence[Component],
    components: Sequence[str],
) -> Float[np.ndarray, "sender receiver sample"]:
    """Return the linear change of every row's metric by each sender through each receiver.

    The last receiver is the answer itself. The block holds the activations of its base runs.
    """
    axis = runs.config.sample_axis
    changes = [_change(each, block) for each in senders]
    effects = np.zeros((len(senders), len(receivers) + 1, len(block.rows)))
    sites = tuple(dict.fromkeys([*components, *(each.site for each in (*senders, *receivers))]))
    free, answer = _traced(runs, block, sites, ())
    towards_answer = free.gradients(answer)
    held, answer = _traced(runs, block, sites, components)
    for at, receiver in enumerate((*receivers, None)):
        slopes = held.gradients(answer if receiver is None else _along(held, receiver, towards_answer, axis))
        for effect, sender, change in zip(effects, senders, changes, strict=True):
            if receiver is None or sender.before(receiver):
                effect[at] = _inner(samples_first(slopes[sender.site], axis), change)
    return effects


def _traced(runs: PairRuns, block: Block, sites: Sequence[str], cut: Sequence[str]) -> tuple[_Trace, Tensor]:
    """Run the base inputs with probes at `sites`; return them and the summed metric."""
    trace = _Trace()
    with ExitStack() as hooks:
        for site in sites:
            hooks.enter_context(visited(runs.model, site, partial(trace.visit, site, site in cut)))
        values = runs.read(runs.model(block.base))
    return trace, measure(values, block.answer, runs.config.metric).sum()


def _along(trace: _Trace, receiver: Component, slopes: Mapping[str, Tensor], axis: int) -> Tensor:
    """Return what the receiver gives, measured along the direction in which it moves the answer."""
    slope = samples_first(slopes[receiver.site], axis)
    part = receiver.part.put(torch.zeros_like(slope), slope)
    return (samples_first(trace.given[receiver.site], axis) * part).sum()


def _change(sender: Component, block: Block) -> Tensor:
    """Return s' - s."""
    base, donor = block.base_activations[sender.site], block.donor_activations[sender.site]
    return sender.part.put(base, donor) - base


def _inner(slope: Tensor, change: Tensor) -> Float[np.ndarray, "sample"]:
    return (slope.double() * change.double()).flatten(1).sum(dim=1).detach().cpu().numpy()
