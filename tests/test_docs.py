"""The pages are true: commands run or have known flags, snippets run, paths and links exist, Sphinx is
content. A page is the README, another Markdown file of the root, or one of docs/ and results/.

A bash block below ``<!-- run -->`` is run as it stands, with PLACES replaced. A Python snippet below
``<!-- not run: why -->`` is compiled only.
"""

import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from conftest import toy_feature

from dtufc.codec import load_codec
from dtufc.klt import fit_klt
from dtufc.paths import REPOSITORY

README = REPOSITORY / "README.md"
PAPER = REPOSITORY / "docs/guide/paper.md"
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/*.md", "docs/guide/*.md", "docs/reference/*.md", "results/*.md")
    for path in REPOSITORY.glob(pattern)
)
TEXT = {path: path.read_text() for path in PAGES}
FENCE = re.compile(r"(?:<!-- (?P<mark>[^>]*) -->\n)?```(?P<language>\w+)\n(?P<code>.*?)```", re.S)
PROGRAMS = ("python", "bash", "accelerate", "docker")
ROOMS = "dtufc|coding|machines|configs|docker|docs|scripts|results|tests"
# pages whose every block starts several processes; the tests of their commands always run
SLOW_PAGES = ("cluster", "corpora", "deploying", "kv", "streaming")
# what would take minutes is run with one epoch of one codec
SHORTER = {
    "run_batch.py": [
        "--arch",
        "bmshj2018-hyperprior",
        "--epochs",
        "1",
        "--train_task",
        "hybrid",
        "--lambda_value",
        "0.004",
    ]
}


@dataclass(frozen=True)
class Command:
    """One command of a page."""

    page: str
    folder: Path
    """Where it is run."""
    words: tuple[str, ...]

    @property
    def script(self) -> Path | None:
        """The script of this repository that it runs, if it does. Words in capitals stand for paths."""
        name = next((word for word in self.words if word.endswith((".py", ".sh"))), None)
        ours = name is not None and self.words[0] in PROGRAMS and not re.match("[A-Z]", name)
        return self.folder / name if ours else None

    @property
    def flags(self) -> set[str]:
        """What it tells the script."""
        names = [word.endswith((".py", ".sh")) for word in self.words]
        told = self.words[names.index(True) + 1 :] if True in names else ()
        return {word.partition("=")[0] for word in told if word.startswith("--")}


def blocks(path: Path, language: str) -> list[tuple[str, str]]:
    """(mark, code) of a page's fenced blocks."""
    found = FENCE.finditer(TEXT[path])
    return [(m["mark"] or "", m["code"]) for m in found if m["language"] == language]


def parse(page: str, line: str, folder: Path) -> tuple[list[Command], Path]:
    """A line of a shell -> its commands, and the folder behind it. A ``cd`` to a folder that is not
    there starts at the root: lines of a block may be meant one by one."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|")
    lexer.whitespace_split = True
    found = []
    for joint, group in groupby(lexer, lambda word: set(word) <= set(";&|")):
        words = tuple(group)
        if joint:
            continue
        if words[0] == "cd":
            places = [folder / words[1], REPOSITORY / words[1]]
            folder = next((place.resolve() for place in places if place.is_dir()), folder)
        else:
            found.append(Command(page, folder, words))
    return found, folder


@cache
def commands(path: Path) -> list[Command]:
    """All commands of a page, in bash blocks and inline."""
    page = str(path.relative_to(REPOSITORY))
    found = []
    for _, code in blocks(path, "bash"):
        folder = REPOSITORY
        for line in code.replace("\\\n", " ").splitlines():
            here, folder = parse(page, line, folder)
            found += here
    for line in re.findall(r"`([^`\n]+)`", FENCE.sub("", TEXT[path])):
        if line.startswith(PROGRAMS) and " " in line:
            found += parse(page, line, REPOSITORY)[0]
    return found


COMMANDS = [command for path in PAGES for command in commands(path)]
SCRIPTS = sorted(
    {os.path.relpath(c.script, REPOSITORY) for c in COMMANDS if c.script and c.words[0] != "docker"}
)


def run(command: list[str], **options) -> subprocess.CompletedProcess:
    return subprocess.run(command, capture_output=True, text=True, **options)


@pytest.fixture(scope="module")
def fitted(toy, tmp_path_factory) -> Path:
    """A klt codec folder of the toy features: the one of any rate that is made fastest."""
    folder = tmp_path_factory.mktemp("fitted") / "klt"
    train = toy / "toy" / "hidden" / "feature_train" / "train"
    fit_klt.main(["--features", str(train), "--output", str(folder), "--clusters", "[1]"])
    return folder


def test_the_readme_is_short():
    assert len(TEXT[README].splitlines()) <= 200


def test_there_are_commands_to_check():
    """So that the checks below check something."""
    assert len(SCRIPTS) > 20
    assert sum(1 for c in COMMANDS if "--dry_run" in c.words) >= 2
    assert sum(mark == "run" for path in PAGES for mark, _ in blocks(path, "bash")) >= 2


def run_here(script: Path, argv: Sequence[str], monkeypatch, capsys) -> str:
    """What ``python script argv`` prints, run in this process: test_start.py starts one for each."""
    monkeypatch.setattr(sys, "argv", [str(script), *argv])
    monkeypatch.setattr(sys, "path", [str(script.parent), *sys.path])
    status = None
    with mock.patch.dict(os.environ):
        try:
            runpy.run_path(str(script), run_name="__main__")
        except SystemExit as end:
            status = end.code
    assert not status, status
    return capsys.readouterr().out


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_flag_is_known(script, monkeypatch, capsys):
    path = REPOSITORY / script
    assert path.is_file()
    wanted = [c for c in COMMANDS if c.script and c.script.resolve() == path.resolve()]
    if not any(c.flags for c in wanted):
        return
    python = path.with_suffix(".py")  # a script of the shell hands its flags on
    text = run_here(python, ["--help"], monkeypatch, capsys)
    for command in wanted:
        for flag in command.flags:
            known = re.search(rf"(?<![\w-]){flag}(?![\w-])", text)
            assert known, f"{command.page}: {script} has no {flag}"


@pytest.mark.slow
def test_the_commands_one_by_one(tmp_path):
    """The block of published commands, in its order, on a fresh data root."""
    environment = dict(os.environ, DTUFC_DATA=str(tmp_path), OMP_NUM_THREADS="1")
    code = blocks(PAPER, "bash")[0][1]
    block = [parse("", line, REPOSITORY)[0][0] for line in code.splitlines()]
    assert [command.script.name for command in block] == [
        "llama3.py", "seg.py", "sd3.py", "cls.py",
        "nonlinear_transform.py", "generate_data.py", "run_batch.py",
    ]  # fmt: skip
    for command in block:
        shorter = SHORTER.get(command.script.name, [])
        done = run(
            [sys.executable, *command.words[1:], *shorter], cwd=command.folder, env=environment
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    assert "uncompressed" in done.stdout
    assert len(list(tmp_path.rglob("summary.json"))) == 4


def test_dry_runs_work_as_written(monkeypatch, capsys):
    for command in COMMANDS:
        if "--dry_run" in command.words:
            monkeypatch.chdir(command.folder)
            assert (command.words[0], Path(command.words[1]).suffix) == ("python", ".py")
            out = run_here(command.script, command.words[2:], monkeypatch, capsys)
            assert "-m dtufc.CompressAI.train" in out


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(path, id=path.stem, marks=pytest.mark.slow if path.stem in SLOW_PAGES else ())
        for path in PAGES
        if any(mark == "run" for mark, _ in blocks(path, "bash"))
    ],
)
def test_marked_blocks_run(page, toy, tmp_path):
    features = toy / "toy" / "hidden"
    places = {
        "TRAIN": features / "feature_train" / "train", "TEST": features / "feature_test",
        **{name: tmp_path / name for name in ("CODEC", "STREAMS", "DECODED", "OUT")},
    }  # fmt: skip
    for code in [code for mark, code in blocks(page, "bash") if mark == "run"]:
        code = re.sub(rf"\b({'|'.join(places)})\b", lambda m: str(places[m[0]]), code)
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        environment = dict(os.environ, OMP_NUM_THREADS="1", PATH=path)
        done = run(["bash", "-euc", code], cwd=REPOSITORY, env=environment)
        assert done.returncode == 0, f"{code}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


def test_container_commands_name_what_is_there():
    """Each machine has its command, in an image that is built; script and preset exist."""
    lines = [" ".join(c.words) for c in COMMANDS if c.words[0] == "docker"]
    built = {tag for line in lines for tag in re.findall(r"build -t (\S+) -f", line)}
    for line in lines:
        for path in re.findall(r"-f (\S+)", line):
            assert (REPOSITORY / path).is_file(), path
    assert len(built) == 3
    scripts = []
    for line in lines:
        if line.startswith("docker run"):
            tag, script, preset = re.search(r"(\S+) python (\S+) --machine (\S+)$", line).groups()
            assert tag in built
            assert (REPOSITORY / script).is_file(), script
            assert (REPOSITORY / "configs" / "machines" / f"{preset}.yaml").is_file()
            scripts.append(os.path.basename(script))
    assert scripts == ["llama3.py", "seg.py", "sd3.py", "cls.py"]


def test_published_flags_are_known(monkeypatch, capsys):
    script = REPOSITORY / "coding/CompressAI/run_batch.py"
    text = run_here(script, ["--help"], monkeypatch, capsys)
    listed = re.search(r"published flags \((.*?)\)", TEXT[PAPER], re.S).group(1)
    flags = listed.replace("`", "").split()
    assert len(flags) == 14
    for flag in flags:
        assert re.search(rf"{flag}\b", text), flag


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_named_paths_and_links_exist(page):
    for path in re.findall(rf"`((?:{ROOMS})/[\w./-]*)`", TEXT[page]):
        if not re.search(r"\b[A-Z]{3,}\b", path):  # NAME stands for a name
            assert (REPOSITORY / path).exists(), path
    text = re.sub(r"<!--.*?-->", "", FENCE.sub("", TEXT[page]), flags=re.S)
    for link in re.findall(r"\]\((?!https?:)([^)#\s]+)", text):
        assert (page.parent / link).exists(), link


def run_snippets(page: Path, folder: Path) -> dict:
    """A page's Python snippets, one after the other in one namespace, which is returned."""
    names = {"__name__": "snippet", "folder": folder, "feature": toy_feature(0, 20)}
    for mark, code in blocks(page, "python"):
        snippet = compile(code, str(page), "exec")
        if not mark.startswith("not run:"):
            exec(snippet, names)
    return names


@pytest.mark.parametrize(
    "page", [path for path in PAGES if blocks(path, "python")],
    ids=lambda path: str(path.relative_to(REPOSITORY)),
)  # fmt: skip
def test_the_snippets_run(page, fitted, tmp_path, monkeypatch):
    """With a codec folder and a feature at hand."""
    monkeypatch.chdir(tmp_path)
    run_snippets(page, fitted)


def test_the_readme_decodes_what_it_encodes(untrained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = run_snippets(README, untrained)
    assert names["decoded"].shape == (1, 1, 20, 128)
    assert np.array_equal(names["decoded"], load_codec(untrained).decode(names["data"]))


def test_your_model_is_a_machine(tmp_path):
    """The script and the YAML of the page extract and score."""
    page = REPOSITORY / "docs/guide/your-model.md"
    for language, name in (("python", "my_model.py"), ("yaml", "my_model.yaml")):
        ((_, code),) = blocks(page, language)
        (tmp_path / name).write_text(code)
    environment = dict(os.environ, DTUFC_DATA=str(tmp_path / "data"))
    done = run([sys.executable, "my_model.py"], cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    root = tmp_path / "data" / "mine" / "cls"
    assert np.load(root / "feature_test" / "sample25.npy").shape == (1, 1, 8, 32)
    found = json.loads((root / "accuracy.json").read_text())
    assert found["metric"] == "accuracy" and 0 <= found["value"] <= 1


@pytest.mark.slow
def test_sphinx_renders_all_pages_without_a_warning(tmp_path):
    pytest.importorskip("sphinx", reason="needs Sphinx, which the extra 'docs' brings")
    done = run(
        [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html",
         "-d", str(tmp_path / "trees"), "docs", str(tmp_path / "html")],
        cwd=REPOSITORY,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    for page in ("index", "guide/paper", "results/tiny", "modules/dtufc.codec"):
        assert (tmp_path / "html" / f"{page}.html").is_file(), page
    codec = (tmp_path / "html" / "modules" / "dtufc.codec.html").read_text()
    assert 'id="dtufc.codec.Codec.encode"' in codec
