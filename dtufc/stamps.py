"""Stamps: what a product was made from, and how.

Every product (mapping, patches, codec, coded features, accuracy) carries a stamp in its record. It
holds the digest of the *content* of each thing that the product was made from and the configuration
that made it. A product is current if its stamp is the one that its script would give it now. Nothing
else is asked, neither times nor sizes.

    stamp = cfg.stamp()                     what the script would make, from the files as they are
    why = stamp.differs(read_stamp(record)) None: the product is current; else what has changed
"""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from dtufc import files
from dtufc.errors import UserError

KEY = "stamp"
"""Key of a stamp in a record."""
_RACY_NS = 2_000_000_000
"""A file that was changed so lately may change again without another time."""


@dataclass(frozen=True)
class Stamp:
    """What decides a product."""

    config: Mapping[str, Any]
    """Configuration that decides the content, as JSON values; neither places nor devices."""
    inputs: Mapping[str, str] = field(default_factory=dict)
    """Name of each thing that it is made from -> hex SHA-256 of its content."""

    @cached_property
    def digest(self) -> str:
        """Hex SHA-256 over configuration and inputs."""
        return files.digest(files.dump_json([dict(self.config), dict(self.inputs)]))

    def differs(self, known: Self | None) -> str | None:
        """What tells this stamp from the one that a product has, in words; ``None`` if nothing does.

        Args:
            known: the product's stamp; ``None`` if it has none.
        """
        if known is None:
            return "not made yet"
        for what, ours, theirs in (
            ("", self.config, known.config), ("content of ", self.inputs, known.inputs),
        ):  # fmt: skip
            for key in sorted({*ours, *theirs}):
                if key not in theirs:
                    return f"{key} is new"
                if key not in ours:
                    return f"{key} is gone"
                if ours[key] != theirs[key]:
                    change = "" if what else f" from {theirs[key]} to {ours[key]}"
                    return f"{what}{key} has changed{change}"
        return None

    def record(self) -> dict[str, Any]:
        """Its form in a record."""
        return {KEY: {"digest": self.digest, "config": self.config, "inputs": self.inputs}}

    @classmethod
    def of_record(cls, record: Any) -> Self | None:
        """The stamp in a record; ``None`` where there is none, or no sound one."""
        values = record.get(KEY) if isinstance(record, dict) else None
        if not isinstance(values, dict):
            return None
        config, inputs = values.get("config"), values.get("inputs")
        if not isinstance(config, dict) or not isinstance(inputs, dict):
            return None
        return cls(config, inputs)


def read_stamp(path: Path) -> Stamp | None:
    """The stamp in a record file; ``None`` where the file or a sound stamp is missing."""
    try:
        return Stamp.of_record(files.read_json(path))
    except (UserError, FileNotFoundError):
        return None


def digest_files(paths: Iterable[Path], prefix: str = "") -> dict[str, str]:
    """Digests of files by name, for a stamp's inputs.

    Args:
        prefix: in front of each name.

    Raises:
        FileNotFoundError: one is missing.
    """
    return {f"{prefix}{path.name}": digest_file(path) for path in paths}


_known: dict[tuple[str, int, int, int, int], str] = {}


def digest_file(path: Path) -> str:
    """Hex SHA-256 of a file's content.

    A file is read again unless inode, size and both times of change are those of the last reading in
    this process, and lay in the past then.

    Raises:
        FileNotFoundError: it is missing.
    """
    stat = path.stat()
    key = (str(path.resolve()), stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
    if key not in _known:
        now = time.time_ns()
        found = files.digest(path)
        if now - max(stat.st_mtime_ns, stat.st_ctime_ns) < _RACY_NS:
            return found
        _known[key] = found
    return _known[key]
