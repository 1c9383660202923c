"""What the tests of faults measure with: an open loop that hides no pause, and a verdict that sees what is wrong."""

import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from tests.load import Answer, Client
from tests.under_fire import Happening
from tests.verdict import WINDOW, check, judge

RUN = "20260301_00000001"
SECONDS, RATE = 2.0, 100


def a_list(user: str, source: str = "personal", owner: str = "", run_id: str = RUN) -> dict[str, Any]:
    items = [{"item_id": f"{run_id}:{owner or user}:{place}"} for place in range(3)]
    return {"run_id": RUN, "source": source, "stale": False, "items": items}


@contextmanager
def answering(answer: Callable[[str], dict[str, Any]], status: int = 200) -> Iterator[int]:
    """A server whose answer to each user is this; hands out its port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = json.dumps(answer(self.path.split("/")[3])).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def handle(self) -> None:
            with suppress(ConnectionError):  # who gave up does not listen
                super().handle()

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()


def asked(port: int, **options: object) -> dict[str, Any]:
    return Client(port, 200, SECONDS, rate=RATE, lists="marked", **options).result()


def test_a_server_that_stands_still_makes_all_wait_who_were_due_meanwhile() -> None:
    """Everybody is asked for at the constant rate, and who was due at the beginning of a pause waits for all of it."""
    lock, begin = threading.Lock(), time.monotonic()

    def pausing(user: str) -> dict[str, Any]:
        with lock:
            if not stood and time.monotonic() - begin > 1:
                stood.append(True)
                time.sleep(0.6)
        return a_list(user)

    stood: list[bool] = []
    with answering(pausing) as port:
        told = asked(port)

    assert stood
    assert told["counts"] == {"200 personal": SECONDS * RATE}
    assert told["p99_ms"] > 500
    assert told["max_ms"] > 590


@pytest.mark.parametrize(
    "answer",
    [
        lambda user: a_list(user, owner="u1000"),
        lambda user: a_list(user, run_id="20260301_00000002"),
        lambda user: a_list(user) | {"items": a_list(user)["items"][::-1]},
        lambda user: a_list(user) | {"items": []},
        lambda user: a_list(user, source="popular"),
    ],
    ids=["another user's", "another run's", "in another order", "empty", "the popular one under a user's name"],
)
def test_a_list_that_is_not_the_user_s_own_is_wrong(answer: Callable[[str], dict[str, Any]]) -> None:
    """By the names of its items."""
    with answering(answer) as port:
        told = asked(port)

    assert told["wrong"] == told["requests"]


def test_problems_count_by_their_names_and_what_never_answers_is_given_up() -> None:
    """A 503 that does not say when to come back says so in its name; an answer that does not come in time is none."""
    with answering(lambda user: {"type": "urn:nightlist:problem:unreadable"}, 503) as port:
        assert set(asked(port)["counts"]) == {"503 unreadable, no Retry-After"}
    with answering(lambda user: time.sleep(3) or a_list(user)) as port:
        assert set(asked(port, timeout=0.5)["counts"]) == {"0 timeout"}


def site_of(*answers: Answer) -> list[Answer]:
    """A hundred seconds of good answers, and these."""
    good = [Answer(second / 10, 0.005, 200, "personal", "u1", RUN) for second in range(1000)]
    return sorted([*good, *answers])


def test_the_verdict_is_good_where_promises_were_kept() -> None:
    """Deliberate 503s, so few as promised, are no fault."""
    few = [Answer(50 + place / 10, 0.5, 503, "unreadable", "u1") for place in range(30)]
    figures = judge(site_of(*few), [Happening("kill", 45.0, True)], lambda answer: True)

    check(figures)
    assert figures["outside"]["personal"] == 1
    assert figures["inside"]["requests"] == WINDOW * 10 + len(few)


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ([Answer(50.0, 0.1, 200, "personal", "u1", RUN, wrong="u1 got u2's")], "wrong answers"),
        ([Answer(50.0, 0.1, 200, "personal", "u1", "20260301_00000002")], "wrong answers"),
        ([Answer(50.0, 0.1, 200, "popular", "u1", RUN)], "nobody meant to give"),
        ([Answer(50.0, 0.1, 500, "about:blank", "u1")], "nobody meant to give"),
        ([Answer(50.0, 0.1, 503, "unreadable, no Retry-After", "u1")], "nobody meant to give"),
        ([Answer(50.0, 10.0, 0, "timeout", "u1")], "nobody meant to give"),
        ([Answer(10 + place / 10, 0.5, 503, "unreadable", "u1") for place in range(10)], "outside of the windows"),
        ([Answer(50 + place / 10, 0.5, 503, "unreadable", "u1") for place in range(60)], "kill"),
    ],
    ids=["foreign list", "run not live", "fallback", "500", "no Retry-After", "no answer", "outside", "inside"],
)
def test_the_verdict_sees_each_promise_that_was_broken(answers: list[Answer], message: str) -> None:
    """One wrong answer in a thousand, or a few too many that failed."""
    figures = judge(site_of(*answers), [Happening("kill", 45.0, True)], lambda answer: answer.run_id == RUN)

    with pytest.raises(AssertionError, match=message):
        check(figures)
