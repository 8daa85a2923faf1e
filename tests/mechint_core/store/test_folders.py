"""Dictionaries: a folder is committed whole, and interrupted training continues in it."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mechint_core.errors import CorruptStoreError, NotFoundError, UncommittedError
from mechint_core.store import ActivationStore, folders

TRAINER = """
import sys, time
from mechint_core.store import ActivationStore

store = ActivationStore(sys.argv[1])
with store.write_dictionary("run", 0, "mlp", "topk", source={"width": 8}) as folder:
    (folder / "state").write_text("step 500")
    print("training", flush=True)
    time.sleep(60)
"""


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ActivationStore]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    store = ActivationStore(tmp_path / "store" if request.param == "local" else f"memory://folders-{tmp_path.name}")
    yield store
    if request.param == "memory":
        store.place.files.rm(store.place.full(""), recursive=True)


def train(store: ActivationStore, weights: bytes, *, width: int = 8, fails: bool = False) -> list[str]:
    """Write a dictionary, and return what lay in its folder at the start."""
    with store.write_dictionary("run", 0, "mlp", "topk", source={"width": width}) as folder:
        found = folders.file_names(folder)
        (folder / "state").write_text("step 500")
        if fails:
            raise KeyboardInterrupt
        (folder / "state").unlink()
        (folder / "weights" / "0").parent.mkdir(exist_ok=True)
        (folder / "weights" / "0").write_bytes(weights)
    return found


# Known answer


def test_write_dictionary__its_files_come_back_and_can_be_replaced(store):
    assert train(store, b"first") == []
    first = store.dictionary("run", 0, "mlp", "topk")
    assert folders.file_names(first.path) == ["weights/0"]
    assert (first.path / "weights" / "0").read_bytes() == b"first"
    assert first.source == {"width": 8}
    assert train(store, b"second") == []
    second = store.dictionary("run", 0, "mlp", "topk")
    assert (second.path / "weights" / "0").read_bytes() == b"second"
    assert second.digest != first.digest
    assert store.dictionaries("run", 0, "mlp") == ["topk"]
    assert [problem for _, problem in store.verify()] == [None]


def test_write_dictionary__interrupted_training_of_the_same_source_continues(store):
    with pytest.raises(KeyboardInterrupt):
        train(store, b"weights", fails=True)
    with pytest.raises((UncommittedError, NotFoundError)):
        store.dictionary("run", 0, "mlp", "topk")
    assert train(store, b"weights") == ["state"]
    assert folders.file_names(store.dictionary("run", 0, "mlp", "topk").path) == ["weights/0"]


def test_write_dictionary__another_source_starts_afresh(store):
    with pytest.raises(KeyboardInterrupt):
        train(store, b"weights", fails=True)
    assert train(store, b"weights", width=16) == []


def test_kill_9__training_state_survives_and_a_live_trainer_is_alone(tmp_path):
    store = ActivationStore(tmp_path)
    command = [sys.executable, "-c", TRAINER, store.location]
    root = Path(folders.__file__).parents[2]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as trainer:
        assert trainer.stdout is not None
        assert trainer.stdout.readline() == "training\n"
        with pytest.raises(UncommittedError, match="Another process is writing it"):
            train(store, b"weights")
        assert store.gc(dry_run=False) == []
        os.kill(trainer.pid, signal.SIGKILL)
    assert [entry.path for entry in store.gc()] == ["dictionaries/run/0000000000/mlp/topk.partial"]
    assert train(store, b"weights") == ["state"]
    assert store.gc() == []


# Law


def test_dictionary__its_digest_is_that_of_names_and_bytes(store):
    digests = []
    for weights in (b"a", b"b", b"a"):
        train(store, weights)
        digests.append(store.dictionary("run", 0, "mlp", "topk").digest)
    assert digests[0] == digests[2] != digests[1]


# Bad input


def test_write_dictionary__refuses_an_empty_folder(store):
    writing = store.write_dictionary("run", 0, "mlp", "topk", source={})
    with pytest.raises(UncommittedError, match="must hold at least one file"), writing:
        pass
    assert store.dictionaries("run", 0, "mlp") == []


def test_dictionary__fetching_refuses_changed_bytes(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    store = ActivationStore(f"memory://fetch-{tmp_path.name}")
    train(store, b"weights")
    store.place.write("dictionaries/run/0000000000/mlp/topk/weights/0", b"changed")
    with pytest.raises(CorruptStoreError, match="weights/0 must be as it was committed"):
        store.dictionary("run", 0, "mlp", "topk")
