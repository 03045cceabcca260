"""Where the weights of a machine are, and what names them."""

import contextlib
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers.utils import logging

from coding import files
from coding.errors import UserError
from coding.paths import REPOSITORY
from machines.options import ModelOptions


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
    places = [options.root.pretrained_head / name, REPOSITORY / name]
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
    try:
        if path.is_dir():
            return SafetensorsFiles(sorted(path.glob("*.safetensors")))
        if path.suffix == ".safetensors":
            return SafetensorsFiles([path])
        stored = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        state = stored.get("state_dict", stored)
        if not all(isinstance(value, Tensor) for value in state.values()):
            raise UserError("it holds other things than tensors")
    except (SafetensorError, RuntimeError, ValueError, OSError, AttributeError, EOFError,
            pickle.UnpicklingError) as error:  # fmt: skip
        raise UserError(f"{path}: not a readable checkpoint ({error})") from error
    return state


def weights_digest(path: Path) -> str:
    """SHA-256 over a file, or over a folder's ``*.safetensors`` and ``config.json``."""
    if path.is_file():
        return files.digest(path)
    found = [*sorted(path.glob("*.safetensors")), path / "config.json"]
    return files.digest(*(file for file in found if file.is_file()))


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
