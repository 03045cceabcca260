"""What the parts of `klt` are worth on a language model: bits against the next token's distribution.

    python scripts/bench_klt_language.py --work DIR --output results/real_klt.csv

Takes hidden states of the machine's texts, measures what errors cost, fits a codec of each way, and lets
the back half read what it decodes. What is in DIR already and current is kept, so a run that was stopped
goes on. Beside the rows a file with ``_at`` in its name has the bits at given divergences and at a
perplexity of 1 % above the uncut model's, interpolated between neighbouring qualities.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dtufc import config
from dtufc.errors import UserError
from dtufc.memory import keep_memory
from dtufc.records import format_table

METRICS: dict[str, list[str]] = {
    "channels": [],
    "diagonal": ["--diagonal", "true"],
    "tokens": ["--importance", "true"],
    "tokens by half": ["--importance", "true", "--focus", "0.5"],
}
"""What each metric is measured with."""
WAYS: dict[str, dict[str, str]] = {
    "format 1": {},
    "format 2, metric of tokens": {"format": "2", "metric": "tokens"},
    "format 2": {"format": "2"},
    "format 2, metric of channels": {"format": "2", "metric": "channels"},
    "format 2, metric of tokens by half": {"format": "2", "metric": "tokens by half"},
    "format 2, memory": {"format": "2", "memory": "true"},
    "format 2, memory, metric of channels": {"format": "2", "memory": "true", "metric": "channels"},
    "format 2, memory, metric of tokens": {"format": "2", "memory": "true", "metric": "tokens"},
    "format 2, prediction": {"format": "2", "predict": "true"},
    "format 2, prediction, metric of channels": {
        "format": "2",
        "predict": "true",
        "metric": "channels",
    },
    "format 2, contexts": {"format": "2", "contexts": "true"},
    "format 2, contexts, prediction, metric of channels": {
        "format": "2",
        "contexts": "true",
        "predict": "true",
        "metric": "channels",
    },
    "format 1, memory": {"memory": "true"},
    "format 2, diagonal metric": {"format": "2", "metric": "diagonal"},
}
"""Codecs by name, and the flags of their fit that are not the usual ones; a metric by its name."""


@dataclass(frozen=True)
class LanguageConfig:
    """What is compared."""

    work: Path
    """Folder of features, metrics and codecs."""
    output: Path
    """CSV of the rows."""
    machine: str = "smollm2"
    """Preset or YAML of a language model whose score is the perplexity."""
    options: list[str] = field(default_factory=list)
    """Flags of the machine's own script, key=value each."""
    stride: int = 3
    """Of so many windows of a text one is taken."""
    fitted: int = 40
    """Windows of the training text that codecs are fitted on."""
    probed: int = 20
    """Of these, windows whose gradients are taken: the first."""
    judged: int = 8
    """Windows of the test text."""
    clusters: list[int] = field(default_factory=lambda: [1, 4])
    """Mixtures that the fits try."""
    ways: list[str] = field(default_factory=lambda: list(WAYS))
    """Codecs by name, in the order of their rows."""
    bits: list[float] = field(default_factory=lambda: [1.1, 1.5, 1.95, 2.4, 2.9])
    """About where each codec is judged, in bits per point: at the qualities that come next."""
    divergences: list[float] = field(default_factory=lambda: [0.04, 0.008])
    """KL in nats per token at which bits are told."""

    def __post_init__(self):
        if strange := [name for name in self.ways if name not in WAYS]:
            raise UserError(f"ways: expected some of {list(WAYS)}, got {strange[0]!r}")
        if len(self.bits) < 2:
            raise UserError(f"bits: expected two at least, got {self.bits}")
        for name, least in (("stride", 1), ("fitted", 4), ("probed", 4), ("judged", 2)):
            if getattr(self, name) < least:
                raise UserError(f"{name}: expected at least {least}, got {getattr(self, name)}")


def main(argv: Sequence[str] | None = None) -> None:
    keep_memory()
    with config.report_errors():
        cfg = config.parse(LanguageConfig, argv, __doc__)
        from benches.klt_language import run

        rows, at = run(cfg)
        print(format_table(rows), format_table(at), sep="\n\n")


if __name__ == "__main__":
    main()
