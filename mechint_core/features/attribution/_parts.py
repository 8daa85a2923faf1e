"""Which coordinates belong together: units, positions, heads, latents.

Every coordinate of an activation belongs to one part; an attribution to a part is the sum over its coordinates. The
axes of an activation are read as

    (unit)    (position, unit)    (channel, place, place, ...): a channel is a unit, its places are positions

With a dictionary, coordinates are its latents followed by the units of what they leave unexplained; the latter are
one part, named `error`.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechint_core.errors import ShapeError
from mechint_core.features.attribution._attributed_answer import Answer
from mechint_core.features.attribution._attribution_question import Kind

ERROR: Final = "error"
"""Name of the part that a dictionary leaves unexplained."""


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of one sample's coordinates."""

    names: tuple[str, ...]
    owner: Int[Tensor, "..."]
    """The part that each coordinate belongs to, in the shape of one sample's coordinates."""
    cell: Int[Tensor, "..."]
    """The same, for units at positions."""
    n_positions: int
    n_units: int

    def sums(self, values: Float[Tensor, "row ..."]) -> Float[Tensor, "row part"]:
        """Add up what belongs to each part."""
        return _summed(values, self.owner, len(self.names))

    def grid(self, values: Float[Tensor, "row ..."]) -> Float[Tensor, "row position unit"]:
        """Add up what belongs to each unit (head, latent) at each position."""
        return _summed(values, self.cell, self.n_positions * self.n_units).unflatten(
            1, (self.n_positions, self.n_units)
        )


def parts_of(answer: Answer, shape: torch.Size) -> Parts:
    """Return the parts of coordinates of this shape (of one sample)."""
    position, unit, units = _axes(answer, shape)
    unit, units = _grouped(answer, unit, units)
    n_positions, n_units = int(position.max()) + 1, len(units)
    position, unit = (each.to(answer.inputs.device) for each in (position, unit))
    cell = position * n_units + unit
    owner, names = _owner(answer.config.parts, position, unit, cell, n_positions, units)
    return Parts(names, owner, cell, n_positions, n_units)


def _axes(answer: Answer, shape: torch.Size) -> tuple[Int[Tensor, "..."], Int[Tensor, "..."], tuple[str, ...]]:
    """Return the position and the unit of every coordinate, and the units' names."""
    grid = np.indices(tuple(shape))
    if not (answer.site or answer.inputs.is_floating_point()):  # tokens: positions without units
        unit, places = np.zeros(tuple(shape), dtype=np.int64), range(len(shape))
    elif len(shape) <= 2 or answer.dictionary is not None:
        unit, places = grid[-1], range(len(shape) - 1)
    else:
        unit, places = grid[0], range(1, len(shape))
    position = np.zeros_like(unit)
    for axis in places:
        position = position * shape[axis] + grid[axis]
    names = tuple(f"unit {index}" for index in range(int(unit.max()) + 1))
    return torch.from_numpy(position), torch.from_numpy(unit.copy()), names


def _grouped(
    answer: Answer, unit: Int[Tensor, "..."], names: tuple[str, ...]
) -> tuple[Int[Tensor, "..."], tuple[str, ...]]:
    """Let heads or latents take the place of units."""
    if answer.dictionary is not None:
        n_latents = answer.dictionary.hidden_dim
        return unit.clamp(max=n_latents), (*(f"latent {index}" for index in range(n_latents)), ERROR)
    n_heads, n_units = answer.config.n_heads, len(names)
    if not n_heads:
        return unit, names
    if n_units % n_heads:
        raise ShapeError(f"n_heads must divide the {n_units} units of {answer.site or 'the input'!r}. Got {n_heads}.")
    return unit // (n_units // n_heads), tuple(f"head {index}" for index in range(n_heads))


def _owner(
    kind: Kind, position: Tensor, unit: Tensor, cell: Tensor, n_positions: int, units: tuple[str, ...]
) -> tuple[Int[Tensor, "..."], tuple[str, ...]]:
    if kind == "unit":
        return unit, units
    positions = tuple(f"position {index}" for index in range(n_positions))
    if kind == "position":
        return position, positions
    return cell, tuple(f"{where}, {what}" for where in positions for what in units)


def _summed(values: Tensor, owner: Tensor, n: int) -> Float[Tensor, "row part"]:
    flat = values.double().flatten(1)
    return flat.new_zeros(len(flat), n).index_add_(1, owner.flatten(), flat)
