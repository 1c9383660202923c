"""A run's folder: each stage's output, closed by one record that is written last; what has its record is not done again."""

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from jobs.losses import losses
from jobs.progress import Progress
from schemas.errors import Busy
from schemas.runs import day_of

Counts = dict[str, Any]
"""What a stage reports of itself: JSON values, `rows` among them."""

PUBLISHED, ROLLED_BACK, MANIFEST = "published.json", "rolled_back.json", "manifest.json"
STARTED, LOCK = "started.json", "lock"


@dataclass(frozen=True)
class Record:
    """The last thing that a stage (or one bucket of it) writes. `checksum` covers its data files, not their names."""

    name: str
    digest: str
    checksum: str
    seconds: float
    counts: Counts = field(default_factory=dict)
    parts: dict[str, str] = field(default_factory=dict)


class RunFolder:
    """One run on disk. `digest` is the run's identity: records of another digest are as good as none."""

    def __init__(self, folder: Path, digest: str, progress: Progress) -> None:
        self.folder, self.digest, self.progress = folder, digest, progress

    @property
    def run_id(self) -> str:
        """The folder's name is the run's."""
        return self.folder.name

    def stage(self, name: str, work: Callable[..., Counts], *inputs: Any, salt: str = "") -> Path:
        """Do `work(folder of the stage, *inputs)` unless its record says that it is done; returns the stage's folder.

        `salt` stands for inputs that the run's digest does not cover: another salt makes the record void. Raises what the work
        raises, and Lost where it lacked memory or Spark lost a process.
        """
        out, digest = self.folder / name, self.digest + salt
        if record := self.whole(name, salt):
            self.progress.skipped(name, record.counts)
            return out
        self._record_path(name).unlink(missing_ok=True)
        out.mkdir(parents=True, exist_ok=True)
        with self.progress.stage(name), losses(f"stage {name}"):
            start = time.monotonic()
            counts = work(out, *inputs)
            seconds = time.monotonic() - start
        parts = {path.stem: read_json(path)["checksum"] for path in sorted(out.glob("bucket-*.json"))}
        record = Record(name, digest, checksum(out), round(seconds, 3), counts, parts)
        write_json(self._record_path(name), asdict(record))
        self.progress.finished(name, counts, seconds)
        return out

    def whole(self, name: str, salt: str = "") -> Record | None:
        """The record of a stage that is done, and whose output is still what was written; else None."""
        record = self.record(name)
        done = record and record.digest == self.digest + salt and record.checksum == checksum(self.folder / name)
        return record if done else None

    def record(self, name: str) -> Record | None:
        """The stage's record, or None when it has none."""
        values = read_json(self._record_path(name))
        return Record(**values) if values else None

    def counts(self, name: str) -> Counts:
        """What a finished stage counted; KeyError where it has no record."""
        record = self.record(name)
        if record is None:
            raise KeyError(f"stage {name} of run {self.run_id} is not finished")
        return record.counts

    def within(self, name: str) -> "RunFolder":
        """A run inside this one: the holdout goes through the same stages in a folder of its own."""
        return RunFolder(self.folder / name, self.digest, self.progress.quiet())

    def read(self, name: str) -> dict[str, Any] | None:
        """A JSON file of the run, e.g. the manifest; None when it is absent."""
        return read_json(self.folder / name)

    def write(self, name: str, values: Mapping[str, Any]) -> None:
        """Write a JSON file of the run, whole or not at all."""
        write_json(self.folder / name, values)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep a second night of the same run out; raises Busy. The lock goes with the process, however it ends."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / LOCK).open("w") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise Busy(f"another night is making run {self.run_id} in {self.folder}; wait for it") from None
            yield

    def discard(self) -> None:
        """Forget all that was made, the manifest first; when it was begun stays, for it is the time that equal lists carry."""
        (self.folder / MANIFEST).unlink(missing_ok=True)
        for path in self.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name not in (STARTED, LOCK):
                path.unlink()

    def _record_path(self, name: str) -> Path:
        return self.folder / f"{name}.json"


def checksum(folder: Path) -> str:
    """A digest of the contents of all data files below `folder`, whatever their names and order.

    Hidden files, and those that begin with `_`, are Spark's and don't count; neither do records.
    """
    files = (p for p in folder.rglob("*") if p.is_file() and p.name[0] not in "._" and p.suffix != ".json")
    total = hashlib.blake2b(digest_size=16)
    for digest in sorted(file_checksum(path) for path in files):
        total.update(bytes.fromhex(digest))
    return total.hexdigest()


def file_checksum(path: Path) -> str:
    """A digest of one file's contents."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def clear(folder: Path) -> None:
    """Make `folder` empty."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Whole or not at all, and on disk before it is there under its name."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with draft.open("w", encoding="utf-8") as handle:
        json.dump(values, handle, indent=1, ensure_ascii=False, default=str)
        handle.flush()
        os.fsync(handle.fileno())
    draft.replace(path)


def read_json(path: Path) -> dict[str, Any] | None:
    """The file's object; None when it is absent (a broken one was not written by write_json, and counts as absent)."""
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return None
    return values


def all_runs(runs: Path) -> list[RunFolder]:
    """The runs that have a manifest, newest name first."""
    manifests = ((path.parent, read_json(path)) for path in sorted(runs.glob(f"*/{MANIFEST}"), reverse=True))
    return [RunFolder(folder, manifest["digest"], Progress()) for folder, manifest in manifests if manifest]


def parent_of(runs: Path, day: date) -> RunFolder | None:
    """Last night's run: the newest one dated before `day` that was published, and neither rolled back nor passed over by a
    rollback to an older one.

    Of several runs of one day, the one whose turn came last.
    """
    published = [
        run for run in all_runs(runs) if day_of(run.run_id) < day and run.read(PUBLISHED) and not run.read(ROLLED_BACK)
    ]
    rollbacks = [record for path in runs.glob(f"*/{ROLLED_BACK}") if (record := read_json(path)) and record["to"]]
    turns = {run: _turn(run, rollbacks) for run in published}
    good = [
        run
        for run, turn in turns.items()
        if not any(day_of(back["to"]) < day_of(run.run_id) and turn < back["at"] for back in rollbacks)
    ]
    return max(good, key=lambda run: (day_of(run.run_id), turns[run]), default=None)


def _turn(run: RunFolder, rollbacks: Sequence[Mapping[str, str]]) -> str:
    """When the run, which was published, was last pointed at."""
    published: str = run.read(PUBLISHED)["published_at"]
    return max([published, *(back["at"] for back in rollbacks if back["to"] == run.run_id)])


def now() -> datetime:
    """The clock of the command line; everything below it is handed the time."""
    return datetime.now(UTC)
