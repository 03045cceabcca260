"""A cluster of several nodes on this machine: tasks, lost workers, a killed node, and equal results.

Ray takes seconds to start, and many more on a machine that does other work; nothing here is timed.
"""

import contextlib
import csv
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from test_corpora import SAMPLES, argv, feature

from dtufc import cluster, config
from dtufc.corpora import code
from dtufc.corpora.shards import list_shards
from dtufc.errors import UserError
from dtufc.experiments import driver
from dtufc.experiments.jobs import Job, JobError
from dtufc.experiments.ray_engine import Needs, RayEngine
from dtufc.feature import write_feature
from dtufc.paths import REPOSITORY

SCRIPT = REPOSITORY / "coding" / "CompressAI" / "run_batch.py"
NODE = {"object_store_memory": 100 << 20, "include_dashboard": False}
PATIENCE = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_register_timeout_seconds": "600",
    "RAY_agent_register_timeout_ms": "600000",
    "RAY_raylet_start_wait_time_s": "600",
}
"""Environment of the nodes: their own time-outs suit a machine that does nothing else."""
DEADLINE = 900
"""Seconds that a test waits for something to happen before it fails."""


@pytest.fixture(scope="module")
def nodes():
    """A head without cores and two nodes of one core each."""
    pytest.importorskip("ray", reason='needs Ray, which the extra "ray" brings')
    with pytest.MonkeyPatch.context() as patch:
        for name, value in PATIENCE.items():
            patch.setenv(name, value)
        from ray.cluster_utils import Cluster

        # agents of a minimal installation, which start in a fraction of the time
        missing = ImportError("no dashboard in tests")
        patch.setattr("ray._private.utils.get_dashboard_dependency_error", lambda: missing)
        found = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **NODE})
        try:
            for _ in range(2):
                found.add_node(num_cpus=1, **NODE)
            yield found
        finally:
            found.shutdown()


def is_running(pid: int) -> bool:
    """Whether a process computes; one that has ended may wait for its parent to take note."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def await_(holds):
    deadline = time.monotonic() + DEADLINE
    while not holds():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.1)


@contextlib.contextmanager
def started(nodes, command: list[str], log: Path, **options):
    """A command that runs beside the block; it ends with it, and the cluster has two nodes again."""
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, **options)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()
        while len(nodes.worker_nodes) < 2:
            nodes.add_node(num_cpus=1, **NODE)


def job(folder: Path, name: str, text: str, **values) -> Job:
    """A command that runs some Python and imports nothing of note."""
    return Job(name, [sys.executable, "-c", text], folder / f"{name}.log", **values)


def half_done(folder: Path, name: str, text: str) -> Job:
    """A command that has something left to do as long as ``<name>.done`` is missing."""
    begun, done = folder / f"{name}.begun", folder / f"{name}.done"
    command = [sys.executable, "-c", text, str(begun), str(done), name]

    def left() -> list[Job]:
        return [] if done.exists() else [found]

    found = Job(name, command, folder / f"{name}.log", again=left)
    return found


def test_commands_are_tasks(nodes, tmp_path, capfd):
    """All are run, on both nodes; what a lost worker leaves is done once; a failure ends the others."""
    with RayEngine.open(nodes.address, tmp_path, Needs(1, None, 2)) as engine:
        # each waits for the other: they run at once, and so on different nodes
        text = (
            "import os, pathlib, sys, time\n"
            f"here = pathlib.Path({str(tmp_path)!r})\n"
            "(here / sys.argv[1]).write_text(os.environ['OMP_NUM_THREADS'])\n"
            "while not (here / sys.argv[2]).exists(): time.sleep(0.1)\n"
        )
        pair = [job(tmp_path, name, text) for name in ("one", "two")]
        for each, names in zip(pair, (("a", "b"), ("b", "a")), strict=True):
            each.command.extend(names)
        engine.run(pair)
        assert (tmp_path / "a").read_text() == (tmp_path / "b").read_text() == "1"
        log = (tmp_path / "one.log").read_text()
        assert log.startswith(sys.executable)
        assert re.search(r"^on node \S+, attempt 1$", log, re.MULTILINE)

        # a worker is killed when its command has done half, another when its command has done all
        text = (
            "import os, pathlib, signal, sys, time\n"
            "half, whole = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])\n"
            "first = not half.exists()\n"
            "with half.open('a') as file: file.write('x')\n"
            "if not first or sys.argv[3] == 'whole': whole.touch()\n"
            "if first: os.kill(os.getppid(), signal.SIGKILL); time.sleep(600)\n"
        )
        jobs = [half_done(tmp_path, name, text) for name in ("half", "whole")]
        engine.run(jobs)
        assert (tmp_path / "half.begun").read_text() == "xx"
        assert (tmp_path / "whole.begun").read_text() == "x"
        assert "attempt 2" in (tmp_path / "half.log").read_text()
        out = capfd.readouterr().out
        assert re.search(r"half: its worker or node was lost \(\w+\); attempt 2", out)
        assert re.search(r"whole: its worker or node was lost \(\w+\), when all was done", out)

        # and another one whenever it is tried
        text = "import os, signal; os.kill(os.getppid(), signal.SIGKILL)"
        engine = RayEngine(engine._ray, engine._proof, Needs(1, None, 0))
        with pytest.raises(JobError, match=r"never: its worker or node was lost 1 times"):
            engine.run([job(tmp_path, "never", text)])

        text = "import os, sys, time; print(os.getpid(), flush=True); time.sleep(600)"
        waits, fails = (
            job(tmp_path, "waits", text),
            job(tmp_path, "fails", "raise SystemExit('why')"),
        )
        with pytest.raises(JobError, match=r"(?s)fails: ended with status 1.*why"):
            engine.run([waits, fails])
        lines = waits.log.read_text().splitlines() if waits.log.is_file() else []
        if len(lines) > 2:  # it had begun
            await_(lambda: not is_running(int(lines[2])))
    assert not list(tmp_path.glob(".cluster-*"))


@pytest.mark.slow
def test_a_data_root_that_is_not_shared_is_told(nodes, tmp_path):
    with RayEngine.open(nodes.address, tmp_path, Needs(1, None, 2)) as engine:
        (tmp_path / "elsewhere").mkdir()
        other = RayEngine(engine._ray, tmp_path / "elsewhere" / "proof", Needs(1, None, 2))
        with pytest.raises(UserError, match=r"elsewhere of the driver is not seen on node "):
            other.run([job(tmp_path, "x", "pass")])
        with pytest.raises(UserError, match=r"/no/python: not on node .*at the same path"):
            engine.run([Job("y", ["/no/python"], tmp_path / "y.log")])


def test_no_cluster_is_told():
    told = pytest.raises(UserError, match=r"address: no cluster of Ray at '127\.0\.0\.1:1'")
    with told, cluster.connect("127.0.0.1:1"):
        pass


def test_a_missing_extra_is_told(tmp_path, monkeypatch, codec_and_features):
    monkeypatch.setitem(sys.modules, "ray", None)  # as where it is not installed
    codec, features = codec_and_features
    line = r'ray is not installed; pip install "dtufc\[ray\]" brings it'
    with pytest.raises(UserError, match=line), cluster.connect(""):
        pass
    with pytest.raises(SystemExit, match=line):
        code.main(argv(codec, tmp_path / "out", input=features, engine="ray"))


def test_flags_of_the_engine(capsys):
    for flags, text in (
        (["--address", "auto"], "address: goes with --engine ray"),
        (["--engine", "ray", "--cpus_per_job", "0"], "cpus_per_job: must be at least 1"),
        (["--engine", "ray", "--retries", "-1"], "retries, gpus_per_job: must be at least 0"),
        (["--engine", "ray", "--device", "cuda:1"], "expected the kind, such as cuda"),
        (["--engine", "slurm"], "engine"),
    ):
        with pytest.raises(SystemExit):
            driver.main(flags)
        assert text in capsys.readouterr().err


def test_the_guides_commands_are_sound():
    """Those that no test can run, in the files for SLURM and Kubernetes too."""
    text = (REPOSITORY / "docs" / "guide" / "cluster.md").read_text().replace("\\\n", " ")
    for name, kind, least in (
        ("coding/CompressAI/run_batch.py", driver.BatchConfig, 4),
        ("scripts/code_corpus.py", code.CodeConfig, 2),
    ):
        lines = re.findall(rf"python {name} ([^\n`#]*)", text)
        assert len(lines) >= least
        engines = {config.parse(kind, line.split(), "").engine for line in lines}
        assert "ray" in engines
    (job,) = (yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", text, re.S))
    assert job["kind"] == "RayJob" and job["spec"]["entrypoint"].startswith("python coding/")
    pinned = re.search(r"^ray\[.*\]==(\S+)", (REPOSITORY / "requirements.txt").read_text(), re.M)
    assert job["spec"]["rayClusterSpec"]["rayVersion"] == pinned[1]


def test_the_local_engine_does_not_load_ray():
    text = "import sys\nfrom dtufc.experiments import driver\nfrom dtufc.corpora import code\n"
    text += "driver.BatchConfig().batch()\nassert 'ray' not in sys.modules"
    subprocess.run([sys.executable, "-c", text], check=True)


@pytest.fixture
def codec_and_features(golden_folder, tmp_path):
    for seed in range(SAMPLES):
        write_feature(tmp_path / "x" / f"f{seed}.npy", feature(seed))
    return golden_folder("cast"), tmp_path / "x"


@pytest.mark.slow
def test_a_batch_survives_a_node(nodes, suite, tmp_path):
    """Two of three nodes are killed while both codecs train; the table is the local engine's, byte for
    byte."""
    flags = [*suite, "--epochs", "60"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    root, name = tmp_path / "root", "coded/suite_kmeans10_bitdepth8.csv"
    twin = tmp_path / "twin"
    subprocess.run(["cp", "-r", str(root), str(twin)], check=True)
    flags_of_twin = [str(twin) if each == str(root) else each for each in flags]
    subprocess.run([sys.executable, str(SCRIPT), *flags_of_twin], env=environment, check=True)

    command = [sys.executable, str(SCRIPT), *flags, "--engine", "ray", "--address", nodes.address]
    nodes.add_node(num_cpus=1, **NODE)
    log = tmp_path / "driver.log"
    with started(nodes, command, log, env=environment) as process:
        # one training at least is on a node that goes
        await_(lambda: len([*root.rglob("state.pt")]) == 2 or process.poll() is not None)
        assert process.poll() is None, log.read_text()
        for node in [*nodes.worker_nodes][:2]:
            nodes.remove_node(node, allow_graceful=False)
        assert process.wait(DEADLINE) == 0, log.read_text()
    assert "attempt 2" in log.read_text()
    assert (root / name).read_bytes() == (twin / name).read_bytes()
    done = subprocess.run(command[:-4], env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and " -m " not in done.stdout  # all of it is current


@pytest.mark.slow
def test_a_corpus_survives_its_nodes(nodes, golden_folder, tmp_path):
    """Both nodes are killed when some shards are done, and two others come. The shards are the local
    ones."""
    codec, features = golden_folder("cast"), tmp_path / "x"
    for seed in range(300):  # so many that the actors are at work when the nodes go
        write_feature(features / f"f{seed:03d}.npy", feature(seed))
    flags = {"input": features, "shard_samples": 1, "frame_rows": 1}
    code.main(argv(codec, tmp_path / "local", **flags))
    out = tmp_path / "ray"
    script = REPOSITORY / "scripts" / "code_corpus.py"
    command = [sys.executable, str(script), *argv(codec, out, **flags, engine="ray")]
    log = tmp_path / "driver.log"
    with started(nodes, [*command, "--address", nodes.address], log) as process:
        await_(lambda: len([*out.glob("*.done.json")]) > 4 or process.poll() is not None)
        assert process.poll() is None, log.read_text()
        for node in [*nodes.worker_nodes]:
            nodes.remove_node(node, allow_graceful=False)
        for _ in range(2):
            nodes.add_node(num_cpus=1, **NODE)
        assert process.wait(DEADLINE) == 0, log.read_text()
    assert "an actor or node was lost" in log.read_text()
    shards = [*zip(*map(list_shards, (out, tmp_path / "local")), strict=True)]
    assert len(shards) == 300
    assert all(one.read_bytes() == other.read_bytes() for one, other in shards)


@pytest.mark.slow
def test_bench_cluster(tmp_path):
    script = REPOSITORY / "scripts" / "bench_cluster.py"
    sizes = ["--jobs", "2", "--shards", "2", "--shard_samples", "2"]
    command = [sys.executable, str(script), "--workers", "1", "--simulated", "2", *sizes]
    command += ["--output", str(tmp_path / "cluster.csv")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [line.split() for line in done.stdout.splitlines() if "per_second" not in line]
    found = [(row[0], row[1], "yes" in row) for row in rows if row[0] in ("commands", "features")]
    assert found == [
        ("commands", "1", False), ("features", "1", False),
        ("commands", "2", True), ("features", "2", True),
    ]  # fmt: skip
    with (tmp_path / "cluster.csv").open() as file:
        assert [(row["what"], row["workers"]) for row in csv.DictReader(file)] == [
            row[:2] for row in found
        ]
