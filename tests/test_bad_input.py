"""What goes wrong at two in the morning, by the whole command: a clear message, the documented exit code, and lists served."""

import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from jobs.lease import here
from jobs.lists import BuiltLists
from jobs.progress import Progress
from jobs.run import RunFolder
from jobs.stores import open_store
from jobs.stores.sqlite import SqliteStore
from schemas.runs import RunState
from tests.commands import Ended, all_served, nightlist, process
from tests.nights import DAY, EVENT_COLUMNS, Place, checkerboard, event, place, write_table

NEXT = DAY + timedelta(days=1)
LINE = {"run_id", "state", "users", "outcomes", "rows", "lists", "seconds", "metrics", "verdict", "error"}


@pytest.fixture(scope="module")
def last_night(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A place whose night of DAY is live, and files that the night of NEXT can't be made from."""
    folder = tmp_path_factory.mktemp("last_night")
    made = place(folder, checkerboard(), holdout={"users": 0})
    assert made.night(DAY).state is RunState.LIVE
    rows = [event(f"u{number}", f"i{number}", NEXT) for number in range(2_000)]
    whole = write_table(rows, folder / "whole.parquet", EVENT_COLUMNS).read_bytes()
    (folder / "half.parquet").write_bytes(whole[: len(whole) // 2])
    (folder / "holes.parquet").write_bytes(whole[:100] + bytes(len(whole) // 2) + whole[100 + len(whole) // 2 :])
    (folder / "garbage.parquet").write_bytes(bytes(range(256)) * 8)
    (folder / "nothing").mkdir()
    without = {name: kind for name, kind in EVENT_COLUMNS.items() if name != "item_id"}
    write_table([{name: row[name] for name in without} for row in rows[:9]], folder / "no_item.parquet", without)
    write_table([row | {"item_id": [row["item_id"]]} for row in rows[:9]], folder / "lists.parquet")
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    write_table([row | {"ts": epoch} for row in rows[:9]], folder / "1970.parquet", EVENT_COLUMNS)
    write_table([row | {"ts": epoch.replace(year=2100)} for row in rows[:9]], folder / "2100.parquet", EVENT_COLUMNS)
    (folder / "file").touch()
    return made


@pytest.fixture
def tonight(last_night: Place, tmp_path: Path) -> Place:
    """A copy of last night's place, to spoil."""
    shutil.copytree(last_night.folder, tmp_path / "tonight")
    return Place(tmp_path / "tonight", last_night.sections)


@contextmanager
def unchanged(found: Place) -> Iterator[None]:
    """The store names the same run after as before, and serves the same lists."""
    live, lists = found.live(), all_served(found)
    assert lists
    yield
    assert found.live() == live
    assert all_served(found) == lists


def night(found: Place, *arguments: object, day: object = NEXT) -> Ended:
    """`nightlist nightly --json`."""
    found.settings()
    return nightlist("nightly", "-c", found.config, "--date", day, "--json", *arguments)


# Input


BAD_INPUT: dict[str, tuple[tuple[str, ...], list[str]]] = {
    "a missing column": (
        ("input.events=no_item.parquet",),
        ["events has no column 'item_id'", "it has user_id, event, ts, value", '[events.columns] item_id = "..."'],
    ),
    "a wrong type": (
        ("input.events=lists.parquet",),
        ["events: column 'item_id' (item_id) is array<string>", "can't become string", "[events.columns] item_id"],
    ),
    "a missing file": (("input.events=nowhere",), ["input.events = ", "/nowhere does not exist", "nightlist validate"]),
    "half a file": (
        ("input.events=half.parquet",),
        ["input.events = ", "/half.parquet can't be read", "nightlist validate"],
    ),
    "garbage": (("input.events=garbage.parquet",), ["/garbage.parquet can't be read as parquet", "nightlist validate"]),
    "a file with holes": (
        ("input.events=holes.parquet",),
        ["table events can't be read to its end", "holes.parquet", "mend"],
    ),
    "an empty folder": (("input.events=nothing",), ["/nothing can't be read as parquet", "nightlist validate"]),
    "a missing side table": (("input.blocks=nowhere",), ["input.blocks = ", "/nowhere does not exist"]),
    "a day without events": (
        (),
        [
            f"0 usable events on {NEXT}",
            "events.min_on_day = 1",
            f"the newest is of {DAY}",
            "/events/rejected",
            "--date",
        ],
    ),
    "a broken clock": (
        ("input.events=1970.parquet",),
        [f"0 usable events on {NEXT}", "read 9, rejected: ts_too_early 9", "/events/rejected", "mend the import"],
    ),
    "a clock of the future": (
        ("input.events=2100.parquet",),
        [f"0 usable events on {NEXT}", "there is none of an earlier day either", "read 0, rejected: none"],
    ),
    "kinds that nobody knows": (
        ("events.weights={ like = 1.0 }",),
        ["rejected: unknown_event", f"0 usable events on {NEXT}"],
    ),
    "a rule that stumbles": (
        ('events.reject=[{ reason = "x", where = "user_id > 5" }]',),
        ["u0", "[[events.reject]]", "user_id > 5", "try_cast"],
    ),
}


@pytest.mark.parametrize("what", BAD_INPUT)
def test_bad_input_ends_the_night_with_1_and_lists_stay(last_night: Place, what: str) -> None:
    """The message names value, place and what to do, on stderr and in the JSON line; the exit code says it is the input."""
    overrides, parts = BAD_INPUT[what]
    with unchanged(last_night):
        ended = night(last_night, *(argument for override in overrides for argument in ("--set", override)))

    assert ended.code == 1
    assert ended.json.keys() == LINE
    assert ended.json["state"] is None
    said = ended.json["error"]
    assert "\n" not in said
    assert f"error: {said}" in ended.stderr
    assert "Traceback" not in ended.stderr
    for part in parts:
        assert part in said, part


BAD_CONFIGURATION: dict[str, tuple[tuple[object, ...], list[str]]] = {
    "an unknown key": (
        ("--set", "als.factor=8"),
        ["nightlist.toml", "unknown key als.factor", "did you mean factors?"],
    ),
    "an unknown section": (("--set", "asl.factors=8"), ["unknown key asl", "did you mean als?"]),
    "a wrong value": (("--set", "rerank.n=none"), ["rerank.n = 'none'", "integer"]),
    "a rule that Spark can't read": (
        ("--set", 'events.reject=[{ reason = "x", where = "Quantity <= 0" }]'),
        ["[[events.reject]] where = 'Quantity <= 0'", "columns: user_id, item_id, event, ts, value"],
    ),
    "an unknown model": (
        ("--set", 'retrieve.models=["svd"]'),
        ["retrieve.models", "'svd'", "known: als, als_spark, ease, fresh, popular, segment, similar, spectral"],
    ),
    "a mapping of no column": (
        ("--set", "events.columns={ userid = 'u' }"),
        ["[events.columns] userid", "did you mean user_id"],
    ),
    "no such file": (("-c", "/nowhere/nightlist.toml"), ["/nowhere/nightlist.toml does not exist", "nightlist init"]),
    "no such day": (("--date", "2026-13-01"), ["'2026-13-01' is no day", "expected e.g. 2026-11-20"]),
}


@pytest.mark.parametrize("what", BAD_CONFIGURATION)
def test_a_bad_configuration_ends_with_2_and_no_json(last_night: Place, what: str) -> None:
    """A night that could not begin has no report: the message stands on stderr, and stdout is empty."""
    arguments, parts = BAD_CONFIGURATION[what]
    with unchanged(last_night):
        ended = night(last_night, *arguments)

    assert (ended.code, ended.stdout) == (2, "")
    assert "Traceback" not in ended.stderr
    for part in parts:
        assert part in ended.stderr, part


def test_an_unknown_key_in_the_file_is_named_with_its_file(tonight: Place) -> None:
    """Also a key of the service's sections, and a file that is no TOML at all."""
    with unchanged(tonight):
        for text, part in {
            "[events]\ndefault_evnt = 'watch'\n": "unknown key events.default_evnt (did you mean default_event?)",
            "[serve]\nprot = 80\n": "unknown key serve.prot (did you mean port?)",
            "[events\n": "is no valid TOML",
        }.items():
            tonight.config.write_text(text, encoding="utf-8")
            ended = nightlist("nightly", "-c", tonight.config, "--date", NEXT, "--json")
            assert (ended.code, ended.stdout) == (2, "")
            assert f"{tonight.config}" in ended.stderr
            assert part in ended.stderr


def test_without_java_the_night_says_what_to_install(last_night: Place) -> None:
    """On a machine where no Java is found: exit code 1, Java 17, and the command that examines the machine."""
    last_night.settings()
    env = {name: value for name, value in os.environ.items() if name not in ("PATH", "JAVA_HOME")} | {"PATH": ""}
    with unchanged(last_night):
        ended = process("nightly", "-c", last_night.config, "--date", NEXT, "--json", env=env)

    assert ended.code == 1
    assert ended.json.keys() == LINE
    assert "no Java on PATH" in ended.json["error"]
    assert "Java 17" in ended.json["error"]
    assert "nightlist doctor" in ended.stderr


# Others at work


@contextmanager
def another(code: str, *arguments: object) -> Iterator["subprocess.Popen[str]"]:
    """Another process that is at work until the context ends, and says so."""
    command = [sys.executable, "-c", f"{code}\nprint('ready', flush=True)\ninput()", *map(str, arguments)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout
        assert other.stdout.readline() == "ready\n"
        yield other
        other.communicate("\n")


def test_a_second_night_of_the_same_run_is_kept_out(tonight: Place) -> None:
    """Another process holds the run's folder: exit code 4; when it has ended, the same command goes on."""
    lock = tonight.settings().paths.runs / str(tonight.live()) / "lock"
    holding = "import fcntl, sys; held = open(sys.argv[1], 'w'); fcntl.flock(held, fcntl.LOCK_EX)"
    with unchanged(tonight):
        with another(holding, lock):
            ended = night(tonight, day=DAY)
        again = night(tonight, day=DAY)

    assert (ended.code, ended.json.keys()) == (4, LINE)
    assert f"another night is making run {tonight.live()} in {lock.parent}" in ended.json["error"]
    assert "wait for it" in ended.stderr
    assert (again.code, again.json["state"]) == (0, "LIVE")


def test_a_living_publisher_is_waited_for_and_a_dead_one_is_not(tonight: Place) -> None:
    """The store's lease: exit code 4 while its holder lives, told who it is; taken over at once when it is dead."""
    store = open_store(tonight.settings().store)
    with another("") as other:
        owner = f"{here()}:{other.pid}"
        store.acquire(owner, 3_600)
        with unchanged(tonight):
            ended = night(tonight, day=DAY)
    again = night(tonight, day=DAY)

    assert (ended.code, ended.json.keys()) == (4, LINE)
    assert owner in ended.json["error"]
    assert "wait" in ended.stderr
    assert (again.code, again.json["state"]) == (0, "LIVE")


def test_a_store_that_can_not_be_reached_ends_with_5(tonight: Place) -> None:
    """A store's folder that can't be one: the run is BUILT, its lists wait, and the message says which setting to look at."""
    with unchanged(tonight):
        ended = night(tonight, "--set", "store.path=file/store", day=DAY)

    assert (ended.code, ended.json.keys()) == (5, LINE)
    assert ended.json["state"] == "BUILT"
    assert "file/store" in ended.json["error"]
    assert "[store] path" in ended.stderr


# What a night must stand


@contextmanager
def disk_of(size: int) -> Iterator[None]:
    """Files of this process can't grow beyond `size` bytes: the write that would fails, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


BROKEN_CLOCKS = [event("u000", "i001", DAY - timedelta(days=20_000)), event("u000", "i001", NEXT + timedelta(days=900))]
EMPTY_IDS = [event("", "i001", NEXT), event("u000", "", NEXT), event("u000", "i001", NEXT, kind="")]
BOT = [event("bot", f"b{number % 2_500}", NEXT) for number in range(50_000)]


def records(run: RunFolder) -> dict[str, float]:
    """When each stage was done."""
    stages = ("events", "dataset", "train", "retrieve", "rank", "rerank", "build")
    return {name: (run.folder / f"{name}.json").stat().st_mtime_ns for name in stages}


def test_a_night_with_dirty_data_waits_survives_a_full_disk_and_goes_live(tonight: Place) -> None:
    """Broken clocks, empty ids and a bot of 50,000 events are counted and cost nobody a list. The publication finds a
    publisher at work (4), then a full disk (5), and last night's lists stay; a third try only loads, and is live."""
    rows = [*checkerboard(day=NEXT), *BROKEN_CLOCKS, *EMPTY_IDS, *BOT]
    write_table(rows, tonight.folder / "events.parquet", EVENT_COLUMNS)
    dirty = ("--set", 'retrieve.models=["als", "popular", "similar"]')
    store = SqliteStore(tonight.settings().store.path)
    with unchanged(tonight):
        lease = store.acquire("elsewhere:1", 3_600)
        waiting = night(tonight, *dirty)
        store.release(lease)
        run = RunFolder(tonight.settings().paths.runs / waiting.json["run_id"], "", Progress())
        made = records(run)
        with disk_of(128 * 1024):
            full = night(tonight, *dirty)
    done = night(tonight, *dirty)

    assert (waiting.code, waiting.json["state"]) == (4, "BUILT")
    assert (full.code, full.json.keys(), full.json["state"]) == (5, LINE, "LOADING")
    assert "free space" in full.json["error"]
    assert "run the same command again" in full.json["error"]
    assert (done.code, done.json["state"], done.json["error"]) == (0, "LIVE", None), done.stderr
    assert records(run) == made, "all but the publication was done before"
    assert all_served(tonight) == {(served.kind, served.key): served for served in BuiltLists(run.folder / "build")}
    assert run.counts("events")["rejected"] == {
        "missing_event": 1,
        "missing_item_id": 1,
        "missing_user_id": 1,
        "ts_too_early": 1,
    }
    assert run.counts("events")["read"] == len(rows) - 1, "the row of the future is outside the window"
    assert done.json["outcomes"] == {"personal": 21, "popular": 0, "empty": 0, "failed": 0}
    bot = tonight.served("bot")
    assert bot
    assert bot.items
    assert not any(item.startswith("b") for item in bot.items), "it has seen them all"
    assert tonight.served("u000").items[0] == "i000", "the one item of its own parity that it has not seen"
