"""Three Cassandra nodes, a service and 200 users, and what may happen to them: tests/test_faults.py and tests/soak.py play it.

An item's name says whose it is: `<run_id>:<user>:<place>`. Nothing here makes lists by Spark; publication, rollback and
service are the real ones, each in processes of its own.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.lists import LISTS
from jobs.stores import open_store
from lookup_api.readers._cassandra import DRIVER_ERRORS
from schemas.runs import LeaseHeld, RunState
from tests import publish_run
from tests.cassandra import Cluster, Node, create_roles
from tests.commands import ROOT, Ended, nightlist, serving
from tests.load import Answer, Client
from tests.nights import Place

USERS, ITEMS = 200, 50
OTHERS = 2_000
"""Lists of similar items, which nobody asks for: a load that lasts a while can be killed half-way."""
REFRESH_SECONDS = 0.5
LAG_SECONDS = 5.0
"""How long after a flip the run before it may be served by a service that does not say that it is stale."""
LOST = 5
"""Exit code: the store could not be reached, or was lost."""
TRIES = 4
SLOW_ROWS = 150
"""Lists a second of a loader that is to be met at work."""


@dataclass
class Happening:
    """Something that was done to the site. Times are those of time.monotonic()."""

    name: str
    at: float
    fault: bool
    until: float = 0.0
    note: str = ""


@dataclass
class Tenure:
    """A time in which a run may be served."""

    run_id: str
    since: float
    until: float = float("inf")


class Site:
    """What is published and served, and all that has happened."""

    def __init__(self, folder: Path, cluster: Cluster, keyspace: str = "faults") -> None:
        store = cluster.section(keyspace) | {"grace_seconds": 20}
        serve = {"workers": 2, "refresh_seconds": REFRESH_SECONDS}
        sections = {"store": store, "serve": serve, "auth": {"open": True}}
        self.cluster = cluster
        folder.mkdir(exist_ok=True)
        self.place = Place(folder, sections)
        self.settings = self.place.settings()
        self.happenings: list[Happening] = []
        self.tenures: list[Tenure] = []
        self.port = 0
        self._built = 0

    @contextmanager
    def serving(self) -> Iterator["Site"]:
        """The service, with a first run."""
        create_roles(self.cluster)
        assert nightlist("init", "--store", "--config", self.place.config).code == 0
        self.publish()
        with serving(self.place.config) as self.port:
            yield self

    def load(self, out: Path, rate: float, seconds: float = 3_600.0) -> Client:
        """Requests for lists of all users, until it is stopped."""
        return Client(self.port, USERS, seconds, out, rate=rate, lists="marked", timeout=10)

    def capacity(self, seconds: float = 5.0) -> float:
        """Requests a second that the site bears, nothing else being done: what sixteen clients get who never wait."""
        for warm_up in (2.0, seconds):
            told = Client(self.port, USERS, warm_up, connections=16).result()
        return float(told["lists_per_second"])

    # What is done to nodes

    def kill(self, node: Node) -> None:
        """SIGKILL."""
        with self._happens(f"kill {node.host}"):
            node.kill()

    def restart(self, node: Node) -> None:
        """Start a node that was killed; until all see each other."""
        with self._happens(f"restart {node.host}"):
            node.spawn()
            self.cluster.wait()

    def freeze(self, node: Node, seconds: float, meanwhile: Callable[[], None] = lambda: None) -> None:
        """SIGSTOP, and after a while SIGCONT; until all see each other."""
        with self._happens(f"freeze {node.host}"):
            end = time.monotonic() + seconds
            node.freeze()
            try:
                meanwhile()
                time.sleep(max(0.0, end - time.monotonic()))
            finally:
                node.thaw()
            self.cluster.wait()

    # What is done to lists

    def publish(self) -> None:
        """A run becomes the live one; where a node is down, after a try or two that ended with the exit code for it."""
        run_id = self._build()
        with self._happens("publish", fault=False) as happening:
            tries = self._publish(run_id)
            happening.note = f"{run_id}, {tries} tries" if tries > 1 else run_id

    def publish_beside_another(self) -> None:
        """While one is publishing, a second one is turned away; the first one's run becomes the live one."""
        first, second = self._build(), self._build()
        with self._happens("two publishers", fault=False) as happening:
            since = time.monotonic()
            working = self._publisher(first, slow=True)
            self._wait(lambda: self._state(first) is RunState.LOADING or working.poll() is not None)
            self._is_turned_away(second)
            ended = _ended(working)
            assert ended.code == 0, ended
            self._lives(first, since)
            assert self._state(second) is None
            happening.note = f"{first}; {second} was turned away"

    def publish_after_a_killed_load(self) -> None:
        """The loader is killed when some lists are there and others are not; a retry publishes the same run."""
        run_id = self._build()
        with self._happens("kill loader") as happening:
            loader = self._publisher(run_id, slow=True)
            loaded = 0

            def half_way() -> bool:
                nonlocal loaded
                loaded = self._loaded(run_id)
                return loaded >= (USERS + OTHERS) // 2 or loader.poll() is not None

            self._wait(half_way)
            assert loader.poll() is None, _ended(loader)
            os.killpg(loader.pid, signal.SIGKILL)
            loader.communicate()
            assert self._state(run_id) is RunState.LOADING
            tries = self._publish(run_id)
            happening.note = f"{run_id}, killed at {loaded} of {USERS + OTHERS + 1} lists, {tries} tries"

    def roll_back(self) -> None:
        """The run before is served again, and the live one never more."""
        before = self.tenures[-1].run_id
        with self._happens("roll back", fault=False) as happening:
            since = time.monotonic()
            ended = nightlist("rollback", "--yes", "--json", "--config", self.place.config)
            assert ended.code == 0, ended
            run_id = ended.json["run_id"]
            self._lives(run_id, since)
            assert self._state(before) is RunState.BAD
            happening.note = f"{before} -> {run_id}"

    def may_roll_back(self) -> bool:
        """Whether there is a run to go back to."""
        with closing(open_store(self.settings.store)) as store:
            return any(run.state is RunState.RETIRED for run in store.runs())

    def may_serve(self, answer: Answer) -> bool:
        """Whether the answer's run was live when it was asked for, or so shortly before that a service may not know."""
        return any(
            tenure.run_id == answer.run_id
            and tenure.since <= answer.at + answer.seconds
            and (answer.stale or answer.at <= tenure.until + LAG_SECONDS)
            for tenure in self.tenures
        )

    # How

    @contextmanager
    def _happens(self, name: str, fault: bool = True) -> Iterator[Happening]:
        happening = Happening(name, time.monotonic(), fault)
        self.happenings.append(happening)
        yield happening
        happening.until = time.monotonic()

    def _build(self) -> str:
        """A run that a gate has passed."""
        self._built += 1
        run_id = f"20260301_{self._built:08x}"
        build = self.settings.paths.runs / run_id / "build"
        build.mkdir(parents=True)
        users = [f"u{user}" for user in range(USERS)]
        for bucket in range(4):
            write_lists(build / f"bucket-{bucket:05d}.parquet", "user", users[bucket::4], run_id)
        write_lists(build / "similar.parquet", "similar", [f"i{item}" for item in range(OTHERS)], run_id)
        write_lists(build / "popular.parquet", "popular", ["all"], run_id)
        return run_id

    def _publish(self, run_id: str) -> int:
        """How many tries it took."""
        for number in range(1, TRIES + 1):
            since = time.monotonic()
            ended = _ended(self._publisher(run_id))
            if ended.code == 0:
                self._lives(run_id, since)
                return number
            assert ended.code == LOST, ended
        raise AssertionError(f"run {run_id} is not live after {TRIES} tries: {ended}")

    def _is_turned_away(self, run_id: str) -> None:
        """In this process: one of its own might take longer to begin than the other one to end."""
        try:
            publish_run.main(self.place.config, run_id)
        except LeaseHeld:  # exit code 4
            return
        raise AssertionError(f"{run_id} was published while another publisher was at work")

    def _publisher(self, run_id: str, slow: bool = False) -> "subprocess.Popen[str]":
        """A process that publishes; a slow one takes some seconds for it. It would run on another machine, so here it is nice."""
        command = ["nice", "-n", "10", sys.executable, "-m", "tests.publish_run", str(self.place.config), run_id]
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **(throttled(SLOW_ROWS) if slow else {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def _lives(self, run_id: str, since: float) -> None:
        if self.tenures and self.tenures[-1].run_id != run_id:
            self.tenures[-1].until = time.monotonic()
        self.tenures.append(Tenure(run_id, since))

    def _state(self, run_id: str) -> RunState | None:
        with closing(open_store(self.settings.store)) as store:
            return next((run.state for run in store.runs() if run.run_id == run_id), None)

    def _loaded(self, run_id: str) -> int:
        """Lists of the run that are in the store."""
        table = f"{self.settings.store.cassandra.keyspace}.lists_{run_id}"
        try:
            ((rows,),) = self.cluster.execute(f"SELECT count(*) FROM {table}")
        except DRIVER_ERRORS:  # not made yet, or not known yet to a node that was away
            return 0
        return int(rows)

    def _wait(self, until: Callable[[], bool], seconds: float = 60.0) -> None:
        deadline = time.monotonic() + seconds
        while not until():
            assert time.monotonic() < deadline, "nothing happened for a minute"
            time.sleep(0.05)


def throttled(rows_per_second: int) -> dict[str, str]:
    """Of the environment of a publisher: it loads so many lists a second."""
    return {"NIGHTLIST_STORE__CASSANDRA__ROWS_PER_SECOND": str(rows_per_second)}


def _ended(publisher: "subprocess.Popen[str]") -> Ended:
    out, err = publisher.communicate(timeout=300)
    return Ended(publisher.returncode, out, err)


def write_lists(path: Path, kind: str, keys: list[str], run_id: str, length: int = ITEMS) -> None:
    """Lists whose items say whose they are."""
    now = datetime.now(UTC).replace(microsecond=0)
    owners = ["popular" if kind == "popular" else key for key in keys]
    columns = [
        [kind] * len(keys),
        keys,
        [[f"{run_id}:{owner}:{place}" for place in range(length)] for owner in owners],
        [[1 / (place + 1) for place in range(length)]] * len(keys),
        [["als"] * length] * len(keys),
        [now] * len(keys),
    ]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, LISTS, strict=True)]
    pq.write_table(pa.Table.from_arrays(arrays, schema=LISTS), path)
