"""Codecs that ship with the package: small ones for the tiny machines, each with its training record.

    codec = load_codec("klt_dinov2_tiny")

A shipped codec is a codec folder like any other. ``training.json`` beside its files says how it was
made: configuration, stamp, processes with revision and processor, results. ``scripts/ship_codecs.py``
writes it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dtufc import files
from dtufc.errors import UserError
from dtufc.paths import CONFIG_JSON, PACKAGE

PRETRAINED = PACKAGE / "pretrained"
TRAINING_JSON = "training.json"


@dataclass(frozen=True)
class Description:
    """What the folder of a codec says of it, without loading it."""

    codec: str
    """Name in the registry."""
    kinds: list[str]
    """Kinds of features that it knows."""
    labels: dict[str, Any]
    """What tables say of it: trained_on, transform, lambda_value, seed, options; empty if unknown."""


def pretrained() -> dict[str, Path]:
    """The codec folders that ship with the package, by name."""
    return {path.parent.name: path.parent for path in sorted(PRETRAINED.glob(f"*/{CONFIG_JSON}"))}


def codec_folder(codec: str | Path) -> Path:
    """A path as it is, or the folder of a shipped codec where a bare name is given that is no folder."""
    path = Path(codec)
    shipped = PRETRAINED / path.name
    is_name = path.parent == Path() and not path.exists()
    return shipped if is_name and (shipped / CONFIG_JSON).is_file() else path


def describe_codec(folder: Path) -> Description:
    """What a codec folder says of itself.

    Raises:
        FileNotFoundError: there is no codec folder; the message names the shipped ones.
        UserError: its ``config.json`` is damaged.
    """
    path = folder / CONFIG_JSON
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder}: no codec folder, and no shipped codec; these are {[*pretrained()]}"
        )
    values = files.read_json(path)
    try:
        kinds = list(values.get("kinds") or [])
        if facts := values.get("facts"):
            kinds = [f"{facts['model']}_{facts['task']}"]
        codec = values["codec"]
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not the description of a codec ({error})") from error
    record = folder / TRAINING_JSON
    labels = files.read_json(record).get("labels", {}) if record.is_file() else {}
    return Description(codec, kinds, labels)
