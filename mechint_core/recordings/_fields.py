"""The named arrays of a file, read when asked for, and which of them is which part of a recording."""

import re
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from mechint_core.errors import RecordingError
from mechint_core.recordings._labels import listed

Selection = tuple[slice, ...]
"""One slice per axis; none at all for everything."""
EVERYTHING: Final[Selection] = ()

ALIASES: Final[Mapping[str, tuple[str, ...]]] = {
    "responses": (
        "responses", "response", "data", "betas", "rates", "firing_rates", "spike_counts", "counts", "activity",
        "neural", "neural_data", "values", "value", "x",
    ),
    "condition": (
        "condition", "conditions", "condition_id", "stimulus", "stimuli", "stim", "stimulus_id", "stimulus_name",
        "stim_id", "image", "image_id", "image_name", "object_name", "trial_type",
    ),
    "session": ("session", "sessions", "session_id", "run", "runs"),
    "repetition": ("repetition", "repetitions", "rep", "reps", "repeat", "repeats"),
    "subject": ("subject", "subjects", "subject_id", "animal", "monkey", "participant", "participant_id"),
    "region": ("region", "regions", "roi", "rois", "area", "areas", "brain_region", "brain_area", "location"),
    "position": ("position", "positions", "coordinates", "coords", "xyz", "channel_positions"),
    "time": ("time", "times", "timepoints", "time_bin_start", "t"),
    "channel": (
        "channel", "channels", "channel_id", "channel_name", "electrode", "neuron", "neuron_id", "unit", "unit_id",
        "neuroid", "neuroid_id", "voxel",
    ),
    "units": ("units",),
}  # fmt: skip
"""Our names -> what files call them, the first found wins."""


@dataclass(frozen=True, slots=True)
class FileField:
    """One array of a file."""

    name: str
    shape: tuple[int, ...]
    read: Callable[[Selection], np.ndarray]
    numeric: bool = True
    axes: tuple[str, ...] = ()
    """Names of its axes, where the file has them."""
    refused: str = ""
    """Why it cannot be read; empty if it can."""


def held(name: str, values: Any, axes: tuple[str, ...] = ()) -> FileField:
    """Return an array in memory as a field."""
    array = np.asarray(values)
    return FileField(name, array.shape, lambda selection: array[selection], array.dtype.kind in "fiub", axes)


@contextmanager
def reading(path: Path, kind: str, *errors: type[Exception]) -> Generator[None]:
    """Turn what a format's library raises on a file that is not whole into a RecordingError."""
    try:
        yield
    except errors as error:
        said = " ".join(str(error).split())[:200]
        raise RecordingError(
            f"{path} must be a whole {kind}. Got: {type(error).__name__}: {said}. Copy or export it again."
        ) from error


def resolve(
    fields: Mapping[str, FileField],
    named: Mapping[str, str],
    problems: list[str],
    needed: tuple[str, ...] = ("responses", "condition"),
) -> dict[str, FileField]:
    """Return our name -> field: those named, then those that files call so; what is missing is a problem."""
    found: dict[str, FileField] = {}
    for ours, theirs in named.items():
        if ours not in ALIASES:
            problems.append(f"fields must name some of {listed(ALIASES)}. Got {ours!r}.")
        elif theirs in fields:
            found[ours] = fields[theirs]
        else:
            ends = [each for each in fields.values() if _last(each.name) == theirs]
            if len(ends) == 1:
                found[ours] = ends[0]
            else:
                problems.append(f"{ours} must be one of the file's fields: {contents(fields)}. Got {theirs!r}.")
    for ours in [each for each in ALIASES if each not in named]:
        taken = {each.name for each in found.values()}
        guess = _guessed(ours, {name: each for name, each in fields.items() if name not in taken}, problems)
        if guess is not None:
            found[ours] = guess
    for ours in needed:
        if ours not in found and ours not in named and not any(each.startswith(f"{ours} ") for each in problems):
            problems.append(f"{ours} is missing. The file has {contents(fields)}. Say which: fields={{{ours!r}: ...}}.")
    for ours, each in found.items():
        if each.refused:
            problems.append(f"{ours} cannot be read from {each.name!r}: {each.refused}.")
    return found


def contents(fields: Mapping[str, FileField]) -> str:
    """Return what a file has, for a message."""
    return ", ".join(f"{name} {list(each.shape)}" for name, each in list(fields.items())[:20]) or "nothing"


def _guessed(ours: str, fields: Mapping[str, FileField], problems: list[str]) -> FileField | None:
    """Return the field that is called as files call ours; for responses also the only array of numbers."""
    for alias in ALIASES[ours]:
        called = [each for each in fields.values() if _plain(_last(each.name)) == _plain(alias)]
        if ours == "responses":
            called = [each for each in called if each.numeric and len(each.shape) >= 2] or called
        if len(called) > 1:
            problems.append(
                f"{ours} must be one field. Got {listed(each.name for each in called)}. "
                f"Say which: fields={{{ours!r}: ...}}."
            )
            return None
        if called:
            return called[0]
    if ours == "responses":
        large = [each for each in fields.values() if each.numeric and len(each.shape) in (2, 3) and min(each.shape) > 1]
        return large[0] if len(large) == 1 else None
    return None


def _last(name: str) -> str:
    return name.rsplit("/", 1)[-1].rsplit(".", 1)[-1]


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]", "", name).lower()
