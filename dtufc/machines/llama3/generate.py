"""A split language model token by token, each half with a KV cache of its own.

    front, back = FrontHalf(machine), BackHalf(machine)      # one pair per text
    rows = front.step(ids)       # (T, width) float32: the hidden states of the next tokens
    logits = back.step(rows)     # (vocabulary,): what follows the last of them

:func:`generate` is the loop around them. With nothing between the halves it gives the tokens that
``generate`` of the uncut model gives.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DynamicCache, GenerationConfig

from dtufc.errors import UserError
from dtufc.machines.checkpoints import loading
from dtufc.machines.llama3.halves import LlamaMachine


class _Half:
    """One half's cache, and how many tokens it holds. The weights are the machine's, for all texts.

    The cache keeps every token, of layers with a sliding window too; their mask hides the old ones.
    """

    def __init__(self, machine: LlamaMachine):
        self.machine, self.tokens = machine, 0
        self.cache = DynamicCache()
        """Keys and values of each layer, (1, heads, tokens, width)."""

    @property
    def cache_bytes(self) -> int:
        """Memory of the cache."""
        layers = [layer for layer in self.cache.layers if layer.is_initialized]
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in layers)

    def cut_back(self, tokens: int) -> None:
        """Forget all but the first ``tokens`` of the text."""
        for layer in self.cache.layers:
            layer.crop(min(0, tokens - layer.get_seq_length()))
        self.tokens = tokens

    def _step(self, model: nn.Module, count: int, **inputs: Any) -> Any:
        """The model's output at the next ``count`` places."""
        first, self.tokens = self.tokens, self.tokens + count
        device = self.machine.options.torch_device
        places = torch.arange(first, self.tokens, device=device)[None]
        return model(position_ids=places, past_key_values=self.cache, use_cache=True, **inputs)


class FrontHalf(_Half):
    """Token ids -> the hidden states that are sent."""

    @torch.inference_mode()
    def step(self, ids: Sequence[int]) -> np.ndarray:
        """The next token ids, one or more -> their hidden states, (T, width) float32.

        Raises:
            UserError: there is none, or one that the model does not know.
        """
        most = self.machine.config.vocab_size
        if not ids or min(ids) < 0 or max(ids) >= most:
            raise UserError(f"front half: expected at least 1 token of 0 .. {most - 1}, got {ids}")
        inputs = torch.tensor([ids], device=self.machine.options.torch_device)
        states = self._step(self.machine.front, len(ids), input_ids=inputs).last_hidden_state
        return states[0].float().cpu().numpy()


class BackHalf(_Half):
    """Hidden states, coded or not -> the logits of what follows."""

    @torch.inference_mode()
    def step(self, rows: np.ndarray) -> Tensor:
        """The next hidden states, (T, width) -> the logits behind the last of them, (vocabulary,).

        Raises:
            UserError: they are not of the model's width.
        """
        width = self.machine.config.hidden_size
        if rows.ndim != 2 or not len(rows) or rows.shape[1] != width:
            raise UserError(f"back half: expected rows of {width} channels, got {rows.shape}")
        model = self.machine.back
        states = torch.from_numpy(rows)[None].to(self.machine.options.torch_device, model.dtype)
        return self._step(model, len(rows), inputs_embeds=states, logits_to_keep=1).logits[0, -1]


def bytes_per_token(machine: LlamaMachine) -> int:
    """What a token takes in the back half's cache: keys and values of each layer behind the cut."""
    known = machine.config
    heads = getattr(known, "num_key_value_heads", None) or known.num_attention_heads
    width = getattr(known, "head_dim", None) or known.hidden_size // known.num_attention_heads
    layers = known.num_hidden_layers - machine.layer - 1
    return 2 * layers * heads * width * machine.options.torch_dtype.itemsize


def end_tokens(machine: LlamaMachine) -> frozenset[int]:
    """The tokens that end a text, as transformers' ``generate`` takes them from the checkpoint."""
    folder = machine.folder
    with loading(folder):
        if (folder / "generation_config.json").is_file():
            ends = GenerationConfig.from_pretrained(folder, local_files_only=True).eos_token_id
        else:
            ends = machine.config.eos_token_id
    return frozenset([] if ends is None else [ends] if isinstance(ends, int) else ends)


def generate(
    front: FrontHalf,
    ids: Sequence[int],
    answer: Callable[[np.ndarray], int],
    tokens: int,
    ends: Collection[int] = (),
) -> Iterator[int]:
    """The tokens that follow ``ids``: ``tokens`` of them, or fewer where one of ``ends`` comes last.

    Args:
        answer: rows (T, width) float32 -> the token behind them; :func:`greedy`, or a server.
    """
    rows = front.step(ids)
    for number in range(1, tokens + 1):
        token = answer(rows)
        yield token
        if token in ends or number == tokens:
            return
        rows = front.step([token])


def greedy(back: BackHalf) -> Callable[[np.ndarray], int]:
    """Rows -> the likeliest token behind them."""
    return lambda rows: int(back.step(rows).argmax())
