"""Where what lies in a file of a stream: its restart points and its samples::

    file    header  frame ... frame  index frame  tail
    tail    offset of the index frame 8, bytes of the index frame 4, "UFCX"
    index   samples v;  of each: key length v, key, rows of each tensor v ...
            points v;   of each: offset less the one before v, sample less the one before v,
                        rows of each tensor before it in the sample v ...

The index frame is a frame like any other: its payload begins with the CRC-32 of all frames before. A
file without a sound tail, which a killed writer leaves, is read through once instead.
"""

from bisect import bisect_right
from dataclasses import dataclass, field
from typing import NamedTuple

from dtufc.bitstream import BitstreamError, Reader, write_varint
from dtufc.streams.frames import TAIL, Restart, State

TAIL_MAGIC = b"UFCX"


class Point(NamedTuple):
    """A place where reading may begin."""

    offset: int
    sample: int
    rows: tuple[int, ...]
    """Of each tensor, those of the sample that came before."""


@dataclass
class FileIndex:
    """What is where."""

    keys: list[str] = field(default_factory=list)
    """Name of each sample."""
    totals: list[tuple[int, ...]] = field(default_factory=list)
    """Of each sample, its rows of each tensor."""
    points: list[Point] = field(default_factory=list)

    @property
    def last(self) -> tuple[int, str, tuple[int, ...]]:
        """Number, name and rows of the last sample."""
        return len(self.keys) - 1, self.keys[-1], self.totals[-1]

    def note(self, point: Restart, offset: int) -> None:
        """Take a restart point that lies at an offset."""
        while len(self.keys) <= point.sample:
            self.keys.append("")
            self.totals.append((0,) * len(point.rows))
        self.keys[point.sample] = point.key
        if self.points and self.points[-1][1:] == (point.sample, point.rows):
            self.points.pop()  # nothing lies between the two
        self.points.append(Point(offset, point.sample, point.rows))

    def count(self, state: State) -> None:
        """The rows of the sample that is being written or read."""
        self.totals[state.sample] = tuple(state.rows)

    def before(self, tensor: int, sample: int, row: int) -> Point:
        """The last point from which a row of a sample is reached."""
        last = (
            bisect_right(self.points, (sample, row), key=lambda p: (p.sample, p.rows[tensor])) - 1
        )
        if last < 0 or self.points[last].sample != sample:
            raise BitstreamError(f"inconsistent: the index has no point of sample {sample}")
        return self.points[last]

    def pack(self) -> bytes:
        """As the index frame holds it."""
        out = [write_varint(len(self.keys))]
        for key, rows in zip(self.keys, self.totals, strict=True):
            name = key.encode()
            out += [write_varint(len(name)), name, *map(write_varint, rows)]
        out.append(write_varint(len(self.points)))
        offset = sample = 0
        for point in self.points:
            out += [write_varint(point.offset - offset), write_varint(point.sample - sample)]
            out += map(write_varint, point.rows)
            offset, sample = point.offset, point.sample
        return b"".join(out)

    @classmethod
    def unpack(cls, data: bytes, tensors: int, end: int) -> "FileIndex":
        """The way back of :meth:`pack`.

        Args:
            end: where the frames end; no point lies behind it.

        Raises:
            BitstreamError: it is none.
        """
        reader, index = Reader(data, 0), cls()
        for _ in range(reader.varint()):  # each takes bytes, so that their number is bounded
            name = reader.take(reader.varint())
            try:
                index.keys.append(bytes(name).decode())
            except UnicodeDecodeError as error:
                raise BitstreamError("inconsistent: a key that is no text") from error
            index.totals.append(tuple(reader.varint() for _ in range(tensors)))
        offset = sample = 0
        for _ in range(reader.varint()):
            offset, sample = offset + reader.varint(), sample + reader.varint()
            rows = tuple(reader.varint() for _ in range(tensors))
            if offset >= end or sample >= len(index.keys):
                raise BitstreamError("inconsistent: the index names a point that is not there")
            index.points.append(Point(offset, sample, rows))
        reader.finish()
        if not index.points:
            raise BitstreamError("inconsistent: an index without points")
        return index


def write_tail(offset: int, size: int) -> bytes:
    return offset.to_bytes(8, "little") + size.to_bytes(4, "little") + TAIL_MAGIC


def read_tail(data: bytes, end: int) -> tuple[int, int] | None:
    """Offset and size of the index frame of a file of ``end`` bytes, or ``None`` without a tail."""
    offset, size = int.from_bytes(data[:8], "little"), int.from_bytes(data[8:12], "little")
    sound = len(data) == TAIL and data[12:] == TAIL_MAGIC and offset + size + TAIL == end
    return (offset, size) if sound else None
