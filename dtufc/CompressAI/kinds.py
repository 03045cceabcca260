"""Kinds of features that a learned codec knows, and the patch folders that they are read from."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from dtufc import files
from dtufc.codec import ExtraKind
from dtufc.errors import UserError
from dtufc.feature import FeatureFacts, load_facts
from dtufc.paths import MAPPING_JSON, PATCHES_JSON
from dtufc.stamps import digest_file
from dtufc.transform.mapping import Mapping


@dataclass(frozen=True)
class Kind:
    """A kind of feature that a codec knows: its facts and the mapping in front of the networks."""

    facts: FeatureFacts
    mapping: Mapping

    @classmethod
    def from_files(cls, extra: ExtraKind) -> Self:
        return cls(load_facts(extra.machine), Mapping.load(extra.mapping, extra.assignment))


def digest_patches(folder: Path) -> str:
    """Hex SHA-256 over the content of a patch folder: patches, mapping, and the kind of feature.

    Raises:
        FileNotFoundError, UserError: the folder's records are missing or damaged.
    """
    kind = load_patch_kind(folder)
    found = [folder / MAPPING_JSON, *sorted(folder.glob("*/*.npy"))]
    parts = [f"{path.relative_to(folder)} {digest_file(path)}" for path in found]
    return files.digest(files.dump_json(kind.facts.decides()), kind.mapping.assignment, *parts)


def load_patch_kind(folder: Path) -> Kind:
    """The kind of feature that a patch folder was made from, by its ``patches.json``.

    Raises:
        FileNotFoundError, UserError: the folder's records are missing or damaged.
    """
    path = folder / PATCHES_JSON
    if not path.is_file():
        raise FileNotFoundError(f"{path}: missing; coding/transform/generate_data.py writes it")
    values = files.read_json(path)
    try:
        facts = FeatureFacts.of_record(values["facts"], f"{path}: facts")
        return Kind(facts, Mapping.load(folder / MAPPING_JSON, values["assignment"]))
    except KeyError as error:
        raise UserError(f"{path}: the key {error} is missing") from error
