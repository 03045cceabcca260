"""What the commands that fill stream files share: their options, and a sample's missing rows."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dtufc.codec import load_codec
from dtufc.errors import UserError
from dtufc.feature import points
from dtufc.streams.encoder import Tensor
from dtufc.streams.writer import StreamWriter


@dataclass(frozen=True, kw_only=True)
class FillOptions:
    """Which codecs, at which rate, and what the file says of itself."""

    codec: list[Path]
    """Codec folder, or the name of a shipped codec; one per tensor."""
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
        if not self.codec:
            raise UserError("codec: expected one per tensor, got none")
        self.check_count("name", self.name)
        self.check_count("kind", self.kind)
        if self.frame_rows is not None and self.frame_rows < 1:
            raise UserError(f"frame_rows: expected at least 1, got {self.frame_rows}")

    def check_count(self, key: str, given: list | None) -> None:
        """Refuse a list that does not have one entry per codec."""
        if given is not None and len(given) != len(self.codec):
            raise UserError(f"{key}: expected one per codec, {len(self.codec)}, got {len(given)}")

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by their names, codecs loaded.

        Raises:
            FileNotFoundError, UserError: no such codec, or two tensors of one name.
        """
        kinds = self.kind or [None] * len(self.codec)
        codecs = [load_codec(folder, device=self.device) for folder in self.codec]
        if self.quality is not None:
            codecs = [codec.at_quality(self.quality) for codec in codecs]
        tensors = [Tensor(codec, kind) for codec, kind in zip(codecs, kinds, strict=True)]
        names = self.name or [tensor.facts.kind for tensor in tensors]
        if len(set(names)) < len(names):
            raise UserError(f"name: expected different names, got {names}")
        return dict(zip(names, tensors, strict=True))

    @property
    def identities(self) -> dict[str, str]:
        """What a session says of the model."""
        return {"model": self.model, "tokenizer": self.tokenizer, "split": self.split}


def append_sample(
    writer: StreamWriter,
    key: str,
    features: Mapping[str, np.ndarray],
    frame_rows: int | None,
    there: Mapping[str, int],
    where: str,
) -> int:
    """Append what is missing of a sample -> the number of points added.

    Args:
        features: its tensors (N, C, H, W) by name.
        frame_rows: rows per frame; ``None``: all.
        there: numbers of the samples that the file held when it was opened, by key.
        where: names the sample in messages.

    Raises:
        UserError: a tensor is none of the session's; the message begins with ``where``.
    """
    specs = {spec.name: spec for spec in writer.session.tensors}
    counts = {}
    for name, x in features.items():
        counts[name] = specs[name].count(x)
        if counts[name] is None:
            raise UserError(f"{where}: {x.shape} is no feature of rows {specs[name].row}")
    if key not in there:
        writer.new_sample(key)
        done = dict.fromkeys(features, 0)
    elif there[key] == writer.sample:
        done = writer.rows  # the last sample of a killed run
    else:
        return 0
    added, step = 0, frame_rows or max(counts.values())
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
                raise type(error)(f"{where}: {error}") from error
            added += sum(points(x.shape) for x in rows.values())
    return added
