"""The body of a batch lookup, read within bounds and checked member by member. What is wrong is named."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from flask import request

from lookup_api.parameters import MAX_EXCLUDED, Query, an_id
from lookup_api.problems import ProblemError, shown
from schemas.lists import ALL
from schemas.settings import nearest

MAX_USERS = 100
MAX_BATCH_BODY = 512 * 1024
"""Bytes: of a hundred ids and a hundred exclusions, each as long as can be, and escaped."""
MEMBERS = ("user_ids", "n", "segment", "exclude")


@dataclass(frozen=True, slots=True)
class Batch:
    """Whose lists are asked for, in which order, and how each is cut."""

    user_ids: tuple[str, ...]
    query: Query


def read_batch(default_n: int) -> Batch:
    """The current request's body. Raises ProblemError."""
    asked = _object(_body())
    for name in asked:
        if name not in MEMBERS:
            raise ProblemError("unknown-parameter", f"unknown member {shown(name)}{nearest(name[:60], MEMBERS)}")
    if "user_ids" not in asked:
        raise ProblemError("invalid-parameter", "user_ids is missing: an array of ids")
    users = _ids("user_ids", asked["user_ids"], MAX_USERS)
    if not users:
        raise ProblemError("invalid-parameter", f"user_ids is empty; it takes 1 to {MAX_USERS} ids")
    query = Query(
        n=_count(asked.get("n", default_n)),
        segment=_id("segment", asked.get("segment", ALL)),
        exclude=frozenset(_ids("exclude", asked.get("exclude", []), MAX_EXCLUDED)),
    )
    return Batch(users, query)


def _body() -> str:
    """The body's text. Its length has to be announced, so that it is known to be bearable before it is read."""
    if request.mimetype != "application/json" or request.headers.get("Content-Encoding"):
        told = shown(request.headers.get("Content-Type", ""))
        raise ProblemError("unsupported-media-type", f"a body of {told}; it has to be plain application/json")
    if request.content_length is None:
        raise ProblemError("length-required", "the body's length is not announced: send Content-Length")
    try:
        return _bytes(request.content_length).decode("utf-8")
    except UnicodeDecodeError:
        raise ProblemError("invalid-body", "the body is not valid UTF-8") from None


def _bytes(length: int) -> bytes:
    """So many bytes, or fewer where no more come: a server's `read` may hand them out in parts."""
    parts = []
    while length > 0 and (part := request.stream.read(length)):
        parts.append(part)
        length -= len(part)
    return b"".join(parts)


def _object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text, object_pairs_hook=_members, parse_constant=_no_number)
    except RecursionError:
        raise ProblemError("invalid-body", "the body is nested too deeply") from None
    except ValueError as error:
        raise ProblemError("invalid-body", f"the body is no valid JSON: {str(error)[:100]}") from None
    if not isinstance(found, dict):
        raise ProblemError("invalid-body", f"the body is {_kind(found)}; it has to be an object with user_ids")
    return found


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise ProblemError("invalid-parameter", "a member is given more than once; each takes one value")
    return members


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _count(value: Any) -> int:
    """`n`: 1 at least; 20.0 is a whole number, too, since JSON has one kind of number."""
    whole = int(value) if isinstance(value, float) and value.is_integer() else value
    if not isinstance(whole, int) or isinstance(whole, bool) or whole < 1:
        raise ProblemError("invalid-parameter", f"n = {shown(json.dumps(value))} is not a whole number of 1 or more")
    return whole


def _id(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ProblemError("invalid-parameter", f"{name} holds {_kind(value)}; an id is a string")
    return an_id(name, value)


def _ids(name: str, values: Any, most: int) -> tuple[str, ...]:
    if not isinstance(values, list):
        raise ProblemError("invalid-parameter", f"{name} is {_kind(values)}; it has to be an array of ids")
    if len(values) > most:
        raise ProblemError("invalid-parameter", f"{name} holds {len(values)} ids; at most {most} are allowed")
    return tuple(_id(name, value) for value in values)


def _kind(value: Any) -> str:
    kinds: dict[Callable[..., Any], str] = {dict: "an object", list: "an array", str: "a string", bool: "true or false"}
    return "null" if value is None else kinds.get(type(value), "a number")
