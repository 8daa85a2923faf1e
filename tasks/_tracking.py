"""Show results in MLflow: the only module that knows it.

One parent run per (training run x store), found by its tag and resumed, never duplicated. Each checkpoint is an
external LoggedModel with its metrics, so that `search_logged_models` ranks checkpoints; results over several
checkpoints are metrics of the run itself. What is already there, by the digest of the results, is not logged twice.

Training dictionaries has a parent run of its own, with a child per dictionary that sees it learn; a network whose
fractals are tracked has one run.
"""

import json
import os
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import get_ident
from typing import Any

from mlflow.entities import Dataset, DatasetInput, LoggedModel, LoggedModelOutput, Metric, Param, Run, RunTag
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_MODEL_IS_EXTERNAL, MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NOTE

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


class DictionaryRun:
    """The MLflow run of one dictionary: its metrics while it learns, and what came out.

    A training that is resumed continues the run it had begun, and logs no step twice.
    """

    def __init__(self, client: MlflowClient, run: Run, label: str) -> None:
        self._client, self._run, self._label = client, run, label
        logged = client.get_metric_history(run.info.run_id, "loss") if "loss" in run.data.metrics else []
        self._last = max((each.step for each in logged), default=0)

    def __enter__(self) -> "DictionaryRun":
        self._client.update_run(self._run.info.run_id, status="RUNNING")
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            status = "FAILED" if issubclass(kind, Exception) else "KILLED"
            self._client.set_terminated(self._run.info.run_id, status)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log the metrics of a step, in one call."""
        if step <= self._last:
            return
        now = int(time.time() * 1000)
        rows = [Metric(name, value, now, step) for name, value in metrics.items() if value == value]
        self._client.log_batch(self._run.info.run_id, metrics=rows)
        self._last = step

    def finish(self, result: StoredResult, folder: Path) -> None:
        """Log the final numbers, the figures and the dictionary itself, as files and as a LoggedModel."""
        client, run_id = self._client, self._run.info.run_id
        model = client.create_logged_model(
            self._run.info.experiment_id,
            name=metric_name(result, "dictionary").replace("/", "-").replace(".", "-"),
            source_run_id=run_id,
            params={"label": self._label, "step": str(result.key.step)},
            model_type="sparse dictionary",
        )
        client.log_model_artifacts(model.model_id, str(folder))
        client.finalize_logged_model(model.model_id, "READY")
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, result.key.step or 0)])
        now = int(time.time() * 1000)
        rows = [
            Metric(f"final/{name}", value, now, self._last, model_id=model.model_id, run_id=None)
            for name, value in scalars(result).items()
            if value == value
        ]
        client.log_batch(run_id, metrics=rows)
        client.log_artifacts(run_id, str(folder), "dictionary")
        log_figures_with(client, run_id, [result])
        client.set_tag(run_id, MLFLOW_RUN_NOTE, result.reading)
        client.set_terminated(run_id, "FINISHED")


def child_runs(
    uri: str, run: str, analysis: str, flow_run_id: str, params: Mapping[str, Mapping[str, str]]
) -> dict[str, DictionaryRun]:
    """Find or make the run of each dictionary, by its `cache_key`, below the one that holds the study of `run`."""
    client = _client(uri)
    experiment = _experiment(client, uri)
    parent = _parent(client, experiment, f"{run} dictionaries", analysis)
    if flow_run_id:
        client.set_tag(parent.info.run_id, "prefect.flow_run_id", flow_run_id)
    made: dict[str, DictionaryRun] = {}
    for label, named in params.items():
        tag = dictionary_tag(run, analysis, label, named["cache_key"])
        found = client.search_runs([experiment], f"tags.`mechint.dictionary` = '{tag}'", max_results=1)
        child = found[0] if found else _child(client, experiment, parent, label, tag, named)
        made[label] = DictionaryRun(client, child, label)
    return made


def dictionary_tag(run: str, analysis: str, label: str, cache_key: str) -> str:
    """Return what a dictionary's run is found by."""
    return digest_of([run, analysis, label, cache_key])[:24]


def finished_dictionaries(uri: str, run: str, analysis: str) -> set[str]:
    """Return the tags of the dictionaries whose runs are complete."""
    client = _client(uri)
    experiment = _experiment(client, uri)
    parent = _parent(client, experiment, f"{run} dictionaries", analysis)
    of_parent = f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{parent.info.run_id}' AND attributes.status = 'FINISHED'"
    found = client.search_runs([experiment], of_parent, max_results=10_000)
    return {each.data.tags["mechint.dictionary"] for each in found}


def _child(client: MlflowClient, experiment: str, parent: Run, label: str, tag: str, params: Mapping[str, str]) -> Run:
    tags = {"mechint.dictionary": tag, MLFLOW_PARENT_RUN_ID: parent.info.run_id}
    child = client.create_run(experiment, run_name=f"{label} @{params['step']}", tags=tags)
    client.log_batch(child.info.run_id, params=[Param(name, value[:500]) for name, value in params.items()])
    datasets = {name.removeprefix("data."): value for name, value in params.items() if name.startswith("data.")}
    _log_datasets(client, child, datasets)
    return child


class TrainingRun:
    """The MLflow run of a network in training. One that is resumed is continued, and no metric has a step twice."""

    def __init__(self, client: MlflowClient, run: Run) -> None:
        self._client, self._run_id = client, run.info.run_id
        self._last = {
            name: max(each.step for each in client.get_metric_history(self._run_id, name)) for name in run.data.metrics
        }

    def __enter__(self) -> "TrainingRun":
        self._client.update_run(self._run_id, status="RUNNING")
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        failed = "FAILED" if kind is not None and issubclass(kind, Exception) else "KILLED"
        self._client.set_terminated(self._run_id, "FINISHED" if kind is None else failed)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log what has no value at this step or a later one, in as few calls as MLflow allows."""
        now = int(time.time() * 1000)
        new = {name: value for name, value in metrics.items() if value == value and step > self._last.get(name, -1)}
        rows = [Metric(name, value, now, step) for name, value in new.items()]
        for start in range(0, len(rows), _BATCH):
            self._client.log_batch(self._run_id, metrics=rows[start : start + _BATCH])
        self._last |= dict.fromkeys(new, step)


def training_run(uri: str, run: str, analysis: str, params: Mapping[str, str]) -> TrainingRun:
    """Find or make the MLflow run of training `run` with these parameters, for the store of this analysis."""
    client = _client(uri)
    experiment = _experiment(client, uri)
    tag = digest_of([run, analysis, dict(params)])[:24]
    found = client.search_runs([experiment], f"tags.`mechint.training` = '{tag}'", max_results=1)
    if found:
        return TrainingRun(client, found[0])
    tags = {"mechint.training": tag, "mechint.run": run}
    made = client.create_run(experiment, run_name=f"{run} training", tags=tags)
    client.log_batch(made.info.run_id, params=[Param(name, value[:500]) for name, value in params.items()])
    return TrainingRun(client, made)


def log_study(uri: str, run: str, analysis: str, results: Sequence[StoredResult]) -> None:
    """Log what compares the dictionaries of `run` to their parent run, and end it."""
    client = _client(uri)
    parent = _parent(client, _experiment(client, uri), f"{run} dictionaries", analysis)
    if _log_overall(client, parent, results):
        log_figures_with(client, parent.info.run_id, results)
    client.set_terminated(parent.info.run_id, "FINISHED")


def log_file(uri: str, run_id: str, path: Path, folder: str = "") -> None:
    """Add a file to a run's artifacts."""
    _client(uri).log_artifact(run_id, str(path), folder or None)


def log_figures(uri: str, run_id: str, results: Sequence[StoredResult]) -> None:
    """Draw the figures of `results` and add them to a run's artifacts."""
    log_figures_with(_client(uri), run_id, results)


def log_figures_with(client: MlflowClient, run_id: str, results: Sequence[StoredResult]) -> None:
    """Draw the figures of `results` and add them to a run's artifacts, by a client that is there already."""
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
        _make_database(Path(uri.removeprefix("sqlite:///")))
    return MlflowClient(tracking_uri=uri)


def _make_database(path: Path) -> None:
    """Make a database whole or not at all: MLflow cannot open one whose making was killed halfway."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}-{get_ident()}.partial")
    try:
        MlflowClient(tracking_uri=f"sqlite:///{partial}").search_experiments(max_results=1)
        if not path.exists():
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


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
    return allowed(f"{result.key.technique}/{result.key.name}/{scalar}")


def allowed(words: str) -> str:
    """Return `words` in the characters that MLflow allows in a name."""
    return "".join(c if c.isalnum() or c in "_-./ " else "-" for c in words)


def _log_metrics(client: MlflowClient, parent: Run, metrics: Sequence[Any]) -> None:
    for start in range(0, len(metrics), _BATCH):
        client.log_batch(parent.info.run_id, metrics=metrics[start : start + _BATCH])


def _by_step(results: Sequence[StoredResult]) -> dict[int | None, list[StoredResult]]:
    grouped: dict[int | None, list[StoredResult]] = {}
    for result in results:
        grouped.setdefault(result.key.step, []).append(result)
    return grouped
