"""The API as an OpenAPI 3.1 document: what `/openapi.json` answers, and what tests hold every answer against."""

from typing import Any

from lookup_api.answers import VARY
from lookup_api.auth import ANY_LISTS, METRICS, OWN_LISTS, PUBLIC, Policy
from lookup_api.batch import MAX_USERS
from lookup_api.parameters import MAX_EXCLUDED
from lookup_api.problems import MEDIA_TYPE, TYPES
from schemas.ids import MAX_ID_BYTES

Json = dict[str, Any]

ID: Json = {
    "type": "string",
    "minLength": 1,
    "maxLength": MAX_ID_BYTES,
    "pattern": r"^[^\u0000-\u001f\u007f-\u009f]+$",
    "description": f"UTF-8 text of 1 to {MAX_ID_BYTES} bytes without control characters.",
}
SCHEMES: Json = {
    "key": {
        "type": "http",
        "scheme": "bearer",
        "description": "An API key, made by `nightlist keys create`; each operation says which scope it needs.",
    },
    "token": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "JWT",
        "description": "A user's token; its `sub` is the user whose list may be read.",
    },
}
POLICIES = {
    "/v1/items/{item_id}/similar": ANY_LISTS,
    "/v1/similar": ANY_LISTS,
    "/v1/popular": ANY_LISTS,
    "/v1/release": ANY_LISTS,
    "/livez": PUBLIC,
    "/readyz": PUBLIC,
    "/metrics": METRICS,
    "/openapi.json": PUBLIC,
}
"""Who may ask; for what is not named here, OWN_LISTS. A test holds it against what the routes declare."""
SECURITY: dict[Policy, list[Json]] = {
    PUBLIC: [],
    ANY_LISTS: [{"key": ["lists:read"]}, {"token": []}],
    OWN_LISTS: [{"key": ["lists:read"]}, {"token": []}],
    METRICS: [{"key": ["metrics:read"]}],
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
        "paths": {path: _secured(item, POLICIES.get(path, OWN_LISTS)) for path, item in _paths(default_n).items()},
        "components": {
            "schemas": _schemas(default_n),
            "responses": _problems(),
            "headers": _headers(),
            "securitySchemes": SCHEMES,
        },
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
    lists = {"200": _ok("The list", "List", _KEPT), "304": _UNCHANGED}
    return {
        "/v1/users/{user_id}/recommendations": _get(
            "user_recommendations", f"{user}.", lists, [_path("user_id"), n, fallback, exclude]
        ),
        "/v1/recommendations": _get(
            "recommendations", f"{user}; serves every valid id.", lists, [_id("user_id"), n, fallback, exclude]
        ),
        "/v1/recommendations:batch": _batch(),
        "/v1/items/{item_id}/similar": _get("item_similar", f"{item}.", lists, [_path("item_id"), n]),
        "/v1/similar": _get("similar", f"{item}; serves every valid id.", lists, [_id("item_id"), n]),
        "/v1/popular": _get("popular", "The popular list of a segment.", lists, [segment, n]),
        "/v1/release": _get("release", "The run that is served.", {"200": _ok("The release", "Release")}, [], ("404",)),
        "/livez": _probe("livez", "Whether the process answers; asks nothing of others.", "alive", ()),
        "/readyz": _probe("readyz", "Whether lists can be served: a pointer was loaded once.", "ready", ("503",)),
        "/metrics": _get(
            "metrics",
            "Counters for Prometheus, of every worker of the server.",
            {"200": _TEXT},
            [],
            ("400", "404", "503"),
        ),
        "/openapi.json": _get("openapi", "This document.", {"200": _DOCUMENT}, [], ("400", "404", "503")),
    }


def _get(name: str, summary: str, answers: Json, parameters: list[Json], without: tuple[str, ...] = ()) -> Json:
    problems = _problems_of({"400", "404", "405", "413", "500", "503"} - set(without))
    return {
        "get": {"operationId": name, "summary": summary, "parameters": parameters, "responses": {**answers, **problems}}
    }


def _batch() -> Json:
    summary = "The lists of many users, all of one run, in the order asked for; the popular list for users without one."
    body = {"required": True, "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Users"}}}}
    problems = _problems_of({"400", "404", "405", "411", "413", "415", "500", "503"})
    answers = {"200": _ok("The lists", "Lists", {**_HEADERS, **_MAY_BE_COMPRESSED}), **problems}
    return {
        "post": {"operationId": "batch", "summary": summary, "requestBody": body, "responses": answers},
    }


def _problems_of(statuses: set[str]) -> Json:
    return {status: {"$ref": f"#/components/responses/Problem{status}"} for status in sorted(statuses)}


def _secured(item: Json, policy: Policy) -> Json:
    """The operations of one path, with who may ask and how others are refused."""
    refused = () if policy is PUBLIC else ("401", "403")
    problems = {status: {"$ref": f"#/components/responses/Problem{status}"} for status in refused}
    return {
        method: {**operation, "security": SECURITY[policy], "responses": {**operation["responses"], **problems}}
        for method, operation in item.items()
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


def _ok(description: str, schema: str, headers: Json | None = None) -> Json:
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
    return {"description": description, "headers": headers or _HEADERS, "content": content}


def _object(properties: Json) -> Json:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _array(items: Json, **limits: int) -> Json:
    return {"type": "array", "items": items, **limits}


def _schemas(default_n: int) -> Json:
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
    members = {
        "source": {"enum": ["personal", "similar", "popular"]},
        "age_seconds": {"type": "number", "minimum": 0, "description": "Since the list was scored."},
        "items": _array({"$ref": "#/components/schemas/Item"}) | {"description": "Best first; may be empty."},
    }
    return {
        "Item": _object(item),
        "List": _object({"run_id": run_id, "stale": stale, **members}),
        "Lists": _object({"run_id": run_id, "stale": stale, "lists": _array(_object({"user_id": ID, **members}))}),
        "Users": _users(default_n),
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


def _users(default_n: int) -> Json:
    properties = {
        "user_ids": _array(ID, minItems=1, maxItems=MAX_USERS)
        | {"description": "One that comes twice is answered twice."},
        "n": {"type": "integer", "minimum": 1, "default": default_n, "description": "Items at most, of each list."},
        "segment": SEGMENT | {"description": "The popular list for users without one."},
        "exclude": _array(ID, maxItems=MAX_EXCLUDED) | {"description": "Items to leave out of every list."},
    }
    return _object(properties) | {"required": ["user_ids"]}


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
        "400": ("An id, a parameter or a body is not valid, or not known", {}),
        "401": ("It is not known who asks", {"WWW-Authenticate": {"$ref": "#/components/headers/WWW-Authenticate"}}),
        "403": ("Who asks may not have this, whether it is there or not", {}),
        "404": ("There is no such list, or no such route", {}),
        "405": ("Another method", {"Allow": {"$ref": "#/components/headers/Allow"}}),
        "411": ("The request does not say how long its body is", {}),
        "413": ("The request has a large body", {}),
        "415": ("The body is not JSON", {}),
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
        "Revalidated": {
            "required": True,
            "description": "May be kept, and is not used without asking whether it changed.",
            "schema": {"const": "private, no-cache"},
        },
        "ETag": {
            "required": True,
            "description": "Names the run and the list. The list is the same while it is; `age_seconds` goes on with the time.",
            "schema": {"type": "string", "pattern": '^W/"[!#-~]+"$'},
        },
        "Vary": {"required": True, "schema": {"const": VARY}},
        "Content-Encoding": {"required": False, "schema": {"const": "gzip"}},
        "Content-Security-Policy": {"required": True, "schema": {"type": "string", "pattern": "^default-src 'none'"}},
        "Referrer-Policy": {"required": True, "schema": {"const": "no-referrer"}},
        "WWW-Authenticate": {"required": True, "schema": {"type": "string", "pattern": "^Bearer "}},
        "X-Request-Id": {
            "required": True,
            "description": "The request's own, where it had one of this form.",
            "schema": {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,64}$"},
        },
    }


_HEADERS: Json = {
    name: {"$ref": f"#/components/headers/{name}"}
    for name in (
        "Cache-Control",
        "Content-Security-Policy",
        "Referrer-Policy",
        "X-Content-Type-Options",
        "X-Request-Id",
    )
}
_MAY_BE_COMPRESSED: Json = {name: {"$ref": f"#/components/headers/{name}"} for name in ("Vary", "Content-Encoding")}
_KEPT: Json = {
    **_HEADERS,
    **_MAY_BE_COMPRESSED,
    "ETag": {"$ref": "#/components/headers/ETag"},
    "Cache-Control": {"$ref": "#/components/headers/Revalidated"},
}
_UNCHANGED: Json = {
    "description": "The list that `If-None-Match` names is still what is served, older by the time since then",
    "headers": _KEPT,
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
