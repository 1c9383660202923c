"""Load on the lookup API from a process of its own: `python -m tests.load --port 8080 --users 200 --rate 300 --seconds 60`.

Open loop: requests are sent at a constant rate whether or not earlier ones were answered, and a latency counts from the
moment at which its request was due, so that a server that stands still is seen to (no coordinated omission). Without a
rate, closed loop: each connection asks again as soon as it is answered. Each request is for the list of a random known
user, `u0` to `u<users - 1>`. One JSON object on stdout tells what came back.
"""

import json
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
NO_ANSWER = 0
"""The status of a request that got none."""
PROBLEM = "urn:nightlist:problem:"


class Answer(NamedTuple):
    """What came of one request."""

    at: float
    """When it was due, by time.monotonic(), which all processes of a machine share."""
    seconds: float
    """From then to the whole answer."""
    status: int
    what: str
    """The list's source; of a problem, its name; of no answer, why."""
    user: str
    run_id: str = ""
    stale: bool = False
    wrong: str = ""
    """What is wrong with a list; empty: nothing."""


def read_answer(at: float, seconds: float, user: str, status: int, head: bytes, body: bytes, marked: bool) -> Answer:
    """What an answer says, and whether its list is the user's own."""
    if status != 200:
        return Answer(at, seconds, status, _problem(head, body), user)
    if not marked:  # cheaply, where the client's time counts
        what = "personal" if b'"source":"personal"' in body else "other"
        return Answer(at, seconds, status, what, user)
    told = json.loads(body)
    items = [item["item_id"] for item in told["items"]]
    return Answer(at, seconds, status, told["source"], user, told["run_id"], told["stale"], _wrong(told, items, user))


def _wrong(told: dict[str, Any], items: list[str], user: str) -> str:
    """Items carry their run, their user and their place: whatever is mixed or foreign shows."""
    owner = user if told["source"] == "personal" else told["source"]
    expected = [f"{told['run_id']}:{owner}:{place}" for place in range(len(items))]
    if items and items == expected:
        return ""
    return f"{user} got the {told['source']} list {items} of run {told['run_id']}"


def _problem(head: bytes, body: bytes) -> str:
    try:
        name = str(json.loads(body)["type"]).removeprefix(PROBLEM)
    except (ValueError, KeyError, TypeError):
        name = "no problem+json"
    return name if b"retry-after" in head.lower() else f"{name}, no Retry-After"


def milliseconds(latencies: Sequence[float]) -> dict[str, float]:
    """Latencies in three figures."""
    return {
        f"{name}_ms": percentile(latencies, part) * 1e3 for name, part in (("p50", 0.5), ("p99", 0.99), ("max", 1.0))
    }


def percentile(values: Iterable[float], part: float) -> float:
    """The value below or at which that part of all values is; 0 of none."""
    ordered = sorted(values)
    return ordered[max(0, min(len(ordered) - 1, int(part * len(ordered))))] if ordered else 0.0


class Client:
    """A load in another process. `out`, where it is given, gets every answer, one JSON array a line."""

    def __init__(self, port: int, users: int, seconds: float, out: Path | None = None, **options: object) -> None:
        given = {"port": port, "users": users, "seconds": seconds, "out": out, **options}
        arguments = [f"--{name}={value}" for name, value in given.items() if value is not None]
        command = [sys.executable, "-m", "tests.load", *arguments]
        self.out = out
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)

    def stop(self) -> None:
        """Let it send nothing more."""
        self.process.send_signal(signal.SIGTERM)

    def result(self) -> dict[str, Any]:
        """Its figures, when it is over."""
        out, _ = self.process.communicate()
        if self.process.returncode:
            raise RuntimeError(f"the load ended with {self.process.returncode}")
        told: dict[str, Any] = json.loads(out)
        return told

    def answers(self) -> Iterator[Answer]:
        """What it has written so far."""
        assert self.out
        with self.out.open() as lines:
            for line in lines:
                if line.endswith("\n"):
                    yield Answer(*json.loads(line))
