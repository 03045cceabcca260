"""What every machine can be told: the options of the command line and of the model."""

import copy
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from dtufc.errors import UserError
from dtufc.machines.machine import Split
from dtufc.machines.sources import open_source
from dtufc.paths import DataRoot, FeatureRoot, default_data_root
from dtufc.states import Facts, load_machine_facts

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class MachineOptions:
    """What a machine is asked to do."""

    machine: str
    """Preset name or YAML file."""
    mode: Literal["extract", "evaluate", "both"] = "both"
    """extract: inputs to feature files. evaluate: features to task accuracy."""
    features: list[Path] | None = None
    """Folders of features to evaluate; by default the extracted test features."""
    save_predictions: bool = False
    """Write predictions that are pictures or masks to predictions/ beside accuracy.json, as PNG."""
    data_root: Path = field(default_factory=default_data_root)
    """Data root."""

    @property
    def facts(self) -> Facts:
        """What the machine sends: read from the YAML once, and the caller's own to change."""
        return copy.deepcopy(self._facts)

    @cached_property
    def _facts(self) -> Facts:
        return load_machine_facts(self.machine)

    @property
    def root(self) -> FeatureRoot:
        return DataRoot(self.data_root).feature(self.facts.model, self.facts.task)


@dataclass(frozen=True, kw_only=True)
class ModelOptions(MachineOptions):
    """What all machines know of their model and samples."""

    checkpoint: str | None = None
    """The weights, a file or folder: looked for in pretrained_head, then in the repository."""
    hub: str | None = None
    """Id of a model on the Hugging Face hub that is loaded instead, downloaded if need be."""
    device: str = "auto"
    """torch device of the model; auto is CUDA where there is one, else the CPU."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """dtype that the model computes in."""
    source: str
    """Where the samples come from."""
    counts: dict[str, int] = field(default_factory=dict)
    """Samples of the splits train, validation, test. Lists are taken whole by default, what is
    generated has no end and needs them."""
    seed: int = 0
    """Seed of samples that are generated."""

    def __post_init__(self):
        known = get_args(Split)
        if self.counts.keys() - set(known) or min(self.counts.values(), default=1) < 1:
            raise UserError(f"counts: expected at least 1 for some of {known}, got {self.counts}")

    def open_source(self) -> Any:
        """The source of the samples, of the class that provides what the machine asks for."""
        return open_source(self.source, self.root.source, self.counts, self.seed)

    @property
    def torch_device(self) -> "torch.device":
        import torch  # with the models, which are built after the flags are read

        from dtufc.devices import check_device

        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return check_device(self.device)

    @property
    def computed_dtype(self) -> str:
        """Name of the dtype that is computed in, on this device."""
        return self.dtype

    @property
    def torch_dtype(self) -> "torch.dtype":
        """The dtype that is computed in, on this device."""
        import torch

        return getattr(torch, self.computed_dtype)

    @property
    def origin_dtype(self) -> str | None:
        """Name of the dtype that decides the features: the one that is computed in.

        None where features are only evaluated, on a device that cannot tell: it computes in another
        dtype than was asked for, and the features may be those of a device that did not.
        """
        computed = self.computed_dtype
        return None if self.mode == "evaluate" and computed != self.dtype else computed


@dataclass(frozen=True, kw_only=True)
class StateOptions(ModelOptions):
    """What machines of several tensors know beside."""

    sensitivity_samples: int = 4
    """Training samples on which the sensitivity of each tensor is measured; 0 measures none."""

    def __post_init__(self):
        super().__post_init__()
        if self.sensitivity_samples < 0:
            raise UserError(
                f"sensitivity_samples: expected 0 or more, got {self.sensitivity_samples}"
            )


def find_layer(layer: int, count: int) -> int:
    """The last layer of a front half, 0 .. count - 1; a negative one counts from the end.

    Raises:
        UserError: the model has no such layer.
    """
    if not -count <= layer < count:
        raise UserError(f"layer: {layer} is none of the model's {count} layers")
    return layer % count
