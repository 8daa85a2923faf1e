"""One forward in which some edges are cut: what a receiver reads is mended by what the cut edges carry instead.

    x_r  <-  x_r + sum over cut s of (donor_s - w_s)          w_s as written in this same forward

All rows go through one forward, each with its own edges cut. Where heads of one attention need different inputs, the
rows are multiplied at its entry, the heads brought together in the first copy of each row before its output
projection, and the other copies dropped at its exit (see `edge_copies`); nothing else in the model sees more rows.
Hooks are hung for the forward and always removed.
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mechint_core.models import activation_of, module_at, samples_first, visited
from mechint_core.patching.edge_copies import Copies
from mechint_core.patching.residual_graph import PORTS, Reader, port_modules
from mechint_core.patching.stream_run import Activation, Stream, StreamRun, site_of


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EdgePass:
    """The rows of one forward, and which edges are cut in each. Good for one forward."""

    model: nn.Module
    stream: Stream
    sample_axis: int
    copies: Sequence[Copies | None]
    """Of each reader, row by row."""
    donor: StreamRun
    """What cut edges carry."""
    rests: Sequence[Activation]
    """Of each reader, in the run that is changed."""
    _read: dict[str, Activation] = field(default_factory=dict[str, Tensor])
    """What was read, by site, in the model's layout."""
    _changes: dict[int, Tensor] = field(default_factory=dict[int, Tensor])
    """Of each writer, (row, sender, ...): what the senders' cut edges carry instead, less what these have written."""

    @contextmanager
    def hooked(self) -> Generator[None]:
        """Cut the edges in the forward that is run in this block."""
        graph, cut = self.stream.graph, self._cut_senders()
        with ExitStack() as hooks:
            for index, writer in enumerate(graph.writers):
                copies = self.copies[index]
                if cut[index] or (copies is not None and copies.n_rows > 1):
                    visit = partial(self._leave, index, copies, cut[index])
                    hooks.enter_context(visited(self.model, site_of(writer), self._first(visit)))
            for index, (reader, copies) in enumerate(zip(graph.readers, self.copies, strict=True)):
                if copies is None:
                    continue
                if reader.norm is not None:
                    hooks.enter_context(visited(self.model, reader.site, partial(self._keep, reader.site)))
                enter = partial(self._enter, index, reader, copies, cut)
                hooks.enter_context(entered(self.model, reader.module, enter))
                if copies.n_rows > 1:
                    first = self._first(partial(_every, copies.n_rows))
                    hooks.enter_context(visited(self.model, reader.module, first))
                for module, ports in self._ports(index, copies).items():
                    visit = self._first(partial(_brought_together, copies, ports))
                    hooks.enter_context(visited(self.model, module, visit))
            yield

    def _cut_senders(self) -> list[list[int]]:
        """Return which senders of each writer have an edge that is cut in some row."""
        graph = self.stream.graph
        found: list[set[int]] = [set() for _ in graph.writers]
        for reader, copies in zip(graph.readers, self.copies, strict=True):
            if copies is not None:
                somewhere = copies.cut.ne(0).flatten(0, 1).any(dim=0).tolist()
                for source, columns in graph.columns_of(reader):
                    found[source] |= {i for i, cut in enumerate(somewhere[columns]) if cut}
        return [sorted(each) for each in found]

    def _keep(self, site: str, activation: Tensor) -> None:
        self._read[site] = activation

    def _enter(self, index: int, reader: Reader, copies: Copies, cut: list[list[int]], given: Tensor) -> Tensor:
        """Return what the reader's module is given: what it would read if the cut edges carried the donor's writes."""
        x = samples_first(given if reader.norm is None else self._read[reader.site], self.sample_axis)
        shares = copies.cut.to(x)
        n_inputs = len(reader.inputs)
        per_position = shares[..., :n_inputs].reshape(*shares.shape[:2], n_inputs, *[1] * (x.ndim - 2))
        read = x[:, None] + per_position * (self.donor.rests[index] - self.rests[index])[:, None]
        for source, columns in self.stream.graph.columns_of(reader):
            if cut[source]:
                share, change = shares[..., columns][..., cut[source]], self._changes[source].flatten(2)
                read = read + torch.bmm(share, change).reshape(read.shape)
        more = copies.n_rows - read.shape[1]  # rows in which queries, keys and values are only brought together
        if more:
            read = torch.cat([read, read[:, :1].expand(-1, more, *x.shape[1:])], dim=1)
        return normed(self.model, reader.norm, read.flatten(0, 1).movedim(0, self.sample_axis))

    def _leave(self, index: int, copies: Copies | None, cut: list[int], write: Activation) -> Activation:
        """Bring heads together in the first copy of each row; note what cut edges carry instead of what is written."""
        if copies is not None and copies.n_rows > 1:
            write = write.clone()
            write[:: copies.n_rows] = _each_from_its_own(copies, write)
        if cut:
            own = write if copies is None else write[:: copies.n_rows]
            self._changes[index] = self.stream.by_sender(index, self.donor.writes[index] - own, cut)
        return write

    def _ports(self, index: int, copies: Copies) -> dict[str, list[int]]:
        """Return the modules whose rows are brought together, and which of query, key and value each gives."""
        if copies.ports is None or copies.n_rows == 1:
            return {}
        heads = self.stream.graph.writers[index].heads
        modules = (port_modules(heads) if heads is not None else None) or ()
        every = list(range(len(PORTS)))
        return {module: every if len(modules) == 1 else [port] for port, module in enumerate(modules)}

    def _first(self, change: Callable[[Activation], Activation]) -> Callable[[Tensor], Tensor]:
        """Let `change` see samples first."""
        axis = self.sample_axis
        return lambda given: change(samples_first(given, axis)).movedim(0, axis if given.ndim > 1 else 0)


@contextmanager
def entered(model: nn.Module, module: str, change: Callable[[Tensor], Tensor]) -> Generator[None]:
    """Give a module something else than it is given, wherever it is given it; the model itself: its output.

    PyTorch's own attention is given the same tensor three times.
    """
    if not module:
        with visited(model, "", change):
            yield
        return

    handle = module_at(model, module).register_forward_pre_hook(partial(_swapped, change), with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def normed(model: nn.Module, norm: str | None, read: Tensor) -> Tensor:
    """Return what a norm gives, without a visit to its hooks."""
    return read if norm is None else activation_of(module_at(model, norm).forward(read))


def _swapped(
    change: Callable[[Tensor], Tensor], _: nn.Module, given: tuple[Any, ...], keywords: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    old = activation_of((given, keywords))
    new = change(old)
    swapped = {name: new if each is old else each for name, each in keywords.items()}
    return tuple(new if each is old else each for each in given), swapped


def _each_from_its_own(copies: Copies, write: Activation) -> Activation:
    """Take each head from its row."""
    n_rows, n_heads = copies.heads.shape
    heads = write.unflatten(-1, (n_heads, -1)).movedim(-2, 1)
    rows = copies.n_rows * torch.arange(n_rows, device=write.device)[:, None] + copies.heads
    return heads[rows, torch.arange(n_heads, device=write.device)].movedim(1, -2).flatten(-2)


def _every(n_copies: int, given: Activation) -> Activation:
    return given[::n_copies]


def _brought_together(copies: Copies, ports: Sequence[int], given: Activation) -> Activation:
    """Return rows of which each has the queries, keys and values that one head is to see."""
    if copies.ports is None:
        return given
    parts = [
        _taken(part, copies.ports[:, port], copies.n_rows)
        for port, part in zip(ports, given.chunk(len(ports), dim=-1), strict=True)
    ]
    return torch.cat(parts, dim=-1)


def _taken(given: Activation, chosen: Tensor, n_copies: int) -> Activation:
    """Take for each row the chosen ones of its copies; the first for those that no head is read from."""
    n_rows = len(chosen)
    padded = torch.nn.functional.pad(chosen, (0, n_copies - chosen.shape[1]))
    rows = n_copies * torch.arange(n_rows, device=given.device)[:, None] + padded
    return given[rows.flatten()]
