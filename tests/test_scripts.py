"""Every script's main(argv), in-process, on toy data; and the README's commands."""

import csv
import sys

import numpy as np
import pytest
import torch

from dtufc import decode, encode, evaluate, files
from dtufc.handcrafted import fit_handcrafted
from dtufc.paths import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "scripts"))  # scripts are no package

import bench_codec
import bench_corpus
import bench_exact
import bench_rans
import bench_streams
import bench_train
import cross_table
import import_features
import plot_rate_accuracy
from benches.exact import SETTINGS


@pytest.fixture
def features(toy):
    return toy / "toy" / "hidden" / "feature_test"


def test_encode_and_decode_are_the_halves_of_evaluate(trained, features, tmp_path, capsys):
    argv = ["--codec", str(trained), "--features", str(features), "--output", str(tmp_path / "e")]
    evaluate.main(argv)
    assert "bpfp_pooled" in capsys.readouterr().out
    encode.main(
        ["--codec", str(trained), "--input", str(features), "--output", str(tmp_path / "b")]
    )
    decode.main(
        ["--codec", str(trained), "--input", str(tmp_path / "b"), "--output", str(tmp_path / "d")]
    )
    with (tmp_path / "e" / "rate.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert (
        ",".join(rows[0])
        == "name,points,bytes,bpfp,mse,encode_s,decode_s,quality,tokens,token_error"
    )
    assert [row["name"] for row in rows] == ["t0", "t1", "t2"]
    total = squared = 0.0
    for row in rows:
        stream = (tmp_path / "b" / f"{row['name']}.ufc").read_bytes()
        assert stream == (tmp_path / "e" / "bitstreams" / f"{row['name']}.ufc").read_bytes()
        assert len(stream) == int(row["bytes"])
        decoded = np.load(tmp_path / "d" / f"{row['name']}.npy")
        assert np.array_equal(decoded, np.load(tmp_path / "e" / "decoded" / f"{row['name']}.npy"))
        source = np.load(features / f"{row['name']}.npy")
        assert (decoded.shape, decoded.dtype) == (source.shape, source.dtype)
        assert float(row["bpfp"]) == pytest.approx(8 * len(stream) / source.size)
        assert float(row["mse"]) == pytest.approx(np.mean((decoded - source) ** 2.0), rel=1e-4)
        total, squared = total + source.size, squared + float(row["mse"]) * source.size
    summary = files.read_json(tmp_path / "e" / "summary.json")
    assert summary["bpfp_pooled"] == pytest.approx(8 * summary["bytes"] / total)
    assert summary["bpfp_mean"] == pytest.approx(np.mean([float(row["bpfp"]) for row in rows]))
    everything = np.concatenate([np.load(path).ravel() for path in sorted(features.glob("*.npy"))])
    assert summary["nmse_pooled"] == pytest.approx(squared / total / everything.var(), rel=1e-3)
    run = files.read_json(tmp_path / "e" / "run.json")
    assert run["finished"]
    assert run["config"]["codec"] == str(trained)


def test_killed_evaluation_goes_on(trained, features, tmp_path, monkeypatch):
    argv = ["--codec", str(trained), "--features", str(features), "--output", str(tmp_path)]
    original = evaluate._code
    coded = []

    def code(codec, path, feature, cfg):
        if len(coded) == 2:
            raise KeyboardInterrupt
        coded.append(path.stem)
        return original(codec, path, feature, cfg)

    monkeypatch.setattr(evaluate, "_code", code)
    with pytest.raises(KeyboardInterrupt):
        evaluate.main(argv)
    kept = (tmp_path / "rate.csv").read_text()
    assert coded == ["t0", "t1"]
    coded.clear()
    evaluate.main(argv)
    assert coded == ["t2"]
    rows = zip(
        kept.splitlines()[1:], (tmp_path / "rate.csv").read_text().splitlines()[1:], strict=False
    )
    assert all(row.startswith(old.rstrip(",")) for old, row in rows)  # errors per token come last
    coded.clear()
    monkeypatch.setattr(evaluate, "_code", original)
    monkeypatch.setattr(evaluate, "_code", lambda *_: exec("raise KeyboardInterrupt"))
    with pytest.raises(KeyboardInterrupt):
        evaluate.main([*argv, "--published"])  # another config, killed at once ...
    monkeypatch.setattr(evaluate, "_code", original)
    assert not (tmp_path / "rate.csv").exists()
    evaluate.main([*argv, "--published"])  # ... takes nothing over
    assert (tmp_path / "rate.csv").read_text().splitlines()[1] != kept.splitlines()[1]
    assert files.read_json(tmp_path / "run.json")["config"]["published"]


def test_published_mode_counts_no_headers(trained, features, tmp_path):
    argv = ["--codec", str(trained), "--features", str(features), "--output", str(tmp_path)]
    evaluate.main([*argv, "--published"])
    sizes = [path.stat().st_size for path in sorted((tmp_path / "bitstreams").glob("*.ufc"))]
    with (tmp_path / "rate.csv").open() as file:
        counted = [int(row["bytes"]) for row in csv.DictReader(file)]
    assert all(20 < size - count < 80 for size, count in zip(sizes, counted, strict=True))


def test_bad_input_is_named(trained, features, tmp_path):
    bad = tmp_path / "bad"
    bad.mkdir()
    np.save(bad / "x.npy", np.zeros((1, 1, 4, 5), np.float32))
    (bad / "y.ufc").write_bytes(b"UFC\x01" + bytes(40))
    (tmp_path / "empty").mkdir()
    out = ["--output", str(tmp_path / "out")]
    codec = ["--codec", str(trained)]
    for main, argv, text in (
        (encode.main, [*codec, "--input", str(bad)], r"x\.npy: .*takes shape"),
        (decode.main, [*codec, "--input", str(bad)], r"y\.ufc: corrupted"),
        (evaluate.main, [*codec, "--features", str(bad)], r"x\.npy: .*takes shape"),
        (evaluate.main, [*codec, "--features", str(tmp_path / "empty")], "holds no"),
        (encode.main, [*codec, "--input", str(tmp_path / "none")], "no such file"),
        (decode.main, [*codec, "--input", str(features)], r"holds no \*\.ufc"),
        (encode.main, ["--codec", str(bad), "--input", str(features)], r"config\.json"),
    ):
        with pytest.raises(SystemExit, match=text):
            main([*argv, *out])
    assert not list((tmp_path / "out").rglob("*.npy"))


def test_import_features(toy, tmp_path):
    source = toy / "toy" / "hidden"
    argv = ["--machine", str(toy / "toy.yaml"), "--train", str(source / "feature_train" / "train")]
    argv += ["--test", str(source / "feature_test"), "--data_root", str(tmp_path)]
    import_features.main([*argv, "--validation", "2"])
    root = tmp_path / "toy" / "hidden"
    assert len(list((root / "feature_train" / "train").iterdir())) == 6
    assert sorted(p.name for p in (root / "feature_train" / "test").iterdir()) == [
        "f6.npy",
        "f7.npy",
    ]
    assert len(list((root / "feature_test").iterdir())) == 3
    import_features.main(
        [*argv, "--validation", "1"]
    )  # a second import leaves nothing of the first
    split = [{p.name for p in (root / "feature_train" / s).iterdir()} for s in ("train", "test")]
    assert split == [{f"f{i}.npy" for i in range(7)}, {"f7.npy"}]
    with pytest.raises(SystemExit, match="validation: 8 of 8"):
        import_features.main([*argv, "--validation", "8"])
    with pytest.raises(SystemExit, match="llama3_csr takes shape"):
        import_features.main([*argv[2:], "--machine", "llama3"])


def test_plot(tmp_path):
    table = tmp_path / "t.csv"
    table.write_text(
        "codec,trained_on,transform,lambda_value,evaluated_on,bpfp,mse,nmse,metric,value\n"
        "hyperprior,cls,kmeans,0.01,a_b,0.5,0.1,0.2,top1,0.9\n"
        "hyperprior,cls,kmeans,0.02,a_b,0.8,0.05,0.1,top1,0.95\n"
        "elic,cls,kmeans,0.02,c_d,0.8,0.05,0.1,,\n"
        "uncompressed,,,,a_b,32,0,0,top1,0.97\n"
    )
    plot_rate_accuracy.main(["--table", str(table)])
    for kind in ("a_b", "c_d"):
        for suffix in (".png", ".pdf"):
            assert (tmp_path / f"t_{kind}{suffix}").stat().st_size > 1000


def test_cross_table(tmp_path, capsys):
    """The lambda that most training sets share, each machine against each training set."""
    table = tmp_path / "t.csv"
    head = "codec,trained_on,transform,lambda_value,evaluated_on,bpfp,mse,nmse,metric,value\n"
    table.write_text(
        head + "hyperprior,hybrid,k,0.01,a_b,0.1,1,0.9,top1,0.5\n"
        "hyperprior,hybrid,k,0.02,a_b,0.5,1,0.2,top1,0.9\n"
        "hyperprior,hybrid,k,0.02,c_d,0.25,1,0.3,,\n"
        "hyperprior,cls,k,0.02,a_b,0.4,1,0.21,top1,0.91\n"
        "elic,cls,k,0.02,a_b,0.3,1,0.1,top1,0.99\n"
        "klt,cls,none,,a_b,0.3,1,0.1,top1,0.99\n"
        "uncompressed,,,,a_b,32,0,0,top1,0.97\n"
    )
    cross_table.main(["--table", str(table)])
    assert (tmp_path / "t_cross.csv").read_text().splitlines() == [
        "evaluated_on,figure,trained on hybrid,trained on cls",
        "a_b,bpfp,0.5,0.4",
        "a_b,nmse,0.2,0.21",
        "a_b,top1,0.9,0.91",
        "c_d,bpfp,0.25,",
        "c_d,nmse,0.3,",
    ]
    assert "trained on hybrid" in capsys.readouterr().out
    cross_table.main(["--table", str(table), "--lambda_value", "0.01"])
    assert "a_b,top1,0.5" in (tmp_path / "t_cross.csv").read_text()
    with pytest.raises(SystemExit, match=r"codec elic has no such lambda_value, it has \[0\.02\]"):
        cross_table.main(["--table", str(table), "--codec", "elic", "--lambda_value", "1"])
    with pytest.raises(SystemExit, match="codec klt has no such lambda_value"):
        cross_table.main(["--table", str(table), "--codec", "klt"])


@pytest.mark.slow
@pytest.mark.parametrize("codec", ["hyperprior", "elic"])
def test_bench_codec(codec, capsys):
    bench_codec.main(["--small", "--repeats", "1", "--codecs", f"[{codec}]"])
    out = capsys.readouterr().out
    assert "both_ratio" in out
    assert codec in out


def test_bench_train(capsys):
    bench_train.main(["--small", "--steps", "1", "--batch_size", "2"])
    out = capsys.readouterr().out
    assert "ratio" in out
    assert "elic" in out


def test_bench_exact(untrained, capsys):
    bench_exact.main(["--codec", str(untrained), "--features", "2"])
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[2:]]
    settings = len(SETTINGS) * (3 if torch.cuda.is_available() else 2)
    assert [row[1] for row in rows] == ["float", "exact"]
    assert all(row[2:4] == [str(settings), str(2 * settings)] for row in rows)
    assert rows[1][4] == "0"


def test_bench_rans(capsys):
    bench_rans.main(["--symbols", "20000", "--repeats", "1"])
    out = capsys.readouterr().out
    assert "dtufc.rans" in out
    assert "CompressAI, lists" in out


def test_bench_streams(toy, tmp_path, capsys):
    argv = ["--machine", str(toy / "toy.yaml"), "--data_root", str(toy)]
    argv += ["--tokens", "[1, 4]", "--appends", "5", "--output", str(tmp_path / "streams.csv")]
    bench_streams.main(argv)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[-8:]]
    assert [row[0] for row in rows[::2]] == ["int", "cast", "jpegxl", "hevc"]
    assert all(3 <= float(row[4]) <= 4 and float(row[3]) < float(row[5]) for row in rows)
    written = read(tmp_path / "streams.csv")
    assert [row["codec"] for row in written] == [row[0] for row in rows]
    assert all(row["processor"] and row["revision"] for row in written)
    bench_streams.main([*argv, "--quality", '{"int": 4}'])
    coarse, fine = read(tmp_path / "streams.csv")[1], written[1]
    assert (float(coarse["quality"]), coarse["codec"]) == (4, "int")
    assert float(coarse["bytes_per_token"]) < float(fine["bytes_per_token"])
    assert float(coarse["token_error"]) > float(fine["token_error"]) > 0
    assert read(tmp_path / "streams.csv")[2]["quality"] == written[2]["quality"]


def test_bench_corpus(toy, tmp_path, capsys):
    """Less is stored than as float16, at the error that the codec has; all forms are read."""
    features = toy / "toy" / "hidden" / "feature_test"
    argv = ["--machine", str(toy / "toy.yaml"), "--features", str(features)]
    fit_handcrafted.main(["--codec", "int", *argv, "--output", str(tmp_path / "int")])
    argv = ["--codec", str(tmp_path / "int"), "--features", str(features), "--rows", "16"]
    argv += ["--workers", "[0]", "--quality", "[4, 8]", "--output", str(tmp_path / "corpus.csv")]
    bench_corpus.main(argv)
    half, _, _, *corpora = read(tmp_path / "corpus.csv")
    assert [row["quality"] for row in corpora] == ["4.0", "8.0"]
    bits = [float(row["bits"]) for row in (*corpora, half)]
    assert bits == sorted(bits) and bits[-1] == 16
    assert float(corpora[0]["token_error"]) > float(corpora[1]["token_error"]) > 0
    assert all(float(row["read"].removeprefix("0: ")) > 0 for row in (half, *corpora))


def read(path):
    """The rows of a CSV."""
    with path.open() as file:
        return list(csv.DictReader(file))
