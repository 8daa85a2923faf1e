"""The numbers of a section: estimates with their intervals and nulls, every checkpoint, settings and origin."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from mechint_core.report.wording import (
    EstimateText,
    certainty,
    clean,
    decimals_supported,
    heading,
    in_words,
    number,
    spaced,
    why_undefined,
)
from mechint_core.result import Estimate
from mechint_core.store.record import StoredResult

MAX_STEPS_LISTED = 120


@dataclass(frozen=True, slots=True)
class Line:
    """One row of a table of estimates."""

    what: str
    where: str
    text: EstimateText
    kind: str
    """As of `wording.certainty`."""
    why: str
    """Why it is undefined, if it is."""
    drawn: Markup
    """Value, interval and null on one scale."""


@dataclass(frozen=True, slots=True)
class Grid:
    """A plain table: a name per column, and rows of texts that start with their own name."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def estimate_lines(shown: Mapping[str, StoredResult]) -> Iterable[Line]:
    """List the estimates, those of the same name together and on the same scale."""
    for what in dict.fromkeys(what for each in shown.values() for what in each.estimates):
        same = {name: each for name, each in shown.items() if what in each.estimates}
        estimates = [each.estimates[what] for each in same.values()]
        scale, decimals = _span(estimates), decimals_supported(estimates)
        for name, each in same.items():
            estimate = each.estimates[what]
            kind = certainty(estimate)
            why = why_undefined(what, each.flags) if kind == "undefined" else ""
            yield Line(heading(what), name, in_words(estimate, decimals), kind, clean(why), _forest(estimate, scale))


def _span(estimates: Iterable[Estimate]) -> tuple[float, float]:
    """Return the smallest and largest finite number among values, intervals and nulls."""
    parts = np.array([(each.value, each.low, each.high, each.null) for each in estimates], dtype=np.float64).ravel()
    finite = parts[np.isfinite(parts)]
    return (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)


def _forest(estimate: Estimate, span: tuple[float, float]) -> Markup:
    """Draw value (dot), interval (line) and null (tick) on a scale shared by the rows of one estimate."""
    width = span[1] - span[0]
    if not np.isfinite(estimate.value) or not np.isfinite(width) or width <= 0:
        return Markup()

    def place(number: float) -> float:
        return round(6 + 108 * (float(np.clip(number, *span)) - span[0]) / width, 1)

    parts = ['<svg class="forest" viewBox="0 0 120 16" aria-hidden="true"><path class="axis" d="M6 8H114"/>']
    if np.isfinite(estimate.null):
        parts.append(f'<path class="null" d="M{place(estimate.null)} 2V14"/>')
    if not (np.isnan(estimate.low) or np.isnan(estimate.high)):
        parts.append(f'<path class="interval" d="M{place(estimate.low)} 8H{place(estimate.high)}"/>')
    parts.append(f'<circle class="value" cx="{place(estimate.value)}" cy="8" r="3.4"/></svg>')
    return Markup("".join(parts))  # made of numbers only


def history(stepped: Mapping[str, Mapping[int, StoredResult]], steps: Sequence[int]) -> tuple[Grid, ...]:
    """List every estimate at every checkpoint: a grid per estimate, a row per checkpoint, a column per site."""
    names = dict.fromkeys(what for of_name in stepped.values() for each in of_name.values() for what in each.estimates)
    listed = steps[-MAX_STEPS_LISTED:]
    return tuple(
        Grid(
            title=heading(what),
            columns=("step", *stepped),
            rows=tuple(
                (number(step), *(_cell(of_name.get(step), what) for of_name in stepped.values())) for step in listed
            ),
        )
        for what in names
    )


def _cell(result: StoredResult | None, what: str) -> str:
    if result is None or what not in result.estimates:
        return ""
    estimate = result.estimates[what]
    text = in_words(estimate, decimals_supported([estimate]))
    return f"{text.value} ({text.interval})" if text.interval else text.value


def details(shown: Mapping[str, StoredResult], results: Sequence[StoredResult]) -> Iterable[Grid]:
    """List flags, settings and origin."""
    flags = dict.fromkeys(flag for each in shown.values() for flag in each.flags)
    if flags:
        rows = (
            (spaced(flag), *(number(each.flags[flag]) if flag in each.flags else "" for each in shown.values()))
            for flag in flags
        )
        yield Grid("Counts and flags", ("", *shown), tuple(rows))
    settings = {repr(sorted(each.config.items())): each.config for each in results}
    columns = [f"setting {index}" for index in range(1, len(settings) + 1)] if len(settings) > 1 else ["used"]
    options = dict.fromkeys(option for config in settings.values() for option in config)
    if options:
        rows = ((clean(o), *(clean(config.get(o, "")) for config in settings.values())) for o in options)
        yield Grid("Settings", ("", *columns), tuple(rows))
    yield Grid("Where it comes from", ("", *shown), tuple(_origin(shown)))


def _origin(shown: Mapping[str, StoredResult]) -> Iterable[tuple[str, ...]]:
    """List the provenance of the results shown, inputs by argument; long digests by their start."""
    flat: list[dict[str, str]] = []
    for each in shown.values():
        plain = {spaced(name): value for name, value in each.provenance.items() if name != "inputs"}
        inputs = each.provenance.get("inputs") or {}
        named = inputs.items() if isinstance(inputs, Mapping) else [("all", inputs)]
        plain |= {f"input {clean(argument)}": value for argument, value in named}
        flat.append({name: _brief(value) for name, value in plain.items()})
    for row in dict.fromkeys(name for origin in flat for name in origin):
        yield (row, *(origin.get(row, "") for origin in flat))


def _brief(value: object) -> str:
    if isinstance(value, float):
        return number(value)
    text = clean(value)
    return text[:12] + "…" if re.fullmatch(r"(?:sha256:)?[0-9a-f]{32,}", text) else text
