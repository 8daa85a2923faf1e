"""The store as its users see it: it opens anywhere, keeps names apart, and says what it holds."""

import pickle
import threading
from pathlib import Path

import fsspec
import numpy as np
import pytest
from hypothesis import given, strategies as st

from mechint_core.errors import ConfigurationError, CorruptStoreError, NotFoundError, ShapeError, UncommittedError
from mechint_core.store import ActivationStore, names


def write(store: ActivationStore, run: str = "run", step: int = 0, site: str = "mlp", value: float = 1.0) -> None:
    with store.write_activations(run, step, site, n_samples=2, source={}) as writer:
        writer.append(np.full((2, 3), value, np.float32))


# Known answer


@pytest.mark.parametrize("scheme", ["", "file://", "memory://"])
def test_activation_store__opens_what_it_made_at_a_path_and_at_a_url(tmp_path, scheme):
    location = f"{scheme}{tmp_path}/deep/store"
    store = ActivationStore(location)
    write(store)
    again = ActivationStore(store.location, create=False)
    assert again.uuid == store.uuid
    np.testing.assert_array_equal(again.activations("run", 0, "mlp").read(), 1.0)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(again)).activations("run", 0, "mlp")[1:], 1.0)
    if scheme == "memory://":
        fsspec.filesystem("memory").rm(f"{tmp_path}", recursive=True)


def test_activation_store__a_relative_path_is_taken_from_where_it_was_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = ActivationStore("store")
    write(store)
    monkeypatch.chdir("/")
    assert store.has_activations("run", 0, "mlp")
    assert store.location == str(tmp_path / "store")


def test_runs_steps_and_sites__list_what_is_committed_in_order(tmp_path):
    store = ActivationStore(tmp_path)
    for step in (1000, 5, 20):
        write(store, step=step, site="mlp")
        write(store, step=step, site="attention.0")
    write(store, run="another")
    (tmp_path / "activations" / "empty" / "0000000001" / "mlp%01234567.partial").mkdir(parents=True)
    assert store.runs() == ["another", "run"]
    assert store.steps("run") == [5, 20, 1000]
    assert store.sites("run", 20) == ["attention.0", "mlp"]
    assert (store.steps("empty"), store.sites("run", 6)) == ([], [])


def test_write_inputs__fields_come_back_aligned_and_equal_ones_are_not_written_again(tmp_path):
    store = ActivationStore(tmp_path)
    arrays = {"tokens": np.arange(12).reshape(4, 3), "label": np.array([True, False, True, True])}
    digest = store.write_inputs("toy", arrays, source={"seed": 0})
    made_at = store.inputs("toy")["label"].commit.made_at
    assert {name: each.axes for name, each in store.inputs("toy").items()} == {
        "tokens": ("sample", "position"),
        "label": ("sample",),
    }
    for name, values in arrays.items():
        np.testing.assert_array_equal(store.inputs("toy")[name].read(), values)
    assert store.write_inputs("toy", arrays, source={"seed": 0}) == digest
    assert store.inputs("toy")["label"].commit.made_at == made_at
    assert store.write_inputs("toy", {**arrays, "label": ~arrays["label"]}, source={"seed": 0}) != digest
    store.write_inputs("toy", arrays, source={"seed": 1}, axes={"tokens": ("sample", "time")})
    assert store.inputs("toy")["tokens"].axes == ("sample", "time")
    assert store.datasets() == ["toy"]


# Law


def test_activation_store__made_by_many_at_once_has_one_identity(tmp_path):
    uuids: list[str] = []
    threads = [threading.Thread(target=lambda: uuids.append(ActivationStore(tmp_path / "s").uuid)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(uuids) == 8
    assert len(set(uuids)) == 1


@given(st.lists(st.integers(0, 10**10 - 1), min_size=2))
def test_step_name__sorts_as_its_number_and_comes_back(steps):
    written = sorted(names.step_name(step) for step in steps)
    assert [names.step_number(name) for name in written] == sorted(steps)


@given(st.text(max_size=12) | st.from_regex(r"[\w./\\%*~+ -]{1,12}", fullmatch=True))
def test_check_name__what_it_lets_pass_is_one_harmless_path_segment(name):
    try:
        names.check_name("site", name)
    except ConfigurationError:
        return
    assert Path("/store", name).resolve() == Path("/store") / name
    assert not set(name) & set("/\\%*?[]{}$#:!\"'`|<>&;\0\n\t")
    assert name == name.strip()


# Bad input


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../up", "a/b", "/etc", "a\\b", "a\0", "a\nb", ".hidden", "mlp.partial", "mlp%1", "commit.json",
     "zarr.json", "__root__", "a*", "a?", "[a]", "s3://b", "a::b", "a ", "a.", "x" * 201, "ä"],
)  # fmt: skip
def test_check_name__refuses_what_could_leave_its_folder_or_hide_in_it(tmp_path, name):
    store = ActivationStore(tmp_path / "store")
    for arguments in ((name, 0, "mlp"), ("run", 0, name)):
        with pytest.raises(ConfigurationError, match="must be a name of 1 to 200"):
            write(store, *arguments)
        with pytest.raises(ConfigurationError, match="must be a name of 1 to 200"):
            store.activations(*arguments)
    with pytest.raises(ConfigurationError, match="field must be a name"):
        store.write_inputs("toy", {name: np.zeros(3)}, source={})
    with pytest.raises(ConfigurationError, match="dataset must be a name"):
        store.inputs(name)
    assert sorted(each.name for each in tmp_path.rglob("*")) == ["store", "store.json"]


@pytest.mark.parametrize("step", [-1, 10**10])
def test_step_name__refuses_a_number_that_would_not_sort(tmp_path, step):
    with pytest.raises(ConfigurationError, match="step must be an integer >= 0"):
        write(ActivationStore(tmp_path), step=step)


def test_activations__says_what_exists_instead(tmp_path):
    store = ActivationStore(tmp_path)
    with pytest.raises(NotFoundError, match=r"no 'run' in activations\. There is: nothing"):
        store.activations("run", 5, "mlp")
    write(store, step=5)
    with pytest.raises(NotFoundError, match=r"no 'other' in activations\. There is: run"):
        store.activations("other", 5, "mlp")
    with pytest.raises(NotFoundError, match=r"no '0000000006' in activations/run\. There is: 0000000005"):
        store.activations("run", 6, "mlp")
    with pytest.raises(NotFoundError, match=r"no 'attention' in activations/run/0000000005\. There is: mlp"):
        store.activations("run", 5, "attention")
    with pytest.raises(NotFoundError, match="no 'toy' in inputs"):
        store.inputs("toy")


def test_activations__refuses_a_folder_without_a_commit(tmp_path):
    store = ActivationStore(tmp_path)
    write(store)
    (tmp_path / "activations/run/0000000000/mlp/commit.json").unlink()
    assert not store.has_activations("run", 0, "mlp")
    with pytest.raises(UncommittedError, match="Run it again"):
        store.activations("run", 0, "mlp")


@pytest.mark.parametrize("arrays", [{}, {"a": np.zeros(3), "b": np.zeros(4)}, {"a": np.zeros(())}, {"a": np.zeros(0)}])
def test_write_inputs__refuses_fields_that_are_not_aligned(tmp_path, arrays):
    with pytest.raises(ShapeError, match="inputs must have the same number of samples"):
        ActivationStore(tmp_path).write_inputs("toy", arrays, source={})


def test_activation_store__refuses_a_location_that_is_no_store(tmp_path):
    with pytest.raises(NotFoundError, match=r"must be a store\. It holds no store.json"):
        ActivationStore(tmp_path / "typo", create=False)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="location must be a folder"):
        ActivationStore(tmp_path / "file")
    with pytest.raises(ConfigurationError, match="a URL that fsspec knows"):
        ActivationStore("nosuch://place")


def test_activation_store__refuses_a_newer_format_and_a_damaged_identity(tmp_path):
    identity = tmp_path / "store.json"
    identity.write_text('{"format": 2, "uuid": "u"}')
    with pytest.raises(ConfigurationError, match=r"must have format 1 or older\. Got 2\. Update mechint"):
        ActivationStore(tmp_path)
    identity.write_text("{")
    with pytest.raises(CorruptStoreError, match="must say format and uuid"):
        ActivationStore(tmp_path)
