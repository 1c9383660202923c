"""Stage 2 against a plain-Python reference: one row a user, arrays ascending by item number, and who may be shown what."""

import math
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyspark.sql import DataFrame, SparkSession

from jobs.buckets import Buckets, is_done
from jobs.config import DatasetSettings
from jobs.dataset import Dataset, stratified
from jobs.identity import end_of
from jobs.inputs import Inputs, RawTable, table_of
from jobs.progress import Progress
from jobs.run import Counts
from jobs.stages.dataset import SMALLEST, assemble
from schemas.columns import BLOCKS_TABLE, EVENTS_TABLE, ITEMS_TABLE, USERS_TABLE, InputTable
from schemas.errors import InputError
from tests.nights import DAY, at
from tests.test_lists import write_dataset

END = end_of(DAY)
PARTS = 3
CLEAN = {
    "user_id": pa.string(),
    "item_id": pa.string(),
    "event": pa.string(),
    "ts": pa.timestamp("us", "UTC"),
    "weight": pa.float64(),
}
PLAIN = DatasetSettings(scale="linear", half_life_days=0)
Row = dict[str, Any]


def clean(user: str, item: str, weight: float = 1.0, age_days: float = 0.5, event: str = "watch") -> Row:
    """One event as stage 1 keeps it."""
    return {"user_id": user, "item_id": item, "event": event, "ts": END - timedelta(days=age_days), "weight": weight}


def random_events(count: int = 3_000) -> list[Row]:
    """Events of 60 users and 40 items over a year; a fifth are impressions, and some users have nothing else."""
    rng = np.random.default_rng(11)
    users, items = rng.integers(0, 60, count), rng.zipf(1.5, count) % 40
    ages, weights = rng.uniform(0, 365, count), rng.choice([0.0, 0.25, 1.0, 2.5, 3.75], count)
    shown = (rng.random(count) < 0.2) | (users >= 57)
    kinds = np.where(shown, "impression", "watch")
    return [
        clean(f"u{user}", f"i{item:x}", float(weight * (kind != "impression")), round(float(age), 5), str(kind))
        for user, item, weight, age, kind in zip(users, items, weights, ages, kinds, strict=True)
    ]


def frame(spark: SparkSession, path: Path, rows: Sequence[Row]) -> DataFrame:
    """Rows as clean events, read from several files."""
    path.mkdir(parents=True)
    for number in range(3):
        part = pa.Table.from_pylist(list(rows[number::3]), schema=pa.schema(list(CLEAN.items())))
        pq.write_table(part, path / f"{number}.parquet")
    return spark.read.parquet(str(path))


def side(
    spark: SparkSession, path: Path, table: InputTable, rows: Sequence[Row], schema: pa.Schema | None = None
) -> RawTable:
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), path)
    return table_of(spark.read.parquet(str(path)), table, {}, {})


def stage(
    spark: SparkSession,
    folder: Path,
    rows: Sequence[Row],
    settings: DatasetSettings = PLAIN,
    segments: Sequence[str] = (),
    **tables: RawTable,
) -> tuple[Path, Counts]:
    """Stage 2 over these events."""
    events = frame(spark, folder / "events", rows)
    raw = table_of(events, EVENTS_TABLE, {}, {})
    inputs = Inputs(raw, *(tables.get(name) for name in ("items", "users", "blocks")))
    buckets = Buckets(spark, "digest", PARTS, Progress())
    out = folder / "dataset"
    return out, assemble(out, buckets, events, inputs, settings, DAY, segments)


def items_of(out: Path) -> list[Row]:
    return pq.read_table(out / "items.parquet").to_pylist()


def users_of(out: Path) -> dict[str, Row]:
    """All users' rows with item ids for numbers; a user in two buckets fails."""
    ids = [row["item_id"] for row in items_of(out)]
    users: dict[str, Row] = {}
    for path in sorted(out.glob("bucket-*.parquet")):
        for row in pq.read_table(path).to_pylist():
            assert row["user_id"] not in users
            for name in ("items", "seen", "blocked"):
                assert row[name] == sorted(set(row[name])), "ascending, each once"
                row[name] = [ids[number] for number in row[name]]
            users[row["user_id"]] = row
    return users


def reference(rows: Sequence[Row], settings: DatasetSettings) -> dict[str, Row]:
    """What stage 2 promises, in plain Python."""
    users: dict[str, Row] = {}
    for user in {row["user_id"] for row in rows}:
        pairs: dict[str, list[Row]] = {}
        for row in rows:
            if row["user_id"] == user:
                pairs.setdefault(row["item_id"], []).append(row)
        found: Row = {"items": [], "weights": [], "ages": [], "seen": []}
        for item in sorted(pairs):
            positive = [row for row in pairs[item] if row["weight"] > 0]
            if positive or (settings.impressions_seen and any(row["event"] == "impression" for row in pairs[item])):
                found["seen"].append(item)
            if positive:
                total = sum(row["weight"] for row in positive)
                age = (END - max(row["ts"] for row in positive)).total_seconds() / 86_400
                weight = math.log1p(total) if settings.scale == "log" else total
                decay = 0.5 ** (age / settings.half_life_days) if settings.half_life_days else 1.0
                found["items"].append(item)
                found["weights"].append(max(weight * decay, SMALLEST))
                found["ages"].append(age)
        users[user] = found
    return users


@pytest.fixture(scope="module")
def events() -> list[Row]:
    """The random events of this module."""
    return random_events()


# Weights


SETTINGS = {
    "linear": PLAIN,
    "log, half-life": DatasetSettings(scale="log", half_life_days=30),
    "linear, short half-life, impressions seen": DatasetSettings(
        scale="linear", half_life_days=1, impressions_seen=True
    ),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_the_dataset_equals_a_plain_python_reference(
    spark: SparkSession, tmp_path: Path, events: list[Row], name: str
) -> None:
    """Every user, item, weight, age and seen item of 3,000 random events, under each scale and decay."""
    out, counts = stage(spark, tmp_path, events, SETTINGS[name])
    found, expected = users_of(out), reference(events, SETTINGS[name])

    assert found.keys() == expected.keys()
    for user, row in expected.items():
        assert found[user]["items"] == row["items"]
        assert found[user]["seen"] == row["seen"]
        np.testing.assert_allclose(found[user]["weights"], row["weights"], rtol=1e-6, err_msg=user)
        np.testing.assert_allclose(found[user]["ages"], row["ages"], rtol=1e-6, err_msg=user)
        assert found[user]["blocked"] == []
    assert counts == {
        "rows": len(expected),
        "users_with_history": sum(bool(row["items"]) for row in expected.values()),
        "pairs": sum(len(row["items"]) for row in expected.values()),
        "items": len({row["item_id"] for row in events}),
        "eligible": len({row["item_id"] for row in events}),
        "unlisted": len({row["item_id"] for row in events}),
    }


def test_items_are_numbered_in_the_order_of_their_ids(spark: SparkSession, tmp_path: Path) -> None:
    """By code point, as Python sorts: 10 before 9, capitals first, other alphabets last; items of impressions count too."""
    ids = ["10", "9", "a", "B", "ü", "日本", "😀", "a/b", "-"]
    out, _ = stage(spark, tmp_path, [clean("u", item) for item in ids] + [clean("u", "shown", 0.0, event="impression")])
    items = items_of(out)

    assert [row["item_id"] for row in items] == sorted([*ids, "shown"])
    assert [row["item"] for row in items] == list(range(len(items)))


def test_each_bucket_is_sorted_by_user_and_closed_by_its_record(
    spark: SparkSession, tmp_path: Path, events: list[Row]
) -> None:
    """Users lie where their hash says, also where a bucket has none; nothing else is left in the folder."""
    out, _ = stage(spark, tmp_path, events[:5])
    files = {f"bucket-{bucket:05d}.{kind}" for bucket in range(PARTS) for kind in ("parquet", "json")} | {
        "items.parquet"
    }

    assert {path.name for path in out.iterdir()} == files
    assert all(is_done(out, bucket, "digest") for bucket in range(PARTS))
    for path in out.glob("bucket-*.parquet"):
        users = pq.read_table(path)["user_id"].to_pylist()
        assert users == sorted(users)


def test_output_does_not_depend_on_partitions_or_on_the_order_of_rows(
    spark: SparkSession, tmp_path: Path, events: list[Row]
) -> None:
    """One and four shuffle partitions, rows reversed: the arrays are equal to the last bit, also with logs and decay."""
    settings = SETTINGS["log, half-life"]
    before = spark.conf.get("spark.sql.shuffle.partitions")
    outs = []
    try:
        for partitions, rows in (("1", events), ("4", events[::-1])):
            spark.conf.set("spark.sql.shuffle.partitions", partitions)
            outs.append(stage(spark, tmp_path / partitions, rows, settings)[0])
    finally:
        spark.conf.set("spark.sql.shuffle.partitions", before)

    for path in sorted(outs[0].glob("*.parquet")):
        assert pq.read_table(path).equals(pq.read_table(outs[1] / path.name)), path.name


def test_a_sum_of_weights_does_not_depend_on_their_order(spark: SparkSession, tmp_path: Path) -> None:
    """Weights whose sum in floats falls to either side of a float32, by their order: all 24 orders give one weight."""
    orders = list(permutations([16_777_216.1, 0.7, 0.1, 0.1]))
    assert len({np.float32(sum(order)) for order in orders}) == 2
    rows = [clean(f"u{number:02d}", "i", weight) for number, order in enumerate(orders) for weight in order]
    out, _ = stage(spark, tmp_path, rows)

    assert [row["weights"] for row in users_of(out).values()] == [[16_777_216.0]] * len(orders)


def test_a_decayed_weight_is_never_0(spark: SparkSession, tmp_path: Path) -> None:
    """A positive that underflowed would come to mean "not seen": even after a thousand half-lives it is a float above 0."""
    rows = [
        clean("u", "old", age_days=4_000),
        clean("u", "older", 1e-6, age_days=9_000),
        clean("u", "new", age_days=0.0001),
    ]
    out, _ = stage(spark, tmp_path, rows, DatasetSettings(scale="linear", half_life_days=2))
    (user,) = users_of(out).values()

    assert user["items"] == ["new", "old", "older"]
    assert all(np.float32(weight) > 0 for weight in user["weights"])
    assert user["weights"][0] == pytest.approx(1.0, rel=1e-3)


def test_a_pair_s_age_is_that_of_its_latest_positive_event(spark: SparkSession, tmp_path: Path) -> None:
    """Seeing a thumbnail yesterday does not make last month's watching fresh."""
    rows = [clean("u", "i", 1.0, 30), clean("u", "i", 1.0, 40), clean("u", "i", 0.0, 1, "impression")]
    out, _ = stage(spark, tmp_path, rows)

    assert users_of(out)["u"]["ages"] == [30.0]
    assert users_of(out)["u"]["weights"] == [2.0]


def test_impressions_enter_no_weights_and_are_seen_only_when_asked(spark: SparkSession, tmp_path: Path) -> None:
    """A user who was only shown items has a row without a history; what counts as seen is a setting."""
    rows = [
        clean("u", "watched"),
        clean("u", "shown", 0.0, event="impression"),
        clean("v", "shown", 0.0, event="impression"),
    ]
    rows.append(clean("u", "disliked", 0.0))
    plain, counts = stage(spark, tmp_path / "plain", rows)
    asked, _ = stage(spark, tmp_path / "asked", rows, PLAIN.model_copy(update={"impressions_seen": True}))

    assert {user: (row["items"], row["seen"]) for user, row in users_of(plain).items()} == {
        "u": (["watched"], ["watched"]),
        "v": ([], []),
    }
    assert {user: (row["items"], row["seen"]) for user, row in users_of(asked).items()} == {
        "u": (["watched"], ["shown", "watched"]),
        "v": ([], ["shown"]),
    }
    assert (counts["rows"], counts["users_with_history"], counts["pairs"], counts["items"]) == (2, 1, 1, 3)


def test_an_impression_with_a_weight_is_a_positive(spark: SparkSession, tmp_path: Path) -> None:
    """Who configures a weight for impressions gets them in the matrix, and their items are seen."""
    out, _ = stage(spark, tmp_path, [clean("u", "i", 0.1, event="impression")])

    assert users_of(out)["u"]["seen"] == ["i"]
    assert users_of(out)["u"]["weights"] == [np.float32(0.1)]


def test_without_any_weight_there_is_nothing_to_learn_from(spark: SparkSession, tmp_path: Path) -> None:
    """A day of impressions only stops the night, and the message says where to look."""
    rows = [clean("u", "i", 0.0, event="impression"), clean("v", "i", 0.0, event="impression")]
    with pytest.raises(InputError, match=r"no event has a weight above 0.*events\.weights.*impressions"):
        stage(spark, tmp_path, rows)


# Who may be shown what


def moment(day: int = 0, seconds: float = 0.0) -> datetime:
    """So many days and seconds after the end of D, UTC."""
    return END + timedelta(days=day, seconds=seconds)


AVAILABLE: dict[str, tuple[list[tuple[datetime | None, datetime | None]], bool]] = {
    "no dates": ([(None, None)], True),
    "from long ago": ([(at(DAY) - timedelta(days=900), None)], True),
    "from the end of D": ([(moment(), None)], True),
    "from just after the end of D": ([(moment(seconds=1e-6), None)], False),
    "from next year": ([(moment(365), None)], False),
    "until just after the end of D + 1": ([(None, moment(1, 1e-6))], True),
    "until the end of D + 1": ([(None, moment(1))], False),
    "until noon of D + 1": ([(None, moment(0, 43_200))], False),
    "until last year": ([(None, moment(-365))], False),
    "from and until": ([(moment(-9), moment(9))], True),
    "from after until": ([(moment(9), moment(-9))], False),
    "listed twice, both available": ([(None, None), (moment(-1), moment(30))], True),
    "listed twice, one withdrawn": ([(None, None), (None, moment(-1))], False),
}


def test_an_item_is_available_on_the_whole_day_that_its_list_is_served(spark: SparkSession, tmp_path: Path) -> None:
    """Available: from not after the end of D, until empty or after the end of D + 1; to the microsecond."""
    listed = [
        {"item_id": name, "available_from": since, "available_until": until}
        for name, (dates, _) in AVAILABLE.items()
        for since, until in dates
    ]
    stamp = pa.timestamp("us", "UTC")
    schema = pa.schema([("item_id", pa.string()), ("available_from", stamp), ("available_until", stamp)])
    catalogue = side(
        spark, tmp_path / "items.parquet", ITEMS_TABLE, [*listed, listed[0] | {"item_id": "no event"}], schema
    )
    rows = [clean("u", name) for name in AVAILABLE] + [clean("u", "unlisted")]
    out, counts = stage(spark, tmp_path, rows, items=catalogue)
    found = {row["item_id"]: row["eligible"] for row in items_of(out)}

    assert found == {name: available for name, (_, available) in AVAILABLE.items()} | {"unlisted": True}
    assert counts["unlisted"] == 1
    assert counts["eligible"] == sum(found.values())
    assert Dataset(out).eligible().tolist() == [found[name] for name in sorted(found)]


def test_dates_that_can_not_be_read_make_an_item_unavailable(spark: SparkSession, tmp_path: Path) -> None:
    """Showing what must not be shown is the worse mistake; an empty field of a CSV is no date, and no hindrance."""
    lines = [
        "item_id,available_from,available_until",
        "fine,2026-01-01,",
        "typo,,31.12.2026",
        "typo in from,soon,",
        "free,,",
    ]
    (tmp_path / "items.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    catalogue = table_of(spark.read.csv(str(tmp_path / "items.csv"), header=True), ITEMS_TABLE, {}, {})
    out, _ = stage(spark, tmp_path, [clean("u", line.split(",")[0]) for line in lines[1:]], items=catalogue)

    assert {row["item_id"]: row["eligible"] for row in items_of(out)} == {
        "fine": True,
        "free": True,
        "typo": False,
        "typo in from": False,
    }


def test_an_empty_text_and_nan_are_no_dates(spark: SparkSession, tmp_path: Path) -> None:
    """A hole is a hole however the file writes it: a catalogue of pandas does not lose all its items without an end."""
    dates = [("hole", "", float("nan")), ("ended", "2026-01-01", 1e9), ("soon", " ", END.timestamp() - 86_400)]
    listed = [{"item_id": item, "available_from": since, "available_until": until} for item, since, until in dates]
    catalogue = side(spark, tmp_path / "items.parquet", ITEMS_TABLE, listed)
    out, _ = stage(spark, tmp_path, [clean("u", item) for item, *_ in dates], items=catalogue)

    assert {row["item_id"]: row["eligible"] for row in items_of(out)} == {"hole": True, "ended": False, "soon": False}


def test_blocks_for_everyone_and_for_one_user(spark: SparkSession, tmp_path: Path) -> None:
    """A block without a user makes an item ineligible, one with a user lies in that user's row; who is unknown is nobody."""
    blocks = [
        {"item_id": "everyone", "user_id": None},
        {"item_id": "everyone too", "user_id": ""},
        {"item_id": "everyone too", "user_id": "u"},
        {"item_id": "mine", "user_id": "u"},
        {"item_id": "mine", "user_id": "u"},
        {"item_id": "another", "user_id": "u"},
        {"item_id": "nobody has seen it", "user_id": "u"},
        {"item_id": "mine", "user_id": "stranger"},
    ]
    table = side(spark, tmp_path / "blocks.parquet", BLOCKS_TABLE, blocks)
    items = ["another", "everyone", "everyone too", "free", "mine"]
    out, counts = stage(spark, tmp_path, [clean("v", item) for item in items] + [clean("u", "free")], blocks=table)
    users = users_of(out)

    assert {row["item_id"]: row["eligible"] for row in items_of(out)} == {
        item: not item.startswith("everyone") for item in items
    }
    assert (users["u"]["blocked"], users["v"]["blocked"]) == (["another", "everyone too", "mine"], [])
    assert (counts["rows"], counts["eligible"]) == (2, 3)


def test_a_table_of_blocks_without_users_blocks_for_everyone(spark: SparkSession, tmp_path: Path) -> None:
    """The shortest table of blocks is a list of items; available and blocked is still blocked."""
    blocks = side(spark, tmp_path / "blocks.parquet", BLOCKS_TABLE, [{"item_id": "a"}])
    catalogue = side(spark, tmp_path / "items.parquet", ITEMS_TABLE, [{"item_id": "a"}, {"item_id": "b"}])
    out, _ = stage(spark, tmp_path, [clean("u", "a"), clean("u", "b")], blocks=blocks, items=catalogue)

    assert {row["item_id"]: row["eligible"] for row in items_of(out)} == {"a": False, "b": True}


def test_segments_are_each_user_s_own_values_as_text(spark: SparkSession, tmp_path: Path) -> None:
    """Null for users whom the table does not have; of two rows the smaller value, whatever the order; no user is lost."""
    people: list[Mapping[str, Any]] = [
        {"user_id": "u", "country": "GB", "birth_year": 1990},
        {"user_id": "v", "country": None, "birth_year": 2001},
        {"user_id": "w", "country": "US", "birth_year": None},
        {"user_id": "w", "country": "DE", "birth_year": None},
        {"user_id": "no event", "country": "FR", "birth_year": 1},
    ]
    table = side(spark, tmp_path / "users.parquet", USERS_TABLE, [dict(person) for person in people])
    rows = [clean(user, "i") for user in ("u", "v", "w", "x")]
    out, counts = stage(spark, tmp_path, rows, segments=("country", "birth_year"), users=table)
    found = {user: (row["segment_country"], row["segment_birth_year"]) for user, row in users_of(out).items()}

    assert found == {"u": ("GB", "1990"), "v": (None, "2001"), "w": ("DE", None), "x": (None, None)}
    assert counts["rows"] == 4
    labels = Dataset(out).training(("country",), seed=1).segments["country"].tolist()
    assert sorted(labels, key=str) == ["DE", "GB", None, None]
    asked = dict[str, str | None]()
    for bucket in range(len(list(out.glob("bucket-*.parquet")))):
        user_ids, users = Dataset(out).bucket(bucket)
        assert list(users.segments) == ["country", "birth_year"]
        asked |= dict(zip(user_ids.to_pylist(), users.segments["country"].tolist(), strict=True))
    assert asked == {user: country for user, (country, _) in found.items()}


# Reading it back


def test_a_bucket_reads_back_as_matrices_of_its_users(spark: SparkSession, tmp_path: Path) -> None:
    """Rows in the order of users, numbers as columns; excluded is seen or blocked; training leaves out who has no history."""
    blocks = side(spark, tmp_path / "blocks.parquet", BLOCKS_TABLE, [{"item_id": "c", "user_id": "u"}])
    rows = [clean("u", "a", 2.0), clean("v", "c", 3.0, 1.5), clean("w", "b", 0.0, event="impression")]
    out, _ = stage(spark, tmp_path, rows, blocks=blocks)
    data = Dataset(out)
    users: dict[str, tuple[list[float], list[float]]] = {}
    for bucket in range(PARTS):
        ids, found = data.bucket(bucket)
        for row, user in enumerate(ids.to_pylist()):
            users[user] = found.weights[row].toarray()[0].tolist(), (found.excluded[row].toarray()[0] > 0).tolist()

    assert data.item_ids().to_pylist() == ["a", "b", "c"]
    assert users == {
        "u": ([2.0, 0.0, 0.0], [True, False, True]),
        "v": ([0.0, 0.0, 3.0], [False, False, True]),
        "w": ([0.0, 0.0, 0.0], [False, False, False]),
    }
    training = data.training((), seed=1)
    assert training.weights.shape == (2, 3)
    assert training.ages.sum() == 2.0


class TestSampling:
    """Which users models learn from, where there are more than they may."""

    @given(
        lengths=st.lists(st.integers(0, 300), min_size=1, max_size=400),
        at_most=st.integers(1, 400),
        seed=st.integers(0, 9),
    )
    def test_busy_and_quiet_users_keep_their_share(self, lengths: list[int], at_most: int, seed: int) -> None:
        """Of each stratum of activity the same share stays, to the nearest user; who has no pair is never chosen."""
        pairs = np.array(lengths)
        chosen, active = stratified(pairs, at_most, seed), int((pairs > 0).sum())
        strata = [set(range(2**power, 2 ** (power + 1))) for power in range(9)]

        assert not chosen[pairs == 0].any()
        for stratum in strata:
            inside = np.isin(pairs, list(stratum))
            expected = inside.sum() * min(1.0, at_most / max(active, 1))
            assert abs(chosen[inside].sum() - expected) <= (0.5 if expected >= 1 else 1)
        assert chosen.sum() <= max(at_most + len(strata), 0)

    def test_a_seed_chooses_the_same_users(self) -> None:
        """And another seed others."""
        pairs = np.arange(1, 1_000)

        assert (stratified(pairs, 100, 1) == stratified(pairs, 100, 1)).all()
        assert (stratified(pairs, 100, 1) != stratified(pairs, 100, 2)).any()

    def test_training_reads_the_rows_of_those_who_were_chosen(self, tmp_path: Path) -> None:
        """Whole rows, in the dataset's order, from all buckets."""
        users = [(f"u{number:02d}", sorted({number, number // 2, 0})) for number in range(40)]
        data = Dataset(write_dataset(tmp_path / "data", [users[:25], [], users[25:]], [True] * 40))
        everyone, some = (data.training((), 7, max_users=most).weights for most in (None, 10))
        rows = {tuple(everyone[row].indices) for row in range(40)}

        assert everyone.shape == (40, 40)
        assert 10 <= some.shape[0] <= 13
        assert {tuple(some[row].indices) for row in range(some.shape[0])} <= rows
        assert data.training((), 7, max_users=10).ages.nnz == some.nnz
