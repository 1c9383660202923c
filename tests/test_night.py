"""One whole night, and the next: what was built is what is served, and no metric uses what was trained on."""

from datetime import UTC, datetime, timedelta

import pyarrow.parquet as pq
import pytest

from jobs.lists import BuiltLists
from jobs.models import names
from jobs.run import ROLLED_BACK
from schemas.errors import Refused
from tests.commands import asking
from tests.nights import DAY, Place, at, checkerboard, event, place, write_table

YESTERDAY = DAY - timedelta(days=1)
SIZE = 24


def withheld_events() -> list[dict]:
    """Before D everybody has all items of their parity but their own; on D each takes their own, and one item again."""
    before = [row | {"ts": row["ts"] - timedelta(days=1)} for row in checkerboard(SIZE)]
    own = [event(f"u{user:03d}", f"i{user:03d}") for user in range(SIZE)]
    again = [event(f"u{user:03d}", f"i{(user + 2) % SIZE:03d}", hour=15) for user in range(SIZE)]
    return before + own + again


@pytest.fixture(scope="module")
def nights(tmp_path_factory, spark) -> Place:
    """Two nights of that world, both published."""
    anything = {"coverage": {"warn": 0.0, "stop": 0.0}}  # lists of one item are the same few items once all is seen
    there = place(
        tmp_path_factory.mktemp("nights"), withheld_events(), rerank={"n": 1}, holdout={"k": 1}, gate=anything
    )
    there.night(YESTERDAY)
    there.report = there.night()
    return there


def test_the_checkerboard_is_solved(nights):
    """Each user's published list of the night before D begins with the one item that they lacked."""
    yesterday = min(nights.settings().paths.runs.iterdir())

    found = {row.key: row.items for row in BuiltLists(yesterday / "build") if row.kind == "user"}

    assert found == {f"u{user:03d}": (f"i{user:03d}",) for user in range(SIZE)}


def test_the_holdout_is_trained_on_events_before_the_day_only(nights):
    """Trained on D as well, each user's own item would count as seen, and recall would be 0 instead of 1; what was
    watched before is no test pair."""
    holdout = nights.report.line()["metrics"]["holdout"]

    assert (holdout["recall@1"], holdout["users"], holdout["users_known"]) == (1.0, SIZE, SIZE)


def test_last_nights_live_lists_are_scored_on_the_day_that_they_did_not_know(nights):
    """served_previous measures the run that was live, and is written to that run's folder too."""
    parent = nights.report.run.counts("served_previous")["run_id"]

    measured = nights.report.line()["metrics"]["served_previous"]

    assert parent.startswith(f"{YESTERDAY:%Y%m%d}")
    assert (measured["recall@1"], measured["users"]) == (1.0, SIZE)
    served = (nights.settings().paths.runs / parent / "served.json").read_text()
    assert '"recall@1": 1.0' in served


def test_the_published_lists_know_the_day_itself(nights):
    """What a user took on D is in no list published for D: published lists are trained on every event up to and with D."""
    for user in range(SIZE):
        assert f"i{user:03d}" not in nights.served(f"u{user:03d}").items


def test_what_was_built_is_what_is_served(nights):
    """Every list of the live run, read through the API, is the Parquet's that the gate read and the loader loaded."""
    routes = {
        "user": ("/v1/recommendations", "user_id", "personal"),
        "similar": ("/v1/similar", "item_id", "similar"),
        "popular": ("/v1/popular", "segment", "popular"),
    }
    built = list(BuiltLists(nights.report.run.folder / "build"))

    with asking(nights.config) as client:
        for row in built:
            path, parameter, source = routes[row.kind]
            answer = client.get(path, query_string={parameter: row.key, "n": 1_000}).get_json()
            assert answer["run_id"] == nights.report.run.run_id
            assert answer["source"] == source
            assert [(item["item_id"], item["score"], "+".join(item["sources"])) for item in answer["items"]] == list(
                zip(row.items, row.scores, row.sources, strict=True)
            )
    assert {row.kind for row in built} == set(routes)


def test_the_gate_compared_the_night_with_the_one_before(nights):
    """With a last night, every gate has a value, but for the holdout of so few users."""
    gates = {gate["name"]: gate["status"] for gate in nights.report.line()["verdict"]["gates"]}

    assert {name for name, status in gates.items() if status == "skipped"} == {"holdout"}


def test_every_user_has_one_outcome(nights):
    """personal, popular, empty and failed sum to the users."""
    line = nights.report.line()

    assert line["users"] == SIZE == sum(line["outcomes"].values())
    assert line["rows"]["user"] == line["outcomes"]["personal"] + line["outcomes"]["empty"]


def test_the_same_night_again_does_nothing(nights):
    """Started again after it is live, a night skips every stage and stays live."""
    before = {path: path.stat().st_mtime_ns for path in nights.report.run.folder.rglob("*.parquet")}

    again = nights.night()

    assert again.line()["state"] == "LIVE"
    assert {path: path.stat().st_mtime_ns for path in nights.report.run.folder.rglob("*.parquet")} == before


def test_order_and_files_of_the_input_do_not_change_the_run(nights, tmp_path):
    """The same events, reversed and in two files, are the same run."""
    rows = withheld_events()[::-1]
    other = place(tmp_path, rows[:100], **nights.sections)
    (tmp_path / "events.parquet").rename(tmp_path / "first.parquet")
    write_table(rows[100:], tmp_path / "events" / "b.parquet", None)
    (tmp_path / "first.parquet").rename(tmp_path / "events" / "a.parquet")
    other.sections["input"] = {"events": "events"}

    same = other.night()

    assert same.run.run_id == nights.report.run.run_id
    assert same.run.counts("build")["lists_checksum"] == nights.report.run.counts("build")["lists_checksum"]


def test_one_other_event_is_another_run(nights, tmp_path):
    """An event replaced by another one, at the same count, makes another run: nothing is skipped for looking alike."""
    rows = withheld_events()
    other = place(tmp_path, [*rows[:-1], event("u001", "i007", hour=16)], **nights.sections)

    assert other.night().run.run_id != nights.report.run.run_id


def test_an_older_night_does_not_move_the_lists_back(nights):
    """A night for a day before the live run's is refused, and stays built."""
    error, report = nights.failing_night(DAY - timedelta(days=3))

    assert isinstance(error, Refused)
    assert report.state == "BUILT"
    assert nights.live() == nights.report.run.run_id


def test_a_user_with_three_items_left_gets_three(tmp_path, spark):
    """Nobody's list is filled up with what they have seen: three items are left, three are given, and with none left none,
    rather than the popular list; a user who was only shown things is answered with the popular list."""
    items = [f"i{number:02d}" for number in range(12)]
    crowd = [
        event(f"u{user}", item, DAY - timedelta(days=user % 3)) for user in range(12) for item in items[: 6 + user % 6]
    ]
    keen = [event("keen", item) for item in items[3:]]
    sated = [event("sated", item) for item in items]
    shown = [event("shown", "i00", kind="impression")]
    there = place(
        tmp_path, crowd + keen + sated + shown, retrieve={"models": ["als", "popular", "similar"]}, rerank={"n": 100}
    )

    outcomes = there.night().line()["outcomes"]

    assert sorted(there.served("keen").items) == items[:3]
    assert there.served("sated").items == ()
    assert there.served("shown") is None
    assert outcomes == {"personal": 13, "popular": 1, "empty": 1, "failed": 0}


def test_a_worse_night_is_refused_and_an_override_is_recorded(tmp_path, spark):
    """Half of the users gone: the gate stops the run, last night's lists stay, and only a reason gets it through."""
    there = place(tmp_path, withheld_events())
    yesterday = there.night(YESTERDAY).run.run_id
    few = [row for row in withheld_events() if row["user_id"] < f"u{SIZE // 2:03d}"]
    write_table(few, tmp_path / "events.parquet")

    error, report = there.failing_night()

    assert isinstance(error, Refused)
    assert "users = 0.5 (stop at 0.8)" in str(error)
    assert (report.line()["state"], report.line()["verdict"]["status"]) == ("REFUSED", "stop")
    assert there.live() == yesterday

    forced = there.night(override="half of the platform was sold")

    assert (forced.line()["state"], there.live()) == ("LIVE", forced.run.run_id)
    assert forced.line()["verdict"]["status"] == "overridden"
    assert "half of the platform was sold" in (forced.run.folder / "manifest.json").read_text()


def test_served_previous_follows_a_change_of_parent(tmp_path, spark):
    """A refused night that is started again after last night's run was rolled back measures the run before, not the bad one."""
    there = place(tmp_path, withheld_events(), gate={"leaks": {"warn": -1.0, "stop": -1.0}})
    first, second = DAY - timedelta(days=2), YESTERDAY
    parents = [there.night(day, override="a gate that always stops").run for day in (first, second)]
    _, refused = there.failing_night()
    measured = refused.run.counts("served_previous")["run_id"]
    parents[1].write(ROLLED_BACK, {"to": parents[0].run_id, "at": datetime.now(UTC).isoformat()})

    there.failing_night()

    assert (measured, refused.run.counts("served_previous")["run_id"]) == (parents[1].run_id, parents[0].run_id)


def test_every_model_can_be_the_only_one(nights, tmp_path):
    """Any file in jobs/models makes lists by itself, and its lists name it as their source."""
    for model in names():
        there = place(tmp_path / model, checkerboard(SIZE), retrieve={"models": [model]})

        run = there.night().run

        sources = {source for row in BuiltLists(run.folder / "build") if row.kind == "user" for source in row.sources}
        assert sources == {model}


def test_intermediate_stages_are_one_row_a_user_with_parallel_arrays(nights):
    """candidates, ranked and lists hold items, scores, sources and ranks of one length."""
    for stage in ("retrieve", "rank", "rerank"):
        for path in (nights.report.run.folder / stage).glob("*.parquet"):
            for row in pq.read_table(path).to_pylist():
                lengths = {len(row[name]) for name in ("items", "scores", "sources", "ranks")}
                assert len(lengths) == 1
    assert at(DAY) > at(YESTERDAY)
