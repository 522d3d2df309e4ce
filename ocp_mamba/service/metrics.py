"""What ``/metrics`` shows, by prometheus_client."""

from __future__ import annotations

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """The counters of one service."""

    def __init__(self) -> None:
        """Create all of them at zero."""
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)

        def made(kind: type, name: str, text: str, labels: tuple[str, ...] = (), **more: object):  # type: ignore[no-untyped-def]
            return kind(f"ocp_mamba_{name}", text, labels, registry=self.registry, **more)

        self.requests: Counter = made(
            Counter, "requests", "Answered requests.", ("route", "method", "status")
        )
        self.request_seconds: Histogram = made(
            Histogram, "request_seconds", "From a request's head to its answer.", ("route",),
            buckets=SECONDS,
        )  # fmt: skip
        self.batch_chains: Histogram = made(
            Histogram, "batch_chains", "Chains that were computed together.", buckets=SIZES
        )
        self.batch_seconds: Histogram = made(
            Histogram, "batch_seconds", "The model's time for a batch.", buckets=SECONDS
        )
        self.queue: Gauge = made(Gauge, "queue_chains", "Chains and calls that wait.")
        self.sessions: Gauge = made(Gauge, "sessions", "Open sessions.")
        self.session_bytes: Gauge = made(Gauge, "session_bytes", "Memory of their states.")
        self.model: Gauge = made(
            Gauge, "model", "1 for the version that serves.", ("name", "version")
        )
        self.switches: Counter = made(Counter, "model_switches", "Changes of the version.")
        self.follow_failures: Gauge = made(
            Gauge, "follow_failures", "Look-ups of the alias, and loads of a version, that failed."
        )
        self.follow_problem: Gauge = made(
            Gauge, "follow_problem", "1 while the version named by the alias does not serve."
        )

    def text(self) -> bytes:
        """Return all of them in Prometheus' text format."""
        return generate_latest(self.registry)
