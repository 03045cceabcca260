"""The options that evaluate.py, encode.py and decode.py share: which codec, and at which rate."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from tqdm import tqdm

from dtufc.codec import Codec, ExtraKind, load_codec
from dtufc.errors import UserError
from dtufc.feature import Moments, read_feature

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
    """Lowest quality whose pooled NMSE over all features is at most this."""
    target_bpfp: float | None = None
    """Highest quality whose pooled bits per feature point are at most this."""
    tile: int | None = None
    """Learned codecs: planes longer or wider are coded in tiles of at most this, a multiple of 64; 0:
    never. null: 512."""

    def __post_init__(self):
        super().__post_init__()
        given = [self.quality, self.target_nmse, self.target_bpfp]
        if sum(value is not None for value in given) > 1:
            raise UserError("quality, target_nmse, target_bpfp: give one of them at most")
        if any(target is not None and target <= 0 for target in given[1:]):
            raise UserError("target_nmse, target_bpfp: expected more than 0")

    def load_for(
        self, paths: Sequence[Path], kind: str | None = None, published: bool = False
    ) -> Codec:
        """The codec at the rate that is asked for.

        Args:
            paths: the features that a target is about.

        Raises:
            UserError: the codec has one rate only, or the target is out of its reach.
        """
        codec = self.load(published)
        if self.tile is not None:
            codec = codec.at_tile(self.tile)
        if self.quality is not None:
            return codec.at_quality(self.quality)
        if self.target_nmse is None and self.target_bpfp is None:
            return codec
        return reach_target(codec, paths, kind, bpfp=self.target_bpfp, nmse=self.target_nmse)


def reach_target(
    codec: Codec,
    paths: Sequence[Path],
    kind: str | None,
    *,
    bpfp: float | None = None,
    nmse: float | None = None,
) -> Codec:
    """The codec at the highest quality within ``bpfp``, or the lowest within ``nmse``: bisection over
    the codec's qualities, every trial coding all features.

    Raises:
        UserError: none of its qualities reaches the target, or it has one rate only.
    """
    qualities = codec.qualities
    if not qualities:
        raise UserError("target_nmse, target_bpfp: the codec has one rate only")
    moments = Moments()
    for path in paths:
        moments.add(read_feature(path))

    def is_fine(place: int) -> bool:
        """Whether a quality is on the finer side of the target."""
        trial = codec.at_quality(qualities[place])
        total_bytes = total_points = 0
        squares = 0.0
        for path in paths:
            x = read_feature(path)
            data = trial.encode(x, kind)
            total_bytes, total_points = total_bytes + len(data), total_points + x.size
            if nmse is not None:
                squares += float(np.sum(np.square(trial.decode(data).astype(np.float64) - x)))
        if bpfp is not None:
            return 8 * total_bytes / total_points > bpfp
        return squares / total_points <= nmse * moments.variance

    # the wanted one is the last that is not finer than a rate, or the first that is finer than an error
    coarse, fine = -1, len(qualities)
    while fine - coarse > 1:
        middle = (coarse + fine) // 2
        coarse, fine = (coarse, middle) if is_fine(middle) else (middle, fine)
    place = coarse if bpfp is not None else fine
    if not 0 <= place < len(qualities):
        what = f"target_bpfp: {bpfp:g}" if bpfp is not None else f"target_nmse: {nmse:g}"
        raise UserError(
            f"{what} is out of reach at qualities of {qualities[0]:g} .. {qualities[-1]:g}"
        )
    return codec.at_quality(qualities[place])


def progress(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """A progress bar over ``items``, whose number is ``total`` where they do not know it."""
    return iter(tqdm(items, desc=what, unit="feature", mininterval=1, total=total))
