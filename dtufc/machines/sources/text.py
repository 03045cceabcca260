"""Text as it is: the UTF-8 file ``source/<split>.txt`` of each split, or another that is named."""

from pathlib import Path

from dtufc.errors import UserError
from dtufc.machines.machine import Split
from dtufc.machines.sources.source import Texts


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
