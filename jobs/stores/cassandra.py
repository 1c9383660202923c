"""Apache Cassandra, written: one registry in one partition, changed by lightweight transactions; one table of lists a run.

A change of the registry reads all of it, decides, and writes under the condition that nobody changed it meanwhile; who
was too slow reads and decides again. Lists are written by Spark's workers: the same row twice is the same row, and a row
of a publisher that lost its lease loses against its successor's.
"""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime
from functools import partial
from string import Template
from typing import Any
from uuid import UUID, uuid1, uuid4

from cassandra import InvalidRequest, OperationTimedOut, Unauthorized, WriteFailure, WriteTimeout
from cassandra.cluster import NoHostAvailable
from cassandra.protocol import ErrorMessage

from jobs.stores import Lists
from jobs.stores._registry import Change, Registry, RegistryStore, utc_now
from jobs.stores._writer import write_parts
from lookup_api.readers._cassandra import SERIAL, UNREACHED, Connection, is_absent, telling
from lookup_api.readers.cassandra import lists_table, utc
from schemas.ddl import statements
from schemas.errors import Busy, NightlistError, StoreUnavailable
from schemas.runs import Lease, Release, RunRecord, RunState, table_of
from schemas.settings import CassandraSettings, StoreSettings

DDL = "cassandra.cql"
DDL_SECONDS = 60.0
"""For some 20 s after a node died, the others wait for it before they agree on a schema."""
ATTEMPTS = 20
"""Changes of the registry that may come in between before one gives up."""

MAY_HAVE_HAPPENED = (OperationTimedOut, WriteTimeout, WriteFailure, NoHostAvailable)
UNDECIDED = 0x1700
"""CAS_WRITE_UNKNOWN, for which the driver has no class (native_protocol_v5.spec, section 9): two transactions met, and
whether this one is carried out the next one decides. A serial read finishes what others have begun, and meets them, too."""
PAUSE_SECONDS = 0.1
"""Most that one who met another waits before it tries again, so that they don't meet again."""

STATICS = "version, change, owner, fence, expires_at, live, previous, sequence, published_at"
COLUMNS = "run_id, state, rows, created_at, changed_at"


def open_store(settings: StoreSettings, clock: Callable[[], datetime] = utc_now) -> "CassandraStore":
    """The writer of the keyspace `settings.cassandra.keyspace`."""
    return CassandraStore(settings.cassandra, clock)


class CassandraStore(RegistryStore):
    """See `jobs.stores.Store`. One connection, made at the first call, serves several threads."""

    def __init__(self, settings: CassandraSettings, clock: Callable[[], datetime] = utc_now) -> None:
        super().__init__(clock)
        self.settings = settings
        self._connection = Connection(settings)
        self._registry = f"{settings.keyspace}.registry"

    def create(self) -> None:
        """Make the keyspace and the registry. Raises StoreUnavailable."""
        self._ddl("keyspace")
        self.prepare()

    def prepare(self) -> None:
        """Make the registry in a keyspace that is there. Raises StoreUnavailable."""
        self._ddl("registry")

    def load(self, run_id: str, lists: Lists, fence: int, progress: Callable[[int], None], resume: bool = False) -> int:
        """Make the run's table, or go on with the one that is there, and fill it. Raises IllegalTransition, StaleFence,
        StoreUnavailable, Busy, Lost, which leave what is loaded for a resume; ValueError on a key given twice in a part and on a
        list that is none, which does not."""
        table = lists_table(self.settings, run_id)
        self._read().check_loading(run_id, fence)
        known = self._table_id(run_id)
        if known and not resume:  # a coordinator that stood still with a DROP in its hands would carry it out later
            self._drop_table(table, lambda: (progress(0), self._read().check_loading(run_id, fence)))
        self._ddl("lists", table, progress, known if resume else None)
        try:
            write = partial(write_parts, self.settings, table, fence)
            if (table_id := self._table_id(run_id)) is None:
                raise StoreUnavailable(f"no node that can be reached knows {table}; run the same command again")
            written = lists.each_part(write, table_id, progress)
            self._read().check_loading(run_id, fence)
        except NightlistError:  # another try goes on from here, or it is a successor's table and not ours to drop
            raise
        except Exception:
            with suppress(NightlistError):
                self._drop_table(table, lambda: self._read().check_loading(run_id, fence))
            raise
        return written

    def drop(self, run_id: str, fence: int) -> None:
        """Drop the run's table, then its row unless it is BAD. Raises IllegalTransition for the live run."""
        # Before its row: a crash between the two leaves a run that readers refuse, and no table that nobody knows.
        self._drop_table(lists_table(self.settings, run_id), lambda: self._read().dropped(run_id, fence))
        self._change(lambda registry, now: registry.dropped(run_id, fence))

    def size(self, run_id: str) -> int | None:
        """Bytes of the run's table on all nodes that can be reached, to a MiB a node: what they have not flushed counts nothing."""
        query = "SELECT mebibytes FROM system_views.disk_usage WHERE keyspace_name = %s AND table_name = %s"
        with telling(self.settings):
            try:
                return sum(row[0] for row in self._of_each_node(query, run_id)) * 2**20
            except Unauthorized:
                return None

    def close(self) -> None:
        """Give the connection back."""
        self._connection.close()

    def _read(self) -> Registry:
        with telling(self.settings):
            try:
                return self._versioned()[0]
            except InvalidRequest as error:
                if not is_absent(error, "table registry"):
                    raise
                return Registry()

    def _change(self, change: Change) -> Registry:
        with telling(self.settings):
            for _ in range(ATTEMPTS):
                before, version, _newest = self._versioned()
                after = change(before, self._now())
                if after == before or self._swap(before, after, version):
                    return after
        raise self._busy()

    def _versioned(self) -> tuple[Registry, int | None, UUID | None]:
        """The registry, its version and its newest change, after every transaction that was begun."""
        query = f"SELECT {STATICS}, {COLUMNS} FROM {self._registry} WHERE name = 'nightlist'"
        rows = self._serial(query)
        if not rows:
            return Registry(), None, None
        version, newest, owner, fence, expires_at, live, previous, sequence, published_at = rows[0][:9]
        lease = None if fence is None else Lease(owner, fence, utc(expires_at))
        release = Release(live, previous, sequence, utc(published_at)) if live else None
        return Registry(lease, release, {row[9]: _record(*row[9:]) for row in rows if row[9]}), version, newest

    def _serial(self, query: str) -> list[Any]:
        """The rows of a read that sees every transaction."""
        for _ in range(ATTEMPTS):
            try:
                return list(self._connection.execute(query, profile=SERIAL).all())
            except ErrorMessage as error:
                if error.code != UNDECIDED:
                    raise
                time.sleep(random.uniform(0, PAUSE_SECONDS))  # noqa: S311  no secret
        raise self._busy()

    def _busy(self) -> Busy:
        return Busy(f"{ATTEMPTS} others changed {self._registry} at the same time; run the same command again")

    def _swap(self, before: Registry, after: Registry, version: int | None) -> bool:
        """Whether `after` took the place of `before`, which is version `version` (None: nothing is there yet)."""
        mine = uuid4()
        parts = [self._statics(after, version, mine), *self._rows(before, after)]
        batch = "BEGIN BATCH\n" + ";\n".join(cql for cql, _ in parts) + ";\nAPPLY BATCH"
        try:
            applied = self._connection.execute(batch, [value for _, values in parts for value in values]).one()[0]
        except (*MAY_HAVE_HAPPENED, ErrorMessage) as error:
            if isinstance(error, ErrorMessage) and error.code != UNDECIDED:
                raise
            applied = False
        # The driver, too, may have sent it twice: the second time it looks as if another one had been faster.
        return applied or self._versioned()[2] == mine

    def _statics(self, after: Registry, version: int | None, mine: UUID) -> tuple[str, list[Any]]:
        lease, release = after.lease, after.release
        values = [(version or 0) + 1, mine]
        values += [lease.owner, lease.fence, lease.expires_at] if lease else [None] * 3
        values += [release.run_id, release.previous, release.sequence, release.published_at] if release else [None] * 4
        assignments = ", ".join(f"{name} = %s" for name in STATICS.split(", "))
        return f"UPDATE {self._registry} SET {assignments} WHERE name = 'nightlist' IF version = %s", [*values, version]

    def _rows(self, before: Registry, after: Registry) -> Iterator[tuple[str, list[Any]]]:
        insert = f"INSERT INTO {self._registry} (name, {COLUMNS}) VALUES ('nightlist', %s, %s, %s, %s, %s)"
        for run in after.changed(before):
            yield insert, [run.run_id, run.state.value, run.rows, run.created_at, run.changed_at]
        for run_id in after.gone(before):
            yield f"DELETE FROM {self._registry} WHERE name = 'nightlist' AND run_id = %s", [run_id]

    def _table_id(self, run_id: str) -> str | None:
        """Of the run's table, another one of the same name having another; where any node knows it: one that was away when it
        was made does not."""
        query = "SELECT id FROM system_schema.tables WHERE keyspace_name = %s AND table_name = %s"
        with telling(self.settings):
            return next((str(row[0]) for row in self._of_each_node(query, run_id)), None)

    def _of_each_node(self, query: str, run_id: str) -> Iterator[Any]:
        """What each node says of the run's table, a row at most; nothing of one that does not answer."""
        for host in self._connection.session().cluster.metadata.all_hosts():
            with suppress(*UNREACHED):
                yield from self._connection.execute(query, (self.settings.keyspace, table_of(run_id)), host=host)

    def _drop_table(self, table: str, check: Callable[[], Any]) -> None:
        """Drop it, as long as `check` allows: looked at anew before each try, for a successor may load the same run meanwhile."""
        check()
        self._ddl("drop", table, lambda _: check())

    def _ddl(
        self,
        part: str,
        table: str = "",
        progress: Callable[[int], None] = lambda rows: None,
        table_id: str | None = None,
    ) -> None:
        """One part of the DDL file, when all nodes that are up agree on it; it says IF (NOT) EXISTS, so that it can be
        tried until they do. `progress` is told between tries that nothing is written yet: a lease goes on meanwhile."""
        names = {**self.settings.model_dump(include={"keyspace", "local_dc", "replication_factor"}), "table": table}
        names["id"] = table_id or str(uuid1())
        cql = Template(statements(DDL, part)).substitute(names)
        deadline = time.monotonic() + DDL_SECONDS
        while not self._agreed(cql, last=time.monotonic() > deadline):
            progress(0)

    def _agreed(self, cql: str, last: bool) -> bool:
        """Whether the statement was carried out everywhere; where this is the `last` try, False becomes an error."""
        with telling(self.settings):
            try:
                future = self._connection.session().execute_async(cql)
                future.result()
            except OperationTimedOut:
                if last:
                    raise
                return False
        if last and not future.is_schema_agreed:
            raise StoreUnavailable(
                f"the nodes did not agree on a schema within {DDL_SECONDS:g} s; `nodetool describecluster` shows who "
                f"differs; then run the same command again"
            )
        return bool(future.is_schema_agreed)


def _record(run_id: str, state: str, rows: int | None, created_at: datetime, changed_at: datetime) -> RunRecord:
    return RunRecord(run_id, RunState(state), rows, utc(created_at), utc(changed_at))
