"""One page of all results: ``python report.py [--data_root DIR] [--output DIR]``.

Reads the records under a data root and writes ``report.html``, which needs neither server nor network,
with each of its tables as CSV and LaTeX beside it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dtufc import config
from dtufc.paths import default_data_root


@dataclass(frozen=True)
class ReportConfig:
    """A report."""

    data_root: Path = field(default_factory=default_data_root)
    """Data root whose records are shown."""
    output: Path | None = None
    """Folder of report.html and its tables; <data_root>/report by default."""
    anchor: str | None = None
    """Curve that BD-rates are relative to, codec/trained_on/transform. By default each machine's own:
    the curve of at least three points that most others can be compared with."""
    samples: bool = False
    """Let the machines judge again, and keep their pictures, where the samples that the page shows lack
    them."""


def main(argv: Sequence[str] | None = None) -> None:
    with config.report_errors():
        cfg = config.parse(ReportConfig, argv, __doc__)
        from dtufc.report.page import write_report  # after the flags: --help needs no plots

        output = cfg.output or cfg.data_root / "report"
        print(write_report(cfg.data_root, output, cfg.anchor, cfg.samples))


if __name__ == "__main__":
    main()
