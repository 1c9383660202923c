"""The memory of a process and its descendants, looked at while they work."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from threading import Event, Thread

EVERY = 0.5
"""Seconds between two looks."""


class Watch:
    """Looks, for as long as the context lasts, at a process and its descendants: the memory that they have together, each
    page that they share counted once."""

    def __init__(self, pid: int) -> None:
        self.pid, self.seen, self.seconds = pid, dict[float, int](), 0.0
        self._ended, self._thread = Event(), Thread(target=self._look)

    def __enter__(self) -> "Watch":
        self._begun = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self.seconds = time.monotonic() - self._begun

    def peak_gib(self, since: float = 0.0, until: float = float("inf")) -> float:
        """The most, between two times (seconds since 1970)."""
        inside = [size for at, size in self.seen.items() if since <= at <= until + EVERY]
        return round(max(inside, default=0) / 2**30, 2)

    def _look(self) -> None:
        while not self._ended.wait(EVERY):
            sizes = [_proportional(pid) for pid in with_descendants(self.pid)]
            self.seen[datetime.now(UTC).timestamp()] = sum(sizes)


def with_descendants(root: int) -> list[int]:
    """The process and all that it started, directly or not, as far as they live."""
    children = dict[int, list[int]]()
    for pid, parent in _parents():
        children.setdefault(parent, []).append(pid)
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found


def _parents() -> Iterator[tuple[int, int]]:
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            yield int(stat.parent.name), int(stat.read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue  # it has ended


def _proportional(pid: int) -> int:
    """Bytes of a process, its share of what it shares."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))
