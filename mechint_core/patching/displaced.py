"""A control for any edit: a push of the same size, in a random direction.

    x  <-  x + |edit(x) - x| u          u uniform on the sphere of the units, drawn for every sample and position

What the edit does beyond this control is due to what it changes, not to how much.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mechint_core.patching.edits import Edit
from mechint_core.patching.parts import Activation


@dataclass(frozen=True, slots=True, eq=False)
class Displaced:
    """Move each vector as far as an edit does, in a direction of its own."""

    edit: Edit
    direction: Float[Tensor, "sample ..."]
    """Of length 1 along the last axis, for every row of the batch."""

    @property
    def site(self) -> str:
        """Where the edit is."""
        return self.edit.site

    def apply(self, activation: Activation, rows: slice) -> Activation:
        """Return the activation, displaced."""
        change = self.edit.apply(activation, rows) - activation
        return activation + change.norm(dim=-1, keepdim=True) * self.direction[rows].to(activation)


def random_directions(like: Activation, draws: np.random.Generator) -> Activation:
    """Draw a direction for each vector of `like`; taken block by block in order, they do not depend on the blocks."""
    noise = torch.from_numpy(draws.standard_normal(tuple(like.shape)))
    return (noise / noise.norm(dim=-1, keepdim=True)).to(like)
