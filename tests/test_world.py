"""The synthetic platform: what it promises to everybody who learns from it or tests with it."""

import hashlib
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import implicit
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import scipy.sparse as sp
from pyspark.sql import SparkSession

from jobs.world import Drift, World, affinity, generate
from jobs.world_model import CATEGORIES, FEWEST_ITEMS, POSITION_BIAS, TOPICS, TOPICS_EACH
from jobs.world_words import SUBJECTS, TOPIC_NAMES, title
from schemas.columns import BLOCKS_TABLE, EVENTS_TABLE, ITEMS_TABLE, USERS_TABLE

WORLD = World(users=1_500, items=600, days=14, bots=0.005, harmful=0.02)
SINCE = date(2026, 11, 16)
Tables = dict[str, pa.Table]


def tables_of(spark: SparkSession, world: World, folder: Path, files: int = 0) -> Tables:
    counts = generate(spark, world, folder, files)
    tables = {name: pq.read_table(folder / name) for name in counts}
    assert counts == {name: table.num_rows for name, table in tables.items()}
    return tables


@pytest.fixture(scope="module")
def tables(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Tables:
    """WORLD, with impressions."""
    return tables_of(spark, replace(WORLD, impressions=True), tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def calm(tables: Tables) -> pa.Table:
    """The watches and likes of WORLD as they are without drift and impressions."""
    events = tables["events"].filter(pc.field("event") != "impression")
    return events.set_column(events.schema.get_field_index("position"), "position", pa.nulls(len(events), pa.int32()))


def numbers(ids: pa.ChunkedArray) -> np.ndarray:
    """42 for u0000042."""
    return pc.cast(pc.utf8_slice_codeunits(ids, 1), pa.int64()).to_numpy()


def watches_of(tables: Tables) -> pa.Table:
    """The watches of people, with user, item, day (from 0) and topic as numbers."""
    watches = tables["events"].filter(pc.field("event") == "watch")
    user, item = numbers(watches["user_id"]), numbers(watches["item_id"])
    first = np.datetime64(WORLD.end) - (WORLD.days - 1)
    columns = {
        "user": user,
        "item": item,
        "day": (watches["ts"].to_numpy().astype("datetime64[D]") - first).astype(int),
        "topic": tables["truth_items"]["topic"].to_numpy()[item],
        "position": watches["position"],
    }
    people = ~tables["truth_users"]["is_bot"].to_numpy(zero_copy_only=False)[user]
    return pa.table(columns).filter(pa.array(people))


def since(events: pa.Table) -> np.ndarray:
    start = datetime.combine(SINCE, datetime.min.time(), UTC)
    return pc.greater_equal(events["ts"], pa.scalar(start, events.schema.field("ts").type)).to_numpy()


# What it does not depend on


def test_the_number_of_files_changes_no_row(spark: SparkSession, tmp_path: Path) -> None:
    """One file or four: the same rows in the same order, in every table."""
    world = World(users=300, items=80, days=5, impressions=True)
    one, four = (tables_of(spark, world, tmp_path / str(files), files) for files in (1, 4))
    assert len(list((tmp_path / "4" / "events").glob("*.parquet"))) == 4
    for name in one:
        assert one[name].equals(four[name]), name


def test_a_smaller_world_in_the_same_folder_leaves_nothing_behind(spark: SparkSession, tmp_path: Path) -> None:
    generate(spark, World(users=60, items=50, days=2), tmp_path, files=3)
    tables = tables_of(spark, World(users=30, items=40, days=2), tmp_path, files=1)
    assert tables["users"].num_rows == 30
    assert tables["items"].num_rows == 40


def test_more_users_leave_the_first_ones_as_they_are(spark: SparkSession, tmp_path: Path) -> None:
    few, many = (tables_of(spark, World(users=n, items=80, days=10), tmp_path / str(n)) for n in (200, 400))
    assert few["items"].equals(many["items"])
    for name in ("events", "users", "truth_users"):
        first = many[name].filter(pc.field("user_id") < "u0000200")
        assert few[name].equals(first.combine_chunks()), name
        assert first.num_rows < many[name].num_rows


def test_another_seed_is_another_platform(spark: SparkSession, tmp_path: Path) -> None:
    one, two = (tables_of(spark, World(users=50, items=50, days=3, seed=n), tmp_path / str(n)) for n in (1, 2))
    for name in one:
        assert not one[name].equals(two[name]), name


def test_spark_reads_the_columns_that_the_jobs_expect(spark: SparkSession, tmp_path: Path) -> None:
    generate(spark, World(users=40, items=40, days=2), tmp_path)
    for table in (EVENTS_TABLE, ITEMS_TABLE, USERS_TABLE, BLOCKS_TABLE):
        frame = spark.read.parquet(str(tmp_path / table.name))
        assert dict(frame.dtypes) == {column.name: column.type for column in table.columns}


def test_a_world_without_enough_to_watch_is_refused() -> None:
    with pytest.raises(ValueError, match=f"{FEWEST_ITEMS} items"):
        World(items=FEWEST_ITEMS - 1)


def test_the_smallest_worlds_work(spark: SparkSession, tmp_path: Path) -> None:
    tables = tables_of(spark, World(users=1, items=FEWEST_ITEMS, days=1, impressions=True), tmp_path)
    assert tables["users"].num_rows == 1


# What it looks like


def test_every_event_is_possible(tables: Tables) -> None:
    """It lies in the world's days, after its user joined, and while its video was up."""
    events, items, users = tables["events"], tables["items"], tables["users"]
    ts = events["ts"].to_numpy()
    assert ts.min() >= np.datetime64(WORLD.end - timedelta(days=WORLD.days - 1))
    assert ts.max() < np.datetime64(WORLD.end + timedelta(days=1))
    item, user = numbers(events["item_id"]), numbers(events["user_id"])
    assert (ts >= items["available_from"].to_numpy()[item]).all()
    ends = pc.fill_null(items["available_until"], pa.scalar(datetime(2100, 1, 1, tzinfo=UTC), ts_type(items)))
    assert (ts < ends.to_numpy()[item]).all()
    assert (ts >= users["created_at"].to_numpy()[user]).all()


def ts_type(items: pa.Table) -> pa.DataType:
    return items.schema.field("available_until").type


def test_events_are_sorted_by_user_and_time(tables: Tables) -> None:
    events = tables["events"]
    user, ts = numbers(events["user_id"]), events["ts"].to_numpy().astype(np.int64)
    assert (np.diff(user) >= 0).all()
    assert (np.diff(ts)[np.diff(user) == 0] >= 0).all()


def test_only_watches_have_seconds_and_they_fit_the_video(tables: Tables) -> None:
    events = tables["events"]
    assert pc.equal(pc.is_valid(events["value"]), pc.equal(events["event"], "watch")).to_numpy().all()
    watches = events.filter(pc.field("event") == "watch")
    seconds = watches["value"].to_numpy()
    assert (seconds > 0).all()
    assert (seconds <= tables["items"]["duration_s"].to_numpy()[numbers(watches["item_id"])]).all()


def test_the_week_shows(tables: Tables) -> None:
    """Two whole weeks: more is watched on a Saturday than on a Tuesday by a quarter at least."""
    counts = np.bincount(watches_of(tables)["day"].to_numpy(), minlength=14).reshape(2, 7).sum(axis=0)
    start = (WORLD.end - timedelta(days=13)).weekday()
    by_weekday = np.roll(counts, start)
    assert by_weekday[5] > 1.25 * by_weekday[1]
    assert by_weekday.argmax() == 5


def test_few_videos_and_few_people_make_most_of_the_events(tables: Tables) -> None:
    watches = watches_of(tables)
    by_item = np.sort(np.bincount(watches["item"], minlength=WORLD.items))[::-1]
    assert by_item[: WORLD.items // 10].sum() > 0.35 * by_item.sum()
    by_user = np.bincount(watches["user"], minlength=WORLD.users)
    assert by_user.max() > 8 * np.median(by_user)
    assert by_user.mean() > 1.4 * np.median(by_user)


def test_users_and_videos_arrive_in_both_weeks_and_before(tables: Tables) -> None:
    start = np.datetime64(WORLD.end - timedelta(days=13))
    for column in (tables["users"]["created_at"], tables["items"]["published_at"]):
        weeks = (column.to_numpy() - start) // np.timedelta64(7, "D")
        assert {0, 1} < set(weeks.tolist())
        assert (weeks < 0).mean() > 0.5


def test_new_videos_draw_attention_while_they_are_fresh(tables: Tables) -> None:
    """In its first three days a video gets more watches a day than in the days after its first week."""
    watches = watches_of(tables)
    item, day = watches["item"].to_numpy(), watches["day"].to_numpy()
    start = np.datetime64(WORLD.end - timedelta(days=13))
    begins = (tables["items"]["available_from"].to_numpy() - start) / np.timedelta64(1, "D")
    fresh, stale, videos = 0, 0, np.flatnonzero((begins > 0) & (begins < 4))
    for video in videos:
        age = day[item == video] - begins[video]
        fresh, stale = fresh + (age < 3).sum() / 3, stale + (age >= 7).sum() / (14 - begins[video] - 7)
    assert len(videos) > 3
    assert fresh > 1.5 * stale


def test_durations_have_the_spread_of_real_ones(tables: Tables) -> None:
    logarithms = np.log(tables["items"]["duration_s"].to_numpy())
    assert logarithms.mean() == pytest.approx(4.23, abs=0.3)
    assert logarithms.std() == pytest.approx(1.03, abs=0.15)


def test_people_rarely_watch_again_and_bots_do_little_else(tables: Tables) -> None:
    watches = tables["events"].filter(pc.field("event") == "watch")
    pair = numbers(watches["user_id"]) * WORLD.items + numbers(watches["item_id"])
    bot = tables["truth_users"]["is_bot"].to_numpy(zero_copy_only=False)[numbers(watches["user_id"])]
    assert len(np.unique(pair[~bot])) > 0.95 * (~bot).sum()
    assert len(np.unique(pair[bot])) < 0.1 * bot.sum()


def test_bots_are_few_and_tireless(tables: Tables) -> None:
    bot = tables["truth_users"]["is_bot"].to_numpy(zero_copy_only=False)
    assert 2 <= bot.sum() < 0.02 * WORLD.users
    watches = tables["events"].filter(pc.field("event") == "watch")
    counts = np.bincount(numbers(watches["user_id"]), minlength=WORLD.users)
    assert counts[bot].mean() > 20 * counts[~bot].mean()
    seconds = watches["value"].to_numpy()[bot[numbers(watches["user_id"])]]
    assert seconds.max() == 3.0


def test_some_harmful_videos_carry_the_label_and_no_other_does(tables: Tables) -> None:
    harmful = tables["truth_items"]["is_harmful"].to_numpy(zero_copy_only=False)
    labelled = np.array(["harmful" in labels for labels in tables["items"]["labels"].to_pylist()])
    assert 2 <= harmful.sum() < 0.05 * WORLD.items
    assert 0 < labelled.sum() < harmful.sum()
    assert not (labelled & ~harmful).any()


def test_a_copy_is_later_than_its_original_and_looks_the_same(tables: Tables) -> None:
    rows = {row["item_id"]: row for row in tables["items"].to_pylist()}
    copies = [row for row in rows.values() if row["canonical_id"]]
    assert 1 <= len(copies) < 0.05 * WORLD.items
    for copy in copies:
        original = rows[copy["canonical_id"]]
        assert original["canonical_id"] is None
        assert original["published_at"] < copy["published_at"]
        for name in ("image_phash", "duration_s", "category"):
            assert original[name] == copy[name]


def test_some_videos_are_taken_down_and_some_go_up_late(tables: Tables) -> None:
    items = tables["items"]
    assert 0 < pc.sum(pc.is_valid(items["available_until"])).as_py() < 0.1 * WORLD.items
    late = pc.greater(items["available_from"], items["published_at"])
    assert 0 < pc.sum(late).as_py() < 0.1 * WORLD.items


def test_blocks_name_users_or_everybody(tables: Tables) -> None:
    blocks = tables["blocks"].to_pylist()
    assert {(row["user_id"] is None, row["reason"]) for row in blocks} == {(False, "user"), (True, "legal")}


def test_titles_differ_and_name_their_topic(tables: Tables) -> None:
    items = tables["items"].filter(pc.is_null(pc.field("canonical_id")))
    assert len(set(items["title"].to_pylist())) > 0.98 * len(items)
    for row in items.to_pylist():
        topic = (row["category"], row["tags"][0])
        assert row["title"].endswith("#" + row["tags"][0].replace(" ", ""))
        assert any(subject.lower() in row["title"].lower() for subject in SUBJECTS[TOPIC_NAMES.index(topic)])


def test_the_words_fit_the_model() -> None:
    """As many categories and topics as it counts, no topic twice, and titles enough for a large catalogue."""
    assert len(set(TOPIC_NAMES)) == len({topic for _, topic in TOPIC_NAMES}) == TOPICS
    assert [category for category, _ in TOPIC_NAMES[::TOPICS_EACH]] == list(
        dict.fromkeys(category for category, _ in TOPIC_NAMES)
    )
    assert TOPICS == CATEGORIES * TOPICS_EACH
    draws = np.random.default_rng(0).integers(2**63, size=2_000).tolist()
    assert len({title(0, creator, number) for creator, number in enumerate(draws)}) > 1_900


# Lists and positions


def test_what_was_watched_from_a_list_was_shown_there(tables: Tables) -> None:
    events = tables["events"]
    place = ["request_id", "item_id", "position"]
    shown = events.filter(pc.field("event") == "impression").select(place)
    assert pc.sum(pc.is_null(shown["position"])).as_py() == 0
    watched = events.filter((pc.field("event") == "watch") & pc.is_valid(pc.field("position"))).select(place)
    assert watched.join(shown, keys=place, join_type="left anti").num_rows == 0
    passed_over = shown.join(watched, keys=place[:2], right_keys=place[:2], join_type="left anti").select(place[:2])
    assert passed_over.num_rows > 3 * watched.num_rows
    assert passed_over.group_by(place[:2]).aggregate([]).num_rows == passed_over.num_rows


def test_the_top_of_a_list_is_watched_more_than_its_content_explains(tables: Tables) -> None:
    """Watches fall with the position by its power law, while what people like stands anywhere."""
    position = pc.drop_null(watches_of(tables)["position"]).to_numpy()
    counts = np.bincount(position, minlength=21)[1:]
    slope = np.polyfit(np.log(np.arange(1, 21)), np.log(counts), 1)[0]
    assert slope == pytest.approx(-POSITION_BIAS, abs=0.15)
    events = tables["events"].filter(pc.field("event") == "impression")
    appeal = np.log(tables["truth_items"]["appeal"].to_numpy()[numbers(events["item_id"])])
    assert abs(np.corrcoef(appeal, events["position"].to_numpy())[0, 1]) < 0.05


def test_impressions_change_nothing_but_positions(spark: SparkSession, calm: pa.Table, tmp_path: Path) -> None:
    assert tables_of(spark, WORLD, tmp_path)["events"].equals(calm.combine_chunks())


# Drift


def drifted(spark: SparkSession, calm: pa.Table, folder: Path, **switch: Any) -> tuple[Tables, pa.Table, pa.Table]:
    """The tables of a drifting world, and the events since the drift, with it and without; before, they must agree."""
    tables = tables_of(spark, replace(WORLD, drift=Drift(since=SINCE, **switch)), folder)
    events = tables["events"]
    assert events.filter(~since(events)).equals(calm.filter(~since(calm)).combine_chunks())
    return tables, events.filter(since(events)), calm.filter(since(calm))


def test_no_drift_without_a_switch(spark: SparkSession, calm: pa.Table, tmp_path: Path) -> None:
    _, events, before = drifted(spark, calm, tmp_path)
    assert events.equals(before.combine_chunks())


def test_interests_drift_for_a_share_of_users(spark: SparkSession, calm: pa.Table, tmp_path: Path) -> None:
    """Those who change watch by their new interests; the others' events stay as they are."""
    tables, events, before = drifted(spark, calm, tmp_path, interests=0.4)
    users = tables["truth_users"]
    changed = pc.is_valid(users["interests_after"]).to_numpy()
    assert changed.mean() == pytest.approx(0.4, abs=0.05)
    stays = [pa.array(~changed[numbers(table["user_id"])]) for table in (events, before)]
    assert events.filter(stays[0]).equals(before.filter(stays[1]).combine_chunks())
    theirs = events.filter(pa.array(changed[numbers(events["user_id"])]))
    user = numbers(theirs["user_id"])
    category = tables["truth_items"]["category"].to_numpy()[numbers(theirs["item_id"])]
    old = np.array(users["interests"].to_pylist())[user, category]
    new = np.array([row or [0.0] * CATEGORIES for row in users["interests_after"].to_pylist()])[user, category]
    assert new.mean() > 1.5 * old.mean()


def test_popularity_moves_to_other_categories(spark: SparkSession, calm: pa.Table, tmp_path: Path) -> None:
    tables, events, before = drifted(spark, calm, tmp_path, popularity=1.5)
    category = tables["truth_items"]["category"].to_numpy()
    shares = [
        np.bincount(category[numbers(table["item_id"])], minlength=CATEGORIES) / len(table)
        for table in (events, before)
    ]
    assert abs(shares[0] - shares[1]).sum() / 2 > 0.2


def test_lost_events_are_a_share_of_all_kinds(spark: SparkSession, calm: pa.Table, tmp_path: Path) -> None:
    _, events, before = drifted(spark, calm, tmp_path, lost=0.3)
    assert len(events) == pytest.approx(0.7 * len(before), rel=0.03)
    assert events.join(before, keys=["user_id", "item_id", "event", "ts"], join_type="left anti").num_rows == 0
    likes = [pc.sum(pc.equal(table["event"], "like")).as_py() for table in (events, before)]
    assert likes[0] == pytest.approx(0.7 * likes[1], rel=0.15)


def test_milliseconds_change_only_the_value(spark: SparkSession, calm: pa.Table, tmp_path: Path) -> None:
    _, events, before = drifted(spark, calm, tmp_path, milliseconds=True)
    assert events.drop(["value"]).equals(before.drop(["value"]).combine_chunks())
    seconds, reported = (pc.drop_null(table["value"]).to_numpy() for table in (before, events))
    assert np.array_equal(reported, seconds * 1000)


def test_a_flood_comes_from_a_new_country_and_on_top(spark: SparkSession, calm: pa.Table, tmp_path: Path) -> None:
    tables, events, before = drifted(spark, calm, tmp_path, flood=0.5)
    users = tables["users"]
    assert users.num_rows == 1.5 * WORLD.users
    new = users.filter(pc.field("user_id") >= f"u{WORLD.users:07d}")
    assert set(new["country"].to_pylist()) == {"ID"}
    assert "ID" not in users.slice(0, WORLD.users)["country"].to_pylist()
    assert pc.min(new["created_at"]).as_py() >= datetime.combine(SINCE, datetime.min.time(), UTC)
    flood = pc.greater_equal(events["user_id"], f"u{WORLD.users:07d}")
    assert events.filter(pc.invert(flood)).equals(before.combine_chunks())
    assert pc.sum(flood).as_py() > 0.1 * len(before)


# Truth


def test_people_follow_the_affinity(tables: Tables) -> None:
    """On the first day, those who know nothing yet and watch little watch each topic as often as it foretells."""
    watches = watches_of(tables)
    watches = watches.filter(pc.field("day") == 0)
    watches = watches.filter(pa.array(np.bincount(watches["user"])[watches["user"]] <= 3))
    share = affinity(WORLD, np.arange(WORLD.users), np.arange(WORLD.items), WORLD.end - timedelta(days=13))
    share /= share.sum(axis=1, keepdims=True)
    expected = np.bincount(
        tables["truth_items"]["topic"].to_numpy(), share[watches["user"].to_numpy()].sum(axis=0), minlength=TOPICS
    )
    observed = np.bincount(watches["topic"], minlength=TOPICS)
    likely = expected > 5
    assert likely.sum() > 20
    assert ((observed - expected)[likely] ** 2 / expected[likely]).mean() < 1.5


def ndcg(scores: np.ndarray, seen: np.ndarray, relevant: np.ndarray, k: int = 20) -> float:
    """Mean NDCG@k over the users who have something relevant; all arrays (users, items)."""
    order = np.argsort(-np.where(seen, -np.inf, scores), axis=1, kind="stable")[:, :k]
    discounts = 1 / np.log2(np.arange(2, k + 2))
    gains = np.take_along_axis(relevant, order, axis=1) @ discounts
    count = np.minimum(relevant.sum(axis=1), k).astype(int)
    return float((gains / np.cumsum(discounts)[count - 1])[count > 0].mean())


def test_als_beats_popularity_and_the_truth_beats_als(spark: SparkSession, tmp_path: Path) -> None:
    """Trained on 29 days, scored on the last one, on pairs that are new to the user."""
    world = World(users=3_000, items=1_000)
    tables = tables_of(spark, world, tmp_path)
    events = tables["events"].filter(pc.field("event") == "watch")
    last = events["ts"].to_numpy() >= np.datetime64(world.end)
    pairs = numbers(events["user_id"]), numbers(events["item_id"])
    shape = (world.users, world.items)
    past, future = (
        sp.csr_matrix((np.ones(mask.sum()), (pairs[0][mask], pairs[1][mask])), shape) for mask in (~last, last)
    )
    people = ~tables["truth_users"]["is_bot"].to_numpy(zero_copy_only=False)
    seen = past.toarray()[people] > 0
    relevant = (future.toarray()[people] > 0) & ~seen

    confidence = past.astype(np.float32)
    confidence.data = 1 + 2 * confidence.data
    model = implicit.als.AlternatingLeastSquares(
        factors=32, regularization=10, alpha=1, iterations=8, random_state=1, num_threads=1, use_gpu=False
    )
    model.fit(confidence, show_progress=False)
    als = ndcg((model.user_factors @ model.item_factors.T)[people], seen, relevant)
    popular = ndcg(np.broadcast_to((past > 0).sum(axis=0), seen.shape), seen, relevant)
    blind = ndcg(np.random.default_rng(0).random(seen.shape), seen, relevant)
    ideal = ndcg(affinity(world, np.flatnonzero(people), np.arange(world.items), world.end), seen, relevant)
    assert popular > 2 * blind
    assert als > 1.5 * popular
    assert ideal > 1.2 * als


def test_the_platform_is_frozen(spark: SparkSession, tmp_path: Path) -> None:
    """Figures measured on the world stay comparable: the same parameters are the same events, in this version and later."""
    events = tables_of(spark, World(users=100, items=50, days=5, impressions=True), tmp_path)["events"]
    lines = sorted(f"{row['user_id']} {row['item_id']} {row['event']} {row['ts']:%d %H}" for row in events.to_pylist())

    assert (events.num_rows, hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]) == (2_725, "5715dfa4292c1145")
