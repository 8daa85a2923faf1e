"""Points and graphs whose box dimension is known.

    cantor_set           ln 2 / ln 3                every second third, middles of the intervals that are left
    sierpinski_lattice   ln 3 / ln 2                pairs of binary numbers without a common 1: exact at every 2^-k
    sierpinski_triangle  ln 3 / ln 2                uniform random points of the equilateral triangle
    flower_graph         ln(u + v) / ln u           every link becomes two parallel chains of u and v links
    sierpinski_graph     ln 3 / ln 2                corners of the triangles of n subdivisions
    lattice_graph        number of axes             a path, a square grid, ...
    small_world          none                       a ring with shortcuts: the number of boxes falls exponentially

Source: [@mandelbrot1982], [@rozenfeld2007], [@newman1999]
Cost: linear in the number of points or links.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from mechint_core.errors import ConfigurationError
from mechint_core.random import generator


@dataclass(frozen=True, slots=True)
class FractalPoints:
    """Points of a fractal, and its dimension."""

    points: Float[np.ndarray, "sample coordinate"]
    dimension: float


@dataclass(frozen=True, slots=True)
class FractalGraph:
    """An undirected graph, each link once, and its box dimension (NaN where there is none)."""

    edges: Int[np.ndarray, "edge 2"]
    n_nodes: int
    dimension: float


def cantor_set(n_levels: int) -> FractalPoints:
    """Return the middles of the 2^n_levels intervals of the Cantor set, in order: in boxes of 3^-k there are 2^k."""
    _require_levels(n_levels, 20)
    points = np.full(1, 0.5)
    for _ in range(n_levels):
        points = np.concatenate([points / 3, points / 3 + 2 / 3])
    return FractalPoints(points[:, None], float(np.log(2) / np.log(3)))


def sierpinski_lattice(n_levels: int) -> FractalPoints:
    """Return the middles of the 3^n_levels cells of the right-angled triangle: in boxes of 2^-k there are 3^k."""
    _require_levels(n_levels, 12)
    corner = np.zeros((1, 2))
    for _ in range(n_levels):
        corner = np.concatenate([corner / 2 + shift for shift in ((0, 0), (0.5, 0), (0, 0.5))])
    return FractalPoints(corner + 0.5 ** (n_levels + 1), float(np.log(3) / np.log(2)))


def sierpinski_triangle(n_samples: int, *, seed: int = 0) -> FractalPoints:
    """Return uniform random points of the equilateral triangle of side 1."""
    if n_samples < 1:
        raise ConfigurationError(f"n_samples must be at least 1. Got {n_samples}.")
    corners = np.array([[0, 0], [1, 0], [0.5, np.sqrt(0.75)]])
    choice = generator(seed, "sierpinski_triangle").integers(0, 3, (50, n_samples))
    points = np.zeros((n_samples, 2))
    for picked in choice:
        points = (points + corners[picked]) / 2
    return FractalPoints(points, float(np.log(3) / np.log(2)))


def flower_graph(u: int, v: int, n_generations: int) -> FractalGraph:
    """Return the (u, v)-flower: a ring of u + v links, each of which is then replaced again and again.

    For u = 1 distances stay short and there is no dimension: the flower is a small world.
    """
    if not 1 <= u <= v or u + v < 3:
        raise ConfigurationError(f"u and v must obey 1 <= u <= v and u + v >= 3. Got {u} and {v}.")
    if n_generations < 1 or (u + v) ** n_generations > 2**24:
        raise ConfigurationError(f"n_generations must be at least 1, and the links at most 2^24. Got {n_generations}.")
    ring = np.arange(u + v)
    edges, n_nodes = np.stack([ring, np.roll(ring, -1)], axis=1), u + v
    for _ in range(n_generations - 1):
        chains = []
        for length in (u, v):
            inner = n_nodes + np.arange(len(edges) * (length - 1)).reshape(len(edges), length - 1)
            n_nodes += inner.size
            stops = np.concatenate([edges[:, :1], inner, edges[:, 1:]], axis=1)
            chains.append(np.stack([stops[:, :-1], stops[:, 1:]], axis=2).reshape(-1, 2))
        edges = np.concatenate(chains)
    return FractalGraph(edges, n_nodes, float(np.log(u + v) / np.log(u)) if u > 1 else float("nan"))


def sierpinski_graph(n_levels: int) -> FractalGraph:
    """Return the corners of the triangles of `n_levels` subdivisions, linked along their sides."""
    _require_levels(n_levels, 12)
    triangles = np.array([[[0, 0], [1, 0], [0, 1]]])
    for level in range(n_levels):
        shifts = np.array([[0, 0], [1, 0], [0, 1]]) * 2**level
        triangles = (triangles[None] + shifts[:, None, None]).reshape(-1, 3, 2)
    _, label = np.unique(triangles.reshape(-1, 2), axis=0, return_inverse=True)
    corners = label.reshape(-1, 3)
    edges = np.concatenate([corners[:, [0, 1]], corners[:, [1, 2]], corners[:, [0, 2]]])
    return FractalGraph(edges, int(label.max()) + 1, float(np.log(3) / np.log(2)))


def lattice_graph(*sides: int) -> FractalGraph:
    """Return a grid with so many nodes along each axis: one axis is a path."""
    if not sides or min(sides) < 2:
        raise ConfigurationError(f"a lattice must have axes of at least 2 nodes. Got {sides}.")
    node = np.arange(int(np.prod(sides))).reshape(sides)
    edges = [
        np.stack([node.take(range(n - 1), axis).ravel(), node.take(range(1, n), axis).ravel()], axis=1)
        for axis, n in enumerate(sides)
    ]
    return FractalGraph(np.concatenate(edges), node.size, float(len(sides)))


def small_world(n_nodes: int, *, reach: int = 2, shortcuts: float = 0.1, seed: int = 0) -> FractalGraph:
    """Return a ring, each node linked to its next `reach` neighbours, with `shortcuts` random links per such link."""
    if not 1 <= reach < n_nodes / 2 or not 0 <= shortcuts <= 1:
        raise ConfigurationError(
            f"reach must lie in 1 ... n_nodes / 2, and shortcuts in [0, 1]. Got {reach} and {shortcuts}."
        )
    node = np.arange(n_nodes)
    ring = np.concatenate([np.stack([node, (node + k) % n_nodes], axis=1) for k in range(1, reach + 1)])
    drawn = generator(seed, "small_world").integers(0, n_nodes, (int(shortcuts * len(ring)), 2))
    edges = np.sort(np.concatenate([ring, drawn]), axis=1)
    return FractalGraph(np.unique(edges[edges[:, 0] != edges[:, 1]], axis=0), n_nodes, float("nan"))


def _require_levels(n_levels: int, most: int) -> None:
    if not 1 <= n_levels <= most:
        raise ConfigurationError(f"n_levels must be between 1 and {most}. Got {n_levels}.")
