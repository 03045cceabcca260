"""The files of a corpus: shards of a fixed number of samples, and ``corpus.json`` beside them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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


def shard_path(folder: Path, number: int) -> Path:
    return folder / f"{_PREFIX}{number:05d}{SUFFIX}"


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


def write_record(folder: Path, source: Sequence[str], codecs: Sequence[str]) -> dict[str, Any]:
    """Write ``corpus.json``, the mark of a finished corpus -> what it says."""
    shards = [read_shard(path) for path in list_shards(folder)]
    totals = [sum(each) for each in zip(*(rows for s in shards for rows in s.rows), strict=True)]
    tensors = {
        spec.name: {"codec": codec, "rows": rows, "points": points(spec.shape(rows))}
        for spec, codec, rows in zip(shards[0].tensors, codecs, totals, strict=True)
    }
    size = sum(shard.path.stat().st_size for shard in shards)
    record = {
        "source": [*source],
        "samples": sum(len(shard.keys) for shard in shards),
        "tensors": tensors,
        "bytes": size,
        "bits_per_point": 8 * size / sum(each["points"] for each in tensors.values()),
        "shards": [
            {
                "file": shard.path.name,
                "samples": len(shard.keys),
                "bytes": shard.path.stat().st_size,
            }
            for shard in shards
        ],
    }
    files.write_json(folder / CORPUS_JSON, record)
    return record
