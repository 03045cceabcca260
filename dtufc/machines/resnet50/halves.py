"""A ResNet in two halves: the machine of :mod:`dtufc.machines.resnet50.cls`."""

from collections.abc import Hashable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.transforms import functional as vision
from transformers import ResNetForImageClassification

from dtufc.errors import UserError
from dtufc.machines.checkpoints import (
    checkpoint_files,
    find_checkpoint,
    find_folder,
    loading,
    weights_digest,
)
from dtufc.machines.machine import Machine, Sample, Score, Split, score_top1
from dtufc.machines.resnet50.cls import ResNetOptions
from dtufc.machines.sources.source import LabelledPictures

TRANSFORMERS_HELP = "It is a folder with config.json and model.safetensors"
TORCHVISION_HELP = (
    "torchvision's ResNet50 weights are at "
    "https://download.pytorch.org/models/resnet50-0676ba61.pth (IMAGENET1K_V1); "
    "--checkpoint null downloads them"
)


class ResNetMachine(Machine):
    """A ResNet in two halves; each is built when it is first used."""

    def __init__(self, options: ResNetOptions):
        self.options = options

    @cached_property
    def source(self) -> LabelledPictures:
        return self.options.open_source()

    @cached_property
    def front(self) -> nn.Module:
        """(1, 3, crop, crop) -> (1, C, H, W)."""
        return self._half(front=True)

    @cached_property
    def back(self) -> nn.Module:
        """(1, C, H, W) -> logits (1, classes)."""
        return self._half(front=False)

    def _half(self, front: bool) -> nn.Module:
        all_stages = stages(load_network(self.options))
        names = [name for name, _ in all_stages]
        if self.options.split not in names[:-1]:
            raise UserError(f"split: {self.options.split!r} is none of {names[:-1]}")
        at = names.index(self.options.split) + 1
        chosen = all_stages[:at] if front else all_stages[at:]
        half = nn.Sequential(*(module for _, module in chosen)).eval()
        return half.to(self.options.torch_device, self.options.torch_dtype)

    def samples(self, split: Split) -> list[Sample]:
        return [Sample(p.name, p, p.label) for p in self.source.labelled_pictures(split)]

    def origin(self) -> dict[str, Any]:
        options = self.options
        keys = ("library", "split", "source", "seed", "resize", "crop", "mean", "std")
        known = {key: getattr(options, key) for key in keys}
        return known | {"dtype": options.origin_dtype, "weights": weights_id(options)}

    def inputs(self) -> list[Path]:
        """The list with the labels, and the weights; those that torchvision downloads have a name
        among the settings."""
        return [
            *self.source.inputs("test"),
            *checkpoint_files(lambda: find_weights(self.options)),
        ]

    def picture(self, sample: Sample) -> Tensor:
        """The network's input, (1, 3, crop, crop) float32, normalised.

        Raises:
            FileNotFoundError: the picture is not there. Only extraction needs pictures.
        """
        options = self.options
        rgb = vision.to_tensor(sample.source.rgb(options.resize, options.crop))  # 0..1
        return vision.normalize(rgb, options.mean, options.std)[None]

    @torch.inference_mode()
    def extract(self, sample: Sample) -> np.ndarray:
        picture = self.picture(sample).to(self.options.torch_device, self.options.torch_dtype)
        return self.front(picture).float().cpu().numpy()

    def predict(self, sample: Sample, feature: np.ndarray) -> int:
        return self.predict_batch([sample], [feature])[0]

    def fits(self, sample: Sample, feature: np.ndarray) -> Hashable:
        return feature.shape

    @torch.inference_mode()
    def predict_batch(self, samples: Sequence[Sample], features: Sequence[np.ndarray]) -> list[int]:
        x = torch.from_numpy(np.concatenate(features))
        x = x.to(self.options.torch_device, self.options.torch_dtype)
        logits = self.back(x).split([len(feature) for feature in features])  # (1, classes) each
        return [label_of(*pair) for pair in zip(samples, logits, strict=True)]

    def score(self, samples: Sequence[Sample], predictions: Iterable[Any]) -> Score:
        """Top-1 accuracy, 0..1."""
        return score_top1(samples, predictions)


def label_of(sample: Sample, logits: Tensor) -> int:
    """Logits (1, classes) -> the likeliest class.

    Raises:
        UserError: the sample's label is none of the network's.
    """
    if sample.label >= logits.shape[1]:
        raise UserError(
            f"{sample.name}: label {sample.label}, the network knows 0..{logits.shape[1] - 1}"
        )
    return int(logits.argmax())


def stages(network: nn.Module) -> list[tuple[str, nn.Module]]:
    """A ResNet as its stages in order, by name; run one after the other they are the network."""
    if isinstance(network, ResNetForImageClassification):
        body = network.resnet
        named = [("stem", body.embedder)]
        named += [(f"layer{i}", stage) for i, stage in enumerate(body.encoder.stages, start=1)]
        return [*named, ("head", nn.Sequential(body.pooler, network.classifier))]
    named = [("stem", nn.Sequential(network.conv1, network.bn1, network.relu, network.maxpool))]
    named += [(f"layer{i}", getattr(network, f"layer{i}")) for i in (1, 2, 3, 4)]
    return [*named, ("head", nn.Sequential(network.avgpool, nn.Flatten(1), network.fc))]


def load_network(options: ResNetOptions) -> nn.Module:
    """The network with its weights, float32, in eval mode.

    Raises:
        FileNotFoundError: the checkpoint is not there; the message says where it is looked for.
        UserError: it is no checkpoint of this network.
    """
    path = find_weights(options)
    if path is None:
        return torchvision.models.resnet50(weights=options.weights).eval()
    if options.library == "transformers":
        with loading(path):
            network = ResNetForImageClassification.from_pretrained(
                path, local_files_only=True, dtype=torch.float32
            )
        return network.eval()
    network = torchvision.models.resnet50()
    with loading(path, "a state dict of torchvision's resnet50"):
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
        network.load_state_dict(state)
    return network.eval()


def find_weights(options: ResNetOptions) -> Path | None:
    """The file or folder of the checkpoint; None where torchvision downloads what ``weights`` names.

    Raises:
        FileNotFoundError, UserError: as :func:`dtufc.machines.checkpoints.find_checkpoint`.
    """
    if options.library == "transformers":
        return find_folder(options, TRANSFORMERS_HELP)
    if options.checkpoint is None:
        return None
    return find_checkpoint(options, options.checkpoint, TORCHVISION_HELP)


def weights_id(options: ResNetOptions) -> str:
    """What names the weights: the digest of the checkpoint's files, or torchvision's name."""
    path = find_weights(options)
    return options.weights if path is None else weights_digest(path)
