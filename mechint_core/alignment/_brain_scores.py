"""What every way of comparing a network with recordings answers: scores of subjects over time, and how sure they are.

    score_t     mean over subjects s of score_st
    interval    conditions and subjects are drawn anew, and spread as far as one sample of both does: what drawing both
                counts twice is taken out (`corrected_variance`)
    p_t         share of relabellings in which the largest score of any time is as high

Source: [@schutt2023] (two-factor bootstrap), [@westfall1993] (the maximum).
Cost: subjects times draws times times.
Chunked over: nothing.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from mechint_core.alignment._subjects import corrected_variance
from mechint_core.errors import DegenerateInputError, ShapeError
from mechint_core.random import generator

HALVES = 10
"""Random halves of the repetitions whose agreement is averaged."""
FEWEST_CONDITIONS = 5
"""Fewer have no dissimilarities, and no held-out part, worth the name."""


@dataclass(frozen=True, slots=True)
class BrainScores:
    """Scores of every subject at every time."""

    score: Float[np.ndarray, "subject time"]
    drawn: Float[np.ndarray, "draw subject time"]
    """The scores in each draw of conditions."""
    null: Float[np.ndarray, "relabelling time"]
    """The mean score over subjects in each relabelling of conditions: the same relabellings at every time."""
    ceiling_low: Float[np.ndarray, "time"]
    """What the recording's noise allows, from below; NaN where nothing tells."""
    ceiling_high: Float[np.ndarray, "time"]
    """The same from above."""

    def draws(self, seed: int, n_conditions: int) -> Float[np.ndarray, "draw time"]:
        """Return the mean score with conditions and subjects drawn anew, spread as far as one sample of both is."""
        n_draws, n_subjects, _ = self.drawn.shape
        conditions = self.drawn.mean(axis=1)
        if n_subjects == 1:
            return conditions
        even = np.full(n_subjects, 1 / n_subjects)
        counts = generator(seed, "subjects").multinomial(n_subjects, even, size=n_draws) / n_subjects
        both = np.einsum("bs,bst->bt", counts, self.drawn)
        of_conditions, of_both = (np.nanvar(each, axis=0) for each in (conditions, both))
        of_subjects = self.score.var(axis=0) / n_subjects
        variance = corrected_variance(of_conditions, of_subjects, of_both, n_conditions, n_subjects)
        spread = np.sqrt(variance / np.maximum(of_both, np.finfo(np.float64).tiny))
        return self.score.mean(axis=0) + spread * (both - np.nanmean(both, axis=0))


@dataclass(frozen=True, slots=True)
class Recorded:
    """A region's responses, of the conditions that every subject answered at every time."""

    responses: Float[np.ndarray, "condition repetition time channel"]
    subject: Int[np.ndarray, "channel"]
    """From 0 on, without gaps."""
    kept: Int[np.ndarray, "condition"]
    """Which of the conditions given these are."""

    @property
    def mean(self) -> Float[np.ndarray, "condition time channel"]:
        """Mean over the repetitions that there are."""
        return np.nanmean(self.responses, axis=1)

    def of(self, subject: int) -> Float[np.ndarray, "condition repetition time channel"]:
        """Return one subject's channels."""
        return self.responses[..., self.subject == subject]

    def by_subject(
        self, per_channel: Float[np.ndarray, "*draw time_channel"]
    ) -> Float[np.ndarray, "*draw subject time"]:
        """Return the mean over each subject's channels of what is known of every time and channel."""
        split = per_channel.reshape(*per_channel.shape[:-1], self.responses.shape[2], -1)
        parts = [split[..., self.subject == each].mean(axis=-1) for each in range(self.n_subjects)]
        return np.stack(parts, axis=-2)

    @property
    def n_subjects(self) -> int:
        """How many subjects have channels here."""
        return int(self.subject.max()) + 1


def recorded(responses: np.ndarray, subject: np.ndarray | None, n_conditions: int) -> Recorded:
    """Check the recording, and keep the conditions that every channel answered at least once.

    Raises
    ------
    ShapeError
        If it is not (condition, repetition, time, channel) with the conditions of the network, or `subject` has
        another number of channels, or fewer than 5 conditions are left.
    DegenerateInputError
        If it holds infinity.
    """
    if responses.ndim != 4 or 0 in responses.shape or len(responses) != n_conditions:
        raise ShapeError(
            f"responses must be (condition, repetition, time, channel) with the {n_conditions} conditions of x. "
            f"Got shape {responses.shape}."
        )
    if subject is not None and subject.shape != responses.shape[-1:]:
        raise ShapeError(f"subject must have one number per channel, {responses.shape[-1]}. Got {subject.shape}.")
    if np.any(np.isinf(responses)):
        raise DegenerateInputError("responses must be finite, or NaN where nothing was recorded. Got infinity.")
    answered = np.any(~np.isnan(responses), axis=1).all(axis=(1, 2))
    if answered.sum() < FEWEST_CONDITIONS:
        raise ShapeError(
            f"at least {FEWEST_CONDITIONS} conditions must be answered by every channel. Got {answered.sum()} of "
            f"{len(answered)}: leave out the subjects or channels that miss most."
        )
    numbers = np.zeros(responses.shape[-1], np.int64) if subject is None else subject
    renumbered = np.unique(numbers, return_inverse=True)[1].reshape(-1)
    return Recorded(responses[answered].astype(np.float64), renumbered, np.flatnonzero(answered))


def halves(
    recording: Recorded, seed: int
) -> Iterator[tuple[Float[np.ndarray, "condition time channel"], Float[np.ndarray, "condition time channel"]]]:
    """Yield the means of two random halves of each condition's repetitions, several times.

    Yields nothing where a channel was not given every condition twice.
    """
    responses = recording.responses
    there = ~np.isnan(responses).any(axis=2)  # a presentation counts for a channel if it is whole
    if there.sum(axis=1).min() < 2:
        return
    for half in range(HALVES):
        rank = np.where(there, generator(seed, "halves", half).random(there.shape[:2])[:, :, None], np.inf)
        place = rank.argsort(axis=1).argsort(axis=1)
        first = there & (place % 2 == 0)
        yield tuple(  # type: ignore[misc] - two of them
            np.nanmean(np.where(which[:, :, None], responses, np.nan), axis=1) for which in (first, there & ~first)
        )
