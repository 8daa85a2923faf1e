"""Change one component, and see what every later one makes of it.

    held       each later site gives what it gave in the base run, and what it would have given is kept: the change
               reaches it directly only, whatever lies between
    not held   each later site gives what it computes, and that is kept: the change reaches it on all ways

One run per change tells what it does to all later components.

Cost: 1 forward of all rows per change, packed into passes of `batch_rows`, and a copy of every later activation.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from mechint_core.patching.components import Component
from mechint_core.patching.edits import Edit, Write
from mechint_core.patching.pair_runs import PairRuns
from mechint_core.patching.parts import Activation
from mechint_core.patching.passes import run_experiments

OUTPUT: Final = "output"
"""The model's answer, among the activations of its sites."""

Activations = Mapping[str, Float[Tensor, "sample ..."]]


@dataclass(frozen=True, slots=True, eq=False)
class Watch:
    """Keep what a site computes; where it is held, let it give what the base run gave."""

    site: str
    base: Activation
    computed: Activation
    """Filled row by row."""
    held: bool

    def apply(self, activation: Activation, rows: slice) -> Activation:
        """Return what the site gives."""
        self.computed[rows] = activation
        return self.base[rows] if self.held else activation


def watched_runs(
    runs: PairRuns, batch: Tensor, components: Sequence[Component], base: Activations, donor: Activations, *, held: bool
) -> dict[str, Activations]:
    """Return, by each component's name, what later sites and the answer compute if it gives what the donor run gave.

    Components are changed one by one, as many in one pass as fill it.
    """
    steps = {each.site: each.step for each in components}
    computed: dict[str, Activations] = {}
    experiments: list[list[Edit]] = []
    for sender in components:
        later = {site: torch.empty_like(base[site]) for site, step in steps.items() if step > sender.step}
        watches = [Watch(site, base[site], kept, held) for site, kept in later.items()]
        experiments.append([Write(sender.site, donor[sender.site], sender.part), *watches])
        computed[sender.name] = later | {OUTPUT: torch.empty_like(base[OUTPUT])}
    outputs = [each[OUTPUT] for each in computed.values()]
    config = runs.config
    passes = run_experiments(
        runs.model, batch, experiments, batch_rows=config.batch_rows, sample_axis=config.sample_axis
    )
    for pieces, output in passes:
        values = runs.read(output)
        for piece in pieces:
            outputs[piece.experiment][piece.rows] = values[piece.place]
    return computed
