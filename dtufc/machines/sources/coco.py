"""COCO captions: the lines of ``source/<split>.txt``, which ``scripts/prepare_coco.py`` writes."""

from pathlib import Path

from dtufc.errors import UserError
from dtufc.machines.machine import Split
from dtufc.machines.sources.lists import read_lines
from dtufc.machines.sources.source import Caption, Captions


class Coco(Captions):
    def inputs(self, split: Split) -> list[Path]:
        path = self.list_path(split)
        return [path] if path.is_file() else []

    def captions(self, split: Split) -> list[Caption]:
        """The list's lines: an image's id, a space and a caption, which is the label too.

        Raises:
            FileNotFoundError, UserError: the list is missing or a line is not as above.
        """
        path = self.list_path(split)
        found: dict[str, Caption] = {}
        holds = "a COCO image's id and a caption (https://cocodataset.org) per line"
        for number, line in read_lines(path, holds, "prepare_coco.py"):
            name, _, text = line.partition(" ")
            text = text.strip()
            if not name.isalnum() or not text or name in found:
                raise UserError(
                    f"{path}:{number}: expected 'id caption', each id once, got {line!r}"
                )
            found[name] = Caption(name, text, text)
        return list(found.values())[: self.counts.get(split)]
