"""Write the report of a training run, from what is stored and nothing else."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from urllib.parse import quote

from flows.brain_comparisons import count_comparisons
from flows.circuits import count_circuits
from flows.dictionaries import ALWAYS
from flows.plan import Plan
from mechint_core.models import load_factory
from mechint_core.report import DictionaryNames, Finding, RunSummary, write_dictionary_page, write_report
from mechint_core.report.dictionary_page import TECHNIQUES
from mechint_core.store import ActivationStore, StoredResult
from tasks.dictionaries import TECHNIQUE as TRAINING
from tasks.provenance import git_commit, versions
from tasks.publish import Published, attach
from tasks.settings import settings

Findings = Callable[[Sequence[StoredResult]], Sequence[Finding]]


def compose_report(plan: Plan, published: Published | None = None, *, started: datetime | None = None) -> Path:
    """Write the page of the run that `plan` describes, add it to its MLflow run, and return where it is."""
    results = stored_results(plan)
    pages = dictionary_pages(plan, results)
    findings: Findings = load_factory(plan.config.findings) if plan.config.findings else general_findings
    path = write_report(
        report_path(plan),
        _summary(plan, started, pages),
        results,
        overview=findings(results) if results else (),
    )
    if published is not None:
        attach(published.run_id, path, "report")
        for page in pages.values():
            attach(published.run_id, page, f"report/{page.parent.name}")
    return path


def dictionary_pages(plan: Plan, results: Sequence[StoredResult]) -> dict[str, Path]:
    """Write a page for every dictionary whose latents have examples, concepts or effects; return them by title."""
    names = plan.config.names.model_dump(exclude_none=True)
    words = DictionaryNames(**{kind: load_factory(factory)() for kind, factory in names.items()})
    shown: dict[tuple[str, int], list[StoredResult]] = {
        (each.key.name, each.key.step): []
        for each in results
        if each.key.technique == TRAINING and each.key.step is not None
    }
    for each in results:
        if each.key.technique in TECHNIQUES and each.key.step is not None:
            shown.get((each.key.name, each.key.step), []).append(each)
    pages: dict[str, Path] = {}
    for (name, step), found in shown.items():
        if any(each.key.technique != "evaluate_dictionary" for each in found):
            title = f"{name} at step {step}"
            folder = report_path(plan).with_suffix("")
            pages[title] = write_dictionary_page(
                folder / f"{name} {step}.html", f"Dictionary of {title}", found, names=words
            )
    return pages


def report_path(plan: Plan) -> Path:
    """Return where the run's report is."""
    return settings().root / "reports" / f"{plan.config.run}.html"


def stored_results(plan: Plan) -> list[StoredResult]:
    """Return the run's results in the order in which the configuration asks for them."""
    store = ActivationStore(plan.store)
    asked = (
        *plan.outline(),
        *count_circuits(plan),
        *count_comparisons(plan),
        TRAINING,
        *ALWAYS,
        *(each.technique for each in plan.analyses),
    )
    order = {name: place for place, name in enumerate(dict.fromkeys(asked))}
    keys = sorted(
        store.results(run=plan.config.run),
        key=lambda key: (
            order.get(key.technique, len(order)),
            key.technique,
            key.name,
            -1 if key.step is None else key.step,
        ),
    )
    return [store.result(key) for key in keys]


def general_findings(results: Sequence[StoredResult]) -> list[Finding]:
    """Open with a sentence per technique: over the whole training, then at the last checkpoint, at its first site."""
    last = max((each.key.step for each in results if each.key.step is not None), default=None)
    first_of: dict[tuple[str, bool], StoredResult] = {}
    for result in results:
        if result.key.step in (None, last):
            first_of.setdefault((result.key.technique, result.key.step is None), result)
    overall = [each for (_, whole), each in first_of.items() if whole]
    final = [each for (_, whole), each in first_of.items() if not whole]
    return [_finding(each, "") for each in overall] + [_finding(each, f" at step {last}") for each in final]


def _finding(result: StoredResult, when: str) -> Finding:
    title = f"{result.key.technique.replace('_', ' ').capitalize()}, {result.key.name}{when}"
    certainty = next(iter(result.estimates.values()), None)
    return Finding(title, result.reading, certainty, result.key.technique)


def _summary(plan: Plan, started: datetime | None, pages: Mapping[str, Path]) -> RunSummary:
    return RunSummary(
        pages={title: quote(f"{page.parent.name}/{page.name}") for title, page in pages.items()},
        title=plan.config.title or plan.config.run,
        run=plan.config.run,
        model=plan.config.model.factory,
        dataset=plan.config.dataset,
        samples=plan.n_samples,
        checkpoints=tuple(plan.steps),
        sites=tuple(plan.sites),
        started=started,
        seconds=(datetime.now(started.tzinfo) - started).total_seconds() if started else None,
        versions=versions(),
        commit=git_commit(),
    )
