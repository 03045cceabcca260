"""Files under ``source/``: lists as the ``scripts/prepare_*.py`` write them, and pictures."""

from pathlib import Path

from PIL import Image

from dtufc.errors import UserError


def read_lines(path: Path, holds: str, script: str) -> list[tuple[int, str]]:
    """The lines of a list that are not empty, each with its number.

    Args:
        holds: what stands in a line, for the error.
        script: the script that writes the list.

    Raises:
        FileNotFoundError: no such list; the message says what it holds and what makes it.
        UserError: it is empty, or not UTF-8.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: missing. It lists {holds}; scripts/{script} writes it")
    try:
        lines = enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: expected text in UTF-8 ({error})") from error
    found = [(number, line.strip()) for number, line in lines if line.strip()]
    if not found:
        raise UserError(f"{path}: the list is empty")
    return found


def read_names(path: Path, holds: str, script: str) -> list[str]:
    """A list with one name per line, each once.

    Raises:
        FileNotFoundError, UserError: as :func:`read_lines`, or a name comes twice.
    """
    names: dict[str, None] = {}
    for number, name in read_lines(path, holds, script):
        if name in names:
            raise UserError(f"{path}:{number}: {name} is there twice")
        names[name] = None
    return list(names)


def read_picture(path: Path) -> Image.Image:
    """A picture file, decoded, in its own mode.

    Raises:
        FileNotFoundError: no such file.
        UserError: it does not decode; the message names it.
    """
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except FileNotFoundError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: not a readable picture ({error})") from error
