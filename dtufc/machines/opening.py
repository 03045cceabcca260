"""A machine of this package by its preset's name, without its script."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dtufc.errors import UserError
from dtufc.machines.machine import Machine
from dtufc.states import load_machine_facts

CODE = {
    "controlnet/controlnet.py": ("controlnet:ControlOptions", "halves:ControlMachine"),
    "dinov2/cls.py": ("cls:ClsOptions", "classification:ClsMachine"),
    "dinov2/dpt.py": ("dpt:DptOptions", "depth:DptMachine"),
    "dinov2/seg.py": ("seg:SegOptions", "segmentation:SegMachine"),
    "dinov3/dinov3.py": ("dinov3:BlocksOptions", "halves:BlocksMachine"),
    "llama3/llama3.py": ("llama3:LlamaOptions", "halves:LlamaMachine"),
    "mamba/mamba.py": ("mamba:ContinuedOptions", "halves:MambaMachine"),
    "qwen3/qwen3.py": ("qwen3:ContinuedOptions", "halves:ContinuedMachine"),
    "resnet50/cls.py": ("cls:ResNetOptions", "halves:ResNetMachine"),
    "sd3/sd3.py": ("sd3:DiffusionOptions", "halves:DiffusionMachine"),
    "whisper/whisper.py": ("whisper:WhisperOptions", "halves:WhisperMachine"),
}
"""Options and machine of each script below ``machines``, in the package's room of the same name."""


def script_of(preset: str | Path) -> str:
    """The script of a preset's machine, a key of CODE.

    Raises:
        FileNotFoundError, UserError: no such preset, or its machine is another script.
    """
    script = load_machine_facts(preset).script
    name = (script or "").removeprefix("machines/")
    if name not in CODE:
        raise UserError(f"machine: {preset} is none of the machines {[*CODE]}, but {script}")
    return name


def open_machine(preset: str | Path, options: Sequence[str] = ()) -> Machine:
    """The machine of a preset; its halves are loaded when they are first used.

    Args:
        options: what differs from the preset, ``key=value`` each: the flags of the machine's script.

    Raises:
        FileNotFoundError, UserError: as :func:`script_of`, or an option is no ``key=value``.
        SystemExit: it is none of the machine's, as on its script's command line.
    """
    from dtufc.machines.command import parse_options

    script = script_of(preset)
    room = script.partition("/")[0]
    for option in options:
        if "=" not in option or option.startswith("-"):
            raise UserError(f"options: expected key=value, got {option!r}")

    def find(path: str) -> Any:
        module, _, name = path.partition(":")
        return getattr(importlib.import_module(f"dtufc.machines.{room}.{module}"), name)

    options_class, machine_class = CODE[script]
    argv = [f"--{option}" for option in options]
    return find(machine_class)(parse_options(find(options_class), str(preset), argv, None))
