"""What a server counts, for Prometheus."""

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Counters of one server."""

    def __init__(self):
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)

        def make(kind: type, name: str, text: str, *labels: str, **more):
            return kind(f"dtufc_live_{name}", text, labels, registry=self.registry, **more)

        self.bytes = make(Counter, "bytes", "Bytes of features and answers.", "direction")
        self.frames = make(Counter, "frames", "Frames, and bitstreams that were posted.")
        self.rows = make(Counter, "rows", "Tokens or whole features that were decoded.")
        self.seconds = make(
            Histogram, "seconds", "Time of a frame: to wait for its turn, to decode, to compute.",
            "part", buckets=SECONDS,
        )  # fmt: skip
        self.batch = make(
            Histogram, "batch", "Steps of sessions, or posted features, that were computed together.",
            "of", buckets=SIZES,
        )  # fmt: skip
        self.sessions = make(Counter, "sessions", "Sessions that were opened.")
        self.inside = make(Gauge, "inside", "Sessions and requests under way.")
        self.refusals = make(Counter, "refusals", "Clients that were refused.", "code")

    def text(self) -> bytes:
        """All of it, in Prometheus' text format."""
        return generate_latest(self.registry)
