"""What a publisher may do: the rules of lease, states and pointer, once for every store.

A registry is a value; each change of it is a new value or an error. A store only has to replace one by the other as a
whole or not at all, however many publishers try at once, and asks again when somebody else was faster.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from schemas.errors import IllegalTransition, SequenceMoved, StaleFence
from schemas.runs import Lease, LeaseHeld, Release, RunRecord, RunState, check_transition, table_of

Made = TypeVar("Made", Lease, Release)

SERVABLE = frozenset({RunState.VERIFIED, RunState.LIVE, RunState.RETIRED})
"""States in which a run's lists are whole and were read back: only these may be pointed at."""

DROPPABLE = frozenset({RunState.FAILED, RunState.BAD})
"""States from which no run is ever served: only these lose their lists. A publisher that stalls between two steps of a drop
can't take the lists of a run that somebody went back to meanwhile."""

RELEASED = ""
"""The owner of a lease that was given back: the lease itself stays, for its fence."""


def utc_now() -> datetime:
    """The time, where nobody hands in another clock."""
    return datetime.now(UTC)


@dataclass(frozen=True)
class Registry:
    """All that a store knows besides the lists: the newest lease, the release pointer, and every run by its id."""

    lease: Lease | None = None
    release: Release | None = None
    runs: Mapping[str, RunRecord] = field(default_factory=dict)

    def acquired(self, owner: str, ttl: float, now: datetime) -> "Registry":
        """With a new lease. Raises LeaseHeld; ValueError on an empty owner, which means nobody."""
        if owner == RELEASED:
            raise ValueError("a lease needs an owner: who is to be asked when it is held too long?")
        held = self.lease
        if held and held.owner != RELEASED and held.expires_at > now:
            raise LeaseHeld(held)
        return replace(self, lease=Lease(owner, held.fence + 1 if held else 1, now + timedelta(seconds=ttl)))

    def renewed(self, lease: Lease, ttl: float, now: datetime) -> "Registry":
        """With the same lease, ending later. Raises StaleFence."""
        held = self.lease
        if held is None or (held.fence, held.owner) != (lease.fence, lease.owner):
            raise StaleFence(f"lease {lease.fence} of {lease.owner} was superseded or released; publish again")
        return replace(self, lease=Lease(lease.owner, lease.fence, now + timedelta(seconds=ttl)))

    def given_back(self, lease: Lease, now: datetime) -> "Registry":
        """Without an owner of the lease, where it is still the newest."""
        held = self.lease
        return replace(self, lease=Lease(RELEASED, held.fence, now)) if held and held.fence == lease.fence else self

    def moved(
        self, run_id: str, old: RunState | None, new: RunState, fence: int, rows: int | None, now: datetime
    ) -> "Registry":
        """With the run in another state; `old` None registers it. Raises IllegalTransition, StaleFence."""
        self._check_fence(fence)
        known = self.runs.get(run_id)
        state = known.state if known else None
        if state != old:
            found = f"{state or 'unknown to the store'}, not {old or 'new'}"
            raise IllegalTransition(f"run {run_id} is {found}; `nightlist runs` shows all states")
        if known is None:
            if new is not RunState.LOADING:
                raise IllegalTransition(f"run {run_id} is new to the store and can only become LOADING, not {new}")
            known = RunRecord(run_id, new, None, now, now)
        else:
            check_transition(run_id, known.state, new)
        kept = known.rows if rows is None else rows
        return self._with(replace(known, state=new, rows=kept, changed_at=now))

    def flipped(self, run_id: str, expected_sequence: int, fence: int, now: datetime) -> "Registry":
        """With the pointer at `run_id`. Raises SequenceMoved, StaleFence; IllegalTransition for a run never read back."""
        self._check_fence(fence)
        before = self.release
        sequence = before.sequence if before else 0
        if sequence != expected_sequence:
            raise SequenceMoved(
                f"the release is at sequence {sequence}, not {expected_sequence}: somebody else published; "
                "`nightlist runs` shows what is live"
            )
        known = self.runs.get(run_id)
        if known is None or known.state not in SERVABLE:
            state = known.state if known else "unknown to the store"
            raise IllegalTransition(f"run {run_id} is {state} and can't be served")
        release = Release(run_id, before.run_id if before else None, sequence + 1, now)
        return replace(self._left(before, run_id, now), release=release)

    def dropped(self, run_id: str, fence: int) -> "Registry":
        """Without the run; of a BAD one all but its rows is remembered. Raises StaleFence; IllegalTransition for the live
        run, and for one that could still be served."""
        self._check_fence(fence)
        if self.release and self.release.run_id == run_id:
            raise IllegalTransition(f"run {run_id} is live and can't be dropped; publish or roll back to another one")
        known = self.runs.get(run_id)
        if known is None:
            return self
        if known.state not in DROPPABLE:
            raise IllegalTransition(f"run {run_id} is {known.state}; only a FAILED or BAD run can be dropped")
        if known.state is RunState.BAD:
            return self._with(replace(known, rows=None))
        return replace(self, runs={name: run for name, run in self.runs.items() if name != run_id})

    def check_loading(self, run_id: str, fence: int) -> None:
        """Raise IllegalTransition unless the run is LOADING, StaleFence where a newer lease was granted."""
        self._check_fence(fence)
        known = self.runs.get(run_id)
        if known is None or known.state is not RunState.LOADING:
            state = known.state if known else "unknown to the store"
            raise IllegalTransition(f"run {run_id} is {state}; only a LOADING run can be loaded")

    def changed(self, before: "Registry") -> list[RunRecord]:
        """The runs that are new or another one than before."""
        return [run for run in self.runs.values() if before.runs.get(run.run_id) != run]

    def gone(self, before: "Registry") -> list[str]:
        """The runs that are no more."""
        return [run_id for run_id in before.runs if run_id not in self.runs]

    def _check_fence(self, fence: int) -> None:
        newest = self.lease
        if newest and newest.fence > fence:
            owner = newest.owner or "somebody"
            raise StaleFence(f"lease {fence} is over: {owner} was granted {newest.fence}; publish again")

    def _left(self, before: Release | None, run_id: str, now: datetime) -> "Registry":
        """With the time at which the pointer went from its run to `run_id`: the run that it left is kept for a while."""
        left = self.runs.get(before.run_id) if before and before.run_id != run_id else None
        return self._with(replace(left, changed_at=now)) if left else self

    def _with(self, run: RunRecord) -> "Registry":
        return replace(self, runs={**self.runs, run.run_id: run})


Change = Callable[[Registry, datetime], Registry]
"""From what is and the time to what is to be; raises instead where the rules forbid it."""


class RegistryStore:
    """The half of `jobs.stores.Store` that is about the registry, for a store that can read and replace it."""

    def __init__(self, clock: Callable[[], datetime]) -> None:
        self._clock = clock

    @abstractmethod
    def _read(self) -> Registry:
        """The registry as it stands; an empty one where nothing was prepared."""

    @abstractmethod
    def _change(self, change: Change) -> Registry:
        """Replace the registry by what `change` makes of it, with nobody else's change in between; returns the new one."""

    def acquire(self, owner: str, ttl: float) -> Lease:
        """The publisher's lease. Raises LeaseHeld."""
        return _present(self._change(lambda registry, now: registry.acquired(owner, ttl, now)).lease)

    def renew(self, lease: Lease, ttl: float) -> Lease:
        """The same lease with a new expiry. Raises StaleFence."""
        return _present(self._change(lambda registry, now: registry.renewed(lease, ttl, now)).lease)

    def release(self, lease: Lease) -> None:
        """End the lease where it is still the newest."""
        self._change(lambda registry, now: registry.given_back(lease, now))

    def holder(self) -> Lease | None:
        """The lease that was granted last, where it was not given back; it may be over."""
        lease = self._read().lease
        return lease if lease and lease.owner != RELEASED else None

    def runs(self) -> list[RunRecord]:
        """All runs, newest name first."""
        return sorted(self._read().runs.values(), key=lambda run: run.run_id, reverse=True)

    def pointer(self) -> Release | None:
        """The release pointer."""
        return self._read().release

    def set_state(self, run_id: str, old: RunState | None, new: RunState, fence: int, rows: int | None = None) -> None:
        """Compare-and-set of a run's state. Raises IllegalTransition, StaleFence; ValueError on a bad name."""
        table_of(run_id)
        self._change(lambda registry, now: registry.moved(run_id, old, new, fence, rows, now))

    def flip(self, run_id: str, expected_sequence: int, fence: int) -> Release:
        """Point at `run_id`. Raises SequenceMoved; IllegalTransition for a run that was never read back."""
        return _present(
            self._change(lambda registry, now: registry.flipped(run_id, expected_sequence, fence, now)).release
        )

    def _now(self) -> datetime:
        """In whole milliseconds, as every store keeps times: what a call returns is what a reader will read."""
        now = self._clock()
        return now.replace(microsecond=now.microsecond // 1000 * 1000)


def _present(made: Made | None) -> Made:
    assert made is not None, "the change made it"
    return made
