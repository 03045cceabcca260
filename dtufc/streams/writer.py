"""Streams into files: an encoder whose bytes are in the file when ``append`` returns."""

import fcntl
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from dtufc.bitstream import BitstreamError
from dtufc.codec import Codec
from dtufc.errors import UserError
from dtufc.streams import frames
from dtufc.streams.encoder import StreamEncoder, Tensor, describe
from dtufc.streams.frames import Restart
from dtufc.streams.index import FileIndex, write_tail
from dtufc.streams.layout import read_layout
from dtufc.streams.limits import Limits
from dtufc.streams.session import Session
from dtufc.tensors import Values

SUFFIX = ".ufs"
"""Ending of stream files."""
RESTART_EVERY = 1 << 16
"""Bytes between restart points within a sample, by default: what is read beside a wanted row, at
most."""


class StreamWriter(StreamEncoder):
    """An encoder that writes into a file, of which it is the only writer.

    What ``append`` and the others return is in the file then, and survives the process; after
    :meth:`flush` it survives the machine. A file of the same session is gone on with, behind its last
    whole frame; what a killed writer left behind that is cut off. It keeps some tens of bytes per
    restart point in memory, for the index.

    Raises:
        UserError: another process writes the file, or it holds another session.
    """

    def __init__(
        self, path: Path, tensors: Mapping[str, Tensor], session: Session, restart_every: int
    ):
        super().__init__(tensors, session, restart_every)
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a+b", buffering=0)
        self._index = FileIndex()
        try:
            self._lock()
            self._resume()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Any, *error: Any) -> None:
        if kind is None:
            self.close()
        else:
            self._file.close()  # as a kill leaves it: all whole frames are there

    @property
    def keys(self) -> list[str]:
        """The name of each sample of the file so far, the one that is being written included."""
        return self._index.keys

    def flush(self) -> None:
        """Wait until all that was written is on the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> bytes:
        """Write the index, which ends the session, and let go of the file.

        Returns:
            What was written: index frame and tail; nothing where the file was closed before.
        """
        if self._closed:
            return b""
        self._index.count(self._state)
        offset = self._end
        frame = frames.write_index(self._state, self._index.pack())
        out = self._emit(frame + write_tail(offset, len(frame)))
        self.flush()
        self._closed = True
        self._file.close()
        return out

    def append(
        self, rows: Mapping[str, Values], quality: float | Mapping[str, float] | None = None
    ) -> bytes:
        out = super().append(rows, quality)
        self._index.count(self._state)
        return out

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"{self.path}: another process writes this stream") from error

    def _resume(self) -> None:
        """Go on behind the last whole frame of a file that is there."""
        self._end = os.fstat(self._file.fileno()).st_size
        if self._end == 0:
            self._begin()
            return
        try:
            layout = read_layout(self._file, Limits())
        except BitstreamError as error:
            self._file.seek(0)
            if self._end < len(self._header) and self._header.startswith(self._file.read()):
                self._cut(0)  # a writer was killed in its first write
                self._begin()
                return
            raise UserError(f"{self.path}: no stream that can be gone on with ({error})") from error
        if layout.session != self.session:
            raise UserError(f"{self.path}: holds another session; its tensors or identities differ")
        self._cut(layout.end)
        self._index, self._waiting = layout.index, b""
        state, (last, key, rows) = self._state, layout.index.last
        state.crc, state.sample, state.key, state.rows = layout.end_crc, last, key, [*rows]
        self._began = bool(last or key)
        self._since = self._restart_every  # settings are to be told again

    def _begin(self) -> None:
        self._emit(b"")
        self._index.note(Restart(self._state.crc, 0, "", (0,) * len(self._tensors)), self._end)

    def _cut(self, end: int) -> None:
        self._file.truncate(end)
        self._end = end

    def _restart_point(self, *point: Any) -> bytes:
        state = self._state
        self._index.count(state)
        out = super()._restart_point(*point)
        rows = tuple(state.rows)
        self._index.note(Restart(state.crc, state.sample, state.key, rows), self._end)
        return out

    def _emit(self, data: bytes) -> bytes:
        out = super()._emit(data)
        left = memoryview(out)
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            self._closed = True  # the state is ahead of the file; opened again, it goes on
            self._file.close()
            reason = error.strerror or str(error)
            raise OSError(error.errno, f"not written: {reason}", str(self.path)) from error
        self._end += len(out)
        return out


def write_stream(
    path: str | Path,
    tensors: Mapping[str, Codec | Tensor],
    *,
    model: str = "",
    tokenizer: str = "",
    split: str = "",
    metadata: dict[str, Any] | None = None,
    restart_every: int = RESTART_EVERY,
) -> StreamWriter:
    """Open a stream file for writing: a new one, or one of the same session to be gone on with.

    Args:
        path: the file, ``.ufs``.
        tensors, model, tokenizer, split, metadata: as of :func:`dtufc.streams.open_session`.
        restart_every: bytes between restart points within a sample: what a reader reads beside a wanted
            row, at most.

    Raises:
        UserError: no such session, or a file of another one, or one that is being written.
    """
    named, session = describe(tensors, model, tokenizer, split, metadata)
    return StreamWriter(Path(path), named, session, restart_every)
