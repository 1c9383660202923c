"""The runs of past days, built and not served."""

from collections.abc import Callable, Sequence
from datetime import date, datetime, timedelta
from pathlib import Path

import click

from jobs.buckets import Buckets
from jobs.commands.options import as_day, config_option, interruptible, json_option, reporting, set_option
from jobs.config import RootSettings, load_settings
from jobs.identity import Identity, identify
from jobs.inputs import Inputs
from jobs.ledger import (
    BUILT,
    DONE,
    LEFT_ALONE,
    LIVE,
    NOT_PROMOTED,
    SKIPPED,
    STEPS,
    Attempt,
    Backfilled,
    Unfinished,
    found,
)
from jobs.manifest import Report
from jobs.nightly import begun, judge, lists, opened, release
from jobs.origin import Origin
from jobs.progress import Progress, Terminal
from jobs.run import PUBLISHED, ROLLED_BACK, RunFolder, now, parent_of
from jobs.spark import session
from jobs.stages import publish


def make(
    settings: RootSettings,
    days: Sequence[date],
    report: Backfilled,
    progress: Progress,
    clock: Callable[[], datetime] = now,
    promote: bool = False,
    force: bool = False,
) -> None:
    """Build the run of each day, oldest first, and with `promote` publish that of the last one; `report` is filled on the way.

    What an earlier try finished is not done again. Raises Unfinished when days failed, after the others; what is wrong for
    every day ends it at once.
    """
    spark, inputs = opened(settings)
    with progress.watch("days x stages", len(days) * len(STEPS), report.steps):
        for number, day in enumerate(days, 1):
            progress.note(f"day {number} of {len(days)}: {day}")
            identity = identify(inputs, settings, day)  # no day's own error: a later day reads all that this one can't
            run, buckets = begun(spark, identity, settings, progress)
            with report.attempt(day, run, clock) as attempt, run.lock():
                attempt.outcome = build(run, identity, buckets, inputs, settings, force, clock)
                if promote and day == days[-1]:
                    attempt.outcome = NOT_PROMOTED
                    publish_newest(run, identity, buckets, settings, clock)
                    attempt.outcome, report.promoted = LIVE, run.run_id
    report.check(promote)


def build(
    run: RunFolder,
    identity: Identity,
    buckets: Buckets,
    inputs: Inputs,
    settings: RootSettings,
    force: bool,
    clock: Callable[[], datetime],
) -> str:
    """Stages 1 to 7, without a parent, unless the run was published: BUILT, SKIPPED or LEFT_ALONE."""
    before = found(run)
    if before == LEFT_ALONE:  # the next night's gate reads it, and it is what was verified
        return LEFT_ALONE
    if force:
        run.discard()
    record = run.record("build")
    lists(run, identity, buckets, inputs, None, Origin(None, "a backfilled run has no parent"), settings, clock)
    return SKIPPED if before == DONE and run.record("build") == record else BUILT


def publish_newest(
    run: RunFolder, identity: Identity, buckets: Buckets, settings: RootSettings, clock: Callable[[], datetime]
) -> None:
    """Stages 8 and 9 as in the night. Raises what they raise; the run stays built then."""
    if run.read(ROLLED_BACK):
        raise publish.bad(run.run_id)
    report = Report(run)
    if not run.read(PUBLISHED):
        judge(run, identity, buckets, parent_of(settings.paths.runs, identity.day), settings, report, override=None)
    release(run, buckets, settings, report, clock)


def plan(settings: RootSettings, days: Sequence[date], report: Backfilled) -> None:
    """Which run each day would have, and what is there of it; nothing is written."""
    _, inputs = opened(settings)
    for day in days:
        identity = identify(inputs, settings, day)
        run = RunFolder(settings.paths.runs / identity.run_id, identity.digest, Progress())
        report.attempts.append(Attempt(day, run, found(run)))


def days_between(first: date, last: date) -> list[date]:
    """Both ends included. Raises click.UsageError when they are the wrong way round."""
    if first > last:
        raise click.UsageError(f"--from {first} is after --to {last}; days are made oldest first")
    return [first + timedelta(days=number) for number in range((last - first).days + 1)]


@click.command()
@config_option
@click.option("--from", "first", required=True, type=as_day, help="The oldest day to build (UTC).")
@click.option("--to", "last", required=True, type=as_day, help="The newest day to build (UTC).")
@set_option
@click.option("--promote", is_flag=True, help="Judge the newest day's run and publish it, as its night would.")
@click.option("--force", is_flag=True, help="Build anew what is there, but for runs that were published.")
@click.option("--dry-run", is_flag=True, help="Only say which runs there would be, and what is there of them.")
@json_option
def backfill(
    config: Path,
    first: date,
    last: date,
    overrides: tuple[str, ...],
    promote: bool,
    force: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Rebuild the runs of past days. They stay BUILT: what is served does not change, unless --promote publishes the newest.

    Started again after a crash, it goes on where it stopped; <paths.runs>/backfill.jsonl has a line a day that ended. Exit
    codes: 0 all days are built (and the newest is live), else that of the days that failed where they share one, or 1.
    """
    days = days_between(first, last)
    with reporting(Backfilled(), as_json) as report:
        settings = load_settings(config, overrides)
        session(settings.spark)
        with interruptible(Unfinished("interrupted; finished days stay, and the same command goes on from there", 130)):
            if dry_run:
                plan(settings, days, report)
            else:
                make(settings, days, report, Terminal(), promote=promote, force=force)
