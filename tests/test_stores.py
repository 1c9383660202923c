"""The conformance suite of stores, over every pair of writer and reader; then what is the embedded one's alone."""

import math
import os
import resource
import shutil
import sqlite3
import struct
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from datetime import datetime, timedelta
from importlib import import_module
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from pkgutil import iter_modules
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import jobs.stores
import lookup_api.readers
from jobs.stores import Store
from lookup_api.readers import Reader
from schemas.errors import (
    Busy,
    IllegalTransition,
    NightlistError,
    RunUnreadable,
    SequenceMoved,
    StaleFence,
    StoreUnavailable,
)
from schemas.lists import ALL, KINDS, ServedList, popular_key
from schemas.runs import TRANSITIONS, LeaseHeld, Release, RunState
from schemas.settings import StoreSettings
from tests.cassandra import Node
from tests.clock import START, Clock
from tests.memory import OnePart

ROOT = Path(__file__).parent.parent
RUN, NEXT, THIRD = "20260301_0badcafe", "20260302_1badcafe", "20260303_2badcafe"
AWKWARD = [
    "a/b", "//", "..", "%2F", "it's", 'say "hi"', "`;--", "\\", "a b", " ", "+", "&n=1", "#", "?", "12346", "0", "null",
    "é", "e\u0301", "ß", "日本語", "👩‍👩‍👧‍👦", "\u202e", "\ufeff", "\uffff", "😀" * 128, "x" * 512,
]  # fmt: skip


def names_in(package: Any) -> set[str]:
    return {module.name for module in iter_modules(package.__path__) if not module.name.startswith("_")}


ROLES = ("publisher", "reader")
PAIRS = sorted(names_in(jobs.stores) & names_in(lookup_api.readers))


class Pair:
    """A writer and a reader of one store, with one clock; the reader's rights may be fewer."""

    def __init__(self, settings: StoreSettings, readers: StoreSettings | None = None) -> None:
        self.settings, self.readers = settings, readers or settings
        self.clock = Clock()
        self._opened: list[Store | Reader] = []
        self.store = self.another_store()
        self.reader = self.another_reader()

    def another_store(self) -> Store:
        store: Store = import_module(f"jobs.stores.{self.settings.backend}").open_store(self.settings, self.clock)
        self._opened.append(store)
        return store

    def another_reader(self) -> Reader:
        reader = lookup_api.readers.open_reader(self.readers)
        self._opened.append(reader)
        return reader

    def close(self) -> None:
        for one in self._opened:
            one.close()

    def load(self, run_id: str, lists: list[ServedList], fence: int) -> None:
        """Bring a new run to LOADED."""
        self.store.set_state(run_id, None, RunState.LOADING, fence)
        self.store.load(run_id, OnePart(lists), fence, ignore)
        self.store.set_state(run_id, RunState.LOADING, RunState.LOADED, fence, rows=len(lists))

    def publish(self, run_id: str, lists: list[ServedList]) -> Release:
        """Bring a new run to LIVE, and what was live to RETIRED."""
        before = self.store.pointer()
        lease = self.store.acquire("publisher", 60)
        self.load(run_id, lists, lease.fence)
        self.store.set_state(run_id, RunState.LOADED, RunState.VERIFIED, lease.fence)
        self.store.set_state(run_id, RunState.VERIFIED, RunState.LIVE, lease.fence)
        release = self.store.flip(run_id, before.sequence if before else 0, lease.fence)
        if before:
            self.store.set_state(before.run_id, RunState.LIVE, RunState.RETIRED, lease.fence)
        self.store.release(lease)
        return release

    def state(self, run_id: str) -> RunState | None:
        return next((run.state for run in self.store.runs() if run.run_id == run_id), None)


def ignore(rows: int) -> None:
    """A progress that nobody looks at."""


def float32(value: float) -> float:
    return float(struct.unpack("<f", struct.pack("<f", value))[0])


def one_list(key: str, *items: str, kind: Any = "user", source: str = "als") -> ServedList:
    scores = tuple(float32(1 / (rank + 3)) for rank in range(len(items)))
    return ServedList(kind, key, items, scores, (source,) * len(items), START)


def some_lists(count: int = 3) -> list[ServedList]:
    return [one_list(f"u{number}", "i1", "i2") for number in range(count)]


def by_key(lists: Any) -> dict[tuple[str, str], ServedList]:
    return {(served.kind, served.key): served for served in lists}


@contextmanager
def in_folder(folder: Path) -> Iterator[Pair]:
    """An embedded store."""
    found = Pair(StoreSettings(path=folder))
    found.store.create()
    yield found
    found.close()


@contextmanager
def in_keyspace(node: Node) -> Iterator[Pair]:
    """A store in a keyspace of its own, written by the publisher and read by the reader."""
    keyspace = f"k{uuid4().hex[:12]}"
    found = Pair(*(StoreSettings(backend="cassandra", cassandra=node.settings(keyspace, who)) for who in ROLES))
    found.store.create()
    yield found
    found.close()


@contextmanager
def opened(name: str, request: pytest.FixtureRequest) -> Iterator[Pair]:
    """A new, empty store of the pair of that name."""
    if name == "cassandra":
        with in_keyspace(request.getfixturevalue("cassandra")) as found:
            yield found
    else:
        with tempfile.TemporaryDirectory(prefix="the store") as folder, in_folder(Path(folder) / "store") as found:
            yield found


@pytest.fixture(params=PAIRS)
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    with opened(request.param, request) as found:
        yield found


@pytest.fixture
def fence(pair: Pair) -> int:
    return pair.store.acquire("tests", 3600).fence


def test_every_writer_has_its_reader_and_every_reader_its_writer() -> None:
    """A store is a pair of files of one name."""
    assert names_in(jobs.stores) == names_in(lookup_api.readers)
    assert "sqlite" in PAIRS


# Lists


@pytest.mark.parametrize("kind", KINDS)
def test_a_list_comes_back_as_it_was_loaded(pair: Pair, fence: int, kind: Any) -> None:
    """Items, order, scores to the last bit, sources and time survive the store, whatever characters an id has."""
    lists = [one_list(key, *AWKWARD, kind=kind, source="als+popular") for key in AWKWARD]
    pair.load(RUN, lists, fence)

    assert [pair.reader.get(RUN, kind, served.key) for served in lists] == lists


@pytest.mark.parametrize("score", [0.0, -0.0, 2**-149, -1.5, 3.4028234663852886e38, float32(0.1), float32(math.pi)])
def test_a_score_is_exact(pair: Pair, fence: int, score: float) -> None:
    """A float32 comes back as that float32, the smallest and the largest too, and with its sign."""
    pair.load(RUN, [ServedList("user", "u", ("i",), (score,), ("als",), START)], fence)
    found = pair.reader.get(RUN, "user", "u")

    assert found is not None
    assert math.copysign(1, found.scores[0]) == math.copysign(1, score)
    assert found.scores == (score,)


def test_an_empty_list_is_a_list(pair: Pair, fence: int) -> None:
    """A user who has seen everything is told apart from a user without a list."""
    pair.load(RUN, [one_list("has seen everything")], fence)

    assert pair.reader.get(RUN, "user", "has seen everything") == one_list("has seen everything")
    assert pair.reader.get(RUN, "user", "nobody") is None


def test_kinds_do_not_share_keys(pair: Pair, fence: int) -> None:
    """User `all`, item `all` and everybody's popular list are three lists."""
    lists = [one_list(ALL, f"from {kind}", kind=kind) for kind in KINDS]
    pair.load(RUN, lists, fence)

    assert [pair.reader.get(RUN, kind, ALL) for kind in KINDS] == lists
    assert pair.reader.get(RUN, "popular", popular_key("country", "GB")) is None


def test_keys_are_compared_byte_by_byte(pair: Pair, fence: int) -> None:
    """Case, accents and trailing spaces make another user."""
    pair.load(RUN, [one_list(key) for key in ("Ann", "é")], fence)

    assert [pair.reader.get(RUN, "user", key) for key in ("ann", "Ann ", "e\u0301", "É")] == [None] * 4


def test_scan_gives_what_was_loaded(pair: Pair, fence: int) -> None:
    """Every list once, no other one: more of them than any batch holds."""
    lists = [one_list(f"u{number * 7919 % 12007}", f"i{number}") for number in range(12007)]
    lists += [one_list(key, *AWKWARD, kind="similar") for key in AWKWARD]
    told: list[int] = []
    pair.store.set_state(RUN, None, RunState.LOADING, fence)
    written = pair.store.load(RUN, OnePart(iter(lists)), fence, told.append)
    found = list(pair.reader.scan(RUN))

    assert written == len(lists) == len(found) == told[-1]
    assert told == sorted(set(told))
    assert by_key(found) == by_key(lists)


def test_times_come_back_in_utc(pair: Pair, fence: int) -> None:
    """A time of another zone is the same moment in UTC; a time of no zone is refused."""
    elsewhere = START.astimezone(datetime.strptime("+0530", "%z").tzinfo)
    pair.load(RUN, [ServedList("user", "u", (), (), (), elsewhere)], fence)
    found = pair.reader.get(RUN, "user", "u")

    assert found is not None
    assert (found.scored_at, found.scored_at.utcoffset()) == (START, timedelta(0))


@pytest.mark.parametrize(
    "wrong",
    [
        ServedList("user", "u", ("i",), (1.0, 2.0), ("als",), START),
        ServedList("user", "u", ("i",), (1.0,), (), START),
        ServedList("user", "u", ("i",), (math.nan,), ("als",), START),
        ServedList("user", "u", ("i", "j"), (math.inf, -math.inf), ("als", "als"), START),
        ServedList("user", "u", (), (), (), START.replace(tzinfo=None)),
    ],
    ids=["scores", "sources", "nan", "infinite", "no time zone"],
)
def test_what_is_no_list_is_refused(pair: Pair, fence: int, wrong: ServedList) -> None:
    """A load with one broken list ends with an error, and leaves nothing to read."""
    pair.store.set_state(RUN, None, RunState.LOADING, fence)
    with pytest.raises(ValueError, match=r"'u'|time zone"):
        pair.store.load(RUN, OnePart([one_list("fine", "i"), wrong]), fence, ignore)

    assert pair.store.size(RUN) == 0
    with pytest.raises(RunUnreadable):
        pair.reader.probe(RUN)


@pytest.mark.parametrize("apart", [0, 10_000])
def test_a_key_given_twice_is_refused_by_name(pair: Pair, fence: int, apart: int) -> None:
    """Two lists of one user are an error that names the user, near each other and batches apart."""
    lists = [
        one_list("once"),
        one_list("twice", "i1"),
        *some_lists(apart),
        one_list("once more"),
        one_list("twice", "i2"),
    ]
    pair.store.set_state(RUN, None, RunState.LOADING, fence)
    with pytest.raises(ValueError, match="user 'twice'"):
        pair.store.load(RUN, OnePart(lists), fence, ignore)

    assert pair.store.size(RUN) == 0
    with pytest.raises(RunUnreadable):
        pair.reader.probe(RUN)


def test_a_broken_load_leaves_nothing_behind(pair: Pair, fence: int) -> None:
    """What a first load wrote before it broke is in no second one, and the error that broke it is not disguised."""

    def breaks() -> Iterator[ServedList]:
        yield from some_lists(6000)
        raise ConnectionError("lost the lists")

    pair.store.set_state(RUN, None, RunState.LOADING, fence)
    with pytest.raises(ConnectionError, match="lost the lists"):
        pair.store.load(RUN, OnePart(breaks()), fence, ignore)
    with pytest.raises(RunUnreadable):
        pair.reader.get(RUN, "user", "u0")
    pair.store.set_state(RUN, RunState.LOADING, RunState.FAILED, fence)
    pair.store.set_state(RUN, RunState.FAILED, RunState.LOADING, fence)
    pair.store.load(RUN, OnePart([one_list("only", "i")]), fence, ignore)

    assert list(pair.reader.scan(RUN)) == [one_list("only", "i")]


def test_a_second_load_is_seen_by_a_reader_that_had_the_first_one_open(pair: Pair, fence: int) -> None:
    """Verification after a retry reads the retry, not the file that was thrown away."""
    pair.store.set_state(RUN, None, RunState.LOADING, fence)
    pair.store.load(RUN, OnePart([one_list("u", "first")]), fence, ignore)
    pair.reader.probe(RUN)
    assert pair.reader.get(RUN, "user", "u") == one_list("u", "first")
    pair.store.load(RUN, OnePart([one_list("u", "second")]), fence, ignore)

    assert pair.reader.get(RUN, "user", "u") == one_list("u", "second")


def test_only_a_loading_run_can_be_loaded(pair: Pair, fence: int) -> None:
    """A run that is unknown, or whole already, is not overwritten."""
    with pytest.raises(IllegalTransition, match="unknown"):
        pair.store.load(RUN, OnePart(some_lists()), fence, ignore)
    pair.load(RUN, some_lists(), fence)
    with pytest.raises(IllegalTransition, match="LOADED"):
        pair.store.load(RUN, OnePart([]), fence, ignore)

    assert by_key(pair.reader.scan(RUN)) == by_key(some_lists())


@pytest.mark.parametrize("name", ["../x", "a" * 33, "UPPER", "x;y", ""])
def test_a_bad_name_names_nothing(pair: Pair, fence: int, name: str) -> None:
    """A run_id that could not name a table is refused before anything is made."""
    with pytest.raises(ValueError, match="is no run id"):
        pair.store.set_state(name, None, RunState.LOADING, fence)
    with pytest.raises(ValueError, match="is no run id"):
        pair.reader.get(name, "user", "u")
    assert pair.store.runs() == []


ids = st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=40)
scored = st.lists(st.tuples(ids, st.floats(width=32, allow_nan=False, allow_infinity=False), ids), max_size=5)
lists_of_a_run = st.dictionaries(st.tuples(st.sampled_from(KINDS), ids), scored, min_size=1, max_size=8)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=lists_of_a_run)
def test_any_run_makes_the_round_trip(pair: Pair, fence: int, content: dict[Any, Any]) -> None:
    """Whatever lists a run holds, `get` and `scan` give them back, and nothing else."""
    lists = [
        ServedList(kind, key, *(tuple(column) for column in (zip(*rows, strict=True) if rows else ((), (), ()))), START)
        for (kind, key), rows in content.items()
    ]
    run_id = f"20260301_{len(pair.store.runs())}"
    pair.load(run_id, lists, fence)

    assert by_key(pair.reader.scan(run_id)) == by_key(lists)
    assert [pair.reader.get(run_id, served.kind, served.key) for served in lists] == lists


# States


PATHS: dict[RunState, list[RunState]] = {
    RunState.LOADING: [],
    RunState.LOADED: [RunState.LOADED],
    RunState.VERIFIED: [RunState.LOADED, RunState.VERIFIED],
    RunState.LIVE: [RunState.LOADED, RunState.VERIFIED, RunState.LIVE],
    RunState.RETIRED: [RunState.LOADED, RunState.VERIFIED, RunState.LIVE, RunState.RETIRED],
    RunState.BAD: [RunState.LOADED, RunState.VERIFIED, RunState.LIVE, RunState.BAD],
    RunState.FAILED: [RunState.FAILED],
}
"""How a run of the store comes into each state, from LOADING on."""


def bring_to(pair: Pair, run_id: str, state: RunState, fence: int) -> None:
    steps = [RunState.LOADING, *PATHS[state]]
    pair.store.set_state(run_id, None, steps[0], fence)
    for old, new in pairwise(steps):
        pair.store.set_state(run_id, old, new, fence)


@pytest.mark.parametrize("old", PATHS)
def test_the_table_of_transitions_is_kept(pair: Pair, fence: int, old: RunState) -> None:
    """From every state, what the table allows happens, and what it does not changes nothing."""
    for number, new in enumerate(RunState):
        run_id = f"20260301_{number}"
        bring_to(pair, run_id, old, fence)
        if new in TRANSITIONS[old]:
            pair.store.set_state(run_id, old, new, fence)
            assert pair.state(run_id) == new
        else:
            with pytest.raises(IllegalTransition, match=run_id):
                pair.store.set_state(run_id, old, new, fence)
            assert pair.state(run_id) == old


@pytest.mark.parametrize("real", PATHS)
def test_a_change_from_a_state_that_the_run_is_not_in_is_refused(pair: Pair, fence: int, real: RunState) -> None:
    """The state given is compared before it is set: a second publisher's change does not slip in."""
    bring_to(pair, RUN, real, fence)
    for claimed in RunState:
        for new in TRANSITIONS[claimed] if claimed != real else ():
            with pytest.raises(IllegalTransition, match=f"{real}, not {claimed}"):
                pair.store.set_state(RUN, claimed, new, fence)

    assert pair.state(RUN) == real


@pytest.mark.parametrize("state", RunState)
def test_a_run_enters_the_store_loading(pair: Pair, fence: int, state: RunState) -> None:
    """A new run can only be LOADING, and only once."""
    if state is RunState.LOADING:
        pair.store.set_state(RUN, None, state, fence)
    with pytest.raises(IllegalTransition):
        pair.store.set_state(RUN, None, state, fence)


def test_a_run_that_nobody_registered_has_no_state_to_leave(pair: Pair, fence: int) -> None:
    """A change of an unknown run says that it is unknown."""
    with pytest.raises(IllegalTransition, match="unknown"):
        pair.store.set_state(RUN, RunState.LOADING, RunState.LOADED, fence)


def test_runs_are_told_newest_first_with_rows_and_times(pair: Pair, fence: int) -> None:
    """Rows are kept once given, `created_at` stays, `changed_at` moves; writer and reader say the same."""
    pair.store.set_state(RUN, None, RunState.LOADING, fence)
    pair.clock.move(60)
    pair.store.set_state(RUN, RunState.LOADING, RunState.LOADED, fence, rows=3)
    pair.clock.move(60)
    pair.store.set_state(RUN, RunState.LOADED, RunState.VERIFIED, fence)
    pair.store.set_state(NEXT, None, RunState.LOADING, fence)
    newer, older = pair.store.runs()

    assert (newer.run_id, newer.state, newer.rows) == (NEXT, RunState.LOADING, None)
    assert (older.run_id, older.state, older.rows) == (RUN, RunState.VERIFIED, 3)
    assert (older.created_at, older.changed_at) == (START, START + timedelta(minutes=2))
    assert pair.reader.runs() == pair.store.runs()


# The lease


def test_a_held_lease_is_refused_by_name(pair: Pair) -> None:
    """Who comes second learns who holds it and until when, the same owner included."""
    lease = pair.store.acquire("host-a:1", 60)
    for owner in ("host-b:2", "host-a:1"):
        with pytest.raises(LeaseHeld, match=r"host-a:1.*02:31:00") as caught:
            pair.another_store().acquire(owner, 60)
        assert caught.value.lease == lease
    assert lease.expires_at == START + timedelta(seconds=60)


def test_a_lease_ends_by_expiry_and_by_release(pair: Pair) -> None:
    """Fences only rise, whether the one before ended in time or was given back."""
    fences = [pair.store.acquire("a", 60).fence]
    pair.clock.move(60)
    second = pair.store.acquire("b", 60)
    pair.store.release(second)
    third = pair.store.acquire("c", 60)
    fences += [second.fence, third.fence]

    assert fences == sorted(set(fences))


def test_a_released_lease_is_free_for_a_host_whose_clock_is_late(pair: Pair) -> None:
    """Released is released, whatever the time is elsewhere."""
    pair.store.release(pair.store.acquire("a", 60))
    pair.clock.move(-30)

    assert pair.store.acquire("b", 60).owner == "b"


def test_renewing_keeps_the_lease_and_its_fence(pair: Pair) -> None:
    """A renewed lease outlives its first expiry; one that expired unnoticed can still be renewed."""
    lease = pair.store.acquire("a", 60)
    pair.clock.move(50)
    renewed = pair.store.renew(lease, 60)
    pair.clock.move(50)
    with pytest.raises(Busy):
        pair.store.acquire("b", 60)
    pair.clock.move(50)
    again = pair.store.renew(renewed, 60)

    assert lease.fence == renewed.fence == again.fence
    assert again.expires_at == pair.clock() + timedelta(seconds=60)


def test_a_lease_that_was_released_or_superseded_can_not_be_renewed(pair: Pair) -> None:
    """A publisher that slept too long is told, and can't end the lease of whoever came after it."""
    first = pair.store.acquire("a", 60)
    pair.clock.move(61)
    second = pair.store.acquire("b", 60)
    with pytest.raises(StaleFence):
        pair.store.renew(first, 60)
    pair.store.release(first)
    with pytest.raises(LeaseHeld, match="b is publishing"):
        pair.store.acquire("c", 60)
    pair.store.release(second)
    with pytest.raises(StaleFence):
        pair.store.renew(second, 60)


FENCED: dict[str, Callable[[Store, int], object]] = {
    "set_state": lambda store, fence: store.set_state(RUN, RunState.LOADING, RunState.FAILED, fence),
    "register": lambda store, fence: store.set_state(THIRD, None, RunState.LOADING, fence),
    "load": lambda store, fence: store.load(RUN, OnePart(some_lists()), fence, ignore),
    "flip": lambda store, fence: store.flip(NEXT, 0, fence),
    "drop": lambda store, fence: store.drop(RUN, fence),
}


@pytest.mark.parametrize("call", FENCED)
@pytest.mark.parametrize("ended", ["expired", "released"])
def test_an_older_fence_writes_nothing(pair: Pair, call: str, ended: str) -> None:
    """Once a newer lease was granted, held or not, every call of an older one is refused without effect."""
    old = pair.store.acquire("old", 60)
    pair.store.set_state(RUN, None, RunState.LOADING, old.fence)
    bring_to(pair, NEXT, RunState.VERIFIED, old.fence)
    pair.clock.move(61)
    new = pair.store.acquire("new", 60)
    if ended == "released":
        pair.store.release(new)
    before = pair.store.runs()
    with pytest.raises(StaleFence):
        FENCED[call](pair.store, old.fence)

    assert (pair.store.runs(), pair.store.pointer(), pair.store.size(RUN)) == (before, None, 0)
    with pytest.raises(RunUnreadable):
        pair.reader.probe(RUN)


def test_a_load_that_loses_its_lease_under_way_leaves_nothing(pair: Pair) -> None:
    """A publisher taken for dead that finishes its load all the same does not replace what its successor loaded."""
    old = pair.store.acquire("old", 60)
    pair.store.set_state(RUN, None, RunState.LOADING, old.fence)

    def overtaken() -> Iterator[ServedList]:
        yield one_list("u", "from the old one")
        pair.clock.move(61)
        new = pair.another_store().acquire("new", 60)
        pair.another_store().load(RUN, OnePart([one_list("u", "from the new one")]), new.fence, ignore)

    with pytest.raises(StaleFence):
        pair.store.load(RUN, OnePart(overtaken()), old.fence, ignore)

    assert list(pair.reader.scan(RUN)) == [one_list("u", "from the new one")]


# The pointer


def test_before_the_first_publication_there_is_no_release(pair: Pair) -> None:
    """A prepared store without a run answers None, to the writer and to the reader."""
    assert (pair.store.pointer(), pair.reader.release()) == (None, None)


def test_the_pointer_moves_up_and_remembers_what_was_before(pair: Pair) -> None:
    """The sequence rises with every flip, on the way back too; the reader sees each at once."""
    first = pair.publish(RUN, some_lists())
    pair.clock.move(86400)
    second = pair.publish(NEXT, some_lists())
    fence = pair.store.acquire("rollback", 60).fence
    back = pair.store.flip(RUN, second.sequence, fence)

    assert first == Release(RUN, None, 1, START)
    assert second == Release(NEXT, RUN, 2, START + timedelta(days=1))
    assert back == Release(RUN, NEXT, 3, START + timedelta(days=1))
    assert back == pair.store.pointer() == pair.reader.release()


@pytest.mark.parametrize("expected", [0, 2, 99])
def test_a_flip_that_expects_another_sequence_changes_nothing(pair: Pair, expected: int) -> None:
    """Who read the pointer before somebody else published is told to look again."""
    live = pair.publish(RUN, some_lists())
    fence = pair.store.acquire("late", 60).fence
    with pytest.raises(SequenceMoved, match="sequence 1"):
        pair.store.flip(RUN, expected, fence)

    assert pair.store.pointer() == live


@pytest.mark.parametrize("state", [None, *PATHS])
def test_only_a_run_that_was_read_back_can_be_pointed_at(pair: Pair, fence: int, state: RunState | None) -> None:
    """Written is not served: a run that is unknown, half loaded, unverified, failed or bad is refused."""
    if state is not None:
        bring_to(pair, RUN, state, fence)
    if state in (RunState.VERIFIED, RunState.LIVE, RunState.RETIRED):
        assert pair.store.flip(RUN, 0, fence) == pair.reader.release()
        return
    with pytest.raises(IllegalTransition, match=RUN):
        pair.store.flip(RUN, 0, fence)

    assert pair.reader.release() is None


# Races


def outcomes(count: int, attempt: Callable[[int], object]) -> list[object]:
    """What each of `count` threads that start together got: its result, or its NightlistError."""
    gate = threading.Barrier(count)

    def run(number: int) -> object:
        gate.wait()
        try:
            return attempt(number)
        except NightlistError as error:
            return error

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))


def losers(found: list[object]) -> list[object]:
    return [type(outcome) for outcome in found if isinstance(outcome, Exception)]


def test_of_flips_at_once_one_wins(pair: Pair, fence: int) -> None:
    """Six publishers that expect one sequence move the pointer once."""
    runs = [f"20260301_{number}" for number in range(6)]
    for run_id in runs:
        bring_to(pair, run_id, RunState.VERIFIED, fence)
    found = outcomes(6, lambda number: pair.another_store().flip(runs[number], 0, fence))

    assert losers(found) == [SequenceMoved] * 5
    assert [outcome for outcome in found if isinstance(outcome, Release)] == [pair.store.pointer()]


def test_of_changes_of_state_at_once_one_wins(pair: Pair, fence: int) -> None:
    """One store shared by six threads compares and sets as six stores do."""
    bring_to(pair, RUN, RunState.LOADED, fence)
    found = outcomes(6, lambda _: pair.store.set_state(RUN, RunState.LOADED, RunState.VERIFIED, fence))

    assert losers(found) == [IllegalTransition] * 5


def grab(settings: StoreSettings, owner: str) -> int | None:
    """In a process of its own: the fence of the lease, or None where somebody else has it."""
    store = jobs.stores.open_store(settings)
    try:
        return int(store.acquire(owner, 3600).fence)
    except Busy:
        return None
    finally:
        store.close()


def test_of_processes_that_want_the_lease_one_gets_it(pair: Pair) -> None:
    """The lease holds between processes, not only between threads."""
    with ProcessPoolExecutor(3, mp_context=get_context("spawn")) as pool:
        waiting = [pool.submit(grab, pair.settings, f"process-{number}") for number in range(6)]
        fences = [future.result() for future in waiting]

    assert sorted(fences, key=str) == [1, None, None, None, None, None]


# Old runs


def test_a_dropped_run_is_gone(pair: Pair) -> None:
    """Its space, its row and its lists go, for a reader that had it open too; the live run stays."""
    pair.publish(RUN, some_lists())
    pair.publish(NEXT, some_lists())
    assert pair.reader.get(RUN, "user", "u0") is not None
    fence = pair.store.acquire("prune", 60).fence
    pair.store.set_state(RUN, RunState.RETIRED, RunState.FAILED, fence)
    pair.store.drop(RUN, fence)

    assert (pair.state(RUN), pair.store.size(RUN)) == (None, 0)
    for read in (
        lambda: pair.reader.probe(RUN),
        lambda: list(pair.reader.scan(RUN)),
        lambda: pair.reader.get(RUN, "user", "u0"),
    ):
        with pytest.raises(RunUnreadable, match=RUN):
            read()
    assert pair.reader.get(NEXT, "user", "u0") == one_list("u0", "i1", "i2")


def test_dropping_twice_and_dropping_what_never_was_has_no_effect(pair: Pair, fence: int) -> None:
    """A prune that was interrupted is simply run again."""
    pair.load(RUN, some_lists(), fence)
    pair.store.set_state(RUN, RunState.LOADED, RunState.FAILED, fence)
    for _ in range(2):
        pair.store.drop(RUN, fence)
    pair.store.drop(THIRD, fence)

    assert pair.store.runs() == []


@pytest.mark.parametrize("state", [state for state in PATHS if state not in (RunState.FAILED, RunState.BAD)])
def test_only_a_run_that_can_never_be_served_loses_its_lists(pair: Pair, fence: int, state: RunState) -> None:
    """A rollback may go to a retired run, and a retry goes on with one on its way: both become FAILED before they go."""
    bring_to(pair, RUN, state, fence)
    with pytest.raises(IllegalTransition, match=f"{RUN} is {state}"):
        pair.store.drop(RUN, fence)

    assert pair.state(RUN) is state


def test_the_run_that_the_pointer_left_knows_when(pair: Pair) -> None:
    """However long before it was marked BAD, and whoever marks it: it was served until the flip."""
    pair.publish(RUN, some_lists())
    live = pair.publish(NEXT, some_lists())
    fence = pair.store.acquire("rollback", 3600).fence
    pair.store.set_state(NEXT, RunState.LIVE, RunState.BAD, fence)
    pair.clock.move(600)
    pair.store.flip(RUN, live.sequence, fence)
    changed = {run.run_id: run.changed_at for run in pair.store.runs()}

    assert changed == {NEXT: START + timedelta(seconds=600), RUN: START}


def test_the_holder_of_the_lease_is_known_until_it_is_given_back(pair: Pair) -> None:
    """Also when it is over, and after a renewal: whoever asks sees what a publisher would."""
    assert pair.store.holder() is None
    lease = pair.store.acquire("host:1", 60)
    assert pair.store.holder() == lease
    pair.clock.move(61)
    assert pair.another_store().holder() == lease
    pair.store.release(pair.store.renew(lease, 60))

    assert pair.store.holder() is None


def test_the_live_run_is_never_dropped(pair: Pair) -> None:
    """Whatever its state says: what the pointer names stays readable."""
    pair.publish(RUN, some_lists())
    fence = pair.store.acquire("prune", 60).fence
    pair.store.set_state(RUN, RunState.LIVE, RunState.BAD, fence)
    with pytest.raises(IllegalTransition, match="is live"):
        pair.store.drop(RUN, fence)

    assert pair.reader.get(RUN, "user", "u0") is not None


def test_a_bad_run_is_remembered_after_its_lists_are_gone(pair: Pair, fence: int) -> None:
    """The same run can't be published again, even when it was pruned."""
    pair.load(RUN, some_lists(), fence)
    for old, new in pairwise(PATHS[RunState.BAD]):
        pair.store.set_state(RUN, old, new, fence)
    pair.store.drop(RUN, fence)

    assert (pair.state(RUN), pair.store.size(RUN)) == (RunState.BAD, 0)
    with pytest.raises(IllegalTransition, match="BAD"):
        pair.store.set_state(RUN, None, RunState.LOADING, fence)


def test_a_run_without_a_list_is_not_served(pair: Pair, fence: int) -> None:
    """An empty run loads, and its probe fails: nobody would want it."""
    pair.load(RUN, [], fence)
    with pytest.raises(RunUnreadable):
        pair.reader.probe(RUN)


def test_preparing_twice_keeps_everything(pair: Pair) -> None:
    """Every publish may prepare the store."""
    live = pair.publish(RUN, some_lists())
    pair.store.prepare()

    assert (pair.store.pointer(), pair.state(RUN)) == (live, RunState.LIVE)


def test_many_lists_come_at_once(pair: Pair) -> None:
    """Each as `get` gives it, of any kind, whatever the key; those that the run has not are left out."""
    lists = [one_list(key, key, kind=kind) for key in AWKWARD for kind in KINDS] + [one_list("seen everything")]
    pair.publish(RUN, lists)
    absent = [("user", "nobody"), ("similar", "seen everything"), ("popular", "x" * 511)]
    keys: Any = [(served.kind, served.key) for served in lists]
    for until in (None, time.monotonic() + 60):
        pair.reader.probe(RUN)
        found = pair.reader.get_many(RUN, [*keys, *absent, *keys[:3]], until)

        assert found == by_key(lists)
        assert all(pair.reader.get(RUN, kind, key, until) == found[kind, key] for kind, key in keys)
        assert pair.reader.get(RUN, "user", "nobody", until) is None
    assert pair.reader.get_many(RUN, []) == {}


def test_nobody_waits_for_a_list_past_the_moment_that_was_said(pair: Pair) -> None:
    """A moment that is past reads nothing; the reader is as good as before."""
    pair.publish(RUN, some_lists())
    pair.reader.probe(RUN)
    key = some_lists()[0].key
    for read in (
        lambda: pair.reader.get(RUN, "user", key, time.monotonic() - 0.001),
        lambda: pair.reader.get_many(RUN, [("user", key)], time.monotonic() - 0.001),
    ):
        with pytest.raises(StoreUnavailable, match="no time is left"):
            read()

    assert pair.reader.get(RUN, "user", key, time.monotonic() + 60) == some_lists()[0]


def test_many_lists_of_a_run_that_is_gone_are_unreadable(pair: Pair) -> None:
    """As one is: dropped before or after it was opened."""
    pair.publish(RUN, some_lists())
    pair.publish(NEXT, some_lists())
    pair.reader.probe(RUN)
    fence = pair.store.acquire("pruner", 60).fence
    pair.store.set_state(RUN, RunState.RETIRED, RunState.FAILED, fence)
    pair.store.drop(RUN, fence)
    keys: Any = [("user", some_lists()[0].key), ("user", "nobody")]
    for reader in (pair.reader, pair.another_reader()):
        with pytest.raises(RunUnreadable, match=RUN):
            reader.get_many(RUN, keys)
    with pytest.raises(RunUnreadable, match=RUN):
        pair.reader.get_many(RUN, keys, time.monotonic() + 60)


def test_readers_work_in_several_threads(pair: Pair) -> None:
    """Eight threads read through one reader while runs come and go, and each gets the list of its run."""
    runs = [f"20260301_{number}" for number in range(4)]
    for run_id in runs:
        pair.publish(run_id, [one_list("u", run_id)])

    def read(number: int) -> bool:
        rounds = [runs[(number + turn) % 4] for turn in range(50)]
        return all(pair.reader.get(run_id, "user", "u") == one_list("u", run_id) for run_id in rounds)

    assert outcomes(8, read) == [True] * 8


# The embedded store: files, disks and other processes


@pytest.fixture
def embedded(tmp_path: Path) -> Iterator[Pair]:
    with in_folder(tmp_path / "a store? 100% #1") as found:
        yield found


def registry(pair: Pair) -> Path:
    return pair.settings.path / "registry.db"


def lists_file(pair: Pair, run_id: str) -> Path:
    return pair.settings.path / f"lists_{run_id}.db"


def unprepared(path: Path) -> Pair:
    return Pair(StoreSettings(path=path))


def test_an_absent_store_was_never_published_to(tmp_path: Path) -> None:
    """No folder, and a folder without a registry, mean that nothing is there yet: no error, and nothing is made."""
    for folder in (tmp_path / "none" / "there", tmp_path):
        pair = unprepared(folder)
        reader = pair.reader
        assert (reader.release(), reader.runs()) == (pair.store.pointer(), pair.store.runs()) == (None, [])
        with pytest.raises(RunUnreadable):
            reader.get(RUN, "user", "u")
    assert list(tmp_path.iterdir()) == []


def test_a_registry_that_a_crash_left_empty_is_none(embedded: Pair) -> None:
    """`prepare` that died before its first commit leaves a file of no bytes, and can be run again."""
    registry(embedded).write_bytes(b"")
    assert embedded.reader.release() is None
    embedded.store.prepare()

    assert embedded.publish(RUN, some_lists()) == embedded.reader.release()


def break_by_file(path: Path) -> None:
    path.write_text("no folder")


def break_by_junk(path: Path) -> None:
    path.mkdir()
    (path / "registry.db").write_bytes(b"no database " * 1000)


def break_by_folder(path: Path) -> None:
    (path / "registry.db").mkdir(parents=True)


def break_by_other_database(path: Path) -> None:
    path.mkdir()
    with sqlite3.connect(path / "registry.db") as other:
        other.execute("CREATE TABLE somebody_elses (x)")


@pytest.mark.parametrize("breaks", [break_by_file, break_by_junk, break_by_folder, break_by_other_database])
def test_a_store_that_can_not_be_used_says_so(tmp_path: Path, breaks: Callable[[Path], None]) -> None:
    """Reader and writer name the file and stop with the code of an unreachable store."""
    folder = tmp_path / "store"
    breaks(folder)
    pair = unprepared(folder)
    calls: list[Callable[[], object]] = [
        pair.reader.release, pair.reader.runs, pair.store.pointer, pair.store.runs,
        lambda: pair.store.acquire("a", 60),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(StoreUnavailable, match=r"registry\.db") as caught:
            call()
        assert caught.value.exit_code == 5


def test_a_writer_of_an_unprepared_store_says_so(tmp_path: Path) -> None:
    """Without `prepare` there is nothing to lease, and no empty registry is left behind."""
    with pytest.raises(StoreUnavailable, match="prepared"):
        unprepared(tmp_path).store.acquire("a", 60)
    assert list(tmp_path.iterdir()) == []


@contextmanager
def as_somebody_else() -> Iterator[None]:
    """Without root's right to read and write everything."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_folder_that_may_not_be_written_is_unavailable_to_writers_alone() -> None:
    """A read-only store is read as ever, by a service that has no right to write."""
    with tempfile.TemporaryDirectory() as outer, in_folder(Path(outer) / "store") as pair:
        live = pair.publish(RUN, some_lists())
        Path(outer).chmod(0o755)
        pair.settings.path.chmod(0o555)
        for file in pair.settings.path.iterdir():
            file.chmod(0o444)
        with as_somebody_else():
            reader = pair.another_reader()
            assert reader.release() == live
            reader.probe(RUN)
            assert reader.get(RUN, "user", "u0") is not None
            with pytest.raises(StoreUnavailable):
                pair.store.acquire("a", 60)
            with pytest.raises(StoreUnavailable):
                unprepared(pair.settings.path / "below").store.prepare()
            reader.close()
        pair.settings.path.chmod(0o755)


def test_a_folder_that_may_not_be_entered_is_unavailable() -> None:
    """A store behind a wrong permission is not taken for one without a publication."""
    with tempfile.TemporaryDirectory() as outer, in_folder(Path(outer) / "store") as pair:
        pair.publish(RUN, some_lists())
        Path(outer).chmod(0o000)
        try:
            with as_somebody_else():
                for call in (pair.reader.release, lambda: pair.reader.get(RUN, "user", "u0")):
                    with pytest.raises(StoreUnavailable):
                        call()
        finally:
            Path(outer).chmod(0o700)


def test_a_lists_file_that_is_damaged_is_unreadable(embedded: Pair) -> None:
    """Junk, a cut-off file and a broken row end in RunUnreadable, which names the file."""
    for number, damage in enumerate((b"junk" * 5000, b"")):
        run_id = f"20260301_{number}"
        embedded.publish(run_id, some_lists(100))
        lists_file(embedded, run_id).write_bytes(damage)
        for read in (embedded.reader.probe, lambda name: embedded.reader.get(name, "user", "u0")):
            with pytest.raises(RunUnreadable, match=f"lists_{run_id}"):
                read(run_id)
        with pytest.raises(RunUnreadable, match=f"lists_{run_id}"):
            list(embedded.reader.scan(run_id))
    embedded.publish(RUN, some_lists())
    with sqlite3.connect(lists_file(embedded, RUN)) as file:
        file.execute("UPDATE lists SET items = '[' WHERE key = 'u0'")
    for read in (embedded.reader.probe, lambda run_id: embedded.reader.get(run_id, "user", "u0")):
        with pytest.raises(RunUnreadable, match=RUN):
            read(RUN)
    assert embedded.reader.get(RUN, "user", "u1") == one_list("u1", "i1", "i2")


def test_a_lists_file_is_closed_in_rollback_journal_mode(embedded: Pair) -> None:
    """One file a run, and nothing beside it: an immutable reader would not see a write-ahead log."""
    embedded.publish(RUN, some_lists())

    assert sorted(path.name for path in embedded.settings.path.iterdir()) == [f"lists_{RUN}.db", "registry.db"]
    assert lists_file(embedded, RUN).read_bytes()[18:20] == b"\x01\x01"  # the header's read and write versions: no WAL


def test_a_half_loaded_run_has_no_file_of_its_name(embedded: Pair) -> None:
    """Until the last row is on disk, the run's name is not taken; what a killed load left goes with the next one."""
    fence = embedded.store.acquire("tests", 60).fence
    embedded.store.set_state(RUN, None, RunState.LOADING, fence)
    seen: list[bool] = []
    embedded.store.load(RUN, some_lists(6000), fence, lambda _: seen.append(lists_file(embedded, RUN).exists()))
    left = lists_file(embedded, f"{RUN}").with_name(f"lists_{RUN}.db.7")
    left.write_bytes(b"x" * 1000)

    assert seen == [False, False]
    assert embedded.store.size(RUN) > 1000
    embedded.store.load(RUN, some_lists(1), fence, ignore)
    assert not left.exists()


def test_a_locked_registry_is_busy_for_writers_and_unavailable_for_readers(embedded: Pair) -> None:
    """Who finds another process inside the registry gives up after a while, and says what to do."""
    live = embedded.publish(RUN, some_lists())
    impatient = import_module("jobs.stores.sqlite").SqliteStore(embedded.settings.path, lock_seconds=0.05)
    with sqlite3.connect(registry(embedded), isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        assert embedded.reader.release() == live
        with pytest.raises(Busy, match="locked") as caught:
            impatient.acquire("a", 60)
        other.execute("ROLLBACK")
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        readers = import_module("lookup_api.readers.sqlite")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(readers.connect, "__defaults__", (0.05,))
            with pytest.raises(StoreUnavailable, match="locked"):
                embedded.reader.release()
        other.execute("ROLLBACK")
    other.close()
    assert (caught.value.exit_code, caught.value.retry) == (4, True)


def test_who_waits_for_the_registry_compares_with_what_it_finds_then(embedded: Pair) -> None:
    """A flip that another publisher's flip held up is told that the pointer moved: it had read nothing before."""
    embedded.publish(RUN, some_lists())
    fence = embedded.store.acquire("late", 60).fence
    with ThreadPoolExecutor(1) as pool, closing(sqlite3.connect(registry(embedded), isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        other.execute("UPDATE release SET sequence = 2")
        waiting = pool.submit(embedded.store.flip, RUN, 1, fence)
        time.sleep(0.2)
        other.execute("COMMIT")
        with pytest.raises(SequenceMoved, match="sequence 2"):
            waiting.result()


DIES_IN_A_COMMIT = """
import os, sqlite3, sys
registry = sqlite3.connect(sys.argv[1], isolation_level=None)
registry.execute("PRAGMA cache_size = 1")
registry.execute("BEGIN IMMEDIATE")
registry.execute("UPDATE release SET sequence = 99")
for number in range(3000):
    registry.execute("INSERT INTO runs VALUES (?, 'LOADED', 1, '', '')", (str(number),))
os._exit(0)
"""


def test_a_publisher_that_dies_in_a_commit_is_undone_by_the_next_reader(embedded: Pair) -> None:
    """Half a commit is never read, and does not keep a service from starting before the next night."""
    live = embedded.publish(RUN, some_lists())
    subprocess.run([sys.executable, "-c", DIES_IN_A_COMMIT, registry(embedded)], check=True)
    assert registry(embedded).with_name("registry.db-journal").exists()

    assert embedded.reader.release() == live
    assert [run.run_id for run in embedded.reader.runs()] == [RUN]
    assert embedded.store.pointer() == live


def open_files(folder: Path) -> list[str]:
    found = []
    for link in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the one that reads the folder is gone by now
            found.append(str(link.readlink()))
    return [name for name in found if name.startswith(str(folder))]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are counted in /proc")
def test_a_reader_holds_no_files_of_runs_that_are_past(embedded: Pair) -> None:
    """A service that follows the pointer for years has two runs open at most, and none when it is closed."""
    for night in range(12):
        run_id = f"20260301_{night}"
        embedded.publish(run_id, some_lists())
        embedded.reader.probe(run_id)
        outcomes(4, lambda _, name=run_id: embedded.reader.get(name, "user", "u1"))
        assert len({Path(name).name for name in open_files(embedded.settings.path)}) <= 2
    embedded.reader.close()

    assert open_files(embedded.settings.path) == []


FILLS_THE_DISK = """
import resource, sys
from pathlib import Path
from jobs.stores.sqlite import SqliteStore
from lookup_api.readers.sqlite import SqliteReader
from schemas.errors import StoreUnavailable
from schemas.lists import ServedList
from schemas.runs import RunState
from datetime import UTC, datetime

folder, limit = Path(sys.argv[1]), int(sys.argv[2])
store, reader, now = SqliteStore(folder), SqliteReader(folder), datetime.now(UTC).replace(microsecond=0)
def lists(count, length):
    for user in range(count):
        items = tuple(f"u{user} i{rank}" for rank in range(length))
        yield ServedList("user", f"u{user}", items, (0.5,) * length, ("als",) * length, now)

store.prepare()
fence = store.acquire("filler", 60).fence
def load(run_id, *size):
    store.set_state(run_id, None, RunState.LOADING, fence)
    store.load(run_id, lists(*size), fence, lambda rows: None)
    store.set_state(run_id, RunState.LOADING, RunState.LOADED, fence)
    store.set_state(run_id, RunState.LOADED, RunState.VERIFIED, fence)
    store.set_state(run_id, RunState.VERIFIED, RunState.LIVE, fence)

load("live", 10, 10)
store.flip("live", 0, fence)
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    load("large", 20000, 50)
except StoreUnavailable as error:
    print(error.exit_code, error)
store.set_state("large", RunState.LOADING, RunState.FAILED, fence)
assert store.size("large") == 0, "what was written of a load that broke still takes space"
reader.probe(reader.release().run_id)
assert reader.get("live", "user", "u3").items[0] == "u3 i0"
store.drop("large", fence)
load("small", 10, 10)
print(store.flip("small", 1, fence).run_id)
"""


def assert_survived(done: "subprocess.CompletedProcess[str]") -> None:
    assert done.returncode == 0, done.stderr
    error, published = done.stdout.splitlines()
    assert error.startswith("5 ")
    assert "lists_large.db" in error
    assert "free space" in error
    assert published == "small"


def fill(folder: Path, limit: int, *around: str) -> "subprocess.CompletedProcess[str]":
    command = [*around, sys.executable, "-c", textwrap.dedent(FILLS_THE_DISK), str(folder), str(limit)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


def test_a_load_over_the_limit_of_a_file_leaves_the_live_run_served(tmp_path: Path) -> None:
    """A quota that ends a load in the middle costs only that load: what is live stays, and the next one succeeds."""
    assert resource.RLIMIT_FSIZE
    assert_survived(fill(tmp_path, 1_000_000))


def test_a_full_disk_leaves_the_live_run_served(tmp_path: Path) -> None:
    """The same on a file system of one megabyte that is really full."""
    mount = f'mount -t tmpfs -o size=1m none {tmp_path} && exec "$@"'
    allowed = shutil.which("unshare") and fill_is_possible(mount)
    if not allowed:
        pytest.skip("a small file system needs a mount in a user namespace, which is not allowed here")
    done = fill(tmp_path, 0, "unshare", "-rm", "sh", "-c", mount, "sh")

    assert_survived(done)
    assert "database or disk is full" in done.stdout


def fill_is_possible(mount: str) -> bool:
    return subprocess.run(["unshare", "-rm", "sh", "-c", mount, "sh", "true"], capture_output=True).returncode == 0
