"""Files and folders by name: paths of this machine, or URLs of object stores through fsspec.

    find("features")                 a path
    find("s3://bucket/features")     an object store

A scheme needs the package that fsspec names for it, such as s3fs or gcsfs. Keys and passwords are told
to fsspec in its own ways: its configuration files, and the environment variables of each store.
"""

import contextlib
import os
import re
import secrets
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Protocol

from dtufc import files, locks
from dtufc.errors import UserError

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_HEADERS = 1 << 16
"""Bytes that are read at a time where a tar's headers are looked for."""


@dataclass(frozen=True, order=True)
class Remote:
    """A file or folder in an object store, with the methods of a path that sources need."""

    url: str

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: str) -> "Remote":
        return Remote(f"{self.url.rstrip('/')}/{name}")

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.name).suffix

    def store(self) -> tuple[Any, str]:
        """The store as fsspec has it, and the path there.

        Raises:
            UserError: fsspec knows no such scheme, or the package that it needs is not installed.
        """
        import fsspec  # comes with torch

        try:
            return fsspec.core.url_to_fs(self.url)
        except (ImportError, ValueError) as error:
            raise UserError(f"{self.url}: {error}") from error

    def is_dir(self) -> bool:
        store, path = self.store()
        return store.isdir(path)

    def exists(self) -> bool:
        store, path = self.store()
        return store.exists(path)

    def rglob(self, pattern: str) -> Iterator["Remote"]:
        """The files below it whose names fit."""
        store, path = self.store()
        top = path.rstrip("/") + "/"
        for found in store.find(path):
            if PurePosixPath(found).match(pattern):
                yield self / found.removeprefix(top)

    def relative_to(self, folder: "Remote") -> PurePosixPath:
        return PurePosixPath(self.url.removeprefix(folder.url.rstrip("/") + "/"))

    def open(self, mode: str = "rb") -> BinaryIO:
        """The file, to be read here and there: no more than what is asked for and a little beside it."""
        store, path = self.store()
        return store.open(path, mode, block_size=_HEADERS, cache_type="readahead")

    def read_bytes(self, offset: int = 0, size: int | None = None) -> bytes:
        """The file, or ``size`` bytes of it from ``offset`` on."""
        store, path = self.store()
        return store.cat_file(path, offset, None if size is None else offset + size)


Location = Path | Remote


def find(name: str) -> Location:
    """What a name stands for."""
    return Remote(name.rstrip("/")) if _SCHEME.match(name) else Path(name)


class Folder(Protocol):
    """A folder that files are written into, each whole or not at all."""

    def names(self) -> set[str]:
        """Of the files that are there."""

    def read(self, name: str) -> bytes:
        """What is in a file."""

    def write(self, name: str, data: bytes) -> None:
        """Make or replace a file."""

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""

    def making(self, name: str) -> contextlib.AbstractContextManager[Path]:
        """A path on this machine, whose file becomes ``name`` when the block ends well."""

    def hold(self) -> contextlib.AbstractContextManager[None]:
        """Be the only command that writes here, where that can be had."""


class LocalFolder:
    """A folder of this machine, or of a file system that several machines share."""

    def __init__(self, path: Path):
        self._path = path

    def names(self) -> set[str]:
        return {path.name for path in self._path.iterdir()} if self._path.is_dir() else set()

    def read(self, name: str) -> bytes:
        return (self._path / name).read_bytes()

    def write(self, name: str, data: bytes) -> None:
        files.write_bytes(self._path / name, data)

    def remove(self, name: str) -> None:
        (self._path / name).unlink(missing_ok=True)

    @contextlib.contextmanager
    def making(self, name: str) -> Iterator[Path]:
        self._path.mkdir(parents=True, exist_ok=True)
        part = self._path / f".{secrets.token_hex(8)}{files.PART}"
        try:
            yield part
            os.replace(part, self._path / name)
        finally:
            part.unlink(missing_ok=True)

    def hold(self) -> contextlib.AbstractContextManager[None]:
        return locks.hold(self._path)


class RemoteFolder:
    """A folder of an object store, which shows a file when all of it has arrived. It has no locks."""

    def __init__(self, folder: Remote):
        self._folder = folder
        self._store, self._path = folder.store()

    def names(self) -> set[str]:
        self._store.invalidate_cache(self._path)  # other workers write here
        if not self._store.exists(self._path):
            return set()
        return {PurePosixPath(path).name for path in self._store.ls(self._path, detail=False)}

    def read(self, name: str) -> bytes:
        return (self._folder / name).read_bytes()

    def write(self, name: str, data: bytes) -> None:
        self._store.makedirs(self._path, exist_ok=True)
        self._store.pipe_file(f"{self._path}/{name}", data)

    def remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._store.rm_file(f"{self._path}/{name}")

    @contextlib.contextmanager
    def making(self, name: str) -> Iterator[Path]:
        with tempfile.TemporaryDirectory() as scratch:
            yield Path(scratch) / name
            self._store.makedirs(self._path, exist_ok=True)
            self._store.put_file(str(Path(scratch) / name), f"{self._path}/{name}")

    def hold(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


def open_folder(name: str) -> Folder:
    """The folder of a name.

    Raises:
        UserError: fsspec knows no such scheme, or the package that it needs is not installed.
    """
    place = find(name)
    return RemoteFolder(place) if isinstance(place, Remote) else LocalFolder(place)
