"""What every component makes of every later one, as inner products: the numbers a causal graph is estimated from.

    D_j  = j' - j                                          own difference of j between the runs
    d_ij = j(i', every other component as it was) - j      what i alone makes of it, directly
    R_ij = D_j - sum over k other than i of d_kj           what the other senders leave of it

Cost: 2 S forwards of all pairs for S components, S more for the control, packed.
Chunked over: prompt pairs, so that 3 S sets of activations fit in memory.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mechint_core.patching import (
    OUTPUT,
    Activations,
    Component,
    Components,
    PairRuns,
    PromptPairs,
    Slice,
    other_pairs,
    watched_runs,
    where,
)

Vectors = Float[Tensor, "sample column"]


@dataclass(frozen=True, slots=True)
class NodePair:
    """A possible edge."""

    sender: Component
    receiver: Component


@dataclass(frozen=True, slots=True)
class EdgeMoments:
    """Inner products of every edge and pair, in the words of the head of this file."""

    direct: Float[np.ndarray, "edge sample"]
    """d_ij . D_j"""
    control: Float[np.ndarray, "edge sample"]
    """The same with another pair's sender; 0 without."""
    rest: Float[np.ndarray, "edge sample"]
    """d_ij . R_ij"""
    rest_control: Float[np.ndarray, "edge sample"]
    total: Float[np.ndarray, "edge sample"]
    """d_ij . D_j with nothing held."""
    difference: Float[np.ndarray, "edge sample"]
    """D_j . D_j"""
    moved: Float[np.ndarray, "edge sample"]
    """d_ij . d_ij"""
    size: Float[np.ndarray, "edge sample"]
    """j . j"""
    along: Float[np.ndarray, "edge sample"]
    """d_ij . D_i, where both are single numbers; 0 elsewhere, as the next."""
    cause: Float[np.ndarray, "edge sample"]
    """D_i . D_i"""


@dataclass(frozen=True, slots=True)
class _Seen:
    """What all nodes gave in some pairs."""

    base: Activations
    own: Activations
    direct: Mapping[str, Activations]
    """By sender, what later nodes compute when it alone is changed."""
    total: Mapping[str, Activations]
    """The same with nothing held."""
    control: Mapping[str, Activations]
    """As `direct`, with another pair's sender; empty without."""

    def difference(self, node: Component) -> Vectors:
        """Return D_j."""
        return _read(node, self.own) - _read(node, self.base)

    def change(self, edge: NodePair, given: Mapping[str, Activations]) -> Vectors:
        """Return d_ij, or what takes its place in `given`."""
        return _read(edge.receiver, given[edge.sender.name]) - _read(edge.receiver, self.base)


def edges_of(nodes: Components, *, output: bool) -> tuple[NodePair, ...]:
    """Return every ordered pair of nodes, by sender, in the order they run; the answer runs last."""
    senders = nodes.as_they_run
    receivers = (*senders, *([Component(OUTPUT, OUTPUT, Slice(), 1 + senders[-1].step)] if output else []))
    return tuple(NodePair(one, other) for one in senders for other in receivers if one.before(other))


def edge_moments(
    runs: PairRuns, pairs: PromptPairs, nodes: Components, edges: Sequence[NodePair], *, control: bool
) -> EdgeMoments:
    """Change every sender in all pairs, block by block."""
    config = runs.config
    found = EdgeMoments(*np.zeros((len(fields(EdgeMoments)), len(edges), len(pairs))))
    others = other_pairs(len(pairs), config.seed)
    caches = 3 + (2 + control) * len(nodes.parts)
    size = max(1, min(config.batch_rows, config.cache_bytes // max(1, caches * runs.bytes_per_row)))
    for rows in np.array_split(np.arange(len(pairs)), -(-len(pairs) // size)):
        base, own = _activations(runs, pairs.corrupted[rows]), _activations(runs, pairs.clean[rows])
        changed = partial(watched_runs, runs, runs.batch(pairs.corrupted[rows]), nodes.parts, base)
        other = _activations(runs, pairs.clean[others[rows]]) if control else {}
        seen = _Seen(
            base,
            own,
            direct=changed(own, held=True),
            total=changed(own, held=False),
            control=changed(other, held=True) if control else {},
        )
        _add(found, rows, edges, seen)
    return found


def _activations(runs: PairRuns, inputs: np.ndarray) -> Activations:
    values, seen = runs.run(inputs, runs.sites)
    return {**seen, OUTPUT: values}


def _add(found: EdgeMoments, rows: np.ndarray, edges: Sequence[NodePair], seen: _Seen) -> None:
    """Add the inner products of some pairs."""
    explained: dict[str, Vectors] = {}
    for edge in edges:
        change = seen.change(edge, seen.direct)
        explained[edge.receiver.name] = explained.get(edge.receiver.name, torch.zeros_like(change)) + change
    for at, edge in enumerate(edges):
        base, difference = _read(edge.receiver, seen.base), seen.difference(edge.receiver)
        change, cause = seen.change(edge, seen.direct), seen.difference(edge.sender)
        rest = difference - (explained[edge.receiver.name] - change)
        found.direct[at, rows] = _inner(change, difference)
        found.rest[at, rows] = _inner(change, rest)
        found.total[at, rows] = _inner(seen.change(edge, seen.total), difference)
        found.difference[at, rows] = _inner(difference, difference)
        found.moved[at, rows] = _inner(change, change)
        found.size[at, rows] = _inner(base, base)
        if cause.shape[1] == change.shape[1] == 1:
            found.along[at, rows] = _inner(change, cause)
            found.cause[at, rows] = _inner(cause, cause)
        if seen.control:
            other = seen.change(edge, seen.control)
            found.control[at, rows] = _inner(other, difference)
            found.rest_control[at, rows] = _inner(other, rest)


def _read(node: Component, seen: Activations) -> Vectors:
    activation = seen[node.site]
    return activation[where(activation, node.part.position, node.part.units)].flatten(1).double()


def _inner(one: Vectors, other: Vectors) -> Float[np.ndarray, "sample"]:
    return (one * other).sum(dim=1).cpu().numpy()
