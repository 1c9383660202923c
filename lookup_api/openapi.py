"""The API as an OpenAPI 3.1 document: what `/openapi.json` answers, and what tests hold every answer against."""

from typing import Any

from lookup_api.parameters import MAX_EXCLUDED
from lookup_api.problems import MEDIA_TYPE, TYPES
from schemas.ids import MAX_ID_BYTES

Json = dict[str, Any]

ID: Json = {
    "type": "string",
    "minLength": 1,
    "maxLength": MAX_ID_BYTES,
    "description": f"UTF-8 text of 1 to {MAX_ID_BYTES} bytes without control characters.",
}
SEGMENT: Json = {**ID, "default": "all", "examples": ["all", "country=GB"]}


def document(default_n: int) -> Json:
    """The whole document; `default_n` is what `n` is when it is not given."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Nightlist lookup API",
            "version": "1",
            "summary": "Reads the lists that the night made.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": _paths(default_n),
        "components": {"schemas": _schemas(), "responses": _problems(), "headers": _headers()},
    }


def _paths(default_n: int) -> Json:
    n = _query(
        "n", {"type": "integer", "minimum": 1, "default": default_n}, "Items at most; the whole list when above."
    )
    segment = _query("segment", SEGMENT, "The popular list to serve: `all` or `<column>=<value>`.")
    fallback = _query(
        "segment", SEGMENT, "The popular list for a user without one; no user's attributes are looked up."
    )
    exclude = _query(
        "exclude", _array(ID, maxItems=MAX_EXCLUDED), "An item to leave out before `n` is counted; repeat it."
    )
    user = "A user's list; for a user without one, the popular list of the segment"
    item = "The items most like one item"
    lists = {"200": _ok("The list", "List")}
    return {
        "/v1/users/{user_id}/recommendations": _get(
            "user_recommendations", f"{user}.", lists, [_path("user_id"), n, fallback, exclude]
        ),
        "/v1/recommendations": _get(
            "recommendations", f"{user}; serves every valid id.", lists, [_id("user_id"), n, fallback, exclude]
        ),
        "/v1/items/{item_id}/similar": _get("item_similar", f"{item}.", lists, [_path("item_id"), n]),
        "/v1/similar": _get("similar", f"{item}; serves every valid id.", lists, [_id("item_id"), n]),
        "/v1/popular": _get("popular", "The popular list of a segment.", lists, [segment, n]),
        "/v1/release": _get("release", "The run that is served.", {"200": _ok("The release", "Release")}, [], ("404",)),
        "/livez": _probe("livez", "Whether the process answers; asks nothing of others.", "alive", ()),
        "/readyz": _probe("readyz", "Whether lists can be served: a pointer was loaded once.", "ready", ("503",)),
        "/metrics": _get(
            "metrics", "Counters of this process for Prometheus.", {"200": _TEXT}, [], ("400", "404", "503")
        ),
        "/openapi.json": _get("openapi", "This document.", {"200": _DOCUMENT}, [], ("400", "404", "503")),
    }


def _get(name: str, summary: str, answers: Json, parameters: list[Json], without: tuple[str, ...] = ()) -> Json:
    problems = {
        status: {"$ref": f"#/components/responses/Problem{status}"}
        for status in ("400", "404", "405", "413", "500", "503")
        if status not in without
    }
    return {
        "get": {"operationId": name, "summary": summary, "parameters": parameters, "responses": {**answers, **problems}}
    }


def _probe(name: str, summary: str, status: str, fails: tuple[str, ...]) -> Json:
    schema = _object({"status": {"const": status}})
    answer = {"description": summary, "headers": _HEADERS, "content": {"application/json": {"schema": schema}}}
    return _get(name, summary, {"200": answer}, [], tuple({"400", "404", "503"} - set(fails)))


def _query(name: str, schema: Json, description: str, required: bool = False) -> Json:
    return {"name": name, "in": "query", "required": required, "description": description, "schema": schema}


def _id(name: str) -> Json:
    return _query(name, ID, "Any valid id.", required=True)


def _path(name: str) -> Json:
    description = "An id without a slash, and not `.` or `..`; the query form serves every id."
    return {"name": name, "in": "path", "required": True, "description": description, "schema": ID}


def _ok(description: str, schema: str) -> Json:
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
    return {"description": description, "headers": _HEADERS, "content": content}


def _object(properties: Json) -> Json:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _array(items: Json, **limits: int) -> Json:
    return {"type": "array", "items": items, **limits}


def _schemas() -> Json:
    stale = {
        "type": "boolean",
        "description": "The pointer was not seen for a while, or names a run that can't be read.",
    }
    run_id = {"type": "string", "pattern": "^[a-z0-9_]{1,32}$"}
    item = {
        "item_id": ID,
        "score": {"type": "number", "description": "Comparable within one list only."},
        "sources": _array({"type": "string"}) | {"description": "The models that proposed the item."},
    }
    return {
        "Item": _object(item),
        "List": _object(
            {
                "run_id": run_id,
                "source": {"enum": ["personal", "similar", "popular"]},
                "age_seconds": {"type": "number", "minimum": 0, "description": "Since the list was scored."},
                "stale": stale,
                "items": _array({"$ref": "#/components/schemas/Item"}) | {"description": "Best first; may be empty."},
            }
        ),
        "Release": _object(
            {
                "run_id": run_id,
                "previous": {"type": ["string", "null"]},
                "sequence": {"type": "integer", "minimum": 1},
                "published_at": {"type": "string", "format": "date-time"},
                "stale": stale,
            }
        ),
        "Problem": _problem(),
    }


def _problem() -> Json:
    types = ["about:blank", *(f"urn:nightlist:problem:{name}" for name in TYPES)]
    return _object(
        {
            "type": {"enum": types},
            "title": {"type": "string"},
            "status": {"type": "integer", "minimum": 400, "maximum": 599},
            "detail": {"type": "string"},
            "instance": {"type": "string", "format": "uri-reference"},
        }
    )


def _problems() -> Json:
    meanings = {
        "400": ("An id or a parameter is not valid, or not known", {}),
        "404": ("There is no such list, or no such route", {}),
        "405": ("The service only reads", {"Allow": {"$ref": "#/components/headers/Allow"}}),
        "413": ("The request has a large body", {}),
        "500": ("A fault of the service", {}),
        "503": ("Nothing can be served now", {"Retry-After": {"$ref": "#/components/headers/Retry-After"}}),
    }
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {
        f"Problem{status}": {"description": meaning, "headers": _HEADERS | headers, "content": content}
        for status, (meaning, headers) in meanings.items()
    }


def _headers() -> Json:
    return {
        "Allow": {"required": True, "schema": {"type": "string"}},
        "Retry-After": {"required": True, "description": "Seconds.", "schema": {"type": "integer", "minimum": 1}},
        "Cache-Control": {"required": True, "schema": {"enum": ["no-store", "private, no-store"]}},
        "X-Content-Type-Options": {"required": True, "schema": {"const": "nosniff"}},
    }


_HEADERS: Json = {
    name: {"$ref": f"#/components/headers/{name}"} for name in ("Cache-Control", "X-Content-Type-Options")
}
_TEXT: Json = {
    "description": "Prometheus' text format",
    "headers": _HEADERS,
    "content": {"text/plain": {"schema": {"type": "string"}}},
}
_DOCUMENT: Json = {
    "description": "An OpenAPI document",
    "headers": _HEADERS,
    "content": {"application/json": {"schema": {"type": "object", "required": ["openapi", "info", "paths"]}}},
}
