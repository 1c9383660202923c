"""What a load into Cassandra is made of: the encoding, the throttle, the records of parts, and the tally that reads it back."""

import math
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cassandra.cqltypes import DateType, FloatType, ListType, LongType, UTF8Type
from cassandra.metadata import Murmur3Token
from hypothesis import given
from hypothesis import strategies as st

from jobs.lists import LISTS, Batches, BuiltLists, check_batch
from jobs.readback import LOOKED_AT, difference
from jobs.stores._encoding import encode
from jobs.stores._throttle import CREDIT_SECONDS, STEPS_BACK_UP, WINDOW_SECONDS, Throttle
from jobs.stores._writer import BATCH_BYTES, PARTITIONS, Ring, chunks
from jobs.tally import SLOTS, Tally, inside, of_batch, of_lists, tally
from schemas.lists import KINDS, ServedList
from schemas.settings import StoreSettings
from tests.memory import batches

SCORED_AT = datetime(2026, 3, 1, 2, 30, tzinfo=UTC)
"""Of lists whose digest is known."""

texts = st.text(st.characters(exclude_categories=("Cc", "Cs")), max_size=40) | st.just("😀" * 128)
floats = st.floats(width=32, allow_nan=False, allow_infinity=False)
items = st.lists(st.tuples(texts, floats, texts), max_size=12)
times = st.integers(-(10**12), 10**13).map(
    lambda millis: datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=millis)
)


def _listed(kind: Any, key: str, found: list[tuple[str, float, str]], scored_at: datetime) -> ServedList:
    columns = tuple(zip(*found, strict=True)) or ((), (), ())
    return ServedList(kind, key, *columns, scored_at)


served = st.builds(_listed, st.sampled_from(KINDS), texts.filter(bool), items, times)
several = st.lists(served, min_size=1, max_size=8)


def one(key: str, *found: str, score: float = 0.5) -> ServedList:
    return ServedList("user", key, found, (score,) * len(found), ("als",) * len(found), SCORED_AT)


def as_batch(lists: list[ServedList]) -> pa.RecordBatch:
    (batch,) = batches(lists)
    return batch


# The encoding


@given(several, st.integers(1, 10**6), st.integers(0, 7))
def test_values_are_what_the_driver_would_have_written(lists: list[ServedList], fence: int, skipped: int) -> None:
    """Byte by byte, for any texts, scores, lengths and times, also in a slice of a batch; empty lists are lists."""
    texts_, floats_ = (ListType.apply_parameters([kind]) for kind in (UTF8Type, FloatType))
    lists = lists[skipped % len(lists) :]
    batch = as_batch([one("sliced off", "i")] * 3 + lists).slice(3)
    encoded = encode(batch, fence)

    for row, size, key, found in zip(encoded.rows, encoded.sizes, encoded.keys, lists, strict=True):
        micros = (found.scored_at - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) + fence
        assert row == (
            UTF8Type.serialize(found.kind, 5),
            UTF8Type.serialize(found.key, 5),
            texts_.serialize(found.items, 5),
            floats_.serialize(found.scores, 5),
            texts_.serialize(found.sources, 5),
            DateType.serialize(found.scored_at, 5),
            LongType.serialize(micros, 5),
        )
        assert size == sum(map(len, row))
        parts = (found.kind.encode(), found.key.encode())
        assert key == b"".join(len(part).to_bytes(2) + part + b"\0" for part in parts)


def test_an_empty_batch_is_no_rows() -> None:
    """A bucket without users has a file without rows."""
    assert encode(as_batch([one("u")]).slice(1), 1).rows == []


# What is no list


@given(several)
def test_lists_pass(lists: list[ServedList]) -> None:
    """Whatever schemas.lists.check_list takes, with an id for a key."""
    check_batch(as_batch(lists))


def changed(name: str, value: Any) -> pa.RecordBatch:
    rows = as_batch([one("fine", "i", "j"), one("wrong", "i", "j")]).to_pylist()
    rows[1][name] = value
    return pa.RecordBatch.from_pylist(rows, schema=LISTS)


WRONG = {
    "too few scores": ("scores", [1.0], "'wrong' has 2 items, 1 scores"),
    "too many sources": ("sources", ["als"] * 3, "'wrong' has 2 items, 2 scores and 3 sources"),
    "no number": ("scores", [1.0, math.nan], "'wrong' has a score that is no number"),
    "infinite": ("scores", [-math.inf, 1.0], "'wrong' has a score that is no number"),
    "no key": ("key", "", "user '' can't be loaded"),
    "a long key": ("key", "x" * 513, "can't be loaded: that is no key"),
    "a control character": ("key", "a\nb", "can't be loaded: that is no key"),
    "a kind of its own": ("kind", "search", "search 'wrong' can't be loaded"),
    "a null key": ("key", None, "have a null in key"),
    "a null list": ("items", None, "have a null in items"),
    "a null item": ("items", ["i", None], "have a null in items"),
    "a null time": ("scored_at", None, "have a null in scored_at"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_no_list_is_named(what: str) -> None:
    """One wrong row of a batch is an error that names it."""
    name, value, message = WRONG[what]
    with pytest.raises(ValueError, match=message):
        check_batch(changed(name, value))


def test_a_popular_list_s_key_holds_what_a_column_held() -> None:
    """It is no id: a long value, or one with a control character, is some segment's."""
    check_batch(as_batch([replace(one("u"), kind="popular", key=f"city=\t{'x' * 600}")]))


# Batches by replicas


class Metadata:
    """Of a cluster whose nodes own one token each; `replicas` follow it on the ring."""

    def __init__(self, tokens: list[int], copies: int) -> None:
        self.token_map = self
        self.ring = [Murmur3Token(token) for token in sorted(tokens)]
        self.copies = copies
        self.hosts = [Host(number) for number in range(len(tokens))]

    def get_replicas(self, keyspace: str, token: Any) -> list["Host"]:
        first = next((place for place, end in enumerate(self.ring) if token.value <= end.value), 0)
        return [self.hosts[(first + step) % len(self.hosts)] for step in range(self.copies)]


class Host:
    datacenter = "here"

    def __init__(self, number: int) -> None:
        self.number = number


tokens = st.lists(st.integers(-(2**63) + 1, 2**63 - 1), min_size=1, max_size=9, unique=True)


@given(tokens, st.integers(1, 3), st.lists(st.binary(min_size=1, max_size=20), min_size=1, max_size=40))
def test_rows_of_a_group_have_the_same_replicas(ring: list[int], copies: int, keys: list[bytes]) -> None:
    """Two rows are of one group exactly when the same nodes keep them."""
    metadata = Metadata(ring, copies)
    groups = Ring(metadata, "k", "here").groups(keys)
    owners = [frozenset(metadata.get_replicas("k", Murmur3Token.from_key(key))) for key in keys]

    assert len(set(groups)) == len(set(owners)) == len(set(zip(groups.tolist(), owners, strict=True)))


@given(
    st.lists(st.tuples(st.integers(1, 60_000), st.integers(0, 2)), min_size=1, max_size=60), st.integers(1, PARTITIONS)
)
def test_batches_are_bounded_and_hold_every_row_once(rows: list[tuple[int, int]], most: int) -> None:
    """No batch mixes groups, has more rows than allowed, or is larger than BATCH_BYTES unless it is one row."""
    encoded = encode(as_batch([one(f"u{number}") for number in range(len(rows))]), 1)
    encoded = replace(encoded, sizes=np.array([size for size, _ in rows]))
    found = list(chunks(encoded, np.array([group for _, group in rows]), most))
    of = {row: rows[place] for place, row in enumerate(encoded.rows)}

    assert sorted(row for chunk in found for row in chunk) == sorted(encoded.rows)
    for chunk in found:
        assert len(chunk) <= most
        assert len({of[row][1] for row in chunk}) == 1
        assert len(chunk) == 1 or sum(of[row][0] for row in chunk) <= BATCH_BYTES


def test_lists_of_50_travel_in_tens_and_long_ones_alone() -> None:
    """By Cassandra's own limits, as it comes: 50 KiB a batch of several partitions."""
    usual = [
        ServedList("user", f"u{n:07d}", ("v000123",) * 50, (0.5,) * 50, ("als+popular",) * 50, SCORED_AT)
        for n in range(30)
    ]
    long = [one(f"u{number}", *["x" * 512] * 500) for number in range(3)]
    sizes = []
    for lists in (usual, long):
        encoded = encode(as_batch(lists), 1)
        sizes.append([len(chunk) for chunk in chunks(encoded, np.zeros(len(lists), int), PARTITIONS)])

    assert sizes == [[10, 10, 10], [1, 1, 1]]


# The throttle


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@given(st.floats(1, 10_000), st.lists(st.tuples(st.floats(0, 3), st.integers(1, 10)), min_size=2, max_size=60))
def test_never_above_the_rate_in_any_window(rate: float, sends: list[tuple[float, int]]) -> None:
    """Whatever the sender does between sends: in t seconds at most rate x (t + the credit), and the last send."""
    clock = Clock()
    throttle = Throttle(rate, 100, 1, clock)
    sent: list[tuple[float, int]] = []
    for idle, rows in sends:
        clock.now += idle
        clock.now += throttle.pause(rows)
        sent.append((clock.now, rows))

    for first in range(len(sent)):
        for last in range(first, len(sent)):
            before_the_last = sum(rows for _, rows in sent[first:last])
            assert before_the_last <= rate * (sent[last][0] - sent[first][0] + CREDIT_SECONDS) * (1 + 1e-9) + 1e-6


def test_a_sender_that_is_never_idle_reaches_the_rate() -> None:
    """A throttle that is too careful would make the night longer."""
    clock = Clock()
    throttle = Throttle(1000, 100, 1, clock)
    for _ in range(500):
        clock.now += throttle.pause(10) + 0.001

    assert 500 * 10 / (clock.now - 100) == pytest.approx(1000, rel=0.02)


@given(
    st.lists(st.tuples(st.floats(0, 2), st.sampled_from(["busy", "slow", "quick"])), max_size=200), st.integers(1, 500)
)
def test_it_stays_within_bounds_and_recovers(moments: list[tuple[float, str]], most: int) -> None:
    """At least one row may be under way, and never more than asked for; after enough quiet windows, all of them."""
    clock = Clock()
    throttle = Throttle(0, most, 0.25, clock)
    for idle, what in moments:
        clock.now += idle
        throttle.busy() if what == "busy" else throttle.took(1.0 if what == "slow" else 0.01)
        assert 1 <= throttle.limit <= most
    for _ in range(STEPS_BACK_UP + 2):
        clock.now += WINDOW_SECONDS
        throttle.took(0.01)

    assert throttle.limit == most


def test_trouble_halves_once_a_window() -> None:
    """A hundred rows that time out together are one trouble; a window of slow writes is another."""
    clock = Clock()
    throttle = Throttle(0, 64, 0.25, clock)
    for _ in range(100):
        throttle.busy()
    assert throttle.limit == 32
    for _ in range(2):
        clock.now += WINDOW_SECONDS
        throttle.took(0.01)
    assert throttle.limit == 36
    for _ in range(98):
        throttle.took(0.01)
    throttle.took(0.3)
    throttle.took(0.3)
    clock.now += WINDOW_SECONDS
    throttle.took(0.01)
    assert throttle.limit == 18


# The tally


@given(several)
def test_a_list_has_one_digest_wherever_it_comes_from(lists: list[ServedList]) -> None:
    """From the Parquet and from a reader, to the last bit of a score."""
    sides = tally([of_batch(as_batch(lists))]), tally(of_lists(lists))

    assert sides[0].differing(sides[1]) == []
    assert int(sides[0].rows.sum()) == len(lists)


def test_digests_are_the_same_in_every_process() -> None:
    """A digest that took part of Python's hash seed would differ between Spark's workers."""
    (chunk,) = of_lists([one("u1", "i1", "i2")])

    assert (int(chunk.slots[0]), int(chunk.digests[0])) == (574, 6210928078594411146)


CHANGES = {
    "an item": lambda found: replace(found, items=("a", "x")),
    "the order": lambda found: replace(found, items=("b", "a")),
    "where one ends": lambda found: replace(found, items=("ab", "")),
    "a score": lambda found: replace(found, scores=(0.5, np.nextafter(np.float32(0.5), np.float32(1)))),
    "a sign": lambda found: replace(found, scores=(0.5, -0.5)),
    "a source": lambda found: replace(found, sources=("als", "popular")),
    "the time": lambda found: replace(found, scored_at=SCORED_AT + timedelta(milliseconds=1)),
    "the kind": lambda found: replace(found, kind="similar"),
    "the key": lambda found: replace(found, key="U"),
    "all items": lambda found: replace(found, items=(), scores=(), sources=()),
}


@pytest.mark.parametrize("what", CHANGES)
def test_any_change_of_a_list_shows(what: str) -> None:
    """Of ids, order, scores, sources, time or key."""
    before = one("u", "a", "b")
    others = [one(f"u{number}", "i") for number in range(50)]

    assert tally(of_lists([before, *others])).differing(tally(of_lists([*others, CHANGES[what](before)])))
    assert not tally(of_lists([before, *others])).differing(tally(of_lists([*others, before])))


def test_an_empty_list_is_not_a_list_of_one_empty_id() -> None:
    """Joined, both are the same text."""
    empty, of_one = one("u"), one("u", "")

    assert tally(of_lists([empty])).differing(tally(of_lists([of_one])))


def test_tallies_add_up() -> None:
    """Parts that were tallied apart are the whole."""
    lists = [one(f"u{number}", "i") for number in range(100)]
    parts = [tally(of_lists(lists[begin::3])) for begin in range(3)]

    assert sum(parts, Tally()).differing(tally(of_lists(lists))) == []
    assert sum(inside(range(SLOTS), of_lists(lists)).values()) == 100


class InMemory:
    """A store's reader, with some lists."""

    def __init__(self, lists: list[ServedList]) -> None:
        self.lists = lists

    def parts(self, run_id: str, n: int) -> list[str]:
        return ["even", "odd"]

    def scan(self, run_id: str, part: str = "") -> Iterator[ServedList]:
        return iter(self.lists[part == "odd" :: 2])


@pytest.fixture
def built(tmp_path: Path) -> BuiltLists:
    """A thousand lists, in two files."""
    lists = [one(f"u{number}", "i", "j") for number in range(1000)]
    for number in range(2):
        pq.write_table(pa.Table.from_batches(batches(lists[number::2])), tmp_path / f"bucket-{number:05d}.parquet")
    return BuiltLists(tmp_path)


def told(built: BuiltLists, stored: list[ServedList]) -> str | None:
    return difference(built, InMemory(stored), StoreSettings(), "20260301_0", lambda: None)  # type: ignore[arg-type]  # two methods


def test_equal_is_equal_in_any_order(built: BuiltLists) -> None:
    """Nothing is said where every list is there."""
    assert told(built, sorted(built, key=lambda found: found.key)) is None


def test_what_differs_is_counted_and_named(built: BuiltLists) -> None:
    """Missing, foreign and different ones, with examples; far more than can be looked at, as at least so many."""
    lists = list(built)
    assert told(built, [*lists[3:], one("stranger", "i"), replace(lists[2], items=("j", "i"))]) == (
        "2 lists missing, 1 foreign, 1 different, 0 of a key that another one has (user 'u0', user 'u2', user 'stranger')"
    )
    found = told(built, lists[500:])
    assert found
    assert found.startswith("500 lists where 1000 were built, at least ")
    assert LOOKED_AT <= int(found.partition("at least ")[2].split()[0]) < 500


def test_a_key_built_twice_is_found(built: BuiltLists) -> None:
    """In two files, where no writer sees both: the store keeps one of them."""
    lists = list(built)
    pq.write_table(pa.Table.from_batches(batches([lists[0]])), built.folder / "bucket-00002.parquet")

    assert "0 lists missing, 0 foreign, 0 different, 1 of a key that another one has" in (told(built, lists) or "")


# Parts and their records


def counts(tasks: int, parts: Iterator[Batches]) -> Iterator[int]:
    for part in parts:
        yield sum(map(len, part))


def stops(tasks: int, parts: Iterator[Batches]) -> Iterator[int]:
    yield sum(map(len, next(parts)))
    raise ConnectionError("gone")


def test_parts_that_were_written_whole_are_not_written_again(built: BuiltLists) -> None:
    """Not in the same table; in another one, or when the file changed, they are."""
    seen: list[int] = []

    def spied(tasks: int, parts: Iterator[Batches]) -> Iterator[int]:
        for rows in counts(tasks, parts):
            seen.append(rows)
            yield rows

    told: list[int] = []
    with pytest.raises(ConnectionError):
        built.each_part(stops, "table 1", told.append)
    assert built.each_part(spied, "table 1", told.append) == told[-1] == 1000
    assert seen == [500]
    assert built.each_part(spied, "table 2", told.append) == 1000
    assert seen == [500] * 3
    pq.write_table(pa.Table.from_batches(batches([one("u0", "i")])), built.files()[0])
    assert built.each_part(spied, "table 2", told.append) == 501
    assert seen == [500, 500, 500, 1]
