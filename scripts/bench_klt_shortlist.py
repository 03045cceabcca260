"""What a klt mixture's shortlist costs and saves: bits, error and time by how many clusters are tried.

    python scripts/bench_klt_shortlist.py --codec CODEC --features DIR

Codes tokens of the features at some qualities, with the best 1, 2, ... clusters of the shortlist and
with all. The change of bits is at equal NMSE: logarithms of the rate with all clusters are interpolated
between neighbouring qualities. Bits are those that the tables promise; the post-filter is left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dtufc import config
from dtufc.errors import UserError
from dtufc.records import format_table


@dataclass(frozen=True)
class ShortlistConfig:
    """What is compared."""

    codec: Path
    """Codec folder: klt, a mixture of tokens."""
    features: Path
    """Folder of features that it was not fitted to."""
    qualities: list[float] = field(default_factory=lambda: [-1.0, 0.0, 1.0, 2.0, 3.0, 4.0])
    """Ascending."""
    tried: list[int] = field(default_factory=lambda: [1, 2, 3, 4])
    """Clusters of the shortlist."""
    tokens: int = 1000
    """Tokens at most, spread over the features."""
    repeats: int = 20
    """Each time is the best of so many, after one that is not counted; 0: no times."""

    def __post_init__(self):
        if len(self.qualities) < 2 or sorted(set(self.qualities)) != self.qualities:
            raise UserError(f"qualities: expected two at least, ascending, got {self.qualities}")
        if not self.tried or min(self.tried) < 1:
            raise UserError(f"tried: expected numbers of at least 1, got {self.tried}")


def main(argv: Sequence[str] | None = None) -> None:
    with config.report_errors():
        cfg = config.parse(ShortlistConfig, argv, __doc__)
        from benches.klt_shortlist import bench

        print(format_table(bench(cfg)))


if __name__ == "__main__":
    main()
