"""The bitstream: one self-describing file per feature.

Layout, all integers little-endian, ``v`` a base-128 variable-length integer (7 bits a byte, low
first, high bit set on all but the last)::

    magic          3 bytes  "UFC"
    version        1 byte   1
    codec id       4 bytes  first bytes of the SHA-256 that names the codec (its weights and tables)
    mapping id     4 bytes  first bytes of the SHA-256 that names the transform mapping; 0 without one
    format         1 byte   low 4 bits: dtype (0 float16, 1 float32); high 4 bits: payload mode
    shape          4 v      N, C, H, W
    layout         v ...    0: tokens; 1: maps, followed by v rows, v cols of their tiles
    parts          v, v ... number of parts, then the length of each in bytes
    payload                 the parts, one after the other
    checksum       4 bytes  CRC-32 of all bytes before it

About 30 bytes beside the payload. What the modes mean is the codec's business.

Guarantees: :func:`unpack` returns exactly what :func:`pack` was given, or raises
:class:`BitstreamError` saying what is wrong; it never allocates more than the file's own size.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from dtufc.crc import crc32, crc32_of
from dtufc.errors import UserError
from dtufc.feature import DTYPES, FeatureFacts, points
from dtufc.views import Grid, Shape

MAGIC = b"UFC"
SUFFIX = ".ufc"
"""Ending of bitstream files."""
VERSION = 1
STREAM_VERSION = 2
"""Of streams, see :mod:`dtufc.streams`."""
ID_BYTES = 4
MAX_POINTS = 1 << 28
"""Largest feature that a bitstream may hold: 1 GiB as float32. Receivers may set a lower limit."""
_MAX_PARTS = 1 << 16


class BitstreamError(UserError):
    """The bytes are not a sound bitstream, or not one of this codec and mapping."""


@dataclass(frozen=True)
class Bitstream:
    """A bitstream taken apart. ``codec_id`` and ``mapping_id`` are 4 bytes each."""

    codec_id: bytes
    mapping_id: bytes
    dtype: str
    shape: Shape
    grid: Grid | None
    """Rows and columns of the tiles of maps; ``None`` for tokens."""
    parts: tuple[bytes, ...]
    mode: int = 0

    @property
    def payload_size(self) -> int:
        """Bytes of the parts alone, without header and checksum."""
        return sum(len(part) for part in self.parts)

    def check_codec(self, codec_id: bytes) -> None:
        """Refuse what another codec wrote."""
        if self.codec_id != codec_id[:ID_BYTES]:
            raise BitstreamError(
                f"written by codec {self.codec_id.hex()}, this is {codec_id[:ID_BYTES].hex()}"
            )

    def check_facts(self, facts: FeatureFacts) -> None:
        """Refuse what announces to be what this kind of feature cannot be."""
        fits = self.dtype == facts.dtype and facts.fits(self.shape)
        if not fits or self.grid != _grid(facts, self.shape):
            raise BitstreamError(
                f"inconsistent: {self.dtype} {self.shape}, tiles {self.grid}, is no {facts.kind}"
            )


def pack(stream: Bitstream) -> bytes:
    """The bytes of a bitstream.

    Raises:
        UserError: the feature is too large.
        ValueError: a field has no place in the format.
    """
    return join(head(stream), stream.parts)


def join(head: bytes, parts: Sequence[bytes]) -> bytes:
    """The bytes of a bitstream, from what :func:`head` gave and its parts."""
    out = bytearray(head)
    out += write_varint(len(parts))
    for part in parts:
        out += write_varint(len(part))
    pieces = out, *parts
    return b"".join((*pieces, crc32_of(pieces).to_bytes(4, "little")))


def head(stream: Bitstream) -> bytes:
    """A bitstream up to its parts.

    Raises:
        UserError, ValueError: as :func:`pack`.
    """
    if len(stream.codec_id) != ID_BYTES or len(stream.mapping_id) != ID_BYTES:
        raise ValueError("bitstream: ids are 4 bytes")
    if not 0 <= stream.mode < 16:
        raise ValueError("bitstream: the mode is 0 .. 15")
    if points(stream.shape) > MAX_POINTS:
        raise UserError(f"bitstream: more than {MAX_POINTS} points, split the feature")
    if min(stream.shape) < 1 or not _fills(stream.grid, stream.shape):
        raise ValueError(f"bitstream: {stream.shape} does not fill the tiles {stream.grid}")
    out = bytearray(MAGIC)
    out.append(VERSION)
    out += stream.codec_id + stream.mapping_id
    out.append(DTYPES.index(stream.dtype) | stream.mode << 4)
    for size in stream.shape:
        out += write_varint(size)
    layout = (0,) if stream.grid is None else (1, *stream.grid)
    out += b"".join(map(write_varint, layout))
    return bytes(out)


def unpack(data: bytes, max_points: int = MAX_POINTS) -> Bitstream:
    """Take a bitstream apart and check it.

    Args:
        max_points: largest N*C*H*W that is accepted.

    Raises:
        BitstreamError: foreign, of an unknown version, truncated, corrupted or inconsistent.
    """
    if data[: len(MAGIC)] != MAGIC[: len(data)] or not data:
        raise BitstreamError("foreign: the file does not start as a bitstream of this project")
    if len(data) < len(MAGIC) + 2 + 2 * ID_BYTES + 4:
        raise BitstreamError("truncated: the file ends inside the header")
    if data[3] == STREAM_VERSION:
        raise BitstreamError("version 2: a stream of rows; dtufc.open_stream reads it")
    if data[3] != VERSION:
        raise BitstreamError(f"version {data[3]}: this code reads version {VERSION}")
    if crc32(memoryview(data)[:-4]) != int.from_bytes(data[-4:], "little"):
        raise BitstreamError("corrupted or truncated: the checksum does not match")
    at = 4
    codec_id, mapping_id = data[at : at + ID_BYTES], data[at + ID_BYTES : at + 2 * ID_BYTES]
    at += 2 * ID_BYTES
    dtype, mode = data[at] & 15, data[at] >> 4
    reader = Reader(data[:-4], at + 1)
    *shape, layout = reader.varints(5)
    shape = tuple(shape)
    if dtype >= len(DTYPES) or layout > 1:
        raise BitstreamError(f"inconsistent: unknown dtype {dtype} or layout {layout}")
    size = points(shape)
    if min(shape) < 1 or size > MAX_POINTS:
        raise BitstreamError(f"inconsistent: impossible shape {shape}")
    if size > max_points:
        raise BitstreamError(f"too large: {size} points, the limit is {max_points}")
    grid = tuple(reader.varints(2)) if layout else None
    if not _fills(grid, shape):
        raise BitstreamError(f"inconsistent: {shape} does not fill tiles of {grid}")
    count = reader.varint()
    if count > _MAX_PARTS:
        raise BitstreamError(f"inconsistent: {count} parts")
    parts = tuple(map(reader.take, reader.varints(count)))
    reader.finish()
    return Bitstream(codec_id, mapping_id, DTYPES[dtype], shape, grid, parts, mode)


_SETTING = slice(len(MAGIC) + 1, len(MAGIC) + 2 + 2 * ID_BYTES)
"""Codec id, mapping id and format in a bitstream's header."""


def bare_rows(data: bytes) -> tuple[bytes, bytes]:
    """A bitstream -> what a frame of a stream keeps of it: setting (ids and format, 9 bytes) and
    payload (number of parts less one v, the lengths of all parts but the last v, the parts).

    Raises:
        BitstreamError: as :func:`unpack`.
    """
    parts = unpack(data).parts
    lengths = b"".join(write_varint(len(part)) for part in parts[:-1])
    return data[_SETTING], write_varint(len(parts) - 1) + lengths + b"".join(parts)


def whole_rows(setting: bytes, payload: bytes, facts: FeatureFacts, shape: Shape) -> bytes:
    """The way back of :func:`bare_rows`: the bitstream of these rows.

    Raises:
        BitstreamError: setting and payload are none that :func:`bare_rows` gave for this shape.
    """
    if len(setting) != 2 * ID_BYTES + 1 or setting[-1] & 15 >= len(DTYPES):
        raise BitstreamError("inconsistent: no setting of a codec's rows")
    reader = Reader(payload, 0)
    count = reader.varint()
    if count >= _MAX_PARTS:
        raise BitstreamError(f"inconsistent: {count + 1} parts")
    parts = [*map(reader.take, reader.varints(count))]
    return pack(
        Bitstream(
            codec_id=setting[:ID_BYTES],
            mapping_id=setting[ID_BYTES:-1],
            dtype=DTYPES[setting[-1] & 15],
            shape=shape,
            grid=facts.views.grid(shape[1]),
            parts=(*parts, payload[reader.at :]),
            mode=setting[-1] >> 4,
        )
    )


def _fills(grid: Grid | None, shape: Shape) -> bool:
    return grid is None or (min(grid) > 0 and grid[0] * grid[1] == shape[1])


def _grid(facts: FeatureFacts, shape: Shape) -> Grid | None:
    """The tiles of a kind of feature, or what no file holds where the shape is none of that kind."""
    try:
        return facts.views.grid(shape[1])
    except UserError:
        return (0, 0)


def write_varint(value: int) -> bytes:
    """A number of at least 0 in base 128, low digits first."""
    if value < 128:
        return _DIGITS[value]
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


_DIGITS = [bytes([digit]) for digit in range(128)]


class Reader:
    """Takes numbers and bytes from ``data``, one after the other, beginning at ``at``."""

    def __init__(self, data: bytes, at: int):
        self.data, self.at = data, at

    def varint(self) -> int:
        return self.varints(1)[0]

    def varints(self, count: int) -> list[int]:
        """So many numbers."""
        data, at, numbers, value, shift = self.data, self.at, [], 0, 0
        while len(numbers) < count:
            if at >= len(data):
                raise self._lacking(at + 1)
            byte, at = data[at], at + 1
            value |= (byte & 127) << shift
            if byte < 128:
                numbers.append(value)
                value = shift = 0
            elif shift == 28:
                raise BitstreamError("inconsistent: a number of more than 35 bits")
            else:
                shift += 7
        self.at = at
        return numbers

    def take(self, count: int) -> bytes:
        if self.at + count > len(self.data):
            raise self._lacking(self.at + count)
        self.at += count
        return self.data[self.at - count : self.at]

    def finish(self) -> None:
        if self.at != len(self.data):
            raise BitstreamError("inconsistent: bytes after the last part")

    def _lacking(self, end: int) -> Exception:
        """What is raised where the data would have to reach up to ``end``."""
        return BitstreamError("truncated: the parts are longer than the file")
