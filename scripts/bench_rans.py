"""Speed of the entropy coder beside others, one thread, one run: ``python scripts/bench_rans.py``.

The symbols are Gaussian with the scales of CompressAI's 64 tables, in random order, as a codec's latents
are. Ours is ``dtufc.rans``. CompressAI's coder takes Python lists; their making is counted, as it must
be where symbols come from a tensor. ``constriction`` (``pip install constriction``; not among the
requirements) codes with one Gaussian a symbol.
"""

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from bench_codec import best
from compressai.ans import RansDecoder, RansEncoder
from compressai.entropy_models import GaussianConditional

from dtufc import config, rans
from dtufc.records import format_table


@dataclass(frozen=True)
class BenchConfig:
    """What is timed."""

    symbols: int = 1_000_000
    """How many symbols."""
    largest_scale: float = 4.0
    """Standard deviations are drawn between 0.11 and this, evenly in the log domain."""
    repeats: int = 3
    """Each time is the best of so many, after one that is not counted."""


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


def main(argv: Sequence[str] | None = None) -> None:
    with config.report_errors():
        print(format_table(bench(config.parse(BenchConfig, argv, __doc__))))


if __name__ == "__main__":
    main()
