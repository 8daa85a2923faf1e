"""Dictionaries from a configuration: every kind, sweeps, one MLflow run each, killed and resumed to the same bits."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from mlflow.tracking import MlflowClient

from flows.configuration import configuration
from flows.dictionaries import dictionary_works, passes
from flows.monitor_training import monitor_training
from flows.pending import AnalysisError
from flows.plan import make_plan
from flows.train_dictionaries import train_dictionaries
from mechint_core.errors import ConfigurationError
from mechint_core.features import Crosscoder, SparseAutoencoder, Transcoder, load_dictionary
from mechint_core.store import ActivationStore, ResultKey
from tasks.settings import settings
from tests.flows.tiny import STEPS, write_run

pytestmark = pytest.mark.usefixtures("prefect_api", "home")

SMALL = {"n_latents": 24, "k": 2, "n_epochs": 4, "batch_size": 20}
ANALYSES = [{"technique": "cka"}]


def works(path: Path):
    return dictionary_works(make_plan(configuration(path), settings().store_location))


def test_train_dictionaries__makes_every_kind_in_one_pass(tmp_path: Path):
    sections = [
        {"site": "*", "config": SMALL},
        {"site": "act", "writes": "out", "skip": True, "config": SMALL | {"activation": "gated"}},
        {"sites": ["act", "out"], "config": SMALL},
        {"site": "act", "across_steps": True, "steps": ["first", "last"], "config": SMALL},
    ]
    path = write_run(tmp_path, analyses=ANALYSES, dictionaries=sections)

    keys = train_dictionaries(path)

    kinds = {work.label: type(load_dictionary(_folder(work))) for work in works(path)}
    assert kinds == {
        "act": SparseAutoencoder,
        "out": SparseAutoencoder,
        "act to out": Transcoder,
        "act+out": Crosscoder,
        "act over steps": Crosscoder,
    }
    assert [len(group) for group in passes(works(path))] == [5]
    assert {key.name for key in keys} == set(kinds)
    store = ActivationStore(settings().store_location)
    evaluated = {key.name for key in store.results(run="tiny") if key.technique == "evaluate_dictionary"}
    assert evaluated == {"act", "out", "act to out"}
    shared = {key.name for key in store.results(run="tiny") if key.technique == "latent_sharing"}
    assert shared == {"act+out", "act over steps"}


def test_train_dictionaries__a_sweep_has_a_run_each_below_one_and_a_frontier(tmp_path: Path):
    section = {"site": "act", "config": SMALL, "sweep": {"k": [1, 2, 4], "seed": [0, 1]}}
    path = write_run(tmp_path, analyses=ANALYSES, dictionaries=[section])

    train_dictionaries(path)

    client = MlflowClient(settings().mlflow_uri)
    experiment = client.get_experiment_by_name("mechint").experiment_id
    (parent,) = [r for r in client.search_runs([experiment]) if r.info.run_name == "tiny dictionaries"]
    children = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    assert {child.info.run_name for child in children} == {
        f"act (k={k}, seed={seed}) @{STEPS[-1]}" for k in (1, 2, 4) for seed in (0, 1)
    }
    (child,) = [each for each in children if each.info.run_name.startswith("act (k=4, seed=1)")]
    assert child.info.status == "FINISHED"
    assert child.data.params["config.k"] == "4"
    assert child.inputs.dataset_inputs[0].dataset.digest == works(path)[0].sources["act"].digest[:36]
    steps = [each.step for each in client.get_metric_history(child.info.run_id, "loss")]
    assert steps == sorted(set(steps))
    assert steps[-1] == 8
    files = {each.path for each in client.list_artifacts(child.info.run_id, "dictionary")}
    assert "dictionary/dictionary.safetensors" in files
    (model,) = client.search_logged_models([experiment], filter_string=f"source_run_id = '{child.info.run_id}'")
    assert {each.key for each in model.metrics} >= {"final/fvu", "final/l0", "final/fvu.null"}
    frontier = ActivationStore(settings().store_location).result(
        ResultKey(run="tiny", technique="sparsity_frontier", name="act", step=STEPS[-1])
    )
    assert frontier.flags["n_dictionaries"] == 6
    assert any("sparsity_frontier" in each.path for each in client.list_artifacts(parent.info.run_id, "figures"))


def test_train_dictionaries__asks_what_the_configuration_asks(tmp_path: Path):
    """Techniques that take a dictionary, one that may, and those of every dictionary; a page with what was found."""
    analyses = [
        {"technique": "loss_recovered", "inputs": {"inputs": "probe.x", "target": "probe.label"}},
        {"technique": "feature_examples", "sites": ["act"]},
        {
            "technique": "integrated_gradients",
            "inputs": {"inputs": "probe.x", "target": "probe.label", "dictionary": "act"},
            "config": {"site": "act"},
        },
    ]
    sections = [{"site": "*", "config": SMALL}]
    path = write_run(tmp_path, analyses=analyses, dictionaries=sections)

    monitored = monitor_training(path)

    store = ActivationStore(settings().store_location)
    done = {(key.technique, key.name) for key in store.results(run="tiny")}
    assert done >= {
        ("loss_recovered", "act"),
        ("loss_recovered", "out"),
        ("feature_examples", "act"),
        ("integrated_gradients", "act"),
        ("evaluate_dictionary", "out"),
    }
    assert ("feature_examples", "out") not in done
    page = monitored.report.with_suffix("") / f"act {STEPS[-1]}.html"
    assert "Dictionary of act at step 20" in page.read_text()
    assert f'href="tiny/act%20{STEPS[-1]}.html"' in monitored.report.read_text()


def test_monitor_training__trains_each_dictionary_once(tmp_path: Path):
    path = write_run(tmp_path, analyses=ANALYSES, dictionaries=[{"site": "act", "config": SMALL}])

    first, second = monitor_training(path), monitor_training(path)

    assert first.n_analysed == len(STEPS) + 2
    assert second.n_analysed == 0


def test_train_dictionaries__leaves_out_what_the_mask_leaves_out(tmp_path: Path):
    """act has no positions; a mask of samples cuts the steps of an epoch from two to one."""
    data = {"probe": {"factory": "tests.flows.test_train_dictionaries:masked_dataset"}}
    section = {"site": "act", "mask": "probe.mask", "config": SMALL}
    path = write_run(tmp_path, analyses=ANALYSES, datasets=data, dictionaries=[section])

    train_dictionaries(path)

    record = ActivationStore(settings().store_location).result(works(path)[0].key)
    assert record.flags["n_steps"] == 4


def masked_dataset():
    from tests.flows.tiny import build_dataset

    return build_dataset() | {"mask": np.arange(40) < 20}


KILLED = """
import sys
from pathlib import Path
from flows.train_dictionaries import train_dictionaries
train_dictionaries(Path(sys.argv[1]))
"""


@pytest.mark.slow
def test_train_dictionaries__killed_and_resumed_through_the_task_ends_with_the_same_bits(
    tmp_path: Path, prefect_api: str
):
    """kill -9 while the task trains, after its first save; the second flow run finishes it."""
    long = SMALL | {"n_epochs": 150}
    path = write_run(tmp_path, analyses=ANALYSES, dictionaries=[{"site": "act", "config": long}])
    root = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "PYTHONPATH": root, "PREFECT_API_URL": prefect_api}
    with subprocess.Popen([sys.executable, "-c", KILLED, str(path)], env=environment) as child:
        state = Path(settings().store_location) / "dictionaries" / "tiny" / f"{STEPS[-1]:010d}" / "act"
        try:
            while not list(state.glob("*/training/training.safetensors")) and child.poll() is None:
                time.sleep(0.02)
        finally:
            child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL
    assert not works(path)[0].is_done()

    train_dictionaries(path)
    resumed = (_folder(works(path)[0]) / "dictionary.safetensors").read_bytes()
    other = write_run(
        tmp_path / "other", run="other", analyses=ANALYSES, dictionaries=[{"site": "act", "config": long}]
    )
    train_dictionaries(other)

    assert resumed == (_folder(works(other)[0]) / "dictionary.safetensors").read_bytes()


def _folder(work) -> Path:
    return ActivationStore(settings().store_location).dictionary(work.run, work.step, work.site, work.label).path


@pytest.mark.parametrize(
    ("section", "match"),
    [
        ({"config": SMALL}, "either `site` or `sites`"),
        ({"site": "act", "writes": "out", "across_steps": True}, "a transcoder reads one site"),
        ({"sites": ["act", "out"], "writes": "out"}, "leave out writes"),
        ({"site": "act", "sweep": {"k": [1, -2]}}, "k must be above 0"),
        ({"site": "act", "sweep": {"kk": [1]}}, "no option 'kk'"),
        ({"site": "act", "mask": "elsewhere.mask"}, "must be `dataset.field`"),
    ],
)
def test_dictionaries__refuses_sections_that_make_no_sense(tmp_path: Path, section, match):
    with pytest.raises(ConfigurationError, match=match):
        configuration(write_run(tmp_path, dictionaries=[section]))


@pytest.mark.parametrize(
    ("section", "match"),
    [
        ({"site": "act", "config": {"k": 99, "n_latents": 24}}, "dictionaries.0: k must be at most"),
        ({"site": "nowhere", "config": SMALL}, "no recorded site matches 'nowhere'"),
        ({"site": "act", "steps": [11], "config": SMALL}, "steps must be those of checkpoints"),
        ({"site": "act", "across_steps": True, "steps": ["last"], "config": SMALL}, "two checkpoints or more"),
        ({"site": "act", "writes": "*", "config": SMALL}, "writes must match one site"),
        ({"site": "act", "mask": "probe.x", "config": SMALL}, "mask must have the axes"),
    ],
)
def test_dictionaries__finds_what_does_not_fit_before_anything_is_recorded(tmp_path: Path, section, match):
    with pytest.raises(ConfigurationError, match=match):
        train_dictionaries(write_run(tmp_path, analyses=ANALYSES, dictionaries=[section]))
    assert not list((Path(settings().store_location) / "activations").glob("*"))


def test_dictionaries__an_analysis_that_matches_none_is_a_problem(tmp_path: Path):
    analyses = [{"technique": "feature_examples", "sites": ["acct*"]}]
    path = write_run(tmp_path, analyses=analyses, dictionaries=[{"site": "act", "config": SMALL}])
    with pytest.raises(ConfigurationError, match=r"no dictionary matches acct\*. There are: act"):
        train_dictionaries(path)


def test_train_dictionaries__a_failure_is_seen_in_mlflow_and_the_others_are_kept(tmp_path: Path, monkeypatch):
    """Two passes, of which one diverges."""
    bad = SMALL | {"lr": 1.0e30, "warmup": 0.0, "clip": 1.0e30, "n_epochs": 5}
    sections = [{"site": "act", "config": SMALL}, {"site": "out", "config": bad}]
    path = write_run(tmp_path, analyses=ANALYSES, dictionaries=sections)

    with pytest.raises(AnalysisError, match="lower lr"):
        train_dictionaries(path)

    client = MlflowClient(settings().mlflow_uri)
    experiment = client.get_experiment_by_name("mechint").experiment_id
    status = {run.info.run_name: run.info.status for run in client.search_runs([experiment])}
    assert status[f"act @{STEPS[-1]}"] == "FINISHED"
    assert status[f"out @{STEPS[-1]}"] == "FAILED"
    assert [work.is_done() for work in works(path)] == [True, False]


def test_train_dictionaries__what_was_trained_but_not_published_is_published_later(tmp_path: Path, monkeypatch):
    path = write_run(tmp_path, analyses=ANALYSES, dictionaries=[{"site": "act", "config": SMALL}])
    with monkeypatch.context() as broken:
        broken.setattr("flows.train_dictionaries.publish_dictionaries", _lost)
        with pytest.raises(ConnectionError):
            train_dictionaries(path)
    made = (_folder(works(path)[0]) / "dictionary.safetensors").stat().st_mtime_ns

    train_dictionaries(path)

    client = MlflowClient(settings().mlflow_uri)
    experiment = client.get_experiment_by_name("mechint").experiment_id
    (child,) = [run for run in client.search_runs([experiment]) if run.info.run_name == f"act @{STEPS[-1]}"]
    assert child.info.status == "FINISHED"
    assert "final/fvu" in child.data.metrics
    assert (_folder(works(path)[0]) / "dictionary.safetensors").stat().st_mtime_ns == made


def _lost(*_):
    raise ConnectionError("the tracking server is gone")


def test_dictionaries__sites_with_a_common_prefix_are_swept_apart(tmp_path: Path):
    model = {"factory": "tests.flows.test_train_dictionaries:twin_network"}
    section = {"site": "act*", "config": SMALL, "sweep": {"k": [1, 2], "seed": [0, 1]}}
    collect = {"dataset": "probe", "inputs": ["x"], "sites": ["act*"]}
    path = write_run(tmp_path, model=model, collect=collect, analyses=[], dictionaries=[section])

    train_dictionaries(path)

    store = ActivationStore(settings().store_location)
    for name in ("act", "act2"):
        key = ResultKey(run="tiny", technique="sparsity_frontier", name=name, step=STEPS[-1])
        assert store.result(key).flags["n_dictionaries"] == 4


def twin_network():
    """The tiny network, whose second activation has another width and the beginning of the first one's name."""
    from torch import nn

    from tests.flows.tiny import Network

    class Twin(Network):
        def __init__(self) -> None:
            super().__init__()
            self.act2 = nn.Tanh()

        def forward(self, x):
            return self.act2(super().forward(x))

    return Twin()


def test_examinations__read_no_more_than_fits(tmp_path: Path, monkeypatch):
    """Forty rows of sixteen floats, a budget of ten of them: every fourth row of everything."""
    monkeypatch.setattr("flows.dictionaries.MOST_BYTES", 10 * 16 * 4)
    path = write_run(tmp_path, analyses=ANALYSES, dictionaries=[{"site": "act", "config": SMALL}])

    train_dictionaries(path)

    key = ResultKey(run="tiny", technique="evaluate_dictionary", name="act", step=STEPS[-1])
    assert ActivationStore(settings().store_location).result(key).flags["n_vectors"] == 10
    reference = works(path)[0].sources["act"].model_copy(update={"every": 7})
    np.testing.assert_array_equal(reference.read(), reference.stored().read()[::7])


def test_dictionaries__refuses_two_of_one_name(tmp_path: Path):
    sections = [{"site": "act", "config": SMALL}, {"site": "act", "config": SMALL}]
    path = write_run(tmp_path, analyses=ANALYSES, dictionaries=sections)
    with pytest.raises(ConfigurationError, match="there twice; give one a `name`"):
        train_dictionaries(path)
