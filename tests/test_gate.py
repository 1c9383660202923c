"""The gate: every check can warn and stop, what can't be known stops, and a refusal says what to type."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.buckets import Buckets, write_bucket
from jobs.config import GateSettings, Levels
from jobs.dataset import Dataset
from jobs.lists import LISTS
from jobs.progress import Progress
from jobs.stages import gate
from schemas.lists import ALL
from tests.test_lists import write_dataset

GATES = [name for name, field in GateSettings.model_fields.items() if field.annotation is Levels]
COMPARED = gate.AT_LEAST
ABSOLUTE = [name for name in GATES if name not in COMPARED]
SCORED_AT = datetime(2026, 3, 1, tzinfo=UTC)
ITEM_COUNT = 12
UNAVAILABLE = 11
DIGEST = "digest"

Lists = Mapping[str, Sequence[str]]


def item(number: int) -> str:
    return f"i{number:03d}"


def lists_table(kind: str, lists: Lists) -> pa.Table:
    rows = [
        {
            "kind": kind,
            "key": key,
            "items": items,
            "scores": [1.0] * len(items),
            "sources": ["als"] * len(items),
            "scored_at": SCORED_AT,
        }
        for key, items in lists.items()
    ]
    return pa.Table.from_pylist(rows, schema=LISTS)


@dataclass
class Night:
    """A night up to stage 8, in a folder: ten users in two buckets, each with three items seen and one blocked.

    User `u<number>` has seen items 0, 1 and 2, may not be shown item 3, and nobody may be shown item 11.
    """

    folder: Path
    lists: dict[str, list[str]]
    similar: dict[str, list[str]]
    popular: dict[str, list[str]]
    outcomes: dict[str, int]
    rows: int
    holdout: dict[str, Any] | None

    def build(self) -> dict[str, Any]:
        """Write everything; what the gate counts of it."""
        (self.folder / "build").mkdir()
        (self.folder / "gate").mkdir()
        users = [f"u{number}" for number in range(10)]
        halves = (users[:5], users[5:])
        eligible = [number != UNAVAILABLE for number in range(ITEM_COUNT)]
        data = write_dataset(
            self.folder / "dataset", [[(user, [0, 1], [0, 1, 2], [3]) for user in half] for half in halves], eligible
        )
        strangers = [key for key in self.lists if key not in users]
        for number, half in enumerate(halves):
            mine = {key: self.lists[key] for key in (*half, *(strangers if number == 0 else ())) if key in self.lists}
            write_bucket(self.folder / "build", DIGEST, number, lists_table("user", mine), 0.0)
            facts = gate.bucket_facts(data, self.folder / "build", number)
            write_bucket(self.folder / "gate", DIGEST, number, facts, 0.0)
        for kind, lists in (("similar", self.similar), ("popular", self.popular)):
            pq.write_table(lists_table(kind, lists), self.folder / "build" / f"{kind}.parquet")
        return gate.summary(self.folder / "gate", self.folder / "build", Dataset(data))

    def facts(self) -> dict[str, Any]:
        """What the night hands to its gate."""
        return {
            "outcomes": self.outcomes,
            "rows": self.rows,
            "holdout": self.holdout,
            "holdout_off": False,
            "lists": {},
        }

    def judged(self, last: Mapping[str, Any] | None, levels: GateSettings) -> dict[str, Any]:
        """The verdict; the buckets are counted already, so no Spark is asked."""
        buckets = Buckets(None, DIGEST, 2, Progress())
        built, data = self.folder / "build", self.folder / "dataset"
        verdict: dict[str, Any] = gate.judge(self.folder / "gate", buckets, data, built, self.facts(), last, levels)[
            "verdict"
        ]
        return verdict


@pytest.fixture
def night(tmp_path: Path) -> Night:
    """A night with nothing wrong."""
    return Night(
        folder=tmp_path,
        lists={f"u{number}": [item(4), item(5), item(6), item(7)] for number in range(10)},
        similar={item(0): [item(1), item(4)], item(1): [item(0)]},
        popular={ALL: [item(0), item(1), item(4)]},
        outcomes={"personal": 10, "popular": 0, "empty": 0, "failed": 0},
        rows=13,
        holdout={"ndcg@20": 0.3, "popular_ndcg@20": 0.9, "users": 500},
    )


def same_again(night: Night, counted: Mapping[str, Any]) -> dict[str, Any]:
    """A last night that was like tonight."""
    return deepcopy({**night.facts(), "lists": dict(counted)})


def statuses(verdict: Mapping[str, Any]) -> dict[str, str]:
    return {one["name"]: one["status"] for one in verdict["gates"]}


LEVELS = GateSettings(
    failed=Levels(warn=0.05, stop=0.3),
    empty=Levels(warn=0.05, stop=0.3),
    repeats=Levels(warn=0, stop=1),
    leaks=Levels(warn=0, stop=1),
)
"""The defaults, but for gates whose default is to stop at the first sign."""

AMOUNT = {"warn": 1, "stop": 5}
"""Users or lists of ten that are spoilt to make an absolute gate warn or stop."""


def spoil(night: Night, name: str, amount: int) -> None:
    """Give `amount` users what the gate `name` looks for, and nothing that another one looks for."""
    if name == "failed":
        night.outcomes = {"personal": 10 - amount, "popular": 0, "empty": 0, "failed": amount}
    for number in range(amount):
        spoilt = {
            "empty": [],
            "repeats": [item(4), item(5), item(6), item(6)],
            "leaks": [item(0), item(5), item(6), item(7)],
        }
        night.lists[f"u{number}"] = spoilt.get(name, night.lists[f"u{number}"])


def worsen(last: dict[str, Any], name: str, ratio: float) -> None:
    """Make last night so much better that tonight's `name` is `ratio` of it."""
    place, key = {
        "users": (last["lists"], "personal"),
        "rows": (last, "rows"),
        "fill": (last["lists"], "mean_length"),
        "coverage": (last["lists"], "coverage"),
        "holdout": (last["holdout"], "ndcg@20"),
    }[name]
    place[key] = place[key] / ratio


def test_a_night_like_the_last_passes(night: Night) -> None:
    """Every gate of the settings is judged, and passes where nothing changed."""
    counted = night.build()
    verdict = night.judged(same_again(night, counted), GateSettings())

    assert dict.fromkeys(GATES, "pass") == statuses(verdict)
    assert verdict["status"] == "pass"


@pytest.mark.parametrize("status", ["warn", "stop"])
@pytest.mark.parametrize("name", COMPARED)
def test_every_comparison_moves(night: Night, name: str, status: str) -> None:
    """A fall below a gate's level warns or stops, by that gate and no other, and is the verdict on the run."""
    levels: Levels = getattr(LEVELS, name)
    last = same_again(night, night.build())
    worsen(last, name, (levels.warn + levels.stop) / 2 if status == "warn" else levels.stop / 2)
    verdict = night.judged(last, LEVELS)

    assert dict.fromkeys(GATES, "pass") | {name: status} == statuses(verdict)
    assert status == verdict["status"]


@pytest.mark.parametrize("status", ["warn", "stop"])
@pytest.mark.parametrize("name", ABSOLUTE)
def test_every_absolute_gate_moves(night: Night, name: str, status: str) -> None:
    """Spoilt lists warn or stop, by the gate that is for them and no other, also when last night was as bad."""
    spoil(night, name, AMOUNT[status])
    last = same_again(night, night.build())
    verdict = night.judged(last, LEVELS)

    assert dict.fromkeys(GATES, "pass") | {name: status} == statuses(verdict)
    assert status == verdict["status"]


@pytest.mark.parametrize("name", ["failed", "repeats", "leaks"])
def test_one_is_too_many_by_default(night: Night, name: str) -> None:
    """With the default levels, one lost user, one repeat or one leak refuses the run."""
    spoil(night, name, 1)
    night.build()
    verdict = night.judged(None, GateSettings())

    assert "stop" == statuses(verdict)[name] == verdict["status"]


def test_a_first_night_is_compared_with_nothing(night: Night) -> None:
    """Without a parent every comparison is skipped and stops nothing; absolute gates are judged."""
    night.build()
    verdict = night.judged(None, GateSettings())

    assert dict.fromkeys(COMPARED, "skipped") | dict.fromkeys(ABSOLUTE, "pass") == statuses(verdict)
    assert verdict["status"] == "pass"


def test_a_first_night_can_still_be_stopped(night: Night) -> None:
    """Without a parent, lists that leak stop the run all the same."""
    spoil(night, "leaks", 5)
    night.build()

    assert night.judged(None, GateSettings())["status"] == "stop"


class TestUnknown:
    """What can't be known stops."""

    @pytest.mark.parametrize("name", GATES)
    @pytest.mark.parametrize("value", [None, float("nan")])
    def test_a_missing_value_stops(self, name: str, value: float | None) -> None:
        """No gate takes None or NaN for good."""
        assert gate.grade(name, value, getattr(GateSettings(), name)).status == "stop"

    @pytest.mark.parametrize("key", ["personal", "mean_length", "coverage"])
    def test_a_gap_in_last_nights_record_stops(self, night: Night, key: str) -> None:
        """Last night's run without one of its facts is not taken for a run that had none."""
        last = same_again(night, night.build())
        del last["lists"][key]
        verdict = night.judged(last, GateSettings())

        assert verdict["status"] == "stop"
        assert [one["value"] for one in verdict["gates"] if one["status"] == "stop"] == [None]

    def test_no_users_at_all_stop(self, night: Night) -> None:
        """A run without outcomes and lists has nothing to take shares of."""
        night.lists, night.outcomes = {}, {}
        night.build()
        found = statuses(night.judged(None, GateSettings()))

        assert (found["failed"], found["empty"]) == ("stop", "stop")

    @pytest.mark.parametrize("tonight", [None, {"ndcg@20": 0.3, "users": 20}, {"ndcg@20": None, "users": 0}])
    def test_a_holdout_that_got_lost_stops(self, night: Night, tonight: dict[str, Any] | None) -> None:
        """Last night 500 users were measured, tonight none, or under half and too few: that is no pass."""
        last = same_again(night, night.build())
        night.holdout = tonight

        assert statuses(night.judged(last, GateSettings()))["holdout"] == "stop"

    @pytest.mark.parametrize(
        ("before", "tonight"),
        [
            (None, {"ndcg@20": 0.1, "users": 500}),
            ({"ndcg@20": 0.9, "users": 99}, {"ndcg@20": 0.1, "users": 500}),
            ({"ndcg@20": 0.9, "users": 110}, {"ndcg@20": 0.1, "users": 99}),
            ({"ndcg@10": 0.9, "users": 500}, {"ndcg@20": 0.1, "users": 500}),
        ],
        ids=["never measured", "too few last night", "a few less than enough", "another cut-off"],
    )
    def test_a_holdout_that_says_nothing_is_skipped(
        self, night: Night, before: dict[str, Any] | None, tonight: dict[str, Any]
    ) -> None:
        """Where the two nights' measurements can't be compared, the gate is skipped."""
        last = same_again(night, night.build()) | {"holdout": before}
        night.holdout = tonight

        assert statuses(night.judged(last, GateSettings()))["holdout"] == "skipped"


class TestGrade:
    """One value against two levels."""

    @pytest.mark.parametrize("name", GATES)
    def test_the_level_itself_is_good_enough(self, name: str) -> None:
        """A value equal to a level is on its right side."""
        low, high = (0.5, 0.8)
        levels = Levels(warn=high, stop=low) if name in COMPARED else Levels(warn=low, stop=high)

        assert gate.grade(name, levels.warn, levels).status == "pass"
        assert gate.grade(name, levels.stop, levels).status == "warn"

    @given(name=st.sampled_from(GATES), values=st.tuples(st.floats(0, 5), st.floats(0, 5)))
    def test_worse_is_never_judged_better(self, name: str, values: tuple[float, float]) -> None:
        """Of two values, the worse one has the same status or a worse one."""
        better, worse = sorted(values, reverse=name in COMPARED)
        order = ["pass", "warn", "stop"]
        grades = [
            order.index(gate.grade(name, value, getattr(GateSettings(), name)).status) for value in (better, worse)
        ]

        assert grades == sorted(grades)


class TestCounts:
    """What is counted of the lists."""

    def test_counts_on_paper(self, night: Night) -> None:
        """Ten lists, eight of four items, one of one other item, one empty: 33 entries of five distinct items."""
        night.lists |= {"u3": [item(8)], "u7": []}
        expected = {
            "personal": 10,
            "listed": 33,
            "empty": 1,
            "repeats": 0,
            "leaks": 0,
            "coverage": 5,
            "mean_length": 3.3,
        }

        assert expected | {"similar": 2, "popular": 1} == night.build()

    @pytest.mark.parametrize(
        ("key", "planted"),
        [
            ("u2", item(0)),
            ("u2", item(2)),
            ("u8", item(3)),
            ("u2", item(UNAVAILABLE)),
            ("u8", "no such item"),
            ("foreign", item(5)),
        ],
        ids=["liked", "seen", "blocked", "unavailable", "unknown", "foreign user"],
    )
    def test_a_planted_leak_is_one_leak(self, night: Night, key: str, planted: str) -> None:
        """One list with one item that its user may not be shown is one leak and no repeat, whatever the reason."""
        night.lists[key] = [item(4), planted]
        counted = night.build()

        assert (counted["leaks"], counted["repeats"]) == (1, 0)

    def test_a_foreign_user_leaks_even_without_items(self, night: Night) -> None:
        """An empty list of somebody whom the dataset doesn't know is still a list of nobody's."""
        night.lists["foreign"] = []

        assert night.build()["leaks"] == 1

    def test_leaks_count_lists(self, night: Night) -> None:
        """Three bad items in one list are one leak; bad lists of two users in two buckets are two."""
        night.lists["u0"] = [item(0), item(3), item(UNAVAILABLE)]
        night.lists["u9"] = ["no such item", "nor this one"]

        assert night.build()["leaks"] == 2

    def test_a_blocked_item_of_one_user_is_free_for_others(self, night: Night) -> None:
        """Item 0 is seen by all ten and leaks nowhere but in personal lists."""
        night.popular[ALL] = [item(0), item(1), item(2), item(3)]

        assert night.build()["leaks"] == 0

    @pytest.mark.parametrize("kind", ["similar", "popular"])
    @pytest.mark.parametrize("planted", [item(UNAVAILABLE), "no such item"])
    def test_shared_lists_leak_too(self, night: Night, kind: str, planted: str) -> None:
        """An unavailable or unknown item in a list that is nobody's own is a leak."""
        getattr(night, kind)["another"] = [item(4), planted]

        assert night.build()["leaks"] == 1

    @pytest.mark.parametrize("kind", ["lists", "similar", "popular"])
    def test_repeats_count_lists(self, night: Night, kind: str) -> None:
        """A list that holds two items twice is one repeat, of any kind."""
        lists = getattr(night, kind)
        lists[next(iter(lists))] = [item(4), item(5), item(4), item(5)]
        counted = night.build()

        assert (counted["repeats"], counted["leaks"]) == (1, 0)

    def test_two_unknown_items_are_no_repeat(self, night: Night) -> None:
        """Unknown ids are told from each other; the same one twice is a repeat beside the leak."""
        night.lists["u0"] = ["unknown", "another"]
        night.lists["u1"] = ["unknown", "unknown"]
        counted = night.build()

        assert (counted["repeats"], counted["leaks"]) == (1, 2)


def test_a_refusal_says_what_to_type(night: Night) -> None:
    """It names the run, each gate that stopped with value and level, no other gate, and --override; it exits with 3."""
    spoil(night, "empty", 5)
    last = same_again(night, night.build())
    worsen(last, "holdout", 0.25)
    del last["lists"]["coverage"]
    error = gate.refusal("20260301_0badcafe", night.judged(last, LEVELS))
    message = str(error)

    assert error.exit_code == 3
    assert "20260301_0badcafe is REFUSED" in message
    assert "empty = 0.5 (stop at 0.3)" in message
    assert "holdout = 0.25 (stop at 0.6)" in message
    assert "coverage = unknown (stop at 0.5)" in message
    assert "--override REASON" in message
    assert [name for name in GATES if f"{name} =" in message and name not in {"empty", "holdout", "coverage"}] == []
