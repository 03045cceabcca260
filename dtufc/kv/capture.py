"""What a fit and an evaluation ask of a model: windows of text, caches, and gradients of its answers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dtufc.errors import UserError
from dtufc.kv.caches import LayerShape, read_cache
from dtufc.kv.rope import Rope, find_ropes
from dtufc.machines.checkpoints import loading
from dtufc.machines.opening import open_machine


@dataclass(frozen=True)
class Language:
    """A causal language model of transformers, its tokenizer, and what its caches are like."""

    model: Any
    tokenizer: Any
    folder: Path
    layers: tuple[LayerShape, ...]
    ropes: tuple[Rope, ...]

    @property
    def device(self) -> torch.device:
        return self.model.device


def find_model(machine: str) -> Path:
    """The folder of a model: the checkpoint of a preset that ``machines/llama3/llama3.py`` takes, or a
    folder in transformers' format.

    Raises:
        FileNotFoundError, UserError: there is none.
    """
    folder = Path(machine)
    if (folder / "config.json").is_file():
        return folder
    if folder.is_dir():
        raise UserError(f"machine: {folder} is no folder of a model; it has no config.json")
    found = open_machine(machine)
    from dtufc.machines.llama3.halves import LlamaMachine

    if not isinstance(found, LlamaMachine):
        raise UserError(f"machine: {machine} is no language model")
    return found.folder


def open_language(machine: str, dtype: str = "float32", device: str = "cpu") -> Language:
    """The model of a preset or folder, without gradients of its weights.

    Raises:
        FileNotFoundError, UserError: as :func:`find_model`, or it is no causal language model.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

    folder = find_model(machine)
    with loading(folder):
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, dtype), local_files_only=True
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = model.eval().requires_grad_(False).to(device)
    config = model.config.get_text_config(decoder=True)
    cache = DynamicCache()
    with torch.inference_mode():
        model(torch.zeros((1, 2), dtype=torch.long, device=device), past_key_values=cache)
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * len(cache.layers)
    spans = [getattr(layer, "sliding_window", None) for layer in DynamicCache(config=config).layers]
    spans += [None] * (len(cache.layers) - len(spans))
    layers = []
    for shape, span in zip(read_cache(cache).layers, spans, strict=True):
        layers.append(LayerShape(shape.heads, shape.key, shape.value, span))
    return Language(model, tokenizer, folder, tuple(layers), tuple(find_ropes(model, kinds)))


def read_windows(language: Language, text: Path, length: int, count: int) -> list[list[int]]:
    """The first ``count`` windows of a text, each of ``length`` tokens, of which the first begins a
    sequence.

    Raises:
        FileNotFoundError, UserError: no such UTF-8 text, or one too short.
    """
    if not text.is_file():
        raise FileNotFoundError(f"{text}: no such text")
    try:
        content = text.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{text}: expected text in UTF-8 ({error})") from error
    tokenizer = language.tokenizer
    ids = tokenizer(content, add_special_tokens=False, verbose=False).input_ids
    begins = (tokenizer.bos_token_id, tokenizer.eos_token_id)
    begin = next((token for token in begins if token is not None), None)
    if begin is None:
        raise UserError(f"{language.folder}: the tokenizer names no token that begins a sequence")
    step = length - 1
    if len(ids) < count * step:
        raise UserError(
            f"{text}: {len(ids)} tokens are {len(ids) // step} windows of {length}; "
            f"{count} are asked for"
        )
    return [[begin, *ids[first : first + step]] for first in range(0, count * step, step)]


@torch.inference_mode()
def fill_cache(language: Language, ids: Sequence[int], config: bool = False) -> Any:
    """The cache of a window's tokens.

    Args:
        config: sliding layers keep their window alone; else they keep all tokens, too.
    """
    from transformers import DynamicCache

    cache = DynamicCache(config=language.model.config) if config else DynamicCache()
    inputs = torch.tensor([ids], device=language.device)
    language.model(inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return cache


@torch.inference_mode()
def continue_from(language: Language, cache: Any, ids: Sequence[int]) -> Tensor:
    """Log-probabilities (T - 1, vocabulary) float32 of what follows each of T tokens but the last. The
    tokens stand behind a cache, which grows by them."""
    inputs = torch.tensor([ids], device=language.device)
    logits = language.model(inputs, past_key_values=cache, use_cache=True).logits
    return logits[0, :-1].float().log_softmax(-1)


def gradients(
    language: Language, ids: Sequence[int], prompt: int, draws: int, generator: torch.Generator
) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """Gradients of sampled answers' log-probabilities by the cached keys and values.

    The tokens behind the prompt are read, and at each of them an answer is drawn from the model's own
    distribution. The gradients' outer products have the Fisher information as their mean, summed
    over the answers, which are drawn independently.

    Yields:
        ``draws`` times keys' and values' gradients, per layer (1, heads, prompt, channels).
    """
    cache = fill_cache(language, ids[:prompt])
    for layer in cache.layers:  # tensors made without gradients cannot take part in them
        layer.keys = layer.keys.clone().requires_grad_()
        layer.values = layer.values.clone().requires_grad_()
    leaves = [layer.keys for layer in cache.layers] + [layer.values for layer in cache.layers]
    inputs = torch.tensor([ids[prompt:]], device=language.device)
    logits = language.model(inputs, past_key_values=cache, use_cache=True).logits
    known = logits[0, :-1].float().log_softmax(-1)
    for draw in range(draws):
        chosen = torch.multinomial(known.detach().exp().cpu(), 1, generator=generator)
        total = known.gather(1, chosen.to(known.device)).sum()
        found = torch.autograd.grad(total, leaves, retain_graph=draw + 1 < draws)
        yield list(found[: len(cache.layers)]), list(found[len(cache.layers) :])
