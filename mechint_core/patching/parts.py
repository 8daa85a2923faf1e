"""What of an activation is changed: some of its numbers, its share along a direction, or dictionary latents.

    Slice       x[p, u]  <-  y[p, u]                      positions p, units u; a head is a slice of units
    Direction   x        <-  x + ((y - x) . v) v          |v| = 1: only the coordinate along v
    Latents     x        <-  x + (f(y) - f(x)) W_dec      what the dictionary says of these latents; its error stays

x is what the run computed, y the donor's activation at the same site. Samples come first: (sample[, position], unit).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from mechint_core.errors import ConfigurationError, DegenerateInputError, ShapeError

Activation = Float[Tensor, "sample ..."]


@runtime_checkable
class Part(Protocol):
    """A part of an activation that a donor can fill."""

    @property
    def position(self) -> int | None:
        """The one position that is changed (second axis); None: all."""
        ...

    def put(self, activation: Activation, donor: Activation) -> Activation:
        """Return a new activation, which has this part from `donor` and the rest from `activation`."""
        ...


@runtime_checkable
class Codes(Protocol):
    """What a trained dictionary can do."""

    site: str
    """Whose activations it was trained on: a module's name, or name@position."""
    W_enc: Tensor
    """(latent, unit)"""
    W_dec: Tensor
    """(latent, unit)"""

    def encode(self, x: Tensor) -> Tensor:
        """(..., unit) -> (..., latent)"""
        ...

    def decode(self, codes: Tensor) -> Tensor:
        """(..., latent) -> (..., unit)"""
        ...


@dataclass(frozen=True, slots=True)
class Slice:
    """Numbers of an activation: of one position or all, of some units or all."""

    position: int | None = None
    units: slice | None = None

    def put(self, activation: Activation, donor: Activation) -> Activation:
        """Return a new activation with the donor's numbers."""
        made = activation.clone()
        place = where(made, self.position, self.units)
        made[place] = donor[place].to(made)
        return made


@dataclass(frozen=True, slots=True, eq=False)
class Direction:
    """The coordinate along one direction of activation space."""

    vector: Float[Tensor, "unit"]
    """Any length but 0."""
    position: int | None = None

    def __post_init__(self) -> None:
        if self.vector.ndim != 1 or not bool(self.vector.isfinite().all()) or not bool(self.vector.any()):
            raise DegenerateInputError(
                f"a direction must be one finite vector other than 0. Got shape {tuple(self.vector.shape)}."
            )

    def put(self, activation: Activation, donor: Activation) -> Activation:
        """Return a new activation, moved along the direction to the donor's coordinate."""
        made = activation.clone()
        place = where(made, self.position, None)
        v = (self.vector / self.vector.norm()).to(made)
        made[place] += ((donor[place].to(made) - made[place]) @ v)[..., None] * v
        return made


@dataclass(frozen=True, slots=True, eq=False)
class Latents:
    """Some latents of a dictionary of this site."""

    dictionary: Codes
    latents: Sequence[int]
    position: int | None = None

    def put(self, activation: Activation, donor: Activation) -> Activation:
        """Return a new activation, changed by what the dictionary says the donor has more of."""
        made = activation.clone()
        place = where(made, self.position, None)
        decoder = self.dictionary.W_dec
        chosen = torch.as_tensor(list(self.latents), device=decoder.device)
        ours, theirs = (self.dictionary.encode(each[place].to(decoder))[..., chosen] for each in (made, donor))
        made[place] += ((theirs - ours) @ decoder[chosen]).to(made)
        return made


def where(activation: Activation, position: int | None, units: slice | None) -> tuple[slice | int, ...]:
    """Return the index of a position and of units, samples first.

    Raises
    ------
    ShapeError
        If there is no such position, or no such unit.
    """
    shape = tuple(activation.shape)
    if position is not None and (len(shape) < 3 or not -shape[1] <= position < shape[1]):
        raise ShapeError(f"the site must have a position {position}. Got an activation of shape {shape}.")
    if units is not None and (units.stop or 0) > shape[-1]:
        raise ShapeError(f"the site must have units up to {units.stop}. Got {shape[-1]} units.")
    middle = [slice(None)] * (len(shape) - 2)
    if position is not None:
        middle[0] = slice(position, position + 1 or None)
    return (slice(None), *middle, slice(None) if units is None else units)


def head_units(head: int, n_heads: int, n_units: int) -> slice:
    """Return the units of one head where all heads lie side by side.

    Raises
    ------
    ConfigurationError
        If the units cannot be shared out among the heads, or there is no such head.
    """
    if n_heads < 1 or n_units % n_heads or not 0 <= head < n_heads:
        raise ConfigurationError(f"{n_units} units must divide into {n_heads} heads, and head {head} be one of them.")
    width = n_units // n_heads
    return slice(head * width, (head + 1) * width)
