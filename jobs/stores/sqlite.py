"""The embedded store, written: `registry.db` (runs, release, lease) beside one `lists_<run_id>.db` a run.

BEGIN IMMEDIATE is the compare-and-set: whoever has it is the only writer, and what it read stays true until it commits.
A run's lists are built under another name and renamed when they are on disk, so that no half of a run bears its name.
"""

import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from jobs.stores._sqlite_file import DDL, build, sync_names, telling, text
from lookup_api.readers.sqlite import REGISTRY, bytes_of, connect, lists_path, read_release, read_runs
from schemas.ddl import statements
from schemas.errors import IllegalTransition, SequenceMoved, StaleFence
from schemas.lists import ServedList
from schemas.runs import Lease, LeaseHeld, Release, RunRecord, RunState, check_transition, table_of
from schemas.settings import StoreSettings

SERVABLE = frozenset({RunState.VERIFIED, RunState.LIVE, RunState.RETIRED})
"""States in which a run's lists are whole and were read back: only these may be pointed at."""

_RELEASED = ""  # the owner of a lease that was given back: its row stays, for the fence


def utc_now() -> datetime:
    """The time, as every store writes it."""
    return datetime.now(UTC)


def open_store(settings: StoreSettings, clock: Callable[[], datetime] = utc_now) -> "SqliteStore":
    """The writer of the folder `settings.path`."""
    return SqliteStore(settings.path, clock)


class SqliteStore:
    """See `jobs.stores.Store`. Each call opens the registry anew, so one store serves several threads."""

    def __init__(self, folder: Path, clock: Callable[[], datetime] = utc_now, lock_seconds: float = 10.0) -> None:
        self.folder = folder
        self._clock = clock
        self._lock_seconds = lock_seconds
        self._registry_path = folder / REGISTRY

    def prepare(self) -> None:
        """Make the folder and the registry's tables. Raises StoreUnavailable."""
        with telling(self._registry_path):
            self.folder.mkdir(parents=True, exist_ok=True)
            with closing(self._connect("mode=rwc")) as registry:
                registry.executescript(statements(DDL, "registry"))

    def acquire(self, owner: str, ttl: float) -> Lease:
        """The publisher's lease. Raises LeaseHeld; ValueError on an empty owner, which means nobody."""
        if owner == _RELEASED:
            raise ValueError("a lease needs an owner: who is to be asked when it is held too long?")
        with self._changing() as registry:
            held = _lease(registry)
            if held and held.owner != _RELEASED and held.expires_at > self._clock():
                raise LeaseHeld(held)
            lease = Lease(owner, held.fence + 1 if held else 1, self._after(ttl))
            return self._write_lease(registry, lease)

    def renew(self, lease: Lease, ttl: float) -> Lease:
        """The same lease with a new expiry. Raises StaleFence."""
        with self._changing() as registry:
            held = _lease(registry)
            if held is None or (held.fence, held.owner) != (lease.fence, lease.owner):
                raise StaleFence(f"lease {lease.fence} of {lease.owner} was superseded or released; publish again")
            return self._write_lease(registry, Lease(lease.owner, lease.fence, self._after(ttl)))

    def release(self, lease: Lease) -> None:
        """End the lease where it is still the newest."""
        with self._changing() as registry:
            held = _lease(registry)
            if held and held.fence == lease.fence:
                self._write_lease(registry, Lease(_RELEASED, lease.fence, self._clock()))

    def runs(self) -> list[RunRecord]:
        """All runs, newest name first; none where nothing was prepared."""
        with self._reading() as registry:
            return read_runs(registry) if registry else []

    def pointer(self) -> Release | None:
        """The release pointer; None where nothing was prepared."""
        with self._reading() as registry:
            return read_release(registry) if registry else None

    def set_state(self, run_id: str, old: RunState | None, new: RunState, fence: int, rows: int | None = None) -> None:
        """Compare-and-set of a run's state. Raises IllegalTransition, StaleFence; ValueError on a bad name."""
        table_of(run_id)
        with self._changing(fence) as registry:
            state = _state(registry, run_id)
            if state != old:
                found = f"{state or 'unknown to the store'}, not {old or 'new'}"
                raise IllegalTransition(f"run {run_id} is {found}; `nightlist runs` shows all states")
            now = text(self._clock())
            if old is None:
                _check_first(run_id, new)
                registry.execute("INSERT INTO runs VALUES (?, ?, ?, ?, ?)", (run_id, new, rows, now, now))
            else:
                check_transition(run_id, old, new)
                change = "UPDATE runs SET state = ?, rows = COALESCE(?, rows), changed_at = ? WHERE run_id = ?"
                registry.execute(change, (new, rows, now, run_id))

    def load(self, run_id: str, lists: Iterable[ServedList], fence: int, progress: Callable[[int], None]) -> int:
        """Build the run's file and give it its name when it is whole. Raises IllegalTransition, StaleFence; ValueError
        on a key given twice and on a list that is none."""
        path = lists_path(self.folder, run_id)
        with self._changing(fence) as registry:
            _check_loading(run_id, _state(registry, run_id))
            with telling(path):
                _remove(path)
        # The fence in the name keeps two publishers of one run, of whom one was thought dead, out of each other's file.
        unfinished = path.with_name(f"{path.name}.{fence}")
        try:
            written = build(unfinished, lists, progress)
            with self._changing(fence) as registry, telling(path):
                _check_loading(run_id, _state(registry, run_id))
                unfinished.replace(path)
                sync_names(self.folder)
        except BaseException:
            with suppress(OSError):
                unfinished.unlink(missing_ok=True)
            raise
        return written

    def flip(self, run_id: str, expected_sequence: int, fence: int) -> Release:
        """Point at `run_id`. Raises SequenceMoved; IllegalTransition for a run that was never read back."""
        with self._changing(fence) as registry:
            state, before = _state(registry, run_id), read_release(registry)
            sequence = before.sequence if before else 0
            if sequence != expected_sequence:
                raise SequenceMoved(
                    f"the release is at sequence {sequence}, not {expected_sequence}: somebody else published; "
                    "`nightlist runs` shows what is live"
                )
            if state not in SERVABLE:
                raise IllegalTransition(f"run {run_id} is {state or 'unknown to the store'} and can't be served")
            release = Release(run_id, before.run_id if before else None, sequence + 1, self._clock())
            registry.execute(
                "INSERT OR REPLACE INTO release VALUES ('live', ?, ?, ?, ?)",
                (release.run_id, release.previous, release.sequence, text(release.published_at)),
            )
            return release

    def drop(self, run_id: str, fence: int) -> None:
        """Remove the run's files, then its row unless it is BAD. Raises IllegalTransition for the live run."""
        path = lists_path(self.folder, run_id)
        with self._changing(fence) as registry:
            live = read_release(registry)
            if live and live.run_id == run_id:
                raise IllegalTransition(
                    f"run {run_id} is live and can't be dropped; publish or roll back to another one"
                )
            # Before its row: a crash between the two leaves a run that readers refuse, and no file that nobody knows.
            with telling(path):
                _remove(path)
            registry.execute("DELETE FROM runs WHERE run_id = ? AND state <> ?", (run_id, RunState.BAD))

    def size(self, run_id: str) -> int:
        """Bytes of the run's files."""
        with telling(self.folder):
            return sum(file.stat().st_size for file in _files(lists_path(self.folder, run_id)))

    def close(self) -> None:
        """Nothing is kept open."""

    def _connect(self, options: str) -> sqlite3.Connection:
        registry = connect(self._registry_path, options, self._lock_seconds)
        # FULL would let a power failure undo the last commit, a flip included: EXTRA syncs the folder as well.
        registry.execute("PRAGMA synchronous = EXTRA")
        return registry

    @contextmanager
    def _registry(self) -> Iterator[sqlite3.Connection]:
        with telling(self._registry_path), closing(self._connect("mode=rw")) as registry:
            yield registry

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection | None]:
        """The registry, or None where there is none yet."""
        with telling(self._registry_path):
            prepared = bytes_of(self._registry_path) > 0
        if not prepared:
            yield None
            return
        with self._registry() as registry:
            yield registry

    @contextmanager
    def _changing(self, fence: int | None = None) -> Iterator[sqlite3.Connection]:
        """The registry with nobody else writing: committed at the end, undone on any error."""
        with self._registry() as registry:
            registry.execute("BEGIN IMMEDIATE")
            try:
                if fence is not None:
                    _check_fence(registry, fence)
                yield registry
                registry.execute("COMMIT")
            except BaseException:
                if registry.in_transaction:
                    registry.execute("ROLLBACK")
                raise

    def _after(self, seconds: float) -> datetime:
        return self._clock() + timedelta(seconds=seconds)

    @staticmethod
    def _write_lease(registry: sqlite3.Connection, lease: Lease) -> Lease:
        values = (lease.owner, lease.fence, text(lease.expires_at))
        registry.execute("INSERT OR REPLACE INTO lease VALUES ('publisher', ?, ?, ?)", values)
        return lease


def _lease(registry: sqlite3.Connection) -> Lease | None:
    row = registry.execute("SELECT owner, fence, expires_at FROM lease").fetchone()
    return Lease(row[0], row[1], datetime.fromisoformat(row[2])) if row else None


def _state(registry: sqlite3.Connection, run_id: str) -> RunState | None:
    row = registry.execute("SELECT state FROM runs WHERE run_id = ?", (run_id,)).fetchone()
    return RunState(row[0]) if row else None


def _check_fence(registry: sqlite3.Connection, fence: int) -> None:
    newest = _lease(registry)
    if newest and newest.fence > fence:
        raise StaleFence(
            f"lease {fence} is over: {newest.owner or 'somebody'} was granted {newest.fence}; publish again"
        )


def _check_first(run_id: str, new: RunState) -> None:
    if new is not RunState.LOADING:
        raise IllegalTransition(f"run {run_id} is new to the store and can only become LOADING, not {new}")


def _check_loading(run_id: str, state: RunState | None) -> None:
    if state is not RunState.LOADING:
        raise IllegalTransition(f"run {run_id} is {state or 'unknown to the store'}; only a LOADING run can be loaded")


def _files(path: Path) -> list[Path]:
    """The run's file and what broken loads left beside it."""
    whole = [path] if path.exists() else []
    return whole + list(path.parent.glob(f"{path.name}.*"))


def _remove(path: Path) -> None:
    for file in _files(path):
        file.unlink(missing_ok=True)
