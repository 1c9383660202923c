"""A whole night of the made-up platform on the embedded store: seconds and peak memory of each stage, and what a user costs."""

import json
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from threading import Event, Thread
from typing import Any

from jobs.config import SparkSettings
from jobs.spark import session
from jobs.world import World, generate
from schemas.settings import CONFIG_FILE

STAGES = ("events", "dataset", "train", "retrieve", "rank", "rerank", "holdout", "build", "gate", "publish")
EVERY = 0.5
"""Seconds between two looks at the memory."""


def measure(users: int = 20_000, items: int = 10_000, folder: str = "") -> dict[str, Any]:
    """Generates `users` users and `items` videos with 50 events a user in 30 days, and makes the night of the last day.

    `folder` keeps all that is made; by default it is a temporary one. Memory is that of Spark and Python together, each
    shared page counted once.
    """
    with tempfile.TemporaryDirectory(prefix="nightlist-") as temporary:
        place = Path(folder or temporary)
        world, start = World(users=users, items=items), time.monotonic()
        rows = generated(world, place)
        generating = time.monotonic() - start
        (place / CONFIG_FILE).write_text(CONFIG)
        command = [
            sys.executable,
            "-m",
            "jobs.cli",
            "nightly",
            "-c",
            place / CONFIG_FILE,
            "--date",
            str(world.end),
            "--json",
        ]
        with Watch(subprocess.Popen(command, stdout=subprocess.PIPE, text=True)) as watch:
            out, _ = watch.process.communicate()
        report = json.loads(out.splitlines()[-1]) if out else {}
        spent = seconds(place, report)
        return {
            "state": report.get("state"),
            "rows": rows,
            "generate_seconds": round(generating, 1),
            "seconds": spent,
            "night_seconds": round(watch.seconds, 1),
            "seconds_a_thousand_users": round(1_000 * watch.seconds / users, 3),
            "peak_gib": round(max(watch.seen.values(), default=0) / 2**30, 2),
            "peak_gib_of": watch.peaks(place / "runs" / str(report.get("run_id"))),
            "metrics": report.get("metrics"),
        }


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
[store]
path = "store"
[spark.conf]
"spark.driver.memory" = "5g"
"""


def generated(world: World, place: Path) -> dict[str, int]:
    """The platform's tables, by a Spark of their own, which is gone before the night begins."""
    if (place / "world").exists():
        return {}
    spark = session(SparkSettings())
    try:
        return generate(spark, world, place / "world")
    finally:
        spark.stop()


def seconds(place: Path, report: dict[str, Any]) -> dict[str, float]:
    """Of each stage, from its record; publication from the report."""
    run = place / "runs" / str(report.get("run_id"))
    records = {name: run / f"{name}.json" for name in STAGES}
    found = {name: json.loads(path.read_text())["seconds"] for name, path in records.items() if path.exists()}
    return found | {name: spent for name, spent in report.get("seconds", {}).items() if name not in found}


class Watch:
    """Looks at a process and its descendants until it ends: the memory that they have together, at each look."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process, self.seen, self.seconds = process, dict[float, int](), 0.0
        self._ended, self._thread = Event(), Thread(target=self._look)

    def __enter__(self) -> "Watch":
        self._begun = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self.seconds = time.monotonic() - self._begun

    def peaks(self, run: Path) -> dict[str, float]:
        """The most, in GiB, while each stage was at work."""
        found = {}
        for name in STAGES:
            record = run / f"{name}.json"
            if record.exists():
                until = record.stat().st_mtime
                since = until - json.loads(record.read_text())["seconds"]
                inside = [size for at, size in self.seen.items() if since <= at <= until + EVERY]
                found[name] = round(max(inside, default=0) / 2**30, 2)
        return found

    def _look(self) -> None:
        while not self._ended.wait(EVERY):
            sizes = [_proportional(pid) for pid in _with_descendants(self.process.pid)]
            self.seen[datetime.now(UTC).timestamp()] = sum(sizes)


def _with_descendants(root: int) -> list[int]:
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue  # it has ended
    found = [root]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found


def _proportional(pid: int) -> int:
    """Bytes of a process, its share of what it shares."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))
