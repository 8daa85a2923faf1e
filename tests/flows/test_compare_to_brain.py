"""A recording beside a training run: aligned site by region, mapped, followed through training, reported, run again."""

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from flows.cli import mechint
from flows.compare_to_brain import compare_to_brain
from flows.configuration import load_configuration
from flows.plan import make_plan
from mechint_core.errors import ConfigurationError, NotFoundError
from mechint_core.models import load_model
from mechint_core.random import generator
from mechint_core.store import ActivationStore, ResultKey
from tasks.settings import settings
from tests.flows.tiny import STEPS, build_dataset, write_checkpoint, write_run

pytestmark = pytest.mark.usefixtures("prefect_api", "home")

FEW = {"brain_alignment": {"n_bootstrap": 100, "n_permutations": 99, "metric": "euclidean"}}


def record_brain(folder: Path, *, subjects: int = 2, times: int = 1, lost: int = 3) -> Path:
    """Two regions of noisy channels: one reads the hidden layer of the last checkpoint, the other nothing."""
    path = write_checkpoint(folder / "checkpoints", STEPS[-1])
    model = load_model("tests.flows.tiny:build_model", {}, path)
    with torch.inference_mode():
        hidden = model.act(model.hidden(torch.from_numpy(build_dataset()["x"]))).numpy()
    rng, n_channels = generator(0, "brain"), 20 * subjects
    reads = hidden @ rng.normal(size=(16, n_channels))
    signal = np.stack([reads / reads.std(axis=0), rng.normal(size=reads.shape)], axis=-1).reshape(len(hidden), -1)
    course = np.eye(times)[-1][:, None]
    presented = np.tile(np.arange(len(hidden)), 3)
    responses = course * signal[presented][:, None] + 0.5 * rng.normal(size=(len(presented), times, 2 * n_channels))
    kept = presented >= lost  # the first stimuli were never shown
    fields = {
        "responses": responses[kept] if times > 1 else responses[kept, 0],
        "condition": presented[kept],
        "subject": np.repeat(np.arange(subjects), 40),
        "region": np.tile(["late", "unrelated"], n_channels),
    }
    np.savez(folder / "brain.npz", **fields, **({"time": np.linspace(0.0, 0.1, times)} if times > 1 else {}))
    return folder / "brain.npz"


def brain(**changes):
    return {"name": "monkey", "recording": ["brain.npz"], "options": FEW} | changes


def stored(technique: str, name: str, step: int | None):
    key = ResultKey(run="tiny", technique=technique, name=name, step=step)
    return ActivationStore(settings().store_location).result(key)


# Known answer
def test_compare_to_brain__finds_the_site_and_the_region_that_belong_together_and_when_they_come_to(tmp_path: Path):
    record_brain(tmp_path)

    found = compare_to_brain(write_run(tmp_path, analyses=[], brains=[brain()]))

    last = stored("layer_region_matrix", "monkey encoding", 20)
    assert last.labels["matched"][0] == "act~late"
    assert last.estimates["strongest"].p_value < 0.05
    late = stored("brain_alignment", "monkey act~late rsa", 20)
    assert (late.flags["n_conditions"], late.flags["n_subjects"], late.flags["n_repetitions"]) == (37, 2, 3)
    assert late.estimates["ceiled"].value == pytest.approx(1.0, abs=0.15)
    assert stored("brain_alignment", "monkey act~unrelated rsa", 20).estimates["score"].p_value > 0.01
    course = stored("brain_trajectory", "monkey act~late rsa", None)
    assert course.estimates["gain"].value > 0
    page = found.report.read_text()
    assert "act~late" in page
    assert "The site matches the region by" in page
    assert "How well each site matches each region" in page
    assert found.readings["monkey encoding", 20] == last.reading


def test_compare_to_brain__averages_windows_and_finds_the_one_that_answers(tmp_path: Path):
    record_brain(tmp_path, times=4)
    section = brain(
        windows=[[0.0, 0.05], [0.05, 0.2]], regions=["late"], measures=["rsa"], steps=["last"], sites=["act"]
    )

    compare_to_brain(write_run(tmp_path, analyses=[], brains=[section]))

    found = stored("brain_alignment", "monkey act~late rsa", 20)
    assert found.arrays["time"].tolist() == [0.025, 0.125]
    assert found.flags["best_time"] == 0.125
    assert found.arrays["p_value"][1] < 0.05 < found.arrays["p_value"][0]


def test_compare_to_brain__says_that_the_ceiling_is_not_known_where_nothing_was_shown_twice(tmp_path: Path):
    section = brain(recording=[], factory="tests.flows.tiny:build_recording", measures=["rsa"], steps=["last"])

    compare_to_brain(write_run(tmp_path, analyses=[], brains=[section]))

    found = stored("brain_alignment", "monkey act~all rsa", 20)
    assert np.isnan(found.flags["ceiling"])
    assert np.isnan(stored("layer_region_matrix", "monkey rsa", 20).arrays["ceiled"]).all()


# Law
def test_compare_to_brain__a_second_run_computes_nothing_and_a_new_region_costs_only_itself(tmp_path: Path):
    record_brain(tmp_path)
    one = write_run(tmp_path, analyses=[], brains=[brain(regions=["late"], measures=["rsa"])])
    compare_to_brain(one)
    made = stored("brain_alignment", "monkey act~late rsa", 20).provenance["made_at"]

    compare_to_brain(one)
    compare_to_brain(write_run(tmp_path, analyses=[], brains=[brain(measures=["rsa"])]))

    assert stored("brain_alignment", "monkey act~late rsa", 20).provenance["made_at"] == made
    assert stored("layer_region_matrix", "monkey rsa", 20).labels["region"] == ("late", "unrelated")


def test_plan__draws_are_shared_by_all_that_is_compared(tmp_path: Path):
    record_brain(tmp_path)
    compare_to_brain(write_run(tmp_path, analyses=[], brains=[brain(measures=["rsa"])]))

    one, other = (stored("brain_alignment", f"monkey {site}~late rsa", 20).arrays["draws"] for site in ("act", "out"))

    assert np.corrcoef(one, other)[0, 1] > 0.2


def test_command__says_what_was_found_and_inspects_a_recording(tmp_path: Path):
    path = record_brain(tmp_path)
    run = write_run(tmp_path, analyses=[], brains=[brain(regions=["late"], measures=["rsa"], steps=["last"])])

    described = CliRunner().invoke(mechint, ["recording", str(path)])

    assert described.exit_code == 0
    assert "late" in described.output
    assert "brain_alignment" in CliRunner().invoke(mechint, ["run", str(run), "--dry-run"]).output


# Bad input
@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"regions": ["nowhere"]}, "no region of monkey matches 'nowhere'. There are: late, unrelated"),
        ({"stimuli": "probe.name"}, "stimuli of monkey must be a field of the recorded data set"),
        ({"stimuli": "probe.label"}, "record each stimulus once"),
        ({"windows": [[0.0, 1.0]]}, "need a recording with time"),
        ({"sites": ["nothing"]}, "no recorded site matches 'nothing'"),
        ({"factory": "tests.flows.tiny:build_dataset", "recording": []}, "must return a Recording"),
    ],
)
def test_brains__refuse_what_does_not_fit(tmp_path: Path, changes, match):
    record_brain(tmp_path)
    with pytest.raises(ConfigurationError, match=match):
        compare_to_brain(write_run(tmp_path, analyses=[], brains=[brain(**changes)]))


def test_brains__a_section_that_makes_no_sense_is_refused_before_anything_is_read(tmp_path: Path):
    for changes, match in (
        ({"factory": "a:b"}, "either `recording` or `factory`"),
        ({"recording": []}, "either `recording` or `factory`"),
        ({"windows": [[0.2, 0.1]]}, "from must be below to"),
        ({"measures": ["guess"]}, "measures"),
        ({"options": {"brain_alignment": {"speed": 1}}}, "no option 'speed'"),
    ):
        with pytest.raises(ConfigurationError, match=match):
            load_configuration(write_run(tmp_path / str(len(match)), brains=[brain(**changes)]))
    with pytest.raises(ConfigurationError, match="brains: 'monkey' is there twice"):
        load_configuration(write_run(tmp_path / "twice", brains=[brain(), brain()]))
    with pytest.raises(ConfigurationError, match="under `brains`"):
        compare_to_brain(write_run(tmp_path / "none", analyses=[]))
    with pytest.raises(NotFoundError, match="must be a file"):
        make_plan(load_configuration(write_run(tmp_path / "file", brains=[brain()])), settings().store_location)


# Another run
def test_other__compares_this_runs_sites_with_those_of_another_seed(tmp_path: Path):
    from flows.monitor_training import monitor_training

    monitor_training(write_run(tmp_path / "one", run="one", analyses=[]))
    other = {"run": "one", "step": "same", "sites": ["act"]}
    analyses = [{"technique": "cka", "sites": ["act"], "steps": ["last"], "other": other}]
    monitor_training(write_run(tmp_path / "two", analyses=analyses))

    assert stored("cka", "act~act of one", 20).estimates["similarity"].value == pytest.approx(1.0)
    with pytest.raises(ConfigurationError, match="nothing of run 'three' is recorded"):
        monitor_training(write_run(tmp_path / "two", analyses=[analyses[0] | {"other": {"run": "three"}}]))
    with pytest.raises(ConfigurationError, match="does not compare two systems"):
        load_configuration(write_run(tmp_path / "two", analyses=[{"technique": "rdm", "other": other}]))
