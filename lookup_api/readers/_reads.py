"""Reads of several keys at once, each of which goes to a second replica where the first one is silent."""

import math
import time
from collections.abc import Iterable
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from cassandra import OperationTimedOut
from cassandra.cluster import Session
from cassandra.query import PreparedStatement

Key = TypeVar("Key", bound=tuple[str, ...])
Reply = tuple[Any, ...] | Exception | None
"""What came of a read: its row, none, or the driver's error."""


def read_all(
    session: Session,
    statement: PreparedStatement,
    keys: Iterable[Key],
    profile: str,
    hedge_seconds: float,
    until: float,
) -> tuple[dict[Key, Reply], int]:
    """The reply of each of `keys`, by `until`, a moment of `time.monotonic()`; and how many reads were hedged.

    The thread that asks watches the clock by itself: a timer of the driver's would wake its event loop for every read.
    """
    replies: SimpleQueue[tuple[Key, Any]] = SimpleQueue()
    asked = {key: session.execute_async(statement, key, timeout=None, execution_profile=profile) for key in keys}
    for key, future in asked.items():
        tell = partial(_tell, replies, key)
        future.add_callbacks(tell, tell)
    found: dict[Key, Reply] = {}
    open_ = dict.fromkeys(asked, 1)
    hedge_at = time.monotonic() + hedge_seconds if hedge_seconds else math.inf
    hedges = 0
    while open_:
        try:
            key, reply = replies.get(timeout=max(0.0, min(hedge_at, until) - time.monotonic()))
        except Empty:
            if hedge_at >= until:
                break
            hedge_at = math.inf
            for key in open_:  # as the driver's own speculative execution does: the next node of the read's plan
                sent = asked[key].send_request(error_no_hosts=False)  # False: there is none
                open_[key] += sent
                hedges += sent
            continue
        if key in open_:
            failed = isinstance(reply, Exception)
            found[key] = reply if failed else next(iter(reply), None)
            open_[key] -= 1
            if not (failed and open_[key]):
                del open_[key]
    for key in asked.keys() - found.keys():
        found[key] = OperationTimedOut({"every node that was asked": "no answer in time"})
    return found, hedges


def _tell(replies: "SimpleQueue[tuple[Key, Any]]", key: Key, reply: Any) -> None:
    replies.put((key, reply))
