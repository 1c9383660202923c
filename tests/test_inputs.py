"""The raw tables: whatever type an id or a time comes in, it means the same; what can't be used is named."""

import csv
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession

from jobs.config import load_settings
from jobs.inputs import RawTable, check_rules, read_beside, read_frame, read_inputs, table_of
from schemas.columns import EVENTS_TABLE, ITEMS_TABLE, TS, USER_ID, USERS_TABLE, InputTable
from schemas.errors import ConfigError, InputError
from tests.nights import checkerboard, event, place, write_table

NOON = datetime(2026, 11, 20, 12, 34, 56, 789_123, tzinfo=UTC)
SECONDS = 1_795_178_096
USERS = InputTable("users", tuple(column for column in USERS_TABLE.columns if column.name == USER_ID))
TIMES = InputTable("events", tuple(column for column in EVENTS_TABLE.columns if column.name == TS))


def table(spark: SparkSession, path: Path, ours: InputTable, mapping: Mapping[str, str] | None = None) -> RawTable:
    return table_of(read_frame(spark, str(path), "", {}, f"input.{ours.name}"), ours, mapping or {}, {})


def each_column(
    spark: SparkSession, path: Path, ours: InputTable, columns: Mapping[str, pa.Array]
) -> dict[str, list[Any]]:
    """What comes of each of these raw columns when it is mapped to the one column of `ours`; one Spark job for all."""
    pq.write_table(pa.table(dict(columns)), path)
    frame = read_frame(spark, str(path), "", {}, "input")
    (name,) = (column.name for column in ours.columns)
    typed = [table_of(frame, ours, {name: raw}, {}).typed()[name].alias(raw) for raw in columns]
    rows = frame.select(*typed).collect()
    return {raw: [row[raw] for row in rows] for raw in columns}


def decimals(*values: str, scale: int) -> pa.Array:
    return pa.array([Decimal(value) for value in values], pa.decimal128(38, scale))


# Ids


IDS: dict[str, tuple[pa.Array, list[str | None]]] = {
    "int8": (pa.array([12, 0], pa.int8()), ["12", "0"]),
    "int32": (pa.array([12346, -1], pa.int32()), ["12346", "-1"]),
    "int64": (pa.array([12346, 2**53 + 1], pa.int64()), ["12346", "9007199254740993"]),
    "uint64 (a hash)": (pa.array([12346, 2**64 - 1], pa.uint64()), ["12346", "18446744073709551615"]),
    "float64": (pa.array([12346.0, 2.0**52 + 1]), ["12346", "4503599627370497"]),
    "float64 with holes": (pa.array([12346.0, np.nan]), ["12346", None]),
    "float64, huge": (pa.array([1e15, 1e20]), ["1000000000000000", "100000000000000000000"]),
    "float64, no whole number": (pa.array([0.5, -0.0]), ["0.5", "0"]),
    "float32": (pa.array([12346.0, np.nan], pa.float32()), ["12346", None]),
    "decimal(38,0)": (decimals("12346", "12345678901234567890123", scale=0), ["12346", "12345678901234567890123"]),
    "decimal(38,10)": (decimals("12346", "9007199254740993", scale=10), ["12346", "9007199254740993"]),
    "decimal(38,2), no whole number": (decimals("12346.00", "0.50", scale=2), ["12346", "0.50"]),
    "text": (pa.array(["12346", "00123"]), ["12346", "00123"]),
    "text as it is": (pa.array(["12346.0", " a"]), ["12346.0", " a"]),
    "text of pandas categories": (pa.array(["b", "a"]).dictionary_encode(), ["b", "a"]),
    "nothing": (pa.array([None, ""], pa.string()), [None, ""]),
}


def test_an_id_of_any_type_becomes_the_text_that_a_person_would_write(spark: SparkSession, tmp_path: Path) -> None:
    """12346 however it is stored, never 12346.0 nor a rounded one; leading zeros stay; NaN is a missing id."""
    found = each_column(spark, tmp_path / "ids.parquet", USERS, {name: raw for name, (raw, _) in IDS.items()})

    assert found == {name: expected for name, (_, expected) in IDS.items()}


@pytest.mark.parametrize(
    ("values", "kind"),
    [(pa.array([["u1"]]), "array<string>"), (pa.array([True]), "boolean"), (pa.array([b"u"]), "binary")],
)
def test_an_id_of_a_hopeless_type_is_an_error_before_any_row_is_read(
    spark: SparkSession, tmp_path: Path, values: pa.Array, kind: str
) -> None:
    """The message names table, column, our name, the type, and the setting that names another column."""
    pq.write_table(pa.table({"who": values}), tmp_path / "t.parquet")
    with pytest.raises(InputError) as caught:
        table(spark, tmp_path / "t.parquet", USERS, {"user_id": "who"})

    assert f"users: column 'who' (user_id) is {kind}, which can't become string" in str(caught.value)
    assert "[users.columns] user_id" in str(caught.value)


# Times


def utc(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)


def stamps(unit: str, zone: str | None = "UTC") -> pa.Array:
    return pa.array([NOON]).cast(pa.timestamp("us", "UTC")).cast(pa.timestamp(unit, zone), safe=False)


MILLIS, SECOND = NOON.replace(microsecond=789_000), NOON.replace(microsecond=0)
TIME_COLUMNS: dict[str, tuple[pa.Array, datetime | None]] = {
    "timestamp, UTC": (stamps("us"), NOON),
    "timestamp of another zone": (stamps("us", "Asia/Tokyo"), NOON),
    "timestamp without a zone": (stamps("us", None), NOON),
    "timestamp[ms]": (stamps("ms"), MILLIS),
    "timestamp[ns] (pandas)": (stamps("ns"), NOON),
    "timestamp[ns] (pandas) without a zone": (stamps("ns", None), NOON),
    "date": (pa.array([NOON.date()]), utc(2026, 11, 20)),
    "ISO 8601, Z": (pa.array(["2026-11-20T12:34:56.789123Z"]), NOON),
    "ISO 8601, offset": (pa.array(["2026-11-20T14:34:56.789123+02:00"]), NOON),
    "ISO 8601, no zone is UTC": (pa.array(["2026-11-20 12:34:56"]), SECOND),
    "ISO 8601, a day": (pa.array(["2026-11-20"]), utc(2026, 11, 20)),
    "seconds": (pa.array([SECONDS]), SECOND),
    "seconds, int32": (pa.array([SECONDS], pa.int32()), SECOND),
    "seconds, float": (pa.array([SECONDS + 0.789123]), NOON),
    "seconds, decimal": (decimals("1795178096.789123", scale=6), NOON),
    "seconds, text": (pa.array([str(SECONDS)]), SECOND),
    "seconds, text with a fraction": (pa.array([f"{SECONDS}.5"]), NOON.replace(microsecond=500_000)),
    "milliseconds": (pa.array([SECONDS * 1_000 + 789]), MILLIS),
    "milliseconds, text": (pa.array([str(SECONDS * 1_000 + 789)]), MILLIS),
    "microseconds": (pa.array([SECONDS * 1_000_000 + 789_123]), NOON),
    "nanoseconds": (pa.array([SECONDS * 1_000_000_000 + 789_123_000]), NOON),
    "a broken clock": (pa.array([0]), utc(1970, 1, 1)),
    "nothing": (pa.array([None], pa.timestamp("us", "UTC")), None),
    "NaN": (pa.array([np.nan]), None),
    "infinity": (pa.array([np.inf]), None),
    "empty text": (pa.array([""]), None),
    "another order": (pa.array(["20.11.2026 12:34"]), None),
    "a time without a day": (pa.array(["12:34"]), None),
    "a word": (pa.array(["now"]), None),
    "a year": (pa.array(["2026"]), None),
    "a day without dashes": (pa.array(["20261120"]), None),
}


def test_a_time_of_any_type_becomes_the_same_moment_in_utc(spark: SparkSession, tmp_path: Path) -> None:
    """To the microsecond; numbers by their size, as text too (a CSV has no others); no time is null, not today."""
    raw = {name: column for name, (column, _) in TIME_COLUMNS.items()}
    pq.write_table(pa.table(raw), tmp_path / "times.parquet")
    frame = read_frame(spark, str(tmp_path / "times.parquet"), "", {}, "input")
    typed = [table_of(frame, TIMES, {TS: name}, {}).typed()[TS].alias(name) for name in raw]
    found = frame.select(*typed).toArrow().to_pylist()[0]

    assert found == {name: expected for name, (_, expected) in TIME_COLUMNS.items()}


def test_times_keep_their_milliseconds_in_every_unit(spark: SparkSession, tmp_path: Path) -> None:
    """No moment is a microsecond early because a float fell short; 2,000 random ones, in three units."""
    millis = SECONDS * 1_000 + np.random.default_rng(3).integers(0, 10**10, 2_000)
    columns = {"seconds": millis / 1_000, "ms": millis, "ns": pa.array(millis * 10**6, pa.timestamp("ns"))}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    frame = read_frame(spark, str(tmp_path / "t.parquet"), "", {}, "input")
    typed = [table_of(frame, TIMES, {TS: name}, {}).typed()[TS].alias(name) for name in columns]
    found = frame.select(*typed).toArrow()

    for name in columns:
        assert found[name].cast(pa.int64()).to_pylist() == (millis * 1_000).tolist(), name


def test_times_of_a_wrong_type_are_an_error(spark: SparkSession, tmp_path: Path) -> None:
    """A flag is no time."""
    pq.write_table(pa.table({"ts": [True]}), tmp_path / "t.parquet")
    with pytest.raises(InputError, match=r"events: column 'ts' \(ts\) is boolean, which can't become timestamp"):
        table(spark, tmp_path / "t.parquet", TIMES)


# Other types


def test_lists_numbers_and_texts_of_the_catalogue(spark: SparkSession, tmp_path: Path) -> None:
    """A list of texts, or one text split at |; a number that can't be read is null, not an error."""
    row = {"item_id": 7.0, "tags": "a|b", "labels": ["x"], "duration_s": "12.5", "min_age": "?"}
    write_table([row], tmp_path / "items.parquet")
    found = table(spark, tmp_path / "items.parquet", ITEMS_TABLE).mapped().first().asDict()

    assert found == {"item_id": "7", "tags": ["a", "b"], "labels": ["x"], "duration_s": 12.5, "min_age": None}


# Columns


def test_one_s_own_names_are_mapped_and_other_columns_travel_nowhere(spark: SparkSession, tmp_path: Path) -> None:
    """A mapped name wins over a raw column that bears ours, and names with dots and blanks work."""
    row = {"user_id": "wrong", "Customer ID": "u1", "sku.code": "i1", "event": "watch", "when": NOON, "secret": "x"}
    write_table([row], tmp_path / "e.parquet")
    mapping = {"user_id": "Customer ID", "item_id": "sku.code", "ts": "when"}
    found = table(spark, tmp_path / "e.parquet", EVENTS_TABLE, mapping).mapped()

    assert found.columns == ["user_id", "item_id", "event", "ts"]
    assert found.toArrow().to_pylist() == [{"user_id": "u1", "item_id": "i1", "event": "watch", "ts": NOON}]


def test_a_missing_column_names_the_table_our_name_and_what_there_is(spark: SparkSession, tmp_path: Path) -> None:
    """The message also says which line of nightlist.toml to write."""
    write_table([{"user_id": "u", "sku": "i", "event": "e", "ts": NOON}], tmp_path / "e.parquet")
    with pytest.raises(InputError) as caught:
        table(spark, tmp_path / "e.parquet", EVENTS_TABLE)

    said = str(caught.value)
    assert "events has no column 'item_id' (item_id); it has user_id, sku, event, ts" in said
    assert '[events.columns] item_id = "..."' in said


def test_a_missing_event_column_has_a_second_way_out(spark: SparkSession, tmp_path: Path) -> None:
    """Data of one kind need no column of kinds, and the message says so; with default_event the kind is constant."""
    folder = place(tmp_path, [event("u", "i")])
    write_table([{"user_id": "u", "item_id": "i", "ts": NOON}], tmp_path / "events.parquet")
    with pytest.raises(InputError, match=r'events has no column .event.*\[events\] default_event = "watch"'):
        read_inputs(spark, folder.settings())
    inputs = read_inputs(spark, folder.settings("events.default_event=view"))

    assert inputs.events.mapped().first()["event"] == "view"


def test_a_mapped_column_that_is_not_there_is_an_error_even_when_it_is_optional(
    spark: SparkSession, tmp_path: Path
) -> None:
    """Who says [events.columns] value = "price" wants prices; silence would be worse than an error."""
    write_table([event("u", "i")], tmp_path / "e.parquet")
    with pytest.raises(InputError, match=r"events has no column 'price' \(value\); it has user_id, item_id"):
        table(spark, tmp_path / "e.parquet", EVENTS_TABLE, {"value": "price"})


def test_a_mapping_of_a_column_that_nightlist_does_not_have_names_the_nearest(
    spark: SparkSession, tmp_path: Path
) -> None:
    """A misspelt name on our side of the mapping is an error of the configuration (exit code 2)."""
    write_table([event("u", "i")], tmp_path / "e.parquet")
    with pytest.raises(ConfigError, match=r"\[events.columns\] userid: .*did you mean user_id") as caught:
        table(spark, tmp_path / "e.parquet", EVENTS_TABLE, {"userid": "user_id"})

    assert caught.value.exit_code == 2


# Files


@pytest.mark.parametrize(("name", "separator"), [("e.csv", ","), ("E.CSV", ","), ("e.tsv", "\t")])
def test_csv_is_read_as_spreadsheets_write_it(spark: SparkSession, tmp_path: Path, name: str, separator: str) -> None:
    """A quote within quotes is doubled, a separator within quotes is none; tabs part a .tsv; an ending may be in capitals."""
    rows = [["user_id", "item_id", "event"], ["u1", '12" disc', "watch"], ["u,\t2", 'The "Best", of 2026', "like"]]
    with (tmp_path / name).open("w", newline="") as file:
        csv.writer(file, delimiter=separator).writerows(rows)
    found = read_frame(spark, str(tmp_path / name), "", {}, "input.events")

    assert [list(row) for row in found.collect()] == rows[1:]
    upper = read_frame(spark, str(tmp_path / name), "CSV", {}, "input.events")
    assert [list(row) for row in upper.collect()] == rows[1:]


def test_what_an_ending_does_not_tell_has_to_be_said(spark: SparkSession, tmp_path: Path) -> None:
    """A folder of CSV is taken for Parquet, and the way out is named; [input] format and options count for other files, too."""
    folder = tmp_path / "events"
    folder.mkdir()
    (folder / "part-0.csv").write_text("user_id;item_id\nu;i\n")
    with pytest.raises(InputError, match=r"can't be read as parquet: .*say what it is by \[input\] format"):
        read_frame(spark, str(folder), "", {}, "input.events")
    settings = load_settings(
        None, ["input.events=elsewhere.csv", "input.format=csv", 'input.options={ sep = ";" }']
    ).input

    assert [list(row) for row in read_beside(spark, str(folder), settings, "--train").collect()] == [["u", "i"]]
    assert read_beside(spark, str(folder / "part-0.csv"), settings, "--train").columns == ["user_id", "item_id"]
    write_table([{"user_id": "u", "item_id": "i"}], tmp_path / "t.parquet")
    assert read_beside(spark, str(tmp_path / "t.parquet"), settings, "--train").columns == ["user_id", "item_id"]


def test_csv_has_a_header_and_ids_that_pandas_wrote_as_floats(spark: SparkSession, tmp_path: Path) -> None:
    """12346.0 means 12346, 00123 stays, an empty field is missing, a quoted comma is text, unix seconds are times."""
    lines = ["user_id,item_id,event,ts,value", '12346.0,00123,"a,b",1795178096,3.50', ",i,e,2026-11-20 12:34:56,"]
    (tmp_path / "e.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    found = table(spark, tmp_path / "e.csv", EVENTS_TABLE).mapped().toArrow().to_pylist()

    assert found == [
        {"user_id": "12346", "item_id": "00123", "event": "a,b", "ts": SECOND, "value": 3.5},
        {"user_id": None, "item_id": "i", "event": "e", "ts": SECOND, "value": None},
    ]


def test_options_reach_the_reader(spark: SparkSession, tmp_path: Path) -> None:
    """A file with semicolons and another ending is read with format and options; a folder of files is one table."""
    folder = tmp_path / "events"
    folder.mkdir()
    for number in range(2):
        text = f"user_id;item_id;event;ts\nu{number};i;e;2026-11-20\n"
        (folder / f"part-{number}.txt").write_text(text, encoding="utf-8")
    settings = load_settings(None, [f"input.events={folder}", "input.format=csv", 'input.options={ sep = ";" }'])
    found = read_inputs(spark, settings).events.mapped()

    assert sorted(row.user_id for row in found.collect()) == ["u0", "u1"]


def test_json_lines_keep_their_numbers_whole(spark: SparkSession, tmp_path: Path) -> None:
    """Ids as numbers, with and without a fraction of zero, and as texts; a key that a line lacks is null."""
    lines = ['{"user_id": 12346.0, "item_id": "007"}', '{"user_id": 12347, "item_id": "i", "ts": 1795178096}']
    (tmp_path / "e.jsonl").write_text("\n".join(lines), encoding="utf-8")
    frame = read_frame(spark, str(tmp_path / "e.jsonl"), "", {}, "input.events")
    found = table_of(frame, EVENTS_TABLE, {}, {"event": "view"}).mapped().select("user_id", "item_id", "ts").toArrow()

    assert found.to_pylist() == [
        {"user_id": "12346", "item_id": "007", "ts": None},
        {"user_id": "12347", "item_id": "i", "ts": SECOND},
    ]


def broken_files(folder: Path) -> dict[str, Path]:
    whole = write_table([event("u", "i")], folder / "whole.parquet").read_bytes()
    (folder / "truncated.parquet").write_bytes(whole[: len(whole) // 2])
    (folder / "garbage.parquet").write_bytes(bytes(range(256)) * 8)
    (folder / "empty").mkdir()
    (folder / "zero.parquet").write_bytes(b"")
    return {name: folder / name for name in ("truncated.parquet", "garbage.parquet", "empty", "zero.parquet", "absent")}


def test_what_is_no_table_is_named_with_its_setting_and_what_to_do(spark: SparkSession, tmp_path: Path) -> None:
    """A missing path, half a file, garbage, an empty folder, an empty file: one line each, none of Java's trace."""
    for name, path in broken_files(tmp_path).items():
        with pytest.raises(InputError) as caught:
            table(spark, path, EVENTS_TABLE).mapped()
        said = str(caught.value)
        assert f"input.events = {path}" in said, name
        assert ("does not exist" in said) == (name == "absent"), name
        assert "nightlist validate" in said, name
        assert "\n" not in said, name


def test_only_events_must_be_there(spark: SparkSession, tmp_path: Path) -> None:
    """Without items, users and blocks there are none; a side table that is configured and missing is an error."""
    folder = place(tmp_path, [event("u", "i")])
    inputs = read_inputs(spark, folder.settings())

    assert list(inputs.present()) == ["events"]
    with pytest.raises(InputError, match=r"input\.blocks = .*nowhere.* does not exist"):
        read_inputs(spark, folder.settings("input.blocks=nowhere"))


# What is configured must be possible


def rule(where: str) -> str:
    return f'events.reject=[{{ reason = "x", where = "{where}" }}]'


def test_rules_keys_and_segments_without_their_columns_are_errors(spark: SparkSession, tmp_path: Path) -> None:
    """Each names the setting, what it asked for, and the columns that there are; none is a silent no-op."""
    folder = place(tmp_path, [event("u", "i")])
    write_table([{"user_id": "u", "country": "GB"}], tmp_path / "users.parquet")
    wrong = {
        rule("Quantity <= 0"): r"Quantity <= 0.*columns: user_id, item_id, event, ts",
        rule("value >"): r"\[\[events\.reject\]\] where = 'value >'.*columns: user_id",
        rule("[1"): r"\[\[events\.reject\]\] where = '\[1'",
        rule("ts"): r"\[\[events\.reject\]\] where = 'ts'",
        'events.key=["valu"]': r"events\.key names 'valu' \(did you mean value\?\)",
        'popular.segments=["country"]': r"popular\.segments names 'country', but the users table is not configured",
        'segment.segments=["age"]': r"segment\.segments names 'age', but the users table is not configured",
    }
    for override, message in wrong.items():
        settings = folder.settings(override)
        with pytest.raises(ConfigError, match=message):
            check_rules(read_inputs(spark, settings), settings)
    settings = folder.settings('popular.segments=["birth_year"]', "input.users=users.parquet")
    with pytest.raises(ConfigError, match=r"'birth_year', but the users table has user_id, country"):
        check_rules(read_inputs(spark, settings), settings)


def test_a_rule_may_use_columns_that_nightlist_does_not_know(spark: SparkSession, tmp_path: Path) -> None:
    """Rules speak of the raw table, in its own names."""
    write_table([event("u", "i") | {"Invoice No": "C12"}], tmp_path / "e.parquet")
    settings = load_settings(None, [f"input.events={tmp_path / 'e.parquet'}", rule("`Invoice No` LIKE 'C%'")])

    check_rules(read_inputs(spark, settings), settings)


# Sources that are no files


@pytest.fixture(autouse=True, scope="module")
def _no_log_here(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The embedded database writes a log into the working folder, unless it is told where to."""
    log = tmp_path_factory.mktemp("derby") / "derby.log"
    spark._jvm.System.setProperty("derby.stream.error.file", str(log))


def test_a_night_from_a_database_is_the_night_from_a_file(spark: SparkSession, tmp_path: Path) -> None:
    """Events that Spark reads by JDBC, from a table of an embedded database, make equal lists."""
    from_file = place(tmp_path / "file", checkerboard())
    url = f"jdbc:derby:{tmp_path / 'derby'}"
    options = {"url": f"{url};create=true", "dbtable": "events"}
    spark.read.parquet(str(tmp_path / "file" / "events.parquet")).write.format("jdbc").options(**options).save()
    reads = {"format": "jdbc", "events": "events", "options": {"url": url}}
    from_table = place(tmp_path / "table", checkerboard(), input=reads)

    made = [found.run(found.night()).counts("build")["lists_checksum"] for found in (from_file, from_table)]

    assert made[0] == made[1]


def test_a_table_that_a_database_does_not_have_is_named(spark: SparkSession, tmp_path: Path) -> None:
    """The error says which setting, which table, and that it is no path."""
    reads = {"format": "jdbc", "events": "nothing", "options": {"url": f"jdbc:derby:{tmp_path / 'derby'};create=true"}}
    found = place(tmp_path, checkerboard(), input=reads)

    with pytest.raises(InputError, match=r"input\.events = nothing can't be read as jdbc"):
        read_inputs(spark, found.settings())
