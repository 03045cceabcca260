"""A table and how it is read: as CSV, LaTeX and HTML."""

import csv
import html
import io
from dataclasses import dataclass
from typing import Any

LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
         "·": r"$\cdot$", **{sign: "\\" + sign for sign in "&%$#_{}"}}  # fmt: skip


@dataclass(frozen=True)
class Table:
    """A table of the report, also ``<name>.csv`` and ``<name>.tex``.

    The last three fields are for the page alone.
    """

    name: str
    columns: list[str]
    rows: list[list[Any]]
    """Text, numbers, or ``None`` for an empty cell."""
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
        sides = ["lr"[any(map(_is_number, cells))] for cells in zip(*self.rows, strict=True)]
        begin = rf"\begin{{tabular}}{{{''.join(sides)}}}"
        body = [r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule", r"\end{tabular}"]
        return "\n".join([begin, *body, ""])

    def html(self) -> str:
        head = "".join(f"<th>{_html(name)}</th>" for name in self.columns[self.group :])
        lines: list[str] = []
        before: list[Any] = []
        for i, row in enumerate(self.rows):
            shared = row[: self.group]
            if shared != before:
                facts = zip(self.columns[1 : self.group], shared[1:], strict=True)
                title = f"<b>{_html(shared[0])}</b>"
                title += "".join(f" · {_html(k)} {_html(v)}" for k, v in facts if v is not None)
                span = len(row) - self.group
                lines.append(
                    f'<tr class="group"><th colspan="{span}"><span>{title}</span></th></tr>'
                )
                before = shared
            cells = [self._cell(i, k) for k in range(self.group, len(row))]
            lines.append(f"<tr>{''.join(cells)}</tr>")
        body = "\n".join(lines)
        links = [f'<a href="{self.name}{end}">{self.name}{end}</a>' for end in (".csv", ".tex")]
        return (
            f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n'
            f'<tbody>{body}</tbody></table></div>\n<p class="files">{" ".join(links)}</p>'
        )

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
    return isinstance(cell, int | float) or str(cell).startswith(("<= ", ">= "))


def _html(cell: Any) -> str:
    return html.escape(show(cell)).replace("&lt;= ", "≤ ").replace("&gt;= ", "≥ ")


def _latex(cell: Any) -> str:
    text = "".join(LATEX.get(sign, sign) for sign in show(cell))
    return text.replace("<= ", r"$\le$ ").replace(">= ", r"$\ge$ ")
