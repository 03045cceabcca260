"""LMCache's serde: chunks to bytes and back, with its published signature, and inside lmcache itself."""

import time
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch
from test_kv import cache_of, checkpoint, fast_tables, fitted  # noqa: F401  fixtures

from dtufc.bitstream import BitstreamError
from dtufc.errors import UserError
from dtufc.kv import load_kv
from dtufc.kv.caches import read_cache
from dtufc.kv.lmcache_serde import (
    KvDeserializer,
    KvSerializer,
    chunk_snapshot,
    find_position,
    make_processor,
    register,
)


@dataclass
class Memory:
    """What of lmcache's MemoryObj a serde reads."""

    tensor: torch.Tensor | None
    meta: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(cached_positions=None))


def chunk_of(cache, first: int, last: int) -> torch.Tensor:
    """Tokens of a cache as lmcache lays them out, (2, layers, tokens, heads * channels)."""
    snapshot = read_cache(cache)
    both = [
        [each[0].transpose(0, 1).flatten(1) for each in x] for x in (snapshot.keys, snapshot.values)
    ]
    return torch.stack([torch.stack(each) for each in both])[:, :, first:last].contiguous()


@pytest.fixture
def chunk(fitted):  # noqa: F811
    """A codec and the tokens 20 .. 29 of a cache."""
    language, folder = fitted("grouped")
    return load_kv(folder).at(quality=6), chunk_of(cache_of(language), 20, 30)


def layout_of(chunk: torch.Tensor) -> SimpleNamespace:
    return SimpleNamespace(shapes=[chunk.shape], dtypes=[chunk.dtype])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_chunk_comes_back(chunk, dtype):
    codec, x = chunk
    x = x.to(dtype)
    serializer, deserializer = KvSerializer(codec), KvDeserializer(codec)
    size = serializer.estimate_serialized_size(layout_of(x))
    buffer = Memory(torch.zeros(size, dtype=torch.uint8))
    written = serializer.serialize(Memory(x), buffer, None)
    assert written < x.numel() * 2 and not buffer.tensor[written:].any()
    for length in (written, size):  # narrowed to what was written, or as it was made
        out = Memory(torch.empty_like(x))
        deserializer.deserialize(Memory(buffer.tensor[:length].clone()), out, None)
        assert (out.tensor - x).float().square().sum() < 0.01 * x.float().square().sum()


def test_wild_chunks_fit_the_bound(chunk):
    """Values that no table holds, in symbols or as they are."""
    codec, x = chunk
    serializer = KvSerializer(codec.at(quality=7))
    for scale in (30.0, 1e3, 1e6):
        wild = scale * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
        buffer = Memory(
            torch.empty(serializer.estimate_serialized_size(layout_of(x)), dtype=torch.uint8)
        )
        serializer.serialize(Memory(wild), buffer)
        out = Memory(torch.empty_like(x))
        KvDeserializer(codec).deserialize(buffer, out)
        assert (out.tensor - wild).square().sum() < 0.01 * wild.square().sum()


def test_the_place_is_told_or_found(chunk):
    codec, x = chunk
    snapshot = chunk_snapshot(codec, x)
    assert find_position(codec, snapshot) % 10 == 0
    sizes = {place: len(codec.encode_cache(snapshot, position=place)) for place in (20, 2000)}
    told = Memory(x, SimpleNamespace(cached_positions=torch.arange(20, 30)))
    buffer = Memory(torch.empty(1 << 16, dtype=torch.uint8))
    assert KvSerializer(codec).serialize(told, buffer, None) == sizes[20] + 8


def test_what_does_not_fit_is_told(chunk, fitted):  # noqa: F811
    codec, x = chunk
    serializer, room = KvSerializer(codec), Memory(torch.empty(1 << 16, dtype=torch.uint8))
    for wrong, why in (
        (x[:, :2], "expected a chunk"),
        (x[0], "expected a chunk"),
        (x.int(), "expected one of"),
        (x * torch.inf, "finite"),
        (x[:, :, :0], "one token"),
    ):
        with pytest.raises(UserError, match=why):
            serializer.serialize(Memory(wrong), room)
    with pytest.raises(UserError, match="without a tensor"):
        serializer.serialize(Memory(None), room)
    with pytest.raises(UserError, match="10 bytes; the chunk takes"):
        serializer.serialize(Memory(x), Memory(torch.empty(10, dtype=torch.uint8)))
    serializer.serialize(Memory(x), room)
    with pytest.raises(UserError, match="dst: expected"):
        KvDeserializer(codec).deserialize(room, Memory(torch.empty(2, 4, 11, 16)))
    with pytest.raises(BitstreamError, match="too large"):
        KvDeserializer(codec).deserialize(room, Memory(torch.empty(2, 4, 3, 16)))
    room.tensor[200] += 1
    with pytest.raises(BitstreamError):
        KvDeserializer(codec).deserialize(room, Memory(torch.empty_like(x)))
    sliding = load_kv(fitted("sliding")[1])
    with pytest.raises(UserError, match="keep all tokens"):
        KvSerializer(sliding).serialize(Memory(x), room)


def test_inside_lmcache(chunk, fitted):  # noqa: F811
    """Its factory, its memory objects, its thread; register only once."""
    serde = pytest.importorskip("lmcache.v1.distributed.serde", reason="needs lmcache")
    from lmcache.v1.distributed.api import MemoryLayoutDesc, ObjectKey
    from lmcache.v1.memory_management import MemoryObjMetadata, TensorMemoryObj

    def memory(shape, dtype, raw=None):
        size = torch.Size(shape).numel() * dtype.itemsize
        raw = (
            torch.zeros(size, dtype=torch.uint8) if raw is None else raw.flatten().view(torch.uint8)
        )
        meta = MemoryObjMetadata(torch.Size(shape), dtype, 0, size, 1)
        return TensorMemoryObj(raw, meta, None)

    _, x = chunk
    x = x.bfloat16()
    folder = fitted("grouped")[1]
    register()
    with pytest.raises(ValueError, match="already registered"):
        register()
    options = {"codec": str(folder), "quality": 6}
    processor = serde.create_serde_processor(serde.SerdeConfig("dtufc", options))
    assert isinstance(processor, serde.SerdeProcessor)
    layout = serde.serialized_layout_desc(MemoryLayoutDesc([x.shape], [x.dtype]), processor)
    buffer, out = memory(layout.shapes[0], torch.uint8), memory(x.shape, x.dtype)
    key = ObjectKey(b"hash", "model", 0)

    def wait(ask, task):
        deadline = time.time() + 30
        while (done := ask(task)) is None and time.time() < deadline:
            time.sleep(0.01)
        return done

    source = memory(x.shape, x.dtype, x)
    assert wait(
        processor.query_serialize_result, processor.submit_serialize([source], [buffer], [key])
    )
    assert buffer.get_size() < x.numel() * 2
    assert wait(
        processor.query_deserialize_result, processor.submit_deserialize([buffer], [out], [key])
    )
    assert (out.tensor - x).float().square().sum() < 0.01 * x.float().square().sum()
    processor.close()
    with pytest.raises(UserError, match="expected codec"):
        make_processor({"codec": str(folder), "speed": 1})
