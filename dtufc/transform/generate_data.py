"""Training patches and transformed features: ``python generate_data.py --machine resnet50_tiny``.

``--kind patches`` writes random crops of the packed, transformed planes that learned codecs are
trained on; with ``--layout native`` they are crops of the features in their own layout, for the codec
``native``. ``transformed`` writes the features after the transform, ``inverse`` after both ways (the
loss of the transform alone). A killed run goes on where it ended, and after a change only what depends
on it is made anew.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from tqdm import tqdm

from dtufc import config, files, locks
from dtufc.errors import UserError
from dtufc.feature import list_features, write_feature
from dtufc.paths import (
    MAPPING_JSON,
    PATCHES_JSON,
    STARTED_JSON,
)
from dtufc.prepare import ensure_features
from dtufc.stamps import Stamp, digest_file, digest_files, read_stamp
from dtufc.transform.nonlinear_transform import FitConfig, fit
from dtufc.transform.options import MachineTransform
from dtufc.transform.patches import (
    Layout,
    Size,
    default_size,
    draw,
    folded_size,
    parse_patch_size,
    patch_dtype,
)
from dtufc.transform.samples import seeded_rng

if TYPE_CHECKING:
    from dtufc.transform.mapping import Mapping

SPLITS = ("train", "test")


@dataclass(frozen=True, kw_only=True)
class GenerateConfig(MachineTransform):
    """Patches, or transformed features."""

    kind: Literal["patches", "transformed", "inverse"] = "patches"
    """What is written."""
    layout: Layout = "plane"
    """patches: plane, of the packed feature; native, with channels as inputs, for the codec native."""
    features: Path | None = None
    """patches: a folder with train and test inside; else a folder of .npy features. null takes the
    machine's (feature_train, or feature_test), extracted if missing."""
    mapping: Path | None = None
    """Mapping file; null takes that of the transform, fitted if it is missing or not current."""
    patch_size: str | None = None
    """height-width of a crop: 256-256. Wide ones whose width is height times a square fold into a
    square: 64-1024 into 256-256. native: height-width of maps, tokens-1. null: the plane, in steps
    of 64, up to 256."""
    patches_per_file: int = 1
    """Random crops of each feature."""
    seed: int = 0
    """Of the crops, and of the fit."""
    output: Path | None = None
    """Folder of the results; null takes its place in the data root."""

    def __post_init__(self):
        super().__post_init__()
        if self.patches_per_file < 1:
            raise UserError(f"patches_per_file: expected 1 or more, got {self.patches_per_file}")
        if self.patch_size is not None:
            parse_patch_size(self.patch_size)

    @property
    def source(self) -> Path:
        """Folder of the features that are transformed."""
        return self.features or self.root.feature_test

    def part(self, split: str) -> Path:
        """Folder of the features that patches are cut from, ``train`` or ``test``."""
        return self.features / split if self.features else self.root.train_part(split)

    @property
    def fit_config(self) -> FitConfig:
        """The fit of the transform's mapping."""
        train = self.features / "train" if self.features and self.kind == "patches" else None
        shared = (*MachineTransform.__dataclass_fields__, "seed")
        return FitConfig(features=train, **{name: getattr(self, name) for name in shared})

    @property
    def mapping_path(self) -> Path:
        """Where the mapping is, or will be."""
        return self.mapping or self.fit_config.mapping_path

    @cached_property
    def size(self) -> Size:
        """Height and width of a crop, before folding.

        Raises:
            FileNotFoundError, FeatureError: they follow from the features, and there are none.
        """
        if self.patch_size is not None:
            return parse_patch_size(self.patch_size)
        first = list_features(self.part("train"))[0]
        return default_size(self.facts, self.facts.read(first), self.layout)

    @property
    def folded_size(self) -> Size:
        """Height and width of the patches."""
        return folded_size(self.size) if self.layout == "plane" else self.size

    @property
    def folder(self) -> Path:
        """Where the results go."""
        if self.output is not None:
            return self.output
        if self.kind == "patches":
            return self.root.patches(self.transform_name, *self.folded_size, self.layout)
        return self.root.transform / f"{self.kind}_{self.transform_name}"

    @property
    def record_path(self) -> Path:
        """The record that appears when all is there."""
        return self.folder / (PATCHES_JSON if self.kind == "patches" else f"{self.kind}.json")

    def stamp(self) -> Stamp:
        """Of what would be made now; its inputs are the mapping and the features.

        Raises:
            FileNotFoundError, FeatureError: there is no mapping, or there are no features.
        """
        values = {"kind": self.kind, "facts": self.facts.decides()}
        values["assignment"] = self.assignment
        inputs = {"mapping": digest_file(self.mapping_path)}
        if self.kind != "patches":
            return Stamp(values, inputs | digest_files(list_features(self.source)))
        values |= {"layout": self.layout, "patch_size": list(self.size)}
        values |= {"patches_per_file": self.patches_per_file, "seed": self.seed}
        for split in SPLITS:
            inputs |= digest_files(list_features(self.part(split)), f"{split}/")
        return Stamp(values, inputs)

    def why_not_made(self) -> str | None:
        """Why the results must be made, in words; ``None`` if they are there and current."""
        return self.stamp().differs(read_stamp(self.record_path))


def generate(cfg: GenerateConfig) -> Path:
    """Write what ``cfg.kind`` says -> its folder.

    Raises:
        FeatureError, FileNotFoundError, UserError: a feature, the mapping or an option is not sound;
            the message names it.
    """
    from dtufc.transform.mapping import Mapping

    if cfg.features is None:
        ensure_features(cfg.machine, cfg.data_root)
    if cfg.mapping is None and cfg.fit_config.why_not_made():
        fit(cfg.fit_config)
    mapping = Mapping.load(cfg.mapping_path, cfg.assignment)
    if cfg.kind == "patches":
        plan = _plan_patches(cfg)
    else:
        plan = {path: [cfg.folder / path.name] for path in list_features(cfg.source)}
        if cfg.folder.resolve() == cfg.source.resolve():
            raise UserError(f"output: {cfg.folder} holds the features themselves")
    with locks.hold(cfg.folder):
        _write(cfg, mapping, plan)
    return cfg.folder


def _plan_patches(cfg: GenerateConfig) -> dict[Path, list[Path]]:
    """The patches ``{train,test}/<stem>_p<n>.npy`` of each feature."""
    return {
        path: [
            cfg.folder / split / f"{path.stem}_p{n:02d}.npy" for n in range(cfg.patches_per_file)
        ]
        for split in SPLITS
        for path in list_features(cfg.part(split))
    }


def _write(cfg: GenerateConfig, mapping: "Mapping", plan: dict[Path, list[Path]]) -> None:
    """Make the files of a plan that are not there or not current, and the record."""
    stamp = cfg.stamp()
    started = cfg.folder / STARTED_JSON
    known = read_stamp(cfg.record_path) or read_stamp(started)
    cfg.record_path.unlink(missing_ok=True)
    _clear_stale(cfg, plan, stamp, known)
    files.write_json(started, stamp.record())
    for path in tqdm(plan, desc=cfg.kind, unit="feature", mininterval=1):
        if not all(target.is_file() for target in plan[path]):
            _write_one(cfg, mapping, path, plan[path])
    record = stamp.record()
    if cfg.kind == "patches":
        mapping.save(cfg.folder / MAPPING_JSON)
        record |= _patches_record(cfg, mapping)
    files.write_json(cfg.record_path, record)
    started.unlink()


def _clear_stale(
    cfg: GenerateConfig, plan: dict[Path, list[Path]], stamp: Stamp, known: Stamp | None
) -> None:
    """Remove all files but those of features that are as they were when a like plan made them."""
    kept: set[Path] = set()
    if known and (known.config, known.inputs.get("mapping")) == (
        stamp.config, stamp.inputs["mapping"],
    ):  # fmt: skip
        for path, targets in plan.items():
            name = f"{path.parent.name}/{path.name}" if cfg.kind == "patches" else path.name
            if known.inputs.get(name) == stamp.inputs[name]:
                kept.update(targets)
    pattern = "*/*_p[0-9]*.npy" if cfg.kind == "patches" else "*.npy"
    for path in cfg.folder.glob(pattern):
        if path not in kept:
            path.unlink()


def _write_one(
    cfg: GenerateConfig, mapping: "Mapping", path: Path, targets: Sequence[Path]
) -> None:
    """The patches of one feature; or u (N, C, H, W), or the values after both ways, as its file."""
    x = cfg.facts.read(path)
    u = mapping.forward(x)
    if cfg.kind == "transformed":
        write_feature(targets[0], u.astype(patch_dtype(mapping)))
    elif cfg.kind == "inverse":
        write_feature(targets[0], mapping.inverse(u).astype(x.dtype))
    else:
        for n, target in enumerate(targets):
            rng = seeded_rng(cfg.seed, path.name, n)
            patch = draw(cfg.facts, u, cfg.layout, cfg.size, mapping.zero, rng)
            with files.write_atomic(target) as file:
                np.save(file, patch.astype(patch_dtype(mapping)), allow_pickle=False)


def _patches_record(cfg: GenerateConfig, mapping: "Mapping") -> dict[str, Any]:
    """What training needs to know of the patches."""
    return {
        "facts": cfg.facts.record(),
        "assignment": cfg.assignment,
        "layout": cfg.layout,
        "patch_size": list(cfg.size),
        "folded_size": list(cfg.folded_size),
        "patches_per_file": cfg.patches_per_file,
        "seed": cfg.seed,
        "mapping_id": mapping.id.hex(),
    }


def main(argv: Sequence[str] | None = None) -> None:
    with config.report_errors():
        cfg = config.parse(GenerateConfig, argv, __doc__)
        print(f"written   {generate(cfg)}")


if __name__ == "__main__":
    main()
