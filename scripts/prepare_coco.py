"""Turn COCO captions into the lists of prompts that the text-to-image machine reads.

    python scripts/prepare_coco.py --test captions_val2017.json --validation captions_val2017.json

The files are ``captions_{train,val}2017.json`` of
http://images.cocodataset.org/annotations/annotations_trainval2017.zip (https://cocodataset.org). Each
list, ``<split>.txt`` below ``source/``, has one line per image: its id as 12 digits, a space, its
longest caption. Images stand in the order of their ids. Splits of the same file take consecutive
ranges of it, test first, then train, then validation, so that they never overlap.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dtufc import config, files
from dtufc.errors import UserError
from dtufc.feature import load_facts
from dtufc.paths import DataRoot, default_data_root

SPLITS = ("test", "train", "validation")  # in the order in which they draw from one file


@dataclass(frozen=True)
class CocoConfig:
    """Preparation of COCO captions."""

    train: Path | None = None
    """Captions file of the train images."""
    validation: Path | None = None
    """Captions file of the images that validate the training."""
    test: Path | None = None
    """Captions file of the test images."""
    counts: dict[str, int] = field(default_factory=lambda: {"test": 500})
    """Images of the splits train, validation, test; 0, or none named, takes all that are left."""
    machine: str = "sd3"
    """Machine preset or YAML file whose source folder the lists go to."""
    data_root: Path = field(default_factory=default_data_root)
    """Data root."""

    def __post_init__(self):
        if not self.given:
            raise UserError("train, validation, test: expected at least one captions file")
        if self.counts.keys() - set(SPLITS) or min(self.counts.values(), default=0) < 0:
            raise UserError(f"counts: expected 0 or more for some of {SPLITS}, got {self.counts}")

    @property
    def given(self) -> dict[str, Path]:
        """The captions file of each split that is asked for."""
        paths = {split: getattr(self, split) for split in SPLITS}
        return {split: path for split, path in paths.items() if path is not None}


def prepare_coco(cfg: CocoConfig) -> tuple[dict[str, int], Path]:
    """Write the lists of the given splits -> images by split, the folder.

    Nothing is written before every split has been drawn.

    Raises:
        FileNotFoundError: a captions file is missing.
        UserError: it is no captions file, has too few images, or a list of an earlier call holds an
            image of the new ones.
    """
    facts = load_facts(cfg.machine)
    source = DataRoot(cfg.data_root).feature(facts.model, facts.task).source
    left: dict[Path, dict[int, str]] = {}  # what earlier splits did not take, by file
    drawn: dict[str, dict[int, str]] = {}
    for split, path in cfg.given.items():
        path = path.resolve()
        if path not in left:
            left[path] = longest_captions(path)
        count = cfg.counts.get(split) or len(left[path])
        if not 0 < count <= len(left[path]):
            raise UserError(f"{split}: {count} of the {len(left[path])} images left in {path}")
        drawn[split] = {image: left[path].pop(image) for image in list(left[path])[:count]}
    _check_earlier_lists(source, drawn)
    for split, captions in drawn.items():
        lines = [f"{image:012d} {caption}\n" for image, caption in captions.items()]
        files.write_text(source / f"{split}.txt", "".join(lines))
    return {split: len(captions) for split, captions in drawn.items()}, source


def longest_captions(path: Path) -> dict[int, str]:
    """The longest caption of each image, by image id in rising order.

    Length is in characters, with every run of white space as one space; of equal captions the one
    with the lowest id counts. Images without a caption are left out.

    Raises:
        FileNotFoundError: no such file.
        UserError: not COCO's form; the message names the file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such captions file of COCO")
    values = files.read_json(path)
    try:
        images = {row["id"] for row in values["images"]}
        notes = [(row["image_id"], row["id"], row["caption"]) for row in values["annotations"]]
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{path}: expected images of id and annotations of image_id, id and caption ({error!r})"
        ) from error
    best: dict[int, tuple[int, int, str]] = {}  # image -> (-length, id of the caption, caption)
    for image, note, caption in notes:
        sound = isinstance(image, int) and isinstance(note, int) and isinstance(caption, str)
        if not sound or image not in images:
            raise UserError(
                f"{path}: annotation {note!r}: expected numbers as ids, of itself and of one of the "
                f"images, and a text, got image {image!r} and {caption!r}"
            )
        caption = " ".join(caption.split())
        if caption:
            best[image] = min((-len(caption), note, caption), best.get(image, (0, 0, "")))
    return {image: best[image][2] for image in sorted(best)}


def _check_earlier_lists(source: Path, drawn: dict[str, Iterable[int]]) -> None:
    """A list that this call does not replace must not hold an image of the new lists."""
    new = {f"{image:012d}" for images in drawn.values() for image in images}
    for split in SPLITS:
        path = source / f"{split}.txt"
        if split not in drawn and path.is_file():
            lines = path.read_text(encoding="utf-8").splitlines()
            common = sorted(new & {line.partition(" ")[0] for line in lines})
            if common:
                raise UserError(
                    f"{path}: holds {len(common)} of the new images, {common[0]} is the first; "
                    "name all splits of one captions file in one call"
                )


def main(argv: Sequence[str] | None = None) -> None:
    with config.report_errors():
        cfg = config.parse(CocoConfig, argv, __doc__)
        counts, source = prepare_coco(cfg)
        for path in dict.fromkeys(path.resolve() for path in cfg.given.values()):
            splits = [split for split in cfg.given if cfg.given[split].resolve() == path]
            if len(splits) > 1:
                print(f"{path}: consecutive images for {', then '.join(splits)}")
        print(", ".join(f"{n} {split}" for split, n in counts.items()) + f" captions -> {source}")


if __name__ == "__main__":
    main()
