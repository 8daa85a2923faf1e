"""A configuration says what is wrong with it: everything at once, in the words of the file."""

from pathlib import Path
from typing import Any

import pytest

from flows.configuration import load_configuration, parse_configuration
from flows.datasets import load_dataset
from flows.grokking import demonstration
from flows.plan import make_plan
from mechint_core.errors import CheckpointError, ConfigurationError, NotFoundError
from tests.flows.tiny import configuration, write_run


def parse(**changes: Any):
    return parse_configuration(configuration(**changes), source="run.yaml", folder=Path("/data"))


def test_parse__resolves_paths_against_the_files_folder():
    assert parse().checkpoints == Path("/data/checkpoints")


def test_demonstration__is_a_valid_configuration():
    assert demonstration().run == "grokking"
    assert demonstration(2).run == "grokking-2"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"run": "a b"}, "run: must be letters, digits"),
        ({"extra": 1}, "extra: there is no such key"),
        ({"model": {"factory": "nothing"}}, "model.factory: must be `package.module:function`"),
        ({"analyses": [{"technique": "ckaa"}]}, "did you mean 'cka'"),
        ({"analyses": [{"technique": "cka", "config": {"levle": 0.9}}]}, "no option 'levle'; did you mean 'level'"),
        (
            {"analyses": [{"technique": "persistent_homology", "inputs": {"lable": "probe.label"}}]},
            "did you mean 'label'",
        ),
        ({"analyses": [{"technique": "persistent_homology", "config": {"coefficient": 4}}]}, "prime"),
        ({"analyses": [{"technique": "cka"}, {"technique": "cka"}]}, "is there twice"),
        ({"datasets": {"probe": {}}}, "either `factory` or `path`"),
        ({"collect": {"dataset": "other", "inputs": ["x"], "sites": ["act"]}}, "'other' is not in datasets"),
        ({"collect": None}, "collect: is missing; only circuits"),
        ({"collect": None, "analyses": []}, "collect: is missing; only circuits"),
        ({"dictionaries": [{"site": "act", "config": {"k": -1}}]}, "dictionaries.0"),
    ],
)
def test_parse__names_the_problem(changes: dict[str, Any], words: str):
    with pytest.raises(ConfigurationError) as problem:
        parse(**changes)

    assert words in str(problem.value)


def test_load__not_yaml(tmp_path: Path):
    (tmp_path / "run.yaml").write_text("a: [")

    with pytest.raises(ConfigurationError, match="is not YAML"):
        load_configuration(tmp_path / "run.yaml")


@pytest.mark.parametrize("content", ["", "- a", "3"])
def test_load__not_sections(tmp_path: Path, content: str):
    (tmp_path / "run.yaml").write_text(content)

    with pytest.raises(ConfigurationError, match="must hold sections"):
        load_configuration(tmp_path / "run.yaml")


def test_plan__lists_every_missing_field(tmp_path: Path):
    analyses = [{"technique": "persistent_homology", "inputs": {"label": "probe.lable"}}]
    path = write_run(tmp_path, analyses=analyses, collect={"dataset": "probe", "inputs": ["z"], "sites": ["act"]})

    with pytest.raises(ConfigurationError, match=r"(?s)'z' is not a field.*'lable' is not a field"):
        make_plan(load_configuration(path), str(tmp_path / "store"))


def test_plan__site_glob_that_matches_nothing_lists_what_exists(tmp_path: Path):
    path = write_run(tmp_path, collect={"dataset": "probe", "inputs": ["x"], "sites": ["hiden"]})

    with pytest.raises(NotFoundError, match="hidden"):
        make_plan(load_configuration(path), str(tmp_path / "store"))


def test_plan__analysis_of_a_site_that_is_not_recorded(tmp_path: Path):
    path = write_run(tmp_path, analyses=[{"technique": "cka", "sites": ["hidden"]}])

    with pytest.raises(ConfigurationError, match="no recorded site matches 'hidden'"):
        make_plan(load_configuration(path), str(tmp_path / "store"))


def test_plan__position_of_a_site_without_positions(tmp_path: Path):
    path = write_run(tmp_path, analyses=[{"technique": "cka", "sites": ["act@0"]}])

    with pytest.raises(ConfigurationError, match="has no positions; write act"):
        make_plan(load_configuration(path), str(tmp_path / "store"))


def test_plan__empty_checkpoint_folder(tmp_path: Path):
    path = write_run(tmp_path)
    for each in (tmp_path / "checkpoints").iterdir():
        each.unlink()

    with pytest.raises((CheckpointError, NotFoundError)):
        make_plan(load_configuration(path), str(tmp_path / "store"))


def test_load_dataset__arrays_of_different_length(tmp_path: Path):
    import numpy as np

    np.savez(tmp_path / "probe.npz", x=np.zeros((3, 2)), y=np.zeros(4))
    section = parse(datasets={"probe": {"path": str(tmp_path / "probe.npz")}}).datasets["probe"]

    with pytest.raises(ConfigurationError, match="same number of samples"):
        load_dataset("probe", section)


def test_load_dataset__a_pickle_is_refused(tmp_path: Path):
    import numpy as np

    np.savez(tmp_path / "probe.npz", x=np.array([{"a": 1}], dtype=object))
    section = parse(datasets={"probe": {"path": str(tmp_path / "probe.npz")}}).datasets["probe"]

    with pytest.raises(ConfigurationError, match="plain arrays"):
        load_dataset("probe", section)
