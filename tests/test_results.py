"""Results as data: the CSV of a data root, the tables made of it alone, and the pages that quote it."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
from test_report import KMEANS, add_answers, add_curves, add_run

from dtufc import files
from dtufc.errors import UserError
from dtufc.feature import write_feature
from dtufc.paths import REPOSITORY
from dtufc.report import quotes, tables
from dtufc.report.records import read_machine, read_runs
from dtufc.report.results import UNCOMPRESSED, as_machines, collect, read_results, to_csv
from dtufc.report.winners import winner_table

sys.path.insert(0, str(REPOSITORY / "scripts"))  # scripts are no package
export_results = importlib.import_module("export_results")
quote_results = importlib.import_module("quote_results")

CSV = "results/toy.csv"
HEADLINE = f'<!-- quote {CSV} headline pivot="codec,evaluated_on,bpfp within 1 point" -->'
END = "<!-- /quote -->"


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A data root with two machines, seeds, options that differ, and ``results/toy.csv``."""
    root = tmp_path_factory.mktemp("data")
    add_curves(root)
    add_answers(root / "cnn" / "cls", [1] * 9 + [0])
    for seed in (0, 1):
        run, right = f"lambda0.001_epochs10_seed{seed}", [1] * 8 + [0] * 2
        add_run(root, "elic", "hybrid", KMEANS, run, "cnn_cls", 1.0 + seed, 0.1, right=right)
    args = ("elic", "hybrid", KMEANS, "lambda0.001_epochs20", "cnn_cls", 1.5, 0.07)
    add_run(root, *args, value=0.9, published=True)
    write_feature(
        root / "cnn" / "cls" / "feature_test" / "f0.npy", np.zeros((1, 1, 4, 4), np.float32)
    )
    export_results.main(["--data_root", str(root), "--output", str(root / CSV)])
    return root


def test_a_row_has_all_that_tells_it(root):
    rows = read_results(root / CSV)
    runs, _ = read_runs(root)
    assert len(rows) == len(runs) + 1
    (uncoded,) = (row for row in rows if row.codec == UNCOMPRESSED)
    assert (uncoded.evaluated_on, uncoded.bpfp, uncoded.value) == ("cnn_cls", 32.0, 0.9)
    assert uncoded.low < 0.9 < uncoded.high
    first, second, published = (row for row in rows if row.codec == "elic")
    assert (first.seed, second.seed) == (0, 1)
    assert (first.lambda_value, first.options) == (0.001, '{"epochs": 10.0}')
    assert published.published and not first.published
    assert (first.value, first.samples, first.within_noise) == (0.8, 10, True)
    assert first.revision and first.processor and first.threads
    assert first.order <= second.order


def test_the_csv_is_read_as_it_was_written(root):
    """Every number whole, and the same text of the same records."""
    rows = collect(root)
    assert read_results(root / CSV) == rows
    assert to_csv(rows) == (root / CSV).read_text()


def test_tables_of_the_csv_are_those_of_the_report(root):
    runs, _ = read_runs(root)
    machines = [read_machine(root, kind, runs) for kind in ("bert_hidden", "cnn_cls")]
    again = as_machines(read_results(root / CSV))
    for table in (tables.headline, tables.nmse_headline, winner_table):
        assert table(again) == table(machines) and table(again).rows
    assert tables.bd_table(again, None) == tables.bd_table(machines, None)


def test_a_damaged_csv_names_its_line(root, tmp_path):
    text = (root / CSV).read_text()
    for old, new in (("revision", "commit"), ("32.0", "many"), ("False", "no"), ('"{""', '"{')):
        (tmp_path / "toy.csv").write_text(text.replace(old, new))
        with pytest.raises(UserError, match=r"toy\.csv:\d+: not a row of results"):
            read_results(tmp_path / "toy.csv")


def test_a_quoted_table(root):
    """Codecs of a machine's own are one row; other words, and code, stay as they are."""
    page = quotes.requote(f"Before.\n\n{HEADLINE}\n{END}\n\nAfter.\n", root)
    lines = page.splitlines()
    assert (lines[0], lines[2], lines[-3], lines[-1]) == ("Before.", HEADLINE, END, "After.")
    assert lines[3:5] == ["| codec | cnn_cls |", "| --- | ---: |"]
    cells = dict(line.strip("| ").split(" | ") for line in lines[5:-3])
    assert cells["int · own"] == "≤ 8"
    rate = 0.5 * 2 ** ((0.89 - 0.7) / 0.2)
    assert float(cells[f"hyperprior · hybrid · {KMEANS}"]) == pytest.approx(rate, rel=1e-3)
    assert float(cells["klt · own"]) == pytest.approx(rate / 2, rel=1e-3)
    assert quotes.requote(page, root) == page
    code = f"```text\n{HEADLINE}\nx\n{END}\n```\n"
    assert quotes.requote(code, root) == code


@pytest.mark.parametrize("page", [HEADLINE, END, f"{HEADLINE}\n{HEADLINE}\n{END}"])
def test_half_a_quote_is_an_error(root, page):
    with pytest.raises(UserError, match="has not both its comments"):
        quotes.requote(f"{page}\n", root)


def test_quoted_rows_and_cells(root):
    query = f"{CSV} rows columns=codec,quality,bpfp codec=klt,int evaluated_on=cnn_cls"
    table = quotes.ask(query, root)
    assert table.columns == ["codec", "quality", "bpfp"]
    assert [row[0] for row in table.rows] == ["int"] + ["klt"] * 4
    line = f"It takes <!-- quote {CSV} rows columns=bpfp codec=int --><!-- /quote --> bits."
    assert quotes.requote(line, root) == line.replace("--><!--", "-->8<!--")
    assert quotes.ask(f"{CSV} rows columns=codec codec=klt,int", root).rows == [["klt"], ["int"]]
    only = quotes.ask(f"{CSV} headline codec=klt", root)
    assert [row[5] for row in only.rows] == ["klt · cls"]


@pytest.mark.parametrize(
    "query, message",
    [
        (f"{CSV} nothing", "no table is called 'nothing', there are rows, headline"),
        (f"{CSV} rows colour=red", "no column is called 'colour'"),
        (f"{CSV} rows columns=bits", "no column is called 'bits'"),
        (f"{CSV} rows codec=mp3", "no row is left"),
        (f"{CSV} headline pivot=codec,bits", "pivot: expected 3 columns"),
        (f"{CSV} rows pivot=codec,metric,bpfp", "pivot: two rows are"),
        (f"{CSV}", "no table is called ''"),
    ],
)
def test_errors_quote_the_query(root, query, message):
    with pytest.raises(UserError, match=f"quote {query}: {message}"):
        quotes.requote(f"<!-- quote {query} -->\n<!-- /quote -->", root)


def test_one_line_is_one_cell(root):
    with pytest.raises(UserError, match="one line is one cell"):
        quotes.requote(f"<!-- quote {CSV} rows --><!-- /quote -->", root)


def test_a_page_that_disagrees_is_found(root, tmp_path):
    """By name and line; without ``--check`` it is written again, and only then agrees."""
    files.write_text(tmp_path / CSV, (root / CSV).read_text())
    page = tmp_path / "results" / "toy.md"
    files.write_text(page, f"# Toy\n\n{HEADLINE}\n{END}\n")
    argv = ["--root", str(tmp_path)]
    quote_results.main(argv)
    quote_results.main([*argv, "--check", "true"])
    good = page.read_text()
    page.write_text(good.replace("≤ 8 |", "≤ 7 |"))
    with pytest.raises(SystemExit, match=r"toy\.md:\d+: disagrees.*says '\| int · own \| ≤ 8 \|'"):
        quote_results.main([*argv, "--check", "true"])
    assert "≤ 7" in page.read_text()
    quote_results.main(argv)
    assert page.read_text() == good
    (tmp_path / CSV).unlink()
    with pytest.raises(SystemExit, match=r"toy\.md: .*toy\.csv"):
        quote_results.main([*argv, "--check", "true"])


def test_the_pages_agree_with_their_results():
    """Of this repository."""
    pages = quote_results.default_pages()
    assert REPOSITORY / "results" / "tiny.md" in pages
    quote_results.quote(quote_results.QuoteConfig(check=True, pages=pages))
