"""States: what a machine of several named tensors sends, such as a hidden state with keys and values.

The facts of all tensors stand in the machine's YAML. What they share is written once, each tensor adds
its own or says otherwise::

    feature:
      model: smollm2
      task: kv
      script: machines/decoder/decoder.py
      axes: [sample, head, token, channel]
      tensors:
        hidden: {shape: [1, 1, null, 576], axes: [sample, layer, token, channel]}
        k0: {shape: [1, 3, null, 64]}
        v0: {shape: [1, 3, null, 64]}

A state is a dict of arrays in that order. On disk it is one feature file per tensor, below a folder of
the tensor's name: ``<folder>/k0/<sample>.npy``. Each tensor is a kind of feature of its own,
``smollm2_kv@k0``, so that all that codes features codes tensors too. The functions here take the facts
of either a state or a feature; a machine of one tensor has neither names nor folders more.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dtufc.errors import UserError
from dtufc.feature import (
    FeatureError,
    FeatureFacts,
    build_facts,
    check_folder_name,
    find_machine_config,
    list_features,
    load_facts,
    read_feature_block,
    split_tensor,
    write_feature,
)
from dtufc.paths import TENSOR_MARK, TENSORS_JSON

State = Mapping[str, np.ndarray]
"""The tensors of one sample by name, each (N, C, H, W)."""
COMMON = ("model", "task", "script")
"""Keys that a tensor cannot say otherwise."""


@dataclass(frozen=True)
class StateFacts:
    """What is known of a machine's state before any file is read."""

    model: str
    task: str
    tensors: dict[str, FeatureFacts]
    """Facts of each tensor by name, in the order in which they are coded; the task of each is
    ``<task>@<name>``."""
    script: str | None = None
    """As :attr:`dtufc.feature.FeatureFacts.script`."""

    @property
    def kind(self) -> str:
        """``<model>_<task>``, as of a machine of one tensor."""
        return f"{self.model}_{self.task}"

    @property
    def dtype(self) -> str:
        """The dtype of the widest tensor."""
        return max(
            (facts.dtype for facts in self.tensors.values()), key=lambda d: np.dtype(d).itemsize
        )


Facts = FeatureFacts | StateFacts
"""What a machine may send."""


def load_machine_facts(path: str | Path) -> Facts:
    """The facts of all that a machine sends.

    Args:
        path: a YAML file, or the name of a preset.

    Raises:
        FileNotFoundError, UserError: as :func:`dtufc.feature.load_facts`, or a tensor's block is wrong.
    """
    if split_tensor(path)[1]:
        return load_facts(path)
    path = find_machine_config(path)
    values = read_feature_block(path)
    if not isinstance(values, dict) or "tensors" not in values:
        return build_facts(values, path)
    shared = {key: value for key, value in values.items() if key != "tensors"}
    blocks = values["tensors"]
    if not isinstance(blocks, dict) or not blocks:
        raise UserError(f"{path}: feature: tensors: expected a mapping of names to facts")
    tensors = {
        str(name): _tensor_facts(str(name), block, shared, path) for name, block in blocks.items()
    }
    first = next(iter(tensors.values()))
    return StateFacts(first.model, str(shared["task"]), tensors, shared.get("script"))


def _tensor_facts(name: str, block: Any, shared: dict[str, Any], path: Path) -> FeatureFacts:
    where = f"feature: tensors: {name}"
    check_folder_name(name, f"{path}: {where}")
    if not isinstance(block, dict):
        raise UserError(f"{path}: {where}: expected a mapping of keys to values")
    if wrong := block.keys() & set(COMMON):
        raise UserError(f"{path}: {where}: {sorted(wrong)} stand once, beside tensors")
    facts = build_facts(shared | block, path, where)
    values = vars(facts) | {"task": f"{facts.task}{TENSOR_MARK}{name}", "script": None}
    return FeatureFacts(**{key: values[key] for key in FeatureFacts.__dataclass_fields__})


def load_tensor_facts(name: str | Path) -> FeatureFacts:
    """The facts of one tensor: ``smollm2_kv@k0``.

    Raises:
        FileNotFoundError, UserError: no such machine, or no such tensor of it.
    """
    machine, tensor = split_tensor(name)
    facts = load_machine_facts(machine)
    known = list(facts.tensors) if isinstance(facts, StateFacts) else []
    if tensor not in known:
        raise UserError(f"{name}: {machine} has no tensor {tensor!r}, its tensors are {known}")
    return facts.tensors[tensor]


def sample_files(facts: Facts, folder: Path, name: str) -> list[Path]:
    """The files of a sample in a folder of features."""
    if isinstance(facts, StateFacts):
        return [folder / tensor / f"{name}.npy" for tensor in facts.tensors]
    return [folder / f"{name}.npy"]


def read_sample(facts: Facts, folder: Path, name: str) -> np.ndarray | dict[str, np.ndarray]:
    """A sample's feature, or its state.

    Raises:
        FeatureError, FileNotFoundError: a file is missing, damaged or of another kind; the message names
            it.
    """
    if isinstance(facts, StateFacts):
        return {
            tensor: each.read(folder / tensor / f"{name}.npy")
            for tensor, each in facts.tensors.items()
        }
    return facts.read(folder / f"{name}.npy")


def write_sample(facts: Facts, folder: Path, name: str, value: Any) -> None:
    """Write a sample's feature or state; each file whole or not at all."""
    if isinstance(facts, StateFacts):
        for tensor in facts.tensors:
            write_feature(folder / tensor / f"{name}.npy", value[tensor])
    else:
        write_feature(folder / f"{name}.npy", value)


def is_whole(facts: Facts, folder: Path, name: str) -> bool:
    """Whether a sample is there, sound and of its kind."""
    try:
        read_sample(facts, folder, name)
    except (FeatureError, FileNotFoundError):
        return False
    return True


def mismatch(facts: Facts, value: Any) -> str | None:
    """Why ``value`` is not what the facts say, or ``None`` if it is."""
    if not isinstance(facts, StateFacts):
        return facts.mismatch(value)
    if not isinstance(value, Mapping) or list(value) != list(facts.tensors):
        got = list(value) if isinstance(value, Mapping) else type(value).__name__
        return f"{facts.kind} has the tensors {list(facts.tensors)}, got {got}"
    return next(
        filter(None, (each.mismatch(value[name]) for name, each in facts.tensors.items())), None
    )


def list_states(facts: StateFacts, folder: Path) -> list[str]:
    """The names of the samples of a folder, sorted.

    Raises:
        FileNotFoundError, FeatureError: a tensor's folder is missing or empty, or tensors are of other
            samples.
    """
    found = {name: [path.stem for path in list_features(folder / name)] for name in facts.tensors}
    first, *others = found
    for name in others:
        if odd := sorted({*found[first]} ^ {*found[name]}):
            raise FeatureError(f"{folder}: {odd[0]}.npy is not there of both {first} and {name}")
    return found[first]


def is_state_codec(folder: str | Path) -> bool:
    """Whether a codec folder holds a codec of states, one codec per tensor (:mod:`dtufc.many`)."""
    return (Path(folder) / TENSORS_JSON).is_file()


def state_points(state: State) -> int:
    """Points of all tensors of a state."""
    return sum(math.prod(x.shape) for x in state.values())
