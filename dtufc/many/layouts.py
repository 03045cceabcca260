"""States in files, in any of three layouts::

    tensors    <folder>/k0/<sample>.npy ...    as machines write them: a folder per tensor
    folder     <folder>/k0.npy ...             one state; the sample is named after the folder
    npz        <sample>.npz                    one state, an array per tensor; alone or in a folder

What is decoded lies as its source did.
"""

import contextlib
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dtufc import files
from dtufc.feature import FeatureError, check_feature, check_name, write_feature
from dtufc.many.container import Layout
from dtufc.states import State, StateFacts, list_states

NPZ = ".npz"
_UNREADABLE = (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError)
"""What numpy raises for an archive that is damaged, encrypted, pickled or none."""


@dataclass(frozen=True)
class Source:
    """A state in files."""

    name: str
    """Of the sample."""
    layout: Layout
    paths: dict[str, Path]
    """The file of each tensor; of an ``.npz`` the same for all."""

    @property
    def path(self) -> Path:
        """What messages name."""
        first = next(iter(self.paths.values()))
        return first if self.layout == "npz" else first.parent

    def read(self, facts: StateFacts) -> dict[str, np.ndarray]:
        """The state.

        Raises:
            FeatureError: a tensor is missing, damaged or of another kind; the message names the file.
            FileNotFoundError: a file has gone.
        """
        if self.layout != "npz":
            return {name: each.read(self.paths[name]) for name, each in facts.tensors.items()}
        state = read_npz(self.path, [*facts.tensors])
        for name, each in facts.tensors.items():
            if why := each.mismatch(state[name]):
                raise FeatureError(f"{self.path}: {name}: {why}")
        return state


class Sources(Sequence):
    """States in files, each read when it is asked for."""

    def __init__(self, facts: StateFacts, sources: Sequence[Source]):
        self.facts, self.sources = facts, sources

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, place: int) -> dict[str, np.ndarray]:
        return self.sources[place].read(self.facts)


def list_sources(facts: StateFacts, path: Path) -> list[Source]:
    """The states of a folder, or the one of an ``.npz``, sorted by name.

    Raises:
        FileNotFoundError: no such file or folder.
        FeatureError: it holds no states of these tensors, or in several layouts.
    """
    if path.is_file():
        if path.suffix != NPZ:
            raise FeatureError(f"{path}: expected a folder of states or an {NPZ}")
        return [_of_npz(facts, path)]
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such file or folder of states")
    archives = sorted(p for p in path.glob(f"*{NPZ}") if not p.name.startswith("."))
    found: dict[Layout, bool] = {
        "tensors": any((path / tensor).is_dir() for tensor in facts.tensors),
        "folder": any((path / f"{tensor}.npy").is_file() for tensor in facts.tensors),
        "npz": bool(archives),
    }
    layouts = [layout for layout, there in found.items() if there]
    if len(layouts) > 1:
        raise FeatureError(f"{path}: holds states in several layouts, {', '.join(layouts)}")
    if not layouts:
        names = [*facts.tensors]
        raise FeatureError(
            f"{path}: holds no states; expected the folders {names}, or .npy files of these names, "
            f"or {NPZ} files"
        )
    if layouts[0] == "npz":
        return [_of_npz(facts, archive) for archive in archives]
    if layouts[0] == "folder":
        return [_of_folder(facts, path)]
    return [
        Source(name, "tensors", _paths(facts, path, name, "tensors"))
        for name in list_states(facts, path)
    ]


def _of_npz(facts: StateFacts, path: Path) -> Source:
    return Source(check_name(path).stem, "npz", dict.fromkeys(facts.tensors, path))


def _of_folder(facts: StateFacts, folder: Path) -> Source:
    folder = check_name(folder.resolve())
    paths = _paths(facts, folder.parent, folder.name, "folder")
    if missing := [path for path in paths.values() if not path.is_file()]:
        raise FeatureError(f"{missing[0]}: missing; a state of {facts.kind} has it")
    return Source(folder.name, "folder", paths)


def target_paths(facts: StateFacts, folder: Path, name: str, layout: Layout) -> list[Path]:
    """The files that :func:`write_state` writes of a sample."""
    if layout == "npz":
        return [folder / f"{name}{NPZ}"]
    return [*_paths(facts, folder, name, layout).values()]


def write_state(folder: Path, name: str, layout: Layout, state: State) -> None:
    """Write a sample's state; each file whole or not at all."""
    if layout == "npz":
        write_npz(folder / f"{name}{NPZ}", state)
        return
    for tensor, x in state.items():
        write_feature(_path(folder, name, tensor, layout), x)


def _paths(facts: StateFacts, folder: Path, name: str, layout: Layout) -> dict[str, Path]:
    return {tensor: _path(folder, name, tensor, layout) for tensor in facts.tensors}


def _path(folder: Path, name: str, tensor: str, layout: Layout) -> Path:
    if layout == "folder":
        return folder / name / f"{tensor}.npy"
    return folder / tensor / f"{name}.npy"


def read_npz(path: Path, tensors: Sequence[str]) -> dict[str, np.ndarray]:
    """The arrays of an ``.npz``, without pickle.

    Raises:
        FeatureError: it is none, has other arrays, or one is no sound feature; the message names it.
        FileNotFoundError: no such file.
    """
    with _readable(path), np.load(path, allow_pickle=False) as archive:
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise FeatureError(f"{path}: not an archive of arrays")
        if sorted(archive.files) != sorted(tensors):
            raise FeatureError(
                f"{path}: expected the arrays {[*tensors]}, got {sorted(archive.files)}"
            )
        state = {name: archive[name] for name in tensors}
    for name, x in state.items():
        if not isinstance(x, np.ndarray):
            raise FeatureError(f"{path}: {name}: expected an array")
        check_feature(x, f"{path}: {name}")
    return state


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, FeatureError):
        raise
    except MemoryError as error:
        raise FeatureError(f"{path}: an array asks for more memory than there is") from error
    except _UNREADABLE as error:
        raise FeatureError(f"{path}: not a readable {NPZ} ({str(error)[:200]})") from error


def write_npz(path: Path, state: State) -> None:
    """Write an ``.npz``, whole or not at all; the same bytes for the same state."""
    with files.write_atomic(path) as file, zipfile.ZipFile(file, "w") as archive:
        for name, x in state.items():
            check_feature(x, f"{path}: {name}")
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, x, allow_pickle=False)
