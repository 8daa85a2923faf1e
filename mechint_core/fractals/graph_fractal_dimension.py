"""Fractal dimension of a graph: how does the number of boxes that cover it fall as they grow.

    N(l) ~ l^-d          power law: the graph is self-similar        l = 2 r + 1: nodes across a box of radius r
    N(l) ~ exp(-l / c)   exponential: a small world, any two nodes are a few links apart, and there is no dimension

A box is the nodes within r links of a centre; the cover is greedy, the better of two orders among equals. Which law
holds is told by the residuals of both lines through ln N.

Source: [@song2005], [@song2007]
Cost: links x nodes / 64 operations per step of the radius, and some ten counts per box; 1 s for 10,000
nodes with 20,000 links.
Memory: nodes^2 / 4 bytes.
Chunked over: nothing; rewired graphs run in parallel.
"""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Final

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.special import stdtrit

from mechint_core.errors import ConfigurationError, DegenerateInputError, DtypeError, MemoryBudgetError, ShapeError
from mechint_core.figure import Curve
from mechint_core.fractals._box_covering import count_boxes, distances_from, grown_balls, rewired, single_balls
from mechint_core.fractals._power_law import stream
from mechint_core.kernels.resampling import p_value
from mechint_core.parallel import map_parallel
from mechint_core.result import NAN, Estimate, Result

FEWEST: Final = 3
"""Fewest radii of a fit."""
SWAPS: Final = 10
"""Swaps tried per link: the next ten change nothing measurable."""
LEVEL: Final = 0.95
AUTOMATIC: Final = (1, 2, 3, 4, 6, 8, 11, 16, 23, 32, 45, 64, 91, 128, 181, 256, 362, 512, 724, 1024)
"""Radii by default: powers of the square root of 2."""
MOST_NODES: Final = 50_000
"""Two sets of balls then take 600 MB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphFractalDimensionConfig:
    """Which boxes, and how sure to be."""

    radii: tuple[int, ...] = ()
    """Radii of the boxes in links, increasing. By default 1, 2, 3, 4, 6, 8, 11, 16, ... down to `fewest_boxes`."""
    fewest_boxes: int = 10
    """Radii that leave fewer boxes are not used, without `radii`: their number depends on the ends of the graph."""
    n_surrogates: int = 19
    """Rewired graphs behind the null; 0 for none."""
    seed: int = 0
    """Draws the second order of the nodes, and the rewired graphs."""

    def __post_init__(self) -> None:
        if self.radii and (len(self.radii) < FEWEST or min(self.radii) < 0):
            raise ConfigurationError(f"radii must be at least {FEWEST} numbers of links. Got {self.radii}.")
        if list(self.radii) != sorted(set(self.radii)):
            raise ConfigurationError(f"radii must increase. Got {self.radii}.")
        if self.fewest_boxes < 1:
            raise ConfigurationError(f"fewest_boxes must be at least 1. Got {self.fewest_boxes}.")
        if self.n_surrogates < 0:
            raise ConfigurationError(f"n_surrogates must not be negative. Got {self.n_surrogates}.")


@dataclass(frozen=True, slots=True)
class GraphFractalDimensionResult(Result):
    """How the number of boxes falls, and by which law."""

    technique: ClassVar[str] = "graph_fractal_dimension"
    evidence: ClassVar[str] = (
        "Interval: standard error of the line through ln N (Student's t, 95 %), which grows where it bends. Null: "
        "graphs with the same degrees and random links; p two-sided, for the log error ratio one-sided."
    )
    figures: ClassVar[tuple[Curve, ...]] = (
        Curve(
            x="box_size",
            y=("n_boxes", "power_law", "exponential"),
            title="Boxes by size",
            x_label="nodes across a box",
            y_label="boxes that cover the graph",
            log_x=True,
            log_y=True,
        ),
    )

    dimension: Estimate
    """d, the slope of ln N over ln l: 1 for a path, 2 for a grid. No dimension where the law is exponential."""
    log_error_ratio: Estimate
    """ln of the residual sum of squares of the power law over that of the exponential: below 0 for a fractal."""
    exponential_preferred: bool
    """The exponential fits ln N better: a small world."""
    r_squared: float
    """Of the power law."""
    diameter: int
    """A lower bound of it, by two sweeps: exact on trees and most graphs."""
    smallest_box: int
    """Of the fit, in nodes across."""
    largest_box: int
    """Of the fit."""
    n_nodes: int
    """Nodes in the largest connected part, which alone is measured."""
    n_edges: int
    """Links in it."""
    n_left_out: int
    """Nodes in other parts."""
    n_dropped_edges: int
    """Loops and repeated links."""
    box_size: Int[np.ndarray, "scale"]
    n_boxes: Int[np.ndarray, "scale"]
    power_law: Float[np.ndarray, "scale"]
    exponential: Float[np.ndarray, "scale"]

    def reading(self) -> str:
        """Say whether the graph is self-similar, and with which dimension."""
        d = self.dimension
        left_out = f" {self.n_left_out} nodes are not connected to the rest and were left out." * bool(self.n_left_out)
        if self.exponential_preferred:
            return f"The number of boxes falls exponentially: a small world, without a dimension.{left_out}"
        text = f"The number of boxes falls as size^-{d.value:.2f} [{d.low:.2f}, {d.high:.2f}]"
        p = self.log_error_ratio.p_value
        if np.isfinite(p):
            better = "better" if p <= 0.05 else "no better"
            text += f", a power law {better} than that of graphs with the same degrees (p = {p:.2g})"
        return f"{text}.{left_out}"


@dataclass(frozen=True, slots=True)
class _Graph:
    """The largest connected part: neighbours of node i are indices[indptr[i] : indptr[i + 1]]."""

    indptr: Int[np.ndarray, "_"]
    indices: Int[np.ndarray, "_"]

    @property
    def n_nodes(self) -> int:
        return self.indptr.size - 1

    def sweep(self) -> Int[np.ndarray, "node"]:
        """Return distances from a node far out: one that is farthest from the first node."""
        return distances_from(int(np.argmax(distances_from(0, self.indptr, self.indices))), self.indptr, self.indices)

    def links(self) -> Int[np.ndarray, "edge 2"]:
        one = np.repeat(np.arange(self.n_nodes), np.diff(self.indptr))
        return np.stack([one, self.indices], axis=1)[one < self.indices]


def graph_fractal_dimension(
    edges: Int[np.ndarray, "edge 2"],
    *,
    config: GraphFractalDimensionConfig = GraphFractalDimensionConfig(),
) -> GraphFractalDimensionResult:
    """Measure how the number of boxes that cover a graph falls with their size.

    Use it for graphs of some 1000 nodes or more: neighbour graphs of representations, circuits, connectomes. A power
    law says that the graph looks alike at all scales, an exponential that it is a small world. It cannot tell laws
    apart in graphs whose diameter is below some 20 links: there are too few sizes.

    Parameters
    ----------
    edges
        One undirected link per row: two node numbers. Loops and repeated links are dropped.
    config
        The radii, and the number of rewired graphs.

    Returns
    -------
    GraphFractalDimensionResult
        Dimensionless `dimension`, positive, and which law holds.

    Raises
    ------
    DtypeError
        If `edges` does not hold integers.
    ShapeError
        If `edges` is not (edge, 2), or a node number is negative.
    DegenerateInputError
        If the largest connected part is too small for 3 sizes of boxes.
    MemoryBudgetError
        If it has more than 50,000 nodes.

    Notes
    -----
    Directions and weights are ignored. Rewiring swaps ends of links, so degrees stay, and keeps the largest connected
    part. On discrete self-similar graphs N falls in steps: the fit at the graph's own sizes (`radii`) is exact where
    automatic ones waver around it.

    References
    ----------
    [@song2005]
    [@song2007]

    Examples
    --------
    A path is covered by boxes in inverse proportion to their size:

    >>> path = np.stack([np.arange(999), np.arange(1, 1000)], axis=1)
    >>> config = GraphFractalDimensionConfig(n_surrogates=0)
    >>> round(graph_fractal_dimension(path, config=config).dimension.value, 1)
    1.0
    """
    links, n_dropped = _simple_links(edges)
    graph, n_left_out = _largest_part(links)
    if graph.n_nodes > MOST_NODES:
        raise MemoryBudgetError(
            f"edges must link at most {MOST_NODES} nodes. Got {graph.n_nodes}: their balls would take "
            f"{graph.n_nodes**2 / 4e9:.1f} GB. Measure a part of the graph."
        )
    distance = graph.sweep()
    radii, count = _boxes(graph, distance, config, stream(config.seed, "order"))
    if radii.size < FEWEST:
        raise DegenerateInputError(
            f"edges must span a graph that {FEWEST} sizes of boxes cover with at least {config.fewest_boxes} boxes. "
            f"Got {radii.size} sizes, for {graph.n_nodes} nodes and a diameter of {int(distance.max())}."
        )
    fit = _Fit.of(radii, count)
    null = np.array(map_parallel(partial(_rewired_fit, graph, config), range(config.n_surrogates))).reshape(-1, 2)
    ratio = fit.log_error_ratio
    return GraphFractalDimensionResult(
        dimension=fit.dimension(null[:, 0]),
        log_error_ratio=Estimate(ratio, null=_mean(null[:, 1]), p_value=p_value(ratio, null[:, 1], "less")),
        exponential_preferred=ratio > 0,
        r_squared=fit.r_squared,
        diameter=int(distance.max()),
        smallest_box=int(fit.size[0]),
        largest_box=int(fit.size[-1]),
        n_nodes=graph.n_nodes,
        n_edges=graph.indices.size // 2,
        n_left_out=n_left_out,
        n_dropped_edges=n_dropped,
        box_size=fit.size,
        n_boxes=count,
        power_law=np.exp(fit.power),
        exponential=np.exp(fit.exponential),
    )


def _simple_links(edges: np.ndarray) -> tuple[Int[np.ndarray, "edge 2"], int]:
    """Return each link once, without loops, and how many rows that drops."""
    if edges.dtype.kind not in "iu":
        raise DtypeError(f"edges must hold node numbers (integers). Got {edges.dtype}.")
    if edges.ndim != 2 or edges.shape[1] != 2 or len(edges) == 0 or edges.min() < 0:
        raise ShapeError(f"edges must be (edge >= 1, 2) node numbers from 0 on. Got shape {edges.shape}.")
    ordered = np.sort(edges.astype(np.int64), axis=1)
    links = np.unique(ordered[ordered[:, 0] < ordered[:, 1]], axis=0)
    if not len(links):
        raise DegenerateInputError(f"edges must link different nodes. Got {len(edges)} loops.")
    return links, len(edges) - len(links)


def _largest_part(links: Int[np.ndarray, "edge 2"]) -> tuple[_Graph, int]:
    """Return the largest connected part, and how many nodes (that have links) are in others."""
    names, ends = np.unique(links, return_inverse=True)
    one, other = ends.reshape(-1, 2).T
    shape = (names.size, names.size)
    both = coo_array((np.ones(2 * one.size), (np.r_[one, other], np.r_[other, one])), shape=shape).tocsr()
    _, part = connected_components(both, directed=False)
    kept = np.flatnonzero(part == np.argmax(np.bincount(part)))
    inner = both[kept][:, kept]
    inner.sort_indices()
    return _Graph(inner.indptr.astype(np.int64), inner.indices.astype(np.int64)), names.size - kept.size


def _boxes(
    graph: _Graph, distance: Int[np.ndarray, "node"], config: GraphFractalDimensionConfig, rng: np.random.Generator
) -> tuple[Int[np.ndarray, "scale"], Int[np.ndarray, "scale"]]:
    """Return radii and their boxes: the fewer of an order of the nodes from one end, and of a random one."""
    orders = (np.argsort(distance, kind="stable"), rng.permutation(graph.n_nodes))
    wanted = config.radii or AUTOMATIC
    balls, radius, count = single_balls(graph.n_nodes), 0, []
    for target in wanted:
        if target > distance.max() and not config.radii:
            break
        while radius < min(target, distance.max()):
            balls, radius = grown_balls(balls, graph.indptr, graph.indices), radius + 1
        fewest = min(count_boxes(balls, order) for order in orders)
        if fewest < config.fewest_boxes and not config.radii:
            break
        count.append(fewest)
    return np.array(wanted[: len(count)], dtype=np.int64), np.array(count, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class _Fit:
    """Both lines through ln N."""

    size: Int[np.ndarray, "scale"]
    height: Float[np.ndarray, "scale"]
    slope: float
    error: float
    power: Float[np.ndarray, "scale"]
    exponential: Float[np.ndarray, "scale"]

    @classmethod
    def of(cls, radii: Int[np.ndarray, "scale"], count: Int[np.ndarray, "scale"]) -> "_Fit":
        size, height = 2 * radii + 1, np.log(count)
        slope, error, power = _line(np.log(size), height)
        return cls(size, height, slope, error, power, _line(size.astype(np.float64), height)[2])

    @property
    def log_error_ratio(self) -> float:
        one, other = (max(float(np.sum((self.height - line) ** 2)), 1e-20) for line in (self.power, self.exponential))
        return float(np.log(one / other))

    @property
    def r_squared(self) -> float:
        spread = float(np.sum((self.height - self.height.mean()) ** 2))
        return 1 - float(np.sum((self.height - self.power) ** 2)) / spread if spread else NAN

    def dimension(self, null: Float[np.ndarray, "draw"]) -> Estimate:
        half = float(stdtrit(self.size.size - 2, (1 + LEVEL) / 2)) * self.error
        d = -self.slope
        return Estimate(d, d - half, d + half, _mean(null), p_value(d, null, "two-sided"), LEVEL)


def _line(x: np.ndarray, height: np.ndarray) -> tuple[float, float, Float[np.ndarray, "scale"]]:
    """Return slope, standard error and values of the least-squares line."""
    run = x - x.mean()
    slope = float(run @ height / (run @ run))
    line = height.mean() + slope * run
    error = float(np.sqrt(np.sum((height - line) ** 2) / (x.size - 2) / (run @ run)))
    return slope, error, line


def _rewired_fit(graph: _Graph, config: GraphFractalDimensionConfig, number: int) -> tuple[float, float]:
    """Return d and the log error ratio of the graph with its ends of links swapped; NaN if it is too short for them."""
    rng = stream(config.seed, "rewired", str(number))
    links = graph.links()
    n_swaps = SWAPS * len(links)
    first, second = rng.integers(0, len(links), (2, n_swaps))
    neighbours = rewired(links, graph.indptr, graph.indices, first, second, rng.random(n_swaps) < 0.5)
    part, _ = _largest_part(_Graph(graph.indptr, neighbours).links())
    radii, count = _boxes(part, part.sweep(), config, rng)
    if radii.size < FEWEST:
        return NAN, NAN
    fit = _Fit.of(radii, count)
    return -fit.slope, fit.log_error_ratio


def _mean(null: Float[np.ndarray, "draw"]) -> float:
    finite = null[np.isfinite(null)]
    return float(finite.mean()) if finite.size else NAN
