"""What the training scripts of the embedded models share: scenes drawn ahead, a record of the run."""

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

from tqdm import tqdm

from machines.tiny import world

T = TypeVar("T")
AHEAD = 4  # steps that are drawn before they are needed


def draw_ahead(draw: Callable[[int], T], steps: int, workers: int) -> Iterator[tuple[int, T, tqdm]]:
    """Every step, ``draw(step)``, made by other processes, and the progress bar.

    Args:
        draw: a function that pickles; it depends on the step alone, so that a run repeats.
        workers: processes.
    """
    with ProcessPoolExecutor(workers) as pool:
        waiting = [pool.submit(draw, step) for step in range(min(AHEAD * workers, steps))]
        bar = tqdm(range(steps), desc="train", unit="step", file=sys.stdout, mininterval=5)
        for step in bar:
            drawn = waiting.pop(0).result()
            if (later := step + AHEAD * workers) < steps:
                waiting.append(pool.submit(draw, later))
            yield step, drawn, bar


def scenes(seed: int, first: int, count: int, split: str) -> list[world.Scene]:
    """Scenes first .. first + count - 1 of a split."""
    return [world.scene(seed, index, split) for index in range(first, first + count)]
