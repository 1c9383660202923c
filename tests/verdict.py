"""What a load on a site under faults came to: shares and latencies inside and outside of the faults' windows."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from tests.load import NO_ANSWER, Answer, milliseconds
from tests.under_fire import Happening

WINDOW = 30.0
"""Seconds after a fault in which fewer requests may get their list."""
INSIDE, OUTSIDE = 0.90, 0.99
"""Shares of requests that are answered 200 with the user's own list, at least."""
DELIBERATE = frozenset({"unreadable", "overloaded", "no-run", "not-ready"})
"""Problems of a 503 that says when to come back."""
KEPT = 10


def judge(
    answers: Sequence[Answer], happenings: Iterable[Happening], may_serve: Callable[[Answer], bool]
) -> dict[str, Any]:
    """Everything that is asserted, in figures."""
    begin = answers[0].at
    faults = [happening for happening in happenings if happening.fault]
    in_window = [any(fault.at <= answer.at < fault.at + WINDOW for fault in faults) for answer in answers]
    wrong = [answer.wrong for answer in answers if answer.wrong]
    wrong += [
        f"{a.user} got run {a.run_id} {a.at - begin:.1f} s after the start" for a in answers if not _live(a, may_serve)
    ]
    return {
        "requests": len(answers),
        "seconds": round(answers[-1].at - begin, 1),
        "counts": dict(Counter(f"{answer.status} {answer.what}" for answer in answers).most_common()),
        "stale": sum(answer.stale for answer in answers),
        "wrong": len(wrong),
        "first_wrong": wrong[:KEPT],
        "undeliberate": sum(not _is_deliberate(answer) for answer in answers),
        "outside": _summary([answer for answer, inside in zip(answers, in_window, strict=True) if not inside]),
        "inside": _summary([answer for answer, inside in zip(answers, in_window, strict=True) if inside]),
        "happenings": [
            {
                "name": what.name,
                "at": round(what.at - begin, 1),
                "took": round(what.until - what.at, 1),
                "note": what.note,
            }
            | {"fault": what.fault}
            | _summary([answer for answer in answers if what.at <= answer.at < what.at + WINDOW])
            for what in happenings
            if what.at >= begin
        ],
    }


def check(figures: dict[str, Any]) -> None:
    """AssertionError, with the figures, where the site did not keep its promises."""
    shown = table(figures)
    assert not figures["wrong"], f"wrong answers: {figures['first_wrong']}\n{shown}"
    assert not figures["undeliberate"], f"answers that nobody meant to give\n{shown}"
    assert figures["outside"]["personal"] >= OUTSIDE, f"outside of the windows\n{shown}"
    for happening in figures["happenings"]:
        assert not happening["fault"] or happening["personal"] >= INSIDE, f"{happening['name']}\n{shown}"


def during(answers: Iterable[Answer], since: float, until: float) -> list[Answer]:
    """Answers to requests that were due in that time."""
    return [answer for answer in answers if since <= answer.at < until]


def table(figures: dict[str, Any]) -> str:
    """For people."""
    head = f"{figures['requests']} requests in {figures['seconds']} s, {figures['wrong']} wrong; {figures['counts']}, "
    rows = [
        {"name": name, "at": 0.0, "took": 0.0, "note": "", "fault": False} | figures[name]
        for name in ("outside", "inside")
    ]
    lines = [
        f"{'what':<20}{'at s':>7}{'took s':>8}{'requests':>10}{'personal':>10}{'p50 ms':>9}{'p99 ms':>9}{'max ms':>9}"
    ]
    for row in rows + figures["happenings"]:
        numbers = f"{row['requests']:>10}{row['personal']:>10.4f}{row['p50_ms']:>9.1f}{row['p99_ms']:>9.1f}{row['max_ms']:>9.1f}"
        name = row["name"] + ("*" if row["fault"] else "")
        lines.append(f"{name:<20}{row['at']:>7.1f}{row['took']:>8.1f}{numbers}  {row['note']}")
    return "\n".join([head + f"{figures['stale']} stale; the 30 s after each; * is a fault", *lines])


def _summary(answers: Sequence[Answer]) -> dict[str, float]:
    personal = sum((answer.status, answer.what) == (200, "personal") for answer in answers)
    share = personal / len(answers) if answers else 1.0
    return {"requests": len(answers), "personal": share, **milliseconds([answer.seconds for answer in answers])}


def _live(answer: Answer, may_serve: Callable[[Answer], bool]) -> bool:
    return answer.status != 200 or may_serve(answer)


def _is_deliberate(answer: Answer) -> bool:
    """200 with the user's list, or a 503 that is meant. Everybody has a list: the popular one is not theirs."""
    if answer.status == NO_ANSWER:
        return False
    return (answer.status, answer.what) == (200, "personal") or (answer.status == 503 and answer.what in DELIBERATE)
