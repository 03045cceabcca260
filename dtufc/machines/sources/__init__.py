"""Sources: where machines get questions, captions and pictures. They stand beside each other.

A machine asks for one sort of sample and knows no source by name; :data:`SOURCES` says which sources
provide it. A new source is one module and one line of the table.
"""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dtufc.errors import UserError
from dtufc.machines.sources.source import EMPTY


@dataclass(frozen=True)
class Entry:
    """A line of the table."""

    target: str
    """``module:class``, below this package; imported when the source is opened."""
    provides: tuple[str, ...]
    """The sorts of samples, each the name of the class's method that lists them."""


SOURCES = {
    "arc": Entry("arc:Arc", ("questions",)),
    "voc": Entry("voc:Voc", ("masked_pictures",)),
    "captions": Entry("coco:Coco", ("captions",)),
    "imagenet": Entry("imagenet:Imagenet", ("labelled_pictures",)),
    "nyu": Entry("nyu:Nyu", ("depth_pictures",)),
    "speech": Entry("speech:Speech", ("utterances",)),
    "text": Entry("text:TextFiles", ("texts",)),
    "world": Entry(
        "world:World", ("questions", "masked_pictures", "captions", "labelled_pictures")
    ),
    "plain_world": Entry("world:PlainWorld", ("labelled_pictures", "depth_pictures")),
}
"""All sources by name; of those that provide the same, the first is a machine's default."""


def providers(sort: str) -> tuple[str, ...]:
    """Names of the sources that provide a sort of samples, in the order of the table."""
    return tuple(name for name, entry in SOURCES.items() if sort in entry.provides)


def open_source(
    name: str,
    folder: Path,
    counts: Mapping[str, int],
    seed: int,
    files: Mapping[str, Path] = EMPTY,
) -> Any:
    """A source by name, as :class:`dtufc.machines.sources.source.Source` takes its arguments.

    Raises:
        UserError: there is no such source.
    """
    if name not in SOURCES:
        raise UserError(f"source: expected one of {', '.join(SOURCES)}, got {name}")
    module, _, attribute = SOURCES[name].target.partition(":")
    kind = getattr(importlib.import_module(f"{__name__}.{module}"), attribute)
    return kind(folder, counts, seed, files)
