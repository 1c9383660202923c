"""The one object behind the routes: settings, the pointer, the reader and the counters, started where they are used."""

import atexit
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from threading import Lock, Semaphore

from lookup_api.access import AccessLog
from lookup_api.metrics import Metrics
from lookup_api.pointer import Follower
from lookup_api.problems import ProblemError, unavailable
from lookup_api.readers import ListKey, Reader
from lookup_api.runtime import DrainSign
from schemas.errors import RunUnreadable, StoreUnavailable
from schemas.lists import ServedList
from schemas.runs import Release
from schemas.settings import ServeSettings

EXTENSION = "nightlist"
OVERLOADED_SECONDS = 1
"""When to ask again a process that has too many lookups under way: they all end within the deadline."""
THREADS_A_BATCH = 8
"""A batch may be under way for so many threads: it has up to a hundred reads, and holds its thread for as long as its body
takes to come."""
BEGIN_SECONDS = 5.0
"""How long a worker waits for its store: the others serve meanwhile, and a store that is down must not keep it away."""
LOG_SECONDS = 10.0
"""Time between two lines that say why lists can't be read: not one a request."""

Read = Callable[[Release, Sequence[ListKey], float], "Found"]
Found = dict[ListKey, ServedList]

log = logging.getLogger(__name__)


def utc_now() -> datetime:
    """The time that ages of lists are counted to."""
    return datetime.now(UTC)


class Service:
    """Finds lists, each within the deadline. The reader and the pointer's thread begin in the process that serves: threads
    and connections do not survive the fork of a server's workers.

    So many lookups may be under way (`in_flight`); one more is refused at once. Threads beyond that number are never held
    up by a store that hangs: they refuse, and answer health checks.
    """

    def __init__(
        self, open_reader: Callable[[], Reader], settings: ServeSettings, clock: Callable[[], datetime] = utc_now
    ) -> None:
        self.settings = settings
        self.clock = clock
        self.retry_seconds = math.ceil(settings.refresh_seconds)
        self.metrics = Metrics()
        self.access_log = AccessLog(settings.access_log, settings.log_key.get_secret_value())
        self._closed = False
        self._drain_sign = DrainSign()
        self._open_reader = open_reader
        self._follower: Follower | None = None
        self._pid: int | None = None
        self._lock = Lock()
        self._slots = [None] * settings.in_flight  # taken and given back by single operations: a lock would cost more
        self._batches = Semaphore(self.most_batches)
        self._told_at = -math.inf

    @property
    def draining(self) -> bool:
        """Whether this process, or the server that it is a worker of, is about to end."""
        return self._closed or self._drain_sign.is_up()

    def follower(self) -> Follower:
        """The pointer's follower, begun in this process if it was not."""
        if self._follower is None or self._pid != os.getpid():
            self._start()
        assert self._follower is not None
        return self._follower

    @property
    def most_batches(self) -> int:
        """Batches under way at once."""
        return max(1, self.settings.threads // THREADS_A_BATCH)

    def begin(self) -> None:
        """Find the run to serve before a worker takes its first request; without one it begins all the same, after a while."""
        self.follower().first(time.monotonic() + BEGIN_SECONDS)

    def until(self) -> float:
        """The moment when a lookup that begins now has to be answered."""
        return time.monotonic() + self.settings.deadline_seconds

    def release(self, until: float | None = None) -> Release:
        """The release to serve. The first ones who ask wait for it, by default until the deadline. Raises ProblemError."""
        follower = self.follower()
        release = follower.current or follower.first(self.until() if until is None else until)
        if release is None:
            detail = "no run was published yet, or the store can't be read; `nightlist runs` shows what there is"
            raise unavailable("no-run", detail, self.retry_seconds)
        return release

    def find(self, *keys: ListKey) -> tuple[Release, ServedList | None]:
        """The first of `keys` that has a list, and the release that it is from. Raises ProblemError."""
        release, found = self._lookup(self._first, keys)
        return release, next(iter(found.values()), None)

    def find_all(self, keys: Sequence[ListKey]) -> tuple[Release, Found]:
        """The lists of those of `keys` that have one, and the one release that they are from. Raises ProblemError."""
        return self._lookup(self._all, keys)

    @contextmanager
    def batch(self) -> Iterator[None]:
        """Room for one batch, from before its body is read. Raises ProblemError where there is none."""
        if not self._batches.acquire(blocking=False):
            raise unavailable(
                "overloaded", f"{self.most_batches} batches are under way in this process", OVERLOADED_SECONDS
            )
        try:
            yield
        finally:
            self._batches.release()

    def close(self) -> None:
        """Answer no more: `/readyz` says so, the thread ends, connections close."""
        self._closed = True
        atexit.unregister(self.close)
        if self._follower is not None and self._pid == os.getpid():
            self._follower.close()
            log.info("no longer serving")

    def _start(self) -> None:
        with self._lock:
            if self._follower is None or self._pid != os.getpid():
                watch = self.metrics.watch(self.clock, lambda: self.draining)
                follower = Follower(self._open_reader(), self.settings.refresh_seconds, after_refresh=watch)
                follower.start()
                self._follower, self._pid = follower, os.getpid()
                atexit.register(self.close)

    def _lookup(self, read: Read, keys: Sequence[ListKey]) -> tuple[Release, Found]:
        try:
            self._slots.pop()
        except IndexError:
            detail = f"{self.settings.in_flight} lookups are under way in this process"
            raise unavailable("overloaded", detail, OVERLOADED_SECONDS) from None
        try:
            return self._of_one_run(read, keys, self.until())
        finally:
            self._slots.append(None)

    def _of_one_run(self, read: Read, keys: Sequence[ListKey], until: float) -> tuple[Release, Found]:
        release = self.release(until)
        try:
            try:
                return release, read(release, keys, until)
            except RunUnreadable:
                newer = self.follower().after_failure(release, until)
                if newer is None or newer == release:
                    raise
                return newer, read(newer, keys, until)
        except (RunUnreadable, StoreUnavailable) as error:
            raise self._unreadable(release, error) from error

    def _first(self, release: Release, keys: Sequence[ListKey], until: float) -> Found:
        reader = self.follower().reader
        for kind, key in keys:
            if (found := reader.get(release.run_id, kind, key, until)) is not None:
                return {(kind, key): found}
        return {}

    def _all(self, release: Release, keys: Sequence[ListKey], until: float) -> Found:
        return self.follower().reader.get_many(release.run_id, keys, until)

    def _unreadable(self, release: Release, error: Exception) -> ProblemError:
        now = time.monotonic()
        if now - self._told_at >= LOG_SECONDS:
            self._told_at = now
            log.error("the live lists can't be read: %s", error)
        return unavailable("unreadable", f"the lists of run {release.run_id} can't be read now", self.retry_seconds)
