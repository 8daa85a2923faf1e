"""Circuits drawn at random, as large as a given one: what its faithfulness is compared with.

    subset      any edges, each set of them as likely
    connected   whole ways from the input to the output, until there are as many edges; no edge of it leads nowhere

A subset of few edges of many seldom holds one whole way, so almost any circuit beats it; the connected ones ask more.

Source: [@shi2024].
Cost: about as many steps as there are edges in the circuit, for each draw.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

import numpy as np
from jaxtyping import Bool

from mechint_core.patching import Edge, node_of

RandomCircuits = Literal["connected", "subset"]
RANDOM_CIRCUITS: Final = get_args(RandomCircuits)
_TRIES = 32
"""Ways drawn in a row that are too long, until single edges fill what is left."""


@dataclass(frozen=True, slots=True)
class Wiring:
    """Which edges enter and leave each node. Make it with `of`."""

    sender: tuple[str, ...]
    receiver: tuple[str, ...]
    """Nodes, without which of their inputs an edge enters."""
    leaving: dict[str, list[int]]
    entering: dict[str, list[int]]

    @classmethod
    def of(cls, edges: Sequence[Edge]) -> "Wiring":
        """Read the wiring from edges (sender, receiver)."""
        sender = tuple(one for one, _ in edges)
        receiver = tuple(node_of(other) for _, other in edges)
        leaving: dict[str, list[int]] = {}
        entering: dict[str, list[int]] = {}
        for index, (one, other) in enumerate(zip(sender, receiver, strict=True)):
            leaving.setdefault(one, []).append(index)
            entering.setdefault(other, []).append(index)
        return cls(sender, receiver, leaving, entering)

    def way_through(self, edge: int, rng: np.random.Generator) -> set[int]:
        """Draw a way that holds `edge`: on from its receiver to an end, and back from its sender to a beginning."""
        way, node = {edge}, self.receiver[edge]
        while node in self.leaving:
            step = self.leaving[node][rng.integers(len(self.leaving[node]))]
            way.add(step)
            node = self.receiver[step]
        node = self.sender[edge]
        while node in self.entering:
            step = self.entering[node][rng.integers(len(self.entering[node]))]
            way.add(step)
            node = self.sender[step]
        return way


def random_circuits(
    edges: Sequence[Edge], n_kept: int, *, n_circuits: int, kind: RandomCircuits, rng: np.random.Generator
) -> Bool[np.ndarray, "draw edge"]:
    """Draw circuits of `n_kept` edges each."""
    kept = np.zeros((n_circuits, len(edges)), dtype=bool)
    wiring = Wiring.of(edges)
    for row in kept:
        row[_subset(len(edges), n_kept, rng) if kind == "subset" else _connected(wiring, n_kept, rng)] = True
    return kept


def _subset(n_edges: int, n_kept: int, rng: np.random.Generator) -> list[int]:
    return rng.choice(n_edges, size=n_kept, replace=False).tolist()


def _connected(wiring: Wiring, n_kept: int, rng: np.random.Generator) -> list[int]:
    """Join ways through random edges; then single edges between nodes that are in; then, if none is left, any."""
    kept: set[int] = set()
    tries = 0
    while len(kept) < n_kept and tries < _TRIES:
        more = kept | wiring.way_through(int(rng.integers(len(wiring.sender))), rng)
        fits = len(kept) < len(more) <= n_kept
        kept, tries = (more, 0) if fits else (kept, tries + 1)
    nodes = {wiring.sender[each] for each in kept} | {wiring.receiver[each] for each in kept}
    others = [int(each) for each in rng.permutation(len(wiring.sender)) if int(each) not in kept]
    others.sort(key=lambda each: not {wiring.sender[each], wiring.receiver[each]} <= nodes)  # stable: random within
    return [*kept, *others[: n_kept - len(kept)]]
