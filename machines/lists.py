"""Lists of samples under ``source/``, as the ``scripts/prepare_*.py`` write them."""

from pathlib import Path

from coding.errors import UserError


def read_lines(path: Path, holds: str, script: str) -> list[tuple[int, str]]:
    """The lines of a list that are not empty, each with its number.

    Args:
        holds: what stands in a line, for the error.
        script: the script that writes the list.

    Raises:
        FileNotFoundError: no such list; the message says what it holds and what makes it.
        UserError: it is empty.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: missing. It lists {holds}; scripts/{script} writes it")
    lines = enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
    found = [(number, line.strip()) for number, line in lines if line.strip()]
    if not found:
        raise UserError(f"{path}: the list is empty")
    return found


def read_names(path: Path, holds: str, script: str) -> list[str]:
    """A list of names, one a line, each once.

    Raises:
        FileNotFoundError, UserError: as :func:`read_lines`, or a name comes twice.
    """
    names: list[str] = []
    for number, name in read_lines(path, holds, script):
        if name in names:
            raise UserError(f"{path}:{number}: {name} is there twice")
        names.append(name)
    return names
