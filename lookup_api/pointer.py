"""Follows the release pointer: read in the background, adopted only when it is newer and its lists can be read."""

import logging
import time
from collections.abc import Callable
from threading import Event, Lock, Thread

from lookup_api.readers import Reader
from schemas.errors import NightlistError, StoreUnavailable
from schemas.runs import Release

STALE_PERIODS = 3
"""Refresh periods without sight of the pointer after which answers say `stale`."""
FORCED_GAP = 0.1
"""Seconds between two refreshes that requests ask for: a vanished run must not cost a registry read a request."""
CLOSE_SECONDS = 5.0
"""How long closing waits for a read of the pointer that is under way."""

log = logging.getLogger(__name__)


class Follower:
    """Knows which run to serve. Requests read `current` and `stale`; nothing else of it is on their way."""

    def __init__(self, reader: Reader, refresh_seconds: float, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.reader = reader
        self.current: Release | None = None
        self.failures = 0
        self._period = refresh_seconds
        self._monotonic = monotonic
        self._agreed_at = monotonic()
        self._tried_at = monotonic()
        self._behind = False
        self._lock = Lock()
        self._stop = Event()
        self._thread: Thread | None = None

    @property
    def stale(self) -> bool:
        """Whether the pointer was not seen for a while, or names another run than the one that is served."""
        return self._behind or self._monotonic() - self._agreed_at > STALE_PERIODS * self._period

    def start(self) -> None:
        """Read the pointer now, and from now on in the background."""
        self.refresh()
        self._thread = Thread(target=self._run, name="pointer", daemon=True)
        self._thread.start()

    def refresh(self) -> None:
        """Read the pointer and follow it. Raises nothing: what is wrong is counted and logged, the old run stays."""
        with self._lock:
            self._refresh()

    def after_failure(self, release: Release) -> Release | None:
        """The run to try when the lists of `release` can't be read: another one, if the pointer moved meanwhile."""
        with self._lock:
            if self.current == release and self._monotonic() - self._tried_at >= FORCED_GAP:
                self._refresh()
            return self.current

    def close(self) -> None:
        """Stop reading the pointer, and close the reader."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=CLOSE_SECONDS)
        self.reader.close()

    def _run(self) -> None:
        while not self._stop.wait(self._period):
            self.refresh()

    def _refresh(self) -> None:
        try:
            self._follow(self.reader.release())
        except Exception as error:
            self._failed(error)
        else:
            self._agreed_at, self._behind = self._monotonic(), False
        self._tried_at = self._monotonic()

    def _follow(self, found: Release | None) -> None:
        current = self.current
        if found == current:
            return
        self._behind = current is not None and _is_older(found, current)
        if found is None or self._behind:
            raise StoreUnavailable(
                f"the store names {found}, older than {current}, which is served on; was it restored?"
            )
        try:
            self.reader.probe(found.run_id)
        except Exception:
            self._behind = True
            raise
        self.current = found
        log.info("now serving run %s, sequence %d", found.run_id, found.sequence)

    def _failed(self, error: Exception) -> None:
        self.failures += 1
        # An error that is not ours is a fault of a reader: it gets its traceback, and the thread goes on all the same.
        unexpected = None if isinstance(error, NightlistError) else error
        served = self.current.run_id if self.current else "none"
        log.warning("the release can't be followed, run served: %s; %s", served, error, exc_info=unexpected)


def _is_older(found: Release | None, current: Release) -> bool:
    return found is None or found.sequence <= current.sequence
