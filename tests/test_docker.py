"""The dockerfiles, read as text: what they copy, install and run is there. No daemon is needed."""

import json
import re
import shlex
import subprocess
from itertools import pairwise
from pathlib import Path, PurePosixPath

import pytest

from dtufc.paths import REPOSITORY

SCRIPTS = {
    "dockerfile_compressai_llama3": "machines/llama3/llama3.py",
    "dockerfile_dinov2": "machines/dinov2/seg.py",
    "dockerfile_sd3": "machines/sd3/sd3.py",
}
IN_BASE = {"apt-get", "grep", "rm", "python3"}  # that the Ubuntu of the base image has
KEPT_OUT = [".git/HEAD", ".venv/bin/python", "Data_example/llama3/csr/a.npy", ".ruff_cache/x",
            "dtufc/__pycache__/files.pyc", "dtufc.egg-info/PKG-INFO", ".pytest_cache/x"]  # fmt: skip
SENT = ["requirements.txt", "pyproject.toml", "README.md", "dtufc/files.py", "dtufc/machines/machine.py",
        "dtufc/configs/machines/llama3.yaml", "scripts/test.sh", "tests/conftest.py",
        "dtufc/machines/tiny/resnet50/model.safetensors"]  # fmt: skip


def instructions(text: str) -> list[tuple[str, str]]:
    """(instruction, arguments) in order; comments dropped, continued lines joined."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines()
    pairs = (line.strip().partition(" ") for line in joined if line.strip())
    return [(name.upper(), arguments.strip()) for name, _, arguments in pairs]


def is_ignored(path: str, patterns: list[str]) -> bool:
    """Whether .dockerignore keeps a path out: patterns start at the root, a folder's takes all below
    it, ``**`` stands for any folders and ``!`` lets in again; the last that matches counts."""
    ignored = False
    parts = PurePosixPath(path).parts
    heads = ["/".join(parts[:n]) for n in range(1, len(parts) + 1)]
    for pattern in patterns:
        body = re.escape(pattern.lstrip("!").strip("/"))
        body = body.replace(r"\*\*/", "(?:.*/)?").replace(r"\*\*", ".*").replace(r"\*", "[^/]*")
        if any(re.fullmatch(body, head) for head in heads):
            ignored = not pattern.startswith("!")
    return ignored


def ignore_patterns(root: Path) -> list[str]:
    lines = (root / ".dockerignore").read_text().splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def problems(text: str, root: Path) -> list[str]:
    """What would make a build from ``root``, or the default command, fail."""
    found = []
    patterns = ignore_patterns(root)
    programs, made = set(IN_BASE), set()

    def missing(path: str) -> bool:
        return not (root / path).exists() or is_ignored(path, patterns)

    for name, arguments in instructions(text):
        if name == "FROM":
            pin = re.search(r"^torch==(\S+)", (root / "requirements.txt").read_text(), re.M)
            if not re.fullmatch(rf"pytorch/pytorch:{re.escape(pin[1])}-cuda[^@]*", arguments):
                found.append(f"FROM {arguments}: torch is not {pin[1]}")
        elif name == "COPY":
            found += [f"COPY {path}" for path in shlex.split(arguments)[:-1] if missing(path)]
        elif name == "CMD":
            paths = [part for part in json.loads(arguments) if "/" in part]
            found += [f"CMD {path}" for path in paths if missing(path)]
        elif name == "RUN":
            for command in arguments.split("&&"):
                words = shlex.split(command)
                if words[0] not in programs:
                    found.append(f"RUN {words[0]}: not in the image")
                if "venv" in words:
                    programs.add("python")
                made |= {after for word, after in pairwise(words) if word == ">"}
                for word, path in pairwise(words):
                    if word == "-r" and path not in made and missing(path):
                        found.append(f"RUN pip install -r {path}")
    return found


@pytest.mark.parametrize("name", SCRIPTS)
def test_what_a_dockerfile_names_is_there(name):
    text = (REPOSITORY / "docker" / name).read_text()
    assert problems(text, REPOSITORY) == []
    assert f"docker build -t dtufc_{name.split('_')[-1]} -f docker/{name} .\n" in text
    last = instructions(text)[-1]
    assert last == ("CMD", json.dumps(["python", SCRIPTS[name], "--help"]))


def test_the_three_differ_in_comment_and_command_only():
    bodies = set()
    for name in SCRIPTS:
        lines = (REPOSITORY / "docker" / name).read_text().splitlines()
        assert len(lines) <= 30
        head = next(i for i, line in enumerate(lines) if not line.startswith("#"))
        assert lines[-1].startswith("CMD ")
        bodies.add("\n".join(lines[head:-1]))
    assert len(bodies) == 1
    assert {path.name for path in (REPOSITORY / "docker").iterdir()} == set(SCRIPTS)


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_revision_is_an_optional_argument(name):
    """After all that is built, in the environment of what runs; empty where none is given."""
    text = (REPOSITORY / "docker" / name).read_text()
    names = [instruction for instruction, _ in instructions(text)]
    at = names.index("ARG")
    assert instructions(text)[at : at + 2] == [
        ("ARG", "REVISION="),
        ("ENV", "DTUFC_REVISION=$REVISION"),
    ]
    assert not {"RUN", "COPY"} & set(names[at:])
    comment = re.search(r"^# --build-arg REVISION=\$\((git describe .*)\)$", text, re.M)
    # as dtufc.records.git_revision asks git itself
    assert comment.group(1).split() == ["git", "describe", "--always", "--dirty", "--abbrev=12"]


def test_the_cached_layer_takes_all_requirements_but_the_project():
    text = (REPOSITORY / "docker" / "dockerfile_sd3").read_text()
    step, _ = re.search(r"^RUN (grep .*) > (\S+) && python -m pip .*-r \2$", text, re.M).groups()
    done = subprocess.run(shlex.split(step), capture_output=True, text=True, cwd=REPOSITORY)
    lines = (REPOSITORY / "requirements.txt").read_text().splitlines()
    assert lines[-1] == "-e ."
    assert done.stdout.splitlines() == lines[:-1]


def test_ignore_file():
    patterns = ignore_patterns(REPOSITORY)
    assert [path for path in KEPT_OUT if not is_ignored(path, patterns)] == []
    assert [path for path in SENT if is_ignored(path, patterns)] == []
    assert all((REPOSITORY / path).is_file() for path in SENT)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("FROM pytorch/pytorch:2.10.0-cuda12.8-cudnn9-runtime", "torch is not 2.11.0"),
        ("FROM pytorch/pytorch:2.11.01-cuda12.8", "torch is not 2.11.0"),
        ("COPY requirements.txt setup.py ./", "COPY setup.py"),
        ("COPY secret ./", "COPY secret"),
        ("RUN git clone https://example.org/a", "RUN git: not in the image"),
        ("RUN apt-get update && \\\n    curl -O x", "RUN curl: not in the image"),
        ("RUN python -m pip install x", "RUN python: not in the image"),
        ("RUN python3 -m pip install -r other.txt", "RUN pip install -r other.txt"),
        ('CMD ["python", "machines/none.py"]', "CMD machines/none.py"),
        ('CMD ["python", "cache/deep/a.py"]', "CMD cache/deep/a.py"),
    ],
)
def test_what_is_wrong_is_found(tmp_path, line, problem):
    (tmp_path / "requirements.txt").write_text("numpy==1.26.4\ntorch==2.11.0  # networks\n")
    (tmp_path / ".dockerignore").write_text("# kept out\nsecret\n**/deep\n!machines/deep\n")
    (tmp_path / "secret").touch()
    for folder in ("cache", "machines"):
        (tmp_path / folder / "deep").mkdir(parents=True)
        (tmp_path / folder / "deep" / "a.py").touch()
    sound = (
        "# RUN none\nFROM pytorch/pytorch:2.11.0-cuda12.8-cudnn9-runtime\nCOPY requirements.txt ./\n"
        "RUN python3 -m venv /v && python -m pip install -r requirements.txt\n"
        "RUN grep a b > /tmp/c && python -m pip install -r /tmp/c\n"
        'CMD ["python", "machines/deep/a.py"]\n'
    )
    assert problems(sound, tmp_path) == []
    (found,) = problems(line + "\n", tmp_path)
    assert problem in found
