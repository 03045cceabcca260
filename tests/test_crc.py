"""Checksums on several threads are zlib's."""

import multiprocessing
import zlib

import numpy as np
import pytest

from dtufc import crc

DATA = np.random.default_rng(0).bytes(5 * crc.PIECE + 77)


@pytest.fixture(autouse=True)
def threads(monkeypatch):
    monkeypatch.setattr(crc, "_threads", lambda: 3)


@pytest.mark.parametrize(
    "count", [0, 1, 4 * crc.PIECE - 1, 4 * crc.PIECE, 4 * crc.PIECE + 1, len(DATA)]
)
@pytest.mark.parametrize("value", [0, 0xDEADBEEF])
def test_any_length_gives_the_same_sum(count, value):
    for kind in (bytes, bytearray, memoryview):
        assert crc.crc32(kind(DATA[:count]), value) == zlib.crc32(DATA[:count], value)


def test_pieces_have_the_sum_of_their_whole():
    pieces = b"", DATA[:3], bytearray(DATA[3:100]), DATA[100:]
    assert crc.crc32_of(pieces, 7) == zlib.crc32(DATA, 7)
    assert crc.crc32_of(()) == 0


@pytest.mark.parametrize("count", [1, 3, 1000, crc.PIECE])
def test_sums_of_two_buffers_join(count):
    first, second = DATA[:500], DATA[500 : 500 + count]
    joined = crc.times(zlib.crc32(first), crc.shift(count)) ^ zlib.crc32(second)
    assert joined == zlib.crc32(first + second)


def test_a_forked_process_has_threads_of_its_own():
    assert crc.crc32(DATA) == zlib.crc32(DATA)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply_async(crc.crc32, (DATA,)).get(30) == zlib.crc32(DATA)
