"""Vectors of eight integers: every operation against numpy's."""

import numpy as np
import pytest
from numba import njit

from dtufc import simd
from dtufc.simd import (
    WIDTH,
    gather,
    larger,
    load,
    permute,
    select,
    shift_right,
    smaller,
    splat,
    store,
    to_bits,
    widen,
)

A = np.array([3, -9, 2**31 - 1, 7, -(2**31), 2, 0, 6], np.int32)
B = np.array([4, 4, 5, -7, 1, 2, 31, -1], np.int32)
SHIFTS = np.array([0, 1, 5, 7, 31, 2, 30, 6], np.int32)


@njit
def _arithmetic(a, b, shifts, out):
    x, y, s = load(a, np.uint64(0)), load(b, np.uint64(0)), load(shifts, np.uint64(0))
    results = (
        x + y, x - y, x * y, x & y, x | y, x ^ y, x << s, x >> s, shift_right(x, s), smaller(x, y),
        larger(x, y), select(x < y, x, y), splat(7),
    )  # fmt: skip
    for i in range(len(results)):
        store(out, np.uint64(WIDTH * i), results[i])


def test_arithmetic_is_that_of_int32():
    out = np.zeros(13 * WIDTH, np.int32)
    _arithmetic(A, B, SHIFTS, out)
    with np.errstate(over="ignore"):
        expected = [
            A + B, A - B, A * B, A & B, A | B, A ^ B, A << SHIFTS, A >> SHIFTS,
            (A.view(np.uint32) >> SHIFTS.view(np.uint32)).view(np.int32), np.minimum(A, B),
            np.maximum(A, B), np.minimum(A, B), np.full(8, 7, np.int32),
        ]  # fmt: skip
    for number, (row, want) in enumerate(zip(out.reshape(-1, WIDTH), expected, strict=True)):
        assert np.array_equal(row, want), number


@njit
def _compare(a, b):
    x, y = load(a, np.uint64(0)), load(b, np.uint64(0))
    less, equal = x < y, x == y
    both = (x <= y) & (x > splat(0))
    return to_bits(less), to_bits(equal), to_bits(less | equal), to_bits(both)


def test_masks_are_bits():
    def bits(mask):
        return sum(int(value) << lane for lane, value in enumerate(mask))

    expected = [A < B, A == B, A <= B, (A <= B) & (A > 0)]
    assert list(_compare(A, B)) == [bits(mask) for mask in expected]


@njit
def _look_up(array, places, out):
    at = load(places, np.uint64(0))
    store(out, np.uint64(0), load(array, np.uint64(3)))
    store(out, np.uint64(WIDTH), gather(array, at))
    store(out, np.uint64(2 * WIDTH), permute(load(array, np.uint64(0)), at & splat(7)))


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int16, np.int32, np.float32])
def test_elements_of_any_width_are_found(dtype):
    array = np.random.default_rng(0).integers(-120, 120, 40).astype(dtype)
    places = np.array([0, 39, 5, 5, 17, 23, 38, 1], np.int32)
    out = np.zeros(3 * WIDTH, dtype if dtype == np.float32 else np.int32)
    _look_up(array, places, out)
    assert np.array_equal(out[:WIDTH], array[3:11])
    assert np.array_equal(out[WIDTH : 2 * WIDTH], array[places])
    assert np.array_equal(out[2 * WIDTH :], array[:WIDTH][places & 7])


@njit
def _narrow(values, out):
    store(out, np.uint64(2), load(values, np.uint64(0)))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32])
def test_the_lowest_bits_are_stored_and_no_more(dtype):
    out = np.full(12, 9, dtype)
    _narrow(A, out)
    assert np.array_equal(out[2:10], A.astype(dtype))
    assert (out[[0, 1, 10, 11]] == 9).all()


def test_permute_does_without_avx2(monkeypatch):
    """Other processors take the elements one by one."""
    asked = []
    monkeypatch.setattr(simd, "_has_avx2", lambda context: asked.append(context) or False)

    @njit
    def turn(values, places, out):
        store(out, np.uint64(0), permute(load(values, np.uint64(0)), load(places, np.uint64(0))))

    places, out = np.array([7, 6, 5, 4, 3, 2, 1, 1], np.int32), np.zeros(8, np.int32)
    turn(A, places, out)
    assert asked and np.array_equal(out, A[places])


@pytest.mark.parametrize("instruction", [True, False])
def test_halves_are_widened_exactly(monkeypatch, instruction):
    """With the processor's instruction, where it has one, and by shifts."""
    if not instruction:
        monkeypatch.setattr(simd, "_has_f16c", lambda context: False)

    @njit
    def all_of(halves, out):
        for i in range(len(halves)):
            out[i] = widen(halves[i])

    bits = np.arange(1 << 16, dtype=np.uint16)
    bits = bits[np.isfinite(bits.view(np.float16))]
    out = np.empty(len(bits), np.float32)
    all_of(bits, out)
    assert np.array_equal(
        out.view(np.int32), bits.view(np.float16).astype(np.float32).view(np.int32)
    )
