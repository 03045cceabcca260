"""Put NYU Depth v2 where the depth machine reads it, with lists of its pictures.

    python scripts/prepare_nyu.py --nyu DIR

``DIR`` holds the data set (https://cs.nyu.edu/~fergus/datasets/nyu_depth_v2.html) in the form in which
depth networks are trained and tested on it, for example by the toolbox that Meta used
(https://github.com/zhyever/Monocular-Depth-Estimation-Toolbox/blob/main/docs/dataset_prepare.md):

- ``nyu_test.txt`` and ``nyu_train.txt`` with lines ``bathroom/rgb_00045.jpg
  bathroom/sync_depth_00045.png 518.8579``: paths below ``DIR``, with a slash in front or without, and
  the focal length, which is not used;
- pictures of 480 x 640, and depth maps as 16-bit PNG in millimetres, 0 where the depth is not known.

``DIR`` is linked as ``source/NYU``, and ``<split>.txt`` below ``source/`` has lines ``picture depth``.
Rooms follow each other in the lists, so pictures are chosen at even distances: test from
``nyu_test.txt``, train and validation from ``nyu_train.txt``.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from prepare_voc import place

from dtufc import config, files
from dtufc.errors import UserError
from dtufc.feature import load_facts
from dtufc.paths import DataRoot, default_data_root

NAME = "NYU"
Pair = tuple[str, str]
"""Paths of a picture and of its depth map, below the folder of the data set."""


@dataclass(frozen=True)
class NyuConfig:
    """Preparation of NYU Depth v2."""

    nyu: Path
    """The folder with nyu_test.txt, nyu_train.txt and what they list."""
    test_count: int = 16
    """Pictures to evaluate on."""
    train_count: int = 64
    """Pictures to fit and train on."""
    validation_count: int = 8
    """Pictures to validate the training on."""
    copy: bool = False
    """Copy the folder instead of linking it."""
    machine: str = "dinov2_dpt"
    """Machine preset or YAML file whose source folder the lists go to."""
    data_root: Path = field(default_factory=default_data_root)
    """Data root."""

    def __post_init__(self):
        for key in ("test_count", "train_count", "validation_count"):
            if getattr(self, key) < 1:
                raise UserError(f"{key}: expected at least 1, got {getattr(self, key)}")


def prepare_nyu(cfg: NyuConfig) -> tuple[dict[str, int], Path]:
    """Choose, check, place, list -> pictures by split, the source folder.

    The lists are written last: where they are, the pictures are.

    Raises:
        FileNotFoundError: a list, a picture or a depth map is missing.
        UserError: a list is not sound, or too short.
    """
    facts = load_facts(cfg.machine)
    source = DataRoot(cfg.data_root).feature(facts.model, facts.task).source
    both = cfg.train_count + cfg.validation_count
    rest = evenly(read_pairs(cfg.nyu, "train"), both, "train_count, validation_count", cfg.nyu)
    validation = evenly(rest, cfg.validation_count, "validation_count", cfg.nyu)
    lists = {
        "test": evenly(read_pairs(cfg.nyu, "test"), cfg.test_count, "test_count", cfg.nyu),
        "train": [pair for pair in rest if pair not in validation],
        "validation": validation,
    }
    check_pairs(cfg.nyu, lists)
    place(cfg.nyu, source / NAME, cfg.copy)
    check_pairs(source / NAME, lists)  # a copy that was there before may lack some
    for split, pairs in lists.items():
        text = "".join(f"{NAME}/{picture} {NAME}/{depth}\n" for picture, depth in pairs)
        files.write_text(source / f"{split}.txt", text)
    return {split: len(pairs) for split, pairs in lists.items()}, source


def read_pairs(nyu: Path, split: str) -> list[Pair]:
    """The pairs of one of the data set's own lists, in its order.

    Raises:
        FileNotFoundError: the list is missing.
        UserError: a line has no two paths, or a picture comes twice.
    """
    path = nyu / f"nyu_{split}.txt"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: missing; --nyu DIR holds nyu_test.txt and nyu_train.txt")
    pairs: dict[str, str] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        parts = [part.lstrip("/") for part in line.split()]
        if not parts:
            continue
        if len(parts) not in (2, 3) or parts[0] in pairs:
            raise UserError(
                f"{path}:{number}: expected another picture, its depth map and a focal length, "
                f"got {line!r}"
            )
        pairs[parts[0]] = parts[1]
    return list(pairs.items())


def evenly(pairs: Sequence[Pair], count: int, key: str, nyu: Path) -> list[Pair]:
    """``count`` of the pairs at even distances, from the middle of each stretch."""
    if count > len(pairs):
        raise UserError(f"{key}: {count} of the {len(pairs)} pictures listed in {nyu}")
    return [pairs[(2 * k + 1) * len(pairs) // (2 * count)] for k in range(count)]


def check_pairs(nyu: Path, lists: dict[str, list[Pair]]) -> None:
    """Every listed picture and its depth map are there.

    Raises:
        FileNotFoundError: naming the first that is not, and how many are not.
    """
    paths = [nyu / path for pairs in lists.values() for pair in pairs for path in pair]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise FileNotFoundError(f"{missing[0]}: missing, as are {len(missing) - 1} other files")


def main(argv: Sequence[str] | None = None) -> None:
    with config.report_errors():
        counts, source = prepare_nyu(config.parse(NyuConfig, argv, __doc__))
        print(", ".join(f"{n} {split}" for split, n in counts.items()) + f" pictures -> {source}")


if __name__ == "__main__":
    main()
