"""Corpora: folders, tars, pipes and machines into shards, and shards as a dataset for torch."""

import io
import pickle
import sys
import tarfile

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from dtufc import files
from dtufc.codec import load_codec
from dtufc.corpora import Corpus, pack, sources
from dtufc.corpora.shards import CORPUS_JSON, list_shards
from dtufc.errors import UserError
from dtufc.feature import FeatureError, write_feature
from dtufc.paths import REPOSITORY
from dtufc.streams.reader import open_stream

sys.path.insert(0, str(REPOSITORY / "scripts"))  # scripts are no package

import small_codecs

SAMPLES = 7


def rows_of(seed: int) -> int:
    """Tokens of a sample: 8, 9 and 10."""
    return 8 + seed % 3


def feature(seed: int, kind: str = "tokens") -> np.ndarray:
    x = small_codecs.made_up(kind, seed)
    return x[:, :, : rows_of(seed)] if kind == "tokens" else x


def write_tar(path, members):
    """Arrays, or bytes, by member name."""
    with tarfile.open(path, "w") as tar:
        for name, value in members.items():
            if isinstance(value, np.ndarray):
                out = io.BytesIO()
                np.save(out, value, allow_pickle=False)
                value = out.getvalue()
            info = tarfile.TarInfo(name)
            info.size = len(value)
            tar.addfile(info, io.BytesIO(value))
    return path


def argv(codec, output, *more, **values):
    flags = {"codec": codec, "output": output, "quality": 24, "shard_samples": 3, **values}
    return [*(str(part) for key, value in flags.items() for part in (f"--{key}", value)), *more]


def check(corpus: Corpus, name: str = "small_tokens"):
    """All samples are there, as they were."""
    assert len(corpus) == SAMPLES
    for seed, item in enumerate(corpus):
        assert item["key"].endswith(f"f{seed}") and item["first"] == 0
        assert np.array_equal(item[name].numpy(), feature(seed)[0, 0])


@pytest.mark.parametrize("workers", [1, 2])
def test_a_folder_becomes_shards(corpus_folder, corpus_codec, tmp_path, capsys, workers):
    out = tmp_path / "corpus"
    pack.main(argv(corpus_codec, out, input=corpus_folder, workers=workers, model="lm"))
    assert "7 samples, 3 shards, " in capsys.readouterr().out
    corpus = Corpus(out, [corpus_codec])
    check(corpus)
    assert [item["key"] for item in corpus][3:5] == ["part0/f3", "part1/f4"]
    record = files.read_json(out / CORPUS_JSON)
    size = sum(path.stat().st_size for path in list_shards(out))
    rows = sum(rows_of(seed) for seed in range(SAMPLES))
    told = record["tensors"]["small_tokens"]
    assert record["bytes"] == size and [s["samples"] for s in record["shards"]] == [3, 3, 1]
    assert told["rows"] == rows and told["points"] == rows * 6
    assert record["bits_per_point"] == pytest.approx(8 * size / told["points"])
    before = [path.stat().st_mtime_ns for path in list_shards(out)]
    pack.main(argv(corpus_codec, out, input=corpus_folder, model="lm"))
    assert before == [path.stat().st_mtime_ns for path in list_shards(out)]


def test_tars_and_a_pipe_give_the_same(corpus_folder, golden_folder, tmp_path, monkeypatch):
    codecs = [golden_folder("cast"), golden_folder("int")]
    named = {f"s/f{seed}.{name}.npy": feature(seed) for seed in range(SAMPLES) for name in "ab"}
    cut = [*named][:8]
    first = write_tar(tmp_path / "0.tar", {name: named[name] for name in cut})
    second = write_tar(
        tmp_path / "1.tar", {"x.json": b"{}", **{n: named[n] for n in named if n not in cut}}
    )
    flags = ["--codec", *map(str, codecs), "--name", "a", "b", "--shard_samples", "3"]
    tars = [*flags, "--input", str(first), str(second), "--output", str(tmp_path / "tars")]
    pack.main(tars)
    joined = write_tar(tmp_path / "all.tar", named)
    for again in range(2):  # a finished one is gone through, and left as it is
        with joined.open("rb") as pipe:
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(pipe))
            pack.main([*flags, "--input", "-", "--output", str(tmp_path / "pipe")])
        for one, other in zip(
            *map(list_shards, (tmp_path / "tars", tmp_path / "pipe")), strict=True
        ):
            assert one.read_bytes() == other.read_bytes(), again
    item = Corpus(tmp_path / "pipe", codecs)[4]
    assert item["key"] == "s/f4" and item["a"].shape == item["b"].shape == (rows_of(4), 6)


def test_a_machine_is_packed_without_a_file(tmp_path, monkeypatch):
    """As its features are, batch by batch, gone on with after a kill in the middle of a shard."""

    class Machine:
        batch_size = 2

        def samples(self, split):
            return [type("Sample", (), {"name": f"f{n}", "n": n}) for n in range(SAMPLES)]

        def extract_batch(self, batch):
            asked.append([sample.n for sample in batch])
            if len(asked) == fails_at[0]:
                raise RuntimeError
            return [np.full((1, 1, 5, 128), sample.n, np.float32) for sample in batch]

    asked, fails_at = [], [3]
    from dtufc.machines import opening

    monkeypatch.setattr(opening, "open_machine", lambda preset, options: Machine())
    out = tmp_path / "corpus"
    flags = argv("klt_llama3_tiny", out, machine="llama3_tiny", samples="test", quality=3)
    with pytest.raises(RuntimeError):
        pack.main(flags)
    assert not (out / CORPUS_JSON).exists()
    with pytest.raises(UserError, match=r"has no corpus.json, so it is not finished"):
        Corpus(out)
    assert len(Corpus(out, unfinished=True)) == 4
    asked.clear()
    fails_at[0] = None
    pack.main(flags)
    assert asked == [[2, 3], [4, 5], [6]]  # the first shard is full, the second began with 3
    corpus = Corpus(out)
    assert [item["key"] for item in corpus] == [f"f{n}" for n in range(SAMPLES)]
    for n, item in enumerate(corpus):
        assert item["llama3_tiny_csr"].mean() == pytest.approx(n, abs=0.7)


def test_a_killed_run_is_gone_on_with(corpus_folder, corpus_codec, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    pack.main(argv(corpus_codec, whole, input=corpus_folder))
    pack.main(argv(corpus_codec, cut, input=corpus_folder))
    data = (whole / "shard-00001.ufs").read_bytes()
    for size in (0, 20, len(data) // 2, len(data) - 5):
        (cut / CORPUS_JSON).unlink(missing_ok=True)
        (cut / "shard-00001.ufs").write_bytes(data[:size])
        (cut / "shard-00002.ufs").unlink()
        pack.main(argv(corpus_codec, cut, input=corpus_folder))
        check(Corpus(cut, [corpus_codec]))


@pytest.mark.parametrize("workers", [0, 2])
def test_windows_for_a_loader(corpus_folder, corpus_codec, tmp_path, workers):
    out = tmp_path / "corpus"
    pack.main(argv(corpus_codec, out, input=corpus_folder, frame_rows=4))
    corpus = Corpus(out, [corpus_codec], rows=4, dtype=torch.bfloat16)
    assert len(corpus) == 2 * SAMPLES
    loader = DataLoader(corpus, batch_size=5, shuffle=True, num_workers=workers)
    seen = set()
    for batch in loader:
        for key, first, x in zip(batch["key"], batch["first"], batch["small_tokens"], strict=True):
            expected = feature(int(key[-1]))[0, 0, first : first + 4]
            assert torch.equal(x, torch.from_numpy(expected).bfloat16())
            seen.add((key, int(first)))
    assert len(seen) == 2 * SAMPLES
    whole = Corpus(out, [corpus_codec], rows=4, short=True)
    assert len(whole) == 2 * SAMPLES + 4
    assert sum(len(item["small_tokens"]) for item in whole) == sum(map(rows_of, range(SAMPLES)))
    again = pickle.loads(pickle.dumps(whole))
    assert torch.equal(again[-1]["small_tokens"], whole[len(whole) - 1]["small_tokens"])
    for wrong in (len(whole), -len(whole) - 1):
        with pytest.raises(IndexError, match="there are 18"):
            whole[wrong]


def test_few_files_are_open(corpus_folder, corpus_codec, tmp_path, monkeypatch):
    monkeypatch.setattr("dtufc.corpora.dataset.OPEN_FILES", 2)
    pack.main(argv(corpus_codec, tmp_path / "c", input=corpus_folder, shard_samples=1))
    corpus = Corpus(tmp_path / "c", [corpus_codec])
    check(corpus)
    assert len(corpus._files) == 2


def test_wrong_input_is_named(corpus_folder, corpus_codec, tmp_path, capsys):
    out = tmp_path / "out"
    bad = tmp_path / "bad.tar"
    arrays = {"a.npy": feature(0), "b.npy": b"\x93NUMPY"}
    for values, text in (
        (
            {"input": corpus_folder, "machine": "llama3_tiny"},
            "expected either --input or --machine",
        ),
        ({}, "expected either --input or --machine"),
        (
            {"input": corpus_folder, "shard_samples": 0},
            "shard_samples, workers: expected at least 1",
        ),
    ):
        with pytest.raises(SystemExit):
            pack.main(argv(corpus_codec, out, **values))
        assert text in capsys.readouterr().err
    for source, text in (
        (tmp_path / "none", r"none: expected folders of \.npy or tars"),
        (write_tar(bad, arrays), r"bad\.tar: b\.npy: not a readable \.npy"),
    ):
        with pytest.raises(SystemExit, match=text):
            pack.main(argv(corpus_codec, out, input=source))
    pack.main(argv(corpus_codec, tmp_path / "c", input=corpus_folder))
    with pytest.raises(SystemExit, match=r"shard-00000\.ufs: holds other samples"):
        pack.main(argv(corpus_codec, tmp_path / "c", input=corpus_folder / "part1"))
    (corpus_folder / "part1" / "f6.npy").unlink()
    (corpus_folder / "part1" / "f5.npy").unlink()
    (corpus_folder / "part1" / "f4.npy").unlink()
    (corpus_folder / "part0" / "f3.npy").unlink()
    with pytest.raises(SystemExit, match="holds more samples than"):
        pack.main(argv(corpus_codec, tmp_path / "c", input=corpus_folder))
    write_feature(corpus_folder / "part0" / "f2.npy", np.ones((1, 1, 3, 5), np.float32))
    with pytest.raises(SystemExit, match=r"f2\.npy: \(1, 1, 3, 5\) is no feature of rows"):
        pack.main(argv(corpus_codec, tmp_path / "d", input=corpus_folder))
    with pytest.raises(FileNotFoundError, match=r"holds no shard-\*\.ufs"):
        Corpus(tmp_path / "x")
    with pytest.raises(UserError, match=r"holds \['small_tokens'\], not 'k'"):
        Corpus(tmp_path / "c", [corpus_codec], tensors=["k"])


def test_members_of_a_sample_follow_each_other(tmp_path):
    def piped(names, members):
        with write_tar(tmp_path / "p.tar", members).open("rb") as file:
            return [(key, [*found]) for key, found in sources.piped_samples(names, file)]

    x = feature(0)
    members = {"1.a.npy": x, "1.b.npy": x, "note.txt": b"", "2.b.npy": x, "2.a.npy": x}
    assert piped("ab", members) == [("1", ["a", "b"]), ("2", ["b", "a"])]
    assert piped(["h"], {"./1.npy": x, "d/2.h.npy": x}) == [("1", ["h"]), ("d/2", ["h"])]
    with pytest.raises(UserError, match=r"p\.tar: sample '1' has not all of \['a', 'b'\]"):
        piped("ab", {"1.a.npy": x, "2.a.npy": x})
    with pytest.raises(UserError, match="sample '2' has not all of"):
        piped("ab", {"1.a.npy": x, "1.b.npy": x, "2.a.npy": x})
    with pytest.raises(UserError, match=r"1\.c\.npy: expected <key>\.<tensor>\.npy"):
        piped("ab", {"1.c.npy": x})
    with pytest.raises(FeatureError, match=r"1\.npy: expected 4 axes"):
        piped(["h"], {"1.npy": x[0]})
    (tmp_path / "no.tar").write_bytes(b"x" * 2000)
    with pytest.raises(UserError, match=r"no\.tar: no uncompressed tar"):
        sources.list_entries([tmp_path / "no.tar"], ["h"])
    twice = [write_tar(tmp_path / f"{n}.tar", {"1.npy": x}) for n in "01"]
    with pytest.raises(UserError, match="several samples are named '1'"):
        sources.list_entries(twice, ["h"])


def test_shards_are_streams(corpus_folder, corpus_codec, tmp_path):
    """What unpack.py and open_stream read."""
    pack.main(argv(corpus_codec, tmp_path / "c", input=corpus_folder))
    with open_stream(tmp_path / "c" / "shard-00002.ufs", [load_codec(corpus_codec)]) as stream:
        assert stream.keys == ["part1/f6"]
        assert np.array_equal(stream["small_tokens"][0, 2:5], feature(6)[:, :, 2:5])
