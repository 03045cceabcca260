"""The registry of codecs: what there is, where its code lies, and what it can do.

It drives command-line choices, the driver, the report and a test over all members. Code is imported when
a codec is asked for, so that none needs another's libraries. A codec outside this repository registers
itself by an entry point of the group ``dtufc.codecs`` whose object is a :class:`CodecEntry`::

    [project.entry-points."dtufc.codecs"]
    mine = "my_package:ENTRY"
"""

from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Literal

from dtufc import extras
from dtufc.errors import UserError

if TYPE_CHECKING:
    from dtufc.codec import Codec

GROUP = "dtufc.codecs"
"""Group of the entry points of codecs from other packages."""


@dataclass(frozen=True)
class CodecEntry:
    """One codec."""

    name: str
    """As in a codec folder's ``config.json``, on the command line and in tables."""
    summary: str
    """What it is, in a line."""
    loader: str
    """``module:class`` of the :class:`dtufc.codec.Codec`."""
    script: str
    """Module that makes a codec folder, run as ``python -m``. With ``layout`` it takes the flags of
    :class:`dtufc.CompressAI.train.TrainConfig`, else ``--features``, ``--output`` and ``--machine``."""
    config: str
    """``module:class`` of the script's configuration; it has a method ``stamp``."""
    flags: tuple[tuple[str, Any], ...] = ()
    """Values that the script's configuration always has."""
    layout: Literal["plane", "native"] | None = None
    """What it is trained on: patches of packed planes, or of features in their own layout. ``None``: it
    is fitted to the features themselves."""
    universal: bool = False
    """Whether one codec may know several kinds of features."""
    any_rate: bool = False
    """Whether one codec has many rates, chosen by ``quality``."""
    tiles: bool = False
    """Whether large planes may be coded in tiles."""
    files: tuple[str, ...] = ("config.json", "*.safetensors", "mappings/*.json")
    """Patterns of the files of its folder that it reads."""
    published_name: str | None = None
    """Its name in the published commands."""

    @property
    def trained(self) -> bool:
        """Whether it is trained on patches, one codec per lambda."""
        return self.layout is not None

    def load_class(self) -> "type[Codec]":
        """The codec's class."""
        return _attribute(self.loader)

    def load_config(self) -> type:
        """The class of its script's configuration."""
        return _attribute(self.config)


def _learned(name: str, summary: str, **facts: Any) -> CodecEntry:
    room = "dtufc.CompressAI"
    return CodecEntry(
        name, summary, f"{room}.codec:LearnedCodec", f"{room}.train", f"{room}.train:TrainConfig",
        flags=(("codec", name),), tiles=True, **facts,
    )  # fmt: skip


def _handcrafted(name: str, summary: str, loader: str) -> CodecEntry:
    script = "dtufc.handcrafted.fit_handcrafted"
    return CodecEntry(
        name, summary, f"dtufc.handcrafted.codec:{loader}", script, f"{script}:FitConfig",
        flags=(("codec", name),), any_rate=True,
    )  # fmt: skip


BUILT_IN = (
    _learned(
        "hyperprior", "scale hyperprior on the packed plane", layout="plane", universal=True,
        published_name="bmshj2018-hyperprior",
    ),
    _learned(
        "elic", "ELIC on the packed plane", layout="plane", universal=True,
        published_name="elic2022-official",
    ),
    _learned("native", "mean-scale hyperprior in the feature's own layout", layout="native"),
    CodecEntry(
        "klt", "Karhunen-Loeve transforms and static tables, without a network",
        "dtufc.klt.codec:KltCodec", "dtufc.klt.fit_klt", "dtufc.klt.fit_klt:FitConfig",
        any_rate=True,
    ),
    _handcrafted("int", "integers per channel, zstd", "IntegerCodec"),
    _handcrafted("cast", "bfloat16, float16 or all bits, zstd", "CastCodec"),
    _handcrafted("jpegxl", "the plane as a JPEG XL picture", "JpegXlCodec"),
    _handcrafted("hevc", "the plane as HEVC intra pictures", "HevcCodec"),
)  # fmt: skip


@cache
def codecs() -> dict[str, CodecEntry]:
    """All codecs by name: ours, then those of installed packages.

    Raises:
        UserError: an installed package's entry is no :class:`CodecEntry`, or takes a name twice.
    """
    found = {entry.name: entry for entry in BUILT_IN}
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        entry = point.load()
        if not isinstance(entry, CodecEntry):
            raise UserError(f"entry point {point.value} of {GROUP}: expected a CodecEntry")
        if entry.name in found:
            raise UserError(
                f"entry point {point.value} of {GROUP}: there is a codec {entry.name!r}"
            )
        found[entry.name] = entry
    return found


def find_codec(name: object, where: str = "codec") -> CodecEntry:
    """A codec by its own or its published name.

    Args:
        where: what named it, for the error.

    Raises:
        UserError: there is none.
    """
    for entry in codecs().values():
        if name in (entry.name, entry.published_name) and name is not None:
            return entry
    published = [entry.published_name for entry in codecs().values() if entry.published_name]
    raise UserError(f"{where}: {name!r} is none of {[*codecs(), *published]}")


def _attribute(path: str) -> Any:
    """An object by ``module:name``.

    Raises:
        UserError: the module needs a library of an extra that is not installed.
    """
    module, _, name = path.partition(":")
    return getattr(extras.load(module), name)
