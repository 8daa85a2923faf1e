"""Show results in MLflow: the only module that knows it.

One parent run per (training run x store), found by its tag and resumed, never duplicated. Each checkpoint is an
external LoggedModel with its metrics, so that `search_logged_models` ranks checkpoints; results over several
checkpoints are metrics of the run itself. What is already there, by the digest of the results, is not logged twice.
"""

import json
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow.entities import Dataset, DatasetInput, LoggedModel, LoggedModelOutput, Metric, Param, Run, RunTag
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_MODEL_IS_EXTERNAL, MLFLOW_RUN_NOTE

from mechint_core.report import draw
from mechint_core.store import StoredResult
from tasks.references import digest_of

_EXPERIMENT = "mechint"
_BATCH = 1000
"""Most metrics that one `log_batch` call takes."""


@dataclass(frozen=True, slots=True)
class Tracked:
    """Where a training run's results are in MLflow."""

    run_id: str
    experiment_id: str
    n_new_checkpoints: int
    overall_is_new: bool
    """Whether a result over several checkpoints was logged for the first time."""


def track(
    uri: str,
    *,
    run: str,
    analysis: str,
    results: Sequence[StoredResult],
    params: Mapping[str, str],
    datasets: Mapping[str, str],
    tags: Mapping[str, str],
) -> Tracked:
    """Log `results` of training run `run` under the analysis named `analysis`, once.

    Parameters
    ----------
    uri
        The tracking server or database.
    run, analysis
        The training run, and what tells this store's analysis of it from another's.
    results
        What to log: scalars of each result, by checkpoint where it has one.
    params
        Shown as parameters of the run.
    datasets
        Name of each data set and the digest of its content.
    tags
        Further tags, the Prefect flow run among them.
    """
    client = _client(uri)
    experiment = _experiment(client, uri)
    parent = _parent(client, experiment, run, analysis)
    client.log_batch(
        parent.info.run_id,
        params=[Param(name, value[:500]) for name, value in params.items() if name not in parent.data.params],
        tags=[RunTag(name, value) for name, value in tags.items()],
    )
    _log_datasets(client, parent, datasets)
    by_step = _by_step(results)
    new = sum(
        _log_checkpoint(client, experiment, parent, run, step, found)
        for step, found in by_step.items()
        if step is not None
    )
    overall_is_new = _log_overall(client, parent, by_step.get(None, []))
    client.set_terminated(parent.info.run_id, "FINISHED")
    return Tracked(parent.info.run_id, experiment, new, overall_is_new)


def log_file(uri: str, run_id: str, path: Path, folder: str = "") -> None:
    """Add a file to a run's artifacts."""
    _client(uri).log_artifact(run_id, str(path), folder or None)


def log_figures(uri: str, run_id: str, results: Sequence[StoredResult]) -> None:
    """Draw the figures of `results` and add them to a run's artifacts."""
    client = _client(uri)
    with tempfile.TemporaryDirectory() as folder:
        for result in results:
            for index, figure in enumerate(result.figures):
                name = f"{result.key.technique}-{result.key.name}-{index}".replace("/", "-")
                path = Path(folder) / f"{name}.png"
                path.write_bytes(draw(figure, result))
                client.log_artifact(run_id, str(path), "figures")


def run_url(uri: str, tracked: Tracked) -> str:
    """Return the address of the run's page, on the tracking server or on `mechint ui`'s port."""
    server = uri if uri.startswith("http") else "http://127.0.0.1:5000"
    return f"{server}/#/experiments/{tracked.experiment_id}/runs/{tracked.run_id}"


def _client(uri: str) -> MlflowClient:
    if uri.startswith("sqlite:///"):
        Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    return MlflowClient(tracking_uri=uri)


def _experiment(client: MlflowClient, uri: str) -> str:
    found = client.get_experiment_by_name(_EXPERIMENT)
    if found is not None:
        return found.experiment_id
    local = uri.removeprefix("sqlite:///") if uri.startswith("sqlite:///") else ""
    artifacts = Path(local).parent.joinpath("artifacts").as_uri() if local else None
    return client.create_experiment(_EXPERIMENT, artifact_location=artifacts)


def _parent(client: MlflowClient, experiment: str, run: str, analysis: str) -> Run:
    """Find the run by its tag, or make it: a retry, or the next checkpoint, resumes it."""
    tag = digest_of([run, analysis])[:24]
    found = client.search_runs([experiment], f"tags.`mechint.analysis` = '{tag}'", max_results=1)
    if found:
        return found[0]
    return client.create_run(experiment, run_name=run, tags={"mechint.analysis": tag, "mechint.run": run})


def _log_datasets(client: MlflowClient, parent: Run, datasets: Mapping[str, str]) -> None:
    known = {each.dataset.digest for each in parent.inputs.dataset_inputs} if parent.inputs else set[str]()
    new = [
        DatasetInput(Dataset(name, digest[:36], "local", json.dumps({"sha256": digest})))
        for name, digest in datasets.items()
        if digest[:36] not in known
    ]
    if new:
        client.log_inputs(parent.info.run_id, datasets=new)


def _log_checkpoint(
    client: MlflowClient, experiment: str, parent: Run, run: str, step: int, results: Sequence[StoredResult]
) -> bool:
    """Log one checkpoint's metrics to its LoggedModel; return whether anything was new."""
    digest = digest_of(sorted(str(each.provenance["digest"]) for each in results))
    name = f"{run}-step-{step}"
    model = _logged_model(client, experiment, parent, name, step)
    if model.tags.get("mechint.results") == digest:
        return False
    _log_metrics(client, parent, _metrics(results, step, model.model_id))
    client.set_logged_model_tags(model.model_id, {"mechint.results": digest})
    return True


def _logged_model(client: MlflowClient, experiment: str, parent: Run, name: str, step: int) -> LoggedModel:
    found = client.search_logged_models(
        [experiment], filter_string=f"name = '{name}' AND source_run_id = '{parent.info.run_id}'", max_results=1
    )
    if found:
        return found[0]
    # Not mlflow.create_external_model: it sets the tracking URI of the whole process, in its environment too.
    made = client.create_logged_model(
        experiment,
        name=name,
        source_run_id=parent.info.run_id,
        tags={MLFLOW_MODEL_IS_EXTERNAL: "true"},
        params={"step": str(step)},
        model_type="checkpoint",
    )
    client.log_outputs(parent.info.run_id, [LoggedModelOutput(made.model_id, step)])
    return client.finalize_logged_model(made.model_id, "READY")


def _log_overall(client: MlflowClient, parent: Run, results: Sequence[StoredResult]) -> bool:
    """Log the results over several checkpoints to the run itself; return whether anything was new."""
    digest = digest_of(sorted(str(each.provenance["digest"]) for each in results))
    if not results or parent.data.tags.get("mechint.overall") == digest:
        return False
    _log_metrics(client, parent, _metrics(results, 0, None))
    client.set_tag(parent.info.run_id, "mechint.overall", digest)
    readings = [f"**{each.key.technique} {each.key.name}**: {each.reading}" for each in results]
    client.set_tag(parent.info.run_id, MLFLOW_RUN_NOTE, "\n\n".join(readings))
    return True


def _metrics(results: Iterable[StoredResult], step: int, model_id: str | None) -> list[Metric]:
    now = int(time.time() * 1000)
    return [
        Metric(metric_name(result, name), value, now, step, model_id=model_id, run_id=None)
        for result in results
        for name, value in scalars(result).items()
        if value == value  # MLflow draws NaN as a point at zero
    ]


def scalars(result: StoredResult) -> dict[str, float]:
    """Return every number of a stored result under a flat name, as `Result.scalars` does."""
    parts = {
        f"{name}.{part}" if part else name: value
        for name, estimate in result.estimates.items()
        for part, value in estimate.parts().items()
    }
    return parts | dict(result.flags)


def metric_name(result: StoredResult, scalar: str) -> str:
    """Return `technique/name/scalar` in the characters that MLflow allows."""
    words = f"{result.key.technique}/{result.key.name}/{scalar}"
    return "".join(c if c.isalnum() or c in "_-./ " else "-" for c in words)


def _log_metrics(client: MlflowClient, parent: Run, metrics: Sequence[Any]) -> None:
    for start in range(0, len(metrics), _BATCH):
        client.log_batch(parent.info.run_id, metrics=metrics[start : start + _BATCH])


def _by_step(results: Sequence[StoredResult]) -> dict[int | None, list[StoredResult]]:
    grouped: dict[int | None, list[StoredResult]] = {}
    for result in results:
        grouped.setdefault(result.key.step, []).append(result)
    return grouped
