"""Bytes per appended token and milliseconds per append, for every codec, at 1, 8 and 64 tokens.

    python machines/llama3/llama3.py --machine llama3_tiny --mode extract
    python scripts/bench_streams.py

Features of a language model are laid end to end, as one long text gives them, and appended to a session
in frames of so many tokens. The session's header is not counted, nor is the first frame, which tells the
setting. Beside it stands the file of version 1 of the same tokens. Codecs are those that ship and know
the kind, and those that a user would pick instead, fitted to the training features. Times are
processor time of one thread, so that other work counts little: the median over all frames but the
first few. ``--quality '{"klt": 4}'`` sets the rate.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dtufc import config, provenance
from dtufc.errors import UserError
from dtufc.paths import default_data_root
from dtufc.records import format_table, write_rows


@dataclass(frozen=True)
class BenchConfig:
    """What is measured."""

    machine: str = "llama3_tiny"
    """Machine preset or YAML of the features."""
    data_root: Path | None = None
    """Data root with the machine's features; null: the default one."""
    codecs: list[str] | None = None
    """Codec folders or names of shipped codecs; null: all that ship and know the kind, and int, cast,
    jpegxl and hevc."""
    mapping: Path | None = None
    """Mapping file of the machine's features, for universal codecs that were not trained on them."""
    quality: dict[str, float] | None = None
    """Quality by the codec's name in the registry, as klt; others: each its own."""
    tokens: list[int] | None = None
    """Tokens per append; null: 1, 8, 64."""
    appends: int = 40
    """Appends of each number of tokens."""
    continued: bool = True
    """Frames go on from those before, where a codec gains by it; false: each is coded for itself."""
    output: Path | None = None
    """CSV that the table is written to, with revision and processor."""

    def __post_init__(self):
        if self.appends < 4 or any(count < 1 for count in self.tokens or ()):
            raise UserError("appends, tokens: expected at least 4 appends of at least 1 token")

    @property
    def root(self) -> Path:
        return self.data_root or default_data_root()


def main(argv: Sequence[str] | None = None) -> None:
    with config.report_errors():
        cfg = config.parse(BenchConfig, argv, __doc__)
        from benches.streams import bench

        rows = bench(cfg)
        if cfg.output is not None:
            write_rows(cfg.output, rows, provenance.computer(provenance.environment()))
        print(format_table(rows))


if __name__ == "__main__":
    main()
