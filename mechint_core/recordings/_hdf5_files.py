"""HDF5: every data set is a field, named by its path; MATLAB's v7.3 and NWB are recognised by what is in them.

External links, which lead out of the file, are not followed.
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from mechint_core.recordings._assembly import Wanted
from mechint_core.recordings._fields import FileField, Selection, held, reading
from mechint_core.recordings._matlab_files import own_members, unreadable, v73_fields
from mechint_core.recordings._nwb_files import nwb_fields

_KIND = "HDF5 file"
_BROKEN = (OSError, RuntimeError, KeyError)


@contextmanager
def hdf5_fields(path: Path, wanted: Wanted) -> Generator[dict[str, FileField]]:
    """Yield the data sets of an HDF5 file."""
    with reading(path, _KIND, *_BROKEN):
        file = h5py.File(path, "r")
    with file:
        with reading(path, _KIND, *_BROKEN):
            fields = _fields(path, file, wanted)
        yield fields


def _fields(path: Path, file: h5py.File, wanted: Wanted) -> dict[str, FileField]:
    if "nwb_version" in file.attrs:
        return nwb_fields(path, file, wanted)
    if _is_matlab(path, file):
        return v73_fields(path, file)
    found = {name: held(name, value) for name, value in file.attrs.items() if np.ndim(value) == 0 and _plain(value)}

    def visit(name: str, each: Any) -> None:
        if isinstance(each, h5py.Dataset) and each.shape is not None:
            found.update(_described(path, name, each))

    file.visititems(visit)
    return found


def _plain(value: Any) -> bool:
    return isinstance(value, str | bytes | int | float | np.number)


def _is_matlab(path: Path, file: h5py.File) -> bool:
    """Say whether MATLAB wrote it: its text comes first, or its classes are named."""
    with path.open("rb") as opened:
        return opened.read(10) == b"MATLAB 7.3" or any("MATLAB_class" in file[name].attrs for name in own_members(file))


def _described(path: Path, name: str, stored: h5py.Dataset) -> dict[str, FileField]:
    """Return a data set, or the columns of one that is a table."""
    if stored.dtype.names:
        return {
            f"{name}/{column}": FileField(f"{name}/{column}", stored.shape, reader(path, stored, column), numeric=False)
            for column in stored.dtype.names
            if stored.dtype[column].kind in "fiubS"
        }
    text = h5py.check_string_dtype(stored.dtype) is not None
    if stored.dtype.kind not in "fiub" and not text:
        return {name: unreadable(name, "it holds neither numbers nor text")}
    return {name: FileField(name, stored.shape, reader(path, stored), not text, _axes(stored))}


def _axes(stored: h5py.Dataset) -> tuple[str, ...]:
    """Return the names of the axes: their labels, or the scales attached to them, as netCDF has them."""
    named = [str(dim.label or next(iter(dim.keys()), "") or "") for dim in stored.dims]
    return tuple(each.rsplit("/", 1)[-1] for each in named) if all(named) else ()


def reader(path: Path, stored: h5py.Dataset, column: str = "") -> Callable[[Selection], np.ndarray]:
    """Return the reader of a data set, or of one column of a table; text comes as strings."""

    def read(selection: Selection) -> np.ndarray:
        with reading(path, _KIND, *_BROKEN):
            if column:
                return np.asarray(stored.fields(column)[selection])
            if h5py.check_string_dtype(stored.dtype) is not None:
                return np.asarray(stored.asstr(errors="replace")[selection])
            return np.asarray(stored[selection])

    return read
