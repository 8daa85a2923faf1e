"""The commit protocol: an entry is whole or absent, whoever dies or collides when."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

from mechint_core.errors import CorruptStoreError, NotFoundError, UncommittedError
from mechint_core.store import ActivationStore, draft
from mechint_core.store.commit import Commit

WRITER = """
import sys, time
import numpy as np
from mechint_core.store import ActivationStore

store = ActivationStore(sys.argv[1])
for site in ("first", "second", "third"):
    if store.has_activations("run", 5, site):
        continue
    with store.write_activations("run", 5, site, n_samples=4000, source={}) as writer:
        for _ in range(4):
            writer.append(np.full((1000, 512), 3.0, np.float32))
            if site == "second" and "--hang" in sys.argv:
                print("half", flush=True)
                time.sleep(60)
"""


def collect(store: ActivationStore, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, store.location, *options]
    root = Path(draft.__file__).parents[2]
    return subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True)


@pytest.fixture
def store(tmp_path: Path) -> ActivationStore:
    return ActivationStore(tmp_path / "store")


@pytest.fixture
def bucket(request: pytest.FixtureRequest) -> Iterator[ActivationStore]:
    store = ActivationStore(f"memory://{request.node.name}")
    yield store
    store.place.files.rm(store.place.full(""), recursive=True)


def write(store: ActivationStore, value: float, *, site: str = "site", before_last: Callable[[], Any] = bool) -> None:
    with store.write_activations("run", 0, site, n_samples=1500, source={"value": value}) as writer:
        writer.append(np.full((1000, 64), value, np.float32))
        before_last()
        writer.append(np.full((500, 64), value, np.float32))


def commits_without_renaming(store: ActivationStore, value: float) -> None:
    """What a writer leaves that dies when its commit is written and its folder is not renamed yet."""
    with mock.patch.object(draft, "move_into_place"):
        write(store, value)


# Known answer


def test_kill_9__finished_sites_are_kept_and_the_half_written_one_is_never_read(store):
    with collect(store, "--hang") as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "half\n"
        assert [entry.committed for entry in store.ls()] == [True, False]
        assert store.gc(dry_run=False) == []  # a live writer's folder is not garbage
        os.kill(writer.pid, signal.SIGKILL)
    first = store.activations("run", 5, "first")
    assert not store.has_activations("run", 5, "second")
    with pytest.raises(UncommittedError, match=r"run/0000000005/second must be committed.*Run it again"):
        store.activations("run", 5, "second")

    with collect(store) as writer:
        assert writer.wait() == 0
    assert store.sites("run", 5) == ["first", "second", "third"]
    assert store.activations("run", 5, "first").commit.made_at == first.commit.made_at
    assert (store.activations("run", 5, "second").read() == 3).all()

    left = store.gc()
    assert [entry.path for entry in store.gc(dry_run=False)] == [entry.path for entry in left]
    assert len(left) == 1
    assert "second%" in left[0].path
    assert [entry.committed for entry in store.ls()] == [True, True, True]
    assert store.gc() == []


def test_write_activations__an_exception_inside_leaves_nothing(store):
    with pytest.raises(KeyboardInterrupt):
        write(store, 1.0, before_last=mock.Mock(side_effect=KeyboardInterrupt))
    assert list(store.ls()) == []
    with pytest.raises(NotFoundError):
        store.activations("run", 0, "site")


def test_write_activations__a_full_disk_leaves_nothing_and_says_so(store):
    disk = mock.patch("zarr.storage._local._put", side_effect=OSError(errno.ENOSPC, "No space left on device"))
    with disk, pytest.raises(UncommittedError, match=r"No space left on device\. Nothing was committed\. Make room"):
        write(store, 1.0)
    assert list(store.ls()) == []


def test_settle__a_reader_finishes_the_rename_of_a_writer_that_died_before_it(store):
    commits_without_renaming(store, 1.0)
    assert (store.activations("run", 0, "site").read() == 1).all()


@pytest.mark.parametrize("dies_after_first_rename", [False, True])
def test_settle__a_replacement_that_died_half_way_is_old_or_new(store, dies_after_first_rename):
    write(store, 1.0)
    commits_without_renaming(store, 2.0)
    if dies_after_first_rename:
        site = draft.local_folder(store.place, "activations/run/0000000000/site")
        site.rename(site.with_name("site%01234567.old.partial"))
    expected = 2.0 if dies_after_first_rename else 1.0
    store.gc(dry_run=False)
    assert (store.activations("run", 0, "site").read() == expected).all()
    assert [entry.committed for entry in store.ls()] == [True]


def test_object_store__an_uncommitted_entry_is_refused_and_collected_when_its_writer_is_silent(bucket):
    target = draft.draft(bucket.place, "activations/run/0000000000/site")
    bucket.place.write(f"{target.path}/values/c/0/0", b"rows")
    with pytest.raises(UncommittedError, match="must be committed"):
        bucket.activations("run", 0, "site")
    assert bucket.gc(dry_run=False) == []
    assert [entry.path for entry in bucket.gc(dry_run=False, idle_s=0.0)] == [target.path]
    assert list(bucket.ls()) == []


def test_object_store__of_two_writers_the_one_that_started_last_wins(bucket):
    with pytest.raises(UncommittedError, match="taken over or removed by another process"):
        write(bucket, 1.0, before_last=lambda: write(bucket, 2.0))
    assert (bucket.activations("run", 0, "site").read() == 2).all()
    assert [problem for _, problem in bucket.verify()] == [None]


def test_object_store__a_writer_taken_over_at_its_last_moment_does_not_commit_the_others_rows(bucket):
    first = draft.draft(bucket.place, "inputs/tokens")
    commit = Commit(sha256="", rows=None, contents={}, source={})

    def taken_over(_: Commit) -> bytes:
        draft.draft(bucket.place, "inputs/tokens")
        return b"{}"

    with mock.patch.object(Commit, "dump", taken_over), pytest.raises(UncommittedError, match="by another process"):
        first.commit(commit)
    assert not bucket.place.exists("inputs/tokens/commit.json")


def test_object_store__a_working_writer_renews_its_sign_of_life(bucket):
    target = draft.draft(bucket.place, "inputs/tokens")
    with mock.patch.object(time, "time", return_value=time.time() + 1000):
        target.check()
    record = bucket.place.read("inputs/tokens/writer.json")
    assert draft.is_abandoned(bucket.place, "inputs/tokens", idle_s=500.0, remove=False) is False, record


# Law


@pytest.mark.parametrize("n_writers", [2])
def test_write_activations__readers_of_a_site_that_is_replaced_all_the_time_see_no_mixture(store, n_writers):
    write(store, 0.0)
    failures: list[BaseException] = []

    def keep_writing(first: int) -> None:
        try:
            for value in range(first, first + 12):
                write(store, float(value))
        except BaseException as error:
            failures.append(error)

    writers = [threading.Thread(target=keep_writing, args=(100 * k,)) for k in range(n_writers)]
    for writer in writers:
        writer.start()
    n_read, refusals = 0, []
    while any(writer.is_alive() for writer in writers):
        array = store.activations("run", 0, "site")
        try:
            values = array.read()
        except CorruptStoreError as error:
            refusals.append(str(error))
            continue
        n_read += 1
        assert len(np.unique(values)) == 1
        assert values[0, 0] == array.source["value"]
    for writer in writers:
        writer.join()
    assert failures == []
    assert n_read > 0
    assert all("Open it again" in refusal for refusal in refusals)
    assert [(entry.committed, problem) for entry, problem in store.verify()] == [(True, None)]


def test_write_activations__threads_write_different_sites_at_once(store):
    sites = [f"block.{k}" for k in range(8)]
    threads = [
        threading.Thread(target=write, args=(store, float(k)), kwargs={"site": site}) for k, site in enumerate(sites)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.sites("run", 0) == sites
    assert [store.activations("run", 0, site)[:1][0, 0] for site in sites] == list(range(8))


# Bad input


def test_gc__leaves_a_newborn_folder_without_a_lock_alone(store):
    folder = draft.local_folder(store.place, "inputs/tokens%01234567.partial")
    folder.mkdir(parents=True)
    assert store.gc(dry_run=False) == []
    os.utime(folder, (0, 0))
    assert len(store.gc(dry_run=False)) == 1


def test_gc__goes_by_age_where_there_are_no_locks(store):
    with mock.patch.object(draft, "_lock", return_value=False):
        target = draft.draft(store.place, "inputs/tokens")
        assert store.gc(dry_run=False) == []
        assert [entry.path for entry in store.gc(dry_run=False, idle_s=-1.0)] == [target.path]
    target.abandon()


def test_commit__says_when_its_folder_has_vanished(store):
    def vanish() -> None:
        for entry in store.ls():
            store.place.remove(entry.path)

    with pytest.raises(UncommittedError, match="Nothing was committed"):
        write(store, 1.0, before_last=vanish)
    assert not store.has_activations("run", 0, "site")
