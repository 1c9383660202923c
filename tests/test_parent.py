"""Which run a night takes for last night's."""

import json
from datetime import date
from pathlib import Path

import pytest

from jobs.run import MANIFEST, PUBLISHED, ROLLED_BACK, parent_of

A, B, C, D = (f"2026030{day}_0000000{day}" for day in (1, 2, 3, 4))
NIGHT = date(2026, 3, 5)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A, B and C, each published in the evening of its day."""
    for day, run_id in enumerate((A, B, C), 1):
        publish(tmp_path, run_id, f"2026-03-0{day}T20:00:00+00:00")
    return tmp_path


def publish(runs: Path, run_id: str, when: str) -> None:
    (runs / run_id).mkdir()
    (runs / run_id / MANIFEST).write_text('{"digest": "of what it is made of"}')
    (runs / run_id / PUBLISHED).write_text(json.dumps({"sequence": 1, "published_at": when}))


def roll_back(runs: Path, run_id: str, to: str | None, when: str) -> None:
    (runs / run_id / ROLLED_BACK).write_text(json.dumps({"to": to, "at": when}))


def parent(runs: Path, day: date = NIGHT) -> str | None:
    found = parent_of(runs, day)
    return found and found.run_id


def test_it_is_the_newest_before_the_night(runs: Path) -> None:
    assert parent(runs) == C
    assert parent(runs, date(2026, 3, 3)) == B
    assert parent(runs, date(2026, 3, 1)) is None


def test_a_run_that_was_rolled_back_is_none(runs: Path) -> None:
    """Nor where nobody knows what took its place."""
    roll_back(runs, C, None, "2026-03-03T21:00:00+00:00")
    assert parent(runs) == B


def test_nor_is_one_that_a_rollback_passed_over(runs: Path) -> None:
    """Whoever goes back by two runs trusts neither, and no list of theirs is carried on; a run of a day after is trusted again."""
    roll_back(runs, C, A, "2026-03-03T21:00:00+00:00")
    assert parent(runs) == A

    publish(runs, D, "2026-03-04T20:00:00.250000+00:00")
    assert parent(runs) == D


def test_one_that_was_passed_over_has_its_turn_when_it_is_gone_back_to(runs: Path) -> None:
    """It was looked at again."""
    roll_back(runs, C, A, "2026-03-03T21:00:00+00:00")
    roll_back(runs, A, B, "2026-03-03T22:00:00.5+00:00")
    assert parent(runs) == B


def test_of_one_day_it_is_the_one_whose_turn_came_last(runs: Path) -> None:
    """By publication, or by a rollback to it."""
    publish(runs, other := "20260302_ffffffff", "2026-03-02T23:00:00+00:00")
    assert parent(runs, date(2026, 3, 3)) == other

    roll_back(runs, C, B, "2026-03-03T21:00:00+00:00")
    assert parent(runs) == B
