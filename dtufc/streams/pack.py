"""Pack features into a stream file: ``python pack.py --codec CODEC --input DIR --output FILE.ufs``.

Each feature becomes a sample of the stream, named after its file. Several tensors of a sample are
given as several codecs and folders, which hold features of the same names. A file that is there is
gone on with: what it holds already is left out, so that a killed run is run again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dtufc import config
from dtufc.codec import load_codec
from dtufc.errors import UserError
from dtufc.feature import list_features, points, read_feature
from dtufc.memory import keep_memory
from dtufc.options import progress
from dtufc.streams.encoder import Tensor
from dtufc.streams.writer import StreamWriter, write_stream


@dataclass(frozen=True, kw_only=True)
class PackConfig:
    """Feature files to one stream file."""

    codec: list[Path]
    """Codec folder, or the name of a shipped codec; one per tensor."""
    input: list[Path]
    """Folder of feature .npy files, or one file; one per tensor."""
    output: Path
    """The stream file, .ufs; one that is there is gone on with."""
    name: list[str] | None = None
    """Names of the tensors; null: those of the kinds of features."""
    kind: list[str] | None = None
    """<model>_<task> of each tensor, where a codec knows several kinds."""
    quality: float | None = None
    """Rate on the codecs' own scale; null takes their default."""
    frame_rows: int | None = None
    """Rows per frame; null: all rows of a feature. Small frames are read from singly, large ones take
    fewer bytes."""
    model: str = ""
    """Identity of the large model, kept in the file."""
    tokenizer: str = ""
    """Identity of the tokenizer, kept in the file."""
    split: str = ""
    """Where the model is cut, kept in the file."""
    device: str = "cpu"
    """torch device of the networks."""

    def __post_init__(self):
        count = len(self.codec)
        for key in ("codec", "input", "name", "kind"):
            given = getattr(self, key)
            if given is not None and (len(given) != count or not count):
                raise UserError(f"{key}: expected one per codec, {count}, got {len(given)}")
        if self.frame_rows is not None and self.frame_rows < 1:
            raise UserError(f"frame_rows: expected at least 1, got {self.frame_rows}")


def pack(cfg: PackConfig) -> None:
    """Write the stream file.

    Raises:
        FeatureError, FileNotFoundError, UserError: as the codec API; the message names the file.
    """
    folders = [{path.stem: path for path in list_features(folder)} for folder in cfg.input]
    for folder, found in zip(cfg.input, folders, strict=True):
        if odd := sorted({*found} ^ {*folders[0]}):
            raise UserError(f"{folder}: expected the same names as in {cfg.input[0]}, see {odd[0]}")
    tensors = _tensors(cfg)
    total = 0
    with write_stream(
        cfg.output, tensors, model=cfg.model, tokenizer=cfg.tokenizer, split=cfg.split
    ) as writer:
        there = {key: number for number, key in enumerate(writer.keys)}
        for stem in progress(folders[0], "pack", len(folders[0])):
            paths = {name: found[stem] for name, found in zip(tensors, folders, strict=True)}
            total += _pack_sample(cfg, writer, stem, paths, there)
    size = cfg.output.stat().st_size
    print(f"{len(folders[0])} samples, {total} points added, {size} bytes -> {cfg.output}")


def _tensors(cfg: PackConfig) -> Mapping[str, Tensor]:
    kinds = cfg.kind or [None] * len(cfg.codec)
    codecs = [load_codec(folder, device=cfg.device) for folder in cfg.codec]
    if cfg.quality is not None:
        codecs = [codec.at_quality(cfg.quality) for codec in codecs]
    tensors = [Tensor(codec, kind) for codec, kind in zip(codecs, kinds, strict=True)]
    names = cfg.name or [tensor.facts.kind for tensor in tensors]
    if len(set(names)) < len(names):
        raise UserError(f"name: expected different names, got {names}")
    return dict(zip(names, tensors, strict=True))


def _pack_sample(
    cfg: PackConfig,
    writer: StreamWriter,
    key: str,
    paths: Mapping[str, Path],
    there: dict[str, int],
) -> int:
    """Append what is missing of a sample -> the number of points added."""
    specs = {spec.name: spec for spec in writer.session.tensors}
    features = {name: read_feature(path) for name, path in paths.items()}
    counts = {}
    for name, x in features.items():
        counts[name] = specs[name].count(x)
        if counts[name] is None:
            raise UserError(f"{paths[name]}: {x.shape} is no feature of rows {specs[name].row}")
    if key not in there:
        writer.new_sample(key)
        done = dict.fromkeys(features, 0)
    elif there[key] == writer.sample:
        done = writer.rows  # the last sample of a killed run
    else:
        return 0
    added, step = 0, cfg.frame_rows or max(counts.values())
    for first in range(min(done.values()), max(counts.values()), step):
        rows: dict[str, np.ndarray] = {}
        for name, x in features.items():
            begin, end = max(first, done[name]), min(first + step, counts[name])
            if begin < end:
                rows[name] = specs[name].cut(x, begin, end)
        if rows:
            try:
                writer.append(rows)
            except UserError as error:
                raise type(error)(f"{', '.join(map(str, paths.values()))}: {error}") from error
            added += sum(points(x.shape) for x in rows.values())
    return added


def main(argv: Sequence[str] | None = None) -> None:
    keep_memory()
    with config.report_errors():
        pack(config.parse(PackConfig, argv, __doc__))


if __name__ == "__main__":
    main()
