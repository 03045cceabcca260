"""What a user would take for a KV cache instead: integers in groups, 8-bit floats, transformers' own."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dtufc.kv.caches import Snapshot, make_cache

GROUP = 64
SIDE_BITS = 32
"""Scale and offset of a group, 16 bits each."""
BACKENDS: dict[str, dict[str, int]] = {"quanto": {}, "hqq": {"axis_key": 1, "axis_value": 1}}
"""Of transformers' quantised caches: packages that are not this project's, and their options."""
FREE = 4
"""First tokens that integers and casts leave as they are, at no cost: their keys stand far out."""


@dataclass(frozen=True)
class Rival:
    """A way to make a cache smaller."""

    name: str
    bits: float
    """Per value, scales and offsets included."""
    make: Callable[[Any, Callable[[Any], Any]], Any]
    """(snapshot, fill) -> a cache to go on from; ``fill(cache)`` runs the prompt with a cache."""


def quantise(x: Tensor, bits: int) -> Tensor:
    """Uniform integers between the least and the largest value of each group along the last axis.

    Args:
        x: (..., n) float32, n any number; the last group may be shorter than GROUP.
    """
    parts = []
    for part in x.split(GROUP, -1):
        low, high = part.amin(-1, keepdim=True), part.amax(-1, keepdim=True)
        low = low.half().float()
        scale = ((high - low) / (2**bits - 1)).half().float().clamp(min=2.0**-24)
        parts.append(((part - low) / scale).round().clamp(0, 2**bits - 1) * scale + low)
    return torch.cat(parts, -1)


def _integers(snapshot: Snapshot, bits: int) -> Any:
    """Keys per channel, in groups of tokens; values per token, in groups of channels (KIVI, arXiv
    2402.02750)."""

    def code(x: Tensor, keys: bool) -> Tensor:
        rest = x[:, :, FREE:].float()
        axis = 2 if keys else 3
        rest = quantise(rest.transpose(axis, 3), bits).transpose(axis, 3)
        return torch.cat([x[:, :, :FREE], rest.to(x.dtype)], 2)

    return _mapped(snapshot, code)


def _cast(snapshot: Snapshot) -> Any:
    """Cast to e4m3 and back, without a scale, as LMCache's serde ``fp8`` does."""

    def code(x: Tensor, keys: bool) -> Tensor:
        rest = x[:, :, FREE:].to(torch.float8_e4m3fn).to(x.dtype)
        return torch.cat([x[:, :, :FREE], rest], 2)

    return _mapped(snapshot, code)


def _mapped(snapshot: Snapshot, code: Callable[[Tensor, bool], Tensor]) -> Any:
    keys = tuple(code(each, True) for each in snapshot.keys)
    values = tuple(code(each, False) for each in snapshot.values)
    return make_cache(replace(snapshot, keys=keys, values=values))


def rivals(config: Any) -> Iterator[Rival]:
    """All that run here.

    Args:
        config: of the transformers model.
    """
    for bits in (8, 4, 3, 2):
        side = SIDE_BITS / GROUP
        yield Rival(f"int{bits}", bits + side, lambda s, fill, bits=bits: _integers(s, bits))
    yield Rival("fp8 cast", 8, lambda s, fill: _cast(s))
    caches = [("fp8", 8.0, {"backend": "fp8"})]
    for backend, axes in BACKENDS.items():
        for bits in (4, 2):
            options = {"backend": backend, "nbits": bits, "q_group_size": GROUP, **axes}
            caches.append((f"{backend} int{bits}", bits + SIDE_BITS / GROUP, options))
    for name, bits, options in caches:
        if why_not(config, options) is None:
            yield Rival(
                f"QuantizedCache {name}", bits,
                lambda s, fill, options=options: fill(_quantised_cache(config, options)),
            )  # fmt: skip


def _quantised_cache(config: Any, options: dict[str, Any]) -> Any:
    from transformers import QuantizedCache

    return QuantizedCache(config=config, **options)


def why_not(config: Any, options: dict[str, Any]) -> str | None:
    """Why transformers makes no such cache here: its backend is not installed, or the model has sliding
    layers; None where it does."""
    try:
        _quantised_cache(config, options)
    except (ImportError, ValueError) as error:
        return " ".join(str(error).split())
    return None
