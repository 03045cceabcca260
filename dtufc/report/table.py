"""A table and how it is read: as CSV, LaTeX and HTML."""

import csv
import html
import io
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
         "·": r"$\cdot$", **{sign: "\\" + sign for sign in "&%$#_{}"}}  # fmt: skip


class Estimate(NamedTuple):
    """A cell: a number and its error bar."""

    value: float
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        bar = "" if self.low is None else f" [{self.low:.3g}, {self.high:.3g}]"
        return f"{show(self.value)}{bar}"


class Picture(NamedTuple):
    """A cell: a picture on the page, words elsewhere."""

    png: str
    """A PNG in base64."""
    words: str

    def __str__(self) -> str:
        return self.words


@dataclass(frozen=True)
class Table:
    """A table of the report, also ``<name>.csv`` and ``<name>.tex``.

    The last three fields are for the page alone, which leaves columns without any cell out.
    """

    name: str
    columns: list[str]
    rows: list[list[Any]]
    """Text, numbers, estimates, pictures, or ``None`` for an empty cell."""
    group: int = 0
    """So many first columns are the heading of the rows that share them."""
    bold: frozenset[tuple[int, int]] = frozenset()
    """(row, column) of cells."""
    title: str = ""

    def csv(self) -> str:
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows([self.columns, *self.rows])
        return out.getvalue()

    def latex(self) -> str:
        """For ``\\input``; needs booktabs."""
        lines = [" & ".join(map(_latex, row)) + r" \\" for row in [self.columns, *self.rows]]
        sides = ["lr"[_is_numeric(cells)] for cells in self._columns()]
        begin = rf"\begin{{tabular}}{{{''.join(sides)}}}"
        body = [r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule", r"\end{tabular}"]
        return "\n".join([begin, *body, ""])

    def markdown(self) -> str:
        """A table of pipes, numbers to four digits."""
        sides = [[" --- |", " ---: |"][_is_numeric(cells)] for cells in self._columns()]
        lines = [f"| {' | '.join(map(_markdown, row))} |" for row in [self.columns, *self.rows]]
        return "\n".join([lines[0], "|" + "".join(sides), *lines[1:]])

    def html(self) -> str:
        shown = [
            k for k, cells in enumerate(self._columns())
            if k >= self.group and any(cell is not None for cell in cells)
        ]  # fmt: skip
        head = "".join(f"<th>{_html(self.columns[k])}</th>" for k in shown)
        lines: list[str] = []
        before: list[Any] = []
        for i, row in enumerate(self.rows):
            shared = row[: self.group]
            if shared != before:
                facts = zip(self.columns[1 : self.group], shared[1:], strict=True)
                title = f"<b>{_html(shared[0])}</b>"
                title += "".join(f" · {_html(k)} {_html(v)}" for k, v in facts if v is not None)
                lines.append(
                    f'<tr class="group"><th colspan="{len(shown)}"><span>{title}</span></th></tr>'
                )
                before = shared
            lines.append(f"<tr>{''.join(self._cell(i, k) for k in shown)}</tr>")
        body = "\n".join(lines)
        links = [f'<a href="{self.name}{end}">{self.name}{end}</a>' for end in (".csv", ".tex")]
        return (
            f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n'
            f'<tbody>{body}</tbody></table></div>\n<p class="files">{" ".join(links)}</p>'
        )

    def _columns(self) -> Iterable[tuple[Any, ...]]:
        return zip(*self.rows, strict=True)

    def _cell(self, row: int, column: int) -> str:
        cell = self.rows[row][column]
        names = "number" * _is_number(cell) + " bold" * ((row, column) in self.bold)
        return f'<td class="{names}">{_html(cell)}</td>' if names else f"<td>{_html(cell)}</td>"


def show(cell: Any) -> str:
    """A cell as it is read: numbers to four digits."""
    if isinstance(cell, float):
        return f"{cell:.0f}" if abs(cell) >= 1000 else f"{cell:.4g}"
    return "" if cell is None else str(cell)


def _is_number(cell: Any) -> bool:
    return isinstance(cell, int | float | Estimate) or str(cell).startswith(("<= ", ">= "))


def _is_numeric(cells: Iterable[Any]) -> bool:
    return any(map(_is_number, cells))


def _html(cell: Any) -> str:
    words = html.escape(show(cell)).replace("&lt;= ", "≤ ").replace("&gt;= ", "≥ ")
    if not isinstance(cell, Picture):
        return words
    return f'<img src="data:image/png;base64,{cell.png}" alt="{words}"><br>{words}'


def _markdown(cell: Any) -> str:
    return show(cell).replace("|", r"\|").replace("<= ", "≤ ").replace(">= ", "≥ ") or "–"


def _latex(cell: Any) -> str:
    text = "".join(LATEX.get(sign, sign) for sign in show(cell))
    return text.replace("<= ", r"$\le$ ").replace(">= ", r"$\ge$ ")
