"""Latents that decode exactly on every device: integer networks, freezing, and trials over settings."""

import contextlib
import hashlib
import itertools
import shutil

import numpy as np
import pytest
import torch
from conftest import ARCHS, toy_feature
from torch import nn

from dtufc import rans
from dtufc.codec import BitstreamError, load_codec
from dtufc.CompressAI import exact
from dtufc.CompressAI.checkpoint import Kind, load_model
from dtufc.CompressAI.codec import _coded_mask, tile_size, tiles
from dtufc.CompressAI.exact import LARGEST, ExactConv, ExactNet
from dtufc.CompressAI.freeze import FreezeConfig
from dtufc.CompressAI.freezing import cost, freeze_codec
from dtufc.CompressAI.frozen import FrozenNets, _freeze_net, _set_layer
from dtufc.CompressAI.models import build_model
from dtufc.CompressAI.symbols import SymbolDecoder, SymbolEncoder, SymbolTables
from dtufc.feature import write_feature
from dtufc.transform.mapping import Mapping

WAYS = ["int8", "float64"]


@pytest.fixture(autouse=True)
def right_products(monkeypatch):
    """Where the processor's 8-bit products saturate, and the codec uses none, plain ones stand in: all
    around them is tested on every machine."""
    if not exact.int8_is_right():
        monkeypatch.setattr(torch, "_int_mm", lambda a, b: (a.double() @ b.double()).int())


LAYERS = {
    "conv": nn.Conv2d(7, 5, 5, padding=2),
    "no bias": nn.Conv2d(3, 4, 3, padding=1, bias=False),
    "stride": nn.Conv2d(4, 6, 3, stride=2, padding=1),
    "1x1": nn.Conv2d(9, 6, 1),
    "tokens": nn.Conv2d(5, 4, (5, 1), padding=(2, 0)),
    "deconv": nn.ConvTranspose2d(6, 5, 5, stride=2, padding=2, output_padding=1),
    "deconv, no stride": nn.ConvTranspose2d(6, 5, 3, padding=1),
    "deconv, tokens": nn.ConvTranspose2d(
        4, 5, (5, 1), stride=(2, 1), padding=(2, 0), output_padding=(1, 0)
    ),
}


def exact_net(net: nn.Module, peak: float = 4.0, exponent: int = 10) -> ExactNet:
    layers = sum(isinstance(layer, nn.Conv2d | nn.ConvTranspose2d) for layer in net.modules())
    frozen = ExactNet(net)
    frozen.load_state_dict(_freeze_net(net, exponent, exponent, True, [peak] * layers))
    return frozen


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("name", list(LAYERS))
@pytest.mark.parametrize("act", [None, nn.ReLU(), nn.LeakyReLU(0.1)])
def test_layers_are_the_float_layers_on_a_grid(name, act, how):
    layer = LAYERS[name]
    net = nn.Sequential(layer, act) if act else layer
    generator = torch.Generator().manual_seed(1)
    for size in ((6, 9), (40, 1), (1, 1)):
        x = torch.randn(2, layer.in_channels, *size, generator=generator)
        x = (x * 1024).round() / 1024
        with torch.no_grad():
            expected = net(x)
        found = exact_net(net)(x, how)
        assert found.shape == expected.shape
        assert (found - expected).abs().max() < 0.8 / 1024
        assert torch.equal(found * 1024, (found * 1024).round())


@pytest.mark.parametrize("how", WAYS)
def test_sums_are_those_of_python_integers(how):
    """Extreme weights and activations, each product added up by hand."""
    rng = np.random.default_rng(0)
    conv = ExactConv(nn.Conv2d(11, 3, (3, 1), padding=(1, 0)), None)
    weight = rng.integers(-LARGEST, LARGEST + 1, (3, 11, 3, 1))
    weight[0], weight[1, ::2] = LARGEST, -LARGEST
    conv.weight.copy_(torch.from_numpy(weight))
    conv.bias.copy_(torch.tensor([12345678901, -5, 0]))
    conv.shift.copy_(torch.tensor([9, 20, 15]))
    a = rng.choice([-LARGEST, LARGEST, 0, 1, -1, -128, 127, 128], (1, 4, 2, 11))
    found = conv(torch.from_numpy(a).to(torch.int16), 1 << 24, how)
    padded = np.pad(a, ((0, 0), (1, 1), (0, 0), (0, 0)))
    for o, h, w in itertools.product(range(3), range(4), range(2)):
        total = int(conv.bias[o])
        for k, c in itertools.product(range(3), range(11)):
            total += int(weight[o, c, k, 0]) * int(padded[0, h + k, w, c])
        shift = int(conv.shift[o])
        value = (total + (1 << (shift - 1))) >> shift
        assert found[0, h, w, o] == max(-(1 << 24), min(1 << 24, value))


def test_the_grid_is_coarsened_until_the_bound_holds():
    """100 000 weights of the same size add up to more than the limbs' 32 bits hold."""
    layer = nn.Conv2d(4096, 2, 5, padding=2)
    with torch.no_grad():
        layer.weight.fill_(1.99)
        layer.weight[1, 1:].zero_()
    conv = ExactConv(layer, None)
    _set_layer(conv, layer, 0, -8)
    sums, limbs = conv.bounds()
    assert (sums < 1 << 53).all()
    assert (limbs < 1 << 31).all()
    assert conv.weight[1].max() > 1.9 * conv.weight[0].max()  # a channel for itself
    conv.weight.fill_(LARGEST)
    with pytest.raises(ValueError, match="not exact"):
        conv.check(LARGEST)


def test_largest_inputs_of_a_proven_layer_are_exact():
    layer = nn.Conv2d(4096, 2, 5, padding=2)
    net = exact_net(layer, exponent=4)
    x = torch.full((1, 4096, 3, 3), 1e9)
    x[:, ::3] *= -1
    assert torch.equal(net(x, "int8"), net(x, "float64"))


def test_layers_without_an_exact_form_are_refused():
    for net in (nn.Sequential(nn.Conv2d(2, 2, 1), nn.Tanh()), nn.ReLU(), nn.Linear(2, 2)):
        with pytest.raises(ValueError, match="no exact form"):
            ExactNet(net)
    with pytest.raises(ValueError, match="no groups"):
        ExactNet(nn.Conv2d(4, 4, 3, groups=2))


def test_freezing_costs_nothing(trained, tmp_path):
    """Rate and MSE are those of the float networks, but for the 4 bytes that strings are rounded to."""
    paths = [tmp_path / f"f{i}.npy" for i in range(30)]
    for i, path in enumerate(paths):
        write_feature(path, toy_feature(i, 120))
    found = cost(load_codec(trained), paths)
    assert found["bytes"] > 10000
    assert abs(found["bytes_ratio"] - 1) < 5e-3
    assert abs(found["mse_ratio"] - 1) < 1e-3


def test_freezing_an_older_folder(trained, toy, tmp_path):
    """A folder without integers says what to do; the command does it, with ranges of features or not."""
    old = tmp_path / "old"
    shutil.copytree(trained, old)
    (old / "exact.safetensors").unlink()
    with pytest.raises(ValueError, match=r"missing; python coding/CompressAI/freeze.py"):
        load_codec(old)
    assert freeze_codec(FreezeConfig(old, tmp_path / "drawn")) == {}
    features = toy / "toy" / "hidden" / "feature_test"
    found = freeze_codec(FreezeConfig(old, tmp_path / "seen", features))
    assert 0.9 < found["bytes_ratio"] < 1.1  # of three small files
    x = toy_feature(0, 30)
    for name in ("drawn", "seen"):
        codec = load_codec(tmp_path / name)
        assert codec.decode(codec.encode(x)).shape == x.shape
    with pytest.raises(ValueError, match="output: another folder"):
        FreezeConfig(old, old)


def test_damaged_integers_are_refused(untrained, tmp_path):
    folder = tmp_path / "codec"
    shutil.copytree(untrained, folder)
    path = folder / "exact.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"exact.safetensors: not a readable"):
        load_codec(folder)
    model = load_model(untrained)[0]
    state = load_codec(untrained).nets.nets.state_dict()
    with pytest.raises(ValueError, match="do not fit the model"):
        FrozenNets(model, {f"nets.{key}": value for key, value in state.items()})


SETTINGS = {
    "one thread": lambda: threads(1),
    "three threads": lambda: threads(3),
    "no oneDNN": lambda: torch.backends.mkldnn.flags(enabled=False),
    "deterministic": lambda: deterministic(),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "float64 sums": lambda: float64_sums(),
    "8-bit sums": lambda: int8_sums(),
}


@contextlib.contextmanager
def threads(count: int):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    yield
    torch.set_num_threads(before)


@contextlib.contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@contextlib.contextmanager
def float64_sums():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exact, "use_int8", lambda: False)
        yield


@contextlib.contextmanager
def int8_sums():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exact, "use_int8", lambda: True)
        yield


class Watched(SymbolDecoder):
    """Remembers the latents of the last decoding."""

    def finish(self, check: int = 0) -> None:
        super().finish(check)
        Watched.last = [piece.clone().contiguous() for piece in self.latents]


def test_any_setting_decodes_what_any_other_encoded(untrained, monkeypatch):
    """120 features, each encoded under one setting and decoded under all: identical latents."""
    monkeypatch.setattr("dtufc.CompressAI.codec.SymbolDecoder", Watched)
    codec, other = load_codec(untrained), load_codec(untrained)
    other.model.to(memory_format=torch.contiguous_format)
    names = list(SETTINGS)
    for i in range(120):
        x = toy_feature(i, 8 + i % 60)
        with SETTINGS[names[i % len(names)]]():
            data = (codec, other)[i % 2].encode(x)
        latents = None
        for j in range(2):
            name = names[(i + 1 + j * (1 + i % 4)) % len(names)]
            with SETTINGS[name]():
                (other, codec)[j].decode(data)
            if latents is not None:
                assert all(map(torch.equal, latents, Watched.last)), name
            latents = Watched.last


@pytest.mark.parametrize("assignment", ["nearest", "continuous"])
def test_values_move_by_a_level_at_most(untrained, assignment):
    """Latents are exact; what g_s makes of them is rounded to levels, and float noise at the edge
    between two moves a value to the next level, however far that is. Nothing else moves it."""
    codec = load_codec(untrained)
    kind = codec.kinds["toy_hidden"]
    mapping = Mapping(kind.mapping.codebooks, assignment)
    codec.kinds = {"toy_hidden": Kind(kind.facts, mapping)}
    centres = mapping.codebooks.astype(np.float32)
    for seed in range(4):
        data = codec.encode(toy_feature(seed, 150))
        found = []
        for setting in ("one thread", "three threads", "no oneDNN"):
            with SETTINGS[setting]():
                found.append(codec.decode(data))
        for other in found[1:]:
            if assignment == "nearest":
                levels = [np.searchsorted(centres, values) for values in (found[0], other)]
                assert np.array_equal(centres[levels[1]], other)
                assert np.abs(np.diff(levels, axis=0)).max() <= 1
            else:  # no levels: in proportion to the noise
                assert np.abs(mapping.forward(found[0]) - mapping.forward(other)).max() < 1e-4


@pytest.mark.slow
def test_compiled_networks_decode_what_plain_ones_encoded(untrained):
    """Graph capture in place of eager calls; the code generator itself needs a C++ compiler."""
    backend = "inductor" if shutil.which("g++") else "aot_eager"
    codec, compiled = load_codec(untrained), load_codec(untrained)
    for net in compiled.nets.nets.values():
        net.forward = torch.compile(net.forward, backend=backend)
    data = codec.encode(toy_feature(0, 20))
    assert np.array_equal(compiled.decode(data), codec.decode(data))


@pytest.mark.parametrize("how", WAYS)
def test_a_batch_is_its_parts(how):
    net = exact_net(nn.Sequential(nn.Conv2d(8, 12, 5, padding=2), nn.ReLU(), nn.Conv2d(12, 4, 1)))
    x = torch.randn(6, 8, 5, 70, generator=torch.Generator().manual_seed(0))
    assert torch.equal(net(x, how), torch.cat([net(each[None], how) for each in x]))


@pytest.mark.gpu
def test_cpu_and_gpu_decode_each_other(untrained):
    codecs = {device: load_codec(untrained, device=device) for device in ("cpu", "cuda")}
    for i in range(100):
        x = toy_feature(i, 8 + i)
        for there, back in (("cpu", "cuda"), ("cuda", "cpu")):
            data = codecs[there].encode(x)
            decoded = [codecs[device].decode(data) for device in (back, there)]
            # the last nets run in TF32 on a GPU, and the codebook is steep here and there
            assert np.abs(decoded[0] - decoded[1]).mean() < 0.2 * np.abs(x).mean()


def test_other_latents_are_refused(untrained):
    """A foreign decoder that reads all symbols, but whose means differ by a hair at the very end."""
    codec, foreign = load_codec(untrained), load_codec(untrained)
    data = codec.encode(toy_feature(0, 20))
    last = list(foreign.nets.nets.values())[-1].layers[-1]
    if type(codec.model).__name__ == "Elic":
        last.bias[-1] += 1 << int(last.shift[-1])  # the mean of the last channel
    else:
        foreign.nets.medians[-1] += 2**-12
    with pytest.raises(BitstreamError, match="corrupted"):
        foreign.decode(data)


class Numbers:
    """A small generator of our own, so that golden bytes depend on no library's."""

    def __init__(self, seed: int):
        self.state = seed

    def integers(self, shape: tuple[int, ...], low: int, high: int) -> torch.Tensor:
        out = []
        for _ in range(int(np.prod(shape))):
            self.state = (self.state * 6364136223846793005 + 1442695040888963407) % (1 << 64)
            out.append(low + (self.state >> 33) % (high - low))
        return torch.tensor(out).reshape(shape)


GOLDEN = {
    "hyperprior": "8dffa0db8db2dd49771d037e38f57d43ecdeef84a6eca56dd8cc64432b64a3de",
    "elic": "ed4819a001be0359d58a1c67ee91df848e7b5128df2be9b0a451e22845e7f2e6",
}


def golden_coder(name: str):
    """A model whose integers and tables are given, not computed -> model, nets, tables."""
    numbers = Numbers(1)
    model = build_model(name, ARCHS[name]).eval()
    nets = {}
    for key, net in model.entropy_nets().items():
        frozen = ExactNet(net.module)
        for layer in frozen.layers:
            layer.weight.copy_(numbers.integers(layer.weight.shape, -300, 300))
            layer.bias.copy_(numbers.integers(layer.bias.shape, 0, 1 << 20))
            layer.shift.fill_(9)
        frozen.exponent_in.fill_(6)
        frozen.exponent_out.fill_(12 if net.writes == "params" else 6)
        frozen.limit.fill_(1 << 24 if net.writes == "params" else LARGEST)
        nets |= {f"nets.{key}.{part}": value for part, value in frozen.state_dict().items()}
    scales = torch.tensor([2.0**k for k in range(-3, 9)])
    model.conditional.scale_table = scales
    frozen = FrozenNets(
        model,
        {"medians": torch.zeros(ARCHS[name].N), "scale_edges": scales[:-1] * 1.5, **nets},
    )
    tables = SymbolTables.__new__(SymbolTables)
    tables.latent = ARCHS[name].N
    rows = tables.latent + len(scales)
    cdf = np.zeros((rows, 18), np.int32)
    cdf[:, 1:] = np.cumsum([3855] * 16 + [3856], dtype=np.int32)
    tables.tables = rans.Tables(cdf, np.full(rows, 18), np.full(rows, -8))
    return model, frozen, tables


@pytest.mark.parametrize("name", list(ARCHS))
def test_golden_bytes(name):
    """Given latents give the bytes they always gave, and come back."""
    model, nets, tables = golden_coder(name)
    numbers = Numbers(2)
    arch = ARCHS[name]
    y = numbers.integers((1, arch.M, 8, 4), -600, 600) / 64
    z = numbers.integers((1, arch.N, 2, 1), -200, 200) / 64
    mask = _coded_mask((100, 50), model, torch.device("cpu"))
    with torch.inference_mode():
        encoder = SymbolEncoder(nets, tables)
        y_hat = model.walk(encoder, y, z, mask)
        data = encoder.finish()
        decoder = SymbolDecoder(nets, tables, data, tuple(z.shape))
        assert torch.equal(model.walk(decoder, mask=mask), y_hat)
        decoder.finish()
    if type(model).__name__ == "Elic":
        assert (y_hat != y_hat.round()).any()  # means that are no integers take part
    assert hashlib.sha256(data).hexdigest() == GOLDEN[name]


def test_tiles_cover_the_plane():
    for plane in ((1, 1), (64, 64), (65, 200), (700, 513), (4234, 1536)):
        for tile in (0, 64, 512, 1024):
            size = tile_size(plane, tile)
            assert all(length % 64 == 0 and (tile == 0 or length <= tile) for length in size)
            count = np.zeros(plane, int)
            for rows, cols in tiles(plane, size):
                count[rows, cols] += 1
            assert (count == 1).all()


def test_tiled_planes(trained):
    """Tiles decode without being told; one that is whole costs no byte; edges cost a little."""
    codec = load_codec(trained).at_tile(0)
    tiled = codec.at_tile(64)
    with pytest.raises(ValueError, match="tile: expected 0 or a multiple of 64"):
        codec.at_tile(100)
    x = np.concatenate([toy_feature(i, 70) for i in range(3)], axis=2)
    whole, pieces = codec.encode(x), tiled.encode(x)
    assert codec.encode(x[:, :, :60, :64].repeat(2, 3)) == codec.encode(
        x[:, :, :60, :64].repeat(2, 3)
    )
    a, b = codec.decode(whole), codec.decode(pieces)
    assert np.array_equal(tiled.decode(whole), a)
    mapping = next(iter(codec.kinds.values())).mapping
    u, u_a, u_b = (mapping.forward(each) for each in (x, a, b))
    assert np.mean((u - u_b) ** 2) < 1.5 * np.mean((u - u_a) ** 2)
    assert len(pieces) < 1.5 * len(whole)
