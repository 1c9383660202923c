"""Stage 9: a passed run becomes the live one: load, verify by reading back, flip the pointer last.

Written is not served: a crash between any two steps leaves last night's lists served, and the same call goes on from there.
What comes after the flip (states, old runs) can wait for the next publication: the run is served.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from jobs.lease import leased
from jobs.lists import BuiltLists
from jobs.old_runs import abandoned, outdated, settled, ways_back
from jobs.progress import Progress
from jobs.readback import difference
from jobs.run import PUBLISHED, ROLLED_BACK, RunFolder
from jobs.stores import Store
from lookup_api.readers import Reader
from schemas.errors import NightlistError, Refused, RunUnreadable, SequenceMoved
from schemas.runs import Lease, Release, RunRecord, RunState, day_of
from schemas.settings import StoreSettings


class NotAsBuilt(NightlistError):
    """What was read back is not what was built: the run is FAILED, and last night's lists stay."""

    retry = True


@dataclass
class Publisher:
    """One process at work on a store, under a lease that it keeps alive."""

    store: Store
    reader: Reader
    settings: StoreSettings
    lease: Lease
    clock: Callable[[], datetime]
    reached: dict[str, RunState] = field(default_factory=dict)
    """The last state that each run was moved to, or found in."""

    def keep_lease(self) -> None:
        """Renew when half of the lease is over; raises StaleFence when somebody else took it."""
        if self.clock() > self.lease.expires_at - timedelta(seconds=self.settings.lease_seconds / 2):
            self.lease = self.store.renew(self.lease, self.settings.lease_seconds)

    def record(self, run_id: str) -> RunRecord | None:
        """What the store knows of a run."""
        return next((record for record in self.store.runs() if record.run_id == run_id), None)

    def move(self, run_id: str, old: RunState | None, new: RunState, rows: int | None = None) -> None:
        """One transition of a run's state."""
        self.store.set_state(run_id, old, new, self.lease.fence, rows)
        self.reached[run_id] = new

    def flip(self, run_id: str) -> Release:
        """Point the release at a run, from where it stands now."""
        pointer = self.store.pointer()
        return self.store.flip(run_id, pointer.sequence if pointer else 0, self.lease.fence)

    def drop(self, record: RunRecord) -> None:
        """Drop a run's lists, once no rollback can go to it any more."""
        self.keep_lease()
        if record.state not in (RunState.FAILED, RunState.BAD):
            self.move(record.run_id, record.state, RunState.FAILED)
        self.store.drop(record.run_id, self.lease.fence)


@contextmanager
def publishing(
    store: Store, reader: Reader, settings: StoreSettings, clock: Callable[[], datetime], take_over: bool = False
) -> Iterator[Publisher]:
    """The right to publish, for as long as the context lasts. Raises LeaseHeld, unless `take_over`; StoreUnavailable."""
    store.prepare()
    with leased(store, settings.lease_seconds, take_over) as lease:
        yield Publisher(store, reader, settings, lease, clock)


def publish(publisher: Publisher, run: RunFolder, lists: BuiltLists, progress: Progress) -> Release:
    """Make a built run, whose lists these are, the live one, from whatever state an earlier try left it in; without effect when it is live.

    What publishers that died left of other runs is settled and dropped first. Raises Refused for a run that may not be
    published, NotAsBuilt, StoreUnavailable, StaleFence, never after the flip; OSError where the run's folder can't be written to.
    """
    try:
        settle(publisher)
        release = _publish(publisher, lists, run.run_id, progress)
    except NightlistError as error:
        error.state = publisher.reached.get(run.run_id)
        raise
    run.write(PUBLISHED, {"sequence": release.sequence, "published_at": release.published_at.isoformat()})
    try:
        settle(publisher)
        _prune(publisher)
        _tell_folders(publisher, run.folder.parent)
    except (NightlistError, OSError) as error:
        progress.note(f"warning: run {run.run_id} is live, what is left to do is done by the next publication: {error}")
    return release


def _publish(publisher: Publisher, lists: BuiltLists, run_id: str, progress: Progress) -> Release:
    record, pointer = publisher.record(run_id), publisher.store.pointer()
    state = record.state if record else None
    if state:
        publisher.reached[run_id] = state
    _refuse(record, pointer, run_id)
    _make_room(publisher, run_id, progress)
    if state is RunState.LIVE:
        return _named(pointer, run_id)
    if state not in (RunState.LOADED, RunState.VERIFIED):
        publisher.move(run_id, state, RunState.LOADING)
        _load(publisher, run_id, lists, progress, resume=state is RunState.LOADING)
        state = RunState.LOADED
    if state is RunState.LOADED:
        _verify(publisher, run_id, lists)
    release = publisher.flip(run_id)
    publisher.reached[run_id] = RunState.LIVE
    return release


def _named(pointer: Release | None, run_id: str) -> Release:
    if pointer is None or pointer.run_id != run_id:
        raise SequenceMoved(f"run {run_id} is no longer live: somebody else published; `nightlist runs` shows what is")
    return pointer


def _refuse(record: RunRecord | None, pointer: Release | None, run_id: str) -> None:
    if record and record.state is RunState.BAD:
        raise bad(run_id)
    if record and record.state is RunState.RETIRED:
        raise Refused(f"run {run_id} was live before and is retired; `nightlist rollback --to {run_id}` brings it back")
    if pointer and pointer.run_id != run_id and day_of(run_id) < day_of(pointer.run_id):
        raise Refused(
            f"run {run_id} is older than the live run {pointer.run_id}: publishing it would move everybody's lists back; "
            f"it stays BUILT"
        )


def bad(run_id: str) -> Refused:
    """The refusal of a run that was rolled back."""
    return Refused(
        f"run {run_id} was rolled back and is BAD for ever; the same input and settings make the same run: mend the input, "
        f"or change a setting that changes lists (--set, nightlist.toml), and start the night again"
    )


def _load(publisher: Publisher, run_id: str, lists: BuiltLists, progress: Progress, resume: bool) -> None:
    """Goes on where an abandoned load stopped (`resume`), where the store still has what it had; else loads anew."""
    written = [0]

    def on_progress(rows: int) -> None:
        written[0] = rows
        publisher.keep_lease()

    with progress.watch("load", len(lists), lambda: written[0]):
        rows = publisher.store.load(run_id, lists, publisher.lease.fence, on_progress, resume)
        if resume and _wrong(publisher, run_id, lists):  # nodes that died may have lost what they had acknowledged
            rows = publisher.store.load(run_id, lists, publisher.lease.fence, on_progress)
    publisher.move(run_id, RunState.LOADING, RunState.LOADED, rows)


def _verify(publisher: Publisher, run_id: str, lists: BuiltLists) -> None:
    """Read every list back, as the service will, and compare it with what was built."""
    if wrong := _wrong(publisher, run_id, lists):
        publisher.move(run_id, RunState.LOADED, RunState.FAILED)
        raise NotAsBuilt(f"run {run_id} {wrong}; last night's lists stay; start the night again to load it anew")
    publisher.move(run_id, RunState.LOADED, RunState.VERIFIED)


def _wrong(publisher: Publisher, run_id: str, lists: BuiltLists) -> str | None:
    """What is wrong with the run in the store, in words."""
    try:
        found = difference(lists, publisher.reader, publisher.settings, run_id, publisher.keep_lease)
    except RunUnreadable as error:
        return f"can't be read back: {error}"
    return found and f"read back: {found}"


def settle(publisher: Publisher) -> None:
    """Make the states say what the pointer says: the run that it names is LIVE, and no other is.

    A rollback that died between its two steps is finished first, with the newest run that is whole; where there is none, the
    next night is the way out.
    """
    pointer = publisher.store.pointer()
    records = publisher.store.runs()
    live = next((record for record in records if pointer and record.run_id == pointer.run_id), None)
    if live and live.state is RunState.BAD:
        whole = (r for r in ways_back(settled(records, pointer)) if _readable_rows(publisher, r.run_id) == r.rows)
        target = next(whole, None)
        if target is None:
            return
        pointer = publisher.flip(target.run_id)
    settle_states(publisher, records, pointer)


def settle_states(publisher: Publisher, records: Iterable[RunRecord], pointer: Release | None) -> None:
    """The states of these records as the pointer has them."""
    for before, after in zip(records, settled(records, pointer), strict=True):
        if after.state is not before.state:
            publisher.move(before.run_id, before.state, after.state)


def _make_room(publisher: Publisher, run_id: str, progress: Progress) -> None:
    """Drop what publishers that died, or loads that failed, left of other runs: it may be as large as what is to be loaded."""
    for record in abandoned(publisher.store.runs(), but=run_id):
        publisher.drop(record)
        since = f"{record.changed_at:%Y-%m-%d %H:%M:%S} UTC"
        progress.note(
            f"run {record.run_id} was {record.state} since {since}, and nobody's: its lists are dropped, its Parquet stays"
        )


def _readable_rows(publisher: Publisher, run_id: str) -> int:
    rows = 0
    try:
        for _ in publisher.reader.scan(run_id):
            rows += 1
            if rows % 10_000 == 0:
                publisher.keep_lease()
    except RunUnreadable:
        return 0
    return rows


def _prune(publisher: Publisher) -> None:
    """Drop the lists of all but the newest `keep` good runs, never of one that the pointer named within `grace_seconds`."""
    keep, grace = publisher.settings.keep, publisher.settings.grace_seconds
    for record in outdated(publisher.store.runs(), keep, grace, publisher.clock()):
        publisher.drop(record)


def _tell_folders(publisher: Publisher, runs: Path) -> None:
    """A run that was rolled back from a machine without its folder must not be taken for last night's good one."""
    for record in publisher.store.runs():
        run = RunFolder(runs / record.run_id, "", Progress())
        if record.state is RunState.BAD and run.folder.exists() and not run.read(ROLLED_BACK):
            run.write(ROLLED_BACK, {"to": None, "at": record.changed_at.isoformat()})
