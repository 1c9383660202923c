"""The client itself: one event loop, many kept-alive connections, and just as much HTTP/1.1 as it takes."""

import asyncio
import json
import random
import signal
import time
from collections import Counter, deque
from contextlib import suppress
from typing import Any, TextIO

from tests.load import NO_ANSWER, Answer, milliseconds, percentile, read_answer

KEPT_WRONG = 10
SWEEP_SECONDS = 0.1


class Connection(asyncio.Protocol):
    """One kept-alive connection, with one request at a time."""

    def __init__(self, load: "Load") -> None:
        self.load = load
        self.transport: asyncio.Transport | None = None
        self.asked: tuple[float, str] | None = None
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.load.is_free(self)

    def ask(self, at: float, user: str) -> None:
        """Send a request that is due at `at`."""
        assert self.transport
        self.asked, self._received = (at, user), b""
        self.transport.write(self.load.request(user))

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, found, body = self._received.partition(b"\r\n\r\n")
        if not found or len(body) < _length(head) or self.asked is None:
            return
        at, user = self.asked
        self.asked = None
        status = int(head[9:12])
        self.load.answered(read_answer(at, time.monotonic() - at, user, status, head, body, self.load.marked))
        if b"connection: close" in head.lower() and self.transport:
            self.transport.close()
        else:
            self.load.is_free(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.fail(type(exc).__name__ if exc else "closed")
        self.load.is_lost(self)

    def fail(self, why: str) -> None:
        """No answer came, or will come."""
        if self.asked:
            at, user = self.asked
            self.asked = None
            self.load.answered(Answer(at, time.monotonic() - at, NO_ANSWER, why, user))

    def give_up(self, due_before: float) -> None:
        """Cut the connection where its request is older than that."""
        if self.asked and self.asked[0] < due_before and self.transport:
            self.fail("timeout")
            self.transport.abort()


def _length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    raise ValueError(f"an answer does not say its length: {head!r}")


class Load:
    """All connections, what is due, and what came back."""

    def __init__(self, options: dict[str, Any], out: TextIO | None) -> None:
        self.port, self.users, self.rate = options["port"], options["users"], options["rate"]
        self.seconds, self.timeout, self.marked = options["seconds"], options["timeout"], options["marked"]
        self._random = random.Random(options["seed"])
        bearer = f"Authorization: Bearer {options['key']}\r\n" if options["key"] else ""
        self._rest = f"/recommendations?n={options['n']} HTTP/1.1\r\nHost: 127.0.0.1\r\n{bearer}\r\n"
        self._size = options["connections"]
        self._connections: set[Connection] = set()
        self._free: deque[Connection] = deque()
        self._due: deque[tuple[float, str]] = deque()
        self._out = out
        self.latencies: list[float] = []
        self.lateness: list[float] = []
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.until = float("inf")

    def request(self, user: str) -> bytes:
        """The request for a user's list."""
        return f"GET /v1/users/{user}{self._rest}".encode()

    def answered(self, answer: Answer) -> None:
        """One more request is over."""
        self.latencies.append(answer.seconds)
        self.counts[f"{answer.status} {answer.what}"] += 1
        if answer.wrong:
            self.wrong.append(answer.wrong)
        if self._out:
            self._out.write(json.dumps(answer) + "\n")

    def is_free(self, connection: Connection) -> None:
        """A connection can take the next request."""
        if self._due:
            connection.ask(*self._due.popleft())
        elif self.rate is None and time.monotonic() < self.until:
            connection.ask(time.monotonic(), self._user())
        else:
            self._free.append(connection)

    def is_lost(self, connection: Connection) -> None:
        """A connection is gone; another one takes its place."""
        self._connections.discard(connection)
        with suppress(ValueError):
            self._free.remove(connection)

    async def run(self) -> dict[str, Any]:
        """Everything, from the first request to the last answer."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self.stop)
        start = time.monotonic()
        self.until = start + self.seconds
        keeper = asyncio.create_task(self._keep_up())
        await (self._send_all(start) if self.rate else asyncio.sleep(self.seconds))
        taken = time.monotonic() - start
        while self._due or any(connection.asked for connection in self._connections):
            await asyncio.sleep(0.01)
        keeper.cancel()
        return self._told(taken)

    def stop(self) -> None:
        """Ask for nothing more."""
        self.until = time.monotonic()

    async def _send_all(self, start: float) -> None:
        number = 0
        while (at := start + number / self.rate) < self.until:
            wait = at - time.monotonic()
            if wait > 0:
                await asyncio.sleep(wait)
                continue
            self.lateness.append(-wait)
            self._submit(at)
            number += 1
            if number % 100 == 0:
                await asyncio.sleep(0)  # a backlog must not keep the answers from being read

    def _submit(self, at: float) -> None:
        user = self._user()
        if self._free:
            self._free.popleft().ask(at, user)
        else:
            self._due.append((at, user))

    def _user(self) -> str:
        return f"u{self._random.randrange(self.users)}"

    async def _keep_up(self) -> None:
        """Open what connections are missing, and give up what takes too long."""
        while True:
            await asyncio.gather(*(self._connect() for _ in range(self._size - len(self._connections))))
            if self._out:
                self._out.flush()  # whoever watches the answers sees the newest
            old = time.monotonic() - self.timeout
            for connection in list(self._connections):
                connection.give_up(old)
            while self._due and self._due[0][0] < old:
                at, user = self._due.popleft()
                self.answered(Answer(at, time.monotonic() - at, NO_ANSWER, "timeout", user))
            await asyncio.sleep(SWEEP_SECONDS)

    async def _connect(self) -> None:
        loop, connection = asyncio.get_running_loop(), Connection(self)
        with suppress(OSError):  # tried again at the next sweep; what is due waits, and is given up in time
            self._connections.add(connection)
            await loop.create_connection(lambda: connection, "127.0.0.1", self.port)
            return
        self._connections.discard(connection)

    def _told(self, taken: float) -> dict[str, Any]:
        return {
            "requests": len(self.latencies),
            "lists_per_second": self.counts["200 personal"] / taken,
            "share": self.counts["200 personal"] / max(1, len(self.latencies)),
            "counts": dict(sorted(self.counts.items())),
            "wrong": len(self.wrong),
            "first_wrong": self.wrong[:KEPT_WRONG],
            **milliseconds(self.latencies),
            "client_late_p99_ms": percentile(self.lateness, 0.99) * 1e3,
            "client_cpu": time.process_time() / taken,
        }
