"""One section of the page per technique: what to show of its results, in which order, and how much.

Results over all of training (step None) are shown whole. Results of single checkpoints are shown as curves over
training, one panel per Estimate; their own figures only at the first checkpoint, the one where most changes and the
last (a graph, which needs room, only at the last), for the site that changes most, the other sites folded away.
Everything else stays in the store.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from markupsafe import Markup

from mechint_core.errors import MechintError
from mechint_core.figure import Graph
from mechint_core.report.canvas import FULL, PANEL, line_style
from mechint_core.report.citations import Reference, cite
from mechint_core.report.evolution import Series, render_evolution
from mechint_core.report.figures import render_row
from mechint_core.report.tables import Grid, Line, details, estimate_lines, history
from mechint_core.report.wording import clean, heading, number, spaced
from mechint_core.result import Estimate
from mechint_core.store.record import About, StoredResult

MAX_NAMES_DRAWN = 8
"""Sites whose figures are drawn for single checkpoints; the numbers of the others are in the tables."""
MAX_UNFOLDED = 2
"""Results over all of training whose figures show without a click."""


@dataclass(frozen=True, slots=True)
class Drawing:
    """One figure, or why there is none."""

    caption: str
    svg: Markup = field(default_factory=Markup)
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Gallery:
    """Figures that belong side by side."""

    title: str
    drawings: tuple[Drawing, ...]
    subject: str = ""
    """The site, or the words that name these results."""
    whole: bool = False
    """Different figures of one result, rather than one figure at several checkpoints."""
    folded: bool = False


@dataclass(frozen=True, slots=True)
class Reading:
    """What one result, or several that say the same, mean."""

    where: str
    text: str


@dataclass(frozen=True, slots=True)
class Section:
    """Everything the page says of one technique."""

    anchor: str
    title: str
    about: About
    scope: str
    """Which results these are, in words."""
    shown_at: str
    """The checkpoint that readings and table are of; empty for results over all of training."""
    readings: tuple[Reading, ...]
    key: tuple[tuple[str, str, str], ...]
    """Name, colour and dash of each line of the curves over training."""
    evolution: tuple[Drawing, ...]
    galleries: tuple[Gallery, ...]
    lines: tuple[Line, ...]
    history: tuple[Grid, ...]
    details: tuple[Grid, ...]
    references: tuple[Reference, ...]

    @property
    def folded_subjects(self) -> tuple[str, ...]:
        """The sites whose figures are folded away."""
        return tuple(dict.fromkeys(gallery.subject for gallery in self.galleries if gallery.folded))


def anchor(technique: str) -> str:
    """Return the id of a technique's section."""
    return "technique-" + (re.sub(r"[^a-z0-9]+", "-", technique.lower()).strip("-") or "unnamed")


def build_sections(results: Sequence[StoredResult]) -> list[Section]:
    """Arrange results by technique, in the order in which techniques first appear."""
    several_runs = len({result.key.run for result in results}) > 1
    unique = {result.key: result for result in results}.values()
    techniques: dict[str, list[StoredResult]] = {}
    for result in unique:
        techniques.setdefault(result.key.technique, []).append(result)
    names = dict.fromkeys(_where(each, several_runs) for each in unique if each.key.step is not None)
    colours = {name: index for index, name in enumerate(names)}
    return [_section(technique, group, colours, several_runs) for technique, group in techniques.items()]


def _section(
    technique: str, results: Sequence[StoredResult], colours: Mapping[str, int], several_runs: bool
) -> Section:
    whole = {_where(each, several_runs): each for each in results if each.key.step is None}
    stepped: dict[str, dict[int, StoredResult]] = {}
    for each in sorted(results, key=lambda result: result.key.step or 0):
        if each.key.step is not None:
            stepped.setdefault(_where(each, several_runs), {})[each.key.step] = each
    steps = sorted({step for of_name in stepped.values() for step in of_name})
    shown = _shown(whole, stepped, steps)
    return Section(
        anchor=anchor(technique),
        title=heading(technique),
        about=results[-1].about,
        scope=_scope(whole, stepped, steps),
        shown_at=f"step {number(steps[-1])}" if steps else "",
        readings=_readings(shown),
        key=_key(stepped, colours) if len(steps) > 1 else (),
        evolution=_evolution(stepped, colours) if len(steps) > 1 else (),
        galleries=(*_whole_galleries(whole), *_step_galleries(stepped, steps)),
        lines=tuple(estimate_lines(shown)),
        history=history(stepped, steps) if len(steps) > 1 else (),
        details=tuple(details(shown, results)),
        references=tuple(cite(clean(key)) for key in results[-1].about.references),
    )


def _where(result: StoredResult, several_runs: bool) -> str:
    name = clean(result.key.name).replace("~", " ~ ")
    return f"{clean(result.key.run)}: {name}" if several_runs else name


def _shown(
    whole: Mapping[str, StoredResult], stepped: Mapping[str, Mapping[int, StoredResult]], steps: Sequence[int]
) -> dict[str, StoredResult]:
    """Return the results that are read out and tabled: those over all of training, and the last of each site."""
    shown = {f"{name} (all of training)" if name in stepped else name: each for name, each in whole.items()}
    for name, of_name in stepped.items():
        last = max(of_name)
        shown[name if last == steps[-1] else f"{name} (step {number(last)})"] = of_name[last]
    return shown


def _readings(shown: Mapping[str, StoredResult]) -> tuple[Reading, ...]:
    """Return what the results mean, those that mean the same together."""
    same: dict[str, list[str]] = {}
    for name, each in shown.items():
        same.setdefault(clean(each.reading), []).append(name)
    return tuple(Reading(", ".join(names), text) for text, names in same.items() if text)


def _scope(whole: Mapping[str, StoredResult], stepped: Mapping[str, object], steps: Sequence[int]) -> str:
    parts: list[str] = []
    if whole:
        parts.append("one result over all of training" if len(whole) == 1 else f"{len(whole)} results over training")
    if stepped:
        sites = "one series" if len(stepped) == 1 else f"{len(stepped)} series"
        parts.append(f"{sites} at {number(len(steps))} checkpoint{'s' if len(steps) > 1 else ''}")
    return "; ".join(parts)


# Curves over training


def _key(stepped: Mapping[str, object], colours: Mapping[str, int]) -> tuple[tuple[str, str, str], ...]:
    styles = {name: line_style(colours[name]) for name in stepped}
    return tuple((name, colour, "solid" if dash == "-" else "dashed") for name, (colour, dash) in styles.items())


def _evolution(stepped: Mapping[str, Mapping[int, StoredResult]], colours: Mapping[str, int]) -> tuple[Drawing, ...]:
    names = dict.fromkeys(what for of_name in stepped.values() for each in of_name.values() for what in each.estimates)
    return tuple(
        Drawing(heading(what), render_evolution(list(_series(what, stepped, colours)), f"{spaced(what)} over training"))
        for what in names
    )


def _series(
    what: str, stepped: Mapping[str, Mapping[int, StoredResult]], colours: Mapping[str, int]
) -> Iterable[Series]:
    for name, of_name in stepped.items():
        known = {step: each.estimates[what] for step, each in of_name.items() if what in each.estimates}
        if known:
            yield Series(name, colours[name], tuple(known), tuple(known.values()))


# Figures


def _whole_galleries(whole: Mapping[str, StoredResult]) -> Iterable[Gallery]:
    """Draw every figure of the results over all of training, folded away past the first few results."""
    for rank, (name, result) in enumerate(whole.items()):
        drawings = [
            drawing
            for declared in result.figures
            for drawing in _drawings(declared, {_title(declared): result}, whole=True)
        ]
        if drawings:
            yield Gallery(
                "", tuple(drawings), subject=name if len(whole) > 1 else "", whole=True, folded=rank >= MAX_UNFOLDED
            )


def _step_galleries(stepped: Mapping[str, Mapping[int, StoredResult]], steps: Sequence[int]) -> Iterable[Gallery]:
    """Draw the figures at the landmarks, one gallery per figure and site, the most changed site unfolded."""
    order = sorted(stepped, key=lambda name: -float(np.sum(_changes(stepped[name], steps))))
    for rank, name in enumerate(order[:MAX_NAMES_DRAWN]):
        at = {step: stepped[name][step] for step in landmarks(stepped, steps) if step in stepped[name]}
        for index, declared in enumerate(next(iter(at.values())).figures if at else ()):
            same = {f"step {number(step)}": each for step, each in at.items() if len(each.figures) > index}
            large = declared.get("kind") == Graph.__name__
            shown = dict(list(same.items())[-1:]) if large else same
            subject = name if len(stepped) > 1 else ""
            drawings = tuple(_drawings(declared, shown, whole=large))
            yield Gallery(_title(declared), drawings, subject=subject, folded=rank > 0)


def _drawings(
    declared: Mapping[str, object], results: Mapping[str, StoredResult], *, whole: bool = False
) -> list[Drawing]:
    """Draw one declared figure of several results; a figure that cannot be drawn says why in its place."""
    try:
        drawn = render_row(declared, list(results.values()), size=FULL if whole else PANEL)
    except MechintError as error:
        return [Drawing(", ".join(results), problem=clean(error))]
    return [Drawing(caption, svg) for caption, svg in zip(results, drawn, strict=True)]


def _title(declared: Mapping[str, object]) -> str:
    return clean(declared.get("title") or declared.get("kind") or "figure")


def landmarks(stepped: Mapping[str, Mapping[int, StoredResult]], steps: Sequence[int]) -> list[int]:
    """Return the first step, the one between at which the estimates change most, and the last."""
    if len(steps) < 3:
        return list(steps)
    change = np.sum([_changes(of_name, steps) for of_name in stepped.values()], axis=0)
    turning = 1 + int(np.argmax(change[1:-1])) if change[1:-1].any() else len(steps) // 2
    return [steps[0], steps[turning], steps[-1]]


def _changes(of_name: Mapping[int, StoredResult], steps: Sequence[int]) -> np.ndarray:
    """Return how much the estimates change around each step, each estimate in units of its own range."""
    change = np.zeros(len(steps))
    for what in next(iter(of_name.values())).estimates:
        nothing = Estimate(np.nan)
        values = np.array([of_name[s].estimates.get(what, nothing).value if s in of_name else np.nan for s in steps])
        finite = values[np.isfinite(values)]
        span = float(np.ptp(finite)) if finite.size else 0.0
        if span > 0:
            moves = np.nan_to_num(np.abs(np.diff(np.where(np.isfinite(values), values, np.nan)))) / span
            change[1:] += moves
            change[:-1] += moves
    return change
