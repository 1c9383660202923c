"""Readers: how lists are read, one file a store; `jobs/stores/X.py` writes what `lookup_api/readers/X.py` reads.

The service and the night's own verification read through the same code, so that what is verified is what is served.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Protocol

from schemas.errors import ConfigError
from schemas.lists import Kind, ServedList
from schemas.runs import Release, RunRecord
from schemas.settings import ServeSettings, StoreSettings

ListKey = tuple[Kind, str]


class Reader(Protocol):
    """Reads one store; safe to use from several threads.

    Every method raises StoreUnavailable when the store can't be reached. `until` is a moment of `time.monotonic()`, after
    which nobody waits for the answer: StoreUnavailable then, too. With it, nothing is connected or opened: `probe` did
    that, on a thread that has time. Without it, the store's own time-outs hold.
    """

    def release(self) -> Release | None:
        """The pointer as it stands now, or None before the first publication."""

    def runs(self) -> list[RunRecord]:
        """All runs that the store knows, newest name first."""

    def probe(self, run_id: str) -> None:
        """Open the run's lists and read one, so that `get` on it will work; raises RunUnreadable when it can't."""

    def get(self, run_id: str, kind: Kind, key: str, until: float | None = None) -> ServedList | None:
        """One list by one key read, or None when the run has none. Raises RunUnreadable when the run is gone."""

    def get_many(self, run_id: str, keys: Sequence[ListKey], until: float | None = None) -> dict[ListKey, ServedList]:
        """The lists of those keys that have one, read at once. Raises RunUnreadable when the run is gone."""

    def parts(self, run_id: str, n: int) -> list[str]:
        """Names of some `n` parts that the run can be read in, maybe by several processes; asks nothing of the store."""

    def scan(self, run_id: str, part: str = "") -> Iterator[ServedList]:
        """Every list of the run, or of one of its `parts`, in no promised order. Raises RunUnreadable, at
        the latest when the first one is asked for."""

    def close(self) -> None:
        """Give connections back; the reader is not used again."""


def open_reader(settings: StoreSettings, serve: ServeSettings | None = None) -> Reader:
    """The reader of the configured store; `serve` holds the timings of a service, which jobs have none of.

    Opening reaches for nothing: an absent store shows at the first read.
    """
    with _hidden("numpy"):
        module = implementation("lookup_api.readers", settings.backend)
    reader: Reader = module.open_reader(settings, serve)
    return reader


@contextmanager
def _hidden(package: str) -> Iterator[None]:
    """As if `package` were not installed, unless it is in use: Cassandra's driver imports numpy wherever it finds it,
    without a use for it here; of a service's process it is 20 MB, and a third of a second of its start."""
    if package in sys.modules:
        yield
        return
    sys.modules[package] = None  # type: ignore[assignment]  # what importlib itself takes for "not there"
    try:
        yield
    finally:
        del sys.modules[package]


def implementation(package: str, backend: str) -> ModuleType:
    """The backend's file. Raises ConfigError where its driver, a package and an extra of the same name, is not installed."""
    try:
        return import_module(f"{package}.{backend}")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != backend:
            raise
        raise ConfigError(f"store.backend = {backend!r} needs its driver: pip install 'nightlist[{backend}]'") from None
