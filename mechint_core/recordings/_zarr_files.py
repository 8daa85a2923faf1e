"""Zarr groups that others wrote, as fields; only the store knows Zarr."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from mechint_core.errors import CorruptStoreError, NotFoundError
from mechint_core.recordings._fields import FileField, Selection, reading
from mechint_core.store.arrays_of_others import ForeignArray, foreign_arrays


@contextmanager
def zarr_fields(path: Path) -> Generator[dict[str, FileField]]:
    """Yield the arrays of a Zarr group."""
    with reading(path, "Zarr group", CorruptStoreError, NotFoundError):
        arrays = foreign_arrays(path)
    yield {name: _field(path, each) for name, each in arrays.items()}


def _field(path: Path, stored: ForeignArray) -> FileField:
    def read(selection: Selection) -> np.ndarray:
        with reading(path, "Zarr group", CorruptStoreError):
            return stored.read(selection)

    return FileField(stored.name, stored.shape, read, stored.dtype.kind in "fiub", stored.axes)
