"""A configuration's recordings: read, lined up with the recorded samples, and committed to the store region by region.

What a technique is given is (condition, repetition, time, channel): row i answers the same stimulus as row i of the
activations that it is compared with. Samples that no recording holds are left out on both sides.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from flows.datasets import commit_dataset
from flows.progress import say
from flows.sections import BrainSection
from mechint_core.errors import ConfigurationError
from mechint_core.models import load_factory
from mechint_core.recordings import Recording, join_recordings, load_recording
from mechint_core.store import ActivationStore
from tasks.references import ArrayReference, Literals

AXES = ("condition", "repetition", "time", "channel")
FEWEST = 5
"""Conditions: fewer have no dissimilarities worth comparing."""


@dataclass(frozen=True, slots=True)
class BrainData:
    """A recording in the store, lined up with the samples of the recorded data set."""

    seen: ArrayReference
    """(sample,): which samples the recording holds."""
    responses: Mapping[str, ArrayReference]
    """Region -> (condition, repetition, time, channel)."""
    subject: Mapping[str, Literals]
    """Region -> the number of the subject that each channel belongs to."""
    subjects: tuple[str, ...]
    """Their names, in the order of their numbers."""
    time: Literals
    """Seconds, one for each step or window."""


Arrays = Mapping[str, Mapping[str, np.ndarray]]
"""Data set -> field -> its values."""


def commit_recording(
    store: ActivationStore,
    run: str,
    section: BrainSection,
    arrays: Arrays,
    dataset: str,
) -> BrainData:
    """Read a section's recording, line it up with the samples of `dataset`, and commit it.

    Raises
    ------
    ConfigurationError
        If it names what is not there: a field, a region, a time, or no stimulus that is in the data set.
    RecordingError
        If a file is not the recording it should be: every problem that it has.
    """
    recording = _load(section)
    stimuli = _stimuli(section, arrays, dataset)
    known = {str(each) for each in recording.conditions}
    seen = np.array([str(each) in known for each in stimuli])
    if seen.sum() < FEWEST:
        raise ConfigurationError(
            f"brains: at least {FEWEST} samples of {dataset} must be conditions of the recording {section.name}. "
            f"Got {seen.sum()}: the samples are {_few(stimuli)}, the conditions {_few(recording.conditions)}. "
            "Name the field that says which stimulus each sample is by `stimuli`."
        )
    if len(known) > seen.sum():
        say(
            f"recording {section.name}: {len(known) - seen.sum()} of {len(known)} conditions are no sample of {dataset}"
        )
    name, subjects = f"{run}.{section.name}", tuple(str(each) for each in recording.subjects)
    time, windows = _windows(section, recording)
    regions = {
        region: recording.select(region=region) for region in _regions(section, [str(r) for r in recording.regions])
    }
    responses = {region: _lined_up(each, stimuli[seen], windows) for region, each in regions.items()}
    committed = commit_dataset(store, name, responses, axes=dict.fromkeys(responses, AXES))
    return BrainData(
        seen=commit_dataset(store, f"{name}.samples", {"seen": seen})["seen"],
        responses={region: committed[region] for region in regions},
        subject={
            region: Literals(values=[subjects.index(str(one)) for one in each.subject])
            for region, each in regions.items()
        },
        subjects=subjects,
        time=Literals(values=time),
    )


def _load(section: BrainSection) -> Recording:
    if section.factory is not None:
        made: Any = load_factory(section.factory)(**section.arguments)
        if not isinstance(made, Recording):
            raise ConfigurationError(
                f"brains: the factory of {section.name} must return a Recording. Got {type(made).__name__}."
            )
        return made
    parts = [
        load_recording(
            path,
            fields=section.fields,
            axes=section.axes or None,
            bad_channels=section.bad_channels,
            window=section.window,
            step=section.step,
        )
        for path in section.recording
    ]
    return parts[0] if len(parts) == 1 else join_recordings(parts, subjects=section.subjects or None)


def _stimuli(section: BrainSection, arrays: Arrays, dataset: str) -> np.ndarray:
    """Return which condition each sample is; no condition may be there twice."""
    if not section.stimuli:
        return np.arange(len(next(iter(arrays[dataset].values()))))
    of, _, field = section.stimuli.partition(".")
    if of != dataset or field not in arrays[dataset]:
        raise ConfigurationError(
            f"brains: stimuli of {section.name} must be a field of the recorded data set: "
            f"{', '.join(f'{dataset}.{each}' for each in arrays[dataset])}. Got {section.stimuli!r}."
        )
    stimuli = arrays[dataset][field]
    if stimuli.ndim != 1 or len(np.unique(stimuli)) != len(stimuli):
        raise ConfigurationError(
            f"brains: {section.stimuli} must hold one number or word per sample, each once. Got shape {stimuli.shape} "
            f"with {len(np.unique(stimuli))} different: record each stimulus once."
        )
    return stimuli


def _regions(section: BrainSection, there: list[str]) -> list[str]:
    """Return the regions that the section means, in the recording's order."""
    for pattern in section.regions:
        if not any(fnmatchcase(region, pattern) for region in there):
            raise ConfigurationError(
                f"brains: no region of {section.name} matches {pattern!r}. There are: {', '.join(there)}."
            )
    wanted = section.regions or ["*"]
    return [region for region in there if any(fnmatchcase(region, pattern) for pattern in wanted)]


def _windows(section: BrainSection, recording: Recording) -> tuple[list[float], list[slice | np.ndarray]]:
    """Return the middle of each window in seconds, and the time steps in it; one window where there is no time."""
    if not len(recording.time):
        if section.windows:
            raise ConfigurationError(f"brains: windows of {section.name} need a recording with time. It has none.")
        return [0.0], [slice(None)]
    time = np.asarray(recording.time, dtype=np.float64)
    if not section.windows:
        return time.tolist(), [slice(step, step + 1) for step in range(len(time))]
    inside = [np.flatnonzero((time >= start) & (time < end)) for start, end in section.windows]
    for (start, end), steps in zip(section.windows, inside, strict=True):
        if not len(steps):
            raise ConfigurationError(
                f"brains: the window {start} to {end} s of {section.name} must hold a time step. "
                f"Got none: the recording goes from {time[0]:g} to {time[-1]:g} s."
            )
    return [(start + end) / 2 for start, end in section.windows], list(inside)


def _lined_up(recording: Recording, stimuli: np.ndarray, windows: list[slice | np.ndarray]) -> np.ndarray:
    """Return (condition, repetition, time, channel), NaN where a subject was not shown a condition so often."""
    responses = recording.by_condition(stimuli)
    if responses.ndim == 3:
        responses = responses[:, :, None]
    joined = [responses[:, :, steps].mean(axis=2) for steps in windows]
    return np.stack(joined, axis=2).transpose(1, 0, 2, 3).astype(np.float32)


def _few(values: np.ndarray) -> str:
    shown = ", ".join(str(each) for each in values[:3])
    return shown if len(values) <= 3 else f"{shown}, ... ({len(values)})"
