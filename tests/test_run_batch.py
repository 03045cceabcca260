"""The driver: sweep, skip, continue after a kill, stop with the log's tail, print the table."""

import csv
import os
import signal
import subprocess
import sys
import time

import pytest
import yaml
from conftest import ARCHS

from coding import files
from coding.CompressAI import run_batch as driver
from coding.CompressAI.jobs import Job, JobError, run_jobs
from coding.CompressAI.suite import load_suite, select
from coding.paths import CONFIGS, REPOSITORY

SCRIPT = REPOSITORY / "coding" / "CompressAI" / "run_batch.py"


@pytest.fixture
def suite(toy, tmp_path):
    """Two lambdas of the hyperprior on the toy features, in a data root of its own."""
    root = tmp_path / "root"
    (root / "toy").mkdir(parents=True)
    (root / "toy" / "hidden").mkdir()
    for name in ("feature_train", "feature_test"):
        (root / "toy" / "hidden" / name).symlink_to(toy / "toy" / "hidden" / name)
    row = {
        "codec": "hyperprior",
        "train_task": "hidden",
        "arch": vars(ARCHS["hyperprior"]),
        "lambda_value": [0.01, 0.05],
        "epochs": 3,
        "batch_size": 4,
        "patch_size": "64-64",
        "patches_per_file": 2,
        "learning_rate": 1e-3,
    }
    path = tmp_path / "suite.yaml"
    path.write_text(yaml.safe_dump({"machines": [str(toy / "toy.yaml")], "rows": [row]}))
    return ["--suite", str(path), "--data_root", str(root), "--device", "cpu"]


def test_batch_end_to_end(suite, tmp_path, capsys):
    driver.main([*suite, "--jobs", "2"])
    out = capsys.readouterr().out
    for command in ("nonlinear_transform.py", "generate_data.py", "train.py", "evaluate.py"):
        assert command in out
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
    driver.main(suite)  # all is finished: nothing runs, the table is the same
    again = capsys.readouterr().out
    assert "train.py" not in again
    assert "evaluate.py" not in again
    assert f"{float(rows[0]['bpfp']):.4g}" in again
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())

    test = tmp_path / "root" / "toy" / "hidden" / "feature_test"
    os.utime(next(iter(test.glob("*.npy"))))  # a feature that is newer than its results
    driver.main(suite)
    assert capsys.readouterr().out.count("evaluate.py") == 2

    summary = next((tmp_path / "root" / "coded").rglob("summary.json"))
    summary.unlink()
    (summary.parent / "run.json").unlink()
    driver.main(suite)  # only what is missing is made again
    once = capsys.readouterr().out
    assert "train.py" not in once
    assert once.count("evaluate.py") == 1


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
    assert out.count("train.py") == 2
    assert out.count("evaluate.py") == 2
    assert not list((tmp_path / "root").rglob("*.json"))


def test_failure_shows_the_end_of_the_log(suite, tmp_path):
    with pytest.raises(SystemExit, match=r"ended with status 1; the end of .*train\.log") as caught:
        driver.main([*suite, "--learning_rate", "1e30"])
    assert "learning_rate" in str(caught.value)


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
    runs = [line for line in out.splitlines() if line.endswith(":") and line.startswith("train ")]
    codings = [line for line in out.splitlines() if line.startswith("code ") and " lambda " in line]
    assert len(codings) == 4 * len(runs) > 0
    for task_of, model in own.items():
        assert sum(f"{model}_{task_of} " in line for line in codings) == len(runs)
    train = next(line for line in out.splitlines() if "train.py" in line)
    patches = {model for model in models if f"/{model}/" in train}
    if task == "hybrid":  # ResNet50 came after the paper's hybrid codecs
        assert patches == set(models if suite_name == "tiny" else models[:3])
    else:
        assert patches == {own[task]}


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
    assert out.count("fit_klt.py") == 1
    assert out.count("evaluate.py") == 2
    assert "train.py" not in out
    assert "nonlinear_transform.py" not in out
    with (tmp_path / "root" / "coded" / "suite_kmeans10_bitdepth8_klt.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["codec"], row["trained_on"], row["quality"]) for row in rows] == [
        ("klt", "hidden", "0.0"), ("klt", "hidden", "1.5"),
    ]  # fmt: skip
    assert float(rows[0]["bpfp"]) < float(rows[1]["bpfp"])
    assert float(rows[0]["nmse"]) > float(rows[1]["nmse"])

    driver.main([*suite, "--arch", "klt"])
    again = capsys.readouterr().out
    assert "fit_klt.py" not in again
    assert "evaluate.py" not in again

    values["fitted"][0]["flags"] = {"clusters": [2]}
    path.write_text(yaml.safe_dump(values))
    driver.main([*suite, "--train_task", "hidden", "--dry_run"])
    out = capsys.readouterr().out
    assert out.count("fit_klt.py") == 1
    assert out.count("train.py") == 2
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
