"""What controls of equal L0 explain of the vectors that a dictionary is evaluated on.

    random, untrained, shuffled     `_control_dictionaries.py`
    principal components            1 - sum of the `rank` largest eigenvalues / sum of all, of the covariance
    k components, k units           the same recipe with the axes as directions, each with both signs

For a transcoder the covariance is that of the best linear map's output: the best map of that rank [@izenman1975],
which is principal component analysis where it reads what it writes.

Cost: one dense product of `n_vectors` x units x latents per control, and an eigendecomposition of units x units.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mechint_core.features._control_dictionaries import (
    Directions,
    fit_control,
    random_directions,
    shuffled_directions,
    untrained_directions,
)
from mechint_core.features.dictionaries.dictionary import SparseDictionary
from mechint_core.random import generator
from mechint_core.result import NAN


class RandomControls(NamedTuple):
    """What each random dictionary reaches."""

    fvu: Float[np.ndarray, "draw"]
    unit_r2: Float[np.ndarray, "draw"]
    cosine: Float[np.ndarray, "draw"]
    dead_share: Float[np.ndarray, "draw"]


@torch.no_grad()
def random_controls(
    x: Float[Tensor, "sample unit"],
    y: Float[Tensor, "sample other_unit"],
    dictionary: SparseDictionary,
    l0: float,
    *,
    n_draws: int,
    n_vectors: int,
    seed: int,
) -> RandomControls:
    """Return how random dictionaries do, each on vectors of its own."""
    found: list[tuple[float, ...]] = []
    for draw in range(n_draws):
        rows = _some(len(x), n_vectors, seed, draw)
        fitted = fit_control(random_directions(dictionary, seed, draw), x[rows], y[rows], l0)
        goal, mean = y[rows].double(), fitted.control.written_centre.double()
        made = fitted.written.double()
        error, deviation = ((goal - each).square().sum(dim=0, keepdim=True).cpu().numpy() for each in (made, mean))
        fvu, unit_r2 = unexplained(error, deviation)
        cosine, dead = cosines(made - mean, goal - mean).nanmean(), 1 - fitted.fired.double().mean()
        found.append((float(fvu[0]), float(unit_r2[0]), float(cosine), float(dead)))
    return RandomControls(*np.array(found).T)


@torch.no_grad()
def other_controls(
    x: Float[Tensor, "sample unit"],
    y: Float[Tensor, "sample other_unit"],
    dictionary: SparseDictionary,
    l0: float,
    *,
    n_vectors: int,
    seed: int,
) -> dict[str, float]:
    """Return the FVU of each control that is not random directions."""
    rows, rank = _some(len(x), n_vectors, seed, 0), max(1, round(l0))
    linear = _linear_map(x, y)
    fitted, goal = linear.predict(x[rows]), y[rows]

    def fvu(directions: Directions, read: Tensor) -> float:
        error = goal - fit_control(directions, read, goal, l0).written
        return float(error.double().square().sum() / (goal - goal.mean(dim=0)).double().square().sum())

    return {
        "untrained": fvu(untrained_directions(dictionary, seed), x[rows]),
        "shuffled": fvu(shuffled_directions(dictionary, seed), x[rows]),
        "principal components": linear.fvu(rank),
        "k components per vector": fvu(_both_signs(linear.axes), fitted),
        "k units per vector": fvu(_both_signs(torch.eye(y.shape[1]).to(y)), fitted),
    }


def _some(n_all: int, n_vectors: int, seed: int, draw: int) -> Tensor:
    """Choose the vectors that a control is tried on."""
    chosen = generator(seed, "control vectors", draw).permutation(n_all)[:n_vectors]
    return torch.from_numpy(np.sort(chosen))


def _both_signs(axes: Float[Tensor, "row unit"]) -> Directions:
    """Return a dictionary with each axis twice, so that codes >= 0 can have either sign."""
    rows = torch.cat([axes, -axes])
    return Directions(rows, rows)


class _LinearMap(NamedTuple):
    """The best linear map from x to y, in the principal axes of what it writes."""

    centre: Float[Tensor, "unit"]
    weight: Float[Tensor, "unit other_unit"]
    axes: Float[Tensor, "row other_unit"]
    """Largest first."""
    explained: Float[Tensor, "row"]
    """Share of the variance of y that each explains."""

    def predict(self, x: Float[Tensor, "sample unit"]) -> Float[Tensor, "sample other_unit"]:
        return (x - self.centre) @ self.weight

    def fvu(self, rank: int) -> float:
        return max(0.0, 1 - float(self.explained[:rank].sum()))


def _linear_map(x: Float[Tensor, "sample unit"], y: Float[Tensor, "sample other_unit"]) -> _LinearMap:
    """Fit y by x [@izenman1975]; if they are the same, this is principal component analysis."""
    centre = x.mean(dim=0)
    read, goal = x - centre, y - y.mean(dim=0)
    cross = (read.T @ goal).double()
    if x is y:
        weight, covariance = torch.eye(x.shape[1]).to(cross), cross
    else:
        weight = torch.linalg.pinv((read.T @ read).double(), hermitian=True, rtol=1e-6) @ cross
        covariance = cross.T @ weight
    power, axes = torch.linalg.eigh((covariance + covariance.T) / 2)
    share = power.clamp_min(0).flip(0) / goal.double().square().sum()
    return _LinearMap(centre, weight.to(x), axes.T.flip(0).to(y), share)


def cosines(a: Float[Tensor, "*sample unit"], b: Float[Tensor, "*sample unit"]) -> Float[Tensor, "*sample"]:
    """Return the cosine of each pair; NaN where one has no length."""
    return (a * b).sum(dim=-1) / (a.norm(dim=-1) * b.norm(dim=-1))


def unexplained(
    error: Float[np.ndarray, "draw unit"], deviation: Float[np.ndarray, "draw unit"]
) -> tuple[Float[np.ndarray, "draw"], Float[np.ndarray, "draw"]]:
    """Return the FVU, and the mean of the units' R2, from sums of squares per unit."""
    share = ratio(error, deviation)
    varies = np.isfinite(share)
    unit_r2 = 1 - ratio(np.where(varies, share, 0).sum(axis=1), varies.sum(axis=1).astype(np.float64))
    return ratio(error.sum(axis=1), deviation.sum(axis=1)), unit_r2


def ratio(top: Float[np.ndarray, "..."], bottom: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Return top / bottom, NaN where the bottom is not above 0."""
    return np.divide(top, bottom, out=np.full_like(bottom, NAN), where=bottom > 0)
