"""What those who run the service look at: metrics, log lines, dashboard, alerts and runbook."""

import json
import logging
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from flask.testing import FlaskClient
from prometheus_client.parser import text_string_to_metric_families

from lookup_api import create_app
from lookup_api.access import HEADER, LINES_A_SECOND, AccessLog
from lookup_api.app import LookupApp
from lookup_api.logs import JsonFormatter, TextFormatter
from lookup_api.metrics import GAUGES
from lookup_api.readers.sqlite import SqliteReader
from tests.clock import START
from tests.lookup import NEXT, RUN, Api, Faulty, World, night

MONITORING = Path(__file__).parents[1] / "lookup_api" / "monitoring"
RULE = "/v1/users/<id:user_id>/recommendations"

# Metrics


class Counting(SqliteReader):
    """A reader that counts what it does, as one of Cassandra's does."""

    events = {"confirmation": 0}


def samples(client: FlaskClient) -> dict[str, float]:
    """Every series but those of single buckets, by name and labels as they are exposed."""
    return {
        sample.name + "".join(f" {value}" for value in sample.labels.values()): sample.value
        for family in text_string_to_metric_families(client.get("/metrics").text)
        for sample in family.samples
        if not sample.name.endswith("_bucket")
    }


def families(client: FlaskClient) -> set[str]:
    return set(re.findall(r"^# TYPE (\S+)", client.get("/metrics").text, re.MULTILINE))


def test_every_metric_moves(world: World) -> None:
    """Each has a cause and shows it; one that is exported and not driven here is a defect."""
    world.publish(RUN, night())
    reader = Counting(world.path)
    api = Api(world.app(reader=reader))
    before = samples(api.client)
    for user in ("u1", "nobody", "has%20seen%20everything"):
        api.ok(f"/v1/users/{user}/recommendations")
    api.ask("/v1/users/u1/recommendations?n=0", method="HEAD")
    api.ask("/nowhere", method="BREW")
    api.ok("/v1/items/i1/similar")
    Counting.events["confirmation"] = 3
    world.clock.now = datetime(2026, 3, 1, 4, 30, tzinfo=UTC)
    world.publish(NEXT)
    api.refresh()
    (world.path / "registry.db").unlink()
    world.clock.now = datetime(2026, 3, 1, 5, 30, tzinfo=UTC)
    api.refresh()
    api.refresh()
    api.service.close()
    api.problem("/readyz", 503)
    after = samples(api.client)
    moved = {name: value for name, value in after.items() if value != before.get(name, 0)}
    took = {name: moved.pop(name) for name in list(moved) if "seconds_sum" in name}

    assert {name: value for name, value in moved.items() if "/metrics" not in name} == {
        f"nightlist_requests_total {RULE} GET 2xx": 3,
        f"nightlist_requests_total {RULE} HEAD 4xx": 1,
        "nightlist_requests_total unmatched other 4xx": 1,
        "nightlist_requests_total /v1/items/<id:item_id>/similar GET 2xx": 1,
        "nightlist_requests_total /readyz GET 5xx": 1,
        f"nightlist_request_seconds_count {RULE}": 4,
        "nightlist_request_seconds_count unmatched": 1,
        "nightlist_request_seconds_count /v1/items/<id:item_id>/similar": 1,
        "nightlist_request_seconds_count /readyz": 1,
        "nightlist_answers_total personal": 2,
        "nightlist_answers_total popular": 1,
        "nightlist_answers_total similar": 1,
        "nightlist_empty_lists_total personal": 1,
        "nightlist_problems_total invalid-parameter": 1,
        "nightlist_problems_total not-found": 1,
        "nightlist_problems_total not-ready": 1,
        "nightlist_reader_events_total confirmation": 3,
        "nightlist_refresh_failures_total": 2,
        "nightlist_pointer_sequence": 2,
        "nightlist_refresh_timestamp_seconds": datetime(2026, 3, 1, 4, 30, tzinfo=UTC).timestamp(),
        "nightlist_release_published_timestamp_seconds": datetime(2026, 3, 1, 4, 30, tzinfo=UTC).timestamp(),
        "nightlist_stale": 1,
        "nightlist_draining": 1,
    }
    assert min(took.values()) > 0
    assert before["nightlist_release_published_timestamp_seconds"] == START.timestamp()
    driven = {re.sub("_(total|count|sum)$", "", name.split()[0]) for name in moved}
    elsewhere = {"nightlist_requests_under_way"}  # by the test below
    assert {re.sub("_total$", "", name) for name in families(api.client)} == driven | elsewhere


class Looking(SqliteReader):
    """A reader that looks at the metrics while it reads."""

    client: FlaskClient
    seen = 0.0

    def get(self, run_id: str, kind: Any, key: str, until: float | None = None) -> Any:
        with ThreadPoolExecutor(1) as pool:  # a request of its own: within one thread, Flask would mix them up
            self.seen = pool.submit(samples, self.client).result()["nightlist_requests_under_way"]
        return super().get(run_id, kind, key, until)


def test_requests_under_way_are_told_while_they_are(world: World) -> None:
    """Of lists, not of probes and scrapes; what fails is not under way for ever."""
    world.publish(RUN, night())
    reader = Looking(world.path)
    api = Api(world.app(reader=reader))
    reader.client = api.app.test_client()
    api.ok("/v1/popular")
    for url in ("/v1/popular?n=0", "/v1/nowhere", "/livez"):
        api.ask(url)

    assert reader.seen == 1
    assert samples(api.client)["nightlist_requests_under_way"] == 0


def test_metrics_hold_no_id_and_few_series(world: World, api: Api) -> None:
    """Labels are few however many users ask."""
    for number in range(50):
        api.ok(f"/v1/users/someone-{number}/recommendations")
        api.ask(f"/nowhere/{number}", method=f"M{number}")
        api.ask(f"/v1/items/someone-{number}/similar")
    text = api.ask("/metrics").text

    assert "someone" not in text
    assert len(text.splitlines()) < 120


def test_nothing_is_said_of_a_release_before_there_is_one(world: World) -> None:
    """A gauge of 0 would be a release of 1970, whose age alarms."""
    world.store.prepare()
    told = families(Api(world.app()).client)

    assert not {"nightlist_pointer_sequence", "nightlist_release_published_timestamp_seconds"} & told


# Logs


def test_a_traceback_has_no_words(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """An exception may say for whom: types and places are logged, of its causes too, in both formats."""
    world.publish(RUN, night())
    Api(world.app(reader=Faulty(world.path))).ask("/v1/users/u1/recommendations")
    words = "the secret of {}".format("u1")  # in a variable: a traceback shows lines of code
    try:
        try:
            raise KeyError(words)
        except KeyError as error:
            raise ValueError(words) from error
    except ValueError:
        logging.getLogger("lookup_api").exception("it failed")
    records = [record for record in caplog.records if record.exc_info]
    lines = [form.format(record) for record in records for form in (JsonFormatter(), TextFormatter())]

    assert len(lines) == 4
    assert not [line for line in lines if "secret of u1" in line]
    assert "ZeroDivisionError" in json.loads(lines[0])["exception"]
    assert "in get" in json.loads(lines[0])["exception"]
    assert lines[3].index("KeyError") < lines[3].index("which led to") < lines[3].rindex("ValueError")


def test_a_fault_outside_the_routes_tells_no_path(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Flask itself would log the path, and the user in it."""
    world.publish(RUN, night())
    app = world.app()

    @app.after_request
    def fail(response: Any) -> Any:
        raise RuntimeError("nobody thought of it")

    answer = app.test_client().get("/v1/users/u7341/recommendations")

    assert isinstance(app, LookupApp)
    assert answer.status_code == 500
    assert [record.getMessage() for record in caplog.records if "u7341" in record.getMessage()] == []
    assert f"RuntimeError while answering {RULE}" in caplog.text


@pytest.mark.parametrize("given", ["abc-1", "A.b_c-9", "x" * 64])
def test_a_request_keeps_its_name(api: Api, given: str) -> None:
    """In the answer, whatever the answer is."""
    for url in ("/v1/popular", "/nowhere", "/v1/popular?n=0", "/livez"):
        assert api.ask(url, headers={HEADER: given}).headers[HEADER] == given


@pytest.mark.parametrize("given", ["", "a b", "x" * 65, 'a"b', "ü", "a;b"])
def test_a_name_that_is_none_is_replaced(api: Api, given: str) -> None:
    """By one that nobody has."""
    names = {api.ask("/v1/popular", headers={HEADER: given}).headers[HEADER] for _ in range(10)}

    assert len(names) == 10
    assert given not in names


def lines_of(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    found = [vars(record) for record in caplog.records if record.name == "lookup_api.access"]
    caplog.clear()
    return found


def test_a_user_is_a_keyed_hash(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """The same for a user and a key, by path and by query; without a key, another one at each start."""
    caplog.set_level(logging.INFO)
    world.publish(RUN, night())
    for key in ("one", "one", "two", "", ""):
        client = Api(world.app(access_log=1, log_key=key)).client
        client.get("/v1/users/u1/recommendations")
        client.get("/v1/recommendations?user_id=u1")
        client.get("/v1/recommendations?user_id=u2")
        client.get("/v1/popular")
    users = [line.get("user") for line in lines_of(caplog)]

    assert [users[0], users[4], users[12], users[16]] == [users[1], users[5], users[13], users[17]]
    assert users[3] is None
    assert users[0] == users[4]
    assert len({users[0], users[2], users[8], users[12], users[16]}) == 5


def test_a_query_that_is_no_text_is_logged_without_a_user(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Raw bytes, which some servers hand on: 400 or 200 as ever, and no error of ours on the way out."""
    caplog.set_level(logging.INFO)
    world.publish(RUN, night())
    client = Api(world.app(access_log=1)).client
    for path, status in ("/livez", 200), ("/v1/popular", 400):
        assert client.get(path, environ_overrides={"QUERY_STRING": "user_id=\xff"}).status_code == status
    lines = lines_of(caplog)

    assert [line["status"] for line in lines] == [200, 400]
    assert not any("user" in line for line in lines)


def test_a_batch_and_what_the_client_has_already_say_their_run(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Which run an answer was from is what one looks for in a log."""
    caplog.set_level(logging.INFO)
    world.publish(RUN, night())
    client = Api(world.app(access_log=1)).client
    tag = client.get("/v1/popular").headers["ETag"]
    assert client.get("/v1/popular", headers={"If-None-Match": tag}).status_code == 304
    assert client.post("/v1/recommendations:batch", json={"user_ids": ["u1"]}).status_code == 200

    assert [line.get("run_id") for line in lines_of(caplog)] == [RUN] * 3


def test_every_request_is_logged_where_it_is_asked_for(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Otherwise those that failed or were slow, and of them only some a second, with the number of the others."""
    caplog.set_level(logging.INFO)
    world.publish(RUN, night())
    Api(world.app(access_log=1)).ok("/v1/popular")
    assert [line["status"] for line in lines_of(caplog)] == [200]
    now = [0.0]
    app = world.app(reader=Faulty(world.path))
    app.extensions["nightlist"].access_log = AccessLog(False, "", lambda: now[0])
    client = app.test_client()
    for _ in range(LINES_A_SECOND + 5):
        client.get("/livez")
        client.get("/v1/popular")
    now[0] = 1.0
    client.get("/v1/popular")
    lines = lines_of(caplog)

    assert {line["status"] for line in lines} == {500}
    assert len(lines) == LINES_A_SECOND + 1
    assert lines[-1]["left_out"] == 5


# Dashboard, alerts and runbook

DASHBOARD = json.loads((MONITORING / "dashboard.json").read_text())
ALERTS = [
    alert for group in yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"] for alert in group["rules"]
]
QUERIES = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
QUERIES += [note["expr"] for note in DASHBOARD["annotations"]["list"]]
BY_PROMETHEUS = {"job", "instance", "le"}


def plain(query: str) -> str:
    """A dashboard's query with values for its variables."""
    return query.replace("$__rate_interval", "5m").replace("$job", ".*")


def selectors(query: str) -> Iterator[tuple[str, set[str], set[str]]]:
    """Each series that a query reads: its name, the labels that it asks for, and those that the query groups by."""
    groups: set[str] = set()
    found: list[Any] = []

    def visit(node: Any) -> None:
        if isinstance(node, promql_parser.AggregateExpr):
            groups.update(node.modifier.labels if node.modifier else [])
        if isinstance(node, promql_parser.MatrixSelector):
            visit(node.vector_selector)
        if isinstance(node, promql_parser.VectorSelector):
            found.append(node)
        for child in ("expr", "lhs", "rhs"):
            if hasattr(node, child):
                visit(getattr(node, child))
        for argument in getattr(node, "args", []):
            visit(argument)

    visit(promql_parser.parse(plain(query)))
    for node in found:
        yield node.name, {matcher.name for matcher in node.matchers.matchers}, groups


def exported(world: World) -> dict[str, set[str]]:
    """Every series that the application can export, and its labels."""
    app = create_app(world.config(), reader=SqliteReader(world.path))
    world.apps.append(app)
    registry = app.extensions["nightlist"].metrics._registry
    known = {name: set() for name in GAUGES}
    for metric in registry._collector_to_names:
        labels = set(metric._labelnames)
        kind = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(metric._type, ("",))
        known |= {metric._name + suffix: labels for suffix in kind}
    return known


@pytest.mark.parametrize("query", [*QUERIES, *(alert["expr"] for alert in ALERTS)])
def test_queries_name_what_is_exported(world: World, query: str) -> None:
    """Every PromQL expression parses, and names series and labels that there are."""
    known = exported(world)
    read = list(selectors(query))

    assert read
    for name, asked, _ in read:
        assert name in known
        assert asked <= known[name] | BY_PROMETHEUS
    grouped = read[0][2]
    assert grouped <= set.union(*(known[name] for name, _, _ in read)) | BY_PROMETHEUS


def test_every_metric_is_on_the_dashboard(world: World) -> None:
    """What nobody looks at need not be counted."""
    shown = {name for query in QUERIES for name, _, _ in selectors(query)}

    assert {re.sub("_(bucket|sum|count)$", "", name) for name in exported(world)} <= {
        re.sub("_(bucket|sum|count)$", "", name) for name in shown
    }


def test_the_dashboard_can_be_imported() -> None:
    """Panels have a place and an id of their own, and take their data source from the variable."""
    panels = DASHBOARD["panels"]
    cells = [
        (panel["gridPos"]["x"] + x, panel["gridPos"]["y"] + y)
        for panel in panels
        for x in range(panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["h"])
    ]

    assert DASHBOARD["schemaVersion"] >= 39
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24
    assert {panel["datasource"]["uid"] for panel in panels} == {"${datasource}"}
    assert [variable["name"] for variable in DASHBOARD["templating"]["list"]] == ["datasource", "job"]


def test_alerts_and_runbook_belong_together() -> None:
    """Each alert leads to its entry, each entry of an alert has its alert, and each says how bad it is and what it means."""
    headings = re.findall(r"^### (Nightlist\w+)$", (MONITORING / "RUNBOOK.md").read_text(), re.MULTILINE)
    names = [alert["alert"] for alert in ALERTS]

    assert sorted(headings) == sorted(names)
    for alert in ALERTS:
        assert alert["annotations"]["runbook_url"] == f"RUNBOOK.md#{alert['alert'].lower()}"
        assert alert["labels"]["severity"] in ("page", "warn")
        assert alert["annotations"]["summary"]
        assert alert["annotations"]["description"]


def test_the_runbooks_commands_exist() -> None:
    """Every `nightlist X` and every option of it that the runbook names is there."""
    from jobs.cli import cli

    text = (MONITORING / "RUNBOOK.md").read_text()
    for line in re.findall(
        r"\bnightlist ((?:runs|rollback|nightly|doctor|validate|serve|init|backfill)\b[^`\n#]*)", text
    ):
        name, *words = line.split()
        command = cli.get_command(None, name)
        options = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= options, line


def test_lists_are_old_after_a_night_and_very_old_after_two() -> None:
    """The thresholds of freshness are 30 and 54 hours."""
    (warn, page) = (
        next(a["expr"] for a in ALERTS if a["alert"] == name) for name in ("NightlistListsOld", "NightlistListsVeryOld")
    )

    assert promql_parser.parse(warn).rhs.prettify() == "30 * 3600"
    assert promql_parser.parse(page).rhs.prettify() == "54 * 3600"
