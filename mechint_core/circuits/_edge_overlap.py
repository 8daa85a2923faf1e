"""Which edges circuits share, and how likely that is: exact counts, and chances.

    J_ab = |A and B| / |A or B|        O_ab = |A and B| / min(|A|, |B|)        p_ab = P(X >= |A and B|)

X is hypergeometric: |B| edges drawn from all, of which |A| are marked. What is said of edges holds for nodes.

Cost: circuits² x edges.
"""

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import stats

from mechint_core.kernels.false_discovery import false_discovery_rate
from mechint_core.result import NAN


def jaccard(
    kept: Bool[np.ndarray, "circuit edge"], weights: Int[np.ndarray, "edge"] | None = None
) -> Float[np.ndarray, "circuit other_circuit"]:
    """Return the Jaccard indices; edges count `weights` times. NaN between circuits without edges."""
    shared, size = _shared(kept, weights)
    either = size[:, None] + size - shared
    return np.divide(shared, either, out=np.full_like(shared, NAN), where=either > 0)


def overlap(kept: Bool[np.ndarray, "circuit edge"]) -> Float[np.ndarray, "circuit other_circuit"]:
    """Return the overlap coefficients; NaN with a circuit without edges."""
    shared, size = _shared(kept)
    smaller = np.minimum(size[:, None], size)
    return np.divide(shared, smaller, out=np.full_like(shared, NAN), where=smaller > 0)


def hypergeometric(kept: Bool[np.ndarray, "circuit edge"]) -> Float[np.ndarray, "circuit other_circuit"]:
    """Return the chance that two sets of edges, as large as these, share as many; NaN on the diagonal."""
    shared, size = _shared(kept)
    p = np.asarray(stats.hypergeom.sf(shared - 1, kept.shape[1], size[:, None], size), dtype=np.float64)
    np.fill_diagonal(p, NAN)
    return p


def mean_of_pairs(matrix: Float[np.ndarray, "circuit other_circuit"]) -> float:
    """Return the mean over pairs of circuits, without those that are NaN."""
    pairs = matrix[np.triu_indices(len(matrix), 1)]
    return float(pairs[np.isfinite(pairs)].mean()) if np.isfinite(pairs).any() else NAN


def chance_of_edges(
    kept: Bool[np.ndarray, "circuit edge"], random: Bool[np.ndarray, "draw circuit edge"]
) -> tuple[Float[np.ndarray, "edge"], Float[np.ndarray, "edge"]]:
    """Return how often random circuits keep each edge, and the q-value of how often the circuits do.

    The number of circuits that keep an edge by chance is a sum of coins, one per circuit, each with its own bias.
    """
    chance = (random.sum(axis=0) + 0.5) / (len(random) + 1)
    probability = np.zeros((kept.shape[1], len(kept) + 1))
    probability[:, 0] = 1
    for heads in chance:
        moved = probability * heads[:, None]
        probability -= moved
        probability[:, 1:] += moved[:, :-1]
    at_least = probability[:, ::-1].cumsum(axis=1)[:, ::-1]
    p = np.clip(at_least[np.arange(kept.shape[1]), kept.sum(axis=0)], 0, 1)
    return random.mean(axis=(0, 1)), false_discovery_rate(p)


def _shared(
    kept: Bool[np.ndarray, "circuit edge"], weights: Int[np.ndarray, "edge"] | None = None
) -> tuple[Float[np.ndarray, "circuit other_circuit"], Float[np.ndarray, "circuit"]]:
    """Count the edges that two circuits share, and each one's own."""
    ones = kept.astype(np.float64)
    shared = (ones if weights is None else ones * weights) @ ones.T
    return shared, np.diagonal(shared).copy()
