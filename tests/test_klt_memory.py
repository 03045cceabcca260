"""Memory: references to training vectors and earlier vectors, written exactly and one link deep."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from dtufc.bitstream import Bitstream, BitstreamError, pack, unpack
from dtufc.codec import load_codec
from dtufc.errors import UserError
from dtufc.feature import write_feature
from dtufc.klt import fit_klt, memory
from dtufc.klt.codec import KltCodec
from dtufc.klt.memory import DigitError, Memory, read_digits, settle, write_digits
from dtufc.klt.model import PER_OCTAVE

WORDS, CHANNELS = 60, 24


def sentence(seed: int, samples: int = 1, tokens: int = 40) -> np.ndarray:
    """(N, 1, T, C) float32: tokens of a few words, most of which come again, each with its own noise."""
    rng = np.random.default_rng(seed)
    words = np.random.default_rng(1).standard_normal((WORDS, CHANNELS)) * 4
    strange = rng.standard_normal((8, CHANNELS)) * 4  # words of this file alone
    words = np.concatenate([words, strange])
    odds = np.concatenate([1 / (1 + np.arange(WORDS)), np.full(8, 0.15)])
    said = rng.choice(len(words), (samples, 1, tokens), p=odds / odds.sum())
    x = words[said] + 0.4 * rng.standard_normal((samples, 1, tokens, CHANNELS))
    return x.astype(np.float32)


@pytest.fixture(scope="module", params=[1, 2], ids=lambda number: f"format{number}")
def folders(request, tmp_path_factory):
    """A codec with a memory, and one without."""
    root = tmp_path_factory.mktemp("memory")
    for i in range(20):
        write_feature(root / "train" / f"{i:02d}.npy", sentence(i))
    for wanted in ("true", "false"):
        fit_klt.main(["--features", str(root / "train"), "--output", str(root / wanted), "--clusters",
                      "[1]", "--memory", wanted, "--format", str(request.param)])  # fmt: skip
    return root / "true", root / "false"


def test_digits_of_any_radix_come_back():
    rng = np.random.default_rng(0)
    for count in (0, 1, 255, 256, 257, 1000):
        choices = rng.integers(1, 5000, count).tolist()
        digits = [int(rng.integers(c)) for c in choices]
        data = write_digits(digits, choices)
        bits = sum(np.log2(choices)) if count else 0
        assert 8 * len(data) < bits + 8 * (count // memory.GROUP + 1) + 1e-6
        assert read_digits(data, choices) == digits
        for wrong in (data + b"\0", data[:-1]):
            if wrong != data:
                with pytest.raises(DigitError):
                    read_digits(wrong, choices)
    with pytest.raises(DigitError, match="out of range"):
        read_digits(b"\x09", [9])


def toy_memory(entries: int = 7) -> Memory:
    """Two modes without a reference, two that refer to the dictionary, one to earlier vectors."""
    ones = np.ones(4, np.float32)
    return Memory(
        2, 2, np.zeros((entries, 4), np.int8), ones, 0 * ones, np.ones((3, 4), np.float32)
    )


@pytest.mark.parametrize("window", [3, 1024])
def test_references_come_back(monkeypatch, window):
    monkeypatch.setattr(memory, "WINDOW", window)
    remembered, rng = toy_memory(), np.random.default_rng(0)
    length, count = 9, 9 * 40
    modes = rng.integers(5, size=count)
    modes[::length] = rng.integers(4, size=count // length)  # nothing is before the first
    references = np.zeros(count, np.int64)
    for r, mode in enumerate(modes):
        start = r - r % length
        free = [t for t in range(start, r) if modes[t] < 4][-window:]
        if mode == 4 and not free:
            modes[r] = mode = 0
        if mode == 4:
            references[r] = rng.choice(free)
        elif mode >= 2:
            references[r] = rng.integers(7)
    data = remembered.write(modes, references, length)
    assert np.array_equal(remembered.read(data, modes, length), references)
    modes[length] = 4
    with pytest.raises(DigitError, match="before the first"):
        remembered.read(data, modes, length)


def test_a_reference_is_never_to_one_that_has_one():
    """Even where each of a chain would save much; and not where its own bits cost more than it saves."""
    rows = np.array([-1, 0, 1, 2, 3, -1, 5, 6])  # each to the one before, in two sequences
    trial = (4, rows, None, np.full(8, 1.0))
    taken, bits = settle(np.full(8, 9.0), [trial], 5, 0.5)
    assert taken.tolist() == [-1, 0, -1, 0, -1, -1, 0, -1]
    assert bits[[1, 3, 6]].tolist() == [0.0, 1.0, 0.0]  # of one, two and one
    assert settle(np.full(8, 1.4), [trial], 5, 0.5)[0].tolist() == [-1, 0, -1, -1, -1, -1, 0, -1]


def test_what_comes_again_costs_less(folders):
    remembering, plain = (load_codec(folder) for folder in folders)
    model = remembering.model
    assert model.memory is not None and plain.model.memory is None
    x = sentence(99, samples=3)
    for quality, most in ((1, 0.85), (3, 0.95)):
        sizes, errors = [], []
        for codec in (remembering, plain):
            one = codec.at_quality(quality)
            data = one.encode(x)
            sizes.append(len(data))
            errors.append(np.mean((one.decode(data) - x) ** 2))
        assert sizes[0] < most * sizes[1]
        assert errors[0] < 1.1 * errors[1]
    vectors = x.reshape(-1, CHANNELS, 1)
    modes, _, bits, _, references = model.quantise(vectors, 128, 40)
    assert {*np.unique(modes)} & {*range(model.memory.first, model.memory.earlier)}
    late = np.flatnonzero(modes >= model.memory.earlier)
    assert len(late)
    assert (references[late] // 40 == late // 40).all()  # of the same sequence
    assert (references[late] < late).all()
    assert (modes[references[late]] < model.memory.earlier).all()
    size = len(remembering.at_quality(1).encode(x))
    assert abs(8 * size - bits.sum()) < 0.01 * bits.sum() + 8 * 70


def test_an_outlier_harms_no_one_that_might_refer_to_it(folders):
    """Its vector is sent as it is; it comes again, so that the next would refer to it."""
    codec = load_codec(folders[0]).at_quality(2)
    x = sentence(99)
    x[0, 0, 5, 3] = 1e12
    x[0, 0, 6] = x[0, 0, 5]
    x[0, 0, 6, 3] = 0
    decoded = codec.decode(codec.encode(x))
    assert np.array_equal(decoded[0, 0, 5], x[0, 0, 5])
    calm = np.delete(decoded - x, 5, 2)
    assert np.mean(np.square(calm)) < 0.02 * np.var(np.delete(x, 5, 2))


def test_a_prediction_that_is_far_off_is_not_taken(folders):
    """Values that a vector's difference from it would take beyond 32 bits."""
    codec = load_codec(folders[0]).at_quality(2)
    codec.model.memory.scale[:] = 1e20
    x = sentence(99)
    error = codec.decode(codec.encode(x)) - x
    assert np.mean(np.square(error)) < 0.02 * x.var()


def test_samples_know_nothing_of_each_other(folders):
    codec = load_codec(folders[0]).at_quality(2)
    x = sentence(99, samples=3)
    apart = np.concatenate([codec.decode(codec.encode(each[None])) for each in x])
    np.testing.assert_allclose(codec.decode(codec.encode(x)), apart, atol=1e-4)


def test_one_of_two_layouts_may_have_a_memory(folders):
    """Frames of both go through either codec, whichever of them reads."""
    models = [load_codec(folder).model for folder in folders]
    x = sentence(99)
    for coarse, fine in (models, models[::-1]):
        codec = KltCodec(replace(coarse, fine=fine, fine_from=PER_OCTAVE), 0.0)
        for quality, own in ((0.0, coarse), (2.0, fine)):
            one, alone = codec.at_quality(quality), KltCodec(own, quality)
            wanted = alone.decode(alone.encode(x))
            assert one.encode_parts(x) == alone.encode_parts(x)
            setting, payload = one.encode_rows(x)
            for other in (0.0, 2.0):
                reader = codec.at_quality(other)
                assert np.array_equal(reader.decode(one.encode(x)), wanted)
                rows = reader.decode_rows(setting, payload, codec.facts, x.shape)
                assert np.array_equal(rows, wanted)


def test_predictions_may_differ_in_their_last_bits(folders):
    """Symbols are the same, and what is decoded is off by as little: errors do not build up."""
    codec = load_codec(folders[0]).at_quality(2)
    x = sentence(99, tokens=200)
    data = codec.encode(x)
    decoded = codec.decode(data)
    other = load_codec(folders[0])
    assert other.id == codec.id  # found once, before the change
    other.model.memory.gain[:] *= 1 + 1e-5
    away = np.abs(other.decode(data) - decoded)
    assert 0 < away.max() < 1e-3


def test_damaged_references_are_refused(folders):
    codec = load_codec(folders[0]).at_quality(2)
    stream = vars(unpack(codec.encode(sentence(99))))
    *others, references = stream["parts"]  # no vector is sent as it is
    assert len(others) == codec.model.format + 1
    assert len(references) > 4
    rng = np.random.default_rng(0)
    damaged = [references[:-1], references + b"\0", b"", b"\xff" * len(references)]
    for _ in range(20):
        part = bytearray(references)
        part[rng.integers(len(part))] ^= 1 << rng.integers(8)
        damaged.append(bytes(part))
    for part in damaged:
        with pytest.raises(BitstreamError):
            codec.decode(pack(Bitstream(**{**stream, "parts": (*others, part)})))
    with pytest.raises(BitstreamError):
        codec.decode(pack(Bitstream(**{**stream, "parts": tuple(others)})))


@pytest.mark.parametrize(
    "name",
    ["memory_modes", "memory_dictionary", "memory_scale", "memory_middle", "memory_gain"],
)
def test_hostile_memories_are_named(folders, tmp_path, name):
    folder = tmp_path / "codec"
    shutil.copytree(folders[0], folder)
    path = folder / "model.safetensors"
    stored = load_arrays(path.read_bytes())
    array = stored[name]
    wrong = [None, array[:0], array[None], array.astype(np.float64)]
    if array.dtype.kind == "f":
        least = -2e30 if name == "memory_middle" else -60000
        wrong += [np.full_like(array, value) for value in (np.nan, np.inf, least)]
    if name == "memory_modes":
        wrong += [np.array(pair, np.int32) for pair in ((0, 3), (1, -1), (99, 0), (1, 99))]
    for value in wrong:
        changed = {key: entry for key, entry in stored.items() if key != name}
        if value is not None:
            changed[name] = value
        path.write_bytes(save_arrays(changed))
        with pytest.raises(UserError, match=f"not a sound klt codec .*{name}"):
            load_codec(folder)
