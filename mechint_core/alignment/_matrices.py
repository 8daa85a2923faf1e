"""What a set of dissimilarity matrices must be before it is compared."""

from collections.abc import Mapping

import numpy as np

from mechint_core.alignment._distances import n_of_pairs
from mechint_core.errors import DegenerateInputError, ShapeError

FEWEST = 4
"""Conditions with which a comparison can say anything."""


def check_matrices(**matrices: np.ndarray) -> int:
    """Refuse condensed matrices, one per row, of different or too few conditions; return how many there are."""
    shapes = {name: each.shape for name, each in matrices.items()}
    n_pairs = {shape[-1] for shape in shapes.values()}
    if len(n_pairs) != 1 or any(len(shape) != 2 or shape[0] < 1 for shape in shapes.values()):
        raise ShapeError(f"matrices must have the same pairs of conditions, one matrix per row. Got {shapes}.")
    found = n_pairs.pop()
    n = n_of_pairs(found)
    if n * (n - 1) // 2 != found or n < FEWEST:
        raise ShapeError(f"pairs must be n (n - 1) / 2 for n >= {FEWEST} conditions. Got {found}.")
    _check_numbers(matrices)
    return n


def _check_numbers(matrices: Mapping[str, np.ndarray]) -> None:
    for name, each in matrices.items():
        if np.isinf(each).any():
            raise DegenerateInputError(f"{name} must be finite, or NaN where a pair is missing. Got infinity.")
        for row in each:
            known = row[~np.isnan(row)]
            if known.size == 0 or np.ptp(known) <= np.finfo(np.float64).eps * np.abs(known).max():
                raise DegenerateInputError(
                    f"dissimilarities of {name} must differ. Got a matrix with all pairs equally far apart."
                )


def n_missing(*matrices: np.ndarray) -> int:
    """Return how many pairs are missing in one or more of the matrices."""
    return int(np.any([np.isnan(each).any(axis=0) for each in matrices], axis=0).sum())
