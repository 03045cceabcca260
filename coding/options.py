"""The options that evaluate.py, encode.py and decode.py share: which codec, and how it is loaded."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from tqdm import tqdm

from coding.codec import Codec, ExtraKind, load_codec

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class CodecOptions:
    """Which codec, and how it is loaded."""

    codec: Path
    """Codec folder."""
    device: str = "cpu"
    """torch device of the networks. Encode and decode on the same kind of device: the learned codecs'
    entropy parameters come from float networks."""
    mapping: Path | None = None
    """Mapping of a kind that the codec was not trained on; needs --machine."""
    machine: str | None = None
    """Machine preset or YAML with the facts of that kind."""
    assignment: Literal["nearest", "left", "continuous"] = "nearest"
    """Assignment of --mapping."""

    def __post_init__(self):
        if (self.mapping is None) != (self.machine is None):
            raise ValueError("mapping: --mapping and --machine go together")

    def load(self, published: bool = False) -> Codec:
        extra = []
        if self.mapping is not None and self.machine is not None:
            extra = [ExtraKind(self.machine, self.mapping, self.assignment)]
        return load_codec(self.codec, device=self.device, published=published, kinds=extra)


def progress(items: Sequence[T], what: str) -> Iterator[T]:
    """A progress bar over ``items``."""
    return iter(tqdm(items, desc=what, unit="feature", mininterval=1))
