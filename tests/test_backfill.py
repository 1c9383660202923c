"""Backfill: the runs of past days are built as their nights would, resume, and never change what is served by themselves."""

import fcntl
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import SparkSession
from rich.console import Console

from jobs.ledger import LEDGER, append
from jobs.manifest import STAGES
from jobs.progress import Progress, Terminal
from jobs.run import MANIFEST, PUBLISHED, ROLLED_BACK, RunFolder
from jobs.world import World, generate
from lookup_api.readers import open_reader
from schemas.runs import RunState
from tests.commands import Ended, nightlist
from tests.nights import DAY, SHORT_LIVED, Place, checkerboard, place

ROOT = Path(__file__).parents[1]
QUICK = {"holdout": {"users": 0}}


def before(days: int) -> date:
    return DAY - timedelta(days=days)


def backfill(there: Place, first: int, last: int, *arguments: str) -> Ended:
    """The days from `first` to `last` before DAY."""
    there.settings()
    return nightlist(
        "backfill", "-c", there.config, "--from", before(first), "--to", before(last), "--json", *arguments
    )


def outcomes(ended: Ended) -> list[str]:
    return [day["outcome"] for day in ended.json["days"]]


def runs_of(there: Place) -> Path:
    return there.settings().paths.runs


def run_of(there: Place, line: dict[str, Any]) -> RunFolder:
    return RunFolder(runs_of(there) / line["run_id"], "", Progress())


def ledger(there: Place) -> list[dict[str, Any]]:
    """The lines that are whole."""
    found = []
    for line in (runs_of(there) / LEDGER).read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


def stored(there: Place) -> dict[str, RunState]:
    """The runs that the store knows."""
    reader = open_reader(there.settings().store)
    try:
        return {record.run_id: record.state for record in reader.runs()}
    finally:
        reader.close()


def files(folder: Path) -> dict[Path, tuple[int, int]]:
    """Inode and time of every file but the lock: a file that is written anew has others."""
    found = (path for path in folder.rglob("*") if path.is_file() and path.name != "lock")
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in found}


@pytest.fixture
def there(tmp_path: Path, spark: SparkSession) -> Place:
    """A checkerboard with events on each of the ten days up to DAY; nothing is made yet."""
    return place(tmp_path, checkerboard(), **QUICK)


def without_events_on(folder: Path, empty: date) -> Place:
    return place(folder, [row for row in checkerboard() if row["ts"].date() != empty], **QUICK)


# Killed and resumed


def world_at(folder: Path, world: Path) -> Place:
    """Seven and more days of a made-up platform."""
    tables = {name: str(world / name) for name in ("events", "items", "users", "blocks")}
    sections = {
        "input": tables,
        "events": {"weights": {"watch": 1.0, "like": 2.0}},
        "dataset": {"parts": 4},
        "als": {"factors": 8, "iterations": 3},
        "retrieve": {"models": ["als", "popular"]},
    }
    folder.mkdir()
    return Place(folder, sections | QUICK)


def killed(there: Place, number: int, point: str) -> subprocess.CompletedProcess[str]:
    """A backfill of the last seven days in a process of its own, killed on its `number`th day."""
    spark = {"NIGHTLIST_SPARK__MASTER": "local[2]", "NIGHTLIST_SPARK__CONF": json.dumps(SHORT_LIVED)}
    command = [sys.executable, "-m", "tests.killed_backfill", there.config, before(6), before(0), number, point]
    environment = os.environ | spark | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [str(part) for part in command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )


def test_killed_in_the_middle_and_started_again_seven_days_end_as_if_nobody_had_killed_them(tmp_path, spark):
    """Killed between two buckets of the third day and again at the end of the fifth: the same runs and lists as without
    a kill, what was finished is not made again, the ledger tells each day when it ended, and the live run stays."""
    generate(spark, World(users=200, items=80, days=14, end=DAY), tmp_path / "world")
    undisturbed, there = (world_at(tmp_path / name, tmp_path / "world") for name in ("undisturbed", "killed"))
    whole = backfill(undisturbed, 6, 0)
    assert (whole.code, outcomes(whole)) == (0, ["built"] * 7), whole.stderr
    there.night(before(7))
    live, states = there.live(), stored(there)

    for number, point, finished in (3, "buckets", 2), (5, "build", 4):
        died = killed(there, number, point)
        assert died.returncode == -signal.SIGKILL, died.stderr[-2000:]
        days = [line["day"] for line in ledger(there) if line["outcome"] == "built"]
        assert days == [before(6 - day).isoformat() for day in range(finished)]
    done = [files(run_of(there, line).folder) for line in ledger(there)]
    resumed = backfill(there, 6, 0)

    assert (resumed.code, outcomes(resumed)) == (0, ["skipped"] * 4 + ["built"] * 3), resumed.stderr
    for name in ("day", "run_id", "lists_checksum", "users", "rows", "kinds"):
        assert [day[name] for day in resumed.json["days"]] == [day[name] for day in whole.json["days"]], name
    assert len({day["lists_checksum"] for day in resumed.json["days"]}) == 7
    assert [files(run_of(there, line).folder) for line in ledger(there)[: len(done)]] == done
    assert (there.live(), stored(there)) == (live, states)
    assert live.startswith(f"{before(7):%Y%m%d}")


def test_ctrl_c_ends_with_130_and_the_summary_and_keeps_what_is_finished(there, tmp_path):
    """No traceback, no line on the day that was at work; the same command goes on."""
    runs = runs_of(there)
    spark = {"NIGHTLIST_SPARK__MASTER": "local[2]", "NIGHTLIST_SPARK__CONF": json.dumps(SHORT_LIVED)}
    command = [sys.executable, "-m", "jobs.cli", "backfill", "-c", there.config, "--from", before(7), "--to", before(0)]
    process = subprocess.Popen(
        [*map(str, command), "--json"],
        cwd=ROOT,
        env=os.environ | spark,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not (runs / LEDGER).exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)

    line = json.loads(out)
    assert process.returncode == 130, err
    assert "Traceback" not in err, err
    assert "interrupted" in line["error"]
    finished = [day for day in line["days"] if day["outcome"] == "built"]
    assert 1 <= len(finished) < 8
    assert [found["run_id"] for found in ledger(there)] == [day["run_id"] for day in finished]
    assert run_of(there, finished[0]).read(MANIFEST)["state"] == "BUILT"


# What is built, and what is not


def test_a_backfilled_run_stops_at_built_and_no_store_is_opened(there):
    """Parquet and a manifest without verdict, no gate, no parent, no publish record, and not even a folder for a store."""
    ended = backfill(there, 1, 0)

    assert (ended.code, outcomes(ended), ended.json["promoted"]) == (0, ["built", "built"], None), ended.stderr
    for day in ended.json["days"]:
        run = run_of(there, day)
        manifest = run.read(MANIFEST)
        assert (manifest["state"], manifest["verdict"], manifest["identity"]["parent"]) == ("BUILT", None, None)
        assert run.record("gate") is None
        assert not run.read(PUBLISHED)
        assert run.counts("served_previous")["metrics"] is None
        assert day["rows"] == run.counts("build")["rows"] == 41
        assert day["users"] == 20
    assert {path.name for path in runs_of(there).parent.iterdir()} == {runs_of(there).name}


def test_the_night_of_a_backfilled_day_goes_on_from_there_and_is_published(there):
    """The same run_id and the very files; the night adds what it alone does: last night's measurement, gate and publish."""
    there.night(before(2))
    yesterday, today = backfill(there, 1, 0).json["days"]
    build = run_of(there, today).folder / "build"
    there_before = files(build)

    report = there.night()

    assert report.line()["state"] == "LIVE"
    assert report.run.run_id == today["run_id"] == there.live()
    assert files(build) == there_before
    assert report.run.counts("served_previous")["run_id"].startswith(f"{before(2):%Y%m%d}")
    assert set(stored(there)) == {today["run_id"], report.run.counts("served_previous")["run_id"]}
    assert yesterday["run_id"] not in stored(there)


def test_days_that_are_done_are_skipped_by_their_records_and_damage_is_made_good(there):
    """A finished day costs no work and keeps its files; one whose Parquet no longer matches its record is built again."""
    first = backfill(there, 2, 0)
    before_it = files(runs_of(there))
    (runs_of(there) / first.json["days"][1]["run_id"] / "build" / "popular.parquet").write_bytes(b"torn")

    again = backfill(there, 2, 0)

    assert outcomes(again) == ["skipped", "built", "skipped"]
    assert [day["lists_checksum"] for day in again.json["days"]] == [
        day["lists_checksum"] for day in first.json["days"]
    ]
    for day in (again.json["days"][0], again.json["days"][2]):
        folder = run_of(there, day).folder
        assert files(folder) == {path: told for path, told in before_it.items() if folder in path.parents}


# Promote


def test_promote_makes_only_the_newest_live(there):
    """The newest is judged against last night's run and published; the store holds nothing of the others."""
    old = there.run(there.night(before(4))).run_id

    ended = backfill(there, 2, 0, "--promote")

    newest = ended.json["days"][-1]
    assert (ended.code, outcomes(ended)) == (0, ["built", "built", "live"]), ended.stderr
    assert ended.json["promoted"] == newest["run_id"] == there.live()
    assert stored(there) == {old: RunState.RETIRED, newest["run_id"]: RunState.LIVE}
    held = [path.name for path in (there.folder / "nightlist-data" / "store").iterdir()]
    for day in ended.json["days"][:-1]:
        assert not any(day["run_id"] in name for name in held)
        assert run_of(there, day).counts("served_previous")["metrics"] is None, "a backfilled run uses no parent"
    manifest = run_of(there, newest).read(MANIFEST)
    assert {gate["name"]: gate["status"] for gate in manifest["verdict"]["gates"]}["users"] == "pass"
    again = backfill(there, 2, 0, "--promote")
    assert (again.code, outcomes(again)) == (0, ["skipped", "skipped", "live"])
    assert there.live() == newest["run_id"]


def test_an_older_backfill_never_changes_what_is_served(there):
    """With --promote, a range before the live run ends with 3 and says why; its runs stay built."""
    live = there.run(there.night()).run_id
    states = stored(there)

    ended = backfill(there, 4, 3, "--promote")

    assert (ended.code, outcomes(ended)) == (3, ["built", "not promoted"])
    assert "older than the live run" in ended.json["days"][-1]["error"]
    assert "nothing was promoted" in ended.json["error"]
    assert run_of(there, ended.json["days"][-1]).read(MANIFEST)["state"] == "BUILT"
    assert (there.live(), stored(there), ended.json["promoted"]) == (live, states, None)


def test_a_newest_day_that_the_gate_stops_is_refused_and_not_promoted(there):
    """As in the night: the run is REFUSED, and what is served stays."""
    live = there.run(there.night(before(2))).run_id
    there.sections["gate"] = {"leaks": {"warn": -1.0, "stop": -1.0}}

    ended = backfill(there, 1, 0, "--promote")

    assert (ended.code, outcomes(ended), there.live()) == (3, ["built", "not promoted"], live)
    states = [run_of(there, day).read(MANIFEST)["state"] for day in ended.json["days"]]
    assert states == ["BUILT", "REFUSED"]


def test_a_run_that_was_rolled_back_is_never_promoted(there):
    """Its folder says so, and where that word is lost the store does, to the night of that day as well."""
    old, bad = there.run(there.night(before(1))).run_id, there.run(there.night())
    assert nightlist("rollback", "--config", there.config, "--yes").code == 0

    for told in (True, False):
        if not told:
            (bad.folder / ROLLED_BACK).unlink()
        ended = backfill(there, 0, 0, "--promote")
        error, report = there.failing_night()

        assert (ended.code, outcomes(ended), there.live()) == (3, ["not promoted"], old), told
        assert "BAD for ever" in ended.json["days"][0]["error"], told
        assert (error.exit_code, report.state) == (3, RunState.BAD), told
        assert stored(there) == {old: RunState.LIVE, bad.run_id: RunState.BAD}, told


# Days that fail


def test_a_day_without_events_fails_alone(tmp_path, spark):
    """The days around it are built; the exit code is that of the day that failed, and the summary names the day."""
    there = without_events_on(tmp_path, before(1))

    ended = backfill(there, 2, 0)

    assert (ended.code, outcomes(ended)) == (1, ["built", "failed", "built"])
    assert f"0 usable events on {before(1)}" in ended.json["days"][1]["error"]
    assert f"1 of 3 days did not end well: {before(1)} (failed)" in ended.json["error"]
    assert ended.json["days"][1]["rows"] is None
    assert ended.stderr.count("error: ") == 2


def test_nothing_is_promoted_when_the_newest_day_failed(tmp_path, spark):
    """Not the newest that could be built either; and it is said."""
    there = without_events_on(tmp_path, DAY)

    ended = backfill(there, 1, 0, "--promote")

    assert (ended.code, outcomes(ended)) == (1, ["built", "failed"])
    assert "nothing was promoted" in ended.json["error"]
    assert not (there.folder / "nightlist-data" / "store").exists()


def test_days_that_fail_alike_end_with_their_own_code_and_others_with_1(there):
    """A run that another night is making is 4; with a promotion that is refused (3) beside it, it is 1."""
    there.night()
    (planned,) = backfill(there, 2, 2, "--dry-run").json["days"]
    busy = run_of(there, planned).folder
    busy.mkdir()
    with (busy / "lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        alike = backfill(there, 2, 2)
        mixed = backfill(there, 2, 1, "--promote")

    assert (alike.code, outcomes(alike)) == (4, ["failed"])
    assert (mixed.code, outcomes(mixed)) == (1, ["failed", "not promoted"])


def test_an_error_that_is_none_of_ours_fails_its_day_alone(there):
    """It is named by its type, with its traceback on stderr; mended, the day goes on."""
    planned = backfill(there, 1, 0, "--dry-run").json["days"][0]
    broken = run_of(there, planned).folder / "train"
    broken.parent.mkdir(parents=True)
    broken.write_text("a file where a folder should be")

    ended = backfill(there, 1, 0)

    assert (ended.code, outcomes(ended)) == (1, ["failed", "built"])
    assert ended.json["days"][0]["error"].startswith("FileExistsError")
    assert "Traceback" in ended.stderr
    broken.unlink()
    assert outcomes(backfill(there, 1, 0)) == ["built", "skipped"]


@pytest.mark.parametrize(
    ("override", "code", "message"),
    [("input.events=nowhere", 1, "does not exist"), ("als.factor=8", 2, "did you mean factors?")],
)
def test_what_is_wrong_for_every_day_ends_it_at_once(there, override, code, message):
    """A missing table and a wrong configuration are said once, with their own exit code, and no day is attempted."""
    ended = backfill(there, 6, 0, "--set", override)

    assert (ended.code, ended.stderr.count("error: ")) == (code, 1)
    assert message in ended.stderr
    assert not runs_of(there).exists()


def test_a_table_that_can_not_be_read_to_its_end_ends_it_at_once(there):
    """It would fail every day that follows in the same way."""
    path = there.folder / "events.parquet"
    data = path.read_bytes()
    path.write_bytes(data[:4] + bytes(len(data) // 2) + data[4 + len(data) // 2 :])

    ended = backfill(there, 6, 0)

    assert (ended.code, ended.stderr.count("error: ")) == (1, 1)
    assert "can't be read" in ended.json["error"]
    assert ended.json["days"] == []


def test_days_the_wrong_way_round_are_a_matter_of_usage(there):
    """Both are named, with 2, before Spark starts."""
    ended = backfill(there, 0, 1)

    assert (ended.code, ended.stdout) == (2, "")
    assert f"--from {before(0)} is after --to {before(1)}" in ended.stderr


# Dry run and force


def test_a_dry_run_says_what_is_there_and_writes_nothing(there):
    """New, part done, done, and left alone where it was published; the run ids are those that are then made."""
    there.night(before(3))
    done, part = backfill(there, 2, 1).json["days"]
    for name in (MANIFEST, "build.json"):
        (run_of(there, part).folder / name).unlink()
    before_it = files(runs_of(there).parent)

    ended = backfill(there, 3, 0, "--dry-run")

    assert (ended.code, outcomes(ended)) == (0, ["left alone", "done", "part done", "new"])
    assert [day["run_id"] for day in ended.json["days"][1:3]] == [done["run_id"], part["run_id"]]
    assert files(runs_of(there).parent) == before_it
    made = backfill(there, 3, 0)
    assert outcomes(made) == ["left alone", "skipped", "built", "built"]
    assert [day["run_id"] for day in made.json["days"]] == [day["run_id"] for day in ended.json["days"]]


def test_force_builds_anew_what_was_never_published(there):
    """Equal lists in new files; no file of a run that was published is touched, by --force or without it."""
    live = there.run(there.night(before(1))).folder
    old, _, new = backfill(there, 2, 0).json["days"]
    before_it, published = files(runs_of(there)), files(live)

    forced = backfill(there, 2, 0, "--force")

    assert (forced.code, outcomes(forced)) == (0, ["built", "left alone", "built"]), forced.stderr
    assert [day["lists_checksum"] for day in (old, new)] == [forced.json["days"][n]["lists_checksum"] for n in (0, 2)]
    assert files(live) == published
    for day in (old, new):
        folder = run_of(there, day).folder
        now = files(folder)
        kept = {path.name for path, told in now.items() if before_it.get(path) == told}
        assert kept == {"started.json"}, "when the lists were scored is a part of equal lists"
        assert {f"{name}.json" for name in STAGES if name != "gate"} < {path.name for path in now}


# The ledger, and what people see


def test_the_ledger_has_a_line_for_every_day_attempted(tmp_path, spark):
    """Time, day, run, outcome, counts, checksum, seconds and error, in the order in which the days ended; it only grows."""
    there = without_events_on(tmp_path, before(1))
    ended = backfill(there, 1, 0)
    backfill(there, 0, 0)

    lines = ledger(there)

    assert [line["outcome"] for line in lines] == ["failed", "built", "skipped"]
    for line, day in zip(lines, ended.json["days"], strict=False):
        told = line.copy()
        assert datetime.fromisoformat(told.pop("time")).utcoffset() == timedelta(0)
        assert told == day
    assert set(lines[1]["kinds"]) == {"user", "similar", "popular"}
    assert lines[1]["lists_checksum"] == run_of(there, lines[1]).counts("build")["lists_checksum"]
    assert lines[1]["seconds"] > 0


def test_a_torn_last_line_does_not_swallow_the_next(tmp_path):
    """A ledger whose writer was killed within a line goes on with a line of its own."""
    path = tmp_path / "runs" / LEDGER
    append(path, {"day": 1})
    with path.open("a") as handle:
        handle.write('{"day": 2, "run')

    append(path, {"day": 3})

    assert path.read_text().splitlines() == ['{"day": 1}', '{"day": 2, "run', '{"day": 3}']


def test_people_see_a_line_a_day_and_a_table_even_where_a_day_failed(tmp_path, spark):
    """Where stderr is no terminal: `day 1 of 2`, then lines of stages; the table lists every day, errors stand below it."""
    there = without_events_on(tmp_path, DAY)
    there.settings()

    ended = nightlist("backfill", "-c", there.config, "--from", before(1), "--to", before(0))

    assert ended.code == 1
    assert re.findall(r"^day .*", ended.stderr, re.M) == [f"day 1 of 2: {before(1)}", f"day 2 of 2: {DAY}"]
    rows = [line.split() for line in ended.stdout.splitlines()]
    assert [row[2] for row in rows[1:3]] == ["built", "failed"]
    assert ended.stdout.splitlines()[3].startswith(f"{DAY}: 0 usable events")


def test_bars_within_bars_share_one_display():
    """A stage's bar comes below the days' bar and goes away before it; rich draws one display at a time."""
    terminal = Terminal()
    terminal.console = Console(file=io.StringIO(), force_terminal=True)
    seen = []

    def shown() -> Sequence[str]:
        return [task.description for task in terminal.bar.tasks if task.visible]

    with terminal.watch("days", 2, lambda: 1):
        outer = terminal.bar
        with terminal.watch("retrieve", 8, lambda: 3):
            assert terminal.bar is outer
            seen.append(shown())
        with pytest.raises(ValueError, match="broken"), terminal.watch("load", 8, lambda: 3):
            raise ValueError("broken")
        seen.append(shown())

    assert seen == [["days", "retrieve"], ["days"]]
    assert terminal.bar is None
