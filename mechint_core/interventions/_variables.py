"""Variables inside an activation, and interventions on them.

    Units        z = x[u]                 x <- x with u moved by dz
    Coordinate   z = x . v, |v| = 1       x <- x + dz v
    Latents      z = f(x)[l]              x <- x + dz W_dec[l]      the dictionary's error stays

    interpolate  z <- (1 - a) z + a z'    z' of another input
    do           z <- a
    add          z <- z + a

All the rest of the activation keeps its value: an intervention on z alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from mechint_core.errors import ConfigurationError, DegenerateInputError, ShapeError
from mechint_core.patching import Codes
from mechint_core.patching.parts import Activation, where

Intervention = Literal["interpolate", "do", "add"]


@runtime_checkable
class Variable(Protocol):
    """One number or several, computed from each vector of an activation."""

    def read(self, x: Float[Tensor, "... unit"]) -> Float[Tensor, "... column"]:
        """Return z."""
        ...

    def move(self, x: Float[Tensor, "... unit"], change: Float[Tensor, "... column"]) -> Float[Tensor, "... unit"]:
        """Return x with z moved by `change`."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Units:
    """Some units themselves, or all."""

    units: tuple[int, ...] | None = None

    def read(self, x: Float[Tensor, "... unit"]) -> Float[Tensor, "... column"]:
        """Return the units."""
        return x if self.units is None else x[..., list(self._checked(x))]

    def move(self, x: Float[Tensor, "... unit"], change: Float[Tensor, "... column"]) -> Float[Tensor, "... unit"]:
        """Return x with the units moved."""
        if self.units is None:
            return x + change
        made = x.clone()
        made[..., list(self.units)] += change
        return made

    def _checked(self, x: Tensor) -> tuple[int, ...]:
        units = self.units or ()
        if len(set(units)) < len(units) or min(units) < 0 or max(units) >= x.shape[-1]:
            raise ConfigurationError(f"units must be different, of 0...{x.shape[-1] - 1}. Got {units}.")
        return units


@dataclass(frozen=True, slots=True, eq=False)
class Coordinate:
    """The coordinate along a direction of length 1."""

    direction: Float[Tensor, "unit"]

    @classmethod
    def along(cls, vector: Float[Tensor, "unit"]) -> "Coordinate":
        """Return the coordinate along a vector of any length but 0."""
        length = vector.norm()
        if not bool(length.isfinite()) or float(length) == 0:
            raise DegenerateInputError(f"a direction must be a finite vector other than 0. Got length {float(length)}.")
        return cls(vector / length)

    def read(self, x: Float[Tensor, "... unit"]) -> Float[Tensor, "... 1"]:
        """Return x . v."""
        if x.shape[-1] != len(self.direction):
            raise ShapeError(f"the vector must have the site's {x.shape[-1]} units. Got {len(self.direction)}.")
        return (x @ self.direction.to(x))[..., None]

    def move(self, x: Float[Tensor, "... unit"], change: Float[Tensor, "... 1"]) -> Float[Tensor, "... unit"]:
        """Return x + dz v."""
        return x + change * self.direction.to(x)


@dataclass(frozen=True, slots=True, eq=False)
class LatentCodes:
    """Some latents of a dictionary of the site."""

    dictionary: Codes
    latents: Sequence[int]

    def read(self, x: Float[Tensor, "... unit"]) -> Float[Tensor, "... column"]:
        """Return the codes."""
        if x.shape[-1] != self.dictionary.W_dec.shape[1]:
            raise ShapeError(
                f"the dictionary must be of the site's {x.shape[-1]} units. Got {self.dictionary.W_dec.shape[1]}."
            )
        return self.dictionary.encode(x.to(self.dictionary.W_dec))[..., list(self.latents)].to(x)

    def move(self, x: Float[Tensor, "... unit"], change: Float[Tensor, "... column"]) -> Float[Tensor, "... unit"]:
        """Return x with what the decoder makes of the change."""
        return x + change @ self.dictionary.W_dec[list(self.latents)].to(x)


@dataclass(frozen=True, slots=True, eq=False)
class Intervene:
    """Give a variable another value, and leave the rest of the activation as it is."""

    site: str
    variable: Variable
    kind: Intervention
    amount: float
    donor: Activation | None = None
    """The activations that are interpolated to, samples first, for every row of the batch."""
    position: int | None = None

    def apply(self, activation: Activation, rows: slice) -> Activation:
        """Return the activation in which z has its new value."""
        made = activation.clone()
        place = where(made, self.position, None)
        z = self.variable.read(made[place])
        match self.kind:
            case "do":
                change = self.amount - z
            case "add":
                change = torch.full_like(z, self.amount)
            case "interpolate":
                if self.donor is None:
                    raise ConfigurationError("interpolating needs the activations of the source. Got none.")
                change = self.amount * (self.variable.read(self.donor[rows][place].to(made)) - z)
        made[place] = self.variable.move(made[place], change)
        return made
