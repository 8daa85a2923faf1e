"""numpy's files: one array with tables beside it (npy), or several by name (npz). Pickles are refused."""

import json
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np

from mechint_core.errors import RecordingError
from mechint_core.recordings._csv_files import columns_of
from mechint_core.recordings._fields import EVERYTHING, FileField, Selection, held, reading

_BROKEN: Final = (ValueError, OSError, EOFError, SyntaxError, tokenize.TokenError)
_BROKEN_ZIP: Final = (*_BROKEN, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, struct.error)
PICKLED: Final = (
    "it holds Python objects, which would run code when loaded; save strings as a fixed-width array instead"
)


@contextmanager
def npy_fields(path: Path) -> Generator[dict[str, FileField]]:
    """Yield `responses`, read from the disk in part, and the columns and entries of the tables beside it.

    `NAME.json` holds name -> one value or a list; `NAME.csv` has one row per sample or per channel, as have
    `NAME.samples.csv` and `NAME.channels.csv`.
    """
    with reading(path, "npy file", *_BROKEN):
        array = _mapped(path)
    fields = {"responses": FileField("responses", array.shape, array.__getitem__, array.dtype.kind in "fiub")}
    yield {**fields, **beside(path)}


def _mapped(path: Path) -> np.ndarray:
    with path.open("rb") as file:
        version = np.lib.format.read_magic(file)
        dtype = _header(file, version)[1]
    if dtype.hasobject:
        raise RecordingError(f"{path} must hold numbers. Got Python objects: {PICKLED}.")
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _header(file: Any, version: tuple[int, int]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    return shape, dtype


def beside(path: Path) -> dict[str, FileField]:
    """Return what the tables beside a file say."""
    found: dict[str, FileField] = {}
    said = path.with_suffix(".json")
    if said.exists():
        with reading(said, "JSON object", ValueError, OSError):
            entries = json.loads(said.read_text())
        if not isinstance(entries, dict):
            raise RecordingError(f"{said} must be a JSON object: name -> value or list. Got {type(entries).__name__}.")
        found |= {name: _listed_field(said, name, values) for name, values in entries.items()}
    for suffix, axes in ((".csv", ()), (".samples.csv", ("sample",)), (".channels.csv", ("channel",))):
        table = path.with_suffix(suffix)
        if table.exists() and table != path:
            found |= {name: held(name, values, axes) for name, values in columns_of(table).items()}
    return found


def _listed_field(path: Path, name: str, values: Any) -> FileField:
    with reading(path, f"table in which {name} is a value or a list of equally long lists", ValueError):
        array = np.asarray(values)
    return held(name, array)


@contextmanager
def npz_fields(path: Path) -> Generator[dict[str, FileField]]:
    """Yield the arrays of an npz file; each is read whole, and only if it is needed."""
    with reading(path, "npz file", *_BROKEN_ZIP):
        archive = zipfile.ZipFile(path)
        described = {name[:-4]: _member(archive, name) for name in archive.namelist() if name.endswith(".npy")}
    with archive, np.load(path, allow_pickle=False) as arrays:
        yield {
            name: FileField(
                name,
                shape,
                _reader(path, arrays, name),
                dtype.kind in "fiub",
                refused=PICKLED if dtype.hasobject else "",
            )
            for name, (shape, dtype) in described.items()
        }


def _member(archive: zipfile.ZipFile, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    with archive.open(name) as file:
        return _header(file, np.lib.format.read_magic(file))


def _reader(path: Path, arrays: Any, name: str) -> Any:
    def read(selection: Selection = EVERYTHING) -> np.ndarray:
        with reading(path, "npz file", *_BROKEN_ZIP):
            return arrays[name][selection]

    return read
