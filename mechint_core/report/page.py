"""The report: one HTML file, made from stored results only, that needs nothing else and asks nothing of any network."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from mechint_core import __version__
from mechint_core.report import wording
from mechint_core.report.sections import anchor, build_sections
from mechint_core.report.whole_file import write_whole
from mechint_core.result import Estimate
from mechint_core.store.record import StoredResult


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """What was run, on what, with which versions, how long."""

    title: str
    run: str
    model: str = ""
    """The model in a few words: what it is, and how many parameters."""
    dataset: str = ""
    samples: int | None = None
    """Inputs on which activations were collected."""
    checkpoints: tuple[int, ...] = ()
    """Steps of the checkpoints analysed."""
    sites: tuple[str, ...] = ()
    started: datetime | None = None
    seconds: float | None = None
    """Wall time from start to report."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Package to version."""
    commit: str = ""
    command: str = ""
    """How to make this report again."""
    pages: Mapping[str, str] = field(default_factory=dict)
    """Further pages, by title: their addresses relative to this one."""
    notes: str = ""
    """What a reader must know first: a caveat, a purpose."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was found, as a sentence, and how sure it is."""

    title: str
    sentence: str
    certainty: Estimate | None = None
    technique: str = ""
    """The technique whose section shows it."""


def write_report(
    path: Path | str, summary: RunSummary, results: Sequence[StoredResult], *, overview: Sequence[Finding] = ()
) -> Path:
    """Write the report, whole or not at all, and return where it is.

    Parameters
    ----------
    path
        The HTML file. Its folder is made if it does not exist; an older report is replaced in one step.
    summary
        What was run.
    results
        Stored results in the order in which techniques and sites should be read. One section per technique.
    overview
        The findings, most important first.

    Returns
    -------
    Path
        The file written.
    """
    return write_whole(path, render_page(summary, results, overview=overview))


def render_page(summary: RunSummary, results: Sequence[StoredResult], *, overview: Sequence[Finding] = ()) -> str:
    """Return the report as HTML."""
    environment = Environment(
        loader=PackageLoader("mechint_core.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"prose": prose, "clean": wording.clean}
    sections = build_sections(results)
    return environment.get_template("page.html.j2").render(
        summary=summary,
        lead=_lead(summary, len(results), len(sections)),
        facts=list(_facts(summary)),
        findings=[_finding(each, {section.anchor for section in sections}) for each in overview],
        sections=sections,
        version=__version__,
    )


def prose(text: str) -> Markup:
    """Turn docstring text into HTML: `code`, *emphasis*, and no citation marks."""
    html = str(escape(" ".join(re.sub(r"\[@[^\]]*\]", "", wording.clean(text)).split())))
    html = re.sub(r"``?([^`]+)``?", r"<code>\1</code>", html)
    return Markup(re.sub(r"(?<!\w)\*([^*\s][^*]*)\*(?!\w)", r"<em>\1</em>", html))  # escaped above


def _lead(summary: RunSummary, n_results: int, n_techniques: int) -> str:
    """Say in one sentence what this is a report of."""
    said = [f"{wording.number(n_results)} result{'s' * (n_results != 1)}"]
    said.append(f"of {n_techniques} technique{'s' * (n_techniques != 1)}")
    if summary.checkpoints:
        said.append(f"on {_checkpoints(summary.checkpoints)}")
    if summary.sites:
        said.append(f"at {len(summary.sites)} site{'s' * (len(summary.sites) != 1)}")
    if summary.seconds is not None:
        said.append(f"in {wording.duration(summary.seconds)}")
    return " ".join(said) + "."


def _checkpoints(steps: Sequence[int]) -> str:
    first, last = wording.number(min(steps)), wording.number(max(steps))
    return f"{len(steps)} checkpoints (steps {first} to {last})" if len(steps) > 1 else f"one checkpoint (step {first})"


def _facts(summary: RunSummary) -> list[tuple[str, str, bool]]:
    """Return (what, value, is code) for everything that is known of the run."""
    samples = "" if summary.samples is None else f"{wording.number(summary.samples)} samples"
    facts = [
        ("Run", summary.run, False),
        ("Model", summary.model, False),
        ("Data", ", ".join(part for part in (summary.dataset, samples) if part), False),
        ("Checkpoints", _checkpoints(summary.checkpoints) if summary.checkpoints else "", False),
        ("Sites", ", ".join(summary.sites), True),
        (
            "Started",
            f"{summary.started.day} {summary.started:%B %Y, %H:%M %Z}".strip() if summary.started else "",
            False,
        ),
        ("Took", "" if summary.seconds is None else wording.duration(summary.seconds), False),
        ("Versions", ", ".join(f"{name} {version}" for name, version in summary.versions.items()), False),
        ("Commit", summary.commit, True),
        ("Command", summary.command, True),
    ]
    return [(what, wording.clean(value), code) for what, value, code in facts if value]


def _finding(finding: Finding, anchors: set[str]) -> dict[str, str]:
    link = anchor(finding.technique) if finding.technique else ""
    sure = finding.certainty
    return {
        "title": wording.clean(finding.title),
        "sentence": wording.clean(finding.sentence),
        "kind": wording.certainty(sure) if sure else "bare",
        "sure": wording.how_sure(sure) if sure else "",
        "link": f"#{link}" if link in anchors else "",
    }
