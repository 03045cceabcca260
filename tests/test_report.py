"""The report: its figures on curves whose answer is known, its files, and the page in a browser."""

import base64
import csv
import html.parser
import importlib
import io
import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dtufc import files, provenance, records
from dtufc.evaluate import EvaluateConfig
from dtufc.feature import write_feature
from dtufc.paths import (
    ACCURACY_CSV,
    ACCURACY_JSON,
    RATE_CSV,
    REPOSITORY,
    RUN_JSON,
    SUMMARY_JSON,
    DataRoot,
    FeatureRoot,
)
from dtufc.report import figures, tables
from dtufc.report.curves import Machine, group_curves, read_machine
from dtufc.report.judged import INSIDE, UNION, Judged
from dtufc.report.records import Run, read_runs
from dtufc.report.samples import palette, worst_first
from dtufc.report.winners import leading_curve, winners
from dtufc.stamps import Stamp
from dtufc.transform.mapping import Mapping

sys.path.insert(0, str(REPOSITORY / "scripts"))  # scripts are no package
report = importlib.import_module("report")

KMEANS = "kmeans10_bitdepth8"
POINTS = 1_000_000
BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)


def add_run(
    root: Path, codec: str, trained_on: str, transform: str, run: str, kind: str,
    bpfp: float, nmse: float, value: float | None = None, right: list[int] | None = None, **config,
) -> Path:  # fmt: skip
    """The records of a finished run: three features, the first one slow to code.

    Args:
        value: task metric, without rows of samples.
        right: whether each sample is; their mean is the metric.
    """
    model, task = kind.split("_")
    place = DataRoot(root)
    folder = place.coded(codec, trained_on, transform, run, model, task)
    rate, *options = run.split("_")
    split = [re.fullmatch(r"([a-z]+)(.*)", word).groups() for word in (rate, *options)]
    numbers = {name: float(number) for name, number in split}
    labels = {
        "codec": codec, "trained_on": trained_on, "transform": transform, "kind": kind,
        "lambda_value": numbers.pop("lambda", None), "quality": numbers.pop("quality", None),
        "seed": int(numbers.pop("seed", 0)), "options": numbers,
    }  # fmt: skip
    cfg = EvaluateConfig(
        codec=place.codec(codec, trained_on, transform, run),
        features=place.feature(model, task).feature_test, output=folder, kind=kind, **config,
    )  # fmt: skip
    record = provenance.Run(folder, cfg, Stamp({}), labels=labels)
    size = round(bpfp * POINTS / 8)
    rows = [
        records.RateRow(name, POINTS, size, 8 * size / POINTS, nmse, encode_s, 0.5)
        for name, encode_s in (("f0", 1.0), ("f1", 0.1), ("f2", 0.1))
    ]
    records.write_rows(folder / RATE_CSV, rows)
    files.write_json(folder / SUMMARY_JSON, records.summarise(rows, variance=1.0))
    record.finish()
    if value is not None:
        values = {"metric": "top1", "value": value, "samples": 100, "options": {"mode": "evaluate"}}
        files.write_json(folder / ACCURACY_JSON, values)
    if right is not None:
        add_answers(folder, right)
    return folder


def add_answers(folder: Path, right: list[int], **options) -> None:
    """What a machine says of samples f0, f1, ...: "b" where it is right, else "x"."""
    rows = [f"f{i},b,{'xb'[each]},{each}" for i, each in enumerate(right)]
    files.write_text(folder / ACCURACY_CSV, "\n".join(["name,label,prediction,correct", *rows, ""]))
    values = {"metric": "top1", "value": float(np.mean(right)), "samples": len(right)}
    files.write_json(folder / ACCURACY_JSON, values | {"options": options})


def add_curves(root: Path) -> None:
    """Machines cnn_cls, with a task, and bert_hidden, without: a hybrid Hyperprior, and codecs without
    a network that give the same at half its rate."""
    files.write_json(
        root / "cnn" / "cls" / ACCURACY_JSON, {"metric": "top1", "value": 0.9, "samples": 100}
    )
    curve = (
        (0.001, 0.25, 0.4, 0.5),
        (0.004, 0.5, 0.2, 0.7),
        (0.008, 1, 0.1, 0.9),
        (0.016, 2, 0.05, 0.94),
    )
    for epochs, (rate, bpfp, nmse, value) in enumerate(curve, start=10):
        run = f"lambda{rate:g}_epochs{epochs}_bs16"
        add_run(root, "hyperprior", "hybrid", KMEANS, run, "cnn_cls", bpfp, nmse, value)
        add_run(root, "hyperprior", "hybrid", KMEANS, run, "bert_hidden", bpfp, nmse)
        for kind, task in (("cnn_cls", value), ("bert_hidden", None)):
            trained, quality = kind.split("_")[1], f"quality{-math.log2(nmse):.2f}"
            add_run(root, "klt", trained, "none", quality, kind, bpfp / 2, nmse, task)
    add_run(root, "int", "cls", "none", "quality8", "cnn_cls", 8, 0.0, 0.9)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A data root with all that a report shows, and its report in ``report/``."""
    root = tmp_path_factory.mktemp("data")
    add_curves(root)
    run = "lambda0.004_epochs11_bs16"
    add_run(root, "hyperprior", "cls", KMEANS, run, "cnn_cls", 0.375, 0.15, 0.8)
    add_run(
        root,
        "hyperprior",
        "hidden",
        KMEANS,
        run,
        "cnn_cls",
        0.75,
        3.0,
        0.1,
        mapping="m",
        machine="c",
    )
    killed = add_run(root, "klt", "cls", "none", "quality9", "cnn_cls", 4, 0.01, 0.9)
    (killed / SUMMARY_JSON).unlink()
    running = add_run(root, "klt", "cls", "none", "quality10", "cnn_cls", 5, 0.01, 0.9)
    files.write_json(running / RUN_JSON, files.read_json(running / RUN_JSON) | {"finished": False})
    codec = DataRoot(root).codec("klt", "cls", "none", "fit")
    files.write_bytes(codec / "config.json", bytes(500))
    files.write_bytes(codec / "model.safetensors", bytes(1500))
    values = {"config": {"features": "f", "clusters": [16]}}
    files.write_json(codec / RUN_JSON, values)
    trained = DataRoot(root).codec("hyperprior", "cls", KMEANS, run)
    files.write_bytes(trained / "config.json", bytes(10))
    files.write_json(trained / RUN_JSON, values)
    for path in (root / "coded" / "klt" / "trained_cls").rglob(RUN_JSON):
        record = files.read_json(path)
        record["config"]["codec"] = "/elsewhere/codecs/klt/trained_cls/none/fit"
        files.write_json(path, record)
    x = np.random.default_rng(0).laplace(size=(3, 1, 1, 64, 128)).astype(np.float32)
    machine = DataRoot(root).feature("cnn", "cls")
    for i, feature in enumerate(x):
        write_feature(machine.feature_test / f"f{i}.npy", feature)
    centres = np.quantile(x, (np.arange(256) + 0.5) / 256)
    Mapping(centres).save(machine.mapping("cls", KMEANS))
    report.main(["--data_root", str(root)])
    return root


def read(root: Path, name: str) -> list[dict[str, str]]:
    with (root / "report" / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def cell(root: Path, table: str, column: str, **where: str) -> str:
    """The cell of the one row where other columns are as said."""
    rows = [r for r in read(root, table) if all(r[k] == v for k, v in where.items())]
    assert len(rows) == 1, rows
    return rows[0][column]


def drawn_in(page: str) -> dict:
    return json.loads(re.search(r'id="figures">(.*?)</script>', page, re.S)[1])


def test_bd_rate_of_a_curve_at_half_the_rate(root):
    """-50 % at equal quality; as NMSE is 0.1 / rate here, 10 log10 2 dB at equal rate."""
    for kind, codec in (("cnn_cls", "klt · cls"), ("bert_hidden", "klt · hidden")):
        where = {"evaluated_on": kind, "codec": codec}
        assert cell(root, "bd_rate", "anchor", **where) == f"hyperprior · hybrid · {KMEANS}"
        assert float(cell(root, "bd_rate", "BD-rate on NMSE %", **where)) == pytest.approx(-50)
        assert float(cell(root, "bd_rate", "BD-SNR dB", **where)) == pytest.approx(3.0103, abs=1e-3)
        assert float(cell(root, "bd_rate", "shared SNR %", **where)) == pytest.approx(100)
    where = {"evaluated_on": "cnn_cls", "codec": "klt · cls"}
    assert float(cell(root, "bd_rate", "BD-rate on metric %", **where)) == pytest.approx(-50)
    where["codec"] = f"hyperprior · cls · {KMEANS}"
    assert cell(root, "bd_rate", "BD-rate on NMSE %", **where) == figures.TOO_FEW


def test_no_number_without_grounds():
    anchor = [(0.5, 1.0), (1.0, 2.0), (2.0, 3.0)]
    above = [(8.0, 4.0), (9.0, 5.0), (10.0, 6.0)]
    assert figures.bd_figures(anchor, above) == (figures.NO_OVERLAP, figures.NO_OVERLAP, 0)
    assert figures.bd_figures(anchor, anchor[:2])[:2] == (figures.TOO_FEW,) * 2
    assert figures.bd_figures(anchor, [])[:2] == (figures.TOO_FEW,) * 2
    assert figures.bd_figures(anchor, [(1, 1.0), (2, 3.0), (3, 2.0)])[0] == figures.NOT_MONOTONE
    rate, figure, shared = figures.bd_figures(anchor, [(4.0, 2.5), (8.0, 3.5), (16.0, 4.5)])
    assert rate == pytest.approx(100 * (2**1.5 - 1))  # over 2.5 .. 3 alone
    assert figure == figures.NO_OVERLAP
    assert shared == pytest.approx(100 * 0.5 / 3.5)


def test_saturated_points_are_no_new_ones():
    """Two points at the ceiling are one, and a small dip is noise."""
    assert figures.rising([(1, 0.5), (2, 1.0), (3, 1.0)]) == [(1, 0.5), (2, 1.0)]
    assert figures.rising([(1, 0.5), (2, 0.98), (3, 0.96), (4, 1.0)]) == [
        (1, 0.5),
        (2, 0.98),
        (4, 1.0),
    ]


def test_reach_is_linear_in_log_rate_on_the_envelope():
    points = [(0.25, 0.5), (0.5, 0.4), (2.0, 0.9)]
    assert figures.reach(points, 0.7) == (pytest.approx(1.0), False)  # 0.5 at 0.5: the envelope
    assert figures.reach(points, 0.9) == (pytest.approx(2.0), False)
    assert figures.reach(points, 0.5) == (0.25, True)
    assert figures.reach(points, 0.91) is None
    assert figures.one_point(0.9) == 0.01
    assert figures.one_point(31.0) == 1.0


def test_headline(root):
    """Between (0.5, 0.7) and (1, 0.9): 99 % of 0.9 is 0.891, one point below it 0.89."""
    where = {"codec": f"hyperprior · hybrid · {KMEANS}"}
    rate = 0.5 * 2 ** ((0.891 - 0.7) / 0.2)
    assert float(cell(root, "headline", "bpfp at 99 %", **where)) == pytest.approx(rate)
    assert float(cell(root, "headline", "times smaller at 99 %", **where)) == pytest.approx(
        32 / rate
    )
    within = float(cell(root, "headline", "bpfp within 1 point", **where))
    assert within == pytest.approx(0.5 * 2 ** ((0.89 - 0.7) / 0.2))
    assert float(cell(root, "headline", "bpfp at 99 %", codec="klt · cls")) == pytest.approx(
        rate / 2
    )
    assert cell(root, "headline", "bpfp at 99 %", codec="int · cls") == "<= 8"
    assert cell(root, "headline", "times smaller at 99 %", codec="int · cls") == ">= 4"
    where["codec"] = f"hyperprior · cls · {KMEANS}"
    assert cell(root, "headline", "bpfp at 99 %", **where) == tables.NOT_REACHED
    assert {row["evaluated_on"] for row in read(root, "headline")} == {"cnn_cls"}
    page = (root / "report/report.html").read_text()
    assert "No task accuracy is recorded for bert_hidden" in page


def test_bold_only_where_certain():
    """A bound may lie below every exact rate."""

    def bold(*curves):
        runs = [
            Run(Path(), codec, "cls", "none", "a_cls", None, i, 0, {}, {"config": {}}, bpfp, 0.1,
                "top1", value)
            for codec, points in curves
            for i, (bpfp, value) in enumerate(points)
        ]  # fmt: skip
        machine = Machine("a_cls", FeatureRoot(Path()), {"value": 1.0}, group_curves(runs))
        table = tables.headline([machine])
        return [table.rows[row][5] for row, column in sorted(table.bold) if column == 5]

    assert bold(("klt", [(1, 0.5), (2, 1.0)]), ("elic", [(3, 0.5), (4, 1.0)])) == ["klt · cls"]
    assert bold(("klt", [(2, 1.0)]), ("elic", [(3, 0.5), (4, 1.0)])) == ["klt · cls"]
    assert bold(("klt", [(1, 0.5), (2, 1.0)]), ("elic", [(4, 1.0)])) == []
    assert bold(("klt", [(1, 0.5)]), ("elic", [(4, 0.5)])) == []


def test_of_a_perplexity_less_is_better():
    """The same curves as gains and as perplexities: the same winners, rates and anchor."""

    losses = {"klt": [(1, 5), (2, 1), (4, 0.1)], "elic": [(1, 8), (3, 2), (4, 1)]}

    def machine(sign, full):
        low, high = (-0.01, 0.01)
        runs = [
            Run(Path(), codec, "lm", "none", "a_lm", None, i, 0, {}, {"config": {}}, bpfp, 0.1 / bpfp,
                "figure", full + sign * loss, full + sign * loss + low, full + sign * loss + high,
                less_is_better=sign > 0)
            for codec, points in losses.items() for i, (bpfp, loss) in enumerate(points)
        ]  # fmt: skip
        accuracy = {"value": full, "metric": "figure", "less_is_better": sign > 0}
        return Machine("a_lm", FeatureRoot(Path()), accuracy, group_curves(runs), 32)

    more, less = machine(-1, 100.0), machine(1, 100.0)
    for rate in (1.0, 2.0, 4.0):
        one, other = (
            next(each for each in winners(kind) if each.rate == rate) for kind in (more, less)
        )
        assert one.metric.curve.first.codec == other.metric.curve.first.codec == "klt"
        assert one.metric.value.value + other.metric.value.value == pytest.approx(200)
        assert other.metric.value.low < other.metric.value.value < other.metric.value.high
        assert one.ties == other.ties == ()
    up, down = (tables.headline([kind]) for kind in (more, less))
    assert [row[5:7] for row in up.rows] == [row[5:7] for row in down.rows]  # codec, bpfp at 99 %
    assert [row[7] for row in down.rows] == [4.0, "not reached"]  # 100.1
    assert [row[7] for row in up.rows] == [row[8] for row in down.rows] == [None, None]
    assert [row[11].value for row in down.rows] == [100.1, 101.0]
    bd = [tables.bd_table([kind], None).rows[0] for kind in (more, less)]
    assert bd[0][:3] == bd[1][:3]
    assert bd[0][3:] == pytest.approx(bd[1][3:])


def test_speed_and_size(root):
    where = {"evaluated_on": "cnn_cls", "codec": "klt · cls"}
    expected = {"encode Mpoints/s": 3 / 1.2, "decode Mpoints/s": 2, "encode after first": 10}
    expected |= {"decode after first": 2, "kB of a model": 2, "models": 1}
    for column, value in expected.items():
        assert float(cell(root, "speed", column, **where)) == pytest.approx(value)
    assert cell(root, "speed", "device", **where) == "cpu"
    where["codec"] = f"hyperprior · hybrid · {KMEANS}"
    assert cell(root, "speed", "kB of a model", **where) == ""


def test_cross_table(root):
    """What was trained on another machine is here, and in no curve."""
    name = f"cross_hyperprior_{KMEANS}"
    rows = {row["figure"]: row for row in read(root, name) if row["evaluated_on"] == "cnn_cls"}
    trained = ["trained on hybrid", "trained on cls", "trained on hidden"]
    assert list(rows["bpfp"])[2:] == trained
    assert [float(rows["nmse"][key]) for key in trained] == [0.2, 0.15, 3.0]
    assert [float(rows["top1"][key]) for key in trained] == [0.7, 0.8, 0.1]
    assert not (root / "report" / "cross_klt.csv").exists()
    drawn = drawn_in((root / "report" / "report.html").read_text())
    names = {trace.get("name") for figure in drawn.values() for trace in figure["data"]}
    assert f"hyperprior · cls · {KMEANS}" in names
    assert not any("hidden" in name and "hyperprior" in name for name in names - {None})


def test_distribution(root):
    (row,) = read(root, "distribution")
    assert float(row["excess kurtosis before"]) == pytest.approx(3, abs=0.5)  # Laplace
    assert float(row["excess kurtosis after"]) == pytest.approx(-1.2, abs=0.05)  # uniform
    assert float(row["entropy before, bits"]) < 7 < 7.95 < float(row["entropy after, bits"]) <= 8


def test_unfinished_runs_are_left_out_and_named(root):
    page = (root / "report" / "report.html").read_text()
    head = page[: page.index("<nav>")]
    for run in ("quality9", "quality10"):
        assert f"coded/klt/trained_cls/none/{run}/cnn_cls" in head
    assert not {"quality9", "quality10"} & {row["run"] for row in read(root, "points")}


def test_curves_are_sorted_and_whole(root):
    """One trace a curve in each plot, by rising rate; what is lossless has no NMSE to draw."""
    drawn = drawn_in((root / "report" / "report.html").read_text())
    traces = [t for f in drawn.values() for t in f["data"] if t["type"] == "scatter"]
    assert all(t["x"] == sorted(t["x"]) for t in traces)
    hybrid = [t for t in traces if t["name"] == f"hyperprior · hybrid · {KMEANS}"]
    assert [len(t["x"]) for t in hybrid] == [
        4,
        4,
        4,
    ]  # metric and NMSE of one machine, NMSE of another
    assert [t["y"] for t in traces if t["name"] == "int · cls"] == [[0.9]]
    assert len({t["line"]["color"] for t in traces if t["name"].startswith("klt")}) == 1
    codecs = {t["name"].split(" ")[0]: t["marker"]["symbol"] for t in traces}
    assert len(set(codecs.values())) == 3


def test_runs_of_one_rate_are_told_apart(tmp_path):
    """Other options make a curve of their own only where a rate occurs twice on one machine."""
    for run in ("lambda0.001_epochs10_bs4", "lambda0.002_epochs20_bs4", "lambda0.004_epochs20_bs4"):
        add_run(tmp_path, "elic", "hybrid", KMEANS, run, "cnn_cls", float(run[6:11]), 0.1)
    add_run(tmp_path, "elic", "hybrid", KMEANS, "lambda0.004_epochs1_bs4", "bert_hidden", 0.1, 0.1)
    runs, _ = read_runs(tmp_path)
    cnn = [run for run in runs if run.kind == "cnn_cls"]
    assert [(c.label, len(c.runs)) for c in group_curves(cnn)] == [(f"elic · hybrid · {KMEANS}", 3)]
    add_run(tmp_path, "elic", "hybrid", KMEANS, "lambda0.004_epochs10_bs4", "cnn_cls", 0.01, 0.1)
    runs, _ = read_runs(tmp_path)
    cnn = [run for run in runs if run.kind == "cnn_cls"]
    labels = [(curve.label, len(curve.runs)) for curve in group_curves(cnn)]
    assert labels == [(f"elic · hybrid · {KMEANS} · epochs {n}.0", 2) for n in (10, 20)]
    args = ("elic", "seg", KMEANS, "lambda0.004", "vit_seg", 0.01, 0.1)
    add_run(tmp_path, *args, published=True, mapping="m", machine="vit")
    runs, _ = read_runs(tmp_path)
    (curve,) = group_curves(run for run in runs if run.kind == "vit_seg")
    assert curve.label == f"elic · seg · {KMEANS} · published counting · unseen"


def test_anchor(tmp_path):
    """The published configuration where there is one, or what the flag names."""
    add_curves(tmp_path)
    left = f"{KMEANS}_left"
    for i in range(3):
        run = f"lambda0.00{i + 1}_epochs1"
        args = (left, run, "cnn_cls", 0.5 * 2**i, 0.2 / 2**i, 0.5 + 0.1 * i)
        add_run(tmp_path, "hyperprior", "hybrid", *args)
    argv = ["--data_root", str(tmp_path)]
    report.main(argv)
    anchors = {row["evaluated_on"]: row["anchor"] for row in read(tmp_path, "bd_rate")}
    assert anchors["cnn_cls"] == f"hyperprior · hybrid · {left}"
    assert anchors["bert_hidden"] == f"hyperprior · hybrid · {KMEANS}"
    report.main([*argv, "--anchor", "klt/cls/none"])
    rows = read(tmp_path, "bd_rate")
    assert {row["anchor"] for row in rows} == {"klt · cls"}
    hybrid = [row for row in rows if row["codec"] == f"hyperprior · hybrid · {KMEANS}"]
    assert float(hybrid[0]["BD-rate on NMSE %"]) == pytest.approx(100)
    with pytest.raises(SystemExit, match=r"no curve is called 'elic', there are .*klt/cls/none"):
        report.main([*argv, "--anchor", "elic"])


def test_errors_name_what_is_wrong(tmp_path):
    argv = ["--data_root", str(tmp_path)]
    with pytest.raises(SystemExit, match=f"{tmp_path}: no finished run.*run_batch.py"):
        report.main(argv)
    folder = add_run(tmp_path, "klt", "cls", "none", "quality1", "cnn_cls", 0.5, 0.1, 0.9)
    for name, text, message in (
        (SUMMARY_JSON, '{"bpfp_pooled": ', r"summary\.json: not valid JSON"),
        (SUMMARY_JSON, '{"bpfp_pooled": "x"}', r"summary\.json: not a sound record, 'bpfp_pooled'"),
        (
            SUMMARY_JSON,
            '{"bpfp_pooled": 0.0, "nmse_pooled": 1}',
            r"summary\.json: bpfp_pooled is 0",
        ),
        (ACCURACY_JSON, '{"metric": "top1"}', r"accuracy\.json: not a sound record, 'value'"),
        (RUN_JSON, "[]", r"run\.json: not a sound record, 'config'"),
        (RATE_CSV, "name,points\na,1\n", r"rate\.csv: not a rate table"),
    ):
        good = (folder / name).read_text()
        (folder / name).write_text(text)
        with pytest.raises(SystemExit, match=message):
            report.main(argv)
        (folder / name).write_text(good)
    assert not (tmp_path / "report").exists()
    report.main(argv)
    assert (tmp_path / "report" / "report.html").is_file()


def test_tables_of_an_earlier_report_go(tmp_path):
    """Those alone: what else lies there stays, and all of them where the new report fails."""
    folder = add_run(tmp_path, "klt", "cls", "none", "quality1", "cnn_cls", 0.5, 0.1)
    old, other = tmp_path / "report" / "cross_gone.tex", tmp_path / "report" / "notes.csv"
    for path in (old, other):
        files.write_text(path, "")
    summary = (folder / SUMMARY_JSON).read_text()
    (folder / SUMMARY_JSON).write_text("[]")
    with pytest.raises(SystemExit, match=r"summary\.json"):
        report.main(["--data_root", str(tmp_path)])
    assert old.is_file()
    (folder / SUMMARY_JSON).write_text(summary)
    report.main(["--data_root", str(tmp_path)])
    assert other.is_file() and not old.exists()


def test_commands_of_codecs(root):
    """Fitted codecs name their script, others the training; evaluations leave defaults out."""
    for codec, name, script in (
        ("klt", "fit", "-m dtufc.klt.fit_klt --features f --clusters '[16]'"),
        ("hyperprior", "lambda0.004_epochs11_bs16", "-m dtufc.CompressAI.train --features f"),
    ):
        record = (
            f"codecs/{codec}/trained_cls/{'none' if codec == 'klt' else KMEANS}/{name}/run.json"
        )
        assert cell(root, "provenance", "command", records=record).startswith(f"python {script}")
    commands = [row["command"] for row in read(root, "provenance") if row["step"] == "evaluate"]
    assert all(line.startswith("python -m dtufc.evaluate --codec ") for line in commands)
    assert not any("--device" in line for line in commands)


def test_nmse_headline(root):
    """On the machine without a task alone; NMSE is 0.1 / rate for the Hyperprior there."""
    rows = read(root, "nmse")
    assert {row["evaluated_on"] for row in rows} == {"bert_hidden"}
    assert [row["codec"] for row in rows] == ["klt · hidden", f"hyperprior · hybrid · {KMEANS}"]
    assert [float(row["bpfp at NMSE 0.1"]) for row in rows] == [
        pytest.approx(0.5),
        pytest.approx(1),
    ]
    assert {row["bpfp at NMSE 0.01"] for row in rows} == {tables.NOT_REACHED}
    assert [float(row["least NMSE"]) for row in rows] == [0.05, 0.05]


def test_a_lossless_codec_reaches_any_nmse(tmp_path):
    add_run(tmp_path, "int", "hidden", "none", "quality24", "bert_hidden", 20, 0.0)
    runs, _ = read_runs(tmp_path)
    table = tables.nmse_headline([read_machine(tmp_path, "bert_hidden", runs)])
    assert table.rows[0][3:5] == ["<= 20", "<= 20"]


def test_winners(root):
    """For at most a bit, klt's measured 0.94 at one bit; for four, too, nothing is extrapolated."""
    rows = {(row["evaluated_on"], row["bpfp up to"]): row for row in read(root, "winners")}
    rates = [rate for kind, rate in rows if kind == "cnn_cls"]
    assert rates == ["0.2", "0.5", "1.0", "2.0", "4.0"]  # measured are 0.125 .. 8
    half = rows["cnn_cls", "0.5"]
    assert (half["best metric"], half["metric by"], half["metric at"]) == (
        "0.9",
        "klt · cls",
        "0.5",
    )
    assert float(half["least NMSE"]) == pytest.approx(0.1)
    between = float(rows["cnn_cls", "0.2"]["best metric"])
    assert between == pytest.approx(0.5 + 0.2 * math.log2(0.2 / 0.125), rel=1e-3)
    four = rows["cnn_cls", "4.0"]
    assert (four["best metric"], four["metric by"], four["metric at"]) == (
        "0.94",
        "klt · cls",
        "1.0",
    )
    assert rows["bert_hidden", "1.0"]["best metric"] == ""
    assert rows["bert_hidden", "1.0"]["NMSE by"] == "klt · hidden"


def test_within_a_rate():
    points = [(0.25, 0.9), (1.0, 0.5)]
    assert figures.within(points, 0.5) == (0.9, 0.25)  # not the 0.7 between them
    assert figures.within(points, 0.2) is None
    assert figures.within([(0.25, 0.5), (1.0, 0.9)], 0.5) == (pytest.approx(0.7), 0.5)
    assert figures.within([(0.25, 0.9), (1.0, 0.9)], 2.0) == (0.9, 0.25)
    assert figures.at_rate(points, 2.0) is None


def judged(right, metric="top1", value=None) -> Judged:
    rows = [{"name": str(i), "correct": str(each)} for i, each in enumerate(right)]
    return Judged(metric, float(np.mean(right)) if value is None else value, rows)


def test_error_bars_of_shares():
    """Wilson's interval of 90 of 100, as published tables have it; no bar beyond 0 .. 1."""
    assert judged([1] * 90 + [0] * 10).interval == pytest.approx((0.8256, 0.9448), abs=1e-4)
    low, high = judged([1] * 100).interval
    assert (low, high) == (pytest.approx(0.9630, abs=1e-4), pytest.approx(1.0))


def test_error_bars_by_bootstrap():
    """Of a mean: 1.96 standard errors. Of a mean over classes of pooled ratios: of those."""
    rng = np.random.default_rng(0)
    scores = rng.normal(30, 2, 400)
    rows = [{"name": str(i), "clip_score": str(x)} for i, x in enumerate(scores)]
    low, high = Judged("clip_score", float(scores.mean()), rows).interval
    error = 1.96 * scores.std() / 20
    assert (low, high) == pytest.approx((scores.mean() - error, scores.mean() + error), abs=0.03)
    union = np.repeat([[100, 10]], 200, 0)
    inside = np.stack([rng.binomial(100, 0.9, 200), rng.binomial(10, 0.5, 200)], 1)
    rows = [
        {"name": str(i), "miou": "0", INSIDE: f"{a} {b} 0", UNION: f"{m} {n} 0"}
        for i, ((a, b), (m, n)) in enumerate(zip(inside, union, strict=True))
    ]
    value = float(np.mean(inside.sum(0) / union.sum(0)))
    low, high = Judged("miou", value, rows).interval
    spread = math.hypot(*(math.sqrt(p * (1 - p) / n) for p, n in ((0.9, 20000), (0.5, 2000)))) / 2
    assert low < value < high
    assert high - low == pytest.approx(2 * 1.96 * spread, rel=0.15)


def test_loss_within_noise():
    """McNemar's exact test: five answers lost and none won may be chance, six may not."""
    full = judged([1] * 50)
    assert judged([0] * 5 + [1] * 45).within_noise(full)
    assert not judged([0] * 6 + [1] * 44).within_noise(full)
    assert judged([1] * 50).within_noise(full)
    assert judged([0] * 7 + [1] * 43).within_noise(judged([1] * 7 + [0] * 3 + [1] * 40))
    assert judged([1] * 40).within_noise(full) is None  # other samples
    rng = np.random.default_rng(0)
    scores = rng.normal(30, 2, 100)

    def clip(x):
        rows = [{"name": str(i), "clip": str(each)} for i, each in enumerate(x)]
        return Judged("clip", float(np.mean(x)), rows)

    assert clip(scores + rng.normal(0, 0.5, 100)).within_noise(clip(scores))
    assert not clip(scores - 0.3 + rng.normal(0, 0.5, 100)).within_noise(clip(scores))


@pytest.fixture
def answered(tmp_path) -> Path:
    """A machine of 100 answers and two codecs, one at three rates; f99 is always wrong, f0 .. f19 only
    at the lowest rate, f3 at the middle one too."""
    root = tmp_path
    add_answers(root / "cnn" / "cls", [1] * 99 + [0])
    low, middle, high = [0] * 20 + [1] * 79 + [0], [1] * 99 + [0], [1] * 99 + [0]
    middle[3] = 0
    for quality, (bpfp, right) in enumerate(((0.1, low), (0.4, middle), (1.6, high))):
        args = ("klt", "cls", "none", f"quality{quality}", "cnn_cls", bpfp, 0.1 / bpfp)
        add_run(root, *args, right=right)
    add_run(root, "int", "cls", "none", "quality2", "cnn_cls", 0.4, 0.5, right=[0] * 3 + middle[3:])
    return root


def test_error_bars_in_tables_and_plots(answered):
    report.main(["--data_root", str(answered)])
    where = {"codec": "klt · cls"}
    assert cell(answered, "headline", "uncompressed", **where) == "0.99 [0.946, 0.998]"
    assert cell(answered, "headline", "best metric", **where) == "0.99 [0.946, 0.998]"
    assert cell(answered, "headline", "bpfp without loss beyond noise", **where) == "0.4"
    rows = read(answered, "points")
    told = {row["bpfp"]: row["loss within noise"] for row in rows if row["codec"] == "klt"}
    assert told == {"0.1": "False", "0.4": "True", "1.6": "True"}
    drawn = drawn_in((answered / "report" / "report.html").read_text())["plot0"]
    (trace,) = (trace for trace in drawn["data"] if trace["name"] == "klt · cls")
    bars = trace["error_y"]
    low = Judged.interval.func(judged([1] * 79 + [0] * 21))[0]
    assert trace["y"][0] - bars["arrayminus"][0] == pytest.approx(low)
    assert drawn["layout"]["yaxis"]["range"][0] < low
    band = [shape for shape in drawn["layout"]["shapes"] if shape["type"] == "rect"]
    assert band[0]["y0"] == pytest.approx(0.946, abs=1e-3)


def test_ties_are_named(answered):
    """At 0.4 bits klt has 0.98 and int 0.95, within its error bar; klt leads by NMSE."""
    runs, _ = read_runs(answered)
    machine = read_machine(answered, "cnn_cls", runs)
    found = {winner.rate: winner for winner in winners(machine)}
    assert found[0.5].metric.curve.label == "klt · cls"
    assert [curve.label for curve in found[0.5].ties] == ["int · cls"]
    assert found[0.2].ties == ()
    assert leading_curve(machine).label == "klt · cls"


def test_samples_of_answers(answered):
    """The worst first; of equals, those of the greatest squared error, which f0 .. f2 have."""
    report.main(["--data_root", str(answered)])
    rows = read(answered, "samples_cnn_cls")
    low, middle, high = (f"klt · cls at {rate} bpfp" for rate in ("0.1", "0.4", "1.6"))
    assert list(rows[0]) == ["sample", "label", "uncoded", low, middle, high]
    assert list(rows[0].values()) == ["f3", "b", "b ✓", "x ✗", "x ✗", "b ✓"]
    assert [row["sample"] for row in rows][1:4] == ["f0", "f1", "f2"]
    assert len(rows) == 6
    assert [row[middle] for row in rows[1:]] == ["b ✓"] * 5
    page = (answered / "report/report.html").read_text()
    assert "Samples of cnn_cls side by side" in page
    assert all(f'id="{name}"' in page for name in re.findall(r'href="#(\w+)"', page))


def test_worst_first(tmp_path):
    run = Run(tmp_path, "klt", "cls", "none", "a_cls", None, 1, 0, {}, {}, 1, 0.1, "top1", 0.5)
    rows = [records.RateRow(str(i), 1, 1, 8, mse, 0, 0) for i, mse in enumerate((1, 3, 2))]
    records.write_rows(tmp_path / RATE_CSV, rows)
    assert worst_first([run], judged([1, 1, 1]), [judged([1, 1, 1])]) == [1, 2, 0]
    assert worst_first([run], judged([1, 1, 1]), [judged([0, 1, 1])]) == [0, 1, 2]


MACHINE = """import json, pathlib, sys
import numpy as np
from PIL import Image
assert "--save_predictions" in sys.argv and "evaluate" in sys.argv
for folder in map(pathlib.Path, sys.argv[sys.argv.index("--features") + 1:]):
    record = json.loads((folder.parent / "accuracy.json").read_text())
    record["options"]["save_predictions"] = True
    (folder.parent / "predictions").mkdir()
    for i in range(3):
        mask = np.full((200, 300), i, np.uint8)
        Image.fromarray(mask).save(folder.parent / "predictions" / f"f{i}.png")
    (folder.parent / "accuracy.json").write_text(json.dumps(record))
    with open("judged.txt", "a") as log:
        print(folder.parent.name, file=log)
"""
PRESET = """feature: {model: vit, task: seg, shape: [1, 1, null, 8],
  axes: [sample, layer, token, channel],
  dtype: float32, script: judge.py}
machine: {}
"""


def test_samples_of_pictures(tmp_path, monkeypatch):
    """Left out where nobody saved them; made by the machine's own command, once, where asked for."""
    root = tmp_path / "data"
    (tmp_path / "judge.py").write_text(MACHINE)
    (tmp_path / "toy.yaml").write_text(PRESET)
    folders = [root / "vit" / "seg"]
    for quality in (1, 2):
        args = ("klt", "seg", "none", f"quality{quality}", "vit_seg", quality, 0.1 / quality)
        folders.append(add_run(root, *args))
    for folder in folders:
        rows = ["name,miou", *(f"f{i},0.{9 - i * (folder in folders[1:])}" for i in range(3))]
        files.write_text(folder / ACCURACY_CSV, "\n".join([*rows, ""]))
        options = {"machine": str(tmp_path / "toy.yaml")}
        values = {"metric": "miou", "value": 0.8, "samples": 3, "options": options}
        files.write_json(folder / ACCURACY_JSON, values)
    monkeypatch.chdir(tmp_path)
    argv = ["--data_root", str(root)]
    report.main(argv)
    assert "side by side" not in (root / "report" / "report.html").read_text()
    for _ in range(2):
        report.main([*argv, "--samples", "true"])
    assert (tmp_path / "judged.txt").read_text().split() == ["seg", "vit_seg", "vit_seg"]
    rows = read(root, "samples_vit_seg")
    assert [row["sample"] for row in rows] == ["f2", "f1", "f0"]
    assert rows[0]["klt · seg at 1 bpfp"] == "miou 0.7"
    page = (root / "report" / "report.html").read_text()
    pictures = re.findall(r'<td><img src="data:image/png;base64,([^"]*)" alt="miou 0.[0-9]+"', page)
    assert len(pictures) == 9
    with Image.open(io.BytesIO(base64.b64decode(pictures[0]))) as picture:
        assert picture.size == (144, 96)
        assert picture.convert("RGB").getpixel((5, 5)) == tuple(palette()[2])
    (root / "vit" / "seg" / "predictions" / "f1.png").write_text("no picture")
    with pytest.raises(SystemExit, match=r"predictions/f1\.png: not a readable picture"):
        report.main(argv)


def test_damaged_answers_name_their_file(answered):
    path = answered / "cnn" / "cls" / ACCURACY_CSV
    for text in ("name,correct\nf0,yes\n", "name,correct\n", "correct\n1\n"):
        path.write_text(text)
        with pytest.raises(SystemExit, match=r"cnn/cls/accuracy\.csv: not a table of judged"):
            report.main(["--data_root", str(answered)])


def test_no_empty_sections(tmp_path):
    """What a data root has no records for has no heading, and no link."""
    add_run(tmp_path, "klt", "cls", "none", "quality1", "cnn_cls", 0.5, 0.1)
    report.main(["--data_root", str(tmp_path)])
    page = (tmp_path / "report" / "report.html").read_text()
    heads = re.findall(r'<h2 id="(\w+)"', page)
    assert heads == ["nmse", "winners", "cnn_cls", "speed", "provenance"]
    assert re.findall(r'<a href="#(\w+)"', page) == heads
    assert "<th>kB of a model</th>" not in page  # nor columns: there is no codec folder


def test_the_anchor_is_what_most_can_be_compared_with(tmp_path):
    """A Hyperprior of two points, or far from all others, is none."""
    points = {"klt": (1, 2, 4, 8), "elic": (2, 4, 8), "hyperprior": (200, 400, 800)}
    for codec, rates in points.items():
        for i, rate in enumerate(rates):
            run, args = f"lambda0.00{i + 1}", ("cnn_cls", float(rate), 0.1 / rate)
            add_run(tmp_path, codec, "hybrid", KMEANS, run, *args)
    runs, _ = read_runs(tmp_path)
    machine = read_machine(tmp_path, "cnn_cls", runs)
    assert figures.find_anchor(machine, None).first.codec in ("klt", "elic")
    assert len(figures.find_anchor(machine, None).runs) >= figures.BD_POINTS
    alone = [run for run in runs if run.codec == "hyperprior"]
    assert figures.find_anchor(read_machine(tmp_path, "cnn_cls", alone), None) is None


class Tags(html.parser.HTMLParser):
    """What a page has in tags and attributes, scripts' texts left out."""

    def __init__(self):
        super().__init__()
        self.attributes: list[tuple[str, str, str | None]] = []
        self.styles = self.last = ""

    def handle_starttag(self, tag, attrs):
        self.last = tag
        self.attributes += [(tag, *pair) for pair in attrs]

    def handle_data(self, data):
        self.styles += data if self.last == "style" else ""


def test_the_page_needs_nothing_else(root):
    page = (root / "report" / "report.html").read_text()
    tags = Tags()
    tags.feed(page)
    assert not [pair for pair in tags.attributes if pair[1] in ("srcset", "data", "action")]
    assert all(value.startswith("data:") for _, name, value in tags.attributes if name == "src")
    for tag, name, value in tags.attributes:
        if name == "href":
            target = root / "report" / value
            assert tag == "a" and (
                f'id="{value[1:]}"' in page if value[0] == "#" else target.is_file()
            )
    assert "display" in tags.styles
    assert "url(" not in tags.styles and "@import" not in tags.styles
    assert page.count("* plotly.js v") == 1


def test_csv_and_latex_agree(root):
    escapes = {r"\_": "_", r"\%": "%", r"$\cdot$": "·", r"$\le$": "<=", r"$\ge$": ">="}
    paths = sorted((root / "report").glob("*.csv"))
    assert len(paths) == 9
    for path in paths:
        with path.open(newline="") as file:
            rows = list(csv.reader(file))
        lines = path.with_suffix(".tex").read_text()
        for code, sign in escapes.items():
            lines = lines.replace(code, sign)
        head, top, *body, bottom, end = lines.splitlines()
        assert (top, bottom, end) == (r"\toprule", r"\bottomrule", r"\end{tabular}")
        assert body.pop(1) == r"\midrule"
        assert len(re.fullmatch(r"\\begin\{tabular\}\{([lr]+)\}", head)[1]) == len(rows[0])
        assert len(body) == len(rows) > 1
        for line, row in zip(body, rows, strict=True):
            cells = line.removesuffix(r" \\").split(" & ")
            for short, full in zip(cells, row, strict=True):
                try:
                    assert float(short) == pytest.approx(float(full), rel=1e-3)
                except ValueError:
                    assert short == full


def browse(page: Path, profile: Path, *flags: str) -> dict[str, str]:
    """The page's data attributes after a browser ran it."""
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    options += ["--disable-component-update", "--disable-sync", "--virtual-time-budget=10000"]
    command = [BROWSER, *options, *flags, f"--user-data-dir={profile}", "--dump-dom", page.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
    return dict(re.findall(r'data-(\w+)="([^"]*)"', re.search(r"<html[^>]*>", dom)[0]))


CLICK = """<script>
setTimeout(function () { document.querySelector(".legend button").click(); }, 3000);
setTimeout(function () {
  document.documentElement.dataset.left = document.querySelectorAll(".plot g.trace").length;
}, 5000);
</script></body>"""


@pytest.mark.skipif(not BROWSER, reason="needs Chromium")
def test_a_browser_draws_every_curve(root, tmp_path):
    """All traces and no error; a name in the legend hides its curve; and an error would be seen."""
    page = (root / "report" / "report.html").read_text()
    expected = sum(len(figure["data"]) for figure in drawn_in(page).values())
    assert expected == 4 + 3 + 2 + 2  # curves: metric, NMSE, NMSE of the other machine; histograms
    path = tmp_path / "page.html"
    path.write_text(page.replace("</body>", CLICK))
    seen = {"errors": "", "traces": str(expected), "left": str(expected - 1)}
    assert browse(path, tmp_path / "profile") == seen
    path.write_text(page.replace("Plotly.react(", "Plotly.missing("))
    assert "Plotly.missing is not a function" in browse(path, tmp_path / "profile")["errors"]


WIDE = """<iframe src="report.html" style="width: 390px; height: 900px; border: 0"></iframe><script>
setTimeout(function () {
  const page = document.querySelector("iframe").contentDocument;
  const scrolls = [...page.querySelectorAll(".scroll")];
  for (const box of scrolls) box.scrollLeft = 50;
  const still = scrolls.filter((box) => {
    const cell = box.querySelector("td");
    const left = cell.getBoundingClientRect().left - box.getBoundingClientRect().left;
    return left >= 0 && left < 2 && cell.offsetWidth < 200;
  });
  const root = document.documentElement;
  const whole = page.documentElement;
  root.dataset.beyond = whole.scrollWidth - whole.clientWidth;
  root.dataset.scrolled = scrolls.filter((box) => box.scrollLeft > 0).length > 0;
  root.dataset.still = still.length === scrolls.length;
}, 4000);
</script>"""


@pytest.mark.skipif(not BROWSER, reason="needs Chromium")
def test_tables_fit_a_phone(root, tmp_path):
    """At 390 pixels the page does not scroll sideways; its tables do, and their first column stays."""
    shutil.copytree(root / "report", tmp_path / "page")
    page = tmp_path / "page" / "phone.html"
    page.write_text(f"<!doctype html><html><body>{WIDE}</body></html>")
    seen = browse(page, tmp_path / "profile", "--allow-file-access-from-files")
    assert seen == {"beyond": "0", "scrolled": "true", "still": "true"}


def test_seeds_are_one_point_with_a_spread(tmp_path):
    """Runs that differ in nothing but the seed: the mean of their figures; single runs stay listed."""
    for seed, bpfp, value in ((0, 1.0, 0.6), (1, 1.2, 0.8)):
        run = f"lambda0.001_epochs10_seed{seed}"
        add_run(tmp_path, "elic", "hybrid", KMEANS, run, "cnn_cls", bpfp, 0.1, value)
    runs, _ = read_runs(tmp_path)
    (curve,) = group_curves(runs)
    (point,) = curve.runs
    assert (point.bpfp, point.value) == (pytest.approx(1.1), pytest.approx(0.7))
    assert point.spread("bpfp") == pytest.approx(0.2 / math.sqrt(2))
    assert "2 seeds" in point.name
    assert [run.name for run in runs] == ["lambda0.001", "lambda0.001, seed 1"]
    assert len(tables.points_table(runs).rows) == 2
