"""`nightlist rollback`: serve an earlier run again."""

import time
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import click

from jobs.commands.options import config_option, failing, json_option, print_json, terminable
from jobs.commands.runs import ago
from jobs.config import RootSettings, load_settings
from jobs.lease import wait_for_lease
from jobs.progress import Terminal
from jobs.rollback import Looked, Plan, look, plan, roll_back
from jobs.run import RunFolder, now
from jobs.stages.publish import publishing
from jobs.stores import Store, open_store
from lookup_api.readers import Reader, open_reader
from schemas.errors import Busy
from schemas.runs import LeaseHeld, Release


@click.command()
@config_option
@click.option("--to", "wanted", metavar="RUN_ID", help="The run to go back to; default: the one that was served last.")
@click.option("--yes", is_flag=True, help="Don't ask.")
@click.option("--dry-run", is_flag=True, help="Only show what would change; takes no lease.")
@click.option(
    "--take-over", is_flag=True, help="Don't wait for a publisher at work: its night ends, to be started again."
)
@json_option
def rollback(config: Path, wanted: str | None, yes: bool, dry_run: bool, take_over: bool, as_json: bool) -> None:
    """Serve an earlier run again. The run that is live becomes BAD, for ever: the same input and settings won't be published again.

    Every list of the target is read before anything changes. One that died on its way is finished by the next one. Exit
    codes: 0 done, 1 you said no, 3 there is no way back, 4 somebody is publishing, 5 the store can't be reached.
    """
    with failing(), terminable():
        settings = load_settings(config)
        store, reader = open_store(settings.store), open_reader(settings.store)
        try:
            pointer = store.pointer()
            progress = Terminal()
            left = RunFolder(settings.paths.runs / (pointer.run_id if pointer else "none"), "", progress)
            chosen = plan(store.runs(), pointer, wanted, left)
            looked = look(reader, chosen, progress)
            show(chosen, looked, now())
            if dry_run:
                print_json(line(chosen, looked) | {"dry_run": True}) if as_json else None
                return
            if not (yes or click.confirm("go on?", err=True)):
                raise SystemExit(1)
            release = under_lease(settings, store, reader, chosen, left, take_over)
        finally:
            reader.close()
            store.close()
        done = line(replace(chosen, sequence=release.sequence), looked) | {"dry_run": False}
        print_json(done) if as_json else click.echo(f"live: {release.run_id} (sequence {release.sequence})")


def under_lease(
    settings: RootSettings, store: Store, reader: Reader, chosen: Plan, left: RunFolder, take_over: bool
) -> Release:
    """Wait for the lease of a publisher that may have died, and roll back. Raises Busy where one is at work."""
    try:
        if not take_over:
            wait_for_lease(store, now, lambda text: click.echo(text, err=True), time.sleep)
        with publishing(store, reader, settings.store, now, take_over) as publisher:
            return roll_back(publisher, chosen, left)
    except LeaseHeld as held:
        raise Busy(f"{held}, or take its place with --take-over: its night can be started again") from None


def show(chosen: Plan, looked: Looked, at: datetime) -> None:
    """What would change, on stderr."""

    def say(text: str) -> None:
        click.echo(text, err=True)

    target, leaves = chosen.target, chosen.leaves
    for record in chosen.choices:
        mark = "->" if record.run_id == target.run_id else "  "
        say(f"{mark} {record.run_id}  {record.rows or 0:>12,} lists  last served {ago(age(record.changed_at, at))}")
    if chosen.begun:
        say(f"a rollback from {leaves.run_id} was begun and not finished: this only finishes it")
    say(
        f"serve {target.run_id} again, instead of {leaves.run_id}, which {'is' if chosen.begun else 'becomes'} BAD for ever"
    )
    say(f"  lists: {leaves.rows or 0:,} now, {target.rows or 0:,} then, all of them read in {looked.seconds:.1f} s")
    say(f"  scored: {ago(age(looked.live_scored_at, at)) or 'unknown'} now, {ago(age(looked.scored_at, at))} then")
    if looked.missing is None:
        say(f"  {leaves.run_id} can't be read")
    else:
        same = "" if looked.same_items is None else f"; the others share {looked.same_items:.0%} of their items with it"
        say(f"  of {looked.sampled:,} lists {looked.missing:,} have none in {leaves.run_id}{same}")


def age(time: datetime | None, at: datetime) -> int | None:
    """Seconds since then."""
    return None if time is None else round((at - time).total_seconds())


def line(chosen: Plan, looked: Looked) -> dict[str, object]:
    """For machines: which run is (or would be) served and which one is BAD, and how the two compare."""
    return {
        "run_id": chosen.target.run_id,
        "sequence": chosen.sequence,
        "bad": chosen.leaves.run_id,
        "begun": chosen.begun,
        "choices": [record.run_id for record in chosen.choices],
        "lists": {"now": chosen.leaves.rows, "then": looked.rows},
        "scored_at": {"now": _iso(looked.live_scored_at), "then": _iso(looked.scored_at)},
        "sample": {"lists": looked.sampled, "missing_now": looked.missing, "same_items": looked.same_items},
        "seconds": looked.seconds,
    }


def _iso(time: datetime | None) -> str | None:
    return time.isoformat() if time else None
