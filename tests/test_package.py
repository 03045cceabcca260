"""The package as others install it: the wheel, its extras, and coding with what coding needs."""

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from dtufc import config, extras, kernels, load_codec, paths
from dtufc.errors import UserError
from dtufc.paths import PACKAGE, REPOSITORY

sys.path.insert(0, str(REPOSITORY / "scripts"))  # scripts are no package

import small_codecs

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
OWNERS = importlib.metadata.packages_distributions()
"""Module -> the distributions that bring it."""


def closure(requirements: list[str], depth: int = 99) -> set[str]:
    """Names of distributions that are installed with these."""
    found: set[str] = set()
    waiting = [(Requirement(text), depth) for text in requirements]
    while waiting:
        wanted, left = waiting.pop()
        name = canonicalize_name(wanted.name)
        marks = [{"extra": extra} for extra in ("", *wanted.extras)]
        known = name in found and not wanted.extras
        found.add(name)
        try:
            requires = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # of another system, or of no use to the tests
        if left and not known:
            waiting += [
                (each, left - 1)
                for each in map(Requirement, requires)
                if each.marker is None or any(each.marker.evaluate(mark) for mark in marks)
            ]
    return found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from a copy, so that the checkout is left as it is."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(PACKAGE, source / "dtufc", ignore=ignored)
    for path in (REPOSITORY / "pyproject.toml", REPOSITORY / "README.md", REPOSITORY / "LICENSE"):
        if path.is_file():
            shutil.copy(path, source)
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", str(source), "--no-deps", "--no-build-isolation",
         "--quiet", "--wheel-dir", str(folder)], capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (found,) = folder.glob("*.whl")
    return found


def test_the_wheel_holds_the_package_alone(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (metadata,) = (archive.read(name).decode() for name in names if name.endswith("/METADATA"))
    tops = {name.partition("/")[0] for name in names}
    assert tops == {"dtufc", f"dtufc-{PROJECT['version']}.dist-info"}
    assert "License-Expression: Apache-2.0" in metadata
    here = {
        path.relative_to(REPOSITORY).as_posix()
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name for name in names if name.startswith("dtufc/")} == here
    assert {"dtufc/py.typed", "dtufc/report/page.css", "dtufc/report/page.js"} <= names
    assert "dtufc/configs/machines/resnet50_tiny.yaml" in names


def test_every_import_is_declared():
    """All that the package imports is brought by its dependencies or by an extra."""
    modules = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                modules.add(node.module.partition(".")[0])
    foreign = modules - sys.stdlib_module_names - {"dtufc", "lmcache"}  # it is what asks for us
    assert {"torch", "diffusers", "av"} <= foreign
    core = closure(PROJECT["dependencies"])
    unexplained = {
        module
        for module in foreign - {m for names in extras.EXTRAS.values() for m in names}
        if not {canonicalize_name(owner) for owner in OWNERS[module]} & core
    }
    assert unexplained == set()


@pytest.mark.parametrize("extra", extras.EXTRAS)
def test_an_extra_brings_the_modules_that_it_is_named_for(extra):
    brought = closure(PROJECT["optional-dependencies"][extra], depth=1)
    for module in extras.EXTRAS[extra]:
        owners = {canonicalize_name(owner) for owner in OWNERS[module]}
        assert owners & brought, f"{module} of {owners}"


def test_bounds_hold_the_pinned_versions():
    """What requirements.txt pins is what pyproject.toml allows."""
    lines = (REPOSITORY / "requirements.txt").read_text().splitlines()
    pinned = {}
    for line in lines:
        if match := re.match(r"([\w.-]+)(\[[\w,]+\])?==(\S+)", line):
            pinned[canonicalize_name(match[1])] = match[3]
    listed = [*PROJECT["dependencies"]]
    for name, requirements in PROJECT["optional-dependencies"].items():
        listed += requirements if name != "docs" else []
    for requirement in map(Requirement, listed):
        version = pinned[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), requirement


def test_a_missing_extra_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "imagecodecs", None)  # as where it is not installed
    line = r'imagecodecs is not installed; pip install "dtufc\[handcrafted\]" brings it'
    with pytest.raises(UserError, match=line):
        extras.load("imagecodecs")
    with pytest.raises(SystemExit, match=f"error: {line}"), config.report_errors():
        import imagecodecs  # noqa: F401
    with pytest.raises(ModuleNotFoundError), config.report_errors():
        import no_such_module  # noqa: F401


def test_a_codec_tells_of_its_extra(monkeypatch, tmp_path):
    folder = small_codecs.make("jpegxl", "maps", tmp_path)
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    with pytest.raises(UserError, match=r'pip install "dtufc\[handcrafted\]"'):
        load_codec(folder)


def test_kernels_need_no_folder_to_keep_their_code(monkeypatch):
    monkeypatch.setattr("numba.core.caching.CacheImpl._locator_classes", [])

    def double(x):
        return x + x

    compiled = kernels.kernel(double)
    assert compiled(21) == 42
    assert compiled.targetoptions["nogil"]


def test_the_data_root_is_not_where_the_package_is_installed(monkeypatch, tmp_path):
    """Even where another package has left a pyproject.toml beside it."""
    monkeypatch.delenv("DTUFC_DATA", raising=False)
    (tmp_path / "site-packages").mkdir()
    (tmp_path / "site-packages" / "pyproject.toml").touch()
    monkeypatch.setattr(paths, "REPOSITORY", tmp_path / "site-packages")
    monkeypatch.chdir(tmp_path)
    assert paths.default_data_root() == tmp_path / "Data_example"


USE = """
import sys
from pathlib import Path

import dtufc
import numpy as np
from dtufc import decode, encode
from dtufc.paths import default_data_root

assert Path(dtufc.__file__).is_relative_to(sys.prefix), dtufc.__file__
assert default_data_root() == Path.cwd() / "Data_example"
assert dtufc.load_facts("resnet50_tiny").kind == "resnet50_tiny_cls"
for name in sys.argv[1:]:
    argv = ["--codec", f"{name}/codec", "--output"]
    encode.main([*argv, f"{name}/coded", "--input", f"{name}/features"])
    decode.main([*argv, f"{name}/decoded", "--input", f"{name}/coded"])
for module in ("transformers", "diffusers", "mmseg", "plotly", "av", "imagecodecs"):
    assert module not in sys.modules, module
"""


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """The Python of an environment that has the wheel and what its dependencies bring, nothing else:
    links to those packages of this environment."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps",
         str(wheel)], check=True, capture_output=True,
    )  # fmt: skip
    (site,) = folder.glob("lib/python*/site-packages")
    core = closure(PROJECT["dependencies"])
    assert {"torch", "compressai"} <= core
    assert not {"transformers", "diffusers", "mmsegmentation", "plotly", "av", "imagecodecs"} & core
    for distribution in importlib.metadata.distributions():
        if canonicalize_name(distribution.name) in core:
            tops = {path.parts[0] for path in distribution.files} - {"..", "__pycache__"}
            for top in tops:
                place = Path(distribution.locate_file(top))
                if place.exists() and not (site / top).exists():
                    (site / top).symlink_to(place.resolve())
    return python


def run(python: Path, *argv: str, folder: Path) -> subprocess.CompletedProcess:
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "DTUFC_DATA")}
    return subprocess.run(
        [str(python), *argv], cwd=folder, env=environment, capture_output=True, text=True
    )


def test_an_installation_codes(installed, tmp_path):
    """In another folder, with no extra: a fitted codec and a learned one, the latter with the very
    bytes and values that this environment gives."""
    small_codecs.make("hyperprior", "tokens", tmp_path / "hyperprior")
    machine = small_codecs.write_machine(tmp_path / "klt", "tokens")
    small_codecs.write_features(tmp_path / "klt" / "features", "tokens", 12)
    fit = ["-m", "dtufc.klt.fit_klt", "--features", "klt/features", "--machine", str(machine),
           "--clusters", "[2]", "--output", "klt/codec"]  # fmt: skip
    done = run(installed, *fit, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    done = run(installed, "-c", USE, "klt", "hyperprior", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "bpfp" in done.stdout
    for name in ("klt", "hyperprior"):
        codec = load_codec(tmp_path / name / "codec")
        features = sorted((tmp_path / name / "features").glob("*.npy"))
        assert len(features) == 12
        for path in features:
            data = (tmp_path / name / "coded" / f"{path.stem}.ufc").read_bytes()
            decoded = np.load(tmp_path / name / "decoded" / path.name)
            assert data == codec.encode(np.load(path))
            assert np.array_equal(decoded, codec.decode(data))


@pytest.mark.parametrize(
    ("module", "flags", "extra"),
    [
        ("dtufc.machines.resnet50.cls", [], "machines"),
        ("dtufc.machines.llama3.llama3", [], "machines"),
        ("dtufc.CompressAI.train", ["--patches", "x", "--output", "y"], "train"),
        ("dtufc.handcrafted.fit_handcrafted", ["--codec", "hevc"], "handcrafted"),
        ("dtufc.machines.sd3.sd3", ["--help"], None),
    ],
)
def test_an_installation_names_the_extra(installed, tmp_path, module, flags, extra):
    if "fit" in module:
        machine = small_codecs.write_machine(tmp_path, "maps")
        features = small_codecs.write_features(tmp_path / "features", "maps", 2)
        flags = [*flags, "--machine", str(machine), "--features", str(features), "--output", "x"]
    done = run(installed, "-m", module, *flags, folder=tmp_path)
    if extra is None:
        assert done.returncode == 0, done.stderr
        return
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert re.fullmatch(
        rf'error: \w+ is not installed; pip install "dtufc\[{extra}\]" brings it', last
    )
    assert "Traceback" not in done.stderr
