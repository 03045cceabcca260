"""A linear head and the labels that it is scored against: pooling, weights, files."""

import csv
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from zipfile import BadZipFile

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from dtufc import files
from dtufc.errors import UserError
from dtufc.views import Views

Pooling = Literal["mean", "cls", "max", "none"]
CLASSES = "classes"
"""The names of the classes, in a head's file: an array of an ``.npz``, a JSON list in the metadata of a
``.safetensors``."""

UNREADABLE = (
    OSError, ValueError, TypeError, KeyError, AttributeError, EOFError, BadZipFile, SafetensorError,
)  # fmt: skip
"""What the libraries raise where a file is no sound one of theirs."""


@dataclass(frozen=True)
class Head:
    """logits = weight @ pooled + bias."""

    weight: np.ndarray
    """(classes, width) float64."""
    bias: np.ndarray
    """(classes,) float64."""
    classes: list[str] | None = None
    """Names of the classes, as labels write them; ``None``: their numbers, 0 to classes - 1."""

    def predict(self, pooled: np.ndarray) -> str:
        """The class of a pooled feature (width,)."""
        best = int(np.argmax(self.weight @ pooled + self.bias))
        return str(best) if self.classes is None else self.classes[best]

    def names(self) -> list[str]:
        """All classes, as labels write them."""
        return self.classes or [str(k) for k in range(len(self.weight))]


def pool(x: np.ndarray, views: Views, pooling: Pooling) -> np.ndarray:
    """A feature (N, C, H, W) -> (width,) float64: over all tokens or positions of all samples.

    The width is that of the channels (of tokens C * W); of ``none`` all values, in the feature's order.
    """
    if pooling == "none":
        return x.astype(np.float64).ravel()
    matrix = views.to_matrix(x).astype(np.float64)  # (tokens or positions, channels)
    if pooling == "cls":
        return matrix[0]
    return matrix.max(0) if pooling == "max" else matrix.mean(0)


def read_head(path: Path) -> Head:
    """A ``.safetensors`` or ``.npz`` file with one matrix (classes, width), as the state dict of a
    ``torch.nn.Linear`` has it, and at most one vector (classes,), whatever their names.

    Raises:
        FileNotFoundError: no such file.
        UserError: it holds something else; the message names the file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: the linear head is not there")
    try:
        arrays, classes = _read_arrays(path)
    except UNREADABLE as error:
        raise UserError(f"{path}: not a readable .safetensors or .npz file ({error})") from error
    matrices = [x for x in arrays.values() if x.ndim == 2]
    vectors = [x for x in arrays.values() if x.ndim == 1]
    if len(matrices) != 1 or len(vectors) > 1 or len(arrays) > len(matrices) + len(vectors):
        shapes = {name: x.shape for name, x in arrays.items()}
        raise UserError(
            f"{path}: expected a matrix (classes, width) and one vector (classes,) at most, got {shapes}"
        )
    weight = matrices[0]
    bias = vectors[0] if vectors else np.zeros(len(weight))
    if bias.shape != weight.shape[:1] or (classes and len(classes) != len(weight)):
        raise UserError(f"{path}: bias and {CLASSES} must be as many as the {len(weight)} rows")
    if not np.isfinite(weight).all() or not np.isfinite(bias).all():
        raise UserError(f"{path}: holds values that are not finite")
    return Head(weight, bias, classes)


def _read_arrays(path: Path) -> tuple[dict[str, np.ndarray], list[str] | None]:
    """The arrays as float64, and the names of the classes where there are some."""
    if path.suffix == ".safetensors":
        with safe_open(path, framework="np") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            text = (file.metadata() or {}).get(CLASSES)
        classes = None if text is None else json.loads(text)
    else:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        classes = arrays.pop(CLASSES, None)
    numbers = {name: x.astype(np.float64) for name, x in arrays.items()}
    return numbers, None if classes is None else [str(name) for name in classes]


def save_head(path: Path, head: Head) -> None:
    """Write a ``.safetensors`` file, float32."""
    # safetensors takes an array's bytes as they lie, and scikit-learn's lie by columns
    arrays = {
        "weight": np.ascontiguousarray(head.weight, np.float32),
        "bias": np.ascontiguousarray(head.bias, np.float32),
    }
    metadata = None if head.classes is None else {CLASSES: json.dumps(head.classes)}
    files.write_bytes(path, save(arrays, metadata))


def read_labels(path: Path) -> dict[str, str]:
    """The class of each feature, by its name without ending: a CSV with the columns name and label.

    Raises:
        FileNotFoundError: no such file.
        UserError: other columns, an empty cell, or a name that comes twice; the message names the line.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: the labels are not there; expected a CSV name,label")
    labels: dict[str, str] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            if not {"name", "label"} <= set(rows.fieldnames or []):
                raise UserError(f"{path}: expected a first line name,label, got {rows.fieldnames}")
            for row in rows:
                name = (row["name"] or "").strip().removesuffix(".npy")
                label = (row["label"] or "").strip()
                if not name or not label or name in labels:
                    raise UserError(
                        f"{path}:{rows.line_num}: expected a name that comes once, and its label"
                    )
                labels[name] = label
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a CSV in UTF-8 ({error})") from error
    if not labels:
        raise UserError(f"{path}: holds no label")
    return labels


def find_labels(labels: dict[str, str], paths: Iterable[Path], where: Path) -> dict[str, str]:
    """The labels of these features, by name, in their order.

    Raises:
        UserError: some have none; the message counts them and names the first.
    """
    names = [path.stem for path in paths]
    if missing := [name for name in names if name not in labels]:
        raise UserError(
            f"{where}: no label for {len(missing)} of {len(names)} features, the first is {missing[0]}"
        )
    return {name: labels[name] for name in names}


def check_classes(head: Head, labels: Sequence[str], where: Path) -> None:
    """Refuse labels that the head can never give.

    Raises:
        UserError: the message names the first.
    """
    known = set(head.names())
    if unknown := [label for label in labels if label not in known]:
        raise UserError(
            f"{where}: the label {unknown[0]!r} is none of the head's {len(known)} classes "
            f"({', '.join(head.names()[:5])}, ...)"
        )
