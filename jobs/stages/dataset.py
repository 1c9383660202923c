"""Stage 2: clean events become one row a user over dense item numbers. The only place that makes dense ids.

Items are numbered in sorted order of their ids. Users need no number: their rows lie in buckets by hash of user_id, sorted
inside, and a row's arrays are already a CSR row.
"""

import shutil
import time
from collections.abc import Sequence
from datetime import date, timedelta
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from jobs.buckets import Buckets, close_bucket, data_path, read_all, write_bucket
from jobs.config import DatasetSettings
from jobs.dataset import AGES, BLOCKED, HISTORY, ITEMS_FILE, SEEN, SEGMENT, WEIGHTS, users_schema
from jobs.identity import end_of
from jobs.inputs import Inputs, RawTable
from jobs.run import Counts, clear
from schemas.columns import EVENT, IMPRESSION, ITEM_ID, ITEMS, TS, USER_ID
from schemas.errors import InputError

ITEM = "item"
WEIGHT = "weight"
NAME = "name"
SMALLEST = 1e-30
"""A decayed weight stops here: a positive that underflows to 0 would come to mean "not seen"."""


def assemble(
    out: Path,
    buckets: Buckets,
    events: DataFrame,
    inputs: Inputs,
    settings: DatasetSettings,
    day: date,
    segments: Sequence[str] = (),
) -> Counts:
    """Write items.parquet and one bucket file a part, from clean events with a weight.

    Raises InputError when no event has a weight above 0.
    """
    clear(out)
    start = time.monotonic()
    items = _items(events, inputs, day)
    items.coalesce(1).sortWithinPartitions(ITEM).write.parquet(str(out / "_items"))
    _only_file(out / "_items").replace(out / ITEMS_FILE)
    numbers = events.sparkSession.read.parquet(str(out / ITEMS_FILE)).select(ITEM_ID, ITEM)
    users = _rows(_pairs(events, numbers, settings, day))
    users = _with_blocks(users, inputs.blocks, numbers)
    users = _with_segments(users, inputs.users, segments)
    _write(out, users.select(*users_schema(segments).names), buckets)
    _close(out, buckets, segments, start)
    counts = _count(out)
    if not counts["pairs"]:
        raise InputError("no event has a weight above 0: look at events.weights, or whether all events are impressions")
    return counts


def _items(events: DataFrame, inputs: Inputs, day: date) -> DataFrame:
    """Every item that has an event, with its number and whether it may be shown."""
    seen = events.select(ITEM_ID).distinct().orderBy(ITEM_ID).zipWithIndex(ITEM)
    items = seen.select(ITEM_ID, F.col(ITEM).cast("int"))
    if inputs.items:
        items = items.join(_availability(inputs.items, day), ITEM_ID, "left")
    else:
        items = items.withColumn("available", F.lit(None))
    if inputs.blocks:
        blocks = inputs.blocks.mapped()
        everyone = blocks.where(_for_everyone(blocks)).select(ITEM_ID).distinct()
        items = items.join(everyone.withColumn(BLOCKED, F.lit(True)), ITEM_ID, "left")
    else:
        items = items.withColumn(BLOCKED, F.lit(None))
    eligible = F.coalesce("available", F.lit(True)) & F.col(BLOCKED).isNull()
    return items.select(ITEM_ID, ITEM, eligible.alias("eligible"), F.col("available").isNull().alias("unlisted"))


def _availability(catalogue: RawTable, day: date) -> DataFrame:
    """Per item whether it is available on D and all of D + 1. An item that is listed twice has to be so in all its rows."""
    columns = catalogue.typed()
    available = F.lit(True)
    if "available_from" in columns:
        available = available & _holds(catalogue, "available_from", columns["available_from"] <= F.lit(end_of(day)))
    if "available_until" in columns:
        tomorrow = F.lit(end_of(day) + timedelta(days=1))
        available = available & _holds(catalogue, "available_until", columns["available_until"] > tomorrow)
    rows = catalogue.frame.select(columns[ITEM_ID].alias(ITEM_ID), available.alias("available"))
    return rows.groupBy(ITEM_ID).agg(F.bool_and("available").alias("available"))


def _holds(table: RawTable, name: str, condition: Column) -> Column:
    """True where the raw value is empty; false where it can't be read, since showing would be the worse mistake."""
    raw = F.col(f"`{table.columns[name]}`")
    empty = raw.isNull() | F.trim(raw.cast("string")).isin("", "NaN")  # NaN: what pandas makes of a hole among numbers
    return F.when(empty, F.lit(True)).otherwise(F.coalesce(condition, F.lit(False)))


def _pairs(events: DataFrame, numbers: DataFrame, settings: DatasetSettings, day: date) -> DataFrame:
    """One row a (user, item): r, the days since its latest event, whether the item counts as seen, and a hash of all that.

    Weights are summed as decimals, so that the sum does not depend on the order of rows. The hash is of the sum and the
    latest event's time, which the next day finds again, and null where the item does not count as seen.
    """
    shown = (F.col(EVENT) == IMPRESSION) if settings.impressions_seen else F.lit(False)
    positive = F.col(WEIGHT) > 0
    pairs = (
        events.join(numbers.withColumn(NAME, F.xxhash64(ITEM_ID)), ITEM_ID)
        .groupBy(USER_ID, ITEM, NAME)
        .agg(
            F.sum(F.col(WEIGHT).cast("decimal(28,9)")).cast("double").alias(WEIGHT),
            F.max(F.when(positive, F.col(TS))).alias(TS),
            F.max(positive | shown).alias(SEEN),
        )
    )
    age = (F.lit(end_of(day)).cast("double") - F.col(TS).cast("double")) / 86_400.0
    weight = F.log1p(WEIGHT) if settings.scale == "log" else F.col(WEIGHT)
    if settings.half_life_days:
        weight = weight * F.pow(F.lit(0.5), age / settings.half_life_days)
    weight = F.when(F.col(WEIGHT) > 0, F.greatest(weight, F.lit(SMALLEST)))
    history = F.when(F.col(SEEN), F.xxhash64(NAME, WEIGHT, TS, SEEN))
    return pairs.select(
        USER_ID, ITEM, weight.cast("float").alias(WEIGHT), age.cast("float").alias("age"), SEEN, history.alias(HISTORY)
    )


def _rows(pairs: DataFrame) -> DataFrame:
    """One row a user, its arrays ascending by item number."""
    packed = F.array_sort(F.collect_list(F.struct(ITEM, WEIGHT, "age", SEEN)))
    history = F.coalesce(F.bit_xor(HISTORY), F.lit(0))
    users = pairs.groupBy(USER_ID).agg(packed.alias("pairs"), history.alias(HISTORY))
    positive = F.filter("pairs", lambda pair: pair[WEIGHT].isNotNull())
    seen = F.filter("pairs", lambda pair: pair[SEEN])
    return users.select(
        USER_ID,
        F.transform(positive, lambda pair: pair[ITEM]).alias(ITEMS),
        F.transform(positive, lambda pair: pair[WEIGHT]).alias(WEIGHTS),
        F.transform(positive, lambda pair: pair["age"]).alias(AGES),
        F.transform(seen, lambda pair: pair[ITEM]).alias(SEEN),
        HISTORY,
    )


def _with_blocks(users: DataFrame, blocks: RawTable | None, numbers: DataFrame) -> DataFrame:
    if blocks is None or USER_ID not in blocks.columns:
        return users.withColumn(BLOCKED, F.array().cast("array<int>"))
    mapped = blocks.mapped()
    per_user = mapped.where(~_for_everyone(mapped)).join(numbers, ITEM_ID)
    per_user = per_user.groupBy(USER_ID).agg(F.array_sort(F.collect_set(ITEM)).alias(BLOCKED))
    return users.join(per_user, USER_ID, "left").withColumn(BLOCKED, F.coalesce(BLOCKED, F.array().cast("array<int>")))


def _for_everyone(blocks: DataFrame) -> Column:
    """A block that names no user."""
    return (F.col(USER_ID).isNull() | (F.col(USER_ID) == "")) if USER_ID in blocks.columns else F.lit(True)


def _with_segments(users: DataFrame, table: RawTable | None, segments: Sequence[str]) -> DataFrame:
    """Each user's value in each segment's column, as text, which the history's hash knows; null for users that the table
    doesn't have."""
    if not segments:
        return users
    assert table is not None, "jobs.inputs.check_rules found the segments' columns"
    values = [F.min(F.col(column).cast("string")).alias(SEGMENT + column) for column in segments]
    users = users.join(table.mapped().groupBy(USER_ID).agg(*values), USER_ID, "left")
    labels = [F.col(SEGMENT + column) for column in segments]
    return users.withColumn(HISTORY, F.xxhash64(HISTORY, *labels, *(label.isNull() for label in labels)))


def _write(out: Path, users: DataFrame, buckets: Buckets) -> None:
    """One file a bucket, sorted by user_id."""
    rows = users.withColumn("bucket", F.pmod(F.xxhash64(USER_ID), F.lit(buckets.parts)))
    rows = rows.repartition(buckets.parts, "bucket").sortWithinPartitions("bucket", USER_ID)
    rows.write.partitionBy("bucket").parquet(str(out / "_users"))


def _close(out: Path, buckets: Buckets, segments: Sequence[str], start: float) -> None:
    """Give each bucket's file its name and its record; a bucket without a user gets an empty file."""
    for bucket in range(buckets.parts):
        written = out / "_users" / f"bucket={bucket}"
        if written.exists():
            _only_file(written).replace(data_path(out, bucket))
            close_bucket(data_path(out, bucket), buckets.digest, time.monotonic() - start)
        else:
            write_bucket(out, buckets.digest, bucket, users_schema(segments).empty_table(), 0.0)
    for leftover in ("_items", "_users"):
        shutil.rmtree(out / leftover)


def _only_file(folder: Path) -> Path:
    (file,) = folder.glob("part-*.parquet")
    return file


def _count(out: Path) -> Counts:
    items = pq.read_table(out / ITEMS_FILE, columns=["eligible", "unlisted"])
    lengths = [pc.list_value_length(table[ITEMS]).to_numpy() for table in read_all(out, [ITEMS])]
    return {
        "rows": sum(length.size for length in lengths),
        "users_with_history": int(sum((length > 0).sum() for length in lengths)),
        "pairs": int(sum(length.sum() for length in lengths)),
        "items": items.num_rows,
        "eligible": pc.sum(items["eligible"]).as_py() or 0,
        "unlisted": pc.sum(items["unlisted"]).as_py() or 0,
    }
