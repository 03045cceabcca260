"""Published checkpoints: the work of :mod:`dtufc.CompressAI.import_published`."""

import pickle
from pathlib import Path

import torch
from compressai.models.utils import remap_old_keys
from torch import Tensor

from dtufc.codec import ExtraKind
from dtufc.CompressAI.checkpoint import Kind, load_state, write_codec
from dtufc.CompressAI.import_published import TASK_MACHINES, ImportConfig
from dtufc.CompressAI.models import MODELS, PUBLISHED_NAMES, build_model
from dtufc.errors import UserError

_STATE_KEYS = ("network", "state_dict", "model_state_dict")


def read_published(path: Path) -> dict[str, Tensor]:
    """The state dict of a published ``.pth.tar``, with CompressAI's current names.

    Raises:
        FileNotFoundError: no such file.
        UserError: not a checkpoint, or one that holds more than weights can (it is not unpickled).
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise UserError(f"{path}: not a readable checkpoint ({error})") from error
    for key in _STATE_KEYS:
        if isinstance(state, dict) and key in state:
            state = state[key]
    if not isinstance(state, dict) or not all(
        isinstance(key, str) and torch.is_tensor(value) for key, value in state.items()
    ):
        raise UserError(f"{path}: holds no state dict under one of {_STATE_KEYS}")
    # DataParallel's prefix, and the names of CompressAI before 1.2
    state = {key.removeprefix("module."): value for key, value in state.items()}
    for name in [key.removesuffix("quantiles") for key in state if key.endswith(".quantiles")]:
        state = remap_old_keys(name.removesuffix("."), state)
    return state


def import_published(cfg: ImportConfig) -> None:
    """Read the checkpoint, build its tables as the published evaluation does, write the folder.

    Raises:
        UserError: the weights are not of this architecture, or a mapping has no machine.
    """
    codec = PUBLISHED_NAMES[cfg.arch]
    state = read_published(cfg.checkpoint)
    try:
        arch = MODELS[codec].infer_arch(state)
    except (KeyError, IndexError, ValueError) as error:
        raise UserError(f"{cfg.checkpoint}: not a {cfg.arch} checkpoint ({error})") from error
    model = build_model(codec, arch)
    load_state(model, state, cfg.checkpoint)
    model.update(force=True)
    machines = cfg.machine or [_machine_of(path) for path in cfg.mapping]
    if len(machines) != len(cfg.mapping):
        raise UserError(f"machine: {len(machines)} for {len(cfg.mapping)} mappings")
    kinds = [
        Kind.from_files(ExtraKind(machine, path, cfg.assignment))
        for machine, path in zip(machines, cfg.mapping, strict=True)
    ]
    write_codec(cfg.output, model, codec, kinds, {"imported": cfg.checkpoint.name})


def _machine_of(mapping: Path) -> str:
    for task, machine in TASK_MACHINES.items():
        if f"_{task}_" in mapping.name:
            return machine
    raise UserError(f"machine: {mapping.name} names no task of {list(TASK_MACHINES)}; pass it")
