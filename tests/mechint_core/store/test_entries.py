"""Housekeeping: every flipped, missing or cut byte is found, and only what nobody will miss is removed."""

from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from mechint_core.store import ActivationStore, chunks


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ActivationStore]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    store = ActivationStore(tmp_path / "store" if request.param == "local" else f"memory://entries-{tmp_path.name}")
    fill(store)
    yield store
    if request.param == "memory":
        store.place.files.rm(store.place.full(""), recursive=True)


def fill(store: ActivationStore) -> None:
    with mock.patch.object(chunks, "CHUNK_BYTES", 1024):
        with store.write_activations("run", 7, "mlp", n_samples=100, dtype="bfloat16", source={}) as writer:
            writer.append(np.arange(800, dtype=np.float32).reshape(100, 8))
        store.write_inputs("tokens", {"a": np.zeros((100, 3), np.int64), "b": np.full(100, np.nan)}, source={})
    with store.write_dictionary("run", 7, "mlp", "topk", source={}) as folder:
        (folder / "weights.safetensors").write_bytes(b"weights")
        (folder / "more").mkdir()
        (folder / "more" / "config.json").write_text("{}")


def problems(store: ActivationStore) -> dict[str, str]:
    return {entry.path: problem for entry, problem in store.verify() if problem is not None}


ACTIVATIONS = "activations/run/0000000007/mlp"
DICTIONARY = "dictionaries/run/0000000007/mlp/topk"


# Known answer


def test_ls__says_what_is_there(store):
    found = {entry.path: entry for entry in store.ls()}
    assert list(found) == [ACTIVATIONS, "inputs/tokens", DICTIONARY]
    activations = found[ACTIVATIONS]
    assert (activations.kind, activations.rows, activations.dtype, activations.committed) == (
        "activations",
        100,
        "bfloat16",
        True,
    )
    assert activations.digest == store.activations("run", 7, "mlp").digest
    assert activations.bytes == sum(store.place.sizes(ACTIVATIONS).values()) > 1600
    assert (found["inputs/tokens"].rows, found["inputs/tokens"].dtype) == (100, "")  # int64 and float64
    assert problems(store) == {}
    assert store.gc() == []


# Law


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_verify__finds_a_flipped_bit_anywhere(store, data):
    entry = data.draw(st.sampled_from([ACTIVATIONS, "inputs/tokens", DICTIONARY]))
    name = data.draw(st.sampled_from(sorted(store.place.sizes(entry))))
    whole = store.place.read(f"{entry}/{name}")
    at = data.draw(st.integers(0, len(whole) - 1))
    if "/c/" in name and at >= _row_bytes(name):
        return  # padding after the last row
    flipped = bytearray(whole)
    flipped[at] ^= 1 << data.draw(st.integers(0, 7))
    store.place.write(f"{entry}/{name}", bytes(flipped))
    try:
        assert list(problems(store)) == [entry]
        assert store.gc(dry_run=False) == []  # damaged, but committed: not for gc
    finally:
        store.place.write(f"{entry}/{name}", whole)


def _row_bytes(name: str) -> int:
    """Return how many bytes of a chunk are rows: of 100, as many as 1024 bytes hold, rounded to a power of two."""
    per_row, rows = {"values": (16, 64), "a": (24, 32), "b": (8, 100)}[name.split("/")[0]]
    chunk = int(name.split("/c/")[1].split("/")[0])
    return (min(100, (chunk + 1) * rows) - chunk * rows) * per_row


@pytest.mark.parametrize("change", ["remove", "truncate"])
def test_verify__finds_every_missing_and_every_truncated_file(store, change):
    for entry in (ACTIVATIONS, "inputs/tokens", DICTIONARY):
        for name in store.place.sizes(entry):
            whole = store.place.read(f"{entry}/{name}")
            if change == "remove":
                store.place.remove(f"{entry}/{name}")
            else:
                store.place.write(f"{entry}/{name}", whole[:-1])
            assert list(problems(store)) == [entry], name
            store.place.write(f"{entry}/{name}", whole)
    assert problems(store) == {}


# Bad input


def test_verify__names_an_uncommitted_entry_and_says_what_removes_it(store):
    store.place.write("inputs/half/zarr.json", b"{}")
    assert "mechint store gc" in problems(store)["inputs/half"]


def test_verify__names_a_file_that_nobody_committed(store):
    store.place.write(f"{DICTIONARY}/extra.bin", b"?")
    assert problems(store) == {DICTIONARY: "extra.bin: nobody committed this file."}


def test_ls__lists_a_damaged_commit_and_gc_keeps_it(store):
    store.place.write(f"{ACTIVATIONS}/commit.json", b"{")
    assert [(entry.committed, entry.digest) for entry in store.ls() if entry.path == ACTIVATIONS] == [(True, "")]
    assert store.gc(dry_run=False, idle_s=0.0) == []
