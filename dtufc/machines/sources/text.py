"""Text as it is: the UTF-8 file ``source/<split>.txt`` of each split, or another that is named.

Splits may name the same file; their samples then follow one another in it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import get_args

from dtufc.errors import UserError
from dtufc.machines.machine import Split
from dtufc.machines.sources.source import Texts
from dtufc.stamps import digest_file

SPLITS: tuple[Split, ...] = get_args(Split)
"""In the order in which they share a file."""


class TextFiles(Texts):
    def inputs(self, split: Split) -> list[Path]:
        path = self.list_path(split)
        return [path] if path.is_file() else []

    def texts(self, split: Split) -> list[str]:
        """The file as one document.

        Raises:
            FileNotFoundError: its file is missing.
            UserError: it is empty, or not UTF-8.
        """
        path = self.list_path(split)
        if not path.is_file():
            raise FileNotFoundError(
                f"{path}: missing; put a UTF-8 text there, or name one by --texts '{{{split}: FILE}}'"
            )
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: expected text in UTF-8 ({error})") from error
        if not text.strip():
            raise UserError(f"{path}: the text is empty")
        return [text]


def splits_before(source: Texts, counts: Mapping[str, int], split: Split) -> list[int]:
    """Samples that each of the splits before this one takes of the same text.

    Raises:
        UserError: one of them takes all that there is.
    """
    path = source.list_path(split)
    before = [
        name
        for name in SPLITS[: SPLITS.index(split)]
        if source.list_path(name).resolve() == path.resolve()
    ]
    if open_ended := [name for name in before if name not in counts]:
        raise UserError(f"counts: {path} serves {open_ended[0]} and {split}; give the first's")
    return [counts[name] for name in before]


def digest_texts(source: Texts) -> dict[str, str] | None:
    """SHA-256 of each split's text, where it is there; ``None`` where none is."""
    paths = {name: source.list_path(name) for name in SPLITS}
    return {name: digest_file(path) for name, path in paths.items() if path.is_file()} or None
