"""The receiver's side of a session."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dtufc.bitstream import BitstreamError
from dtufc.codec import Codec
from dtufc.errors import UserError
from dtufc.feature import FeatureFacts
from dtufc.streams.frames import FrameReader, Pending, PendingReader, Restart, Segment
from dtufc.streams.limits import Limits
from dtufc.streams.session import Session, TensorSpec, read_header
from dtufc.tensors import Values, check_like, to_tensor

if TYPE_CHECKING:
    import torch

Codecs = Codec | Iterable[Codec]
"""The codecs that a receiver has: one, or several in any order."""


class Block(NamedTuple):
    """Decoded rows of one tensor."""

    name: str
    sample: int
    first: int
    """Number of the first of them in the sample."""
    rows: Values
    """(N, C, H, W)."""


class TensorDecoders:
    """The codec of each tensor of a session.

    Args:
        in_order: :meth:`decode` is given all segments, and :meth:`restart` called at restart points.

    Raises:
        BitstreamError: none of the codecs decodes a tensor; the message names both. Or frames go on
            from those before, and are not given in order.
    """

    def __init__(self, session: Session, codecs: Codecs, in_order: bool = False):
        have = [codecs] if isinstance(codecs, Codec) else list(codecs)
        self._codecs = [_find(spec, have) for spec in session.tensors]
        self._specs = session.tensors
        for spec in session.tensors:
            if spec.continued and not in_order:
                raise BitstreamError(
                    f"inconsistent: tensor {spec.name}: frames go on from those before, as those of "
                    "a live session may; a file's do not"
                )
        self.restart()

    def restart(self) -> None:
        """Forget the rows so far."""
        self._last: list[np.ndarray | None] = [None] * len(self._specs)

    def decode(self, segment: Segment) -> np.ndarray:
        """Rows (N, C, H, W).

        Raises:
            BitstreamError: the payload is not sound.
        """
        spec, codec = self._specs[segment.tensor], self._codecs[segment.tensor]
        shape = spec.shape(segment.rows)
        if spec.continued:
            codec = codec.after(self._last[segment.tensor])
        x = codec.decode_rows(segment.setting, segment.payload, spec.facts, shape)
        if x.shape != shape or x.dtype != spec.dtype:
            raise BitstreamError(f"inconsistent: {spec.name}: decoded to {x.dtype} {x.shape}")
        if spec.continued:  # a copy: who is given x may write to it
            self._last[segment.tensor] = spec.cut(x, segment.rows - 1, segment.rows).copy()
        return x


def _find(spec: TensorSpec, codecs: Sequence[Codec]) -> Codec:
    ids = []
    for codec in codecs:
        for facts in codec.known:
            if facts.kind != spec.kind:
                continue
            ids.append(codec.rows_id(spec.kind).hex())
            if ids[-1] == spec.codec:
                _check_fit(spec, facts)
                return codec
    known = ", ".join(each[:8] for each in ids) or "none of that kind"
    raise BitstreamError(
        f"tensor {spec.name}: {spec.kind} written by codec {spec.codec[:8]}, here is {known}"
    )


def _check_fit(spec: TensorSpec, facts: FeatureFacts) -> None:
    """Refuse rows that are none of the kind's."""
    pairs = zip(facts.shape, spec.facts.shape, strict=True)
    fits = [want in (None, got) or place == spec.axis for place, (want, got) in enumerate(pairs)]
    grids = [each.views.grid(spec.row[1]) for each in (facts, spec.facts)]
    same = (facts.axes, facts.dtype) == (spec.facts.axes, spec.dtype) and grids[0] == grids[1]
    if not (same and all(fits)):
        raise BitstreamError(
            f"inconsistent: tensor {spec.name}: a row of {spec.row} is no {facts.kind}"
        )


class StreamDecoder:
    """Turns the bytes of a session, in any pieces, into rows.

    Whole frames are given before anything is said of damage behind them: where a call both completes
    frames and meets damage, it returns their rows, and the next call raises. Its memory does not grow
    with the session.

    Args:
        codecs: those that may have written the session.
        limits: what is accepted.
        known: sessions that a header may name by their digest.
        join: the bytes behind the header begin at a restart point, not at the session's beginning.
        device, dtype: give torch tensors, as :meth:`dtufc.codec.Codec.decode` does.

    Raises:
        UserError: no such device or dtype.
    """

    def __init__(
        self,
        codecs: Codecs,
        *,
        limits: Limits | None = None,
        known: Sequence[Session] = (),
        join: bool = False,
        device: "str | torch.device | None" = None,
        dtype: "torch.dtype | None" = None,
    ):
        if device is not None or dtype is not None:
            check_like(device, dtype)
        self.session: Session | None = None
        """The session's description, as soon as the header is there."""
        self._codecs = [codecs] if isinstance(codecs, Codec) else list(codecs)
        self._limits, self._known, self._join = limits or Limits(), known, join
        self._like = (device, dtype)
        self._head = bytearray()
        self._frames: FrameReader | None = None
        self._error: BitstreamError | None = None
        self._bytes = 0

    @property
    def ended(self) -> bool:
        """Whether the session was closed by its sender, and all of it is here."""
        return self._frames is not None and self._frames.ended

    @property
    def rows(self) -> dict[str, int]:
        """How many rows of each tensor the sample has so far."""
        if self._frames is None or self.session is None:
            return {}
        names = [spec.name for spec in self.session.tensors]
        return dict(zip(names, self._frames.state.rows, strict=True))

    @property
    def sample(self) -> int:
        """Number of the sample that is being read."""
        return 0 if self._frames is None else self._frames.state.sample

    @property
    def key(self) -> str:
        """Name of the sample that is being read."""
        return "" if self._frames is None else self._frames.state.key

    def feed(self, data: bytes) -> dict[str, Values]:
        """The next bytes -> the rows that they make whole, by tensor; those of one tensor in one array.

        Raises:
            BitstreamError: the session is damaged, foreign, beyond the limits or of other codecs; it
                gives nothing any more.
            UserError: it has several samples, which :meth:`blocks` tells apart.
        """
        blocks = self.blocks(data)
        if self.sample:
            raise UserError("feed: the session has several samples; use blocks")
        parts: dict[str, list[Values]] = {}
        for block in blocks:
            parts.setdefault(block.name, []).append(block.rows)
        return {name: self._join_rows(name, found) for name, found in parts.items()}

    def blocks(self, data: bytes) -> list[Block]:
        """The next bytes -> the rows that they make whole, a block per tensor and frame, in order.

        Raises:
            BitstreamError: as :meth:`feed`.
        """
        if self._error is not None:
            raise self._error
        blocks: list[Block] = []
        try:
            self._bytes += len(data)
            most = self._limits.session_bytes
            if most is not None and self._bytes > most:
                raise BitstreamError(f"too large: more than {most} bytes in the session")
            if self._frames is None:
                data = self._open(data)
            if self._frames is None:
                return blocks
            self._frames.feed(data)
            while (items := self._frames.next()) is not None:
                if any(isinstance(item, Restart) for item in items):
                    self._decoders.restart()
                decoded = [self._decode(item) for item in items if isinstance(item, Segment)]
                blocks += decoded
        except BitstreamError as error:
            self._error = error
            self._head.clear()
            if not blocks:
                raise
        return blocks

    def finish(self) -> None:
        """Say that no more bytes will come.

        Raises:
            BitstreamError: the session was damaged, or its end is missing; the message says where it
                ends.
        """
        if self._error is not None:
            raise self._error
        if self._frames is None:
            raise BitstreamError("truncated: the session ends inside its header")
        if not self.ended:
            frames = self._frames
            raise BitstreamError(
                f"truncated: the session ends behind byte {frames.offset}, frame "
                f"{frames.state.frames}, sample {self.sample}, rows {self.rows}, "
                f"with {frames.waiting} bytes of a frame that is not whole"
            )

    def _open(self, data: bytes) -> bytes:
        """Read the header, where it is whole -> the bytes behind it."""
        self._head += data
        reader = PendingReader(self._head, 0)
        try:
            session, crc = read_header(reader, self._limits, self._known)
        except Pending:
            return b""
        self._decoders = TensorDecoders(session, self._codecs, in_order=True)
        self.session = session
        self._frames = FrameReader(session, crc, self._limits, self._join, reader.at)
        rest = bytes(self._head[reader.at :])
        self._head.clear()
        return rest

    def _decode(self, segment: Segment) -> Block:
        name = self.session.tensors[segment.tensor].name
        rows = self._decoders.decode(segment)
        device, dtype = self._like
        if device is not None or dtype is not None:
            rows = to_tensor(rows, device, dtype)
        return Block(name, segment.sample, segment.first, rows)

    def _join_rows(self, name: str, parts: list[Values]) -> Values:
        if len(parts) == 1:
            return parts[0]
        axis = next(spec.axis for spec in self.session.tensors if spec.name == name)
        if isinstance(parts[0], np.ndarray):
            return np.concatenate(parts, axis)
        import torch

        return torch.cat(parts, axis)
