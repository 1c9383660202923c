"""A night that dies, wherever it dies, changes nothing of what is served; started again, it ends as if it had not died."""

import json
import os
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from jobs.run import RunFolder
from tests.nights import DAY, SHORT_LIVED, Place, at, checkerboard, event, place

ROOT = Path(__file__).parents[1]
PARTS = 8
POINTS = [
    "events",
    "dataset",
    "train",
    "due",
    "buckets",
    "retrieve",
    "rank",
    "rerank",
    "holdout",
    "build",
    "gate",
    "load",
]
"""In the order of the night: each try comes one point further than the one before."""


def world(folder: Path) -> Place:
    """A checkerboard in eight buckets, so that a night can die between two of them, on whose last day half of the users
    do nothing: their lists are carried from the run of the day before."""
    before = at(DAY - timedelta(days=1))
    board = [row if row["user_id"] < "u012" else row | {"ts": min(row["ts"], before)} for row in checkerboard(24)]
    events = [*board, event("u000", "i023"), event("late", "i001")]
    incremental = {"max_age": 4, "active_days": 1.0}
    models = {"models": ["als", "popular"]}
    return place(folder, events, dataset={"parts": PARTS}, retrieve=models, incremental=incremental)


def start(config: Path, point: str, master: str) -> subprocess.CompletedProcess[str]:
    spark = {"NIGHTLIST_SPARK__MASTER": master, "NIGHTLIST_SPARK__CONF": json.dumps(SHORT_LIVED)}
    environment = os.environ | spark | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.killed_night", str(config), DAY.isoformat(), point]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, spark) -> RunFolder:
    """The run of a night that nobody killed, on two cores."""
    there = world(tmp_path_factory.mktemp("undisturbed"))
    there.night(DAY - timedelta(days=1))
    return there.run(there.night())


def checksum(run: RunFolder) -> str:
    return run.counts("build")["lists_checksum"]


def test_killed_anywhere_the_old_lists_are_served_and_the_next_start_finishes(tmp_path, spark, undisturbed):
    """Killed at each stage once, in the middle of the buckets and in the middle of the load, a night loses nothing; and
    the buckets that were scored before it died are never scored again."""
    there = world(tmp_path)
    yesterday = there.run(there.night(DAY - timedelta(days=1))).run_id
    before = [there.served(f"u{user:03d}") for user in range(24)]
    scored = {}

    for point in POINTS:
        died = start(there.config, point, "local[2]")
        assert died.returncode == -signal.SIGKILL, f"{point}: {died.stderr[-2000:]}"
        assert there.live() == yesterday, point
        assert [there.served(f"u{user:03d}") for user in range(24)] == before, point
        scored[point] = closed(there.settings().paths.runs / undisturbed.run_id / "retrieve")

    finished = there.night()

    assert finished.line()["state"] == "LIVE"
    assert finished.run.run_id == undisturbed.run_id == there.live()
    assert checksum(finished.run) == checksum(undisturbed)
    assert 0 < len(scored["buckets"]) < len(scored["retrieve"]) == PARTS
    assert scored["buckets"].items() <= scored["retrieve"].items()
    assert closed(finished.run.folder / "retrieve") == scored["retrieve"]
    assert finished.line()["lists"]["carried"] > 0


def closed(folder: Path) -> dict[str, tuple[int, ...]]:
    """The buckets that have a record, with what another writing of the record or of the data would change."""
    records = {record.stem: (record, record.with_suffix(".parquet")) for record in folder.glob("bucket-*.json")}
    stats = {bucket: [path.stat() for path in paths] for bucket, paths in records.items()}
    return {
        bucket: tuple(n for stat in found for n in (stat.st_ino, stat.st_mtime_ns)) for bucket, found in stats.items()
    }


def test_on_one_core_the_night_makes_the_same_run_with_equal_lists(tmp_path, undisturbed):
    """The same input gives the same run_id and equal lists, on one core and on two."""
    there = world(tmp_path)
    there.night(DAY - timedelta(days=1))

    done = start(there.config, "never", "local[1]")

    assert done.returncode == 0, done.stderr[-2000:]
    assert there.live() == undisturbed.run_id
    assert checksum(RunFolder(there.settings().paths.runs / undisturbed.run_id, "", None)) == checksum(undisturbed)
