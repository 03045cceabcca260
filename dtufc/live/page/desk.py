"""What the page works with: inputs that went through the front half, and the codec at any rate."""

import secrets
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np

from dtufc.codec import Codec
from dtufc.errors import UserError
from dtufc.feature import FeatureError
from dtufc.live.backend import Backend
from dtufc.live.page.errors import show_errors
from dtufc.live.page.work import Given, open_work
from dtufc.live.refusals import Refusal

KEPT, KEPT_BYTES = 32, 128 << 20
"""Inputs that are kept, and their memory; the one that was asked for longest ago is forgotten first."""
STEPS = 41
"""Positions of the slider, at most."""
RAW_BYTES = 2
"""Of a value as bfloat16."""


@dataclass(frozen=True)
class Kept:
    """An input behind the front half."""

    given: Given
    feature: np.ndarray
    uncoded: Any
    """The answer without coding."""

    @property
    def bytes(self) -> int:
        """Memory of the feature and the answer: an array, or a tuple of them."""
        answer = self.uncoded if isinstance(self.uncoded, tuple) else (self.uncoded,)
        return self.feature.nbytes + sum(each.nbytes for each in answer)


class Desk:
    """The page's side of a server; the one thread that computes calls it.

    Raises:
        UserError: the page does not know such a machine, or the machine is not all here.
    """

    def __init__(self, backend: Backend):
        self.backend, self.machine = backend, backend.machine
        self.codec: Codec = backend.codecs[0]
        self.work = open_work(self.machine, backend.limits)
        self.offers = self.work.offers()
        self.ladder = ladder(self.codec)
        self._kept: OrderedDict[str, Kept] = OrderedDict()

    def warm_up(self) -> None:
        """Load the front half before the first visitor comes."""
        _ = self.machine.front

    def facts(self) -> dict[str, Any]:
        """What the page shows before anything is asked."""
        own = self.codec.quality
        start = 0 if own is None else int(np.argmin(np.abs(np.array(self.ladder) - own)))
        return {
            "kind": self.backend.facts.kind,
            "codec": type(self.codec).__name__.removesuffix("Codec").lower(),
            "cut": self.backend.identity["split"],
            "takes": self.work.takes,
            "asks": self.work.asks,
            "distance": self.work.distance._asdict(),
            "error": "NMSE" if self.backend.facts.views.is_map else "error per token",
            "qualities": self.ladder,
            "start": start,
            "samples": [{"title": each.title, **self._small(each)} for each in self.offers],
            "bytes": self.backend.limits.frame_bytes,
        }

    def _small(self, given: Given) -> dict[str, Any]:
        """What a sample's button shows."""
        return {"picture": given.shown["picture"]} if "picture" in given.shown else {}

    def take(self, number: int | None, data: bytes) -> dict[str, Any]:
        """An input through the front half -> its name here, and the answer without coding.

        Args:
            number: of a sample; None takes what was posted.

        Raises:
            Refusal: there is no such sample, or it is no input of this machine.
        """
        if number is not None and not 0 <= number < len(self.offers):
            raise Refusal("frame", f"sample: expected 0 .. {len(self.offers) - 1}, got {number}")
        try:
            given = self.work.read(data) if number is None else self.offers[number]
            start = time.perf_counter()
            feature = self.work.extract(given)
            front = time.perf_counter() - start
            if why := self.backend.facts.mismatch(feature):
                raise Refusal("frame", why)
            if feature.size > self.backend.limits.points:
                raise Refusal("size", f"the feature has {feature.size} points")
            uncoded = self.work.answer(given, feature, None)
        except Refusal:
            raise
        except (FileNotFoundError, UserError) as error:
            raise Refusal("frame", str(error)) from error
        return {
            "input": self._keep(Kept(given, feature, uncoded)),
            "title": given.title,
            "shown": given.shown,
            "shape": list(feature.shape),
            "points": feature.size,
            "raw_bytes": RAW_BYTES * feature.size,
            "answer": self.work.show(uncoded, uncoded),
            "front_ms": round(1000 * front, 2),
        }

    def _keep(self, new: Kept) -> str:
        """Keep an input, and forget what is too much -> its name, which cannot be guessed."""
        name = secrets.token_urlsafe(12)
        self._kept[name] = new
        while len(self._kept) > 1 and (
            len(self._kept) > KEPT or sum(each.bytes for each in self._kept.values()) > KEPT_BYTES
        ):
            self._kept.popitem(last=False)
        return name

    def code(self, name: str, step: int) -> dict[str, Any]:
        """An input at a position of the slider -> bytes, errors and the answer.

        Raises:
            Refusal: gone where there is no such input; frame where there is no such position.
        """
        if name not in self._kept:
            raise Refusal("gone", "input: this one is not kept any more; send it again")
        if not 0 <= step < len(self.ladder):
            raise Refusal("frame", f"step: expected 0 .. {len(self.ladder) - 1}, got {step}")
        self._kept.move_to_end(name)
        kept = self._kept[name]
        quality = self.ladder[step]
        codec = self.codec if quality is None else self.codec.at_quality(quality)
        try:
            start = time.perf_counter()
            data = codec.encode(kept.feature, self.backend.facts.kind)
            middle = time.perf_counter()
            decoded = codec.decode(data)
            end = time.perf_counter()
            answer = self.work.answer(kept.given, decoded, codec)
        except FeatureError as error:
            raise Refusal("frame", str(error)) from error
        x = kept.feature.astype(np.float64)
        errors = show_errors(self.work, kept.given, kept.feature, decoded)
        return {
            "step": step,
            "quality": quality,
            "bytes": len(data),
            "bpfp": 8 * len(data) / x.size,
            "nmse": float(np.mean((decoded - x) ** 2) / max(x.var(), 1e-30)),
            "error": errors["mean"],
            "distance": self.work.measure(answer, kept.uncoded),
            "errors": errors,
            "answer": self.work.show(answer, kept.uncoded),
            "encode_ms": round(1000 * (middle - start), 2),
            "decode_ms": round(1000 * (end - middle), 2),
        }


def ladder(codec: Codec) -> list[float | None]:
    """Qualities that the slider takes, ascending; [None] of a codec with one rate."""
    known = list(codec.qualities)
    if not known:
        return [codec.quality]
    places = np.linspace(0, len(known) - 1, min(STEPS, len(known))).round().astype(int)
    return [float(known[place]) for place in places]
