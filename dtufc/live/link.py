"""How features are coded for a link: its bandwidth picks the quality, or sends them raw.

A row takes the time of encoding, of the wire and of decoding. Raw rows need nearly none of the first
and the last, so that above some bandwidth they are faster. Below it the codec is used, at the best
quality that keeps a time per row, and never below a least quality.
"""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from dtufc.codec import Codec
from dtufc.errors import UserError
from dtufc.feature import FeatureFacts

UNITS = {"": 1, "k": 1e3, "M": 1e6, "G": 1e9}
FRAMES = 6
"""Rows that a trial codes, one after the other."""
BESIDE = 50
"""Bytes on the wire beside a payload: frame 4, WebSocket 6, TCP and IP 40."""


def parse_bandwidth(text: str) -> float | None:
    """``2Mbit`` -> bits per second; ``auto`` -> None, to be measured.

    Raises:
        UserError: it is neither.
    """
    if text == "auto":
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([kMG]?)bit", text)
    if found is None or not float(found[1]):
        raise UserError(
            f"bandwidth: expected bits per second as 500kbit, 2Mbit or 1Gbit, or auto; got {text!r}"
        )
    return float(found[1]) * UNITS[found[2]]


@dataclass(frozen=True)
class Trial:
    """What one way to code takes per row, in the mean."""

    bytes: float
    coding: float
    """Seconds to encode and decode."""

    def seconds(self, bandwidth: float) -> float:
        """With the wire, at so many bits per second."""
        return self.coding + 8 * (self.bytes + BESIDE) / bandwidth


@dataclass(frozen=True)
class Choice:
    """How a session is coded."""

    codec: Codec
    raw: bool
    why: str
    """In a line."""


def choose(
    codec: Codec,
    raw: Codec,
    rows: Sequence[np.ndarray],
    facts: FeatureFacts,
    bandwidth: float,
    budget: float,
    least: float | None = None,
    keeper: str = "",
) -> Choice:
    """The codec at a quality, or raw.

    Args:
        codec: at its own quality.
        raw: what is taken instead where it is faster.
        rows: features (N, C, H, W) that stand for those to come; a few are tried.
        facts: of their kind.
        bandwidth: bits per second.
        budget: seconds that encoding, wire and decoding of a row may take.
        least: quality below which the codec is not used; its own by default.
        keeper: who says so, told where the link asks for less.

    Raises:
        UserError: the codec has no quality of at least that.
    """
    trials = [*rows[-FRAMES:]]

    @cache
    def tried(quality: float | None) -> Trial:
        tuned = codec if quality is None else codec.at_quality(quality)
        return try_codec(tuned, trials, facts)

    low = codec.quality if least is None else least
    ladder = [each for each in codec.qualities if low is None or each >= low]
    if least is not None and not ladder:
        most = max(codec.qualities, default="none: it has one rate")
        raise UserError(f"min_quality: {least:g} is above the codec's highest, {most}")
    start = ladder[0] if ladder else None
    plain = try_codec(raw, trials, facts)
    link = f"{bandwidth / 1e6:.4g} Mbit/s"
    if plain.seconds(bandwidth) <= tried(start).seconds(bandwidth):
        return Choice(
            raw, True, _tell(link, "raw bfloat16 is faster", plain, tried(start), bandwidth)
        )
    below, above = 0, len(ladder)
    while above - below > 1:  # ladder[below] keeps the budget, or is the least one
        middle = (below + above) // 2
        taken = tried(ladder[middle]).seconds(bandwidth)
        if taken <= budget and taken <= plain.seconds(bandwidth):
            below = middle
        else:
            above = middle
    best = ladder[below] if ladder else None
    name = "the codec" if best is None else f"quality {best:g}"
    chosen = codec if best is None else codec.at_quality(best)
    why = _tell(link, name, tried(best), plain, bandwidth)
    if keeper and below == 0 and tried(best).seconds(bandwidth) > budget:
        why += f"; the link asks for less, which {keeper} does not allow"
    return Choice(chosen, False, why)


def try_codec(codec: Codec, rows: Sequence[np.ndarray], facts: FeatureFacts) -> Trial:
    """Code rows of a kind as frames, one after the other; the time is the median's."""
    sizes, seconds = [], []
    for number, x in enumerate([rows[0], *rows]):  # the first one compiles, and does not count
        start = time.perf_counter()
        setting, payload = codec.encode_rows(x, facts.kind)
        codec.decode_rows(setting, payload, facts, x.shape)
        if number:
            seconds.append(time.perf_counter() - start)
            sizes.append(len(payload))
    return Trial(float(np.mean(sizes)), float(np.median(seconds)))


def _tell(link: str, name: str, chosen: Trial, other: Trial, bandwidth: float) -> str:
    taken, otherwise = (1000 * trial.seconds(bandwidth) for trial in (chosen, other))
    return (
        f"link {link}: {name}, {chosen.bytes:.4g} bytes and {taken:.3g} ms per row; "
        f"otherwise {other.bytes:.4g} bytes and {otherwise:.3g} ms"
    )
