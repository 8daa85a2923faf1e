"""A stored array as its readers see it: rows, columns, one position, always of one version."""

import math
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Final

import numpy as np

from mechint_core.errors import ConfigurationError, CorruptStoreError, NotFoundError, ShapeError
from mechint_core.store import bfloat16
from mechint_core.store.chunks import Chunks, open_chunks
from mechint_core.store.commit import Commit, Content
from mechint_core.store.draft import read_commit
from mechint_core.store.names import COMMIT_FILE
from mechint_core.store.place import Place

SLAB_BYTES: Final = 4 * 2**20
"""Rows read at a time on their way to a column block: they stay in the cache until their columns are copied."""
_ATTEMPTS: Final = 8


@dataclass(frozen=True, eq=False)
class StoredArray:
    """A committed array: its shape is known, its rows are read when asked for.

    It is `mechint_core.parallel.Rows`, so every technique that reads by row slices takes it; it pickles as its
    name, so it travels to other processes. If the entry is replaced by other numbers while it is being read,
    reading raises CorruptStoreError: what is read never mixes two versions.
    """

    place: Place = field(repr=False)
    path: str
    """The entry, relative to the store."""
    name: str
    """The array within the entry."""
    commit: Commit = field(repr=False)
    position: int | None = None
    """Only this position of (sample, position, unit): see `at_position`."""
    as_bits: bool = False
    """Give bfloat16 as it is stored: see `bits`."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Length of each axis; rows first."""
        return self._without_position(self._content.shape)

    @property
    def axes(self) -> tuple[str, ...]:
        """Name of each axis."""
        return self._without_position(self._content.axes)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Kind of number that reading gives: float32 for bfloat16."""
        return np.dtype(np.float32) if self._widens else np.dtype(self._content.dtype)

    @property
    def logical_dtype(self) -> str:
        """Kind of number that was stored: a dtype's name, or `bfloat16`."""
        return self._content.logical_dtype

    @property
    def digest(self) -> str:
        """Identity of the numbers: the same digest, the same numbers. A view of a position adds `@` and its index."""
        return self._content.sha256 if self.position is None else f"{self._content.sha256}@{self.position}"

    @property
    def source(self) -> Mapping[str, Any]:
        """Where it came from, as its writer said."""
        return self.commit.source

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> np.ndarray:
        """Read a run of rows."""
        if not isinstance(rows, slice):
            raise ConfigurationError(f"a stored array must be indexed by a slice of rows. Got {rows!r}. Use read().")
        start, stop, step = rows.indices(len(self))
        if step < 1:
            raise ConfigurationError(f"rows must be read forwards. Got step {step}. Reverse them after reading.")
        return self._presented(self._read(start, max(start, stop))[::step])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.read(), dtype=dtype)

    def read(self) -> np.ndarray:
        """Read everything."""
        return self[:] if self.shape else self._presented(self._read(0, 1))

    def columns(self, units: slice) -> np.ndarray:
        """Read some units of every row: (sample, k), or (sample, position, k).

        A row's units lie together, so this passes over the whole array: ask for many units at once.
        """
        span = range(*units.indices(self.shape[-1]))
        out = np.empty((*self.shape[:-1], len(span)), self.dtype)
        for rows in self.row_blocks(SLAB_BYTES):
            out[rows] = self[rows][..., units]
        return out

    def row_blocks(self, n_bytes: int) -> Iterator[slice]:
        """Yield slices that together are all rows, each of about `n_bytes` as they are stored."""
        stored = np.dtype(self._content.dtype).itemsize * math.prod(self._content.shape[1:])
        step = max(1, n_bytes // max(1, stored))
        for start in range(0, len(self), step):
            yield slice(start, min(start + step, len(self)))

    def column_blocks(self, width: int = 64) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield (units, their values in every row), `width` units at a time: one pass over the array for each."""
        if width < 1:
            raise ConfigurationError(f"width must be at least 1. Got {width}.")
        for start in range(0, self.shape[-1], width):
            units = slice(start, min(start + width, self.shape[-1]))
            yield units, self.columns(units)

    def at_position(self, position: int) -> "StoredArray":
        """Return the view (sample, unit) of one position of (sample, position, unit); -1 is the last."""
        if self.axes[1:2] != ("position",):
            raise ShapeError(f"{self.path} must have axes (sample, position, unit). Got ({', '.join(self.axes)}).")
        length = self.shape[1]
        if not -length <= position < length:
            raise ShapeError(f"position must be from {-length} to {length - 1}. Got {position}.")
        return replace(self, position=position % length)

    def bits(self) -> "StoredArray":
        """Return the view that gives numbers as stored: bfloat16 as uint16, for `torch.Tensor.view`."""
        return replace(self, as_bits=True)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_stamp", "_chunks")}

    @property
    def _content(self) -> Content:
        return self.commit.contents[self.name]

    @property
    def _widens(self) -> bool:
        return self.logical_dtype == bfloat16.NAME and not self.as_bits

    def _without_position(self, per_axis: tuple[Any, ...]) -> tuple[Any, ...]:
        return per_axis if self.position is None else (per_axis[0], *per_axis[2:])

    def _presented(self, block: np.ndarray) -> np.ndarray:
        chosen = np.asarray(block if self.position is None else block[:, self.position], order="C")
        return bfloat16.to_float32(chosen) if self._widens else chosen

    @cached_property
    def _stamp(self) -> Hashable:
        """The stamp of the commit file, which is still that of these numbers."""
        found = read_commit(self.place, self.path)
        if found is None:
            raise NotFoundError(f"{self.path} must be in {self.place}. It has been removed or is being replaced.")
        commit, stamp = found
        if self.name not in commit.contents or commit.contents[self.name] != self._content:
            raise CorruptStoreError(
                f"{self.path} must not change while it is read. It has been replaced. Open it again."
            )
        return stamp

    @cached_property
    def _chunks(self) -> Chunks:
        return open_chunks(self.place, self.path, self.name, self._content)

    def _forget(self) -> None:
        for opened in ("_stamp", "_chunks"):
            self.__dict__.pop(opened, None)

    def _read(self, start: int, stop: int) -> np.ndarray:
        """Read rows, all of one version: an entry that was replaced by equal numbers meanwhile is read again."""
        for _ in range(_ATTEMPTS):
            stamp = self._stamp
            block: np.ndarray | CorruptStoreError
            try:
                block = self._chunks.read(start, stop)
            except CorruptStoreError as error:
                block = error
            if self._is_current(stamp):
                if isinstance(block, CorruptStoreError):
                    raise block
                return block
            self._forget()
        raise CorruptStoreError(f"{self.path} must not change while it is read. It keeps changing. Stop its writers.")

    def _is_current(self, stamp: Hashable) -> bool:
        try:
            return self.place.stamp(f"{self.path}/{COMMIT_FILE}") == stamp
        except FileNotFoundError:
            return False
