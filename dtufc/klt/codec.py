"""The codec without a network behind the common API.

    encode:  x ─ vectors ─ transform / step ─ choose symbols ─ rANS ─> bitstream
    decode:  bitstream ─ rANS ─> symbols ─ * step, inverse transform, post-filter ─ vectors ─> x_hat

Parts of the bitstream: quality (2 bytes, signed, in 128ths); one rANS string of the clusters' indexes,
where there are several, and the symbols, vector by vector; of a model with a memory the references
(:mod:`dtufc.klt.memory`); and, where there are any, the vectors that are sent as they are (count,
places, float32 values). The string's checksum covers all of it and the
shape; in payload mode 0, which earlier versions wrote, it covers the symbols alone.

Guarantees: the symbols depend on the bytes and on integers of the model alone, so that they are the same
on every machine; the floats made of them differ in their last bits at most. What was damaged, or sealed
again by a forger who did not recompute the 31-bit checksum, is taken for sound once in 2^31 times.
"""

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np

from dtufc import files, rans
from dtufc.bitstream import BitstreamError
from dtufc.codec import ExtraKind, OneKindCodec
from dtufc.errors import UserError
from dtufc.klt.model import HIGHEST, LOWEST, PER_OCTAVE, KltModel, rung
from dtufc.views import Shape

MAX_GRADE = 1 << 14  # of either sign, in a file: steps of 2^128 and 2^-128 standard deviations
GRADES = range(LOWEST * PER_OCTAVE, HIGHEST * PER_OCTAVE + 1)
"""Qualities in 128ths for which there are tables; files of earlier versions may name others."""
BLOCK = 1 << 20  # symbols read at a time


class KltCodec(OneKindCodec):
    """Karhunen-Loeve transforms, one step and static tables, for one kind of feature.

    Args:
        quality: log2 of the feature's standard deviation over the step, rounded to 128ths.
    """

    modes = (0, 1)

    def __init__(self, model: KltModel, quality: float):
        self.model, self.facts = model, model.facts
        self.grade = grade_of(quality)

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
    def id(self) -> bytes:
        return self.model.digest

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
        return type(self)(self.model, quality)

    def encode_parts(self, feature: np.ndarray) -> tuple[bytes, ...]:
        vectors = self.facts.views.to_vectors(feature, self.model.transform.layout.block)
        length = self.facts.views.sequence(feature.shape)
        quantised = self.model.quantise(vectors, self.grade, length)
        clusters, symbols, _, raw, references = quantised
        model = self.model.rungs[rung(self.grade)]
        indexes = model.chosen[clusters].ravel()
        stream = symbols.ravel()
        if self.model.transform.layout.clusters > 1:
            last = np.full(len(clusters), len(model.bank.freqs), np.int32)
            stream, indexes = np.append(clusters, stream), np.append(last, indexes)
        grade = self.grade.to_bytes(2, "little", signed=True)
        more = []
        if self.model.memory is not None:
            more.append(self.model.memory.write(clusters, references, length))
        if raw.any():
            places = np.flatnonzero(raw).astype("<u4")
            exact = vectors[raw].astype("<f4")
            more.append(len(places).to_bytes(4, "little") + places.tobytes() + exact.tobytes())
        check = _check(grade, more, feature.shape)
        return grade, rans.encode(stream, indexes, model.tables, check), *more

    def decode_parts(self, parts: tuple[bytes, ...], shape: Shape, mode: int) -> np.ndarray:
        needed = 2 if self.model.memory is None else 3
        if len(parts) not in (needed, needed + 1) or len(parts[0]) != 2:
            raise BitstreamError("inconsistent: not the parts of a klt bitstream")
        grade = int.from_bytes(parts[0], "little", signed=True)
        largest = np.finfo(np.float32).max
        if abs(grade) > MAX_GRADE or self.model.transform.step(grade) > largest:
            raise BitstreamError(f"inconsistent: quality {grade / PER_OCTAVE}")
        block = self.model.transform.layout.block
        count = self.facts.views.count_vectors(shape, block)
        check = _check(parts[0], parts[2:], shape) if mode == 1 else 0
        clusters, symbols = self.read_symbols(parts[1], grade, count, check)
        length = self.facts.views.sequence(shape)
        references = None
        if self.model.memory is not None:
            try:
                references = self.model.memory.read(parts[2], clusters, length)
            except ValueError as error:
                raise BitstreamError(f"corrupted: {error}") from error
        vectors = self.model.restore(clusters, symbols, grade, length, references)
        if len(parts) > needed:
            _put_raw(parts[needed], vectors)
        return self.facts.views.from_vectors(vectors, shape, block)

    def read_symbols(
        self, data: bytes, grade: int, count: int, check: int = 0
    ) -> tuple[np.ndarray, np.ndarray]:
        """A rANS string -> clusters (R,) int32 and symbols (R, C * S) int32; integers decide alone.

        Raises:
            BitstreamError: the string is damaged, or too short for so many vectors.
        """
        model, width = self.model.rungs[rung(grade)], self.model.transform.components
        several = self.model.transform.layout.clusters > 1
        try:
            rans.check_room(data, count * model.least)
            reader = rans.Decoder(data, model.tables)
            clusters = np.zeros(count, np.int32)
            if several:
                clusters = reader.decode(np.full(count, len(model.bank.freqs), np.int32))
                if clusters.min() < 0 or clusters.max() >= len(model.chosen):
                    raise rans.RansError("a cluster's index is none")
            symbols = np.empty((count, width), np.int32)
            rows = max(1, BLOCK // width)
            for first in range(0, count, rows):
                part = slice(first, first + rows)
                found = reader.decode(model.chosen[clusters[part]].ravel())
                symbols[part] = found.reshape(-1, width)
            reader.finish(check)
        except rans.RansError as error:
            raise BitstreamError(f"corrupted: {error}") from error
        return clusters, symbols


def check_quality(quality: float) -> None:
    """Refuse a quality for which there are no tables.

    Raises:
        UserError: it is none of LOWEST .. HIGHEST.
    """
    if not LOWEST <= quality <= HIGHEST:
        raise UserError(f"quality: expected {LOWEST} .. {HIGHEST}, got {quality}")


def _check(grade: bytes, more: Sequence[bytes], shape: Shape) -> int:
    """CRC-32 of what decides values beside the symbols."""
    return zlib.crc32(b"".join([grade, *more, np.array(shape, "<u4").tobytes()]))


def grade_of(quality: float) -> int:
    """A quality in 128ths.

    Raises:
        UserError: not finite, or too far off.
    """
    if not abs(quality) <= MAX_GRADE / PER_OCTAVE:
        limit = MAX_GRADE // PER_OCTAVE
        raise UserError(f"quality: expected {-limit} .. {limit}, got {quality}")
    return round(PER_OCTAVE * quality)


def _put_raw(part: bytes, vectors: np.ndarray) -> None:
    """Lay the vectors that were sent as they are over the decoded ones, in place."""
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
