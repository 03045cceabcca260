"""The README's commands are run, its snippet executed, its flags and paths checked."""

import os
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
from conftest import toy_feature

from dtufc.codec import load_codec
from dtufc.paths import REPOSITORY

README = (REPOSITORY / "README.md").read_text()
BASH = "\n".join(re.findall(r"```bash\n(.*?)```", README, re.S))
LINES = [line.split("#")[0].strip() for line in BASH.splitlines()]
COMMANDS = [line for line in LINES if "python" in line and not line.startswith("docker")]
DOCKER = [line for line in LINES if line.startswith("docker")]
INLINE = re.findall(r"`(python [^`]+)`", README)
# what would take minutes is run with one epoch of one codec
SHORTER = {"run_batch.py": ["--epochs", "1", "--train_task", "hybrid", "--lambda_value", "0.004"]}


def split_command(command: str) -> tuple[str, list[str]]:
    """``cd a; python b.py --flag`` -> path of the script from the root, its arguments."""
    folder, _, rest = command.rpartition(";")
    parts = shlex.split(rest)
    folder = folder.removeprefix("cd ").strip()
    return os.path.join(folder, parts[1]), parts[2:]


def run(command: list[str], **options) -> subprocess.CompletedProcess:
    return subprocess.run(command, capture_output=True, text=True, **options)


@pytest.mark.slow
def test_the_commands_one_by_one(tmp_path):
    """The block of published commands, in its order, on a fresh data root."""
    environment = dict(os.environ, DTUFC_DATA=str(tmp_path), OMP_NUM_THREADS="1")
    block = [c for c in COMMANDS if c.startswith("cd") and "--" not in c]
    assert [os.path.basename(split_command(c)[0]) for c in block] == [
        "llama3.py", "seg.py", "sd3.py", "cls.py",
        "nonlinear_transform.py", "generate_data.py", "run_batch.py",
    ]  # fmt: skip
    for command in block:
        script, argv = split_command(command)
        folder, name = os.path.split(script)
        done = run(
            [sys.executable, name, *argv, *SHORTER.get(name, [])],
            cwd=REPOSITORY / folder, env=environment,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    assert "uncompressed" in done.stdout
    assert len(list(tmp_path.rglob("summary.json"))) == 4


def test_dry_runs_work_as_written():
    for command in COMMANDS:
        if "--dry_run" in command:
            script, argv = split_command(command)
            done = run([sys.executable, os.path.basename(script), *argv],
                       cwd=REPOSITORY / os.path.dirname(script))  # fmt: skip
            assert done.returncode == 0, done.stderr
            assert "-m dtufc.CompressAI.train" in done.stdout


def test_every_flag_is_known():
    wanted: dict[str, set[str]] = {}
    for command in COMMANDS + INLINE:
        script, argv = split_command(command)
        wanted.setdefault(script, set()).update(a for a in argv if a.startswith("--"))
    assert len(wanted) >= 10
    for script, flags in wanted.items():
        path = REPOSITORY / script
        assert path.is_file(), script
        text = run([sys.executable, str(path), "--help"]).stdout
        unknown = {flag for flag in flags if not re.search(rf"{flag}\b", text)}
        assert not unknown, f"{script}: {unknown}"


def test_container_commands_name_what_is_there():
    """Each machine has its command, in an image that is built; script and preset exist."""
    built = {tag for line in DOCKER for tag in re.findall(r"build -t (\S+) -f", line)}
    for line in DOCKER:
        for path in re.findall(r"-f (\S+)", line):
            assert (REPOSITORY / path).is_file(), path
    runs = [line for line in DOCKER if line.startswith("docker run")]
    assert len(built) == 3
    scripts = []
    for line in runs:
        tag, script, preset = re.search(r"(\S+) python (\S+) --machine (\S+)$", line).groups()
        assert tag in built
        assert (REPOSITORY / script).is_file(), script
        assert (REPOSITORY / "configs" / "machines" / f"{preset}.yaml").is_file()
        scripts.append(os.path.basename(script))
    assert scripts == ["llama3.py", "seg.py", "sd3.py", "cls.py"]


def test_published_flags_are_known():
    text = run(
        [sys.executable, str(REPOSITORY / "coding/CompressAI/run_batch.py"), "--help"]
    ).stdout
    listed = re.search(r"published flags \((.*?)\)", README, re.S).group(1).replace("`", "").split()
    assert len(listed) == 14
    for flag in listed:
        assert re.search(rf"{flag}\b", text), flag


def test_named_paths_exist():
    for path in re.findall(
        r"`((?:dtufc|coding|machines|configs|scripts|results|tests)/[\w./-]*)`", README
    ):
        assert (REPOSITORY / path).exists(), path


def test_the_snippet_runs(untrained):
    """The Python snippet, with a codec folder and a feature at hand."""
    (snippet,) = re.findall(r"```python\n(.*?)```", README, re.S)
    names = {"folder": untrained, "feature": toy_feature(0, 20)}
    exec(snippet, names)
    assert names["decoded"].shape == (1, 1, 20, 128)
    assert np.array_equal(names["decoded"], load_codec(untrained).decode(names["data"]))
