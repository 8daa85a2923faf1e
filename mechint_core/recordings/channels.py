"""Channels that recorded nothing, or not always when the others of their subject did.

Cost: one pass over the responses.
"""

import numpy as np
from jaxtyping import Bool, Int

from mechint_core.recordings.recording import Recording


def stray_gaps(recording: Recording) -> Int[np.ndarray, "channel"]:
    """Return how many values of each channel are NaN where another channel of the same subject has one."""
    gaps = np.zeros(recording.n_channels, np.int64)
    for subject in recording.subjects:
        own = recording.subject == subject
        missing = np.isnan(recording.responses[..., own])
        shown = ~missing.all(axis=-1, keepdims=True)
        gaps[own] = (missing & shown).sum(axis=tuple(range(missing.ndim - 1)))
    silent = np.isnan(recording.responses).all(axis=tuple(range(recording.responses.ndim - 1)))
    gaps[silent] = recording.responses[..., 0].size
    return gaps


def constant_channels(recording: Recording) -> Bool[np.ndarray, "channel"]:
    """Return which channels have one value throughout; not those without any."""
    responses = recording.responses.reshape(-1, recording.n_channels)
    high, low = (
        np.fmax.reduce(responses, axis=0),
        np.fmin.reduce(responses, axis=0),
    )  # both pass over NaN, without a copy
    return (high == low) & (len(responses) > 1)
