"""Covering a graph with few boxes of a given radius: the kernels of `graph_fractal_dimension`.

    ball     the nodes within r links of a centre, one bit each: those of r + 1 join the balls of r of all neighbours
    box      the ball of the node that covers most nodes not covered yet        (maximum excluded mass burning)

The mass of a node can only fall as others are covered, so a heap keeps what it last was, and only the node at its top
is counted again, until the top has been counted since the last box: the greedy rule exactly, at a fraction of its cost.

Source: [@song2007]
Cost: links x nodes / 64 operations per step of the radius, nodes / 64 for each count of a mass.
"""

from heapq import heapify, heappop, heapreplace
from typing import no_type_check

import numpy as np
from numba import njit

ONES = np.uint64(0x5555555555555555)
TWOS = np.uint64(0x3333333333333333)
FOURS = np.uint64(0x0F0F0F0F0F0F0F0F)
BYTES = np.uint64(0x0101010101010101)


@njit(nogil=True, cache=True)
@no_type_check  # numba compiles this function: nothing may wrap it
def single_balls(n_nodes: int) -> np.ndarray:
    """Return the balls of radius 0."""
    balls = np.zeros((n_nodes, (n_nodes + 63) // 64), dtype=np.uint64)
    for node in range(n_nodes):
        balls[node, node // 64] = np.uint64(1) << np.uint64(node % 64)
    return balls


@njit(nogil=True, cache=True)
@no_type_check
def grown_balls(balls: np.ndarray, indptr: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Return the balls of a radius that is larger by 1."""
    grown = balls.copy()
    for node in range(len(balls)):
        row = grown[node]
        for j in range(indptr[node], indptr[node + 1]):
            other = balls[indices[j]]
            for word in range(len(row)):
                row[word] |= other[word]
    return grown


@njit(nogil=True, cache=True)
@no_type_check
def count_boxes(balls: np.ndarray, order: np.ndarray) -> int:
    """Return how many balls cover the graph by the greedy rule; ties go to the node that is first in `order`."""
    n_nodes = len(balls)
    free = np.zeros(balls.shape[1], dtype=np.uint64)
    for node in range(n_nodes):
        free[node // 64] |= np.uint64(1) << np.uint64(node % 64)
    heap = [(-_mass(balls[order[rank]], free), rank) for rank in range(n_nodes)]
    heapify(heap)
    n_free, n_boxes = n_nodes, 0
    while n_free > 0:
        bound, rank = heap[0]
        box = balls[order[rank]]
        mass = _mass(box, free)
        if mass == 0:
            heappop(heap)
        elif -mass > bound:
            heapreplace(heap, (-mass, rank))
        else:
            heappop(heap)
            n_boxes += 1
            n_free -= mass
            for word in range(len(free)):
                free[word] &= ~box[word]
    return n_boxes


@njit(nogil=True, cache=True)
@no_type_check
def _mass(box: np.ndarray, free: np.ndarray) -> int:
    """Return how many bits both have, counted in pairs, fours and bytes."""
    total = np.uint64(0)
    for word in range(len(box)):
        bits = box[word] & free[word]
        bits -= (bits >> np.uint64(1)) & ONES
        bits = (bits & TWOS) + ((bits >> np.uint64(2)) & TWOS)
        bits = (bits + (bits >> np.uint64(4))) & FOURS
        total += (bits * BYTES) >> np.uint64(56)
    return np.int64(total)


@njit(nogil=True, cache=True)
@no_type_check
def distances_from(start: int, indptr: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Return the number of links from `start` to every node; -1 where there is no way."""
    n_nodes = len(indptr) - 1
    distance = np.full(n_nodes, -1, dtype=np.int64)
    queue = np.empty(n_nodes, dtype=np.int64)
    distance[start], queue[0] = 0, start
    first, stop = 0, 1
    while first < stop:
        node = queue[first]
        first += 1
        for j in range(indptr[node], indptr[node + 1]):
            other = indices[j]
            if distance[other] < 0:
                distance[other] = distance[node] + 1
                queue[stop] = other
                stop += 1
    return distance


@njit(nogil=True, cache=True)
@no_type_check
def rewired(
    edges: np.ndarray, indptr: np.ndarray, indices: np.ndarray, first: np.ndarray, second: np.ndarray, flip: np.ndarray
) -> np.ndarray:
    """Return the neighbours after swapping ends of random pairs of links.

    No degree changes, so the places of a node's neighbours stay; no loop or double link arises.
    """
    links, neighbours = edges.copy(), indices.copy()
    for i in range(len(first)):
        a, b = links[first[i]]
        c, d = links[second[i]]
        if flip[i]:
            c, d = d, c
        if a in (c, d) or b in (c, d):
            continue
        if _place(a, d, indptr, neighbours) >= 0 or _place(c, b, indptr, neighbours) >= 0:
            continue
        at_a, at_b = _place(a, b, indptr, neighbours), _place(b, a, indptr, neighbours)
        at_c, at_d = _place(c, d, indptr, neighbours), _place(d, c, indptr, neighbours)
        neighbours[at_a], neighbours[at_b], neighbours[at_c], neighbours[at_d] = d, c, b, a
        links[first[i], 1] = d
        links[second[i], 0], links[second[i], 1] = c, b
    return neighbours


@njit(nogil=True, cache=True)
@no_type_check
def _place(node: int, other: int, indptr: np.ndarray, neighbours: np.ndarray) -> int:
    """Return where `other` stands among the neighbours of `node`; -1 if it does not."""
    for j in range(indptr[node], indptr[node + 1]):
        if neighbours[j] == other:
            return j
    return -1
