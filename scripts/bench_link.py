"""Where coding pays: seconds end to end over links of 1 Mb/s to 100 Gb/s, and the break-even bandwidth.

    python scripts/bench_link.py
    python scripts/bench_link.py --machine smollm2 --codec klt=DIR --quality "[3, 4, 5]"

Each stage of a split model is timed: front half, encoder, decoder, back half. The wire's time follows
from the bytes. The break-even is the bandwidth below which a codec is faster than raw bfloat16: serial,
one stage after the other, and pipelined, where the slowest stage counts. A language model has two parts:
the prompt at once, and one token at a time. Codecs are number formats, those that ship and know the
features, and those of ``--codec``. The arithmetic of the wire is checked over a shaped loopback socket.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dtufc import config
from dtufc.errors import UserError
from dtufc.records import format_table

TINY = (
    "llama3_tiny", "dinov2_tiny", "dinov2_tiny_cls", "dinov2_tiny_dpt", "sd3_tiny", "resnet50_tiny",
)  # fmt: skip


@dataclass(frozen=True)
class LinkBenchConfig:
    """What is timed."""

    machine: list[str] = field(default_factory=lambda: [*TINY])
    """Machine presets or YAMLs."""
    codec: list[str] = field(default_factory=list)
    """Further codecs, name=DIR each, for the machines whose features they know."""
    quality: list[float] | None = None
    """Qualities of codecs that have many; null: the codec's own."""
    options: list[str] = field(default_factory=list)
    """Flags of every machine's own script, key=value each: layer=1."""
    samples: int = 8
    """Test samples; times are the median over them."""
    tokens: int = 24
    """Tokens that a language model goes on for, per sample."""
    threads: int = 1
    """Threads of torch, and of the codecs' kernels."""
    check: list[str] = field(default_factory=lambda: ["10Mbit", "100Mbit", "1Gbit"])
    """Links that a shaped socket stands for, to check the arithmetic; [] checks none."""
    output: Path | None = None
    """Folder of link.csv, link_check.csv and link.png; null: printed alone."""

    def __post_init__(self):
        from dtufc.live.link import parse_bandwidth

        if min(self.samples, self.tokens, self.threads, len(self.machine)) < 1:
            raise UserError("machine, samples, tokens, threads: expected at least 1")
        for entry in self.codec:
            if not all(entry.partition("=")):
                raise UserError(f"codec: expected name=DIR, got {entry!r}")
        for link in self.check:
            if parse_bandwidth(link) is None:
                raise UserError("check: expected links as 10Mbit, not auto")


def main(argv: Sequence[str] | None = None) -> None:
    with config.report_errors():
        cfg = config.parse(LinkBenchConfig, argv, __doc__)
        from benches.link import bench
        from benches.link_tables import told, write

        rows, checks = bench(cfg)
        print(format_table([told(row) for row in rows]))
        if checks:
            print("", format_table(checks), sep="\n")
        if cfg.output is not None:
            write(cfg.output, rows, checks)


if __name__ == "__main__":
    main()
