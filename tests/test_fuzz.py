"""A short attack on every codec, and that the attack sees what it is there for."""

import importlib
import sys

import numpy as np
import pytest

from dtufc.codec import Codec
from dtufc.paths import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "scripts"))  # scripts are no package
fuzz = importlib.import_module("fuzz")
small_codecs = importlib.import_module("small_codecs")


@pytest.mark.parametrize("name", small_codecs.registered())
def test_no_damaged_file_breaks_a_decoder(name, tmp_path, capsys):
    argv = ["--codec", name, "--mutants", "1500", "--parts", "mutants", "headers"]
    fuzz.main([*argv, "--output", str(tmp_path / "errors")])
    out = capsys.readouterr().out
    assert ", 0 errors" in out
    assert int(out.splitlines()[-1].split()[0]) > 1600
    assert not (tmp_path / "errors").exists()


@pytest.mark.parametrize("name", ["cast", "klt", "jpegxl", "native"])
def test_no_damaged_stream_breaks_a_receiver(name, tmp_path, capsys):
    argv = ["--codec", name, "--mutants", "200", "--parts", "streams"]
    fuzz.main([*argv, "--output", str(tmp_path / "errors")])
    assert "200 attacks, 0 errors" in capsys.readouterr().out


@pytest.mark.attack
def test_a_long_attack_with_folders_and_kills(tmp_path, capsys):
    fuzz.main(["--mutants", "13000", "--output", str(tmp_path / "errors")])
    assert ", 0 errors" in capsys.readouterr().out


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("klt", "hyperprior")]


@pytest.mark.parametrize("name", ["cast", *SLOW])
def test_no_hostile_folder_breaks_loading(name, tmp_path, capsys):
    fuzz.main(["--codec", name, "--parts", "folders", "--output", str(tmp_path / "errors")])
    assert ", 0 errors" in capsys.readouterr().out


def test_kills_leave_nothing_behind(tmp_path, capsys):
    argv = ["--codec", "cast", "--parts", "kills", "--kills", "1"]
    fuzz.main([*argv, "--output", str(tmp_path / "errors")])
    assert ", 0 errors" in capsys.readouterr().out


def test_a_receiver_that_errs_is_seen(tmp_path, monkeypatch, capsys):
    """One that lets an error out, and one that believes damaged frames."""
    decoder = fuzz.fuzz_streams.StreamDecoder
    argv = ["--codec", "cast", "--mutants", "60", "--parts", "streams"]
    argv += ["--output", str(tmp_path / "errors")]

    def broken(self, data: bytes) -> list:
        raise RuntimeError("of a library")

    make_seed = fuzz.fuzz_streams.make_seed
    for fault in ("blocks", "finish"):
        with monkeypatch.context() as patch:

            def seed_then_break(*args, fault=fault, patch=patch):
                seed = make_seed(*args)
                if fault == "blocks":
                    patch.setattr(decoder, "blocks", broken)
                else:
                    patch.setattr(decoder, "finish", lambda self: None)
                return seed

            patch.setattr(fuzz.fuzz_streams, "make_seed", seed_then_break)
            with pytest.raises(SystemExit) as stopped:
                fuzz.main(argv)
        assert stopped.value.code == 1
        assert ", 0 errors" not in capsys.readouterr().out.splitlines()[-1]
    kept = {path.read_text() for path in (tmp_path / "errors").glob("cast_streams_*.txt")}
    assert any("of a library" in why for why in kept) and any("other values" in why for why in kept)


@pytest.mark.parametrize("fault", ["raises", "nan", "values"])
def test_errors_are_seen_and_kept(tmp_path, monkeypatch, capsys, fault):
    """A decoder that lets an error out, or decodes what was not sealed to something else."""
    load = fuzz.load_codec

    class Broken:
        def __init__(self, codec: Codec):
            self.codec = codec
            self.qualities = ()

        def encode(self, x: np.ndarray) -> bytes:
            return self.codec.encode(x)

        def decode(self, data: bytes, max_points: int | None = None) -> np.ndarray:
            if max_points is None:
                return self.codec.decode(data)
            if fault == "raises":
                raise RuntimeError("of a library")
            return np.full((1, 1, 1, 1), np.nan if fault == "nan" else 1, np.float32)

    monkeypatch.setattr(fuzz, "load_codec", lambda folder: Broken(load(folder)))
    argv = ["--codec", "cast", "--mutants", "30", "--parts", "mutants"]
    with pytest.raises(SystemExit) as stopped:
        fuzz.main([*argv, "--output", str(tmp_path / "errors")])
    assert stopped.value.code == 1
    assert len(list((tmp_path / "errors").glob("cast_mutants_*.bin"))) >= 5
    assert ", 0 errors" not in capsys.readouterr().out.splitlines()[-1]
