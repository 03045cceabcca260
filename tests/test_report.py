"""The report: its figures on curves whose answer is known, its files, and the page in a browser."""

import csv
import html.parser
import importlib
import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dtufc import files, provenance, records
from dtufc.evaluate import EvaluateConfig
from dtufc.feature import write_feature
from dtufc.paths import (
    ACCURACY_JSON,
    RATE_CSV,
    REPOSITORY,
    RUN_JSON,
    SUMMARY_JSON,
    DataRoot,
    FeatureRoot,
)
from dtufc.report import figures, tables
from dtufc.report.records import Machine, Run, group_curves, read_runs
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
    bpfp: float, nmse: float, value: float | None = None, **config,
) -> Path:  # fmt: skip
    """The records of a finished run: three features, the first one slow to code."""
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
    return folder


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
    assert (
        "No task accuracy is recorded for bert_hidden" in (root / "report/report.html").read_text()
    )


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
    assert not [pair for pair in tags.attributes if pair[1] in ("src", "srcset", "data", "action")]
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
    assert len(paths) == 7
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


def browse(page: Path, profile: Path) -> dict[str, str]:
    """The page's data attributes after a browser ran it."""
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    options += ["--disable-component-update", "--disable-sync", "--virtual-time-budget=10000"]
    command = [BROWSER, *options, f"--user-data-dir={profile}", "--dump-dom", page.as_uri()]
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
