"""Fill in what pages quote of results: ``python quote_results.py [--check true] [--pages FILE.md ...]``.

Tables between ``<!-- quote ... -->`` and ``<!-- /quote -->`` are made again from the CSV that the first
comment names; ``dtufc/report/quotes.py`` says what it may ask for.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dtufc import config, files
from dtufc.errors import UserError
from dtufc.paths import REPOSITORY

PAGES = ("README.md", "results/*.md", "docs/**/*.md")


@dataclass(frozen=True)
class QuoteConfig:
    """Quotes of results."""

    pages: list[Path] | None = None
    """Markdown files; by default README.md and those below results/ and docs/."""
    check: bool = False
    """Write nothing; fail where a page disagrees with its CSV."""
    root: Path = REPOSITORY
    """Folder that the CSVs are named from."""


def default_pages(root: Path = REPOSITORY) -> list[Path]:
    """The pages of a repository that may quote results."""
    return [path for pattern in PAGES for path in sorted(root.glob(pattern))]


def quote(cfg: QuoteConfig) -> list[Path]:
    """Make the quotes of all pages again -> the pages that changed.

    Raises:
        FileNotFoundError, UserError: a page's quote cannot be made; the message names the page.
        UserError: with ``check``, a page disagrees; the message names it and its first such line.
    """
    from dtufc.report.quotes import requote  # after the flags: --help needs no tables

    changed = []
    for path in cfg.pages or default_pages(cfg.root):
        before = path.read_text()
        try:
            after = requote(before, cfg.root)
        except (UserError, FileNotFoundError) as error:
            raise UserError(f"{path}: {error}") from error
        if after == before:
            continue
        if cfg.check:
            old, new = before.splitlines(), after.splitlines()
            pairs = zip([*old, ""], [*new, ""], strict=False)
            line = next((k for k, (a, b) in enumerate(pairs, start=1) if a != b), len(old))
            told = (new + [""] * line)[line - 1]
            raise UserError(
                f"{path}:{line}: disagrees with its CSV, which says {told!r}; "
                "python scripts/quote_results.py writes it again"
            )
        files.write_text(path, after)
        changed.append(path)
    return changed


def main(argv: Sequence[str] | None = None) -> None:
    with config.report_errors():
        for path in quote(config.parse(QuoteConfig, argv, __doc__)):
            print(path)


if __name__ == "__main__":
    main()
