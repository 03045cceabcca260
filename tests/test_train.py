"""Training: exact resuming, stops on bad losses, several processes, clear errors."""

import csv
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import train_config

from dtufc import files
from dtufc.codec import load_codec
from dtufc.CompressAI import training
from dtufc.CompressAI.checkpoint import read_weights
from dtufc.CompressAI.train import TrainConfig, TrainingError, main, train
from dtufc.config import to_argv
from dtufc.paths import REPOSITORY

SCRIPT = REPOSITORY / "coding" / "CompressAI" / "train.py"


def weights(folder):
    return read_weights(folder / "model.safetensors")


def assert_same_weights(a, b):
    first, second = weights(a), weights(b)
    assert first.keys() == second.keys()
    for key in first:
        assert torch.equal(first[key], second[key]), key


@pytest.mark.parametrize("codec", ["hyperprior", pytest.param("elic", marks=pytest.mark.slow)])
def test_resumed_run_ends_with_the_same_weights(toy_patches, tmp_path, codec, monkeypatch):
    """A run cut off between epochs, resumed, gives the whole run's weights bit for bit."""
    train(train_config(toy_patches, tmp_path / "whole", codec, epochs=4))
    original = training.Training._save_state

    def save_and_die(self):
        original(self)
        if self.epoch == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(training.Training, "_save_state", save_and_die)
    with pytest.raises(KeyboardInterrupt):
        train(train_config(toy_patches, tmp_path / "cut", codec, epochs=4))
    monkeypatch.undo()
    train(train_config(toy_patches, tmp_path / "cut", codec, epochs=4, resume=True))
    assert_same_weights(tmp_path / "whole", tmp_path / "cut")
    assert_same_weights(tmp_path / "whole" / "last", tmp_path / "cut" / "last")
    assert (tmp_path / "whole" / "log.csv").read_text() == (
        tmp_path / "cut" / "log.csv"
    ).read_text()


@pytest.mark.slow
def test_killed_process_resumes_to_the_same_weights(toy_patches, tmp_path):
    """SIGKILL in the middle of an epoch, in another process; then the run goes on."""
    cfg = train_config(toy_patches, tmp_path / "cut", epochs=12, resume=True)
    environment = dict(os.environ, OMP_NUM_THREADS="1")
    command = [sys.executable, str(SCRIPT), *to_argv(cfg)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    deadline = time.time() + 120
    while not (cfg.output / "state.pt").exists() and time.time() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (cfg.output / "state.pt").exists()
    assert not (cfg.output / "config.json").exists()
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    whole = [*command, "--output", str(tmp_path / "whole")]
    subprocess.run(whole, env=environment, check=True, stdout=subprocess.DEVNULL)
    assert_same_weights(tmp_path / "cut", tmp_path / "whole")


def test_outputs(trained):
    """A codec, its last epoch, curves, log, TensorBoard and provenance."""
    for name in ("config.json", "model.safetensors", "curves.png", "curves.pdf", "run.json"):
        assert (trained / name).stat().st_size > 0
    assert list((trained / "tensorboard").iterdir())
    load_codec(trained / "last")
    with (trained / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["epoch"]) for row in rows] == list(range(16))
    assert float(rows[-1]["loss"]) < 0.5 * float(rows[0]["loss"])
    run = files.read_json(trained / "run.json")
    assert run["finished"]
    assert run["config"]["epochs"] == 16
    assert {"started", "revision", "versions", "machine", "wall_s"} <= run["processes"][0].keys()
    assert run["wall_s"] > 0


def test_better_codec_is_the_best_epoch(toy_patches, tmp_path):
    """The codec holds the epoch with the lowest validation loss, not the last one."""
    cfg = train_config(toy_patches, tmp_path, epochs=8, learning_rate=0.01, schedule="plateau")
    best = train(cfg)
    with (tmp_path / "log.csv").open() as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    assert best["loss"] == min(losses)
    assert files.read_json(tmp_path / "config.json")["made_by"]["best_loss"] == min(losses)


def test_early_stop(toy_patches, tmp_path):
    cfg = train_config(
        toy_patches, tmp_path, epochs=50, early_stop=2, learning_rate=1e-9, schedule="plateau"
    )
    train(cfg)
    assert files.read_json(tmp_path / "run.json")["epochs"] < 50


def test_infinite_loss_keeps_the_last_good_state(toy_patches, tmp_path):
    cfg = train_config(toy_patches, tmp_path, epochs=3)
    train(cfg)
    before = (tmp_path / "state.pt").read_bytes()
    bad = train_config(toy_patches, tmp_path / "bad", epochs=3, learning_rate=1e30)
    with pytest.raises(TrainingError, match=r"(loss|gradient) is (nan|inf).*in epoch 0"):
        train(bad)
    assert not (tmp_path / "bad" / "config.json").exists()
    assert (tmp_path / "state.pt").read_bytes() == before


def test_a_kill_between_state_and_log(toy_patches, tmp_path):
    train(train_config(toy_patches, tmp_path, epochs=2))
    log = (tmp_path / "log.csv").read_text()
    (tmp_path / "log.csv").unlink()
    train(train_config(toy_patches, tmp_path, epochs=2, resume=True))
    assert (tmp_path / "log.csv").read_text() == log


def test_hybrid_of_two_folders(toy_patches, tmp_path, toy_mapping):
    """Two folders of patches make one codec that knows both kinds."""
    other = tmp_path / "other"
    values = files.read_json(toy_patches / "patches.json")
    values["facts"]["model"] = "second"
    files.write_json(other / "patches.json", values)
    toy_mapping.save(other / "mapping.json")
    for split in ("train", "test"):
        (other / split).mkdir()
        np.save(other / split / "a.npy", np.full((64, 64), 0.25, np.float16))
    cfg = train_config(toy_patches, tmp_path / "out", epochs=1)
    train(replace(cfg, patches=[toy_patches, other]))
    assert sorted(load_codec(tmp_path / "out").kinds) == ["second_hidden", "toy_hidden"]


def test_pretrained_start(trained, toy_patches, tmp_path):
    """Starting from a trained codec begins where it ended."""
    codec = files.read_json(trained / "config.json")["codec"]
    cfg = train_config(
        toy_patches, tmp_path, codec, epochs=1, learning_rate=1e-9, pretrained_model=str(trained)
    )
    best = files.read_json(trained / "config.json")["made_by"]["best_loss"]
    assert train(cfg)["loss"] == pytest.approx(best, rel=0.05)


def test_two_processes(toy_patches, tmp_path):
    """DDP over two CPU processes trains one model, and says so by the same losses in both."""
    cfg = train_config(toy_patches, tmp_path / "ddp", epochs=3)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    command += ["--main_process_port", "0", str(SCRIPT), *to_argv(cfg)]
    environment = dict(os.environ, OMP_NUM_THREADS="1")
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    with (cfg.output / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"])
    load_codec(cfg.output)


def test_bad_settings(toy_patches, tmp_path, capsys):
    common = ["--patches", f"[{toy_patches}]", "--output", str(tmp_path / "x"), "--device", "cpu"]
    for argv, text in (
        (["--epochs", "0"], "epochs: must be at least 1"),
        (["--lambda_value", "-1"], "lambda_value: must be above 0"),
        (["--codec", "jpeg"], "codec"),
        (["--lamda", "1"], "lamda"),
    ):
        with pytest.raises(SystemExit):
            main([*common, *argv])
        assert text in capsys.readouterr().err
    for argv, text in (
        (["--device", "banana"], "device: banana is not to be had"),
        (["--arch", "{Q: 1}"], "arch.*Q"),
        (["--codec", "elic", "--arch", "{N: 8, M: 8}"], "sum to M = 8"),
        (["--patches", f"[{tmp_path / 'none'}]"], "missing; coding/transform/generate_data"),
        (["--pretrained_model", str(tmp_path / "no.pth.tar")], "no such checkpoint"),
    ):
        with pytest.raises(SystemExit, match=text):
            main([*common, *argv])
    assert not (tmp_path / "x" / "state.pt").exists()


def test_resume_needs_the_same_settings(toy_patches, tmp_path):
    train(train_config(toy_patches, tmp_path, epochs=1))
    with pytest.raises(ValueError, match="holds a run; pass --resume"):
        train(train_config(toy_patches, tmp_path, epochs=1))
    with pytest.raises(ValueError, match=r"other settings.*lambda_value"):
        train(train_config(toy_patches, tmp_path, epochs=1, lambda_value=1.0, resume=True))


def test_bad_patches_are_named(toy_patches, tmp_path):
    folder = tmp_path / "patches"
    (folder / "train").mkdir(parents=True)
    for name in ("patches.json", "mapping.json"):
        (folder / name).write_bytes((toy_patches / name).read_bytes())
    cfg = TrainConfig(patches=[folder], output=tmp_path / "out", device="cpu")
    with pytest.raises(FileNotFoundError, match="no patches"):
        train(cfg)
    np.save(folder / "train" / "a.npy", np.full((64, 64), 2.0))
    with pytest.raises(
        ValueError, match=r"a\.npy: expected a plane, or several, of floats in \[0, 1\)"
    ):
        train(cfg)
    np.save(folder / "train" / "a.npy", np.full((48, 64), 0.5))
    (folder / "test").mkdir()
    np.save(folder / "test" / "a.npy", np.full((48, 64), 0.5))
    with pytest.raises(ValueError, match="48 x 64 must divide by 64 x 64"):
        train(cfg)
    np.save(folder / "train" / "b.npy", np.full((64, 64), 0.5))
    with pytest.raises(ValueError, match=r"b\.npy: size \(1, 64, 64\)"):
        train(cfg)
