"""Metrics for Prometheus: requests, refusals, latencies, the queue, and the network's work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from m3_integrations.engine import EncoderStats


class Metrics:
    """The metrics of one app, in a separate registry.

    Args:
        stats: Returns the network's counters.
    """

    def __init__(self, stats: Callable[[], EncoderStats]) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_StatsCollector(stats))
        self._requests = Counter(
            "m3_requests",
            "Requests that have ended; status 499 is a client that closed its connection.",
            ("path", "status"),
            registry=self.registry,
        )
        self._refusals = Counter(
            "m3_refusals", "Requests that were refused or ended at the time limit.", ("status",), registry=self.registry
        )
        self._seconds = Histogram(
            "m3_request_seconds",
            "Seconds from a request's headers to its answer.",
            ("path",),
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120),
            registry=self.registry,
        )

    def watch(
        self, *, n_running: Callable[[], float], n_waiting: Callable[[], float], oldest_s: Callable[[], float]
    ) -> None:
        """Add gauges of the queue.

        Args:
            n_running: Returns how many requests run.
            n_waiting: Returns how many requests wait.
            oldest_s: Returns the seconds since the oldest of them arrived.
        """
        for name, documentation, value in (
            ("m3_requests_running", "Requests under way.", n_running),
            ("m3_requests_waiting", "Requests that wait until they may begin.", n_waiting),
            ("m3_oldest_request_seconds", "Age of the oldest request that runs or waits.", oldest_s),
        ):
            Gauge(name, documentation, registry=self.registry).set_function(value)

    def count(self, path: str, status: int, seconds: float) -> None:
        """Count a request that has ended.

        Args:
            path: A route's path, or "other". Never a path that a caller made up: each one takes memory until the end.
            status: The response's status; 499 if the client closed the connection.
            seconds: How long the request took.
        """
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)
        if status >= 400:
            self._refusals.labels(str(status)).inc()

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self.registry)


class _StatsCollector(Collector):
    """Reads `EncoderStats` each time Prometheus asks."""

    def __init__(self, stats: Callable[[], EncoderStats]) -> None:
        self._stats = stats

    def collect(self) -> Iterator[CounterMetricFamily]:
        for name, value in asdict(self._stats()).items():
            words = name.replace("_", " ")
            yield CounterMetricFamily(f"m3_encoder_{name}", f"The network's {words} so far.", value=value)
