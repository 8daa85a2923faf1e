"""How well does each site match these recordings, against the noise ceiling? And when in training does it?"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from prefect import flow
from prefect.runtime import flow_run

from flows.brain_comparisons import alignments, maps, trajectories
from flows.collect_activations import RUNNER, record
from flows.configuration import RunSection, configuration
from flows.pending import raise_failures, run_pending
from flows.plan import Plan, make_plan
from flows.report import compose_report
from mechint_core.errors import ConfigurationError
from tasks.publish import publish
from tasks.settings import settings


@dataclass(frozen=True, slots=True)
class Compared:
    """What was found, in words, and where it is."""

    readings: Mapping[tuple[str, int | None], str]
    """What the maps (by name and step) and the courses through training (step None) say."""
    report: Path


@flow(name="compare-to-brain", task_runner=RUNNER, validate_parameters=False)
def compare_to_brain(config: RunSection | Path) -> Compared:
    """Compare every chosen site and checkpoint with the configuration's recordings, and write the report.

    Raises
    ------
    ConfigurationError
        If the configuration names no recording.
    AnalysisError
        If something failed; the rest is stored.
    """
    started = datetime.now(UTC)
    plan = make_plan(configuration(config), settings().store_location)
    if not plan.config.brains:
        raise ConfigurationError(
            "the configuration must name recordings under `brains`. Got none. See docs/how-to/compare-to-a-brain.md."
        )
    record(plan)
    failures: list[str] = []
    align_and_follow(plan, failures)
    published = publish(plan.store, plan.config.run, {}, plan.digests(), str(flow_run.get_id() or ""))
    report = compose_report(plan, published, started=started)
    raise_failures(failures)
    found = [*maps(plan), *trajectories(plan)]
    return Compared({(work.name, work.step): plan.result(work).reading for work in found if work.is_done()}, report)


def align_and_follow(plan: Plan, failures: list[str]) -> int:
    """Do the pending comparisons with recordings; return how much there was."""
    if not plan.config.brains:
        return 0
    n_done = run_pending("brain alignment", alignments(plan), failures)
    return n_done + run_pending("brain maps", [*maps(plan), *trajectories(plan)], failures)
