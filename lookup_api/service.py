"""The one object behind the routes: settings, the pointer, the reader and the counters, started where they are used."""

import atexit
import logging
import math
import os
from collections.abc import Callable
from datetime import UTC, datetime
from threading import Lock

from lookup_api.metrics import Metrics
from lookup_api.pointer import Follower
from lookup_api.problems import ProblemError, unavailable
from lookup_api.readers import Reader
from schemas.errors import RunUnreadable, StoreUnavailable
from schemas.lists import Kind, ServedList
from schemas.runs import Release
from schemas.settings import ServeSettings

EXTENSION = "nightlist"

log = logging.getLogger(__name__)


def utc_now() -> datetime:
    """The time that ages of lists are counted to."""
    return datetime.now(UTC)


class Service:
    """Finds lists. The reader and the pointer's thread begin with the first request, in the process that answers it:
    threads and connections do not survive the fork of a server's workers."""

    def __init__(
        self, open_reader: Callable[[], Reader], settings: ServeSettings, clock: Callable[[], datetime] = utc_now
    ) -> None:
        self.settings = settings
        self.clock = clock
        self.retry_seconds = math.ceil(settings.refresh_seconds)
        self.metrics = Metrics(lambda: self._follower, clock, per_process=settings.workers > 1)
        self.draining = False
        self._open_reader = open_reader
        self._follower: Follower | None = None
        self._pid: int | None = None
        self._lock = Lock()
        self._trouble = ""

    def follower(self) -> Follower:
        """The pointer's follower, begun in this process if it was not."""
        if self._follower is None or self._pid != os.getpid():
            self._start()
        assert self._follower is not None
        return self._follower

    def release(self) -> Release:
        """The release to serve. Raises ProblemError before the first one."""
        release = self.follower().current
        if release is None:
            detail = "no run was published yet, or the store can't be read; `nightlist runs` shows what there is"
            raise unavailable("no-run", detail, self.retry_seconds)
        return release

    def find(self, *keys: tuple[Kind, str]) -> tuple[Release, ServedList | None]:
        """The first of `keys` that has a list, and the release that it is from. Raises ProblemError."""
        release = self.release()
        try:
            return self._first(release, keys)
        except RunUnreadable as error:
            newer = self.follower().after_failure(release)
            if newer is None or newer == release:
                raise self._unreadable(release, error) from error
            return self._retry(newer, keys)
        except StoreUnavailable as error:
            raise self._unreadable(release, error) from error

    def close(self) -> None:
        """Answer no more: `/readyz` says so, the thread ends, connections close."""
        self.draining = True
        atexit.unregister(self.close)
        if self._follower is not None and self._pid == os.getpid():
            self._follower.close()
            log.info("no longer serving")

    def _start(self) -> None:
        with self._lock:
            if self._follower is None or self._pid != os.getpid():
                follower = Follower(self._open_reader(), self.settings.refresh_seconds)
                follower.start()
                self._follower, self._pid = follower, os.getpid()
                atexit.register(self.close)

    def _first(self, release: Release, keys: tuple[tuple[Kind, str], ...]) -> tuple[Release, ServedList | None]:
        reader = self.follower().reader
        for kind, key in keys:
            if (found := reader.get(release.run_id, kind, key)) is not None:
                return release, found
        return release, None

    def _retry(self, release: Release, keys: tuple[tuple[Kind, str], ...]) -> tuple[Release, ServedList | None]:
        try:
            return self._first(release, keys)
        except (RunUnreadable, StoreUnavailable) as error:
            raise self._unreadable(release, error) from error

    def _unreadable(self, release: Release, error: Exception) -> ProblemError:
        if str(error) != self._trouble:  # once, not once a request
            self._trouble = str(error)
            log.error("the live lists can't be read: %s", error)
        return unavailable("unreadable", f"the lists of run {release.run_id} can't be read now", self.retry_seconds)
