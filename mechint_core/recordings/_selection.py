"""Which samples, channels and time steps are asked for, and which presentation of its condition a sample is."""

from collections.abc import Sequence

import numpy as np

from mechint_core.errors import NotFoundError
from mechint_core.recordings._labels import listed

Label = str | int
Asked = Label | Sequence[Label] | None
"""One label, several, or None for all."""


def chosen(name: str, asked: Asked, labels: np.ndarray) -> np.ndarray:
    """Return which of the labels are asked for; NotFoundError if one of those asked for is not there."""
    if asked is None:
        return np.ones(len(labels), bool)
    wanted = {str(each) for each in ([asked] if isinstance(asked, str | int) else asked)}
    there = np.array([str(each) for each in labels.tolist()])
    missing = sorted(wanted - set(there.tolist()))
    if missing or not wanted:
        raise NotFoundError(f"{name} must be among {listed(np.unique(there).tolist())}. Got {listed(missing)}.")
    return np.isin(there, sorted(wanted))


def within(asked: tuple[float, float] | None, time: np.ndarray) -> np.ndarray:
    """Return which time steps lie in the stretch asked for; NotFoundError if none does."""
    if asked is None:
        return np.ones(len(time), bool)
    steps = (time >= asked[0]) & (time <= asked[1])
    if not steps.any():
        span = f"from {time[0]:g} to {time[-1]:g} s" if len(time) else "responses without time"
        raise NotFoundError(f"time must be a stretch (first, last) of what was recorded: {span}. Got {asked}.")
    return steps


def rank_within(key: np.ndarray, session: np.ndarray, condition: np.ndarray) -> np.ndarray:
    """Return each sample's place among those of its condition, by session and key.

    Counted over sessions: the repetitions of two sessions never share a place.
    """
    codes = [np.unique(each, return_inverse=True)[1] for each in (key, session, condition)]
    order, group = np.lexsort(codes), codes[-1]
    starts = np.r_[0, np.cumsum(np.bincount(group))]
    rank = np.empty(len(group), np.intp)
    rank[order] = np.arange(len(group)) - starts[group[order]]
    return rank
