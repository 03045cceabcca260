"""Frames: rows of tensors, restart points, the end and a file's index; to bytes and back::

    frame    segment ... segment  check
    segment  head v [change 1] [tensor v] [rows v] [setting: length v, bytes]  payload

``head`` is the payload's length, times 4, plus 2 where another segment follows, plus 1 where a change
byte follows. Without one the segment is of the next tensor in the session's order, has as many rows as
that tensor's last one (at first 1), and keeps its setting. ``check`` is the lower half of a CRC-32
that runs over the whole session, the header first, checks left out.

Both sides keep the same :class:`State`. Nothing of a frame counts before its check was found right.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from dtufc.bitstream import BitstreamError, Reader, write_varint
from dtufc.feature import points
from dtufc.streams.limits import Limits
from dtufc.streams.session import Session

CHECK = 2
"""Bytes of a frame's check."""
MORE, CHANGE = 2, 1
"""Bits of a head."""
TENSOR, ROWS, SETTING = 1, 2, 4
"""Bits of a change byte: what follows it."""
CONTROL = 8
"""Bits 3 and 4 of a change byte times this: 0 rows, 1 restart, 2 end, 3 index. Others are 0."""
RESTART, END, INDEX = 1, 2, 3
MAX_SETTING = 255
TAIL = 16
"""Bytes that a file has behind its index frame."""


class Segment(NamedTuple):
    """Rows of one tensor, coded."""

    tensor: int
    """Its number in the session."""
    rows: int
    setting: bytes
    payload: bytes
    sample: int = 0
    first: int = 0
    """Number of its first row in the sample."""


class Restart(NamedTuple):
    """A point where reading may begin: all that a state holds."""

    crc: int
    """CRC-32 of all before, checks left out."""
    sample: int
    key: str
    """The sample's name."""
    rows: tuple[int, ...]
    """Of each tensor, how many rows of the sample came before."""


class End(NamedTuple):
    """The session's end."""

    crc: int


class Index(NamedTuple):
    """A file's index, as bytes."""

    crc: int
    payload: bytes


Item = Segment | Restart | End | Index


@dataclass
class State:
    """What both sides know of a session after so many frames."""

    crc: int
    rows: list[int]
    """Of each tensor, in the sample."""
    settings: list[bytes | None]
    last: list[int]
    """Rows of each tensor's last segment."""
    next: int = 0
    """The tensor that a segment without a change byte is of."""
    sample: int = 0
    key: str = ""
    frames: int = 0

    @classmethod
    def start(cls, crc: int, tensors: int) -> "State":
        return cls(crc, [0] * tensors, [None] * tensors, [1] * tensors)

    def take(self, segment: Segment) -> None:
        """Go on by a segment."""
        self.rows[segment.tensor] += segment.rows
        self.settings[segment.tensor] = segment.setting
        self.last[segment.tensor] = segment.rows
        self.next = (segment.tensor + 1) % len(self.rows)

    def restart(self, point: Restart) -> None:
        """Go on from a restart point; settings are told again behind it."""
        self.sample, self.key, self.rows = point.sample, point.key, [*point.rows]
        self.settings, self.last = [None] * len(self.rows), [1] * len(self.rows)
        self.next = 0


def write_rows(state: State, segments: Sequence[Segment]) -> bytes:
    """The frame of these segments, none of the same tensor as another; the state goes on."""
    out = b""
    for number, segment in enumerate(segments):
        change, more = 0, b""
        if segment.tensor != state.next:
            change, more = change | TENSOR, more + write_varint(segment.tensor)
        if segment.rows != state.last[segment.tensor]:
            change, more = change | ROWS, more + write_varint(segment.rows)
        if segment.setting != state.settings[segment.tensor]:
            told = write_varint(len(segment.setting)) + segment.setting
            change, more = change | SETTING, more + told
        last = number == len(segments) - 1
        out += _segment(segment.payload, change, more, last)
        state.take(segment)
    return _seal(state, out)


def write_restart(state: State, sample: int, key: str, rows: Sequence[int]) -> bytes:
    """A restart point; the state goes on from it."""
    point = Restart(state.crc, sample, key, tuple(rows))
    name = key.encode()
    numbers = b"".join(map(write_varint, rows))
    payload = _crc(state.crc) + write_varint(sample) + write_varint(len(name)) + name + numbers
    out = _seal(state, _segment(payload, CONTROL * RESTART, b"", True))
    state.restart(point)
    return out


def write_end(state: State) -> bytes:
    return _seal(state, _segment(_crc(state.crc), CONTROL * END, b"", True))


def write_index(state: State, payload: bytes) -> bytes:
    return _seal(state, _segment(_crc(state.crc) + payload, CONTROL * INDEX, b"", True))


def _segment(payload: bytes, change: int, more: bytes, last: bool) -> bytes:
    head = len(payload) << 2 | (0 if last else MORE) | (CHANGE if change else 0)
    return write_varint(head) + (bytes([change]) + more if change else b"") + payload


def _seal(state: State, frame: bytes) -> bytes:
    state.crc = zlib.crc32(frame, state.crc)
    state.frames += 1
    return frame + (state.crc & 0xFFFF).to_bytes(CHECK, "little")


def _crc(value: int) -> bytes:
    return value.to_bytes(4, "little")


class Pending(Exception):
    """More bytes are needed than there are."""

    def __init__(self, end: int):
        self.end = end
        """How many bytes there must be, at least."""


class PendingReader(Reader):
    """A reader that asks for more where the bytes end."""

    def _lacking(self, end: int) -> Exception:
        return Pending(end)


class FrameReader:
    """The frames of a session, from bytes in any pieces.

    Args:
        crc: CRC-32 of the session's header.
        joining: the bytes begin at a restart point, which is trusted.
        offset: where in the session they begin.
    """

    def __init__(
        self, session: Session, crc: int, limits: Limits, joining: bool = False, offset: int = 0
    ):
        self.session, self.limits = session, limits
        self.state = State.start(crc, len(session.tensors))
        self.offset = offset
        """Where the last whole frame ends."""
        self.ended = False
        self._joining, self._buffer, self._need = joining, bytearray(), 1
        self._all_rows = self._tail = 0

    @property
    def waiting(self) -> int:
        """Bytes of a frame that is not whole."""
        return len(self._buffer)

    def feed(self, data: bytes) -> None:
        """Take bytes; :meth:`next` gives what they make whole."""
        self._buffer += data

    def next(self) -> list[Item] | None:
        """What the next frame holds, or ``None`` where it is not whole yet.

        Raises:
            BitstreamError: it is damaged, lost, out of order or beyond the limits.
        """
        if self.ended:
            if len(self._buffer) > self._tail:
                raise BitstreamError("inconsistent: bytes behind the end of the session")
            return None
        if len(self._buffer) < self._need or not self._buffer:
            return None
        reader = PendingReader(self._buffer, 0)
        try:
            items = self._parse(reader)
            crc = zlib.crc32(memoryview(self._buffer)[: reader.at], self.state.crc)
            check = reader.take(CHECK)
        except Pending as pending:
            self._need = pending.end
            return None
        self._need = 1
        first = items[0]
        if self._joining and isinstance(first, Restart):
            crc = zlib.crc32(memoryview(self._buffer)[: reader.at - CHECK], first.crc)
            self.state.crc = first.crc
        if int.from_bytes(check, "little") != crc & 0xFFFF:
            raise BitstreamError(f"corrupted: {self._where()}: the check does not match")
        if not isinstance(first, Segment) and first.crc != self.state.crc:
            raise BitstreamError(
                f"corrupted: {self._where()}: frames before it are not the sent ones"
            )
        if isinstance(first, Restart):
            self._restart(first)
        elif self._joining:
            raise BitstreamError("inconsistent: reading may begin at a restart point alone")
        self._joining = False
        self._take(items)
        self.state.crc = crc
        self.state.frames += 1
        self.offset += reader.at
        del self._buffer[: reader.at]
        return items

    def _where(self) -> str:
        return f"frame {self.state.frames}, byte {self.offset}"

    def _take(self, items: list[Item]) -> None:
        for item in items:
            if isinstance(item, Segment):
                self.state.take(item)
                self._all_rows += item.rows
                most = self.limits.session_rows
                if most is not None and self._all_rows > most:
                    raise BitstreamError(f"too large: more than {most} rows in the session")
        self.ended = isinstance(items[0], End | Index)
        self._tail = TAIL if isinstance(items[0], Index) else 0

    def _restart(self, point: Restart) -> None:
        """Refuse a restart point that is none of this session's."""
        state = self.state
        fresh = point.sample != state.sample
        expected = [0] * len(state.rows) if fresh else state.rows
        sound = [*point.rows] == expected and point.sample - state.sample in (0, 1)
        if not sound and not self._joining:
            raise BitstreamError(f"inconsistent: {self._where()}: a restart point of other rows")
        state.restart(point)

    def _parse(self, reader: Reader) -> list[Item]:
        """The items of a frame, of which nothing is believed yet."""
        items: list[Item] = []
        total, following, seen = 0, self.state.next, set()
        while True:
            head = reader.varint()
            size = head >> 2
            total += size
            if total > self.limits.frame_bytes:
                raise BitstreamError(
                    f"too large: {self._where()} has {total} bytes, limit {self.limits.frame_bytes}"
                )
            change = reader.take(1)[0] if head & CHANGE else 0
            if change >= 4 * CONTROL or (head & CHANGE and not change):
                raise BitstreamError(f"inconsistent: {self._where()}: change byte {change}")
            if change >= CONTROL:
                if items or head & MORE or change % CONTROL:
                    raise BitstreamError(f"inconsistent: {self._where()}: change byte {change}")
                return [self._control(change // CONTROL, reader.take(size))]
            segment = self._segment(reader, change, size, following)
            if segment.tensor in seen:
                raise BitstreamError(f"inconsistent: {self._where()} has a tensor twice")
            seen.add(segment.tensor)
            items.append(segment)
            following = (segment.tensor + 1) % len(self.session.tensors)
            if not head & MORE:
                return items

    def _segment(self, reader: Reader, change: int, size: int, following: int) -> Segment:
        state, limits = self.state, self.limits
        tensor = reader.varint() if change & TENSOR else following
        if tensor >= len(self.session.tensors):
            raise BitstreamError(f"inconsistent: {self._where()} is of tensor {tensor}")
        rows = reader.varint() if change & ROWS else state.last[tensor]
        most = points(self.session.tensors[tensor].row) * rows
        if not 1 <= rows <= limits.frame_rows or most > limits.frame_points:
            raise BitstreamError(
                f"too large: {self._where()} has {rows} rows, {most} points, "
                f"limits {limits.frame_rows}, {limits.frame_points}"
            )
        setting = state.settings[tensor]
        if change & SETTING:
            length = reader.varint()
            if length > MAX_SETTING:
                raise BitstreamError(f"inconsistent: {self._where()}: a setting of {length} bytes")
            setting = bytes(reader.take(length))
        if setting is None:
            raise BitstreamError(f"inconsistent: {self._where()}: no setting was told")
        payload = bytes(reader.take(size))
        return Segment(tensor, rows, setting, payload, state.sample, state.rows[tensor])

    def _control(self, kind: int, payload: bytes) -> Item:
        reader = Reader(payload, 0)
        crc = int.from_bytes(reader.take(4), "little")
        if kind == INDEX:
            return Index(crc, bytes(payload[4:]))
        if kind == END:
            reader.finish()
            return End(crc)
        sample = reader.varint()
        name = reader.take(reader.varint())
        if len(name) > self.limits.name_bytes:
            raise BitstreamError(
                f"too large: a key of {len(name)} bytes, limit {self.limits.name_bytes}"
            )
        rows = tuple(reader.varint() for _ in self.session.tensors)
        reader.finish()
        try:
            return Restart(crc, sample, bytes(name).decode(), rows)
        except UnicodeDecodeError as error:
            raise BitstreamError(f"inconsistent: {self._where()}: a key that is no text") from error
