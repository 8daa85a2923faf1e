"""What a brain answered: one response of every channel to every presentation of a stimulus, and what is known of each.

    responses[sample, channel]  or  responses[sample, time, channel];   NaN where a subject was not recorded

A sample is one presentation of one condition (stimulus, class); a channel (electrode, neuron, voxel, sensor) belongs to
one subject and one region. `by_condition` is what the techniques take: repetition, condition, [time,] channel.

Cost: reading it once per selection.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from mechint_core.errors import ConfigurationError, NotFoundError, RecordingError
from mechint_core.recordings._labels import as_floats, as_labels, duplicates, listed
from mechint_core.recordings._selection import Asked, Label, chosen, rank_within, within
from mechint_core.synthetic.brain_recordings import BrainRecordings


def _unsaid() -> np.ndarray:
    return np.empty(0)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Recording:
    """Responses of channels to repeated conditions; what an empty array was given for is filled in.

    Raises
    ------
    RecordingError
        If responses do not have two or three axes, or hold infinity; a length disagrees with theirs; condition,
        session or repetition of a sample is unknown or the same as another's; times do not rise. All of it at once.

    Examples
    --------
    >>> recording = Recording(responses=np.array([[1.0], [5.0], [3.0]]), condition=np.array(["cat", "dog", "cat"]))
    >>> recording.by_condition()[:, :, 0].tolist()
    [[1.0, 5.0], [3.0, nan]]
    """

    responses: np.ndarray
    """(sample, channel) or (sample, time, channel); NaN where there is none."""
    condition: np.ndarray
    """(sample,) What was shown: strings or integers."""
    session: np.ndarray = field(default_factory=_unsaid)
    """(sample,) When it was recorded; one session if not said."""
    repetition: np.ndarray = field(default_factory=_unsaid)
    """(sample,) Which presentation of the condition in its session; counted in order of the samples if not said."""
    subject: np.ndarray = field(default_factory=_unsaid)
    """(channel,) Whose channel it is; one subject if not said."""
    region: np.ndarray = field(default_factory=_unsaid)
    """(channel,) Which part of the brain the channel is in; one region if not said."""
    position: np.ndarray = field(default_factory=_unsaid)
    """(channel, coordinate) Where the channel is: two or three coordinates; none if not said."""
    time: np.ndarray = field(default_factory=_unsaid)
    """(time,) Seconds from the onset of the stimulus, of each time step; empty where responses have no time."""
    units: str = ""
    """Of the responses: spikes, spikes/s, uV, z, ..."""
    sample_descriptors: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Whatever else is known of each sample."""
    channel_descriptors: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Whatever else is known of each channel."""

    def __post_init__(self) -> None:
        problems: list[str] = []
        self._set("responses", as_floats("responses", self.responses, problems))
        if self.responses.ndim not in (2, 3) or 0 in self.responses.shape:
            problems.append(
                f"responses must have axes (sample, channel) or (sample, time, channel), none of them empty. Got shape "
                f"{self.responses.shape}."
            )
            raise RecordingError.of("a recording", problems)
        n_infinite = int(np.isinf(self.responses).sum())
        if n_infinite:
            problems.append(f"responses must be finite, or NaN where there is none. Got {n_infinite} infinite.")
        self._set_labels(problems)
        self._set_coordinates(problems)
        if not problems:
            self._set_repetition(problems)
        if problems:
            raise RecordingError.of("a recording", problems)

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _set_labels(self, problems: list[str]) -> None:
        """Make labels strings or integers, and fill in those that were not said."""
        lengths = {"sample": self.n_samples, "channel": self.n_channels}
        for name, axis, unsaid in (
            ("condition", "sample", None),
            ("session", "sample", "1"),
            ("subject", "channel", "1"),
            ("region", "channel", "all"),
        ):
            given = np.asarray(getattr(self, name))
            if unsaid is not None and given.shape == (0,):
                given = np.full(lengths[axis], unsaid)
            self._set(name, as_labels(name, given, lengths[axis], axis, problems))
        for kind, axis in (("sample_descriptors", "sample"), ("channel_descriptors", "channel")):
            held = {name: np.asarray(values) for name, values in getattr(self, kind).items()}
            problems += [
                f"{name} must have one entry per {axis} ({lengths[axis]}). Got shape {values.shape}."
                for name, values in held.items()
                if values.shape[:1] != (lengths[axis],)
            ]
            self._set(kind, held)

    def _set_coordinates(self, problems: list[str]) -> None:
        """Check positions and times."""
        n, time = self.n_channels, as_floats("time", self.time, problems)
        position = as_floats("position", self.position, problems)
        position = np.empty((n, 0)) if position.shape == (0,) else position
        if position.ndim != 2 or position.shape[0] != n or position.shape[1] not in (0, 2, 3):
            problems.append(
                f"position must have two or three coordinates per channel: shape ({n}, 2) or ({n}, 3). "
                f"Got {position.shape}."
            )
        n_steps = self.responses.shape[1] if self.responses.ndim == 3 else 0
        if time.shape != (n_steps,):
            problems.append(
                f"time must have one entry per time step, of which responses of shape {self.responses.shape} have "
                f"{n_steps}. Got shape {time.shape}."
            )
        elif not np.all(np.diff(time) > 0) or not np.all(np.isfinite(time)):
            wrong = np.flatnonzero(~(np.diff(time) > 0))
            where = f"{time[wrong[0]]:g} is followed by {time[wrong[0] + 1]:g}" if len(wrong) else "not finite"
            problems.append(f"time must rise from step to step. Got {where}.")
        self._set("position", position)
        self._set("time", time)

    def _set_repetition(self, problems: list[str]) -> None:
        """Count presentations within condition and session, or check that those given differ."""
        if np.asarray(self.repetition).shape == (0,):
            self._set("repetition", rank_within(np.arange(self.n_samples), self.session, self.condition))
            return
        repetition = as_labels("repetition", np.asarray(self.repetition), self.n_samples, "sample", problems)
        self._set("repetition", repetition)
        if problems:
            return
        twice = duplicates(self.condition, repetition, self.session)
        if twice:
            problems.append(
                f"each (condition, repetition, session) must occur once. Got {len(twice)} of them more than once: "
                f"{listed(twice)}. Leave repetition out to count presentations in order."
            )

    @property
    def n_samples(self) -> int:
        """Presentations."""
        return self.responses.shape[0]

    @property
    def n_channels(self) -> int:
        """Channels of all subjects together."""
        return self.responses.shape[-1]

    @property
    def n_repetitions(self) -> int:
        """Most presentations that a condition has: the first axis of `by_condition()`."""
        return int(np.unique(self.condition, return_counts=True)[1].max())

    @property
    def conditions(self) -> Shaped[np.ndarray, "condition"]:
        """Each condition once, sorted: the order of `by_condition()`."""
        return np.unique(self.condition)

    @property
    def regions(self) -> Shaped[np.ndarray, "region"]:
        """Each region once, sorted."""
        return np.unique(self.region)

    @property
    def subjects(self) -> Shaped[np.ndarray, "subject"]:
        """Each subject once, sorted."""
        return np.unique(self.subject)

    @property
    def sessions(self) -> Shaped[np.ndarray, "session"]:
        """Each session once, sorted."""
        return np.unique(self.session)

    @property
    def subject_index(self) -> Int[np.ndarray, "channel"]:
        """Index into `subjects` of each channel."""
        return np.unique(self.subject, return_inverse=True)[1]

    @property
    def region_index(self) -> Int[np.ndarray, "channel"]:
        """Index into `regions` of each channel."""
        return np.unique(self.region, return_inverse=True)[1]

    def by_condition(
        self, conditions: Sequence[Label] | np.ndarray | None = None
    ) -> Float[np.ndarray, "repetition condition channel"] | Float[np.ndarray, "repetition condition time channel"]:
        """Return responses by repetition and condition; NaN where a channel was not recorded.

        Repetitions of a condition are in the order of session, then of `repetition`, without gaps.

        Parameters
        ----------
        conditions
            Which, in which order (those of a model's inputs, say); all of `conditions` if not said. One that was never
            shown gives NaN. Labels are compared as text: "3" finds 3.

        Raises
        ------
        NotFoundError
            If none of them was shown.
        ConfigurationError
            If one is asked for twice.
        """
        asked = [str(each) for each in np.asarray(self.conditions if conditions is None else conditions).tolist()]
        if len(set(asked)) < len(asked):
            raise ConfigurationError(f"each condition must be asked for once. Got {listed(duplicates(asked))} twice.")
        place = {label: index for index, label in enumerate(asked)}
        column = np.array([place.get(str(label), -1) for label in self.condition.tolist()])
        shown = column >= 0
        if not shown.any():
            raise NotFoundError(
                f"conditions must be among those recorded: {listed(self.conditions.tolist())}. Got {listed(asked)}."
            )
        slot = rank_within(self.repetition, self.session, self.condition)
        shape = (int(slot[shown].max()) + 1, len(asked), *self.responses.shape[1:])
        out = np.full(shape, np.nan, self.responses.dtype)
        out[slot[shown], column[shown]] = self.responses[shown]
        return out

    def select(
        self,
        *,
        region: Asked = None,
        subject: Asked = None,
        session: Asked = None,
        time: tuple[float, float] | None = None,
    ) -> "Recording":
        """Return the part asked for; samples in which nothing of it was recorded are left out.

        Parameters
        ----------
        region, subject, session
            One label or several.
        time
            First and last second, both included.

        Raises
        ------
        NotFoundError
            If nothing is recorded under one of these labels, of both together, or in this stretch of time.
        """
        channels = chosen("region", region, self.region) & chosen("subject", subject, self.subject)
        samples, steps = chosen("session", session, self.session), within(time, self.time)
        if not channels.any():
            raise NotFoundError(f"region and subject must have channels in common. Got {region!r} and {subject!r}.")
        part = self.take(channels, samples=samples, steps=steps)
        present = np.asarray(~np.isnan(part.responses).all(axis=tuple(range(1, part.responses.ndim))))
        if not present.any():
            raise NotFoundError("the part asked for must hold responses. Got none but NaN.")
        return part if present.all() else part.take(_all(part.n_channels), samples=present)

    def take(
        self,
        channels: Bool[np.ndarray, "channel"],
        *,
        samples: Bool[np.ndarray, "sample"] | None = None,
        steps: Bool[np.ndarray, "time"] | None = None,
    ) -> "Recording":
        """Return the channels, samples and time steps that are marked."""
        rows = _all(self.n_samples) if samples is None else samples
        responses = self.responses[rows][..., channels]
        kept = _all(len(self.time)) if steps is None else steps
        return Recording(
            responses=responses[:, kept] if responses.ndim == 3 else responses,
            condition=self.condition[rows],
            session=self.session[rows],
            repetition=self.repetition[rows],
            subject=self.subject[channels],
            region=self.region[channels],
            position=self.position[channels],
            time=self.time[kept],
            units=self.units,
            sample_descriptors={name: values[rows] for name, values in self.sample_descriptors.items()},
            channel_descriptors={name: values[channels] for name, values in self.channel_descriptors.items()},
        )

    @classmethod
    def of_simulated(cls, simulated: BrainRecordings) -> "Recording":
        """Return what `mechint_core.synthetic.brain_recordings` made as a recording."""
        given = ("responses", "condition", "repetition", "subject", "region", "time", "units")
        return cls(**{name: getattr(simulated, name) for name in given})


def _all(length: int) -> np.ndarray:
    return np.ones(length, bool)
