"""Watching a folder: each checkpoint is analysed when it appears, once."""

from pathlib import Path

import pytest

from flows.analyse_checkpoint import analyse_checkpoint
from flows.collect_activations import collect_activations
from flows.watch import watch_training
from mechint_core.errors import NotFoundError
from tests.flows.tiny import STEPS, write_checkpoint, write_run

pytestmark = pytest.mark.usefixtures("prefect_api", "home")


def test_watch__analyses_what_comes_and_ends_when_told(tmp_path: Path):
    watching = watch_training(write_run(tmp_path), every=0.01, until=40)

    first = next(watching)
    write_checkpoint(tmp_path / "checkpoints", 40)
    second = next(watching)

    assert (first.n_collected, second.n_collected) == (2 * len(STEPS), 2)
    assert list(watching) == []


def test_watch__waits_for_the_first_checkpoint(tmp_path: Path):
    path = write_run(tmp_path)
    moved = tmp_path / "elsewhere"
    (tmp_path / "checkpoints").rename(moved)
    watching = watch_training(path, every=0.01, until=20)
    moved.rename(tmp_path / "checkpoints")

    assert [each.n_collected for each in watching] == [2 * len(STEPS)]


def test_analyse_checkpoint__does_one_checkpoint(tmp_path: Path):
    keys = analyse_checkpoint(write_run(tmp_path), 10)

    assert {key.technique for key in keys} == {"persistent_homology", "cka"}
    assert {key.step for key in keys} == {10}


def test_analyse_checkpoint__unknown_step_lists_the_known_ones(tmp_path: Path):
    with pytest.raises(NotFoundError, match="0, 10, 20"):
        analyse_checkpoint(write_run(tmp_path), 11)


def test_collect_activations__records_every_site_once(tmp_path: Path):
    path = write_run(tmp_path)

    assert collect_activations(path) == 2 * len(STEPS)
    assert collect_activations(path) == 0
