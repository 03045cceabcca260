"""Stream files: any range without the rest, one writer, and no kill that loses a whole frame."""

import contextlib
import os
import signal
import sys
import time

import numpy as np
import pytest

import dtufc
from dtufc.bitstream import BitstreamError
from dtufc.errors import UserError
from dtufc.feature import write_feature
from dtufc.paths import REPOSITORY
from dtufc.streams import StreamDecoder, open_stream, pack, unpack, write_stream
from dtufc.streams.reader import StreamFile

sys.path.insert(0, str(REPOSITORY / "scripts"))  # scripts are no package

import small_codecs


@pytest.fixture
def cast(golden_codec):
    """A codec that keeps the values as they are."""
    return golden_codec("cast").at_quality(24)


def tokens(seed: int, rows: int = 20) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((1, 1, rows, 6)).astype(np.float32)


def counted(stream: StreamFile) -> list[int]:
    """Bytes read of a file, from here on, as they are read."""
    sizes, file = [], stream._file

    class Counting:
        seek, close = file.seek, file.close

        def read(self, size: int) -> bytes:
            data = file.read(size)
            sizes.append(len(data))
            return data

    stream._file = Counting()
    return sizes


def test_any_range_of_any_sample_without_the_rest(cast, golden_codec, tmp_path):
    codecs = {"a": cast, "b": golden_codec("int"), "m": golden_codec("cast", "maps")}
    rng = np.random.default_rng(0)
    whole = []
    with write_stream(tmp_path / "s.ufs", codecs, model="lm", restart_every=500) as writer:
        for sample in range(5):
            writer.new_sample(f"s{sample}")
            a, maps = tokens(sample, 40), small_codecs.made_up("maps", sample)
            at = 0
            while at < 40:
                step = int(rng.integers(1, 9))
                writer.append({"a": a[:, :, at : at + step], "b": a[:, :, at : at + step]})
                at += step
            writer.append({"m": maps})
            whole.append(a)
    with open_stream(tmp_path / "s.ufs", codecs.values()) as stream:
        assert (stream.problem, len(stream), [*stream]) == (None, 5, ["a", "b", "m"])
        assert stream.keys == ["s0", "s1", "s2", "s3", "s4"] and stream.session.model == "lm"
        assert stream["m"].rows(3) == 6 and stream["m"][3, 2:4].shape == (2, 2, 3, 3)
        full = stream["b"][-1]
        sizes = counted(stream)
        for _ in range(100):
            sample, first, end = (int(rng.integers(limit)) for limit in (5, 40, 41))
            assert np.array_equal(stream["a"][sample, first:end], whole[sample][:, :, first:end])
            assert np.array_equal(stream["b"][-1, first:end], full[:, :, first:end])
        assert np.array_equal(stream["a"][2, -1], whole[2][:, :, -1:])
        assert max(sizes) <= 4096
        for wrong in (5, -6):
            with pytest.raises(IndexError, match="there are 5"):
                stream["a"][wrong]
        with pytest.raises(IndexError, match="row 40: there are 40"):
            stream["a"][0, 40]
        with pytest.raises(UserError, match="without a step"):
            stream["a"][0, ::2]
        with pytest.raises(UserError, match="not 'c'"):
            stream["c"]


def test_thousands_of_samples_open_fast_and_read_little(cast, tmp_path):
    with write_stream(tmp_path / "s.ufs", {"x": cast}) as writer:
        for sample in range(3000):
            writer.new_sample(str(sample))
            writer.append({"x": tokens(sample, 2)})
    size = (tmp_path / "s.ufs").stat().st_size
    with open_stream(tmp_path / "s.ufs", cast) as stream:
        sizes = counted(stream)
        for sample in (0, 2999, 1234):
            assert np.array_equal(stream["x"][sample], tokens(sample, 2))
        assert sum(sizes) < size / 20


def test_a_file_is_a_session(cast, tmp_path):
    """Its bytes are those that the writer returned; a receiver may be fed with them, and a saved session
    opens as a file."""
    path = tmp_path / "s.ufs"
    writer = write_stream(path, {"x": cast})
    writer.append({"x": tokens(0)})
    writer.flush()
    writer.append({"x": tokens(1)})
    writer.close()
    assert writer.close() == b""
    decoder = StreamDecoder(cast)
    (rows,) = decoder.feed(path.read_bytes()).values()
    decoder.finish()
    assert np.array_equal(rows, np.concatenate([tokens(0), tokens(1)], 2))
    encoder = cast.stream("x")
    path.write_bytes(encoder.append({"x": tokens(0)}) + encoder.restart() + encoder.close())
    with open_stream(path, cast) as stream:
        assert stream.problem is None and np.array_equal(stream["x"][0, 3:], tokens(0)[:, :, 3:])
    with write_stream(path, {"x": cast}) as writer:  # the end makes room for more
        writer.append({"x": tokens(2)})
    with open_stream(path, cast) as stream:
        assert np.array_equal(stream["x"][0, 20:], tokens(2))


def test_appending_goes_on_where_the_file_ends(cast, tmp_path):
    path = tmp_path / "s.ufs"
    for sample in range(4):
        with write_stream(path, {"x": cast}) as writer:
            assert len(writer.keys) == max(1, sample)
            writer.new_sample(f"s{sample}")
            writer.append({"x": tokens(sample)})
            with pytest.raises(UserError, match="another process writes"):
                write_stream(path, {"x": cast})
    with write_stream(path, {"x": cast}) as writer:  # more of the last sample
        assert (writer.sample, writer.rows) == (3, {"x": 20})
        writer.append({"x": tokens(9)})
    with open_stream(path, cast) as stream:
        assert stream.keys == ["s0", "s1", "s2", "s3"]
        assert all(np.array_equal(stream["x"][n, :20], tokens(n)) for n in range(4))
        assert np.array_equal(stream["x"][3, 20:], tokens(9))
    before = path.read_bytes()
    for other in ({"y": cast}, {"x": cast, "y": cast}):
        with pytest.raises(UserError, match="holds another session"):
            write_stream(path, other)
    (tmp_path / "no.ufs").write_bytes(b"not a stream")
    with pytest.raises(UserError, match="no stream that can be gone on with"):
        write_stream(tmp_path / "no.ufs", {"x": cast})
    assert path.read_bytes() == before


def test_a_file_cut_anywhere_gives_all_whole_frames_and_is_gone_on_with(cast, tmp_path):
    path = tmp_path / "s.ufs"
    ends = []
    writer = write_stream(path, {"x": cast})
    for row in range(10):
        writer.append({"x": tokens(0)[:, :, row : row + 1]})
        ends.append(path.stat().st_size)
    writer.close()
    data = path.read_bytes()
    header = len(cast.stream("x").start())
    for size in range(len(data)):
        path.write_bytes(data[:size])
        if size < header:
            with pytest.raises(BitstreamError, match=r"s\.ufs: truncated|s\.ufs: foreign"):
                open_stream(path, cast)
        else:
            with open_stream(path, cast) as stream:
                rows = sum(end <= size for end in ends)
                assert stream["x"].rows(0) == rows
                assert np.array_equal(stream["x"][0], tokens(0)[:, :, :rows])
                assert (stream.problem is None) == (size >= len(data) - 16)
        if size % 7 == 0:
            with write_stream(path, {"x": cast}) as writer:
                rows = writer.rows["x"]
                writer.append({"x": tokens(1)})
            with open_stream(path, cast) as stream:
                assert np.array_equal(stream["x"][0, :rows], tokens(0)[:, :, :rows])
                assert np.array_equal(stream["x"][0, rows:], tokens(1))


def test_damage_in_one_sample_leaves_the_others(cast, tmp_path):
    path = tmp_path / "s.ufs"
    with write_stream(path, {"x": cast}) as writer:
        places = []
        for sample in range(3):
            writer.new_sample()
            places.append(path.stat().st_size)
            writer.append({"x": tokens(sample)})
    data = bytearray(path.read_bytes())
    data[places[1] + 100] ^= 1
    path.write_bytes(data)
    with open_stream(path, cast) as stream:
        assert np.array_equal(stream["x"][0], tokens(0))
        assert np.array_equal(stream["x"][2], tokens(2))
        with pytest.raises(BitstreamError, match=r"s\.ufs: sample 1: corrupted"):
            stream["x"][1]


def test_a_writer_killed_at_random_moments_loses_no_whole_frame(cast, tmp_path):
    """Fifty times: what append had returned of is there, and the next writer goes on behind it."""
    path = tmp_path / "s.ufs"
    rng = np.random.default_rng(0)
    x = tokens(5, 20_000)
    sure = kept = 0
    for _ in range(50):
        told, tell = os.pipe()
        child = os.fork()
        if child == 0:  # writes until it is killed
            with contextlib.suppress(BaseException):
                writer = write_stream(path, {"x": cast}, restart_every=300)
                while True:
                    at = writer.rows["x"]
                    writer.append({"x": x[:, :, at : at + 1]})
                    os.write(tell, b".")
            os._exit(1)
        os.close(tell)
        os.read(told, 1)
        time.sleep(rng.uniform(0, 0.02))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        sure += 1
        while done := os.read(told, 1 << 16):
            sure += len(done)
        os.close(told)
        with open_stream(path, cast) as stream:
            kept = stream["x"].rows(0)
            assert sure <= kept <= sure + 1
            assert stream.problem
            assert np.array_equal(stream["x"][0, -99:], x[:, :, max(0, kept - 99) : kept])
        sure = kept
    assert kept > 200


def test_a_full_disk_leaves_all_whole_frames(cast, tmp_path, monkeypatch):
    path = tmp_path / "s.ufs"
    writer = write_stream(path, {"x": cast})
    writer.append({"x": tokens(0)})
    write, left = writer._file.write, [10]

    class Full:
        fileno, close = writer._file.fileno, writer._file.close

        def write(self, data):
            if not left:
                raise OSError(28, "No space left on device")
            return write(data[: left.pop()])

    writer._file = Full()
    with pytest.raises(OSError, match="not written: No space left"):
        writer.append({"x": tokens(1)})
    with pytest.raises(UserError, match="closed"):
        writer.append({"x": tokens(1)})
    with open_stream(path, cast) as stream:
        assert np.array_equal(stream["x"][0], tokens(0))


def test_shipped_codecs_are_found_by_themselves(tmp_path):
    codec = dtufc.load_codec("klt_llama3_tiny")
    x = np.zeros((1, 1, 4, 128), np.float32)
    with dtufc.write_stream(tmp_path / "s.ufs", {"x": codec}) as writer:
        writer.append({"x": x})
    with dtufc.open_stream(tmp_path / "s.ufs") as stream:
        assert stream["x"][0].shape == x.shape
    with pytest.raises(FileNotFoundError):
        dtufc.open_stream(tmp_path / "none.ufs")


@pytest.fixture
def folders(golden_folder, tmp_path):
    """Two codec folders and two folders of features of the same names."""
    for kind in ("tokens", "maps"):
        for seed in range(3):
            write_feature(tmp_path / kind / f"f{seed}.npy", small_codecs.made_up(kind, seed))
    codecs = [golden_folder("klt", "tokens"), golden_folder("cast", "maps")]
    return codecs, [tmp_path / "tokens", tmp_path / "maps"]


def flags(**values) -> list[str]:
    argv = []
    for key, value in values.items():
        argv += [f"--{key}", *(map(str, value) if isinstance(value, list) else [str(value)])]
    return argv


def test_pack_and_unpack(folders, tmp_path, capsys):
    codecs, inputs = folders
    path, out = tmp_path / "s.ufs", tmp_path / "out"
    argv = flags(codec=codecs, input=inputs, output=path, name=["h", "m"], frame_rows=5, split="0")
    pack.main(argv)
    assert "3 samples, 684 points added" in capsys.readouterr().out
    data = path.read_bytes()
    pack.main(argv)  # all is there
    assert ", 0 points added" in capsys.readouterr().out and path.read_bytes() == data
    unpack.main(flags(codec=codecs, input=path, output=out))
    decoded = dtufc.load_codec(codecs[0])
    for seed in range(3):
        rows = np.load(out / "h" / f"f{seed}.npy")
        for at in range(0, 20, 5):
            part = small_codecs.made_up("tokens", seed)[:, :, at : at + 5]
            expected = decoded.decode(decoded.encode(part))
            assert np.allclose(rows[:, :, at : at + 5], expected, atol=1e-5)
        assert np.load(out / "m" / f"f{seed}.npy").shape == (6, 2, 3, 3)
    part = flags(
        codec=codecs, input=path, output=tmp_path / "part", name=["h"], samples=["f1", "2"]
    )
    unpack.main([*part, "--rows", "3:7"])
    assert sorted(p.name for p in (tmp_path / "part").rglob("*.npy")) == ["f1.npy", "f2.npy"]
    assert np.array_equal(
        np.load(tmp_path / "part" / "h" / "f1.npy"), np.load(out / "h" / "f1.npy")[:, :, 3:7]
    )


def test_a_killed_pack_is_run_again(folders, tmp_path):
    codecs, inputs = folders
    whole, cut = tmp_path / "whole.ufs", tmp_path / "cut.ufs"
    argv = flags(codec=codecs[:1], input=inputs[:1], frame_rows=1)
    pack.main([*argv, "--output", str(whole)])
    data = whole.read_bytes()
    with open_stream(whole, dtufc.load_codec(codecs[0])) as stream:
        expected = [stream["small_tokens"][n] for n in range(3)]
    for size in range(300, len(data), 97):
        cut.write_bytes(data[:size])
        pack.main([*argv, "--output", str(cut)])
        with open_stream(cut, dtufc.load_codec(codecs[0])) as stream:
            assert stream.keys == ["f0", "f1", "f2"] and stream.problem is None
            for n in range(3):
                assert np.array_equal(stream["small_tokens"][n], expected[n])


def test_wrong_flags_are_told(folders, tmp_path, capsys):
    codecs, inputs = folders
    path = tmp_path / "s.ufs"
    for values, why in (
        ({"codec": codecs, "input": inputs[:1]}, "input: expected one per codec, 2, got 1"),
        ({"codec": codecs, "input": inputs, "name": ["a"]}, "name: expected one per codec"),
        (
            {"codec": codecs[:1], "input": inputs[:1], "frame_rows": 0},
            "frame_rows: expected at least",
        ),
        ({"codec": codecs, "input": inputs, "name": ["a", "a"]}, "different names"),
        ({"codec": codecs[:1], "input": inputs[1:]}, "is no feature of rows"),
    ):
        with pytest.raises(SystemExit) as stopped:
            pack.main(flags(**values, output=path))
        assert why in f"{stopped.value} {capsys.readouterr().err}", values
    path.unlink()
    pack.main(flags(codec=codecs[:1], input=inputs[:1], output=path))
    for values, why in (
        ({"rows": "3"}, "rows: expected first:end"), ({"rows": "30:"}, "holds none of sample 0"),
        ({"samples": ["x"]}, "none is 'x'"), ({"name": ["x"]}, "not 'x'"),
        ({"output": inputs[0]}, "decode.py did not write it"),
        ({"codec": codecs[1:]}, "written by codec"),
    ):  # fmt: skip
        with pytest.raises(SystemExit) as stopped:
            unpack.main(
                flags(**{"codec": codecs[:1], "output": tmp_path / "o", **values}, input=path)
            )
        assert why in f"{stopped.value} {capsys.readouterr().err}", values
