"""The codec without a network on a CUDA device: speed of each direction, beside casts.

    python scripts/bench_klt_gpu.py                       8192 x 4096 and 8192 x 576 at 1.3 bits
    python scripts/bench_klt_gpu.py --sweep true          and other settings of dtufc.klt.gpu.Tuning

Features are made up, as bench_klt.py's; their transform is the one that they were made with, and the
tables are fitted in seconds. Times are wall time from a tensor on the device to bytes in memory and
back, the median of ``--repeats``. Bytes are compared with those that the CPU makes of the same symbols.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from dtufc import config
from dtufc.errors import UserError
from dtufc.records import format_table


@dataclass(frozen=True)
class GpuBenchConfig:
    """What is timed."""

    tokens: int = 8192
    """Tokens of a feature."""
    channels: list[int] = field(default_factory=lambda: [4096, 576])
    """Widths of a token."""
    bpfp: float = 1.3
    """Rate aimed at, in bits per point."""
    sweep: bool = False
    """Time other tunings of each kernel too, at the first width, and check that results are the same."""
    repeats: int = 9
    """Each time is the median of so many, after two that are not counted."""
    device: str = "cuda"
    """The CPU works too, under Triton's interpreter (TRITON_INTERPRET=1), for tests."""

    def __post_init__(self):
        if not self.channels or min(*self.channels, self.tokens, self.repeats) < 1:
            raise UserError("tokens, channels, repeats: expected numbers of at least 1")


def main(argv: Sequence[str] | None = None) -> None:
    with config.report_errors():
        cfg = config.parse(GpuBenchConfig, argv, __doc__)
        from benches.klt_gpu import bench

        speeds, stages = bench(cfg)
        print(format_table(speeds))
        print(format_table(stages))


if __name__ == "__main__":
    main()
