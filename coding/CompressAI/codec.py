"""The learned codecs behind the common API: transform, pack, pad, networks, entropy coding.

    encode:  x ─ mapping ─> u ─ pack ─> plane ─ pad ─> g_a, h_a ─> symbols ─ rANS ─> bitstream
    decode:  bitstream ─ rANS ─> symbols ─> y_hat ─ g_s ─> plane ─ unpad, unpack ─> u ─ mapping ─> x_hat

Two modes, told apart in the bitstream:

* ours: the plane is padded below and to the right with the level of 0.0; latents that stand for
  padding alone are not sent (they decode to their mean); z and y share one rANS string.
* published: the plane is padded on all sides with 0, CompressAI's own ``compress`` makes one string
  for z and one for each part of y. For like-for-like comparison with published figures.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Self

import numpy as np
import torch
from compressai.entropy_models import EntropyModel
from compressai.ops import compute_padding
from torch import Tensor
from torch.nn import functional as F

from coding import files, rans
from coding.bitstream import ID_BYTES, MAX_POINTS, Bitstream, BitstreamError, pack, unpack
from coding.codec import Codec, ExtraKind
from coding.CompressAI.checkpoint import Kind, load_kinds, load_model
from coding.CompressAI.models import LATENT_STRIDE, STRIDE, Elic, Hyperprior
from coding.devices import check_device, fast_bf16
from coding.feature import FeatureError, check_feature

OURS, PUBLISHED = 0, 1
"""Payload modes of the bitstream."""


class LearnedCodec(Codec):
    """Hyperprior or ELIC with the mappings of the kinds of features that it knows.

    Args:
        model: a model with its entropy tables.
        kinds: what it codes.
        device: where the networks run.
        published: encode in the published mode; decoding goes by the bitstream.
    """

    def __init__(
        self,
        model: Hyperprior | Elic,
        kinds: Sequence[Kind],
        device: str = "cpu",
        published: bool = False,
    ):
        self.kinds = {kind.facts.kind: kind for kind in kinds}
        self.published = published
        self.device = check_device(device)
        self.tables, self.latent_table = _tables(model)
        self._id = _identify(model)
        scale_table = model.conditional.scale_table
        self.scale_edges = (scale_table[:-1] * scale_table[1:]).sqrt().to(self.device)
        for module in model.modules():
            if isinstance(module, EntropyModel):
                module.entropy_coder = _CheckedCoder(module.entropy_coder)
        self.model = model.eval().to(self.device, memory_format=torch.channels_last)
        self.model.amp = fast_bf16(self.device)

    @classmethod
    def load(
        cls, folder: Path, *, device: str, published: bool, kinds: Sequence[ExtraKind]
    ) -> Self:
        model, values = load_model(folder)
        known = load_kinds(folder, values)
        return cls(model, [*known, *(Kind.from_files(extra) for extra in kinds)], device, published)

    @property
    def id(self) -> bytes:
        return self._id

    @property
    def identity(self) -> str:
        parts = [self.id, *(self.kinds[name].mapping.id for name in sorted(self.kinds))]
        return files.digest(*parts)

    @torch.inference_mode()
    def encode(self, feature: np.ndarray, kind: str | None = None) -> bytes:
        chosen = self._choose(check_feature(feature), kind)
        packing = chosen.facts.packing
        if _padded_points(packing.plane(feature.shape)) > MAX_POINTS:
            raise FeatureError(f"{feature.shape}: too large for one bitstream, split the feature")
        plane = packing.pack(chosen.mapping.forward(feature))  # (P, Q) in [0, 1)
        if self.published:
            parts = self._compress_published(plane)
        else:
            parts = (self._compress(plane, chosen.mapping.zero),)
        return pack(
            Bitstream(
                codec_id=self.id[:ID_BYTES],
                mapping_id=chosen.mapping.id[:ID_BYTES],
                dtype=feature.dtype.name,
                shape=feature.shape,
                packing=packing,
                parts=parts,
                mode=PUBLISHED if self.published else OURS,
            )
        )

    @torch.inference_mode()
    def decode(self, data: bytes) -> np.ndarray:
        stream = unpack(data)
        stream.check_codec(self.id)
        for kind in self.kinds.values():
            if kind.mapping.id[:ID_BYTES] == stream.mapping_id:
                break
        else:
            known = [kind.mapping.id[:ID_BYTES].hex() for kind in self.kinds.values()]
            raise BitstreamError(
                f"written with mapping {stream.mapping_id.hex()}, this codec has {known}"
            )
        stream.check_facts(kind.facts)
        _check_size(stream)
        size = stream.packing.plane(stream.shape)
        try:
            if stream.mode == OURS:
                plane = self._decompress(stream.parts, size)
            elif stream.mode == PUBLISHED:
                plane = self._decompress_published(stream.parts, size)
            else:
                raise BitstreamError(f"inconsistent: payload mode {stream.mode} is not known")
        except rans.RansError as error:
            raise BitstreamError(f"corrupted: {error}") from error
        feature = kind.mapping.inverse(stream.packing.unpack(plane, stream.shape))
        return feature.astype(stream.dtype)

    def latent_indexes(self, scales: Tensor) -> Tensor:
        """Tables of y's elements, (same shape) int: the table whose scale is nearest in the log domain.

        CompressAI takes the next larger scale, which costs four times the excess rate
        (up to 13% in scale, 1 to 2% in bits at low rates).
        """
        return torch.bucketize(scales.contiguous(), self.scale_edges) + self.latent_table

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

    def _compress(self, plane: np.ndarray, zero: float) -> bytes:
        p, q = plane.shape
        x = torch.from_numpy(plane)[None, None].to(self.device)  # (1, 1, P, Q)
        x = F.pad(x, (0, -q % STRIDE, 0, -p % STRIDE), value=zero)
        y, z = self.model.analysis(x.contiguous(memory_format=torch.channels_last))
        coder = SymbolEncoder(self)
        self.model.walk(coder, y, z, _coded_mask(p, q, self.device))
        return coder.finish()

    def _decompress(self, parts: tuple[bytes, ...], size: tuple[int, int]) -> np.ndarray:
        if len(parts) != 1:
            raise BitstreamError(f"inconsistent: {len(parts)} parts, expected 1")
        p, q = size
        coder = SymbolDecoder(self, parts[0], (-(-p // STRIDE), -(-q // STRIDE)))
        y_hat = self.model.walk(coder, mask=_coded_mask(p, q, self.device))
        coder.reader.finish()
        return self._synthesis(y_hat)[:p, :q]

    def _synthesis(self, y_hat: Tensor) -> np.ndarray:
        x_hat = self.model.net(self.model.g_s, y_hat)
        return x_hat[0, 0].clamp(0, 1).contiguous().cpu().numpy()

    def _compress_published(self, plane: np.ndarray) -> tuple[bytes, ...]:
        pad, _ = compute_padding(*plane.shape, min_div=STRIDE)
        x = torch.from_numpy(plane)[None, None].to(self.device)
        strings = self.model.compress(F.pad(x, pad))["strings"]
        return tuple(string for (string,) in strings)  # one feature: one string each

    def _decompress_published(self, parts: tuple[bytes, ...], size: tuple[int, int]) -> np.ndarray:
        pad, unpad = compute_padding(*size, min_div=STRIDE)
        p, q = size[0] + pad[2] + pad[3], size[1] + pad[0] + pad[1]
        hyper = torch.Size((p // STRIDE, q // STRIDE))
        if isinstance(self.model, Elic):
            latent = (p // LATENT_STRIDE, q // LATENT_STRIDE)
            shape = {"hyper": hyper, "y": [(count, *latent) for count in self.model.groups]}
            expected = 2 * len(self.model.groups) + 1
        else:
            shape, expected = hyper, 2
        if len(parts) != expected:
            raise BitstreamError(f"inconsistent: {len(parts)} parts, expected {expected}")
        x_hat = self.model.decompress([[part] for part in parts], shape)["x_hat"]
        return F.pad(x_hat, unpad)[0, 0].contiguous().cpu().numpy()


class SymbolEncoder:
    """Latent coder that quantises to symbols and remembers them in order; see models.LatentCoder."""

    def __init__(self, codec: LearnedCodec):
        self.codec = codec
        self.symbols: list[Tensor] = []
        self.indexes: list[Tensor] = []

    def hyper(self, z: Tensor) -> Tensor:
        medians = _medians(self.codec.model)
        symbols = torch.round(z - medians)
        self._add(symbols, _hyper_indexes(symbols))
        return symbols + medians

    def latent(self, y, scales, means, mask) -> Tensor:
        symbols = torch.round(y if means is None else y - means) * mask
        coded = mask.expand_as(symbols)
        self._add(symbols[coded], self.codec.latent_indexes(scales)[coded])
        return symbols if means is None else symbols + means

    def _add(self, symbols: Tensor, indexes: Tensor) -> None:
        self.symbols.append(symbols.flatten())
        self.indexes.append(indexes.flatten())

    def finish(self) -> bytes:
        symbols = torch.cat(self.symbols).to(torch.int32).cpu().numpy()
        indexes = torch.cat(self.indexes).to(torch.int32).cpu().numpy()
        return rans.encode(symbols, indexes, self.codec.tables)


class SymbolDecoder:
    """Latent coder that reads symbols back; the mirror of :class:`SymbolEncoder`."""

    def __init__(self, codec: LearnedCodec, data: bytes, hyper_size: tuple[int, int]):
        self.codec = codec
        self.hyper_size = hyper_size
        self.reader = rans.Decoder(data, codec.tables)

    def hyper(self, z: None) -> Tensor:
        medians = _medians(self.codec.model)
        shape = (1, medians.size(1), *self.hyper_size)
        indexes = _hyper_indexes(torch.empty(shape, device=self.codec.device))
        return self._read(indexes).reshape(shape) + medians

    def latent(self, y: None, scales, means, mask) -> Tensor:
        coded = mask.expand_as(scales)
        symbols = torch.zeros_like(scales)
        symbols[coded] = self._read(self.codec.latent_indexes(scales)[coded])
        return symbols if means is None else symbols + means

    def _read(self, indexes: Tensor) -> Tensor:
        symbols = self.reader.decode(indexes.to(torch.int32).cpu().numpy())
        return torch.from_numpy(symbols).to(self.codec.device, torch.float32)


class _CheckedCoder:
    """CompressAI's coder for writing, with a decoder that never reads outside the string."""

    def __init__(self, stock):
        self.encode_with_indexes = stock.encode_with_indexes

    def decode_with_indexes(self, string, indexes, cdfs, sizes, offsets) -> list[int]:
        tables = rans.Tables(np.array(cdfs), np.array(sizes), np.array(offsets))
        return rans.decode_compressai(string, np.array(indexes), tables).tolist()


def _check_size(stream: Bitstream) -> None:
    """Refuse a bitstream of a plane that encoding refuses."""
    if _padded_points(stream.packing.plane(stream.shape)) > MAX_POINTS:
        raise BitstreamError(f"inconsistent: the plane of {stream.shape} is too large")


def _padded_points(size: tuple[int, int]) -> int:
    return (-(-size[0] // STRIDE) * STRIDE) * (-(-size[1] // STRIDE) * STRIDE)


def _medians(model: Hyperprior | Elic) -> Tensor:
    return model.hyper_bottleneck._get_medians().reshape(1, -1, 1, 1)  # (1, N, 1, 1)


def _hyper_indexes(z: Tensor) -> Tensor:
    """The table of z's element is its channel: (1, N, h, w) int."""
    return torch.arange(z.size(1), device=z.device).reshape(1, -1, 1, 1).expand_as(z)


def _coded_mask(p: int, q: int, device: torch.device) -> Tensor:
    """(1, 1, h, w) bool over the latents of the padded plane: True where they cover real values."""
    h, w = (-(-size // STRIDE) * STRIDE // LATENT_STRIDE for size in (p, q))
    mask = torch.zeros(1, 1, h, w, dtype=torch.bool, device=device)
    mask[..., : -(-p // LATENT_STRIDE), : -(-q // LATENT_STRIDE)] = True
    return mask


def _tables(model: Hyperprior | Elic) -> tuple[rans.Tables, int]:
    """The tables of z (one a channel) followed by those of y (one a scale), and where y's begin."""
    z, y = model.hyper_bottleneck, model.conditional
    if not z._quantized_cdf.numel() or not y._quantized_cdf.numel():
        raise ValueError("the model has no entropy tables: save it with save_checkpoint")
    rows = [table._quantized_cdf.cpu().numpy() for table in (z, y)]
    cdf = np.zeros((sum(map(len, rows)), max(row.shape[1] for row in rows)), dtype=np.int32)
    cdf[: len(rows[0]), : rows[0].shape[1]] = rows[0]
    cdf[len(rows[0]) :, : rows[1].shape[1]] = rows[1]
    length, offset = (
        torch.cat([getattr(table, name).reshape(-1) for table in (z, y)]).cpu().numpy()
        for name in ("_cdf_length", "_offset")
    )
    return rans.Tables(cdf, length, offset), len(rows[0])


def _identify(model: Hyperprior | Elic) -> bytes:
    """SHA-256 over the architecture and every weight and table; mappings have ids of their own."""
    hasher = hashlib.sha256(json.dumps([type(model).__name__, asdict(model.arch)]).encode())
    for name, value in sorted(model.state_dict().items()):
        hasher.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        hasher.update(value.detach().cpu().contiguous().numpy().tobytes())
    return hasher.digest()
