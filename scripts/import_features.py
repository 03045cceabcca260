"""Put your own features into the data root: checked, split, linked or copied.

    python scripts/import_features.py --machine minilm --train DIR --test DIR

The last ``--validation`` features of the training folder, in name order, validate the training.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from dtufc import config
from dtufc.errors import UserError
from dtufc.experiments.imports import place_files
from dtufc.feature import FeatureError, list_features, load_facts, read_feature
from dtufc.paths import DataRoot, default_data_root


@dataclass(frozen=True)
class ImportConfig:
    """Import of one kind of feature."""

    machine: str
    """Machine preset or YAML file with the facts of the features."""
    train: Path
    """Folder of the features to fit and train on."""
    test: Path
    """Folder of the features to evaluate on."""
    validation: int = 6
    """How many of the training features validate the training instead."""
    data_root: Path = field(default_factory=default_data_root)
    """Data root."""


def import_features(cfg: ImportConfig) -> Path:
    """Check and place every feature -> the folder ``<data root>/<model>/<task>``.

    Raises:
        FeatureError: a file is no sound feature, or not of this kind; nothing is placed then.
    """
    facts = load_facts(cfg.machine)
    root = DataRoot(cfg.data_root).feature(facts.model, facts.task)
    train, test = list_features(cfg.train), list_features(cfg.test)
    if not 0 < cfg.validation < len(train):
        raise UserError(f"validation: {cfg.validation} of {len(train)} training features")
    for path in tqdm(train + test, desc="check", unit="feature"):
        mismatch = facts.mismatch(read_feature(path))
        if mismatch:
            raise FeatureError(f"{path}: {mismatch}")
    split = len(train) - cfg.validation
    places = (root.feature_train / "train", root.feature_train / "test", root.feature_test)
    for source in (cfg.train, cfg.test):
        if source.resolve() in [place.resolve() for place in places]:
            raise UserError(f"{source}: is the data root's own folder")
    place_files(train[:split], root.feature_train / "train")
    place_files(train[split:], root.feature_train / "test")
    place_files(test, root.feature_test)
    return root.folder


def main(argv: Sequence[str] | None = None) -> None:
    with config.report_errors():
        print(import_features(config.parse(ImportConfig, argv, __doc__)))


if __name__ == "__main__":
    main()
