"""Many lists at once, lists that the client has already, and lists that travel compressed."""

import gzip
import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from werkzeug.test import TestResponse

from lookup_api.answers import COMPRESSED_FROM
from lookup_api.batch import MAX_BATCH_BODY, MAX_USERS
from lookup_api.readers.sqlite import SqliteReader
from schemas.lists import ServedList
from tests.lookup import AWKWARD, NEXT, ONLY_BY_QUERY, RUN, Api, World, a_list, item_for, night

BATCH = "/v1/recommendations:batch"
USER = "/v1/users/u1/recommendations"


class Counting(SqliteReader):
    """A real reader that counts the lists that it is asked for."""

    asked = 0

    def get(self, run_id: str, kind: Any, key: str, until: float | None = None) -> ServedList | None:
        self.asked += 1
        return super().get(run_id, kind, key, until)


@pytest.fixture
def reader(world: World) -> Counting:
    return Counting(world.path)


@pytest.fixture
def api(world: World, reader: Counting) -> Api:
    world.publish(RUN, night())
    return Api(world.app(reader=reader))


# Batches


def batch(api: Api, *user_ids: str, **members: Any) -> Any:
    answer = api.ask(BATCH, method="POST", json={"user_ids": user_ids, **members})
    assert answer.status_code == 200, answer.text
    return json.loads(plain(answer))


def plain(answer: TestResponse) -> bytes:
    return gzip.decompress(answer.data) if answer.headers.get("Content-Encoding") == "gzip" else answer.data


def test_a_batch_is_the_lists_of_its_users_in_their_order(api: Api, world: World) -> None:
    """Each as it would be alone, the popular one for who has none; who is named twice is answered twice."""
    world.clock.now += timedelta(hours=1)
    users = ["nobody", "u1", *AWKWARD, *ONLY_BY_QUERY, "u1", "has seen everything"]
    found = batch(api, *users, n=3, exclude=["i1", "p0"])
    alone = [
        api.ok("/v1/recommendations", query_string={"user_id": user, "n": 3, "exclude": ["i1", "p0"]}) for user in users
    ]

    assert (found["run_id"], found["stale"]) == (RUN, False)
    assert [one.pop("user_id") for one in found["lists"]] == users
    assert found["lists"] == [{name: one[name] for name in ("source", "age_seconds", "items")} for one in alone]
    assert [one["source"] for one in found["lists"]][:2] == ["popular", "personal"]


def test_a_batch_takes_the_popular_list_of_its_segment(api: Api) -> None:
    """For those who have none; where somebody needs it, there has to be one."""
    segment = batch(api, "u1", "nobody", segment="country=GB")["lists"]
    assert [len(one["items"]) for one in segment] == [20, 2]
    assert len(batch(api, "u1", segment="country=XX")["lists"]) == 1
    problem = api.problem(BATCH, 404, method="POST", json={"user_ids": ["u1", "nobody"], "segment": "country=XX"})

    assert "country=XX" in problem["detail"]


def test_a_batch_of_a_hundred_reads_each_list_once(api: Api, reader: Counting) -> None:
    """The popular one too, however many need it."""
    before = reader.asked
    found = batch(api, *(f"nobody{number}" for number in range(MAX_USERS)))

    assert len(found["lists"]) == MAX_USERS
    assert reader.asked - before == MAX_USERS + 1


LONG = "😀" * 128
WRONG: dict[str, tuple[Any, int, str, str]] = {
    "none": ({"user_ids": []}, 400, "invalid-parameter", "user_ids is empty"),
    "no users": ({"n": 1}, 400, "invalid-parameter", "user_ids is missing"),
    "too many": ({"user_ids": ["u"] * 101}, 400, "invalid-parameter", "101 ids; at most 100"),
    "no array": ({"user_ids": "u1"}, 400, "invalid-parameter", "user_ids is a string"),
    "null": ({"user_ids": None}, 400, "invalid-parameter", "user_ids is null"),
    "a number": ({"user_ids": ["u1", 42]}, 400, "invalid-parameter", "user_ids holds a number"),
    "empty id": ({"user_ids": ["u1", ""]}, 400, "invalid-id", "is empty"),
    "long id": ({"user_ids": ["x" * 513]}, 400, "invalid-id", "513 bytes"),
    "surrogate": (b'{"user_ids": ["\\ud800"]}', 400, "invalid-id", "not valid UTF-8"),
    "n is text": ({"user_ids": ["u1"], "n": "5"}, 400, "invalid-parameter", "n = "),
    "n is true": ({"user_ids": ["u1"], "n": True}, 400, "invalid-parameter", "n = 'true'"),
    "n is broken": ({"user_ids": ["u1"], "n": 1.5}, 400, "invalid-parameter", "n = '1.5'"),
    "n has no end": (b'{"user_ids": ["u1"], "n": 1e999}', 400, "invalid-parameter", "n = "),
    "n is 0": ({"user_ids": ["u1"], "n": 0}, 400, "invalid-parameter", "n = '0'"),
    "n is absurd": (b'{"user_ids": ["u1"], "n": ' + b"9" * 5000 + b"}", 400, "invalid-body", "JSON"),
    "segment": ({"user_ids": ["u1"], "segment": ["all"]}, 400, "invalid-parameter", "segment holds an array"),
    "exclude": ({"user_ids": ["u1"], "exclude": "i1"}, 400, "invalid-parameter", "exclude is a string"),
    "excluded": ({"user_ids": ["u1"], "exclude": [{}]}, 400, "invalid-parameter", "exclude holds an object"),
    "unknown": ({"user_ids": ["u1"], "exlude": []}, 400, "unknown-parameter", "did you mean exclude?"),
    "twice": (b'{"user_ids": ["u1"], "user_ids": ["u2"]}', 400, "invalid-parameter", "more than once"),
    "no object": ([["u1"]], 400, "invalid-body", "the body is an array"),
    "no JSON": (b'{"user_ids": ["u1"]', 400, "invalid-body", "no valid JSON"),
    "NaN": (b'{"user_ids": ["u1"], "n": NaN}', 400, "invalid-body", "NaN is no number"),
    "nothing": (b" ", 400, "invalid-body", "no valid JSON"),
    "no UTF-8": (b'{"user_ids": ["\xff"]}', 400, "invalid-body", "not valid UTF-8"),
    "UTF-16": ('{"user_ids": ["u1"]}'.encode("utf-16"), 400, "invalid-body", "not valid UTF-8"),
    "deep": (b"[" * 200_000, 400, "invalid-body", "nested"),
    "large": (b" " * (MAX_BATCH_BODY + 1), 413, "body-too-large", f"at most {MAX_BATCH_BODY}"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_batch_that_is_wrong_is_told_why(api: Api, what: str) -> None:
    """The problem has a name, and the detail is no longer than a line."""
    body, status, name, detail = WRONG[what]
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    problem = api.problem(BATCH, status, method="POST", data=data, content_type="application/json")

    assert problem["type"] == f"urn:nightlist:problem:{name}"
    assert detail in problem["detail"]
    assert len(problem["detail"]) < 200


def test_the_largest_batch_that_is_valid_fits(api: Api) -> None:
    """A hundred ids and a hundred exclusions of 512 bytes, with every character escaped."""
    ids = [f"{LONG[:-1]}{number:04d}" for number in range(100)]
    body = json.dumps({"user_ids": ids, "exclude": ids})
    answer = api.ask(BATCH, method="POST", data=body, content_type="application/json; charset=utf-8")

    assert all(len(one.encode()) == 512 for one in ids)
    assert len(body) > 300_000
    assert len(json.loads(plain(answer))["lists"]) == 100


@pytest.mark.parametrize(
    ("headers", "status", "name"),
    [
        ({"Content-Type": "text/plain"}, 415, "unsupported-media-type"),
        ({"Content-Type": ""}, 415, "unsupported-media-type"),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415, "unsupported-media-type"),
        ({"Content-Type": "application/json", "Content-Encoding": "gzip"}, 415, "unsupported-media-type"),
    ],
)
def test_a_batch_is_plain_json(api: Api, headers: dict[str, str], status: int, name: str) -> None:
    """Said to be JSON, and not packed: what unpacks to more than it seems is not read."""
    problem = api.problem(BATCH, status, method="POST", data=b'{"user_ids": ["u1"]}', headers=headers)

    assert problem["type"] == f"urn:nightlist:problem:{name}"


def test_a_batch_says_how_long_it_is(api: Api) -> None:
    """What comes without an end in sight is not read; and a batch takes no query."""
    body = {"method": "POST", "data": b'{"user_ids": ["u1"]}', "content_type": "application/json"}
    problem = api.problem(BATCH, 411, **body, environ_overrides={"HTTP_TRANSFER_ENCODING": "chunked"})

    assert problem["type"] == "urn:nightlist:problem:length-required"
    lies = {"CONTENT_LENGTH": "none", "wsgi.input_terminated": True}
    assert "no valid JSON" in api.problem(BATCH, 400, **body, environ_overrides=lies)["detail"]
    assert "takes none" in api.problem(f"{BATCH}?n=1", 400, **body)["detail"]


def test_more_batches_than_may_be_under_way_are_refused(api: Api) -> None:
    """One more than an eighth of the threads, at once; single lists go on, and so do batches afterwards."""
    held = [api.service.batch() for _ in range(8)]
    for one in held:
        one.__enter__()
    answer = api.ask(BATCH, method="POST", json={"user_ids": ["u1"]})
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    assert "overloaded" in answer.text
    assert api.ok(USER)
    for one in held:
        one.__exit__(None, None, None)

    assert batch(api, "u1")


def test_every_list_of_a_batch_is_counted(api: Api) -> None:
    """By its source."""
    batch(api, "u1", "u1", "nobody", "has seen everything")

    assert api.metric('nightlist_answers_total{source="personal"}') == 3
    assert api.metric('nightlist_answers_total{source="popular"}') == 1
    assert api.metric('nightlist_empty_lists_total{source="personal"}') == 1


# What the client has already


def test_a_list_that_the_client_has_is_not_sent_again_nor_read(api: Api, world: World, reader: Counting) -> None:
    """An hour later it is still the same list of the same run, of whatever source."""
    for url in (USER, "/v1/recommendations?user_id=nobody", "/v1/items/i1/similar", "/v1/popular"):
        first = api.ask(url)
        world.clock.now += timedelta(hours=1)
        asked = reader.asked
        second = api.ask(url, headers={"If-None-Match": f'"other", {first.headers["ETag"]}'})

        assert (first.status_code, second.status_code) == (200, 304)
        assert second.headers["ETag"] == first.headers["ETag"]
        assert second.headers["Cache-Control"] == "private, no-cache"
        assert reader.asked == asked
        assert api.ask(url, headers={"If-None-Match": "*"}).status_code == 304
    assert api.ask("/v1/items/none/similar", headers={"If-None-Match": "*"}).status_code == 404


def another_run(world: World, api: Api) -> None:
    world.publish(NEXT, night())
    api.refresh()


def a_lost_pointer(world: World, api: Api) -> None:
    (world.path / "registry.db").unlink()
    api.refresh()
    api.service.follower()._behind = True


@pytest.mark.parametrize("change", [another_run, a_lost_pointer])
def test_what_changes_the_answer_changes_the_tag(api: Api, world: World, change: Callable[[World, Api], None]) -> None:
    """The next run, even with equal lists; and whether the answer is stale."""
    tag = api.ask(USER).headers["ETag"]
    change(world, api)
    answer = api.ask(USER, headers={"If-None-Match": tag})

    assert answer.status_code == 200
    assert answer.headers["ETag"] != tag


def test_a_tag_is_of_one_question(api: Api, world: World) -> None:
    """Of another user, n, segment or exclusion, it says nothing; nor with another default of n."""
    urls = [USER, f"{USER}?n=20", f"{USER}?n=1", f"{USER}?exclude=i1", "/v1/users/u2/recommendations",
            "/v1/users/u2/recommendations?segment=country%3DGB", "/v1/recommendations?user_id=u1", "/v1/popular"]  # fmt: skip
    tags = [api.ask(url).headers["ETag"] for url in urls]

    assert len(set(tags)) == len(urls)
    for url, tag in zip(urls, tags[1:] + tags[:1], strict=True):
        assert api.ask(url, headers={"If-None-Match": tag}).status_code == 200
    restarted = Api(world.app(default_n=3))
    assert restarted.ask(USER, headers={"If-None-Match": tags[0]}).status_code == 200


@pytest.mark.parametrize("tags", ["", "nonsense", '"', ",,,", "W/", '"a" "b"', "x" * 10_000, "\x80"])
def test_tags_that_are_none_change_nothing(api: Api, tags: str) -> None:
    """The list is sent."""
    assert api.ask(USER, headers={"If-None-Match": tags}).status_code == 200


def test_answers_without_a_list_have_no_tag(api: Api) -> None:
    """Problems, the release and batches are never kept."""
    answers = [
        api.ask(f"{USER}?n=0"),
        api.ask("/v1/release"),
        api.ask("/livez"),
        api.ask(BATCH, method="POST", json={"user_ids": ["u1"]}),
    ]

    assert all("ETag" not in answer.headers for answer in answers)
    assert all("no-store" in answer.headers["Cache-Control"] for answer in answers)


# Compression


@pytest.mark.parametrize(
    ("accepted", "packed"),
    [("gzip", True), ("gzip, deflate, br", True), ("br;q=1.0, gzip;q=0.8", True), ("*", False), ("", False),
     ("identity", False), ("gzip;q=0", False), ("br", False), ("gzip;q=nonsense", False)],
)  # fmt: skip
def test_a_long_answer_is_compressed_where_the_client_takes_it(world: World, accepted: str, packed: bool) -> None:
    """And is the same answer; a short one is not worth it."""
    world.publish(RUN, [*night(), a_list("user", "long", *(f"item number {number}" for number in range(100)))])
    api = Api(world.app())
    headers = {"Accept-Encoding": accepted}
    long, bare = (api.ask("/v1/users/long/recommendations?n=100", headers=given) for given in (headers, {}))
    short = api.ask("/v1/users/long/recommendations?n=5", headers=headers)

    assert len(bare.data) > COMPRESSED_FROM > len(short.data)
    assert ("Content-Encoding" in long.headers, "Content-Encoding" in short.headers) == (packed, False)
    assert plain(long) == bare.data
    assert len(long.data) < len(bare.data) * (0.5 if packed else 1.01)
    assert long.headers["ETag"] == bare.headers["ETag"]
    assert long.headers["Vary"] == bare.headers["Vary"] == short.headers["Vary"] == "Accept-Encoding, Authorization"


def test_a_compressed_head_is_as_long_as_the_get(api: Api) -> None:
    """Length and encoding, without the body."""
    url, headers = f"{USER}?n=30", {"Accept-Encoding": "gzip"}
    head, get = api.ask(url, method="HEAD", headers=headers), api.ask(url, headers=headers)

    assert head.data == b""
    assert [head.headers.get(name) for name in ("Content-Length", "Content-Encoding")] == [
        get.headers.get(name) for name in ("Content-Length", "Content-Encoding")
    ]


def test_items_of_a_batch_come_from_their_own_lists(api: Api) -> None:
    """Nobody gets another one's."""
    found = batch(api, *AWKWARD)["lists"]

    assert [[item["item_id"] for item in one["items"]] for one in found] == [[item_for(key)] for key in AWKWARD]
