"""Shortest paths along a graph of neighbours, freed of their zigzag; landmark multidimensional scaling of them.

A path from sample to sample is longer than the straight line that it follows: by 3 to 5 % in the plane with 10
neighbours, however many samples there are. How much depends on neighbours and dimension only, so it is measured where
the truth is known, on a flat sample of the same dimension, joined alike:

    zeta(g)      E[path] / E[straight line] given path / mean edge = g       of uniform points in a cube
    distance     path / zeta(path / mean edge)

    embedding    -1/2 H D^2 H = V diag(lambda) V'      of the landmarks, H the centring
                 y = 1/2 lambda^-1/2 V' (mean D^2 - D^2(., x))                            of every sample x

Source: [@dijkstra1959], [@bernstein2000], [@tenenbaum2000], [@desilva2003] (landmarks).
Cost: landmarks x n x k log n for the paths.
"""

from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Final

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components, dijkstra, minimum_spanning_tree
from scipy.spatial.distance import cdist

from mechint_core.kernels.neighbour_graph import neighbour_graph
from mechint_core.parallel import map_parallel
from mechint_core.random import generator

SOURCES: Final = 16
"""Paths from one block of landmarks are searched by one worker."""
REFERENCE_POINTS: Final = 4000
REFERENCE_SOURCES: Final = 60
"""In all, and at least `FEWEST_SOURCES` in each sample."""
FEWEST_SOURCES: Final = 10
REFERENCE_DIMENSION: Final = 12
"""Beyond it samples are within a few edges of each other, and the zigzag no longer changes."""
BINS: Final = 24


@dataclass(frozen=True, slots=True)
class Zigzag:
    """How much longer than straight lines paths are, by their length in edges."""

    length: Float[np.ndarray, "bin"]
    ratio: Float[np.ndarray, "bin"]

    def removed(self, paths: Float[np.ndarray, "landmark row"], edge: float) -> Float[np.ndarray, "landmark row"]:
        """Return the distances that show as `paths` in a graph with edges of mean length `edge`."""
        return paths / np.interp(paths / edge, self.length, self.ratio)


@lru_cache(maxsize=64)
def zigzag(n_points: int, n_neighbours: int, dimension: int, seed: int) -> Zigzag:
    """Measure the zigzag on uniform points of a cube of `dimension`."""
    rng = generator(seed, "geometry", "zigzag", n_neighbours, dimension)
    n = max(min(n_points, REFERENCE_POINTS), 4 * n_neighbours)
    # One sample of 200 points leaves an error of 2 % in every distance, so that small ones are drawn several times.
    n_draws = max(1, REFERENCE_POINTS // n)
    n_sources = max(FEWEST_SOURCES, REFERENCE_SOURCES // n_draws)
    drawn = [_paths_and_lines(n, n_neighbours, dimension, n_sources, rng) for _ in range(n_draws)]
    paths, lines = np.concatenate(drawn, axis=1)
    order = np.argsort(paths)
    parts = np.array_split(order, BINS)
    path, line = (np.array([each[part].mean() for part in parts]) for each in (paths, lines))
    return Zigzag(path, np.maximum(path / line, 1.0))


def _paths_and_lines(
    n: int, n_neighbours: int, dimension: int, n_sources: int, rng: np.random.Generator
) -> Float[np.ndarray, "which pair"]:
    """Return the lengths of paths and of straight lines between uniform points of a cube, in mean edges."""
    flat = rng.uniform(0, 1, (n, dimension))
    edges = neighbour_graph(flat, n_neighbours).adjacency()
    sources = rng.choice(n, min(n, n_sources), replace=False)
    both = np.stack([dijkstra(edges, indices=sources).ravel(), cdist(flat[sources], flat).ravel()])
    return both[:, np.isfinite(both[0]) & (both[0] > 0)] / edges.data.mean()


def shortest_paths(edges: csr_array, landmarks: Int[np.ndarray, "landmark"]) -> Float[np.ndarray, "landmark row"]:
    """Return the lengths of the shortest paths from the landmarks to all rows; infinite where there is none."""
    blocks = [landmarks[start : start + SOURCES] for start in range(0, len(landmarks), SOURCES)]
    return np.concatenate(map_parallel(partial(_paths, edges), blocks))


def _paths(edges: csr_array, sources: Int[np.ndarray, "source"]) -> Float[np.ndarray, "source row"]:
    return dijkstra(edges, indices=sources)


def bridged(edges: csr_array, rows: Float[np.ndarray, "row unit"], label: Int[np.ndarray, "row"]) -> csr_array:
    """Add the shortest edges that join the components of the graph: the minimum spanning tree between them."""
    n_components, most = int(label.max()) + 1, 512
    gap, ends = np.full((n_components, n_components), np.inf), {}
    for a in range(n_components):
        others = np.flatnonzero(label > a)
        for start in range(0, len(others), most):
            part = others[start : start + most]
            mine = np.flatnonzero(label == a)
            between = cdist(rows[mine].astype(np.float64), rows[part].astype(np.float64))
            nearest = between.argmin(axis=0)
            for column, x in enumerate(part):
                b = int(label[x])
                if between[nearest[column], column] < gap[a, b]:
                    gap[a, b] = between[nearest[column], column]
                    ends[a, b] = (int(mine[nearest[column]]), int(x))
    tree = minimum_spanning_tree(np.where(np.isfinite(gap), gap, 0)).tocoo()
    pairs = [ends[int(a), int(b)] for a, b in zip(tree.row, tree.col, strict=True)]
    x, y = np.array(pairs).T
    bridges = csr_array((tree.data, (x, y)), shape=edges.shape)
    return csr_array(edges.maximum(bridges).maximum(bridges.T))


def components(edges: csr_array) -> tuple[int, Int[np.ndarray, "row"]]:
    """Return how many components the graph has, and in which each row lies."""
    n_components, label = connected_components(edges, directed=False)
    return int(n_components), label.astype(np.int64)


def landmark_embedding(
    distance: Float[np.ndarray, "landmark row"], landmark: Int[np.ndarray, "landmark"], n_coordinates: int
) -> Float[np.ndarray, "row coordinate"]:
    """Return coordinates in which Euclidean distances approximate `distance`; 0 along what carries nothing."""
    square = distance[:, landmark] ** 2
    square = (square + square.T) / 2
    mean = square.mean(axis=0)
    scatter = -(square - mean - mean[:, None] + mean.mean()) / 2
    value, vector = np.linalg.eigh(scatter)
    value, vector = value[::-1][:n_coordinates], vector[:, ::-1][:, :n_coordinates]
    carries = value > 1e-12 * max(value[0], np.finfo(np.float64).tiny)
    scale = np.where(carries, 1 / np.sqrt(np.where(carries, value, 1)), 0)
    farthest = np.take_along_axis(vector, np.abs(vector).argmax(axis=0)[None], axis=0)
    return (mean[:, None] - distance**2).T @ (vector * np.sign(farthest) * scale) / 2
