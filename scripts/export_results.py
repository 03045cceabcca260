"""All results of a data root as one CSV: ``python export_results.py --data_root DIR --output FILE``.

A row per finished run, and per kind of feature uncompressed: codec, training set, options, rate, error,
task metric with its error bar, seed, computer and revision. ``quote_results.py`` puts it into pages.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dtufc import config, files
from dtufc.paths import default_data_root


@dataclass(frozen=True)
class ExportConfig:
    """An export."""

    output: Path
    """The CSV, written whole."""
    data_root: Path = field(default_factory=default_data_root)
    """Data root whose records are exported."""


def main(argv: Sequence[str] | None = None) -> None:
    with config.report_errors():
        cfg = config.parse(ExportConfig, argv, __doc__)
        from dtufc.report.results import collect, to_csv  # after the flags: --help needs no tables

        rows = collect(cfg.data_root)
        files.write_text(cfg.output, to_csv(rows))
        print(f"{cfg.output}: {len(rows)} rows")


if __name__ == "__main__":
    main()
