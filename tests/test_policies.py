"""Who may ask what: every principal on every route for every user, held against the meaning of the route's policy.

The expectation comes from MEANING alone; routes are found in the application, so that a new one joins by being there.
"""

import json
import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from flask import Flask, Response
from werkzeug.routing import Rule
from werkzeug.test import TestResponse

from lookup_api import create_app
from lookup_api.auth import ANY_LISTS, METRICS, OWN_LISTS, PUBLIC, GuardedRule, authorize
from lookup_api.openapi import POLICIES, SECURITY, document
from lookup_api.service import EXTENSION
from tests.callers import AUTH, Issuer, bearer, make_key
from tests.lookup import NEVER, RUN, World, a_list

ISSUER = Issuer()
USERS = {"own": "me", "another": "you", "unknown": "nobody"}
ELSEWHERE = "10.0.0.9"


@dataclass(frozen=True)
class Caller:
    """How somebody asks, and what they are by the words of MEANING."""

    words: frozenset[str]
    headers: dict[str, str] = field(default_factory=dict)
    address: str = "127.0.0.1"
    open: bool = False


MEANING: dict[str, Callable[[frozenset[str], str], int]] = {
    "PUBLIC": lambda words, user: 200,
    "ANY_LISTS": lambda words, user: (
        401 if "stranger" in words else 200 if words & {"lists", "user me", "user you"} else 403
    ),
    "OWN_LISTS": lambda words, user: 401 if "stranger" in words else 200 if words & {"lists", f"user {user}"} else 403,
    "METRICS": lambda words, user: 401 if "stranger" in words else 200 if "metrics" in words else 403,
}
"""By policy: the status for somebody who is these words and asks about this user."""

CALLERS = (
    "nobody", "wrong key", "key of another file", "revoked key", "key for lists", "key for metrics", "key for both", "token of me",
    "token of you", "expired token", "key as a password", "open", "open from elsewhere", "open behind a proxy",
    "open by a foreign name",
)  # fmt: skip


class Place:
    """A published run, the service over it with keys and tokens, and a second one in open mode."""

    def __init__(self, world: World) -> None:
        self.world = world
        world.publish(RUN, [a_list("user", "me", "i1"), a_list("user", "you", "i2"), a_list("popular", "all", "p1"),
                            a_list("similar", "i1", "i2")])  # fmt: skip
        ISSUER.publish(world.folder)
        self.keys = {
            "lists": make_key(world.folder, "lists:read"),
            "metrics": make_key(world.folder, "metrics:read", name="prometheus"),
            "both": make_key(world.folder, "lists:read", "metrics:read", name="gateway"),
            "revoked": make_key(world.folder, "lists:read", "metrics:read", name="old", revoked=True),
        }
        self.guarded, self.opened = self._app(AUTH), self._app("[auth]\nopen = true\n")
        self.callers = self._callers()

    def _app(self, auth: str) -> Flask:
        path = self.world.folder / "guarded.toml"
        path.write_text(f'{auth}[store]\npath = "store"\n[serve]\ndeadline_seconds = 60\nrefresh_seconds = {NEVER}\n')
        app = create_app(path, clock=self.world.clock)
        self.world.apps.append(app)
        return app

    def _callers(self) -> dict[str, Caller]:
        stranger, everything = frozenset({"stranger"}), frozenset({"lists", "metrics"})
        key = self.keys["both"]
        found = {
            "nobody": Caller(stranger),
            "wrong key": Caller(stranger, bearer(key[:-1] + ("a" if key[-1] != "a" else "b"))),
            "key of another file": Caller(stranger, bearer("nl_0badcafe_" + "x" * 43)),
            "revoked key": Caller(stranger, bearer(self.keys["revoked"])),
            "key for lists": Caller(frozenset({"lists"}), bearer(self.keys["lists"])),
            "key for metrics": Caller(frozenset({"metrics"}), bearer(self.keys["metrics"])),
            "key for both": Caller(everything, bearer(key)),
            "token of me": Caller(frozenset({"user me"}), bearer(ISSUER.token("me"))),
            "token of you": Caller(frozenset({"user you"}), bearer(ISSUER.token("you"))),
            "expired token": Caller(stranger, bearer(ISSUER.token("me", exp=1))),
            "key as a password": Caller(stranger, {"Authorization": f"Basic {key}"}),
            "open": Caller(everything, open=True),
            "open from elsewhere": Caller(frozenset(), bearer(key), ELSEWHERE, open=True),
            "open behind a proxy": Caller(frozenset(), {"X-Forwarded-For": "127.0.0.1"}, open=True),
            "open by a foreign name": Caller(frozenset(), {"Host": "evil.example"}, open=True),
        }
        assert set(found) == set(CALLERS)
        return found

    def rules(self) -> list[GuardedRule]:
        return [rule for rule in self.guarded.url_map.iter_rules() if isinstance(rule, GuardedRule)]

    def ask(self, caller: Caller, rule: Rule, user_id: str) -> TestResponse:
        client = (self.opened if caller.open else self.guarded).test_client()
        url = re.sub(r"<[^>]*user_id>", user_id, re.sub(r"<[^>]*item_id>", "i1", rule.rule))
        assert "<" not in url, "a new kind of path: say here what may stand in it"
        at = {"REMOTE_ADDR": caller.address}
        if "POST" in (rule.methods or ()):
            body = {"user_ids": [user_id]}
            return client.post(url, json=body, headers=caller.headers, environ_overrides=at)
        query = {name: {"user_id": user_id, "item_id": "i1"}[name] for name in needed(rule)}
        return client.get(url, query_string=query, headers=caller.headers, environ_overrides=at)


def needed(rule: Rule) -> list[str]:
    """Query parameters that the route can't do without, as its description says."""
    path = re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule)
    return [found["name"] for found in document(20)["paths"][path]["get"]["parameters"]
            if found["in"] == "query" and found["required"]]  # fmt: skip


@pytest.fixture(scope="module")
def placed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    found = Place(World(tmp_path_factory.mktemp("policies")))
    yield found
    for app in found.world.apps:
        app.extensions[EXTENSION].close()


@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize("name", CALLERS)
def test_everybody_gets_what_the_policy_says_and_nothing_else(placed: Place, name: str, user: str) -> None:
    """On every route: 200 for who may, 401 for who is not known, 403 for who is; a refusal holds no list."""
    caller = placed.callers[name]
    for rule in placed.rules():
        assert rule.policy
        answer = placed.ask(caller, rule, USERS[user])
        assert answer.status_code == MEANING[rule.policy.name](caller.words, USERS[user]), f"{rule}: {answer.text}"
        if answer.status_code in (401, 403):
            assert answer.json is not None
            kind = {401: "unauthenticated", 403: "forbidden"}[answer.status_code]
            assert answer.json["type"] == f"urn:nightlist:problem:{kind}"
            assert ("WWW-Authenticate" in answer.headers) == (answer.status_code == 401)
            assert not set(answer.json) & {"items", "results", "run_id"}


def test_every_route_declares_who_may_ask_it(placed: Place) -> None:
    """And the description says the same, operation by operation."""
    paths = document(20)["paths"]
    for rule in placed.guarded.url_map.iter_rules():
        assert isinstance(rule, GuardedRule), rule
        assert rule.policy is not None, f"{rule} says nothing: app.get({rule.rule!r}, policy=...)"
        path = re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule)
        assert POLICIES.get(path, OWN_LISTS) is rule.policy
        for operation in paths[path].values():
            assert operation["security"] == SECURITY[rule.policy]
            assert {"401", "403"} & set(operation["responses"]) == (set() if rule.policy is PUBLIC else {"401", "403"})
    assert {rule.policy for rule in placed.rules()} == {PUBLIC, ANY_LISTS, OWN_LISTS, METRICS}


DIFFER = ("Content-Length", "X-Request-Id")
"""The one with the user_id that was asked for, the other with every request."""


def test_what_is_not_yours_and_what_is_not_there_look_the_same(placed: Place) -> None:
    """Who asks with their own token can't find out whether another user exists, by no byte of the answer."""
    for rule in placed.rules():
        if rule.policy is OWN_LISTS:
            answers = [placed.ask(placed.callers["token of me"], rule, USERS[user]) for user in ("another", "unknown")]
            bodies = [{**(answer.json or {}), "instance": ""} for answer in answers]
            headers = [{name: value for name, value in answer.headers if name not in DIFFER} for answer in answers]
            assert bodies[0] == bodies[1]
            assert headers[0] == headers[1]


def test_a_route_that_declares_nothing_answers_nobody(placed: Place, caplog: pytest.LogCaptureFixture) -> None:
    """Not even a key that may do everything; and the log says which one it is."""
    app = placed._app(AUTH)
    app.get("/forgotten")(lambda: Response("secret"))
    answers = [
        app.test_client().get("/forgotten", headers=caller.headers)
        for caller in placed.callers.values() if not caller.open
    ]  # fmt: skip

    assert {answer.status_code for answer in answers} == {401, 403}
    assert not any("secret" in answer.text for answer in answers)
    assert "/forgotten declares no policy" in caplog.text


def test_a_view_that_asks_nobody_whose_list_it_may_read_answers_nothing(
    placed: Place, caplog: pytest.LogCaptureFixture
) -> None:
    """What it found is thrown away, for programs too, so that no test can pass over it; the log names the route."""
    app = placed._app(AUTH)
    app.get("/careless", policy=OWN_LISTS)(lambda: Response("secret"))
    for name in ("key for both", "token of me"):
        answer = app.test_client().get("/careless", headers=placed.callers[name].headers)
        assert (answer.status_code, answer.content_type) == (500, "application/problem+json")
        assert "secret" not in answer.text
        assert answer.headers["Cache-Control"] == "no-store"
    assert "/careless answered without a call of authorize" in caplog.text


@pytest.mark.parametrize(
    ("user_ids", "statuses"),
    [([], (200, 200)), (["me"], (200, 200)), (["me", "me"], (200, 200)), (["me", "you"], (200, 403)),
     (["you", "me"], (200, 403)), (["me"] * 99 + ["nobody"], (200, 403)), (["m", "e"], (200, 403))],
)  # fmt: skip
def test_every_id_of_many_is_checked(placed: Place, user_ids: list[str], statuses: tuple[int, int]) -> None:
    """One that is another's, wherever it stands, refuses them all; a program with the scope may ask for any."""
    app = placed._app(AUTH)

    def many() -> Response:
        authorize(*user_ids)
        return Response("lists")

    app.get("/many", policy=OWN_LISTS)(many)
    answers = [
        app.test_client().get("/many", headers=placed.callers[name].headers)
        for name in ("key for lists", "token of me")
    ]

    assert tuple(answer.status_code for answer in answers) == statuses


@pytest.mark.parametrize("sub", ["a/b", "é", "日本語", "%2F", "x" * 512, " ", "a b", "12346"])
def test_the_subject_is_compared_with_the_decoded_id(placed: Place, sub: str) -> None:
    """Whatever characters it has, and however they came; an id that only looks like it is another's."""
    client, headers = placed.guarded.test_client(), bearer(ISSUER.token(sub))
    look_alike = {"é": "e\u0301", "12346": "12346.0", "%2F": "/", " ": "  ", "a b": "a+b"}.get(
        sub, sub + "x"[: len(sub) < 512]
    )
    for user_id, status in ((sub, 200), (look_alike, 403 if look_alike != sub else 200)):
        assert (
            client.get("/v1/recommendations", query_string={"user_id": user_id}, headers=headers).status_code == status
        )


def test_a_request_that_asks_for_two_users_gets_neither(placed: Place) -> None:
    """What is checked is what is read: no second value slips in behind the first."""
    client, headers = placed.guarded.test_client(), bearer(ISSUER.token("me"))
    for query in (
        "user_id=me&user_id=you",
        "user_id=you&user_id=me",
        "user_id=me&USER_ID=you",
        "user_id=me&user_id%00=you",
    ):
        assert client.get(f"/v1/recommendations?{query}", headers=headers).status_code == 400
    smuggled = client.get("/v1/users/you/recommendations?user_id=me", headers=headers)
    assert smuggled.status_code in (400, 403)


def test_every_answer_carries_the_headers(placed: Place) -> None:
    """Good ones and bad ones."""
    for name in ("nobody", "key for both", "open behind a proxy"):
        for rule in placed.rules():
            answer = placed.ask(placed.callers[name], rule, "me")
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'")
            assert answer.headers["Referrer-Policy"] == "no-referrer"
            assert "no-store" in answer.headers["Cache-Control"] or answer.status_code == 200


def test_who_asks_is_asked_before_the_store(tmp_path: Path) -> None:
    """Where nothing was published, a stranger learns nothing of it."""
    (tmp_path / "nightlist.toml").write_text('[store]\npath = "store"\n')
    app = create_app(tmp_path / "nightlist.toml")

    assert app.test_client().get("/v1/popular").status_code == 401
    assert app.extensions[EXTENSION]._follower is None


def test_without_keys_tokens_and_open_mode_nobody_may_ask(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Under any server: public routes answer, all others 401, and the log says what to type."""
    (tmp_path / "nightlist.toml").write_text('[store]\npath = "store"\n')
    with caplog.at_level(logging.WARNING):
        app = create_app(tmp_path / "nightlist.toml")
    token = json.dumps(ISSUER.token("me"))
    for rule in app.url_map.iter_rules():
        assert isinstance(rule, GuardedRule)
        if rule.policy is not PUBLIC and "GET" in (rule.methods or ()):
            url = re.sub(r"<[^>]*>", "me", rule.rule)
            assert app.test_client().get(url, headers=bearer(token)).status_code == 401
    assert app.test_client().get("/livez").status_code == 200
    assert "nightlist keys create" in caplog.text
