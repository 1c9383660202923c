"""What a backfill tells: how each day ended, in a ledger that outlives it and in the summary that it prints."""

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date, datetime
from pathlib import Path
from typing import Any, ClassVar

from rich.console import Console
from rich.table import Column, Table

from jobs.commands.options import told
from jobs.manifest import STAGES
from jobs.run import MANIFEST, PUBLISHED, ROLLED_BACK, RunFolder
from schemas.errors import ConfigError, NightlistError

LEDGER = "backfill.jsonl"
STEPS = tuple(name for name in STAGES if name != "gate")
"""The stages that every day goes through."""

NEW, PART_DONE, DONE = "new", "part done", "done"
"""What is there of a day's run that was never published."""
BUILT, SKIPPED, LEFT_ALONE, FAILED, INTERRUPTED = "built", "skipped", "left alone", "failed", "interrupted"
"""How a day ends: made now; was there, as its records say; was published once, and is not touched; without a run."""
LIVE, NOT_PROMOTED = "live", "not promoted"
"""How the newest day ends where it is to be published."""


class Unfinished(NightlistError):
    """Not every day ended as it was asked for; `exit_code` is that of the days, where they share one."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass
class Attempt:
    """One day of a backfill; `code` is the exit code of its error, 0 where it has none."""

    day: date
    run: RunFolder
    outcome: str = INTERRUPTED
    seconds: float = 0.0
    error: str | None = None
    code: int = 0

    def line(self) -> dict[str, Any]:
        """What the ledger and the JSON line say of the day; counts are those of its run, or None where it has none."""
        record = self.run.record("build") if self.outcome not in (FAILED, INTERRUPTED) else None
        built = record.counts if record else {}
        return {
            "day": self.day.isoformat(),
            "run_id": self.run.run_id,
            "outcome": self.outcome,
            "users": sum(built["outcomes"].values()) if built else None,
            "rows": built.get("rows"),
            "kinds": built.get("kinds"),
            "lists_checksum": built.get("lists_checksum"),
            "seconds": round(self.seconds, 3),
            "error": self.error,
        }

    def steps(self) -> int:
        """How many of STEPS lie behind it."""
        if self.outcome != INTERRUPTED:
            return len(STEPS)
        return sum(self.run.record(name) is not None for name in STEPS)

    def fail(self, error: Exception) -> None:
        """Take down an error: without a run the day has failed."""
        self.error, self.code = told(error)
        self.outcome = FAILED if self.outcome == INTERRUPTED else self.outcome


@dataclass
class Backfilled:
    """What a backfill has to tell, as far as it came."""

    attempts: list[Attempt] = field(default_factory=list)
    promoted: str | None = None
    error: str | None = None
    shown_after_error: ClassVar[bool] = True

    @contextmanager
    def attempt(self, day: date, run: RunFolder, clock: Callable[[], datetime]) -> Iterator[Attempt]:
        """Around the work of a day: whatever goes wrong is that day's own, and how it ended stands in the ledger at once.

        Only ConfigError, which is every day's, and Ctrl-C go on; then the ledger gets no line, as if the day had been killed.
        """
        attempt, begin = Attempt(day, run), time.monotonic()
        self.attempts.append(attempt)
        try:
            yield attempt
        except ConfigError:
            raise
        except Exception as error:
            attempt.fail(error)
        attempt.seconds = time.monotonic() - begin
        append(run.folder.parent / LEDGER, {"time": clock().isoformat()} | attempt.line())

    def steps(self) -> int:
        """How many stages of all days lie behind it."""
        return sum(attempt.steps() for attempt in self.attempts)

    def check(self, promote: bool) -> None:
        """Raises Unfinished when a day has an error, and says whether anything was promoted where it should have been."""
        failed = [attempt for attempt in self.attempts if attempt.code]
        if not failed:
            return
        days = ", ".join(f"{attempt.day} ({attempt.outcome})" for attempt in failed)
        promoted = f"; {self.promoted or 'nothing'} was promoted" if promote else ""
        codes = {attempt.code for attempt in failed}
        raise Unfinished(
            f"{len(failed)} of {len(self.attempts)} days did not end well: {days}{promoted}; what is built stays, and the "
            f"same command goes on from there",
            codes.pop() if len(codes) == 1 else 1,
        )

    def line(self) -> dict[str, Any]:
        """The JSON line of a backfill."""
        days = [attempt.line() for attempt in self.attempts]
        return {"days": days, "promoted": self.promoted, "error": self.error}

    def show(self, console: Console) -> None:
        """One row a day, and the errors below."""
        numbers = (Column(name, justify="right") for name in ("users", "rows", "seconds"))
        table = Table("day", "run", "outcome", *numbers, box=None)
        for attempt in self.attempts:
            row = attempt.line()
            counts = ("" if row[name] is None else f"{row[name]:,}" for name in ("users", "rows"))
            table.add_row(row["day"], row["run_id"], row["outcome"], *counts, f"{attempt.seconds:.1f}")
        if self.attempts:
            console.print(table)
        for attempt in self.attempts:
            if attempt.error:
                console.print(f"{attempt.day}: {attempt.error}", soft_wrap=True, markup=False)


def found(run: RunFolder) -> str:
    """What is there of the run, by its records alone: LEFT_ALONE for one that was ever published, DONE, PART_DONE or NEW."""
    if run.read(PUBLISHED) or run.read(ROLLED_BACK):
        return LEFT_ALONE
    records = [record for name in STEPS if (record := run.record(name)) and record.digest.startswith(run.digest)]
    whole = run.read(MANIFEST) and any(record.name == "build" for record in records)
    return DONE if whole else PART_DONE if records else NEW


def append(ledger: Path, values: Mapping[str, Any]) -> None:
    """One more line, on disk when this returns. A last line that was torn by a kill stays a line of its own."""
    ledger.parent.mkdir(parents=True, exist_ok=True)
    with ledger.open("ab+") as handle:
        if handle.tell():
            handle.seek(-1, os.SEEK_END)
            if handle.read(1) != b"\n":
                handle.write(b"\n")
        handle.write(json.dumps(values, ensure_ascii=False).encode() + b"\n")
        handle.flush()
        os.fsync(handle.fileno())
