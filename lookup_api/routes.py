"""The routes: each asks for lists by key, in the order in which they will do, and answers with the first."""

from flask import Flask, Response, current_app, g
from prometheus_client import CONTENT_TYPE_LATEST
from werkzeug.routing import BaseConverter

from lookup_api import answers
from lookup_api.answers import SOURCES, encode, json_answer
from lookup_api.auth import ANY_LISTS, METRICS, OWN_LISTS, PUBLIC, authorize
from lookup_api.batch import read_batch
from lookup_api.openapi import document
from lookup_api.parameters import Query, an_id, read_query
from lookup_api.problems import ProblemError, shown, unavailable
from lookup_api.readers import ListKey
from lookup_api.responses import Answer
from lookup_api.service import EXTENSION, Found, Service
from schemas.lists import Kind
from schemas.runs import Release

LISTS: dict[Kind, str] = {
    "user": "list of user",
    "similar": "list of items similar to",
    "popular": "popular list of segment",
}
"""What a problem calls each kind of list, before its key."""


class IdConverter(BaseConverter):
    """One segment of a path, the empty one too: it is answered with the reason why it is no id."""

    regex = "[^/]*"


def init(app: Flask) -> None:
    """Register every route, and who may ask it."""
    app.url_map.converters["id"] = IdConverter
    app.get("/v1/users/<id:user_id>/recommendations", policy=OWN_LISTS)(user_recommendations)
    app.get("/v1/recommendations", policy=OWN_LISTS)(recommendations)
    app.post("/v1/recommendations:batch", policy=OWN_LISTS)(batch)
    app.get("/v1/items/<id:item_id>/similar", policy=ANY_LISTS)(item_similar)
    app.get("/v1/similar", policy=ANY_LISTS)(similar)
    app.get("/v1/popular", policy=ANY_LISTS)(popular)
    app.get("/v1/release", policy=ANY_LISTS)(release)
    app.get("/livez", policy=PUBLIC)(livez)
    app.get("/readyz", policy=PUBLIC)(readyz)
    app.get("/metrics", policy=METRICS)(metrics)
    app.get("/openapi.json", policy=PUBLIC)(openapi)


def user_recommendations(user_id: str) -> Response:
    """The list of one user, or the popular list of the segment."""
    return _recommend(an_id("user_id", user_id), read_query(_service().settings.default_n))


def recommendations() -> Response:
    """The same for any valid id."""
    query = read_query(_service().settings.default_n)
    return _recommend(query.user_id, query)


def batch() -> Response:
    """The lists of many users, all of one run, in the order in which they were asked for; twice for who is named twice."""
    service = _service()
    with service.batch():
        read_query(service.settings.default_n)
        asked = read_batch(service.settings.default_n)
        authorize(*asked.user_ids)
        users: list[ListKey] = [("user", user_id) for user_id in asked.user_ids]
        live, found = service.find_all([*users, ("popular", asked.query.segment)])
        g.run_id = live.run_id
    stale = service.follower().stale
    lists = ",".join(_one_of_many(service, live, found, user, asked.query) for user in users)
    return answers.lists_answer(f'{{{_of_run(live, stale)},"lists":[{lists}]}}')


def item_similar(item_id: str) -> Response:
    """The items most like one item."""
    return _similar(an_id("item_id", item_id), read_query(_service().settings.default_n))


def similar() -> Response:
    """The same for any valid id."""
    query = read_query(_service().settings.default_n)
    return _similar(query.item_id, query)


def popular() -> Response:
    """The popular list of a segment."""
    query = read_query(_service().settings.default_n)
    return _list(query, ("popular", query.segment))


def release() -> Response:
    """Which run is served."""
    read_query(_service().settings.default_n)
    live = _service().release()
    return _json(
        {
            "run_id": live.run_id,
            "previous": live.previous,
            "sequence": live.sequence,
            "published_at": live.published_at.isoformat(),
            "stale": _service().follower().stale,
        }
    )


def livez() -> Response:
    """The process answers; nothing else is asked, so that a lost store restarts no process."""
    return _json({"status": "alive"})


def readyz() -> Response:
    """A pointer was loaded once, and this process is not about to end."""
    service = _service()
    if service.draining:
        raise unavailable("not-ready", "this process is about to end", service.retry_seconds)
    service.release()
    return _json({"status": "ready"})


def metrics() -> Response:
    """The counters of every worker of the server."""
    service = _service()
    service.follower().first(service.until())  # a process that is only scraped follows the pointer too
    return Answer(service.metrics.render(), content_type=CONTENT_TYPE_LATEST)


def openapi() -> Response:
    """This API, described."""
    return _json(document(_service().settings.default_n))


def _service() -> Service:
    service: Service = current_app.extensions[EXTENSION]
    return service


def _recommend(user_id: str, query: Query) -> Response:
    authorize(user_id)
    return _list(query, ("user", user_id), ("popular", query.segment))


def _similar(item_id: str, query: Query) -> Response:
    return _list(query, ("similar", item_id))


def _list(query: Query, *keys: ListKey) -> Response:
    """The first of `keys` that has a list; nothing is read for a client that has it already."""
    service = _service()
    stale, current = service.follower().stale, service.follower().current
    tags = answers.Tags(query.n, stale)
    if current and (same := tags.not_modified(current, (SOURCES[kind] for kind, _ in keys))):
        g.run_id = current.run_id
        return same  # without a run yet, `find` waits for one, where it counts as under way
    live, found = service.find(*keys)
    if found is None:
        raise _no_list(live, *keys)
    source = SOURCES[found.kind]
    g.source, g.run_id = source, live.run_id  # for the access log
    if same := tags.not_modified(live, (source,), exists=True):
        return same
    members, items = answers.json_of(found, query, service.clock())
    service.metrics.answered(source, items)
    return answers.list_answer(f"{{{_of_run(live, stale)},{members}}}", tags.of(live, source))


def _of_run(live: Release, stale: bool) -> str:
    return f'"run_id":"{live.run_id}","stale":{"true" if stale else "false"}'


def _one_of_many(service: Service, live: Release, found: Found, user: ListKey, query: Query) -> str:
    popular: ListKey = ("popular", query.segment)
    served = found.get(user) or found.get(popular)
    if served is None:
        raise _no_list(live, user, popular)
    members, items = answers.json_of(served, query, service.clock())
    service.metrics.answered(SOURCES[served.kind], items)
    return f'{{"user_id":{encode(user[1])},{members}}}'


def _no_list(live: Release, *keys: ListKey) -> ProblemError:
    absent = ", and ".join(f"no {LISTS[kind]} {shown(key)}" for kind, key in keys)
    return ProblemError("no-list", f"run {live.run_id} has {absent}")


def _json(body: dict[str, object]) -> Response:
    return json_answer(encode(body))
