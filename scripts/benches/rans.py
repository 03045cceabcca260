"""The work of ``bench_rans.py``."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from bench_rans import BenchConfig
from benches.codec import best
from compressai.ans import RansDecoder, RansEncoder
from compressai.entropy_models import GaussianConditional

from dtufc import rans


@dataclass(frozen=True)
class CoderRow:
    """One coder; speeds in millions of symbols per second."""

    coder: str
    encode: float
    decode: float
    bits: float
    """Per symbol."""


def bench(cfg: BenchConfig) -> list[CoderRow]:
    """Time every coder on the same symbols."""
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    conditional = GaussianConditional(None)
    conditional.update_scale_table(torch.exp(torch.linspace(np.log(0.11), np.log(256), 64)))
    scales = np.exp(rng.uniform(np.log(0.11), np.log(cfg.largest_scale), cfg.symbols))
    symbols = np.round(rng.standard_normal(cfg.symbols) * scales).astype(np.int32)
    table = np.log(conditional.scale_table.numpy())
    indexes = np.abs(np.log(scales)[:, None] - table[None, :40]).argmin(1).astype(np.int32)
    parts = [
        part.numpy()
        for part in (
            conditional._quantized_cdf, conditional._cdf_length, conditional._offset
        )
    ]  # fmt: skip
    rows = [_ours(cfg, symbols, indexes, parts), _compressai(cfg, symbols, indexes, parts)]
    if importlib.util.find_spec("constriction"):
        rows.append(_constriction(cfg, symbols, np.exp(table[indexes])))
    return rows


def _row(
    cfg: BenchConfig,
    name: str,
    encode: Callable[[], int],
    decode: Callable[[], np.ndarray],
    symbols: np.ndarray,
) -> CoderRow:
    """Time both ways; ``encode`` gives its bytes' number."""
    size = encode()
    if not np.array_equal(decode(), symbols):
        raise RuntimeError(f"{name}: the symbols do not come back")
    millions = len(symbols) / 1e6
    return CoderRow(
        name,
        millions / best(cfg.repeats, encode),
        millions / best(cfg.repeats, decode),
        8 * size / len(symbols),
    )


def _ours(cfg: BenchConfig, symbols: np.ndarray, indexes: np.ndarray, parts) -> CoderRow:
    tables = rans.Tables(*parts)
    data = rans.encode(symbols, indexes, tables)
    return _row(
        cfg,
        "dtufc.rans",
        lambda: len(rans.encode(symbols, indexes, tables)),
        lambda: rans.Decoder(data, tables).decode(indexes),
        symbols,
    )


def _compressai(cfg: BenchConfig, symbols: np.ndarray, indexes: np.ndarray, parts) -> CoderRow:
    tables = [part.tolist() for part in parts]

    def encode() -> bytes:
        return RansEncoder().encode_with_indexes(symbols.tolist(), indexes.tolist(), *tables)

    data = encode()
    return _row(
        cfg,
        "CompressAI, lists",
        lambda: len(encode()),
        lambda: np.array(RansDecoder().decode_with_indexes(data, indexes.tolist(), *tables)),
        symbols,
    )


def _constriction(cfg: BenchConfig, symbols: np.ndarray, scales: np.ndarray) -> CoderRow:
    from constriction import stream

    family = stream.model.QuantizedGaussian(-2000, 2000)
    means, scales = np.zeros(len(scales), np.float32), scales.astype(np.float32)

    def encode() -> np.ndarray:
        coder = stream.stack.AnsCoder()
        coder.encode_reverse(symbols, family, means, scales)
        return coder.get_compressed()

    data = encode()
    return _row(
        cfg,
        "constriction",
        lambda: encode().nbytes,
        lambda: stream.stack.AnsCoder(data).decode(family, means, scales),
        symbols,
    )
