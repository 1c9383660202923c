"""Recall, NDCG, hit rate and coverage: on paper, against the definitions, and at the edges."""

from collections.abc import Mapping, Sequence
from math import log2

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.metrics import Metrics, measure
from schemas.columns import ITEM_ID, ITEMS, USER_ID

ITEM_IDS = [f"i{number}" for number in range(10)]

Pairs = Sequence[tuple[str, str]]
Lists = Mapping[str, Sequence[str]]


def pairs_of(pairs: Pairs) -> pa.Table:
    columns = {USER_ID: [user for user, _ in pairs], ITEM_ID: [item for _, item in pairs]}
    return pa.table(columns, schema=pa.schema([(USER_ID, pa.string()), (ITEM_ID, pa.string())]))


def table_of(lists: Lists) -> pa.Table:
    columns = {USER_ID: list(lists), ITEMS: list(lists.values())}
    return pa.table(columns, schema=pa.schema([(USER_ID, pa.string()), (ITEMS, pa.list_(pa.string()))]))


def measured(lists: Lists, test: Pairs, fallback: Sequence[str] = (), catalogue: int = 10, k: int = 3) -> Metrics:
    """The metrics, of lists that come in two tables."""
    halves = [dict(list(lists.items())[::2]), dict(list(lists.items())[1::2])]
    return measure(map(table_of, halves), pairs_of(test), list(fallback), catalogue, k)


def defined(lists: Lists, test: Pairs, fallback: Sequence[str], catalogue: int, k: int) -> Metrics:
    """The same, written down as the definitions read."""
    wanted: dict[str, set[str]] = {}
    for user, item in test:
        wanted.setdefault(user, set()).add(item)
    recall = ndcg = hit = 0.0
    shown: set[str] = set()
    for user, items in wanted.items():
        top = list(lists.get(user, fallback))[:k]
        hits = [rank for rank, item in enumerate(top, 1) if item in items]
        recall += len(hits) / len(items)
        ideal = sum(1 / log2(rank + 1) for rank in range(1, min(k, len(items)) + 1))
        ndcg += sum(1 / log2(rank + 1) for rank in hits) / ideal
        hit += bool(hits)
        shown.update(top)
    users = len(wanted)
    names = [f"{name}@{k}" for name in ("recall", "ndcg", "hit", "coverage")]
    if not users:
        return dict.fromkeys(names) | {"users": 0, "users_known": 0}
    values = [recall / users, ndcg / users, hit / users, len(shown) / catalogue]
    known = sum(user in lists for user in wanted)
    return dict(zip(names, values, strict=True)) | {"users": users, "users_known": known}


some_items = st.lists(st.sampled_from(ITEM_IDS), unique=True, max_size=8)
some_lists = st.dictionaries(st.sampled_from("abcdef"), some_items)
some_pairs = st.lists(st.tuples(st.sampled_from("abcdefgh"), st.sampled_from(ITEM_IDS)), unique=True, max_size=20)


def test_on_paper() -> None:
    """a finds one of two at rank 1, b has no list and finds his one at rank 2 of the popular list.

    recall (1/2 + 1) / 2; ndcg (1 / (1 + 1/log2 3) + 1/log2 3) / 2; both hit; x, z and w of ten items shown.
    """
    found = measured({"a": ["x", "z", "y"]}, [("a", "x"), ("a", "y"), ("b", "w")], ["z", "w", "x"], k=2)
    expected = {
        "recall@2": 0.75,
        "ndcg@2": (1 / (1 + 1 / log2(3)) + 1 / log2(3)) / 2,
        "hit@2": 1.0,
        "coverage@2": 0.3,
        "users": 2,
        "users_known": 1,
    }

    assert expected == pytest.approx(found)


def test_perfect_lists_are_one() -> None:
    """Lists that are the test items, in any order, have recall, NDCG and hit rate of 1."""
    test = [("a", "i1"), ("a", "i2"), ("b", "i3")]
    found = measured({"a": ["i2", "i1"], "b": ["i3", "i4"]}, test)

    assert (found["recall@3"], found["ndcg@3"], found["hit@3"]) == (1.0, 1.0, 1.0)


def test_wrong_lists_are_zero() -> None:
    """Lists without a test item have recall, NDCG and hit rate of 0, and still cover what they show."""
    found = measured({"a": ["i2", "i1"]}, [("a", "i5")])

    assert (found["recall@3"], found["ndcg@3"], found["hit@3"], found["coverage@3"]) == (0.0, 0.0, 0.0, 0.2)


def test_more_test_items_than_places() -> None:
    """With five test items and k = 2, a list of two of them has an NDCG of 1 (the ideal is cut at k) and a recall of 2/5."""
    found = measured({"a": ["i1", "i2"]}, [("a", f"i{number}") for number in range(5)], k=2)

    assert pytest.approx((found["recall@2"], found["ndcg@2"])) == (0.4, 1.0)


def test_a_later_hit_is_worth_less() -> None:
    """One test item at ranks 1, 2 and 3 is worth 1, 1 / log2 3 and 1/2; at rank 4 of k = 3 nothing."""
    worth = [
        measured({"a": items}, [("a", "x")])["ndcg@3"]
        for items in (["x"], ["y", "x"], ["y", "z", "x"], ["y", "z", "w", "x"])
    ]

    assert [1.0, 1 / log2(3), 0.5, 0.0] == pytest.approx(worth)


def test_nobody_to_measure() -> None:
    """Without a test pair all metrics are None, rather than 0 or an error."""
    found = measured({"a": ["i1"]}, [], ["i1"])

    assert found == {"recall@3": None, "ndcg@3": None, "hit@3": None, "coverage@3": None, "users": 0, "users_known": 0}


def test_no_lists_at_all() -> None:
    """Without any list everybody is measured on the fallback, and without a fallback on nothing."""
    test = [("a", "i1"), ("b", "i2")]

    assert (measured({}, test, ["i1"])["hit@3"], measured({}, test, ["i1"])["users_known"]) == (0.5, 0)
    assert measured({}, test)["hit@3"] == 0.0


def test_an_empty_list_is_no_missing_one() -> None:
    """Who has a list with nothing in it was shown nothing: the fallback is not theirs."""
    found = measured({"a": []}, [("a", "i1")], ["i1"])

    assert (found["hit@3"], found["users_known"]) == (0.0, 1)


def test_lists_of_others_count_nothing() -> None:
    """A list whose user has no test pair moves no metric, coverage included."""
    test = [("a", "i1")]
    alone = measured({"a": ["i1", "i2"]}, test)
    beside = measured({"a": ["i1", "i2"], "stranger": ["i7", "i8"]}, test)

    assert alone == beside


@given(lists=some_lists, test=some_pairs, fallback=some_items, catalogue=st.integers(10, 30), k=st.integers(1, 6))
def test_it_is_what_is_defined(lists: Lists, test: Pairs, fallback: list[str], catalogue: int, k: int) -> None:
    """Whatever the lists and pairs, it equals the definitions written as loops, and every metric lies in [0, 1]."""
    expected = defined(lists, test, fallback, catalogue, k)
    actual = measured(lists, test, fallback, catalogue, k)

    assert expected == pytest.approx(actual)
    assert all(0 <= value <= 1 + 1e-12 for name, value in actual.items() if "@" in name and value is not None)
