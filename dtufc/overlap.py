"""Many files: reading the next and writing the last overlap with the coding of this one.

What codes releases Python's lock (torch, numba, zlib), so threads are enough. With several coders the
entropy coding of one feature also overlaps the networks of the next, which a GPU gains by.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from dtufc.errors import UserError

Item = TypeVar("Item")
Read = TypeVar("Read")
Coded = TypeVar("Coded")


def overlap(
    paths: Iterable[Item],
    read: Callable[[Item], Read],
    code: Callable[[Item, Read], Coded],
    coders: int = 1,
) -> Iterator[tuple[Item, Coded]]:
    """``(path, code(path, read(path)))`` of every path, in order; the caller writes in between.

    At most ``coders`` + 1 files are in memory beside the one that the caller holds. The first error
    ends it, after what came before has been given.
    """
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(coders) as pool:
        waiting: deque[tuple[Item, Future[Coded]]] = deque()
        todo = iter(paths)
        try:
            while True:
                while len(waiting) <= coders and (path := next(todo, None)) is not None:
                    data = reader.submit(read, path)
                    waiting.append((path, pool.submit(_code, code, path, data)))
                if not waiting:
                    return
                path, result = waiting.popleft()
                yield path, result.result()
        finally:
            for _, result in waiting:
                result.cancel()


def check_coders(coders: int) -> None:
    """Refuse a number of coders that is none."""
    if coders < 1:
        raise UserError(f"coders: expected 1 or more, got {coders}")


def _code(code: Callable[[Item, Read], Coded], path: Item, data: "Future[Read]") -> Coded:
    return code(path, data.result())
