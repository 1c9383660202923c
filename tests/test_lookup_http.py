"""The lookup API behind a real server: what only shows on a wire."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import requests

from jobs.stores.sqlite import SqliteStore
from lookup_api.server import serve
from schemas.errors import ConfigError
from schemas.lists import ServedList
from schemas.runs import RunState
from schemas.settings import load_service_settings
from tests.commands import free_port
from tests.lookup import AWKWARD, ONLY_BY_QUERY, a_list, item_for

ROOT = Path(__file__).parent.parent
LISTS = [
    a_list("popular", "all", "p1"),
    *(a_list("user", key, item_for(key)) for key in (*AWKWARD, *ONLY_BY_QUERY)),
]
START = """
import sys
from pathlib import Path
from lookup_api.server import serve
from schemas.settings import load_service_settings

serve(Path(sys.argv[1]), load_service_settings(Path(sys.argv[1]))[1])
"""


class Server:
    """granian over a store of its own, started as the command line starts it, once `lists` are published there as `run_id`."""

    def __init__(
        self,
        folder: Path,
        run_id: str = "",
        lists: Sequence[ServedList] = (),
        workers: int = 1,
        drain_seconds: float = 0.1,
        more: str = "",
    ) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.config = folder / "nightlist.toml"
        serve = f"port = {self.port}\nworkers = {workers}\nrefresh_seconds = 0.5\nthreads = 4\n"
        self.config.write_text(
            f'[auth]\nopen = true\n[store]\npath = "store"\n[serve]\n{serve}drain_seconds = {drain_seconds}\n{more}'
        )
        self.store = SqliteStore(folder / "store")
        self.store.prepare()
        if lists:
            self.publish(run_id, lists)
        self.log = folder / "log"
        # A working folder with something else of the package's name in it: what is served is what can be imported.
        decoy = folder / "elsewhere" / "lookup_api"
        decoy.mkdir(parents=True)
        (decoy / "__init__.py").write_text("raise RuntimeError('not this one')")
        self.process = self.start(decoy.parent)

    def start(self, folder: Path) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-P", "-c", START, str(self.config)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        with self.log.open("wb") as log:
            return subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)

    def publish(self, run_id: str, lists: Sequence[ServedList]) -> None:
        before = self.store.pointer()
        lease = self.store.acquire("tests", 60)
        self.store.set_state(run_id, None, RunState.LOADING, lease.fence)
        self.store.load(run_id, lists, lease.fence, lambda rows: None)
        self.store.set_state(run_id, RunState.LOADING, RunState.LOADED, lease.fence)
        self.store.set_state(run_id, RunState.LOADED, RunState.VERIFIED, lease.fence)
        self.store.flip(run_id, before.sequence if before else 0, lease.fence)
        self.store.release(lease)

    def get(self, path: str, **options: Any) -> requests.Response:
        return requests.get(self.url + path, timeout=5, **options)

    def wait_for(self, path: str, status: int, seconds: float = 60) -> requests.Response:
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.process.poll() is None:
            try:
                answer = self.get(path)
            except requests.RequestException:  # one that waits for a worker may time out
                time.sleep(0.02)
                continue
            if answer.status_code == status:
                return answer
            time.sleep(0.02)
        raise AssertionError(f"{path} did not answer {status}; {self.log.read_text()}")

    def raw(self, request: bytes, seconds: float = 3) -> bytes:
        """What comes back for bytes on the wire, until the end of the answer's body or the time."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=seconds) as wire:
            wire.sendall(request)
            answer = b""
            while b"\r\n\r\n" not in answer and (part := wire.recv(65536)):
                answer += part
            return answer

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.wait(20)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    found = Server(tmp_path_factory.mktemp("served"))
    found.wait_for("/livez", 200)
    yield found
    found.stop()


@pytest.fixture(scope="module")
def published(server: Server) -> Server:
    server.wait_for("/readyz", 503)
    server.publish("20260301_0", LISTS)
    server.wait_for("/readyz", 200)
    return server


def test_a_run_and_the_next_are_served_without_a_restart(published: Server) -> None:
    """From nothing to ready, and from one run to the next, by the pointer alone."""
    before = published.get("/v1/popular").json()
    published.publish("20260302_0", LISTS)
    end = time.monotonic() + 30
    while (after := published.get("/v1/popular").json())["run_id"] == before["run_id"] and time.monotonic() < end:
        time.sleep(0.02)

    assert (before["run_id"], after["run_id"]) == ("20260301_0", "20260302_0")
    assert after["stale"] is False


@pytest.mark.parametrize("key", AWKWARD)
def test_ids_survive_the_path_of_a_real_server(published: Server, key: str) -> None:
    """Percent signs, emoji and 512 bytes arrive as they were sent."""
    answer = published.get(f"/v1/users/{quote(key, safe='')}/recommendations").json()

    assert [item["item_id"] for item in answer["items"]] == [item_for(key)]


@pytest.mark.parametrize("key", [*AWKWARD, *ONLY_BY_QUERY])
def test_ids_survive_the_query_of_a_real_server(published: Server, key: str) -> None:
    """Every one that is valid."""
    answer = published.get("/v1/recommendations", params={"user_id": key}).json()

    assert [item["item_id"] for item in answer["items"]] == [item_for(key)]


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        (b"GET /v1/users/%FF/recommendations HTTP/1.1\r\nHost: localhost\r\n\r\n", b"400"),
        (b"GET /v1/users/%00/recommendations HTTP/1.1\r\nHost: localhost\r\n\r\n", b"400"),
        (b"GET /v1/users//recommendations HTTP/1.1\r\nHost: localhost\r\n\r\n", b"400"),
        (b"GET /v1/popular HTTP/1.1\r\nHost: a b\r\n\r\n", b"403|400"),
        (b"GET /v1/popular HTTP/1.0\r\n\r\n", b"200"),
        (b"GET http://elsewhere/v1/popular HTTP/1.1\r\nHost: localhost\r\n\r\n", b"200"),
        (b"BREW /v1/popular HTTP/1.1\r\nHost: localhost\r\n\r\n", b"405"),
        (b"GET /v1/popular HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n", b"200"),
        (b"GET /v1/popular HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999\r\n\r\n", b"413"),
        (b"GET /v1/popular HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n", b"200"),
        (b"HEAD /v1/popular HTTP/1.1\r\nHost: localhost\r\n\r\n", b"200"),
    ],
    ids=["no utf-8", "nul", "empty id", "host", "http/1.0", "absolute", "method", "body that never comes", "large body",
         "chunked body that never comes", "head"],
)  # fmt: skip
def test_odd_requests_are_answered_at_once(published: Server, request_line: bytes, status: bytes) -> None:
    """None hangs, none is a 500."""
    answer = published.raw(request_line)

    assert answer.split(b" ", 2)[1] in status.split(b"|"), answer


POST = b"POST /v1/recommendations:batch HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


def test_a_batch_of_a_real_server(published: Server) -> None:
    """Read as it is announced, packed as it is asked for; without an announced length it is not read."""
    users = [*AWKWARD, *ONLY_BY_QUERY] * 4
    answer = requests.post(published.url + "/v1/recommendations:batch", json={"user_ids": users}, timeout=5)

    assert [one["items"][0]["item_id"] for one in answer.json()["lists"]] == [item_for(key) for key in users]
    assert answer.headers["Content-Encoding"] == "gzip"
    assert published.raw(POST + b"Transfer-Encoding: chunked\r\n\r\n5\r\n").split()[1] == b"411"
    assert published.raw(POST + b"Content-Length: 99999999\r\n\r\n").split()[1] == b"413"


def test_a_body_that_never_comes_holds_up_no_list(published: Server) -> None:
    """It takes the place of another batch (of four threads, one is for batches), until its client is gone."""
    whole = POST + b'Content-Length: 18\r\n\r\n{"user_ids":["#"]}'
    with socket.create_connection(("127.0.0.1", published.port)) as stuck:
        stuck.sendall(whole[:-5])
        end = time.monotonic() + 5  # another batch before it has begun would turn it away
        while "\nnightlist_requests_under_way 1.0" not in published.get("/metrics").text and time.monotonic() < end:
            time.sleep(0.02)
        assert published.raw(whole).split()[1] == b"503"
        assert {published.get(path).status_code for path in ("/livez", "/v1/popular") * 5} == {200}
    end = time.monotonic() + 30
    while (status := published.raw(whole).split()[1]) != b"200" and time.monotonic() < end:
        time.sleep(0.02)

    assert status == b"200"


def test_a_list_that_the_client_has_is_not_sent_again(published: Server) -> None:
    """304, without a body, on a connection that goes on."""
    with requests.Session() as kept_alive:
        first = kept_alive.get(published.url + "/v1/popular", timeout=5)
        known = {"If-None-Match": first.headers["ETag"]}
        second = kept_alive.get(published.url + "/v1/popular", headers=known, timeout=5)
        third = kept_alive.get(published.url + "/v1/popular", timeout=5)

    assert (second.status_code, second.content) == (304, b"")
    assert third.json()["items"] == first.json()["items"]


def test_a_taken_port_is_an_error(published: Server) -> None:
    """A second service at the same port would get half of the first one's requests, so it does not start."""
    with pytest.raises(ConfigError, match=str(published.port)):
        serve(published.config, load_service_settings(published.config)[1])


def test_sigterm_ends_the_service_with_0(published: Server) -> None:
    """Requests under way are answered, files are closed, no process is left."""
    with requests.Session() as kept_alive:
        assert kept_alive.get(published.url + "/v1/popular", timeout=5).ok

    assert published.stop() == 0
    log = published.log.read_text()
    worker = int(log.split("Spawning worker-1 with PID: ")[1].split('"')[0])
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)
    assert "now serving run 20260302_0" in log
    assert "no longer serving" in log
    assert "Traceback" not in log
