"""The files of the embedded store: a run's lists built whole or not at all, and what the disk's errors mean."""

import errno
import json
import os
import sqlite3
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from itertools import islice
from operator import itemgetter
from pathlib import Path

from lookup_api.readers.sqlite import connect
from schemas.ddl import statements
from schemas.errors import Busy, StoreUnavailable
from schemas.lists import ServedList, check_list

Row = tuple[str, str, str, bytes, str, str]

DDL = "sqlite.sql"
BATCH = 5_000
NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

_encode_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def build(path: Path, lists: Iterable[ServedList], progress: Callable[[int], None]) -> int:
    """Write all lists to a new file, and return when it is on disk."""
    written, rest = 0, iter(lists)
    # The handle is for the sync at the end: a publisher that took over the lease may have removed the name by then.
    with closing(_new_file(path)) as file, path.open("rb") as handle:
        while batch := [_row(served) for served in islice(rest, BATCH)]:
            _insert(file, path, batch)
            written += len(batch)
            progress(written)
        with telling(path):
            file.execute("COMMIT")
            os.fsync(handle.fileno())
    return written


def _new_file(path: Path) -> sqlite3.Connection:
    with telling(path):
        path.unlink(missing_ok=True)
        file = connect(path, "mode=rwc")
        # 16 KiB: rows of some 1.3 kB lie whole in the tree. With 4 KiB pages each takes one more page: measured on
        # 300,000 lists of 50, 1341 MB and 28 us a read against 488 MB and 10 us.
        file.execute("PRAGMA page_size = 16384")
        # A file that is not whole is thrown away: no journal, no sync before the end.
        file.execute("PRAGMA journal_mode = OFF")
        file.execute("PRAGMA synchronous = OFF")
        file.execute("PRAGMA locking_mode = EXCLUSIVE")
        file.execute("PRAGMA cache_size = -131072")
        file.executescript(statements(DDL, "lists"))
        file.execute("BEGIN")
        return file


def _insert(file: sqlite3.Connection, path: Path, batch: list[Row]) -> None:
    batch.sort(key=itemgetter(0, 1))  # neighbours in the tree: a quarter less time
    before = file.total_changes
    try:
        with telling(path):
            file.executemany("INSERT INTO lists VALUES (?, ?, ?, ?, ?, ?)", batch)
    except sqlite3.IntegrityError as error:
        kind, key, *_ = batch[file.total_changes - before]
        raise ValueError(f"the list of {kind} {key!r} can't be loaded: {error}") from None


def _row(served: ServedList) -> Row:
    check_list(served)
    return (
        served.kind,
        served.key,
        _encode_json(served.items),
        struct.pack(f"<{len(served.scores)}f", *served.scores),
        _encode_json(served.sources),
        text(served.scored_at),
    )


def text(time: datetime) -> str:
    """A time as the store keeps it."""
    return time.astimezone(UTC).isoformat()


def sync_names(folder: Path) -> None:
    """Return when the names of the folder's files are on disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def telling(path: Path) -> Iterator[None]:
    """Errors of the disk and of SQLite, as those of Nightlist that say what to do."""
    try:
        yield
    except sqlite3.IntegrityError:
        raise
    except sqlite3.Error as error:
        raise _translated(path, error, getattr(error, "sqlite_errorcode", None)) from error
    except OSError as error:
        full = error.errno in NO_SPACE
        raise _translated(path, error, sqlite3.SQLITE_FULL if full else None) from error


def _translated(path: Path, error: Exception, code: int | None) -> Busy | StoreUnavailable:
    primary = None if code is None else code & 0xFF  # SQLite's extended codes carry the primary one in the low byte
    if primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return Busy(f"{path} is locked by another process; wait until it is done, then run the same command again")
    if primary in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
        return StoreUnavailable(
            f"{path} can't be written: {error}; free space there, or lower [store] keep, then run the same command "
            "again: it only loads. What is live stays live"
        )
    return StoreUnavailable(
        f"{path} can't be used: {error}; check [store] path, its owner, and that publish prepared it"
    )
