"""A BERT in two halves: the machine of :mod:`dtufc.machines.minilm.minilm`."""

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer, BertModel

from dtufc.errors import UserError
from dtufc.machines.checkpoints import checkpoint_files, find_folder, loading, weights_digest
from dtufc.machines.machine import Machine, Sample, Score, Split
from dtufc.machines.minilm.minilm import EncoderOptions
from dtufc.machines.options import find_layer
from dtufc.machines.sources import open_source
from dtufc.machines.sources.source import Texts
from dtufc.machines.sources.text import digest_texts, splits_before

HELP = (
    "It is a folder in transformers' format: config.json, tokenizer files and *.safetensors of "
    "https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2; --hub ID downloads one"
)


class EncoderMachine(Machine):
    """A BERT in two halves, with a mean over tokens behind it."""

    def __init__(self, options: EncoderOptions):
        self.options = options

    @cached_property
    def source(self) -> Texts:
        options = self.options
        return open_source(
            options.source, options.root.source, options.counts, options.seed, options.texts
        )

    @cached_property
    def folder(self) -> Path:
        return find_folder(self.options, HELP)

    @cached_property
    def layer(self) -> int:
        """The last layer of the front half, 0 .. layers - 1."""
        with loading(self.folder):
            known = AutoConfig.from_pretrained(self.folder, local_files_only=True)
        if known.model_type != "bert":
            raise UserError(f"{self.folder}: expected a BERT, got a {known.model_type}")
        return find_layer(self.options.layer, known.num_hidden_layers)

    @cached_property
    def tokenizer(self):
        with loading(self.folder):
            return AutoTokenizer.from_pretrained(self.folder, local_files_only=True)

    @cached_property
    def model(self) -> BertModel:
        with loading(self.folder):
            model = BertModel.from_pretrained(
                self.folder,
                add_pooling_layer=False,
                dtype=self.options.torch_dtype,
                local_files_only=True,
            )
        return model.eval().to(self.options.torch_device)

    def samples(self, split: Split) -> list[Sample]:
        """One sample per paragraph; its source are the ids. Splits of one text follow one another in it.

        Raises:
            UserError: the text is too short.
        """
        options, path = self.options, self.source.list_path(split)
        first = sum(splits_before(self.source, options.counts, split))
        found = self._paragraphs(split)[first:]
        count = options.counts.get(split, len(found))
        if not 1 <= count <= len(found):
            raise UserError(
                f"{path}: {len(found)} paragraphs of {options.shortest} tokens or more after {first} of "
                f"other splits; {split} wants {max(count, 1)}"
            )
        return [
            Sample(f"paragraph{number:05d}", ids, None) for number, ids in enumerate(found[:count])
        ]

    def _paragraphs(self, split: Split) -> list[list[int]]:
        lines = [line.strip() for text in self.source.texts(split) for line in text.splitlines()]
        longest = self.options.longest
        found = self.tokenizer(
            [*filter(None, lines)], truncation=True, max_length=longest
        ).input_ids
        return [ids for ids in found if len(ids) >= self.options.shortest]

    def origin(self) -> dict[str, Any]:
        """A text that is not there is not told."""
        options = self.options
        keys = ("source", "counts", "shortest", "longest")
        known = {key: getattr(options, key) for key in keys}
        known |= {"dtype": options.origin_dtype, "layer": self.layer}
        return known | {"texts": digest_texts(self.source), "weights": weights_digest(self.folder)}

    def inputs(self) -> list[Path]:
        """The text, the weights of both halves, and the tokenizer."""
        return [
            *self.source.inputs("test"),
            *checkpoint_files(lambda: self.folder, "tokenizer*", "vocab.txt"),
        ]

    @torch.inference_mode()
    def extract(self, sample: Sample) -> np.ndarray:
        return self._front(sample)[None].float().cpu().numpy()  # (1, 1, T, width)

    def _front(self, sample: Sample) -> Tensor:
        ids = torch.tensor([sample.source], device=self.options.torch_device)
        hidden = self.model.embeddings(input_ids=ids)
        return _run(self.model.encoder.layer[: self.layer + 1], hidden)  # (1, T, width)

    def _back(self, hidden: Tensor) -> Tensor:
        """Hidden states (1, T, width) -> the embedding (width,), of length 1."""
        hidden = _run(self.model.encoder.layer[self.layer + 1 :], hidden)
        return nn.functional.normalize(hidden.float().mean(1), dim=-1)[0]

    @torch.inference_mode()
    def predict(self, sample: Sample, feature: np.ndarray) -> float:
        """The cosine of the embedding to the uncut model's, -1 .. 1."""
        if feature.shape[2] != len(sample.source):
            raise UserError(
                f"{sample.name}: {feature.shape[2]} tokens, the sample has {len(sample.source)}"
            )
        hidden = torch.from_numpy(feature[0]).to(self.options.torch_device, self.model.dtype)
        return float(self._back(hidden) @ self._back(self._front(sample)))

    def score(self, samples: Sequence[Sample], predictions: Iterable[Any]) -> Score:
        """Mean cosine, and the least of any sample."""
        rows = [
            {"name": sample.name, "cosine": cosine}
            for sample, cosine in zip(samples, predictions, strict=True)
        ]
        cosines = [row["cosine"] for row in rows]
        return Score("cosine", sum(cosines) / len(rows), rows, {"least_cosine": min(cosines)})


def _run(layers: Iterable[nn.Module], hidden: Tensor) -> Tensor:
    """(1, T, width) through layers; all tokens see one another."""
    for layer in layers:
        found = layer(hidden)
        hidden = found[0] if isinstance(found, tuple) else found
    return hidden
