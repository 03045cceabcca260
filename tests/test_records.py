"""Records that can be trusted: stamps, provenance, locks; nothing replaced, nothing half-written."""

import os
import stat
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from conftest import toy_feature

from dtufc import decode, encode, evaluate, files, locks, provenance, stamps
from dtufc.feature import FeatureError, list_features, read_feature, write_feature
from dtufc.stamps import Stamp


def test_stamps_differ_by_content_and_say_in_what(tmp_path):
    path = tmp_path / "a.npy"
    path.write_bytes(b"one")
    first = Stamp({"bits": 8}, stamps.digest_files([path]))
    os.utime(path, (1e9, 1e9))
    assert Stamp({"bits": 8}, stamps.digest_files([path])).differs(first) is None
    path.write_bytes(b"two")
    os.utime(path, (1e9, 1e9))  # the same size and an old time
    second = Stamp({"bits": 8}, stamps.digest_files([path]))
    assert second.differs(first) == "content of a.npy has changed"
    assert second.digest != first.digest
    assert first.differs(None) == "not made yet"
    assert Stamp({"bits": 4}, first.inputs).differs(first) == "bits has changed from 8 to 4"
    assert Stamp({}, first.inputs).differs(first) == "bits is gone"
    assert Stamp({"bits": 8, "seed": 0}, first.inputs).differs(first) == "seed is new"
    files.write_json(tmp_path / "record.json", first.record())
    assert stamps.read_stamp(tmp_path / "record.json") == first
    for text in ("{}", "[]", "nonsense", '{"stamp": 1}', '{"stamp": {"config": 1, "inputs": {}}}'):
        (tmp_path / "record.json").write_text(text)
        assert stamps.read_stamp(tmp_path / "record.json") is None


def test_a_resumed_run_keeps_its_processes(tmp_path):
    """Each process stays with its revision and time; another stamp begins a new record."""
    cfg, stamp = stamps.Stamp({}), Stamp({"seed": 0})
    provenance.Run(tmp_path, cfg, stamp)
    run = provenance.Run(tmp_path, cfg, stamp)
    run.finish(result=1)
    record = files.read_json(tmp_path / "run.json")
    assert len(record["processes"]) == 2
    assert all(
        {"started", "revision", "versions", "machine"} <= p.keys() for p in record["processes"]
    )
    assert record["finished"]
    assert record["result"] == 1
    assert provenance.why_not_made(tmp_path, stamp) is None
    assert "seed has changed" in provenance.why_not_made(tmp_path, Stamp({"seed": 1}))
    provenance.Run(tmp_path, cfg, Stamp({"seed": 1}))
    assert len(files.read_json(tmp_path / "run.json")["processes"]) == 1
    assert provenance.why_not_made(tmp_path, Stamp({"seed": 1})) == "not finished"


def test_the_revision_comes_from_the_environment_without_git(monkeypatch, tmp_path):
    monkeypatch.setattr(provenance, "REPOSITORY", tmp_path)
    monkeypatch.delenv("DTUFC_REVISION", raising=False)
    assert provenance.git_revision() is None
    monkeypatch.setenv("DTUFC_REVISION", "abc123")
    assert provenance.git_revision() == "abc123"


def test_writing_leaves_the_umask_alone(tmp_path):
    """Files that another thread makes meanwhile have the modes that the umask allows."""
    done = threading.Event()

    def write() -> None:
        while not done.is_set():
            files.write_bytes(tmp_path / "atomic", b"x")

    before = os.umask(0o027)
    thread = threading.Thread(target=write)
    thread.start()
    try:
        deadline = time.time() + 1
        number = 0
        while time.time() < deadline:
            path = tmp_path / f"plain{number % 50}"
            path.unlink(missing_ok=True)
            path.touch()
            assert stat.S_IMODE(path.stat().st_mode) == 0o640
            number += 1
    finally:
        done.set()
        thread.join()
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "atomic").stat().st_mode) == 0o640


def test_the_next_holder_of_a_folder_clears_what_a_kill_left(tmp_path):
    """In the folder and below it, but not where another process may be at work."""
    own = tmp_path / "decoded" / f".1{files.PART}"
    other = tmp_path / "held" / f".2{files.PART}"
    for path in (own, other, other.parent / locks.LOCK):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    with locks.hold(tmp_path):
        assert not own.exists()
        assert other.exists()


FULL = """
import resource, sys
from pathlib import Path
import numpy as np
from dtufc import config
from dtufc.feature import write_feature
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
with config.report_errors():
    write_feature(Path(sys.argv[1]), np.zeros((1, 1, 4096, 4), np.float32))
"""


def test_a_full_disk_is_told_in_one_line(tmp_path):
    """A file that cannot grow stands for a disk that is full: nothing half-written, no traceback."""
    target = tmp_path / "x.npy"
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(target)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert str(target) in done.stderr
    assert "not written" in done.stderr
    assert not any(tmp_path.iterdir())


@pytest.fixture
def coded(untrained, tmp_path):
    """Two features in ``features/``, their bitstreams in ``bits/``; the flags that name the codec."""
    for i in range(2):
        write_feature(tmp_path / "features" / f"f{i}.npy", toy_feature(i, 20))
    flags = ["--codec", str(untrained)]
    encode.main([*flags, "--input", str(tmp_path / "features"), "--output", str(tmp_path / "bits")])
    return tmp_path, flags


def test_originals_are_never_replaced(coded):
    """Neither by evaluate.py nor by decode.py, links or not; own results may be made again."""
    root, flags = coded
    source = root / "features"
    before = {path.name: path.read_bytes() for path in source.iterdir() if path.suffix == ".npy"}

    def unchanged() -> bool:
        return all((source / name).read_bytes() == data for name, data in before.items())

    (root / "D").mkdir()
    (root / "D" / "decoded").symlink_to(source)
    for features in (source, root / "D" / "decoded"):
        with pytest.raises(SystemExit, match="the results would replace the features"):
            evaluate.main([*flags, "--features", str(features), "--output", str(root / "D")])
        assert unchanged()
    (root / "E" / "decoded").mkdir(parents=True)
    (root / "E" / "decoded" / "other.npy").write_bytes(b"not ours")
    with pytest.raises(SystemExit, match=r"no run of evaluate\.py made them"):
        evaluate.main([*flags, "--features", str(source), "--output", str(root / "E")])
    assert (root / "E" / "decoded" / "other.npy").read_bytes() == b"not ours"
    with pytest.raises(SystemExit, match=r"decode\.py did not write it"):
        decode.main([*flags, "--input", str(root / "bits"), "--output", str(source)])
    assert unchanged()
    for _ in range(2):  # what decode.py wrote it may write again
        decode.main([*flags, "--input", str(root / "bits"), "--output", str(root / "out")])
    assert np.load(root / "out" / "f0.npy").shape == (1, 1, 20, 128)


@pytest.mark.parametrize("name", [b"x" * 245 + b".npy", b"caf\xe9.npy"])
def test_names_that_records_cannot_hold_are_refused_first(tmp_path, name):
    path = os.path.join(os.fsencode(tmp_path), name)
    write_feature(tmp_path / "plain.npy", toy_feature(0, 4))
    os.rename(tmp_path / "plain.npy", path)
    with pytest.raises(FeatureError, match=r"245|is not UTF-8|249 bytes"):
        list_features(tmp_path)


def test_the_longest_allowed_name_goes_all_the_way(untrained, tmp_path):
    name = "x" * 236
    write_feature(tmp_path / "features" / f"{name}.npy", toy_feature(0, 4))
    argv = ["--codec", str(untrained), "--features", str(tmp_path / "features")]
    evaluate.main([*argv, "--output", str(tmp_path / "out")])
    assert (tmp_path / "out" / "bitstreams" / f"{name}.ufc").is_file()


def test_headers_and_json_that_nest_too_deep_are_told(tmp_path):
    (tmp_path / "x.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"x\.json: not valid JSON"):
        files.read_json(tmp_path / "x.json")
    header = (b"{'descr': '<f4', 'fortran_order': False, 'shape': " + b"(" * 9000).ljust(
        9990
    ) + b"\n"
    data = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    (tmp_path / "x.npy").write_bytes(data)
    with pytest.raises(FeatureError, match=r"x\.npy: "):
        read_feature(tmp_path / "x.npy")
