"""ARC-Challenge: the questions that ``source/<split>.txt`` lists, as ``scripts/prepare_arc.py`` put
them into ``source/arc_challenge_<split>.jsonl``."""

from pathlib import Path

from dtufc import files
from dtufc.errors import UserError
from dtufc.machines.machine import Split
from dtufc.machines.sources.lists import read_names
from dtufc.machines.sources.source import CHOICES, Question, Questions

SCRIPT = "prepare_arc.py"


class Arc(Questions):
    def inputs(self, split: Split) -> list[Path]:
        paths = [self.list_path(split), self._questions(split)]
        return [path for path in paths if path.is_file()]

    def questions(self, split: Split) -> list[Question]:
        """The listed questions, in the list's order.

        Raises:
            FileNotFoundError: a file is missing; the message says where it comes from.
            UserError: a listed question is not there or not sound; the message names file and id.
        """
        path = self._questions(split)
        holds = "ids of questions of ARC-Challenge (https://allenai.org/data/arc), one per line"
        names = read_names(self.list_path(split), holds, SCRIPT)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: missing; scripts/{SCRIPT} writes it")
        known = {row["id"]: row for row in files.read_json_lines(path)
                 if isinstance(row, dict) and isinstance(row.get("id"), str)}  # fmt: skip
        chosen = names[: self.counts.get(split)]
        return [_parse(known.get(name), f"{path}: question {name}") for name in chosen]

    def _questions(self, split: Split) -> Path:
        return self.folder / f"arc_challenge_{split}.jsonl"


def _parse(row: dict | None, where: str) -> Question:
    if row is None:
        raise UserError(f"{where}: not in the file")
    try:
        choices = row["question"]["choices"]
        labels = [choice["label"] for choice in choices]
        texts = tuple(choice["text"] for choice in choices)
        answer = labels.index(row["answerKey"])  # labels are letters or 1..4: the place counts
        question = Question(row["id"], row["question"]["stem"], texts, answer)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{where}: expected id, question.stem, question.choices of text and label, and an "
            f"answerKey that is a label ({error!r})"
        ) from error
    if len(texts) not in CHOICES:
        raise UserError(
            f"{where}: expected {CHOICES[0]} to {CHOICES[-1]} choices, got {len(texts)}"
        )
    return question
