"""The range coder: exact, as short as the tables promise, safe against damage."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtufc import range_coder
from dtufc.rans import PRECISION, RansError, Tables


def tables_of(*weights: list[int], offset: int = -2) -> Tables:
    """Tables with frequencies in these proportions, the last one the escape's."""
    rows = []
    for row in weights:
        edges = np.round(np.cumsum([0, *row]) / sum(row) * (1 << PRECISION)).astype(np.int32)
        rows.append(edges)
    width = max(map(len, rows))
    cdf = np.zeros((len(rows), width), np.int32)
    for place, row in enumerate(rows):
        cdf[place, : len(row)] = row
    return Tables(cdf, np.array([len(row) for row in rows]), np.full(len(rows), offset))


TABLES = tables_of([1, 5, 60000, 5, 1, 1], [1, 1, 1, 1, 1, 1], [65534, 1, 1])


def bits_of(symbols: np.ndarray, indexes: np.ndarray, tables: Tables) -> float:
    """What the tables promise for symbols that need no escape."""
    places = symbols - tables.offset[indexes]
    freqs = tables.cdf[indexes, places + 1] - tables.cdf[indexes, places]
    return float((PRECISION - np.log2(freqs)).sum())


@given(st.lists(st.tuples(st.integers(-(2**31), 2**31 - 1), st.integers(0, 2)), max_size=40))
def test_any_symbols_come_back(pairs):
    symbols = np.array([symbol for symbol, _ in pairs], np.int32)
    indexes = np.array([index for _, index in pairs], np.int32)
    data = range_coder.encode(symbols, indexes, TABLES)
    reader = range_coder.Decoder(data, TABLES)
    assert np.array_equal(reader.decode(indexes), symbols)
    reader.finish()


def test_strings_are_as_short_as_the_tables_promise():
    """Never shorter than the code length less a state, never longer than it and a byte and a bit."""
    rng = np.random.default_rng(0)
    for count in [*range(60), 1000, 20_000]:
        indexes = rng.integers(0, 2, count).astype(np.int32)
        symbols = rng.integers(-2, 3, count).astype(np.int32) * (rng.random(count) < 0.3)
        data = range_coder.encode(symbols, indexes, TABLES)
        bits = bits_of(symbols, indexes, TABLES)
        assert 8 * len(data) <= bits + 9 + 1e-6 * count, count
        range_coder.check_room(data, bits)
        reader = range_coder.Decoder(data, TABLES)
        pieces = [reader.decode(part) for part in np.array_split(indexes, 3)]
        assert np.array_equal(np.concatenate(pieces), symbols)
        reader.finish()


def test_carries_run_through_full_bytes():
    """Intervals at the upper end of the state, again and again."""
    for count in range(1, 200):
        indexes = np.full(count, 1, np.int32)
        for symbol in (2, -2):
            symbols = np.full(count, 2, np.int32)
            symbols[-1] = symbol
            data = range_coder.encode(symbols, indexes, TABLES)
            reader = range_coder.Decoder(data, TABLES)
            assert np.array_equal(reader.decode(indexes), symbols)
            reader.finish()


def test_pinned_bytes():
    symbols = np.array([0, 1, -2, 7, -900, 0, 0, 2, 2**31 - 1], np.int32)
    indexes = np.array([0, 0, 1, 1, 0, 2, 1, 1, 2], np.int32)
    assert (
        range_coder.encode(symbols, indexes, TABLES).hex()
        == "fff0d9175ae98cb19da23056c158cd7d57f58e35a6"
    )
    assert range_coder.encode(symbols[:1], indexes[:1], TABLES) == b"\x01"
    assert range_coder.encode(symbols[:0], indexes[:0], TABLES) == b""


def test_damage_is_refused_or_gives_other_symbols():
    rng = np.random.default_rng(1)
    indexes = rng.integers(0, 3, 200).astype(np.int32)
    symbols = np.minimum(rng.integers(-2, 3, 200), np.where(indexes == 2, -2, 2)).astype(np.int32)
    data = range_coder.encode(symbols, indexes, TABLES)
    refused = 0
    for _ in range(500):
        broken = bytearray(data[: rng.integers(len(data) + 1)] if rng.random() < 0.5 else data)
        if broken:
            broken[rng.integers(len(broken))] ^= 1 << int(rng.integers(8))
        reader = range_coder.Decoder(bytes(broken), TABLES)
        try:
            assert len(reader.decode(indexes)) == 200
            reader.finish()
        except RansError:
            refused += 1
    assert refused > 50
    with pytest.raises(RansError, match="end where they should"):
        longer = range_coder.Decoder(data + bytes(9), TABLES)
        longer.decode(indexes)
        longer.finish()
    with pytest.raises(RansError, match="truncated"):
        range_coder.check_room(data, 8 * len(data) + 65)
    with pytest.raises(ValueError, match="names none"):
        range_coder.encode(symbols[:1], np.array([3]), TABLES)
