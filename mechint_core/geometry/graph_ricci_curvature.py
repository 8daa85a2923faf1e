"""Ricci curvature of the graph of neighbours: do neighbourhoods flow together or apart along its edges?

    Ollivier    kappa(x, y) = 1 - W(m_x, m_y)          m_x uniform on the neighbours of x, W the cost of transport
    Forman      F(x, y) = 4 - deg x - deg y + 3 t      t triangles on the edge

Positive within clusters and on spheres, 0 on grids, negative on bridges between clusters and in trees. The graph joins
each sample with its nearest ones and counts steps, so both numbers say nothing of lengths.

Source: [@ollivier2009], [@jost2014], [@forman2003], [@samal2018].
Cost: one neighbour graph and one transport problem per edge (2 ms, with idleness 10), and the same for each surrogate.
Chunked over: rows of the graph, edges, surrogates.
"""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Final

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import csr_array, triu

from mechint_core.errors import ConfigurationError
from mechint_core.figure import Histogram, Scatter
from mechint_core.geometry._distinct_cloud import DistinctCloud
from mechint_core.geometry._point_cloud import principal_axes, random_copy
from mechint_core.geometry._ricci import forman, ollivier
from mechint_core.kernels.neighbour_graph import NeighbourGraph, neighbour_graph
from mechint_core.kernels.resampling import estimate
from mechint_core.parallel import map_parallel
from mechint_core.random import generator
from mechint_core.result import Estimate, Result

FEWEST_SURROGATES: Final = 19
EDGES_AT_ONCE: Final = 25


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphRicciCurvatureConfig:
    """Which samples are joined, and at how many edges curvature is measured."""

    n_neighbours: int = 8
    """Neighbours that each sample is joined with."""
    n_edges: int = 200
    """Edges drawn at random, of the cloud and of each surrogate."""
    idleness: float = 0.0
    """Share of the mass that stays in its node, from 0 to below 1; 0.5 keeps graphs without odd cycles apart."""
    triangles: bool = True
    """Count triangles as faces in Forman's curvature."""
    n_surrogates: int = 19
    """Gaussian clouds of the null, 0 for none."""
    n_bootstrap: int = 200
    """Draws of edges behind the intervals; 0 for none."""
    seed: int = 0
    """Draws edges, surrogates and the bootstrap."""

    def __post_init__(self) -> None:
        if self.n_neighbours < 2 or self.n_edges < 2:
            raise ConfigurationError(
                f"n_neighbours and n_edges must be at least 2. Got {self.n_neighbours} and {self.n_edges}."
            )
        if not 0 <= self.idleness < 1:
            raise ConfigurationError(f"idleness must be from 0 to below 1. Got {self.idleness}.")
        if self.n_surrogates != 0 and self.n_surrogates < FEWEST_SURROGATES:
            raise ConfigurationError(
                f"n_surrogates must be 0 or at least {FEWEST_SURROGATES}. Got {self.n_surrogates}."
            )
        if self.n_bootstrap < 0:
            raise ConfigurationError(f"n_bootstrap must not be negative. Got {self.n_bootstrap}.")


@dataclass(frozen=True, slots=True)
class GraphRicciCurvature(Result):
    """Curvature of the edges of a neighbour graph."""

    technique: ClassVar[str] = "graph_ricci_curvature"
    evidence: ClassVar[str] = (
        "Interval: bootstrap of the edges drawn (95 %), for this graph. Null: Gaussian clouds with exactly the same "
        "covariance, joined alike, two-sided p."
    )
    figures: ClassVar[tuple[Histogram | Scatter, ...]] = (
        Histogram(values="ollivier_at", title="Ollivier's curvature of the edges", x_label="curvature"),
        Scatter(
            points="middle",
            colour="ollivier_at",
            colour_label="Ollivier's curvature",
            title="The middles of the edges, two leading components",
        ),
    )

    ollivier: Estimate
    """Mean over edges, from -2 to 1."""
    forman: Estimate
    """Mean over edges: falls with the number of neighbours."""
    share_negative: float
    """Of the edges, those along which neighbourhoods part: kappa < 0."""
    mean_degree: float
    n_edges: int
    """Edges that were measured."""
    n_duplicates: int
    """Samples left out because they equal another, up to rounding."""
    n_surrogates: int
    sender: Int[np.ndarray, "edge"]
    """The sample at one end of each edge."""
    receiver: Int[np.ndarray, "edge"]
    """The sample at the other."""
    ollivier_at: Float[np.ndarray, "edge"]
    forman_at: Int[np.ndarray, "edge"]
    middle: Float[np.ndarray, "edge coordinate"]
    """Of each edge, in the two leading components."""

    def reading(self) -> str:
        """Say whether neighbourhoods flow together, against a Gaussian cloud."""
        k = self.ollivier
        text = f"The mean Ollivier curvature of the edges is {k.value:.3f}"
        text += f", {100 * self.share_negative:.0f} % of them are negative"
        if np.isfinite(k.p_value):
            how = "not distinguishable from" if k.p_value > 0.05 else "above" if k.value > k.null else "below"
            text += f": {how} a Gaussian cloud of the same covariance ({k.null:.3f}, p = {k.p_value:.2g})"
        return text + "."


def graph_ricci_curvature(
    points: Float[np.ndarray, "sample unit"],
    *,
    config: GraphRicciCurvatureConfig = GraphRicciCurvatureConfig(),
) -> GraphRicciCurvature:
    """Ask whether the neighbourhoods of activations flow together or apart, more than in a Gaussian cloud.

    Use it to find clusters and the bridges between them, or a tree-like layout, where no smooth manifold can be
    assumed; for the curvature of a manifold use `curvature`. It depends on the number of neighbours, so compare
    clouds at the same number. It cannot tell lengths, and edges that share a sample are not independent.

    Parameters
    ----------
    points
        One activation vector per sample.
    config
        Neighbours, edges, idleness, triangles, surrogates.

    Returns
    -------
    GraphRicciCurvature
        Ollivier's curvature, from -2 (a bridge) to 1; Forman's, an integer per edge.

    Raises
    ------
    ShapeError
        If `points` is not (sample, unit).
    DegenerateInputError
        If a value is NaN or infinite, or fewer than 20 samples are distinct.

    Notes
    -----
    The transport is solved exactly, never by a regularised approximation.

    References
    ----------
    [@ollivier2009]
    [@jost2014]
    [@forman2003]
    [@samal2018]
    [@langsrud2005]

    Examples
    --------
    On a ring whose samples are joined with two on either side, each edge of Forman's has curvature 4 - 4 - 4 + 3 t:

    >>> from mechint_core.synthetic.manifolds import polygon
    >>> config = GraphRicciCurvatureConfig(n_neighbours=4, n_surrogates=0)
    >>> sorted({int(each) for each in graph_ricci_curvature(polygon(60).points, config=config).forman_at})
    [-1, 2]
    """
    cloud = DistinctCloud.of(points, config.n_neighbours)
    rng = generator(config.seed, "geometry", "graph_ricci_curvature", "edge")
    edges, pairs = _drawn(cloud.graph, config, rng)
    blocks = [pairs[start : start + EDGES_AT_ONCE] for start in range(0, len(pairs), EDGES_AT_ONCE)]
    bend = np.concatenate(map_parallel(partial(_ollivier, edges, config.idleness), blocks))
    plain = forman(edges, pairs, triangles=config.triangles)
    null = _null(cloud.rows, config)
    centre, axes = principal_axes(cloud.rows.astype(np.float64), 2)
    scores = (cloud.rows - centre) @ axes
    return GraphRicciCurvature(
        ollivier=_bound(bend, null[:, 0], config),
        forman=_bound(plain.astype(np.float64), null[:, 1], config),
        share_negative=float(np.mean(bend < -1e-9)),
        mean_degree=edges.nnz / len(cloud.rows),
        n_edges=len(pairs),
        n_duplicates=cloud.n_duplicates + cloud.n_near_duplicates,
        n_surrogates=len(null),
        sender=cloud.first[pairs[:, 0]],
        receiver=cloud.first[pairs[:, 1]],
        ollivier_at=bend,
        forman_at=plain,
        middle=np.pad(scores[pairs].mean(axis=1), ((0, 0), (0, 2 - scores.shape[1]))),
    )


def _drawn(
    graph: NeighbourGraph, config: GraphRicciCurvatureConfig, rng: np.random.Generator
) -> tuple[csr_array, Int[np.ndarray, "edge 2"]]:
    """Return the graph of steps, and so many of its edges."""
    edges = graph.adjacency()
    edges.data = np.ones_like(edges.data)
    edges.sort_indices()
    upper = triu(edges).tocoo()
    ends = np.stack([upper.row, upper.col], axis=1).astype(np.int64)
    kept = np.sort(rng.choice(len(ends), min(config.n_edges, len(ends)), replace=False))
    return edges, ends[kept]


def _ollivier(edges: csr_array, idleness: float, pairs: Int[np.ndarray, "edge 2"]) -> Float[np.ndarray, "edge"]:
    return ollivier(edges, pairs, idleness=idleness)


def _null(rows: Float[np.ndarray, "row unit"], config: GraphRicciCurvatureConfig) -> Float[np.ndarray, "draw 2"]:
    """Return both means for Gaussian clouds with the same covariance."""
    if config.n_surrogates == 0:
        return np.empty((0, 2))
    exact = rows.astype(np.float64)
    centre, axes = principal_axes(exact, 0)
    one = partial(_of_copy, (exact - centre) @ axes, config)
    return np.array(map_parallel(one, range(config.n_surrogates)))


def _of_copy(
    scores: Float[np.ndarray, "row component"], config: GraphRicciCurvatureConfig, draw: int
) -> tuple[float, float]:
    rng = generator(config.seed, "geometry", "graph_ricci_curvature", "surrogate", draw)
    copy = random_copy(scores, rng)
    edges, pairs = _drawn(neighbour_graph(copy, min(config.n_neighbours, len(copy) // 4)), config, rng)
    bend = ollivier(edges, pairs, idleness=config.idleness)
    return float(bend.mean()), float(forman(edges, pairs, triangles=config.triangles).mean())


def _bound(
    values: Float[np.ndarray, "edge"], null: Float[np.ndarray, "draw"], config: GraphRicciCurvatureConfig
) -> Estimate:
    """Bind the mean to its interval over edges and to the null."""
    rng = generator(config.seed, "geometry", "graph_ricci_curvature", "bootstrap")
    drawn = rng.integers(0, len(values), (config.n_bootstrap, len(values)))
    return estimate(float(values.mean()), bootstrap=values[drawn].mean(axis=1), null=null, tail="two-sided")
