"""The entropy coder: exact round trips, pinned bytes, and no way to crash it."""

import contextlib

import numpy as np
import pytest
from compressai.ans import RansEncoder
from hypothesis import given, settings
from hypothesis import strategies as st

from dtufc import rans

RNG = np.random.default_rng(0)


def make_tables() -> rans.Tables:
    """Three tables: a fair coin, a peaked one of five symbols, a single symbol. Each with escape."""
    cdf = np.zeros((3, 7), np.int32)
    cdf[0, :4] = [0, 32000, 64000, 65536]
    cdf[1, :7] = [0, 100, 2000, 63000, 65000, 65500, 65536]
    cdf[2, :3] = [0, 65535, 65536]
    return rans.Tables(cdf, np.array([4, 7, 3]), np.array([0, -2, 5]))


TABLES = make_tables()
symbols_and_indexes = st.lists(
    st.tuples(st.one_of(st.integers(-4, 7), st.integers(-(2**31), 2**31 - 1)), st.integers(0, 2)),
    max_size=200,
)


@given(symbols_and_indexes, st.integers(0, 200))
def test_round_trip(pairs, cut):
    symbols = np.array([s for s, _ in pairs], dtype=np.int32)
    indexes = np.array([i for _, i in pairs], dtype=np.int32)
    data = rans.encode(symbols, indexes, TABLES)
    decoder = rans.Decoder(data, TABLES)
    first = decoder.decode(indexes[:cut])
    second = decoder.decode(indexes[cut:])
    decoder.finish()
    assert np.array_equal(np.concatenate((first, second)), symbols)


def test_golden_bytes():
    symbols = np.array([0, 1, -2, 0, 0, 2, 5, 5, 6, -3, 100000, -(2**31)], np.int32)
    indexes = np.array([0, 0, 1, 1, 1, 1, 2, 2, 2, 1, 0, 0], np.int32)
    data = rans.encode(symbols, indexes, TABLES)
    assert data.hex() == GOLDEN
    assert np.array_equal(rans.Decoder(data, TABLES).decode(indexes), symbols)


GOLDEN = "010000000335343e4c006960bdff01a8c0b0bc100000004000000080"


def test_size_is_the_entropy():
    count = 200_000
    table = np.diff(TABLES.cdf[1, :7])
    symbols = RNG.choice(np.arange(-2, 3), count, p=table[:5] / table[:5].sum()).astype(np.int32)
    data = rans.encode(symbols, np.ones(count, np.int32), TABLES)
    ideal = -np.log2(table[symbols + 2] / 65536).sum()
    assert ideal <= 8 * len(data) <= ideal * 1.0001 + 64


@settings(max_examples=300)
@given(st.binary(max_size=64), st.integers(0, 100))
def test_foreign_bytes_raise_or_decode(data, count):
    with contextlib.suppress(rans.RansError):
        rans.Decoder(data, TABLES).decode(np.ones(count, np.int32))


def test_reads_compressai_strings():
    """CompressAI's own encoder, our decoder; and its strings damaged."""
    rng = np.random.default_rng(1)
    indexes = rng.integers(0, 3, 3000).astype(np.int32)
    symbols = rng.integers(-2, 6, 3000).astype(np.int32)
    symbols[:4] = [100000, -100000, 2**20, -(2**20)]
    data = RansEncoder().encode_with_indexes(
        symbols.tolist(), indexes.tolist(), TABLES.cdf.tolist(), TABLES.length.tolist(),
        TABLES.offset.tolist(),
    )  # fmt: skip
    assert np.array_equal(rans.decode_compressai(data, indexes, TABLES), symbols)
    for bad in (data[:-4], data[:7], data[:-1], data + bytes(4), bytes(8), b"\xff" * 64):
        with pytest.raises(rans.RansError):
            rans.decode_compressai(bad, indexes, TABLES)


@given(st.binary(max_size=64), st.integers(0, 100))
def test_foreign_compressai_strings_are_refused_or_decode(data, count):
    with contextlib.suppress(rans.RansError):
        rans.decode_compressai(data, np.ones(count, np.int32), TABLES)


def test_damage_is_noticed():
    indexes = RNG.integers(0, 2, 4000).astype(np.int32)
    symbols = RNG.integers(0, 2, 4000).astype(np.int32)
    data = rans.encode(symbols, indexes, TABLES)
    for _ in range(500):
        damaged = bytearray(data)
        damaged[RNG.integers(len(data))] ^= 1 << RNG.integers(8)
        decoder = rans.Decoder(bytes(damaged), TABLES)
        with pytest.raises(rans.RansError):
            decoder.decode(indexes)
            decoder.finish()
    for cut in (0, 4, 7, len(data) - 4, len(data) - 1):
        with pytest.raises(rans.RansError):
            decoder = rans.Decoder(data[:cut], TABLES)
            decoder.decode(indexes)
            decoder.finish()


def test_bad_arguments():
    with pytest.raises(ValueError, match="3 symbols, but 2 indexes"):
        rans.encode(np.zeros(3, int), np.zeros(2, int), TABLES)
    with pytest.raises(ValueError, match="names none"):
        rans.encode(np.zeros(1, int), np.array([3]), TABLES)
    for cdf in ([[0, 5, 5, 65536]], [[1, 5, 6, 65536]], [[0, 5, 6, 65535]]):
        with pytest.raises(ValueError, match="increase from 0"):
            rans.Tables(np.array(cdf), np.array([4]), np.array([0]))
    with pytest.raises(ValueError, match="one symbol"):
        rans.Tables(np.array([[0, 65536]]), np.array([2]), np.array([0]))
    with pytest.raises(ValueError, match="one row per table"):
        rans.Tables(np.array([[0, 65535, 65536]]), np.array([3, 3]), np.array([0]))
