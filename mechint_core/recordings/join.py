"""Several recordings as one: other subjects, other channels, other trials, the same conditions.

Samples are matched by condition and by which presentation of it they are, in each recording's own count; a subject with
fewer presentations, or one that never saw a condition, is NaN there.

Cost: one copy of all responses.
"""

from collections.abc import Sequence

import numpy as np

from mechint_core.errors import RecordingError
from mechint_core.recordings._labels import duplicates, listed
from mechint_core.recordings._selection import Label, rank_within
from mechint_core.recordings.recording import Recording


def join_recordings(recordings: Sequence[Recording], *, subjects: Sequence[Label] | None = None) -> Recording:
    """Return one recording with the channels of all and the conditions of any.

    Parameters
    ----------
    recordings
        At least one, with the same time steps and units.
    subjects
        One name per recording, in place of the names in them. Two recordings may have the same name: two probes in one
        animal.

    Returns
    -------
    Recording
        Sessions are kept if all recordings agree about each sample's, otherwise counted as one: select sessions before
        joining. Sample descriptors are dropped, channel descriptors kept that all recordings have.

    Raises
    ------
    RecordingError
        If there is none, times or units differ, a subject is in two recordings and no `subjects` are given, or they are
        not as many as recordings. All of it at once.

    Examples
    --------
    >>> first = Recording(responses=np.array([[1.0], [2.0]]), condition=np.array(["cat", "dog"]))
    >>> second = Recording(responses=np.array([[3.0], [4.0]]), condition=np.array(["dog", "dog"]))
    >>> join_recordings([first, second], subjects=["a", "b"]).by_condition().tolist()
    [[[1.0, nan], [2.0, 3.0]], [[nan, nan], [nan, 4.0]]]
    """
    _check(recordings, subjects)
    named = [
        each.subject if subjects is None else np.full(each.n_channels, subjects[index])
        for index, each in enumerate(recordings)
    ]
    conditions = _all_conditions(recordings)
    blocks = [each.by_condition(conditions) for each in recordings]
    n_repetitions = max(len(each) for each in blocks)
    together = np.concatenate([_padded(each, n_repetitions) for each in blocks], axis=-1)
    shown = np.asarray(~np.isnan(together).all(axis=tuple(range(2, together.ndim))))
    repetition, column = np.nonzero(shown)
    return Recording(
        responses=together[shown],
        condition=np.array(conditions)[column],
        repetition=repetition,
        session=_sessions(recordings, conditions, shown),
        subject=_concatenated(named),
        region=_concatenated([each.region for each in recordings]),
        position=_positions(recordings),
        time=recordings[0].time,
        units=recordings[0].units,
        channel_descriptors=_descriptors(recordings),
    )


def _check(recordings: Sequence[Recording], subjects: Sequence[Label] | None) -> None:
    problems: list[str] = []
    if not recordings:
        raise RecordingError.of("what is joined", ["there must be at least one recording. Got none."])
    first = recordings[0]
    for index, each in enumerate(recordings[1:], 1):
        if each.time.shape != first.time.shape or not np.allclose(each.time, first.time, rtol=0, atol=1e-9):
            problems.append(
                f"all recordings must have the same time steps. Got {len(first.time)} in recording 0 and "
                f"{len(each.time)}, or other times, in recording {index}. Select the stretch they share."
            )
        if each.units != first.units:
            problems.append(f"all recordings must have the same units. Got {first.units!r} and {each.units!r}.")
    if subjects is not None and len(subjects) != len(recordings):
        problems.append(f"subjects must name each of {len(recordings)} recordings. Got {len(subjects)} names.")
    twice = duplicates([str(name) for each in recordings for name in each.subjects.tolist()])
    if subjects is None and twice:
        problems.append(
            f"each subject must be in one recording. Got {listed(twice)} in several. Name them: "
            "join_recordings(..., subjects=[...]), with the same name for two recordings of one subject."
        )
    if problems:
        raise RecordingError.of("what is joined", problems)


def _all_conditions(recordings: Sequence[Recording]) -> list[Label]:
    """Return each condition of any recording, sorted: integers if all are, otherwise text."""
    every: set[Label] = {label for each in recordings for label in each.conditions.tolist()}
    integers = [label for label in every if isinstance(label, int)]
    return [*sorted(integers)] if len(integers) == len(every) else [*sorted({str(label) for label in every})]


def _padded(block: np.ndarray, n_repetitions: int) -> np.ndarray:
    missing = np.full((n_repetitions - len(block), *block.shape[1:]), np.nan, block.dtype)
    return np.concatenate([block, missing])


def _concatenated(labels: Sequence[np.ndarray]) -> np.ndarray:
    """Return one array of them all: text, if some are text and some are numbers."""
    alike = len({each.dtype.kind in "iufb" for each in labels}) == 1
    return np.concatenate([each if alike else each.astype(np.str_) for each in labels])


def _sessions(recordings: Sequence[Recording], conditions: list[Label], shown: np.ndarray) -> np.ndarray:
    """Return the session of each sample shown; nothing, which is one session, if two recordings disagree about one."""
    place = {str(label): index for index, label in enumerate(conditions)}
    agreed = np.full(shown.shape, "", object)
    for each in recordings:
        column = [place[str(label)] for label in each.condition.tolist()]
        slot = rank_within(each.repetition, each.session, each.condition)
        own = np.full(shown.shape, "", object)
        own[slot, column] = each.session.astype(np.str_)
        if np.any((agreed != "") & (own != "") & (agreed != own)):
            return np.empty(0)
        agreed = np.where(agreed == "", own, agreed)
    return agreed[shown].astype(np.str_)


def _positions(recordings: Sequence[Recording]) -> np.ndarray:
    """Return positions with as many coordinates as any recording has; NaN for channels whose place is not known."""
    width = max(each.position.shape[1] for each in recordings)
    if len({each.position.shape[1] for each in recordings} - {0}) > 1:
        raise RecordingError.of("what is joined", ["positions must all have two or all three coordinates. Got both."])
    wide = [np.full((each.n_channels, width), np.nan) for each in recordings]
    for block, each in zip(wide, recordings, strict=True):
        block[:, : each.position.shape[1]] = each.position
    return np.concatenate(wide)


def _descriptors(recordings: Sequence[Recording]) -> dict[str, np.ndarray]:
    names = set.intersection(*(set(each.channel_descriptors) for each in recordings))
    return {
        name: _concatenated([each.channel_descriptors[name] for each in recordings])
        for name in sorted(names)
        if len({each.channel_descriptors[name].shape[1:] for each in recordings}) == 1
    }
