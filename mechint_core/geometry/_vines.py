"""Vines: bars of successive barcodes that belong together.

    movement    2-Wasserstein distance between neighbours; its matching says which bar became which
    vine        a chain of matched bars; a bar that is matched with the diagonal begins or ends one

Source: [@cohensteiner2006].
Cost: one assignment between neighbouring barcodes, cubic in their bars.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float, Int

from mechint_core.geometry.diagram_distance import diagram_matching


@dataclass(frozen=True, slots=True)
class Vines:
    """Births and deaths of every vine at every checkpoint; NaN where it is not alive."""

    birth: Float[np.ndarray, "checkpoint vine"]
    death: Float[np.ndarray, "checkpoint vine"]
    movement: Float[np.ndarray, "checkpoint"]

    @classmethod
    def of(cls, barcodes: Sequence[Float[np.ndarray, "_ 2"]]) -> "Vines":
        """Chain the bars of barcodes, given in order."""
        owner = [np.arange(len(barcodes[0]))]
        movement, n_vines = [0.0], len(barcodes[0])
        for earlier, later in pairwise(barcodes):
            found = diagram_matching(earlier, later, order=2.0)
            vine = np.full(len(later), -1)
            vine[found.second] = owner[-1][found.first]
            new = vine < 0
            vine[new] = n_vines + np.arange(new.sum())
            n_vines += int(new.sum())
            owner.append(vine)
            movement.append(found.distance)
        ends = np.full((len(barcodes), n_vines, 2), np.nan)
        for place, (bars, vine) in enumerate(zip(barcodes, owner, strict=True)):
            ends[place, vine] = bars
        return cls(ends[..., 0], ends[..., 1], np.array(movement))

    @property
    def n_vines(self) -> int:
        """Vines in all."""
        return self.birth.shape[1]

    def strongest(self, n_vines: int) -> "Vines":
        """Return the vines of most length over all checkpoints, the longest first."""
        length = np.nansum(self.death - self.birth, axis=0)
        kept = np.argsort(-length, kind="stable")[:n_vines]
        return Vines(self.birth[:, kept], self.death[:, kept], self.movement)

    def first(self) -> Int[np.ndarray, "vine"]:
        """Return the checkpoint at which each vine is first seen."""
        return np.isfinite(self.birth).argmax(axis=0)

    def last(self) -> Int[np.ndarray, "vine"]:
        """Return the checkpoint at which each vine is last seen."""
        return len(self.birth) - 1 - np.isfinite(self.birth[::-1]).argmax(axis=0)
