"""The units that training works in.

    x' = (x - centre) / scale          centre = geometric median,  scale^2 = mean |x - centre|^2 / d,  of a sample

One scale per site: a crosscoder reads several sites, and none of them may rule the error by its size alone.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mechint_core.errors import DegenerateInputError

WEISZFELD_STEPS = 20


class Standardisation(NamedTuple):
    """Where the vectors of some sites lie, and how far they reach."""

    centre: Float[Tensor, "unit"]
    scale: Float[Tensor, "unit"]
    """The same for all units of one site."""
    median_norm: Tensor
    """Median of |x'|."""

    def apply(self, x: Float[Tensor, "sample unit"]) -> Float[Tensor, "sample unit"]:
        """Return x'."""
        return (x - self.centre) / self.scale

    def to(self, device: torch.device) -> "Standardisation":
        """Return the same on a device."""
        return Standardisation(*(each.to(device) for each in self))


def standardisation(vectors: Float[np.ndarray, "sample unit"], widths: Sequence[int]) -> Standardisation:
    """Measure a sample of vectors, which are the vectors of several sites of these widths side by side.

    Raises
    ------
    DegenerateInputError
        If the vectors of a site are all the same, or one is not finite.
    """
    if not np.isfinite(vectors).all():
        raise DegenerateInputError("activations must be finite. Got NaN or infinity.")
    sites = np.split(vectors.astype(np.float64), np.cumsum(widths)[:-1], axis=1)
    measured = [_centre_and_scale(site) for site in sites]
    centre = np.concatenate([centre for centre, _ in measured])
    scale = np.repeat([scale for _, scale in measured], widths)
    norms = np.linalg.norm((vectors - centre) / scale, axis=1)
    return Standardisation(
        torch.from_numpy(centre.astype(np.float32)),
        torch.from_numpy(scale.astype(np.float32)),
        torch.tensor(float(np.median(norms))),
    )


def _centre_and_scale(vectors: Float[np.ndarray, "sample unit"]) -> tuple[Float[np.ndarray, "unit"], float]:
    """Return the geometric median, and the root mean square distance from it per unit."""
    centre = vectors.mean(axis=0)
    spread = float(np.sqrt(np.mean((vectors - centre) ** 2)))
    if spread <= 1e-6 * float(np.abs(centre).max()) or spread == 0:
        raise DegenerateInputError("activations must differ. Got vectors that are all the same: nothing to learn.")
    for _ in range(WEISZFELD_STEPS):  # a vector at the guess itself must not weigh infinitely
        weights = 1 / np.maximum(np.linalg.norm(vectors - centre, axis=1), 1e-3 * spread)
        centre = weights @ vectors / weights.sum()
    return centre, float(np.sqrt(np.mean((vectors - centre) ** 2)))
