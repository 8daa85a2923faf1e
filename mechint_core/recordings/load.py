"""One call for every format: which one a file is in is told by its first bytes, then by its name.

.npy with tables beside it, .npz, Zarr, MATLAB .mat (all versions), HDF5 .h5 (also netCDF 4), NWB .nwb, .csv and .tsv
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import MappingProxyType
from typing import Final, Literal, get_args

import numpy as np

from mechint_core.errors import ConfigurationError, NotFoundError, RecordingError
from mechint_core.recordings._assembly import Parts, Wanted, assembled
from mechint_core.recordings._csv_files import csv_fields
from mechint_core.recordings._fields import FileField
from mechint_core.recordings._hdf5_files import hdf5_fields
from mechint_core.recordings._labels import SHOWN
from mechint_core.recordings._matlab_files import mat_fields
from mechint_core.recordings._numpy_files import npy_fields, npz_fields
from mechint_core.recordings._selection import Asked
from mechint_core.recordings._zarr_files import zarr_fields
from mechint_core.recordings.channels import constant_channels, stray_gaps
from mechint_core.recordings.join import join_recordings
from mechint_core.recordings.recording import Recording

BadChannels = Literal["refuse", "drop", "keep"]
Format = Literal["npy", "npz", "zarr", "mat", "hdf5", "csv"]
NO_FIELDS: Final[Mapping[str, str]] = MappingProxyType({})
SUFFIXES: Final[Mapping[str, Format]] = {
    ".npy": "npy", ".npz": "npz", ".zarr": "zarr", ".mat": "mat", ".h5": "hdf5", ".hdf5": "hdf5", ".hdf": "hdf5",
    ".nwb": "hdf5", ".nc": "hdf5", ".csv": "csv", ".tsv": "csv", ".txt": "csv",
}  # fmt: skip
_FIRST_BYTES: Final[Mapping[bytes, Format]] = {
    b"\x93NUMPY": "npy", b"PK\x03\x04": "npz", b"\x89HDF\r\n\x1a\n": "hdf5", b"MATLAB 7.3": "hdf5",
    b"MATLAB 5.0": "mat",
}  # fmt: skip
_HDF5_AT: Final = (0, 512, 1024, 2048)
"""HDF5 may begin after a block of the user's own."""


def load_recording(
    path: str | Path,
    *,
    fields: Mapping[str, str] = NO_FIELDS,
    axes: Sequence[str] | None = None,
    region: Asked = None,
    subject: Asked = None,
    session: Asked = None,
    time: tuple[float, float] | None = None,
    window: tuple[float, float] | None = None,
    step: float | None = None,
    bad_channels: BadChannels = "refuse",
) -> Recording:
    """Read a recording from a file, or say everything that keeps it from being one.

    Pickles are never loaded. Where a part is asked for, only the smallest block that holds it is read (npy, HDF5,
    MATLAB v7.3, Zarr, NWB). A file in which each sample has a subject is split by subject and joined on conditions.

    Parameters
    ----------
    path
        A file, or the folder of a Zarr group.
    fields
        Ours -> the file's, where names alone do not tell: responses, condition, session, repetition, subject, region,
        position, time, channel, units. A path within the file, or its last part.
    axes
        What each axis of the responses is: sample (or condition, repetition), time, channel, subject. Left out: what
        the file says, then (sample[, time], channel), or the one order in which the lengths of the descriptors fit.
    region, subject, session, time
        The part that is wanted, as in `Recording.select`.
    window, step
        NWB only: seconds from the start of each trial, and of one time step.
    bad_channels
        What to do with channels that are constant, or NaN where other channels of their subject are not: "refuse" the
        file, "drop" them or "keep" them.

    Raises
    ------
    NotFoundError
        If there is no such file, or it has no such region, subject, session or time.
    RecordingError
        If the format is unknown or the file is not whole, a field is missing or ambiguous, lengths disagree, or
        whatever else `Recording` refuses.
    ConfigurationError
        If `bad_channels` is none of the three, or a window is asked for of a file that is not NWB.
    """
    at = Path(path)
    if bad_channels not in get_args(BadChannels):
        raise ConfigurationError(f"bad_channels must be one of {get_args(BadChannels)}. Got {bad_channels!r}.")
    if not at.exists():
        raise NotFoundError(f"{at} must be a file or the folder of a Zarr group. There is none.")
    wanted = Wanted(dict(fields), tuple(axes) if axes else None, region, subject, session, time, window, step)
    with _opened(at, _format(at), wanted) as found:
        parts = assembled(str(at), found, wanted)
    return _without_bad(at, _recording(at, parts), bad_channels)


def _opened(path: Path, kind: Format, wanted: Wanted) -> AbstractContextManager[dict[str, FileField]]:
    """Return the open file's fields."""
    if wanted.window is not None and kind != "hdf5":
        raise ConfigurationError(f"a window is cut from NWB files only. {path} is {kind}.")
    if kind == "hdf5":
        return hdf5_fields(path, wanted)
    if kind == "csv":
        return csv_fields(path, wanted.fields)
    return {"npy": npy_fields, "npz": npz_fields, "zarr": zarr_fields, "mat": mat_fields}[kind](path)


def _format(path: Path) -> Format:
    """Return the format of a file."""
    if path.is_dir():
        return "zarr"
    with path.open("rb") as file:
        start = file.read(max(_HDF5_AT) + 8)
    for signature, kind in _FIRST_BYTES.items():
        if start.startswith(signature):
            return kind
    if any(start[at : at + 8] == b"\x89HDF\r\n\x1a\n" for at in _HDF5_AT):
        return "hdf5"
    named = SUFFIXES.get(path.suffix.lower())
    if named is None:
        raise RecordingError(
            f"{path} must be in a known format: {', '.join(SUFFIXES)}. Got {path.suffix or 'no suffix'}, and first "
            f"bytes {start[:8]!r}, which are none of theirs."
        )
    if named in ("npy", "npz", "hdf5") or (named == "csv" and b"\0" in start):
        got = f"first bytes {start[:8]!r}" if start else "an empty file"
        raise RecordingError(f"{path} must be {named}, as its name says. Got {got}.")
    return named


def _recording(path: Path, parts: Parts) -> Recording:
    """Return the parts as one recording; its subject is the file's name if the file does not say whose it is."""
    if parts.owner is None:
        labels = {"subject": np.full(parts.responses.shape[-1], path.stem), **parts.labels}
        return _checked(path, parts, labels, np.ones(len(parts.responses), bool))
    names = np.unique(parts.owner)
    each = []
    for name in names.tolist():
        labels = {**parts.labels, "subject": np.full(parts.responses.shape[-1], name)}
        each.append(_checked(path, parts, labels, parts.owner == name))
    return join_recordings(each)


def _checked(path: Path, parts: Parts, labels: Mapping[str, np.ndarray], rows: np.ndarray) -> Recording:
    per_channel = ("subject", "region")
    try:
        return Recording(
            responses=parts.responses[rows],
            time=parts.time,
            position=parts.position,
            units=parts.units,
            sample_descriptors={name: values[rows] for name, values in parts.sample_descriptors.items()},
            channel_descriptors=parts.channel_descriptors,
            **{name: values if name in per_channel else values[rows] for name, values in labels.items()},
        )
    except RecordingError as error:
        raise RecordingError(str(error).replace("a recording must", f"{path} must", 1)) from error


def _without_bad(path: Path, recording: Recording, policy: BadChannels) -> Recording:
    """Return the recording without bad channels, or refuse it because of them."""
    if policy == "keep":
        return recording
    gaps, constant = stray_gaps(recording), constant_channels(recording)
    bad = (gaps > 0) | constant
    if policy == "drop" and not bad.all():
        return recording.take(~bad) if bad.any() else recording
    remedy = 'Leave them out by bad_channels="drop", or have them as they are by "keep".'
    problems: list[str] = []
    if gaps.any():
        of = recording.responses[..., 0].size
        counts = _few(f"channel {place}: {gaps[place]} of {of}" for place in np.flatnonzero(gaps))
        problems.append(
            f"{int((gaps > 0).sum())} of {len(gaps)} channels are NaN where others of their subject are not: {counts}. "
            f"{remedy}"
        )
    if constant.any():
        which = _few(f"channel {place}" for place in np.flatnonzero(constant))
        problems.append(f"{int(constant.sum())} of {len(constant)} channels are the same throughout: {which}. {remedy}")
    if problems:
        raise RecordingError.of(str(path), problems)
    return recording


def _few(said: Iterable[str]) -> str:
    every = list(said)
    return ", ".join(every[:SHOWN]) + (f" and {len(every) - SHOWN} more" if len(every) > SHOWN else "")
