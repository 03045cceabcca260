"""A DINOv3 in two halves: the machine of :mod:`dtufc.machines.dinov3.dinov3`."""

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DINOv3ViTModel

from dtufc.errors import UserError
from dtufc.machines.checkpoints import checkpoint_files, find_folder, loading, weights_digest
from dtufc.machines.dinov3.dinov3 import BlocksOptions
from dtufc.machines.machine import Sample, Score, Split, StateMachine, relative_error
from dtufc.states import State

HELP = (
    "It is a folder in transformers' format of a DINOv3 ViT, for example "
    "https://huggingface.co/facebook/dinov3-vit7b16-pretrain-lvd1689m; --hub ID downloads one"
)


class BlocksMachine(StateMachine):
    """The tokens after several blocks, and the blocks behind them."""

    def __init__(self, options: BlocksOptions):
        self.options = options

    @cached_property
    def source(self) -> Any:
        return self.options.open_source()

    @cached_property
    def folder(self) -> Path:
        return find_folder(self.options, HELP)

    @cached_property
    def model(self) -> DINOv3ViTModel:
        """All blocks; both halves run theirs."""
        with loading(self.folder):
            model = DINOv3ViTModel.from_pretrained(
                self.folder, dtype=self.options.torch_dtype, local_files_only=True
            )
        count = model.config.num_hidden_layers
        if self.options.blocks[-1] >= count:
            raise UserError(f"blocks: {self.options.blocks} of the model's {count} blocks")
        return model.eval().to(self.options.torch_device)

    def samples(self, split: Split) -> list[Sample]:
        return [Sample(p.name, p, p.label) for p in self.source.labelled_pictures(split)]

    def origin(self) -> dict[str, Any]:
        keys = ("source", "seed", "blocks", "resize", "crop", "mean", "std")
        known = {key: getattr(self.options, key) for key in keys}
        return known | {
            "dtype": self.options.origin_dtype, "weights": weights_digest(self.folder),
        }  # fmt: skip

    def inputs(self) -> list[Path]:
        return [*self.source.inputs("test"), *checkpoint_files(lambda: self.folder)]

    def pixels(self, sample: Sample) -> Tensor:
        """(1, 3, crop, crop), normalised."""
        options = self.options
        rgb = sample.source.rgb(options.resize, options.crop, "bicubic").astype(np.float32) / 255
        x = (rgb - np.array(options.mean, np.float32)) / np.array(options.std, np.float32)
        tensor = torch.from_numpy(x).permute(2, 0, 1)[None]
        return tensor.to(options.torch_device, options.torch_dtype)

    @property
    def names(self) -> list[str]:
        """Of the tensors, in the order of the blocks."""
        return [f"block{block}" for block in self.options.blocks]

    def run_blocks(self, x: Tensor, places: Any, first: int, last: int) -> list[Tensor]:
        """Tokens (1, tokens, width) after each of the blocks first .. last."""
        found = []
        for layer in self.model.model.layer[first : last + 1]:
            x = layer(x, position_embeddings=places)
            found.append(x)
        return found

    @torch.inference_mode()
    def extract(self, sample: Sample) -> dict[str, np.ndarray]:
        """block<b>: (1, 1, 1 + registers + patches, width), before the norm."""
        pixels = self.pixels(sample)
        tokens, places = self.model.embeddings(pixels), self.model.rope_embeddings(pixels)
        after = self.run_blocks(tokens, places, 0, self.options.blocks[-1])
        return {
            name: after[block][None].float().cpu().numpy()
            for name, block in zip(self.names, self.options.blocks, strict=True)
        }

    @torch.inference_mode()
    def respond(self, sample: Sample, state: State) -> Tensor:
        """What a head reads: normalised tokens after each of the blocks and the last one, (blocks,
        tokens, width) float32."""
        options, model = self.options, self.model
        tensors = [torch.from_numpy(state[name][0]) for name in self.names]  # (1, tokens, width)
        read = [x.to(options.torch_device, options.torch_dtype) for x in tensors]
        last = model.config.num_hidden_layers - 1
        if options.blocks[-1] < last:
            # places follow from the picture's size alone
            blank = torch.zeros(
                1, 3, options.crop, options.crop, device=read[-1].device, dtype=read[-1].dtype
            )
            places = model.rope_embeddings(blank)
            read.append(self.run_blocks(read[-1], places, options.blocks[-1] + 1, last)[-1])
        return torch.cat([model.norm(x) for x in read]).float()

    def divergence(self, uncoded: Tensor, coded: Tensor) -> float:
        """Squared error over the power of what a head reads."""
        return relative_error(uncoded, coded)

    def predict(self, sample: Sample, state: State) -> dict[str, float]:
        """Cosine of each token with the uncut model's, the mean; and of the class tokens alone."""
        coded, uncut = self.respond(sample, state), self.respond(sample, self.extract(sample))
        cosine = torch.nn.functional.cosine_similarity(coded, uncut, dim=-1)  # (blocks, tokens)
        registers = 1 + self.model.config.num_register_tokens
        return {
            "cosine": float(cosine[:, registers:].mean()),
            "class_cosine": float(cosine[:, 0].mean()),
        }

    def score(self, samples: Sequence[Sample], predictions: Iterable[Any]) -> Score:
        """Cosine of patch tokens, -1..1; that of class tokens beside it."""
        rows = [
            {"name": sample.name, **found}
            for sample, found in zip(samples, predictions, strict=True)
        ]
        means = {
            key: float(np.mean([row[key] for row in rows])) for key in ("cosine", "class_cosine")
        }
        return Score("cosine", means.pop("cosine"), rows, means)
