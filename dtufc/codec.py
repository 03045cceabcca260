"""The codec API: what every codec does, and how one is loaded.

    from dtufc.codec import load_codec
    codec = load_codec(folder)       # a codec folder, or a shipped codec's name
    data = codec.encode(feature)     # (N, C, H, W) array -> bytes, the whole bitstream
    feature = codec.decode(data)     # bytes -> array of the same shape and dtype

Which codecs there are is in :mod:`dtufc.registry`.
"""

import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from dtufc import files
from dtufc.bitstream import ID_BYTES, MAX_POINTS, Bitstream, BitstreamError, pack, unpack
from dtufc.errors import UserError
from dtufc.feature import FeatureError, FeatureFacts, check_feature
from dtufc.paths import CONFIG_JSON
from dtufc.registry import CodecEntry, find_codec
from dtufc.shipped import codec_folder, read_config
from dtufc.stamps import digest_file
from dtufc.views import Shape

__all__ = [
    "CONFIG_JSON", "BitstreamError", "Codec", "ExtraKind", "OneKindCodec", "codec_digest", "load_codec",
]  # fmt: skip


@dataclass(frozen=True)
class ExtraKind:
    """A kind of feature that a codec was not trained on: its facts and its mapping."""

    machine: str
    """Preset name or YAML file with the facts."""
    mapping: Path
    """Mapping file."""
    assignment: str = "nearest"
    """How values become levels: nearest, left or continuous."""


class Codec(ABC):
    """What every codec does. Instances are read-only and may be shared."""

    @classmethod
    @abstractmethod
    def load(
        cls, folder: Path, *, device: str, published: bool, kinds: Sequence[ExtraKind]
    ) -> Self:
        """Read a checkpoint folder; see :func:`load_codec`."""

    @property
    @abstractmethod
    def id(self) -> bytes:
        """SHA-256 that names the codec in bitstreams: weights and tables, not mappings (32 bytes)."""

    @property
    @abstractmethod
    def identity(self) -> str:
        """Hex SHA-256 of all that decides bytes and decoded values: the id and the mappings."""

    @property
    def qualities(self) -> Sequence[float]:
        """What :meth:`at_quality` takes, ascending; empty where the codec has one rate only."""
        return ()

    def at_quality(self, quality: float) -> Self:
        """The same codec at another rate, the higher the more bits; its own scale.

        Raises:
            UserError: the codec has one rate only, or none such.
        """
        raise UserError(
            "quality: a learned codec has one rate; train one with another lambda_value"
        )

    def at_tile(self, tile: int) -> Self:
        """The same codec; planes longer or wider than ``tile`` are coded in tiles up to that; 0: never.

        Raises:
            UserError: the codec has no tiles, or none such.
        """
        raise UserError("tile: only learned codecs code in tiles")

    @abstractmethod
    def encode(self, feature: np.ndarray, kind: str | None = None) -> bytes:
        """(N, C, H, W) float16 or float32 -> the whole bitstream.

        Args:
            kind: ``<model>_<task>``; needed only where the codec knows several kinds that
                this feature's shape and dtype fit.

        Raises:
            FeatureError: not a sound feature, or of no kind that the codec knows.
        """

    @abstractmethod
    def decode(self, data: bytes, *, max_points: int = MAX_POINTS) -> np.ndarray:
        """The whole bitstream -> (N, C, H, W) in the source's dtype.

        Memory grows with what the payload can hold, not with what the header announces.

        Args:
            max_points: largest N*C*H*W that is accepted; 2^28 (1 GiB as float32) by default.

        Raises:
            BitstreamError: the bytes are not sound, or belong to another codec or mapping.
        """


class OneKindCodec(Codec):
    """A codec that is fitted to one kind of feature and has any rate; it knows no mapping.

    Whoever derives from it codes the values; what is asked and what the bytes announce is checked here.
    """

    facts: FeatureFacts
    modes: ClassVar[tuple[int, ...]] = (0,)
    """Payload modes that it reads; it writes the last one."""

    @abstractmethod
    def encode_parts(self, feature: np.ndarray) -> tuple[bytes, ...]:
        """(N, C, H, W) of the kind -> the parts of the bitstream."""

    @abstractmethod
    def decode_parts(self, parts: tuple[bytes, ...], shape: Shape, mode: int) -> np.ndarray:
        """The parts, written in a payload mode -> (N, C, H, W) = ``shape``, any float dtype.

        Raises:
            BitstreamError: they are not sound.
        """

    def encode(self, feature: np.ndarray, kind: str | None = None) -> bytes:
        why = self.facts.mismatch(check_feature(feature))
        if kind not in (None, self.facts.kind):
            why = f"the codec knows {self.facts.kind}, not {kind}"
        if why:
            raise FeatureError(why)
        return pack(
            Bitstream(
                codec_id=self.id[:ID_BYTES],
                mapping_id=bytes(ID_BYTES),
                dtype=feature.dtype.name,
                shape=feature.shape,
                grid=self.facts.views.grid(feature.shape[1]),
                parts=self.encode_parts(feature),
                mode=self.modes[-1],
            )
        )

    def decode(self, data: bytes, *, max_points: int = MAX_POINTS) -> np.ndarray:
        stream = unpack(data, max_points)
        stream.check_codec(self.id)
        stream.check_facts(self.facts)
        if stream.mode not in self.modes:
            raise BitstreamError(f"inconsistent: payload mode {stream.mode} is not known")
        return to_dtype(self.decode_parts(stream.parts, stream.shape, stream.mode), stream.dtype)


def codec_digest(folder: Path) -> str:
    """Hex SHA-256 over the content of a codec folder: what its codec reads, not the records beside it.

    Raises:
        FileNotFoundError, UserError: as :func:`load_codec`.
    """
    folder = codec_folder(folder)
    entry = _read_entry(folder)
    found = sorted({path for pattern in entry.files for path in folder.glob(pattern)})
    parts = [f"{path.relative_to(folder)} {digest_file(path)}" for path in found]
    return files.digest(*parts)


def _read_entry(folder: Path) -> CodecEntry:
    """The registry's entry of the codec in a folder."""
    values = read_config(folder)
    name = values.get("codec") if isinstance(values, dict) else None
    return find_codec(name, f"{folder / CONFIG_JSON}: key 'codec'")


def read_number(values: dict[str, Any], key: str) -> float:
    """A finite number of a codec folder's ``config.json``.

    Raises:
        KeyError: it is missing.
        UserError: it is none; the message names the key.
    """
    value = values[key]
    if type(value) not in (int, float) or not abs(value) <= sys.float_info.max:
        raise UserError(f"{key}: expected a finite number, got {value!r}")
    return float(value)


def to_dtype(x: np.ndarray, dtype: str) -> np.ndarray:
    """Decoded values in the source's dtype; what it cannot hold becomes its largest, never infinity.

    Raises:
        BitstreamError: they hold NaN, which nothing that a codec wrote decodes to.
    """
    if np.isnan(x).any():
        raise BitstreamError("corrupted: values that are no numbers")
    largest = np.finfo(dtype).max
    return np.clip(x, -largest, largest).astype(dtype, copy=False)


def load_codec(
    folder: str | Path,
    *,
    device: str = "cpu",
    published: bool = False,
    kinds: Sequence[ExtraKind] = (),
) -> Codec:
    """Read the codec that a checkpoint folder holds.

    Args:
        folder: a codec folder, or the name of a shipped codec (:func:`dtufc.shipped.pretrained`).
        device: torch device of the networks; codecs without networks ignore it.
        published: code exactly as the published evaluation does (see README, "Like for like").
        kinds: kinds of features beyond those that the folder knows.

    Raises:
        FileNotFoundError: no folder, or no ``config.json`` in it.
        UserError: the folder is damaged or names a codec that is not registered.
    """
    folder = codec_folder(folder)
    codec_class = _read_entry(folder).load_class()
    return codec_class.load(folder, device=device, published=published, kinds=kinds)
