"""The one thread that computes for all clients, and what it computes together.

What comes while the thread is busy waits. With batches, all that waits of one sort is taken next, up to
``size`` items: steps of sessions, or posted features. So a batch grows with the load, and a lone client
waits for nobody, unless ``wait`` says so.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from dtufc.errors import UserError

Work = Callable[[Sequence[Any]], Sequence[Any]]
"""Items -> for each its outcome: a value, or the exception that it alone ends with."""


@dataclass(frozen=True)
class Batching:
    """What is computed together.

    Raises:
        UserError: no such size or time.
    """

    size: int = 1
    """Items, at most."""
    wait: float = 0.0
    """Seconds that an item may wait until others have come."""

    def __post_init__(self):
        if self.size < 1:
            raise UserError(f"batch: expected at least 1, got {self.size}")
        if not 0 <= self.wait < 10:
            raise UserError(f"batch_wait_ms: expected 0 .. 10000, got {1000 * self.wait:g}")


class Queue:
    """Items of one sort, computed in batches."""

    def __init__(self, work: Work, batching: Batching, run: Callable[..., Any]):
        self._work, self._batching, self._run = work, batching, run
        self._waiting: deque[tuple[Any, asyncio.Future]] = deque()
        self._full = asyncio.Event()
        self._task: asyncio.Task | None = None

    async def ask(self, item: Any) -> Any:
        """An item's own value.

        Raises:
            Exception: its own.
        """
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if len(self._waiting) >= self._batching.size:
            self._full.set()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._empty())
        return await future

    async def _empty(self) -> None:
        while self._waiting:
            if self._batching.wait:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._batching.wait):
                        await self._full.wait()
            taken = self._take()
            if not taken:
                continue
            try:
                outcomes = await self._run(self._work, [item for item, _ in taken])
            except Exception as error:  # of the batch itself; nobody may wait for ever
                outcomes = [error] * len(taken)
            for (_, future), outcome in zip(taken, outcomes, strict=True):
                if future.done():  # who asked went away meanwhile
                    continue
                if isinstance(outcome, Exception):
                    future.set_exception(outcome)
                else:
                    future.set_result(outcome)

    def _take(self) -> list[tuple[Any, asyncio.Future]]:
        """The next batch, without those whose clients went away."""
        taken = []
        while self._waiting and len(taken) < self._batching.size:
            item, future = self._waiting.popleft()
            if not future.done():
                taken.append((item, future))
        if len(self._waiting) < self._batching.size:
            self._full.clear()
        return taken


class Compute:
    """Runs functions in one thread beside the loop, in the order in which they come."""

    def __init__(self, batching: Batching):
        self.batching = batching
        self._thread = ThreadPoolExecutor(1, "compute")

    async def alone(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """A function and its arguments -> its result."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, function, *arguments)

    def queue(self, work: Work) -> Queue:
        """A queue whose batches are computed here."""
        return Queue(work, self.batching, self.alone)


def outcome(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function gives, or the exception that it ends with."""
    try:
        return function(*arguments)
    except Exception as error:
        return error


def each_or_together(
    items: Sequence[Any],
    together: Callable[[Sequence[Any]], Sequence[Any]],
    one: Callable[[Any], Any],
) -> list[Any]:
    """Outcomes of items that fit into a batch. Where the batch fails, each is computed alone, so that
    what is wrong with one is told to that one.

    Args:
        together: the values of several items; raises where one of them is wrong, and changes nothing.
    """
    if len(items) > 1:
        with contextlib.suppress(Exception):
            return list(together(items))
    return [outcome(one, item) for item in items]
