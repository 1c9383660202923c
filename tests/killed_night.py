"""A night that kills itself with SIGKILL at one point: `python -m tests.killed_night CONFIG DAY POINT`.

POINT is a stage's name (its work is done, its record is not written), `buckets` (some of retrieve's buckets are done and
others are not; Spark dies first, or its workers would do the others) or `load` (the store is being loaded).
"""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from threading import Thread

from pyspark import SparkContext

from jobs.config import load_settings
from jobs.manifest import Report
from jobs.nightly import make
from jobs.progress import Progress


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_between(count: Callable[[], int], total: int) -> None:
    """Watch the buckets' records appear, and die while some are missing."""
    while not 0 < count() < total:
        pass
    SparkContext._gateway.proc.kill()
    die()


class Killer(Progress):
    """Progress is what a night tells of itself; this one ends it at the right word."""

    def __init__(self, point: str) -> None:
        self.point = point

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        yield
        if name == self.point:
            die()

    @contextmanager
    def watch(self, name: str, total: int, count: Callable[[], int]) -> Iterator[None]:
        if name == self.point == "load":
            die()
        if name == "retrieve" and self.point == "buckets":
            Thread(target=die_between, args=(count, total), daemon=True).start()
        yield


if __name__ == "__main__":
    config, day, point = sys.argv[1:]
    make(load_settings(Path(config)), date.fromisoformat(day), Report(), Killer(point))
