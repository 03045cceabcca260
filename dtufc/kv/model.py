"""What a KV codec has learned of one model: how rows of keys and values become components, and back.

    keys ─ turned back before RoPE ─┐
    values ─────────────────────────┴─ minus mean ─ weight ─ basis ─> components ─ klt's tables ─> bytes

A group is keys and values of all heads of some neighbouring layers, whose rows are coded together. The
weight of a tensor is W with W W' = F, its Fisher information: the next tokens' distributions move by

    KL = 1/2 sum over tokens of e' F e        (nats)

for a small error e of a token's keys or values. So an error of any component costs the same KL after the
weights, in keys and values of all layers, and one step serves them all (reverse water-filling). The
basis is the Karhunen-Loeve basis of the weighted rows. Some tokens matter more than others: each
token's step follows its importance (:mod:`dtufc.klt.importance`). Quantisation, tables and the entropy
coder are those of :mod:`dtufc.klt`, format 2.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load, save

from dtufc import config, files
from dtufc.bitstream import BitstreamError
from dtufc.codec import read_number
from dtufc.errors import UserError
from dtufc.feature import FeatureFacts
from dtufc.klt.codec import MAX_GRADE, KltCodec
from dtufc.klt.importance import CLASS_GRADES, MOST, Importance, count_features, to_classes
from dtufc.klt.model import HIGHEST, LOWEST, PER_OCTAVE, KltModel, rung
from dtufc.kv.caches import LayerShape
from dtufc.kv.rope import Rope
from dtufc.paths import CONFIG_JSON
from dtufc.rans import PRECISION, RansError
from dtufc.views import TOKEN_AXES

FORMAT = 1
WEIGHTS = "model.safetensors"
BLOCK_ROWS = 8
"""Rows of a matrix product. All are of this size, so that a row's floats do not depend on the rows
beside it, and a cache that is appended to has the symbols of one that is coded at once."""
STRINGS = 3
"""Of a class: lanes, what stands beside them, and rows that no symbols can tell."""
LARGEST = 1e30
"""Magnitude of what a codec folder may hold."""

Which = Literal["key", "value"]


@dataclass(frozen=True)
class Part:
    """Keys or values of one layer."""

    layer: int
    which: Which


@dataclass(frozen=True)
class Rows:
    """Some tokens of a group."""

    x: np.ndarray
    """(R, D) float32, keys turned back."""
    behind: np.ndarray
    """(R,) int64: tokens behind each, or FAR."""
    position: np.ndarray
    """(R,) int64."""


@dataclass(frozen=True)
class Group:
    """Keys and values that are coded together, D channels in all."""

    parts: tuple[Part, ...]
    mean: np.ndarray
    """(D,) float32."""
    unweight: tuple[np.ndarray, ...]
    """Per part, (C, C) float32: inverse of its weight W, which is symmetric."""
    basis: np.ndarray
    """(D, D) float32 of float16 values, a column a component."""
    importance: Importance
    """Of tokens."""
    klt: KltModel
    """Of the components: it has no basis of its own."""

    @property
    def channels(self) -> int:
        return len(self.mean)

    @cached_property
    def _forward(self) -> np.ndarray:
        """(D, D): a centred row times this are its components."""
        weights = [np.linalg.inv(each.astype(np.float64)) for each in self.unweight]
        return forward_matrix(weights, self.basis)

    @cached_property
    def _inverse(self) -> np.ndarray:
        """(D, D): components times this are a centred row."""
        columns = np.split(self.basis.T, np.cumsum([len(each) for each in self.unweight])[:-1], 1)
        parts = [column @ each for column, each in zip(columns, self.unweight, strict=True)]
        return np.ascontiguousarray(np.concatenate(parts, 1), np.float32)

    def forward(self, rows: np.ndarray) -> np.ndarray:
        """(R, D) float32 -> components (R, D) float32."""
        return multiply(rows - self.mean, self._forward)

    def inverse(self, y: np.ndarray) -> np.ndarray:
        """The way back of :meth:`forward`."""
        return multiply(y, self._inverse) + self.mean

    def encode(self, rows: Rows, quality: int, focus: float) -> tuple[bytes, ...]:
        """Rows -> the string of their classes, and per class the STRINGS of klt.

        Args:
            quality: in 128ths. focus: how far steps follow importances, 0 .. 1.
        """
        y = self.forward(rows.x)
        classes = self._classes(y, rows, focus)
        parts = [self.importance.write(classes)]
        for own, grade in self._by_class(classes, quality):
            codec = KltCodec(self.klt, grade / PER_OCTAVE)
            found = codec.encode_parts(y[own][None, None])[1:]
            parts += [*found, *[b""] * (STRINGS - len(found))]
        return tuple(parts)

    def decode(self, parts: tuple[bytes, ...], count: int, quality: int) -> np.ndarray:
        """The way back of :meth:`encode`: (R, D) float32, R = ``count``.

        Raises:
            BitstreamError: the parts are not sound.
        """
        try:
            classes = self.importance.read(parts[0], count)
        except RansError as error:
            raise BitstreamError(f"corrupted: {error}") from error
        batches = list(self._by_class(classes, quality))
        if len(parts) != 1 + STRINGS * len(batches):
            raise BitstreamError(f"inconsistent: {len(parts)} parts of {len(batches)} classes")
        codec, out = KltCodec(self.klt, 0), None
        for number, (own, grade) in enumerate(batches):
            mine = parts[1 + STRINGS * number : 1 + STRINGS * (number + 1)]
            mine = mine if mine[-1] else mine[:-1]
            if abs(grade) > MAX_GRADE:
                raise BitstreamError(f"inconsistent: quality {grade / PER_OCTAVE}")
            shape = (1, 1, len(own), self.channels)
            y = codec.decode_parts((grade.to_bytes(2, "little", signed=True), *mine), shape, 2)
            out = np.empty((count, self.channels), np.float32) if out is None else out
            out[own] = y[0, 0]
        return self.inverse(out)

    def reconstruct(self, rows: Rows, quality: int, focus: float) -> np.ndarray:
        """What a receiver gets of rows, without bytes."""
        y = self.forward(rows.x)
        out = np.empty_like(y)
        for own, grade in self._by_class(self._classes(y, rows, focus), quality):
            found, raw = self.klt.search(y[own][:, :, None], grade)
            tables = self.klt.rungs[rung(grade)]
            done = self.klt.finish(found.modes, tables.values_of(found.symbols, found.modes), grade)
            done[raw] = y[own][raw, :, None]
            out[own] = done[:, :, 0]
        return self.inverse(out)

    def _classes(self, y: np.ndarray, rows: Rows, focus: float) -> np.ndarray:
        return to_classes(focus * self.importance.log2(y, rows.behind, rows.position))

    def _by_class(self, classes: np.ndarray, quality: int) -> Iterator[tuple[np.ndarray, int]]:
        """Per class, its rows, and their quality in 128ths."""
        for each in np.unique(classes).tolist():
            yield np.flatnonzero(classes == each), quality + CLASS_GRADES * each


def forward_matrix(weights: Sequence[np.ndarray], basis: np.ndarray) -> np.ndarray:
    """Weights of the parts, then the basis, as one matrix (D, D) float32."""
    rows = np.split(basis, np.cumsum([len(each) for each in weights])[:-1])
    return np.concatenate([w @ row for w, row in zip(weights, rows, strict=True)]).astype(
        np.float32
    )


def multiply(x: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """(R, D) @ (D, E) float32 by products of BLOCK_ROWS rows."""
    count, right = len(x), torch.from_numpy(matrix)
    blocks = torch.zeros((-(-count // BLOCK_ROWS), BLOCK_ROWS, x.shape[1]))
    blocks.view(-1, x.shape[1])[:count] = torch.from_numpy(x)
    out = torch.empty((*blocks.shape[:2], matrix.shape[1]))
    for block, found in zip(blocks, out, strict=True):
        torch.mm(block, right, out=found)
    return out.view(-1, matrix.shape[1])[:count].numpy()


@dataclass(frozen=True)
class Defaults:
    """How a cache is coded where nothing is asked for."""

    quality: float = 2.0
    """log2 of the weighted components' standard deviation over the step, LOWEST .. HIGHEST of klt."""
    sinks: int = 1
    """First tokens that are sent as they are, 16 bits per value. Those that the codec knows are free."""
    recent: int = 256
    """Last tokens, whose steps are the finer the fewer tokens are behind them, as the fit measured."""
    focus: float = 1.0
    """How far a token's step follows its importance: 1 as the fit measured, 0 all tokens alike."""

    def __post_init__(self):
        if not LOWEST <= self.quality <= HIGHEST:
            raise UserError(f"quality: expected {LOWEST} .. {HIGHEST}, got {self.quality}")
        for name in ("sinks", "recent"):
            if not 0 <= getattr(self, name) < 1 << 20:
                raise UserError(f"{name}: expected at least 0, got {getattr(self, name)}")
        if not 0 <= self.focus <= 1:
            raise UserError(f"focus: expected 0 .. 1, got {self.focus}")


@dataclass(frozen=True)
class KvModel:
    """All that sender and receiver share for the caches of one model."""

    layers: tuple[LayerShape, ...]
    ropes: tuple[Rope, ...]
    """Per layer, by which keys are turned back before they are coded."""
    groups: tuple[Group, ...]
    known: np.ndarray
    """(P, all channels) float32: keys as cached, and values, of the first P tokens, which are the same
    in every cache; of one layer after the other, keys first."""
    defaults: Defaults

    @cached_property
    def windows(self) -> tuple[int | None, ...]:
        """The window of each set of layers."""
        return tuple(dict.fromkeys(layer.window for layer in self.layers))

    def set_of(self, group: Group) -> int:
        """The set whose tokens a group has."""
        return self.windows.index(self.layers[group.parts[0].layer].window)

    @cached_property
    def sets(self) -> tuple[int, ...]:
        """The set of each group."""
        return tuple(map(self.set_of, self.groups))

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """All keys and values, in the order of ``known``."""
        return tuple(Part(n, w) for n in range(len(self.layers)) for w in ("key", "value"))

    def width(self, part: Part) -> int:
        return self.layers[part.layer].width(part.which)

    @property
    def channels(self) -> int:
        """Values per token, of all layers."""
        return sum(map(self.width, self.parts))

    def arrays(self) -> dict[str, np.ndarray]:
        """The state as it is stored, but for what klt's folders hold."""
        out = {"known": self.known}
        for number, group in enumerate(self.groups):
            out[f"{number}.mean"] = group.mean
            out[f"{number}.basis"] = group.basis.astype(np.float16)
            out[f"{number}.sigma"] = group.importance.sigma
            out[f"{number}.theta"] = group.importance.theta
            out[f"{number}.classes"] = group.importance.freq
            for place, each in enumerate(group.unweight):
                out[f"{number}.unweight.{place}"] = each
        for number, rope in enumerate(self.ropes):
            out[f"rope.{number}"] = rope.frequency
        return out

    def values(self) -> dict[str, Any]:
        """What ``config.json`` says of it."""
        return {
            "layers": [asdict(layer) for layer in self.layers],
            "rope_scale": [rope.scale for rope in self.ropes],
            "groups": [[[part.layer, part.which] for part in g.parts] for g in self.groups],
            "importance": [
                {"bias": g.importance.bias, "reach": g.importance.reach} for g in self.groups
            ],
        }

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 over all that decides bytes and decoded values (32 bytes)."""
        hasher = hashlib.sha256(json.dumps(self.values(), sort_keys=True).encode())
        for name, value in sorted(self.arrays().items()):
            hasher.update(f"{name} {value.dtype} {value.shape}".encode())
            hasher.update(np.ascontiguousarray(value).tobytes())
        for group in self.groups:
            hasher.update(group.klt.digest)
        return hasher.digest()

    def save(self, folder: Path, made_by: dict[str, Any]) -> None:
        """Write the codec folder, ``config.json`` last.

        Args:
            made_by: provenance, anything JSON holds.
        """
        for number, group in enumerate(self.groups):
            group.klt.save(group_folder(folder, number), self.defaults.quality, {})
        arrays = {name: np.ascontiguousarray(value) for name, value in self.arrays().items()}
        files.write_bytes(folder / WEIGHTS, save(arrays))
        values = {"format": FORMAT, "codec": "kv", "defaults": asdict(self.defaults)}
        files.write_json(folder / CONFIG_JSON, values | self.values() | {"made_by": made_by})

    @classmethod
    def load(cls, folder: Path) -> Self:
        """The model of a codec folder.

        Raises:
            FileNotFoundError: there is none.
            UserError: a file is missing, damaged or of another format; the message names it.
        """
        path = folder / CONFIG_JSON
        if not path.is_file():
            raise FileNotFoundError(f"{path}: a KV codec folder holds a config.json")
        values = files.read_json(path)
        if not isinstance(values, dict) or values.get("codec") != "kv":
            raise UserError(f"{path}: not the folder of a KV codec")
        if values.get("format") != FORMAT:
            raise UserError(f"{path}: format {values.get('format')!r}, expected {FORMAT}")
        weights = folder / WEIGHTS
        try:
            arrays = load(weights.read_bytes())
        except FileNotFoundError as error:
            raise UserError(f"{weights}: missing from the codec folder") from error
        except SafetensorError as error:
            raise UserError(f"{weights}: not a readable safetensors file ({error})") from error
        try:
            return cls._of_values(folder, values, arrays)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise UserError(f"{folder}: not a sound KV codec ({error!r})") from error

    @classmethod
    def _of_values(cls, folder: Path, values: dict[str, Any], arrays) -> Self:
        texts = [json.dumps(each, sort_keys=True) for each in values["layers"]]
        # most layers are alike, and a check takes milliseconds
        built = {
            text: config.build(LayerShape, json.loads(text), "layers")
            for text in dict.fromkeys(texts)
        }
        layers = tuple(built[text] for text in texts)
        if not layers:
            raise UserError(f"{folder / CONFIG_JSON}: layers: expected one at least")
        scales = [read_number({"rope_scale": s}, "rope_scale") for s in values["rope_scale"]]
        ropes = []
        for number, (layer, scale) in enumerate(zip(layers, scales, strict=True)):
            frequency = arrays[f"rope.{number}"]
            _check(f"rope.{number}", frequency, "float32", (frequency.size,))
            if 2 * frequency.size > layer.key or not 1e-3 < scale < 1e3:
                raise UserError(
                    f"{folder}: rope.{number} does not fit keys of {layer.key} channels"
                )
            ropes.append(Rope(frequency, scale))
        groups = [
            _read_group(folder, number, [Part(*part) for part in parts], layers, values, arrays)
            for number, parts in enumerate(values["groups"])
        ]
        defaults = config.build(Defaults, values["defaults"], "defaults")
        found = cls(layers, tuple(ropes), tuple(groups), arrays["known"], defaults)
        _check("known", found.known, "float32", (len(found.known), found.channels))
        coded = [part for group in groups for part in group.parts]
        if len(coded) != len(found.parts) or set(coded) != set(found.parts):
            raise UserError(f"{folder}: groups: expected keys and values of every layer once")
        return found


def group_folder(folder: Path, number: int) -> Path:
    """Where klt's part of a group lies."""
    return folder / "groups" / f"{number:03d}"


def group_facts(number: int, channels: int) -> FeatureFacts:
    """What klt is told of a group's rows."""
    return FeatureFacts("kv", f"group{number}", [1, 1, None, channels], list(TOKEN_AXES))


def _read_group(
    folder: Path, number: int, parts: Sequence[Part], layers: Sequence[LayerShape], values, arrays
) -> Group:
    """Group ``number`` of a codec folder.

    Raises:
        UserError: it is not what a fit gives.
    """
    if not parts or len({layers[part.layer].window for part in parts}) != 1:
        raise UserError(f"{folder}: groups: {number}: expected layers of one window")
    sizes = [layers[part.layer].width(part.which) for part in parts]
    channels = sum(sizes)
    mean, basis = arrays[f"{number}.mean"], arrays[f"{number}.basis"]
    _check(f"{number}.mean", mean, "float32", (channels,))
    _check(f"{number}.basis", basis, "float16", (channels, channels))
    unweight = [arrays[f"{number}.unweight.{place}"] for place in range(len(parts))]
    for place, (each, size) in enumerate(zip(unweight, sizes, strict=True)):
        _check(f"{number}.unweight.{place}", each, "float32", (size, size))
        if np.linalg.matrix_rank(each.astype(np.float64)) < size:
            raise UserError(f"{folder}: {number}.unweight.{place} has no inverse")
    importance = _read_importance(number, channels, values["importance"][number], arrays)
    klt, _ = KltModel.load(group_folder(folder, number))
    layout = klt.transform.layout
    plain = not layout.rotate and layout.clusters == 1 and layout.block == 1 and klt.format == 2
    if not plain or klt.facts.shape != [1, 1, None, channels] or klt.post is not None:
        raise UserError(f"{group_folder(folder, number)}: not the tables of {channels} components")
    basis = basis.astype(np.float32)
    return Group(tuple(parts), mean, tuple(unweight), basis, importance, klt)


def _read_importance(number: int, channels: int, values: dict[str, Any], arrays) -> Importance:
    """Of group ``number``.

    Raises:
        UserError: it is not what a fit gives.
    """
    sigma, theta = arrays[f"{number}.sigma"], arrays[f"{number}.theta"]
    freq = arrays[f"{number}.classes"]
    _check(f"{number}.sigma", sigma, "float32", (channels,))
    _check(f"{number}.theta", theta, "float32", (count_features(channels),))
    _check(f"{number}.classes", freq, "int32", (2 * MOST + 2,))
    bias, reach = read_number(values, "bias"), values["reach"]
    if sigma.min() <= 0 or abs(bias) > LARGEST or type(reach) is not int or reach < 1:
        raise UserError(
            f"importance: {number}: expected sigma above 0, a finite bias, reach of 1 or more"
        )
    if freq.min() < 1 or freq.sum(dtype=np.int64) != 1 << PRECISION:
        raise UserError(
            f"{number}.classes is not sound: expected frequencies that sum to 2^{PRECISION}"
        )
    return Importance(sigma, theta, bias, reach, freq)


def _check(name: str, array: np.ndarray, dtype: str, shape: tuple[int, ...]) -> None:
    """Refuse an array that no fit gives.

    Raises:
        UserError: the message names it.
    """
    sound = array.dtype == dtype and array.shape == shape and np.isfinite(array).all()
    if not sound or float(np.abs(array).max(initial=0)) > LARGEST:
        raise UserError(f"{name} is not sound: expected finite {dtype} {shape}")
