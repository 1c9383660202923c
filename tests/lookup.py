"""What tests of the lookup share: a store with its publisher, the service over it, and a client that checks every answer."""

import gzip
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jsonschema
from flask import Flask
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012
from werkzeug.test import TestResponse

from jobs.stores.sqlite import SqliteStore
from lookup_api import create_app
from lookup_api.openapi import document
from lookup_api.readers.sqlite import SqliteReader
from lookup_api.service import EXTENSION, Service
from schemas.lists import ServedList
from schemas.runs import Release, RunState
from tests.clock import START, Clock

RUN, NEXT, THIRD = "20260301_0badcafe", "20260302_1badcafe", "20260303_2badcafe"
NEVER = 3600.0
"""Refresh period of tests in which the pointer is read only where the test says so."""
AWKWARD = [
    "it's",
    'say "hi"',
    "a b",
    "+",
    "&n=1",
    "#",
    "?",
    "%2F",
    "12346",
    "é",
    "日本語",
    "👩‍👩‍👧",
    ";",
    "=",
    "x" * 512,
]
ONLY_BY_QUERY = ["a/b", "/", "//", ".", "..", "../../livez"]
API = document(20)


def a_list(kind: Any, key: str, *items: str, source: str = "als") -> ServedList:
    scores = tuple(1.0 - rank / 64 for rank in range(len(items)))
    return ServedList(kind, key, items, scores, (source,) * len(items), START)


def item_for(user_id: str) -> str:
    return f"for {user_id}"[:512]


def item_like(item_id: str) -> str:
    return f"like {item_id}"[:512]


def night(mark: str = "") -> list[ServedList]:
    """The lists of one run; `mark` tells the items of one run from those of another."""
    return [
        a_list("user", "u1", *(f"i{rank}{mark}" for rank in range(30)), source="als+item_to_item"),
        a_list("user", "has seen everything"),
        *(a_list("user", key, item_for(key)) for key in (*AWKWARD, *ONLY_BY_QUERY)),
        *(a_list("similar", key, item_like(key)) for key in ("i1", *AWKWARD, *ONLY_BY_QUERY)),
        a_list("popular", "all", *(f"p{rank}{mark}" for rank in range(25)), source="popular"),
        a_list("popular", "country=GB", "gb1", "gb2", source="popular"),
        a_list("popular", "country=Åland/1", "ax1", source="popular"),
    ]


class World:
    """A store with its publisher, and the service over it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "store"
        self.clock = Clock()
        self.store = SqliteStore(self.path, self.clock)
        self.apps: list[Flask] = []

    def config(self, refresh: float = NEVER, **serve: object) -> Path:
        path = self.folder / "nightlist.toml"
        given = {"deadline_seconds": 10.0, **serve}  # on a busy machine, the first refresh takes its time
        lines = ['[auth]\nopen = true\n[store]\npath = "store"\n[serve]', f"refresh_seconds = {refresh}"]
        path.write_text("\n".join([*lines, *(f"{name} = {value!r}" for name, value in given.items()), ""]))
        return path

    def app(self, refresh: float = NEVER, reader: SqliteReader | None = None, **serve: object) -> Flask:
        app = create_app(self.config(refresh, **serve), reader=reader, clock=self.clock)
        self.apps.append(app)
        return app

    def publish(self, run_id: str, lists: list[ServedList] | None = None) -> Release:
        self.store.prepare()
        before = self.store.pointer()
        lease = self.store.acquire("tests", 60)
        self.store.set_state(run_id, None, RunState.LOADING, lease.fence)
        self.store.load(run_id, night(f" of {run_id}") if lists is None else lists, lease.fence, lambda rows: None)
        for old, new in ((RunState.LOADING, RunState.LOADED), (RunState.LOADED, RunState.VERIFIED)):
            self.store.set_state(run_id, old, new, lease.fence)
        self.store.set_state(run_id, RunState.VERIFIED, RunState.LIVE, lease.fence)
        release = self.store.flip(run_id, before.sequence if before else 0, lease.fence)
        self.store.release(lease)
        return release

    def file_of(self, run_id: str) -> Path:
        return self.path / f"lists_{run_id}.db"


class Faulty(SqliteReader):
    """A reader with a fault of a kind that nobody thought of."""

    def get(self, run_id: str, kind: Any, key: str, until: float | None = None) -> ServedList | None:
        raise ZeroDivisionError(f"the secret of {key}")


class Api:
    """A client that trusts no answer: each is checked against the description before a test sees it."""

    def __init__(self, app: Flask) -> None:
        self.app = app
        self.service: Service = app.extensions[EXTENSION]
        self.client = app.test_client()

    def ask(self, url: str, method: str = "GET", **options: Any) -> TestResponse:
        answer = self.client.open(url, method=method, **options)
        check_against_description(answer)
        return answer

    def ok(self, url: str, **options: Any) -> Any:
        answer = self.ask(url, **options)
        assert answer.status_code == 200, answer.text
        return answer.json

    def items(self, url: str) -> list[str]:
        return [item["item_id"] for item in self.ok(url)["items"]]

    def problem(self, url: str, status: int, **options: Any) -> Any:
        answer = self.ask(url, **options)
        assert answer.status_code == status, answer.text
        return answer.json

    def refresh(self) -> None:
        self.service.follower().refresh()

    def metric(self, line: str) -> float:
        """The value of a series, by its name and labels as they are exposed; 0 where it is not."""
        found = re.search(rf"^{re.escape(line)} (\S+)$", self.client.get("/metrics").text, re.MULTILINE)
        return float(found[1]) if found else 0.0


def described(path: str) -> str | None:
    for template in API["paths"]:
        if re.fullmatch(re.sub(r"\{\w+\}", "[^/]*", re.escape(template).replace(r"\{", "{").replace(r"\}", "}")), path):
            return str(template)
    return None


def check_against_description(answer: TestResponse) -> None:
    """Status, headers, media type and body are what the description says."""
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    template = described(answer.request.path)
    if template is None:
        where = "/components/responses/Problem404" if answer.status_code == 404 else "/components/responses/Problem400"
    else:
        (method,) = API["paths"][template]
        where = f"/paths/{template.replace('/', '~1')}/{method}/responses/{answer.status_code}"
    response = at(where)
    if "$ref" in response:
        where = response["$ref"][1:]
        response = at(where)
    for name, header in response["headers"].items():
        described_header = at(header["$ref"][1:])
        if described_header["required"] or name in answer.headers:
            value: Any = answer.headers[name]
            rule = described_header["schema"]
            jsonschema.validate(int(value) if rule.get("type") == "integer" else value, rule)
    if answer.status_code == 304:
        assert (answer.data, answer.content_type, "content" in response) == (b"", None, False)
        return
    assert answer.content_type
    media = answer.content_type.partition(";")[0]
    assert media in response["content"], f"{media} for {answer.status_code} of {template}"
    if media.endswith("json") and answer.request.method != "HEAD":
        body = gzip.decompress(answer.data) if answer.headers.get("Content-Encoding") == "gzip" else answer.data
        check_body(json.loads(body), f"{where}/content/{media.replace('/', '~1')}/schema")


def at(pointer: str) -> Any:
    found: Any = API
    for part in pointer.split("/")[1:]:
        found = found[part.replace("~1", "/")]
    return found


def check_body(body: Any, pointer: str) -> None:
    whole = Registry().with_resource("urn:api", Resource.from_contents(API, default_specification=DRAFT202012))
    schema = {"$ref": f"urn:api#{quote(pointer, safe='/~')}"}
    jsonschema.Draft202012Validator(
        schema, registry=whole, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER
    ).validate(body)


def until(holds: Callable[[], bool], seconds: float = 5.0) -> bool:
    end = time.monotonic() + seconds
    while not holds() and time.monotonic() < end:
        time.sleep(0.01)
    return holds()
