"""Point clouds: distinct points, principal scores, landmarks, matched random copies, and how far a cloud may be off.

    scores          X - mean = U S V'            leading columns of U S
    random copy     Q S, Q Haar-distributed      a Gaussian cloud with exactly this covariance [@langsrud2005]
    landmarks       l_1 farthest from the mean, l_k farthest from l_1 ... l_(k-1) [@desilva2004]
    displacement    max_i min_j |x_i - y_j|      of a subsample [@fasy2014]

Given its singular values, the left singular vectors of a centred Gaussian cloud are uniform over all orthonormal
frames orthogonal to the constant vector. Drawing such a frame and keeping S is therefore an exact conditional
test of "Gaussian with some covariance", in which choosing the leading components is already included.
"""

import math
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from jaxtyping import Float, Int
from scipy.spatial.distance import cdist

from mechint_core.errors import DegenerateInputError, ShapeError

FEWEST_POINTS: Final = 4
"""Fewer cannot form a loop."""


@dataclass(frozen=True, slots=True)
class Conditions:
    """The samples of every condition, one run of rows after the other."""

    samples: Float[np.ndarray, "sample unit"]
    start: Int[np.ndarray, "condition"]
    size: Int[np.ndarray, "condition"]
    value: Int[np.ndarray, "condition"]

    @classmethod
    def of(cls, points: Float[np.ndarray, "sample unit"], label: Int[np.ndarray, "sample"]) -> "Conditions":
        """Sort `points` by their `label`."""
        value, start, size = np.unique(np.sort(label), return_index=True, return_counts=True)
        return cls(points[np.argsort(label, kind="stable")], start, size, value)

    def means(self) -> Float[np.ndarray, "condition unit"]:
        """Return the mean of every condition."""
        return np.add.reduceat(self.samples, self.start) / self.size[:, None]

    def resampled(self, rng: np.random.Generator) -> "Conditions":
        """Draw as many samples of every condition again, with replacement."""
        within = rng.random(len(self.samples)) * np.repeat(self.size, self.size)
        drawn = np.repeat(self.start, self.size) + within.astype(np.int64)
        return Conditions(self.samples[drawn], self.start, self.size, self.value)

    def projected(self, centre: Float[np.ndarray, "unit"], axes: Float[np.ndarray, "unit coordinate"]) -> "Conditions":
        """Return the same samples in the coordinates of `axes`."""
        return Conditions((self.samples - centre) @ axes, self.start, self.size, self.value)


@dataclass(frozen=True, slots=True)
class Cloud:
    """Distinct points: samples, or means of conditions."""

    points: Float[np.ndarray, "row unit"]
    colour: Int[np.ndarray, "row"]
    n_duplicates: int
    conditions: Conditions | None
    kept: Int[np.ndarray, "row"]

    @classmethod
    def of(cls, points: Float[np.ndarray, "sample unit"], label: Int[np.ndarray, "sample"] | None) -> "Cloud":
        """Return the samples, or the mean of every value of `label`, each once."""
        samples = _checked(points, label)
        conditions = None if label is None else Conditions.of(samples, label)
        rows = samples if conditions is None else conditions.means()
        colour = np.arange(len(rows)) if conditions is None else conditions.value
        kept = _first_of_each(rows)
        if len(kept) < FEWEST_POINTS:
            what = "points" if conditions is None else "condition means"
            raise DegenerateInputError(
                f"points must hold at least {FEWEST_POINTS} distinct {what} to form a loop. Got {len(kept)}."
            )
        return cls(rows[kept], colour[kept], len(rows) - len(kept), conditions, kept)

    def seen_along(self, centre: Float[np.ndarray, "unit"], axes: Float[np.ndarray, "unit coordinate"]) -> "Cloud":
        """Return the same cloud in the coordinates of `axes`."""
        conditions = self.conditions and self.conditions.projected(centre, axes)
        return replace(self, points=(self.points - centre) @ axes, conditions=conditions)


@dataclass(frozen=True, slots=True)
class Landmarks:
    """Some points of a cloud that cover it."""

    index: Int[np.ndarray, "landmark"]
    owner: Int[np.ndarray, "sample"]
    """The place in `index` of the landmark nearest to each point."""
    cover_radius: float
    """No point is farther from its landmark."""


def principal_axes(
    points: Float[np.ndarray, "sample unit"], n_components: int
) -> tuple[Float[np.ndarray, "unit"], Float[np.ndarray, "unit coordinate"]]:
    """Return the mean and the leading principal axes; all that carry variance if `n_components` is 0."""
    centre = points.mean(axis=0)
    left, singular, axes = np.linalg.svd(points - centre, full_matrices=False)
    carried = int(np.sum(singular > singular[0] * max(points.shape) * np.finfo(np.float64).eps))
    kept = slice(min(n_components or carried, carried))
    farthest = np.take_along_axis(left[:, kept], np.abs(left[:, kept]).argmax(axis=0)[None], axis=0)
    return centre, axes[kept].T * np.sign(farthest)  # an axis has no sign of its own: the farthest point is positive


def random_copy(
    scores: Float[np.ndarray, "sample coordinate"], rng: np.random.Generator
) -> Float[np.ndarray, "sample coordinate"]:
    """Draw a Gaussian cloud that has exactly the singular values of the centred, uncorrelated `scores`."""
    draw = rng.standard_normal(scores.shape)
    frame, _ = np.linalg.qr(draw - draw.mean(axis=0))
    return frame * np.linalg.norm(scores, axis=0)


def maxmin_landmarks(points: Float[np.ndarray, "sample coordinate"], n_landmarks: int) -> Landmarks:
    """Choose `n_landmarks` points one by one, each the farthest from those before; all if there are no more."""
    n = len(points)
    if n <= n_landmarks:
        return Landmarks(np.arange(n), np.arange(n), 0.0)
    centred = points - points.mean(axis=0)
    square = np.einsum("ij,ij->i", centred, centred)
    index, owner, gap = np.empty(n_landmarks, dtype=np.int64), np.zeros(n, dtype=np.int64), np.full(n, np.inf)
    farthest = int(square.argmax())
    for place in range(n_landmarks):
        index[place] = farthest
        # |x|^2 + |l|^2 - 2 x l: one product of BLAS, 4 times faster than differences, and exact enough to choose by.
        squared_distance = square + square[farthest] - 2 * (centred @ centred[farthest])
        owner[squared_distance < gap] = place
        np.minimum(gap, squared_distance, out=gap)
        farthest = int(gap.argmax())
    return Landmarks(index, owner, float(np.linalg.norm(points - points[index[owner]], axis=1).max()))


def subsample_displacement(
    points: Float[np.ndarray, "sample coordinate"], landmarks: Landmarks, *, n_draws: int, rng: np.random.Generator
) -> Float[np.ndarray, "draw"]:
    """Draw subsamples of n / log n points; bound the distance of the landmarks from the set they were sampled from.

    Each draw is the Hausdorff distance between subsample and cloud, measured between landmarks: replacing points by
    their landmarks costs the cover radius twice, and the landmarks are one more from the cloud.
    """
    n = len(points)
    size = math.ceil(n / math.log(n))
    between = cdist(points[landmarks.index], points[landmarks.index])
    drawn = (np.unique(landmarks.owner[rng.choice(n, size, replace=False)]) for _ in range(n_draws))
    gaps = (between[:, subset].min(axis=1).max() for subset in drawn)
    return np.fromiter(gaps, dtype=np.float64, count=n_draws) + 3 * landmarks.cover_radius


def _checked(
    points: Float[np.ndarray, "sample unit"], label: Int[np.ndarray, "sample"] | None
) -> Float[np.ndarray, "sample unit"]:
    if points.ndim != 2 or points.size == 0:
        raise ShapeError(f"points must be (sample, unit), neither empty. Got shape {points.shape}.")
    if label is not None and label.shape != (len(points),):
        raise ShapeError(f"label must hold one integer for each of {len(points)} samples. Got shape {label.shape}.")
    n_bad = int(np.sum(~np.isfinite(points)))
    if n_bad:
        raise DegenerateInputError(f"points must be finite. Got {n_bad} NaN or infinite values: drop those samples.")
    return points.astype(np.float64)


def _first_of_each(points: Float[np.ndarray, "sample unit"]) -> Int[np.ndarray, "row"]:
    """Return the rows to keep so that no two are equal, in their order."""
    return np.sort(np.unique(points, axis=0, return_index=True)[1])
