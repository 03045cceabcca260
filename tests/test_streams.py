"""Sessions: every codec, any pieces of bytes, and no damage that passes for rows."""

import sys
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import toy_feature

from dtufc import load_codec
from dtufc.bitstream import BitstreamError
from dtufc.codec import Codec
from dtufc.errors import UserError
from dtufc.feature import FeatureError
from dtufc.klt.codec import KltCodec
from dtufc.klt.model import rung
from dtufc.paths import REPOSITORY
from dtufc.streams import Limits, StreamDecoder, Tensor, open_session
from dtufc.streams.session import Session

sys.path.insert(0, str(REPOSITORY / "scripts"))  # scripts are no package

import small_codecs

KINDS = [(name, "tokens") for name in small_codecs.registered()]
KINDS += [(name, "maps") for name in ("klt", "int", "cast", "jpegxl", "hevc")]


def pieces(x: np.ndarray, axis: int, counts: list[int]) -> list[np.ndarray]:
    return np.split(x, np.cumsum(counts)[:-1], axis)


def send(codec: Codec, kind: str, counts: list[int], **session) -> tuple[list[bytes], np.ndarray]:
    """Header, frames of so many rows each, and end, of a made-up feature; and the feature."""
    x = small_codecs.made_up(kind, 100)
    encoder = codec.stream("x", **session)
    parts = pieces(x, 2 if kind == "tokens" else 0, counts)
    frames = [encoder.start(), *(encoder.append({"x": part}) for part in parts), encoder.close()]
    return frames, x


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_rows_of_every_codec_decode_as_its_bitstreams_do(name, kind, golden_codec):
    """A frame gives what the bitstream of its rows gives, however the bytes are cut."""
    codec = golden_codec(name, kind)
    counts = [1, 2, 1, 16] if kind == "tokens" else [1, 2, 3]
    frames, x = send(codec, kind, counts)
    decoder = StreamDecoder(codec)
    blocks = [block for frame in frames for block in decoder.blocks(frame)]
    decoder.finish()
    assert [block.first for block in blocks] == [0, *np.cumsum(counts)[:-1]]
    for block, part in zip(blocks, pieces(x, 2 if kind == "tokens" else 0, counts), strict=True):
        expected = codec.decode(codec.encode(part))
        assert (block.rows.dtype, block.rows.shape) == (expected.dtype, expected.shape)
        assert np.allclose(block.rows, expected, rtol=1e-5, atol=1e-5)
    data = b"".join(frames)
    for step in (1, 13, len(data)):
        again, rows = StreamDecoder(codec), []
        for at in range(0, len(data), step):
            rows += again.blocks(data[at : at + step])
        again.finish()
        assert all(
            np.array_equal(ours.rows, first.rows) for ours, first in zip(rows, blocks, strict=True)
        )


@pytest.mark.parametrize("name", small_codecs.registered())
def test_a_frame_costs_four_bytes_beside_its_payload(name, golden_codec):
    """At most, once the setting is told; three where the payload is below 32 bytes."""
    codec = golden_codec(name)
    encoder = codec.stream("x")
    encoder.start()
    for seed in range(4):
        row = small_codecs.made_up("tokens", seed)[:, :, :1]
        setting, payload = codec.encode_rows(row, codec.known[0].kind)
        cost = len(encoder.append({"x": row})) - len(payload)
        assert cost == (3 if len(payload) < 32 else 4) + (0 if seed else 2 + len(setting))


def test_klt_payloads_are_the_code_length_and_a_byte():
    """One token of a language model: no state, no checksum, no header of its own."""
    codec = load_codec("klt_llama3_tiny")
    mean = codec.model.transform.mean[0, :, 0]
    noise = np.random.default_rng(0).standard_normal((60, 1, 1, 1, 128))
    for quality in (-1, 0.5, 2):
        at = codec.at_quality(quality)
        for row in (mean + noise * codec.model.transform.unit).astype(np.float32):
            _, payload = at.encode_rows(row)
            vectors = np.concatenate([row[0, 0][:, :, None], np.zeros((7, 128, 1), "f4")])
            bits = at.model.quantise(vectors, at.grade)[2][0]
            assert abs(8 * len(payload) - bits) <= 10 + 0.02 * bits


def symbols_of(codec: KltCodec, x: np.ndarray, counts: list[int], monkeypatch) -> bytes:
    """What a session of these frames decodes to: clusters and symbols, row by row."""
    seen = []
    read = KltCodec._read

    def note(self, reader, model, count):
        found = read(self, reader, model, count)
        seen.append(np.column_stack(found))
        return found

    encoder, decoder = codec.stream("x"), StreamDecoder(codec)
    with monkeypatch.context() as patch:
        patch.setattr(KltCodec, "_read", note)
        patch.setattr(KltCodec, "decode_rows", _symbols_only)
        for part in pieces(x, 2, counts):
            decoder.feed(encoder.append({"x": part}))
    return np.concatenate(seen).tobytes()


def _symbols_only(codec: KltCodec, setting, payload, facts, shape) -> np.ndarray:
    """decode_rows without the transform, which is not asked for here."""
    from dtufc import range_coder

    model = codec.model.rungs[rung(codec.grade)]
    codec._read(range_coder.Decoder(payload, model.tables), model, shape[2])
    return np.zeros(shape, np.float32)


def random_counts(rng: np.random.Generator, rows: int) -> list[int]:
    """A random split of rows into frames."""
    cuts = np.flatnonzero(rng.random(rows - 1) < rng.random()) + 1
    return np.diff([0, *cuts, rows]).tolist()


@pytest.mark.parametrize(
    ("name", "splits"),
    [
        ("small", 1000),
        ("klt_llama3_tiny", 20),
        pytest.param("klt_llama3_tiny", 1000, marks=pytest.mark.slow),
    ],
)
def test_random_splits_decode_to_the_same_symbols(name, splits, golden_codec, monkeypatch):
    rng = np.random.default_rng(0)
    if name == "small":
        codec, x = golden_codec("klt"), small_codecs.made_up("tokens", 100)
    else:
        codec = load_codec(name)
        x = toy_feature(3, 40) * np.float32(0.1)
    codec = codec.at_quality(2)
    rows = x.shape[2]
    whole = symbols_of(codec, x, [rows], monkeypatch)
    for _ in range(splits):
        counts = random_counts(rng, rows)
        assert symbols_of(codec, x, counts, monkeypatch) == whole


def test_many_tensors_with_many_codecs(golden_codec):
    """In one frame or in several, in any order, as often as they come, at any quality."""
    codecs = {
        "k0": golden_codec("klt"),
        "v0": golden_codec("int"),
        "m": golden_codec("cast", "maps"),
    }
    x, maps = small_codecs.made_up("tokens", 100), small_codecs.made_up("maps", 100)
    encoder = open_session(codecs, model="lm", tokenizer="t", split="0", metadata={"a": [1]})
    decoder = StreamDecoder(codecs.values())
    sent = {
        name: ("m" not in name and x[:, :, 4 * i : 4 * i + 4]) if name != "m" else maps[i : i + 1]
        for i, name in enumerate(codecs)
    }
    frame = encoder.append(sent)
    rows = decoder.feed(frame)
    assert decoder.session == encoder.session and decoder.session.metadata == {"a": [1]}
    for name, part in sent.items():
        expected = codecs[name].decode(codecs[name].encode(part))
        assert np.allclose(rows[name], expected, rtol=1e-5, atol=1e-5)
    finer = encoder.append({"v0": x[:, :, :4], "k0": x[:, :, :4]}, quality={"k0": 4, "v0": 8})
    coarse = encoder.append({"k0": x[:, :, :4]}, quality=-1)
    fine, rough = decoder.feed(finer)["k0"], decoder.feed(coarse)["k0"]
    assert np.square(fine - x[:, :, :4]).mean() < 0.1 * np.square(rough - x[:, :, :4]).mean()
    assert decoder.rows == encoder.rows == {"k0": 12, "v0": 8, "m": 1}
    decoder.feed(encoder.close())
    decoder.finish()


def test_one_check_serves_all_tensors_of_a_frame(golden_codec):
    """Sixty tensors, one token each: a byte per tensor and a check of two."""
    codec = golden_codec("klt")
    encoder = open_session({f"t{i}": codec for i in range(60)})
    row = small_codecs.made_up("tokens", 3)[:, :, :1]
    encoder.append(dict.fromkeys(encoder.rows, row))
    size = len(codec.encode_rows(row)[1])
    assert len(encoder.append(dict.fromkeys(encoder.rows, row))) == 60 * (size + 1) + 2


def test_rows_come_in_many_forms(golden_codec):
    codec = golden_codec("cast")
    encoder, decoder = codec.stream("x"), StreamDecoder(codec, dtype=torch.bfloat16)
    x = small_codecs.made_up("tokens", 1)
    forms = [x[:, :, :2], x[0, 0, :2], torch.from_numpy(x[0, 0, :2]), x[0, 0, 0], x[0, 0, 1]]
    data = b"".join(encoder.append({"x": form}) for form in forms)
    rows = decoder.feed(data)["x"]
    assert rows.dtype == torch.bfloat16 and rows.shape == (1, 1, 8, 6)
    assert torch.equal(rows[0, 0], torch.from_numpy(np.tile(x[0, 0, :2], (4, 1))).bfloat16())


def test_features_that_fix_their_samples_take_a_frame_each(golden_codec):
    """Where a codec knows features of one sample alone, two rows are two frames."""
    codec = golden_codec("cast", "maps")
    facts = replace(codec.facts, shape=[1, 2, 3, 3])
    fixed = type(codec)(facts, codec.arrays, 24)
    maps = small_codecs.made_up("maps", 1)
    encoder, decoder = fixed.stream("m"), StreamDecoder(fixed)
    blocks = decoder.blocks(encoder.append({"m": maps[:3]}))
    assert [block.rows.shape for block in blocks] == [(1, 2, 3, 3)] * 3
    assert np.array_equal(np.concatenate([block.rows for block in blocks]), maps[:3])
    assert decoder.rows == {"m": 3}


def test_a_header_may_be_named_by_its_digest(golden_codec):
    codec = golden_codec("klt")
    encoder = codec.stream("x", named=True, metadata={"long": "x" * 500})
    data = encoder.append({"x": small_codecs.made_up("tokens", 1)})
    assert len(encoder.session.header(named=True)) == 18
    decoder = StreamDecoder(codec, known=[codec.stream("x").session, encoder.session])
    assert decoder.feed(data)["x"].shape == (1, 1, 20, 6)
    with pytest.raises(BitstreamError, match="is not known here"):
        StreamDecoder(codec).feed(data)


def test_a_receiver_joins_at_a_restart_point(golden_codec):
    codec = golden_codec("klt")
    x = small_codecs.made_up("tokens", 1)
    encoder = codec.stream("x")
    header = encoder.start()
    lost = encoder.append({"x": x[:, :, :5]}, quality=3)
    later = encoder.restart() + encoder.append({"x": x[:, :, 5:]}) + encoder.close()
    decoder = StreamDecoder(codec, join=True)
    (block,) = decoder.blocks(header + later)
    decoder.finish()
    assert (block.first, block.rows.shape[2], decoder.rows) == (5, 15, {"x": 20})
    with pytest.raises(BitstreamError, match="restart point alone"):
        StreamDecoder(codec, join=True).blocks(header + lost)
    with pytest.raises(BitstreamError, match=r"corrupted|frames before it"):
        StreamDecoder(codec).blocks(header + later)


def test_restart_points_may_come_by_themselves(golden_codec):
    codec = golden_codec("klt")
    x = small_codecs.made_up("tokens", 1)
    plain, often = codec.stream("x"), codec.stream("x", restart_every=1)
    sizes = [
        sum(len(one.append({"x": x[:, :, i : i + 1]})) for i in range(20)) for one in (plain, often)
    ]
    assert sizes[1] > sizes[0] + 20 * 10
    with pytest.raises(UserError, match="restart_every: expected at least 1"):
        codec.stream("x", restart_every=0)


def test_samples_are_told_apart(golden_codec):
    codec = golden_codec("cast")
    x = small_codecs.made_up("tokens", 1)
    encoder, decoder = codec.stream("x"), StreamDecoder(codec)
    data = encoder.new_sample("first") + encoder.append({"x": x[:, :, :2]})
    data += encoder.new_sample("second") + encoder.append({"x": x[:, :, 2:5]})
    blocks = decoder.blocks(data)
    assert [(block.sample, block.first) for block in blocks] == [(0, 0), (1, 0)]
    assert (decoder.sample, decoder.key, decoder.rows) == (1, "second", {"x": 3})
    with pytest.raises(UserError, match="several samples; use blocks"):
        StreamDecoder(codec).feed(data)


def expect_prefix(codec: Codec, data: bytes, whole: list[np.ndarray]) -> int:
    """Damaged bytes give nothing but the first whole frames, and are refused -> how many came."""
    decoder, blocks = StreamDecoder(codec), []
    with pytest.raises(BitstreamError):
        for at in range(0, len(data), 50):
            blocks += decoder.blocks(data[at : at + 50])
        decoder.finish()
    for block, true in zip(blocks, whole, strict=False):
        assert np.array_equal(block.rows, true)
    assert len(blocks) <= len(whole)
    return len(blocks)


def test_cut_sessions_give_all_whole_frames_and_say_where_they_end(golden_codec):
    codec = golden_codec("klt")
    frames, _ = send(codec, "tokens", [1] * 20)
    whole = [StreamDecoder(codec).blocks(b"".join(frames))[i].rows for i in range(20)]
    ends = np.cumsum([len(frame) for frame in frames])
    data = b"".join(frames)
    for size in range(len(data)):
        assert expect_prefix(codec, data[:size], whole) == max(0, int((ends <= size).sum()) - 1)
    decoder = StreamDecoder(codec)
    decoder.feed(data[: ends[3] + 2])
    with pytest.raises(BitstreamError, match=rf"byte {ends[3]}, frame 3, .*'x': 3.* 2 bytes of a"):
        decoder.finish()


def test_damage_loss_and_disorder_are_found(golden_codec):
    codec = golden_codec("klt")
    frames, _ = send(codec, "tokens", [1] * 20)
    whole = [block.rows for block in StreamDecoder(codec).blocks(b"".join(frames))]
    data = b"".join(frames)
    rng = np.random.default_rng(0)
    for at in range(len(data)):  # every byte, one bit of it
        broken = bytearray(data)
        broken[at] ^= 1 << int(rng.integers(8))
        expect_prefix(codec, bytes(broken), whole)
    for first in range(1, 20):
        kept = frames[:first] + frames[first + 1 :]
        swapped = [*frames[:first], frames[first + 1], frames[first], *frames[first + 2 :]]
        twice = frames[: first + 1] + frames[first:]
        for broken in (kept, swapped, twice):
            came = expect_prefix(codec, b"".join(broken), whole)
            assert came == first - 1 + (broken is twice)
    with pytest.raises(BitstreamError, match="behind the end"):
        decoder = StreamDecoder(codec)
        decoder.blocks(data)
        decoder.blocks(b"x")


def test_whole_frames_are_given_before_damage_is_told(golden_codec):
    codec = golden_codec("klt")
    frames, _ = send(codec, "tokens", [5, 5, 10])
    decoder = StreamDecoder(codec)
    broken = b"".join(frames[:3]) + bytes([frames[3][0] ^ 1]) + frames[3][1:] + b"more" * 40
    assert decoder.feed(broken)["x"].shape[2] == 10
    for call in (lambda: decoder.feed(b""), decoder.finish):
        with pytest.raises(BitstreamError, match=r"corrupted|inconsistent|too large"):
            call()


def test_the_receiver_sets_the_limits(golden_codec):
    codec = golden_codec("cast")
    frames, _ = send(codec, "tokens", [10, 10], metadata={"text": "x" * 3000})
    data = b"".join(frames)
    StreamDecoder(codec, limits=Limits(session_bytes=len(data), session_rows=20)).feed(data)
    for limits, why in (
        (Limits(header_bytes=400), "description of more than 400"),
        (Limits(header_bytes=40), "header of"),
        (Limits(frame_bytes=30), "bytes, limit 30"),
        (Limits(frame_rows=9), "10 rows"),
        (Limits(frame_points=59), "60 points"),
        (Limits(session_rows=9), "more than 9 rows"),
        (Limits(session_bytes=len(data) - 1), "bytes in the session"),
    ):
        with pytest.raises(BitstreamError, match=rf"too large: .*{why}"):
            StreamDecoder(codec, limits=limits).feed(data)
    two = open_session({"first": codec, "second": codec}).start()
    for limits in (Limits(tensors=1), Limits(name_bytes=5)):
        with pytest.raises(BitstreamError, match="too large"):
            StreamDecoder(codec, limits=limits).feed(two)
    with pytest.raises(UserError, match="frame_rows: expected at least 1"):
        Limits(frame_rows=0)


def test_a_hostile_description_is_refused(golden_codec):
    codec = golden_codec("klt")
    spec = codec.stream("x").session.tensors[0]
    for change in (
        {"row": (1, 1, 1, 7)},
        {"dtype": "float16"},
        {"codec": "0" * 64},
        {"kind": "a_b"},
    ):
        session = Session((replace(spec, **change),))
        with pytest.raises(BitstreamError, match=r"is no small_tokens|written by codec"):
            StreamDecoder(codec).feed(session.header())


def test_wrong_use_is_told_and_changes_nothing(golden_codec):
    codec = golden_codec("klt")
    x = small_codecs.made_up("tokens", 1)
    encoder = codec.stream("x")
    for rows, why in (
        ({}, "expected rows of some"), ({"y": x}, "expected some of"), ({"x": x[:, :, :0]}, "got shape"),
        ({"x": x[..., :5]}, "expected rows of"), ({"x": x.astype("f8")}, "float16 or float32"),
        ({"x": x * np.float32(np.nan)}, "NaN"), ({"x": [1]}, "NumPy array"),
    ):  # fmt: skip
        with pytest.raises((FeatureError, UserError), match=why):
            encoder.append(rows)
    with pytest.raises(UserError, match="quality"):
        encoder.append({"x": x}, quality=99)
    data = encoder.append({"x": x}) + encoder.close()
    assert StreamDecoder(codec).feed(data)["x"].shape == x.shape
    with pytest.raises(UserError, match="closed"):
        encoder.append({"x": x})
    with pytest.raises(UserError, match="key: expected at most 255 bytes"):
        codec.stream("x").new_sample("x" * 256)
    with pytest.raises(UserError, match="kind: expected one of"):
        codec.stream("x", kind="no_such")
    with pytest.raises(UserError, match="metadata: no JSON"):
        codec.stream("x", metadata={"x": {1}})
    with pytest.raises(UserError, match="different names"):
        open_session({})
    open_ends = replace(codec.facts, shape=[None, None, None, 6])
    loose = type(golden_codec("cast"))(open_ends, {}, 24)
    with pytest.raises(UserError, match="name all sizes"):
        open_session({"x": replace_known(loose, [None, None, None, None])})
    heads = open_session({"x": Tensor(loose, row=(1, 3, 1, 6))})
    assert heads.append({"x": np.zeros((1, 3, 2, 6), np.float32)})


def replace_known(codec: Codec, shape: list[int | None]) -> Codec:
    return type(codec)(replace(codec.facts, shape=shape), codec.arrays, codec.quality)


def test_versions_are_told_apart(golden_codec):
    codec = golden_codec("klt")
    frames, x = send(codec, "tokens", [20])
    with pytest.raises(BitstreamError, match=r"version 2: .*open_stream"):
        codec.decode(b"".join(frames))
    with pytest.raises(BitstreamError, match="version 1: expected a stream"):
        StreamDecoder(codec).feed(codec.encode(x))
    with pytest.raises(BitstreamError, match="foreign"):
        StreamDecoder(codec).feed(b"RIFF")


def test_memory_does_not_grow_with_the_session(golden_codec):
    codec = golden_codec("cast")
    row = small_codecs.made_up("tokens", 1)[:, :, :1]
    encoder, decoder = codec.stream("x", restart_every=1000), StreamDecoder(codec)

    def run(count: int) -> int:
        for _ in range(count):
            decoder.feed(encoder.append({"x": row}))
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        start = run(300)
        assert run(1200) - start < 4000
    finally:
        tracemalloc.stop()
    assert decoder.rows == {"x": 1500}
