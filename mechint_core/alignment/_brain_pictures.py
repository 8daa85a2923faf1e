"""What a person looks at beside the numbers: dissimilarities of a few conditions, and a map of them.

    map    classical scaling: the two strongest principal coordinates of the double-centred dissimilarities

Source: [@torgerson1952].
Cost: n² units for n shown conditions.
Chunked over: nothing.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from mechint_core.alignment._distances import PREPARE, condensed_distances, evenly_spaced, scale_of, square_form
from mechint_core.alignment._stacked import RowMetric

SHOWN = 64
"""Conditions drawn."""


@dataclass(frozen=True, slots=True)
class BrainPictures:
    """Dissimilarities and maps of the shown conditions."""

    shown: Int[np.ndarray, "row"]
    site: Float[np.ndarray, "row column"]
    region: Float[np.ndarray, "row column"]
    map_site: Float[np.ndarray, "row coordinate"]
    map_region: Float[np.ndarray, "row coordinate"]
    """Turned and mirrored so that it lies as near as can be to the site's."""


def brain_pictures(
    x: Float[np.ndarray, "condition unit"], y: Float[np.ndarray, "condition channel"], metric: RowMetric
) -> BrainPictures:
    """Draw evenly spaced conditions of both systems."""
    shown = evenly_spaced(len(x), SHOWN)
    site, region = (_picture(each[shown], metric) for each in (x, y))
    here, there = classical_scaling(site), classical_scaling(region)
    left, _, right = np.linalg.svd(there.T @ here)
    return BrainPictures(shown, site, region, here, there @ (left @ right))


def _picture(rows: np.ndarray, metric: RowMetric) -> Float[np.ndarray, "row column"]:
    return square_form(condensed_distances(PREPARE[metric](rows), scale_of(metric, rows.shape[1])))


def classical_scaling(squared: Float[np.ndarray, "row column"]) -> Float[np.ndarray, "row coordinate"]:
    """Return two coordinates whose squared distances are as near as can be to these."""
    centred = squared - squared.mean(axis=0) - squared.mean(axis=1, keepdims=True) + squared.mean()
    values, vectors = np.linalg.eigh(-centred / 2)
    return vectors[:, -2:][:, ::-1] * np.sqrt(np.maximum(values[-2:][::-1], 0))
