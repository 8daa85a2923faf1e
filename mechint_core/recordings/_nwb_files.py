"""Neurodata Without Borders, read as the HDF5 it is: responses to each trial, cut from spike times or from a series.

    fields={"responses": "units"}                   spikes: counts in steps of a window, or the rate over a trial
    fields={"responses": "acquisition/SERIES"}      samples of a series in a window, or their mean over a trial

Trials are the rows of `intervals/trials`, or of the table that `fields={"condition": "intervals/TABLE/COLUMN"}` names;
their columns are fields. Without a window a trial is from its start_time to its stop_time.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np

from mechint_core.errors import RecordingError
from mechint_core.recordings._assembly import Wanted
from mechint_core.recordings._fields import ALIASES, FileField, Selection, held, reading
from mechint_core.recordings._labels import listed

_TABLES: Final = "intervals"
_ELECTRODES: Final = "general/extracellular_ephys/electrodes"


@dataclass(frozen=True, slots=True)
class _Trials:
    """When trials begin and end, and the steps of time within each."""

    start: np.ndarray
    stop: np.ndarray
    offsets: np.ndarray
    """Seconds from a trial's start at which each step begins; empty where a trial is one step."""
    step: float

    @property
    def edges(self) -> tuple[np.ndarray, np.ndarray]:
        """Begin and end of each step of each trial: (sample, time)."""
        if not len(self.offsets):
            return self.start[:, None], self.stop[:, None]
        begin = self.start[:, None] + self.offsets
        return begin, begin + self.step


def nwb_fields(path: Path, file: Any, wanted: Wanted) -> dict[str, FileField]:
    """Return what the trials say, what is known of the channels, and the responses of each to each."""
    table = _trial_table(path, file, wanted.fields.get("condition", ""))
    found = _columns(table, table.name.lstrip("/"), "sample")
    source = _source(path, file, wanted.fields.get("responses", ""))
    units = source.name.lstrip("/") == "units"
    rate = 0.0 if units else _Series.of(source).rate
    trials = _trials(path, table, wanted, rate)
    described = _of_units(file, source) if units else _of_electrodes(file, source)
    found |= {name: held(name, values, ("channel",) if values.ndim == 1 else ()) for name, values in described.items()}
    for ours, theirs in (("subject", "general/subject/subject_id"), ("session", "general/session_id")):
        if theirs in file:
            found[ours] = held(ours, _array(file[theirs]))
    name = wanted.fields.get("responses", "responses")
    responses = _of_spikes(path, name, source, trials) if units else _of_series(path, name, source, trials)
    if len(trials.offsets):
        found["time"] = held("time", trials.offsets + (trials.step / 2 if units else 0.0), ("time",))
    kind = ("spikes" if len(trials.offsets) else "spikes/s") if units else _text(source["data"].attrs.get("unit", ""))
    return {name: responses, **found, "responses/units": held("responses/units", np.array(kind))}


def _trial_table(path: Path, file: Any, named: str) -> Any:
    """Return the table of trials."""
    tables = {each: file[_TABLES][each] for each in file[_TABLES]} if _TABLES in file else {}
    asked = named.split("/")[1] if named.startswith(f"{_TABLES}/") else "trials"
    if asked not in tables and len(tables) == 1:
        asked = next(iter(tables))
    if asked not in tables:
        raise RecordingError(
            f"{path} must have a table of trials. Its interval tables are {listed(tables)}. Name a column of one: "
            "fields={'condition': 'intervals/TABLE/COLUMN'}."
        )
    return tables[asked]


def _source(path: Path, file: Any, named: str) -> Any:
    """Return the units, or the series, that responses are cut from."""
    series: list[str] = []

    def visit(name: str, each: Any) -> None:
        if isinstance(each, h5py.Group) and "data" in each and ("timestamps" in each or "starting_time" in each):
            series.append(name)

    file.visititems(visit)
    there = [*(["units"] if "units" in file and "spike_times" in file["units"] else []), *series]
    ends = [name for name in there if named in (name, name.rsplit("/", 1)[-1])]
    if not named:
        ends = there[:1] if there[:1] == ["units"] else there
    if len(ends) != 1:
        raise RecordingError(
            f"{path} must say what responses are cut from: {listed(there)}. Got {named or 'no choice'}. "
            "Say which: fields={'responses': ...}."
        )
    return file[ends[0]]


def _trials(path: Path, table: Any, wanted: Wanted, rate: float) -> _Trials:
    start, stop = (np.asarray(table[name][()], np.float64) for name in ("start_time", "stop_time"))
    if wanted.window is None:
        return _Trials(start, stop, np.empty(0), 0.0)
    begin, end = wanted.window
    step = wanted.step if wanted.step is not None else (1 / rate if rate else end - begin)
    n_steps = int(np.floor((end - begin) / step + 1e-9)) if step > 0 else 0
    if n_steps < 1:
        raise RecordingError(f"{path} must be cut into at least one step. Got window {wanted.window} and step {step}.")
    return _Trials(start, stop, begin + step * np.arange(n_steps), step)


def _of_spikes(path: Path, name: str, units: Any, trials: _Trials) -> FileField:
    """Return counts of spikes (sample, time, channel), or rates over whole trials (sample, channel)."""
    ends = np.asarray(units["spike_times_index"][()], np.int64)
    starts, (begin, end) = np.r_[0, ends[:-1]], trials.edges

    def cut(channels: slice) -> np.ndarray:
        counts = np.empty((*begin.shape, len(ends[channels])))
        for place, (first, last) in enumerate(zip(starts[channels], ends[channels], strict=True)):
            with reading(path, "NWB file", OSError, RuntimeError):
                spikes = np.sort(np.asarray(units["spike_times"][first:last], np.float64))
            counts[..., place] = np.searchsorted(spikes, end) - np.searchsorted(spikes, begin)
        return counts if len(trials.offsets) else counts / (end - begin)[..., None]

    return _cut_field(name, trials, len(ends), cut)


@dataclass(frozen=True, slots=True)
class _Series:
    """When the samples of a series were taken."""

    times: Callable[[np.ndarray], np.ndarray]
    """Seconds -> the index of the first sample not before."""
    rate: float

    @classmethod
    def of(cls, series: Any) -> "_Series":
        if "timestamps" in series:
            stamps = np.asarray(series["timestamps"][()], np.float64)
            rate = 1 / float(np.median(np.diff(stamps))) if len(stamps) > 1 else 1.0
            return cls(lambda seconds: np.searchsorted(stamps, seconds - 1e-3 / rate), rate)
        rate, first = float(series["starting_time"].attrs["rate"]), float(series["starting_time"][()])
        return cls(lambda seconds: np.ceil((seconds - first) * rate - 1e-3).astype(np.int64), rate)


def _of_series(path: Path, name: str, series: Any, trials: _Trials) -> FileField:
    """Return means of the samples in each step; NaN where the series has none."""
    data, clock = series["data"], _Series.of(series)
    n = data.shape[0]
    begin, end = (np.clip(clock.times(each), 0, n) for each in trials.edges)
    before = clock.times(trials.edges[0]) < 0
    scale, offset = float(data.attrs.get("conversion", 1.0)), float(data.attrs.get("offset", 0.0))

    def cut(channels: slice) -> np.ndarray:
        out = np.full((*begin.shape, len(range(*channels.indices(n_channels)))), np.nan)
        for trial in range(len(begin)):
            low, high = int(begin[trial].min()), int(end[trial].max())
            with reading(path, "NWB file", OSError, RuntimeError):
                block = np.asarray(data[low:high] if data.ndim == 1 else data[low:high, channels], np.float64)
            for place, (first, last) in enumerate(zip(begin[trial] - low, end[trial] - low, strict=True)):
                if last > first and not before[trial, place]:
                    out[trial, place] = block[first:last].mean(axis=0)
        return out * scale + offset

    n_channels = 1 if data.ndim == 1 else data.shape[1]
    return _cut_field(name, trials, n_channels, cut)


def _cut_field(name: str, trials: _Trials, n_channels: int, cut: Callable[[slice], np.ndarray]) -> FileField:
    """Return a field that cuts only the channels it is asked for."""
    n, n_steps = len(trials.start), len(trials.offsets)

    def read(selection: Selection) -> np.ndarray:
        parts = selection or (slice(None),) * (3 if n_steps else 2)
        whole = cut(parts[-1])
        return whole[parts[0], parts[1]] if n_steps else whole[parts[0], 0]

    shape, axes = (
        ((n, n_steps, n_channels), ("sample", "time", "channel"))
        if n_steps
        else ((n, n_channels), ("sample", "channel"))
    )
    return FileField(name, shape, read, axes=axes)


def _columns(table: Any, prefix: str, axis: str) -> dict[str, FileField]:
    """Return the columns of a table that have one entry per row."""
    n = len(table["id"])
    return {
        f"{prefix}/{name}": held(f"{prefix}/{name}", _array(column), (axis,))
        for name, column in table.items()
        if name not in ("id", "start_time", "stop_time") and f"{name}_index" not in table and column.shape == (n,)
        and column.dtype.kind in "fiubSO" and h5py.check_ref_dtype(column.dtype) is None
    }  # fmt: skip


def _of_units(file: Any, units: Any) -> dict[str, np.ndarray]:
    """Return what is known of each unit, and of the first electrode it was seen on."""
    described = {name.rsplit("/", 1)[-1]: each.read(()) for name, each in _columns(units, "units", "channel").items()}
    described.pop("spike_times", None)
    described.pop("electrodes", None)
    described["channel"] = np.asarray(units["id"][()])
    if "electrodes" in units:
        rows = np.asarray(units["electrodes"][()], np.int64)
        first = np.r_[0, np.asarray(units["electrodes_index"][()])[:-1]] if "electrodes_index" in units else slice(None)
        described = {**_at_electrodes(file, rows[first]), **described}
    return _regions_once(described)


def _of_electrodes(file: Any, series: Any) -> dict[str, np.ndarray]:
    rows = np.asarray(series["electrodes"][()], np.int64) if "electrodes" in series else None
    return {} if rows is None else _at_electrodes(file, rows)


def _at_electrodes(file: Any, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Return where these electrodes are."""
    table = file[_ELECTRODES]
    described = {"region": _array(table["location"])[rows]} if "location" in table else {}
    if all(axis in table for axis in "xyz"):
        place = np.column_stack([np.asarray(table[axis][()], np.float64)[rows] for axis in "xyz"])
        described |= {"position": place} if np.isfinite(place).all() else {}
    return described


def _regions_once(described: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the description without the electrodes' region where units have one of their own."""
    own = [name for name in described if name in ALIASES["region"] and name != "region"]
    return {name: values for name, values in described.items() if name != "region" or not own}


def _array(stored: Any) -> np.ndarray:
    if h5py.check_string_dtype(stored.dtype) is not None:
        return np.asarray(stored.asstr(errors="replace")[()])
    return np.asarray(stored[()])


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
