"""Stage 9 on the embedded store: whatever call fails, readers have whole lists, and a second try goes on.

A run is made here by writing the Parquet that stage 7 would have written; no Spark takes part.
"""

import errno
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.lease import here, wait_for_lease
from jobs.lists import LISTS, BuiltLists
from jobs.progress import Progress
from jobs.rollback import look, plan, roll_back
from jobs.run import PUBLISHED, ROLLED_BACK, RunFolder
from jobs.stages.publish import NotAsBuilt, Publisher, publish, publishing, settle
from jobs.stores.sqlite import SqliteStore
from lookup_api.readers.sqlite import SqliteReader, lists_path
from schemas.errors import Busy, IllegalTransition, NightlistError, Refused, SequenceMoved, StaleFence, StoreUnavailable
from schemas.lists import ServedList
from schemas.runs import LeaseHeld, Release, RunState
from schemas.settings import StoreSettings
from tests.clock import START, Clock

ROOT = Path(__file__).parents[1]
RUNS = [f"202603{day:02d}_{day:08x}" for day in range(1, 9)]
OLDER, NEWER, THIRD = RUNS[:3]
LEASE_SECONDS = 60.0
USERS = 6


class Crash(BaseException):
    """The publisher's process ended here: nothing that it would have done next happens."""


class Scripted:
    """A real store whose call number `at` (from 0) goes wrong, before or after it took effect.

    Where it goes wrong by a Crash, or `for_good`, every later call does so too. `calls` are all that were made.
    """

    def __init__(
        self,
        store: SqliteStore,
        at: int | None = None,
        when: str = "before",
        error: type[BaseException] = Crash,
        for_good: bool = False,
    ) -> None:
        self.store, self.at, self.when, self.error = store, at, when, error
        self.for_good = for_good or error is Crash
        self.calls: list[str] = []
        self.failed = False

    def __getattr__(self, name: str) -> Callable[..., Any]:
        real = getattr(self.store, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            if self.failed and self.for_good:
                raise self.error(f"{name}: still gone")
            number = len(self.calls)
            self.calls.append(name)
            if number == self.at and self.when == "before":
                self._fail(name)
            result = real(*args, **kwargs)
            if number == self.at:
                self._fail(name)
            return result

        return call

    def _fail(self, name: str) -> None:
        self.failed = True
        raise self.error(f"scripted fault {self.when} {name}")


class Changed(SqliteStore):
    """A store whose load is followed by `change` on the run's file: a disk that does not keep what it is given."""

    change: Callable[[Path], object]

    def load(self, run_id: str, lists: Any, fence: int, *arguments: Any) -> int:
        rows = super().load(run_id, lists, fence, *arguments)
        self.change(lists_path(self.folder, run_id))
        return rows


@dataclass
class Site:
    """A store, the runs beside it, and one clock."""

    folder: Path
    clock: Clock = field(default_factory=Clock)
    keep: int = 3
    grace: float = 0.0

    @property
    def settings(self) -> StoreSettings:
        return StoreSettings(
            path=self.folder / "store", keep=self.keep, grace_seconds=self.grace, lease_seconds=LEASE_SECONDS
        )

    def store(self) -> SqliteStore:
        return SqliteStore(self.settings.path, self.clock)

    def built(self, run_id: str) -> RunFolder:
        """A run that the gate has passed; its lists depend on its name."""
        run = RunFolder(self.folder / "runs" / run_id, "digest", Progress())
        build = run.folder / "build"
        if not build.exists():
            build.mkdir(parents=True)
            users = [_row("user", f"u{number}", run_id, number) for number in range(USERS)]
            for bucket in range(2):
                _write(build / f"bucket-{bucket:05d}.parquet", users[bucket::2])
            _write(build / "similar.parquet", [_row("similar", "a/b", run_id, 3), _row("similar", "ü", run_id, 1)])
            _write(build / "popular.parquet", [_row("popular", "all", run_id, 4)])
        return run

    @contextmanager
    def publisher(self, store: Any = None) -> Iterator[Publisher]:
        with (
            closing(SqliteReader(self.settings.path)) as reader,
            publishing(store or self.store(), reader, self.settings, self.clock) as publisher,
        ):
            yield publisher

    def publish(self, run_id: str, store: Any = None) -> Release:
        with self.publisher(store) as publisher:
            return self.publish_under(publisher, run_id)

    def publish_under(self, publisher: Publisher, run_id: str) -> Release:
        run = self.built(run_id)
        return publish(publisher, run, BuiltLists(run.folder / "build"), Progress())

    def roll_back(self, to: str | None = None, store: Any = None, told: Progress | None = None) -> Release:
        store = store or self.store()
        pointer = store.pointer()
        left = self.built(pointer.run_id) if pointer else RunFolder(self.folder / "none", "", Progress())
        left.progress = told or left.progress
        chosen = plan(store.runs(), pointer, to, left)
        with closing(SqliteReader(self.settings.path)) as reader:
            look(reader, chosen, Progress())
        with self.publisher(store) as publisher:
            return roll_back(publisher, chosen, left)

    def states(self) -> dict[str, RunState]:
        return {record.run_id: record.state for record in self.store().runs()}

    def files(self) -> set[str]:
        return {path.name for path in self.settings.path.glob("lists_*")}

    def served(self) -> str | None:
        """The run that a service would serve from; fails unless its lists are those built, and no others."""
        with closing(SqliteReader(self.settings.path)) as reader:
            release = reader.release()
            if release is None:
                return None
            expected = by_key(BuiltLists(self.built(release.run_id).folder / "build"))
            reader.probe(release.run_id)
            assert by_key(reader.scan(release.run_id)) == expected
            for kind, key in expected:
                assert reader.get(release.run_id, kind, key) == expected[kind, key]
            return release.run_id


def _row(kind: str, key: str, run_id: str, length: int) -> dict[str, Any]:
    scores = [float(np.float32(1 / (place + 3))) for place in range(length)]
    return {
        "kind": kind,
        "key": key,
        "items": [f"{run_id}-{key}-{place}" for place in range(length)],
        "scores": scores,
        "sources": ["als+popular"] * length,
        "scored_at": START,
    }


def _write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    pq.write_table(pa.Table.from_pylist(list(rows), schema=LISTS), path)


def by_key(lists: Iterator[ServedList]) -> dict[tuple[Any, str], ServedList]:
    return {(served.kind, served.key): served for served in lists}


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one: a process that dies loses nothing that it wrote, synced or not."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(prefix="nightlist-", dir=memory) as made:
        yield Path(made)


@pytest.fixture
def site(folder: Path) -> Site:
    """An empty store."""
    return Site(folder)


@pytest.fixture
def published(site: Site) -> Site:
    """A store with two runs, NEWER live and OLDER retired."""
    site.publish(OLDER)
    site.publish(NEWER)
    return site


def calls_of(folder: Path, before: Sequence[str], work: Callable[[Site, Any], object]) -> list[str]:
    """The store's calls of `work` after these runs were published, with leases that need to be renewed."""
    site = Site(folder / "unharmed", keep=2)
    site.folder.mkdir(parents=True)
    for run_id in before:
        site.publish(run_id)
    shutil.copytree(site.folder, folder / "before")
    site.clock.step = 20
    recorded = Scripted(site.store())
    work(site, recorded)
    return recorded.calls


def every_point(
    folder: Path, before: Sequence[str], work: Callable[[Site, Any], object]
) -> Iterator[tuple[str, Site, int, str]]:
    """A fresh site for every call of the store and for both sides of it."""
    for number, name in enumerate(calls_of(folder, before, work)):
        for when in ("before", "after"):
            site = Site(folder / f"{number}-{when}", Clock(step=20), keep=2)
            shutil.copytree(folder / "before", site.folder)
            yield f"{when} call {number}, {name}", site, number, when


# The way to LIVE


def test_a_published_run_is_live_with_every_list_as_built(site: Site) -> None:
    """The first publication has sequence 1, each list is served as it stands in the Parquet, and the run says when."""
    release = site.publish(OLDER)

    assert (release.run_id, release.previous, release.sequence) == (OLDER, None, 1)
    assert site.served() == OLDER
    assert site.states() == {OLDER: RunState.LIVE}
    assert site.built(OLDER).read(PUBLISHED) == {"sequence": 1, "published_at": START.isoformat()}


def test_the_next_run_retires_the_one_before(published: Site) -> None:
    """Exactly one run is LIVE, the pointer's, and the pointer says what was before."""
    release = published.store().pointer()

    assert release == Release(NEWER, OLDER, 2, START)
    assert published.states() == {NEWER: RunState.LIVE, OLDER: RunState.RETIRED}
    assert published.served() == NEWER


def test_publishing_the_live_run_again_changes_nothing(published: Site) -> None:
    """A night that is started again after it was published moves no sequence and no state."""
    before = published.store().pointer(), published.store().runs()
    published.clock.move(5)
    release = published.publish(NEWER)

    assert release == before[0]
    assert (published.store().pointer(), published.store().runs()) == before


def test_every_state_on_the_way_is_reached_in_order_and_the_pointer_flips_last(site: Site) -> None:
    """LOADING, LOADED, VERIFIED come before the flip; only after it is the run LIVE and the one before RETIRED."""
    site.publish(OLDER)
    seen: list[tuple[str, ...]] = []

    class Recorded(SqliteStore):
        def set_state(self, run_id: str, old: Any, new: RunState, fence: int, rows: int | None = None) -> None:
            super().set_state(run_id, old, new, fence, rows)
            seen.append((run_id, new))

        def flip(self, run_id: str, expected_sequence: int, fence: int) -> Release:
            seen.append((run_id, "flip"))
            return super().flip(run_id, expected_sequence, fence)

    site.publish(NEWER, Recorded(site.settings.path, site.clock))

    on_the_way = [state for run_id, state in seen if run_id == NEWER]
    assert on_the_way == ["LOADING", "LOADED", "VERIFIED", "flip", "LIVE"]
    assert seen.index((NEWER, "flip")) < seen.index((OLDER, RunState.RETIRED))


def test_a_run_older_than_the_live_one_is_refused(published: Site) -> None:
    """A night of an earlier day, late or started by hand, does not move everybody's lists back."""
    published.publish(RUNS[4])
    before = published.states()
    with pytest.raises(Refused, match=f"{RUNS[3]} is older than the live run {RUNS[4]}") as caught:
        published.publish(RUNS[3])

    assert caught.value.exit_code == 3
    assert published.states() == before
    assert published.served() == RUNS[4]


def test_another_run_of_the_live_one_s_day_may_replace_it(site: Site) -> None:
    """A day that is made again from mended input has another name and the same date; it is not older."""
    again = OLDER[:8] + "_ffffffff"
    site.publish(OLDER)
    site.publish(again)

    assert site.served() == again


def test_a_retired_run_comes_back_only_by_rollback(published: Site) -> None:
    """Publishing a run that was live before is refused, and the message says which command brings it back."""
    same_day = NEWER[:8] + "_ffffffff"
    published.publish(same_day)
    with pytest.raises(Refused, match=f"nightlist rollback --to {NEWER}"):
        published.publish(NEWER)

    assert published.served() == same_day


# Crashes


def publish_third(site: Site, store: Any) -> Release:
    """A publication that takes every step: a run is live, and one too many is retired, so that it is dropped."""
    return site.publish(THIRD, store)


def test_a_crash_at_any_call_leaves_whole_lists_and_the_same_call_ends_live(folder: Path) -> None:
    """Dying before or after any call leaves readers one whole run, and a second try ends as if nothing had been."""
    calls = set()
    for point, site, number, when in every_point(folder, [OLDER, NEWER], publish_third):
        store = Scripted(site.store(), number, when)
        with pytest.raises(Crash):
            publish_third(site, store)
        calls.add(store.calls[-1])
        done = store.calls[: number + (when == "after")]
        assert site.served() == (THIRD if "flip" in done else NEWER), point

        site.clock.move(LEASE_SECONDS + 1)
        release = site.publish(THIRD)
        assert site.served() == THIRD, point
        assert (release.previous, release.sequence) == (NEWER, 3), point
        assert site.states() == {THIRD: RunState.LIVE, NEWER: RunState.RETIRED}, point
        assert (site.built(THIRD).read(PUBLISHED) or {})["sequence"] == 3, point
        assert site.files() == {f"lists_{run_id}.db" for run_id in (NEWER, THIRD)}, point
    steps = {"prepare", "acquire", "runs", "pointer", "set_state", "load", "renew", "flip", "drop", "release"}
    assert calls == steps


def test_a_crash_during_the_first_publication_serves_nothing_or_the_whole_run(folder: Path) -> None:
    """Before the first flip there is no pointer at all, never one to half a run."""
    for point, site, number, when in every_point(folder, [], lambda site, store: site.publish(OLDER, store)):
        store = Scripted(site.store(), number, when)
        with pytest.raises(Crash):
            site.publish(OLDER, store)
        flipped = "flip" in store.calls[: number + (when == "after")]
        assert site.served() == (OLDER if flipped else None), point

        site.clock.move(LEASE_SECONDS + 1)
        site.publish(OLDER)
        assert (site.served(), site.states()) == (OLDER, {OLDER: RunState.LIVE}), point


def test_after_a_crash_the_next_night_can_publish_too(folder: Path) -> None:
    """Where nobody starts the broken night again, the next day's run goes live, and it alone is LIVE."""
    for point, site, number, when in every_point(folder, [OLDER, NEWER], publish_third):
        with pytest.raises(Crash):
            publish_third(site, Scripted(site.store(), number, when))
        site.clock.move(LEASE_SECONDS + 1)
        site.publish(RUNS[3])

        assert site.served() == RUNS[3], point
        live = [run_id for run_id, state in site.states().items() if state is RunState.LIVE]
        assert live == [RUNS[3]], point


def test_a_store_that_fails_once_is_an_error_to_retry_at_once(folder: Path) -> None:
    """Whichever call fails before the flip, the error says retry (exit code 5), and the retry of the same process need
    not wait, whether the lease could be given back or not. After the flip the run is served, and that is a success."""
    succeeded = 0
    for point, site, number, when in every_point(folder, [OLDER, NEWER], publish_third):
        store = Scripted(site.store(), number, when, StoreUnavailable)
        raised: StoreUnavailable | None = None
        try:
            publish_third(site, store)
        except StoreUnavailable as error:
            raised = error
        assert (raised is None) == ("flip" in store.calls[:number]), point
        assert raised is None or (raised.exit_code, raised.retry) == (5, True), point
        succeeded += raised is None
        assert site.served() in ((NEWER, THIRD) if raised else (THIRD,)), point
        publish_third(site, site.store())

        assert site.served() == THIRD, point
        assert site.states() == {THIRD: RunState.LIVE, NEWER: RunState.RETIRED}, point
    assert succeeded > 6, "no call after the flip was tried"


LEFT_IN = {"load": RunState.LOADING, "flip": RunState.VERIFIED}


@pytest.mark.parametrize("call", LEFT_IN)
def test_the_error_of_a_lost_store_knows_the_state_that_the_run_was_left_in(folder: Path, call: str) -> None:
    """Also when the store stays away, so that not even the lease can be given back."""
    points = every_point(folder, [OLDER, NEWER], publish_third)
    site, number = next((site, number) for point, site, number, _ in points if point.endswith(f", {call}"))
    with pytest.raises(StoreUnavailable, match=call) as caught:
        publish_third(site, Scripted(site.store(), number, "before", StoreUnavailable, for_good=True))

    assert caught.value.state is LEFT_IN[call]
    assert site.states()[THIRD] is LEFT_IN[call]


class Told(Progress):
    """Keeps what a person would be told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


class LostAfterTheFlip(Scripted):
    """A store that carries out the flip, and never answers again."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if "flip" in self.calls:
            raise StoreUnavailable(f"{name}: gone")
        return super().__getattr__(name)


def test_a_store_that_is_lost_right_after_the_flip_is_a_warning(folder: Path) -> None:
    """The run is served, so the night succeeded; states and old runs are done by the next publication."""
    site = Site(folder, keep=2)
    site.publish(OLDER)
    site.publish(NEWER)
    told = Told()
    with site.publisher(LostAfterTheFlip(site.store())) as publisher:
        release = publish(publisher, site.built(THIRD), BuiltLists(site.built(THIRD).folder / "build"), told)

    assert (release.run_id, release.sequence) == (THIRD, 3)
    assert told.notes[0].startswith(f"warning: run {THIRD} is live")
    assert site.states() == {THIRD: RunState.VERIFIED, NEWER: RunState.LIVE, OLDER: RunState.RETIRED}
    assert (site.built(THIRD).read(PUBLISHED) or {})["sequence"] == 3

    site.publish(RUNS[3])
    assert site.states() == {RUNS[3]: RunState.LIVE, THIRD: RunState.RETIRED}


def test_a_publisher_that_slept_too_long_writes_no_more(site: Site) -> None:
    """Whoever took the lease over publishes undisturbed; the sleeper is told by StaleFence, and its run is not live."""
    site.publish(OLDER)

    class Slow(SqliteStore):
        def load(self, run_id: str, lists: Any, fence: int, *arguments: Any) -> int:
            site.clock.move(LEASE_SECONDS + 1)
            site.publish(THIRD)
            return super().load(run_id, lists, fence, *arguments)

    with pytest.raises(StaleFence):
        site.publish(NEWER, Slow(site.settings.path, site.clock))

    assert site.served() == THIRD
    assert site.states()[THIRD] is RunState.LIVE


# What others left


def left(site: Site, run_id: str, state: RunState) -> None:
    """A publisher of this run died when the run came into this state, and its lease is over."""

    class Dies(SqliteStore):
        def set_state(self, run_id: str, old: Any, new: RunState, fence: int, rows: int | None = None) -> None:
            super().set_state(run_id, old, new, fence, rows)
            if new is state:
                raise Crash

    with pytest.raises(Crash):
        site.publish(run_id, Dies(site.settings.path, site.clock))
    site.clock.move(LEASE_SECONDS + 1)
    assert site.states()[run_id] is state


@pytest.mark.parametrize("state", [RunState.LOADING, RunState.LOADED, RunState.VERIFIED])
def test_what_a_dead_publisher_left_is_dropped_before_the_next_run_is_loaded(site: Site, state: RunState) -> None:
    """Room is made first, a person is told, the run is BUILT again, and can still be published where it is not too old."""
    again = OLDER[:8] + "_ffffffff"
    left(site, OLDER, state)
    told, scripted = Told(), Scripted(site.store())
    run = site.built(again)
    with site.publisher(scripted) as publisher:
        publish(publisher, run, BuiltLists(run.folder / "build"), told)

    assert site.states() == {again: RunState.LIVE}
    assert site.files() == {f"lists_{again}.db"}
    assert scripted.calls.index("drop") < scripted.calls.index("load")
    (note,) = told.notes
    assert note.startswith(f"run {OLDER} was {state} since 2026-03-04 02:30:00 UTC")


def test_a_failed_run_loses_its_lists_to_the_next_one(site: Site) -> None:
    """What was loaded and is not as built takes no space for ever."""
    store = Changed(site.settings.path, site.clock)
    store.change = _sql("DELETE FROM lists WHERE kind = 'popular'")
    with pytest.raises(NotAsBuilt):
        site.publish(OLDER, store)
    assert site.files() == {f"lists_{OLDER}.db"}
    site.publish(NEWER)

    assert (site.states(), site.files()) == ({NEWER: RunState.LIVE}, {f"lists_{NEWER}.db"})


def test_a_retry_of_the_same_run_drops_nothing_of_it(site: Site) -> None:
    """A run that was loaded is only read back by the next try."""
    left(site, OLDER, RunState.LOADED)
    scripted = Scripted(site.store())
    site.publish(OLDER, scripted)

    assert not {"load", "drop"} & set(scripted.calls)
    assert site.served() == OLDER


def test_a_refused_run_cleans_nothing(published: Site) -> None:
    """Who may not publish changes nothing in the store."""
    left(published, RUNS[3], RunState.LOADED)
    with pytest.raises(Refused):
        published.publish(OLDER)

    assert published.states()[RUNS[3]] is RunState.LOADED


def test_the_lease_is_kept_alive_between_drops(folder: Path) -> None:
    """Many old runs on a slow store: each drop takes most of a lease, and nobody takes it over meanwhile."""
    site = Site(folder, keep=5)
    for run_id in RUNS[:6]:
        site.publish(run_id)

    class Slow(SqliteStore):
        def drop(self, run_id: str, fence: int) -> None:
            site.clock.move(LEASE_SECONDS - 1)
            with pytest.raises(LeaseHeld):
                self.acquire("another", LEASE_SECONDS)
            super().drop(run_id, fence)

    site.keep = 2
    site.publish(RUNS[6], Slow(site.settings.path, site.clock))

    assert site.files() == {f"lists_{run_id}.db" for run_id in RUNS[5:7]}


# Read back


def _sql(statement: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        with closing(sqlite3.connect(path)) as file:
            file.execute(statement)
            file.commit()

    return change


DIFFERENT = "0 lists missing, 0 foreign, 1 different"
ANOTHER_LIST = "INSERT INTO lists SELECT kind, 'u9', items, scores, sources, scored_at FROM lists LIMIT 1"
CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "one score": (_sql("UPDATE lists SET scores = zeroblob(12) WHERE key = 'u3'"), DIFFERENT),
    "one source": (_sql("""UPDATE lists SET sources = '["als"]' WHERE key = 'u1'"""), DIFFERENT),
    "the order": (_sql("UPDATE lists SET items = json_array(items ->> 1, items ->> 0) WHERE key = 'u2'"), DIFFERENT),
    "the time": (_sql("UPDATE lists SET scored_at = '2026-03-04T02:30:01+00:00' WHERE key = 'u0'"), DIFFERENT),
    "a list lost": (_sql("DELETE FROM lists WHERE kind = 'popular'"), "1 lists missing, 0 foreign, 0 different"),
    "a list too many": (_sql(ANOTHER_LIST), "0 lists missing, 1 foreign"),
    "another key": (_sql("UPDATE lists SET key = 'U3' WHERE key = 'u3'"), "1 lists missing, 1 foreign"),
    "no JSON": (_sql("UPDATE lists SET items = 'x' WHERE key = 'u3'"), "can't be read back"),
    "no file": (Path.unlink, "can't be read back"),
    "no database": (lambda path: path.write_bytes(b"x" * 40_000), "can't be read back"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_lists_that_read_back_differently_never_go_live(site: Site, what: str) -> None:
    """One list that is not as built fails the run; last night's lists stay, and a retry loads anew."""
    change, message = CHANGES[what]
    site.publish(OLDER)
    store = Changed(site.settings.path, site.clock)
    store.change = change
    with pytest.raises(NotAsBuilt, match=message) as caught:
        site.publish(NEWER, store)

    assert (caught.value.state, caught.value.exit_code, caught.value.retry) == (RunState.FAILED, 1, True)
    assert site.states() == {NEWER: RunState.FAILED, OLDER: RunState.LIVE}
    assert site.served() == OLDER
    assert site.built(NEWER).read(PUBLISHED) is None

    site.publish(NEWER)
    assert site.served() == NEWER


def test_lists_changed_after_a_crash_between_load_and_verify_are_found(site: Site) -> None:
    """A second try that finds the run LOADED reads it back all the same."""
    site.publish(OLDER)

    class Dies(SqliteStore):
        def set_state(self, run_id: str, old: Any, new: RunState, fence: int, rows: int | None = None) -> None:
            super().set_state(run_id, old, new, fence, rows)
            if new is RunState.LOADED:
                raise Crash

    with pytest.raises(Crash):
        site.publish(NEWER, Dies(site.settings.path, site.clock))
    assert site.states()[NEWER] is RunState.LOADED
    _sql("DELETE FROM lists WHERE key = 'u1'")(lists_path(site.settings.path, NEWER))
    site.clock.move(LEASE_SECONDS + 1)
    with pytest.raises(NotAsBuilt, match="1 lists missing"):
        site.publish(NEWER)

    assert site.served() == OLDER


# The way back


def test_rollback_goes_to_the_newest_retired_run_and_marks_the_live_one_bad(published: Site) -> None:
    """The sequence rises on the way back too, and the run's folder says that it was rolled back."""
    published.publish(THIRD)
    release = published.roll_back()

    assert (release.run_id, release.previous, release.sequence) == (NEWER, THIRD, 4)
    assert published.served() == NEWER
    assert published.states() == {THIRD: RunState.BAD, NEWER: RunState.LIVE, OLDER: RunState.RETIRED}
    assert (published.built(THIRD).read(ROLLED_BACK) or {})["to"] == NEWER


def test_a_folder_that_can_not_be_written_to_keeps_nobody_from_rolling_back(
    published: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk: the store alone decides what is served; the next publication tells the folder."""
    published.publish(THIRD)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    told = Told()
    with monkeypatch.context() as disk:
        disk.setattr(RunFolder, "write", full)
        release = published.roll_back(told=told)

    assert (release.run_id, published.served()) == (NEWER, NEWER)
    assert published.states()[THIRD] is RunState.BAD
    assert "No space left on device" in told.notes[0]
    published.publish(RUNS[3])
    assert published.built(THIRD).read(ROLLED_BACK)


def test_rolling_back_twice_goes_back_twice(published: Site) -> None:
    """A second rollback goes to the run before; what was rolled back is never a target."""
    published.publish(THIRD)
    published.roll_back()
    published.roll_back()

    assert published.served() == OLDER
    assert published.states() == {THIRD: RunState.BAD, NEWER: RunState.BAD, OLDER: RunState.LIVE}
    with pytest.raises(Refused, match="no retired run"):
        published.roll_back()


def test_rollback_to_a_named_run(published: Site) -> None:
    """--to goes past the newest retired run, which stays RETIRED."""
    published.publish(THIRD)
    published.roll_back(OLDER)

    assert published.served() == OLDER
    assert published.states() == {THIRD: RunState.BAD, NEWER: RunState.RETIRED, OLDER: RunState.LIVE}


@pytest.mark.parametrize("target", [NEWER, RUNS[7], ""])
def test_only_a_retired_run_can_be_gone_back_to(published: Site, target: str) -> None:
    """The live run and one that nobody knows are refused, and the message says which runs there are."""
    with pytest.raises(Refused, match=OLDER):
        published.roll_back(target)

    assert published.served() == NEWER
    assert published.states() == {NEWER: RunState.LIVE, OLDER: RunState.RETIRED}


def test_a_bad_run_is_refused_for_ever_and_says_what_to_change(published: Site) -> None:
    """The same input and settings make the same run; its refusal says so, and after more nights too."""
    published.roll_back()
    with pytest.raises(Refused, match=r"BAD for ever.*mend the input.*--set") as caught:
        published.publish(NEWER)

    assert (caught.value.exit_code, caught.value.state) == (3, RunState.BAD)
    assert published.served() == OLDER
    for run_id in RUNS[2:6]:
        published.publish(run_id)
    with pytest.raises(Refused, match="BAD for ever"):
        published.publish(NEWER)


def test_without_anything_to_go_back_to_rollback_is_refused(site: Site) -> None:
    """Before the first publication, and after it."""
    with pytest.raises(Refused, match="nothing is published yet"):
        site.roll_back()
    site.publish(OLDER)
    with pytest.raises(Refused, match="no retired run"):
        site.roll_back()

    assert site.states() == {OLDER: RunState.LIVE}


@pytest.mark.parametrize("damage", [_sql("DELETE FROM lists WHERE key = 'u1'"), Path.unlink])
def test_a_target_that_is_not_whole_is_refused(published: Site, damage: Callable[[Path], None]) -> None:
    """A retired run that lost a list, or all, is no way back; the live run stays LIVE."""
    damage(lists_path(published.settings.path, OLDER))
    with pytest.raises(Refused, match=f"{OLDER}.*--to"):
        published.roll_back()

    assert published.served() == NEWER
    assert published.states()[NEWER] is RunState.LIVE


def test_a_rollback_that_crashes_anywhere_is_finished_by_the_next_publisher(folder: Path) -> None:
    """Readers have whole lists throughout; a run once marked BAD is left as soon as anybody publishes again."""
    marked = 0
    points = every_point(folder, [OLDER, NEWER], lambda site, store: site.roll_back(store=store))
    for point, site, number, when in points:
        with pytest.raises(Crash):
            site.roll_back(store=Scripted(site.store(), number, when))
        assert site.served() in (OLDER, NEWER), point
        bad = site.states()[NEWER] is RunState.BAD
        marked += bad

        site.clock.move(LEASE_SECONDS + 1)
        with site.publisher() as publisher:
            settle(publisher)
        assert site.served() == (OLDER if bad else NEWER), point
        done, undone = (RunState.BAD, RunState.LIVE), (RunState.LIVE, RunState.RETIRED)
        assert (site.states()[NEWER], site.states()[OLDER]) == (done if bad else undone), point
    assert marked > 3, "no crash between the two steps was tried"


def test_a_half_done_rollback_does_not_stop_the_next_night_where_no_target_is_whole(published: Site) -> None:
    """A BAD run that the pointer still names, and nothing whole to go back to: the next night publishes past both."""
    lease = published.store().acquire("operator", 60)
    published.store().set_state(NEWER, RunState.LIVE, RunState.BAD, lease.fence)
    published.store().release(lease)
    lists_path(published.settings.path, OLDER).unlink()
    published.publish(THIRD)

    assert published.served() == THIRD
    assert published.states()[NEWER] is RunState.BAD


def test_a_half_done_rollback_is_finished_with_the_newest_run_that_is_whole(published: Site) -> None:
    """Who went past a damaged run with --to, and crashed, is not sent back to it."""
    published.publish(THIRD)
    lease = published.store().acquire("operator", 60)
    published.store().set_state(THIRD, RunState.LIVE, RunState.BAD, lease.fence)
    published.store().release(lease)
    lists_path(published.settings.path, NEWER).unlink()
    with published.publisher() as publisher:
        settle(publisher)

    assert published.served() == OLDER


@pytest.mark.parametrize("dies", ["before the flip", "after the flip"])
def test_the_next_rollback_finishes_one_that_died_and_goes_no_further(published: Site, dies: str) -> None:
    """It goes where the first one was going, though that was not the default, and its plan says that it only finishes."""
    published.publish(THIRD)
    published.publish(RUNS[3])
    with pytest.raises(Crash):
        published.roll_back(NEWER, DiesAtTheFlip(published.settings.path, published.clock, dies))
    published.clock.move(LEASE_SECONDS + 1)
    store = published.store()
    chosen = plan(store.runs(), store.pointer(), None, published.built(RUNS[3]))
    release = published.roll_back()

    assert (chosen.begun, chosen.leaves.run_id, chosen.target.run_id) == (True, RUNS[3], NEWER)
    assert (release.run_id, release.previous, published.served()) == (NEWER, RUNS[3], NEWER)
    assert published.states() == {RUNS[3]: RunState.BAD, NEWER: RunState.LIVE, THIRD: RunState.RETIRED}


class DiesAtTheFlip(SqliteStore):
    """A store whose publisher dies there."""

    def __init__(self, folder: Path, clock: Clock, when: str) -> None:
        super().__init__(folder, clock)
        self.when = when

    def flip(self, run_id: str, expected_sequence: int, fence: int) -> Release:
        if self.when == "after the flip":
            super().flip(run_id, expected_sequence, fence)
        raise Crash

    def release(self, lease: Any) -> None:
        raise Crash


def test_a_rollback_that_was_looked_at_before_somebody_published_is_not_done(published: Site) -> None:
    """What the person saw is no more: nobody's night is undone by a prompt that was left open."""
    store, run = published.store(), published.built(NEWER)
    chosen = plan(store.runs(), store.pointer(), None, run)
    published.publish(THIRD)
    with published.publisher() as publisher, pytest.raises(SequenceMoved, match="look again"):
        roll_back(publisher, chosen, run)

    assert published.served() == THIRD
    assert RunState.BAD not in published.states().values()
    assert run.read(ROLLED_BACK) is None


def test_a_target_that_was_pruned_since_it_was_looked_at_leaves_the_live_run_live(published: Site) -> None:
    """Nothing is marked BAD before it is known where to go."""
    store, run = published.store(), published.built(NEWER)
    chosen = plan(store.runs(), store.pointer(), None, run)
    with published.publisher() as publisher:
        publisher.drop(next(record for record in store.runs() if record.run_id == OLDER))
        with pytest.raises(Refused, match=f"{OLDER} was dropped"):
            roll_back(publisher, chosen, run)

    assert published.states() == {NEWER: RunState.LIVE}


def test_a_rollback_drops_nothing(folder: Path) -> None:
    """Neither old runs nor what dead publishers left: in an incident nothing is thrown away."""
    site = Site(folder, keep=5)
    for run_id in RUNS[:4]:
        site.publish(run_id)
    left(site, RUNS[4], RunState.LOADED)
    site.keep = 2
    before = site.files()
    site.roll_back()

    assert site.files() == before
    assert site.states()[RUNS[4]] is RunState.LOADED


def test_a_bad_run_is_no_way_back(published: Site) -> None:
    """Neither by its name nor by default, with its lists still there."""
    published.publish(THIRD)
    published.roll_back()
    with pytest.raises(Refused, match=f"no retired run {THIRD}"):
        published.roll_back(THIRD)
    published.roll_back()
    with pytest.raises(Refused, match="no retired run"):
        published.roll_back()

    assert published.states() == {THIRD: RunState.BAD, NEWER: RunState.BAD, OLDER: RunState.LIVE}


def test_a_run_that_was_rolled_back_elsewhere_is_told_to_its_folder(published: Site) -> None:
    """A rollback from a machine without the folder: the next publication writes it, so that no night takes it for good."""
    folder = published.built(NEWER)
    published.roll_back()
    (folder.folder / ROLLED_BACK).unlink()
    published.publish(THIRD)

    assert folder.read(ROLLED_BACK)


def test_a_rollback_without_the_run_s_folder_leaves_a_folder_that_says_so(published: Site) -> None:
    """The night of that run, on this machine, is refused before it starts."""
    run = published.built(NEWER)
    store = published.store()
    chosen = plan(store.runs(), store.pointer(), None, run)
    shutil.rmtree(run.folder)
    with published.publisher() as publisher:
        roll_back(publisher, chosen, run)

    assert (run.read(ROLLED_BACK) or {})["to"] == OLDER


# Old runs


def test_prune_keeps_the_newest_runs(site: Site) -> None:
    """Of eight nights the last `keep` are there, with their lists; the others are gone from the disk."""
    for run_id in RUNS:
        site.publish(run_id)
        site.clock.move(86_400)

    assert list(site.states()) == RUNS[:-4:-1]
    assert site.files() == {f"lists_{run_id}.db" for run_id in RUNS[-3:]}


def test_prune_honours_the_grace_of_a_run_that_was_just_live(folder: Path) -> None:
    """A run that the pointer named within grace_seconds keeps its lists; the first publication after that drops it."""
    site = Site(folder, keep=2, grace=600)
    for run_id in RUNS[:4]:
        site.publish(run_id)
        site.clock.move(100)
    assert set(site.states()) == set(RUNS[:4])

    site.clock.move(299)  # RUNS[0] was retired 599 s ago, when RUNS[1] came
    site.publish(RUNS[4])
    assert set(site.states()) == set(RUNS[:5])
    site.clock.move(1)
    site.publish(RUNS[4])
    assert set(site.states()) == set(RUNS[1:5])


def test_a_bad_run_has_its_grace_from_when_the_pointer_left_it(folder: Path) -> None:
    """It was marked BAD by a rollback that died, and served for hours more: services lag the flip, not the mark."""
    site = Site(folder, keep=2, grace=600)
    site.publish(OLDER)
    site.publish(NEWER)
    with pytest.raises(Crash):
        site.roll_back(store=DiesAtTheFlip(site.settings.path, site.clock, "before the flip"))
    site.clock.move(7_200)
    site.publish(THIRD)
    assert lists_path(site.settings.path, NEWER).exists()
    site.clock.move(600)
    site.publish(RUNS[3])

    assert not lists_path(site.settings.path, NEWER).exists()


def test_the_lists_of_a_bad_run_are_dropped_once(folder: Path) -> None:
    """It is remembered for ever; that need not cost a DROP TABLE a night."""
    site = Site(folder)
    site.publish(OLDER)
    site.publish(NEWER)
    site.roll_back()
    dropped = []
    for run_id in RUNS[2:4]:
        scripted = Scripted(site.store())
        site.publish(run_id, scripted)
        dropped.append(scripted.calls.count("drop"))

    assert dropped == [1, 0]
    assert site.states()[NEWER] is RunState.BAD


def test_prune_never_drops_the_live_run(published: Site) -> None:
    """After a rollback the live run is the oldest by name; being live, it stays."""
    published.publish(THIRD)
    published.roll_back(OLDER)
    published.clock.move(86_400)
    published.publish(OLDER)
    assert published.served() == OLDER
    published.publish(RUNS[3])

    assert published.served() == RUNS[3]
    assert OLDER in published.states()


def test_a_bad_run_loses_its_lists_and_is_remembered(published: Site) -> None:
    """A BAD run is no way back, so it is not among those kept; its row stays for ever."""
    published.roll_back()
    published.clock.move(86_400)
    published.publish(THIRD)

    assert not lists_path(published.settings.path, NEWER).exists()
    assert published.states()[NEWER] is RunState.BAD
    assert lists_path(published.settings.path, OLDER).exists()


# Two at once


def test_of_two_publishers_one_learns_who_is_publishing(published: Site) -> None:
    """The second is Busy (exit code 4), told by whom and until when, and changes nothing."""
    with published.publisher() as first:
        with pytest.raises(LeaseHeld, match=f"{here()}:{os.getpid()}.*02:31:00") as caught:
            published.publish(THIRD)
        assert (caught.value.exit_code, caught.value.retry) == (4, True)
        assert THIRD not in published.states()
        published.publish_under(first, RUNS[3])

    published.publish(RUNS[4])
    assert published.served() == RUNS[4]


def test_of_many_publishers_at_once_all_others_are_busy_and_lists_are_whole(published: Site) -> None:
    """Four threads publish four runs: whoever gets through, the pointer names one whole run, and it alone is LIVE."""
    outcomes: list[str] = []
    gate = threading.Barrier(4)

    def attempt(run_id: str) -> None:
        gate.wait()
        try:
            published.publish(run_id)
            outcomes.append("live")
        except (Busy, Refused) as error:
            outcomes.append(type(error).__name__)

    threads = [threading.Thread(target=attempt, args=(run_id,)) for run_id in RUNS[2:6]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(outcomes) == 4
    assert set(outcomes) <= {"live", "LeaseHeld", "Refused"}
    assert "live" in outcomes
    assert [run_id for run_id, state in published.states().items() if state is RunState.LIVE] == [published.served()]


def _process(code: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, text=True)


def test_the_lease_of_a_publisher_that_died_on_this_host_is_taken_over_at_once(published: Site) -> None:
    """A night that was killed does not make the next try wait for its lease to end."""
    dead = _process("")
    dead.communicate()
    published.store().acquire(f"{here()}:{dead.pid}", 3_600)
    published.publish(THIRD)

    assert published.served() == THIRD


@pytest.mark.parametrize("where", ["here", "elsewhere", "unknown"])
def test_the_lease_of_a_publisher_that_may_be_alive_is_respected(published: Site, where: str) -> None:
    """One that lives on this host, one on another host whose process ids say nothing here, and one of another make."""
    living = _process("input()")
    owner = {"here": f"{here()}:{living.pid}", "elsewhere": "night-2:1", "unknown": "somebody"}[where]
    published.store().acquire(owner, 3_600)
    try:
        with pytest.raises(LeaseHeld, match=owner):
            published.publish(THIRD)
    finally:
        living.communicate("\n")

    assert published.served() == NEWER
    published.clock.move(3_600)
    published.publish(THIRD)
    assert published.served() == THIRD


def test_a_process_id_means_nothing_in_another_container(published: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """One with this host's name and another namespace of processes: its publisher lives, though its pid is nobody's here."""
    dead = _process("")
    dead.communicate()
    with monkeypatch.context() as inside:
        inside.setattr(Path, "readlink", lambda path: Path("pid:[4026539999]"))
        here.cache_clear()
        owner = f"{here()}:{dead.pid}"
    here.cache_clear()
    published.store().acquire(owner, 3_600)

    assert owner.partition(".")[0] == here().partition(".")[0]
    with pytest.raises(LeaseHeld, match=re.escape(owner)):
        published.publish(THIRD)


TERMINATED = """
import sys, time
from pathlib import Path
from jobs.commands.options import terminable
from tests import test_publish as t

class Slow(t.SqliteStore):
    def load(self, *args, **kwargs):
        print("loading", flush=True)
        time.sleep(60)

site = t.Site(Path(sys.argv[1]))
with terminable():
    site.publish(t.NEWER, Slow(site.settings.path, site.clock))
"""


def test_sigterm_gives_the_lease_back_and_leaves_a_run_that_is_gone_on_with(site: Site) -> None:
    """A scheduler that ends a night does not make the next try wait, on whatever host."""
    site.publish(OLDER)
    night = subprocess.Popen(
        [sys.executable, "-c", TERMINATED, str(site.folder)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert night.stdout
    assert night.stdout.readline() == "loading\n"
    night.terminate()
    night.communicate()

    assert night.returncode == 143
    assert site.store().holder() is None
    assert site.states() == {OLDER: RunState.LIVE, NEWER: RunState.LOADING}
    site.publish(NEWER)
    assert site.served() == NEWER


def test_a_lease_can_be_taken_over_on_purpose_and_its_holder_writes_no_more(published: Site) -> None:
    """A rollback need not wait for a load of hours; the publisher at work learns it by StaleFence."""
    with published.publisher() as first:
        with publishing(first.store, first.reader, published.settings, published.clock, take_over=True) as second:
            store = published.store()
            chosen = plan(store.runs(), store.pointer(), None, published.built(NEWER))
            roll_back(second, chosen, published.built(NEWER))
        with pytest.raises(StaleFence):
            published.publish_under(first, THIRD)

    assert published.served() == OLDER


def test_a_lease_is_waited_for_until_its_holder_shows_that_it_lives(published: Site) -> None:
    """A dead one's ends; one that is renewed is reported at once, not waited for for hours."""
    store, told = published.store(), []
    lease = store.acquire("night-2:1", LEASE_SECONDS)
    wait_for_lease(store, published.clock, told.append, published.clock.move)
    assert published.clock.now == START + timedelta(seconds=LEASE_SECONDS)
    assert told == ["waiting for the lease of night-2:1, until 02:31:00 UTC unless it is renewed"]

    def renewing(seconds: float) -> None:
        published.clock.move(seconds)
        store.renew(lease, LEASE_SECONDS)

    store.renew(lease, LEASE_SECONDS)
    with pytest.raises(LeaseHeld, match="night-2:1"):
        wait_for_lease(store, published.clock, told.append, renewing)
    assert published.clock.now < START + timedelta(seconds=LEASE_SECONDS + 5)

    store.release(lease)
    wait_for_lease(store, published.clock, told.append, published.clock.move)
    assert len(told) == 2


def test_what_is_no_run_of_ours_is_refused_by_the_store(site: Site) -> None:
    """A folder whose name can't name a table never reaches the DDL."""
    with pytest.raises((ValueError, NightlistError)):
        site.publish("20260301_x; DROP TABLE runs")
    assert site.states() == {}


def test_a_state_that_somebody_else_changed_stops_the_publication(site: Site) -> None:
    """Compare-and-set: a run that is no longer where this publisher left it is not moved on."""
    site.publish(OLDER)

    class Meddled(SqliteStore):
        def load(self, run_id: str, lists: Any, fence: int, *arguments: Any) -> int:
            rows = super().load(run_id, lists, fence, *arguments)
            self.set_state(run_id, RunState.LOADING, RunState.FAILED, fence)
            return rows

    with pytest.raises(IllegalTransition, match="FAILED"):
        site.publish(NEWER, Meddled(site.settings.path, site.clock))

    assert site.served() == OLDER
