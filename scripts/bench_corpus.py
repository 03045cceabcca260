"""A corpus beside what hidden states are stored as today: bits, error, and how fast a loader reads.

    python scripts/bench_corpus.py --features DIR --codec CODEC

The features of a folder, tokens of one layer, are stored as .npy in float16, the same under zstd, as
8-bit floats (e4m3, scaled by the largest value of each token), and as a corpus at each quality. Each is
read in windows by a torch DataLoader with 0, 1 and 2 workers, in random order. All in one run: compare
the columns with each other.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dtufc import config, provenance
from dtufc.errors import UserError
from dtufc.records import format_table, write_rows


@dataclass(frozen=True)
class BenchConfig:
    """What is measured."""

    features: Path
    """Folder of .npy features (1, 1, tokens, channels), and below."""
    codec: Path
    """Codec folder, or the name of a shipped codec."""
    quality: list[float] | None = None
    """Qualities of the codec; null: its default."""
    rows: int = 64
    """Tokens per window, and per frame."""
    workers: list[int] = field(default_factory=lambda: [0, 1, 2])
    """Numbers of a loader's workers."""
    batch_size: int = 8
    """Windows per batch."""
    repeat: int = 1
    """Times that each feature is stored, under different names: a small folder says little of speed."""
    output: Path | None = None
    """CSV that the table is written to, with revision and processor."""

    def __post_init__(self):
        if min(self.rows, self.batch_size, self.repeat) < 1 or min(self.workers, default=-1) < 0:
            raise UserError(
                "rows, batch_size, repeat: expected at least 1; workers: some numbers from 0 on"
            )


def main(argv: Sequence[str] | None = None) -> None:
    with config.report_errors():
        cfg = config.parse(BenchConfig, argv, __doc__)
        from benches.corpus import bench

        rows = bench(cfg)
        if cfg.output is not None:
            write_rows(cfg.output, rows, provenance.computer(provenance.environment()))
        print(format_table(rows))


if __name__ == "__main__":
    main()
