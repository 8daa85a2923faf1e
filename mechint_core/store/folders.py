"""Trained dictionaries: a folder of files (weights, configuration) that is committed like an array.

A trainer writes into the entry's `.partial` folder and may keep its training state there. That folder survives a
kill: writing the same dictionary from the same source again continues in it. On an object store the folder lies in
a cache on the local disk, and its files are uploaded when it is committed.
"""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mechint_core.errors import CorruptStoreError, UncommittedError
from mechint_core.store.commit import Commit, Content, entry_digest, to_json
from mechint_core.store.draft import WriterLock, commit_folder, draft, local_folder
from mechint_core.store.names import COMMIT_FILE, PARTIAL, WRITER_FILE
from mechint_core.store.place import Place

_SOURCE_FILE: Final = "source.json"
_OURS: Final = frozenset({COMMIT_FILE, WRITER_FILE, _SOURCE_FILE})


@dataclass(frozen=True, slots=True)
class StoredFolder:
    """A committed folder, on the local disk."""

    path: Path
    digest: str
    """Identity of its files' names and bytes."""
    source: Mapping[str, Any]
    made_at: str


def cache_place(store_uuid: str) -> Place:
    """Return where the folders of an object store lie on this machine."""
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Place.at(caches / "mechint" / store_uuid)


@contextmanager
def write_folder(place: Place, local: Place, path: str, source: Mapping[str, Any]) -> Generator[Path]:
    """Yield the folder to fill, in `local`; commit it to `place` at the end, or leave it to be continued."""
    folder = local_folder(local, f"{path}{PARTIAL}")
    folder.mkdir(parents=True, exist_ok=True)
    lock = WriterLock.take(folder)
    if lock is None:
        raise UncommittedError(f"{path} must have one writer. Another process is writing it. Wait for it, or stop it.")
    try:
        _keep_if_from(folder, json.dumps(to_json(source), sort_keys=True))
        yield folder
        contents = {name: Content(sha256=file_digest(folder / name)) for name in file_names(folder)}
        if not contents:
            raise UncommittedError(f"{path} must hold at least one file. It is empty. Nothing was committed.")
        commit = Commit(sha256=entry_digest(contents), rows=None, contents=contents, source=to_json(source))
        (folder / _SOURCE_FILE).unlink()
        if place.folder:
            commit_folder(place, f"{path}{PARTIAL}", path, commit)
        else:
            _upload(place, path, folder, commit)
            shutil.rmtree(folder)
    finally:
        lock.release()


def read_folder(place: Place, local: Place, path: str, commit: Commit) -> StoredFolder:
    """Return the committed folder at `path`, after fetching it if it lies elsewhere."""
    if place.folder:
        folder = place.folder / path
    else:
        folder = local_folder(local, f"fetched/{commit.sha256}")
        if not folder.exists():
            _fetch(place, path, folder, commit)
    return StoredFolder(folder, commit.sha256, commit.source, commit.made_at)


def file_names(folder: Path) -> list[str]:
    """Return the paths of the files that the writer made, inside `folder`."""
    names = (each.relative_to(folder).as_posix() for each in sorted(folder.rglob("*")) if each.is_file())
    return [name for name in names if name not in _OURS]


def file_digest(file: Path) -> str:
    """Return the sha256 of a file."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _keep_if_from(folder: Path, source: str) -> None:
    """Empty the folder of what another source left there: its training state is not ours."""
    written = folder / _SOURCE_FILE
    if not written.exists() or written.read_text() != source:
        for each in folder.iterdir():
            if each.is_dir():
                shutil.rmtree(each)
            elif each.name != WRITER_FILE:
                each.unlink()
        written.write_text(source)


def _upload(place: Place, path: str, folder: Path, commit: Commit) -> None:
    target = draft(place, path)
    for name in commit.contents:
        target.check()
        place.files.put_file(str(folder / name), place.full(f"{path}/{name}"))
    target.commit(commit)


def _fetch(place: Place, path: str, folder: Path, commit: Commit) -> None:
    arriving = folder.with_name(f"{folder.name}.{uuid.uuid4().hex[:8]}{PARTIAL}")
    for name, content in commit.contents.items():
        (arriving / name).parent.mkdir(parents=True, exist_ok=True)
        place.files.get_file(place.full(f"{path}/{name}"), str(arriving / name))
        if file_digest(arriving / name) != content.sha256:
            shutil.rmtree(arriving)
            raise CorruptStoreError(f"{path}/{name} must be as it was committed. Its bytes differ. Make it again.")
    try:
        arriving.rename(folder)
    except OSError:  # another process fetched it meanwhile
        shutil.rmtree(arriving)
