"""Folders of a user's arrays become features in a data root: read, guessed, split, converted, placed.

    source = read_source(folder, "vit")               headers of all files, values of some
    placed = place_source(source, root.feature(...))  features under feature_train and feature_test

The user's files are read, and linked where they are features as they are; they are never written.
"""

import os
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from tqdm import tqdm

from dtufc import locks
from dtufc.axes import AmbiguousAxes, Axes, Guess, feature_axes, guess_axes, to_feature
from dtufc.errors import UserError
from dtufc.feature import (
    FeatureError,
    Moments,
    check_feature,
    list_features,
    points,
    read_array,
    write_feature,
)
from dtufc.paths import FeatureRoot
from dtufc.views import Shape

SPLITS = ("fit", "validation", "test")
TEST_EVERY, VALIDATION_EVERY = 4, 8
"""Every fourth file, in the order of names, is tested on; every eighth of the others validates."""
LEAST_FILES = 3
"""One to fit, one to validate, one to test."""
STORED = {"float16": "float16", "float32": "float32", "float64": "float32", "bfloat16": "float32"}
"""dtype of a file -> dtype of the feature that is made of it."""
LOOKED_AT, VALUES = 16, 4_000_000
"""Files whose values may tell the axes, and values at most, together."""
HOW = "np.save('name.npy', tensor.float().cpu().numpy()) makes one of a torch tensor"


@dataclass(frozen=True)
class Item:
    """What becomes one feature: a file, or one sample of a file that holds several."""

    path: Path
    index: int | None = None
    """Along the first axis; ``None`` for the whole file."""

    @property
    def name(self) -> str:
        """Name of the feature's file, without ending."""
        return self.path.stem if self.index is None else f"{self.path.stem}_{self.index:06d}"

    def read(self, lazily: bool = False) -> np.ndarray:
        """Its values, bfloat16 as float32.

        Raises:
            FeatureError: the file is no sound ``.npy``.
        """
        x = read_array(self.path, lazily or self.index is not None)
        if self.index is not None:
            x = x[self.index : self.index + 1]
        if dtype_name(x.dtype) == "bfloat16":
            bits = np.ascontiguousarray(x).view(np.uint16).astype(np.uint32) << 16
            return bits.view(np.float32)
        return x if lazily else np.asarray(x)


@dataclass(frozen=True)
class Source:
    """A folder of arrays of one kind."""

    folder: Path
    name: str
    split: dict[str, list[Item]]
    """The items of each of SPLITS."""
    guess: Guess
    """What the axes of a file are."""
    dtypes: list[str]
    """Of the files, each once."""
    shapes: list[tuple[int, ...]]
    """Of all items, in the order of the split."""
    ignored: dict[str, int]
    """How many files of each ending are left alone, since they are no ``.npy``."""

    @property
    def axes(self) -> Axes:
        return self.guess.axes

    @property
    def items(self) -> list[Item]:
        """All, in the order of the split."""
        return [item for name in SPLITS for item in self.split[name]]

    @property
    def dtype(self) -> str:
        """Of the features."""
        stored = {STORED[name] for name in self.dtypes}
        return stored.pop() if len(stored) == 1 else "float32"

    @cached_property
    def feature_shapes(self) -> list[Shape]:
        """(N, C, H, W) of all items."""
        wanted = feature_axes(self.axes)
        place = [self.axes.index(name) if name in self.axes else None for name in wanted]
        return [tuple(1 if k is None else shape[k] for k in place) for shape in self.shapes]

    @property
    def own_shape(self) -> list[int | None]:
        """Of the arrays as they are; ``None`` where the files differ."""
        return common(self.shapes)

    @property
    def shape(self) -> list[int | None]:
        """(N, C, H, W); ``None`` where the files differ."""
        return common(self.feature_shapes)

    @property
    def points(self) -> int:
        """Values of all items together."""
        return sum(points(shape) for shape in self.shapes)


def common(shapes: Sequence[tuple[int, ...]]) -> list[int | None]:
    """The sizes that all shapes share, ``None`` where they differ."""
    return [sizes[0] if len({*sizes}) == 1 else None for sizes in zip(*shapes, strict=True)]


def dtype_name(dtype: np.dtype) -> str:
    """Name of a dtype; numpy writes bfloat16 as two bytes without a meaning."""
    return "bfloat16" if dtype == np.dtype("V2") else dtype.name


def read_source(folder: Path, name: str, axes: Axes | None = None) -> Source:
    """Look at a folder of ``.npy`` files: one file per feature, or at most two files that hold several
    samples along their first axis. Where it holds ``train`` and ``test`` instead, that is the split.

    Args:
        axes: what the axes are; ``None`` guesses.

    Raises:
        AmbiguousAxes: there is no guess.
        FeatureError, UserError, FileNotFoundError: no such folder, too few files, or files that are no
            arrays of one kind; the message names them.
    """
    parts = list_parts(folder)
    paths = [path for part in parts.values() for path in part]
    heads = {path: _read_head(path) for path in paths}
    _check_kind(heads)
    shapes = [head.shape for head in heads.values()]
    # so few files hold several samples each, or are too few
    stacked = len(paths) < LEAST_FILES and len(shapes[0]) > 1 and list(parts) == ["all"]
    if axes is None:
        try:
            guess = guess_axes(shapes, _some(paths), stacked)
        except AmbiguousAxes:
            raise
        except UserError as error:
            raise UserError(f"{folder}: {error}") from error
    else:
        guess = Guess(axes, "--axes")
        if len(axes) != len(shapes[0]):
            raise UserError(
                f"axes: {','.join(axes)} names {len(axes)}, the files of {folder} have the shape "
                f"{shapes[0]}"
            )
        if wrong := [a for k, a in enumerate(axes) if a == "channel" and common(shapes)[k] is None]:
            raise UserError(f"axes: the number of {wrong[0]}s differs over the files of {folder}")
    stacked = stacked and guess.axes[0] in ("sample", "crop")
    items = {
        part: [item for path in found for item in _items(path, heads[path], stacked)]
        for part, found in parts.items()
    }
    split = _split(items, folder)
    found = [item for each in SPLITS for item in split[each]]
    sizes = [(1,) * stacked + heads[item.path].shape[stacked:] for item in found]
    names = dict.fromkeys(head.dtype for head in heads.values())
    return Source(folder, name, split, guess, [*names], sizes, _endings(folder))


def list_parts(folder: Path) -> dict[str, list[Path]]:
    """The ``.npy`` files of a folder as ``all``, or those of its folders ``train`` and ``test``.

    Raises:
        FileNotFoundError: no such folder.
        FeatureError: there are none; the message says what is there and what is taken.
    """
    if folder.is_file() and folder.suffix != ".npy":
        raise FeatureError(f"{folder}: only .npy files are taken; {HOW}")
    inside = [folder / part for part in ("train", "test")]
    has_own = folder.is_dir() and any(folder.glob("[!.]*.npy"))
    if folder.is_dir() and not has_own:
        if not all(part.is_dir() and any(part.glob("[!.]*.npy")) for part in inside):
            endings = ", ".join(f"{n} {end}" for end, n in _endings(folder).items())
            raise FeatureError(
                f"{folder}: holds no .npy file ({endings or 'no files'}), nor train and test folders "
                f"with some; only .npy is taken: {HOW}"
            )
        return {part.name: list_features(part) for part in inside}
    return {"all": list_features(folder)}


def _endings(folder: Path) -> dict[str, int]:
    """How many files have which ending, .npy left out."""
    paths = folder.iterdir() if folder.is_dir() else ()
    endings = [p.suffix or p.name for p in paths if p.is_file() and not p.name.startswith(".")]
    return {end: count for end, count in sorted(Counter(endings).items()) if end != ".npy"}


@dataclass(frozen=True)
class _Head:
    """What a file says of its array before any value is read."""

    shape: tuple[int, ...]
    dtype: str


def _read_head(path: Path) -> _Head:
    x = read_array(path, lazily=True)
    return _Head(x.shape, dtype_name(x.dtype))


def _check_kind(heads: dict[Path, _Head]) -> None:
    """Refuse what is no array of floats, and files of different numbers of axes."""
    first, kind = next(iter(heads.items()))
    for path, head in heads.items():
        if head.dtype not in STORED:
            raise FeatureError(f"{path}: holds {head.dtype}, expected one of {', '.join(STORED)}")
        if not head.shape or 0 in head.shape:
            raise FeatureError(f"{path}: expected an array of values, got shape {head.shape}")
        if len(head.shape) != len(kind.shape):
            raise FeatureError(
                f"{path}: has {len(head.shape)} axes, {first.name} has {len(kind.shape)}; put features "
                "of different kinds in folders of their own"
            )


def _some(paths: Sequence[Path]) -> list[np.ndarray]:
    """Values of some files, spread over the folder; of large ones the first along the first axis."""
    arrays = [Item(path).read(lazily=True) for path in paths[:: -(-len(paths) // LOOKED_AT)]]
    row = max(x.size // len(x) for x in arrays)
    keep = max(64, VALUES // len(arrays) // row)
    return [np.asarray(x[:keep]) for x in arrays]


def _items(path: Path, head: _Head, stacked: bool) -> list[Item]:
    return [Item(path, k) for k in range(head.shape[0])] if stacked else [Item(path)]


def _split(items: dict[str, list[Item]], folder: Path) -> dict[str, list[Item]]:
    """Every fourth file to test, of the others every eighth to validate; each at least one."""
    if "test" in items:
        rest, test = items["train"], items["test"]
    else:
        rest, test = _every(items["all"], TEST_EVERY)
    if not test or len(rest) < 2:
        count = sum(map(len, items.values()))
        raise FeatureError(
            f"{folder}: holds {count} features, expected {LEAST_FILES} at least: one each to fit, to "
            "validate and to test"
        )
    fit, validation = _every(rest, VALIDATION_EVERY)
    return dict(zip(SPLITS, (fit, validation, test), strict=True))


def _every(items: Sequence[Item], nth: int) -> tuple[list[Item], list[Item]]:
    """The others, and every ``nth``, or the last where there are fewer."""
    taken = set(range(nth - 1, len(items), nth)) or {len(items) - 1}
    chosen = [item for k, item in enumerate(items) if k in taken]
    return [item for k, item in enumerate(items) if k not in taken], chosen


@dataclass(frozen=True)
class Placed:
    """What placing found in the values."""

    range: tuple[float, float]
    """Lowest and highest value of all features."""
    fit_range: tuple[float, float]
    """Of those that codecs are fitted on."""
    variance: float
    """Of the values of those that codecs are fitted on."""


def place_source(source: Source, root: FeatureRoot) -> Placed:
    """Write or link all features of a source to their places in a data root, which then hold no others.

    Raises:
        FeatureError: a file is damaged, or holds NaN or infinity; the message names it.
    """
    folders = {
        "fit": root.feature_train / "train",
        "validation": root.feature_train / "test",
        "test": root.feature_test,
    }
    bar = tqdm(total=len(source.items), desc=f"read {source.name}", unit="feature", mininterval=1)
    moments, spans = Moments(), {name: (np.inf, -np.inf) for name in SPLITS}
    with locks.hold(root.folder):
        for name, folder in folders.items():
            clear_others(folder, [f"{item.name}.npy" for item in source.split[name]])
            for item in source.split[name]:
                x = _place(item, source, folder / f"{item.name}.npy")
                low, high = spans[name]
                spans[name] = (min(low, float(x.min())), max(high, float(x.max())))
                if name == "fit":
                    moments.add(x)
                bar.update()
    bar.close()
    lows, highs = zip(*spans.values(), strict=True)
    return Placed((min(lows), max(highs)), spans["fit"], moments.variance)


def _place(item: Item, source: Source, target: Path) -> np.ndarray:
    """Put one feature in its place -> its values."""
    raw = item.read()
    with np.errstate(over="ignore"):  # what float32 cannot hold is infinite, and refused
        x = to_feature(raw, source.axes).astype(np.dtype(source.dtype), order="C", copy=False)
    where = item.path if item.index is None else f"{item.path}, sample {item.index}"
    check_feature(x, where)
    as_it_is = item.index is None and raw.shape == x.shape and raw.dtype == x.dtype
    if as_it_is and source.dtypes == [source.dtype] and source.axes == feature_axes(source.axes):
        link(item.path, target)
    else:
        write_feature(target, x)
    return x


def place_files(paths: Sequence[Path], folder: Path) -> None:
    """Features as they are: links or copies. The folder then holds these and no others, so that none is
    trained on and validated with."""
    clear_others(folder, [path.name for path in paths])
    for path in paths:
        link(path, folder / path.name)


def clear_others(folder: Path, names: Iterable[str]) -> None:
    """Make the folder, or remove from it the ``.npy`` files of other names."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = set(names)
    for old in folder.glob("*.npy"):
        if old.name not in wanted:
            old.unlink()


def link(path: Path, target: Path) -> None:
    """A hard link where the file system has them, a copy elsewhere; whole or not at all."""
    beside = target.parent / f".{target.name}.part"
    beside.unlink(missing_ok=True)
    try:
        os.link(path.resolve(), beside)
    except OSError:
        shutil.copyfile(path, beside)
    os.replace(beside, target)
    beside.unlink(missing_ok=True)  # it stays where both were links to the same file
