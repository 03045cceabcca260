"""Shards of a corpus coded one by one: folders, tars and object stores, markers, kills, refusals."""

import json
import shutil

import fsspec
import numpy as np
import pytest
from test_corpora import SAMPLES, argv, check, feature, write_tar

from dtufc import files
from dtufc.corpora import Corpus, code, pack, stores
from dtufc.corpora.ray_engine import ShardActor
from dtufc.corpora.shards import CORPUS_JSON, ShardFacts, list_shards, read_shard
from dtufc.errors import UserError


def config_of(codec, output, **values):
    flags = {"codec": [codec], "output": str(output), "quality": 24.0, "shard_samples": 3, **values}
    return code.CodeConfig(**flags)


def same_shards(one, other):
    """Whether two corpora are the same, byte for byte."""
    pairs = zip(*map(list_shards, (one, other)), strict=True)
    return all(a.read_bytes() == b.read_bytes() for a, b in pairs)


def test_the_shards_are_those_of_pack_corpus(corpus_folder, corpus_codec, tmp_path, capsys):
    out, packed = tmp_path / "coded", tmp_path / "packed"
    code.main(argv(corpus_codec, out, input=corpus_folder, model="lm", readers=2))
    assert "7 samples, 3 shards, " in capsys.readouterr().out
    check(Corpus(out, [corpus_codec]))
    pack.main(argv(corpus_codec, packed, input=corpus_folder, model="lm"))
    assert same_shards(out, packed)
    ours, theirs = (files.read_json(each / CORPUS_JSON) for each in (out, packed))
    assert ours == theirs | {"source": [str(corpus_folder)]}
    marker = files.read_json(out / "shard-00002.done.json")
    assert marker["samples"] == 1 and marker["bytes"] == theirs["shards"][2]["bytes"]


def test_done_shards_are_not_coded_again(corpus_folder, corpus_codec, tmp_path, monkeypatch):
    """Not those with a marker; those without one are, whole or not."""
    out, whole = tmp_path / "coded", tmp_path / "whole"
    code.main(argv(corpus_codec, whole, input=corpus_folder))
    code.main(argv(corpus_codec, out, input=corpus_folder))
    filled = []
    fill = code.fill_shard
    monkeypatch.setattr(
        code, "fill_shard", lambda path, *rest: filled.append(path) or fill(path, *rest)
    )
    before = [path.stat().st_mtime_ns for path in list_shards(out)]
    code.main(argv(corpus_codec, out, input=corpus_folder))
    assert not filled and before == [path.stat().st_mtime_ns for path in list_shards(out)]
    # as a kill between a shard and its marker leaves it; and a shard that somebody removed
    (out / CORPUS_JSON).unlink()
    (out / "shard-00001.done.json").unlink()
    (out / "shard-00001.ufs").write_bytes(b"half")
    (out / "shard-00002.ufs").unlink()
    (out / f".0123456789abcdef{files.PART}").write_bytes(b"of a killed worker")
    code.main(argv(corpus_codec, out, input=corpus_folder))
    assert len(filled) == 2 and same_shards(out, whole)
    assert not list(out.glob(f".*{files.PART}"))
    assert list_shards(out)[0].stat().st_mtime_ns == before[0]


def test_a_failure_leaves_what_was_done(corpus_folder, corpus_codec, tmp_path):
    out, whole = tmp_path / "coded", tmp_path / "whole"
    code.main(argv(corpus_codec, whole, input=corpus_folder))
    bad = corpus_folder / "part1" / "f4.npy"
    good = bad.read_bytes()
    bad.write_bytes(good[:50])
    with pytest.raises(SystemExit, match=r"f4\.npy: not a readable \.npy"):
        code.main(argv(corpus_codec, out, input=corpus_folder))
    assert sorted(path.name for path in out.iterdir() if path.name[0] != ".") == [
        "shard-00000.done.json", "shard-00000.ufs",
    ]  # fmt: skip
    bad.write_bytes(good)
    code.main(argv(corpus_codec, out, input=corpus_folder))
    assert same_shards(out, whole)


def test_other_shards_are_refused_or_replaced(corpus_folder, corpus_codec, tmp_path):
    out, packed = tmp_path / "coded", tmp_path / "packed"
    code.main(argv(corpus_codec, out, input=corpus_folder))
    with pytest.raises(SystemExit, match=r"quality has changed from 24\.0 to 11\.0; take another"):
        code.main(argv(corpus_codec, out, input=corpus_folder, quality=11))
    with pytest.raises(SystemExit, match="content of sample names has changed"):
        code.main(argv(corpus_codec, out, input=corpus_folder / "part0"))
    pack.main(argv(corpus_codec, packed, input=corpus_folder))
    with pytest.raises(SystemExit, match=r"shard-00000\.ufs is no shard .* it has no done-marker"):
        code.main(argv(corpus_codec, packed, input=corpus_folder, quality=11))
    code.main(argv(corpus_codec, out, input=corpus_folder, quality=11, replace="true"))
    x, item = feature(0)[0, 0], Corpus(out, [corpus_codec])[0]
    assert 0 < np.abs(item["small_tokens"].numpy() - x).max() < 0.01 * np.abs(x).max()
    shutil.rmtree(corpus_folder / "part1")
    code.main(argv(corpus_codec, out, input=corpus_folder, quality=11, replace="true"))
    assert sum(len(read_shard(path).keys) for path in list_shards(out)) == 4
    assert len(list(out.glob("*.done.json"))) == len(list_shards(out)) == 2


def test_tars_of_several_tensors(golden_folder, tmp_path):
    """Two tars, of which a shard takes samples from both."""
    codecs = [golden_folder("cast"), golden_folder("int")]
    named = {f"s/f{seed}.{name}.npy": feature(seed) for seed in range(SAMPLES) for name in "ab"}
    cut = [*named][:8]
    tars = [
        write_tar(tmp_path / "0.tar", {name: named[name] for name in cut}),
        write_tar(tmp_path / "1.tar", {name: x for name, x in named.items() if name not in cut}),
    ]
    flags = ["--codec", *map(str, codecs), "--name", "a", "b", "--shard_samples", "3"]
    pack.main([*flags, "--input", *map(str, tars), "--output", str(tmp_path / "packed")])
    urls = [f"file://{tar}" for tar in tars]
    code.main([*flags, "--input", *urls, "--output", str(tmp_path / "coded")])
    assert same_shards(tmp_path / "packed", tmp_path / "coded")


def test_object_stores(corpus_folder, corpus_codec, tmp_path, capsys):
    """From one and into one; what is there already is known there too."""
    memory = fsspec.filesystem("memory")
    memory.put(str(corpus_folder), "/bucket/x", recursive=True)
    code.main(argv(corpus_codec, tmp_path / "local", input=corpus_folder))
    flags = argv(corpus_codec, "memory://bucket/corpus", input="memory://bucket/x")
    code.main(flags)
    assert "-> memory://bucket/corpus" in capsys.readouterr().out
    for path in list_shards(tmp_path / "local"):
        assert memory.cat_file(f"/bucket/corpus/{path.name}") == path.read_bytes()
    record = json.loads(memory.cat_file("/bucket/corpus/corpus.json"))
    assert record["source"] == ["memory://bucket/x"] and record["samples"] == SAMPLES
    stores.open_folder("memory://bucket/corpus").remove("shard-00001.done.json")
    memory.rm_file("/bucket/corpus/corpus.json")
    before = memory.modified("/bucket/corpus/shard-00000.ufs")
    changed = memory.modified("/bucket/corpus/shard-00001.ufs")
    code.main(flags)
    assert memory.modified("/bucket/corpus/shard-00000.ufs") == before
    assert memory.modified("/bucket/corpus/shard-00001.ufs") != changed
    assert json.loads(memory.cat_file("/bucket/corpus/corpus.json")) == record
    with pytest.raises(SystemExit, match="nostore://x: Protocol not known"):
        code.main(argv(corpus_codec, tmp_path / "o", input="nostore://x"))


def test_an_actor_codes_shards_and_tells_of_problems(corpus_folder, corpus_codec, tmp_path):
    """What Ray Data calls, here in this process: rows of JSON in, rows of JSON out."""
    cfg = config_of(corpus_codec, tmp_path / "coded", input=[str(corpus_folder)]).absolute()
    names = [*cfg.tensors()]
    works = code.plan(cfg, names, code.sources.list_entries(cfg.locations, names))
    assert [code.Work.load(work.dump()) for work in works] == works
    actor = ShardActor(cfg)
    told = actor({"work": np.array([work.dump() for work in works[:2]])})
    assert told["number"] == [0, 1] and told["problem"] == ["", ""]
    assert [ShardFacts.load(text).samples for text in told["facts"]] == [3, 3]
    (corpus_folder / "part1" / "f6.npy").unlink()
    told = actor({"work": np.array([work.dump() for work in works])})  # the first two are known
    assert told["problem"][:2] == ["", ""] and "f6.npy" in told["problem"][2]
    missing = config_of(tmp_path / "none", tmp_path / "coded", input=[str(corpus_folder)])
    told = ShardActor(missing)({"work": np.array([works[0].dump()])})
    assert "none" in told["problem"][0]


def test_wrong_flags_are_named(corpus_codec, tmp_path):
    for values, text in (
        ({"input": []}, "input: expected at least one"),
        ({"input": ["x"], "shard_samples": 0}, "shard_samples, readers, workers"),
        ({"input": ["x"], "address": "auto"}, "address: goes with --engine ray"),
        ({"input": ["x"], "retries": -1}, "retries, gpus_per_worker: expected at least 0"),
    ):
        with pytest.raises(UserError, match=text):
            config_of(corpus_codec, tmp_path, **values)
