"""Seeds become generators here, and nowhere else is randomness made.

One seed names one experiment. `stream` words split it into independent generators, so that two
steps of an experiment never share draws and adding a step never changes the draws of another:

    generator(0, "bootstrap")    generator(0, "permutation", 3)

Streams are spawned by `numpy.random.SeedSequence`, whose entropy is the seed and the hashed words.
"""

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def generator(seed: int, *stream: str | int) -> np.random.Generator:
    """Return the numpy generator of `stream` within the experiment `seed`."""
    return np.random.default_rng(_sequence(seed, stream))  # noqa: TID251 - the one place


def torch_generator(seed: int, *stream: str | int, device: str = "cpu") -> "torch.Generator":
    """Return the torch generator of `stream` within the experiment `seed`, on `device`."""
    import torch  # here, because the array families use this module and must not pay 2 s for torch

    made = torch.Generator(device=device)
    return made.manual_seed(derive_seed(seed, *stream))


def derive_seed(seed: int, *stream: str | int) -> int:
    """Return a 63-bit integer for an outside program that wants one number as its seed."""
    return int(_sequence(seed, stream).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _sequence(seed: int, stream: tuple[str | int, ...]) -> np.random.SeedSequence:
    words = [int.from_bytes(hashlib.sha256(str(word).encode()).digest()[:4], "little") for word in stream]
    return np.random.SeedSequence(seed, spawn_key=tuple(words))
