"""The codec without a network at full size: fit, model and speed of each direction.

    python scripts/bench_klt.py                                  4096 channels, 50 000 training tokens
    python scripts/bench_klt.py --channels 384 --tokens 10000 --clusters "[8]"

The features are made up: tokens of a few kinds, channels that go together with a power law for their
spectrum, two channels with massive values. The fit runs as a process of its own, so that its time and
memory are those of the command. Speeds are of one thread, the best of ``--repeats``, in points: lanes
are symbols to string and back; encode and decode are the whole way from array to bitstream and
back, also as a ratio to the time of the plain product x @ basis.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from dtufc import config
from dtufc.records import format_table


@dataclass(frozen=True)
class BenchConfig:
    """What is timed."""

    channels: int = 4096
    """Width of a token."""
    tokens: int = 50_000
    """Tokens to fit on."""
    tokens_per_file: int = 200
    """Tokens per feature."""
    clusters: list[int] | None = None
    """As fit_klt.py's."""
    contexts: bool = False
    """As fit_klt.py's."""
    qualities: list[float] | None = None
    """Where speeds are measured; null takes -0.5, 0.5 and 1.5."""
    repeats: int = 3
    """Each time is the best of so many, after one that is not counted."""


def main(argv: Sequence[str] | None = None) -> None:
    with config.report_errors():
        cfg = config.parse(BenchConfig, argv, __doc__)
        from benches.klt import bench

        print(format_table(bench(cfg)))


if __name__ == "__main__":
    main()
