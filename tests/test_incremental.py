"""Nights that make only some users' lists anew: what is carried is what was served, what is made is what a full night makes."""

import shutil
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.buckets import data_path, read_bucket, write_bucket
from jobs.config import IncrementalSettings
from jobs.dataset import HISTORY, ITEMS_FILE, users_schema
from jobs.evaluation import served_previous
from jobs.lists import LISTS
from jobs.origin import Origin, origin_of
from jobs.run import parent_of
from jobs.stages.due import REASON, bucket_due, has_turn
from jobs.stages.gate import bucket_facts
from schemas.columns import ITEM_ID, ITEMS, USER_ID
from schemas.lists import ServedList
from tests.nights import DAY, Place, at, built, event, place, write_table

NEXT = DAY + timedelta(days=1)
MAX_AGE = 4
USERS, CATALOGUE = 60, 40
INCREMENTAL = {"max_age": MAX_AGE, "active_days": 2.0}
ITEM_NAMES = [f"i{number:03d}" for number in range(CATALOGUE)]
BLOCK_COLUMNS = {"user_id": pa.string(), "item_id": pa.string()}


def events_until(day: date) -> list[dict[str, Any]]:
    """Everybody has a history that ends a week before DAY; from then on six users a day do something."""
    rng, rows = np.random.default_rng(5), []
    for user in range(USERS):
        for item in rng.choice(CATALOGUE, 12, replace=False):
            rows.append(event(f"u{user:02d}", ITEM_NAMES[item], DAY - timedelta(days=int(rng.integers(7, 20)))))
    for past in range(-2, (day - DAY).days + 1):
        rows += [
            event(f"u{(6 * past + k) % USERS:02d}", ITEM_NAMES[(past + k) % CATALOGUE], DAY + timedelta(days=past))
            for k in range(6)
        ]
    return rows


def of_users(lists: dict[tuple[str, str], ServedList]) -> dict[str, ServedList]:
    return {key: served for (kind, key), served in lists.items() if kind == "user"}


def reasons(there: Place, report) -> dict[str, str]:
    """Of each user who was scored, why."""
    due = there.run(report).folder / "due"
    return {
        row[USER_ID]: row[REASON]
        for path in sorted(due.glob("bucket-*.parquet"))
        for row in pq.read_table(path).to_pylist()
    }


class Nights:
    """The night of DAY, the next one, in which things have changed, and the next one as a full night in another folder."""

    def __init__(self, folder: Path) -> None:
        sections = {
            "input": {"events": "events.parquet", "blocks": "blocks.parquet"},
            "dataset": {"parts": 2, "half_life_days": 30.0},
            "retrieve": {"models": ["als", "popular", "similar"]},
            "rank": {"method": "distances"},  # in units of everybody, not of whom it is the turn
        }
        self.place = place(folder / "incremental", events_until(DAY), **sections, incremental=INCREMENTAL)
        write_table([{"user_id": "u00", "item_id": "i000"}], folder / "incremental" / "blocks.parquet", BLOCK_COLUMNS)
        self.first = self.place.night(DAY)
        self.before = built(self.place.run(self.first))
        self.late, self.blocked = self.quiet()[:2]
        self.item = of_users(self.before)[self.blocked].items[3]
        blocks = [{"user_id": "u00", "item_id": "i000"}, {"user_id": self.blocked, "item_id": self.item}]
        rows = [*events_until(NEXT), event(self.late, "i001", DAY - timedelta(days=5)), event("newcomer", "i002", NEXT)]
        for there in (self.place, full := place(folder / "full", rows, **sections)):
            write_table(rows, there.folder / "events.parquet")
            write_table(blocks, there.folder / "blocks.parquet", BLOCK_COLUMNS)
        self.second, self.full = self.place.night(NEXT), built(full.run(full.night(NEXT)))
        self.after, self.why = built(self.place.run(self.second)), reasons(self.place, self.second)

    def quiet(self) -> list[str]:
        """Users who did nothing lately, and whose turn it is not on the next night."""
        found = []
        for bucket in range(2):
            for row in read_bucket(self.place.run(self.first).folder / "dataset", bucket).to_pylist():
                if min(row["ages"]) > 5 and not has_turn(np.array([row[HISTORY]]), MAX_AGE, NEXT, 1)[0]:
                    found.append(row[USER_ID])
        return found


@pytest.fixture(scope="module")
def nights(tmp_path_factory, spark) -> Nights:
    return Nights(tmp_path_factory.mktemp("incremental"))


def test_a_carried_list_is_the_last_nights_to_the_millisecond(nights):
    """Who did nothing keeps items, scores, sources and scored_at; that r has decayed by a night is no change."""
    carried = of_users(nights.after).keys() - nights.why.keys()

    assert len(carried) > USERS / 3
    assert all(nights.after["user", key] == nights.before["user", key] for key in carried)


def test_a_list_that_is_made_anew_is_a_full_nights(nights):
    """Items, their order and their sources are a full night's, and scores to a millionth: a BLAS rounds by how many are beside."""
    for key in nights.why:
        new, full = nights.after["user", key], nights.full["user", key]
        assert (new.items, new.sources) == (full.items, full.sources), key
        assert new.scores == pytest.approx(full.scores, rel=1e-6)
    shared = [key for key in nights.full if key[0] != "user"]
    assert shared == [key for key in nights.after if key[0] != "user"]
    for key in shared:
        assert (nights.after[key].items, nights.after[key].scores) == (nights.full[key].items, nights.full[key].scores)
    started = {nights.after["user", key].scored_at for key in nights.why} | {
        nights.after[key].scored_at for key in shared
    }
    assert len(started) == 1


def test_nobody_is_carried_who_would_have_another_list(nights):
    """Reasons: a new user, events of tonight and late ones, yesterday's activity, an item that became blocked, the turn."""
    assert nights.why["newcomer"] == "new"
    assert nights.why[nights.late] == nights.why["u06"] == "changed"
    assert nights.why["u00"] == "active"
    assert nights.why[nights.blocked] == "touched"
    assert nights.item in nights.before["user", nights.blocked].items
    assert nights.item not in nights.after["user", nights.blocked].items
    assert "turn" in nights.why.values()


def test_manifest_and_report_count_both(nights):
    """Scored and carried are all users with a list; reasons sum to the scored; the first night says why it made everybody's."""
    counts = nights.second.line()["lists"]
    manifest = nights.place.run(nights.second).read("manifest.json")

    assert counts["scored"] == len(nights.why) == sum(counts["reasons"].values())
    assert counts["scored"] + counts["carried"] == nights.second.line()["rows"]["user"] == USERS + 1
    assert manifest["stages"]["due"].items() >= counts.items()
    assert manifest["identity"]["parent"] == {"lists": nights.first.line()["run_id"]}
    assert nights.first.line()["lists"] == {
        "scored": USERS,
        "carried": 0,
        "reasons": {"no run of an earlier day is published": USERS},
    }


def test_after_max_age_nights_every_list_is_new(nights):
    """MAX_AGE days after the first night none of its lists is left, though two nights between were missed."""
    write_table(events_until(last := DAY + timedelta(days=MAX_AGE)), nights.place.folder / "events.parquet")

    report = nights.place.night(last)

    when = {served.scored_at for served in built(nights.place.run(report)).values()}
    first = nights.before["user", "u00"].scored_at
    assert report.line()["lists"]["carried"] > 0
    assert first not in when


def test_other_settings_no_parent_and_damage_make_everybodys_list(nights, tmp_path, spark):
    """Each is said, and the digest then covers no parent; damaged lists are not measured either, and end no night."""
    runs, settings = tmp_path / "runs", nights.place.settings()
    shutil.copytree(settings.paths.runs, runs)
    parent = parent_of(runs, NEXT)

    assert origin_of(parent, settings) == Origin(runs / nights.first.line()["run_id"])
    assert origin_of(None, settings).why == "no run of an earlier day is published"
    assert origin_of(parent, nights.place.settings("als.factors=9")).why.endswith("was made by other settings")
    assert origin_of(parent, nights.place.settings("incremental.max_age=0")).why == "incremental.max_age = 0"
    with data_path(parent.folder / "build", 1).open("ab") as damaged:
        damaged.write(b" ")
    assert origin_of(parent, settings).why == f"build of {parent.run_id} is not what was written"
    assert origin_of(parent, settings).taken is None
    assert served_previous(tmp_path, parent, spark.range(0), settings, NEXT)["why"] == origin_of(parent, settings).why


def test_lists_and_models_of_last_night_make_different_runs(tmp_path):
    """A parent whose lists or models are damaged between two tries of a night gives the second try another name."""
    origins = [Origin(tmp_path), Origin(tmp_path, models=tmp_path), Origin(None, models=tmp_path), Origin(None)]

    assert len({str(origin.taken) for origin in origins}) == 4


def test_models_begin_from_last_nights_and_the_run_says_so(nights, tmp_path):
    """Items of last night begin where they were, new ones anew; the digest covers the parent, what is measured begins from
    nothing, and without a whole parent so do the lists."""
    there = place(tmp_path, events_until(DAY), retrieve={"models": ["als"]}, als={"factors": 8, "warm_iterations": 1})
    first = there.night(DAY)
    write_table([*events_until(NEXT), event("newcomer", "brand new", NEXT)], tmp_path / "events.parquet")
    second = there.run(there.night(NEXT))
    settings, parent = there.settings(), parent_of(there.settings().paths.runs, NEXT)

    assert there.run(first).counts("train")["als_begun_from"] == 0
    assert second.counts("train")["als_begun_from"] == second.counts("train")["items"] - 1 == CATALOGUE
    assert second.within("holdout").counts("train")["als_begun_from"] == 0
    assert second.read("manifest.json")["identity"]["parent"] == {"models": first.line()["run_id"]}
    assert origin_of(parent, there.settings("als.warm_iterations=0")).taken is None
    with next((parent.folder / "train").rglob("item_factors.npy")).open("ab") as damaged:
        damaged.write(b" ")
    assert origin_of(parent, settings).taken is None


def test_the_gate_looks_at_carried_lists_too(nights, tmp_path):
    """A blocked item that is planted into a carried list is a leak."""
    folder = nights.place.run(nights.second).folder
    write_bucket(tmp_path, "", 0, read_bucket(folder / "build", 0), 0.0)
    assert bucket_facts(folder / "dataset", tmp_path, 0)["leaks"].to_pylist() == [0]
    rows = read_bucket(folder / "build", 0).to_pylist()
    users = {row[USER_ID]: row for row in read_bucket(folder / "dataset", 0).to_pylist()}
    names = pq.read_table(folder / "dataset" / ITEMS_FILE)[ITEM_ID].to_pylist()
    victim = next(row for row in rows if row["key"] not in nights.why)
    victim[ITEMS][2] = names[users[victim["key"]]["seen"][0]]

    write_bucket(tmp_path, "", 0, pa.Table.from_pylist(rows, schema=LISTS), 0.0)

    assert bucket_facts(folder / "dataset", tmp_path, 0)["leaks"].to_pylist() == [1]


@given(st.integers(-(2**63), 2**63 - 1), st.integers(1, 40), st.lists(st.integers(1, 9), min_size=1, max_size=60))
def test_no_list_grows_older_than_max_age_however_nights_are_missed(history, max_age, gaps):
    """Carried from night to night while it is not the user's turn, a list is younger than max_age, whatever days are left out."""
    made = day = date(2026, 1, 1)
    for gap in gaps:
        day += timedelta(days=gap)
        if has_turn(np.array([history]), max_age, day, gap)[0]:
            made = day
        assert (day - made).days < max_age


class TestDue:
    """Two nights of a few users, each a row (user, items, history); items are numbered anew each night."""

    def due(self, folder: Path, tonight: dict[str, Any], ids: list[str], eligible: list[bool]) -> dict[str, str]:
        """Last night `a` and `b` had x and y, and lists of v and w; tonight's users are `tonight`."""
        last = folder / f"{DAY:%Y%m%d}_1"
        self.write(last / "dataset", {name: {"items": [2, 3]} for name in "ab"}, ["v", "w", "x", "y"], [True] * 4)
        lists = [("user", name, ["v", "w"], [2.0, 1.0], ["als", "als"], at(DAY)) for name in "ab"]
        rows = [dict(zip(LISTS.names, row, strict=True)) for row in lists]
        (last / "build").mkdir()
        write_bucket(last / "build", "", 0, pa.Table.from_pylist(rows, schema=LISTS), 0.0)
        self.write(folder / "dataset", tonight, ids, eligible)
        settings = IncrementalSettings(max_age=1_000_000, active_days=1.0)
        found = bucket_due(folder / "dataset", Origin(last), settings, self.n, NEXT, 0)
        return {row[USER_ID]: row[REASON] for row in found.to_pylist()}

    n = 2

    def write(self, folder: Path, users: dict[str, Any], ids: list[str], eligible: list[bool]) -> None:
        folder.mkdir(parents=True)
        pq.write_table(pa.table({"item": range(len(ids)), ITEM_ID: ids, "eligible": eligible}), folder / ITEMS_FILE)
        rows = []
        for name, given_ in users.items():
            size = len(given_["items"])
            usual = {
                USER_ID: name,
                "weights": [1.0] * size,
                "ages": [5.0] * size,
                "seen": given_["items"],
                "blocked": [],
                HISTORY: 1,
            }
            rows.append(usual | given_)
        write_bucket(folder, "", 0, pa.Table.from_pylist(rows, schema=users_schema(())), 0.0)

    def test_items_are_known_by_their_ids(self, tmp_path):
        """Nobody is due when all numbers have moved by a new item in front."""
        same = {name: {"items": [3, 4]} for name in "ab"}
        assert self.due(tmp_path, same, ["u", "v", "w", "x", "y"], [True] * 5) == {}

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ({HISTORY: 2}, "changed"),
            ({"ages": [5.0, 0.5]}, "active"),
            ({"blocked": [1]}, "touched"),
        ],
    )
    def test_each_reason_is_for_the_one_whom_it_touches(self, tmp_path, change, reason):
        """b is as before, and carried; a is not."""
        tonight = {"a": {"items": [2, 3]} | change, "b": {"items": [2, 3]}}
        assert self.due(tmp_path, tonight, ["v", "w", "x", "y"], [True] * 4) == {"a": reason}

    @pytest.mark.parametrize(
        ("ids", "eligible"), [(["v", "w", "x", "y"], [True, False, True, True]), (["v", "w1", "x", "y"], [True] * 4)]
    )
    def test_an_item_that_is_unavailable_or_gone_is_for_everybody_who_has_it(self, tmp_path, ids, eligible):
        """Both lists hold w."""
        same = {name: {"items": [2, 3]} for name in "ab"}
        assert self.due(tmp_path, same, ids, eligible) == {"a": "touched", "b": "touched"}

    def test_a_short_list_has_room_for_what_becomes_eligible(self, tmp_path):
        """Lists of two are short where a full one has three; who comes new has none, and who has no history gets none."""
        self.n = 3
        tonight = {"a": {"items": [2, 3]}, "c": {"items": [2]}, "d": {"items": []}}
        assert self.due(tmp_path, tonight, ["v", "w", "x", "y"], [True] * 4) == {"a": "short", "c": "new"}

    def test_with_no_user_at_all_nobody_is_due(self, tmp_path):
        """An empty bucket stays empty."""
        assert self.due(tmp_path, {}, ["v"], [True]) == {}
