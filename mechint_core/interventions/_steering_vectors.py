"""Vectors to steer with, and the vectors they must beat.

    mean_difference    v = mu_1 - mu_0                          means of two groups of examples
    probe              v = (S + s tr(S)/d I)^-1 (mu_1 - mu_0)   direction of ridge regression of the group (Fisher's)
    latent             v = W_dec[l]                             what a dictionary's latent writes
    given              v

Both differences are X^T c with one weight per example, c = 1/n_1 or -1/n_0; so those of shuffled groups, the controls,
come with the same pass over the examples. Controls of a latent or a given vector are random directions. All controls
have the vector's length.

Cost: one forward of the examples; n_controls products of a vector with them, and for the probe d^2 of them.
"""

from typing import Final, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechint_core.errors import ConfigurationError, DegenerateInputError, ShapeError
from mechint_core.models.running import batches
from mechint_core.patching import Codes, PairRuns
from mechint_core.random import generator

Source = Literal["mean_difference", "probe", "latent", "given"]
BY_GROUPS: Final = ("mean_difference", "probe")

Vectors = Float[np.ndarray, "control unit"]
"""The vector first, then its controls."""


def group_vectors(
    runs: PairRuns,
    examples: np.ndarray,
    label: Int[np.ndarray, "sample"],
    *,
    position: int | None,
    shrinkage: float | None,
    n_controls: int,
) -> Vectors:
    """Return the difference of the groups' means, and those of shuffled groups; whitened if there is a shrinkage.

    Raises
    ------
    ShapeError
        If there is not one label per example.
    DegenerateInputError
        If the labels are not of two groups of at least two, or the groups' means are equal.
    """
    weights = _contrasts(label, len(examples), n_controls, runs.config.seed)
    (site,) = runs.sites
    size = max(1, min(runs.config.batch_rows, runs.config.cache_bytes // max(1, runs.bytes_per_row)))
    origin, difference, total, square = None, 0.0, 0.0, 0.0
    for rows in batches(len(examples), size):
        x = unit_vectors(runs.run(examples[rows], runs.sites)[1][site], position)
        origin = x.mean(axis=0) if origin is None else origin  # keeps sums of squares from cancelling
        x = x - origin
        difference = difference + weights[:, rows] @ x
        if shrinkage is not None:
            total, square = total + x.sum(axis=0), square + x.T @ x
    vectors = np.asarray(difference)
    if shrinkage is not None:
        mean = total / len(examples)
        vectors = _whitened(vectors, square / len(examples) - np.outer(mean, mean), shrinkage)
    return _same_length(vectors)


def latent_vector(dictionary: Codes | None, latent: int) -> Float[np.ndarray, "unit"]:
    """Return the decoder row of a latent.

    Raises
    ------
    ConfigurationError
        If there is no dictionary, or it has no such latent.
    """
    if dictionary is None:
        raise ConfigurationError("source='latent' needs a dictionary. Pass one, or use another source.")
    if not 0 <= latent < len(dictionary.W_dec):
        raise ConfigurationError(f"latent must lie in 0...{len(dictionary.W_dec) - 1}. Got {latent}.")
    return dictionary.W_dec[latent].detach().cpu().double().numpy()


def random_controls(vector: Float[np.ndarray, "unit"], *, n_controls: int, seed: int) -> Vectors:
    """Return the vector, and random directions of its length."""
    draws = generator(seed, "steer", "random directions").standard_normal((n_controls, len(vector)))
    return _same_length(np.concatenate([np.asarray(vector, dtype=np.float64)[None], draws]))


def unit_vectors(activation: Float[Tensor, "sample ..."], position: int | None) -> Float[np.ndarray, "sample unit"]:
    """Return one vector per sample, in float64: at a position, or the mean over them."""
    x = activation.detach().to("cpu", torch.float64)
    if position is not None:
        x = x[:, position]
    return x.flatten(1, -2).mean(dim=1).numpy() if x.ndim > 2 else x.numpy()


def _contrasts(
    label: Int[np.ndarray, "sample"], n_examples: int, n_controls: int, seed: int
) -> Float[np.ndarray, "control sample"]:
    if label.shape != (n_examples,):
        raise ShapeError(f"label must be one group per example, ({n_examples},). Got shape {label.shape}.")
    groups, member, counts = np.unique(label, return_inverse=True, return_counts=True)
    if len(groups) != 2 or counts.min() < 2:
        raise DegenerateInputError(
            f"label must name two groups of at least 2 examples each. Got groups of {counts.tolist()}."
        )
    own = np.array([-1.0, 1.0])[member] / counts[member]
    shuffled = generator(seed, "steer", "shuffled labels").permuted(np.tile(own, (n_controls, 1)), axis=1)
    return np.concatenate([own[None], shuffled])


def _whitened(vectors: Vectors, covariance: Float[np.ndarray, "unit other_unit"], shrinkage: float) -> Vectors:
    d = len(covariance)
    spread = float(np.trace(covariance)) / d
    if spread <= 0:
        raise DegenerateInputError("examples must differ at the site. Got the same activation for all of them.")
    return np.linalg.solve(covariance + shrinkage * spread * np.eye(d), vectors.T).T


def _same_length(vectors: Vectors) -> Vectors:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not np.isfinite(lengths).all() or lengths[0, 0] == 0:
        raise DegenerateInputError(f"the steering vector must be finite and not 0. Got length {lengths[0, 0]:.3g}.")
    return np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0) * lengths[0]
