"""A file that is read again when it has changed, at little cost for those who ask."""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Generic, TypeVar

from schemas.errors import ConfigError

Content = TypeVar("Content")

log = logging.getLogger(__name__)


class Watched(Generic[Content]):
    """What `read` makes of a file. Looked at once in `seconds` at most; what can't be read leaves the last one in force."""

    def __init__(
        self,
        path: Path,
        read: Callable[[Path], Content],
        seconds: float,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Reads the file. Raises ConfigError."""
        self._path = path
        self._read = read
        self._seconds = seconds
        self._monotonic = monotonic
        self._lock = Lock()
        self._seen = _state_of(path)
        self._content = read(path)
        self._next = monotonic() + seconds

    def current(self) -> Content:
        """The newest content that could be read. Whoever comes while another one reads gets the one before."""
        if self._monotonic() >= self._next and self._lock.acquire(blocking=False):
            try:
                self._look()
            finally:
                self._lock.release()
        return self._content

    def _look(self) -> None:
        self._next = self._monotonic() + self._seconds
        state = _state_of(self._path)
        if state == self._seen:
            return
        self._seen = state  # before the file is read: what changes meanwhile is seen the next time
        try:
            self._content = self._read(self._path)
        except ConfigError as error:
            log.error("%s; what was read before stays in force", error)
        else:
            log.warning("%s has changed, and is in force", self._path)


def _state_of(path: Path) -> tuple[int, ...] | None:
    """What differs after any change, of content, owner or mode."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
