"""The way back: which run a rollback goes to, whether that one is whole, what would change, and the rollback itself.

All but the last is read without a lease, so that it can be looked at while somebody publishes.
"""

import random
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime

from jobs.old_runs import settled, ways_back
from jobs.progress import Progress
from jobs.run import ROLLED_BACK, RunFolder
from jobs.stages.publish import Publisher, settle, settle_states
from lookup_api.readers import Reader
from schemas.errors import NightlistError, Refused, RunUnreadable, SequenceMoved
from schemas.lists import ServedList
from schemas.runs import Release, RunRecord, RunState

SAMPLE = 1_000
"""Lists of the target that are looked up in the run that it would take over from."""


@dataclass(frozen=True)
class Plan:
    """`leaves` becomes BAD, or is it already where an earlier rollback died on its way: `begun`. `target` is served then."""

    leaves: RunRecord
    target: RunRecord
    sequence: int
    begun: bool
    choices: Sequence[RunRecord]


def plan(records: Sequence[RunRecord], pointer: Release | None, wanted: str | None, left: RunFolder) -> Plan:
    """Where a rollback would go: to `wanted`, or where one that died was going, or to the retired run that was served last.

    `left` is the folder of the run that the pointer names. Raises Refused.
    """
    if pointer is None:
        raise Refused("nothing is published yet: there is nothing to roll back")
    known = {record.run_id: record for record in records}
    flipped = _flipped(known, pointer)
    if flipped and wanted in (None, pointer.run_id):
        return Plan(flipped, known[pointer.run_id], pointer.sequence, True, [])
    states = settled(records, pointer)
    live = next((record for record in states if record.run_id == pointer.run_id), None)
    if live is None:
        raise Refused(f"the store knows nothing of run {pointer.run_id}, which is live; publish the next night")
    begun, choices = live.state is RunState.BAD, ways_back(states)
    target = _chosen(choices, wanted, (left.read(ROLLED_BACK) or {}).get("to") if begun else None)
    return Plan(live, target, pointer.sequence, begun, choices)


def _flipped(known: dict[str, RunRecord], pointer: Release) -> RunRecord | None:
    """The run that a rollback left which died after its flip: the pointer went on, the target's state did not."""
    before, now = known.get(pointer.previous or ""), known.get(pointer.run_id)
    done = before and now and before.state is RunState.BAD and now.state is RunState.RETIRED
    return before if done else None


def _chosen(choices: Sequence[RunRecord], wanted: str | None, told: str | None) -> RunRecord:
    found = {record.run_id: record for record in choices}
    if wanted is None and choices:
        return found.get(told or "", choices[0])
    if wanted not in found:
        known = ", ".join(found) or "none"
        raise Refused(f"no retired run {wanted or ''} to go back to; retired: {known}; see `nightlist runs`")
    return found[wanted]


@dataclass
class Looked:
    """A target that was read whole, and some of its lists beside those of the run that it would take over from.

    Of the `sampled` ones `missing` have no list there; the others' items are the same by `same_items` (intersection over
    union, the mean). Both are None where that run can't be read.
    """

    rows: int
    scored_at: datetime | None
    seconds: float
    sampled: int
    missing: int | None = None
    same_items: float | None = None
    live_scored_at: datetime | None = None


def look(reader: Reader, chosen: Plan, progress: Progress) -> Looked:
    """Read every list of the target, and compare some with the live run's. Raises Refused where not all can be read."""
    start, seeded = time.monotonic(), random.Random(0)  # noqa: S311  which lists are compared is no secret
    rows, newest, sample = 0, None, list[ServedList]()
    why = ""
    with progress.watch("check", chosen.target.rows or 0, lambda: rows):
        try:
            for rows, served in enumerate(reader.scan(chosen.target.run_id), 1):
                newest = max(newest or served.scored_at, served.scored_at)
                if len(sample) < SAMPLE:
                    sample.append(served)
                elif (place := seeded.randrange(rows)) < SAMPLE:  # so that each list is as likely to be in it
                    sample[place] = served
        except RunUnreadable as error:
            why = f" ({error})"
    if rows != chosen.target.rows or not rows:
        raise Refused(
            f"run {chosen.target.run_id} holds {rows} lists that can be read where {chosen.target.rows} were published{why}; "
            f"choose another with --to"
        )
    looked = Looked(rows, newest, 0.0, len(sample))
    with suppress(NightlistError):  # what is live may well be what is broken
        _compare(reader, chosen.leaves.run_id, sample, looked)
    looked.seconds = round(time.monotonic() - start, 3)
    return looked


def _compare(reader: Reader, live: str, sample: Iterable[ServedList], looked: Looked) -> None:
    pairs = [(served, reader.get(live, served.kind, served.key)) for served in sample]
    both = [(set(served.items), set(found.items), found) for served, found in pairs if found]
    shares = [len(mine & theirs) / len(mine | theirs) for mine, theirs, _ in both if mine | theirs]
    looked.missing = len(pairs) - len(both)
    looked.same_items = round(sum(shares) / len(shares), 4) if shares else None
    looked.live_scored_at = max((found.scored_at for *_, found in both), default=None)


def roll_back(publisher: Publisher, chosen: Plan, left: RunFolder) -> Release:
    """Point the release back as planned, and mark the run that was live BAD for ever. Raises SequenceMoved, Refused.

    Its folder is told first: a rollback that dies on the way is never taken for last night's good run. Nothing is dropped.
    """
    pointer, records = publisher.store.pointer(), publisher.store.runs()
    if pointer is None or pointer.sequence != chosen.sequence:
        raise SequenceMoved(f"the release moved on since sequence {chosen.sequence} was looked at; look again")
    publisher.keep_lease()
    settle_states(publisher, records, pointer)
    if pointer.run_id == chosen.target.run_id:
        return pointer
    if chosen.target.run_id not in [record.run_id for record in ways_back(settled(records, pointer))]:
        raise Refused(f"run {chosen.target.run_id} was dropped since it was looked at; see `nightlist runs`")
    _tell(left, {"to": chosen.target.run_id, "at": publisher.clock().isoformat()})
    if not chosen.begun:
        publisher.move(chosen.leaves.run_id, RunState.LIVE, RunState.BAD)
    release = publisher.store.flip(chosen.target.run_id, chosen.sequence, publisher.lease.fence)
    with suppress(NightlistError):  # it is served; the states are mended by the next publication
        settle(publisher)
    return release


def _tell(left: RunFolder, told: Mapping[str, str]) -> None:
    """In the folder of a run that becomes BAD; nobody waits for a disk to have lists that are right."""
    try:
        left.folder.mkdir(parents=True, exist_ok=True)
        left.write(ROLLED_BACK, told)
    except OSError as error:
        left.progress.note(
            f"warning: {left.folder} can't be told that its run is BAD ({error.strerror}): a night there may begin from it, "
            f"until the next publication tells it"
        )
