"""Number formats that features are sent in without a codec of ours: raw bfloat16, fp8, int8 and int4.

Values stand in groups of 64 in the order of memory, each group with a bfloat16 scale. The integers are
squeezed by zstd, where that makes them smaller. No script of its own.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import zstandard

GROUP = 64
"""Values that share a scale."""
ZSTD_LEVEL = 3
"""zstd's default: higher levels are slower than most links."""


@dataclass(frozen=True)
class NumberFormat:
    """A feature, float32 of any shape, to bytes and back."""

    name: str
    encode: Callable[[np.ndarray], bytes]
    decode: Callable[[bytes, Sequence[int]], np.ndarray]


def to_bfloat16(x: np.ndarray) -> bytes:
    return torch.from_numpy(x).to(torch.bfloat16).view(torch.int16).numpy().tobytes()


def from_bfloat16(data: bytes, shape: Sequence[int]) -> np.ndarray:
    values = torch.frombuffer(bytearray(data), dtype=torch.bfloat16)
    return values.float().reshape(*shape).numpy()


def to_groups(x: np.ndarray, largest: float) -> tuple[bytes, np.ndarray]:
    """(...,) -> the scales, and the values over them, (groups, 64), at most about ``largest``."""
    flat = np.zeros(math.ceil(x.size / GROUP) * GROUP, np.float32)
    flat[: x.size] = x.reshape(-1)
    groups = flat.reshape(-1, GROUP)
    scales = to_bfloat16(np.abs(groups).max(1) / np.float32(largest))
    divisors = from_bfloat16(scales, [len(groups), 1])
    return scales, groups / np.where(divisors > 0, divisors, 1)


def from_groups(data: bytes, levels: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """The way back of :func:`to_groups`; ``levels`` are (groups, 64)."""
    scales = from_bfloat16(data[: 2 * len(levels)], [len(levels), 1])
    return (levels * scales).reshape(-1)[: math.prod(shape)].reshape(*shape)


def count_groups(shape: Sequence[int]) -> int:
    return math.ceil(math.prod(shape) / GROUP)


def to_fp8(x: np.ndarray) -> bytes:
    scales, values = to_groups(x, 448)
    levels = torch.from_numpy(values).clamp(-448, 448).to(torch.float8_e4m3fn)
    return scales + levels.view(torch.uint8).numpy().tobytes()


def from_fp8(data: bytes, shape: Sequence[int]) -> np.ndarray:
    groups = count_groups(shape)
    levels = torch.frombuffer(bytearray(data[2 * groups :]), dtype=torch.float8_e4m3fn)
    return from_groups(data, levels.float().reshape(-1, GROUP).numpy(), shape)


def to_integers(x: np.ndarray, bits: int) -> bytes:
    """8 or 4 bits, two values of 4 bits in a byte."""
    most = (1 << bits - 1) - 1
    scales, values = to_groups(x, most)
    levels = np.rint(values).clip(-most, most).astype(np.int8) + np.int8(most)
    symbols = levels.view(np.uint8)
    if bits == 4:
        symbols = symbols[:, ::2] | symbols[:, 1::2] << 4
    plain = np.ascontiguousarray(symbols).tobytes()
    small = zstandard.compress(plain, ZSTD_LEVEL)
    return scales + (b"z" + small if len(small) < len(plain) else b"p" + plain)


def from_integers(data: bytes, shape: Sequence[int], bits: int) -> np.ndarray:
    groups, most = count_groups(shape), (1 << bits - 1) - 1
    way, body = data[2 * groups : 2 * groups + 1], data[2 * groups + 1 :]
    symbols = np.frombuffer(zstandard.decompress(body) if way == b"z" else body, np.uint8)
    if bits == 4:
        symbols = np.stack([symbols & 15, symbols >> 4], axis=1)
    return from_groups(data, symbols.reshape(groups, GROUP).astype(np.float32) - most, shape)


RAW = NumberFormat("raw bf16", to_bfloat16, from_bfloat16)
FORMATS = (
    RAW,
    NumberFormat("fp8", to_fp8, from_fp8),
    *(
        NumberFormat(
            f"int{bits} + zstd",
            partial(to_integers, bits=bits),
            partial(from_integers, bits=bits),
        )
        for bits in (8, 4)
    ),
)
