"""What is done to an activation while a model runs.

An edit belongs to a site and knows, for every row of a batch, what the site gives in place of what it computed.
Edits made together are an experiment; `passes` runs many experiments in few forwards.
"""

from dataclasses import dataclass
from typing import Final, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from mechint_core.patching.parts import Activation, Part, Slice, where

WHOLE: Final = Slice()


@runtime_checkable
class Edit(Protocol):
    """A change at one site."""

    @property
    def site(self) -> str:
        """The module's name, or `name:input`."""
        ...

    def apply(self, activation: Activation, rows: slice) -> Activation:
        """Return what the site gives in place of `activation`, samples first, which belongs to `rows` of the batch."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Write:
    """Put there what another run gave there."""

    site: str
    donor: Activation
    """Samples first, one for every row of the batch."""
    part: Part = WHOLE

    def apply(self, activation: Activation, rows: slice) -> Activation:
        """Return the activation with the donor's part."""
        return self.part.put(activation, self.donor[rows])


@dataclass(frozen=True, slots=True, eq=False)
class Shift:
    """Add a vector."""

    site: str
    vector: Float[Tensor, "unit"]
    position: int | None = None

    def apply(self, activation: Activation, rows: slice) -> Activation:  # noqa: ARG002 - the same for every row
        """Return the activation plus the vector, at one position or at all."""
        made = activation.clone()
        made[where(made, self.position, None)] += self.vector.to(made)
        return made
