"""What both sides of a session agree on before the first row, and the header that says it."""

import hashlib
import json
import re
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Self

import numpy as np

from dtufc.bitstream import MAGIC, MAX_POINTS, STREAM_VERSION, BitstreamError, Reader, write_varint
from dtufc.errors import UserError
from dtufc.feature import DTYPES, FeatureFacts, points
from dtufc.streams.limits import Limits
from dtufc.views import Grid, Shape

WHOLE, NAMED = 0, 1
"""Forms of a header: the description, or the first bytes of its SHA-256 alone."""
DIGEST = 8
"""Bytes of a description's SHA-256 that stand for it."""
_TEXTS = ("model", "tokenizer", "split")


class UnknownSession(BitstreamError):
    """A header names a session that the receiver does not know."""


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of a session.

    Raises:
        UserError: a field is not what its line says.
    """

    name: str
    """As ``append`` and ``feed`` have it."""
    codec: str
    """Hex SHA-256 of all that decodes it, :meth:`dtufc.codec.Codec.rows_id`."""
    kind: str
    """Kind of feature, ``<model>_<task>``, that the codec takes its rows for."""
    row: Shape
    """(N, C, H, W) of one row."""
    axis: int
    """The axis along which rows follow each other: 2, tokens, or 0, whole features."""
    axes: tuple[str, ...]
    """What each axis is, as in the kind's facts."""
    tiles: Grid | None
    """As in the kind's facts."""
    dtype: str
    """float16 or float32."""
    continued: bool = False
    """Whether the rows of a frame are coded behind the last row of the frame before,
    :meth:`dtufc.codec.Codec.after`; a sample and a restart point begin anew."""

    def __post_init__(self):
        if not isinstance(self.name, str) or not self.name or not self.name.isprintable():
            raise UserError(f"tensor: name: expected a printable text, got {self.name!r}")
        where = f"tensor {self.name}"
        if not isinstance(self.codec, str) or not re.fullmatch("[0-9a-f]{64}", self.codec):
            raise UserError(f"{where}: codec: expected 64 hex digits, got {self.codec!r}")
        if not isinstance(self.kind, str):
            raise UserError(f"{where}: kind: expected a text, got {self.kind!r}")
        sizes = self.row
        if len(sizes) != 4 or any(type(size) is not int or size < 1 for size in sizes):
            raise UserError(f"{where}: row: expected four sizes of at least 1, got {sizes}")
        if points(sizes) > MAX_POINTS:
            raise UserError(f"{where}: row: {sizes} has more than {MAX_POINTS} points")
        if self.dtype not in DTYPES:
            raise UserError(f"{where}: dtype: expected one of {DTYPES}, got {self.dtype!r}")
        is_map = self.facts.views.is_map  # raises where the axes are none
        self.facts.views.grid(sizes[1])
        if self.axis not in (0, 2) or (self.axis == 2 and (is_map or sizes[2] != 1)):
            raise UserError(f"{where}: axis: {self.axis} does not fit a row of {sizes}")
        if type(self.continued) is not bool or (self.continued and self.axis != 2):
            raise UserError(f"{where}: continued: expected true of tokens alone")

    @cached_property
    def facts(self) -> FeatureFacts:
        """The facts of its kind, with the row's sizes."""
        model, _, task = self.kind.rpartition("_")
        shape = [None if axis == self.axis else size for axis, size in enumerate(self.row)]
        tiles = None if self.tiles is None else list(self.tiles)
        return FeatureFacts(model, task, shape, list(self.axes), tiles, self.dtype)

    def shape(self, rows: int) -> Shape:
        """(N, C, H, W) of so many rows."""
        n, c, h, w = self.row
        return (n * rows, c, h, w) if self.axis == 0 else (n, c, h * rows, w)

    def count(self, x: np.ndarray) -> int | None:
        """How many rows an array (N, C, H, W) is; ``None`` where it is none."""
        rows = x.shape[self.axis] // self.row[self.axis] if x.ndim == 4 else 0
        return rows if rows and x.shape == self.shape(rows) else None

    def cut(self, x: np.ndarray, first: int, end: int) -> np.ndarray:
        """Rows ``first`` .. ``end - 1`` of an array."""
        unit = self.row[self.axis]
        part = slice(first * unit, end * unit)
        return x[part] if self.axis == 0 else x[:, :, part]

    def record(self) -> dict[str, Any]:
        """As JSON has it."""
        values = {key: value for key, value in asdict(self).items() if value is not None}
        if not self.continued:  # what earlier versions knew: their descriptions stay
            del values["continued"]
        return values

    @classmethod
    def of_record(cls, values: Any) -> Self:
        """The way back of :meth:`record`.

        Raises:
            UserError: it is none.
        """
        required = {"name", "codec", "kind", "row", "axis", "axes", "dtype"}
        optional = {"tiles", "continued"}
        if not isinstance(values, dict) or not required <= set(values) <= required | optional:
            raise UserError(f"tensor: expected the keys {sorted(required)} (and tiles, continued)")
        if any(not isinstance(values[key], list) for key in ("row", "axes")):
            raise UserError("tensor: row, axes: expected lists")
        tiles = values.get("tiles")
        if tiles is not None and (
            not isinstance(tiles, list) or any(type(side) is not int for side in tiles)
        ):
            raise UserError(f"tensor: tiles: expected rows and columns, got {tiles!r}")
        if type(values["axis"]) is not int or any(type(axis) is not str for axis in values["axes"]):
            raise UserError("tensor: axis, axes: expected a number and four names")
        lists = {"row": tuple(values["row"]), "axes": tuple(values["axes"])}
        return cls(**values | lists | {"tiles": None if tiles is None else tuple(tiles)})


@dataclass(frozen=True)
class Session:
    """The description of a session.

    Raises:
        UserError: no tensor, a name twice, or metadata that is no JSON.
    """

    tensors: tuple[TensorSpec, ...]
    model: str = ""
    """Identity of the large model whose state it is: a name, a revision, a digest."""
    tokenizer: str = ""
    """Identity of the tokenizer."""
    split: str = ""
    """Where the model is cut: after block 3."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """Anything else that both sides should know, as JSON."""

    def __post_init__(self):
        names = [tensor.name for tensor in self.tensors]
        if not names or len(set(names)) < len(names):
            raise UserError(f"session: expected tensors of different names, got {names}")
        if any(not isinstance(getattr(self, key), str) for key in _TEXTS):
            raise UserError("session: model, tokenizer, split: expected texts")
        if not isinstance(self.metadata, dict):
            raise UserError("session: metadata: expected a mapping")

    @cached_property
    def description(self) -> bytes:
        """The session as JSON, the same bytes for the same session.

        Raises:
            UserError: the metadata is no JSON.
        """
        values = {key: getattr(self, key) for key in (*_TEXTS, "metadata") if getattr(self, key)}
        values["tensors"] = [tensor.record() for tensor in self.tensors]
        try:
            text = json.dumps(values, sort_keys=True, allow_nan=False, separators=(",", ":"))
        except (TypeError, ValueError, RecursionError) as error:
            raise UserError(f"session: metadata: no JSON ({error})") from error
        return text.encode()

    @property
    def digest(self) -> bytes:
        """The first bytes of the description's SHA-256."""
        return hashlib.sha256(self.description).digest()[:DIGEST]

    @classmethod
    def of_description(cls, data: bytes) -> Self:
        """The way back of :attr:`description`.

        Raises:
            UserError: it is none.
        """
        try:
            values = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise UserError(f"session: no JSON ({error})") from error
        if not isinstance(values, dict) or not isinstance(values.get("tensors"), list):
            raise UserError("session: expected a mapping with a list of tensors")
        if unknown := set(values) - {*_TEXTS, "metadata", "tensors"}:
            raise UserError(f"session: unknown keys {sorted(unknown)}")
        tensors = tuple(TensorSpec.of_record(each) for each in values.pop("tensors"))
        return cls(tensors, **values)

    def header(self, named: bool = False) -> bytes:
        """The bytes that open a session.

        Args:
            named: the receiver holds the description; 8 bytes stand for it.
        """
        body = self.digest if named else zlib.compress(self.description, 9)
        form = NAMED if named else WHOLE
        out = MAGIC + bytes([STREAM_VERSION, form]) + write_varint(len(body)) + body
        return out + zlib.crc32(out).to_bytes(4, "little")


def read_header(
    reader: Reader, limits: Limits, known: Sequence[Session] = ()
) -> tuple[Session, int]:
    """A session's header -> the session, and the CRC-32 of the header, which the frames go on with.

    Args:
        reader: raises what it likes where the bytes end; the header is read at once.
        known: sessions that a header may name.

    Raises:
        BitstreamError: foreign, of another version, damaged, beyond the limits, or unknown
            (:class:`UnknownSession`).
    """
    start = reader.at
    for number, expected in enumerate(MAGIC):
        if reader.take(1)[0] != expected:
            raise BitstreamError(f"foreign: byte {number} is not that of a stream of this project")
    version, form = reader.take(1)[0], reader.take(1)[0]
    if version != STREAM_VERSION:
        raise BitstreamError(f"version {version}: expected a stream, version {STREAM_VERSION}")
    if form not in (WHOLE, NAMED):
        raise BitstreamError(f"inconsistent: unknown form {form} of a header")
    size = reader.varint()
    if size > limits.header_bytes:
        raise BitstreamError(f"too large: a header of {size} bytes, limit {limits.header_bytes}")
    body = reader.take(size)
    crc = zlib.crc32(reader.data[start : reader.at])
    if int.from_bytes(reader.take(4), "little") != crc:
        raise BitstreamError("corrupted: the header's checksum does not match")
    if form == NAMED:
        for session in known:
            if session.digest == body:
                return session, crc
        raise UnknownSession(f"the header names the session {body.hex()}, which is not known here")
    session = _inflate(body, limits.header_bytes)
    if len(session.tensors) > limits.tensors:
        raise BitstreamError(f"too large: {len(session.tensors)} tensors, limit {limits.tensors}")
    longest = max(len(tensor.name.encode()) for tensor in session.tensors)
    if longest > limits.name_bytes:
        raise BitstreamError(f"too large: a name of {longest} bytes, limit {limits.name_bytes}")
    return session, crc


def _inflate(body: bytes, limit: int) -> Session:
    inflater = zlib.decompressobj()
    try:
        text = inflater.decompress(body, limit)
    except zlib.error as error:
        raise BitstreamError(f"corrupted: the description does not inflate ({error})") from error
    if inflater.unconsumed_tail:
        raise BitstreamError(f"too large: a description of more than {limit} bytes")
    if not inflater.eof or inflater.unused_data:
        raise BitstreamError("corrupted: the description does not end with the header")
    try:
        return Session.of_description(text)
    except UserError as error:
        raise BitstreamError(f"inconsistent: {error}") from error
