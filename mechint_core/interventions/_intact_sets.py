"""Run a model with only some of its components intact, the others ablated.

Cost: 1 forward of all pairs for each set, packed; each set is run once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mechint_core.interventions._sufficient_sets import Subset
from mechint_core.patching import Block, Component, Edit, PairRuns, PromptPairs


@dataclass(frozen=True, slots=True, eq=False)
class _Ablate:
    """Put the donor's numbers into some units of a site."""

    site: str
    donor: Float[Tensor, "sample ..."]
    units: Bool[Tensor, "unit"]

    def apply(self, activation: Tensor, rows: slice) -> Tensor:
        return torch.where(self.units, self.donor[rows].to(activation), activation)


@dataclass(frozen=True, slots=True)
class Trials:
    """Runs of some pairs with only some components intact; each set is run once."""

    runs: PairRuns
    pairs: PromptPairs
    components: Sequence[Component]
    mean: Mapping[str, Float[Tensor, "1 ..."]] | None
    """What ablated components give; None: what the corrupted run gave."""
    known: dict[Subset, Float[np.ndarray, "sample"]] = field(default_factory=dict[Subset, np.ndarray])

    @property
    def everything(self) -> Subset:
        return frozenset(range(len(self.components)))

    def scores(self, subsets: Sequence[Subset]) -> Float[np.ndarray, "experiment sample"]:
        """Return the metric of every pair with only these components intact."""
        new = [each for each in dict.fromkeys(subsets) if each not in self.known]
        if new:
            made = self.runs.score_pairs(self.pairs, lambda block: [self._edits(each, block) for each in new])
            self.known.update(zip(new, made.patched, strict=True))
        return np.array([self.known[each] for each in subsets])

    def _edits(self, intact: Subset, block: Block) -> list[Edit]:
        edits: list[Edit] = []
        for site, donor in block.donor_activations.items():
            units = torch.zeros(donor.shape[-1], dtype=torch.bool, device=donor.device)
            for number, component in enumerate(self.components):
                if component.site == site and number not in intact:
                    units[component.part.units or slice(None)] = True
            if bool(units.any()):
                filled = donor if self.mean is None else self.mean[site].expand_as(donor)
                edits.append(_Ablate(site, filled, units))
        return edits


def mean_activations(runs: PairRuns, pairs: PromptPairs) -> dict[str, Float[Tensor, "1 ..."]]:
    """Return the mean corrupted activation at every site, per position."""
    sums = dict.fromkeys(runs.sites, torch.zeros(()))
    for block in runs.blocks(pairs):
        sums = {site: sums[site] + seen.double().sum(0, keepdim=True) for site, seen in block.donor_activations.items()}
    return {site: each / len(pairs) for site, each in sums.items()}
