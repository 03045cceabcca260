"""Rate and distortion: one row per feature in ``rate.csv``, pooled figures in ``summary.json``."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from dtufc import files
from dtufc.errors import UserError


@dataclass(frozen=True)
class RateRow:
    """The coding of one feature: a row of ``rate.csv``."""

    name: str
    """File name without ending."""
    points: int
    """N*C*H*W."""
    bytes: int
    """Bytes counted as rate: the whole file; the coded strings alone in the published mode."""
    bpfp: float
    """Bits per feature point: 8 * bytes / points."""
    mse: float
    """Mean squared error in the feature's own values."""
    encode_s: float
    """Seconds from array to bytes, a search for the quality included."""
    decode_s: float
    """Seconds from bytes to array."""
    quality: float | None = None
    """Quality that it was coded at; none where the codec has one rate, or an earlier version did it."""
    tokens: int | None = None
    """Tokens of all layers; none for maps, and in results of earlier versions."""
    token_error: float | None = None
    """Relative error per token, see :mod:`dtufc.token_error`; none where ``tokens`` is."""


def write_rows(path: Path, rows: Iterable[Any], shared: Mapping[str, Any] | None = None) -> None:
    """Write dataclass rows as CSV, whole or not at all.

    Args:
        shared: further columns, the same in all rows, such as :func:`dtufc.provenance.computer` tells.
    """
    rows, shared = list(rows), shared or {}
    out = io.StringIO()
    names = [*(field.name for field in fields(rows[0])), *shared]
    writer = csv.DictWriter(out, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) | shared for row in rows)
    files.write_text(path, out.getvalue())


def read_rate(path: Path) -> list[RateRow]:
    """Read ``rate.csv``.

    Raises:
        UserError: a column is missing or no number; the message names the file.
    """
    with path.open(newline="") as file:
        try:
            return [_rate_row(row) for row in csv.DictReader(file)]
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path}: not a rate table ({error})") from error


def _rate_row(row: dict[str, str]) -> RateRow:
    later = {"quality": float, "tokens": int, "token_error": float}  # tables of old lack them
    known = {field.name: field.type for field in fields(RateRow) if field.name not in later}
    values = {name: kind(row[name]) for name, kind in known.items()}
    return RateRow(**values, **{k: kind(row[k]) for k, kind in later.items() if row.get(k)})


def summarise(rows: Sequence[RateRow], variance: float) -> dict[str, float | int]:
    """Pooled figures (total bits over total points) and means over files, named for what they are.

    Args:
        variance: of all values of the set, for the normalised MSE.
    """
    points = sum(row.points for row in rows)
    mse = sum(row.mse * row.points for row in rows) / points
    found = {}
    if all(row.tokens for row in rows):
        tokens = sum(row.tokens for row in rows)
        found["token_error"] = sum(row.token_error * row.tokens for row in rows) / tokens
    return {
        "files": len(rows),
        "points": points,
        "bytes": sum(row.bytes for row in rows),
        "bpfp_pooled": 8 * sum(row.bytes for row in rows) / points,
        "bpfp_mean": sum(row.bpfp for row in rows) / len(rows),
        "mse_pooled": mse,
        "mse_mean": sum(row.mse for row in rows) / len(rows),
        "nmse_pooled": mse / variance if variance > 0 else 0.0,
        **found,
        "encode_s": sum(row.encode_s for row in rows),
        "decode_s": sum(row.decode_s for row in rows),
    }


def format_table(rows: Sequence[Any]) -> str:
    """Dataclass rows as aligned text; columns that are empty throughout are left out."""
    names = [
        field.name
        for field in fields(rows[0])
        if any(getattr(row, field.name) not in (None, "") for row in rows)
    ]
    cells = [names] + [[_cell(getattr(row, name)) for name in names] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(names))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) for line in cells]
    return "\n".join([lines[0], "  ".join("-" * w for w in widths), *lines[1:]])


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
