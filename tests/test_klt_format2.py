"""klt's second format: any rate, the same symbols everywhere, damaged and hostile bytes."""

import numpy as np
import pytest
import torch
from test_klt import (
    check_damaged_bytes,
    check_hostile_arrays,
    check_memory,
    fit_maps,
    fit_tokens,
    picture_like,
    test_any_rate_from_one_model,  # noqa: F401  it runs here too, on this file's codecs
)

from dtufc.bitstream import Bitstream, BitstreamError, pack, unpack
from dtufc.codec import load_codec
from dtufc.feature import read_feature
from dtufc.klt.codec import check_of
from dtufc.klt.model import rung


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
    check_damaged_bytes(token_codec, map_codec)


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
        check_memory(
            codec, shape, (bytes(2), b"\1" + bytes(8 if shape[1] == 4 else 12), b""), mode=2
        )
    with pytest.raises(BitstreamError, match="the limit is 100"):
        codec.decode(codec.encode(picture_like(0)), max_points=100)


@pytest.mark.parametrize("name", ["mean", "basis", "freqs", "sizes", "banks", "offset", "centroid",
                                  "chosen", "clusters", "shift"])  # fmt: skip
def test_hostile_arrays_are_named(token_codec, tmp_path, name):
    """Missing, of another dtype or shape, not finite, beyond the tables: one line at loading."""
    check_hostile_arrays(token_codec[0], tmp_path, name)
