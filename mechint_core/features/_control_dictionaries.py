"""Dictionaries that learned nothing of the data, made as good as their directions allow.

    f       = relu(W_enc (x - mean x))  where it is among the n L0 largest of n vectors, else 0
    written = mean y + s f W_dec        s the one scale that serves best: <written - mean y, y - mean y> = |.|^2

So a control differs from another in its directions only, and has the L0 of the dictionary that it is compared with.

    random      standard normal directions
    untrained   the weights that the dictionary's training starts from, from another seed
    shuffled    the trained weights with the units permuted: angles between latents stay, the data's axes are lost

Cost: one dense product of vectors x units x latents per control.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from mechint_core.features.dictionaries.dictionary import SparseDictionary
from mechint_core.features.dictionaries.sparse_codes import batch_topk, sparse_encode
from mechint_core.random import derive_seed, torch_generator


class Directions(NamedTuple):
    """What each latent listens to, and what it writes."""

    reads: Float[Tensor, "latent unit"]
    writes: Float[Tensor, "latent other_unit"]


class Control(NamedTuple):
    """A control with its centre, threshold and scale: all that it takes to run it on other vectors."""

    directions: Directions
    centre: Float[Tensor, "unit"]
    written_centre: Float[Tensor, "other_unit"]
    threshold: float
    scale: float

    def encode(self, x: Float[Tensor, "*sample unit"]) -> Float[Tensor, "*sample latent"]:
        """Return the code of each vector."""
        pre = (x - self.centre) @ self.directions.reads.T
        return torch.where(pre >= self.threshold, functional.relu(pre), 0.0)

    def write(self, x: Float[Tensor, "*sample unit"]) -> Float[Tensor, "*sample other_unit"]:
        """Return what the control writes for each vector."""
        return self.written_centre + self.scale * self.encode(x) @ self.directions.writes


class Fitted(NamedTuple):
    """A control, and how it does on the vectors that it was fitted to."""

    control: Control
    written: Float[Tensor, "sample other_unit"]
    fired: Bool[Tensor, "latent"]


@torch.no_grad()
def fit_control(
    directions: Directions, x: Float[Tensor, "sample unit"], y: Float[Tensor, "sample other_unit"], l0: float
) -> Fitted:
    """Return the control that keeps the n `l0` largest codes of these n vectors, at the scale that serves y best."""
    centre, written_centre = x.mean(dim=0), y.mean(dim=0)
    codes = sparse_encode(x, directions.reads, -directions.reads @ centre, batch_topk(l0))
    explained = codes.matmul(directions.writes)
    power = float(explained.square().sum(dtype=torch.float64))
    cross = float((explained * (y - written_centre)).sum(dtype=torch.float64))
    scale = cross / power if power > 0 else 0.0
    active = codes.values > 0
    threshold = float(codes.values[active].min()) if bool(active.any()) else float("inf")
    fired = torch.zeros(len(directions.reads), dtype=torch.bool, device=x.device)
    fired[codes.latents[active]] = True
    control = Control(directions, centre, written_centre, threshold, scale)
    return Fitted(control, written_centre + scale * explained, fired)


@torch.no_grad()
def random_directions(dictionary: SparseDictionary, seed: int, draw: int) -> Directions:
    """Return one random direction of length 1 per latent, or two if the dictionary writes another vector."""
    reads = _random_rows(dictionary.W_enc, seed, "reads", draw)
    return Directions(reads, reads if dictionary.reconstructs else _random_rows(dictionary.W_dec, seed, "writes", draw))


@torch.no_grad()
def untrained_directions(dictionary: SparseDictionary, seed: int) -> Directions:
    """Return the first weights of a dictionary of the same kind and config, made from another seed."""
    about = dictionary.about()
    other = derive_seed(seed, "untrained", dictionary.config.seed) % 2**31
    fresh = type(dictionary).from_about({**about, "config": {**about["config"], "seed": other}})
    return Directions(fresh.W_enc.detach().to(dictionary.W_enc), fresh.W_dec.detach().to(dictionary.W_dec))


@torch.no_grad()
def shuffled_directions(dictionary: SparseDictionary, seed: int) -> Directions:
    """Return the trained weights for permuted units: one permutation, or two if it writes another vector."""
    read = _permutation(dictionary.input_dim, seed, "read units")
    written = read if dictionary.reconstructs else _permutation(dictionary.output_dim, seed, "written units")
    return Directions(dictionary.W_enc.detach()[:, read], dictionary.W_dec.detach()[:, written])


def _random_rows(like: Float[Tensor, "latent unit"], seed: int, *stream: str | int) -> Float[Tensor, "latent unit"]:
    rows = torch.randn(like.shape, generator=torch_generator(seed, "control", *stream))
    return functional.normalize(rows, dim=1).to(like)


def _permutation(n: int, seed: int, stream: str) -> Tensor:
    return torch.randperm(n, generator=torch_generator(seed, "control", stream))
