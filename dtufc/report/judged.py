"""What a machine said of each test sample, and how far chance in their choice may move its accuracy.

Error bars are 95 % intervals over test samples: Wilson's where each answer is right or wrong, else
between percentiles of a bootstrap (Efron and Tibshirani, 1993, chapter 13).
"""

import csv
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest

from dtufc.errors import UserError

LEVEL = 0.95
REPLICATES = 2000
RIGHT = "correct"
"""Column of the rows that says of an answer whether it is right, 1 or 0."""
INSIDE, UNION = "intersections", "unions"
"""Columns of segmentations: pixels of each class, separated by spaces. The mean over classes of their
pooled ratio is the metric."""


@dataclass(frozen=True)
class Judged:
    """The rows of ``accuracy.csv``, one per sample, and the metric that they make."""

    metric: str
    value: float
    rows: list[dict[str, str]]

    @property
    def names(self) -> list[str]:
        return [row["name"] for row in self.rows]

    @cached_property
    def scores(self) -> np.ndarray | None:
        """The metric of each sample alone, (samples,): a column of its name, or whether it is right.
        ``None`` where the rows have neither."""
        column = next((name for name in (self.metric, RIGHT) if name in self.rows[0]), None)
        if column is None:
            return None
        scores = np.array([float(row[column]) for row in self.rows])
        return np.where(np.isnan(scores), self.value, scores)  # a mask without a pixel that counts

    @cached_property
    def is_share(self) -> bool:
        """Whether the metric is the share of samples that are right."""
        scores = self.scores
        return (
            scores is not None
            and bool(np.isin(scores, (0, 1)).all())
            and abs(scores.mean() - self.value) < 1e-6
        )

    @cached_property
    def replicates(self) -> np.ndarray | None:
        """The metric over samples drawn with replacement, (REPLICATES,). The draws depend on the number
        of samples alone, so that two folders of features may be compared draw by draw."""
        count = len(self.rows)
        draws = np.random.default_rng(0).multinomial(count, [1 / count] * count, REPLICATES)
        if INSIDE in self.rows[0]:
            inside, union = (
                np.array([row[key].split() for row in self.rows], np.int64)
                for key in (INSIDE, UNION)
            )  # (samples, classes)
            with np.errstate(invalid="ignore"):  # a class that no drawn sample has
                return np.nanmean((draws @ inside) / (draws @ union), axis=1)
        if self.scores is None:
            return None
        # centred on the metric: it need not be the mean of the samples' own
        return draws @ self.scores / count - self.scores.mean() + self.value

    @cached_property
    def interval(self) -> tuple[float, float] | None:
        """The error bar, (low, high); ``None`` where the rows tell no sample's metric."""
        if self.is_share:
            right = round(self.value * len(self.rows))
            found = binomtest(right, len(self.rows)).proportion_ci(LEVEL, "wilson")
            return float(found.low), float(found.high)
        return None if self.replicates is None else _percentiles(self.replicates)

    def within_noise(self, full: "Judged") -> bool | None:
        """Whether the difference to the uncompressed features may be chance: McNemar's exact test where
        answers are right or wrong, else the paired bootstrap. ``None`` where it cannot be told."""
        if self.names != full.names or self.replicates is None or full.replicates is None:
            return None
        if self.is_share and full.is_share:
            lost, won = ((self.scores < full.scores).sum(), (self.scores > full.scores).sum())
            return lost + won == 0 or binomtest(int(lost), int(lost + won)).pvalue > 1 - LEVEL
        low, high = _percentiles(self.replicates - full.replicates)
        return low <= 0 <= high


def _percentiles(replicates: np.ndarray) -> tuple[float, float]:
    tail = 50 * (1 - LEVEL)
    low, high = np.percentile(replicates, (tail, 100 - tail))
    return float(low), float(high)


def read_judged(path: Path, accuracy: dict[str, Any]) -> Judged | None:
    """Read ``accuracy.csv`` -> its rows; ``None`` where there is none.

    Args:
        accuracy: the ``accuracy.json`` beside it.

    Raises:
        UserError: a row is no row of this metric; the message names the file.
    """
    if not accuracy or not path.is_file():
        return None
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    judged = Judged(accuracy["metric"], float(accuracy["value"]), rows)
    check: tuple[Callable[[], Any], ...] = (lambda: judged.names, lambda: judged.interval)
    try:
        if not rows:
            raise ValueError("no rows")
        for fact in check:
            fact()
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: not a table of judged samples ({error})") from error
    return judged
