"""CRC-32 of large buffers on several threads.

``zlib.crc32`` takes a gigabyte or two per second, which is less than a GPU codes. The checksum of two
buffers in a row follows from that of each and the second one's length, by a product of polynomials over
GF(2); see ``crc32_combine`` of zlib (M. Adler).
"""

import os
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

POLYNOMIAL = 0xEDB88320  # x^32 left out; the bit of x^0 is the highest
ONE = 1 << 31
PIECE = 1 << 19
"""Bytes that a thread takes at a time."""
THREADS = 8  # at most


def crc32(data: bytes | bytearray | memoryview, value: int = 0) -> int:
    """As :func:`zlib.crc32`, on as many threads as torch uses where ``data`` is long."""
    if len(data) < 4 * PIECE or (threads := _threads()) == 1:
        return zlib.crc32(data, value)
    data = memoryview(data)
    first = len(data) % PIECE or PIECE
    pieces = [data[at : at + PIECE] for at in range(first, len(data), PIECE)]
    others = _pool(threads).map(zlib.crc32, pieces)
    value = zlib.crc32(data[:first], value)
    for other in others:
        value = times(value, shift(PIECE)) ^ other
    return value


def crc32_of(pieces: Iterable[bytes | bytearray], value: int = 0) -> int:
    """As :func:`crc32`, of all pieces as if they were joined."""
    for piece in pieces:
        value = zlib.crc32(piece, value) if len(piece) < PIECE else crc32(piece, value)
    return value


def times(a: int, b: int) -> int:
    """The product of two polynomials modulo POLYNOMIAL; the bit of x^0 is the highest."""
    product = 0
    for bit in range(31, -1, -1):
        if a >> bit & 1:
            product ^= b
        b = b >> 1 ^ (POLYNOMIAL if b & 1 else 0)
    return product


@lru_cache(64)
def shift(count: int) -> int:
    """What moves a checksum ``count`` bytes on: x^(8 count)."""
    power, square = ONE, ONE >> 8
    while count:
        if count & 1:
            power = times(power, square)
        square, count = times(square, square), count >> 1
    return power


def _threads() -> int:
    import torch  # here: bitstreams are told apart without it

    return min(THREADS, torch.get_num_threads())


@lru_cache(1)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "crc32")


os.register_at_fork(after_in_child=_pool.cache_clear)  # threads stay with the parent
