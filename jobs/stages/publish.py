"""Stage 9: a passed run becomes the live one: load, verify by reading back, flip the pointer last. And the way back.

Written is not served: a crash between any two steps leaves last night's lists served, and the same call goes on from there.
"""

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta

from jobs.lists import BuiltLists
from jobs.progress import Progress
from jobs.run import PUBLISHED, ROLLED_BACK, RunFolder
from jobs.stores import Store
from lookup_api.readers import Reader
from schemas.errors import NightlistError, Refused, RunUnreadable
from schemas.lists import ServedList
from schemas.runs import Lease, LeaseHeld, Release, RunRecord, RunState, day_of
from schemas.settings import StoreSettings

WAS_LIVE = (RunState.LIVE, RunState.RETIRED, RunState.BAD)
"""States of runs that the pointer named once."""


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
    reached: RunState | None = None
    """The last state that a run was moved to."""

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
        self.reached = new

    def flip(self, run_id: str) -> Release:
        """Point the release at a run, from where it stands now."""
        pointer = self.store.pointer()
        return self.store.flip(run_id, pointer.sequence if pointer else 0, self.lease.fence)


@contextmanager
def publishing(
    store: Store, reader: Reader, settings: StoreSettings, clock: Callable[[], datetime]
) -> Iterator[Publisher]:
    """The right to publish, for as long as the context lasts. Raises LeaseHeld, StoreUnavailable.

    What a publisher that died left between two steps is settled first.
    """
    store.prepare()
    publisher = Publisher(store, reader, settings, _acquire(store, settings.lease_seconds), clock)
    try:
        _settle(publisher)
        yield publisher
    finally:
        with suppress(NightlistError):  # a lease that can't be given back ends by itself, and hides no error before it
            store.release(publisher.lease)


def publish(publisher: Publisher, run: RunFolder, lists: BuiltLists, progress: Progress) -> Release:
    """Make a built run, whose lists these are, the live one, from whatever state an earlier try left it in; without effect when it is live.

    Raises Refused for a run that may not be published, NotAsBuilt, StoreUnavailable, StaleFence.
    """
    try:
        release = _publish(publisher, lists, run.run_id, progress)
        run.write(PUBLISHED, {"sequence": release.sequence, "published_at": release.published_at.isoformat()})
        _prune(publisher)
    except NightlistError as error:
        error.state = publisher.reached
        raise
    return release


def _publish(publisher: Publisher, lists: BuiltLists, run_id: str, progress: Progress) -> Release:
    record = publisher.record(run_id)
    _refuse(record, publisher.store.pointer(), run_id)
    state = publisher.reached = record.state if record else None
    if state not in (RunState.LOADED, RunState.VERIFIED, RunState.LIVE):
        publisher.move(run_id, state, RunState.LOADING)
        _load(publisher, run_id, lists, progress)
        state = RunState.LOADED
    if state is RunState.LOADED:
        _verify(publisher, run_id, lists)
        state = RunState.VERIFIED
    if state is RunState.VERIFIED:
        publisher.flip(run_id)
        _settle(publisher)
        publisher.reached = RunState.LIVE
    release = publisher.store.pointer()
    assert release, "the flip was ours, under our lease"
    assert release.run_id == run_id, "the flip was ours, under our lease"
    return release


def rollback(publisher: Publisher, target: str, live: RunFolder) -> Release:
    """Point the release back at `target`, and mark the run that was live BAD for ever. Raises Refused.

    Its folder is told first: a rollback that dies on the way is never taken for last night's good run.
    """
    live.write(ROLLED_BACK, {"to": target, "at": publisher.clock().isoformat()})
    publisher.move(live.run_id, RunState.LIVE, RunState.BAD)
    release = publisher.flip(target)
    _settle(publisher)
    return release


def rollback_target(publisher: Publisher, wanted: str | None) -> str:
    """The run that a rollback would go to: `wanted`, or the newest retired one. Raises Refused where it is not whole."""
    retired = [record for record in publisher.store.runs() if record.state is RunState.RETIRED]
    if not publisher.store.pointer():
        raise Refused("nothing is published yet: there is nothing to roll back")
    chosen = [record for record in retired if wanted in (None, record.run_id)]
    if not chosen:
        known = ", ".join(record.run_id for record in retired) or "none"
        raise Refused(f"no retired run {wanted or ''} to go back to; retired: {known}; see `nightlist runs`")
    newest = max(chosen, key=lambda record: record.changed_at)
    rows = _readable_rows(publisher, newest.run_id)
    if rows != newest.rows:
        raise Refused(
            f"run {newest.run_id} holds {rows} lists where {newest.rows} were published; choose another with --to"
        )
    return newest.run_id


def _readable_rows(publisher: Publisher, run_id: str) -> int:
    try:
        return sum(1 for _ in publisher.reader.scan(run_id))
    except RunUnreadable:
        return 0


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


def _load(publisher: Publisher, run_id: str, lists: BuiltLists, progress: Progress) -> None:
    written = [0]

    def on_progress(rows: int) -> None:
        written[0] = rows
        publisher.keep_lease()

    with progress.watch("load", len(lists), lambda: written[0]):
        rows = publisher.store.load(run_id, lists, publisher.lease.fence, on_progress)
    publisher.move(run_id, RunState.LOADING, RunState.LOADED, rows)


def _verify(publisher: Publisher, run_id: str, lists: BuiltLists) -> None:
    """Read every list back, as the service will, and compare it with what was built."""
    expected = {(built.kind, built.key): _fingerprint(built) for built in lists}
    twice, wrong, foreign = len(lists) - len(expected), 0, 0
    try:
        for number, found in enumerate(publisher.reader.scan(run_id)):
            if number % 10_000 == 0:
                publisher.keep_lease()
            fingerprint = expected.pop((found.kind, found.key), None)
            foreign += fingerprint is None
            wrong += fingerprint not in (None, _fingerprint(found))
    except RunUnreadable as error:
        publisher.move(run_id, RunState.LOADED, RunState.FAILED)
        raise NotAsBuilt(f"run {run_id} can't be read back: {error}; start the night again to load it anew") from None
    if expected or wrong or foreign or twice:
        publisher.move(run_id, RunState.LOADED, RunState.FAILED)
        raise NotAsBuilt(
            f"run {run_id} read back: {len(expected)} lists missing, {foreign} foreign, {wrong} different, {twice} of a key "
            f"that another one has; last night's lists stay; start the night again to load it anew"
        )
    publisher.move(run_id, RunState.LOADED, RunState.VERIFIED)


def _fingerprint(served: ServedList) -> int:
    return hash((served.items, served.scores, served.sources, served.scored_at))


def _settle(publisher: Publisher) -> None:
    """Make the states say what the pointer says: the run that it names is LIVE, and no other is."""
    pointer = publisher.store.pointer()
    if not pointer:
        return
    live = publisher.record(pointer.run_id)
    if live and live.state is RunState.BAD:  # a rollback that died between its two steps
        target = _whole(publisher)
        if target:
            publisher.flip(target)
            _settle(publisher)
        return
    for record in publisher.store.runs():
        named = record.run_id == pointer.run_id
        if named and record.state in (RunState.VERIFIED, RunState.RETIRED):
            publisher.move(record.run_id, record.state, RunState.LIVE)
        if not named and record.state is RunState.LIVE:
            publisher.move(record.run_id, RunState.LIVE, RunState.RETIRED)


def _whole(publisher: Publisher) -> str | None:
    """The newest retired run that lost nothing, if there is one: where there is none, the next night is the way out."""
    retired = [record for record in publisher.store.runs() if record.state is RunState.RETIRED]
    newest_first = sorted(retired, key=lambda record: record.changed_at, reverse=True)
    return next((r.run_id for r in newest_first if _readable_rows(publisher, r.run_id) == r.rows), None)


def _prune(publisher: Publisher) -> None:
    """Drop the lists of all but the newest `keep` good runs, never of one that the pointer named within `grace_seconds`."""
    records = [record for record in publisher.store.runs() if record.state in WAS_LIVE]
    good = [record for record in records if record.state is not RunState.BAD]
    good.sort(key=lambda record: (record.state is RunState.LIVE, record.changed_at))
    kept = {record.run_id for record in good[-publisher.settings.keep :]}
    begin = publisher.clock() - timedelta(seconds=publisher.settings.grace_seconds)
    for record in records:
        if record.run_id not in kept and record.changed_at <= begin:
            publisher.store.drop(record.run_id, publisher.lease.fence)


def _acquire(store: Store, ttl: float) -> Lease:
    """The lease; one whose holder died on this very host need not be waited for."""
    host = socket.gethostname()
    try:
        return store.acquire(f"{host}:{os.getpid()}", ttl)
    except LeaseHeld as held:
        holder, _, pid = held.lease.owner.rpartition(":")
        if holder != host or not pid.isdigit() or _is_alive(int(pid)):
            raise
        store.release(held.lease)
        return store.acquire(f"{host}:{os.getpid()}", ttl)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
