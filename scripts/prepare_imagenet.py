"""Put ImageNet's validation pictures where the classification machine reads them, with lists.

    python scripts/prepare_imagenet.py --imagenet DIR

``DIR`` holds ``ILSVRC2012_img_val.tar`` of https://image-net.org/challenges/LSVRC/2012/2012-downloads
unpacked to ``val/``, in either layout:

- a folder per class: ``val/n01440764/ILSVRC2012_val_00000293.JPEG``; the label is the place of the
  folder among all of them in order of name;
- all pictures in ``val/``, and ``val.txt`` beside it with lines ``ILSVRC2012_val_00000001.JPEG 65``, as
  in http://dl.caffe.berkeleyvision.org/caffe_ilsvrc12.tar.gz. The devkit's own numbers, from 1 and in
  another order, are not these labels.

``val/`` is linked as ``source/val``, and ``<split>.txt`` below ``source/`` has lines ``path label``. The
choice hangs only on the seed and on names and labels, so both layouts give the same pictures.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from prepare_voc import place

from dtufc import config, files
from dtufc.errors import UserError
from dtufc.feature import load_facts
from dtufc.paths import DataRoot, default_data_root

SPLITS = ("test", "train", "validation")
SUFFIXES = (".jpeg", ".jpg")


@dataclass(frozen=True)
class ImagenetConfig:
    """Preparation of ImageNet."""

    imagenet: Path
    """The folder that holds val/, and val.txt where val/ has no folders."""
    test_count: int = 1000
    """Pictures to evaluate on."""
    train_count: int = 1000
    """Pictures to fit and train on."""
    validation_count: int = 100
    """Pictures to validate the training on."""
    seed: int = 0
    """Seed of the choice."""
    classes: int = 1000
    """Classes that there must be: labels counted from a part of the folders would be wrong."""
    machine: str = "resnet50"
    """Machine preset or YAML file whose source folder the lists go to."""
    data_root: Path = field(default_factory=default_data_root)
    """Data root."""

    def __post_init__(self):
        for key in ("test_count", "train_count", "validation_count", "classes"):
            if getattr(self, key) < 1:
                raise UserError(f"{key}: expected at least 1, got {getattr(self, key)}")


def prepare_imagenet(cfg: ImagenetConfig) -> tuple[dict[str, int], Path]:
    """Choose, link, list -> pictures by split, the source folder.

    Raises:
        FileNotFoundError: val/, val.txt or a listed picture is missing.
        UserError: val.txt is not sound, classes are missing, or there are too few pictures.
    """
    facts = load_facts(cfg.machine)
    source = DataRoot(cfg.data_root).feature(facts.model, facts.task).source
    pictures = deal(find_pictures(cfg.imagenet, cfg.classes), cfg.seed)
    wanted = {split: getattr(cfg, f"{split}_count") for split in SPLITS}
    if sum(wanted.values()) > len(pictures):
        raise UserError(
            f"test_count, train_count, validation_count: {sum(wanted.values())} of the "
            f"{len(pictures)} pictures in {cfg.imagenet}"
        )
    waiting = iter(pictures)
    lists = {split: [next(waiting) for _ in range(count)] for split, count in wanted.items()}
    check_pictures(cfg.imagenet, lists)
    place(cfg.imagenet / "val", source / "val")
    check_pictures(source, lists)  # a folder that was there before may lack some
    for split, chosen in lists.items():
        text = "".join(f"{picture} {label}\n" for picture, label in chosen)
        files.write_text(source / f"{split}.txt", text)
    return wanted, source


def find_pictures(imagenet: Path, classes: int) -> dict[str, int]:
    """All pictures of either layout: path from ``imagenet``, with slashes -> label.

    Raises:
        FileNotFoundError: neither layout is there.
        UserError: the number of classes is another, or val.txt is not sound.
    """
    if not (imagenet / "val").is_dir():
        raise FileNotFoundError(f"{imagenet / 'val'}: no such folder; --imagenet DIR holds val/")
    folders = sorted(path for path in (imagenet / "val").iterdir() if path.is_dir())
    if not folders:
        return _read_labels(imagenet / "val.txt", classes)
    if len(folders) != classes:
        raise UserError(
            f"{imagenet / 'val'}: expected {classes} folders of classes, got {len(folders)}"
        )
    return {
        f"val/{folder.name}/{path.name}": label
        for label, folder in enumerate(folders)
        for path in folder.iterdir()
        if path.suffix.lower() in SUFFIXES
    }


def _read_labels(path: Path, classes: int) -> dict[str, int]:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: missing. val/ has no folders of classes, so it must tell the labels, in lines "
            "'ILSVRC2012_val_00000001.JPEG 65'"
        )
    labels: dict[str, int] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        name, _, label = line.strip().rpartition(" ")
        if not name or not label.isdecimal() or int(label) >= classes or f"val/{name}" in labels:
            raise UserError(
                f"{path}:{number}: expected the name of another picture and a label of "
                f"0..{classes - 1}, got {line!r}"
            )
        labels[f"val/{name}"] = int(label)
    return labels


def deal(labels: dict[str, int], seed: int) -> list[tuple[str, int]]:
    """All pictures in a mixed order that goes round the classes, one picture of each a round.

    So any run of it is balanced as long as all classes last: their counts differ by one at most. The
    order is that of digests, the same for every version of every library.
    """

    def mixed(*parts: str | int) -> str:
        return files.digest("/".join(str(part) for part in (seed, *parts)))

    rows: dict[int, list[str]] = defaultdict(list)
    for picture in sorted(labels, key=lambda picture: mixed("picture", Path(picture).name)):
        rows[labels[picture]].append(picture)
    order = {
        label: place for place, label in enumerate(sorted(rows, key=lambda c: mixed("class", c)))
    }
    dealt = [
        (turn, order[label], picture)
        for label, row in rows.items()
        for turn, picture in enumerate(row)
    ]
    return [(picture, labels[picture]) for _, _, picture in sorted(dealt)]


def check_pictures(folder: Path, lists: dict[str, list[tuple[str, int]]]) -> None:
    """Every chosen picture is there.

    Raises:
        FileNotFoundError: naming the first that is not, and how many are not.
    """
    paths = [folder / picture for chosen in lists.values() for picture, _ in chosen]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise FileNotFoundError(f"{missing[0]}: missing, as are {len(missing) - 1} other pictures")


def main(argv: Sequence[str] | None = None) -> None:
    with config.report_errors():
        counts, source = prepare_imagenet(config.parse(ImagenetConfig, argv, __doc__))
        print(", ".join(f"{n} {split}" for split, n in counts.items()) + f" pictures -> {source}")


if __name__ == "__main__":
    main()
