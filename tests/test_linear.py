"""A linear head on features that are there: pooling, files, labels, command; and the guide's machine."""

import csv
import importlib
import re

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file

from dtufc import files
from dtufc.errors import UserError
from dtufc.experiments import compare, driver
from dtufc.feature import load_facts, write_feature
from dtufc.machines.linear import linear
from dtufc.machines.linear.fitting import fit_head
from dtufc.machines.linear.head import Head, pool, read_head, read_labels, save_head
from dtufc.paths import REPOSITORY
from dtufc.report.page import write_report
from dtufc.views import MAP_AXES, TOKEN_AXES, Views

GUIDE = (REPOSITORY / "docs/guide/your-metric.md").read_text()
CLASSES = ["ant", "bee", "cat"]


def feature(k: int) -> np.ndarray:
    """Of class k % 3: (1, 1, tokens, 5), the class's channel is raised."""
    x = np.random.default_rng(k).standard_normal((1, 1, 6 + k % 4, 5)).astype(np.float32)
    x[..., k % 3] += 4
    return x


@pytest.fixture
def mine(tmp_path):
    """A YAML with its labels, and features in a data root beside it."""
    folder = tmp_path / "my"
    folder.mkdir()
    block = yaml.safe_load(re.search(r"```yaml\n(.*?)```", GUIDE, re.S)[1])
    block["feature"]["shape"] = [1, 1, None, 5]
    (folder / "mine.yaml").write_text(yaml.safe_dump(block))
    root = tmp_path / "data" / "mine" / "cls"
    lines = ["name,label"]
    for k in range(36):
        part = (
            "feature_test"
            if k >= 24
            else "feature_train/test"
            if k % 8 == 7
            else "feature_train/train"
        )
        write_feature(root / part / f"f{k}.npy", feature(k))
        lines.append(f"f{k},{CLASSES[k % 3]}")
    (folder / "labels.csv").write_text("\n".join(lines))
    return folder


def argv_of(folder, *more) -> list[str]:
    data = folder.parent / "data"
    return ["--machine", str(folder / "mine.yaml"), "--data_root", str(data), *more]


def test_pooling_follows_the_axes():
    tokens, maps = Views(TOKEN_AXES), Views(MAP_AXES)
    x = np.arange(48, dtype=np.float32).reshape(2, 2, 4, 3)
    # of tokens, the channels of all layers; over samples and tokens
    assert np.allclose(pool(x, tokens, "mean"), x.mean(axis=(0, 2)).ravel())
    assert np.allclose(pool(x, tokens, "cls"), x[0, :, 0].ravel())
    assert np.allclose(pool(x, maps, "mean"), x.mean(axis=(0, 2, 3)))
    assert np.allclose(pool(x, maps, "max"), x.max(axis=(0, 2, 3)))
    assert np.array_equal(pool(x, maps, "none"), x.ravel())


def test_heads_of_torch_and_numpy_are_the_same(tmp_path):
    layer = torch.nn.Linear(5, 3)
    save_file(layer.state_dict(), tmp_path / "a.safetensors")
    arrays = {"w": layer.weight.detach().numpy(), "b": layer.bias.detach().numpy()}
    np.savez(tmp_path / "b.npz", classes=CLASSES, **arrays)
    x = np.random.default_rng(0).standard_normal(5)
    want = int(layer(torch.tensor(x, dtype=torch.float32)).argmax())
    plain, named = read_head(tmp_path / "a.safetensors"), read_head(tmp_path / "b.npz")
    assert (plain.predict(x), named.predict(x)) == (str(want), CLASSES[want])
    save_head(tmp_path / "c.safetensors", named)
    again = read_head(tmp_path / "c.safetensors")
    assert again.classes == CLASSES and np.array_equal(again.weight, named.weight)


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        ({"a": np.ones((3, 5)), "b": np.ones((3, 5))}, "expected a matrix"),
        ({"b": np.ones(3)}, "expected a matrix"),
        ({"a": np.ones((3, 5)), "b": np.ones(4)}, "as many as the 3 rows"),
        ({"a": np.ones((3, 5)), "classes": np.array(["x"])}, "as many as the 3 rows"),
        ({"a": np.full((3, 5), np.inf)}, "not finite"),
        ({"a": np.array([["x", "y"]])}, "not a readable"),
    ],
)
def test_what_is_no_head_is_refused(tmp_path, arrays, text):
    path = tmp_path / "head.npz"
    np.savez(path, **arrays)
    with pytest.raises(UserError, match=text):
        read_head(path)


@pytest.mark.parametrize(
    "text", ["a,b\nx,1\n", "name,label\nx,1\nx,2\n", "name,label\nx,\n", "name,label\n"]
)
def test_what_are_no_labels_is_refused(tmp_path, text):
    path = tmp_path / "labels.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=r"labels\.csv"):
        read_labels(path)


@pytest.mark.parametrize("classes", [2, 3])
def test_a_fitted_head_is_scikit_learns(tmp_path, classes):
    """Its probabilities, so also its classes, on features that it has not seen."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    kept = [k for k in range(60) if k % 3 < classes]
    for k in kept:
        write_feature(tmp_path / f"f{k}.npy", feature(k))
    paths = [tmp_path / f"f{k}.npy" for k in kept]
    labels = {f"f{k}": CLASSES[k % 3] for k in kept}
    views = Views(TOKEN_AXES)
    head = fit_head(paths, labels, views, "mean")
    x = np.stack([pool(feature(k), views, "mean") for k in kept])
    scaler = StandardScaler().fit(x)
    model = LogisticRegression(max_iter=2000).fit(scaler.transform(x), [*labels.values()])
    save_head(tmp_path / "head.safetensors", head)
    head = read_head(tmp_path / "head.safetensors")
    other = np.random.default_rng(1).standard_normal((200, 5))
    assert [head.predict(each) for each in other] == [*model.predict(scaler.transform(other))]


def test_fit_then_score_decoded_features(mine, capsys):
    linear.main(argv_of(mine, "--fit", "true"))
    assert read_head(mine / "head.safetensors").classes == CLASSES
    record = files.read_json(mine.parent / "data" / "mine" / "cls" / "accuracy.json")
    assert (record["metric"], record["samples"]) == ("top1", 12) and record["value"] > 0.9
    decoded = mine.parent / "x" / "decoded"
    for k in range(24, 36):
        write_feature(decoded / f"f{k}.npy", feature(k) if k < 30 else feature(k + 1))
    linear.main(argv_of(mine, "--features", str(decoded)))
    with (decoded.parent / "accuracy.csv").open() as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    worse = files.read_json(decoded.parent / "accuracy.json")["value"]
    assert worse == pytest.approx(sum(int(row["correct"]) for row in rows.values()) / 12)
    # features of the next class are taken for it
    assert rows["f30"]["label"] == "ant" and rows["f30"]["prediction"] == "bee"
    assert worse < record["value"]


def test_what_does_not_fit_is_said(mine):
    with pytest.raises(SystemExit, match=r"head\.safetensors: the linear head is not there"):
        linear.main(argv_of(mine))
    with pytest.raises(SystemExit, match=r"a linear head makes no features; put the \.npy files"):
        linear.main(argv_of(mine, "--mode", "extract"))
    save_head(mine / "head.safetensors", Head(np.ones((3, 4)), np.zeros(3), CLASSES))
    with pytest.raises(SystemExit, match=r"5 values after pooling mean, the head of .* takes 4"):
        linear.main(argv_of(mine))
    save_head(mine / "head.safetensors", Head(np.ones((3, 5)), np.zeros(3)))
    with pytest.raises(SystemExit, match="label 'ant' is none of the head's 3 classes"):
        linear.main(argv_of(mine))
    text = (mine / "labels.csv").read_text()
    (mine / "labels.csv").write_text(text.replace("f30,", "g30,"))
    with pytest.raises(SystemExit, match="no label for 1 of 12 features, the first is f30"):
        linear.main(argv_of(mine))


def test_the_guides_machine_runs_as_written(tmp_path, monkeypatch):
    """The page's script and YAML, in an output of compare.py, through the driver to the report."""
    folder = tmp_path / "vit"
    folder.mkdir()
    offsets = np.random.default_rng(0).standard_normal(12)
    for k in range(16):
        rng = np.random.default_rng(k)
        x = rng.standard_normal((5 + k, 12)) + offsets + rng.standard_normal(12)
        np.save(folder / f"v{k:02d}.npy", x.astype(np.float32))

    run_jobs = driver.run_jobs

    def in_process(jobs, parallel=1):
        for job in jobs:
            if job.command[1] == "-m":
                importlib.import_module(job.command[2]).main(job.command[3:])
            else:
                run_jobs([job])

    monkeypatch.setattr(driver, "run_jobs", in_process)
    out = tmp_path / "out"
    argv = ["--features", str(folder), "--codecs", "int", "--rates", "int=8", "--output", str(out)]
    compare.main(argv)
    (out / "configs" / "retrieval.py").write_text(re.search(r"```python\n(.*?)```", GUIDE, re.S)[1])
    block = yaml.safe_load(re.findall(r"```yaml\n(.*?)```", GUIDE, re.S)[1])
    path = out / "configs" / "vit.yaml"
    own = load_facts(path)
    path.write_text(yaml.safe_dump(block))
    assert load_facts(path).decides() == own.decides()
    command = re.search(r"python coding/CompressAI/run_batch.py (.*)", GUIDE)[1]
    driver.main(command.replace("OUT", str(out)).split())
    records = [files.read_json(path) for path in out.rglob("accuracy.json")]
    assert len(records) == 2  # of the uncompressed features, and of those that are coded
    assert {(record["metric"], record["value"]) for record in records} == {("recall", 1.0)}
    assert "recall" in write_report(out, out / "report").read_text()
    compare.main(argv)  # keeps the YAML
    assert load_facts(path).script == "retrieval.py"
