"""Feature files and the facts about each kind of feature: where machines and codecs meet.

A feature file is a ``.npy`` of four axes (N, C, H, W), float16 or float32, finite. The facts about a
kind of feature (axes, shape, dtype, range) are data: the ``feature:`` block of a YAML file in
``configs/machines``. A user's own features need such a file and no code.
"""

import copy
import math
import os
import re
import tokenize
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from dtufc import config, files
from dtufc.errors import UserError
from dtufc.paths import CONFIGS, PACKAGE, TENSOR_MARK
from dtufc.views import MAP_AXES, TOKEN_AXES, Shape, Views

DTYPES = ("float16", "float32")
MAX_NAME = 240
"""Longest name of a feature file in bytes: names of results are a little longer."""
_UNREADABLE = (
    ValueError, EOFError, OSError, SyntaxError, TypeError, OverflowError, RecursionError,
    tokenize.TokenError,
)  # fmt: skip
"""What numpy raises where a file is no sound ``.npy``."""


class FeatureError(UserError):
    """A feature file, or an array given as one, is not what the contract says."""


@dataclass(frozen=True)
class FeatureFacts:
    """What is known of one kind of feature before any file is read."""

    model: str
    """The large model, the first folder of the data root: llama3."""
    task: str
    """The task, the second folder of the data root: csr."""
    shape: list[int | None]
    """(N, C, H, W); null where any size will do."""
    axes: list[str]
    """What each axis is: [sample, layer, token, channel] or [sample, channel, row, column]; crop may
    stand for sample, head for layer."""
    tiles: list[int] | None = None
    """Maps only: rows and columns of the grid of channel maps in the plane that 2-D codecs see; null
    takes the most square one with at least as many rows as columns."""
    dtype: Literal["float16", "float32"] = "float32"
    """dtype of the files, and of what decoding gives back."""
    range: list[float] | None = None
    """[lowest, highest] value observed over the published features; for reading, never for clipping."""
    rows: int = 0
    """Tokens per file that the transform's fit samples; 0 takes all (published: 64 for csr)."""
    script: str | None = None
    """The machine's script that makes these features (``--machine THIS_FILE --mode extract``), a path
    below the package's ``machines`` or beside the YAML; null where the features are simply there."""

    def __post_init__(self):
        for name in ("model", "task"):  # the kind becomes a file's name; load_facts allows less
            if {"/", "\0"} & set(getattr(self, name)):
                raise UserError(f"{name}: expected no path, got {getattr(self, name)!r}")
        if len(self.shape) != 4 or any(size is not None and size < 1 for size in self.shape):
            raise UserError(f"shape: expected four sizes or nulls, got {self.shape}")
        channels = self.views.channels(self.shape)  # raises where the axes are none
        if channels is not None:
            self.views.grid(channels)

    @cached_property
    def views(self) -> Views:
        """The views that follow from the axes."""
        return Views(tuple(self.axes), None if self.tiles is None else tuple(self.tiles))

    @property
    def kind(self) -> str:
        """The name of this kind of feature: ``<model>_<task>``."""
        return f"{self.model}_{self.task}"

    def decides(self) -> dict[str, Any]:
        """What of the facts decides the products made of such features, for stamps, as JSON values."""
        idle = ("range", "rows", "script")
        return {k: v for k, v in files.jsonable(asdict(self)).items() if k not in idle}

    def identity(self) -> dict[str, Any]:
        """The facts in the form that codec ids are made of, as JSON values. It never changes."""
        values = files.jsonable(asdict(self))
        values.pop("axes"), values.pop("tiles")
        grid = self.views.tiles
        if grid is None and self.shape[1] is not None:
            grid = self.views.grid(self.shape[1])
        rows, cols = grid or (0, 0)
        layout = "tiles" if self.views.is_map else "tokens"
        return values | {"packing": {"layout": layout, "rows": rows, "cols": cols}}

    def record(self) -> dict[str, Any]:
        """The facts as codec folders and records hold them."""
        return self.identity() | {"axes": self.axes}

    @classmethod
    def of_record(cls, values: Any, where: str) -> Self:
        """The facts that :meth:`record` gave; earlier versions wrote them without axes.

        Raises:
            UserError: an unknown key, a missing one or a wrong value; the message starts with ``where``.
        """
        if not isinstance(values, dict) or not isinstance(values.get("packing"), dict):
            raise UserError(f"{where}: expected the facts of a kind of feature")
        values = dict(values)
        packing = values.pop("packing")
        families = {"tokens": TOKEN_AXES, "tiles": MAP_AXES}
        if packing.keys() != {"layout", "rows", "cols"} or packing["layout"] not in [*families]:
            raise UserError(f"{where}: packing: {packing} is none of this code's")
        values.setdefault("axes", list(families[packing["layout"]]))
        grid = [packing["rows"], packing["cols"]]
        values["tiles"] = None if grid == [0, 0] else grid
        facts = config.build(cls, values, where)
        if facts.views.is_map != (packing["layout"] == "tiles"):
            raise UserError(f"{where}: axes: {facts.axes} are not packed as {packing['layout']}")
        return facts

    def mismatch(self, x: np.ndarray) -> str | None:
        """Why ``x`` is not a feature of this kind, or ``None`` if it is."""
        if x.dtype != self.dtype:
            return f"{self.kind} takes {self.dtype}, got {x.dtype}"
        if not self.fits(x.shape):
            return f"{self.kind} takes shape {tuple(self.shape)}, got {x.shape}"
        return None

    def four_axes(self, shape: Sequence[int]) -> Shape | None:
        """The shape (N, C, H, W) of a feature of this kind that may have come with fewer axes: tokens as
        (T, C), or as (N, T, C) where the kind has one layer; maps as (C, H, W).

        ``None`` where the shape does not fit the kind in any of these ways.
        """
        shape = tuple(shape)
        if len(shape) == 3:
            if self.views.is_map:
                shape = (1, *shape)
            elif self.shape[1] == 1:
                shape = (shape[0], 1, *shape[1:])
        elif len(shape) == 2 and not self.views.is_map:
            shape = (1, 1, *shape)
        if len(shape) != 4:
            return None
        return shape if self.fits(shape) else None

    def fits(self, shape: Shape) -> bool:
        """Whether four sizes are those of the kind."""
        for want, got in zip(self.shape, shape, strict=True):
            if want is not None and want != got:
                return False
        return True

    @property
    def smallest(self) -> Shape:
        """A small shape of this kind: 8 tokens, or 8 x 8 positions, where any size will do."""
        n, c, h, w = self.shape
        if self.views.is_map:
            return n or 1, c or math.prod(self.views.tiles or (1,)), h or 8, w or 8
        return n or 1, c or 1, h or 8, w or 8

    def read(self, path: str | Path) -> np.ndarray:
        """A feature of this kind.

        Raises:
            FeatureError: it is none, or of another kind; the message names the file.
        """
        x = read_feature(path)
        if why := self.mismatch(x):
            raise FeatureError(f"{path}: {why}")
        return x

    @classmethod
    def of_tokens(cls, path: Path) -> Self:
        """What is taken for granted of a file without facts: tokens x channels, as many as it has."""
        x = read_feature(path)
        shape = [None, x.shape[1], None, x.shape[3]]
        task = re.sub(r"[^A-Za-z0-9._-]+", "_", path.resolve().parent.name).lstrip("._-") or "files"
        return cls("feature", task, shape, list(TOKEN_AXES), dtype=x.dtype.name)


def load_facts(path: str | Path) -> FeatureFacts:
    """Read the ``feature:`` block of a YAML; a ``machine:`` block beside it is the machine's.

    Args:
        path: a file, or the name of a preset in ``configs/machines`` (``resnet50_tiny``). Of a machine
            of several tensors (:mod:`dtufc.states`), with the name of one: ``smollm2_kv@k0``.

    Raises:
        FileNotFoundError, UserError: no such file, or the block is missing or wrong; or the machine has
            several tensors and none is named.
    """
    if TENSOR_MARK in Path(path).name and split_tensor(path)[1]:
        from dtufc.states import load_tensor_facts

        return load_tensor_facts(path)
    path = find_machine_config(path)
    state = path.stat()
    # a copy: nothing keeps a caller from changing its lists
    return copy.deepcopy(_read_facts(path, (state.st_ino, state.st_mtime_ns, state.st_size)))


@lru_cache(maxsize=256)
def _read_facts(path: Path, state: tuple[int, ...]) -> FeatureFacts:
    """The facts of a file in this state. A batch asks for those of each machine hundreds of times."""
    values = read_feature_block(path)
    if isinstance(values, dict) and "tensors" in values:
        raise UserError(
            f"{path}: a machine of several tensors; name one behind {TENSOR_MARK}: "
            f"{path}{TENSOR_MARK}{next(iter(values['tensors']), 'NAME')}"
        )
    return build_facts(values, path)


def read_feature_block(path: Path) -> Any:
    """The ``feature:`` block of a YAML.

    Raises:
        FileNotFoundError, UserError: no such file, or there is no such block, or others beside it.
    """
    values = config.read_yaml(path)
    unknown = set(values) - {"feature", "machine"}
    if unknown or "feature" not in values:
        raise UserError(f"{path}: expected the key 'feature' (and 'machine'), got {sorted(values)}")
    return values["feature"]


def build_facts(values: Any, path: Path, where: str = "feature") -> FeatureFacts:
    """The facts of one kind of feature, from plain values.

    Args:
        path: the YAML that they are from. where: the block, for errors.

    Raises:
        FileNotFoundError, UserError: they are wrong.
    """
    _check_axes(values, path)
    facts = config.build(FeatureFacts, values, f"{path}: {where}")
    for key, value in (("model", facts.model), ("task", facts.task)):  # they become folders
        check_folder_name(value, f"{path}: {where}: {key}")
    if facts.script is not None:
        find_script(path, facts.script)
    return facts


def check_folder_name(value: str, where: str) -> None:
    """Refuse what cannot be part of a folder's name.

    Raises:
        UserError: the message starts with ``where``.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", value):
        raise UserError(f"{where}: expected letters, digits, '.', '_' and '-', got {value!r}")


def split_tensor(name: str | Path) -> tuple[str | Path, str]:
    """A machine's name or file, and the tensor that is named behind it: ``smollm2_kv@k0``; empty where
    none is."""
    path = Path(name)
    before, mark, tensor = path.name.rpartition(TENSOR_MARK)
    if not mark or path.suffix in (".yaml", ".yml"):
        return name, ""
    return path.with_name(before) if before else name, tensor


def _check_axes(values: Any, path: Path) -> None:
    """Say what to write where there are no axes; earlier versions had ``packing`` in their place."""
    if not isinstance(values, dict):
        raise UserError(f"{path}: feature: expected a mapping of keys to values")
    tokens, maps = (f"axes: [{', '.join(names)}]" for names in (TOKEN_AXES, MAP_AXES))
    if "packing" in values:
        packing, lines = values["packing"], tokens
        if isinstance(packing, dict) and packing.get("layout") == "tiles":
            lines = f"{maps} and tiles: [{packing.get('rows')}, {packing.get('cols')}]"
        raise UserError(f"{path}: feature: packing is no key any more; write {lines} instead")
    if "axes" not in values:
        raise UserError(f"{path}: feature: axes: missing; write {tokens} or {maps}")


def find_script(preset: Path, script: str) -> Path:
    """The script of a machine: a Python file below the package's ``machines`` or beside the YAML.

    Raises:
        UserError: it lies elsewhere, links resolved, or is no Python file.
        FileNotFoundError: it is not there.
    """
    if "\0" in script:
        raise UserError(f"{preset}: feature: script: expected a path, got {script!r}")
    beside = preset.resolve().parent
    rooms = ((PACKAGE, PACKAGE / "machines"), (beside, beside))
    places = [
        path
        for base, room in rooms
        if (path := (base / script).resolve()).is_relative_to(room) and path.suffix == ".py"
    ]
    if not places or Path(script).is_absolute():
        raise UserError(
            f"{preset}: feature: script: expected a .py file below machines/ or beside the YAML, "
            f"got {script!r}"
        )
    found = next((path for path in places if path.is_file()), None)
    if found is None:
        raise FileNotFoundError(f"{preset}: feature: script: {places[0]} is not there")
    return found


def find_machine_config(name: str | Path) -> Path:
    """A path as it is, or a bare preset name looked up in ``configs/machines``; without the tensor that
    is named behind it."""
    name = split_tensor(name)[0]
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        path = CONFIGS / "machines" / f"{name}.yaml"
    if not path.is_file():
        known = sorted(p.stem for p in (CONFIGS / "machines").glob("*.yaml"))
        raise FileNotFoundError(f"{path}: no such machine config; presets are {known}")
    return path


def check_feature(x: np.ndarray, name: str | Path = "feature") -> np.ndarray:
    """Return ``x`` if it is a sound feature.

    Raises:
        FeatureError: wrong rank, dtype, emptiness, NaN or infinity; the message starts with ``name``.
    """
    if x.ndim != 4:
        raise FeatureError(f"{name}: expected 4 axes (N, C, H, W), got shape {x.shape}")
    if x.dtype.char not in "ef":  # half and single; the name takes as long as all else here
        raise FeatureError(f"{name}: expected float16 or float32, got {x.dtype}")
    if x.size == 0:
        raise FeatureError(f"{name}: the feature is empty, shape {x.shape}")
    if not is_finite(x):
        raise FeatureError(f"{name}: the feature holds NaN or infinity")
    return x


def is_finite(x: np.ndarray) -> bool:
    """Whether floats hold neither NaN nor infinity."""
    # a sum of squares takes half the time, and if it is finite they are; if not, they may be large
    if x.dtype.char == "f" and math.isfinite(np.vdot(x, x)):
        return True
    return bool(np.isfinite(x).all())


def read_array(path: str | Path, lazily: bool = False) -> np.ndarray:
    """Read a ``.npy`` file of any shape and dtype, without pickle.

    Args:
        lazily: values stay in the file until they are used.

    Raises:
        FeatureError: not a sound ``.npy`` (truncated, pickled, foreign); the message names the file.
        FileNotFoundError: no such file.
    """
    try:
        x = np.load(path, mmap_mode="r" if lazily else None, allow_pickle=False)
    except FileNotFoundError:
        raise
    except MemoryError as error:
        raise FeatureError(
            f"{path}: the header asks for more memory than there is, or is nested too deep"
        ) from error
    except _UNREADABLE as error:
        raise FeatureError(f"{path}: not a readable .npy file ({str(error)[:200]})") from error
    if not isinstance(x, np.ndarray):
        raise FeatureError(f"{path}: an archive of arrays, expected one .npy array")
    return x


def read_feature(path: str | Path) -> np.ndarray:
    """Read and check a feature file -> (N, C, H, W) float16 or float32.

    Raises:
        FeatureError: not a sound ``.npy`` or not a sound feature; the message names the file.
        FileNotFoundError: no such file.
    """
    return check_feature(read_array(path), path)


def write_feature(path: str | Path, x: np.ndarray) -> None:
    """Write a feature file, whole or not at all."""
    check_feature(x, path)
    with files.write_atomic(path) as file:
        np.save(file, x, allow_pickle=False)


def list_features(folder: str | Path) -> list[Path]:
    """The ``.npy`` files of a folder, sorted by name; a single file is itself.

    Raises:
        FileNotFoundError: no such folder.
        FeatureError: the folder holds no ``.npy`` file, or one whose name cannot be kept.
    """
    folder = Path(folder)
    if folder.is_file():
        return [check_name(folder)]
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such file or folder of features")
    paths = sorted(p for p in folder.iterdir() if p.suffix == ".npy" and not p.name.startswith("."))
    if not paths:
        raise FeatureError(f"{folder}: holds no .npy feature")
    return [check_name(path) for path in paths]


def check_name(path: Path) -> Path:
    """Return ``path`` if results can be named after it, before any work is done.

    Raises:
        FeatureError: its name is too long, or no UTF-8, so that records could not hold it.
    """
    name = os.fsencode(path.name)
    try:
        name.decode()
    except UnicodeDecodeError as error:
        raise FeatureError(f"{path.parent}: the file name {name!r} is not UTF-8") from error
    if len(name) > MAX_NAME:
        raise FeatureError(f"{path}: the file name has {len(name)} bytes, {MAX_NAME} at most")
    return path


def points(shape: Sequence[int]) -> int:
    """Feature points of a shape: N*C*H*W, the denominator of BPFP."""
    return math.prod(shape)


class Moments:
    """Pooled variance of the values of many features, one after the other."""

    def __init__(self):
        self.count, self.mean, self.squares = 0, 0.0, 0.0

    def add(self, x: np.ndarray) -> None:
        mean, count = float(x.mean(dtype=np.float64)), x.size
        squares = float(np.sum((x.astype(np.float64) - mean) ** 2))
        delta, total = mean - self.mean, self.count + count
        self.squares += squares + delta**2 * self.count * count / total
        self.mean += delta * count / total
        self.count = total

    @property
    def variance(self) -> float:
        return self.squares / self.count
