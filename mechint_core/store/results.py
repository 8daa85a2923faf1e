"""A technique's Result as a Zarr group, and back.

Arrays keep their axis names, so xarray opens the group without us. Everything else is the group's attributes, as
strict JSON: a number that is NaN is null there, an infinite one "Infinity" or "-Infinity". Estimates and flags come
back exactly; in a config or a provenance, which are free JSON, null stays None.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any, Final

import numpy as np

from mechint_core.errors import ConfigurationError, CorruptStoreError
from mechint_core.figure import declare
from mechint_core.result import Estimate, Result
from mechint_core.store.arrays import StoredArray
from mechint_core.store.commit import Commit, Content, json_digest, to_float, to_json
from mechint_core.store.draft import Draft
from mechint_core.store.place import Place
from mechint_core.store.record import About, ResultKey, StoredResult
from mechint_core.store.writing import create_group, write_array

RECORD: Final = ".record"
"""The content of a result that is no array: its attributes without the provenance (times differ, numbers do not)."""


def record_of(result: Result, about: About, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is stored of `result` beside its arrays, as JSON."""
    return to_json(
        {
            "technique": result.technique,
            "about": asdict(about),
            "reading": result.reading(),
            "config": config,
            "estimates": {name: asdict(estimate) for name, estimate in result.estimates().items()},
            "flags": result.flags(),
            "labels": result.labels(),
            "axes": {name: _axes(result, name) for name in result.arrays()},
            "figures": [declare(figure) for figure in result.figures],
        }
    )


def write_contents(
    place: Place, draft: Draft, result: Result, record: Mapping[str, Any], provenance: Mapping[str, Any]
) -> dict[str, Content]:
    """Write the group, and return what its commit says of it."""
    create_group(place, draft, {**record, "provenance": provenance})
    arrays = {
        name: write_array(place, draft, name, values, _axes(result, name)) for name, values in result.arrays().items()
    }
    return {**arrays, RECORD: Content(sha256=json_digest(record))}


def read_result(place: Place, path: str, key: ResultKey, commit: Commit) -> StoredResult:
    """Read the group at `path`; its arrays wait until they are asked for."""
    record = read_record(place, path, commit)
    return StoredResult(
        key=key,
        about=_about(record["about"]),
        reading=record["reading"],
        config=record["config"],
        estimates={name: _estimate(parts) for name, parts in record["estimates"].items()},
        flags={name: to_float(number) for name, number in record["flags"].items()},
        labels={name: tuple(names) for name, names in record["labels"].items()},
        axes={name: tuple(axes) for name, axes in record["axes"].items()},
        figures=tuple(_figure(figure) for figure in record["figures"]),
        provenance=provenance_of(commit),
        arrays=_Arrays(place, path, commit),
    )


def provenance_of(commit: Commit) -> dict[str, Any]:
    """Return how a result was made, with its identity and its time."""
    return {**commit.source, "digest": commit.sha256, "made_at": commit.made_at}


def read_record(place: Place, path: str, commit: Commit) -> dict[str, Any]:
    """Return the attributes of the group at `path` without the provenance, if they are as committed."""
    try:
        record = json.loads(place.read(f"{path}/zarr.json"))["attributes"]
        intact = record.pop("provenance") == commit.source and json_digest(record) == commit.contents[RECORD].sha256
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        intact, record = False, {}
    if not intact:
        raise CorruptStoreError(f"{path}/zarr.json must be as it was written. It has been changed. Make it again.")
    return record


def _axes(result: Result, name: str) -> tuple[str, ...]:
    axes = type(result).axes()
    if name not in axes:
        raise ConfigurationError(
            f"{type(result).__name__}.{name} must be annotated with its axes, as Float[np.ndarray, 'sample unit']."
        )
    return axes[name]


def _about(words: dict[str, Any]) -> About:
    words["references"] = tuple(words["references"])
    return About(**words)


def _estimate(parts: Mapping[str, Any]) -> Estimate:
    return Estimate(**{name: to_float(number) for name, number in parts.items()})


def _figure(figure: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in figure.items()}


class _Arrays(Mapping[str, np.ndarray]):
    """The arrays of a stored result, each read when first asked for."""

    def __init__(self, place: Place, path: str, commit: Commit) -> None:
        names = [name for name in commit.contents if name != RECORD]
        self._stored = {name: StoredArray(place, path, name, commit) for name in names}
        self._read: dict[str, np.ndarray] = {}

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._read:
            self._read[name] = self._stored[name].read()
        return self._read[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)
