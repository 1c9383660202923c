"""The routes: each asks for lists by key, in the order in which they will do, and answers with the first."""

import json
from typing import Any

from flask import Flask, Response, current_app
from prometheus_client import CONTENT_TYPE_LATEST
from werkzeug.routing import BaseConverter

from lookup_api.openapi import document
from lookup_api.parameters import Query, an_id, read_query
from lookup_api.problems import ProblemError, shown, unavailable
from lookup_api.service import EXTENSION, Service
from schemas.lists import Kind, ServedList
from schemas.runs import Release

SOURCES: dict[Kind, str] = {"user": "personal", "similar": "similar", "popular": "popular"}
"""What an answer calls each kind of list."""

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode


class IdConverter(BaseConverter):
    """One segment of a path, the empty one too: it is answered with the reason why it is no id."""

    regex = "[^/]*"


def init(app: Flask) -> None:
    """Register every route."""
    app.url_map.converters["id"] = IdConverter
    app.get("/v1/users/<id:user_id>/recommendations")(user_recommendations)
    app.get("/v1/recommendations")(recommendations)
    app.get("/v1/items/<id:item_id>/similar")(item_similar)
    app.get("/v1/similar")(similar)
    app.get("/v1/popular")(popular)
    app.get("/v1/release")(release)
    app.get("/livez")(livez)
    app.get("/readyz")(readyz)
    app.get("/metrics")(metrics)
    app.get("/openapi.json")(openapi)


def user_recommendations(user_id: str) -> Response:
    """The list of one user, or the popular list of the segment."""
    return _recommend(an_id("user_id", user_id), read_query(_service().settings.default_n))


def recommendations() -> Response:
    """The same for any valid id."""
    query = read_query(_service().settings.default_n)
    return _recommend(query.user_id, query)


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
    live, found = _service().find(("popular", query.segment))
    if found is None:
        raise _no_list(live, f"no popular list of segment {shown(query.segment)}")
    return _answer(live, found, query)


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
    """The counters of this process."""
    service = _service()
    service.follower()  # a process that is only scraped follows the pointer too
    return Response(service.metrics.render(), content_type=CONTENT_TYPE_LATEST)


def openapi() -> Response:
    """This API, described."""
    return _json(document(_service().settings.default_n))


def _service() -> Service:
    service: Service = current_app.extensions[EXTENSION]
    return service


def _recommend(user_id: str, query: Query) -> Response:
    live, found = _service().find(("user", user_id), ("popular", query.segment))
    if found is None:
        raise _no_list(live, f"no list of user {shown(user_id)}, and no popular list of segment {shown(query.segment)}")
    return _answer(live, found, query)


def _similar(item_id: str, query: Query) -> Response:
    live, found = _service().find(("similar", item_id))
    if found is None:
        raise _no_list(live, f"no list of items similar to {shown(item_id)}")
    return _answer(live, found, query)


def _no_list(live: Release, what: str) -> ProblemError:
    return ProblemError("no-list", f"run {live.run_id} has {what}")


def _answer(live: Release, found: ServedList, query: Query) -> Response:
    service = _service()
    items = _items(found, query)
    source = SOURCES[found.kind]
    service.metrics.answered(source, len(items))
    age = (service.clock() - found.scored_at).total_seconds()
    return _json(
        {
            "run_id": live.run_id,
            "source": source,
            "age_seconds": max(0.0, round(age, 3)),
            "stale": service.follower().stale,
            "items": items,
        }
    )


def _items(found: ServedList, query: Query) -> list[dict[str, Any]]:
    rows = zip(found.items, found.scores, found.sources, strict=True)
    kept = [row for row in rows if row[0] not in query.exclude] if query.exclude else list(rows)
    return [
        {"item_id": item_id, "score": score, "sources": sources.split("+") if sources else []}
        for item_id, score, sources in kept[: query.n]
    ]


def _json(body: dict[str, Any]) -> Response:
    return Response(_encode(body), content_type="application/json")
