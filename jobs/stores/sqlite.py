"""The embedded store, written: `registry.db` (runs, release, lease) beside one `lists_<run_id>.db` a run.

BEGIN IMMEDIATE is the compare-and-set: whoever has it is the only writer, and what it read stays true until it commits.
A run's lists are built under another name and renamed when they are on disk, so that no half of a run bears its name.
"""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from datetime import datetime
from pathlib import Path

from jobs.stores import Lists
from jobs.stores._registry import Change, Registry, RegistryStore, utc_now
from jobs.stores._sqlite_file import DDL, build, sync_names, telling, text
from lookup_api.readers.sqlite import REGISTRY, bytes_of, connect, lists_path, read_release, read_runs
from schemas.ddl import statements
from schemas.runs import Lease, RunRecord
from schemas.settings import StoreSettings


def open_store(settings: StoreSettings, clock: Callable[[], datetime] = utc_now) -> "SqliteStore":
    """The writer of the folder `settings.path`."""
    return SqliteStore(settings.path, clock)


class SqliteStore(RegistryStore):
    """See `jobs.stores.Store`. Each call opens the registry anew, so one store serves several threads."""

    def __init__(self, folder: Path, clock: Callable[[], datetime] = utc_now, lock_seconds: float = 10.0) -> None:
        super().__init__(clock)
        self.folder = folder
        self._lock_seconds = lock_seconds
        self._registry_path = folder / REGISTRY

    def create(self) -> None:
        """Make the folder and the registry. Raises StoreUnavailable."""
        self.prepare()

    def prepare(self) -> None:
        """Make the folder and the registry's tables. Raises StoreUnavailable."""
        with telling(self._registry_path):
            self.folder.mkdir(parents=True, exist_ok=True)
            with closing(self._connect("mode=rwc")) as registry:
                registry.executescript(statements(DDL, "registry"))

    def load(self, run_id: str, lists: Lists, fence: int, progress: Callable[[int], None], resume: bool = False) -> int:
        """Build the run's file and give it its name when it is whole. Raises IllegalTransition, StaleFence; ValueError
        on a key given twice and on a list that is none.

        Always anew, `resume` or not: an unfinished file has no journal and was never synced, so nobody knows what is in it.
        """
        path = lists_path(self.folder, run_id)
        # The fence in the name keeps two publishers of one run, of whom one was thought dead, out of each other's file.
        unfinished = path.with_name(f"{path.name}.{fence}")
        with self._loading(run_id, fence), telling(path):
            _remove(path)
        try:
            written = build(unfinished, lists, progress)
            with self._loading(run_id, fence), telling(path):
                unfinished.replace(path)
                sync_names(self.folder)
        except BaseException:
            with suppress(OSError):
                unfinished.unlink(missing_ok=True)
            raise
        return written

    def drop(self, run_id: str, fence: int) -> None:
        """Remove the run's files, then its row unless it is BAD. Raises IllegalTransition for the live run."""

        def dropped(registry: Registry, now: datetime) -> Registry:
            after = registry.dropped(run_id, fence)
            # Before its row: a crash between the two leaves a run that readers refuse, and no file that nobody knows.
            with telling(self.folder):
                _remove(lists_path(self.folder, run_id))
            return after

        self._change(dropped)

    def size(self, run_id: str) -> int:
        """Bytes of the run's files."""
        with telling(self.folder):
            return sum(file.stat().st_size for file in _files(lists_path(self.folder, run_id)))

    def close(self) -> None:
        """Nothing is kept open."""

    def _read(self) -> Registry:
        with telling(self._registry_path):
            prepared = bytes_of(self._registry_path) > 0
        if not prepared:
            return Registry()
        with self._opened() as registry:
            return _read(registry)

    def _change(self, change: Change) -> Registry:
        with self._alone() as registry:
            before = _read(registry)
            after = change(before, self._now())
            _write(registry, before, after)
            return after

    @contextmanager
    def _loading(self, run_id: str, fence: int) -> Iterator[None]:
        """Around what may be done to the files of a LOADING run, and by one publisher only."""
        with self._alone() as registry:
            _read(registry).check_loading(run_id, fence)
            yield

    @contextmanager
    def _alone(self) -> Iterator[sqlite3.Connection]:
        """The registry with nobody else writing: committed at the end, undone on any error."""
        with self._opened() as registry:
            registry.execute("BEGIN IMMEDIATE")
            try:
                yield registry
                registry.execute("COMMIT")
            except BaseException:
                if registry.in_transaction:
                    registry.execute("ROLLBACK")
                raise

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        with telling(self._registry_path), closing(self._connect("mode=rw")) as registry:
            yield registry

    def _connect(self, options: str) -> sqlite3.Connection:
        registry = connect(self._registry_path, options, self._lock_seconds)
        # FULL would let a power failure undo the last commit, a flip included: EXTRA syncs the folder as well.
        registry.execute("PRAGMA synchronous = EXTRA")
        return registry


def _read(registry: sqlite3.Connection) -> Registry:
    row = registry.execute("SELECT owner, fence, expires_at FROM lease").fetchone()
    lease = Lease(row[0], row[1], datetime.fromisoformat(row[2])) if row else None
    return Registry(lease, read_release(registry), {run.run_id: run for run in read_runs(registry)})


def _write(registry: sqlite3.Connection, before: Registry, after: Registry) -> None:
    """What differs between the two."""
    lease, release = after.lease, after.release
    if lease and lease != before.lease:
        values = (lease.owner, lease.fence, text(lease.expires_at))
        registry.execute("INSERT OR REPLACE INTO lease VALUES ('publisher', ?, ?, ?)", values)
    if release and release != before.release:
        point = (release.run_id, release.previous, release.sequence, text(release.published_at))
        registry.execute("INSERT OR REPLACE INTO release VALUES ('live', ?, ?, ?, ?)", point)
    for run in after.changed(before):
        registry.execute("INSERT OR REPLACE INTO runs VALUES (?, ?, ?, ?, ?)", _row(run))
    for run_id in after.gone(before):
        registry.execute("DELETE FROM runs WHERE run_id = ?", (run_id,))


def _row(run: RunRecord) -> tuple[str, str, int | None, str, str]:
    return run.run_id, run.state, run.rows, text(run.created_at), text(run.changed_at)


def _files(path: Path) -> list[Path]:
    """The run's file and what broken loads left beside it."""
    whole = [path] if path.exists() else []
    return whole + list(path.parent.glob(f"{path.name}.*"))


def _remove(path: Path) -> None:
    for file in _files(path):
        file.unlink(missing_ok=True)
