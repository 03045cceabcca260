"""Training speed of ``train.py`` beside a plain float32 loop over CompressAI's model, in one run.

    python scripts/bench_train.py            published widths, batches of 8 patches of 256 x 256
    python scripts/bench_train.py --small    small widths and patches, seconds

Both take the same patches, loss, optimisers and clipping, a step of each in turn; the seconds of a step
are the median of ``--steps``. Stock is CompressAI's own ``forward`` in float32, in the default layout of
memory. Ours is the step that ``train.py`` takes: one walk through the latents, channels last, bf16 where
the hardware gains by it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from dtufc import config
from dtufc.memory import keep_memory
from dtufc.records import format_table


@dataclass(frozen=True)
class BenchConfig:
    """What is timed."""

    small: bool = False
    """Small widths and patches."""
    steps: int = 15
    """Steps of each, after one that is not counted."""
    batch_size: int = 8
    """Patches a step."""
    threads: int = 0
    """torch threads; 0 leaves torch's own choice."""
    device: str = "cpu"
    """torch device."""


def main(argv: Sequence[str] | None = None) -> None:
    keep_memory()
    with config.report_errors():
        cfg = config.parse(BenchConfig, argv, __doc__)
        from benches.train import bench

        print(format_table(bench(cfg)))


if __name__ == "__main__":
    main()
