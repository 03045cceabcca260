"""The learned codecs behind the API: round trips, like-for-like mode, and damaged bitstreams."""

import ctypes
import multiprocessing
import resource
import shutil
import sys
import threading
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from compressai.layers import sequential_channel_ramp
from compressai.models import Elic2022Official, ScaleHyperprior
from compressai.ops import compute_padding
from conftest import ARCHS, CHANNELS, toy_feature
from torch import nn
from torch.nn import functional as F

from dtufc import bitstream, files, rans
from dtufc.codec import BitstreamError, ExtraKind, load_codec
from dtufc.CompressAI.checkpoint import (
    WEIGHTS,
    Kind,
    load_model,
    read_weights,
    save_checkpoint,
    write_weights,
)
from dtufc.CompressAI.codec import _coded_mask
from dtufc.CompressAI.import_published import main as import_main
from dtufc.CompressAI.models import (
    Elic,
    ElicArch,
    Hyperprior,
    HyperpriorArch,
    NativeArch,
    build_model,
    checkerboard_merge,
    checkerboard_split,
)
from dtufc.CompressAI.symbols import SymbolEncoder
from dtufc.errors import UserError
from dtufc.experiments import forked
from dtufc.feature import FeatureError, FeatureFacts
from dtufc.memory import keep_memory
from dtufc.transform.mapping import Mapping

STOCK = {"hyperprior": ScaleHyperprior, "elic": Elic2022Official}


def test_checkerboard():
    y = torch.arange(2 * 3 * 4 * 6).reshape(2, 3, 4, 6).float()
    anchor, other = checkerboard_split(y)
    assert torch.equal(checkerboard_merge(anchor, other), y)
    assert torch.equal(anchor[0, 0, 0], y[0, 0, 0, 0::2])
    assert torch.equal(anchor[0, 0, 1], y[0, 0, 1, 1::2])


@pytest.mark.parametrize("codec", list(ARCHS))
def test_same_as_compressai(codec):
    """One walk through the latents gives what CompressAI's own forward gives."""
    torch.manual_seed(0)
    model = build_model(codec, ARCHS[codec]).eval()
    x = torch.rand(2, 1, 64, 128)
    with torch.no_grad():
        stock = STOCK[codec].forward(model, x)
        ours = model(x)
    bits = -sum(torch.log2(part).sum() for part in stock["likelihoods"].values())
    torch.testing.assert_close(ours["x_hat"], stock["x_hat"])
    torch.testing.assert_close(ours["bits"], bits)
    assert type(model).infer_arch(model.state_dict()) == ARCHS[codec]


def test_published_widths():
    assert sum(p.numel() for p in Hyperprior(Hyperprior.arch_class()).parameters()) == 5_063_041
    elic = Elic(ElicArch())
    assert elic.g_a[0].weight.shape == (192, 1, 5, 5)
    assert elic.g_s[-1].weight.shape == (192, 1, 5, 5)


@pytest.mark.parametrize("tokens", [1, 15, 16, 64, 100])
def test_round_trip_through_bytes(untrained, tokens):
    x = toy_feature(1, tokens)
    codec = load_codec(untrained)
    data = codec.encode(x)
    assert codec.encode(x) == data
    decoded = load_codec(untrained).decode(data)
    assert decoded.shape == x.shape
    assert decoded.dtype == x.dtype
    assert np.isfinite(decoded).all()
    assert np.array_equal(codec.decode(data), decoded)


def test_decoded_latents_are_the_encoded_ones(untrained):
    """What g_s sees when decoding is what it saw when encoding."""
    codec = load_codec(untrained)
    plane = torch.rand(1, 1, 128, 64)
    with torch.inference_mode():
        y, z = codec.model.analysis(plane)
        encoder = SymbolEncoder(codec.nets, codec.tables)
        y_hat = codec.model.walk(encoder, y, z, _coded_mask((128, 64), codec.model, codec.device))
        decoded = codec._decompress((encoder.finish(),), (1, 1, 128, 64))
        expected = codec._synthesis(y_hat)
    assert np.array_equal(decoded, expected)


def table_bits(tables: rans.Tables, symbols: np.ndarray, indexes: np.ndarray) -> np.ndarray:
    """What the integer tables charge each symbol, escapes included, in bits."""
    size = tables.length[indexes] - 2
    place = symbols - tables.offset[indexes]
    inside = (place >= 0) & (place < size)
    used = np.where(inside, place, size)
    bits = 16 - np.log2(tables.cdf[indexes, used + 1] - tables.cdf[indexes, used])
    distance = np.where(place < 0, -2 * place - 1, 2 * (place - size))
    return bits + np.where(inside, 0, 1 + 2 * np.floor(np.log2(np.maximum(distance, 0) + 1)))


class Believed(SymbolEncoder):
    """Encodes latents that it draws as the model believes they are, and notes what training says they
    cost, in bits."""

    def __init__(self, codec):
        super().__init__(codec.nets, codec.tables)
        self.model = codec.model
        self.generator = torch.Generator().manual_seed(0)
        self.estimate = 0.0

    def hyper(self, z: None) -> torch.Tensor:
        z = drawn_hyper(self.model, (16, 8), self.generator)
        self._estimate(self.model.hyper_bottleneck(z)[1])
        return super().hyper(z)

    def latent(self, y: None, scales, means, mask) -> torch.Tensor:
        noise = torch.randn(scales.shape, generator=self.generator)
        y = scales.clamp(0.11, 256) * noise + (0 if means is None else means)
        self._estimate(self.model.conditional(y, scales, means)[1])
        return super().latent(y, scales, means, mask)

    def _estimate(self, likelihoods: torch.Tensor) -> None:
        self.estimate -= float(likelihoods.double().log2().sum())


def drawn_hyper(model, size: tuple[int, int], generator: torch.Generator) -> torch.Tensor:
    """(1, N, h, w) drawn from the tables of z."""
    bottleneck = model.hyper_bottleneck
    draws = torch.randint(1 << 16, (model.arch.N, *size), generator=generator)
    rows = zip(
        draws, bottleneck._quantized_cdf, bottleneck._cdf_length, bottleneck._offset, strict=True
    )
    symbols = [
        torch.bucketize(draw, row[1 : int(length) - 1], right=True) + offset
        for draw, row, length, offset in rows
    ]
    return torch.stack(symbols)[None] + bottleneck._get_medians().reshape(1, -1, 1, 1)


def test_estimate_is_the_rate(trained):
    """The likelihoods that training minimises promise the bits that coding spends, within 1%.

    Of latents that the model believes in, so that it holds whatever the weights are: what training
    bounds at 1e-9, or a table escapes, is not among them.
    """
    codec = load_codec(trained)
    with torch.inference_mode():
        encoder = Believed(codec)
        mask = _coded_mask((1024, 512), codec.model, codec.device)
        codec.model.walk(encoder, mask=mask)
    symbols = torch.cat(encoder.symbols).numpy().astype(np.int64)
    spent = table_bits(codec.tables.tables, symbols, torch.cat(encoder.indexes).numpy()).sum()
    size = len(encoder.finish())
    assert size > 2000
    assert 8 * size == pytest.approx(spent, rel=0.002, abs=64)
    assert spent == pytest.approx(encoder.estimate, rel=0.01)


def test_padding_only_latents_are_not_paid(trained):
    """A plane of 65 rows is padded to 128; its bytes are far from those of 128 rows."""
    codec = load_codec(trained)
    sizes = [len(codec.encode(toy_feature(3, tokens))) for tokens in (64, 65, 128)]
    assert sizes[1] < sizes[0] + 0.6 * (sizes[2] - sizes[0])


def test_trained_codec_is_better_than_the_mean(trained):
    codec = load_codec(trained)
    mapping = next(iter(codec.kinds.values())).mapping
    x = toy_feature(201, 70)
    u, u_hat = mapping.forward(x), mapping.forward(codec.decode(codec.encode(x)))
    assert np.mean((u - u_hat) ** 2) < 0.7 * u.var()


def published_evaluation(model, mapping: np.ndarray, x: np.ndarray) -> tuple[float, np.ndarray]:
    """The published evaluation, step by step, with CompressAI's own calls -> BPFP, feature."""
    levels = len(mapping)
    level = np.clip(np.digitize(x.ravel(), mapping) - 1, 0, levels - 1).reshape(x.shape)
    plane = (level.astype(np.float32) / levels)[0, 0]
    pad, unpad = compute_padding(*plane.shape, min_div=64)
    with torch.no_grad():
        out = model.compress(F.pad(torch.from_numpy(plane)[None, None], pad, value=0))
        x_hat = model.decompress(out["strings"], out["shape"])["x_hat"]
    u = F.pad(x_hat, unpad)[0, 0].numpy()
    back = np.clip(np.round(u * levels), 0, levels - 1).astype(np.uint16)
    bpfp = sum(len(s[0]) for s in out["strings"]) * 8 / x.size
    return bpfp, mapping[back].astype(np.float32)[None, None]


def published_checkpoint(folder, codec: str, generation: int):
    """A checkpoint as published: CompressAI's model with one channel, and DataParallel's prefix."""
    torch.manual_seed(3)
    arch = ARCHS[codec]
    model = build_model(codec, arch)
    if codec == "elic" and generation == 1:  # CompressAI up to 1.2.6
        for k in range(1, len(arch.groups)):
            model.latent_codec["y"].channel_context[f"y{k}"] = sequential_channel_ramp(
                sum(arch.groups[:k]), arch.groups[k] * 2, min_ch=arch.N, num_layers=3,
                make_layer=nn.Conv2d, make_act=nn.ReLU, kernel_size=5, padding=2,
            )  # fmt: skip
    with torch.no_grad():
        for layer in model.g_a:
            if hasattr(layer, "weight"):
                layer.weight.mul_(3)
    path = folder / f"{codec}_lambda0.01_checkpoint_best.pth.tar"
    state = {f"module.{key}": value for key, value in model.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": state, "loss": torch.tensor(1.0)}, path)
    model.update(force=True)
    return path, model.eval()


@pytest.mark.parametrize(
    ("arch", "generation"),
    [("bmshj2018-hyperprior", 2), ("elic2022-official", 1), ("elic2022-official", 2)],
)
def test_published_checkpoint_gives_the_published_results(
    toy, toy_mapping, tmp_path, arch, generation
):
    codec_name = "elic" if "elic" in arch else "hyperprior"
    checkpoint, model = published_checkpoint(tmp_path, codec_name, generation)
    mapping = tmp_path / "transform_mapping_hidden_kmeans10_bitdepth8.json"
    toy_mapping.save(mapping)
    import_main(
        ["--checkpoint", str(checkpoint), "--arch", arch, "--mapping", f"[{mapping}]",
         "--machine", f"[{toy / 'toy.yaml'}]", "--output", str(tmp_path / "codec")]
    )  # fmt: skip
    codec = load_codec(tmp_path / "codec", published=True)
    for seed, tokens in ((5, 64), (6, 77)):
        x = toy_feature(seed, tokens)
        bpfp, feature = published_evaluation(model, np.array(files.read_json(mapping)), x)
        data = codec.encode(x)
        ours = 8 * bitstream.unpack(data).payload_size / x.size
        assert ours == pytest.approx(bpfp, rel=1e-3)
        decoded = codec.decode(data)
        assert np.mean(decoded == feature) > 0.999  # float rounding at the edges of levels


def test_import_refuses_other_files(toy, toy_mapping, tmp_path):
    toy_mapping.save(tmp_path / "m.json")
    path, _ = published_checkpoint(tmp_path, "hyperprior", 2)
    common = ["--mapping", f"[{tmp_path / 'm.json'}]", "--output", str(tmp_path / "out")]
    for argv, text in (
        (["--checkpoint", str(path)], "names no task"),
        (
            ["--checkpoint", str(tmp_path / "m.json"), "--machine", "[llama3]"],
            "not a readable checkpoint",
        ),
        (["--checkpoint", str(tmp_path / "none"), "--machine", "[llama3]"], "no such checkpoint"),
        (
            ["--checkpoint", str(path), "--arch", "elic2022-official", "--machine", "[llama3]"],
            "not a elic",
        ),
    ):
        with pytest.raises(SystemExit, match=text):
            import_main([*argv, *common])
    assert not (tmp_path / "out").exists()


def reseal(data: bytes) -> bytes:
    return data[:-4] + zlib.crc32(data[:-4]).to_bytes(4, "little")


def test_mutated_bitstreams_are_refused(untrained):
    """2200 damaged files a codec: never a crash, a hang, or silent garbage.

    Half of them get a matching checksum, as a forger would: they must be refused all the same, or
    else decode to some feature of the announced shape.
    """
    codec = load_codec(untrained)
    rng = np.random.default_rng(0)
    streams = [codec.encode(toy_feature(i, 16)) for i in range(4)]
    streams += [load_codec(untrained, published=True).encode(toy_feature(9, 16))]
    for i in range(2200):
        data = bytearray(streams[i % len(streams)])
        kind = i % 4
        if kind == 0:
            data = data[: rng.integers(len(data))]
        elif kind == 1:
            data[rng.integers(len(data))] ^= 1 << rng.integers(8)
        elif kind == 2:
            at, count = rng.integers(len(data)), rng.integers(1, 30)
            data[at : at + count] = rng.bytes(rng.integers(0, 30))
        else:
            data += rng.bytes(rng.integers(1, 30))
        if bytes(data) == streams[i % len(streams)]:
            continue
        with pytest.raises(BitstreamError):
            codec.decode(bytes(data))


@pytest.mark.parametrize("published", [False, True])
def test_forged_bitstreams_are_refused_or_decode(untrained, published):
    codec = load_codec(untrained, published=published)
    rng = np.random.default_rng(1)
    good = codec.encode(toy_feature(0, 16))
    refused, tries = 0, 60
    for _ in range(tries):
        data = bytearray(good)
        at = rng.integers(13, len(data) - 4)
        data[at] = rng.integers(256)
        try:
            out = codec.decode(reseal(bytes(data)))
        except BitstreamError:
            refused += 1
        else:
            assert out.dtype == np.float32
            assert out.shape[3] == CHANNELS
            assert np.isfinite(out).all()
    assert refused > 0.85 * tries


@pytest.mark.parametrize("mode", [0, 1])
def test_forged_headers_are_refused(untrained, mode):
    """A valid checksum over a header that announces what the kind cannot be, or too much."""
    codec = load_codec(untrained, published=bool(mode))
    good = bitstream.unpack(codec.encode(toy_feature(0, 16)))
    for change in (
        {"shape": (16, 2, 1, 64)},
        {"dtype": "float16"},
        {"shape": (1, 1, 20000, CHANNELS)},
        {"shape": (1, 1, 1 << 21, CHANNELS)},
        {"grid": (1, 1)},
        {"parts": (bytes(8),) * len(good.parts)},
        {"parts": (b"",) * len(good.parts)},
        {"parts": good.parts + good.parts},
        {"mode": 7},
    ):
        with pytest.raises(BitstreamError):
            codec.decode(bitstream.pack(replace(good, **change)))


WIDE = {
    "hyperprior": HyperpriorArch(N=256, M=24),
    "native": NativeArch(inputs=8, N=64),
}


def in_a_fresh_process(function, *arguments):
    """What a function gives in a process of its own, whose peak of memory is that of its imports."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(forked.PRELOADED)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(forked.THREADS, "1")  # of the server, should it start here
        with context.Pool(1) as pool:
            return pool.apply(function, arguments)


def peak_growth(folder, published: bool, feature: np.ndarray, streams: list[bytes]) -> int:
    """MiB by which refusing these raises the peak of a process that has decoded before."""
    codec = load_codec(folder, published=published)
    codec.decode(codec.encode(feature))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for data in streams:
        with pytest.raises(BitstreamError):
            codec.decode(data)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10


@pytest.mark.parametrize(("name", "published"), [("hyperprior", True), ("native", False)])
def test_small_files_that_announce_much_take_no_memory(toy_mapping, tmp_path, name, published):
    """Some 40 bytes that announce up to 2^28 points: in one tile, or in more than there are strings."""
    torch.manual_seed(0)
    facts = FeatureFacts("toy", "maps", [1, 8, None, 32], ["sample", "channel", "row", "column"])
    save_checkpoint(tmp_path, build_model(name, WIDE[name]), name, [Kind(facts, toy_mapping)], {})
    feature = toy_feature(0, 64).reshape(1, 8, -1, 32)
    codec = load_codec(tmp_path, published=published)
    good = bitstream.unpack(codec.encode(feature))
    rng, streams = np.random.default_rng(0), []
    for bits in (8, 12, 16, 18, 20):
        string = rng.bytes(3) + b"\x40" + rng.bytes(4)  # a sound state, from which much can be read
        for parts in [(string,) * len(good.parts)] + [(b"\1\0\1\0", string, string)] * (
            not published
        ):
            stream = replace(good, shape=(1, 8, 1 << bits, 32), parts=parts)
            streams.append(bitstream.pack(stream))
    assert max(map(len, streams)) < 60
    assert in_a_fresh_process(peak_growth, tmp_path, published, feature, streams) < 150


def free_tables(folder) -> None:
    """Change the tables of z so that a symbol of 0 takes next to no bits, as of a codec whose z says
    nothing: so few bytes then hold as many symbols as can be."""
    state = read_weights(folder / WEIGHTS)
    name = next(key for key in state if key.endswith("entropy_bottleneck._quantized_cdf"))
    rows = len(state[name])
    state[name] = torch.tensor([0, 65535, 65536], dtype=torch.int32).repeat(rows, 1)
    base = name.removesuffix("_quantized_cdf")
    state[f"{base}_cdf_length"] = torch.full((rows,), 3, dtype=torch.int32)
    state[f"{base}_offset"] = torch.zeros(rows, dtype=torch.int32)
    write_weights(folder / WEIGHTS, state)


@pytest.mark.parametrize("name", ["hyperprior", pytest.param("elic", marks=pytest.mark.slow)])
def test_few_bytes_take_little_memory_where_symbols_are_free(toy_mapping, tmp_path, name):
    """Of the published widths, in the payload modes of our own: one string, and two in tiles."""
    torch.manual_seed(0)
    facts = FeatureFacts("toy", "wide", [1, 1, None, 512], ["sample", "layer", "token", "channel"])
    arch = {"hyperprior": HyperpriorArch, "elic": ElicArch}[name]()
    save_checkpoint(tmp_path, build_model(name, arch), name, [Kind(facts, toy_mapping)], {})
    free_tables(tmp_path)
    feature = toy_feature(0, 64).reshape(1, 1, -1, 512)
    good = bitstream.unpack(load_codec(tmp_path).encode(feature))
    string = np.random.default_rng(0).bytes(3) + b"\x40" + bytes(4)  # a sound state
    streams = []
    tokens = {"hyperprior": 2048, "elic": 1024}[name]  # about as many as a string may announce
    size = b"".join((side // 64).to_bytes(2, "little") for side in (tokens, 512))
    for count, mode, parts in (
        (tokens, 0, (string,)), (tokens, 2, (string,)), (2 * tokens, 2, (size, string, string)),
    ):  # fmt: skip
        shape = (1, 1, count, 512)
        streams.append(bitstream.pack(replace(good, shape=shape, parts=parts, mode=mode)))
    assert max(map(len, streams)) < 60
    assert in_a_fresh_process(peak_growth, tmp_path, False, feature, streams) < 150


def test_kinds_that_share_a_codebook(toy, toy_facts, toy_mapping, untrained, tmp_path):
    """Which kind a bitstream is of is told by what it announces, not by its mapping alone."""
    shape, axes = [1, 8, None, 16], ["sample", "channel", "row", "column"]
    maps = FeatureFacts("toy", "maps", shape, axes)
    half = replace(toy_facts, task="half", dtype="float16")
    model, values = load_model(untrained)
    name = values["codec"]
    kinds = [Kind(facts, toy_mapping) for facts in (toy_facts, maps, half)]
    save_checkpoint(tmp_path, model, name, kinds, {})
    codec = load_codec(tmp_path)
    x = toy_feature(0, 40)
    for feature in (x, x.reshape(1, 8, 40, 16), x.astype(np.float16)):
        decoded = codec.decode(codec.encode(feature))
        assert decoded.shape == feature.shape
        assert decoded.dtype == feature.dtype
    stream = bitstream.unpack(codec.encode(x))
    with pytest.raises(BitstreamError, match=r"is no toy_hidden; .* is no toy_maps"):
        codec.decode(bitstream.pack(replace(stream, shape=(1, 1, 80, 64))))


def test_shape_and_tiles_are_under_the_check(untrained):
    """A header that announces a row more, or tiles in another order: sealed again, and found out."""
    codec = load_codec(untrained).at_tile(64)
    stream = bitstream.unpack(codec.encode(toy_feature(0, 130)))
    size, *strings = stream.parts
    assert len(strings) == 6
    n, c, h, w = stream.shape
    swapped = (size, strings[1], strings[0], *strings[2:])
    for change in ({"shape": (n, c, h - 1, w)}, {"parts": swapped}, {"mode": 0}):
        with pytest.raises(BitstreamError, match=r"not what was encoded|truncated"):
            codec.decode(bitstream.pack(replace(stream, **change)))
    assert codec.decode(bitstream.pack(stream)).shape == stream.shape


def test_other_codecs_and_mappings_are_refused(untrained, toy_facts, tmp_path):
    codec = load_codec(untrained)
    data = codec.encode(toy_feature(0, 16))
    other = build_model(type(codec.model).__name__.lower(), codec.model.arch)
    save_checkpoint(
        tmp_path, other, type(codec.model).__name__.lower(),
        [Kind(toy_facts, next(iter(codec.kinds.values())).mapping)], {},
    )  # fmt: skip
    with pytest.raises(BitstreamError, match="written by codec"):
        load_codec(tmp_path).decode(data)
    kind = next(iter(codec.kinds.values()))
    codec.kinds = {"x": Kind(toy_facts, Mapping(kind.mapping.codebooks + 1.0))}
    with pytest.raises(BitstreamError, match="written with mapping"):
        codec.decode(data)


def test_features_of_no_kind_are_refused(untrained):
    codec = load_codec(untrained)
    with pytest.raises(FeatureError, match="takes shape"):
        codec.encode(np.zeros((1, 1, 4, 64), np.float32))
    with pytest.raises(FeatureError, match="takes float32"):
        codec.encode(np.zeros((1, 1, 4, CHANNELS), np.float16))
    with pytest.raises(FeatureError, match="NaN"):
        codec.encode(np.full((1, 1, 4, CHANNELS), np.nan, np.float32))
    with pytest.raises(FeatureError, match="not 'nothing'"):
        codec.encode(toy_feature(0, 4), kind="nothing")


def test_a_kind_from_outside(untrained, toy, toy_mapping, tmp_path):
    """A codec codes features that it was not trained on, given their facts and mapping."""
    text = (toy / "toy.yaml").read_text().replace("model: toy", "model: other")
    (tmp_path / "other.yaml").write_text(text)
    toy_mapping.save(tmp_path / "m.json")
    extra = ExtraKind(str(tmp_path / "other.yaml"), tmp_path / "m.json", "continuous")
    codec = load_codec(untrained, kinds=[extra])
    with pytest.raises(FeatureError, match="several kinds"):
        codec.encode(toy_feature(0, 16))
    data = codec.encode(toy_feature(0, 16), kind="other_hidden")
    assert np.isfinite(codec.decode(data)).all()
    with pytest.raises(BitstreamError, match="written with mapping"):
        load_codec(untrained).decode(data)


def test_the_threads_of_others_are_left_alone(untrained, monkeypatch):
    """Two tiles share the caller's threads; the caller and threads begun meanwhile keep their count."""
    codec = load_codec(untrained).at_tile(64)
    inside, outside = set(), set()
    for name in ("analysis", "walk"):
        stock = getattr(codec.model, name)

        def watched(*args, stock=stock, **kwargs):
            inside.add(torch.get_num_threads())
            other = threading.Thread(target=lambda: outside.add(torch.get_num_threads()))
            other.start()
            other.join()
            return stock(*args, **kwargs)

        monkeypatch.setattr(codec.model, name, watched)
    before = torch.get_num_threads()
    torch.set_num_threads(6)
    try:
        codec.decode(codec.encode(toy_feature(0, 200)))
        outside.add(torch.get_num_threads())
    finally:
        torch.set_num_threads(before)
    assert inside == {3}
    assert outside == {6}


def test_the_memory_of_the_process_is_left_alone(untrained, monkeypatch):
    """Only a script's main changes how the process frees memory."""
    stock = ctypes.CDLL

    class Library:
        def __init__(self, *args, **kwargs):
            self.library = stock(*args, **kwargs)

        def __getattr__(self, name):
            assert name != "mallopt"
            return getattr(self.library, name)

    monkeypatch.setattr(ctypes, "CDLL", Library)
    codec = load_codec(untrained).at_tile(64)
    codec.decode(codec.encode(toy_feature(0, 100)))
    if sys.platform == "linux":
        with pytest.raises(AssertionError):
            keep_memory()


def test_damaged_folders_are_named(untrained, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        load_codec(tmp_path)
    (tmp_path / "config.json").write_text('{"codec": "jpeg"}')
    with pytest.raises(ValueError, match="'jpeg' is none of"):
        load_codec(tmp_path)
    values = files.read_json(untrained / "config.json")
    for changed, text in (
        ({**values, "format": 9}, "format 9"),
        ({**values, "arch": {**values["arch"], "N": 8}}, "do not fit"),
        ({**values, "arch": {"Q": 8}}, "arch"),
        ({key: value for key, value in values.items() if key != "arch"}, "'arch'"),
    ):
        files.write_json(tmp_path / "config.json", changed)
        (tmp_path / "model.safetensors").write_bytes((untrained / "model.safetensors").read_bytes())
        with pytest.raises(ValueError, match=text):
            load_codec(tmp_path)
    files.write_json(tmp_path / "config.json", values)
    (tmp_path / "model.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match=r"model\.safetensors: not a readable"):
        load_codec(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="missing from the codec folder"):
        load_codec(tmp_path)


def test_hostile_folders_are_refused(untrained, tmp_path):
    """One line that names file and key, before a model of hostile widths takes memory."""
    values = files.read_json(untrained / "config.json")
    kind = values["kinds"]["toy_hidden"]
    facts = {**kind["facts"], "task": "other"}
    arch = values["arch"]
    shutil.copytree(untrained, tmp_path / "codec")
    path = tmp_path / "codec" / "config.json"
    for changed, text in (
        ({"kinds": [1]}, r"config\.json: kinds: expected an object"),
        ({"kinds": {"toy_hidden": 5}}, r"config\.json: kinds\.toy_hidden: expected the keys"),
        ({"kinds": {"toy_hidden": {**kind, "facts": 3}}}, r"config\.json: kinds\.toy_hidden: "),
        (
            {"kinds": {"../../toy_hidden": kind}},
            r"kinds\.\.\./\.\./toy_hidden: the facts are of toy",
        ),
        ({"kinds": {"toy_hidden": {**kind, "facts": facts}}}, "the facts are of toy_other"),
        ({"kinds": {"toy_hidden": {**kind, "assignment": []}}}, r"toy_hidden\.json: .*assignment"),
        ({"arch": {**arch, "M": -1}}, r"config\.json: arch: .*M: expected 1 \.\. 65536, got -1"),
        ({"arch": {**arch, "N": 1 << 40}}, r"config\.json: arch: .*N: expected 1 \.\. 65536"),
        ({"arch": {**arch, "N": 1 << 16}}, r"config\.json: arch: the weights do not fit"),
        ({"arch": {**arch, "N": "wide"}}, r"config\.json: arch: "),
        ({"arch": 7}, r"config\.json: arch: "),
        ({"codec": ["elic"]}, r"config\.json: key 'codec'"),
        ({"format": {}}, r"config\.json: format"),
    ):
        files.write_json(path, {**values, **changed})
        with pytest.raises(UserError, match=text):
            load_codec(tmp_path / "codec")


def test_no_kind_of_damage_to_weights_is_a_fault_of_ours(untrained, tmp_path):
    """Every tensor in turn gone, of another shape or type, or not finite: one line, or it decodes."""
    folder = tmp_path / "codec"
    shutil.copytree(untrained, folder)
    rng = np.random.default_rng(0)
    for name in ("model.safetensors", "exact.safetensors"):
        path = folder / name
        good = read_weights(path)
        for key in rng.permutation(sorted(good))[:10]:
            value = good[key]
            damaged = [None, value.reshape(-1)[:1], value[None], value.double(), value * 0 - 1]
            if value.is_floating_point():
                damaged.append(value + torch.inf)
            for other in (damaged[i] for i in rng.permutation(len(damaged))[:2]):
                state = {**good, key: other}
                write_weights(path, {k: v for k, v in state.items() if v is not None})
                try:
                    codec = load_codec(folder)
                except UserError as error:
                    assert str(path) in str(error)
                    assert other is None or not other.isinf().any() or "finite" in str(error)
                else:
                    assert other is None or not other.isinf().any()  # twins of tables may be gone
                    assert codec.decode(codec.encode(toy_feature(0, 4))).shape[2] == 4
        write_weights(path, good)


def test_least_weights():
    """What is said of the widths of a model is true of it."""
    for name, arch in (
        *ARCHS.items(), *WIDE.items(), ("elic", ElicArch()), ("hyperprior", HyperpriorArch()),
        ("elic", ElicArch(24, 64, [1] * 64, [[9, 2]] * 63)), ("native", NativeArch(3, [1, 7], 9, 2)),
    ):  # fmt: skip
        model = build_model(name, arch)
        count = sum(value.numel() for value in model.parameters())
        assert 1 <= count / model.arch.least_weights < 10


def test_model_without_tables_is_refused(toy_facts, toy_mapping, tmp_path):
    model = build_model("hyperprior", ARCHS["hyperprior"])
    save_checkpoint(tmp_path, model, "hyperprior", [Kind(toy_facts, toy_mapping)], {})
    write_weights(tmp_path / "model.safetensors", model.state_dict())
    with pytest.raises(ValueError, match="no entropy tables"):
        load_codec(tmp_path)
