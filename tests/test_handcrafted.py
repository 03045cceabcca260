"""The handcrafted codecs: exact where they say so, bounded where not, and no bytes break them."""

import json
import shutil
import tracemalloc

import imagecodecs
import numpy as np
import pytest
import torch
import yaml
import zstandard
from safetensors.numpy import load, save

from dtufc import evaluate
from dtufc.bitstream import Bitstream, BitstreamError, pack, unpack
from dtufc.codec import load_codec
from dtufc.feature import FeatureError, write_feature
from dtufc.handcrafted import fit_handcrafted
from dtufc.handcrafted.codec import (
    JPEGXL_ENTRY_BITS,
    JPEGXL_GROUP,
    LARGEST_TILE,
    cut,
    join,
    jpegxl_size,
    to_bfloat16,
)

CODECS = ("int", "cast", "jpegxl", "hevc")
LAYOUTS = {
    "tokens": ([1, 2, None, 24], {"axes": ["sample", "layer", "token", "channel"]}, (1, 2, 37, 24)),
    "tiles": (
        [None, 6, 9, 11],
        {"axes": ["sample", "channel", "row", "column"], "tiles": [2, 3]},
        (3, 6, 9, 11),
    ),
}


def made_up(shape, dtype, seed):
    """Smooth along the last axis, another size and mean for each channel."""
    rng = np.random.default_rng(seed)
    x = np.cumsum(rng.standard_normal(shape), -1) * rng.uniform(0.5, 2, (1, shape[1], 1, 1))
    return (x + 3).astype(dtype)


@pytest.fixture(scope="module", params=[(p, d) for p in LAYOUTS for d in ("float16", "float32")],
                ids="-".join)  # fmt: skip
def world(request, tmp_path_factory):
    """Every codec fitted to one kind of feature: folder, one test feature, its YAML."""
    name, dtype = request.param
    sizes, layout, shape = LAYOUTS[name]
    root = tmp_path_factory.mktemp("handcrafted")
    facts = {"model": "toy", "task": name, "shape": sizes, "dtype": dtype, **layout}
    (root / "toy.yaml").write_text(yaml.safe_dump({"feature": facts}))
    for i in range(6):
        write_feature(root / "train" / f"{i}.npy", made_up(shape, dtype, i))
    for codec in CODECS:
        fit_handcrafted.main(
            ["--codec", codec, "--features", str(root / "train"), "--output", str(root / codec),
             "--machine", str(root / "toy.yaml")]
        )  # fmt: skip
    return root, made_up(shape, dtype, 3)  # within the bounds of the training features


@pytest.mark.parametrize("name", CODECS)
def test_more_quality_costs_more_and_errs_less(world, name):
    root, x = world
    codec = load_codec(root / name)
    assert type(codec).name == name
    sizes, errors = [], []
    settings = sorted({*codec.settings[:: 1 if len(codec.settings) < 8 else 3], codec.settings[-1]})
    for quality in settings:
        one = codec.at_quality(quality)
        data = one.encode(x)
        decoded = one.decode(data)
        assert decoded.dtype == x.dtype
        assert decoded.shape == x.shape
        assert np.array_equal(codec.decode(data), decoded)  # the bytes say which quality
        sizes.append(len(data))
        errors.append(float(np.mean(np.square(decoded.astype(float) - x))))
    if not (name == "cast" and x.dtype == np.float16):  # lossless twice
        assert sizes == sorted(sizes)
        assert len(set(sizes)) == len(sizes)
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-3 * x.astype(float).var()
    assert codec.at_quality(settings[-1]).identity != codec.at_quality(settings[0]).identity
    assert list(codec.qualities) == list(codec.settings)
    for quality in (settings[-1] + 0.1, settings[0] - 1, 1e9, float("nan")):
        with pytest.raises(ValueError, match=f"quality: {name} takes one of"):
            codec.at_quality(quality)


def test_integers_err_by_half_a_step(world):
    """Where the bounds hold the value; beyond, it comes back as the bound."""
    root, x = world
    codec = load_codec(root / "int").at_quality(8)
    low, step = codec._bounds()
    axis = (1, -1, 1, 1) if codec.facts.views.is_map else (1, x.shape[1], 1, x.shape[3])
    low, step = low.reshape(axis), step.reshape(axis)
    decoded = codec.decode(codec.encode(x)).astype(float)
    bounded = np.clip(x.astype(float), low, low + 255 * step)
    slack = 1e-6 if x.dtype == np.float32 else 2.0**-10 * np.abs(x).max()
    assert (np.abs(decoded - bounded) <= step / 2 * 1.001 + slack).all()
    assert np.mean(bounded != x) < 0.2


def test_casts_are_the_libraries(world):
    root, x = world
    x = x.copy()
    x.ravel()[:6] = (0.0, -0.0, 6e-8, -6e-8, 1.00390625, 65504)
    codec = load_codec(root / "cast")
    lossless = codec.at_quality(24)
    decoded = lossless.decode(lossless.encode(x))
    assert decoded.tobytes() == x.tobytes()
    half = codec.at_quality(11)
    assert np.array_equal(half.decode(half.encode(x)), x.astype(np.float16).astype(x.dtype))
    brain = codec.at_quality(8)
    wanted = torch.from_numpy(x.astype(np.float32)).to(torch.bfloat16).float().numpy()
    limit = np.finfo(x.dtype).max
    assert np.array_equal(brain.decode(brain.encode(x)), wanted.clip(-limit, limit).astype(x.dtype))


def test_bfloat16_keeps_finite_values_finite():
    x = np.array([3.4028235e38, -3.4028235e38, 1e-45, -0.0], np.float32)
    back = (to_bfloat16(x).astype(np.uint32) << 16).view(np.float32)
    assert np.isfinite(back).all()
    assert np.allclose(back, x, rtol=2**-8, atol=1e-44)


@pytest.mark.parametrize("name", CODECS)
def test_values_beyond_the_bounds_are_clamped(world, name):
    root, x = world
    codec = load_codec(root / name)
    codec = codec.at_quality(codec.qualities[-1])
    wild = x.copy()
    wild[0, 0, 0, 0], wild[0, 1, 2, 3] = np.finfo(x.dtype).max, -np.finfo(x.dtype).max
    decoded = codec.decode(codec.encode(wild))
    assert np.isfinite(decoded).all()
    assert decoded[0, 0, 0, 0] > x.mean() > decoded[0, 1, 2, 3]
    if name == "cast":
        assert decoded.tobytes() == wild.tobytes()


@pytest.mark.parametrize("name", CODECS)
def test_damaged_and_foreign_bytes_are_refused(world, name):
    root, x = world
    codec = load_codec(root / name)
    data = codec.encode(x)
    other = load_codec(root / CODECS[CODECS.index(name) - 1])
    with pytest.raises(BitstreamError, match="written by codec"):
        other.decode(data)
    for broken in (data[:-3], data[: len(data) // 2], b"", bytes(50)):
        with pytest.raises(BitstreamError):
            codec.decode(broken)
    stream = vars(unpack(data))
    setting, payload = stream["parts"]
    rng = np.random.default_rng(0)
    for trial in range(60):  # damage below the checksum of the container
        part = bytearray(payload)
        if trial % 3 == 0:
            part = part[: rng.integers(len(part))]
        else:
            part[rng.integers(len(part))] ^= 1 << rng.integers(8)
        forged = pack(Bitstream(**{**stream, "parts": (setting, bytes(part))}))
        try:  # a picture or a Huffman code may still say something else; it never breaks
            decoded = codec.decode(forged)
        except BitstreamError:
            continue
        assert decoded.shape == x.shape
        assert np.isfinite(decoded).all()
    for parts in ((b"\x63", payload), (setting,), (setting, payload, b""), (b"", payload)):
        with pytest.raises(BitstreamError, match="inconsistent"):
            codec.decode(pack(Bitstream(**{**stream, "parts": parts})))


@pytest.mark.parametrize("name", ["int", "cast"])
def test_forged_sizes_allocate_nothing(world, name):
    """A zstd frame that says it holds 8 GB, or anything but what the shape needs."""
    root, x = world
    codec = load_codec(root / name)
    stream = vars(unpack(codec.encode(x)))
    for frame in (
        b"\x28\xb5\x2f\xfd\xe0" + (8 << 30).to_bytes(8, "little") + b"\x01\x00\x00",
        zstandard.ZstdCompressor().compress(bytes(10)),
        zstandard.ZstdCompressor(write_content_size=False).compress(bytes(x.size)),
    ):
        forged = pack(Bitstream(**{**stream, "parts": (stream["parts"][0], frame)}))
        with pytest.raises(BitstreamError, match="another size"):
            codec.decode(forged)


@pytest.mark.parametrize("name", CODECS)
def test_few_bytes_take_little_memory(world, name):
    """39 bytes that announce 2^28 points are refused before memory is taken for them."""
    root, x = world
    codec = load_codec(root / name)
    n, c, h, w = x.shape
    shape = (n, c, (1 << 28) // (n * c * w), w) if codec.facts.shape[2] is None else (
        (1 << 28) // (c * h * w), c, h, w)  # fmt: skip
    stream = vars(unpack(codec.encode(x))) | {"shape": shape}
    count = int(np.prod(shape)) * x.itemsize
    claims = b"\x28\xb5\x2f\xfd\xa0" + count.to_bytes(4, "little") + b"\x01\x00\x00"
    for payload in (stream["parts"][1][:12], claims, b"\xff\x0a" + bytes(10), b""):
        forged = pack(Bitstream(**{**stream, "parts": (stream["parts"][0], payload)}))
        tracemalloc.start()
        with pytest.raises(BitstreamError, match="corrupted"):
            codec.decode(forged)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 100 << 20
    with pytest.raises(BitstreamError, match="the limit is 100"):
        codec.decode(codec.encode(x), max_points=100)


@pytest.mark.parametrize("shape", [(1, 1), (255, 257), (300, 200), (1, 5000), (2000, 3000)])
def test_sizes_are_read_from_the_header(shape):
    """Ours and the library's agree; constant pictures, the smallest there are, pass the bound."""
    for picture in (np.zeros(shape, np.uint16), np.arange(np.prod(shape)).reshape(shape) % 999):
        for options in ({"lossless": True}, {"distance": 25}, {"distance": 1}):
            data = imagecodecs.jpegxl_encode(picture.astype(np.uint16), numthreads=1, **options)
            assert jpegxl_size(data) == shape
            groups = np.prod([-(-side // JPEGXL_GROUP) for side in shape])
            assert groups == 1 or JPEGXL_ENTRY_BITS * groups <= 8 * len(data)


def test_a_librarys_own_errors_are_bitstream_errors(world, monkeypatch):
    """Whatever the library raises; a fault of ours around it keeps its kind."""
    root, x = world
    codec = load_codec(root / "jpegxl")
    data = codec.encode(x)

    def fail(*args, **kwargs):
        raise RuntimeError("of the library")

    monkeypatch.setattr(imagecodecs, "jpegxl_decode", fail)
    with pytest.raises(BitstreamError, match="RuntimeError: of the library"):
        codec.decode(data)
    monkeypatch.setattr(type(codec), "expand", fail)
    with pytest.raises(RuntimeError):
        codec.decode(data)


@pytest.mark.parametrize("name", ["int", "jpegxl", "hevc"])
def test_hostile_folders_are_named(world, tmp_path, name):
    """Bounds that are not finite, equal, of another shape or dtype: one line at loading."""
    root, _ = world
    folder = tmp_path / "codec"
    shutil.copytree(root / name, folder)
    stored = load((folder / "model.safetensors").read_bytes())
    for key, array in stored.items():
        wrong = [np.full_like(array, value) for value in (np.nan, np.inf, -np.inf)]
        wrong += [array[:0], array.astype(np.float64), array[None], np.zeros(3, np.float32)]
        wrong += [np.full_like(array, -1), np.zeros_like(array)] * (key == "step")
        wrong += [stored["low"]] * (key == "high") + [stored.get("high", array[:0])] * (
            key == "low"
        )
        for value in (*wrong, None):
            changed = {other: entry for other, entry in stored.items() if other != key}
            if value is not None:
                changed[key] = value
            (folder / "model.safetensors").write_bytes(save(changed))
            with pytest.raises(ValueError, match="not a sound"):
                load_codec(folder)
    (folder / "model.safetensors").write_bytes(save(stored))
    values = json.loads((folder / "config.json").read_text())
    hostile = [("quality", value) for value in (None, "x", True, [], float("nan"), float("inf"))]
    for key, value in (*hostile, ("facts", []), ("format", 9)):
        (folder / "config.json").write_text(json.dumps({**values, key: value}))
        with pytest.raises(ValueError, match=f"not a sound .*{key}"):
            load_codec(folder)
    (folder / "config.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"config\.json: not valid JSON"):
        load_codec(folder)


@pytest.mark.parametrize("name", ["jpegxl", "hevc"])
def test_pictures_of_another_size_are_refused(world, name):
    root, x = world
    codec = load_codec(root / name)
    small = codec.encode(x)
    tall = np.repeat(x, 30, axis=2 if codec.facts.shape[2] is None else 0)
    stream = vars(unpack(codec.encode(tall)))
    stream |= {"shape": x.shape}
    with pytest.raises(BitstreamError, match="corrupted"):
        codec.decode(pack(Bitstream(**stream)))
    assert codec.decode(small).shape == x.shape


@pytest.mark.parametrize("size", [(1, 1), (64, 64), (17, 300), (LARGEST_TILE + 1, 70), (9, 9000)])
def test_tiles_and_back(size):
    picture = np.arange(size[0] * size[1], dtype=np.uint32).reshape(size) % 4096
    tiles = cut(picture.astype(np.uint16))
    assert max(tiles.shape[1:]) <= LARGEST_TILE
    assert min(tiles.shape[1:]) >= 64
    assert all(side % 16 == 0 for side in tiles.shape[1:])
    assert np.array_equal(join(tiles, size), picture)


def test_planes_of_several_pictures(tmp_path):
    """A plane wider than the largest picture goes through the HEVC encoder in tiles."""
    x = made_up((1, 1, 20, LARGEST_TILE + 100), "float32", 0)
    write_feature(tmp_path / "train" / "a.npy", x)
    argv = [
        "--codec",
        "hevc",
        "--features",
        str(tmp_path / "train"),
        "--output",
        str(tmp_path / "c"),
    ]
    fit_handcrafted.main(argv)
    codec = load_codec(tmp_path / "c").at_quality(8)
    decoded = codec.decode(codec.encode(x))
    assert np.abs(decoded - x).max() < 0.02 * np.ptp(x)


def test_unfit_features_are_refused(world):
    root, x = world
    other = np.float32 if x.dtype == np.float16 else np.float16
    for name in CODECS:
        codec = load_codec(root / name)
        with pytest.raises(FeatureError, match="takes"):
            codec.encode(x.astype(other))
        with pytest.raises(FeatureError, match="takes shape"):
            codec.encode(x[:, :, :, :5])
        with pytest.raises(FeatureError, match="not other_kind"):
            codec.encode(x, "other_kind")
        with pytest.raises(ValueError, match="no published mode"):
            load_codec(root / name, published=True)


def test_evaluation_and_targets(world, tmp_path):
    root, _ = world
    argv = ["--codec", str(root / "int"), "--features", str(root / "train"), "--output"]
    evaluate.main([*argv, str(tmp_path / "a"), "--quality", "5"])
    rate = json.loads((tmp_path / "a" / "summary.json").read_text())["bpfp_pooled"]
    evaluate.main([*argv, str(tmp_path / "b"), "--target_bpfp", str(rate + 1e-6)])
    summary = json.loads((tmp_path / "b" / "summary.json").read_text())
    assert summary["bpfp_pooled"] == rate
    nmse = summary["nmse_pooled"] * (1 + 1e-9)  # summed in another order
    evaluate.main([*argv, str(tmp_path / "c"), "--target_nmse", str(nmse)])
    assert json.loads((tmp_path / "c" / "summary.json").read_text())["bpfp_pooled"] == rate


def test_what_cannot_be_read_is_named(world, tmp_path, capsys):
    root, _ = world
    argv = ["--features", str(root / "train"), "--output", str(tmp_path)]
    with pytest.raises(SystemExit, match=r"0\.npy: resnet50_cls takes"):
        fit_handcrafted.main([*argv, "--codec", "cast", "--machine", "resnet50"])
    with pytest.raises(SystemExit):
        fit_handcrafted.main([*argv, "--codec", "jpeg"])
    assert "jpeg" in capsys.readouterr().err
    assert not (tmp_path / "config.json").exists()
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_bytes((root / "int" / "config.json").read_bytes())
    with pytest.raises(ValueError, match=r"model\.safetensors: missing"):
        load_codec(broken)
    (broken / "model.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match="not a sound int codec"):
        load_codec(broken)
