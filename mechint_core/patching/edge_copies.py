"""How many copies of what a reader reads are needed, so that each of its receivers gets its own edges.

The heads of one attention share one input. Where an experiment cuts other edges into one head than into another, the
attention is given several rows for one, a row for every distinct set of cut edges, and each head is read from its own:

    read    one row for each distinct set of cut edges among the receivers          (experiment, row, sender)
    query, key, value    brought together: row c gets each from the row where its edges are cut as head c's are
    heads   head h is taken from its row, and one row is left

An experiment that cuts no edge here, or the same for all heads, needs no copy.

Cost: one sort of experiments x receivers.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechint_core.patching.residual_graph import PORTS, Reader, ResidualGraph

Cut = Float[np.ndarray, "experiment edge"]
"""1 where an edge is cut, 0 where it is kept; a share of what is cut between."""


@dataclass(frozen=True, slots=True, eq=False)
class Copies:
    """The rows that a reader needs for each experiment."""

    cut: Float[Tensor, "experiment row sender"]
    """Of the edges from each sender, in the order of `senders_to`; rows that are not needed cut nothing."""
    ports: Int[Tensor, "experiment port copy"] | None
    """The row that queries, keys and values are taken from; None if they are not told apart."""
    heads: Int[Tensor, "experiment head"]
    """The row that each head is taken from."""

    @property
    def n_rows(self) -> int:
        """Rows that one row becomes."""
        return max(self.cut.shape[1], 0 if self.ports is None else self.ports.shape[2])

    def of(self, experiments: Int[Tensor, "sample"]) -> "Copies":
        """Return the copies of some experiments, as many times as they are named, without rows none of them needs."""
        heads = self.heads[experiments]
        n_rows = int(heads.max()) + 1
        if self.ports is None:
            return Copies(self.cut[experiments, :n_rows], None, heads)
        ports = self.ports[experiments][..., :n_rows]
        return Copies(self.cut[experiments, : int(ports.max()) + 1], ports, heads)


@dataclass(frozen=True, slots=True)
class EdgeTable:
    """Where the edges of each reader stand among all edges of a graph."""

    graph: ResidualGraph
    places: tuple[np.ndarray, ...]
    """Of each reader, integers (receiver, sender)."""

    @classmethod
    def of(cls, graph: ResidualGraph) -> "EdgeTable":
        """Look the edges of a graph up."""
        places: list[np.ndarray] = []
        first = 0
        for reader in graph.readers:  # edges are ordered by reader, receiver, sender
            shape = (len(reader.receivers), len(graph.senders_to(reader)))
            places.append(first + np.arange(shape[0] * shape[1]).reshape(shape))
            first += shape[0] * shape[1]
        return cls(graph, tuple(places))

    def copies(self, cut: Cut, device: torch.device) -> list[Copies | None]:
        """Return the copies that each reader needs; None for a reader into which no experiment cuts an edge."""
        return [
            _copies_of(cut[:, place], reader, device) if cut[:, place].any() else None
            for reader, place in zip(self.graph.readers, self.places, strict=True)
        ]


def _copies_of(cut: Float[np.ndarray, "experiment receiver sender"], reader: Reader, device: torch.device) -> Copies:
    row, distinct = _distinct(cut)
    ports = None
    if reader.receivers[0].endswith(f":{PORTS[0]}"):
        row, triples = _distinct(row.reshape(len(row), -1, len(PORTS)).astype(np.float64))
        ports = torch.from_numpy(triples.astype(np.int64).swapaxes(1, 2).copy()).to(device)
    return Copies(torch.from_numpy(distinct).to(device), ports, torch.from_numpy(row).to(device))


def _distinct(
    vectors: Float[np.ndarray, "experiment receiver column"],
) -> tuple[Int[np.ndarray, "experiment receiver"], Float[np.ndarray, "experiment row column"]]:
    """Return the number of every vector among the distinct ones of its experiment, and these."""
    n_experiments, n_receivers, _ = vectors.shape
    experiment = np.repeat(np.arange(n_experiments), n_receivers)
    found, which = np.unique(
        np.column_stack([experiment, vectors.reshape(len(experiment), -1)]), axis=0, return_inverse=True
    )
    begins = np.searchsorted(found[:, 0], np.arange(n_experiments))  # found is sorted by experiment
    number = np.arange(len(found)) - begins[found[:, 0].astype(int)]
    distinct = np.zeros((n_experiments, number.max() + 1, found.shape[1] - 1))
    distinct[found[:, 0].astype(int), number] = found[:, 1:]
    return number[which.reshape(n_experiments, n_receivers)], distinct
