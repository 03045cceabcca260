"""How good pictures are: do they show what the caption says, and how far are they from others.

CLIP score (Hessel et al., arXiv 2104.08718) and FID in Inception features (Heusel et al.,
arXiv 1706.08500) for photographs; for the generated world the tiny ResNet stands in for both.
"""

from abc import ABC, abstractmethod
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from transformers import CLIPModel, CLIPProcessor, ResNetForImageClassification

from dtufc.machines.checkpoints import checkpoint_files, find_checkpoint, loading
from dtufc.machines.machine import Sample
from dtufc.machines.options import ModelOptions

CLIP_HELP = (
    "It is a folder in transformers' format of https://huggingface.co/openai/clip-vit-base-patch16"
)
INCEPTION_HELP = (
    "It is https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
    "pt_inception-2015-12-05-6726825d.pth; --fid false does without"
)
RESNET_HELP = "It is a folder of a ResNet in transformers' format"
RESNET_SIDE = 112


class Judge(ABC):
    """Compares a picture with what was asked for."""

    metric: str
    """Key of the rows that is averaged; more is better."""
    what: str
    """What its checkpoint is, for the error."""
    others: tuple[str, ...] = ()
    """Patterns of files that it reads of its checkpoint beside weights and config.json."""

    @classmethod
    def folder(cls, options: ModelOptions) -> Path:
        """The folder of its checkpoint.

        Raises:
            FileNotFoundError: not there; the message says where to put what.
        """
        return find_checkpoint(options, options.judge_checkpoint, cls.what)

    @classmethod
    def inputs(cls, options: ModelOptions) -> list[Path]:
        """The files that decide its rows, those that are there."""
        return checkpoint_files(partial(cls.folder, options), *cls.others)

    @abstractmethod
    def row(self, sample: Sample, picture: np.ndarray) -> dict[str, Any]:
        """One sample and its picture, (H, W, 3) uint8."""


class ClipJudge(Judge):
    """100 times the cosine of a CLIP model's embeddings of picture and caption, at least 0."""

    metric = "clip_score"
    what = CLIP_HELP
    others = ("*.bin", "*.json", "*.txt")

    def __init__(self, options: ModelOptions):
        folder = self.folder(options)
        with loading(folder):
            self.model = CLIPModel.from_pretrained(folder, local_files_only=True).eval()
            self.processor = CLIPProcessor.from_pretrained(folder, local_files_only=True)
        self.model.to(options.torch_device)

    @torch.inference_mode()
    def row(self, sample: Sample, picture: np.ndarray) -> dict[str, Any]:
        inputs = self.processor(
            text=[sample.label], images=[picture], return_tensors="pt", truncation=True
        )
        out = self.model(**inputs.to(self.model.device))
        cosine = nn.functional.cosine_similarity(out.image_embeds, out.text_embeds)
        return {"caption": sample.label, "clip_score": max(0.0, 100 * cosine.item())}


class ResNetFeatures(nn.Module):
    """Pictures (B, 3, H, W) uint8 -> pooled features (B, num_features) of the tiny ResNet."""

    def __init__(self, network: ResNetForImageClassification):
        super().__init__()
        self.network = network
        self.num_features = network.config.hidden_sizes[-1]

    def forward(self, pictures: Tensor) -> Tensor:
        x = (pictures.float() / 255 - 0.5) / 0.25  # as the tiny ResNet was trained
        size = (RESNET_SIDE, RESNET_SIDE)
        if x.shape[2:] != size:
            x = nn.functional.interpolate(x, size, mode="bilinear", antialias=True)
        return self.network.resnet(x).pooler_output.flatten(1)


class ResNetJudge(Judge):
    """Whether a classifier of the world sees the shape that the caption names."""

    metric = "caption_accuracy"
    what = RESNET_HELP

    def __init__(self, options: ModelOptions):
        folder = self.folder(options)
        with loading(folder):
            network = ResNetForImageClassification.from_pretrained(
                folder, local_files_only=True, dtype=torch.float32
            )
        self.network = ResNetFeatures(network.eval()).to(options.torch_device)

    @torch.inference_mode()
    def row(self, sample: Sample, picture: np.ndarray) -> dict[str, Any]:
        pixels = torch.from_numpy(picture).permute(2, 0, 1)[None]
        features = self.network(pixels.to(self.network.network.device))
        seen = int(self.network.network.classifier(features).argmax())
        return {"label": sample.label, "seen": seen, self.metric: int(seen == sample.label)}


class Distance:
    """FID between pictures and a reference that is given once.

    Args:
        features: torchmetrics' name of the Inception layer, or a module (B, 3, H, W) uint8 -> (B, D).
    """

    def __init__(self, features: int | nn.Module, options: ModelOptions, **arguments: Any):
        self._metric = FrechetInceptionDistance(features, reset_real_features=False, **arguments)
        self._metric = self._metric.to(options.torch_device)
        self._device = options.torch_device

    def add_reference(self, pictures: np.ndarray) -> None:
        """Pictures (B, H, W, 3) uint8 to compare with."""
        self._update(pictures, real=True)

    def add(self, pictures: np.ndarray) -> None:
        """Pictures (B, H, W, 3) uint8 to compare."""
        self._update(pictures, real=False)

    @torch.inference_mode()
    def _update(self, pictures: np.ndarray, real: bool) -> None:
        pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2)
        self._metric.update(pixels.to(self._device), real=real)

    def value(self) -> float:
        """The FID; forgets the compared pictures and keeps the reference."""
        value = self._metric.compute().item()
        self._metric.reset()
        return max(0.0, value)


def inception_distance(options: ModelOptions) -> Distance:
    """FID in the 2048 features of torch-fidelity's Inception, which resizes to 299 x 299 itself."""
    weights = find_inception(options)
    with loading(weights, "the Inception weights of torch-fidelity"):
        return Distance(2048, options, feature_extractor_weights_path=str(weights))


def find_inception(options: ModelOptions) -> Path:
    """The file of the Inception weights.

    Raises:
        FileNotFoundError: not there; the message says where to put what.
    """
    return find_checkpoint(options, options.inception, INCEPTION_HELP)
