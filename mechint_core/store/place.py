"""Where a store lies: a folder on the local disk, or anything fsspec has a URL for.

Paths are relative to the store, with forward slashes. A place pickles as its URL, so that what was opened in one
process can be read in another.
"""

import os
import uuid
from collections.abc import Hashable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from mechint_core.errors import ConfigurationError, MissingExtraError


@dataclass(frozen=True)
class Place:
    """The root of a store."""

    url: str
    options: Mapping[str, Any] = field(default_factory=dict)
    """What the file system needs to connect (credentials, endpoint): `storage_options` elsewhere."""

    @classmethod
    def at(cls, location: str | Path, options: Mapping[str, Any] | None = None) -> "Place":
        """Return the place of a path or URL; a relative path is taken from the current folder, now."""
        place = cls(os.fspath(location), dict(options or {}))
        return cls(str(place.folder.absolute()), place.options) if place.folder else place

    def __reduce__(self) -> tuple[Any, ...]:
        return Place, (self.url, self.options)

    def __str__(self) -> str:
        return self.url

    @cached_property
    def _mounted(self) -> tuple[Any, str]:
        try:
            system, root = fsspec.url_to_fs(self.url, **self.options)
        except ValueError as error:
            raise ConfigurationError(
                f"location must be a path or a URL that fsspec knows. Got {self.url!r}."
            ) from error
        except ImportError as error:
            raise MissingExtraError(f"{self.url!r} needs a package that is not installed. {error}") from error
        return system, root.rstrip("/")

    @property
    def files(self) -> Any:
        """The fsspec file system."""
        return self._mounted[0]

    @cached_property
    def folder(self) -> Path | None:
        """The root on the local disk; None elsewhere."""
        return Path(self._mounted[1] or "/") if isinstance(self.files, LocalFileSystem) else None

    def full(self, path: str) -> str:
        """Return `path` as the file system names it."""
        return f"{self._mounted[1]}/{path}" if path else self._mounted[1]

    def read(self, path: str) -> bytes:
        """Return a file's content, as it is now."""
        return bytes(self.files.cat_file(self.full(path)))

    def read_stamped(self, path: str) -> tuple[bytes, Hashable]:
        """Return a file's content and the stamp of exactly that version of it."""
        if self.folder is None:
            content = self.read(path)
            return content, content
        with (self.folder / path).open("rb") as opened:
            return opened.read(), _stamp(os.fstat(opened.fileno()))

    def stamp(self, path: str) -> Hashable:
        """Return what changes whenever the file is replaced: its inode and time, or on an object store its content."""
        if self.folder is None:
            return self.read(path)
        return _stamp(os.stat(f"{self.folder}/{path}"))  # noqa: PTH116 - runs after every read, pathlib costs 5 us

    def write(self, path: str, content: bytes, *, only_if_new: bool = False) -> None:
        """Write a file at once, so that nobody sees half of it.

        With `only_if_new`, a file that exists is left alone and FileExistsError raised.
        """
        if self.folder is None:
            self.files.pipe_file(self.full(path), content, mode="create" if only_if_new else "overwrite")
            return
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
        try:
            draft.write_bytes(content)
            if only_if_new:
                os.link(draft, target)
            else:
                draft.replace(target)
        finally:
            draft.unlink(missing_ok=True)

    def exists(self, path: str) -> bool:
        """Say whether a file or folder is there."""
        self.files.invalidate_cache(self.full(path))
        return bool(self.files.exists(self.full(path)))

    def subfolders(self, path: str) -> list[str]:
        """Return the names of the folders in a folder, sorted; none if it does not exist."""
        self.files.invalidate_cache(self.full(path))
        try:
            listing = self.files.ls(self.full(path), detail=True)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(each["name"].rstrip("/").rsplit("/", 1)[-1] for each in listing if each["type"] == "directory")

    def sizes(self, path: str) -> dict[str, int]:
        """Return the size in bytes of every file under a folder, by its path inside that folder."""
        self.files.invalidate_cache(self.full(path))
        found: dict[str, dict[str, Any]] = self.files.find(self.full(path), detail=True)
        prefix = len(self.full(path)) + 1
        return {name[prefix:]: int(info["size"]) for name, info in sorted(found.items())}

    def remove(self, path: str) -> None:
        """Remove a file, or a folder and all that is in it; what is not there is no error."""
        with suppress(FileNotFoundError):
            self.files.rm(self.full(path), recursive=True)


def _stamp(status: os.stat_result) -> Hashable:
    return status.st_ino, status.st_mtime_ns, status.st_size
