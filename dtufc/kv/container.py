"""The bytes of a coded KV cache: a header, and frames that each add tokens.

Integers are little-endian, ``v`` a base-128 integer of variable length (:mod:`dtufc.bitstream`)::

    header   "UFK" 3, version 1 (1 byte), first bytes of the codec's SHA-256 4,
             dtype of the cache 1, sequences (batch) v, position of the first token v, check 4
    frame    length of the body v, body, check 4
    body     kind 1;  0 known, 1 raw, 2 coded: tokens v, first row of each set of layers v ...
             known  tokens whose keys and values the codec folder holds; nothing more
             raw    dtype 1, then rows of 16 or 32 bits per value
             coded  quality 2 (signed, 128ths), then per group: parts v, lengths v ..., the parts
             3 end: tokens in all v

Layers of one window make a set, which has the same tokens. A set's first row is above 0 where the
first tokens of a frame have left its window already.

A check is the CRC-32 of all bytes before it, headers, bodies and earlier checks included. So damage, a
lost frame, one twice and another order are told. A forger can compute checks; they are no signatures.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from dtufc.bitstream import ID_BYTES, BitstreamError, Reader, write_varint
from dtufc.errors import UserError
from dtufc.kv.caches import DTYPES

MAGIC = b"UFK"
VERSION = 1
KNOWN, RAW, CODED, END = range(4)
NAMES = tuple(DTYPES)
MAX_PARTS = 1 << 8


@dataclass(frozen=True)
class KvLimits:
    """What a receiver accepts, whoever wrote it. What goes beyond is refused with ``BitstreamError``
    before memory is taken for it.

    Raises:
        UserError: a limit below 1.
    """

    tokens: int = 1 << 20
    """Of a cache, and its last position."""
    batch: int = 1 << 10
    """Sequences of a cache."""
    values: int = 1 << 30
    """Keys and values of all layers together: 4 GiB as float32."""
    frame_bytes: int = 1 << 28
    """Of one frame."""

    def __post_init__(self):
        for name, value in vars(self).items():
            if value < 1:
                raise UserError(f"limits: {name}: expected at least 1, got {value}")


@dataclass(frozen=True)
class Header:
    """What all frames share."""

    codec: bytes
    """The first bytes of the codec's SHA-256."""
    dtype: str
    """One of DTYPES."""
    batch: int
    position: int
    """Of the first token."""

    def pack(self) -> bytes:
        out = MAGIC + bytes([VERSION]) + self.codec + bytes([NAMES.index(self.dtype)])
        out += write_varint(self.batch) + write_varint(self.position)
        return out + zlib.crc32(out).to_bytes(4, "little")


@dataclass(frozen=True)
class Frame:
    """Some tokens."""

    kind: int
    tokens: int
    """That it adds; of the end, in all."""
    starts: tuple[int, ...] = ()
    """Per set of layers, the first of the tokens that it holds; ``tokens``: none."""
    quality: int = 0
    """In 128ths, where the frame is coded."""
    parts: tuple[tuple[bytes, ...], ...] = ()
    """Per group, where the frame is coded."""
    raw: bytes = b""
    dtype: str = NAMES[0]
    """Of raw rows."""

    def body(self) -> bytes:
        out = bytes([self.kind]) + write_varint(self.tokens)
        out += b"".join(map(write_varint, self.starts))
        if self.kind == RAW:
            out += bytes([NAMES.index(self.dtype)]) + self.raw
        if self.kind == CODED:
            out += self.quality.to_bytes(2, "little", signed=True)
            for parts in self.parts:
                out += write_varint(len(parts)) + b"".join(write_varint(len(p)) for p in parts)
                out += b"".join(parts)
        return out

    @classmethod
    def of_body(cls, data: bytes, sets: int, groups: Sequence[int]) -> "Frame":
        """The way back of :meth:`body`.

        Args:
            sets: sets of layers. groups: the set of each group.

        Raises:
            BitstreamError: it is none.
        """
        reader = Reader(data, 0)
        kind, tokens = reader.take(1)[0], reader.varint()
        if kind > END or (kind != END and not tokens):
            raise BitstreamError(f"inconsistent: a frame of kind {kind} of {tokens} tokens")
        if kind == END:
            reader.finish()
            return cls(kind, tokens)
        starts = tuple(reader.varint() for _ in range(sets))
        if max(starts) > tokens:
            raise BitstreamError(f"inconsistent: rows from {max(starts)} on of {tokens} tokens")
        if kind == RAW:
            dtype = reader.take(1)[0]
            if dtype >= len(NAMES):
                raise BitstreamError(f"inconsistent: unknown dtype {dtype}")
            return cls(kind, tokens, starts, raw=data[reader.at :], dtype=NAMES[dtype])
        quality, parts = 0, []
        if kind == CODED:
            quality = int.from_bytes(reader.take(2), "little", signed=True)
            for own in groups:
                parts.append(_parts(reader, starts[own] < tokens))
        reader.finish()
        return cls(kind, tokens, starts, quality, tuple(parts))


def _parts(reader: Reader, filled: bool) -> tuple[bytes, ...]:
    count = reader.varint()
    if count > MAX_PARTS or bool(count) != filled:
        raise BitstreamError(f"inconsistent: {count} parts of a group")
    lengths = [reader.varint() for _ in range(count)]
    return tuple(reader.take(length) for length in lengths)


class Writer:
    """Puts lengths and checks around header and frames."""

    def __init__(self, header: Header):
        self._waiting = header.pack()
        self._crc = zlib.crc32(self._waiting)

    def write(self, *frames: Frame) -> bytes:
        """The bytes of the next frames; the first ones begin with the header."""
        out, self._waiting = self._waiting, b""
        for frame in frames:
            body = frame.body()
            head = write_varint(len(body))
            check = zlib.crc32(body, zlib.crc32(head, self._crc)).to_bytes(4, "little")
            self._crc = zlib.crc32(check, zlib.crc32(body, zlib.crc32(head, self._crc)))
            out += head + body + check
        return out


class Unframer:
    """Finds header and frames in bytes that come in any pieces."""

    def __init__(self, limits: KvLimits):
        self.limits = limits
        self.header: Header | None = None
        self._data = bytearray()
        self._crc = 0

    @property
    def waiting(self) -> int:
        """Bytes of what is not whole yet."""
        return len(self._data)

    def feed(self, data: bytes) -> None:
        self._data += data

    def read_header(self) -> Header | None:
        """The header, as soon as it is there.

        Raises:
            BitstreamError: foreign, damaged, or beyond the limits.
        """
        if self.header is None:
            data = bytes(self._data[:64])
            if data and data[:3] != MAGIC[: len(data)]:
                raise BitstreamError("foreign: the bytes do not start as a coded KV cache")
            if len(data) > 3 and data[3] != VERSION:
                raise BitstreamError(f"version {data[3]}: this code reads version {VERSION}")
            place = _ends(data, 5 + ID_BYTES, 2)
            if place is None or len(data) < place + 4:
                return None
            self._read_header(data, place)
        return self.header

    def _read_header(self, data: bytes, place: int) -> None:
        if zlib.crc32(data[:place]) != int.from_bytes(data[place : place + 4], "little"):
            raise BitstreamError("corrupted: the header's check does not match")
        dtype = data[4 + ID_BYTES]
        reader = Reader(data, 5 + ID_BYTES)
        batch, position = reader.varint(), reader.varint()
        if dtype >= len(NAMES) or not batch:
            raise BitstreamError(f"inconsistent: dtype {dtype}, {batch} sequences")
        if batch > self.limits.batch or position > self.limits.tokens:
            raise BitstreamError(f"too large: {batch} sequences from position {position} on")
        self.header = Header(data[4 : 4 + ID_BYTES], NAMES[dtype], batch, position)
        self._crc = zlib.crc32(data[: place + 4])
        del self._data[: place + 4]

    def next_body(self) -> bytes | None:
        """The body of the next frame, where it is whole.

        Raises:
            BitstreamError: damaged, or beyond the limits.
        """
        head = _ends(self._data[:6], 0, 1)
        if head is None:
            return None
        length = Reader(bytes(self._data[:head]), 0).varint()
        if length > self.limits.frame_bytes:
            raise BitstreamError(f"too large: a frame of {length} bytes")
        end = head + length
        if len(self._data) < end + 4:
            return None
        crc = zlib.crc32(self._data[:end], self._crc)
        if crc != int.from_bytes(self._data[end : end + 4], "little"):
            raise BitstreamError("corrupted: a frame's check does not match")
        self._crc = zlib.crc32(self._data[end : end + 4], crc)
        body = bytes(self._data[head:end])
        del self._data[: end + 4]
        return body


def _ends(data: bytes | bytearray, at: int, count: int) -> int | None:
    """The place behind ``count`` numbers that begin at ``at``; None where they are not whole.

    Raises:
        BitstreamError: a number of more than 35 bits.
    """
    for _ in range(count):
        for size in range(6):
            if size == 5:
                raise BitstreamError("inconsistent: a number of more than 35 bits")
            if at + size >= len(data):
                return None
            if data[at + size] < 128:
                break
        at += size + 1
    return at
