"""Tables and numbers that a page quotes of a CSV of results, between two comments::

    <!-- quote results/tiny.csv headline columns=codec,"bpfp at 99 %" evaluated_on=sd3_tiny_tti -->
    | codec | bpfp at 99 % |
    ...
    <!-- /quote -->

The first two words are the CSV, from the repository's root, and a table: ``rows`` as the CSV has them,
or one of the report's, ``headline``, ``nmse``, ``kl``, ``winners`` or ``bd_rate``. ``cells`` are rows of
any CSV, such as a benchmark's. Any others shape it:

- ``<column of the CSV>=<value>,<value>...`` keeps those rows, and the uncompressed ones, for any table;
- ``columns=<column>,...`` keeps those columns of the table, in that order, and equal rows once;
- ``pivot=<down>,<across>,<cell>`` makes a table of two sides out of three columns.

A quote on one line, ``<!-- quote ... -->0.0637<!-- /quote -->``, is the one cell of its table. Between
code fences nothing is a quote.
"""

import csv
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from dtufc.errors import UserError
from dtufc.report import tables
from dtufc.report.results import (
    UNCOMPRESSED,
    ResultRow,
    as_machines,
    read_results,
)
from dtufc.report.table import Table, show
from dtufc.report.winners import winner_table

FENCED = r"^(?P<fence>```+|~~~+).*?^(?P=fence)"
QUOTED = r"<!-- quote (?P<query>[^\n]*?) -->(?P<before>.*?)<!-- /quote -->"
PARTS = re.compile(rf"{FENCED}|{QUOTED}|<!-- quote[^\n]*|<!-- /quote -->", re.DOTALL | re.MULTILINE)
CELLS = "cells"
"""Table of a CSV that holds no results."""
COLUMNS = [field.name for field in fields(ResultRow)]
MADE_OF: dict[str, Callable[[Sequence[ResultRow]], Table]] = {
    "rows": lambda rows: Table("rows", COLUMNS, [[getattr(r, c) for c in COLUMNS] for r in rows]),
    "headline": lambda rows: tables.headline(as_machines(rows)),
    "nmse": lambda rows: tables.nmse_headline(as_machines(rows)),
    "kl": lambda rows: tables.kl_headline(as_machines(rows)),
    "winners": lambda rows: winner_table(as_machines(rows)),
    "bd_rate": lambda rows: tables.bd_table(as_machines(rows), None),
}


def requote(page: str, root: Path) -> str:
    """A page with each quote as its CSV says it now.

    Args:
        page: Markdown.
        root: folder that the CSVs are named from.

    Raises:
        FileNotFoundError: a CSV is missing.
        UserError: a quote asks for what there is not; the message quotes it.
    """

    def again(match: re.Match[str]) -> str:
        query, before = match["query"], match["before"]
        if match["fence"]:
            return match[0]
        if query is None or "<!-- quote" in before:
            raise UserError(f"{match[0].splitlines()[0]}: a quote that has not both its comments")
        try:
            table = ask(query, root)
            if "\n" in before:
                text = f"\n{table.markdown()}\n"
            elif [len(row) for row in table.rows] == [1]:
                text = show(table.rows[0][0])
            else:
                raise UserError("a quote on one line is one cell; here are more, or none")
        except UserError as error:
            raise UserError(f"quote {query}: {error}") from error
        return f"<!-- quote {query} -->{text}<!-- /quote -->"

    return PARTS.sub(again, page)


def ask(query: str, root: Path) -> Table:
    """The table that a quote's words ask for.

    Raises:
        FileNotFoundError, UserError: as :func:`requote`.
    """
    source, name, *words = shlex.split(query) + [""] * 2
    options = dict(word.partition("=")[::2] for word in words if word)
    if name not in (*MADE_OF, CELLS):
        raise UserError(f"no table is called {name!r}, there are {', '.join((*MADE_OF, CELLS))}")
    columns, pivot = (options.pop(key, None) for key in ("columns", "pivot"))
    path = root / source
    table = _cells(path, options) if name == CELLS else _results(name, path, options)
    if not table.rows:
        raise UserError("no row is left")
    if pivot is not None:
        table = _pivot(table, *_places(table, pivot, 3))
    if columns is None:
        return table
    places = _places(table, columns)
    chosen = dict.fromkeys(tuple(row[k] for k in places) for row in table.rows)
    return Table(name, [table.columns[k] for k in places], [list(row) for row in chosen])


def _cells(path: Path, options: dict[str, str]) -> Table:
    """Rows of any CSV, those that the options keep; what reads as a number is one."""
    with path.open(newline="") as file:
        columns, *rows = csv.reader(file)
    for column, wanted in options.items():
        if column not in columns:
            raise UserError(f"no column is called {column!r}, there are {', '.join(columns)}")
        place, kept = columns.index(column), wanted.split(",")
        rows = [row for row in rows if row[place] in kept]
    return Table(CELLS, columns, [[_value(cell) for cell in row] for row in rows])


def _value(cell: str) -> float | str | None:
    try:
        return float(cell) if cell else None
    except ValueError:
        return cell


def _results(name: str, path: Path, options: dict[str, str]) -> Table:
    """A table of the report, of the rows that the options keep."""
    rows = read_results(path)
    for column, wanted in options.items():
        if column not in COLUMNS:
            raise UserError(f"no column is called {column!r}, there are {', '.join(COLUMNS)}")
        kept = wanted.split(",")
        # what is uncompressed is of no codec, but of a machine
        also = (UNCOMPRESSED,) if column != "evaluated_on" and name != "rows" else ()
        rows = [row for row in rows if show(getattr(row, column)) in kept or row.codec in also]
    return MADE_OF[name](rows)


def _places(table: Table, names: str, count: int | None = None) -> list[int]:
    words = names.split(",")
    for name in words:
        if name not in table.columns:
            raise UserError(f"no column is called {name!r}, there are {', '.join(table.columns)}")
    if count not in (None, len(words)):
        raise UserError(f"pivot: expected {count} columns, got {names!r}")
    return [table.columns.index(name) for name in words]


def _pivot(table: Table, down: int, across: int, cell: int) -> Table:
    """A codec of each machine's own is one row: its training set is called own.

    Raises:
        UserError: two rows have the same place.
    """
    cells: dict[tuple[Any, Any], Any] = {}
    for row in table.rows:
        place = (_call_own(row[down], row[0]), row[across])
        if place in cells:
            raise UserError(f"pivot: two rows are {' and '.join(map(show, place))}")
        cells[place] = row[cell]
    heads = list(dict.fromkeys(head for _, head in cells))
    sides = dict.fromkeys(side for side, _ in cells)
    rows = [[side, *(cells.get((side, head)) for head in heads)] for side in sides]
    return Table(table.name, [table.columns[down], *map(show, heads)], rows)


def _call_own(label: Any, kind: Any) -> Any:
    """``klt · csr`` of a kind ``llama3_csr`` as ``klt · own``."""
    if not isinstance(label, str):
        return label
    is_own = str(kind).endswith
    return " · ".join("own" if is_own(f"_{part}") else part for part in label.split(" · "))
