"""What a request asks for, checked: ids, `n`, `segment`, `exclude`. What is wrong is named, with a 400."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import parse_qsl

from flask.globals import request_ctx

from lookup_api.problems import ProblemError, shown
from schemas.ids import problem_of
from schemas.lists import ALL
from schemas.settings import nearest

MAX_EXCLUDED = 100
MAX_FIELDS = MAX_EXCLUDED + 50
SHORT = 40
"""Bytes of a query that is remembered: all callers ask for much the same `n` and `segment`."""
REPEATED = frozenset({"exclude"})
KNOWN: Mapping[str, tuple[str, ...]] = {
    "/v1/users/<id:user_id>/recommendations": ("n", "segment", "exclude"),
    "/v1/recommendations": ("user_id", "n", "segment", "exclude"),
    "/v1/recommendations:batch": (),
    "/v1/items/<id:item_id>/similar": ("n",),
    "/v1/similar": ("item_id", "n"),
    "/v1/popular": ("segment", "n"),
    "/v1/release": (),
}
"""The query parameters of each route that has any to check."""

_WHOLE = re.compile(r"0*([0-9]{1,18})")
_DIGITS = re.compile(r"[0-9]+")


@dataclass(frozen=True, slots=True)
class Query:
    """The query of one request, every value checked; `user_id` and `item_id` are empty where the path names the id."""

    n: int
    segment: str = ALL
    exclude: frozenset[str] = frozenset()
    user_id: str = ""
    item_id: str = ""


def read_query(default_n: int) -> Query:
    """The current request's query. Raises ProblemError."""
    asked = request_ctx.request
    known = KNOWN[asked.url_rule.rule] if asked.url_rule else ()
    read = _remembered if len(asked.query_string) <= SHORT else _read
    return read(asked.query_string, known, default_n)


def _read(query: bytes, known: tuple[str, ...], default_n: int) -> Query:
    fields = _fields(query, known)
    ids = {name: an_id(name, _required(fields, name)) for name in ("user_id", "item_id") if name in known}
    return Query(
        n=_count(fields["n"][0]) if "n" in fields else default_n,
        segment=an_id("segment", fields["segment"][0]) if "segment" in fields else ALL,
        exclude=_excluded(fields.get("exclude", [])),
        **ids,
    )


_remembered = lru_cache(1024)(_read)


def an_id(name: str, value: str) -> str:
    """`value`, if it can be an id. Raises ProblemError."""
    if (wrong := problem_of(value)) is not None:
        raise ProblemError("invalid-id", f"{name} {shown(value)} {wrong}")
    return value


def _fields(query: bytes, known: tuple[str, ...]) -> dict[str, list[str]]:
    fields: dict[str, list[str]] = {}
    for name, value in _pairs(query):
        if name not in known:
            raise ProblemError("unknown-parameter", f"unknown parameter {shown(name)}{_hint(name, known)}")
        if name in fields and name not in REPEATED:
            raise ProblemError("invalid-parameter", f"{name} is given more than once; it takes one value")
        fields.setdefault(name, []).append(value)
    return fields


def _hint(name: str, known: tuple[str, ...]) -> str:
    return nearest(name[:60], known) if known else "; this route takes none"


def _pairs(query: bytes) -> list[tuple[str, str]]:
    if not query:
        return []
    try:
        # Strict: a replacement character for bytes that are no UTF-8 would make one id of many.
        text = query.decode("utf-8")
        return parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=MAX_FIELDS)
    except UnicodeDecodeError:
        raise ProblemError("invalid-parameter", "the query is not valid UTF-8 where it is decoded") from None
    except ValueError:
        raise ProblemError("invalid-parameter", f"the query has more than {MAX_FIELDS} parameters") from None


def _required(fields: Mapping[str, list[str]], name: str) -> str:
    if name not in fields:
        raise ProblemError("invalid-parameter", f"{name} is missing: ?{name}=...")
    return fields[name][0]


def _count(value: str) -> int:
    """`n`: 1 at least; what has more digits than any list has items is cut down to eighteen of them."""
    if whole := _WHOLE.fullmatch(value):
        count = int(whole[1])
    elif _DIGITS.fullmatch(value):
        count = 10**18
    else:
        count = 0
    if count < 1:
        raise ProblemError("invalid-parameter", f"n = {shown(value)} is not a whole number of 1 or more")
    return count


def _excluded(values: list[str]) -> frozenset[str]:
    if len(values) > MAX_EXCLUDED:
        raise ProblemError(
            "invalid-parameter", f"exclude is given {len(values)} times; at most {MAX_EXCLUDED} are allowed"
        )
    return frozenset(an_id("exclude", value) for value in values)
