"""`nightlist demo`: a whole night over a small made-up world, and its lists to look at."""

import sys
from dataclasses import dataclass, field
from pathlib import Path

import click
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Column, Table

from jobs.commands.options import json_option, reporting
from jobs.config import load_settings
from jobs.manifest import Report
from jobs.nightly import make
from jobs.progress import Terminal
from jobs.spark import session
from jobs.world import World, generate
from lookup_api.readers import open_reader
from schemas.columns import ITEM_ID, TS, USER_ID
from schemas.errors import ConfigError
from schemas.lists import ServedList
from schemas.settings import CONFIG_FILE

CONFIG = """\
# Written by `nightlist demo`. `nightlist init` writes a file with every setting.
[input]
events = "world/events"
items = "world/items"
users = "world/users"
blocks = "world/blocks"

[events]
weights = { watch = 1.0, like = 2.0 }

[popular]
segments = ["country"]

[als]
factors = 32
regularization = 10.0
alpha = 3.0

[rank]
weights = { als = 2.0, popular = 1.0, similar = 0.75 }

[dataset]
parts = 8

[paths]
runs = "runs"

[store]
path = "store"

[auth]
open = true  # whoever is on this machine may ask, and nobody else
"""
LAST_TABLE = "truth_items"
"""Of a world: where it is there, all of them are."""
SHOWN = 8
"""Titles a column."""
WIDTH = 56
"""Of a title; two columns fit a usual terminal."""


@dataclass
class Demo(Report):
    """A night's report, and three of its users for a person to look at."""

    folder: Path = Path()
    world: World = field(default_factory=World)

    def show(self, console: Console) -> None:
        """What three users watched and were given, how good the lists are, and what to type next."""
        titles = _titles(self.folder)
        for user in _three_users(self.folder):
            console.print(_side_by_side(self.folder, user, titles))
        measured = (self.line()["metrics"] or {}).get("holdout")
        if measured:
            ours, popular = measured["ndcg@20"], measured["popular_ndcg@20"]
            console.print(
                f"On the held-out day {self.world.end}, trained on the days before: NDCG@20 {ours:.3f}, popularity alone "
                f"{popular:.3f} ({ours / popular:.1f} times), over {measured['users']} users.\n"
            )
        console.print(f"Run {self.line()['run_id']} is live. Now try:\n{_next(self.folder)}", markup=False)


def _next(folder: Path) -> str:
    config = f"--config {folder / CONFIG_FILE}"
    nightlist = sys.argv[0] if Path(sys.argv[0]).name == "nightlist" else "nightlist"
    return (
        f"  {nightlist} serve {config}\n"
        f"  curl 'http://127.0.0.1:8080/v1/users/{_three_users(folder)[0]}/recommendations?n=5'\n"
        f"  {nightlist} runs {config}\n"
        f"  {nightlist} init      # for your own data"
    )


def _titles(folder: Path) -> dict[str, str]:
    """What each video is about and what it is called, short enough for a column."""
    items = pq.read_table(folder / "world" / "items", columns=[ITEM_ID, "title", "tags"]).to_pylist()
    return {row[ITEM_ID]: f"{row['tags'][0]}: {row['title'].partition(' | ')[0]}" for row in items}


def _watched(folder: Path) -> pa.Table:
    events = pq.read_table(folder / "world" / "events", columns=[USER_ID, ITEM_ID, "event", TS])
    return events.filter(pc.equal(events["event"], "watch"))


def _three_users(folder: Path) -> list[str]:
    """Three users with a history that is long enough to show and short enough to be a person's."""
    counts = _watched(folder).group_by(USER_ID).aggregate([(ITEM_ID, "count_distinct")]).to_pylist()
    found = sorted(row[USER_ID] for row in counts if SHOWN <= row[f"{ITEM_ID}_count_distinct"] <= 60)
    return [found[len(found) * place // 4] for place in (1, 2, 3)]


def _side_by_side(folder: Path, user: str, titles: dict[str, str]) -> Table:
    """One user's latest views beside the list that is served."""
    watched = _watched(folder)
    mine = watched.filter(pc.equal(watched[USER_ID], user)).sort_by([(TS, "descending")])
    latest = list(dict.fromkeys(mine[ITEM_ID].to_pylist()))[:SHOWN]
    given = _served(folder, user)
    table = Table(*(Column(title, no_wrap=True, width=WIDTH) for title in (f"{user} watched", "and is given")))
    for place in range(SHOWN):
        item = given.items[place] if place < len(given.items) else None
        seen = titles[latest[place]] if place < len(latest) else ""
        table.add_row(seen, titles.get(item or "", ""))
    return table


def _served(folder: Path, user: str) -> ServedList:
    reader = open_reader(load_settings(folder / CONFIG_FILE).store)
    try:
        release = reader.release()
        found = reader.get(release.run_id, "user", user) if release else None
    finally:
        reader.close()
    assert found, "the night has just published this user's list"
    return found


def run(demo: Demo) -> None:
    """Make the world, where it is not there yet, and the night of its last day.

    Raises ConfigError where the folder holds another configuration, which is left alone, or a world of another size.
    """
    config, world, progress = demo.folder / CONFIG_FILE, demo.folder / "world", Terminal()
    _check(demo, config, world)
    demo.folder.mkdir(parents=True, exist_ok=True)
    config.write_text(CONFIG, encoding="utf-8")
    settings = load_settings(config)
    if not (world / LAST_TABLE).exists():
        progress.note(f"making a world of {demo.world.users:,} users and {demo.world.items:,} videos in {world}")
        generate(session(settings.spark), demo.world, world)
    make(settings, demo.world.end, demo, progress)


def _check(demo: Demo, config: Path, world: Path) -> None:
    if config.exists() and config.read_text(encoding="utf-8", errors="replace") != CONFIG:
        raise ConfigError(
            f"{config} is not as the demo writes it, and would be lost; take another --folder, or make its night: "
            f"nightlist nightly --config {config} --date {demo.world.end}"
        )
    if (world / LAST_TABLE).exists():
        users = pq.read_table(world / "users", columns=[USER_ID]).num_rows
        if users != demo.world.users:
            raise ConfigError(f"{world} is of {users:,} users, not of {demo.world.users:,}; take another --folder")


@click.command()
@click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    default="nightlist-demo",
    show_default=True,
    help="Where the world, its runs and its store go.",
)
@click.option("--users", type=click.IntRange(min=100), default=3_000, show_default=True, help="Users of the world.")
@json_option
def demo(folder: Path, users: int, as_json: bool) -> None:
    """Run a whole night over a small made-up video platform, on the embedded store, and show three users' lists."""
    with reporting(Demo(folder=folder, world=World(users=users, items=max(200, users // 3))), as_json) as report:
        run(report)
