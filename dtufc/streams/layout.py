"""A stream file taken apart: header, where its frames end, and its index, read or found by a scan."""

import os
from dataclasses import dataclass
from typing import BinaryIO

from dtufc.bitstream import BitstreamError
from dtufc.streams.frames import TAIL, End, FrameReader, Index, Pending, PendingReader, Restart
from dtufc.streams.index import FileIndex, read_tail
from dtufc.streams.limits import Limits
from dtufc.streams.session import Session, read_header

CHUNK = 1 << 16
"""Bytes read at a time."""


@dataclass
class Layout:
    """What a file holds, without its rows."""

    session: Session
    start: int
    """Where the header ends."""
    crc: int
    """CRC-32 of the header."""
    end: int
    """Where the last whole frame ends."""
    end_crc: int
    """CRC-32 of all up to there, checks left out."""
    index: FileIndex
    problem: str | None
    """Why frames may be missing behind ``end``; ``None`` where the file was closed."""


def read_layout(file: BinaryIO, limits: Limits) -> Layout:
    """Take a file apart.

    Raises:
        BitstreamError: its header is not sound. Damage behind it is told by ``problem``.
    """
    session, crc, start = _read_header(file, limits)
    size = file.seek(0, os.SEEK_END)
    layout = Layout(session, start, crc, start, crc, FileIndex(), None)
    if size >= start + TAIL:
        file.seek(size - TAIL)
        place = read_tail(file.read(TAIL), size)
        if place is not None and place[0] >= start and _read_index(file, layout, *place, limits):
            return layout
    _scan(file, layout, limits)
    return layout


def _read_header(file: BinaryIO, limits: Limits) -> tuple[Session, int, int]:
    data, wanted = b"", 1
    while True:
        file.seek(len(data))
        more = file.read(max(wanted - len(data), 512))
        data += more
        reader = PendingReader(data, 0)
        try:
            session, crc = read_header(reader, limits)
            return session, crc, reader.at
        except Pending as pending:
            wanted = pending.end
            if not more:
                raise BitstreamError("truncated: the file ends inside its header") from None


def _read_index(file: BinaryIO, layout: Layout, offset: int, size: int, limits: Limits) -> bool:
    """Read the index frame; ``False`` where it is not sound."""
    file.seek(offset)
    whole = Limits(**vars(limits) | {"frame_bytes": max(size, 1)})  # of the file, not of a frame
    data = file.read(size)
    crc = _peek_crc(data)
    frames = FrameReader(layout.session, crc, whole)
    frames.feed(data)
    try:
        items = frames.next()
        if not items or not isinstance(items[0], Index) or frames.waiting:
            return False
        index = FileIndex.unpack(items[0].payload, len(layout.session.tensors), offset)
    except BitstreamError:
        return False
    layout.end, layout.end_crc, layout.index = offset, crc, index
    return True


def _peek_crc(data: bytes) -> int:
    """The CRC-32 that an index frame says of the frames before, on which its own check goes on."""
    reader = PendingReader(data, 0)
    try:
        reader.varint()
        reader.take(1)  # change byte
        return int.from_bytes(reader.take(4), "little")
    except (Pending, BitstreamError):
        return 0


def _scan(file: BinaryIO, layout: Layout, limits: Limits) -> None:
    """Read all frames, without decoding them, up to the first that is not whole or not sound."""
    frames = FrameReader(layout.session, layout.crc, limits, offset=layout.start)
    layout.index = index = FileIndex()
    index.note(Restart(layout.crc, 0, "", tuple(frames.state.rows)), layout.start)
    file.seek(layout.start)
    layout.problem = "truncated: the file has no index"
    try:
        while data := file.read(CHUNK):
            frames.feed(data)
            while True:
                before = frames.offset
                items = frames.next()
                if items is None:
                    break
                if isinstance(items[0], Index | End):
                    layout.problem = None
                    return
                if isinstance(items[0], Restart):
                    index.note(items[0], before)
                index.count(frames.state)
                layout.end, layout.end_crc = frames.offset, frames.state.crc
    except BitstreamError as error:
        layout.problem = str(error)
