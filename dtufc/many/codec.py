"""The codec of a state: a codec per tensor, each at the state's quality plus a shift of its own.

    codec = load_state_codec(folder).at_quality(1)
    data = codec.encode(state)          # {"hidden": array, "k0": array, ...} -> bytes
    state = codec.decode(data)

The folder holds ``tensors.json`` and one codec folder per tensor; each loads alone with
:func:`dtufc.codec.load_codec` too. The bytes are a stream of one frame, see :mod:`dtufc.many.container`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from dtufc import files
from dtufc.bitstream import MAX_POINTS
from dtufc.codec import Codec, codec_digest, load_codec
from dtufc.errors import UserError
from dtufc.feature import FeatureError, FeatureFacts, Moments, check_feature
from dtufc.many import container
from dtufc.many.container import Layout
from dtufc.paths import TENSOR_MARK, TENSORS_JSON
from dtufc.rate import Target, search
from dtufc.states import State, StateFacts, state_points

FORMAT = 1


class CodedState(NamedTuple):
    """A coded state."""

    data: bytes
    """The whole file."""
    quality: float
    """The state's quality that was taken."""


@dataclass(frozen=True)
class StateCodec:
    """Codecs of all tensors of a state at one quality. Read-only, may be shared."""

    codecs: dict[str, Codec]
    """By tensor, each at its own quality."""
    shifts: dict[str, float]
    """What each tensor's quality has above the state's."""
    quality: float
    """The state's."""

    @property
    def qualities(self) -> Sequence[float]:
        """What :meth:`at_quality` takes, ascending: the qualities of its tensors' codecs."""
        return next(iter(self.codecs.values())).qualities

    @property
    def facts(self) -> dict[str, FeatureFacts]:
        """The facts of each tensor."""
        return {name: codec.known[0] for name, codec in self.codecs.items()}

    def at_quality(self, quality: float) -> Self:
        """The same codec at another rate, the higher the more bits. A tensor's codec takes the nearest
        quality that it has.

        Raises:
            UserError: no such quality.
        """
        known = self.qualities
        if not known[0] <= quality <= known[-1]:
            raise UserError(f"quality: expected {known[0]:g} .. {known[-1]:g}, got {quality}")
        codecs = {
            name: codec.at_quality(nearest(codec.qualities, quality + self.shifts[name]))
            for name, codec in self.codecs.items()
        }
        return replace(self, codecs=codecs, quality=quality)

    def encode(self, state: State, *, layout: Layout = "tensors") -> bytes:
        """A state -> the bytes of a whole stream file.

        Args:
            layout: how the files of the state lie, which the receiver is told.

        Raises:
            FeatureError: it has not the codec's tensors, or one is not of its kind.
        """
        if state.keys() != self.codecs.keys():
            raise FeatureError(f"state: expected the tensors {[*self.codecs]}, got {[*state]}")
        for name, facts in self.facts.items():
            if why := facts.mismatch(check_feature(state[name], name)):
                raise FeatureError(f"{name}: {why}")
        return container.write(self.codecs, state, layout)

    def decode(self, data: bytes, *, max_points: int = MAX_POINTS) -> dict[str, np.ndarray]:
        """The bytes of a whole file -> the state.

        Args:
            max_points: largest N*C*H*W of a tensor that is accepted.

        Raises:
            BitstreamError: they are not sound, or belong to another codec.
        """
        return container.decode(self.codecs, data, max_points)

    def sizes(self, data: bytes) -> dict[str, int]:
        """Bytes of each tensor in a file: payload and setting. Header, frame and end take the others.

        Raises:
            BitstreamError: as :meth:`decode`, where payloads are not looked into.
        """
        segments = container.read(self.codecs, data)[1]
        return {
            name: len(segment.setting) + len(segment.payload)
            for name, segment in zip(self.codecs, segments, strict=True)
        }

    def encode_within(
        self, state: State, target: Target, *, layout: Layout = "tensors"
    ) -> CodedState:
        """A state at the best quality within the target's bytes, or the lowest within its error.

        Args:
            layout: as of :meth:`encode`.

        Raises:
            UserError: no quality meets the target.
        """
        if target.is_none:
            return CodedState(self.encode(state, layout=layout), self.quality)
        met: list[CodedState] = []

        def measure(trial: "StateCodec", quality: float | None) -> float:
            coded = CodedState(trial.encode(state, layout=layout), trial.quality)
            value = trial.value_of([state], [coded.data], target)
            if value <= target.limit:
                met[:] = [coded]
            return value

        search(self, measure, target)
        return met[0]

    def value_of(self, states: Sequence[State], coded: Sequence[bytes], target: Target) -> float:
        """What a target is about, of coded states together."""
        if target.target_nmse is not None:
            errors = TensorErrors(self.codecs)
            for state, data in zip(states, coded, strict=True):
                errors.add(state, self.decode(data))
            return errors.nmse
        size = sum(map(len, coded))
        if target.max_bytes is not None:
            return size
        return 8 * size / sum(map(state_points, states))


def facts_of(codec: StateCodec) -> StateFacts:
    """The facts of what a codec knows."""
    first = next(iter(codec.facts.values()))
    return StateFacts(first.model, first.task.rpartition(TENSOR_MARK)[0], codec.facts)


class TensorErrors:
    """Errors of the tensors of many states, one after the other."""

    def __init__(self, names: Mapping[str, Any]):
        self.moments = {name: Moments() for name in names}
        self.squares = dict.fromkeys(names, 0.0)

    def add(self, state: State, decoded: State) -> None:
        for name, x in state.items():
            self.moments[name].add(x)
            self.squares[name] += float(np.sum((decoded[name].astype(np.float64) - x) ** 2))

    def nmse_of(self, name: str) -> float:
        """Squared error over the variance of a tensor's values."""
        power = self.moments[name].squares
        if power > 0:
            return self.squares[name] / power
        return 0.0 if self.squares[name] == 0 else math.inf

    @property
    def nmse(self) -> float:
        """The mean of the tensors' NMSE, each weighted by its points: tensors of large values do not
        drown the others."""
        points = {name: moments.count for name, moments in self.moments.items()}
        return sum(self.nmse_of(name) * points[name] for name in points) / sum(points.values())


def nearest(qualities: Sequence[float], wanted: float) -> float:
    """The quality that is nearest to the wanted one."""
    return min(qualities, key=lambda quality: abs(quality - wanted))


def reach(codec: StateCodec, states: Sequence[State], target: Target) -> StateCodec:
    """The codec at the highest quality at which all states together take ``target_bpfp`` at most, or the
    lowest at which they have ``target_nmse`` at most. Every trial codes all states.

    Args:
        states: a sequence, so that they may be read when they are asked for.

    Raises:
        UserError: no quality meets the target.
    """

    def measure(trial: StateCodec, quality: float | None) -> float:
        return trial.value_of(states, Coded(trial, states), target)

    return search(codec, measure, target)


class Coded(Sequence):
    """The bytes of states, each coded when it is asked for, so that they are not held."""

    def __init__(self, codec: StateCodec, states: Sequence[State]):
        self.codec, self.states = codec, states

    def __len__(self) -> int:
        return len(self.states)

    def __getitem__(self, place: int) -> bytes:
        return self.codec.encode(self.states[place])


def load_state_codec(folder: str | Path, device: str = "cpu") -> StateCodec:
    """Read the codec of states that a folder holds.

    Raises:
        FileNotFoundError: no folder, or one of its codecs is missing.
        UserError: the folder is damaged.
    """
    folder = Path(folder)
    values = read_tensors_json(folder)
    codecs = {name: load_codec(folder / name, device=device) for name in values["shifts"]}
    return StateCodec(codecs, values["shifts"], values["quality"]).at_quality(values["quality"])


def state_codec_digest(folder: str | Path) -> str:
    """Hex SHA-256 over what decides the bytes: the codecs of all tensors, and their shifts.

    Raises:
        FileNotFoundError, UserError: as :func:`load_state_codec`.
    """
    folder = Path(folder)
    shifts = read_tensors_json(folder)["shifts"]
    parts = [f"{name} {codec_digest(folder / name)}" for name in shifts]
    return files.digest(files.dump_json(list(shifts.items())), *parts)


def read_tensors_json(folder: Path) -> dict[str, Any]:
    """The content of ``tensors.json``.

    Raises:
        FileNotFoundError, UserError: it is not there, or not what a fit wrote.
    """
    path = folder / TENSORS_JSON
    if not path.is_file():
        raise FileNotFoundError(f"{path}: a folder of a codec of states holds a {TENSORS_JSON}")
    values = files.read_json(path)
    wrong = f"{path}: not the description of a codec of states"
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise UserError(f"{wrong}, format {FORMAT}")
    shifts = values.get("shifts")
    if not isinstance(shifts, dict) or not shifts:
        raise UserError(f"{wrong}: shifts: expected a number per tensor, got {shifts!r}")
    for key, number in [*shifts.items(), ("quality", values.get("quality"))]:
        if type(number) not in (int, float) or not math.isfinite(number):
            raise UserError(f"{wrong}: {key}: expected a number, got {number!r}")
        if Path(key).name != key:
            raise UserError(f"{wrong}: {key!r} is no tensor's name")
    return values
