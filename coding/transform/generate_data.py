"""Training patches and transformed features: ``python generate_data.py --machine resnet50_tiny``.

``--kind patches`` writes random crops of the packed, transformed planes that learned codecs are
trained on; with ``--layout native`` they are crops of the features in their own layout, for the codec
``native``. ``transformed`` writes the features after the transform, ``inverse`` after both ways (the
loss of the transform alone). A killed run goes on where it ended.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from tqdm import tqdm

from coding import config, files
from coding.errors import UserError
from coding.feature import (
    FeatureFacts,
    list_features,
    load_facts,
    write_feature,
)
from coding.paths import DataRoot, FeatureRoot, default_data_root, transform_name
from coding.prepare import ensure_features
from coding.transform.fit import MAX_BIT_DEPTH, TransformType
from coding.transform.mapping import Assignment, Mapping, Normalise
from coding.transform.nonlinear_transform import FitConfig, fit
from coding.transform.samples import seeded_rng

SPLITS = ("train", "test")
MAPPING_JSON, PATCHES_JSON, STARTED_JSON = "mapping.json", "patches.json", "patches_started.json"
PATCH_STEP, PATCH_LIMIT = 64, 256
"""The default patch is the plane, rounded up to multiples of 64, up to 256."""
NATIVE_STEP, NATIVE_LIMIT = 4, 64
"""The same in the native layout."""

Size = tuple[int, int]
Layout = Literal["plane", "native"]


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """Patches, or transformed features."""

    machine: str = "resnet50_tiny"
    """Machine preset or YAML file: the facts of the features."""
    kind: Literal["patches", "transformed", "inverse"] = "patches"
    """What is written."""
    layout: Layout = "plane"
    """patches: plane, of the packed feature; native, with channels as inputs, for the codec native."""
    features: Path | None = None
    """patches: a folder with train and test inside; else a folder of .npy features. null takes the
    machine's (feature_train, or feature_test), extracted if missing."""
    mapping: Path | None = None
    """Mapping file; null takes the one named by the next three, fitted if missing."""
    transform_type: TransformType = "kmeans"
    """Kind of the codebook."""
    samples: int = 10
    """Features that the mapping is fitted on; 0 takes all."""
    bit_depth: int = 8
    """log2 of the number of levels."""
    assignment: Assignment = "nearest"
    """Which level a value gets."""
    normalise: Normalise = "none"
    """Of the mapping: none, mean or scale, of each channel."""
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
    data_root: Path = field(default_factory=default_data_root)
    """Where features, mappings and patches lie."""

    def __post_init__(self):
        if self.patches_per_file < 1:
            raise UserError(f"patches_per_file: expected 1 or more, got {self.patches_per_file}")
        if not 1 <= self.bit_depth <= MAX_BIT_DEPTH:
            raise UserError(f"bit_depth: expected 1 .. {MAX_BIT_DEPTH}, got {self.bit_depth}")
        if self.samples < 0:
            raise UserError(f"samples: expected 0 or more, got {self.samples}")
        if self.patch_size is not None:
            parse_patch_size(self.patch_size)


def parse_patch_size(text: str) -> Size:
    """``"height-width"`` -> (height, width).

    Raises:
        UserError: anything else than two positive integers.
    """
    parts = text.split("-")
    if len(parts) != 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UserError(f"patch_size: expected height-width, for example 256-256, got {text!r}")
    return int(parts[0]), int(parts[1])


def folded_size(size: Size) -> Size:
    """The size that :func:`fold` gives: (64, 1024) -> (256, 256); (128, 64) stays."""
    blocks = _blocks(size)
    return size[0] * blocks, size[1] // blocks


def fold(patch: np.ndarray) -> np.ndarray:
    """Cut a wide patch into sqrt(w / h) blocks side by side and stack them: (h, w) -> a square.

    As published for 64 x 1024. What is no square number of heights wide stays as it is.
    """
    h, w = patch.shape
    blocks = _blocks((h, w))
    out = patch.reshape(h, blocks, w // blocks).transpose(1, 0, 2)  # (blocks, h, w / blocks)
    return out.reshape(folded_size((h, w)))


def _blocks(size: Size) -> int:
    ratio, rest = divmod(size[1], size[0])
    root = math.isqrt(ratio)
    return root if rest == 0 and root > 1 and root * root == ratio else 1


def crop(plane: np.ndarray, size: Size, fill: float, rng: np.random.Generator) -> np.ndarray:
    """A random crop of (..., P, Q); where that is smaller, ``fill`` is added below and right."""
    missing = [max(0, want - got) for want, got in zip(size, plane.shape[-2:], strict=True)]
    if any(missing):
        padding = [(0, 0)] * (plane.ndim - 2) + [(0, missing[0]), (0, missing[1])]
        plane = np.pad(plane, padding, constant_values=np.float32(fill))
    top, left = (
        int(rng.integers(got - want + 1)) for want, got in zip(size, plane.shape[-2:], strict=True)
    )
    return plane[..., top : top + size[0], left : left + size[1]]


def _patch(
    facts: FeatureFacts, u: np.ndarray, cfg: GenerateConfig, size: Size, fill: float,
    rng: np.random.Generator,
) -> np.ndarray:  # fmt: skip
    """u (N, C, H, W) -> one training patch, (h, w) folded, or (K, h, w) in the native layout."""
    if cfg.layout == "plane":
        return fold(crop(facts.packing.pack(u), size, fill, rng))
    native = facts.packing.to_native(u)
    return crop(native[rng.integers(len(native))], size, fill, rng)


def generate(cfg: GenerateConfig) -> Path:
    """Write what ``cfg.kind`` says -> its folder.

    Raises:
        FeatureError, FileNotFoundError, UserError: a feature, the mapping or an option is not sound;
            the message names it.
    """
    facts = load_facts(cfg.machine)
    root = DataRoot(cfg.data_root).feature(facts.model, facts.task)
    source = cfg.features
    if source is None:
        ensure_features(cfg.machine, cfg.data_root)
        source = root.feature_train if cfg.kind == "patches" else root.feature_test
    mapping = _load_mapping(cfg)
    if cfg.kind == "patches":
        return _write_patches(cfg, facts, root, source, mapping)
    return _write_features(cfg, facts, root, source, mapping)


def _load_mapping(cfg: GenerateConfig) -> Mapping:
    if cfg.mapping is not None:
        return Mapping.load(cfg.mapping, cfg.assignment)
    train = cfg.features / "train" if cfg.features and cfg.kind == "patches" else None
    fit_cfg = FitConfig(
        machine=cfg.machine,
        features=train,
        transform_type=cfg.transform_type,
        samples=cfg.samples,
        bit_depth=cfg.bit_depth,
        assignment=cfg.assignment,
        normalise=cfg.normalise,
        seed=cfg.seed,
        data_root=cfg.data_root,
    )
    if not fit_cfg.mapping_path.is_file():
        fit(fit_cfg)
    return Mapping.load(fit_cfg.mapping_path, cfg.assignment)


def _write_patches(
    cfg: GenerateConfig, facts: FeatureFacts, root: FeatureRoot, source: Path, mapping: Mapping
) -> Path:
    """``{train,test}/<stem>_p<n>.npy``, ``mapping.json`` and, when all is there, ``patches.json``."""
    paths = {split: list_features(source / split) for split in SPLITS}
    if cfg.patch_size is not None:
        size = parse_patch_size(cfg.patch_size)
    else:
        size = _default_size(facts, paths["train"][0], cfg.layout)
    folded = folded_size(size) if cfg.layout == "plane" else size
    output = cfg.output or root.patches(_transform_name(cfg), *folded, cfg.layout)
    plan = {
        "facts": asdict(facts),
        "assignment": cfg.assignment,
        "layout": cfg.layout,
        "patch_size": list(size),
        "folded_size": list(folded),
        "patches_per_file": cfg.patches_per_file,
        "seed": cfg.seed,
        "mapping_id": mapping.id.hex(),
    }
    expected = {
        split: {path: _patch_paths(output / split, path, cfg.patches_per_file) for path in found}
        for split, found in paths.items()
    }
    _clear_stale(output, plan, expected)
    files.write_json(output / STARTED_JSON, plan)
    mapping.save(output / MAPPING_JSON)
    dtype = _patch_dtype(mapping)
    for split, targets in expected.items():
        for path in tqdm(targets, desc=f"patches {split}", unit="feature", mininterval=1):
            if _is_fresh(path, targets[path]):
                continue
            u = mapping.forward(facts.read(path))
            for n, target in enumerate(targets[path]):
                rng = seeded_rng(cfg.seed, path.name, n)
                patch = _patch(facts, u, cfg, size, mapping.zero, rng)
                with files.write_atomic(target) as file:
                    np.save(file, patch.astype(dtype), allow_pickle=False)
    files.write_json(output / PATCHES_JSON, plan)
    (output / STARTED_JSON).unlink()
    return output


def _write_features(
    cfg: GenerateConfig, facts: FeatureFacts, root: FeatureRoot, source: Path, mapping: Mapping
) -> Path:
    """``<name>.npy``, 4-D: u, or the values after both ways in the source's dtype."""
    transform = _transform_name(cfg)
    output = cfg.output or root.transform / f"{cfg.kind}_{transform}"
    paths = list_features(source)
    if output.resolve() == paths[0].parent.resolve():
        raise UserError(f"output: {output} holds the features themselves")
    plan = {"kind": cfg.kind, "assignment": cfg.assignment, "mapping_id": mapping.id.hex()}
    record = output / f"{cfg.kind}.json"
    if not record.is_file() or files.read_json(record) != plan:
        for stale in output.glob("*.npy"):
            stale.unlink()
        files.write_json(record, plan)
    convert = _transform(mapping) if cfg.kind == "transformed" else _both_ways(mapping)
    for path in tqdm(paths, desc=cfg.kind, unit="feature", mininterval=1):
        target = output / path.name
        if not _is_fresh(path, [target]):
            write_feature(target, convert(facts.read(path)))
    return output


def _transform_name(cfg: GenerateConfig) -> str:
    return transform_name(
        cfg.transform_type, cfg.samples, cfg.bit_depth, cfg.assignment, cfg.normalise
    )


def _transform(mapping: Mapping) -> Callable[[np.ndarray], np.ndarray]:
    dtype = _patch_dtype(mapping)
    return lambda x: mapping.forward(x).astype(dtype)


def _both_ways(mapping: Mapping) -> Callable[[np.ndarray], np.ndarray]:
    return lambda x: mapping.inverse(mapping.forward(x)).astype(x.dtype)


def _patch_dtype(mapping: Mapping) -> type[np.floating]:
    """float16 where it holds every u exactly (levels of 10 bits and the fill), else float32."""
    exact = mapping.assignment != "continuous" and mapping.bit_depth <= 10
    return np.float16 if exact and float(np.float16(mapping.zero)) == mapping.zero else np.float32


def _default_size(facts: FeatureFacts, path: Path, layout: Layout) -> Size:
    shape = facts.read(path).shape
    if layout == "native":
        size, step, limit = facts.packing.native_size(shape)[2:], NATIVE_STEP, NATIVE_LIMIT
    else:
        size, step, limit = facts.packing.plane(shape), PATCH_STEP, PATCH_LIMIT
    height, width = (1 if length == 1 else min(limit, -(-length // step) * step) for length in size)
    return height, width


def _patch_paths(folder: Path, source: Path, count: int) -> list[Path]:
    return [folder / f"{source.stem}_p{n:02d}.npy" for n in range(count)]


def _is_fresh(source: Path, targets: Sequence[Path]) -> bool:
    """Whether all targets are there and none is older than its source."""
    made = source.stat().st_mtime
    return all(target.is_file() and target.stat().st_mtime >= made for target in targets)


def _clear_stale(output: Path, plan: dict, expected: dict[str, dict[Path, list[Path]]]) -> None:
    """Remove patches of another plan, or of features that are gone, and the mark of completeness."""
    marks = [output / PATCHES_JSON, output / STARTED_JSON]
    same = any(mark.is_file() and files.read_json(mark) == plan for mark in marks)
    marks[0].unlink(missing_ok=True)
    for split, targets in expected.items():
        wanted = {path for group in targets.values() for path in group} if same else set()
        for path in (output / split).glob("*_p[0-9]*.npy"):
            if path not in wanted:
                path.unlink()


def main(argv: Sequence[str] | None = None) -> None:
    with config.report_errors():
        cfg = config.parse(GenerateConfig, argv, __doc__)
        print(f"written   {generate(cfg)}")


if __name__ == "__main__":
    main()
