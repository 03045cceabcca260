"""The codec API: what every codec does, and how one is loaded.

    from dtufc.codec import load_codec
    codec = load_codec(folder)       # a codec folder, or a shipped codec's name
    data = codec.encode(feature)     # (N, C, H, W) array -> bytes, the whole bitstream
    feature = codec.decode(data)     # bytes -> array of the same shape and dtype

    data = codec.encode(hidden, max_bytes=4096)                     # a torch tensor; a hard cap
    hidden = codec.decode(data, device="cuda", dtype=torch.bfloat16)
    streams = codec.warm_up().encode_many(batch)                    # (B, C, H, W) -> B bitstreams

Which codecs there are is in :mod:`dtufc.registry`.
"""

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from dtufc import files, rate
from dtufc.bitstream import (
    ID_BYTES,
    MAX_POINTS,
    Bitstream,
    BitstreamError,
    bare_rows,
    head,
    join,
    unpack,
    whole_rows,
)
from dtufc.errors import UserError
from dtufc.feature import FeatureError, FeatureFacts, check_feature, is_finite
from dtufc.overlap import check_coders, overlap
from dtufc.paths import CONFIG_JSON
from dtufc.registry import CodecEntry, find_codec
from dtufc.shipped import codec_folder, read_config
from dtufc.stamps import digest_file
from dtufc.tensors import Values, check_like, samples, stack, to_array, to_tensor
from dtufc.views import Shape

if TYPE_CHECKING:
    import torch

    from dtufc.streams import StreamEncoder

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
    """What every codec does. Instances are read-only and may be shared.

    A codec implements :meth:`encode_array` and :meth:`decode_array`, one array to one bitstream and
    back. Rate control, tensors and batches are made of these two here, the same for all codecs.
    """

    quality: float | None = None
    """Its rate on its own scale; ``None`` where it has one rate only."""

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

    @property
    def known(self) -> Sequence[FeatureFacts]:
        """The facts of the kinds of features that it knows; empty where a codec does not say."""
        return ()

    @abstractmethod
    def encode_array(self, feature: np.ndarray, kind: str | None = None) -> bytes:
        """(N, C, H, W) float16 or float32 -> the whole bitstream, at this codec's rate.

        Raises:
            FeatureError: not a sound feature, or of no kind that the codec knows.
        """

    @abstractmethod
    def decode_array(self, data: bytes, *, max_points: int = MAX_POINTS) -> np.ndarray:
        """The whole bitstream -> (N, C, H, W) in the source's dtype, an array that may be written to.

        Raises:
            BitstreamError: as :meth:`decode`.
        """

    # Frames of a stream, see dtufc/streams.

    def rows_id(self, kind: str) -> bytes:
        """SHA-256 of all that decodes a kind's rows: weights, tables and the kind's codebook (32 bytes).

        Raises:
            UserError: the codec does not know the kind.
        """
        if kind not in [facts.kind for facts in self.known]:
            raise UserError(
                f"this codec knows {[facts.kind for facts in self.known]}, not {kind!r}"
            )
        return self.id

    @property
    def continues(self) -> bool:
        """Whether rows take fewer bits where those before them are known, see :meth:`after`."""
        return False

    def after(self, row: np.ndarray | None) -> "Codec":
        """The codec of rows that follow one of an earlier frame; itself where rows do not depend on
        others.

        Args:
            row: (N, C, H, W), as it was decoded; None: there is none.
        """
        return self

    def encode_rows(self, rows: np.ndarray, kind: str | None = None) -> tuple[bytes, bytes]:
        """The rows of a frame -> its setting and its payload, without header and checksum.

        The setting is what seldom changes from frame to frame, 255 bytes at most; a stream repeats it
        only where it does. Here it is the fixed part of the bitstream's header, and the payload is its
        parts.

        Args:
            rows: (N, C, H, W), as :meth:`encode_array`.

        Raises:
            FeatureError: as :meth:`encode_array`.
        """
        return bare_rows(self.encode_array(rows, kind))

    def decode_rows(
        self, setting: bytes, payload: bytes, facts: FeatureFacts, shape: Shape
    ) -> np.ndarray:
        """The way back of :meth:`encode_rows`.

        Args:
            facts: of the kind.
            shape: (N, C, H, W) of the rows, which the frame announces; the receiver has bounded it.

        Returns:
            (N, C, H, W) in the facts' dtype, what :meth:`decode` gives for the bitstream of these rows.

        Raises:
            BitstreamError: setting and payload are not sound, or belong to another codec or mapping.
        """
        return self.decode_array(whole_rows(setting, payload, facts, shape))

    def stream(
        self, name: str = "rows", kind: str | None = None, **session: Any
    ) -> "StreamEncoder":
        """A session of one tensor that this codec codes; see :func:`dtufc.streams.open_session`."""
        from dtufc.streams import Tensor, open_session

        return open_session({name: Tensor(self, kind)}, **session)

    def encode(
        self,
        feature: Values,
        kind: str | None = None,
        *,
        max_bytes: int | None = None,
        target_bpfp: float | None = None,
        target_nmse: float | None = None,
    ) -> bytes:
        """A feature -> the whole bitstream.

        With a target, the quality is searched for, and every trial codes the feature: klt takes 11, int
        3. A codec with one rate is tried at that. Targets are about this feature alone;
        :func:`dtufc.rate.reach` finds one quality for many features pooled.

        Args:
            feature: (N, C, H, W) float16 or float32, array or tensor on any device; a bfloat16 tensor is
                coded as float32, exactly. Of tokens of one layer also (T, C) and (B, T, C), of maps also
                (C, H, W).
            kind: ``<model>_<task>``; needed only where the codec knows several kinds that
                this feature's shape and dtype fit.
            max_bytes: a hard cap; the best quality whose whole bitstream takes no more.
            target_bpfp: the best quality within so many bits per feature point, 8 * bytes / (N*C*H*W).
            target_nmse: the lowest quality whose mean squared error is at most this times the variance
                of the feature's values.

        Raises:
            FeatureError: not a sound feature, or of no kind that the codec knows.
            UserError: several targets, or one out of reach; the message says how near the codec comes.
        """
        x = self.as_feature(feature, kind)
        if max_bytes is target_bpfp is target_nmse is None:
            return self.encode_array(x, kind)
        target = rate.Target(max_bytes, target_bpfp, target_nmse)
        return rate.encode(self, x, kind, target).data

    def decode(
        self,
        data: bytes,
        *,
        max_points: int = MAX_POINTS,
        device: "str | torch.device | None" = None,
        dtype: "torch.dtype | None" = None,
    ) -> Values:
        """The whole bitstream -> (N, C, H, W), always four axes: an array in the source's dtype, or a
        tensor where a device or a dtype is named.

        Memory grows with what the payload can hold, not with what the header announces.

        Args:
            max_points: largest N*C*H*W that is accepted; 2^28 (1 GiB as float32) by default.
            device: torch device of the tensor; the CPU where only a dtype is given.
            dtype: torch dtype of the tensor, of 16 bits or more; the source's where only a device is
                given. What it cannot hold becomes its largest value, never infinity.

        Raises:
            BitstreamError: the bytes are not sound, or belong to another codec or mapping.
            UserError: no such device or dtype.
        """
        if device is None and dtype is None:
            return self.decode_array(data, max_points=max_points)
        check_like(device, dtype)
        return to_tensor(self.decode_array(data, max_points=max_points), device, dtype)

    def encode_many(
        self,
        features: Values | Iterable[Values],
        kind: str | None = None,
        *,
        max_bytes: int | None = None,
        target_bpfp: float | None = None,
        target_nmse: float | None = None,
        coders: int = 2,
    ) -> list[bytes]:
        """Many features -> a bitstream each, in order; the entropy coding of one overlaps the transform
        of the next.

        Args:
            features: any iterable of what :meth:`encode` takes, or a batch (B, C, H, W) or (B, T, C), of
                which each sample becomes a bitstream of its own.
            kind, max_bytes, target_bpfp, target_nmse: as of :meth:`encode`, of each feature for itself.
            coders: features coded at once; so many and one more are in memory.

        Raises:
            FeatureError, UserError: as :meth:`encode`; the message starts with the feature's number.
        """
        rate.Target(max_bytes, target_bpfp, target_nmse)

        def code(x: Values) -> bytes:
            return self.encode(
                x, kind, max_bytes=max_bytes, target_bpfp=target_bpfp, target_nmse=target_nmse
            )

        return _each("feature", samples(features), code, coders)

    def decode_many(
        self,
        streams: Iterable[bytes],
        *,
        max_points: int = MAX_POINTS,
        device: "str | torch.device | None" = None,
        dtype: "torch.dtype | None" = None,
        batch: bool = False,
        coders: int = 2,
    ) -> list[Values] | Values:
        """Many bitstreams -> a feature each, in order.

        Args:
            max_points, device, dtype: as of :meth:`decode`.
            batch: one array or tensor (B, C, H, W) in place of the list, where all are of one shape.
            coders: features decoded at once.

        Raises:
            BitstreamError, UserError: as :meth:`decode`; the message starts with the bitstream's number.
                Or the features make no batch.
        """

        def code(data: bytes) -> Values:
            return self.decode(data, max_points=max_points, device=device, dtype=dtype)

        decoded = _each("bitstream", streams, code, coders)
        return stack(decoded) if batch else decoded

    def warm_up(self) -> Self:
        """Code a made-up feature of every kind that it knows, as small as the kind allows, so that the
        first real one does not wait for kernels to be compiled, or loaded from the disk where an earlier
        process left them. Returns the codec itself."""
        for facts in self.known:
            self.decode(self.encode(np.zeros(facts.smallest, facts.dtype), facts.kind))
        return self

    def as_feature(self, x: Values, kind: str | None = None) -> np.ndarray:
        """An array or tensor -> the (N, C, H, W) array that :meth:`encode_array` is given.

        Fewer axes are taken where what the codec knows tells which ones are missing, see
        :meth:`dtufc.feature.FeatureFacts.four_axes`.

        Raises:
            FeatureError: neither array nor tensor, a batch of features, or axes that are not told.
        """
        x = to_array(x)
        if len(self.known) == 1 and x.ndim == 4 and self.known[0].four_axes(x.shape):
            return x
        asked = [facts for facts in self.known if kind in (None, facts.kind)]
        shapes = {shape for facts in asked if (shape := facts.four_axes(x.shape))}
        if len(shapes) == 1:
            return x.reshape(shapes.pop())
        if len(x.shape) > 2 and any(facts.four_axes((1, *x.shape[1:])) for facts in asked):
            raise FeatureError(
                f"feature: {x.shape} is a batch of {len(x)} features; encode_many codes each for itself"
            )
        if x.ndim != 4 and asked:
            takes = ", ".join(f"{facts.kind} {tuple(facts.shape)}" for facts in asked)
            raise FeatureError(f"feature: expected (N, C, H, W) of {takes}, got shape {x.shape}")
        return x


def _each(what: str, items: Iterable[Any], code: Any, coders: int) -> list[Any]:
    """``code`` of every item, some at once; errors name the item by its number."""
    check_coders(coders)

    def numbered(item: tuple[int, Any], _: Any) -> Any:
        try:
            return code(item[1])
        except UserError as error:
            raise type(error)(f"{what} {item[0]}: {error}") from error

    return [result for _, result in overlap(enumerate(items), lambda item: None, numbered, coders)]


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

    @property
    def known(self) -> Sequence[FeatureFacts]:
        return (self.facts,)

    def as_feature(self, x: Values, kind: str | None = None) -> np.ndarray:
        if isinstance(x, np.ndarray) and x.ndim == 4 and self.facts.fits(x.shape):
            return x
        return super().as_feature(x, kind)

    def check_kind(self, feature: np.ndarray, kind: str | None) -> None:
        """Refuse what is no feature of the codec's kind.

        Raises:
            FeatureError: it is none, or ``kind`` names another.
        """
        why = self.facts.mismatch(check_feature(feature))
        if kind is not None and kind != self.facts.kind:
            why = f"the codec knows {self.facts.kind}, not {kind}"
        if why:
            raise FeatureError(why)

    def encode_array(self, feature: np.ndarray, kind: str | None = None) -> bytes:
        self.check_kind(feature, kind)
        return join(self._head(feature.shape), self.encode_parts(feature))

    @cached_property
    def _head(self) -> Callable[[Shape], bytes]:
        """A bitstream up to its parts; those of shapes that came last are kept."""

        def made(shape: Shape) -> bytes:
            return head(
                Bitstream(
                    codec_id=self.id[:ID_BYTES],
                    mapping_id=bytes(ID_BYTES),
                    dtype=self.facts.dtype,
                    shape=shape,
                    grid=self.facts.views.grid(shape[1]),
                    parts=(),
                    mode=self.modes[-1],
                )
            )

        return lru_cache(maxsize=64)(made)

    def decode_array(self, data: bytes, *, max_points: int = MAX_POINTS) -> np.ndarray:
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
    if x.dtype == dtype and is_finite(x):
        return x
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
        published: code exactly as the published evaluation does (docs/reference/test-conditions.md).
        kinds: kinds of features beyond those that the folder knows.

    Raises:
        FileNotFoundError: no folder, or no ``config.json`` in it.
        UserError: the folder is damaged or names a codec that is not registered.
    """
    folder = codec_folder(folder)
    codec_class = _read_entry(folder).load_class()
    return codec_class.load(folder, device=device, published=published, kinds=kinds)
