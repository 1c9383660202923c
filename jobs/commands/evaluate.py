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
from jobs.inputs import Inputs, RawTable, read_frame, table_of
from jobs.progress import Progress, Terminal
from jobs.run import RunFolder
from jobs.spark import session
from jobs.stages import events
from schemas.columns import EVENT, EVENTS_TABLE, ITEM_ID, TS, USER_ID, VALUE
from schemas.errors import ConfigError, InputError

BLEND = "blend"
SOME_DAY = date(2000, 1, 1)
"""The day of files without times."""


def measure(train: Path, test: Path, settings: RootSettings, progress: Progress) -> dict[str, float | int | None]:
    """Metrics of the configured models on `test`, trained on `train`; see `jobs.metrics.measure` for their definitions.

    Raises InputError when a file can't be read or lacks a column.
    """
    spark = session(settings.spark)
    known, asked = events_of(spark, train), events_of(spark, test)
    settings, day = for_files(settings, known)
    with tempfile.TemporaryDirectory(prefix="nightlist-") as folder:
        run = RunFolder(Path(folder), "evaluate", progress)
        buckets = Buckets(spark, run.digest, settings.dataset.parts, progress)
        kept = cleaned(run, known, settings, day)
        lists = recommend(run, buckets, kept, Inputs(known, None, None, None), settings, day)
        pairs = new_pairs(known, asked)
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


def new_pairs(known: RawTable, asked: RawTable) -> pa.Table:
    """The distinct (user_id, item_id) of `asked` that `known` does not have, sorted."""
    return _pairs(asked).join(_pairs(known), [USER_ID, ITEM_ID], "left_anti").orderBy(USER_ID, ITEM_ID).toArrow()


def events_of(spark: SparkSession, path: Path) -> RawTable:
    """A file of events: user_id, item_id, perhaps ts and value. Raises InputError naming the path."""
    frame = read_frame(spark, str(path), "", {}, "file")
    kept = [name for name in (USER_ID, ITEM_ID, TS, VALUE) if name in frame.columns]
    end = datetime(SOME_DAY.year, SOME_DAY.month, SOME_DAY.day, 23, 59, 59, tzinfo=UTC)
    return table_of(frame.select(*kept), EVENTS_TABLE, {}, {EVENT: "event", TS: end.strftime("%Y-%m-%d %H:%M:%S")})


def for_files(settings: RootSettings, known: RawTable) -> tuple[RootSettings, date]:
    """Settings for events that are only pairs with, perhaps, a value and a time; and the day of the latest."""
    plain = EventsSettings(default_event="event", use_value=VALUE in known.columns, min_on_day=0, earliest=date.min)
    settings = settings.model_copy(update={"events": plain})
    if TS in known.columns:
        newest = known.mapped().agg(F.max(TS).alias(TS)).first()[TS]
        if newest is None:
            raise InputError("no row of the train file has a readable ts")
        return settings, newest.date()
    return settings, SOME_DAY


def _pairs(table: RawTable) -> DataFrame:
    return table.mapped().select(USER_ID, ITEM_ID).dropna().distinct()


@click.command()
@click.option(
    "--train",
    type=click.Path(path_type=Path),
    required=True,
    help="Events to train on: user_id, item_id, optionally ts and value.",
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
@click.option("--model", help="A model (als, popular, similar) or `blend`. Default: what the config says, else als.")
@set_option
@click.option("--k", default=20, show_default=True, type=click.IntRange(min=1), help="Cut-off of the metrics.")
@json_option
def evaluate(
    train: Path, test: Path, config: Path | None, model: str | None, overrides: Sequence[str], k: int, as_json: bool
) -> None:
    """Measure a model, or the blend, on a train and a test file, by the night's own stages.

    Means over all users of --test with at least one new pair; a user whom --train doesn't have gets the popular list.
    """
    with as_json_line(as_json) as say:
        settings = choose(load_settings(config, overrides), model or (None if config else "als"), k)
        found: dict[str, Any] = measure(train, test, settings, Terminal())
        say({"model": BLEND if len(settings.retrieve.models) > 1 else settings.retrieve.models[0]} | found)
