"""The circuits that are run to judge one: it and what is left without it, random ones, broken ones, growing ones.

    ends                 M, then the empty model
    circuit              C                               without circuit      M - C
    random               R, as many edges as C           without random       M - R
    circuit knocked out  C - K, K a random part of C     model knocked out    M - K
    left out             C - {e} for each edge e
    growing              the strongest edges, more and more; random growing: random circuits of the same sizes

Source: [@wang2023], [@mueller2025], [@shi2024].
Cost: none but the drawing of random circuits.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from mechint_core.circuits._random_circuits import RandomCircuits, random_circuits
from mechint_core.circuits.circuit import Circuit
from mechint_core.patching import Edge
from mechint_core.random import generator

Masks = Bool[np.ndarray, "_ edge"]


@dataclass(frozen=True, slots=True)
class TrialCircuits:
    """All circuits that are run, by what they are run for. Make it with `of`."""

    edges: tuple[Edge, ...]
    """Of the model."""
    circuit: Bool[np.ndarray, "edge"]
    left_out: Int[np.ndarray, "row"]
    """Edges of the circuit that are left out one by one."""
    sizes: Int[np.ndarray, "size"]
    """Of the circuits that grow."""
    masks: Mapping[str, Masks]

    @classmethod
    def of(
        cls,
        circuit: Circuit,
        edges: tuple[Edge, ...],
        *,
        sizes: Int[np.ndarray, "size"],
        random: RandomCircuits,
        n_random: int,
        n_random_growing: int,
        n_knockouts: int,
        n_left_out: int,
        seed: int,
    ) -> "TrialCircuits":
        """Draw everything that is to be run."""
        kept, strength = circuit.mask(edges), _strengths(circuit, edges)
        n_kept, order = int(kept.sum()), _order(strength, kept)
        weakest_first = order[kept[order]][::-1]
        left_out = np.sort(weakest_first[:n_left_out])
        knocked = _parts(kept, n_knockouts, generator(seed, "circuit_faithfulness", "knock-outs"))

        def drawn(n_edges: int, n_circuits: int, *stream: str | int) -> Masks:
            rng = generator(seed, "circuit_faithfulness", *stream)
            return random_circuits(edges, n_edges, n_circuits=n_circuits, kind=random, rng=rng)

        of_size = drawn(n_kept, n_random, "random circuits")
        growing = [drawn(int(size), n_random_growing, "growing", int(size)) for size in sizes]
        masks = {
            "ends": np.repeat([[True], [False]], len(edges), axis=1),
            "circuit": kept[None],
            "without circuit": ~kept[None],
            "random": of_size,
            "without random": ~of_size,
            "circuit knocked out": kept & ~knocked,
            "model knocked out": ~knocked,
            "left out": _without_each(kept, left_out),
            "growing": _first(order, sizes),
            "random growing": np.concatenate([np.zeros((0, len(edges)), dtype=bool), *growing]),
        }
        return cls(edges, kept, left_out, sizes, masks)

    @property
    def kept(self) -> Masks:
        """The edges that each run keeps."""
        return np.concatenate(list(self.masks.values()))

    def sorted(self, scores: Float[np.ndarray, "experiment sample"]) -> dict[str, Float[np.ndarray, "_ sample"]]:
        """Return the scores by what was run."""
        ends = np.cumsum([len(each) for each in self.masks.values()])[:-1]
        return dict(zip(self.masks, np.split(scores, ends), strict=True))


def _strengths(circuit: Circuit, edges: tuple[Edge, ...]) -> Float[np.ndarray, "edge"]:
    """Return the size of each edge's score, -1 where it has none."""
    known = dict(zip(circuit.edges, np.nan_to_num(np.abs(circuit.score), nan=-1.0), strict=True))
    return np.array([known.get(edge, -1.0) for edge in edges])


def _order(strength: Float[np.ndarray, "edge"], kept: Bool[np.ndarray, "edge"]) -> Int[np.ndarray, "edge"]:
    """Return the edges, the strongest first; of equals, those of the circuit first."""
    return np.lexsort((~kept, -strength))


def _parts(kept: Bool[np.ndarray, "edge"], n_parts: int, rng: np.random.Generator) -> Masks:
    """Draw parts of the circuit: first how many edges, then which."""
    parts = np.zeros((n_parts, len(kept)), dtype=bool)
    here = np.flatnonzero(kept)
    for part in parts:
        size = int(rng.integers(1, len(here) + 1)) if len(here) else 0
        part[rng.choice(here, size=size, replace=False) if size else []] = True
    return parts


def _without_each(kept: Bool[np.ndarray, "edge"], left_out: Int[np.ndarray, "row"]) -> Masks:
    masks = np.tile(kept, (len(left_out), 1))
    masks[np.arange(len(left_out)), left_out] = False
    return masks


def _first(order: Int[np.ndarray, "edge"], sizes: Int[np.ndarray, "size"]) -> Masks:
    """Keep the first edges of an order: one circuit per size."""
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return rank < sizes[:, None]
