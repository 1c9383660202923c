"""The name of each request, and its line in the log, in which a user is a keyed hash."""

import hmac
import logging
import os
import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from random import getrandbits
from typing import Any

from flask import Response, g, request

from lookup_api.metrics import known

HEADER = "X-Request-Id"
SLOW_SECONDS = 0.25
"""From here on a request is worth a line of its own."""
LINES_A_SECOND = 10
"""Of those that are logged though not every request is: an outage of the store must not fill the disk."""

_WELL_FORMED = re.compile(r"[A-Za-z0-9._-]{1,64}")

log = logging.getLogger(__name__)


def request_id(environ: Mapping[str, Any]) -> str:
    """The request's own name where it has one that can be logged as it is, else a new one: told apart by it, not kept by it,
    so that the system need not be asked for its lot."""
    given = environ.get("HTTP_X_REQUEST_ID", "")
    return given if _WELL_FORMED.fullmatch(given) else f"{getrandbits(64):016x}"


class AccessLog:
    """Writes a line a request, or only of those that failed (5xx) or were slow."""

    def __init__(self, everything: bool, key: str, monotonic: Callable[[], float] = time.monotonic) -> None:
        """`key` makes the hashes of users; without one it is drawn by lot, so that they can't be joined with anything."""
        self._everything = everything
        self._key = key.encode() or os.urandom(32)
        self._monotonic = monotonic
        self._second = 0
        self._lines = 0
        self._left_out = 0

    def answered(self, rule: str, response: Response, seconds: float) -> None:
        """Log the current request, if it is one to log."""
        trouble = response.status_code >= 500 or seconds >= SLOW_SECONDS
        if not (self._everything or (trouble and self._has_room())):
            return
        method, milliseconds = known(request.method), round(seconds * 1000, 3)
        facts = {
            "rule": rule,
            "method": method,
            "status": response.status_code,
            "ms": milliseconds,
            "user": self._hash(_user()),
            **{name: g.get(name) for name in ("source", "run_id", "problem")},
            "left_out": self._left_out,
        }
        self._left_out = 0
        level = logging.WARNING if trouble else logging.INFO
        told = {name: value for name, value in facts.items() if value}
        log.log(level, "%s %s: %d in %g ms", method, rule, response.status_code, milliseconds, extra=told)

    def _hash(self, user: str | None) -> str | None:
        """16 hex digits of a user; the same for the same user and key."""
        return hmac.digest(self._key, user.encode("utf-8", "replace"), "sha256").hex()[:16] if user else None

    def _has_room(self) -> bool:
        """Whether this second has room for one more line. Threads may slip in one or two: no lock for that."""
        second = int(self._monotonic())
        if second != self._second:
            self._second, self._lines = second, 0
        self._lines += 1
        if self._lines > LINES_A_SECOND:
            self._left_out += 1
            return False
        return True


def _user() -> str | None:
    """The user whom the path or the query names; nobody, where the query is none."""
    with suppress(ValueError):  # bytes that are no text
        return (request.view_args or {}).get("user_id") or request.args.get("user_id")
    return None
