"""One way to configure every script: a frozen dataclass, a YAML file, flags over it.

A script declares a frozen dataclass with a docstring under each field and calls :func:`parse`. Every
field becomes a flag with help, type and default; ``--config FILE.yaml`` sets many at once; flags win
over the file. An unknown key, a wrong type or an impossible value (``__post_init__`` raising
``UserError``) ends the script with one line that names the key and what it takes.
"""

import contextlib
import dataclasses
import functools
import json
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin

import yaml
from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

from dtufc import extras
from dtufc.errors import UserError

set_parsing_settings(docstring_parse_attribute_docstrings=True)

T = TypeVar("T")


def parse(
    config_class: type[T], argv: Sequence[str] | None = None, doc: str | None = None, **defaults
) -> T:
    """Read ``argv`` (``sys.argv[1:]`` when ``None``) into an instance of ``config_class``.

    Args:
        doc: the script's docstring; its first paragraph is the help text.
        defaults: values that replace the dataclass's own (a machine's default preset).

    Raises:
        SystemExit: with status 2 and a message that names the key, when the arguments do not fit.
    """
    parser = ArgumentParser(
        allow_abbrev=False, description=(doc or config_class.__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--config", action="config", help="YAML file; later flags override it")
    parser.add_class_arguments(config_class, help=config_class.__name__)
    parser.set_defaults(defaults)
    namespace: Namespace = parser.parse_args(_plain_flags(config_class, argv))
    namespace.pop("config", None)
    values = {key: value for key, value in vars(namespace).items() if not key.startswith("__")}
    try:
        return config_class(**values)
    except UserError as error:
        parser.error(str(error))


def _plain_flags(config_class: type, argv: Sequence[str] | None) -> list[str]:
    """``--resume`` alone stands for ``--resume true``, ``--features A B`` for ``[A, B]``."""
    fields = {f"--{field.name}": field.type for field in dataclasses.fields(config_class)}
    waiting = list(sys.argv[1:] if argv is None else argv)
    plain: list[str] = []
    while waiting:
        flag = waiting.pop(0)
        plain.append(flag)
        values: list[str] = []
        while waiting and not waiting[0].startswith("--"):
            values.append(waiting.pop(0))
        if fields.get(flag) is bool and not values:
            values = ["true"]
        elif values and _is_list(fields.get(flag)) and not values[0].startswith("["):
            values = [json.dumps(values)]
        plain += values
    return plain


def _is_list(annotation: Any) -> bool:
    """list[...], or list[...] | None."""
    if isinstance(annotation, UnionType):
        return all(_is_list(arg) for arg in get_args(annotation) if arg is not NoneType)
    return get_origin(annotation) is list


def to_argv(config: Any) -> list[str]:
    """The flags that give this config: what :func:`parse` takes, defaults left out."""
    argv = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if value != default:
            plain = json.dumps(value, default=str) if not isinstance(value, str) else value
            argv += [f"--{field.name}", str(value) if isinstance(value, Path) else plain]
    return argv


def _refuse_nulls(built: Any) -> None:
    """Refuse null where a field takes none, at any depth: jsonargparse lets it pass."""
    if isinstance(built, list | tuple):
        for item in built:
            _refuse_nulls(item)
    if not dataclasses.is_dataclass(built):
        return
    for field in dataclasses.fields(built):
        value = getattr(built, field.name)
        takes = field.type is Any or NoneType in get_args(field.type)
        if value is None and not takes and not isinstance(field.type, str):
            raise UserError(f"{field.name}: null is no value of it")
        _refuse_nulls(value)


@contextlib.contextmanager
def report_errors() -> Iterator[None]:
    """End the script with one line and status 1 for what the user can mend.

    Bad input or an impossible value raise ``UserError``, a missing file or a full disk ``OSError``, with
    a text that says what is expected, and so has a library that an extra brings and that is not
    installed; anything else is a fault of ours and keeps its traceback.
    """
    try:
        yield
    except ImportError as error:
        if line := extras.explain(error):
            raise SystemExit(f"error: {line}") from error
        raise
    except (UserError, OSError) as error:
        raise SystemExit(f"error: {error}") from error


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises:
        FileNotFoundError: no such file.
        UserError: not YAML, or not a mapping at the top; the message names the file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such config file")
    try:
        value = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML ({error})") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a mapping of keys to values")
    return value


_BUILDING = threading.RLock()
"""Held where a parser is used that is kept: nothing says that threads may share it."""


@functools.cache
def _value_parser(config_class: type) -> ArgumentParser:
    """A parser of one value of a class. To make one takes three times as long as to use it."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=config_class)
    return parser


def build(config_class: type[T], values: dict[str, Any], where: str) -> T:
    """Make a (nested) dataclass from plain values with the same checks as the command line.

    Raises:
        UserError: an unknown key, a missing one or a wrong type; the message, one line, starts with
            ``where``.
    """
    try:
        with _BUILDING:
            parser = _value_parser(config_class)
            built = parser.instantiate_classes(parser.parse_object({"value": values})).value
        _refuse_nulls(built)
        return built
    except Exception as error:  # jsonargparse wraps every cause; the text names the key
        raise UserError(f"{where}: {' '.join(str(error).split())}") from error
