r"""The record that makes stored bytes trustworthy, and the one number that identifies them.

    digest of an array   = sha256("<logical dtype> [<shape>]\n" + its rows, C order, little-endian)
    digest of an entry   = the digest of its `values` if it holds just that,
                           otherwise sha256 of the sorted lines "<name> <digest>\n"

A digest therefore depends on the numbers alone: not on chunks, shards, the writer's block size, the place or the
time. It is the Prefect cache key and the MLflow dataset digest as well: one identity in three systems.
"""

import hashlib
import json
import math
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import PurePath
from typing import Any, Final, cast

import numpy as np

from mechint_core import __version__
from mechint_core.errors import ConfigurationError, CorruptStoreError

VALUES: Final = "values"
"""The name of the one array of an activation entry."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """One array, file or record inside a committed entry."""

    sha256: str
    shape: tuple[int, ...] = ()
    dtype: str = ""
    """The numbers as they lie in the file; empty for what is not an array."""
    logical_dtype: str = ""
    """The numbers as they are meant; differs from `dtype` for bfloat16."""
    axes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """What `commit.json` says: written last, so its presence means that everything else is there."""

    sha256: str
    rows: int | None
    """Length of the first axis where all arrays share it."""
    contents: Mapping[str, Content]
    source: Mapping[str, Any]
    """Where it came from, in the writer's words: model digest, data set digest, configuration, ..."""
    n_files: int = 0
    """Of Zarr groups: how many files lay beside the commit, so that a missing chunk is missed whatever it held."""
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])
    """sha256 of every `zarr.json`, which is no part of the entry's identity but must not change either."""
    made_at: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="milliseconds"))
    versions: Mapping[str, str] = field(
        default_factory=lambda: {
            "mechint": __version__,
            "zarr": version("zarr"),
            "numpy": np.__version__,
            "python": platform.python_version(),
        }
    )

    def dump(self) -> bytes:
        """Return the JSON text, sealed with its own digest."""
        record = {each.name: getattr(self, each.name) for each in fields(self)}
        record["contents"] = {name: asdict(content) for name, content in self.contents.items()}
        if set(self.contents) == {VALUES}:  # for readers that know nothing of us
            values = self.contents[VALUES]
            record |= {"shape": values.shape, "dtype": values.dtype, "logical_dtype": values.logical_dtype}
        record = to_json(record)
        return json.dumps({**record, "seal": json_digest(record)}, indent=2).encode()

    @classmethod
    def load(cls, text: bytes, path: str) -> "Commit":
        """Read the JSON text of the entry at `path`, and check its seal."""
        try:
            record: dict[str, Any] = json.loads(text)
            seal = record.pop("seal")
            contents = {name: _content(each) for name, each in record["contents"].items()}
            known: dict[str, Any] = {each.name: record[each.name] for each in fields(cls)}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CorruptStoreError(_damaged(path)) from error
        if seal != json_digest(record):
            raise CorruptStoreError(_damaged(path))
        known["contents"] = contents
        return cls(**known)


def _content(record: dict[str, Any]) -> Content:
    known: dict[str, Any] = {**record, "shape": tuple(record["shape"]), "axes": tuple(record["axes"])}
    return Content(**known)


def _damaged(path: str) -> str:
    return f"{path}/commit.json must be as it was written. It has been changed. Delete the folder and make it again."


class ArrayDigest:
    """The digest of an array, fed in row order in blocks of any size."""

    def __init__(self, logical_dtype: str, shape: tuple[int, ...]) -> None:
        self._hash = hashlib.sha256(f"{logical_dtype} {list(shape)}\n".encode())

    def update(self, block: np.ndarray) -> None:
        """Add rows."""
        little = block.astype(block.dtype.newbyteorder("<"), order="C", copy=False)
        self._hash.update(little.reshape(-1).view(np.uint8).data)

    def hexdigest(self) -> str:
        """Return the digest of the rows so far."""
        return self._hash.hexdigest()


def entry_digest(contents: Mapping[str, Content]) -> str:
    """Return the digest of an entry from those of what it holds."""
    if set(contents) == {VALUES}:
        return contents[VALUES].sha256
    lines = (f"{name} {contents[name].sha256}\n" for name in sorted(contents))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def json_digest(value: Any) -> str:
    """Return the digest of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def to_json(value: Any) -> Any:
    """Return `value` as strict JSON: NaN becomes null and the infinities the words of Zarr, "Infinity", "-Infinity".

    Tuples become lists, numpy numbers numbers, paths text and dataclasses objects. `to_float` undoes it for a number.
    """
    if isinstance(value, np.generic | np.ndarray):
        value = cast(Any, value).tolist()
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, PurePath):
        return str(value)
    if is_dataclass(value) and not isinstance(value, type):
        return {each.name: to_json(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_json(each) for key, each in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [to_json(each) for each in cast("list[Any]", value)]
    raise ConfigurationError(f"a config or a source must be JSON. Got {value!r} of type {type(value).__name__}.")


def to_float(value: Any) -> float:
    """Return the number that `to_json` wrote."""
    return math.nan if value is None else float(value)
