"""`nightlist runs`: what was built, what is stored, what is live, and what happens to it next."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import date, datetime
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Column, Table

from jobs.commands.options import config_option, failing, json_option, print_json
from jobs.config import RootSettings, load_settings
from jobs.manifest import STAGES
from jobs.old_runs import abandoned, pruned_next, settled, ways_back
from jobs.progress import Progress
from jobs.run import MANIFEST, PUBLISHED, RunFolder, now, parent_of
from jobs.stores import Store, open_store
from schemas.runs import RUN_ID_PATTERN, Release, RunRecord
from schemas.settings import StoreSettings

NEXT = {"prune": "pruned next", "clean": "dropped next", "rollback": "<- rollback"}
"""What the next publication, or a rollback, does with a run; for people."""


def known_runs(settings: RootSettings, at: datetime) -> dict[str, Any]:
    """The pointer, the lease, and every run of the runs' folder and of the store, newest name first.

    The store's state wins over the manifest's; a folder without a manifest has none.
    """
    store = open_store(settings.store)
    try:
        pointer, held, stored = store.pointer(), store.holder(), store.runs()
        known, folders = {record.run_id: record for record in stored}, folders_of(settings.paths.runs)
        fates = fates_of(stored, pointer, settings.store, at)
        rows = [
            row(run_id, known.get(run_id), folders.get(run_id), store, at)
            | {"live": bool(pointer and pointer.run_id == run_id), "next": fates.get(run_id)}
            for run_id in sorted(known.keys() | folders.keys(), reverse=True)
        ]
    finally:
        store.close()
    parent = parent_of(settings.paths.runs, date.max)
    return {
        "live": asdict(pointer) | {"published_at": pointer.published_at.isoformat()} if pointer else None,
        "lease": {
            "owner": held.owner,
            "expires_at": held.expires_at.isoformat(),
            "over": held.expires_at <= at,
        }
        if held
        else None,
        "parent": parent.run_id if parent else None,
        "runs": rows,
    }


def folders_of(runs: Path) -> dict[str, RunFolder]:
    """Every run's folder, finished or not."""
    found = (path for path in runs.glob("*") if path.is_dir() and RUN_ID_PATTERN.fullmatch(path.name))
    return {path.name: RunFolder(path, "", Progress()) for path in found}


def fates_of(
    stored: Sequence[RunRecord], pointer: Release | None, settings: StoreSettings, at: datetime
) -> Mapping[str, str]:
    """What comes next, by run: `prune` or `clean` by the next publication (of another run), `rollback` where one would go."""
    records = settled(stored, pointer)
    back = {record.run_id: "rollback" for record in ways_back(records)[:1]}
    pruned = {record.run_id: "prune" for record in pruned_next(records, settings, at)}
    return back | pruned | {record.run_id: "clean" for record in abandoned(records)}


def row(run_id: str, record: RunRecord | None, run: RunFolder | None, store: Store, at: datetime) -> dict[str, Any]:
    """What is known of one run."""
    manifest = (run and run.read(MANIFEST)) or {}
    published = (run and run.read(PUBLISHED)) or {}
    return {
        "run_id": run_id,
        "state": record.state if record else manifest.get("state"),
        "rows": record.rows if record else None,
        "carried": manifest.get("stages", {}).get("due", {}).get("carried"),
        "bytes": store.size(run_id) if record else 0,
        "changed_seconds_ago": round((at - record.changed_at).total_seconds()) if record else None,
        "published_at": published.get("published_at"),
        "verdict": (manifest.get("verdict") or {}).get("status"),
        "built": bool(manifest),
        "stages": [name for name in STAGES if run and run.record(name)],
    }


def show(found: dict[str, Any], console: Console) -> None:
    """The same as a table, and who publishes."""
    width = max((len(run["run_id"]) for run in found["runs"]), default=0)  # an id that is cut short can't be typed
    table = Table(Column("run", min_width=width), "state", "verdict", "lists", "MB", "changed", "", box=None)
    for run in found["runs"]:
        size = f"{run['bytes'] / 1e6:.1f}" if run["bytes"] else ""
        lists = f"{run['rows']:,}" if run["rows"] is not None else ""
        lists += f" ({run['carried']:,} carried)" if run["carried"] else ""
        state = f"[bold]{run['state']}[/bold] <- served" if run["live"] else run["state"] or unfinished(run["stages"])
        changed, fate = ago(run["changed_seconds_ago"]), NEXT.get(run["next"], "")
        table.add_row(run["run_id"], state, run["verdict"] or "", lists, size, changed, fate)
    console.print(table if found["runs"] else "no runs yet; make one with `nightlist nightly --date ...`")
    if lease := found["lease"]:
        until = "it is over" if lease["over"] else f"until {lease['expires_at']} unless it is renewed"
        console.print(f"the lease is held by {lease['owner']}, {until}", soft_wrap=True)


def unfinished(stages: Sequence[str]) -> str:
    """Of a folder without a manifest: a night that is at work, or that died and goes on when it is started again."""
    return f"unfinished, after {stages[-1]}" if stages else "unfinished"


def ago(seconds: int | None) -> str:
    """A duration in its largest unit."""
    if seconds is None:
        return ""
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= size:
            return f"{seconds // size} {unit} ago"
    return f"{seconds} s ago"


@click.command()
@config_option
@json_option
def runs(config: Path, as_json: bool) -> None:
    """Show the runs, newest first: states, verdicts, rows, sizes and ages, which one is served and what happens to each next."""
    with failing():
        found = known_runs(load_settings(config), now())
        print_json(found) if as_json else show(found, Console(highlight=False))
