"""The sender's side of a session."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dtufc.codec import Codec
from dtufc.errors import UserError
from dtufc.feature import FeatureError, FeatureFacts
from dtufc.streams import frames
from dtufc.streams.limits import Limits
from dtufc.streams.session import Session, TensorSpec
from dtufc.tensors import Values, to_array
from dtufc.views import Shape


@dataclass(frozen=True)
class Tensor:
    """How one tensor of a session is coded."""

    codec: Codec
    kind: str | None = None
    """``<model>_<task>``; needed only where the codec knows several kinds."""
    row: Shape | None = None
    """(N, C, H, W) of one row; needed only where the kind leaves more sizes open than the rows'."""

    @property
    def facts(self) -> FeatureFacts:
        """The facts of its kind.

        Raises:
            UserError: the codec knows no such kind, or several.
        """
        found = [facts for facts in self.codec.known if self.kind in (None, facts.kind)]
        if len(found) != 1:
            known = [facts.kind for facts in self.codec.known]
            raise UserError(f"kind: expected one of {known}, got {self.kind!r}")
        return found[0]

    @property
    def axis(self) -> int:
        """The axis along which rows follow each other: 2, tokens, or 0, whole features."""
        facts = self.facts
        return 2 if not facts.views.is_map and facts.shape[2] is None else 0

    def spec(self, name: str, continued: bool = False) -> TensorSpec:
        """The tensor as a session describes it.

        Args:
            continued: frames may go on from those before, where the codec gains by it.

        Raises:
            UserError: the kind, the row or the name is none.
        """
        facts, axis = self.facts, self.axis
        row = self.row or tuple(
            1 if size is None and place in (0, 1 if axis == 2 else 0, axis) else size
            for place, size in enumerate(facts.shape)
        )
        if None in row:
            raise UserError(f"tensor {name}: row: {facts.kind} is {facts.shape}; name all sizes")
        return TensorSpec(
            name, self.codec.rows_id(facts.kind).hex(), facts.kind, row, axis, tuple(facts.axes),
            facts.views.tiles, facts.dtype, continued and axis == 2 and self.codec.continues,
        )  # fmt: skip


class _Sent:
    """A segment that was sent, whose last row the next one goes on from.

    Args:
        codec: that wrote it.
    """

    def __init__(self, codec: Codec, segment: frames.Segment):
        self._codec, self._segment, self._row = codec, segment, None

    def row(self, spec: TensorSpec) -> np.ndarray:
        """The last row as the receiver has it; decoded when it is first asked for."""
        if self._row is None:
            count = self._segment.rows
            x = self._codec.decode_rows(
                self._segment.setting, self._segment.payload, spec.facts, spec.shape(count)
            )
            self._row = spec.cut(x, count - 1, count).copy()
            self._codec = self._segment = None
        return self._row


class StreamEncoder:
    """Turns rows into the bytes of a session, of which a receiver may be given any pieces.

    What :meth:`append` and the others return, one after the other, is the session. Its memory does not
    grow with the session. An error leaves it as it was, so that a refused ``append`` sent nothing.

    Args:
        tensors: by name, in the order in which their rows usually come.
        restart_every: bytes after which a restart point is put before the next rows; ``None``: none.
        named: the receiver holds the session's description, so that 8 bytes stand for it.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        session: Session,
        restart_every: int | None = None,
        named: bool = False,
    ):
        if restart_every is not None and restart_every < 1:
            raise UserError(f"restart_every: expected at least 1 byte, got {restart_every}")
        self.session = session
        self._tensors = {name: (number, tensors[name]) for number, name in enumerate(tensors)}
        self._header = session.header(named)
        crc = int.from_bytes(self._header[-4:], "little")
        self._state = frames.State.start(crc, len(session.tensors))
        self._restart_every, self._since = restart_every, 0
        self._waiting = self._header
        self._closed = self._began = False
        self._rated: dict[tuple[str, float], Codec] = {}
        self._last: dict[int, _Sent] = {}

    @property
    def rows(self) -> dict[str, int]:
        """How many rows of each tensor the sample has so far."""
        return dict(zip(self._tensors, self._state.rows, strict=True))

    @property
    def sample(self) -> int:
        """Number of the sample that is being written."""
        return self._state.sample

    def start(self) -> bytes:
        """The session's header, where it is to be sent before there are rows."""
        return self._emit(b"")

    def append(
        self, rows: Mapping[str, Values], quality: float | Mapping[str, float] | None = None
    ) -> bytes:
        """The next rows of one or more tensors -> the bytes that carry them, one frame in general.

        Args:
            rows: by tensor: (N, C, H, W) of any number of rows, array or tensor on any device; of
                tokens of one layer also (T, C), or (C,) for one token. A kind that fixes N takes a
                frame per feature.
            quality: another rate than the codec's own, for all tensors or by name; it holds for these
                rows.

        Raises:
            FeatureError, UserError: rows of no such tensor, shape or dtype, or the session was closed;
                nothing was sent.
        """
        self._check_open()
        if not rows:
            raise UserError(f"append: expected rows of some of {[*self._tensors]}")
        asked = {name: self._pieces(name, values) for name, values in rows.items()}
        every = self._restart_every
        restart = every is not None and self._since >= every
        coded: list[list[frames.Segment]] = []
        sent: dict[int, _Sent] = {}
        for name, pieces in asked.items():
            number, tensor = self._tensors[name]
            spec, codec = self.session.tensors[number], self._at_quality(name, quality)
            if spec.continued and not restart and number in self._last:
                codec = codec.after(self._last[number].row(spec))
            for place, piece in enumerate(pieces):
                setting, payload = codec.encode_rows(piece, tensor.facts.kind)
                count = spec.count(piece)
                if len(coded) <= place:
                    coded.append([])
                coded[place].append(frames.Segment(number, count, setting, payload))
                if spec.continued:
                    sent[number] = _Sent(codec, coded[place][-1])
        out = self._restart_point() if restart else b""
        self._last |= sent
        return self._emit(out + b"".join(frames.write_rows(self._state, one) for one in coded))

    def new_sample(self, key: str = "") -> bytes:
        """Begin the next sample: rows are counted from 0 again. The first call of all names the first
        sample.

        Args:
            key: its name, for readers of files.

        Raises:
            UserError: the key is too long, or the session was closed.
        """
        self._check_open()
        most = Limits().name_bytes
        if len(key.encode()) > most:
            raise UserError(f"key: expected at most {most} bytes, got {len(key.encode())}")
        first = not self._began and not any(self._state.rows)
        sample = self._state.sample + (0 if first else 1)
        self._began = True
        return self._emit(self._restart_point(sample, key, [0] * len(self._tensors)))

    def restart(self) -> bytes:
        """A restart point: a receiver may join here, and a checksum of 32 bits covers all before."""
        self._check_open()
        return self._emit(self._restart_point())

    def close(self) -> bytes:
        """The end of the session; a receiver without it knows that the session was cut off."""
        self._check_open()
        self._closed = True
        return self._emit(frames.write_end(self._state))

    def _check_open(self) -> None:
        if self._closed:
            raise UserError("session: it was closed; open another one")

    def _restart_point(
        self, sample: int | None = None, key: str | None = None, rows: Sequence[int] | None = None
    ) -> bytes:
        state = self._state
        self._since = 0
        self._last.clear()
        return frames.write_restart(
            state,
            state.sample if sample is None else sample,
            state.key if key is None else key,
            state.rows if rows is None else rows,
        )

    def _emit(self, data: bytes) -> bytes:
        out, self._waiting = self._waiting + data, b""
        self._since += len(data)
        return out

    def _pieces(self, name: str, values: Values) -> list[np.ndarray]:
        """Rows as the codec takes them: all at once, or a feature each where the kind fixes N."""
        if name not in self._tensors:
            raise FeatureError(f"append: expected some of {[*self._tensors]}, got {name!r}")
        number, tensor = self._tensors[name]
        spec = self.session.tensors[number]
        x = to_array(values)
        n, c, _, w = spec.row
        if spec.axis == 2 and n == c == 1 and x.shape[-1:] == (w,) and x.ndim < 3:
            x = x.reshape(1, 1, -1, w)
        count = spec.count(x)
        if count is None:
            some = tuple("T" if axis == spec.axis else size for axis, size in enumerate(spec.row))
            raise FeatureError(f"append: {name}: expected rows of {some}, got shape {x.shape}")
        if spec.axis == 0 and tensor.facts.shape[0] is not None:
            return [spec.cut(x, row, row + 1) for row in range(count)]
        return [x]

    def _at_quality(self, name: str, quality: float | Mapping[str, float] | None) -> Codec:
        codec = self._tensors[name][1].codec
        asked = quality.get(name) if isinstance(quality, Mapping) else quality
        if asked is None:
            return codec
        if (name, asked) not in self._rated:
            if len(self._rated) > 4 * len(self._tensors):  # few are used again
                self._rated.clear()
            self._rated[name, asked] = codec.at_quality(asked)
        return self._rated[name, asked]


def describe(
    tensors: Mapping[str, Codec | Tensor], model: str = "", tokenizer: str = "", split: str = "",
    metadata: dict[str, Any] | None = None, continued: bool = False,
) -> tuple[dict[str, Tensor], Session]:  # fmt: skip
    """Tensors by name, and the session that they make.

    Args:
        continued: as of :meth:`Tensor.spec`.
    """
    named = {
        name: Tensor(each) if isinstance(each, Codec) else each for name, each in tensors.items()
    }
    specs = tuple(tensor.spec(name, continued) for name, tensor in named.items())
    session = Session(specs, model, tokenizer, split, metadata or {})
    session.description  # noqa: B018  # raises where the metadata is no JSON
    return named, session


def open_session(
    tensors: Mapping[str, Codec | Tensor],
    *,
    model: str = "",
    tokenizer: str = "",
    split: str = "",
    metadata: dict[str, Any] | None = None,
    restart_every: int | None = None,
    named: bool = False,
    continued: bool = True,
) -> StreamEncoder:
    """Open a session.

    Args:
        tensors: by name, the codec of each, or a :class:`Tensor` where more than that must be said.
        model, tokenizer, split, metadata: what else both sides agree on, see :class:`Session`.
        restart_every, named: as of :class:`StreamEncoder`.
        continued: frames go on from those before where a codec gains by it, as a klt with a prediction
            does; else each frame is coded for itself.

    Raises:
        UserError: no such session; the message names the tensor or the argument.
    """
    named_tensors, session = describe(tensors, model, tokenizer, split, metadata, continued)
    return StreamEncoder(named_tensors, session, restart_every, named)
