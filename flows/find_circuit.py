"""Which components and connections implement this behaviour? From a scan to a circuit verified on other prompts."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from prefect import flow
from prefect.runtime import flow_run

from flows.circuits import comparisons, cross_checks, discoveries, found_circuits, scans, verifications
from flows.collect_activations import RUNNER
from flows.configuration import RunSection, configuration
from flows.pending import raise_failures, run_pending
from flows.plan import Plan, make_plan
from flows.report import compose_report
from mechint_core.circuits import Circuit
from mechint_core.errors import ConfigurationError
from tasks.publish import attach, publish
from tasks.settings import settings


@dataclass(frozen=True, slots=True)
class FoundCircuits:
    """What was found, and where it is."""

    circuits: Mapping[tuple[str, int], Circuit]
    """By behaviour and step."""
    files: Mapping[tuple[str, int], Path]
    """The same as JSON."""
    readings: Mapping[tuple[str, int], str]
    """What the judgement on held-out prompts says of each."""
    report: Path


@flow(name="find-circuit", task_runner=RUNNER, validate_parameters=False)
def find_circuit(config: RunSection | Path) -> FoundCircuits:
    """Find and verify the circuits of a configuration's behaviours, publish them, and write the report.

    Raises
    ------
    ConfigurationError
        If the configuration names no behaviour.
    AnalysisError
        If something failed; the rest is stored.
    """
    started = datetime.now(UTC)
    plan = make_plan(configuration(config), settings().store_location)
    if not plan.config.circuits:
        raise ConfigurationError(
            "the configuration must name behaviours under `circuits`. Got none. See docs/how-to/find-a-circuit.md."
        )
    failures: list[str] = []
    find_and_verify(plan, failures)
    published = publish(plan.store, plan.config.run, {}, plan.digests(), str(flow_run.get_id() or ""))
    files = save_circuits(plan, published.run_id)
    report = compose_report(plan, published, started=started)
    raise_failures(failures)
    return FoundCircuits(found_circuits(plan), files, _readings(plan), report)


def find_and_verify(plan: Plan, failures: list[str]) -> int:
    """Do the pending work on circuits; return how much there was."""
    if not plan.config.circuits:
        return 0
    n_done = run_pending("circuits", [*scans(plan), *discoveries(plan)], failures)
    n_done += run_pending("verification", [*cross_checks(plan), *verifications(plan)], failures)
    return n_done + run_pending("formation", comparisons(plan), failures)


def save_circuits(plan: Plan, mlflow_run: str) -> dict[tuple[str, int], Path]:
    """Write every circuit as JSON below the data folder, add it to the MLflow run, and return where it is."""
    folder, files = settings().root / "circuits" / plan.config.run, dict[tuple[str, int], Path]()
    for (name, step), circuit in found_circuits(plan).items():
        path = folder / f"{name} {step}.json"
        if not path.exists() or path.read_text(encoding="utf-8") != circuit.to_json():
            folder.mkdir(parents=True, exist_ok=True)
            circuit.save(path)
            attach(mlflow_run, path, "circuits")
        files[name, step] = path
    return files


def _readings(plan: Plan) -> dict[tuple[str, int], str]:
    """Return the judgement of every circuit at the checkpoint where it was found."""
    names = {section.name for section in plan.config.circuits}
    return {
        (work.name, work.step): plan.result(work).reading
        for work in verifications(plan)
        if work.name in names and work.step is not None and work.is_done()
    }
