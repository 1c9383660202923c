"""What is Cassandra's alone: its errors in words, a node that dies at the wrong moment, and space that is given back."""

import os
import signal
import socket
import stat
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Thread
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import requests
from cassandra import InvalidRequest, OperationTimedOut, Unauthorized, WriteTimeout, WriteType
from cassandra.cluster import NoHostAvailable
from cassandra.protocol import ErrorMessage, OverloadedErrorMessage

import jobs.stores._writer
import jobs.stores.cassandra
from jobs.lists import Batches, BuiltLists
from jobs.losses import Lost
from jobs.manifest import Report
from jobs.nightly import make
from jobs.progress import Progress
from jobs.stores._registry import Registry
from jobs.stores._throttle import Throttle
from jobs.stores._writer import Ring, Writer, insert, write_part, write_parts
from jobs.stores.cassandra import CassandraStore
from lookup_api.readers._cassandra import Connection
from lookup_api.readers.cassandra import CassandraReader
from schemas.errors import Busy, RunUnreadable, StaleFence, StoreUnavailable
from schemas.lists import ServedList
from schemas.runs import Lease, RunRecord, RunState
from schemas.settings import CassandraSettings
from tests.callers import AUDIENCE, ISSUER, Issuer, bearer, make_key
from tests.cassandra import Node
from tests.cassandra.node import SUPERUSER
from tests.commands import ROOT, all_served, free_port, nightlist, process, serving
from tests.killed_load import publish_run
from tests.memory import batches
from tests.nights import DAY, SHORT_LIVED, Place, at, built, checkerboard, event, place

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
    assert eventually(lambda: reader.release() is None)  # a second may be too little for the first one
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


REFUSED_TO_READERS = {
    "INSERT": "INSERT INTO {table} (kind, key) VALUES ('user', 'u000')",
    "UPDATE": "UPDATE {table} SET items = ['x'] WHERE kind = 'user' AND key = 'u000'",
    "DELETE": "DELETE FROM {table} WHERE kind = 'user' AND key = 'u000'",
    "TRUNCATE": "TRUNCATE {table}",
    "DROP": "DROP TABLE {table}",
    "ALTER": "ALTER TABLE {table} WITH comment = 'x'",
    "CREATE": "CREATE TABLE {keyspace}.another (key text PRIMARY KEY)",
    "DROP KEYSPACE": "DROP KEYSPACE {keyspace}",
    "registry": "UPDATE {keyspace}.registry SET live = 'x' WHERE name = 'nightlist'",
    "CREATE ROLE": "CREATE ROLE friend",
}


def test_the_roles_that_init_makes_are_enough_and_no_more(cassandra: Node, there: Place, keyspace: str) -> None:
    """The publisher publishes, and sees sizes; the reader reads all lists and the pointer, and changes nothing."""
    secrets = there.folder / "secrets"
    there.sections["store"]["cassandra"] |= {"username": SUPERUSER, "password": SUPERUSER}
    there.settings()
    made = nightlist("init", "--store", "--config", there.config)
    assert (made.code, made.stdout.splitlines()[0]) == (0, "[store.cassandra]"), made.stderr
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in (secrets, *secrets.iterdir())} == {
        "secrets": 0o700,
        f"{keyspace}_publisher": 0o600,
        f"{keyspace}_reader": 0o600,
    }
    del there.sections["store"]["cassandra"]["password"]
    there.sections["store"]["cassandra"] |= tomllib.loads(made.stdout)["store"]["cassandra"]  # as it is told
    run = there.run(there.night())
    publisher = there.settings().store.cassandra

    assert publisher.username == f"{keyspace}_publisher"
    assert (secrets / publisher.username).read_text().strip() not in made.stdout + made.stderr
    with closing(CassandraStore(publisher)) as store:
        assert store.size(run.run_id) is not None
    known = cassandra.settings(
        keyspace, f"{keyspace}_reader", password=(secrets / f"{keyspace}_reader").read_text().strip()
    )
    reader, connection = CassandraReader(known), Connection(known)
    assert there.live() == run.run_id
    assert reader.release()
    assert {(served.kind, served.key): served for served in reader.scan(run.run_id)} == built(run)
    for statement in REFUSED_TO_READERS.values():
        with pytest.raises(Unauthorized):
            connection.execute(statement.format(keyspace=keyspace, table=f"{keyspace}.lists_{run.run_id}"))
    refused = f"refuses '{keyspace}_reader' a right"
    with closing(CassandraStore(known)) as store, pytest.raises(StoreUnavailable, match=refused):
        store.acquire("me", 60)
    reader.close()
    connection.close()


def test_roles_are_made_once_and_their_rights_whenever_they_are_missing(
    cassandra: Node, there: Place, keyspace: str
) -> None:
    """A second time no password changes; a right that was taken away is back; a password file that an earlier try left is used."""
    secrets, reader = there.folder / "elsewhere", f"{keyspace}_reader"
    there.sections["store"]["cassandra"] |= {"username": SUPERUSER, "password": SUPERUSER}
    there.settings()
    secrets.mkdir()
    (secrets / reader).write_text("it's left\n")
    command = ("init", "--store", "--config", there.config, "--secrets", secrets)
    first = nightlist(*command)
    before = {path.name: path.read_text() for path in secrets.iterdir()}
    cassandra.execute(f"REVOKE SELECT ON KEYSPACE {keyspace} FROM {reader}")
    second = nightlist(*command)
    (secrets / f"{keyspace}_publisher").unlink()
    third = nightlist(*command)

    assert (first.code, second.code, third.code) == (0, 0, 0)
    assert before[reader] == "it's left\n"
    assert f"role {reader} is made" in first.stderr
    assert f"role {reader} is there already" in second.stderr
    assert f"its password is not in {secrets}" in third.stderr
    assert third.stdout == ""
    known = CassandraReader(cassandra.settings(keyspace, reader, password="it's left"))
    assert known.release() is None
    known.close()


def test_who_may_not_make_roles_makes_the_store_and_is_told(cassandra: Node, there: Place, keyspace: str) -> None:
    """No password is left of a role that was not made; --dry-run shows what an administrator would type."""
    made = nightlist("init", "--store", "--config", there.config)
    shown = nightlist("init", "--store", "--config", there.config, "--dry-run")
    roles = [row[0] for row in cassandra.execute("LIST ROLES")]

    assert (made.code, made.stdout) == (0, "")
    assert "'publisher' may not make them" in made.stderr
    assert list((there.folder / "secrets").iterdir()) == []
    assert not [role for role in roles if role.startswith(keyspace)]
    for statement in (
        f"CREATE KEYSPACE IF NOT EXISTS {keyspace}",
        f"CREATE ROLE IF NOT EXISTS {keyspace}_reader WITH PASSWORD = '...' AND LOGIN = true;",
        f"GRANT MODIFY ON KEYSPACE {keyspace} TO {keyspace}_publisher;",
        f"GRANT SELECT ON KEYSPACE {keyspace} TO {keyspace}_reader;",
    ):
        assert statement in shown.stdout


# Secrets


def test_no_secret_shows_up_anywhere(there: Place, cassandra: Node, keyspace: str) -> None:
    """A night whose event log is kept, and a service that is asked: neither passwords, from the environment or a file, nor a
    key or a token are in what they print, log and leave behind."""
    canaries = {name: f"canary-{name}-{keyspace}" for name in ("publisher", "reader")}
    for role, rights in (("publisher", ("CREATE", "DROP", "SELECT", "MODIFY")), ("reader", ("SELECT",))):
        cassandra.execute(f"CREATE ROLE {keyspace}_{role} WITH PASSWORD = '{canaries[role]}' AND LOGIN = true")
        for right in rights:
            cassandra.execute(f"GRANT {right} ON KEYSPACE {keyspace} TO {keyspace}_{role}")
    events, section = there.folder / "spark-events", there.sections["store"]["cassandra"]
    events.mkdir()
    log = {"enabled": "true", "compress": "false", "dir": f"file://{events}"}
    conf = SHORT_LIVED | {f"spark.eventLog.{name}": value for name, value in log.items()}
    there.sections["spark"] = {"master": "local[2]", "conf": conf}
    section |= {"username": f"{keyspace}_publisher", "password": ""}
    there.settings()
    variable = "NIGHTLIST_STORE__CASSANDRA__PASSWORD"
    command = ("nightly", "--config", there.config, "--date", DAY)
    told = process(*command, env=os.environ | {variable: canaries["publisher"]})
    refused = process("runs", "--config", there.config, env=os.environ | {variable: canaries["reader"]})
    assert (told.code, refused.code) == (0, 5), told.stderr + refused.stderr

    (there.folder / "password").write_text(canaries["reader"])
    section |= {"username": f"{keyspace}_reader", "password_file": "password"}
    issuer = Issuer()
    issuer.publish(there.folder)
    there.sections["auth"] = {"jwks_file": "jwks.json", "issuer": ISSUER, "audience": AUDIENCE}
    there.settings()
    canaries |= {
        "key": make_key(there.folder, "lists:read"),
        "revoked key": make_key(there.folder, "lists:read", revoked=True),
        "token": issuer.token("u000"),
        "wrong token": Issuer().token("u000"),
        "expired token": issuer.token("u000", exp=1),
    }
    with serving(there.config) as port:
        url = f"http://127.0.0.1:{port}/v1/users/u000/recommendations"
        asked = {
            name: requests.get(url, headers=bearer(text), timeout=10)
            for name, text in canaries.items()
            if "key" in name or "token" in name
        }
    made_of_it = {
        path: path.read_bytes()
        for path in there.folder.rglob("*")
        if path.is_file() and path.name not in ("password", "keys.json")
    }
    everything = {
        "stdout": told.stdout + told.stderr + refused.stdout + refused.stderr,
        "answers": "".join(answer.text + str(answer.headers) for answer in asked.values()),
        **{str(path): content.decode("latin-1") for path, content in made_of_it.items()},
    }

    assert [answer.status_code for answer in asked.values()] == [200, 401, 200, 401, 401]
    assert any("SparkListenerEnvironmentUpdate" in text for name, text in everything.items() if "spark-events" in name)
    assert any(there.live() in name for name in everything)
    assert "now serving run" in everything[str(there.folder / "serve.log")]
    for name, secret in canaries.items():
        seen = [where for where, text in everything.items() if secret in text or secret.rpartition(".")[2] in text]
        assert not seen, f"{name} is in {seen}"


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
    slow = later.sections["store"]["cassandra"] | {"in_flight": 1, "rows_per_second": 300}

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


@pytest.mark.parametrize("lost", [False, True], ids=["Cassandra has all", "Cassandra lost a row"])
def test_a_publisher_that_was_killed_half_way_is_followed_by_one_that_loads_what_is_missing(
    cassandra: Node, keyspace: str, there: Place, lost: bool
) -> None:
    """SIGKILL in the middle: parts that were whole are not written again, the others are, and all of it is verified.

    Where nodes died too, and lost what they had acknowledged, everything is loaded anew, and the run is live all the same.
    """
    run = there.folder / "runs" / RUN
    parts = [[f"u{part}-{number}" for number in range(25)] for part in range(8)]
    for part, users in enumerate(parts):
        lists = [ServedList("user", user, (f"i{part}",), (1.0,), ("als",), at(DAY)) for user in users]
        (run / "build").mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_batches(batches(lists)), run / "build" / f"bucket-{part:05d}.parquet")
    quick = there.sections["store"]["cassandra"]
    there.sections["store"]["cassandra"] = quick | {"rows_per_second": 60}
    there.settings()
    command = [sys.executable, "-m", "tests.killed_load", str(there.config), str(run)]
    publisher = subprocess.Popen(command, cwd=ROOT)
    assert eventually(lambda: len(list(run.glob("load/*.json"))) >= 3)
    publisher.kill()
    publisher.wait()
    whole = {path: path.stat().st_mtime_ns for path in run.glob("load/*.json")}
    assert there.live() is None
    done = {int(path.stem.partition("-")[2]) for path in whole}
    assert 3 <= len(done) < 8
    if lost:
        cassandra.execute(f"DELETE FROM {keyspace}.lists_{RUN} WHERE kind = 'user' AND key = '{parts[min(done)][0]}'")

    there.sections["store"]["cassandra"] = quick
    there.settings()
    assert publish_run(there.config, run).run_id == RUN == there.live()

    assert ({path: path.stat().st_mtime_ns for path in whole} == whole) is not lost
    rows = cassandra.execute(f"SELECT key, WRITETIME(items) FROM {keyspace}.lists_{RUN}")
    fences = {key: round(written - at(DAY).timestamp() * 1e6) for key, written in rows}
    first = set() if lost else done
    assert fences == {user: 1 if part in first else 2 for part, users in enumerate(parts) for user in users}


def test_records_of_a_table_that_is_gone_are_void(cassandra: Node, keyspace: str, there: Place, tmp_path: Path) -> None:
    """A table that was dropped and made anew has another identity: resumed or not, everything is loaded into it."""
    store = CassandraStore(there.settings().store.cassandra)
    build = tmp_path / "a run" / "build"
    build.mkdir(parents=True)
    pq.write_table(pa.Table.from_batches(batches(some_lists("i"))), build / "bucket-00000.parquet")
    fence = store.acquire("me", 60).fence
    store.set_state(RUN, None, RunState.LOADING, fence)
    told: list[int] = []
    for before in (None, "DROP TABLE", "TRUNCATE"):
        if before:
            cassandra.execute(f"{before} {keyspace}.lists_{RUN}")
        assert store.load(RUN, BuiltLists(build), fence, told.append, resume=True) == 3
        rows = cassandra.execute(f"SELECT key FROM {keyspace}.lists_{RUN}")
        assert len(rows) == (
            0 if before == "TRUNCATE" else 3
        )  # the same table: its records hold, until it is read back
    assert store.load(RUN, BuiltLists(build), fence, told.append) == 3

    assert len(cassandra.execute(f"SELECT key FROM {keyspace}.lists_{RUN}")) == 3
    store.close()


# A transaction whose outcome nobody tells


UNDECIDED = ErrorMessage(0x1700, "CAS operation result is unknown - proposal accepted by 1 but not a quorum.", None)
"""As Cassandra sends it, and as the driver reads it."""


class Scripted(Connection):
    """A real connection, on which the answer of the first statement of a kind is lost, before or after it took effect."""

    def __init__(self, settings: Any, error: Exception, when: str, statement: str = "BEGIN BATCH") -> None:
        super().__init__(settings)
        self.error: Exception | None = error
        self.when = when
        self.statement = statement

    def execute(self, statement: Any, *arguments: Any, **options: Any) -> Any:
        lost = self.error if str(statement).startswith(self.statement) else None
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
    "error",
    [OperationTimedOut(), WriteTimeout("CAS", write_type=WriteType.CAS), NoHostAvailable("lost", {}), UNDECIDED],
    ids=type,
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


def test_a_read_that_meets_a_transaction_is_tried_again(cassandra: Node, keyspace: str) -> None:
    """It first carries out what another has begun, and is turned away where that one is not through."""
    settings = cassandra.settings(keyspace, "publisher")
    store = CassandraStore(settings)
    store.create()
    lease = store.acquire("me", 60)
    store.close()
    store._connection = connection = Scripted(settings, UNDECIDED, "before", "SELECT version")

    assert store.holder() == lease
    assert connection.error is None
    store.close()


def test_other_refusals_of_a_transaction_are_errors(cassandra: Node, keyspace: str) -> None:
    settings = cassandra.settings(keyspace, "publisher")
    store = CassandraStore(settings)
    store.create()
    store.close()
    for statement in ("SELECT version", "BEGIN BATCH"):
        store._connection = Scripted(settings, OverloadedErrorMessage(0x1001, "busy", None), "before", statement)
        with pytest.raises(StoreUnavailable, match="busy"):
            store.acquire("me", 60)
        store.close()


class Answered:
    """What the driver hands out for a statement that a node refused."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def add_callbacks(self, done: Any, failed: Any, callback_args: Any, errback_args: Any) -> None:
        failed(self.error, *errback_args)


class Refusing:
    """A real session that refuses, so many times, the first statement and every `step`th after it; `sent` counts all."""

    def __init__(self, session: Any, error: Exception, times: int, step: int) -> None:
        self.session, self.error, self.times, self.step, self.sent = session, error, times, step, 0

    def execute_async(self, statement: Any) -> Any:
        self.sent += 1
        if self.times and (self.sent - 1) % self.step == 0:
            self.times -= 1
            return Answered(self.error)
        return self.session.execute_async(statement)


@pytest.fixture
def table(cassandra: Node, keyspace: str) -> Iterator[str]:
    """An empty table of lists, in a keyspace of its own."""
    store = CassandraStore(cassandra.settings(keyspace, "publisher"))
    store.create()
    store._ddl("lists", name := f"{keyspace}.lists_{RUN}")
    yield name
    store.close()


@contextmanager
def writer(
    cassandra: Node, table: str, error: Exception, times: int, step: int
) -> Iterator[tuple[Writer, Refusing, Throttle]]:
    """A writer of batches of three into the table, of which some are refused."""
    settings = cassandra.settings(table.partition(".")[0], "publisher")
    connection, throttle = Connection(settings), Throttle(0, 64, 10)
    session = Refusing(connection.session(), error, times, step)
    ring = Ring(session.session.cluster.metadata, settings.keyspace, settings.local_dc)
    yield Writer(session, connection.prepared(insert(table)), throttle, ring, 3), session, throttle
    connection.close()


REFUSALS = [
    WriteTimeout("busy", write_type=WriteType.UNLOGGED_BATCH),
    OperationTimedOut(),
    NoHostAvailable("gone", {}),
    OverloadedErrorMessage(0x1001, "busy", None),
]


@pytest.mark.parametrize("error", REFUSALS, ids=type)
def test_rows_that_a_busy_cluster_does_not_take_are_written_again(
    cassandra: Node, table: str, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A time-out of some rows costs a pause and half of what is under way, and no row."""
    monkeypatch.setattr(jobs.stores._writer, "PAUSES", (0.01, 0.01))
    lists = [ServedList("user", f"u{number}", ("i",), (1.0,), ("als",), at(DAY)) for number in range(30)]
    with writer(cassandra, table, error, 3, step=2) as (one, session, throttle):
        assert write_part(one, batches(lists), 1) == 30

    assert session.sent == 13
    assert throttle.limit == 32
    assert sorted(cassandra.execute(f"SELECT key FROM {table}")) == sorted((f"u{number}",) for number in range(30))


@pytest.mark.parametrize(
    ("error", "times"),
    [(OperationTimedOut("for ever"), 99), (InvalidRequest("for ever"), 1)],
    ids=["too often", "not for being busy"],
)
def test_what_does_not_end_or_is_no_time_out_ends_the_part(
    cassandra: Node, table: str, error: Exception, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver's error is raised by the part whose rows it is about."""
    monkeypatch.setattr(jobs.stores._writer, "PAUSES", (0.01, 0.01))
    with writer(cassandra, table, error, times, 1) as (one, session, _), pytest.raises(type(error), match="for ever"):
        write_part(one, batches(some_lists("i", 2)), 1)

    assert session.sent <= 5


class SlowToAgree(Connection):
    """A real connection whose first statements, so many, time out; as for some 20 s after a node died."""

    times = 2

    def session(self) -> Any:
        real = super().session()
        if self.times:
            self.times -= 1
            return TimesOut()
        return real


class TimesOut:
    def execute_async(self, statement: Any) -> Any:
        raise OperationTimedOut("a node is down")


def test_a_table_is_made_although_the_nodes_take_their_time(cassandra: Node, keyspace: str) -> None:
    """What times out is tried again until it worked, and whoever keeps a lease alive is told in between, and may end it."""
    settings = cassandra.settings(keyspace, "publisher")
    store = CassandraStore(settings)
    store.create()
    store.close()
    told: list[int] = []
    store._connection = SlowToAgree(settings)
    store._ddl("lists", f"{keyspace}.lists_{RUN}", told.append)
    assert told == [0, 0]
    assert cassandra.execute(f"SELECT key FROM {keyspace}.lists_{RUN}") == []
    store.close()

    def lost(rows: int) -> None:
        raise StaleFence("somebody else is at work")

    store._connection = SlowToAgree(settings)
    with pytest.raises(StaleFence):
        store._ddl("drop", f"{keyspace}.lists_{RUN}", lost)
    assert cassandra.execute(f"SELECT key FROM {keyspace}.lists_{RUN}") == []


def test_nodes_that_never_agree_are_an_error_to_retry(
    cassandra: Node, keyspace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a while it ends, as the store's unavailability."""
    monkeypatch.setattr(jobs.stores.cassandra, "DDL_SECONDS", 0.0)
    settings = cassandra.settings(keyspace, "publisher")
    store = CassandraStore(settings)
    store.create()
    store.close()
    store._connection = connection = SlowToAgree(settings)
    connection.times = 10**9
    with pytest.raises(StoreUnavailable, match="does not answer"):
        store._ddl("lists", f"{keyspace}.lists_{RUN}")


class Interrupted(BuiltLists):
    """Lists of which one is loaded, before an error ends it."""

    error: Exception

    def each_part(self, write: Any, into: str, progress: Callable[[int], None]) -> int:
        assert list(write(1, iter([batches(some_lists("i", 1))]))) == [1]
        raise self.error


@pytest.mark.parametrize("error", [StoreUnavailable("gone"), Busy("met"), Lost("killed"), ValueError("bad")], ids=type)
def test_what_is_loaded_stays_unless_it_is_of_no_use(
    cassandra: Node, keyspace: str, tmp_path: Path, error: Exception
) -> None:
    """Whoever comes back goes on from there; lists that can't be loaded are not gone on with."""
    store = CassandraStore(cassandra.settings(keyspace, "publisher"))
    store.create()
    fence = store.acquire("me", 60).fence
    store.set_state(RUN, None, RunState.LOADING, fence)
    lists = Interrupted(tmp_path)
    object.__setattr__(lists, "error", error)
    with pytest.raises(type(error)):
        store.load(RUN, lists, fence, lambda rows: None)

    assert (store._table_id(RUN) is None) is isinstance(error, ValueError)
    store.close()


def test_a_node_that_does_not_answer_costs_a_size_and_no_more(cassandra: Node, table: str) -> None:
    settings = cassandra.settings(table.partition(".")[0], "publisher")
    store = CassandraStore(settings)
    store._connection = connection = Scripted(settings, OperationTimedOut(), "before", "SELECT mebibytes")

    assert store.size(RUN) == 0
    assert connection.error is None
    store.close()


# Rows as of the run's own time


def some_lists(item: str, count: int = 3) -> list[ServedList]:
    return [ServedList("user", f"u{number}", (item,), (1.0,), ("als",), at(DAY)) for number in range(count)]


def test_a_row_is_written_as_of_its_own_time_and_a_late_writer_loses(cassandra: Node, table: str) -> None:
    """A publisher that was thought dead and writes on changes nothing of what its successor wrote, whatever it writes."""
    settings = cassandra.settings(table.partition(".")[0], "publisher")
    for fence, item in ((7, "successor"), (6, "zombie")):
        assert list(write_parts(settings, table, fence, 1, iter([batches(some_lists(item))]))) == [3]
    rows = cassandra.execute(f"SELECT items, WRITETIME(items) FROM {table}")

    assert {(tuple(items), written) for items, written in rows} == {(("successor",), at(DAY).timestamp() * 1e6 + 7)}


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
    """What somebody else wrote is not served as half a list: service and verification are told, and no log tells of whom."""
    store = CassandraStore(cassandra.settings(keyspace, "publisher"))
    store.create()
    store._ddl("lists", f"{keyspace}.lists_{RUN}")
    cassandra.execute(f"INSERT INTO {keyspace}.lists_{RUN} (kind, key, items) VALUES ('user', 'u', ['x'])")
    reader = CassandraReader(cassandra.settings(keyspace, "reader"))
    for read in (lambda: reader.get(RUN, "user", "u"), lambda: list(reader.scan(RUN))):
        with pytest.raises(RunUnreadable, match="a list of kind user has no items"):
            read()
    reader.close()
    store.close()


# Space


def folders(node: Node, keyspace: str) -> dict[str, int]:
    """Bytes in each table's folder on the node's disk, snapshots included; without empty ones."""
    data = node.folder / "data" / keyspace
    found: dict[str, int] = {}
    for folder, _, names in os.walk(data):
        for name in names:
            table = Path(folder).relative_to(data).parts[0].partition("-")[0]
            with suppress(FileNotFoundError):  # a compaction has just ended
                found[table] = found.get(table, 0) + (Path(folder) / name).stat().st_size
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


def counted(tasks: int, parts: Iterator[Batches]) -> Iterator[int]:
    for part in parts:
        yield sum(map(len, part))


def refused(tasks: int, parts: Iterator[Batches]) -> Iterator[int]:
    for part in parts:
        if any("u003" in batch["key"].to_pylist() for batch in part):
            raise StoreUnavailable("no room for u003")
        yield 1


def test_parts_are_written_by_workers_and_their_errors_come_back_as_they_were(tmp_path: Path, spark: Any) -> None:
    """One part's error is raised here as the error that it was there; parts that were written are not written again."""
    run = place(tmp_path, checkerboard(), dataset={"parts": 4})
    lists = BuiltLists(run.run(run.night()).folder / "build", spark)
    records = lists.folder.with_name("load")
    told: list[int] = []
    with pytest.raises(StoreUnavailable, match=r"^no room for u003$"):
        lists.each_part(refused, "a table", told.append)
    written = {path: path.stat().st_mtime_ns for path in records.glob("*.json")}

    assert lists.each_part(counted, "another table", told.append) == len(lists) == told[-1]
    assert len(list(records.glob("*.json"))) == len(lists.files()) > len(written)
    again = {path: path.stat().st_mtime_ns for path in records.glob("*.json")}
    assert all(again[path] > before for path, before in written.items())
    assert lists.each_part(refused, "another table", told.append) == len(lists)
    assert again == {path: path.stat().st_mtime_ns for path in records.glob("*.json")}


class Undecided(CassandraStore):
    """Needs three tries for each statement."""

    def __init__(self) -> None:
        super().__init__(CassandraSettings())
        self.tries: list[str] = []

    def _agreed(self, cql: str, last: bool) -> bool:
        self.tries.append(cql)
        return len(self.tries) % 3 == 0


def test_every_try_makes_the_same_table() -> None:
    """A node that carries one out late would put an empty table in the place of the one that was filled: seen on three nodes,
    of which one stood still for 15 s. A table that is made anew is another one."""
    store = Undecided()
    for _ in range(2):
        store._ddl("lists", f"k.lists_{RUN}")
    first, second = store.tries[:3], store.tries[3:]

    assert len(set(first)) == len(set(second)) == 1
    assert first != second


def test_a_drop_is_not_sent_again_for_one_who_lost_the_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two tries a successor may have loaded the very run, and published it."""
    store = Undecided()
    now = datetime.now(UTC)
    failed = RunRecord(RUN, RunState.FAILED, None, now, now)
    theirs = Registry(Lease("b", 3, now), None, {RUN: replace(failed, state=RunState.LOADING)})
    seen = iter([Registry(Lease("a", 2, now), None, {RUN: failed}), theirs])
    monkeypatch.setattr(store, "_read", lambda: next(seen))

    with pytest.raises(StaleFence):
        store.drop(RUN, 2)
    assert len(store.tries) == 1
