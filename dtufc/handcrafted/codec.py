"""What a user would pick instead of a learned codec, behind the common API.

    int      each channel quantised evenly to 2 .. 8 bits between bounds found offline, then zstd
    cast     bfloat16, float16, or the values as they are, bytes of equal rank together, then zstd
    jpegxl   the plane as a 16-bit grey picture, lossy or lossless (JPEG XL)
    hevc     the plane as 12-bit grey pictures, each coded for itself (HEVC intra, x265)

Parts of the bitstream: the setting (1 byte: the quality) and the payload.
"""

import contextlib
import hashlib
import json
import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import zstandard
from safetensors import SafetensorError
from safetensors.numpy import load, save

from dtufc import extras, files
from dtufc.bitstream import BitstreamError
from dtufc.codec import CONFIG_JSON, ExtraKind, OneKindCodec, read_number, to_dtype
from dtufc.errors import UserError
from dtufc.feature import FeatureError, FeatureFacts
from dtufc.views import Shape

WEIGHTS = "model.safetensors"
FORMAT = 1
ZSTD_LEVEL = 19
BITS = range(2, 9)
"""Bit depths of ``int``."""
ZSTD_BLOCK, ZSTD_LEAST = 128 << 10, 4
"""Bytes that a block of a zstd frame holds at most, and takes at least (RFC 8878, 3.1.1.2)."""
JPEGXL_START = b"\xff\x0a"
JPEGXL_GROUP, JPEGXL_ENTRY_BITS = 256, 12
"""Side of the groups that a JPEG XL picture is coded in, and the least size of a group's entry in the
table of contents, bits."""
LARGEST_TILE = 4096
"""Side of a picture given to the HEVC encoder, at most."""


@contextlib.contextmanager
def payload() -> Iterator[None]:
    """Around calls of a payload's library alone: whatever it raises, the payload is not sound."""
    try:
        yield
    except Exception as error:
        raise BitstreamError(f"corrupted: {type(error).__name__}: {error}") from error


def check_bounds(codec: "HandcraftedCodec") -> None:
    """Refuse bounds of pictures that no fit gives.

    Raises:
        UserError: they are not finite, or not apart.
    """
    HandcraftedCodec.check_arrays(codec)
    low, high = (codec.arrays[name] for name in ("low", "high"))
    if low.shape != (1,) or high.shape != (1,) or not np.isfinite(float(high[0]) - float(low[0])):
        raise UserError(f"low, high: expected one number each, got {low.shape}, {high.shape}")
    if not low[0] < high[0]:
        raise UserError(f"low, high: expected {low[0]} below {high[0]}")


class HandcraftedCodec(OneKindCodec):
    """Facts, arrays found offline, and a setting between two limits.

    Args:
        arrays: what the fit found.
        quality: one of the settings.

    Raises:
        UserError: it is none, the arrays are not sound, or the library is not installed.
    """

    name: ClassVar[str]
    settings: ClassVar[Sequence[int]]
    """What ``quality`` may be."""
    arrays_of: ClassVar[dict[str, int]] = {}
    """Names of the arrays, and how many rows each has."""
    library: ClassVar[str | None] = None
    """Module of the extra ``handcrafted`` that codes the pictures."""

    def __init__(self, facts: FeatureFacts, arrays: dict[str, np.ndarray], quality: float):
        if quality not in self.settings:
            raise UserError(f"quality: {self.name} takes one of {[*self.settings]}, got {quality}")
        if self.library is not None:
            extras.load(self.library)  # rather missed here than at the first feature
        self.facts, self.arrays, self.setting = facts, arrays, int(quality)
        self.check_arrays()

    def check_arrays(self) -> None:
        """Refuse arrays that no fit gives.

        Raises:
            UserError: the message names the array.
        """
        if self.arrays.keys() != self.arrays_of.keys():
            raise UserError(f"arrays {sorted(self.arrays)}, expected {sorted(self.arrays_of)}")
        for name, rows in self.arrays_of.items():
            array = self.arrays[name]
            if array.dtype != np.float32 or array.shape[:1] != (rows,) or not array.size:
                raise UserError(
                    f"{name}: expected {rows} float32 rows, got {array.dtype} {array.shape}"
                )
            if not np.isfinite(array).all():
                raise UserError(f"{name}: holds values that are not finite")

    @classmethod
    def load(
        cls, folder: Path, *, device: str, published: bool, kinds: Sequence[ExtraKind]
    ) -> Self:
        if published or kinds:
            raise UserError(f"{folder}: a {cls.name} codec has no published mode and no mappings")
        values = files.read_json(folder / CONFIG_JSON)
        try:
            if values["format"] != FORMAT:
                raise UserError(f"format {values['format']}, not {FORMAT}")
            facts = FeatureFacts.of_record(values["facts"], "facts")
            arrays = load((folder / WEIGHTS).read_bytes()) if cls.arrays_of else {}
            # earlier versions rounded a quality when they used it
            asked = read_number(values, "quality")
            return cls(facts, arrays, min(cls.settings, key=lambda setting: abs(setting - asked)))
        except FileNotFoundError as error:
            raise UserError(f"{folder / WEIGHTS}: missing from the codec folder") from error
        except (KeyError, TypeError, ValueError, SafetensorError) as error:
            raise UserError(f"{folder}: not a sound {cls.name} codec ({error})") from error

    def save(self, folder: Path, quality: float, made_by: dict[str, Any]) -> None:
        """Write the codec folder, ``config.json`` last."""
        if self.arrays:
            files.write_bytes(folder / WEIGHTS, save(self.arrays))
        values = {"format": FORMAT, "codec": self.name, "quality": quality}
        values |= {"facts": self.facts.record(), "made_by": made_by}
        files.write_json(folder / CONFIG_JSON, values)

    @cached_property
    def id(self) -> bytes:
        facts = json.dumps(self.facts.identity(), sort_keys=True)
        hasher = hashlib.sha256(f"{self.name} {FORMAT} {facts}".encode())
        for name, array in sorted(self.arrays.items()):
            hasher.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
        return hasher.digest()

    @property
    def identity(self) -> str:
        return files.digest(self.id, bytes([self.setting]))

    @property
    def quality(self) -> float:
        """The setting."""
        return self.setting

    @property
    def qualities(self) -> Sequence[float]:
        return self.settings

    def at_quality(self, quality: float) -> Self:
        return type(self)(self.facts, self.arrays, quality)

    def encode_parts(self, feature: np.ndarray) -> tuple[bytes, ...]:
        return bytes([self.setting]), self.compress(feature)

    def decode_parts(self, parts: tuple[bytes, ...], shape: Shape, mode: int) -> np.ndarray:
        if len(parts) != 2 or len(parts[0]) != 1:
            raise BitstreamError(f"inconsistent: not the parts of a bitstream of {self.name}")
        setting = parts[0][0]
        if setting not in self.settings:
            raise BitstreamError(f"inconsistent: setting {setting} of {self.name}")
        return self.at_quality(setting).expand(parts[1], shape)

    def encode_rows(self, rows: np.ndarray, kind: str | None = None) -> tuple[bytes, bytes]:
        self.check_kind(rows, kind)
        return self.encode_parts(rows)

    def decode_rows(
        self, setting: bytes, payload: bytes, facts: FeatureFacts, shape: Shape
    ) -> np.ndarray:
        return to_dtype(self.decode_parts((setting, payload), shape, self.modes[-1]), facts.dtype)

    @abstractmethod
    def compress(self, x: np.ndarray) -> bytes:
        """(N, C, H, W) -> the payload."""

    @abstractmethod
    def expand(self, data: bytes, shape: Shape) -> np.ndarray:
        """The payload -> (N, C, H, W) = ``shape``.

        Raises:
            BitstreamError: it holds something else.
        """


class IntegerCodec(HandcraftedCodec):
    """Even steps between two bounds per channel; quality is the bit depth, 2 .. 8.

    Values beyond the bounds are clamped. One byte a symbol, as they come: zstd's Huffman codes then see
    symbols. On hidden states packed bits came out 7% larger at 3 and 6 bits and within 1% at 4 and 8,
    channel after channel within 1%.
    """

    name = "int"
    settings = BITS
    arrays_of: ClassVar = {
        "low": len(BITS),
        "step": len(BITS),
    }  # (7, channels), a row per bit depth

    def check_arrays(self) -> None:
        super().check_arrays()
        low, step = self.arrays["low"], self.arrays["step"]
        channels = self.facts.views.channels(self.facts.shape)
        if low.ndim != 2 or low.shape != step.shape or channels not in (None, low.shape[1]):
            raise UserError(f"low, step: {low.shape}, {step.shape} for {channels} channels")
        with np.errstate(over="ignore"):
            if (step <= 0).any() or not np.isfinite(low + step * np.float32(255)).all():
                raise UserError("step: expected steps above 0 that reach finite values")

    def _bounds(self) -> tuple[np.ndarray, np.ndarray]:
        row = BITS.index(self.setting)
        return self.arrays["low"][row], self.arrays["step"][row]

    def compress(self, x: np.ndarray) -> bytes:
        low, step = self._bounds()
        matrix = self.facts.views.to_matrix(x)
        if matrix.shape[1] != len(low):
            raise FeatureError(f"{matrix.shape[1]} channels, the codec was fitted to {len(low)}")
        symbols = np.rint((matrix.astype(np.float64) - low) / step)
        symbols = np.clip(symbols, 0, (1 << self.setting) - 1).astype(np.uint8)
        return squeeze(symbols.tobytes())

    def expand(self, data: bytes, shape: Shape) -> np.ndarray:
        low, step = self._bounds()
        symbols = np.frombuffer(unsqueeze(data, int(np.prod(shape))), np.uint8)
        if symbols.max(initial=0) >= 1 << self.setting:
            raise BitstreamError(f"corrupted: symbols beyond {self.setting} bits")
        matrix = symbols.reshape(-1, len(low)).astype(np.float32) * step + low
        return self.facts.views.from_matrix(matrix, shape)


class CastCodec(HandcraftedCodec):
    """Fewer or all bits of each value; quality is the number of significant bits.

    8 is bfloat16, 11 is float16, 24 the values as they are (lossless). float16 features are lossless
    from 11. Rounding is to nearest, ties to even; what float16 cannot hold becomes its largest.
    """

    name = "cast"
    settings = (8, 11, 24)

    def _stored(self) -> str:
        """dtype of the stored values."""
        return (
            "uint16" if self.setting == 8 else "float16" if self.setting == 11 else self.facts.dtype
        )

    def compress(self, x: np.ndarray) -> bytes:
        if self.setting == 8:
            values = to_bfloat16(x.astype(np.float32))
        else:
            largest = np.finfo(self._stored()).max
            values = np.clip(x, -largest, largest).astype(self._stored())
        rank = values.dtype.newbyteorder("<")
        ranks = values.astype(rank).reshape(-1, 1).view(np.uint8)  # (points, bytes of a value)
        return squeeze(ranks.T.tobytes())

    def expand(self, data: bytes, shape: Shape) -> np.ndarray:
        dtype = np.dtype(self._stored()).newbyteorder("<")
        size = int(np.prod(shape)) * dtype.itemsize
        ranks = np.frombuffer(unsqueeze(data, size), np.uint8).reshape(dtype.itemsize, -1)
        values = np.ascontiguousarray(ranks.T).view(dtype).reshape(shape)
        if self.setting == 8:
            values = (values.astype(np.uint32) << 16).view(np.float32)
        if not np.isfinite(values).all():
            raise BitstreamError("corrupted: values that are not finite")
        return values


class JpegXlCodec(HandcraftedCodec):
    """The plane between two bounds as a 16-bit grey picture.

    Each step of quality halves JPEG XL's distance: 0 is 25, its largest; 11 is 0.012; 12 is lossless
    after rounding to 16 bits.
    """

    name = "jpegxl"
    library = "imagecodecs"
    settings = range(13)
    arrays_of: ClassVar = {"low": 1, "high": 1}
    check_arrays = check_bounds

    def compress(self, x: np.ndarray) -> bytes:
        import imagecodecs

        plane = to_picture(self.facts.views.pack(x), self.arrays, 16)
        if self.setting == max(self.settings):
            return imagecodecs.jpegxl_encode(plane, lossless=True, numthreads=1)
        return imagecodecs.jpegxl_encode(plane, distance=25 / 2**self.setting, numthreads=1)

    def expand(self, data: bytes, shape: Shape) -> np.ndarray:
        import imagecodecs

        size = self.facts.views.plane(shape)
        if jpegxl_size(data) != size:
            raise BitstreamError(f"corrupted: a picture of another size than {size}")
        groups = math.prod(-(-side // JPEGXL_GROUP) for side in size)
        if groups > 1 and JPEGXL_ENTRY_BITS * groups > 8 * len(data):
            raise BitstreamError("corrupted: fewer bytes than so many groups of pixels take")
        plane = np.empty(size, np.uint16)
        with payload():
            imagecodecs.jpegxl_decode(data, out=plane, numthreads=1)
        return self.facts.views.unpack(from_picture(plane, self.arrays, 16), shape)


class HevcCodec(HandcraftedCodec):
    """The plane between two bounds as 12-bit grey pictures of at most 4096 x 4096, intra only.

    Each step of quality halves the quantiser's step: QP is 51 - 6 * quality, 0 .. 8.
    """

    name = "hevc"
    library = "av"
    settings = range(9)
    arrays_of: ClassVar = {"low": 1, "high": 1}
    check_arrays = check_bounds

    def compress(self, x: np.ndarray) -> bytes:
        import av

        picture = to_picture(self.facts.views.pack(x), self.arrays, 12)
        tiles = cut(picture)
        encoder = av.CodecContext.create("libx265", "w")
        encoder.height, encoder.width = tiles.shape[1:]
        encoder.pix_fmt, encoder.framerate = "gray12le", 1
        qp = 51 - 6 * self.setting
        encoder.options = {
            "x265-params": f"qp={qp}:keyint=1:info=0:log-level=none:pools=none:frame-threads=1"
        }
        packets = []
        for number, tile in enumerate(tiles):
            frame = av.VideoFrame.from_ndarray(tile, format="gray12le")
            frame.pts = number
            packets += encoder.encode(frame)
        return b"".join(bytes(packet) for packet in [*packets, *encoder.encode(None)])

    def expand(self, data: bytes, shape: Shape) -> np.ndarray:
        import av

        size = self.facts.views.plane(shape)
        count, height, width = tiles_of(size)
        tiles = []
        with payload():
            decoder = av.CodecContext.create("hevc", "r")
            decoder.thread_count = 1
            decoder.options = {"max_pixels": str(4 * max(height * width, 1 << 12))}
            packets = [*decoder.parse(data), *decoder.parse(b"")]
        if len(packets) != count:  # one each
            raise BitstreamError(f"corrupted: {len(packets)} pictures, expected {count}")
        for packet in [*packets, None]:
            with payload():
                frames = decoder.decode(packet)
            for frame in frames:
                if (frame.height, frame.width, frame.format.name) != (height, width, "gray12le"):
                    raise BitstreamError("corrupted: a picture of another size")
                tiles.append(frame.to_ndarray())
        if len(tiles) != count:
            raise BitstreamError(f"corrupted: {len(tiles)} pictures, expected {count}")
        picture = join(np.stack(tiles), size)
        return self.facts.views.unpack(from_picture(picture, self.arrays, 12), shape)


def squeeze(data: bytes) -> bytes:
    """zstd."""
    return zstandard.ZstdCompressor(level=ZSTD_LEVEL, write_content_size=True).compress(data)


def unsqueeze(data: bytes, size: int) -> bytes:
    """The ``size`` bytes of a zstd frame, which fills ``data``.

    Raises:
        BitstreamError: it holds more or less. Memory is taken only for what so many bytes can hold.
    """
    with payload():
        announced = zstandard.frame_content_size(data)
    if announced != size or size > ZSTD_BLOCK * (len(data) // ZSTD_LEAST + 1):
        raise BitstreamError(f"corrupted: a zstd frame of another size than {size} bytes")
    with payload():
        return zstandard.ZstdDecompressor().decompress(data, allow_extra_data=False)


def jpegxl_size(data: bytes) -> tuple[int, int]:
    """Height and width that a JPEG XL codestream announces (ISO/IEC 18181-1, SizeHeader), as it is or in
    a container (18181-2, which lossless pictures of 16 bits have).

    Raises:
        BitstreamError: there is no codestream.
    """
    at = 0
    while data[4:8] == b"JXL " and at + 16 <= len(data):
        size, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        if kind in (b"jxlc", b"jxlp"):  # a codestream, or a part of one behind its number
            at += 8 if kind == b"jxlc" else 12
            break
        at += max(size, 8)
    if data[at : at + 2] != JPEGXL_START:
        raise BitstreamError("corrupted: no JPEG XL codestream")
    bits, at = int.from_bytes(data[at + 2 : at + 12], "little"), 0

    def take(count: int) -> int:
        nonlocal at
        at += count
        return bits >> (at - count) & ((1 << count) - 1)

    small = take(1)

    def side() -> int:
        return 8 * (take(5) + 1) if small else take((9, 13, 18, 30)[take(2)]) + 1

    height = side()
    ratio = take(3)
    if not ratio:
        return height, side()
    times, over = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))[ratio - 1]
    return height, height * times // over


def to_bfloat16(x: np.ndarray) -> np.ndarray:
    """float32 -> the upper halves of the nearest bfloat16, ties to even, uint16; finite stays so."""
    bits = x.view(np.uint32).astype(np.uint64)
    upper = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    infinite = (upper & 0x7FFF) >= 0x7F80
    return np.where(infinite, (upper & 0x8000) | 0x7F7F, upper).astype(np.uint16)


def to_picture(plane: np.ndarray, arrays: dict[str, np.ndarray], bits: int) -> np.ndarray:
    """(P, Q) between low and high -> uint16 of 0 .. 2^bits - 1; values beyond are clamped."""
    low, high = float(arrays["low"][0]), float(arrays["high"][0])
    scaled = (plane.astype(np.float64) - low) * (((1 << bits) - 1) / (high - low))
    return np.clip(np.rint(scaled), 0, (1 << bits) - 1).astype(np.uint16)


def from_picture(picture: np.ndarray, arrays: dict[str, np.ndarray], bits: int) -> np.ndarray:
    """The way back of :func:`to_picture`, float32."""
    low, high = float(arrays["low"][0]), float(arrays["high"][0])
    return (picture * ((high - low) / ((1 << bits) - 1)) + low).astype(np.float32)


def tiles_of(size: tuple[int, int]) -> tuple[int, int, int]:
    """Number, height and width of the equal tiles that a plane is cut into; sides are multiples of
    16 and at least 64, which the encoder wants."""
    rows, cols = (-(-side // LARGEST_TILE) for side in size)
    height, width = (
        max(64, -(-side // (16 * parts)) * 16)
        for side, parts in zip(size, (rows, cols), strict=True)
    )
    return rows * cols, height, width


def cut(picture: np.ndarray) -> np.ndarray:
    """(P, Q) -> (tiles, height, width); the last row and column are repeated to fill them."""
    _, height, width = tiles_of(picture.shape)
    rows, cols = (-(-side // LARGEST_TILE) for side in picture.shape)
    missing = [(0, rows * height - picture.shape[0]), (0, cols * width - picture.shape[1])]
    grid = np.pad(picture, missing, "edge").reshape(rows, height, cols, width)
    return np.ascontiguousarray(grid.transpose(0, 2, 1, 3).reshape(-1, height, width))


def join(tiles: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The way back of :func:`cut`: (P, Q) = ``size``."""
    rows, cols = (-(-side // LARGEST_TILE) for side in size)
    height, width = tiles.shape[1:]
    grid = tiles.reshape(rows, cols, height, width).transpose(0, 2, 1, 3)
    return grid.reshape(rows * height, cols * width)[: size[0], : size[1]]
