"""The embedded store, read: `registry.db` (runs, release, lease) beside one immutable `lists_<run_id>.db` a run.

A run's file never changes once it bears its name, so it is opened immutable: no lock is taken and nothing is written.
The registry does change, and may be put back from a backup, so it is opened anew at each read.
"""

import json
import sqlite3
import struct
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from datetime import datetime
from pathlib import Path
from threading import Lock
from typing import TypeVar

from schemas.errors import RunUnreadable, StoreUnavailable
from schemas.lists import Kind, ServedList
from schemas.runs import Release, RunRecord, RunState, table_of
from schemas.settings import ServeSettings, StoreSettings

Answer = TypeVar("Answer")
ListRow = tuple[Kind, str, str, bytes, str, str]

REGISTRY = "registry.db"
LOCK_SECONDS = 5.0
OPEN_RUNS = 2
"""Runs kept open: the one that is served and the one before it. Files of dropped runs must not be held for ever."""

_LISTS = "SELECT kind, key, items, scores, sources, scored_at FROM lists"
_ONE = f"{_LISTS} WHERE kind = ? AND key = ?"


def open_reader(settings: StoreSettings, serve: ServeSettings | None = None) -> "SqliteReader":
    """The reader of the folder `settings.path`. A file answers at once, so that it needs none of the service's timings."""
    return SqliteReader(settings.path)


def lists_path(folder: Path, run_id: str) -> Path:
    """Where a run's lists lie; ValueError when `run_id` could not name a file."""
    return folder / f"{table_of(run_id)}.db"


def bytes_of(path: Path) -> int:
    """Size of a file, 0 where there is none. Raises OSError where that can't be told."""
    with suppress(FileNotFoundError):
        return path.stat().st_size
    return 0


def connect(path: Path, options: str, timeout: float = LOCK_SECONDS) -> sqlite3.Connection:
    """An autocommit connection to an existing or new file; `options` are SQLite's URI parameters."""
    uri = f"{path.absolute().as_uri()}?{options}"
    return sqlite3.connect(uri, uri=True, timeout=timeout, isolation_level=None, check_same_thread=False)


def read_release(registry: sqlite3.Connection) -> Release | None:
    """The pointer as it stands in the registry."""
    row = registry.execute("SELECT run_id, previous, sequence, published_at FROM release").fetchone()
    return Release(row[0], row[1], row[2], datetime.fromisoformat(row[3])) if row else None


def read_runs(registry: sqlite3.Connection) -> list[RunRecord]:
    """All runs of the registry, newest name first."""
    rows = registry.execute("SELECT run_id, state, rows, created_at, changed_at FROM runs ORDER BY run_id DESC")
    return [
        RunRecord(run_id, RunState(state), count, datetime.fromisoformat(created), datetime.fromisoformat(changed))
        for run_id, state, count, created, changed in rows
    ]


class SqliteReader:
    """See `lookup_api.readers.Reader`. Connections are made at the first read, one a thread at work, and reused."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._runs: OrderedDict[str, _RunFile] = OrderedDict()
        self._lock = Lock()

    def release(self) -> Release | None:
        """The pointer, or None where nothing was ever published. Raises StoreUnavailable."""
        return self._from_registry(read_release, None)

    def runs(self) -> list[RunRecord]:
        """All runs, newest name first. Raises StoreUnavailable."""
        return self._from_registry(read_runs, [])

    def probe(self, run_id: str) -> None:
        """Open the run's file anew and read one list of it. Raises RunUnreadable, also for a run without any list."""
        file = _RunFile(lists_path(self.folder, run_id))
        try:
            row = file.row(f"{_LISTS} LIMIT 1", ())
            if row is None:
                raise RunUnreadable(f"{file.path} holds no list; `nightlist runs` shows the runs that can be served")
            decode(file.path, row)
        except BaseException:
            file.close()
            raise
        self._keep(run_id, file)

    def get(self, run_id: str, kind: Kind, key: str, until: float | None = None) -> ServedList | None:
        """One list, by one key read. Raises RunUnreadable."""
        if until is not None and time.monotonic() > until:
            raise StoreUnavailable(f"{self.folder}: no time is left to read a list of run {run_id}")
        file = self._runs.get(run_id)
        if file is None or not file.unchanged():
            file = self._keep(run_id, _RunFile(lists_path(self.folder, run_id)))
        row = file.row(_ONE, (kind, key))
        return None if row is None else decode(file.path, row)

    def get_many(
        self, run_id: str, keys: Sequence[tuple[Kind, str]], until: float | None = None
    ) -> dict[tuple[Kind, str], ServedList]:
        """The lists of those keys that have one, one after another. Raises RunUnreadable."""
        found = {(kind, key): self.get(run_id, kind, key, until) for kind, key in keys}
        return {key: served for key, served in found.items() if served is not None}

    def parts(self, run_id: str, n: int) -> list[str]:
        """One: the file lies on one machine, and is read as fast as one process can take it."""
        return [""]

    def scan(self, run_id: str, part: str = "") -> Iterator[ServedList]:
        """Every list of the run, over a connection of its own. Raises RunUnreadable."""
        file = _RunFile(lists_path(self.folder, run_id))
        return self._scan(file.path, file.connect())

    def close(self) -> None:
        """Close every idle connection; one at work is closed when its read is done."""
        with self._lock:
            files = list(self._runs.values())
            self._runs.clear()
        for file in files:
            file.close()

    @staticmethod
    def _scan(path: Path, lists: sqlite3.Connection) -> Iterator[ServedList]:
        with closing(lists):
            try:
                for row in lists.execute(_LISTS):
                    yield decode(path, row)
            except sqlite3.Error as error:
                raise _unreadable(path, error) from error

    def _keep(self, run_id: str, file: "_RunFile") -> "_RunFile":
        with self._lock:
            dropped = [self._runs.pop(run_id)] if run_id in self._runs else []
            self._runs[run_id] = file
            while len(self._runs) > OPEN_RUNS:
                dropped.append(self._runs.popitem(last=False)[1])
        for old in dropped:
            old.close()
        return file

    def _from_registry(self, read: Callable[[sqlite3.Connection], Answer], absent: Answer) -> Answer:
        path = self.folder / REGISTRY
        try:
            if not bytes_of(path):
                return absent  # no folder, no file, or one that `prepare` had no time to fill
            return _read_registry(path, read)
        except (sqlite3.Error, OSError, ValueError) as error:
            raise StoreUnavailable(f"{path} can't be read: {error}; check [store] path and the file's owner") from error


class _RunFile:
    """One run's file as it was when opened, with the connections to it that wait for the next read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._identity = _identity(path)
        self._idle: list[sqlite3.Connection] = []
        self._closed = False
        self._lock = Lock()
        if self._identity is None:
            raise RunUnreadable(f"{path} does not exist; `nightlist runs` shows the runs that can be served")

    def unchanged(self) -> bool:
        """Whether the name still means the file that is open: a run that is loaded again gets a new one."""
        return _identity(self.path) == self._identity

    def connect(self) -> sqlite3.Connection:
        """A new connection. Raises RunUnreadable."""
        try:
            return connect(self.path, "mode=ro&immutable=1")
        except sqlite3.Error as error:
            raise _unreadable(self.path, error) from error

    def row(self, sql: str, values: tuple[str, ...]) -> ListRow | None:
        """The only row of a query. Raises RunUnreadable."""
        lists = self._take()
        try:
            row: ListRow | None = lists.execute(sql, values).fetchone()
        except sqlite3.Error as error:
            lists.close()
            raise _unreadable(self.path, error) from error
        self._give(lists)
        return row

    def close(self) -> None:
        """Close the idle connections, and the others as they come back."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for lists in idle:
            lists.close()

    def _take(self) -> sqlite3.Connection:
        with self._lock:
            if self._idle:
                return self._idle.pop()
        return self.connect()

    def _give(self, lists: sqlite3.Connection) -> None:
        with self._lock:
            if not self._closed:
                self._idle.append(lists)
                return
        lists.close()


def decode(path: Path, row: ListRow) -> ServedList:
    """A row of `lists` as a record. Raises RunUnreadable where it is none."""
    kind, key, items, scores, sources, scored_at = row
    try:
        return ServedList(
            kind,
            key,
            tuple(json.loads(items)),
            struct.unpack(f"<{len(scores) // 4}f", scores),
            tuple(json.loads(sources)),
            datetime.fromisoformat(scored_at),
        )
    except (ValueError, TypeError, struct.error) as error:
        raise _unreadable(path, error) from error


def _read_registry(path: Path, read: Callable[[sqlite3.Connection], Answer]) -> Answer:
    try:
        with closing(connect(path, "mode=ro")) as registry:
            return read(registry)
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_READONLY_ROLLBACK:
            raise
    # A publisher died inside a commit. Only a writable connection may undo the half of it that reached the file, and
    # without that no service could start until the next night.
    with closing(connect(path, "mode=rw")) as registry:
        return read(registry)


def _unreadable(path: Path, error: Exception) -> RunUnreadable:
    return RunUnreadable(f"{path} can't be read: {error}; roll back, or publish another run")


def _identity(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise StoreUnavailable(f"{path} can't be reached: {error}; check [store] path") from error
    return found.st_ino, found.st_mtime_ns, found.st_size
