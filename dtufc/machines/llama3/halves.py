"""A causal language model in two halves: the machine of :mod:`dtufc.machines.llama3.llama3`."""

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

from dtufc.errors import UserError
from dtufc.machines.checkpoints import (
    checkpoint_files,
    find_folder,
    loading,
    open_weights,
    weights_digest,
)
from dtufc.machines.llama3.llama3 import LlamaOptions
from dtufc.machines.machine import Machine, Sample, Score, Split
from dtufc.machines.options import find_layer
from dtufc.machines.sources.source import Question, Questions

LETTERS = "ABCDE"
ASKED = 4  # choices that the published prompt lists
HELP = (
    "It is a folder in transformers' format: config.json, tokenizer files and *.safetensors of "
    "https://huggingface.co/meta-llama/Meta-Llama-3-8B-Instruct; --hub ID downloads one"
)


def prompt(question: Question) -> str:
    """The published prompt, up to the place of the answer's letter.

    As published, four choices are listed: a fifth is left out, a missing fourth repeats the third.
    """
    lines = [f"{LETTERS[i]}: {text}" for i, text in enumerate(question.choices[:ASKED])]
    lines += lines[-1:] * (ASKED - len(lines))
    return (
        "<|start_header_id|>user<|end_header_id|>\n\n"
        "Given the following question and four candidate answers (A, B, C and D), choose the best "
        f"answer.\nQuestion: {question.stem}\n" + "\n".join(lines) + "\n"
        'Your response should end with "The best answer is [the_answer_letter]" where the '
        "[the_answer_letter] is one of A, B, C or D.<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nThe best answer is"
    )


class LlamaMachine(Machine):
    """A causal language model in two halves; each loads its own weights when it is first used."""

    def __init__(self, options: LlamaOptions):
        self.options = options

    @cached_property
    def source(self) -> Questions:
        return self.options.open_source()

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
        model = load_back(self.folder, self.layer + 1, self.options.torch_dtype)
        return model.eval().to(self.options.torch_device)

    def samples(self, split: Split) -> list[Sample]:
        """source is the question; label is its answer's letter."""
        return [Sample(q.id, q, LETTERS[q.answer]) for q in self.source.questions(split)]

    def origin(self) -> dict[str, Any]:
        known = {key: getattr(self.options, key) for key in ("source", "seed")}
        known |= {"dtype": self.options.origin_dtype, "layer": self.layer}
        return known | {"weights": weights_digest(self.folder)}

    def inputs(self) -> list[Path]:
        """The questions, the weights of both halves, and the tokenizer, which words the answer."""
        return [
            *self.source.inputs("test"),
            *checkpoint_files(lambda: self.folder, "tokenizer*"),
        ]

    @torch.inference_mode()
    def extract(self, sample: Sample) -> np.ndarray:
        ids = self.tokenizer(prompt(sample.source), return_tensors="pt").input_ids
        hidden = self.front(input_ids=ids.to(self.options.torch_device), use_cache=False)
        return hidden.last_hidden_state[None].float().cpu().numpy()  # (1, 1, T, width)

    @torch.inference_mode()
    def predict(self, sample: Sample, feature: np.ndarray) -> str:
        """The greedy next token, without spaces: the answer's letter where all is well."""
        hidden = torch.from_numpy(feature[0]).to(self.options.torch_device, self.back.dtype)
        logits = self.back(inputs_embeds=hidden, use_cache=False, logits_to_keep=1).logits
        return self.tokenizer.decode(int(logits[0, -1].argmax())).strip()

    def score(self, samples: Sequence[Sample], predictions: Iterable[Any]) -> Score:
        """Accuracy, 0..1."""
        rows = [
            {"name": s.name, "label": s.label, "prediction": p, "correct": int(p == s.label)}
            for s, p in zip(samples, predictions, strict=True)
        ]
        return Score("accuracy", sum(row["correct"] for row in rows) / len(rows), rows)


def load_back(folder: Path, first: int, dtype: torch.dtype) -> nn.Module:
    """The model from layer ``first`` on; only those weights are read.

    Raises:
        UserError: the checkpoint lacks a weight, which the message names, or is damaged.
    """
    with loading(folder), init_empty_weights():
        known = AutoConfig.from_pretrained(folder, local_files_only=True)
        model = AutoModelForCausalLM.from_config(known, dtype=dtype)
    model.model.layers = model.model.layers[first:]
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
