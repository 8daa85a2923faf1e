"""The null of a dictionary's effects: the same dictionary, turned at random, so that it knows nothing of the data.

    f       = relu(W_enc Q (x - c))  where that is among the n L0 largest of n vectors, else 0
    written = f W_dec Q              Q a random rotation; c = decode(0), where the dictionary has its centre

Norms, angles between latents, and angles between what a latent reads and what it writes are the dictionary's own; L0 is
matched by the threshold. An untrained dictionary has random directions and no biases to begin with, so turning it
changes nothing: its effects are draws from this null.

Source: [@bricken2023] for random dictionaries as controls.
Cost: two dense products of vectors x units x latents per control.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from mechint_core.patching import Codes
from mechint_core.random import torch_generator

FITTED_CODES: Final = 2**22
"""Codes that a control is fitted to, at most: vectors are thinned out beyond that."""


@dataclass(frozen=True, slots=True, eq=False)
class Turned:
    """A control, fitted to some vectors."""

    centre: Float[Tensor, "unit"]
    reads: Float[Tensor, "latent unit"]
    W_dec: Float[Tensor, "latent unit"]
    threshold: float

    def encode(self, x: Float[Tensor, "*sample unit"]) -> Float[Tensor, "*sample latent"]:
        """Return the code of each vector."""
        pre = functional.relu((x - self.centre) @ self.reads.T)
        return torch.where(pre >= self.threshold, pre, 0.0)


def turned_dictionaries(
    dictionary: Codes, vectors: Float[Tensor, "sample position unit"], n_draws: int, seed: int
) -> Iterator[Turned]:
    """Yield `n_draws` controls, fitted to these vectors."""
    every = vectors.flatten(0, 1).to(dictionary.W_dec)
    few = every[:: -(-len(every) * len(dictionary.W_dec) // FITTED_CODES)]
    for draw in range(n_draws):
        yield turned_dictionary(dictionary, few, seed, draw)


@torch.no_grad()
def turned_dictionary(dictionary: Codes, vectors: Float[Tensor, "sample unit"], seed: int, draw: int) -> Turned:
    """Return the dictionary turned at random, with the L0 that it has on these vectors."""
    codes, decoder = dictionary.encode(vectors), dictionary.W_dec.detach()
    centre = dictionary.decode(torch.zeros_like(codes[:1]))[0]
    rotation = random_rotation(decoder.shape[1], seed, draw).to(decoder)
    dense = Turned(centre, dictionary.W_enc.detach() @ rotation, decoder @ rotation, threshold=0.0)
    n_active = int((codes > 0).sum())
    threshold = float(dense.encode(vectors).flatten().topk(n_active).values[-1]) if n_active else math.inf
    return replace(dense, threshold=threshold)


def random_rotation(n: int, seed: int, draw: int) -> Float[Tensor, "unit unit"]:
    """Draw an orthogonal matrix, all equally likely."""
    noise = torch.randn(n, n, generator=torch_generator(seed, "turned", draw), dtype=torch.float64)
    q, r = torch.linalg.qr(noise)
    return q * r.diagonal().sign()
