"""Reads of Cassandra, over a scripted driver: who is asked, when, and what counts as the answer; and how requests are sent."""

import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from cassandra import InvalidRequest, OperationTimedOut, ReadFailure, ReadTimeout
from cassandra.io import libevreactor
from hypothesis import given
from hypothesis import strategies as st

from lookup_api.readers._cassandra import Connection
from lookup_api.readers._libev import DirectConnection
from lookup_api.readers._reads import DriverRead, read_all
from schemas.settings import CassandraSettings

ROW = ("row",)
BROKEN = ReadTimeout("broken")
HEDGE, TIME = 0.5, 3.0

Step = tuple[float, Any]
"""When a node answers, and what; None as a time: never."""


class Asked:
    """A read that was sent: its nodes answer as they are told to, each once it is asked."""

    def __init__(self, steps: list[Step | None]) -> None:
        self.steps = steps
        self.tell: tuple[Callable[[Any], None], Callable[[Any], None]] | None = None
        self.asked = 0

    def add_callbacks(self, callback: Callable[[Any], None], errback: Callable[[Any], None]) -> None:
        self.tell = callback, errback
        self.send_request()

    def send_request(self, error_no_hosts: bool = True) -> bool:
        if self.asked == len(self.steps):
            return False
        step = self.steps[self.asked]
        self.asked += 1
        if step is not None:
            threading.Timer(step[0], self._answer, [step[1]]).start()
        return True

    def _answer(self, reply: Any) -> None:
        assert self.tell
        self.tell[isinstance(reply, Exception)](reply)


def read(nodes: dict[str, list[Step | None]], hedge: float = HEDGE) -> tuple[dict[Any, Any], int, float]:
    """The replies, how many were hedged, and the seconds it took; the nodes of each key's plan answer as scripted."""
    session = SimpleNamespace(execute_async=lambda statement, key, **_: Asked(nodes[key[0]]))
    began = time.monotonic()
    read = DriverRead(session, None, "one")  # type: ignore[arg-type]  # scripted
    found, hedges = read_all(read, [(name,) for name in nodes], hedge, began + TIME)
    return {key[0]: reply for key, reply in found.items()}, hedges, time.monotonic() - began


def test_a_quick_answer_is_not_hedged() -> None:
    assert read({"u": [(0.0, [ROW]), (0.0, [("other",)])], "v": [(0.0, [])]})[:2] == ({"u": ROW, "v": None}, 0)


def test_a_silent_replica_costs_the_hedge() -> None:
    """Only the keys that wait are asked for again; the first answer counts, whoever gives it."""
    found, hedges, seconds = read({"u": [None, (0.0, [ROW])], "v": [(0.0, [ROW])], "w": [(1.5, [ROW]), None]})

    assert (found, hedges) == ({"u": ROW, "v": ROW, "w": ROW}, 2)
    assert HEDGE < seconds < TIME


def test_an_error_waits_for_the_other_replica() -> None:
    """Where a hedge is under way; the error is the answer only when nobody has a better one."""
    found, hedges, _ = read({"u": [(1.0, BROKEN), (1.0, [ROW])], "v": [(1.0, BROKEN), (0.0, BROKEN)]})

    assert (found, hedges) == ({"u": ROW, "v": BROKEN}, 2)


def test_an_error_at_once_is_not_waited_on() -> None:
    late = 0.8 * TIME
    found, hedges, seconds = read({"u": [(0.0, BROKEN), (0.0, [ROW])]}, late)

    assert (found, hedges) == ({"u": BROKEN}, 0)
    assert seconds < late


@pytest.mark.parametrize("hedge", [HEDGE, 0.0], ids=["hedged", "never"])
def test_nobody_waits_past_the_end(hedge: float) -> None:
    """Neither for a single node that is silent, which has nobody to hedge with, nor for two."""
    found, hedges, seconds = read({"u": [None], "v": [None, None], "w": [(0.0, [ROW])]}, hedge)

    assert found.pop("w") == ROW
    assert {type(reply) for reply in found.values()} == {OperationTimedOut}
    assert hedges == (1 if hedge else 0)
    assert TIME <= seconds < 1.5 * TIME


def test_a_plan_that_the_driver_is_walking_is_left_to_it() -> None:
    """It tries the next node by itself at that moment, and a generator can't be asked by two."""

    class Walked(Asked):
        def send_request(self, error_no_hosts: bool = True) -> bool:
            if self.asked:
                raise ValueError("generator already executing")
            return super().send_request(error_no_hosts)

    session = SimpleNamespace(execute_async=lambda statement, key, **_: Walked([(2 * HEDGE, [ROW])]))
    read = DriverRead(session, None, "one")  # type: ignore[arg-type]  # scripted

    assert read_all(read, [("u",)], HEDGE, time.monotonic() + TIME) == ({("u",): ROW}, 0)


def test_what_nobody_waits_for_is_ended() -> None:
    """What was answered, and what was not."""
    ended: list[str] = []

    class Scripted:
        def ask(self, key: tuple[str], tell: Callable[[Any], None]) -> Any:
            if key == ("u",):
                tell(ROW)
            return SimpleNamespace(send=lambda: False, end=lambda: ended.append(key[0]))

    read_all(Scripted(), [("u",), ("v",)], 0.0, time.monotonic() + HEDGE)

    assert ended == ["u", "v"]


def test_what_comes_too_late_is_nobodys() -> None:
    """An answer after the end is not waited for, and hurts nobody."""
    assert isinstance(read({"u": [(TIME + 1, [ROW])]}, 0.0)[0]["u"], OperationTimedOut)
    time.sleep(1.5)


class Nodes:
    """A session whose nodes answer for a table that they know, two pages of it, and say what they say otherwise."""

    def __init__(self, says: dict[str | None, Exception | None]) -> None:
        self.says = says
        self.cluster = SimpleNamespace(metadata=SimpleNamespace(all_hosts=lambda: [host for host in says if host]))

    def execute(
        self, statement: str, values: Any, execution_profile: Any, host: str | None, paging_state: bytes | None
    ) -> Any:
        if error := self.says[host]:
            raise error
        rows = [f"{statement} by {host}, {paging_state!r}"]
        return SimpleNamespace(current_rows=rows, has_more_pages=paging_state is None, paging_state=b"1")

    def connection(self) -> Connection:
        connection = Connection(CassandraSettings())
        connection._session = self
        return connection


ABSENT, FAILED = InvalidRequest("table lists_x does not exist"), ReadFailure("INCOMPATIBLE_SCHEMA")


def test_a_table_that_one_node_does_not_know_is_read_from_another() -> None:
    """One that was away when it was made; and where no node knows it, or the others are away, that is what is told."""
    nodes = Nodes({None: ABSENT, "back": ABSENT, "away": OperationTimedOut(), "third": ABSENT})

    with pytest.raises(InvalidRequest, match="does not exist"):
        next(nodes.connection().pages("SELECT"))
    nodes.says["third"] = None
    assert list(nodes.connection().pages("SELECT")) == [["SELECT by third, None"], ["SELECT by third, b'1'"]]


def test_a_scan_waits_for_a_node_that_learns_of_the_table() -> None:
    """A quorum that it belongs to fails meanwhile, whichever node leads; the pages that were read are not read again."""
    nodes = Nodes({None: None, "back": ABSENT, "other": FAILED})
    pages = nodes.connection().pages("SELECT")

    first = next(pages)
    nodes.says[None] = FAILED
    threading.Timer(1.5, nodes.says.update, [{None: None}]).start()

    assert [first, *pages] == [["SELECT by None, None"], ["SELECT by None, b'1'"]]


def test_a_node_that_never_learns_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table is there, so that "does not exist" would be wrong to say, although a node says it."""
    monkeypatch.setattr("lookup_api.readers._cassandra.LEARN_SECONDS", 0.0)

    with pytest.raises(ReadFailure):
        next(Nodes({None: ABSENT, "back": ABSENT, "other": FAILED}).connection().pages("SELECT"))


class Loop:
    """The driver's event loop as far as a push knows it: it is woken, and then sends what waits."""

    def __init__(self) -> None:
        self.woken = 0

    def notify(self) -> None:
        self.woken += 1


def connection(wire: socket.socket) -> DirectConnection:
    """A connection that is connected, and not shaken hands with."""
    made = DirectConnection.__new__(DirectConnection)
    made.deque, made._deque_lock, made._socket, made.ssl_context = deque(), threading.Lock(), wire, None
    made._write_watcher_is_active, made._socket_writable = False, True
    wire.setblocking(False)
    return made


@given(st.lists(st.integers(1, 300_000), min_size=1, max_size=12), st.data())
def test_requests_arrive_whole_and_in_order(sizes: list[int], data: st.DataObject) -> None:
    """However little the socket takes at once, and whenever the loop comes to what waits."""
    near, far = socket.socketpair()
    with near, far, pytest.MonkeyPatch.context() as patch:
        loop = Loop()
        patch.setattr(libevreactor, "_global_loop", loop)
        sender = connection(near)
        sent = [bytes([number]) * size for number, size in enumerate(sizes)]
        received = b""
        for request in sent:
            sender.push(request)
            assert loop.woken or not sender.deque
            if data.draw(st.booleans()):
                received += far.recv(100_000)
                sender.handle_write(None, 0)
        far.settimeout(5)
        while len(received) < sum(sizes):
            sender.handle_write(None, 0)
            received += far.recv(1_000_000)

        assert received == b"".join(sent)


def test_a_request_that_the_socket_takes_wakes_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """That is what it is for. Over TLS, and while the loop is at it, the loop sends."""
    loop = Loop()
    monkeypatch.setattr(libevreactor, "_global_loop", loop)
    near, far = socket.socketpair()
    with near, far:
        sender = connection(near)
        sender.push(b"one")
        assert (loop.woken, far.recv(10)) == (0, b"one")
        sender.ssl_context = object()
        sender.push(b"two")
        sender.ssl_context = None
        sender.push(b"three")
        assert (loop.woken, list(sender.deque)) == (2, [b"two", b"three"])
        sender.deque.clear()
        sender._write_watcher_is_active = True
        sender.push(b"four")
        assert list(sender.deque) == [b"four"]


def test_a_broken_socket_is_left_to_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """It finds out what is wrong, and tells every request of the connection."""
    loop = Loop()
    monkeypatch.setattr(libevreactor, "_global_loop", loop)
    near, far = socket.socketpair()
    far.close()
    sender = connection(near)
    sender.push(b"one")
    near.close()

    assert (loop.woken, list(sender.deque)) == (1, [b"one"])
