"""How many commands and features per second a cluster takes, and what bounds them.

    python scripts/bench_cluster.py                             1 and 2 workers, 8 and 64 simulated
    python scripts/bench_cluster.py --workers 1 2 4
    python scripts/bench_cluster.py --recorded Data_example     simulated: as long as a batch took

Workers are nodes of one core each on this machine, so that more of them than cores tell nothing but the
cores' limit. Commands are codings of a few features by a shipped codec. Features go into a corpus.

Simulated workers compute nothing: their commands wait as long as the real ones took at one worker, or as
long as the records of ``--recorded`` say, times ``--scale``. They show what starting and telling costs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dtufc import config, provenance
from dtufc.errors import UserError
from dtufc.records import format_table, write_rows


@dataclass(frozen=True)
class ClusterBenchConfig:
    """What is measured."""

    workers: list[int] = field(default_factory=lambda: [1, 2])
    """Numbers of nodes of one core."""
    simulated: list[int] = field(default_factory=lambda: [8, 64])
    """Numbers of workers that wait in place of computing."""
    jobs: int = 8
    """Commands per worker."""
    shards: int = 8
    """Shards per worker."""
    shard_samples: int = 32
    """Features per shard."""
    codec: Path = Path("klt_llama3_tiny")
    """Codec folder, or the name of a shipped codec, of features (1, 1, tokens, channels)."""
    recorded: Path | None = None
    """Data root of a batch: simulated commands wait as long as its runs took."""
    scale: float = 1
    """Factor on the seconds of --recorded."""
    output: Path | None = None
    """CSV of the rows, with revision and computer; null: none."""

    def __post_init__(self):
        counts = [*self.workers, *self.simulated, self.jobs, self.shards, self.shard_samples]
        if min(counts) < 1 or not self.scale > 0:
            raise UserError(
                "workers, simulated, jobs, shards, shard_samples: expected at least 1; scale: above 0"
            )
        if 1 not in self.workers and self.simulated and self.recorded is None:
            raise UserError("workers: expected 1 among them, which tells how long a command takes")


def main(argv: Sequence[str] | None = None) -> None:
    with config.report_errors():
        cfg = config.parse(ClusterBenchConfig, argv, __doc__)
        from benches.cluster import bench

        rows = bench(cfg)
        print(format_table(rows))
        if cfg.output is not None:
            write_rows(cfg.output, rows, provenance.computer(provenance.environment()))


if __name__ == "__main__":
    main()
