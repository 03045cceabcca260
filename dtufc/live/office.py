"""What the replicas of a server share: their counts, and whether they are to stop.

Each replica reports once per second. Counters of a replica that ended are kept, so that sums never fall;
its gauges are forgotten.
"""

import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

SILENT = 10.0
"""Seconds without a report, after which a replica is taken for dead."""
PROCESS = "process_"
"""Metrics of a process, which are told for each replica."""
INSIDE = "dtufc_live_inside"


class Series(NamedTuple):
    """One metric of a replica, as plain values."""

    name: str
    kind: str
    """counter, gauge or histogram."""
    text: str
    samples: list[tuple[str, dict[str, str], float]]
    """Name, labels and value of each."""


def read_series(registry: CollectorRegistry) -> list[Series]:
    """What a registry holds."""
    return [
        Series(
            metric.name,
            metric.type,
            metric.documentation,
            [(s.name, dict(s.labels), s.value) for s in metric.samples if not _is_date(s.name)],
        )
        for metric in registry.collect()
    ]


def _is_date(name: str) -> bool:
    """When a counter was made, which has no sum."""
    return name.endswith("_created")


class Office:
    """Kept by one actor of the cluster.

    Args:
        clock: seconds, for tests.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._series: dict[str, list[Series]] = {}
        self._seen: dict[str, float] = {}
        self._former: list[Series] = []
        """Counters of replicas that ended."""
        self._editions: dict[str, int] = {}
        self._begun, self._current, self._stopping = 0, 0, False

    def begin(self) -> int:
        """Replicas are about to start -> the number of their deployment. They let clients in."""
        self._begun, self._stopping = self._begun + 1, False
        return self._begun

    def open(self, edition: int) -> None:
        """The replicas of a deployment are there; the driver of the former one is replaced."""
        self._current = edition

    def current(self) -> int:
        """Number of the deployment that was opened last."""
        return self._current

    def ready(self, edition: int) -> int:
        """Replicas of a deployment that reported lately."""
        return sum(self._editions[replica] == edition for replica in self.present())

    def stop(self) -> None:
        """All replicas are to let nobody in any more."""
        self._stopping = True

    def report(self, replica: str, edition: int, series: Iterable[Any], gone: bool = False) -> bool:
        """A replica tells its counts -> whether it is to stop.

        Args:
            gone: this is its last report.
        """
        told = [Series(*each) for each in series]
        if gone:
            self._seen.pop(replica, None)
            self._series.pop(replica, None)
            self._editions.pop(replica, None)
            self._former = add_up([self._former, lasting(told)])
        else:
            self._series[replica], self._seen[replica] = told, self._clock()
            self._editions[replica] = edition
        return self._stopping

    def present(self) -> list[str]:
        """Replicas that reported lately."""
        now = self._clock()
        return [replica for replica, seen in self._seen.items() if now - seen < SILENT]

    def inside(self) -> int:
        """Sessions and requests under way, in all replicas."""
        return int(sum(each.samples[0][2] for each in self._sum() if each.name == INSIDE))

    def text(self) -> bytes:
        """The sums of all replicas, in Prometheus' text format."""
        metrics = []
        for each in self._sum():
            metrics.append(Metric(each.name, each.text, each.kind))
            for name, labels, value in each.samples:
                metrics[-1].add_sample(name, labels, value)

        class Sums(Collector):
            def collect(self) -> Iterable[Metric]:
                return metrics

        registry = CollectorRegistry()
        registry.register(Sums())
        return generate_latest(registry)

    def _sum(self) -> list[Series]:
        present = set(self.present())
        told = [
            named(series, replica) if replica in present else lasting(series)
            for replica, series in self._series.items()
        ]
        replicas = "dtufc_live_replicas"
        count = [(replicas, {}, float(len(present)))]
        text = "Replicas that reported lately."
        return [*add_up([self._former, *told]), Series(replicas, "gauge", text, count)]


def lasting(series: Iterable[Series]) -> list[Series]:
    """Without what is true of a running replica alone."""
    return [each for each in series if each.kind != "gauge" and not each.name.startswith(PROCESS)]


def named(series: Iterable[Series], replica: str) -> list[Series]:
    """With the replica's name at what is told for each replica."""
    return [
        each._replace(samples=[(name, {**labels, "replica": replica}, value)
                               for name, labels, value in each.samples])
        if each.name.startswith(PROCESS) else each
        for each in series
    ]  # fmt: skip


def add_up(told: Iterable[list[Series]]) -> list[Series]:
    """Sums of the samples with the same name and labels."""
    metrics: dict[str, Series] = {}
    sums: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], float]] = {}
    for each in (each for series in told for each in series):
        metrics.setdefault(each.name, each)
        found = sums.setdefault(each.name, {})
        for name, labels, value in each.samples:
            key = name, tuple(labels.items())
            found[key] = found.get(key, 0.0) + value
    return [
        each._replace(samples=[(name, dict(labels), value)
                               for (name, labels), value in sums[key].items()])
        for key, each in metrics.items()
    ]  # fmt: skip
