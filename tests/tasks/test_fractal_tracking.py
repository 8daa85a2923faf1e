"""Tracking a training: a real store, a real MLflow database, and a training that is killed."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from mlflow.tracking import MlflowClient

from mechint_core.errors import ConfigurationError
from mechint_core.fractals import DetrendedFluctuationAnalysisConfig, HiguchiFractalDimensionConfig
from mechint_core.geometry import PersistentHomologyConfig
from mechint_core.random import generator
from mechint_core.store import ActivationStore, ResultKey
from tasks.catalogue import TECHNIQUES
from tasks.fractal_tracking import track_fractals

MEASURES = {
    "higuchi_fractal_dimension": HiguchiFractalDimensionConfig(n_bootstrap=20, n_surrogates=0),
    "detrended_fluctuation_analysis": DetrendedFluctuationAnalysisConfig(
        scales=(8, 16, 32), n_bootstrap=0, n_surrogates=0
    ),
}


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made once: MLflow takes 6 s to lay out its tables."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments(max_results=1)
    return path


@pytest.fixture
def folder(tmp_path: Path, empty_database: Path) -> Path:
    return with_database(tmp_path, empty_database)


def with_database(folder: Path, empty_database: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(empty_database, folder / "mlflow.db")
    return folder


class Killed(BaseException):
    """Not an Exception, as a signal is none."""


def hidden_at(step: int) -> np.ndarray:
    return generator(step, "hidden").normal(size=(2, 64, 3))


def train(folder: Path, *, first: int = 1, last: int = 6, killed_at: int = 0, **options: object) -> None:
    places = {"store": str(folder / "store"), "mlflow_uri": f"sqlite:///{folder / 'mlflow.db'}"}
    with track_fractals(MEASURES, run="gru", every=2, **places, **options) as tracker:
        for step in range(first, last + 1):
            tracker(step, hidden_at(step), loss=1 / step)
            if step == killed_at:
                raise Killed


def runs_in(folder: Path) -> list:
    client = MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")
    return client.search_runs([client.get_experiment_by_name("mechint").experiment_id])


def steps_of(folder: Path, metric: str) -> list[int]:
    client = MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")
    (run,) = runs_in(folder)
    return [each.step for each in client.get_metric_history(run.info.run_id, metric)]


def test_track_fractals__leaves_the_results_of_the_technique_in_the_store(folder: Path):
    train(folder)

    store = ActivationStore(folder / "store")
    keys = store.results("gru")
    assert {(key.technique, key.name, key.step) for key in keys} == {
        (technique, "hidden", step) for technique in MEASURES for step in (2, 4, 6)
    }
    series = hidden_at(4).transpose(1, 0, 2).reshape(64, 6)
    for name, config in MEASURES.items():
        technique = TECHNIQUES[name]
        stored = store.result(ResultKey("gru", name, "hidden", 4))
        expected = technique.compute(series, config=config)
        assert dict(stored.estimates) == pytest.approx(expected.estimates())
        assert stored.about == technique.about
        assert stored.provenance["version"] == technique.version


def test_track_fractals__logs_every_number_and_the_loss_to_mlflow(folder: Path):
    train(folder, params={"seed": 0, "weight": 0.1})

    (run,) = runs_in(folder)
    stored = ActivationStore(folder / "store").result(ResultKey("gru", "higuchi_fractal_dimension", "hidden", 6))
    assert run.info.status == "FINISHED"
    assert run.data.params == {"seed": "0", "weight": "0.1"}
    assert run.data.metrics["loss"] == pytest.approx(1 / 6)
    dimension = stored.estimates["mean_dimension"]
    assert run.data.metrics["higuchi_fractal_dimension/hidden/mean_dimension"] == dimension.value
    assert run.data.metrics["higuchi_fractal_dimension/hidden/mean_dimension.low"] == dimension.low
    assert "higuchi_fractal_dimension/hidden/mean_dimension.p_value" not in run.data.metrics  # NaN: not drawn
    assert steps_of(folder, "loss") == [2, 4, 6]


def test_track_fractals__of_a_killed_training_goes_on_without_a_step_twice(folder: Path, empty_database: Path):
    """Killed after step 4 and resumed from a checkpoint at step 3: step 4 comes again."""
    with pytest.raises(Killed):
        train(folder, killed_at=4)
    assert runs_in(folder)[0].info.status == "KILLED"
    before = ActivationStore(folder / "store").result(ResultKey("gru", "higuchi_fractal_dimension", "hidden", 4))

    train(folder, first=4)

    whole = with_database(folder / "whole", empty_database)
    train(whole)
    for metric in ("loss", *(f"{name}/hidden/n_units" for name in MEASURES)):
        assert steps_of(folder, metric) == steps_of(whole, metric) == [2, 4, 6]
    assert runs_in(folder)[0].info.status == "FINISHED"
    for key in ActivationStore(whole / "store").results("gru"):
        digests = [ActivationStore(each / "store").result(key).provenance["digest"] for each in (folder, whole)]
        assert digests[0] == digests[1]
    after = ActivationStore(folder / "store").result(before.key)
    assert after.provenance["cache_key"] == before.provenance["cache_key"]


def test_track_fractals__logs_what_a_kill_between_store_and_mlflow_left_out(folder: Path, monkeypatch):
    from tasks._tracking import TrainingRun

    def killed(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(TrainingRun, "log", killed)
        with pytest.raises(Killed):
            train(folder)
    assert ActivationStore(folder / "store").results("gru")

    train(folder)

    assert steps_of(folder, "higuchi_fractal_dimension/hidden/mean_dimension") == [2, 4, 6]


def test_track_fractals__tells_trainings_with_other_parameters_apart(folder: Path):
    train(folder, params={"seed": 0})
    train(folder, params={"seed": 1})
    train(folder, params={"seed": 1})

    assert [run.data.params["seed"] for run in runs_in(folder)] == ["1", "0"]


def test_track_fractals__says_that_a_training_failed(folder: Path):
    places = {"store": str(folder / "store"), "mlflow_uri": f"sqlite:///{folder / 'mlflow.db'}"}
    with pytest.raises(ZeroDivisionError), track_fractals(MEASURES, run="gru", **places):
        raise ZeroDivisionError

    assert runs_in(folder)[0].info.status == "FAILED"


def test_track_fractals__writes_where_the_settings_say(home: Path, empty_database: Path):
    with_database(home / "mlflow", empty_database)

    with track_fractals(MEASURES, run="gru", every=1) as tracker:
        assert tracker.due(1)
        assert len(tracker(1, hidden_at(1))) == 2

    client = MlflowClient(tracking_uri=f"sqlite:///{home / 'mlflow' / 'mlflow.db'}")
    assert len(client.search_runs([client.get_experiment_by_name("mechint").experiment_id])) == 1
    assert len(ActivationStore(home / "store").results("gru")) == 2


@pytest.mark.parametrize(
    ("measures", "message"),
    [
        ({"fractal": None}, "measures must name techniques. Got 'fractal'"),
        ({"cka": TECHNIQUES["cka"].config()}, "must take one array. Got cka"),
        ({"higuchi_fractal_dimension": PersistentHomologyConfig()}, "must have a HiguchiFractalDimensionConfig"),
    ],
)
def test_track_fractals__raises_on_what_is_no_measure(folder: Path, measures: dict, message: str):
    places = {"store": str(folder / "store"), "mlflow_uri": f"sqlite:///{folder / 'mlflow.db'}"}
    with pytest.raises(ConfigurationError, match=message), track_fractals(measures, run="gru", **places):
        pass
