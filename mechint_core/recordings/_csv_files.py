"""Tables as text: one row per response (long), or one row per sample and one column per channel (wide).

    long    condition, channel, response [, repetition, session, subject, region, time]
    wide    condition [, repetition, session, time], one column of numbers for each channel

Columns are separated by comma, semicolon or tab. What is empty is missing.
"""

import csv
import re
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import numpy as np

from mechint_core.errors import RecordingError
from mechint_core.recordings._fields import ALIASES, FileField, held, reading, resolve

_OF_SAMPLE: Final = ("condition", "session", "repetition", "subject", "time")
_NAME: Final = re.compile(r"0\d+|.*_.*")
"""Digits that are a name, 007 or 1_2, though Python takes them for a number."""
_MISSING: Final = frozenset({"", "na", "nan", "n/a", "none", "null"})


@contextmanager
def csv_fields(path: Path, named: Mapping[str, str]) -> Generator[dict[str, FileField]]:
    """Yield the responses of a table as an array, and the rest of its columns as descriptors."""
    columns = columns_of(path)
    ours = _ours(columns, named)
    long = "channel" in ours and "responses" in ours and columns[ours["responses"]].dtype.kind == "f"
    yield _from_long(path, columns, ours) if long else _from_wide(path, columns, ours)


def columns_of(path: Path) -> dict[str, np.ndarray]:
    """Return the columns of a table: floats where every entry is a number or missing, otherwise text."""
    with reading(path, "table in UTF-8", UnicodeDecodeError, OSError, csv.Error):
        text = path.read_text("utf-8-sig")
        head = text.partition("\n")[0]
        rows = [row for row in csv.reader(text.splitlines(), delimiter=max(",;\t", key=head.count)) if any(row)]
    names = [name.strip() for name in rows[0]] if rows else []
    problems: list[str] = []
    if len(rows) < 2 or len(set(names)) < len(names):
        problems.append(
            f"the first line must name each column, once, and others follow. Got {len(rows)} lines: {names}."
        )
    wrong = [number for number, row in enumerate(rows, 1) if len(row) != len(names)]
    if wrong:
        problems.append(
            f"each line must have {len(names)} entries, as the first has. Got {len(wrong)} that do not, the first "
            f"of them line {wrong[0]} with {len(rows[wrong[0] - 1])}."
        )
    if problems:
        raise RecordingError.of(str(path), problems)
    return {name: _column(entries) for name, entries in zip(names, zip(*rows[1:], strict=True), strict=True)}


def _column(entries: tuple[str, ...]) -> np.ndarray:
    stripped = [each.strip() for each in entries]
    if any(_NAME.fullmatch(each) for each in stripped):
        return np.array(stripped)
    try:
        return np.array([np.nan if each.lower() in _MISSING else float(each) for each in stripped])
    except ValueError:
        return np.array(stripped)


def _ours(columns: Mapping[str, np.ndarray], named: Mapping[str, str]) -> dict[str, str]:
    """Return our name -> the column's, as far as it is clear; what is not is said where the fields are assembled."""
    fields = {name: held(name, values) for name, values in columns.items()}
    known = {ours: theirs for ours, theirs in named.items() if theirs in columns and ours in ALIASES}
    return {ours: each.name for ours, each in resolve(fields, known, []).items() if ours != "position"}


def _from_wide(path: Path, columns: dict[str, np.ndarray], ours: dict[str, str]) -> dict[str, FileField]:
    """Return channels from the columns of numbers that describe no sample, or from those named beside the table."""
    of_sample = {ours[name] for name in _OF_SAMPLE if name in ours}
    beside = path.with_suffix(".channels.csv")
    table = columns_of(beside) if beside.exists() else {}
    listed = next((table[name] for name in ("channel", "name", "column") if name in table), None)
    numbers = [name for name, values in columns.items() if values.dtype.kind == "f" and name not in of_sample]
    channels = numbers if listed is None else [str(each) for each in listed.tolist()]
    absent = [name for name in channels if name not in numbers]
    if absent or not channels:
        raise RecordingError(
            f"{path} must have a column of numbers for each channel. Got none for {', '.join(absent[:8]) or 'any'}; "
            f"the columns are {', '.join(columns)}."
        )
    described = {name: held(name, values, ("channel",)) for name, values in table.items()}
    described["channel"] = held("channel", np.array(channels), ("channel",))
    values = np.column_stack([columns[name] for name in channels])
    others = {name: each for name, each in columns.items() if name not in channels}
    if "time" not in ours:
        rest = {name: held(name, each, ("sample",)) for name, each in others.items()}
        return {"responses": held("responses", values, ("sample", "channel")), **rest, **described}
    time, step = np.unique(others.pop(ours["time"]), return_inverse=True)
    keys = [others[ours[name]] for name in _OF_SAMPLE if ours.get(name) in others]
    sample, first = _rows_alike(path, [*keys], step)
    responses = np.full((len(first), len(time), len(channels)), np.nan)
    responses[sample, step] = values
    rest = {name: held(name, each[first], ("sample",)) for name, each in others.items()}
    responses_field = held("responses", responses, ("sample", "time", "channel"))
    return {"responses": responses_field, ours["time"]: held(ours["time"], time, ("time",)), **rest, **described}


def _rows_alike(path: Path, keys: list[np.ndarray], step: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the sample of each row, and the first row of each sample: rows that differ in nothing but the time."""
    codes = [np.unique(each, return_inverse=True)[1] for each in keys]
    _, first, sample = np.unique(np.column_stack(codes), axis=0, return_index=True, return_inverse=True)
    cells = sample.ravel() * (step.max() + 1) + step
    if len(np.unique(cells)) < len(cells):
        raise RecordingError(
            f"{path} must have one row for each sample and time. Got several. Add a column that tells presentations "
            "apart: repetition."
        )
    return sample.ravel(), first


def _from_long(path: Path, columns: dict[str, np.ndarray], ours: dict[str, str]) -> dict[str, FileField]:
    """Return the array (sample[, time], channel) that rows of single responses are the entries of."""

    def codes(*names: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the group of each row by these columns, and the first row of each group, in order of appearance."""
        held_columns = [np.unique(columns[ours[name]], return_inverse=True)[1] for name in names if name in ours]
        if not held_columns:
            return np.zeros(n, int), np.zeros(1, int)
        _, first, group = np.unique(np.column_stack(held_columns), axis=0, return_index=True, return_inverse=True)
        order = np.argsort(first)
        return np.argsort(order)[group.ravel()], first[order]

    n = len(columns[ours["responses"]])
    channel, of_channel = codes("subject", "region", "channel")
    step, of_step = codes("time")
    shown, _ = codes("condition", "session", "repetition")
    times = _occurrence(np.column_stack([shown, channel, step]))
    if "repetition" in ours and times.max() > 0:
        raise RecordingError(
            f"{path} must have one row for each condition, repetition, session, channel and time. Got "
            f"{int((times > 0).sum())} rows that repeat another."
        )
    _, of_sample, sample = np.unique(np.column_stack([times, shown]), axis=0, return_index=True, return_inverse=True)
    order = np.argsort(columns[ours["time"]][of_step]) if "time" in ours else np.zeros(1, int)
    step = np.argsort(order)[step]
    responses = np.full((len(of_sample), len(of_step), len(of_channel)), np.nan)
    responses[sample.ravel(), step, channel] = columns[ours["responses"]]
    fields = {"responses": held("responses", responses, ("sample", "time", "channel"))}
    if "time" in ours:
        fields["time"] = held("time", columns[ours["time"]][of_step][order], ("time",))
    else:
        fields["responses"] = held("responses", responses[:, 0], ("sample", "channel"))
    for name, column in ours.items():
        if name in ("condition", "session", "repetition"):
            fields[column] = held(column, columns[column][of_sample], ("sample",))
        elif name in ("subject", "region", "channel"):
            fields[column] = held(column, columns[column][of_channel], ("channel",))
    return fields


def _occurrence(rows: np.ndarray) -> np.ndarray:
    """Return how many rows like it come before each row."""
    group = np.unique(rows, axis=0, return_inverse=True)[1].ravel()
    order = np.argsort(group, kind="stable")
    starts = np.r_[0, np.cumsum(np.bincount(group))]
    count = np.empty(len(group), np.intp)
    count[order] = np.arange(len(group)) - starts[group[order]]
    return count
