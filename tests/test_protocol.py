"""The publish protocol as a state machine: whatever processes do, in any order, and wherever they die or stall.

Publishers and rollbacks are processes that stop before and after every call of the store (in the store in memory also
between two lists of a load, and around the drop of a table). Between any two stops the machine lets others go on, moves the
clock past leases, ends processes, loses the store once, and lets services refresh and read.
"""

import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import jobs.stores.cassandra
import lookup_api.readers.cassandra
from jobs.lists import LISTS, BuiltLists
from jobs.progress import Progress
from jobs.rollback import look, plan, roll_back
from jobs.run import RunFolder
from jobs.stages.publish import NotAsBuilt, publish, publishing
from jobs.stores.sqlite import SqliteStore
from lookup_api.pointer import Follower
from lookup_api.readers.sqlite import SqliteReader
from schemas.errors import (
    IllegalTransition,
    Refused,
    RunUnreadable,
    SequenceMoved,
    StaleFence,
    StoreUnavailable,
)
from schemas.lists import Kind, ServedList
from schemas.runs import LeaseHeld, Release, RunState, name_run
from schemas.settings import StoreSettings
from tests.cassandra import Node
from tests.clock import START, Clock
from tests.protocol import Crash, Forgetful, Memory, MemoryReader, MemoryStore, Paced, Process, Unsteady

KEEP, GRACE, LEASE = 2, 100.0, 60.0
KEYS: list[tuple[Kind, str]] = [("user", "u1"), ("user", "u2"), ("popular", "all")]
FENCED = {"set_state": 3, "flip": 2, "drop": 1, "load": 2}
"""Calls that change what is served, and the place of the fence among their arguments."""
AT_ONCE = 3
"""Processes at work at the same time."""


def lists_of(run_id: str) -> dict[tuple[Kind, str], ServedList]:
    """The lists of a run: each item names its run and its user."""
    found = {}
    for length, (kind, key) in enumerate(KEYS, 1):
        items = tuple(f"{run_id}:{key}:{place}" for place in range(length))
        found[kind, key] = ServedList(kind, key, items, (0.5,) * length, ("als",) * length, START)
    return found


class Told(Progress):
    """Keeps the warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def note(self, text: str) -> None:
        self.warnings += [text] if text.startswith("warning") else []


class Protocol(RuleBasedStateMachine):
    """Everything that may happen to one store; a subclass says which."""

    seen: ClassVar[Counter[str]]
    built: ClassVar[Path]
    """Where the Parquet of runs lies; equal in every example, so it is written once."""

    # The environment

    def open_store(self, pause: Callable[[str], None]) -> Any:
        raise NotImplementedError

    def open_reader(self) -> Any:
        raise NotImplementedError

    def tables(self) -> set[str]:
        """The runs that take space."""
        raise NotImplementedError

    @initialize()
    def begin(self) -> None:
        self.clock, self.ticks = Clock(), 0
        self.folder = Path(tempfile.mkdtemp(dir=self.built))
        self.settings = StoreSettings(path=self.folder / "store", keep=KEEP, grace_seconds=GRACE, lease_seconds=LEASE)
        self.set_up()
        self.store = self.open_store(lambda point: None)
        self.store.prepare()
        self.reader = self.open_reader()
        self.processes: list[Process] = []
        self.started: list[str] = []
        self.pointer: Release | None = None
        self.before_last: Release | None = None
        self.was_live: set[str] = set()
        self.left_at: dict[str, datetime] = {}
        self.bad: set[str] = set()
        self.fences: dict[int, int] = {}
        self.followers = [self.follower() for _ in range(2)]
        self.last_seen = [0, 0]

    def set_up(self) -> None:
        """Before the store is opened."""

    def teardown(self) -> None:
        for process in getattr(self, "processes", []):
            while not process.over:
                process.step(Crash())
        if hasattr(self, "reader"):
            for one in (self.reader, self.store, *(follower.reader.reader for follower in self.followers)):
                one.close()
            shutil.rmtree(self.folder)

    def follower(self) -> Follower:
        """Of a service that was just started; it is refreshed by the machine, not by a thread."""
        return Follower(Unsteady(self.open_reader()), 2.0, self.monotonic)

    def monotonic(self) -> float:
        self.ticks += 1
        return (self.clock() - START).total_seconds() + self.ticks

    def folder_of(self, run_id: str) -> RunFolder:
        run = RunFolder(self.folder / "runs" / run_id, "digest", Progress())
        run.folder.mkdir(parents=True, exist_ok=True)
        return run

    def lists_on_disk(self, run_id: str) -> BuiltLists:
        made = self.built / run_id / "lists.parquet"
        if not made.exists():
            made.parent.mkdir()
            rows = [{name: getattr(served, name) for name in LISTS.names} for served in lists_of(run_id).values()]
            pq.write_table(pa.Table.from_pylist(rows, schema=LISTS), made)
        build = self.folder_of(run_id).folder / "build"
        if not build.exists():
            build.symlink_to(made.parent)
        return BuiltLists(build)

    # Processes

    def begin_process(self, work: Callable[[Process, Any], object]) -> Process:
        def run(process: Process) -> object:
            store = Paced(self.open_store(process.pause), process, self.carried_out)
            return work(process, store)

        process = Process(run)
        self.processes.append(process)
        return process

    def publish(self, run_id: str, forgetful: bool) -> Process:
        def work(process: Process, store: Any) -> Release:
            told, lists = Told(), self.lists_on_disk(run_id)
            with closing(self.open_reader()) as reader:
                shown = Forgetful(reader, run_id) if forgetful else reader
                with publishing(store, shown, self.settings, self.clock) as publisher:
                    release = publish(publisher, self.folder_of(run_id), lists, told)
                    newest = self.newest_fence()
                    if publisher.lease.fence == newest and not told.warnings:
                        self.check_tidy(run_id)
                    return release

        return self.begin_process(work)

    def back(self, to: str | None) -> Process:
        def work(process: Process, store: Any) -> Release:
            pointer = store.pointer()
            left = self.folder_of(pointer.run_id if pointer else "none")
            chosen = process.plan = plan(store.runs(), pointer, to, left)
            with closing(self.open_reader()) as reader:
                look(reader, chosen, Progress())
                with publishing(store, reader, self.settings, self.clock) as publisher:
                    release = roll_back(publisher, chosen, left)
            self.seen["a rollback was finished" if chosen.begun else "rolled back"] += 1
            assert release.run_id == chosen.target.run_id
            return release

        return self.begin_process(work)

    def go_on(self, process: Process, stops: int, order: BaseException | None = None) -> None:
        """Some stops further; with `order` it is raised at the last of them."""
        for number in range(stops):
            last = number == stops - 1
            process.step(order if last else None)
            if process.over or not process.at.startswith(
                "before"
            ):  # there, nothing was carried out since the last stop
                self.observe()
            if process.over:
                break
        if process.over and process in self.processes:
            self.processes.remove(process)
            self.account(process)

    def account(self, process: Process) -> None:
        """How a process ended: in one of the ways that are known."""
        error = process.error
        allowed = (LeaseHeld, StaleFence, SequenceMoved, Refused, NotAsBuilt, StoreUnavailable, Crash)
        if error is not None and (not isinstance(error, allowed) or type(error) is IllegalTransition):
            raise error
        self.seen[type(error).__name__ if error else "success"] += 1
        if isinstance(error, Crash):
            self.seen[f"a crash {process.at.split()[0]}"] += 1
        if isinstance(error, Refused) and "BAD for ever" in str(error):
            self.seen["a BAD run refused"] += 1

    def newest_fence(self) -> int:
        lease = self.store._read().lease
        return lease.fence if lease else 0

    def carried_out(self, name: str, arguments: tuple[Any, ...]) -> None:
        """At most one publisher writes: whatever a store carries out was asked for under the newest lease."""
        if name == "load":
            states = {run.run_id: run.state for run in self.store.runs()}
            served_bad = self.pointer and states[self.pointer.run_id] is RunState.BAD
            assert not (served_bad and RunState.RETIRED in states.values()), "a rollback that died was not finished"
        if name in FENCED:
            assert arguments[FENCED[name]] == self.newest_fence(), f"{name}{arguments}: a zombie wrote"
            self.seen[name] += 1

    # What is watched at every stop

    def observe(self) -> None:
        registry = self.store._read()
        states = {run_id: run.state for run_id, run in registry.runs.items()}
        self.check_pointer(registry.release)
        for run_id in self.bad:
            assert states.get(run_id) is RunState.BAD, f"{run_id} was BAD and is {states.get(run_id)}"
        self.bad |= {run_id for run_id, state in states.items() if state is RunState.BAD}
        missing = self.must_be_readable() - self.tables()
        assert not missing, f"dropped, and may be read: {missing}"

    def check_pointer(self, pointer: Release | None) -> None:
        before = self.pointer
        if pointer == before:
            return
        assert pointer is not None
        assert pointer.sequence == (before.sequence if before else 0) + 1
        assert pointer.previous == (before.run_id if before else None)
        assert pointer.run_id not in self.bad, f"{pointer.run_id} is BAD and was pointed at again"
        if before:
            self.left_at[before.run_id] = self.clock()
        self.left_at.pop(pointer.run_id, None)
        self.was_live.add(pointer.run_id)
        self.before_last, self.pointer = before, pointer

    def must_be_readable(self) -> set[str]:
        """The run that the pointer names, and those that it named within the grace: services lag."""
        lagging = {run_id for run_id, left in self.left_at.items() if self.clock() - left < timedelta(seconds=GRACE)}
        return lagging | ({self.pointer.run_id} if self.pointer else set())

    def check_tidy(self, run_id: str) -> None:
        """After a publication that nobody disturbed: states say what the pointer says, and old tables are gone."""
        states = {run.run_id: run.state for run in self.store.runs()}
        assert [name for name, state in states.items() if state is RunState.LIVE] == [run_id]
        assert set(states.values()) <= {RunState.LIVE, RunState.RETIRED, RunState.BAD}, states
        lagging = self.must_be_readable() - {run_id}
        assert len(self.tables() - lagging) <= KEEP, self.tables()
        self.seen["tidy"] += 1

    @invariant()
    def everything_that_may_be_read_is_whole(self) -> None:
        for run_id in self.must_be_readable() if hasattr(self, "left_at") else ():
            assert {key: self.reader.get(run_id, *key) for key in KEYS} == lists_of(run_id), run_id

    @invariant()
    def no_service_goes_back(self) -> None:
        for number, follower in enumerate(getattr(self, "followers", [])):
            sequence = follower.current.sequence if follower.current else 0
            assert sequence >= self.last_seen[number]
            assert follower.current is None or follower.current.run_id in self.was_live
            self.last_seen[number] = sequence

    # What may happen

    def can_start(self) -> bool:
        return len(self.processes) < AT_ONCE

    def can_go_back(self) -> bool:
        return len(self.was_live - self.bad) > 1

    def can_go_on(self) -> bool:
        return bool(self.processes)

    def chosen(self, number: int) -> Process:
        return self.processes[number % len(self.processes)]

    def new_run(self, days: int) -> str:
        """A run of the newest day there is, or of a later one."""
        newest = max((run_id[:8] for run_id in self.started), default="20260301")
        run_id = name_run(date.fromisoformat(newest) + timedelta(days=days), f"{len(self.started):08x}")
        self.started.append(run_id)
        return run_id

    def startable(self, run_id: str) -> bool:
        """Not while somebody stalls between the check of its lease and the DROP TABLE of this very run: no database drops a
        table under a condition. Such a process would have to sleep as long as its lease and a whole load take."""
        return all(process.at != f"dropping {run_id}" for process in self.processes)

    @rule(days=st.sampled_from([0, 1, 1]), forgetful=st.sampled_from([False, False, False, True]))
    def a_whole_night(self, days: int, forgetful: bool) -> None:
        run_id = self.new_run(days)
        self.go_on(self.publish(run_id, forgetful), 1_000)

    @precondition(can_start)
    @rule(days=st.sampled_from([0, 1, 1]), forgetful=st.sampled_from([False, False, True]))
    def start_a_night(self, days: int, forgetful: bool) -> None:
        self.publish(self.new_run(days), forgetful)

    @precondition(lambda self: self.can_start() and self.started)
    @rule(number=st.integers(1, 4))
    def start_a_night_again(self, number: int) -> None:
        run_id = self.started[-min(number, len(self.started))]
        if self.startable(run_id):
            self.publish(run_id, forgetful=False)

    @precondition(can_start)
    @rule(number=st.integers(0, 4))
    def start_a_rollback(self, number: int) -> None:
        self.back(self.started[-number] if 0 < number <= len(self.started) else None)

    @precondition(can_go_back)
    @rule()
    def a_whole_rollback(self) -> None:
        self.go_on(self.back(None), 1_000)

    @precondition(can_go_back)
    @rule(point=st.sampled_from(["before flip", "after flip"]), again=st.booleans())
    def a_rollback_dies_half_way(self, point: str, again: bool) -> None:
        """The run is BAD by then, and is served still, or not any more; the next rollback goes no further."""
        process = self.back(None)
        self.go_to(process, point)
        self.go_on(process, 1, Crash())
        if not again:
            return
        self.clock.move(LEASE + 1)
        second = self.back(None)
        self.go_on(second, 1_000)
        if second.error is None and isinstance(process.error, Crash):
            assert self.pointer
            assert self.pointer.run_id == process.plan.target.run_id

    @precondition(can_start)
    @rule(
        stops=st.integers(1, 60),
        point=st.sampled_from(["", "", "before flip"]),
        back=st.sampled_from([False, False, True]),
        meanwhile=st.sampled_from(["a night", "the same night", "a rollback"]),
        then=st.booleans(),
    )
    def a_process_stalls(self, stops: int, point: str, back: bool, meanwhile: str, then: bool) -> None:
        """Longer than its lease, anywhere or where it hurts: others take it for dead, and it goes on, now or later."""
        run_id = self.new_run(1)
        zombie = self.back(None) if back else self.publish(run_id, forgetful=False)
        if point:
            self.go_to(zombie, point)
        else:
            self.go_on(zombie, stops)
        self.clock.move(LEASE + 1)
        self.go_on(self.successor(meanwhile, run_id), 1_000)
        if then:
            self.go_on(zombie, 1_000)

    def successor(self, what: str, run_id: str) -> Process:
        if what == "a rollback":
            return self.back(None)
        again = what == "the same night" and self.startable(run_id)
        return self.publish(run_id if again else self.new_run(1), forgetful=False)

    @precondition(lambda self: self.can_start() and self.can_go_back())
    @rule()
    def a_drop_stalls(self) -> None:
        """Between the check of its lease and the DROP TABLE; meanwhile somebody goes back, as far as one can."""
        self.clock.move(GRACE)
        zombie = self.publish(self.new_run(1), forgetful=False)
        self.go_to(zombie, "dropping")
        self.clock.move(LEASE + 1)
        retired = [run.run_id for run in self.store.runs() if run.state is RunState.RETIRED]
        self.go_on(self.back(retired[-1] if retired else None), 1_000)
        self.go_on(zombie, 1_000)

    def go_to(self, process: Process, point: str) -> None:
        while not process.over and not process.at.startswith(point):
            self.go_on(process, 1)

    @precondition(lambda self: self.bad)
    @rule(number=st.integers(0, 3))
    def a_bad_run_is_tried_again(self, number: int) -> None:
        process = self.publish(sorted(self.bad)[number % len(self.bad)], forgetful=False)
        self.go_on(process, 1_000)
        assert isinstance(process.error, Refused | LeaseHeld)

    @precondition(can_go_on)
    @rule(number=st.integers(0, AT_ONCE - 1), stops=st.integers(1, 25))
    def some_steps(self, number: int, stops: int) -> None:
        self.go_on(self.chosen(number), stops)

    @precondition(can_go_on)
    @rule(number=st.integers(0, AT_ONCE - 1))
    def to_the_end(self, number: int) -> None:
        self.go_on(self.chosen(number), 1_000)

    @precondition(can_go_on)
    @rule(number=st.integers(0, AT_ONCE - 1), stops=st.integers(1, 50))
    def a_crash(self, number: int, stops: int) -> None:
        self.go_on(self.chosen(number), stops, Crash())

    @precondition(can_start)
    @rule(stops=st.integers(1, 70), crash=st.booleans())
    def a_night_goes_wrong(self, stops: int, crash: bool) -> None:
        """Anywhere on its way; with the store lost it does what it still does, with a crash nothing."""
        process = self.publish(self.new_run(1), forgetful=False)
        self.go_on(process, stops, Crash() if crash else StoreUnavailable("lost"))
        self.go_on(process, 1_000)

    @precondition(can_go_on)
    @rule(number=st.integers(0, AT_ONCE - 1), stops=st.integers(1, 50))
    def the_store_is_lost_once(self, number: int, stops: int) -> None:
        self.go_on(self.chosen(number), stops, StoreUnavailable("lost"))

    @rule(seconds=st.sampled_from([1.0, LEASE / 2 + 1, LEASE + 1, LEASE + 1, GRACE, 2 * GRACE]))
    def time_passes(self, seconds: float) -> None:
        self.clock.move(seconds)

    @rule(number=st.integers(0, 1), how=st.sampled_from(["now", "now", "away", "late"]))
    def refresh(self, number: int, how: str) -> None:
        """From a store that answers, from one that does not, or from a replica that missed a flip."""
        follower, before = self.followers[number], self.followers[number].current
        follower.reader.away, follower.reader.late = how == "away", how == "late" and self.before_last
        follower.refresh()
        follower.reader.away = follower.reader.late = False
        self.seen["a service switched"] += follower.current != before
        if how == "now":
            assert follower.current == self.pointer
            assert not follower.stale

    @rule(key=st.sampled_from([*KEYS, ("user", "nobody")]))
    def read(self, key: tuple[Kind, str]) -> None:
        """As the service does: what can't be read is looked for once more where the pointer is now."""
        for follower in self.followers:
            if follower.current:
                self.read_by(follower, follower.current, key)

    def read_by(self, follower: Follower, release: Release, key: tuple[Kind, str]) -> None:
        try:
            found = follower.reader.get(release.run_id, *key)
        except RunUnreadable:
            assert release.run_id not in self.must_be_readable()
            self.seen["a run vanished"] += 1
            follower.refresh()  # which its thread does when it is told of the failure
            newer = follower.current
            assert newer is not None
            release, found = newer, follower.reader.get(newer.run_id, *key)
        assert found == lists_of(release.run_id).get(key)
        self.seen["read"] += 1

    @rule(number=st.integers(0, 1))
    def a_service_starts_again(self, number: int) -> None:
        self.followers[number].close()
        self.followers[number], self.last_seen[number] = self.follower(), 0
        self.followers[number].refresh()

    @rule()
    def all_die_and_the_next_night_works(self) -> None:
        """From wherever they stand: no person has to mend anything."""
        for process in list(self.processes):
            self.go_on(process, 1, Crash())
        self.clock.move(LEASE + 1)
        run_id = self.new_run(1)
        process = self.publish(run_id, forgetful=False)
        self.go_on(process, 1_000)
        assert process.error is None
        assert self.pointer
        assert self.pointer.run_id == run_id


class InMemory(Protocol):
    """A store that stops within loads and drops, as one made of statements may."""

    seen = Counter()

    def set_up(self) -> None:
        self.memory = Memory()

    def open_store(self, pause: Callable[[str], None]) -> MemoryStore:
        return MemoryStore(self.memory, self.clock, pause)

    def open_reader(self) -> MemoryReader:
        return MemoryReader(self.memory)

    def tables(self) -> set[str]:
        return set(self.memory.tables)


class OnSqlite(Protocol):
    """The embedded store."""

    seen = Counter()

    def open_store(self, pause: Callable[[str], None]) -> SqliteStore:
        return SqliteStore(self.settings.path, self.clock)

    def open_reader(self) -> SqliteReader:
        return SqliteReader(self.settings.path)

    def tables(self) -> set[str]:
        return {path.stem.removeprefix("lists_") for path in self.settings.path.glob("lists_*.db")}


class Kept:
    """One connection for all of an example: a store and its contents are shared, not sockets. It is closed at the end."""

    def __init__(self, opened: Any) -> None:
        self.opened = opened

    def __getattr__(self, name: str) -> Any:
        return getattr(self.opened, name)

    def close(self) -> None:
        """Not yet."""


class OnCassandra(Protocol):
    """A real node, and a keyspace for each example."""

    seen = Counter()
    node: ClassVar[Node]

    def set_up(self) -> None:
        self.keyspace = f"k{uuid4().hex[:12]}"
        self.settings = self.settings.model_copy(
            update={"backend": "cassandra", "cassandra": self.node.settings(self.keyspace, "publisher")}
        )
        self.connected = Kept(jobs.stores.cassandra.open_store(self.settings, self.clock))
        self.connected_reader = Kept(lookup_api.readers.cassandra.open_reader(self.settings))
        self.connected.create()

    def open_store(self, pause: Callable[[str], None]) -> Any:
        return self.connected

    def open_reader(self) -> Any:
        return self.connected_reader

    def tables(self) -> set[str]:
        rows = self.node.execute(f"SELECT table_name FROM system_schema.tables WHERE keyspace_name = '{self.keyspace}'")
        return {name.removeprefix("lists_") for (name,) in rows if name.startswith("lists_")}

    def teardown(self) -> None:
        super().teardown()
        if hasattr(self, "connected"):
            self.connected.opened.close()
            self.connected_reader.opened.close()
            self.node.execute(f"DROP KEYSPACE {self.keyspace}")


EVERYTHING = {
    "success", "Crash", "StoreUnavailable", "StaleFence", "LeaseHeld", "Refused", "NotAsBuilt", "rolled back", "tidy",
    "a rollback was finished", "a BAD run refused", "drop", "a service switched", "read", "a run vanished",
    "a crash before", "a crash after",
}  # fmt: skip
"""What has to happen in one example or another; else the machine shows less than it says."""


@pytest.fixture
def built(caplog: pytest.LogCaptureFixture) -> Iterator[Path]:
    """A folder in memory where there is one. Services tell of every refresh that failed: here that is every other one."""
    caplog.set_level("ERROR")
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as made:
        yield Path(made)


def explore(machine: type[Protocol], built: Path, examples: int, steps: int) -> None:
    machine.built = built
    machine.seen.clear()
    quiet = settings(max_examples=examples, stateful_step_count=steps, suppress_health_check=list(HealthCheck))
    run_state_machine_as_test(machine, settings=quiet)


@pytest.mark.parametrize(("machine", "examples"), [(InMemory, 80), (OnSqlite, 40)])
def test_the_protocol_keeps_its_promises(machine: type[Protocol], examples: int, built: Path) -> None:
    """Whatever is done in any order: answers are whole lists of one run that was live, no service goes back, nothing that may
    be read is dropped, one publisher writes at a time, a BAD run stays away, and the next night works."""
    explore(machine, built, examples, steps=50)

    assert EVERYTHING <= set(machine.seen), EVERYTHING - set(machine.seen)


def test_the_protocol_keeps_its_promises_on_cassandra(cassandra: Node, built: Path) -> None:
    """The same on a real node, less deep: each step is some statements."""
    OnCassandra.node = cassandra
    explore(OnCassandra, built, examples=10, steps=15)

    assert {"success", "Crash", "rolled back", "drop", "read", "tidy"} <= set(OnCassandra.seen)
