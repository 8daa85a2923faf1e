"""What a dictionary's page says of one latent, gathered from the stored results that know something of it."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from markupsafe import Markup, escape

from mechint_core.errors import ShapeError
from mechint_core.report.wording import clean, number, shorten
from mechint_core.store.record import StoredResult

HEATS = 9
"""Shades of a token, from the weakest firing to the strongest."""


@dataclass(frozen=True, slots=True)
class Concept:
    """What the latent stands for, and how sure that is."""

    name: str
    effect: float
    interval: str
    q_value: float
    found: bool
    details: str


@dataclass(frozen=True, slots=True)
class Shown:
    """One example."""

    value: str
    share: float
    """Of the latent's largest value, in percent."""
    tokens: Markup
    """The context, coloured by the latent's codes; empty if there are no tokens."""
    sample: str
    """What is known of the sample, or its number."""
    note: str
    """The same, and where in the range it lies, unless that is the top."""
    about: str
    """All of this."""


@dataclass(frozen=True, slots=True)
class Moved:
    """One class that the latent promotes or suppresses."""

    name: str
    effect: str
    interval: str
    share: float
    """Of the latent's largest effect, in percent."""


@dataclass(frozen=True, slots=True)
class Other:
    """Another latent, and how alike it is."""

    latent: int
    likeness: str


@dataclass(frozen=True, slots=True)
class Card:
    """Everything that is known of one latent."""

    latent: int
    full: bool
    """Whether all is shown, or only a row of the table."""
    density: float
    mean: float
    largest: float
    concept: Concept | None
    strongest: tuple[Shown, ...] = ()
    below: tuple[Shown, ...] = ()
    promoted: tuple[Moved, ...] = ()
    suppressed: tuple[Moved, ...] = ()
    neighbours: tuple[Other, ...] = ()
    companions: tuple[Other, ...] = ()

    @property
    def dead(self) -> bool:
        """Whether it never fires."""
        return self.density == 0


@dataclass(frozen=True)
class Latents:
    """The stored results of one dictionary, read latent by latent; any of them may be missing."""

    evaluation: StoredResult | None = None
    examples: StoredResult | None = None
    concepts: StoredResult | None = None
    effects: StoredResult | None = None
    vocabulary: Sequence[str] | Mapping[int, str] | None = None
    samples: Sequence[str] | None = None
    classes: Sequence[str] | None = None
    _read: dict[tuple[str, str], np.ndarray] = field(init=False, default_factory=dict)

    def of(self, technique: str, name: str) -> np.ndarray | None:
        """Return an array of one of the results, read once; None if there is none."""
        result: StoredResult | None = getattr(self, technique)
        if result is None or name not in result.arrays:
            return None
        return self._read.setdefault((technique, name), np.asarray(result.arrays[name]))

    @cached_property
    def count(self) -> int:
        """How many latents there are.

        Raises
        ------
        ShapeError
            If the results are not of the same dictionary, or none is given.
        """
        one_each = {"evaluation": "density", "examples": "density", "concepts": "effect", "effects": "largest"}
        counts = {name: len(values) for name, array in one_each.items() if (values := self.of(name, array)) is not None}
        if len(set(counts.values())) != 1:
            raise ShapeError(f"results must be of one dictionary, with the same number of latents. Got {counts}.")
        return next(iter(counts.values()))

    @cached_property
    def density(self) -> np.ndarray:
        """Share of the vectors in which each latent fires; NaN if unknown."""
        known = self.of("examples", "density")
        known = self.of("evaluation", "density") if known is None else known
        return np.full(self.count, np.nan) if known is None else known

    def by_interest(self) -> list[int]:
        """Return the latents, those first that a reader will want to see: named ones, then living ones, busy ones."""
        effect, q = self.of("concepts", "effect"), self.of("concepts", "q_value")
        found, clear = np.zeros(self.count, dtype=bool), np.zeros(self.count)
        if effect is not None and q is not None:
            found = np.nan_to_num(q, nan=1.0) <= self.false_discovery
            clear = np.abs(np.nan_to_num(effect - self.no_effect))
        density = np.nan_to_num(self.density)
        return np.lexsort((-density, -np.where(found, clear, 0.0), density == 0, ~found)).tolist()

    @property
    def false_discovery(self) -> float:
        """The rate at which a concept counts as found."""
        return self.concepts.flags.get("false_discovery", 0.05) if self.concepts else 0.05

    @property
    def no_effect(self) -> float:
        """The effect of a latent that tells nothing."""
        return 0.0 if self.concepts is None or self.concepts.flags.get("continuous") else 0.5

    def card(self, latent: int, *, full: bool) -> Card:
        """Return what is known of a latent; its examples and relatives only if `full`."""
        n_top = int(self.examples.flags.get("n_top", 0)) if self.examples else 0
        shown = list(self._shown(latent, n_top)) if full else []
        return Card(
            latent=latent,
            full=full,
            density=float(self.density[latent]),
            mean=self._number(latent, "mean_activation"),
            largest=self._number(latent, "max_activation"),
            concept=self._concept(latent),
            strongest=tuple(each for place, each in shown if place < n_top),
            below=tuple(each for place, each in shown if place >= n_top),
            promoted=tuple(self._moved(latent, "promoted", 1)),
            suppressed=tuple(self._moved(latent, "suppressed", -1)) if full else (),
            neighbours=tuple(self._others(latent, "neighbour", "neighbour_cosine")),
            companions=tuple(self._others(latent, "companion", "companion_correlation")) if full else (),
        )

    def _number(self, latent: int, name: str) -> float:
        for technique in ("examples", "evaluation"):
            values = self.of(technique, name)
            if values is not None:
                return float(values[latent])
        return math.nan

    def _concept(self, latent: int) -> Concept | None:
        if self.concepts is None:
            return None
        names = ("best_concept", "effect", "effect_low", "effect_high", "q_value", "precision", "recall")
        known = [self.of("concepts", name) for name in names]
        best, effect, low, high, q, precision, recall = (
            math.nan if each is None else float(each[latent]) for each in known
        )
        if not best >= 0:
            return None
        details = "" if math.isnan(precision) else f"precision {precision:.0%}, recall {recall:.0%}"
        return Concept(
            name=clean(self.concepts.labels["concept"][int(best)]),
            effect=effect,
            interval=f"{number(low)} to {number(high)}",
            q_value=q,
            found=q <= self.false_discovery,
            details=details,
        )

    def _shown(self, latent: int, n_top: int) -> Iterator[tuple[int, Shown]]:
        """Yield the examples with their places."""
        samples, values = self.of("examples", "example_sample"), self.of("examples", "example_value")
        quantiles = self.of("examples", "example_quantile")
        if samples is None or values is None or quantiles is None:
            return
        largest = max(float(np.nanmax(values[latent], initial=0.0)), 1e-30)
        for place, sample in enumerate(samples[latent].tolist()):
            if sample < 0:
                continue
            value, quantile = float(values[latent, place]), f"quantile {quantiles[latent, place]:.0%}"
            known = self.samples is not None and sample < len(self.samples)
            about = shorten(self.samples[sample], 60) if known and self.samples is not None else ""
            name = f"sample {number(sample)}"
            yield (
                place,
                Shown(
                    value=number(value),
                    share=round(100 * value / largest, 1),
                    tokens=self._context(latent, place, largest),
                    sample=about or name,
                    note=" · ".join(part for part in (about or name, quantile if place >= n_top else "") if part),
                    about=" · ".join(part for part in (about, name, quantile) if part),
                ),
            )

    def _context(self, latent: int, place: int, largest: float) -> Markup:
        """Return the tokens around the strongest position, coloured by the latent's codes; empty if unknown."""
        tokens, codes = self.of("examples", "context_token"), self.of("examples", "context_activation")
        if tokens is None or codes is None or not (tokens[latent, place] >= 0).any():
            return Markup()
        pieces: list[str] = []
        for token, code in zip(tokens[latent, place].tolist(), codes[latent, place].tolist(), strict=True):
            if token < 0:
                continue
            text, joined = self._word(token)
            heat = math.ceil(HEATS * min(1.0, code / largest)) if code > 0 else 0
            word = f'<b class="h{heat}" title="{number(code)}">{escape(text)}</b>' if heat else str(escape(text))
            pieces.append(word if joined or not pieces else f" {word}")
        return Markup("".join(pieces))  # every token was escaped

    def _word(self, token: int) -> tuple[str, bool]:
        """Return a token's text, and whether it continues the word before it."""
        if self.vocabulary is None:
            return str(token), False
        try:
            text = clean(self.vocabulary[token])
        except (KeyError, IndexError):
            return f"#{token}", False
        if text.startswith("##"):  # word pieces
            return text[2:], True
        if text.startswith(("Ġ", "▁")):  # byte pairs and sentence pieces mark the space instead
            return text[1:], False
        return text, False

    def _moved(self, latent: int, end: str, sign: int) -> Iterator[Moved]:
        classes, effects = self.of("effects", end), self.of("effects", f"{end}_effect")
        low, high = self.of("effects", f"{end}_low"), self.of("effects", f"{end}_high")
        largest = self.of("effects", "largest")
        if classes is None or effects is None or low is None or high is None or largest is None:
            return
        for place, which in enumerate(classes[latent].tolist()):
            effect = float(effects[latent, place])
            if sign * effect > 0:
                yield Moved(
                    name=self._class(which),
                    effect=("+" if effect > 0 else "") + number(effect),
                    interval=f"{number(float(low[latent, place]))} to {number(float(high[latent, place]))}",
                    share=round(100 * abs(effect) / max(float(largest[latent]), 1e-30), 1),
                )

    def _class(self, which: int) -> str:
        named = self.classes is not None and which < len(self.classes)
        return shorten(self.classes[which], 24) if named and self.classes is not None else f"class {which}"

    def _others(self, latent: int, who: str, how: str) -> Iterator[Other]:
        others, likeness = self.of("examples", who), self.of("examples", how)
        if others is None or likeness is None:
            return
        for other, value in zip(others[latent].tolist(), likeness[latent].tolist(), strict=True):
            if other >= 0:
                yield Other(other, f"{value:.2f}".replace("-", "−"))
