"""Streams in files: any rows of any sample, read from the nearest restart point."""

import operator
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np

from dtufc.bitstream import BitstreamError
from dtufc.codec import load_codec
from dtufc.errors import UserError
from dtufc.shipped import describe_codec, pretrained
from dtufc.streams.decoder import Codecs, TensorDecoders
from dtufc.streams.frames import FrameReader, Segment
from dtufc.streams.layout import CHUNK, read_layout
from dtufc.streams.limits import Limits
from dtufc.streams.session import Session

_FIRST_READ = 1 << 12
"""Bytes read at a place before more are asked for."""


class StreamFile:
    """A stream file, open for reading::

        file[name][sample]             all rows of a sample of one tensor, (N, C, H, W)
        file[name][sample, t0:t1]      some of them
        file[name].rows(sample)        how many there are

    A file that a writer was killed at, or still writes, gives all its whole frames; ``problem`` says
    what is wrong with it. A file object may be used by one thread at a time.
    """

    def __init__(self, path: Path, codecs: Codecs | None, limits: Limits):
        self.path, self._limits = path, limits
        self._file = path.open("rb", buffering=0)
        try:
            self._layout = read_layout(self._file, limits)
            have = _shipped(self.session) if codecs is None else codecs
            self._decoders = TensorDecoders(self.session, have)
        except BitstreamError as error:
            self._file.close()
            raise BitstreamError(f"{path}: {error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()

    @property
    def session(self) -> Session:
        """The session's description."""
        return self._layout.session

    @property
    def keys(self) -> list[str]:
        """The name of each sample."""
        return self._layout.index.keys

    @property
    def problem(self) -> str | None:
        """Why frames may be missing at the end; ``None`` where the file was closed."""
        return self._layout.problem

    def __len__(self) -> int:
        """How many samples there are."""
        return len(self.keys)

    def __iter__(self) -> Iterator[str]:
        """Names of the tensors."""
        return (spec.name for spec in self.session.tensors)

    def __getitem__(self, name: str) -> "StreamTensor":
        names = [*self]
        if name not in names:
            raise UserError(f"{self.path}: holds {names}, not {name!r}")
        return StreamTensor(self, names.index(name))

    def count(self, tensor: int, sample: int) -> int:
        """Rows of a sample of a tensor."""
        return self._layout.index.totals[sample][tensor]

    def read(self, tensor: int, sample: int, first: int, end: int) -> np.ndarray:
        """Rows ``first`` .. ``end - 1`` of a sample.

        Raises:
            BitstreamError: what is read of the file is damaged.
        """
        try:
            return self._read(tensor, sample, first, end)
        except BitstreamError as error:
            raise BitstreamError(f"{self.path}: sample {sample}: {error}") from error

    def _read(self, tensor: int, sample: int, first: int, end: int) -> np.ndarray:
        spec = self.session.tensors[tensor]
        parts = [np.empty(spec.shape(0), spec.dtype)]
        found = first
        for segment in self._segments(tensor, sample, first) if first < end else ():
            if segment.first > found:
                raise BitstreamError("inconsistent: rows before a restart point are missing")
            last = min(segment.first + segment.rows, end)
            if last > found:
                rows = self._decoders.decode(segment)
                parts.append(spec.cut(rows, found - segment.first, last - segment.first))
                found = last
            if found == end:
                break
        else:
            if found < end:
                raise BitstreamError(f"truncated: row {found} is not there")
        return np.concatenate(parts, spec.axis)

    def _segments(self, tensor: int, sample: int, row: int) -> Iterator[Segment]:
        """The segments of a tensor in a sample, from the last restart point before a row on."""
        layout = self._layout
        point = layout.index.before(tensor, sample, row)
        at_start = point.offset == layout.start
        frames = FrameReader(
            self.session, layout.crc, self._limits, joining=not at_start, offset=point.offset
        )
        at, size = point.offset, _FIRST_READ
        while at < layout.end:
            self._file.seek(at)
            data = self._file.read(min(size, layout.end - at))
            if not data:
                return
            frames.feed(data)
            at, size = at + len(data), CHUNK
            while (items := frames.next()) is not None:
                if frames.state.sample != sample:
                    if frames.state.sample > sample:
                        return
                    raise BitstreamError("inconsistent: the index names a point of another sample")
                yield from (
                    item for item in items if isinstance(item, Segment) and item.tensor == tensor
                )


class StreamTensor:
    """One tensor of a stream file."""

    def __init__(self, file: StreamFile, tensor: int):
        self._file, self._tensor = file, tensor

    def __len__(self) -> int:
        """How many samples there are."""
        return len(self._file)

    def rows(self, sample: int) -> int:
        """How many rows a sample has."""
        return self._file.count(self._tensor, self._sample(sample))

    def __getitem__(self, place: int | tuple[int, int | slice]) -> np.ndarray:
        """Rows (N, C, H, W) of a sample; one row keeps its axis.

        Raises:
            IndexError: no such sample or row.
            BitstreamError: what is read of the file is damaged.
        """
        sample, rows = place if isinstance(place, tuple) else (place, slice(None))
        sample = self._sample(sample)
        count = self._file.count(self._tensor, sample)
        if isinstance(rows, slice):
            first, end, step = rows.indices(count)
            if step != 1:
                raise UserError(f"rows: expected a range without a step, got {rows}")
        else:
            first = _place(rows, count, "row")
            end = first + 1
        return self._file.read(self._tensor, sample, first, max(first, end))

    def _sample(self, sample: int) -> int:
        return _place(sample, len(self._file), "sample")


def _place(value: Any, count: int, what: str) -> int:
    place = operator.index(value)
    if not -count <= place < count:
        raise IndexError(f"{what} {place}: there are {count}")
    return place % count


def _shipped(session: Session) -> list:
    """The shipped codecs that may have written a session: those that know its kinds."""
    kinds = {spec.kind for spec in session.tensors}
    folders = pretrained().values()
    return [load_codec(each) for each in folders if kinds & {*describe_codec(each).kinds}]


def open_stream(
    path: str | Path, codecs: Codecs | None = None, *, limits: Limits | None = None
) -> StreamFile:
    """Open a stream file for reading.

    Args:
        codecs: those that may have written it; ``None``: the codecs that ship with the package.
        limits: what is accepted; those on the session's bytes and rows do not hold for files.

    Raises:
        FileNotFoundError: no such file.
        BitstreamError: no stream, a damaged header, or of other codecs; the message names the file.
    """
    return StreamFile(Path(path), codecs, limits or Limits())
