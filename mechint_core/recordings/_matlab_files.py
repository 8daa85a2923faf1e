"""MATLAB's files: v4 to v7 through scipy, v7.3 through HDF5, where every array is stored in the opposite order.

Cells of strings become arrays of strings, cells of numbers arrays, fields of structs `struct.field`. What MATLAB keeps
in a form of its own (tables, string and categorical arrays, objects) is refused, with what to save instead.
"""

import zlib
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np
from scipy import sparse
from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from mechint_core.recordings._fields import FileField, Selection, held, reading

OPAQUE: Final = "it is a MATLAB object; save cellstr(x), double(x) or table2struct(x) instead"
CELL: Final = "it is a cell whose entries are neither all text nor all single numbers; save it as an array"
_KIND: Final = "MAT file"
_BROKEN: Final = (
    MatReadError, ValueError, TypeError, OSError, EOFError, IndexError, KeyError, OverflowError, MemoryError,
    zlib.error,
)  # fmt: skip
_DEEPEST: Final = 8


def unreadable(name: str, why: str) -> FileField:
    """Return a field that is there, but cannot be read."""
    return FileField(name, (), lambda _: np.empty(0), numeric=False, refused=why)


@contextmanager
def mat_fields(path: Path) -> Generator[dict[str, FileField]]:
    """Yield the variables of a MAT file up to v7."""
    with reading(path, _KIND, *_BROKEN):
        variables = loadmat(path, chars_as_strings=True)
    fields: dict[str, FileField] = {}
    for name, value in variables.items():
        if not name.startswith("__"):
            _add(fields, name, value)
    yield fields


def _add(fields: dict[str, FileField], name: str, value: Any, depth: int = 0) -> None:
    """Add a variable, or the fields of a struct."""
    array = value.toarray() if sparse.issparse(value) else np.asarray(value)
    if type(value).__name__ in ("MatlabOpaque", "MatlabFunction") or depth > _DEEPEST:
        fields[name] = unreadable(name, OPAQUE)
    elif array.dtype.names:
        for part in array.dtype.names:
            entries = array[part]
            _add(fields, f"{name}.{part}", entries.ravel()[0] if entries.size == 1 else entries, depth + 1)
    elif array.dtype.kind == "O":
        cells = [np.asarray(each) for each in array.ravel().tolist()]
        plain = plain_cells(cells, array.shape)
        fields[name] = unreadable(name, CELL) if plain is None else held(name, plain)
    elif array.dtype.kind == "U" and array.ndim > 0:
        fields[name] = held(name, np.char.rstrip(array))
    else:
        fields[name] = held(name, array)


def plain_cells(cells: list[np.ndarray], shape: tuple[int, ...]) -> np.ndarray | None:
    """Return a cell array as an array of strings or numbers; None if it is neither."""
    if all(each.dtype.kind == "U" and each.size <= 1 for each in cells):
        return np.array([str(each.ravel()[0]) if each.size else "" for each in cells]).reshape(shape)
    if all(each.dtype.kind in "fiub" and each.size == 1 for each in cells):
        return np.array([each.ravel()[0] for each in cells]).reshape(shape)
    return None


def v73_fields(path: Path, file: Any) -> dict[str, FileField]:
    """Return the variables of a MAT file v7.3, each in MATLAB's order of axes."""
    fields: dict[str, FileField] = {}
    for name in own_members(file):
        if not name.startswith("#"):
            _add_stored(fields, path, file, file[name], name, 0)
    return fields


def own_members(group: Any) -> list[str]:
    """Return the names of what is in a group of HDF5, without what links lead to."""
    return [name for name in group if isinstance(group.get(name, getlink=True), h5py.HardLink)]


def _add_stored(fields: dict[str, FileField], path: Path, file: Any, stored: Any, name: str, depth: int) -> None:
    kind = _text(stored.attrs.get("MATLAB_class", b""))
    if (
        "MATLAB_object_decode" in stored.attrs
        or kind in ("table", "categorical", "datetime", "string")
        or depth > _DEEPEST
    ):
        fields[name] = unreadable(name, OPAQUE)
    elif isinstance(stored, h5py.Group):
        if "MATLAB_sparse" in stored.attrs:
            fields[name] = unreadable(name, "it is sparse; save full(x) instead")
            return
        for part in own_members(stored):
            _add_stored(fields, path, file, stored[part], f"{name}.{part}", depth + 1)
    elif "MATLAB_empty" in stored.attrs:
        fields[name] = held(name, np.empty(0))
    elif kind == "char":
        with reading(path, _KIND, OSError, RuntimeError):
            fields[name] = held(name, np.array(_characters(stored)))
    elif stored.dtype.kind == "O":
        with reading(path, _KIND, OSError, RuntimeError, ValueError):
            cells = [_cell(file[each]) for each in stored[()].T.ravel()]
        plain = (
            None
            if any(each is None for each in cells)
            else plain_cells([np.asarray(c) for c in cells], stored.shape[::-1])
        )
        fields[name] = unreadable(name, CELL) if plain is None else held(name, plain)
    elif stored.dtype.names:
        fields[name] = unreadable(name, "it holds complex numbers; save abs(x), real(x) or imag(x) instead")
    else:
        fields[name] = FileField(name, stored.shape[::-1], turned(path, stored))


def _cell(stored: Any) -> np.ndarray | None:
    """Return one entry of a cell: text or numbers; None for a struct or a cell in the cell."""
    if not isinstance(stored, h5py.Dataset) or stored.dtype.kind not in "fiub":
        return None
    is_text = _text(stored.attrs.get("MATLAB_class", b"")) == "char"
    if "MATLAB_empty" in stored.attrs:
        return np.array("") if is_text else np.empty(0)
    return np.array(_characters(stored)) if is_text else np.asarray(stored[()]).T


def _characters(stored: h5py.Dataset) -> str | list[str]:
    """Return a character array: one string, or one per row."""
    lines = ["".join(map(chr, row)).rstrip() for row in np.atleast_2d(np.asarray(stored[()]).T).tolist()]
    return lines[0] if len(lines) == 1 else lines


def turned(path: Path, stored: h5py.Dataset) -> Callable[[Selection], np.ndarray]:
    """Return the reader of an array whose axes are stored in the opposite order."""

    def read(selection: Selection) -> np.ndarray:
        with reading(path, _KIND, OSError, RuntimeError):
            return np.asarray(stored[selection[::-1]]).T

    return read


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
