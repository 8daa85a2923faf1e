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
from mechint_core.patching import Block, Component, Edit, PairRuns, PromptPairs, where


@dataclass(frozen=True, slots=True, eq=False)
class _Ablate:
    """Put the donor's numbers into parts of a site."""

    site: str
    donor: Float[Tensor, "sample ..."]
    ablated: Bool[Tensor, "1 ..."]
    """Which numbers of a sample."""

    def apply(self, activation: Tensor, rows: slice) -> Tensor:
        return torch.where(self.ablated, self.donor[rows].to(activation), activation)


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
            ablated = torch.zeros_like(donor[:1])
            for number, component in enumerate(self.components):
                if component.site == site and number not in intact:
                    ablated[where(ablated, component.part.position, component.part.units)] = 1
            if bool(ablated.any()):
                filled = donor if self.mean is None else self.mean[site].expand_as(donor)
                edits.append(_Ablate(site, filled, ablated.bool()))
        return edits


def mean_activations(runs: PairRuns, pairs: PromptPairs) -> dict[str, Float[Tensor, "1 ..."]]:
    """Return the mean corrupted activation at every site, per position."""
    sums = dict.fromkeys(runs.sites, torch.zeros(()))
    for block in runs.blocks(pairs):
        sums = {site: sums[site] + seen.double().sum(0, keepdim=True) for site, seen in block.donor_activations.items()}
    return {site: each / len(pairs) for site, each in sums.items()}
