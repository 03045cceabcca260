"""What the replicas of a server share: their counts, and whether they are to stop.

Each replica reports once per second. A replica that ended keeps its counters here, so that sums never
fall; its gauges are forgotten.
"""

import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric

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
        self._edition, self._stopping = 0, False

    def open(self) -> int:
        """Somebody deploys -> the number of this deployment; the former one's driver is replaced."""
        self._edition, self._stopping = self._edition + 1, False
        return self._edition

    def edition(self) -> int:
        """Number of the last deployment."""
        return self._edition

    def stop(self) -> None:
        """All replicas are to let nobody in any more."""
        self._stopping = True

    def report(self, replica: str, series: Iterable[Any], gone: bool = False) -> bool:
        """A replica tells its counts -> whether it is to stop.

        Args:
            gone: this is its last report.
        """
        self._series[replica] = [Series(*each) for each in series]
        if gone:
            self._seen.pop(replica, None)
        else:
            self._seen[replica] = self._clock()
        return self._stopping

    def present(self) -> list[str]:
        """Replicas that reported lately."""
        now = self._clock()
        return [replica for replica, seen in self._seen.items() if now - seen < SILENT]

    def inside(self) -> int:
        """Sessions and requests under way, in all replicas."""
        return int(sum(metric.samples[0].value for metric in self._sum() if metric.name == INSIDE))

    def text(self) -> bytes:
        """The sums of all replicas, in Prometheus' text format."""
        registry = CollectorRegistry()
        office = self

        class Sums:
            def collect(self) -> Iterable[Metric]:
                return office._sum()

        registry.register(Sums())
        return generate_latest(registry)

    def _sum(self) -> list[Metric]:
        present = set(self.present())
        metrics: dict[str, Metric] = {}
        sums: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], float]] = {}
        for replica, series in self._series.items():
            for each in series:
                of_process = each.name.startswith(PROCESS)
                if replica not in present and (of_process or each.kind == "gauge"):
                    continue
                metrics.setdefault(each.name, Metric(each.name, each.text, each.kind))
                found = sums.setdefault(each.name, {})
                for name, labels, value in each.samples:
                    told = labels | ({"replica": replica} if of_process else {})
                    key = name, tuple(told.items())
                    found[key] = found.get(key, 0.0) + value
        for name, metric in metrics.items():
            for (sample, labels), value in sums[name].items():
                metric.add_sample(sample, dict(labels), value)
        present_metric = Metric("dtufc_live_replicas", "Replicas that reported lately.", "gauge")
        present_metric.add_sample("dtufc_live_replicas", {}, len(present))
        return [*metrics.values(), present_metric]
