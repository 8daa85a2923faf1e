"""From the fields of a file to a recording: which axis is which, what of it is wanted, and everything that is wrong.

Cost: reads the descriptors, then of the responses the smallest block that holds what is asked for.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from mechint_core.errors import RecordingError
from mechint_core.recordings._fields import EVERYTHING, FileField, resolve
from mechint_core.recordings._labels import as_floats, as_labels
from mechint_core.recordings._layout import COLUMNS, ROWS, SYNONYMS, Layout, axes_of
from mechint_core.recordings._selection import Asked, chosen, within


@dataclass(frozen=True, slots=True)
class Wanted:
    """The part of a file that is wanted."""

    fields: Mapping[str, str] = field(default_factory=dict)
    axes: tuple[str, ...] | None = None
    region: Asked = None
    subject: Asked = None
    session: Asked = None
    time: tuple[float, float] | None = None
    window: tuple[float, float] | None = None
    step: float | None = None


@dataclass(frozen=True, slots=True)
class Parts:
    """What a recording is made of; `owner` is the subject of each sample, where that is how the file says it."""

    responses: np.ndarray
    labels: Mapping[str, np.ndarray]
    time: np.ndarray
    position: np.ndarray
    units: str
    sample_descriptors: Mapping[str, np.ndarray]
    channel_descriptors: Mapping[str, np.ndarray]
    owner: np.ndarray | None


def assembled(subject: str, fields: Mapping[str, FileField], wanted: Wanted) -> Parts:
    """Return the wanted part of a file; RecordingError with all that keeps it from being a recording."""
    problems: list[str] = []
    numbered = "condition" in (wanted.axes or ())
    found = resolve(fields, wanted.fields, problems, ("responses",) if numbered else ("responses", "condition"))
    axes = axes_of(found, wanted.axes, problems) if "responses" in found else ()
    if not axes or problems:
        raise RecordingError.of(subject, problems)
    layout = Layout(axes, found["responses"].shape)
    said = {ours: np.asarray(each.read(EVERYTHING)) for ours, each in found.items() if ours != "responses"}
    labels, owner = _labels(said, layout, problems)
    time, position = _coordinates(said, layout, problems)
    if problems:
        raise RecordingError.of(subject, problems)
    channels = chosen("region", wanted.region, labels["region"]) if "region" in labels else _all(layout.n_columns)
    rows = chosen("session", wanted.session, labels["session"]) if "session" in labels else _all(layout.n_rows)
    if owner is not None:
        rows &= chosen("subject", wanted.subject, owner)
    elif "subject" in labels:
        channels &= chosen("subject", wanted.subject, labels["subject"])
    steps = within(wanted.time, time) if len(time) else _all(layout.lengths.get("time", 0))
    _check_asked(wanted, {*labels, *(("subject",) if owner is not None else ())}, problems)
    others = _others(fields, found, layout)
    responses = layout.read(found["responses"], rows, steps, channels, problems)
    if problems:
        raise RecordingError.of(subject, problems)
    kept = {name: values[channels if name in ("subject", "region") else rows] for name, values in labels.items()}
    channel_descriptors = {name: values[channels] for name, values in others["channel"].items()}
    if "channel" in said and said["channel"].size == layout.n_columns:
        channel_descriptors["channel"] = said["channel"].ravel()[channels]
    return Parts(
        responses=responses,
        labels=kept,
        time=time[steps],
        position=position[channels] if len(position) else position,
        units=str(said["units"].ravel()[0]) if "units" in said and said["units"].size == 1 else "",
        sample_descriptors={name: values[rows] for name, values in others["sample"].items()},
        channel_descriptors=channel_descriptors,
        owner=owner[rows] if owner is not None else None,
    )


def _all(length: int) -> np.ndarray:
    return np.ones(length, bool)


def _check_asked(wanted: Wanted, said: set[str], problems: list[str]) -> None:
    """Refuse to choose by what the file does not say."""
    for name in ("region", "session", "subject"):
        if getattr(wanted, name) is not None and name not in said:
            problems.append(f"{name} is missing, so {getattr(wanted, name)!r} cannot be chosen. Say which field it is.")


def _labels(
    said: Mapping[str, np.ndarray], layout: Layout, problems: list[str]
) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """Return the labels of samples and channels, and whose each sample is where the file says that."""
    labels: dict[str, np.ndarray] = {}
    owner = None
    for name in ("condition", "session", "repetition", "subject", "region"):
        if name not in said:
            continue
        group = COLUMNS if name in ("subject", "region") else ROWS
        length = layout.n_columns if group is COLUMNS else layout.n_rows
        of_sample = name == "subject" and said[name].size not in (1, length, layout.lengths.get("subject", 1))
        if of_sample and said[name].size == layout.n_rows:
            owner = as_labels(name, said[name].ravel(), layout.n_rows, "sample", problems)
            continue
        n_before = len(problems)
        spread = layout.spread(name, said[name], group, problems)
        if len(problems) == n_before:
            labels[name] = as_labels(name, spread, length, group[-1], problems)
    for word in ("condition", "repetition"):
        if word in layout.axes and word not in labels:
            labels[word] = layout.spread(word, np.arange(layout.lengths[word]), ROWS, problems)
    if "subject" in layout.axes and "subject" not in labels:
        labels["subject"] = layout.spread("subject", np.arange(layout.lengths["subject"]), COLUMNS, problems)
    return labels, owner


def _coordinates(said: Mapping[str, np.ndarray], layout: Layout, problems: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return times and positions; empty where there are none."""
    time, position = np.empty(0), np.empty(0)
    if "time" in layout.axes:
        if "time" not in said:
            problems.append("time is missing: seconds of each time step. Say which field: fields={'time': ...}.")
        elif said["time"].size != layout.lengths["time"]:
            problems.append(
                f"time must have one entry per time step. Got {said['time'].size}, responses have {layout}. If "
                "these are other axes, say axes=(...)."
            )
        else:
            time = as_floats("time", said["time"].ravel(), problems)
    if "position" in said:
        given = as_floats("position", said["position"], problems)
        turned = given.ndim == 2 and given.shape[0] in (2, 3) and given.shape[1] == layout.n_columns > 3
        position = given.T if turned else given
        if position.ndim != 2 or position.shape[0] != layout.n_columns or position.shape[1] not in (2, 3):
            problems.append(
                f"position must have 2 or 3 coordinates per channel ({layout.n_columns}). Got {given.shape}."
            )
    return time, position


def _others(
    fields: Mapping[str, FileField], found: Mapping[str, FileField], layout: Layout
) -> dict[str, dict[str, np.ndarray]]:
    """Return what else the file says of each sample and of each channel, by the number of entries."""
    others: dict[str, dict[str, np.ndarray]] = {"sample": {}, "channel": {}}
    taken = {each.name for each in found.values()}
    for name, each in fields.items():
        if name in taken or each.refused or max(each.shape, default=0) != math.prod(each.shape):
            continue
        length = math.prod(each.shape)
        of = [SYNONYMS.get(word, word) for word in each.axes]
        if length == layout.n_columns and (of == ["channel"] or (length != layout.n_rows and not of)):
            others["channel"][name] = np.asarray(each.read(EVERYTHING)).ravel()
        elif length == layout.n_rows and of in ([], ["sample"]) and length > 1:
            others["sample"][name] = np.asarray(each.read(EVERYTHING)).ravel()
    return others
