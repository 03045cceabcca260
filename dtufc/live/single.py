"""What is computed at once: a picture or a caption in, one answer out; the halves of each machine.

The back half gets the feature, and beside it what its answer must fit: the size of the picture that is
segmented, or whose depth is asked for.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dtufc.errors import UserError
from dtufc.live.refusals import Refusal
from dtufc.machines.machine import Sample

NAME = "request"
"""Name of the sample."""


def is_language(machine: Any) -> bool:
    """Whether the machine has sessions: a language model."""
    return _room(machine) == "llama3"


def _room(machine: Any) -> str:
    """Room of the machine's code, as in :data:`dtufc.machines.opening.CODE`."""
    return type(machine).__module__.split(".")[2]


def sample_for_front(
    machine: Any, picture: Path | None, caption: str | None, place: int = 0
) -> tuple[Sample, dict[str, str]]:
    """The input of the front half, and what the back half is told.

    Args:
        picture: of machines that see.
        caption: of machines that paint.
        place: number of the caption, which seeds the noise.

    Raises:
        FileNotFoundError, UserError: the machine takes something else, or the picture is none.
    """
    room = _room(machine)
    if (picture is None) == (room != "sd3") or (caption is None) == (room == "sd3"):
        raise UserError(f"{room}: takes " + ("--caption" if room == "sd3" else "--picture"))
    if room == "sd3":
        return Sample(NAME, (caption, place), caption), {}
    if tells_class(machine):
        from dtufc.machines.sources.imagenet import read_rgb as read_square
        from dtufc.machines.sources.source import LabelledPicture

        return Sample(NAME, LabelledPicture(NAME, 0, partial(read_square, picture)), 0), {}
    from dtufc.machines.sources.voc import read_rgb

    rgb = read_rgb(picture)
    height, width = rgb.shape[:2]
    told = {"height": str(height), "width": str(width)}
    return of_size(machine, rgb, height, width), told


def sample_for_back(machine: Any, told: Mapping[str, str], pixels: int) -> Sample:
    """What the back half must know of the input.

    Args:
        pixels: of a picture, at most.

    Raises:
        Refusal: frame or size, where the picture's size is not told, or is too large.
    """
    if _room(machine) != "dinov2" or tells_class(machine):
        return Sample(NAME, None, 0)
    sides = [told.get(key, "") for key in ("height", "width")]
    if not all(side.isascii() and side.isdigit() and 0 < len(side) < 7 for side in sides):
        raise Refusal("frame", f"height, width: expected the picture's pixels, got {sides}")
    height, width = map(int, sides)
    if not 0 < height * width <= pixels:
        raise Refusal("size", f"a picture of {height} x {width} pixels, {pixels} at most")
    return of_size(machine, None, height, width)


def tells_class(machine: Any) -> bool:
    """Whether the answer is the class of a picture."""
    return type(machine).__name__ in ("ResNetMachine", "ClsMachine")


def of_size(machine: Any, rgb: np.ndarray | None, height: int, width: int) -> Sample:
    """A picture whose mask or depth is asked for; of these, which nobody has, the size is known."""
    from dtufc.machines.sources.source import DepthPicture, MaskedPicture

    is_depth = type(machine).__name__ == "DptMachine"
    unknown = np.broadcast_to(np.float32(0) if is_depth else np.uint8(0), (height, width))
    kind = DepthPicture if is_depth else MaskedPicture
    return Sample(NAME, kind(NAME, lambda: rgb, lambda: unknown), None)


def answer(machine: Any, sample: Sample, feature: np.ndarray) -> dict[str, Any]:
    """The back half's answer, as JSON: a token, a class's number, or a PNG in base64: a mask, a depth as
    grey, where near is bright, or what was painted."""
    if is_language(machine):
        from dtufc.live.talk import Talk

        token = Talk(machine).step(feature)
        return {"id": token.id, "text": token.text}
    return show(machine, machine.predict(sample, feature))


def answers(
    machine: Any, samples: Sequence[Sample], features: Sequence[np.ndarray]
) -> list[dict[str, Any]]:
    """The back half's answers to features that fit into a batch."""
    return [show(machine, each) for each in machine.predict_batch(samples, features)]


def show(machine: Any, prediction: Any) -> dict[str, Any]:
    """A prediction as JSON."""
    picture = machine.picture_of(prediction)
    if picture is None:
        return {"prediction": prediction}
    png = base64.b64encode(write_png(picture)).decode()
    return {"shape": list(picture.shape), "png": png}


def write_png(picture: np.ndarray) -> bytes:
    """(H, W) or (H, W, 3) uint8 -> a PNG file."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()
