"""Stage 1: raw events become clean ones, in UTC; what can't be used is kept aside and counted by its one reason."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, timedelta
from pathlib import Path

import pyarrow.parquet as pq
from pyspark.errors import PySparkException
from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from jobs.config import EventsSettings
from jobs.identity import end_of, window
from jobs.inputs import RawTable, first_line, rejected_by
from jobs.run import Counts
from schemas.columns import EVENT, IMPRESSION, ITEM_ID, TS, USER_ID, VALUE
from schemas.errors import InputError
from schemas.ids import CONTROL_CHARACTERS, MAX_ID_BYTES

WEIGHT = "weight"
KEPT, REJECTED = "kept", "rejected"
JUDGEMENT = "_rejected_as"
HUGE = 1e12
"""A value beyond this is a broken meter; it would drown all others."""


def clean(out: Path, events: RawTable, settings: EventsSettings, day: date) -> Counts:
    """Write `kept` (our columns and the event's weight) and `rejected` (raw columns and the reason) for rows up to `day`.

    Every row read gets exactly one reason, the first that applies: the user's rules in file order, then Nightlist's own.
    Raises InputError when the day itself has fewer than `min_on_day` events, or a rule stumbles over a value.
    """
    rows = judged(events, settings, day)
    typed = events.typed() | {WEIGHT: weight_of(events.typed(), settings)}
    kept = rows.where(F.col(JUDGEMENT).isNull()).select(*(column.alias(name) for name, column in typed.items()))
    rejected = rows.where(F.col(JUDGEMENT).isNotNull())
    rejected = rejected.select(
        *(F.col(f"`{column}`") for column in events.frame.columns if column != JUDGEMENT), JUDGEMENT
    )
    with judging(settings):
        kept.write.mode("overwrite").parquet(str(out / KEPT))
        rejected.write.mode("overwrite").parquet(str(out / REJECTED))
    return _count(out, kept.sparkSession.read.parquet(str(out / KEPT)), settings, day)


@contextmanager
def judging(settings: EventsSettings) -> Iterator[None]:
    """Around Spark's work on judged rows. Raises InputError where a rule stumbles over a value, e.g. text that is no number."""
    try:
        yield
    except PySparkException as error:
        rules = "; ".join(rule.where for rule in settings.reject) or "none"
        hint = f"if a rule of [[events.reject]] stumbles, try_cast(column AS DOUBLE) makes it pass; rules: {rules}"
        raise InputError(f"events can't be judged: {first_line(error)}; {hint}") from None


def weight_of(columns: dict[str, Column], settings: EventsSettings) -> Column:
    """Weight of an event: its kind's, times its value where the settings say so; 0 for an impression unless it has a weight."""
    weights = {IMPRESSION: 0.0} | settings.weights
    default = F.lit(None) if settings.weights else F.lit(1.0)
    pairs = [literal for kind, weight in weights.items() for literal in (F.lit(kind), F.lit(float(weight)))]
    weight = F.coalesce(F.create_map(*pairs)[columns[EVENT]], default)
    if settings.use_value and VALUE in columns:
        weight = weight * F.greatest(F.coalesce(columns[VALUE], F.lit(1.0)), F.lit(0.0))
    return weight.cast("double")


def judged(events: RawTable, settings: EventsSettings, day: date) -> DataFrame:
    """The raw rows of the window with their reason in the column JUDGEMENT, null for those to keep."""
    rules = [(rule.reason, rejected_by(events.frame, rule.where)) for rule in settings.reject]
    reasons = [F.when(condition, F.lit(reason)) for reason, condition in [*rules, *_own_rules(events, settings)]]
    rows = events.frame.where(window(events.typed()[TS], day)).withColumn(JUDGEMENT, F.coalesce(*reasons))
    if not settings.key:
        return rows
    key = [F.col(f"`{column}`") for column in settings.key]
    whole = F.col(JUDGEMENT).isNull()
    for column in key:
        whole = whole & column.isNotNull()
    order = [events.typed()[TS], F.xxhash64(*(F.col(f"`{column}`") for column in events.frame.columns))]
    earlier = F.row_number().over(Window.partitionBy(whole, *key).orderBy(*order)) > 1
    return rows.withColumn(JUDGEMENT, F.when(whole & earlier, F.lit("duplicate")).otherwise(F.col(JUDGEMENT)))


def _own_rules(events: RawTable, settings: EventsSettings) -> Iterator[tuple[str, Column]]:
    columns = events.typed()
    for name in (USER_ID, ITEM_ID):
        column = columns[name]
        yield f"missing_{name}", column.isNull() | (column == "")
        yield f"bad_{name}", (F.octet_length(column) > MAX_ID_BYTES) | column.rlike(CONTROL_CHARACTERS)
    yield "missing_event", columns[EVENT].isNull() | (columns[EVENT] == "")
    yield "unknown_event", weight_of(columns, EventsSettings(weights=settings.weights)).isNull()
    yield "bad_ts", columns[TS].isNull()
    yield "ts_too_early", columns[TS] < F.lit(end_of(settings.earliest) - timedelta(days=1))
    if VALUE in columns:
        raw = F.col(f"`{events.columns[VALUE]}`")
        value = columns[VALUE]
        yield "bad_value", (raw.isNotNull() & value.isNull()) | F.isnan(value) | (F.abs(value) > HUGE)


def _count(out: Path, kept: DataFrame, settings: EventsSettings, day: date) -> Counts:
    """Rows by outcome; raises InputError where the day has too few."""
    begin = end_of(day) - timedelta(days=1)
    found = kept.agg(
        F.count(F.lit(1)).alias("kept"),
        F.sum((F.col(TS) >= F.lit(begin)).cast("int")).alias("on_day"),
        F.max(TS).cast("date").alias("newest"),
    ).first()
    rejected = _rejected_by_reason(out)
    counts = {"rows": found["kept"], "read": found["kept"] + sum(rejected.values()), "on_day": found["on_day"] or 0}
    if counts["on_day"] < settings.min_on_day:
        raise InputError(_too_few(found["newest"], counts, rejected, settings, day, out))
    return counts | {"rejected": rejected}


def _rejected_by_reason(out: Path) -> dict[str, int]:
    reasons = pq.read_table(out / REJECTED, columns=[JUDGEMENT]).group_by(JUDGEMENT).aggregate([([], "count_all")])
    return {row[JUDGEMENT]: row["count_all"] for row in sorted(reasons.to_pylist(), key=lambda row: row[JUDGEMENT])}


def _too_few(
    newest: date | None, counts: Counts, rejected: dict[str, int], settings: EventsSettings, day: date, out: Path
) -> str:
    reasons = ", ".join(f"{reason} {count}" for reason, count in rejected.items()) or "none"
    last = f"the newest is of {newest}" if newest else "there is none of an earlier day either"
    return (
        f"{counts['on_day']} usable events on {day} (events.min_on_day = {settings.min_on_day}); {last}; "
        f"read {counts['read']}, rejected: {reasons} (kept aside in {out / REJECTED}); "
        f"mend the import and start the night again, or give another --date"
    )
