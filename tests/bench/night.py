"""A whole night of the made-up platform: seconds, peak memory and bytes of each stage, and what a user costs.

It publishes into the embedded store, and, where asked to, the same run into one real Cassandra node besides.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from jobs.commands.init import toml
from jobs.config import SparkSettings, load_settings
from jobs.run import Record, read_json
from jobs.spark import session
from jobs.stores import open_store
from jobs.world import World, generate
from lookup_api.readers import open_reader
from schemas.settings import CONFIG_FILE
from tests.bench._memory import Watch
from tests.bench._node import production_node
from tests.cassandra import create_roles
from tests.commands import ROOT

STAGES = ("events", "dataset", "train", "retrieve", "rank", "rerank", "holdout", "build", "gate")
PUBLISH = "publish"
"""The last stage: it has no folder, and its record is published.json."""
CONFIG = """
[paths]
runs = "runs"
[input]
events = "world/events"
items = "world/items"
users = "world/users"
blocks = "world/blocks"
[events.weights]
watch = 1.0
like = 2.0
[spark.conf]
"spark.driver.memory" = "5g"
"""


def measure(users: int = 20_000, items: int = 10_000, folder: str = "", cassandra: bool = False) -> dict[str, Any]:
    """Generates `users` users and `items` videos with 50 events a user in 30 days, and makes the night of the last day;
    `cassandra` publishes its run into a node, too.

    `folder` keeps all that is made; by default it is a temporary one. Memory is that of Spark and Python together, each
    shared page counted once; a node's is told apart. By stage: `seconds`, `peak_gib_of`, `bytes_of` (of the stage's folder).
    """
    with tempfile.TemporaryDirectory(prefix="nightlist-") as temporary:
        place = Path(folder or temporary)
        world, start = World(users=users, items=items), time.monotonic()
        generated(world, place)
        generating = time.monotonic() - start
        night = made(config(place / CONFIG_FILE, {"path": str(place / "store")}), world.end)
        found = {
            "state": night.report.get("state"),
            "events": night.counts("events").get("read"),
            "generate_seconds": round(generating, 1),
            "seconds": night.seconds(),
            "night_seconds": round(night.watch.seconds, 1),
            "seconds_a_thousand_users": round(1_000 * night.watch.seconds / users, 3),
            "peak_gib": night.watch.peak_gib(),
            "peak_gib_of": {name: night.watch.peak_gib(*times) for name, times in night.times()},
            "bytes_of": {name: size(night.run / name) for name in STAGES},
            "store_bytes": night.store_bytes(),
            "metrics": night.report.get("metrics"),
        }
        return found | ({"cassandra": into_cassandra(place, world.end)} if cassandra else {})


def into_cassandra(place: Path, day: date) -> dict[str, Any]:
    """The same night started again with one node for a store: its stages are done before, and it only publishes.

    `load_seconds` and `lists_a_second` are until a quorum has all lists, `verify_seconds` what publication takes besides: all
    lists are read back and compared, and the pointer is moved.
    """
    with tempfile.TemporaryDirectory(dir=place, prefix="node-") as folder, production_node(Path(folder)) as node:
        create_roles(node)
        file = config(place / "cassandra.toml", node.section("bench"))
        subprocess.run([*NIGHTLIST, "init", "--store", "-c", file], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
        assert node.process
        with Watch(node.process.pid) as of_node:
            night = made(file, day)
        node.nodetool("flush")
        loading, publishing = night.load_seconds(), night.seconds().get(PUBLISH, 0.0)
        lists = night.counts("build").get("rows", 0)
        return {
            "live": night.is_live(),
            "lists": lists,
            "load_seconds": round(loading, 1),
            "lists_a_second": round(lists / loading) if loading else None,
            "verify_seconds": round(publishing - loading, 1),
            "night_seconds": round(night.watch.seconds, 1),
            "peak_gib": night.watch.peak_gib(),
            "node_peak_gib": of_node.peak_gib(),
            "store_bytes": night.store_bytes(),
        }


NIGHTLIST = (sys.executable, "-m", "jobs.cli")


def config(file: Path, store: dict[str, Any]) -> Path:
    """The night's configuration with this [store], written."""
    lines = "".join(f"{name} = {toml(value)}\n" for name, value in store.items())
    file.write_text(f"{CONFIG}[store]\n{lines}", encoding="utf-8")
    return file


def generated(world: World, place: Path) -> None:
    """The platform's tables, by a Spark of their own, which is gone before the night begins."""
    if (place / "world").exists():
        return
    spark = session(SparkSettings())
    try:
        generate(spark, world, place / "world")
    finally:
        spark.stop()


@dataclass(frozen=True)
class Night:
    """A night that has ended: what it printed, its folder, and who watched it."""

    file: Path
    report: dict[str, Any]
    watch: Watch

    @property
    def run(self) -> Path:
        """The run's folder."""
        return self.file.parent / "runs" / str(self.report.get("run_id"))

    def counts(self, stage: str) -> dict[str, Any]:
        """What a stage counted; nothing where the night did not come so far."""
        record = read_json(self.run / f"{stage}.json")
        return Record(**record).counts if record else {}

    def seconds(self) -> dict[str, float]:
        """Of each stage."""
        return {name: spent for name, spent in self.report.get("seconds", {}).items() if name in (*STAGES, PUBLISH)}

    def times(self) -> Iterator[tuple[str, tuple[float, float]]]:
        """When each stage began and ended."""
        for name, spent in self.seconds().items():
            record = self.run / ("published.json" if name == PUBLISH else f"{name}.json")
            until = record.stat().st_mtime if record.exists() else 0.0
            yield name, (until - spent, until)

    def load_seconds(self) -> float:
        """From the begin of the first part that was loaded to the end of the last."""
        parts = [(path.stat().st_mtime, read_json(path)) for path in (self.run / "load").glob("*.json")]
        begun = [until - part["seconds"] for until, part in parts if part]
        return max(until for until, _ in parts) - min(begun) if begun else 0.0

    def is_live(self) -> bool:
        """Whether who looks lists up is told this run's."""
        with closing(open_reader(load_settings(self.file).store)) as reader:
            release = reader.release()
        return release is not None and release.run_id == self.run.name

    def store_bytes(self) -> int | None:
        """Of the run in the store."""
        with closing(open_store(load_settings(self.file).store)) as store:
            return store.size(self.run.name)


def made(file: Path, day: date) -> Night:
    """The night of the day, in a process of its own."""
    command = [*NIGHTLIST, "nightly", "-c", str(file), "--date", str(day), "--json"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process, Watch(process.pid) as watch:
        out, _ = process.communicate()
    return Night(file, json.loads(out.splitlines()[-1]) if out else {}, watch)


def size(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
