"""How do representations evolve through training? Incremental: a new checkpoint costs only its own work."""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from prefect import flow
from prefect.runtime import flow_run

from flows.collect_activations import RUNNER, record
from flows.compare_to_brain import align_and_follow
from flows.configuration import RunSection, configuration
from flows.dictionaries import check_dictionaries
from flows.find_circuit import find_and_verify, save_circuits
from flows.pending import raise_failures, run_pending
from flows.plan import Plan, make_plan
from flows.report import compose_report, report_path
from flows.train_dictionaries import train_and_examine
from tasks._report import publish_link
from tasks.publish import publish
from tasks.settings import settings


@dataclass(frozen=True, slots=True)
class Monitored:
    """What one pass over a training run did, and where its results are."""

    n_collected: int
    """Arrays of activations recorded now."""
    n_analysed: int
    """Results computed now."""
    n_results: int
    """Results in all."""
    report: Path
    mlflow_run: str


@flow(name="monitor-training", task_runner=RUNNER, validate_parameters=False)
def monitor_training(config: RunSection | Path) -> Monitored:
    """Collect and analyse what is new in a training run, publish it, and write its report.

    Raises
    ------
    AnalysisError
        If analyses failed. Everything else was done first, and is stored, published and in the report.
    """
    started = datetime.now(UTC)
    plan = make_plan(configuration(config), settings().store_location)
    check_dictionaries(plan)
    n_collected = record(plan)
    failures: list[str] = []
    n_analysed = analyse(plan, failures)
    published = publish(plan.store, plan.config.run, _parameters(plan), plan.digests(), str(flow_run.get_id() or ""))
    publish_link("mlflow-run", published.url, "this analysis in MLflow (mechint ui)")
    save_circuits(plan, published.run_id)
    report = report_path(plan)
    if n_collected or n_analysed or not report.exists():
        compose_report(plan, published, started=started)
    raise_failures(failures)
    return Monitored(n_collected, n_analysed, published.n_results, report, published.run_id)


def analyse(plan: Plan, failures: list[str]) -> int:
    """Do the pending work of every kind, in the order in which one needs the other; return how much there was."""
    by_checkpoint = [work for checkpoint in plan.checkpoints for work in plan.of_checkpoint(checkpoint)]
    n_done = run_pending("checkpoints", by_checkpoint, failures)
    n_done += run_pending("training", plan.over_sites(), failures)
    n_done += train_and_examine(plan, failures)
    n_done += find_and_verify(plan, failures)
    n_done += align_and_follow(plan, failures)
    if not failures:
        n_done += run_pending("phases", plan.over_measures(), failures)
    return n_done


def _parameters(plan: Plan) -> dict[str, str]:
    return {
        "model": plan.config.model.factory,
        "checkpoints": str(plan.config.checkpoints),
        "sites": ", ".join(plan.sites),
        "dataset": plan.config.dataset,
        "n_samples": str(plan.n_samples),
        "techniques": ", ".join(plan.outline()),
    }
