"""The command line: what each command prints, where, and with which exit code it ends."""

import io
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession

from jobs.cli import COMMANDS
from jobs.commands.validate import check
from jobs.config import load_settings
from jobs.lists import BuiltLists
from jobs.run import ROLLED_BACK
from schemas.lists import ServedList
from tests.commands import all_served, nightlist, process
from tests.nights import DAY, Place, checkerboard, event, place, write_table

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def nights(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A place where two nights were published, the day before DAY and DAY."""
    made = place(tmp_path_factory.mktemp("nights"), checkerboard(), holdout={"users": 0})
    yesterday = made.night(DAY - timedelta(days=1))
    today = made.night(DAY)
    assert yesterday.state == today.state == "LIVE"
    return made


# Help


def test_help_lists_every_command_and_starts_no_spark() -> None:
    """`nightlist --help` imports neither Spark nor a library of numbers: it answers at once, on a bare machine too."""
    code = (
        "import sys; sys.argv = ['nightlist', '--help']\n"
        "from jobs.cli import main\n"
        "try: main()\n"
        "finally: print(sorted({'pyspark', 'numpy', 'pyarrow', 'implicit', 'scipy', 'flask'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)

    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    for name, (_, line) in COMMANDS.items():
        assert any(text.split() == [name, *line.split()] for text in done.stdout.splitlines()), name


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str) -> None:
    """--help says what the command does, and what each of its options is for."""
    ended = nightlist(name, "--help")
    lines = ended.stdout.splitlines()
    command = getattr(__import__(COMMANDS[name][0], fromlist=[name]), name)

    assert ended.code == 0, ended.stderr
    assert lines[0].startswith("Usage: ")
    assert f" {name} " in lines[0]
    assert len(lines[2].split()) > 3
    for option in command.params:
        assert option.help, f"--{option.name} has no help"


def test_the_help_of_nightly_names_the_exit_codes() -> None:
    """What a scheduler needs to know stands where one looks for it."""
    text = " ".join(nightlist("nightly", "--help").stdout.split())

    for code, meaning in {0: "live", 1: "bad input", 2: "usage", 3: "refused", 4: "another night", 5: "store"}.items():
        assert f"{code} {meaning}" in text or f"{code} the {meaning}" in text, code


@pytest.mark.parametrize(
    "arguments", [("nigthly",), ("nightly", "--dat", "2026-11-20"), ("nightly",), ("rollback", "x")]
)
def test_wrong_usage_ends_with_2_and_says_what_was_wrong(arguments: Sequence[str]) -> None:
    """An unknown command or option, a missing one, an argument too many; nothing on stdout."""
    ended = nightlist(*arguments)

    assert ended.code == 2
    assert ended.stdout == ""
    assert "Usage:" in ended.stderr


# init and validate


def test_init_writes_a_file_that_loads_and_keeps_one_that_is_there(tmp_path: Path) -> None:
    """The file holds every section; loading it gives the defaults; only --force overwrites."""
    config = tmp_path / "new" / "nightlist.toml"
    assert nightlist("init", "-c", config).code == 0
    text = config.read_text(encoding="utf-8")
    config.write_text("# mine\n", encoding="utf-8")
    again = nightlist("init", "-c", config)

    assert (again.code, config.read_text(encoding="utf-8")) == (2, "# mine\n")
    assert "--force" in again.stderr
    below_a_file = nightlist("init", "-c", config / "nightlist.toml")
    assert (below_a_file.code, "can't be written" in below_a_file.stderr) == (2, True)
    assert nightlist("init", "-c", tmp_path / "other.toml", "--dry-run").code == 2
    assert not (tmp_path / "other.toml").exists()
    assert nightlist("init", "-c", config, "--force").code == 0
    assert config.read_text(encoding="utf-8") == text
    written, default = load_settings(config), load_settings(None)
    assert written.model_dump(exclude={"paths", "store", "input"}) == default.model_dump(
        exclude={"paths", "store", "input"}
    )


def test_validate_counts_what_a_night_would_keep_and_reject(spark: SparkSession, tmp_path: Path) -> None:
    """Good input: exit code 0, the columns that were found, and outcomes by reason; nothing is written."""
    rows = [event("u", "i"), event("", "i"), event("v", "i"), event("u", "i", DAY + timedelta(days=9))]
    found = place(tmp_path, rows)
    found.settings()
    ended = nightlist("validate", "-c", found.config, "--date", DAY, "--json")

    assert ended.code == 0
    assert ended.json["valid"] is True
    assert ended.json["sampled"] == 3
    assert ended.json["outcomes"] == {"kept": 2, "missing_user_id": 1}
    assert ended.json["tables"] == {"events": ["event", "item_id", "ts", "user_id", "value"]}
    assert {path.name for path in tmp_path.iterdir()} == {"events.parquet", "nightlist.toml"}


def test_validate_looks_at_the_days_asked_for(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest rows come first in many a file, and are more than a sample."""
    monkeypatch.setattr("jobs.commands.validate.SAMPLE", 2)
    rows = [event("u", f"i{n}", DAY + timedelta(days=1)) for n in range(5)]
    found = place(tmp_path, [*rows, event("u", "i", DAY)])

    assert check(found.settings(), DAY)["outcomes"] == {"kept": 1}
    assert check(found.settings(), DAY + timedelta(days=1))["sampled"] == 2


def test_what_java_says_stays_out_of_the_json_line(tmp_path: Path) -> None:
    """Java warns, and logs where it is told to, on its stdout."""
    found = place(tmp_path, [event("u", "i")])
    found.settings()
    talking = 'spark.conf={"spark.driver.extraJavaOptions" = "-Xlog:gc -XX:TieredStopAtLevel=1"}'
    ended = process("validate", "-c", found.config, "--date", DAY, "--set", talking, "--json")

    assert ended.json["valid"] is True
    assert "[gc]" in ended.stderr


INVALID: dict[str, tuple[int, str]] = {
    "als.factor=8": (2, "unknown key als.factor (did you mean factors?)"),
    "events.columns.user_id=who": (1, "events has no column 'who' (user_id)"),
    "input.events=nowhere": (1, "does not exist"),
    "retrieve.models=[\"als\", \"svd\"]": (2, "there is no model 'svd'"),
    "events.key=[\"tss\"]": (2, "events.key names 'tss'"),
    "events.weights={ like = 1.0 }": (1, "none of 1 sampled events"),
    "rerank.n=0": (2, "rerank.n = 0"),
    "rerank=0": (2, "rerank"),
    "als": (2, "expected section.key=value"),
}  # fmt: skip


def test_validate_names_what_is_wrong(spark: SparkSession, tmp_path: Path) -> None:
    """A night's own errors, before the night: each with its exit code, one line on stderr and none on stdout."""
    found = place(tmp_path, [event("u", "i")])
    found.settings()
    for override, (code, message) in INVALID.items():
        ended = nightlist("validate", "-c", found.config, "--date", DAY, "--set", override)
        assert (ended.code, ended.stdout) == (code, ""), override
        assert message in ended.stderr, override
        assert ended.stderr.startswith("error: "), override
        assert len(ended.stderr.splitlines()) == 1, override


# nightly, runs, rollback


def test_a_night_for_people_ends_with_0_and_says_what_is_live(nights: Place) -> None:
    """Without --json the run is named for a person; a night that is live is not made again."""
    ended = nightlist("nightly", "-c", nights.config, "--date", DAY)

    assert ended.code == 0, ended.stderr
    assert str(nights.live()) in ended.stdout + ended.stderr


def test_the_json_line_of_a_night_holds_all_that_a_scheduler_needs(nights: Place) -> None:
    """Run, state, users by outcome, rows, seconds a stage, metrics, verdict and error; the progress stands on stderr."""
    ended = nightlist("nightly", "-c", nights.config, "--date", DAY, "--json")
    line = ended.json

    assert (ended.code, line["run_id"], line["state"], line["error"]) == (0, nights.live(), "LIVE", None)
    assert (line["users"], sum(line["outcomes"].values())) == (20, 20)
    assert set(line["outcomes"]) == {"personal", "popular", "empty", "failed"}
    assert set(line["rows"]) == {"user", "similar", "popular"}
    assert {"events", "dataset", "train", "retrieve", "rank", "rerank", "build", "gate", "publish"} <= set(
        line["seconds"]
    )
    assert line["metrics"]["served_previous"]["users"] > 0
    assert line["verdict"]["status"] in ("pass", "warn")
    assert "events" in ended.stderr


def test_runs_shows_states_newest_first(nights: Place) -> None:
    """One row a run with state, verdict, rows and bytes; the live one is marked, in the table too."""
    found = nightlist("runs", "-c", nights.config, "--json").json
    newest, oldest = found["runs"]

    live = {"run_id": newest["run_id"], "sequence": 2, "previous": oldest["run_id"]}
    assert found["live"] == live | {"published_at": newest["published_at"]}
    assert (found["lease"], found["parent"]) == (None, newest["run_id"])
    assert (newest["next"], oldest["next"]) == (None, "rollback")
    assert (newest["state"], newest["live"], oldest["state"], oldest["live"]) == ("LIVE", True, "RETIRED", False)
    assert newest["run_id"].startswith(f"{DAY:%Y%m%d}_")
    assert newest["rows"] == 41
    assert newest["bytes"] > 0
    assert (newest["verdict"], oldest["verdict"]) == ("pass", "pass")
    shown = nightlist("runs", "-c", nights.config)
    assert [line.split()[0] for line in shown.stdout.splitlines()[1:]] == [newest["run_id"], oldest["run_id"]]
    assert "served" in shown.stdout.splitlines()[1]


def test_runs_before_the_first_night_shows_none_and_what_to_type(tmp_path: Path) -> None:
    """A store in which nothing was ever published is no error, and looking does not make one."""
    found = place(tmp_path, [])
    found.settings()
    shown, as_json = nightlist("runs", "-c", found.config), nightlist("runs", "-c", found.config, "--json")

    assert (shown.code, as_json.code) == (0, 0), shown.stderr
    assert "nightlist nightly" in shown.stdout
    assert as_json.json == {"live": None, "lease": None, "parent": None, "runs": []}
    assert not (tmp_path / "nightlist-data").exists()


def test_a_dry_run_of_rollback_changes_nothing(nights: Place) -> None:
    """It says what would be served instead of what; states, pointer, lists and run folders stay as they are."""
    before = nightlist("runs", "-c", nights.config, "--json").json
    ended = nightlist("rollback", "-c", nights.config, "--dry-run", "--json")
    after = nightlist("runs", "-c", nights.config, "--json").json

    assert ended.code == 0
    newest, oldest = (run["run_id"] for run in before["runs"])
    assert f"serve {oldest} again, instead of {newest}" in ended.stderr
    assert (ended.json["dry_run"], ended.json["run_id"], ended.json["bad"]) == (True, oldest, newest)
    for found in (before, after):
        for run in found["runs"]:
            run.pop("changed_seconds_ago")
    assert after == before
    assert not list(nights.folder.rglob(ROLLED_BACK))


def test_rollback_asks_first_and_no_is_no(nights: Place) -> None:
    """Without --yes and without an answer nothing happens, and the exit code says so."""
    live = nights.live()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", io.StringIO("n\n"))
        ended = nightlist("rollback", "-c", nights.config)

    assert ended.code == 1
    assert nights.live() == live


def test_rollback_serves_the_run_before_and_the_bad_run_stays_away(nights: Place, tmp_path: Path) -> None:
    """The older lists are served; the night that made the bad run is refused with 3, and so is a second way back."""
    shutil.copytree(nights.folder, tmp_path / "copy")
    found = Place(tmp_path / "copy", nights.sections)
    newest, oldest = (run["run_id"] for run in nightlist("runs", "-c", found.config, "--json").json["runs"])
    ended = nightlist("rollback", "-c", found.config, "--yes", "--json")

    done = {name: ended.json[name] for name in ("run_id", "sequence", "bad", "dry_run", "begun")}
    assert (ended.code, done) == (
        0,
        {"run_id": oldest, "sequence": 3, "bad": newest, "dry_run": False, "begun": False},
    )
    assert all_served(found) == as_built(found, oldest) != all_served(nights)
    refused = nightlist("nightly", "-c", found.config, "--date", DAY, "--json")
    assert (refused.code, refused.json["run_id"], refused.json["state"]) == (3, newest, "BAD")
    assert "BAD for ever" in refused.json["error"]
    assert "--set" in refused.stderr
    nowhere = nightlist("rollback", "-c", found.config, "--yes")
    assert (nowhere.code, nowhere.stdout) == (3, "")
    assert "no retired run" in nowhere.stderr


def as_built(found: Place, run_id: str) -> dict[tuple[str, str], ServedList]:
    """Every list of a run, as it stands in its Parquet."""
    built = found.settings().paths.runs / run_id / "build"
    return {(served.kind, served.key): served for served in BuiltLists(built)}


# doctor


def test_doctor_finds_a_machine_that_runs_these_tests_fit(nights: Place) -> None:
    """Python, Java, Spark, store and permissions, each with what was found; the store's live run among it."""
    ended = nightlist("doctor", "-c", nights.config, "--json")

    assert (ended.code, ended.json["ok"]) == (0, True), ended.json
    assert set(ended.json["checks"]) >= {"python", "java", "spark", "store", "permissions"}
    assert all(check["ok"] and check["found"] for check in ended.json["checks"].values())
    assert str(nights.live()) in ended.json["checks"]["store"]["found"]


def test_doctor_finds_what_would_stop_a_night(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store below a regular file, and no Java: exit code 1, and each check that fails says what to do; others go on."""
    (tmp_path / "file").touch()
    found = place(tmp_path, [], store={"path": "file/store"})
    found.settings()
    monkeypatch.setenv("JAVA_HOME", "/nowhere")
    ended = nightlist("doctor", "-c", found.config, "--json")
    checks = ended.json["checks"]

    assert (ended.code, ended.json["ok"]) == (1, False)
    assert {
        name: check["ok"] for name, check in checks.items() if name in ("python", "java", "store", "permissions")
    } == {
        "python": True,
        "java": False,
        "store": False,
        "permissions": False,
    }
    assert "Java 17" in checks["java"]["found"]
    assert "file/store" in checks["permissions"]["found"]
    assert "[store]" in checks["permissions"]["found"]
    assert nightlist("doctor", "-c", found.config).stdout.count("FAIL") == sum(
        not check["ok"] for check in checks.values()
    )


def test_doctor_looks_at_no_other_configuration_than_the_one_named(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without any it looks at the defaults; a mistyped name is an error."""
    monkeypatch.chdir(tmp_path)
    mistyped = nightlist("doctor", "-c", tmp_path / "nigthlist.toml")

    assert (mistyped.code, "nigthlist.toml does not exist" in mistyped.stderr) == (2, True)
    assert nightlist("doctor", "--json").json["checks"]["store"]["ok"]


# evaluate


KEYS = {"recall", "ndcg", "hit", "coverage"}
COUNTS = {"users", "users_known", "items", "train_seconds", "retrieve_seconds"}
QUICK = ("--set", "dataset.parts=2", "--set", "als.factors=8", "--set", "als.iterations=5")


def split_board(folder: Path, size: int = 20) -> tuple[Path, Path]:
    """The checkerboard with whole numbers for ids and no times: train on all pairs of equal parity but (u, u), test on those."""
    pairs = [{"user_id": u, "item_id": i} for u in range(size) for i in range(u % 2, size, 2) if i != u]
    answers = [{"user_id": u, "item_id": u} for u in range(size)]
    return write_table(pairs, folder / "train.parquet"), write_table(answers, folder / "test.parquet")


def test_evaluate_prints_one_json_line_and_nothing_else_on_stdout(tmp_path: Path) -> None:
    """In a process of its own, where Spark, Java and the solver could print too; ids are whole numbers, there are no times."""
    train, test = split_board(tmp_path)
    ended = process("evaluate", "--train", train, "--test", test, "--json", *QUICK)
    found = ended.json

    assert ended.code == 0, ended.stderr
    assert {f"{name}@20" for name in KEYS} | COUNTS <= set(found)
    assert found["model"] == "als"
    assert (found["users"], found["users_known"], found["items"]) == (20, 20, 20)
    assert found["recall@20"] == found["hit@20"] == 1.0, "all of 20 items are listed, the seen ones left out"
    assert found["ndcg@20"] > 0.9, "the one item of one's own parity comes first"
    assert found["train_seconds"] > 0
    assert found["retrieve_seconds"] > 0


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Train and test file of the checkerboard."""
    return split_board(tmp_path_factory.mktemp("board"))


def evaluated(train: Path, test: Path, *arguments: object) -> dict[str, Any]:
    ended = nightlist("evaluate", "--train", train, "--test", test, "--json", *QUICK, *arguments)
    assert ended.code == 0, ended.stderr
    return ended.json


def test_test_pairs_of_the_train_file_do_not_count_and_strangers_do(
    spark: SparkSession, board: tuple[Path, Path], tmp_path: Path
) -> None:
    """What was trained on is dropped, with users who have nothing else; users of whom nothing is known get the popular list."""
    train, _ = board
    answers = pq.read_table(train).slice(0, 50).to_pylist()  # known pairs only: of users 0 to 5
    answers += [{"user_id": 7, "item_id": 7}, {"user_id": 8, "item_id": 1}]
    answers += [{"user_id": 1_000, "item_id": 3}, {"user_id": 1_001, "item_id": 99}]
    test = write_table(answers, tmp_path / "test.parquet")
    found = evaluated(train, test, "--model", "popular", "--k", 20)

    assert (found["users"], found["users_known"]) == (4, 2)
    assert found["hit@20"] == 0.75, "99 is no item that anybody could be shown"
    assert found["recall@20"] == 0.75


def test_the_cut_off_stands_in_the_names_and_cuts(spark: SparkSession, board: tuple[Path, Path]) -> None:
    """--k 1: the only item that fits comes first, so that a list of one is enough."""
    found = evaluated(*board, "--model", "als", "--k", 1)

    assert {name for name in found if "@" in name} >= {f"{name}@1" for name in KEYS}
    assert not any(name.endswith("@20") for name in found)
    assert found["recall@1"] == found["ndcg@1"] == found["hit@1"] > 0.9


def test_times_and_values_of_the_files_count(spark: SparkSession, tmp_path: Path) -> None:
    """What five users had comes first; not where their events are worth nothing, and not where they are long past."""
    now, columns = 1_795_178_096, {"user_id": pa.string(), "item_id": pa.string()}
    rows = [{"user_id": f"u{u}", "item_id": "many", "value": 0.0, "ts": now - 90 * 86_400} for u in range(5)]
    rows.append({"user_id": "u0", "item_id": "one", "value": 1.0, "ts": now})
    test = write_table([{"user_id": "new", "item_id": "one"}], tmp_path / "test.parquet")
    hits = {}
    for name, kind in ("neither", pa.null()), ("value", pa.float64()), ("ts", pa.int64()):
        used = columns | ({name: kind} if name != "neither" else {})
        train = write_table([{c: row[c] for c in used} for row in rows], tmp_path / f"{name}.parquet", used)
        hits[name] = evaluated(train, test, "--model", "popular", "--k", 1)["hit@1"]

    assert hits == {"neither": 0.0, "value": 1.0, "ts": 1.0}


def test_columns_and_kinds_of_events_are_those_of_the_configuration(spark: SparkSession, tmp_path: Path) -> None:
    """What was only shown is neither trained on nor asked for, nor seen; without a configuration the same, under our names."""
    liked = [("u1", "a"), ("u2", "a"), ("u2", "b"), ("u3", "c")]
    shown = [(f"u{number}", item) for number in range(1, 10) for item in ("b", "d", "e")]
    rows = [{"who": u, "item_id": i, "event": "like"} for u, i in liked]
    train = write_table(
        [*rows, *({"who": u, "item_id": i, "event": "impression"} for u, i in shown)], tmp_path / "a.parquet"
    )
    later = [{"who": "u1", "item_id": "b", "event": "like"}, {"who": "u1", "item_id": "e", "event": "impression"}]
    test = write_table([*later, {"who": "u3", "item_id": "a", "event": "skip"}], tmp_path / "b.parquet")
    config = tmp_path / "nightlist.toml"
    config.write_text('[events]\ncolumns = { user_id = "who" }\nweights = { like = 2.0 }\n')

    found = evaluated(train, test, "--config", config, "--model", "popular", "--k", 2)
    assert (found["users"], found["items"], found["recall@2"]) == (1, 5, 1.0)

    config.write_text('[events]\ncolumns = { user_id = "who" }\n')
    found = evaluated(train, test, "--config", config, "--model", "popular", "--k", 2)
    assert (found["users"], found["items"], found["recall@2"]) == (2, 5, 1.0), "every other kind counts"


@pytest.mark.parametrize("zone", ["America/Los_Angeles", "Pacific/Kiritimati"])
def test_the_day_of_a_file_is_that_of_utc(tmp_path: Path, zone: str) -> None:
    """Two o'clock in UTC is the day before in the west: its rows are no less trained on."""
    rows = [event(f"u{number}", "i", hour=2.0 if zone.startswith("America") else 22.0) for number in range(3)]
    train = write_table(
        [{key: row[key] for key in ("user_id", "item_id", "ts")} for row in rows], tmp_path / "a.parquet"
    )
    test = write_table([{"user_id": "new", "item_id": "i"}], tmp_path / "b.parquet")
    arguments = ("evaluate", "--train", train, "--test", test, "--model", "popular", "--json", *QUICK)
    ended = process(*arguments, env=os.environ | {"TZ": zone})

    assert ended.code == 0, ended.stderr
    assert (ended.json["items"], ended.json["hit@20"]) == (1, 1.0)


def test_without_a_configuration_the_models_of_set_are_measured(spark: SparkSession, board: tuple[Path, Path]) -> None:
    """als is what comes of no choice at all."""
    assert evaluated(*board, "--set", 'retrieve.models=["popular"]')["model"] == "popular"
    assert evaluated(*board)["model"] == "als"


EVALUATE_ERRORS: dict[tuple[str, ...], tuple[int, str]] = {
    ("--model", "svd"): (
        2,
        "--model 'svd': there is none of that name; known: als, als_spark, ease, fresh, popular, segment, similar, spectral, blend",
    ),
    ("--set", "als.factor=8"): (2, "unknown key als.factor"),
    ("--config", "nowhere.toml"): (2, "nowhere.toml does not exist"),
    ("--k", "0"): (2, "0"),
    ("--train", "nowhere.parquet"): (1, "--train = nowhere.parquet does not exist"),
}


def test_evaluate_names_what_is_wrong(spark: SparkSession, board: tuple[Path, Path], tmp_path: Path) -> None:
    """An unknown model is a matter of usage (2), a missing file one of input (1); nothing stands on stdout."""
    train, test = board
    for arguments, (code, message) in EVALUATE_ERRORS.items():
        ended = nightlist("evaluate", "--train", train, "--test", test, "--json", *arguments)
        assert (ended.code, ended.stdout) == (code, ""), arguments
        assert message in ended.stderr, arguments
    wrong = write_table([{"user": 1, "item_id": 2}], tmp_path / "wrong.parquet")
    ended = nightlist("evaluate", "--train", train, "--test", wrong, "--json")
    assert (ended.code, ended.stdout) == (1, "")
    assert f"--test {wrong}: events has no column 'user_id' (user_id); it has user, item_id;" in ended.stderr
