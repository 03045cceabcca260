"""Rotary position embedding, turned back and on again.

    keys as cached = scale * R(position) keys before

J. Su et al., *RoFormer* (arXiv 2104.09864). Channel c of the first half of a head turns with channel
c of the second half, as in LLaMA and its kin. Where only a part of a head's channels turns, it is the
first.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Rope:
    """How a layer's keys turn.

    Args:
        frequency: (n,) float32, radians per position of each pair of channels; none turns nothing.
        scale: that cosines and sines are multiplied by.
    """

    frequency: np.ndarray
    scale: float = 1.0

    def turn(self, keys: Tensor, positions: Iterable[int], back: bool) -> Tensor:
        """Keys (..., T, heads, channels) float32 at T positions, turned on, or back to what they were
        before; a new tensor."""
        pairs = len(self.frequency)
        if not pairs:
            return keys.clone()
        angle = torch.tensor(list(positions)).float()[:, None] * torch.from_numpy(self.frequency)
        cos, sin = angle.cos()[:, None], angle.sin()[:, None]  # (T, 1, pairs)
        factor = 1 / self.scale if back else self.scale
        sin = -sin if back else sin
        first, second, rest = keys.split([pairs, pairs, keys.shape[-1] - 2 * pairs], -1)
        turned = first * cos - second * sin, second * cos + first * sin
        return torch.cat([factor * turned[0], factor * turned[1], rest], -1)


NO_ROPE = Rope(np.zeros(0, np.float32))


def find_ropes(model: Any, layer_types: Iterable[str]) -> list[Rope]:
    """How the keys of each layer of a transformers model turn.

    A model whose way of turning is not known gets no rotation: its keys are coded as they are cached.

    Args:
        layer_types: of each layer, as the model's config names them.
    """
    modules = [module for module in model.modules() if _turns(module)]
    if not modules:
        return [NO_ROPE for _ in layer_types]
    return [_of_module(modules[0], kind) for kind in layer_types]


def _turns(module: Any) -> bool:
    return any(name.endswith("inv_freq") for name, _ in module.named_buffers(recurse=False))


def _of_module(module: Any, kind: str) -> Rope:
    """Of a rotary embedding, which may know several kinds of layers."""
    prefix = f"{kind}_" if hasattr(module, f"{kind}_inv_freq") else ""
    frequency = getattr(module, f"{prefix}inv_freq", None)
    if frequency is None:
        return NO_ROPE
    scale = getattr(module, f"{prefix}attention_scaling", 1.0)
    return Rope(frequency.detach().float().cpu().numpy(), float(scale))
