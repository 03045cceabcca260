"""klt's second format: any rate, the same symbols everywhere, damaged and hostile bytes."""

import shutil
import tracemalloc

import numpy as np
import pytest
import torch
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays
from test_klt import (
    fit_maps,
    fit_tokens,
    picture_like,
    test_any_rate_from_one_model,  # noqa: F401  it runs here too, on this file's codecs
)

from dtufc.bitstream import Bitstream, BitstreamError, pack, unpack
from dtufc.codec import load_codec
from dtufc.errors import UserError
from dtufc.feature import FeatureError, read_feature
from dtufc.klt.codec import check_of, put_raw
from dtufc.klt.model import WEIGHTS, rung


@pytest.fixture(scope="module")
def token_codec(toy, tmp_path_factory):
    """A codec of the toy token features, and their test folder."""
    return fit_tokens(toy, tmp_path_factory.mktemp("klt"), "--format", "2")


@pytest.fixture(scope="module")
def map_codec(tmp_path_factory):
    """A codec of spatial maps, and the folder of its training features."""
    return fit_maps(tmp_path_factory.mktemp("maps"), "--format", "2")


def test_symbols_do_not_depend_on_threads_or_device(token_codec):
    folder, features = token_codec
    codec = load_codec(folder)
    data = codec.encode(read_feature(next(features.iterdir())))
    stream = unpack(data)
    grade = int.from_bytes(stream.parts[0], "little", signed=True)
    count = codec.facts.views.count_vectors(stream.shape, 1)
    results, before = [], torch.get_num_threads()
    try:
        ways = [(1, True, "cpu"), (2, True, "cpu"), (1, False, "cpu")]
        ways += [(1, True, "cuda")] if torch.cuda.is_available() else []
        for threads, mkldnn, device in ways:
            torch.set_num_threads(threads)
            with torch.backends.mkldnn.flags(enabled=mkldnn):
                other = load_codec(folder, device=device)
                check = check_of(stream.parts[0], stream.parts[3:], stream.shape)
                clusters, _, symbols = other.read_lanes(
                    *stream.parts[1:3], grade, count, check, symbols=True
                )
                results.append((clusters, symbols, other.decode(data)))
    finally:
        torch.set_num_threads(before)
    for clusters, symbols, decoded in results[1:]:
        assert np.array_equal(clusters, results[0][0])
        assert np.array_equal(symbols, results[0][1])
        assert np.allclose(decoded, results[0][2], rtol=1e-5, atol=1e-5 * np.abs(decoded).max())


def test_damaged_and_foreign_bytes_are_refused(token_codec, map_codec):
    folder, features = token_codec
    codec = load_codec(folder)
    x = read_feature(next(features.iterdir()))
    data = codec.encode(x)
    with pytest.raises(BitstreamError, match="written by codec"):
        load_codec(map_codec[0]).decode(data)
    with pytest.raises(BitstreamError):
        codec.decode(data[:-9])
    stream = unpack(data)
    rng = np.random.default_rng(0)
    for _ in range(40):  # damage below the checksum of the container
        part = bytearray(stream.parts[1])
        part[rng.integers(len(part))] ^= 1 << rng.integers(8)
        broken = {**vars(stream), "parts": (stream.parts[0], bytes(part), stream.parts[2])}
        with pytest.raises(BitstreamError):
            codec.decode(pack(Bitstream(**broken)))
    for raw in (b"", b"\1\0\0\0", (2).to_bytes(4, "little") + bytes(8) + bytes(8 * x.shape[3])):
        with pytest.raises(BitstreamError, match="raw v"):
            put_raw(raw, np.zeros((4, x.shape[3], 1), np.float32))
    with pytest.raises(FeatureError, match="toy_hidden takes"):
        codec.encode(x.astype(np.float16))


def test_all_that_decides_values_is_under_the_check(token_codec):
    """Quality, shape, raw vectors and the mode itself: a forger who seals again is found out."""
    folder, features = token_codec
    codec = load_codec(folder)
    x = read_feature(next(features.iterdir())).copy()
    x[0, 0, 3, 5] = 3e38  # one vector is sent as it is
    stream = vars(unpack(codec.encode(x)))
    assert stream["mode"] == 2
    assert len(stream["parts"]) == 4
    grade, lanes, beside, raw = stream["parts"]
    n, c, h, w = stream["shape"]
    changes = [
        {"parts": (bytes([grade[0] ^ 1 << i, grade[1]]), lanes, beside, raw)} for i in range(8)
    ]
    changes += [{"parts": (grade, lanes, beside, raw[:-1] + bytes([raw[-1] ^ 1]))}]
    changes += [{"parts": (grade, lanes, beside + more, raw)} for more in (b"\0", b"\1", b"\x80")]
    changes += [{"parts": (grade, lanes, beside)}, {"parts": (grade, lanes)}]
    changes += [{"mode": mode} for mode in (0, 1, 3)]
    changes += [{"shape": (n, c, h + 1, w)}, {"shape": (n, c, h - 1, w)}]
    for change in changes:
        with pytest.raises(BitstreamError):
            codec.decode(pack(Bitstream(**{**stream, **change})))


def test_few_bytes_take_little_memory(token_codec, map_codec):
    """39 bytes that announce 2^21 rows, or 2^28 points, are refused before memory is taken."""
    for folder, shape in ((token_codec[0], (1, 1, 1 << 21, 128)), (map_codec[0], (1, 4, 12, 12))):
        codec = load_codec(folder)
        tables = codec.model.rungs[rung(0)]
        assert (
            tables.slots and tables.least and len(tables.values) and len(tables.pairs)
        )  # not measured
        one_map = shape[1] == 4
        forged = Bitstream(
            codec.id[:4], bytes(4), codec.facts.dtype, shape, codec.facts.views.grid(shape[1]),
            (bytes(2), b"\1" + bytes(8 if one_map else 12), b""), 2,
        )  # fmt: skip
        tracemalloc.start()
        with pytest.raises(BitstreamError):
            codec.decode(pack(forged))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 100 << 20
    with pytest.raises(BitstreamError, match="the limit is 100"):
        codec.decode(codec.encode(picture_like(0)), max_points=100)


@pytest.mark.parametrize("name", ["mean", "basis", "freqs", "sizes", "banks", "offset", "centroid",
                                  "chosen", "clusters", "shift"])  # fmt: skip
def test_hostile_arrays_are_named(token_codec, tmp_path, name):
    """Missing, of another dtype or shape, not finite, beyond the tables: one line at loading."""
    folder = tmp_path / "codec"
    shutil.copytree(token_codec[0], folder)
    stored = load_arrays((folder / "model.safetensors").read_bytes())
    if name not in stored:
        pytest.skip("the fit chose no basis")
    array = stored[name]
    wrong = [None, array[:-1], array.astype(np.float64), np.zeros((0,), array.dtype)]
    if array.dtype.kind == "f":
        wrong += [np.full_like(array, np.nan), np.full_like(array, np.inf)]
        wrong += [np.full_like(array, 1e30)] * (name == "centroid")
        wrong += [np.full_like(array, value) for value in (1.1e30, -3e38)] * (name == "mean")
        wrong += [np.full_like(array, value) for value in (2.1, -65504)] * (name == "basis")
    else:
        wrong += [np.full_like(array, np.iinfo(array.dtype).max)]
    if array.dtype == np.int32:
        wrong += [np.full_like(array, np.iinfo(np.int32).min)]
        wrong += [np.full_like(array, -1)] * (name != "offset")
        wrong += [np.zeros_like(array)] * (name != "offset")
    for value in wrong:
        changed = {key: entry for key, entry in stored.items() if key != name}
        if value is not None:
            changed[name] = value
        (folder / "model.safetensors").write_bytes(save_arrays(changed))
        with pytest.raises(UserError, match=r"not a sound klt codec \(\w+ is") as caught:
            load_codec(folder)
        assert str(folder / WEIGHTS) in str(caught.value)
        assert "\n" not in str(caught.value)
        if name not in ("banks", "sizes"):  # others are told apart by these
            assert name in str(caught.value)
