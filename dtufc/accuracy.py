"""The record of a task accuracy, ``accuracy.json``: where machines and experiments meet.

A machine writes it when it has judged a folder of features. Its stamp holds the machine's preset, the
features by content, and whatever files the machine named as its inputs (weights, lists, labels), so that
the driver can tell whether it is current without knowing any model.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dtufc import config, files
from dtufc.paths import REPOSITORY
from dtufc.stamps import Stamp, digest_file, read_stamp

FEATURES, INPUTS = "features/", "file "
"""In front of the names of features, and of the paths of other files, in a stamp."""


def preset_block(preset: Path) -> dict[str, Any]:
    """The ``machine:`` block of a preset.

    Raises:
        FileNotFoundError, UserError: no such file, or it is no YAML mapping.
    """
    return config.read_yaml(preset).get("machine") or {}


def accuracy_stamp(
    preset: Path,
    flags: Mapping[str, Any],
    features: Iterable[Path],
    inputs: Iterable[Path],
    folder: Path,
) -> Stamp:
    """The stamp of an accuracy.

    Args:
        preset: the machine's YAML file.
        flags: options that differ from the preset and decide predictions.
        features: the files that are judged.
        inputs: other files that decide predictions and scores.
        folder: what the features lie in; their names count from there.

    Raises:
        FileNotFoundError: a file is missing.
    """
    digests = {
        f"{FEATURES}{path.relative_to(folder).as_posix()}": digest_file(path) for path in features
    }
    for path in inputs:
        path = path.resolve()
        name = path.relative_to(REPOSITORY) if path.is_relative_to(REPOSITORY) else path
        digests[f"{INPUTS}{name}"] = digest_file(path)
    return Stamp(files.jsonable({"machine": preset_block(preset), "flags": dict(flags)}), digests)


def why_not_judged(record: Path, preset: Path, folder: Path) -> str | None:
    """Why a folder of features must be judged by its machine; ``None`` if ``record`` is current.

    Args:
        record: ``accuracy.json``.
        preset: the machine's YAML file.
        folder: the features.
    """
    known = read_stamp(record)
    if known is None:
        return "not made yet"
    names = [name.removeprefix(FEATURES) for name in known.inputs if name.startswith(FEATURES)]
    paths = [name.removeprefix(INPUTS) for name in known.inputs if name.startswith(INPUTS)]
    try:
        stamp = accuracy_stamp(
            preset,
            {},
            [folder / name for name in names],
            [REPOSITORY / path for path in paths],
            folder,
        )
    except FileNotFoundError as error:
        return f"{error.filename} is gone"
    return stamp.differs(known)
