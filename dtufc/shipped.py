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
HYBRID = "hybrid"
"""Training set of a codec of several kinds of features."""
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

    @property
    def trained_on(self) -> str:
        """The task of its only kind of feature, or hybrid; what its labels say goes before."""
        one = self.kinds[0].rpartition("_")[2] if len(self.kinds) == 1 else HYBRID
        return self.labels.get("trained_on", one)


def pretrained() -> dict[str, Path]:
    """The codec folders that ship with the package, by name."""
    return {path.parent.name: path.parent for path in sorted(PRETRAINED.glob(f"*/{CONFIG_JSON}"))}


def codec_folder(codec: str | Path) -> Path:
    """A path as it is, or the folder of a shipped codec where a bare name is given that is no folder."""
    path = Path(codec)
    shipped = PRETRAINED / path.name
    is_name = path.parent == Path() and not path.exists()
    return shipped if is_name and (shipped / CONFIG_JSON).is_file() else path


def read_config(folder: Path) -> Any:
    """The ``config.json`` of a codec folder.

    Raises:
        FileNotFoundError: it is not there; the message names the shipped codecs.
        UserError: it is no JSON.
    """
    path = folder / CONFIG_JSON
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: a codec folder holds a config.json; is the path right? "
            f"Codecs that ship are {', '.join(pretrained())}"
        )
    return files.read_json(path)


def describe_codec(folder: Path) -> Description:
    """What a codec folder says of itself.

    Raises:
        FileNotFoundError, UserError: as :func:`read_config`, or it describes no codec.
    """
    values = read_config(folder)
    try:
        kinds = list(values.get("kinds") or [])
        if facts := values.get("facts"):
            kinds = [f"{facts['model']}_{facts['task']}"]
        codec = values["codec"]
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder / CONFIG_JSON}: not the description of a codec ({error})"
        ) from error
    record = folder / TRAINING_JSON
    labels = files.read_json(record).get("labels", {}) if record.is_file() else {}
    return Description(codec, kinds, labels)
