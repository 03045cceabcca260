"""From latents to symbols and back: the latent coders that stand before the entropy coder.

Both walk a model's latents (``models``) and run what decides entropy parameters through its frozen
form, so that the decoder sees the very numbers that the encoder saw. Latents that stand for padding
alone are not coded and decode to their mean.
"""

import zlib
from typing import Protocol

import torch
from torch import Tensor, nn

from dtufc import rans
from dtufc.CompressAI.models import Model
from dtufc.errors import UserError


class EntropyNets(Protocol):
    """What decides how symbols are coded: a FrozenNets, or a FloatNets to compare it with."""

    medians: Tensor
    """(N,) of z."""

    def run(self, module: nn.Module, x: Tensor) -> Tensor:
        """What a network that decides entropy parameters makes of x."""

    def table_indexes(self, scales: Tensor) -> Tensor:
        """Scales -> number of the table, (same shape) int."""


_WIDEST = (1 << rans.PRECISION) + 2
"""Columns of a matrix of tables, at most: a row increases from 0 to 2^16."""


class SymbolTables:
    """The tables of z (one per channel) followed by those of y (one per scale).

    Raises:
        UserError: the model has none, or they are not sound.
    """

    def __init__(self, model: Model):
        z, y = model.hyper_bottleneck, model.conditional
        if not z._quantized_cdf.numel() or not y._quantized_cdf.numel():
            raise UserError("the model has no entropy tables: save it with save_checkpoint")
        rows = [table._quantized_cdf.cpu() for table in (z, y)]
        if any(row.ndim != 2 or row.size(1) > _WIDEST for row in rows):
            raise UserError(f"tables: _quantized_cdf: expected rows of up to {_WIDEST} values")
        if [len(row) for row in rows] != [model.arch.N, y.scale_table.numel()]:
            raise UserError("tables: _quantized_cdf: expected a row per channel of z and per scale")
        self.latent = len(rows[0])  # y's first table
        self.channels = model.arch.M
        cdf = torch.zeros(sum(map(len, rows)), max(row.size(1) for row in rows), dtype=torch.int32)
        cdf[: self.latent, : rows[0].size(1)] = rows[0]
        cdf[self.latent :, : rows[1].size(1)] = rows[1]
        length, offset = (
            torch.cat([getattr(table, name).reshape(-1) for table in (z, y)]).cpu().numpy()
            for name in ("_cdf_length", "_offset")
        )
        try:
            self.tables = rans.Tables(cdf.numpy(), length, offset)
        except ValueError as error:
            raise UserError(str(error)) from error

    def least_bits(self, hyper: int, latents: int) -> tuple[float, float]:
        """The fewest bits that z at so many positions and y at so many take, whatever they are."""
        least = self.tables.least
        z_bits = hyper * float(least[: self.latent].sum())
        return z_bits, latents * self.channels * float(least[self.latent :].min())


class SymbolEncoder:
    """Latent coder that quantises to symbols and remembers them in order; see models/base.py."""

    def __init__(self, nets: EntropyNets, tables: SymbolTables):
        self.nets, self.tables = nets, tables
        self.symbols: list[Tensor] = []
        self.indexes: list[Tensor] = []
        self.latents: list[Tensor] = []

    def run(self, module: nn.Module, x: Tensor, bf16: bool = False) -> Tensor:
        return self.nets.run(module, x)

    def hyper(self, z: Tensor) -> Tensor:
        medians = self.nets.medians.reshape(1, -1, 1, 1)
        symbols = torch.round(z - medians)
        channels = torch.arange(z.size(1), device=z.device).reshape(1, -1, 1, 1)
        self._add(symbols, channels.expand_as(z), None)
        return self._keep(symbols + medians)

    def latent(self, y, scales, means, mask) -> Tensor:
        symbols = torch.round(y if means is None else y - means) * mask
        self._add(symbols, self.nets.table_indexes(scales) + self.tables.latent, mask)
        return self._keep(symbols if means is None else symbols + means)

    def finish(self, check: int = 0) -> bytes:
        """One rANS string of everything, sealed with a checksum of the latents and of what else the
        caller names."""
        symbols = torch.cat(self.symbols).to(torch.int32).cpu().numpy()
        indexes = torch.cat(self.indexes).to(torch.int32).cpu().numpy()
        check ^= checksum(self.latents)
        return rans.encode(symbols, indexes, self.tables.tables, check)

    def _add(self, symbols: Tensor, indexes: Tensor, mask: Tensor | None) -> None:
        self.symbols.append(_coded(symbols, mask).flatten())
        self.indexes.append(_coded(indexes, mask).flatten())

    def _keep(self, latents: Tensor) -> Tensor:
        self.latents.append(latents)
        return latents


class SymbolDecoder:
    """Latent coder that reads symbols back; the mirror of :class:`SymbolEncoder`.

    Args:
        hyper_shape: of z, (B, N, h, w).
    """

    def __init__(
        self, nets: EntropyNets, tables: SymbolTables, data: bytes, hyper_shape: tuple[int, ...]
    ):
        self.nets, self.tables, self.hyper_shape = nets, tables, hyper_shape
        self.reader = rans.Decoder(data, tables.tables)
        self.latents: list[Tensor] = []

    def run(self, module: nn.Module, x: Tensor, bf16: bool = False) -> Tensor:
        return self.nets.run(module, x)

    def hyper(self, z: None) -> Tensor:
        medians = self.nets.medians.reshape(1, -1, 1, 1)
        channels = torch.arange(self.hyper_shape[1], device=medians.device).reshape(1, -1, 1, 1)
        return self._keep(self._read(channels.expand(self.hyper_shape)) + medians)

    def latent(self, y: None, scales, means, mask) -> Tensor:
        indexes = _coded(self.nets.table_indexes(scales) + self.tables.latent, mask)
        found = self._read(indexes)
        if mask.all():
            symbols = found.reshape(scales.shape)
        else:
            symbols = torch.zeros_like(scales, memory_format=torch.contiguous_format)
            symbols[:, :, mask[0, 0]] = found
        return self._keep(symbols if means is None else symbols + means)

    def finish(self, check: int = 0) -> None:
        """Check that the string ends here and that symbols, latents and ``check`` are the encoder's, by
        a checksum of 31 bits: it misses one error in 2^31.

        Raises:
            RansError: they are not.
        """
        self.reader.finish(check ^ checksum(self.latents))

    def _read(self, indexes: Tensor) -> Tensor:
        symbols = self.reader.decode(indexes.to(torch.int32).flatten().cpu().numpy())
        return torch.from_numpy(symbols).to(indexes.device, torch.float32).reshape(indexes.shape)

    def _keep(self, latents: Tensor) -> Tensor:
        self.latents.append(latents)
        return latents


def checksum(latents: list[Tensor]) -> int:
    """CRC-32 over the float32 values in order, (B, C, h, w) row by row; -0 counts as 0."""
    check = 0
    for piece in latents:
        values = (piece.contiguous(memory_format=torch.contiguous_format) + 0.0).cpu().numpy()
        check = zlib.crc32(values.astype("<f4", copy=False), check)
    return check


def _coded(values: Tensor, mask: Tensor | None) -> Tensor:
    """What the mask (1, 1, h, w) selects of (B, C, h, w): (B, C, n); all of it as it is."""
    if mask is None or mask.all():
        return values
    return values[:, :, mask[0, 0]]
