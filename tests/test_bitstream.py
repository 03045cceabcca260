"""The container: pinned bytes, exact round trips, and an error for everything else."""

import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtufc.bitstream import Bitstream, BitstreamError, pack, unpack

STREAM = Bitstream(
    codec_id=bytes.fromhex("00010203"),
    mapping_id=bytes.fromhex("a0a1a2a3"),
    dtype="float32",
    shape=(1, 128, 7, 7),
    grid=(16, 8),
    parts=(b"hello", b""),
)


@st.composite
def bitstreams(draw):
    size = st.integers(1, 300)
    rows, cols = draw(st.integers(1, 20)), draw(st.integers(1, 20))
    tiles = draw(st.booleans())
    channels = rows * cols if tiles else draw(size)
    return Bitstream(
        codec_id=draw(st.binary(min_size=4, max_size=4)),
        mapping_id=draw(st.binary(min_size=4, max_size=4)),
        dtype=draw(st.sampled_from(["float16", "float32"])),
        shape=(draw(st.integers(1, 3)), channels, draw(size), draw(size)),
        grid=(rows, cols) if tiles else None,
        parts=tuple(draw(st.lists(st.binary(max_size=400), max_size=5))),
        mode=draw(st.integers(0, 15)),
    )


@given(bitstreams())
def test_round_trip(stream):
    data = pack(stream)
    assert unpack(data) == stream
    assert stream.payload_size + 20 <= len(data) <= stream.payload_size + 60


def test_golden_bytes():
    # magic, version, ids, float32 mode 0, shape, tiles 16 x 8, two parts of 5 and 0 bytes
    body = "5546430100010203a0a1a2a301018001070701100802050068656c6c6f"
    assert pack(STREAM).hex() == body + "0526872a"


def test_the_errors_say_which():
    data = pack(STREAM)
    for bad, text in (
        (b"", "foreign"),
        (b"PNG" + data[3:], "foreign"),
        (data[:10], "truncated"),
        (data[:-1], "corrupted or truncated"),
        (data[:3] + b"\x02" + data[4:], "version 2"),
        (data[:20] + b"\xff" + data[21:], "checksum"),
        (data + b"x", "checksum"),
    ):
        with pytest.raises(BitstreamError, match=text):
            unpack(bad)


def seal(body: bytes) -> bytes:
    """A body with a checksum that matches: what an attacker would send."""
    return body + zlib.crc32(body).to_bytes(4, "little")


@given(st.data())
def test_sealed_damage_is_refused_or_consistent(data):
    body = bytearray(pack(STREAM)[:-4])
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(4, len(body) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(13, len(body)))
    try:
        stream = unpack(seal(bytes(body[:cut])))
    except BitstreamError:
        return
    assert unpack(pack(stream)) == stream


def test_impossible_sizes_are_refused():
    good = pack(STREAM)[:-4]
    for shape, text in (
        (b"\x00\x80\x01\x07\x07", "impossible shape"),
        (b"\xff\xff\xff\xff\xff\xff\x01", "35 bits"),
        (b"\xff\xff\xff\xff\x0f\x80\x01\x07\x07", "impossible shape"),
        (b"\x01\x7f\x07\x07", "tiles"),
    ):
        with pytest.raises(BitstreamError, match=text):
            unpack(seal(good[:13] + shape + good[18:]))
    with pytest.raises(BitstreamError, match="longer than the file"):
        unpack(seal(good[:-5]))
    with pytest.raises(BitstreamError, match="after the last part"):
        unpack(seal(good + b"x"))
    with pytest.raises(ValueError, match="split the feature"):
        pack(Bitstream(bytes(4), bytes(4), "float32", (1, 1, 1 << 15, 1 << 14), None, ()))
