"""Answers that hold lists: their JSON, straight from the row; their ETag; and when they travel compressed.

A run never changes, so a list is told by its run, the URL that it was asked by and the source that was found; only
`age_seconds` goes on by itself. So the ETag is a weak one: "what you have is what is served; add the time since you got it".
"""

import gzip
import math
import zlib
from collections.abc import Iterable
from datetime import datetime
from functools import lru_cache
from itertools import islice
from json import JSONEncoder
from json.encoder import encode_basestring

from flask import request

from lookup_api.parameters import Query
from lookup_api.responses import Answer
from schemas.lists import Kind, ServedList
from schemas.runs import Release

SOURCES: dict[Kind, str] = {"user": "personal", "similar": "similar", "popular": "popular"}
"""What an answer calls each kind of list."""
COMPRESSED_FROM = 2_800
"""Bytes of a body that two packets carry. Twenty items have 1,500 and stay as they are; of fifty, 19 microseconds take away
2,800 of 3,800 bytes, of a batch of a hundred lists 0.75 ms take away 115 of 153 kB."""
LEVEL = 1
"""gzip's quickest: level 6 is 5 % smaller on a batch, and takes 3.5 times as long."""

REVALIDATED = {"Cache-Control": "private, no-cache"}
"""Kept by the client alone, and never used without asking: only so is an ETag of any use."""
VARY = "Accept-Encoding, Authorization"
"""What of a request decides an answer besides its URL: a client that asks for many users keeps each apart."""

encode = JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode


def json_answer(text: str) -> Answer:
    """JSON that is not cached."""
    return Answer(text.encode(), content_type="application/json")


def list_answer(text: str, tag: str) -> Answer:
    """The JSON of a list, which a client may keep and ask about."""
    return _compressible(text, {"ETag": tag, **REVALIDATED})


def lists_answer(text: str) -> Answer:
    """The JSON of many users' lists, which nobody keeps."""
    return _compressible(text, {})


class Tags:
    """The ETags that the current request's answer may have, one for each source of its list."""

    def __init__(self, n: int, stale: bool) -> None:
        environ = request.environ
        asked = f"{environ['PATH_INFO']}?{environ['QUERY_STRING']}#{n}"
        self._end = f'{zlib.crc32(asked.encode()):08x}{"-stale" if stale else ""}"'
        self._known = environ.get("HTTP_IF_NONE_MATCH")

    def of(self, live: Release, source: str) -> str:
        """The ETag of the list from `source`."""
        return f'W/"{live.run_id}-{source}-{self._end}'

    def not_modified(self, live: Release, sources: Iterable[str], exists: bool = False) -> Answer | None:
        """304 where the client has one of these lists; what it calls `*` is any list that `exists`. Else None."""
        if not self._known:
            return None
        named = {tag.strip().removeprefix("W/") for tag in self._known.split(",")}
        for tag in (self.of(live, source) for source in sources):
            if tag.removeprefix("W/") in named or (exists and "*" in named):
                return Answer(status=304, headers={"ETag": tag, "Vary": VARY, **REVALIDATED})
        return None


def json_of(found: ServedList, query: Query, now: datetime) -> tuple[str, int]:
    """The members of an answer that are the list's own, as JSON without the braces, and how many items it has."""
    rows: Iterable[tuple[str, float, str]] = zip(found.items, found.scores, found.sources, strict=True)
    if query.exclude:
        rows = [row for row in rows if row[0] not in query.exclude]
    items = [
        f'{{"item_id":{encode_basestring(item)},"score":{score!r},{_sources(sources)}}}'
        for item, score, sources in islice(rows, min(query.n, len(found.items)))
    ]
    if not math.isfinite(sum(found.scores)):
        raise ValueError(f"the list of {found.kind} has a score that is no number")
    age = max(0.0, round((now - found.scored_at).total_seconds(), 3))
    source = SOURCES[found.kind]
    return f'"source":"{source}","age_seconds":{age!r},"items":[{",".join(items)}]', len(items)


@lru_cache(1024)
def _sources(joined: str) -> str:
    """The models that proposed an item; a night has few combinations of them."""
    return f'"sources":{encode(joined.split("+") if joined else [])}'


def _compressible(text: str, headers: dict[str, str]) -> Answer:
    """JSON, compressed where the client takes it and it pays."""
    body = text.encode()
    headers["Vary"] = VARY
    if len(body) >= COMPRESSED_FROM and _takes_gzip():
        body, headers["Content-Encoding"] = gzip.compress(body, LEVEL, mtime=0), "gzip"
    return Answer(body, headers=headers, content_type="application/json")


def _takes_gzip() -> bool:
    """Whether the request says so; it may also say how little it likes it."""
    return "gzip" in request.environ.get("HTTP_ACCEPT_ENCODING", "") and request.accept_encodings["gzip"] > 0
