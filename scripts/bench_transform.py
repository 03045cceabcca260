"""The transform against the usual tools, on one thread: ``python scripts/bench_transform.py``.

Fit: histogram and optimal k-means with 256 centres against scikit-learn's KMeans, on standard normal
numbers cubed (peaky, with long tails). Forward: against np.digitize. Inverse: against rounding,
clipping and indexing in numpy. Each side is run once to compile and warm up, then the best of several
runs counts (one run of KMeans, which takes half a minute).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from dtufc import config


@dataclass(frozen=True)
class BenchConfig:
    """How much is measured."""

    small: bool = False
    """A hundredth of the values: shows that it runs, measures little."""
    seed: int = 0
    """Of the random values."""


def main(argv: Sequence[str] | None = None) -> None:
    with config.report_errors():
        cfg = config.parse(BenchConfig, argv, __doc__)
        from benches.transform import bench

        rows = bench(cfg)
    print(f"{'':18s} {'values':>10s} {'ours s':>8s} {'theirs s':>9s} {'faster':>7s} {'MSE':>8s}")
    for row in rows:
        mse = "" if row.mse_ratio is None else f"{row.mse_ratio:8.5f}"
        print(
            f"{row.what:18s} {row.values:10d} {row.ours_s:8.4f} {row.theirs_s:9.4f} "
            f"{row.speedup:6.1f}x {mse:8s}  against {row.theirs}"
        )


if __name__ == "__main__":
    main()
