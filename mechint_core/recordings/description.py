"""What a recording holds, in words: the table behind `mechint recording FILE`."""

import numpy as np

from mechint_core.recordings._labels import listed
from mechint_core.recordings.channels import constant_channels, stray_gaps
from mechint_core.recordings.recording import Recording


def describe_recording(recording: Recording) -> str:
    """Return what was recorded, how often, of whom and where, and what is odd about it.

    Examples
    --------
    >>> recording = Recording(responses=np.array([[1.0], [5.0], [3.0]]), condition=np.array(["cat", "dog", "cat"]))
    >>> print(describe_recording(recording))
    2 conditions, 1 channels, 1 subjects, 1 regions, 1 sessions
    conditions   'cat', 'dog'
    repetitions  1 to 2 of each condition, 3 samples in all
    responses    from 1 to 5, none missing
    <BLANKLINE>
    subject  region  channels  samples  missing  constant
    1        all            1        3       0%         0
    """
    counts = np.unique(recording.condition, return_counts=True)[1]
    numbers = {
        "conditions": len(recording.conditions),
        "channels": recording.n_channels,
        "subjects": len(recording.subjects),
        "regions": len(recording.regions),
        "sessions": len(recording.sessions),
    }
    missing = float(np.isnan(recording.responses).mean())
    span = f"from {np.nanmin(recording.responses):.4g} to {np.nanmax(recording.responses):.4g}"
    lines = {
        "conditions": listed(recording.conditions.tolist()),
        "repetitions": f"{counts.min()} to {counts.max()} of each condition, {recording.n_samples} samples in all",
        "time": _times(recording.time),
        "positions": f"{recording.position.shape[1]} coordinates per channel" if recording.position.size else "",
        "responses": f"{span} {recording.units}".rstrip() + f", {f'{missing:.1%}' if missing else 'none'} missing",
        "of samples": ", ".join(sorted(recording.sample_descriptors)),
        "of channels": ", ".join(sorted(recording.channel_descriptors)),
    }
    said = [f"{name:<12} {text}" for name, text in lines.items() if text]
    return "\n".join([", ".join(f"{n} {name}" for name, n in numbers.items()), *said, "", *_table(recording)])


def _times(time: np.ndarray) -> str:
    return f"{len(time)} steps from {time[0]:g} to {time[-1]:g} s" if len(time) else ""


def _table(recording: Recording) -> list[str]:
    """Return one line per subject and region."""
    gaps, constant = stray_gaps(recording), constant_channels(recording)
    rows = [("subject", "region", "channels", "samples", "missing", "constant")]
    for subject in recording.subjects.tolist():
        for region in recording.regions.tolist():
            own = (recording.subject == subject) & (recording.region == region)
            if own.any():
                missing = np.isnan(recording.responses[..., own])
                n_samples = int((~missing.all(axis=tuple(range(1, missing.ndim)))).sum())
                share = gaps[own].sum() / max(1, n_samples * missing[0].size)
                rows.append(
                    (
                        str(subject),
                        str(region),
                        str(int(own.sum())),
                        str(n_samples),
                        f"{share:.0%}",
                        str(int(constant[own].sum())),
                    )
                )
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    return [
        "  ".join(
            _aligned(entry, width, place > 1) for place, (entry, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _aligned(entry: str, width: int, right: bool) -> str:
    return entry.rjust(width) if right else entry.ljust(width)
