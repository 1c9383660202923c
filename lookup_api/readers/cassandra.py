"""Apache Cassandra, read: one registry, and one immutable table of lists a run.

A list that is found is right whatever replica it comes from, since rows never change; only "there is none" can be wrong,
where a replica was down during the load. So one replica is asked, and a quorum only when it has nothing.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, TypeVar

from cassandra import InvalidRequest
from cassandra.query import SimpleStatement

from lookup_api.readers._cassandra import ONE, QUORUM, Connection, is_absent, telling
from schemas.errors import RunUnreadable
from schemas.lists import Kind, ServedList
from schemas.runs import Release, RunRecord, RunState, table_of
from schemas.settings import CassandraSettings, StoreSettings

Answer = TypeVar("Answer")
ListRow = tuple[Kind, str, list[str], list[float], list[str], datetime]

LISTS = "SELECT kind, key, items, scores, sources, scored_at FROM"
PAGE = 2_000
"""Rows of a scan that travel at once."""


def open_reader(settings: StoreSettings) -> "CassandraReader":
    """The reader of the keyspace `settings.cassandra.keyspace`."""
    return CassandraReader(settings.cassandra)


def lists_table(settings: CassandraSettings, run_id: str) -> str:
    """The run's table, with its keyspace; ValueError when `run_id` could not name one."""
    return f"{settings.keyspace}.{table_of(run_id)}"


def utc(time: datetime) -> datetime:
    """The driver hands out times in UTC that do not say so."""
    return time.replace(tzinfo=UTC)


def read_release(connection: Connection) -> Release | None:
    """The pointer, as a quorum has it."""
    columns = "live, previous, sequence, published_at"
    query = f"SELECT {columns} FROM {connection.settings.keyspace}.registry WHERE name = 'nightlist' LIMIT 1"
    row = connection.execute(query).one()
    return Release(row[0], row[1], row[2], utc(row[3])) if row and row[0] else None


def read_runs(connection: Connection) -> list[RunRecord]:
    """All runs, newest name first."""
    columns = "run_id, state, rows, created_at, changed_at"
    query = (
        f"SELECT {columns} FROM {connection.settings.keyspace}.registry WHERE name = 'nightlist' ORDER BY run_id DESC"
    )
    return [
        RunRecord(run_id, RunState(state), rows, utc(created), utc(changed))
        for run_id, state, rows, created, changed in connection.execute(query)
        if run_id  # without any run, the lease and the pointer stand alone
    ]


class CassandraReader:
    """See `lookup_api.readers.Reader`. One connection a process, made at the first read."""

    def __init__(self, settings: CassandraSettings) -> None:
        self.settings = settings
        self._connection = Connection(settings)

    def release(self) -> Release | None:
        """The pointer, or None where nothing was ever published. Raises StoreUnavailable."""
        return self._from_registry(read_release, None)

    def runs(self) -> list[RunRecord]:
        """All runs, newest name first. Raises StoreUnavailable."""
        return self._from_registry(read_runs, [])

    def probe(self, run_id: str) -> None:
        """Read one list of the run. Raises RunUnreadable, also for a run without any list."""
        table = lists_table(self.settings, run_id)
        if not self._rows(run_id, f"{LISTS} {table} LIMIT 1", ()):
            raise RunUnreadable(f"{table} holds no list; `nightlist runs` shows the runs that can be served")

    def get(self, run_id: str, kind: Kind, key: str) -> ServedList | None:
        """One list, by one key read; that there is none is asked twice. Raises RunUnreadable."""
        query = f"{LISTS} {lists_table(self.settings, run_id)} WHERE kind = ? AND key = ?"
        for profile in (ONE, QUORUM):
            if rows := self._rows(run_id, query, (kind, key), profile):
                return decode(rows[0])
        return None

    def scan(self, run_id: str) -> Iterator[ServedList]:
        """Every list of the run, as a quorum has them. Raises RunUnreadable."""
        query = f"{LISTS} {lists_table(self.settings, run_id)}"
        with self._telling(run_id):
            rows = self._connection.execute(SimpleStatement(query, fetch_size=PAGE))
        return self._scan(run_id, rows)

    def close(self) -> None:
        """Give the connection back."""
        self._connection.close()

    def _scan(self, run_id: str, rows: Any) -> Iterator[ServedList]:
        with self._telling(run_id):
            yield from map(decode, rows)

    def _rows(self, run_id: str, query: str, values: tuple[str, ...], profile: Any = QUORUM) -> list[ListRow]:
        with self._telling(run_id):
            found: list[ListRow] = self._connection.execute(self._connection.prepared(query), values, profile).all()
            return found

    @contextmanager
    def _telling(self, run_id: str) -> Iterator[None]:
        """The driver's errors: RunUnreadable where it is the run that is missing."""
        with telling(self.settings):
            try:
                yield
            except InvalidRequest as error:
                if not is_absent(error, "table lists_.*"):
                    raise
                raise RunUnreadable(
                    f"{lists_table(self.settings, run_id)} does not exist; `nightlist runs` shows the runs that can be served"
                ) from error

    def _from_registry(self, read: Callable[[Connection], Answer], absent: Answer) -> Answer:
        with telling(self.settings):
            try:
                return read(self._connection)
            except InvalidRequest as error:
                if not is_absent(error, "table registry"):
                    raise
                return absent


def decode(row: ListRow) -> ServedList:
    """A row of a table of lists as a record. Raises RunUnreadable where it is none: something else wrote it."""
    kind, key, items, scores, sources, scored_at = row
    if None in (items, scores, sources, scored_at):
        raise RunUnreadable(
            f"the list of {kind} {key!r} has no items, scores, sources or time; publish the run again or roll back"
        )
    return ServedList(kind, key, tuple(items), tuple(scores), tuple(sources), utc(scored_at))
