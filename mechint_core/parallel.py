"""Parallel work, one driver: threads, local processes or a remote Dask cluster. The only module that knows Dask.

Two shapes of work:

    map_parallel(function, items)            independent pieces: many clouds, many units, many sites x checkpoints
    reduce_rows(reduction, x, y)             one pass over rows that need not fit in memory

A reduction is a value, not a subclass: what to do with a block, how to join two partial states, what to make of
the last one. Its law, tested for every one of them: *chunked = whole, for every chunking and worker count*.
Rows are folded in a fixed number of lanes, whatever the number of workers, so the same input gives the same bits
on every machine; at most `LANES` partial states are alive at once.

Where the work runs is said once, by whoever starts it, and techniques do not know:

    with compute(Backend(processes=2)):
        ...

Who starts many such blocks wraps them in `local_processes`, so that the processes start once.
"""

import os
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from threading import Lock
from typing import Any, Generic, Protocol, TypeVar, cast, runtime_checkable

import numpy as np
from dask.base import compute as dask_compute
from dask.delayed import delayed

from mechint_core.errors import ConfigurationError, ShapeError

State = TypeVar("State")
Answer = TypeVar("Answer")
Item = TypeVar("Item")
Out = TypeVar("Out")

LANES = 4
"""Partial states kept at once by `reduce_rows`; also its largest parallelism."""
BLOCK_BYTES = 8 * 2**20
"""Memory one block of rows may take, unless the caller says how many rows."""


@runtime_checkable
class Rows(Protocol):
    """Anything with a shape and a dtype whose rows can be read by slice: a numpy array or a stored array."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Length of each axis; rows first."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """Kind of number."""
        ...

    def __getitem__(self, rows: slice, /) -> np.ndarray:
        """Read a run of rows."""
        ...


@dataclass(frozen=True, slots=True)
class Reduction(Generic[State, Answer]):
    """One pass over rows: `chunk` makes a state of a block, `combine` joins two, `finalize` answers."""

    chunk: Callable[..., State]
    """(block of the first input, block of the second, ...) -> state. Sums in float64."""
    combine: Callable[[State, State], State]
    finalize: Callable[[State], Answer]


@dataclass(frozen=True, slots=True)
class Backend:
    """Where parallel work runs. The default is one thread per core in this process."""

    threads: int = 0
    """Worker threads; 0 means one per core. numpy, numba, torch and zarr release the interpreter lock."""
    processes: int = 0
    """If above 0, that many local processes instead: for work that holds the lock (Vietoris-Rips complexes)."""
    address: str = ""
    """If given, a Dask scheduler (`tcp://host:port`) instead."""

    def __post_init__(self) -> None:
        if self.threads < 0 or self.processes < 0:
            raise ConfigurationError(f"workers must be at least 0. Got {self}.")
        if self.address and self.processes:
            raise ConfigurationError("a backend is an address or local processes, not both. Leave one out.")


_BACKEND: ContextVar[Backend] = ContextVar("mechint_backend", default=Backend())  # noqa: B039 - frozen
_CLIENT: ContextVar[Any] = ContextVar("mechint_dask_client", default=None)
_KEPT: dict[Backend, "_Kept"] = {}
"""Of this process, since every thread of it may use them."""
_KEEPING = Lock()


@dataclass(slots=True)
class _Kept:
    """The cluster of some `local_processes`, None before its first use, and how many of these blocks are open."""

    cluster: Any = None
    n_blocks: int = 0


@contextmanager
def compute(backend: Backend) -> Generator[None]:
    """Run the parallel work started inside this block on `backend`; a cluster started here is stopped here."""
    chosen = _BACKEND.set(backend)
    try:
        if not (backend.address or backend.processes):
            yield
            return
        from distributed import Client  # here: 0.6 s that threads never need

        with Client(**_where(backend), set_as_default=False) as client:
            connected = _CLIENT.set(client)
            try:
                yield
            finally:
                _CLIENT.reset(connected)
    finally:
        _BACKEND.reset(chosen)


@contextmanager
def local_processes(backend: Backend) -> Generator[None]:
    """Keep the local processes that `compute(backend)` starts inside this block, in any thread, until its end."""
    if not backend.processes:
        yield
        return
    with _KEEPING:
        kept = _KEPT.setdefault(backend, _Kept())
        kept.n_blocks += 1
    try:
        yield
    finally:
        with _KEEPING:
            kept.n_blocks -= 1
            if kept.n_blocks == 0:
                del _KEPT[backend]
                if kept.cluster is not None:
                    kept.cluster.close()


def _where(backend: Backend) -> dict[str, Any]:
    """Return what a client connects to, or starts."""
    if backend.address:
        return {"address": backend.address}
    page = "127.0.0.1:0"  # any free port; its own choice is a fixed one
    workers: dict[str, Any] = {"n_workers": backend.processes, "threads_per_worker": 1, "dashboard_address": page}
    with _KEEPING:
        kept = _KEPT.get(backend)
        if kept is None:
            return workers
        if kept.cluster is None:
            from distributed import LocalCluster

            kept.cluster = LocalCluster(**workers)
        return {"address": kept.cluster.scheduler_address}


def map_parallel(function: Callable[[Item], Out], items: Iterable[Item]) -> list[Out]:
    """Return `[function(item) for item in items]`, in order, computed on the current backend.

    With processes or a cluster, `function` and the items must pickle. An exception in any call is raised here.
    """
    todo = list(items)
    client = _CLIENT.get()
    if client is not None:
        return cast("list[Out]", client.gather(client.map(function, todo, pure=False)))
    threads = n_workers()
    if threads == 1 or len(todo) < 2:
        return [function(item) for item in todo]
    # Of a number, not of the item: dask prints a callable that has no name, and looks into it, once for each call.
    each = delayed(partial(_call, function, todo), pure=False)
    return list(dask_compute(*map(each, range(len(todo))), scheduler="threads", num_workers=threads))


def _call(function: Callable[[Item], Out], items: Sequence[Item], index: int) -> Out:
    return function(items[index])


def reduce_rows(reduction: Reduction[State, Answer], *rows: Rows, block_rows: int | None = None) -> Answer:
    """Fold `reduction` over aligned blocks of `rows`, and finalize.

    Parameters
    ----------
    reduction
        What to do with a block, two states and the last state.
    rows
        Arrays with the same number of rows: in memory, or stored and read block by block.
    block_rows
        Rows in one block. By default as many as fit in `BLOCK_BYTES` for the widest input.

    Raises
    ------
    ShapeError
        If there is no input, no row, or the inputs differ in their number of rows.
    """
    if not rows or len({len_rows(each) for each in rows}) != 1 or len_rows(rows[0]) == 0:
        raise ShapeError(f"inputs must have the same number of rows, >= 1. Got shapes {[r.shape for r in rows]}.")
    step = block_rows or min(rows_in(BLOCK_BYTES, each) for each in rows)
    if step < 1:
        raise ConfigurationError(f"block_rows must be at least 1. Got {block_rows}.")
    lanes = _lanes(len_rows(rows[0]), step)
    states = map_parallel(_Lane(reduction, rows), lanes)
    state = states[0]
    for other in states[1:]:
        state = reduction.combine(state, other)
    return reduction.finalize(state)


def n_workers() -> int:
    """Return how many pieces run at once on the current backend."""
    client = _CLIENT.get()
    if client is not None:
        return max(1, sum(client.nthreads().values()))
    return _BACKEND.get().threads or os.cpu_count() or 1


def len_rows(rows: Rows) -> int:
    """Return the number of rows."""
    return rows.shape[0] if rows.shape else 0


def rows_in(n_bytes: int, rows: Rows) -> int:
    """Return how many rows of `rows` fit in `n_bytes`, at least 1."""
    per_row = int(np.prod(rows.shape[1:], dtype=np.int64)) * rows.dtype.itemsize
    return max(1, n_bytes // max(1, per_row))


def _lanes(n_rows: int, step: int) -> list[list[slice]]:
    """Split the blocks into at most `LANES` contiguous runs."""
    blocks = [slice(start, min(start + step, n_rows)) for start in range(0, n_rows, step)]
    bounds = np.linspace(0, len(blocks), min(LANES, len(blocks)) + 1).astype(int)
    return [blocks[a:b] for a, b in pairwise(bounds)]


@dataclass(frozen=True, slots=True)
class _Lane(Generic[State]):
    """Fold one run of blocks: a callable that pickles, so that it can travel to another process."""

    reduction: Reduction[State, Any]
    rows: Sequence[Rows]

    def __call__(self, blocks: list[slice]) -> State:
        state: State | None = None
        for block in blocks:
            part = self.reduction.chunk(*(each[block] for each in self.rows))
            state = part if state is None else self.reduction.combine(state, part)
        return cast(State, state)
