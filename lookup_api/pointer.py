"""Follows the release pointer: read in the background, adopted only when it is newer and its lists can be read."""

import logging
import time
from collections.abc import Callable
from threading import Condition, Event, Lock, Thread

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
    """Knows which run to serve. Requests read `current` and `stale`; the store is asked by a thread of its own alone, so
    that whatever connecting or reading the pointer costs, a request waits for it as long as it has time."""

    def __init__(
        self,
        reader: Reader,
        refresh_seconds: float,
        monotonic: Callable[[], float] = time.monotonic,
        after_refresh: Callable[["Follower"], None] | None = None,
    ) -> None:
        self.reader = reader
        self.current: Release | None = None
        self.failures = 0
        self._period = refresh_seconds
        self._monotonic = monotonic
        self._after_refresh = after_refresh
        self._agreed_at = monotonic()
        self._tried_at = monotonic()
        self._tries = 0
        self._behind = False
        self._refreshing = Lock()
        self._turn = Condition()
        self._wanted = Event()
        self._stop = False
        self._thread: Thread | None = None

    @property
    def stale(self) -> bool:
        """Whether the pointer was not seen for a while, or names another run than the one that is served."""
        return self._behind or self._monotonic() - self._agreed_at > STALE_PERIODS * self._period

    def start(self) -> None:
        """Read the pointer from now on, in the background."""
        self._thread = Thread(target=self._run, name="pointer", daemon=True)
        self._thread.start()

    def refresh(self) -> None:
        """Read the pointer and follow it. Raises nothing: what is wrong is counted and logged, the old run stays."""
        with self._refreshing:
            self._refresh()
        with self._turn:
            self._tries += 1
            self._turn.notify_all()

    def first(self, until: float) -> Release | None:
        """The run to serve, once the pointer was read for the first time; None where that found none, or `until` is past."""
        with self._turn:
            self._turn.wait_for(lambda: self._tries > 0, until - time.monotonic())
        return self.current

    def after_failure(self, release: Release, until: float) -> Release | None:
        """The run to try when the lists of `release` can't be read: another one, if the pointer moved meanwhile."""
        with self._turn:
            if self.current == release and self._monotonic() - self._tried_at >= FORCED_GAP:
                tries = self._tries
                self._wanted.set()
                self._turn.wait_for(lambda: self._tries > tries, until - time.monotonic())
        return self.current

    def close(self) -> None:
        """Stop reading the pointer, and close the reader."""
        self._stop = True
        self._wanted.set()
        if self._thread is not None:
            self._thread.join(timeout=CLOSE_SECONDS)
        self.reader.close()

    def _run(self) -> None:
        while not self._stop:
            self._wanted.clear()
            self.refresh()
            self._wanted.wait(self._period)

    def _refresh(self) -> None:
        try:
            self._follow(self.reader.release())
        except Exception as error:
            self._failed(error)
        else:
            self._agreed_at, self._behind = self._monotonic(), False
        self._tried_at = self._monotonic()
        if self._after_refresh:
            try:
                self._after_refresh(self)
            except (
                Exception
            ):  # the thread goes on: an instance that follows nothing is worse than one that is not counted
                log.exception("what is to be told of the release can't be told")

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
