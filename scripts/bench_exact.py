"""How often bytes written under one setting do not decode under another: float networks and integers.

    python scripts/bench_exact.py                 published widths, random weights
    python scripts/bench_exact.py --codec DIR     a trained codec

Each feature is encoded under one setting, in turn, and decoded under all of them: threads, oneDNN on and
off, the layout of tensors in memory, deterministic algorithms, autocast; with a GPU also there.
``float`` lets the float networks decide the entropy parameters, as CompressAI does; ``exact`` is what
codecs here do. Counted is what does not come back with the encoder's latents (the checksum in the
bitstream tells).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dtufc import config
from dtufc.memory import keep_memory
from dtufc.records import format_table


@dataclass(frozen=True)
class TrialConfig:
    """What is tried."""

    codec: Path | None = None
    """A codec folder; null takes both codecs at published widths with random weights."""
    features: int = 20
    """Made-up features; where the kind leaves sizes open, of 64 to 128 rows and 128 columns."""


def main(argv: Sequence[str] | None = None) -> None:
    keep_memory()
    with config.report_errors():
        cfg = config.parse(TrialConfig, argv, __doc__)
        from benches.exact import run

        print(format_table(run(cfg)))


if __name__ == "__main__":
    main()
