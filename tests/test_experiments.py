"""The driver: sweep, skip, continue after a kill, stop with the log's tail, print the table."""

import csv
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import toy_feature, train_config

from dtufc import files
from dtufc.codec import load_codec
from dtufc.config import to_argv
from dtufc.experiments import driver, forked, jobs
from dtufc.experiments.jobs import Job, JobError, read_progress, run_jobs
from dtufc.experiments.plan import TRAIN
from dtufc.experiments.suite import Row, load_suite, select, trainings
from dtufc.feature import write_feature
from dtufc.klt.model import HIGHEST, LOWEST
from dtufc.paths import CONFIGS, PACKAGE, REPOSITORY
from dtufc.registry import find_codec
from dtufc.threads import cores

SCRIPT = REPOSITORY / "coding" / "CompressAI" / "run_batch.py"


def test_batch_end_to_end(suite, tmp_path, capsys):
    driver.main([*suite, "--jobs", "2"])
    out = capsys.readouterr().out
    for command in ("transform.nonlinear_transform", "transform.generate_data", "CompressAI.train",
                    "evaluate"):  # fmt: skip
        assert f"-m dtufc.{command} " in out
    table = tmp_path / "root" / "coded" / "suite_kmeans10_bitdepth8.csv"
    with table.open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["lambda_value"]) for row in rows] == [0.01, 0.05]
    assert {row["evaluated_on"] for row in rows} == {"toy_hidden"}
    assert all(0 < float(row["bpfp"]) < 8 and float(row["mse"]) > 0 for row in rows)
    for row in rows:
        assert row["bpfp"][:6] in out or f"{float(row['bpfp']):.4g}" in out

    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "root").rglob("model.safetensors")}
    assert len(stamps) == 4
    for path in (tmp_path / "root").rglob("*"):
        if path.is_file():
            os.utime(path, (2e9, 2e9))  # touching redoes nothing
    driver.main(suite)
    again = capsys.readouterr().out
    assert " -m " not in again
    assert f"{float(rows[0]['bpfp']):.4g}" in again
    assert all((tmp_path / "root" / path).is_file() for path in stamps)


def jobs_of(out: str) -> list[str]:
    """The first words of the titles of all commands that a batch printed."""
    lines = out.splitlines()
    return [line.split()[0] for line, after in pairwise(lines) if " -m dtufc." in after]


def test_only_what_depends_on_a_change_is_made_again(suite, tmp_path, capsys):
    """By content: an older file with other values counts, a newer time does not."""
    one = [*suite, "--lambda_value", "0.05"]
    driver.main(one)
    assert jobs_of(capsys.readouterr().out) == ["fit", "patches", "train", "code"]
    hidden = tmp_path / "root" / "toy" / "hidden"

    def replace(path, seed):
        """Other features, in a file that is older than all that was made of it."""
        write_feature(path, toy_feature(seed, np.load(path).shape[2]))
        os.utime(path, (1e9, 1e9))

    replace(hidden / "feature_test" / "t1.npy", 500)
    before = {p.name: p.read_bytes() for p in (tmp_path / "root").rglob("coded/**/*.ufc")}
    results = next((tmp_path / "root").rglob("coded/**/rate.csv"))
    kept = results.parent / "decoded" / "t0.npy"
    when = kept.stat().st_mtime_ns
    driver.main(one)
    out = capsys.readouterr().out
    assert jobs_of(out) == ["code"]
    assert "content of features/t1.npy has changed" in out
    after = {p.name: p.read_bytes() for p in (tmp_path / "root").rglob("coded/**/*.ufc")}
    assert before["t1.ufc"] != after["t1.ufc"]
    assert before["t0.ufc"] == after["t0.ufc"]
    assert kept.stat().st_mtime_ns == when  # of the other features nothing was coded again

    patches = next((tmp_path / "root").rglob("crop_*"))
    stays = (patches / "test" / "f0_p00.npy").stat().st_mtime_ns
    replace(hidden / "feature_train" / "test" / "f1.npy", 501)  # no part of the mapping's fit
    driver.main(one)
    assert jobs_of(capsys.readouterr().out) == ["patches", "train", "code"]
    assert (patches / "test" / "f0_p00.npy").stat().st_mtime_ns == stays

    replace(hidden / "feature_train" / "train" / "f3.npy", 502)
    driver.main(one)
    assert jobs_of(capsys.readouterr().out) == ["fit", "patches", "train", "code"]
    (hidden / "feature_test" / "t2.npy").unlink()
    driver.main(one)
    out = capsys.readouterr().out
    assert jobs_of(out) == ["code"]
    assert "features/t2.npy is gone" in out
    assert not (results.parent / "decoded" / "t2.npy").exists()
    driver.main(one)
    assert jobs_of(capsys.readouterr().out) == []


@pytest.mark.slow
def test_what_was_put_there_by_hand_is_kept(suite, tmp_path, capsys):
    """A published mapping and a pretrained codec have no records, and are never replaced."""
    one = [*suite, "--lambda_value", "0.05"]
    driver.main(one)
    capsys.readouterr()
    mapping = next((tmp_path / "root").rglob("transform_mapping_*_bitdepth8.json"))
    mapping.with_name(f"{mapping.stem}_fit.json").unlink()
    codec = next((tmp_path / "root" / "codecs").rglob("config.json"))
    for record in (tmp_path / "root" / "codecs").rglob("run.json"):
        record.unlink()
    path = tmp_path / "root" / "toy" / "hidden" / "feature_train" / "train" / "f3.npy"
    write_feature(path, toy_feature(600, 64))
    content = mapping.read_bytes(), codec.read_bytes()
    driver.main(one)
    assert jobs_of(capsys.readouterr().out) == ["patches"]
    assert (mapping.read_bytes(), codec.read_bytes()) == content


@pytest.mark.slow
def test_seeds_have_folders_of_their_own(suite, tmp_path, capsys):
    """Two seeds of one row, and one that the flag asks for; the table gives their mean and spread."""
    path = tmp_path / "suite.yaml"
    values = yaml.safe_load(path.read_text())
    values["rows"][0] |= {"lambda_value": [0.05], "seeds": [0, 1]}
    path.write_text(yaml.safe_dump(values))
    (row,) = driver.run_batch(driver.config.parse(driver.BatchConfig, suite))
    assert row.seeds == 2
    summaries = [files.read_json(p) for p in (tmp_path / "root" / "coded").rglob("summary.json")]
    rates = [summary["bpfp_pooled"] for summary in summaries]
    assert len(set(rates)) == 2
    assert row.bpfp == pytest.approx(np.mean(rates))
    assert row.bpfp_spread == pytest.approx(np.std(rates, ddof=1))
    assert row.value_spread is None
    names = {p.parent.name for p in (tmp_path / "root" / "codecs").glob("*/*/*/*/run.json")}
    assert len(names) == 2
    assert sum(name.endswith("_seed1") for name in names) == 1
    capsys.readouterr()
    driver.main([*suite, "--seed", "2", "--dry_run"])
    out = capsys.readouterr().out
    assert jobs_of(out) == ["train", "code"]
    assert "_seed2" in out


def test_runs_tell_what_differs_in_their_names():
    values = {"codec": "hyperprior", "train_task": "seg", "lambda_value": [0.01], "epochs": 5}
    plain = Row(**values, batch_size=4)
    assert trainings(plain)[0].name == "lambda0.01_epochs5_lr0.0001_bs4_patch256-256"
    others = (
        {"seeds": [3]}, {"arch": {"N": 64}}, {"schedule": "cosine"}, {"patches_per_file": 2},
        {"arch": {"N": 64, "M": 96}},
    )  # fmt: skip
    names = [trainings(Row(**values, batch_size=4, **other))[0].name for other in others]
    assert len({*names, trainings(plain)[0].name}) == 6
    assert names[-1].endswith("_M96_N64")


def test_a_killed_driver_leaves_no_training_behind(suite, tmp_path):
    """The system ends what the driver had started, and a second driver waits for the folder's lock."""
    command = [sys.executable, str(SCRIPT), *suite, "--epochs", "4000", "--save_period", "4000"]
    environment = dict(os.environ, OMP_NUM_THREADS="1")
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    deadline = time.time() + 120
    while not list((tmp_path / "root").rglob("state.pt")) and time.time() < deadline:
        time.sleep(0.05)
    folder = next((tmp_path / "root").rglob("state.pt")).parent
    child = int((folder / ".lock").read_text())
    os.kill(child, 0)  # it lives
    part = folder / f".0123456789abcdef{files.PART}"
    part.write_bytes(b"what a kill leaves")
    waiting = subprocess.Popen(
        [sys.executable, "-c", f"from dtufc import locks\nwith locks.hold({str(folder)!r}): pass"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert f"waiting for process {child}" in waiting.stdout.readline()
    assert waiting.poll() is None
    process.kill()
    process.wait()
    assert waiting.wait(timeout=30) == 0  # the lock is free as soon as the training has ended
    assert not part.exists()
    while time.time() < deadline:
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    raise AssertionError("the training lives on")


def test_suites_state_their_transform(capsys, tmp_path):
    argv = ["--suite", "native", "--data_root", str(tmp_path), "--dry_run"]
    driver.main(argv)
    out = capsys.readouterr().out
    assert "--transform_type uniform" in out
    assert "uniform0_bitdepth8_continuous" in out
    driver.main([*argv, "--transform_type", "density"])
    assert "density0_bitdepth8_continuous" in capsys.readouterr().out


def test_killed_batch_continues(suite, tmp_path):
    command = [sys.executable, str(SCRIPT), *suite, "--epochs", "60"]
    environment = dict(os.environ, OMP_NUM_THREADS="1")
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.time() + 120
    while not list((tmp_path / "root").rglob("state.pt")) and time.time() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    state = next((tmp_path / "root").rglob("state.pt"))
    assert not (state.parent / "config.json").exists()
    log = state.parent / "log.csv"
    done = len(log.read_text().splitlines()) - 1 if log.exists() else 0
    driver.main([*suite, "--epochs", "60", "--lambda_value", "0.01", "--pipeline_config", "train"])
    assert files.read_json(state.parent / "run.json")["finished"]
    assert len(log.read_text().splitlines()) == 61
    assert done < 60


def test_dry_run_makes_nothing(suite, tmp_path, capsys):
    driver.main([*suite, "--dry_run", "true"])
    out = capsys.readouterr().out
    assert out.count("dtufc.CompressAI.train") == 2
    assert out.count("dtufc.evaluate") == 2
    assert not list((tmp_path / "root").rglob("*.json"))


def test_failure_shows_the_end_of_the_log(suite, tmp_path):
    with pytest.raises(SystemExit, match=r"ended with status 1; the end of .*train\.log") as caught:
        driver.main([*suite, "--learning_rate", "1e30"])
    assert "learning_rate" in str(caught.value)


def test_progress_is_read_off_the_last_bar_of_a_log(tmp_path):
    """Whatever bars a command draws, at any rate of updates, and whatever it prints between."""
    log = tmp_path / "a.log"
    code = """
import sys, tqdm
for _ in tqdm.tqdm(range(7), desc="layouts, block 1"): pass
print("50% of it | 3/4 done")
bar = tqdm.tqdm(total=40, desc="tables", unit="x")
bar.update(13); bar.refresh()
sys.stderr.flush(); sys.stdout.flush(); import os; os._exit(0)
"""
    assert read_progress_of("print('no bar')", log) is None
    assert read_progress_of(code, log) == ("tables", 13, 40)


def read_progress_of(code: str, log: Path) -> tuple[str, int, int] | None:
    run_jobs([Job("it", [sys.executable, "-c", code], log)])
    return read_progress(log)


def test_jobs_stop_together(tmp_path):
    fail = Job("fail", [sys.executable, "-c", "raise SystemExit('the reason')"], tmp_path / "a.log")
    wait = Job("wait", [sys.executable, "-c", "import time; time.sleep(60)"], tmp_path / "b.log")
    start = time.time()
    with pytest.raises(JobError, match=r"(?s)fail: ended with status 1.*the reason"):
        run_jobs([wait, fail], parallel=2)
    assert time.time() - start < 30


@pytest.mark.parametrize("path", sorted((CONFIGS / "codecs").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_suite_loads(path):
    suite = load_suite(path.stem)
    runs = select(suite, arch=None, train_task=None, overrides={})
    assert len(runs) == sum(len(row.lambda_value) for row in suite.rows)
    assert len({(run.codec, run.train_task, run.name) for run in runs}) == len(runs)
    for row in suite.fitted:  # a wrong one would be told after the fit
        settings = getattr(
            find_codec(row.codec).load_class(), "settings", range(LOWEST, HIGHEST + 1)
        )
        assert all(settings[0] <= quality <= settings[-1] for quality in row.quality)


def test_published_tables():
    """Spot checks of the paper's rows."""
    suite = load_suite("published")

    def pick(arch, task, value):
        overrides = {"lambda_value": value}
        return select(suite, arch=arch, train_task=task, overrides=overrides)[0]

    run = pick("bmshj2018-hyperprior", "seg", 0.01)
    assert (run.epochs, run.batch_size, run.patch_size) == (1200, 128, "256-256")
    run = pick("bmshj2018-hyperprior", "csr", 0.006)
    assert (run.epochs, run.batch_size, run.folded_size) == (400, 128, (256, 256))
    run = pick("bmshj2018-hyperprior", "hybrid", 0.005)
    assert (run.epochs, run.batch_size, run.crop("csr")) == (600, 360, "64-1024")
    run = pick("elic2022-official", "hybrid", 0.0005)
    assert (run.epochs, run.batch_size) == (600, 120)
    assert pick("bmshj2018-hyperprior", "tti", 0.05).patch_size == "512-512"


def test_flags_choose_and_override():
    suite = load_suite("published")
    runs = select(
        suite, arch="elic", train_task="hybrid",
        overrides={"lambda_value": 0.123, "epochs": 7, "batch_size": None},
    )  # fmt: skip
    assert [(run.lambda_value, run.epochs, run.batch_size) for run in runs] == [(0.123, 7, 120)]
    with pytest.raises(ValueError, match="no such row; it has elic on hybrid"):
        select(suite, arch="elic", train_task="csr", overrides={})
    with pytest.raises(ValueError, match="is none of"):
        select(suite, arch="jpeg", train_task=None, overrides={})


def test_bad_flags(suite, capsys):
    for argv, text in (
        (["--pipeline_config", "both"], "pipeline_config"),
        (["--lambda", "0.1"], "lambda"),
        (["--jobs", "0"], "jobs: must be at least 1"),
    ):
        with pytest.raises(SystemExit):
            driver.main([*suite, *argv])
        assert text in capsys.readouterr().err
    for argv, text in (
        (["--train_model_type", "llama3"], "no machine of the model 'llama3'"),
        (["--arch", "jpeg"], "'jpeg' is none of"),
        (["--suite", "nothing"], "no such config file"),
        (["--train_model_type", "toy", "--train_task", "csr"], "'csr' is no task of 'toy'"),
    ):
        with pytest.raises(SystemExit, match=text):
            driver.main([*suite, *argv])


@pytest.mark.parametrize("task", ["csr", "seg", "tti", "cls", "hybrid"])
@pytest.mark.parametrize("suite_name", ["tiny", "published"])
def test_every_training_set_is_evaluated_on_every_machine(task, suite_name, tmp_path, capsys):
    argv = ["--suite", suite_name, "--train_task", task, "--data_root", str(tmp_path), "--dry_run"]
    driver.main(argv)
    out = capsys.readouterr().out
    models = [f"{model}_tiny" if suite_name == "tiny" else model
              for model in ("llama3", "dinov2", "sd3", "resnet50")]  # fmt: skip
    own = dict(zip(("csr", "seg", "tti", "cls"), models, strict=True))
    runs = [line for line in out.splitlines() if line.startswith("train ")]
    codings = [line for line in out.splitlines() if line.startswith("code ") and " lambda " in line]
    assert len(codings) == 4 * len(runs) > 0
    for task_of, model in own.items():
        assert sum(f"{model}_{task_of} " in line for line in codings) == len(runs)
    train = next(line for line in out.splitlines() if "dtufc.CompressAI.train" in line)
    patches = {model for model in models if f"/{model}/" in train}
    if task == "hybrid":  # ResNet50 came after the paper's hybrid codecs
        assert patches == set(models if suite_name == "tiny" else models[:3])
    else:
        assert patches == {own[task]}


@pytest.mark.slow
def test_normalised_transform(suite, tmp_path):
    """It goes through fit, patches, training and both ways of the codec, under its own name."""
    rows = driver.run_batch(
        driver.config.parse(
            driver.BatchConfig, [*suite, "--normalise", "scale", "--lambda_value", "0.05"], ""
        )
    )
    assert [row.transform for row in rows] == ["kmeans10_bitdepth8_scale"]
    assert 0 < rows[0].bpfp < 8
    mapping = next((tmp_path / "root" / "codecs").rglob("mappings/toy_hidden.json"))
    assert files.read_json(mapping).keys() == {"centres", "offset", "scale"}


def test_fitted_codecs(suite, tmp_path, capsys):
    """Fitted once, evaluated at each quality; other flags fit anew, finished work is skipped."""
    path = tmp_path / "suite.yaml"
    values = yaml.safe_load(path.read_text())
    values["fitted"] = [{"codec": "klt", "quality": [0, 1.5], "flags": {"clusters": [1]}}]
    path.write_text(yaml.safe_dump(values))
    driver.main([*suite, "--arch", "klt"])
    out = capsys.readouterr().out
    assert out.count("dtufc.klt.fit_klt") == 1
    assert out.count("dtufc.evaluate") == 2
    assert "dtufc.CompressAI.train" not in out
    assert "dtufc.transform.nonlinear_transform" not in out
    with (tmp_path / "root" / "coded" / "suite_kmeans10_bitdepth8_klt.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["codec"], row["trained_on"], row["quality"]) for row in rows] == [
        ("klt", "hidden", "0.0"), ("klt", "hidden", "1.5"),
    ]  # fmt: skip
    assert float(rows[0]["bpfp"]) < float(rows[1]["bpfp"])
    assert float(rows[0]["nmse"]) > float(rows[1]["nmse"])

    driver.main([*suite, "--arch", "klt"])
    again = capsys.readouterr().out
    assert "dtufc.klt.fit_klt" not in again
    assert "dtufc.evaluate" not in again

    values["fitted"][0]["flags"] = {"clusters": [2]}
    path.write_text(yaml.safe_dump(values))
    driver.main([*suite, "--train_task", "hidden", "--dry_run"])
    out = capsys.readouterr().out
    assert out.count("dtufc.klt.fit_klt") == 1
    assert out.count("dtufc.CompressAI.train") == 2
    driver.main([*suite, "--arch", "hyperprior", "--dry_run"])
    assert "klt" not in capsys.readouterr().out


def test_fitted_rows_that_cannot_be(suite, tmp_path):
    path = tmp_path / "suite.yaml"
    values = yaml.safe_load(path.read_text())
    row = {"codec": "klt", "quality": [1.0]}
    for rows, text in (
        ([{**row, "codec": "elic"}], "codec: 'elic' is not fitted"),
        ([{**row, "train_task": "csr"}], "train_task: no machine of the suite has 'csr'"),
        ([row, {**row, "train_task": "hidden"}], "fitted: two rows for klt"),
    ):
        path.write_text(yaml.safe_dump({**values, "fitted": rows}))
        with pytest.raises(SystemExit, match=text):
            driver.main([*suite, "--dry_run"])


def test_unseen_machines_must_be_known(tmp_path):
    path = tmp_path / "s.yaml"
    text = (CONFIGS / "codecs" / "tiny.yaml").read_text()
    path.write_text(text.replace("rows:", "unseen: [llama4]\nrows:"))
    with pytest.raises(ValueError, match=r"unseen: \['llama4'\] are none of the suite's machines"):
        load_suite(path)


def test_short_commands_run_in_forked_processes(tmp_path, golden_folder):
    """The same files as the command itself gives, each command with its own log and status."""
    codec = golden_folder("int")
    (facts,) = load_codec(codec).known
    write_feature(tmp_path / "x" / "a.npy", np.ones(facts.smallest, facts.dtype))

    def job(name: str, features: str, module: str | None) -> Job:
        flags = ["--codec", str(codec), "--features", str(tmp_path / features), "--output"]
        command = [sys.executable, "-m", "dtufc.evaluate", *flags, str(tmp_path / name)]
        return Job(name, [*command, "--quality", "4"], tmp_path / f"{name}.log", "", module)

    run_jobs(
        [job("plain", "x", None), *(job(f"forked{k}", "x", "dtufc.evaluate") for k in "01")], 2
    )
    for name in ("forked0", "forked1"):
        for path in ("bitstreams/a.ufc", "decoded/a.npy"):
            assert (tmp_path / name / path).read_bytes() == (tmp_path / "plain" / path).read_bytes()
        log = (tmp_path / f"{name}.log").read_text()
        assert f"-m dtufc.evaluate --codec {codec}" in log.splitlines()[0]
        assert "bpfp_pooled" in log
    with pytest.raises(JobError, match=r"(?s)bad: ended with status 1; .*no_such: "):
        run_jobs([job("bad", "no_such", "dtufc.evaluate")])


def test_trainings_fork_to_the_same_weights(toy_patches, tmp_path, monkeypatch):
    """In the folder where the driver is: all files but times are those of the command by itself, and so
    is what the log shows."""
    monkeypatch.chdir(tmp_path)
    for name, module in (("plain", None), ("forked", TRAIN)):
        cfg = train_config(toy_patches, Path(name), epochs=2)
        command = [sys.executable, "-m", TRAIN, *to_argv(cfg)]
        run_jobs([Job(name, command, tmp_path / f"{name}.log", module=module)])
    for name in ("model.safetensors", "last/model.safetensors", "exact.safetensors", "log.csv"):
        assert Path("forked", name).read_bytes() == Path("plain", name).read_bytes(), name
    assert read_progress(tmp_path / "forked.log") == read_progress(tmp_path / "plain.log")
    ends = [Path(f"{name}.log").read_text().splitlines()[-1] for name in ("plain", "forked")]
    assert ends[0] == ends[1] and ends[0].startswith("best epoch ")


def test_forked_processes_have_the_threads_they_are_given(tmp_path, monkeypatch):
    """Each its share, or as many as there are cores; the server itself has one."""
    text = (
        "def main(argv):\n    import os, torch\n    print(os.getcwd(), torch.get_num_threads())\n"
    )
    (tmp_path / "says_threads.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    for told, expected in (("3", 3), (None, cores())):
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        if told:
            monkeypatch.setenv("OMP_NUM_THREADS", told)
        log = tmp_path / "a.log"
        run_jobs([Job("it", ["python", "-m", "says_threads"], log, module="says_threads")])
        assert log.read_text().splitlines()[-1] == f"{tmp_path} {expected}"


def test_nothing_forks_where_there_is_an_accelerator(tmp_path, monkeypatch):
    """What may use it runs by itself, as does what is told to."""
    started = []
    monkeypatch.setattr(jobs.locks, "start", lambda command, **options: started.append(command))
    monkeypatch.setattr(jobs, "Forked", lambda *arguments: started.append("forked"))
    for there in (True, False):
        monkeypatch.setattr(torch.accelerator, "is_available", lambda there=there: there)
        for gpu in (True, False):
            job = Job("it", ["python", "-m", TRAIN], tmp_path / "a.log", module=TRAIN, gpu=gpu)
            jobs._start(job, None)
    assert started == [["python", "-m", TRAIN], "forked", "forked", "forked"]


def test_machines_fork_where_their_libraries_are_preloaded(tmp_path, monkeypatch):
    """The package's own scripts that have halves, without an accelerator; with the flags behind the
    script's path."""
    monkeypatch.setattr(forked, "_machines", set())
    monkeypatch.setattr(forked, "PRELOADED", [])
    scripts = [PACKAGE / "machines" / name for name in ("resnet50/cls.py", "linear/linear.py")]
    script, _ = scripts
    assert forked.machine_module(script) is None
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    forked.preload_machines(scripts)
    assert forked.machine_module(script) is None
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    forked.preload_machines([*scripts, tmp_path / "own.py"])
    assert forked.PRELOADED == ["dtufc.machines.resnet50.halves"]
    names = [forked.machine_module(path) for path in (*scripts, tmp_path / "own.py")]
    assert names == ["dtufc.machines.resnet50.cls", None, None]
    command, log = [sys.executable, str(script), "--mode", "no_such"], tmp_path / "x.log"
    with pytest.raises(JobError, match=r"(?s)ended with status 2; .*mode.*no_such"):
        run_jobs([Job("x", command, log, module=names[0])])


@pytest.mark.gpu
def test_a_batch_trains_and_codes_on_a_gpu(suite, tmp_path):
    """And a CPU decodes what the device coded."""
    driver.main([*suite, "--jobs", "2", "--device", "cuda"])
    codecs = {path.parent.name: path.parent for path in tmp_path.rglob("codecs/**/run.json")}
    streams = sorted(tmp_path.rglob("coded/**/*.ufc"))
    assert len(codecs) == 2 and len(streams) == 6
    for path in streams:
        kind = path.parents[1]
        decoded = load_codec(codecs[kind.parent.name]).decode(path.read_bytes())
        there = np.load(kind / "decoded" / f"{path.stem}.npy")
        assert np.abs(decoded - there).mean() < 0.2 * np.abs(there).mean()  # as in test_exact.py
