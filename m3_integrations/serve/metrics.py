"""What Prometheus may read: requests, refusals, latencies, the queue, and what the network has done."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from m3_integrations.engine import EncoderStats


class Metrics:
    """The figures of one app, in a registry of their own.

    Args:
        stats: Returns what the network has done so far.
    """

    def __init__(self, stats: Callable[[], EncoderStats]) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_StatsCollector(stats))
        self._requests = Counter(
            "m3_requests",
            "Requests that have ended; status 499 is a client that went away.",
            ("path", "status"),
            registry=self.registry,
        )
        self._refusals = Counter(
            "m3_refusals", "Requests that were refused or given up.", ("status",), registry=self.registry
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
        """Show the queue.

        Args:
            n_running: Returns how many requests are under way.
            n_waiting: Returns how many wait until they may begin.
            oldest_s: Returns the seconds since the oldest of both came.
        """
        for name, documentation, value in (
            ("m3_requests_running", "Requests under way.", n_running),
            ("m3_requests_waiting", "Requests that wait until they may begin.", n_waiting),
            ("m3_oldest_request_seconds", "Age of the oldest request that runs or waits.", oldest_s),
        ):
            Gauge(name, documentation, registry=self.registry).set_function(value)

    def count(self, path: str, status: int, seconds: float) -> None:
        """Note a request that has ended.

        Args:
            path: That of a route, or "other": never what a caller made up, since every path is kept.
            status: Of the response; 499 if nobody read one.
            seconds: How long it took.
        """
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)
        if status >= 400:
            self._refusals.labels(str(status)).inc()

    def text(self) -> bytes:
        """Return all figures in Prometheus' text format."""
        return generate_latest(self.registry)


class _StatsCollector(Collector):
    """Reads `EncoderStats` when it is asked."""

    def __init__(self, stats: Callable[[], EncoderStats]) -> None:
        self._stats = stats

    def collect(self) -> Iterator[CounterMetricFamily]:
        for name, value in asdict(self._stats()).items():
            words = name.replace("_", " ")
            yield CounterMetricFamily(f"m3_encoder_{name}", f"The network's {words} so far.", value=value)
