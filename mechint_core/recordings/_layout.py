"""Which axis of stored responses is which, and how they are brought into the order of a recording."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Final

import numpy as np

from mechint_core.recordings._fields import FileField
from mechint_core.recordings._labels import as_floats

ROWS: Final = ("repetition", "condition", "sample")
COLUMNS: Final = ("subject", "channel")
WORDS: Final = (*ROWS, "time", *COLUMNS)
"""What an axis of the responses can be, in the order they are brought into."""
SYNONYMS: Final[Mapping[str, str]] = {
    "presentation": "sample", "trial": "sample", "trials": "sample", "stimulus": "condition", "neuroid": "channel",
    "unit": "channel", "voxel": "channel", "neuron": "channel", "electrode": "channel", "time_bin": "time",
}  # fmt: skip
"""What files call them."""


def axes_of(found: Mapping[str, FileField], asked: Sequence[str] | None, problems: list[str]) -> tuple[str, ...]:
    """Return which of `WORDS` each axis of the responses is: as asked, as the file says, or as lengths imply."""
    responses = found["responses"]
    n, named = len(responses.shape), tuple(SYNONYMS.get(each, each) for each in responses.axes)
    if asked is None:
        asked = named if len(named) == n and set(named) <= set(WORDS) else _by_length(found)
    words = tuple(asked)
    rows = set(words) & set(ROWS)
    fits = len(words) == n == len(set(words)) and set(words) <= set(WORDS) and "channel" in words
    if not fits or not rows or rows > {"sample"}:
        problems.append(
            f"axes must say of each axis of {responses.name!r}, of shape {responses.shape}, which it is: channel, "
            f"sample (or condition, repetition), time, subject. Got {words}."
        )
        return ()
    return words


def _by_length(found: Mapping[str, FileField]) -> tuple[str, ...]:
    """Return sample[, time], channel, in the only order that the lengths of the descriptors allow if it is not that."""
    shape = found["responses"].shape
    usual = {2: ("sample", "channel"), 3: ("sample", "time", "channel")}.get(len(shape), ())
    sizes = {name: math.prod(each.shape) for name, each in found.items()}
    known = {"sample": sizes.get("condition"), "time": sizes.get("time")}
    known["channel"] = next((sizes[name] for name in ("region", "subject") if sizes.get(name, 1) > 1), None)

    def fits(words: tuple[str, ...]) -> bool:
        return all(known[word] in (None, length) for word, length in zip(words, shape, strict=True))

    orders = [words for words in permutations(usual) if fits(words)]
    return usual if usual in orders or len(orders) != 1 else orders[0]


@dataclass(frozen=True, slots=True)
class Layout:
    """Where samples, time steps and channels are in the stored responses."""

    axes: tuple[str, ...]
    shape: tuple[int, ...]

    @property
    def lengths(self) -> dict[str, int]:
        return dict(zip(self.axes, self.shape, strict=True))

    def size(self, group: tuple[str, ...]) -> int:
        return math.prod(self.lengths[word] for word in group if word in self.axes)

    @property
    def n_rows(self) -> int:
        return self.size(ROWS)

    @property
    def n_columns(self) -> int:
        return self.size(COLUMNS)

    def __str__(self) -> str:
        return ", ".join(f"{word} {length}" for word, length in self.lengths.items())

    def spread(self, name: str, values: np.ndarray, group: tuple[str, ...], problems: list[str]) -> np.ndarray:
        """Return one entry per sample, or per channel, of what is given for all, for each, or along one axis."""
        flat, total = values.ravel(), self.size(group)
        own = [word for word in group if word in self.axes]
        if flat.size == 1:
            return np.repeat(flat, total)
        if flat.size == total and values.size == max(values.shape):
            return flat
        if values.shape == tuple(self.lengths[word] for word in own):
            return flat
        along = [word for word in own if self.lengths[word] == flat.size and values.size == max(values.shape)]
        if len(along) != 1:
            problems.append(
                f"{name} must have one entry per {group[-1]} ({total}). Got shape {values.shape}, responses have "
                f"{self}. If these are other axes, say axes=(...)."
            )
            return np.repeat(flat[:1] if flat.size else np.array([""]), total)
        shape = [self.lengths[word] for word in own]
        index = own.index(along[0])
        wide = flat.reshape([-1 if place == index else 1 for place in range(len(own))])
        return np.broadcast_to(wide, shape).ravel()

    def read(
        self, stored: FileField, rows: np.ndarray, steps: np.ndarray, channels: np.ndarray, problems: list[str]
    ) -> np.ndarray:
        """Read (sample, channel) or (sample, time, channel): of each axis from the first to the last that is wanted."""
        masks = {"time": steps, "sample": rows if "sample" in self.axes else None}
        masks["channel"] = channels if "subject" not in self.axes else None
        spans = {word: _span(mask) for word, mask in masks.items() if mask is not None and word in self.axes}
        block = np.asarray(stored.read(tuple(spans.get(word, slice(None)) for word in self.axes)))
        order = [self.axes.index(word) for word in WORDS if word in self.axes]
        moved = block.transpose(order)
        n_rows = math.prod(block.shape[self.axes.index(word)] for word in ROWS if word in self.axes)
        shape = (n_rows, block.shape[self.axes.index("time")], -1) if "time" in self.axes else (n_rows, -1)
        whole = as_floats("responses", moved.reshape(shape), problems)
        whole = whole[:, steps[spans["time"]]] if "time" in spans and not steps[spans["time"]].all() else whole
        rows, channels = rows[spans.get("sample", slice(None))], channels[spans.get("channel", slice(None))]
        whole = whole if rows.all() else whole[rows]
        return np.require(whole if channels.all() else whole[..., channels], requirements=["C", "O", "W", "E"])


def _span(mask: np.ndarray) -> slice:
    there = np.flatnonzero(mask)
    return slice(int(there[0]), int(there[-1]) + 1) if len(there) else slice(0, 0)
