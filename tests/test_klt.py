"""The codec without a network: exact symbols, any rate, sound bytes, layouts chosen by measurement."""

import json
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import toy_feature
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from dtufc import evaluate
from dtufc.bitstream import Bitstream, BitstreamError, pack, unpack
from dtufc.codec import load_codec
from dtufc.encode import main as encode_main
from dtufc.errors import UserError
from dtufc.feature import FeatureError, read_feature, write_feature
from dtufc.klt import fit, fit_klt, race
from dtufc.klt.codec import KltCodec, check_of, put_raw
from dtufc.klt.entropy import fit_bank
from dtufc.klt.fit_klt import FitConfig
from dtufc.klt.model import HIGHEST, LOWEST, PER_OCTAVE, RUNGS, WEIGHTS, rung
from dtufc.paths import default_data_root

MINILM = default_data_root() / "minilm" / "hidden"


@pytest.fixture(scope="module")
def token_codec(toy, tmp_path_factory):
    """A codec of the toy token features, and their test folder."""
    return fit_tokens(toy, tmp_path_factory.mktemp("klt"))


def fit_tokens(toy: Path, folder: Path, *flags: str) -> tuple[Path, Path]:
    features = toy / "toy" / "hidden" / "feature_train" / "train"
    fit_klt.main(
        ["--features", str(features), "--machine", str(toy / "toy.yaml"), "--output", str(folder),
         "--clusters", "[2]", *flags]
    )  # fmt: skip
    return folder, toy / "toy" / "hidden" / "feature_test"


def picture_like(seed: int) -> np.ndarray:
    """(1, 4, 12, 12) float16: smooth maps whose channels are much alike."""
    rng = np.random.default_rng(seed)
    spectrum = 1 / (1 + np.hypot(*np.meshgrid(np.arange(12), np.arange(12))))
    common = np.cumsum(np.cumsum(rng.standard_normal((12, 12)) * spectrum, 0), 1)
    own = 0.2 * rng.standard_normal((4, 12, 12))
    return (common + own)[None].astype(np.float16)


@pytest.fixture(scope="module")
def map_codec(tmp_path_factory):
    """A codec of spatial maps, and the folder of its training features."""
    return fit_maps(tmp_path_factory.mktemp("maps"))


def fit_maps(root: Path, *flags: str) -> tuple[Path, Path]:
    facts = {"model": "toy", "task": "map", "shape": [1, 4, 12, 12], "dtype": "float16",
             "axes": ["sample", "channel", "row", "column"]}  # fmt: skip
    (root / "map.yaml").write_text(yaml.safe_dump({"feature": facts}))
    for i in range(20):
        write_feature(root / "train" / f"{i:02d}.npy", picture_like(i))
    fit_klt.main(
        ["--features", str(root / "train"), "--machine", str(root / "map.yaml"),
         "--output", str(root / "codec"), "--clusters", "[1]", *flags]
    )  # fmt: skip
    return root / "codec", root / "train"


def test_ladder_names_the_nearest_rung():
    width = PER_OCTAVE * (HIGHEST - LOWEST) // (RUNGS - 1)
    assert rung(LOWEST * PER_OCTAVE) == 0
    assert rung(HIGHEST * PER_OCTAVE) == RUNGS - 1
    assert rung(-(10**4)) == 0
    assert rung(10**4) == RUNGS - 1
    assert rung(LOWEST * PER_OCTAVE + width + width // 2 - 1) == 1
    assert rung(LOWEST * PER_OCTAVE + width + width // 2) == 2


def test_bank_promises_the_entropy():
    """Cross-entropy of the integer tables is within 1% of the sources' entropy."""
    rng = np.random.default_rng(0)
    q = np.round(rng.laplace(size=(64, 20000)) * np.geomspace(0.1, 30, 64)[:, None]).astype(int)
    reach = np.abs(q).max()
    counts = np.stack([np.bincount(row + reach, minlength=2 * reach + 1) for row in q])
    bank, chosen = fit_bank(counts, np.zeros((64, 5)), 64)
    for freq in bank.freqs:
        assert freq.sum() == 1 << 16
        assert freq.min() >= 1
    bits = bank.bits()
    wide = bits.shape[1] // 2
    spent = [bits[chosen[g], np.clip(row, -wide, wide) + wide].mean() for g, row in enumerate(q)]
    p = counts / counts.sum(1, keepdims=True)
    entropy = -(p * np.log2(np.where(p > 0, p, 1))).sum(1)
    assert sum(spent) < 1.01 * entropy.sum()


def test_any_rate_from_one_model(token_codec):
    """More quality: more bytes, less error; and the bytes are what the tables promise."""
    folder, features = token_codec
    codec = load_codec(folder)
    x = read_feature(next(features.iterdir()))
    sizes, errors = [], []
    for quality in (-2, -0.7, 0.3, 1, 2.1, 4, 6.5, 7):
        one = codec.at_quality(quality)
        data = one.encode(x)
        decoded = one.decode(data)
        assert decoded.shape == x.shape
        assert decoded.dtype == x.dtype
        assert np.array_equal(codec.decode(data), decoded)  # the bytes say which quality
        sizes.append(len(data))
        errors.append(float(np.mean((decoded - x) ** 2)))
        bits = one.model.quantise(one.facts.views.to_vectors(x, 1), one.grade)[2].sum()
        assert abs(8 * len(data) - bits) < 0.01 * bits + 8 * 60
    assert sizes == sorted(sizes)
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-5 * x.var()


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
                check = check_of(stream.parts[0], stream.parts[2:], stream.shape)
                symbols = other.read_symbols(stream.parts[1], grade, count, check)
                results.append((*symbols, other.decode(data)))
    finally:
        torch.set_num_threads(before)
    for clusters, symbols, decoded in results[1:]:
        assert np.array_equal(clusters, results[0][0])
        assert np.array_equal(symbols, results[0][1])
        assert np.allclose(decoded, results[0][2], rtol=1e-5, atol=1e-5 * np.abs(decoded).max())


@pytest.mark.parametrize("value", [3e38, -1e30, 1e9, 65504.0, 1e-40])
def test_outliers_cost_bits_and_never_break(token_codec, value):
    folder, features = token_codec
    codec = load_codec(folder)
    x = read_feature(next(features.iterdir())).copy()
    plain = codec.encode(x)
    clean = codec.decode(plain)
    x[0, 0, 3, 5] = value
    data = codec.encode(x)
    decoded = codec.decode(data)
    assert np.isfinite(decoded).all()
    assert decoded[0, 0, 3, 5] == pytest.approx(value, rel=0.05, abs=10)
    apart = np.abs(np.arange(x.shape[2]) - 3)
    assert np.allclose(decoded[0, 0, apart > 1], clean[0, 0, apart > 1], atol=1e-4)
    # the post-filter looks at the tokens beside one, though not at how far an outlier lies off
    assert np.abs(decoded - clean)[0, 0, apart == 1].max() < 2 * x[0, 0, apart > 0].std()
    assert len(data) < len(plain) + 6 * x.shape[3]


def test_maps_take_a_block_transform(map_codec):
    folder = map_codec[0]
    codec = load_codec(folder)
    assert codec.model.transform.layout.block > 1
    x = picture_like(1000)
    decoded = codec.at_quality(4).decode(codec.at_quality(4).encode(x))
    assert decoded.dtype == np.float16
    assert np.mean((decoded.astype(float) - x) ** 2) < 1e-2 * x.astype(float).var()
    tried = json.loads((folder / "config.json").read_text())["made_by"]["tried"]
    assert min(row["log2_rate"] for row in tried) == 0
    assert {"identity", "klt", "klt+dct12", "klt+dct4"} <= {
        row["layout"].split(",")[0] for row in tried
    }


def test_sparse_one_sided_maps_keep_their_zeros(tmp_path):
    """A rotation would fill them: the channels stay as they are."""
    facts = {"model": "toy", "task": "relu", "shape": [1, 16, 6, 6],
             "axes": ["sample", "channel", "row", "column"]}  # fmt: skip
    (tmp_path / "relu.yaml").write_text(yaml.safe_dump({"feature": facts}))
    rng = np.random.default_rng(0)
    for i in range(40):
        x = np.maximum(rng.standard_normal((1, 16, 6, 6)) - 1.2, 0).astype(np.float32)
        write_feature(tmp_path / "train" / f"{i:02d}.npy", x)
    fit_klt.main(["--features", str(tmp_path / "train"), "--machine", str(tmp_path / "relu.yaml"),
                  "--output", str(tmp_path / "codec"), "--clusters", "[1]"])  # fmt: skip
    layout = load_codec(tmp_path / "codec").model.transform.layout
    assert (layout.rotate, layout.centre, layout.block) == (False, False, 1)


@pytest.mark.parametrize(
    ("target", "value"), [("bpfp", 2.0), ("bpfp", 0.5), ("nmse", 0.02), ("nmse", 0.001)]
)
def test_targets_are_met_from_below(token_codec, tmp_path, target, value):
    folder, features = token_codec
    argv = ["--codec", str(folder), "--features", str(features), "--output", str(tmp_path)]
    evaluate.main([*argv, f"--target_{target}", str(value)])
    got = json.loads((tmp_path / "summary.json").read_text())[f"{target}_pooled"]
    assert 0.98 * value <= got <= value


def test_targets_out_of_reach(token_codec, tmp_path, capsys):
    folder, features = token_codec
    argv = ["--codec", str(folder), "--input", str(features), "--output", str(tmp_path)]
    with pytest.raises(SystemExit, match="target_bpfp: 1e-05 is out of reach"):
        encode_main([*argv, "--target_bpfp", "1e-5"])
    with pytest.raises(SystemExit):
        encode_main([*argv, "--target_bpfp", "1", "--quality", "2"])
    assert "give one of them at most" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="quality: expected"):
        encode_main([*argv, "--quality", "1000"])


def test_damaged_and_foreign_bytes_are_refused(token_codec, map_codec):
    check_damaged_bytes(token_codec, map_codec)


def check_damaged_bytes(token_codec: tuple[Path, Path], map_codec: tuple[Path, Path]) -> None:
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
        broken = {**vars(stream), "parts": (stream.parts[0], bytes(part), *stream.parts[2:])}
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
    assert stream["mode"] == 1
    assert len(stream["parts"]) == 3
    grade, symbols, raw = stream["parts"]
    n, c, h, w = stream["shape"]
    changes = [{"parts": (bytes([grade[0] ^ 1 << i, grade[1]]), symbols, raw)} for i in range(8)]
    changes += [{"parts": (grade, symbols, raw[:-1] + bytes([raw[-1] ^ 1]))}]
    changes += [{"parts": (grade, symbols)}, {"mode": 0}, {"mode": 2}]
    changes += [{"shape": (n, c, h + 1, w)}, {"shape": (n, c, h - 1, w)}]
    for change in changes:
        with pytest.raises(BitstreamError):
            codec.decode(pack(Bitstream(**{**stream, **change})))


def test_few_bytes_take_little_memory(token_codec, map_codec):
    """39 bytes that announce 2^21 rows, or 2^28 points, are refused before memory is taken."""
    for folder, shape in ((token_codec[0], (1, 1, 1 << 21, 128)), (map_codec[0], (1, 4, 12, 12))):
        codec = load_codec(folder)
        codec.model.rungs[40].bits, codec.model.rungs[40].tables  # not what is measured
        check_memory(codec, shape, (bytes(2), bytes(8 if shape[1] == 4 else 12)), mode=1)
    with pytest.raises(BitstreamError, match="the limit is 100"):
        codec.decode(codec.encode(picture_like(0)), max_points=100)


def check_memory(
    codec: KltCodec, shape: tuple[int, ...], parts: tuple[bytes, ...], mode: int
) -> None:
    """A forged file of this shape is refused within 100 MiB."""
    forged = Bitstream(
        codec.id[:4], bytes(4), codec.facts.dtype, shape, codec.facts.views.grid(shape[1]), parts, mode
    )  # fmt: skip
    tracemalloc.start()
    with pytest.raises(BitstreamError):
        codec.decode(pack(forged))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100 << 20


def test_qualities_are_those_of_the_tables(token_codec):
    codec = load_codec(token_codec[0])
    assert (codec.qualities[0], codec.qualities[-1]) == (LOWEST, HIGHEST)
    assert codec.at_quality(HIGHEST).quality == HIGHEST
    for quality in (LOWEST - 0.01, HIGHEST + 0.01, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"quality: expected -3 \.\. 7"):
            codec.at_quality(quality)


@pytest.mark.parametrize("name", ["mean", "basis", "freqs", "sizes", "banks", "offset", "centroid",
                                  "chosen", "clusters"])  # fmt: skip
def test_hostile_arrays_are_named(token_codec, tmp_path, name):
    """Missing, of another dtype or shape, not finite, beyond the tables: one line at loading."""
    check_hostile_arrays(token_codec[0], tmp_path, name)


def check_hostile_arrays(fitted: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "codec"
    shutil.copytree(fitted, folder)
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


HOSTILE = [None, "x", True, -1, 0, 1e300, 10**400, float("inf"), float("nan"), [], {}]


@pytest.mark.parametrize(
    "key",
    ["unit", "weight", "quality", "layout", "facts", "layout.clusters", "layout.block", "facts.axes",
     "facts.shape", "facts.dtype"],
)  # fmt: skip
def test_hostile_configs_are_named(token_codec, tmp_path, key):
    """Missing, of another type or impossible: one line at loading, which names folder and key."""
    folder = tmp_path / "codec"
    shutil.copytree(token_codec[0], folder)
    text = (folder / "config.json").read_text()
    possible = {"weight": [0, 1e300], "quality": [-1, 0]}.get(key, [])
    for value in ("missing", *HOSTILE):
        if any(type(value) is type(good) and value == good for good in possible):
            continue
        values = json.loads(text)
        *outer, last = key.split(".")
        entry = values[outer[0]] if outer else values
        if value == "missing":
            del entry[last]
        else:
            entry[last] = value
        if value == "missing" and key in ("facts.axes", "facts.dtype"):  # they have defaults
            continue
        (folder / "config.json").write_text(json.dumps(values))
        with pytest.raises(UserError, match=f"{last}|mean") as caught:  # means are one per cluster
            load_codec(folder)
        assert str(folder) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_fit_on_one_file_validates_on_what_it_was_not_fitted_on(tmp_path, monkeypatch):
    """The last fifth of the file's vectors is held out."""
    write_feature(tmp_path / "train" / "only.npy", toy_feature(0, 100))
    seen = []
    original = race.Race.validate

    def spy(self, candidate, round_):
        fold = self.folds[candidate.layout.block]
        seen.append((fold.told.rows, len(fold.told.sample), len(fold.unseen)))
        return original(self, candidate, round_)

    monkeypatch.setattr(race.Race, "validate", spy)
    fit_klt.main(["--features", str(tmp_path / "train"), "--output", str(tmp_path / "codec"),
                  "--clusters", "[1]"])  # fmt: skip
    assert set(seen) == {(80, 80, 20)}
    assert load_codec(tmp_path / "codec").model.transform.layout.clusters == 1


def test_fit_names_what_is_wrong(tmp_path, toy, capsys):
    features = toy / "toy" / "hidden" / "feature_train" / "train"
    with pytest.raises(SystemExit, match=r"f0\.npy: sd3_tti takes float16"):
        fit_klt.main(["--features", str(features), "--machine", "sd3", "--output", str(tmp_path)])
    with pytest.raises(SystemExit):
        fit_klt.main(["--features", "x", "--output", "y", "--clusters", "[0]"])
    assert "clusters: expected" in capsys.readouterr().err
    assert not (tmp_path / "config.json").exists()


@pytest.mark.slow
@pytest.mark.skipif(
    not MINILM.is_dir(), reason="the features of a sentence transformer are not imported"
)
def test_bars_on_real_features(tmp_path):
    """Rate and distortion on hidden states of a sentence transformer, every byte counted."""
    fit.fit(
        FitConfig(
            features=MINILM / "feature_train" / "train",
            output=tmp_path / "codec",
            machine="minilm",
            clusters=[8],
        )
    )
    for nmse, bar in ((0.018, 2.40), (0.065, 1.25), (0.11, 0.90), (0.175, 0.50)):
        cfg = evaluate.EvaluateConfig(
            codec=tmp_path / "codec", features=MINILM / "feature_test", output=tmp_path / f"{nmse}",
            target_nmse=nmse,
        )  # fmt: skip
        summary = evaluate.evaluate(cfg)
        assert summary["nmse_pooled"] <= nmse
        assert summary["bpfp_pooled"] <= bar


def walk(seed: int) -> np.ndarray:
    """(2, 1, 30, 8) float32: two sequences of tokens that change little from one to the next."""
    rng = np.random.default_rng(seed)
    x = np.cumsum(rng.standard_normal((2, 1, 30, 8)), axis=2) * np.geomspace(1, 4, 8)
    return x.astype(np.float32)


@pytest.mark.parametrize("clusters", [1, 2])
def test_post_filter_lowers_the_error_at_the_same_bytes(tmp_path, clusters):
    for i in range(30):
        write_feature(tmp_path / "train" / f"{i:02d}.npy", walk(i))
    codecs = []
    for wanted in ("true", "false"):
        output = tmp_path / wanted
        fit_klt.main(
            ["--features", str(tmp_path / "train"), "--output", str(output),
             "--clusters", f"[{clusters}]", "--post_filter", wanted]
        )  # fmt: skip
        codecs.append(load_codec(output).at_quality(-1))
    filtered, plain = codecs
    assert filtered.model.post is not None and plain.model.post is None
    rotations = filtered.model.transform.layout.clusters
    assert (filtered.model.post.basis is None) == (rotations == 1)
    x = walk(99)
    parts = [unpack(codec.encode(x)).parts for codec in codecs]
    assert parts[0] == parts[1]
    errors = [np.mean((codec.decode(codec.encode(x)) - x) ** 2) for codec in codecs]
    assert errors[0] < 0.9 * errors[1]
    alone = filtered.decode(filtered.encode(x[:1]))  # sequences know nothing of each other
    np.testing.assert_allclose(filtered.decode(filtered.encode(x))[:1], alone, atol=1e-4)


def test_post_filter_where_tokens_tell_nothing_of_each_other(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(10):
        noise = rng.standard_normal((1, 1, 40, 8)).astype(np.float32)
        write_feature(tmp_path / "train" / f"{i}.npy", noise)
    fit_klt.main(
        ["--features", str(tmp_path / "train"), "--output", str(tmp_path / "codec"),
         "--clusters", "[1]"]
    )  # fmt: skip
    model = load_codec(tmp_path / "codec").model
    if model.post is not None:
        assert np.abs(model.post.taps[:, :, 1]).max() < 0.1


@pytest.mark.parametrize("clusters", [1, 2])
def test_hostile_post_filters_are_named(tmp_path, clusters):
    """An array that is missing, of another shape or dtype, not finite, or a negative bound."""
    for i in range(30):
        write_feature(tmp_path / "train" / f"{i:02d}.npy", walk(i))
    output = tmp_path / "codec"
    fit_klt.main(
        ["--features", str(tmp_path / "train"), "--output", str(output),
         "--clusters", f"[{clusters}]"]
    )  # fmt: skip
    several = load_codec(output).model.transform.layout.clusters > 1
    stored = load_arrays((output / WEIGHTS).read_bytes())
    names = {"post_taps", "post_limit", "post_mean"} | ({"post_basis"} if several else set())
    assert names == {name for name in stored if name.startswith("post_")}
    for name in names:
        array = stored[name]
        wrong = [None, array[1:], array[None], array.astype(np.float64)]
        wrong += [np.full_like(array, value) for value in (np.nan, np.inf)]
        wrong += [-array - 1, np.full_like(array, 3e38)] * (name == "post_limit")
        wrong += [np.full_like(array, -2e30)] * (name == "post_mean")
        wrong += [np.full_like(array, 2.1)] * (name == "post_basis")
        for value in wrong:
            changed = {key: entry for key, entry in stored.items() if key != name}
            if value is not None:
                changed[name] = value
            (output / WEIGHTS).write_bytes(save_arrays(changed))
            with pytest.raises(UserError, match=f"not a sound klt codec .*{name}") as caught:
                load_codec(output)
            assert str(output) in str(caught.value)
