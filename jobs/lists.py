"""The lists of a built run: as the service has them, one by one, and as stores take them, in batches and parts."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.run import Record, file_checksum, read_json, write_json
from jobs.workers import on_workers
from schemas.columns import ITEMS, SCORES, SOURCES
from schemas.ids import CONTROL_CHARACTERS, MAX_ID_BYTES
from schemas.lists import KINDS, ServedList, check_list

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

Batches = Iterator[pa.RecordBatch]
Write = Callable[[int, Iterator[Batches]], Iterator[int]]
"""`write(tasks, parts)`, of which so many are at work at once: writes one part after the other, and yields the rows of
each as soon as the store has all of them."""

BATCH = 1_000
"""Lists that are checked and encoded at once. Writers stand still meanwhile: some 10 ms."""

LISTS = pa.schema(
    [
        ("kind", pa.string()),
        ("key", pa.string()),
        (ITEMS, pa.list_(pa.string())),
        (SCORES, pa.list_(pa.float32())),
        (SOURCES, pa.list_(pa.string())),
        ("scored_at", pa.timestamp("ms", "UTC")),
    ]
)
"""One row a served list; it is what schemas.lists.ServedList holds."""
ARRAYS = (ITEMS, SCORES, SOURCES)


@dataclass(frozen=True)
class BuiltLists:
    """What stage 7 wrote, as a store loads it (see `jobs.stores.Lists`): on Spark's workers where there is a Spark.

    A part is a file. One that a store has whole gets a record beside the lists' folder, `load/<file's name>.json`: its
    digest is what was loaded into, its checksum that of the file.
    """

    folder: Path
    spark: "SparkSession | None" = None

    def __iter__(self) -> Iterator[ServedList]:
        return (served for path in self.files() for batch in batches_of(path) for served in served_lists(batch))

    def __len__(self) -> int:
        return sum(pq.read_metadata(path).num_rows for path in self.files())

    def files(self) -> list[Path]:
        """The Parquet, in order."""
        return sorted(self.folder.glob("*.parquet"))

    def each_part(self, write: Write, into: str, progress: Callable[[int], None]) -> int:
        """One task a core of Spark's, so that what a task has to set up is set up once."""
        loaded = _Loaded(self.folder.with_name("load"), into)
        missing = [path for path in self.files() if not loaded.holds(path)]
        loaded.forget(missing)
        if missing and self.spark:
            tasks = min(len(missing), self.spark.sparkContext.defaultParallelism)
            work = partial(_write_parts, write, loaded, tasks)
            on_workers(self.spark, work, missing, tasks, lambda: progress(loaded.rows()))
        elif missing:
            _write_parts(write, loaded, 1, iter(missing), lambda: progress(loaded.rows()))
        progress(rows := loaded.rows())
        return rows


@dataclass(frozen=True)
class _Loaded:
    """The records of the parts that were loaded into one table."""

    folder: Path
    into: str

    def holds(self, path: Path) -> bool:
        """Whether the file, as it is now, was loaded whole."""
        record = read_json(self._record(path))
        return bool(record and record["digest"] == self.into and record["checksum"] == file_checksum(path))

    def forget(self, paths: Iterable[Path]) -> None:
        """These are yet to be loaded."""
        self.folder.mkdir(exist_ok=True)
        for path in paths:
            self._record(path).unlink(missing_ok=True)

    def close(self, path: Path, checksum: str, rows: int, seconds: float) -> None:
        """The store has the file's rows, all of them."""
        record = Record(path.stem, self.into, checksum, round(seconds, 3), {"rows": rows})
        write_json(self._record(path), asdict(record))

    def rows(self) -> int:
        """Rows loaded so far, by this try and by those before it."""
        records = (read_json(path) for path in self.folder.glob("*.json"))
        return sum(record["counts"]["rows"] for record in records if record and record["digest"] == self.into)

    def _record(self, path: Path) -> Path:
        return self.folder / f"{path.stem}.json"


def _write_parts(
    write: Write, loaded: _Loaded, tasks: int, files: Iterator[Path], beat: Callable[[], object] | None = None
) -> None:
    paths = list(files)
    start = time.monotonic()
    for path, rows in zip(paths, write(tasks, map(batches_of, paths)), strict=True):
        loaded.close(path, file_checksum(path), rows, time.monotonic() - start)
        start = time.monotonic()
        if beat:
            beat()


def batches_of(path: Path) -> Batches:
    """A file's lists, `BATCH` rows at a time."""
    for batch in pq.ParquetFile(path).iter_batches(batch_size=BATCH):
        yield batch if batch.schema == LISTS else batch.cast(LISTS)


def served_lists(batch: pa.RecordBatch) -> Iterator[ServedList]:
    """The rows, one by one."""
    for row in batch.to_pylist():
        yield ServedList(row["kind"], row["key"], *(tuple(row[name]) for name in ARRAYS), row["scored_at"])


def check_batch(batch: pa.RecordBatch) -> None:
    """Raise ValueError, naming the first one, where a row is no list (see `schemas.lists.check_list`) or has no key."""
    for name in batch.schema.names:
        array = batch[name]
        if array.null_count or (name in ARRAYS and array.flatten().null_count):
            raise ValueError(
                f"the lists from {batch['key'][0]} on have a null in {name}; delete the run and make it again"
            )
    wrong = np.flatnonzero(_wrong_arrays(batch) | _wrong_keys(batch))
    if wrong.size:
        (served,) = served_lists(batch.slice(int(wrong[0]), 1))
        check_list(served)
        raise ValueError(f"the list of {served.kind} {served.key!r} can't be loaded: that is no key")


def _wrong_arrays(batch: pa.RecordBatch) -> np.ndarray:
    offsets = [batch[name].offsets.to_numpy() for name in ARRAYS]
    lengths = [np.diff(found) for found in offsets]
    scores = batch[SCORES].flatten().to_numpy()
    wrong = (lengths[0] != lengths[1]) | (lengths[0] != lengths[2])
    if not math.isfinite(float(np.abs(scores).max(initial=0))):
        rows = np.repeat(np.arange(len(batch)), lengths[1])
        wrong[rows[~np.isfinite(scores)]] = True
    return wrong


def _wrong_keys(batch: pa.RecordBatch) -> np.ndarray:
    """A popular list's key holds whatever value a column had; the others are ids."""
    ids, known = (_mask(pc.is_in(batch["kind"], pa.array(kinds))) for kinds in (("user", "similar"), KINDS))
    sizes = pc.binary_length(batch["key"]).to_numpy()
    control = _mask(pc.match_substring_regex(batch["key"], CONTROL_CHARACTERS))
    return ~known | (sizes == 0) | (ids & (control | (sizes > MAX_ID_BYTES)))


def _mask(array: pa.BooleanArray) -> np.ndarray:
    return array.to_numpy(zero_copy_only=False)
