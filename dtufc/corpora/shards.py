"""The files of a corpus: shards of a fixed number of samples, and ``corpus.json`` beside them."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from dtufc import files
from dtufc.bitstream import BitstreamError
from dtufc.errors import UserError
from dtufc.feature import points
from dtufc.streams.layout import read_layout
from dtufc.streams.limits import Limits
from dtufc.streams.session import TensorSpec
from dtufc.streams.writer import SUFFIX

CORPUS_JSON = "corpus.json"
_PREFIX = "shard-"


@dataclass(frozen=True)
class Shard:
    """What a shard's header and index say."""

    path: Path
    tensors: tuple[TensorSpec, ...]
    keys: list[str]
    """Name of each sample."""
    rows: list[tuple[int, ...]]
    """Of each sample, its rows of each tensor."""
    closed: bool
    """Whether its writer finished it."""


def shard_name(number: int) -> str:
    return f"{_PREFIX}{number:05d}{SUFFIX}"


def is_shard(name: str) -> bool:
    """Whether a file's name is a shard's."""
    return name.startswith(_PREFIX) and name.endswith(SUFFIX)


def shard_path(folder: Path, number: int) -> Path:
    return folder / shard_name(number)


def list_shards(folder: Path) -> list[Path]:
    """The shards of a corpus in their order.

    Raises:
        FileNotFoundError: there is none.
        UserError: one between others is missing.
    """
    paths = sorted(folder.glob(f"{_PREFIX}*{SUFFIX}"))
    if not paths:
        raise FileNotFoundError(f"{folder}: no corpus, it holds no {_PREFIX}*{SUFFIX}")
    for number, path in enumerate(paths):
        if path != shard_path(folder, number):
            raise UserError(
                f"{folder}: expected {shard_path(folder, number).name}, got {path.name}"
            )
    return paths


def read_shard(path: Path) -> Shard:
    """Read header and index of a shard.

    Raises:
        BitstreamError: it is no stream; the message names the file.
    """
    with path.open("rb", buffering=0) as file:
        try:
            layout = read_layout(file, Limits())
        except BitstreamError as error:
            raise BitstreamError(f"{path}: {error}") from error
    index = layout.index
    return Shard(path, layout.session.tensors, index.keys, index.totals, layout.problem is None)


@dataclass(frozen=True)
class ShardFacts:
    """What ``corpus.json`` tells of a shard, or sums up of all."""

    file: str
    samples: int
    bytes: int
    tensors: dict[str, dict[str, int]]
    """Of each tensor, its ``rows`` and ``points``."""

    def dump(self) -> str:
        """Itself as JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def load(cls, text: str) -> Self:
        """What :meth:`dump` told of.

        Raises:
            TypeError, ValueError: the text tells of nothing such.
        """
        return cls(**json.loads(text))


def facts_of(shard: Shard, file: str | None = None) -> ShardFacts:
    """What there is to tell of a shard.

    Args:
        file: its name in the corpus, where that is not the name of the file that was read.
    """
    totals = [sum(each) for each in zip(*shard.rows, strict=True)]
    tensors = {
        spec.name: {"rows": rows, "points": points(spec.shape(rows))}
        for spec, rows in zip(shard.tensors, totals, strict=True)
    }
    size = shard.path.stat().st_size
    return ShardFacts(file or shard.path.name, len(shard.keys), size, tensors)


def corpus_record(
    shards: Sequence[ShardFacts], source: Sequence[str], codecs: Sequence[str]
) -> dict[str, Any]:
    """What ``corpus.json`` says of these shards."""
    tensors = {
        name: {"codec": codec}
        | {what: sum(shard.tensors[name][what] for shard in shards) for what in ("rows", "points")}
        for name, codec in zip(shards[0].tensors, codecs, strict=True)
    }
    size = sum(shard.bytes for shard in shards)
    return {
        "source": [*source],
        "samples": sum(shard.samples for shard in shards),
        "tensors": tensors,
        "bytes": size,
        "bits_per_point": 8 * size / sum(each["points"] for each in tensors.values()),
        "shards": [
            {"file": shard.file, "samples": shard.samples, "bytes": shard.bytes} for shard in shards
        ],
    }


def write_record(folder: Path, source: Sequence[str], codecs: Sequence[str]) -> dict[str, Any]:
    """Write ``corpus.json``, the mark of a finished corpus -> what it says."""
    shards = [facts_of(read_shard(path)) for path in list_shards(folder)]
    record = corpus_record(shards, source, codecs)
    files.write_json(folder / CORPUS_JSON, record)
    return record
