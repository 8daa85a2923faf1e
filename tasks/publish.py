"""Publish stored results to MLflow: its own task, never cached, idempotent by tag."""

from dataclasses import dataclass
from pathlib import Path

from prefect import task

from mechint_core.store import ActivationStore
from tasks._report import publish_artifact
from tasks._tracking import Tracked, log_figures, log_file, run_url, track
from tasks.provenance import git_commit, versions
from tasks.settings import settings


@dataclass(frozen=True, slots=True)
class Published:
    """Where a run's results are in MLflow."""

    run_id: str
    url: str
    n_results: int


@task(name="publish", retries=2, retry_delay_seconds=[1, 5], persist_result=False)
def publish(store: str, run: str, params: dict[str, str], datasets: dict[str, str], flow_run_id: str) -> Published:
    """Log every committed result of `run` that MLflow does not have yet."""
    opened = ActivationStore(store)
    results = [opened.result(key) for key in opened.results(run=run)]
    tags = {
        "prefect.flow_run_id": flow_run_id,
        "mechint.store": store,
        "mechint.commit": git_commit(),
        **{f"version.{name}": number for name, number in versions().items()},
    }
    uri = settings().mlflow_uri
    tracked: Tracked = track(
        uri, run=run, analysis=opened.uuid, results=results, params=params, datasets=datasets, tags=tags
    )
    if tracked.overall_is_new or tracked.n_new_checkpoints:
        last = max((each.key.step for each in results if each.key.step is not None), default=None)
        for result in results:
            # Not every checkpoint's: an artifact costs 20 ms, as much as the rest of a small task.
            if result.key.step in (None, last):
                publish_artifact(result)
    if tracked.overall_is_new:
        log_figures(uri, tracked.run_id, [each for each in results if each.key.step is None])
    return Published(tracked.run_id, run_url(uri, tracked), len(results))


def attach(run_id: str, path: Path, folder: str = "") -> None:
    """Add a file to the MLflow run: the report, a figure, a dictionary."""
    log_file(settings().mlflow_uri, run_id, path, folder)
