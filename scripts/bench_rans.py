"""Speed of the entropy coder beside others, one thread, one run: ``python scripts/bench_rans.py``.

The symbols are Gaussian with the scales of CompressAI's 64 tables, in random order, as a codec's latents
are. Ours is ``dtufc.rans``. CompressAI's coder takes Python lists; their making is counted, as it must
be where symbols come from a tensor. ``constriction`` (``pip install constriction``; not among the
requirements) codes with one Gaussian a symbol.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from dtufc import config
from dtufc.records import format_table


@dataclass(frozen=True)
class BenchConfig:
    """What is timed."""

    symbols: int = 1_000_000
    """How many symbols."""
    largest_scale: float = 4.0
    """Standard deviations are drawn between 0.11 and this, evenly in the log domain."""
    repeats: int = 3
    """Each time is the best of so many, after one that is not counted."""


def main(argv: Sequence[str] | None = None) -> None:
    with config.report_errors():
        cfg = config.parse(BenchConfig, argv, __doc__)
        from benches.rans import bench

        print(format_table(bench(cfg)))


if __name__ == "__main__":
    main()
