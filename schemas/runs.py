"""A run's name, its states with the one table of transitions, the release pointer and the publisher's lease."""

import re
from dataclasses import dataclass
from datetime import date, datetime
from enum import StrEnum

from schemas.errors import Busy, IllegalTransition

RUN_ID_PATTERN = re.compile(r"[a-z0-9_]{1,32}")


class RunState(StrEnum):
    """Written is not served: only LIVE is."""

    BUILT = "BUILT"
    REFUSED = "REFUSED"
    LOADING = "LOADING"
    LOADED = "LOADED"
    VERIFIED = "VERIFIED"
    LIVE = "LIVE"
    RETIRED = "RETIRED"
    BAD = "BAD"
    FAILED = "FAILED"


TRANSITIONS: dict[RunState, frozenset[RunState]] = {
    RunState.BUILT: frozenset({RunState.REFUSED, RunState.LOADING}),
    RunState.REFUSED: frozenset({RunState.LOADING}),  # only with an override, which the verdict records
    RunState.LOADING: frozenset({RunState.LOADED, RunState.FAILED, RunState.LOADING}),  # itself: an abandoned load
    RunState.LOADED: frozenset({RunState.VERIFIED, RunState.FAILED}),
    RunState.VERIFIED: frozenset({RunState.LIVE, RunState.FAILED}),
    RunState.LIVE: frozenset({RunState.RETIRED, RunState.BAD}),
    RunState.RETIRED: frozenset({RunState.LIVE, RunState.FAILED}),  # by rollback only; before its lists are dropped
    RunState.FAILED: frozenset({RunState.LOADING}),
    RunState.BAD: frozenset(),  # final: what a rollback left never returns
}


def check_transition(run_id: str, old: RunState, new: RunState) -> None:
    """Raise IllegalTransition unless the table allows `old` -> `new`."""
    if new not in TRANSITIONS[old]:
        raise IllegalTransition(f"run {run_id} is {old} and can't become {new}; `nightlist runs` shows all states")


def name_run(day: date, digest: str) -> str:
    """`<yyyymmdd>_<first 8 hex digits of the digest>`; it also names a table."""
    return f"{day:%Y%m%d}_{digest[:8]}"


def day_of(run_id: str) -> date:
    """The day that a run's name begins with; ValueError when it begins with none."""
    return date.fromisoformat(run_id[:8])


def table_of(run_id: str) -> str:
    """The name of a run's table of lists; ValueError when `run_id` could not name one (it goes into DDL)."""
    if not RUN_ID_PATTERN.fullmatch(run_id):
        raise ValueError(f"{run_id!r} is no run id: 1 to 32 of a-z, 0-9 and _")
    return f"lists_{run_id}"


@dataclass(frozen=True, slots=True)
class RunRecord:
    """What the store knows of a run; times are UTC.

    `rows` is None until it is LOADED, and again once the lists of a BAD run are dropped. `changed_at` is when it came into
    its state, or when the pointer left it, whichever was later: of a RETIRED or BAD run, when it was last served.
    """

    run_id: str
    state: RunState
    rows: int | None
    created_at: datetime
    changed_at: datetime


@dataclass(frozen=True, slots=True)
class Release:
    """The pointer: which run is served. `sequence` starts at 1 and only rises, on rollback too."""

    run_id: str
    previous: str | None
    sequence: int
    published_at: datetime


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to write to the store until `expires_at` (UTC); a later lease has a higher `fence`."""

    owner: str
    fence: int
    expires_at: datetime


class LeaseHeld(Busy):
    """Another publisher holds the store's lease; `lease` says who, and until when."""

    def __init__(self, lease: Lease) -> None:
        super().__init__(
            f"{lease.owner} is publishing (lease until {lease.expires_at:%H:%M:%S} UTC); wait for it, then try again"
        )
        self.lease = lease
