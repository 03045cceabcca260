"""The page of all results, and the files it is written to. It needs neither server nor network."""

import html
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from plotly.offline import get_plotlyjs

from dtufc import files
from dtufc.codec import CONFIG_JSON
from dtufc.errors import UserError
from dtufc.report import distributions, tables
from dtufc.report.curves import Machine, read_machine
from dtufc.report.figures import BD_POINTS, find_anchor
from dtufc.report.judged import LEVEL
from dtufc.report.plots import COLOURS, Look, choose_looks, curve_plots, histogram_plot
from dtufc.report.provenance import provenance_table
from dtufc.report.records import Run, read_runs
from dtufc.report.samples import SAMPLES, sample_table
from dtufc.report.table import Table, show
from dtufc.report.winners import leading_curve, winner_table

TITLE = "Feature coding: rate, error and task accuracy"
TABLES = ("headline", "nmse", "kl", "winners", "samples_*", "bd_rate", "cross_*", "speed",
          "distribution", "points", "provenance")  # fmt: skip
STYLE, SCRIPT = (Path(__file__).with_name(name).read_text() for name in ("page.css", "page.js"))

LEAD = """Each point of a curve is one codec at one rate on one kind of feature. Left is fewer bits. Up
is a better task metric (down for a perplexity), down is a smaller error. The dashed line is the metric
without coding. Point at a marker for its figures, click a name to hide its curve."""
KEY = {
    "BPFP": """bits per feature point: eight times the bytes of the whole bitstream (of the coded strings
alone in curves of “published counting”) over the number of values, pooled over the test features.""",
    "NMSE": "the mean squared error over the features' variance.",
    "Token error": """of features that are tokens: the mean over tokens of the squared error relative to
the token's own squared distance from the centre, so that a few giant values cannot hide it.""",
    "KL": "how far a language model's distribution of the next token is from the uncut model's: nats.",
    "Task metric": "what the large model's back half reaches on the decoded features.",
    "Curve": """one codec configuration: codec · trained on · transform. <i>hybrid</i> is one universal
codec for all machines.""",
}
BARS = f"""[low, high] in tables: {LEVEL:.0%} intervals over the test samples, how far the metric may
move with other samples of the same kind. They are Wilson's where each answer is right or wrong, else a
bootstrap. They say nothing of other seeds of the training. Codecs are judged on the same samples, so a
difference may be certain though their bars overlap. “Within noise” is tested sample by sample for that
reason: McNemar's test, or a paired bootstrap."""
HEADLINE = """The rate at which each codec reaches 99 % of the uncompressed metric (of a perplexity, of
which less is better, 101 % and 100.1 %), and at which it is within one percentage point of it,
interpolated on log BPFP between measured points (the rising envelope of the curve). ≤: the lowest rate
that was measured reaches it already. Bold: the fewest bits, where no such bound may undercut it.
“Without loss beyond noise” is the lowest measured rate from which on the difference to the uncompressed
metric may be chance; few samples hide a loss, so mind their number."""
FOREIGN = """ Codecs trained for another machine are in the <a href="#cross">cross tables</a>."""
NMSE = """The rate at which each codec reaches an NMSE and a token error, on the machines without a
task metric, interpolated as above."""
KL = """The rate at which each codec reaches a KL divergence from the uncut language model, interpolated
as above. It orders codecs more surely than perplexity, whose noise hides small losses."""
WINNERS = """What the best codec gives for at most so many bits per feature point, by the task metric and
by each error. “At” is the rate where it does: the limit itself, interpolated on log BPFP between
measured points, or a lower rate that was measured. Nothing is extrapolated. “Tied with” names the
codecs whose metric lies within the winner's error bar, so that the samples do not tell them apart."""
BD = f"""Mean difference in rate at equal quality, in percent, negative is better; BD-SNR is the mean
difference of -10 log10 NMSE at equal rate, in dB, positive is better. Piecewise cubic over log BPFP,
over the part that both curves cover; “shared” says how much of both that is, and a small share says
little. A curve needs {BD_POINTS} points that rise. Each heading names its machine's anchor:
<span class="number">--anchor</span> where it was given, else the curve that most others can be compared
with, a Hyperprior among equals."""
CROSS = """What a codec trained on one set of features (columns) gives on each machine (rows), at the
rate parameter that most training sets share. Bold: trained on this machine alone."""
SPEED = f"""Millions of feature points per second, pooled over all features and rates of a curve; “after
first” leaves out each run's first feature, which also pays for compiling and loading. The size is
{CONFIG_JSON} and {tables.WEIGHTS} of one model; a curve of a learned codec needs a model for each rate.
Empty where the codec folder is not there."""
DISTRIBUTION = f"""Of at most {distributions.SAMPLE_FILES} test features and
{distributions.SAMPLE_VALUES} values of each, where there is a mapping. Excess kurtosis is 0 for a normal
and -1.2 for a uniform distribution; entropy is that of the histogram over {distributions.BINS} equal
bins, at most {math.log2(distributions.BINS):g} bits."""
PROVENANCE = """The commands of all runs as their records have them (paths as they were), by revision,
versions and computer; and the numbers of all runs."""


@dataclass
class Page:
    """The page as it grows, and the tables that lie beside it."""

    head: list[str] = field(default_factory=list)
    """HTML above the links."""
    parts: list[str] = field(default_factory=list)
    """HTML below them."""
    links: list[str] = field(default_factory=list)
    """HTML of the links to the sections."""
    figures: dict[str, dict] = field(default_factory=dict)
    """plotly's, by the ids of their boxes."""
    tables: list[Table] = field(default_factory=list)

    def add(self, *parts: str) -> None:
        self.parts += parts

    def section(self, name: str, title: str, text: str, link: str | None = None) -> None:
        """A heading and a paragraph of HTML; ``link`` is its name above, the title by default."""
        self.links.append(f'<a href="#{name}">{html.escape(link or title)}</a>')
        self.add(f'<h2 id="{name}">{html.escape(title)}</h2>')
        self.add(f"<p>{text}</p>" if text else "")

    def table(self, table: Table, folded: bool = False) -> None:
        self.tables.append(table)
        title = html.escape(table.title)
        if folded:
            self.add(f"<details><summary>{title}</summary>", table.html(), "</details>")
        else:
            self.add(f"<h3>{title}</h3>" if title else "", table.html())

    def plots(self, figures: Sequence[dict], style: str = "plots") -> None:
        ids = [f"plot{len(self.figures) + i}" for i in range(len(figures))]
        self.figures |= dict(zip(ids, figures, strict=True))
        boxes = "".join(f'<div class="plot" id="{name}"></div>' for name in ids)
        self.add(f'<div class="{style}">{boxes}</div>')

    def html(self) -> str:
        # "</" would end the script element that holds the figures
        figures = json.dumps(self.figures, allow_nan=False).replace("</", "<\\/")
        return "\n".join([
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{TITLE}</title>\n<style>\n{STYLE}</style>",
            f"<script>\n{SCRIPT}</script>\n<script>{get_plotlyjs()}</script>\n</head>\n<body>",
            f"<h1>{TITLE}</h1>",
            *self.head,
            f"<nav>{' '.join(self.links)}</nav>",
            *self.parts,
            f'<script type="application/json" id="figures">{figures}</script>\n</body>\n</html>\n',
        ])  # fmt: skip


def write_report(
    root: Path, output: Path, anchor: str | None = None, samples: bool = False
) -> Path:
    """Write the report on a data root -> the page.

    Args:
        output: folder of ``report.html`` and its tables; tables of an earlier report go.
        anchor: curve that BD-rates are relative to, see :func:`find_anchor`.
        samples: let the machines judge the shown features again where their pictures were not saved.

    Raises:
        FileNotFoundError: the data root holds no finished run.
        UserError: a record is damaged, nothing is called as ``anchor`` says, or a machine failed.
    """
    runs, unfinished = read_runs(root)
    machines = [read_machine(root, kind, runs) for kind in sorted({run.kind for run in runs})]
    if anchor and not any(find_anchor(machine, anchor) for machine in machines):
        have = sorted({curve.name for machine in machines for curve in machine.curves})
        raise UserError(f"anchor: no curve is called {anchor!r}, there are {', '.join(have)}")
    if samples:
        from dtufc.report.predict import save_samples  # the driver, for those who ask for it

        save_samples(root, machines)
    page = Page()
    _add_head(page, runs, machines, unfinished)
    cross = tables.cross_tables(runs)
    text = HEADLINE + FOREIGN * bool(cross)
    headlines = (
        ("headline", "Bits for the uncompressed accuracy", text, tables.headline(machines)),
        ("nmse", "Bits for an error", NMSE, tables.nmse_headline(machines)),
        ("kl", "Bits for a KL divergence", KL, tables.kl_headline(machines)),
        ("winners", "Winner per rate", WINNERS, winner_table(machines)),
    )
    for name, title, text, table in headlines:
        _add_tables(page, name, title, text, [table])
    looks = choose_looks(machines)
    for machine in machines:
        if machine.curves:
            _add_machine(page, machine, looks)
    _add_tables(page, "bd", "BD-rate", BD, [tables.bd_table(machines, anchor)])
    _add_tables(page, "cross", "Universal or task-specific", CROSS, cross)
    _add_tables(page, "speed", "Speed and size", SPEED, [tables.speed_table(root, machines)])
    _add_distributions(page, machines)
    page.section("provenance", "Provenance", PROVENANCE)
    for table in (provenance_table(root, machines, runs), tables.points_table(runs)):
        page.table(table, folded=True)
    for path in [path for name in TABLES for path in output.glob(f"{name}.*")]:
        if path.suffix in (".csv", ".tex"):
            path.unlink()
    for table in page.tables:
        files.write_text(output / f"{table.name}.csv", table.csv())
        files.write_text(output / f"{table.name}.tex", table.latex())
    files.write_text(output / "report.html", page.html())
    return output / "report.html"


def _add_tables(page: Page, name: str, title: str, text: str, found: Sequence[Table]) -> None:
    """A section of the tables that have rows; none where no table has."""
    found = [table for table in found if table.rows]
    if found:
        page.section(name, title, text)
    for table in found:
        page.table(table)


def _names(names: Iterable[str], between: str = ", ") -> str:
    return html.escape(between.join(names))


def _add_head(
    page: Page, runs: Sequence[Run], machines: Sequence[Machine], unfinished: Sequence[str]
) -> None:
    codecs = _names(dict.fromkeys(run.codec for run in runs))
    text = f"{len(runs)} finished runs of {codecs} on {len(machines)} kinds of feature."
    if unfinished:
        text += f" Left out, since they are not finished or of an earlier version: {_names(unfinished)}."
    without = [machine.kind for machine in machines if machine.accuracy.get("value") is None]
    if without:
        text += f" No task accuracy is recorded for {_names(without)}."
    if foreign := [machine.kind for machine in machines if not machine.curves]:
        text += f" Only codecs trained for other machines coded {_names(foreign)}."
    words = KEY | ({"Error bars": BARS} if any(run.low is not None for run in runs) else {})
    told = "".join(f"<dt>{word}</dt><dd>{meaning}</dd>" for word, meaning in words.items())
    page.head += [f'<p class="dim">{text}</p>', f"<p>{LEAD}</p>"]
    page.head.append(f"<details><summary>What the words mean</summary><dl>{told}</dl></details>")


def _add_machine(page: Page, machine: Machine, looks: dict[tuple, Look]) -> None:
    buttons, exact = [], []
    for number, curve in enumerate(machine.curves):
        colour, _, glyph = looks[curve.style]
        buttons.append(
            f'<button type="button" aria-pressed="true" data-curve="{number}">'
            f'<span style="color:{colour}">{glyph}</span> {html.escape(curve.label)}</button>'
        )
        exact += [f"{curve.label} at {show(run.bpfp)} BPFP" for run in curve.runs if run.nmse == 0]
    page.add("<section>")
    page.section(machine.kind, machine.kind, "")
    page.add(f'<div class="legend">{"".join(buttons)}</div>')
    page.plots(curve_plots(machine, looks))
    if exact:
        page.add(f'<p class="dim">Lossless, so not on the log axis: {_names(exact, "; ")}.</p>')
    page.add("</section>")
    if table := sample_table(machine):
        page.add(f"<h3>Samples of {html.escape(machine.kind)} side by side</h3>", _about(machine))
        page.table(table)


def _about(machine: Machine) -> str:
    """What the table of samples shows, in words."""
    label = html.escape(leading_curve(machine).label)
    return (
        f"<p>At the lowest, a middle and the highest rate of {label}, which leads at most rates of the "
        f"table of winners. The {SAMPLES} samples whose own metric falls most over these rates, the "
        "worst first; of equals, those with the greatest squared error at the lowest rate.</p>"
    )


def _add_distributions(page: Page, machines: Sequence[Machine]) -> None:
    found = [each for machine in machines for each in distributions.read_distributions(machine)]
    title = "Distributions before and after the transform"
    table = distributions.distribution_table(found)
    _add_tables(page, "distribution", title, DISTRIBUTION, [table])
    for each in found:
        before = histogram_plot(each.x, each.span, COLOURS[0], "x, before: peaky")
        after = histogram_plot(each.u, (0, 1), COLOURS[1], "u, after: balanced")
        page.add(f"<h3>{_names([each.kind, each.mapping])}</h3>")
        page.plots([before, after], "plots small")
