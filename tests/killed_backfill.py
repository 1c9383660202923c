"""A backfill that kills itself with SIGKILL: `python -m tests.killed_backfill CONFIG FROM TO NUMBER POINT`.

It dies on the NUMBERth day, at a POINT of tests.killed_night.
"""

import sys
from datetime import date
from pathlib import Path

from jobs.backfill import days_between, make
from jobs.config import load_settings
from jobs.ledger import Backfilled
from tests.killed_night import Killer


class KillerOnDay(Killer):
    """Waits for its day."""

    def __init__(self, number: str, point: str) -> None:
        super().__init__("never")
        self.word, self.then = f"day {number} of ", point

    def note(self, text: str) -> None:
        if text.startswith(self.word):
            self.point = self.then


if __name__ == "__main__":
    config, first, last, number, point = sys.argv[1:]
    days = days_between(date.fromisoformat(first), date.fromisoformat(last))
    make(load_settings(Path(config)), days, Backfilled(), KillerOnDay(number, point))
