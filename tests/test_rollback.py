"""`nightlist rollback` and `nightlist runs` as an operator meets them, also in the middle of an incident."""

import json
import shutil
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from jobs.commands.doctor import check_clock
from jobs.config import load_settings
from jobs.run import MANIFEST, ROLLED_BACK
from lookup_api.readers.sqlite import REGISTRY, lists_path
from schemas.errors import NightlistError
from schemas.runs import RunState
from tests.commands import Ended, nightlist
from tests.test_publish import NEWER, OLDER, RUNS, THIRD, Crash, DiesAtTheFlip, Site, left


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """Three runs, THIRD live, and a nightlist.toml beside them; published an hour ago, by the real clock."""
    found = Site(tmp_path, keep=3, grace=600)
    found.clock.now = datetime.now(UTC) - timedelta(hours=1)
    for run_id in (OLDER, NEWER, THIRD):
        found.publish(run_id)
    configure(tmp_path, lease_seconds=60)
    return found


def configure(folder: Path, **store: object) -> None:
    lines = [f"{name} = {value}" for name, value in store.items()]
    (folder / "nightlist.toml").write_text(
        '[input]\nevents = "none.parquet"\n[paths]\nruns = "runs"\n[store]\npath = "store"\nkeep = 3\n'
        + "\n".join(lines)
    )


def command(site: Site, *arguments: object) -> Ended:
    name, *others = arguments
    return nightlist(name, "-c", site.folder / "nightlist.toml", *others)


def in_words(ended: Ended) -> str:
    return " ".join(ended.stderr.split())


# What it shows


def test_a_rollback_shows_the_ways_back_and_what_would_change(site: Site) -> None:
    """The choices, lists now and then, their age, how the two differ, and which run becomes BAD: all before it asks."""
    ended = command(site, "rollback", "--dry-run")
    shown = in_words(ended)

    assert ended.code == 0
    assert f"-> {NEWER} 9 lists last served 1 h ago" in shown
    assert f"{OLDER} 9 lists" in shown
    assert f"serve {NEWER} again, instead of {THIRD}, which becomes BAD for ever" in shown
    assert "lists: 9 now, 9 then, all of them read in" in shown
    assert f"of 9 lists 0 have none in {THIRD}; the others share 0% of their items with it" in shown


def test_a_dry_run_needs_no_lease_and_writes_nothing(site: Site) -> None:
    """Whoever publishes meanwhile is not disturbed, and every file stays as it is."""
    site.clock.now = datetime.now(UTC)
    with site.publisher():
        before = {path: path.stat().st_mtime_ns for path in site.folder.rglob("*")}
        ended = command(site, "rollback", "--dry-run", "--json")
        assert {path: path.stat().st_mtime_ns for path in site.folder.rglob("*")} == before

    found = ended.json
    assert (ended.code, found["dry_run"], found["run_id"], found["bad"]) == (0, True, NEWER, THIRD)
    assert (found["choices"], found["lists"]) == ([NEWER, OLDER], {"now": 9, "then": 9})
    assert found["sample"] == {"lists": 9, "missing_now": 0, "same_items": 0.0}
    assert found["seconds"] >= 0


def test_a_live_run_that_can_t_be_read_is_no_hindrance(site: Site) -> None:
    """It is the reason to roll back: the comparison says so, and the way back is open."""
    lists_path(site.settings.path, THIRD).unlink()
    ended = command(site, "rollback", "--yes", "--json")

    assert ended.code == 0
    assert ended.json["sample"]["missing_now"] is None
    assert f"{THIRD} can't be read" in ended.stderr
    assert site.served() == NEWER


def test_a_damaged_target_is_refused_and_another_one_can_be_named(site: Site) -> None:
    """Exit code 3 says what is missing; --to goes past it."""
    lists_path(site.settings.path, NEWER).unlink()
    refused = command(site, "rollback", "--yes")
    assert (refused.code, refused.stdout) == (3, "")
    assert f"{NEWER} holds 0 lists that can be read where 9 were published (" in refused.stderr
    assert f"{lists_path(site.settings.path, NEWER)} does not exist" in refused.stderr
    assert refused.stderr.endswith("choose another with --to\n")

    assert command(site, "rollback", "--yes", "--to", OLDER).code == 0
    assert site.served() == OLDER


def test_a_store_that_can_t_be_read_ends_with_5(site: Site) -> None:
    """And is not taken for an empty one."""
    (site.settings.path / REGISTRY).write_bytes(b"junk" * 5_000)
    for name in (("rollback", "--yes"), ("runs",)):
        assert command(site, *name).code == 5


# In an incident


def test_the_folder_of_the_live_run_may_be_elsewhere(site: Site) -> None:
    """The rollback works, and leaves word for the nights of this machine."""
    shutil.rmtree(site.folder / "runs")
    ended = command(site, "rollback", "--yes")

    assert ended.code == 0, ended.stderr
    assert site.states()[THIRD] is RunState.BAD
    assert (site.folder / "runs" / THIRD / ROLLED_BACK).exists()


def test_the_lease_of_a_dead_publisher_is_waited_for(site: Site) -> None:
    """One that died on another host a moment ago: the command says until when, waits, and goes on."""
    configure(site.folder, lease_seconds=2)
    site.clock.now = datetime.now(UTC)
    site.store().acquire("another-host:1", 2)
    ended = command(site, "rollback", "--yes")

    assert ended.code == 0
    assert "waiting for the lease of another-host:1" in ended.stderr
    assert site.states()[NEWER] is RunState.LIVE


def test_a_publisher_at_work_ends_the_command_with_4_unless_it_is_taken_over(site: Site) -> None:
    """It renews its lease, so it lives: the message says how to take its place, and doing so works at once."""
    store, stop = site.store(), threading.Event()
    site.clock.now = datetime.now(UTC)
    lease = store.acquire("another-host:1", 60)

    def work() -> None:
        while not stop.wait(0.1):
            site.clock.now = datetime.now(UTC)
            store.renew(lease, 60)

    thread = threading.Thread(target=work)
    thread.start()
    refused = command(site, "rollback", "--yes")
    stop.set()
    thread.join()
    assert (refused.code, site.served()) == (4, THIRD)
    assert "another-host:1 is publishing" in refused.stderr
    assert "--take-over" in refused.stderr

    assert command(site, "rollback", "--yes", "--take-over").code == 0
    assert site.served() == NEWER


@pytest.mark.parametrize("when", ["before the flip", "after the flip"])
def test_a_rollback_that_died_is_finished_by_the_same_command(site: Site, when: str) -> None:
    """It says so, and goes no further."""
    with pytest.raises(Crash):
        site.roll_back(store=DiesAtTheFlip(site.settings.path, site.clock, when))
    shown = command(site, "runs", "--json").json
    assert {run["run_id"]: run["state"] for run in shown["runs"]}[THIRD] == "BAD"
    ended = command(site, "rollback", "--yes", "--json")

    assert ended.code == 0, ended.stderr
    assert (ended.json["begun"], ended.json["run_id"], ended.json["bad"]) == (True, NEWER, THIRD)
    assert "was begun and not finished: this only finishes it" in ended.stderr
    assert site.served() == NEWER
    assert site.states() == {THIRD: RunState.BAD, NEWER: RunState.LIVE, OLDER: RunState.RETIRED}


# runs


def test_runs_says_what_happens_to_each_run_next(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which one a rollback would go to, what the next publication prunes, what dead publishers left, and who publishes."""
    left(site, RUNS[3], RunState.LOADED)
    unbuilt = site.folder / "runs" / RUNS[4]
    unbuilt.mkdir()
    (unbuilt / "events.json").write_text(json.dumps({"name": "events", "digest": "", "checksum": "", "seconds": 1}))
    site.store().acquire("another-host:1", 60)
    found = command(site, "runs", "--json").json
    runs = {run["run_id"]: run for run in found["runs"]}

    assert [runs[run_id]["next"] for run_id in RUNS[:5]] == ["prune", "rollback", None, "clean", None]
    assert (runs[RUNS[4]]["state"], runs[RUNS[4]]["stages"], runs[RUNS[4]]["built"]) == (None, ["events"], False)
    assert (found["lease"]["owner"], found["lease"]["over"]) == ("another-host:1", True)
    monkeypatch.setenv("COLUMNS", "160")
    shown = command(site, "runs").stdout
    for word in ("pruned next", "<- rollback", "dropped next", "unfinished, after events", "held by another-host:1"):
        assert word in shown


def test_what_runs_foretells_is_what_the_next_publication_does(site: Site) -> None:
    """The runs shown as pruned and dropped next are those that are gone after it, and the way back is where one goes."""
    left(site, RUNS[3], RunState.LOADING)
    runs = command(site, "runs", "--json").json["runs"]
    going = {run["run_id"] for run in runs if run["next"] in ("prune", "clean")}
    before = set(site.states())
    site.grace = 0
    site.publish(RUNS[5])

    assert going == before - set(site.states()) == {OLDER, RUNS[3]}


def test_runs_survives_any_folder(site: Site) -> None:
    """A manifest that is no JSON, none at all, files where folders are expected, and foreign names."""
    runs = site.folder / "runs"
    (runs / THIRD / MANIFEST).write_text("{")
    (runs / "backfill.jsonl").write_text("")
    (runs / "Some Notes").mkdir()
    (runs / "20260320_00000009").write_text("a file")
    ended = command(site, "runs", "--json")

    assert ended.code == 0, ended.stderr
    assert [run["run_id"] for run in ended.json["runs"]] == [THIRD, NEWER, OLDER]
    assert command(site, "runs").code == 0


@pytest.mark.parametrize("what", ["a publication", "a lease"])
def test_doctor_sees_that_clocks_differ(site: Site, what: str) -> None:
    """A machine an hour ahead published, or holds a lease: the check says by how much, and what to compare."""
    settings = load_settings(site.folder / "nightlist.toml")
    assert check_clock(settings).endswith("nothing in the store is later")
    site.clock.now = datetime.now(UTC) + timedelta(hours=1)
    if what == "a lease":
        site.store().acquire("another-host:1", 60)
    else:
        site.publish(RUNS[3])
    with pytest.raises(NightlistError, match=r"a time 3[56]\d\d s from now"):
        check_clock(settings)
