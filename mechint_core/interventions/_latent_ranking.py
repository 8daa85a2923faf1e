"""Rank the latents of a dictionary by their effect, in two stages, as they are for thousands of latents.

    screen   e_j ~ mean_i sum_v f_j(x_iv) d_j . g_iv      g = dm / dx: all latents at once, from one backward pass
    exact    e_j = mean_i m_i - m_i(without j)            of the strongest by the screen

The same is done to the dictionary and to its controls, so that what the first stage misses, it misses of all of them.

Source: [@marks2024] for the screen, [@nanda2023b].
Cost: two dense products of vectors x units x latents for the screen.
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechint_core.interventions._latent_runs import LatentCodes, LatentRuns, Seen, Vectors
from mechint_core.random import generator


@runtime_checkable
class Encoder(Protocol):
    """What is ranked: a dictionary, or a control."""

    @property
    def W_dec(self) -> Tensor:
        """(latent, unit)"""
        ...

    def encode(self, x: Tensor) -> Tensor:
        """(..., unit) -> (..., latent)"""
        ...


class Screen(NamedTuple):
    """Of all latents."""

    effect: Float[np.ndarray, "latent"]
    """Estimated."""
    density: Float[np.ndarray, "latent"]
    """Share of the vectors on which a latent is active."""
    typical: Float[np.ndarray, "latent"]
    """Mean code of these vectors; 0 if there is none."""


@dataclass(frozen=True, slots=True)
class Ranking:
    """The strongest latents, the strongest first."""

    screen: Screen
    latents: Int[np.ndarray, "example"]
    effects: Float[np.ndarray, "example sample"]
    """Exact."""

    def others(self, n: int, seed: int) -> Int[np.ndarray, "example"]:
        """Draw up to `n` from the latents that are active and were not ablated."""
        rest = np.setdiff1d(np.flatnonzero(self.screen.density > 0), self.latents)
        return generator(seed, "feature_effects", "others").choice(rest, size=min(n, len(rest)), replace=False)


def rank_latents(
    dictionary: Encoder, runs: LatentRuns, seen: Seen, gradient: Vectors, *, n_exact: int, codes_at_once: int
) -> Ranking:
    """Screen all latents, and remove the strongest of those that are active at all."""
    screen = _screen(dictionary, seen.vectors, gradient, codes_at_once)
    order = np.argsort(-np.abs(screen.effect), kind="stable")
    candidates = order[screen.density[order] > 0][:n_exact]
    codes = codes_of(dictionary, seen.vectors, candidates, codes_at_once)
    effects = runs.removed(seen, codes, dictionary.W_dec.detach()[candidates])
    strongest = np.argsort(-np.abs(effects.mean(axis=1)), kind="stable")
    return Ranking(screen, candidates[strongest], effects[strongest])


@torch.no_grad()
def codes_of(
    dictionary: Encoder, vectors: Vectors, latents: Int[np.ndarray, "example"], codes_at_once: int
) -> LatentCodes:
    """Return the codes of some latents."""
    chosen = torch.from_numpy(latents).to(vectors.device)
    blocks = vectors.split(_rows_at_once(dictionary, vectors, codes_at_once))
    return torch.cat([dictionary.encode(block.to(dictionary.W_dec))[..., chosen] for block in blocks])


@torch.no_grad()
def estimated_effects(
    codes: LatentCodes, writes: Float[Tensor, "latent unit"], gradient: Vectors
) -> Float[np.ndarray, "latent sample"]:
    """Return f_j d_j . g, summed over the vectors of each sample."""
    return (codes * (gradient.to(writes) @ writes.T)).sum(dim=1, dtype=torch.float64).T.cpu().numpy()


@torch.no_grad()
def _screen(dictionary: Encoder, vectors: Vectors, gradient: Vectors, codes_at_once: int) -> Screen:
    writes = dictionary.W_dec.detach()
    effect, active, total = torch.zeros(3, len(writes), dtype=torch.float64, device=writes.device)
    size = _rows_at_once(dictionary, vectors, codes_at_once)
    for x, g in zip(vectors.split(size), gradient.split(size), strict=True):
        codes = dictionary.encode(x.to(writes).flatten(0, 1))
        effect += (codes * (g.to(writes).flatten(0, 1) @ writes.T)).sum(dim=0, dtype=torch.float64)
        active += (codes > 0).sum(dim=0)
        total += codes.sum(dim=0, dtype=torch.float64)
    n_samples, n_positions = vectors.shape[:2]
    found = (effect / n_samples, active / (n_samples * n_positions), total / active.clamp_min(1))
    return Screen(*(each.cpu().numpy() for each in found))


def _rows_at_once(dictionary: Encoder, vectors: Vectors, codes_at_once: int) -> int:
    return max(1, codes_at_once // (len(dictionary.W_dec) * vectors.shape[1]))
