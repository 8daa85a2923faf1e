"""Activations read block by block and encoded: what every description of a dictionary's latents starts from."""

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Bool, Float, Integer

from mechint_core.errors import DegenerateInputError, ShapeError
from mechint_core.features.dictionaries.dictionary import SparseDictionary
from mechint_core.parallel import Rows

Mask = Integer[np.ndarray, "sample position"] | Bool[np.ndarray, "sample position"]
"""0 where a position is padding."""
CHUNK_VALUES = 2**23
"""Codes computed at once."""


def encoded_blocks(
    activations: Float[Rows, "sample *position unit"],
    dictionary: SparseDictionary,
    mask: Mask | None = None,
) -> Iterator[tuple[slice, Float[np.ndarray, "sample position latent"]]]:
    """Yield runs of samples and their codes, with one position if there are none; 0 where `mask` is 0.

    Raises
    ------
    ShapeError
        If the activations are not (sample, ..., unit of the dictionary), or the mask does not fit them.
    DegenerateInputError
        If an activation that counts is not finite.
    """
    shape = tuple(activations.shape)
    if len(shape) not in (2, 3) or 0 in shape or shape[-1] != dictionary.input_dim:
        raise ShapeError(f"activations must be (sample[, position], unit = {dictionary.input_dim}). Got shape {shape}.")
    if mask is not None and mask.shape != shape[:-1]:
        raise ShapeError(f"mask must be (sample, position) like the activations {shape}. Got shape {mask.shape}.")
    n_positions = shape[1] if len(shape) == 3 else 1
    step = max(1, CHUNK_VALUES // (dictionary.hidden_dim * n_positions))
    for start in range(0, shape[0], step):
        rows = slice(start, min(start + step, shape[0]))
        vectors = np.asarray(activations[rows]).reshape(-1, n_positions, shape[-1])
        counts = np.ones(vectors.shape[:2], dtype=bool) if mask is None else np.asarray(mask[rows]) != 0
        yield rows, _encode(vectors, counts, dictionary)


@torch.no_grad()
def _encode(
    vectors: Float[np.ndarray, "sample position unit"],
    counts: Bool[np.ndarray, "sample position"],
    dictionary: SparseDictionary,
) -> Float[np.ndarray, "sample position latent"]:
    if not np.isfinite(vectors[counts]).all():
        raise DegenerateInputError("activations must be finite. Got NaN or infinity.")
    kept = dictionary.encode(torch.tensor(vectors[counts]).to(dictionary.W_dec)).cpu().numpy()
    if counts.all():
        return kept.reshape(*counts.shape, -1)
    codes = np.zeros((*counts.shape, kept.shape[-1]), dtype=kept.dtype)
    codes[counts] = kept
    return codes
