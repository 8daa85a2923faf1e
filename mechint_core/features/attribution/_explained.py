"""Attributions to coordinates, gathered batch by batch into attributions to parts."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechint_core.features.attribution._attributed_answer import Answer
from mechint_core.features.attribution._parts import parts_of


@dataclass(frozen=True, slots=True)
class Explained:
    """What an attribution technique found of every sample."""

    per_sample: Float[np.ndarray, "sample part"]
    change: Float[np.ndarray, "sample"]
    """What the attributions of a sample should add up to."""
    names: tuple[str, ...]
    target: Int[np.ndarray, "sample"] | None
    """The classes explained."""
    grid: Float[np.ndarray, "position unit"]
    """Means over samples, per unit at each position."""


class Gathering:
    """Sums over coordinates, kept while the batches come in."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self.parts = parts_of(answer, answer.coordinates(answer.inputs[:1]).shape[1:])
        self._found: list[Tensor] = []
        self._grid = torch.zeros(self.parts.n_positions, self.parts.n_units, dtype=torch.float64).to(
            answer.inputs.device
        )

    def add(self, attribution: Float[Tensor, "row ..."]) -> None:
        """Take the attributions of the next samples to their coordinates."""
        self._found.append(self.parts.sums(attribution))
        self._grid += self.parts.grid(attribution).sum(dim=0)

    def explained(self, change: Float[Tensor, "sample"]) -> Explained:
        """Return what was gathered."""
        target = self._answer.target
        return Explained(
            per_sample=torch.cat(self._found).cpu().numpy(),
            change=change.cpu().numpy(),
            names=self.parts.names,
            target=None if target is None else target.cpu().numpy(),
            grid=(self._grid / self._answer.n_samples).cpu().numpy(),
        )
