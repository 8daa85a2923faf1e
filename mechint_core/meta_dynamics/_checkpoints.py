"""What the techniques that follow a representation through training share: their checks, and resampled sums.

Checkpoints are compared on the same inputs, row by row, and training time is measured by log(1 + step): the
distance from step 100 to step 200 is the one from 1000 to 2000, and step 0 has a place.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from mechint_core.errors import DegenerateInputError, ShapeError
from mechint_core.parallel import Rows


def check_steps(step: Int[np.ndarray, "checkpoint"], n_checkpoints: int, least: int) -> None:
    """Refuse steps that are not one per checkpoint, in order, from 0 on, and at least `least`."""
    if step.shape != (n_checkpoints,) or n_checkpoints < least:
        raise ShapeError(
            f"step must have one entry per checkpoint, and there must be at least {least} checkpoints. "
            f"Got {step.shape} steps for {n_checkpoints} checkpoints."
        )
    if step[0] < 0 or np.any(np.diff(step) <= 0):
        raise DegenerateInputError(f"step must increase from 0 or more. Got {step.tolist()}. Sort the checkpoints.")


def check_activations(activations: Sequence[Rows], least_rows: int = 3) -> None:
    """Refuse checkpoints that are not (sample, unit) with the same samples."""
    shapes = [each.shape for each in activations]
    if any(len(shape) != 2 for shape in shapes) or len({shape[0] for shape in shapes}) != 1:
        raise ShapeError(f"activations must be (sample, unit), with the same samples. Got shapes {shapes}.")
    if shapes[0][0] < least_rows or min(shape[1] for shape in shapes) < 1:
        raise ShapeError(f"activations must have at least {least_rows} samples and 1 unit. Got shapes {shapes}.")


def log_time(step: Int[np.ndarray, "checkpoint"]) -> Float[np.ndarray, "checkpoint"]:
    """Return training time as log(1 + step)."""
    return np.log1p(step.astype(np.float64))


def standardised(activations: Rows) -> Float[np.ndarray, "sample unit"]:
    """Return the activations in float64 with every unit's mean removed, scaled to Frobenius norm 1."""
    x = np.asarray(activations[:], dtype=np.float64)
    x = x - x.mean(axis=0)
    norm = float(np.linalg.norm(x))
    if not np.isfinite(norm) or norm < 1e-150:
        raise DegenerateInputError(
            "activations of every checkpoint must be finite and vary over the samples. "
            f"Got one whose deviation from its mean has norm {norm}."
        )
    return x / norm


def resampled_sums(
    values: Float[np.ndarray, "sample column"], *, n_draws: int, rng: np.random.Generator
) -> Float[np.ndarray, "draw column"]:
    """Return the column sums of `n_draws` bootstrap samples of the rows, all columns resampled together."""
    n = len(values)
    counts = (np.bincount(rng.integers(0, n, n), minlength=n) for _ in range(n_draws))
    return np.stack([count @ values for count in counts]) if n_draws else np.empty((0, values.shape[1]))
