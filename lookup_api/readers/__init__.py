"""Readers: how lists are read, one file a store; `jobs/stores/X.py` writes what `lookup_api/readers/X.py` reads.

The service and the night's own verification read through the same code, so that what is verified is what is served.
"""

from collections.abc import Iterator
from importlib import import_module
from types import ModuleType
from typing import Protocol

from schemas.errors import ConfigError
from schemas.lists import Kind, ServedList
from schemas.runs import Release, RunRecord
from schemas.settings import StoreSettings


class Reader(Protocol):
    """Reads one store; safe to use from several threads.

    Every method raises StoreUnavailable when the store can't be reached.
    """

    def release(self) -> Release | None:
        """The pointer as it stands now, or None before the first publication."""

    def runs(self) -> list[RunRecord]:
        """All runs that the store knows, newest name first."""

    def probe(self, run_id: str) -> None:
        """Open the run's lists and read one, so that `get` on it will work; raises RunUnreadable when it can't."""

    def get(self, run_id: str, kind: Kind, key: str) -> ServedList | None:
        """One list by one key read, or None when the run has none. Raises RunUnreadable when the run is gone."""

    def scan(self, run_id: str) -> Iterator[ServedList]:
        """Every list of the run, in no promised order. Raises RunUnreadable."""

    def close(self) -> None:
        """Give connections back; the reader is not used again."""


def open_reader(settings: StoreSettings) -> Reader:
    """The reader of the configured store. Opening reaches for nothing: an absent store shows at the first read."""
    reader: Reader = implementation("lookup_api.readers", settings.backend).open_reader(settings)
    return reader


def implementation(package: str, backend: str) -> ModuleType:
    """The backend's file. Raises ConfigError where its driver, a package and an extra of the same name, is not installed."""
    try:
        return import_module(f"{package}.{backend}")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != backend:
            raise
        raise ConfigError(f"store.backend = {backend!r} needs its driver: pip install 'nightlist[{backend}]'") from None
