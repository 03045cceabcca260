"""The machine that paints: a picture of a caption."""

from typing import Any

import numpy as np

from dtufc.live.page.pictures import brightness, data_uri
from dtufc.live.page.work import Distance, Given, Work
from dtufc.live.refusals import Refusal
from dtufc.live.single import NAME
from dtufc.machines.machine import Sample

LONGEST = 300
"""Characters of a caption."""
FULL = 64
"""Grey levels of difference that are shown white."""


class Painting(Work):
    """Stable Diffusion 3."""

    takes = "caption"
    asks = "paints a caption"
    distance = Distance("Error of the picture, RMS", "grey levels")

    def offer(self, sample: Sample) -> Given:
        caption = sample.source[0]
        return Given(sample, caption, {"text": caption})

    def read(self, data: bytes) -> Given:
        caption = read_text(data, LONGEST)
        return Given(Sample(NAME, (caption, 0), caption), caption, {"text": caption})

    def answer(self, given: Given, feature: np.ndarray, codec: Any) -> np.ndarray:
        return self.machine.predict(given.sample, feature)

    def measure(self, answer: np.ndarray, uncoded: np.ndarray) -> float:
        return float(np.sqrt(np.mean((answer.astype(np.float64) - uncoded) ** 2)))

    def show(self, answer: np.ndarray, uncoded: np.ndarray) -> dict[str, Any]:
        rms = self.measure(answer, uncoded)
        psnr = f"{20 * np.log10(255 / rms):.1f} dB from uncoded" if rms else "as uncoded"
        far = np.abs(answer.astype(np.int16) - uncoded).max(axis=-1)
        return {
            "kind": "picture",
            "picture": data_uri(answer),
            "difference": data_uri(brightness(far, FULL)),
            "words": psnr,
        }


def read_text(data: bytes, longest: int) -> str:
    """Posted UTF-8 -> text without white space around it.

    Raises:
        Refusal: frame where it is none; size where it is too long.
    """
    try:
        text = data.decode().strip()
    except UnicodeDecodeError as error:
        raise Refusal("frame", "expected text in UTF-8") from error
    if not text:
        raise Refusal("frame", "expected at least one character")
    if len(text) > longest:
        raise Refusal("size", f"{len(text)} characters, {longest} at most")
    return text
