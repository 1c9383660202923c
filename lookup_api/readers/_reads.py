"""Reads of several keys at once, each of which goes to a second replica where the first one is silent."""

import math
import time
from collections.abc import Callable, Iterable
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Protocol, TypeVar

from cassandra import OperationTimedOut
from cassandra.cluster import Session
from cassandra.query import PreparedStatement

Key = TypeVar("Key", bound=tuple[str, ...])
Reply = tuple[Any, ...] | Exception | None
"""What came of a read: its row, none, or the driver's error."""


class Asked(Protocol):
    """A read that was sent."""

    def send(self) -> bool:
        """Send it to the next node of its plan, too; False where there is none."""

    def end(self) -> None:
        """Nobody waits for it any more: it is sent to no other node."""


class Read(Protocol):
    """Finds one row by its key."""

    def ask(self, key: Any, tell: Callable[[Reply], None]) -> Asked:
        """Send it; `tell` is called once for each time that it is sent, maybe by another thread."""


class DriverRead:
    """A read by the driver as it is: with its retries, and prepared anew where a node has forgotten the statement."""

    def __init__(self, session: Session, statement: PreparedStatement, profile: str) -> None:
        self._ask = partial(session.execute_async, statement, timeout=None, execution_profile=profile)

    def ask(self, key: tuple[str, ...], tell: Callable[[Reply], None]) -> Asked:
        """See `Read`."""
        future = self._ask(key)
        future.add_callbacks(lambda rows: tell(next(iter(rows), None)), tell)
        return _Sent(future)


class _Sent:
    def __init__(self, future: Any) -> None:
        self._future = future

    def send(self) -> bool:
        # As the driver's own speculative execution does; False: there may be no node left.
        try:
            sent: bool = self._future.send_request(error_no_hosts=False)
        except ValueError:  # the driver is just taking the next node of this very plan, a generator, by itself
            return False
        return sent

    def end(self) -> None:
        """The driver's own retries are few."""


def read_all(read: Read, keys: Iterable[Key], hedge_seconds: float, until: float) -> tuple[dict[Key, Reply], int]:
    """The reply of each of `keys`, by `until`, a moment of `time.monotonic()`; and how many reads were hedged.

    The thread that asks watches the clock by itself: a timer of the driver's would wake its event loop for every read.
    """
    replies: SimpleQueue[tuple[Key, Reply]] = SimpleQueue()
    asked = {key: read.ask(key, partial(_tell, replies, key)) for key in keys}
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
            for key in open_:
                sent = asked[key].send()
                open_[key] += sent
                hedges += sent
            continue
        if key in open_:
            found[key] = reply
            open_[key] -= 1
            if not (isinstance(reply, Exception) and open_[key]):
                del open_[key]
    for each in asked.values():
        each.end()
    for key in asked.keys() - found.keys():
        found[key] = OperationTimedOut({"every node that was asked": "no answer in time"})
    return found, hedges


def _tell(replies: "SimpleQueue[tuple[Key, Reply]]", key: Key, reply: Reply) -> None:
    replies.put((key, reply))
