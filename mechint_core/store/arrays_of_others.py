"""Zarr arrays that others wrote, v2 or v3: their names, shapes and axes, read in part. No commit, no digest.

Codecs that unpickle are refused: they run code.
"""

import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import zarr

from mechint_core.errors import CorruptStoreError, NotFoundError
from mechint_core.store.chunks import zarr_location
from mechint_core.store.place import Place

_BROKEN: Final = (FileNotFoundError, ValueError, KeyError, TypeError, OSError, RuntimeError)


@dataclass(frozen=True, slots=True)
class ForeignArray:
    """An array of a Zarr group that this package did not write."""

    name: str
    """Its path within the group."""
    axes: tuple[str, ...]
    """Names of the axes, where it has them."""
    array: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """Length of each axis."""
        return tuple(self.array.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Kind of number."""
        return np.dtype(self.array.dtype)

    def read(self, selection: tuple[slice, ...] = ()) -> np.ndarray:
        """Read one slice per axis, or everything.

        Raises
        ------
        CorruptStoreError
            If a chunk is not whole.
        """
        try:
            return np.asarray(self.array[selection or ...])
        except _BROKEN as error:
            raise CorruptStoreError(f"{self.name} must be readable. Got {type(error).__name__}: {error}.") from error


def foreign_arrays(location: str | Path) -> dict[str, ForeignArray]:
    """Return the arrays of a Zarr group, at any depth, or the one array that is there, by name.

    Raises
    ------
    NotFoundError
        If there is no Zarr group or array.
    CorruptStoreError
        If its description cannot be read, or a codec would run code.
    """
    place = Place.at(location)
    if not any(place.exists(name) for name in ("zarr.json", ".zgroup", ".zarray")):
        raise NotFoundError(f"{location} must be a Zarr group or array. Got none.")
    try:
        with warnings.catch_warnings():  # files beside the arrays, and text of fixed width: neither is our doing
            warnings.simplefilter("ignore")
            found = list(_walk(zarr.open(zarr_location(place, ""), mode="r")))
    except _BROKEN as error:
        raise CorruptStoreError(
            f"{location} must be a whole Zarr group. Got {type(error).__name__}: {error}."
        ) from error
    for each in found:
        described = {name: value for name, value in each.array.metadata.to_dict().items() if name != "attributes"}
        if "pickle" in json.dumps(described, default=str).lower():
            raise CorruptStoreError(f"{location} must hold no pickles, which run code. {each.name} does.")
    return {each.name: each for each in found}


def _walk(opened: Any, prefix: str = "") -> Iterator[ForeignArray]:
    if isinstance(opened, zarr.Array):
        yield _described(prefix or "responses", opened)
        return
    for name, each in opened.members():
        yield from _walk(each, f"{prefix}/{name}" if prefix else name)


def _described(name: str, array: Any) -> ForeignArray:
    """Return an array with its axes: v3's dimension names, or xarray's attribute in v2."""
    axes = getattr(array.metadata, "dimension_names", None) or array.attrs.get("_ARRAY_DIMENSIONS") or ()
    return ForeignArray(name, tuple(str(each) for each in axes), array)
