"""The codec without a network behind the common API.

    encode:  x ─ vectors ─ transform / step ─ choose symbols ─ rANS ─> bitstream
    decode:  bitstream ─ rANS ─> symbols ─ * step, inverse transform, post-filter ─ vectors ─> x_hat

Parts of the bitstream in payload mode 2: quality (2 bytes, signed, in 128ths); the string of the lanes
(:mod:`dtufc.klt.lanes`); the string beside it (:mod:`dtufc.klt.side`); of a model with a memory the
references (:mod:`dtufc.klt.memory`); and, where there are any, the vectors that are sent as they are
(count, places, float32 values). The lanes' check covers all of it and the shape. Modes 0 and 1, which
folders of format 1 write, have one rANS string in place of the two: the clusters' indexes, where there
are several, and the symbols, vector by vector. The string's checksum covers all of it and the
shape; in mode 0, which earlier versions wrote, it covers the symbols alone.

A model with a prediction (:mod:`dtufc.klt.prediction`) has the parts of mode 2.

A model with a weighting (:mod:`dtufc.klt.weighting`) has other parts: quality; the string of the tokens'
classes; per class, from the lowest, what the weighed tokens of that class have behind their quality, an
empty part where no vector is sent as it is; and, where there are any, the tokens that are too far off to
be weighed.

Guarantees: the symbols depend on the bytes and on integers of the model alone, so that they are the same
on every machine; the floats made of them differ in their last bits at most. What was damaged, or sealed
again by a forger who did not recompute the 31-bit checksum, is taken for sound once in 2^31 times.
"""

import struct
import zlib
from collections.abc import Sequence
from dataclasses import fields, replace
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np

from dtufc import files, range_coder, rans
from dtufc.bitstream import BitstreamError, Reader, write_varint
from dtufc.codec import ExtraKind, OneKindCodec, to_dtype
from dtufc.errors import UserError
from dtufc.feature import FeatureFacts
from dtufc.klt import coder
from dtufc.klt.model import HIGHEST, LOWEST, PER_OCTAVE, KltModel, Rung, Transform, dct_basis
from dtufc.klt.weighting import by_class
from dtufc.views import Shape

MAX_GRADE = 1 << 14  # of either sign, in a file: steps of 2^128 and 2^-128 standard deviations
GRADES = range(LOWEST * PER_OCTAVE, HIGHEST * PER_OCTAVE + 1)
"""Qualities in 128ths for which there are tables; files of earlier versions may name others."""
BLOCK = 1 << 20  # symbols read at a time
SMALL = 1 << 20  # values of a matrix up to which tokens of a frame are transformed one by one
BLOCK_ROWS = 8  # tokens that are transformed at a time where it is larger
LARGEST = float(np.finfo(np.float32).max)
SHAPE = struct.Struct("<4I")
PLAIN, RAW = 0, 1
"""Forms of a frame's payload: symbols alone, or behind vectors that are sent raw."""


class KltCodec(OneKindCodec):
    """Karhunen-Loeve transforms, one step and static tables, for one kind of feature.

    Args:
        quality: log2 of the feature's standard deviation over the step, rounded to 128ths.
        before: (N, C, 1, W), the decoded tokens before those that it codes, see :meth:`after`.
    """

    def __init__(self, model: KltModel, quality: float, before: np.ndarray | None = None):
        self.whole, self.facts, self.before = model, model.facts, before
        self.grade = grade_of(quality)
        self.model = model.at(self.grade)
        """What codes at this quality."""

    @classmethod
    def load(
        cls, folder: Path, *, device: str, published: bool, kinds: Sequence[ExtraKind]
    ) -> Self:
        if published or kinds:
            raise UserError(f"{folder}: a klt codec has no published mode and no mappings")
        model, quality = KltModel.load(folder)
        try:
            return cls(model, quality)
        except UserError as error:
            raise UserError(f"{folder}: {error}") from error

    @property
    def modes(self) -> tuple[int, ...]:
        """Payload modes that it reads; it writes the last."""
        if self.model.format == 2:
            return (2,)
        return (0, 1) if self.model.weighting is None else (1,)

    @property
    def id(self) -> bytes:
        return self.whole.digest

    @property
    def identity(self) -> str:
        return files.digest(self.id, self.grade.to_bytes(4, "little", signed=True))

    @property
    def quality(self) -> float:
        """log2 of the feature's standard deviation over the step."""
        return self.grade / PER_OCTAVE

    @property
    def qualities(self) -> Sequence[float]:
        return [grade / PER_OCTAVE for grade in GRADES]

    def at_quality(self, quality: float) -> Self:
        check_quality(quality)
        return type(self)(self.whole, quality, self.before)

    def reader(self, grade: int) -> Self:
        """The codec that reads what was coded at quality ``grade`` / 128: this one, but where a model of
        another layout wrote it."""
        if self.whole.at(grade) is self.model:
            return self
        return type(self)(self.whole, grade / PER_OCTAVE, self.before)

    @property
    def continues(self) -> bool:
        """Whether it forecasts tokens, at one quality at least."""
        return any(each.prediction is not None for each in self.whole.each)

    def after(self, row: np.ndarray | None) -> Self:
        return type(self)(self.whole, self.quality, row) if self.continues else self

    def encode_parts(self, feature: np.ndarray) -> tuple[bytes, ...]:
        if self.model.weighting is not None:
            return self._encode_weighed(feature)
        return self._encode(feature)

    def decode_parts(self, parts: tuple[bytes, ...], shape: Shape, mode: int) -> np.ndarray:
        reader = self
        if self.whole.fine is not None and parts:
            reader = self.reader(grade_in(parts[0], self.model.transform))
        if reader.model.weighting is not None:
            return reader._decode_weighed(parts, shape, mode)
        return reader._decode(parts, shape, mode)

    def _encode(self, feature: np.ndarray, sealed: int = 0) -> tuple[bytes, ...]:
        """The parts of a feature.

        Args:
            sealed: CRC-32 of what is beside the parts and must be whole as well.
        """
        vectors = self.model.to_vectors(feature)
        grade = self.grade.to_bytes(2, "little", signed=True)
        length = self.facts.views.sequence(feature.shape)
        if self.model.format == 2:
            found, raw = self.model.search(vectors, self.grade, length, before=self._before)
            more = raw_part(vectors, raw)
            if self.model.memory is not None:
                more.insert(0, self.model.memory.write(found.modes, found.references, length))
            check = check_of(grade, more, feature.shape, sealed)
            tables = self.model.scale(self.grade).tables
            return grade, *coder.encode(tables, found, check), *more
        owners = self.model.transform.layout.owners(feature.shape)
        quantised = self.model.quantise(vectors, self.grade, length, owners)
        clusters, symbols, _, raw, references = quantised
        more = raw_part(vectors, raw)
        if self.model.memory is not None:
            more.insert(0, self.model.memory.write(clusters, references, length))
        check = check_of(grade, more, feature.shape, sealed)
        tables = self.model.tables_at(self.grade).tables
        return grade, rans.encode(*self._coded(clusters, symbols), tables, check), *more

    def _decode(
        self, parts: tuple[bytes, ...], shape: Shape, mode: int, sealed: int = 0
    ) -> np.ndarray:
        """The way back of :meth:`_encode`.

        Raises:
            BitstreamError: the parts are not sound.
        """
        strings = 2 if mode == 2 else 1
        remembers = int(self.model.memory is not None)
        least = 1 + strings + remembers
        if len(parts) not in (least, least + 1):
            raise BitstreamError("inconsistent: not the parts of a klt bitstream")
        grade = grade_in(parts[0], self.model.transform)
        layout = self.model.transform.layout
        count = self.facts.views.count_vectors(layout.seen(shape), layout.block)
        beside = parts[1 + strings :]  # references of a memory, and vectors sent raw
        check = check_of(parts[0], beside, shape, sealed) if mode > 0 else 0
        length = self.facts.views.sequence(shape)
        if mode == 2:
            clusters, found, _ = self.read_lanes(parts[1], parts[2], grade, count, check)
        else:
            clusters, found = self.read_symbols(parts[1], grade, count, check, shape)
        references = self._read_references(beside[0], clusters, length) if remembers else None
        restore = self.model.finish if mode == 2 else self.model.restore
        vectors = restore(clusters, found, grade, length, references)
        raw = put_raw(parts[-1], vectors) if len(parts) > least else []
        if self.model.prediction is not None:
            exact = np.zeros(count, bool)
            exact[raw] = True
            self.model.prediction.restore(vectors, clusters, length or 1, exact, self._before)
        return self.model.from_vectors(vectors, shape)

    @property
    def _before(self) -> np.ndarray | None:
        """The tokens before, (N, C) float32."""
        return None if self.before is None else self.model.to_vectors(self.before)[:, :, 0]

    def _encode_weighed(self, feature: np.ndarray) -> tuple[bytes, ...]:
        """The parts of a feature whose tokens are weighed."""
        weighting, shape = self.model.weighting, feature.shape
        vectors = self.model.to_vectors(feature)
        z, wild = weighting.forward(vectors[:, :, 0])
        more = raw_part(vectors, wild)
        classes = weighting.classes(z, self.facts.views.sequence(shape) or len(z))
        head = self.grade.to_bytes(2, "little", signed=True), weighting.write(classes)
        sealed, strings = check_of(b"".join(head), more, shape), []
        for rows, grade in by_class(classes, self.grade):
            part = self._part(grade)
            found = part._encode(self._weighed_feature(z[rows], shape), sealed)[1:]
            strings += [*found, *[b""] * (self._strings - len(found))]
        return *head, *strings, *more

    def _decode_weighed(self, parts: tuple[bytes, ...], shape: Shape, mode: int) -> np.ndarray:
        """The way back of :meth:`_encode_weighed`.

        Raises:
            BitstreamError: the parts are not sound.
        """
        weighting = self.model.weighting
        if len(parts) < 2:
            raise BitstreamError("inconsistent: not the parts of a weighed klt bitstream")
        quality = grade_in(parts[0], self.model.transform)
        count = self.facts.views.count_vectors(shape, 1)
        try:
            classes = weighting.read(parts[1], count)
        except ValueError as error:
            raise BitstreamError(f"corrupted: {error}") from error
        batches = list(by_class(classes, quality))
        last = 2 + self._strings * len(batches)
        if len(parts) not in (last, last + 1):
            raise BitstreamError(f"inconsistent: {len(parts)} parts of {len(batches)} classes")
        sealed = check_of(parts[0] + parts[1], parts[last:], shape)
        part, z = self._part(0), None
        for number, (rows, grade) in enumerate(batches):
            mine = parts[2 + self._strings * number :][: self._strings]
            head = grade.to_bytes(2, "little", signed=True)
            seen = self._weighed_shape(len(rows), shape)
            found = part._decode((head, *(mine if mine[-1] else mine[:-1])), seen, mode, sealed)
            if z is None:  # memory for all, once some of it is known to be sound
                z = np.empty((count, weighting.channels), np.float32)
            z[rows] = part.model.to_vectors(found)[:, :, 0]
        vectors = weighting.inverse(z)[:, :, None]
        if len(parts) > last:
            put_raw(parts[-1], vectors)
        return self.model.from_vectors(vectors, shape)

    def _part(self, grade: int) -> "KltCodec":
        """What codes the weighed tokens of a class at a quality of ``grade`` / 128."""
        before = self._before
        if before is not None:
            z, _ = self.model.weighting.forward(before)
            before = self._weighed_feature(z, self.before.shape)
        return KltCodec(self.model.weighed, grade / PER_OCTAVE, before)

    @property
    def _strings(self) -> int:
        """Parts of a class of weighed tokens, that of vectors sent as they are included."""
        return (2 if self.model.format == 2 else 1) + int(self.model.memory is not None) + 1

    def _weighed_shape(self, count: int, shape: Shape) -> Shape:
        """As what feature ``count`` weighed tokens of one of ``shape`` are coded: as one sequence, but
        where all tokens are of one class they stay the sequences that they are."""
        width = self.model.weighting.channels
        if self.model.weighting.predictor is not None:
            return 1, 1, count, width
        return shape[0], 1, count // shape[0], width

    def _weighed_feature(self, z: np.ndarray, shape: Shape) -> np.ndarray:
        return z.reshape(self._weighed_shape(len(z), shape))

    def _read_references(self, part: bytes, clusters: np.ndarray, length: int) -> np.ndarray:
        """The references of a model with a memory, (R,) int64.

        Raises:
            BitstreamError: the bytes are none that an encoder wrote for these clusters.
        """
        try:
            return self.model.memory.read(part, clusters, length)
        except ValueError as error:
            raise BitstreamError(f"corrupted: {error}") from error

    def encode_rows(self, rows: np.ndarray, kind: str | None = None) -> tuple[bytes, bytes]:
        """Setting: form and grade. Payload: vectors sent raw (form 1: length v, content), and one string
        of the range coder. A row's symbols do not depend on the rows beside it. A codec of format 2,
        with a memory or with a weighting has the parts of a bitstream instead."""
        if self._is_whole:
            return super().encode_rows(rows, kind)
        self.check_kind(rows, kind)
        owners = self.model.transform.layout.owners(rows.shape)
        vectors = self.model.to_vectors(rows)
        quantised = self._rows_model.quantise(vectors, self.grade, owners=owners)
        clusters, symbols, _, raw, _ = quantised
        form, more = PLAIN, b""
        for exact in raw_part(vectors, raw):
            form, more = RAW, write_varint(len(exact)) + exact
        stream, indexes = self._coded(clusters, symbols)
        tables = self.model.tables_at(self.grade).tables
        setting = bytes([form]) + self.grade.to_bytes(2, "little", signed=True)
        return setting, more + range_coder.encode(stream, indexes, tables)

    def decode_rows(
        self, setting: bytes, payload: bytes, facts: FeatureFacts, shape: Shape
    ) -> np.ndarray:
        if self._is_whole:
            return super().decode_rows(setting, payload, facts, shape)
        if len(setting) != 3 or setting[0] not in (PLAIN, RAW):
            raise BitstreamError("inconsistent: no setting of klt's rows")
        grade = grade_in(setting[1:], self.model.transform)
        if (other := self.reader(grade)) is not self:
            return other.decode_rows(setting, payload, facts, shape)
        reader = Reader(payload, 0)
        exact = reader.take(reader.varint()) if setting[0] == RAW else None
        layout = self.model.transform.layout
        count = self.facts.views.count_vectors(layout.seen(shape), layout.block)
        string = payload[reader.at :]
        try:
            model = self.model.tables_at(grade)
            range_coder.check_room(string, count * model.least(layout.tells_cluster))
            decoder = range_coder.Decoder(string, model.tables)
            clusters, symbols = self._read(decoder, model, count, shape)
            decoder.finish()
        except rans.RansError as error:
            raise BitstreamError(f"corrupted: {error}") from error
        vectors = self.model.restore(clusters, symbols, grade, self.facts.views.sequence(shape))
        if exact is not None:
            put_raw(exact, vectors)
        return to_dtype(self.model.from_vectors(vectors, shape), facts.dtype)

    @property
    def _is_whole(self) -> bool:
        """Whether rows are coded as bitstreams are."""
        remembers = any(model.memory is not None for model in self.whole.each)
        return self.model.format == 2 or remembers or self.model.weighting is not None

    @cached_property
    def _rows_model(self) -> KltModel:
        """The model with a transform that keeps rows apart."""
        transform = self.model.transform
        values = {field.name: getattr(transform, field.name) for field in fields(transform)}
        return replace(self.model, transform=_RowsTransform(**values))

    def _coded(self, clusters: np.ndarray, symbols: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What the entropy coder is given, and the table of each: the clusters' indexes, where there are
        several, and the symbols, vector by vector."""
        model = self.model.tables_at(self.grade)
        stream, indexes = symbols.ravel(), model.chosen[clusters].ravel()
        if self.model.transform.layout.tells_cluster:
            last = np.full(len(clusters), len(model.bank.freqs), np.int32)
            stream, indexes = np.append(clusters, stream), np.append(last, indexes)
        return stream, indexes

    def read_lanes(
        self,
        string: bytes,
        beside: bytes,
        grade: int,
        count: int,
        check: int,
        symbols: bool = False,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The strings of mode 2 -> clusters (R,) int32, components (D, R) float32 in fine steps, and,
        where asked for, symbols (D, R) int32; integers decide alone.

        Raises:
            BitstreamError: the strings are damaged, or too short for so many vectors.
        """
        tables = self.model.scale(grade).tables
        try:
            return coder.decode(tables, string, beside, count, check, symbols)
        except ValueError as error:
            raise BitstreamError(f"corrupted: {error}") from error

    def read_symbols(
        self, data: bytes, grade: int, count: int, check: int = 0, shape: Shape | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """A rANS string -> clusters (R,) int32 and symbols (R, C * S) int32; integers decide alone.

        Args:
            shape: of the feature, whose layers may decide the clusters; None: they do not.

        Raises:
            BitstreamError: the string is damaged, or too short for so many vectors.
        """
        model = self.model.tables_at(grade)
        try:
            rans.check_room(data, count * model.least(self.model.transform.layout.tells_cluster))
            reader = rans.Decoder(data, model.tables)
            clusters, symbols = self._read(reader, model, count, shape)
            reader.finish(check)
        except rans.RansError as error:
            raise BitstreamError(f"corrupted: {error}") from error
        return clusters, symbols

    def _read(
        self,
        reader: rans.Decoder | range_coder.Decoder,
        model: Rung,
        count: int,
        shape: Shape | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The way back of :meth:`_coded`.

        Raises:
            RansError: the string is damaged.
        """
        width, layout = self.model.transform.components, self.model.transform.layout
        owners = layout.owners(shape) if shape else None
        clusters = np.zeros(count, np.int32) if owners is None else owners
        if layout.tells_cluster:
            clusters = reader.decode(np.full(count, len(model.bank.freqs), np.int32))
            if clusters.min() < 0 or clusters.max() >= len(model.chosen):
                raise rans.RansError("a cluster's index is none")
        symbols = np.empty((count, width), np.int32)
        rows = max(1, BLOCK // width)
        for first in range(0, count, rows):
            part = slice(first, first + rows)
            found = reader.decode(model.chosen[clusters[part]].ravel())
            symbols[part] = found.reshape(-1, width)
        return clusters, symbols


class _RowsTransform(Transform):
    """A transform that keeps rows apart: the same row gives the same floats, whatever is beside it.

    The floats of a matrix product depend on its size in their last bits, and a value at the edge between
    two symbols follows them. Here all products of a model are of one size: of one token, of BLOCK_ROWS
    tokens where a matrix is so large that its memory counts, or of a block of a map.
    """

    def product(self, x: np.ndarray, matrix: np.ndarray) -> np.ndarray:
        count, channels = x.shape
        rows = 1 if matrix.size <= SMALL else BLOCK_ROWS
        blocks = np.zeros((-(-count // rows), rows, channels), np.float32)
        blocks.reshape(-1, channels)[:count] = x
        return np.matmul(blocks, matrix).reshape(-1, matrix.shape[1])[:count]

    def forward(self, vectors: np.ndarray, cluster: int) -> np.ndarray:
        if vectors.shape[2] == 1:
            return super().forward(vectors, cluster)
        x = vectors - self.mean[cluster]  # (R, C, S)
        if self.basis is not None:
            x = np.matmul(self.basis[cluster].T, x)
        if self.layout.block > 1:
            x = np.matmul(x, dct_basis(self.layout.block))
        return x.reshape(len(x), -1)


def check_quality(quality: float) -> None:
    """Refuse a quality for which there are no tables.

    Raises:
        UserError: it is none of LOWEST .. HIGHEST.
    """
    if not LOWEST <= quality <= HIGHEST:
        raise UserError(f"quality: expected {LOWEST} .. {HIGHEST}, got {quality}")


def check_of(grade: bytes, more: Sequence[bytes], shape: Shape, sealed: int = 0) -> int:
    """CRC-32 of what decides values beside the symbols, behind what has the CRC-32 ``sealed``."""
    return zlib.crc32(b"".join((grade, *more, SHAPE.pack(*shape))), sealed)


def grade_in(part: bytes, transform: Transform) -> int:
    """The quality in 128ths that a bitstream's first part says.

    Raises:
        BitstreamError: it says none.
    """
    if len(part) != 2:
        raise BitstreamError("inconsistent: not the parts of a klt bitstream")
    grade = int.from_bytes(part, "little", signed=True)
    if abs(grade) > MAX_GRADE or transform.step(grade) > LARGEST:
        raise BitstreamError(f"inconsistent: quality {grade / PER_OCTAVE}")
    return grade


def raw_part(vectors: np.ndarray, raw: np.ndarray) -> list[bytes]:
    """The part of the vectors that are sent as they are, if there are any."""
    places = raw.nonzero()[0].astype("<u4")
    if not len(places):
        return []
    exact = vectors[raw].astype("<f4")
    return [len(places).to_bytes(4, "little") + places.tobytes() + exact.tobytes()]


def grade_of(quality: float) -> int:
    """A quality in 128ths.

    Raises:
        UserError: not finite, or too far off.
    """
    if not abs(quality) <= MAX_GRADE / PER_OCTAVE:
        limit = MAX_GRADE // PER_OCTAVE
        raise UserError(f"quality: expected {-limit} .. {limit}, got {quality}")
    return round(PER_OCTAVE * quality)


def put_raw(part: bytes, vectors: np.ndarray) -> np.ndarray:
    """Lay the vectors that were sent as they are over the decoded ones, in place -> their places (n,).

    Raises:
        BitstreamError: the part is not sound.
    """
    count = int.from_bytes(part[:4], "little")
    width = int(np.prod(vectors.shape[1:]))
    if len(part) != 4 + 4 * count * (1 + width) or count > len(vectors):
        raise BitstreamError("inconsistent: raw vectors of another size")
    places = np.frombuffer(part, "<u4", count, 4)
    if count and (places.max() >= len(vectors) or (np.diff(places.astype(np.int64)) <= 0).any()):
        raise BitstreamError("inconsistent: raw vectors at impossible places")
    exact = np.frombuffer(part, "<f4", count * width, 4 + 4 * count)
    if not np.isfinite(exact).all():
        raise BitstreamError("inconsistent: raw values that are not finite")
    vectors[places] = exact.reshape(count, *vectors.shape[1:])
    return places
