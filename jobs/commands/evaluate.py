"""`nightlist evaluate`: models measured on a train and a test file, by the night's own stages."""

import tempfile
from collections.abc import Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import click
import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from jobs import models
from jobs.buckets import Buckets
from jobs.commands.options import as_json_line, json_option, set_option
from jobs.config import EventsSettings, RootSettings, check_models, load_settings
from jobs.evaluation import recommend, score
from jobs.inputs import Inputs, RawTable, read_beside, table_of
from jobs.progress import Progress, Terminal
from jobs.run import RunFolder
from jobs.spark import session
from jobs.stages import events
from schemas.columns import EVENT, EVENTS_TABLE, ITEM_ID, TS, USER_ID, VALUE
from schemas.errors import ConfigError, InputError

BLEND = "blend"
LOOKED_AT = (USER_ID, ITEM_ID, EVENT, TS, VALUE)
"""Columns of a file; what it has besides is nobody's business."""
ANY_EVENT = "event"
"""The kind of events in files that know no kinds."""
SOME_DAY = date(2000, 1, 1)
"""The day of files without times."""


def measure(train: Path, test: Path, settings: RootSettings, progress: Progress) -> dict[str, float | int | None]:
    """Metrics of the configured models on `test`, trained on `train`; see `jobs.metrics.measure` for their definitions.

    Raises InputError when a file can't be read or lacks a column.
    """
    spark = session(settings.spark)
    known, asked = (events_of(spark, path, name, settings) for name, path in (("train", train), ("test", test)))
    weighed = settings.events
    settings, day = for_files(settings, known)
    with tempfile.TemporaryDirectory(prefix="nightlist-") as folder:
        run = RunFolder(Path(folder), "evaluate", progress)
        buckets = Buckets(spark, run.digest, settings.dataset.parts, progress)
        kept = cleaned(run, known, settings, day)
        lists = recommend(run, buckets, kept, Inputs(known, None, None, None), settings, day)
        pairs = new_pairs(known, asked, weighed)
        seconds = {f"{name}_seconds": record.seconds for name in ("train", "retrieve") if (record := run.record(name))}
        return score(run.folder, lists, pairs, settings) | seconds


def choose(settings: RootSettings, model: str | None, k: int) -> RootSettings:
    """The settings with one model, or with the blend of the configured ones, and cut-off k. Raises ConfigError."""
    names = settings.retrieve.models
    if model == BLEND:
        names = names if len(names) > 1 else type(settings.retrieve)().models
    elif model:
        if model not in models.names():
            raise ConfigError(
                f"--model {model!r}: there is none of that name; known: {', '.join((*models.names(), BLEND))}"
            )
        names = (model,)
    n = max(settings.retrieve.candidates, k)
    chosen = settings.model_copy(
        update={
            "retrieve": settings.retrieve.model_copy(update={"models": names, "candidates": n}),
            "rerank": settings.rerank.model_copy(update={"n": max(settings.rerank.n, k)}),
            "holdout": settings.holdout.model_copy(update={"k": k}),
        }
    )
    check_models(chosen)
    return chosen


def cleaned(run: RunFolder, known: RawTable, settings: RootSettings, day: date) -> DataFrame:
    """Stage 1 in the run's folder."""
    return known.frame.sparkSession.read.parquet(
        str(run.stage("events", events.clean, known, settings.events, day) / events.KEPT)
    )


def new_pairs(known: RawTable, asked: RawTable, settings: EventsSettings) -> pa.Table:
    """The distinct (user_id, item_id) of `asked` that `known` does not have, sorted; events of a kind that weighs nothing make none."""
    asked_for, had = _pairs(asked, settings), _pairs(known, settings)
    return asked_for.join(had, [USER_ID, ITEM_ID], "left_anti").orderBy(USER_ID, ITEM_ID).toArrow()


def events_of(spark: SparkSession, path: Path, option: str, settings: RootSettings) -> RawTable:
    """A file of events: user_id, item_id, perhaps event, ts and value, under these names or those of [events.columns].

    Raises InputError naming the option and the path.
    """
    end = datetime(SOME_DAY.year, SOME_DAY.month, SOME_DAY.day, 23, 59, 59, tzinfo=UTC)
    constants = {EVENT: ANY_EVENT, TS: end.strftime("%Y-%m-%d %H:%M:%S")}
    frame = read_beside(spark, str(path), settings.input, f"--{option}")
    there = {name: name for name in LOOKED_AT if name in frame.columns}
    there |= {name: raw for name, raw in settings.events.columns.items() if name in LOOKED_AT and raw in frame.columns}
    if {USER_ID, ITEM_ID} <= there.keys():  # else the error names all columns
        frame = frame.select(*(F.col(f"`{column}`") for column in dict.fromkeys(there.values())))
    try:
        return table_of(frame, EVENTS_TABLE, there, constants)
    except InputError as error:
        raise InputError(f"--{option} {path}: {error}") from None


def for_files(settings: RootSettings, known: RawTable) -> tuple[RootSettings, date]:
    """Settings for files of which every row counts by the weight of its kind, and by its value where it has one; and the day (UTC)
    of the latest."""
    plain = EventsSettings(
        weights=settings.events.weights if EVENT in known.columns else {},
        use_value=VALUE in known.columns,
        min_on_day=0,
        earliest=date.min,
    )
    settings = settings.model_copy(update={"events": plain})
    if TS in known.columns:
        newest = known.mapped().agg(F.to_date(F.max(TS)).alias("day")).first()["day"]
        if newest is None:
            raise InputError("no row of the train file has a readable ts")
        return settings, newest
    return settings, SOME_DAY


def counting(table: RawTable, settings: EventsSettings) -> DataFrame:
    """The rows in our names, without those of no kind, or of one that weighs nothing."""
    if EVENT not in table.columns:
        return table.mapped()
    weight = events.weight_of({EVENT: F.col(EVENT)}, EventsSettings(weights=settings.weights))
    return table.mapped().where((weight > 0) & (F.col(EVENT) != ""))


def _pairs(table: RawTable, settings: EventsSettings) -> DataFrame:
    return counting(table, settings).select(USER_ID, ITEM_ID).dropna().distinct()


@click.command()
@click.option(
    "--train",
    type=click.Path(path_type=Path),
    required=True,
    help="Events to train on: user_id, item_id, optionally event, ts and value.",
)
@click.option(
    "--test",
    type=click.Path(path_type=Path),
    required=True,
    help="Events to score on; pairs that stand in --train are dropped.",
)
@click.option(
    "--config", "-c", type=click.Path(dir_okay=False, path_type=Path), help="Settings; without it, the defaults."
)
@click.option(
    "--model", help=f"A model ({', '.join(models.names())}) or `blend`. Default: what --config or --set says, else als."
)
@set_option
@click.option("--k", default=20, show_default=True, type=click.IntRange(min=1), help="Cut-off of the metrics.")
@json_option
def evaluate(
    train: Path, test: Path, config: Path | None, model: str | None, overrides: Sequence[str], k: int, as_json: bool
) -> None:
    """Measure a model, or the blend, on a train and a test file, by the night's own stages.

    Means over all users of --test with at least one new pair; a user whom --train doesn't have gets the popular list. Of [events],
    the names of columns and the weights of kinds count, and no other setting.
    """
    with as_json_line(as_json) as say:
        configured = config or any(override.startswith("retrieve.models") for override in overrides)
        settings = choose(load_settings(config, overrides), model or (None if configured else "als"), k)
        found: dict[str, Any] = measure(train, test, settings, Terminal())
        say({"model": BLEND if len(settings.retrieve.models) > 1 else settings.retrieve.models[0]} | found)
