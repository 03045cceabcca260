"""Turn ARC-Challenge into the questions and lists that the machine of language models reads.

    python scripts/prepare_arc.py --arc DIR

Takes the folder of either release, or single files of it:

- https://ai2-public-datasets.s3.amazonaws.com/arc/ARC-V1-Feb2018.zip
  (https://allenai.org/data/arc): ``ARC-Challenge-{Train,Dev,Test}.jsonl``
- https://huggingface.co/datasets/allenai/ai2_arc, folder ``ARC-Challenge``:
  ``{train,validation,test}-00000-of-00001.parquet``

Either is written below ``source/`` in the form of the first: ``arc_challenge_<split>.jsonl`` with every
question, and ``<split>.txt`` with the ids of those whose features are extracted, one per line.
As published, ``test.txt`` holds the 500 longest questions (:func:`length`). The complete release has
1119 train, 299 validation and 1172 test questions.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dtufc import config, files
from dtufc.errors import UserError
from dtufc.feature import load_facts
from dtufc.paths import DataRoot, default_data_root

RELEASES = {
    "train": ("ARC-Challenge-Train.jsonl", "train-00000-of-00001.parquet"),
    "validation": ("ARC-Challenge-Dev.jsonl", "validation-00000-of-00001.parquet"),
    "test": ("ARC-Challenge-Test.jsonl", "test-00000-of-00001.parquet"),
}
FOLDER = "ARC-Challenge"  # of either release, beside ARC-Easy
LISTED = range(3, 6)  # numbers of choices that a prompt of four lines can stand for


@dataclass(frozen=True)
class ArcConfig:
    """Preparation of ARC-Challenge."""

    arc: list[Path]
    """The release's folder, with a file for each split; or files of it, for their splits alone."""
    test_count: int = 500
    """How many test questions are listed, the longest; 0 lists all."""
    train_count: int = 0
    """How many train questions are listed, the first; 0 lists all."""
    validation_count: int = 0
    """How many validation questions are listed, the first; 0 lists all."""
    choices: int | None = None
    """List only questions with so many choices; null takes 3, 4 and 5."""
    machine: str = "llama3"
    """Machine preset or YAML file whose source folder the files go to."""
    data_root: Path = field(default_factory=default_data_root)
    """Data root."""

    def __post_init__(self):
        if min(self.test_count, self.train_count, self.validation_count) < 0:
            raise UserError("test_count, train_count, validation_count: expected 0 or more")
        if self.choices is not None and self.choices not in LISTED:
            raise UserError(f"choices: expected one of {list(LISTED)} or null, got {self.choices}")

    def count(self, split: str) -> int:
        return getattr(self, f"{split}_count")


def prepare_arc(cfg: ArcConfig) -> tuple[dict[str, int], Path]:
    """Convert the given splits and list their questions -> questions listed by split, the folder.

    Nothing is written before every split has been read and found sound.

    Raises:
        FileNotFoundError: a file is missing, or the folder lacks a split.
        UserError: a file is not what its release holds, or has too few questions.
    """
    facts = load_facts(cfg.machine)
    source = DataRoot(cfg.data_root).feature(facts.model, facts.task).source
    found = find_splits(cfg.arc)
    questions = {split: read_questions(path) for split, path in found.items()}
    listed = {split: choose(questions[split], cfg, split, found[split]) for split in questions}
    for split, rows in questions.items():
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        files.write_text(source / f"arc_challenge_{split}.jsonl", "".join(lines))
        files.write_text(source / f"{split}.txt", "".join(f"{id}\n" for id in listed[split]))
    return {split: len(ids) for split, ids in listed.items()}, source


def find_splits(paths: Sequence[Path]) -> dict[str, Path]:
    """The file of each split, by the names of :data:`RELEASES`; a folder must hold all splits.

    Raises:
        FileNotFoundError: a path or a split's file is not there.
        UserError: a file has another name, or two files are of one split.
    """
    found: dict[str, Path] = {}
    for path in paths:
        if path.is_dir():
            candidates = {split: _in_folder(path, split) for split in RELEASES}
        elif path.is_file():
            candidates = {s: [path] for s, names in RELEASES.items() if path.name in names}
            if not candidates:
                names = ", ".join(name for pair in RELEASES.values() for name in pair)
                raise UserError(f"{path}: expected a file of ARC-Challenge named one of {names}")
        else:
            raise FileNotFoundError(f"{path}: no such file or folder of ARC-Challenge")
        for split, hits in candidates.items():
            if not hits:
                raise FileNotFoundError(
                    f"{path}: the {split} split is missing, expected {' or '.join(RELEASES[split])}"
                )
            if len(hits) > 1 or split in found:
                others = ", ".join(str(hit) for hit in [found.get(split), *hits] if hit)
                raise UserError(f"{others}: expected one file of the {split} split")
            found[split] = hits[0]
    return found


def _in_folder(folder: Path, split: str) -> list[Path]:
    places = [place / name for place in (folder, folder / FOLDER) for name in RELEASES[split]]
    return [place for place in places if place.is_file()]


def read_questions(path: Path) -> list[dict[str, Any]]:
    """All questions of one file of either release, in its order and in ARC's own form:
    ``id``, ``question`` of ``stem`` and ``choices`` (each ``text`` and ``label``), ``answerKey``.

    Raises:
        UserError: a question is not sound or an id comes twice; the message names the file.
    """
    rows = _read_parquet(path) if path.suffix == ".parquet" else files.read_json_lines(path)
    questions: dict[str, dict[str, Any]] = {}
    for number, row in enumerate(rows, start=1):
        question = _check(row, f"{path}: question {number}")
        if question["id"] in questions:
            raise UserError(f"{path}: question {number}: {question['id']} is there twice")
        questions[question["id"]] = question
    return list(questions.values())


def _read_parquet(path: Path) -> list[dict[str, Any]]:
    """Rows of the Hugging Face release, turned into ARC's own form."""
    import pyarrow  # only this form of the release needs it
    from pyarrow.parquet import ParquetFile

    columns = ["id", "question", "choices", "answerKey"]
    try:
        with ParquetFile(path) as file:
            missing = [name for name in columns if name not in file.schema_arrow.names]
            if missing:
                raise UserError(f"{path}: expected the columns {columns}, {missing} are missing")
            rows = file.read(columns).to_pylist()
    except pyarrow.ArrowException as error:
        raise UserError(f"{path}: not a parquet file ({error})") from error
    return [row | {"question": _nest(row["question"], row["choices"], path)} for row in rows]


def _nest(stem: str, choices: Any, path: Path) -> dict[str, Any]:
    try:
        pairs = list(zip(choices["text"], choices["label"], strict=True))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: expected choices of as many text as label, got {choices}"
        ) from error
    return {"stem": stem, "choices": [{"text": text, "label": label} for text, label in pairs]}


def _check(row: Any, where: str) -> dict[str, Any]:
    """The question with the form's keys alone, in one order whatever the release's is."""
    try:
        stem, given = row["question"]["stem"], row["question"]["choices"]
        choices = [{"text": choice["text"], "label": choice["label"]} for choice in given]
        question = {
            "id": row["id"],
            "question": {"stem": stem, "choices": choices},
            "answerKey": row["answerKey"],
        }
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{where}: expected id, question.stem, question.choices of text and label, answerKey "
            f"({error!r})"
        ) from error
    labels = [choice["label"] for choice in choices]
    texts = [question["id"], stem, *labels, *(choice["text"] for choice in choices)]
    if not all(isinstance(text, str) for text in texts):
        raise UserError(f"{where}: expected texts for id, stem, choices and labels")
    if question["answerKey"] not in labels:
        raise UserError(f"{where}: answerKey {question['answerKey']!r} is none of {labels}")
    return question


def length(question: dict[str, Any]) -> int:
    """Characters of the stem and of all choices together.

    What a prompt adds is the same for all questions, so it is left out; and characters are counted,
    not tokens, so that the list hangs on no tokenizer.
    """
    inner = question["question"]
    return len(inner["stem"]) + sum(len(choice["text"]) for choice in inner["choices"])


def choose(rows: Sequence[dict[str, Any]], cfg: ArcConfig, split: str, path: Path) -> list[str]:
    """Ids of the questions to list, in the order of the file: of test the longest (of equals the
    earlier), of the others the first.

    Raises:
        UserError: there are too few.
    """
    wanted = LISTED if cfg.choices is None else [cfg.choices]
    rows = [row for row in rows if len(row["question"]["choices"]) in wanted]
    count = cfg.count(split) or len(rows)
    if not 0 < count <= len(rows):
        raise UserError(
            f"{split}_count: {count} of {len(rows)} questions with {list(wanted)} choices in {path}"
        )
    order = range(len(rows))
    if split == "test":
        order = sorted(order, key=lambda i: -length(rows[i]))  # stable: equals stay in order
    return [rows[i]["id"] for i in sorted(order[:count])]


def main(argv: Sequence[str] | None = None) -> None:
    with config.report_errors():
        counts, source = prepare_arc(config.parse(ArcConfig, argv, __doc__))
        print(", ".join(f"{n} {split}" for split, n in counts.items()) + f" questions -> {source}")


if __name__ == "__main__":
    main()
