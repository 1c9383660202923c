"""Stage 1: every raw row up to the day is kept or has exactly one reason, and nothing is lost on the way."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from jobs.config import EventsSettings, RejectRule
from jobs.inputs import RawTable, read_frame, table_of
from jobs.run import Counts
from jobs.stages.events import JUDGEMENT, KEPT, REJECTED, clean, judged, weight_of
from schemas.columns import EVENTS_TABLE
from schemas.errors import InputError
from tests.nights import DAY, at

OUTSIDE = "outside"
"""What happens to a row later than the day: it is not even read."""

COLUMNS = {
    "user_id": "Customer",
    "item_id": "sku",
    "event": "kind",
    "ts": "when",
    "value": "price",
    "request_id": "label",
}
TYPES = {
    "label": pa.string(),
    "Customer": pa.string(),
    "sku": pa.string(),
    "kind": pa.string(),
    "when": pa.string(),
    "price": pa.string(),
    "Quantity": pa.int64(),
    "Invoice": pa.string(),
}
SETTINGS = EventsSettings(
    columns=COLUMNS,
    weights={"watch": 1.0, "like": 3.0, "skip": 0.0},
    use_value=True,
    reject=(
        RejectRule(reason="cancelled", where="Invoice LIKE 'C%'"),
        RejectRule(reason="non_positive_quantity", where="Quantity <= 0"),
    ),
)
GOOD = {"Customer": "u1", "sku": "i1", "kind": "watch", "when": f"{DAY} 12:00:00", "Quantity": 1, "Invoice": "5"}
MIDNIGHT = DAY + timedelta(days=1)

ROWS: dict[str, tuple[dict[str, Any], str]] = {
    "good": ({}, KEPT),
    "twice": ({}, KEPT),
    "no rule says yes": ({"Quantity": None, "Invoice": None}, KEPT),
    "no user": ({"Customer": None}, "missing_user_id"),
    "empty user": ({"Customer": ""}, "missing_user_id"),
    "no item": ({"sku": None}, "missing_item_id"),
    "empty item": ({"sku": ""}, "missing_item_id"),
    "user of 512 bytes": ({"Customer": "ü" * 256}, KEPT),
    "user of 513 bytes": ({"Customer": "ü" * 256 + "x"}, "bad_user_id"),
    "user with a line break": ({"Customer": "u\n1"}, "bad_user_id"),
    "user with a C1 control": ({"Customer": "u\x85"}, "bad_user_id"),
    "item of 512 bytes": ({"sku": "x" * 512}, KEPT),
    "item of 513 bytes": ({"sku": "x" * 513}, "bad_item_id"),
    "item with a tab": ({"sku": "i\t1"}, "bad_item_id"),
    "item with DEL": ({"sku": "i\x7f"}, "bad_item_id"),
    "item of another alphabet": ({"sku": "日本/語 %2F"}, KEPT),
    "no event": ({"kind": None}, "missing_event"),
    "empty event": ({"kind": ""}, "missing_event"),
    "unknown event": ({"kind": "Watch"}, "unknown_event"),
    "impression": ({"kind": "impression"}, KEPT),
    "kind of weight 0": ({"kind": "skip"}, KEPT),
    "no time": ({"when": None}, "bad_ts"),
    "unreadable time": ({"when": "yesterday"}, "bad_ts"),
    "1970": ({"when": "1970-01-01 00:00:00"}, "ts_too_early"),
    "just before the earliest": ({"when": "1989-12-31 23:59:59.999999"}, "ts_too_early"),
    "the earliest": ({"when": "1990-01-01"}, KEPT),
    "last moment of the day": ({"when": f"{DAY} 23:59:59.999999"}, KEPT),
    "first moment after the day": ({"when": f"{MIDNIGHT} 00:00:00"}, OUTSIDE),
    "year 2100": ({"when": "2100-01-01"}, OUTSIDE),
    "year 2100 and no user": ({"when": "2100-01-01", "Customer": None}, OUTSIDE),
    "the day after, by its zone still the day": ({"when": f"{MIDNIGHT}T01:00:00+02:00"}, KEPT),
    "price": ({"price": "2.5"}, KEPT),
    "no price": ({"price": None}, KEPT),
    "negative price": ({"price": "-2"}, KEPT),
    "price is text": ({"price": "free"}, "bad_value"),
    "price is NaN": ({"price": "NaN"}, "bad_value"),
    "price is infinite": ({"price": "-Infinity"}, "bad_value"),
    "price beyond all reason": ({"price": "1e13"}, "bad_value"),
    "cancelled": ({"Invoice": "C7"}, "cancelled"),
    "returned": ({"Quantity": -1}, "non_positive_quantity"),
    "quantity of 0": ({"Quantity": 0}, "non_positive_quantity"),
    "both rules": ({"Invoice": "C7", "Quantity": -1}, "cancelled"),
    "a rule and no user": ({"Quantity": 0, "Customer": None}, "non_positive_quantity"),
    "user before item": ({"sku": None, "Customer": None}, "missing_user_id"),
    "item before time": ({"sku": None, "when": None}, "missing_item_id"),
    "everything wrong but the user": ({"sku": "\t", "kind": "?", "when": "?", "price": "?"}, "bad_item_id"),
}


def rows() -> list[dict[str, Any]]:
    return [dict.fromkeys(TYPES) | GOOD | changes | {"label": label} for label, (changes, _) in ROWS.items()]


def raw(
    spark: SparkSession, path: Path, rows: Sequence[Mapping[str, Any]], settings: EventsSettings = SETTINGS
) -> RawTable:
    """These rows as a raw table of events, from a Parquet file."""
    names = {name: TYPES.get(name) for row in rows for name in row}
    schema = pa.schema([(name, kind) for name, kind in names.items() if kind]) if all(names.values()) else None
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), path)
    constants = {"event": settings.default_event} if settings.default_event else {}
    return table_of(read_frame(spark, str(path), "", {}, "input.events"), EVENTS_TABLE, settings.columns, constants)


@dataclass
class Cleaned:
    """What stage 1 made of ROWS."""

    counts: Counts
    kept: list[dict[str, Any]]
    rejected: list[dict[str, Any]]

    def outcomes(self) -> dict[str, str]:
        """Each row's outcome by its label; a row that came out twice fails."""
        found = [(row["request_id"], KEPT) for row in self.kept]
        found += [(row["label"], row[JUDGEMENT]) for row in self.rejected]
        assert len(dict(found)) == len(found)
        return dict(found)


@pytest.fixture(scope="module")
def cleaned(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Cleaned:
    """Stage 1 over ROWS, once."""
    folder = tmp_path_factory.mktemp("events")
    counts = clean(folder, raw(spark, folder / "raw.parquet", rows()), SETTINGS, DAY)
    kept = spark.read.parquet(str(folder / KEPT)).toArrow().to_pylist()
    return Cleaned(counts, kept, pq.read_table(folder / REJECTED).to_pylist())


@pytest.mark.parametrize("label", ROWS)
def test_each_row_has_the_one_outcome_that_it_deserves(cleaned: Cleaned, label: str) -> None:
    """Kept, outside the window, or rejected for the first reason that applies: one's own rules in file order, then ours."""
    assert cleaned.outcomes().get(label, OUTSIDE) == ROWS[label][1]


def test_counts_say_what_happened_to_every_row_that_was_read(cleaned: Cleaned) -> None:
    """Read = kept + rejected; rows after the day are in neither; reasons are sorted."""
    outcomes = [outcome for _, outcome in ROWS.values()]
    reasons = {reason: outcomes.count(reason) for reason in sorted(set(outcomes) - {KEPT, OUTSIDE})}
    on_day = sum(row["ts"] >= at(DAY, 0) for row in cleaned.kept)

    assert cleaned.counts == {
        "rows": outcomes.count(KEPT),
        "read": len(outcomes) - outcomes.count(OUTSIDE),
        "on_day": on_day,
        "rejected": reasons,
    }
    assert list(cleaned.counts["rejected"]) == list(reasons)
    assert on_day == outcomes.count(KEPT) - 1, "all but the earliest"


def test_rejects_are_kept_aside_as_they_came(cleaned: Cleaned) -> None:
    """Every raw column with its raw value, those that Nightlist does not know too, and the reason beside them."""
    given = {row["label"]: row for row in rows()}

    assert cleaned.rejected
    for row in cleaned.rejected:
        assert row == given[row["label"]] | {JUDGEMENT: ROWS[row["label"]][1]}


def test_kept_events_hold_our_columns_in_utc_and_their_weight(cleaned: Cleaned) -> None:
    """Kind's weight times value: a missing value counts 1, a negative one 0; an impression weighs 0."""
    kept = {row["request_id"]: row for row in cleaned.kept}
    good = {"user_id": "u1", "item_id": "i1", "event": "watch", "ts": at(DAY), "value": None, "request_id": "good"}
    weights = {
        "good": 1.0,
        "price": 2.5,
        "no price": 1.0,
        "negative price": 0.0,
        "impression": 0.0,
        "kind of weight 0": 0.0,
    }

    assert kept["good"] == good | {"weight": 1.0}
    assert {label: kept[label]["weight"] for label in weights} == weights
    by_zone = kept["the day after, by its zone still the day"]["ts"]
    assert by_zone == datetime(DAY.year, DAY.month, DAY.day, 23, tzinfo=UTC)


# Weights


WEIGHTS: dict[str, tuple[EventsSettings, list[float | None]]] = {
    "nothing said": (EventsSettings(), [1.0, 1.0, 0.0, 1.0]),
    "two kinds": (EventsSettings(weights={"watch": 2.0, "like": 0.5}), [2.0, 0.5, 0.0, None]),
    "impressions too": (EventsSettings(weights={"watch": 1.0, "impression": 0.1}), [1.0, None, 0.1, None]),
    "value": (EventsSettings(weights={"watch": 2.0, "like": 0.5}, use_value=True), [8.0, 0.5, 0.0, None]),
}


def test_a_kind_weighs_what_the_settings_say(spark: SparkSession, tmp_path: Path) -> None:
    """All 1 where nothing is said, impressions 0 unless they are named, kinds that are not named unknown."""
    kinds = [("watch", "4"), ("like", None), ("impression", "9"), ("other", "1")]
    events = raw(
        spark, tmp_path / "e.parquet", [GOOD | {"label": kind, "kind": kind, "price": price} for kind, price in kinds]
    )
    columns = events.typed()
    found = events.frame.select(*(weight_of(columns, s).alias(name) for name, (s, _) in WEIGHTS.items())).toArrow()

    assert found.to_pydict() == {name: expected for name, (_, expected) in WEIGHTS.items()}


def test_data_of_one_kind_need_no_column_of_kinds(spark: SparkSession, tmp_path: Path) -> None:
    """default_event is every row's kind, and its weight applies."""
    settings = EventsSettings(columns={"user_id": "Customer", "item_id": "sku", "ts": "when"}, default_event="buy")
    row = {name: GOOD[name] for name in ("Customer", "sku", "when")}
    counts = clean(tmp_path, raw(spark, tmp_path / "e.parquet", [row], settings), settings, DAY)

    assert counts == {"rows": 1, "read": 1, "on_day": 1, "rejected": {}}
    (kept,) = pq.read_table(tmp_path / KEPT).to_pylist()
    assert (kept["event"], kept["weight"]) == ("buy", 1.0)


# Duplicates


def invoice(key: str | None, label: str, hour: int = 12, **changes: Any) -> dict[str, Any]:
    row = dict.fromkeys(TYPES) | GOOD | {"Invoice": key, "label": label, "when": f"{DAY} {hour:02d}:00:00"}
    return row | changes


REPEATED = [
    invoice("1", "later", 13),
    invoice("1", "first", 11),
    invoice("1", "latest", 14, Customer="u2"),
    invoice("2", "alone"),
    invoice("1", "other sku", 9, sku="i2"),
    invoice(None, "no key"),
    invoice(None, "no key either"),
    invoice("3", "rejected", 8, Customer=None),
    invoice("3", "good after rejected", 9),
    invoice("4", "tie a", Customer="ua"),
    invoice("4", "tie b", Customer="ub"),
    invoice("5", "the day after", 12, when=f"{MIDNIGHT} 01:00:00"),
    invoice("5", "on the day", 23),
]


def outcomes_with_key(
    spark: SparkSession, path: Path, rows: Sequence[Mapping[str, Any]], key: Sequence[str]
) -> dict[str, str]:
    settings = SETTINGS.model_copy(update={"key": tuple(key), "reject": ()})
    found = judged(raw(spark, path, rows), settings, DAY).select("label", F.coalesce(JUDGEMENT, F.lit(KEPT))).collect()
    return {row[0]: row[1] for row in found}


def test_of_events_with_one_key_the_earliest_is_kept(spark: SparkSession, tmp_path: Path) -> None:
    """Later ones are `duplicate`; a missing key is no key, and a row rejected for another reason is nobody's first."""
    found = outcomes_with_key(spark, tmp_path / "e.parquet", REPEATED, ["Invoice", "sku"])
    ties = [found.pop("tie a"), found.pop("tie b")]

    assert sorted(ties) == ["duplicate", KEPT]
    assert found == {
        "later": "duplicate",
        "first": KEPT,
        "latest": "duplicate",
        "alone": KEPT,
        "other sku": KEPT,
        "no key": KEPT,
        "no key either": KEPT,
        "rejected": "missing_user_id",
        "good after rejected": KEPT,
        "on the day": KEPT,
    }


def test_which_duplicate_is_kept_does_not_depend_on_the_order_of_rows(spark: SparkSession, tmp_path: Path) -> None:
    """Equal keys at equal times too: twenty pairs of rows that differ in one column, read forwards and backwards."""
    ties = [invoice(str(n), f"{n}{side}", Customer=f"u{side}{n}") for n in range(20) for side in "ab"]
    forwards = outcomes_with_key(spark, tmp_path / "f.parquet", ties, ["Invoice"])
    backwards = outcomes_with_key(spark, tmp_path / "b.parquet", ties[::-1], ["Invoice"])

    assert forwards == backwards
    assert {forwards[f"{n}a"] for n in range(20)} == {KEPT, "duplicate"}, "a coin that always falls on one side"


def test_without_a_key_nothing_is_a_duplicate(cleaned: Cleaned) -> None:
    """Two equal rows are two events."""
    assert {cleaned.outcomes()[label] for label in ("good", "twice")} == {KEPT}


# Rules that can't work


def test_a_rule_that_stumbles_over_a_value_says_so(spark: SparkSession, tmp_path: Path) -> None:
    """A comparison of text with a number, as in a CSV, ends in an error that names the value and the rules, not in a trace."""
    settings = SETTINGS.model_copy(update={"reject": (RejectRule(reason="cheap", where="price <= 0"),)})
    events = raw(spark, tmp_path / "e.parquet", [dict.fromkeys(TYPES) | GOOD | {"price": "free"}])
    with pytest.raises(InputError, match=r"'free'.*\[\[events\.reject\]\].*try_cast.*price <= 0"):
        clean(tmp_path, events, settings, DAY)


# An empty day


def test_a_day_without_events_names_the_newest_day_and_where_the_rejects_are(
    spark: SparkSession, tmp_path: Path
) -> None:
    """It is a broken import far more often than news: the night stops, and says how many rows it read and refused why."""
    old = dict.fromkeys(TYPES) | GOOD | {"when": f"{DAY - timedelta(days=3)} 12:00:00"}
    events = raw(spark, tmp_path / "e.parquet", [old, old | {"Customer": None}, old | {"when": f"{MIDNIGHT} 12:00:00"}])
    with pytest.raises(InputError) as caught:
        clean(tmp_path, events, SETTINGS, DAY)

    said = str(caught.value)
    assert f"0 usable events on {DAY} (events.min_on_day = 1)" in said
    assert f"the newest is of {DAY - timedelta(days=3)}" in said
    assert "read 2, rejected: missing_user_id 1" in said
    assert str(tmp_path / REJECTED) in said
    assert pq.read_table(tmp_path / REJECTED).num_rows == 1


def test_too_few_events_on_the_day_stop_the_night_and_the_level_is_a_setting(
    spark: SparkSession, tmp_path: Path
) -> None:
    """min_on_day counts usable events of the day itself; 0 lets an empty day pass."""
    events = raw(spark, tmp_path / "e.parquet", [dict.fromkeys(TYPES) | GOOD] * 3)
    with pytest.raises(InputError, match=r"3 usable events on .* \(events\.min_on_day = 4\)"):
        clean(tmp_path, events, SETTINGS.model_copy(update={"min_on_day": 4}), DAY)
    later = clean(tmp_path, events, SETTINGS.model_copy(update={"min_on_day": 0}), DAY + timedelta(days=1))

    assert (later["rows"], later["on_day"]) == (3, 0)
    with pytest.raises(InputError, match="there is none of an earlier day either"):
        clean(tmp_path, events, SETTINGS, date(2020, 1, 1))
