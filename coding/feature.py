"""Feature files and the facts about each kind of feature: where machines and codecs meet.

A feature file is a ``.npy`` of four axes (N, C, H, W), float16 or float32, finite. The facts about a
kind of feature (shape, dtype, range, packing) are data: the ``feature:`` block of a YAML file in
``configs/machines``. A user's own features need such a file and no code.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from coding import config, files
from coding.errors import UserError
from coding.packing import Packing
from coding.paths import CONFIGS

DTYPES = ("float16", "float32")


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
    packing: Packing
    """Layout of the plane that 2-D codecs see."""
    dtype: Literal["float16", "float32"] = "float32"
    """dtype of the files, and of what decoding gives back."""
    range: list[float] | None = None
    """[lowest, highest] value observed over the published features; for reading, never for clipping."""
    rows: int = 0
    """Tokens a file that the transform's fit samples; 0 takes all (published: 64 for csr)."""
    script: str | None = None
    """The machine's script that makes these features (``--machine THIS_FILE --mode extract``),
    relative to the repository's root; null where the features are simply there."""

    def __post_init__(self):
        if len(self.shape) != 4 or any(size is not None and size < 1 for size in self.shape):
            raise UserError(f"shape: expected four sizes or nulls, got {self.shape}")
        if self.packing.layout == "tiles" and self.shape[1] not in (
            None,
            self.packing.rows * self.packing.cols,
        ):
            raise UserError(f"packing: {self.packing} does not hold {self.shape[1]} channels")

    @property
    def kind(self) -> str:
        """The name of this kind of feature: ``<model>_<task>``."""
        return f"{self.model}_{self.task}"

    def decides(self) -> dict[str, Any]:
        """What of the facts decides the products made of such features, for stamps, as JSON values."""
        idle = ("range", "rows", "script")
        return {k: v for k, v in files.jsonable(asdict(self)).items() if k not in idle}

    def mismatch(self, x: np.ndarray) -> str | None:
        """Why ``x`` is not a feature of this kind, or ``None`` if it is."""
        if x.dtype != self.dtype:
            return f"{self.kind} takes {self.dtype}, got {x.dtype}"
        fits = [want is None or want == got for want, got in zip(self.shape, x.shape, strict=True)]
        if not all(fits):
            return f"{self.kind} takes shape {tuple(self.shape)}, got {x.shape}"
        return None

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
        return cls("feature", path.parent.name, shape, Packing(), x.dtype.name)


def load_facts(path: str | Path) -> FeatureFacts:
    """Read the ``feature:`` block of a YAML; a ``machine:`` block beside it is the machine's.

    Args:
        path: a file, or the name of a preset in ``configs/machines`` (``resnet50_tiny``).

    Raises:
        FileNotFoundError, UserError: no such file, or the block is missing or wrong.
    """
    path = find_machine_config(path)
    values = config.read_yaml(path)
    unknown = set(values) - {"feature", "machine"}
    if unknown or "feature" not in values:
        raise UserError(f"{path}: expected the key 'feature' (and 'machine'), got {sorted(values)}")
    return config.build(FeatureFacts, values["feature"], f"{path}: feature")


def find_machine_config(name: str | Path) -> Path:
    """A path as it is, or a bare preset name looked up in ``configs/machines``."""
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
    if x.dtype.name not in DTYPES:
        raise FeatureError(f"{name}: expected float16 or float32, got {x.dtype}")
    if x.size == 0:
        raise FeatureError(f"{name}: the feature is empty, shape {x.shape}")
    if not np.isfinite(x).all():
        raise FeatureError(f"{name}: the feature holds NaN or infinity")
    return x


def read_feature(path: str | Path) -> np.ndarray:
    """Read and check a feature file -> (N, C, H, W) float16 or float32.

    Raises:
        FeatureError: not a sound ``.npy`` (truncated, pickled, foreign) or not a sound feature.
        FileNotFoundError: no such file.
    """
    try:
        x = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise
    except (ValueError, EOFError, OSError, SyntaxError, TypeError, OverflowError) as error:
        raise FeatureError(f"{path}: not a readable .npy file ({error})") from error
    except MemoryError as error:
        raise FeatureError(f"{path}: the header asks for more memory than there is") from error
    if not isinstance(x, np.ndarray):
        raise FeatureError(f"{path}: an archive of arrays, expected one .npy array")
    return check_feature(x, path)


def write_feature(path: str | Path, x: np.ndarray) -> None:
    """Write a feature file, whole or not at all."""
    check_feature(x, path)
    with files.write_atomic(path) as file:
        np.save(file, x, allow_pickle=False)


def list_features(folder: str | Path) -> list[Path]:
    """The ``.npy`` files of a folder, sorted by name; a single file is itself.

    Raises:
        FileNotFoundError: no such folder.
        FeatureError: the folder holds no ``.npy`` file.
    """
    folder = Path(folder)
    if folder.is_file():
        return [folder]
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such file or folder of features")
    paths = sorted(p for p in folder.iterdir() if p.suffix == ".npy" and not p.name.startswith("."))
    if not paths:
        raise FeatureError(f"{folder}: holds no .npy feature")
    return paths


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
