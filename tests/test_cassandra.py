"""What is Cassandra's alone: its errors in words, a node that dies at the wrong moment, and space that is given back."""

import os
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from cassandra import OperationTimedOut, WriteTimeout, WriteType
from cassandra.cluster import NoHostAvailable

import jobs.stores.cassandra
from jobs.lists import BuiltLists
from jobs.manifest import Report
from jobs.nightly import make
from jobs.progress import Progress
from jobs.stores.cassandra import CassandraStore
from lookup_api.readers._cassandra import Connection
from lookup_api.readers.cassandra import CassandraReader
from schemas.errors import RunUnreadable, StoreUnavailable
from schemas.lists import ServedList
from schemas.runs import RunState
from tests.cassandra import Node
from tests.commands import ROOT, all_served, free_port, nightlist
from tests.nights import DAY, Place, at, built, checkerboard, event, place

RUN = "20260301_0badcafe"


@pytest.fixture
def there(tmp_path: Path, cassandra: Node, keyspace: str) -> Place:
    """A checkerboard whose lists go to a keyspace that is ready for them."""
    found = place(tmp_path, checkerboard(), store=cassandra.section(keyspace))
    found.settings()
    assert nightlist("init", "--store", "--config", found.config).code == 0
    return found


# Errors in words


@contextmanager
def mute() -> Iterator[int]:
    """A port that takes connections and says nothing."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield listening.getsockname()[1]


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "password": ({"password": "guess"}, "refuses 'publisher': wrong user name or password"),
    "user": ({"username": "nobody"}, "refuses 'nobody': wrong user name or password"),
    "no user": ({"username": ""}, "wants to know who asks: set store.cassandra.username"),
    "keyspace": ({"keyspace": "nowhere"}, "no keyspace 'nowhere'.*nightlist init --store"),
    "data centre": ({"local_dc": "paris"}, "local_dc = 'paris': the nodes are in datacenter1"),
    "host": ({"contact_points": ["no-such-host.invalid"]}, "can't be resolved; check store.cassandra.contact_points"),
    "rights": ({"username": "stranger", "password": "stranger"}, "refuses 'stranger' a right: .*has no .* permission"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_said(cassandra: Node, there: Place, what: str) -> None:
    """Reader, writer and command name the setting and end with 5, in one line."""
    cassandra.execute("CREATE ROLE IF NOT EXISTS stranger WITH PASSWORD = 'stranger' AND LOGIN = true")
    wrong, message = WRONG[what]
    there.sections["store"]["cassandra"] |= wrong
    settings = there.settings().store.cassandra
    for call in (CassandraReader(settings).release, CassandraStore(settings).prepare):
        with pytest.raises(StoreUnavailable, match=f"(?s){message}") as caught:
            call()
        assert (caught.value.exit_code, caught.value.retry) == (5, True)

    ended = nightlist("runs", "--config", there.config)

    assert (ended.code, ended.stdout, ended.stderr.count("\n")) == (5, "", 1)


def test_nobody_at_the_port_is_said(there: Place) -> None:
    """The message names the address, and says that nothing built is lost."""
    there.sections["store"]["cassandra"]["port"] = port = free_port()
    there.settings()
    ended = nightlist("runs", "--config", there.config)

    assert ended.code == 5
    assert f"127.0.0.1:{port} can't be reached" in ended.stderr
    assert "is not built again" in ended.stderr


def test_a_port_that_does_not_answer_is_said(there: Place) -> None:
    """Something listens, and it is no Cassandra that is ready."""
    with mute() as port:
        there.sections["store"]["cassandra"] |= {"port": port, "connect_seconds": 0.5}
        there.settings()
        ended = nightlist("runs", "--config", there.config)

    assert ended.code == 5
    assert "takes connections but does not answer" in ended.stderr


def test_a_node_that_hangs_is_said(cassandra: Node, there: Place) -> None:
    """A frozen node still takes connections: who asks is told after the time-out, and served once it goes on."""
    there.sections["store"]["cassandra"] |= {"connect_seconds": 1, "timeout_seconds": 1}
    reader = CassandraReader(there.settings().store.cassandra)
    assert reader.release() is None
    assert cassandra.process
    os.kill(cassandra.process.pid, signal.SIGSTOP)
    try:
        with pytest.raises(StoreUnavailable, match="does not answer"):
            reader.release()
        ended = nightlist("runs", "--config", there.config)
    finally:
        os.kill(cassandra.process.pid, signal.SIGCONT)

    assert ended.code == 5
    assert "does not answer" in ended.stderr
    assert eventually(lambda: reader.release() is None)
    reader.close()


def eventually(holds: Callable[[], bool], seconds: float = 30) -> bool:
    """Whether it holds before the time is over; an unreachable store may come back."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if holds():
                return True
        except StoreUnavailable:
            pass
        time.sleep(0.2)
    return False


def test_the_rights_that_the_readme_grants_are_enough(cassandra: Node, there: Place, keyspace: str) -> None:
    """As it stands there: its publisher publishes, and sees sizes; its reader reads all lists, and can't write."""
    (granting,) = re.findall(r"```sql\n(.*?)```", (ROOT / "jobs" / "README.md").read_text(), re.DOTALL)
    for statement in granting.replace("KEYSPACE nightlist ", f"KEYSPACE {keyspace} ").split(";")[:-1]:
        cassandra.execute(statement)
    there.sections["store"]["cassandra"] |= {"username": "nightlist_publisher", "password": "..."}
    run = there.run(there.night())

    assert nightlist("runs", "--config", there.config).code == 0
    assert CassandraStore(there.settings().store.cassandra).size(run.run_id) is not None
    known = cassandra.settings(keyspace, "nightlist_reader", password="...")
    reader = CassandraReader(known)
    assert {(served.kind, served.key): served for served in reader.scan(run.run_id)} == built(run)
    reader.close()
    for call in (
        CassandraStore(known).prepare,
        CassandraStore(known).create,
        lambda: CassandraStore(known).acquire("me", 60),
    ):
        with pytest.raises(StoreUnavailable, match="refuses 'nightlist_reader' a right"):
            call()


# A node that dies


class KillsTheNode(Progress):
    """Ends the node when some of the lists are in it and others are not."""

    def __init__(self, node: Node) -> None:
        self.node, self.loaded = node, 0

    @contextmanager
    def watch(self, name: str, total: int, count: Callable[[], int]) -> Iterator[None]:
        if name == "load":
            Thread(target=self._kill, args=(total, count), daemon=True).start()
        yield

    def _kill(self, total: int, count: Callable[[], int]) -> None:
        while not count():
            time.sleep(0.01)
        self.node.kill()
        self.loaded = count()
        assert self.loaded < total


def crowd(size: int) -> list[dict[str, Any]]:
    """So many users that their lists take a while to load."""
    return [
        event(f"u{user:05d}", f"i{(user + step) % 40:02d}", hour=step) for user in range(size) for step in (1, 5, 9)
    ]


def test_cassandra_down_and_killed_in_the_middle_of_the_load(tmp_path: Path, cassandra: Node, there: Place) -> None:
    """Down: exit 5, and the run is BUILT. Back, and killed when it holds some of the lists: yesterday's are served. Back
    again: the retry only loads, and the store holds the Parquet's keys and values, and none besides."""
    yesterday = there.run(there.night(DAY - timedelta(days=1)))
    store = there.sections["store"] | {"lease_seconds": 3}  # a lease that can't be given back ends by itself
    later = place(tmp_path, [*checkerboard(), *crowd(3000)], store=store, dataset={"parts": 8})
    slow = later.sections["store"]["cassandra"] | {"in_flight": 1}

    cassandra.stop()
    error, report = later.failing_night()
    assert (error.exit_code, report.line()["state"]) == (5, "BUILT")
    assert "can't be reached" in str(error)
    run = later.run(report)
    times = {name: (run.folder / f"{name}.json").stat().st_mtime_ns for name in ("events", "train", "build", "gate")}

    cassandra.start()
    later.sections["store"]["cassandra"] = slow
    killer, report = KillsTheNode(cassandra), Report()
    with pytest.raises(StoreUnavailable) as caught:
        make(later.settings(), DAY, report, killer)
    assert (caught.value.exit_code, report.line()["state"]) == (5, "LOADING")
    assert 0 < killer.loaded < len(BuiltLists(run.folder / "build"))

    cassandra.start()
    assert later.live() == yesterday.run_id
    assert all_served(later) == built(yesterday)
    finished = later.night()

    assert finished.line()["state"] == "LIVE"
    assert later.live() == later.run(finished).run_id == run.run_id
    assert all_served(later) == built(run)
    assert times == {name: (run.folder / f"{name}.json").stat().st_mtime_ns for name in times}


# A transaction whose outcome nobody tells


class Scripted(Connection):
    """A real connection, on which the first transaction's answer is lost, before or after it took effect."""

    def __init__(self, settings: Any, error: Exception, when: str) -> None:
        super().__init__(settings)
        self.error: Exception | None = error
        self.when = when

    def execute(self, statement: Any, *arguments: Any, **options: Any) -> Any:
        lost = self.error if str(statement).startswith("BEGIN BATCH") else None
        if lost:
            self.error = None
        if lost and self.when == "before":
            raise lost
        result = super().execute(statement, *arguments, **options)
        if lost:
            raise lost
        return result


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(
    "error", [OperationTimedOut(), WriteTimeout("CAS", write_type=WriteType.CAS), NoHostAvailable("lost", {})], ids=type
)
def test_a_change_whose_answer_is_lost_happens_once(
    cassandra: Node, keyspace: str, when: str, error: Exception
) -> None:
    """Whether it took effect is found out, not guessed: one lease is granted, and it is the first."""
    settings = cassandra.settings(keyspace, "publisher")
    store = CassandraStore(settings)
    store.create()
    store.close()
    store._connection = Scripted(settings, error, when)
    lease = store.acquire("me", 60)
    store.set_state(RUN, None, RunState.LOADING, lease.fence)

    assert lease.fence == 1
    assert [run.state for run in store.runs()] == [RunState.LOADING]
    store.close()


def test_rows_that_a_busy_cluster_does_not_take_are_written_again(
    cassandra: Node, keyspace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A time-out of some rows costs a pause, and no row; one that does not end is an error to retry."""
    real, rounds = jobs.stores.cassandra.execute_concurrent_with_args, []

    def busy(session: Any, statement: Any, rows: Any, *arguments: Any, **options: Any) -> Any:
        results = real(session, statement, rows, *arguments, **options)
        rounds.append(len(results))
        return [
            (False, WriteTimeout("busy", write_type=WriteType.SIMPLE)) if row % 2 and len(rounds) < patience else r
            for row, r in enumerate(results)
        ]

    monkeypatch.setattr(jobs.stores.cassandra, "execute_concurrent_with_args", busy)
    monkeypatch.setattr(jobs.stores.cassandra, "PAUSES", (0.01, 0.01))
    settings = cassandra.settings(keyspace, "publisher")
    store = CassandraStore(settings)
    store.create()
    store._ddl("lists", f"{keyspace}.lists_{RUN}")
    lists = [ServedList("user", f"u{number}", ("i",), (1.0,), ("als",), at(DAY)) for number in range(10)]

    patience = 2
    assert jobs.stores.cassandra.write_part(settings, f"{keyspace}.lists_{RUN}", 1, iter(lists)) == 10
    assert rounds == [10, 5]
    patience = 99
    with pytest.raises(StoreUnavailable, match="busy"):
        jobs.stores.cassandra.write_part(settings, f"{keyspace}.lists_{RUN}", 1, iter(lists))
    store.close()


# Rows as of the run's own time


def some_lists(item: str, count: int = 3) -> list[ServedList]:
    return [ServedList("user", f"u{number}", (item,), (1.0,), ("als",), at(DAY)) for number in range(count)]


def test_a_row_is_written_as_of_its_own_time_and_a_late_writer_loses(cassandra: Node, keyspace: str) -> None:
    """A publisher that was thought dead and writes on changes nothing of what its successor wrote, whatever it writes."""
    settings, table = cassandra.settings(keyspace, "publisher"), f"{keyspace}.lists_{RUN}"
    store = CassandraStore(settings)
    store.create()
    store._ddl("lists", table)
    for fence, item in ((7, "successor"), (6, "zombie")):
        jobs.stores.cassandra.write_part(settings, table, fence, iter(some_lists(item)))
    rows = cassandra.execute(f"SELECT items, WRITETIME(items) FROM {table}")

    assert {(tuple(items), written) for items, written in rows} == {(("successor",), at(DAY).timestamp() * 1e6 + 7)}
    store.close()


def test_a_row_that_is_not_there_when_it_is_read_back_fails_the_run(
    there: Place, cassandra: Node, keyspace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loaded is not verified: what Cassandra lost, or has besides, is counted, nothing is published, and a retry mends it."""
    load = CassandraStore.load

    def loses(store: CassandraStore, run_id: str, *arguments: Any) -> int:
        rows = load(store, run_id, *arguments)
        cassandra.execute(f"DELETE FROM {keyspace}.lists_{run_id} WHERE kind = 'user' AND key = 'u003'")
        columns, values = "kind, key, items, scores, sources, scored_at", "'user', 'foreign', ['x'], [1], ['als'], 0"
        cassandra.execute(f"INSERT INTO {keyspace}.lists_{run_id} ({columns}) VALUES ({values})")
        return rows

    monkeypatch.setattr(CassandraStore, "load", loses)
    error, report = there.failing_night()
    assert (report.line()["state"], there.live()) == ("FAILED", None)
    assert "1 lists missing, 1 foreign" in str(error)
    monkeypatch.undo()

    assert there.live() is None
    assert all_served(there) == {}
    assert there.run(there.night()).run_id == there.live()


def test_a_row_that_is_no_list_is_unreadable(cassandra: Node, keyspace: str) -> None:
    """What somebody else wrote is not served as half a list: service and verification are told."""
    store = CassandraStore(cassandra.settings(keyspace, "publisher"))
    store.create()
    store._ddl("lists", f"{keyspace}.lists_{RUN}")
    cassandra.execute(f"INSERT INTO {keyspace}.lists_{RUN} (kind, key, items) VALUES ('user', 'u', ['x'])")
    reader = CassandraReader(cassandra.settings(keyspace, "reader"))
    for read in (lambda: reader.get(RUN, "user", "u"), lambda: list(reader.scan(RUN))):
        with pytest.raises(RunUnreadable, match="user 'u'"):
            read()
    reader.close()
    store.close()


# Space


def folders(node: Node, keyspace: str) -> dict[str, int]:
    """Bytes in each table's folder on the node's disk, snapshots included; without empty ones."""
    found: dict[str, int] = {}
    for file in (node.folder / "data" / keyspace).rglob("*"):
        if file.is_file():
            table = file.relative_to(node.folder / "data" / keyspace).parts[0].partition("-")[0]
            found[table] = found.get(table, 0) + file.stat().st_size
    return found


def test_of_five_nights_three_are_kept_and_the_space_of_the_others_is_free(
    cassandra: Node, there: Place, keyspace: str
) -> None:
    """Dropped whole, without a snapshot, although the node would keep one: nothing of a pruned list is on disk."""
    runs = []
    for days in (4, 3, 2, 1, 0):
        runs.append(there.run(there.night(DAY - timedelta(days=days))).run_id)
        cassandra.nodetool("flush", keyspace)
        assert f"lists_{runs[-1]}" in folders(cassandra, keyspace)
    tables = cassandra.execute(f"SELECT table_name FROM system_schema.tables WHERE keyspace_name = '{keyspace}'")
    kept = {f"lists_{run_id}" for run_id in runs[-3:]}

    assert cassandra.execute("SELECT value FROM system_views.settings WHERE name = 'auto_snapshot'") == [("true",)]
    assert {name for (name,) in tables} == kept | {"registry"}
    assert eventually(lambda: set(folders(cassandra, keyspace)) == kept | {"registry"})
    store = CassandraStore(there.settings().store.cassandra)
    assert [(store.size(run_id) or 0) > 0 for run_id in runs] == [False, False, True, True, True]
    assert [run.run_id for run in store.runs()] == sorted(runs[-3:], reverse=True)
    store.close()


# Spark's workers


def doubled(lists: Iterator[ServedList]) -> int:
    return 2 * sum(1 for _ in lists)


def refused(lists: Iterator[ServedList]) -> int:
    if any(served.key == "u003" for served in lists):
        raise StoreUnavailable("no room for u003")
    return 0


def test_parts_are_written_by_workers_and_their_errors_come_back_as_they_were(tmp_path: Path, spark: Any) -> None:
    """The sum is everybody's; one part's error is raised here as the error that it was there."""
    run = place(tmp_path, checkerboard(), dataset={"parts": 4})
    lists = BuiltLists(run.run(run.night()).folder / "build", spark)
    told: list[int] = []

    assert lists.each_part(doubled, told.append) == 2 * len(lists)
    assert told == sorted(told)
    with pytest.raises(StoreUnavailable, match=r"^no room for u003$"):
        lists.each_part(refused, told.append)
