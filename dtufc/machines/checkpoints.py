"""Where the weights of a machine are, and what names them."""

import contextlib
import textwrap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from safetensors import safe_open
from torch import Tensor
from transformers.utils import logging

from dtufc import files
from dtufc.errors import UserError
from dtufc.machines.options import ModelOptions
from dtufc.paths import PACKAGE


def find_checkpoint(options: ModelOptions, name: str | None, what: str) -> Path:
    """The file or folder of a checkpoint.

    Args:
        name: path below ``pretrained_head``, or below the repository's root.
        what: what the checkpoint is and where it comes from, for the error.

    Raises:
        FileNotFoundError: not there; the message says where to put what.
        UserError: no name given.
    """
    if name is None:
        raise UserError(f"checkpoint: none is given. {what}")
    places = [options.root.pretrained_head / name, PACKAGE / name]
    for place in places:
        if place.exists():
            return place
    raise FileNotFoundError(f"no checkpoint {name}: put it at {places[0]}. {what}")


def find_folder(options: ModelOptions, what: str, *patterns: str) -> Path:
    """The folder of a checkpoint, or of a snapshot of the hub's model that ``--hub`` names.

    Args:
        patterns: the files that are needed of a hub's model; none takes all.

    Raises:
        FileNotFoundError, UserError: as :func:`find_checkpoint`, or it is no folder.
    """
    if options.hub is not None:
        return Path(snapshot_download(options.hub, allow_patterns=list(patterns) or None))
    folder = find_checkpoint(options, options.checkpoint, what)
    if not folder.is_dir():
        raise UserError(f"{folder}: expected a folder. {what}")
    return folder


class SafetensorsFiles(Mapping[str, Tensor]):
    """The tensors of ``*.safetensors`` files by name, each read when it is asked for."""

    def __init__(self, paths: list[Path]):
        self._files = {}
        for path in paths:
            stored = safe_open(path, framework="pt")
            self._files |= dict.fromkeys(stored.keys(), stored)

    def __getitem__(self, name: str) -> Tensor:
        return self._files[name].get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def open_weights(path: Path) -> Mapping[str, Tensor]:
    """The tensors of a checkpoint by name; what is not used is not read.

    Args:
        path: a ``.safetensors`` file, a folder of them, or a ``.pth`` of torch with a state dict, as
            it is or under the key ``state_dict``.

    Raises:
        UserError: not such a file; the message names it.
    """
    with loading(path):
        if path.is_dir():
            return SafetensorsFiles(sorted(path.glob("*.safetensors")))
        if path.suffix == ".safetensors":
            return SafetensorsFiles([path])
        stored = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        state = stored.get("state_dict", stored)
        if not all(isinstance(value, Tensor) for value in state.values()):
            raise UserError(f"{path}: not a readable checkpoint (it holds more than tensors)")
        return state


def weights_files(path: Path) -> list[Path]:
    """A file itself, or a folder's ``*.safetensors`` and ``config.json``; what is not there is left
    out."""
    if path.is_file():
        return [path]
    found = [*sorted(path.glob("*.safetensors")), path / "config.json"]
    return [file for file in found if file.is_file()]


def weights_digest(path: Path) -> str:
    """SHA-256 over the :func:`weights_files`."""
    return files.digest(*weights_files(path))


def checkpoint_files(find: Callable[[], Path | None], *patterns: str) -> list[Path]:
    """The :func:`weights_files` of what ``find`` gives, and what else in the folder matches.

    Args:
        find: gives a file or folder, or None; none is there where it raises FileNotFoundError.
        patterns: of the folder's further files.
    """
    try:
        path = find()
    except FileNotFoundError:
        return []
    if path is None:
        return []
    others = [file for pattern in patterns for file in sorted(path.glob(pattern))]
    return list(dict.fromkeys([*weights_files(path), *others]))


@contextlib.contextmanager
def loading(path: Path, what: str = "a readable checkpoint") -> Iterator[None]:
    """Let a library load a checkpoint, without its bars and reports.

    Raises:
        UserError: what the library raises at a damaged file or one of another kind, as one line:
            ``path`` is not ``what``. FileNotFoundError passes.
    """
    try:
        with quiet():
            yield
    except (UserError, FileNotFoundError):
        raise
    except Exception as error:  # torch, pickle, safetensors, tokenizers: each raises its own
        why = textwrap.shorten(str(error), 300)
        raise UserError(f"{path}: not {what} ({type(error).__name__}: {why})") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and reports of transformers: our own bars count features."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
