"""Everything in a store: committing it, listing it, verifying it, and removing what was never finished."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mechint_core.errors import MechintError, NotFoundError, UncommittedError
from mechint_core.store.arrays import StoredArray
from mechint_core.store.commit import ArrayDigest, Commit, Content, entry_digest
from mechint_core.store.draft import Draft, entry_name, is_abandoned, partials, read_commit, settle, writing
from mechint_core.store.names import COMMIT_FILE, DEPTH, PARTIAL, WRITER_FILE, Kind
from mechint_core.store.place import Place
from mechint_core.store.results import RECORD, read_record

_BLOCK_BYTES = 8 * 2**20


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing in a store: an activation array, a data set, a result, a dictionary or a dissimilarity matrix."""

    kind: Kind
    path: str
    """Relative to the store."""
    rows: int | None
    """Length of the axis its arrays share; None where they share none."""
    bytes: int
    dtype: str
    """Of its numbers, where they are all of one kind."""
    digest: str
    committed: bool
    made_at: str


def list_entries(place: Place) -> Iterator[Entry]:
    """Yield everything that is stored, committed or not, in the order of its paths."""
    for kind, depth in DEPTH.items():
        for path in _leaves(place, kind, depth):
            yield _entry(place, kind, path)


def verify_entries(place: Place) -> Iterator[tuple[Entry, str | None]]:
    """Yield every entry with what is wrong with it, after reading all its bytes; None if nothing is."""
    for entry in list_entries(place):
        try:
            yield entry, _problem(place, entry)
        except MechintError as error:
            yield entry, str(error)


def collect_garbage(place: Place, *, dry_run: bool, idle_s: float) -> Iterator[Entry]:
    """Yield, and remove unless it is a dry run, what was never committed and has no writer any more."""
    for entry in list_entries(place):
        if not entry.committed and is_abandoned(place, entry.path, idle_s=idle_s, remove=not dry_run):
            yield entry


def committed_files(place: Place, path: str) -> list[str]:
    """Return the files of an entry that its writer made."""
    return [name for name in place.sizes(path) if name not in (COMMIT_FILE, WRITER_FILE)]


def commit_entry(
    place: Place, target: Draft, contents: Mapping[str, Content], rows: int | None, source: Mapping[str, Any]
) -> str:
    """Make a finished draft visible; return its digest."""
    described = (f"{name}/zarr.json" for name, content in contents.items() if content.dtype)
    digest = entry_digest(contents)
    with writing(target.path):
        commit = Commit(
            sha256=digest,
            rows=rows,
            contents=contents,
            source=source,
            n_files=len(committed_files(place, target.path)),
            metadata={
                name: hashlib.sha256(place.read(f"{target.path}/{name}")).hexdigest()
                for name in ("zarr.json", *described)
            },
        )
        target.commit(commit)
    return digest


def committed_names(place: Place, parent: str) -> Iterator[str]:
    """Yield the names of the committed entries in a folder, sorted."""
    for name in place.subfolders(parent):
        if not name.endswith(PARTIAL) and place.exists(f"{parent}/{name}/{COMMIT_FILE}"):
            yield name


def why_absent(place: Place, path: str) -> MechintError:
    """Return the error that says what there is in place of a committed entry at `path`."""
    if partials(place, path) or place.exists(path):
        return UncommittedError(
            f"{path} must be committed. Its writer was stopped, or is still at work. "
            f"Run it again: what is committed is kept. `mechint store gc` removes the rest."
        )
    segments = path.split("/")
    for depth in range(1, len(segments)):
        parent = "/".join(segments[:depth])
        is_last = depth == len(segments) - 1
        known = list(committed_names(place, parent)) if is_last else place.subfolders(parent)
        if segments[depth] not in known:
            return NotFoundError(
                f"{path} must be in {place}. There is no {segments[depth]!r} in {parent}. "
                f"There is: {', '.join(known) or 'nothing'}."
            )
    return NotFoundError(f"{path} must be in {place}. It has just been removed.")


def _leaves(place: Place, path: str, depth: int) -> Iterator[str]:
    names = place.subfolders(path)
    if depth == 1:
        unfinished = [name for name in names if name.endswith(PARTIAL)]
        if any(entry_name(name) not in names and settle(place, f"{path}/{entry_name(name)}") for name in unfinished):
            names = place.subfolders(path)
    for name in names:
        yield from [f"{path}/{name}"] if depth == 1 else _leaves(place, f"{path}/{name}", depth - 1)


def _entry(place: Place, kind: Kind, path: str) -> Entry:
    size = sum(place.sizes(path).values())
    try:
        found = None if path.endswith(PARTIAL) else read_commit(place, path)
    except MechintError:  # its commit is damaged: that is for `verify` to say, and not for `gc` to remove
        return Entry(kind, path, None, size, "", "", committed=True, made_at="")
    if found is None:
        return Entry(kind, path, None, size, "", "", committed=False, made_at="")
    commit = found[0]
    dtypes = {content.logical_dtype for content in commit.contents.values() if content.dtype}
    dtype = dtypes.pop() if len(dtypes) == 1 else ""
    return Entry(kind, path, commit.rows, size, dtype, commit.sha256, committed=True, made_at=commit.made_at)


def _problem(place: Place, entry: Entry) -> str | None:
    found = read_commit(place, entry.path) if entry.committed else None
    if found is None:
        return "was never committed: its writer was stopped, or is still at work. `mechint store gc` removes it."
    commit = found[0]
    for name, content in commit.contents.items():
        if _digest(place, entry.path, name, content, commit) != content.sha256:
            return f"{name}: its bytes differ from those that were committed. Delete {entry.path} and make it again."
    if entry_digest(commit.contents) != commit.sha256:
        return f"{COMMIT_FILE}: its digest is not that of its contents."
    for name, digest in commit.metadata.items():
        if _file_digest(place, f"{entry.path}/{name}") != digest:
            return f"{name}: it has been changed since it was committed. Delete {entry.path} and make it again."
    return _miscount(place, entry, commit)


def _digest(place: Place, path: str, name: str, content: Content, commit: Commit) -> str:
    """Return the digest of what is there now."""
    if name == RECORD:
        read_record(place, path, commit)
        return content.sha256
    if not content.dtype:
        return _file_digest(place, f"{path}/{name}")
    stored = StoredArray(place, path, name, commit).bits()
    digest = ArrayDigest(content.logical_dtype, content.shape)
    for block in (stored[rows] for rows in stored.row_blocks(_BLOCK_BYTES)) if content.shape else [stored.read()]:
        digest.update(block)
    return digest.hexdigest()


def _file_digest(place: Place, path: str) -> str:
    try:
        return hashlib.sha256(place.read(path)).hexdigest()
    except FileNotFoundError:
        return "missing"


def _miscount(place: Place, entry: Entry, commit: Commit) -> str | None:
    files = committed_files(place, entry.path)
    if entry.kind != "dictionaries":
        n = len(files)
        return None if n == commit.n_files else f"{commit.n_files} files were committed, and there are {n}."
    extra = sorted(set(files) - set(commit.contents))
    return f"{extra[0]}: nobody committed this file." if extra else None
