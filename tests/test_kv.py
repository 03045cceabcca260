"""KV caches: every kind of cache there and back, appended to or at once, damaged and hostile bytes."""

import copy
import csv
import json
import shutil
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.numpy import load, save
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    StaticCache,
)

from dtufc import provenance
from dtufc.bitstream import BitstreamError, write_varint
from dtufc.errors import UserError
from dtufc.klt.importance import FAR, Probed, fit_importance, saved, to_classes
from dtufc.kv import KvCodec, KvLimits, load_kv
from dtufc.kv import capture as kv_capture
from dtufc.kv import evaluate as kv_evaluate
from dtufc.kv import fit as kv_fit
from dtufc.kv.caches import LayerShape, make_cache, read_cache
from dtufc.kv.capture import continue_from, fill_cache
from dtufc.kv.command import main
from dtufc.kv.container import Frame, Header
from dtufc.kv.evaluate import evaluate
from dtufc.kv.evaluate_kv import KvEvalConfig
from dtufc.kv.fit_kv import KvFitConfig
from dtufc.kv.model import WEIGHTS
from dtufc.kv.rivals import Rival, quantise
from dtufc.kv.rope import NO_ROPE, Rope
from dtufc.machines.tiny import llama3_training

LADDER_FIT = kv_fit.fit_ladder.fit
TEXT = " ".join(text for text, _ in llama3_training.draw(0, 400, 0))
SIZES = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
    "initializer_range": 0.3, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1,
}  # fmt: skip
KINDS = {
    "full": (LlamaConfig, {}),
    "grouped": (LlamaConfig, {"num_key_value_heads": 2}),
    "sliding": (MistralConfig, {"num_key_value_heads": 2, "sliding_window": 12}),
    "mixed": (Gemma3TextConfig, {
        "num_key_value_heads": 1, "head_dim": 8, "sliding_window": 12,
        "layer_types": ["sliding_attention"] * 2 + ["full_attention"] * 2,
    }),
}  # fmt: skip


def few_tables(transform, sample, grades, weight):
    """klt's tables of every tenth step, which serve its neighbours: a fit of a second."""
    grades = list(grades)
    found = list(LADDER_FIT(transform, sample, grades[::10], weight))
    return [found[number // 10] for number in range(len(grades))]


@pytest.fixture(scope="module", autouse=True)
def fast_tables():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kv_fit.fit_ladder, "fit", few_tables)
        yield


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Kind -> the folder of a random model of 4 layers of width 32."""
    root = tmp_path_factory.mktemp("models")
    words = [text for text, _ in llama3_training.draw(0, 300, 0)]
    tokenizer = llama3_training.build_tokenizer(words)

    def make(kind: str):
        folder = root / kind
        if not folder.exists():
            torch.manual_seed(2)
            config_class, changes = KINDS[kind]
            known = config_class(vocab_size=len(tokenizer), **SIZES | changes)
            AutoModelForCausalLM.from_config(known).save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="module")
def fitted(checkpoint, tmp_path_factory):
    """Kind -> the language model and the folder of a codec that was fitted to it for seconds."""
    root, known = tmp_path_factory.mktemp("codecs"), {}
    (root / "text.txt").write_text(TEXT)

    def make(kind: str, **changes):
        name = "_".join([kind, *(f"{key}_{value}" for key, value in changes.items())])
        if name not in known:
            values = {
                "machine": str(checkpoint(kind)), "texts": root / "text.txt", "output": root / name,
                "windows": 10, "window": 40, "prompt": 24, "probed": 5, "rows": 300, "span": 4,
                "rope": "before",
            }  # fmt: skip
            kv_fit.fit(KvFitConfig(**values | changes))
            known[name] = kv_capture.open_language(str(checkpoint(kind))), root / name
        return known[name]

    return make


def cache_of(language, tokens: int = 30, seed: int = 0, batch: int = 1, dtype=torch.float32):
    """A cache of random tokens behind the one that begins a sequence."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 60, (batch, tokens), generator=generator)
    ids[:, 0] = 0
    cache = DynamicCache(config=language.model.config)
    with torch.inference_mode():
        language.model(ids, past_key_values=cache)
    for layer in cache.layers:
        layer.keys, layer.values = layer.keys.to(dtype), layer.values.to(dtype)
    return cache


def same(one, other) -> bool:
    """Whether two caches hold the same, bit for bit."""
    a, b = read_cache(one), read_cache(other)
    pairs = zip((*a.keys, *a.values), (*b.keys, *b.values), strict=True)
    return (a.layers, a.tokens, a.dtype) == (b.layers, b.tokens, b.dtype) and all(
        torch.equal(x, y) for x, y in pairs
    )


def error(one, other) -> float:
    """Squared error over squared values, of keys and values of all layers."""
    a, b = read_cache(one), read_cache(other)
    pairs = [*zip((*a.keys, *a.values), (*b.keys, *b.values), strict=True)]
    return float(
        sum((x - y).square().sum() for x, y in pairs) / sum(x.square().sum() for x, _ in pairs)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_decoded_is_the_codecs_own_reconstruction(fitted, kind):
    language, folder = fitted(kind)
    codec, cache = load_kv(folder), cache_of(language)
    errors, sizes = [], []
    for quality in (-1, 2, 6):
        data = codec.at(quality=quality).encode_cache(cache)
        decoded = codec.decode_cache(data)  # the receiver need not know the quality
        assert same(decoded, codec.at(quality=quality).reconstruct(cache))
        errors.append(error(cache, decoded))
        sizes.append(len(data))
    assert sizes == sorted(sizes) and errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0] / 10


@pytest.mark.parametrize("kind", KINDS)
def test_generation_goes_on_from_a_decoded_cache(fitted, kind):
    """A fine rate gives about the distributions of the exact cache, sliding layers included."""
    language, folder = fitted(kind)
    codec, cache = load_kv(folder).at(quality=7, sinks=2), cache_of(language)
    decoded = codec.decode_cache(codec.encode_cache(cache))
    ids = [5, 9, 7, 30, 8]
    exact, coded = (continue_from(language, each, ids) for each in (copy.deepcopy(cache), decoded))
    assert decoded.get_seq_length() == 35
    kl = torch.nn.functional.kl_div(coded, exact, reduction="batchmean", log_target=True)
    assert 0 < kl < 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_appended_is_what_is_coded_at_once(fitted, kind):
    """Frames of any length, and bytes in any pieces."""
    language, folder = fitted(kind)
    codec = load_kv(folder).at(recent=0)  # recent tokens are known when a cache is coded at once
    encoder, decoder, data = codec.encoder(), codec.decoder(), b""
    for tokens in (1, 2, 9, 10, 27, 27, 30):
        cache = cache_of(language)
        data += encoder.append(_first(language, cache, tokens))
    data += encoder.close()
    for first in range(0, len(data), 97):
        decoder.feed(data[first : first + 97])
    decoder.finish()
    whole = codec.decode_cache(codec.encode_cache(cache_of(language)))
    assert decoder.tokens == 30 and same(decoder.cache(), whole)


def _first(language, cache, tokens: int):
    """The cache as it was when it had seen so many tokens."""
    snapshot = read_cache(fill_cache(language, _ids(30)))
    short = DynamicCache(config=language.model.config)
    for number, (keys, values) in enumerate(zip(snapshot.keys, snapshot.values, strict=True)):
        short.update(keys[:, :, :tokens], values[:, :, :tokens], number)
    return short


def _ids(tokens: int) -> list[int]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 60, (1, tokens), generator=generator)
    ids[:, 0] = 0
    return ids[0].tolist()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_batches_and_dtypes(fitted, dtype):
    language, folder = fitted("grouped")
    codec, cache = load_kv(folder).at(sinks=3, quality=4), cache_of(language, batch=3, dtype=dtype)
    decoded = codec.decode_cache(codec.encode_cache(cache))
    assert same(decoded, codec.reconstruct(cache))
    assert decoded.layers[0].keys.dtype == dtype and decoded.layers[0].keys.shape[0] == 3
    for coded, exact in zip(decoded.layers, cache.layers, strict=True):
        sinks = slice(1, 3)  # the first token is the one that the codec knows
        if dtype != torch.float32:
            assert torch.equal(coded.keys[:, :, sinks], exact.keys[:, :, sinks])
        torch.testing.assert_close(
            coded.values[:, :, :3], exact.values[:, :, :3], atol=2e-2, rtol=0
        )


def test_known_first_tokens_cost_nothing(fitted):
    language, folder = fitted("full")
    codec, cache = load_kv(folder), cache_of(language)
    assert codec.model.known.shape == (1, codec.model.channels)
    stranger = copy.deepcopy(cache)
    for layer in stranger.layers:
        layer.keys = layer.keys.clone()
        layer.keys[:, :, 0] += 1
    short, long = (len(codec.encode_cache(each)) for each in (cache, stranger))
    assert 2 * codec.model.channels <= long - short < 2.1 * codec.model.channels
    decoded = codec.decode_cache(codec.encode_cache(stranger))
    assert torch.allclose(
        decoded.layers[1].keys[:, :, 0], stranger.layers[1].keys[:, :, 0], atol=0.01
    )
    elsewhere = codec.decode_cache(codec.encode_cache(cache, position=100))
    assert error(cache, elsewhere) < 0.5 and not same(elsewhere, codec.reconstruct(cache))


def test_recent_tokens_are_finer(fitted):
    """Where the prediction says so, the fewer tokens are behind one, the finer it is."""
    language, folder = fitted("full")
    cache, codec = cache_of(language), load_kv(folder)
    group = codec.model.groups[0]
    theta = np.zeros_like(group.importance.theta)
    theta[-4] = -2.0  # of log2 of the tokens behind
    group = replace(group, importance=replace(group.importance, theta=theta, bias=4.0))
    codec = KvCodec(replace(codec.model, groups=(group,))).at(quality=2, recent=30)
    decoded = codec.decode_cache(codec.encode_cache(cache))
    assert same(decoded, codec.reconstruct(cache))
    away = (decoded.layers[2].values - cache.layers[2].values).square().mean((0, 1, 3))
    assert away[-2:].mean() < 0.1 * away[1:12].mean()
    bulk, growing = (len(codec.encoder().append(cache, last=last)) for last in (True, False))
    assert bulk > growing == len(codec.at(recent=0).encoder().append(cache, last=True))


def test_keys_turn_back_and_on_again():
    """As transformers turns them, and with a part of the channels and a scale."""
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

    module = LlamaRotaryEmbedding(LlamaConfig(hidden_size=32, num_attention_heads=4))
    keys = torch.randn(2, 3, 7, 8)
    cos, sin = module(keys, torch.arange(4, 11)[None])
    cached = apply_rotary_pos_emb(keys, keys, cos, sin)[1]
    whole = Rope(module.inv_freq.numpy())
    torch.testing.assert_close(
        whole.turn(keys.transpose(1, 2), range(4, 11), back=False).transpose(1, 2), cached
    )
    for rope in (whole, Rope(module.inv_freq.numpy()[:3], 1.4), NO_ROPE):
        turned = rope.turn(cached.transpose(1, 2), range(4, 11), back=True)
        again = rope.turn(turned, range(4, 11), back=False)
        torch.testing.assert_close(again.transpose(1, 2), cached)


def test_damage_is_refused(fitted):
    """Any flipped byte, and a cut at any place."""
    language, folder = fitted("sliding")
    codec = load_kv(folder)
    data = codec.encode_cache(cache_of(language, tokens=14))
    codec.decode_cache(data)
    for place in range(len(data)):
        with pytest.raises(BitstreamError):
            codec.decode_cache(data[:place] + bytes([data[place] ^ 16]) + data[place + 1 :])
    for length in range(0, len(data), 7):
        with pytest.raises(BitstreamError, match="truncated"):
            codec.decode_cache(data[:length])
    with pytest.raises(BitstreamError, match="behind the end"):
        codec.decode_cache(data + _framed(data, Frame(0, 1, (0,))))


def _framed(before: bytes, frame: Frame) -> bytes:
    """A frame with a sound check, as a forger writes it."""
    body = frame.body()
    head = write_varint(len(body))
    return head + body + zlib.crc32(before + head + body).to_bytes(4, "little")


@pytest.mark.parametrize(
    "frame, why",
    [
        (Frame(1, 5, (0, 0), raw=b"1234", dtype="float32"), "raw rows"),
        (Frame(1, 1 << 30, (0, 0)), "too large"),
        (Frame(0, 2, (0, 0)), "does not know token 1"),
        (Frame(0, 1, (1, 0)), "truncated"),
        (Frame(0, 1, (0, 1)), "keeps all"),
        (Frame(2, 5, (0, 0), 128, ((b"1234", b"", b""),) * 2), "corrupted|inconsistent|truncated"),
        (
            Frame(2, 5, (0, 0), 32767, ((b"1234", b"12", b"3", b""),) * 2),
            "corrupted|inconsistent|truncated",
        ),
        (Frame(2, 5, (0, 0), 128, ((),) * 2), "0 parts"),
        (Frame(2, 5, (9, 0), 128, ((),) * 2), "rows from 9"),
        (Frame(3, 0), "0 of 0 tokens"),
        (Frame(3, 7), "0 of 7 tokens"),
    ],
)
def test_forged_frames_are_refused(fitted, frame, why):
    """Checks that are right say nothing of what they check."""
    _, folder = fitted("mixed")
    codec = load_kv(folder)
    assert len(codec.model.windows) == 2
    header = Header(codec.id[:4], "float32", 1, 0).pack()
    with pytest.raises(BitstreamError, match=why):
        codec.decode_cache(header + _framed(header, frame))


def test_limits_are_the_receivers(fitted):
    language, folder = fitted("full")
    codec = load_kv(folder)
    data = codec.encode_cache(cache_of(language, batch=2))
    for limits in (
        KvLimits(tokens=29), KvLimits(batch=1), KvLimits(values=1000), KvLimits(frame_bytes=100),
    ):  # fmt: skip
        with pytest.raises(BitstreamError, match="too large"):
            codec.decode_cache(data, limits=limits)
    with pytest.raises(UserError, match="batch: expected at least 1"):
        KvLimits(batch=0)


def test_other_caches_are_refused(fitted, checkpoint):
    language, folder = fitted("full")
    codec = load_kv(folder)
    static = StaticCache(config=language.model.config, max_cache_len=8)
    grouped, _ = fitted("grouped")
    infinite = cache_of(language)
    infinite.layers[2].values = infinite.layers[2].values.clone()
    infinite.layers[2].values[0, 0, 3, 1] = torch.inf
    for cache, why in (
        (None, "expected a filled DynamicCache, got NoneType"),
        (DynamicCache(), "expected a filled DynamicCache"),
        (static, "layer 0 is a StaticLayer"),
        (cache_of(grouped), "layer 0 is LayerShape.heads=2"),
        (infinite, "layer 2: expected finite values"),
    ):
        with pytest.raises(UserError, match=why):
            codec.encode_cache(cache)
    encoder = codec.encoder()
    encoder.append(cache_of(language))
    with pytest.raises(UserError, match="20 tokens"):
        encoder.append(cache_of(language, tokens=20))
    with pytest.raises(UserError, match="batch and dtype"):
        encoder.append(cache_of(language, tokens=40, batch=2))
    encoder.close()
    with pytest.raises(UserError, match="closed"):
        encoder.append(cache_of(language, tokens=40))
    data = codec.encode_cache(cache_of(language))
    other = load_kv(fitted("full", quality=2.0, seed=1)[1])
    with pytest.raises(BitstreamError, match="written by codec"):
        other.decode_cache(data)
    with pytest.raises(BitstreamError, match="foreign"):
        codec.decode_cache(b"UFC" + data[3:])
    with pytest.raises(UserError, match="quality: expected -3"):
        codec.at(quality=9)


def test_a_plain_cache_of_a_sliding_model_is_cut_to_its_windows(fitted):
    """transformers keeps all tokens where the cache was made without the model's config."""
    language, folder = fitted("sliding")
    codec = load_kv(folder)
    decoded = codec.decode_cache(codec.encode_cache(fill_cache(language, _ids(30))))
    assert same(decoded, codec.decode_cache(codec.encode_cache(cache_of(language))))
    assert decoded.layers[0].keys.shape[2] == 11 and decoded.get_seq_length() == 30


def test_the_fisher_information_tells_the_divergence(fitted):
    """Half e' F e is the KL of a small error e, summed over the answers."""
    language, _ = fitted("full")
    ids, prompt, layer = _ids(60), 30, 2
    cache = fill_cache(language, ids[:prompt])
    exact = continue_from(language, copy.deepcopy(cache), ids[prompt:])
    direction = torch.randn(
        cache.layers[layer].values.shape, generator=torch.Generator().manual_seed(3)
    )
    moved = copy.deepcopy(cache)
    moved.layers[layer].values = cache.layers[layer].values + 0.02 * direction
    coded = continue_from(language, moved, ids[prompt:])
    kl = torch.nn.functional.kl_div(coded, exact, reduction="sum", log_target=True)
    generator = torch.Generator().manual_seed(0)
    squares = []
    for _, values in kv_capture.gradients(language, ids, prompt, 400, generator):
        squares.append(float((values[layer] * direction).sum()) ** 2)
    assert float(kl) == pytest.approx(0.5 * 0.02**2 * np.mean(squares), rel=0.25)


def test_the_fit_chooses_by_held_out_windows(fitted, tmp_path):
    language, folder = fitted("full")
    told = json.loads((folder / "config.json").read_text())["made_by"]
    assert len(told["sensitivity"]) == 4 and set(told["sensitivity"][0]) == {"key", "value"}
    (tmp_path / "text.txt").write_text(TEXT)
    windows = kv_capture.read_windows(language, tmp_path / "text.txt", 40, 8)
    cfg = KvFitConfig(
        machine="", texts=tmp_path, output=tmp_path, windows=8, window=40, prompt=24, probed=8
    )
    with (tmp_path / "one").open("w+b") as one, (tmp_path / "two").open("w+b") as two:
        captured, tried = kv_fit.capture(language, windows, cfg, one, two), {}
        rope, span = kv_fit.choose(language, captured, cfg, tried)
    assert captured.known == 1 and {name[:6] for name in tried} == {"before", "after "}
    assert len(tried) == 5 and min(tried, key=tried.get) == f"{rope} RoPE, span {span}"
    # random weights know nothing of positions: turned keys alone are spread over them
    assert rope == "before" and tried["before RoPE, span 1"] < tried["after RoPE, span 1"]


@pytest.mark.parametrize(
    "span, sizes", [(0, [1] * 8), (1, [2] * 4), (2, [4, 4]), (3, [4, 4]), (4, [4, 4])]
)
def test_groups_are_of_one_window(fitted, span, sizes):
    groups = kv_fit.make_groups(fitted("mixed")[0], span)
    assert [len(parts) for parts in groups] == sizes


def test_importance_saves_bits_on_tokens_like_those_of_the_fit():
    """A component that tells importance, at noise that hides the single token's."""
    rng = np.random.default_rng(0)
    y = rng.standard_normal((30, 50, 20)).astype(np.float32)
    cost = 4.0 ** y[:, :, 1] * rng.chisquare(4, (30, 50)) / 4
    probed = Probed(y, cost, np.arange(50)[::-1], np.arange(50))
    found = fit_importance(probed, np.ones(20), 50)
    fresh = rng.standard_normal((400, 20)).astype(np.float32)
    log2 = found.log2(fresh, np.full(400, FAR), np.arange(400))
    assert np.corrcoef(log2, 2 * fresh[:, 1])[0, 1] > 0.95
    assert saved(4.0 ** fresh[:, 1], log2) > 0.8 * saved(4.0 ** fresh[:, 1], 2 * fresh[:, 1]) > 0.4
    flat = fit_importance(
        replace(probed, sensitivity=rng.chisquare(4, (30, 50)) / 4), np.ones(20), 50
    )
    assert np.abs(to_classes(flat.log2(fresh, np.full(400, FAR), np.arange(400)))).max() == 0
    classes = to_classes(log2)
    assert np.array_equal(found.read(found.write(classes), 400), classes)


def test_a_damaged_codec_folder_is_told(fitted, tmp_path):
    _, folder = fitted("full")
    arrays = load((folder / WEIGHTS).read_bytes())
    values = json.loads((folder / "config.json").read_text())

    def refuse(why, changed_values=None, **changed):
        broken = tmp_path / "broken"
        shutil.rmtree(broken, ignore_errors=True)
        shutil.copytree(folder, broken)
        (broken / "config.json").write_text(json.dumps(values | (changed_values or {})))
        new = {k: v for k, v in (arrays | changed).items() if v is not None}
        (broken / WEIGHTS).write_bytes(save(new))
        with pytest.raises(UserError, match=why):
            load_kv(broken)

    refuse("known is not sound", known=arrays["known"][:, 1:].copy())
    refuse("0.mean is not sound", **{"0.mean": np.full_like(arrays["0.mean"], np.nan)})
    refuse("0.unweight.0 has no inverse", **{"0.unweight.0": np.zeros_like(arrays["0.unweight.0"])})
    refuse("not a sound KV codec", **{"0.basis": None})
    refuse("format 9", {"format": 9})
    refuse("not the folder of a KV codec", {"codec": "klt"})
    refuse("expected keys and values of every layer once", {"groups": values["groups"][:-1]})
    refuse("0.classes", **{"0.classes": arrays["0.classes"] + 1})
    refuse("reach of 1 or more", {"importance": [values["importance"][0] | {"reach": 0}]})
    refuse("defaults", {"defaults": values["defaults"] | {"quality": 99}})
    with pytest.raises(FileNotFoundError, match="holds a config"):
        load_kv(tmp_path / "nothing")


def test_integers_in_groups_hold_their_bounds():
    x = torch.randn(2, 3, 70)
    for bits in (2, 8):
        away = (quantise(x, bits) - x).abs()
        for part, own in zip(away.split(64, -1), x.split(64, -1), strict=True):
            step = (own.amax(-1) - own.amin(-1)) / (2**bits - 1)
            assert (part.amax(-1) <= 0.52 * step + 2e-3).all()


def test_the_commands(fitted, checkpoint, tmp_path, capsys):
    """Fit and evaluate, by their flags; rates fall and divergence rises with the quality."""
    text, codec = tmp_path / "text.txt", tmp_path / "codec"
    text.write_text(TEXT)
    machine = str(checkpoint("grouped"))
    shared = ["--machine", machine, "--texts", str(text), "--window", "40", "--prompt", "24"]
    fast = ["--windows", "8", "--probed", "4", "--rows", "200", "--span", "2", "--rope", "before"]
    main(["fit", *shared, "--output", str(codec), *fast])
    assert "2 groups, keys before RoPE, 1 known first tokens" in capsys.readouterr().out
    few = ["--windows", "3", "--qualities", "[-1, 2, 5]"]
    main(["evaluate", *shared, "--codec", str(codec), *few, "--output", str(tmp_path / "kv.csv")])
    out = capsys.readouterr().out
    assert "quanto is not among them" in out and "hqq is not among them" in out
    with (tmp_path / "kv.csv").open(newline="") as file:
        records = list(csv.DictReader(file))
    rows = evaluate(
        KvEvalConfig(
            machine=machine,
            codec=codec,
            texts=text,
            window=40,
            prompt=24,
            windows=3,
            qualities=[-1, 2, 5],
        )
    )[0]
    assert len(records) == len(rows)
    for record, row in zip(records, rows, strict=True):
        assert record["codec"] == row.codec and record["kl"] == str(row.kl)
        assert record["processor"] and record["windows"] == "3"
        assert record["revision"] == (provenance.git_revision() or "")
        told = (record["fit_windows"], record["fit_probed"], record["seed"])
        assert told == (("8", "4", "0") if row.codec == "kv" else ("", "", ""))
    exact, coarse, middle, fine, *others = rows
    assert exact.kl == 0 and exact.agreement == 1 and exact.tokens == 3 * 15
    assert coarse.bits < middle.bits < fine.bits and coarse.kl > middle.kl > fine.kl > 0
    assert {row.codec for row in others} >= {"int8", "int4", "int3", "int2", "fp8 cast"}
    kls = {row.codec: row.kl for row in others}
    assert kls["int8"] < kls["int4"] < kls["int2"]


def test_a_rival_that_does_not_run_is_left_out(fitted, checkpoint, tmp_path, monkeypatch):
    """It is said, and the others are judged."""

    def fail(snapshot, fill):
        raise RuntimeError("Ninja is\nrequired")

    def two(config):
        yield Rival("works", 16, lambda snapshot, fill: make_cache(snapshot))
        yield Rival("fails", 4, fail)

    monkeypatch.setattr(kv_evaluate, "rivals", two)
    (tmp_path / "text.txt").write_text(TEXT)
    _, folder = fitted("grouped")
    cfg = KvEvalConfig(
        machine=str(checkpoint("grouped")), codec=folder, texts=tmp_path / "text.txt",
        window=40, prompt=24, windows=2, qualities=[1],
    )  # fmt: skip
    rows, said = evaluate(cfg)
    assert [row.codec for row in rows] == ["exact", "kv", "works"]
    assert "fails is left out: it does not run here (Ninja is required)" in said


@pytest.mark.parametrize(
    "flags, why",
    [
        (["fit", "--prompt", "383"], "prompt"),
        (["fit", "--windows", "2"], "windows"),
        (["fit", "--shrinkage", "0"], "shrinkage"),
        (["evaluate", "--windows", "0"], "windows"),
        (["sing"], "expected one of"),
    ],
)
def test_impossible_flags_are_told(flags, why, tmp_path, capsys):
    places = ["--machine", "smollm2", "--texts", "t", "--output", str(tmp_path), "--codec", "c"]
    flags = flags + (places[:6] if flags[0] == "fit" else places)
    with pytest.raises(SystemExit) as stop:
        main(flags)
    assert why in capsys.readouterr().err + str(stop.value)


def test_texts_and_machines_that_are_none(checkpoint, tmp_path):
    (tmp_path / "short.txt").write_text("too short")
    machine = str(checkpoint("full"))
    for changes, why in (
        ({"texts": tmp_path / "none.txt"}, "no such text"),
        ({"texts": tmp_path / "short.txt"}, "96 are asked for"),
        ({"machine": str(tmp_path)}, "it has no config.json"),
        ({"machine": "resnet50_tiny"}, "no language model"),
    ):
        values = {"machine": machine, "texts": tmp_path / "short.txt", "output": tmp_path / "out"}
        with pytest.raises((UserError, FileNotFoundError), match=why):
            kv_fit.fit(KvFitConfig(**values | changes))
    assert not (tmp_path / "out" / "config.json").exists()


def test_layers_of_no_size_are_none():
    with pytest.raises(UserError, match="window: expected at least 2"):
        LayerShape(1, 2, 2, 1)
