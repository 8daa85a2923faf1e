"""Ricci curvature of the edges of a graph, by Ollivier and by Forman; every edge has length 1.

    Ollivier    kappa(x, y) = 1 - W(m_x, m_y)       W the cost of carrying a uniform mass on the neighbours of x to
                                                    those of y; an idle share of it may stay in x and in y
    Forman      F(x, y) = 4 - deg x - deg y + 3 t   t triangles on the edge (0 in the form without faces)

    n-cycle, n > 3      kappa = 0              F = 0
    complete graph      (n - 2) / (n - 1)      4 - 2 (n - 1) + 3 (n - 2) = n
    tree                2 / deg x + 2 / deg y - 2 between inner nodes
    grid                kappa = 0              F = -4

Neighbours of x are at most 3 steps from those of y. What both share stays where it is, at no cost. Masses of unequal
nodes are split into the least common multiple of equal parts; then the best transport is an assignment.

Source: [@ollivier2009], [@jost2014], [@forman2003], [@samal2018].
Cost: one assignment problem (or linear programme, where the parts would be too many) of the degrees, per edge.
"""

import math
from typing import Final

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment, linprog
from scipy.sparse import csr_array, eye_array, kron

MOST_PARTS: Final = 512
"""Up to so many equal parts an assignment is faster than a linear programme: 1.5 ms an edge, against 10 ms."""


def forman(edges: csr_array, pairs: Int[np.ndarray, "edge 2"], *, triangles: bool = True) -> Int[np.ndarray, "edge"]:
    """Return Forman's curvature of the edges `pairs`."""
    degree = np.diff(edges.indptr)
    plain = 4 - degree[pairs[:, 0]] - degree[pairs[:, 1]]
    if not triangles:
        return plain.astype(np.int64)
    shared = [len(np.intersect1d(_around(edges, x), _around(edges, y), assume_unique=True)) for x, y in pairs.tolist()]
    return plain + 3 * np.array(shared, dtype=np.int64)


def ollivier(edges: csr_array, pairs: Int[np.ndarray, "edge 2"], *, idleness: float = 0.0) -> Float[np.ndarray, "edge"]:
    """Return Ollivier's curvature of the edges `pairs`; a share `idleness` of the mass stays in each node."""
    return np.array([1 - _transport(edges, x, y, idleness) for x, y in pairs.tolist()])


def _around(edges: csr_array, x: int) -> Int[np.ndarray, "neighbour"]:
    return edges.indices[edges.indptr[x] : edges.indptr[x + 1]]


def _transport(edges: csr_array, x: int, y: int, idleness: float) -> float:
    """Return the cost of carrying the mass around x to that around y."""
    nodes = np.unique(np.concatenate([[x, y], _around(edges, x), _around(edges, y)]))
    surplus = _mass(edges, x, nodes, idleness) - _mass(edges, y, nodes, idleness)
    surplus[np.abs(surplus) < 1e-12] = 0
    gives, takes = np.flatnonzero(surplus > 0), np.flatnonzero(surplus < 0)
    if len(gives) == 0:
        return 0.0
    cost = _steps(edges, nodes[gives], nodes[takes])
    return _cheapest(cost, surplus[gives], -surplus[takes], _parts(edges, x, y) if idleness == 0 else 0)


def _mass(edges: csr_array, x: int, nodes: Int[np.ndarray, "node"], idleness: float) -> Float[np.ndarray, "node"]:
    around = _around(edges, x)
    mass = np.zeros(len(nodes))
    mass[np.searchsorted(nodes, around)] = (1 - idleness) / len(around)
    mass[np.searchsorted(nodes, x)] += idleness
    return mass


def _parts(edges: csr_array, x: int, y: int) -> int:
    """Return into how many equal parts the mass of both nodes can be split; 0 if they are too many."""
    parts = math.lcm(len(_around(edges, x)), len(_around(edges, y)))
    return parts if parts <= MOST_PARTS else 0


def _steps(
    edges: csr_array, start: Int[np.ndarray, "start"], end: Int[np.ndarray, "end"]
) -> Int[np.ndarray, "start end"]:
    """Return how many steps apart nodes are that are at most 3 apart."""
    from_start, from_end = edges[start], edges[end]
    near = from_start[:, end].toarray() != 0
    shared = (from_start @ from_end.T).toarray() != 0
    same = start[:, None] == end
    return np.select([same, near, shared], [0, 1, 2], 3)


def _cheapest(
    cost: Int[np.ndarray, "start end"], gives: Float[np.ndarray, "start"], takes: Float[np.ndarray, "end"], parts: int
) -> float:
    """Return the least cost of carrying what one side gives to what the other takes."""
    if parts:
        start = np.repeat(np.arange(len(gives)), np.rint(gives * parts).astype(np.int64))
        end = np.repeat(np.arange(len(takes)), np.rint(takes * parts).astype(np.int64))
        split = cost[np.ix_(start, end)]
        return float(split[linear_sum_assignment(split)].sum() / parts)
    rows = kron(eye_array(len(gives)), np.ones((1, len(takes))))
    columns = kron(np.ones((1, len(gives))), eye_array(len(takes)))
    out = linprog(cost.ravel(), A_ub=rows, b_ub=gives, A_eq=columns, b_eq=takes * (gives.sum() / takes.sum()))
    return float(out.fun)
