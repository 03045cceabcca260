"""The options that evaluate.py, encode.py and decode.py share: which codec, and at which rate."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from tqdm import tqdm

from dtufc.codec import Codec, ExtraKind, load_codec
from dtufc.errors import UserError
from dtufc.kl_curve import quality_for_kl
from dtufc.rate import Target, reach

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class CodecOptions:
    """Which codec, and how it is loaded."""

    codec: Path
    """Codec folder, or the name of a shipped codec."""
    device: str = "cpu"
    """torch device of the networks; any decodes what another encoded."""
    mapping: Path | None = None
    """Mapping of a kind that the codec was not trained on; needs --machine."""
    machine: str | None = None
    """Machine preset or YAML with the facts of that kind."""
    assignment: Literal["nearest", "left", "continuous"] = "nearest"
    """Assignment of --mapping."""

    def __post_init__(self):
        if (self.mapping is None) != (self.machine is None):
            raise UserError("mapping: --mapping and --machine go together")

    def load(self, published: bool = False) -> Codec:
        extra = []
        if self.mapping is not None and self.machine is not None:
            extra = [ExtraKind(self.machine, self.mapping, self.assignment)]
        return load_codec(self.codec, device=self.device, published=published, kinds=extra)


@dataclass(frozen=True, kw_only=True)
class RateOptions(CodecOptions):
    """Which codec, and at which rate, for codecs that have more than one."""

    quality: float | None = None
    """Rate on the codec's own scale; null takes its default."""
    target_nmse: float | None = None
    """Lowest quality whose pooled NMSE over all features is at most this; with --per_file, the NMSE of
    each feature over its own variance."""
    target_bpfp: float | None = None
    """Highest quality whose pooled bits per feature point (total bits over total points) are at most
    this, so that single files may take more; with --per_file, none does."""
    target_kl: float | None = None
    """Lowest quality whose KL divergence from the uncut language model, in nats per token, is at most
    this by the codec's own curve; see kl_curve.py."""
    per_file: bool = False
    """target_nmse and target_bpfp hold for every file, each coded at a quality of its own."""
    max_bytes: int | None = None
    """Highest quality of each file whose whole bitstream takes at most so many bytes."""
    tile: int | None = None
    """Learned codecs: planes longer or wider are coded in tiles of at most this, a multiple of 64; 0:
    never. null: 512."""

    def __post_init__(self):
        super().__post_init__()
        targets = [self.target_nmse, self.target_bpfp]
        given = [self.quality, self.max_bytes, self.target_kl, *targets]
        if sum(value is not None for value in given) > 1:
            raise UserError(
                "quality, max_bytes, target_nmse, target_bpfp, target_kl: give one of them at most"
            )
        if self.target_kl is not None and not 0 < self.target_kl < math.inf:
            raise UserError(f"target_kl: expected a number above 0, got {self.target_kl}")
        Target(self.max_bytes, self.target_bpfp, self.target_nmse)  # raises where it is none
        if self.per_file and targets == [None, None]:
            raise UserError("per_file: give --target_nmse or --target_bpfp with it")

    @property
    def each(self) -> Target:
        """What the coding of every file must hold for itself."""
        if self.per_file:
            return Target(None, self.target_bpfp, self.target_nmse)
        return Target(self.max_bytes)

    def load_for(
        self, paths: Sequence[Path], kind: str | None = None, published: bool = False
    ) -> Codec:
        """The codec at the rate that is asked for.

        Args:
            paths: the features that a pooled target is about.

        Raises:
            UserError: a quality where the codec has one rate only, a target out of its reach, or one of
                KL where the codec has no curve.
        """
        codec = self.load(published)
        if self.tile is not None:
            codec = codec.at_tile(self.tile)
        if self.quality is not None:
            return codec.at_quality(self.quality)
        if self.target_kl is not None:
            return codec.at_quality(quality_for_kl(codec, self.codec, self.target_kl))
        if self.per_file or (self.target_nmse is None and self.target_bpfp is None):
            return codec
        targets = {"target_bpfp": self.target_bpfp, "target_nmse": self.target_nmse}
        return reach(codec, paths, kind, **targets)


def progress(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """A progress bar over ``items``, whose number is ``total`` where they do not know it."""
    return iter(tqdm(items, desc=what, unit="feature", mininterval=1, total=total))
