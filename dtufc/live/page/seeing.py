"""The machines that see: a mask, a depth or a class of a picture."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import functional as vision

from dtufc.live.page.pictures import (
    brightness,
    class_colours,
    colour_depth,
    data_uri,
    fit,
    hex_colour,
    read_posted,
)
from dtufc.live.page.work import Distance, Given, Work
from dtufc.live.refusals import Refusal
from dtufc.live.single import NAME, of_size
from dtufc.machines.dinov2.halves import patches
from dtufc.machines.machine import Sample
from dtufc.machines.sources.source import LabelledPicture
from dtufc.machines.tiny.world import CLASSES

RANKED = 5
"""Classes that are shown."""
GENERATED = ("world", "plain_world")
"""Sources whose pictures are drawn at the network's size, and whose classes are the world's."""


class Seeing(Work):
    """What takes a picture."""

    takes = "picture"

    def read(self, data: bytes) -> Given:
        return self.given(read_posted(data, self.limits.pixels))

    def given(self, image: Image.Image) -> Given:
        """A posted picture as an input."""
        raise NotImplementedError

    def picture_of(self, sample: Sample) -> np.ndarray:
        return sample.source.rgb()

    def offer(self, sample: Sample) -> Given:
        title = f"Sample {sample.name}"
        return Given(sample, title, {"picture": data_uri(self.picture_of(sample))})


class Segmenting(Seeing):
    """DINOv2 with a head that tells the class of each patch."""

    asks = "tells the class of every pixel"
    distance = Distance("Pixels of another class", "%")

    def given(self, image: Image.Image) -> Given:
        rgb = np.asarray(image)
        sample = of_size(self.machine, rgb, *rgb.shape[:2])
        return Given(sample, "Your picture", {"picture": data_uri(rgb)})

    def answer(self, given: Given, feature: np.ndarray, codec: Any) -> np.ndarray:
        return self.machine.predict(given.sample, feature)

    def measure(self, answer: np.ndarray, uncoded: np.ndarray) -> float:
        return 100 * float((answer != uncoded).mean())

    def show(self, answer: np.ndarray, uncoded: np.ndarray) -> dict[str, Any]:
        names = self.machine.options.classes
        colours = class_colours(len(names))
        there = np.union1d(answer, uncoded)
        return {
            "kind": "picture",
            "picture": data_uri(colours[answer]),
            "difference": data_uri(255 * (answer != uncoded).astype(np.uint8)),
            "legend": [{"name": names[k], "colour": hex_colour(colours[k])} for k in there],
            "words": f"{100 - self.measure(answer, uncoded):.1f} % of the pixels as uncoded",
        }

    def grid(self, given: Given) -> tuple[int, int]:
        # crops of a padded square; a picture smaller than that has one crop of its own size
        import mmcv

        height, width = self.machine.mask(given.sample).shape
        fitted = mmcv.rescale_size((width, height), tuple(self.machine.options.resize))[::-1]
        return patches(tuple(min(side, self.machine.options.crop) for side in fitted))

    def panels(self, count: int) -> list[str]:
        return [f"crop {n + 1} of {count}" if count > 1 else "" for n in range(count)]


class Measuring(Seeing):
    """DINOv2 with a head that tells the depth."""

    asks = "tells how far every pixel is"
    distance = Distance("Error of the depth, RMS", "m")

    def given(self, image: Image.Image) -> Given:
        rgb = fit(image, *self._size())
        sample = of_size(self.machine, rgb, *rgb.shape[:2])
        return Given(sample, "Your picture", {"picture": data_uri(rgb)})

    def _size(self) -> tuple[int, int]:
        """Height and width of the samples: a depth head's feature is of one size."""
        try:
            return self.machine.samples("test")[0].source.rgb().shape[:2]
        except FileNotFoundError as error:
            raise Refusal("frame", "no sample is here, whose size a picture must have") from error

    def answer(self, given: Given, feature: np.ndarray, codec: Any) -> np.ndarray:
        return self.machine.predict(given.sample, feature)

    def measure(self, answer: np.ndarray, uncoded: np.ndarray) -> float:
        return float(np.sqrt(np.mean((answer.astype(np.float64) - uncoded) ** 2)))

    def show(self, answer: np.ndarray, uncoded: np.ndarray) -> dict[str, Any]:
        ends = float(uncoded.min()), float(uncoded.max())
        far = np.abs(answer - uncoded)
        return {
            "kind": "picture",
            "picture": data_uri(colour_depth(answer, *ends)),
            "difference": data_uri(brightness(far, max(0.1 * ends[1], 1e-6))),
            "scale": {"low": f"{ends[0]:.2g} m", "high": f"{ends[1]:.2g} m"},
            "words": f"{100 * self.measure(answer, uncoded):.3g} cm from uncoded, RMS",
        }

    def grid(self, given: Given) -> tuple[int, int]:
        return patches(given.sample.source.depth().shape)

    def panels(self, count: int) -> list[str]:
        layers = len(self.machine.sent)
        views = ["", ", mirrored"][: -(-count // layers)]
        blocks = [f"block {block + 1}" for block in self.machine.sent]
        return [f"{block}{view}" for view in views for block in blocks]


class Naming(Seeing):
    """What tells the class of a picture; answers are log-probabilities, (classes,)."""

    asks = "tells what the picture shows"
    distance = Distance("KL divergence of the classes", "nats")

    def logits(self, given: Given, feature: np.ndarray) -> torch.Tensor:
        """(1, classes)."""
        raise NotImplementedError

    def picture_of(self, sample: Sample) -> np.ndarray:
        options = self.machine.options
        return sample.source.rgb(options.resize, options.crop)

    def offer(self, sample: Sample) -> Given:
        shown = {"picture": data_uri(self.picture_of(sample))}
        return Given(sample, f"Sample {sample.name}: {self.name_of(sample.label)}", shown)

    def given(self, image: Image.Image) -> Given:
        sample = Sample(NAME, LabelledPicture(NAME, 0, partial(self._square, image)), 0)
        return Given(sample, "Your picture", {"picture": data_uri(self.picture_of(sample))})

    def _square(self, image: Image.Image, resize: int, crop: int, interpolation: str = "bilinear"):
        """As :mod:`dtufc.machines.sources.imagenet` does; of a network of the world, all of the centre's
        square."""
        size = crop if self.machine.options.source in GENERATED else resize
        image = vision.resize(image, size, vision.InterpolationMode(interpolation))
        return np.array(vision.center_crop(image, [crop, crop]))

    def name_of(self, label: int) -> str:
        """A class in words, where there are any."""
        is_world = self.machine.options.source in GENERATED
        return CLASSES[label] if is_world and label < len(CLASSES) else f"class {label}"

    @torch.inference_mode()
    def answer(self, given: Given, feature: np.ndarray, codec: Any) -> np.ndarray:
        logits = self.logits(given, feature)[0]
        return logits.double().log_softmax(-1).cpu().numpy()

    def measure(self, answer: np.ndarray, uncoded: np.ndarray) -> float:
        return divergence(answer, uncoded)

    def show(self, answer: np.ndarray, uncoded: np.ndarray) -> dict[str, Any]:
        best, before = int(answer.argmax()), int(uncoded.argmax())
        alike = "as uncoded" if best == before else f"uncoded: {self.name_of(before)}"
        return {
            "kind": "ranking",
            "bars": ranking(answer, uncoded, self.name_of),
            "words": f"{self.name_of(best)}, {100 * np.exp(answer[best]):.3g} %; {alike}",
        }


class DinoNaming(Naming):
    def logits(self, given: Given, feature: np.ndarray) -> torch.Tensor:
        grid = self.grid(given)
        return self.machine.back(self.machine.tokens(given.sample, feature, grid), grid)

    def grid(self, given: Given) -> tuple[int, int]:
        return patches((self.machine.options.crop,) * 2)

    def panels(self, count: int) -> list[str]:
        blocks = self.machine.sent
        return [f"block {block + 1}" if count > 1 else "" for block in blocks]


class ResNetNaming(Naming):
    def logits(self, given: Given, feature: np.ndarray) -> torch.Tensor:
        options = self.machine.options
        return self.machine.back(
            torch.from_numpy(feature).to(options.torch_device, options.torch_dtype)
        )


def divergence(answer: np.ndarray, uncoded: np.ndarray) -> float:
    """Mean KL divergence from the uncoded distributions, nats; both are log-probabilities (..., n)."""
    each = np.sum(np.exp(uncoded) * (uncoded - answer), axis=-1)
    return max(0.0, float(np.mean(each)))


def ranking(answer: np.ndarray, uncoded: np.ndarray, name_of: Any) -> list[dict[str, Any]]:
    """The likeliest of both, with both probabilities; the uncoded order."""
    ranked: Sequence[int] = [*np.argsort(-uncoded)[:RANKED]]
    ranked += [k for k in np.argsort(-answer)[: RANKED - 2] if k not in ranked]
    sides = {"decoded": np.exp(answer), "uncoded": np.exp(uncoded)}
    return [
        {"name": name_of(int(k)), **{side: float(p[k]) for side, p in sides.items()}}
        for k in ranked
    ]
