"""Speed of the learned codecs beside CompressAI's own compress and decompress, same weights, one run.

    python scripts/bench_codec.py            published widths, the planes of the four paper machines
    python scripts/bench_codec.py --small    small widths and planes, seconds

Stock is what the published evaluation runs: float32, default memory format, Python lists into the
entropy coder. Ours is ``dtufc.codec``: the whole way from array to bitstream and back. Weights are
random, scaled so that latents spread over about ten symbols; times are the best of ``--repeats``. Each
side runs in a process of its own, so that each peak of memory is its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from dtufc import config
from dtufc.records import format_table


@dataclass(frozen=True)
class BenchConfig:
    """What is timed."""

    small: bool = False
    """Small widths and one small plane."""
    repeats: int = 2
    """Each time is the best of so many, after one that is not counted."""
    threads: int = 0
    """torch threads; 0 leaves torch's own choice."""
    device: str = "cpu"
    """torch device of the networks."""
    planes: list[str] | None = None
    """Only these: llama3, dinov2, sd3, resnet50, and "ten dinov2", which the default leaves out."""
    codecs: list[str] | None = None
    """Only these codecs: hyperprior, elic."""
    stock: bool = True
    """Time CompressAI's own path too."""


def main(argv: Sequence[str] | None = None) -> None:
    with config.report_errors():
        cfg = config.parse(BenchConfig, argv, __doc__)
        from benches.codec import bench

        print(format_table(bench(cfg)))


if __name__ == "__main__":
    main()
