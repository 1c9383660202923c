"""Notices that a driver's Cluster reaches nobody, although it is asked."""

import time
from collections.abc import Callable


class Watchdog:
    """Counts the seconds since the first of the failures that no success came between. Used by several threads."""

    def __init__(self, patience_seconds: float, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._patience = patience_seconds
        self._monotonic = monotonic
        self._failing_since: float | None = None

    def reached(self) -> None:
        """Somebody answered."""
        self._failing_since = None

    def failed(self) -> bool:
        """Nobody answered. Whether that has gone on for too long; if so, the count begins anew."""
        now = self._monotonic()
        if self._failing_since is None:
            self._failing_since = now
        if now - self._failing_since < self._patience:
            return False
        self._failing_since = now
        return True
