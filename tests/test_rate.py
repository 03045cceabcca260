"""Rate control: a hard cap, targets of one feature, targets of many pooled; in Python and as flags."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import small_codecs
import torch

from dtufc import evaluate, provenance, rate, records
from dtufc.codec import Codec
from dtufc.encode import main as encode_main
from dtufc.errors import UserError
from dtufc.feature import write_feature

ANY_RATE = ["cast", "hevc", "int", "jpegxl", "klt"]
X = small_codecs.made_up("tokens", 100)


def nmse(codec: Codec, data: bytes, x: np.ndarray) -> float:
    return float(np.mean((codec.decode(data).astype(np.float64) - x) ** 2) / x.astype(float).var())


def neighbour(codec: Codec, quality: float, places: int) -> Codec | None:
    """The codec so many places further on its scale; ``None`` beyond its ends."""
    place = [*codec.qualities].index(quality) + places
    return codec.at_quality(codec.qualities[place]) if 0 <= place < len(codec.qualities) else None


@pytest.mark.parametrize("name", ANY_RATE)
def test_max_bytes_is_a_hard_cap_and_the_best_below_it(golden_codec, name):
    codec = golden_codec(name)
    low, high = (len(codec.at_quality(codec.qualities[end]).encode(X)) for end in (0, -1))
    assert low < high
    for cap in {low, low + 1, (2 * low + high) // 3, (low + high) // 2, high - 1, high, 10 * high}:
        data, quality = rate.encode(codec, X, None, rate.Target(max_bytes=cap))
        assert len(data) <= cap
        assert data == codec.at_quality(quality).encode(X) == codec.encode(X, max_bytes=cap)
        finer = neighbour(codec, quality, 1)
        assert finer is None or len(finer.encode(X)) > cap
        assert data == codec.encode(X, target_bpfp=8 * cap / X.size)
    with pytest.raises(
        UserError, match=rf"max_bytes: {low - 1} is out of reach .*nearest was {low}$"
    ):
        codec.encode(X, max_bytes=low - 1)


@pytest.mark.parametrize("name", ANY_RATE)
def test_target_nmse_takes_the_lowest_quality_that_holds(golden_codec, name):
    codec = golden_codec(name)
    coarse, fine = (codec.at_quality(codec.qualities[end]) for end in (0, -1))
    worst, best = (nmse(codec, each.encode(X), X) for each in (coarse, fine))
    for target in (worst * 1.001, (worst * max(best, 1e-7)) ** 0.5, best * 1.001 + 1e-12):
        data, quality = rate.encode(codec, X, None, rate.Target(target_nmse=target))
        assert nmse(codec, data, X) <= target
        assert data == codec.encode(X, target_nmse=target)
        coarser = neighbour(codec, quality, -1)
        assert coarser is None or nmse(codec, coarser.encode(X), X) > target
    if name != "cast":  # which has a lossless quality
        with pytest.raises(
            UserError, match=r"target_nmse: 1e-12 is out of reach at qualities of .*"
        ):
            codec.encode(X, target_nmse=1e-12)


def test_one_rate_is_tried_as_it_is(golden_codec):
    codec = golden_codec("hyperprior")
    data = codec.encode(X)
    error = nmse(codec, data, X)
    assert codec.encode(X, max_bytes=len(data)) == data
    assert codec.encode(X, target_nmse=error * 1.001) == data
    assert rate.reach(codec, [X], target_bpfp=8 * len(data) / X.size) is codec
    message = (
        f"max_bytes: {len(data) - 1} is out of reach at its one rate; the nearest was {len(data)}"
    )
    with pytest.raises(UserError, match=message):
        codec.encode(X, max_bytes=len(data) - 1)
    with pytest.raises(UserError, match="one rate"):
        codec.encode(X, target_nmse=error * 0.9)
    with pytest.raises(UserError, match="one rate"):
        rate.reach(codec, [X], target_nmse=error * 0.9)


def test_constant_features_have_no_variance(golden_codec):
    """Only what is exact meets a target then."""
    x = np.full_like(X, 0.3)  # which 24 bits tell, and 11 do not
    assert golden_codec("cast").encode(x, target_nmse=0.5) == golden_codec("cast").at_quality(
        24
    ).encode(x)
    with pytest.raises(UserError, match="out of reach"):
        golden_codec("int").encode(x, target_nmse=0.5)


def test_targets_that_are_none_are_refused(golden_codec):
    codec = golden_codec("int")
    for targets in (
        {"max_bytes": 100, "target_bpfp": 1.0}, {"target_nmse": 0.1, "target_bpfp": 1.0},
    ):  # fmt: skip
        with pytest.raises(UserError, match="give one of them at most"):
            codec.encode(X, **targets)
    for targets in ({"max_bytes": 0}, {"target_bpfp": -1.0}, {"target_nmse": float("nan")}):
        with pytest.raises(UserError, match="above 0"):
            codec.encode(X, **targets)
        with pytest.raises(UserError, match="above 0"):
            codec.encode_many([X], **targets)
    with pytest.raises(UserError, match="give one of them"):
        rate.reach(codec, [X])
    with pytest.raises(UserError, match="there are none"):
        rate.reach(codec, [], target_bpfp=1.0)


class Wobbly(Codec):
    """A codec whose sizes do not grow evenly."""

    sizes = (50, 20, 60, 30, 90, 40, 80)
    id, identity = bytes(32), ""
    qualities = range(len(sizes))

    def __init__(self, quality: int = 0):
        self.quality = quality

    @classmethod
    def load(cls, folder, *, device, published, kinds):
        return cls()

    def at_quality(self, quality):
        return Wobbly(quality)

    def encode_array(self, feature, kind=None):
        return bytes(self.sizes[self.quality])

    def decode_array(self, data, *, max_points=0):
        return X


def test_the_cap_holds_where_rates_are_not_monotone():
    met = 0
    for cap in range(10, 100):
        try:
            data = Wobbly().encode(X, max_bytes=cap)
        except UserError as error:
            assert cap < max(Wobbly.sizes), error
        else:
            met += 1
            assert len(data) <= cap
    assert met > 50


@pytest.fixture(scope="module")
def features(tmp_path_factory) -> Path:
    """Features of unlike spread, so that at one quality some take far more than others."""
    folder = tmp_path_factory.mktemp("features")
    for number, gain in enumerate((0.2, 0.5, 1, 2, 4)):
        seeds = range(10 * number, 10 * number + 10)
        x = np.concatenate([small_codecs.made_up("tokens", seed) for seed in seeds], axis=2)
        write_feature(folder / f"{number}.npy", (gain * x).astype(np.float32))
    return folder


def test_pooled_targets_take_arrays_tensors_paths_and_batches(golden_codec, features):
    codec = golden_codec("klt")
    paths = sorted(features.iterdir())
    arrays = [np.load(path) for path in paths]
    batch = np.concatenate(arrays)
    for target in ({"target_bpfp": 2.0}, {"target_nmse": 0.02}):
        found = rate.reach(codec, paths, **target)
        tensors = [torch.from_numpy(x) for x in arrays]
        for same in (arrays, iter(arrays), tensors, batch, torch.from_numpy(batch)):
            assert rate.reach(codec, same, **target).quality == found.quality

    def pooled(codec: Codec) -> tuple[float, float]:
        streams = [codec.encode(x) for x in arrays]
        decoded = codec.decode_many(streams, batch=True)
        error = np.mean((decoded.astype(np.float64) - batch) ** 2)
        return 8 * sum(map(len, streams)) / batch.size, error / batch.astype(np.float64).var()

    found = rate.reach(codec, paths, target_bpfp=2.0)
    finer = neighbour(codec, found.quality, 1)
    assert pooled(found)[0] <= 2.0 < pooled(finer)[0]
    found = rate.reach(codec, paths, target_nmse=0.02)
    coarser = neighbour(codec, found.quality, -1)
    assert pooled(found)[1] <= 0.02 < pooled(coarser)[1]


def run(folder: Path, features: Path, output: Path, *flags: str) -> tuple[list[dict], dict]:
    """Rows and summary of evaluate.py."""
    argv = ["--codec", str(folder), "--features", str(features), "--output", str(output)]
    evaluate.main([*argv, *flags])
    with (output / "rate.csv").open() as file:
        return list(csv.DictReader(file)), json.loads((output / "summary.json").read_text())


def test_flags_pooled_and_per_file(golden_folder, golden_codec, features, tmp_path):
    folder = golden_folder("klt")
    rows, summary = run(folder, features, tmp_path / "pooled", "--target_bpfp", "2")
    assert summary["bpfp_pooled"] <= 2 < max(float(row["bpfp"]) for row in rows)
    assert len({row["quality"] for row in rows}) == 1
    rows, summary = run(folder, features, tmp_path / "each", "--target_bpfp", "2", "--per_file")
    assert min(float(row["bpfp"]) for row in rows) > 1.8
    assert max(float(row["bpfp"]) for row in rows) <= 2
    assert len({row["quality"] for row in rows}) > 1
    for row in rows:
        codec = golden_codec("klt").at_quality(float(row["quality"]))
        data = (tmp_path / "each" / "bitstreams" / f"{row['name']}.ufc").read_bytes()
        assert data == codec.encode(np.load(features / f"{row['name']}.npy"))
    read = records.read_rate(tmp_path / "each" / "rate.csv")
    assert [row.quality for row in read] == [float(row["quality"]) for row in rows]
    rows, _ = run(
        folder, features, tmp_path / "error", "--target_nmse", "0.02", "--per_file", "true"
    )
    for row in rows:
        x = np.load(features / f"{row['name']}.npy").astype(np.float64)
        assert 0.015 < float(row["mse"]) / x.var() <= 0.02
    rows, _ = run(folder, features, tmp_path / "bytes", "--max_bytes", "300")
    assert max(int(row["bytes"]) for row in rows) <= 300
    argv = ["--codec", str(folder), "--input", str(features), "--output", str(tmp_path / "ufc")]
    encode_main([*argv, "--max_bytes", "300"])
    for path in (tmp_path / "ufc").iterdir():
        if path.suffix == ".ufc":
            assert path.read_bytes() == (tmp_path / "bytes" / "bitstreams" / path.name).read_bytes()


def test_flags_out_of_reach_or_at_odds(golden_folder, features, tmp_path, capsys):
    argv = [
        "--codec",
        str(golden_folder("int")),
        "--features",
        str(features),
        "--output",
        str(tmp_path),
    ]
    with pytest.raises(SystemExit, match=r"0\.npy: max_bytes: 20 is out of reach"):
        evaluate.main([*argv, "--max_bytes", "20"])
    for flags, why in (
        (["--max_bytes", "99", "--quality", "3"], "give one of them at most"),
        (["--max_bytes", "99", "--target_bpfp", "3"], "give one of them at most"),
        (["--max_bytes", "0"], "above 0"),
        (["--per_file", "true"], "per_file: give"),
        (["--per_file", "true", "--max_bytes", "99"], "per_file: give"),
    ):
        with pytest.raises(SystemExit):
            evaluate.main([*argv, *flags])
        assert why in capsys.readouterr().err


def test_stamps_tell_targets_apart_and_keep_earlier_results(golden_folder, features, tmp_path):
    common = {"codec": golden_folder("int"), "features": features, "output": tmp_path}
    configs = [
        evaluate.EvaluateConfig(**common, **flags)
        for flags in (
            {}, {"target_bpfp": 3.0}, {"target_bpfp": 3.0, "per_file": True}, {"max_bytes": 200},
            {"max_bytes": 201},
        )
    ]  # fmt: skip
    assert len({cfg.stamp().digest for cfg in configs}) == len(configs)
    for cfg in configs[:2]:  # as earlier versions wrote them
        assert not cfg.stamp().config.keys() & {"per_file", "max_bytes"}
    evaluate.evaluate(configs[2])
    assert provenance.why_not_made(tmp_path, configs[2].stamp()) is None
    assert "per_file is gone" in (provenance.why_not_made(tmp_path, configs[1].stamp()) or "")
    table = tmp_path / "rate.csv"
    lines = [line.rsplit(",", 3)[0] for line in table.read_text().splitlines()]
    table.write_text("\n".join(lines) + "\n")  # without the columns that earlier versions lacked
    assert all(row.quality is None for row in records.read_rate(table))
