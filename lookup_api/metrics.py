"""What the service counts, for Prometheus. Labels are rules, methods, classes of status and names: never an id.

Under a server with a shared folder (see `lookup_api.runtime`) a scrape of any worker tells the sum over all of them, dead
ones included; elsewhere each application counts for itself.
"""

import os
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import cache
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from lookup_api.answers import SOURCES
from lookup_api.pointer import Follower
from lookup_api.runtime import VARIABLE, forget_the_dead

SHARED = Path(os.environ[VARIABLE]) if VARIABLE in os.environ else None
"""The folder in which processes count together; prometheus_client decides at the same moment whether they do."""
BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
GAUGES = {
    "nightlist_pointer_sequence": ("livemin", "Sequence of the release served; of several workers, the one behind."),
    "nightlist_release_published_timestamp_seconds": ("livemin", "When the release served was published."),
    "nightlist_refresh_timestamp_seconds": (
        "livemin",
        "When the pointer was last read, by the worker longest without.",
    ),
    "nightlist_stale": ("livemax", "1 while answers of any worker say stale."),
    "nightlist_draining": ("livemax", "1 while the server is about to end."),
}
"""How each is put together from the workers that live, and what it means. None is told before it is known."""

disable_created_metrics()  # type: ignore[no-untyped-call]  # the package has no types here; a second series for each one


def known(method: str) -> str:
    """The method, or `other`: a client may send any word."""
    return method if method in METHODS else "other"


class Metrics:
    """The counters of one application, in a registry of its own, so that several live in one process."""

    def __init__(self) -> None:
        if SHARED is not None:
            SHARED.mkdir(parents=True, exist_ok=True)  # for a worker that begins after somebody cleaned up
        self._registry = CollectorRegistry()
        self._gauges: dict[str, Gauge] = {}
        labels = ("endpoint", "method", "status")
        self._requests = self._counter("nightlist_requests", "Requests answered.", *labels)
        self._seconds = Histogram(
            "nightlist_request_seconds", "Time to answer.", ("endpoint",), buckets=BUCKETS, registry=self._registry
        )
        self._answers = self._counter("nightlist_answers", "Lists answered.", "source")
        self._empty = self._counter("nightlist_empty_lists", "Lists without an item.", "source")
        self._problems = self._counter("nightlist_problems", "Answers that are a problem.", "problem")
        self._failures = self._counter("nightlist_refresh_failures", "Pointer reads that failed.")
        self._reader = self._counter("nightlist_reader_events", "What readers did beside one read a list.", "event")
        for source in SOURCES.values():  # from the start, so that the first one counted is a rise
            self._answers.labels(source)
            self._empty.labels(source)
        self._of_route = cache(self._series)  # finding a series by its labels costs as much as counting
        self._of_route("/metrics", "GET", 2)  # files are opened now: a request that opens one would need the folder
        self.under_way = Gauge(
            "nightlist_requests_under_way",
            "Requests to /v1 that are being answered.",
            multiprocess_mode="livesum",
            registry=self._registry,
        )

    def observe(self, endpoint: str, method: str, status: int, seconds: float) -> None:
        """Count one request; `endpoint` is the rule that it matched."""
        requests, durations = self._of_route(endpoint, known(method), status // 100)
        requests.inc()
        durations.observe(seconds)

    def answered(self, source: str, items: int) -> None:
        """Count one list that was answered."""
        self._answers.labels(source).inc()
        if not items:
            self._empty.labels(source).inc()

    def problem(self, name: str) -> None:
        """Count one answer that is the problem `name`."""
        self._problems.labels(name).inc()

    def draining(self, draining: bool) -> None:
        """Say whether the server is about to end."""
        self._set("nightlist_draining", draining)

    def watch(self, clock: Callable[[], datetime], draining: Callable[[], bool]) -> Callable[[Follower], None]:
        """What a follower is to call after each refresh, in its own thread: no request and no scrape waits for it."""
        told: dict[str, int] = {}

        def risen(name: str, total: int) -> int:
            before, told[name] = told.get(name, 0), total
            return total - before

        def after_refresh(follower: Follower) -> None:
            failed = risen("failures", follower.failures)
            self._failures.inc(failed)
            for event, total in events_of(follower.reader).items():
                self._reader.labels(event).inc(risen(f"reader {event}", total))
            if not failed:
                self._set("nightlist_refresh_timestamp_seconds", clock().timestamp())
            self._set("nightlist_stale", follower.stale)
            self.draining(draining())
            if (release := follower.current) is not None:
                self._set("nightlist_pointer_sequence", release.sequence)
                self._set("nightlist_release_published_timestamp_seconds", release.published_at.timestamp())

        return after_refresh

    def render(self) -> bytes:
        """Everything in Prometheus' text format."""
        if SHARED is None or not SHARED.is_dir():  # of a folder that somebody removed nothing but this process is left
            return generate_latest(self._registry)
        forget_the_dead(SHARED)
        together = CollectorRegistry()
        MultiProcessCollector(together, str(SHARED))  # type: ignore[no-untyped-call]  # the package has no types here
        return generate_latest(together)

    def _series(self, endpoint: str, method: str, hundreds: int) -> tuple[Counter, Histogram]:
        return self._requests.labels(endpoint, method, f"{hundreds}xx"), self._seconds.labels(endpoint)

    def _counter(self, name: str, help: str, *labels: str) -> Counter:
        return Counter(name, help, labels, registry=self._registry)

    def _set(self, name: str, value: float) -> None:
        # Made when there is something to tell: from its making a gauge says 0, and the age of a release of 1970 alarms.
        if name not in self._gauges:
            mode, help = GAUGES[name]
            self._gauges[name] = Gauge(name, help, multiprocess_mode=mode, registry=self._registry)  # type: ignore[arg-type]  # its literals
        self._gauges[name].set(value)


def events_of(reader: object) -> Mapping[str, int]:
    """What a reader counts of itself, by event, where it counts; each figure only rises."""
    counted: Mapping[str, int] = getattr(reader, "events", {})
    return counted
