"""A Whisper in two halves: the machine of :mod:`dtufc.machines.whisper.whisper`."""

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torchmetrics.text import WordErrorRate
from transformers import WhisperForConditionalGeneration, WhisperProcessor
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.whisper.english_normalizer import BasicTextNormalizer

from dtufc.errors import UserError
from dtufc.machines.checkpoints import checkpoint_files, find_folder, loading, weights_digest
from dtufc.machines.machine import Machine, Sample, Score, Split
from dtufc.machines.sources.source import Utterances
from dtufc.machines.whisper.whisper import WhisperOptions

HELP = (
    "It is a folder in transformers' format of a Whisper, for example "
    "https://huggingface.co/openai/whisper-large-v3; --hub ID downloads one"
)


class WhisperMachine(Machine):
    """Speech -> the encoder's output -> text."""

    def __init__(self, options: WhisperOptions):
        self.options = options
        self.normal_form = BasicTextNormalizer()

    @cached_property
    def source(self) -> Utterances:
        return self.options.open_source()

    @cached_property
    def folder(self) -> Path:
        return find_folder(self.options, HELP)

    @cached_property
    def processor(self) -> WhisperProcessor:
        with loading(self.folder):
            return WhisperProcessor.from_pretrained(self.folder, local_files_only=True)

    @cached_property
    def model(self) -> WhisperForConditionalGeneration:
        with loading(self.folder):
            model = WhisperForConditionalGeneration.from_pretrained(
                self.folder, dtype=self.options.torch_dtype, local_files_only=True
            )
        return model.eval().to(self.options.torch_device)

    @property
    def front(self) -> nn.Module:
        """Log-mel pictures (1, bins, 3000) -> ``last_hidden_state`` (1, 1500, width)."""
        return self.model.get_encoder()

    def samples(self, split: Split) -> list[Sample]:
        return [Sample(u.name, u, u.text) for u in self.source.utterances(split)]

    def origin(self) -> dict[str, Any]:
        known = {key: getattr(self.options, key) for key in ("source", "seed")}
        return known | {
            "dtype": self.options.origin_dtype, "weights": weights_digest(self.folder),
        }  # fmt: skip

    def inputs(self) -> list[Path]:
        """The list with its transcripts, the weights, and the tokenizer, which words the answer."""
        files = checkpoint_files(lambda: self.folder, "*.json", "*.txt")
        return [*self.source.inputs("test"), *files]

    def spectrum(self, sample: Sample) -> torch.Tensor:
        """(1, bins, 3000), padded or cut to 30 seconds."""
        extractor = self.processor.feature_extractor
        rate = extractor.sampling_rate
        inputs = extractor(sample.source.wave(rate), sampling_rate=rate, return_tensors="pt")
        return inputs.input_features.to(self.options.torch_device, self.options.torch_dtype)

    @torch.inference_mode()
    def extract(self, sample: Sample) -> np.ndarray:
        return self.front(self.spectrum(sample)).last_hidden_state[None].float().cpu().numpy()

    @torch.inference_mode()
    def predict(self, sample: Sample, feature: np.ndarray) -> str:
        """The text that the decoder writes."""
        states = torch.from_numpy(feature[0]).to(self.options.torch_device, self.model.dtype)
        wanted = self.model.config.max_source_positions
        if states.shape[1] != wanted:
            raise UserError(f"{sample.name}: {states.shape[1]} tokens, the decoder takes {wanted}")
        named = {"language": self.options.language} if self.options.language else {}
        made = self.model.generate(
            encoder_outputs=BaseModelOutput(last_hidden_state=states), do_sample=False, num_beams=1,
            max_new_tokens=self.options.tokens, **named,
        )  # fmt: skip
        return self.processor.batch_decode(made, skip_special_tokens=True)[0].strip()

    def score(self, samples: Sequence[Sample], predictions: Iterable[Any]) -> Score:
        """Word error rate over all words, 0 is best."""
        rate, rows = WordErrorRate(), []
        for sample, text in zip(samples, predictions, strict=True):
            pair = [self.normal_form(text)], [self.normal_form(sample.label)]
            rate.update(*pair)
            alone = WordErrorRate()
            rows.append(
                {
                    "name": sample.name, "label": sample.label, "prediction": text,
                    "wer": float(alone(*pair)),
                }
            )  # fmt: skip
        return Score("wer", float(rate.compute()), rows, less_is_better=True)
