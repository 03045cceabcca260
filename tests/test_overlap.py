"""Reading, coding and writing of many files at once."""

import threading
import time
from pathlib import Path

import pytest

from dtufc.overlap import check_coders, overlap

PATHS = [Path(str(i)) for i in range(20)]


@pytest.mark.parametrize("coders", [1, 2, 5])
def test_order_is_kept_and_memory_bounded(coders):
    """Later files may be coded first; they come out in order, and few wait."""
    alive, most, lock = set(), 0, threading.Lock()

    def read(path):
        nonlocal most
        with lock:
            alive.add(path)
            most = max(most, len(alive))
        return int(path.name)

    def code(path, number):
        time.sleep(0.001 * (number % 3))
        return -number

    for i, (path, result) in enumerate(overlap(PATHS, read, code, coders)):
        assert (path, result) == (PATHS[i], -i)
        alive.discard(path)
    assert i == len(PATHS) - 1
    assert most <= coders + 2


def test_coders_work_at_once():
    """Two coders that wait for each other get on; one alone would wait for ever."""
    both = threading.Barrier(2, timeout=20)
    assert len(list(overlap(PATHS, str, lambda path, data: both.wait() >= 0, 2))) == len(PATHS)


def test_the_first_error_ends_it():
    coded = []

    def read(path):
        if path.name == "7":
            raise OSError("gone")
        return path

    def code(path, data):
        if path.name == "11":
            raise ValueError("never")
        coded.append(path)

    seen = []
    with pytest.raises(OSError, match="gone"):
        for path, _ in overlap(PATHS, read, code, 2):
            seen.append(path)
    assert seen == PATHS[:7]
    assert len(coded) < len(PATHS)
    with pytest.raises(ValueError, match="coders"):
        check_coders(0)
