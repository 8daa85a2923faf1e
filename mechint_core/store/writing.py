"""Writing one array in row order: an activation array block by block, any other at once."""

import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import zarr

from mechint_core.axes import AXES
from mechint_core.errors import ConfigurationError, DtypeError, ShapeError
from mechint_core.store import bfloat16
from mechint_core.store.chunks import chunk_rows, zarr_location
from mechint_core.store.commit import ArrayDigest, Content
from mechint_core.store.draft import Draft, writing
from mechint_core.store.place import Place

_KINDS: Final = "fciub"
"""Numbers and booleans, by numpy's letters."""


class ActivationWriter:
    """Takes an array's rows in order, in blocks of any size, and counts, hashes and stores them.

    Made by `ActivationStore.write_activations`, which commits when its block ends.
    """

    def __init__(
        self,
        place: Place,
        draft: Draft,
        name: str,
        *,
        n_rows: int,
        axes: tuple[str, ...],
        dtype: str,
        shard_rows: int | None = None,
    ) -> None:
        if isinstance(n_rows, bool) or not isinstance(n_rows, int | np.integer) or n_rows < 1:
            raise ShapeError(f"n_samples must be an integer >= 1. Got {n_rows!r}.")
        if shard_rows is not None and shard_rows < 1:
            raise ConfigurationError(f"shard_rows must be at least 1. Got {shard_rows}.")
        self._place, self._draft, self._name, self._axes = place, draft, name, check_axes(axes)
        self._n_rows, self._logical, self._stored = int(n_rows), dtype, stored_dtype(dtype)
        self._shard_rows = shard_rows
        self._array: Any = None
        self._n_written = self._n_held = 0
        self._held = np.empty(0)
        self._digest = ArrayDigest(dtype, ())

    @property
    def rows(self) -> int:
        """Rows taken so far."""
        return self._n_written + self._n_held

    def append(self, block: np.ndarray) -> None:
        """Take the next rows.

        Raises
        ------
        ShapeError
            If a row's shape differs from the first block's, or there are more rows than announced.
        DtypeError
            If the numbers cannot be stored as announced: of another kind, or too large for float16.
        UncommittedError
            If they cannot be written (a full disk), or another process has taken over this entry.
        """
        block = np.asarray(block)
        if self._array is None and block.ndim == len(self._axes):
            self._begin(block.shape[1:])
        if block.ndim != len(self._axes) or block.shape[1:] != self._held.shape[1:]:
            raise ShapeError(
                f"a block must be ({', '.join(self._axes)}), rows {self._held.shape[1:]}. Got {block.shape}."
            )
        if self.rows + len(block) > self._n_rows:
            raise ShapeError(f"rows must be {self._n_rows} in all. Got {self.rows + len(block)}.")
        converted = stored_numbers(block, self._logical)
        while len(converted):
            converted = converted[self._take(converted) :]

    def finish(self) -> Content:
        """Write what is still held, and return what the commit says of this array."""
        if self.rows != self._n_rows:
            raise ShapeError(f"rows must be {self._n_rows} in all. Got {self.rows}. Nothing was committed.")
        self._write(self._held[: self._n_held])
        return Content(
            sha256=self._digest.hexdigest(),
            shape=(self._n_rows, *self._held.shape[1:]),
            dtype=self._stored.name,
            logical_dtype=self._logical,
            axes=self._axes,
        )

    def _begin(self, row_shape: tuple[int, ...]) -> None:
        shape = (self._n_rows, *row_shape)
        chunk = chunk_rows(shape, self._stored)
        shard = None if self._shard_rows is None else -(-self._shard_rows // chunk) * chunk
        self._array = create_array(
            self._place,
            self._draft,
            self._name,
            shape=shape,
            axes=self._axes,
            logical_dtype=self._logical,
            shard_rows=shard,
        )
        self._held = np.empty((shard or chunk, *shape[1:]), self._stored)
        self._digest = ArrayDigest(self._logical, shape)

    def _take(self, block: np.ndarray) -> int:
        """Write the whole chunks (or shards) of `block`, or hold its rows until there is one; return how many rows."""
        unit = len(self._held)
        if self._n_held == 0 and len(block) >= unit:
            n_taken = len(block) // unit * unit
            self._write(block[:n_taken])
            return n_taken
        n_taken = min(unit - self._n_held, len(block))
        self._held[self._n_held : self._n_held + n_taken] = block[:n_taken]
        self._n_held += n_taken
        if self._n_held == unit:
            self._n_held = 0
            self._write(self._held)
        return n_taken

    def _write(self, rows: np.ndarray) -> None:
        self._draft.check()
        write_rows(self._array, self._n_written, rows, self._draft.path)
        self._digest.update(rows)
        self._n_written += len(rows)


def check_axes(axes: tuple[str, ...]) -> tuple[str, ...]:
    """Return `axes` if they are different words of the vocabulary."""
    if not axes or not set(axes) <= set(AXES) or len(set(axes)) != len(axes):
        raise ConfigurationError(f"axes must be different names of mechint_core.axes. Got {axes}.")
    return axes


def write_array(place: Place, draft: Draft, name: str, values: np.ndarray, axes: tuple[str, ...]) -> Content:
    """Write one array at once, of any number of axes and any length, and return what the commit says of it."""
    if len(axes) != values.ndim:
        raise ShapeError(f"{name} must have one axis name per axis. Got {axes} for shape {values.shape}.")
    logical = values.dtype.name
    numbers = stored_numbers(values, logical)
    array = create_array(place, draft, name, shape=values.shape, axes=axes, logical_dtype=logical)
    write_rows(array, 0, numbers, draft.path)
    return Content(sha256=array_digest(values), shape=values.shape, dtype=logical, logical_dtype=logical, axes=axes)


def array_digest(values: np.ndarray) -> str:
    """Return the digest that `values` would be stored under."""
    digest = ArrayDigest(values.dtype.name, values.shape)
    digest.update(stored_numbers(values, values.dtype.name))
    return digest.hexdigest()


def create_group(place: Place, draft: Draft, attributes: Mapping[str, Any]) -> None:
    """Make the draft a Zarr group."""
    with writing(draft.path):
        zarr.create_group(zarr_location(place, draft.path), zarr_format=3, attributes=dict(attributes))


def create_array(
    place: Place,
    draft: Draft,
    name: str,
    *,
    shape: tuple[int, ...],
    axes: tuple[str, ...],
    logical_dtype: str,
    shard_rows: int | None = None,
) -> Any:
    """Create an array that holds nothing yet."""
    dtype = stored_dtype(logical_dtype)
    chunks = (chunk_rows(shape, dtype), *(max(1, length) for length in shape[1:])) if shape else ()
    with writing(draft.path):
        return zarr.create_array(
            zarr_location(place, draft.path),
            name=name,
            shape=shape,
            chunks=chunks,
            shards=None if shard_rows is None else (shard_rows, *chunks[1:]),
            dtype=dtype.newbyteorder("<"),
            fill_value=_fill(logical_dtype, dtype),
            filters=None,
            compressors=None,  # dense activations shrink by 6-10 %: the dtype is the lever, not the codec
            attributes={"logical_dtype": logical_dtype},
            dimension_names=axes or None,
            zarr_format=3,
            config={"write_empty_chunks": True},  # a missing chunk is then always damage; and no scan for NaN
        )


def _fill(logical_dtype: str, dtype: np.dtype[Any]) -> Any:
    """Return what a lost chunk of an object store reads as: a number that shows."""
    if logical_dtype == bfloat16.NAME:
        return bfloat16.NAN_BITS
    if dtype.kind in "fc":
        return math.nan
    return False if dtype.kind == "b" else int(np.iinfo(dtype).max)


def write_rows(array: Any, start: int, rows: np.ndarray, path: str) -> None:
    """Write whole chunks of rows; of an array without axes, its number."""
    with writing(path):
        if rows.size:
            array[slice(start, start + len(rows)) if rows.ndim else ()] = rows


def stored_dtype(logical_dtype: str) -> np.dtype[Any]:
    """Return the dtype that numbers of a logical dtype are kept in."""
    if logical_dtype == bfloat16.NAME:
        return np.dtype(np.uint16)
    try:
        dtype = np.dtype(logical_dtype)
    except TypeError as error:
        raise DtypeError(f"dtype must be a numpy dtype's name or 'bfloat16'. Got {logical_dtype!r}.") from error
    if dtype.kind not in _KINDS or dtype.itemsize > 16:
        raise DtypeError(
            f"an array must hold numbers or booleans. Got dtype {logical_dtype}. Store labels as integers."
        )
    return dtype


def stored_numbers(block: np.ndarray, logical_dtype: str) -> np.ndarray:
    """Return `block` as it is kept. For bfloat16 that is its bits: floats are rounded, uint16 is taken as bits."""
    dtype = stored_dtype(logical_dtype)
    if block.dtype == dtype:
        return block
    if logical_dtype == bfloat16.NAME:
        if block.dtype.kind != "f":
            raise DtypeError(f"bfloat16 must be given as floats or as uint16 bits. Got {block.dtype}.")
        return bfloat16.from_float32(block.astype(np.float32))
    if not np.can_cast(block.dtype, dtype, "same_kind"):
        raise DtypeError(f"rows must be {logical_dtype} or convertible to it. Got {block.dtype}.")
    with np.errstate(over="ignore"):
        converted = block.astype(dtype)
    if dtype.kind in "fc" and not np.array_equal(np.isinf(converted), np.isinf(block)):
        raise DtypeError(f"rows must fit into {logical_dtype}. Got larger numbers. Use bfloat16 or float32.")
    return converted
