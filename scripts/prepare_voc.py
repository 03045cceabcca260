"""Put PASCAL VOC 2012 where the segmentation machine reads it, with lists of its pictures.

    python scripts/prepare_voc.py --voc VOCdevkit/VOC2012

The folder is unpacked from http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar.
It is linked as ``source/VOC2012`` (``--copy`` copies it), and ``<split>.txt`` below ``source/`` names
the pictures, one id per line: test takes the first of VOC's ``val``, train the first of its ``train``,
validation those after them.
"""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dtufc import config, files
from dtufc.errors import UserError
from dtufc.feature import load_facts
from dtufc.paths import DataRoot, default_data_root

NAME = "VOC2012"


@dataclass(frozen=True)
class VocConfig:
    """Preparation of PASCAL VOC 2012."""

    voc: Path
    """The folder VOCdevkit/VOC2012 with JPEGImages, SegmentationClass and ImageSets."""
    test_count: int = 100
    """How many pictures of VOC's val are listed for the test, the first; 0 lists all."""
    train_count: int = 100
    """How many pictures of VOC's train are listed for training, the first."""
    validation_count: int = 20
    """How many pictures of VOC's train validate the training, after those; 0 lists all of them."""
    copy: bool = False
    """Copy the folder instead of linking it."""
    machine: str = "dinov2"
    """Machine preset or YAML file whose source folder the lists go to."""
    data_root: Path = field(default_factory=default_data_root)
    """Data root."""

    def __post_init__(self):
        if min(self.test_count, self.validation_count) < 0:
            raise UserError("test_count, validation_count: expected 0 or more")
        if self.train_count < 1:
            raise UserError(f"train_count: expected at least 1, got {self.train_count}")


def prepare_voc(cfg: VocConfig) -> tuple[dict[str, int], Path]:
    """Choose, check, place, list -> pictures by split, the source folder.

    The lists are written last: where they are, the pictures are.

    Raises:
        FileNotFoundError: a list, a picture or a mask is missing.
        UserError: there are too few pictures.
    """
    facts = load_facts(cfg.machine)
    source = DataRoot(cfg.data_root).feature(facts.model, facts.task).source
    train, val = (read_set(cfg.voc, name) for name in ("train", "val"))
    lists = {
        "test": _range(val, 0, cfg.test_count, "test_count", cfg.voc),
        "train": _range(train, 0, cfg.train_count, "train_count", cfg.voc),
        "validation": _range(
            train, cfg.train_count, cfg.validation_count, "validation_count", cfg.voc
        ),
    }
    check_pictures(cfg.voc, lists)
    place(cfg.voc, source / NAME, cfg.copy)
    check_pictures(source / NAME, lists)  # a copy that was there before may lack some
    for split, names in lists.items():
        files.write_text(source / f"{split}.txt", "".join(f"{name}\n" for name in names))
    return {split: len(names) for split, names in lists.items()}, source


def read_set(voc: Path, name: str) -> list[str]:
    """The ids of one of VOC's own segmentation sets, in its order.

    Raises:
        FileNotFoundError: the set's list is missing.
    """
    path = voc / "ImageSets" / "Segmentation" / f"{name}.txt"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: missing; expected --voc to be the folder VOCdevkit/{NAME}"
        )
    return path.read_text().split()


def _range(names: list[str], first: int, count: int, key: str, voc: Path) -> list[str]:
    chosen = names[first : first + count] if count else names[first:]
    if not chosen or len(chosen) < count:
        raise UserError(f"{key}: {count} of {max(len(names) - first, 0)} pictures left in {voc}")
    return chosen


def check_pictures(voc: Path, lists: dict[str, list[str]]) -> None:
    """Every listed picture and its mask are there.

    Raises:
        FileNotFoundError: naming the first that is not, and how many are not.
    """
    missing = []
    for name in (name for names in lists.values() for name in names):
        for path in (voc / "JPEGImages" / f"{name}.jpg", voc / "SegmentationClass" / f"{name}.png"):
            if not path.is_file():
                missing.append(path)
    if missing:
        raise FileNotFoundError(f"{missing[0]}: missing, as are {len(missing) - 1} other files")


def place(folder: Path, target: Path, copy: bool = False) -> None:
    """Make ``target`` a link to ``folder``, or a copy of it; either appears whole or not at all.

    A folder that already lies there is kept as it is, a link is replaced unless it is the same.
    """
    if target.is_symlink():
        if not copy and target.resolve() == folder.resolve():
            return
    elif target.is_dir():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name}.part")
    if beside.is_symlink():
        beside.unlink()
    elif beside.is_dir():  # a copy that was killed
        shutil.rmtree(beside)
    if copy:
        shutil.copytree(folder, beside)
        target.unlink(missing_ok=True)  # a link; a folder cannot be renamed over it
    else:
        beside.symlink_to(folder.resolve(), target_is_directory=True)
    os.replace(beside, target)


def main(argv: Sequence[str] | None = None) -> None:
    with config.report_errors():
        counts, source = prepare_voc(config.parse(VocConfig, argv, __doc__))
        print(", ".join(f"{n} {split}" for split, n in counts.items()) + f" pictures -> {source}")


if __name__ == "__main__":
    main()
