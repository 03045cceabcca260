"""Pictures in and out: what a browser posts, and PNGs as data URIs."""

import base64
import colorsys
import io
import warnings

import numpy as np
from PIL import Image, ImageOps

from dtufc.live.refusals import Refusal
from dtufc.live.single import write_png

FORMATS = ("PNG", "JPEG", "WEBP")
LONGEST = 640
"""Side that a posted picture is fitted into, pixels."""
SHORTEST, RATIO = 16, 4
"""Shortest side of a posted picture, and longest side over it."""
DEPTHS = ("#440154", "#46327e", "#365c8d", "#277f8e", "#1fa187", "#4ac16d", "#a0da39", "#fde725")
"""Stops of viridis, from near to far."""


def read_posted(data: bytes, pixels: int) -> Image.Image:
    """A posted file -> RGB, upright, at most LONGEST pixels long.

    Args:
        pixels: that it may have; the header is asked before anything is decoded.

    Raises:
        Refusal: frame where it is no picture; size where it is too large.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise Refusal("size", f"a picture of more than {pixels} pixels") from error
    except Exception as error:
        raise Refusal("frame", f"expected a picture, one of {', '.join(FORMATS)}") from error
    with image:
        if image.width * image.height > pixels:
            raise Refusal("size", f"a picture of {image.width} x {image.height}, {pixels} at most")
        if min(image.size) < SHORTEST or max(image.size) > RATIO * min(image.size):
            raise Refusal(
                "frame",
                f"expected a picture of at least {SHORTEST} pixels each way, at most {RATIO} times as "
                f"long as wide, got {image.width} x {image.height}",
            )
        try:
            upright = ImageOps.exif_transpose(image).convert("RGB")
        except Exception as error:  # whatever the decoder says of the file
            raise Refusal("frame", "the picture is damaged") from error
    upright.thumbnail((LONGEST, LONGEST))
    return upright


def fit(image: Image.Image, height: int, width: int) -> np.ndarray:
    """The picture's centre at this size, (height, width, 3) uint8."""
    return np.asarray(ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC))


def data_uri(picture: np.ndarray) -> str:
    """(H, W) or (H, W, 3) uint8 -> a PNG as a data URI."""
    return f"data:image/png;base64,{base64.b64encode(write_png(picture)).decode()}"


def class_colours(count: int) -> np.ndarray:
    """A colour for each class, (count, 3) uint8: the first is dark, the others are far apart."""
    hues = [k * 0.618034 % 1 for k in range(count - 1)]  # the golden ratio spreads any number
    found = [colorsys.hls_to_rgb(hue, 0.6 - 0.1 * (k % 2), 0.62) for k, hue in enumerate(hues)]
    return (255 * np.array([(0.16, 0.19, 0.24), *found])).round().astype(np.uint8)


def hex_colour(rgb: np.ndarray) -> str:
    return "#" + bytes(rgb).hex()


def colour_depth(depth: np.ndarray, nearest: float, farthest: float) -> np.ndarray:
    """(H, W) metres -> (H, W, 3) uint8, near is dark."""
    stops = np.array([list(bytes.fromhex(stop[1:])) for stop in DEPTHS], np.float64)
    place = np.clip((depth - nearest) / max(farthest - nearest, 1e-9), 0, 1) * (len(stops) - 1)
    planes = [np.interp(place, np.arange(len(stops)), stops[:, k]) for k in range(3)]
    return np.stack(planes, axis=-1).round().astype(np.uint8)


def brightness(difference: np.ndarray, most: float) -> np.ndarray:
    """(H, W) >= 0 -> (H, W) uint8, white from ``most`` on."""
    return (255 * np.clip(difference / most, 0, 1)).round().astype(np.uint8)
