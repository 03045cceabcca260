"""Seconds end to end over a link, and the break-even bandwidth. No script of its own.

With the stages front half F, encoder E, wire W = 8 B / R, decoder D and back half K, a feature takes::

    serial     F + E + W + D + K           one feature, one stage after the other
    pipelined  max(F, E, W, D, K)          per feature, where features follow one another

B are the bytes on the wire, R is the bandwidth in bits per second. A codec's break-even against raw
features (B0, E0, D0) is the R below which it takes less time::

    serial     8 (B0 - B) / (E + D - E0 - D0)
    pipelined  8 B0 / max(F, E, D, K)      beyond it something else than the raw wire is the slowest

The link's delay is the same for both and left out.
"""

import math
from dataclasses import dataclass

HEADERS = 40
"""Bytes of TCP and IP of a packet."""
PAYLOAD = 1460
"""Bytes that a packet carries."""
FRAMING = 10
"""Bytes beside a message: of the stream's frame 4, of the WebSocket 6."""


def on_wire(size: float) -> float:
    """Bytes of a message -> bytes that cross the link."""
    message = size + FRAMING
    return message + HEADERS * math.ceil(message / PAYLOAD)


@dataclass(frozen=True)
class Stages:
    """Seconds of each stage but the wire."""

    front: float
    encode: float
    decode: float
    back: float

    @property
    def slowest(self) -> float:
        return max(self.front, self.encode, self.decode, self.back)

    def serial(self, wire_bytes: float, rate: float) -> float:
        """Seconds of one feature at ``rate`` bits per second."""
        return self.front + self.encode + 8 * wire_bytes / rate + self.decode + self.back

    def pipelined(self, wire_bytes: float, rate: float) -> float:
        """Seconds per feature where the stages of several overlap."""
        return max(self.slowest, 8 * wire_bytes / rate)


def serial_break_even(coded: Stages, size: float, raw: Stages, raw_size: float) -> float:
    """Bits per second below which the codec is faster, one feature at a time.

    Args:
        size, raw_size: bytes on the wire.

    Returns:
        0 where it saves no bytes, infinity where it takes no more time than raw.
    """
    saved = 8 * (raw_size - size)
    spent = coded.encode + coded.decode - raw.encode - raw.decode
    if saved <= 0:
        return 0.0
    return saved / spent if spent > 0 else math.inf


def pipelined_break_even(coded: Stages, size: float, raw: Stages, raw_size: float) -> float:
    """The same where stages overlap. Up to this bandwidth the raw wire is slower than every stage of the
    coded way; beyond it the codec, or a half of the model, is what takes the time."""
    if size >= raw_size:
        return 0.0
    return 8 * raw_size / coded.slowest if coded.slowest >= raw.slowest else math.inf
