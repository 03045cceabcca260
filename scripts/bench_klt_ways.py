"""What flags of fit_klt.py are worth: bits per point at equal error, on features it has not seen.

    python scripts/bench_klt_ways.py --features DIR --held_out DIR --ways '["", "--layouts two"]'
    python scripts/bench_klt_ways.py --features DIR --held_out DIR --machine my.yaml \
        --ways '["--format 2", "--format 2 --contexts true"]'

Fits a codec with each set of flags. Each codes the held-out features at many qualities, and every byte
counts. Between them logarithms are interpolated. ``change`` compares with the first set of flags.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dtufc import config
from dtufc.errors import UserError
from dtufc.records import format_table


@dataclass(frozen=True, kw_only=True)
class WaysConfig:
    """What is fitted and compared."""

    features: Path
    """Folder of features to fit on."""
    held_out: Path
    """Folder of features to code."""
    ways: list[str]
    """Flags of fit_klt.py, a string for each codec; "" for none."""
    machine: str | None = None
    """As fit_klt.py's."""
    nmses: list[float] = field(default_factory=lambda: [0.3, 0.1, 0.03, 0.01, 0.003, 0.001])
    """Where bits are compared: MSE over the variance of all held-out values."""
    first: float = -2.5
    """The lowest quality that is coded."""
    last: float = 5.5
    """The highest one; they are half an octave apart."""

    def __post_init__(self):
        if len({*self.ways}) < max(len(self.ways), 1):
            raise UserError(f"ways: expected one or more, each once, got {self.ways}")
        for way in self.ways:
            try:
                shlex.split(way)
            except ValueError as error:
                raise UserError(f"ways: {way!r}: {error}") from error
        if not self.nmses or min(self.nmses) <= 0:
            raise UserError(f"nmses: expected numbers above 0, got {self.nmses}")
        if not -3 <= self.first < self.last <= 7:
            raise UserError(
                f"first, last: expected -3 <= first < last <= 7, got {self.first}, {self.last}"
            )


def main(argv: Sequence[str] | None = None) -> None:
    with config.report_errors():
        cfg = config.parse(WaysConfig, argv, __doc__)
        from benches.klt_ways import bench

        fitted, rows = bench(cfg)
        print(format_table(fitted), format_table(rows), sep="\n\n")


if __name__ == "__main__":
    main()
