"""Codec folders: ``config.json``, ``model.safetensors`` and the mappings of the kinds it knows.

::

    config.json             codec, arch, kinds: {name: {facts, assignment}}, how it was made
    model.safetensors       weights and integer entropy tables, CompressAI's names
    exact.safetensors       the integers that decide how symbols are decoded, see frozen.py
    mappings/<kind>.json    the codebook of each kind, in the published format

The entropy tables are computed once, when the folder is written, and stored: computing them again
elsewhere could give other integers, and other integers cannot decode.
"""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from dtufc import config, files
from dtufc.codec import CONFIG_JSON
from dtufc.CompressAI.frozen import FrozenNets, freeze
from dtufc.CompressAI.kinds import Kind
from dtufc.CompressAI.models import MODELS, Model, build_model
from dtufc.errors import UserError
from dtufc.feature import FeatureFacts
from dtufc.transform.mapping import Mapping

WEIGHTS = "model.safetensors"
EXACT = "exact.safetensors"
FORMAT = 1


def save_checkpoint(
    folder: str | Path,
    model: Model,
    codec: str,
    kinds: Sequence[Kind],
    made_by: dict[str, Any],
    planes: Iterable[Tensor] = (),
) -> None:
    """Write the codec folder of a trained model; see :func:`write_codec`.

    The model is left as it is: its quantiles are made exact by bisection (those that the auxiliary loss
    found may lag) and its tables set on a copy.
    """
    final = copy.deepcopy(model).float().cpu()
    final.update(force=True, update_quantiles=True)
    write_codec(folder, final, codec, kinds, made_by, planes)


def write_codec(
    folder: str | Path,
    model: Model,
    codec: str,
    kinds: Sequence[Kind],
    made_by: dict[str, Any],
    planes: Iterable[Tensor] = (),
) -> None:
    """Write a codec folder of a float32 model on the CPU that has its tables; each file appears whole,
    ``config.json`` last.

    Args:
        made_by: provenance, anything JSON holds.
        planes: (B, 1, P, Q) inputs to find the ranges of the integers on, see frozen.py.

    Raises:
        UserError: two kinds have the same name.
    """
    folder = Path(folder)
    names = [kind.facts.kind for kind in kinds]
    if len(set(names)) < len(names):
        raise UserError(f"kinds: {names} name one kind of feature twice")
    exact = freeze(model, planes)
    write_weights(folder / WEIGHTS, model.state_dict())
    write_weights(folder / EXACT, exact)
    for kind in kinds:
        kind.mapping.save(folder / "mappings" / f"{kind.facts.kind}.json")
    described = {
        kind.facts.kind: {"facts": kind.facts.record(), "assignment": kind.mapping.assignment}
        for kind in kinds
    }
    files.write_json(
        folder / CONFIG_JSON,
        {
            "format": FORMAT,
            "codec": codec,
            "arch": asdict(model.arch),
            "kinds": described,
            "made_by": made_by,
        },
    )


def write_weights(path: Path, state: dict[str, Tensor]) -> None:
    """Write a state dict as safetensors, whole or not at all."""
    files.write_bytes(path, save({key: value.contiguous() for key, value in state.items()}))


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        UserError: missing or damaged; the message names the file.
    """
    if not path.is_file():
        raise UserError(f"{path}: missing from the codec folder")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({error})") from error


def load_model(folder: str | Path) -> tuple[Model, dict[str, Any]]:
    """The float32 model of a codec folder on the CPU in eval mode, and its ``config.json``.

    Raises:
        UserError: a file is missing or damaged, or the weights do not fit the widths.
    """
    folder = Path(folder)
    where = folder / CONFIG_JSON
    values = files.read_json(where)
    try:
        codec, arch_values, version = values["codec"], values["arch"], values["format"]
        model_class = MODELS[codec]
    except (KeyError, TypeError) as error:
        raise UserError(f"{where}: missing or unknown {error}") from error
    if version != FORMAT:
        raise UserError(f"{where}: format {version}, this code reads format {FORMAT}")
    arch = config.build(model_class.arch_class, arch_values, f"{where}: arch")
    state = read_weights(folder / WEIGHTS)
    stored = sum(value.numel() for value in state.values())
    if arch.least_weights > stored:  # before a model of such widths takes memory
        raise UserError(
            f"{where}: arch: the weights do not fit: {WEIGHTS} holds {stored} values, "
            f"these widths take {arch.least_weights} or more"
        )
    for name, value in state.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise UserError(f"{folder / WEIGHTS}: {name}: holds values that are not finite")
    model = build_model(codec, arch)
    load_state(model, widen_tables(model, state), folder / WEIGHTS)
    return model.eval(), values


CDF, LENGTH = "_quantized_cdf", "_cdf_length"
SHARED = (CDF, "_offset", LENGTH, "scale_table")
"""The Gaussian tables: the same for every group of ELIC's latent."""
TOTAL = 1 << 16
"""Last value of a cumulative table, the only one that 16 bits do not hold."""


def narrow_tables(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A model's state dict with its integer tables in less space: cumulative ones as uint16, and
    Gaussian ones that are alike once."""
    kept: dict[str, Tensor] = {}
    for key, value in sorted(state.items()):
        twins = [other for other in kept if _table(other) == _table(key) is not None]
        if not any(torch.equal(kept[other], value) for other in twins):
            kept[key] = value
    return {k: (v % TOTAL).to(torch.uint16) if k.endswith(CDF) else v for k, v in kept.items()}


def widen_tables(model: Model, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """:func:`narrow_tables` undone; a state dict that was not narrowed is left as it is."""
    stored = {_table(key): value for key, value in state.items() if _table(key)}
    missing = [key for key in model.state_dict() if key not in state and _table(key) in stored]
    wide = state | {key: stored[_table(key)] for key in missing}
    for key, value in wide.items():
        length = wide.get(key.removesuffix(CDF) + LENGTH)
        if key.endswith(CDF) and value.dtype == torch.uint16 and length is not None:
            wide[key] = value.to(torch.int32)
            ends = (length.long() - 1).clamp(0, value.shape[1] - 1)
            wide[key][torch.arange(len(value)), ends] = TOTAL
    return wide


def _table(key: str) -> str | None:
    """Which Gaussian table a weight is; ``None`` if it is none."""
    module, _, name = key.rpartition(".")
    return name if name in SHARED and module.endswith("gaussian_conditional") else None


def load_frozen(folder: str | Path, model: Model) -> tuple[FrozenNets, dict[str, Tensor]]:
    """The integers of a codec folder, ready to run, and as they are stored.

    Raises:
        UserError: the file is missing or damaged, or does not fit the model.
    """
    path = Path(folder) / EXACT
    if not path.is_file():
        raise UserError(
            f"{path}: missing; python coding/CompressAI/freeze.py --checkpoint {folder} --output NEW "
            "makes a codec folder with it"
        )
    state = read_weights(path)
    try:
        return FrozenNets(model, state), state
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def load_state(model: Model, state: dict[str, Tensor], where: str | Path) -> None:
    """Load a state dict into a model.

    Raises:
        UserError: names or sizes differ; the message names the file.
    """
    try:
        model.load_state_dict(state)
    except (RuntimeError, ValueError, KeyError) as error:
        raise UserError(f"{where}: the weights do not fit the architecture: {error}") from error


def load_kinds(folder: Path, values: dict[str, Any]) -> list[Kind]:
    """The kinds that a codec folder knows.

    Raises:
        FileNotFoundError, UserError: a mapping is missing or damaged, or the facts are wrong.
    """
    kinds = []
    where = folder / CONFIG_JSON
    described = values.get("kinds", {})
    if not isinstance(described, dict):
        raise UserError(f"{where}: kinds: expected an object, got {described!r:.40}")
    for name, entry in described.items():
        if not isinstance(entry, dict) or not {"facts", "assignment"} <= entry.keys():
            raise UserError(f"{where}: kinds.{name}: expected the keys facts and assignment")
        facts = FeatureFacts.of_record(entry["facts"], f"{where}: kinds.{name}")
        if name != facts.kind:  # it becomes a path
            raise UserError(f"{where}: kinds.{name}: the facts are of {facts.kind}")
        mapping = Mapping.load(folder / "mappings" / f"{name}.json", entry["assignment"])
        kinds.append(Kind(facts, mapping))
    return kinds
