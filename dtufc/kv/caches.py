"""KV caches of transformers as tensors, and back.

    DynamicCache ─ read_cache ─> Snapshot ─ make_cache ─> DynamicCache

A layer keeps all tokens, or the last ``window - 1`` of them. Grouped-query attention is nothing special
here: the cache holds as many heads as there are keys.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dtufc.errors import UserError

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
"""What a cache may hold."""


@dataclass(frozen=True)
class LayerShape:
    """What a layer's cache holds per token."""

    heads: int
    """Of keys, and of values."""
    key: int
    """Channels of a head's key."""
    value: int
    """Channels of a head's value."""
    window: int | None = None
    """Tokens that a sliding window spans, the newest included; the cache keeps one less. None: all."""

    def __post_init__(self):
        if min(self.heads, self.key, self.value) < 1:
            raise UserError(f"layers: expected at least 1 head and channel, got {self}")
        if self.window is not None and self.window < 2:
            raise UserError(f"layers: window: expected at least 2 tokens, got {self.window}")

    def width(self, which: str) -> int:
        """Channels of all heads of the ``key`` or ``value``."""
        return self.heads * getattr(self, which)

    def first(self, tokens: int) -> int:
        """The first of so many tokens that the layer still holds."""
        return 0 if self.window is None else max(0, tokens - self.window + 1)


@dataclass(frozen=True)
class Snapshot:
    """What a cache holds."""

    layers: tuple[LayerShape, ...]
    tokens: int
    """Tokens that the cache has seen; a sliding layer holds the last of them."""
    keys: tuple[Tensor, ...]
    """Per layer, (B, heads, T, channels), of any float dtype; T is at most ``tokens``."""
    values: tuple[Tensor, ...]

    @property
    def batch(self) -> int:
        return self.keys[0].shape[0]

    @property
    def dtype(self) -> torch.dtype:
        return self.keys[0].dtype

    @property
    def points(self) -> int:
        """Values that it holds."""
        return sum(each.numel() for each in (*self.keys, *self.values))

    def rows(self, layer: int, which: str, first: int, last: int) -> Tensor:
        """Keys or values of tokens ``first`` .. ``last - 1``, counted from the cache's first token:
        (B, T, heads * channels) float32, a copy on the CPU."""
        x = (self.keys if which == "key" else self.values)[layer]
        gone = self.tokens - x.shape[2]
        x = x[:, :, first - gone : last - gone].detach().float().cpu()
        return x.transpose(1, 2).flatten(2)


def read_cache(cache) -> Snapshot:
    """What a cache holds, without a copy.

    Args:
        cache: a ``transformers.DynamicCache`` of full and sliding layers, or a Snapshot, which is
            returned.

    Raises:
        UserError: another cache, one that holds nothing, or values that are not finite; the message
            names the layer.
    """
    if isinstance(cache, Snapshot):
        return cache
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    layers = getattr(cache, "layers", None)
    if not layers:
        raise UserError(f"cache: expected a filled DynamicCache, got {type(cache).__name__}")
    shapes, keys, values, tokens = [], [], [], []
    for number, layer in enumerate(layers):
        if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer):
            raise UserError(
                f"cache: layer {number} is a {type(layer).__name__}; expected a DynamicLayer or a "
                "DynamicSlidingWindowLayer"
            )
        if not layer.is_initialized or not layer.keys.numel():
            raise UserError(f"cache: layer {number} holds no tokens")
        window = layer.sliding_window if layer.is_sliding else None
        _, heads, _, width = layer.keys.shape
        shapes.append(LayerShape(heads, width, layer.values.shape[-1], window))
        keys.append(layer.keys)
        values.append(layer.values)
        tokens.append(layer.get_seq_length())
    _check(shapes, keys, values, tokens)
    return Snapshot(tuple(shapes), tokens[0], tuple(keys), tuple(values))


def _check(shapes: Sequence[LayerShape], keys, values, tokens: Sequence[int]) -> None:
    """Refuse layers that do not belong together.

    Raises:
        UserError: the message names the layer.
    """
    if keys[0].dtype not in DTYPES.values():
        raise UserError(f"cache: expected one of {[*DTYPES]}, got {keys[0].dtype}")
    for number, (shape, key, value, seen) in enumerate(
        zip(shapes, keys, values, tokens, strict=True)
    ):
        held = seen - shape.first(seen)
        alike = (key.shape[0], key.shape[2], key.dtype) == (keys[0].shape[0], held, keys[0].dtype)
        if seen != tokens[0] or not alike or key.shape[:3] != value.shape[:3]:
            raise UserError(
                f"cache: layer {number} holds keys {tuple(key.shape)} {key.dtype} and values "
                f"{tuple(value.shape)} of {seen} tokens, the first layer {tuple(keys[0].shape)} of "
                f"{tokens[0]}; expected the same tokens in all layers"
            )
        if value.dtype != key.dtype or not (key.isfinite().all() and value.isfinite().all()):
            raise UserError(f"cache: layer {number}: expected finite values of one dtype")


def make_cache(snapshot: Snapshot):
    """A ``transformers.DynamicCache`` that holds a snapshot's tensors and goes on from there."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    cache = DynamicCache()
    for shape, keys, values in zip(snapshot.layers, snapshot.keys, snapshot.values, strict=True):
        sliding = shape.window is not None
        layer = DynamicSlidingWindowLayer(shape.window) if sliding else DynamicLayer()
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys, values
        if sliding:
            layer.cumulative_length = snapshot.tokens
        cache.layers.append(layer)
    return cache
