"""A store that is slow, hangs or comes late holds no request past its deadline, and no health check at all."""

import logging
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from lookup_api.readers._watchdog import Watchdog
from lookup_api.readers.sqlite import SqliteReader
from schemas.errors import StoreUnavailable
from schemas.lists import ServedList
from schemas.runs import Release
from tests.lookup import RUN, Api, World, night
from tests.lookup import until as eventually

USER = "/v1/users/u1/recommendations"
SLACK = 5.0
"""Seconds that a busy machine may add to a deadline."""


class Scripted(SqliteReader):
    """A real reader that hangs where the test says so: lists until the caller's deadline, the pointer until it is let go."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.hangs = False
        self.free = threading.Event()
        self.free.set()
        self.waiting = 0

    def get(self, run_id: str, kind: Any, key: str, until: float | None = None) -> ServedList | None:
        if self.hangs:
            assert until is not None
            self.waiting += 1
            self.free.wait(until - time.monotonic())
            self.waiting -= 1
        return super().get(run_id, kind, key, until)

    def release(self) -> Release | None:
        self.free.wait(60)
        return super().release()


@pytest.fixture
def reader(world: World) -> Iterator[Scripted]:
    world.publish(RUN, night())
    found = Scripted(world.path)
    yield found
    found.free.set()


def timed(api: Api, url: str, status: int, **options: Any) -> tuple[Any, float]:
    began = time.monotonic()
    answer = api.ask(url, **options)
    assert answer.status_code == status, answer.text
    return answer, time.monotonic() - began


def test_a_lookup_that_finds_no_end_is_answered_at_its_deadline(world: World, reader: Scripted) -> None:
    """503, with the time to come back, for a list as for a batch; and it is served again once the store is."""
    api = Api(world.app(reader=reader, deadline_seconds=0.3))
    assert eventually(lambda: api.ask(USER).status_code == 200)
    reader.hangs = True
    reader.free.clear()
    for ask in (
        {"url": USER},
        {"url": "/v1/recommendations:batch", "method": "POST", "json": {"user_ids": ["u1", "u2"]}},
    ):
        answer, seconds = timed(api, **ask, status=503)
        assert answer.json["type"] == "urn:nightlist:problem:unreadable"
        assert answer.headers["Retry-After"] == "3600"
        assert 0.25 < seconds < SLACK
    reader.hangs = False
    reader.free.set()

    assert eventually(lambda: api.ask(USER).json.get("source") == "personal")


def test_no_more_lookups_than_allowed_are_under_way(world: World, reader: Scripted) -> None:
    """One more is refused at once, without a look at the store; health is answered all the while, and so are lookups
    when the others are done."""
    app = world.app(reader=reader, deadline_seconds=60, in_flight=3)
    api = Api(app)
    api.ok(USER)
    reader.hangs = True
    reader.free.clear()
    with ThreadPoolExecutor(3) as pool:
        held = [pool.submit(Api(app).ask, USER) for _ in range(3)]
        assert eventually(lambda: reader.waiting == 3)
        for url, method in ((USER, "GET"), ("/v1/popular", "GET"), ("/v1/recommendations:batch", "POST")):
            body = {"json": {"user_ids": ["u1"]}} if method == "POST" else {}
            answer, seconds = timed(api, url, 503, method=method, **body)
            assert answer.json["type"] == "urn:nightlist:problem:overloaded"
            assert answer.headers["Retry-After"] == "1"
            assert seconds < SLACK
        assert reader.waiting == 3
        for url in ("/livez", "/readyz", "/v1/release", "/metrics"):
            assert timed(api, url, 200)[1] < SLACK
        reader.hangs = False
        reader.free.set()
        assert [future.result().status_code for future in held] == [200] * 3

    assert [api.ask(USER).status_code for _ in range(5)] == [200] * 5


def test_a_lookup_that_fails_gives_its_place_back(world: World, reader: Scripted) -> None:
    """However it fails."""
    api = Api(world.app(reader=reader, deadline_seconds=0.02, in_flight=1))
    assert eventually(lambda: api.ask(USER).status_code == 200)
    reader.hangs = True
    reader.free.clear()
    assert {api.ask(USER).json["type"].rpartition(":")[2] for _ in range(3)} == {"unreadable"}
    reader.hangs = False
    reader.free.set()

    assert eventually(lambda: api.ask(USER).status_code == 200)


def test_a_store_that_is_not_reached_yet_holds_nobody_past_the_deadline(world: World, reader: Scripted) -> None:
    """Connecting is not the request's business: it waits a little, then it is told to come back; when the store is
    there, lists are served."""
    reader.free.clear()
    api = Api(world.app(reader=reader, deadline_seconds=0.2))
    for url in (USER, "/v1/release", "/readyz"):
        answer, seconds = timed(api, url, 503)
        assert answer.json["type"] == "urn:nightlist:problem:no-run"
        assert 0.15 < seconds < SLACK
    assert timed(api, "/livez", 200)[1] < SLACK
    reader.free.set()

    assert eventually(lambda: api.ask(USER).status_code == 200)


def test_the_first_request_waits_for_the_first_look_at_the_store(world: World, reader: Scripted) -> None:
    """A process that has just begun answers its first request with a list, not with an error."""
    reader.free.clear()
    api = Api(world.app(reader=reader, deadline_seconds=60))
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(api.ask, USER)
        time.sleep(0.1)
        assert not first.done()
        reader.free.set()

        assert first.result().status_code == 200


def test_a_run_that_vanished_is_looked_for_no_longer_than_the_deadline(world: World, reader: Scripted) -> None:
    """Where the pointer can't be read either, the request is not held."""
    api = Api(world.app(reader=reader, deadline_seconds=0.2))
    assert eventually(lambda: api.ask(USER).status_code == 200)
    world.file_of(RUN).rename(world.folder / "hidden")
    reader.free.clear()
    time.sleep(0.11)  # two forced looks are at least 0.1 s apart
    answer, seconds = timed(api, USER, 503)

    assert answer.json["type"] == "urn:nightlist:problem:unreadable"
    assert 0.15 < seconds < SLACK


def test_an_outage_is_logged_now_and_then(world: World, reader: Scripted, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever the driver's words are this time: not once a request."""

    class Inventive(Scripted):
        def get(self, *arguments: Any) -> ServedList | None:
            raise StoreUnavailable(f"reason number {time.monotonic_ns()}")

    api = Api(world.app(reader=Inventive(world.path)))
    for _ in range(20):
        assert api.ask(USER).status_code == 503

    assert len([record for record in caplog.records if record.levelno == logging.ERROR]) == 1


def test_the_watchdog_waits_for_failures_without_a_success_between() -> None:
    """It barks after so many seconds of failures, then begins anew; silence before the first failure is none of them."""
    now = [1000.0]
    watchdog = Watchdog(10, lambda: now[0])

    def told(*steps: float) -> list[bool]:
        found = []
        for step in steps:
            now[0] += step
            found.append(watchdog.failed())
        return found

    assert told(3600, 5, 4.9) == [False, False, False]
    assert told(0.2, 1, 8.9, 0.2) == [True, False, False, True]
    watchdog.reached()
    assert told(50, 9) == [False, False]
    watchdog.reached()
    assert told(9, 9.9, 0.2) == [False, False, True]
