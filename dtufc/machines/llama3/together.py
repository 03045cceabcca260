"""One step of several texts at once: the back half in a batch, with a cache for each text.

    tokens = step_together(halves, rows)     # halves: BackHalf of each text; rows: (1, width) each

The texts may be of different lengths. The caches are padded to the longest, and a mask hides what was
added. A product over several rows adds in another order than one over a single row, so that logits
differ in their last bits. A token whose lead over the next is not well above that is computed again
alone. So the tokens are those that each text gets alone, see :data:`LEAD`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from dtufc.machines.llama3.generate import BackHalf
from dtufc.machines.llama3.halves import LlamaMachine

LEAD = 1e-3
"""How far the likeliest token's logit must lead for a batch to decide, over the largest logit's size."""
CLOSE = LEAD / 10
"""How far logits of a batch may be from those of one text alone, likewise, for it to be batched."""
TRIED = (5, 1, 12)
"""Tokens of the texts on which :func:`why_alone` tries a machine."""


class _Caches(DynamicCache):
    """Several caches of one text each, as the model sees them: padded behind, a text per row."""

    def __init__(self, caches: Sequence[DynamicCache], most: int):
        super().__init__()
        self._caches, self._most = caches, most

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Add a place, (texts, heads, 1, width) -> keys and values, (texts, heads, most, width)."""
        found = [
            cache.update(key_states[[row]], value_states[[row]], layer_idx)
            for row, cache in enumerate(self._caches)
        ]
        return tuple(self._pad(states) for states in zip(*found, strict=True))

    def _pad(self, states: Sequence[Tensor]) -> Tensor:
        _, heads, _, width = states[0].shape
        padded = states[0].new_zeros(len(states), heads, self._most, width)
        for row, each in enumerate(states):
            padded[row, :, : each.shape[2]] = each[0]
        return padded


@torch.inference_mode()
def logits_together(halves: Sequence[BackHalf], rows: Sequence[np.ndarray]) -> Tensor:
    """The next row of each text, (1, width) -> the logits behind each, (texts, vocabulary)."""
    machine = halves[0].machine
    model, device = machine.back, machine.options.torch_device
    places = torch.tensor([half.tokens for half in halves], device=device)[:, None]
    most = int(places.max()) + 1
    states = torch.from_numpy(np.stack(rows)).to(device, model.dtype)  # (texts, 1, width)
    hidden = torch.arange(most, device=device) > places  # (texts, most): what is padding
    mask = torch.zeros(hidden.shape, dtype=model.dtype, device=device)
    mask.masked_fill_(hidden, torch.finfo(model.dtype).min)
    answer = model(
        inputs_embeds=states,
        position_ids=places,
        attention_mask=mask[:, None, None],
        past_key_values=_Caches([half.cache for half in halves], most),
        use_cache=True,
        logits_to_keep=1,
    )
    for half in halves:
        half.tokens += 1
    return answer.logits[:, -1]


def step_together(halves: Sequence[BackHalf], rows: Sequence[np.ndarray]) -> list[int]:
    """The next row of each text, (1, width) -> the likeliest token behind each.

    Raises:
        Exception: whatever a row was wrong with; the texts are then as they were.
    """
    before = [half.tokens for half in halves]
    try:
        logits = logits_together(halves, rows)
        best, next_best = logits.topk(2).values.T  # (texts,) each
        sure = (best - next_best > LEAD * logits.abs().amax(1)).tolist()
        tokens = logits.argmax(1).tolist()
    except Exception:
        for half, count in zip(halves, before, strict=True):
            half.cut_back(count)
        raise
    for place, half in enumerate(halves):
        if not sure[place]:
            half.cut_back(before[place])
            tokens[place] = int(half.step(rows[place]).argmax())
    return tokens


def why_alone(machine: LlamaMachine) -> str | None:
    """Why steps of this machine are computed one at a time; None where they may be batched.

    A machine is tried on texts of a few lengths, since transformers knows many kinds of attention.
    """
    if machine.options.computed_dtype != "float32":
        return (
            f"{machine.options.computed_dtype} rounds too coarsely for a batch to keep the tokens"
        )
    known = machine.config
    layers = getattr(known, "layer_types", None)
    window = getattr(known, "sliding_window", None) if layers is None else None
    if window is not None or set(layers or ()) - {"full_attention"}:
        return "its layers do not attend to the whole text"
    rng = np.random.default_rng(0)
    try:
        away = _distance(machine, rng)
    except Exception as error:  # of a model's own code, for which no batch was meant
        return f"its model takes no batch of texts of different lengths ({type(error).__name__})"
    return None if away <= CLOSE else f"a batch's logits are {away:.1e} away from those of one text"


def _distance(machine: LlamaMachine, rng: np.random.Generator) -> float:
    """How far logits of a batch are from those of each text alone, over the largest logit's size."""
    alone, batch = ([BackHalf(machine) for _ in TRIED] for _ in range(2))
    width = machine.config.hidden_size
    for count, *pair in zip(TRIED, alone, batch, strict=True):
        start = rng.standard_normal((count, width), np.float32)
        for half in pair:
            half.step(start)
    away = 0.0
    for _ in range(2):  # the second step reads what the first one put into the caches
        rows = [rng.standard_normal((1, width), np.float32) for _ in TRIED]
        found = logits_together(batch, rows)
        expected = torch.stack([half.step(row) for half, row in zip(alone, rows, strict=True)])
        away = max(away, float(((found - expected).abs() / expected.abs().amax(1)[:, None]).max()))
    return away
