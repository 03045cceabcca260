"""Files that appear complete or not at all, and ids that name what they hold.

Guarantee: a reader never sees a half-written file. Everything is written beside its target, flushed
to the disk, and renamed over it, so that a run killed at any moment leaves only finished results.
"""

import contextlib
import errno
import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from dtufc.errors import UserError

PART = ".part"
"""Ending of files that are not whole yet; their names begin with a dot. A kill leaves them behind, and
the next holder of the folder's lock removes them, see :mod:`dtufc.locks`."""


@contextlib.contextmanager
def write_atomic(path: str | Path) -> Iterator[BinaryIO]:
    """Open a binary file that replaces ``path`` only when the block ends without an error.

    Raises:
        OSError: it cannot be written whole, for example since the disk is full; the message names it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = (
        path.parent / f".{secrets.token_hex(8)}{PART}"
    )  # short: a name may have all of its 255 bytes
    try:
        with part.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        if error.filename not in (None, str(part), str(path)):
            raise  # another file's, opened inside the block
        reason = error.strerror or f"{error}; is the disk full?"
        raise OSError(error.errno or errno.EIO, f"not written: {reason}", str(path)) from error
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_bytes(path: str | Path, data: bytes | memoryview) -> None:
    with write_atomic(path) as file:
        file.write(data)


def write_text(path: str | Path, text: str) -> None:
    write_bytes(path, text.encode())


def write_json(path: str | Path, value: Any) -> None:
    """Write ``value`` as indented JSON; NaN and infinity are refused, they are not JSON."""
    write_text(path, indented_json(value))


def indented_json(value: Any) -> str:
    """``value`` as the text of a JSON file, to be read by people too."""
    return json.dumps(value, indent=2, allow_nan=False) + "\n"


def dump_json(value: Any) -> str:
    """``value`` as JSON with its keys sorted, the same text for the same value."""
    return json.dumps(value, sort_keys=True, allow_nan=False)


def read_json(path: str | Path) -> Any:
    """Read JSON, naming the file when it is not.

    Raises:
        UserError: the file is not valid JSON.
        FileNotFoundError: there is no such file.
    """
    data = Path(path).read_bytes()
    try:
        return json.loads(data)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
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
            except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
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


def jsonable(value: Any) -> Any:
    """Paths to strings and tuples to lists, all the way down."""
    if isinstance(value, dict):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    return str(value) if isinstance(value, Path) else value
