"""A causal language model in two halves: the machine of :mod:`dtufc.machines.llama3.llama3`."""

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

from dtufc.errors import UserError
from dtufc.machines.checkpoints import (
    checkpoint_files,
    find_folder,
    loading,
    open_weights,
    weights_digest,
)
from dtufc.machines.fisher import fisher_probe
from dtufc.machines.llama3.llama3 import LlamaOptions
from dtufc.machines.llama3.tasks import (
    LanguageTask,
    LetterTask,
    LikelihoodTask,
    Task,
    join,
    split,
)
from dtufc.machines.machine import Machine, Sample, Score, Split
from dtufc.machines.options import find_layer
from dtufc.machines.sources import open_source
from dtufc.machines.sources.source import Texts

HELP = (
    "It is a folder in transformers' format: config.json, tokenizer files and *.safetensors of "
    "https://huggingface.co/meta-llama/Meta-Llama-3-8B-Instruct; --hub ID downloads one"
)


class LlamaMachine(Machine):
    """A causal language model in two halves; each loads its own weights when it is first used."""

    def __init__(self, options: LlamaOptions):
        self.options = options

    @cached_property
    def task(self) -> Task:
        options = self.options
        source = open_source(
            options.source, options.root.source, options.counts, options.seed, options.texts
        )
        if isinstance(source, Texts):
            return LanguageTask(self, source, options.window, options.counts)
        answered_by = {"letter": LetterTask, "likelihood": LikelihoodTask}[options.answer]
        return answered_by(self, source)

    @cached_property
    def folder(self) -> Path:
        return find_folder(self.options, HELP)

    @cached_property
    def config(self):
        with loading(self.folder):
            return AutoConfig.from_pretrained(self.folder, local_files_only=True)

    @property
    def layer(self) -> int:
        """The last decoder layer of the front half, 0 .. layers - 1."""
        return find_layer(self.options.layer, self.config.num_hidden_layers)

    @cached_property
    def tokenizer(self):
        with loading(self.folder):
            return AutoTokenizer.from_pretrained(self.folder, local_files_only=True)

    @cached_property
    def front(self) -> nn.Module:
        """Token ids (1, T) -> ``last_hidden_state`` (1, T, width)."""
        options = self.options
        with loading(self.folder):  # the layers behind the cut are reported as unexpected
            model = AutoModel.from_pretrained(
                self.folder,
                num_hidden_layers=self.layer + 1,
                dtype=options.torch_dtype,
                local_files_only=True,
            )
        model.norm = nn.Identity()
        return model.eval().to(options.torch_device)

    @cached_property
    def back(self) -> nn.Module:
        """Hidden states (1, T, width), as ``inputs_embeds`` -> logits."""
        with torch.inference_mode(False):  # else gradients could not pass through it
            model = load_back(self.folder, self.layer + 1, self.options.torch_dtype)
            return model.eval().to(self.options.torch_device)

    def samples(self, split: Split) -> list[Sample]:
        return self.task.samples(split)

    def origin(self) -> dict[str, Any]:
        known = {key: getattr(self.options, key) for key in ("source", "seed")}
        known |= {"dtype": self.options.origin_dtype, "layer": self.layer}
        return known | self.task.origin() | {"weights": weights_digest(self.folder)}

    def inputs(self) -> list[Path]:
        """Questions or text, the weights of both halves, and the tokenizer, which words the answer."""
        return [
            *self.task.source.inputs("test"),
            *checkpoint_files(lambda: self.folder, "tokenizer*"),
        ]

    @torch.inference_mode()
    def extract(self, sample: Sample) -> np.ndarray:
        states = self._front(sample)
        return (
            join(states, self.task.shared(sample))[None].float().cpu().numpy()
        )  # (1, 1, T, width)

    def _front(self, sample: Sample) -> list[Tensor]:
        """Hidden states of each sequence of the task, (1, T, width)."""
        device = self.options.torch_device
        return [
            self.front(
                input_ids=torch.tensor([ids], device=device), use_cache=False
            ).last_hidden_state
            for ids in self.task.sequences(sample)
        ]

    def _logits(self, states: Sequence[Tensor]) -> list[Tensor]:
        """Logits of each sequence: of its last place alone where no more is asked."""
        keep = self.task.places
        return [
            self.back(inputs_embeds=each, use_cache=False, logits_to_keep=keep).logits[0]
            for each in states
        ]

    def uncut(self, sample: Sample) -> Tensor:
        """Logits (T, vocabulary) of the model that is not cut."""
        return self._logits(self._front(sample))[0]

    @torch.inference_mode()
    def predict(self, sample: Sample, feature: np.ndarray) -> Any:
        return self.task.predict(sample, self._logits(self._states(sample, self._hidden(feature))))

    def _hidden(self, feature: np.ndarray) -> Tensor:
        """(1, T, width) of a feature, in the back half's dtype."""
        return torch.from_numpy(feature[0]).to(self.options.torch_device, self.back.dtype)

    def _states(self, sample: Sample, hidden: Tensor) -> list[Tensor]:
        """The states of each sequence of the task."""
        shared = self.task.shared(sample)
        lengths = [len(ids) for ids in self.task.sequences(sample)]
        expected = shared + sum(length - shared for length in lengths)
        if hidden.shape[1] != expected:
            raise UserError(f"{sample.name}: {hidden.shape[1]} tokens, the sample has {expected}")
        return split(hidden, lengths, shared)

    def slopes(
        self, sample: Sample, feature: np.ndarray, draws: int, generator: torch.Generator
    ) -> np.ndarray:
        """Of the distributions of all next tokens that the task reads."""
        self.back.requires_grad_(False)
        hidden = self._hidden(feature).requires_grad_()
        logits = [each[self.task.judged] for each in self._logits(self._states(sample, hidden))]
        found = []
        for draw in range(draws):
            probes = [fisher_probe(each.detach(), generator) for each in logits]
            more = draw + 1 < draws
            (slope,) = torch.autograd.grad(logits, hidden, probes, retain_graph=more)
            found.append(slope.float().cpu().numpy())
        return np.stack(found)[:, None]

    def score(self, samples: Sequence[Sample], predictions: Iterable[Any]) -> Score:
        return self.task.score(samples, predictions)


def load_back(folder: Path, first: int, dtype: torch.dtype) -> nn.Module:
    """The model from layer ``first`` on; only those weights are read.

    Raises:
        UserError: the checkpoint lacks a weight, which the message names, or is damaged.
    """
    with loading(folder), init_empty_weights():
        known = AutoConfig.from_pretrained(folder, local_files_only=True)
        model = AutoModelForCausalLM.from_config(known, dtype=dtype)
    model.model.layers = model.model.layers[first:]
    for place, layer in enumerate(model.model.layers):
        layer.self_attn.layer_idx = place  # its place in a cache of this half
    model.model.embed_tokens = None  # the feature comes in its place
    wanted = {}  # name in the checkpoint -> name here
    for name, _ in model.named_parameters():
        parts = name.split(".")
        if parts[:2] == ["model", "layers"]:
            parts[2] = str(int(parts[2]) + first)
        wanted[".".join(parts)] = name
    if known.tie_word_embeddings:
        wanted["model.embed_tokens.weight"] = wanted.pop("lm_head.weight")
    stored = open_weights(folder)
    missing = sorted(wanted.keys() - stored.keys())
    if missing:
        raise UserError(
            f"{folder}: its *.safetensors lack {missing[0]} and {len(missing) - 1} more"
        )
    with loading(folder):
        state = {ours: stored[theirs].to(dtype) for theirs, ours in wanted.items()}
        model.load_state_dict(state, assign=True)
    return model
