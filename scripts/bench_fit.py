"""The fit of the codec without a network: time, memory, and rate on features it has not seen.

    python scripts/bench_fit.py                                    576 channels, 30 000 tokens
    python scripts/bench_fit.py --channels 4096 --tokens 50000
    python scripts/bench_fit.py --features DIR --held_out DIR      your own features
    python scripts/bench_fit.py --format 2 --before REVISION       the second format, old and new

Each way to fit runs as a process of its own on the same files: the race, the exhaustive search over the
same layouts, and, with ``--before REVISION``, the fit of an earlier commit of this repository. Then each
codec codes the same held-out features. ``rate`` compares all bytes at equal error with the first row's,
as the mean over the qualities that are named. Kernels are compiled before the clock starts.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from dtufc import config
from dtufc.errors import UserError
from dtufc.records import format_table


@dataclass(frozen=True)
class BenchConfig:
    """What is timed."""

    channels: int = 576
    """Width of a token of made-up features."""
    tokens: int = 30_000
    """Tokens to fit on."""
    tokens_per_file: int = 200
    """Tokens per feature."""
    features: Path | None = None
    """Folder of features to fit on, in place of made-up ones."""
    held_out: Path | None = None
    """Folder of features to code; goes with --features."""
    machine: str | None = None
    """As fit_klt.py's."""
    searches: list[str] = field(default_factory=lambda: ["race", "exhaustive"])
    """As fit_klt.py's --search; the first is what the others are compared with."""
    before: str | None = None
    """A commit of this repository whose fit is timed as well."""
    clusters: list[int] | None = None
    """As fit_klt.py's."""
    format: Literal[1, 2] = 1
    """As fit_klt.py's, of all ways."""
    qualities: list[float] = field(default_factory=lambda: [-0.5, 0.5, 1.5, 2.5])
    """Where rates are compared."""

    def __post_init__(self):
        if (self.features is None) != (self.held_out is None):
            raise UserError("features, held_out: give both of them or none")


def main(argv: Sequence[str] | None = None) -> None:
    with config.report_errors():
        cfg = config.parse(BenchConfig, argv, __doc__)
        from benches.fit import bench

        print(format_table(bench(cfg)))


if __name__ == "__main__":
    main()
