"""Writing so that a reader sees all of an entry or nothing of it, whenever the writer dies.

On the local disk an entry is written into a folder of its own, `NAME%<token>.partial`, and renamed to `NAME` when
`commit.json` lies inside. Object stores have no atomic rename: there it is written in place, with `commit.json`
removed first and written last. That is the only difference a reader could notice: on an object store an entry
that is being replaced is missing meanwhile.

Two writers of one entry: on the local disk they never meet, and the last commit wins. On an object store the one
that started last wins: its token in `writer.json` makes the other stop at its next block.

Who is alive: a local writer holds a lock on `writer.json` in its folder, which the kernel releases however the
process ends. An object store has no locks: there the writer renews a time in `writer.json` as it writes.
"""

import errno
import json
import os
import shutil
import socket
import time
import uuid
from collections.abc import Generator, Hashable
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Final, Protocol, runtime_checkable

from mechint_core.errors import ConfigurationError, MechintError, UncommittedError
from mechint_core.store.commit import Commit
from mechint_core.store.names import COMMIT_FILE, PARTIAL, WRITER_FILE
from mechint_core.store.place import Place

try:
    import fcntl
except ImportError:  # Windows: no lock, and `gc` goes by age alone
    fcntl = None

_MARK: Final = "%"
"""Separates an entry's name from a token: no name may hold it."""
_OLD: Final = f".old{PARTIAL}"
_ATTEMPTS: Final = 8
"""How often a reader looks again while writers replace an entry before its eyes."""
_BEAT_S: Final = 60.0
_NEWBORN_S: Final = 60.0
"""A folder without a lock is left alone this long: its writer may be about to take one."""


@runtime_checkable
class Draft(Protocol):
    """An entry that is being written at `path`, relative to the store."""

    path: str

    def check(self) -> None:
        """Raise UncommittedError if another writer has taken over. Called before every block."""

    def commit(self, commit: Commit) -> None:
        """Make it visible."""

    def abandon(self) -> None:
        """Remove what was written."""


def draft(place: Place, path: str) -> Draft:
    """Begin to write the entry at `path`."""
    with writing(path):
        return _LocalDraft(place, path) if place.folder else _RemoteDraft(place, path)


@contextmanager
def writing(path: str) -> Generator[None]:
    """Say what an error of the file system means for the entry at `path`."""
    try:
        yield
    except MechintError:
        raise
    except OSError as error:
        raise UncommittedError(
            f"{path} cannot be written: {error}. Nothing was committed. Make room and run again."
        ) from error


class _LocalDraft:
    def __init__(self, place: Place, path: str) -> None:
        self._place, self._target = place, path
        lock: WriterLock | None = None
        while lock is None:  # `gc` may take a folder in the instant between its making and its lock
            self.path = f"{path}{_MARK}{_token()}{PARTIAL}"
            local_folder(place, self.path).mkdir(parents=True)
            lock = WriterLock.take(local_folder(place, self.path))
        self._lock = lock

    def check(self) -> None:
        return

    def commit(self, commit: Commit) -> None:
        commit_folder(self._place, self.path, self._target, commit)
        self._lock.release()

    def abandon(self) -> None:
        self._place.remove(self.path)
        self._lock.release()


class _RemoteDraft:
    def __init__(self, place: Place, path: str) -> None:
        self.path, self._place = path, place
        self._token = uuid.uuid4().hex
        self._beat()  # first, so that another writer stops before its rows are removed
        place.remove(f"{path}/{COMMIT_FILE}")
        left = [place.full(f"{path}/{name}") for name in place.sizes(path) if name != WRITER_FILE]
        if left:
            place.files.rm(left)  # at once: a request for each chunk would take minutes

    def check(self) -> None:
        if writer_token(self._place, self.path) != self._token:
            raise UncommittedError(f"{self.path} was taken over or removed by another process. Nothing was committed.")
        if time.time() - self._beaten > _BEAT_S:
            self._beat()

    def commit(self, commit: Commit) -> None:
        self.check()
        self._place.write(f"{self.path}/{COMMIT_FILE}", commit.dump())
        if writer_token(self._place, self.path) != self._token:  # taken over in between: their rows, our commit
            self._place.remove(f"{self.path}/{COMMIT_FILE}")
            self.check()
        self._place.remove(f"{self.path}/{WRITER_FILE}")

    def abandon(self) -> None:
        if writer_token(self._place, self.path) == self._token:
            self._place.remove(self.path)

    def _beat(self) -> None:
        self._beaten = time.time()
        self._place.write(f"{self.path}/{WRITER_FILE}", _writer(token=self._token, alive_at=self._beaten))


def writer_token(place: Place, path: str) -> str | None:
    """Return the token of who writes an entry on an object store; None if nobody does."""
    return _writer_record(place, path).get("token")


def _writer_record(place: Place, path: str) -> dict[str, Any]:
    try:
        return json.loads(place.read(f"{path}/{WRITER_FILE}"))
    except (FileNotFoundError, ValueError):
        return {}


def _writer(**more: object) -> bytes:
    return json.dumps({"host": socket.gethostname(), "pid": os.getpid(), **more}).encode()


def _token() -> str:
    return uuid.uuid4().hex[:8]


class WriterLock:
    """The lock of a folder's writer: the file `writer.json` in it, held open."""

    def __init__(self, opened: IO[bytes]) -> None:
        self._opened = opened

    @classmethod
    def take(cls, folder: Path) -> "WriterLock | None":
        """Lock `folder`; None if another writer holds it or it has just been removed."""
        try:
            opened = (folder / WRITER_FILE).open("a+b")
        except FileNotFoundError:
            return None
        try:
            locked = _lock(opened)
            ours = (folder / WRITER_FILE).stat().st_ino == os.fstat(opened.fileno()).st_ino
        except (BlockingIOError, FileNotFoundError):
            ours = locked = False
        if not ours:
            opened.close()
            return None
        if not opened.tell():
            opened.write(_writer(locked=locked))
            opened.flush()
        return cls(opened)

    def release(self) -> None:
        """Let go, however often it is called."""
        self._opened.close()


def _lock(opened: IO[bytes]) -> bool:
    """Lock an open file, or raise BlockingIOError; False where the file system has no locks (some cluster disks)."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK):
            raise
        return False
    return True


def is_abandoned(place: Place, path: str, *, idle_s: float, remove: bool) -> bool:
    """Say whether nobody writes at `path` any more, and if so and asked, remove it before anyone can take it up.

    Where there are no locks (object stores, some cluster disks), a writer is given up after `idle_s` of silence.
    """
    record = _writer_record(place, path)
    lock: WriterLock | None = None
    if not place.folder:
        dead = time.time() - float(record.get("alive_at", 0.0)) > idle_s
    elif path.endswith(_OLD):
        dead = place.exists(f"{path.partition(_MARK)[0]}/{COMMIT_FILE}")
    elif not record:
        dead = time.time() - local_folder(place, path).stat().st_mtime > _NEWBORN_S
    elif not record.get("locked"):
        dead = time.time() - max(each.stat().st_mtime for each in local_folder(place, path).rglob("*")) > idle_s
    else:
        lock = WriterLock.take(local_folder(place, path))
        dead = lock is not None
    if dead and remove:
        place.remove(path)
    if lock:
        lock.release()
    return dead


def local_folder(place: Place, path: str) -> Path:
    """Return the folder of an entry on the local disk."""
    if place.folder is None:
        raise ConfigurationError(f"{place} must be on the local disk.")
    return place.folder / path


def commit_folder(place: Place, path: str, target: str, commit: Commit) -> None:
    """Put `commit.json` into the folder at `path`, on the local disk, and rename it to `target`."""
    place.write(f"{path}/{COMMIT_FILE}", commit.dump())
    move_into_place(local_folder(place, path), local_folder(place, target))
    (local_folder(place, target) / WRITER_FILE).unlink(missing_ok=True)


def move_into_place(partial: Path, target: Path) -> None:
    """Rename `partial`, which is committed, to `target`, and remove what was there.

    Between the two renames of a replacement there is nothing at `target`: a reader who looks just then, or after
    we died just there, finishes the work itself (`settle`).
    """
    superseded: list[Path] = []
    while True:
        try:
            partial.rename(target)
            break
        except FileNotFoundError:
            if (target / COMMIT_FILE).exists():  # settled by a reader
                break
            raise
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            superseded.append(target.with_name(f"{target.name}{_MARK}{_token()}{_OLD}"))
            with suppress(FileNotFoundError):
                target.rename(superseded[-1])
    for old in superseded:
        shutil.rmtree(old, ignore_errors=True)


def settle(place: Place, path: str) -> bool:
    """Finish a rename that its writer did not come to: say whether the entry is, or was just now, committed."""
    if place.folder is None:
        return False
    target = local_folder(place, path)
    unfinished = [target.with_name(name) for name in partials(place, path)]
    committed = [folder for folder in unfinished if (folder / COMMIT_FILE).exists()]
    for folder in sorted(committed, key=lambda folder: folder.name.endswith(_OLD)):  # the newer ones first
        if not target.exists():
            with suppress(OSError):  # another reader, or the writer itself, was faster
                folder.rename(target)
    return bool(committed) or (target / COMMIT_FILE).exists()


def partials(place: Place, path: str) -> list[str]:
    """Return the names of the unfinished folders beside the entry at `path`."""
    parent, _, name = path.rpartition("/")
    return [each for each in place.subfolders(parent) if each.endswith(PARTIAL) and entry_name(each) == name]


def entry_name(folder: str) -> str:
    """Return the name of the entry that a folder, perhaps unfinished, belongs to."""
    return folder.removesuffix(PARTIAL).partition(_MARK)[0]


def read_commit(place: Place, path: str) -> tuple[Commit, Hashable] | None:
    """Return the commit of the entry at `path` and the stamp of its file; None if it has none."""
    for _ in range(_ATTEMPTS):
        with suppress(FileNotFoundError, NotADirectoryError):
            text, stamp = place.read_stamped(f"{path}/{COMMIT_FILE}")
            return Commit.load(text, path), stamp
        if not settle(place, path):
            break
    return None
