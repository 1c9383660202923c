"""`nightlist runs`: what was built, what is stored, what is live."""

from datetime import datetime
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from jobs.commands.options import config_option, failing, json_option, print_json
from jobs.config import RootSettings, load_settings
from jobs.run import MANIFEST, all_runs, now
from jobs.stores import open_store
from lookup_api.readers import open_reader


def known_runs(settings: RootSettings, at: datetime) -> dict[str, Any]:
    """The pointer, and every run of the runs' folder and of the store, newest name first: the store's state wins over the manifest's."""
    store, reader = open_store(settings.store), open_reader(settings.store)
    try:  # the reader's view: it knows a store in which nothing was ever published
        pointer, stored = reader.release(), {record.run_id: record for record in reader.runs()}
        built = {run.run_id: run.read(MANIFEST) or {} for run in all_runs(settings.paths.runs)}
        rows = []
        for run_id in sorted(stored.keys() | built.keys(), reverse=True):
            record, manifest = stored.get(run_id), built.get(run_id, {})
            rows.append(
                {
                    "run_id": run_id,
                    "state": record.state if record else manifest["state"],
                    "live": bool(pointer and pointer.run_id == run_id),
                    "rows": record.rows if record else None,
                    "bytes": store.size(run_id) if record else 0,
                    "changed_seconds_ago": round((at - record.changed_at).total_seconds()) if record else None,
                    "verdict": (manifest.get("verdict") or {}).get("status"),
                }
            )
    finally:
        reader.close()
        store.close()
    live = {"run_id": pointer.run_id, "sequence": pointer.sequence, "previous": pointer.previous} if pointer else None
    return {"live": live, "runs": rows}


def show(found: dict[str, Any], console: Console) -> None:
    """The same as a table."""
    table = Table("run", "state", "verdict", "lists", "MB", "changed", box=None)
    for row in found["runs"]:
        size = f"{row['bytes'] / 1e6:.1f}" if row["bytes"] else ""
        lists = f"{row['rows']:,}" if row["rows"] is not None else ""
        state = f"[bold]{row['state']}[/bold] <- served" if row["live"] else row["state"]
        table.add_row(row["run_id"], state, row["verdict"] or "", lists, size, ago(row["changed_seconds_ago"]))
    console.print(table if found["runs"] else "no runs yet; make one with `nightlist nightly --date ...`")


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
    """Show the runs, newest first: states, verdicts, rows, sizes and ages, and which one is served."""
    with failing():
        found = known_runs(load_settings(config), now())
        print_json(found) if as_json else show(found, Console(highlight=False))
