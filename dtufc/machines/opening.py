"""A machine of this package by its preset's name, without its script."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dtufc.errors import UserError
from dtufc.feature import load_facts
from dtufc.machines.machine import Machine

CODE = {
    "dinov2": ("seg:DinoOptions", "halves:DinoMachine"),
    "llama3": ("llama3:LlamaOptions", "halves:LlamaMachine"),
    "resnet50": ("cls:ResNetOptions", "halves:ResNetMachine"),
    "sd3": ("sd3:DiffusionOptions", "halves:DiffusionMachine"),
}
"""Options and machine of each room below ``dtufc.machines``."""


def room_of(preset: str | Path) -> str:
    """The room of a preset's machine, a key of CODE.

    Raises:
        FileNotFoundError, UserError: no such preset, or its machine is another script.
    """
    script = load_facts(preset).script
    parts = Path(script or "").parts
    if len(parts) != 3 or parts[0] != "machines" or parts[1] not in CODE:
        raise UserError(f"machine: {preset} is none of the machines {[*CODE]}, but {script}")
    return parts[1]


def open_machine(preset: str | Path, options: Sequence[str] = ()) -> Machine:
    """The machine of a preset; its halves are loaded when they are first used.

    Args:
        options: what differs from the preset, ``key=value`` each: the flags of the machine's script.

    Raises:
        FileNotFoundError, UserError: as :func:`room_of`, or an option is no ``key=value``.
        SystemExit: it is none of the machine's, as on its script's command line.
    """
    from dtufc.machines.command import parse_options

    room = room_of(preset)
    for option in options:
        if "=" not in option or option.startswith("-"):
            raise UserError(f"options: expected key=value, got {option!r}")

    def find(path: str) -> Any:
        module, _, name = path.partition(":")
        return getattr(importlib.import_module(f"dtufc.machines.{room}.{module}"), name)

    options_class, machine_class = CODE[room]
    argv = [f"--{option}" for option in options]
    return find(machine_class)(parse_options(find(options_class), str(preset), argv, None))
