"""The whole pipeline on a tiny run: nothing is done twice, a change costs its own work only, nothing is lost."""

from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from flows.configuration import load_configuration
from flows.monitor_training import Monitored, monitor_training
from flows.pending import AnalysisError
from flows.plan import make_plan
from mechint_core.store import ActivationStore, ResultKey
from tasks.settings import settings
from tests.flows.tiny import STEPS, write_checkpoint, write_run

pytestmark = pytest.mark.usefixtures("prefect_api", "home")

N_SITES, N_PER_CHECKPOINT, N_OVERALL = 2, 2, 1


def monitor(path: Path) -> Monitored:
    return monitor_training(path)


def test_monitor_training__does_everything_once(tmp_path: Path):
    path = write_run(tmp_path)

    first, second = monitor(path), monitor(path)

    assert first.n_collected == N_SITES * len(STEPS)
    assert first.n_analysed == N_PER_CHECKPOINT * len(STEPS) + N_OVERALL
    assert (second.n_collected, second.n_analysed) == (0, 0)
    assert second.n_results == first.n_results == first.n_analysed
    assert second.mlflow_run == first.mlflow_run


def test_monitor_training__redoes_only_a_changed_checkpoint(tmp_path: Path):
    path = write_run(tmp_path)
    monitor(path)
    store = ActivationStore(settings().store_location)
    untouched = ResultKey(run="tiny", technique="persistent_homology", name="act", step=STEPS[0])
    before = store.result_provenance(untouched)

    write_checkpoint(tmp_path / "checkpoints", STEPS[1], seed=99)
    again = monitor(path)

    assert again.n_collected == N_SITES
    assert again.n_analysed == N_PER_CHECKPOINT + N_OVERALL
    assert store.result_provenance(untouched) == before


def test_monitor_training__a_new_checkpoint_costs_its_own_work(tmp_path: Path):
    path = write_run(tmp_path)
    monitor(path)

    write_checkpoint(tmp_path / "checkpoints", 30)
    again = monitor(path)

    assert again.n_collected == N_SITES
    assert again.n_analysed == N_PER_CHECKPOINT + N_OVERALL


def test_monitor_training__redoes_what_another_config_asks(tmp_path: Path):
    monitor(write_run(tmp_path))

    analyses = [{"technique": "persistent_homology", "sites": ["act"], "config": {"seed": 1}}]
    again = monitor(write_run(tmp_path, analyses=analyses))

    assert (again.n_collected, again.n_analysed) == (0, len(STEPS))


def test_monitor_training__keeps_the_rest_when_one_analysis_fails(tmp_path: Path):
    """One site is constant in one checkpoint: its analysis refuses, the others are stored and reported."""
    from safetensors.torch import load_file, save_file

    path = write_run(tmp_path)
    checkpoint = tmp_path / "checkpoints" / "step_00010.safetensors"
    dead = load_file(checkpoint)
    save_file({name: value * 0 for name, value in dead.items()}, checkpoint)

    with pytest.raises(AnalysisError, match="persistent_homology act @10"):
        monitor(path)

    stored = ActivationStore(settings().store_location).results(run="tiny", technique="persistent_homology")
    assert {key.step for key in stored} == {0, 20}
    assert (settings().root / "reports" / "tiny.html").exists()


def test_monitor_training__tracks_each_checkpoint_as_a_model(tmp_path: Path):
    path = write_run(tmp_path)
    monitored = monitor(path)
    monitor(path)

    client = MlflowClient(settings().mlflow_uri)
    run = client.get_run(monitored.mlflow_run)
    models = client.search_logged_models([run.info.experiment_id])
    ranked = client.search_logged_models(
        [run.info.experiment_id],
        order_by=[{"field_name": "metrics.persistent_homology/act/longest_h1", "ascending": False}],
    )

    assert {model.params["step"] for model in models} == {str(step) for step in STEPS}
    assert len(ranked) == len(STEPS)
    assert run.data.tags["prefect.flow_run_id"]
    assert {each.dataset.name for each in run.inputs.dataset_inputs} == {"probe.x", "probe.label"}
    history = client.get_metric_history(monitored.mlflow_run, "cka/act-out/similarity")
    assert sorted(point.step for point in history) == list(STEPS)


def test_monitor_training__digests_are_one_identity(tmp_path: Path):
    """The commit's digest is the cache key's input and MLflow's dataset digest."""
    path = write_run(tmp_path)
    monitored = monitor(path)
    plan = make_plan(load_configuration(path), settings().store_location)
    store = ActivationStore(settings().store_location)

    digest = store.inputs("probe")["x"].digest
    run = MlflowClient(settings().mlflow_uri).get_run(monitored.mlflow_run)

    assert plan.fields["probe"]["x"].digest == digest
    assert digest[:36] in {each.dataset.digest for each in run.inputs.dataset_inputs}


def test_monitor_training__leaves_the_newest_results_as_artifacts(tmp_path: Path):
    from prefect.client.orchestration import get_client

    monitor(write_run(tmp_path))

    with get_client(sync_client=True) as client:
        keys = {each.key for each in client.read_artifacts(limit=100)}
    assert {"persistent-homology", "cka", "training-trajectory", "mlflow-run"} <= keys
