"""Files that appear complete or not at all, and ids that name what they hold.

Guarantee: a reader never sees a half-written file. Everything is written beside its target, flushed
to the disk, and renamed over it, so that a run killed at any moment leaves only finished results.
"""

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from coding.errors import UserError


@contextlib.contextmanager
def write_atomic(path: str | Path) -> Iterator[BinaryIO]:
    """Open a binary file that replaces ``path`` only when the block ends without an error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    fd, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(fd, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise


def write_bytes(path: str | Path, data: bytes) -> None:
    with write_atomic(path) as file:
        file.write(data)


def write_text(path: str | Path, text: str) -> None:
    write_bytes(path, text.encode())


def write_json(path: str | Path, value: Any) -> None:
    """Write ``value`` as indented JSON; NaN and infinity are refused, they are not JSON."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: str | Path) -> Any:
    """Read JSON, naming the file when it is not.

    Raises:
        UserError: the file is not valid JSON.
        FileNotFoundError: there is no such file.
    """
    data = Path(path).read_bytes()
    try:
        return json.loads(data)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid JSON ({error})") from error


def read_json_lines(path: str | Path) -> list[Any]:
    """Read a file of one JSON value a line, naming file and line that is not.

    Raises:
        UserError: a line is not valid JSON.
        FileNotFoundError: there is no such file.
    """
    values = []
    for number, line in enumerate(Path(path).read_bytes().split(b"\n"), start=1):
        if line.strip():
            try:
                values.append(json.loads(line))
            except (json.JSONDecodeError, UnicodeDecodeError) as error:
                raise UserError(f"{path}:{number}: not valid JSON ({error})") from error
    return values


def digest(*parts: bytes | str | Path) -> str:
    """SHA-256 over the parts in order, as hex; a ``Path`` stands for its file's content."""
    hasher = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path):
            with part.open("rb") as file:
                hasher.update(hashlib.file_digest(file, "sha256").digest())
        else:
            hasher.update(hashlib.sha256(part.encode() if isinstance(part, str) else part).digest())
    return hasher.hexdigest()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
