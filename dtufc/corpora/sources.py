"""Where a corpus comes from: folders of .npy, tars of .npy, a tar on a pipe, a machine's front half.

Folders and tars lie on this machine or in an object store (:mod:`dtufc.corpora.stores`).

A sample is a key and one .npy per tensor. In folders, the key is the path below the folder without its
ending, and each tensor has a folder of its own. In tars, as WebDataset writes them, a member is
``<key>.npy``, or ``<key>.<tensor>.npy`` where there are several tensors; a sample's members follow each
other.
"""

import io
import itertools
import sys
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np

from dtufc.corpora.stores import Location, Remote, find
from dtufc.errors import UserError
from dtufc.feature import FeatureError, check_feature, check_name, read_array

NPY, TAR = ".npy", ".tar"
PIPE = Path("-")
"""Stands for a tar on the standard input."""
TAR_READERS = 8
"""Tars whose headers are read side by side."""


@dataclass(frozen=True)
class Place:
    """A .npy: a file, or some bytes of one."""

    path: Location
    offset: int = 0
    size: int | None = None
    """Bytes from ``offset`` on; ``None``: the whole file."""
    member: str = ""
    """Name in a tar."""

    def __str__(self) -> str:
        return f"{self.path}: {self.member}" if self.member else str(self.path)

    def read(self) -> np.ndarray:
        """The feature (N, C, H, W), float16 or float32.

        Raises:
            FeatureError: not a sound feature; the message names the file.
            FileNotFoundError: it is not there any more.
        """
        if isinstance(self.path, Remote):
            return _parse(self.path.read_bytes(self.offset, self.size), str(self))
        if self.size is None:
            return check_feature(read_array(self.path), self.path)
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return _parse(file.read(self.size), str(self))


@dataclass(frozen=True)
class Entry:
    """A sample: its key, and where each tensor lies."""

    key: str
    places: dict[str, Place]

    def read(self) -> dict[str, np.ndarray]:
        """Its tensors by name."""
        return {name: place.read() for name, place in self.places.items()}

    @property
    def where(self) -> str:
        """Names it in messages."""
        return ", ".join(map(str, self.places.values()))

    def record(self) -> list[Any]:
        """Itself as JSON values."""
        places = {
            name: [str(place.path), place.offset, place.size, place.member]
            for name, place in self.places.items()
        }
        return [self.key, places]

    @classmethod
    def of_record(cls, values: Sequence[Any]) -> Self:
        """The entry that :meth:`record` told of."""
        key, places = values
        return cls(key, {name: Place(find(path), *rest) for name, (path, *rest) in places.items()})


def _parse(data: bytes, where: str) -> np.ndarray:
    with io.BytesIO(data) as file:
        try:
            x = np.lib.format.read_array(file, allow_pickle=False)
        except (ValueError, EOFError, SyntaxError, TypeError, OverflowError, MemoryError) as error:
            raise FeatureError(f"{where}: not a readable .npy file ({str(error)[:200]})") from error
    return check_feature(x, where)


def list_entries(inputs: Sequence[Location], names: Sequence[str]) -> list[Entry]:
    """The samples of folders, one per tensor, or of tars, in the order of their keys or members.

    Of tars no feature is read, their headers alone.

    Raises:
        FileNotFoundError: no such folder or tar.
        FeatureError, UserError: nothing in it, a tensor of a sample is missing, or a key comes twice.
    """
    if all(path.is_dir() for path in inputs):
        entries = _of_folders(inputs, names)
    else:
        if odd := next((path for path in inputs if path.suffix != TAR or path.is_dir()), None):
            raise UserError(f"input: {odd}: expected folders of {NPY} or tars alone, not both")
        with ThreadPoolExecutor(TAR_READERS) as pool:  # headers take waiting, where tars are far
            found = pool.map(lambda path: tar_entries(path, names), inputs)
            entries = [entry for each in found for entry in each]
    return check_keys(entries, inputs)


def tar_entries(path: Location, names: Sequence[str]) -> list[Entry]:
    """The samples of one tar.

    Raises:
        FileNotFoundError, UserError: as :func:`list_entries`.
    """
    return [*_grouped(_members(path), names, str(path))]


def check_keys(entries: list[Entry], inputs: Sequence[Location]) -> list[Entry]:
    """The entries, if no key comes twice.

    Raises:
        UserError: one does.
    """
    keys = [entry.key for entry in entries]
    if len(set(keys)) < len(keys):
        twice = next(key for key, again in itertools.pairwise(sorted(keys)) if key == again)
        raise UserError(f"input: {inputs[0]}: several samples are named {twice!r}")
    return entries


def _of_folders(folders: Sequence[Location], names: Sequence[str]) -> list[Entry]:
    if len(folders) != len(names):
        raise UserError(f"input: expected a folder per codec, {len(names)}, got {len(folders)}")
    found = []
    for folder in folders:
        paths = {_key(path, folder): path for path in sorted(folder.rglob(f"*{NPY}"))}
        if not paths:
            raise FeatureError(f"{folder}: holds no {NPY} feature")
        found.append(paths)
    for folder, paths in zip(folders, found, strict=True):
        if odd := sorted({*paths} ^ {*found[0]}):
            raise UserError(f"{folder}: expected the same names as in {folders[0]}, see {odd[0]}")
    return [
        Entry(key, {name: Place(paths[key]) for name, paths in zip(names, found, strict=True)})
        for key in sorted(found[0])
    ]


def _key(path: Location, folder: Location) -> str:
    if isinstance(path, Path):
        check_name(path)
    return path.relative_to(folder).with_suffix("").as_posix()


def _members(path: Location) -> Iterator[tuple[str, Place]]:
    """Name and place of each .npy in a tar."""
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                if member.isfile() and member.name.endswith(NPY):
                    yield member.name, Place(path, member.offset_data, member.size, member.name)
    except tarfile.TarError as error:
        raise UserError(f"{path}: no uncompressed tar, or a damaged one ({error})") from error


def _grouped(
    members: Iterable[tuple[str, Place]], names: Sequence[str], where: str
) -> Iterator[Entry]:
    """Members that follow each other as samples."""
    split = ((*_split(member, names, where), place) for member, place in members)
    for key, parts in itertools.groupby(split, key=lambda part: part[0]):
        places = {name: place for _, name, place in parts}
        if missing := [name for name in names if name not in places]:
            raise UserError(f"{where}: sample {key!r} has no {key}.{missing[0]}{NPY}")
        yield Entry(key, {name: places[name] for name in names})


def _split(member: str, names: Sequence[str], where: str) -> tuple[str, str]:
    """Key and tensor of a member's name."""
    stem = member.removesuffix(NPY).removeprefix("./")
    if len(names) == 1:
        return stem.removesuffix(f".{names[0]}"), names[0]
    key, _, name = stem.rpartition(".")
    if not key or name not in names:
        raise UserError(f"{where}: {member}: expected <key>.<tensor>{NPY} of tensors {[*names]}")
    return key, name


def piped_samples(
    names: Sequence[str], file: BinaryIO | None = None
) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Key and tensors of each sample of a tar that is read once, from front to end.

    Args:
        file: the tar; by default the standard input.

    Raises:
        FeatureError, UserError: as :func:`list_entries`.
    """
    where = "standard input" if file is None else str(file.name)
    waiting: dict[str, np.ndarray] = {}
    last = None
    try:
        with tarfile.open(fileobj=file or sys.stdin.buffer, mode="r|") as tar:
            for member in tar:
                if not member.isfile() or not member.name.endswith(NPY):
                    continue
                key, name = _split(member.name, names, where)
                if last is not None and key != last:
                    raise UserError(f"{where}: sample {last!r} has not all of {[*names]}")
                waiting[name] = _parse(tar.extractfile(member).read(), f"{where}: {member.name}")
                last = key
                if len(waiting) == len(names):
                    yield key, waiting
                    waiting, last = {}, None
    except tarfile.TarError as error:
        raise UserError(f"{where}: no uncompressed tar, or a damaged one ({error})") from error
    if waiting:
        raise UserError(f"{where}: sample {last!r} has not all of {[*names]}")


def machine_samples(
    preset: str, split: str, name: str, first: int
) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Key and feature of each sample of a machine's split, made by its front half as it is asked for.

    Args:
        first: samples that are left out at the beginning.
    """
    from dtufc.machines.opening import open_machine  # loads the models' libraries

    machine = open_machine(preset, ["mode=extract"])
    samples, size = machine.samples(split), machine.batch_size
    for start in range(first - first % size, len(samples), size):
        batch = samples[start : start + size]  # a batch is computed as it always is
        features = zip(batch, machine.extract_batch(batch), strict=True)
        for sample, feature in itertools.islice(features, max(0, first - start), None):
            yield sample.name, {name: feature}
