"""What only several processes show: granian and gunicorn, two workers each, their metrics, their logs and their end."""

import http.client
import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread
from typing import Any
from urllib.parse import quote

import pytest
import requests

from tests.lookup import a_list, until
from tests.test_lookup_http import ROOT, Server

RUN = "20260301_0badcafe"
PATH = "/v1/users/u1/recommendations"
LISTS = [a_list("user", "u1", "i1"), a_list("popular", "all", "p1"), a_list("similar", "i1", "i2")]


class Gunicorn(Server):
    """gunicorn over a store of its own, started as the README says."""

    def start(self, folder: Path) -> "subprocess.Popen[bytes]":
        gunicorn = Path(sys.executable).parent / "gunicorn"
        command = [gunicorn, "-c", "python:lookup_api.gunicorn_conf", "lookup_api:create_app()"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "NIGHTLIST_CONFIG": str(self.config)}
        with self.log.open("wb") as log:
            return subprocess.Popen(command, cwd=self.config.parent, env=environment, stdout=log, stderr=log)


Start = Callable[..., Server]


@pytest.fixture(params=[Server, Gunicorn], ids=["granian", "gunicorn"])
def start(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Start]:
    """Starts a server of two workers over one published run, and sees to its end."""
    started = []

    def begin(**options: Any) -> Server:
        server: Server = request.param(tmp_path, RUN, LISTS, workers=2, **options)
        started.append(server)
        server.wait_for("/readyz", 200)
        assert until(lambda: len(counting(server)) == 2, 60), "the other worker is not there"
        return server

    yield begin
    for server in started:
        server.stop()


def metric(server: Server, line: str) -> float:
    found = re.search(rf"^{re.escape(line)} (\S+)$", server.get("/metrics").text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def children(server: Server) -> set[int]:
    """The workers that live."""
    pid = server.process.pid
    return {int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}


def counting(server: Server) -> set[Path]:
    """The files in which its workers count, each in its own from when it can answer."""
    found = set()
    for worker in children(server):
        with suppress(OSError):  # it has just ended
            found |= set(re.findall(r"\S+/counter_\d+\.db", Path(f"/proc/{worker}/maps").read_text()))
    return set(map(Path, found))


def folder_of(server: Server) -> Path:
    """The folder that the server's processes share."""
    (found,) = {path.parent for path in counting(server)}
    return found


# Metrics


def test_a_scrape_of_any_worker_tells_of_all(start: Start) -> None:
    """However requests fall on workers, every scrape has them all, and no label tells the workers apart."""
    server = start()
    count = 'nightlist_answers_total{source="popular"}'
    for _ in range(60):  # a connection each: they fall on both
        assert server.get("/v1/popular").ok
    files = {path.name for path in folder_of(server).glob("counter_*.db")}

    assert len(files) == 2, files
    assert {metric(server, count) for _ in range(20)} == {60}
    assert metric(server, "nightlist_pointer_sequence") == 1
    assert "pid=" not in server.get("/metrics").text


def test_what_a_dead_worker_counted_stays_and_what_it_said_goes(start: Start) -> None:
    """Counters of a killed worker stay in the sum, its gauges go, and the one after it counts on."""
    server = start()
    for _ in range(40):
        assert server.get("/v1/popular").ok
    shared, before = folder_of(server), children(server)
    behind = min(before)
    os.kill(behind, signal.SIGKILL)
    assert until(lambda: behind not in children(server) and len(children(server)) == 2, 15)
    end, seen = time.monotonic() + 10, [40.0]
    while time.monotonic() < end and list(shared.glob(f"gauge_live*_{behind}.db")):
        seen.append(metric(server, 'nightlist_answers_total{source="popular"}'))
    for _ in range(40):
        assert server.get("/v1/popular").ok

    assert not list(shared.glob(f"gauge_live*_{behind}.db"))
    assert list(shared.glob(f"counter_{behind}.db"))
    assert set(seen) == {40}
    assert metric(server, 'nightlist_answers_total{source="popular"}') == 80


def test_the_shared_folder_is_wiped_at_the_start_and_gone_at_the_end(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was named beforehand too; what else lies in it is left alone."""
    shared = tmp_path / "shared"
    shared.mkdir()
    for name in ("draining", "counter_1.db", "gauge_livemin_1.db", "mine.db"):
        (shared / name).write_bytes(b"")
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(shared))
    server = start()
    assert not (shared / "draining").exists()
    assert not (shared / "counter_1.db").exists()
    assert list(shared.glob("counter_*.db"))
    server.stop()

    assert [path.name for path in shared.iterdir()] == ["mine.db"]


def test_a_server_without_its_folder_answers_and_ends(start: Start) -> None:
    """What cleans /tmp takes the counters of all but the worker that is asked; a scrape and SIGTERM are heard all the same."""
    server = start()
    shutil.rmtree(folder_of(server))

    assert "nightlist_requests_under_way" in server.get("/metrics").text
    assert {server.get(PATH).status_code for _ in range(20)} == {200}
    os.kill(worker := min(children(server)), signal.SIGKILL)
    assert until(lambda: worker not in children(server) and len(children(server)) == 2, 30)
    assert {server.get(path).status_code for path in (PATH, "/metrics") * 10} == {200}
    assert server.stop() == 0


# The end


class Client(Thread):
    """Asks without a pause. What came of each request stands in `outcomes`: True, or what went wrong."""

    def __init__(self, server: Server, ready: Event, keeps: bool) -> None:
        super().__init__()
        self.server = server
        self.ready = ready
        self.keeps = keeps
        self.outcomes: list[Any] = []
        self.told = False

    def run(self) -> None:
        """One that keeps its connection asks until it is told to close it; others until the balancer sends none."""
        wire = self.connection()
        while not self.told and (self.keeps or self.ready.is_set()):
            self.outcomes.append(self.ask(wire))
            if self.outcomes[-1] is not True:
                return
            if not self.keeps:
                wire.close()
        wire.close()

    def connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=10)

    def ask(self, wire: http.client.HTTPConnection) -> Any:
        try:
            wire.request("GET", PATH)
            answer = wire.getresponse()
            body = answer.read()
            self.told = self.keeps and answer.getheader("Connection", "").lower() == "close"
            return (answer.status == 200 and json.loads(body)["items"][0]["item_id"] == "i1") or body
        except (OSError, http.client.HTTPException) as error:
            return error


def balance(server: Server, ready: Event) -> None:
    """A load balancer's look at /readyz, until the server says no."""
    while ready.is_set():
        try:
            if requests.get(server.url + "/readyz", timeout=5).status_code != 200:
                ready.clear()
        except requests.Timeout:
            continue
        except requests.ConnectionError:
            ready.clear()
        time.sleep(0.05)


def under_load(server: Server, signals: Callable[[], None]) -> list[Client]:
    """Eight clients and a balancer, while `signals` are sent to the server."""
    ready = Event()
    ready.set()
    clients = [Client(server, ready, keeps=number % 2 == 0) for number in range(8)]
    watch = Thread(target=balance, args=(server, ready))
    for thread in (*clients, watch):
        thread.start()
    assert until(lambda: sum(len(client.outcomes) for client in clients) > 200, 30)
    signals()
    for thread in (*clients, watch):
        thread.join(30)
    return clients


def test_sigterm_under_load_loses_no_request(start: Start) -> None:
    """Each request that was sent gets its whole answer, whoever keeps a connection is told to close it, and the server ends with 0."""
    server = start(drain_seconds=1.0)
    clients = under_load(server, server.process.terminate)
    outcomes = [outcome for client in clients for outcome in client.outcomes]

    assert {str(outcome) for outcome in outcomes} == {"True"}
    assert len(outcomes) > 200
    assert all(client.told for client in clients if client.keeps)
    assert server.process.wait(20) == 0


def test_draining_is_told_and_everything_is_answered(start: Start) -> None:
    """/readyz says no, every other answer is as before but for `Connection: close`, new connections are taken, and metrics tell."""
    server = start(drain_seconds=60.0)
    assert "close" not in server.get(PATH).headers.get("Connection", "")
    server.process.terminate()
    server.wait_for("/readyz", 503)
    answers = [server.get(path) for path in (PATH, "/livez", "/v1/release", "/v1/popular?n=0")]

    assert [answer.status_code for answer in answers] == [200, 200, 200, 400]
    assert {answer.headers["Connection"] for answer in answers} == {"close"}
    assert metric(server, "nightlist_draining") == 1


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT], ids=["sigterm", "sigint"])
def test_a_second_signal_does_not_wait(start: Start, second: signal.Signals) -> None:
    """Who asks twice is in a hurry."""
    server = start(drain_seconds=60.0)
    server.process.terminate()
    server.wait_for("/readyz", 503)
    server.process.send_signal(second)

    assert server.process.wait(20) == 0


def test_ctrl_c_does_not_wait(start: Start) -> None:
    """At a terminal nobody balances a load."""
    server = start(drain_seconds=60.0)
    server.process.send_signal(signal.SIGINT)

    assert server.process.wait(20) == 0


# Logs

ODD = "Zoë-7341/o'hara"
"""A user whose id can't stand in a log by chance."""
TRACES = ("7341", "Zo%C3%AB", "Zoë", "o'hara", "hara")


def test_no_log_holds_a_user_id(start: Start) -> None:
    """Through every route and status, and through what the server itself refuses."""
    server = start(more="access_log = true\n")
    odd = quote(ODD.replace("/", ""))
    for path in (
        f"/v1/users/{odd}/recommendations",
        f"/v1/users/{odd}/recommendations?n=0",
        f"/v1/users/{odd}/recommendations?{odd}=1",
        f"/v1/users/{odd}/recommendations?segment=nowhere",
        f"/v1/users/{quote(ODD, safe='')}/recommendations",
        f"/v1/users/{odd}%00/recommendations",
        f"/v1/recommendations?user_id={quote(ODD)}",
        f"/v1/recommendations?user_id={quote(ODD)}&user_id=2",
        f"/v1/recommendations?user_id={'7341' * 200}",
        f"/v1/items/{odd}/similar",
        f"/v1/similar?item_id={odd}",
        f"/v1/popular?segment={odd}",
        f"/{odd}",
        f"/livez?user_id={odd}",
        f"/metrics?user_id={odd}",
    ):
        assert server.get(path).status_code < 500
        server.get(path, headers={"X-Request-Id": f"{odd} {odd}"})
    for line in (
        f"GET /{odd} HTTP/9.9",
        f"GET /v1/users/{odd}/recommendations?x HTTP/1.1\r\nHost: x\r\nContent-Length: 9999999",
        f"{odd} / HTTP/1.1\r\nHost: x",
        f"GET /{odd}",
        f"GET /{odd} HTTP/1.1\r\nHost: x\r\n{odd}",
        f"GET /{odd}{'7341' * 20000} HTTP/1.1\r\nHost: x",
    ):
        with suppress(OSError):
            server.raw(line.encode() + b"\r\n\r\n")
    (file,) = (server.config.parent / "store").glob("lists_*")
    with sqlite3.connect(file) as lists:  # items without scores: a fault that nobody thought of
        lists.execute("UPDATE lists SET scores = x''")
    lists.close()
    assert server.get(f"/v1/users/{odd}/recommendations").status_code == 500
    file.write_bytes(b"not a database at all" * 1000)
    assert server.get(f"/v1/users/{odd}/recommendations").status_code == 503
    server.stop()
    log = server.log.read_text()

    assert not [line for line in log.splitlines() if any(trace in line for trace in TRACES)]
    assert log.count('"logger": "lookup_api.access"') > 20
    assert "ValueError while answering /v1/users/<id:user_id>/recommendations" in log


def test_lines_are_json_and_carry_the_request(start: Start) -> None:
    """Every line of the server and ours, and one tells which run a request was answered from and by a hash for whom."""
    server = start(more='access_log = true\nlog_key = "swordfish"\n')
    server.get(PATH, headers={"X-Request-Id": "abc-1"})
    server.stop()
    lines = [json.loads(line) for line in server.log.read_text().splitlines()]
    found = next(line for line in lines if line.get("request_id") == "abc-1" and "rule" in line)

    assert {"time", "level", "logger", "message", "pid"} <= set.intersection(*(set(line) for line in lines))
    assert found["rule"] == "/v1/users/<id:user_id>/recommendations"
    assert (found["status"], found["source"], found["run_id"]) == (200, "personal", RUN)
    assert re.fullmatch(r"[0-9a-f]{16}", found["user"])
    assert "swordfish" not in server.log.read_text()


def test_what_went_well_is_not_logged_by_default(start: Start) -> None:
    """By default only what failed or was slow is logged, which a busy machine may be at any time."""
    server = start()
    for _ in range(20):
        server.get(PATH)
        server.get("/nowhere")
    server.stop()

    lines = [json.loads(line) for line in server.log.read_text().splitlines()]
    assert not [line for line in lines if line.get("status") in (200, 404) and line["ms"] < 250]


@pytest.mark.parametrize(
    ("host", "bind"), [("127.0.0.1", "127.0.0.1:9"), ("::1", "[::1]:9"), ("[::1]", "[::1]:9"), ("::", "[::]:9")]
)
def test_gunicorn_binds_where_serve_says(tmp_path: Path, host: str, bind: str) -> None:
    """An address of IPv6 in brackets: its colons begin no port."""
    config = tmp_path / "nightlist.toml"
    config.write_text(f'[serve]\nhost = "{host}"\nport = 9\n')
    command = [sys.executable, "-c", "from lookup_api import gunicorn_conf; print(gunicorn_conf.bind)"]
    environment = {**os.environ, "NIGHTLIST_CONFIG": str(config)}

    assert subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True).stdout.strip() == bind


@pytest.mark.parametrize(
    ("host", "preload", "told"),
    [("127.0.0.1", ["--preload"], "preload_app can't be used"), ("0.0.0.0", [], "'0.0.0.0' is no loopback address")],
    ids=["preloaded", "open to all"],
)
def test_gunicorn_does_not_start(tmp_path: Path, host: str, preload: list[str], told: str) -> None:
    """Metrics, connections and threads belong to a worker; and in open mode nobody asks from elsewhere."""
    config = tmp_path / "nightlist.toml"
    config.write_text("[serve]\nport = 9\n[auth]\nopen = true\n")
    gunicorn = str(Path(sys.executable).parent / "gunicorn")
    command = [gunicorn, "-c", "python:lookup_api.gunicorn_conf", *preload, "lookup_api:create_app()"]
    with socket.socket() as found:
        found.bind((host, 0))
        bind = f"--bind={host}:{found.getsockname()[1]}"
    environment = {**os.environ, "NIGHTLIST_CONFIG": str(config)}
    done = subprocess.run([*command, bind], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=30)

    assert done.returncode == 1
    assert told in done.stderr
