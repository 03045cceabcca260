"""Preparation of ARC, COCO, VOC, ImageNet and NYU, on small samples in the real formats."""

import importlib
import json
import re
import shlex
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from dtufc.machines.command import parse_options
from dtufc.machines.dinov2.classification import ClsMachine
from dtufc.machines.dinov2.cls import ClsOptions
from dtufc.machines.dinov2.depth import DptMachine
from dtufc.machines.dinov2.dpt import DptOptions
from dtufc.machines.dinov2.seg import SegOptions
from dtufc.machines.dinov2.segmentation import SegMachine
from dtufc.machines.llama3.halves import LlamaMachine
from dtufc.machines.llama3.llama3 import LlamaOptions
from dtufc.machines.resnet50.cls import ResNetOptions
from dtufc.machines.resnet50.halves import ResNetMachine
from dtufc.machines.sd3.halves import DiffusionMachine
from dtufc.machines.sd3.sd3 import DiffusionOptions
from dtufc.paths import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "scripts"))  # scripts are no package

NAMES = ("arc", "coco", "voc", "imagenet", "nyu")
prepare_arc, prepare_coco, prepare_voc, prepare_imagenet, prepare_nyu = (
    importlib.import_module(f"prepare_{name}") for name in NAMES
)


def question(id: str, stem: str, texts: list[str], key: str, labels: str = "ABCDE") -> dict:
    """A question as the AllenAI release has it."""
    choices = [{"text": t, "label": label} for t, label in zip(texts, labels, strict=False)]
    return {"id": id, "question": {"stem": stem, "choices": choices}, "answerKey": key}


ARC = {
    "train": [
        question("Mercury_1", "Why?", ["a", "b", "c", "d"], "C"),
        question("NYSED_2", "Größe in µm – 火?", ["ä", "ö", "ü", "ß\u2028"], "4", "1234"),
        question("VASoL_3", "Three?", ["a", "b", "c"], "A"),
    ],
    "validation": [
        question("MCAS_1", "Five?", ["a", "b", "c", "d", "e"], "E"),
        question("MCAS_2", "Two?", ["yes", "no"], "A"),
        question("MCAS_3", "Four?", ["a", "b", "c", "d"], "B"),
    ],
    "test": [
        question("t0", "0123", ["a", "b", "c", "d"], "A"),  # 8 characters
        question("t1", "01234", ["a", "b", "c", "dd"], "A"),  # 10
        question("t2", "0", ["aaa", "bbb", "ccc"], "2", "123"),  # 10
        question("t3", "0123456789", ["a", "b", "c", "d"], "A"),  # 14
        question("t4", "012345", ["a", "b", "c", "d"], "A"),  # 10
        question("t5", "ÄÖÜ", ["a", "b", "c", "d"], "A"),  # 7, though 10 bytes
    ],
}
JSONL_NAMES = {"train": "Train", "validation": "Dev", "test": "Test"}


@pytest.fixture
def arc_jsonl(tmp_path) -> Path:
    """ARC-V1-Feb2018-2, with the folder ARC-Challenge."""
    folder = tmp_path / "ARC-V1" / "ARC-Challenge"
    folder.mkdir(parents=True)
    for split, rows in ARC.items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"ARC-Challenge-{JSONL_NAMES[split]}.jsonl").write_text(text)
    return folder.parent


@pytest.fixture
def arc_parquet(tmp_path) -> Path:
    """ARC-Challenge of allenai/ai2_arc."""
    folder = tmp_path / "ai2_arc" / "ARC-Challenge"
    folder.mkdir(parents=True)
    text = pyarrow.string()
    kinds = {
        "id": text,
        "question": text,
        "choices": pyarrow.struct({"text": pyarrow.list_(text), "label": pyarrow.list_(text)}),
        "answerKey": text,
    }
    for split, rows in ARC.items():
        columns = {
            "id": [row["id"] for row in rows],
            "question": [row["question"]["stem"] for row in rows],
            "choices": [
                {key: [c[key] for c in row["question"]["choices"]] for key in ("text", "label")}
                for row in rows
            ],
            "answerKey": [row["answerKey"] for row in rows],
        }
        table = pyarrow.table(columns, schema=pyarrow.schema(kinds))
        parquet.write_table(table, folder / f"{split}-00000-of-00001.parquet")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.is_file()}


def lines(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8")
    assert text.endswith("\n")
    return text[:-1].split("\n")


def run(module, *argv) -> None:
    module.main([str(part) for part in argv])


def fails(module, *argv, match: str, nothing: Path | None = None) -> None:
    """The script ends with one line that matches, and wrote nothing below ``nothing``."""
    with pytest.raises(SystemExit, match=match):
        run(module, *argv)
    assert nothing is None or not [p for p in nothing.rglob("*") if p.is_file()]


def test_arc_from_jsonl(arc_jsonl, tmp_path, capsys):
    argv = ["--arc", arc_jsonl, "--data_root", tmp_path / "data", "--test_count", 3]
    run(prepare_arc, *argv)
    source = tmp_path / "data" / "llama3" / "csr" / "source"
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"3 train, 2 validation, 3 test questions -> {source}"
    assert lines(source / "train.txt") == ["Mercury_1", "NYSED_2", "VASoL_3"]
    assert lines(source / "validation.txt") == ["MCAS_1", "MCAS_3"]  # two choices are no four
    assert lines(source / "test.txt") == ["t1", "t2", "t3"]  # of three tens the first two
    for split, rows in ARC.items():
        stored = lines(source / f"arc_challenge_{split}.jsonl")
        assert [json.loads(line) for line in stored] == rows
    second = lines(source / "arc_challenge_train.jsonl")[1]
    assert second == (
        '{"id": "NYSED_2", "question": {"stem": "Größe in µm – 火?", "choices": ['
        '{"text": "ä", "label": "1"}, {"text": "ö", "label": "2"}, {"text": "ü", "label": "3"}, '
        '{"text": "ß\u2028", "label": "4"}]}, "answerKey": "4"}'
    )
    before = contents(source)
    assert len(before) == 6
    run(prepare_arc, *argv)
    assert contents(source) == before


def test_arc_releases_give_the_same_files(arc_jsonl, arc_parquet, tmp_path):
    for name, folder in (("a", arc_jsonl), ("b", arc_parquet), ("c", arc_parquet.parent)):
        run(prepare_arc, "--arc", folder, "--data_root", tmp_path / name, "--test_count", 2)
    a, b, c = (contents(tmp_path / name / "llama3" / "csr" / "source") for name in "abc")
    assert len(a) == 6
    assert a == b == c


def test_arc_counts_choices_and_single_files(arc_jsonl, arc_parquet, tmp_path):
    source = tmp_path / "llama3" / "csr" / "source"
    test = arc_parquet / "test-00000-of-00001.parquet"
    train = arc_jsonl / "ARC-Challenge" / "ARC-Challenge-Train.jsonl"
    argv = ["--arc", test, train, "--data_root", tmp_path, "--train_count", 1]
    run(prepare_arc, *argv, "--test_count", 0, "--choices", 4)
    assert lines(source / "test.txt") == ["t0", "t1", "t3", "t4", "t5"]
    assert lines(source / "train.txt") == ["Mercury_1"]
    assert len(lines(source / "arc_challenge_test.jsonl")) == 6
    assert not (source / "validation.txt").exists()
    run(prepare_arc, *argv, "--test_count", 4, "--choices", 4)
    assert lines(source / "test.txt") == ["t0", "t1", "t3", "t4"]  # t5 is the shortest


def test_arc_length():
    assert [prepare_arc.length(row) for row in ARC["test"]] == [8, 10, 10, 14, 10, 7]


def test_arc_errors(arc_jsonl, arc_parquet, tmp_path):
    folder, data = arc_jsonl / "ARC-Challenge", tmp_path / "data"

    def check(path, match, *more):
        fails(prepare_arc, "--arc", path, "--data_root", data, *more, match=match, nothing=data)

    check(tmp_path / "none", "none: no such file or folder")
    check(arc_jsonl, "test_count: 500 of 6 questions with .* in .*ARC-Challenge-Test.jsonl")
    check(arc_jsonl, "train_count: 3 of 2 ", "--choices", 4, "--train_count", 3, "--test_count", 1)
    (folder / "train-00000-of-00001.parquet").touch()
    check(arc_jsonl, "Train.jsonl, .*train-0.*parquet: expected one file of the train split")
    (folder / "train-00000-of-00001.parquet").unlink()
    other = folder / "ARC-Easy-Test.jsonl"
    other.touch()
    check(other, "ARC-Easy-Test.jsonl: expected a file of ARC-Challenge named one of ARC-Ch")
    path = folder / "ARC-Challenge-Test.jsonl"
    good = path.read_text()
    first = json.loads(good.splitlines()[0])
    for bad, match in (
        ({k: v for k, v in first.items() if k != "answerKey"}, "question 7: expected .*answerKey"),
        (first | {"id": "x", "answerKey": "E"}, r"question 7: answerKey 'E' is none of \['A', 'B'"),
        (first | {"id": "x", "question": "text"}, "question 7: expected id, question.stem"),
        (first | {"id": 3}, "question 7: expected texts"),
        (first, "question 7: t0 is there twice"),
    ):
        path.write_text(good + json.dumps(bad) + "\n")
        check(arc_jsonl, f"Test.jsonl: {match}")
    path.write_text(good + "{'no json'}\n")
    check(arc_jsonl, "Test.jsonl:7: not valid JSON")
    path.unlink()
    check(
        arc_jsonl, "ARC-V1: the test split is missing, expected ARC-Challenge-Test.jsonl or test-"
    )
    path = arc_parquet / "test-00000-of-00001.parquet"
    table = parquet.read_table(path)
    parquet.write_table(table.drop_columns("answerKey"), path)
    check(arc_parquet, r"test-0.*parquet: expected the columns .*\['answerKey'\] are missing")
    parquet.write_table(table.set_column(2, "choices", table["question"]), path)
    check(arc_parquet, "test-0.*parquet: expected choices of as many text as label")
    path.write_bytes(b"PAR1 broken")
    check(arc_parquet, "test-0.*parquet: not a parquet file")


def captions(path: Path, images: dict[int, list[str]], first: int = 100) -> Path:
    """A captions file of COCO; captions get ids from ``first`` on, the images stand in falling order."""
    notes = [
        {"image_id": image, "id": first + i, "caption": caption}
        for i, (image, caption) in enumerate((im, c) for im, texts in images.items() for c in texts)
    ]
    values = {
        "info": {},
        "images": [{"id": i, "file_name": f"{i:012d}.jpg"} for i in sorted(images, reverse=True)],
        "annotations": notes,
    }
    path.write_text(json.dumps(values))
    return path


@pytest.fixture
def val2017(tmp_path) -> Path:
    images = {
        581781: ["Bananas.", "A  bunch\nof bananas \n"],
        139: ["A man.", "A cat.", "A dog"],
        285: ["été à la plage", "a b               c"],  # white space does not make it longer
        632: ["ab", "", "  "],
        724: [" "],
        776: ["Größe 火"],
    }
    return captions(tmp_path / "captions_val2017.json", images)


VAL2017 = [
    "000000000139 A man.",
    "000000000285 été à la plage",
    "000000000632 ab",
    "000000000776 Größe 火",
    "000000581781 A bunch of bananas",
]


def test_coco_longest_captions(val2017, tmp_path, capsys):
    argv = ["--test", val2017, "--data_root", tmp_path, "--counts", "{test: 0}"]
    run(prepare_coco, *argv)
    source = tmp_path / "sd3" / "tti" / "source"
    assert capsys.readouterr().out == f"5 test captions -> {source}\n"
    assert lines(source / "test.txt") == VAL2017
    before = contents(source)
    assert list(before) == ["test.txt"]
    run(prepare_coco, *argv)
    assert contents(source) == before


def test_coco_ties_go_to_the_lowest_id(tmp_path):
    values = json.loads(captions(tmp_path / "c.json", {1: ["aa", "bb", "cc"]}).read_text())
    values["annotations"].reverse()
    values["annotations"][1]["id"] = 9
    (tmp_path / "c.json").write_text(json.dumps(values))
    assert prepare_coco.longest_captions(tmp_path / "c.json") == {1: "bb"}


def test_coco_splits_of_one_file_do_not_overlap(val2017, tmp_path, capsys):
    other = captions(tmp_path / "captions_train2017.json", {9: ["a train"], 4: ["trains"]})
    source = tmp_path / "sd3" / "tti" / "source"
    argv = ["--data_root", tmp_path, "--train", other, "--validation", val2017]
    run(prepare_coco, *argv, "--test", val2017, "--counts", "{test: 2, train: 1, validation: 2}")
    out = capsys.readouterr().out.splitlines()
    assert out[0] == f"{val2017.resolve()}: consecutive images for test, then validation"
    assert out[1] == f"2 test, 1 train, 2 validation captions -> {source}"
    assert lines(source / "test.txt") == VAL2017[:2]
    assert lines(source / "validation.txt") == VAL2017[2:4]
    assert lines(source / "train.txt") == ["000000000004 trains"]
    argv = ["--train", val2017, "--validation", val2017, "--test", val2017]
    argv += ["--data_root", tmp_path / "b", "--counts", "{test: 1, train: 3}"]
    run(prepare_coco, *argv)
    source = tmp_path / "b" / "sd3" / "tti" / "source"
    drawn = [lines(source / f"{split}.txt") for split in ("test", "train", "validation")]
    assert drawn == [VAL2017[:1], VAL2017[1:4], VAL2017[4:]]


def test_coco_earlier_lists_are_respected(val2017, tmp_path):
    argv = ["--data_root", tmp_path, "--counts", "{test: 2, train: 3}"]
    run(prepare_coco, *argv, "--test", val2017)
    kept = contents(tmp_path / "sd3" / "tti" / "source")
    fails(
        prepare_coco, *argv, "--train", val2017,
        match="test.txt: holds 2 of the new images, 000000000139 is the first",
    )  # fmt: skip
    assert contents(tmp_path / "sd3" / "tti" / "source") == kept
    run(prepare_coco, *argv, "--train", val2017, "--test", val2017)


def test_coco_errors(val2017, tmp_path):
    data = tmp_path / "data"

    def check(match, *argv):
        fails(prepare_coco, "--data_root", data, *argv, match=match, nothing=data)

    check("none.json: no such captions file", "--test", tmp_path / "none.json")
    check("test: 500 of the 5 images left in .*val2017.json", "--test", val2017)
    both = ["--test", val2017, "--train", val2017]
    check("train: 4 of the 3 images left", *both, "--counts", "{test: 2, train: 4}")
    check("train: 0 of the 0 images left", *both, "--counts", "{test: 5}")
    bad = tmp_path / "bad.json"
    good = json.loads(val2017.read_text())
    for values, match in (
        ({"images": good["images"]}, "expected images of id and .*'annotations'"),
        ([1], "expected images of id and annotations"),
        (good | {"annotations": [{"image_id": 139, "id": 1}]}, "'caption'"),
        (good | {"annotations": [{"image_id": 1, "id": 7, "caption": "a"}]}, "annotation 7: exp"),
        (good | {"annotations": [{"image_id": [1], "id": 8, "caption": "a"}]}, "annotation 8: exp"),
        (good | {"annotations": [{"image_id": 139, "id": 9, "caption": None}]}, "annotation 9: e"),
    ):
        bad.write_text(json.dumps(values))
        check(f"bad.json: .*{match}", "--test", bad, "--counts", "{test: 1}")
    bad.write_text("{")
    check("bad.json: not valid JSON", "--test", bad)


TRAIN = ["2007_000032", "2007_000039", "2007_000063", "2007_000068"]
VAL = ["2007_000033", "2007_000042", "2007_000061"]


@pytest.fixture
def voc(tmp_path) -> Path:
    """VOCdevkit/VOC2012 with pictures of 4 x 4 pixels; one picture has no mask, as most of VOC's."""
    folder = tmp_path / "VOCdevkit" / "VOC2012"
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (folder / name).mkdir(parents=True)
    for name in [*TRAIN, *VAL, "2008_000001"]:
        Image.new("RGB", (4, 4)).save(folder / "JPEGImages" / f"{name}.jpg")
    for name in [*TRAIN, *VAL]:
        Image.new("P", (4, 4)).save(folder / "SegmentationClass" / f"{name}.png")
    for name, ids in (("train", TRAIN), ("val", VAL)):
        text = "".join(f"{id}\n" for id in ids)
        (folder / "ImageSets" / "Segmentation" / f"{name}.txt").write_text(text)
    return folder


VOC_COUNTS = ["--test_count", 2, "--train_count", 1, "--validation_count", 2]


def test_voc_lists_and_link(voc, tmp_path, capsys):
    argv = ["--voc", voc, "--data_root", tmp_path / "data", *VOC_COUNTS]
    source = tmp_path / "data" / "dinov2" / "seg" / "source"
    for _ in range(2):
        run(prepare_voc, *argv)
        out = capsys.readouterr().out.splitlines()
        assert out[-1] == f"2 test, 1 train, 2 validation pictures -> {source}"
        assert lines(source / "test.txt") == VAL[:2]
        assert lines(source / "train.txt") == TRAIN[:1]
        assert lines(source / "validation.txt") == TRAIN[1:3]
        assert (source / "VOC2012").is_symlink()
        assert (source / "VOC2012").resolve() == voc.resolve()
        assert {path.name for path in source.iterdir()} == {
            "VOC2012", "test.txt", "train.txt", "validation.txt",
        }  # fmt: skip
    run(prepare_voc, *argv[:4], "--test_count", 0, "--train_count", 2, "--validation_count", 0)
    assert lines(source / "test.txt") == VAL
    assert lines(source / "validation.txt") == TRAIN[2:]


def test_voc_relative_folder(voc, tmp_path, monkeypatch):
    monkeypatch.chdir(voc.parent)
    run(prepare_voc, "--voc", "VOC2012", "--data_root", tmp_path / "data", *VOC_COUNTS)
    place = tmp_path / "data" / "dinov2" / "seg" / "source" / "VOC2012"
    assert (place / "JPEGImages" / f"{VAL[0]}.jpg").is_file()


def test_voc_copy_takes_the_place_of_a_link(voc, tmp_path):
    argv = ["--voc", voc, "--data_root", tmp_path / "data", *VOC_COUNTS]
    place = tmp_path / "data" / "dinov2" / "seg" / "source" / "VOC2012"
    run(prepare_voc, *argv)
    left = place.with_name(".VOC2012.part")  # of a copy that was killed
    left.mkdir()
    (left / "half").touch()
    run(prepare_voc, *argv, "--copy")
    assert not place.is_symlink()
    assert (place / "JPEGImages" / "2008_000001.jpg").is_file()
    assert not (place / "half").exists()
    assert not left.exists()
    marked = place / "mine"
    marked.touch()
    for more in ([], ["--copy"]):  # a folder that is there stays
        run(prepare_voc, *argv, *more)
        assert marked.exists()
    (place / "SegmentationClass" / f"{VAL[1]}.png").unlink()
    (place.parent / "test.txt").unlink()
    fails(prepare_voc, *argv, match=f"source/VOC2012/SegmentationClass/{VAL[1]}.png: missing")
    assert not (place.parent / "test.txt").exists()


def test_voc_link_to_elsewhere_is_replaced(voc, tmp_path):
    place = tmp_path / "data" / "dinov2" / "seg" / "source" / "VOC2012"
    place.parent.mkdir(parents=True)
    for target in (tmp_path / "gone", tmp_path):
        place.unlink(missing_ok=True)
        place.symlink_to(target)
        run(prepare_voc, "--voc", voc, "--data_root", tmp_path / "data", *VOC_COUNTS)
        assert place.resolve() == voc.resolve()
    assert tmp_path.is_dir()


def test_voc_errors(voc, tmp_path):
    data = tmp_path / "data"
    argv = ["--voc", voc, "--data_root", data]

    def check(match, *more):
        fails(prepare_voc, *argv, *more, match=match, nothing=data)
        assert not data.exists()

    check("test_count: 100 of 3 pictures left in .*VOC2012")
    check("train_count: 5 of 4 ", "--test_count", 1, "--train_count", 5)
    check("validation_count: 2 of 1 ", *VOC_COUNTS[:2], "--train_count", 3, *VOC_COUNTS[4:])
    check("validation_count: 0 of 0 ", *VOC_COUNTS[:2], "--train_count", 4, "--validation_count", 0)
    (voc / "JPEGImages" / f"{TRAIN[1]}.jpg").unlink()
    (voc / "SegmentationClass" / f"{TRAIN[2]}.png").unlink()
    check(f"JPEGImages/{TRAIN[1]}.jpg: missing, as are 1 other", *VOC_COUNTS)
    (voc / "ImageSets" / "Segmentation" / "val.txt").unlink()
    check("Segmentation/val.txt: missing; expected --voc to be", *VOC_COUNTS)


SYNSETS = ["n01440764", "n01443537", "n01484850"]
PICTURES = {f"ILSVRC2012_val_{i:08d}.JPEG": i % 3 for i in range(1, 16)}  # name -> label


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(path, "JPEG")


@pytest.fixture
def folders(tmp_path) -> Path:
    """ImageNet's val/ with a folder per class."""
    for name, label in PICTURES.items():
        picture(tmp_path / "folders" / "val" / SYNSETS[label] / name)
    (tmp_path / "folders" / "val" / SYNSETS[0] / "readme.txt").touch()
    return tmp_path / "folders"


@pytest.fixture
def flat(tmp_path) -> Path:
    """ImageNet's val/ with all pictures, and val.txt."""
    for name in PICTURES:
        picture(tmp_path / "flat" / "val" / name)
    text = "".join(f"{name} {label}\n" for name, label in PICTURES.items())
    (tmp_path / "flat" / "val.txt").write_text(text)
    return tmp_path / "flat"


IMAGENET_COUNTS = ["--classes", 3, "--test_count", 6, "--train_count", 5, "--validation_count", 3]


def imagenet(folder: Path, data: Path, *more) -> dict[str, list[tuple[str, int]]]:
    """(path, label) of each split, as prepared."""
    run(prepare_imagenet, "--imagenet", folder, "--data_root", data, *IMAGENET_COUNTS, *more)
    model = "dinov2" if "dinov2_cls" in more else "resnet50"
    source = data / model / "cls" / "source"
    lists = {}
    for split in ("test", "train", "validation"):
        pairs = [line.rsplit(" ", 1) for line in lines(source / f"{split}.txt")]
        assert all((source / path).is_file() for path, _ in pairs)
        lists[split] = [(path, int(label)) for path, label in pairs]
    return lists


def test_imagenet_lists(folders, tmp_path, capsys):
    lists = imagenet(folders, tmp_path / "data")
    source = tmp_path / "data" / "resnet50" / "cls" / "source"
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"6 test, 5 train, 3 validation pictures -> {source}"
    for path, label in [pair for pairs in lists.values() for pair in pairs]:
        assert path == f"val/{SYNSETS[label]}/{Path(path).name}"
        assert PICTURES[Path(path).name] == label
    assert [len(pairs) for pairs in lists.values()] == [6, 5, 3]
    assert len({path for pairs in lists.values() for path, _ in pairs}) == 14  # no overlap
    for pairs in lists.values():
        for count in range(3, len(pairs) + 1):  # any first part of a list is balanced too
            seen = Counter(label for _, label in pairs[:count])
            assert len(seen) == 3
            assert max(seen.values()) - min(seen.values()) <= 1
    assert (source / "val").resolve() == (folders / "val").resolve()
    before = contents(source)
    imagenet(folders, tmp_path / "data")
    assert contents(source) == before


def test_imagenet_layouts_and_seeds(folders, flat, tmp_path):
    a, b = imagenet(folders, tmp_path / "a"), imagenet(flat, tmp_path / "b")
    for split in a:
        assert [(Path(path).name, label) for path, label in a[split]] == [
            (path.removeprefix("val/"), label) for path, label in b[split]
        ]
    assert imagenet(folders, tmp_path / "c", "--seed", 1) != a


def test_imagenet_choice_is_pinned(flat, tmp_path):
    """What was chosen once must stay the choice: results of several machines are compared."""
    chosen = [int(path[-7:-5]) for path, _ in imagenet(flat, tmp_path)["test"]]
    assert chosen == [4, 14, 3, 10, 5, 6]


def test_imagenet_unequal_classes():
    labels = {f"a{i}": 0 for i in range(5)} | {"b0": 1, "b1": 1, "c0": 2}
    dealt = [label for _, label in prepare_imagenet.deal(labels, 0)]
    assert sorted(dealt[:3]) == [0, 1, 2]
    assert sorted(dealt[3:5]) == [0, 1]
    assert dealt[5:] == [0, 0, 0]


def test_imagenet_errors(folders, flat, tmp_path):
    data = tmp_path / "data"

    def check(folder, match, *more):
        argv = ["--imagenet", folder, "--data_root", data, *IMAGENET_COUNTS, *more]
        fails(prepare_imagenet, *argv, match=match, nothing=data)
        assert not data.exists()

    check(tmp_path, "val: no such folder; --imagenet DIR holds val/")
    check(folders, "val: expected 1000 folders of classes, got 3", "--classes", 1000)
    check(folders, "validation_count: 16 of the 15 pictures in", "--validation_count", 5)
    (flat / "val" / "ILSVRC2012_val_00000007.JPEG").unlink()
    check(flat, "val_00000007.JPEG: missing, as are 0 other", "--validation_count", 4)
    good = (flat / "val.txt").read_text()
    for bad in ("x.JPEG 3", "x.JPEG -1", "x.JPEG", "ILSVRC2012_val_00000001.JPEG 1"):
        (flat / "val.txt").write_text(f"{good}\n{bad}\n")
        check(flat, r"val.txt:17: expected the name of another picture and a label of 0\.\.2, got")
    (flat / "val.txt").unlink()
    check(flat, "val.txt: missing. val/ has no folders of classes")


def test_imagenet_folder_that_is_there_must_hold_the_pictures(folders, tmp_path):
    place = tmp_path / "data" / "resnet50" / "cls" / "source" / "val"
    place.mkdir(parents=True)
    with pytest.raises(SystemExit, match=r"source/val/n.*: missing, as are 13 other pictures"):
        imagenet(folders, tmp_path / "data")
    assert not (place.parent / "test.txt").exists()


NYU_COUNTS = ["--test_count", 3, "--train_count", 4, "--validation_count", 2]


@pytest.fixture
def nyu(tmp_path) -> Path:
    """NYU's lists as they are found: a slash in front in one of them, a focal length."""
    folder = tmp_path / "nyu"
    for split, rooms, slash in (("train", range(20, 32), "/"), ("test", range(18), "")):
        listed = []
        for i in rooms:
            (folder / f"room{i}").mkdir(parents=True)
            Image.new("RGB", (6, 4)).save(folder / f"room{i}" / f"rgb_{i}.jpg", "JPEG")
            depth = np.full((4, 6), 1000 + 100 * i, np.uint16)
            Image.fromarray(depth).save(folder / f"room{i}" / f"sync_depth_{i}.png")
            paths = [f"{slash}room{i}/{name}_{i}.{end}" for name, end in
                     (("rgb", "jpg"), ("sync_depth", "png"))]  # fmt: skip
            listed.append(f"{' '.join(paths)} 518.8579\n")
        (folder / f"nyu_{split}.txt").write_text("".join(listed))
    return folder


def test_nyu_lists_and_link(nyu, tmp_path, capsys):
    """Evenly spread, splits apart, and again the same."""
    argv = ["--nyu", nyu, "--data_root", tmp_path / "data"]
    run(prepare_nyu, *argv, *NYU_COUNTS)
    source = tmp_path / "data" / "dinov2" / "dpt" / "source"
    assert "3 test, 4 train, 2 validation pictures" in capsys.readouterr().out
    assert (source / "NYU").resolve() == nyu
    found = {split: lines(source / f"{split}.txt") for split in ("test", "train", "validation")}
    assert found["test"][0] == "NYU/room3/rgb_3.jpg NYU/room3/sync_depth_3.png"
    rooms = {split: [line.split("/")[1] for line in each] for split, each in found.items()}
    assert rooms["train"] == ["room21", "room25", "room27", "room31"]
    assert rooms["validation"] == ["room23", "room29"]
    run(prepare_nyu, *argv, *NYU_COUNTS)
    assert {split: lines(source / f"{split}.txt") for split in found} == found


def test_nyu_errors(nyu, tmp_path):
    data = tmp_path / "data"

    def check(match, *more):
        fails(prepare_nyu, "--nyu", nyu, "--data_root", data, *more, match=match, nothing=data)

    check("test_count: 19 of the 18 pictures", *NYU_COUNTS, "--test_count", 19)
    check("train_count, validation_count: 14 of the 12 pictures", *NYU_COUNTS, "--train_count", 12)
    (nyu / "room3" / "sync_depth_3.png").unlink()
    check("room3/sync_depth_3.png: missing, as are 0 other files", *NYU_COUNTS)
    (nyu / "nyu_test.txt").write_text("a.jpg\n")
    check("nyu_test.txt:1: expected another picture", *NYU_COUNTS)
    (nyu / "nyu_train.txt").unlink()
    check("nyu_train.txt: missing; --nyu DIR holds", *NYU_COUNTS)


@pytest.mark.parametrize(
    ("module", "flags", "message"),
    [
        (prepare_arc, "--arc x --choices 6", "choices: expected one of [3, 4, 5] or null, got 6"),
        (prepare_arc, "--arc x --test_count -1", "test_count, train_count, validation_count: exp"),
        (prepare_arc, "", "arc"),
        (prepare_coco, "", "train, validation, test: expected at least one captions file"),
        (prepare_coco, "--test x --counts '{tests: 1}'", "counts: expected 0 or more for some of"),
        (prepare_coco, "--test x --counts '{test: -1}'", "counts: expected 0 or more for some of"),
        (prepare_voc, "--voc x --train_count 0", "train_count: expected at least 1, got 0"),
        (prepare_voc, "--voc x --test_count -1", "test_count, validation_count: expected 0 or"),
        (prepare_imagenet, "--imagenet x --test_count 0", "test_count: expected at least 1, got 0"),
        (prepare_imagenet, "--imagenet x --classes 0", "classes: expected at least 1, got 0"),
        (prepare_imagenet, "--imagenet x --sed 1", "--sed"),
        (prepare_nyu, "--nyu x --test_count 0", "test_count: expected at least 1, got 0"),
    ],
)
def test_impossible_flags_are_named(module, flags, message, capsys):
    with pytest.raises(SystemExit) as caught:
        module.main(shlex.split(flags))
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_the_machines_read_what_is_prepared(arc_parquet, val2017, voc, folders, nyu, tmp_path):
    argv = ["--data_root", str(tmp_path)]
    run(prepare_arc, "--arc", arc_parquet, *argv, "--test_count", 3)
    machine = LlamaMachine(parse_options(LlamaOptions, "llama3", argv, None))
    assert [sample.name for sample in machine.samples("test")] == ["t1", "t2", "t3"]
    assert [sample.label for sample in machine.samples("train")] == ["C", "D", "A"]
    assert machine.samples("train")[1].source.choices[3] == "ß\u2028"

    run(prepare_coco, "--test", val2017, *argv, "--counts", "{test: 5}")
    machine = DiffusionMachine(parse_options(DiffusionOptions, "sd3", argv, None))
    samples = machine.samples("test")
    assert [f"{sample.name} {sample.source[0]}" for sample in samples] == VAL2017

    run(prepare_voc, "--voc", voc, *argv, *VOC_COUNTS)
    machine = SegMachine(parse_options(SegOptions, "dinov2", argv, None))
    samples = machine.samples("validation")
    assert [sample.name for sample in samples] == TRAIN[1:3]
    assert machine.picture(samples[0]).shape[:2] == machine.mask(samples[0]).shape == (4, 4)

    lists = imagenet(folders, tmp_path)
    machine = ResNetMachine(parse_options(ResNetOptions, "resnet50", argv, None))
    for split, pairs in lists.items():
        samples = machine.samples(split)
        assert [sample.label for sample in samples] == [label for _, label in pairs]
        assert [sample.name for sample in samples] == [Path(path).stem for path, _ in pairs]
        assert all(machine.picture(sample).shape == (1, 3, 224, 224) for sample in samples[:1])

    lists = imagenet(folders, tmp_path, "--machine", "dinov2_cls")  # the same pictures
    machine = ClsMachine(parse_options(ClsOptions, "dinov2_cls", argv, None))
    for split, pairs in lists.items():
        assert [sample.label for sample in machine.samples(split)] == [label for _, label in pairs]

    run(prepare_nyu, "--nyu", nyu, *argv, *NYU_COUNTS)
    machine = DptMachine(parse_options(DptOptions, "dinov2_dpt", argv, None))
    samples = machine.samples("test")
    assert [sample.name for sample in samples] == ["room3_rgb_3", "room9_rgb_9", "room15_rgb_15"]
    assert samples[1].source.rgb().shape == (4, 6, 3)
    assert samples[1].source.depth()[0, 0] == np.float32(1.9)


@pytest.mark.parametrize("name", NAMES)
def test_the_docstring_says_where_the_data_is(name):
    doc = importlib.import_module(f"prepare_{name}").__doc__
    assert re.search(r"https?://\S+", doc)
    assert f"python scripts/prepare_{name}.py --" in doc
