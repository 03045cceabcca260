"""LMCache's serde interface (lmcache 0.5.6, ``lmcache.v1.distributed.serde``).

    from dtufc.kv.lmcache_serde import register

    register()    # then, in an adapter's config: "serde": {"type": "dtufc", "codec": "DIR"}

LMCache hands over chunks of a cache, (2, layers, tokens, heads * channels) each: keys after RoPE, and
values. It does not always say where in the sequence a chunk lies, which turning keys back needs. Then
the chunk is tried at multiples of its length. The place is taken at which its keys look most like those
that the codec was fitted to. A wrong place costs bits and nothing else: the bytes tell it.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from dtufc.errors import UserError
from dtufc.kv.caches import DTYPES, Snapshot, read_cache
from dtufc.kv.codec import KvCodec
from dtufc.kv.container import KvLimits

if TYPE_CHECKING:
    from lmcache.v1.distributed.api import MemoryLayoutDesc, ObjectKey
    from lmcache.v1.distributed.serde import SerdeProcessor
    from lmcache.v1.memory_management import MemoryObj

NAME = "dtufc"
LENGTH_BYTES = 8
"""Buffers may be longer than what is in them: the length of the bytes stands in front."""
HEADER_BYTES = 4096
"""At least what header, frames and strings take beside symbols."""
PLACES = 256
"""Multiples of a chunk's length at which it is tried."""
TRIED_ROWS = 8


class KvSerializer:
    """A chunk of a cache -> bytes; an ``lmcache`` Serializer, see :func:`serde_classes`."""

    def __init__(self, codec: KvCodec):
        self.codec = codec.at(recent=0)

    def serialize(self, src: "MemoryObj", dst: "MemoryObj", key: "ObjectKey | None" = None) -> int:
        """Code a chunk into a buffer of bytes -> how many were written.

        Raises:
            UserError: the chunk is none of the codec's model, or the buffer is too short.
        """
        chunk = tensor_of(src, "src")
        snapshot = chunk_snapshot(self.codec, chunk)
        place = position_of(src)
        if place is None:
            place = find_position(self.codec, snapshot)
        data = self.codec.encode_cache(snapshot, position=place)
        data = len(data).to_bytes(LENGTH_BYTES, "little") + data
        buffer = tensor_of(dst, "dst").view(torch.uint8).flatten()
        if len(data) > len(buffer):
            raise UserError(f"dst: {len(buffer)} bytes; the chunk takes {len(data)}")
        buffer[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        return len(data)

    def estimate_serialized_size(self, layout_desc: "MemoryLayoutDesc") -> int:
        """An upper bound of the bytes of a chunk.

        A vector that no symbols can tell is sent as 32-bit floats and its place. No vector takes more,
        but for symbols that no table holds, of which a fitted codec has few; this counts twice that.
        """
        values = sum(int(np.prod(shape)) for shape in layout_desc.shapes)
        return LENGTH_BYTES + HEADER_BYTES * (1 + len(self.codec.model.groups)) + 8 * values


class KvDeserializer:
    """Bytes -> a chunk of a cache; an ``lmcache`` Deserializer, see :func:`serde_classes`."""

    def __init__(self, codec: KvCodec):
        self.codec = codec

    def deserialize(
        self, src: "MemoryObj", dst: "MemoryObj", key: "ObjectKey | None" = None
    ) -> None:
        """Decode a buffer of bytes into a chunk.

        Raises:
            BitstreamError: the bytes are not sound, or of another codec.
            UserError: the chunk is not of the shape that was coded.
        """
        buffer = tensor_of(src, "src").view(torch.uint8).flatten().cpu()
        length = int.from_bytes(bytes(buffer[:LENGTH_BYTES].tolist()), "little")
        data = buffer[LENGTH_BYTES : LENGTH_BYTES + length].numpy().tobytes()
        out = tensor_of(dst, "dst")
        limits = KvLimits(batch=1, values=max(1, out.numel()))
        snapshot = read_cache(self.codec.decode_cache(data, limits=limits))
        chunk = torch.stack(
            [
                torch.stack([each[0].transpose(0, 1).flatten(1) for each in tensors])
                for tensors in (snapshot.keys, snapshot.values)
            ]
        )
        if chunk.shape != out.shape:
            raise UserError(f"dst: expected {tuple(chunk.shape)}, got {tuple(out.shape)}")
        out.copy_(chunk)


def tensor_of(memory: Any, name: str) -> Tensor:
    """The tensor of one of LMCache's memory objects.

    Raises:
        UserError: it has none.
    """
    if memory.tensor is None:
        raise UserError(f"{name}: a memory object without a tensor")
    return memory.tensor


def position_of(memory: Any) -> int | None:
    """Where in the sequence a chunk begins, where LMCache says so."""
    places = getattr(getattr(memory, "meta", None), "cached_positions", None)
    return None if places is None or not len(places) else int(places[0])


def chunk_snapshot(codec: KvCodec, chunk: Tensor) -> Snapshot:
    """A chunk (2, layers, tokens, heads * channels) as what a cache holds.

    Raises:
        UserError: it is none of the codec's model, or the model has sliding layers or keys and values of
            different widths.
    """
    layers = codec.model.layers
    widths = {(layer.width("key"), layer.width("value"), layer.window) for layer in layers}
    width = layers[0].width("key")
    if widths != {(width, width, None)}:
        raise UserError("lmcache: expected a model whose layers keep all tokens and have one width")
    if chunk.dim() != 4 or chunk.shape[:2] != (2, len(layers)) or chunk.shape[3] != width:
        raise UserError(
            f"lmcache: expected a chunk (2, {len(layers)}, tokens, {width}), got {tuple(chunk.shape)}"
        )
    if chunk.dtype not in DTYPES.values():
        raise UserError(f"lmcache: expected one of {[*DTYPES]}, got {chunk.dtype}")
    if not chunk.shape[2] or not chunk.isfinite().all():
        raise UserError("lmcache: expected one token at least, and finite values")
    heads = [layer.heads for layer in layers]
    keys, values = (
        tuple(
            x[None].unflatten(2, (n, -1)).transpose(1, 2) for x, n in zip(both, heads, strict=True)
        )
        for both in chunk
    )
    return Snapshot(layers, chunk.shape[2], keys, values)


def find_position(codec: KvCodec, snapshot: Snapshot) -> int:
    """The multiple of a chunk's length at which its first group of keys looks most like what the codec
    was fitted to: at which the components are least, in logarithms."""
    model = codec.model
    if not any(len(rope.frequency) for rope in model.ropes):
        return 0
    group = next(g for g in model.groups if any(part.which == "key" for part in g.parts))
    tokens = snapshot.tokens
    last = min(tokens, TRIED_ROWS)
    unit = group.klt.transform.unit

    def cost(place: int) -> float:
        rows = codec.group_rows(snapshot, group, 0, last, place, bulk=False)
        return float(np.log2(1 + 16 * np.abs(group.forward(rows.x)) / unit).sum())

    return min((tokens * n for n in range(PLACES)), key=cost)


def serde_classes() -> tuple[type, type]:
    """Serializer and Deserializer as subclasses of LMCache's.

    Raises:
        ImportError: lmcache is not installed.
    """
    from lmcache.v1.distributed.serde import Deserializer, Serializer

    serializer = type("DtufcSerializer", (KvSerializer, Serializer), {})
    return serializer, type("DtufcDeserializer", (KvDeserializer, Deserializer), {})


def make_processor(options: dict[str, object]) -> "SerdeProcessor":
    """LMCache's factory of this serde.

    Args:
        options: codec (folder), and any of quality, sinks, max_workers.

    Raises:
        UserError: an unknown option, or no sound codec folder.
    """
    from lmcache.v1.distributed.serde import AsyncSerdeProcessor

    options = dict(options)
    folder, workers = options.pop("codec", None), options.pop("max_workers", 1)
    settings = {name: options.pop(name) for name in ("quality", "sinks") if name in options}
    if folder is None or options:
        raise UserError(f"serde: expected codec and any of quality, sinks, got {sorted(options)}")
    codec = KvCodec.load(str(folder)).at(**settings)
    serializer, deserializer = serde_classes()
    return AsyncSerdeProcessor(serializer(codec), deserializer(codec), max_workers=int(workers))


def register(name: str = NAME) -> None:
    """Make the serde known to LMCache under a name.

    Raises:
        ImportError: lmcache is not installed.
        ValueError: LMCache knows one of that name already.
    """
    from lmcache.v1.distributed.serde import register_serde_factory

    register_serde_factory(name, make_processor)
