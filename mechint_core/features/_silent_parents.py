"""Where a parent's latent is silent: samples counted with each child, and without any.

Cost: one product of draws x samples x edges.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from mechint_core.result import NAN


class Edges(NamedTuple):
    """Which feature implies which."""

    child: Int[np.ndarray, "edge"]
    parent: Int[np.ndarray, "edge"]


class Measured(NamedTuple):
    """Samples, by draw: those of the data first."""

    n_with: Float[np.ndarray, "draw edge"]
    """That hold the child and its parent."""
    n_fired: Float[np.ndarray, "draw edge"]
    """Of these, in which the parent's latent fires."""
    n_absorbed: Float[np.ndarray, "draw edge"]
    """Of these, in which it is silent and the child's fires."""
    n_alone: Float[np.ndarray, "draw edge"]
    """That hold the parent and none of its children."""
    n_alone_fired: Float[np.ndarray, "draw edge"]

    def absorption(self) -> Float[np.ndarray, "draw"]:
        """Return the absorbed share of all samples with a child."""
        return ratio(self.n_absorbed.sum(axis=1), self.n_with.sum(axis=1))

    def gap(self) -> Float[np.ndarray, "draw edge"]:
        """Return how much less often the parent's latent fires with each child."""
        return ratio(self.n_alone_fired, self.n_alone) - ratio(self.n_fired, self.n_with)

    def mean_gap(self) -> Float[np.ndarray, "draw"]:
        """Return the mean gap over the children that have one."""
        gap = self.gap()
        return ratio(np.nansum(gap, axis=1), np.sum(~np.isnan(gap), axis=1))


def ratio(top: np.ndarray, bottom: np.ndarray) -> Float[np.ndarray, "*draw"]:
    """Return shares; NaN of nothing."""
    return np.divide(top, bottom, out=np.full(top.shape, NAN), where=bottom > 0, dtype=np.float64)


def dealt(
    fires: Bool[np.ndarray, "sample feature"], present: Bool[np.ndarray, "sample feature"], rng: np.random.Generator
) -> Bool[np.ndarray, "sample feature"]:
    """Return the firing with each latent's silences dealt at random among its feature's samples."""
    after = fires.copy()
    for feature in range(fires.shape[1]):
        rows = np.flatnonzero(present[:, feature])
        after[rows, feature] = rng.permutation(fires[rows, feature])
    return after


def measure(
    parent_fires: Bool[np.ndarray, "sample feature"],
    child_fires: Bool[np.ndarray, "sample feature"],
    present: Bool[np.ndarray, "sample feature"],
    edges: Edges,
    counts: Float[np.ndarray, "draw sample"],
) -> Measured:
    """Count samples edge by edge, in all draws at once."""
    seen, heard = present[:, edges.parent], parent_fires[:, edges.parent]
    with_child = seen & present[:, edges.child]
    alone = seen & ~any_child(present, edges)[:, edges.parent]
    absorbed = with_child & ~heard & child_fires[:, edges.child]
    wanted = (with_child, with_child & heard, absorbed, alone, alone & heard)
    return Measured(*(counts @ each.astype(np.float32) for each in wanted))


def any_child(present: Bool[np.ndarray, "sample feature"], edges: Edges) -> Bool[np.ndarray, "sample feature"]:
    """Return where some child of each feature is present."""
    is_child = np.zeros((present.shape[1], present.shape[1]), dtype=np.float32)
    is_child[edges.child, edges.parent] = 1
    return present.astype(np.float32) @ is_child > 0
