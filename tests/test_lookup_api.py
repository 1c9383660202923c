"""What the lookup API promises, over a real store; every answer is held against the API's own description."""

import logging
import os
import re
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from lookup_api import create_app
from lookup_api.parameters import KNOWN
from lookup_api.pointer import STALE_PERIODS, Follower
from lookup_api.readers.sqlite import SqliteReader
from lookup_api.service import EXTENSION
from schemas.errors import ConfigError
from schemas.runs import RunState
from tests.lookup import API, AWKWARD, NEXT, ONLY_BY_QUERY, RUN, Api, Faulty, World, item_for, item_like, night, until

# Lists


def test_a_user_gets_the_list_of_the_night(api: Api, world: World) -> None:
    """Best first, with score and the models that proposed each item, and whose list, of which run, how old."""
    world.clock.now += timedelta(hours=5, microseconds=1900)

    assert api.ok("/v1/users/u1/recommendations?n=2") == {
        "run_id": RUN,
        "source": "personal",
        "age_seconds": 18000.002,
        "stale": False,
        "items": [
            {"item_id": "i0", "score": 1.0, "sources": ["als", "item_to_item"]},
            {"item_id": "i1", "score": 0.984375, "sources": ["als", "item_to_item"]},
        ],
    }


def test_an_age_is_never_negative(api: Api, world: World) -> None:
    """A service whose clock is behind the publisher's calls a list new."""
    world.clock.now -= timedelta(minutes=5)

    assert api.ok("/v1/users/u1/recommendations")["age_seconds"] == 0


def test_a_user_without_a_list_gets_the_popular_one_and_is_told(api: Api) -> None:
    """Of everybody, or of the segment that was asked for."""
    everybody = api.ok("/v1/users/nobody/recommendations?n=2")
    segment = api.ok("/v1/users/nobody/recommendations?segment=country%3DGB")

    assert (everybody["source"], [item["item_id"] for item in everybody["items"]]) == ("popular", ["p0", "p1"])
    assert everybody["items"][0]["sources"] == ["popular"]
    assert (segment["source"], [item["item_id"] for item in segment["items"]]) == ("popular", ["gb1", "gb2"])


def test_an_unknown_segment_is_not_found(api: Api) -> None:
    """A typo in a segment does not silently become everybody's list."""
    for url in ("/v1/popular?segment=country%3DXX", "/v1/users/nobody/recommendations?segment=country%3DXX"):
        problem = api.problem(url, 404)
        assert problem["type"] == "urn:nightlist:problem:no-list"
        assert "country=XX" in problem["detail"]


def test_a_user_with_a_list_needs_no_segment(api: Api) -> None:
    """Whatever segment comes with the request, an unknown one too."""
    assert api.ok("/v1/users/u1/recommendations?segment=country%3DXX")["source"] == "personal"


def test_who_has_seen_everything_gets_an_empty_list(api: Api) -> None:
    """An empty personal list is an answer; popular items were all seen."""
    found = api.ok("/v1/users/has%20seen%20everything/recommendations")

    assert (found["source"], found["items"]) == ("personal", [])


def test_similar_items_have_no_fallback(api: Api) -> None:
    """An item without a list is not found, in both forms."""
    assert api.items("/v1/items/i1/similar") == api.items("/v1/similar?item_id=i1") == ["like i1"]
    assert api.ok("/v1/items/i1/similar")["source"] == "similar"
    for url in ("/v1/items/u1/similar", "/v1/similar?item_id=u1"):
        assert api.problem(url, 404)["type"] == "urn:nightlist:problem:no-list"


def test_popular_lists_are_served_by_segment(api: Api) -> None:
    """Everybody's without a segment; a segment may hold any character."""
    assert len(api.items("/v1/popular")) == 20
    assert api.items("/v1/popular?segment=all&n=1") == ["p0"]
    assert api.items("/v1/popular?segment=country=GB") == ["gb1", "gb2"]
    assert api.items(f"/v1/popular?segment={quote('country=Åland/1')}") == ["ax1"]


@pytest.mark.parametrize(("n", "length"), [("", 20), ("n=1", 1), ("n=029", 29), ("n=30", 30), ("n=31", 30)])
def test_n_cuts_the_list(api: Api, n: str, length: int) -> None:
    """Twenty by default, and never more than there are."""
    assert api.items(f"/v1/users/u1/recommendations?{n}") == [f"i{rank}" for rank in range(length)]


@pytest.mark.parametrize("n", [str(10**9), "9" * 5000, "0" * 50 + "31"])
def test_n_may_be_absurd(api: Api, n: str) -> None:
    """More than any list holds means the whole list."""
    assert len(api.items(f"/v1/users/u1/recommendations?n={n}")) == 30


@pytest.mark.parametrize("n", ["0", "-1", "00", "", "1.0", "1e3", "+5", " 5", "five", "٣", "0x5", "5;6", "nan", "1_0"])
def test_n_is_a_whole_number_of_one_or_more(api: Api, n: str) -> None:
    """Everything else is refused, on every route that takes it, and the value is named."""
    for url in ("/v1/users/u1/recommendations?", "/v1/recommendations?user_id=u1&", "/v1/items/i1/similar?",
                "/v1/similar?item_id=i1&", "/v1/popular?"):  # fmt: skip
        problem = api.problem(f"{url}n={quote(n)}", 400)
        assert problem["type"] == "urn:nightlist:problem:invalid-parameter"
        assert repr(n) in problem["detail"]


def test_the_default_of_n_is_a_setting(world: World) -> None:
    """And the description of the API says so."""
    world.publish(RUN, night())
    api = Api(world.app(default_n=3))
    described_n = api.ok("/openapi.json")["paths"]["/v1/popular"]["get"]["parameters"][1]

    assert api.items("/v1/popular") == ["p0", "p1", "p2"]
    assert (described_n["name"], described_n["schema"]["default"]) == ("n", 3)


def test_excluded_items_make_room_for_others(api: Api) -> None:
    """Left out before n is counted, in personal and popular lists; what is not in the list is ignored."""
    for base in ("/v1/users/u1/recommendations?", "/v1/recommendations?user_id=u1&"):
        assert api.items(f"{base}n=3&exclude=i0&exclude=i2&exclude=nowhere") == ["i1", "i3", "i4"]
    assert api.items("/v1/users/nobody/recommendations?segment=country%3DGB&exclude=gb1") == ["gb2"]
    assert api.items("/v1/users/nobody/recommendations?segment=country%3DGB&exclude=gb1&exclude=gb2") == []


def test_a_hundred_items_may_be_excluded(api: Api) -> None:
    """And no more: the request says which limit it broke."""
    hundred = "&".join(f"exclude=i{rank}" for rank in range(100))

    assert api.items(f"/v1/users/u1/recommendations?{hundred}") == []
    for more, told in ((1, "exclude is given 101 times; at most 100"), (1000, "more than 150 parameters")):
        assert told in api.problem(f"/v1/users/u1/recommendations?{hundred}{'&exclude=i0' * more}", 400)["detail"]


# Ids


@pytest.mark.parametrize("key", AWKWARD)
def test_ids_without_a_slash_are_served_by_path(api: Api, key: str) -> None:
    """Quotes, spaces, emoji, percent signs and 512 bytes, in both places."""
    assert api.items(f"/v1/users/{quote(key, safe='')}/recommendations") == [item_for(key)]
    assert api.items(f"/v1/items/{quote(key, safe='')}/similar") == [item_like(key)]


@pytest.mark.parametrize("key", [*AWKWARD, *ONLY_BY_QUERY])
def test_every_valid_id_is_served_by_query(api: Api, key: str) -> None:
    """Slashes too, and what a client would take for a path."""
    assert api.items(f"/v1/recommendations?user_id={quote(key, safe='')}") == [item_for(key)]
    assert api.items(f"/v1/similar?item_id={quote(key, safe='')}") == [item_like(key)]


@pytest.mark.parametrize(
    ("key", "why"),
    [("", "is empty"), ("x" * 513, "513 bytes"), ("é" * 257, "514 bytes"), ("a%0Ab", "control"), ("%00", "control"),
     ("%C2%85", "control"), ("%7F", "control"), ("%0A", "control")],
)  # fmt: skip
def test_what_can_be_no_id_is_refused_with_the_reason(api: Api, key: str, why: str) -> None:
    """In every place where an id, a segment or an excluded item may stand."""
    for url in (
        f"/v1/users/{key}/recommendations",
        f"/v1/recommendations?user_id={key}",
        f"/v1/items/{key}/similar",
        f"/v1/similar?item_id={key}",
        f"/v1/popular?segment={key}",
        f"/v1/users/u1/recommendations?exclude={key}",
    ):
        problem = api.problem(url, 400)
        assert problem["type"] == "urn:nightlist:problem:invalid-id"
        assert why in problem["detail"]
        assert len(problem["detail"]) < 200


def test_bytes_that_are_no_utf8_are_refused(api: Api) -> None:
    """They are not replaced by something else, which another user could be called."""
    for url in ("/v1/recommendations?user_id=%FF", "/v1/popular?segment=%C3"):
        assert "UTF-8" in api.problem(url, 400)["detail"]
    # As a server hands it over; the test client would have replaced the byte already.
    for environ in (
        {"PATH_INFO": "/v1/users/\xff/recommendations"},
        {"PATH_INFO": "/\xff"},
        {"QUERY_STRING": "n=\xff"},
    ):
        answer = api.client.get("/v1/popular", environ_overrides=environ)
        assert answer.status_code == 400
        assert "UTF-8" in answer.text


# Queries


@pytest.mark.parametrize(
    ("url", "known"),
    [
        ("/v1/users/u1/recommendations?exlude=i1", "exclude"),
        ("/v1/users/u1/recommendations?N=1", "n"),
        ("/v1/popular?segments=all", "segment"),
        ("/v1/popular?exclude=p1", "segment"),
        ("/v1/recommendations?user=u1", "user_id"),
        ("/v1/similar?item_id=i1&segment=all", "item_id"),
        ("/v1/items/i1/similar?exclude=i2", "n"),
        ("/v1/release?run=1", "none"),
        ("/v1/popular?=1", "segment"),
    ],
)
def test_an_unknown_parameter_is_refused_by_name(api: Api, url: str, known: str) -> None:
    """A typo is not silently ignored: the nearest known name is told."""
    problem = api.problem(url, 400)

    assert problem["type"] == "urn:nightlist:problem:unknown-parameter"
    assert known in problem["detail"].split("parameter", 1)[1]


@pytest.mark.parametrize("name", ["n", "segment", "user_id"])
def test_a_parameter_of_one_value_is_given_once(api: Api, name: str) -> None:
    """Two values would leave it open which one was meant."""
    value = {"n": "1", "segment": "all", "user_id": "u1"}[name]
    rest = "" if name == "user_id" else "&user_id=u1"

    assert name in api.problem(f"/v1/recommendations?{name}={value}&{name}={value}{rest}", 400)["detail"]


def test_the_query_forms_need_their_id(api: Api) -> None:
    """And say which one."""
    assert "user_id" in api.problem("/v1/recommendations?n=1", 400)["detail"]
    assert "item_id" in api.problem("/v1/similar", 400)["detail"]


# HTTP


@pytest.mark.parametrize("url", ["/v1/users/u1/recommendations", "/v1/popular", "/v1/release", "/livez", "/readyz"])
def test_head_is_get_without_the_body(api: Api, url: str) -> None:
    """With the same status and length."""
    head, get = api.ask(url, method="HEAD"), api.ask(url)

    assert (head.status_code, head.data) == (200, b"")
    assert head.headers["Content-Length"] == get.headers["Content-Length"]


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PURGE"])
def test_the_service_only_reads(api: Api, method: str) -> None:
    """Every other method is refused, and told which ones are not."""
    for template, operations in API["paths"].items():
        if method.lower() in operations:
            continue
        answer = api.ask(template.replace("{user_id}", "u1").replace("{item_id}", "i1"), method=method)
        assert answer.status_code == 405
        if "post" in operations:
            assert answer.headers["Allow"] == "POST"
            continue
        assert sorted(answer.headers["Allow"].split(", ")) == ["GET", "HEAD"]


@pytest.mark.parametrize(
    "url",
    ["/", "/v1", "/v1/", "/v1/popular/", "/v1//popular", "/v1/users/u1", "/v1/users/a/b/recommendations", "/static/x",
     "/favicon.ico", "/v1/users/u1/recommendations/", "/" + "x" * 5000],
)  # fmt: skip
def test_an_unknown_route_is_a_problem_too(api: Api, url: str) -> None:
    """And no redirect to another one, which would change the id that was asked for."""
    problem = api.problem(url, 404)

    assert (problem["type"], problem["title"]) == ("about:blank", "Not Found")
    assert "/openapi.json" in problem["detail"]


def test_a_problem_says_what_where_and_why(api: Api) -> None:
    """All five members of RFC 9457, in its media type."""
    answer = api.ask("/v1/users/%F0%9F%98%80/recommendations?n=0")

    assert answer.content_type == "application/problem+json"
    assert answer.json == {
        "type": "urn:nightlist:problem:invalid-parameter",
        "title": "A parameter has a value that it can't have",
        "status": 400,
        "detail": "n = '0' is not a whole number of 1 or more",
        "instance": "/v1/users/%F0%9F%98%80/recommendations",
    }


@pytest.mark.parametrize("content_type", ["application/json", "text/plain", "multipart/form-data; boundary=x", "\x80"])
def test_a_small_body_changes_nothing(api: Api, content_type: str) -> None:
    """Whatever it holds; a client library may always send one."""
    plain = api.ok("/v1/users/u1/recommendations")
    with_body = {"data": b'{"n": 1', "headers": {"Content-Type": content_type}}

    assert api.ok("/v1/users/u1/recommendations", **with_body) == plain


def test_a_large_body_is_refused_unread(api: Api) -> None:
    """By the length that it announces."""
    problem = api.problem("/v1/users/u1/recommendations", 413, data=b"x" * 20_000)

    assert "20000 bytes" in problem["detail"]


@pytest.mark.parametrize("length", ["-1", "abc", "1e9", ""])
def test_a_length_that_is_none_is_no_fault_of_ours(api: Api, length: str) -> None:
    """Servers refuse it before we see it; if one does not, the answer is an answer."""
    assert api.client.get("/v1/popular", environ_overrides={"CONTENT_LENGTH": length}).status_code in (200, 400)


@pytest.mark.parametrize("host", ["a b", "", "x" * 5000, "[::1", "é", "evil.example:99999"])
def test_a_strange_host_does_not_break_the_service(api: Api, host: str) -> None:
    """The service builds no link from it; in open mode it answers to its own names only."""
    answer = api.client.get("/v1/popular", environ_overrides={"HTTP_HOST": host})

    assert answer.status_code in ((400, 403) if host else (200,))


def test_user_lists_stay_out_of_caches(api: Api) -> None:
    """Of proxies, the fallback and the errors too; the client's own asks before it uses one again."""
    urls = ["/v1/users/u1/recommendations", "/v1/recommendations?user_id=nobody", "/v1/users/u1/recommendations?n=0"]

    assert [api.ask(url).headers["Cache-Control"] for url in urls] == ["private, no-cache"] * 2 + ["private, no-store"]


def test_a_fault_tells_nothing_to_the_client_and_no_id_to_the_log(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """The traceback is in the log, under the rule of the route."""
    world.publish(RUN, night())
    api = Api(world.app(reader=Faulty(world.path)))
    answer = api.ask("/v1/users/u1/recommendations")
    record = next(record for record in caplog.records if record.levelno == logging.ERROR)

    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert "ZeroDivision" not in answer.text
    assert record.getMessage() == "ZeroDivisionError while answering /v1/users/<id:user_id>/recommendations"
    assert record.exc_info
    assert api.ok("/livez")


# The pointer


def test_before_the_first_run_there_is_nothing_to_serve(world: World) -> None:
    """The client is told when to come back; the process lives and is not ready."""
    for prepare in (lambda: None, world.store.prepare):
        prepare()
        api = Api(world.app())
        for url in ("/v1/users/u1/recommendations", "/v1/recommendations?user_id=u1", "/v1/items/i1/similar",
                    "/v1/similar?item_id=i1", "/v1/popular", "/v1/release", "/readyz"):  # fmt: skip
            answer = api.ask(url)
            assert answer.status_code == 503
            assert answer.headers["Retry-After"] == "3600"
            assert "urn:nightlist:problem:no-run" in answer.text
        assert api.ok("/livez") == {"status": "alive"}


def test_a_wrong_request_is_wrong_before_the_first_run_too(world: World) -> None:
    """What will never work is not answered with 'later'."""
    assert Api(world.app()).problem("/v1/popular?n=0", 400)


def test_the_first_run_is_found_in_the_background(world: World) -> None:
    """A service that started before the first night needs no restart."""
    api = Api(world.app(refresh=0.02))
    api.problem("/readyz", 503)
    world.publish(RUN, night())

    assert until(lambda: api.ask("/readyz").status_code == 200)
    assert api.ok("/v1/popular?n=1")["run_id"] == RUN


def test_a_flip_is_seen_in_the_background(world: World) -> None:
    """Within a period, without a request's help and without a restart."""
    world.publish(RUN)
    api = Api(world.app(refresh=0.02))
    assert api.items("/v1/users/u1/recommendations?n=1") == [f"i0 of {RUN}"]
    world.publish(NEXT)

    assert until(lambda: api.service.follower().current == world.store.pointer())
    assert api.items("/v1/users/u1/recommendations?n=1") == [f"i0 of {NEXT}"]


def test_no_request_reads_the_pointer(world: World, api: Api) -> None:
    """After the first one: a flip is unseen until the background reads it, however many requests come."""
    assert api.ok("/v1/popular?n=1")["run_id"] == RUN
    world.publish(NEXT)
    assert {api.ok("/v1/popular?n=1")["run_id"] for _ in range(20)} == {RUN}
    api.refresh()

    assert api.ok("/v1/popular?n=1")["run_id"] == NEXT


def test_the_release_is_told(world: World, api: Api) -> None:
    """As the store has it, and whether it is up to date."""
    world.clock.now += timedelta(days=1)
    world.publish(NEXT)

    assert api.ok("/v1/release") == {
        "run_id": NEXT,
        "previous": RUN,
        "sequence": 2,
        "published_at": world.clock.now.isoformat(),
        "stale": False,
    }


def test_a_rollback_is_followed(world: World, api: Api) -> None:
    """It is a higher sequence that names an earlier run."""
    world.publish(NEXT)
    assert api.ok("/v1/release")["run_id"] == NEXT
    world.store.flip(RUN, 2, world.store.acquire("rollback", 60).fence)
    api.refresh()

    assert (api.ok("/v1/popular")["run_id"], api.ok("/v1/release")["sequence"]) == (RUN, 3)


def test_an_older_pointer_is_not_followed(world: World, api: Api) -> None:
    """A registry that was put back from a backup takes no run back; the answers say that something is wrong."""
    registry, backup = world.path / "registry.db", world.folder / "backup.db"
    shutil.copy(registry, backup)
    world.publish(NEXT)
    assert api.ok("/v1/popular")["run_id"] == NEXT
    shutil.copy(backup, registry)
    api.refresh()
    assert (api.ok("/v1/popular")["run_id"], api.ok("/v1/popular")["stale"]) == (NEXT, True)
    for run_id in ("20260304_0", "20260305_0"):
        world.publish(run_id)
        api.refresh()

    assert (api.ok("/v1/popular")["run_id"], api.ok("/v1/release")["sequence"]) == ("20260305_0", 3)
    assert api.ok("/v1/popular")["stale"] is False


@pytest.mark.parametrize("wipe", [shutil.rmtree, lambda path: (path / "registry.db").unlink()])
def test_a_store_that_forgot_its_release_is_not_believed(world: World, api: Api, wipe: Callable[[Path], None]) -> None:
    """A service that had a run does not take an unmounted folder for a store before its first night."""
    api.ok("/v1/popular")
    wipe(world.path)
    api.refresh()

    assert api.service.follower().current is not None
    assert api.ok("/v1/release")["stale"] is True


def test_a_new_run_that_can_not_be_read_is_not_adopted(world: World, api: Api) -> None:
    """The old one is served on and called stale, until the new one can be read."""
    api.ok("/v1/popular")
    world.publish(NEXT)
    hidden = world.file_of(NEXT).rename(world.folder / "hidden")
    api.refresh()
    before = api.ok("/v1/popular?n=1")
    hidden.rename(world.file_of(NEXT))
    api.refresh()
    after = api.ok("/v1/popular?n=1")

    assert (before["run_id"], before["stale"]) == (RUN, True)
    assert (after["run_id"], after["stale"]) == (NEXT, False)


def test_an_empty_run_is_not_adopted(world: World, api: Api) -> None:
    """A publication without a list would leave nobody with one."""
    api.ok("/v1/popular")
    world.publish(NEXT, [])
    api.refresh()

    assert (api.ok("/v1/popular")["run_id"], api.ok("/v1/popular")["stale"]) == (RUN, True)


def test_a_pointer_out_of_sight_makes_answers_stale(world: World) -> None:
    """After three periods, not at the first hiccup; and no longer once it is seen again."""
    world.publish(RUN)
    now = [100.0]
    follower = Follower(SqliteReader(world.path), 2.0, monotonic=lambda: now[0])
    follower.refresh()
    away = (world.path / "registry.db").rename(world.folder / "away")
    (world.path / "registry.db").mkdir()
    told = []
    for _ in range(4):
        now[0] += 2.0
        follower.refresh()
        told.append(follower.stale)
    (world.path / "registry.db").rmdir()
    away.rename(world.path / "registry.db")
    follower.refresh()

    assert STALE_PERIODS == 3
    assert told == [False, False, False, True]
    assert (follower.stale, follower.failures, follower.current) == (False, 4, world.store.pointer())
    follower.close()


def test_the_release_is_followed_though_it_cannot_be_counted(world: World) -> None:
    """What is told after a look at the pointer may fail; whoever waits for the look goes on."""
    world.publish(RUN)
    told: list[Follower] = []

    def tell(follower: Follower) -> None:
        told.append(follower)
        raise OSError("no room for a gauge")

    follower = Follower(SqliteReader(world.path), 0.02, after_refresh=tell)
    follower.start()
    assert follower.first(time.monotonic() + 5) == world.store.pointer()
    world.publish(NEXT)

    assert until(lambda: follower.current == world.store.pointer())
    assert len(told) > 1
    follower.close()


def test_lists_are_served_while_the_registry_is_damaged(world: World) -> None:
    """Losing sight of the pointer costs no answer, only the promise that it is the newest."""
    world.publish(RUN)
    api = Api(world.app(refresh=0.02))
    api.ok("/v1/popular")
    (world.path / "registry.db").write_bytes(b"junk" * 5000)

    assert until(lambda: bool(api.ok("/v1/popular")["stale"]))
    assert api.ok("/readyz")
    assert api.items("/v1/users/u1/recommendations?n=1") == [f"i0 of {RUN}"]


def test_a_run_that_vanishes_sends_the_request_to_the_new_one(world: World, api: Api) -> None:
    """A service that missed a flip, and whose run was dropped, looks at the pointer once and answers."""
    api.ok("/v1/popular")
    world.publish(NEXT)
    fence = world.store.acquire("prune", 60).fence
    world.store.set_state(RUN, RunState.LIVE, RunState.RETIRED, fence)
    world.store.set_state(RUN, RunState.RETIRED, RunState.FAILED, fence)
    world.store.drop(RUN, fence)
    time.sleep(0.11)  # two forced refreshes are at least 0.1 s apart

    assert (api.ok("/v1/users/u1/recommendations")["run_id"], api.ok("/v1/release")["sequence"]) == (NEXT, 2)


def test_a_live_run_that_vanishes_is_unavailable_until_it_is_back(
    world: World, api: Api, caplog: pytest.LogCaptureFixture
) -> None:
    """Not a 404, which clients would believe; and logged once, not once a request."""
    api.ok("/v1/popular")
    hidden = world.file_of(RUN).rename(world.folder / "hidden")
    for url in ("/v1/users/u1/recommendations", "/v1/users/nobody/recommendations", "/v1/items/i1/similar") * 3:
        answer = api.ask(url)
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "3600")
        assert "urn:nightlist:problem:unreadable" in answer.text
        assert str(world.folder) not in answer.text
    hidden.rename(world.file_of(RUN))

    assert api.ok("/v1/users/u1/recommendations")["source"] == "personal"
    assert len([record for record in caplog.records if record.levelno == logging.ERROR]) == 1


def test_a_damaged_row_is_unavailable_and_costs_no_other(world: World, api: Api) -> None:
    """One list that can't be read takes nobody else's away."""
    with sqlite3.connect(world.file_of(RUN)) as file:
        file.execute("UPDATE lists SET scored_at = 'yesterday' WHERE kind = 'user' AND key = 'u1'")

    assert api.problem("/v1/users/u1/recommendations", 503)
    assert api.ok("/v1/popular")


def test_answers_never_mix_runs(world: World) -> None:
    """While six threads ask and the pointer moves eight times, each answer is whole and of the run it names."""
    world.publish(RUN)
    app = world.app(refresh=0.01)
    done = threading.Event()

    def ask(number: int) -> int:
        client, asked = app.test_client(), 0
        while not done.is_set():
            found: Any = client.get("/v1/users/u1/recommendations?n=30").json
            assert {item["item_id"] for item in found["items"]} == {
                f"i{rank} of {found['run_id']}" for rank in range(30)
            }
            asked += 1
        return asked

    with ThreadPoolExecutor(6) as pool:
        asking = [pool.submit(ask, number) for number in range(6)]
        for number in range(8):
            world.publish(f"20260310_{number}")
            time.sleep(0.03)
        done.set()
        assert all(future.result() > 0 for future in asking)
    assert until(lambda: Api(app).ok("/v1/release")["sequence"] == 9)


# Health, metrics, description


def test_livez_asks_nothing_of_the_store(world: World) -> None:
    """A process over a store that can't be used is alive, and begins nothing."""
    world.path.write_text("no folder")
    api, before = Api(world.app()), set(threading.enumerate())

    assert api.ok("/livez") == {"status": "alive"}
    assert set(threading.enumerate()) <= before
    api.problem("/readyz", 503)


def test_a_process_that_ends_is_not_ready(world: World, api: Api) -> None:
    """It takes no new traffic, its thread ends and its files are closed; being told twice does no harm."""
    before = set(threading.enumerate())
    assert api.ok("/readyz") == {"status": "ready"}
    assert {thread.name for thread in set(threading.enumerate()) - before} == {"pointer"}
    api.service.close()
    api.service.close()

    assert api.problem("/readyz", 503)["type"] == "urn:nightlist:problem:not-ready"
    assert api.ok("/livez")
    assert set(threading.enumerate()) <= before


def test_the_description_is_valid(api: Api) -> None:
    """OpenAPI 3.1, as its own schema has it."""
    OpenAPIV31SpecValidator(api.ok("/openapi.json")).validate()


def test_the_description_is_complete(api: Api) -> None:
    """Every route and every parameter is described, and nothing else is."""
    rules = {rule.rule: rule for rule in api.app.url_map.iter_rules()}
    templates = {re.sub(r"<id:(\w+)>", r"{\1}", rule): rule for rule in rules}
    paths = api.ok("/openapi.json")["paths"]
    queries = {
        templates[path]: tuple(
            sorted(p["name"] for p in item.get("get", {"parameters": []})["parameters"] if p["in"] == "query")
        )
        for path, item in paths.items()
    }

    assert set(paths) == set(templates)
    assert {rule: names for rule, names in queries.items() if rule in KNOWN} == {
        rule: tuple(sorted(names)) for rule, names in KNOWN.items()
    }
    assert {rule for rule in rules if rule.startswith("/v1/")} == set(KNOWN)


# Starting and stopping


def test_nothing_is_begun_before_the_first_request(world: World) -> None:
    """An application made before a fork has no thread and no connection, and needs no store."""
    threads = threading.active_count()
    app = world.app()

    assert threading.active_count() == threads
    assert app.extensions[EXTENSION]._follower is None
    assert not world.path.exists()


def test_a_forked_worker_begins_its_own(world: World) -> None:
    """One made and used before the fork too: threads and connections of the parent are not the child's."""
    world.publish(RUN)
    app = world.app(refresh=0.02)
    assert Api(app).ok("/v1/release")["sequence"] == 1
    child = os.fork()
    if child == 0:
        code = 1
        try:
            api = Api(app)
            assert api.ok("/v1/release")["sequence"] == 1
            world.publish(NEXT)
            assert until(lambda: api.ok("/v1/popular")["run_id"] == NEXT)
            code = 0
        finally:
            os._exit(code)

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_applications_in_one_process_do_not_meet(world: World, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Each has its store and its metrics."""
    other = World(tmp_path_factory.mktemp("other"))
    world.publish(RUN)
    other.publish(NEXT)
    one, two = Api(world.app()), Api(other.app())

    assert (one.ok("/v1/release")["run_id"], two.ok("/v1/release")["run_id"]) == (RUN, NEXT)
    one.ok("/v1/popular")
    line = 'nightlist_answers_total{source="popular"}'
    assert (one.metric(line), two.metric(line)) == (1, 0)
    two.service.close()


def test_the_configuration_is_found(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the argument, else by NIGHTLIST_CONFIG, else in the working folder; paths count from the file."""
    world.publish(RUN)
    path = world.config()
    elsewhere = world.folder / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.delenv("NIGHTLIST_CONFIG", raising=False)
    monkeypatch.chdir(elsewhere)
    for config in (path, str(path), Path("../nightlist.toml")):
        world.apps.append(create_app(config))
    monkeypatch.setenv("NIGHTLIST_CONFIG", str(path))
    world.apps.append(create_app())
    monkeypatch.delenv("NIGHTLIST_CONFIG")
    monkeypatch.chdir(world.folder)
    world.apps.append(create_app())

    assert [Api(app).ok("/v1/release")["run_id"] for app in world.apps] == [RUN] * 5


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[serve]\nprot = 1", "did you mean port"),
        ("[serve]\nrefresh_seconds = 0", "serve.refresh_seconds"),
        ('[store]\nbackend = "mysql"', "store.backend"),
        ("[serve", "no valid TOML"),
        (None, "does not exist"),
    ],
)
def test_a_bad_configuration_is_told_at_once(tmp_path: Path, text: str | None, told: str) -> None:
    """Not at the first request."""
    path = tmp_path / "nightlist.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=told):
        create_app(path)


def test_sections_of_the_night_do_not_concern_the_service(world: World) -> None:
    """The service starts with a file whose other sections only jobs can check."""
    world.publish(RUN)
    path = world.config()
    path.write_text(path.read_text() + "[als]\nfactors = 'many'\n[whatever]\nx = 1\n")
    world.apps.append(create_app(path))

    assert Api(world.apps[0]).ok("/readyz")
