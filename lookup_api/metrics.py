"""What the service counts, for Prometheus. Labels are rules, methods and classes of status: never an id."""

import os
from collections.abc import Callable, Iterator
from datetime import datetime

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from lookup_api.pointer import Follower

BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Metrics:
    """The counters of one application, in a registry of its own, so that several live in one process."""

    def __init__(
        self, follower: Callable[[], Follower | None], clock: Callable[[], datetime], per_process: bool
    ) -> None:
        self._registry = CollectorRegistry()
        self._exposed: Collector = _PerProcess(self._registry) if per_process else self._registry
        labels = ("endpoint", "method", "status")
        self._requests = Counter("nightlist_requests", "Requests answered.", labels, registry=self._registry)
        self._seconds = Histogram(
            "nightlist_request_seconds", "Time to answer.", ("endpoint",), buckets=BUCKETS, registry=self._registry
        )
        self._answers = Counter("nightlist_answers", "Lists answered.", ("source",), registry=self._registry)
        self._empty = Counter("nightlist_empty_lists", "Lists without an item.", ("source",), registry=self._registry)
        self._registry.register(_Pointer(follower, clock))

    def observe(self, endpoint: str, method: str, status: int, seconds: float) -> None:
        """Count one request; `endpoint` is the rule that it matched."""
        known = method if method in METHODS else "other"
        self._requests.labels(endpoint, known, f"{status // 100}xx").inc()
        self._seconds.labels(endpoint).observe(seconds)

    def answered(self, source: str, items: int) -> None:
        """Count one list that was answered."""
        self._answers.labels(source).inc()
        if not items:
            self._empty.labels(source).inc()

    def render(self) -> bytes:
        """Everything in Prometheus' text format."""
        return generate_latest(self._exposed)


class _Pointer(Collector):
    """What the pointer says at the time of the scrape; nothing is said of a run before one is known."""

    def __init__(self, follower: Callable[[], Follower | None], clock: Callable[[], datetime]) -> None:
        self._follower = follower
        self._clock = clock

    def collect(self) -> Iterator[Metric]:
        follower = self._follower()
        failures = follower.failures if follower else 0
        yield CounterMetricFamily("nightlist_refresh_failures", "Pointer reads that failed.", value=failures)
        if follower is None or (release := follower.current) is None:
            return
        age = (self._clock() - release.published_at).total_seconds()
        yield GaugeMetricFamily("nightlist_pointer_sequence", "Sequence of the release served.", value=release.sequence)
        yield GaugeMetricFamily("nightlist_lists_age_seconds", "Time since the lists were published.", value=age)
        yield GaugeMetricFamily("nightlist_stale", "1 while answers say stale.", value=int(follower.stale))

    def describe(self) -> list[Metric]:
        return []  # registering asks for names; asking `collect` for them would touch the store


class _PerProcess(Collector):
    """A registry with the process in every label: a scrape hits any one worker, and its counters are its own.

    Without it, Prometheus would take the jumps between workers for restarts.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        pid = str(os.getpid())
        for metric in self._registry.collect():
            metric.samples = [sample._replace(labels={**sample.labels, "pid": pid}) for sample in metric.samples]
            yield metric
