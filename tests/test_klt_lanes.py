"""Second generation of klt: the best path, lanes, what stands beside them, the same bytes on a GPU."""

import importlib.util
import itertools
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtufc.bitstream import BitstreamError
from dtufc.feature import FeatureFacts
from dtufc.klt import coder, fit_ladder, lanes, side, trellis
from dtufc.klt.codec import KltCodec
from dtufc.klt.fit_tables import Coded
from dtufc.klt.model import PER_OCTAVE, RUNGS, KltModel, Layout, Transform

WEIGHT = 0.12


def toy_codec(width=12, clusters=1, quality=1.0, lead=1.0, contexts=False):
    """A codec of one step for all qualities, and what draws features (1, 1, n, width) of its kind."""
    rng = np.random.default_rng(0)
    bases = [np.linalg.qr(rng.standard_normal((width, width)))[0] for _ in range(clusters)]
    basis = np.stack(bases).astype(np.float16).astype(np.float32)
    mean = 2 * rng.standard_normal((clusters, width, 1)).astype(np.float32)
    scale = np.geomspace(3, 0.1, width).astype(np.float32)
    scale[0] *= lead

    def draw(count: int) -> np.ndarray:
        own = rng.integers(clusters, size=count)
        z = rng.standard_normal((count, width)).astype(np.float32) * scale
        x = np.einsum("rd,rcd->rc", z, basis[own]) + mean[own, :, 0]
        x[rng.random(count) < 0.02] *= 20
        return x[None, None].astype(np.float32)

    transform = Transform(Layout(True, 1, clusters, True), mean, basis, 1.0)
    sample = draw(600)[0, 0, :, :, None]
    coded = Coded.plain(transform, sample)
    steps = [round(PER_OCTAVE * quality)]
    (tables,) = fit_ladder.fit(transform, coded, steps, WEIGHT, contexts)
    axes = ["sample", "layer", "token", "channel"]
    facts = FeatureFacts("toy", "hidden", [1, 1, None, width], axes)
    return KltCodec(KltModel(facts, transform, (tables,) * RUNGS, WEIGHT), quality), draw


TOYS = {
    "one basis": {},
    "mixture": {"clusters": 3},
    "fine": {"quality": 5.0},
    "low bits": {"lead": 100.0},
}


@pytest.fixture(scope="module", params=TOYS, ids=lambda name: name.replace(" ", "_"))
def toy(request):
    return toy_codec(**TOYS[request.param])


def search(values: np.ndarray, parameters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Symbols (D, R) and costs (R,), of two tables with symbols -120 .. 120."""
    width, count = values.shape
    units = np.empty(values.shape, np.int32)
    trellis.to_units(values.astype(np.float32), np.float32(trellis.UNIT), units)
    code, symbols = np.empty((width, count), np.uint16), np.empty((width, count), np.int32)
    costs = np.empty(count)
    tables = np.stack([np.zeros(width, np.int32), np.ones(width, np.int32)])
    trellis.search(
        units, tables, np.zeros(width, np.int32), parameters, np.full(2, -120, np.int32),
        np.full(2, 241, np.int32), np.arange(count), code, symbols, costs,
    )  # fmt: skip
    return symbols, costs


def stands_for(symbols: np.ndarray) -> np.ndarray:
    """(D, R) symbols -> values in fine steps, by the state machine."""
    state, out = np.zeros(symbols.shape[1], int), np.empty(symbols.shape)
    for row, k in zip(out, symbols, strict=True):
        row[:] = 2 * k - (state & 1) * np.sign(k)
        state = trellis.NEXT[state, k & 1]
    return out


def test_search_gains_what_eight_states_can():
    """Granular gain over a uniform quantiser of the same symbols: 1.0 to 1.2 dB (1.53 dB at most)."""
    free = np.zeros((3, trellis.PARAMETERS), np.int32)
    free[:, 8:] = 10**6
    values = np.random.default_rng(0).uniform(-200, 200, (128, 96))
    symbols, costs = search(values, free)
    error = np.mean(np.square(stands_for(symbols) - values))
    assert error == pytest.approx(costs.mean() / len(values), rel=0.02)
    assert 1.0 < 10 * np.log10(4 / 12 / error) < 1.2


def test_search_finds_the_best_of_all_sequences():
    rng = np.random.default_rng(1)
    parameters = np.zeros((3, trellis.PARAMETERS), np.int32)
    parameters[:2, :3] = [[400, 3000, 5000], [900, 2500, 6000]]
    parameters[:2, 3:5] = [[1000, 2000], [1500, 1500]]
    parameters[:, 8:] = 10**6
    values = 2 * rng.standard_normal((4, 40))
    _, costs = search(values, parameters)
    best = np.full(40, np.inf)
    for symbols in itertools.product(range(-3, 4), repeat=4):
        state, total = 0, 0.0
        for value, k in zip(values, symbols, strict=True):
            p, m = parameters[state & 1], abs(k)
            rate = p[m] if m < 3 else p[3] + p[4] * m
            total = total + np.square(2 * k - (state & 1) * np.sign(k) - value) + rate / 4096
            state = trellis.NEXT[state, k & 1]
        best = np.minimum(best, total)
    assert np.abs(costs - best).max() < 0.1  # values are rounded to 64ths


def test_search_takes_any_number_of_vectors():
    """What fills the last block of eight does not count."""
    parameters = np.zeros((3, trellis.PARAMETERS), np.int32)
    parameters[:2, :3] = [[400, 3000, 5000], [900, 2500, 6000]]
    parameters[:, 8:] = 10**6
    values = 3 * np.random.default_rng(2).standard_normal((30, 40))
    symbols, costs = search(values, parameters)
    for count in (1, 7, 8, 9, 33):
        some, cost = search(np.ascontiguousarray(values[:, :count]), parameters)
        assert np.array_equal(some, symbols[:, :count])
        assert np.array_equal(cost, costs[:count])


def test_codec_gives_back_what_was_searched(toy):
    codec, draw = toy
    x = draw(300)
    found, raw = codec.model.search(x[0, 0, :, :, None], codec.grade)
    assert not raw.any()
    data = codec.encode(x)
    stands = codec.model.restore(found.modes, found.symbols.T, codec.grade, 300)
    np.testing.assert_allclose(codec.decode(data)[0, 0], stands[:, :, 0], rtol=1e-5, atol=1e-5)
    tables = codec.model.rungs[0]
    promised = tables.promised(found.code, found.modes).sum()
    promised -= 300 * tables.shift.sum() + 2 * found.escapes  # what stands beside the lanes
    assert abs(8 * len(codec.encode_parts(x)[1]) - promised) < 0.01 * promised + 8 * 8
    for count in (1, 2, 15, 16, 17, 33):
        assert codec.decode(codec.encode(x[:, :, :count])).shape == (1, 1, count, 12)


def test_toys_take_every_path():
    """Escapes, low bits and several modes are all tested, and lanes of several groups."""
    found = {}
    for name, values in TOYS.items():
        codec, draw = toy_codec(**values)
        coded, _ = codec.model.search(draw(300)[0, 0, :, :, None], codec.grade)
        found[name] = (coded.escapes, codec.model.rungs[0].shift.max(), np.unique(coded.modes).size)
    assert found["one basis"][0] > 0
    assert found["low bits"][1] > 3 and found["fine"][1] > 0
    assert found["mixture"][2] > 1


@pytest.mark.parametrize("count", [1, 2, 5, 32, 33, 70, 131])
def test_any_number_of_lanes_gives_the_symbols_back(toy, count):
    codec, draw = toy
    tables = codec.model.rungs[0]
    found, _ = codec.model.search(draw(131)[0, 0, :, :, None], codec.grade)
    string = lanes.encode(found.code, found.modes, tables.mode_table, tables.slots, count, 77)
    reader = lanes.Reader(string, 131)
    assert len(reader.states) == count
    modes = np.zeros(131, np.int32)
    if tables.mode_table >= 0:
        modes = reader.modes(tables.slots, tables.mode_table)
    assert np.array_equal(modes, found.modes)
    y, symbols = np.empty(found.code.shape, np.float32), np.empty(found.code.shape, np.int32)
    wide = found.symbols[tables.shift > 0] & ((1 << tables.shift[tables.shift > 0]) - 1)[:, None]
    hashes, escapes = reader.components(
        modes,
        tables.pairs,
        tables.slots,
        tables.values,
        tables.wide,
        wide,
        tables.low,
        tables.magnitudes,
        tables.limits,
        y,
        symbols,
    )
    reader.finish((hashes ^ 77) & 0xFFFFFFFF)
    held = (found.code & 255) != trellis.ESCAPE
    assert escapes == (~held).sum()
    assert np.array_equal(symbols[held], found.symbols[held])
    assert np.isinf(y[~held]).all()


def test_lanes_cost_little():
    codec, draw = toy_codec()
    tables = codec.model.rungs[0]
    found, _ = codec.model.search(draw(20_000)[0, 0, :, :, None], codec.grade)
    count = lanes.lanes_for(tables.average_of(np.bincount(found.modes)), 20_000)
    sizes = [
        len(lanes.encode(found.code, found.modes, -1, tables.slots, number, 0))
        for number in (1, count)
    ]
    assert count > lanes.GROUP
    assert sizes[1] < 1.004 * sizes[0]


def test_damage_is_found(toy):
    codec, draw = toy
    parts = codec.encode_parts(draw(50))
    rng = np.random.default_rng(0)
    for number in (1, 2):
        for _ in range(60 if parts[number] else 0):
            broken = [bytearray(part) for part in parts]
            broken[number][rng.integers(len(broken[number]))] ^= 1 << rng.integers(8)
            with pytest.raises(BitstreamError):
                codec.decode_parts(tuple(map(bytes, broken)), (1, 1, 50, 12), 2)
    for cut in range(len(parts[1])):
        with pytest.raises(BitstreamError):
            codec.decode_parts((parts[0], parts[1][:cut], parts[2]), (1, 1, 50, 12), 2)


@given(st.lists(st.integers(1, 2**32), max_size=30))
def test_numbers_come_back(numbers):
    data, end = np.zeros(1 + 9 * len(numbers), np.uint8), 0
    for value in numbers:
        end = side.put(value, data, end)
    data = data[: (end + 7) >> 3]
    found, at = [], 0
    for _ in numbers:
        value, at = side.take(data, at)
        found.append(value)
    assert found == numbers
    assert at == end
    assert side.take(data, at)[1] == side.DAMAGED


def test_escapes_end_where_they_should():
    side.check_end(9, 2)
    for end, size in ((9, 1), (9, 3), (side.DAMAGED, 1)):
        with pytest.raises(ValueError, match="escaped symbols are damaged"):
            side.check_end(end, size)
    data = np.zeros(9, np.uint8)
    for shift, sound in ((0, True), (9, False)):
        side.put(side.number(2**22, shift, -3, 7), data, 0)
        k, end = side.take_escape(data, 0, shift, -3, 7, 0)
        assert k == 2 ** (22 + shift)
        assert (end > 0) == sound
        data[:] = 0
    with pytest.raises(ValueError, match="out of range"):
        side.check_end(end, 9)


@given(st.integers(-(2**20), 2**20), st.integers(0, 1), st.integers(-5, 0), st.integers(1, 9))
def test_what_is_coded_for_an_escape_names_it(k, shift, low, size):
    if low <= k < low + size or (shift == 0 and k % 2):
        return
    number = side.number(k, shift, low, size)
    assert number >= 1
    assert side.symbol(number, shift, low, size) == k


def test_escapes_that_are_listed_are_those_that_are_found(toy):
    """A device lists its escapes; a core reads them where it finds them. The string is the same."""
    codec, draw = toy
    tables = codec.model.rungs[0]
    found, _ = codec.model.search(draw(300)[0, 0, :, :, None], codec.grade)
    data = coder.write_escapes(tables, tables.every, found.code, found.symbols, found.escapes)
    at, column = np.nonzero((found.code & 255) == trellis.ESCAPE)
    code, symbols = found.code[at, column], found.symbols[at, column]
    assert coder.write_escapes(tables, at, code[:, None], symbols[:, None], len(at)) == data
    wide = tables.shift > 0
    low_bits = found.symbols[wide] & ((1 << tables.shift[wide]) - 1)[:, None]
    quantiser = (code >> 8 >= tables.first_size).astype(np.int64)
    listed = found.modes[column], low_bits[:, column], quantiser, at
    assert np.array_equal(coder.read_escapes(tables, data, *listed), symbols)
    for broken in (data + b"\0", data[:-1], b""):
        if len(at):
            with pytest.raises(ValueError, match="escaped symbols"):
                coder.read_escapes(tables, broken, *listed)


def test_low_bits_come_back():
    rng = np.random.default_rng(0)
    shift = np.array([1, 5, 3])
    symbols = rng.integers(-1000, 1000, (3, 21))
    data = side.pack_low(symbols, shift)
    assert len(data) == side.low_bytes(shift, 21)
    low = side.unpack_low(data, shift, 21)
    assert np.array_equal(low, symbols & ((1 << shift) - 1)[:, None])
    with pytest.raises(ValueError, match="low bits"):
        side.unpack_low(data[:-1], shift, 21)


def test_states_pair_up():
    """What the kernels of a GPU rely on: parities and quantisers mirror each other."""
    states = np.arange(trellis.STATES)
    assert np.array_equal(trellis.NEXT[:, 1], trellis.NEXT[states ^ 4, 0])
    assert np.array_equal(trellis.NEXT[states ^ 7], trellis.NEXT ^ 7)


def compare_with_device(device: str, count: int, **values) -> None:
    """Each side decodes what the other wrote. Where the device's products are the CPU's, which on a GPU
    they are not in the last bits, it writes the same bytes too."""
    import torch

    from dtufc.klt.gpu import GpuCoder, Tuning

    codec, draw = toy_codec(**values)
    x = draw(count)
    x[0, 0, 1, 2] = 3e38  # sent as it is
    few = Tuning(forward=2, walk=2, push=2, pull=2, block=16, rows=2)  # several blocks, and a rest
    coder = GpuCoder(codec, device, few if device == "cpu" else None)
    data = codec.encode(x)
    made = coder.encode(torch.from_numpy(x).to(device))
    if device == "cpu":
        assert made == data
    assert len(made) == pytest.approx(len(data), rel=0.01)
    for each in (made, data):
        expected = codec.decode(each)
        np.testing.assert_allclose(coder.decode(each).cpu().numpy(), expected, rtol=1e-2, atol=1e-2)
    with pytest.raises(BitstreamError):
        coder.decode(data[:-9] + bytes(9))
    if device != "cpu":  # a second layout; the interpreter would take its time
        whole = replace(codec.model, fine=toy_codec(**values | {"clusters": 2})[0].model)
        pair = KltCodec(replace(whole, fine_from=2 * PER_OCTAVE), 1.0)
        for one, other in ((pair, pair.at_quality(3)), (pair.at_quality(3), pair)):
            data = one.encode(x)
            expected = one.decode(data)
            decoded = GpuCoder(other, device).decode(data).cpu().numpy()
            np.testing.assert_allclose(decoded, expected, rtol=1e-2, atol=1e-2)


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.parametrize(
    "values",
    [
        {"clusters": 2, "width": 5},
        pytest.param({"lead": 100.0, "width": 5}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_kernels_make_the_same_bytes(values):
    """Under Triton's interpreter, which has to be asked for before the kernels are defined."""
    call = f"import test_klt_lanes as t; t.compare_with_device('cpu', 20, **{values!r})"
    paths = [str(Path(__file__).parent), *sys.path]
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(paths)}
    subprocess.run([sys.executable, "-c", call], env=environment, check=True)


@pytest.mark.gpu
@pytest.mark.parametrize("name", TOYS)
def test_cpu_and_gpu_decode_each_others_bytes(name):
    compare_with_device("cuda", 1000, **TOYS[name])
