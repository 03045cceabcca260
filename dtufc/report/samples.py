"""Samples side by side: what a machine makes of a feature as it is, and of the same one decoded."""

import base64
import colorsys
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from dtufc import files
from dtufc.errors import UserError
from dtufc.paths import ACCURACY_JSON, RATE_CSV
from dtufc.records import read_rate
from dtufc.report.curves import Machine
from dtufc.report.judged import RIGHT, Judged
from dtufc.report.records import Run, judge
from dtufc.report.table import Picture, Table, show
from dtufc.report.winners import leading_curve

SAMPLES = 6  # of each machine
SIDE = 144  # of a picture on the page, pixels at most
ANSWERS = ("prediction", "seen")
"""Columns of a sample's answer in words."""
LABELS = ("label", "caption")


def chosen_runs(machine: Machine) -> list[Run]:
    """The lowest, a middle and the highest rate of the leading curve, as far as it was judged."""
    curve = leading_curve(machine)
    runs = [run.singles[0] for run in curve.runs if run.value is not None] if curve else []
    return [runs[k] for k in sorted({0, len(runs) // 2, len(runs) - 1})] if runs else []


def sample_table(machine: Machine) -> Table | None:
    """Answers, masks or pictures of the samples that the lower rates spoil most, the worst first.

    Returns:
        ``None`` where the machine kept no answers, masks or pictures.

    Raises:
        UserError: a record or a picture is damaged; the message names it.
    """
    uncoded = judge(machine.root.folder)
    decoded = [(run, each) for run in chosen_runs(machine) if (each := judge(run.folder))]
    if not uncoded or not decoded or any(each.names != uncoded.names for _, each in decoded):
        return None
    columns = [(machine.root.folder, uncoded), *((run.folder, each) for run, each in decoded)]
    in_words = not all(has_pictures(folder) for folder, _ in columns)
    if in_words and not any(name in uncoded.rows[0] for name in ANSWERS):
        return None
    rows = []
    for k in worst_first([run for run, _ in decoded], uncoded, [each for _, each in decoded]):
        label = next((uncoded.rows[k][name] for name in LABELS if name in uncoded.rows[k]), None)
        cells = [_cell(folder, judged, k, in_words) for folder, judged in columns]
        rows.append([uncoded.names[k], label, *cells])
    codec = leading_curve(machine).label
    heads = [f"{codec} at {show(run.bpfp)} bpfp" for run, _ in decoded]
    return Table(f"samples_{machine.kind}", ["sample", "label", "uncoded", *heads], rows)


def worst_first(runs: Sequence[Run], uncoded: Judged, decoded: Sequence[Judged]) -> list[int]:
    """Places of at most SAMPLES samples: those whose own metric worsens most over the runs together;
    of equals, those with the greatest squared error at the lowest rate."""
    drop = np.zeros(len(uncoded.rows))
    sign = -1 if runs[0].less_is_better else 1
    for each in decoded:
        if each.scores is not None and uncoded.scores is not None:
            drop += sign * (uncoded.scores - each.scores)
    errors = {row.name: row.mse for row in read_rate(runs[0].folder / RATE_CSV)}
    mse = np.array([errors.get(name, 0.0) for name in uncoded.names])
    return np.lexsort((-mse, -drop))[:SAMPLES].tolist()


def predictions(folder: Path) -> Path:
    """Where a machine puts its pictures of the features that were judged in a folder."""
    return folder / "predictions"


def has_pictures(folder: Path) -> bool:
    """Whether a folder's pictures are those of its ``accuracy.json``."""
    if not (folder / ACCURACY_JSON).is_file():
        return False
    options = files.read_json(folder / ACCURACY_JSON).get("options") or {}
    return bool(options.get("save_predictions")) and any(predictions(folder).glob("*.png"))


def _cell(folder: Path, judged: Judged, k: int, in_words: bool) -> str | Picture:
    row = judged.rows[k]
    answer = next((row[name] for name in ANSWERS if name in row), None)
    words = answer or ""
    if judged.scores is not None:
        is_answer = RIGHT in row or judged.is_share
        score = (
            "✗✓"[int(judged.scores[k])] if is_answer else f"{judged.metric} {judged.scores[k]:.3g}"
        )
        words = f"{words} {score}".strip()
    return (
        words
        if in_words
        else Picture(_thumbnail(predictions(folder) / f"{row['name']}.png"), words)
    )


def _thumbnail(path: Path) -> str:
    """A picture, or a mask of classes in colours, at most SIDE pixels wide and high -> PNG in base64."""
    try:
        with Image.open(path) as picture:
            pixels = np.asarray(picture)
    except OSError as error:
        raise UserError(f"{path}: not a readable picture ({error})") from error
    is_mask = pixels.ndim == 2
    small = Image.fromarray(palette()[pixels] if is_mask else pixels)
    # a mask's colours are classes, which do not mix
    small.thumbnail((SIDE, SIDE), Image.Resampling.NEAREST if is_mask else Image.Resampling.LANCZOS)
    out = io.BytesIO()
    small.save(out, "PNG", optimize=True)
    return base64.b64encode(out.getvalue()).decode()


def palette() -> np.ndarray:
    """A colour for each class of a mask, (256, 3) uint8: 0 is black, 255 white, others far apart."""
    hues = [k * 0.618034 % 1 for k in range(254)]  # the golden ratio spreads any number of them
    colours = [colorsys.hsv_to_rgb(hue, 0.75, 0.95 - 0.35 * (k % 2)) for k, hue in enumerate(hues)]
    return (255 * np.array([(0, 0, 0), *colours, (1, 1, 1)])).astype(np.uint8)
