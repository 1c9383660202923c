"""`nightlist validate`: everything that can be known to be wrong before a long job starts."""

from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import click
from pyspark.sql import functions as F

from jobs.commands.options import as_day, as_json_line, config_option, json_option, set_option
from jobs.config import RootSettings, load_settings
from jobs.identity import window
from jobs.inputs import Inputs, check_rules, read_inputs
from jobs.run import now
from jobs.spark import session
from jobs.stages.events import JUDGEMENT, judged, judging
from schemas.columns import TS
from schemas.errors import InputError

TIMES = "a ts is yyyy-mm-dd, with or without hours, or counts from 1970; one such as 12/1/2010 8:26 has to be written so first"
SAMPLE = 100_000
"""Rows looked at: enough to see what is systematic, few enough for a minute."""


def check(settings: RootSettings, day: date) -> dict[str, Any]:
    """What the night would find: tables with their columns, and in a sample of events how many rows would be kept and why not.

    Raises ConfigError and InputError as a night would, and InputError when no row of the sample could be used.
    """
    inputs = read_inputs(session(settings.spark), settings)
    check_rules(inputs, settings)
    sample = _sample(inputs, day)
    rows = judged(sample.events, settings.events, day)
    with judging(settings.events):
        counted = rows.groupBy(F.coalesce(JUDGEMENT, F.lit("kept")).alias("outcome")).count().collect()
    outcomes = {row["outcome"]: row["count"] for row in sorted(counted, key=lambda row: -row["count"])}
    if not outcomes.get("kept"):
        raise InputError(
            f"none of {sum(outcomes.values())} sampled events up to {day} can be used: {outcomes or 'there are none'}"
            + (f"; {TIMES}" if "bad_ts" in outcomes else "")
        )
    newest = sample.events.mapped().agg(F.max(TS).cast("string").alias(TS)).first()[TS]  # in UTC, as Spark has it
    return {
        "tables": {name: sorted(table.columns) for name, table in inputs.present().items()},
        "sampled": sum(outcomes.values()),
        "outcomes": outcomes,
        "newest_in_sample": newest,
    }


def _sample(inputs: Inputs, day: date) -> Inputs:
    """Events of the window alone: a file may begin with what is later."""
    events = inputs.events
    few = replace(events, frame=events.frame.where(window(events.typed()[TS], day)).limit(SAMPLE))
    return Inputs(few, inputs.items, inputs.users, inputs.blocks)


@click.command()
@config_option
@click.option("--date", "day", type=as_day, help="Judge events up to this day; default: today.")
@set_option
@json_option
def validate(config: Path, day: date | None, overrides: tuple[str, ...], as_json: bool) -> None:
    """Check configuration and input: unknown keys, missing tables and columns, rules that can't work, rows that would be rejected."""
    with as_json_line(as_json) as say:
        say({"config": str(config), "valid": True} | check(load_settings(config, overrides), day or now().date()))
