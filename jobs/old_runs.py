"""Which of the store's runs are done with, and which can be gone back to: answers from records, without a store."""

from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime, timedelta

from schemas.runs import Release, RunRecord, RunState
from schemas.settings import StoreSettings

ON_THE_WAY = (RunState.LOADING, RunState.LOADED, RunState.VERIFIED, RunState.FAILED)
"""States of runs that never were live: whoever holds the lease knows that nobody is at work on another run."""
WAS_LIVE = (RunState.LIVE, RunState.RETIRED, RunState.BAD)
"""States of runs that the pointer named once."""


def settled(records: Iterable[RunRecord], pointer: Release | None) -> list[RunRecord]:
    """The records with states that say what the pointer says: the run that it names is LIVE or BAD, and no other is LIVE."""
    return [replace(record, state=_settled(record, pointer)) for record in records]


def abandoned(records: Iterable[RunRecord], but: str | None = None) -> list[RunRecord]:
    """Runs that a publisher left on the way, and those that failed: all but the one that goes on."""
    return [record for record in records if record.state in ON_THE_WAY and record.run_id != but]


def outdated(records: Iterable[RunRecord], keep: int, grace_seconds: float, now: datetime) -> list[RunRecord]:
    """Runs that were live, but for the newest `keep` good ones and those that were served within `grace_seconds`."""
    were_live = [record for record in records if record.state in WAS_LIVE]
    good = [record for record in were_live if record.state is not RunState.BAD]
    good.sort(key=lambda record: (record.state is RunState.LIVE, record.changed_at, record.run_id))
    kept = {record.run_id for record in good[-keep:]} | {record.run_id for record in were_live if _is_dropped(record)}
    begin = now - timedelta(seconds=grace_seconds)
    return [record for record in were_live if record.run_id not in kept and record.changed_at <= begin]


def pruned_next(records: Iterable[RunRecord], settings: StoreSettings, now: datetime) -> list[RunRecord]:
    """What the next publication would prune: by then there is one good run more."""
    return outdated(records, settings.keep - 1, settings.grace_seconds, now)


def ways_back(records: Iterable[RunRecord]) -> list[RunRecord]:
    """The retired runs, the one that was served last first."""
    retired = [record for record in records if record.state is RunState.RETIRED]
    return sorted(retired, key=lambda record: (record.changed_at, record.run_id), reverse=True)


def _settled(record: RunRecord, pointer: Release | None) -> RunState:
    named = pointer is not None and record.run_id == pointer.run_id
    if named and record.state in (RunState.VERIFIED, RunState.RETIRED):
        return RunState.LIVE
    if pointer is not None and not named and record.state is RunState.LIVE:
        return RunState.RETIRED
    return record.state


def _is_dropped(record: RunRecord) -> bool:
    return record.state is RunState.BAD and record.rows is None
