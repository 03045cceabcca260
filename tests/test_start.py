"""Nothing starts slowly: what ``--help`` and ``import dtufc`` load, and what they leave alone."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import dtufc
from dtufc.paths import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "scripts"))  # scripts are no package

import small_codecs
from bench_start import commands, main

HEAVY = {
    "PIL.ImageFilter", "accelerate", "av", "bjontegaard", "compressai", "cv2", "diffusers",
    "imagecodecs", "matplotlib", "mmcv", "numba", "pandas", "plotly", "ray", "scipy", "sklearn",
    "torch", "torchvision", "transformers",
}  # fmt: skip
"""What no command needs to print its help."""


def loaded(argv: list[str], folder: Path = REPOSITORY) -> tuple[str, set[str]]:
    """What ``python ...`` prints, and the modules that it imports."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *argv], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = re.findall(r"^import time:.*\|\s*(\S+)$", done.stderr, re.MULTILINE)
    return done.stdout, set(lines)


@pytest.mark.parametrize("command", commands())
def test_help_loads_nothing_heavy(command):
    path = REPOSITORY / command
    text, modules = loaded([path.name, "--help"], path.parent)
    assert "--config" in text
    assert "jsonargparse" in modules  # imports are seen
    assert modules & HEAVY == set()


def test_every_command_is_found():
    found = commands()
    assert len(found) > 30
    assert {"coding/encode.py", "coding/CompressAI/run_batch.py", "machines/sd3/sd3.py"} <= set(
        found
    )


def test_importing_the_package_loads_nothing():
    """Neither its own modules nor numpy, until a name is used."""
    code = "import sys, dtufc; print(sorted(m for m in sys.modules if m.startswith('dtufc.')))"
    text, modules = loaded(["-c", code])
    assert text.strip() == "[]"
    assert "numpy" not in modules


def test_the_public_names_are_there():
    for name in dtufc.__all__:
        assert getattr(dtufc, name) is not None, name
    assert set(dtufc.__all__) <= set(dir(dtufc))
    assert re.fullmatch(r"\d+\.\d+\.\d+", dtufc.__version__)
    assert dtufc.codecs()["klt"].any_rate
    assert dtufc.load_facts("resnet50_tiny").kind == "resnet50_tiny_cls"
    assert issubclass(dtufc.BitstreamError, Exception)
    with pytest.raises(AttributeError, match="module 'dtufc' has no attribute 'nothing'"):
        _ = dtufc.nothing


def test_public_names_lie_where_type_checkers_look():
    """The imports for type checkers and those made at run time name the same places."""
    text = (REPOSITORY / "dtufc" / "__init__.py").read_text()
    block = text.partition("if TYPE_CHECKING:")[2].partition("__all__")[0]
    told = {
        name: module
        for module, names in re.findall(r"from dtufc\.(\w+) import (.*)", block)
        for name in names.split(", ")
    }
    assert told == dtufc._MODULES
    assert {*told, "__version__"} == set(dtufc.__all__)


def test_bench_start(monkeypatch, capsys, tmp_path):
    codec = small_codecs.make("cast", "tokens", tmp_path)
    monkeypatch.setattr("bench_start.commands", lambda: ["coding/encode.py"])
    main(["--repeats", "1", "--codecs", str(codec)])
    rows = [line.rsplit(maxsplit=2) for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[0] for row in rows] == [
        "coding/encode.py", f"{codec}: imports", f"{codec}: load_codec",
    ]  # fmt: skip
    assert all(0.01 < float(row[1]) < 20 for row in rows[:2])
    peaks = [float(row[2]) for row in rows]
    assert all(5 < peak < 20_000 for peak in peaks), peaks
