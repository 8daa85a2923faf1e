"""Kendall's tau-a of values that may be tied and may count several times.

    tau-a = sum_{a<b} sign(d_a - d_b) sign(e_a - e_b) / (N (N - 1) / 2)

The values are taken in the order of d; a tree of partial sums over the ranks of e says how much lies below and how much
above each of them. Runs of equal d ask before they enter, so ties count nothing, and a value that counts w times is w
values that are tied.

Source: [@kendall1990] (the coefficient), [@knight1966] (ordering by one variable); the tree is Fenwick's.
Cost: N log N.
Chunked over: nothing.
"""

from typing import no_type_check

import numpy as np
from jaxtyping import Float, Int
from numba import njit


def dense_ranks(values: Float[np.ndarray, "pair"]) -> Int[np.ndarray, "pair"]:
    """Return the number of different values below each value."""
    return np.unique(values, return_inverse=True)[1].astype(np.int64)


def tau_a(first: Int[np.ndarray, "pair"], second: Int[np.ndarray, "pair"]) -> float:
    """Return the coefficient of two sets of dense ranks."""
    n = len(first)
    order = np.argsort(first, kind="stable")
    concordant = _concordance(first[order], second[order], np.ones(n), _levels(second))
    return float(concordant.sum()) / (n * (n - 1) / 2)


def weighted_tau_a(
    first: Int[np.ndarray, "pair"],
    second: Int[np.ndarray, "pair"],
    weights: Float[np.ndarray, "pair"],
    order: Int[np.ndarray, "pair"],
) -> float:
    """Return the coefficient of the sample in which value i occurs `weights[i]` times; `order` sorts `first`."""
    mass = weights[order]
    concordant = _concordance(first[order], second[order], mass, _levels(second))
    total = float(mass.sum())
    return float(concordant @ mass) / (total * (total - 1) / 2) if total > 1 else np.nan


def tau_a_of_sample(first: Int[np.ndarray, "pair"], second: Int[np.ndarray, "pair"]) -> tuple[float, float]:
    """Return the coefficient of a random sample, and its standard error (the spread of its first projection)."""
    n = len(first)
    forward, backward = (np.argsort(each, kind="stable") for each in (first, -first))
    each = np.zeros(n)
    each[forward] = _concordance(first[forward], second[forward], np.ones(n), _levels(second))
    flipped = second.max() - second
    each[backward] += _concordance(-first[backward], flipped[backward], np.ones(n), _levels(second))
    each /= n - 1
    return float(each.mean()), float(2 * each.std(ddof=1) / np.sqrt(n))


def _levels(ranks: np.ndarray) -> int:
    return int(ranks.max()) + 1


@no_type_check  # numba compiles this function: nothing may wrap it
@njit(cache=True, nogil=True)
def _concordance(first, second, mass, n_levels):
    """Return, of values sorted by `first`, the mass before each that `second` orders alike less that it does not."""
    tree = np.zeros(n_levels + 1)
    answer = np.zeros(len(first))
    before = 0.0
    start = 0
    while start < len(first):
        stop = start
        while stop < len(first) and first[stop] == first[start]:
            below = 0.0
            node = second[stop]
            while node > 0:
                below += tree[node]
                node -= node & -node
            up_to = 0.0
            node = second[stop] + 1
            while node > 0:
                up_to += tree[node]
                node -= node & -node
            answer[stop] = below - (before - up_to)
            stop += 1
        for entering in range(start, stop):
            node = second[entering] + 1
            while node <= n_levels:
                tree[node] += mass[entering]
                node += node & -node
            before += mass[entering]
        start = stop
    return answer
