"""Dimension from ratios of neighbour distances, and how sure it is when neighbourhoods overlap.

    r_k ~ (k-th nearest of a uniform sample in d dimensions)      the volume ratio (r_a / r_b)^d ~ Beta(a, b - a)
    Gride     mu = r_{2k} / r_k        sum_i [ 1 + (k - 1) t_i / (1 - e^-t_i) - (2k - 1) t_i ] = 0,   t_i = d ln mu_i
    TwoNN     k = 1                    d = n / sum_i ln mu_i
    MLE       m_i = mean_{j < k} ln(r_k / r_j)                    d = 1 / mean_i m_i

Each estimate solves mean_i s_i(d) = 0. Two samples that are neighbours see the same points, so their scores s_i are
correlated; the variance of the mean sums s_i s_j over all pairs that are joined in the graph:

    se(ln d) = sqrt( sum_{i ~ j} s_i s_j ) / (n |mean_i d s_i'|)       i ~ j: equal, or one a neighbour of the other

Source: [@facco2017], [@denti2022], [@levina2004], [@mackay2005], [@conley1999] (the variance).
Cost: one pass over the distances per step of Newton's method, and one over the edges.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float
from scipy.special import ndtri, psi

from mechint_core.kernels.neighbour_graph import NeighbourGraph
from mechint_core.result import NAN

NEWTON_STEPS: Final = 12
"""From the moment estimate 4 reach the last digit."""
TIE: Final = 1e-9
"""Ratios that are nearer to 1 on average are those of a grid, with rounding."""
Z: Final = float(ndtri(0.975))


@dataclass(frozen=True, slots=True)
class DimensionEstimate:
    """A dimension and the standard error of its logarithm."""

    value: float
    error: float = NAN

    @property
    def low(self) -> float:
        """Lower end of the 95 % interval."""
        return float(self.value * np.exp(-Z * self.error))

    @property
    def high(self) -> float:
        """Upper end of the 95 % interval."""
        return float(self.value * np.exp(Z * self.error))


def gride(graph: NeighbourGraph, k: int, *, with_error: bool = True) -> DimensionEstimate:
    """Return the dimension at the scale of the `2 k`-th neighbour; NaN where all neighbours are equally far."""
    log_ratio = np.log(graph.distance[:, 2 * k - 1] / graph.distance[:, k - 1])
    if not log_ratio.mean() > TIE:
        return DimensionEstimate(NAN)
    d = (psi(2 * k) - psi(k)) / log_ratio.mean()
    for _ in range(NEWTON_STEPS):
        score, slope = _gride_score(d * log_ratio, k)
        step = float(score.mean() / -slope.mean())
        d *= np.exp(np.clip(step, -1, 1))
        if abs(step) < 1e-13:
            break
    score, slope = _gride_score(d * log_ratio, k)
    return DimensionEstimate(d, _error(graph, score, slope.mean(), 2 * k) if with_error else NAN)


def maximum_likelihood(graph: NeighbourGraph, k: int, *, with_error: bool = True) -> DimensionEstimate:
    """Return the dimension from the distances of the `k` nearest neighbours, inverses averaged."""
    inverse = mean_log_ratio(graph, k)
    if not inverse.mean() > TIE:
        return DimensionEstimate(NAN)
    d = float(1 / inverse.mean())
    return DimensionEstimate(d, _error(graph, 1 - d * inverse, -1.0, k) if with_error else NAN)


def mean_log_ratio(graph: NeighbourGraph, k: int) -> Float[np.ndarray, "row"]:
    """Return the mean of ln(r_k / r_j) over j < k, the inverse of the dimension around each row."""
    logs = np.log(graph.distance[:, :k])
    return logs[:, -1] - logs[:, :-1].mean(axis=1)


def _gride_score(t: Float[np.ndarray, "row"], k: int) -> tuple[Float[np.ndarray, "row"], Float[np.ndarray, "row"]]:
    """Return d times the derivative of the log-likelihood of each row, and the derivative of that by ln d."""
    fades = np.exp(-t)
    gap = np.where(t > 1e-8, -np.expm1(-t), 1.0)
    rising = np.where(t > 1e-8, t / gap, 1.0)
    score = 1 + (k - 1) * rising - (2 * k - 1) * t
    return score, (k - 1) * (rising - rising**2 * fades) - (2 * k - 1) * t


def _error(graph: NeighbourGraph, score: Float[np.ndarray, "row"], slope: float, k: int) -> float:
    """Return the standard error of ln d, neighbours correlated; never below that of independent rows."""
    joined = graph.adjacency(k)
    joined.data = np.ones_like(joined.data)
    alone = float(score @ score)
    return float(np.sqrt(max(alone, alone + score @ (joined @ score))) / (len(score) * abs(slope)))
