"""What one run wrote to the residual stream, and the rest of what was read from it.

    rest_r = x_r - sum over s before r of w_s          the write of the sender `input`

The writes of heads are kept side by side, as the output projection gets them, and multiplied out where they are
needed: head h writes z_h W_h; the bias belongs to the rest.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mechint_core.models import activation_of, device_of, module_at
from mechint_core.models.running import precision_of
from mechint_core.patching.residual_graph import ResidualGraph, Writer

Activation = Tensor
"""Samples first; how many of them may change from one end of a hook to the other."""


@dataclass(frozen=True, slots=True, eq=False)
class StreamRun:
    """Of some rows, samples first."""

    writes: tuple[Activation, ...]
    """Of each writer: what it adds to the stream; or its heads, side by side."""
    rests: tuple[Activation, ...]
    """Of each reader."""

    def each(self, change: Callable[[Activation], Activation]) -> "StreamRun":
        """Return every tensor, changed."""
        return StreamRun(tuple(map(change, self.writes)), tuple(map(change, self.rests)))

    def at(self, rows: Tensor) -> "StreamRun":
        """Return some rows."""
        return self.each(lambda kept: kept[rows])

    def plus(self, other: "StreamRun") -> "StreamRun":
        """Return the sum of two runs."""
        return StreamRun(
            tuple(one + two for one, two in zip(self.writes, other.writes, strict=True)),
            tuple(one + two for one, two in zip(self.rests, other.rests, strict=True)),
        )

    @property
    def bytes_per_row(self) -> int:
        """Memory that one row takes."""
        return sum(each[0].numel() * each.element_size() for each in (*self.writes, *self.rests))


@dataclass(frozen=True, slots=True, eq=False)
class Stream:
    """The writers of a model, ready to be asked what they write."""

    graph: ResidualGraph
    matrices: tuple[Tensor | None, ...]
    """How the heads of each writer are projected, (head, column, unit)."""

    @classmethod
    def of(cls, model: nn.Module, graph: ResidualGraph) -> "Stream":
        """Read the output projections of a model, by what they give for unit vectors: they need not be `nn.Linear`."""
        return cls(graph, tuple(_projection(model, each) for each in graph.writers))

    @property
    def sites(self) -> tuple[str, ...]:
        """What must be captured of a run."""
        reads = [each.site for each in self.graph.readers]
        return tuple(dict.fromkeys([*(site_of(each) for each in self.graph.writers), *reads]))

    def run(self, seen: Mapping[str, Activation]) -> StreamRun:
        """Split what was captured, samples first, into writes and rests."""
        writes = tuple(seen[site_of(each)] for each in self.graph.writers)
        whole = [
            write if matrix is None else write @ matrix.flatten(0, 1)
            for write, matrix in zip(writes, self.matrices, strict=True)
        ]
        rests = (seen[reader.site] - sum(whole[source] for source in reader.sources) for reader in self.graph.readers)
        return StreamRun(writes, tuple(rests))

    def by_sender(
        self, writer: int, write: Activation, senders: Sequence[int] | None = None
    ) -> Float[Tensor, "sample sender ..."]:
        """Return what each sender of a writer writes; of those chosen, if not of all."""
        matrix = self.matrices[writer]
        if matrix is None:
            return write[:, None]
        heads = write.unflatten(-1, matrix.shape[:2]).movedim(-2, 1)
        if senders is not None:
            heads, matrix = heads[:, list(senders)], matrix[list(senders)]
        n_rows, n_heads, *places, width = heads.shape
        return (heads.reshape(n_rows, n_heads, -1, width) @ matrix).reshape(n_rows, n_heads, *places, -1)


def site_of(writer: Writer) -> str:
    """Return where what a writer writes is seen."""
    return writer.site if writer.heads is None else writer.heads.site


def _projection(model: nn.Module, writer: Writer) -> Float[Tensor, "head column unit"] | None:
    if writer.heads is None:
        return None
    project = module_at(model, writer.heads.projection)
    units = torch.eye(writer.n_units, device=device_of(model), dtype=precision_of(model))
    gave = activation_of(project(units)) - activation_of(project(torch.zeros_like(units)))
    return gave.unflatten(0, (writer.heads.n_heads, -1))
