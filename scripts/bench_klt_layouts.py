"""What two layouts in a klt codec are worth: bits per point at equal error, on features it has not seen.

    python scripts/bench_klt_layouts.py --features DIR --held_out DIR
    python scripts/bench_klt_layouts.py --features DIR --held_out DIR --machine my.yaml --format 2

Fits the usual codec, codecs whose layout was compared at low and at high rates, and one of two layouts.
Each codes the held-out features at many qualities, and every byte counts. Between them logarithms are
interpolated. ``change`` compares two layouts with one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from dtufc import config
from dtufc.errors import UserError
from dtufc.records import format_table


@dataclass(frozen=True, kw_only=True)
class LayoutsConfig:
    """What is fitted and compared."""

    features: Path
    """Folder of features to fit on."""
    held_out: Path
    """Folder of features to code."""
    machine: str | None = None
    """As fit_klt.py's."""
    clusters: list[int] | None = None
    """As fit_klt.py's."""
    format: Literal[1, 2] = 1
    """As fit_klt.py's."""
    flags: list[str] = field(default_factory=list)
    """Further flags of fit_klt.py, of all codecs: ["--memory", "true"]."""
    nmses: list[float] = field(default_factory=lambda: [0.3, 0.1, 0.03, 0.01, 0.003, 0.001])
    """Where bits are compared: MSE over the variance of all held-out values."""
    first: float = -2.5
    """The lowest quality that is coded."""
    last: float = 5.5
    """The highest one; they are half an octave apart."""

    def __post_init__(self):
        if not self.nmses or min(self.nmses) <= 0:
            raise UserError(f"nmses: expected numbers above 0, got {self.nmses}")
        if not -3 <= self.first < self.last <= 7:
            raise UserError(
                f"first, last: expected -3 <= first < last <= 7, got {self.first}, {self.last}"
            )


def main(argv: Sequence[str] | None = None) -> None:
    with config.report_errors():
        cfg = config.parse(LayoutsConfig, argv, __doc__)
        from benches.klt_layouts import bench

        layouts, rows = bench(cfg)
        print(format_table(layouts), format_table(rows), sep="\n\n")


if __name__ == "__main__":
    main()
