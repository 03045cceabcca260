"""The learned codecs behind the common API: transform, pack, pad, networks, entropy coding.

    encode:  x ─ mapping ─> u ─ pack ─> plane ─ pad ─> g_a, h_a ─> symbols ─ rANS ─> bitstream
    decode:  bitstream ─ rANS ─> symbols ─> y_hat ─ g_s ─> plane ─ unpad, unpack ─> u ─ mapping ─> x_hat

A plane is (1, 1, P, Q). For the codec ``native`` it is (B, K, P, Q), the feature in its own layout.

Two ways, told apart by the payload's mode in the bitstream:

* ours: the plane is padded below and to the right with the level of 0.0; latents that stand for
  padding alone are not sent (they decode to their mean); z and y share one rANS string. What decides
  the symbols is computed in integers (frozen.py), so that every device decodes what another encoded. A
  plane larger than a tile is coded in tiles, each for itself, so that memory does not grow with it. Each
  string's checksum covers the shape and the tile's place too (but not in mode 0, of earlier versions).
* published: the plane is padded on all sides with 0, CompressAI's own ``compress`` makes one string
  for z and one for each part of y. For like-for-like comparison with published figures.
"""

import copy
import hashlib
import json
import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Self, TypeVar

import numpy as np
import torch
from compressai.entropy_models import EntropyModel
from compressai.ops import compute_padding
from torch import Tensor
from torch.nn import functional as F

from dtufc import files, rans
from dtufc.bitstream import ID_BYTES, MAX_POINTS, Bitstream, BitstreamError, pack, unpack
from dtufc.codec import Codec, ExtraKind, to_dtype
from dtufc.CompressAI.checkpoint import WEIGHTS, Kind, load_frozen, load_kinds, load_model
from dtufc.CompressAI.frozen import FrozenNets
from dtufc.CompressAI.models import Elic, Model
from dtufc.CompressAI.symbols import SymbolDecoder, SymbolEncoder, SymbolTables
from dtufc.devices import check_device, fast_bf16, limit_threads
from dtufc.errors import UserError
from dtufc.feature import FeatureError, FeatureFacts, check_feature
from dtufc.views import Shape, Views

UNSEALED, PUBLISHED, OURS = 0, 1, 2
"""Payload modes of the bitstream: as earlier versions wrote ours, the published one, ours."""
GRAIN = 64
"""Tiles are multiples of this."""
TILE = 512
"""Planes longer or wider than this are coded in tiles, by default: less memory, and faster, because what
the networks pass on stays nearer to the processor."""
Size = tuple[int, int]
Place = tuple[slice, slice]
T = TypeVar("T")


class LearnedCodec(Codec):
    """A learned codec with the mappings of the kinds of features that it knows.

    Guarantees:

    * Symbols and latents are exact in our own mode: every device, thread count and library version
      decodes those that were encoded. A decoder that errs all the same, a foreign one say, is refused
      by a checksum of 31 bits, which misses one error in 2^31. In the published mode floats decide.
    * Values are not exact. g_s runs over floats, whose noise depends on threads, processor and library.
      Where u_hat lies at the edge between two levels, the value moves to the neighbouring level's
      centre: by one gap of the codebook at most, but in its tails a gap may be several units. Between
      g_s in bf16 (CUDA, AMX) and in float32 it is a few levels. With continuous assignment values move
      in proportion to the noise.

    Args:
        model: a model with its entropy tables.
        tables: these tables.
        frozen: the integers by which its symbols are coded.
        id: SHA-256 of both.
        kinds: what it codes.
        device: where the networks run.
        published: encode in the published mode; decoding goes by the bitstream.
    """

    tile = TILE
    """Longest side of a plane that is coded as one; see :meth:`at_tile`."""

    def __init__(
        self,
        model: Model,
        tables: SymbolTables,
        frozen: FrozenNets,
        id: bytes,
        kinds: Sequence[Kind],
        device: str = "cpu",
        published: bool = False,
    ):
        if published and model.native:
            raise UserError("published: native is no codec of the paper's")
        self.kinds = {kind.facts.kind: kind for kind in kinds}
        self.published = published
        self.device = check_device(device)
        self.tables = tables
        self._id = id
        for module in model.modules():
            if isinstance(module, EntropyModel):
                module.entropy_coder = _CheckedCoder(module.entropy_coder)
        self.model = model.eval().to(self.device, memory_format=torch.channels_last)
        self.model.amp = fast_bf16(self.device)
        self.nets = frozen.to(self.device)

    @classmethod
    def load(
        cls, folder: Path, *, device: str, published: bool, kinds: Sequence[ExtraKind]
    ) -> Self:
        model, values = load_model(folder)
        try:
            tables = SymbolTables(model)
        except UserError as error:
            raise UserError(f"{folder / WEIGHTS}: {error}") from error
        frozen, integers = load_frozen(folder, model)
        known = [*load_kinds(folder, values), *(Kind.from_files(extra) for extra in kinds)]
        return cls(model, tables, frozen, _identify(model, integers), known, device, published)

    @property
    def id(self) -> bytes:
        return self._id

    @property
    def identity(self) -> str:
        parts = [
            self.id,
            str(self.tile),
            *(self.kinds[name].mapping.id for name in sorted(self.kinds)),
        ]
        return files.digest(*parts)

    def rows_id(self, kind: str) -> bytes:
        super().rows_id(kind)
        return hashlib.sha256(self.id + self.kinds[kind].mapping.id).digest()

    def at_tile(self, tile: int) -> Self:
        if tile < 0 or tile % GRAIN:
            raise UserError(f"tile: expected 0 or a multiple of {GRAIN}, got {tile}")
        changed = copy.copy(self)
        changed.tile = tile
        return changed

    @property
    def known(self) -> Sequence[FeatureFacts]:
        return [kind.facts for kind in self.kinds.values()]

    @torch.inference_mode()
    def encode_array(self, feature: np.ndarray, kind: str | None = None) -> bytes:
        chosen = self._choose(check_feature(feature), kind)
        views = chosen.facts.views
        if misfit := self._misfit(self._size(views, feature.shape)):
            raise FeatureError(f"{feature.shape}: {misfit}")
        plane = self._arrange(views, chosen.mapping.forward(feature))  # (B, K, P, Q) in [0, 1)
        if self.published:
            parts = self._compress_published(plane)
        else:
            parts = self._compress(plane, chosen.mapping.zero, feature.shape)
        return pack(
            Bitstream(
                codec_id=self.id[:ID_BYTES],
                mapping_id=chosen.mapping.id[:ID_BYTES],
                dtype=feature.dtype.name,
                shape=feature.shape,
                grid=views.grid(feature.shape[1]),
                parts=parts,
                mode=PUBLISHED if self.published else OURS,
            )
        )

    def network_input(self, feature: np.ndarray, kind: str | None = None) -> Tensor:
        """(N, C, H, W) -> the padded plane (B, K, P, Q) that the networks see, whole.

        Raises:
            FeatureError: as :meth:`encode`.
        """
        chosen = self._choose(check_feature(feature), kind)
        plane = self._arrange(chosen.facts.views, chosen.mapping.forward(feature))
        return self._pad(plane, chosen.mapping.zero)

    @torch.inference_mode()
    def decode_array(self, data: bytes, *, max_points: int = MAX_POINTS) -> np.ndarray:
        stream = unpack(data, max_points)
        stream.check_codec(self.id)
        kind = self._kind_of(stream)
        views = kind.facts.views
        size = self._size(views, stream.shape)
        if misfit := self._misfit(size):
            raise BitstreamError(f"inconsistent: {stream.shape}: {misfit}")
        try:
            if stream.mode in (UNSEALED, OURS):
                sealed = stream.shape if stream.mode == OURS else None
                plane = self._decompress(stream.parts, size, sealed)
            elif stream.mode == PUBLISHED and not self.model.native:
                plane = self._decompress_published(stream.parts, size)
            else:
                raise BitstreamError(f"inconsistent: payload mode {stream.mode} is not known")
        except rans.RansError as error:
            raise BitstreamError(f"corrupted: {error}") from error
        if self.model.native:
            u = views.from_native(plane, stream.shape)
        else:
            u = views.unpack(plane[0, 0], stream.shape)
        return to_dtype(kind.mapping.inverse(u), stream.dtype)

    def _arrange(self, views: Views, u: np.ndarray) -> np.ndarray:
        """(N, C, H, W) -> the plane (B, K, P, Q)."""
        return views.to_native(u) if self.model.native else views.pack(u)[None, None]

    def _size(self, views: Views, shape: Shape) -> Shape:
        """(B, K, P, Q) of the plane of a feature."""
        return views.native_size(shape) if self.model.native else (1, 1, *views.plane(shape))

    def _misfit(self, size: Shape) -> str | None:
        """Why a plane is not coded, or ``None``."""
        if self.model.native and size[1] != self.model.arch.inputs:
            return f"this codec takes {self.model.arch.inputs} channels, not {size[1]}"
        points = math.prod((*size[:2], *_padded(size[2:], self.model)))
        return "too large for one bitstream, split the feature" if points > MAX_POINTS else None

    def _choose(self, feature: np.ndarray, name: str | None) -> Kind:
        if name is not None:
            if name not in self.kinds:
                raise FeatureError(f"this codec knows {sorted(self.kinds)}, not {name!r}")
            mismatch = self.kinds[name].facts.mismatch(feature)
            if mismatch:
                raise FeatureError(mismatch)
            return self.kinds[name]
        mismatches = {k: kind.facts.mismatch(feature) for k, kind in self.kinds.items()}
        fits = [k for k, mismatch in mismatches.items() if mismatch is None]
        if not fits:
            raise FeatureError("; ".join(m for m in mismatches.values() if m) or "no kinds known")
        if len(fits) > 1:
            raise FeatureError(f"the feature fits several kinds, name one of {fits}")
        return self.kinds[fits[0]]

    def _kind_of(self, stream: Bitstream) -> Kind:
        """The kind that a bitstream is of, by its mapping and what it announces.

        Where several fit, any will do: values depend on the mapping and on what is announced alone.
        """
        mapped = [
            kind for kind in self.kinds.values() if kind.mapping.id[:ID_BYTES] == stream.mapping_id
        ]
        if not mapped:
            known = [kind.mapping.id[:ID_BYTES].hex() for kind in self.kinds.values()]
            raise BitstreamError(
                f"written with mapping {stream.mapping_id.hex()}, this codec has {known}"
            )
        why = []
        for kind in mapped:
            try:
                stream.check_facts(kind.facts)
            except BitstreamError as error:
                why.append(str(error))
            else:
                return kind
        raise BitstreamError("; ".join(why))

    def _compress(self, plane: np.ndarray, zero: float, feature: Shape) -> tuple[bytes, ...]:
        """One string; or, of a plane larger than a tile, the tiles' size and a string per tile.

        Args:
            feature: the shape that the strings are sealed with.
        """
        size = tile_size(plane.shape[2:], self.tile)
        places = list(tiles(plane.shape[2:], size))
        parts = [_write_tile_size(size)] if len(places) > 1 else []

        def code(place: Place) -> bytes:
            return self._analyse(plane[..., *place], zero).finish(_seal(feature, place))

        return tuple(parts + self._each(code, places))

    def _each(self, code: Callable[..., T], *tiles: Sequence) -> list[T]:
        """``code`` of every tile, two at a time: the entropy coding of one overlaps the networks of the
        other, and on a CPU two single threads get further than a team of two."""
        threads = torch.get_num_threads()
        if len(tiles[0]) < 2 or (threads < 2 and self.device.type == "cpu"):
            return [code(*each) for each in zip(*tiles, strict=True)]
        share = max(1, threads // 2)
        with ThreadPoolExecutor(2, initializer=limit_threads, initargs=(share,)) as pool:
            return list(pool.map(torch.inference_mode(code), *tiles))

    def _analyse(self, plane: np.ndarray, zero: float) -> SymbolEncoder:
        """(B, K, p, q) in [0, 1) -> its symbols."""
        y, z = self.model.analysis(self._pad(plane, zero))
        coder = SymbolEncoder(self.nets, self.tables)
        self.model.walk(coder, y, z, _coded_mask(plane.shape[2:], self.model, self.device))
        return coder

    def _pad(self, plane: np.ndarray, zero: float) -> Tensor:
        """(B, K, p, q) -> (B, K, P, Q) on the device, P and Q multiples of the model's stride."""
        p, q = plane.shape[2:]
        rows, cols = _padded((p, q), self.model)
        x = torch.from_numpy(np.ascontiguousarray(plane)).to(self.device)
        x = F.pad(x, (0, cols - q, 0, rows - p), value=zero)
        return x.contiguous(memory_format=torch.channels_last)

    def _decompress(
        self, parts: tuple[bytes, ...], shape: Shape, sealed: Shape | None = None
    ) -> np.ndarray:
        """The strings -> the plane (B, K, P, Q) = ``shape``.

        Args:
            sealed: shape of the feature that the strings are sealed with; ``None``: they are not.
        """
        size = shape[2:]
        if len(parts) > 1:
            size, parts = _read_tile_size(parts[0]), parts[1:]
        count = math.prod(-(-length // step) for length, step in zip(shape[2:], size, strict=True))
        if len(parts) != count:
            raise BitstreamError(f"inconsistent: {len(parts)} strings, expected {count}")
        places = list(tiles(shape[2:], size))
        for place, string in zip(places, parts, strict=True):
            p, q = (where.stop - where.start for where in place)
            bits = self.tables.least_bits(
                shape[0] * math.prod(_hyper_size((p, q), self.model)),
                shape[0] * math.prod(_coded_size((p, q), self.model)),
            )
            rans.check_room(string, sum(bits))
        plane = np.empty(shape, np.float32)

        def code(place: Place, string: bytes) -> None:
            p, q = (where.stop - where.start for where in place)
            hyper = (shape[0], self.tables.latent, *_hyper_size((p, q), self.model))
            coder = SymbolDecoder(self.nets, self.tables, string, hyper)
            y_hat = self.model.walk(coder, mask=_coded_mask((p, q), self.model, self.device))
            coder.finish(0 if sealed is None else _seal(sealed, place))
            plane[..., *place] = self._synthesis(y_hat)[..., :p, :q]

        self._each(code, places, parts)
        return plane

    def _synthesis(self, y_hat: Tensor) -> np.ndarray:
        x_hat = self.model.net(self.model.g_s, y_hat)
        return x_hat.clamp(0, 1).contiguous().cpu().numpy()

    def _compress_published(self, plane: np.ndarray) -> tuple[bytes, ...]:
        pad, _ = compute_padding(*plane.shape[2:], min_div=self.model.stride[0])
        x = torch.from_numpy(plane).to(self.device)
        strings = self.model.compress(F.pad(x, pad))["strings"]
        return tuple(string for (string,) in strings)  # one feature: one string each

    def _decompress_published(self, parts: tuple[bytes, ...], size: Shape) -> np.ndarray:
        padded = _padded(size[2:], self.model)
        _, unpad = compute_padding(*size[2:], min_div=self.model.stride[0])
        hyper = torch.Size(_hyper_size(padded, self.model))
        latent = _coded_size(padded, self.model)
        if isinstance(self.model, Elic):
            shape = {"hyper": hyper, "y": [(count, *latent) for count in self.model.groups]}
            # per group a string of its anchors and one of the others
            channels = [count / 2 for count in self.model.groups for _ in range(2)]
        else:
            shape, channels = hyper, [self.model.arch.M]
        if len(parts) != len(channels) + 1:
            raise BitstreamError(f"inconsistent: {len(parts)} parts, expected {len(channels) + 1}")
        *y_parts, z_part = parts
        z_bits, y_bits = self.tables.least_bits(math.prod(hyper), math.prod(latent))
        rans.check_room(z_part, z_bits)
        for part, count in zip(y_parts, channels, strict=True):
            rans.check_room(part, y_bits * count / self.model.arch.M)
        x_hat = self.model.decompress([[part] for part in parts], shape)["x_hat"]
        return F.pad(x_hat, unpad).contiguous().cpu().numpy()


class _CheckedCoder:
    """CompressAI's coder for writing, with a decoder that never reads outside the string."""

    def __init__(self, stock):
        self.encode_with_indexes = stock.encode_with_indexes

    def decode_with_indexes(self, string, indexes, cdfs, sizes, offsets) -> list[int]:
        tables = rans.Tables(np.array(cdfs), np.array(sizes), np.array(offsets))
        return rans.decode_compressai(string, np.array(indexes), tables).tolist()


def _padded(size: Size, model: Model) -> Size:
    """The multiples of the model's stride that hold a plane of ``size``."""
    rows, cols = (
        -(-length // step) * step for length, step in zip(size, model.stride, strict=True)
    )
    return rows, cols


def _hyper_size(size: Size, model: Model) -> Size:
    """Rows and columns of z."""
    p, q = _padded(size, model)
    return p // model.stride[0], q // model.stride[1]


def _coded_size(size: Size, model: Model) -> Size:
    """Rows and columns of the latents that cover real values."""
    rows, cols = (
        -(-length // step) for length, step in zip(size, model.latent_stride, strict=True)
    )
    return rows, cols


def _coded_mask(size: Size, model: Model, device: torch.device) -> Tensor:
    """(1, 1, h, w) bool over the latents of the padded plane: True where they cover real values."""
    h, w = _coded_size(_padded(size, model), model)
    rows, cols = _coded_size(size, model)
    mask = torch.zeros(1, 1, h, w, dtype=torch.bool, device=device)
    mask[..., :rows, :cols] = True
    return mask


def tile_size(plane: Size, tile: int) -> Size:
    """Size of the tiles of a plane: multiples of 64, as equal as these can be, no longer than ``tile``
    (unless that is 0)."""
    counts = [-(-length // tile) if tile else 1 for length in plane]
    rows, cols = (
        -(-length // (count * GRAIN)) * GRAIN for length, count in zip(plane, counts, strict=True)
    )
    return rows, cols


def tiles(plane: Size, size: Size) -> Iterator[Place]:
    """Rows and columns of each tile of a plane, row by row."""
    for top in range(0, plane[0], size[0]):
        for left in range(0, plane[1], size[1]):
            bottom, right = min(top + size[0], plane[0]), min(left + size[1], plane[1])
            yield slice(top, bottom), slice(left, right)


def _seal(feature: Shape, place: Place) -> int:
    """CRC-32 of what says where a tile's values belong."""
    numbers = [*feature, *(end for side in place for end in (side.start, side.stop))]
    return zlib.crc32(np.array(numbers, "<u4").tobytes())


def _write_tile_size(size: Size) -> bytes:
    return b"".join((length // GRAIN).to_bytes(2, "little") for length in size)


def _read_tile_size(part: bytes) -> Size:
    size = tuple(int.from_bytes(part[i : i + 2], "little") * GRAIN for i in (0, 2))
    if len(part) != 4 or min(size) < 1:
        raise BitstreamError("inconsistent: no size of tiles")
    return size


def _identify(model: Model, integers: dict[str, Tensor]) -> bytes:
    """SHA-256 over the architecture and every weight, table and integer; mappings have ids of their
    own."""
    hasher = hashlib.sha256(json.dumps([type(model).__name__, asdict(model.arch)]).encode())
    for name, value in [*sorted(model.state_dict().items()), *sorted(integers.items())]:
        hasher.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        hasher.update(value.detach().cpu().contiguous().numpy().tobytes())
    return hasher.digest()
