"""The bytes of a coded state: all tensors of one sample as a stream of one frame, in one file.

    header    8 bytes stand for the session, since both sides hold the codec folder
    frame     a segment per tensor, in the codec's order
    end       CRC-32 of all before

Every byte is explained in ``docs/reference/streams.md``. Where a codec leaves more sizes open than how
many rows there are, the receiver cannot know the session, and the header describes it.
"""

from collections.abc import Iterable, Mapping
from typing import Literal, get_args

import numpy as np

from dtufc.bitstream import MAX_POINTS, BitstreamError, Reader
from dtufc.codec import Codec
from dtufc.errors import UserError
from dtufc.states import State
from dtufc.streams.decoder import TensorDecoders
from dtufc.streams.encoder import StreamEncoder, Tensor, describe
from dtufc.streams.frames import End, FrameReader, Segment
from dtufc.streams.limits import Limits
from dtufc.streams.session import Session, UnknownSession, read_header
from dtufc.views import Shape

Layout = Literal["tensors", "folder", "npz"]
"""How the files of a state lie, see :mod:`dtufc.many.layouts`. The session says it, at no cost."""
LAYOUTS: tuple[Layout, ...] = get_args(Layout)
KEY = "layout"
"""Of the session's metadata; left out of the first layout."""


def write(codecs: Mapping[str, Codec], state: State, layout: Layout) -> bytes:
    """A state -> the whole file.

    Args:
        state: (N, C, H, W) of each codec's kind, by its name.

    Raises:
        FeatureError: a tensor is no sound feature.
    """
    tensors = {name: _tensor(codec, state[name].shape) for name, codec in codecs.items()}
    named, session = describe(tensors, metadata=_metadata(layout))
    encoder = StreamEncoder(named, session, named=session in known_sessions(codecs, [layout]))
    return encoder.append({name: state[name] for name in codecs}) + encoder.close()


def read(
    codecs: Mapping[str, Codec], data: bytes, max_points: int = MAX_POINTS
) -> tuple[Session, list[Segment]]:
    """The whole file -> its session and a segment per tensor, not decoded yet.

    Args:
        max_points: largest N*C*H*W of a tensor that is accepted.

    Raises:
        BitstreamError: it is not sound, or of other codecs.
    """
    limits = Limits(frame_bytes=max(1, len(data)), frame_points=max_points)
    reader = Reader(data, 0)
    session, crc = _read_header(codecs, reader, limits)
    frames = FrameReader(session, crc, limits, offset=reader.at)
    frames.feed(data[reader.at :])
    items = []
    while (found := frames.next()) is not None:
        items += found
    if not frames.ended:
        raise BitstreamError(f"truncated: the state ends inside frame {frames.state.frames}")
    *segments, end = items
    whole = isinstance(end, End) and all(isinstance(item, Segment) for item in segments)
    if not whole or [item.tensor for item in segments] != [*range(len(codecs))]:
        raise BitstreamError("inconsistent: expected rows of each tensor once, and the end")
    return session, segments


def decode(
    codecs: Mapping[str, Codec], data: bytes, max_points: int = MAX_POINTS
) -> dict[str, np.ndarray]:
    """The way back of :func:`write`.

    Raises:
        BitstreamError: as :func:`read`, or a payload is not sound.
    """
    session, segments = read(codecs, data, max_points)
    decoders = TensorDecoders(session, codecs.values())
    return {name: decoders.decode(segment) for name, segment in zip(codecs, segments, strict=True)}


def read_layout(codecs: Mapping[str, Codec], data: bytes) -> Layout:
    """How the files of a coded state lay, by its header alone.

    Raises:
        BitstreamError: the header is not sound, or of other codecs.
    """
    session, _ = _read_header(codecs, Reader(data, 0), Limits())
    return session.metadata.get(KEY, LAYOUTS[0])


def known_sessions(codecs: Mapping[str, Codec], layouts: Iterable[Layout]) -> list[Session]:
    """The sessions that a header may name; none where the codecs leave sizes open."""
    try:
        return [describe(codecs, metadata=_metadata(layout))[1] for layout in layouts]
    except UserError:
        return []


def _read_header(
    codecs: Mapping[str, Codec], reader: Reader, limits: Limits
) -> tuple[Session, int]:
    """A session of these codecs, and the CRC-32 of its header."""
    known = known_sessions(codecs, LAYOUTS)
    try:
        session, crc = read_header(reader, limits, known)
    except UnknownSession as error:
        raise BitstreamError(f"written by another codec of states ({error})") from error
    expected = [(name, codec.known[0].kind) for name, codec in codecs.items()]
    if (got := [(spec.name, spec.kind) for spec in session.tensors]) != expected:
        raise BitstreamError(f"inconsistent: expected the tensors {expected}, got {got}")
    layout = session.metadata.get(KEY, LAYOUTS[0])
    if session.metadata not in [_metadata(each) for each in LAYOUTS]:
        raise BitstreamError(f"inconsistent: layout: expected one of {LAYOUTS}, got {layout!r}")
    return session, crc


def _metadata(layout: Layout) -> dict[str, str]:
    return {} if layout == LAYOUTS[0] else {KEY: layout}


def _tensor(codec: Codec, shape: Shape) -> Tensor:
    """A tensor whose rows have the sizes of this one."""
    tensor = Tensor(codec)
    n, c, h, w = shape
    if tensor.axis == 2:
        return Tensor(codec, row=(n, c, 1, w))
    return Tensor(codec, row=(n if tensor.facts.shape[0] is not None else 1, c, h, w))
