"""Torch tensors and batches at the codec API, and the first call after :meth:`Codec.warm_up`."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import small_codecs
import torch

import dtufc.CompressAI.codec
from dtufc import tensors
from dtufc.codec import BitstreamError, load_codec
from dtufc.errors import UserError
from dtufc.feature import FeatureError, FeatureFacts, is_finite
from dtufc.paths import REPOSITORY
from dtufc.registry import codecs

X = small_codecs.made_up("tokens", 100)  # (1, 1, 20, 6)
MAPS = small_codecs.made_up("maps", 100)  # (6, 2, 3, 3)


@pytest.mark.parametrize("name", ["cast", "klt", "hyperprior"])
def test_tensors_are_taken_where_arrays_are(golden_codec, name):
    """Whatever their strides, gradients and missing axes; bfloat16 as the float32 that it is."""
    codec = golden_codec(name)
    data = codec.encode(X)
    tensor = torch.from_numpy(X)
    turned = tensor.transpose(2, 3).contiguous().transpose(2, 3)
    for same in (
        tensor, tensor.clone().requires_grad_(), turned, tensor[0, 0], tensor[0], X[0, 0], X[0],
        torch.nn.Parameter(tensor),
    ):  # fmt: skip
        assert codec.encode(same) == data
    half = tensor.bfloat16()
    assert codec.encode(half) == codec.encode(half.float().numpy())
    assert codec.encode(half, target_nmse=9.0) == codec.encode(half.float(), target_nmse=9.0)


def test_tensors_are_given_where_one_is_asked_for(golden_codec):
    codec = golden_codec("klt")
    data = codec.encode(X)
    decoded = codec.decode(data)
    assert isinstance(decoded, np.ndarray)
    on_cpu = codec.decode(data, device="cpu")
    assert on_cpu.dtype == torch.float32 and np.array_equal(on_cpu.numpy(), decoded)
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        tensor = codec.decode(data, device=torch.device("cpu"), dtype=dtype)
        assert torch.equal(tensor, torch.from_numpy(decoded).to(dtype))
        assert torch.equal(codec.decode(data, dtype=dtype), tensor)
    for dtype in (torch.int32, np.float32, torch.float8_e4m3fn, "bfloat16"):
        with pytest.raises(UserError, match=r"dtype: expected torch\.float32"):
            codec.decode(data, dtype=dtype)
    with pytest.raises(UserError, match="device: nowhere"):
        codec.decode(data, device="nowhere")
    with pytest.raises(BitstreamError, match="the limit is 5"):
        codec.decode(data, max_points=5, device="cpu")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_what_a_dtype_cannot_hold_becomes_its_largest(dtype):
    largest = torch.finfo(dtype).max
    x = np.array([3.4e38, -3.4e38, 1.5, largest], np.float32)
    assert tensors.to_tensor(x, None, dtype).tolist() == [largest, -largest, 1.5, largest]


@pytest.mark.gpu
def test_tensors_on_a_gpu(golden_codec):
    codec = golden_codec("klt")
    hidden = torch.from_numpy(X).to("cuda", torch.bfloat16)
    data = codec.encode(hidden)
    assert data == codec.encode(hidden.cpu())
    back = codec.decode(data, device="cuda", dtype=torch.bfloat16)
    assert back.is_cuda and back.dtype == torch.bfloat16
    assert torch.equal(back.cpu(), codec.decode(data, dtype=torch.bfloat16))
    batch = codec.decode_many(
        codec.encode_many(hidden.expand(3, 1, 20, 6)), batch=True, device="cuda"
    )
    assert batch.shape == (3, 1, 20, 6)


def test_what_is_no_feature_is_named(golden_codec):
    codec = golden_codec("int")
    for x, why in (
        ([1.0, 2.0], "expected a NumPy array or a torch tensor, got list"),
        (torch.zeros(1, 1, 20, 6, dtype=torch.int64), "expected float16 or float32, got int64"),
        (torch.zeros(1, 1, 20, 6).to_sparse(), "no dense tensor"),
        (torch.full((1, 1, 20, 6), torch.nan), "NaN or infinity"),
        (X[0, 0, :, :5], r"expected \(N, C, H, W\) of small_tokens .*got shape \(20, 5\)"),
        (X[0, 0, 0], r"got shape \(6,\)"),
        (X[..., :5], "takes shape"),
    ):
        with pytest.raises(FeatureError, match=why):
            codec.encode(x)
    with pytest.raises(FeatureError, match="expected float16 or float32, got float64"):
        codec.encode(X.astype(np.float64))


def facts(shape: list[int | None], *axes: str) -> FeatureFacts:
    return FeatureFacts("any", "kind", shape, list(axes))


def test_one_value_that_is_not_finite_is_found():
    largest = np.finfo(np.float32).max
    for dtype in (np.float16, np.float32):
        x = np.ones((1, 2, 3, 5), dtype)
        for value, finite in ((1, True), (np.nan, False), (np.inf, False), (-np.inf, False)):
            x[0, 1, 2, 3] = value
            assert is_finite(x) == finite
            assert is_finite(x[:, :, ::2]) == finite  # not in a row
    assert is_finite(np.full((2, 3), -largest))  # whose squares are not


def test_missing_axes_are_those_that_the_facts_tell():
    tokens = facts([None, 1, None, 6], "sample", "layer", "token", "channel")
    assert tokens.four_axes((20, 6)) == (1, 1, 20, 6)
    assert tokens.four_axes((3, 20, 6)) == (3, 1, 20, 6)
    assert tokens.four_axes((3, 1, 20, 6)) == (3, 1, 20, 6)
    assert tokens.four_axes((20, 5)) is None and tokens.four_axes((6,)) is None
    one = replace(tokens, shape=[1, 1, None, 6])
    assert one.four_axes((1, 20, 6)) == (1, 1, 20, 6) and one.four_axes((3, 20, 6)) is None
    for layers in (4, None):  # three axes might begin with samples or layers
        several = replace(tokens, shape=[None, layers, None, 6])
        assert several.four_axes((4, 20, 6)) is None
    maps = facts([1, 2, 3, 3], "sample", "channel", "row", "column")
    assert maps.four_axes((2, 3, 3)) == (1, 2, 3, 3)
    assert maps.four_axes((3, 3)) is None and maps.four_axes((1, 1, 3, 3)) is None


def test_batches_are_a_bitstream_per_sample(golden_codec):
    codec = golden_codec("int", "maps")
    one_by_one = [codec.encode(MAPS[i : i + 1]) for i in range(len(MAPS))]
    tensor = torch.from_numpy(MAPS)
    for batch in (MAPS, tensor, tensor.clone().requires_grad_()):
        assert codec.encode_many(batch) == one_by_one
    assert codec.encode_many([*MAPS]) == codec.encode_many(x for x in tensor) == one_by_one
    decoded = codec.decode_many(one_by_one)
    assert [x.shape for x in decoded] == [(1, 2, 3, 3)] * 6
    together = codec.decode_many(iter(one_by_one), batch=True)
    assert np.array_equal(together, np.concatenate(decoded))
    together = codec.decode_many(one_by_one, batch=True, dtype=torch.bfloat16)
    assert together.shape == (6, 2, 3, 3) and together.dtype == torch.bfloat16
    assert codec.encode_many([]) == codec.encode_many(MAPS[:0]) == codec.decode_many([]) == []


def test_batches_of_tokens_without_a_layer_axis(golden_codec):
    """(B, T, C), as hidden states come; several at once, each within its own target."""
    codec = golden_codec("klt")
    hidden = np.concatenate([small_codecs.made_up("tokens", i) for i in range(5)])[:, 0]
    streams = codec.encode_many(torch.from_numpy(hidden), max_bytes=60, coders=3)
    assert streams == [codec.encode(x, max_bytes=60) for x in hidden]
    assert codec.decode_many(streams, batch=True).shape == (5, 1, 20, 6)


def test_errors_of_many_name_the_item(golden_codec):
    codec = golden_codec("int")
    with pytest.raises(FeatureError, match=r"^feature 2: .*NaN"):
        codec.encode_many([X, X, X * np.float32("nan"), X])
    with pytest.raises(UserError, match=r"^feature 0: max_bytes: 9 is out of reach"):
        codec.encode_many([X], max_bytes=9)
    with pytest.raises(BitstreamError, match=r"^bitstream 1: "):
        codec.decode_many([codec.encode(X), b"no"])
    with pytest.raises(FeatureError, match=r"batch: expected \(B, C, H, W\).*got \(20, 6\)"):
        codec.encode_many(X[0, 0])
    with pytest.raises(UserError, match="coders: expected 1 or more"):
        codec.encode_many([X], coders=0)
    with pytest.raises(UserError, match="batch: expected features of one shape"):
        codec.decode_many([codec.encode(X), codec.encode(X[:, :, :5])], batch=True)
    with pytest.raises(UserError, match="batch: expected"):
        codec.decode_many([], batch=True)


def test_a_batch_for_a_codec_of_single_samples_is_told(golden_folder, tmp_path):
    folder = tmp_path / "codec"
    folder.mkdir()
    for path in golden_folder("cast").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    values = json.loads((folder / "config.json").read_text())
    values["facts"]["shape"][0] = 1
    (folder / "config.json").write_text(json.dumps(values))
    codec = load_codec(folder)
    batch = np.concatenate([X, X])
    for x in (batch, batch[:, 0], torch.from_numpy(batch)):
        with pytest.raises(FeatureError, match="a batch of 2 features; encode_many"):
            codec.encode(x)
    assert codec.encode_many(batch) == [codec.encode(X)] * 2


KERNELS = """
import sys
sys.path.insert(0, {path!r})
import small_codecs
from dtufc.codec import load_codec

def compiled():
    modules = [module for name, module in sys.modules.items() if name.startswith("dtufc")]
    found = {{id(value): value for module in modules for value in vars(module).values()}}
    kernels = [value for value in found.values() if hasattr(value, "signatures")]
    return {{str(kernel): len(kernel.signatures) for kernel in kernels}}

for folder, kind in {cases!r}:
    codec = load_codec(folder)
    assert codec.warm_up() is codec
    before = compiled()
    assert sum(before.values()) >= 2, before
    for seed in range(3):
        codec.decode(codec.encode(small_codecs.made_up(kind, seed)))
    assert compiled() == before, (folder, before, compiled())
"""


def test_nothing_is_compiled_after_warm_up(golden_folder):
    """In a process of its own; kernels that codecs share are the first one's."""
    cases = [("klt", "tokens"), ("klt", "maps"), ("hyperprior", "tokens"), ("elic", "tokens")]
    cases = [(str(golden_folder(*case)), case[1]) for case in cases]
    code = KERNELS.format(path=str(REPOSITORY / "scripts"), cases=cases)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_smallest_shape_is_of_the_kind():
    for shape, expected in (
        ([1, 1, None, 6], (1, 1, 8, 6)), ([None, 4, 30, None], (1, 4, 30, 8)),
    ):  # fmt: skip
        assert facts(shape, "sample", "layer", "token", "channel").smallest == expected
    maps = facts([None, None, 5, None], "sample", "channel", "row", "column")
    assert maps.smallest == (1, 1, 5, 8)
    assert replace(maps, tiles=[2, 3]).smallest == (1, 6, 5, 8)


@pytest.mark.parametrize("name", codecs())
def test_decoded_float16_never_overflows(name, tmp_path, monkeypatch):
    """Every codec, fitted to values beyond float16 and then told that its features are float16."""
    made_up = small_codecs.made_up
    scale = np.float32(4e5 / np.abs(made_up("tokens", 0)).max())
    monkeypatch.setattr(small_codecs, "made_up", lambda kind, seed: made_up(kind, seed) * scale)
    folder = small_codecs.make(name, "tokens", tmp_path)
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"float32"', '"float16"'))
    seen = []
    for module in (dtufc.codec, dtufc.CompressAI.codec):
        original = module.to_dtype

        def note(x, dtype, original=original):
            seen.append(float(np.abs(x.astype(np.float64)).max()))
            return original(x, dtype)

        monkeypatch.setattr(module, "to_dtype", note)
    codec = load_codec(folder)
    largest = float(np.finfo(np.float16).max)
    x = np.clip(small_codecs.made_up("tokens", 1), -largest, largest).astype(np.float16)
    for quality in codec.qualities[:: max(1, len(codec.qualities) // 4)] or [None]:
        one = codec if quality is None else codec.at_quality(quality)
        decoded = one.decode(one.encode(x))
        assert decoded.dtype == np.float16
        assert np.isfinite(decoded).all()
    assert max(seen) > largest  # so that there was something to clip
    assert np.abs(decoded).max() > 0.5 * largest


def test_numpy_users_do_not_load_torch(golden_folder):
    """A codec without networks codes arrays without torch."""
    code = f"""
import sys, numpy as np
from dtufc.codec import load_codec
codec = load_codec({str(golden_folder("cast"))!r})
codec.decode(codec.encode(np.zeros((1, 1, 3, 6), np.float32), max_bytes=1000))
print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
