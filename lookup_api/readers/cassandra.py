"""Apache Cassandra, read: one registry, and one immutable table of lists a run.

A list that is found is right whatever replica it comes from, since rows never change; only "there is none" can be wrong,
where a replica was down during the load. So one replica is asked, and a quorum only when it has nothing, or fails.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import pairwise
from typing import TypeVar

from cassandra import InvalidRequest
from cassandra.query import PreparedStatement, SimpleStatement

from lookup_api.readers._cassandra import ONE, QUORUM, Connection, is_absent, telling
from schemas.errors import RunUnreadable, StoreUnavailable
from schemas.lists import Kind, ServedList
from schemas.runs import Release, RunRecord, RunState, table_of
from schemas.settings import CassandraSettings, ServeSettings, StoreSettings

Answer = TypeVar("Answer")
ListRow = tuple[Kind, str, list[str], list[float], list[str], datetime]

LISTS = "SELECT kind, key, items, scores, sources, scored_at FROM"
PAGE = 2_000
"""Rows of a scan that travel at once."""
OPEN_RUNS = 4
"""Runs whose statement is kept: the one that is served and the one before it are in use."""
MIN_TOKEN = -(2**63)
"""No row has it: a hash that would be it becomes the greatest one."""


def open_reader(settings: StoreSettings, serve: ServeSettings | None = None) -> "CassandraReader":
    """The reader of the keyspace `settings.cassandra.keyspace`."""
    return CassandraReader(settings.cassandra, serve)


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
    row = connection.execute(SimpleStatement(query, is_idempotent=True)).one()
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

    def __init__(self, settings: CassandraSettings, serve: ServeSettings | None = None) -> None:
        self.settings = settings
        self._connection = Connection(settings, serve)
        self._reads: dict[str, PreparedStatement] = {}
        self.events = self._connection.events

    def release(self) -> Release | None:
        """The pointer, or None where nothing was ever published. Raises StoreUnavailable."""
        return self._from_registry(read_release, None)

    def runs(self) -> list[RunRecord]:
        """All runs, newest name first. Raises StoreUnavailable."""
        return self._from_registry(read_runs, [])

    def probe(self, run_id: str) -> None:
        """Read one list of the run, and prepare `get`. Raises RunUnreadable, also for a run without any list."""
        table = lists_table(self.settings, run_id)
        with self._telling(run_id):
            found = self._connection.execute(SimpleStatement(f"{LISTS} {table} LIMIT 1", is_idempotent=True)).one()
            self._prepare(run_id)
        if not found:
            raise RunUnreadable(f"{table} holds no list; `nightlist runs` shows the runs that can be served")
        decode(found)

    def get(self, run_id: str, kind: Kind, key: str, until: float | None = None) -> ServedList | None:
        """One list, by one key read; two, where the first finds nothing or fails. Raises RunUnreadable."""
        return self.get_many(run_id, ((kind, key),), until).get((kind, key))

    def get_many(
        self, run_id: str, keys: Sequence[tuple[Kind, str]], until: float | None = None
    ) -> dict[tuple[Kind, str], ServedList]:
        """The lists of those keys that have one, asked for all at once. Raises RunUnreadable."""
        read = self._reads.get(run_id) or self._opened(run_id, until)
        found = self._connection.read(read, dict.fromkeys(keys), ONE, until)
        if unsure := [key for key, row in found.items() if not isinstance(row, tuple)]:
            absent = sum(found[key] is None for key in unsure)
            self._connection.count("confirmation", absent)
            self._connection.count("retry", len(unsure) - absent)  # whatever failed, others may know better
            found |= self._connection.read(read, unsure, QUORUM, until)
        with self._telling(run_id):
            for error in found.values():
                if isinstance(error, Exception):
                    raise error
        return {key: decode(row) for key, row in found.items() if isinstance(row, tuple)}

    def parts(self, run_id: str, n: int) -> list[str]:
        """Ranges of tokens, all of one size."""
        bounds = [MIN_TOKEN + (2**64 - 1) * number // n for number in range(n + 1)]
        return [f"{after}:{until}" for after, until in pairwise(bounds)]

    def scan(self, run_id: str, part: str = "") -> Iterator[ServedList]:
        """Every list of the run, or of a range of tokens, as a quorum has them. Raises RunUnreadable."""
        query = f"{LISTS} {lists_table(self.settings, run_id)}{_range(part)}"
        return self._scan(run_id, SimpleStatement(query, fetch_size=PAGE))

    def close(self) -> None:
        """Give the connection back."""
        self._connection.close()

    def _scan(self, run_id: str, statement: SimpleStatement) -> Iterator[ServedList]:
        with self._telling(run_id):
            for rows in self._connection.pages(statement):
                yield from map(decode, rows)

    def _opened(self, run_id: str, until: float | None) -> PreparedStatement:
        if until is not None:
            raise StoreUnavailable(f"run {run_id} was not probed yet: nothing is prepared while somebody waits")
        with self._telling(run_id):
            return self._prepare(run_id)

    def _prepare(self, run_id: str) -> PreparedStatement:
        """Prepare `get` of the run, and keep it longer than those that were prepared before."""
        table = lists_table(self.settings, run_id)
        read = self._connection.prepared(f"{LISTS} {table} WHERE kind = ? AND key = ?")
        kept = {run: old for run, old in self._reads.items() if run != run_id}
        while len(kept) >= OPEN_RUNS:
            del kept[next(iter(kept))]
        self._reads = kept | {run_id: read}
        return read

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


def _range(part: str) -> str:
    """The rows of a part, as CQL; ValueError on what is none."""
    if not part:
        return ""
    after, until = (int(token) for token in part.split(":"))
    return f" WHERE token(kind, key) > {after} AND token(kind, key) <= {until}"


def decode(row: ListRow) -> ServedList:
    """A row of a table of lists as a record. Raises RunUnreadable where it is none: something else wrote it."""
    kind, key, items, scores, sources, scored_at = row
    if None in (items, scores, sources, scored_at):
        raise RunUnreadable(
            f"a list of kind {kind} has no items, scores, sources or time; roll back, or publish another run"
        )
    return ServedList(kind, key, tuple(items), tuple(scores), tuple(sources), utc(scored_at))
