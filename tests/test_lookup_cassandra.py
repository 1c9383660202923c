"""The service over a real Cassandra node that freezes, dies and comes back; and what a worker of it weighs."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests
from cassandra.policies import ConstantReconnectionPolicy

import lookup_api.readers._cassandra
from lookup_api import create_app
from lookup_api.service import EXTENSION
from tests.cassandra import Node
from tests.commands import free_port
from tests.lookup import RUN, Api, a_list, night
from tests.test_lookup_http import ROOT, START
from tests.test_stores import Pair, in_keyspace

USER = "/v1/users/u1/recommendations"
BATCH = {"url": "/v1/recommendations:batch", "method": "POST", "json": {"user_ids": ["u1", "nobody"]}}
SLACK = 5.0
"""Seconds that a busy machine may add to a deadline."""
UNHURRIED = "deadline_seconds = 30.0\nread_seconds = 15.0\n"
HEAVY = ("numpy", "pandas", "pyspark", "pyarrow", "scipy", "implicit")
MEGABYTES = 150


@pytest.fixture
def pair(cassandra: Node) -> Iterator[Pair]:
    with in_keyspace(cassandra) as found:
        found.publish(RUN, night())
        yield found


def config(pair: Pair, folder: Path, serve: str = "", **cassandra: Any) -> Path:
    """A nightlist.toml for a service that may only read."""
    there = pair.readers.cassandra
    values = {"port": there.port, "keyspace": there.keyspace, "username": there.username,
              "password": there.password.get_secret_value()} | cassandra  # fmt: skip
    lines = "".join(f"{name} = {value!r}\n" for name, value in values.items())
    path = folder / "nightlist.toml"
    path.write_text(f'[auth]\nopen = true\n[store]\nbackend = "cassandra"\n[store.cassandra]\n{lines}[serve]\n{serve}')
    return path


@contextmanager
def served(path: Path) -> Iterator[Api]:
    app = create_app(path)
    try:
        yield Api(app)
    finally:
        app.extensions[EXTENSION].close()


@contextmanager
def frozen(node: Node) -> Iterator[None]:
    assert node.process
    os.kill(node.process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(node.process.pid, signal.SIGCONT)


@contextmanager
def away(node: Node) -> Iterator[None]:
    node.kill()
    try:
        yield
    finally:
        node.start()


def eventually(holds: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not (found := holds()) and time.monotonic() < end:
        time.sleep(0.1)
    return found


def is_served(api: Api) -> bool:
    return api.ask(USER).status_code == 200 and api.ask(**BATCH).status_code == 200


def assert_refused_in_time(api: Api) -> None:
    """503 at the deadline at the latest, for lists and batches; health is nobody's business but the process's."""
    for ask in ({"url": USER}, {"url": "/v1/popular"}, BATCH, {"url": "/livez"}):
        began = time.monotonic()
        answer = api.ask(**ask)
        assert answer.status_code == (200 if ask["url"] == "/livez" else 503)
        assert time.monotonic() - began < 0.5 + SLACK


def events(api: Api) -> dict[str, int]:
    """What the reader tells its metrics."""
    return dict(api.service.follower().reader.events)  # type: ignore[attr-defined]  # Cassandra's own


def test_what_a_quorum_was_asked_for_is_counted(pair: Pair, cassandra: Node, tmp_path: Path) -> None:
    """That a user has no list is confirmed; a read that failed is tried again; a known user's list costs neither."""
    with served(config(pair, tmp_path, "deadline_seconds = 3.0\nread_seconds = 1.0\n")) as api:
        assert eventually(lambda: is_served(api), 10)
        before = events(api)
        api.ok("/v1/users/nobody/recommendations")
        with frozen(cassandra):
            api.ask(USER)

        assert events(api) == before | {"confirmation": before["confirmation"] + 1, "retry": before["retry"] + 1}


def test_a_frozen_node_costs_each_request_its_deadline_and_no_more(pair: Pair, cassandra: Node, tmp_path: Path) -> None:
    """It takes connections and says nothing; once it goes on, so does the service, by itself."""
    with served(config(pair, tmp_path)) as api:
        assert eventually(lambda: is_served(api), 10)
        with frozen(cassandra):
            for _ in range(5):
                assert_refused_in_time(api)

        assert eventually(lambda: is_served(api), 30)
        assert eventually(lambda: (answer := api.ask(USER)).status_code == 200 and not answer.json["stale"], 10)


def test_a_service_that_begins_before_its_store_finds_it(pair: Pair, cassandra: Node, tmp_path: Path) -> None:
    """Nobody waits for the connection past the deadline, and nobody has to restart the service."""
    with frozen(cassandra), served(config(pair, tmp_path, connect_seconds=1.0)) as api:
        for _ in range(3):
            assert_refused_in_time(api)
        os.kill(cassandra.process.pid, signal.SIGCONT)

        assert eventually(lambda: is_served(api), 30)


def test_a_killed_node_that_is_back_is_served_from(pair: Pair, cassandra: Node, tmp_path: Path) -> None:
    """Meanwhile requests are refused at once; then the driver finds it again, or the watchdog does."""
    with served(config(pair, tmp_path)) as api:
        assert eventually(lambda: is_served(api), 10)
        with away(cassandra):
            assert_refused_in_time(api)

        assert eventually(lambda: is_served(api), 30)


def test_a_driver_that_never_comes_back_is_replaced(
    pair: Pair, cassandra: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A Cluster that would not look for its nodes again is built anew, and given up when the new one is there."""
    never = ConstantReconnectionPolicy(3600)
    monkeypatch.setattr(lookup_api.readers._cassandra, "ExponentialReconnectionPolicy", lambda *_: never)
    with served(config(pair, tmp_path, "refresh_seconds = 0.2\n", rebuild_seconds=2.0)) as api:
        assert eventually(lambda: is_served(api), 10)
        given_up = api.service.follower().reader._connection.session()  # type: ignore[attr-defined]  # Cassandra's own
        with away(cassandra):
            assert_refused_in_time(api)

        assert eventually(lambda: is_served(api), 30)
        assert eventually(lambda: given_up.cluster.is_shutdown, 10)
        assert "connecting anew" in caplog.text
        assert events(api)["rebuild"] == 1


@pytest.mark.parametrize("backend", ["sqlite", "cassandra"])
def test_a_worker_imports_nothing_heavy(tmp_path: Path, backend: str) -> None:
    """In a clean interpreter that has it all installed: no Spark, no numpy, not by way of the driver either."""
    (tmp_path / "nightlist.toml").write_text(
        f'[auth]\nopen = true\n[store]\nbackend = "{backend}"\n[store.cassandra]\nport = {free_port()}\n[serve]\ndeadline_seconds = 0.1\n'
    )
    program = f"""
import sys
from lookup_api.server import load
app = load()
assert app.test_client().get("/v1/popular").status_code == 503
assert {backend == "cassandra"} == ("cassandra.cluster" in sys.modules)
print([name for name in {HEAVY} if sys.modules.get(name)])
import numpy  # hidden from the driver alone
"""
    done = subprocess.run(
        [sys.executable, "-P", "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_worker_that_served_two_thousand_lists_is_small(pair: Pair, tmp_path: Path) -> None:
    """Under 150 MB, over Cassandra, with 64 threads; and no numpy in it."""
    port, log = free_port(), tmp_path / "log"
    path = config(pair, tmp_path, f"port = {port}\n")
    command = [sys.executable, "-P", "-c", START, str(path)]
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=out, stderr=out
        )
    try:
        assert eventually(lambda: answers(f"http://127.0.0.1:{port}/readyz"), 30), log.read_text()
        with requests.Session() as session:
            url = f"http://127.0.0.1:{port}{USER}"
            statuses = [session.get(url, timeout=10).status_code for _ in range(2000)]
        (worker,) = re.findall(r"Spawning worker-1 with PID: (\d+)", log.read_text())
        status, maps = (Path(f"/proc/{worker}/{name}").read_text() for name in ("status", "maps"))
    finally:
        process.terminate()
        process.wait(30)

    kilobytes = int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0])
    assert statuses.count(200) > 1900  # a busy machine may be late for some
    assert kilobytes < MEGABYTES * 1024
    assert "libev" in maps
    assert not [name for name in HEAVY if f"/{name}/" in maps]


def answers(url: str) -> bool:
    try:
        return requests.get(url, timeout=5).status_code == 200
    except requests.RequestException:
        return False


def test_lists_of_a_batch_are_all_of_one_run(pair: Pair, tmp_path: Path) -> None:
    """A hundred at once over the wire, some of whom have no list; in as much time as a busy machine needs."""
    pair.publish("20260302_0", [*night(), *(a_list("user", f"x{number}", f"for x{number}") for number in range(50))])
    users = [name for number in range(50) for name in (f"x{number}", f"nobody{number}")]
    with served(config(pair, tmp_path, UNHURRIED)) as api:
        assert eventually(lambda: is_served(api), 10)
        found = api.ok("/v1/recommendations:batch", method="POST", json={"user_ids": users})

    assert found["run_id"] == "20260302_0"
    assert [one["source"] for one in found["lists"]] == ["personal", "popular"] * 50
    assert [one["items"][0]["item_id"] for one in found["lists"]][::2] == [f"for x{number}" for number in range(50)]
